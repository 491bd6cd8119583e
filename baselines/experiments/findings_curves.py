"""Findings from training curves: how long the loss stays at a plateau, and how sharply it drops.

The plateau is at chance: the loss of a learner that guesses. A curve that has not left it when
training ends is censored: its length is a lower bound, and every function says what that leaves
of its answer.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Shaped
from scipy import stats

from baselines.experiments.findings_estimates import Bound, Estimate, pairs
from icl_bench.evaluation.statistics import LEVEL

MIN_POINTS = 10

# Share of a curve's points in the window of its running median.
SMOOTHING = 0.05

# Share of the drop after which the plateau counts as left, and after which the drop is done.
LEFT, DONE = 0.2, 0.8

# Part of chance: a loss so near to it is at the plateau.
TOLERANCE = 0.1


@dataclasses.dataclass(frozen=True)
class Plateau:
    """The plateau of one training curve.

    Attributes:
        start: Outer step at which the loss has come down to chance.
        end: Outer step at which it leaves for good; the curve's last step if censored.
        censored: Whether the curve ends before it has left, so that ``end`` is a lower bound.
        final: Loss in nats that the drop leads to.
    """

    start: float
    end: float
    censored: bool
    final: float

    @property
    def length(self) -> float:
        """Outer steps from start to end; a lower bound if censored."""
        return self.end - self.start


@dataclasses.dataclass(frozen=True)
class Drop:
    """How sharply a loss drops after its plateau.

    Attributes:
        steps: Outer steps in which the loss goes from 20 % to 80 % of the way down.
        relative: These steps as a multiple of the plateau's length; inf without a plateau. A
            straight line has 3, exponential decay from chance 6.2, a sharp drop much less than 1.
    """

    steps: float
    relative: float


def smooth(loss: Float[np.ndarray, " N"], window: int) -> Float[np.ndarray, " N"]:
    """Centred running median, over fewer points at the ends.

    A median leaves a single step where it is, and a spike does not move it.
    """
    found = pd.Series(loss).rolling(window, center=True, min_periods=1).median()
    return found.to_numpy(dtype=np.float64)


def plateau(
    steps: Shaped[np.ndarray, " N"],
    loss: Shaped[np.ndarray, " N"],
    chance: float,
    *,
    final: float | None = None,
    left: float = LEFT,
    window: int | None = None,
) -> Plateau:
    """Where a training curve's plateau begins and ends.

    The smoothed loss is at the plateau from when it is first less than ``TOLERANCE`` · chance
    above chance until it has fallen for good by a share ``left`` of the way from chance to
    ``final``. Between two points the crossing is found by a straight line; a start within the first
    half of the window is told as the first step.

    Args:
        steps: Outer steps, rising.
        loss: In nats, at these steps.
        chance: Loss of guessing, log C.
        final: Loss that the drop leads to. By default the median of the curve's last window; give
            one for all curves where some may end in mid-drop, for these leave early else.
        left: Share of the drop after which the plateau is left, inside (0, 1).
        window: Points in the running median, an odd number; by default 5 % of the curve's, at
            least 5.

    Returns:
        A censored plateau if the curve ends at it: above the share of the drop, or (without
        ``final``) less than ``TOLERANCE`` · chance below chance. A loss that never came down to
        chance has length 0, censored: nothing is known.

    Raises:
        ValueError: If there are fewer than ten points, steps do not rise, a loss is not finite,
            chance is not positive or a share is not inside (0, 1).
    """
    x, y = _curve(steps, loss, chance)
    if not 0 < left < 1:
        raise ValueError(f"left must lie inside (0, 1), got {left}")
    window = _window(len(x), window)
    smoothed = smooth(y, window)
    reached = float(np.median(y[-window:])) if final is None else final
    if final is not None and final >= chance:
        raise ValueError(f"final must lie below chance, {chance}, got {final}")
    limit = chance - left * (chance - reached)
    near = np.flatnonzero(smoothed <= chance * (1 + TOLERANCE))
    if not len(near):
        return Plateau(float(x[-1]), float(x[-1]), True, reached)
    start = _crossing(x, smoothed, int(near[0]), chance * (1 + TOLERANCE))
    still = final is None and reached > chance * (1 - TOLERANCE)
    if still or smoothed[-1] > limit:
        return Plateau(start, float(x[-1]), True, reached)
    above = np.flatnonzero(smoothed > limit)
    end = _crossing(x, smoothed, int(above[-1]) + 1 if len(above) else 0, limit)
    return Plateau(min(start, end), end, False, reached)


def sharpness(
    steps: Shaped[np.ndarray, " N"],
    loss: Shaped[np.ndarray, " N"],
    chance: float,
    *,
    final: float | None = None,
    window: int | None = None,
) -> Drop | None:
    """How few outer steps the middle of the drop takes; None while the drop is not done.

    Args:
        steps: Outer steps, rising.
        loss: In nats, at these steps.
        chance: Loss of guessing, log C.
        final: As in ``plateau``.
        window: As there.

    Raises:
        ValueError: As ``plateau``.
    """
    found = plateau(steps, loss, chance, final=final, window=window)
    if found.censored:
        return None
    x, y = _curve(steps, loss, chance)
    smoothed = smooth(y, _window(len(x), window))
    limit = chance - DONE * (chance - found.final)
    below = np.flatnonzero((smoothed <= limit) & (x >= found.end))
    if not len(below):
        return None
    taken = max(0.0, _crossing(x, smoothed, int(below[0]), limit) - found.end)
    return Drop(taken, taken / found.length if found.length > 0 else math.inf)


def median_sharpness(
    curves: Sequence[tuple[Shaped[np.ndarray, " _"], Shaped[np.ndarray, " _"]]],
    chance: float,
    *,
    final: float | None = None,
) -> Estimate:
    """Median over seeds of ``Drop.relative``, with the interval of the sign test.

    Curves that have not come down count, too, for those that have are the sharp ones: a drop that
    is not done is at least as long as what was seen of it, and of one that has not begun nothing is
    known. With fewer than six seeds the interval is [0, inf].

    Args:
        curves: Outer steps and loss of each seed.
        chance: Loss of guessing, log C.
        final: As in ``plateau``.

    Raises:
        ValueError: As ``plateau``.
    """
    low, high = [], []
    for steps, loss in curves:
        drop = sharpness(steps, loss, chance, final=final)
        if drop is not None:
            low.append(drop.relative)
            high.append(drop.relative)
            continue
        found = plateau(steps, loss, chance, final=final)
        begun = not found.censored and found.length > 0
        low.append((float(steps[-1]) - found.end) / found.length if begun else 0.0)
        high.append(math.inf)
    return _order_bounds(np.array(low), np.array(high), _sign_test_count(len(low)), len(low))


def _curve(
    steps: Shaped[np.ndarray, " N"], loss: Shaped[np.ndarray, " N"], chance: float
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    x, y = pairs(steps, loss, ("steps", "losses"))
    if len(x) < MIN_POINTS:
        raise ValueError(f"a curve of {len(x)} points is too short, {MIN_POINTS} are needed")
    if (np.diff(x) <= 0).any():
        raise ValueError(f"steps must rise, got {x[:-1][np.diff(x) <= 0][0]:g} before no more")
    if not (math.isfinite(chance) and chance > 0):
        raise ValueError(f"chance is the loss of guessing, log C, above 0; got {chance}")
    return x, y


def _window(points: int, window: int | None) -> int:
    found = max(5, 2 * round(SMOOTHING * points / 2) + 1) if window is None else window
    if found < 1 or found % 2 == 0:
        raise ValueError(f"window must be an odd number of points, got {found}")
    return found


def _crossing(
    x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"], index: int, limit: float
) -> float:
    """Where the line from the point before ``index``, which is above, comes down to the limit."""
    if index == 0:
        return float(x[0])
    share = (y[index - 1] - limit) / (y[index - 1] - y[index])
    return float(x[index - 1] + share * (x[index] - x[index - 1]))


def _lengths(
    plateaus: Sequence[Plateau],
) -> tuple[Float[np.ndarray, " S"], Float[np.ndarray, " S"]]:
    """What the lengths are at least and at most."""
    low = np.array([p.length for p in plateaus], dtype=np.float64)
    censored: Bool[np.ndarray, " S"] = np.array([p.censored for p in plateaus], dtype=bool)
    return low, np.where(censored, math.inf, low)


def _order_bounds(
    low: Float[np.ndarray, " N"], high: Float[np.ndarray, " N"], k: int, n: int
) -> Estimate:
    """Median and k-th values from below and above, of numbers known to lie in [low, high]."""
    if not len(low):
        return Estimate(math.nan, 0.0, math.inf, n, "unknown")
    low, high = np.sort(low), np.sort(high)
    value, bound = _known(float(np.median(low)), float(np.median(high)))
    if k < 1:
        return Estimate(value, 0.0, math.inf, n, bound)
    return Estimate(value, float(low[k - 1]), float(high[-k]), n, bound)


def _known(least: float, most: float) -> tuple[float, Bound]:
    if least == most:
        return least, "exact"
    if math.isinf(most) and least > 0:
        return least, "at least"
    if least == 0 and math.isfinite(most):
        return most, "at most"
    return math.nan, "unknown"


def median_length(plateaus: Sequence[Plateau]) -> Estimate:
    """Median length over seeds in outer steps, with the interval of the sign test.

    The interval lies between two of the lengths: exact for any law of lengths. A censored length
    counts as its lower bound for the one and as endless for the other; so nothing is assumed of
    what was not seen. With fewer than six seeds it is [0, inf]: no interval of 95 % lies between
    five numbers.

    Args:
        plateaus: One for each seed.
    """
    low, high = _lengths(plateaus)
    n = len(plateaus)
    return _order_bounds(low, high, _sign_test_count(n), n)


def _sign_test_count(n: int) -> int:
    """The largest k with P(fewer than k of n numbers lie below their median) ≤ 2.5 %."""
    return int(stats.binom.ppf((1 - LEVEL) / 2, n, 0.5)) if n else 0


def length_ratio(a: Sequence[Plateau], b: Sequence[Plateau]) -> Estimate:
    """How many times as long the plateaus of a are as those of b, with the rank test's interval.

    The estimate is the median of all ratios of a length of a to one of b; the interval lies
    between two of them and inverts the test of Mann and Whitney. It is exact if the lengths of one
    group are those of the other times a factor, whatever their law; simulated groups of eight whose
    spreads differ eightfold still gave 93 %. A bootstrap of medians would need many more seeds.
    Four seeds on each side are the fewest; with fewer it is [0, inf].

    A ratio with a censored length is known in one direction only, and enters the bounds that way.
    The value is then marked ``at least`` or ``at most``, or ``unknown``.

    Args:
        a: One plateau for each seed.
        b: The same of the other group; seeds independent of those of a.

    Source: Hodges and Lehmann 1963, "Estimates of Location Based on Rank Tests".
    """
    (a_low, a_high), (b_low, b_high) = _lengths(a), _lengths(b)
    # 0/0 is anything; a length over 0 is endless; an endless one over an endless one is anything.
    with np.errstate(divide="ignore", invalid="ignore"):
        low = (a_low[:, None] / b_high[None, :]).ravel()
        high = (a_high[:, None] / b_low[None, :]).ravel()
    low, high = np.where(np.isnan(low), 0.0, low), np.where(np.isnan(high), math.inf, high)
    k = _rank_test_count(len(a), len(b)) if len(a) and len(b) else 0
    return _order_bounds(low, high, k, len(a) + len(b))


@functools.lru_cache(maxsize=64)
def _rank_test_count(m: int, n: int) -> int:
    """The largest k with P(U < k) ≤ 2.5 % for Mann and Whitney's U of m and n numbers."""
    # The number of orders with U = u is a coefficient of a Gaussian binomial: whole numbers.
    counts = [1] + [0] * (m * n)
    for i in range(1, m + 1):
        for u in range(m * n, n + i - 1, -1):
            counts[u] -= counts[u - n - i]
        for u in range(i, m * n + 1):
            counts[u] += counts[u - i]
    below, total, k = 0, math.comb(m + n, m), 0
    while (below + counts[k]) / total <= (1 - LEVEL) / 2:
        below += counts[k]
        k += 1
    return k
