import itertools

import numpy as np
import pytest
from sklearn import metrics

from icl_bench.evaluation import text_metrics
from icl_bench.evaluation.statistics import task_interval
from icl_bench.evaluation.text_metrics import TaskPredictions, accuracy, macro_f1


@pytest.mark.parametrize("seed", range(50))
def test_metrics_are_those_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size, classes = int(rng.integers(1, 60)), int(rng.integers(1, 8))
    answer, prediction = rng.integers(classes, size=size), rng.integers(classes + 2, size=size)
    prediction = np.where(rng.random(size) < 0.4, answer, prediction)
    assert accuracy(answer, prediction) == pytest.approx(
        metrics.accuracy_score(answer, prediction), abs=1e-12
    )
    expected = metrics.f1_score(
        answer, prediction, labels=np.unique(answer), average="macro", zero_division=0
    )
    assert macro_f1(answer, prediction) == pytest.approx(expected, abs=1e-12)


def test_macro_f1_by_hand() -> None:
    # Class 0: p = 2/3, r = 2/2; class 1: p = 1/1, r = 1/3; class 2: never predicted, r = 0.
    answer = np.array([0, 0, 1, 1, 1, 2])
    prediction = np.array([0, 0, 1, 0, 3, 3])
    assert macro_f1(answer, prediction) == pytest.approx((0.8 + 0.5 + 0.0) / 3)
    # A class that is predicted and never right has no F1 of its own, as in the public code:
    # scikit-learn's default counts it.
    assert metrics.f1_score(answer, prediction, average="macro") == pytest.approx(1.3 / 4)
    # p + r = 0: class 1 is predicted once, wrongly.
    assert macro_f1(np.array([0, 0, 1]), np.array([0, 1, 0])) == pytest.approx(0.25)


def table(task: str, metric: str, correct: list[list[int]]) -> TaskPredictions:
    """A task of two classes with half of the answers each, right where told."""
    right = np.array(correct)
    answer = np.arange(right.shape[1]) % 2
    return TaskPredictions(task, metric, answer, np.where(right == 1, answer, 1 - answer))


def test_five_seeds_by_hand() -> None:
    # Accuracies 1, 0.75, 0.5, 0.5, 0.25: mean 0.6, worst 0.25.
    first = table(
        "one", "accuracy", [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0, 0]]
    )
    # Macro-F1 of all right is 1; of three right (p, r = 1, 1/2 and 2/3, 1) (2/3 + 4/5)/2.
    second = table("two", "macro-f1", [[1, 1, 1, 1]] * 4 + [[1, 1, 0, 1]])
    lowest = (2 / 3 + 4 / 5) / 2
    np.testing.assert_allclose(first.values(), [1, 0.75, 0.5, 0.5, 0.25])
    np.testing.assert_allclose(second.values(), [1, 1, 1, 1, lowest])
    summary = text_metrics.summarise([first, second])
    assert summary.mean.mean == pytest.approx((0.6 + (4 + lowest) / 5) / 2)
    assert summary.worst.mean == pytest.approx((0.25 + lowest) / 2)


def drawn(rng: np.random.Generator, tasks: int, queries: int, level: float) -> list[np.ndarray]:
    """Right or wrong, 1 or 0, with probabilities that differ by task."""
    chances = rng.uniform(level - 0.2, level + 0.2, tasks)
    return [rng.random((5, queries)) < chance for chance in chances]


def as_tasks(correct: list[np.ndarray], metric: str = "accuracy") -> list[TaskPredictions]:
    return [table(str(k), metric, c.astype(int).tolist()) for k, c in enumerate(correct)]


def test_bootstrap_is_the_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicates against resampling the queries themselves with the same draws."""
    monkeypatch.setattr(text_metrics, "NUM_REPLICATES", 40)
    monkeypatch.setattr(text_metrics, "BLOCK", 64)  # several blocks a task
    tasks = as_tasks(drawn(np.random.default_rng(0), 6, 14, 0.6))
    tasks[2] = TaskPredictions("2", "macro-f1", tasks[2].answer, tasks[2].prediction)
    replicates = text_metrics.resample([tasks])[0].replicates
    words, key, bounded = text_metrics.long_words, text_metrics.stream_key, text_metrics.bounded
    for r in range(40):
        values = []
        for slot, k in enumerate(bounded(words(key("text tasks", 6), np.array([r]), 6)[0], 6)):
            stream = key("text queries", int(k), 14)
            queries = bounded(words(stream, np.array([6 * r + slot]), 14)[0], 14)
            task = tasks[k]
            metric = macro_f1 if task.metric == "macro-f1" else accuracy
            values.append([metric(task.answer[queries], row[queries]) for row in task.prediction])
        expected = np.mean(values), np.mean(np.min(values, axis=1))
        np.testing.assert_allclose(replicates[:, r], expected, atol=1e-12)
    assert len(np.unique(replicates[0])) > 20


def test_interval_is_wider_than_that_of_tasks_alone_and_of_queries_alone() -> None:
    rng = np.random.default_rng(1)
    tasks = as_tasks(drawn(rng, 12, 30, 0.6))
    found = text_metrics.summarise(tasks).mean
    means = np.array([task.values().mean() for task in tasks])
    of_tasks = task_interval(means, np.arange(12))
    assert found.mean == pytest.approx(of_tasks.mean)
    assert found.high - found.low > 1.01 * (of_tasks.high - of_tasks.low)
    # Tasks that are equally hard: chance of the queries is all there is.
    same = as_tasks([drawn(rng, 1, 30, 0.6)[0]] * 12)
    interval = text_metrics.summarise(same).mean
    assert 0.01 < interval.half_width < 0.1


def test_few_tasks_have_the_t_interval() -> None:
    tasks = as_tasks(drawn(np.random.default_rng(2), 4, 20, 0.6))
    values = np.array([task.values().min() for task in tasks])
    assert text_metrics.summarise(tasks).worst == task_interval(values, np.arange(4))
    with pytest.raises(ValueError, match="at least 2 tasks"):
        text_metrics.summarise(tasks[:1])


def test_differences_are_paired() -> None:
    """What makes tasks and queries hard for both cancels."""
    rng = np.random.default_rng(3)
    base = drawn(rng, 10, 40, 0.6)
    better = [c | (rng.random(c.shape) < 0.1) for c in base]
    a, b = as_tasks(better), as_tasks(base)
    gain = text_metrics.difference(a, b).mean
    single = text_metrics.summarise(a).mean
    assert gain.low > 0.02
    assert gain.half_width < single.half_width / 2
    assert gain.mean == pytest.approx(single.mean - text_metrics.summarise(b).mean.mean)
    nothing = text_metrics.difference(a, a)
    assert (nothing.mean.low, nothing.mean.high, nothing.worst.high) == (0, 0, 0)


@pytest.mark.parametrize("change", ["name", "answer", "metric"])
def test_difference_refuses_other_queries(change: str) -> None:
    tasks = as_tasks(drawn(np.random.default_rng(4), 5, 8, 0.6))
    task = tasks[1]
    changed = {
        "name": TaskPredictions("other", task.metric, task.answer, task.prediction),
        "answer": TaskPredictions("1", task.metric, 1 - task.answer, task.prediction),
        "metric": TaskPredictions("1", "macro-f1", task.answer, task.prediction),
    }
    others = [tasks[0], changed[change], *tasks[2:]]
    with pytest.raises(ValueError, match=r"differ"):
        text_metrics.difference(tasks, others)


def test_predictions_fit_the_queries() -> None:
    with pytest.raises(ValueError, match="do not fit 3 queries"):
        TaskPredictions("mood", "accuracy", np.arange(3), np.zeros((0, 3), dtype=np.int64))
    with pytest.raises(ValueError, match="do not fit 0 queries"):
        accuracy(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


@pytest.mark.slow
def test_intervals_cover() -> None:
    """95 % intervals hold the truth at least as often, and not always; 200 experiments."""
    rng = np.random.default_rng(5)
    covered = [
        interval.low <= 0.6 <= interval.high
        for interval in (
            text_metrics.summarise(as_tasks(drawn(rng, 8, 12, 0.6))).mean for _ in range(200)
        )
    ]
    assert 0.93 <= np.mean(covered) <= 0.999


def test_mutants_of_macro_f1_are_noticed() -> None:
    """Definitions close to it differ on small label sets."""
    pairs = itertools.product(itertools.product(range(3), repeat=4), repeat=2)
    ours, default, weighted = [], [], []
    for answer, prediction in list(pairs)[::97]:
        ours.append(macro_f1(np.array(answer), np.array(prediction)))
        default.append(metrics.f1_score(answer, prediction, average="macro", zero_division=0))
        weighted.append(metrics.f1_score(answer, prediction, average="weighted", zero_division=0))
    assert np.abs(np.subtract(ours, default)).max() > 0.1
    assert np.abs(np.subtract(ours, weighted)).max() > 0.1


@pytest.mark.parametrize("metric", ["accuracy", "macro-f1"])
def test_methods_resampled_together_are_as_resampled_alone(metric: str) -> None:
    """With other numbers of seeds each; the average of two is that of their values."""
    rng = np.random.default_rng(5)
    a, b = (as_tasks(drawn(rng, 6, 20, level), metric) for level in (0.5, 0.7))
    b = [TaskPredictions(t.task, t.metric, t.answer, t.prediction[:2]) for t in b]
    together = text_metrics.resample([a, b])
    for joined, alone in zip(together, (a, b), strict=True):
        (expected,) = text_metrics.resample([alone])
        np.testing.assert_array_equal(joined.values, expected.values)
        np.testing.assert_array_equal(joined.replicates, expected.replicates)
        assert joined.summary() == text_metrics.summarise(alone)
    middle = text_metrics.average(together)
    np.testing.assert_allclose(
        middle.replicates, (together[0].replicates + together[1].replicates) / 2
    )
    assert (together[0] - together[1]).summary() == text_metrics.difference(a, b)
    with pytest.raises(ValueError, match="nothing to resample"):
        text_metrics.resample([])


def test_the_interval_of_a_task_is_over_its_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracy of one draw: the binomial's standard error; two equal draws: the same interval."""
    rng = np.random.default_rng(0)
    correct = (rng.random(400) < 0.7).astype(int)
    found = text_metrics.task_summary(table("one", "accuracy", [correct.tolist()]))
    p = correct.mean()
    error = 1.96 * np.sqrt(p * (1 - p) / 400)
    assert found.mean.mean == pytest.approx(p)
    assert found.mean.high - p == pytest.approx(error, rel=0.1)
    assert p - found.mean.low == pytest.approx(error, rel=0.1)
    twice = text_metrics.task_summary(table("one", "accuracy", [correct.tolist()] * 2))
    assert twice.mean == found.mean == twice.worst
    monkeypatch.setattr(text_metrics, "BLOCK", 1000)
    assert text_metrics.task_summary(table("one", "accuracy", [correct.tolist()])) == found


def test_the_worst_of_a_task_is_that_of_its_draws() -> None:
    found = text_metrics.task_summary(table("one", "macro-f1", [[1] * 40, [1, 0] * 20, [0] * 40]))
    # p + r = 0 of the class that is never right; the other has p = 1/2 and r = 1.
    assert (found.mean.mean, found.worst.mean) == pytest.approx(((1 + 1 / 3 + 0) / 3, 0))
    assert found.worst.low == found.worst.high == 0
