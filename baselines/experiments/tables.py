"""Numbers of a figure out of the tidy table of an experiment (``spec``): one row per run first."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from baselines.experiments.findings import mean_over_seeds

# The end of an episode: its last tenth, at least this many steps, for less noise than of one step.
LAST_STEPS = 5

# Metric of the accuracy at the end of the episode on one task, before the number of that task.
BY_TASK = "accuracy/task-"


def last_steps(length: int, least: int = LAST_STEPS) -> int:
    """Steps that count as the end of an episode of this length."""
    return min(length, max(least, length // 10))


def curves(table: pd.DataFrame, on: str, metric: str = "accuracy") -> pd.DataFrame:
    """Learning curves of finished learners: a row per run, a column per step of the episode."""
    rows = table[(table.source == "final") & (table.on == on) & (table.metric == metric)]
    return rows.pivot(index="run", columns="t", values="value")


def ends(
    table: pd.DataFrame, by: Sequence[str], on: Sequence[str], least: int = LAST_STEPS
) -> pd.DataFrame:
    """Accuracy at the first step, at the end of the episode, and the gain: a row per run and place.

    Args:
        table: Tidy table.
        by: Columns of the table that are kept beside ``run``, ``seed`` and ``on``.
        on: Where accuracy was measured.
        least: Steps that the end of the shortest episodes has.
    """
    about = labels(table, by)
    parts = []
    for place in on:
        curve = curves(table, place)
        if curve.empty:
            continue
        counts = curve.notna().sum(axis=1)  # runs may differ in T
        last = [
            row[: int(n)][-last_steps(int(n), least) :].mean()
            for row, n in zip(curve.to_numpy(), counts, strict=True)
        ]
        found = pd.DataFrame({"first": curve[0], "last": last}, index=curve.index)
        found["gain"] = found["last"] - found["first"]
        parts.append(about.loc[curve.index].join(found).assign(on=place).reset_index())
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def by_task(table: pd.DataFrame, on: str) -> pd.DataFrame:
    """Accuracy at the end of the episode on each task: a row per run, a column per task."""
    final = table[(table.source == "final") & (table.on == on)]
    rows = final[final.metric.str.startswith(BY_TASK)]
    return rows.pivot(index="run", columns="metric", values="value")


def training_curves(table: pd.DataFrame, metric: str = "loss") -> pd.DataFrame:
    """A number of the outer loop's log: a row per run, a column per logged outer step."""
    rows = table[(table.source == "train") & (table.metric == metric)]
    return rows.pivot(index="run", columns="outer_step", values="value")


def monitored(table: pd.DataFrame, on: str) -> pd.DataFrame:
    """Accuracy at the end of the episode while training: a row per run, a column per outer step.

    Runs share their T; without measurements there are no rows.
    """
    rows = table[(table.source == "eval") & (table.on == on) & (table.metric == "accuracy")]
    if rows.empty:
        return pd.DataFrame()
    length = int(rows.t.max()) + 1
    rows = rows[rows.t >= length - last_steps(length)]
    return rows.groupby(["run", "outer_step"])["value"].mean().unstack()


def final_losses(table: pd.DataFrame, last: int = 10) -> pd.Series:
    """Mean training loss of the last logged lines of each run."""
    losses = training_curves(table)
    return losses.apply(lambda row: float(row.dropna().to_numpy()[-last:].mean()), axis=1)


def labels(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Settings and labels of the runs, by key."""
    return table.drop_duplicates("run").set_index("run")[[*by, "seed"]]


def over_seeds(frame: pd.DataFrame, by: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """Mean over seeds with a 95 % t interval: ``x``, ``x_low``, ``x_high`` of each value, and n.

    Bounds are NaN where one seed is all there is.
    """
    rows = []
    for key, group in frame.groupby(list(by), sort=True, dropna=False):
        row = dict(zip(by, key, strict=True))
        row["n"] = len(group)
        for name in values:
            found = mean_over_seeds(group[name].to_numpy(dtype=float))
            row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        rows.append(row)
    frame = pd.DataFrame(rows)
    bounds = [c for c in frame if str(c).endswith(("_low", "_high"))]
    frame[bounds] = frame[bounds].replace([np.inf, -np.inf], np.nan)
    return frame


def places(table: pd.DataFrame) -> list[str]:
    """Where finished learners were measured, in the order of ``Measure.on``."""
    return list(dict.fromkeys(table[table.source == "final"]["on"]))
