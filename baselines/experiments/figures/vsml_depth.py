"""Figure 21: the deeper VSML, the slower its meta-training.

Differs from the paper: it states no widths; ours is the default of ``baselines.vsml``, with the
preset ``cpu`` 8. The toy size of the other experiments would not do: with 16 inputs and episodes of
20 steps VSML stays at chance for longer than 600 outer steps.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from baselines.experiments import drawing, tables
from baselines.experiments.findings import Claim, Verdict, difference, length_ratio, trend
from baselines.experiments.plateaus import chance_loss, check_length, lengths, over_seeds, plateaus
from baselines.experiments.spec import Experiment, Measure, Run, grid, settings

# Training curves would be measured on every data set of this size at hand.
CPU = {"env": "Digits-Proj8-v0", "neurons": 8, "steps": 500, "log_every": 10, "eval_every": 0}


def paper() -> list[Run]:
    """MNIST as for Table 2, one to three layers, four seeds."""
    return [
        Run("vsml", settings("vsml", "paper", **point), Measure(("unseen",)))
        for point in grid(layers=[1, 2, 3], seed=range(4))
    ]


def cpu() -> list[Run]:
    """The preset of VSML on the embedded digits at 8×8 pixels, 8 neurons a layer; four seeds."""
    return [
        Run("vsml", settings("vsml", "cpu", **CPU, **point), Measure(("unseen",), 256))
        for point in grid(layers=[1, 2, 3], seed=range(4))
    ]


def runs_of(table: pd.DataFrame) -> pd.DataFrame:
    """Of every run: steps until the loss leaves chance, training loss and accuracy at the end."""
    found = lengths(table, ["layers"]).set_index("run")
    ends = tables.ends(table, [], ["unseen"]).set_index("run")
    found["loss"] = tables.final_losses(table)
    return found.join(ends["last"]).reset_index()


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Steps until the loss leaves chance (a lower bound where it has not), loss and accuracy."""
    return over_seeds(runs_of(table), ["layers"], ["length", "loss", "last"])


def plot(table: pd.DataFrame, summary: pd.DataFrame, path: Path) -> None:
    """Training loss, mean over seeds, and how long it stays at chance."""
    figure, (loss, length) = drawing.panels(2, "Depth of VSML and speed of meta-training")
    losses, runs = tables.training_curves(table), runs_of(table)
    depths = sorted(summary.layers)
    for depth, style in zip(depths, drawing.styles(), strict=False):
        rows = runs[runs.layers == depth]
        mean = losses.loc[list(rows.run)].mean()
        name = f"{depth} layer{'s' if depth > 1 else ''}"
        drawing.line(loss, mean.index, mean, name, style, markers=False)
        cut = rows.censored.astype(bool)
        places = np.full(len(rows), depth)
        length.plot(places[~cut], rows.length[~cut], "o", color=style["color"], markersize=4)
        length.plot(places[cut], rows.length[cut], "^", color=style["color"], mfc="none")
    drawing.guessing(loss, chance_loss(table))
    drawing.name_axes(loss, "training loss, mean over seeds", "outer steps", "nats")
    length.set_xticks(depths, [str(depth) for depth in depths])
    drawing.name_axes(length, "until the loss leaves chance (△ not left)", "layers", "outer steps")
    drawing.save(figure, path)


def judge(table: pd.DataFrame, summary: pd.DataFrame) -> Verdict:
    """Do deeper learners leave chance later, and is their loss larger after equal steps?"""
    runs, measured = runs_of(table), plateaus(table)
    deep, flat = (runs[runs.layers == n] for n in (runs.layers.max(), runs.layers.min()))
    later = length_ratio([measured[r] for r in deep.run], [measured[r] for r in flat.run])
    shown = trend(
        runs.layers.to_numpy(),
        runs.length.to_numpy(dtype=np.float64),
        runs.censored.to_numpy(dtype=bool),
    )
    worse = difference(deep.loss.to_numpy(), flat.loss.to_numpy())
    names = f"{runs.layers.max()} layers", f"{runs.layers.min()}"
    return Verdict(
        (
            Claim("the deeper, the later the loss leaves chance", shown.rises, detail=str(shown)),
            Claim(
                f"{names[0]} leave it later than {names[1]}",
                later.above(1),
                later,
                "ratio of outer steps",
            ),
            Claim(
                f"after equal steps the loss of {names[0]} is larger than of {names[1]}",
                worse.above(0),
                worse,
                "nats",
            ),
        )
    )


EXPERIMENT = Experiment(
    name="vsml-depth",
    figure="Figure 21",
    title="Deeper VSML trains slower",
    finding="The more layers VSML has, the slower its meta-training.",
    presets={"paper": paper, "cpu": cpu},
    summarise=summarise,
    plot=plot,
    judge=judge,
    check=check_length,
    limits="Hidden layers of 8 neurons and 500 outer steps: of plateaus that outlast them only a "
    "lower bound is known.",
)
