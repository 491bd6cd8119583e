"""Experiments of the user's own: a grid over the settings of a baseline, in a TOML file.

    name = "heads"                  # letters, digits, - and _; also the folder of the results
    baseline = "gpicl"              # a baseline that is meta-trained, or several: ["gpicl", "lstm"]
    preset = "cpu"                  # whose settings are the defaults

    [settings]                      # the same in all runs
    env = "DigitsLow-Proj4-v0"
    episode_length = 20

    [grid]                          # every combination is a run
    heads = [1, 2, 4]
    seed = [0, 1, 2]

    [measure]                       # when a run is trained
    on = ["unseen"]
    episodes = 512

    [plot]
    x = "heads"                     # the other settings of the grid become lines
    log = true

The summary is the accuracy at the last step of the episode, mean over seeds with a 95 % t interval,
the plot shows it against ``x``. There is no verdict: the file has no finding to look for. TOML has
no none: write the word ``"none"``.
"""

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from baselines.experiments import drawing
from baselines.experiments.findings import mean_over_seeds
from baselines.experiments.spec import (
    Experiment,
    ExperimentError,
    Measure,
    Run,
    did_you_mean,
    grid,
    settings,
)
from baselines.experiments.store import column_of, text_of
from baselines.experiments.values import fitted
from baselines.experiments.values import parse_value as parse_value

# What a file may hold, and of which type.
SECTIONS: dict[str, Any] = {
    "name": str,
    "baseline": str | tuple[str, ...],
    "preset": str,
    "settings": dict,
    "grid": dict,
    "measure": dict,
    "plot": dict,
}
NEEDED = ("name", "baseline", "grid")
MEASURE: dict[str, Any] = {"on": tuple[str, ...], "episodes": int}
PLOT: dict[str, Any] = {"x": str, "log": bool}

# Columns of the summary that are drawn.
SHOWN = ("place", "accuracy", "low", "high")

# A folder is named so.
NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")


def read_toml(path: Path) -> Experiment:
    """The experiment of a file, whose one preset is the file's.

    Raises:
        ExperimentError: If the file cannot be read or understood, naming it, the key and the way
            out. Values of settings are checked when its runs are made.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # of TOML and of UTF-8, too
        raise ExperimentError(f"{path} cannot be read as TOML: {error}") from error
    try:
        return _experiment(document)
    except ExperimentError as error:
        raise ExperimentError(f"{path}: {error}") from error


def _experiment(document: Mapping[str, Any]) -> Experiment:
    given = _fitted(document, SECTIONS, "")
    for key in NEEDED:
        if key not in given:
            raise ExperimentError(f"{key} is missing")
    name, axes = given["name"], _axes(given["grid"])
    if not NAME.fullmatch(name):
        raise ExperimentError(f"name must be letters, digits, - and _, not {name!r:.60}")
    measure = Measure(**_fitted(given.get("measure", {}), MEASURE, "measure."))
    plot = _fitted(given.get("plot", {}), PLOT, "plot.")
    baselines = given["baseline"]
    if isinstance(baselines, str):
        baselines = (baselines,)
    fixed = {key: _none(value) for key, value in given.get("settings", {}).items()}
    if both := sorted(fixed.keys() & axes.keys()):
        raise ExperimentError(f"{both[0]} is in settings and in grid: leave it in one of them")
    preset = given.get("preset", "cpu")
    lines = [key for key in axes if key != "seed"] + ["baseline"] * (len(baselines) > 1)
    x = plot.get("x", next(iter(lines), "seed"))
    if x not in lines and not (x == "seed" and not lines):
        raise ExperimentError(f"plot.x must be an axis of the grid{did_you_mean(x, lines)}")

    def runs() -> list[Run]:
        return [
            # The axes as labels, too: in the table however many values they have.
            Run(name, settings(name, preset, **fixed, **values), measure, _labels(values))
            for name in baselines
            for values in grid(**axes)
        ]

    by = [key for key in lines if key != x]
    return Experiment(
        name=name,
        figure="none of the paper",
        title=name,
        finding="",
        presets={preset: runs},
        summarise=lambda table: summarise(table, [x, *by]),
        plot=_plot(name, x, by, plot.get("log", False)),
        judge=lambda table, summary: None,
    )


def _fitted(given: Mapping[str, Any], kinds: Mapping[str, Any], within: str) -> dict[str, Any]:
    """What was given, if all of it is known and of its type."""
    found = {}
    for key, value in given.items():
        if key not in kinds:
            raise ExperimentError(f"unknown key {within + key!r}{did_you_mean(key, kinds)}")
        try:
            found[key] = fitted(value, kinds[key])
        except TypeError as error:
            raise ExperimentError(f"{within}{key} must be {error}") from error
    return found


def _axes(given: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The axes of the grid; ``none`` is None."""
    for key, values in given.items():
        if not isinstance(values, list) or not values:
            raise ExperimentError(f"grid.{key} must be a list of values, not {values!r:.60}")
        if len({repr(value) for value in values}) < len(values):
            raise ExperimentError(f"grid.{key} has a value twice: {values!r:.60}")
    return {key: [_none(value) for value in values] for key, values in given.items()}


def _none(value: Any) -> Any:
    return None if value == "none" else value


def _labels(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the axes as labels; a list in words."""
    return {
        key: text_of(value) if isinstance(value, list) else value
        for key, value in values.items()
        if key != "seed"
    }


def summarise(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Accuracy at the last step of the episode: mean over seeds, 95 % t interval, number of runs.

    Args:
        table: Tidy table.
        by: Its columns that tell the points apart, besides ``on``.
    """
    rows = table[(table["source"] == "final") & (table["metric"] == "accuracy")]
    rows = rows[rows["t"] == rows.groupby(["run", "on"])["t"].transform("max")]
    found = []
    for key, group in rows.groupby(["on", *by], sort=False, dropna=False):
        estimate = mean_over_seeds(group["value"].to_numpy())
        low, high = (v if np.isfinite(v) else None for v in (estimate.low, estimate.high))
        known = dict(zip(["on", *by], key, strict=True))
        known |= {"accuracy": estimate.value, "low": low, "high": high, "runs": len(group)}
        found.append({k: None if v is pd.NA else v for k, v in known.items()})
    names = ["on", *by, "accuracy", "low", "high", "runs"]
    return pd.DataFrame({name: column_of([row[name] for row in found]) for name in names})


def _plot(
    title: str, x: str, by: Sequence[str], log: bool
) -> Callable[[pd.DataFrame, pd.DataFrame, Path], None]:
    """A function that draws the summary: a line per value of the other axes."""

    def plot(table: pd.DataFrame, summary: pd.DataFrame, path: Path) -> None:
        figure, (axes,) = drawing.panels(1, title)
        words = _words(summary[x])
        places = list(dict.fromkeys(words))
        numbers = pd.api.types.is_numeric_dtype(summary[x]) and "none" not in words
        found = summary.assign(place=summary[x] if numbers else [places.index(w) for w in words])
        lines = found.groupby(["on", *by], sort=False, dropna=False)
        for (key, line), style in zip(lines, drawing.styles(), strict=False):
            values = zip(by, _words(pd.Series(key[1:], dtype=object)), strict=True)
            label = ", ".join([str(key[0]), *(f"{name} {value}" for name, value in values)])
            line = line.sort_values("place")
            numeric = (line[n].to_numpy(dtype=float, na_value=np.nan) for n in SHOWN)
            where, value, low, high = numeric
            drawing.line(axes, where, value, label, style, low, high)
        if numbers and log:
            axes.set_xscale("log", base=2)
        if not numbers:
            axes.set_xticks(range(len(places)), places)
        drawing.name_axes(axes, "", x, "accuracy at the last step")
        drawing.save(figure, path)

    return plot


def _words(values: pd.Series) -> list[str]:
    return ["none" if pd.isna(value) else str(value) for value in values]
