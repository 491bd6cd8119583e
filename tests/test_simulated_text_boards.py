"""The intervals of text boards on simulated answers whose truth is known."""

import functools
import math

import numpy as np
import pytest
from scipy.special import expit
from test_simulated_boards import mean_accuracy

from icl_bench.evaluation import text_metrics
from icl_bench.evaluation.text_metrics import TaskPredictions

TEXT_TASKS, QUERIES, DRAWS, OPTIONS = 16, 60, 5, 3
# Effects of task, query and draw of demonstrations; tasks differ by 13 points as in metaicl-v0.
TASK_EFFECT, QUERY_EFFECT, DRAW_EFFECT = 0.4, 1.0, 0.1
TEXT_SKILL = 0.3


def text_boards(rng: np.random.Generator, metric: str, boards: int) -> list[list[TaskPredictions]]:
    """One method per board, on the same queries: right with probability sigmoid(z), where

    z = skill + task effect + query effect (both shared by the draws) + task × draw effect
    """
    answers = np.random.default_rng(0).integers(0, OPTIONS, (TEXT_TASKS, QUERIES))

    def effect(variance: float, draws: int, queries: int) -> np.ndarray:
        return math.sqrt(variance) * rng.standard_normal((boards, TEXT_TASKS, draws, queries))

    z = TEXT_SKILL + effect(TASK_EFFECT, 1, 1) + effect(QUERY_EFFECT, 1, QUERIES)
    right = rng.random((*z.shape[:2], DRAWS, QUERIES)) < expit(z + effect(DRAW_EFFECT, DRAWS, 1))
    wrong = (answers[:, None] + rng.integers(1, OPTIONS, right.shape)) % OPTIONS
    predictions = np.where(right, answers[:, None], wrong)
    return [
        [TaskPredictions(str(k), metric, answers[k], of_board[k]) for k in range(TEXT_TASKS)]
        for of_board in predictions
    ]


@functools.cache
def text_truth(metric: str) -> tuple[float, float]:
    """Expected mean and worst over draws of a task: from 12,800 simulated ones."""
    values = np.array(
        [
            task.values()
            for tasks in text_boards(np.random.default_rng(99), metric, 800)
            for task in tasks
        ]
    )
    return float(values.mean()), float(values.min(axis=1).mean())


def of_queries(tasks: list[TaskPredictions]) -> tuple[float, float]:
    """Wrong: the chance of the queries alone, as if another board had the same tasks."""
    shares = np.array([(t.prediction == t.answer).mean(axis=0) for t in tasks])
    error = math.sqrt((shares.var(axis=1, ddof=1) / QUERIES).sum()) / TEXT_TASKS
    return shares.mean() - 2 * error, shares.mean() + 2 * error


def test_truth_of_text_is_the_integral():
    variance = TASK_EFFECT + QUERY_EFFECT + DRAW_EFFECT
    expected = mean_accuracy(TEXT_SKILL, variance)
    assert text_truth("accuracy")[0] == pytest.approx(expected, abs=0.004)
    assert text_truth("accuracy")[1] < expected - 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "boards"), [("accuracy", 400), ("macro-f1", 200)])
def test_intervals_of_text_hold_the_truth(metric, boards):
    rng = np.random.default_rng(5)
    made = [board for _ in range(boards // 100) for board in text_boards(rng, metric, 100)]
    resampled = []
    for start in range(0, boards, 100):
        resampled += text_metrics.resample(made[start : start + 100])
    mean, worst = text_truth(metric)
    found = [r.summary() for r in resampled]
    held = np.mean([s.mean.low <= mean <= s.mean.high for s in found])
    assert 0.93 <= held <= 0.98, held
    # The smallest of five resampled values is smaller than that of the five: the interval of the
    # worst draw lies too low, and the truth more often above it than below.
    held = np.mean([s.worst.low <= worst <= s.worst.high for s in found])
    assert 0.88 <= held <= 0.95, held
    if metric == "accuracy":
        held = np.mean([low <= mean <= high for low, high in map(of_queries, made)])
        assert held < 0.75, held
