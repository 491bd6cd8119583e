"""Boards: Markdown, CSV and JSON, the same bytes for the same submissions."""

import os
from collections.abc import Sequence
from pathlib import Path

from icl_bench import catalog
from icl_bench.data.cache import atomic_path
from icl_bench.evaluation.statistics import Interval
from icl_bench.leaderboard import replays
from icl_bench.leaderboard.export import board_csv, board_json
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
    signed,
)
from icl_bench.leaderboard.predictions import SPLIT, episode_counts
from icl_bench.leaderboard.scoring import (
    ColumnScore,
    SuiteScore,
    differences,
    score_suite,
)
from icl_bench.leaderboard.submission import scorable_envs
from icl_bench.leaderboard.suites import ALL_SUITES, AnySuite
from icl_bench.leaderboard.tables import board_from_runs, headers, seed_rows
from icl_bench.leaderboard.text_export import text_board_csv, text_board_json
from icl_bench.leaderboard.text_render import TEXT_LEGEND, text_section
from icl_bench.leaderboard.text_scoring import TextSuiteScore, score_text_suite

__all__ = ["board_from_runs", "render_board"]

_LEGEND = f"""\
# Leaderboards

Made by `icl-bench board`; do not edit. Every number was recomputed from handed-in predictions and
the labels of the frozen episodes. The only exception are rows marked *reported*: a paper printed
those numbers, and nobody here can check them.

## How to read a board

- **Cells** such as `73.4 ± 3.1 (1)`: accuracy in % at the last step of an episode (step 99: the
  learner has seen 99 labelled examples and predicts the 100th), on tasks that it has never met.
  The number in brackets is the rank within the column.
- **±** is the 95 % interval for the given checkpoints: what would another draw of tasks give? It
  comes from a bootstrap over tasks, since episodes of one task are not independent. Where the two
  sides differ, the larger one is shown; `board.csv` has both. It does not say what another
  meta-training seed would give: see the table of seeds below each board. `± 0.0` means that all
  tasks gave the same value, not that another task must.
- **(Rank)** = 1 + the number of entries that are significantly better in this column. Two entries
  are compared on identical episodes, and one is significantly better if the 95 % interval of the
  difference lies above zero (not corrected for the number of comparisons). So entries that the data
  cannot tell apart share a rank, several entries may have rank 1, and ± intervals that overlap
  decide nothing by themselves.
- **Mean rank** averages a row's ranks; a missing column counts as one place behind all entries of
  that column. **Rows** are in the order of mean rank, and alphabetical where it is equal. The order
  of two rows means no more than that: to compare two methods, compare their ranks in a column.
- **{DASH}** means not handed in, or not known.
- *reference* marks classical learners that show what a number means: they are ranked as any other
  entry. *reported* marks numbers of a paper: they are never ranked, for their episodes are others
  and their intervals unknown. *other meta-training* marks entries that were meta-trained on another
  environment than the protocol's, *external data* those that used data or pretrained weights from
  elsewhere, *external data not stated* those that do not say whether they did; a method's name
  leads to what was handed in about it.
- **Seeds**: meta-training seeds handed in; `1 of 3` is less than the protocol asks for.
  **Parameters** are meta-trained numbers; **state size** counts the numbers that the learner
  carries from one step to the next.
- `<suite>/board.csv` and `board.json` hold all of this and more: both bounds, the log loss, and in
  the JSON the whole learning curves. Accuracies there are in [0, 1].
"""

_SUBMIT = """\
## How to submit

1. Meta-train and evaluate, once for each of three seeds; every run makes a folder under `runs/`:
   `python -m baselines.gpicl --env MNIST-Proj-v0 --seed 0`
2. Look at the numbers: `icl-bench score runs/*__gpicl__*`
3. Make the submission:
   `icl-bench submit runs/*__gpicl__* --suite table2-v0 --out leaderboards/table2-v0/gpicl`
4. Check it: `icl-bench validate leaderboards/table2-v0/gpicl`
5. Build the boards anew with `icl-bench board` and open a pull request with the folder.

For a text suite, meta-train and evaluate once per setting; all these runs together make one entry:
`icl-bench submit runs/*__metaicl__* --suite metaicl-v0`. It is direct or channel, not both.

A submission holds predictions, never scores: `entry.toml` and one Parquet file per seed. The scorer
executes nothing that is handed in. Entries made for another version of an environment (another
fingerprint) or of the scorer are listed, but not ranked.
"""


def render_board(
    leaderboards: str | os.PathLike[str], out: str | os.PathLike[str] | None = None
) -> list[Path]:
    """Score everything under a folder of leaderboards and write the boards.

    Writes ``README.md`` and, for each suite, ``<suite>/board.csv`` and ``<suite>/board.json``;
    equal submissions give equal bytes.

    Args:
        leaderboards: Folder with ``<suite>/<entry>/``.
        out: Where to write; the same folder by default.

    Returns:
        The files written.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds a folder that is no suite, or a submission that is not valid.
    """
    root = Path(leaderboards)
    out = root if out is None else Path(out)
    if not root.is_dir():
        raise FileNotFoundError(f"no leaderboards at {root}: there is no such folder")
    known = [*(suite.name for suite in ALL_SUITES), replays.FOLDER]
    for path in sorted(root.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and path.name not in known:
            raise ValueError(f"{path} is no suite: {root} holds folders of {', '.join(known)}")
    scores = [_score(root / suite.name, suite) for suite in ALL_SUITES]
    texts = {"README.md": _markdown(scores)}
    for score in scores:
        if isinstance(score, TextSuiteScore):
            files = {"csv": text_board_csv(score), "json": text_board_json(score)}
        else:
            files = {"csv": board_csv(score), "json": board_json(score)}
        for kind, text in files.items():
            texts[f"{score.suite.name}/board.{kind}"] = text
    written = []
    for name, text in texts.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
        written.append(path)
    return written


def _score(folder: Path, suite: AnySuite) -> SuiteScore | TextSuiteScore:
    is_text = isinstance(suite, catalog.TextSuite)
    return score_text_suite(folder) if is_text else score_suite(folder)


def _markdown(scores: Sequence[SuiteScore | TextSuiteScore]) -> str:
    contents = "\n".join(
        f"- [{s.suite.name}](#{s.suite.name}): {s.suite.title} ({_count(len(s.entries), 'entry')})"
        for s in scores
    )
    sections = [
        text_section(score) if isinstance(score, TextSuiteScore) else _section(score)
        for score in scores
    ]
    return "\n".join([_LEGEND, TEXT_LEGEND, "## Boards\n", contents, "", *sections, _SUBMIT])


def _count(count: int, noun: str) -> str:
    return f"{count} {noun if count == 1 else noun.replace('entry', 'entries')}"


def _section(score: SuiteScore) -> str:
    """The part of README.md about one suite."""
    suite = score.suite
    short, ending = headers(suite.envs)
    ranked, extended = episode_counts(suite)
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
        columns = ["Method", "Inductive bias", *short]
        columns += ["Mean rank", "Seeds", "Parameters", "State size"]
        parts.append(markdown_table(columns, _main_rows(score), 2))
    about = [e.entry for e in score.entries]
    titles = {entry.name: entry_title(entry, about) for entry in about}
    compared = [(e, found) for e in score.entries if (found := differences(e, score.reported))]
    if compared:
        rows = [
            [titles[e.entry.name], *(_difference(found.get(env)) for env in suite.envs)]
            for e, found in compared
        ]
        parts += [
            "**Ours minus the paper's**, in percentage points, for entries with the title of a "
            "reported method. ± is our interval over tasks alone; the paper's numbers rest on a "
            "few hundred predictions too and are uncertain by several points.",
            markdown_table(["Method", *short], rows, 1),
        ]
    by_seed = [
        row
        for e in score.entries
        if not e.entry.deterministic
        for row in seed_rows(titles[e.entry.name], e.seeds, e.columns, suite.envs)
    ]
    if by_seed:
        parts += [
            "**Every meta-training seed** (accuracy in %). With three or more seeds, the last row "
            "of a method is their mean ± the 95 % t interval over seeds: what would another "
            "meta-training give?",
            markdown_table(["Method", "Seed", *short], by_seed, 2),
        ]
    larger = [e for e in score.entries if any(c.extended for c in e.columns.values())]
    if larger:
        rows = [
            [titles[e.entry.name], *(_extended(e.columns.get(env)) for env in suite.envs)]
            for e in larger
        ]
        parts += [
            f"**Larger hand-in**: {suite.extended_tasks} tasks × {suite.episodes_per_task} "
            f"episodes ({extended} instead of {ranked}), for narrower intervals; not ranked.",
            markdown_table(["Method", *short], rows, 1),
        ]
    parts += not_ranked_parts(score.not_ranked)
    return "\n\n".join(parts) + "\n"


def _code_list(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _difference(interval: Interval | None) -> str:
    return plus_minus(interval, signed(interval.mean)) if interval else DASH


def _extended(column: ColumnScore | None) -> str:
    return plus_minus(column.extended) if column and column.extended else DASH


def _main_rows(score: SuiteScore) -> list[list[str]]:
    rows, entries = [], [e.entry for e in score.entries]
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
                linked_title(e.entry, entries, e.suite, score.suite.meta_train),
                markdown_text(e.entry.inductive_bias),
                *cells,
                f"{score.mean_rank[name]:.2f}",
                seeds_text(e.entry, len(e.seeds), score.suite),
                number(e.entry.parameters),
                number(e.entry.state_size),
            ]
        )
    values = {(row.method, row.env): percent(row.accuracy) for row in score.reported}
    about = {row.method: (row.inductive_bias, row.source) for row in score.reported}
    for method, (bias, source) in about.items():
        cells = [values.get((method, env), DASH) for env in score.suite.envs]
        title = f"{markdown_text(method)} *reported*, {markdown_text(source)}"
        rows.append([title, markdown_text(bias), *cells, *[DASH] * 4])
    return rows
