"""Figures 15–17: in the plateau gradients are small, but for the last layer's.

Gradients, updates and Adam's moving averages by layer, of runs with a plateau and of runs whose
biased label permutations shorten it. The runs are some of those of the experiment ``bias``.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from baselines.experiments import drawing, tables
from baselines.experiments.findings import Claim, Verdict, mean_over_seeds, ratio
from baselines.experiments.plateaus import check_length, plateaus
from baselines.experiments.spec import Experiment, Measure, Run, grid, settings
from baselines.experiments.toy import PLATEAU, toy

LAST = "head"  # the last layer
QUANTITIES = {
    "gradient_norm": "gradient",
    "update_norm": "update",
    "adam_m_norm": "Adam's average of the gradient",
    "adam_v_norm": "root of Adam's average of its square",
}


def paper() -> list[Run]:
    """FashionMNIST, 2^16 tasks, uniform and 90 % biased label permutations, eight seeds."""
    fixed = {"env": "FashionMNIST-Proj-v0", "num_tasks": 2**16}
    return [
        Run("gpicl", settings("gpicl", "paper", **fixed, **point), Measure())
        for point in grid(bias=[0.0, 0.9], seed=range(8))
    ]


def cpu() -> list[Run]:
    """The plateau of the toy size, without bias and with three quarters; four seeds."""
    return [
        Run("gpicl", toy(**PLATEAU | point), Measure())
        for point in grid(bias=[0.0, 0.75], seed=range(4))
    ]


def norms(table: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Norms by layer in the log: a row per run and outer step, a column per layer."""
    prefix = f"{quantity}/"
    rows = table[(table.source == "train") & table.metric.str.startswith(prefix)]
    found = rows.pivot(index=["run", "outer_step"], columns="metric", values="value")
    return found.rename(columns=lambda name: str(name).removeprefix(prefix))


def in_plateau(table: pd.DataFrame) -> pd.DataFrame:
    """Mean norms while the runs without bias are at their plateau: a row per run and quantity.

    A biased run is looked at in the steps of the plateau of the run of its seed without bias.

    Returns:
        Columns run, bias, seed, quantity, last (last layer), others (largest of the other layers)
        and whole (all parameters).
    """
    about = tables.labels(table, ["bias"])
    # Biased tasks are easier: their loss would put the end of the plateau far down the drop.
    found = plateaus(table[table.bias == 0])
    windows = {int(s): found[str(run)] for run, b, s in about.itertuples() if b == 0}
    rows = []
    for quantity in QUANTITIES:
        every = norms(table, quantity)
        for run, bias, seed in about.itertuples():
            if seed not in windows:
                continue
            layers = every.loc[run]
            steps = layers.index.to_numpy()
            window = windows[int(seed)]
            layers = layers[(steps >= window.start) & (steps <= window.end)]
            if layers.empty:
                continue
            means = layers.mean()
            rows.append(
                {
                    "run": run,
                    "bias": float(bias),
                    "seed": int(seed),
                    "quantity": quantity,
                    "last": means[LAST],
                    "others": means.drop(LAST).max(),
                    "whole": float(np.sqrt((layers**2).sum(axis=1)).mean()),
                }
            )
    return pd.DataFrame(rows)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Norms in the plateau over seeds: last layer, largest of the others, all parameters."""
    return tables.over_seeds(in_plateau(table), ["quantity", "bias"], ["last", "others", "whole"])


def plot(table: pd.DataFrame, summary: pd.DataFrame, path: Path) -> None:
    """Every quantity by layer without bias, mean over seeds; and the whole gradient by bias."""
    figure, grid_of = drawing.panels(5, "Gradients and Adam's statistics by layer")
    about = tables.labels(table, ["bias"])
    plain = about.index[about.bias == 0]
    for axes, (quantity, title) in zip(grid_of, QUANTITIES.items(), strict=False):
        mean = norms(table, quantity).loc[list(plain)].groupby("outer_step").mean()
        for layer, style in zip(mean.columns, drawing.styles(), strict=False):
            drawing.line(axes, mean.index, mean[layer], str(layer), style, markers=False)
        axes.set_yscale("log")
        drawing.name_axes(axes, f"{title}, no bias", "outer steps", "norm")
    whole = np.sqrt((norms(table, "gradient_norm") ** 2).sum(axis=1)).unstack("outer_step")
    groups = about.groupby("bias").groups.items()
    for (bias, runs), style in zip(groups, drawing.styles(), strict=False):
        mean = whole.loc[list(runs)].mean()
        label = f"{bias:.0%} biased" if bias else "no bias"
        drawing.line(grid_of[4], mean.index, mean, label, style, markers=False)
    grid_of[4].set_yscale("log")
    drawing.name_axes(grid_of[4], "gradient of all parameters", "outer steps", "norm")
    drawing.save(figure, path)


def judge(table: pd.DataFrame, summary: pd.DataFrame) -> Verdict:
    """Is the last layer's gradient the largest in the plateau, and the whole half of the biased?"""
    found = in_plateau(table)
    gradient = found[found.quantity == "gradient_norm"]
    plain = gradient[gradient.bias == 0].set_index("seed")
    biased = gradient[gradient.bias > 0].set_index("seed")
    both = plain.index.intersection(biased.index)
    layers = mean_over_seeds(np.log(plain["last"] / plain["others"]).to_numpy()).map(np.exp)
    halved = ratio(
        plain.loc[both, "whole"].to_numpy(), biased.loc[both, "whole"].to_numpy(), paired=True
    )
    smaller = "gradient in the plateau / of biased runs at the same steps"
    return Verdict(
        (
            Claim(
                "the last layer's gradient is the largest",
                layers.above(1),
                layers,
                "norm / largest of the other layers, geometric mean",
            ),
            Claim("the gradient is smaller than with bias", halved.below(1), halved, smaller),
            Claim("it is about half of it", halved.within(1 / 3, 2 / 3), halved, smaller),
        )
    )


EXPERIMENT = Experiment(
    name="gradients",
    figure="Figures 15–17",
    title="Gradients and Adam's statistics in the plateau",
    finding="In the plateau only the last layer's gradients are not small, and the norm of the "
    "whole is about half of that with biased label permutations.",
    presets={"paper": paper, "cpu": cpu},
    summarise=summarise,
    plot=plot,
    judge=judge,
    check=check_length,
    limits="Gradients are those of single batches: with 32 episodes their noise is a large part of "
    "their norm, in and after the plateau alike.",
)
