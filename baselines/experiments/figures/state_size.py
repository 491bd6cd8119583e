"""Figures 6, 13: state size predicts how well a learner learns, the number of parameters does not.

State size is what a learner carries from one example to the next: keys and values of a Transformer,
hidden state and cell of an LSTM, matrices of an outer-product LSTM, the states of VSML's LSTMs.
VSML shares its parameters between all of them, and so has a large state and few parameters.

Differs from the paper: the sizes are ours, for it names them of VSML without symmetries alone, and
so are 14×14 pixels for all learners, so that accuracies can be compared; VSML with symmetries is
added.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.overrides import TorchFunctionMode

from baselines import common
from baselines.experiments import drawing, tables
from baselines.experiments.findings import Claim, Verdict, stronger_predictor
from baselines.experiments.plateaus import chance_loss
from baselines.experiments.spec import Experiment, Label, Measure, Run, method_of, settings
from baselines.experiments.toy import toy
from baselines.sequence import build_model
from baselines.train_config import TrainConfig

NAMES = {
    "gpicl": "Transformer",
    "lstm": "LSTM",
    "outer-lstm": "outer-product LSTM",
    "vsml-nosym": "VSML without symmetries",
    "vsml": "VSML",
}
MEASURE = Measure(("unseen",))
ABOUT = ["architecture", "state_size", "parameters"]
Sizes = Mapping[str, Sequence[dict[str, Any]]]

PAPER: Sizes = {
    "gpicl": [
        {"width": width, "heads": heads, "batch_size": 512}  # Kirsch et al. 2022, Figure 6
        for width, heads in ((8, 1), (16, 1), (32, 1), (64, 2), (128, 4), (256, 8))
    ],
    "lstm": [{"hidden": hidden} for hidden in (16, 64, 256, 1024)],
    "outer-lstm": [{"size": size} for size in (8, 16, 32, 64)],
    "vsml-nosym": [{"grid": k} for k in (1, 2, 4, 8, 16, 24)],  # Kirsch et al. 2022, A.3
    "vsml": [{"hidden": hidden} for hidden in (4, 8, 16, 32)],
}
# Recurrent learners by Muon, as in their presets: by Adam they stayed at chance.
RECURRENT = {"optimizer": "muon", "clip": 1.0}
CPU: Sizes = {
    "gpicl": [{"width": width, "heads": 2} for width in (4, 8, 16, 32)],
    "lstm": [{"hidden": hidden, **RECURRENT} for hidden in (16, 64, 256)],
    "outer-lstm": [{"heads": 2, "size": size, **RECURRENT} for size in (4, 8, 16)],
    "vsml-nosym": [{"grid": k, "hidden": 16, **RECURRENT} for k in (1, 2, 4)],
    "vsml": [{"hidden": hidden, "lr": 0.02, "clip": 1.0} for hidden in (4, 8, 16)],
}


class _Unfilled(TorchFunctionMode):
    """Leaves out normal initial values: on tensors without data they would load a compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is torch.Tensor.normal_ else func(*args, **(kwargs or {}))


@functools.cache
def _counted(baseline: str, config: common.RunConfig) -> tuple[int, int]:
    """State size and number of parameters; no weight is drawn."""
    method = method_of(baseline)
    assert method is not None
    with torch.device("meta"), _Unfilled():
        model = build_model(method, config)
    assert isinstance(config, TrainConfig)
    return model.state_size(config.episode_length), sum(p.numel() for p in model.parameters())


def label(run: Run) -> dict[str, Label]:
    """What runs are compared by."""
    # Of all seeds once.
    state, parameters = _counted(run.baseline, dataclasses.replace(run.config, seed=0))
    return {
        "architecture": NAMES[run.baseline],
        "state_size": state,
        "parameters": parameters,
    }


def paper() -> list[Run]:
    """MNIST at 14×14 pixels, the recipe of Table 2, four seeds."""
    return [
        Run(name, settings(name, "paper", env="MNIST-Proj14-v0", **size, seed=seed), MEASURE)
        for name, sizes in PAPER.items()
        for size in sizes
        for seed in range(4)
    ]


def cpu() -> list[Run]:
    """Three or four sizes of each at the toy size, three seeds."""
    return [
        Run(name, toy(name, **size, seed=seed), MEASURE)
        for name, sizes in CPU.items()
        for size in sizes
        for seed in range(3)
    ]


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy at the end of the episode on unseen tasks, over seeds."""
    found = tables.ends(table, ABOUT, ["unseen"])
    return tables.over_seeds(found, ABOUT, ["first", "last"])


def plot(table: pd.DataFrame, summary: pd.DataFrame, path: Path) -> None:
    """Accuracy against state size, and against the number of parameters."""
    figure, grid_of = drawing.panels(2, "State size and number of parameters", share_y=True)
    chance = math.exp(-chance_loss(table))
    for axes, (x, label) in zip(
        grid_of,
        (("state_size", "state size, numbers"), ("parameters", "number of parameters")),
        strict=True,
    ):
        groups = summary.groupby("architecture", sort=False)
        for (name, rows), style in zip(groups, drawing.styles(), strict=False):
            drawing.summary_line(axes, rows, x, "last", str(name), style)
        drawing.guessing(axes, chance)
        drawing.name_axes(axes, f"by {label.split(',')[0]}", label, None)
        axes.set_xscale("log")
    drawing.name_axes(grid_of[0], "by state size", None, "accuracy at the end, unseen tasks")
    drawing.save(figure, path)


def judge(table: pd.DataFrame, summary: pd.DataFrame) -> Verdict:
    """Does accuracy go with state size, and more so than with the number of parameters?

    Sizes of learners are what is drawn again for the intervals: their seeds share all but chance.
    """
    runs = tables.ends(table, ABOUT, ["unseen"])
    point = runs.architecture + runs.state_size.astype(str) + "/" + runs.parameters.astype(str)
    found = stronger_predictor(
        runs["last"].to_numpy(),
        runs.state_size.to_numpy(),
        runs.parameters.to_numpy(),
        clusters=point.to_numpy(dtype=object),
        resample="clusters",
    )
    return Verdict(
        (
            Claim(
                "accuracy on unseen tasks rises with state size",
                found.state_size.above(0),
                found.state_size,
                "Spearman's rank correlation",
            ),
            Claim(
                "state size predicts it better than the number of parameters",
                found.difference.above(0),
                found.difference,
                f"difference of rank correlations; with parameters {found.parameters}",
            ),
        )
    )


EXPERIMENT = Experiment(
    name="state-size",
    figure="Figures 6, 13",
    title="State size predicts accuracy, the number of parameters does not",
    finding="Across architectures, accuracy on unseen tasks rises with the size of the state; the "
    "number of parameters says little.",
    presets={"paper": paper, "cpu": cpu},
    summarise=summarise,
    plot=plot,
    judge=judge,
    label=label,
    limits="Within one architecture both sizes grow together, except in VSML without symmetries; "
    "the comparison rests on the differences between architectures, and sixteen sizes leave it "
    "barely open.",
)
