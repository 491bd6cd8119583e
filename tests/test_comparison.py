"""Pairs of entries, win rates, and papers beside ours."""

import csv
import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import (
    DIGITS,
    RANDOM,
    SUITE,
    entry_info,
    frozen_result,
    method_runs,
    random_correct,
    run_folder,
)
from synthetic_text import MINI, MINI_CHANNEL, MINI_SUITE, PARA, exact, hand_in, text_result
from synthetic_text import SUITE as TEXT_SUITE

from icl_bench.data.text import text_setting
from icl_bench.evaluation import text_metrics
from icl_bench.evaluation.statistics import significantly_better
from icl_bench.leaderboard.comparison import (
    Pairs,
    PairTable,
    same_tasks,
    text_outcomes,
    text_pairs,
    text_papers,
    total_pairs,
    training_data,
    vector_pairs,
    vector_papers,
)
from icl_bench.leaderboard.export import papers_csv
from icl_bench.leaderboard.scoring import score_suite
from icl_bench.leaderboard.submission import make_submission
from icl_bench.leaderboard.text_export import text_board_json, text_papers_csv
from icl_bench.leaderboard.text_render import text_section
from icl_bench.leaderboard.text_scoring import TextSuiteScore, score_text_suite


@pytest.fixture(scope="module", autouse=True)
def few_replicates():
    patch = pytest.MonkeyPatch()
    patch.setattr(text_metrics, "NUM_REPLICATES", 300)
    yield
    patch.undo()


def consistent(table: PairTable, ranks: Mapping[str, Mapping[str, int]]) -> None:
    """What holds of every table of pairs."""
    for column, row in table.items():
        assert {name: 1 + pairs.worse for name, pairs in row.items()} == dict(ranks[column])
        for pairs in row.values():
            assert pairs.better + pairs.worse + pairs.tied == len(row) - 1
            assert pairs.better <= pairs.won <= len(row) - 1 - pairs.worse
        assert sum(p.better for p in row.values()) == sum(p.worse for p in row.values())
        assert sum(p.won for p in row.values()) == len(row) * (len(row) - 1) / 2


def enter(root: Path, name: str, *correct: np.ndarray, envs=(DIGITS, RANDOM), **fields) -> None:
    results = [frozen_result(env, right) for env, right in zip(envs, correct, strict=False)]
    run = run_folder(root / "runs", results, entry_info(name, **fields))
    make_submission([run], root / SUITE / name, SUITE, allow_missing=True)


def test_pairs_of_vectors_are_the_paired_tests_one_by_one(tmp_path):
    rates = {"a": 0.8, "b": 0.74, "c": 0.6, "d": 0.79, "e": 0.3}
    for i, (name, rate) in enumerate(rates.items()):
        enter(tmp_path, name, random_correct(rate, i), random_correct(0.5, 10 + i), seed=i)
    enter(tmp_path, "same", random_correct(0.8, 0), seed=9)  # as a, on one environment
    score = score_suite(tmp_path / SUITE)
    table = vector_pairs(score)
    consistent(table, score.ranks)
    found = {e.entry.name: e.columns for e in score.entries}
    for env, row in table.items():
        for name, pairs in row.items():
            columns = {other: c[env] for other, c in found.items() if env in c and other != name}
            mine = found[name][env]
            assert pairs.better == sum(
                significantly_better(mine.correct, c.correct, mine.task) for c in columns.values()
            )
            means = [c.accuracy.mean for c in columns.values()]
            ahead = sum(mine.accuracy.mean > mean for mean in means)
            assert pairs.won == ahead + sum(mine.accuracy.mean == mean for mean in means) / 2
    assert table[DIGITS]["a"].won == 4.5  # as good as its double
    assert "same" not in table[RANDOM]
    total = total_pairs(table, "a")
    assert total == table[DIGITS]["a"] + table[RANDOM]["a"]
    assert total.better + total.worse + total.tied == 5 + 4
    assert total_pairs(table, "nobody") == Pairs()


def test_pairs_are_told_in_signs():
    assert str(Pairs(12, 3, 5, 14.5)) == "+12 −3 =5"
    assert Pairs(12, 3, 5, 14.5).win_rate == 14.5 / 20
    assert Pairs().win_rate is None


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("texts")
    tasks = text_setting("NonParaToPara").test
    whole = {"all": [0.9, 0.88, 0.9, 0.89, 0.9], "less": [0.86] * 5, "poor": [0.3] * 5}
    for name, shares in whole.items():
        hand_in(root, name, exact(PARA, dict.fromkeys(tasks, shares)), title=name)
    channel = dataclasses.replace(
        exact(PARA, dict.fromkeys(tasks, whole["all"])), env="NonParaToPara-Channel-v0"
    )
    limited = {"num_tasks": 10, "fraction": 0.1}
    about = {"meta_train_kwargs": {"fraction": 1.0}}
    hand_in(root, "metaicl", channel, title="metaicl", **about)
    hand_in(root, "few", channel, title="metaicl", meta_train_kwargs=limited)
    hand_in(root, "raw", exact(PARA, dict.fromkeys(tasks, [0.4] * 5)), title="Raw LM", **NONE)
    part = text_result(PARA, 1.0, tasks=tasks[:2])
    hand_in(root, "part", part, title="metaicl", **about)
    mini = {"suite": MINI_SUITE}
    for i, rate in enumerate((0.6, 0.62, 0.3)):
        hand_in(root, f"mini-{i}", text_result(MINI, rate, i), **mini)
    hand_in(root, "mini-double", text_result(MINI_CHANNEL, 0.6, 0), **mini)
    shutil.rmtree(root / "runs")
    return root


NONE = {"meta_train": None, "meta_train_kwargs": {}}


@pytest.fixture(scope="module")
def score(texts: Path) -> TextSuiteScore:
    return score_text_suite(texts / TEXT_SUITE)


@pytest.mark.parametrize("domain", ["all", "new"])
def test_pairs_of_texts_are_consistent_with_the_ranks(texts, score, domain):
    """With a bootstrap (33 and 6 tasks), with t intervals (4), and without any (1 task)."""
    mini = score_text_suite(texts / MINI_SUITE)
    table = text_pairs(mini, domain)
    consistent(table, mini.ranks[domain])
    assert table["TextMini"]["mini-0"].won % 1 == 0.5  # as good as its double
    consistent(text_pairs(score, domain), score.ranks[domain])
    if domain == "new":
        assert text_pairs(score, domain)["NonParaToPara"] == {}


def test_pairs_of_texts_are_the_paired_tests_one_by_one(score):
    columns = {
        name: entry.columns["all"]["NonParaToPara"]
        for name, entry in score.entries.items()
        if name != "part"
    }
    better, worse = text_outcomes(list(columns.values()))
    for name, ahead, behind in zip(columns, better, worse, strict=True):
        mine = columns[name].resampled
        gains = [(mine - c.resampled).summary().mean for n, c in columns.items() if n != name]
        assert ahead == sum(gain.low > 0 for gain in gains)
        assert behind == sum(gain.high < 0 for gain in gains)
    assert text_outcomes([]) == ([], [])


# --- papers


def test_a_paper_stands_beside_ours(tmp_path):
    envs = ("MNIST-Proj-v0", "Random-Proj-v0")
    for name, title in (("mine", "vsml"), ("other", "VSML, larger")):
        made = method_runs(
            tmp_path / "runs", name, 0.8, seeds=(len(title),), title=title, envs=envs[:1]
        )
        make_submission(made, tmp_path / "table2-v0" / name, "table2-v0", allow_missing=True)
    score = score_suite(tmp_path / "table2-v0")
    (row,) = vector_papers(score)
    assert (row.entry.name, row.source, list(row.columns)) == (
        "mine",
        "Kirsch et al. 2022, Table 2",
        [envs[0]],
    )
    number = row.columns[envs[0]]
    ours = next(e for e in score.entries if e.entry.name == "mine").columns[envs[0]].accuracy
    assert (number.paper, number.ours) == (0.7904, ours)
    assert number.difference is not None
    assert number.difference.mean == pytest.approx(ours.mean - 0.7904)
    assert number.difference.half_width == pytest.approx(ours.half_width)
    (line,) = csv.DictReader(papers_csv(score).splitlines())
    assert (line["entry"], line["paper"]) == ("mine", "0.790400")
    assert float(line["difference"]) == pytest.approx(number.difference.mean, abs=1e-6)


def test_texts_match_by_title_view_and_training_data(score):
    rows = {(row.entry.name, row.domain, row.source): row for row in text_papers(score)}
    sinha = "Sinha et al. 2024, Table"
    assert set(rows) == {
        ("metaicl", "all", "Min et al. 2022, public code, GPT-2 Large"),
        ("metaicl", "all", f"{sinha} 3a"),
        ("metaicl", "new", f"{sinha} 2a"),
        ("few", "all", f"{sinha} 3b"),
        ("few", "new", f"{sinha} 2b"),
        ("raw", "all", f"{sinha} 3a and 3b"),
        ("raw", "new", f"{sinha} 2a and 2b"),
    }
    row = rows["metaicl", "all", f"{sinha} 3a"]
    column = score.entries["metaicl"].columns["all"]["NonParaToPara"]
    number, worst = row.columns["NonParaToPara"], row.worst["NonParaToPara"]
    assert list(row.columns) == ["NonParaToPara"]
    assert (number.paper, worst.paper) == (0.513, 0.4976)
    assert (number.ours, worst.ours) == (column.mean, column.worst)
    assert number.difference is not None
    assert number.difference.mean == pytest.approx(column.mean.mean - 0.513)
    assert number.difference.low == pytest.approx(column.mean.low - 0.513)
    assert rows["few", "all", f"{sinha} 3b"].columns["NonParaToPara"].paper == 0.4864
    single = rows["metaicl", "new", f"{sinha} 2a"].columns["NonParaToPara"]
    assert single.difference is not None
    assert np.isnan(single.difference.low)
    lines = list(csv.DictReader(text_papers_csv(score).splitlines()))
    assert len(lines) == sum(len(row.columns) + len(row.worst) for row in rows.values())
    assert {line["number"] for line in lines} == {"mean", "worst"}


def test_no_difference_where_the_papers_have_more_tasks():
    assert not same_tasks("QAtoQA", "all")
    assert not same_tasks("ClassToClass", "all")
    assert same_tasks("HRtoLR", "all")
    assert same_tasks("QAtoQA", "new")


def test_training_data_in_the_papers_words():
    def found(**fields: object) -> str:
        return training_data(entry_info(**fields))

    assert found(**NONE) == "none"
    assert found(meta_train_kwargs={}) == "complete"
    assert found(meta_train_kwargs={"fraction": 1.0}) == "complete"
    assert found(meta_train_kwargs={"fraction": 0.1}) == "limited"
    assert found(meta_train_kwargs={"fraction": 0.5}) == ""
    assert found(meta_train_kwargs={"fraction": [1.0]}) == ""


def test_boards_show_papers_and_win_rates(score):
    pairs = {domain: text_pairs(score, domain) for domain in ("all", "new")}
    part = text_section(score, pairs)
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in part.splitlines()
        if line.startswith("| metaicl (metaicl) ") and "ours" in line
    ]
    assert [row[1:4] for row in rows] == [
        ["channel", words, told]
        for words, count in (("all test tasks", 2), ("unseen-domain tasks", 1))
        for _ in range(count)
        for told in ("ours", "ours − paper")
    ]
    assert rows[0][4:10] == ["–"] * 6
    document = json.loads(text_board_json(score, pairs))
    entry = next(e for e in document["entries"] if e["name"] == "poor")
    assert entry["win_rate"]["all"] == 0
    assert entry["pairs"]["all"] == [0, 5, 0]
    assert entry["win_rate"]["new"] is None
    line = next(row for row in part.splitlines() if row.startswith("| [poor]"))
    assert [cell.strip() for cell in line.split("|")[-4:-2]] == ["0 %", "+0 −5 =0"]
