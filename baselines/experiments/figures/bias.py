"""Figure 9: with biased label permutations the loss plateau disappears.

Two readings of the paper's fraction (see BENCHMARK.md): tasks that keep one fixed label
permutation, each with a projection of its own (``bias``); and episodes of a single task, projection
and all (``single_task``), which is what the caption says.

Every plateau ends at one loss, a fifth of the way to what the runs without bias come to: biased
tasks are easier, so a share of the way to their own end would ask for more than others can reach.
"""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from baselines.experiments import drawing, tables
from baselines.experiments.findings import Claim, Plateau, Verdict, length_ratio, trend
from baselines.experiments.plateaus import chance_loss, check_length, lengths, over_seeds, plateaus
from baselines.experiments.spec import Experiment, Measure, Run, settings
from baselines.experiments.toy import PLATEAU, toy

READINGS = {"bias": "one label permutation", "single_task": "a single task"}


def paper() -> list[Run]:
    """FashionMNIST, 2^16 tasks (Kirsch et al. 2022, Figure 9); the paper names no fractions."""
    fixed = {"env": "FashionMNIST-Proj-v0", "num_tasks": 2**16, "bias": 0.0}
    return [
        Run("gpicl", settings("gpicl", "paper", **fixed | change), Measure(), labels)
        for change, labels in points((0.1, 0.5, 0.9), 8)
    ]


def cpu() -> list[Run]:
    """The plateau of the toy size with a quarter, a half and three quarters."""
    return [
        Run("gpicl", toy(**PLATEAU | change), Measure(), labels)
        for change, labels in points((0.25, 0.5, 0.75), 4)
    ]


def points(fractions: tuple[float, ...], seeds: int) -> list[tuple[dict, dict]]:
    """Changes of the settings, and labels, of every run."""
    found = []
    for seed in range(seeds):
        found.append(({"seed": seed}, {"reading": "none", "fraction": 0.0}))
        for reading in READINGS:
            for fraction in fractions:
                labels = {"reading": reading, "fraction": fraction}
                found.append(({"seed": seed, reading: fraction}, labels))
    return found


def measured(table: pd.DataFrame) -> dict[str, Plateau]:
    """The plateau of every run."""
    return plateaus(table, table[table.reading == "none"].run.unique())


def runs_of(table: pd.DataFrame) -> pd.DataFrame:
    """Plateau, and final accuracy on unseen tasks, of every run."""
    found = lengths(table, ["reading", "fraction"], measured(table)).set_index("run")
    ends = tables.ends(table, [], ["unseen"]).set_index("run")
    return found.assign(last=ends["last"]).reset_index()


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Length of the plateau (a lower bound where runs are censored) and accuracy, over seeds."""
    return over_seeds(runs_of(table), ["reading", "fraction"], ["length", "last"])


def plot(table: pd.DataFrame, summary: pd.DataFrame, path: Path) -> None:
    """Training loss by fraction for each reading, and accuracy on unseen tasks."""
    figure, grid_of = drawing.panels(3, "Biased label permutations and the plateau")
    losses = tables.training_curves(table)
    about = tables.labels(table, ["reading", "fraction"])
    for axes, (reading, title) in zip(grid_of, READINGS.items(), strict=False):
        chosen = about[about.reading.isin([reading, "none"])]
        groups = chosen.groupby("fraction").groups.items()
        for (fraction, runs), style in zip(groups, drawing.styles(), strict=False):
            mean = losses.loc[list(runs)].mean()
            drawing.line(axes, mean.index, mean, f"{fraction:.0%}", style, markers=False)
        drawing.guessing(axes, chance_loss(table))
        drawing.name_axes(axes, f"share of {title}", "outer steps", "training loss, nats")
    unseen = grid_of[2]
    for (reading, title), style in zip(READINGS.items(), drawing.styles(), strict=False):
        rows = summary[summary.reading.isin([reading, "none"])]
        drawing.summary_line(unseen, rows, "fraction", "last", title, style)
    drawing.guessing(unseen, math.exp(-chance_loss(table)))
    drawing.name_axes(unseen, "end of the episode, unseen tasks", "biased fraction", "accuracy")
    drawing.save(figure, path)


def judge(table: pd.DataFrame, summary: pd.DataFrame) -> Verdict:
    """Is the plateau shorter the larger the fraction, and are unseen tasks learned for it?"""
    found = runs_of(table)
    each = measured(table)

    def group(reading: str, fraction: float) -> list[Plateau]:
        rows = found[(found.reading == reading) & (found.fraction == fraction)]
        return [each[run] for run in rows.run]

    claims = []
    for reading, title in READINGS.items():
        rows = found[found.reading.isin([reading, "none"])]
        most = rows.fraction.max()
        ratio = length_ratio(group(reading, most), group("none", 0.0))
        claims.append(
            Claim(
                f"with {most:.0%} of {title} the plateau is less than half as long",
                ratio.below(0.5),
                ratio,
                "length / length without bias",
            )
        )
        shown = trend(
            rows.fraction.to_numpy(),
            rows.length.to_numpy(dtype=np.float64),
            rows.censored.to_numpy(dtype=bool),
        )
        claims.append(
            Claim(f"the larger the share of {title}, the shorter", shown.falls, detail=str(shown))
        )
        # A loss can leave chance for the biased tasks alone.
        learned = trend(rows.fraction.to_numpy(), rows["last"].to_numpy(dtype=np.float64))
        text = f"the larger the share of {title}, the better unseen tasks are learned by the end"
        claims.append(Claim(text, learned.rises, detail=str(learned)))
    return Verdict(tuple(claims))


EXPERIMENT = Experiment(
    name="bias",
    figure="Figure 9",
    title="Biased label permutations shorten the plateau",
    finding="With a fraction of biased label permutations the loss plateau disappears.",
    presets={"paper": paper, "cpu": cpu},
    summarise=summarise,
    plot=plot,
    judge=judge,
    check=check_length,
    limits="At the toy size the loss leaves chance for the biased tasks alone: it then stays at "
    "the loss of guessing the others, which are learned no sooner for it. So a plateau "
    "disappears, and what the paper means by it is not seen.",
)
