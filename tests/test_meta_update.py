"""Outer steps against a transcription in NumPy, finite differences, PyTorch's AdamW, and copies."""

import copy
import dataclasses
import math
import os
import random
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn

from baselines import meta_update
from baselines.meta_update import MamlUpdate, PlainUpdate, Update, adapted, loss_of
from icl_bench.tasks.prompts import PromptBatch, pad

V, D, H = 7, 4, 5
SHAPES = {"embed": (V, D), "w1": (H, D), "b1": (H,), "w2": (V, H), "b2": (V,)}
LR = 0.05
ADAMW = {"betas": (0.8, 0.9), "eps": 1e-2, "weight_decay": 0.1}


class Toy(nn.Module):
    """Two layers that predict a token from the one before it."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in SHAPES.items():
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            setattr(self, name, nn.Parameter(value))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        hidden = (self.embed[input_ids] @ self.w1.T + self.b1).tanh()
        return SimpleNamespace(logits=hidden @ self.w2.T + self.b2)


def batches(count: int, vocabulary: int = V, seed: int = 0) -> list[PromptBatch]:
    """Three sequences each, of different lengths and numbers of tokens that count."""
    rng, made = random.Random(seed), []
    for _ in range(count):
        rows = []
        for _ in range(3):
            context, scored = rng.randint(1, 5), rng.randint(1, 4)
            ids = [rng.randrange(vocabulary) for _ in range(context + scored)]
            rows.append((ids, [0] * context + [1] * scored))
        made.append(pad(rows))
    return made


def flat(tensors: Any) -> np.ndarray:
    return torch.cat([t.detach().flatten() for t in tensors]).numpy().copy()


def weights_of(model: nn.Module) -> np.ndarray:
    return flat(model.parameters())


# The transcription: weights are one vector


def parts(vector: np.ndarray) -> dict[str, np.ndarray]:
    sizes = [math.prod(shape) for shape in SHAPES.values()]
    pieces = np.split(vector, np.cumsum(sizes)[:-1])
    return {name: p.reshape(SHAPES[name]) for name, p in zip(SHAPES, pieces, strict=True)}


def loss_and_gradient(
    vector: np.ndarray, batch: PromptBatch, mutant: str = ""
) -> tuple[float, np.ndarray]:
    """Token by token, with the gradient written out."""
    w = parts(vector)
    slopes = parts(np.zeros_like(vector))
    ids, mask = batch.ids.numpy(), batch.loss_mask.numpy()
    total = 0.0
    for row in range(len(ids)):
        counted = [t for t in range(1, ids.shape[1]) if mask[row, t]]
        share = 1 / len(counted) / len(ids)
        if mutant == "mean over tokens":
            share = 1 / mask[:, 1:].sum()
        for t in counted:
            token = ids[row, t if mutant == "no shift" else t - 1]
            hidden = np.tanh(w["w1"] @ w["embed"][token] + w["b1"])
            logits = w["w2"] @ hidden + w["b2"]
            chances = np.exp(logits) / np.exp(logits).sum()
            total -= share * np.log(chances[ids[row, t]])
            error = share * (chances - np.eye(V)[ids[row, t]])
            slopes["w2"] += np.outer(error, hidden)
            slopes["b2"] += error
            error = (w["w2"].T @ error) * (1 - hidden**2)
            slopes["w1"] += np.outer(error, w["embed"][token])
            slopes["b1"] += error
            slopes["embed"][token] += w["w1"].T @ error
    return total, np.concatenate([s.ravel() for s in slopes.values()])


@dataclasses.dataclass
class State:
    m: Any = 0.0
    v: Any = 0.0
    t: int = 0

    def step(self, kind: str, w: np.ndarray, g: np.ndarray, lr: float) -> np.ndarray:
        w = w - lr * ADAMW["weight_decay"] * w
        self.t += 1
        if kind == "sgd":
            return w - lr * g
        one, two = ADAMW["betas"]
        self.m = one * self.m + (1 - one) * g
        self.v = two * self.v + (1 - two) * g**2
        m, v = self.m / (1 - one**self.t), self.v / (1 - two**self.t)
        return w - lr * m / (np.sqrt(v) + ADAMW["eps"])


@dataclasses.dataclass(frozen=True)
class Case:
    k: int = 1
    n: int = 1
    second_order: bool = False
    inner: str = "adamw"
    outer: str = "adamw"
    moments: str = "shared"
    inner_rate: float = 0.7
    clip: float = 0.0

    def update(self, model: nn.Module) -> MamlUpdate:
        return MamlUpdate(model, **dataclasses.asdict(self), **ADAMW)


def outer_gradient(
    case: Case, w: np.ndarray, inner: State, task: Sequence[PromptBatch], mutant: str
) -> np.ndarray:
    """Of one task; ``inner`` goes on through its support."""
    support, query = task[: case.k], task[case.k :]
    if mutant == "queries first":
        support, query = query, support

    def end(start: np.ndarray, state: State) -> np.ndarray:
        for batch in support:
            gradient = loss_and_gradient(start, batch)[1]
            start = state.step(case.inner, start, gradient, LR * case.inner_rate)
        return start

    if case.second_order:
        step, ends = 1e-5, []
        for direction in np.eye(len(w)) * step:
            adapted = [end(w + sign * direction, copy.copy(inner)) for sign in (1, -1)]
            losses = [np.mean([loss_and_gradient(a, b)[0] for b in query]) for a in adapted]
            ends.append((losses[0] - losses[1]) / (2 * step))
        end(w, inner)
        return np.array(ends)
    at = end(w, inner)
    at = w if mutant == "query loss at theta" else at
    return np.mean([loss_and_gradient(at, batch)[1] for batch in query], axis=0)


def path(
    case: Case, w: np.ndarray, given: Sequence[PromptBatch], mutant: str = "", processes: int = 1
) -> list[np.ndarray]:
    """Weights after each of three outer steps."""
    found, outer = [], State()
    size = 2 * case.k
    for step in range(3):
        mine = given[step * size * case.n : (step + 1) * size * case.n]
        tasks = [mine[i : i + size] for i in range(0, len(mine), size)]
        states, gradients = [], []
        for process in range(processes):
            inner = copy.copy(outer) if case.moments == "shared" else State()
            if mutant == "moments not carried":
                inner = State()
            if mutant == "a counter of its own":
                inner.t = 0
            before = copy.copy(inner)
            for task in tasks[process::processes]:
                if mutant == "each task anew":
                    inner = copy.copy(before)
                gradients.append(outer_gradient(case, w, inner, task, mutant))
            states.append(inner)
        if case.moments == "shared" and mutant != "not copied back":
            own = outer.t
            outer = State(*(np.mean([getattr(s, x) for s in states], axis=0) for x in "mv"))
            outer.t = own if mutant == "a counter of its own" else states[0].t
        gradient = np.sum(gradients, axis=0) if mutant == "sum" else np.mean(gradients, axis=0)
        if case.clip:
            gradient *= min(1, case.clip / (np.linalg.norm(gradient) + 1e-6))
        w = outer.step(case.outer, w, gradient, LR)
        found.append(w)
    return found


def walk(
    update: Update, given: Sequence[PromptBatch], steps: int = 3, lr: float = LR
) -> list[np.ndarray]:
    found = []
    size = len(given) // steps
    for i in range(steps):
        update.step(given[i * size : (i + 1) * size], lr)
        found.append(flat(update.weights.values()))
    return found


def gap(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(first, second, strict=True))


SEPARATE = {"moments": "separate"}
CASES = [
    Case(),
    Case(k=2, n=4, clip=0.1),
    Case(**SEPARATE),
    Case(k=2, n=4, **SEPARATE),
    Case(inner="sgd", outer="sgd", **SEPARATE),
    Case(inner="sgd", clip=0.1, **SEPARATE),
    Case(k=2, n=2, outer="sgd", **SEPARATE),
]
SECOND = [dataclasses.replace(case, second_order=True) for case in CASES]


def named(case: Case) -> str:
    order = "second" if case.second_order else "first"
    return f"{2 * case.k}-{case.n} {case.inner}+{case.outer} {case.moments} {order}"


# Losses


def test_loss_by_hand():
    """Uniform logits but for one token: log of the vocabulary, and what that token takes away."""
    model = Toy()
    with torch.no_grad():
        model.w2.zero_()
        model.b2.zero_()[0] = math.log(2)
    rare, frequent = math.log(V + 1), math.log(V + 1) - math.log(2)
    batch = pad([([3, 1, 0], [0, 1, 1]), ([5, 0], [0, 1]), ([0, 2, 2, 2], [1, 1, 1, 1])])
    expected = ((rare + frequent) / 2 + frequent + rare) / 3
    assert loss_of(model, None, batch).item() == pytest.approx(expected, abs=1e-14)


def test_loss_and_gradient_are_those_of_the_transcription():
    model = Toy()
    for batch in batches(5):
        loss = loss_of(model, None, batch)
        expected, slopes = loss_and_gradient(weights_of(model), batch)
        assert loss.item() == pytest.approx(expected, abs=1e-12)
        found = flat(torch.autograd.grad(loss, list(model.parameters())))
        np.testing.assert_allclose(found, slopes, atol=1e-12)
        for mutant in ("mean over tokens", "no shift"):
            other = loss_and_gradient(weights_of(model), batch, mutant)[0]
            assert abs(other - expected) > 1e-4


def test_given_parameters_are_used_and_the_model_keeps_its_own():
    model, other, (batch,) = Toy(), Toy(), batches(1)
    with torch.no_grad():
        other.w1.mul_(2)
    given = loss_of(model, dict(other.named_parameters()), batch)
    assert torch.equal(given, loss_of(other, None, batch))
    assert not torch.equal(given, loss_of(model, None, batch))


def test_a_sequence_without_a_token_to_train_on_is_named():
    batch = pad([([1, 2], [0, 1]), ([1, 2], [1, 0])])
    with pytest.raises(ValueError, match="sequence 1 of the batch has no token to train on"):
        loss_of(Toy(), None, batch)


# Paths of outer steps


@pytest.mark.parametrize("case", CASES, ids=named)
def test_three_outer_steps_are_those_of_the_transcription(case):
    model, given = Toy(), batches(6 * case.k * case.n)
    start = weights_of(model)
    expected = path(case, start, given)
    assert gap(walk(case.update(model), given), expected) < 1e-12
    assert np.abs(expected[-1] - start).max() > 1e-2


@pytest.mark.parametrize("case", SECOND[:1] + SECOND[2:5], ids=named)
def test_three_outer_steps_of_second_order_are_those_of_the_transcription(case):
    model, given = Toy(), batches(6 * case.k * case.n)
    start = weights_of(model)
    first = path(dataclasses.replace(case, second_order=False), start, given)
    found = walk(case.update(model), given)
    assert gap(found, path(case, start, given)) < 1e-7
    assert gap(found, first) > 1e-4


@pytest.mark.parametrize(
    "mutant",
    [
        "moments not carried",
        "a counter of its own",
        "not copied back",
        "each task anew",
        "query loss at theta",
        "queries first",
        "sum",
    ],
)
def test_other_readings_would_be_noticed(mutant):
    case = Case(k=2, n=4)
    model, given = Toy(), batches(48)
    start = weights_of(model)
    assert gap(walk(case.update(model), given), path(case, start, given, mutant)) > 1e-4


# Second order


@pytest.mark.parametrize("case", SECOND, ids=named)
def test_outer_gradient_is_the_finite_difference(case):
    """After a step, so that moments are carried in; what first order leaves out shows."""
    model, given = Toy(), batches(4 * case.k * case.n)
    update, size = case.update(model), 2 * case.k
    half = len(given) // 2
    update.step(given[:half], LR)
    state, w = update.state_dict(), weights_of(model)
    inner = State()
    if case.moments == "shared":
        inner = State(flat(state["first"].values()), flat(state["second"].values()), state["count"])
    tasks = [given[i : i + size] for i in range(half, len(given), size)]
    expected = np.mean([outer_gradient(case, w, inner, task, "") for task in tasks], axis=0)
    found = flat(update.gradient(given[half:], LR)[1].values())
    update.load_state_dict(state)
    update.second_order = False
    first = flat(update.gradient(given[half:], LR)[1].values())
    assert np.array_equal(weights_of(model), w)
    assert np.linalg.norm(found - expected) < 1e-6 * np.linalg.norm(expected)
    assert np.linalg.norm(first - expected) > 1e-3 * np.linalg.norm(expected)


def test_a_constant_scale_of_the_step_would_be_noticed(monkeypatch):
    """The gradient goes through v as well as through m."""
    model, given = Toy(), batches(2)
    expected = outer_gradient(SECOND[0], weights_of(model), State(), given, "")
    monkeypatch.setattr(meta_update, "_root", lambda squares: squares.detach().sqrt())
    found = flat(SECOND[0].update(model).gradient(given, LR)[1].values())
    assert np.linalg.norm(found - expected) > 1e-3 * np.linalg.norm(expected)


def test_weights_that_no_token_meets_have_a_finite_gradient(monkeypatch):
    """Rows of the embedding: v = 0, where the derivative of its root is not finite."""
    given = [pad([([1, 2, 3], [0, 1, 1])]), pad([([4, 2, 5, 1], [0, 0, 1, 1])])]

    def finite() -> bool:
        slopes = MamlUpdate(Toy()).gradient(given, LR)[1]
        return all(bool(slope.isfinite().all()) for slope in slopes.values())

    assert finite()
    monkeypatch.setattr(meta_update, "_root", torch.sqrt)
    assert not finite()


def test_a_fresh_first_step_has_almost_no_second_order():
    """It is the sign of the gradient; with moments that are carried in, it is not."""
    model, given = Toy(), batches(4)
    orders = []
    for second_order in (False, True):
        update = MamlUpdate(copy.deepcopy(model), second_order=second_order)
        found = [flat(update.gradient(given[:2], LR)[1].values())]
        update.step(given[:2], LR)
        orders.append([*found, flat(update.gradient(given[2:], LR)[1].values())])
    fresh, carried = (
        np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(*orders, strict=True)
    )
    assert fresh < 1e-4
    assert carried > 1e-2


# PyTorch


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("clip", [0.0, 0.1, 10.0])
def test_plain_update_is_pytorch_s_optimizer(kind, clip):
    model, other, given = Toy(), Toy(), batches(30)
    adamw = {"betas": (0.9, 0.995), "eps": 1e-8}
    make = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[kind]
    reference = make(
        other.parameters(), lr=LR, weight_decay=0.1, **(adamw if kind == "adamw" else {})
    )
    update = PlainUpdate(model, 3, optimizer=kind, clip=clip, weight_decay=0.1)
    assert update.num_batches == 3
    for i in range(0, 30, 3):
        reference.zero_grad()
        loss = sum(loss_of(other, None, batch) for batch in given[i : i + 3]) / 3
        loss.backward()
        norm = nn.utils.clip_grad_norm_(other.parameters(), clip or math.inf)
        reference.step()
        found = update.step(given[i : i + 3], LR)
        assert found["loss"] == pytest.approx(loss.item(), abs=1e-12)
        assert found["gradient_norm"] == pytest.approx(float(norm), abs=1e-12)
        assert gap([weights_of(model)], [weights_of(other)]) < 1e-13


def test_frozen_parameters_stay():
    model, given = Toy(), batches(4)
    model.w1.requires_grad_(False)
    before = model.w1.detach().clone()
    for second_order in (True, False):
        update = MamlUpdate(model, second_order=second_order)
        update.step(given[:2], LR)
        assert set(update.state_dict()["first"]) == {"embed", "b1", "w2", "b2"}
    assert torch.equal(model.w1, before)


# GPT-2


def gpt2(**settings: Any) -> nn.Module:
    """Small, with random weights in float64, attention that has second derivatives, tied ends."""
    pytest.importorskip("transformers", reason="the extra [text] is not installed")
    from icl_bench.data.torchvision_compat import import_torchvision

    import_torchvision()
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        **{"vocab_size": 50, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2},
        **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "initializer_range": 0.2},
        **{"bos_token_id": None, "eos_token_id": None, "attn_implementation": "eager"},
        **settings,
    )
    return GPT2LMHeadModel(config).double()


def plain_loss(model: nn.Module, batch: PromptBatch) -> Tensor:
    """All logits, row by row."""
    logits = model(input_ids=batch.ids, attention_mask=batch.attention_mask).logits
    rows = []
    for row, ids, mask in zip(logits, batch.ids, batch.loss_mask, strict=True):
        counted = [t for t in range(1, len(ids)) if mask[t]]
        rows.append(-sum(row[t - 1].log_softmax(0)[ids[t]] for t in counted) / len(counted))
    return sum(rows) / len(rows)


def adapted_copy(model: nn.Module, batch: PromptBatch, eps: float = 1e-8) -> nn.Module:
    """A copy after one step of PyTorch's AdamW."""
    other = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(
        other.parameters(), lr=LR, betas=(0.9, 0.995), eps=eps, weight_decay=0
    )
    plain_loss(other, batch).backward()
    optimizer.step()
    optimizer.zero_grad()
    return other


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_logits_are_computed_only_where_they_count():
    model, (batch,) = gpt2(), batches(1, 50)
    shapes: list[torch.Size] = []
    model.lm_head.register_forward_hook(lambda _, inputs, output: shapes.append(output.shape))
    found = torch.autograd.grad(loss_of(model, None, batch), list(model.parameters()))
    columns = int((batch.loss_mask[:, 1:] > 0).any(dim=0).sum())
    assert shapes == [(3, columns, 50)]
    assert columns < batch.ids.shape[1] - 1
    expected = torch.autograd.grad(plain_loss(model, batch), list(model.parameters()))
    assert relative(flat(found), flat(expected)) < 1e-12


def test_first_order_on_gpt2_is_the_gradient_of_an_adapted_copy():
    model, (support, query) = gpt2(), batches(2, 50)
    other = adapted_copy(model, support)
    plain_loss(other, query).backward()
    expected = flat(p.grad for p in other.parameters())
    start = weights_of(model)
    found = MamlUpdate(model, second_order=False).gradient([support, query], LR)[1]
    assert list(found) == [name for name, _ in model.named_parameters()]
    assert relative(flat(found.values()), expected) < 1e-12
    assert np.array_equal(weights_of(model), start)


def test_second_order_on_gpt2_is_the_finite_difference_along_random_directions():
    """The first and the last layer share their weights, which count once."""
    model, (support, query) = gpt2(), batches(2, 50)
    update = MamlUpdate(model, eps=1e-2)
    found = flat(update.gradient([support, query], LR)[1].values())
    first = flat(
        MamlUpdate(model, eps=1e-2, second_order=False).gradient([support, query], LR)[1].values()
    )
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        direction = torch.randn(len(found), generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        ends = []
        for sign in (1e-4, -1e-4):
            moved = copy.deepcopy(model)
            with torch.no_grad():
                pieces = direction.split([p.numel() for p in moved.parameters()])
                for p, piece in zip(moved.parameters(), pieces, strict=True):
                    p.add_(piece.view_as(p), alpha=sign)
            ends.append(plain_loss(adapted_copy(moved, support, 1e-2), query).item())
        slope = (ends[0] - ends[1]) / 2e-4
        assert found @ direction.numpy() == pytest.approx(slope, rel=1e-6)
        assert abs(first @ direction.numpy() - slope) > 1e-3 * abs(slope)


def test_gradient_checkpointing_is_for_first_order_alone():
    model, given = gpt2().train(), batches(2, 50)
    first, second = (MamlUpdate(model, eps=1e-2, second_order=order) for order in (False, True))
    expected = [flat(update.gradient(given, LR)[1].values()) for update in (first, second)]
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    model.config.use_cache = False
    again = MamlUpdate(model, eps=1e-2, second_order=False).gradient(given, LR)[1]
    assert relative(flat(again.values()), expected[0]) < 1e-12
    with pytest.raises(ValueError, match="gradient checkpointing has no second order"):
        MamlUpdate(model)
    # Why: it does not fail, its numbers are wrong.
    wrong = flat(second.gradient(given, LR)[1].values())
    assert relative(wrong, expected[1]) > 1e-3


@pytest.mark.parametrize("second_order", [True, False])
def test_bf16_computes_the_loss_in_32_bits(second_order):
    model, given = gpt2().float(), batches(2, 50)
    plain = loss_of(model, None, given[0])
    half = loss_of(model, None, given[0], bf16=True)
    assert half.dtype == torch.float32
    assert 1e-6 < abs((half - plain).item()) < 0.05
    gradients = []
    for bf16 in (False, True):
        update = MamlUpdate(model, second_order=second_order, bf16=bf16)
        gradients.append(flat(update.gradient(given, 1e-3)[1].values()))
    assert gradients[1].dtype == np.float32
    assert 1e-4 < relative(gradients[1], gradients[0]) < 0.2


# State


@pytest.mark.parametrize("case", [*CASES, SECOND[1]], ids=named)
def test_a_resumed_update_has_the_bits_of_an_uninterrupted_one(case, tmp_path):
    given = batches(8 * case.k * case.n)
    half = len(given) // 2
    model = Toy()
    expected = walk(case.update(model), given, steps=4)
    model = Toy()
    update = case.update(model)
    walk(update, given[:half], steps=2)
    torch.save({"model": model.state_dict(), "update": update.state_dict()}, tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    paths = []
    for resumed in (True, False):
        model = Toy()
        model.load_state_dict(state["model"])
        update = case.update(model)
        if resumed:
            update.load_state_dict(state["update"])
        paths.append(walk(update, given[half:], steps=2))
    assert gap(paths[0], expected[2:]) == 0
    assert (gap(paths[1], expected[2:]) > 0) == (case.outer == "adamw")


def test_a_state_is_not_changed_by_later_steps():
    update, given = MamlUpdate(Toy()), batches(4)
    update.step(given[:2], LR)
    state = update.state_dict()
    before = copy.deepcopy(state)
    update.step(given[2:], LR)
    assert state["count"] == before["count"] == 2
    for kind in ("first", "second"):
        assert all(torch.equal(state[kind][name], before[kind][name]) for name in SHAPES)


def test_a_state_of_another_optimizer_is_refused():
    state = PlainUpdate(Toy(), optimizer="sgd").state_dict()
    with pytest.raises(ValueError, match="of other parameters, or of another optimizer"):
        PlainUpdate(Toy()).load_state_dict(state)


# Memory


class Kept:
    """A tensor that a graph keeps for its gradient."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Watched(Toy):
    """At the beginning of every pass, counts those before of which a graph still keeps tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[list[weakref.ref]] = []
        self.alive: list[int] = []

    def count(self) -> int:
        return sum(any(reference() is not None for reference in kept) for kept in self.passes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        self.alive.append(self.count())
        self.passes.append([])

        def pack(tensor: Tensor) -> Kept:
            kept = Kept(tensor)
            self.passes[-1].append(weakref.ref(kept))
            return kept

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
            return super().forward(input_ids, attention_mask)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("second_order", [True, False])
def test_the_graph_of_one_task_is_held_at_a_time(k, second_order):
    model = Watched()
    MamlUpdate(model, k, 4, second_order=second_order).step(batches(8 * k), LR)
    one = [*range(k), *[k] * k] if second_order else [0] * 2 * k
    assert model.alive == one * 4
    assert all(model.passes)
    assert model.count() == 0


# Adaptation


def test_adapted_takes_a_step_per_batch_and_puts_the_bits_back():
    model, other, given = Toy(), Toy(), batches(16)
    optimizer = torch.optim.AdamW(
        other.parameters(), lr=1e-3, betas=(0.9, 0.995), eps=1e-8, weight_decay=0
    )
    for batch in given:
        optimizer.zero_grad()
        loss_of(other, None, batch).backward()
        optimizer.step()
    before = weights_of(model)
    with adapted(model, given, 1e-3):
        assert gap([weights_of(model)], [weights_of(other)]) < 1e-14
        assert gap([weights_of(model)], [before]) > 1e-3
    assert weights_of(model).tobytes() == before.tobytes()
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_adapted_puts_the_bits_back_after_an_error():
    model, given = Toy(), batches(2)
    before = weights_of(model).tobytes()
    with pytest.raises(KeyboardInterrupt), adapted(model, given, 1e-3):
        raise KeyboardInterrupt
    assert weights_of(model).tobytes() == before
    with (
        pytest.raises(ValueError, match="no token"),
        adapted(model, [*given, pad([([1, 2], [1, 0])])], 1e-3),
    ):
        pass
    assert weights_of(model).tobytes() == before


# Settings, and several processes


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"inner": "sgd"}, "sgd and adamw have no moments to share"),
        ({"outer": "sgd"}, "adamw and sgd have no moments to share"),
        ({"n": 0}, "cannot share"),
    ],
)
def test_bad_settings_are_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        MamlUpdate(Toy(), **settings)


def test_batches_are_counted(monkeypatch):
    update = MamlUpdate(Toy(), k=2, n=4)
    assert update.num_batches == 16
    with pytest.raises(ValueError, match="takes 16 batches among 1 processes, not 8 in each"):
        update.step(batches(8), LR)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="3 processes cannot share 4 parts of 4 batches"):
        MamlUpdate(Toy(), k=2, n=4)
    with pytest.raises(ValueError, match="3 processes cannot share 4 parts of 1 batches"):
        PlainUpdate(Toy(), 4)


def one_of_two(rank: int, path: str) -> None:
    """Three steps of some updates, each with half of the batches; the weights go to a file."""
    folder = Path(path)
    where = f"file://{folder / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=2)
    for name, make in SHARED_OUT.items():
        model, given = Toy(), batches(12)
        mine = [
            b for step in range(3) for b in given[4 * step + 2 * rank : 4 * step + 2 * rank + 2]
        ]
        np.save(folder / f"{name}{rank}.npy", walk(make(model), mine))
    torch.distributed.destroy_process_group()


TWO = Case(n=2, clip=0.1)
SHARED_OUT: dict[str, Callable[[nn.Module], Update]] = {
    "shared": TWO.update,
    "separate": dataclasses.replace(TWO, moments="separate").update,
    "plain": lambda model: PlainUpdate(model, 4),
}


def test_two_processes_share_the_tasks_of_a_step(tmp_path):
    code = "import sys; from test_meta_update import *; one_of_two(int(sys.argv[1]), sys.argv[2])"
    environment = os.environ | {"WORLD_SIZE": "2", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(tmp_path)],
            env=environment | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    found = {name: [np.load(tmp_path / f"{name}{r}.npy") for r in range(2)] for name in SHARED_OUT}
    for first, second in found.values():
        assert np.array_equal(first, second)
    start, given = weights_of(Toy()), batches(12)
    assert gap(found["shared"][0], path(TWO, start, given, processes=2)) < 1e-12
    assert gap(found["shared"][0], path(TWO, start, given)) > 1e-4
    separate = dataclasses.replace(TWO, moments="separate")
    assert gap(found["separate"][0], path(separate, start, given, processes=2)) < 1e-12
    assert gap(found["plain"][0], walk(PlainUpdate(Toy(), 4), given)) < 1e-12
