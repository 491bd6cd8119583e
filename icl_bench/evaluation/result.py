"""Result: one evaluated learner on one environment and split, and its Parquet file."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float16, Int, UInt8

from icl_bench.episodes import SPLITS, Split

# Raised whenever the way in which a number is computed changes; boards never mix two versions.
SCORER_VERSION = 1

# Steps at which log-probabilities are kept: after 0, 1, 4, 9, 19, 49 and 99 labelled examples.
LOG_PROB_STEPS = (0, 1, 4, 9, 19, 49, 99)


def log_prob_steps(episode_length: int) -> tuple[int, ...]:
    """The steps of an episode of this length whose log-probabilities are kept."""
    return tuple(step for step in LOG_PROB_STEPS if step < episode_length)


@dataclasses.dataclass(frozen=True)
class Result:
    """Predictions of one learner on frozen episodes (E episodes, T steps, C classes).

    Attributes:
        env: Environment id.
        split: Split.
        fingerprint: Evaluation fingerprint of the environment (SHA-256, hexadecimal).
        seed: Stream seed of the episodes.
        env_kwargs: Arguments that the environment was made with, JSON types only.
        episode: Episode ids, ascending.
        task: Task ids.
        label: Right labels.
        prediction: Predicted labels: the class of largest logit, the first one of several.
        log_probs: log p of every class at the steps ``log_prob_steps(T)``.
    """

    env: str
    split: Split
    fingerprint: str
    seed: int
    env_kwargs: Mapping[str, Any]
    episode: Int[np.ndarray, " E"]
    task: Int[np.ndarray, " E"]
    label: UInt8[np.ndarray, "E T"]
    prediction: UInt8[np.ndarray, "E T"]
    log_probs: Float16[np.ndarray, "E S C"]

    @property
    def correct(self) -> Bool[np.ndarray, "E T"]:
        """Whether each prediction is right."""
        return self.prediction == self.label

    @property
    def episode_length(self) -> int:
        """T."""
        return self.label.shape[1]

    @property
    def learning_curve(self) -> Float[np.ndarray, " T"]:
        """Accuracy at every step, over all episodes, in [0, 1]."""
        curve: np.ndarray = self.correct.mean(axis=0)
        return curve

    def accuracy(self, step: int = -1) -> float:
        """Accuracy at one step (0-based; the last one by default), in [0, 1]."""
        return float(self.correct[:, step].mean())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result as Parquet: one row per episode and step; atomic.

        Columns: env, split, episode (int32), task (int64), step (uint16), prediction, label
        (uint8), correct (bool), log_probs (list of float16; null but at the kept steps). The
        file's metadata hold fingerprint, seed, env_kwargs and scorer version.
        """
        import pyarrow as pa

        from icl_bench.data.cache import atomic_path

        num_episodes, length = self.label.shape
        steps = log_prob_steps(length)
        rows: list[Any] = [None] * (num_episodes * length)
        for e in range(num_episodes):
            for s, step in enumerate(steps):
                rows[e * length + step] = self.log_probs[e, s]
        table = pa.table(
            {
                "env": pa.array([self.env] * len(rows), pa.string()).dictionary_encode(),
                "split": pa.array([self.split] * len(rows), pa.string()).dictionary_encode(),
                "episode": np.repeat(self.episode.astype(np.int32), length),
                "task": np.repeat(self.task.astype(np.int64), length),
                "step": np.tile(np.arange(length, dtype=np.uint16), num_episodes),
                "prediction": self.prediction.reshape(-1),
                "label": self.label.reshape(-1),
                "correct": self.correct.reshape(-1),
                "log_probs": pa.array(rows, pa.list_(pa.float16())),
            }
        )
        meta = {
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "env_kwargs": dict(self.env_kwargs),
            "scorer_version": SCORER_VERSION,
        }
        table = table.replace_schema_metadata({"icl_bench": json.dumps(meta, sort_keys=True)})
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            import pyarrow.parquet as pq

            pq.write_table(table, temporary, compression="zstd")
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Result":
        """Read a file written by ``save``.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is not such a result, naming the file and what is wrong.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not Path(path).exists():
            raise FileNotFoundError(f"no result file at {path}")
        try:
            table = pq.read_table(path)
            meta = json.loads((table.schema.metadata or {})[b"icl_bench"])
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is not a result file of icl_bench: {error}") from error
        step = table["step"].to_numpy()
        length = int(step.max()) + 1
        if len(step) % length or not np.array_equal(step, np.tile(np.arange(length), len(step) // length)):
            raise ValueError(f"{path}: steps of the episodes are incomplete or out of order")
        env, split = table["env"][0].as_py(), table["split"][0].as_py()
        if split not in SPLITS:
            raise ValueError(f"{path}: unknown split {split!r}")
        kept = table["log_probs"].to_pylist()
        steps = log_prob_steps(length)
        log_probs = np.array(
            [[kept[e + s] for s in steps] for e in range(0, len(kept), length)], dtype=np.float16
        )
        return cls(
            env=env,
            split=split,
            fingerprint=meta["fingerprint"],
            seed=meta["seed"],
            env_kwargs=meta["env_kwargs"],
            episode=table["episode"].to_numpy()[::length].astype(np.int64),
            task=table["task"].to_numpy()[::length].astype(np.int64),
            label=table["label"].to_numpy().reshape(-1, length),
            prediction=table["prediction"].to_numpy().reshape(-1, length),
            log_probs=log_probs,
        )
