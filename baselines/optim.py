"""Optimizers and schedules of outer steps, as functions of settings."""

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

OptimizerName = Literal["adam", "adamw", "sign"]


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


def make_optimizer(
    name: OptimizerName,
    module: nn.Module,
    *,
    lr: float,
    eps: float,
    momentum: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """The optimizer of a module; weight decay acts on matrices only.

    Args:
        name: adam (decay as a term of the gradient), adamw (decoupled decay) or sign.
        module: Whose parameters are trained.
        lr: Learning rate before the schedule.
        eps: Adam's ε.
        momentum: β of ``sign``; Adam's betas are 0.9 and 0.999.
        weight_decay: Coefficient of matrices; vectors (biases, scales) have none.
    """
    matrices = [p for p in module.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in module.parameters() if p.requires_grad and p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if name == "sign":
        return SignMomentum(groups, lr, momentum)
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    return kind(groups, lr=lr, eps=eps, fused=True)


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
