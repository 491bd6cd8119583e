"""The driver of an experiment: what is left to do, an engine, then table, figure and verdict."""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from baselines import train
from baselines.experiments.engines import Engine, Outcome
from baselines.experiments.execute import measured_environment
from baselines.experiments.findings import Verdict
from baselines.experiments.spec import Experiment, ExperimentError, Run, method_of
from baselines.experiments.store import Store
from icl_bench.data.cache import atomic_path
from icl_bench.registration import find_spec

TELL_EVERY = 60.0  # seconds, where there is no terminal for a progress bar


@dataclasses.dataclass(frozen=True)
class Report:
    """What a sweep has come to.

    Attributes:
        folder: Of the experiment: table, summary, figure, verdict.
        finished: Runs that are finished, of all.
        total: All runs.
        failed: Outcomes of those that failed.
        verdict: None until at least one run of every point is finished, or where the experiment
            has no finding to look for.
    """

    folder: Path
    finished: int
    total: int
    failed: tuple[Outcome, ...]
    verdict: Verdict | None


def sweep(
    experiment: Experiment,
    preset: str,
    runs: Sequence[Run],
    store: Store,
    engine: Engine,
) -> Report:
    """Compute what is left of the runs, then write what the finished ones show.

    Args:
        experiment: What the runs are of.
        preset: Its name, for the folder.
        runs: See ``Experiment.runs``.
        store: Where.
        engine: Who computes; is not closed.

    Raises:
        ExperimentError: Before any run begins: if the engine, the folder, the data or the settings
            will not do; later, if the disk is full.
        KeyboardInterrupt: After an interrupt; what is finished is kept.
    """
    with store.driver():
        left = [run for run in runs if not store.is_finished(run.key)]
        if left:
            weights = check_inputs(left)
            engine.check(store)
            store.check_space(weights, engine.at_once())
        failed = compute(experiment.name, runs, left, store, engine)
        finished = [run for run in runs if store.is_finished(run.key)]
        verdict, folder = publish(experiment, preset, runs, finished, store)
    return Report(folder, len(finished), len(runs), tuple(failed), verdict)


def check_inputs(runs: Sequence[Run]) -> list[int]:
    """Make what runs will make first, models (their shapes) and environments, each kind once.

    Returns:
        Bytes of the weights of each run.

    Raises:
        ExperimentError: Naming the run and what is missing, for instance a data set.
    """
    weights: dict[str, int] = {}
    environments: set[str] = set()
    sizes = []
    for run in runs:
        settings = {k: v for k, v in dataclasses.asdict(run.config).items() if k != "seed"}
        kind = repr((run.baseline, settings))
        try:
            if kind not in weights:
                weights[kind] = weights_of(run)
            for on in (None, *(run.config.envs if run.measure.suite else run.measure.on)):
                if repr((kind, on)) not in environments:
                    check_environment(run, on)
                environments.add(repr((kind, on)))
        except (ValueError, OSError, TypeError) as error:
            raise ExperimentError(f"{run.baseline}, seed {run.config.seed}: {error}") from error
        sizes.append(weights[kind])
    return sizes


def weights_of(run: Run) -> int:
    """Bytes of the weights of a run's model, which is built without them."""
    method = method_of(run.baseline)
    if method is None:
        return 0
    spec = find_spec(run.config.meta_train)
    with torch.device("meta"):
        model = method.build(run.config, spec.num_features, spec.num_classes)
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def check_environment(run: Run, on: str | None) -> None:
    """Make an environment of measurement, or where there is none that of meta-training."""
    config: Any = dataclasses.replace(run.config, device="cpu")
    if on is not None:
        measured_environment(on, config)
    elif method_of(run.baseline) is not None:
        train.environment(config, torch.device("cpu"))


def compute(
    name: str, runs: Sequence[Run], left: Sequence[Run], store: Store, engine: Engine
) -> list[Outcome]:
    """Compute what is left; outcomes of the runs that failed, which are printed as they come.

    Raises:
        ExperimentError: If the disk is full.
    """
    failed = []
    told = time.monotonic()
    done = len(runs) - len(left)
    if done:
        print(f"{name}: {done} of {len(runs)} runs are finished already", file=sys.stderr)
    if not left:
        return []
    with (
        contextlib.closing(engine.outcomes(left, store)) as outcomes,
        tqdm(
            total=len(runs), initial=done, desc=name, unit="run", smoothing=0.1, disable=None
        ) as bar,
    ):
        for outcome in outcomes:
            if outcome.full:
                raise ExperimentError(
                    f"a disk is full: {outcome.error}. What is finished is kept: free some space, "
                    "and the same command goes on"
                )
            if outcome.error is not None:
                failed.append(outcome)
                said = f"failed: {describe(outcome.run)}: {outcome.error}"
                if (trace := store.run_folder(outcome.run.key) / "failed.txt").exists():
                    said += f"; see {trace} and log.txt beside it"
                bar.write(said, sys.stderr)
                bar.set_postfix(failed=len(failed), refresh=False)
            done += 1
            bar.update()
            if bar.disable and time.monotonic() - told >= TELL_EVERY:
                told = time.monotonic()
                also = f", {len(failed)} failed" if failed else ""
                print(f"{name}: {done} of {len(runs)} runs{also}", file=sys.stderr, flush=True)
    return failed


def describe(run: Run) -> str:
    """A run in a few words."""
    labels = "".join(f", {name}={value}" for name, value in run.labels.items())
    return f"{run.key} ({run.baseline}, seed {run.config.seed}{labels})"


def publish(
    experiment: Experiment,
    preset: str,
    runs: Sequence[Run],
    finished: Sequence[Run],
    store: Store,
) -> tuple[Verdict | None, Path]:
    """Write the table of the finished runs; once every point has one, what they show.

    What was there of other runs goes, so that a folder is of one table.
    """
    folder = store.experiment_folder(experiment.name, preset)
    if not finished:
        return None, folder
    table = store.table(runs)
    with atomic_path(folder / "table.parquet") as path:
        table.to_parquet(path, index=False, compression="zstd")
    if {point(run) for run in finished} != {point(run) for run in runs}:
        for name in ("summary.csv", "figure.png", "verdict.json", "verdict.md"):
            (folder / name).unlink(missing_ok=True)
        return None, folder
    summary = experiment.summarise(table)
    with atomic_path(folder / "summary.csv") as path:
        summary.to_csv(path, index=False, float_format="%.6g")
    with atomic_path(folder / "figure.png") as path:
        experiment.plot(table, summary, path)
    verdict = experiment.judge(table, summary)
    about: dict[str, Any] = {
        "experiment": experiment.name,
        "figure": experiment.figure,
        "preset": preset,
        "runs": len(runs),
        "finished": len(finished),
        "verdict": None if verdict is None else verdict.to_dict(),
    }
    with atomic_path(folder / "verdict.json") as path:
        path.write_text(json.dumps(about, indent=2, allow_nan=False) + "\n")
    told = "No finding was looked for.\n" if verdict is None else verdict.to_markdown()
    with atomic_path(folder / "verdict.md") as path:
        path.write_text(f"## {experiment.title}\n\n{told}\n")
    if experiment.finish is not None and len(finished) == len(runs):
        experiment.finish([store.run_folder(run.key) for run in runs], folder)
    return verdict, folder


def point(run: Run) -> str:
    """What is the same for the seeds of one point of a figure."""
    settings = {k: v for k, v in dataclasses.asdict(run.config).items() if k != "seed"}
    return repr((run.baseline, settings, run.measure, dict(run.labels)))


def read_table(folder: Path) -> pd.DataFrame:
    """The tidy table of an experiment."""
    return pd.read_parquet(folder / "table.parquet")
