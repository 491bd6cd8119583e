"""Intervals and comparisons: what a number of finitely many tasks, episodes and seeds can say.

The design is crossed: all learners and all meta-training seeds meet the same tasks (K) and the
same episodes (E) of each task. Two sources of chance are kept apart:

    tasks   "would another draw of tasks and episodes give another number for these checkpoints?"
            A bootstrap that draws whole tasks with replacement, since the episodes of one task
            share its projection and its permutation and are not independent (``task_interval``).
    seeds   "would another meta-training give another checkpoint?" A t interval over the seeds'
            means, from three seeds on (``seed_interval``).

Comparisons are paired: the differences are taken episode by episode, and every learner is
resampled with the same matrix of weights (``bootstrap_weights``), so that what makes a task hard
for everybody cancels (``paired_difference``, ``ranks``).

Expanded percentile interval: with few tasks the plain percentiles of the bootstrap are too narrow
(92 % instead of 95 % at K = 16), for the bootstrap variance lacks the factor K/(K-1) and a normal
tail stands where a t tail belongs. Instead of alpha/2 the tail is
Phi(-sqrt(K/(K-1)) · t_{1-alpha/2, K-1}) (Hesterberg 2015, "What Teachers Should Know About the
Bootstrap", §5.3). Where that cannot work, the t interval of the task means stands in: with so few
tasks that one single resample (probability K^-K) outweighs the tail (K < 5 at 95 %), and beyond
``MAX_BOOTSTRAP_TASKS``, where the two agree and the matrix of weights would not fit.

If all task means are equal (a learner without a single error, say) the width is zero: a
bootstrap cannot speak about what none of the tasks has shown.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped

from icl_bench.tasks.counter import bounded, long_words, stream_key

NUM_REPLICATES = 10_000
MAX_BOOTSTRAP_TASKS = 1024
LEVEL = 0.95

# Largest common denominator of task sums, and largest whole total of all tasks, for which
# quantiles are counted instead of sorted: 12 seeds of 64 tasks of 16 episodes give 12,288.
MAX_SCALE = 12
MAX_TOTAL = 2**14

# A difference below this is rounding, not an advantage: means over three seeds are not exact.
ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with the bounds of its interval; fractions in [0, 1] for accuracies.

    Attributes:
        mean: The estimate.
        low: Lower bound, at most the mean.
        high: Upper bound, at least the mean.
    """

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """The larger of the distances from the mean to the two bounds."""
        return max(self.mean - self.low, self.high - self.mean)


@functools.lru_cache(maxsize=4)
def bootstrap_weights(
    num_tasks: int, num_replicates: int = NUM_REPLICATES
) -> Float[np.ndarray, "R K"]:
    """Weights of the tasks in every bootstrap replicate: multinomial counts divided by K.

    Rows sum to 1. Row r comes from the stream ("bootstrap", K) and r alone: the same matrix for
    every learner and on every machine, and a prefix of the matrix with more replicates. The
    array is shared and read-only.

    Raises:
        ValueError: If ``num_tasks`` or ``num_replicates`` is not positive.
    """
    if num_tasks < 1 or num_replicates < 1:
        raise ValueError(f"need tasks and replicates, got {num_tasks} and {num_replicates}")
    key = stream_key("bootstrap", num_tasks)
    counts = np.empty((num_replicates, num_tasks))
    block = max(1, 2**20 // num_tasks)  # bounds the memory of the random words
    for start in range(0, num_replicates, block):
        rows = np.arange(start, min(start + block, num_replicates))
        drawn = bounded(long_words(key, rows, num_tasks), num_tasks)
        cells = drawn + np.arange(len(rows))[:, None] * num_tasks
        counts[rows] = np.bincount(cells.ravel(), minlength=cells.size).reshape(cells.shape)
    counts /= num_tasks
    counts.flags.writeable = False
    return counts


def expanded_tail(num_tasks: int, level: float = LEVEL) -> float:
    """Probability left below the lower and above the upper bound by the expanded percentiles.

    Phi(-sqrt(K/(K-1)) · t_{1-alpha/2, K-1}) with alpha = 1 - level: 0.0139 for 16 tasks at 95 %.

    Raises:
        ValueError: If there are fewer than two tasks, or the level is not inside (0, 1).

    Source: Hesterberg 2015, §5.3.
    """
    from scipy.special import ndtr

    t = _t_quantile(num_tasks, level)
    return float(ndtr(-math.sqrt(num_tasks / (num_tasks - 1)) * t))


def task_means(
    values: Shaped[np.ndarray, "*S E"], task: Int[np.ndarray, " E"]
) -> tuple[Int[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Ascending task ids, and the mean of each over its episodes and over all leading axes.

    Args:
        values: One number or truth value per episode, and per seed if there is a leading axis.
        task: Task id of each episode.

    Raises:
        ValueError: If there are no values, one is not finite, or shapes do not fit.
    """
    tasks, sums, sizes = _task_sums(_episode_values(values, task, 1), task, balanced=False)
    return tasks, sums[:, 0] / sizes


def task_interval(
    values: Shaped[np.ndarray, "*S E"],
    task: Int[np.ndarray, " E"],
    level: float = LEVEL,
    *,
    balanced: bool = True,
) -> Interval:
    """Mean over episodes (and seeds) with its interval for the given checkpoints.

    Expanded percentile bootstrap clustered on tasks, see the head of this module.

    Args:
        values: One number or truth value per episode, and per seed if there is a leading axis.
        task: Task id of each episode.
        level: Coverage, inside (0, 1).
        balanced: Whether every task must have the same number of episodes, as in the frozen
            protocol. If not, a replicate is the ratio of resampled sums and resampled numbers of
            episodes, so that the estimate is still the plain mean over episodes.

    Raises:
        ValueError: If there are fewer than two tasks, the tasks are not balanced, a value is not
            finite, or the level is not inside (0, 1).
    """
    mean, low, high = _interval(_episode_values(values, task, 1), task, level, balanced)
    return Interval(float(mean[0]), float(low[0]), float(high[0]))


def curve_interval(
    values: Shaped[np.ndarray, "*S E T"],
    task: Int[np.ndarray, " E"],
    level: float = LEVEL,
    *,
    balanced: bool = True,
) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """Mean, lower and upper bounds at every step: ``task_interval`` of each column.

    The bounds hold step by step, not for the whole curve at once.

    Raises:
        ValueError: As ``task_interval``.
    """
    return _interval(_episode_values(values, task, 2), task, level, balanced)


def paired_difference(
    a: Shaped[np.ndarray, "*S E"],
    b: Shaped[np.ndarray, "*R E"],
    task: Int[np.ndarray, " E"],
    level: float = LEVEL,
    *,
    balanced: bool = True,
) -> Interval:
    """Mean of a - b over identical episodes with its interval; a and b may differ in seeds.

    Raises:
        ValueError: As ``task_interval``.
    """
    difference = _episode_values(a, task, 1) - _episode_values(b, task, 1)
    mean, low, high = _interval(difference, task, level, balanced)
    return Interval(float(mean[0]), float(low[0]), float(high[0]))


def significantly_better(
    a: Shaped[np.ndarray, "*S E"],
    b: Shaped[np.ndarray, "*R E"],
    task: Int[np.ndarray, " E"],
    level: float = LEVEL,
) -> bool:
    """Whether the interval of a - b lies above zero.

    Raises:
        ValueError: As ``task_interval``.
    """
    return paired_difference(a, b, task, level).low > ROUNDING


def ranks(
    columns: Sequence[Float[np.ndarray, " E"]],
    task: Int[np.ndarray, " E"],
    level: float = LEVEL,
) -> list[int]:
    """Rank of every entry: 1 + the number of entries that are significantly better.

    A rank may be left out. "Not significantly different" is not transitive: two entries that the
    data do not separate may have different ranks.

    Args:
        columns: Per entry one value per episode, averaged over seeds; identical episodes.
        task: Task id of each episode.
        level: Coverage of each paired interval, inside (0, 1).

    Raises:
        ValueError: As ``task_interval``.
    """
    if not len(columns):
        return []
    table = np.concatenate([_episode_values(column, task, 1) for column in columns], axis=1)
    tasks, sums, sizes = _task_sums(table, task, balanced=True)
    tail = expanded_tail(len(tasks), level)
    if not _can_bootstrap(len(tasks), tail):
        lows = (_interval(table - column[:, None], task, level, True)[1] for column in table.T)
        return [1 + int((low > ROUNDING).sum()) for low in lows]
    replicates = (sums.T @ bootstrap_weights(len(tasks)).T) / sizes[0]

    def low(a: int, b: int) -> float:
        return float(_interval(table[:, [a]] - table[:, [b]], task, level, True)[1][0])

    return ranks_of_replicates(sums.sum(axis=0) / sizes.sum(), replicates, tail, low)


def ranks_of_replicates(
    means: Float[np.ndarray, " N"],
    replicates: Float[np.ndarray, "N R"],
    tail: float,
    low: Callable[[int, int], float],
) -> list[int]:
    """Ranks of entries whose bootstrap replicates come from the same draws.

    Nothing is sorted: the lower bound of a difference lies between two of its replicates, and
    counting those that are not above zero tells on which side of zero the two are.

    Args:
        means: The estimate of every entry.
        replicates: The same in every replicate.
        tail: Probability left below the lower bound of a difference.
        low: That bound for entry a - entry b, asked where zero lies between the two replicates.
    """
    before = int((replicates.shape[1] - 1) * tail)  # the bound's lower neighbour, counted from 0
    found = [1] * len(means)
    for b, mean in enumerate(means):
        limit = replicates[b] + ROUNDING
        for a in np.flatnonzero(means - mean > ROUNDING).tolist():
            behind = int(np.count_nonzero(replicates[a] <= limit))
            found[b] += behind <= before or (behind == before + 1 and low(a, b) > ROUNDING)
    return found


def seed_interval(means: Float[np.ndarray, " S"], level: float = LEVEL) -> Interval | None:
    """The t interval of the mean over meta-training seeds; None with fewer than three.

    Args:
        means: The mean of each seed over the same episodes.
        level: Coverage, inside (0, 1).

    Raises:
        ValueError: If a mean is not finite, or the level is not inside (0, 1).
    """
    if not np.isfinite(means).all():
        raise ValueError(f"means of seeds must be finite, got {means}")
    if len(means) < 3:
        return None
    mean = float(means.mean())
    half = _t_quantile(len(means), level) * float(means.std(ddof=1)) / math.sqrt(len(means))
    return Interval(mean, mean - half, mean + half)


def _t_quantile(num: int, level: float) -> float:
    """t_{1-alpha/2} with num - 1 degrees of freedom."""
    from scipy.special import stdtrit

    if not 0 < level < 1:
        raise ValueError(f"level must lie inside (0, 1), got {level}")
    if num < 2:
        raise ValueError(f"an interval needs at least 2 tasks, got {num}")
    return float(stdtrit(num - 1, (1 + level) / 2))


def _episode_values(
    values: Shaped[np.ndarray, "..."], task: Int[np.ndarray, " E"], trailing: int
) -> Float[np.ndarray, "E N"]:
    """Values in float64 averaged over the leading axes, one row per episode."""
    values = np.asarray(values, dtype=np.float64)
    shape = values.shape[-trailing:]
    if values.ndim < trailing or not values.size or shape[0] != len(task):
        raise ValueError(f"values of shape {values.shape} do not fit {len(task)} episodes")
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} values are not finite")
    averaged: np.ndarray = values.reshape(-1, *shape).mean(axis=0)
    return averaged.reshape(len(task), -1)


def _task_sums(
    values: Float[np.ndarray, "E N"], task: Int[np.ndarray, " E"], balanced: bool
) -> tuple[Int[np.ndarray, " K"], Float[np.ndarray, "K N"], Int[np.ndarray, " K"]]:
    """Task ids, sums over the episodes of each task, and numbers of episodes."""
    tasks, index, sizes = np.unique(task, return_inverse=True, return_counts=True)
    if balanced and (sizes != sizes[0]).any():
        few, many = int(sizes.argmin()), int(sizes.argmax())
        raise ValueError(
            f"tasks must have equally many episodes: task {tasks[few]} has {sizes[few]}, "
            f"task {tasks[many]} has {sizes[many]}"
        )
    order = np.argsort(index, kind="stable")
    starts = np.cumsum(sizes) - sizes
    return tasks, np.add.reduceat(values[order], starts, axis=0), sizes


def _can_bootstrap(num_tasks: int, tail: float) -> bool:
    """Whether percentiles of a bootstrap can work, see the head of this module."""
    return tail >= float(num_tasks) ** -num_tasks and num_tasks <= MAX_BOOTSTRAP_TASKS


def _interval(
    values: Float[np.ndarray, "E N"], task: Int[np.ndarray, " E"], level: float, balanced: bool
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Mean, lower and upper bounds of every column."""
    tasks, sums, sizes = _task_sums(values, task, balanced)
    num_tasks = len(tasks)
    t = _t_quantile(num_tasks, level)
    mean = sums.sum(axis=0) / sizes.sum()
    tail = expanded_tail(num_tasks, level)
    if not _can_bootstrap(num_tasks, tail):
        # The linearised ratio: for balanced tasks these are the task means minus their mean.
        residual = (sums - mean * sizes[:, None]) / sizes.mean()
        half = t * np.sqrt((residual**2).sum(axis=0) / (num_tasks - 1) / num_tasks)
        return mean, mean - half, mean + half
    scale = _whole_scale(sums) if (sizes == sizes[0]).all() else None
    if scale is None:
        weights = bootstrap_weights(num_tasks)
        replicates = (sums.T @ weights.T) / (weights @ sizes)  # [N, R]: quantiles of whole rows
        low, high = np.quantile(replicates, [tail, 1 - tail], axis=-1, overwrite_input=True)
    else:
        low, high = _whole_quantiles(np.rint(sums * scale), tail) / (scale * sizes.sum())
    # Rounding, or a very skewed sample, must not put the mean outside of its own interval.
    return mean, np.minimum(low, mean), np.maximum(high, mean)


def _whole_scale(sums: Float[np.ndarray, "K N"]) -> int | None:
    """The smallest factor that makes all sums whole numbers; None if there is no small one.

    Counts of right answers, averaged over S seeds, need S; a difference of two such means needs
    the least common multiple.
    """
    for scale in range(1, MAX_SCALE + 1):
        scaled = sums * scale
        if np.abs(scaled).max() * len(sums) > MAX_TOTAL:
            return None
        if np.abs(scaled - np.rint(scaled)).max() < ROUNDING:
            return scale
    return None


def _whole_quantiles(sums: Float[np.ndarray, "K N"], tail: float) -> Float[np.ndarray, "2 N"]:
    """``np.quantile`` of the resampled totals of whole numbers at tail and 1 - tail, exactly.

    Totals of whole numbers are whole and few: counting them is much faster than sorting them.
    """
    totals = (sums.T.astype(np.float32) @ _bootstrap_counts(len(sums))).astype(np.int64)
    (num_columns, num_replicates), lowest = totals.shape, int(totals.min())
    width = int(totals.max()) - lowest + 1
    totals += (np.arange(num_columns) * width - lowest)[:, None]
    counts = np.bincount(totals.ravel(), minlength=num_columns * width)
    at_most = counts.reshape(num_columns, width).cumsum(axis=1)
    bounds = []
    for probability in (tail, 1 - tail):
        position = (num_replicates - 1) * probability
        rank = int(position)  # counted from 0; it is at most R - 2, as 0 < tail < 1
        below, above = ((at_most <= r).sum(axis=1) + lowest for r in (rank, rank + 1))
        bounds.append(below + (above - below) * (position - rank))
    return np.stack(bounds)


@functools.lru_cache(maxsize=4)
def _bootstrap_counts(num_tasks: int) -> Float[np.ndarray, "K R"]:
    """``bootstrap_weights`` as whole numbers, transposed, in single precision; read-only."""
    counts: np.ndarray = np.rint(bootstrap_weights(num_tasks).T * num_tasks).astype(
        np.float32, order="C"
    )
    counts.flags.writeable = False
    return counts
