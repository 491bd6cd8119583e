"""Figure 19: steps along the sign of the gradient's average, and a smaller ε, shorten the plateau.

In the plateau gradients are small; where they are not large against Adam's ε, steps are too short.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from baselines.experiments import drawing, tables
from baselines.experiments.findings import Claim, Plateau, Verdict, length_ratio, trend
from baselines.experiments.plateaus import chance_loss, check_length, lengths, over_seeds, plateaus
from baselines.experiments.spec import Experiment, Measure, Run, settings
from baselines.experiments.toy import toy

STANDARD = 1e-8


def paper() -> list[Run]:
    """FashionMNIST, 2^16 tasks; Adam with ε from 1e-8 to 1e-16, and the sign optimizer."""
    fixed = {"env": "FashionMNIST-Proj-v0", "num_tasks": 2**16, "bias": 0.0}
    return [
        Run("gpicl", settings("gpicl", "paper", seed=seed, **fixed, **change), Measure(), labels)
        for seed in range(8)
        for change, labels in points((1e-8, 1e-12, 1e-16))
    ]


def cpu() -> list[Run]:
    """Adam with ε from 1e-3 to 1e-12, and the sign optimizer, at one learning rate."""
    return [
        Run(
            "gpicl",
            toy(lr=1e-3, steps=4000, num_tasks=2**16, seed=seed, **change),
            Measure(),
            labels,
        )
        for seed in range(4)
        for change, labels in points((1e-3, 1e-5, 1e-8, 1e-12))
    ]


def points(epsilons: tuple[float, ...]) -> list[tuple[dict, dict]]:
    """Changes of the settings, and their name."""
    adam = [({"eps": eps}, {"method": f"Adam, ε = {eps:g}"}) for eps in epsilons]
    return [*adam, ({"optimizer": "sign"}, {"method": "sign"})]


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Length of the plateau (a lower bound where runs are censored), over seeds."""
    return over_seeds(lengths(table, ["method"]), ["method"], ["length"])


def plot(table: pd.DataFrame, summary: pd.DataFrame, path: Path) -> None:
    """Training loss, mean over seeds, and the length of every run's plateau."""
    figure, (loss, length) = drawing.panels(2, "The plateau by optimizer")
    losses = tables.training_curves(table)
    runs = lengths(table, ["method"])
    methods = list(dict.fromkeys(table.method))
    for place, (method, style) in enumerate(zip(methods, drawing.styles(), strict=False)):
        rows = runs[runs.method == method]
        mean = losses.loc[list(rows.run)].mean()
        drawing.line(loss, mean.index, mean, method, style, markers=False)
        ended, cut = rows[~rows.censored.astype(bool)], rows[rows.censored.astype(bool)]
        length.plot(ended.length, [place] * len(ended), "o", color=style["color"], markersize=4)
        length.plot(cut.length, [place] * len(cut), ">", color=style["color"], markersize=5)
    drawing.guessing(loss, chance_loss(table))
    drawing.name_axes(loss, "training loss, mean over seeds", "outer steps", "nats")
    length.set_yticks(range(len(methods)), methods, fontsize=8)
    length.invert_yaxis()
    drawing.name_axes(length, "length of the plateau (▸ not left)", "outer steps", None)
    drawing.save(figure, path)


def judge(table: pd.DataFrame, summary: pd.DataFrame) -> Verdict:
    """Is the plateau of the sign optimizer at most half of Adam's, and does ε matter?"""
    measured = plateaus(table)
    runs = lengths(table, ["method", "eps", "optimizer"])

    def group(optimizer: str, eps: float) -> list[Plateau]:
        rows = runs[(runs.optimizer == optimizer) & (runs.eps == eps)]
        return [measured[run] for run in rows.run]

    adam = runs[runs.optimizer == "adam"]
    sign = length_ratio(group("sign", STANDARD), group("adam", STANDARD))
    least = float(adam.eps.min())
    small = length_ratio(group("adam", least), group("adam", STANDARD))
    shown = trend(
        np.log10(adam.eps.to_numpy()),
        adam.length.to_numpy(dtype=np.float64),
        adam.censored.to_numpy(dtype=bool),
    )
    return Verdict(
        (
            Claim(
                "the sign optimizer's plateau is at most half as long as Adam's",
                sign.below(0.5),
                sign,
                "length / Adam's with ε = 1e-8, same learning rate",
            ),
            Claim("it is shorter at all", sign.below(1), sign),
            Claim(
                f"ε = {least:g} makes Adam's plateau at most half as long as 1e-8",
                small.below(0.5),
                small,
            ),
            Claim("it makes it shorter at all", small.below(1), small),
            Claim("the larger ε, the longer the plateau", shown.rises, detail=str(shown)),
        )
    )


EXPERIMENT = Experiment(
    name="optimizers",
    figure="Figure 19",
    title="Optimizers and the length of the plateau",
    finding="Steps along the sign of the gradient's moving average, or a smaller ε of Adam, make "
    "the plateau at most half as long.",
    presets={"paper": paper, "cpu": cpu},
    summarise=summarise,
    plot=plot,
    judge=judge,
    check=check_length,
    limits="The toy's gradients are far larger than ε = 1e-8, so that the paper's effect of a "
    "smaller ε can only be looked for at larger values.",
)
