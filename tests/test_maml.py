"""MAML: gradients through updates against finite differences, torch.func and plain loops."""

import importlib
import itertools
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional

import icl_bench
from baselines import cli, maml, sequence, sgd, train
from baselines.sequence import build_model
from icl_bench.evaluation.learner import LearnerError

DIGITS = "Digits-Proj8-v0"
D, C = 5, 3


def small(steps: int = 3, **settings) -> tuple[maml.MAML, Tensor, Tensor, Tensor]:
    """A learner of 5 features and 3 classes in float64, and two episodes with ``steps`` updates."""
    generator = torch.Generator().manual_seed(0)
    config = maml.Config(**{"inner_lr": 0.3, "inner_optimizer": "sgd"} | settings)
    model = maml.build(config, D, C).double()
    with torch.no_grad():
        for parameter in model.initial:
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        for parameter in model.rates:
            noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.1 + 0.4 * noise)
    x = torch.randn(2, steps + 1, D, generator=generator, dtype=torch.float64)
    y = torch.randint(C, (2, steps + 1), generator=generator)
    return model, x, y, labels_before(y)


def labels_before(y: Tensor) -> Tensor:
    return torch.cat([torch.full_like(y[:, :1], -1), y[:, :-1]], dim=1)


def meta_loss(model: maml.MAML, x: Tensor, y: Tensor) -> Tensor:
    logits = model(x, labels_before(y))
    losses = functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
    return model.objective(losses.view(y.shape))


def meta_gradient(model: maml.MAML, x: Tensor, y: Tensor) -> list[Tensor]:
    model.zero_grad()
    meta_loss(model, x, y).backward()
    return [p.grad.clone() for p in model.parameters()]


def finite_differences(model: maml.MAML, x: Tensor, y: Tensor, step: float = 1e-5) -> list[Tensor]:
    """Central differences of the meta-loss by every parameter."""
    found = []
    with torch.no_grad():
        for parameter in model.parameters():
            slopes = torch.zeros_like(parameter)
            for i in range(parameter.numel()):
                value = float(parameter.view(-1)[i])
                ends = []
                for sign in (1, -1):
                    parameter.view(-1)[i] = value + sign * step
                    ends.append(float(meta_loss(model, x, y)))
                parameter.view(-1)[i] = value
                slopes.view(-1)[i] = (ends[0] - ends[1]) / (2 * step)
            found.append(slopes)
    return found


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    pairs = list(zip(found, expected, strict=True))
    gap = torch.cat([(a - b).flatten() for a, b in pairs]).norm()
    return float(gap / torch.cat([b.flatten() for _, b in pairs]).norm())


# Second order


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"hidden": 4},
        {"inner_optimizer": "adam", "inner_lr": 0.05},
        {"learn_rates": True},
        {"learn_rates": True, "inner_optimizer": "adam", "inner_lr": 0.05},
        {"inner_steps": 3},
        {"form": "support-query", "refresh": 2, "inner_steps": 3},
        {"form": "support-query", "refresh": 2, "inner_optimizer": "adam", "inner_lr": 0.02},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())) or "plain",
)
@pytest.mark.parametrize("steps", [1, 5, 50])
def test_meta_gradient_is_the_finite_difference(steps, settings):
    model, x, y, _ = small(steps, **settings)
    error = relative_error(meta_gradient(model, x, y), finite_differences(model, x, y))
    assert error < 1e-6


def test_constant_gradients_would_be_noticed():
    """The first-order gradient is another one, and the closer the smaller the rate."""
    errors = []
    for rate in (0.3, 0.03, 0.003):
        exact = meta_gradient(*small(5, inner_lr=rate)[:3])
        first = meta_gradient(*small(5, inner_lr=rate, algorithm="fomaml")[:3])
        errors.append(relative_error(first, exact))
    assert errors[0] > 1e-2
    # What it leaves out is rate × Hessian, once for every update: of first order in the rate.
    assert 8 < errors[1] / errors[2] < 12


def test_first_order_gradient_is_the_mean_of_those_at_the_adapted_weights():
    model, x, y, prev_y = small(5, algorithm="fomaml")
    found = meta_gradient(model, x, y)[0]
    expected = torch.zeros_like(found)
    with torch.no_grad():
        for episode in range(2):
            w = model.initial[0].clone()
            for t in range(6):
                token = torch.cat([x[episode, t], x.new_ones(1)])
                error = (w @ token).softmax(dim=0)
                error[y[episode, t]] -= 1
                slope = error[:, None] * token
                expected += slope / 12
                w -= 0.3 * slope
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
    assert prev_y[0, 0] == -1


# References


def reference(model: maml.MAML, x: Tensor, y: Tensor) -> Tensor:
    """Logits of the online form, by torch.func: gradients of a network's loss, over the tasks."""
    layers = [torch.nn.Linear(w.shape[1] - 1, w.shape[0]) for w in model.initial]
    net = torch.nn.Sequential(*(m for layer in layers for m in (layer, torch.nn.ReLU())))[:-1]
    names = [name for name, _ in net.named_parameters()]

    def parameters(weights: Sequence[Tensor]) -> dict[str, Tensor]:
        parts = [part for w in weights for part in (w[:, :-1], w[:, -1])]
        return dict(zip(names, parts, strict=True))

    def loss(weights: list[Tensor], token: Tensor, label: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(net, parameters(weights), (token,)), label)

    weights = [w.expand(len(x), -1, -1) for w in model.initial]
    answers = []
    for t in range(x.shape[1]):
        logits = vmap(lambda w, token: functional_call(net, parameters(w), (token,)))(
            weights, x[:, t]
        )
        answers.append(logits)
        slopes = vmap(grad(loss))(weights, x[:, t], y[:, t])
        weights = [w - 0.3 * s for w, s in zip(weights, slopes, strict=True)]
    return torch.stack(answers, dim=1)


@pytest.mark.parametrize("hidden", [0, 4])
def test_batch_of_tasks_equals_vmap_and_the_loop_over_tasks(hidden):
    model, x, y, prev_y = small(20, hidden=hidden)
    logits = model(x, prev_y)
    torch.testing.assert_close(logits, reference(model, x, y), atol=1e-9, rtol=1e-9)
    each = torch.cat([model(x[i : i + 1], prev_y[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(logits, each, atol=1e-9, rtol=1e-9)
    whole = meta_gradient(model, x, y)
    parts = [meta_gradient(model, x[i : i + 1], y[i : i + 1]) for i in range(2)]
    halves = [(a + b) / 2 for a, b in zip(*parts, strict=True)]
    assert relative_error(whole, halves) < 1e-9


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("hidden", [0, 16])
def test_from_the_same_weights_it_is_the_learner_of_sgd(optimizer, hidden):
    batch = icl_bench.make(DIGITS, split="unseen").unwrapped.episodes(range(4))
    plain = sgd.SGD(sgd.Config(optimizer=optimizer, lr=1e-2, hidden=hidden), 64, 10)
    config = maml.Config(inner_optimizer=optimizer, inner_lr=1e-2, hidden=hidden)
    model = maml.build(config, 64, 10)
    with torch.no_grad():
        for i, weight in enumerate(model.initial):
            bias = plain.initial[f"{i}.bias"][:, None]
            weight.copy_(torch.cat([plain.initial[f"{i}.weight"], bias], dim=1))
        found = model(batch.x, batch.prev_y)
    torch.testing.assert_close(found, plain(batch.x, batch.prev_y), atol=2e-4, rtol=1e-4)


def test_support_and_query_by_hand():
    """Refreshed every 4 steps: full-batch descent on the examples before, from the start again."""
    model, x, y, prev_y = small(9, form="support-query", refresh=4, inner_steps=2)
    found = model(x, prev_y).detach()
    start = model.initial[0].detach()
    for episode, t in itertools.product(range(2), range(10)):
        tokens = torch.cat([x[episode], x.new_ones(10, 1)], dim=1)
        support = t // 4 * 4
        w = start.clone()
        for _ in range(2 if support else 0):
            errors = (tokens[:support] @ w.T).softmax(dim=1)
            errors -= functional.one_hot(y[episode, :support], C)
            w -= 0.3 * errors.T @ tokens[:support] / support
        torch.testing.assert_close(found[episode, t], w @ tokens[t])


def test_reptile_moves_towards_the_last_weights():
    model, x, y, prev_y = small(6, algorithm="reptile")
    (gradient,) = meta_gradient(model, x, y)
    ends = []
    with torch.no_grad():
        for episode in range(2):
            state = model.begin(1)
            _, state = model.steps(x[episode : episode + 1], prev_y[episode : episode + 1], state)
            ends.append(state[0].weights[0][0])
    expected = model.initial[0] - (ends[0] + ends[1]) / 2
    torch.testing.assert_close(gradient, expected.detach(), atol=1e-12, rtol=1e-10)
    assert gradient.norm() > 0.1


@pytest.mark.parametrize("form", ["online", "support-query"])
def test_long_passes_computed_again_have_the_same_gradient(form, monkeypatch):
    settings = {"form": form, "inner_optimizer": "adam", "hidden": 4}
    whole = meta_gradient(*small(20, **settings)[:3])
    monkeypatch.setattr(sequence, "MOST_KEPT", 0)
    calls, checkpoint = [], sequence.checkpoint
    monkeypatch.setattr(
        sequence, "checkpoint", lambda *a, **k: (calls.append(1), checkpoint(*a, **k))[1]
    )
    assert relative_error(meta_gradient(*small(20, **settings)[:3]), whole) < 1e-9
    assert len(calls) == 5


def test_the_paper_s_size_is_cut_into_segments(monkeypatch):
    """3072 features, batch 128, 100 updates: about 5 GB otherwise."""
    model = maml.build(maml.paper(), 3072, 10)
    numbers = sum(w.numel() for w in model.initial)
    assert 100 * model.kept_by_step(128) > sequence.MOST_KEPT
    model = maml.build(maml.Config(), 64, 10)
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage())
        return tensor

    x, prev_y = torch.randn(8, 20, 64), torch.zeros(8, 20, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(x, prev_y).sum()
    assert loss.requires_grad
    sizes = {storage.data_ptr(): storage.nbytes() // 4 for storage in kept}
    assert 0.8 < sum(sizes.values()) / (20 * model.kept_by_step(8)) < 1.2
    assert numbers == 30_730


@torch.no_grad()
def test_autocast_changes_nothing():
    """Updates are smaller than the rounding of bf16."""
    batch = icl_bench.make(DIGITS, split="unseen").unwrapped.episodes(range(2))
    model = maml.build(maml.Config(), 64, 10)
    plain = model(batch.x, batch.prev_y)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(batch.x, batch.prev_y), plain)


# As a learner

FORMS = pytest.mark.parametrize(
    "settings",
    [
        {},
        {"hidden": 8, "inner_optimizer": "sgd", "inner_steps": 2},
        {"form": "support-query", "refresh": 7, "inner_steps": 3},
    ],
    ids=["online", "hidden layer", "support and query"],
)


@FORMS
def test_learner_does_not_peek(settings):
    model = maml.build(maml.Config(inner_lr=1e-2, **settings), 64, 10)
    icl_bench.check_learner(model.eval(), DIGITS)


class Reveals(maml.Online):
    """Learns from an example before it is classified."""

    def forward(self, x: Tensor, prev_y: Tensor) -> Tensor:
        return super().forward(x, torch.cat([prev_y[:, 1:], prev_y[:, :1]], dim=1))


def test_peeking_would_be_refused():
    with pytest.raises(LearnerError):
        icl_bench.check_learner(Reveals(maml.Config(inner_lr=1e-2), 64, 10).eval(), DIGITS)


@FORMS
@torch.no_grad()
def test_step_by_step_equals_one_pass(settings):
    batch = icl_bench.make(DIGITS, split="unseen").unwrapped.episodes(range(3))
    model = maml.build(maml.Config(inner_lr=1e-2, **settings), 64, 10)
    state, answers = model.begin(3), []
    for t in range(100):
        logits, state = model.step(batch.x[:, t], batch.prev_y[:, t], state)
        answers.append(logits)
    whole = model(batch.x, batch.prev_y)
    torch.testing.assert_close(torch.stack(answers, dim=1), whole, atol=1e-4, rtol=0)


def test_sizes_counted_by_hand():
    adam = maml.build(maml.paper(), 3072, 10)
    assert sum(p.numel() for p in adam.parameters()) == 30_730
    assert adam.state_size(100) == 3 * 30_730
    plain = maml.build(maml.Config(inner_optimizer="sgd", learn_rates=True, hidden=32), 64, 10)
    assert sum(p.numel() for p in plain.parameters()) == 2 * (65 * 32 + 33 * 10)
    assert plain.state_size(100) == 65 * 32 + 33 * 10
    support = maml.build(maml.Config(form="support-query"), 64, 10)
    assert support.state_size(100) == 650 + 100 * 65


# Through the outer loop

TINY = ("--preset", "cpu", "--env", DIGITS, "--device", "cpu", "--steps", "30")
QUICK = ("--batch-size", "8", "--episode-length", "20", "--warmup", "0", "--log-every", "10")
VARIANTS = [
    (),
    ("--algorithm", "fomaml"),
    ("--algorithm", "reptile"),
    ("--learn-rates",),
    ("--form", "support-query", "--inner-steps", "2"),
]


def settings_of(*arguments: str) -> maml.Config:
    return cli.parse(maml.PRESETS, maml.METHOD.program, "About.", [*TINY, *QUICK, *arguments])


@pytest.mark.parametrize("arguments", VARIANTS, ids=lambda arguments: " ".join(arguments) or "maml")
def test_meta_training_helps(arguments):
    """The learner with meta-trained weights has a smaller loss on new tasks than with its first."""
    config = settings_of(*arguments, "--lr", "1e-2", "--inner-lr", "3e-2", "--steps", "60")
    model = build_model(maml.METHOD, config)
    batch = icl_bench.make(DIGITS, split="val", episode_length=20).unwrapped.episodes(range(64))

    @torch.no_grad()
    def loss() -> float:
        logits = model.eval()(batch.x, batch.prev_y).flatten(0, 1)
        return float(functional.cross_entropy(logits, batch.y.flatten()))

    before = loss()
    train.train(config, model, train.environment(config, torch.device("cpu")), None)
    assert loss() < before - 0.01


def test_episodes_that_diverge_are_counted():
    config = settings_of("--inner-optimizer", "sgd", "--inner-lr", "1000")
    model = build_model(maml.METHOD, config)
    batch = train.environment(config, torch.device("cpu")).episodes(range(8))
    loss_of = train._loss_function(config, model)
    assert train._backward(config, model, loss_of, batch)[3] > 0.5
    calm = settings_of()
    model = build_model(maml.METHOD, calm)
    assert train._backward(calm, model, train._loss_function(calm, model), batch)[3] == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--inner-lr", "0"], "--inner-lr must be above 0, not 0.0"),
        (["--inner-lr", "-1"], "--inner-lr must be above 0, not -1.0"),
        (["--inner-lr", "nan"], "--inner-lr must be above 0, not nan"),
        (["--inner-steps", "0"], "--inner-steps must be 1 or more, not 0"),
        (["--refresh", "0"], "--refresh must be 1 or more, not 0"),
        (["--hidden", "-1"], "--hidden must be 0 or more, not -1"),
        (["--learn-rates", "--algorithm", "reptile"], "Reptile has no gradient for them"),
    ],
)
def test_bad_settings_are_refused(arguments, reason, capsys):
    module = importlib.import_module("baselines.maml")
    presets, program = module.PRESETS, module.METHOD.program
    status = cli.main(lambda _: None, presets, program, "About.", [*TINY, *arguments])
    assert status == 2
    assert re.search(re.escape(reason), capsys.readouterr().err)


def test_gradients_of_numpy_size():
    """Weights of all presets have the law of torch.nn.Linear."""
    config = maml.Config(env=DIGITS, hidden=32, device="cpu")
    model = build_model(maml.METHOD, config)
    for weight, fan_in in zip(model.initial, (64, 32), strict=True):
        values = weight.detach().numpy() * np.sqrt(fan_in)
        assert np.abs(values).max() <= 1
        assert abs(values.std() - 1 / np.sqrt(3)) < 0.05


@pytest.mark.parametrize("arguments", [("--learn-rates",), ("--algorithm", "reptile")])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(arguments, tmp_path, monkeypatch):
    small = ("--suite", "digits-v0", "--episodes", "32", "--eval-every", "0", "--steps", "6")
    given = [*TINY, *QUICK, *small, *arguments]

    def run(*more: str) -> int:
        return cli.main(
            lambda config: train.run(config, maml.METHOD),
            maml.PRESETS,
            maml.METHOD.program,
            "About.",
            list(more),
        )

    def weights(folder: Path) -> dict[str, bytes]:
        (path,) = folder.glob("*/learner.safetensors")
        return {name: v.numpy().tobytes() for name, v in load_file(path).items()}

    assert run(*given, "--runs", str(tmp_path / "whole")) == 0
    calls, objective = [], maml.MAML.objective

    def interrupted(self: maml.MAML, losses: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return objective(self, losses)

    with monkeypatch.context() as patch:
        patch.setattr(maml.MAML, "objective", interrupted)
        assert run(*given, "--runs", str(tmp_path / "stopped")) == 130
    assert len(calls) == 3
    (path,) = (tmp_path / "stopped").iterdir()
    assert run("--resume", str(path)) == 0
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    name = "meta-sgd" if "--learn-rates" in arguments else "reptile"
    assert f"__{name}__" in path.name
