"""Figure 7: the loss stays at chance for a long time, then drops sharply."""

import math
from pathlib import Path

import pandas as pd

from baselines.experiments import drawing, tables
from baselines.experiments.findings import (
    Claim,
    Verdict,
    median_length,
    median_sharpness,
    sharpness,
)
from baselines.experiments.plateaus import (
    chance_loss,
    check_length,
    final_loss,
    lengths,
    loss_curves,
    plateaus,
)
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
    """Length of the plateau of every run."""
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
    final = final_loss(table)
    curves = [(curve.index.to_numpy(), curve.to_numpy()) for curve in loss_curves(table).values()]
    drops = [sharpness(*curve, chance, final=final) for curve in curves]
    done = [drop.relative for drop in drops if drop is not None]
    # Of a loss that falls in a straight line the middle of the drop takes 3 times the plateau.
    sharp = median_sharpness(curves, chance, final=final)
    left = sum(not p.censored for p in found.values())
    long = length.above(max(steps[-1] for steps, _ in curves) / 20)
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
                sharp.below(1),
                sharp,
                f"middle of the drop / plateau; below 1 in {sum(d < 1 for d in done)} of the "
                f"{len(done)} runs whose drop is done",
            ),
        )
    )


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
    check=check_length,
    limits="With a quarter of the episodes made of repeated points the plateau takes from "
    "2,000 steps to more than 8,000, by seed; without them it outlasts the preset.",
)
