"""Runs are named by what decides their numbers, and their folder holds them or says why not."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pytest
from tiny_sweeps import experiment, rows, stamps, tiny

from baselines.experiments import store as store_module
from baselines.experiments.engines import InProcess
from baselines.experiments.execute import rows_of
from baselines.experiments.spec import ExperimentError, Measure, Run
from baselines.experiments.store import BusyError, Store, column_of
from baselines.experiments.sweep import sweep


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "out")


def some_rows(value: float = 0.5) -> pd.DataFrame:
    return rows_of("final", "unseen", 10, np.arange(2), "accuracy", [0.1, value])


def finish(store: Store, run: Run, value: float = 0.5) -> None:
    store.prepare(run)
    store.finish(run.key, some_rows(value), seconds=0.0)


# Keys


def test_places_labels_and_names_are_no_part_of_the_key() -> None:
    run = tiny()
    for same in (
        dataclasses.replace(run, labels={"what": 3}),
        dataclasses.replace(run, config=dataclasses.replace(run.config, runs="elsewhere")),
        dataclasses.replace(run, config=dataclasses.replace(run.config, device="cuda:3")),
        dataclasses.replace(run, config=dataclasses.replace(run.config, preset="paper")),
        tiny(lr=run.config.lr, weight_decay=0),  # a whole number of a float
    ):
        assert same.key == run.key


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"lr": 1e-4}, {"num_tasks": None}, {"repeat_steps": (0, 1)}]
)
def test_any_other_setting_is_another_run(changes: dict[str, Any]) -> None:
    assert tiny(**changes).key != tiny().key


@pytest.mark.parametrize("measure", [Measure(("unseen",), 16), Measure(episodes=32)])
def test_another_measure_is_another_run(measure: Measure) -> None:
    assert dataclasses.replace(tiny(), measure=measure).key != tiny().key


def test_the_key_stays_the_same_between_versions() -> None:
    """Folders of runs outlive a version: another key is another FORMAT or another number."""
    content = tiny().content()
    assert set(content) == {"format", "baseline", "settings", "measure", "environments"}
    assert "device" not in content["settings"]
    assert content["measure"] == {"on": ["seen", "unseen"], "episodes": 16, "suite": False}
    assert json.loads(json.dumps(content)) == content


@pytest.mark.parametrize("name", ["t", "value", "metric"])
def test_a_label_that_is_a_column_already_is_refused(name: str) -> None:
    with pytest.raises(ExperimentError, match=f"a label '{name}'"):
        dataclasses.replace(tiny(), labels={name: 1}).check()


# Finished


DAMAGES = {
    "rows.parquet": [b"", b"PAR1", None],
    "done.json": [b"", b"{", b"[]", b'"rows"', b"{}", b'{"rows": "0"}', b"\xff", None],
}


@pytest.mark.parametrize(
    ("name", "content"), [(name, c) for name, found in DAMAGES.items() for c in found]
)
def test_a_damaged_run_is_not_finished(store: Store, name: str, content: bytes | None) -> None:
    run = tiny()
    finish(store, run)
    assert store.is_finished(run.key)
    path = store.run_folder(run.key) / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert not store.is_finished(run.key)
    assert store.state(run.key) == "to do"
    assert store.table([run]).empty


def test_damaged_runs_alone_are_computed_again_and_have_the_same_rows(store: Store) -> None:
    runs = [tiny(seed=seed) for seed in range(3)]
    sweep(experiment(runs), "cpu", runs, store, InProcess())
    before, noted = rows(store, runs), stamps(store, runs)
    (store.run_folder(runs[0].key) / "rows.parquet").write_bytes(b"PAR1")
    (store.run_folder(runs[1].key) / "done.json").write_text("{")
    report = sweep(experiment(runs), "cpu", runs, store, InProcess())
    assert (report.finished, report.failed) == (3, ())
    assert rows(store, runs) == before
    after = stamps(store, runs)
    assert [noted[run.key] == after[run.key] for run in runs] == [False, False, True]


# Tables


def labelled(**labels: Any) -> list[Run]:
    values = zip(*labels.values(), strict=True)
    return [
        dataclasses.replace(tiny(seed=seed), labels=dict(zip(labels, row, strict=True)))
        for seed, row in enumerate(values)
    ]


def test_a_table_has_one_number_a_row_and_settings_that_differ_as_columns(store: Store) -> None:
    runs = [tiny(seed=s, num_tasks=n) for n in (4, None) for s in (0, 1)]
    for run in runs:
        finish(store, run)
    table = store.table(runs)
    assert list(table.columns) == [
        *("run", "baseline", "env", "seed", "num_tasks"),
        *("source", "on", "outer_step", "t", "metric", "value"),
    ]
    assert len(table) == 8
    first = table.drop_duplicates("run").set_index("run")
    assert [first.num_tasks[run.key] for run in runs[:2]] == [4, 4]
    assert first.num_tasks[[run.key for run in runs[2:]]].isna().all()
    assert first.seed[runs[3].key] == 1
    assert table.num_tasks.dtype == "Int64"


@pytest.mark.parametrize(
    ("values", "dtype", "back"),
    [
        ([1, None, 2**40], "Int64", [1, None, 2**40]),
        ([1, 2, 3], "int64", [1, 2, 3]),
        ([1, 0.5, None], "Float64", [1.0, 0.5, None]),
        ([True, None, False], "boolean", [True, None, False]),
        (["a", None, "b"], "str", ["a", None, "b"]),
        ([1, "a", None], "str", ["1", "a", None]),
        ([None, None, None], "str", [None, None, None]),
    ],
)
def test_columns_of_any_values_survive_parquet(
    store: Store, tmp_path: Path, values: list[Any], dtype: str, back: list[Any]
) -> None:
    assert str(column_of(values).dtype) == dtype
    runs = labelled(what=values)
    for run in runs:
        finish(store, run)
    table = store.table(runs)
    table.to_parquet(tmp_path / "table.parquet", index=False)
    read = pd.read_parquet(tmp_path / "table.parquet")
    pd.testing.assert_frame_equal(read, table)
    found = read.drop_duplicates("run")["what"]
    assert [None if pd.isna(value) else value for value in found] == back


def test_a_setting_of_several_values_is_a_column_of_words(store: Store) -> None:
    runs = [tiny(repeat_steps=steps, seed=seed) for seed, steps in enumerate([(0, 7), (3, 9)])]
    for run in runs:
        finish(store, run)
    found = store.table(runs).drop_duplicates("run")["repeat_steps"]
    assert list(found) == ["0 7", "3 9"]
    assert list(column_of([(1,), None, (2, 3)]).dropna()) == ["1", "2 3"]


def test_columns_do_not_depend_on_which_runs_are_finished(store: Store) -> None:
    runs = [tiny(lr=lr, num_tasks=n, seed=s) for lr, n, s in [(0.1, 4, 0), (0.2, 8, 1)]]
    runs = [dataclasses.replace(runs[0], labels={"b": 1}), runs[1]]
    finish(store, runs[1])
    part = store.table(runs)
    finish(store, runs[0])
    whole = store.table(runs)
    assert list(part.columns) == list(whole.columns)
    assert list(whole.columns)[3:7] == ["seed", "num_tasks", "lr", "b"]


@pytest.mark.parametrize(
    "wrong",
    [
        some_rows().drop(columns="t"),
        some_rows().assign(more=1),
        some_rows()[["on", "source", "outer_step", "t", "metric", "value"]],
        some_rows().astype({"value": "float32"}),
        some_rows().astype({"t": "int64"}),
    ],
)
def test_rows_of_another_form_are_refused(store: Store, wrong: pd.DataFrame) -> None:
    run = tiny()
    store.prepare(run)
    with pytest.raises(ValueError, match="must be"):
        store.finish(run.key, wrong)
    assert not store.is_finished(run.key)


# Who works in it


def test_a_second_driver_is_refused_and_the_first_one_named(store: Store) -> None:
    with store.driver():
        with pytest.raises(BusyError, match=rf"another driver \(process {os.getpid()} on "):
            store.driver().__enter__()
        assert f"process {os.getpid()}" in (store.root / "driver.lock").read_text()
    with store.driver():
        pass


def test_a_run_waits_for_the_worker_of_a_driver_that_was_killed(store: Store) -> None:
    begun, over = threading.Event(), threading.Event()

    def work() -> None:
        with store.worker("0"):
            begun.set()
            over.wait(10)

    other = threading.Thread(target=work)
    other.start()
    begun.wait(10)
    threading.Timer(0.3, over.set).start()
    with store.worker("0"):
        assert over.is_set()
    other.join()


def test_a_run_that_another_process_keeps_is_an_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "PATIENCE", 0.2)
    with store.worker("0"), pytest.raises(BusyError, match=r"runs/0 is still computed by another"):
        store.worker("0").__enter__()


# Room


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExperimentError, match=r"cannot write in .*/file/out .*: choose another"):
        Store(tmp_path / "file" / "out").driver().__enter__()


def test_too_little_room_is_an_error_before_any_run(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(store.root.parent)._replace(free=3 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    store.check_space([1000, 1000])
    runs = [tiny(seed=seed) for seed in range(4)]
    with pytest.raises(ExperimentError, match=r"has 3 MiB free, and 4 runs may need 4"):
        sweep(experiment(runs), "cpu", runs, store, InProcess())
    with pytest.raises(ExperimentError, match=r"has 3 MiB free, and 1 runs may need"):
        store.check_space([2**20])  # checkpoints hold the weights several times
    store.check_space([2**16, 2**16])
    with pytest.raises(ExperimentError, match=r"has 3 MiB free, and 2 runs may need"):
        store.check_space([2**16, 2**16], at_once=2)
    assert not (store.root / "runs").exists()


def test_a_disk_that_is_full_ends_the_sweep_and_keeps_what_is_finished(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [tiny(seed=seed) for seed in range(3)]
    original = store_module.atomic_path

    def full(path: Path) -> Any:
        if runs[1].key in str(path) and path.name == "rows.parquet":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return original(path)

    monkeypatch.setattr(store_module, "atomic_path", full)
    with pytest.raises(ExperimentError, match=r"a disk is full: .*No space left.*goes on"):
        sweep(experiment(runs), "cpu", runs, store, InProcess())
    assert [store.is_finished(run.key) for run in runs] == [True, False, False]
    monkeypatch.undo()
    noted = stamps(store, runs[:1])
    assert sweep(experiment(runs), "cpu", runs, store, InProcess()).finished == 3
    assert stamps(store, runs[:1]) == noted


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(file: IO[bytes]) -> None:
    while True:
        file.write(bytes(4096))


def test_a_real_full_disk_is_told_and_nothing_is_half_written(small_disk: Path) -> None:
    store = Store(small_disk / "out")
    runs = [tiny(seed=seed) for seed in range(2)]
    sweep(experiment(runs), "cpu", runs[:1], store, InProcess())
    filler = small_disk / "filler"

    class Filling(InProcess):
        """Fills the disk when the sweep has begun."""

        def outcomes(self, runs: Any, store: Store) -> Any:
            with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
                fill(file)
            return super().outcomes(runs, store)

    with pytest.raises(ExperimentError, match=r"a disk is full: .*No space left"):
        sweep(experiment(runs), "cpu", runs, store, Filling())
    assert store.is_finished(runs[0].key)
    filler.unlink()
    report = sweep(experiment(runs), "cpu", runs, store, InProcess())
    assert (report.finished, report.failed) == (2, ())
