"""The folder of runs: which are finished, who works in it, and the tables of experiments.

    <out>/driver.lock                 held by the one driver that works here
    <out>/runs/<key>/                 a run folder, as of any baseline, and
        run.json                      what the key is the hash of
        rows.parquet                  its rows of the table
        done.json                     finished; with the checksum of the rows
        failed.txt                    or why it failed, until it is tried again
        log.txt                       what it printed
    <out>/<experiment>-<preset>/      table.parquet, summary.csv, figure.png, verdict.json and .md

A run is finished when ``done.json`` is there and fits its rows. The locks are those of the
operating system: they end with the process that holds them, however it ends.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from baselines import checkpoint, common
from baselines.experiments.spec import COLUMNS, ExperimentError, Run
from icl_bench.data.cache import atomic_path, sha256_file

# Of a finished run, beyond its weights: log and rows.
BYTES_PER_RUN = 2**20

# Of a run under way: weights and Adam's two moments, in two checkpoints and one that is written.
CHECKPOINT_COPIES = 9

# Seconds until a run counts as computed by somebody else: longer than a worker outlives its driver.
PATIENCE = 60.0


class BusyError(ExperimentError):
    """Another process holds a lock that is needed."""


@dataclasses.dataclass(frozen=True)
class Store:
    """The folder of runs and experiments.

    Attributes:
        root: Its path; every worker must reach it under the same one.
    """

    root: Path

    def run_folder(self, key: str) -> Path:
        """Of the run with this key."""
        return self.root / "runs" / key

    def experiment_folder(self, experiment: str, preset: str) -> Path:
        """Of an experiment's table and figure."""
        return self.root / f"{experiment}-{preset}"

    def is_finished(self, key: str) -> bool:
        """Whether there are sound rows of the run."""
        folder = self.run_folder(key)
        try:
            done = json.loads((folder / "done.json").read_text())
            return bool(done["rows"] == sha256_file(folder / "rows.parquet"))
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def state(self, key: str) -> str:
        """How a run stands: ``finished``, ``failed``, ``begun`` or ``to do``."""
        if self.is_finished(key):
            return "finished"
        folder = self.run_folder(key)
        if (folder / "failed.txt").exists():
            return "failed"
        return "begun" if (folder / checkpoint.NEWEST).exists() else "to do"

    def prepare(self, run: Run) -> Path:
        """The folder of a run that is to be computed; what a kill left in it is kept.

        Raises:
            OSError: If it cannot be written, naming it and the way out.
        """
        folder = self.run_folder(run.key)
        if not (folder / "config.json").exists():
            config = dataclasses.replace(common.portable(run.config), resume=None)
            with atomic_path(folder / "run.json") as temporary:
                temporary.write_text(json.dumps(run.content(), indent=2, sort_keys=True) + "\n")
            with atomic_path(folder / "config.json") as temporary:
                temporary.write_text(common.config_to_json(config))
        (folder / "failed.txt").unlink(missing_ok=True)
        return folder

    def finish(self, key: str, rows: pd.DataFrame, **about: Any) -> None:
        """Note that a run is finished; its checkpoints go.

        Raises:
            ValueError: If the rows lack a column or have one too many, or another type of number.
        """
        check_rows(rows)
        folder = self.run_folder(key)
        with atomic_path(folder / "rows.parquet") as temporary:
            rows.to_parquet(temporary, index=False, compression="zstd")
        about["rows"] = sha256_file(folder / "rows.parquet")
        with atomic_path(folder / "done.json") as temporary:
            temporary.write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")
        for name in (checkpoint.NEWEST, checkpoint.PREVIOUS):
            (folder / name).unlink(missing_ok=True)

    def table(self, runs: Sequence[Run]) -> pd.DataFrame:
        """The tidy table of the finished ones among these runs, see ``spec``.

        Settings in which the runs differ are in the order of their fields, then labels in that of
        their first appearance. None is <NA>, and a tuple its values with spaces between.
        """
        finished = [run for run in runs if self.is_finished(run.key)]
        if not finished:
            return pd.DataFrame()
        varied = varied_settings(runs)
        labels = list(dict.fromkeys(name for run in runs for name in run.labels))
        parts, about = [], []
        for run in finished:
            parts.append(pd.read_parquet(self.run_folder(run.key) / "rows.parquet"))
            settings = dataclasses.asdict(run.config)
            cells = {name: settings.get(name) for name in varied}
            cells |= {name: run.labels.get(name) for name in labels}
            known = {"run": run.key, "baseline": run.baseline, "env": run.config.meta_train}
            about.append(known | {"seed": run.config.seed} | cells)
        every = pd.concat(parts, ignore_index=True)
        which = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        for place, name in enumerate(about[0]):
            column = column_of([cells[name] for cells in about])
            every.insert(place, name, column.take(which).reset_index(drop=True))
        return every

    def check_space(self, weights: Sequence[int], at_once: int = 1) -> None:
        """Raise unless the folder can be written and has room for runs.

        Args:
            weights: Bytes of the weights of each.
            at_once: Runs that are under way at the same time.

        Raises:
            ExperimentError: Naming the folder, what is free and what is needed.
            OSError: If it cannot be written, naming it and the way out.
        """
        with atomic_path(self.root / "probe.txt") as temporary:
            temporary.write_text("room for a word\n")
        (self.root / "probe.txt").unlink(missing_ok=True)
        free = shutil.disk_usage(self.root).free
        needed = sum(weights) + len(weights) * BYTES_PER_RUN
        needed += CHECKPOINT_COPIES * sum(sorted(weights, reverse=True)[:at_once])
        if free < needed:
            raise ExperimentError(
                f"{self.root} has {free / 2**20:,.0f} MiB free, and {len(weights)} runs may need "
                f"{needed / 2**20:,.0f}: free some space, or choose another --out"
            )

    @contextlib.contextmanager
    def driver(self) -> Iterator[None]:
        """Be the one driver of this folder.

        Raises:
            BusyError: If there is another, saying which and the ways out.
        """
        with locked(
            self.root / "driver.lock",
            "{path} is in use by another driver ({holder}): wait until it has ended, or choose "
            "another --out",
        ):
            yield

    @contextlib.contextmanager
    def worker(self, key: str) -> Iterator[None]:
        """Be the one process that computes this run; waits for one of a driver that was killed.

        Raises:
            BusyError: If there is another.
        """
        with locked(
            self.run_folder(key) / "worker.lock",
            "the run {path} is still computed by another process ({holder}), perhaps of a driver "
            "that was killed: end it, or wait until it has ended",
            PATIENCE,
        ):
            yield


def check_rows(rows: pd.DataFrame) -> None:
    """Raise unless these are rows of the table without what is the same for all of a run.

    Raises:
        ValueError: Naming the columns that differ.
    """
    if list(rows.columns) != list(COLUMNS):
        raise ValueError(f"the columns must be {', '.join(COLUMNS)}, not {', '.join(rows.columns)}")
    for name, kind in COLUMNS.items():
        if kind is not None and rows[name].dtype != kind:
            raise ValueError(f"{name} must be {kind}, not {rows[name].dtype}")


def varied_settings(runs: Sequence[Run]) -> list[str]:
    """Settings in which the runs differ, in the order of the settings' fields; seeds apart."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for name, value in dataclasses.asdict(run.config).items():
            values.setdefault(name, set()).add(repr(value))
    fixed = {"seed", "env", "suite", "preset", *common.PLACES}
    return [name for name, found in values.items() if len(found) > 1 and name not in fixed]


def column_of(values: Sequence[Any]) -> pd.Series:
    """A column of settings or labels that Parquet keeps as it is.

    Whole numbers are Int64, numbers Float64, truth values boolean, all else words; None is <NA>.
    """
    kinds = {type(value) for value in values if value is not None}
    names = {(bool,): "boolean", (int,): "Int64", (float,): "Float64", (float, int): "Float64"}
    name = names.get(tuple(sorted(kinds, key=lambda kind: kind.__name__)), "string")
    if name != "string":
        plain = {"boolean": "bool", "Int64": "int64", "Float64": "float64"}[name]
        return pd.Series(list(values), dtype=name if None in values else plain)
    return pd.Series([None if v is None else text_of(v) for v in values], dtype="str")


def text_of(value: Any) -> str:
    """A value in words; a tuple as its values with spaces between, as on a command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


@contextlib.contextmanager
def locked(path: Path, busy: str, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock.

    Args:
        path: The file.
        busy: What is said if another process holds it.
        patience: Seconds to wait for that process.

    Raises:
        BusyError: If another process holds it.
        ExperimentError: If the folder cannot be written, or its file system has no locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise ExperimentError(
            f"cannot write in {path.parent} ({error.strerror}): choose another --out"
        ) from error
    with file:
        end = time.monotonic() + patience
        while not _try_to_lock(file.fileno(), path):
            if time.monotonic() >= end:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise BusyError(busy.format(path=path.parent, holder=holder))
            time.sleep(0.1)
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {since}\n")
        file.flush()
        yield


def _try_to_lock(file: int, path: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ExperimentError(
            f"cannot lock {path} ({error.strerror}): choose an --out whose file system has locks"
        ) from error
    return True
