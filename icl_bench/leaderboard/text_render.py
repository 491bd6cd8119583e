"""The part of README.md about text suites."""

from collections.abc import Sequence

from icl_bench.data.text import text_setting
from icl_bench.envs.text_source import Domain
from icl_bench.leaderboard.formatting import (
    DASH,
    entry_title,
    linked_title,
    markdown_table,
    markdown_text,
    not_ranked_parts,
    number,
    percent,
    plus_minus,
    seeds_text,
)
from icl_bench.leaderboard.text_scoring import (
    DOMAINS,
    ReportedText,
    TextColumn,
    TextSuiteScore,
    frozen_tasks,
    missing_tasks,
)

TEXT_LEGEND = """\
## How to read a text board

Columns are settings: a method is meta-trained on a setting's train tasks and answers the queries of
its test tasks, each after five draws of 16 demonstrations.

- **Cells** such as `43.3 ± 5.1 / 41.7 (1)`: macro-F1 of classification and accuracy of multi-choice
  tasks in %, of each task the mean over the five draws, then the mean over tasks; after the slash
  the worst of the five draws in place of their mean. The number beside a setting is that of its
  tasks. One table has all test tasks, one those whose domain no train task has (*unseen-domain*).
- **±** is the 95 % interval of the first number: what would another draw of tasks and queries give?
  It comes from a bootstrap that draws tasks, then queries within them. `board.csv` has both bounds,
  also those of the worst draw. A column of a single task has neither interval nor rank.
- **(Rank)** = 1 + the number of entries whose mean is significantly better on identical queries.
  Direct entries (the answer given the input) and channel entries (the input given the answer) stand
  in one table and are ranked together.
- **Partial** hand-ins (fewer tasks or queries than are frozen) are shown below with their coverage
  and never ranked: other tasks make other means.
- *reported* rows average over all tasks of the original, with files that are larger in part;
  *other meta-training* marks entries that were not meta-trained on each column's own train tasks.
"""


def text_section(score: TextSuiteScore) -> str:
    """The part of README.md about one text suite."""
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
        rows = _entry_rows(score, domain) + _reported_rows(score, domain)
        if rows:
            columns = [
                *("Method", "View"),
                *(f"{s} ({len(frozen_tasks(s, domain))})" for s in suite.settings),
                *("Mean rank", "Seeds", "Parameters"),
            ]
            parts += [f"**{words.capitalize()}**", markdown_table(columns, rows, 2)]
    if rows := _partial_rows(score):
        parts += [
            "**Partial**: fewer tasks or queries than are frozen, so the numbers cannot be "
            "compared with others.",
            markdown_table(["Method", "View", "Setting", "Tasks", "Value", "Coverage"], rows, 4),
        ]
    if rows := _seed_rows(score):
        parts += [
            f"**Every meta-training seed** ({DOMAINS['all']}, mean / worst in %). With three or "
            "more seeds, the last row of a method is their mean ± the 95 % t interval over seeds.",
            markdown_table(["Method", "Seed", *suite.settings], rows, 2),
        ]
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


def _entry_rows(score: TextSuiteScore, domain: Domain) -> list[list[str]]:
    about = [e.entry for e in score.entries.values()]
    rows = []
    for e in score.rows(domain):
        full, ranks = e.full(domain), score.ranks[domain]
        mean_rank = score.mean_rank(domain, e.entry.name)
        rows.append(
            [
                linked_title(e.entry, about, score.suite.name, score.suite.name),
                e.view,
                *(text_cell(full.get(s), ranks[s].get(e.entry.name)) for s in score.suite.settings),
                DASH if mean_rank is None else f"{mean_rank:.2f}",
                seeds_text(e.entry, len(e.seeds), score.suite),
                number(e.entry.parameters),
            ]
        )
    return rows


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
        rows.append([title, view, *cells, *[DASH] * 3])
    return rows


def _reported_cell(row: ReportedText | None) -> str:
    if row is None:
        return DASH
    return percent(row.mean) + ("" if row.worst is None else f" / {percent(row.worst)}")


def _partial_rows(score: TextSuiteScore) -> list[list[str]]:
    about = [e.entry for e in score.entries.values()]
    rows = []
    for e in score.entries.values():
        title = linked_title(e.entry, about, score.suite.name, score.suite.name)
        for domain, words in DOMAINS.items():
            for setting, column in e.columns[domain].items():
                if not column.coverage.full:
                    told = [setting, words, text_cell(column), str(column.coverage)]
                    rows.append([title, e.view, *told])
    return rows


def _seed_rows(score: TextSuiteScore) -> list[list[str]]:
    """One row per meta-training seed of the entries that have several."""
    about = [e.entry for e in score.entries.values()]
    rows = []
    for e in score.rows("all"):
        full, title = e.full("all"), entry_title(e.entry, about)
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
