"""The scorer against tables made by hand, to the last digit."""

import csv
import dataclasses
import io
import math
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import DIGITS, RANDOM, SUITE, entry_info, frozen_result, run_folder

from icl_bench.evaluation.result import Result
from icl_bench.leaderboard.comparison import vector_pairs
from icl_bench.leaderboard.export import board_csv
from icl_bench.leaderboard.formatting import plus_minus
from icl_bench.leaderboard.scoring import score_column, score_suite
from icl_bench.leaderboard.submission import make_submission

# Quantiles 0.975 of Student's t with 1 and 2 degrees of freedom, and with 3, where the distribution
# is 1/2 + (u / (1 + u²) + arctan u) / π with u = t / sqrt(3).
T1 = math.tan(0.475 * math.pi)  # 12.7062
T2 = 0.95 * math.sqrt(2 / (1 - 0.95**2))  # 4.3027
T3 = 3.182446305283707


def last_step(right_per_task: list[int]) -> np.ndarray:
    """Right answers at the last step: the first so many of each task's 16 episodes."""
    correct = np.zeros((len(right_per_task), 16, 100), bool)
    for k, count in enumerate(right_per_task):
        correct[k, :count, -1] = True
    return correct.reshape(-1, 100)


def result(right_per_task: list[int]) -> Result:
    return frozen_result(DIGITS, last_step(right_per_task))


def test_four_tasks():
    """Means 1/4, 1/2, 1/2, 3/4: variance (1/16 + 0 + 0 + 1/16) / 3, standard error sqrt(1/96)."""
    column = score_column([result([4, 8, 8, 12])], 64)
    half = T3 / 96**0.5
    assert column.accuracy.mean == 0.5
    assert column.accuracy.low == pytest.approx(0.5 - half, abs=1e-12)
    assert column.accuracy.high == pytest.approx(0.5 + half, abs=1e-12)
    assert plus_minus(column.accuracy) == "50.0 ± 32.5"  # 3.182446 · 0.102062 = 0.324807
    assert column.seed_accuracy == (0.5,)
    assert column.curve.tolist() == [0.0] * 99 + [0.5]
    assert (column.curve_low[-1], column.curve_high[-1]) == (
        column.accuracy.low,
        column.accuracy.high,
    )
    assert (column.curve_low[:-1] == 0).all()
    assert column.task.tolist() == [k for k in range(4) for _ in range(16)]


def test_two_tasks_and_three_seeds():
    """Right of 16: (4, 8), (8, 8), (12, 8); the tasks' means over seeds are both 1/2."""
    column = score_column([result([4, 8]), result([8, 8]), result([12, 8])], 32)
    assert column.seed_accuracy == (0.375, 0.5, 0.625)
    assert column.accuracy.mean == 0.5
    assert column.accuracy.low == pytest.approx(0.5, abs=1e-12)
    assert column.accuracy.high == pytest.approx(0.5, abs=1e-12)
    # Over seeds: standard deviation 1/8, standard error 1 / (8 sqrt(3)).
    assert column.over_seeds is not None
    half = T2 / (8 * 3**0.5)
    assert column.over_seeds.mean == 0.5
    assert column.over_seeds.low == pytest.approx(0.5 - half, abs=1e-12)
    assert column.over_seeds.high == pytest.approx(0.5 + half, abs=1e-12)
    # Episodes 0 to 3 are right for all seeds, 4 to 7 for two of them, 8 to 11 for one.
    assert column.correct[:16] == pytest.approx([1] * 4 + [2 / 3] * 4 + [1 / 3] * 4 + [0] * 4)


def test_extended_counts_everything_and_ranks_count_the_first():
    """Ranked: tasks 0 and 1, means 1/4 and 3/4. All four: 1/4, 3/4, 1, 1."""
    column = score_column([result([4, 12, 16, 16])], 32)
    assert column.accuracy.mean == 0.5
    assert column.accuracy.high == pytest.approx(0.5 + T1 / 4, abs=1e-12)
    assert column.correct.shape == (32,)
    assert column.extended is not None
    assert column.extended.mean == 0.75
    # Deviations −1/2, 0, 1/4, 1/4: variance (3/8) / 3 = 1/8, standard error sqrt(1/32).
    half = T3 / 32**0.5
    assert column.extended.low == pytest.approx(0.75 - half, abs=1e-12)
    assert column.extended.high == pytest.approx(0.75 + half, abs=1e-12)


def test_log_loss():
    """Log-probabilities that half precision holds exactly: −3/4 of the class predicted, else −3."""
    made = result([4, 12])
    log_probs = np.full(made.log_probs.shape, -3, np.float16)
    steps = [0, 1, 4, 9, 19, 49, 99]
    chosen = made.prediction[:, steps, None].astype(np.int64)
    np.put_along_axis(log_probs, chosen, np.float16(-0.75), axis=2)
    one = dataclasses.replace(made, log_probs=log_probs)
    column = score_column([one], 32)
    # Before the last step all is wrong; there, half is: (3/4 + 3) / 2.
    assert column.log_loss == dict.fromkeys(steps[:-1], 3.0) | {99: 1.875}
    sure = dataclasses.replace(made, log_probs=np.where(log_probs == -3, -np.inf, 0).astype("f2"))
    assert score_column([one, one], 32).log_loss[99] == 1.875
    assert score_column([one, sure], 32).log_loss[99] == float("inf")


# --- a whole board


def whole_tasks(count: int) -> np.ndarray:
    """Right in all episodes of the first so many of 16 tasks, wrong in all others."""
    return last_step([16 if k < count else 0 for k in range(16)])


def hand_in(root: Path, name: str, **columns: int) -> None:
    """An entry that is right in all episodes of the first so many tasks of each environment."""
    envs = {"digits": DIGITS, "random": RANDOM}
    results = [frozen_result(envs[env], whole_tasks(count)) for env, count in columns.items()]
    run = run_folder(root / "runs", results, entry_info(name, deterministic=True))
    make_submission([run], root / SUITE / name, SUITE, allow_missing=True)


# Of 16 tasks so many are right; the number in a resample is binomial, and the bounds are where its
# cumulative probability passes 0.013856 and 0.986144:
#     4   P(X ≤ 0) = 0.0100, P(X ≤ 1) = 0.0635; P(X ≤ 7) = 0.9729, P(X ≤ 8) = 0.9925
#     12  P(X ≤ 7) = 0.0075, P(X ≤ 8) = 0.0271; P(X ≤ 14) = 0.9365, P(X ≤ 15) = 0.9900
#     14  P(X ≤ 10) = 0.0100, P(X ≤ 11) = 0.0407; P(X ≤ 15) = 0.8819
# Differences: of two tasks, P(X = 0) = 0.1181, so the interval begins at 0 and nothing is decided;
# of four and more it begins above.
TABLE = """\
entry,env,accuracy,low,high,rank,better,worse,tied
all,Digits-Proj8-v0,1.000000,1.000000,1.000000,1,2,0,1
all,Random-Proj8-v0,0.250000,0.062500,0.500000,2,0,1,0
many,Digits-Proj8-v0,0.750000,0.500000,0.937500,2,1,1,1
many,Random-Proj8-v0,0.750000,0.500000,0.937500,1,1,0,0
most,Digits-Proj8-v0,0.875000,0.687500,1.000000,1,1,0,2
few,Digits-Proj8-v0,0.250000,0.062500,0.500000,4,0,3,0
"""


def test_a_board(tmp_path):
    """``most`` is tied with ``all`` and with ``many``, but ``all`` is better than ``many``."""
    hand_in(tmp_path, "all", digits=16, random=4)
    hand_in(tmp_path, "most", digits=14)
    hand_in(tmp_path, "many", digits=12, random=12)
    hand_in(tmp_path, "few", digits=4)
    score = score_suite(tmp_path / SUITE)
    rows = list(csv.DictReader(io.StringIO(board_csv(score, vector_pairs(score)))))
    expected = list(csv.DictReader(io.StringIO(TABLE)))
    assert [{key: row[key] for key in expected[0]} for row in rows] == expected
    # A missing column is one place behind its two entries.
    assert score.mean_rank == {"all": 1.5, "many": 1.5, "most": 2.0, "few": 3.5}
    assert all(row["log_loss"] for row in rows)
