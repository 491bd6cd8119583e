"""What strangers write stays text: in Markdown, CSV, JSON, LaTeX and on a terminal."""

import csv
import io
import itertools
import json
import re
import shutil
import unicodedata
from pathlib import Path

import pytest
from latex_source import check_latex
from synthetic_runs import ENVS, SUITE, method_runs
from synthetic_text import MINI_SUITE, hand_in, text_result

from icl_bench.evaluation import text_metrics
from icl_bench.leaderboard.formatting import clean_text, csv_text, markdown_text, plain_table
from icl_bench.leaderboard.latex import latex_table, latex_text
from icl_bench.leaderboard.render import render_board
from icl_bench.leaderboard.schema import CHECKS, HIDDEN, value_problems
from icl_bench.leaderboard.scoring import score_suite
from icl_bench.leaderboard.submission import make_submission
from icl_bench.leaderboard.text_scoring import score_text_suite

# A board refuses those with hidden characters at the door; escapes must hold without it.
HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</script><svg/onload=alert(1)>",
    "</details><h1>x</h1>",
    "a | b || c \\| d",
    "[x](javascript:alert(1))",
    "![x](https://evil.example/x.png)",
    "https://evil.example www.evil.example a@b.example",
    "*b* _i_ `c` ~~d~~ # e\\",
    "&lt;b&gt; &#60; &amp",
    '=HYPERLINK("http://evil","x")',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1)",
    "＝1+1",
    "\t=1",
    "\u200b =1",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J",
    "abc\u202egnp.exe \u2066x\u2069",
    "ze\u200bro\u200d\ufeffwidth",
    "line\nbreak\r\nand\u2028more\x85",
    "nul\x00 bell\x07 del\x7f back\x08",
    r"\input{/etc/passwd} \write18{ls} \def\x{",
    r"100 % $x^2$ #1 a_b a~b {c} }{ \\[5cm] ",
    "^^5cinput ^^M \\end{tabular}",
    "[5cm] *{9}x",
    "quotes \" ' ` `` -- --- ?` !`",
    "Gödel Čapek Łukasz Ångström Øre naïve ß œ ő ę",
    "漢字 кириллица ελληνικά 😀 ﷽ é́́",
    "W" * 120,
    "'" * 3 + '"' * 3 + "\\",
    "$(rm -rf ~) ; `id` && %PATH% ${HOME}",
)
SHOWN = tuple(text for text in HOSTILE if not value_problems({"title": text}, CHECKS))


@pytest.mark.parametrize("text", HOSTILE)
def test_cleaned_text_is_one_line_that_steers_nothing(text):
    cleaned = clean_text(text)
    assert not {unicodedata.category(c) for c in cleaned} & HIDDEN
    assert cleaned == cleaned.strip()
    assert clean_text(cleaned) == cleaned


def test_what_cleaning_leaves():
    assert clean_text("a\u202eb\u200bc\x00d\x1b[0m\ne\u2028f \t g") == "abcd[0m e f g"


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_has_no_markup_of_theirs(text):
    escaped = markdown_text(text)
    assert re.sub(r"\\(.)", r"\1", escaped) == clean_text(text)  # nothing is lost
    for mark in "<>|[]()*_`~&#@:!":
        assert not re.search(rf"(?<!\\)(?:\\\\)*{re.escape(mark)}", escaped), (mark, escaped)
    assert "www." not in escaped


@pytest.mark.parametrize("text", HOSTILE)
def test_csv_has_no_formula_and_reads_back(text):
    escaped = csv_text(text)
    assert escaped[:1] not in set("=+-@＝＋－＠\t\r")
    assert escaped.removeprefix("'") == clean_text(text).removeprefix("'")
    line = io.StringIO()
    csv.writer(line).writerow(["a", escaped, "b"])
    assert next(csv.reader([line.getvalue()])) == ["a", escaped, "b"]


def test_plain_text_is_no_formula():
    assert csv_text("a=1") == "a=1"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_terminal_gets_no_control_characters(text):
    table = plain_table(["method", text], [[text, "1.0"]])
    assert not [c for c in table if c != "\n" and unicodedata.category(c) in HIDDEN]
    assert len(table.splitlines()) == 3


@pytest.mark.parametrize("text", HOSTILE)
def test_latex_runs_nothing_and_balances(text):
    escaped = latex_text(text)
    assert escaped.isascii()
    table = "\n".join(
        [
            r"\begin{tabular}{ll}",
            rf"{escaped} & {escaped} \\",
            rf"{escaped} & \emph{{{escaped}}} \\",
            r"\end{tabular}",
        ]
    )
    check_latex(table)


def test_latex_shows_what_was_written():
    assert latex_text("Meta-SGD (50 %, k_1)") == r"Meta-SGD (50 \%, k\_1)"
    assert latex_text("a---b ''c''") == "a-{}-{}-b '{}'c'{}'"
    assert latex_text("Gödel Č Ł ± ρ") == r"G\"{o}del \v{C} \L{} $\pm$ ?"
    assert latex_text("G\u006f\u0308del") == latex_text("Gödel")


# Titles of entries of vectors, then of entries of text; each other field has other ones of them.
VECTORS, TEXTS = SHOWN[:6], SHOWN[6:10]


def said(i: int) -> dict[str, str]:
    """Fields of the i-th entry."""
    fields = ("title", "inductive_bias", "external_data", "hardware", "authors", "code")
    return {field: SHOWN[(i + 4 * n) % len(SHOWN)] for n, field in enumerate(fields)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Boards of vectors and of text on which every field is hostile."""
    root = tmp_path_factory.mktemp("boards") / "leaderboards"
    for i in range(len(VECTORS)):
        made = method_runs(root / "runs", f"v{i}", 0.5, seeds=(i,), envs=ENVS[:1], **said(i))
        make_submission(made, root / SUITE / f"v{i}", SUITE, allow_missing=True)
    for i in range(len(VECTORS), len(VECTORS) + len(TEXTS)):
        result = text_result(tasks=("mini-keys-9", "mini-keys-10"), queries=20, seed=i)
        hand_in(root, f"t{i}", result, suite=MINI_SUITE, **said(i))
    shutil.rmtree(root / "runs")
    return root


@pytest.fixture(scope="module")
def board(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    patch = pytest.MonkeyPatch()
    patch.setattr(text_metrics, "NUM_REPLICATES", 200)
    render_board(root, out)
    patch.undo()
    return out


def test_tables_of_a_hostile_board_are_whole(board):
    """Rows have as many cells as their header: no text opens a cell, a line or a tag."""
    text = (board / "README.md").read_text(encoding="utf-8")
    columns = 0
    for line in text.splitlines():
        found = len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) if line.startswith("|") else 0
        assert not columns or not found or found == columns, line
        columns = found
    tags = re.findall(r"(?<!\\)<[^>\n]*>", re.sub(r"(?<!\\)`[^`\n]*`", "", text))
    assert set(tags) == {"<details>", "<summary>", "</summary>", "</details>"}
    assert tags.count("<details>") == tags.count("</details>")
    for i, field in itertools.product(range(10), ("title", "external_data", "hardware")):
        assert markdown_text(said(i)[field]) in text


@pytest.mark.parametrize(("suite", "titles"), [(SUITE, VECTORS), (MINI_SUITE, TEXTS)])
def test_files_of_a_hostile_board_read_back(board, suite, titles):
    with (board / suite / "board.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["method"].removeprefix("'") for row in rows} == set(titles)
    for row in rows:
        assert None not in row
        texts = (row["method"], row["external_data"], row.get("inductive_bias", ""))
        assert not {text[:1] for text in texts} & set("=+-@")
    contents = (board / suite / "board.json").read_text()
    assert contents.isascii()
    entries = json.loads(contents)["entries"]
    assert {entry["title"] for entry in entries} == set(titles)


def test_latex_of_a_hostile_board(root):
    check_latex(latex_table(score_suite(root / SUITE)))
    with pytest.raises(ValueError, match="nothing to show"):  # hand-ins in part
        latex_table(score_text_suite(root / MINI_SUITE))
