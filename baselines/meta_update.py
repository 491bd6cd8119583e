"""Outer steps on a language model: the plain one of MetaICL, and MAML-2k-n of MAML-en-LLM.

``PlainUpdate``: the mean gradient over the batches, then one step of AdamW or SGD.

``MamlUpdate``: an outer step has n tasks, each of 2k batches: k of support and then k of queries.
Each task begins at the weights θ and takes k inner steps, one per support batch, to θ_i. The outer
gradient is the mean over tasks of the gradient, by θ, of the mean query loss at θ_i. It is clipped,
and the outer optimizer takes one step along it; inner gradients are not clipped.

    second order    through the inner gradients, and through AdamW, whose moments m and v are
                    functions of the task's support gradients; what they were before is constant
    first order     inner gradients are constants: the gradient is that at θ_i
    shared          one pair (m, v) and one counter t of AdamW's bias correction for inner and outer
                    steps alike. Tasks, one after the other, each go on with them, and the outer
                    step goes on where the last task stopped: t grows by nk + 1
    separate        the outer optimizer keeps its own; the inner one's begin anew, at 0, with every
                    outer step, whose tasks go on with them one after the other

A fresh AdamW's first step is almost the sign of g, which has almost no derivative: with separate
moments and n = k = 1, second order differs from first order by next to nothing.

Several processes share an outer step's batches, for MAML whole tasks. Gradients are averaged over
the processes before they are clipped, and shared moments before the outer step: each process took
them from the same values through its own tasks, and t through as many.

Differs from the paper (Sinha et al. 2024): its Algorithm 1, as printed, divides the stored moments
by their bias correction, has no ε, moves θ after each query and adds |θ|² to the loss. Ours is
AdamW as in PyTorch, and one outer step along the mean. It holds n adapted copies of the weights;
ours one, and the graph of one task.
"""

import abc
import contextlib
import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from baselines.process import world_size
from icl_bench.tasks.prompts import PromptBatch

OptimizerName = Literal["adamw", "sgd"]
Weights = Mapping[str, Tensor]  # or gradients, by name
Batches = Sequence[PromptBatch]
Loss = Callable[[Weights, PromptBatch], Tensor]
Found = tuple[Tensor, Tensor, Weights]  # support loss, query loss, gradient

BETAS, EPS, CLIP = (0.9, 0.995), 1e-8, 1.0  # Min et al. 2022, their code


def loss_of(
    model: nn.Module, params: Weights | None, batch: PromptBatch, bf16: bool = False
) -> Float[Tensor, ""]:
    """Mean over sequences of the mean negative log-likelihood, in nats, over the loss mask.

    As in the code of Min et al. 2022. A sequence's first token is given nothing and never counts.

    Args:
        model: A causal language model, called as Hugging Face's are.
        params: Values for its parameters, by name, instead of its own; tied ones go together.
        batch: Prompts; a ValueError if one of them has no token that counts.
        bf16: Compute in bfloat16 (autocast); the loss itself is in 32 bits, or more.
    """
    mask = batch.loss_mask[:, 1:] > 0
    counts = mask.sum(dim=1)
    if not counts.all():
        raise ValueError(f"sequence {int(counts.argmin())} of the batch has no token to train on")
    inputs = {"input_ids": batch.ids, "attention_mask": batch.attention_mask}
    # Logits are tokens × vocabulary: only for the columns in which a token counts.
    columns = mask.any(dim=0).nonzero()[:, 0]
    few = "logits_to_keep" in inspect.signature(model.forward).parameters
    inputs |= {"logits_to_keep": columns} if few else {}
    with torch.autocast(batch.ids.device.type, torch.bfloat16, enabled=bf16):
        logits = functional_call(model, dict(params or {}), (), inputs).logits
    rows, places = mask[:, columns].nonzero(as_tuple=True)
    logits = logits[rows, places if few else columns[places]]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    targets = batch.ids[rows, columns[places] + 1]
    losses = functional.cross_entropy(logits, targets, reduction="none")
    return (losses / counts[rows]).sum() / len(mask)


def average(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their means over the processes, in place."""
    if world_size() > 1:
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)
            tensor /= world_size()


@dataclasses.dataclass
class Descent:
    """AdamW as in PyTorch, or plain SGD, that gradients can go through.

    Its moments ``first`` and ``second`` go by the weights' names; ``count`` is the number of steps.
    """

    kind: OptimizerName
    weights: dataclasses.InitVar[Weights]
    betas: tuple[float, float] = BETAS
    eps: float = EPS
    weight_decay: float = 0.0

    def __post_init__(self, weights: Weights) -> None:
        self.first = _zeros(weights) if self.kind == "adamw" else {}
        self.second, self.count = _zeros(self.first), 0

    def moved(self, weights: Weights, gradient: Weights, lr: float) -> Iterator[tuple[str, Tensor]]:
        """Weights after the next step, one by one; go through all of them."""
        self.count += 1
        below = [1 - beta**self.count for beta in self.betas]
        for name, weight in weights.items():
            slope = gradient[name]
            if self.weight_decay:
                weight = weight * (1 - lr * self.weight_decay)
            if self.kind == "sgd":
                yield name, weight.add(slope, alpha=-lr)
                continue
            first = self.first[name].lerp(slope, 1 - self.betas[0])
            second = self.second[name] * self.betas[1]
            second = second.addcmul(slope, slope, value=1 - self.betas[1])
            self.first[name], self.second[name] = first, second
            scale = _root(second) / math.sqrt(below[1]) + self.eps
            yield name, weight.addcdiv(first, scale, value=-lr / below[0])

    @torch.no_grad()
    def step(self, weights: Weights, gradient: Weights, lr: float) -> None:
        """The next step, in place."""
        for name, new in self.moved(weights, gradient, lr):
            weights[name].copy_(new)


def _root(squares: Tensor) -> Tensor:
    """√v with derivative 0 at 0, where PyTorch has ∞.

    If v = 0, all gradients were 0, and √v is |g| times a constant. So g / (|g| + ε) has its
    derivative, 1 / ε, and weights that no token meets have a finite one.
    """
    above = squares > 0
    return torch.where(above, torch.where(above, squares, 1.0).sqrt(), 0.0)


class Update(abc.ABC):
    """An outer step: batches of prompts in, a model trained in place.

    Args:
        model: A causal language model; its frozen parameters and its mode (dropout) stay.
        num_batches: Of an outer step, of all processes together.
        whole: Batches that one process must have together.
        optimizer: Of the outer step.
        clip: Largest norm of the outer gradient; 0 = any.
        bf16: Compute in bfloat16 (autocast).
        adamw: betas, eps and weight_decay (decoupled, of all parameters); the last is of SGD too.
    """

    def __init__(
        self,
        model: nn.Module,
        num_batches: int = 1,
        *,
        whole: int = 1,
        optimizer: OptimizerName = "adamw",
        clip: float = CLIP,
        bf16: bool = False,
        **adamw: Any,
    ) -> None:
        if num_batches < 1 or num_batches % (whole * world_size()):
            parts = f"{num_batches // whole} parts of {whole} batches"
            raise ValueError(
                f"{world_size()} processes cannot share {parts}: give --batches or --n a multiple"
            )
        self.num_batches, self.clip, self.adamw = num_batches, clip, adamw
        self.weights = _trained(model)
        self.loss: Loss = functools.partial(loss_of, model, bf16=bf16)
        self.outer = Descent(optimizer, self.weights, **adamw)

    @abc.abstractmethod
    def gradient(self, batches: Batches, lr: float) -> tuple[dict[str, Tensor], Weights]:
        """Losses, among them ``loss``, and the outer gradient, of this process's batches."""

    def step(self, batches: Batches, lr: float) -> dict[str, float]:
        """One outer step on this process's batches, with the outer learning rate of the schedule.

        Returns losses by name, ``loss`` that which is minimised, and ``gradient_norm`` unclipped.
        """
        if len(batches) * world_size() != self.num_batches:
            wanted = f"{self.num_batches} batches among {world_size()} processes"
            raise ValueError(f"an outer step takes {wanted}, not {len(batches)} in each")
        losses, gradient = self.gradient(batches, lr)
        average([*losses.values(), *gradient.values()])
        norm = nn.utils.get_total_norm(gradient.values())
        if self.clip:
            for slope in gradient.values():
                slope *= (self.clip / (norm + 1e-6)).clamp(max=1.0)  # as clip_grad_norm_
        self.outer.step(self.weights, gradient, lr)
        return {name: float(x) for name, x in (losses | {"gradient_norm": norm}).items()}

    def state_dict(self) -> dict[str, Any]:
        """What outlives a step, besides the weights: tensors and a number."""
        outer = self.outer
        return {"count": outer.count, "first": dict(outer.first), "second": dict(outer.second)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; a ValueError if that was another optimizer."""
        for kind in ("first", "second"):
            own, other = getattr(self.outer, kind), state[kind]
            if {n: x.shape for n, x in own.items()} != {n: x.shape for n, x in other.items()}:
                raise ValueError("the state is of other parameters, or of another optimizer")
            own.update({name: other[name].to(moment) for name, moment in own.items()})
        self.outer.count = int(state["count"])


class PlainUpdate(Update):
    """MetaICL's: one step along the mean gradient over the batches (Min et al. 2022)."""

    def gradient(self, batches: Batches, lr: float) -> tuple[dict[str, Tensor], Weights]:
        """Mean loss and gradient."""
        loss, gradient = _mean_gradient(self.loss, self.weights, batches)
        return {"loss": loss}, gradient


class MamlUpdate(Update):
    """MAML-2k-n (Sinha et al. 2024); see the head of this module.

    A step's ``loss`` is that of the queries at θ_i; ``support_loss`` that of the support batches,
    each before its inner step.

    Args:
        model: As of ``Update``; second order excludes gradient checkpointing.
        k: Support batches, hence inner steps, of a task, and query batches.
        n: Tasks of an outer step, of all processes together.
        second_order: Whether gradients go through the inner steps.
        inner: Optimizer of the inner steps.
        outer: Of the outer step.
        moments: Of AdamW; only two AdamW can share them.
        inner_rate: Learning rate of the inner steps, as a multiple of the outer one's.
        settings: As of ``Update``; those of AdamW are of inner and outer steps.
    """

    def __init__(
        self,
        model: nn.Module,
        k: int = 1,
        n: int = 1,
        *,
        second_order: bool = True,
        inner: OptimizerName = "adamw",
        outer: OptimizerName = "adamw",
        moments: Literal["shared", "separate"] = "shared",
        inner_rate: float = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__(model, 2 * k * n, whole=2 * k, optimizer=outer, **settings)
        if moments == "shared" and (inner, outer) != ("adamw", "adamw"):
            raise ValueError(f"{inner} and {outer} have no moments to share: take separate ones")
        if second_order and any(getattr(m, "gradient_checkpointing", 0) for m in model.modules()):
            # It would recompute with the model's own weights instead of the adapted ones.
            raise ValueError("gradient checkpointing has no second order: take first order")
        self.k, self.second_order, self.inner_rate = k, second_order, inner_rate
        self.inner, self.shared = inner, moments == "shared"

    def gradient(self, batches: Batches, lr: float) -> tuple[dict[str, Tensor], Weights]:
        """Mean losses and gradient over the tasks."""
        inner = self.outer if self.shared else Descent(self.inner, self.weights, **self.adamw)
        task = self._second_order if self.second_order else self._first_order
        losses, gradient, size = [], _zeros(self.weights), 2 * self.k
        for i in range(0, len(batches), size):
            support, query = batches[i : i + self.k], batches[i + self.k : i + size]
            *found, part = task(inner, support, query, self.inner_rate * lr)
            losses.append(torch.stack(found))
            _add(gradient, part, size / len(batches))
        if self.shared:
            average([*inner.first.values(), *inner.second.values()])
        before, after = torch.stack(losses).mean(dim=0)
        return {"loss": after, "support_loss": before}, gradient

    def _first_order(self, inner: Descent, support: Batches, query: Batches, lr: float) -> Found:
        """Of one task, at θ_i, which meanwhile are the model's weights."""
        with _put_back(self.weights):
            before = _descend(self.loss, self.weights, inner, support, lr)
            return before, *_mean_gradient(self.loss, self.weights, query)

    def _second_order(self, inner: Descent, support: Batches, query: Batches, lr: float) -> Found:
        """The same; the gradient by θ_i is taken first, and then brought back through the steps."""
        weights, losses = self.weights, []
        for batch in support:
            losses.append(self.loss(weights, batch))
            gradient = _gradient(losses[-1:], weights, create_graph=True)
            weights = dict(inner.moved(weights, gradient, lr))
        for moments in (inner.first, inner.second):
            moments.update({name: moment.detach() for name, moment in moments.items()})
        ends = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        after, slopes = _mean_gradient(self.loss, ends, query)
        settings = {"grad_outputs": list(slopes.values())}
        gradient = _gradient(list(weights.values()), self.weights, **settings)
        return torch.stack(losses).detach().mean(), after, gradient


@contextlib.contextmanager
def adapted(model: nn.Module, batches: Batches, lr: float, *, bf16: bool = False) -> Iterator[None]:
    """A model after one pass of AdamW, a step for each batch; then its own weights, bit for bit.

    Very-few-shot adaptation (Sinha et al. 2024): 16 batches, learning rate 1e-7.
    """
    weights = _trained(model)
    with _put_back(weights):
        loss = functools.partial(loss_of, model, bf16=bf16)
        _descend(loss, weights, Descent("adamw", weights), batches, lr)
        yield


@contextlib.contextmanager
def _put_back(weights: Weights) -> Iterator[None]:
    """Weights are afterwards what they were, whatever is done to them."""
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _zeros(weights: Weights) -> dict[str, Tensor]:
    return {name: torch.zeros_like(weight).detach() for name, weight in weights.items()}


def _add(total: Weights, part: Weights, share: float) -> None:
    for name, value in total.items():
        value.add_(part[name], alpha=share)


def _gradient(outputs: Sequence[Tensor], weights: Weights, **settings: Any) -> Weights:
    inputs = list(weights.values())
    found = torch.autograd.grad(outputs, inputs, materialize_grads=True, **settings)
    return dict(zip(weights, found, strict=True))


def _mean_gradient(loss: Loss, weights: Weights, batches: Batches) -> tuple[Tensor, Weights]:
    """Mean loss over batches, at these weights, and its gradient by them; a batch at a time."""
    losses, gradient = [], _zeros(weights)
    for batch in batches:
        value = loss(weights, batch)
        _add(gradient, _gradient([value], weights), 1 / len(batches))
        losses.append(value.detach())
    return torch.stack(losses).mean(), gradient


def _descend(loss: Loss, weights: Weights, descent: Descent, batches: Batches, lr: float) -> Tensor:
    """One step per batch, in place; the mean of the losses before them."""
    losses = []
    for batch in batches:
        value, gradient = _mean_gradient(loss, weights, [batch])
        descent.step(weights, gradient, lr)
        losses.append(value)
    return torch.stack(losses).mean()
