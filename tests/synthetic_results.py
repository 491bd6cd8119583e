"""Results made by hand, for tests of statistics, metrics, plots and boards."""

import numpy as np

from icl_bench.evaluation.result import Result, log_prob_steps


def result_of(correct: np.ndarray, task: np.ndarray, *, num_classes: int = 10, **fields) -> Result:
    """A result with these right and wrong answers; the right label is never the same class."""
    num_episodes, length = correct.shape
    label = (np.arange(num_episodes)[:, None] + np.arange(length)) % num_classes
    prediction = np.where(correct, label, (label + 1) % num_classes)
    log_probs = np.full((num_episodes, len(log_prob_steps(length)), num_classes), 1 / num_classes)
    return Result(
        **{
            "env": "MNIST-Proj-v0",
            "split": "unseen",
            "fingerprint": "ab" * 32,
            "seed": 0,
            "env_kwargs": {},
            "episode": np.arange(num_episodes),
            "task": task,
            "label": label.astype(np.uint8),
            "prediction": prediction.astype(np.uint8),
            "log_probs": np.log(log_probs).astype(np.float16),
        }
        | fields
    )


def simulated_result(
    curve: np.ndarray, *, seed: int, task: np.ndarray | None = None, **fields
) -> Result:
    """Answers right with the probabilities of a curve; 16 tasks that differ by a few points."""
    rng = np.random.default_rng(seed)
    task = np.arange(256) // 16 if task is None else task
    effect = np.random.default_rng(0).normal(0, 0.04, 16)[task % 16]  # shared by all learners
    p = np.where(curve > 0.12, curve + effect[:, None], curve)
    return result_of(rng.random(p.shape) < p, task, **fields)
