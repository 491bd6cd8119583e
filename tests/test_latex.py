"""A paper's table in one command: its numbers, its bold ones, and that TeX can read it."""

import argparse
import dataclasses
import re
import shutil
from pathlib import Path

import pytest
from latex_source import check_latex
from synthetic_runs import DIGITS, SUITE, method_runs
from synthetic_text import MINI, MINI_SUITE, PARA, exact, hand_in, text_result
from synthetic_text import SUITE as TEXT_SUITE

from icl_bench.data.text import text_setting
from icl_bench.evaluation import text_metrics
from icl_bench.evaluation.protocol import evaluation_fingerprint
from icl_bench.evaluation.statistics import ranks
from icl_bench.leaderboard.cli import add_parsers
from icl_bench.leaderboard.latex import latex_table
from icl_bench.leaderboard.scoring import SuiteScore, score_suite
from icl_bench.leaderboard.submission import make_submission
from icl_bench.leaderboard.text_scoring import score_text_suite


@pytest.fixture(scope="module", autouse=True)
def few_replicates():
    patch = pytest.MonkeyPatch()
    patch.setattr(text_metrics, "NUM_REPLICATES", 300)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("boards")
    root = base / "leaderboards"

    def enter(name: str, accuracy: float, suite: str = SUITE, **fields: object) -> None:
        made = method_runs(base / "runs" / suite, name, accuracy, **fields)
        make_submission(made, root / suite / name, suite, allow_missing=True)

    enter("good", 0.9, title="Good & better", seeds=(0, 1, 2))
    enter("twin", 0.9, title="Twin_2", seeds=(3, 4, 5))
    enter("half", 0.5, title="Half", seeds=(7,), envs=(DIGITS,))
    enter("knn", 0.7, title="1-NN", deterministic=True, kind="reference", seeds=(8,))
    enter("more", 0.3, title="Pretrained", external_data="ImageNet", seeds=(9,))
    enter("vsml", 0.8, "table2-v0", title="VSML", envs=("MNIST-Proj-v0",))
    same = {task: [0.9, 0.88, 0.9, 0.89, 0.9] for task in text_setting("NonParaToPara").test}
    hand_in(root, "para", exact(PARA, same), title="MetaICL")
    hand_in(root, "poor", text_result(PARA, 0.4), title="Poor")
    hand_in(root, "mini", text_result(MINI, 0.6), title="Mini", suite=MINI_SUITE)
    part = text_result(MINI, 0.6, tasks=text_setting("TextMini").test[:3])
    hand_in(root, "part", part, title="Part", suite=MINI_SUITE)
    shutil.rmtree(root / "runs")
    return root


@pytest.fixture(scope="module")
def score(root: Path) -> SuiteScore:
    return score_suite(root / SUITE)


def rows_of(text: str) -> dict[str, list[str]]:
    """First cell → the others, of all rows of a text; marks are left out."""
    rows = [line[:-2].strip().split(" & ") for line in text.splitlines() if line.endswith(r"\\")]
    return {row[0].split(r"\textsuper")[0]: [cell.strip() for cell in row[1:]] for row in rows}


def test_numbers_and_bold_ones_are_those_of_the_board(score):
    text = latex_table(score)
    check_latex(text)
    rows = rows_of(text)
    assert rows["Method"] == ["Inductive bias", "Digits", "Random", "Seeds"]
    for entry in score.entries:
        row = rows[entry.entry.title.replace("&", r"\&").replace("_", r"\_")]
        for env, cell in zip(score.suite.envs, row[1:3], strict=True):
            column = entry.columns.get(env)
            if column is None:
                assert cell == "--"
                continue
            mean, half = 100 * column.accuracy.mean, 100 * column.accuracy.half_width
            bold = score.ranks[env][entry.entry.name] == 1
            shown = rf"\textbf{{{mean:.1f}}}" if bold else f"{mean:.1f}"
            assert cell == rf"{shown} {{\scriptsize$\pm$\,{half:.1f}}}"
    assert len(re.findall(r"\\textbf", text)) == 4
    assert (rows["Half"][-1], rows["1-NN"][-1]) == ("1 of 3", "--")


def test_marks_disclose_in_the_table(score):
    text = latex_table(score)
    found = re.findall(r"\\textsuperscript\{(\d+)\}([\w ]+)[,.]", text)
    numbers = {mark: number for number, mark in found}
    assert {"reference", "external data"} <= set(numbers)
    assert len(set(numbers.values())) == len(numbers)
    for title, mark in (("1-NN", "reference"), ("Pretrained", "external data")):
        (shown,) = re.findall(rf"^{title}\\textsuperscript\{{([\d,]+)\}}", text, flags=re.MULTILINE)
        assert numbers[mark] in shown.split(",")


def test_equal_titles_are_told_apart(score):
    first, *others = score.entries
    renamed = dataclasses.replace(first.entry, title="Half")
    first = dataclasses.replace(first, entry=renamed)
    text = latex_table(dataclasses.replace(score, entries=(first, *others)), ["good"])
    assert list(rows_of(text))[-1] == "Half (good)"  # as on the board, which has the other one


def test_some_entries_are_compared_among_themselves(score):
    text = latex_table(score, ["knn", "half"])
    check_latex(text)
    rows = rows_of(text)
    assert "Twin" not in text
    assert rows["1-NN"][1].startswith(r"\textbf")  # third of the whole board
    half, knn = (next(e for e in score.entries if e.entry.name == n) for n in ("half", "knn"))
    columns = [e.columns[DIGITS] for e in (half, knn)]
    assert ranks([c.correct for c in columns], columns[0].task) == [2, 1]
    assert not rows["Half"][1].startswith(r"\textbf")
    with pytest.raises(ValueError, match=r"no ranked entry 'x' on digits-v0: there are good, tw"):
        latex_table(score, ["good", "x"])


def test_reported_rows_stand_below_a_rule(root):
    text = latex_table(score_suite(root / "table2-v0"))
    check_latex(text)
    ours, reported = text.split(r"\multicolumn{9}{l}{\emph{Reported: Kirsch et al. 2022, Table 2}}")
    assert ours.rstrip().endswith(r"\midrule")
    assert rows_of(ours)["VSML"][1].startswith(r"\textbf")
    rows = rows_of(reported.partition(r"\\")[2])
    assert list(rows) == ["SGD", "MAML", "VSML", "LSTM", "GPICL Transformer"]
    assert rows["SGD"][1:] == ["70.3", "50.8", "37.9", "100.0", "14.8", "10.2", "--"]
    assert "textbf" not in reported


def test_a_comment_says_what_it_was_made_from(score):
    text = latex_table(score)
    comment = [line for line in text.splitlines() if line.startswith("% ")]
    assert "scorer version 1" in comment[0]
    assert f"% {DIGITS} {evaluation_fingerprint(DIGITS)}" in comment
    for words in (r"95\,\% interval over tasks", "significantly better", "step 99", r"\caption{"):
        assert words in text
    assert latex_table(score) == text


def test_text_suites_have_a_table_for_each_domain(root):
    text = latex_table(score_text_suite(root / TEXT_SUITE))
    check_latex(text)
    whole, new = text.split(r"\end{table*}")[:2]
    assert r"\multicolumn{2}{c}{NonParaToPara (4)}" in whole
    assert r"\multicolumn{2}{c}{NonParaToPara (1)}" in new
    row = next(line for line in whole.splitlines() if line.startswith("MetaICL"))
    assert re.search(
        r"\\textbf\{\d\d\.\d\} \{\\scriptsize\$\\pm\$\\,\d+\.\d\} & \d\d\.\d \\\\$", row
    )
    poor = next(line for line in whole.splitlines() if line.startswith("Poor"))
    assert "textbf" not in poor
    # One task: neither interval nor comparison.
    row = next(line for line in new.splitlines() if line.startswith("MetaICL"))
    assert re.search(r"& -- & \d\d\.\d & \d\d\.\d \\\\$", row)
    assert "The papers average over more tasks in ClassToClass," in whole
    assert "Reported: Sinha et al. 2024, Table 3b" in whole
    assert "Reported: Sinha et al. 2024, Table 2b" in new


def test_hand_ins_in_part_stay_out(root):
    text = latex_table(score_text_suite(root / MINI_SUITE))
    check_latex(text)
    assert re.search(r"^Mini\S* & direct & ", text, flags=re.MULTILINE)
    assert "Part" not in text
    with pytest.raises(ValueError, match="no ranked entry 'part'"):
        latex_table(score_text_suite(root / MINI_SUITE), ["part"])


def test_the_command(root, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_parsers(parser.add_subparsers(required=True))

    def command(*args: object) -> str:
        parsed = parser.parse_args(["latex", *map(str, args)])
        assert parsed.run(parsed) == 0
        return capsys.readouterr().out

    shown = command(SUITE, "--root", root)
    assert shown == latex_table(score_suite(root / SUITE))
    out = tmp_path / "new" / "table.tex"
    some = command(SUITE, "--root", root, "--entries", "good", "knn", "--out", out)
    assert some == f"{out}\n"
    assert out.read_text() == latex_table(score_suite(root / SUITE), ["good", "knn"])
    with pytest.raises(ValueError, match="nothing to show: table2-proj14-v0 has no entries yet"):
        command("table2-proj14-v0", "--root", root)
    with pytest.raises(ValueError, match="unknown suite 'x'"):
        command("x", "--root", root)
    with pytest.raises(FileNotFoundError, match="no leaderboards at"):
        command(SUITE, "--root", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (r"\input{x}", "unknown command"),
        (r"a % b \emph{" + "\n", None),
        (r"\emph{a", "left open"),
        ("a}", "not opened"),
        ("a_b", "a bare _"),
        ("$x", "left open"),
        ("a^^5c", r"a bare \^"),
        (r"\\ [5cm]", "an option"),
        ("ü", "beyond ASCII"),
        (r"\end{tabular}", "ends nothing"),
        (r"\begin{tabular}{ll} a & b & c \\ \end{tabular}", "3 cells in 2 columns"),
        (r"\begin{tabular}{ll} a & \% b \\ \end{tabular}", None),
    ],
)
def test_the_reader_of_these_tests_finds_what_is_wrong(source, told):
    if told is None:
        check_latex(source)
        return
    with pytest.raises(ValueError, match=told):
        check_latex(source)
