"""Tables of scores as rows of text, and the cleaning of text that strangers wrote."""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence

from icl_bench import catalog
from icl_bench.evaluation.statistics import Interval
from icl_bench.leaderboard.entry import HIDDEN
from icl_bench.leaderboard.predictions import episode_counts
from icl_bench.leaderboard.runs import Run, results_by_seed
from icl_bench.leaderboard.scoring import ColumnScore, EntryScore, score_column

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


def board_from_runs(runs: Sequence[Run], suite: str | None = None) -> str:
    """A table for the terminal, straight from run folders, of results on unseen tasks.

    Several runs of one method are its meta-training seeds. Nothing is ranked: ranks need the
    frozen episodes, see ``icl-bench submit`` and ``icl-bench board``.

    Args:
        runs: Run folders that were read.
        suite: Show this suite's environments only; by default the suite that all runs name, or
            all environments that there are if they name none or several.

    Raises:
        ValueError: If there is nothing to show, or seeds of a method are not about identical
            episodes.
    """
    from tabulate import tabulate

    from icl_bench.evaluation import protocol

    named = {run.suite for run in runs}
    suite = suite or (named.pop() if len(named) == 1 else None)
    row = None if suite is None else protocol.suite(suite)
    ranked = protocol.FROZEN_EPISODES if row is None else episode_counts(row)[0]
    methods: dict[str, list[Run]] = {}
    for run in runs:
        methods.setdefault(run.entry.name, []).append(run)
    found = sorted({r.env for run in runs for r in run.results if r.split == "unseen"})
    envs = found if row is None else [env for env in row.envs if env in found]
    if not envs:
        raise ValueError(
            f"no results on unseen tasks{f' of {suite}' if suite else ''} in "
            f"{', '.join(str(run.path) for run in runs) or 'no runs'}: evaluate them first"
        )
    short, ending = headers(envs)
    rows, by_seed_rows, notes = [], [], []
    for name in sorted(methods):
        by_seed = results_by_seed(methods[name])
        columns: dict[str, ColumnScore] = {}
        complete = []
        for env in envs:
            results = [by_env[env] for by_env in by_seed.values() if env in by_env]
            if results and len(results) < len(by_seed):
                notes.append(f"{name}: only {len(results)} of {len(by_seed)} seeds have {env}.")
            elif results:
                columns[env] = score_column(results, ranked)
                complete.append(results[0])
        for result in complete:
            if result.fingerprint != _standard(result.env):
                notes.append(
                    f"{name}: {result.env} is not the standard evaluation of this version."
                )
            if len(result.episode) < ranked:
                notes.append(
                    f"{name}: {result.env} has {len(result.episode)} episodes, boards ask for "
                    f"{ranked}."
                )
        title = clean_text(methods[name][0].entry.title)
        rows.append(
            [title, *(plus_minus(columns[e].accuracy) if e in columns else DASH for e in envs)]
        )
        by_seed_rows += seed_rows(title, list(by_seed), columns, envs)
    last = "accuracy (%) at the last step, unseen tasks; ± is the 95 % interval over tasks"
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


def _standard(env: str) -> str:
    from icl_bench.evaluation import protocol

    return protocol.evaluation_fingerprint(env)
