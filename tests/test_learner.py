"""Learners that peek are refused, each with its reason; references are in their bands."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import icl_bench
from icl_bench.evaluation.learner import (
    LearnerError,
    NearestNeighbour,
    OnlineLogisticRegression,
    check_causality,
)
from icl_bench.evaluation.result import Result

DIGITS = "Digits-Proj8-v0"
C = 10

honest = NearestNeighbour()


def one_hot(labels: Tensor) -> Tensor:
    return (labels[..., None] == torch.arange(C)).float()


def shift(values: Tensor) -> Tensor:
    """Values of the next step; zeros at the last one."""
    return torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)


def mean_over_batch(size: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: honest(x, y) + size * x.mean(dim=0)[..., :C]


class KeepsState:
    """Adds what it saw in its last call, one part in ten thousand."""

    def __init__(self) -> None:
        self.last: Tensor | float = 0.0

    def __call__(self, x: Tensor, prev_y: Tensor) -> Tensor:
        out = honest(x, prev_y)
        out[..., 0] += 1e-4 * self.last
        self.last = x[0, 0, 0]
        return out


class Dropout(torch.nn.Module):
    def forward(self, x: Tensor, prev_y: Tensor) -> Tensor:
        return torch.nn.functional.dropout(honest(x, prev_y), 0.5, self.training)


class BatchNorm(torch.nn.Module):
    def forward(self, x: Tensor, prev_y: Tensor) -> Tensor:
        normal = torch.nn.functional.batch_norm(x.flatten(0, 1), None, None, training=True)
        return normal.view_as(x)[..., :C]


def from_noise(generator: torch.Generator) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: honest(x, y) + 1e-3 * torch.randn(*y.shape, C, generator=generator)


def suffix_mean(x: Tensor) -> Tensor:
    return x.flip(1).cumsum(1).flip(1)[..., :C]


def only_in_large_batches(x: Tensor, prev_y: Tensor) -> Tensor:
    """Peeks only at the batch size of the evaluation, not in a small check."""
    out = honest(x, prev_y)
    return out + 10 * one_hot(shift(prev_y)) if len(x) > 32 else out


def only_late_steps(x: Tensor, prev_y: Tensor) -> Tensor:
    out = honest(x, prev_y)
    out[:, -2] += 1e-3 * one_hot(shift(prev_y))[:, -2]
    return out


def masked_pool(x: Tensor, prev_y: Tensor) -> Tensor:
    """1-NN that also sees the labels of the next episode; classes not seen yet are masked away."""
    seen = one_hot(prev_y).cumsum(dim=1) > 0
    other = 5 * one_hot(prev_y.roll(1, 0))
    return (honest(x, prev_y) + other).masked_fill(~seen, -1e9)


def even_rows(x: Tensor, prev_y: Tensor) -> Tensor:
    out = honest(x, prev_y)
    out[0::2] += x.roll(-1, 0)[0::2, :, :C]
    return out


def first_step(x: Tensor, prev_y: Tensor) -> Tensor:
    out = honest(x, prev_y)
    out[:, 0] += 0.1 * one_hot(prev_y[:, 1])
    return out


def only_in_small_batches(x: Tensor, prev_y: Tensor) -> Tensor:
    """Peeks where fresh episodes are checked, not at the batch size of the evaluation."""
    out = honest(x, prev_y)
    return out + 10 * one_hot(shift(prev_y)) if len(x) <= 32 else out


PEEKING: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "y_t": (lambda x, y: honest(x, y) + 10 * one_hot(shift(y)), "looks at y_t"),
    "y_t, 1e-4": (lambda x, y: honest(x, y) + 1e-4 * one_hot(shift(y)), "looks at y_t"),
    "y_t, late": (only_late_steps, "looks at y_t"),
    "y_t, large batches": (only_in_large_batches, "looks at y_t"),
    "y_t, masked": (
        lambda x, y: (
            torch.full((*y.shape, C), -1e9).index_fill(2, torch.arange(3), 0.0)
            + 5 * one_hot(shift(y))
        ),
        "looks at y_t",
    ),
    "y_t, tiny": (lambda x, y: 1 + 2e-7 * one_hot(shift(y)), "looks at y_t"),
    "y_t, 3e-6 of the range": (
        lambda x, y: honest(x, y) + 1e-5 * one_hot(shift(y)),
        "looks at y_t",
    ),
    "y_t, first step": (first_step, "looks at y_t"),
    "y_t, small batches": (only_in_small_batches, "looks at y_t"),
    "even rows": (even_rows, "looks at the other episodes"),
    "batch, masked": (masked_pool, "looks at the other episodes"),
    "x_t+1": (lambda x, y: honest(x, y) + shift(x)[..., :C], "looks at later inputs"),
    "x_t+1, 1e-4": (lambda x, y: honest(x, y) + 1e-4 * shift(x)[..., :C], "looks at later inputs"),
    "all later x": (lambda x, y: honest(x, y) + 1e-3 * suffix_mean(x), "looks at later inputs"),
    "y_t+1": (
        lambda x, y: honest(x, y) + 1e-2 * one_hot(shift(shift(y))),
        "looks at later labels",
    ),
    "batch": (mean_over_batch(1.0), "looks at the other episodes"),
    "batch, 1e-4": (mean_over_batch(1e-4), "looks at the other episodes"),
    "neighbour": (
        lambda x, y: honest(x, y) + 1e-4 * x.roll(1, 0)[..., :C],
        "looks at the other episodes",
    ),
    "batch norm": (BatchNorm(), "looks at the other episodes"),
    "state": (KeepsState(), "keeps state between calls"),
    "dropout": (Dropout(), "must be in eval mode"),
    "noise": (from_noise(torch.Generator().manual_seed(0)), "draws random numbers"),
}


@pytest.mark.parametrize(("learner", "message"), PEEKING.values(), ids=PEEKING)
def test_evaluate_refuses_a_learner_that_peeks(learner: Any, message: str) -> None:
    with pytest.raises(LearnerError, match=message):
        icl_bench.evaluate(learner, DIGITS)


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        pytest.param(lambda x, y: x[..., :9], r"must have shape \(8, 100, 10\)", id="classes"),
        pytest.param(lambda x, y: x[:, 1:, :10], "must have shape", id="steps"),
        pytest.param(lambda x, y: honest(x, y).argmax(-1), "floating-point logits", id="labels"),
        pytest.param(lambda x, y: honest(x, y).numpy(), "not ndarray", id="numpy"),
        pytest.param(lambda x, y: honest(x, y) / 0, "NaN or infinite, first at step 0", id="nan"),
        pytest.param(
            lambda x, y: honest(x, y).index_fill(1, torch.tensor([7]), torch.nan),
            "first at step 7",
            id="nan at 7",
        ),
    ],
)
def test_bad_interfaces_are_named(learner: Any, message: str) -> None:
    with pytest.raises(LearnerError, match=message):
        icl_bench.check_learner(learner, DIGITS, split="unseen")


class Transformer(torch.nn.Module):
    """A small causal Transformer, as users bring them; random weights."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = torch.nn.Linear(64 + C, 32)
        self.qkv = torch.nn.Linear(32, 96)
        self.head = torch.nn.Linear(32, C)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2

    def forward(self, x: Tensor, prev_y: Tensor) -> Tensor:
        h = self.embed(torch.cat([x, one_hot(prev_y)], dim=-1))
        q, k, v = self.qkv(h).chunk(3, dim=-1)
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(h + attended)


class Recurrent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(64 + C, 32, batch_first=True)
        self.head = torch.nn.Linear(32, C)

    def forward(self, x: Tensor, prev_y: Tensor) -> Tensor:
        return self.head(self.lstm(torch.cat([x, one_hot(prev_y)], dim=-1))[0])


@pytest.mark.parametrize(
    "learner",
    [
        icl_bench.Chance(),
        NearestNeighbour(),
        OnlineLogisticRegression(),
        Transformer().eval(),
        Recurrent().eval(),
        Transformer().eval().bfloat16().float(),
    ],
    ids=["chance", "1-nn", "logistic regression", "Transformer", "LSTM", "rounded weights"],
)
def test_honest_learners_pass(learner: Any) -> None:
    icl_bench.check_learner(learner, DIGITS, split="unseen")
    icl_bench.check_learner(learner, icl_bench.make(DIGITS, split="unseen"))
    result = icl_bench.evaluate(learner, DIGITS, num_episodes=64)
    assert isinstance(result, Result)


def test_inputs_cannot_be_changed_by_a_learner() -> None:
    def destructive(x: Tensor, prev_y: Tensor) -> Tensor:
        out = honest(x, prev_y)
        x.zero_()
        prev_y.zero_()
        return out

    changed = icl_bench.evaluate(destructive, DIGITS, num_episodes=32)
    expected = icl_bench.evaluate(honest, DIGITS, num_episodes=32)
    assert (changed.prediction == expected.prediction).all()


def test_check_needs_company() -> None:
    with pytest.raises(ValueError, match="at least two episodes"):
        check_causality(honest, torch.zeros(1, 5, 4), torch.zeros(1, 5, dtype=torch.int64), C)


def test_nearest_neighbour_by_hand() -> None:
    x = torch.tensor([[[0.0, 0], [4, 0], [3, 0], [0, 1], [9, 9]]])
    prev_y = torch.tensor([[-1, 2, 1, 0, 0]])
    logits = NearestNeighbour(3)(x, prev_y)
    # Step 2 at (3, 0): (0, 0) of class 2 at 9, (4, 0) of class 1 at 1; class 0 unseen.
    assert torch.allclose(logits[0, 2], -torch.tensor([9 / 2 + 1, 1 / 2, 9 / 2]))
    assert logits[0, 1].argmax() == 2
    assert logits[0, 3].argmax() == 2
    assert torch.allclose(logits[0, 0], torch.full((3,), -1.0))


def test_logistic_regression_equals_the_explicit_update() -> None:
    batch = icl_bench.make(DIGITS, split="unseen", episode_length=30).unwrapped.episodes([3, 4])
    got = OnlineLogisticRegression()(batch.x, batch.prev_y)
    for b in range(2):
        w = torch.zeros(C, 64, dtype=torch.float64)
        for t in range(30):
            x = batch.x[b, t].double()
            logits = w @ x
            assert torch.allclose(got[b, t].double(), logits, atol=1e-3)
            error = one_hot(batch.y[b, t]).double() - torch.softmax(logits, 0)
            w += 3.0 * torch.outer(error, x) / (x @ x)


@pytest.mark.parametrize(
    ("learner", "low", "high"),
    [
        (icl_bench.Chance(), 0.08, 0.12),
        (NearestNeighbour(), 0.88, 0.97),
        (OnlineLogisticRegression(), 0.65, 0.8),
    ],
    ids=["chance", "1-nn", "logistic regression"],
)
def test_references_are_in_their_bands(learner: Any, low: float, high: float) -> None:
    result = icl_bench.evaluate(learner, DIGITS)
    curve = result.learning_curve
    assert low < curve[-20:].mean() < high
    assert 0.05 < curve[0] < 0.16  # nothing can be known at step 0
    if not isinstance(learner, icl_bench.Chance):
        assert curve[-10:].mean() > curve[5:15].mean() + 0.15
    perfect = icl_bench.evaluate(learner, "Random-Proj8-v0").learning_curve
    if isinstance(learner, NearestNeighbour):
        assert perfect[-1] == 1.0


def test_relabelling_a_task_relabels_the_predictions() -> None:
    """References treat classes alike."""
    batch = icl_bench.make(DIGITS, split="unseen").unwrapped.episodes(range(4))
    rho = torch.from_numpy(np.random.default_rng(0).permutation(C))
    prev = batch.prev_y
    renamed = torch.where(prev >= 0, rho[prev], prev)
    for learner in (NearestNeighbour(), OnlineLogisticRegression()):
        assert torch.allclose(
            learner(batch.x, renamed)[..., rho], learner(batch.x, prev), atol=1e-5
        )
