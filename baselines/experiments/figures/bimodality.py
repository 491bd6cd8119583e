"""Figure 5: at the transition, runs that differ in the seed alone end at one of two losses."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from baselines.experiments import drawing, tables
from baselines.experiments.findings import Bimodality, Claim, Verdict, bimodalities, transition
from baselines.experiments.spec import Experiment, Measure, Run, grid, settings
from baselines.experiments.toy import OTHER, toy

# A run has generalised if its accuracy on unseen tasks rises by this much within the episode.
GENERALISED = 0.1
FINE = 1.5  # a transition between two numbers of tasks of a smaller ratio is a jump


def paper() -> list[Run]:
    """Model size 64, 32 seeds, around 6,000 tasks (Kirsch et al. 2022, Figure 5)."""
    tasks = [int(2**k) for k in (10, 11, 12, 12.5, 13, 13.5, 14, 15, 16)]
    return [
        Run("gpicl", settings("gpicl", "paper", bias=0.0, width=64, **point), Measure())
        for point in grid(num_tasks=tasks, seed=range(32))
    ]


def cpu() -> list[Run]:
    """Around the toy's transition, 16 seeds."""
    tasks = [256, 304, 362, 431, 512]
    return [
        Run("gpicl", toy(**point), Measure(("seen", "unseen", OTHER)))
        for point in grid(num_tasks=tasks, seed=range(16))
    ]


def points(table: pd.DataFrame) -> pd.DataFrame:
    """Final training loss, and rise of accuracy on unseen tasks, of every run."""
    found = tables.ends(table, ["num_tasks"], ["unseen"]).set_index("run")
    found["loss"] = tables.final_losses(table)
    return found.reset_index()


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Loss and rise over seeds, and the share of runs that generalise."""
    found = points(table)
    summary = tables.over_seeds(found, ["num_tasks"], ["loss", "gain"])
    share = (found.gain > GENERALISED).groupby(found.num_tasks).mean()
    return summary.assign(generalised=share.to_numpy())


def plot(table: pd.DataFrame, summary: pd.DataFrame, path: Path) -> None:
    """Every run's final loss and rise, and the share that generalises."""
    found = points(table)
    figure, (loss, gain, share) = drawing.panels(3, "One of two ends: every dot is a seed")
    # Seeds side by side, so that equal numbers can be told apart.
    spread = 2 ** (0.12 * (found.seed / max(1, found.seed.max()) - 0.5))
    look = {"s": 12, "alpha": 0.7, "linewidths": 0}
    for axes, column in ((loss, "loss"), (gain, "gain")):
        colours = np.where(found.gain > GENERALISED, drawing.COLOURS[0], drawing.COLOURS[1])
        axes.scatter(found.num_tasks * spread, found[column], color=colours, **look)
    drawing.name_axes(loss, "final training loss", None, "nats")
    drawing.name_axes(gain, "rise on unseen tasks", None, "accuracy, last − first")
    gain.axhline(GENERALISED, color=drawing.INK, linewidth=0.8, linestyle=":")
    style = next(drawing.styles())
    drawing.line(share, summary.num_tasks, summary.generalised, "runs that generalise", style)
    drawing.name_axes(share, "share that generalises", None, "share of seeds")
    for axes in (loss, gain, share):
        drawing.powers_of_two(axes, summary.num_tasks, "number of training tasks")
    drawing.save(figure, path)


def judge(table: pd.DataFrame, summary: pd.DataFrame) -> Verdict:
    """Is the final loss bimodal at some number of tasks, and where is the transition?"""
    found = points(table)
    groups = {int(k): group for k, group in found.groupby("num_tasks")}
    losses = bimodalities({k: group.loss.to_numpy() for k, group in groups.items()})
    gains = bimodalities({k: group.gain.to_numpy() for k, group in groups.items()})
    where = transition(found.num_tasks.to_numpy(), (found.gain > GENERALISED).to_numpy())
    mixed = [k for k, s in where.shares.items() if 0 < s < 1]
    return Verdict(
        (
            Claim("final losses have two modes", *_best(losses)),
            Claim("rises on unseen tasks have two modes", *_best(gains)),
            Claim(
                "at the transition seeds alone decide",
                _decided_by_seeds(where.shares) if found.seed.nunique() > 1 else None,
                where.tasks,
                f"half of the runs generalise there; both ends at {mixed or 'no'} tasks",
            ),
        )
    )


def _decided_by_seeds(shares: Mapping[int, float]) -> bool | None:
    """Whether some number of tasks has both ends; None where one between those tested may have.

    Args:
        shares: Number of tasks → share of the runs that generalise.
    """
    if any(0 < share < 1 for share in shares.values()):
        return True
    jumps = [b / a for a, b in itertools.pairwise(sorted(shares)) if shares[a] != shares[b]]
    return False if jumps and max(jumps) < FINE else None


def _best(found: Mapping[int, Bimodality]) -> tuple[bool | None, None, str]:
    """The most bimodal number of tasks, its p value adjusted for their number."""
    tasks, best = min(found.items(), key=lambda item: (item[1].p, -item[1].dip))
    return best.bimodal, None, f"at {tasks:,} tasks {best}"


EXPERIMENT = Experiment(
    name="bimodality",
    figure="Figure 5",
    title="Memorise or generalise: two ends at the transition",
    finding="Near 6,000 tasks runs either memorise or generalise: the final loss over 32 seeds has "
    "two modes.",
    presets={"paper": paper, "cpu": cpu},
    summarise=summarise,
    plot=plot,
    judge=judge,
    limits="At the toy size runs that identify their tasks and runs that learn come to nearly the "
    "same training loss; sixteen seeds do not decide whether it has one mode or two.",
)
