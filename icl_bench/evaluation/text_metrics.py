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


@dataclasses.dataclass(frozen=True)
class Resampled:
    """Mean and worst of a method over demonstration seeds, as found and in every replicate.

    Those of methods that met the same queries come from the same draws, so they may be averaged
    (meta-training seeds) and subtracted (comparisons).

    Attributes:
        values: Mean and worst of every task.
        replicates: Mean and worst, averaged over the drawn tasks, of every replicate; no columns
            where there are too few tasks for a bootstrap.
    """

    values: Float[np.ndarray, "2 K"]
    replicates: Float[np.ndarray, "2 R"]

    def __sub__(self, other: "Resampled") -> "Resampled":
        return Resampled(self.values - other.values, self.replicates - other.replicates)

    def summary(self) -> Summary:
        """Mean and worst, averaged over tasks, with 95 % intervals.

        Raises:
            ValueError: If there are fewer than two tasks.
        """
        num_tasks = self.values.shape[1]
        found = []
        for row, resampled in zip(self.values, self.replicates, strict=True):
            if not resampled.size:
                found.append(task_interval(row, np.arange(num_tasks)))
                continue
            tail = expanded_tail(num_tasks)
            low, high = np.quantile(resampled, [tail, 1 - tail])
            mean = float(row.mean())
            found.append(Interval(mean, min(float(low), mean), max(float(high), mean)))
        return Summary(*found)


def average(methods: Sequence[Resampled]) -> Resampled:
    """The mean of several, for instance of one method's meta-training seeds.

    Raises:
        ValueError: If there are none, or they are not of the same tasks.
    """
    values = np.stack([method.values for method in methods])
    replicates = np.stack([method.replicates for method in methods])
    return Resampled(values.mean(axis=0), replicates.mean(axis=0))


def resample(methods: Sequence[Sequence[TaskPredictions]]) -> list[Resampled]:
    """Resample methods that met the same queries; the numbers of demonstration seeds may differ.

    Each block of weights is made once for all methods, which is most of the work.

    Raises:
        ValueError: If tasks or answers differ, or there are none.
    """
    for method in methods[1:]:
        _check_same(methods[0], method)
    joined = [
        dataclasses.replace(tasks[0], prediction=np.concatenate([t.prediction for t in tasks]))
        for tasks in zip(*methods, strict=True)
    ]
    if not joined:
        raise ValueError("nothing to resample: no method, or no task")
    ends = np.cumsum([len(method[0].prediction) for method in methods])
    values = [np.split(task.values(), ends[:-1]) for task in joined]
    replicates = _replicates(joined, ends)
    return [
        Resampled(np.array([[v[m].mean() for v in values], [v[m].min() for v in values]]), rows)
        for m, rows in enumerate(replicates)
    ]


def summarise(tasks: Sequence[TaskPredictions]) -> Summary:
    """Mean and worst over demonstration seeds, averaged over tasks, with 95 % intervals.

    Raises:
        ValueError: If there are fewer than two tasks.
    """
    return resample([tasks])[0].summary()


def difference(a: Sequence[TaskPredictions], b: Sequence[TaskPredictions]) -> Summary:
    """``summarise`` of a - b, paired on the same queries; the numbers of seeds may differ.

    Raises:
        ValueError: If there are fewer than two tasks, or tasks or answers differ.
    """
    first, second = resample([a, b])
    return (first - second).summary()


def task_summary(task: TaskPredictions) -> Summary:
    """Mean and worst over demonstration seeds of one task, with 95 % intervals over its queries."""
    size = len(task.answer)
    key, parts = stream_key("text queries", 0, size), []
    for start in range(0, NUM_REPLICATES, max(1, BLOCK // size)):
        block = np.arange(start, min(NUM_REPLICATES, start + max(1, BLOCK // size)))
        parts.append(_values(task, _weights(key, block, size)))
    resampled = np.concatenate(parts)
    values, found = task.values(), []
    for value, rows in (
        (values.mean(), resampled.mean(axis=1)),
        (values.min(), resampled.min(axis=1)),
    ):
        low, high = np.quantile(rows, [0.025, 0.975])
        found.append(Interval(float(value), min(low, value), max(high, value)))
    return Summary(*found)


def _check_same(a: Sequence[TaskPredictions], b: Sequence[TaskPredictions]) -> None:
    """Raise unless two methods answered the same queries of the same tasks."""
    names = [task.task for task in a], [task.task for task in b]
    if names[0] != names[1]:
        raise ValueError(f"tasks differ: {names[0]} and {names[1]}")
    for one, other in zip(a, b, strict=True):
        if one.metric != other.metric or not np.array_equal(one.answer, other.answer):
            raise ValueError(f"{one.task}: the metrics or the right answers differ")


def _replicates(
    tasks: Sequence[TaskPredictions], ends: Int[np.ndarray, " M"]
) -> Float[np.ndarray, "M 2 R"]:
    """Mean and worst, averaged over the drawn tasks, of every method and replicate.

    Args:
        tasks: Predictions of all methods, one after the other.
        ends: The row after the last one of each method.
    """
    num_tasks, num_methods = len(tasks), len(ends)
    if num_tasks < 2 or expanded_tail(num_tasks) < float(num_tasks) ** -num_tasks:
        return np.empty((num_methods, 2, 0))  # too few for a bootstrap, see statistics
    rows = np.arange(NUM_REPLICATES)
    drawn = bounded(long_words(stream_key("text tasks", num_tasks), rows, num_tasks), num_tasks)
    values = np.empty((num_methods, 2, NUM_REPLICATES * num_tasks))
    for k, task in enumerate(tasks):
        places = np.flatnonzero(drawn.ravel() == k)
        size = len(task.answer)
        key = stream_key("text queries", k, size)
        for start in range(0, len(places), max(1, BLOCK // size)):
            block = places[start : start + max(1, BLOCK // size)]
            found = np.split(_values(task, _weights(key, block, size)), ends[:-1], axis=1)
            for m, of_seeds in enumerate(found):
                values[m][:, block] = of_seeds.mean(axis=1), of_seeds.min(axis=1)
    averaged: np.ndarray = values.reshape(num_methods, 2, NUM_REPLICATES, num_tasks).mean(axis=3)
    return averaged


def _weights(key: int, block: Int[np.ndarray, " B"], size: int) -> Float[np.ndarray, "B Q"]:
    """How often each query is drawn in these replicates."""
    queries = bounded(long_words(key, block, size), size)
    cells = queries + np.arange(len(block))[:, None] * size
    return np.bincount(cells.ravel(), minlength=cells.size).reshape(cells.shape).astype(np.float64)


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
