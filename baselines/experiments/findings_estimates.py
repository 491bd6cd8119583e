"""Numbers of experiments with their 95 % intervals: means over seeds, trends, rank correlations.

An interval without bounds says that the data are too few to decide, so that no answer is forced:
``above`` and ``below`` answer True, False or None. Runs are the unit of chance: one number per
run, runs independent of each other unless a function asks how they are tied. Random numbers come
from named streams, so that the same table gives the same verdict on every machine.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy import stats

from icl_bench.evaluation.statistics import LEVEL, ROUNDING

Bound = Literal["exact", "at least", "at most", "unknown"]

# What null stands for in the JSON of an estimate.
_MISSING = {"value": math.nan, "low": -math.inf, "high": math.inf}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value: The estimate; NaN if there is none.
        low: Lower bound of the interval; -inf where the data set none.
        high: Upper bound; inf where the data set none.
        n: Number of runs (or points) it rests on.
        bound: ``exact``, or what a value is that censored curves give: ``at least``, ``at most``,
            ``unknown`` (then the value is NaN).
    """

    value: float
    low: float
    high: float
    n: int
    bound: Bound = "exact"

    def above(self, limit: float | int) -> bool | None:
        """Whether the interval lies above a limit; False if at or below it, None if around it."""
        return True if self.low > limit + ROUNDING else False if self.high <= limit else None

    def below(self, limit: float | int) -> bool | None:
        """Whether the interval lies below a limit; False if at or above it, None if around it."""
        return True if self.high < limit - ROUNDING else False if self.low >= limit else None

    def within(self, low: float | int, high: float | int) -> bool | None:
        """Whether the interval lies inside [low, high]; False if outside, None if it overlaps.

        For findings of absence: no effect is shown by an interval inside of what is negligible,
        not by one that holds zero.
        """
        if low <= self.low and self.high <= high:
            return True
        return False if self.high < low or self.low > high else None

    def map(self, function: Callable[[float], float]) -> "Estimate":
        """Value and bounds through an increasing function, such as ``math.exp``."""
        value, low, high = (function(v) for v in (self.value, self.low, self.high))
        return dataclasses.replace(self, value=value, low=low, high=high)

    def to_dict(self) -> dict[str, Any]:
        """As JSON: no value and no bound are null, other infinite numbers a word."""
        found = dataclasses.asdict(self)
        shown = {}
        for name, missing in _MISSING.items():
            number = found[name]
            # No value is NaN, and NaN equals nothing.
            none = number == missing or math.isnan(number)
            shown[name] = None if none else number if math.isfinite(number) else str(number)
        return found | shown

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Estimate":
        """What ``to_dict`` wrote.

        Raises:
            ValueError: If fields are missing, unknown or of another kind.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if sorted(values) != sorted(names):
            raise ValueError(f"an estimate has the fields {names}, got {sorted(values)}")
        found = {}
        for name, instead in _MISSING.items():
            value = instead if values[name] is None else values[name]
            if value in ("inf", "-inf"):
                value = float(value)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} of an estimate must be a number or null, got {value!r}")
            found[name] = float(value)
        if values["bound"] not in get_args(Bound):
            raise ValueError(f"bound must be one of {get_args(Bound)}, got {values['bound']!r}")
        if isinstance(values["n"], bool) or not isinstance(values["n"], int):
            raise ValueError(f"n of an estimate must be a whole number, got {values['n']!r}")
        return cls(**found, n=values["n"], bound=values["bound"])

    def __str__(self) -> str:
        words = {"exact": "", "at least": "≥ ", "at most": "≤ ", "unknown": ""}[self.bound]
        value = "no value" if math.isnan(self.value) else f"{words}{_shown(self.value)}"
        if math.isinf(self.low) and math.isinf(self.high):
            return f"{value} (n = {self.n}: too few for an interval)"
        return f"{value} [{_shown(self.low)}, {_shown(self.high)}] (n = {self.n})"


def _shown(value: float) -> str:
    """Four significant digits; whole numbers of any size are written out."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text.replace("-", "−")


def _undecided(value: float, n: int) -> Estimate:
    return Estimate(value, -math.inf, math.inf, n)


def finite(values: Shaped[np.ndarray, " N"], name: str) -> Float[np.ndarray, " N"]:
    """Values as float64.

    Raises:
        ValueError: If a value is not finite.
    """
    found = np.asarray(values, dtype=np.float64)
    if not np.isfinite(found).all():
        bad = int((~np.isfinite(found)).sum())
        raise ValueError(f"{bad} of {len(found)} {name} are not finite: leave out or mend the runs")
    return found


def pairs(
    x: Shaped[np.ndarray, " N"], y: Shaped[np.ndarray, " M"], names: tuple[str, str]
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Both as float64; raises ``ValueError`` naming them if sizes differ."""
    left, right = finite(x, names[0]), finite(y, names[1])
    if len(left) != len(right):
        raise ValueError(f"{len(left)} {names[0]} do not fit {len(right)} {names[1]}")
    return left, right


def mean_over_seeds(values: Shaped[np.ndarray, " S"]) -> Estimate:
    """Mean of one number per seed with its t interval; no bounds with fewer than two seeds.

    Raises:
        ValueError: If a value is not finite.
    """
    found = finite(values, "values")
    n = len(found)
    if n < 2:
        return _undecided(float(found[0]) if n else math.nan, n)
    mean, error = float(found.mean()), float(found.std(ddof=1)) / math.sqrt(n)
    half = _t(n - 1) * error
    return Estimate(mean, mean - half, mean + half, n)


def _t(freedom: float | int) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


def difference(
    a: Shaped[np.ndarray, " S"], b: Shaped[np.ndarray, " R"], *, paired: bool = False
) -> Estimate:
    """Mean of a minus mean of b; no bounds with fewer than two seeds on a side.

    Args:
        a: One number per seed.
        b: The same of the other group.
        paired: Whether a[i] and b[i] share their seed: then a t interval of the differences,
            else Welch's, which lets the groups differ in spread.

    Raises:
        ValueError: If a value is not finite, or paired groups differ in size.
    """
    if paired:
        left, right = pairs(a, b, ("paired values", "others"))
        return mean_over_seeds(left - right)
    left, right = finite(a, "values"), finite(b, "values")
    n = len(left) + len(right)
    if min(len(left), len(right)) == 0:
        return _undecided(math.nan, n)
    value = float(left.mean() - right.mean())
    if min(len(left), len(right)) < 2:
        return _undecided(value, n)
    errors = left.var(ddof=1) / len(left), right.var(ddof=1) / len(right)
    half = _welch(errors, (len(left), len(right))) * math.sqrt(sum(errors))
    return Estimate(value, value - half, value + half, n)


def _welch(errors: tuple[float, float], sizes: tuple[int, int]) -> float:
    """The t quantile with the degrees of freedom of Welch and Satterthwaite."""
    total = sum(errors)
    if total == 0:
        return _t(sum(sizes) - 2)
    return _t(total**2 / sum(e**2 / (s - 1) for e, s in zip(errors, sizes, strict=True)))


def ratio(
    a: Shaped[np.ndarray, " S"], b: Shaped[np.ndarray, " R"], *, paired: bool = False
) -> Estimate:
    """Mean of a over mean of b, with Fieller's interval.

    The interval holds each ρ for which a t test does not tell mean(a) - ρ · mean(b) from zero: it
    needs no logarithms (a length may be zero), is exact for paired normal numbers, and has no
    bounds where mean(b) is not told from zero.

    Args:
        a: One number per seed.
        b: The same of the other group.
        paired: Whether a[i] and b[i] share their seed.

    Raises:
        ValueError: If a value is not finite, the mean of b is zero, or paired groups differ in
            size.

    Source: Fieller 1954, "Some Problems in Interval Estimation"; with Welch's degrees of freedom
    at the estimate where groups are independent.
    """
    if paired:
        left, right = pairs(a, b, ("paired values", "others"))
    else:
        left, right = finite(a, "values"), finite(b, "values")
    n = len(left) if paired else len(left) + len(right)
    if min(len(left), len(right)) == 0:
        return _undecided(math.nan, n)
    top, bottom = float(left.mean()), float(right.mean())
    if bottom == 0:
        raise ValueError("the mean of b is zero: there is no ratio to it")
    value = top / bottom
    if min(len(left), len(right)) < 2:
        return _undecided(value, n)
    v, w = float(left.var(ddof=1)) / len(left), float(right.var(ddof=1)) / len(right)
    shared = float(np.cov(left, right)[0, 1]) / len(left) if paired else 0.0
    t = _t(n - 1) if paired else _welch((v, value**2 * w), (len(left), len(right)))
    square = bottom**2 - t**2 * w
    if square <= 0:
        return _undecided(value, n)
    half = top * bottom - t**2 * shared
    root = math.sqrt(max(0.0, half**2 - square * (top**2 - t**2 * v)))
    return Estimate(value, (half - root) / square, (half + root) / square, n)


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """y = factor · x^exponent, fitted to logarithms.

    Attributes:
        exponent: Slope of log y on log x, with its t interval.
        factor: y at x = 1; NaN without a fit.
        r_squared: Share of the variance of log y that the line explains; NaN without a fit.
        left_out: Number of censored points, which the fit does not hold.
    """

    exponent: Estimate
    factor: float
    r_squared: float
    left_out: int


def power_law(
    x: Shaped[np.ndarray, " N"],
    y: Shaped[np.ndarray, " N"],
    censored: Bool[np.ndarray, " N"] | None = None,
) -> PowerLaw:
    """Least squares of log y on log x.

    Censored points are left out, not fitted at their lower bound. Where the longest of a range
    are censored, what is left is biased towards a flatter line: look at ``left_out``.

    Args:
        x: Positive.
        y: Positive.
        censored: Points whose y is only a lower bound.

    Returns:
        An exponent without bounds with fewer than three points, or fewer than two values of x.

    Raises:
        ValueError: If sizes differ, or a value that is fitted is not positive and finite.
    """
    left, right = pairs(x, y, ("x", "y"))
    out = np.zeros(len(left), dtype=bool) if censored is None else np.asarray(censored, dtype=bool)
    if len(out) != len(left):
        raise ValueError(f"{len(out)} flags of censoring do not fit {len(left)} points")
    left, right = left[~out], right[~out]
    for name, values in (("x", left), ("y", right)):
        if (values <= 0).any():
            raise ValueError(f"{name} of a power law must be positive, got {values.min()}")
    n, dropped = len(left), int(out.sum())
    if len(np.unique(left)) < 2:
        return PowerLaw(_undecided(math.nan, n), math.nan, math.nan, dropped)
    u, v = np.log(left) - np.log(left).mean(), np.log(right) - np.log(right).mean()
    slope = float(u @ v / (u @ u))
    rest, total = float(((v - slope * u) ** 2).sum()), float(v @ v)
    factor = math.exp(float(np.log(right).mean() - slope * np.log(left).mean()))
    r_squared = 1 - rest / total if total > 0 else math.nan
    if n < 3:
        return PowerLaw(_undecided(slope, n), factor, r_squared, dropped)
    half = _t(n - 2) * math.sqrt(rest / (n - 2) / float(u @ u))
    return PowerLaw(Estimate(slope, slope - half, slope + half, n), factor, r_squared, dropped)
