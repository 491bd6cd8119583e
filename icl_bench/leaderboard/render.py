"""Boards: Markdown, CSV, JSON and a web page, the same bytes for the same submissions."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from icl_bench import catalog
from icl_bench.data.cache import atomic_path
from icl_bench.leaderboard import cards, replays
from icl_bench.leaderboard.comparison import text_pairs, vector_pairs
from icl_bench.leaderboard.export import board_csv, board_json, curves_csv, papers_csv
from icl_bench.leaderboard.legend import INTRODUCTION, LEGEND, SUBMIT, TEXT_LEGEND
from icl_bench.leaderboard.page import page_html
from icl_bench.leaderboard.scoring import SuiteScore, score_suite
from icl_bench.leaderboard.suites import ALL_SUITES, AnySuite
from icl_bench.leaderboard.text_columns import DOMAINS
from icl_bench.leaderboard.text_export import text_board_csv, text_board_json, text_papers_csv
from icl_bench.leaderboard.text_render import text_section
from icl_bench.leaderboard.text_scoring import TextSuiteScore, score_text_suite
from icl_bench.leaderboard.vector_render import vector_section

AnySuiteScore: TypeAlias = SuiteScore | TextSuiteScore


def render_board(
    leaderboards: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    use_cache: bool = True,
) -> list[Path]:
    """Score everything under a folder of leaderboards and write the boards.

    Writes ``README.md``, ``index.html``, ``cards/README.md`` and, for each suite,
    ``<suite>/board.csv``, ``<suite>/board.json``, ``<suite>/curves.csv`` (not of text) and, where
    papers report numbers, ``<suite>/papers.csv``; equal submissions give equal bytes.

    Args:
        leaderboards: Folder with ``<suite>/<entry>/``.
        out: Where to write; the same folder by default.
        use_cache: Take scores of entries that have not changed from the cache, see ``score_cache``.

    Returns:
        The files written.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds an unknown folder, or a submission that is not valid.
    """
    root = Path(leaderboards)
    out = root if out is None else Path(out)
    if not root.is_dir():
        raise FileNotFoundError(f"no leaderboards at {root}: there is no such folder")
    known = [*(suite.name for suite in ALL_SUITES), replays.FOLDER, cards.FOLDER]
    for path in sorted(root.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and path.name not in known:
            raise ValueError(f"{path} is no suite: {root} holds folders of {', '.join(known)}")
    scores = [score_any_suite(root, suite, use_cache) for suite in ALL_SUITES]
    sections: list[str] = []
    texts: dict[str, str] = {}
    for score in scores:
        section, files = _text(score) if isinstance(score, TextSuiteScore) else _vector(score)
        sections.append(section)
        texts |= {f"{score.suite.name}/{name}": text for name, text in files.items()}
    texts = {
        "README.md": _markdown(scores, sections),
        "index.html": page_html(scores),
        f"{cards.FOLDER}/README.md": cards.cards_markdown(scores, root / cards.FOLDER),
    } | texts
    written = []
    for name, text in texts.items():
        path = out / name
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
        written.append(path)
    return written


def score_any_suite(root: Path, suite: AnySuite, use_cache: bool = True) -> AnySuiteScore:
    """Score the entries of a suite below a folder of leaderboards.

    Raises:
        ValueError: If an entry is not valid.
    """
    folder = root / suite.name
    score = score_text_suite if isinstance(suite, catalog.TextSuite) else score_suite
    return score(folder, use_cache=use_cache)


def _vector(score: SuiteScore) -> tuple[str, dict[str, str]]:
    """The section of a suite, and its files by name."""
    pairs = vector_pairs(score)  # most of the work of a large board: once for all of them
    files = {
        "board.csv": board_csv(score, pairs),
        "board.json": board_json(score, pairs),
        "curves.csv": curves_csv(score),
    }
    if score.reported:
        files["papers.csv"] = papers_csv(score)
    return vector_section(score, pairs), files


def _text(score: TextSuiteScore) -> tuple[str, dict[str, str]]:
    pairs = {domain: text_pairs(score, domain) for domain in DOMAINS}
    files = {
        "board.csv": text_board_csv(score, pairs),
        "board.json": text_board_json(score, pairs),
    }
    if score.reported:
        files["papers.csv"] = text_papers_csv(score)
    return text_section(score, pairs), files


def _markdown(scores: Sequence[AnySuiteScore], sections: Sequence[str]) -> str:
    contents = "\n".join(
        f"- [{s.suite.name}](#{s.suite.name}): {s.suite.title} ({_count(len(s.entries))})"
        for s in scores
    )
    head = [INTRODUCTION, "## Boards\n", contents, "", LEGEND, TEXT_LEGEND]
    return "\n".join([*head, *sections, SUBMIT])


def _count(count: int) -> str:
    return "1 entry" if count == 1 else f"{count} entries"
