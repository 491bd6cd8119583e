"""Figures 10, 12: features of a pretrained network make an image data set learnable in context.

A Transformer is meta-trained on features of handwritten digits and learns photographs of things
from their features (the view ``Emb``); with pixels it does not. The same for learners that are not
meta-trained.

Which network is decided by ``ICL_BENCH_NETWORK``, see ``make(network=...)``.

Differs from the paper: it has a ResNet of unstated size; ours is the network that is chosen.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import icl_bench
from baselines.experiments import drawing, tables
from baselines.experiments.findings import Claim, Verdict, difference, mean_over_seeds
from baselines.experiments.spec import Experiment, Measure, Run, settings
from icl_bench.catalog import VIEWS
from icl_bench.data.features import chosen_network
from icl_bench.data.images import data_folders
from icl_bench.registration import find_spec

WHOLE, MINI = "CIFAR10", "CIFAR10mini"  # the latter: a part of the former, the user's own
NAMES = {
    "gpicl": "GPICL Transformer",
    "sgd": "SGD",
    "logistic-regression": "logistic regression",
    "1-nn": "1-NN",
}
MARGIN = 0.05
SEEDS = 3


class MiniRun(Run):
    """A run that has the data set at hand in whatever process it is unpickled."""

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        register_mini()
        self.__dict__.update(state)


def folder_of(name: str) -> Path | None:
    """Folder of a data set's files, where there is one."""
    folders = (folder / "images" / name for folder in data_folders())
    return next((folder for folder in folders if (folder / "test.npz").is_file()), None)


def register_mini() -> None:
    """Make the environments of the part of CIFAR-10 known, unless they are already."""
    folder = folder_of(MINI)
    if folder is not None and f"{MINI}-Emb-v0" not in icl_bench.registry:
        icl_bench.register_dataset(MINI, npz=folder, title="The first images of CIFAR-10")


def things() -> str:
    """The photographs that are at hand: CIFAR-10, or a part of it.

    With neither it is CIFAR-10, whose absence is told before any run begins.
    """
    if folder_of(WHOLE) is None and folder_of(MINI) is not None:
        register_mini()
        return MINI
    return WHOLE


def runs_of(
    base: str, train: Mapping[str, str], preset: str, seeds: int, changes: Mapping[str, Any]
) -> list[Run]:
    """GPICL, meta-trained on each view's environment, and learners that are not meta-trained.

    Args:
        base: Data set that is tested on.
        train: View → environment of meta-training.
        preset: Of the baselines.
        seeds: Of meta-training.
        changes: Of GPICL's settings.
    """
    kind = MiniRun if base == MINI else Run
    network = chosen_network(VIEWS["Emb"])
    found = []
    for view, env in train.items():
        labels = {"inputs": f"features of {network}" if view == "Emb" else "pixels"}
        for seed in range(seeds):
            # Training curves would be measured on the features of every data set at hand.
            config = settings("gpicl", preset, env=env, seed=seed, eval_every=0, **changes)
            found.append(kind("gpicl", config, Measure((f"{base}-{view}-v0",)), labels))
        pixels = "Emb" if view == "Emb" else "Proj"
        for name in list(NAMES)[1:]:
            # Of SGD the paper's setting: that of its preset cpu is for 64 inputs.
            config = settings(name, "paper", env=f"{base}-{pixels}-v0")
            found.append(kind(name, config, Measure(("unseen",)), labels))
    return found


def paper() -> list[Run]:
    """Meta-trained on MNIST, tested on CIFAR-10, eight seeds (Kirsch et al. 2022, Figure 10)."""
    train = {"Emb": "MNIST-Emb-v0", "Proj": "MNIST-Proj-v0"}
    return runs_of(WHOLE, train, "paper", 8, {})


def cpu() -> list[Run]:
    """Meta-trained on the embedded digits; three seeds. Pixels of GPICL are 8×8."""
    train = {"Emb": "Digits-Emb-v0", "Proj8": "Digits-Proj8-v0"}
    return runs_of(things(), train, "cpu", SEEDS, {"width": 64, "steps": 2000})


def units(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy at the end of the episode of every unit of chance.

    That is the meta-training seed of GPICL; of learners without one, and of a single run, the task.

    Returns:
        Columns baseline, inputs, unit (``seed`` or ``task``), value.
    """
    about = tables.labels(table, ["baseline", "inputs"])
    parts = [tables.by_task(table, on) for on in tables.places(table)]
    by_task = {str(run): row.dropna() for part in parts for run, row in part.iterrows()}
    rows = []
    for (baseline, inputs), runs in about.groupby(["baseline", "inputs"], sort=False):
        found = [by_task[str(run)] for run in runs.index]
        several = len(found) > 1
        values = [float(row.mean()) for row in found] if several else found[0].to_list()
        about_them = {"baseline": baseline, "inputs": inputs, "unit": "seed" if several else "task"}
        rows += [about_them | {"value": value} for value in values]
    return pd.DataFrame(rows)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy at the end of the episode on unseen tasks, with intervals over seeds or tasks."""
    return tables.over_seeds(units(table), ["inputs", "baseline", "unit"], ["value"])


def plot(table: pd.DataFrame, summary: pd.DataFrame, path: Path) -> None:
    """Learning curves on the photographs, by features and by pixels."""
    about = tables.labels(table, ["baseline", "inputs", "env"])
    curves = {
        str(run): row.dropna()
        for on in tables.places(table)
        for run, row in tables.curves(table, on).iterrows()
    }
    kinds = list(dict.fromkeys(about.inputs))
    figure, grid_of = drawing.panels(
        len(kinds), "Photographs learned in context, by what learners see", share_y=True
    )
    for axes, kind in zip(grid_of, kinds, strict=True):
        for (name, title), style in zip(NAMES.items(), drawing.styles(), strict=False):
            runs = about.index[(about.inputs == kind) & (about.baseline == name)]
            if not len(runs):
                continue
            rows = pd.DataFrame([curves[str(run)] for run in runs])
            bands = [mean_over_seeds(rows[t].to_numpy()) for t in rows]
            low, high = [b.low for b in bands], [b.high for b in bands]
            drawing.line(axes, rows.columns, rows.mean(), title, style, low, high, markers=False)
        drawing.guessing(axes, 1 / find_spec(str(about.env.iloc[0])).num_classes)
        drawing.name_axes(axes, kind, "labelled examples seen", None)
    drawing.name_axes(grid_of[0], kinds[0], None, "accuracy, unseen tasks")
    drawing.save(figure, path)


def judge(table: pd.DataFrame, summary: pd.DataFrame) -> Verdict:
    """Do features help every learner, and does GPICL learn things from features of digits?"""
    found = units(table)
    chance = 1 / find_spec(str(table["env"].iloc[0])).num_classes
    claims = []
    groups = {
        (str(b), i == "pixels"): rows["value"].to_numpy(dtype=np.float64)
        for (b, i), rows in found.groupby(["baseline", "inputs"])
    }
    if ("gpicl", False) in groups:
        mean = mean_over_seeds(groups["gpicl", False])
        on = next(place for place in tables.places(table) if place.endswith("-Emb-v0"))
        inputs = found.inputs[found.inputs != "pixels"].iloc[0]
        claims.append(
            Claim(
                "meta-trained on features of digits, GPICL learns photographs by theirs",
                mean.above(chance + MARGIN),
                mean,
                f"accuracy at the end of episodes of {on}, {inputs}; the paper reports about 45 % "
                "on CIFAR-10",
            )
        )
    for name, title in NAMES.items():
        if (name, True) in groups and (name, False) in groups:
            gap = difference(groups[name, False], groups[name, True])
            text = f"{title} is better by features than by pixels"
            unit = found[found.baseline == name]["unit"].iloc[0]
            claims.append(Claim(text, gap.above(0), gap, f"one number per {unit}"))
    return Verdict(tuple(claims))


EXPERIMENT = Experiment(
    name="embeddings",
    figure="Figures 10, 12",
    title="Features of a pretrained network",
    finding="Meta-trained on features of MNIST, a Transformer reaches about 45 % on CIFAR-10 with "
    "100 examples, far more than by pixels.",
    presets={"paper": paper, "cpu": cpu},
    summarise=summarise,
    plot=plot,
    judge=judge,
    limits="Meta-trained on 1,297 embedded digits; GPICL's pixels are 8×8, those of the other "
    "learners 32×32 in colour; tested on a part of CIFAR-10 where the whole is not at hand. With "
    "features 2,000 outer steps do not leave the loss plateau at D = 512: whether GPICL learns "
    "photographs cannot be seen at this size.",
)
