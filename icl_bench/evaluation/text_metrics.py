"""Metrics of text tasks: macro-F1 and accuracy, mean and worst over demonstration seeds, intervals.

Of each task the metric is computed for every demonstration seed; the mean and the worst of them
are then averaged over the tasks, macro-F1 and accuracy together, as MetaICL reports them.

Intervals come from a hierarchical bootstrap: tasks are drawn with replacement, and within each
drawn task its queries, the same for all seeds. Since the tasks' own values hold the chance of
their queries already, drawing queries as well makes the interval too wide rather than too narrow.
Expanded percentiles, and with fewer than five tasks the t interval of the tasks' values, both as in
``statistics``. All methods meet the same draws, so the interval of a difference is paired.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from icl_bench.evaluation.statistics import Interval, expanded_tail, task_interval
from icl_bench.tasks.counter import bounded, long_words, stream_key

# Each replicate computes metrics anew, unlike those of ``statistics``; the half width is then
# right to about 2 %.
NUM_REPLICATES = 4000

# Weights of queries that are computed with at once.
BLOCK = 2**22

Metric: TypeAlias = Literal["macro-f1", "accuracy"]


@dataclasses.dataclass(frozen=True)
class TaskPredictions:
    """What a method answered to a task's queries.

    Attributes:
        task: Name of the task.
        metric: ``macro-f1`` for classification, ``accuracy`` for all else.
        answer: Index of the right option of each query; for macro-F1 the options, hence the
            classes, are the same for all queries.
        prediction: Index of the predicted option, one row per demonstration seed.
    """

    task: str
    metric: Metric
    answer: Int[np.ndarray, " Q"]
    prediction: Int[np.ndarray, "S Q"]

    def __post_init__(self) -> None:
        if not self.prediction.size or self.prediction.shape[1:] != self.answer.shape:
            raise ValueError(
                f"{self.task}: predictions of shape {self.prediction.shape} do not fit "
                f"{len(self.answer)} queries"
            )

    def values(self) -> Float[np.ndarray, " S"]:
        """The metric of each demonstration seed, in [0, 1]."""
        values: np.ndarray = _values(self, np.ones((1, len(self.answer))))[0]
        return values


@dataclasses.dataclass(frozen=True)
class Summary:
    """Metrics of a method over tasks, in [0, 1].

    Attributes:
        mean: Mean over tasks of the mean over demonstration seeds.
        worst: Mean over tasks of the smallest of the seeds.
    """

    mean: Interval
    worst: Interval


def accuracy(answer: Int[np.ndarray, " Q"], prediction: Int[np.ndarray, " Q"]) -> float:
    """Fraction of queries answered right.

    Raises:
        ValueError: If there are no queries.
    """
    return float(TaskPredictions("accuracy", "accuracy", answer, prediction[None]).values()[0])


def macro_f1(answer: Int[np.ndarray, " Q"], prediction: Int[np.ndarray, " Q"]) -> float:
    """Mean of F1 = 2·p·r / (p + r) over the classes that occur among the right answers.

    The precision p of a class that is never predicted is 1, and F1 is 0 where p + r = 0. A class
    that is only ever predicted takes precision from no other class and is not averaged itself.

    Raises:
        ValueError: If there are no queries.

    Source: the public code of Min et al. 2022.
    """
    return float(TaskPredictions("macro-f1", "macro-f1", answer, prediction[None]).values()[0])


def summarise(tasks: Sequence[TaskPredictions]) -> Summary:
    """Mean and worst over demonstration seeds, averaged over tasks, with 95 % intervals.

    Raises:
        ValueError: If there are fewer than two tasks.
    """
    return Summary(*_intervals(_statistics(tasks), _replicates(tasks)))


def difference(a: Sequence[TaskPredictions], b: Sequence[TaskPredictions]) -> Summary:
    """``summarise`` of a - b, paired on the same queries; the numbers of seeds may differ.

    Raises:
        ValueError: If there are fewer than two tasks, or tasks or answers differ.
    """
    names = [task.task for task in a], [task.task for task in b]
    if names[0] != names[1]:
        raise ValueError(f"tasks differ: {names[0]} and {names[1]}")
    for one, other in zip(a, b, strict=True):
        if one.metric != other.metric or not np.array_equal(one.answer, other.answer):
            raise ValueError(f"{one.task}: the metrics or the right answers differ")
    values = _statistics(a) - _statistics(b)
    return Summary(*_intervals(values, _replicates(a) - _replicates(b)))


def _intervals(
    values: Float[np.ndarray, "2 K"], replicates: Float[np.ndarray, "2 R"]
) -> list[Interval]:
    """Intervals of mean and worst from their values per task and their replicates."""
    num_tasks = values.shape[1]
    tail = expanded_tail(num_tasks)
    found = []
    for row, resampled in zip(values, replicates, strict=True):
        if tail < float(num_tasks) ** -num_tasks:  # too few for a bootstrap, see statistics
            found.append(task_interval(row, np.arange(num_tasks)))
            continue
        low, high = np.quantile(resampled, [tail, 1 - tail])
        mean = float(row.mean())
        found.append(Interval(mean, min(float(low), mean), max(float(high), mean)))
    return found


def _statistics(tasks: Sequence[TaskPredictions]) -> Float[np.ndarray, "2 K"]:
    """Mean and worst over the seeds of every task."""
    values = [task.values() for task in tasks]
    return np.array([[v.mean() for v in values], [v.min() for v in values]])


def _replicates(tasks: Sequence[TaskPredictions]) -> Float[np.ndarray, "2 R"]:
    """Mean and worst, averaged over the drawn tasks, of every replicate."""
    num_tasks = len(tasks)
    rows = np.arange(NUM_REPLICATES)
    drawn = bounded(long_words(stream_key("text tasks", num_tasks), rows, num_tasks), num_tasks)
    values = np.empty((2, NUM_REPLICATES * num_tasks))
    for k, task in enumerate(tasks):
        places = np.flatnonzero(drawn.ravel() == k)
        size = len(task.answer)
        key = stream_key("text queries", k, size)
        for start in range(0, len(places), max(1, BLOCK // size)):
            block = places[start : start + max(1, BLOCK // size)]
            queries = bounded(long_words(key, block, size), size)
            cells = queries + np.arange(len(block))[:, None] * size
            weights = np.bincount(cells.ravel(), minlength=cells.size).reshape(cells.shape)
            found = _values(task, weights.astype(np.float64))
            values[:, block] = found.mean(axis=1), found.min(axis=1)
    averaged: np.ndarray = values.reshape(2, NUM_REPLICATES, num_tasks).mean(axis=2)
    return averaged


def _values(task: TaskPredictions, weights: Float[np.ndarray, "R Q"]) -> Float[np.ndarray, "R S"]:
    """The metric of every seed, with each query as often as its weight says."""
    if task.metric == "accuracy":
        right: np.ndarray = (task.prediction == task.answer).astype(np.float64)
        rates: np.ndarray = (weights @ right.T) / weights.sum(axis=1, keepdims=True)
        return rates
    is_class = np.unique(task.answer) == task.answer[:, None]
    actual = weights @ is_class.astype(np.float64)
    found = np.empty((len(weights), len(task.prediction)))
    for seed, prediction in enumerate(task.prediction):
        is_predicted = np.unique(task.answer) == prediction[:, None]
        predicted = weights @ is_predicted.astype(np.float64)
        right = weights @ (is_class & is_predicted).astype(np.float64)
        precision = np.where(predicted > 0, right / np.maximum(predicted, 1), 1.0)
        recall = right / np.maximum(actual, 1)
        total = precision + recall
        f1 = np.where(total > 0, 2 * precision * recall / np.where(total > 0, total, 1), 0.0)
        # A class that a replicate did not draw does not occur in it.
        found[:, seed] = f1.sum(axis=1, where=actual > 0) / (actual > 0).sum(axis=1)
    return found
