"""The outer loop: resumed runs have the bits of uninterrupted ones, and every stop says why."""

import contextlib
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import icl_bench
from baselines import checkpoint, cli, gpicl, monitor, optim, sequence, train, vsml
from baselines.common import JsonlLog
from baselines.sequence import Method, build_model
from icl_bench.evaluation.protocol import EXTENDED_EPISODES

ROOT = Path(__file__).resolve().parents[1]
DIGITS = "Digits-Proj8-v0"
# 20 steps; logs at 6, 12, 18, 20, curves at 10, 20, checkpoints at 7, 14, 20.
TINY = (
    *("--suite", "digits-v0", "--env", DIGITS, "--device", "cpu", "--episodes", "32"),
    *("--width", "16", "--layers", "1", "--heads", "2", "--episode-length", "12"),
    *("--steps", "20", "--batch-size", "8", "--num-tasks", "64", "--eval-episodes", "16"),
    *("--log-every", "6", "--eval-every", "10", "--checkpoint-every", "7"),
)
# Everything that depends on the number of the step, and that a checkpoint could forget.
SCHEDULED = (
    *("--repeat", "0.9", "--repeat-end", "0.6", "--repeat-steps", "3", "17", "--warmup", "4"),
    *("--decay", "cosine", "--clip", "1", "--weight-decay", "0.1", "--accumulate", "2"),
)

Act = Callable[[Tensor], Tensor]


def method(at: Mapping[int, Act]) -> Method:
    """GPICL whose logits go through a function at some outer steps (0-based), once each."""
    left = dict(at)

    class Acting(gpicl.GPICL):
        def forward(self, x, prev_y):
            logits = super().forward(x, prev_y)
            act = left.pop(self.outer_step, None) if self.training else None
            return logits if act is None else act(logits)

    return dataclasses.replace(gpicl.METHOD, build=Acting)


def run(*arguments: str | Path, at: Mapping[int, Act] | None = None) -> int:
    return cli.main(
        lambda config: train.run(config, method(at or {})),
        gpicl.PRESETS,
        gpicl.METHOD.program,
        "About.",
        [str(a) for a in arguments],
    )


def new(folder: Path, *arguments: str, at: Mapping[int, Act] | None = None, status: int = 0):
    """A tiny run in a folder of its own; its path."""
    assert run(*TINY, *arguments, "--runs", folder, at=at) == status
    (path,) = folder.iterdir()
    return path


def parse(*arguments: str) -> gpicl.Config:
    return cli.parse(gpicl.PRESETS, gpicl.METHOD.program, "About.", [*TINY, *arguments])


def send(*numbers: int) -> Act:
    def act(logits: Tensor) -> Tensor:
        for number in numbers:
            os.kill(os.getpid(), number)
        return logits

    return act


def weights(path: Path) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in load_file(path / "learner.safetensors").items()}


def lines(path: Path, *events: str) -> list[dict]:
    """Lines of the log without what is another at every run."""
    times = {"wall_s", "seconds", "tokens_per_s"}
    found = JsonlLog(path / "metrics.jsonl").read()
    return [
        {k: v for k, v in line.items() if k not in times}
        for line in found
        if line["event"] in events
    ]


def newest_step(path: Path) -> int:
    state = checkpoint.load(path)
    assert state is not None
    return state["step"]


def assert_same_run(resumed: Path, whole: Path) -> None:
    assert weights(resumed) == weights(whole)
    kinds = ("train", "eval", "result")
    assert lines(resumed, *kinds) == lines(whole, *kinds)
    for result in (whole / "results").iterdir():
        assert (resumed / "results" / result.name).read_bytes() == result.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    return new(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copied"))


# What a run leaves behind


def test_a_run_leaves_its_log_weights_results_and_checkpoints(whole):
    names = {path.name for path in whole.iterdir()}
    assert names == {
        *("config.json", "meta.json", "metrics.jsonl", "learner.safetensors", "results"),
        *("learning_curve.png", "resume.pt", "resume.previous.pt"),
    }
    assert [line["step"] for line in lines(whole, "train")] == [6, 12, 18, 20]
    curves = [(line["step"], line["on"]) for line in lines(whole, "eval")]
    others = ["val", "unseen", *(env for env in icl_bench.cross(DIGITS) if "Random" in env)]
    assert [pair for pair in curves if pair[1] in others] == [
        (s, on) for s in (10, 20) for on in others
    ]
    assert all(len(line["curve"]) == 12 for line in lines(whole, "eval"))
    assert newest_step(whole) == 20
    meta = json.loads((whole / "meta.json").read_text())["entry"]
    assert meta["meta_train"] == DIGITS
    assert meta["meta_train_kwargs"]["num_tasks"] == 64
    assert meta["parameters"] == sum(
        v.numel() for v in load_file(whole / "learner.safetensors").values()
    )
    assert meta["state_size"] == 2 * 16 * 12


def test_evaluation_has_the_length_of_meta_training(whole):
    """Learned positions end there: with 100 steps a run would fail when all is trained."""
    for path in (whole / "results").iterdir():
        assert icl_bench.Result.load(path).episode_length == 12
    assert parse().evaluation_kwargs() == {"episode_length": 12}
    assert gpicl.paper().evaluation_kwargs() == {}


def test_the_logged_loss_is_the_mean_over_episodes_and_steps(tmp_path):
    """Eq. 2, in NumPy, from the initial weights."""
    path = new(tmp_path, "--steps", "1", "--log-every", "1")
    (line,) = lines(path, "train")
    config = parse()
    net = build_model(gpicl.METHOD, config)
    source = icl_bench.make(DIGITS, num_tasks=64, bias=0.9, episode_length=12, seed=0).unwrapped
    batch = source.episodes(range(8))
    with torch.no_grad():
        logits = net(batch.x, batch.prev_y).double().numpy()
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = -np.take_along_axis(log_p, batch.y.numpy()[..., None], axis=-1)[..., 0]
    assert line["loss"] == pytest.approx(loss.mean(), rel=1e-5)
    assert line["loss_first"] == pytest.approx(loss[:, 0].mean(), rel=1e-5)
    assert line["loss_last"] == pytest.approx(loss[:, -1].mean(), rel=1e-5)
    assert abs(loss[:, 0].mean() - loss[:, -1].mean()) > 1e-4


def test_a_logged_loss_is_the_mean_since_the_line_before(tmp_path, whole):
    every = new(tmp_path, "--log-every", "1")
    losses = [line["loss"] for line in lines(every, "train")]
    assert len(losses) == 20
    expected = [np.mean(losses[a:b]) for a, b in ((0, 6), (6, 12), (12, 18), (18, 20))]
    assert [line["loss"] for line in lines(whole, "train")] == pytest.approx(expected, rel=1e-6)
    assert weights(every) == weights(whole)


def test_learns(tmp_path):
    """One task by heart, from log 10 = 2.30 on."""
    settings = ("--num-tasks", "1", "--steps", "200", "--lr", "0.01", "--log-every", "2")
    path = new(tmp_path, *settings, "--eval-every", "0", "--checkpoint-every", "200")
    losses = [line["loss"] for line in lines(path, "train")]
    assert abs(losses[0] - np.log(10)) < 0.1
    assert np.mean(losses[-5:]) < 1.5


def by_hand(config: gpicl.Config, wrong: str = "") -> list[Tensor]:
    """Weights after a plain loop of Adam or sign updates, with one thing done wrong."""
    model = build_model(gpicl.METHOD, config)
    source = icl_bench.make(DIGITS, split="train", **config.meta_train_kwargs()).unwrapped
    parameters = list(model.parameters())
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    eps = 1e-8 if wrong == "eps" else 1e-3
    beta = 0.9 if wrong == "momentum" else 0.6
    for step in range(8):
        share = (0.9, 0.9, 0.45, 0.0)[min(step, 3)]
        lr = 0.01 * (step + 1) / 4 if step < 4 else 0.005 * (1 + np.cos(np.pi * (step - 4) / 4))
        batch = source.episodes(
            range(8 * step, 8 * step + 8), repeat=0.9 if wrong == "repeat" else share
        )
        model.zero_grad()
        logits = model(batch.x, batch.prev_y).flatten(0, 1)
        functional.cross_entropy(logits, batch.y.flatten()).backward()
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        with torch.no_grad():
            for p, (m, v) in zip(parameters, moments, strict=True):
                g = p.grad * (1 if wrong == "clip" else min(1.0, 0.2 / (float(norm) + 1e-6)))
                decay = 0.1 * p if p.ndim >= 2 and wrong != "decay" else 0.0
                rate = 0.01 if wrong == "schedule" else lr
                if config.optimizer == "sign":
                    m.mul_(beta).add_((1 - beta) * g)
                    p.sub_(rate * (m.sign() + decay))
                    continue
                g = g + decay
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g.square())
                root = (v / (1 - 0.999 ** (step + 1))).sqrt() + eps
                p.sub_(rate * m / (1 - 0.9 ** (step + 1)) / root)
    return [p.detach() for p in parameters]


@pytest.mark.parametrize(
    ("optimizer", "mistakes"),
    [
        ("adam", ("schedule", "clip", "repeat", "decay", "eps")),
        ("sign", ("schedule", "repeat", "decay", "momentum")),
    ],
)
def test_the_loop_does_what_its_settings_say(tmp_path, optimizer, mistakes):
    settings = (
        *(*SCHEDULED, "--clip", "0.2", "--steps", "8", "--optimizer", optimizer),
        *("--lr", "0.01", "--eps", "1e-3", "--momentum", "0.6"),
        *("--repeat-end", "0", "--repeat-steps", "1", "3"),
    )
    path = new(tmp_path, *settings)
    found = [load_file(path / "learner.safetensors")[n] for n, _ in named(parse(*settings))]

    def gap(wrong: str = "") -> float:
        expected = by_hand(parse(*settings), wrong)
        gaps = [(a - b).abs().flatten() for a, b in zip(found, expected, strict=True)]
        return float((torch.cat(gaps) > 1e-4).float().mean())

    # Not all: of gradients that are 0 but for rounding, the sign is anybody's guess.
    assert gap() < 0.03
    assert {mistake: gap(mistake) for mistake in mistakes if gap(mistake) < 0.3} == {}


def named(config: gpicl.Config) -> list[tuple[str, nn.Parameter]]:
    return list(build_model(gpicl.METHOD, config).named_parameters())


def test_a_training_curve_is_the_accuracy_of_the_weights(whole):
    """The last one, of the weights that were kept."""
    config = parse()
    model = build_model(gpicl.METHOD, config)
    model.load_state_dict(load_file(whole / "learner.safetensors"))
    batches = monitor.monitors(config, torch.device("cpu"))
    found = {line["on"]: line for line in lines(whole, "eval") if line["step"] == 20}
    assert found.keys() == batches.keys()
    for name, batch in batches.items():
        with torch.no_grad():
            guesses = model.eval()(batch.x, batch.prev_y).argmax(dim=-1)
        curve = (guesses == batch.y).double().mean(dim=0)
        assert found[name]["curve"] == pytest.approx(curve.tolist(), abs=1e-4)
        assert found[name]["last_ten"] == pytest.approx(float(curve[-10:].mean()), abs=1e-4)


def test_tokens_per_second_leave_out_the_measurements(tmp_path, monkeypatch):
    """By a clock that a step takes a second of and a measurement a hundred; also after a stop."""
    now = [0.0]

    def tick(logits: Tensor) -> Tensor:
        now[0] += 1
        return logits

    measure = monitor.measure

    def slow(*args: Any) -> None:
        now[0] += 100
        measure(*args)

    monkeypatch.setattr(train.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(monitor, "measure", slow)
    every = dict.fromkeys(range(20), tick)
    path = new(tmp_path / "whole", at=every)
    stopped = new(tmp_path / "stopped", at=every | {8: send(signal.SIGINT)}, status=130)
    assert run("--resume", stopped, at=every) == 0
    for folder in (path, stopped):
        log = JsonlLog(folder / "metrics.jsonl").read()
        rates = [line["tokens_per_s"] for line in log if line["event"] == "train"]
        assert rates == [8 * 12] * 4


# Resumed = uninterrupted


@pytest.mark.parametrize("optimizer", typing.get_args(optim.OptimizerName))
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(tmp_path, optimizer):
    """Stopped in step 5 (before any regular checkpoint), 9 and 16, none a multiple of the log's."""
    settings = (*SCHEDULED, "--optimizer", optimizer)
    expected = new(tmp_path / "whole", *settings)
    stop = send(signal.SIGINT)
    path = new(tmp_path / "stopped", *settings, at={4: stop}, status=130)
    assert newest_step(path) == 5
    for step in (8, 15):
        assert run("--resume", path, at={step: stop}) == 130
        assert newest_step(path) == step + 1
    assert run("--resume", path) == 0
    assert_same_run(path, expected)
    # And what is compared depends on what was to be kept.
    state = checkpoint.load(expected)
    assert state is not None
    assert {name: v.numpy().tobytes() for name, v in state["model"].items()} == weights(expected)


@pytest.mark.parametrize("forgotten", ["optimizer", "losses", "step"])
def test_a_checkpoint_that_forgets_something_would_be_noticed(tmp_path, whole, forgotten):
    path = new(tmp_path / "stopped", at={8: send(signal.SIGINT)}, status=130)
    state = checkpoint.load(path)
    assert state is not None
    if forgotten == "optimizer":
        state["optimizer"]["state"] = {
            k: {"step": v["step"], **{n: torch.zeros_like(v[n]) for n in ("exp_avg", "exp_avg_sq")}}
            for k, v in state["optimizer"]["state"].items()
        }
    elif forgotten == "losses":
        state["losses"].zero_()
    else:
        state["step"] = 10
    checkpoint.save(path, state)
    assert run("--resume", path) == 0
    with pytest.raises(AssertionError):
        assert_same_run(path, whole)


def test_a_checkpoint_of_another_version_is_refused(tmp_path, capsys):
    path = new(tmp_path / "stopped", at={8: send(signal.SIGINT)}, status=130)
    state = checkpoint.load(path)
    assert state is not None
    checkpoint.save(path, state | {"losses": state["losses"][:, :4]})
    assert run("--resume", path) == 2
    assert "made by another version of this program: start a new run" in capsys.readouterr().err


def test_a_run_that_stopped_before_its_first_checkpoint_begins_again(tmp_path, whole):
    stop = send(signal.SIGINT, signal.SIGINT)  # the second one does not wait for the step
    path = new(tmp_path, at={5: stop}, status=130)
    assert checkpoint.load(path) is None
    assert run("--resume", path) == 0
    assert_same_run(path, whole)


def test_a_second_interrupt_does_not_wait_and_loses_no_checkpoint(tmp_path, whole, capsys):
    stop = send(signal.SIGTERM, signal.SIGINT)
    path = new(tmp_path, at={11: stop}, status=130)
    assert newest_step(path) == 7
    assert f"go on with: python -m baselines.gpicl --resume {path}" in capsys.readouterr().err
    assert run("--resume", path) == 0
    assert_same_run(path, whole)


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(tmp_path, whole, capsys):
    path = new(tmp_path, at={16: send(signal.SIGINT)}, status=130)
    assert newest_step(path) == 17
    content = (path / checkpoint.NEWEST).read_bytes()
    (path / checkpoint.NEWEST).write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    assert run("--resume", path) == 0
    assert f"warning: {path / checkpoint.NEWEST} is damaged" in capsys.readouterr().err
    assert_same_run(path, whole)


def test_signal_handlers_are_put_back(whole, copied):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    assert run("--resume", copied) == 0
    assert {number: signal.getsignal(number) for number in before} == before


# A finished run


def test_a_finished_run_says_so_and_changes_nothing(whole, copied, capsys):
    kept = ("learner.safetensors", "resume.pt", "config.json", "results")
    before = {
        p: p.read_bytes() for p in copied.rglob("*") if p.is_file() and p.name != "metrics.jsonl"
    }
    assert run("--resume", copied) == 0
    shown = capsys.readouterr()
    assert f"{copied} is meta-trained: all 20 steps are done" in shown.err
    assert "GPICL Transformer" in shown.out
    for path, content in before.items():
        if path.relative_to(copied).parts[0] in kept:
            assert path.read_bytes() == content, path
    assert_same_run(copied, whole)
    assert len(lines(copied, "open")) == 2


def test_a_missing_evaluation_is_made_up_for(whole, copied):
    lost, kept = sorted((copied / "results").iterdir())
    lost.unlink()
    stamp = kept.stat().st_mtime_ns
    assert run("--resume", copied) == 0
    assert kept.stat().st_mtime_ns == stamp
    assert weights(copied) == weights(whole)
    assert lost.read_bytes() == (whole / "results" / lost.name).read_bytes()
    assert len(lines(copied, "result")) == 2


def test_a_run_that_goes_on_does_not_say_it_is_finished(tmp_path, capsys):
    path = new(tmp_path, at={8: send(signal.SIGINT)}, status=130)
    capsys.readouterr()
    assert run("--resume", path) == 0
    assert "is meta-trained" not in capsys.readouterr().err


# Checkpoints of other runs


@pytest.mark.parametrize(
    "other",
    [
        ["--env", "Random-Proj8-v0"],  # tensors of the same shapes
        ["--width", "32"],
        ["--layers", "2"],
        ["--optimizer", "sign"],
        ["--seed", "1"],
    ],
)
def test_a_checkpoint_of_another_run_is_one_clear_line(other, tmp_path, capsys):
    stop = {8: send(signal.SIGINT)}
    path = new(tmp_path / "this", at=stop, status=130)
    foreign = new(tmp_path / "other", *other, at=stop, status=130)
    shutil.copy(foreign / checkpoint.NEWEST, path / checkpoint.NEWEST)
    log = (path / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert run("--resume", path) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {path}: the checkpoint was made with other settings than ")
    assert shown.count("\n") == 1
    assert not (path / "learner.safetensors").exists()
    assert (path / "metrics.jsonl").read_bytes().startswith(log)


def test_checkpoints_go_with_their_run_to_another_folder(tmp_path, whole):
    path = new(tmp_path / "here", at={8: send(signal.SIGINT)}, status=130)
    moved = Path(shutil.move(path, tmp_path / "moved"))
    assert run("--resume", moved, "--runs", tmp_path / "elsewhere") == 0
    assert_same_run(moved, whole)


def test_two_damaged_checkpoints_are_an_error_of_status_2(copied, capsys):
    for name in (checkpoint.NEWEST, checkpoint.PREVIOUS):
        (copied / name).write_bytes(b"damaged")
    before = weights(copied)
    assert run("--resume", copied) == 2
    assert "no checkpoint can be read" in capsys.readouterr().err.splitlines()[-1]
    assert weights(copied) == before


# Numbers that are not finite


def not_a_number(logits: Tensor) -> Tensor:
    return logits * float("nan")


def bad_gradient(logits: Tensor) -> Tensor:
    """A finite loss whose gradient is not."""
    logits.register_hook(lambda gradient: gradient * float("inf"))
    return logits


@pytest.mark.parametrize(
    ("act", "at", "arguments", "what", "kept"),
    [
        # Noticed when a line is due: checkpoints at 7 and 14 are from before.
        (not_a_number, 2, (), "the loss is not finite at step 3.", None),
        (not_a_number, 8, (), "the loss is not finite at step 9; ", 7),
        (not_a_number, 19, (), "the loss is not finite at step 20; ", 14),
        # Noticed when a checkpoint is due, before it is written.
        (not_a_number, 12, (), "the loss is not finite at step 13; ", 7),
        (not_a_number, 13, ("--log-every", "50"), "the loss is not finite at step 14; ", 7),
        # The loss of the step before a checkpoint is finite, the weights are not.
        (bad_gradient, 13, (), "a weight is not finite at step 14; ", 7),
        (bad_gradient, 11, (), "the gradient is not finite at step 12; ", 7),
        (bad_gradient, 8, (), "the loss is not finite at step 10; ", 7),
    ],
)
def test_numbers_that_are_not_finite_stop_the_run(act, at, arguments, what, kept, tmp_path, capsys):
    path = new(tmp_path, *arguments, at={at: act}, status=2)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {what}")
    assert "A smaller --lr, --clip 1 or --precision fp32 may help" in error
    assert not (path / "learner.safetensors").exists()
    state = checkpoint.load(path)
    if kept is None:
        assert state is None
        assert "is from before it" not in error
        return
    assert state is not None
    assert state["step"] == kept
    assert f"{path / checkpoint.NEWEST} is from before it" in error
    assert all(bool(v.isfinite().all()) for v in state["model"].values())


def test_a_huge_learning_rate_stops_the_run(tmp_path, capsys):
    path = new(tmp_path, "--lr", "1e30", "--optimizer", "sign", status=2)
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"error: the (loss|update) is not finite at step \d", error)
    assert not (path / "learner.safetensors").exists()
    for line in JsonlLog(path / "metrics.jsonl").read():
        assert "NaN" not in json.dumps(line)


# Memory


def too_much(logits: Tensor) -> Tensor:
    torch.empty(2**50)  # the allocator's own words
    return logits


def cuda_is_full(logits: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def windows_is_full(logits: Tensor) -> Tensor:
    raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")


def numpy_is_full(logits: Tensor) -> Tensor:
    np.empty(2**50)
    return logits


@pytest.mark.parametrize("act", [too_much, cuda_is_full, windows_is_full, numpy_is_full])
def test_too_little_memory_names_what_needs_less(act, tmp_path, capsys):
    new(tmp_path, "--accumulate", "2", at={3: act}, status=2)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: out of memory with --batch-size 8 and --accumulate 2: ")
    assert "a larger --accumulate" in error


def test_other_errors_are_not_taken_for_it(tmp_path):
    def act(logits: Tensor) -> Tensor:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match=r"^shapes do not fit$"):
        new(tmp_path, at={3: act})


# Gradients


def gradients(accumulate: int, parts: Sequence[int] | None = None) -> dict[str, Tensor]:
    config = parse("--accumulate", str(accumulate))
    net = build_model(gpicl.METHOD, config)
    batch = train.environment(config, torch.device("cpu")).episodes(parts or range(8))
    losses = train._backward(config, net, train._loss_function(config, net), batch)
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return found | {"losses": losses}


def test_parts_of_a_batch_have_its_gradient():
    expected = gradients(1)
    assert len(expected) > 10
    for accumulate in (2, 4, 8):
        found = gradients(accumulate)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-6)
    size = max(float(g.abs().max()) for n, g in expected.items() if n != "losses")
    assert size > 1e-3
    half = gradients(1, range(4))
    assert max(float((half[n] - expected[n]).abs().max()) for n in half) > 1e-3


# Which episodes


def episodes(seed: int, *arguments: str) -> icl_bench.EpisodeBatch:
    config = parse("--seed", str(seed), *arguments)
    return train.environment(config, torch.device("cpu")).episodes(range(64))


def test_seeds_train_on_other_tasks():
    for arguments in (["--num-tasks", str(2**25)], ["--num-tasks", "None"]):
        first, again, other = (episodes(seed, *arguments) for seed in (0, 0, 1))
        assert torch.equal(first.x, again.x)
        assert not (first.x == other.x).any()
        assert not torch.equal(first.y, other.y)
    drawn = [set(episodes(seed, "--num-tasks", str(2**25)).task_id.tolist()) for seed in (0, 1)]
    assert len(drawn[0] | drawn[1]) == 128


def frozen_tasks() -> set[bytes]:
    env = icl_bench.make(DIGITS, split="unseen").unwrapped
    return {env.task(k)[0].numpy().tobytes() for k in range(EXTENDED_EPISODES // 16)}


def of_monitors() -> dict[str, set[bytes]]:
    """A of every task that training curves on the meta-training data set are measured on."""
    found = {}
    for name, batch in monitor.monitors(
        parse("--eval-episodes", "64"), torch.device("cpu")
    ).items():
        if name in ("val", "unseen"):
            env = icl_bench.make(DIGITS, split=name).unwrapped
            found[name] = {env.task(k)[0].numpy().tobytes() for k in set(batch.task_id.tolist())}
    return found


def test_training_curves_never_look_at_a_frozen_task(monkeypatch):
    frozen, found = frozen_tasks(), of_monitors()
    assert len(frozen) == 64
    assert {name: len(tasks) for name, tasks in found.items()} == {"val": 64, "unseen": 4}
    assert not frozen & found["unseen"]
    assert not frozen & found["val"]
    assert not found["val"] & found["unseen"]
    monkeypatch.setattr(monitor, "MONITOR_FROM", EXTENDED_EPISODES - 64)  # would be noticed
    assert frozen & of_monitors()["unseen"]


def test_training_tasks_are_watched_where_they_come_again():
    config = parse("--num-tasks", "3", "--bias", "0.5", "--seed", "2")
    batch = monitor.monitors(config, torch.device("cpu"))["seen"]
    trained = train.environment(config, torch.device("cpu"))
    tasks = set(batch.task_id.tolist())
    assert tasks == {0, 1, 2}
    watched = icl_bench.make(DIGITS, split="seen", **config.meta_train_kwargs()).unwrapped
    for k in tasks:
        for ours, theirs in zip(watched.task(k), trained.task(k), strict=True):
            assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))
    assert "seen" not in monitor.monitors(parse("--num-tasks", "None"), torch.device("cpu"))


def test_training_curves_are_of_every_data_set_at_hand():
    batches = monitor.monitors(parse(), torch.device("cpu"))
    assert list(batches)[:3] == ["val", "seen", "unseen"]
    assert "Random-Proj8-v0" in batches
    for name, batch in batches.items():
        assert batch.x.shape == (16, 12, 64)
        if name not in ("val", "seen", "unseen"):
            assert batch.task_id.min() >= monitor.MONITOR_FROM // 16
    frozen = icl_bench.make(DIGITS, split="unseen", episode_length=12).unwrapped
    every = frozen.episodes(range(EXTENDED_EPISODES)).x.flatten(0, 1)
    mine = batches["unseen"].x.flatten(0, 1)
    assert (torch.cdist(mine, every) > 1e-3).all()


def test_watching_changes_nothing(tmp_path, whole):
    path = new(tmp_path, "--eval-every", "0", "--log-every", "20", "--checkpoint-every", "50")
    assert weights(path) == weights(whole)
    assert not lines(path, "eval")


# Bad values: one clear line, status 2, nothing made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--batch-size", "9", "--accumulate", "2"],
            "--batch-size must be a multiple of accumulate × processes = 2, not 9",
        ),
        (["--device", "cuda:99"], "device cuda:99: this PyTorch sees "),
        (["--width", "15"], "--width must be a multiple of 2, not 15"),
        (["--width", "18", "--positions", "rotary"], "--width must be a multiple of 4, not 18"),
        (["--heads", "0"], "--heads must be 1 or more, not 0"),
        (["--steps", "0"], "--steps must be 1 or more, not 0"),
        (["--checkpoint-every", "0"], "--checkpoint-every must be above 0, not 0"),
        (["--log-every", "0"], "--log-every must be 1 or more, not 0"),
        (["--momentum", "1"], "--momentum must be in [0, 1), not 1.0"),
        (["--bias", "1.5"], "--bias must be in [0, 1], not 1.5"),
        (["--warmup", "-1"], "--warmup must be 0 or more, not -1"),
        (["--lr", "nan"], "--lr must be above 0, not nan"),
        (["--clip", "inf"], "--clip must be 0 or more, not inf"),
        (["--num-tasks", "0"], "--num-tasks must be None, or 1 or more, not 0"),
        (["--repeat-steps", "9", "3"], "--repeat-steps must be two ascending steps, not (9, 3)"),
        (["--env", "MNIST-Proj9-v0"], "MNIST-Proj9"),
        (["--episode-length", "600"], "episode_length=600 is more than the 500 examples"),
    ],
)
def test_bad_values_are_one_clear_line(arguments, message, tmp_path, capsys):
    assert run(*TINY, "--runs", tmp_path / "runs", *arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err
    assert not (tmp_path / "runs").exists()


def test_a_device_that_is_not_there_is_one_clear_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert run(*TINY, "--runs", tmp_path / "runs", "--device", "cuda") == 2
    wanted = "error: device cuda: this PyTorch sees 0 CUDA devices; try cpu\n"
    assert capsys.readouterr().err == wanted


def test_a_batch_must_divide_among_processes(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert run(*TINY) == 2
    assert (
        "--batch-size must be a multiple of accumulate × processes = 3" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "arguments", [["--preset", "huge"], ["--optimizer", "rms"], ["--depth", "2"]]
)
def test_unknown_presets_choices_and_flags_have_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run(*TINY, *arguments)
    assert exit_info.value.code == 2
    assert arguments[0] in capsys.readouterr().err


# Trackers


class Writer:
    """Stands for TensorBoard's SummaryWriter."""

    made: "Writer"

    def __init__(self, folder: str) -> None:
        Writer.made = self
        self.folder, self.closed = folder, False
        self.numbers: list[tuple[str, float, int]] = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.numbers.append((name, value, step))

    def close(self) -> None:
        self.closed = True


class Tracker:
    """Stands for a run of Weights & Biases."""

    made: "Tracker"

    def __init__(self, **about: object) -> None:
        Tracker.made = self
        self.about, self.closed = about, False
        self.numbers: list[tuple[str, float, int]] = []

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.numbers += [(name, value, step) for name, value in numbers.items()]

    def finish(self) -> None:
        self.closed = True


@contextlib.contextmanager
def faked(track: str) -> Iterator[type[Writer] | type[Tracker]]:
    name, kind = ("torch.utils.tensorboard", Writer), ("wandb", Tracker)
    module, fake = name if track == "tensorboard" else kind
    with pytest.MonkeyPatch.context() as patch:
        content = types.SimpleNamespace(SummaryWriter=Writer, init=Tracker)
        patch.setitem(sys.modules, module, content)
        yield fake


@pytest.mark.parametrize("track", ["tensorboard", "wandb"])
def test_trackers_mirror_the_log(track, tmp_path, whole):
    with faked(track) as fake:
        path = new(tmp_path, "--track", track)
    made = fake.made
    assert made.closed
    if isinstance(made, Writer):
        assert made.folder == str(path / "tensorboard")
    else:
        assert made.about["id"] == path.name
        assert made.about["resume"] == "allow"
        assert made.about["dir"] == str(path)
    expected = []
    for line in lines(path, "train"):
        expected += [("train/loss", line["loss"], line["step"])]
        name = "train/gradient_norm/blocks.0"
        expected += [(name, line["gradient_norm"]["blocks.0"], line["step"])]
    for line in lines(path, "eval"):
        expected += [(f"eval/{line['on']}/last_ten", line["last_ten"], line["step"])]
    for line in lines(path, "result"):
        expected += [(f"result/{line['env']}/accuracy", line["accuracy"], 20)]
    wanted = {name for name, _, _ in expected}
    assert sorted(entry for entry in made.numbers if entry[0] in wanted) == sorted(expected)
    assert all(isinstance(value, int | float) for _, value, _ in made.numbers)
    # The file is as without.
    assert weights(path) == weights(whole)
    assert lines(path, "train", "eval", "result") == lines(whole, "train", "eval", "result")


@pytest.mark.parametrize("track", ["tensorboard", "wandb"])
def test_trackers_are_closed_after_an_interrupt(track, tmp_path):
    with faked(track) as fake:
        new(tmp_path, "--track", track, at={8: send(signal.SIGINT)}, status=130)
    assert fake.made.closed


@pytest.mark.parametrize("track", ["tensorboard", "wandb"])
def test_a_tracker_that_is_missing_is_one_clear_line(track, tmp_path, monkeypatch, capsys):
    module = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}[track]
    monkeypatch.setitem(sys.modules, module, None)
    assert run(*TINY, "--track", track, "--runs", tmp_path / "runs") == 2
    wanted = f"error: --track {track} is not installed: pip install icl-bench[tracking]\n"
    assert capsys.readouterr().err == wanted
    assert not (tmp_path / "runs").exists()
    assert "tracking = [" in (ROOT / "pyproject.toml").read_text()


# Real processes


def start(*arguments: str | Path, launcher: Sequence[str] = ()) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "baselines.gpicl", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},  # the same bits
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(process: subprocess.Popen, ready: Callable[[], bool]) -> bool:
    """Until it is ready or has ended; whether it still runs."""
    deadline = time.monotonic() + 120
    while not ready():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return True


LONG = ("--steps", "100000", "--eval-every", "0", "--log-every", "10", "--checkpoint-every", "5")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(number, tmp_path):
    process = start(*TINY, *LONG, "--runs", tmp_path)
    try:
        assert wait(process, lambda: bool(list(tmp_path.glob(f"*/{checkpoint.NEWEST}"))))
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    (path,) = tmp_path.iterdir()
    assert process.returncode == 130, err
    assert err == f"\ninterrupted; go on with: python -m baselines.gpicl --resume {path}\n"
    assert out == ""
    assert newest_step(path) >= 5
    assert all(line["step"] <= newest_step(path) for line in lines(path, "train"))


@pytest.mark.slow
def test_killed_at_five_random_moments_it_ends_with_the_same_bits(tmp_path):
    """A checkpoint every step, so that kills meet their writing."""
    settings = (
        "--steps",
        "400",
        "--eval-every",
        "50",
        "--log-every",
        "7",
        "--checkpoint-every",
        "1",
    )
    expected = new(tmp_path / "whole", *settings, "--checkpoint-every", "400")
    runs = tmp_path / "killed"
    rng = random.Random(0)
    path, killed = None, 0
    for kill in range(5):
        process = start(*(("--resume", path) if path else (*TINY, *settings, "--runs", runs)))
        target = rng.randrange(10, 70)
        try:
            if kill == 0:
                assert wait(process, lambda: bool(list(runs.glob("*/metrics.jsonl"))))
                (path,) = runs.iterdir()
            log = JsonlLog(path / "metrics.jsonl")
            base = newest_step(path) if (path / checkpoint.NEWEST).exists() else 0

            def ready(log=log, end=base + target) -> bool:
                return any(line.get("step", 0) >= end for line in log.read())

            if wait(process, ready):
                time.sleep(rng.random() * 0.05)
        finally:
            process.kill()
            process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed == 5
    assert 0 < newest_step(path) < 400
    assert not (path / "learner.safetensors").exists()
    assert run("--resume", path) == 0
    assert weights(path) == weights(expected)
    assert lines(path, "train", "eval", "result") == lines(expected, "train", "eval", "result")


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path):
    """Gloo on the CPU, each with half of every batch; the same global batch as in one process."""
    settings = (*SCHEDULED, "--steps", "30", "--log-every", "5")
    expected = new(tmp_path / "one", *settings)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = start(*TINY, *settings, "--runs", tmp_path / "two", launcher=launcher)
    out, err = process.communicate(timeout=170)
    assert process.returncode == 0, err
    (path,) = (tmp_path / "two").iterdir()  # the first process alone makes a folder
    names = ("loss", "loss_first", "loss_last", "lr", "repeat")
    for ours, theirs in zip(lines(path, "train"), lines(expected, "train"), strict=True):
        assert [ours[n] for n in names] == pytest.approx([theirs[n] for n in names], abs=1e-5)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-3)
    assert out.count("GPICL Transformer") == 2  # one board: the table, and its row by seed
    two = load_file(path / "learner.safetensors")
    for name, tensor in load_file(expected / "learner.safetensors").items():
        torch.testing.assert_close(two[name], tensor, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_processes_stop_together_where_one_is_told_to(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = start(*TINY, *LONG, "--runs", tmp_path, launcher=launcher)
    try:
        assert wait(process, lambda: bool(list(tmp_path.glob(f"*/{checkpoint.NEWEST}"))))
        found = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        )
        second = max(map(int, found.stdout.split()))
        os.kill(second, signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    (path,) = tmp_path.iterdir()
    assert f"go on with: python -m baselines.gpicl --resume {path}" in err
    assert "Connection closed" not in err
    newest = newest_step(path)
    assert newest % 5 or newest > 5  # the one that was written on the way out


def test_switches_are_in_the_command_of_a_run():
    presets, program = vsml.PRESETS, vsml.METHOD.program
    wanted = ["--preset", "cpu", "--no-self-messages", "--layer-norm"]
    config = cli.parse(presets, program, "", wanted)
    words = sequence.command(vsml.METHOD, config).split()[3:]
    assert cli.parse(presets, program, "", words) == config


def test_the_command_of_a_run_names_what_differs_from_its_preset():
    """Parsed again it gives the same method."""
    config = parse("--lr", "0.5", "--repeat-steps", "3", "9", "--seed", "4", "--num-tasks", "77")
    shown = sequence.command(gpicl.METHOD, config)
    assert "--lr 0.5" in shown
    assert "--seed" not in shown
    assert "--width 16" in shown  # one of TINY
    program, *arguments = shown.removeprefix("python -m ").split()
    assert program == "baselines.gpicl"
    again = cli.parse(gpicl.PRESETS, gpicl.METHOD.program, "About.", arguments)
    differing = {
        f.name
        for f in dataclasses.fields(config)
        if getattr(config, f.name) != getattr(again, f.name)
    }
    assert differing <= sequence.NO_MATTER
