"""Learners: what is scored, the proof by experiment that they do not peek, and three references."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_bench.tasks import counter, projection

# Largest change of a logit that counts as rounding, relative to the range of its episode.
TOLERANCE = 1e-6

# Logits this far below the largest of their step say the same: never. A mask of −10^9 must not
# hide what happens to the others.
NEVER = 50.0

# Share of steps whose prediction may change by rounding, where two classes are equally likely.
TIES = 1e-3


class LearnerError(ValueError):
    """A learner that cannot be scored, with the reason."""


@runtime_checkable
class Learner(Protocol):
    """A frozen, causal function of episodes.

    ``logits[:, t]`` may depend on ``x[:, :t + 1]`` and ``prev_y[:, :t + 1]`` of the same episode
    only. ``prev_y[:, t]`` is y_{t−1}, and −1 at step 0. Any ``torch.nn.Module`` with this
    ``forward`` is a learner.
    """

    def __call__(
        self, x: Float[Tensor, "B T D"], prev_y: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T C"]:
        """Logits of the class of every step."""
        ...


def call_learner(
    learner: Learner, x: Float[Tensor, "B T D"], prev_y: Int[Tensor, "B T"], num_classes: int
) -> Float[Tensor, "B T C"]:
    """Logits in float32, on copies of the input and without gradients.

    Raises:
        LearnerError: If the answer is not a finite tensor [B, T, C].
    """
    with torch.no_grad():
        logits = learner(x.clone(), prev_y.clone())
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise LearnerError(f"a learner returns a tensor of floating-point logits, not {kind}")
    shape = (*prev_y.shape, num_classes)
    if tuple(logits.shape) != shape:
        raise LearnerError(f"logits must have shape {shape} (B, T, C), not {tuple(logits.shape)}")
    logits = logits.detach().float()
    if not bool(torch.isfinite(logits).all()):
        bad = int((~torch.isfinite(logits)).any(dim=2).any(dim=0).int().argmax())
        raise LearnerError(f"logits are NaN or infinite, first at step {bad}")
    return logits


def check_causality(
    learner: Learner,
    x: Float[Tensor, "B T D"],
    prev_y: Int[Tensor, "B T"],
    num_classes: int,
    *,
    scored: Float[Tensor, "B T C"] | None = None,
    key: int = 0,
) -> None:
    """Prove by experiment, on these episodes, that a learner does not peek.

    What a logit must not depend on is replaced by noise of the same size: the other episodes of
    the batch, inputs and labels of later steps, and the label y_t itself, each episode at steps of
    its own. Every logit, relative to the largest of its step, must stay within ``TOLERANCE`` of the
    range of its episode, and so must all but ``TIES`` of the predictions.

    Args:
        learner: The learner.
        x: Inputs; at least two episodes of two steps.
        prev_y: Previous labels.
        num_classes: C.
        scored: Logits that are going to be scored for these episodes, to be met again.
        key: Names the noise and the steps.

    Raises:
        LearnerError: With the reason, one message for each way of peeking.
    """
    num_episodes, length, dim = x.shape
    if num_episodes < 2 or length < 2:
        raise ValueError("a check needs at least two episodes of at least two steps")
    ids = np.arange(num_episodes, dtype=np.int64)
    stream = counter.stream_key("causality", key)
    spread = float(x.std()) or 1.0
    noise = projection.normals(stream, ids, length, dim, scale=spread, device=x.device)
    shift = counter.bounded(counter.long_words(stream + 1, ids, length), max(1, num_classes - 1))
    labels = (prev_y.clamp_min(0) + 1 + torch.from_numpy(shift).to(x.device)) % num_classes
    labels[:, 0] = -1

    def run(inputs: Tensor, previous: Tensor) -> Tensor:
        return call_learner(learner, inputs, previous, num_classes)

    base = run(x, prev_y) if scored is None else scored
    margins, predicted = _margins(base), base.argmax(dim=2)
    limit = TOLERANCE * margins.abs().amax(dim=(1, 2), keepdim=True)

    def differs(logits: Tensor, where: Tensor) -> bool:
        changed = ((_margins(logits) - margins).abs() > limit).any(dim=2) & where
        turned = (logits.argmax(dim=2) != predicted) & where
        return bool(changed.any()) or int(turned.sum()) > max(1.0, TIES * int(where.sum()))

    steps = torch.arange(length, device=x.device)[None, :]
    everywhere = torch.ones_like(prev_y, dtype=torch.bool)
    run(noise, labels)
    if differs(run(x, prev_y), everywhere):
        raise LearnerError(
            "the learner is not a function of its episodes: the same episodes gave other logits "
            "after it had seen others. It keeps state between calls or draws random numbers (a "
            "torch model must be in eval mode)"
        )
    odd = torch.arange(num_episodes, device=x.device) % 2 == 1
    for kept in (odd, ~odd):
        mixed_x = torch.where(kept[:, None, None], x, noise)
        mixed_y = torch.where(kept[:, None], prev_y, labels)
        if differs(run(mixed_x, mixed_y), kept[:, None] & everywhere):
            raise LearnerError(
                "the learner looks at the other episodes of its batch: replacing them changed "
                "the logits of an episode"
            )
    for trial in range(2):
        words = counter.long_words(stream + 2 + trial, ids, 1)[:, 0]
        cuts = counter.bounded(words, length - 1)
        cuts[0], cuts[1] = 0, length - 2  # the first and the last step that have a next one
        cut = torch.from_numpy(cuts).to(x.device)[:, None]
        past, future = steps <= cut, steps > cut
        trials = (
            (
                torch.where(future[..., None], noise, x),
                prev_y,
                "the learner looks at later inputs: changing x_{t+1} and those after it changed "
                "the logits of step t",
            ),
            (
                x,
                torch.where(steps > cut + 1, labels, prev_y),
                "the learner looks at later labels: changing y_{t+1} and those after it changed "
                "the logits of step t",
            ),
            (
                x,
                torch.where(steps == cut + 1, labels, prev_y),
                "the learner looks at y_t, the label it must predict: changing it changed the "
                "logits of step t",
            ),
        )
        for inputs, previous, message in trials:
            if differs(run(inputs, previous), past):
                raise LearnerError(message)


def _margins(logits: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
    """Logits relative to the largest of their step, in [−NEVER, 0]."""
    return (logits - logits.amax(dim=2, keepdim=True)).clamp_min(-NEVER)


class Chance:
    """Equal logits for all classes: accuracy 1/C whatever the task."""

    def __init__(self, num_classes: int = 10) -> None:
        self.num_classes = num_classes

    def __call__(
        self, x: Float[Tensor, "B T D"], prev_y: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T C"]:
        """Zeros."""
        return torch.zeros(*prev_y.shape, self.num_classes, device=x.device)


class NearestNeighbour:
    """1-nearest neighbour among the examples seen so far, Euclidean, on projected inputs.

    Logits are −(squared distance to the nearest example of each class) / D; a class not seen yet
    comes after all others.
    """

    def __init__(self, num_classes: int = 10) -> None:
        self.num_classes = num_classes

    def __call__(
        self, x: Float[Tensor, "B T D"], prev_y: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T C"]:
        """Logits; zero at step 0."""
        length, dim = x.shape[1:]
        gram = torch.bmm(x, x.transpose(1, 2))
        norm = torch.diagonal(gram, dim1=1, dim2=2)
        distance = (norm[:, :, None] + norm[:, None, :] - 2 * gram).clamp_min(0) / dim
        # Column s is example s, whose label arrives with token s + 1; the last one never does.
        earlier = torch.ones(length, length, dtype=torch.bool, device=x.device).tril(-1)
        label = torch.nn.functional.pad(prev_y[:, 1:], (0, 1), value=-1)
        farthest = distance.masked_fill(~earlier, 0.0).amax(dim=2, keepdim=True)
        nearest = torch.stack(
            [
                distance.masked_fill(~(earlier & (label == c)[:, None, :]), torch.inf).amin(dim=2)
                for c in range(self.num_classes)
            ],
            dim=2,
        )
        return -torch.where(nearest == torch.inf, farthest + 1.0, nearest)


class OnlineLogisticRegression:
    """Multinomial logistic regression, one gradient step per example, weights from zero.

    W ← W + η (one_hot(y) − p) xᵀ with the normalised step η = rate / ‖x‖², which needs no tuning
    to the scale of the inputs; on validation tasks of all data sets accuracy is flat for rates
    between 2 and 5. Computed through the Gram matrix of the episode, so its cost hardly
    depends on D.
    """

    def __init__(self, num_classes: int = 10, rate: float = 3.0) -> None:
        self.num_classes = num_classes
        self.rate = rate

    def __call__(
        self, x: Float[Tensor, "B T D"], prev_y: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T C"]:
        """Logits; zero at step 0."""
        num_episodes, length, _ = x.shape
        gram = torch.bmm(x, x.transpose(1, 2))
        step = self.rate / torch.diagonal(gram, dim1=1, dim2=2).clamp_min(1e-12)
        logits = x.new_zeros(num_episodes, length, self.num_classes)
        errors = x.new_zeros(num_episodes, length, self.num_classes)
        for t in range(1, length):
            p = torch.softmax(logits[:, t - 1], dim=-1)
            target = torch.nn.functional.one_hot(prev_y[:, t], self.num_classes)
            errors[:, t - 1] = (target - p) * step[:, t - 1, None]
            logits[:, t] = torch.einsum("bs,bsc->bc", gram[:, t, :t], errors[:, :t])
        return logits


REFERENCES: dict[str, Callable[[int], Learner]] = {
    "chance": Chance,
    "1-nn": NearestNeighbour,
    "logistic-regression": OnlineLogisticRegression,
}
