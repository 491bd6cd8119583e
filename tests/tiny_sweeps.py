"""Experiments whose runs take less than a second, and what their folders hold."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from conftest import ROOT

from baselines import checkpoint
from baselines.experiments.spec import Experiment, Measure, Run, settings
from baselines.experiments.store import Store

TINY: dict[str, Any] = {
    "env": "DigitsLow-Proj4-v0",
    "width": 8,
    "layers": 1,
    "heads": 1,
    "episode_length": 5,
    "num_tasks": 64,
    "batch_size": 8,
    "steps": 10,
    "warmup": 0,
    "repeat_steps": (0, 0),
    "log_every": 5,
    "eval_every": 5,
    "eval_episodes": 16,
    "checkpoint_every": 5,
}
# Long enough to be met at work: some seconds.
LONG: dict[str, Any] = {"steps": 400, "eval_every": 0, "checkpoint_every": 20, "optimizer": "adam"}
MEASURE = Measure(("seen", "unseen"), episodes=16)

TOML = """
name = "tiny"
baseline = "gpicl"
[settings]
{settings}
[grid]
{grid}
[measure]
on = ["seen", "unseen"]
episodes = 16
"""


def tiny(**changes: Any) -> Run:
    return Run("gpicl", settings("gpicl", "cpu", **{**TINY, **changes}), MEASURE)


def write_toml(path: Path, grid: str = "seed = [0, 1]", **changes: Any) -> Path:
    """A file with the same runs."""
    lines = {name: repr(v).replace("'", '"') for name, v in {**TINY, **changes}.items()}
    given = "\n".join(
        f"{name} = {v.replace('(', '[').replace(')', ']')}" for name, v in lines.items()
    )
    path.write_text(TOML.format(settings=given, grid=grid))
    return path


def experiment(runs: Sequence[Run]) -> Experiment:
    """An experiment of these runs that shows how many there were."""

    def summarise(table: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"runs": [table["run"].nunique()]})

    return Experiment(
        name="tiny",
        figure="Figure 0",
        title="Tiny runs",
        finding="",
        presets={"cpu": lambda: runs},
        summarise=summarise,
        plot=lambda table, summary, path: path.write_bytes(b""),
        judge=lambda table, summary: None,
    )


@dataclasses.dataclass(frozen=True)
class Stamp:
    """What changes when a file is written again."""

    inode: int
    modified: int


def stamps(store: Store, runs: Iterable[Run]) -> dict[str, Stamp]:
    """Of the notes that runs are finished."""
    found = {}
    for run in runs:
        about = (store.run_folder(run.key) / "done.json").stat()
        found[run.key] = Stamp(about.st_ino, about.st_mtime_ns)
    return found


def rows(store: Store, runs: Iterable[Run]) -> dict[str, bytes]:
    """The rows of finished runs, bit for bit."""
    return {run.key: (store.run_folder(run.key) / "rows.parquet").read_bytes() for run in runs}


def wait_for(what: Callable[[], object], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def holder(folder: Path) -> int:
    """The process that computes a run."""
    found = re.match(r"process (\d+) ", (folder / "worker.lock").read_text())
    assert found is not None
    return int(found[1])


def under_way(folder: Path) -> bool:
    """Whether a run has a checkpoint and is not finished."""
    return (folder / checkpoint.NEWEST).exists() and not (folder / "done.json").exists()


def logged_until_checkpoint(folder: Path) -> list[bytes]:
    """Lines of the log that a run which goes on from its checkpoint keeps."""
    state = checkpoint.load(folder)
    assert state is not None
    lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    return lines[: state["step"] // TINY["log_every"]]


def kill_worker(folder: Path) -> list[bytes]:
    """End the process of a run that has a checkpoint; the lines of its log that are kept."""
    wait_for(lambda: under_way(folder))
    os.kill(holder(folder), signal.SIGKILL)
    time.sleep(0.1)
    return logged_until_checkpoint(folder)


def start(*arguments: str | Path) -> "subprocess.Popen[str]":
    """The command line in a process (and a group) of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "baselines.experiments", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def is_running(process: int) -> bool:
    """Whether a process runs; one that has ended and is not waited for does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"
