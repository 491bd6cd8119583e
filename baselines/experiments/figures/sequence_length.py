"""Figure 14: longer episodes, in meta-training and after it, are better."""

import math
from pathlib import Path

import pandas as pd

from baselines.experiments import drawing, tables
from baselines.experiments.findings import Claim, Verdict, difference, trend
from baselines.experiments.plateaus import chance_loss
from baselines.experiments.spec import Experiment, Measure, Run, grid, settings
from baselines.experiments.toy import OTHER, toy


def paper() -> list[Run]:
    """T = 50 … 400, eight seeds; the paper names no lengths."""
    measure = Measure(("unseen", "FashionMNIST-Proj-v0"))
    return [
        Run("gpicl", settings("gpicl", "paper", **point), measure)
        for point in grid(episode_length=[50, 100, 200, 400], seed=range(8))
    ]


def cpu() -> list[Run]:
    """T = 10, 20, 40, 80 at the toy size, as many examples in a batch for each."""
    return [
        Run(
            "gpicl",
            toy(episode_length=t, batch_size=640 // t, seed=seed, eval_episodes=32),
            Measure(("unseen", OTHER)),
        )
        for t in (10, 20, 40, 80)
        for seed in range(4)
    ]


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy at the end of the episode, over seeds."""
    found = tables.ends(table, ["episode_length"], tables.places(table))
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
        runs = tables.ends(table, ["episode_length"], [on])
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
    limits="Batches shrink as episodes grow, so that every run sees as many examples.",
)
