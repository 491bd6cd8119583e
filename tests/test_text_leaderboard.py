import argparse
import csv
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic_text import (
    MINI,
    MINI_CHANNEL,
    MINI_SUITE,
    PARA,
    SUITE,
    exact,
    hand_in,
    text_result,
    text_runs,
)

import icl_bench
from icl_bench.data.text import text_setting
from icl_bench.evaluation import text_metrics
from icl_bench.evaluation.text_protocol import (
    scorable_tasks,
    text_fingerprint,
)
from icl_bench.leaderboard.cli import add_parsers
from icl_bench.leaderboard.formatting import markdown_text
from icl_bench.leaderboard.render import render_board
from icl_bench.leaderboard.submission import validate
from icl_bench.leaderboard.text_export import TEXT_CSV_COLUMNS
from icl_bench.leaderboard.text_scoring import reported_text, score_text_suite

TASKS = text_setting("TextMini").test


@pytest.fixture(scope="module", autouse=True)
def few_replicates():
    """Boards and what they are compared with alike: time is better spent elsewhere."""
    patch = pytest.MonkeyPatch()
    patch.setattr(text_metrics, "NUM_REPLICATES", 500)
    yield
    patch.undo()


# --- scoring


def test_a_score_is_what_the_hand_computes(tmp_path):
    """Two meta-training seeds on TextMini; the accuracies of multi-choice tasks are in the hand."""
    setting = text_setting("TextMini")
    shares = {task: [0.5, 0.7, 0.9, 0.6, 0.8] for task in setting.test}
    first = exact(MINI, shares | {setting.test[0]: [1.0] * 5})
    second = exact(MINI, {task: [0.2] * 5 for task in setting.test})
    hand_in(tmp_path, "two", first, second, suite=MINI_SUITE)
    score = score_text_suite(tmp_path / MINI_SUITE)
    column = score.entries["two"].columns["all"]["TextMini"]
    means, worsts = [], []
    for result in (first, second):
        values = []
        for task in result.tasks:
            metric = text_metrics.macro_f1 if task.metric == "macro-f1" else text_metrics.accuracy
            values.append([metric(task.answer, row) for row in task.prediction])
            if task.metric == "accuracy" and result is first and task.task != setting.test[0]:
                assert values[-1] == [0.5, 0.7, 0.9, 0.6, 0.8]
        means.append(np.mean(values))
        worsts.append(np.mean(np.min(values, axis=1)))
    assert column.seed_means == pytest.approx(means)
    assert column.seed_worsts == pytest.approx(worsts)
    assert column.mean.mean == pytest.approx(np.mean(means))
    assert column.worst.mean == pytest.approx(np.mean(worsts))
    assert column.over_seeds is None
    assert str(column.coverage) == "33 of 33 tasks, 3,300 of 3,300 queries"
    new = score.entries["two"].columns["new"]["TextMini"]
    assert str(new.coverage) == "6 of 6 tasks, 600 of 600 queries"
    assert new.mean.mean != column.mean.mean


def test_the_interval_of_one_seed_is_that_of_its_summary(tmp_path):
    result = text_result()
    hand_in(tmp_path, "one", result, suite=MINI_SUITE)
    entry = score_text_suite(tmp_path / MINI_SUITE).entries["one"]
    for domain in ("all", "new"):
        column = entry.columns[domain]["TextMini"]
        assert (column.mean, column.worst) == (
            result.summary(domain).mean,
            result.summary(domain).worst,
        )


def test_ranks_count_the_significantly_better_and_equals_share_one(tmp_path):
    tasks = scorable_tasks("NonParaToPara")
    good = exact(PARA, {task: [0.9, 0.88, 0.9, 0.89, 0.9] for task in tasks})
    channel = dataclasses.replace(good, env="NonParaToPara-Channel-v0")
    near = exact(PARA, {t: [0.9 + d] * 5 for t, d in zip(tasks, (0.05, -0.06, 0, 0), strict=True)})
    poor = exact(PARA, {task: [0.3, 0.4, 0.3, 0.3, 0.3] for task in tasks})
    hand_in(tmp_path, "good", good, title="Zebra")
    hand_in(tmp_path, "channel", channel, title="Aardvark")
    hand_in(tmp_path, "near", near, title="Mole")
    hand_in(tmp_path, "poor", poor, title="Poor")
    score = score_text_suite(tmp_path / SUITE)
    expected = {"good": 1, "channel": 1, "near": 1, "poor": 4}
    assert dict(score.ranks["all"]["NonParaToPara"]) == expected
    assert score.ranks["all"]["HRtoLR"] == {}
    assert [e.entry.title for e in score.rows("all")] == ["Aardvark", "Mole", "Zebra", "Poor"]
    assert score.entries["channel"].view == "channel"
    # One unseen-domain task: numbers without interval and rank.
    assert score.ranks["new"]["NonParaToPara"] == {}
    column = score.entries["good"].columns["new"]["NonParaToPara"]
    assert np.isnan([column.mean.low, column.mean.high, column.worst.low]).all()
    assert 0.8 < column.mean.mean < 0.95
    assert score.mean_rank("new", "good") is None
    assert [e.entry.title for e in score.rows("new")] == ["Aardvark", "Mole", "Poor", "Zebra"]


def test_comparisons_are_paired(tmp_path):
    """Tasks differ far more than the two methods: only pairing can tell them apart."""
    tasks = scorable_tasks("NonParaToPara")
    hard = dict(zip(tasks, (0.2, 0.9, 0.4, 0.7), strict=True))
    hand_in(tmp_path, "a", exact(PARA, {t: [v + 0.05] * 5 for t, v in hard.items()}))
    hand_in(tmp_path, "b", exact(PARA, {t: [v] * 5 for t, v in hard.items()}))
    score = score_text_suite(tmp_path / SUITE)
    a, b = (score.entries[name].columns["all"]["NonParaToPara"].mean for name in "ab")
    assert a.low < b.high  # the intervals overlap
    assert score.ranks["all"]["NonParaToPara"] == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("asked", "told", "ranked_new"),
    [
        ({"tasks": TASKS[:-1]}, "32 of 33 tasks, 3,200 of 3,300 queries", False),
        ({"queries": {TASKS[0]: range(99)}}, "33 of 33 tasks, 3,299 of 3,300 queries", True),
    ],
)
def test_partial_columns_are_shown_and_never_ranked(tmp_path, asked, told, ranked_new):
    """However good; a domain that is whole may be ranked all the same."""
    assert TASKS[-1] in text_setting("TextMini").unseen_domain
    assert TASKS[0] not in text_setting("TextMini").unseen_domain
    hand_in(tmp_path, "part", text_result(accuracy=1.0, **asked), suite=MINI_SUITE)
    hand_in(tmp_path, "whole", text_result(accuracy=0.3), suite=MINI_SUITE)
    score = score_text_suite(tmp_path / MINI_SUITE)
    assert score.ranks["all"]["TextMini"] == {"whole": 1}
    part = score.entries["part"].columns
    assert part["all"]["TextMini"].mean.mean == 1.0
    assert str(part["all"]["TextMini"].coverage) == told
    new = score.ranks["new"]["TextMini"]
    assert new == ({"part": 1, "whole": 2} if ranked_new else {"whole": 1})
    assert [e.entry.name for e in score.rows("all")] == ["whole"]


def test_reported_numbers_are_those_of_the_papers():
    rows = reported_text(SUITE)
    by_key = {(r.method, r.view, r.domain, r.training_data, r.setting, r.source): r for r in rows}
    assert len(by_key) == len(rows) == 315
    min_et_al = "Min et al. 2022, public code, GPT-2 Large"
    row = by_key["MetaICL", "channel", "all", "complete", "NonNLItoNLI", min_et_al]
    assert (row.mean, row.worst) == (0.546, 0.519)
    key = ("MAML-2-1", "direct", "new", "complete", "NonNLItoNLI", "Sinha et al. 2024, Table 2a")
    assert (by_key[key].mean, by_key[key].worst) == (0.8061, 0.7711)
    assert {r.setting for r in rows} == set(icl_bench.text_suite(SUITE).settings)
    assert {r.view for r in rows} == {"direct", "channel"}
    assert {r.training_data for r in rows} == {"none", "complete", "limited"}
    assert all(0 < r.mean < 1 and (r.worst is None or r.worst <= r.mean) for r in rows)
    assert reported_text(MINI_SUITE) == ()


# --- boards


HOSTILE = "<img src=x onerror=alert(1)> | [x](http://evil) *b*"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Text boards with entries of every kind."""
    root = tmp_path_factory.mktemp("boards") / "leaderboards"
    mini = {"suite": MINI_SUITE}
    hand_in(root, "good", *(text_result(accuracy=0.9, seed=s) for s in range(3)), title="G", **mini)
    hand_in(root, "twin", text_result(accuracy=0.9, seed=3), title="G", meta_train=None, **mini)
    hand_in(root, "bad", text_result(MINI_CHANNEL, 0.3), title=HOSTILE, kind="reference", **mini)
    few = text_result(tasks=TASKS[:2], queries=20, accuracy=1.0)
    hand_in(root, "few", few, title="Few", external_data="GPT-2 weights", **mini)
    old = hand_in(root, "old", text_result(seed=9), title="Old", **mini)
    toml = old / "entry.toml"
    toml.write_text(toml.read_text().replace("scorer_version = 1", "scorer_version = 9"))
    hand_in(root, "para", text_result(PARA, 0.7), title="MetaICL")
    shutil.rmtree(root / "runs")
    return root


@pytest.fixture(scope="module")
def board(root, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    render_board(root, out)
    return out


def section(board: Path, suite: str) -> str:
    text = (board / "README.md").read_text(encoding="utf-8")
    return text.split(f"\n## {suite}\n")[1].split("\n## ")[0]


def tables(text: str) -> list[list[list[str]]]:
    """The cells of the Markdown tables of a text, without the lines below the headers."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            if not line.startswith("|:"):
                found[-1].append([c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif found[-1]:
            found.append([])
    return [rows for rows in found if rows]


def test_tables_of_a_text_board(board):
    whole, new, partial, about, seeds, unranked = tables(section(board, MINI_SUITE))
    heads = ("Mean rank", "Win rate", "Pairs", "Seeds")
    assert whole[0] == ["Method", "View", "TextMini (33)", *heads]
    assert new[0][2] == "TextMini (6)"
    good, twin, bad = whole[1:]
    assert good[0] == "[G (good)](textmini-v0/good/entry.toml)"
    assert re.fullmatch(r"8\d\.\d ± \d\.\d / 8\d\.\d \(1\)", good[2]), good
    assert good[3::2] == ["1.00", "+1 −0 =1"]
    assert good[6] == "3"
    assert {good[4], twin[4]} in ({"100 %", "50 %"}, {"75 %"})
    assert twin[2].endswith(" (1)")
    assert bad[1:2] + bad[3:] == ["channel", "3.00", "0 %", "+0 −2 =0", "1"]
    assert [row[0] for row in about[1:]] == [
        *(markdown_text(title) for title in (HOSTILE, "Few")),
        *("G (good)", "G (twin)"),
    ]
    assert about[2][3] == "GPT-2 weights"
    assert bad[0].startswith(r"[\<img src=x onerror=alert\(1\)\> \| \[x\]\(http\://evil\) \*b\*](")
    assert bad[0].endswith("*reference*")
    assert len(new) == 4
    assert [row[2:4] + row[5:] for row in partial[1:]] == [
        ["TextMini", "all test tasks", "2 of 33 tasks, 40 of 3,300 queries"]
    ]
    assert partial[1][0] == "[Few](textmini-v0/few/entry.toml) *external data*"
    assert partial[1][4].startswith("100.0")
    assert "(1)" not in partial[1][4]
    assert [row[:2] for row in seeds[1:]] == [
        ["G (good)", s] for s in ("0", "1", "2", "mean ± over seeds")
    ]
    assert unranked[1:] == [["Old", "old", "scorer version 9, this is version 1"]]


def test_paper_rows_and_missing_tasks_of_metaicl(board):
    text = section(board, SUITE)
    assert "no frozen answers of `amazon_polarity` (ClassToClass, NonClassToClass)" in text
    assert "QAtoQA 19 of 22" in text
    whole, new, papers, about = tables(text)
    assert papers[1][:4] == [
        "MetaICL",
        "direct",
        "all test tasks",
        "Min et al. 2022, public code, GPT-2 Large",
    ]
    assert len(papers) == 1 + 3 * 3  # two papers on all tasks, one on unseen domains
    assert [row[0] for row in about[1:]] == ["MetaICL"]
    assert whole[0][2:5] == ["HRtoLR (26)", "ClassToClass (19)", "NonClassToClass (19)"]
    ours, *papers = whole[1:]
    assert ours[2:8] == ["–"] * 6
    assert ours[8].endswith("(1)")
    assert len(papers) == 7 + 10 + 6
    assert papers[5][:4] == [
        "MetaICL *reported*, Min et al. 2022, public code, GPT-2 Large",
        *("direct", "43.3 / 41.7", "43.4 / 39.9"),
    ]
    assert papers[0][2] == "34.8"  # no worst
    assert not any("(" in cell for row in papers for cell in row[2:])
    assert "limited training data *reported*" in papers[-1][0]
    assert re.fullmatch(r"\d\d\.\d / \d\d\.\d", new[1][8])  # one task: no interval, no rank
    assert new[1][9] == "–"
    assert len(new[2:]) == 10 + 6 + 6


def test_legend_explains_whatever_is_printed(board):
    text = (board / "README.md").read_text(encoding="utf-8")
    legend = text.split("## How to read a text board")[1].split("\n## ")[0]
    words = (
        "±",
        "(Rank)",
        "Win rate",
        "*unseen-domain*",
        "worst",
        "Partial",
        "*reported*",
        "channel",
    )
    for word in words:
        assert word in legend, word


def test_csv_and_json_hold_every_number(board):
    text = (board / MINI_SUITE / "board.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert tuple(rows[0]) == TEXT_CSV_COLUMNS
    good = [row for row in rows if row["entry"] == "good"]
    assert [(row["domain"], row["tasks"]) for row in good] == [("all", "33"), ("new", "6")]
    for row in good:
        assert float(row["mean_low"]) <= float(row["mean"]) <= float(row["mean_high"])
        assert float(row["worst_low"]) <= float(row["worst"]) < float(row["mean"])
        seeds = [float(value) for value in row["seed_means"].split()]
        assert sum(seeds) / 3 == pytest.approx(float(row["mean"]), abs=1e-5)
    (few,) = [row for row in rows if row["entry"] == "few"]
    assert (few["rank"], few["queries"], few["all_queries"]) == ("", "40", "3300")
    document = json.loads((board / MINI_SUITE / "board.json").read_text())
    entry = next(e for e in document["entries"] if e["name"] == "good")
    assert entry["columns"]["all"]["TextMini"]["mean"][0] == float(good[0]["mean"])
    assert entry["columns"]["all"]["TextMini"]["rank"] == 1
    assert next(e for e in document["entries"] if e["name"] == "bad")["title"] == HOSTILE
    assert document["envs"][MINI] == text_fingerprint(MINI)
    papers = json.loads((board / SUITE / "board.json").read_text())
    assert len(papers["reported"]) == 315
    assert papers["entries"][0]["columns"]["new"]["NonParaToPara"]["mean"][1:] == [None, None]
    assert papers["settings"]["ClassToClass"]["tasks_without_answers"] == ["amazon_polarity"]


def test_boards_are_byte_identical_in_another_process(root, board, tmp_path):
    copy = tmp_path / "copy"
    for path in sorted(root.glob("*/*"), reverse=True):
        shutil.copytree(path, copy / path.relative_to(root))
    code = (
        "import sys; from icl_bench.evaluation import text_metrics; "
        "from icl_bench.leaderboard.render import render_board; "
        "text_metrics.NUM_REPLICATES = 500; render_board(sys.argv[1], sys.argv[2])"
    )
    subprocess.run(
        [sys.executable, "-c", code, copy, tmp_path / "out"],
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "3", "TZ": "Asia/Tokyo", "OMP_NUM_THREADS": "1"},
    )
    for name in (p.relative_to(board) for p in board.rglob("*.*")):
        assert (tmp_path / "out" / name).read_bytes() == (board / name).read_bytes(), name


def test_an_entry_in_the_folder_of_another_suite_is_refused(root, tmp_path):
    shutil.copytree(root / SUITE / "para", tmp_path / MINI_SUITE / "para")
    told = f"belongs to {SUITE}: move it from {MINI_SUITE} to that folder"
    assert told in validate(tmp_path / MINI_SUITE / "para")
    with pytest.raises(ValueError, match=f"belongs to {SUITE}"):
        render_board(tmp_path, tmp_path / "out")


# --- the command line


def command(*args: object) -> int:
    parser = argparse.ArgumentParser()
    add_parsers(parser.add_subparsers(required=True))
    parsed = parser.parse_args([str(arg) for arg in args])
    return parsed.run(parsed)


def test_from_runs_to_the_board(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = text_runs(tmp_path / "runs", seeds=(0, 1), title="MetaICL")
    assert command("score", *runs) == 0
    shown = capsys.readouterr().out
    whole, new = [line for line in shown.splitlines() if line.startswith("MetaICL")]
    assert re.fullmatch(r"MetaICL\s+direct\s+\d\d\.\d ± \d\.\d / \d\d\.\d", whole)
    assert whole != new
    assert command("submit", *runs, "--suite", MINI_SUITE) == 0
    entry = Path("leaderboards") / MINI_SUITE / "metaicl"
    assert f"{entry}: made, and valid" in capsys.readouterr().out
    assert command("validate", entry) == 0
    assert command("score", entry) == 0
    assert capsys.readouterr().out == f"{entry}: valid\n{shown}"
    assert command("board") == 0
    assert command("board", "--check") == 0
    cell = whole.split("direct")[1].strip()
    assert f"| {cell} (1) |" in Path("leaderboards/README.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="holds results on text: a query has no learning curve"):
        command("plot", *runs, "--out", "curves.png")


def test_partial_hand_ins_are_told(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = text_runs(tmp_path / "runs", seeds=(0,), asked={"queries": 5})
    assert command("submit", *runs, "--suite", MINI_SUITE) == 0
    told = f"{MINI}: 33 of 33 tasks, 165 of 3,300 queries: shown, but not ranked"
    assert told in capsys.readouterr().out
