"""The scorer of text suites: every number is recomputed from predictions and frozen answers.

A column is a setting with a domain: all of its test tasks, or those of domains that no train task
has. Macro-F1 or accuracy of every task, mean and worst over the demonstration seeds, are averaged
over the tasks, then over the meta-training seeds. Only entries that answered all frozen queries of
all frozen tasks of a column are ranked in it, on identical queries with the same bootstrap draws.
"""

import csv
import dataclasses
import os
from collections.abc import Hashable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from icl_bench.catalog import TextSuite
from icl_bench.data.text import text_setting
from icl_bench.envs.text_source import Domain
from icl_bench.evaluation.statistics import ROUNDING, Interval, seed_interval
from icl_bench.evaluation.text_metrics import Resampled, average, resample
from icl_bench.evaluation.text_protocol import scorable_tasks, text_answers, text_suite
from icl_bench.evaluation.text_result import TaskResult, TextResult
from icl_bench.leaderboard.entry import EntryInfo
from icl_bench.leaderboard.reading import Submission, read_entries, read_submission
from icl_bench.leaderboard.replays import ReplayRecord, record_of
from icl_bench.leaderboard.scoring import mean_rank_of
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


@dataclasses.dataclass(frozen=True)
class TextEntryScore:
    """One entry of a text suite.

    Attributes:
        entry: About the method.
        suite: Suite.
        view: ``direct`` or ``channel``.
        seeds: Meta-training seeds, ascending.
        columns: Domain → setting → score, in the suite's order; only what was handed in.
        replay: What a replay of these very files found; None if there was none.
    """

    entry: EntryInfo
    suite: str
    view: str
    seeds: tuple[int, ...]
    columns: Mapping[Domain, Mapping[str, TextColumn]]
    replay: ReplayRecord | None = None

    def full(self, domain: Domain) -> dict[str, TextColumn]:
        """Setting → score, of columns that were answered in full."""
        return {s: column for s, column in self.columns[domain].items() if column.coverage.full}


@dataclasses.dataclass(frozen=True)
class ReportedText:
    """A number that only a paper reports.

    Attributes:
        method: As the paper calls it.
        view: ``direct`` or ``channel``.
        domain: All test tasks, or those of unseen domains (``new``).
        training_data: How much of the meta-training data was used, as the paper calls it.
        setting: Setting of the same protocol.
        mean: In [0, 1].
        worst: In [0, 1]; None where the paper has none.
        source: Paper and table.
    """

    method: str
    view: str
    domain: Domain
    training_data: str
    setting: str
    mean: float
    worst: float | None
    source: str


@dataclasses.dataclass(frozen=True)
class TextSuiteScore:
    """All entries of a text suite.

    Attributes:
        suite: Suite.
        entries: Entries by name, alphabetical by title.
        ranks: Domain → setting → entry → 1 + the number of entries that are significantly better;
            a setting with fewer than two tasks has no ranks.
        not_ranked: Entries that cannot be compared with this version's numbers, and why.
        reported: Numbers of papers; never ranked.
    """

    suite: TextSuite
    entries: Mapping[str, TextEntryScore]
    ranks: Mapping[Domain, Mapping[str, Mapping[str, int]]]
    not_ranked: Mapping[str, tuple[EntryInfo, tuple[str, ...]]]
    reported: tuple[ReportedText, ...]

    def mean_rank(self, domain: Domain, name: str) -> float | None:
        """Mean of an entry's ranks over the columns that have any; None if none has.

        A column that the entry lacks counts as one place behind all entries of that column.
        """
        ranks = self.ranks[domain]
        return mean_rank_of(name, ranks) if any(ranks.values()) else None

    def rows(self, domain: Domain) -> list[TextEntryScore]:
        """Entries with a full column, by mean rank, then by title."""
        full = [(name, entry) for name, entry in self.entries.items() if entry.full(domain)]
        return [e for _, e in sorted(full, key=lambda row: self.mean_rank(domain, row[0]) or 0.0)]


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


def score_text_suite(folder: str | os.PathLike[str]) -> TextSuiteScore:
    """Score all entries of ``leaderboards/<suite>`` and rank them column by column.

    Raises:
        ValueError: If the folder's name is no text suite, or an entry is not valid (being
            outdated is no fault: such entries are not ranked).
    """
    suite = text_suite(Path(folder).resolve().name)
    not_ranked = {}
    submissions: dict[str, Submission] = {}
    for name, submission in read_entries(folder).items():
        if submission.entry is not None and submission.outdated:
            not_ranked[name] = (submission.entry, submission.outdated)
        else:
            submissions[name] = submission
    about = {name: submission.scorable() for name, submission in submissions.items()}
    order = sorted(about, key=lambda name: (about[name].title.casefold(), name))
    results = {name: submissions[name].text_results() for name in order}
    columns: dict[Domain, dict[str, dict[str, TextColumn]]] = {
        domain: {s: _score_column(results, s, domain) for s in suite.settings} for domain in DOMAINS
    }
    entries = {
        name: TextEntryScore(
            entry=about[name],
            suite=suite.name,
            view=find_text_spec(next(iter(results[name]))).prompt_view,
            seeds=submissions[name].seeds,
            columns={
                domain: {s: by_name[name] for s, by_name in found.items() if name in by_name}
                for domain, found in columns.items()
            },
            replay=record_of(submissions[name].path),
        )
        for name in order
    }
    ranks = {
        domain: {setting: _ranks(by_name) for setting, by_name in found.items()}
        for domain, found in columns.items()
    }
    return TextSuiteScore(suite, entries, ranks, not_ranked, reported_text(suite.name))


def _score_column(
    results: Mapping[str, Mapping[str, Sequence[TextResult]]], setting: str, domain: Domain
) -> dict[str, TextColumn]:
    """Entry → score on one setting and domain."""
    answered: dict[str, list[list[TaskResult]]] = {}
    for name, by_env in results.items():
        for env, by_seed in by_env.items():
            if find_text_spec(env).setting == setting and domain_tasks(by_seed[0], domain):
                answered[name] = [domain_tasks(result, domain) for result in by_seed]
    found = score_methods(answered, setting, domain)
    return {name: found[name] for name in answered}


def _ranks(columns: Mapping[str, TextColumn]) -> dict[str, int]:
    """Rank of every full entry of a column; empty if there are too few tasks for an interval."""
    full = {name: c.resampled for name, c in columns.items() if c.coverage.full}
    if not full or next(iter(full.values())).values.shape[1] < 2:
        return {}
    names, places = list(full), dict.fromkeys(full, 1)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:  # one interval decides a pair in both directions
            gain = (full[a] - full[b]).summary().mean
            places[b] += gain.low > ROUNDING
            places[a] += gain.high < -ROUNDING
    return places


def partial_columns(entry: str | os.PathLike[str]) -> list[str]:
    """Columns of a submission that will not be ranked, with their coverage."""
    found = []
    for env, by_seed in read_submission(entry).text_results().items():
        coverage = coverage_of(by_seed[0].tasks, find_text_spec(env).setting, "all")
        if not coverage.full:
            found.append(f"{env}: {coverage}")
    return found


def reported_text(suite: str) -> tuple[ReportedText, ...]:
    """What papers report for a text suite, in the papers' order; empty if nothing."""
    file = resources.files("icl_bench.leaderboard") / "reported" / f"{suite}.csv"
    if not file.is_file():
        return ()
    return tuple(
        ReportedText(
            method=row["method"],
            view=row["view"],
            domain="new" if row["domain"] == "new" else "all",
            training_data=row["training_data"],
            setting=row["setting"],
            mean=float(row["mean"]),
            worst=float(row["worst"]) if row["worst"] else None,
            source=row["source"],
        )
        for row in csv.DictReader(file.read_text("utf-8").splitlines())
    )
