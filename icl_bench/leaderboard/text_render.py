"""The part of README.md about text suites."""

from collections.abc import Mapping, Sequence

from icl_bench.data.text import text_setting
from icl_bench.envs.text_source import Domain
from icl_bench.leaderboard.comparison import (
    PairTable,
    PaperNumber,
    PaperRow,
    text_papers,
    total_pairs,
)
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
from icl_bench.leaderboard.marks import about_part, row_marks
from icl_bench.leaderboard.text_columns import DOMAINS, TextColumn, frozen_tasks, missing_tasks
from icl_bench.leaderboard.text_scoring import ReportedText, TextSuiteScore


def text_section(score: TextSuiteScore, pairs: Mapping[Domain, PairTable]) -> str:
    """The part of README.md about one text suite.

    Args:
        score: The suite's scores.
        pairs: Domain → ``comparison.text_pairs`` of them.
    """
    suite = score.suite
    draws = ", ".join(map(str, suite.demo_seeds))
    seeds = "1 seed" if suite.meta_train_seeds == 1 else f"{suite.meta_train_seeds} seeds"
    parts = [
        f"## {suite.name}",
        f"{suite.title}. Protocol: meta-train on the train tasks of each column with {seeds}; "
        f"meta-test on its test tasks, {suite.num_demos} demonstrations, draws {draws}. Columns "
        "are settings, whose environments are `<setting>-ICL-v0` (direct) and "
        "`<setting>-Channel-v0` (channel).",
    ]
    if told := _missing(score):
        parts.append(told)
    if not score.entries:
        parts.append("No entries yet.")
    for domain, words in DOMAINS.items():
        rows = _entry_rows(score, domain, pairs[domain]) + _reported_rows(score, domain)
        if rows:
            columns = [
                *("Method", "View"),
                *(f"{s} ({len(frozen_tasks(s, domain))})" for s in suite.settings),
                *("Mean rank", "Win rate", "Pairs", "Seeds"),
            ]
            parts += [f"**{words.capitalize()}**", markdown_table(columns, rows, 2)]
    titles = _titles(score)
    if papers := [row for paper in text_papers(score) for row in _paper_rows(score, paper, titles)]:
        parts += [
            "**Paper and ours** side by side, for entries with title, view and training data of a "
            f"reported method; mean / worst, differences in percentage points ({DASH} where tasks "
            "of the paper are not frozen). ± is our interval over tasks and queries alone.",
            markdown_table(["Method", "View", "Tasks", "", *suite.settings], papers, 4),
        ]
    if rows := _partial_rows(score):
        told = (
            "Fewer tasks or queries than are frozen, so the numbers cannot be compared with others."
        )
        columns = ["Method", "View", "Setting", "Tasks", "Value", "Coverage"]
        parts.append(folded("Partial hand-ins", [told, markdown_table(columns, rows, 4)]))
    if score.entries:
        parts.append(about_part(list(score.entries.values())))
    if rows := _seed_rows(score):
        told = (
            f"Mean / worst in % ({DOMAINS['all']}). With three or more seeds, the last row of a "
            "method is their mean ± the 95 % t interval over seeds."
        )
        table = markdown_table(["Method", "Seed", *suite.settings], rows, 2)
        parts.append(folded("Every meta-training seed", [told, table]))
    parts += not_ranked_parts(score.not_ranked)
    return "\n\n".join(parts) + "\n"


def _missing(score: TextSuiteScore) -> str:
    """Which columns lack frozen answers of which tasks; empty if none does."""
    lacking: dict[str, list[str]] = {}
    for setting in score.suite.settings:
        for task in missing_tasks(setting):
            lacking.setdefault(task, []).append(setting)
    if not lacking:
        return ""
    tasks = "; ".join(f"`{task}` ({', '.join(settings)})" for task, settings in lacking.items())
    settings = dict.fromkeys(s for found in lacking.values() for s in found)
    counts = ", ".join(
        f"{s} {len(frozen_tasks(s, 'all'))} of {len(text_setting(s).test)}" for s in settings
    )
    return (
        f"This version holds no frozen answers of {tasks}. These columns are about fewer test "
        f"tasks than the papers' ({counts}), so that numbers of papers do not compare with them."
    )


def text_cell(column: TextColumn | None, rank: int | None = None) -> str:
    """``mean ± half-width / worst (rank)`` in percent, or a dash."""
    if column is None:
        return DASH
    told = f"{plus_minus(column.mean)} / {percent(column.worst.mean)}"
    return told if rank is None else f"{told} ({rank})"


def _entry_rows(score: TextSuiteScore, domain: Domain, pairs: PairTable) -> list[list[str]]:
    rows, linked = [], _linked(score)
    for e in score.rows(domain):
        full, ranks = e.full(domain), score.ranks[domain]
        mean_rank = score.mean_rank(domain, e.entry.name)
        found = total_pairs(pairs, e.entry.name)
        rows.append(
            [
                linked[e.entry.name],
                e.view,
                *(text_cell(full.get(s), ranks[s].get(e.entry.name)) for s in score.suite.settings),
                DASH if mean_rank is None else f"{mean_rank:.2f}",
                DASH if found.win_rate is None else f"{percent(found.win_rate, 0)} %",
                DASH if found.win_rate is None else str(found),
                seeds_text(e.entry, len(e.seeds), score.suite),
            ]
        )
    return rows


def _titles(score: TextSuiteScore) -> dict[str, str]:
    return entry_titles(e.entry for e in score.entries.values())


def _linked(score: TextSuiteScore) -> dict[str, str]:
    """Entry → its title with a link and marks."""
    suite, titles = score.suite.name, _titles(score)
    return {
        name: linked_title(titles[name], suite, name, row_marks(e, suite))
        for name, e in score.entries.items()
    }


def _reported_rows(score: TextSuiteScore, domain: Domain) -> list[list[str]]:
    groups: dict[tuple[str, ...], dict[str, ReportedText]] = {}
    for row in score.reported:
        if row.domain == domain:
            key = (row.method, row.view, row.training_data, row.source)
            groups.setdefault(key, {})[row.setting] = row
    rows = []
    for (method, view, data, source), values in groups.items():
        told = f", {markdown_text(data)} training data" if data not in ("none", "complete") else ""
        title = f"{markdown_text(method)}{told} *reported*, {markdown_text(source)}"
        cells = [_reported_cell(values.get(setting)) for setting in score.suite.settings]
        rows.append([title, view, *cells, *[DASH] * 4])
    return rows


def _reported_cell(row: ReportedText | None) -> str:
    if row is None:
        return DASH
    return percent(row.mean) + ("" if row.worst is None else f" / {percent(row.worst)}")


def _paper_rows(
    score: TextSuiteScore, paper: PaperRow, titles: Mapping[str, str]
) -> list[list[str]]:
    """The paper's numbers, ours, and the differences."""
    title, view = titles[paper.entry.name], score.entries[paper.entry.name].view
    columns = [(paper.columns.get(s), paper.worst.get(s)) for s in score.suite.settings]
    words = DOMAINS["all" if paper.domain is None else paper.domain]
    return [
        [title, view, words, told, *(cell(*numbers) for numbers in columns)]
        for told, cell in (
            (markdown_text(paper.source), _papers_cell),
            ("ours", _ours_cell),
            ("ours − paper", _difference_cell),
        )
    ]


def _papers_cell(mean: PaperNumber | None, worst: PaperNumber | None) -> str:
    if mean is None:
        return DASH
    return percent(mean.paper) + (f" / {percent(worst.paper)}" if worst else "")


def _ours_cell(mean: PaperNumber | None, worst: PaperNumber | None) -> str:
    if mean is None:
        return DASH
    return plus_minus(mean.ours) + (f" / {percent(worst.ours.mean)}" if worst else "")


def _difference_cell(mean: PaperNumber | None, worst: PaperNumber | None) -> str:
    if mean is None or mean.difference is None:
        return DASH
    told = plus_minus(mean.difference, signed(mean.difference.mean))
    return f"{told} / {signed(worst.difference.mean)}" if worst and worst.difference else told


def _partial_rows(score: TextSuiteScore) -> list[list[str]]:
    rows, linked = [], _linked(score)
    for name, e in score.entries.items():
        for domain, words in DOMAINS.items():
            for setting, column in e.columns[domain].items():
                if not column.coverage.full:
                    told = [setting, words, text_cell(column), str(column.coverage)]
                    rows.append([linked[name], e.view, *told])
    return rows


def _seed_rows(score: TextSuiteScore) -> list[list[str]]:
    """One row per meta-training seed of the entries that have several."""
    rows, titles = [], _titles(score)
    for e in score.rows("all"):
        full, title = e.full("all"), titles[e.entry.name]
        if len(e.seeds) > 1:
            found = [full.get(setting) for setting in score.suite.settings]
            rows += [
                [title, str(seed), *(_seed_cell(column, i) for column in found)]
                for i, seed in enumerate(e.seeds)
            ]
            rows += _over_seeds(title, found)
    return rows


def _seed_cell(column: TextColumn | None, i: int) -> str:
    if column is None:
        return DASH
    return f"{percent(column.seed_means[i])} / {percent(column.seed_worsts[i])}"


def _over_seeds(title: str, columns: Sequence[TextColumn | None]) -> list[list[str]]:
    over = [None if column is None else column.over_seeds for column in columns]
    if not any(over):
        return []
    return [[title, "mean ± over seeds", *(plus_minus(o) if o else DASH for o in over)]]
