"""Figure 7: the loss stays at chance for a long time, then drops sharply."""

import math
from pathlib import Path

import pandas as pd

from baselines.experiments import drawing, tables
from baselines.experiments.findings import Claim, Estimate, Verdict, median_length, sharpness
from baselines.experiments.plateaus import chance_loss, lengths, plateaus
from baselines.experiments.spec import Experiment, Measure, Run, settings
from baselines.experiments.toy import PLATEAU, toy

SEEDS = range(8)


def paper() -> list[Run]:
    """FashionMNIST, 2^16 tasks, labels fully permuted (Kirsch et al. 2022, Figure 7)."""
    fixed = {"env": "FashionMNIST-Proj-v0", "num_tasks": 2**16, "bias": 0.0}
    return [Run("gpicl", settings("gpicl", "paper", seed=s, **fixed), Measure()) for s in SEEDS]


def cpu() -> list[Run]:
    """2^16 tasks at the toy size."""
    return [Run("gpicl", toy(**PLATEAU | {"steps": 8000}, seed=s), Measure()) for s in SEEDS]


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Length of the plateau and of the drop after it, of every run."""
    return lengths(table, []).drop(columns="run")


def plot(table: pd.DataFrame, summary: pd.DataFrame, path: Path) -> None:
    """Training loss, and accuracy at the end of the episode, while training."""
    figure, (loss, accuracy) = drawing.panels(2, "A plateau, then a sharp drop: one line per seed")
    losses, unseen = tables.training_curves(table), tables.monitored(table, "unseen")
    seeds = tables.labels(table, [])["seed"].sort_values()
    for (run, seed), style in zip(seeds.items(), drawing.styles(), strict=False):
        drawing.line(loss, losses.columns, losses.loc[run], f"seed {seed}", style, markers=False)
        if run in unseen.index:
            drawing.line(accuracy, unseen.columns, unseen.loc[run], "", style, markers=False)
    drawing.guessing(loss, chance_loss(table))
    drawing.guessing(accuracy, math.exp(-chance_loss(table)))
    drawing.name_axes(loss, "training loss", "outer steps", "nats")
    drawing.name_axes(accuracy, "end of the episode, unseen tasks", "outer steps", "accuracy")
    drawing.save(figure, path)


def judge(table: pd.DataFrame, summary: pd.DataFrame) -> Verdict:
    """Is there a plateau, is it left, and does the loss then drop in less time than it lasted?"""
    found = plateaus(table)
    chance = chance_loss(table)
    length = median_length(list(found.values()))
    final = min((p.final for p in found.values()), default=chance)
    losses = tables.training_curves(table)
    drops = []
    for _, row in losses.iterrows():
        known = row.dropna()
        drop = sharpness(known.index.to_numpy(), known.to_numpy(), chance, final=final)
        if drop is not None:
            drops.append(drop.relative)
    # Of a loss that falls in a straight line the middle of the drop takes 3 times the plateau.
    sharp = len(drops) and sum(d < 1 for d in drops)
    left = sum(not p.censored for p in found.values())
    long = length.above(losses.columns.max() / 20)
    return Verdict(
        (
            Claim("the loss stays at chance first", long, length, "outer steps"),
            Claim(
                "the plateau is left",
                left == len(found) or (None if left else False),
                detail=f"{left} of {len(found)} runs",
            ),
            Claim(
                "the drop is sharper than the plateau is long",
                (sharp == len(drops)) if drops else None,
                _median(drops),
                f"middle of the drop / plateau; below 1 in {sharp} of {len(drops)} runs",
            ),
        )
    )


def _median(values: list[float]) -> Estimate | None:
    if not values:
        return None
    ordered = sorted(values)
    return Estimate(float(pd.Series(values).median()), ordered[0], ordered[-1], len(values))


EXPERIMENT = Experiment(
    name="plateau",
    figure="Figure 7",
    title="A loss plateau, then a sharp drop",
    finding="The training loss stays at chance for about 35,000 steps and then drops within a few "
    "thousand.",
    presets={"paper": paper, "cpu": cpu},
    summarise=summarise,
    plot=plot,
    judge=judge,
    limits="With a quarter of the episodes made of repeated points the plateau takes 2,000 to "
    "8,000 steps; without them it outlasts the preset.",
)
