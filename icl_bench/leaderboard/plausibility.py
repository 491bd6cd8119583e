"""Whether predictions before the first label can be honest.

At step 0 a learner has seen no label, so it cannot know which label a class has in this task: the
task's permutation ρ of the C classes is uniform, and independent of images, projection and learner.
But the episodes of a task share ρ. Who always says the same, or recognises the classes and names
them in an order of its own, is right in many episodes of a task or in few: such guesses are not
independent, and a binomial test would take honest learners for cheats.

Two tests that hold for every learner which does not know ρ, whatever else it does:

accuracy       Given which episodes of a task share a label, and what was predicted, all C! ways to
               name the labels are equally likely. The number of right predictions of a task is then
               sum_y M[y, pi(y)] with M [C, C] counting episodes by label and prediction and pi a
               uniform permutation. Its distribution is worked out exactly, those of the tasks are
               convolved, and p is the tail from the observed total on: a permutation test clustered
               by task, without any approximation.
probabilities  C times the mean probability of the right class over a task has mean 1 (every class
               is the right one with probability 1/C, and means are linear); so has the product E
               over tasks, which are independent. By Markov's inequality P(E >= 1/p) <= p.
"""

import itertools
import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float16, Int, Integer

from icl_bench.evaluation import protocol
from icl_bench.leaderboard.predictions import Predictions
from icl_bench.leaderboard.replays import ReplayRecord

# One honest board of a million is flagged.
THRESHOLD = 1e-6

# Below so many standard deviations no tail of a board is near the threshold, so that the exact
# one, which takes seconds where there are many seeds, need not be worked out.
_SUSPICIOUS = 3.0


def first_step_p(
    prediction: Integer[np.ndarray, "S E"],
    label: Integer[np.ndarray, " E"],
    task: Integer[np.ndarray, " E"],
    num_classes: int,
) -> float:
    """How likely a learner that guesses before the first label is right as often as this one.

    Args:
        prediction: At step 0, in [0, C), one row per meta-training seed; the seeds are judged
            together, for they meet the same permutations.
        label: At step 0, in [0, C).
        task: Task of every episode.
        num_classes: C.

    Returns:
        In (0, 1]: exact, up to the rounding of float64 and to its smallest number.
    """
    law = _law_of_right(_tables(prediction, label, task, num_classes))
    p = float(law[int((prediction == label).sum()) :].sum())
    return min(1.0, max(p, sys.float_info.min))


def first_step_probability_p(
    log_probs: Float16[np.ndarray, "S E C"],
    label: Integer[np.ndarray, " E"],
    task: Integer[np.ndarray, " E"],
) -> float:
    """A bound on how likely a guessing learner gives the right classes so much probability.

    Args:
        log_probs: log p of every class at step 0, one row per meta-training seed.
        label: At step 0, in [0, C).
        task: Task of every episode.

    Returns:
        In (0, 1]; valid for every learner that does not know ρ, but a bound: often 1.
    """
    wide = log_probs.astype(np.float64)
    # Rounded numbers sum to 1 but for rounding; a bet must be on exactly 1.
    wide -= np.logaddexp.reduce(wide, axis=-1, keepdims=True)
    right = np.exp(wide[:, np.arange(len(label)), label]).mean(axis=0)
    _, index, sizes = np.unique(task, return_inverse=True, return_counts=True)
    gains = wide.shape[-1] * np.bincount(index, right) / sizes
    with np.errstate(divide="ignore"):
        evidence = float(np.log(gains).sum())
    return max(math.exp(-max(0.0, evidence)), sys.float_info.min)


def _tables(
    prediction: Integer[np.ndarray, "S E"],
    label: Integer[np.ndarray, " E"],
    task: Integer[np.ndarray, " E"],
    num_classes: int,
) -> Int[np.ndarray, "K C C"]:
    """Of every task, how often each label met each prediction, over seeds and episodes."""
    tasks, index = np.unique(task, return_inverse=True)
    cell = (index * num_classes + label.astype(np.int64)) * num_classes + prediction
    counts = np.bincount(cell.reshape(-1), minlength=len(tasks) * num_classes**2)
    return counts.reshape(len(tasks), num_classes, num_classes)


def _law_of_right(tables: Int[np.ndarray, "K C C"]) -> Float[np.ndarray, " N"]:
    """Probability of every number of right predictions of all tasks, which are independent."""
    law = np.ones(1)
    for table in tables:
        law = np.convolve(law, _law_of_task(table))
    return law


def _law_of_task(table: Int[np.ndarray, "C C"]) -> Float[np.ndarray, " N"]:
    """Probability of every number of right predictions of a task, over uniform permutations.

    The permanent of the polynomials z^M[y, c], label after label: ``ways[used]`` is the polynomial
    that counts the ways to name the labels so far with the set ``used`` of as many names.
    """
    num_classes = len(table)
    most = int(table.max(axis=1).sum())
    subsets = np.arange(2**num_classes)
    size = sum(subsets >> name & 1 for name in range(num_classes))
    ways = np.zeros((2**num_classes, most + 1))
    ways[0, 0] = 1.0
    for named, row in enumerate(table):
        more = np.zeros_like(ways)
        for name, count in enumerate(row):
            free = subsets[(size == named) & (subsets >> name & 1 == 0)]
            more[free | 1 << name, count:] += ways[free, : most + 1 - count]
        ways = more
    return np.asarray(ways[-1] / math.factorial(num_classes))


def _deviations(
    prediction: Integer[np.ndarray, "S E"],
    label: Integer[np.ndarray, " E"],
    task: Integer[np.ndarray, " E"],
    num_classes: int,
) -> float:
    """By how many standard deviations more are right than guessing gives."""
    tables = _tables(prediction, label, task, num_classes).astype(np.float64)
    rows, names = tables.mean(axis=2, keepdims=True), tables.mean(axis=1, keepdims=True)
    centred = tables - rows - names + tables.mean(axis=(1, 2), keepdims=True)
    variance = (centred**2).sum() / (num_classes - 1)  # Hoeffding 1951, of sums M[y, pi(y)]
    excess = float((prediction == label).sum() - prediction.size / num_classes)
    return excess / math.sqrt(variance) if variance > 0 else 0.0


def first_step_flags(
    predictions: Sequence[Mapping[str, Predictions]], episodes_per_task: int, ranked_tasks: int
) -> tuple[str, ...]:
    """What is implausible before the first label, a sentence for each such environment.

    Judged are all episodes and those that are ranked, of all seeds together and of each: whoever
    adds episodes or seeds that are wrong on purpose hides nothing.

    Args:
        predictions: Environment id → predictions, of every meta-training seed on the same episodes.
        episodes_per_task: Of the suite.
        ranked_tasks: Of the suite.
    """
    flags = []
    for env in predictions[0] if predictions else ():
        parts = [by_env[env] for by_env in predictions]
        num_seeds, num_episodes = len(parts), len(parts[0].prediction)
        label = protocol.frozen_labels(env, num_episodes)[:, 0]
        task = protocol.frozen_tasks(num_episodes, episodes_per_task)
        prediction = np.stack([part.prediction[:, 0] for part in parts])
        log_probs = np.stack([part.log_probs[:, 0] for part in parts])
        seeds = [slice(None)] + [slice(i, i + 1) for i in range(num_seeds)] * (num_seeds > 1)
        counts = dict.fromkeys((num_episodes, ranked_tasks * episodes_per_task))
        looks = list(itertools.product(counts, seeds))
        found = (
            _complaint(prediction[s, :n], log_probs[s, :n], label[:n], task[:n], len(looks))
            for n, s in looks
        )
        if complaint := next(filter(None, found), ""):
            flags.append(f"{env}: {complaint}: needs a replay on fresh episodes")
    return tuple(flags)


def _complaint(
    prediction: Integer[np.ndarray, "S E"],
    log_probs: Float16[np.ndarray, "S E C"],
    label: Integer[np.ndarray, " E"],
    task: Integer[np.ndarray, " E"],
    looks: int,
) -> str:
    """What is implausible in these predictions at step 0, one look of so many; empty if nothing."""
    num_classes, threshold = log_probs.shape[-1], THRESHOLD / looks  # Bonferroni
    what, value, p = "accuracy", float((prediction == label).mean()), 1.0
    if _deviations(prediction, label, task, num_classes) > _SUSPICIOUS:
        p = first_step_p(prediction, label, task, num_classes)
    if p >= threshold:
        right = np.exp(log_probs.astype(np.float64))[:, np.arange(len(label)), label]
        what, value = "mean probability of the right class", float(right.mean())
        p = first_step_probability_p(log_probs, label, task)
    if p >= threshold:
        return ""
    return (
        f"{what} at step 0 is {100 * value:.1f} % where guessing gives "
        f"{100 / num_classes:.3g} % (p = {p:.1g})"
    )


def replay_problems(flags: Sequence[str], record: ReplayRecord | None) -> list[str]:
    """What a replay on fresh episodes says about predictions before the first label.

    Args:
        flags: Of ``first_step_flags``.
        record: Of these very files, if there is one.
    """
    problems: list[str] = []
    fresh: dict[str, float] = {}
    for seed, by_env in record.cells.items() if record else ():
        for env, cell in by_env.items():
            if cell.first_step_p is None:
                continue
            fresh[env] = min(cell.first_step_p, fresh.get(env, 1.0))
            if cell.first_step_p < THRESHOLD:
                problems.append(
                    f"{env}, seed {seed}: above chance at step 0 on fresh episodes too "
                    f"(p = {cell.first_step_p:.1g}): labels reach the learner before it predicts "
                    "them"
                )
    for env, p in fresh.items():
        if p >= THRESHOLD and any(flag.startswith(f"{env}: ") for flag in flags):
            problems.append(
                f"{env}: above chance at step 0 of the frozen episodes, but not of fresh ones "
                f"(p = {p:.1g}): the learner was tuned to the frozen episodes"
            )
    return problems
