"""Plateaus of the runs of a table, for the experiments that compare their lengths."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from baselines.experiments import tables
from baselines.experiments.findings import Plateau, plateau
from icl_bench.registration import find_spec

# Of a curve: the share at its end whose median is the loss that training leads to.
END = 0.05


def chance_loss(table: pd.DataFrame) -> float:
    """Cross entropy of guessing, log C, in nats."""
    return math.log(find_spec(str(table["env"].iloc[0])).num_classes)


def plateaus(table: pd.DataFrame) -> dict[str, Plateau]:
    """The plateau of every run, all measured by the lowest loss that any of them leads to."""
    losses = tables.training_curves(table)
    curves = {str(run): row.dropna() for run, row in losses.iterrows()}
    chance = chance_loss(table)
    ends = [float(np.median(c.to_numpy()[-max(5, round(END * len(c))) :])) for c in curves.values()]
    final = min(ends)
    # None has left the plateau: each is judged by itself, and found censored.
    common = final if final < 0.9 * chance else None
    return {
        run: plateau(c.index.to_numpy(), c.to_numpy(), chance, final=common)
        for run, c in curves.items()
    }


def lengths(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Length of every run's plateau in outer steps, and whether it is only a lower bound."""
    found = plateaus(table)
    about = tables.labels(table, by)
    rows = [
        {"run": run, **about.loc[run], "length": p.length, "censored": p.censored}
        for run, p in found.items()
    ]
    return pd.DataFrame(rows).sort_values([*by, "seed"], ignore_index=True)
