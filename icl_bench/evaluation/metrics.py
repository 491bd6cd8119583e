"""Numbers and words that summarise a learning curve: accuracies, area, threshold, taxonomy."""

from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from icl_bench.evaluation.result import LOG_PROB_STEPS, Result, log_prob_steps
from icl_bench.evaluation.statistics import ROUNDING, paired_difference, task_interval

# Step t is answered after t labelled examples; log-probabilities are kept at the same steps.
SUMMARY_STEPS = LOG_PROB_STEPS

# An episode has diverged if its mean loss is so many times that of guessing, log C.
DIVERGED = 2.0

# Steps over which the mean accuracy must hold for a threshold to count as reached.
HOLD = 5

Taxonomy = Literal[
    "learns", "identifies", "zero-shot", "memorises", "at chance", "not decided without seen tasks"
]


def summary_accuracies(result: Result) -> dict[int, float]:
    """Accuracy in [0, 1] after 0, 1, 4, 9, 19, 49 and 99 labelled examples, where T allows."""
    return {step: result.accuracy(step) for step in SUMMARY_STEPS if step < result.episode_length}


def log_loss(result: Result) -> dict[int, float]:
    """Mean of -log p(right label), in nats, after each number of examples with log-probabilities.

    Infinite where a right label was given probability 0; a uniform prediction gives log C.
    Half-precision log-probabilities are right to about three digits.
    """
    steps = log_prob_steps(result.episode_length)
    means = _log_losses(result).mean(axis=0)
    return {step: abs(float(mean)) for step, mean in zip(steps, means, strict=True)}


def diverged(result: Result) -> float:
    """Share of episodes in which the learner is far worse than guessing, in [0, 1].

    Those whose mean log loss, over the steps with log-probabilities, is above 2 log C.
    """
    limit = DIVERGED * np.log(result.log_probs.shape[2])
    return float((_log_losses(result).mean(axis=1) > limit).mean())


def _log_losses(result: Result) -> Float[np.ndarray, "E S"]:
    steps = log_prob_steps(result.episode_length)
    labels = result.label[:, list(steps), None].astype(np.int64)
    return -np.take_along_axis(result.log_probs.astype(np.float64), labels, axis=2)[..., 0]


def chance(result: Result) -> float:
    """1/C: what guessing gives where permutations are uniform, whatever the classes' sizes."""
    return 1.0 / int(result.log_probs.shape[2])


def area_under_curve(curve: Float[np.ndarray, " T"]) -> float:
    """Area under the learning curve: its mean over the steps, in [0, 1]."""
    return float(curve.mean())


def examples_to_threshold(curve: Float[np.ndarray, " T"], threshold: float) -> int | None:
    """The number of labelled examples after which the accuracy reaches a threshold and holds it.

    The smallest n with curve[n] >= threshold whose mean over the five steps n … n + 4 is also at
    least the threshold, so that one lucky step does not count. None if there is no such n with
    all five steps inside the episode.

    Args:
        curve: Accuracy after 0, 1, … T - 1 examples, in [0, 1].
        threshold: Accuracy to reach, in [0, 1].

    Raises:
        ValueError: If the threshold is not in [0, 1], or the curve has fewer than five steps.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
    if len(curve) < HOLD:
        raise ValueError(f"a curve of {len(curve)} steps is too short, {HOLD} are needed")
    windows = np.lib.stride_tricks.sliding_window_view(curve, HOLD)
    held = windows.mean(axis=1) >= threshold - ROUNDING
    reached = np.flatnonzero(held & (curve[: len(windows)] >= threshold - ROUNDING))
    return int(reached[0]) if len(reached) else None


def clusters(result: Result) -> Int[np.ndarray, " E"]:
    """What the intervals of a result resample as a whole: its tasks (``balanced=False``).

    Seen tasks are drawn at random: mostly one episode each if there are many, and where
    meta-training knew a single task, there is no other to generalise to and episodes count.
    """
    if result.split == "seen" and (result.task == result.task[0]).all():
        return result.episode
    return result.task


def rises(result: Result) -> bool:
    """Whether the last step's accuracy is significantly above the first step's, paired."""
    correct = result.correct
    difference = paired_difference(correct[:, -1], correct[:, 0], clusters(result), balanced=False)
    return difference.low > ROUNDING


def above_chance(result: Result) -> bool:
    """Whether the last step's accuracy is significantly above 1/C.

    Meta-training with ``bias`` or on few tasks makes labels of seen tasks predictable by their
    frequency alone; for a result on seen tasks that counts as memorised, which it is.
    """
    interval = task_interval(result.correct[:, -1], clusters(result), balanced=False)
    return interval.low > chance(result) + ROUNDING


def taxonomy(seen: Result | None, unseen: Result) -> Taxonomy:
    """What a learner does with a task, from its results on seen and unseen tasks.

    In this order (rising and above chance by 95 % intervals clustered on tasks):

        learns      accuracy rises within the episodes of unseen tasks
        identifies  it rises on seen tasks only
        zero-shot   no rise, but above chance on unseen tasks
        memorises   no rise, above chance on seen tasks only
        at chance   none of these

    Without results on seen tasks the answer is "learns", "zero-shot" (then from the unseen tasks
    alone: no rise there, but above chance) or "not decided without seen tasks".

    Args:
        seen: Result on split ``seen``, or None.
        unseen: Result on split ``unseen`` or ``val``.

    Raises:
        ValueError: If a result is of another split, or the unseen result holds a single task.

    Source: Kirsch et al. 2022, Table 1. Differs from the paper, which gives no criterion: the
    significance test is ours.
    """
    if seen is not None and seen.split != "seen":
        raise ValueError(f"seen tasks come from split 'seen', not {seen.split!r}")
    if unseen.split not in ("unseen", "val"):
        raise ValueError(f"unseen tasks come from split 'unseen' or 'val', not {unseen.split!r}")
    if rises(unseen):
        return "learns"
    if seen is not None and rises(seen):
        return "identifies"
    if above_chance(unseen):
        return "zero-shot"
    if seen is None:
        return "not decided without seen tasks"
    return "memorises" if above_chance(seen) else "at chance"
