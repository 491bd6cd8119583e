"""Figure 20: weight decay does not make learners that have memorised generalise later on.

Grokking would be accuracy on unseen tasks that rises long after that on seen ones. A run counts as
having memorised from the first measurement at which it knows its tasks and no others: accuracy at
the end of the episode at least half way from chance to 1 on seen tasks, and at chance on unseen
ones.

Differs from the paper: it has Adam with weight decay and does not say which; ours is decoupled
(``adamw``), as in studies of grokking, for as a term of the gradient Adam rescales it.
"""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from baselines.experiments import drawing, tables
from baselines.experiments.findings import Claim, Verdict, mean_over_seeds
from baselines.experiments.plateaus import chance_loss
from baselines.experiments.spec import Experiment, Measure, Run, grid, settings
from baselines.experiments.toy import toy

HALF = 0.5  # of the way from chance to 1: the tasks are known
MARGIN = 0.1  # so near to chance is at it, and a rise that is smaller is none
SMOOTH = 3  # measurements that are averaged
DECAYS = (0.0, 0.01, 0.1, 1.0)  # Kirsch et al. 2022, Figure 20, and none
POINT = ["num_tasks", "weight_decay"]


def paper() -> list[Run]:
    """2^10, 2^14 and 2^16 tasks (Kirsch et al. 2022, Figure 20), three seeds."""
    fixed = {"env": "FashionMNIST-Proj-v0", "bias": 0.0, "optimizer": "adamw"}
    return [
        Run("gpicl", settings("gpicl", "paper", **fixed, **point), Measure())
        for point in grid(num_tasks=[2**10, 2**14, 2**16], weight_decay=DECAYS, seed=range(3))
    ]


def cpu() -> list[Run]:
    """Numbers of tasks around the toy's transition, twice its steps, three seeds."""
    return [
        Run("gpicl", toy(optimizer="adamw", steps=5000, **point), Measure())
        for point in grid(num_tasks=[16, 64, 1024], weight_decay=DECAYS, seed=range(3))
    ]


def late_rises(table: pd.DataFrame) -> pd.DataFrame:
    """Of every run: when it had memorised (NaN if never), and the rise on unseen tasks after.

    Returns:
        Columns run, seed, num_tasks, weight_decay, memorised (outer step), rise, seen and unseen
        (accuracies at the end of training).
    """
    about = tables.labels(table, POINT)
    chance = math.exp(-chance_loss(table))
    smooth = {
        on: tables.monitored(table, on).T.rolling(SMOOTH, min_periods=1).mean().T
        for on in ("seen", "unseen")
    }
    rows = []
    for run in about.index:
        seen, unseen = smooth["seen"].loc[run].dropna(), smooth["unseen"].loc[run].dropna()
        known = (seen >= chance + HALF * (1 - chance)) & (unseen < chance + MARGIN)
        first = known.idxmax() if known.any() else math.nan
        rise = unseen.iloc[-1] - unseen[first] if known.any() else math.nan
        rows.append(
            {
                "run": run,
                "memorised": first,
                "rise": rise,
                "seen": seen.iloc[-1],
                "unseen": unseen.iloc[-1],
            }
        )
    return about.join(pd.DataFrame(rows).set_index("run")).reset_index()


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracies at the end of training over seeds, and how many runs had memorised."""
    found = late_rises(table)
    summary = tables.over_seeds(found, POINT, ["seen", "unseen"])
    groups = found.groupby(POINT)
    return summary.assign(
        memorised=groups["memorised"].count().to_numpy(), rise=groups["rise"].max().to_numpy()
    )


def plot(table: pd.DataFrame, summary: pd.DataFrame, path: Path) -> None:
    """Accuracy while training, a panel per number of tasks: seen dashed, unseen solid."""
    numbers = sorted(summary.num_tasks.unique())
    figure, grid_of = drawing.panels(
        len(numbers), "Weight decay: seen tasks (dashed) and unseen ones (solid)", share_y=True
    )
    about = tables.labels(table, POINT)
    curves = {on: tables.monitored(table, on) for on in ("seen", "unseen")}
    for axes, number in zip(grid_of, numbers, strict=True):
        groups = about[about.num_tasks == number].groupby("weight_decay").groups.items()
        for (decay, runs), style in zip(groups, drawing.styles(), strict=False):
            for on, look in (("seen", (0, (4, 2))), ("unseen", "-")):
                mean = curves[on].loc[list(runs)].mean()
                label = f"decay {decay:g}" if on == "unseen" else ""
                line = style | {"linestyle": look}
                drawing.line(axes, mean.index, mean, label, line, markers=False)
        drawing.guessing(axes, math.exp(-chance_loss(table)))
        drawing.name_axes(axes, f"{number:,} tasks", "outer steps", None)
    grid_of[0].set_ylabel("accuracy, end of the episode", fontsize=9)
    drawing.save(figure, path)


def judge(table: pd.DataFrame, summary: pd.DataFrame) -> Verdict:
    """Of the runs that have memorised, does none rise on unseen tasks later, whatever the decay?"""
    found = late_rises(table)
    claims = []
    for decay, runs in found.groupby("weight_decay"):
        memorised = runs[runs.memorised.notna()]
        rise = mean_over_seeds(memorised.rise.to_numpy(dtype=np.float64))
        late = int((memorised.rise >= MARGIN).sum())
        name = f"weight decay {decay:g}" if decay else "no weight decay"
        claims.append(
            Claim(
                f"with {name} memorising is not followed by learning",
                False if late else rise.below(MARGIN),
                rise,
                f"rise on unseen tasks after memorising; {late} of {len(memorised)} runs rise by "
                f"{MARGIN:g} or more, {len(runs) - len(memorised)} have not memorised",
            )
        )
    return Verdict(tuple(claims))


EXPERIMENT = Experiment(
    name="weight-decay",
    figure="Figure 20",
    title="Weight decay and memorising: no grokking",
    finding="With weight decay of 0.01, 0.1 or 1.0, too, learners that have memorised their tasks "
    "do not generalise later.",
    presets={"paper": paper, "cpu": cpu},
    summarise=summarise,
    plot=plot,
    judge=judge,
    limits="5,000 steps: what would come after them, the preset cannot say.",
)
