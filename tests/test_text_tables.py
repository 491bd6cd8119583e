"""Tables for the terminal: of text runs, by task, and gains over another run."""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import method_runs
from synthetic_text import (
    MINI,
    MINI_CHANNEL,
    MINI_SUITE,
    NLI,
    PARA,
    SUITE,
    text_entry,
    text_result,
    text_run,
    text_runs,
)

from icl_bench.evaluation import text_metrics
from icl_bench.evaluation.text_result import TextResult
from icl_bench.leaderboard.cli import add_parsers
from icl_bench.leaderboard.runs import load_run
from icl_bench.leaderboard.tables import board_from_runs
from icl_bench.leaderboard.text_tables import gains_from_text_runs


@pytest.fixture
def score(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    def call(*args: object) -> list[str]:
        parser = argparse.ArgumentParser()
        add_parsers(parser.add_subparsers(required=True))
        parsed = parser.parse_args(["score", *(str(arg) for arg in args)])
        assert parsed.run(parsed) == 0
        return capsys.readouterr().out.splitlines()

    return call


def run(root: Path, name: str, results: Sequence[TextResult], **fields: object) -> Path:
    return text_run(root, results, text_entry(name, **fields), MINI_SUITE)


def test_by_task(tmp_path: Path, score: Callable[..., list[str]]) -> None:
    tasks = ["mini-keys-9", "mini-picks-4"]
    result = text_result(tasks=tasks, queries=40)
    lines = score(run(tmp_path, "one", [result], title="One"), "--by-task")
    rows = [line.split() for line in lines if line.startswith("One")]
    assert [row[3] for row in rows] == tasks
    for row, task in zip(rows, result.tasks, strict=True):
        values, summary = task.predictions.values(), text_metrics.task_summary(task.predictions)
        assert row[4] == task.metric
        assert row[5] == f"{100 * values.mean():.1f}"
        assert row[7] == f"{100 * summary.mean.half_width:.1f}"
        assert row[-2:] == [f"{100 * values.min():.1f}", "40"]


def test_gains_are_paired_on_the_tasks_that_both_have(
    tmp_path: Path, score: Callable[..., list[str]]
) -> None:
    tasks = ["mini-keys-9", "mini-keys-10", "mini-picks-4", "mini-topics-7", "mini-shapes-1"]
    a, b = text_result(MINI_CHANNEL, 0.9, tasks=tasks), text_result(MINI, 0.4, 1, tasks=tasks[1:])
    one = run(tmp_path, "one", [a], title="One", meta_train=MINI_CHANNEL)
    two = run(tmp_path, "two", [b], title="Two")
    lines = score(one, two, "--against", two)
    assert "more than Two, paired" in lines[0]
    (row,) = (line for line in lines if line.startswith("One"))  # one unseen-domain task: no row
    expected = text_metrics.difference(
        [task.predictions for task in a.tasks[1:]], [task.predictions for task in b.tasks]
    )
    assert re.search(r"TextMini-Channel-v0\s+all test tasks\s+4\s", row)
    assert f"+{100 * expected.mean.mean:.1f} ± {100 * expected.mean.half_width:.1f}" in row
    assert f"+{100 * expected.worst.mean:.1f} ± {100 * expected.worst.half_width:.1f}" in row


def test_gains_of_several_seeds_are_those_of_their_mean(tmp_path: Path) -> None:
    tasks = ["mini-keys-9", "mini-keys-10", "mini-picks-4", "mini-topics-7"]
    ours = [text_result(MINI, 0.9, seed, tasks=tasks) for seed in (0, 1)]
    theirs = [text_result(MINI, 0.5, seed, tasks=tasks) for seed in (2, 3, 4)]
    runs = [run(tmp_path / str(i), "a", [r], seed=i) for i, r in enumerate(ours)]
    others = [run(tmp_path / str(i), "b", [r], seed=i) for i, r in enumerate(theirs)]
    lines = gains_from_text_runs([load_run(p) for p in runs], [load_run(p) for p in others])
    (row,) = (line for line in lines.splitlines() if MINI in line)
    both = text_metrics.resample([[t.predictions for t in r.tasks] for r in (*ours, *theirs)])
    gain = (text_metrics.average(both[:2]) - text_metrics.average(both[2:])).summary()
    assert "(mean of seeds 0, 1, 2), paired" in lines
    assert f"+{100 * gain.mean.mean:.1f} ± {100 * gain.mean.half_width:.1f}" in row
    assert re.search(r"\s0 1\s", row)


def test_gains_need_the_same_queries(tmp_path: Path, score: Callable[..., list[str]]) -> None:
    tasks = ["mini-keys-9", "mini-keys-10"]
    whole = run(tmp_path, "one", [text_result(tasks=tasks)])
    part = run(tmp_path, "two", [text_result(tasks=tasks, queries=10)])
    with pytest.raises(ValueError, match="mini-keys-9: other queries were asked"):
        score(whole, "--against", part)
    other = run(tmp_path, "three", [text_result(PARA)], meta_train=PARA)
    with pytest.raises(ValueError, match="no two tasks in common"):
        score(whole, "--against", other)
    assert np.all(load_run(part).text[0].tasks[0].query == np.arange(10))


def test_tables_of_runs_tell_what_a_reader_must_know(tmp_path):
    root = tmp_path / "runs"
    few = text_runs(root, "few", seeds=(0, 1), asked={"queries": 5, "labels": "shuffled"})
    both = [
        text_run(root / "both", [text_result(env)], text_entry("both", meta_train=env), SUITE)
        for env in (MINI, MINI_CHANNEL, PARA)
    ]
    vectors = method_runs(root, "lstm", seeds=(0,))
    text = board_from_runs([load_run(run) for run in [*few, *both, *vectors]])
    assert "accuracy (%) at the last step" in text
    lines = [line.split() for line in text.splitlines()]
    rows = [line for line in lines if line[:1] in (["BOTH"], ["FEW"])]
    assert [row[:2] for row in rows[:3]] == [
        ["BOTH", "direct"],
        ["BOTH", "channel"],
        ["FEW", "direct"],
    ]
    assert rows[1][2] == "–"  # NonParaToPara
    assert "few: TextMini-ICL-v0: 33 of 33 test tasks, 165 of 3,300 queries." in text
    assert "few: TextMini-ICL-v0: not the standard evaluation: shuffled labels, 16 dem" in text
    only = board_from_runs([load_run(run) for run in [*both, *vectors]], SUITE)
    assert "TextMini" not in only
    assert "LSTM" not in only
    with pytest.raises(ValueError, match="no results on text of metaicl-v0"):
        board_from_runs([load_run(run) for run in few], SUITE)


def test_runs_of_one_method_may_each_have_an_environment_of_their_own(tmp_path):
    made = text_runs(tmp_path, seeds=(0,), envs=(PARA, NLI), suite=SUITE)
    text = board_from_runs([load_run(run) for run in made])
    (whole, *_) = [line for line in text.splitlines() if line.startswith("METAICL")]
    assert len(re.findall("±", whole)) == 2
    other = text_runs(tmp_path / "2", seeds=(1,), envs=(PARA,), suite=SUITE, parameters=7)
    with pytest.raises(ValueError, match="they differ in parameters: 1234 and 7"):
        board_from_runs([load_run(run) for run in [*made, *other]])
    twice = text_runs(tmp_path / "3", seeds=(0,), envs=(PARA,), suite=SUITE)
    with pytest.raises(ValueError, match=f"both hold metaicl with seed 0 on {PARA}"):
        board_from_runs([load_run(run) for run in [*made, *twice]])
