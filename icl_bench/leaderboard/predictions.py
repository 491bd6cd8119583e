"""The file ``predictions/seed-<n>.parquet`` of a submission: written carefully, read distrustfully.

One row per environment, frozen episode and step, in any order:

    env         string
    split       string, ``unseen``
    episode     int32, 0 … 255 or 0 … 1023
    step        uint8 (uint16 where T > 256)
    prediction  uint8, the class of largest logit
    log_probs   list<float16>, log p of all C classes; null but at the steps ``log_prob_steps(T)``
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float16, Int, UInt8

from icl_bench.catalog import Suite
from icl_bench.evaluation.result import Result, log_prob_steps
from icl_bench.leaderboard.columns import Lists, Texts, listed, read_columns
from icl_bench.registration import find_spec

SPLIT: Literal["unseen"] = "unseen"


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions on the frozen episodes 0 … E − 1 of one environment.

    Attributes:
        prediction: Classes in [0, C).
        log_probs: log p of every class at the steps ``log_prob_steps(T)``.
    """

    what: ClassVar[str] = "episodes"

    prediction: UInt8[np.ndarray, "E T"]
    log_probs: Float16[np.ndarray, "E S C"]

    def same_cells(self, other: "Predictions") -> bool:
        """Whether both are about the same episodes."""
        return len(self.prediction) == len(other.prediction)

    def same_predictions(self, other: "Predictions") -> bool:
        """Whether all predictions are equal; of the same episodes."""
        return np.array_equal(self.prediction, other.prediction)


def episode_counts(suite: Suite) -> tuple[int, int]:
    """Numbers of episodes that may be handed in: of the ranked and of the extended protocol."""
    return (suite.tasks * suite.episodes_per_task, suite.extended_tasks * suite.episodes_per_task)


def prediction_schema(episode_length: int) -> Any:
    """The ``pyarrow.Schema`` of a file of predictions."""
    import pyarrow as pa

    return pa.schema(
        {
            "env": pa.string(),
            "split": pa.string(),
            "episode": pa.int32(),
            "step": pa.uint8() if episode_length <= 256 else pa.uint16(),
            "prediction": pa.uint8(),
            "log_probs": pa.list_(pa.float16()),
        }
    )


def write_predictions(path: str | os.PathLike[str], results: Sequence[Result]) -> None:
    """Write the predictions of one seed, an environment after the other; not atomic.

    Equal results give equal bytes under one version of pyarrow.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = prediction_schema(results[0].episode_length)
    with pq.ParquetWriter(path, schema, compression="zstd", compression_level=15) as writer:
        for result in results:
            num_episodes, length = result.prediction.shape
            num_rows = num_episodes * length
            step = np.tile(np.arange(length), num_episodes)
            kept = np.isin(step, log_prob_steps(length))
            offsets = np.concatenate([[0], np.cumsum(kept)]) * result.log_probs.shape[2]
            columns = [
                pa.array([result.env] * num_rows, pa.string()),
                pa.array([result.split] * num_rows, pa.string()),
                np.repeat(result.episode.astype(np.int32), length),
                pa.array(step, schema.field("step").type),
                result.prediction.reshape(-1),
                pa.ListArray.from_arrays(
                    pa.array(offsets, pa.int32()),
                    pa.array(result.log_probs.reshape(-1)),
                    mask=pa.array(~kept),
                ),
            ]
            writer.write_table(pa.table(columns, schema=schema))


def read_predictions(
    path: str | os.PathLike[str], suite: Suite
) -> tuple[dict[str, Predictions], list[str]]:
    """Read a file from a stranger: what is right in it by environment, and all that is wrong."""
    most = len(suite.envs) * episode_counts(suite)[1] * suite.episode_length
    schema = prediction_schema(suite.episode_length)
    columns, problems = read_columns(Path(path), schema, most, nullable=("log_probs",))
    if columns is None:
        return {}, problems
    if others := sorted(set(columns["split"].names) - {SPLIT}):
        return {}, [f"split {listed(others)} not {SPLIT!r}, which is what boards rank"]
    envs: Texts = columns["env"]
    if unknown := sorted(set(envs.names) - set(suite.envs)):
        problems.append(
            f"{listed(unknown)} not in {suite.name}, whose environments are {', '.join(suite.envs)}"
        )
    found = {}
    for env in suite.envs:
        if env in envs.names:
            rows = np.flatnonzero(envs.rows(env))
            predictions, complaints = _env_predictions(columns, rows, env, suite)
            problems += [f"{env}: {complaint}" for complaint in complaints]
            if predictions is not None:
                found[env] = predictions
    return found, problems


def _env_predictions(
    columns: Mapping[str, Any], rows: Int[np.ndarray, " N"], env: str, suite: Suite
) -> tuple[Predictions | None, list[str]]:
    """Predictions of one environment in canonical order, and everything wrong with them."""
    length, num_classes = suite.episode_length, find_spec(env).num_classes
    episode = columns["episode"][rows].astype(np.int64)
    step = columns["step"][rows].astype(np.int64)
    num_episodes, problems = _episode_problems(episode, step, suite)
    if problems:
        return None, problems
    rows = rows[np.argsort(episode * length + step, kind="stable")]
    prediction = columns["prediction"][rows].reshape(num_episodes, length)
    if prediction.max() >= num_classes:
        problems.append(f"prediction {prediction.max()} is not a class, there are {num_classes}")

    steps = log_prob_steps(length)
    lists: Lists = columns["log_probs"]
    kept = np.isin(np.arange(length), steps)
    wrong = lists.present[rows].reshape(num_episodes, length) != kept
    if wrong.any():
        problems.append(
            f"log_probs must be given at the steps {', '.join(map(str, steps))} and null at all "
            f"others ({_first(wrong, np.arange(length))})"
        )
        return None, problems
    kept_rows = rows.reshape(num_episodes, length)[:, kept].reshape(-1)
    if (lists.size[kept_rows] != num_classes).any():
        problems.append(f"log_probs must hold one number for each of the {num_classes} classes")
        return None, problems
    starts = (np.cumsum(lists.size) - lists.size)[kept_rows]
    values = lists.values[starts[:, None] + np.arange(num_classes)]
    log_probs = values.reshape(num_episodes, len(steps), num_classes)
    problems += _log_prob_problems(prediction, log_probs, np.array(steps))
    return (None if problems else Predictions(prediction, log_probs)), problems


def _episode_problems(
    episode: Int[np.ndarray, " N"], step: Int[np.ndarray, " N"], suite: Suite
) -> tuple[int, list[str]]:
    """Number of episodes, and what is missing, double or too much."""
    length, (ranked, extended) = suite.episode_length, episode_counts(suite)
    num_episodes = ranked if episode.max() < ranked else extended
    if episode.min() < 0 or episode.max() >= extended:
        bad = episode.min() if episode.min() < 0 else episode.max()
        return 0, [f"episode {bad} is not frozen: 0 to {ranked - 1} or 0 to {extended - 1} are"]
    if step.max() >= length:
        return 0, [f"step {step.max()} is beyond the last one, {length - 1}"]
    times = np.bincount(episode * length + step, minlength=num_episodes * length)
    times = times.reshape(num_episodes, length)
    problems = []
    for bad, words in ((times == 0, "missing"), (times > 1, "given more than once")):
        if bad.any():
            problems.append(
                f"{int(bad.sum())} of the steps of episodes 0 to {num_episodes - 1} are {words} "
                f"({_first(bad, np.arange(length))})"
            )
    return num_episodes, problems


def _log_prob_problems(
    prediction: UInt8[np.ndarray, "E T"],
    log_probs: Float16[np.ndarray, "E S C"],
    steps: Int[np.ndarray, " S"],
) -> list[str]:
    """What is wrong with log-probabilities that have the right shape."""
    wide = log_probs.astype(np.float64)
    bad = ~(wide <= 0).all(axis=-1)
    if bad.any():
        return [f"log_probs must be at most 0 and not NaN ({_first(bad, steps)})"]
    # Rounding to float16 moves each log p by at most 2^-11 |log p|, so the sum of all p by at most
    # 2^-11 times the entropy; the rest is for a softmax in single precision.
    tolerance = 2.0**-10 * (1 + math.log(wide.shape[-1]))
    bad = np.abs(np.exp(wide).sum(axis=-1) - 1) > tolerance
    if bad.any():
        return [f"probabilities must sum to 1 ({_first(bad, steps)})"]
    # Rounding keeps the order, so the predicted class has the largest value, perhaps with others.
    chosen = prediction[:, steps].astype(np.int64)[..., None]
    within = chosen < wide.shape[-1]
    picked = np.take_along_axis(wide, np.where(within, chosen, 0), axis=-1)
    bad = ((picked < wide.max(axis=-1, keepdims=True)) & within)[..., 0]
    if bad.any():
        return [f"the prediction must be the class of largest log p ({_first(bad, steps)})"]
    return []


def _first(bad: Any, steps: Int[np.ndarray, " S"]) -> str:
    e, s = np.argwhere(bad)[0]
    return f"first at episode {e}, step {steps[s]}"
