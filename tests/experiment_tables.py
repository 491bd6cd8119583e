"""Tidy tables of experiments with made-up numbers, which show a finding or its opposite."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from baselines import common
from baselines.experiments.execute import rows_of
from baselines.experiments.spec import Run
from baselines.experiments.store import column_of, varied_settings
from baselines.experiments.tables import BY_TASK

CHANCE = 0.2  # accuracy of guessing among five classes
CHANCE_LOSS = float(np.log(5))
LOGGED = 80  # lines of a training log

Rows = Callable[[Run], pd.DataFrame]


def table_of(runs: Sequence[Run], rows: Rows) -> pd.DataFrame:
    """What ``Store.table`` would give if these rows were measured."""
    labels = list(dict.fromkeys(name for run in runs for name in run.labels))
    varied = varied_settings(runs)
    parts, about = [], []
    for run in runs:
        cells = {name: getattr(run.config, name, None) for name in varied}
        cells |= {name: run.labels.get(name) for name in labels}
        known = {"run": run.key, "baseline": run.baseline, "env": run.config.meta_train}
        about.append(known | {"seed": run.config.seed} | cells)
        parts.append(rows(run))
    every = pd.concat(parts, ignore_index=True)
    which = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    for place, name in enumerate(about[0]):
        column = column_of([cells[name] for cells in about])
        every.insert(place, name, column.take(which).reset_index(drop=True))
    return every


def noise(run: Run, size: float, about: str = "") -> float:
    """Of a run: normal, the same whenever asked about the same."""
    words = [int(run.key, 16), *about.encode()]
    return float(size * np.random.default_rng(words).standard_normal())


def length_of(run: Run) -> int:
    """Steps of its episodes."""
    return int(getattr(run.config, "episode_length", 100))


def final(run: Run, ends: Mapping[str, tuple[float, float]], spread: float = 0.01) -> pd.DataFrame:
    """Accuracies when trained, which rise from first to last in half of the episode."""
    t = np.arange(length_of(run))
    parts = []
    for on, (first, last) in ends.items():
        last += noise(run, spread, on)
        curve = first + (last - first) * np.minimum(1.0, 2 * t / len(t))
        curve[-1] = last
        parts.append(rows_of("final", on, 0, t, "accuracy", np.clip(curve, 0, 1)))
    return pd.concat(parts, ignore_index=True)


def by_task(run: Run, on: str, mean: float, tasks: int = 32) -> pd.DataFrame:
    """Accuracy at the end of the episode on every task."""
    values = [mean + noise(run, 0.05, f"{on}{k}") for k in range(tasks)]
    return pd.concat(
        [rows_of("final", on, 0, -1, f"{BY_TASK}{k}", [v]) for k, v in enumerate(values)],
        ignore_index=True,
    )


def train(
    run: Run, plateau: float, low: float = 0.6, chance: float = CHANCE_LOSS, sharp: float = 0.05
) -> pd.DataFrame:
    """A training loss at chance for a number of outer steps, which then drops."""
    steps = logged(run)
    length = plateau * np.exp(noise(run, 0.05, "length"))
    width = max(1.0, sharp * length)
    share = 1 / (1 + np.exp(np.clip((steps - length - 2 * width) / (width / 2), -50, 50)))
    loss = low + noise(run, 0.01, "low") + (chance - low) * share
    return rows_of("train", "train", steps, -1, "loss", loss)


def norms(run: Run, values: Mapping[str, float]) -> pd.DataFrame:
    """Norms by quantity and layer, the same in all of training but for noise."""
    steps = logged(run)
    parts = []
    for name, value in values.items():
        level = value * np.exp(noise(run, 0.05, name))
        parts.append(rows_of("train", "train", steps, -1, name, np.full(len(steps), level)))
    return pd.concat(parts, ignore_index=True)


def monitored(run: Run, on: str, early: float, late: float, count: int = 20) -> pd.DataFrame:
    """Accuracy while training: early, and from three quarters of training on late."""
    steps = np.linspace(0, run.config.steps, count + 1)[1:].astype(int)  # type: ignore[attr-defined]
    length = length_of(run)
    values = np.where(np.arange(count) >= 0.75 * count, late, early)
    values += [noise(run, 0.01, f"{on}{step}") for step in steps]
    outer, t = np.repeat(steps, length), np.tile(np.arange(length), count)
    return rows_of("eval", on, outer, t, "accuracy", np.repeat(values, length))


def logged(run: Run) -> np.ndarray:
    """Outer steps of its log."""
    steps: int = run.config.steps  # type: ignore[attr-defined]
    return np.linspace(0, steps, LOGGED + 1)[1:].astype(int)


def joined(*parts: pd.DataFrame) -> pd.DataFrame:
    """Rows of one run."""
    return pd.concat(parts, ignore_index=True)


def round_trip(config: common.RunConfig) -> common.RunConfig:
    """Settings through JSON."""
    return common.config_from_json(type(config), common.config_to_json(config))
