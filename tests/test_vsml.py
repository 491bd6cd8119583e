"""VSML with and without symmetries: equal to loops over LSTMs, equivariant, causal, learns."""

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

import icl_bench
from baselines import cli, common, sequence, train, vsml, vsml_nosym
from baselines.sequence import SequenceModel, build_model
from baselines.vsml import VSML, Config
from baselines.vsml_nosym import VSMLNoSym
from icl_bench.evaluation.learner import LearnerError

DIGITS = "Digits-Proj8-v0"
A, B, T = 5, 3, 4  # inputs, outputs, steps of the tiny models
SMALL = {"hidden": 6, "messages": 4}


def random_weights(model: SequenceModel) -> SequenceModel:
    """All parameters and cells at random, so that no bias or scale is left untested."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name == "cells":  # VSML without symmetries keeps the second half at zero
                value = value[..., : value.shape[-1] // 2]
            value.copy_(torch.randn(value.shape, generator=generator) * 0.7)
    return model.eval()


def small(**settings) -> VSML:
    return random_weights(VSML(Config(**SMALL | settings), A, B))


def small_nosym(**settings) -> VSMLNoSym:
    return random_weights(VSMLNoSym(vsml_nosym.Config(grid=3, **SMALL | settings), A, B))


def episodes(num: int = 2, length: int = T, inputs: int = A) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.standard_normal((num, length, inputs), dtype=np.float32))
    prev_y = torch.from_numpy(rng.integers(0, B, (num, length)))
    prev_y[:, 0] = -1
    return x, prev_y


# Loops in float64, one LSTM at a time


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(z) / np.exp(z).sum()


def lstm(weight, bias, received, h, c):
    """One tick of one LSTM, gates i, g, f, o (Kirsch & Schmidhuber 2021, released code)."""
    i, g, f, o = np.split(weight @ np.concatenate([*received, h]) + bias, 4)
    c = sigmoid(f + 5) * c + sigmoid(i - 5) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def values(model: SequenceModel) -> dict[str, np.ndarray]:
    return {name: value.double().numpy() for name, value in model.state_dict().items()}


def loop(model: VSML, x: np.ndarray, prev_y: np.ndarray) -> np.ndarray:
    """Logits of one episode."""
    config, p = model.config, values(model)
    size, units = config.messages, config.hidden

    def head(name: str, h: np.ndarray) -> np.ndarray:
        message = p[f"{name}_head.weight"] @ h + p[f"{name}_head.bias"]
        if not config.layer_norm or name == "self":
            return message
        scaled = (message - message.mean()) / np.sqrt(message.var() + 1e-5)
        return scaled * p[f"{name}_norm.weight"] + p[f"{name}_norm.bias"]

    widths = [A, *[config.neurons] * (config.layers - 1), B]
    h, c, to_inputs = [], [], []
    for layer in range(config.layers):
        inputs, outputs = widths[layer], widths[layer + 1]
        h.append(np.zeros((inputs, outputs, units)))
        c.append(np.zeros((inputs, outputs, units)))
        c[layer][..., : units // 2] = p[f"cells_{layer}"].transpose(2, 1, 0)
        to_inputs.append(np.zeros((inputs, size)))
    z = np.zeros(B)
    answers = []
    for t in range(len(x)):
        last = np.zeros((B, size))
        if t > 0:
            label = np.eye(B)[prev_y[t]]
            if config.feedback != "label":
                last[:, 0] = softmax(z) - label
            if config.feedback != "error":
                last[:, 1] = label
        from_above = [*to_inputs[1:], last]  # those of the step before
        forward = np.zeros((A, size))
        forward[:, 0] = x[t]
        for layer, downward in enumerate(from_above):
            inputs, outputs = widths[layer], widths[layer + 1]
            for a in range(inputs):
                for b in range(outputs):
                    for _ in range(config.micro_ticks):
                        received = [downward[b], forward[a]]
                        if config.self_messages:
                            received += [to_inputs[layer][a], head("self", h[layer][a, b])]
                        h[layer][a, b], c[layer][a, b] = lstm(
                            p["gates.weight"],
                            p["gates.bias"],
                            received,
                            h[layer][a, b],
                            c[layer][a, b],
                        )
            forward = np.array(
                [
                    np.mean([head("forward", h[layer][a, b]) for a in range(inputs)], axis=0)
                    for b in range(outputs)
                ]
            )
            to_inputs[layer] = np.array(
                [
                    np.mean([head("backward", h[layer][a, b]) for b in range(outputs)], axis=0)
                    for a in range(inputs)
                ]
            )
        z = np.tanh(forward[:, 1] / 100) * 100
        answers.append(z)
    return np.array(answers)


def loop_nosym(model: VSMLNoSym, x: np.ndarray, prev_y: np.ndarray) -> np.ndarray:
    """Logits of one episode."""
    config, p = model.config, values(model)
    k, size = config.grid, config.messages
    weight = np.concatenate(
        [p["to_output.weight"], p["to_input.weight"], p["recurrent.weight"]], axis=1
    )
    h, c, own, z = np.zeros((k, k, config.hidden)), p["cells"].copy(), np.zeros((k, size)), None
    answers = []
    for t in range(len(x)):
        label = np.zeros(B) if t == 0 else np.eye(B)[prev_y[t]]
        error = np.zeros(B) if t == 0 else softmax(z) - label
        token = np.concatenate([x[t], label])
        forward = (p["embed.weight"] @ token + p["embed.bias"]).reshape(k, size)
        downward = (p["embed_error.weight"] @ error).reshape(k, size)
        for a in range(k):
            for b in range(k):
                received = [downward[b], forward[a], own[a]]
                for _ in range(config.micro_ticks):
                    h[a, b], c[a, b] = lstm(weight, p["to_input.bias"], received, h[a, b], c[a, b])
        own = h.mean(axis=1) @ p["backward_head.weight"].T + p["backward_head.bias"]
        upward = h.mean(axis=0) @ p["forward_head.weight"].T + p["forward_head.bias"]
        z = p["head.weight"] @ upward.flatten() + p["head.bias"]
        answers.append(z)
    return np.array(answers)


def equals_loop(model: SequenceModel, loop: Callable[..., np.ndarray]) -> None:
    x, prev_y = episodes()
    with torch.no_grad():
        logits = model(x, prev_y).numpy()
    for ours, x_one, y_one in zip(logits, x.double().numpy(), prev_y.numpy(), strict=True):
        np.testing.assert_allclose(ours, loop(model, x_one, y_one), atol=1e-5)
    assert np.ptp(logits, axis=1).min() > 1e-3  # steps differ: the comparison sees something


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"layers": 2, "neurons": 4},
        {"layers": 3, "neurons": 2, "layer_norm": True},
        {"layer_norm": True},
        {"self_messages": False},
        {"self_messages": False, "layers": 2, "neurons": 4},
        {"feedback": "error"},
        {"feedback": "label"},
        {"micro_ticks": 1},
        {"micro_ticks": 3},
    ],
    ids=str,
)
def test_equals_a_loop_over_its_lstms(settings):
    equals_loop(small(**settings), loop)


@pytest.mark.parametrize("micro_ticks", [1, 2])
def test_without_symmetries_equals_a_loop_over_its_lstms(micro_ticks):
    equals_loop(small_nosym(micro_ticks=micro_ticks), loop_nosym)


# Gradients


@pytest.mark.parametrize("ticks", [1, 3])
def test_gradient_of_ticks_is_the_finite_difference(ticks):
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 2, 4), (8, 2, 3), (8, 2), (2, 2, 3, 4), (2, 2, 3, 4)]
    tensors = [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in shapes
    ]
    assert torch.autograd.gradcheck(lambda *given: vsml.Ticks.apply(*given, ticks), tensors)


def gradients(model: SequenceModel, x: Tensor, prev_y: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss = functional.cross_entropy(model(x, prev_y).flatten(0, 1), prev_y.clamp(0).flatten())
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "model",
    [
        lambda: small(layers=2, neurons=4),
        lambda: small(layer_norm=True),
        small_nosym,
    ],
    ids=["two layers", "layer norm", "without symmetries"],
)
def test_gradient_of_segments_is_that_of_one_pass(monkeypatch, model):
    """Seven steps in segments of 3, 3 and 1, and that they are used."""
    calls = []
    segment = sequence.checkpoint
    monkeypatch.setattr(
        sequence, "checkpoint", lambda *a, **k: (calls.append(1), segment(*a, **k))[1]
    )
    learner, given = model(), episodes(length=7)
    learner.outer_step = 5
    whole = gradients(learner, *given)
    assert not calls
    monkeypatch.setattr(sequence, "MOST_KEPT", 0)
    parts = gradients(learner, *given)
    assert len(calls) == 3
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-5, rtol=1e-5)
        assert gradient.abs().max() > 0, name


# Symmetries


def permuted(model: VSML, inputs: Tensor, outputs: Tensor) -> VSML:
    """The same weights; initial cells of a permuted grid."""
    other = VSML(model.config, A, B)
    other.load_state_dict(model.state_dict())
    last = model.config.layers - 1
    other.cells_0.copy_(other.cells_0[..., inputs])
    cells = other.get_buffer(f"cells_{last}")
    cells.copy_(cells[:, outputs])
    return other


@pytest.mark.parametrize("settings", [{}, {"layers": 2, "neurons": 4, "layer_norm": True}], ids=str)
@torch.no_grad()
def test_equivariant_to_permuted_classes_and_invariant_to_permuted_inputs(settings):
    model, (x, prev_y) = small(**settings), episodes(length=12)
    logits = model(x, prev_y)
    inputs, outputs = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2, 0, 1])
    same = torch.arange(A), torch.arange(B)
    shuffled = permuted(model, inputs, same[1])(x[..., inputs], prev_y)
    torch.testing.assert_close(shuffled, logits, atol=1e-5, rtol=0)
    renamed = torch.where(prev_y < 0, prev_y, outputs.argsort()[prev_y.clamp(0)])
    relabelled = permuted(model, same[0], outputs)(x, renamed)
    torch.testing.assert_close(relabelled, logits[..., outputs], atol=1e-5, rtol=0)
    # None of this holds by indifference to inputs, labels or cells.
    for other in (model(x[..., inputs], prev_y), model(x, renamed)[..., outputs.argsort()]):
        assert (other - logits).abs().max() > 5e-4


@torch.no_grad()
def test_linear_maps_break_the_symmetries():
    model, (x, prev_y) = small_nosym(), episodes()
    logits = model(x, prev_y)
    renamed = torch.where(prev_y < 0, prev_y, (prev_y + 1) % B)
    assert (model(x.flip(-1), prev_y) - logits).abs().max() > 1e-2
    assert (model(x, renamed).roll(-1, dims=-1) - logits).abs().max() > 1e-2


# As a learner


@pytest.mark.parametrize("model", [small, lambda: small(layers=2, neurons=4), small_nosym])
@torch.no_grad()
def test_step_by_step_equals_one_pass(model):
    learner, (x, prev_y) = model(), episodes(length=12)
    state = learner.begin(len(x))
    answers = []
    for t in range(x.shape[1]):
        logits, state = learner.step(x[:, t], prev_y[:, t], state)
        answers.append(logits)
    torch.testing.assert_close(torch.stack(answers, 1), learner(x, prev_y), atol=1e-4, rtol=1e-4)


def on_digits(kind: str, **settings) -> SequenceModel:
    spec = icl_bench.registry[DIGITS]
    if kind == "vsml":
        config = Config(**{"hidden": 8, "messages": 4} | settings)
        return random_weights(VSML(config, spec.num_features, spec.num_classes))
    config = vsml_nosym.Config(grid=3, hidden=8, messages=4, **settings)
    return random_weights(VSMLNoSym(config, spec.num_features, spec.num_classes))


@pytest.mark.parametrize("kind", ["vsml", "vsml-nosym"])
def test_passes_the_check_of_learners(kind):
    env = icl_bench.make(DIGITS, split="unseen", episode_length=12)
    icl_bench.check_learner(on_digits(kind), env)


def test_an_evaluation_refuses_redrawn_cells():
    learner = on_digits("vsml")

    def redrawn(x: Tensor, prev_y: Tensor) -> Tensor:
        learner.outer_step = (learner.outer_step or 0) + 1
        return learner(x, prev_y)

    env = icl_bench.make(DIGITS, split="unseen", episode_length=12)
    with pytest.raises(LearnerError):
        icl_bench.check_learner(redrawn, env)


def test_overfits_one_task():
    """Four episodes of three examples, with the kept cells: every step right, the first too."""
    rng = np.random.default_rng(2)
    points = torch.from_numpy(rng.standard_normal((B, A), dtype=np.float32))
    order = torch.from_numpy(np.stack([rng.permutation(np.arange(12) % B) for _ in range(4)]))
    prev_y = torch.cat([torch.full((4, 1), -1), order[:, :-1]], dim=1)
    model = build(Config(hidden=8, messages=4), A, B)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    losses = []
    for _ in range(120):
        logits = model(points[order], prev_y)
        losses.append(functional.cross_entropy(logits.flatten(0, 1), order.flatten()))
        optimizer.zero_grad()
        losses[-1].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert abs(losses[0] - np.log(B)) < 0.05
    assert losses[-1] < 0.1
    assert (logits.argmax(dim=-1) == order).all()


# Sizes, against the papers


def build(config: Config, inputs: int, outputs: int) -> VSML:
    """A model with the initial weights of seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return VSML(config, inputs, outputs)


def test_sizes_are_those_of_the_released_code():
    plain = Config(self_messages=False, feedback="label", layers=1)
    for config, count in ((plain, 2384), (dataclasses.replace(plain, layer_norm=True), 2416)):
        model = VSML(config, 784, 10)
        assert sum(p.numel() for p in model.parameters()) == count
        assert model.state_size(100) == 784 * 10 * 16 * 2 == 250_880


def numbers(state: object) -> int:
    if isinstance(state, Tensor):
        return state.numel()
    return sum(map(numbers, state))


@pytest.mark.parametrize("model", [small, lambda: small(layers=3, neurons=2), small_nosym])
def test_state_size_counts_what_is_carried(model):
    learner, (x, prev_y) = model(), episodes(num=1)
    _, state = learner.step(x[:, 0], prev_y[:, 0], learner.begin(1))
    assert learner.state_size(T) == learner.state_size(100) == numbers(state)


# Initial weights and cells


def test_initial_weights_follow_their_law():
    model = build(Config(hidden=64, messages=32), A, B)
    assert all((p == 0).all() for name, p in model.named_parameters() if name.endswith("bias"))
    # Standard deviation of a unit normal cut at 2, and of its square: 0.8796, 0.914 · its variance.
    for weight in (model.gates.weight, model.forward_head.weight, model.self_head.weight):
        scaled = weight.detach() * weight.shape[1] ** 0.5
        assert scaled.abs().max() <= 2
        assert abs(scaled.mean()) < 5 * 0.88 / scaled.numel() ** 0.5
        assert abs(scaled.square().mean() - 0.7737) < 5 * 0.85 / scaled.numel() ** 0.5


def test_initial_cells_follow_their_law():
    model = VSML(Config(), 64, 10)
    model.outer_step = 0
    ((h, c, message),), logits = model.begin(8)
    assert not h.any()
    assert not c[8:].any()
    assert not message.any()
    assert not logits.any()
    for cells in (c[:8], model.cells_0):
        scaled = cells * 64**0.5
        assert scaled.abs().max() <= 2
        assert abs(scaled.mean()) < 5 * 0.88 / scaled.numel() ** 0.5
        assert abs(scaled.square().mean() - 0.7737) < 5 * 0.85 / scaled.numel() ** 0.5


def test_cells_are_redrawn_for_every_outer_step_and_episode():
    model = small(layers=2, neurons=A)

    def cells(outer_step: int | None, seed: int = 0, first: int = 0) -> list[Tensor]:
        model.first_episode = first
        model.config = dataclasses.replace(model.config, seed=seed, batch_size=8)
        model.outer_step = outer_step
        return [c for _, c, _ in model.begin(3)[0]]

    before = torch.get_rng_state()
    draws = [cells(7), cells(8), cells(7, seed=1), cells(7, first=3), cells(None)]
    assert torch.equal(torch.get_rng_state(), before)
    for first in range(len(draws)):
        for second in range(first):
            assert not torch.equal(draws[first][0], draws[second][0])
    assert torch.equal(cells(7)[0], draws[0][0])
    assert torch.equal(cells(7, first=2)[0][:, :1], draws[0][0][:, 2:])  # parts of one batch
    assert not torch.equal(draws[0][0][:, 0], draws[0][0][:, 1])  # two episodes
    first, second = (c.flatten()[:20] for c in draws[0])
    assert not torch.equal(first, second)  # two layers
    kept = draws[-1][0]
    assert torch.equal(kept[:3, 1], model.cells_0)
    assert torch.equal(kept[:, 0], kept[:, 2])


# As a program

FAST = ("--preset", "cpu", "--suite", "digits-v0", "--steps", "2", "--batch-size", "2")
MORE = ("--episode-length", "5", "--hidden", "4", "--eval-every", "0", "--device", "cpu")


@pytest.mark.parametrize("module", [vsml, vsml_nosym])
def test_the_weights_file_alone_gives_the_learner_back(tmp_path, monkeypatch, module):
    learners = []
    monkeypatch.setattr(common, "evaluate_run", lambda _, learner, __: learners.append(learner))
    arguments = [*FAST, *MORE, "--runs", str(tmp_path)]

    def run(config: Config) -> None:
        train.run(config, module.METHOD)

    assert cli.main(run, module.PRESETS, module.METHOD.program, "About.", arguments) == 0
    (folder,) = tmp_path.iterdir()
    with safe_open(folder / "learner.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["learner"])
        config = common.config_from_json(module.Config, json.dumps(about["config"]))
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    fresh = build_model(module.METHOD, dataclasses.replace(config, seed=1))
    initial = build_model(module.METHOD, config).state_dict()
    fresh.load_state_dict(weights)
    x, prev_y = episodes(inputs=64)
    with torch.no_grad():
        expected = learners[0](x, prev_y)
        assert torch.equal(fresh(x, prev_y), expected)
    cells = next(name for name in weights if name.startswith("cells"))
    assert torch.equal(weights[cells], initial[cells])
    assert not torch.equal(weights["forward_head.weight"], initial["forward_head.weight"])


@pytest.mark.parametrize("module", [vsml, vsml_nosym])
def test_presets(module):
    for name, preset in module.PRESETS.items():
        assert preset().preset == name
        preset().check()
    paper = module.paper()
    assert (paper.num_tasks, paper.bias, paper.micro_ticks, paper.messages) == (2**25, 0.9, 2, 8)
    expected = (8, 16) if module is vsml else (128, 64)
    assert (paper.batch_size, paper.hidden) == expected


@pytest.mark.parametrize(
    ("module", "flag"),
    [(vsml, "layers"), (vsml, "micro_ticks"), (vsml, "messages"), (vsml_nosym, "grid")],
)
def test_settings_out_of_range_are_named(module, flag):
    with pytest.raises(ValueError, match=f"--{flag.replace('_', '-')} must be"):
        dataclasses.replace(module.cpu(), **{flag: 0}).check()
