"""Tables of scores for the terminal, straight from run folders."""

from collections.abc import Mapping, Sequence

from icl_bench import catalog
from icl_bench.data.images import MissingDataError
from icl_bench.episodes import Split
from icl_bench.evaluation import protocol
from icl_bench.evaluation.result import Result
from icl_bench.leaderboard.formatting import DASH, percent, plain_table, plus_minus
from icl_bench.leaderboard.predictions import SPLIT, episode_counts
from icl_bench.leaderboard.runs import Run, methods_of, results_by_seed
from icl_bench.leaderboard.scoring import ColumnScore, score_column
from icl_bench.leaderboard.suites import any_suite
from icl_bench.leaderboard.text_tables import board_from_text_runs
from icl_bench.registration import registry


def headers(envs: Sequence[str]) -> tuple[list[str], str]:
    """Short names of columns, and the ending that all of them lack (empty if they differ)."""
    endings = {env.partition("-")[2] for env in envs}
    if len(endings) == 1:
        return [env.partition("-")[0] for env in envs], "-" + endings.pop()
    return list(envs), ""


def seed_rows(
    title: str, seeds: Sequence[int], columns: Mapping[str, ColumnScore], envs: Sequence[str]
) -> list[list[str]]:
    """One row per meta-training seed, and the interval over seeds from three seeds on."""
    rows = []
    for i, seed in enumerate(seeds):
        cells = [percent(columns[e].seed_accuracy[i]) if e in columns else DASH for e in envs]
        rows.append([title, str(seed), *cells])
    if len(seeds) >= 3:
        over = [columns[e].over_seeds if e in columns else None for e in envs]
        rows.append([title, "mean ± over seeds", *(plus_minus(o) if o else DASH for o in over)])
    return rows


def columns_of(
    runs: Sequence[Run], suite: str | None, split: Split
) -> tuple[catalog.Suite | None, list[str]]:
    """The suite of a table, and the environments with results on a split, in order.

    The order is the suite's; without one, environments of meta-training come first.

    Args:
        runs: Runs.
        suite: Suite; by default the one that all runs name, or none if they name none or several.
        split: Split.

    Raises:
        ValueError: If there are none, or no such suite.
    """
    named = {run.suite for run in runs}
    suite = suite or (named.pop() if len(named) == 1 else None)
    row = None if suite is None else protocol.suite(suite)
    found = {r.env for run in runs for r in run.results if r.split == split}
    if row is None:
        trained, order = {run.entry.meta_train for run in runs}, [*registry, *sorted(found)]
        envs = sorted(found, key=lambda env: (env not in trained, order.index(env)))
    else:
        envs = [env for env in row.envs if env in found]
    if not envs:
        raise ValueError(
            f"no results on {split} tasks{f' of {suite}' if suite else ''} in "
            f"{', '.join(str(run.path) for run in runs) or 'no runs'}: evaluate them first"
        )
    return row, envs


def board_from_runs(runs: Sequence[Run], suite: str | None = None, split: Split = SPLIT) -> str:
    """Tables for the terminal, straight from run folders.

    Runs with results on text have tables of their own, see ``text_tables``.

    Several runs of one method are its meta-training seeds. Nothing is ranked: ranks need the
    frozen episodes, see ``icl-bench submit`` and ``icl-bench board``.

    Args:
        runs: Run folders that were read.
        suite: Show this suite's environments only; by default the suite that all runs name, or
            all environments that there are if they name none or several.
        split: Show results on this split; text has ``unseen`` alone.

    Raises:
        ValueError: If there is nothing to show, runs of one name differ in their settings, or
            seeds of a method are not about identical episodes.
    """
    texts = [run for run in runs if run.text]
    unfinished = [
        run
        for run in runs
        if not run.results
        and not run.text
        and run.suite is not None
        and isinstance(any_suite(run.suite), catalog.TextSuite)
    ]
    if unfinished:
        note = "\n".join(f"{run.path}: no results yet: evaluate it first." for run in unfinished)
        rest = [run for run in runs if run not in unfinished]
        if not rest:
            raise ValueError(note)
        return f"{board_from_runs(rest, suite, split)}\n\n{note}"
    if texts and split != SPLIT and len(texts) == len(runs):
        raise ValueError(f"text is evaluated on --split {SPLIT} alone, not on {split}")
    if suite is not None and isinstance(any_suite(suite), catalog.TextSuite):
        return board_from_text_runs(runs, suite)
    if suite is None and texts and split == SPLIT:
        others = [run for run in runs if run.results or not run.text]
        tables = [_vector_board(others, suite, split)] if others else []
        return "\n\n".join([*tables, board_from_text_runs(texts, suite)])
    return _vector_board(runs, suite, split)


def _vector_board(runs: Sequence[Run], suite: str | None, split: Split) -> str:
    """A table of results on vectors."""
    row, envs = columns_of(runs, suite, split)
    counts = (
        (protocol.FROZEN_EPISODES, protocol.EXTENDED_EPISODES)
        if row is None
        else episode_counts(row)
    )
    short, ending = headers(envs)
    rows, by_seed_rows, notes = [], [], []
    for method in sorted(methods_of(runs), key=lambda method: method.name):
        by_seed = results_by_seed(list(method.runs), split)
        columns: dict[str, ColumnScore] = {}
        for env in envs:
            results = [by_env[env] for by_env in by_seed.values() if env in by_env]
            if results and len(results) < len(by_seed):
                notes.append(
                    f"{method.name}: only {len(results)} of {len(by_seed)} seeds have {env}."
                )
            elif results:
                columns[env] = score_column(results, counts[0])
                notes += [
                    f"{method.name}: {note}" for note in _notes(results, columns[env], counts)
                ]
        rows.append(
            [
                method.title,
                *(plus_minus(columns[e].accuracy) if e in columns else DASH for e in envs),
            ]
        )
        by_seed_rows += seed_rows(method.title, list(by_seed), columns, envs)
    for run in runs:
        if not any(result.split == split and result.env in envs for result in run.results):
            notes.append(
                f"{run.path}: no results on {split} tasks{f' of {suite}' if suite else ''}."
            )
    last = f"accuracy (%) at the last step, {split} tasks; ± is the 95 % interval over tasks"
    parts = [
        f"{last}{f'; columns are <name>{ending}' if ending else ''}",
        plain_table(["method", *short], rows),
        "every meta-training seed",
        plain_table(["method", "seed", *short], by_seed_rows),
        *notes,
    ]
    return "\n\n".join(parts)


def _about_evaluation(result: Result) -> list[str]:
    """What a number is of, where it is not the standard evaluation: the network, for instance."""
    env, network = result.env, result.env_kwargs.get("network")
    notes = [] if network is None else [f"{env}: features of the network {network}."]
    try:
        if result.fingerprint != protocol.evaluation_fingerprint(env, network=network):
            notes.append(f"{env} is not the standard evaluation of this version.")
    except MissingDataError:
        notes.append(
            f"{env}: the features are not at hand here, so that it is not known whether this is "
            "the standard evaluation."
        )
    return notes


def _notes(results: Sequence[Result], column: ColumnScore, counts: tuple[int, int]) -> list[str]:
    """What a reader must know of one number beside it."""
    env, notes = column.env, []
    if column.extended:
        notes.append(
            f"{env}: the table shows the first {counts[0]} of {len(results[0].episode)} episodes; "
            f"all: {plus_minus(column.extended)}."
        )
    if results[0].split != SPLIT:  # boards take no other split
        return notes
    notes += _about_evaluation(results[0])
    numbers = sorted({len(result.episode) for result in results})
    if len(numbers) > 1:
        notes.append(
            f"{env}: seeds have {' and '.join(map(str, numbers))} episodes; the table shows the "
            f"first {counts[0]}."
        )
    notes += [
        f"{env} has {number} episodes, boards take {counts[0]} or {counts[1]}."
        for number in numbers
        if number not in counts
    ]
    return notes
