"""Run folders with made-up predictions on the real frozen labels, for tests of the leaderboard."""

from pathlib import Path

import numpy as np

from icl_bench.evaluation import protocol
from icl_bench.evaluation.result import Result, log_prob_steps
from icl_bench.leaderboard.entry import EntryInfo
from icl_bench.leaderboard.runs import result_path, write_meta

SUITE = "digits-v0"
ENVS = ("Digits-Proj8-v0", "Random-Proj8-v0")
DIGITS, RANDOM = ENVS


def entry_info(name: str = "gpicl", **fields) -> EntryInfo:
    return EntryInfo(
        **{
            "name": name,
            "title": name.upper(),
            "inductive_bias": "In-context, black-box",
            "authors": "Ada, Bob",
            "code": "python -m baselines.gpicl",
            "deterministic": False,
            "meta_train": "Digits-Proj8-v0",
            "meta_train_kwargs": {"num_tasks": None, "bias": 0.9},
            "seed": 0,
            "parameters": 1234,
            "state_size": 56,
            "hardware": "a CPU",
            "gpu_hours": 0.5,
            "external_data": "none",
        }
        | fields
    )


def frozen_result(env: str, correct: np.ndarray, *, sure: float = 0.6) -> Result:
    """A result on frozen episodes that is right exactly where told; wrong = the next class."""
    num_episodes, length = correct.shape
    label = protocol.frozen_labels(env, num_episodes)
    prediction = np.where(correct, label, (label + 1) % 10).astype(np.uint8)
    steps = list(log_prob_steps(length))
    probs = np.full((num_episodes, len(steps), 10), (1 - sure) / 9)
    np.put_along_axis(probs, prediction[:, steps, None].astype(int), sure, axis=-1)
    return Result(
        env=env,
        split="unseen",
        fingerprint=protocol.evaluation_fingerprint(env),
        seed=0,
        env_kwargs={},
        episode=np.arange(num_episodes),
        task=protocol.frozen_tasks(num_episodes),
        label=label,
        prediction=prediction,
        log_probs=np.log(probs).astype(np.float16),
    )


def random_correct(accuracy: float, seed: int, num_episodes: int = 256) -> np.ndarray:
    """Right at random, and at step 0 no more often than anyone can be."""
    right = peeking_correct(accuracy, seed, num_episodes)
    right[:, 0] = peeking_correct(0.1, seed, num_episodes)[:, 0]
    return right


def peeking_correct(accuracy: float, seed: int, num_episodes: int = 256) -> np.ndarray:
    """Right at random, also at step 0, where nobody can know a label."""
    return np.random.default_rng(seed).random((num_episodes, 100)) < accuracy


def run_folder(root: Path, results: list[Result], entry: EntryInfo, suite: str | None = SUITE):
    """A run folder; its name ends with a number instead of the time."""
    path = root / f"{suite}__{entry.name}__{entry.seed}__{len(list(root.glob('*')))}"
    path.mkdir(parents=True)
    write_meta(path, entry, suite, {result.env: result.fingerprint for result in results})
    for result in results:
        result.save(result_path(path, result.env, result.split))
    return path


def method_runs(
    root: Path,
    name: str = "gpicl",
    accuracy: float = 0.5,
    *,
    seeds: tuple[int, ...] = (0, 1),
    envs: tuple[str, ...] = ENVS,
    num_episodes: int = 256,
    **fields,
) -> list[Path]:
    """One run folder per seed."""
    return [
        run_folder(
            root / name,
            [
                frozen_result(env, random_correct(accuracy, 100 * seed + i, num_episodes))
                for i, env in enumerate(envs)
            ],
            entry_info(name, seed=seed, **fields),
        )
        for seed in seeds
    ]
