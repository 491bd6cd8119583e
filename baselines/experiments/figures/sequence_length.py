"""Figure 14: longer episodes, in meta-training and after it, are better."""

import math
from pathlib import Path

import pandas as pd

from baselines.experiments import drawing, tables
from baselines.experiments.findings import Claim, Verdict, difference, trend
from baselines.experiments.plateaus import chance_loss
from baselines.experiments.spec import Experiment, Measure, Run, grid, settings
from baselines.experiments.toy import OTHER, toy

# The end is the last tenth of every episode: of the five steps that it has elsewhere, half would be
# of the middle where T is 10, and the comparison would be won by the longer.
LEAST = 1


def paper() -> list[Run]:
    """T = 50 … 400, eight seeds; the paper names no lengths."""
    measure = Measure(("unseen", "FashionMNIST-Proj-v0"))
    return [
        Run("gpicl", settings("gpicl", "paper", **point), measure)
        for point in grid(episode_length=[50, 100, 200, 400], seed=range(8))
    ]


def cpu() -> list[Run]:
    """T = 5, 10, 20, 40 at the toy size."""
    return [
        Run("gpicl", toy(**point), Measure(("unseen", OTHER)))
        for point in grid(episode_length=[5, 10, 20, 40], seed=range(4))
    ]


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy at the end of the episode, over seeds."""
    found = tables.ends(table, ["episode_length"], tables.places(table), LEAST)
    return tables.over_seeds(found, ["on", "episode_length"], ["first", "last", "gain"])


def plot(table: pd.DataFrame, summary: pd.DataFrame, path: Path) -> None:
    """Accuracy at the end against T, and the learning curves."""
    figure, (last, curve) = drawing.panels(2, "Longer episodes", share_y=True)
    for (on, lines), style in zip(
        summary.groupby("on", sort=False), drawing.styles(), strict=False
    ):
        label = "unseen tasks" if on == "unseen" else f"unseen tasks of {on}"
        drawing.summary_line(last, lines, "episode_length", "last", label, style)
    last.set_xscale("log")
    lengths = sorted(summary.episode_length.unique())
    last.set_xticks(lengths, [str(t) for t in lengths])
    last.minorticks_off()
    drawing.name_axes(last, "end of the episode", "T of meta-training and test", "accuracy")
    about = tables.labels(table, ["episode_length"])
    whole = tables.curves(table, "unseen")
    for length, style in zip(lengths, drawing.styles(), strict=False):
        rows = whole.loc[about.index[about.episode_length == length]].dropna(axis=1)
        drawing.line(curve, rows.columns, rows.mean(), f"T = {length}", style, markers=False)
    drawing.name_axes(curve, "unseen tasks, mean over seeds", "labelled examples seen", None)
    for axes in (last, curve):
        drawing.guessing(axes, math.exp(-chance_loss(table)))
    drawing.save(figure, path)


def judge(table: pd.DataFrame, summary: pd.DataFrame) -> Verdict:
    """Does accuracy at the end rise with T, and are the longest better than the shortest?"""
    claims = []
    for on in tables.places(table):
        runs = tables.ends(table, ["episode_length"], [on], LEAST)
        found = trend(runs.episode_length.to_numpy(), runs["last"].to_numpy())
        by = runs.groupby("episode_length")["last"]
        low, high = by.get_group(runs.episode_length.min()), by.get_group(runs.episode_length.max())
        gain = difference(high.to_numpy(), low.to_numpy())
        where = "unseen tasks" if on == "unseen" else f"unseen tasks of {on}"
        claims.append(
            Claim(f"accuracy at the end rises with T on {where}", found.rises, detail=str(found))
        )
        claims.append(
            Claim(f"the longest episodes beat the shortest on {where}", gain.above(0), gain)
        )
    return Verdict(tuple(claims))


EXPERIMENT = Experiment(
    name="sequence-length",
    figure="Figure 14",
    title="Longer episodes",
    finding="The longer the episodes of meta-training, the better the learner at their end.",
    presets={"paper": paper, "cpu": cpu},
    summarise=summarise,
    plot=plot,
    judge=judge,
    limits="Batches have as many episodes at every T, so that longer ones see more examples. With "
    "as many examples instead (batches of 640 / T) T = 80 was still on the plateau at the end.",
)
