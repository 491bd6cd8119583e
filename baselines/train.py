"""The one outer loop: meta-trains any sequence model on any vector environment.

Loss (Kirsch et al. 2022, eq. 2): mean over episodes and steps of the cross entropy of y_t given
tokens up to t, so that every prefix of an episode is trained. Everything an outer step needs is a
function of its number: episodes (by id), learning rate, share of repeated points and, through
``outer_step``, a model's own random numbers. So a checkpoint is the weights, the optimizer and one
integer, and a resumed run ends with the bits of an uninterrupted one.

    torchrun --nproc-per-node=2 -m baselines.gpicl ...     # each rank takes its part of a batch
"""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

import icl_bench
from baselines import checkpoint, cli, common, monitor, optim
from baselines.process import memory_advice, processes, rank, signals, world_size
from baselines.sequence import Method, SequenceModel, build_model, command, split
from baselines.train_config import TrainConfig
from icl_bench.evaluation.metrics import DIVERGED


def run(config: TrainConfig, method: Method) -> None:
    """Meta-train (or go on), then evaluate; see the module and ``common`` for what is written."""
    monitor.check_tracker(config)
    with processes(common.resolve_device(config.device), config.deterministic) as device:
        model = build_model(method, config).to(device)
        source = environment(config, device)
        entry = common.entry(
            config,
            name=config.variant or method.name,
            title=method.titles.get(config.variant, method.title),
            inductive_bias=method.inductive_bias,
            code=command(method, config),
            meta_train=config.meta_train,
            meta_train_kwargs=config.meta_train_kwargs(),
            parameters=sum(p.numel() for p in model.parameters()),
            state_size=model.state_size(config.episode_length),
        )
        if rank() > 0:
            train(config, model, source, None)
            return
        envs = common.envs_at_hand(config)
        with (
            common.open_run(config, entry, method.program) as opened,
            monitor.tracked(config, opened) as folder,
        ):
            hours = train(config, model, source, folder)
            common.add_gpu_hours(folder, entry, hours)
            common.save_learner(
                folder.path / "learner.safetensors", model.state_dict(), method.name, config
            )
            common.evaluate_run(folder, model.eval(), envs)


def main(method: Method, about: str) -> int:
    """Command line of a baseline; ``about`` is its module's docstring."""
    return cli.main(lambda config: run(config, method), method.presets, method.program, about)


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
        CheckpointError: If the checkpoint to go on with is of other settings, or damaged.
        FloatingPointError: If numbers are not finite, naming the step and the last checkpoint.
        KeyboardInterrupt: After SIGINT or SIGTERM, when the checkpoint is written.
        MemoryError: If the memory does not do, naming the settings that need less.
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
    losses = torch.zeros(config.log_every, 5, device=device)  # see _backward
    first, seconds = restore(config, model, optimizer, losses)
    if first == config.steps and folder:
        print(
            f"{folder.path} is meta-trained: all {first} steps are done; only what its evaluation "
            "lacks is done now",
            file=sys.stderr,
        )
    loss_of = _loss_function(config, model)
    monitors = monitor.monitors(config, device) if folder and config.eval_every else {}
    size = config.batch_size // world_size()
    tokens = config.batch_size * config.episode_length
    began = logged = time.monotonic()
    logged_step = first
    before: dict[str, Tensor] = {}

    def keep(step: int) -> None:
        monitor.check_losses(losses, step, folder)
        monitor.check_finite("a weight", optim.norms(model.named_parameters()), step, folder)
        if folder:
            state = {
                "settings": common.config_to_json(common.portable(config)),
                "step": step,
                "seconds": seconds + time.monotonic() - began,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "losses": losses,
            }
            checkpoint.save(folder.path, state)

    bar = tqdm(total=config.steps, initial=first, unit="step", disable=None if folder else True)
    advice = (
        f"with --batch-size {config.batch_size} and --accumulate {config.accumulate}: start again "
        "with a larger --accumulate, which computes a batch in more parts, or with a smaller "
        "--batch-size"
    )
    with signals() as stop, memory_advice(advice), bar:
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
            losses[slot] = _backward(config, model, loss_of, batch, bool(stop))
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
                monitor.check_losses(losses, step + 1, folder)
            if due and folder:
                now = time.monotonic()
                mean, at_first, at_last, diverged, _ = losses[: slot + 1].mean(dim=0).tolist()
                moves = optim.norms(
                    (n, p.detach() - before[n]) for n, p in model.named_parameters()
                )
                monitor.check_finite("the gradient", gradients, step + 1, folder)
                monitor.check_finite("the update", moves, step + 1, folder)
                folder.log.write(
                    "train",
                    step=step + 1,
                    loss=mean,
                    loss_first=at_first,
                    loss_last=at_last,
                    diverged=diverged,
                    lr=optimizer.param_groups[0]["lr"],
                    repeat=config.repeat_share(step),
                    tokens_per_s=(step + 1 - logged_step) * tokens / (now - logged),
                    seconds=seconds + now - began,
                    gradient_norm=gradients,
                    update_norm=moves,
                    **optim.adam_norms(optimizer, model.named_parameters()),
                )
                logged, logged_step = now, step + 1
                lost = {"diverged": f"{diverged:.1%}"} if diverged else {}
                bar.set_postfix(loss=f"{mean:.3f}", last=f"{at_last:.3f}", **lost, refresh=False)
            bar.update()
            if monitors and ((step + 1) % config.eval_every == 0 or step + 1 == config.steps):
                now = time.monotonic()
                monitor.measure(model, monitors, step + 1, folder, bar)
                logged += time.monotonic() - now
            stopping = bool(stop)
            if world_size() > 1:
                # All together: after a step whose losses say so, so one step later, which does not
                # wait for a GPU to finish this one.
                stopping = step > first and bool(losses[(step - 1) % config.log_every, 4] > 0)
            if stopping or (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                keep(step + 1)
            if stopping:
                raise KeyboardInterrupt
    total = seconds + time.monotonic() - began
    return total / 3600 * world_size() if device.type == "cuda" else 0.0


def restore(
    config: TrainConfig,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | optim.Together,
    losses: Tensor,
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
    if state.get("settings") != common.config_to_json(common.portable(config)):
        raise checkpoint.CheckpointError(
            f"{config.resume}: the checkpoint was made with other settings than config.json has: "
            "put back the run's own files, or start a new run"
        )
    if state["losses"].shape != losses.shape:
        raise checkpoint.CheckpointError(
            f"{config.resume}: the checkpoint was made by another version of this program: start "
            "a new run"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    losses.copy_(state["losses"])
    return int(state["step"]), float(state["seconds"])


def _loss_function(
    config: TrainConfig, model: SequenceModel
) -> Callable[[icl_bench.EpisodeBatch], Float[Tensor, "B T"]]:
    """Batch → cross entropies; compiled, distributed and in bf16 as configured."""
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
        return loss.view(batch.y.shape)

    return loss_of


def _backward(
    config: TrainConfig,
    model: SequenceModel,
    loss_of: Callable[[icl_bench.EpisodeBatch], Float[Tensor, "B T"]],
    batch: icl_bench.EpisodeBatch,
    stop: bool = False,
) -> Float[Tensor, "5"]:
    """Gradients of the model's objective, part by part.

    Returns:
        Mean loss; that of the first and of the last step; share of episodes that diverged; share
        of processes that were told to ``stop``.
    """
    parts = config.accumulate
    total = torch.zeros(5, device=batch.x.device)
    total[4] = stop
    model.first_episode = rank() * len(batch)
    for part in split(batch, parts):
        losses = loss_of(part)
        model.first_episode += len(part)
        (model.objective(losses) / parts).backward()
        losses = losses.detach()
        diverged = ~(losses.mean(dim=1) <= DIVERGED * math.log(batch.num_classes))  # or NaN
        shares = [losses.mean(), losses[:, 0].mean(), losses[:, -1].mean(), diverged.float().mean()]
        total[:4] += torch.stack(shares) / parts
    if world_size() > 1:
        torch.distributed.all_reduce(total)
        total /= world_size()
    return total


def environment(config: TrainConfig, device: torch.device) -> Any:
    """The unwrapped environment of meta-training."""
    made: Any = icl_bench.make(
        config.meta_train,
        split="train",
        seed=config.seed,
        device=str(device),
        data_dir=config.data_dir,
        **config.meta_train_kwargs(),
    )
    return made.unwrapped
