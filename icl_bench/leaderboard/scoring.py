"""The scorer: every number is recomputed from predictions and the labels of the frozen episodes."""

import csv
import dataclasses
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from icl_bench import catalog
from icl_bench.evaluation import metrics, protocol
from icl_bench.evaluation.result import Result
from icl_bench.evaluation.statistics import (
    Interval,
    curve_interval,
    paired_difference,
    ranks,
    seed_interval,
    task_interval,
)
from icl_bench.leaderboard.entry import EntryInfo, collisions
from icl_bench.leaderboard.predictions import episode_counts
from icl_bench.leaderboard.reading import Submission, read_submission
from icl_bench.leaderboard.replays import ReplayRecord, record_of
from icl_bench.leaderboard.score_cache import Outdated, load_score, prune, save_score, score_key
from icl_bench.leaderboard.suites import AnySuite


@dataclasses.dataclass(frozen=True)
class ColumnScore:
    """One method on one environment; accuracies in [0, 1] at the last step, step 99.

    Attributes:
        env: Environment id.
        seed_accuracy: Accuracy of every meta-training seed on the ranked episodes.
        accuracy: Mean over seeds and ranked episodes, with the interval over tasks; its bounds
            are NaN where there is a single task.
        over_seeds: Mean with the interval over meta-training seeds; None with fewer than three.
        curve: Mean accuracy at every step.
        curve_low: Lower bound of the interval over tasks, step by step.
        curve_high: Upper bound.
        area: Mean accuracy over all steps, the area under the curve, with the interval over tasks.
        rise: Accuracy at the last step less that at the first, paired, with the interval over
            tasks; None where there is a single task.
        log_loss: Step → mean −log p(right class) in nats, over seeds and ranked episodes.
        extended: As ``accuracy``, on all episodes; None unless every seed has the same ones, more
            than the ranked.
        correct: Per ranked episode, the fraction of seeds that are right; for pairing.
        task: Task of each ranked episode.
    """

    env: str
    seed_accuracy: tuple[float, ...]
    accuracy: Interval
    over_seeds: Interval | None
    curve: Float[np.ndarray, " T"]
    curve_low: Float[np.ndarray, " T"]
    curve_high: Float[np.ndarray, " T"]
    area: Interval
    rise: Interval | None
    log_loss: Mapping[int, float]
    extended: Interval | None
    correct: Float[np.ndarray, " E"]
    task: Int[np.ndarray, " E"]


@dataclasses.dataclass(frozen=True)
class EntryScore:
    """One entry of a suite.

    Attributes:
        entry: About the method.
        suite: Suite.
        seeds: Meta-training seeds, ascending.
        columns: Environment id → score, in the suite's order; only what was handed in.
        flags: Why it needs a replay before anyone believes it; empty if nothing is odd.
        replay: What a replay of these very files found; None if there was none.
    """

    entry: EntryInfo
    suite: str
    seeds: tuple[int, ...]
    columns: Mapping[str, ColumnScore]
    flags: tuple[str, ...] = ()
    replay: ReplayRecord | None = None


@dataclasses.dataclass(frozen=True)
class Reported:
    """A number that only a paper reports.

    Attributes:
        method: As the paper calls it.
        inductive_bias: As the paper calls it.
        env: Environment id of the same protocol.
        accuracy: In [0, 1].
        source: Paper and table.
    """

    method: str
    inductive_bias: str
    env: str
    accuracy: float
    source: str


@dataclasses.dataclass(frozen=True)
class SuiteScore:
    """All entries of a suite.

    Attributes:
        suite: Suite.
        entries: Ranked entries, in the order of their rows: by mean rank, then by title.
        ranks: Environment id → entry → 1 + the number of entries that are significantly better.
        mean_rank: Entry → mean of its ranks over all columns that any entry has; a column that an
            entry lacks counts as one place behind all entries of that column.
        not_ranked: Entries that cannot be compared with this version's numbers, and why.
        reported: Numbers of papers; never ranked.
    """

    suite: catalog.Suite
    entries: tuple[EntryScore, ...]
    ranks: Mapping[str, Mapping[str, int]]
    mean_rank: Mapping[str, float]
    not_ranked: Mapping[str, tuple[EntryInfo, tuple[str, ...]]]
    reported: tuple[Reported, ...]


def score_column(results: Sequence[Result], ranked_episodes: int) -> ColumnScore:
    """Score one method on one environment.

    Args:
        results: One result per meta-training seed, identical in the ranked episodes.
        ranked_episodes: How many of the first episodes are ranked; the others only count for
            ``extended``, where all seeds have the same.

    Raises:
        ValueError: If the ranked episodes are not identical.
    """
    ranked = [result.head(ranked_episodes) for result in results]
    first = ranked[0]
    if not all(_identical(result, first) for result in ranked):
        raise ValueError(
            f"the seeds on {first.env} were not evaluated on identical episodes{_networks(ranked)}"
        )
    task = metrics.clusters(first)
    curves = np.stack([result.correct for result in ranked]).astype(np.float64)
    last = curves[:, :, -1]
    if len(np.unique(task)) > 1:
        accuracy = task_interval(last, task, balanced=False)
        curve, low, high = curve_interval(curves, task, balanced=False)
        area = task_interval(curves.mean(axis=2), task, balanced=False)
        rise = paired_difference(last, curves[:, :, 0], task, balanced=False)
    else:
        curve = curves.mean(axis=(0, 1))
        low = high = np.full_like(curve, np.nan)
        nan, rise = float("nan"), None
        accuracy, area = (Interval(float(value), nan, nan) for value in (curve[-1], curve.mean()))
    losses = [metrics.log_loss(result) for result in ranked]
    extended = None
    if len(results[0].episode) > ranked_episodes and all(
        _identical(result, results[0]) for result in results
    ):
        everything = np.stack([result.correct[:, -1] for result in results])
        extended = task_interval(everything, metrics.clusters(results[0]), balanced=False)
    return ColumnScore(
        env=first.env,
        seed_accuracy=tuple(float(mean) for mean in last.mean(axis=1)),
        accuracy=accuracy,
        over_seeds=seed_interval(last.mean(axis=1)),
        curve=curve,
        curve_low=low,
        curve_high=high,
        area=area,
        rise=rise,
        log_loss={s: sum(loss[s] for loss in losses) / len(losses) for s in losses[0]},
        extended=extended,
        correct=last.mean(axis=0),
        task=task,
    )


def _networks(results: Sequence[Result]) -> str:
    """What seeds have been shown, where that is features of several networks."""
    names = sorted({str(result.env_kwargs.get("network", "pixels")) for result in results})
    return f": they are features of {' and '.join(names)}" if len(names) > 1 else ""


def _identical(a: Result, b: Result) -> bool:
    """Whether two results are about the same episodes."""
    return a.fingerprint == b.fingerprint and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("episode", "label")
    )


def score_entry(path: str | os.PathLike[str], *, use_cache: bool = True) -> EntryScore:
    """Score a submission from its predictions and the labels of the frozen episodes.

    Args:
        path: Its folder.
        use_cache: Take the score of these very files from the cache, see ``score_cache``.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the submission is not valid, naming everything wrong with it.
    """
    found = _scored(Path(path), None, use_cache)
    if isinstance(found, Outdated):
        return _score(read_submission(path))  # raises, and names everything
    return found


def _scored(path: Path, suite: catalog.Suite | None, use_cache: bool) -> EntryScore | Outdated:
    """The score of one entry, of any suite or of a certain one."""
    key = score_key(path, "vectors") if use_cache else None
    found = load_score(key, _from_fields)
    if found is None:
        submission = read_entry(path, suite)
        found = outdated(submission) or _score(submission)
        save_score(path, "vectors", key, found)
    if isinstance(found, Outdated):
        return found
    return dataclasses.replace(found, replay=record_of(path))


def entry_folders(folder: str | os.PathLike[str]) -> list[Path]:
    """The folders of the entries in ``leaderboards/<suite>``, by name; there may be none."""
    folder = Path(folder)
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in paths if path.is_dir() and not path.name.startswith(".")]


def read_entry(path: Path, suite: AnySuite | None) -> Submission:
    """Read a submission of a suite, or of any.

    Raises:
        ValueError: If it is of another one.
    """
    submission = read_submission(path)
    if suite is not None and submission.suite is not None and submission.suite != suite:
        raise ValueError(f"{path} belongs to {submission.suite.name}: move it to that folder")
    return submission


def outdated(submission: Submission) -> Outdated | None:
    """A submission that is listed but not ranked; None if it can be."""
    if submission.entry is None or not submission.outdated:
        return None
    return Outdated(submission.entry, submission.outdated)


def refuse_lookalikes(
    folder: str | os.PathLike[str],
    scored: Sequence[EntryInfo],
    not_ranked: Mapping[str, tuple[EntryInfo, tuple[str, ...]]],
) -> None:
    """Raise if an entry could be taken for another one of its suite.

    Raises:
        ValueError: Naming the entry and the other.
    """
    listed = {name: entry for name, (entry, _) in not_ranked.items()}
    found = collisions(listed | {entry.name: entry for entry in scored})
    for entry in scored:
        if entry.name in found:
            path = Path(folder) / entry.name
            raise ValueError(f"{path} cannot be scored: entry.toml: {found[entry.name]}")


def _score(submission: Submission) -> EntryScore:
    entry, suite, results = submission.scorable(), submission.suite, submission.results()
    if not isinstance(suite, catalog.Suite):
        raise ValueError(f"{submission.path} is of a text suite")
    ranked = episode_counts(suite)[0]
    return EntryScore(
        entry=entry,
        suite=suite.name,
        seeds=submission.seeds,
        columns={env: score_column(by_seed, ranked) for env, by_seed in results.items()},
        flags=submission.flags,
    )


def _from_fields(fields: Mapping[str, Any]) -> EntryScore:
    """A score as it was before it was kept."""
    columns = {}
    for env, column in fields["columns"].items():
        intervals = {name: interval(column[name]) for name in ("over_seeds", "extended", "rise")}
        columns[env] = ColumnScore(
            **column
            | intervals
            | {
                "accuracy": Interval(**column["accuracy"]),
                "area": Interval(**column["area"]),
                "seed_accuracy": tuple(column["seed_accuracy"]),
                "log_loss": {int(step): loss for step, loss in column["log_loss"].items()},
            }
        )
    return EntryScore(
        entry=EntryInfo.from_dict(fields["entry"]),
        suite=fields["suite"],
        seeds=tuple(fields["seeds"]),
        columns=columns,
        flags=tuple(fields["flags"]),
    )


def interval(fields: Mapping[str, float] | None) -> Interval | None:
    """An interval as it was before it was kept; None stays None."""
    return None if fields is None else Interval(**fields)


def score_suite(folder: str | os.PathLike[str], *, use_cache: bool = True) -> SuiteScore:
    """Score all entries of ``leaderboards/<suite>`` and rank them column by column.

    The comparisons of a column are paired on its 16 × 16 episodes, which all entries share, with
    one matrix of bootstrap weights. An entry's predictions are forgotten before the next one's are
    read.

    Args:
        folder: Folder of the suite.
        use_cache: Take scores of entries that were scored before from the cache, see
            ``score_cache``.

    Raises:
        ValueError: If the folder's name is no suite, or an entry is not valid (being outdated
            is no fault: such entries are not ranked).
    """
    suite = protocol.suite(Path(folder).resolve().name)
    entries: dict[str, EntryScore] = {}
    not_ranked = {}
    for path in entry_folders(folder):
        found = _scored(path, suite, use_cache)
        if isinstance(found, Outdated):
            not_ranked[path.name] = (found.entry, found.reasons)
        else:
            entries[path.name] = found
    if use_cache:
        prune()
    refuse_lookalikes(folder, [score.entry for score in entries.values()], not_ranked)
    column_ranks = {env: _rank(entries, env) for env in suite.envs}
    mean_rank = {name: mean_rank_of(name, column_ranks) for name in entries}
    order = sorted(entries, key=lambda name: (mean_rank[name], *_alphabetical(entries[name])))
    return SuiteScore(
        suite=suite,
        entries=tuple(entries[name] for name in order),
        ranks=column_ranks,
        mean_rank=mean_rank,
        not_ranked=not_ranked,
        reported=reported(suite.name),
    )


def _rank(entries: Mapping[str, EntryScore], env: str) -> dict[str, int]:
    present = {name: e.columns[env] for name, e in entries.items() if env in e.columns}
    if not present:
        return {}
    task = next(iter(present.values())).task
    places = ranks([column.correct for column in present.values()], task)
    return dict(zip(present, places, strict=True))


def mean_rank_of(name: str, column_ranks: Mapping[str, Mapping[str, int]]) -> float:
    """Mean of an entry's ranks; a column that it lacks counts as one place behind all others."""
    places = [
        by_entry.get(name, len(by_entry) + 1) for by_entry in column_ranks.values() if by_entry
    ]
    return sum(places) / len(places)


def _alphabetical(score: EntryScore) -> tuple[str, str]:
    return score.entry.title.casefold(), score.entry.name


def reported(suite: str) -> tuple[Reported, ...]:
    """What papers report for a suite, in the papers' order; empty if nothing."""
    file = resources.files("icl_bench.leaderboard") / "reported" / f"{suite}.csv"
    if not file.is_file():
        return ()
    rows: list[dict[str, Any]] = list(csv.DictReader(file.read_text("utf-8").splitlines()))
    return tuple(Reported(**{**row, "accuracy": float(row["accuracy"])}) for row in rows)
