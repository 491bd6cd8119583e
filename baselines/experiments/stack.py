"""Members of an ensemble: stacked parameters, one vmapped pass, an optimizer of all, one loop.

The parameters of R models of one shape are rows of a matrix [R, P]. ``torch.func.vmap`` passes
every member's own episodes through its own parameters, and the gradient of the sum of the members'
losses has each member's in its row. See ``ensemble`` for what is trained so.
"""

import contextlib
import dataclasses
import math
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from baselines import checkpoint, common, monitor, optim, train
from baselines.process import memory_advice, signals
from baselines.sequence import SequenceModel
from baselines.train_config import TrainConfig
from icl_bench.evaluation.metrics import DIVERGED
from icl_bench.registration import find_spec

# What the optimizers keep of every parameter.
KEPT = {"adam": ("exp_avg", "exp_avg_sq"), "sign": ("average",)}
KEPT["adamw"] = KEPT["adam"]
BETAS = (0.9, 0.999)  # Adam's, as in optim.make_optimizer


@dataclasses.dataclass(eq=False)
class Member:
    """A run of an ensemble.

    Attributes:
        config: Settings; ``resume`` names the folder to go on in, or None.
        folder: Run folder for the log and checkpoints, or None.
        error: Why it failed.
        losses: Of the outer steps since the last line of the log, see ``train``.
        step: Outer steps that were done before.
        seconds: What these took.
    """

    config: TrainConfig
    folder: common.RunFolder | None = None
    error: Exception | None = None

    def begin(self, model: SequenceModel, source: Any) -> None:
        """Begin, or go on from the newest checkpoint.

        Args:
            model: With the initial weights; is trained in place.
            source: The unwrapped environment of meta-training; members may share it.
        """
        self.model, self.source, config = model, source, self.config
        self.optimizer: Any = optim.make_optimizer(
            config.optimizer,
            model,
            lr=config.lr,
            eps=config.eps,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        device = next(model.parameters()).device
        self.losses = torch.zeros(config.log_every, 5, device=device)
        self.step, self.seconds = train.restore(config, model, self.optimizer, self.losses)
        watched = self.folder and config.eval_every and self.step < config.steps
        self.monitors = monitor.monitors(config, device) if watched else {}

    def rate(self, step: int) -> float:
        """The learning rate at an outer step."""
        config = self.config
        factor = optim.rate_factor(step, config.steps, config.warmup, config.decay)
        return config.lr * factor

    def fail(self, error: Exception) -> None:
        """Note why it failed, in its folder as well."""
        self.error = error
        if self.folder is not None:
            with contextlib.suppress(OSError):  # a full disk: the error itself is told
                text = "".join(traceback.format_exception(error))
                (self.folder.path / "failed.txt").write_text(text)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """What fails here is this member's failure, and no other's."""
        try:
            yield
        except Exception as error:
            self.fail(error)


class Stack:
    """Members' parameters θ and optimizer state as rows of matrices, and one step of all.

    Args:
        members: Of one shape and at one outer step; their tensors become views of the rows.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members
        first = members[0]
        self.config, self.model = first.config, first.model
        named = list(first.model.named_parameters())
        self.shapes = {name: p.shape for name, p in named}
        self.sizes = [p.numel() for _, p in named]
        like = named[0][1]
        self.num_classes = find_spec(self.config.meta_train).num_classes
        self.theta = _rows([list(m.model.parameters()) for m in members]).requires_grad_()
        self.state = {
            key: _rows(
                [
                    [m.optimizer.state.get(p, {}).get(key, torch.zeros_like(p)) for p in parameters]
                    for m, parameters in ((m, list(m.model.parameters())) for m in members)
                ]
            )
            for key in KEPT[self.config.optimizer]
        }
        self.losses = torch.stack([m.losses for m in members])
        for row, member in enumerate(members):
            member.losses = self.losses[row]
            for p, values in zip(
                member.model.parameters(), self.split(self.theta, row), strict=True
            ):
                p.data = values
            for key, matrix in self.state.items():
                parts = zip(member.model.parameters(), self.split(matrix, row), strict=True)
                for p, values in parts:
                    member.optimizer.state[p][key] = values

        def column(values: Iterable[float]) -> Float[Tensor, "R 1"]:
            return torch.tensor(list(values), dtype=like.dtype, device=like.device)[:, None]

        configs = [m.config for m in members]
        # All of them at once, so that no outer step waits for the host.
        steps = range(self.config.steps)
        self.rates = torch.tensor(
            [[m.rate(step) for m in members] for step in steps],
            dtype=like.dtype,
            device=like.device,
        )
        self.eps = column(c.eps for c in configs)
        self.momentum = column(c.momentum for c in configs)
        self.clip: Tensor | None = None
        if any(c.clip for c in configs):
            self.clip = column(c.clip or math.inf for c in configs)
        self.decay: Tensor | None = None
        if any(c.weight_decay for c in configs):  # of matrices only
            matrices = [p.new_full((p.numel(),), float(p.ndim >= 2)).detach() for _, p in named]
            self.decay = column(c.weight_decay for c in configs) * torch.cat(matrices)
        gpu = like.device.type == "cuda"
        self.half = self.config.precision == "bf16" or (self.config.precision == "auto" and gpu)
        self.forward: Callable[..., Tensor] = self._logits
        if gpu if self.config.compile is None else self.config.compile:
            self.forward = torch.compile(self._logits)

    def split(self, matrix: Float[Tensor, "R P"], row: int) -> list[Tensor]:
        """A member's tensors in a matrix, as views."""
        parts = torch.split(matrix.detach()[row], self.sizes)
        return [part.view(s) for part, s in zip(parts, self.shapes.values(), strict=True)]

    def norms(self, matrix: Float[Tensor, "R P"], row: int) -> dict[str, float]:
        """Norms of a member's tensors in a matrix, see ``optim.norms``."""
        return optim.norms(zip(self.shapes, self.split(matrix, row), strict=True))

    def _logits(
        self,
        theta: Float[Tensor, "R P"],
        x: Float[Tensor, "R B T D"],
        prev_y: Int[Tensor, "R B T"],
    ) -> Float[Tensor, "R B T C"]:
        named = zip(self.shapes.items(), torch.split(theta, self.sizes, dim=1), strict=True)
        parameters = {name: rows.view(len(x), *shape) for (name, shape), rows in named}

        def of_one(parameters: dict[str, Tensor], x: Tensor, prev_y: Tensor) -> Tensor:
            logits: Tensor = torch.func.functional_call(self.model, parameters, (x, prev_y))
            return logits

        logits: Tensor = torch.func.vmap(of_one)(parameters, x, prev_y)
        return logits

    def episodes(
        self, step: int
    ) -> tuple[Float[Tensor, "R B T D"], Int[Tensor, "R B T"], Int[Tensor, "R B T"]]:
        """x, the labels before and the labels of every member's episodes of an outer step."""
        size = self.config.batch_size
        made: dict[tuple[int, float], Any] = {}
        batches = []
        for member in self.members:
            share = member.config.repeat_share(step)
            key = (id(member.source), share)
            if key not in made:
                ids = range(step * size, (step + 1) * size)
                made[key] = member.source.episodes(ids, repeat=share)
            batches.append(made[key])
        return (
            torch.stack([b.x for b in batches]),
            torch.stack([b.prev_y for b in batches]),
            torch.stack([b.y for b in batches]),
        )

    def backward(
        self,
        x: Float[Tensor, "R B T D"],
        prev_y: Int[Tensor, "R B T"],
        y: Int[Tensor, "R B T"],
        stop: bool = False,
    ) -> tuple[Float[Tensor, "R P"], Float[Tensor, "R 5"]]:
        """Gradients of every member's mean loss (Kirsch et al. 2022, eq. 2), and ``losses``."""
        parts = self.config.accumulate
        gradient = torch.zeros_like(self.theta)
        shares = self.losses.new_zeros(len(x), 5)
        shares[:, 4] = stop
        kind = x.device.type
        # The kernel that a CPU would take has no rule for vmap; those of CUDA have.
        attention = sdpa_kernel(SDPBackend.MATH) if kind == "cpu" else contextlib.nullcontext()
        with attention:
            for part in zip(*(v.chunk(parts, dim=1) for v in (x, prev_y, y)), strict=True):
                losses = self._losses(*part)
                # Of the sum over members: a row depends on its own member's loss alone.
                total = losses.mean(dim=(1, 2)).sum() / parts
                gradient += torch.autograd.grad(total, self.theta)[0]
                means = losses.detach().mean(dim=1)  # [R, T]
                each = losses.detach().mean(dim=2)  # [R, B]
                lost = ~(each <= DIVERGED * math.log(self.num_classes))  # or NaN
                columns = [means.mean(dim=1), means[:, 0], means[:, -1], lost.float().mean(dim=1)]
                shares[:, :4] += torch.stack(columns, dim=1) / parts
        return gradient, shares

    def _losses(
        self, x: Float[Tensor, "R B T D"], prev_y: Int[Tensor, "R B T"], y: Int[Tensor, "R B T"]
    ) -> Float[Tensor, "R B T"]:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half):
            logits = self.forward(self.theta, x, prev_y)
        logits = (logits.float() if self.half else logits).flatten(0, 2)
        losses = functional.cross_entropy(logits, y.flatten(), reduction="none")
        return losses.view(y.shape)

    @torch.no_grad()
    def update(self, gradient: Float[Tensor, "R P"], step: int) -> None:
        """One step of the optimizer, as ``optim.make_optimizer`` and clipping define it."""
        rate, theta = self.rates[step][:, None], self.theta
        if self.clip is not None:  # as nn.utils.clip_grad_norm_
            norm = gradient.norm(dim=1, keepdim=True)
            gradient = gradient * (self.clip / (norm + 1e-6)).clamp(max=1.0)
        if self.decay is not None:
            if self.config.optimizer == "adam":
                gradient = gradient + self.decay * theta
            else:
                theta.mul_(1 - rate * self.decay)
        if self.config.optimizer == "sign":
            average = self.state["average"].lerp_(gradient, 1 - self.momentum)
            theta.sub_(rate * average.sign())
            return
        (beta1, beta2), (m, v) = BETAS, self.state.values()
        m.lerp_(gradient, 1 - beta1)
        v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = v.sqrt().div_(math.sqrt(1 - beta2 ** (step + 1))).add_(self.eps)
        theta.addcdiv_(m * (rate / (1 - beta1 ** (step + 1))), root, value=-1)

    def settle(self, step: int) -> None:
        """Note in the members' optimizers what their steps would have: rate and number of them."""
        for member in self.members:
            for group in member.optimizer.param_groups:
                group["lr"] = member.rate(step - 1)
            if self.config.optimizer == "sign":
                continue
            for state in member.optimizer.state.values():
                state["step"] = torch.tensor(float(step), device=self.theta.device)


def _rows(tensors: Sequence[Sequence[Tensor]]) -> Float[Tensor, "R P"]:
    return torch.stack([torch.cat([t.detach().flatten() for t in row]) for row in tensors])


def train_together(members: Sequence[Member]) -> None:
    """The outer loop of ``train.train`` for members of one shape and at one outer step.

    A member that fails leaves: it has ``error``, its folder failed.txt, and the others go on.

    Raises:
        KeyboardInterrupt: After SIGINT or SIGTERM, when the checkpoints are written.
        MemoryError: If the memory does not do, naming the settings that need less.
    """
    stack, config, first = Stack(members), members[0].config, members[0].step
    tokens = config.batch_size * config.episode_length
    began = logged = time.monotonic()
    logged_step = first
    advice = f"with --together {len(members)}: start again with a smaller one"
    bar = tqdm(total=config.steps, initial=first, unit="step", disable=None)
    with signals() as stop, memory_advice(advice), bar:
        for step in range(first, config.steps):
            last = step + 1 == config.steps
            gradient, losses = stack.backward(*stack.episodes(step), bool(stop))
            slot = step % config.log_every
            stack.losses[:, slot] = losses
            due = (step + 1) % config.log_every == 0 or last
            before = stack.theta.detach().clone() if due else None
            stack.update(gradient, step)
            if before is not None:
                now = time.monotonic()
                stack.settle(step + 1)
                moves = stack.theta.detach() - before
                means = stack.losses[:, : slot + 1].mean(dim=1).tolist()
                for row, member in enumerate(stack.members):
                    with member.alone():
                        monitor.check_losses(member.losses, step + 1, member.folder)
                        norms = stack.norms(gradient, row), stack.norms(moves, row)
                        for what, found in zip(("gradient", "update"), norms, strict=True):
                            monitor.check_finite(f"the {what}", found, step + 1, member.folder)
                        if member.folder is None:
                            continue
                        named = member.model.named_parameters()
                        member.folder.log.write(
                            "train",
                            step=step + 1,
                            loss=means[row][0],
                            loss_first=means[row][1],
                            loss_last=means[row][2],
                            diverged=means[row][3],
                            lr=member.optimizer.param_groups[0]["lr"],
                            repeat=member.config.repeat_share(step),
                            tokens_per_s=(step + 1 - logged_step) * tokens / (now - logged),
                            seconds=member.seconds + now - began,
                            gradient_norm=norms[0],
                            update_norm=norms[1],
                            **optim.adam_norms(member.optimizer, named),
                        )
                logged, logged_step = now, step + 1
            bar.update()
            if config.eval_every and ((step + 1) % config.eval_every == 0 or last):
                now = time.monotonic()
                for member in stack.members:
                    if member.monitors and member.error is None:
                        with member.alone():
                            monitor.measure(
                                member.model, member.monitors, step + 1, member.folder, bar
                            )
                logged += time.monotonic() - now
            stopping = bool(stop)
            if stopping or (step + 1) % config.checkpoint_every == 0 or last:
                stack.settle(step + 1)
                for member in stack.members:
                    if member.error is None:
                        with member.alone():
                            _keep(member, step + 1, time.monotonic() - began, len(stack.members))
            if stopping:
                raise KeyboardInterrupt
            if any(member.error for member in stack.members):
                left = [member for member in stack.members if member.error is None]
                if not left:
                    return
                stack = Stack(left)


def _keep(member: Member, step: int, seconds: float, together: int) -> None:
    """Write a member's checkpoint, which is one of ``train.train``."""
    monitor.check_losses(member.losses, step, member.folder)
    weights = optim.norms(member.model.named_parameters())
    monitor.check_finite("a weight", weights, step, member.folder)
    if member.folder is None:
        return
    # Copies: with a view, the rows of all members would be written.
    state = {
        "settings": common.config_to_json(common.portable(member.config)),
        "step": step,
        "seconds": member.seconds + seconds,
        "together": together,
        "model": member.model.state_dict(),
        "optimizer": member.optimizer.state_dict(),
        "losses": member.losses,
    }
    checkpoint.save(member.folder.path, _copied(state))


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    return value
