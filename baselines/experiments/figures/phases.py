"""Figures 4 and 11: with the number of tasks, from memorising through identifying to learning.

The rise of accuracy within an episode tells the three apart (Table 1): a learner that has memorised
its tasks needs no examples; one that identifies the task rises on seen tasks alone; a general
learning algorithm rises on any.

Differs from the paper: Figure 4 has inputs that are not normalised, ours always are.
"""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from baselines.experiments import drawing, tables
from baselines.experiments.findings import Boundary, Claim, Phases, Verdict, phases
from baselines.experiments.findings_phases import ORDER
from baselines.experiments.plateaus import chance_loss
from baselines.experiments.spec import Experiment, Measure, Run, grid, settings
from baselines.experiments.toy import OTHER, toy

PLACES = ("seen", "unseen", OTHER)
PAPER_OTHER = "FashionMNIST-Proj-v0"


def paper() -> list[Run]:
    """2^0 … 2^24 tasks, eight seeds (Kirsch et al. 2022, Figure 4); uniform permutations."""
    measure = Measure(("seen", "unseen", PAPER_OTHER))
    return [
        Run("gpicl", settings("gpicl", "paper", bias=0.0, **point), measure)
        for point in grid(num_tasks=[2**k for k in range(0, 25, 2)], seed=range(8))
    ]


def cpu() -> list[Run]:
    """1 … 2^14 tasks at the toy size, closer where learning begins."""
    tasks = [1, 4, 16, 64, 128, 256, 512, 1024, 4096, 16384]
    return [
        Run("gpicl", toy(**point), Measure(PLACES))
        for point in grid(num_tasks=tasks, seed=range(4))
    ]


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracies at both ends of the episode and the gain, over seeds."""
    found = tables.ends(table, ["num_tasks"], tables.places(table))
    return tables.over_seeds(found, ["on", "num_tasks"], ["first", "last", "gain"])


def plot(table: pd.DataFrame, summary: pd.DataFrame, path: Path) -> None:
    """The gain, and accuracies at the end of the episode, against the number of tasks."""
    figure, (gain, last) = drawing.panels(2, "Phases of meta-learning by the number of tasks")
    names = {"seen": "seen tasks", "unseen": "unseen tasks"}
    for on, style in zip(tables.places(table), drawing.styles(), strict=False):
        lines = summary[summary.on == on]
        label = names.get(on, f"another data set ({on})")
        drawing.summary_line(gain, lines, "num_tasks", "gain", label, style)
        drawing.summary_line(last, lines, "num_tasks", "last", label, style)
    drawing.name_axes(gain, "rise within the episode", None, "accuracy, last − first")
    drawing.name_axes(last, "end of the episode", None, "accuracy")
    for axes in (gain, last):
        drawing.powers_of_two(axes, summary.num_tasks, "number of training tasks")
    drawing.guessing(last, math.exp(-chance_loss(table)))
    drawing.save(figure, path)


def judge(table: pd.DataFrame, summary: pd.DataFrame) -> Verdict:
    """Were there three phases, in their order, and does learning reach another data set?"""
    runs = tables.ends(table, ["num_tasks"], tables.places(table))
    wide = runs.pivot(index=["run", "num_tasks"], columns="on", values=["gain", "last"]).dropna()
    tasks = wide.index.get_level_values("num_tasks").to_numpy(dtype=np.int64)
    other = next(on for on in tables.places(table) if on not in ("seen", "unseen"))
    found = phases(
        tasks,
        wide["gain", "seen"].to_numpy(),
        wide["gain", "unseen"].to_numpy(),
        wide["gain", other].to_numpy(),
        seen_last=wide["last", "seen"].to_numpy(),
        chance=math.exp(-chance_loss(table)),
    )
    labels = set(found.labels.values())
    most = max(found.labels)
    told = ", ".join(f"{k}: {label}" for k, label in found.labels.items())
    return Verdict(
        (
            Claim("the fewest tasks are memorised", _first_memorised(found), detail=told),
            Claim(
                "more tasks are identified",
                _later_identified(found),
                detail=f"begins {between(found.identification)}",
            ),
            Claim(
                "many tasks give a general learning algorithm",
                found.unseen[most].above(0.05),
                found.unseen[most],
                f"rise on unseen tasks at {most:,} tasks; begins {between(found.learning)}",
            ),
            Claim(
                "it learns another data set, too",
                found.cross[most].above(0.05),
                found.cross[most],
                f"rise on unseen tasks of {other}",
            ),
            Claim(
                "the phases come in this order",
                # Of fewer than three there is no order, but there may be a wrong one.
                found.monotone if set(ORDER) <= labels or found.monotone is False else None,
            ),
        )
    )


def _first_memorised(found: Phases) -> bool | None:
    """Whether the smallest number of tasks is memorised; None if it is not decided."""
    first = found.labels[min(found.labels)]
    return None if first == "undecided" else first == "memorises"


def _later_identified(found: Phases) -> bool | None:
    """Whether a larger number of tasks than one that is memorised is identified.

    False if only smaller ones are, None if none is: the phase may lie between two numbers.
    """
    memorised, identified = (
        [k for k, phase in found.labels.items() if phase == name]
        for name in ("memorises", "identifies")
    )
    if not identified or not memorised:
        return None
    return max(identified) > min(memorised)


def between(boundary: Boundary | None) -> str:
    """Where a phase begins, in words."""
    if boundary is None:
        return "at no single number of tasks"
    if boundary.high is None:
        return f"above {boundary.low:,} tasks, if at all" if boundary.low else "nowhere"
    return (
        f"between {boundary.low:,} and {boundary.high:,} tasks"
        if boundary.low
        else (f"at {boundary.high:,} tasks or fewer")
    )


EXPERIMENT = Experiment(
    name="phases",
    figure="Figures 4, 11",
    title="Phases of meta-learning by the number of tasks",
    finding="With the number of tasks a Transformer goes from memorising them through identifying "
    "the task at hand to learning any task, on other data sets, too.",
    presets={"paper": paper, "cpu": cpu},
    summarise=summarise,
    plot=plot,
    judge=judge,
    limits="The jump comes at fewer tasks than the paper's 2^13: model and D are smaller.",
)
