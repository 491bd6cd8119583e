"""Findings from many seeds at many numbers of tasks: a transition, and three phases."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import stats

from baselines.experiments.findings_estimates import Bound, Estimate, finite, mean_over_seeds
from icl_bench.evaluation.statistics import LEVEL

# A rise of accuracy within the episode below this is none: five percentage points.
MARGIN = 0.05

Phase = Literal["memorises", "identifies", "learns", "at chance", "undecided"]
ORDER: tuple[Phase, ...] = ("memorises", "identifies", "learns")

_SLOPES = np.geomspace(0.1, 60.0, 64)  # log odds for each doubling
_GRID = 0.05  # doublings


@dataclasses.dataclass(frozen=True)
class Transition:
    """The number of tasks at which half of the runs generalise.

    Attributes:
        tasks: That number, with its interval; ``at least`` the largest tried if no run
            generalised, ``at most`` the smallest if all did.
        slope: Log odds gained with each doubling; inf if the runs part without overlap, NaN if
            nothing can be fitted.
        shares: Share of the runs that generalised, by number of tasks.
    """

    tasks: Estimate
    slope: float
    shares: dict[int, float]


def transition(
    num_tasks: Shaped[np.ndarray, " N"], generalised: Bool[np.ndarray, " N"]
) -> Transition:
    """Logistic fit of P(generalised) on log2(number of tasks), which does not fall.

    The interval holds each midpoint that a likelihood-ratio test (one degree of freedom) does not
    reject: simulated, it covers 95 % with four seeds or more at each number of tasks, 90 % with two
    and a flat curve. It is right, too, where no number of tasks has both kinds of runs, as is usual
    with few seeds: a bootstrap over seeds would draw the same shares again and find no width.

    Args:
        num_tasks: Number of training tasks of each run, positive.
        generalised: Whether the run generalised; runs independent.

    Raises:
        ValueError: If sizes differ or a number of tasks is not positive.
    """
    tasks = finite(num_tasks, "numbers of tasks")
    if len(tasks) != len(generalised):
        raise ValueError(f"{len(tasks)} numbers of tasks do not fit {len(generalised)} runs")
    if (tasks <= 0).any():
        raise ValueError(f"numbers of tasks must be positive, got {tasks.min():g}")
    levels, index = np.unique(tasks, return_inverse=True)
    total = np.bincount(index, minlength=len(levels))
    yes = np.bincount(index, weights=generalised, minlength=len(levels))
    shares = {int(t): float(y / n) for t, y, n in zip(levels, yes, total, strict=True)}
    n = len(tasks)
    if not n:
        return Transition(Estimate(math.nan, -math.inf, math.inf, 0), math.nan, shares)
    x = np.log2(levels)
    pad = max(2.0, float(x[-1] - x[0]))
    grid = np.arange(x[0] - pad, x[-1] + pad + _GRID, _GRID)
    z = _SLOPES[:, None, None] * (x - grid[:, None])  # [slopes, midpoints, levels]
    fits = -np.logaddexp(0, -z) @ yes - np.logaddexp(0, z) @ (total - yes)
    profile = fits.max(axis=0)
    # No slope at all is a fit, too: each midpoint then means one half everywhere.
    profile = np.maximum(profile, -n * math.log(2))
    kept = np.flatnonzero(profile.max() - profile <= stats.chi2.ppf(LEVEL, 1) / 2)
    low = 0.0 if kept[0] == 0 else float(2 ** (grid[kept[0]] - _GRID))
    high = math.inf if kept[-1] == len(grid) - 1 else float(2 ** (grid[kept[-1]] + _GRID))
    if yes.sum() in (0, n):
        none = yes.sum() == 0
        bound: Bound = "at least" if none else "at most"
        value = float(levels[-1] if none else levels[0])
        return Transition(Estimate(value, low, high, n, bound), math.nan, shares)
    # Where runs part without overlap all midpoints between fit equally well: their centre.
    best = grid[profile >= profile.max() - 1e-3]
    first, last = levels[yes > 0].min(), levels[yes < total].max()
    slope = math.inf if last < first else float(_SLOPES[fits.max(axis=1).argmax()])
    value = float(2 ** ((best[0] + best[-1]) / 2))
    return Transition(Estimate(value, low, high, n), slope, shares)


@dataclasses.dataclass(frozen=True)
class Boundary:
    """Where a phase begins: above ``low`` and at ``high`` tasks at the latest.

    Attributes:
        low: Largest number of tasks that is decided to be before it; None if there is none.
        high: Smallest number that is decided to be in it or after; None if there is none.
    """

    low: int | None
    high: int | None


@dataclasses.dataclass(frozen=True)
class Phases:
    """What learners do, by number of tasks.

    Attributes:
        labels: Phase at each number of tasks.
        seen: Rise of accuracy on a seen task, mean over seeds.
        unseen: The same on an unseen task.
        cross: The same on another data set.
        identification: Where task identification (or more) begins; None if numbers of tasks
            before and after it are mixed.
        learning: The same of general learning.
        monotone: Whether no decided phase comes after a later one; None if fewer than two are
            decided.
    """

    labels: dict[int, Phase]
    seen: dict[int, Estimate]
    unseen: dict[int, Estimate]
    cross: dict[int, Estimate]
    identification: Boundary | None
    learning: Boundary | None
    monotone: bool | None


def phases(
    num_tasks: Int[np.ndarray, " N"],
    seen_gain: Float[np.ndarray, " N"],
    unseen_gain: Float[np.ndarray, " N"],
    cross_gain: Float[np.ndarray, " N"],
    *,
    seen_last: Float[np.ndarray, " N"] | None = None,
    chance: float | None = None,
    margin: float = MARGIN,
) -> Phases:
    """Phases by the rise of accuracy within the episode (Table 1, Figure 4).

    An accuracy rises if the t interval of its mean over seeds lies above ``margin``, and does not
    if it lies below; else the number of tasks is undecided, as it is with one seed:

        learns       it rises on unseen tasks
        identifies   it rises on seen tasks and does not on unseen ones
        memorises    it rises on neither
        at chance    it rises on neither, and the last accuracy on seen tasks does not lie above
                     chance + margin (told only if ``seen_last`` and ``chance`` are given)

    Args:
        num_tasks: Number of training tasks of each run.
        seen_gain: Accuracy at the last step minus at the first, on a seen task, in [-1, 1].
        unseen_gain: The same on an unseen task.
        cross_gain: The same on an unseen task of another data set.
        seen_last: Accuracy at the last step on a seen task, in [0, 1].
        chance: Accuracy of guessing, 1/C.
        margin: Smallest rise that counts.

    Raises:
        ValueError: If sizes differ, a value is not finite, or ``seen_last`` comes without
            ``chance``.

    Source: Kirsch et al. 2022, Table 1 and Figure 4. Differs from the paper, which gives no
    criterion: the tests are ours.
    """
    if (seen_last is None) != (chance is None):
        raise ValueError("seen_last and chance belong together: give both or neither")
    arrays = {"seen": seen_gain, "unseen": unseen_gain, "cross": cross_gain}
    if seen_last is not None:
        arrays["last"] = seen_last
    levels = [int(k) for k in np.unique(num_tasks)]
    means: dict[str, dict[int, Estimate]] = {}
    for name, values in arrays.items():
        if len(values) != len(num_tasks):
            raise ValueError(f"{len(values)} {name} values do not fit {len(num_tasks)} runs")
        means[name] = {k: mean_over_seeds(values[num_tasks == k]) for k in levels}
    labels: dict[int, Phase] = {}
    for k in levels:
        seen, unseen = (means[name][k].above(margin) for name in ("seen", "unseen"))
        labels[k] = "undecided"
        if unseen:
            labels[k] = "learns"
        elif unseen is False and seen:
            labels[k] = "identifies"
        elif unseen is False and seen is False:
            above = means["last"][k].above(chance + margin) if chance is not None else True
            labels[k] = "memorises" if above else "at chance" if above is False else "undecided"
    ranks = {k: ORDER.index(label) for k, label in labels.items() if label in ORDER}
    ordered = list(ranks.values())
    return Phases(
        labels=labels,
        seen=means["seen"],
        unseen=means["unseen"],
        cross=means["cross"],
        identification=_boundary(ranks, 1),
        learning=_boundary(ranks, 2),
        monotone=ordered == sorted(ordered) if len(ordered) > 1 else None,
    )


def _boundary(ranks: Mapping[int, int], phase: int) -> Boundary | None:
    before = [k for k, rank in ranks.items() if rank < phase]
    after = [k for k, rank in ranks.items() if rank >= phase]
    if before and after and max(before) > min(after):
        return None
    return Boundary(max(before, default=None), min(after, default=None))
