"""Figures of experiments in the style of the library's: no pyplot, no date, colours for all."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icl_bench.evaluation.plots import COLOURS, DASHES, DPI, FAINT, INK, MARKERS

WIDTH, HEIGHT = 3.6, 2.9  # inches of one panel


def panels(
    count: int, title: str, *, columns: int = 3, share_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of this number of panels, in rows."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH * columns + 0.4, HEIGHT * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=share_y).flatten().tolist()
    for axes in grid[count:]:
        axes.set_visible(False)
    for axes in grid[:count]:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.grid(color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", labelsize=8, colors=INK)
    figure.suptitle(title, fontsize=10, color=INK)
    return figure, grid[:count]


def styles() -> Iterator[dict[str, Any]]:
    """Colour, dashes and marker of one line after the other."""
    number = 0
    while True:
        dashes = DASHES[number % len(DASHES)]
        yield {
            "color": COLOURS[number % len(COLOURS)],
            "linestyle": (0, dashes) if dashes else "-",
            "marker": MARKERS[number % len(MARKERS)],
        }
        number += 1


def line(
    axes: Axes,
    x: Any,
    y: Any,
    label: str,
    style: dict[str, Any],
    low: Any = None,
    high: Any = None,
    markers: bool = True,
) -> None:
    """A line, with a band of its 95 % intervals where there are any."""
    look = dict(style) if markers else {k: v for k, v in style.items() if k != "marker"}
    axes.plot(x, y, label=label, linewidth=1.4, markersize=3.5, **look)
    if low is not None:
        low, high = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
        known = np.isfinite(low) & np.isfinite(high)
        axes.fill_between(
            np.asarray(x)[known],
            low[known],
            high[known],
            color=style["color"],
            alpha=0.15,
            linewidth=0,
        )


def summary_line(
    axes: Axes, frame: pd.DataFrame, x: str, y: str, label: str, style: dict[str, Any]
) -> None:
    """A line of a summary with the columns ``y``, ``y_low`` and ``y_high``."""
    frame = frame.sort_values(x)
    line(axes, frame[x], frame[y], label, style, frame[f"{y}_low"], frame[f"{y}_high"])


def powers_of_two(axes: Axes, values: pd.Series, label: str) -> None:
    """A logarithmic axis with at most nine ticks, at powers of two."""
    low, high = int(np.floor(np.log2(min(values)))), int(np.ceil(np.log2(max(values))))
    step = max(1, -(-(high - low) // 8))
    axes.set_xscale("log", base=2)
    ticks = [2.0**k for k in range(low, high + 1, step)]
    axes.set_xticks(ticks, [f"$2^{{{k}}}$" for k in range(low, high + 1, step)])
    axes.minorticks_off()
    axes.set_xlabel(label, fontsize=9, color=INK)


def guessing(axes: Axes, level: float, label: str = "guessing") -> None:
    """A thin line at what guessing gives."""
    axes.axhline(level, color=INK, linewidth=0.8, linestyle=":", label=label)


def name_axes(axes: Axes, title: str, x: str | None, y: str | None) -> None:
    """Titles of a panel."""
    axes.set_title(title, fontsize=9, color=INK)
    if x is not None:
        axes.set_xlabel(x, fontsize=9, color=INK)
    if y is not None:
        axes.set_ylabel(y, fontsize=9, color=INK)


def save(figure: Figure, path: Path) -> None:
    """Write a figure; equal bytes for equal numbers under one version of matplotlib.

    What one panel's legend says is not said again by the next.
    """
    told: list[list[str]] = [[]]
    for axes in figure.axes:
        labels = axes.get_legend_handles_labels()[1] if axes.get_visible() else []
        if labels not in told:
            told.append(labels)
            axes.legend(fontsize=7, frameon=False)
    figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})
