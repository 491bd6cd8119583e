import itertools
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hostile_changes import frozen_labels
from scipy import stats
from synthetic_runs import (
    DIGITS,
    RANDOM,
    SUITE,
    entry_info,
    frozen_result,
    random_correct,
    run_folder,
)

from icl_bench.evaluation import protocol
from icl_bench.evaluation.statistics import Interval
from icl_bench.leaderboard import plausibility
from icl_bench.leaderboard.plausibility import (
    THRESHOLD,
    first_step_p,
    first_step_probability_p,
    replay_problems,
)
from icl_bench.leaderboard.predictions import Predictions
from icl_bench.leaderboard.replays import (
    ReplayCell,
    ReplayRecord,
    record_path,
    replay_digest,
    write_record,
)
from icl_bench.leaderboard.submission import make_submission, read_submission, validate

C, TASK = 10, np.arange(256) // 16
LEVELS = (0.1, 1e-2, 1e-3, 1e-4)


def classes(seed: int) -> np.ndarray:
    """What the images of 256 episodes show."""
    return np.random.default_rng(seed).integers(0, C, 256)


def honest_guesses(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Classes of images [E], and predictions [S, E] that know nothing of the permutations."""
    rng, shown = np.random.default_rng(5), classes(4)
    if name == "always the same":
        return shown, np.full((1, 256), 3)
    if name == "recognises the classes":
        return shown, rng.permutation(C)[shown][None]
    if name == "three seeds alike":
        return shown, np.tile(rng.permutation(C)[shown], (3, 1))
    if name == "one class a task":
        return TASK % C, np.full((3, 256), 3)
    if name == "sees two classes":
        return shown, np.where(shown < 5, 2, 7)[None]
    assert name == "of the image alone"
    return shown, rng.integers(0, C, (2, 256))


HONEST = (
    "always the same",
    "recognises the classes",
    "three seeds alike",
    "one class a task",
    "sees two classes",
    "of the image alone",
)


def redrawn(shown: np.ndarray, boards: int) -> np.ndarray:
    """Labels [boards, E] of these images under new permutations of all tasks."""
    order = np.tile(np.arange(C, dtype=np.uint8), (boards * 16, 1))
    rho = np.random.default_rng(6).permuted(order, axis=1).reshape(boards, 16, C)
    return rho[:, TASK, shown]


def right(shown: np.ndarray, guess: np.ndarray, boards: int) -> np.ndarray:
    """Right predictions of many honest boards."""
    labels = redrawn(shown, boards)
    return sum((labels == row.astype(np.uint8)).sum(axis=1) for row in guess)


def exact_p(shown: np.ndarray, guess: np.ndarray, right: np.ndarray) -> np.ndarray:
    """p by number of right predictions: it depends on the labels only through that."""
    law = plausibility._law_of_right(plausibility._tables(guess, shown, TASK, C))
    tail = law[::-1].cumsum()[::-1]
    for label in redrawn(shown, 2):
        assert first_step_p(guess, label, TASK, C) == pytest.approx(tail[(guess == label).sum()])
    return tail[right]


def anticonservative(p: np.ndarray) -> list[float]:
    """Levels at which honest boards are flagged more often than promised, by five sigma."""
    return [a for a in LEVELS if (p <= a).mean() > a + 5 * math.sqrt(a * (1 - a) / len(p))]


@pytest.mark.parametrize("boards", [20_000, pytest.param(200_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", HONEST)
def test_honest_learners_are_flagged_no_more_often_than_promised(name, boards):
    shown, guess = honest_guesses(name)
    p = exact_p(shown, guess, right(shown, guess, boards))
    assert anticonservative(p) == []
    # Nor is p so careful that nothing would ever be flagged.
    assert (p <= 0.1).mean() > 0.02


def test_a_binomial_test_would_flag_honest_learners():
    for name in ("three seeds alike", "one class a task"):
        shown, guess = honest_guesses(name)
        p = stats.binom.sf(right(shown, guess, 20_000) - 1, guess.size, 1 / C)
        assert len(anticonservative(p)) >= 3


@pytest.mark.parametrize("seed", range(4))
def test_distribution_is_that_of_all_permutations(seed):
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 3, (5, 5))
    found = plausibility._law_of_task(table)
    sums = [
        sum(table[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(5))
    ]
    expected = np.bincount(sums, minlength=len(found)) / math.factorial(5)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_p_by_hand():
    one = np.zeros(16, np.int64)
    # One task, always the same, all of one class: right in all or in none.
    assert first_step_p(one[None], one, one, C) == pytest.approx(0.1)
    assert first_step_p(one[None] + 1, one, one, C) == pytest.approx(1.0)
    # Two tasks, and two seeds that say the same: still one chance in a hundred.
    twice = np.zeros((2, 32), np.int64)
    task = np.arange(32) // 16
    assert first_step_p(twice, twice[0], task, C) == pytest.approx(0.01)
    # Two classes, named in the right order: one of two ways.
    label = np.arange(16) % 2
    assert first_step_p(label[None], label, one, 2) == pytest.approx(0.5)


def partly_known(share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Guesses that know the label in a share of the episodes."""
    rng = np.random.default_rng(seed)
    label = redrawn(classes(seed), 1)[0]
    return np.where(rng.random(256) < share, label, rng.integers(0, C, 256)), label


@pytest.mark.parametrize("seed", range(10))
def test_who_knows_labels_is_flagged(seed):
    for share, flagged in ((1.0, True), (0.2 / 0.9, True), (0.0, False)):  # 0.2 / 0.9: + 20 points
        guess, label = partly_known(share, seed)
        assert (first_step_p(guess[None], label, TASK, C) < THRESHOLD) is flagged


def test_p_of_certain_knowledge_is_that_of_naming_all_classes():
    guess, label = partly_known(1.0, 0)
    shown = [len(set(label[task == TASK])) for task in range(16)]
    expected = math.prod(math.factorial(C - n) / math.factorial(C) for n in shown)
    assert first_step_p(guess[None], label, TASK, C) == pytest.approx(expected, rel=1e-9)


def test_honest_probabilities_are_flagged_no_more_often_than_promised():
    shown, guess = honest_guesses("recognises the classes")
    for sure in (0.3, 0.9, 0.9999):
        probs = np.full((1, 256, C), (1 - sure) / (C - 1))
        np.put_along_axis(probs, guess[..., None], sure, axis=-1)
        log_probs = np.log(probs).astype(np.float16)
        p = [first_step_probability_p(log_probs, y, TASK) for y in redrawn(shown, 1000)]
        assert anticonservative(np.array(p)) == []


def test_probability_of_the_right_class_is_judged_where_another_is_predicted():
    label = redrawn(classes(0), 1)[0]
    probs = np.full((1, 256, C), 0.38 / 8)
    np.put_along_axis(probs, label[None, :, None], 0.3, axis=-1)
    np.put_along_axis(probs, (label[None, :, None] + 1) % C, 0.32, axis=-1)
    log_probs = np.log(probs).astype(np.float16)
    assert first_step_p(log_probs.argmax(axis=-1), label, TASK, C) > 0.01
    p = first_step_probability_p(log_probs, label, TASK)
    assert p == pytest.approx(3.0**-16, rel=0.1)  # 10 × 0.3, in 16 tasks


# --- submissions


def chance_first(accuracy: float, seed: int) -> np.ndarray:
    correct = random_correct(accuracy, seed)
    return correct


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Path:
    """Right at step 0 as often as chance is."""
    root = tmp_path_factory.mktemp("honest")
    runs = [
        run_folder(
            root / "runs",
            [
                frozen_result(env, chance_first(0.5, 10 * s + i))
                for i, env in enumerate((DIGITS, RANDOM))
            ],
            entry_info(seed=s),
        )
        for s in (0, 1)
    ]
    return make_submission(runs, root / SUITE / "gpicl", SUITE)


@pytest.fixture
def cheat(honest, tmp_path) -> Path:
    path = shutil.copytree(honest, tmp_path / SUITE / "gpicl")
    frozen_labels(path)
    return path


def test_honest_submissions_have_no_flag(honest):
    assert read_submission(honest).flags == ()


def test_submissions_that_know_labels_are_flagged_for_replay(cheat):
    read = read_submission(cheat)
    assert read.problems == ()
    for env, flag in zip((DIGITS, RANDOM), read.flags, strict=True):
        assert re.fullmatch(
            rf"{env}: accuracy at step 0 is 100\.0 % where guessing gives 10 % "
            r"\(p = \de-\d+\): needs a replay on fresh episodes",
            flag,
        )


def test_probabilities_flag_a_submission_too(honest, tmp_path, monkeypatch):
    monkeypatch.setattr(plausibility, "first_step_probability_p", lambda *_: 1e-7)
    flags = read_submission(honest).flags
    assert len(flags) == 2
    assert "mean probability of the right class at step 0 is" in flags[0]


def handed_in(prediction: np.ndarray) -> list[dict[str, Predictions]]:
    """Seeds that predict this at step 0, and are sure of little."""
    log_probs = np.full((*prediction.shape, 1, C), math.log(1 / C), np.float16)
    return [
        {DIGITS: Predictions(p[:, None].astype(np.uint8), log_prob)}
        for p, log_prob in zip(prediction, log_probs, strict=True)
    ]


@pytest.mark.parametrize("hidden_by", ["nothing", "further episodes", "further seeds"])
def test_what_is_wrong_on_purpose_hides_nothing(hidden_by):
    count = 1024 if hidden_by == "further episodes" else 256
    label = protocol.frozen_labels(DIGITS, count)[:, 0].astype(np.int64)
    rng = np.random.default_rng(0)
    guess = rng.integers(0, C, (1 if hidden_by != "further seeds" else 3, count))
    assert plausibility.first_step_flags(handed_in(guess), 16, 16) == ()
    guess[0, :256] = np.where(rng.random(256) < 0.25, label[:256], guess[0, :256])
    others = np.ones(guess.shape, bool)
    others[0, :256] = False
    if hidden_by != "nothing":
        guess = np.where(others & (guess == label), (label + 1) % C, guess)
        task = np.arange(count) // 16
        assert first_step_p(guess, label, task, C) > 0.1
    (flag,) = plausibility.first_step_flags(handed_in(guess), 16, 16)
    assert flag.startswith(f"{DIGITS}: accuracy at step 0 is 3")


def test_p_of_many_seeds_and_tasks_is_a_probability():
    label = np.tile(np.arange(C), 103)[:1024]
    assert 0 < first_step_p(np.tile(label, (32, 1)), label, np.arange(1024) // 16, C) < 1e-300


def recorded(path: Path, p: float | None, env: str = DIGITS) -> None:
    """A replay of these very files found p on fresh episodes."""
    cell = ReplayCell(0.0, 0.5, 0.5, Interval(0.0, -0.1, 0.1), p)
    record = ReplayRecord(replay_digest(path), "0.1.0", {0: {env: cell}}, {})
    write_record(record_path(path.parents[1], SUITE, path.name), record)


def test_what_fresh_episodes_repeat_is_refused(cheat):
    recorded(cheat, 1e-9)
    (problem,) = validate(cheat)
    assert problem == (
        f"{DIGITS}, seed 0: above chance at step 0 on fresh episodes too (p = 1e-09): labels reach "
        "the learner before it predicts them"
    )


def test_what_fresh_episodes_do_not_repeat_is_refused_as_tuned(cheat):
    recorded(cheat, 0.37)
    (problem,) = validate(cheat)
    assert problem == (
        f"{DIGITS}: above chance at step 0 of the frozen episodes, but not of fresh ones "
        "(p = 0.4): the learner was tuned to the frozen episodes"
    )


def test_leaks_are_refused_even_where_the_frozen_episodes_are_fine(honest, tmp_path):
    path = shutil.copytree(honest, tmp_path / SUITE / "gpicl")
    recorded(path, 0.2)
    assert validate(path) == []
    recorded(path, 1e-9)
    assert "labels reach the learner" in validate(path)[0]


def test_a_record_of_other_files_says_nothing(cheat):
    recorded(cheat, 1e-9)
    (cheat / "checkpoints").mkdir()
    (cheat / "checkpoints" / "seed-0.json").write_text("{}")
    assert validate(cheat) == []
    assert replay_problems(["x: flagged"], None) == []


def test_step_0_of_the_references_is_plausible():
    """Chance and constant guesses on the real frozen labels."""
    label = protocol.frozen_labels(DIGITS)[:, 0]
    for guess in (np.full(256, 3), np.random.default_rng(0).integers(0, C, 256)):
        assert first_step_p(guess[None], label, TASK, C) > 1e-3
