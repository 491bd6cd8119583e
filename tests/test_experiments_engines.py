"""The same bits whoever computes; a failure is told, what dies is tried again and goes on."""

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_sweeps import (
    LONG,
    experiment,
    holder,
    is_running,
    kill_worker,
    rows,
    stamps,
    tiny,
    under_way,
    wait_for,
)

from baselines import checkpoint, gpicl
from baselines.experiments import engines
from baselines.experiments import sweep as sweep_module
from baselines.experiments.engines import InProcess, Outcome, Pool, is_full
from baselines.experiments.spec import COLUMNS, ExperimentError, Measure, Run, settings
from baselines.experiments.store import Store
from baselines.experiments.sweep import check_inputs, read_table, sweep, weights_of
from baselines.sequence import build_model


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "out")


def in_background(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def test_finished_runs_are_not_computed_again(store: Store) -> None:
    runs = [tiny(seed=seed) for seed in range(3)]
    first = sweep(experiment(runs), "cpu", runs[:2], store, InProcess())
    assert (first.finished, first.total, first.failed) == (2, 2, ())
    noted = stamps(store, runs[:2])
    assert sweep(experiment(runs), "cpu", runs, store, InProcess()).finished == 3
    assert stamps(store, runs[:2]) == noted
    table = read_table(first.folder)
    assert list(table["run"].unique()) == [run.key for run in runs]
    assert sorted(path.name for path in first.folder.iterdir()) == [
        *("figure.png", "summary.csv", "table.parquet", "verdict.json", "verdict.md")
    ]
    assert (first.folder / "summary.csv").read_text() == "runs\n3\n"


def test_rows_are_of_the_log_the_curves_while_training_and_the_learner(store: Store) -> None:
    run = tiny()
    folder = sweep(experiment([run]), "cpu", [run], store, InProcess()).folder
    table = read_table(folder)
    final = table[table["source"] == "final"]
    for on in ("seen", "unseen"):
        for metric in ("accuracy", "loss"):
            curve = final[(final["on"] == on) & (final["metric"] == metric)]
            assert list(curve["t"]) == list(range(5))
    assert set(final["outer_step"]) == {10}
    watched = table[table["source"] == "eval"]
    assert set(watched["outer_step"]) == {5, 10}
    assert {"val", "seen", "unseen"} <= set(watched["on"])
    log = table[(table["source"] == "train") & (table["metric"] == "loss")]
    assert list(log["outer_step"]) == [5, 10]
    assert not any(word in name for name in table["metric"] for word in ("wall", "seconds"))


def test_a_run_that_fails_does_not_stop_the_others_and_is_tried_again(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [tiny(lr=1e30, optimizer="adam", seed=0), tiny(seed=1)]
    for _ in range(2):
        report = sweep(experiment(runs), "cpu", runs, store, InProcess())
        assert (report.finished, report.total, report.verdict) == (1, 2, None)
        (failed,) = report.failed
        assert failed.run == runs[0]
        assert failed.error is not None
        assert failed.error.startswith("FloatingPointError: ")
        folder = store.run_folder(runs[0].key)
        assert f"{failed.error}; see {folder / 'failed.txt'}" in capsys.readouterr().err
        assert "Traceback" in (folder / "failed.txt").read_text()
        assert store.state(runs[0].key) == "failed"
        # A point without a run: its table is there, what it shows is not.
        assert [path.name for path in report.folder.iterdir()] == ["table.parquet"]
    assert len((folder / "log.txt").read_text().split(": process ")) == 3


@pytest.mark.parametrize("every", [0.0, 60.0])
def test_a_log_without_a_terminal_tells_how_far_it_is(
    store: Store,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    every: float,
) -> None:
    monkeypatch.setattr(sweep_module, "TELL_EVERY", every)
    runs = [tiny(), tiny(lr=1e30, optimizer="adam", seed=1)]
    sweep(experiment(runs), "cpu", runs, store, InProcess())
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tiny: ")]
    assert told == ([] if every else ["tiny: 1 of 2 runs", "tiny: 2 of 2 runs, 1 failed"])


@pytest.mark.parametrize("engine", [InProcess(together=3), Pool(workers=1, together=3)])
def test_a_disk_that_is_full_before_a_group_begins_is_told(
    store: Store, engine: engines.Engine
) -> None:
    runs = [tiny(seed=seed) for seed in range(3)]
    with pytest.raises(ExperimentError, match="a disk is full: OSError"):
        sweep(experiment(runs), "cpu", runs, Full(store.root), engine)
    assert not any(store.is_finished(run.key) for run in runs)


class Full(Store):
    """A folder without room for the settings of a run."""

    def prepare(self, run: Run) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), OSError(errno.EDQUOT, "quota")])
def test_a_full_disk_is_known_by_its_number_through_what_came_of_it(error: OSError) -> None:
    outer = RuntimeError("cannot save")
    outer.__cause__ = error
    assert is_full(error)
    assert is_full(outer)
    assert is_full(ValueError("I/O error: No space left on device (os error 28)"))
    assert not is_full(RuntimeError("cannot save"))
    assert not is_full(OSError(errno.EACCES, "forbidden"))


def test_an_interrupt_in_this_process_leaves_a_checkpoint_and_bits_stay_the_same(
    store: Store, tmp_path: Path
) -> None:
    runs = [tiny(seed=0), tiny(seed=1, **LONG)]
    folder = store.run_folder(runs[1].key)

    def interrupt() -> None:
        wait_for(lambda: under_way(folder))
        os.kill(os.getpid(), signal.SIGINT)

    thread = in_background(interrupt)
    with pytest.raises(KeyboardInterrupt):
        sweep(experiment(runs), "cpu", runs, store, InProcess())
    thread.join()
    assert [store.state(run.key) for run in runs] == ["finished", "begun"]
    assert sweep(experiment(runs), "cpu", runs, store, InProcess()).finished == 2
    whole = Store(tmp_path / "whole")
    sweep(experiment(runs), "cpu", runs, whole, InProcess())
    assert rows(store, runs) == rows(whole, runs)


def test_a_pool_has_the_bits_of_one_process_and_survives_the_death_of_a_worker(
    store: Store, tmp_path: Path
) -> None:
    runs = [tiny(seed=0, **LONG), *(tiny(seed=seed) for seed in range(1, 5))]
    folder = store.run_folder(runs[0].key)
    kept: list[bytes] = []
    thread = in_background(lambda: kept.extend(kill_worker(folder)))
    report = sweep(experiment(runs), "cpu", runs, store, Pool(workers=2))
    thread.join()
    assert (report.finished, report.failed) == (5, ())
    log = (folder / "metrics.jsonl").read_bytes().splitlines()
    assert 0 < len(kept) < len(log)
    assert log[: len(kept)] == kept, "the run did not go on from its checkpoint"
    assert len((folder / "log.txt").read_text().split(": process ")) == 3
    alone = Store(tmp_path / "alone")
    sweep(experiment(runs), "cpu", runs, alone, InProcess())
    assert rows(store, runs) == rows(alone, runs)


@pytest.mark.slow
def test_a_run_whose_worker_dies_too_often_is_told_and_the_others_are_computed(
    store: Store,
) -> None:
    runs = [tiny(seed=0, **LONG), tiny(seed=1)]
    thread = in_background(lambda: kill_worker(store.run_folder(runs[0].key)))
    report = sweep(experiment(runs), "cpu", runs, store, Pool(workers=1, retries=0))
    thread.join()
    assert [(found.run, found.error) for found in report.failed] == [
        (runs[0], "its worker died 1 times")
    ]
    assert [store.state(run.key) for run in runs] == ["begun", "finished"]


@pytest.mark.slow
def test_a_pool_that_is_closed_ends_its_workers_and_they_leave_checkpoints(store: Store) -> None:
    runs = [tiny(seed=0), tiny(seed=1, **LONG)]
    folder = store.run_folder(runs[1].key)
    outcomes = Pool(workers=1).outcomes(runs, store)
    assert next(outcomes) == Outcome(runs[0])
    wait_for(lambda: under_way(folder))
    worker = holder(folder)
    state = checkpoint.load(folder)
    began = time.monotonic()
    outcomes.close()
    assert time.monotonic() - began < engines.GRACE
    assert not is_running(worker)
    after = checkpoint.load(folder)
    assert state is not None
    assert after is not None
    assert state["step"] <= after["step"] < LONG["steps"]
    assert after["step"] % LONG["checkpoint_every"] != 0 or after["step"] > state["step"]


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (Pool(workers=0), "--workers must be 1 or more, not 0"),
        (Pool(retries=-1), "--retries must be 0 or more, not -1"),
        (InProcess(threads=0), "--threads must be 1 or more, not 0"),
    ],
)
def test_engines_out_of_range_are_refused_before_any_run(
    store: Store, engine: engines.Engine, message: str
) -> None:
    runs = [tiny()]
    with pytest.raises(ExperimentError, match=message):
        sweep(experiment(runs), "cpu", runs, store, engine)
    assert not (store.root / "runs").exists()


# What is looked at before any run begins


def test_a_data_set_that_is_not_at_hand_is_an_error_before_any_run(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICL_BENCH_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv("ICL_BENCH_CACHE", str(tmp_path / "cache"))
    runs = [tiny(), tiny(env="KMNIST-Proj8-v0", seed=3)]
    with pytest.raises(ExperimentError, match=r"gpicl, seed 3: .*KMNIST.*icl-bench download"):
        sweep(experiment(runs), "cpu", runs, store, InProcess())
    assert not (store.root / "runs").exists()


def test_weights_are_counted_without_making_them() -> None:
    run = tiny(width=16)
    model = build_model(gpicl.METHOD, run.config)
    assert weights_of(run) == sum(t.nbytes for t in model.state_dict().values())
    assert check_inputs([run, tiny(width=16, seed=1)]) == [weights_of(run)] * 2
    assert weights_of(Run("1-nn", run.config)) == 0


def test_a_model_that_cannot_be_built_is_an_error_before_any_run(store: Store) -> None:
    runs = [tiny(heads=3, seed=2)]
    with pytest.raises(ExperimentError, match=r"gpicl, seed 2: .*heads|gpicl, seed 2: .*width"):
        experiment(runs).runs("cpu")


# What is measured


def test_a_learner_that_is_not_trained_is_measured(store: Store) -> None:
    config = settings("1-nn", "cpu", env="DigitsLow-Proj4-v0")
    run = Run("1-nn", config, Measure(("unseen", "DigitsHigh-Proj4-v0"), episodes=16))
    report = sweep(experiment([run]), "cpu", [run], store, InProcess())
    table = read_table(report.folder)
    accuracy = table[(table["on"] == "unseen") & (table["metric"] == "accuracy")]
    assert accuracy["value"].iloc[-10:].mean() > accuracy["value"].iloc[0] + 0.2


def test_runs_trained_together_give_what_they_give_alone(store: Store, tmp_path: Path) -> None:
    """A group of three, one of two, and one that fails; two seeds differ in their rate as well."""
    good = [tiny(seed=seed, lr=1e-3 * (1 + seed), optimizer="adam") for seed in range(4)]
    bad = tiny(seed=9, lr=1e30, optimizer="adam")
    runs = [*good[:2], bad, *good[2:]]
    report = sweep(experiment(runs), "cpu", runs, store, InProcess(together=3))
    assert [found.run for found in report.failed] == [bad]
    assert (store.run_folder(bad.key) / "failed.txt").exists()
    alone = Store(tmp_path / "alone")
    sweep(experiment(good), "cpu", good, alone, InProcess())
    names = [*COLUMNS]
    for run in good:
        together, single = (
            pd.read_parquet(s.run_folder(run.key) / "rows.parquet") for s in (store, alone)
        )
        about = [name for name in names if name != "value"]
        pd.testing.assert_frame_equal(together[about], single[about])
        training = together["source"] == "train"
        np.testing.assert_allclose(
            together.value[training], single.value[training], rtol=1e-3, atol=1e-6
        )


def test_a_pool_computes_groups(store: Store) -> None:
    runs = [tiny(seed=seed, optimizer="adam") for seed in range(3)]
    pool = Pool(workers=1, together=2)
    assert sweep(experiment(runs), "cpu", runs, store, pool).finished == 3
    with pytest.raises(ExperimentError, match="--together must be 1 or more, not 0"):
        Pool(together=0).check(store)
