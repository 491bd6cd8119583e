"""Tables of scores as rows of text, and the cleaning of text that strangers wrote."""

import dataclasses
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence

from icl_bench import catalog
from icl_bench.episodes import Split
from icl_bench.evaluation import protocol
from icl_bench.evaluation.result import Result
from icl_bench.evaluation.statistics import Interval
from icl_bench.leaderboard.entry import HIDDEN
from icl_bench.leaderboard.predictions import SPLIT, episode_counts
from icl_bench.leaderboard.runs import Run, check_one_method, results_by_seed
from icl_bench.leaderboard.scoring import ColumnScore, EntryScore, score_column
from icl_bench.registration import registry

DASH = "–"

# Characters that Markdown, its HTML and its automatic links give a meaning.
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~$&:@])")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def clean_text(text: str) -> str:
    """One line of text without control, bidirectional and other hidden characters."""
    shown = "".join(
        " " if c in "\t\r\n\x0b\x0c" or unicodedata.category(c) in ("Zl", "Zp") else c
        for c in text
        if c in "\t\r\n\x0b\x0c" or unicodedata.category(c) not in HIDDEN - {"Zl", "Zp"}
    )
    return " ".join(shown.split())


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is: no markup, HTML, table cell or link comes of it."""
    escaped = _MARKDOWN.sub(r"\\\1", clean_text(text))
    return re.sub(r"(?i)(www)\.", r"\1\\.", escaped)  # GitHub links these without a scheme


def csv_text(text: str) -> str:
    """Text that no spreadsheet takes for a formula: such a text begins with an apostrophe."""
    text = clean_text(text)
    return "'" + text if text.startswith(_FORMULA) else text


def percent(value: float, digits: int = 1) -> str:
    """An accuracy in [0, 1] as percent."""
    return f"{100 * value:.{digits}f}"


def signed(value: float) -> str:
    """A difference of accuracies in percentage points; no sign where it rounds to zero."""
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def plus_minus(interval: Interval, shown: str | None = None) -> str:
    """``mean ± half-width`` in percent; the mean alone if there is no interval."""
    shown = percent(interval.mean) if shown is None else shown
    half = interval.half_width
    return shown if math.isnan(half) else f"{shown} ± {percent(half)}"


def number(value: int | None) -> str:
    """A count with thousands separated, or a dash."""
    return DASH if value is None else f"{value:,}"


def headers(envs: Sequence[str]) -> tuple[list[str], str]:
    """Short names of columns, and the ending that all of them lack (empty if they differ)."""
    endings = {env.partition("-")[2] for env in envs}
    if len(endings) == 1:
        return [env.partition("-")[0] for env in envs], "-" + endings.pop()
    return list(envs), ""


def seeds_text(score: EntryScore, suite: catalog.Suite) -> str:
    """Number of meta-training seeds, beside the number asked for if it is less."""
    if score.entry.deterministic:
        return "deterministic"
    count = len(score.seeds)
    wanted = suite.meta_train_seeds
    return f"{count} of {wanted}" if count < wanted else str(count)


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


@dataclasses.dataclass(frozen=True)
class Method:
    """The runs that make one row of a table, or one line of a figure.

    Attributes:
        name: Short name; with the suite where runs of one name differ between suites.
        title: For people; with the name where titles repeat.
        runs: Its runs, one or more per meta-training seed.
    """

    name: str
    title: str
    runs: tuple[Run, ...]


def methods_of(runs: Sequence[Run]) -> list[Method]:
    """Group runs by method, in the order of their first runs.

    Runs of one name but with other settings are kept apart if they were evaluated for different
    suites.

    Raises:
        ValueError: If runs of one name and suite are not of one method, saying where they differ.
    """
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.entry.name, []).append(run)
    groups: list[tuple[str, list[Run]]] = []
    for name, named in by_name.items():
        by_suite: dict[str | None, list[Run]] = {}
        for run in named:
            by_suite.setdefault(run.suite, []).append(run)
        try:
            check_one_method(named)
        except ValueError:
            for part in by_suite.values():
                check_one_method(part)
            groups += [(f"{name}, {suite or 'no suite'}", part) for suite, part in by_suite.items()]
        else:
            groups.append((name, named))
    titles = [clean_text(part[0].entry.title) for _, part in groups]
    return [
        Method(name, f"{title} ({name})" if titles.count(title) > 1 else title, tuple(part))
        for title, (name, part) in zip(titles, groups, strict=True)
    ]


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
    """A table for the terminal, straight from run folders.

    Several runs of one method are its meta-training seeds. Nothing is ranked: ranks need the
    frozen episodes, see ``icl-bench submit`` and ``icl-bench board``.

    Args:
        runs: Run folders that were read.
        suite: Show this suite's environments only; by default the suite that all runs name, or
            all environments that there are if they name none or several.
        split: Show results on this split.

    Raises:
        ValueError: If there is nothing to show, runs of one name differ in their settings, or
            seeds of a method are not about identical episodes.
    """
    from tabulate import tabulate

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
        tabulate(rows, headers=["method", *short], tablefmt="simple", disable_numparse=True),
        "every meta-training seed",
        tabulate(
            by_seed_rows,
            headers=["method", "seed", *short],
            tablefmt="simple",
            disable_numparse=True,
        ),
        *notes,
    ]
    return "\n\n".join(parts)


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
    if results[0].fingerprint != protocol.evaluation_fingerprint(env):
        notes.append(f"{env} is not the standard evaluation of this version.")
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
