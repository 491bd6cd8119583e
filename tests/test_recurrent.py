"""LSTM and outer-product LSTM: equal to loops in NumPy, step by step as in one pass, trainable."""

import importlib
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import icl_bench
from baselines import cli, lstm, outer_lstm, sequence, train, vsml, vsml_nosym
from baselines.sequence import SequenceModel, build_model
from icl_bench.episodes import one_hot_labels
from icl_bench.evaluation.learner import LearnerError

DIGITS = "Digits-Proj8-v0"
BOTH = pytest.mark.parametrize("module", [lstm, outer_lstm], ids=["lstm", "outer-lstm"])
SMALL = {lstm: {"hidden": 16}, outer_lstm: {"heads": 2, "size": 6}}


def build(module: ModuleType, **settings) -> SequenceModel:
    config = module.Config(**{"env": DIGITS, "device": "cpu"} | SMALL[module] | settings)
    return build_model(module.METHOD, config)


def jolt(model: nn.Module) -> nn.Module:
    """Every parameter moved off its initial value, so that none can be forgotten unseen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.3 * noise)
    return model


@pytest.fixture(scope="module")
def batch() -> icl_bench.EpisodeBatch:
    return icl_bench.make(DIGITS, split="unseen").unwrapped.episodes(range(4))


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def weights_of(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: p.double().numpy() for name, p in model.state_dict().items()}


def tokens_of(x: Tensor, prev_y: Tensor) -> np.ndarray:
    return torch.cat([x, one_hot_labels(prev_y, 10)], dim=-1).double().numpy()


def lstm_loop(model: SequenceModel, x: Tensor, prev_y: Tensor) -> np.ndarray:
    """One episode at a time, one gate at a time (Hochreiter & Schmidhuber 1997, with a forget
    gate)."""
    w = weights_of(model)
    size = w["lstm.weight_hh_l0"].shape[1]
    answers = []
    for tokens in tokens_of(x, prev_y):
        h, c = np.zeros(size), np.zeros(size)
        for token in tokens:
            i, f, g, o = (
                w["lstm.weight_ih_l0"][rows] @ token
                + w["lstm.bias_ih_l0"][rows]
                + w["lstm.weight_hh_l0"][rows] @ h
                + w["lstm.bias_hh_l0"][rows]
                for rows in (slice(n * size, (n + 1) * size) for n in range(4))
            )
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            answers.append(w["head.weight"] @ h + w["head.bias"])
    return np.reshape(answers, (*x.shape[:2], 10))


def outer_lstm_loop(
    model: SequenceModel,
    x: Tensor,
    prev_y: Tensor,
    *,
    forget_offset: float = 1.0,
    transpose: bool = False,
    squash: bool = False,
    scale_power: int = 1,
) -> np.ndarray:
    """Number by number, from the equations of Kirsch et al. 2022, appendix A.3.

    The options are mistakes that the comparison must see.
    """
    w = weights_of(model)
    heads, size = model.config.heads, model.config.size
    s = np.log1p(np.exp(w["scale"])) ** scale_power
    linear = np.concatenate([w["input.weight"], w["recurrent.weight"]], axis=1)
    answers = []
    for tokens in tokens_of(x, prev_y):
        cells = np.zeros((heads, size, size))
        h = np.zeros((heads, size))
        for token in tokens:
            z = linear @ np.concatenate([token, h.ravel()]) + w["input.bias"]
            for head in range(heads):
                mine = z[head * 8 * size : (head + 1) * 8 * size]
                k1, k2 = mine[: 3 * size].reshape(3, size), mine[3 * size : 6 * size]
                k2 = k2.reshape(3, size)
                q, o = mine[6 * size : 7 * size], mine[7 * size :]
                for a in range(size):
                    for b in range(size):
                        i, g, f = (s * np.tanh(k1[j, a]) * np.tanh(k2[j, b]) for j in range(3))
                        g = np.tanh(g) if squash else g
                        cells[head, a, b] = (
                            sigmoid(f + forget_offset) * cells[head, a, b] + sigmoid(i) * g
                        )
                cell = cells[head].T if transpose else cells[head]
                read = [sum(cell[a, b] * q[a] for a in range(size)) for b in range(size)]
                h[head] = sigmoid(o) * np.tanh(read)
            answers.append(w["head.weight"] @ h.ravel() + w["head.bias"])
    return np.reshape(answers, (*x.shape[:2], 10))


@torch.no_grad()
def test_lstm_equals_a_loop_in_numpy(batch):
    model = jolt(build(lstm, hidden=16))
    x, prev_y = batch.x[:, :20], batch.prev_y[:, :20]
    expected = lstm_loop(model, x, prev_y)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(model(x, prev_y), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_outer_lstm_equals_a_loop_in_numpy(batch):
    model = jolt(build(outer_lstm, heads=2, size=3))
    x, prev_y = batch.x[:, :5], batch.prev_y[:, :5]
    expected = outer_lstm_loop(model, x, prev_y)
    np.testing.assert_allclose(model(x, prev_y), expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    "mistake",
    [{"forget_offset": 0.0}, {"transpose": True}, {"squash": True}, {"scale_power": 2}],
    ids=lambda value: next(iter(value)),
)
def test_the_loop_in_numpy_sees_mistakes(batch, mistake):
    model = jolt(build(outer_lstm, heads=2, size=3))
    x, prev_y = batch.x[:, :5], batch.prev_y[:, :5]
    wrong = outer_lstm_loop(model, x, prev_y, **mistake)
    assert np.abs(model(x, prev_y).numpy() - wrong).max() > 1e-3


def test_first_scale_is_that_of_the_paper():
    model = build(outer_lstm)
    assert model.scale.shape == ()  # one, for all heads
    assert model.scale.item() == 0.0  # s = softplus(0) = log 2


@BOTH
@torch.no_grad()
def test_step_by_step_equals_one_pass(module, batch):
    model = jolt(build(module))
    expected = model(batch.x, batch.prev_y)
    state, answers = model.begin(len(batch)), []
    for t in range(batch.x.shape[1]):
        logits, state = model.step(batch.x[:, t], batch.prev_y[:, t], state)
        answers.append(logits)
    torch.testing.assert_close(torch.stack(answers, dim=1), expected, atol=1e-4, rtol=0)
    model.step(batch.x[:, 0], batch.prev_y[:, 0], model.begin(len(batch)))
    again = model.step(batch.x[:, 0], batch.prev_y[:, 0], model.begin(len(batch)))[0]
    assert torch.equal(again, answers[0])  # an episode leaves nothing for the next


@BOTH
def test_state_holds_as_many_numbers_as_are_told(module):
    model = build(module)
    state = model.begin(3)
    for _ in range(2):
        assert sum(part.numel() for part in state) == 3 * model.state_size(100)
        _, state = model.step(torch.zeros(3, 64), torch.full((3,), -1), state)


@BOTH
def test_passes_the_check_of_learners(module):
    icl_bench.check_learner(jolt(build(module)).eval(), DIGITS)


class SharedState(lstm.LSTM):
    """The second episode of a batch begins where the first one ends."""

    def forward(self, x, prev_y):
        after = self.steps(x[:1], prev_y[:1], self.begin(1))[1]
        state = tuple(part.expand(-1, len(x), -1).contiguous() for part in after)
        return self.steps(x, prev_y, state)[0]


class Reversed(outer_lstm.OuterLSTM):
    """Reads the episode from its end."""

    def forward(self, x, prev_y):
        return super().forward(x.flip(1), prev_y.flip(1)).flip(1)


@pytest.mark.parametrize(
    ("mutant", "reason"),
    [
        (SharedState(lstm.Config(hidden=16), 64, 10), "other episodes of its batch"),
        (Reversed(outer_lstm.Config(heads=2, size=4), 64, 10), "later inputs"),
    ],
    ids=["shared state", "reversed"],
)
def test_wrong_variants_are_refused(mutant, reason):
    with pytest.raises(LearnerError, match=reason):
        icl_bench.check_learner(jolt(mutant), DIGITS)


def test_computing_again_gives_the_same_gradients(batch, monkeypatch):
    """Of 25 steps, in segments of 5, against one pass that keeps everything."""
    calls, segment = [], sequence.checkpoint

    def counted(function, x, *args, **kwargs):
        calls.append(x.shape[1])
        return segment(function, x, *args, **kwargs)

    def gradients() -> dict[str, Tensor]:
        model = jolt(build(outer_lstm))
        logits = model(batch.x[:, :25], batch.prev_y[:, :25])
        functional.cross_entropy(logits.flatten(0, 1), batch.y[:, :25].flatten()).backward()
        return {name: p.grad for name, p in model.named_parameters()}

    monkeypatch.setattr(sequence, "checkpoint", counted)
    whole = gradients()
    assert not calls
    monkeypatch.setattr(sequence, "MOST_KEPT", 0)
    for name, gradient in gradients().items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(whole[name], gradient, atol=1e-6, rtol=1e-5)
    assert calls == [5] * 5


def kept_numbers(model: SequenceModel, length: int) -> int:
    """Numbers that autograd keeps of a pass over 8 episodes, each tensor's storage once."""
    sizes = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        kept.append(tensor)
        return tensor

    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(torch.randn(8, length, 64), torch.zeros(8, length, dtype=torch.int64))
    del out
    return sum(sizes.values())


@pytest.mark.parametrize(
    "model",
    [
        outer_lstm.OuterLSTM(outer_lstm.Config(heads=2, size=32), 64, 10),
        vsml.VSML(vsml.Config(), 64, 10),
        vsml_nosym.VSMLNoSym(vsml_nosym.Config(grid=4), 64, 10),
    ],
    ids=lambda model: type(model).__name__,
)
def test_what_a_step_keeps_is_stated_right(model):
    kept = (kept_numbers(model, 12) - kept_numbers(model, 4)) / 8
    assert 0.8 * kept < model.kept_by_step(8) < 1.3 * kept, kept / 8


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_sizes_of_the_paper_counted_by_hand():
    """3072 pixels and 10 classes."""
    paper = build_model(lstm.METHOD, lstm.paper())
    # Four gates of 256, each from 3082 inputs, 256 hidden numbers and two biases; the head.
    assert parameters(paper) == 4 * 256 * (3082 + 256 + 2) + 256 * 10 + 10 == 3_422_730
    assert paper.state_size(100) == paper.state_size(1000) == 512
    outer = build_model(outer_lstm.METHOD, outer_lstm.paper())
    # Four heads of 8 · 64 numbers, each from 3082 inputs, 256 hidden numbers and a bias; the
    # scale; the head.
    assert parameters(outer) == 4 * 8 * 64 * (3082 + 256 + 1) + 1 + 2570 == 6_840_843
    assert outer.state_size(100) == outer.state_size(1000) == 4 * 64 * 64 + 256 == 16_640


@BOTH
def test_first_weights_keep_to_their_law(module):
    model = build(module, env="MNIST-Proj-v0", **{"hidden": 64} if module is lstm else {"size": 32})
    std = (3082 + 64) ** -0.5
    for name, values in model.state_dict().items():
        if name in ("head.weight", "head.bias", "scale"):
            continue
        if name.endswith("weight") or name.startswith("lstm.weight"):
            # Truncated at two standard deviations: 0.8796 of the untruncated one.
            assert values.abs().max() <= 2 * std
            error = 5 * 0.8796 * std / values.numel() ** 0.5
            assert abs(values.mean()) < error
            assert abs(values.std() - 0.8796 * std) < error
        elif name == "lstm.bias_ih_l0":
            forget = torch.zeros(4, 64)
            forget[1] = 1.0
            assert torch.equal(values, forget.flatten())
        else:
            assert not values.any()


@BOTH
def test_seed_names_the_first_weights(module):
    first, again, other = (weights_of(build(module, seed=seed)) for seed in (1, 1, 2))
    assert all((first[name] == again[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)


@BOTH
def test_overfits_one_task(module):
    """One projection, one permutation: the network may keep the classes in its weights."""
    sizes = {"hidden": 32} if module is lstm else {"heads": 2, "size": 8}
    config = module.Config(
        env=DIGITS,
        device="cpu",
        num_tasks=1,
        bias=0.0,
        episode_length=12,
        batch_size=16,
        steps=60,
        lr=1e-2,
        clip=1.0,
        **sizes,
    )
    config.check()
    model = build_model(module.METHOD, config)
    made = icl_bench.make(DIGITS, split="train", **config.meta_train_kwargs()).unwrapped
    fresh = made.episodes(range(10**6, 10**6 + 64))  # the same task, other draws
    before, _ = last_steps(model, fresh)
    assert before == pytest.approx(np.log(10), abs=0.3)
    train.train(config, model, made, None)
    loss, accuracy = last_steps(model, fresh)
    assert loss < 0.3 * np.log(10)
    assert accuracy > 0.8


@torch.no_grad()
def last_steps(model: SequenceModel, batch: icl_bench.EpisodeBatch) -> tuple[float, float]:
    """Loss and accuracy at the last five steps."""
    logits, y = model(batch.x, batch.prev_y)[:, -5:], batch.y[:, -5:]
    loss = functional.cross_entropy(logits.flatten(0, 1), y.flatten())
    return loss.item(), (logits.argmax(-1) == y).double().mean().item()


@BOTH
def test_presets(module):
    assert module.Config() == module.paper()
    for name, preset in module.PRESETS.items():
        assert preset().preset == name
        preset().check()
    best = module.paper()  # Kirsch et al. 2022, appendix A.4
    assert (best.batch_size, best.num_tasks, best.bias, best.steps) == (128, 2**25, 0.9, 100_000)
    assert (best.env, best.repeat, best.optimizer) == ("MNIST-Proj-v0", 0.0, "adam")
    small = module.cpu()
    assert (small.env, small.num_tasks, small.bias) == ("MNIST-Proj8-v0", None, 0.0)
    assert small.repeat > small.repeat_end > 0


@BOTH
def test_program_is_the_module(module):
    program = module.METHOD.program.split()[-1]
    assert importlib.import_module(program) is module


@pytest.mark.parametrize(
    ("module", "flag"), [(lstm, "--hidden"), (outer_lstm, "--heads"), (outer_lstm, "--size")]
)
def test_bad_sizes_are_one_clear_line(module, flag, capsys):
    run: Callable = lambda config: train.run(config, module.METHOD)  # noqa: E731
    assert cli.main(run, module.PRESETS, module.METHOD.program, "", [flag, "0"]) == 2
    assert capsys.readouterr().err == f"error: {flag} must be 1 or more, not 0\n"
