"""Programs on text: runs that are killed end with the same numbers, and every stop says why."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

import icl_bench
from baselines import checkpoint, cli, language_model, maml_en_llm, metaicl, text_run, text_train
from baselines.common import JsonlLog
from baselines.language_model import LanguageModel, load_language_model
from baselines.text_train import TEXT_EXAMPLES, tiny_training
from icl_bench.envs.text_source import TextSource
from icl_bench.evaluation.text_result import TextResult
from icl_bench.tasks.prompts import byte_tokenizer

pytest.importorskip("transformers", reason="needs icl-bench[text]")

# 7 steps; logs at 3, 6 and at the phases' ends, checkpoints at 2, 4, 6 and there.
SHORT = (
    *("--preset", "cpu", "--device", "cpu", "--tiny-steps", "3", "--tiny-batch", "1"),
    *("--steps", "4", "--batch-size", "1", "--k", "2", "--log-every", "3", "--eval-every", "5"),
    *("--eval-prompts", "3", "--checkpoint-every", "2", "--demo-seeds", "100", "13"),
    *("--queries", "3", "--tasks", "mini-keys-9", "mini-picks-4"),
)
PROGRAMS = {"metaicl": metaicl, "maml_en_llm": maml_en_llm}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of no size at all."""
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    for key, value in shape.items():
        monkeypatch.setitem(language_model.TINY_SHAPE, key, value)


def run(program: str, *arguments: str | Path) -> int:
    module = PROGRAMS[program]
    return cli.main(
        lambda config: text_run.run(config, module.method_of(config)),
        module.PRESETS,
        module.PROGRAM,
        "About.",
        [str(a) for a in arguments],
    )


def new(folder: Path, program: str, *arguments: str, status: int = 0) -> Path:
    assert run(program, *SHORT, *arguments, "--runs", folder) == status
    (path,) = folder.iterdir()
    return path


def lines(path: Path) -> list[dict]:
    """The log without what is only true of one process."""
    found = [line for line in JsonlLog(path / "metrics.jsonl").read() if line["event"] != "open"]
    return [
        {k: v for k, v in line.items() if k not in ("wall_s", "seconds", "tokens_per_s")}
        for line in found
    ]


def same(a: Path, b: Path) -> bool:
    """Whether two runs have the same weights, results and log."""
    weights = [load_file(path / "learner.safetensors") for path in (a, b)]
    files = [sorted((path / "results").iterdir()) for path in (a, b)]
    return (
        weights[0].keys() == weights[1].keys()
        and all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        and [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]
        and lines(a) == lines(b)
    )


def interrupted(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """SIGINT comes in the outer step of this number, from 1 on."""
    seen = [0]
    step = text_train.PlainUpdate.step

    def counted(self, *arguments):
        seen[0] += 1
        if seen[0] == at:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *arguments)

    for kind in (text_train.PlainUpdate, maml_en_llm.MamlUpdate):
        monkeypatch.setattr(kind, "step", counted)


# Resume


@pytest.mark.parametrize("at", [2, 3, 4, 6])
@pytest.mark.parametrize(
    ("program", "more"),
    [
        ("metaicl", ()),
        ("maml_en_llm", ("--n", "2", "--order", "first")),
        ("maml_en_llm", ("--moments", "separate", "--order", "second")),
    ],
)
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    more: Sequence[str],
    at: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = new(tmp_path / "whole", program, *more)
    with monkeypatch.context() as patch:
        interrupted(patch, at)
        part = new(tmp_path / "part", program, *more, status=130)
    assert f"--resume {part}" in capsys.readouterr().err
    assert checkpoint.load(part)["step"] == at
    assert not (part / "learner.safetensors").exists()
    assert run(program, "--resume", part) == 0
    assert same(whole, part)


def test_a_run_that_resumes_without_its_moments_ends_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = new(tmp_path / "whole", "metaicl")
    with monkeypatch.context() as patch:
        interrupted(patch, 6)
        part = new(tmp_path / "part", "metaicl", status=130)
    with monkeypatch.context() as patch:
        patch.setattr(text_train.PlainUpdate, "load_state_dict", lambda self, state: None)
        assert run("metaicl", "--resume", part) == 0
    assert not same(whole, part)


def test_a_finished_run_that_is_resumed_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = new(tmp_path, "metaicl")
    before = lines(path)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(text_train.PlainUpdate, "step", never)
    monkeypatch.setattr(icl_bench, "evaluate_text", never)
    assert run("metaicl", "--resume", path) == 0
    assert lines(path) == before


def test_an_evaluation_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = new(tmp_path / "whole", "metaicl")
    calls = [0]
    put = text_run.ScoreJournal.put

    def dies(self, *arguments):
        calls[0] += 1
        if calls[0] == 8:
            raise KeyboardInterrupt
        put(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(text_run.ScoreJournal, "put", dies)
        part = new(tmp_path / "part", "metaicl", status=130)
    assert not list((part / "results").iterdir())
    kept = (part / "scores.jsonl").read_text().splitlines()
    assert len(kept) == 8  # the settings and seven queries
    assert run("metaicl", "--resume", part) == 0
    assert same(whole, part)
    assert (part / "scores.jsonl").read_text().splitlines()[:8] == kept


def _kill_at(process: subprocess.Popen, ready: Callable[[], bool]) -> None:
    until = time.monotonic() + 150
    while not ready():
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < until, "not ready in time"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_killed_in_training_and_in_evaluation_it_ends_with_the_same_numbers(tmp_path: Path) -> None:
    """Whole processes of the real model, killed by SIGKILL twice."""
    command = [sys.executable, "-m", "baselines.metaicl", *SHORT, "--steps", "12"]
    command += ["--checkpoint-every", "1", "--queries", "12"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(*more: str) -> subprocess.Popen:
        return subprocess.Popen([*command, *more], cwd=ROOT, env=env, stdout=subprocess.DEVNULL)

    assert start("--runs", str(tmp_path / "whole")).wait(timeout=200) == 0
    (whole,) = (tmp_path / "whole").iterdir()
    runs = tmp_path / "killed"
    _kill_at(start("--runs", str(runs)), lambda: any(runs.glob(f"*/{checkpoint.PREVIOUS}")))
    (killed,) = runs.iterdir()
    journal = killed / "scores.jsonl"
    resume = [sys.executable, "-m", "baselines.metaicl", "--resume", str(killed)]
    process = subprocess.Popen(resume, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
    _kill_at(process, lambda: journal.exists() and journal.read_bytes().count(b"\n") > 5)
    assert not list((killed / "results").iterdir())
    subprocess.run(resume, cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL, timeout=200)
    assert same(whole, killed)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the processes have the model as it is
    arguments = [*SHORT, "--steps", "3", "--batches", "2", "--tiny-batch", "2"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    alone = [sys.executable, "-m", "baselines.metaicl"]
    both = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    both += ["-m", "baselines.metaicl"]
    found = []
    for name, command in (("alone", alone), ("both", both)):
        subprocess.run(
            [*command, *arguments, "--runs", str(tmp_path / name)],
            cwd=ROOT,
            env=env,
            check=True,
            timeout=280,
            stdout=subprocess.DEVNULL,
        )
        (path,) = (tmp_path / name).iterdir()
        found.append(load_file(path / "learner.safetensors"))
    start = load_language_model("tiny").model.state_dict()
    for name, weights in found[0].items():
        moved = (weights - start[name]).norm()
        assert (weights - found[1][name]).norm() <= 1e-3 * moved


# What is trained and evaluated


def test_texts_of_tiny_are_rows_of_examples_of_any_task(monkeypatch: pytest.MonkeyPatch) -> None:
    config = metaicl.Config(
        env="TextMini-ICL-v0", model="tiny", tiny_steps=2, tiny_batch=3, total_limit=10**6
    )
    lm = load_language_model("tiny")
    batch = tiny_training(config, lm).batch(5)
    source = text_train.text_source(config, k=0)
    for row in range(3):
        text = bytes(batch.ids[row][batch.attention_mask[row] > 0].tolist()).decode()
        first = (5 * 3 + row) * TEXT_EXAMPLES
        episodes = source.episodes(range(first, first + TEXT_EXAMPLES))
        at = 0
        for episode in episodes:  # in order, with nothing but separators between
            for field in (episode.query.input, episode.query.output):
                at = text.index(field, at) + len(field)
        assert len({episode.task for episode in episodes}) > 5
        assert at == len(text)
    assert torch.equal(batch.loss_mask, batch.attention_mask)


def test_steps_take_every_batch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[str, int]] = []
    for name in ("meta_training", "tiny_training"):
        made = getattr(text_run, name)

        def phase(*arguments, made=made, name=name):
            found = made(*arguments)

            def batch(number):
                taken.append((name, number))
                return found.batch(number)

            return text_train.dataclasses.replace(found, batch=batch)

        monkeypatch.setattr(text_run, name, phase)
    new(tmp_path, "maml_en_llm", "--n", "3", "--order", "first")
    expected = [("tiny_training", i) for i in range(3)]
    assert taken == expected + [("meta_training", i) for i in range(4 * 2 * 3)]


def test_the_rate_goes_linearly_to_zero(tmp_path: Path) -> None:
    path = new(tmp_path, "metaicl", "--log-every", "1", "--lr", "0.004", "--tiny-lr", "0.003")
    rates = [line["lr"] for line in lines(path) if line["event"] == "train"]
    assert rates == pytest.approx([0.003, 0.002, 0.001, 0.004, 0.003, 0.002, 0.001])


@pytest.mark.parametrize("method", ["no-icl", "raw-lm"])
def test_methods_that_train_nothing_of_a_given_model(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    load_language_model("tiny").model.save_pretrained(folder)
    whole = load_language_model("tiny")

    def load(name: str, **_: object) -> LanguageModel:
        assert name == str(folder)
        return text_run.dataclasses.replace(whole, tokenize=byte_tokenizer)

    monkeypatch.setattr(text_run, "load_language_model", load)
    path = new(tmp_path / "runs", "metaicl", "--method", method, "--model", str(folder))
    assert not (path / "learner.safetensors").exists()
    assert not [line for line in lines(path) if line["event"] == "train"]
    meta = json.loads((path / "meta.json").read_text())["entry"]
    assert (meta["parameters"], meta["meta_train"], meta["deterministic"]) == (0, None, True)
    result = TextResult.load(next((path / "results").iterdir()))
    draws = [task.prediction for task in result.tasks]
    assert [len(d) for d in draws] == [2, 2]
    if method == "no-icl":  # no demonstrations, no draws
        assert all((d[0] == d[1]).all() for d in draws)


def test_shuffled_labels_are_those_of_some_episodes() -> None:
    config = metaicl.Config(
        env="TextMini-ICL-v0", model="tiny", k=4, batch_size=200, shuffle=0.5, total_limit=10**6
    )
    lm = load_language_model("tiny")
    update = text_train.PlainUpdate(lm.model)
    rows = []
    for share in (0.0, 0.5, 1.0):
        other = text_train.dataclasses.replace(config, shuffle=share)
        batch = text_train.meta_training(other, lm, update, "x").batch(3)
        pairs = zip(batch.ids.tolist(), batch.attention_mask.sum(dim=1).tolist(), strict=True)
        rows.append([tuple(ids[:length]) for ids, length in pairs])
    plain = sum(a == b for a, b in zip(rows[0], rows[1], strict=True))
    twin = sum(a == b for a, b in zip(rows[2], rows[1], strict=True))
    assert plain + twin == 200
    assert abs(plain - 100) < 5 * 50**0.5


def test_an_entry_says_what_it_is(tmp_path: Path) -> None:
    path = new(
        tmp_path, "maml_en_llm", "--env", "TextMini-Channel-v0", "--n", "4", "--order", "first"
    )
    meta = json.loads((path / "meta.json").read_text())
    entry = meta["entry"]
    assert entry["name"] == "channel-maml-en-llm-2-4-first-order"
    assert entry["title"] == "Channel MAML-en-LLM-2-4, first order (tiny)"
    assert (entry["meta_train"], entry["external_data"]) == ("TextMini-Channel-v0", "none")
    assert meta["suite"] == "textmini-v0"
    weights = load_file(path / "learner.safetensors")
    assert entry["parameters"] == sum(w.numel() for w in weights.values())


@pytest.mark.parametrize("labels", ["true", "random-words"])
def test_adaptation_examples_are_no_demonstrations_of_their_draw(labels: str) -> None:
    config = maml_en_llm.Config(env="TextMini-ICL-v0", adapt=16, labels=labels)
    source = text_train.text_source(config, split="unseen", labels=labels, k=16)
    tests = source.queries("mini-keys-9", 13)
    episodes = maml_en_llm.adaptation_episodes(config, "mini-keys-9", 13)
    asked = {episode.query for episode in episodes}
    shown = {*tests[0].demonstrations}
    assert all(episode.demonstrations == tests[0].demonstrations for episode in episodes)
    assert {episode.query.options for episode in episodes} == {tests[0].query.options}
    assert len(asked) == 16
    assert not asked & (shown | {episode.query for episode in tests})
    others = maml_en_llm.adaptation_episodes(config, "mini-keys-9", 21)
    assert asked != {episode.query for episode in others}


def test_weights_of_another_run_are_evaluated_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = new(tmp_path / "first", "metaicl")
    start = ("--start-from", str(first), "--steps", "0")
    again = new(tmp_path / "again", "metaicl", *start)
    a, b = (load_file(path / "learner.safetensors") for path in (first, again))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not [line for line in lines(again) if line["event"] == "train"]
    files = [next((path / "results").iterdir()).read_bytes() for path in (first, again)]
    assert files[0] == files[1]
    twin = new(
        tmp_path / "twin", "metaicl", *start, "--labels", "shuffled", "--tasks", "mini-keys-9"
    )
    assert TextResult.load(next((twin / "results").iterdir())).labels == "shuffled"
    entry = json.loads((again / "meta.json").read_text())["entry"]
    assert f"--start-from {first.name}" in entry["code"]
    assert str(tmp_path) not in entry["code"]


def test_damaged_weights_to_start_from_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "learner.safetensors").write_bytes(b"not weights")
    assert run("metaicl", *SHORT, "--start-from", tmp_path, "--runs", tmp_path / "runs") == 2
    assert "learner.safetensors holds no weights" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_run_is_not_resumed_with_other_training_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupted(patch, 5)
        path = new(tmp_path, "metaicl", status=130)
    load = TextSource._load

    def fewer(self, task, split, **draw):
        found = load(self, task, split, **draw)
        return found[:-1] if split == "meta-train" and task == "mini-keys-1" else found

    monkeypatch.setattr(TextSource, "_load", fewer)
    assert run("metaicl", "--resume", path) == 2
    assert "other training examples" in capsys.readouterr().err


def test_adapted_weights_are_put_back(tmp_path: Path) -> None:
    plain = new(tmp_path / "plain", "maml_en_llm", "--order", "first")
    moved = new(
        tmp_path / "moved", "maml_en_llm", "--order", "first", "--adapt", "4", "--adapt-lr", "0.5"
    )
    a, b = (load_file(path / "learner.safetensors") for path in (plain, moved))
    assert all(torch.equal(a[name], b[name]) for name in a)
    results = [TextResult.load(next((path / "results").iterdir())) for path in (plain, moved)]
    scores = [
        [json.loads(line)["scores"] for line in (p / "scores.jsonl").read_text().splitlines()[1:]]
        for p in (plain, moved)
    ]
    assert not np.allclose(scores[0][0], scores[1][0])
    assert results[0].coverage == results[1].coverage


# What goes wrong


@pytest.mark.parametrize(
    ("program", "more", "words"),
    [
        ("metaicl", ("--total-limit", "1025"), "--total-limit must be at most 1024"),
        ("metaicl", ("--env", "MNIST-Proj8-v0"), "no text environment"),
        ("metaicl", ("--env", "TextMini-IC-v0"), "did you mean TextMini-ICL-v0"),
        ("metaicl", ("--tasks", "mini-keys-1"), "no test tasks mini-keys-1 at hand"),
        ("metaicl", ("--k", "-1"), "--k must be 0 or more"),
        ("metaicl", ("--fraction", "0"), "--fraction must be in (0, 1]"),
        ("metaicl", ("--k", "17"), "--k must be at most 16"),
        ("metaicl", ("--calibrate",), "--calibrate is for"),
        ("metaicl", ("--model", "no-such/model"), "--model FOLDER"),
        ("maml_en_llm", ("--inner", "sgd"), "--moments separate"),
        ("maml_en_llm", ("--gradient-checkpointing", "--order", "second"), "--order first"),
        ("maml_en_llm", ("--adapt", "400"), "--adapt 400: mini-keys-9 has 398"),
        ("metaicl", ("--demo-seeds", "100", "100"), "--demo-seeds must be distinct"),
        ("metaicl", ("--start-from", "nowhere"), "nowhere/learner.safetensors"),
        (
            "metaicl",
            ("--env", "TextMini-Channel-v0", "--example-limit", "4"),
            "a larger --example-limit leaves room",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(
    tmp_path: Path,
    program: str,
    more: Sequence[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(program, *SHORT, *more, "--runs", tmp_path) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("error:") == 1


def test_a_loss_that_is_not_finite_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = text_train.PlainUpdate.step

    def infinite(self, batches, lr):
        return step(self, batches, lr) | {"loss": float("nan")}

    monkeypatch.setattr(text_train.PlainUpdate, "step", infinite)
    new(tmp_path, "metaicl", status=2)
    assert "is not finite at step 1" in capsys.readouterr().err


def test_a_checkpoint_of_other_settings_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupted(patch, 5)
        path = new(tmp_path, "metaicl", status=130)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"lr": 0.5}))
    assert run("metaicl", "--resume", path) == 2
    assert "made with other settings" in capsys.readouterr().err
