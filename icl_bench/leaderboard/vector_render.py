"""The part of README.md about suites of vectors."""

from collections.abc import Sequence

from icl_bench.evaluation.statistics import Interval
from icl_bench.leaderboard.comparison import PairTable, PaperRow, total_pairs, vector_papers
from icl_bench.leaderboard.formatting import (
    DASH,
    entry_titles,
    folded,
    linked_title,
    markdown_table,
    markdown_text,
    not_ranked_parts,
    percent,
    plus_minus,
    seeds_text,
    signed,
)
from icl_bench.leaderboard.marks import about_part, flagged_parts, row_marks
from icl_bench.leaderboard.predictions import SPLIT, episode_counts
from icl_bench.leaderboard.scoring import ColumnScore, SuiteScore
from icl_bench.leaderboard.submission import scorable_envs
from icl_bench.leaderboard.summaries import curve_parts
from icl_bench.leaderboard.tables import headers, seed_rows


def vector_section(score: SuiteScore, pairs: PairTable) -> str:
    """The part of README.md about one suite.

    Args:
        score: The suite's scores.
        pairs: ``comparison.vector_pairs`` of them.
    """
    suite = score.suite
    short, ending = headers(suite.envs)
    parts = [
        f"## {suite.name}",
        f"{suite.title}. Protocol: meta-train on `{suite.meta_train}` with "
        f"{suite.meta_train_seeds} seeds; meta-test on split `{SPLIT}`, {suite.tasks} tasks × "
        f"{suite.episodes_per_task} episodes of {suite.episode_length} steps in every column"
        + (f". Columns are environments `<name>{ending}`." if ending else "."),
    ]
    unpinned = [env for env in suite.envs if env not in scorable_envs(suite)]
    if unpinned:
        parts.append(
            f"This version holds no frozen labels of {_code_list(unpinned)}, so nothing can be "
            "handed in there yet."
        )
    if not score.entries:
        parts.append("No entries yet.")
    if score.entries or score.reported:
        columns = ["Method", "Inductive bias", *short, "Mean rank", "Pairs", "Seeds"]
        parts.append(markdown_table(columns, _main_rows(score, pairs), 2))
    parts += flagged_parts(score.entries)
    parts += _paper_parts(score, short)
    if score.entries:
        parts.append(about_part(score.entries))
    parts += curve_parts(score)
    parts += _seed_parts(score, short)
    parts += _extended_parts(score, short)
    parts += not_ranked_parts(score.not_ranked)
    return "\n\n".join(parts) + "\n"


def _code_list(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _main_rows(score: SuiteScore, pairs: PairTable) -> list[list[str]]:
    rows, titles = [], entry_titles(e.entry for e in score.entries)
    for e in score.entries:
        name = e.entry.name
        cells = [
            f"{plus_minus(e.columns[env].accuracy)} ({score.ranks[env][name]})"
            if env in e.columns
            else DASH
            for env in score.suite.envs
        ]
        rows.append(
            [
                linked_title(titles[name], e.suite, name, row_marks(e, score.suite.meta_train)),
                markdown_text(e.entry.inductive_bias),
                *cells,
                f"{score.mean_rank[name]:.2f}",
                str(total_pairs(pairs, name)),
                seeds_text(e.entry, len(e.seeds), score.suite),
            ]
        )
    values = {(row.method, row.env): percent(row.accuracy) for row in score.reported}
    about = {row.method: (row.inductive_bias, row.source) for row in score.reported}
    for method, (bias, source) in about.items():
        cells = [values.get((method, env), DASH) for env in score.suite.envs]
        title = f"{markdown_text(method)} *reported*, {markdown_text(source)}"
        rows.append([title, markdown_text(bias), *cells, *[DASH] * 3])
    return rows


def _paper_parts(score: SuiteScore, short: Sequence[str]) -> list[str]:
    titles = entry_titles(e.entry for e in score.entries)
    rows = [
        row
        for paper in vector_papers(score)
        for row in _paper_rows(paper, titles[paper.entry.name], score.suite.envs)
    ]
    if not rows:
        return []
    return [
        "**Paper and ours** side by side, for entries with the title of a reported method; "
        "differences in percentage points. ± is our interval over tasks alone; the paper's "
        "numbers rest on a few hundred predictions too and are uncertain by several points.",
        markdown_table(["Method", "", *short], rows, 2),
    ]


def _paper_rows(paper: PaperRow, title: str, envs: Sequence[str]) -> list[list[str]]:
    found = [paper.columns.get(env) for env in envs]
    return [
        [title, markdown_text(paper.source), *(percent(n.paper) if n else DASH for n in found)],
        [title, "ours", *(plus_minus(n.ours) if n else DASH for n in found)],
        [title, "ours − paper", *(_difference(n.difference if n else None) for n in found)],
    ]


def _difference(interval: Interval | None) -> str:
    return plus_minus(interval, signed(interval.mean)) if interval else DASH


def _seed_parts(score: SuiteScore, short: Sequence[str]) -> list[str]:
    titles = entry_titles(e.entry for e in score.entries)
    rows = [
        row
        for e in score.entries
        if not e.entry.deterministic
        for row in seed_rows(titles[e.entry.name], e.seeds, e.columns, score.suite.envs)
    ]
    if not rows:
        return []
    told = (
        "Accuracy in %. With three or more seeds, the last row of a method is their mean ± the "
        "95 % t interval over seeds: what would another meta-training give?"
    )
    table = markdown_table(["Method", "Seed", *short], rows, 2)
    return [folded("Every meta-training seed", [told, table])]


def _extended_parts(score: SuiteScore, short: Sequence[str]) -> list[str]:
    suite, titles = score.suite, entry_titles(e.entry for e in score.entries)
    ranked, extended = episode_counts(suite)
    rows = [
        [titles[e.entry.name], *(_extended(e.columns.get(env)) for env in suite.envs)]
        for e in score.entries
        if any(column.extended for column in e.columns.values())
    ]
    if not rows:
        return []
    told = (
        f"{suite.extended_tasks} tasks × {suite.episodes_per_task} episodes ({extended} instead "
        f"of {ranked}), for narrower intervals; not ranked."
    )
    return [folded("Larger hand-in", [told, markdown_table(["Method", *short], rows, 1)])]


def _extended(column: ColumnScore | None) -> str:
    return plus_minus(column.extended) if column and column.extended else DASH
