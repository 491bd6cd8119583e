"""Figure 3: accuracy against the position in the episode, on the data set and on another."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from baselines import common
from baselines.experiments import drawing, tables
from baselines.experiments.findings import Claim, Verdict, difference, mean_over_seeds
from baselines.experiments.spec import Experiment, Measure, Run, change, settings
from baselines.experiments.toy import ENV, OTHER, toy
from icl_bench.registration import find_spec

SEEDS = range(8)  # Kirsch et al. 2022, A.4: eight meta-training seeds
MARGIN = 0.05


def paper() -> list[Run]:
    """Meta-trained on MNIST and on FashionMNIST as for Table 2, tested on both."""
    pair = ("MNIST-Proj-v0", "FashionMNIST-Proj-v0")
    return both("gpicl", [settings("gpicl", "paper", seed=s) for s in SEEDS], pair)


def cpu() -> list[Run]:
    """Digits 0–4 and 5–9 at the toy size; unbounded tasks."""
    return both("gpicl", [toy(seed=s) for s in SEEDS], (ENV, OTHER))


def both(baseline: str, configs: Sequence[common.RunConfig], pair: tuple[str, str]) -> list[Run]:
    """Runs on each environment of a pair, measured on both."""
    found = []
    for env, other in (pair, pair[::-1]):
        for config in configs:
            trained = change(config, {"env": env})
            found.append(Run(baseline, trained, Measure(("unseen", other))))
    return found


def points(table: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """(meta-trained on, tested on) → learning curves, a row per run."""
    about = table.drop_duplicates("run").set_index("run")["env"]
    found = {}
    for on in tables.places(table):
        curve = tables.curves(table, on)
        for env in about.unique():
            rows = curve.loc[[run for run in curve.index if about[run] == env]]
            if len(rows):
                found[env, env if on == "unseen" else on] = rows
    return found


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy at each step of the episode, over seeds."""
    rows = []
    for (env, on), curve in points(table).items():
        for t in curve:
            value = mean_over_seeds(curve[t].to_numpy())
            row = {"meta_train": env, "on": on, "t": int(t), "n": value.n}
            rows.append(row | {"accuracy": value.value, "low": value.low, "high": value.high})
    return pd.DataFrame(rows).replace([np.inf, -np.inf], np.nan)


def plot(table: pd.DataFrame, summary: pd.DataFrame, path: Path) -> None:
    """One panel for each environment that is tested on."""
    tested = list(summary.on.unique())
    figure, grid_of = drawing.panels(len(tested), "Learning curves within an episode", share_y=True)
    for axes, on in zip(grid_of, tested, strict=True):
        lines = summary[summary.on == on].groupby("meta_train", sort=False)
        for (env, rows), style in zip(lines, drawing.styles(), strict=False):
            label = f"meta-trained on {str(env).split('-')[0]}"
            drawing.line(
                axes, rows.t, rows.accuracy, label, style, rows.low, rows.high, markers=False
            )
        drawing.guessing(axes, 1 / find_spec(on).num_classes)
        drawing.name_axes(axes, f"unseen tasks of {on}", "labelled examples seen", "accuracy")
    drawing.save(figure, path)


def judge(table: pd.DataFrame, summary: pd.DataFrame) -> Verdict:
    """Does accuracy rise within the episode, and on the other data set as well?"""
    claims = []
    for (env, on), curve in points(table).items():
        last = curve.iloc[:, -tables.last_steps(curve.shape[1]) :].mean(axis=1)
        gain = mean_over_seeds((last - curve[0]).to_numpy())
        where = "itself" if env == on else on
        claims.append(
            Claim(f"meta-trained on {env}, it learns on {where}", gain.above(MARGIN), gain)
        )
    ends = {
        key: curve.iloc[:, -tables.last_steps(curve.shape[1]) :].mean(axis=1).to_numpy()
        for key, curve in points(table).items()
    }
    for env, on in ends:
        if env != on and (on, on) in ends:
            lost = difference(ends[on, on], ends[env, on])
            claims.append(
                Claim(
                    f"on {on}, meta-training on {env} is worse than on {on} by at most 10 points",
                    lost.below(0.1),
                    lost,
                )
            )
    return Verdict(tuple(claims))


EXPERIMENT = Experiment(
    name="curves",
    figure="Figure 3",
    title="Learning curves within an episode, and on another data set",
    finding="Accuracy rises with the examples of an episode, also on a data set that "
    "meta-training never saw: MNIST to FashionMNIST and back.",
    presets={"paper": paper, "cpu": cpu},
    summarise=summarise,
    plot=plot,
    judge=judge,
)
