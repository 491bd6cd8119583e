"""Findings from ranks alone: monotone trends, and which of two numbers predicts a third."""

import dataclasses
import functools
import math
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import stats

from baselines.experiments.findings_estimates import Estimate, pairs
from icl_bench.evaluation.statistics import LEVEL, expanded_tail
from icl_bench.tasks.counter import bounded, long_words, stream_key, uniforms

NUM_REPLICATES = 4_000
NUM_PERMUTATIONS = 4_999  # with the data themselves 5,000

# A bootstrap of n things draws one of them n times with probability n^-n: with fewer than five
# that outweighs the tail.
MIN_BOOTSTRAP = 5

Resample = Literal["points", "clusters", "within"]


@dataclasses.dataclass(frozen=True)
class Trend:
    """Whether y rises with x.

    Attributes:
        tau: Kendall's tau-b, in [-1, 1]; NaN if x or y has a single value.
        p_rises: One-sided p value against no trend, of a rise.
        p_falls: The same of a fall.
        n: Number of points.
        levels: Number of values of x.
    """

    tau: float
    p_rises: float
    p_falls: float
    n: int
    levels: int

    @property
    def rises(self) -> bool | None:
        """True if y rises with x, False if it falls, None if neither is shown at 5 %."""
        tail = (1 - LEVEL) / 2
        return True if self.p_rises <= tail else False if self.p_falls <= tail else None

    @property
    def falls(self) -> bool | None:
        """``rises``, turned round."""
        return None if self.rises is None else not self.rises

    def __str__(self) -> str:
        p = min(1.0, 2 * min(self.p_rises, self.p_falls))
        return f"τ = {self.tau:.2f}, p = {p:.2g} (n = {self.n}, {self.levels} levels)"


def trend(
    x: Shaped[np.ndarray, " N"],
    y: Shaped[np.ndarray, " N"],
    censored: Bool[np.ndarray, " K"] | None = None,
) -> Trend:
    """Jonckheere and Terpstra's test of a monotone trend over the levels of x.

    Its statistic is the number of pairs of points that are ordered alike in x and in y, minus the
    number of those that are not; its null comes from permutations of y, so ties, few points and
    any law of y are right. Pairs of one level say nothing. Three levels of one point each never
    reach 5 %.

    A censored y is larger than any that is known not to exceed it; it and a larger one, or two
    censored ones, say nothing (Gehan 1965). The null is right if a y of any level would have been
    censored alike, as in runs of equally many outer steps.

    Args:
        x: What is varied, such as the width of a model.
        y: One number per run.
        censored: Numbers that are only lower bounds.

    Raises:
        ValueError: If sizes differ or a value is not finite.

    Source: Jonckheere 1954, "A Distribution-Free k-Sample Test Against Ordered Alternatives".
    """
    left, right = pairs(x, y, ("x", "y"))
    n, levels = len(left), len(np.unique(left))
    order = _known_order(right, censored)
    if levels < 2 or not order.any():
        return Trend(math.nan, 1.0, 1.0, n, levels)
    told = int(np.triu(order != 0).sum())
    first, second = np.triu_indices(n, 1)
    signs = np.sign(left[first] - left[second])
    first, second, signs = first[signs != 0], second[signs != 0], signs[signs != 0]
    key = stream_key("findings-trend", n)
    places = uniforms(key, np.arange(NUM_PERMUTATIONS), n).argsort(axis=1, kind="stable")
    null = np.empty(NUM_PERMUTATIONS)
    block = max(1, 2**22 // len(signs))  # bounds the memory of the pairs
    for start in range(0, NUM_PERMUTATIONS, block):
        shuffled = places[start : start + block]
        null[start : start + block] = order[shuffled[:, first], shuffled[:, second]] @ signs
    seen = float(order[first, second] @ signs)
    total = NUM_PERMUTATIONS + 1
    return Trend(
        tau=seen / math.sqrt(len(signs) * told),
        p_rises=(1 + int((null >= seen).sum())) / total,
        p_falls=(1 + int((null <= seen).sum())) / total,
        n=n,
        levels=levels,
    )


def _known_order(
    y: Float[np.ndarray, " N"], censored: Bool[np.ndarray, " K"] | None
) -> Float[np.ndarray, "N N"]:
    """1 where the first number is larger than the second, −1 where smaller, 0 where not known."""
    cut = np.zeros(len(y), dtype=bool) if censored is None else np.asarray(censored, dtype=bool)
    if len(cut) != len(y):
        raise ValueError(f"{len(cut)} flags of censoring do not fit {len(y)} points")
    larger = ~cut[None, :] & (
        (y[:, None] > y[None, :]) | (cut[:, None] & (y[:, None] == y[None, :]))
    )
    return larger.astype(np.float64) - larger.T


@functools.lru_cache(maxsize=8)
def _draws(n: int) -> Int[np.ndarray, "R n"]:
    """Indices of n things drawn with replacement, one row per replicate; shared and read-only."""
    key = stream_key("findings-bootstrap", n)
    found = bounded(long_words(key, np.arange(NUM_REPLICATES), n), n)
    found.flags.writeable = False
    return found


def _resamples(
    n: int, clusters: Shaped[np.ndarray, " N"] | None, resample: Resample
) -> tuple[list[Int[np.ndarray, " _"]] | Int[np.ndarray, "R N"], int]:
    """Indices of the points of every replicate, and how many things are drawn."""
    if resample == "points":
        return _draws(n), n
    if clusters is None or len(clusters) != n:
        raise ValueError(f"resample={resample!r} needs the cluster of each of the {n} points")
    members = [np.flatnonzero(clusters == name) for name in np.unique(clusters)]
    if resample == "within":
        # One stream for each cluster: clusters of equal size must not be drawn alike.
        columns = []
        for number, group in enumerate(members):
            key = stream_key("findings-within", len(group), number)
            words = long_words(key, np.arange(NUM_REPLICATES), len(group))
            columns.append(group[bounded(words, len(group))])
        return np.concatenate(columns, axis=1), min(len(group) for group in members)
    drawn = _draws(len(members))
    if len({len(group) for group in members}) == 1:
        return np.stack(members)[drawn].reshape(len(drawn), -1), len(members)
    return [np.concatenate([members[c] for c in row]) for row in drawn], len(members)


def _rho(x: Float[np.ndarray, "*R N"], y: Float[np.ndarray, "*R N"]) -> Float[np.ndarray, "*R"]:
    """Spearman's correlation along the last axis; NaN where one side has a single value."""
    u, v = stats.rankdata(x, axis=-1), stats.rankdata(y, axis=-1)
    u, v = u - u.mean(axis=-1, keepdims=True), v - v.mean(axis=-1, keepdims=True)
    scale = np.sqrt((u**2).sum(axis=-1) * (v**2).sum(axis=-1))
    found = np.full(scale.shape, math.nan)
    return np.divide((u * v).sum(axis=-1), scale, out=found, where=scale > 0)


def _replicates(
    x: Float[np.ndarray, " N"],
    y: Float[np.ndarray, " N"],
    rows: list[Int[np.ndarray, " _"]] | Int[np.ndarray, "R N"],
) -> Float[np.ndarray, " R"]:
    if isinstance(rows, np.ndarray):
        return _rho(x[rows], y[rows])
    return np.array([float(_rho(x[row], y[row])) for row in rows])


def _bounded(value: float, found: Float[np.ndarray, " R"], drawn: int, n: int) -> Estimate:
    """Expanded percentiles of the replicates that there are; no bounds if things are too few."""
    found = found[np.isfinite(found)]
    if math.isnan(value) or drawn < MIN_BOOTSTRAP or not len(found):
        return Estimate(value, -math.inf, math.inf, n)
    tail = expanded_tail(drawn)
    low, high = np.quantile(found, [tail, 1 - tail])
    return Estimate(value, min(float(low), value), max(float(high), value), n)


def rank_correlation(
    x: Shaped[np.ndarray, " N"],
    y: Shaped[np.ndarray, " N"],
    clusters: Shaped[np.ndarray, " N"] | None = None,
    resample: Resample = "points",
) -> Estimate:
    """Spearman's rank correlation with a bootstrap interval (expanded percentiles).

    Args:
        x: One number per point.
        y: The other.
        clusters: What each point belongs to, such as its settings or its architecture.
        resample: What is drawn again: ``points``; whole ``clusters``, if their points share
            chance (the seeds of one setting); or points ``within`` each cluster, if the finding
            is about these clusters and no others (the architectures of a figure).

    Returns:
        No bounds with fewer than five things to draw (points, clusters, or points of the smallest
        cluster), no value if x or y has a single value.

    Raises:
        ValueError: If sizes differ, a value is not finite, or clusters are asked for and missing.
    """
    left, right = pairs(x, y, ("x", "y"))
    value = float(_rho(left, right)) if len(left) else math.nan
    if not len(left):
        return Estimate(value, -math.inf, math.inf, 0)
    rows, drawn = _resamples(len(left), clusters, resample)
    return _bounded(value, _replicates(left, right, rows), drawn, len(left))


@dataclasses.dataclass(frozen=True)
class Predictors:
    """Rank correlations of accuracy with two numbers, and their difference.

    Attributes:
        state_size: Correlation of accuracy with the state size.
        parameters: With the number of parameters.
        difference: State size minus parameters, on the same resamples.
    """

    state_size: Estimate
    parameters: Estimate
    difference: Estimate


def stronger_predictor(
    accuracy: Shaped[np.ndarray, " N"],
    state_size: Shaped[np.ndarray, " N"],
    parameters: Shaped[np.ndarray, " N"],
    clusters: Shaped[np.ndarray, " N"] | None = None,
    resample: Resample = "points",
) -> Predictors:
    """Whether state size or the number of parameters goes with accuracy (Figure 6).

    Both correlations are taken on the same resamples: what they share cancels in the difference.

    Args:
        accuracy: One number per point.
        state_size: Numbers carried from step to step.
        parameters: Numbers that meta-training changes.
        clusters: As in ``rank_correlation``.
        resample: As there.

    Raises:
        ValueError: As ``rank_correlation``.
    """
    y, state = pairs(accuracy, state_size, ("accuracies", "state sizes"))
    _, size = pairs(accuracy, parameters, ("accuracies", "numbers of parameters"))
    n = len(y)
    if not n:
        none = Estimate(math.nan, -math.inf, math.inf, 0)
        return Predictors(none, none, none)
    rows, drawn = _resamples(n, clusters, resample)
    values = float(_rho(state, y)), float(_rho(size, y))
    found = _replicates(state, y, rows), _replicates(size, y, rows)
    return Predictors(
        state_size=_bounded(values[0], found[0], drawn, n),
        parameters=_bounded(values[1], found[1], drawn, n),
        difference=_bounded(values[0] - values[1], found[0] - found[1], drawn, n),
    )
