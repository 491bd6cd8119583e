"""Plateaus of the runs of a table, for the experiments that compare their lengths."""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from baselines.experiments import tables
from baselines.experiments.findings import Plateau, plateau
from baselines.experiments.findings_curves import MIN_POINTS
from baselines.experiments.spec import Run
from icl_bench.registration import find_spec

# Of a curve: the share at its end whose median is the loss that training leads to.
END = 0.05

# Part of chance: a loss that is less has left the plateau.
GONE = 0.9


def check_length(run: Run) -> None:
    """Raise ValueError if a run's log has too few losses to measure a plateau by."""
    steps, every = (getattr(run.config, name) for name in ("steps", "log_every"))
    if steps // every < MIN_POINTS:
        raise ValueError(
            f"a plateau is measured by {MIN_POINTS} losses or more, but steps={steps} with "
            f"log_every={every} give {steps // every}: more steps, or a smaller log_every"
        )


def chance_loss(table: pd.DataFrame) -> float:
    """Cross entropy of guessing, log C, in nats."""
    return math.log(find_spec(str(table["env"].iloc[0])).num_classes)


def loss_curves(table: pd.DataFrame) -> dict[str, pd.Series]:
    """Training loss of every run by outer step."""
    losses = tables.training_curves(table)
    return {str(run): row.dropna() for run, row in losses.iterrows()}


def final_loss(table: pd.DataFrame, reference: Collection[str] | None = None) -> float | None:
    """The lowest loss that any of the runs leads to; None if none has left the plateau.

    Args:
        table: Tidy table.
        reference: Only these runs, if one of them has left it.
    """
    ends = {
        run: float(np.median(curve.to_numpy()[-max(5, round(END * len(curve))) :]))
        for run, curve in loss_curves(table).items()
    }
    limit = GONE * chance_loss(table)
    for among in (ends if reference is None else reference, ends):
        lowest = min((ends[run] for run in among), default=math.inf)
        if lowest < limit:
            return lowest
    return None


def plateaus(table: pd.DataFrame, reference: Collection[str] | None = None) -> dict[str, Plateau]:
    """The plateau of every run, all measured by one loss that the drop leads to (``final_loss``).

    Args:
        table: Tidy table.
        reference: Runs that decide this loss. Where other runs are meta-trained on easier tasks,
            theirs is lower than any that these could reach.
    """
    chance = chance_loss(table)
    # None has left the plateau: each is judged by itself, and found censored.
    final = final_loss(table, reference)
    return {
        run: plateau(curve.index.to_numpy(), curve.to_numpy(), chance, final=final)
        for run, curve in loss_curves(table).items()
    }


def lengths(
    table: pd.DataFrame, by: Sequence[str], found: Mapping[str, Plateau] | None = None
) -> pd.DataFrame:
    """Length of every run's plateau in outer steps, and whether it is only a lower bound.

    Args:
        table: Tidy table.
        by: Columns of the table that are kept beside ``run`` and ``seed``.
        found: The plateaus, if they are not those that ``plateaus`` finds in the whole table.
    """
    about = tables.labels(table, by)
    rows = [
        {"run": run, **about.loc[run], "length": p.length, "censored": p.censored}
        for run, p in (plateaus(table) if found is None else found).items()
    ]
    return pd.DataFrame(rows).sort_values([*by, "seed"], ignore_index=True)


def over_seeds(runs: pd.DataFrame, by: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """``tables.over_seeds`` with the number of censored plateaus, ``censored``.

    Where there is one, means of ``length`` (and of ``tasks_seen``, which comes from it) are lower
    bounds, and have no interval.
    """
    summary = tables.over_seeds(runs, by, values)
    counts = runs.groupby(list(by), sort=True, dropna=False)["censored"].sum()
    summary["censored"] = counts.to_numpy()
    bounds = [f"{v}_{end}" for v in values if v in OF_PLATEAUS for end in ("low", "high")]
    summary.loc[summary.censored > 0, bounds] = np.nan
    return summary


# Values that are lower bounds where a plateau is not left.
OF_PLATEAUS = ("length", "tasks_seen")
