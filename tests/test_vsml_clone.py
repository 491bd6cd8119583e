"""VSML clones backpropagation: exact targets, equal to loops, forward only, resumed bit by bit."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import icl_bench
from baselines import (
    cli,
    common,
    rebuild,
    vsml_clone,
    vsml_clone_es,
    vsml_clone_online,
    vsml_clone_train,
)
from baselines.vsml_clone_grid import SCALE, Backprop, Cell, Config, VSMLClone, send
from baselines.vsml_clone_online import ImageSet, accuracy, learner, live, marks
from baselines.vsml_clone_train import fidelity, loss_at, net_loss, normal, single_loss

ROOT = Path(__file__).resolve().parents[1]
RATE = 0.05
A, H, C = 5, 4, 3  # inputs, neurons, outputs of tiny nets
CPU = torch.device("cpu")
TINY = (
    *("--preset", "cpu", "--suite", "digits-v0", "--online", "Digits", "--device", "cpu"),
    *("--image-size", "4", "--hidden", "4", "--steps", "12", "--batch-size", "128"),
    *("--log-every", "5", "--checkpoint-every", "3", "--copies", "3", "--online-steps", "4"),
    *("--test-images", "20", "--improve-steps", "2", "--episodes", "32"),
)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=gen(seed))


def config(**settings) -> Config:
    return Config(**{"preset": "cpu", "device": "cpu", "rate": RATE} | settings)


def random_cell(hidden: int = 6, ticks: int = 2) -> Cell:
    """All weights at random, so that no bias is left untested."""
    cell = Cell(hidden, ticks)
    with torch.no_grad():
        for i, parameter in enumerate(cell.parameters()):
            parameter.copy_(random(*parameter.shape, seed=i) * 0.5)
    return cell


class Exact(Cell):
    """What a clone should be; mutants change one of its answers."""

    def __init__(self, mutant: str = "") -> None:
        super().__init__(2, 1)
        self.mutant = mutant

    def forward(self, x, e, memory):
        (w, b), t = memory * SCALE, x.tanh()
        y = (x if self.mutant == "linear" else t) * w + b
        back = e * w * (1 if self.mutant == "no derivative" else 1 - t * t)
        step = RATE * torch.stack([e * t, e])
        if self.mutant == "leaks":
            step = step + 0.01 * memory * SCALE
        if self.mutant == "ascends":
            step = -step
        if self.mutant == "no bias":
            step = step * torch.tensor([[1.0], [0.0]])
        return y, back, memory - step / SCALE


# The targets are those of backpropagation


def autograd(
    sizes: list[int], weights: list[Tensor], x: Tensor, e: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Gradients of Σ e · output by PyTorch, for w and b of each layer, and for x."""
    x = x.clone().requires_grad_()
    both = [w.clone().requires_grad_() for w in weights]
    z = x
    for w, b in both:
        z = (w * z.tanh()[:, None] + b).sum(dim=2)
    (z * e).sum().backward()
    return [w.grad for w in both], x.grad


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_what_is_cloned_is_backpropagation(layers):
    sizes = [A, *[H] * (layers - 1), C]
    weights = [random(2, 7, b, a, seed=a + b) for a, b in itertools.pairwise(sizes)]
    net = Backprop(config(layers=layers, neurons=H), A, C)
    x, labels = random(7, A), functional.one_hot(torch.arange(7) % C, C).float()
    memory, values = net.predict(x, ([w / SCALE for w in weights], []))
    e = values[-1].softmax(dim=1) - labels
    gradients, _ = autograd(sizes, weights, x, e)
    memory, _ = net.learn(labels, (memory, values))
    for after, before, gradient in zip(memory, weights, gradients, strict=True):
        torch.testing.assert_close(after * SCALE, before - RATE * gradient, atol=1e-5, rtol=1e-5)
        assert gradient.abs().max() > 0.1


def losses(cell: Cell) -> dict[str, Tensor]:
    x, e, w, b = (random(50, seed=i) for i in range(4))
    weights = [random(2, 3, H, A, seed=5) * 0.4, random(2, 3, C, H, seed=6) * 0.4]
    net = (random(3, A, seed=7), random(3, C, seed=8), weights, RATE)
    return {
        "single": single_loss(cell, x, e, w, b, RATE),
        "given": net_loss(cell, *net, own_errors=False),
        "own": net_loss(cell, *net, own_errors=True),
    }


def test_backpropagation_has_no_loss_in_any_stage():
    for name, parts in losses(Exact()).items():
        assert parts.max() < 1e-8, name


@pytest.mark.parametrize(
    ("mutant", "part"),
    [("linear", 0), ("leaks", 1), ("ascends", 2), ("no bias", 2), ("no derivative", 3)],
)
def test_whatever_differs_has_a_loss_of_its_own(mutant, part):
    found = losses(Exact(mutant))
    for name, parts in found.items():
        assert parts[part] > 1e-3, name
    others = [i for i in range(4) if i != part and not (mutant == "leaks" and i == 2)]
    assert found["single"][others].max() < 1e-8


def test_own_errors_reach_the_lower_layer():
    """A wrong backward message spoils the update below where it is used, and only there."""
    found = losses(Exact("no derivative"))
    assert found["given"][2] < 1e-8
    assert found["own"][2] > 1e-3


def test_the_curriculum_goes_from_connections_to_nets_to_own_errors():
    settings = config(steps=100, curriculum=(0.2, 0.5), batch_size=128)

    def pixels(count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, generator=generator)

    wrong = Exact("no derivative")
    at = [loss_at(settings, wrong, step, pixels, CPU) for step in (19, 20, 49, 50)]
    assert (at[0][2], at[1][2], at[2][2]) == pytest.approx((0, 0, 0), abs=1e-8)
    assert at[3][2] > 1e-3
    assert at[1][3] > 1.2 * at[0][3]  # the nets' loss is added to the connections'


def test_draws_are_named_by_seed_and_step():
    def at(step: int, **settings) -> Tensor:
        seen.clear()
        return loss_at(config(batch_size=32, **settings), cell, step, pixels, CPU).detach()

    def pixels(count: int, generator: torch.Generator) -> Tensor:
        seen.append(torch.randn(count, generator=generator))
        return seen[-1]

    cell, seen = random_cell(), []
    before = torch.get_rng_state()
    first = at(3)
    assert torch.equal(at(3), first)
    assert not torch.equal(at(4), first)
    assert not torch.equal(at(3, seed=1), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_drawn_numbers_have_many_magnitudes():
    found = normal((100_000,), gen()).abs()
    # E[(2 u² n)²] = 4 E[u⁴] = 4 / 5.
    assert abs(found.square().mean() - 0.8) < 0.05
    assert (found < 0.01).float().mean() > 0.05
    assert found.max() > 4


# The grid


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def one_lstm(cell: Cell, x: float, e: float, memory: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both messages and both memory cells of one LSTM, in float64."""
    p = {name: value.double().numpy() for name, value in cell.state_dict().items()}
    units = len(p["bias"]) // 4
    h, c = np.zeros(units), np.zeros(units)
    c[:2] = memory
    for _ in range(cell.ticks):
        gates = p["received"] @ np.array([x, e]) + p["recurrent"] @ h + p["bias"]
        i, g, f, o = np.split(gates, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    return SCALE * (p["heads"] @ h + p["head_bias"]), c[:2]


@pytest.mark.parametrize("ticks", [1, 2, 3])
@pytest.mark.parametrize("at_once", [1, 7, 1000])
@torch.no_grad()
def test_a_layer_equals_a_loop_over_its_lstms(ticks, at_once, monkeypatch):
    monkeypatch.setitem(sys.modules[send.__module__].AT_ONCE, "cpu", at_once)
    cell = random_cell(ticks=ticks)
    x, e, memory = random(2, A), random(2, C, seed=1), random(2, 2, C, A, seed=2)
    upward, downward, after = send(cell, x, e, memory)
    for n in range(2):
        up, down = np.zeros(C), np.zeros(A)
        for a in range(A):
            for b in range(C):
                out, kept = one_lstm(cell, x[n, a], e[n, b], memory[:, n, b, a].numpy())
                up[b] += out[0]
                down[a] += out[1]
                np.testing.assert_allclose(after[:, n, b, a], kept, atol=1e-5)
        np.testing.assert_allclose(upward[n], up, atol=1e-3)
        np.testing.assert_allclose(downward[n], down, atol=1e-3)


def test_w_and_b_begin_as_a_memory():
    cell = Cell(32, 2)
    i, _, f, _ = cell.bias.detach().view(4, 32).sigmoid()
    assert f[:2].min() > 0.9998
    assert i[:2].max() < 0.01
    assert (f[2:] == 0.5).all()


# As a learner


def small(**settings) -> VSMLClone:
    """Random, but its memory lasts."""
    net = VSMLClone(config(hidden=6, **settings), A, C)
    cell = random_cell()
    with torch.no_grad():
        cell.bias.view(4, 6)[2, :2] = 6.0
        cell.heads.mul_(0.02)
        cell.head_bias.zero_()
    net.cell.load_state_dict(cell.state_dict())
    return net


def episodes(length: int = 8) -> tuple[Tensor, Tensor]:
    prev_y = torch.randint(0, C, (2, length), generator=gen())
    prev_y[:, 0] = -1
    return random(2, length, A), prev_y


@pytest.mark.parametrize("layers", [1, 2])
def test_step_by_step_equals_one_pass_without_gradients(layers):
    """Gradients are switched on here, and the weights ask for them."""
    net, (x, prev_y) = small(layers=layers, neurons=H), episodes()
    assert all(p.requires_grad for p in net.parameters())
    state, answers = net.begin(2), []
    for t in range(x.shape[1]):
        logits, state = net.step(x[:, t], prev_y[:, t], state)
        answers.append(logits)
    whole = net(x, prev_y)
    torch.testing.assert_close(torch.stack(answers, 1), whole, atol=1e-5, rtol=1e-5)
    tensors = [whole, *answers, *state[0], *state[1]]
    assert not any(tensor.requires_grad or tensor.grad_fn for tensor in tensors)
    other = net(x, torch.where(prev_y < 0, prev_y, (prev_y + 1) % C))
    assert (other - whole)[:, 1:].abs().max() > 1e-4  # labels matter
    assert torch.equal(other[:, 0], whole[:, 0])


@pytest.mark.parametrize("layers", [1, 3])
def test_state_size_counts_what_is_carried(layers):
    net, (x, prev_y) = small(layers=layers, neurons=H), episodes()
    _, (memory, values) = net.step(x[:1, 0], prev_y[:1, 0], net.begin(1))
    assert net.state_size(100) == sum(t.numel() for t in [*memory, *values])


def test_biases_and_the_last_layer_begin_at_zero_and_others_by_fan_in():
    net = VSMLClone(config(layers=2, neurons=64), 100, C)
    first, last = net.begin(2)[0]
    w, b = first * SCALE
    assert not b.any()
    assert not last.any()
    assert torch.equal(w[0], w[1])
    assert 0.07 < w.std() < 0.1  # 0.88 / √100
    assert not VSMLClone(config(), 100, C).state_dict().keys() & {"weights_0"}


def test_passes_the_check_of_learners():
    env = icl_bench.make("Digits-Proj8-v0", split="unseen", episode_length=6)
    net = VSMLClone(config(hidden=4), 64, 10)
    with torch.no_grad():
        net.cell.heads.mul_(0.1)
    icl_bench.check_learner(net, env)


# Online


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return vsml_clone_online.load("Digits", config(image_size=8, test_images=200), CPU)


def test_images_are_normalised_by_the_training_split(digits):
    assert digits.x.shape == (1297, 64)
    assert digits.test_x.shape == (200, 64)
    assert abs(digits.x.mean()) < 1e-4
    assert abs(digits.x.std() - 1) < 1e-4
    assert digits.test_x.mean() != 0
    assert (digits.y.max(), digits.num_classes) == (9, 10)


@pytest.mark.parametrize("deep", [False, True])
def test_averaged_copies_of_backpropagation_are_minibatch_sgd(digits, deep):
    settings = config(hidden=4, micro_ticks=1, online_gain=0.5)
    net = learner(Backprop, settings, Cell(4, 1), digits, deep)
    shapes = [m[:, 0] * SCALE for m in net.begin(1)[0]]
    weights = [m.clone().requires_grad_() for m in shapes]
    state = net.begin(1)
    for step, (loss, after) in enumerate(live(net, digits, 6, 5, "test")):
        state = after
        key = vsml_clone_online.counter.stream_key("vsml clone online", "test", step)
        chosen = torch.randint(len(digits.y), (6,), generator=gen(key))
        z = digits.x[chosen]
        for w, b in weights:
            z = z.tanh() @ w.T + b.sum(dim=1)
        expected = functional.cross_entropy(z, digits.y[chosen])
        gradients = torch.autograd.grad(expected, weights)
        for w, gradient in zip(weights, gradients, strict=True):
            w.data -= RATE * 0.5 * gradient
        torch.testing.assert_close(loss, expected.detach(), atol=1e-4, rtol=1e-4)
    for m, w in zip(state[0], weights, strict=True):
        torch.testing.assert_close(m[:, 0] * SCALE, w.detach(), atol=1e-4, rtol=1e-4)


def test_nothing_is_learned_before_the_first_label():
    net = Backprop(config(hidden=4, micro_ticks=1), A, C)
    state = net.begin(2)
    after, _ = net.learn(torch.zeros(2, C), state)
    assert all(torch.equal(a, b) for a, b in zip(after, state[0], strict=True))
    after, _ = net.learn(torch.eye(C)[:2], state)
    assert not all(torch.equal(a, b) for a, b in zip(after, state[0], strict=True))


def test_backpropagation_learns_digits_and_testing_changes_nothing(digits):
    net = learner(Backprop, config(hidden=4, micro_ticks=1), Cell(4, 1), digits, deep=False)
    for _, state in live(net, digits, 32, 60, "test"):
        kept = [m.clone() for m in state[0]]
    assert accuracy(net, digits, state) > 0.8
    assert accuracy(net, digits, net.begin(1)) < 0.2
    assert all(torch.equal(a, b) for a, b in zip(state[0], kept, strict=True))


def test_online_learning_takes_no_gradients(digits):
    net = learner(VSMLClone, config(hidden=4), Cell(4, 2), digits, deep=True)
    assert not any(t.requires_grad for t in net.state_dict(keep_vars=True).values())
    for loss, (memory, values) in live(net, digits, 2, 2, "test"):
        assert not any(t.requires_grad or t.grad_fn for t in (loss, *memory, *values))
        assert memory[0].shape[1] == 1


def test_marks():
    assert marks(1) == [1]
    assert marks(60) == [1, 2, 5, 10, 20, 50, 60]
    assert marks(200) == [1, 2, 5, 10, 20, 50, 100, 200]


# Cloning


def test_fidelity_tells_right_from_wrong():
    exact = fidelity(Exact(), RATE)
    assert exact.pop("cosine") == pytest.approx(1, abs=1e-5)
    assert max(exact.values()) < 1e-4
    assert fidelity(Exact("linear"), RATE)["forward"] > 0.03
    assert fidelity(Exact("leaks"), RATE)["drift"] > 0.1
    assert fidelity(Exact("ascends"), RATE)["cosine"] < -0.99
    assert fidelity(Exact("ascends"), RATE)["update"] == pytest.approx(2, abs=1e-3)
    assert fidelity(Exact("no derivative"), RATE)["backward"] > 0.3


@pytest.fixture
def quick(monkeypatch) -> list[nn.Module]:
    """Episodes are left out; the learners that would have been evaluated."""
    learners: list[nn.Module] = []
    monkeypatch.setattr(common, "evaluate_run", lambda _, net, __: learners.append(net))
    return learners


def run(*arguments: str | Path) -> int:
    method = vsml_clone.METHOD
    return cli.main(
        vsml_clone.run, vsml_clone.PRESETS, method.program, "About.", [str(a) for a in arguments]
    )


def new(folder: Path, *arguments: str, status: int = 0) -> Path:
    assert run(*TINY, *arguments, "--runs", folder) == status
    (path,) = folder.iterdir()
    return path


def lines(path: Path) -> list[dict]:
    found = common.JsonlLog(path / "metrics.jsonl").read()
    return [
        {k: v for k, v in line.items() if k != "wall_s"}
        for line in found
        if line["event"] != "open"
    ]


def assert_same(resumed: Path, whole: Path) -> None:
    def weights(path: Path) -> dict[str, bytes]:
        tensors = load_file(path / "learner.safetensors")
        return {name: value.numpy().tobytes() for name, value in tensors.items()}

    assert weights(resumed) == weights(whole)
    assert lines(resumed) == lines(whole)


def test_a_run_leaves_its_log_weights_and_plots(tmp_path, quick):
    path = new(tmp_path / "runs")
    assert {p.name for p in path.iterdir()} == {
        *("config.json", "meta.json", "metrics.jsonl", "learner.safetensors"),
        *("forward.png", "online.png", "resume.pt", "resume.previous.pt", "results"),
    }
    log = lines(path)
    assert [line["step"] for line in log if line["event"] == "clone"] == [5, 10, 12]
    online = [line for line in log if line["event"] == "online"]
    assert [(line["deep"], line["learner"]) for line in online] == [
        *((False, "cloned"), (False, "SGD"), (True, "cloned"), (True, "SGD"))
    ]
    assert all(line["seen"] == [3, 6, 12] for line in online)
    entry = json.loads((path / "meta.json").read_text())["entry"]
    assert (entry["name"], entry["meta_train"]) == ("vsml-clone", None)
    assert entry["parameters"] == 16 * (2 + 4 + 1) + 2 * 5
    assert entry["external_data"] == "none"
    assert "--hidden 4" in entry["code"]
    assert "--online-steps" not in entry["code"]
    x, prev_y = random(2, 5, 64), torch.tensor([[-1, 1, 2, 3, 4]] * 2)
    rebuilt = rebuild.load_learner(path / "learner.safetensors")
    assert torch.equal(rebuilt(x, prev_y), quick[0](x, prev_y))


def test_pixels_of_images_can_take_the_place_of_random_inputs(tmp_path, quick):
    paths = [
        new(tmp_path / data, "--data", data, "--online-steps", "1") for data in ("random", "images")
    ]
    first, second = (
        [line["forward"] for line in lines(path) if line["event"] == "clone"] for path in paths
    )
    assert first != second
    entry = json.loads((paths[1] / "meta.json").read_text())["entry"]
    assert entry["external_data"] == "training images of Digits"
    assert "--data images" in entry["code"]


def test_a_clone_learns(tmp_path, quick):
    """Within seconds the forward function is there, and the error goes down the gradient."""
    more = ("--hidden", "32", "--batch-size", "384", "--steps", "300", "--curriculum", "1", "1")
    path = new(tmp_path, *more, "--online-steps", "1")
    (found,) = [line for line in lines(path) if line["event"] == "fidelity"]
    assert found["forward"] < 0.05
    assert found["cosine"] > 0.8


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_a_checkpoint_and_the_run_goes_on(
    tmp_path, quick, monkeypatch, capsys, stop
):
    whole = new(tmp_path / "whole")

    def interrupted(config, cell, step, *rest):
        if step == 7:
            os.kill(os.getpid(), stop)
        return loss_at(config, cell, step, *rest)

    monkeypatch.setattr(vsml_clone_train, "loss_at", interrupted)
    path = new(tmp_path / "stopped", status=130)
    assert f"go on with: {vsml_clone.METHOD.program} --resume {path}" in capsys.readouterr().err
    assert torch.load(path / "resume.pt", weights_only=True)["step"] == 8
    monkeypatch.setattr(vsml_clone_train, "loss_at", loss_at)
    assert run("--resume", path) == 0
    assert_same(path, whole)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(tmp_path, quick):
    """A real process and a real SIGKILL, somewhere in the cloning."""
    longer = ("--steps", "150", "--log-every", "20", "--checkpoint-every", "5")
    process = subprocess.Popen(
        [sys.executable, "-m", "baselines.vsml_clone", *TINY, *longer, "--runs", tmp_path / "one"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "one").glob("*/resume.previous.pt")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    (path,) = (tmp_path / "one").iterdir()
    assert not (path / "learner.safetensors").exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert run("--resume", path) == 0
        assert_same(path, new(tmp_path / "two", *longer))
    finally:
        torch.set_num_threads(threads)


def test_a_loss_that_is_not_finite_stops_with_its_step(tmp_path, quick, monkeypatch, capsys):
    def broken(config, cell, step, *rest):
        return loss_at(config, cell, step, *rest) * (np.nan if step == 6 else 1)

    monkeypatch.setattr(vsml_clone_train, "loss_at", broken)
    path = new(tmp_path, status=2)
    shown = capsys.readouterr().err
    assert "not finite at step 7" in shown
    assert shown.count("\n") == 1
    assert torch.load(path / "resume.pt", weights_only=True)["step"] == 6
    assert not (path / "learner.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "0"], "--rate must be above 0"),
        (["--lr", "-1"], "--lr must be above 0"),
        (["--gain", "nan"], "--gain must be above 0"),
        (["--improve-std", "0"], "--improve-std must be above 0"),
        (["--hidden", "1"], "--hidden must be 2 or more"),
        (["--copies", "0"], "--copies must be 1 or more"),
        (["--image-size", "0"], "--image-size must be 1 or more"),
        (["--improve", "-1"], "--improve must be 0 or more"),
        (["--curriculum", "0.8", "0.6"], "--curriculum must be two ascending shares"),
        (["--online", "MNISTT"], "unknown data set 'MNISTT'; did you mean MNIST?"),
        (["--online", "Random"], "--online must be a data set of images"),
        (["--online", "SVHN"], "SVHN is not at hand"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_settings_are_named_before_anything_is_written(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.delenv("ICL_BENCH_DATA", raising=False)
    assert run(*TINY, *arguments, "--runs", tmp_path / "runs") == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_presets():
    for name, preset in vsml_clone.PRESETS.items():
        assert preset().preset == name
        preset().check()
    paper = vsml_clone.paper()
    assert (paper.hidden, paper.lr, paper.rate) == (32, 5e-3, 1e-3)
    assert (paper.steps, paper.batch_size, paper.copies) == (1_000_000, 768, 64)
    assert (paper.improve_std, paper.image_size) == (0.1, 28)


# CMA-ES


def test_without_cmaes_the_way_to_it_is_said_and_nothing_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cmaes", None)
    assert run(*TINY, "--improve", "1", "--runs", tmp_path / "runs") == 2
    assert "pip install icl-bench[es]" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_cma_es_goes_on_where_it_was_stopped(tmp_path, quick, monkeypatch):
    pytest.importorskip("cmaes")
    whole = new(tmp_path / "whole", "--improve", "3")
    events = [line["event"] for line in lines(whole)]
    assert events.count("improve") == 3
    calls = []

    def stopping(*arguments):
        calls.append(arguments)
        if len(calls) == 40:  # in the second generation or later
            os.kill(os.getpid(), signal.SIGINT)
        return fitness(*arguments)

    fitness = vsml_clone_es.fitness
    monkeypatch.setattr(vsml_clone_es, "fitness", stopping)
    path = new(tmp_path / "stopped", "--improve", "3", status=130)
    done = [line["generation"] for line in lines(path) if line["event"] == "improve"]
    assert done
    assert len(done) < 3
    before = len(calls)
    assert run("--resume", path) == 0
    assert len(calls) - before < 3 * len(calls) / 4  # finished generations are not lived again
    assert_same(path, whole)


def test_cma_es_improves_online_learning(tmp_path, digits):
    """From random weights, as any change helps there; losses on fresh examples decide."""
    pytest.importorskip("cmaes")
    settings = config(hidden=2, micro_ticks=1, copies=4, improve=12, improve_std=0.3)
    settings = dataclasses.replace(settings, improve_steps=3)
    cell = Cell(2, 1)
    log = common.JsonlLog(tmp_path / "metrics.jsonl")
    folder = common.RunFolder(tmp_path, settings, log, CPU)
    before = {name: value.clone() for name, value in cell.state_dict().items()}
    net = learner(VSMLClone, settings, cell, digits, deep=False)
    at_first = vsml_clone_es.fitness(net, digits, settings, "check")
    vsml_clone_es.improve(settings, cell, digits, folder, 0.0)
    (line,) = [line for line in log.read() if line["event"] == "improved"]
    changed = any(not torch.equal(v, before[name]) for name, v in cell.state_dict().items())
    assert changed
    assert line["after"] < line["before"] - 0.02
    assert line["before"] == at_first
    net = learner(VSMLClone, settings, cell, digits, deep=False)
    assert vsml_clone_es.fitness(net, digits, settings, "check") == line["after"]


def test_cma_es_keeps_the_clone_where_it_found_nothing_better(tmp_path, digits, monkeypatch):
    pytest.importorskip("cmaes")
    settings = config(hidden=2, micro_ticks=1, copies=2, improve=2, improve_steps=2)
    cell = random_cell(2, 1)
    folder = common.RunFolder(tmp_path, settings, common.JsonlLog(tmp_path / "log"), CPU)
    before = {name: value.clone() for name, value in cell.state_dict().items()}
    checks = iter([1.0, 2.0])  # of the clone, and of what was found
    fitness = vsml_clone_es.fitness

    def worse(*args) -> float:
        return next(checks) if args[-1] == "check" else fitness(*args)

    monkeypatch.setattr(vsml_clone_es, "fitness", worse)
    vsml_clone_es.improve(settings, cell, digits, folder, 0.0)
    assert all(torch.equal(v, before[name]) for name, v in cell.state_dict().items())
    assert next(checks, None) is None


def test_fitness_of_a_learner_that_diverges_is_a_number(digits):
    net = learner(VSMLClone, config(hidden=4), Cell(4, 2), digits, deep=False)
    net.cell.head_bias.fill_(torch.nan)
    assert vsml_clone_es.fitness(net, digits, config(copies=2, improve_steps=2), 0) == 1e3
