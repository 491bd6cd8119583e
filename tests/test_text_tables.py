"""Tables of text runs by task, and gains over another run."""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from synthetic_text import MINI, MINI_CHANNEL, MINI_SUITE, PARA, text_entry, text_result, text_run

from icl_bench.evaluation import text_metrics
from icl_bench.evaluation.text_result import TextResult
from icl_bench.leaderboard.cli import add_parsers
from icl_bench.leaderboard.runs import load_run


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
