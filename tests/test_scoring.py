import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import (
    DIGITS,
    ENVS,
    RANDOM,
    SUITE,
    entry_info,
    frozen_result,
    method_runs,
    random_correct,
    run_folder,
)

from icl_bench.catalog import SUITES
from icl_bench.evaluation import protocol, statistics
from icl_bench.leaderboard.runs import load_run, methods_of
from icl_bench.leaderboard.scoring import (
    reported,
    score_column,
    score_entry,
    score_suite,
)
from icl_bench.leaderboard.submission import make_submission
from icl_bench.leaderboard.tables import board_from_runs, columns_of


def last_step(right_per_task: list[int], num_tasks: int = 16, shift: int = 0) -> np.ndarray:
    """Right answers at the last step: so many of each task's 16 episodes; wrong before."""
    correct = np.zeros((num_tasks, 16, 100), bool)
    for k, count in enumerate(right_per_task):
        correct[k, (np.arange(count) + shift) % 16, -1] = True
    return correct.reshape(-1, 100)


def hand_in(root: Path, name: str, columns: dict[str, list[np.ndarray]], suite=SUITE, **fields):
    """A submission in root/<suite>/<name>: environment → right answers of each seed."""
    num_seeds = len(next(iter(columns.values())))
    runs = [
        run_folder(
            root / "runs" / name,
            [frozen_result(env, by_seed[seed]) for env, by_seed in columns.items()],
            entry_info(name, seed=seed, **fields),
            suite,
        )
        for seed in range(num_seeds)
    ]
    return make_submission(runs, root / suite / name, suite, allow_missing=True)


def test_a_score_is_what_the_hand_computes(tmp_path):
    seeds = [last_step(list(range(16))), last_step([8] * 16), last_step([16] * 16)]
    score = score_entry(hand_in(tmp_path, "gpicl", {DIGITS: seeds}))
    assert (score.suite, score.seeds, list(score.columns)) == (SUITE, (0, 1, 2), [DIGITS])
    column = score.columns[DIGITS]
    # 0 + 1 + … + 15 = 120 of 256; 128 of 256; all.
    assert column.seed_accuracy == (0.46875, 0.5, 1.0)
    assert column.accuracy.mean == pytest.approx((0.46875 + 0.5 + 1.0) / 3)
    mean = column.accuracy.mean
    deviation = math.sqrt(sum((x - mean) ** 2 for x in column.seed_accuracy) / 2)
    half = 4.302653 * deviation / math.sqrt(3)  # t quantile 0.975 with 2 degrees of freedom
    assert column.over_seeds is not None
    assert column.over_seeds.low == pytest.approx(mean - half, abs=1e-6)
    assert column.over_seeds.high == pytest.approx(mean + half, abs=1e-6)
    # The task means of the three seeds together: (k/16 + 1/2 + 1) / 3.
    expected = statistics.task_interval(
        np.repeat([(k / 16 + 1.5) / 3 for k in range(16)], 16), np.repeat(np.arange(16), 16)
    )
    assert column.accuracy.low == pytest.approx(expected.low, abs=1e-12)
    assert column.accuracy.high == pytest.approx(expected.high, abs=1e-12)
    # Bootstrap over 16 tasks: sd of the task means · t / sqrt(16), by the t interval, nearly.
    spread = np.std([k / 48 for k in range(16)], ddof=1) / 4 * 2.131
    assert column.accuracy.half_width == pytest.approx(spread, rel=0.08)
    np.testing.assert_array_equal(column.curve[:-1], 0.0)
    assert column.curve[-1] == pytest.approx(mean)
    assert (column.curve_low[-1], column.curve_high[-1]) == (expected.low, expected.high)
    assert column.extended is None
    assert column.correct.shape == (256,)
    assert column.correct[0] == pytest.approx(2 / 3)  # task 0, episode 0: wrong, right, right


def test_no_interval_over_two_seeds_and_no_width_without_spread(tmp_path):
    score = score_entry(
        hand_in(tmp_path, "gpicl", {DIGITS: [last_step([8] * 16), last_step([4] * 16)]})
    )
    column = score.columns[DIGITS]
    assert column.over_seeds is None
    assert (column.accuracy.low, column.accuracy.mean, column.accuracy.high) == (0.375,) * 3


def test_log_loss_is_computed_from_the_log_probabilities(tmp_path):
    correct = last_step([12] * 16)
    column = score_entry(hand_in(tmp_path, "gpicl", {DIGITS: [correct]})).columns[DIGITS]
    wrong, right = -math.log(0.4 / 9), -math.log(0.6)
    assert set(column.log_loss) == {0, 1, 4, 9, 19, 49, 99}
    assert column.log_loss[0] == pytest.approx(wrong, abs=2e-3)
    assert column.log_loss[99] == pytest.approx(0.75 * right + 0.25 * wrong, abs=2e-3)


def test_the_larger_hand_in_never_changes_what_is_ranked(tmp_path):
    small = last_step([8] * 16)
    large = last_step([8] * 16 + [2] * 48, num_tasks=64)
    one = score_entry(hand_in(tmp_path, "small", {DIGITS: [small]})).columns[DIGITS]
    two = score_entry(hand_in(tmp_path, "large", {DIGITS: [large]})).columns[DIGITS]
    assert one.accuracy == two.accuracy
    assert one.extended is None
    assert two.extended is not None
    assert two.extended.mean == (16 * 8 + 48 * 2) / 1024
    assert two.extended.low < two.extended.mean < two.extended.high
    np.testing.assert_array_equal(one.correct, two.correct)


def test_ranks_count_the_significantly_better(tmp_path):
    perfect, good = last_step([16] * 16), last_step([12, 11, 13, 12] * 4)
    hand_in(tmp_path, "best", {DIGITS: [perfect]}, title="Zebra")
    hand_in(tmp_path, "left", {DIGITS: [good], RANDOM: [good]}, title="Left")
    hand_in(tmp_path, "right", {DIGITS: [last_step([11, 12, 12, 13] * 4)]}, title="Bright")
    hand_in(tmp_path, "poor", {DIGITS: [last_step([3] * 16)], RANDOM: [perfect]}, title="Aardvark")
    score = score_suite(tmp_path / SUITE)
    assert score.ranks[DIGITS] == {"best": 1, "left": 2, "right": 2, "poor": 4}
    assert score.ranks[RANDOM] == {"left": 2, "poor": 1}
    # A missing column is one place behind the two entries of that column.
    assert score.mean_rank == {"best": 2.0, "left": 2.0, "right": 2.5, "poor": 2.5}
    # By mean rank; alphabetical by title where it is equal.
    assert [e.entry.name for e in score.entries] == ["left", "best", "poor", "right"]


def test_equal_entries_are_in_alphabetical_order_whatever_their_means(tmp_path):
    hand_in(tmp_path, "m1", {DIGITS: [last_step([8, 9] * 8)]}, title="b")
    hand_in(tmp_path, "m2", {DIGITS: [last_step([9, 8] * 8)]}, title="A")
    hand_in(tmp_path, "m3", {DIGITS: [last_step([10, 8, 8, 9] * 4)]}, title="c")
    score = score_suite(tmp_path / SUITE)
    assert set(score.ranks[DIGITS].values()) == {1}
    assert [e.entry.title for e in score.entries] == ["A", "b", "c"]


def test_comparisons_are_paired(tmp_path):
    """Tasks differ far more than the two methods: only pairing can tell them apart."""
    hard = [1, 15] * 8
    hand_in(tmp_path, "a", {DIGITS: [last_step([n + 1 for n in hard])]})
    hand_in(tmp_path, "b", {DIGITS: [last_step(hard)]})
    score = score_suite(tmp_path / SUITE)
    a, b = (entry.columns[DIGITS].accuracy for entry in score.entries)
    assert a.low < b.high  # the intervals overlap widely
    assert score.ranks[DIGITS] == {"a": 1, "b": 2}


def rewrite(entry: Path, old: str, new: str) -> None:
    text = (entry / "entry.toml").read_text()
    assert old in text
    (entry / "entry.toml").write_text(text.replace(old, new))


def test_other_versions_are_listed_but_not_ranked(tmp_path):
    good = last_step([8, 9] * 8)
    hand_in(tmp_path, "now", {DIGITS: [good]})
    before = score_suite(tmp_path / SUITE)
    best = hand_in(tmp_path, "best", {DIGITS: [last_step([16] * 16)]})
    other = shutil.copytree(best, best.parent / "other")
    rewrite(other, 'name = "best"', 'name = "other"')
    assert score_suite(tmp_path / SUITE).ranks[DIGITS] == {"best": 1, "now": 3, "other": 1}
    rewrite(best, "scorer_version = 1", "scorer_version = 2")
    rewrite(other, protocol.evaluation_fingerprint(DIGITS), "ab" * 32)
    score = score_suite(tmp_path / SUITE)
    assert score.ranks == before.ranks
    assert [e.entry.name for e in score.entries] == ["now"]
    assert list(score.not_ranked) == ["best", "other"]
    assert score.not_ranked["best"][1] == ("scorer version 2, this is version 1",)
    assert score.not_ranked["other"][1][0].startswith(f"{DIGITS} was evaluated as abababababab…")
    with pytest.raises(ValueError, match="cannot be scored: scorer version 2"):
        score_entry(best)


def test_invalid_entries_stop_the_scorer(tmp_path):
    bad = hand_in(tmp_path, "bad", {DIGITS: [last_step([8] * 16)]})
    rewrite(bad, "parameters = 1234", "parameters = -1")
    with pytest.raises(ValueError, match=r"bad cannot be scored: entry\.toml: parameters must"):
        score_suite(tmp_path / SUITE)


def test_entries_belong_to_the_suite_of_their_folder(tmp_path):
    path = hand_in(tmp_path, "gpicl", {DIGITS: [last_step([8] * 16)]})
    other = tmp_path / "table2-v0" / "gpicl"
    shutil.copytree(path, other)
    with pytest.raises(ValueError, match="gpicl belongs to digits-v0: move it"):
        score_suite(other.parent)
    with pytest.raises(ValueError, match="unknown suite"):
        score_suite(tmp_path / "table7-v0")


def test_a_suite_without_a_folder_is_empty(tmp_path):
    score = score_suite(tmp_path / "table2-v0")
    assert (score.entries, score.not_ranked, score.mean_rank) == ((), {}, {})
    assert len(score.reported) == 30


def test_reported_numbers_are_those_of_the_paper():
    rows = {(row.method, row.env): row.accuracy for row in reported("table2-v0")}
    assert len(rows) == 30
    suite = next(s for s in SUITES if s.name == "table2-v0")
    assert {env for _, env in rows} == set(suite.envs)
    assert rows["GPICL Transformer", "MNIST-Proj-v0"] == 0.7370
    assert rows["VSML", "SVHN-Proj-v0"] == 0.1745
    assert rows["SGD", "Random-Proj-v0"] == 1.0
    assert reported(SUITE) == ()


def test_deterministic_entries_have_one_value(tmp_path):
    column = {DIGITS: [last_step([8, 12] * 8)]}
    path = hand_in(tmp_path, "knn", column, deterministic=True, kind="reference")
    score = score_entry(path)
    assert score.entry.deterministic
    assert score.columns[DIGITS].seed_accuracy == (0.625,)


def test_seeds_of_256_and_of_1024_episodes_share_the_first_256():
    large = last_step([8] * 16 + [2] * 48, num_tasks=64)
    small = last_step([4] * 16)
    mixed = score_column([frozen_result(DIGITS, large), frozen_result(DIGITS, small)], 256)
    for order in ([large, small], [small, large]):
        column = score_column([frozen_result(DIGITS, correct) for correct in order], 256)
        assert sorted(column.seed_accuracy) == [0.25, 0.5]
        assert column.accuracy == mixed.accuracy
        assert column.extended is None  # only one of them has more
    both = score_column([frozen_result(DIGITS, large)] * 2, 256)
    assert both.extended is not None


def test_mixed_numbers_of_episodes_are_told(tmp_path):
    runs = [
        load_run(path)
        for seed, number in ((0, 256), (1, 1024))
        for path in method_runs(tmp_path / str(seed), seeds=(seed,), num_episodes=number)
    ]
    text = board_from_runs(runs)
    assert (
        f"gpicl: {DIGITS}: seeds have 256 and 1024 episodes; the table shows the first 256" in text
    )


def test_seeds_on_other_episodes_are_refused():
    one = frozen_result(DIGITS, random_correct(0.5, 0))
    other = frozen_result(RANDOM, random_correct(0.5, 0))
    with pytest.raises(ValueError, match="not evaluated on identical episodes"):
        score_column([one, other], 256)
    shorter = frozen_result(DIGITS, random_correct(0.5, 0, 128))
    with pytest.raises(ValueError, match="not evaluated on identical episodes"):
        score_column([one, shorter], 256)


# --- straight from run folders


def test_runs_make_a_table_for_the_terminal(tmp_path):
    seeds = [last_step([8] * 16), last_step([4] * 16), last_step([12] * 16)]
    runs = [
        run_folder(
            tmp_path,
            [frozen_result(RANDOM, correct), frozen_result(DIGITS, correct)],
            entry_info(seed=seed, title="My method"),
        )
        for seed, correct in enumerate(seeds)
    ]
    text = board_from_runs([load_run(run) for run in runs])
    lines = [line.split() for line in text.splitlines()]
    assert ["method", "Digits", "Random"] in lines  # in the suite's order
    assert ["My", "method", "50.0", "±", "0.0", "50.0", "±", "0.0"] in lines
    for seed, value in ((0, "50.0"), (1, "25.0"), (2, "75.0")):
        assert ["My", "method", str(seed), value, value] in lines
    half = 4.302653 * 25 / math.sqrt(3)
    assert f"50.0 ± {half:.1f}" in text
    assert "columns are <name>-Proj8-v0" in text


def test_runs_that_are_no_standard_evaluation_are_told(tmp_path):
    result = frozen_result(DIGITS, random_correct(0.5, 0, 16))  # one task
    fields = {name: getattr(result, name) for name in result.__dataclass_fields__}
    result = type(result)(**fields | {"fingerprint": "ab" * 32})
    run = load_run(run_folder(tmp_path, [result], entry_info(), suite=None))
    text = board_from_runs([run])
    assert "±" not in text.splitlines()[4]  # no interval from a single task
    assert f"gpicl: {DIGITS} has 16 episodes, boards take 256 or 1024." in text
    assert f"gpicl: {DIGITS} is not the standard evaluation of this version." in text


def test_incomplete_seeds_are_told_and_not_averaged(tmp_path):
    runs = method_runs(tmp_path / "a", seeds=(0,)) + method_runs(
        tmp_path / "b", seeds=(1,), envs=(DIGITS,)
    )
    text = board_from_runs([load_run(run) for run in runs])
    assert f"gpicl: only 1 of 2 seeds have {RANDOM}." in text


def test_runs_of_one_name_with_other_settings_are_never_averaged(tmp_path):
    runs = [
        load_run(path)
        for seed, code in ((0, "sgd --optimizer adam"), (1, "sgd --optimizer sgd"))
        for path in method_runs(tmp_path / str(seed), "sgd", seeds=(seed,), code=code)
    ]
    told = "they differ in code: 'sgd --optimizer adam' and 'sgd --optimizer sgd'"
    with pytest.raises(ValueError, match=told):
        board_from_runs(runs)
    with pytest.raises(ValueError, match=told):  # in the words of submit
        make_submission([run.path for run in runs], tmp_path / "out", SUITE)
    assert len(methods_of([dataclasses.replace(r, entry=runs[0].entry) for r in runs])) == 1


def test_runs_of_one_name_for_other_suites_are_rows_apart(tmp_path):
    good, poor = last_step([16] * 16), last_step([4] * 16)
    runs = [
        load_run(run_folder(tmp_path, [frozen_result(DIGITS, good)], entry_info(code="a"))),
        load_run(run_folder(tmp_path, [frozen_result(RANDOM, poor)], entry_info(code="b"), None)),
    ]
    text = board_from_runs(runs)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "GPICL (gpicl, digits-v0) 100.0 ± 0.0 –" in lines
    assert "GPICL (gpicl, no suite) – 25.0 ± 0.0" in lines
    same = [dataclasses.replace(run, entry=entry_info()) for run in runs]
    assert "GPICL 100.0 ± 0.0 25.0 ± 0.0" in [
        " ".join(line.split()) for line in board_from_runs(same).splitlines()
    ]


def test_two_methods_of_one_title_are_told_apart(tmp_path):
    runs = [
        load_run(path)
        for name in ("small", "large")
        for path in method_runs(tmp_path, name, seeds=(0,), title="Transformer")
    ]
    assert [m.title for m in methods_of(runs)] == ["Transformer (small)", "Transformer (large)"]


def test_the_larger_evaluation_is_told_beside_the_first_episodes(tmp_path):
    correct = last_step([8] * 16 + [2, 4] * 24, num_tasks=64)
    run = load_run(run_folder(tmp_path, [frozen_result(DIGITS, correct)], entry_info()))
    text = board_from_runs([run])
    whole = statistics.task_interval(correct[:, -1], np.arange(1024) // 16)
    mean, half = 100 * whole.mean, 100 * whole.half_width
    assert f"{mean:.1f}" == "26.6"
    assert (
        f"gpicl: {DIGITS}: the table shows the first 256 of 1024 episodes; "
        f"all: {mean:.1f} ± {half:.1f}."
    ) in text
    assert "50.0 ± 0.0" in text
    assert "boards take" not in text


def test_numbers_of_episodes_that_no_board_takes_are_told(tmp_path):
    for number in (32, 320):
        result = frozen_result(DIGITS, random_correct(0.5, 0, number))
        run = load_run(run_folder(tmp_path / str(number), [result], entry_info()))
        text = board_from_runs([run])
        assert f"gpicl: {DIGITS} has {number} episodes, boards take 256 or 1024." in text


def test_runs_without_results_are_told(tmp_path):
    """A seed that has diverged left a folder, but no result."""
    (good,) = method_runs(tmp_path, seeds=(0,))
    diverged = run_folder(tmp_path, [], entry_info(seed=1))
    text = board_from_runs([load_run(good), load_run(diverged)])
    assert f"{diverged}: no results on unseen tasks" in text
    assert f"{good}: no results" not in text


def test_other_splits_are_shown_when_asked_for(tmp_path):
    unseen = frozen_result(DIGITS, last_step([4] * 16))
    seen = dataclasses.replace(frozen_result(DIGITS, last_step([12] * 16)), split="seen")
    run = load_run(run_folder(tmp_path, [unseen, seen], entry_info()))
    for split, shown, other in (("unseen", "25.0", "75.0"), ("seen", "75.0", "25.0")):
        text = board_from_runs([run], split=split)
        assert f"{split} tasks" in text
        assert shown in text
        assert other not in text
        assert "standard" not in text
    with pytest.raises(ValueError, match="no results on val tasks"):
        board_from_runs([run], split="val")


def test_environments_of_meta_training_come_first(tmp_path):
    def shown(meta_train: str) -> list[str]:
        entry = entry_info(meta_train=meta_train)
        results = [frozen_result(env, random_correct(0.5, 0)) for env in ENVS]
        return columns_of([load_run(run_folder(tmp_path, results, entry, None))], None, "unseen")[1]

    assert shown(RANDOM) == [RANDOM, DIGITS]
    assert shown(DIGITS) == [DIGITS, RANDOM]


def test_nothing_to_show_is_an_error(tmp_path):
    run = load_run(run_folder(tmp_path, [], entry_info()))
    with pytest.raises(ValueError, match="no results on unseen tasks of digits-v0 in"):
        board_from_runs([run])
    results = [frozen_result(env, random_correct(0.5, 0)) for env in ENVS]
    run = load_run(run_folder(tmp_path, results, entry_info()))
    with pytest.raises(ValueError, match="no results on unseen tasks of table2-v0"):
        board_from_runs([run], "table2-v0")
