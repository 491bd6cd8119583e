"""Learning curves in a few numbers, marks of rows, and what a board tells of an entry."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from synthetic_results import simulated_result
from synthetic_runs import (
    DIGITS,
    ENVS,
    RANDOM,
    SUITE,
    entry_info,
    frozen_result,
    random_correct,
    run_folder,
)
from synthetic_text import MINI, MINI_CHANNEL, MINI_SUITE, hand_in, text_result

from icl_bench.evaluation import metrics, text_metrics
from icl_bench.evaluation.statistics import Interval, task_interval
from icl_bench.leaderboard.export import curves_csv
from icl_bench.leaderboard.formatting import DASH, plus_minus
from icl_bench.leaderboard.marks import (
    about_part,
    flagged_parts,
    is_doubtful,
    replayed_envs,
    row_marks,
    taxonomy_text,
)
from icl_bench.leaderboard.replays import (
    ROUNDING,
    ReplayCell,
    ReplayRecord,
    record_path,
    replay_digest,
    write_record,
)
from icl_bench.leaderboard.scoring import (
    EntryScore,
    SuiteScore,
    score_column,
    score_entry,
    score_suite,
)
from icl_bench.leaderboard.submission import make_submission
from icl_bench.leaderboard.summaries import curve_parts, summarise_curve
from icl_bench.leaderboard.text_scoring import score_text_suite

STEPS = (0, 1, 4, 9, 19, 49, 99)


def test_a_curve_is_summarised_as_by_hand():
    column = score_column([simulated_result(np.full((256, 100), 0.1), seed=0)], 256)
    curve = np.concatenate([np.linspace(0.1, 0.7, 61), np.full(39, 0.7)])
    curve[3] = 0.9  # one lucky step
    made = dataclasses.replace(
        column,
        curve=curve,
        curve_low=curve - 0.05,
        curve_high=curve + 0.1,
        area=Interval(curve.mean(), 0.4, 0.6),
    )
    summary = summarise_curve(made)
    assert tuple(summary.accuracy) == STEPS
    for step in STEPS:
        value = curve[step]
        assert summary.accuracy[step] == Interval(value, value - 0.05, value + 0.1)
    assert summary.area == made.area
    assert summary.examples_to == {0.5: 40, 0.8: None}


def test_seeds_are_averaged_before_a_curve_is_summarised():
    p = np.broadcast_to(np.linspace(0.1, 0.9, 100), (256, 100))
    results = [simulated_result(p, seed=seed) for seed in (1, 2, 3)]
    made = score_column(results, 256)
    summary = summarise_curve(made)
    for step in STEPS:
        mean = np.mean([metrics.summary_accuracies(result)[step] for result in results])
        interval = summary.accuracy[step]
        assert interval.mean == pytest.approx(mean)
        assert interval.low <= mean <= interval.high
    assert summary.area.mean == pytest.approx(metrics.area_under_curve(made.curve))
    # Of each episode its mean over seeds and steps, and of these the interval over tasks.
    areas = np.mean([result.correct.mean(axis=1) for result in results], axis=0)
    expected = task_interval(areas, results[0].task)
    assert dataclasses.astuple(summary.area) == pytest.approx(dataclasses.astuple(expected))
    assert summary.area.half_width > 0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("boards")

    def enter(name: str, rate: float, seeds=(0, 1), envs=ENVS, **fields: object) -> None:
        made = [
            run_folder(
                base / "runs",
                [frozen_result(env, honest(rate, 10 * seed + i)) for i, env in enumerate(envs)],
                entry_info(name, seed=seed, **fields),
            )
            for seed in seeds
        ]
        make_submission(made, base / "root" / SUITE / name, SUITE, allow_missing=True)

    enter("good", 0.9, title="Good")
    enter("half", 0.45, title="Half", seeds=(7,), envs=(RANDOM,), gpu_hours=None)
    return base / "root"


def honest(rate: float, seed: int) -> np.ndarray:
    """Right at random, and at step 0 no more often than anyone can be."""
    right = random_correct(rate, seed)
    return right


@pytest.fixture(scope="module")
def score(root: Path) -> SuiteScore:
    return score_suite(root / SUITE)


def test_curves_csv_has_all_environments(score):
    rows = list(csv.DictReader(curves_csv(score).splitlines()))
    assert [(row["entry"], row["env"]) for row in rows] == [
        *(("good", env) for env in ENVS),
        ("half", RANDOM),
    ]
    for row in rows:
        entry = next(e for e in score.entries if e.entry.name == row["entry"])
        column = entry.columns[row["env"]]
        assert float(row["accuracy_99"]) == pytest.approx(column.accuracy.mean, abs=1e-6)
        assert float(row["low_99"]) == pytest.approx(column.accuracy.low, abs=1e-6)
        assert float(row["high_99"]) == pytest.approx(column.accuracy.high, abs=1e-6)
        assert float(row["area"]) == pytest.approx(column.curve.mean(), abs=1e-6)
        assert float(row["area_low"]) == pytest.approx(column.area.low, abs=1e-6)
        assert float(row["area_high"]) == pytest.approx(column.area.high, abs=1e-6)
        assert float(row["area_low"]) < float(row["area"]) < float(row["area_high"])
        for step in STEPS:
            loss = float(row[f"log_loss_{step}"])
            assert loss == pytest.approx(column.log_loss[step], abs=1e-6)
    assert (rows[0]["examples_to_50"], rows[2]["examples_to_80"]) == ("1", "")


def test_the_table_is_about_the_environment_of_meta_training(score):
    (part,) = curve_parts(score)
    assert f"on `{DIGITS}` after 0, 1, … 99 labelled" in part
    rows = [line for line in part.splitlines() if line.startswith("| ")]
    assert len(rows) == 2  # the header and Good: Half has another environment alone
    cells = [cell.strip() for cell in rows[1].split("|")[1:-1]]
    summary = summarise_curve(score.entries[0].columns[DIGITS])
    assert cells[0] == "Good"
    assert cells[7].startswith(f"{100 * summary.accuracy[99].mean:.1f} ± ")
    assert cells[8:11] == [plus_minus(summary.area), "1", "1"]
    without = [e for e in score.entries if e.entry.name == "half"]
    assert curve_parts(dataclasses.replace(score, entries=tuple(without))) == []


# --- marks


def cell(differing: float = 0.0, tuned: bool = False) -> ReplayCell:
    gap = Interval(0.0, -0.1, 0.1)
    return ReplayCell(differing, frozen=0.9, fresh=0.9, gap=gap, first_step_p=0.5, tuned=tuned)


def replayed(root: Path, **fields: object) -> EntryScore:
    """The score of ``good`` with a record of a replay."""
    entry = root / SUITE / "good"
    record = ReplayRecord(
        **{
            "digest": replay_digest(entry),
            "package_version": "0.1.0",
            "cells": {seed: {env: cell() for env in ENVS} for seed in (0, 1)},
            "taxonomy": {DIGITS: "learns"},
        }
        | fields
    )
    path = record_path(root, SUITE, "good")
    write_record(path, record)
    score = score_entry(entry)
    path.unlink()
    return score


@pytest.mark.parametrize(
    ("cells", "envs", "marks"),
    [
        (
            {seed: {env: cell(ROUNDING) for env in ENVS} for seed in (0, 1)},
            list(ENVS),
            ["replayed"],
        ),
        (
            {0: {env: cell() for env in ENVS}, 1: {DIGITS: cell()}},
            [DIGITS],
            ["replayed in part: 1 of 2 columns"],
        ),
        (
            {seed: {DIGITS: cell(0.01), RANDOM: cell()} for seed in (0, 1)},
            [RANDOM],
            ["replayed in part: 1 of 2 columns", "replay differs"],
        ),
        ({seed: {env: cell(0.5) for env in ENVS} for seed in (0, 1)}, [], ["replay differs"]),
        ({0: {env: cell() for env in ENVS}}, [], []),  # the other seed was not run again
        ({}, [], []),
    ],
)
def test_replayed_means_every_seed_and_column(root, cells, envs, marks):
    score = replayed(root, cells=cells)
    assert replayed_envs(score) == envs
    assert row_marks(score, DIGITS) == marks
    assert is_doubtful(score) == ("replay differs" in marks)


def test_a_record_of_other_files_is_no_mark(root):
    score = replayed(root, digest="0" * 64, taxonomy={DIGITS: "identifies"})
    assert score.replay is None
    assert row_marks(score, DIGITS) == []
    assert taxonomy_text(score) == "learns"  # as the rise on unseen tasks shows without a record
    flat = dataclasses.replace(score.columns[DIGITS], rise=Interval(0.1, -0.1, 0.3))
    assert taxonomy_text(dataclasses.replace(score, columns={DIGITS: flat})) == DASH


def test_flags_ask_for_a_replay_until_there_is_one(root):
    whole = dataclasses.replace(replayed(root), flags=("odd at step 0",))
    part = dataclasses.replace(
        replayed(root, cells={seed: {DIGITS: cell()} for seed in (0, 1)}), flags=whole.flags
    )
    assert row_marks(whole, DIGITS) == ["replayed"]
    assert row_marks(part, DIGITS) == ["replayed in part: 1 of 2 columns", "needs replay"]
    assert flagged_parts([whole]) == []
    assert "odd at step 0" in flagged_parts([part])[1]


def test_a_learner_that_is_worse_on_fresh_tasks_is_marked(root):
    cells = {seed: {env: cell(tuned=seed == 1) for env in ENVS} for seed in (0, 1)}
    marks = row_marks(replayed(root, cells=cells), DIGITS)
    assert marks == ["worse on fresh tasks"]  # it gave the same predictions, which is not enough


def test_what_is_told_of_a_method(root, score):
    told = about_part([replayed(root), score.entries[1]])
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in told.splitlines()
        if line.startswith("| ")
    ]
    assert rows[1:] == [
        ["Good", "learns", DIGITS, "none", "a CPU", "1.0", "1,234", "56"],
        ["Half", DASH, DIGITS, "none", "a CPU", DASH, "1,234", "56"],
    ]
    two = replayed(root, taxonomy={DIGITS: "learns", RANDOM: "identifies"})
    assert taxonomy_text(two) == f"learns ({DIGITS}), identifies ({RANDOM})"
    same = replayed(root, taxonomy={DIGITS: "memorises", RANDOM: "memorises"})
    assert taxonomy_text(same) == "memorises"


@pytest.mark.parametrize(("env", "other"), [(MINI, MINI_CHANNEL), (MINI_CHANNEL, MINI)])
def test_text_entries_are_replayed_in_their_view(tmp_path, monkeypatch, env, other):
    monkeypatch.setattr(text_metrics, "NUM_REPLICATES", 100)
    entry = hand_in(tmp_path, "one", text_result(env), suite=MINI_SUITE)
    path = record_path(tmp_path, MINI_SUITE, "one")
    for found, marks in ((env, ["replayed"]), (other, [])):
        record = ReplayRecord(replay_digest(entry), "0.1.0", {0: {found: cell()}}, {})
        write_record(path, record)
        (score,) = score_text_suite(tmp_path / MINI_SUITE).entries.values()
        assert row_marks(score, MINI_SUITE) == marks
