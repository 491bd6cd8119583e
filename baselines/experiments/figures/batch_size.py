"""Figures 8, 18: batch size and number of tasks decide between memorising, learning and a plateau.

Larger batches shorten the plateau in outer steps, but not in proportion: more tasks are seen in it.

Differs from the paper: it gives no list of sizes; ours are powers of two around its range.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from baselines.experiments import drawing, tables
from baselines.experiments.findings import Claim, Plateau, PowerLaw, Verdict, power_law
from baselines.experiments.plateaus import check_length, lengths, over_seeds, plateaus
from baselines.experiments.spec import Experiment, Measure, Run, grid, settings
from baselines.experiments.toy import PLATEAU, toy

POINT = ["num_tasks", "batch_size"]
STATES = {"plateau": "plateau", "memorises": "memorises", "generalises": "generalises"}
MARGIN = 0.05  # a smaller rise of accuracy within the episode is none


def paper() -> list[Run]:
    """FashionMNIST, labels fully permuted (Kirsch et al. 2022, Figure 8); three seeds."""
    fixed = {"env": "FashionMNIST-Proj-v0", "bias": 0.0}
    return [
        Run("gpicl", settings("gpicl", "paper", **fixed, **point), Measure())
        for point in grid(
            num_tasks=[2**k for k in (8, 12, 16, 20, 24)],
            batch_size=[64, 128, 256, 512, 1024],
            seed=range(3),
        )
    ]


def cpu() -> list[Run]:
    """Batches of 8 … 128 at three numbers of tasks and the plateau's toy size, three seeds."""
    return [
        Run("gpicl", toy(**PLATEAU | point), Measure())
        for point in grid(
            num_tasks=[64, 512, 2**16], batch_size=[8, 16, 32, 64, 128], seed=range(3)
        )
    ]


def runs_of(table: pd.DataFrame) -> pd.DataFrame:
    """Of every run: the plateau, its tasks, accuracy, and what the learner does at the end."""
    measured: dict[str, Plateau] = {}
    for _, rows in table.groupby("num_tasks"):
        # Few tasks can be memorised: their loss ends lower than any that many tasks lead to.
        measured |= plateaus(rows)
    found = lengths(table, POINT, measured).set_index("run")
    for on in ("seen", "unseen"):
        ends = tables.ends(table, [], [on]).set_index("run")
        found = found.join(ends[["last", "gain"]].add_prefix(f"{on}_"))
    found["tasks_seen"] = found.length * found.batch_size
    learns = found.unseen_gain > MARGIN
    state = np.where(learns, "generalises", np.where(found.censored, "plateau", "memorises"))
    return found.assign(state=state).reset_index()


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Plateau, tasks seen in it and accuracies over seeds; shares of what the learners do."""
    found = runs_of(table)
    summary = over_seeds(found, POINT, ["length", "tasks_seen", "seen_last", "unseen_last"])
    groups = found.groupby(POINT)
    for state in STATES:
        share = groups["state"].agg(lambda states, state=state: (states == state).mean())
        summary[state] = share.to_numpy()
    return summary


def plot(table: pd.DataFrame, summary: pd.DataFrame, path: Path) -> None:
    """Map of what the learners do; plateau in outer steps and in tasks by batch size."""
    figure, (states, steps, tasks) = drawing.panels(3, "Batch size, number of tasks, plateau")
    found = runs_of(table)
    for (state, name), style in zip(STATES.items(), drawing.styles(), strict=False):
        color, marker = style["color"], style["marker"]
        fill = "none" if state == "plateau" else color
        # The area of a mark is the share of the runs at this point.
        states.scatter(
            summary.batch_size,
            summary.num_tasks,
            s=90 * summary[state],
            facecolors=fill,
            edgecolors=color,
            marker=marker,
        )
        states.plot([], [], marker, color=color, mfc=fill, label=name)
    states.set_yscale("log", base=2)
    drawing.name_axes(states, "what the runs do", None, "number of training tasks")
    for axes, value in ((steps, "length"), (tasks, "tasks_seen")):
        groups = found.groupby("num_tasks")
        for (number, rows), style in zip(groups, drawing.styles(), strict=False):
            color, marker = style["color"], style["marker"]
            cut = rows.censored.astype(bool)
            axes.plot(rows.batch_size[~cut], rows[value][~cut], marker, color=color, markersize=4)
            axes.plot(rows.batch_size[cut], rows[value][cut], "^", mfc="none", color=color)
            middle = rows[~cut].groupby("batch_size")[value].median()
            label = f"{number:,} tasks"
            drawing.line(axes, middle.index, middle, label, style, markers=False)
        axes.set_yscale("log")
    drawing.name_axes(steps, "plateau (△ not left)", None, "outer steps")
    drawing.name_axes(tasks, "tasks seen in it", None, "outer steps × batch size")
    for axes in (states, steps, tasks):
        drawing.powers_of_two(axes, summary.batch_size, "batch size")
    drawing.save(figure, path)


def law(runs: pd.DataFrame) -> PowerLaw:
    """Length of the plateau as a power of the batch size.

    Of the sizes at which every run has a plateau and leaves it: those that leave in time are the
    shorter ones, and without the others the line would be too flat.
    """
    known = (runs.length > 0) & ~runs.censored.astype(bool)
    some = runs[known.groupby(runs.batch_size).transform("all")]
    return power_law(some.batch_size.to_numpy(), some.length.to_numpy(dtype=np.float64))


def judge(table: pd.DataFrame, summary: pd.DataFrame) -> Verdict:
    """Are the three there, and is the exponent between −1 (as many tasks) and 0 (as many steps)?"""
    found = runs_of(table)
    most, least = int(found.num_tasks.max()), int(found.num_tasks.min())
    many, few = (found[found.num_tasks == n] for n in (most, least))
    fit = law(many)
    told = (
        f"length ∝ batch^exponent at {most:,} tasks, R² = {fit.r_squared:.2f}; {fit.exponent.n} "
        f"of {len(many)} runs, of the batch sizes at which every run leaves a plateau"
    )
    few_last, many_last = (rows[rows.batch_size == rows.batch_size.max()] for rows in (few, many))
    return Verdict(
        (
            Claim(
                f"{least:,} tasks and the largest batch give memorising",
                _all(few_last.state == "memorises"),
                detail=_told(few),
            ),
            Claim(
                f"{most:,} tasks and the largest batch give learning",
                _all(many_last.state == "generalises"),
                detail=_told(many),
            ),
            Claim(
                "a larger batch makes the plateau shorter in steps",
                fit.exponent.below(0),
                fit.exponent,
                told,
            ),
            Claim(
                "but more tasks are seen in it",
                fit.exponent.above(-1),
                fit.exponent,
                "exponent above −1",
            ),
        )
    )


def _all(holds: pd.Series) -> bool | None:
    """Whether all of two runs or more agree."""
    if len(holds) < 2 or holds.nunique() > 1:
        return None
    return bool(holds.iloc[0])


def _told(runs: pd.DataFrame) -> str:
    """What the runs do, by batch size."""
    groups = runs.groupby("batch_size")["state"]
    return "; ".join(
        f"batch {size}: "
        + ", ".join(f"{n} × {state}" for state, n in states.value_counts().sort_index().items())
        for size, states in groups
    )


EXPERIMENT = Experiment(
    name="batch-size",
    figure="Figures 8, 18",
    title="Batch size, number of tasks and the plateau",
    finding="By batch size and number of tasks, learners memorise, generalise or stay at the "
    "plateau; larger batches shorten it in steps, though more tasks are seen in it.",
    presets={"paper": paper, "cpu": cpu},
    summarise=summarise,
    plot=plot,
    judge=judge,
    check=check_length,
    limits="Plateaus of the smallest batches outlast the preset; these sizes are not in the power "
    "law.",
)
