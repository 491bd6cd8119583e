"""Columns of text suites: a method on the frozen tasks of a setting, or on those of a domain.

Macro-F1 or accuracy of every task, mean and worst over the demonstration seeds, are averaged over
the tasks, then over the meta-training seeds.
"""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from icl_bench.data.text import text_setting
from icl_bench.envs.text_source import Domain
from icl_bench.evaluation.statistics import (
    ROUNDING,
    Interval,
    expanded_tail,
    ranks_of_replicates,
    seed_interval,
)
from icl_bench.evaluation.text_metrics import Resampled, average, resample
from icl_bench.evaluation.text_protocol import scorable_tasks, text_answers
from icl_bench.evaluation.text_result import TaskResult, TextResult
from icl_bench.registration import find_text_spec

DOMAINS: Mapping[Domain, str] = MappingProxyType(
    {"all": "all test tasks", "new": "unseen-domain tasks"}
)

K = TypeVar("K", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How much of a column was answered.

    Attributes:
        tasks: Tasks answered.
        all_tasks: Tasks with frozen answers.
        queries: Queries answered, of all of its tasks.
        all_queries: Queries with frozen answers.
    """

    tasks: int
    all_tasks: int
    queries: int
    all_queries: int

    @property
    def full(self) -> bool:
        """Whether nothing is left out, so that the column may be ranked."""
        return (self.tasks, self.queries) == (self.all_tasks, self.all_queries)

    def __str__(self) -> str:
        """For instance ``3 of 26 tasks, 150 of 7,839 queries``."""
        return (
            f"{self.tasks} of {self.all_tasks} tasks, "
            f"{self.queries:,} of {self.all_queries:,} queries"
        )


@dataclasses.dataclass(frozen=True)
class TextColumn:
    """One method on one setting and domain; macro-F1 and accuracy in [0, 1].

    Attributes:
        mean: Mean over demonstration seeds, over tasks and meta-training seeds, with the interval
            over tasks and queries; its bounds are NaN where there is a single task.
        worst: The same of the worst demonstration seed of each task.
        seed_means: The mean of every meta-training seed.
        seed_worsts: The worst of every meta-training seed.
        over_seeds: Mean with the interval over meta-training seeds; None with fewer than three.
        coverage: How much of it was answered.
        resampled: Per task and per replicate, for comparisons.
    """

    mean: Interval
    worst: Interval
    seed_means: tuple[float, ...]
    seed_worsts: tuple[float, ...]
    over_seeds: Interval | None
    coverage: Coverage
    resampled: Resampled


def frozen_tasks(setting: str, domain: Domain) -> list[str]:
    """Test tasks of a setting with frozen answers, in its order."""
    new = text_setting(setting).unseen_domain
    return [task for task in scorable_tasks(setting) if domain == "all" or task in new]


def missing_tasks(setting: str) -> list[str]:
    """Test tasks of a setting whose answers are not frozen."""
    return [task for task in text_setting(setting).test if task not in scorable_tasks(setting)]


def domain_tasks(result: TextResult, domain: Domain) -> list[TaskResult]:
    """The tasks of a result that belong to a domain, in the setting's order."""
    order = text_setting(find_text_spec(result.env).setting).test
    return sorted(result.of(domain), key=lambda task: order.index(task.task))


def score_methods(
    methods: Mapping[K, Sequence[Sequence[TaskResult]]], setting: str, domain: Domain
) -> dict[K, TextColumn]:
    """Scores of methods on one setting and domain, given the results of each meta-training seed.

    Methods that met the same queries are resampled together.

    Raises:
        ValueError: If the seeds of a method did not meet the same queries.
    """
    groups: dict[object, list[K]] = {}
    for name, of_seeds in methods.items():
        cells = tuple((t.task, t.query.tobytes(), t.answer.tobytes()) for t in of_seeds[0])
        groups.setdefault(cells, []).append(name)
    columns: dict[K, TextColumn] = {}
    for names in groups.values():
        found = iter(
            resample([[t.predictions for t in tasks] for name in names for tasks in methods[name]])
        )
        for name in names:
            of_seeds = methods[name]
            coverage = coverage_of(of_seeds[0], setting, domain)
            columns[name] = _text_column([next(found) for _ in of_seeds], coverage)
    return columns


def _text_column(seeds: Sequence[Resampled], coverage: Coverage) -> TextColumn:
    """Score of a method from its meta-training seeds."""
    resampled = average(seeds)
    if resampled.values.shape[1] > 1:
        summary = resampled.summary()
        mean, worst = summary.mean, summary.worst
    else:
        nan = float("nan")
        mean, worst = (Interval(float(row[0]), nan, nan) for row in resampled.values)
    by_seed = np.array([seed.values.mean(axis=1) for seed in seeds])
    return TextColumn(
        mean=mean,
        worst=worst,
        seed_means=tuple(float(value) for value in by_seed[:, 0]),
        seed_worsts=tuple(float(value) for value in by_seed[:, 1]),
        over_seeds=seed_interval(by_seed[:, 0]),
        coverage=coverage,
        resampled=resampled,
    )


def coverage_of(tasks: Sequence[TaskResult], setting: str, domain: Domain) -> Coverage:
    """How much of a column some tasks are."""
    frozen = frozen_tasks(setting, domain)
    total = sum(len(text_answers(task)) for task in frozen)
    answered = sum(len(task.query) for task in tasks)
    return Coverage(len(tasks), len(frozen), answered, total)


def places(methods: Sequence[Resampled]) -> list[int]:
    """1 + the number of others whose mean is significantly higher, of each method.

    Raises:
        ValueError: If there are fewer than two tasks.
    """
    if not methods:
        return []

    def low(a: int, b: int) -> float:
        return (methods[a] - methods[b]).summary().mean.low

    replicates = np.array([method.replicates[0] for method in methods])
    if replicates.size:
        means = np.array([method.values[0].mean() for method in methods])
        tail = expanded_tail(methods[0].values.shape[1])
        return ranks_of_replicates(means, replicates, tail, low)
    everyone = range(len(methods))
    return [1 + sum(low(a, b) > ROUNDING for a in everyone if a != b) for b in everyone]
