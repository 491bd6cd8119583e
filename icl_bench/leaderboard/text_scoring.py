"""The scorer of text suites: every number is recomputed from predictions and frozen answers.

A column is a setting with a domain: all of its test tasks, or those of domains that no train task
has. Only entries that answered all frozen queries of all frozen tasks of a column are ranked in it,
on identical queries with the same bootstrap draws.
"""

import csv
import dataclasses
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from icl_bench.catalog import TextSuite
from icl_bench.envs.text_source import Domain
from icl_bench.evaluation import text_metrics
from icl_bench.evaluation.statistics import Interval
from icl_bench.evaluation.text_metrics import Resampled
from icl_bench.evaluation.text_protocol import text_suite
from icl_bench.evaluation.text_result import TaskResult, TextResult
from icl_bench.leaderboard.entry import EntryInfo
from icl_bench.leaderboard.reading import read_submission
from icl_bench.leaderboard.replays import ReplayRecord, record_of
from icl_bench.leaderboard.score_cache import Outdated, load_score, prune, save_score, score_key
from icl_bench.leaderboard.scoring import (
    entry_folders,
    interval,
    mean_rank_of,
    outdated,
    read_entry,
    refuse_lookalikes,
)
from icl_bench.leaderboard.text_columns import (
    DOMAINS,
    Coverage,
    TextColumn,
    coverage_of,
    domain_tasks,
    places,
    score_methods,
)
from icl_bench.registration import find_text_spec

# Entries that are scored together, so that most of the work is done once for all of them.
TOGETHER = 32


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


def score_text_suite(folder: str | os.PathLike[str], *, use_cache: bool = True) -> TextSuiteScore:
    """Score all entries of ``leaderboards/<suite>`` and rank them column by column.

    Args:
        folder: Folder of the suite.
        use_cache: Take scores of entries that were scored before from the cache, see
            ``score_cache``.

    Raises:
        ValueError: If the folder's name is no text suite, or an entry is not valid (being
            outdated is no fault: such entries are not ranked).
    """
    suite = text_suite(Path(folder).resolve().name)
    kind = f"text {text_metrics.NUM_REPLICATES}"
    keys = {path: score_key(path, kind) if use_cache else None for path in entry_folders(folder)}
    found = {path: load_score(key, _from_fields) for path, key in keys.items()}
    new = [path for path, score in found.items() if score is None]
    for start in range(0, len(new), TOGETHER):
        for path, score in _score_together(new[start : start + TOGETHER], suite).items():
            found[path] = score
            save_score(path, kind, keys[path], score)
    if use_cache:
        prune()
    not_ranked = {
        path.name: (score.entry, score.reasons)
        for path, score in found.items()
        if isinstance(score, Outdated)
    }
    scores = {
        path.name: dataclasses.replace(score, replay=record_of(path))
        for path, score in found.items()
        if isinstance(score, TextEntryScore)
    }
    refuse_lookalikes(folder, [score.entry for score in scores.values()], not_ranked)
    order = sorted(scores, key=lambda name: (scores[name].entry.title.casefold(), name))
    entries = {name: scores[name] for name in order}
    ranks = {
        domain: {setting: _ranks(entries, setting, domain) for setting in suite.settings}
        for domain in DOMAINS
    }
    return TextSuiteScore(suite, entries, ranks, not_ranked, reported_text(suite.name))


def _score_together(
    paths: Sequence[Path], suite: TextSuite
) -> dict[Path, TextEntryScore | Outdated]:
    """Scores of several entries; those that met the same queries share their bootstrap draws."""
    submissions = {path: read_entry(path, suite) for path in paths}
    old = {path: outdated(submission) for path, submission in submissions.items()}
    results = {p: s.text_results() for p, s in submissions.items() if old[p] is None}
    columns: dict[Domain, dict[str, dict[Path, TextColumn]]] = {
        domain: {s: _score_column(results, s, domain) for s in suite.settings} for domain in DOMAINS
    }
    found: dict[Path, TextEntryScore | Outdated] = {p: o for p, o in old.items() if o is not None}
    for path, by_env in results.items():
        found[path] = TextEntryScore(
            entry=submissions[path].scorable(),
            suite=suite.name,
            view=find_text_spec(next(iter(by_env))).prompt_view,
            seeds=submissions[path].seeds,
            columns={
                domain: {s: by_path[path] for s, by_path in by_setting.items() if path in by_path}
                for domain, by_setting in columns.items()
            },
        )
    return found


def _from_fields(fields: Mapping[str, Any]) -> TextEntryScore:
    """A score as it was before it was kept."""
    columns: dict[Domain, dict[str, TextColumn]] = {
        domain: {
            setting: TextColumn(
                mean=Interval(**column["mean"]),
                worst=Interval(**column["worst"]),
                seed_means=tuple(column["seed_means"]),
                seed_worsts=tuple(column["seed_worsts"]),
                over_seeds=interval(column["over_seeds"]),
                coverage=Coverage(**column["coverage"]),
                resampled=Resampled(**column["resampled"]),
            )
            for setting, column in fields["columns"][domain].items()
        }
        for domain in DOMAINS
    }
    return TextEntryScore(
        entry=EntryInfo.from_dict(fields["entry"]),
        suite=fields["suite"],
        view=fields["view"],
        seeds=tuple(fields["seeds"]),
        columns=columns,
    )


def _score_column(
    results: Mapping[Path, Mapping[str, Sequence[TextResult]]], setting: str, domain: Domain
) -> dict[Path, TextColumn]:
    """Entry → score on one setting and domain."""
    answered: dict[Path, list[list[TaskResult]]] = {}
    for path, by_env in results.items():
        for env, by_seed in by_env.items():
            if find_text_spec(env).setting == setting and domain_tasks(by_seed[0], domain):
                answered[path] = [domain_tasks(result, domain) for result in by_seed]
    return score_methods(answered, setting, domain)


def _ranks(entries: Mapping[str, TextEntryScore], setting: str, domain: Domain) -> dict[str, int]:
    """Rank of every full entry of a column; empty if there are too few tasks for an interval."""
    full = {name: entry.full(domain).get(setting) for name, entry in entries.items()}
    found = {name: column.resampled for name, column in full.items() if column is not None}
    if not found or next(iter(found.values())).values.shape[1] < 2:
        return {}
    return dict(zip(found, places(list(found.values())), strict=True))


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
