"""Summaries of learning curves: by hand, by identities, and five synthetic learners."""

import math

import numpy as np
import pytest
from synthetic_results import result_of, simulated_result

from icl_bench.evaluation import metrics

T = 100
FLAT = np.full(T, 0.1)
HIGH = np.full(T, 0.6)
RISE = 0.1 + 0.6 * (1 - np.exp(-np.arange(T) / 15))


def test_summary_accuracies_by_hand():
    correct = np.zeros((4, 10), dtype=bool)
    correct[0, 1], correct[:2, 4], correct[:, 9] = True, True, True
    correct[:, 5] = True  # no summary step
    result = result_of(correct, np.arange(4))
    assert metrics.summary_accuracies(result) == {0: 0.0, 1: 0.25, 4: 0.5, 9: 1.0}
    long = simulated_result(RISE, seed=0)
    assert tuple(metrics.summary_accuracies(long)) == metrics.SUMMARY_STEPS == (
        0, 1, 4, 9, 19, 49, 99,
    )  # fmt: skip
    assert metrics.summary_accuracies(long)[99] == long.accuracy() == long.learning_curve[-1]


def test_area_is_the_mean_of_all_answers():
    result = simulated_result(RISE, seed=0)
    area = metrics.area_under_curve(result.learning_curve)
    assert area == pytest.approx(result.correct.mean(), abs=1e-12)
    assert metrics.area_under_curve(np.array([0.0, 0.5, 1.0])) == 0.5
    assert metrics.area_under_curve(np.full(7, 0.3)) == pytest.approx(0.3)


def test_log_loss_by_hand():
    probabilities = np.full((2, 2, 4), 0.25)
    probabilities[0, 1] = [0.5, 0.25, 0.125, 0.125]  # the right class of episode 0, step 1 is 1
    result = result_of(
        np.ones((2, 2), dtype=bool),
        np.arange(2),
        num_classes=4,
        log_probs=np.log(probabilities).astype(np.float16),
    )
    assert result.label.tolist() == [[0, 1], [1, 2]]
    loss = metrics.log_loss(result)
    assert loss == pytest.approx({0: math.log(4), 1: math.log(4)}, rel=1e-3)
    probabilities[0, 1] = [0.25, 0.5, 0.125, 0.125]
    probabilities[1, 1] = [0.0, 0.5, 0.5, 0.0]
    result = result_of(
        np.ones((2, 2), dtype=bool),
        np.arange(2),
        num_classes=4,
        log_probs=np.log(np.maximum(probabilities, 1e-300)).clip(-1e4).astype(np.float16),
    )
    assert metrics.log_loss(result)[1] == pytest.approx(math.log(2), rel=1e-3)


def test_episodes_that_diverge_are_those_far_worse_than_guessing():
    """Right classes with probability 1/4, 1/17 and 1/15 at both steps: 2 log 4 is log 16."""
    probabilities = np.empty((3, 2, 4))
    right = np.array([[0, 1], [1, 2], [2, 3]])
    for episode, p in enumerate((1 / 4, 1 / 17, 1 / 15)):
        probabilities[episode] = (1 - p) / 3
        probabilities[episode, [0, 1], right[episode]] = p
    result = result_of(
        np.ones((3, 2), dtype=bool),
        np.arange(3),
        num_classes=4,
        log_probs=np.log(probabilities).astype(np.float16),
    )
    assert result.label.tolist() == right.tolist()
    assert metrics.diverged(result) == pytest.approx(1 / 3)


def test_log_loss_of_an_impossible_answer_is_infinite():
    log_probs = np.array([[[0.0, -np.inf]], [[0.0, -np.inf]]], dtype=np.float16)
    result = result_of(
        np.ones((2, 1), dtype=bool), np.arange(2), num_classes=2, log_probs=log_probs
    )
    assert metrics.log_loss(result) == {0: math.inf}  # labels are 0 and 1


@pytest.mark.parametrize(
    ("curve", "threshold", "expected"),
    [
        ([0.1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], 0.5, 1),
        ([0.5] * 5, 0.5, 0),
        # One lucky step, then a fall: the mean over steps 1-5 is 0.34.
        ([0.1, 0.9, 0.2, 0.2, 0.2, 0.2, 0.6, 0.6, 0.6, 0.6, 0.6], 0.5, 6),
        # The mean over steps 0-4 is 0.6, but step 0 itself is below; step 1 holds: 0.62.
        ([0.4, 0.8, 0.6, 0.6, 0.6, 0.5], 0.5, 1),
        # A dip within the five steps is allowed if their mean holds: (0.6+0.4+0.6·3)/5 = 0.56.
        ([0.6, 0.4, 0.6, 0.6, 0.6], 0.5, 0),
        # Reached in the last four steps only: not held for five.
        ([0.1, 0.1, 0.9, 0.9, 0.9, 0.9], 0.5, None),
        ([0.1] * 10, 0.5, None),
        ([1.0] * 5, 1.0, 0),
        ([0.0] * 5, 0.0, 0),
    ],
)
def test_examples_to_threshold_by_hand(curve, threshold, expected):
    assert metrics.examples_to_threshold(np.array(curve), threshold) == expected


def test_examples_to_threshold_errors():
    with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\], got 50"):
        metrics.examples_to_threshold(np.full(10, 0.5), 50.0)
    with pytest.raises(ValueError, match="4 steps is too short, 5 are needed"):
        metrics.examples_to_threshold(np.full(4, 0.5), 0.5)


# ---- taxonomy ----------------------------------------------------------------------------------

LEARNERS = {
    "learns": (RISE, RISE),
    "identifies": (RISE, FLAT),
    "zero-shot": (HIGH, HIGH),
    "memorises": (HIGH, FLAT),
    "at chance": (FLAT, FLAT),
}


def seen_result(curve: np.ndarray, num_tasks: int = 16):
    """Seen tasks are drawn at random: unequal numbers of episodes."""
    rng = np.random.default_rng(3)
    task = rng.integers(0, num_tasks, 256)
    return simulated_result(curve, seed=3, split="seen", task=task)


@pytest.mark.parametrize("num_tasks", [16, 2**25])
@pytest.mark.parametrize("kind", LEARNERS)
def test_taxonomy_of_synthetic_learners(kind, num_tasks):
    seen, unseen = LEARNERS[kind]
    # A flat learner "rises" in 2.5 % of all draws: the seed is fixed.
    assert metrics.taxonomy(seen_result(seen, num_tasks), simulated_result(unseen, seed=1)) == kind


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("learns", "learns"),
        ("zero-shot", "zero-shot"),
        ("identifies", "not decided without seen tasks"),
        ("memorises", "not decided without seen tasks"),
        ("at chance", "not decided without seen tasks"),
    ],
)
def test_taxonomy_without_seen_tasks(kind, expected):
    assert metrics.taxonomy(None, simulated_result(LEARNERS[kind][1], seed=1)) == expected


def test_identification_goes_before_zero_shot():
    """Table 1 asks first whether anything is learned within the episode."""
    assert metrics.taxonomy(seen_result(RISE), simulated_result(HIGH, seed=1)) == "identifies"


def test_falling_is_not_rising():
    falling = simulated_result(RISE[::-1], seed=1)
    assert not metrics.rises(falling)
    assert metrics.rises(simulated_result(RISE, seed=1))


def test_flat_learners_are_called_rising_in_one_of_forty_draws():
    rises = [metrics.rises(simulated_result(FLAT[:2], seed=seed)) for seed in range(400)]
    assert 0.005 <= np.mean(rises) <= 0.055  # 2.5 %, 3.9 sigma
    above = [metrics.above_chance(simulated_result(FLAT[:1], seed=seed)) for seed in range(400)]
    assert np.mean(above) <= 0.055


def test_rising_is_decided_by_tasks_not_by_episodes():
    """One task of sixteen is solved: many episodes, but a single witness."""
    correct = np.zeros((256, 2), dtype=bool)
    correct[:16, 1] = True
    assert not metrics.rises(result_of(correct, np.arange(256) // 16))
    assert metrics.rises(result_of(correct, np.arange(256)))  # the wrong clusters


def test_a_single_seen_task_is_judged_by_its_episodes():
    one = np.zeros(256, dtype=int)
    seen = simulated_result(HIGH, seed=0, split="seen", task=one)
    assert metrics.taxonomy(seen, simulated_result(FLAT, seed=1)) == "memorises"
    with pytest.raises(ValueError, match="at least 2 tasks"):
        metrics.taxonomy(None, simulated_result(HIGH, seed=0, task=one))


def test_chance_is_one_over_the_number_of_classes():
    assert metrics.chance(simulated_result(FLAT, seed=0)) == pytest.approx(0.1)
    half = simulated_result(np.full(5, 0.5), seed=1, num_classes=2)
    assert metrics.chance(half) == 0.5
    assert not metrics.above_chance(half)


def test_taxonomy_wants_the_right_splits():
    unseen = simulated_result(RISE, seed=0)
    with pytest.raises(ValueError, match="seen tasks come from split 'seen', not 'unseen'"):
        metrics.taxonomy(unseen, unseen)
    with pytest.raises(ValueError, match="unseen tasks come from split 'unseen' or 'val'"):
        metrics.taxonomy(None, seen_result(RISE))
