"""Figure 2: an MLP memorises as many tasks as its size allows, a Transformer jumps to learning."""

from pathlib import Path

import numpy as np
import pandas as pd

from baselines.experiments import drawing, tables
from baselines.experiments.findings import Claim, Verdict, mean_over_seeds, trend
from baselines.experiments.plateaus import chance_loss
from baselines.experiments.spec import Experiment, Measure, Run, grid, settings
from baselines.experiments.toy import OTHER, toy

# A task counts as memorised where accuracy on seen tasks is at least half way from chance to 1.
HALF = 0.5
MARGIN = 0.05
PANELS = (("mlp", "seen"), ("mlp", "unseen"), ("gpicl", "seen"), ("gpicl", "unseen"))
NAMES = {"mlp": "MLP", "gpicl": "Transformer"}


def paper() -> list[Run]:
    """2^0 … 2^24 tasks, five widths, three seeds; the paper shows no widths in numbers."""
    widths = {"mlp": (64, 256, 1024, 4096), "gpicl": (32, 64, 128, 256, 512)}
    return [
        Run(
            baseline,
            settings(baseline, "paper", **{"bias": 0.0, "steps": 50_000} | point),
            Measure(),
        )
        for baseline in widths
        for point in grid(
            width=widths[baseline], num_tasks=[2**k for k in range(0, 25, 2)], seed=range(3)
        )
    ]


def cpu() -> list[Run]:
    """Three widths of each at the toy size, two seeds."""
    measure = Measure(("seen", "unseen", OTHER))
    mlp = grid(width=(16, 64, 256), num_tasks=(1, 4, 16, 64, 256, 1024), seed=range(2))
    transformer = grid(width=(16, 32, 64), num_tasks=(16, 64, 256, 512, 1024), seed=range(2))
    return [
        *(Run("mlp", toy("mlp", **point), measure) for point in mlp),
        *(Run("gpicl", toy(**point), measure) for point in transformer),
    ]


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy at the end of the episode, over seeds."""
    found = tables.ends(table, ["baseline", "width", "num_tasks"], ["seen", "unseen"])
    return tables.over_seeds(found, ["baseline", "on", "width", "num_tasks"], ["first", "last"])


def plot(table: pd.DataFrame, summary: pd.DataFrame, path: Path) -> None:
    """One panel for each learner and kind of task; a line for each width."""
    figure, grid_of = drawing.panels(
        4, "Memorising and learning by number of tasks and width", columns=2, share_y=True
    )
    for axes, (baseline, on) in zip(grid_of, PANELS, strict=True):
        rows = summary[(summary.baseline == baseline) & (summary.on == on)]
        groups = rows.groupby("width")
        for (width, lines), style in zip(groups, drawing.styles(), strict=False):
            drawing.summary_line(axes, lines, "num_tasks", "last", f"width {width}", style)
        drawing.guessing(axes, np.exp(-chance_loss(table)))
        drawing.name_axes(axes, f"{NAMES[baseline]}, {on} tasks", None, "accuracy at the end")
        drawing.powers_of_two(axes, summary.num_tasks, "number of training tasks")
    drawing.save(figure, path)


def memorised(runs: pd.DataFrame, chance: float) -> pd.DataFrame:
    """Largest number of tasks of which the MLP knows at least half, by width and seed."""
    seen = runs[(runs.baseline == "mlp") & (runs.on == "seen")]
    known = seen[seen["last"] >= chance + HALF * (1 - chance)]
    found = known.groupby(["width", "seed"])["num_tasks"].max()
    every = seen.groupby(["width", "seed"])["num_tasks"].min() * 0
    return every.add(found, fill_value=0).rename("tasks").reset_index()


def judge(table: pd.DataFrame, summary: pd.DataFrame) -> Verdict:
    """A capacity line for the MLP, none of it on unseen tasks; a jump for the Transformer."""
    runs = tables.ends(table, ["baseline", "width", "num_tasks"], ["seen", "unseen"])
    chance = float(np.exp(-chance_loss(table)))
    capacity = memorised(runs, chance)
    line = trend(capacity.width.to_numpy(), capacity.tasks.to_numpy())
    mlp = runs[(runs.baseline == "mlp") & (runs.on == "unseen")]
    unseen = mean_over_seeds(mlp["last"].to_numpy())
    transformer = runs[(runs.baseline == "gpicl") & (runs.on == "unseen")]
    most, least = transformer.num_tasks.max(), transformer.num_tasks.min()
    many = mean_over_seeds(transformer[transformer.num_tasks == most]["last"].to_numpy())
    few = mean_over_seeds(transformer[transformer.num_tasks == least]["last"].to_numpy())
    told = ", ".join(f"width {w}: {g.tasks.median():.0f}" for w, g in capacity.groupby("width"))
    return Verdict(
        (
            Claim("a wider MLP memorises more tasks", line.rises, detail=f"{told} tasks; {line}"),
            Claim(
                "the MLP is at chance on unseen tasks",
                unseen.within(chance - MARGIN, chance + MARGIN),
                unseen,
            ),
            Claim(
                f"the Transformer is at chance on unseen tasks after {least:,} tasks",
                few.within(chance - MARGIN, chance + MARGIN),
                few,
            ),
            Claim(
                f"it has learned to learn after {most:,} tasks", many.above(chance + MARGIN), many
            ),
        )
    )


EXPERIMENT = Experiment(
    name="capacity",
    figure="Figure 2",
    title="Memorising and learning by number of tasks and width",
    finding="An MLP memorises more tasks the wider it is and is at chance on unseen ones; a "
    "Transformer does so, too, and from about 2^13 tasks on jumps to generalisation.",
    presets={"paper": paper, "cpu": cpu},
    summarise=summarise,
    plot=plot,
    judge=judge,
)
