"""Findings from the distribution of one number over seeds: does it have one mode or two?"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numba as nb
import numpy as np
from jaxtyping import Float, Shaped

from baselines.experiments.findings_estimates import finite
from icl_bench.evaluation.statistics import LEVEL
from icl_bench.tasks.counter import stream_key, uniforms

NUM_NULL = 9_999  # with the data themselves 10,000

# With fewer seeds the test misses too many pairs of modes for a "no".
MIN_SEEDS_FOR_NO = 32


@dataclasses.dataclass(frozen=True)
class Bimodality:
    """Whether numbers lie around two modes.

    Attributes:
        dip: Distance of their distribution from the nearest one with a single mode, in [0, 1/4].
        p: p value of the dip against one mode.
        modes: Medians of the lower and the upper numbers; NaN if there are none.
        shares: Shares of the lower and the upper, which sum to 1.
        boundary: Number between the two.
        n: How many numbers.
    """

    dip: float
    p: float
    modes: tuple[float, float]
    shares: tuple[float, float]
    boundary: float
    n: int

    @property
    def bimodal(self) -> bool | None:
        """True if one mode is rejected at 5 %; else False from 32 numbers on, None below."""
        if self.p <= 1 - LEVEL:
            return True
        return None if self.n < MIN_SEEDS_FOR_NO else False

    def __str__(self) -> str:
        low, high = self.modes
        return (
            f"dip = {self.dip:.3f}, p = {self.p:.2g}; {self.shares[0]:.0%} near {low:.3g}, "
            f"{self.shares[1]:.0%} near {high:.3g} (n = {self.n})"
        )


def bimodality(values: Shaped[np.ndarray, " S"]) -> Bimodality:
    """Hartigans' dip test, and where the numbers part.

    The null is simulated from the uniform law, of all with one mode the one with the largest dips:
    skewed, heavy-tailed or clipped numbers with one mode are rejected no more often than 5 %. (A
    mixture of two Gaussians against one would find two modes in every skewed sample.) The price is
    power for modes that few seeds share. Simulated, for Gaussian modes ten of their standard
    deviations apart: with 16 seeds 100 % for 8 and 8, 96 % for 6 and 10, 4 % for 4 and 12; with 32
    seeds 100 % for 16 and 16, 66 % for 8 and 24. Six apart: 80 %, 47 % and 1 % with 16 seeds.

    The split is the one with the smallest squares within its two sides.

    Args:
        values: One number per seed, such as the final loss.

    Raises:
        ValueError: If a value is not finite.

    Source: Hartigan and Hartigan 1985, "The Dip Test of Unimodality".
    """
    found = np.sort(finite(values, "values"))
    n = len(found)
    if n < 2 or found[0] == found[-1]:
        mode = float(found[0]) if n else math.nan
        return Bimodality(0.0, 1.0, (mode, math.nan), (1.0, 0.0), mode, n)
    measured = dip(found)
    # Equal dips count, however they are rounded.
    p = (1 + int((_null_dips(n) >= measured - 1e-12).sum())) / (NUM_NULL + 1)
    sizes = np.arange(1, n)
    sums = (found - found.mean()).cumsum()
    between = sums[:-1] ** 2 * (1 / sizes + 1 / (n - sizes))
    # Equal numbers stay on one side.
    between[np.diff(found) == 0] = -math.inf
    at = int(between.argmax()) + 1
    return Bimodality(
        dip=measured,
        p=p,
        modes=(float(np.median(found[:at])), float(np.median(found[at:]))),
        shares=(at / n, 1 - at / n),
        boundary=float((found[at - 1] + found[at]) / 2),
        n=n,
    )


def bimodalities(groups: Mapping[int, Shaped[np.ndarray, " _"]]) -> dict[int, Bimodality]:
    """``bimodality`` at each number of tasks, with p values for as many tests (Holm 1979).

    So the chance that any group with one mode is called bimodal is at most 5 %.

    Raises:
        ValueError: If a value is not finite.
    """
    found = {name: bimodality(values) for name, values in sorted(groups.items())}
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(found, key=lambda name: found[name].p)):
        largest = max(largest, min(1.0, (len(found) - rank) * found[name].p))
        adjusted[name] = dataclasses.replace(found[name], p=largest)
    return {name: adjusted[name] for name in found}


def dip(values: Float[np.ndarray, " S"]) -> float:
    """Distance of an empirical distribution from the nearest with one mode, in [0, 1/4].

    Raises:
        ValueError: If there are no values.
    """
    if not len(values):
        raise ValueError("the dip of no values is not defined")
    return float(_compiled()(np.sort(values)[None])[0])


@functools.lru_cache(maxsize=64)
def _null_dips(n: int) -> Float[np.ndarray, " R"]:
    key = stream_key("findings-dip", n)
    found: np.ndarray = _compiled()(np.sort(uniforms(key, np.arange(NUM_NULL), n), axis=1))
    found.flags.writeable = False
    return found


@functools.lru_cache(maxsize=1)
def _compiled() -> Callable[[Float[np.ndarray, "R S"]], Any]:
    function = inspect.unwrap(_dips)  # the tests' type checker wraps every function
    try:
        compiled: Callable[..., Any] = nb.njit(function, cache=True)
    except RuntimeError:  # nowhere to keep it
        compiled = nb.njit(function)
    return compiled


def _dips(rows):  # type: ignore[no-untyped-def]
    """Dips of sorted rows, by closing in on the modal interval (Hartigan and Hartigan, §4)."""
    num, n = rows.shape
    out = np.empty(num)
    for r in range(num):
        # Distinct values with the counts just before and at each: where the steps are.
        x, before, at = np.empty(n), np.empty(n), np.empty(n)
        size = 0
        for i in range(n):
            if size == 0 or rows[r, i] > x[size - 1]:
                x[size], before[size] = rows[r, i], i
                size += 1
            at[size - 1] = i + 1
        lo, hi, far = 0, size - 1, 0.0
        minorant, majorant = np.empty(size), np.empty(size)
        touches, vertices = np.empty((2, size), np.bool_), np.empty(size, np.int64)
        while lo < hi:
            # Greatest convex minorant of the steps in [lo, hi], and least concave majorant.
            for side in range(2):
                sign = 1.0 if side == 0 else -1.0
                y = before if side == 0 else at
                hull = minorant if side == 0 else majorant
                count = 0
                for i in range(lo, hi + 1):
                    touches[side, i] = False
                    while count > 1:
                        a, b = vertices[count - 2], vertices[count - 1]
                        turn = (y[b] - y[a]) * (x[i] - x[b]) - (y[i] - y[b]) * (x[b] - x[a])
                        if sign * turn < 0:
                            break
                        count -= 1
                    vertices[count] = i
                    count += 1
                for v in range(count):
                    b = vertices[v]
                    touches[side, b], hull[b] = True, y[b]
                    if v > 0:
                        a = vertices[v - 1]
                        for i in range(a + 1, b):
                            hull[i] = y[a] + (y[b] - y[a]) * (x[i] - x[a]) / (x[b] - x[a])
            # They are farthest apart where one of them touches the steps.
            widest, where = -1.0, lo
            for i in range(lo, hi + 1):
                if (touches[0, i] or touches[1, i]) and majorant[i] - minorant[i] > widest:
                    widest, where = majorant[i] - minorant[i], i
            if widest <= far:
                break
            left = right = where
            while not touches[0, left]:
                left -= 1
            while not touches[1, right]:
                right += 1
            for i in range(lo, left):
                far = max(far, at[i] - minorant[i])
            for i in range(right + 1, hi + 1):
                far = max(far, majorant[i] - before[i])
            if left == lo and right == hi:
                break
            lo, hi = left, right
        out[r] = far / (2 * n)
    return out
