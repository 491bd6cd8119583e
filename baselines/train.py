"""The one outer loop: meta-trains any sequence model on any vector environment.

Loss (Kirsch et al. 2022, eq. 2): mean over episodes and steps of the cross entropy of y_t given
tokens up to t, so that every prefix of an episode is trained. Everything an outer step needs is a
function of its number: episodes (by id), learning rate, share of repeated points and, through
``outer_step``, a model's own random numbers. So a checkpoint is the weights, the optimizer and one
integer, and a resumed run ends with the bits of an uninterrupted one.

    torchrun --nproc-per-node=2 -m baselines.gpicl ...     # each rank takes its part of a batch
"""

import contextlib
import dataclasses
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

import icl_bench
from baselines import checkpoint, common, optim
from icl_bench.data.images import MissingDataError
from icl_bench.registration import find_spec

# Episodes that training curves are measured on: beyond any frozen episode, so that nothing is
# chosen by looking at what is scored.
MONITOR_FROM = 2**24


@dataclasses.dataclass(frozen=True)
class TrainConfig(common.RunConfig):
    """Settings of every baseline that meta-trains."""

    steps: int = 50_000
    """Outer steps."""
    batch_size: int = 128
    """Episodes (tasks) per outer step, over all processes."""
    accumulate: int = 1
    """Parts in which a batch is computed, for less memory."""
    episode_length: int = 100
    """T. Other than 100, results are not ranked."""
    num_tasks: int | None = 2**25
    """Training tasks; None = every episode a new task."""
    bias: float = 0.9
    """Fraction of training tasks that keep one fixed label permutation."""
    repeat: float = 0.0
    """Repeated-points curriculum: fraction of training episodes made of 10 distinct examples."""
    repeat_end: float = 0.0
    """The fraction that it is annealed to."""
    repeat_steps: tuple[int, int] = (0, 0)
    """Outer steps between which the fraction goes linearly from repeat to repeat_end; 0 0 = never."""
    optimizer: optim.OptimizerName = "adam"
    """adam, adamw (decoupled decay), or sign (sign of the gradient's moving average)."""
    lr: float = 1e-3
    """Learning rate after the warm-up."""
    warmup: int = 0
    """Outer steps of linear warm-up."""
    decay: Literal["none", "cosine"] = "none"
    """Learning rate after the warm-up: constant, or half a cosine to 0."""
    eps: float = 1e-8
    """Adam's ε."""
    momentum: float = 0.9
    """β of the sign optimizer."""
    weight_decay: float = 0.0
    """Of matrices."""
    clip: float = 0.0
    """Largest norm of a gradient; 0 = none."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 = autocast of matrix products; auto = bf16 on a GPU. Evaluation is always fp32."""
    compile: bool | None = None
    """torch.compile; None = on a GPU."""
    deterministic: bool = False
    """Deterministic kernels on a GPU, so that a resumed run has the same bits there, too."""
    log_every: int = 50
    """Outer steps between lines of the log."""
    eval_every: int = 1000
    """Outer steps between measurements on val, unseen and cross-dataset episodes; 0 = never."""
    eval_episodes: int = 64
    """Episodes of each of these measurements."""
    checkpoint_every: int = 1000
    """Outer steps between checkpoints."""
    track: Literal["none", "tensorboard", "wandb"] = "none"
    """Mirror the log to TensorBoard (in the run folder) or Weights & Biases."""

    def check(self) -> None:
        """Check the values; ``cli.main`` does so."""
        super().check()
        for name in ("steps", "batch_size", "accumulate", "episode_length", "log_every"):
            common.require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("warmup", "weight_decay", "clip", "eval_every"):
            value = getattr(self, name)
            common.require(math.isfinite(value) and value >= 0, name, value, "0 or more")
        for name in ("lr", "eps", "eval_episodes", "checkpoint_every"):
            value = getattr(self, name)
            common.require(common.positive(value), name, value, "above 0")
        for name in ("bias", "repeat", "repeat_end", "momentum"):
            value = getattr(self, name)
            common.require(0 <= value <= 1, name, value, "in [0, 1]")
        tasks = self.num_tasks
        common.require(tasks is None or tasks >= 1, "num_tasks", tasks, "None, or 1 or more")
        low, high = self.repeat_steps
        common.require(0 <= low <= high, "repeat_steps", self.repeat_steps, "two ascending steps")
        parts = self.accumulate * world_size()
        common.require(
            self.batch_size % parts == 0,
            "batch_size",
            self.batch_size,
            f"a multiple of accumulate × processes = {parts}",
        )

    @property
    def meta_train(self) -> str:
        """The environment to meta-train on: the suite's, or ``env``."""
        return self.env if self.suite is None else icl_bench.suite(self.suite).meta_train

    def repeat_share(self, step: int) -> float:
        """Share of repeated-points episodes at an outer step."""
        low, high = self.repeat_steps
        if high == 0:
            return self.repeat
        done = min(max((step - low) / max(1, high - low), 0.0), 1.0)
        return self.repeat + done * (self.repeat_end - self.repeat)

    def meta_train_kwargs(self) -> dict[str, Any]:
        """Arguments of ``make`` for meta-training."""
        return {
            "num_tasks": self.num_tasks,
            "bias": self.bias,
            "repeat": self.repeat,
            "episode_length": self.episode_length,
        }


class SequenceModel(nn.Module):
    """What a baseline's model offers: a learner that can also be stepped token by token."""

    outer_step: int | None = None
    """While training, the number of the outer step, for models that draw random numbers."""

    def forward(
        self, x: Float[Tensor, "B T D"], prev_y: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T C"]:
        """Logits of all steps in one pass."""
        raise NotImplementedError

    def begin(self, batch_size: int) -> Any:
        """The state before the first token."""
        raise NotImplementedError

    def step(
        self, x: Float[Tensor, "B D"], prev_y: Int[Tensor, " B"], state: Any
    ) -> tuple[Float[Tensor, "B C"], Any]:
        """Logits of the next step, and the state after it."""
        raise NotImplementedError

    def state_size(self, episode_length: int) -> int:
        """Numbers carried from step to step, of one episode (METHODS: N_S)."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Method:
    """What a baseline tells the loop and the leaderboard.

    Attributes:
        name: For folders.
        title: For people.
        inductive_bias: As in Table 2 of GPICL.
        build: (config, D, C) → the model with its initial weights, from ``torch``'s generator.
    """

    name: str
    title: str
    inductive_bias: str
    build: Callable[[Any, int, int], SequenceModel]

    @property
    def program(self) -> str:
        """How it is run."""
        return f"python -m baselines.{self.name.replace('-', '_')}"


def world_size() -> int:
    """Processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process among them."""
    return int(os.environ.get("RANK", "0"))


def build_model(method: Method, config: TrainConfig) -> SequenceModel:
    """The model with the initial weights that ``config.seed`` names; torch's state is kept."""
    spec = find_spec(config.meta_train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return method.build(config, spec.num_features, spec.num_classes)


def run(config: TrainConfig, method: Method) -> None:
    """Meta-train (or go on), then evaluate; see the module and ``common`` for what is written."""
    with _processes(config) as device:
        model = build_model(method, config).to(device)
        source = _environment(config, device)
        entry = common.entry(
            config,
            name=method.name,
            title=method.title,
            inductive_bias=method.inductive_bias,
            code=f"{method.program} --preset {config.preset} --env {config.meta_train}",
            meta_train=config.meta_train,
            meta_train_kwargs=config.meta_train_kwargs(),
            parameters=sum(p.numel() for p in model.parameters()),
            state_size=model.state_size(config.episode_length),
        )
        if rank() > 0:
            train(config, model, source, None)
            return
        envs = common.envs_at_hand(config)
        with common.open_run(config, entry, method.program) as folder:
            hours = train(config, model, source, folder)
            common.add_gpu_hours(folder, entry, hours)
            common.save_learner(folder.path / "learner.safetensors", model.state_dict(), config)
            common.evaluate_run(folder, model.eval(), envs)


def train(
    config: TrainConfig,
    model: SequenceModel,
    source: Any,
    folder: common.RunFolder | None,
) -> float:
    """The outer loop; returns the GPU-hours it has taken in all.

    Args:
        config: Settings.
        model: Is trained in place, on the device of its parameters.
        source: The unwrapped environment of meta-training.
        folder: Run folder for the log and checkpoints; None in processes other than the first.

    Raises:
        FloatingPointError: If the loss is not finite, naming the step and the last checkpoint.
        KeyboardInterrupt: After SIGINT or SIGTERM, when the checkpoint is written.
    """
    device = next(model.parameters()).device
    optimizer = optim.make_optimizer(
        config.optimizer,
        model,
        lr=config.lr,
        eps=config.eps,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    first, seconds = _restore(config, model, optimizer)
    loss_of = _loss_function(config, model)
    monitors = _monitors(config, device) if folder and config.eval_every else {}
    losses = torch.zeros(config.log_every, 3, device=device)  # mean, first step, last step
    size = config.batch_size // world_size()
    began = logged = time.monotonic()
    before: dict[str, Tensor] = {}

    def keep(step: int) -> None:
        _check_finite(losses, step, folder)
        if folder:
            state = {
                "step": step,
                "seconds": seconds + time.monotonic() - began,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            checkpoint.save(folder.path, state)

    bar = tqdm(total=config.steps, initial=first, unit="step", disable=None if folder else True)
    with _signals() as stop, bar:
        for step in range(first, config.steps):
            model.train()
            model.outer_step = step
            for group in optimizer.param_groups:
                group["lr"] = config.lr * optim.rate_factor(
                    step, config.steps, config.warmup, config.decay
                )
            start = step * config.batch_size + rank() * size
            batch = source.episodes(range(start, start + size), repeat=config.repeat_share(step))
            slot = step % config.log_every
            losses[slot] = _backward(config, loss_of, batch)
            due = (step + 1) % config.log_every == 0 or step + 1 == config.steps
            if due and folder:
                before = {n: p.detach().clone() for n, p in model.named_parameters()}
                gradients = optim.norms(
                    (n, p.grad) for n, p in model.named_parameters() if p.grad is not None
                )
            if config.clip:
                nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            optimizer.zero_grad()
            model.outer_step = None
            if due:
                _check_finite(losses, step + 1, folder)
            if due and folder:
                now = time.monotonic()
                mean, at_first, at_last = losses[: slot + 1].mean(dim=0).tolist()
                moves = ((n, p.detach() - before[n]) for n, p in model.named_parameters())
                folder.log.write(
                    "train",
                    step=step + 1,
                    loss=mean,
                    loss_first=at_first,
                    loss_last=at_last,
                    lr=optimizer.param_groups[0]["lr"],
                    repeat=config.repeat_share(step),
                    tokens_per_s=(slot + 1)
                    * config.batch_size
                    * config.episode_length
                    / (now - logged),
                    seconds=seconds + now - began,
                    gradient_norm=gradients,
                    update_norm=optim.norms(moves),
                )
                logged = now
                bar.set_postfix(loss=f"{mean:.3f}", last=f"{at_last:.3f}", refresh=False)
            bar.update()
            if monitors and ((step + 1) % config.eval_every == 0 or step + 1 == config.steps):
                _measure(model, monitors, step + 1, folder, bar)
                logged = time.monotonic()
            if stop or (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                keep(step + 1)
            if stop:
                raise KeyboardInterrupt
    total = seconds + time.monotonic() - began
    return total / 3600 * world_size() if device.type == "cuda" else 0.0


def _restore(
    config: TrainConfig, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """The step to go on with, and the seconds before it; loads the newest sound checkpoint."""
    state = None if config.resume is None else checkpoint.load(Path(config.resume))
    if config.resume is not None:
        log = common.JsonlLog(Path(config.resume) / "metrics.jsonl")
        done = 0 if state is None else state["step"]
        if rank() == 0:
            log.cut(lambda line: line.get("step", 0) <= done)
    if state is None:
        return 0, 0.0
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise checkpoint.CheckpointError(
            f"{config.resume}: the checkpoint is of another model: {str(error).splitlines()[1]}"
        ) from error
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), float(state["seconds"])


def _loss_function(
    config: TrainConfig, model: SequenceModel
) -> Callable[[icl_bench.EpisodeBatch], Float[Tensor, " T"]]:
    """Batch → cross entropy of every step; compiled, distributed and in bf16 as configured."""
    device = next(model.parameters()).device
    gpu = device.type == "cuda"
    half = config.precision == "bf16" or (config.precision == "auto" and gpu)
    net: Callable[..., Tensor] = model
    if world_size() > 1:
        net = nn.parallel.DistributedDataParallel(model)
    if gpu if config.compile is None else config.compile:
        net = torch.compile(net)

    def loss_of(batch: icl_bench.EpisodeBatch) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = net(batch.x, batch.prev_y)
        logits = logits.float().flatten(0, 1)
        loss = functional.cross_entropy(logits, batch.y.flatten(), reduction="none")
        return loss.view(batch.y.shape).mean(dim=0)

    return loss_of


def _backward(
    config: TrainConfig,
    loss_of: Callable[[icl_bench.EpisodeBatch], Tensor],
    batch: icl_bench.EpisodeBatch,
) -> Float[Tensor, "3"]:
    """Gradients of the mean loss, part by part; returns it, and that of the first and last step."""
    parts = config.accumulate
    total = torch.zeros(3, device=batch.x.device)
    for part in _split(batch, parts):
        curve = loss_of(part)
        (curve.mean() / parts).backward()
        curve = curve.detach()
        total += torch.stack([curve.mean(), curve[0], curve[-1]]) / parts
    if world_size() > 1:
        torch.distributed.all_reduce(total)
        total /= world_size()
    return total


def _split(batch: icl_bench.EpisodeBatch, parts: int) -> Iterator[icl_bench.EpisodeBatch]:
    if parts == 1:
        yield batch
        return
    fields = zip(
        batch.x.chunk(parts), batch.y.chunk(parts), batch.task_id.chunk(parts), strict=True
    )
    for x, y, task_id in fields:
        yield icl_bench.EpisodeBatch(x, y, task_id, batch.num_classes)


def _check_finite(losses: Float[Tensor, "N 3"], step: int, folder: common.RunFolder | None) -> None:
    bad = (~torch.isfinite(losses)).any(dim=1).nonzero()
    if len(bad) == 0:
        return
    every = len(losses)
    first = (step - 1) // every * every + int(bad[0]) + 1
    newest = folder.path / checkpoint.NEWEST if folder else None
    where = f"; {newest} is from before it" if newest and newest.exists() else ""
    raise FloatingPointError(
        f"the loss is not finite at step {first}{where}. A smaller --lr, --clip 1 or "
        "--precision fp32 may help"
    )


def _environment(config: TrainConfig, device: torch.device) -> Any:
    made: Any = icl_bench.make(
        config.meta_train,
        split="train",
        seed=config.seed,
        device=str(device),
        data_dir=config.data_dir,
        **config.meta_train_kwargs(),
    )
    return made.unwrapped


def _monitors(config: TrainConfig, device: torch.device) -> dict[str, icl_bench.EpisodeBatch]:
    """Batches that training curves are measured on: val, unseen, and other data sets unseen."""
    found = {}
    wanted: Sequence[tuple[str, str, Literal["val", "unseen"]]] = [
        ("val", config.meta_train, "val"),
        ("unseen", config.meta_train, "unseen"),
        *((env, env, "unseen") for env in icl_bench.cross(config.meta_train)),
    ]
    ids = np.arange(MONITOR_FROM, MONITOR_FROM + config.eval_episodes)
    for name, env, split in wanted:
        try:
            made: Any = icl_bench.make(
                env,
                split=split,
                episode_length=config.episode_length,
                device=str(device),
                data_dir=config.data_dir,
            )
        except MissingDataError:
            continue
        found[name] = made.unwrapped.episodes(ids)
    return found


@torch.no_grad()
def _measure(
    model: SequenceModel,
    monitors: dict[str, icl_bench.EpisodeBatch],
    step: int,
    folder: common.RunFolder | None,
    bar: Any,
) -> None:
    """Log the accuracy at every step of the episode, on each of the monitors' batches."""
    assert folder is not None
    model.eval()
    shown = []
    for name, batch in monitors.items():
        hits = [
            model(part.x, part.prev_y).argmax(dim=-1) == part.y
            for part in _split(batch, max(1, len(batch) // 32))
        ]
        curve = torch.cat(hits).float().mean(dim=0)
        last = float(curve[-10:].mean())
        rounded = [round(value, 4) for value in curve.tolist()]
        folder.log.write("eval", step=step, on=name, last_ten=last, curve=rounded)
        shown.append(f"{name} {last:.1%}")
    if not bar.disable:
        bar.write(f"step {step}, last ten steps of an episode: {', '.join(shown)}")


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM are added to, so that a step is finished before stopping."""
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        if received:  # the second one does not wait
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _processes(config: TrainConfig) -> Iterator[torch.device]:
    """The device of this process; joins the processes that torchrun started."""
    device = common.resolve_device(config.device)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
    if world_size() == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        torch.distributed.destroy_process_group()
