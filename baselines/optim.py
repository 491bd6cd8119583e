"""Optimizers and schedules of outer steps, as functions of settings."""

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

OptimizerName = Literal["adam", "adamw", "sign", "muon"]


# Parameters of the first and the last layer, by the first part of their name: Muon is not for them.
OUTER = frozenset({"embed", "embed_error", "input", "position", "head"})


class SignMomentum(torch.optim.Optimizer):
    """Step along the sign of the gradient's moving average.

    m ← β m + (1 − β) g, θ ← θ − lr (sign(m) + decay · θ). Small gradients move parameters as far as
    large ones, which shortens the plateau of meta-training (Kirsch et al. 2022, Figure 19).

    Args:
        params: Parameters.
        lr: Length of each coordinate's step.
        momentum: β in [0, 1).
        weight_decay: Decoupled decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of all parameters that have a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            averages = []
            for p in parameters:
                state = self.state[p]
                if not state:
                    state["average"] = torch.zeros_like(p)
                averages.append(state["average"])
            if not parameters:
                continue
            gradients = [p.grad for p in parameters]
            torch._foreach_lerp_(averages, gradients, 1.0 - group["momentum"])
            if group["weight_decay"]:
                torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, torch._foreach_sign(averages), alpha=-group["lr"])


class Together:
    """Optimizers of different parameters as one, as far as the outer loop asks for it."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of all parts."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """One step of all parts."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for part in self.parts:
            part.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """States of all parts."""
        return {str(i): part.state_dict() for i, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        for i, part in enumerate(self.parts):
            part.load_state_dict(state[str(i)])


def make_optimizer(
    name: OptimizerName,
    module: nn.Module,
    *,
    lr: float,
    eps: float,
    momentum: float,
    weight_decay: float,
) -> torch.optim.Optimizer | Together:
    """The optimizer of a module; weight decay acts on matrices only.

    Args:
        name: adam (decay as a term of the gradient), adamw (decoupled decay), sign, or muon:
            orthogonalised momentum (Jordan et al. 2024) for all matrices but embeddings, positions
            and heads (by name: ``OUTER``), in steps as large as Adam's (Liu et al. 2025), and AdamW
            for all else.
        module: Whose parameters are trained.
        lr: Learning rate before the schedule.
        eps: Adam's ε.
        momentum: β of ``sign``; Adam's betas are 0.9 and 0.999, Muon's is 0.95.
        weight_decay: Coefficient of matrices; vectors (biases, scales) have none.
    """
    hidden = []
    if name == "muon":
        hidden = [
            p
            for n, p in module.named_parameters()
            if p.requires_grad and p.ndim == 2 and n.split(".")[0] not in OUTER
        ]
    apart = set(map(id, hidden))
    matrices = [
        p for p in module.parameters() if p.requires_grad and p.ndim >= 2 and id(p) not in apart
    ]
    vectors = [p for p in module.parameters() if p.requires_grad and p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if name == "sign":
        return SignMomentum(groups, lr, momentum)
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    adam = kind(groups, lr=lr, eps=eps, fused=True)
    if not hidden:
        return adam
    muon = torch.optim.Muon(
        hidden, lr=lr, weight_decay=weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    return Together(muon, adam)


def rate_factor(step: int, steps: int, warmup: int, decay: Literal["none", "cosine"]) -> float:
    """Factor of the learning rate at an outer step: linear warm-up, then constant or cosine to 0.

    Args:
        step: 0-based outer step.
        steps: Outer steps in all.
        warmup: Steps of the warm-up; step w < warmup has factor (w + 1) / warmup.
        decay: none, or half a cosine from 1 after the warm-up to 0 at the end.
    """
    if step < warmup:
        return (step + 1) / warmup
    if decay == "none":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def norms(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, float]:
    """Euclidean norms by parameter group: a layer, or a block of layers (``blocks.0``)."""
    squares: dict[str, Tensor] = {}
    for name, tensor in tensors:
        group = ".".join(name.split(".")[:-1][:2]) or name
        square = tensor.detach().float().square().sum()
        squares[group] = squares[group] + square if group in squares else square
    return {group: float(value.sqrt()) for group, value in squares.items()}


def adam_norms(
    optimizer: torch.optim.Optimizer | Together, named: Iterable[tuple[str, Tensor]]
) -> dict[str, dict[str, float]]:
    """Norms of Adam's moving averages by parameter group (Kirsch et al. 2022, Figures 15–17).

    Returns:
        ``adam_m_norm``: of the gradient's average; ``adam_v_norm``: of the root of its square's.
        Empty where no parameter has such averages.
    """
    states = {}
    for part in optimizer.parts if isinstance(optimizer, Together) else [optimizer]:
        states |= part.state
    adam = [(name, states[p]) for name, p in named if "exp_avg_sq" in states.get(p, {})]
    if not adam:
        return {}
    return {
        "adam_m_norm": norms((name, state["exp_avg"]) for name, state in adam),
        "adam_v_norm": norms((name, state["exp_avg_sq"].sqrt()) for name, state in adam),
    }
