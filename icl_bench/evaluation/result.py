"""Result: one evaluated learner on one environment and split, and its Parquet file."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Float16, Int, UInt8

from icl_bench.episodes import SPLITS, Split

if TYPE_CHECKING:
    import pyarrow as pa

# Raised whenever the way in which a number is computed changes; boards never mix two versions.
SCORER_VERSION = 1

# Steps at which log-probabilities are kept: after 0, 1, 4, 9, 19, 49 and 99 labelled examples.
LOG_PROB_STEPS = (0, 1, 4, 9, 19, 49, 99)

# A file of some kB can claim any number of rows; these are about 160,000 episodes of 100 steps.
MAX_FILE_ROWS = 2**24


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
        episode: Episode ids, strictly ascending, in [0, 2^31).
        task: Task ids.
        label: Right labels, in [0, C).
        prediction: Predicted labels: the class of largest logit, the first one of several.
        log_probs: log p of every class at the steps ``log_prob_steps(T)``; at most 0.

    Raises:
        ValueError: If the arrays do not fit each other or hold values out of range.
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

    def __post_init__(self) -> None:
        num_episodes, length = self.label.shape
        num_classes = self.log_probs.shape[2]
        expected = (num_episodes, len(log_prob_steps(length)), num_classes)
        if self.split not in SPLITS:
            raise ValueError(f"unknown split {self.split!r}, not one of {', '.join(SPLITS)}")
        if not self.label.size:
            raise ValueError("a result needs at least one episode of at least one step")
        if not num_episodes == len(self.episode) == len(self.task) == len(self.prediction):
            raise ValueError("episode, task, label and prediction differ in number of episodes")
        if self.prediction.shape != self.label.shape:
            raise ValueError(f"{self.prediction.shape} predictions for {self.label.shape} labels")
        if self.log_probs.shape != expected:
            raise ValueError(f"log_probs have shape {self.log_probs.shape}, expected {expected}")
        if self.episode[0] < 0 or self.episode[-1] >= 2**31 or (np.diff(self.episode) <= 0).any():
            raise ValueError("episode ids must be strictly ascending and in [0, 2^31)")
        if max(self.label.max(), self.prediction.max()) >= num_classes:
            raise ValueError(f"labels and predictions must be below the {num_classes} classes")
        if not (self.log_probs <= 0).all():  # also where NaN
            raise ValueError("log-probabilities must be at most 0 and not NaN")

    @property
    def correct(self) -> Bool[np.ndarray, "E T"]:
        """Whether each prediction is right."""
        right: np.ndarray = self.prediction == self.label
        return right

    @property
    def episode_length(self) -> int:
        """T."""
        return int(self.label.shape[1])

    @property
    def learning_curve(self) -> Float[np.ndarray, " T"]:
        """Accuracy at every step, over all episodes, in [0, 1]."""
        curve: np.ndarray = self.correct.mean(axis=0)
        return curve

    def head(self, num_episodes: int) -> "Result":
        """The same result on the first episodes only."""
        arrays = ("episode", "task", "label", "prediction", "log_probs")
        return dataclasses.replace(self, **{a: getattr(self, a)[:num_episodes] for a in arrays})

    def accuracy(self, step: int = -1) -> float:
        """Accuracy at one step (0-based; the last one by default), in [0, 1].

        Raises:
            IndexError: If there is no such step.
        """
        last = self.episode_length - 1
        if not -last - 1 <= step <= last:
            raise IndexError(
                f"there is no step {step}: steps are 0 … {last}; after {last} examples is step "
                f"{last}"
            )
        return float(self.correct[:, step].mean())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result as Parquet: one row per episode and step; atomic.

        Columns: env, split, episode (int32), task (int64), step (uint16), prediction, label
        (uint8), correct (bool), log_probs (list of float16; null but at the kept steps). The
        file's metadata hold fingerprint, seed, env_kwargs and scorer version. Equal results give
        equal bytes under one version of pyarrow.

        Raises:
            TypeError: If ``env_kwargs`` hold something that is no JSON type.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        from icl_bench.data.cache import atomic_path

        num_episodes, length = self.label.shape
        num_rows = num_episodes * length
        kept = np.isin(np.arange(num_rows) % length, log_prob_steps(length))
        ends = np.cumsum(kept, dtype=np.int32) * np.int32(self.log_probs.shape[2])
        columns = [
            _constant(self.env, num_rows),
            _constant(self.split, num_rows),
            np.repeat(self.episode.astype(np.int32), length),
            np.repeat(self.task.astype(np.int64), length),
            np.tile(np.arange(length, dtype=np.uint16), num_episodes),
            self.prediction.reshape(-1),
            self.label.reshape(-1),
            self.correct.reshape(-1),
            pa.ListArray.from_arrays(
                pa.array(np.concatenate([np.zeros(1, np.int32), ends])),
                pa.array(self.log_probs.reshape(-1)),
                mask=pa.array(~kept),
            ),
        ]
        meta = {
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "env_kwargs": dict(self.env_kwargs),
            "scorer_version": SCORER_VERSION,
        }
        table = pa.table(dict(zip(_schema().names, columns, strict=True)))
        table = table.replace_schema_metadata({"icl_bench": json.dumps(meta, sort_keys=True)})
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Result":
        """Read a file written by ``save``.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged, too large or not such a result, naming the file
                and what is wrong.
        """
        import pyarrow as pa

        if not Path(path).exists():
            raise FileNotFoundError(f"no result file at {path}")
        try:
            return cls(**_read(Path(path)))
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a result file of icl_bench: {error}") from error


def _schema() -> "pa.Schema":
    """Columns of a result file and their types."""
    import pyarrow as pa

    return pa.schema(
        {
            "env": pa.string(),
            "split": pa.string(),
            "episode": pa.int32(),
            "task": pa.int64(),
            "step": pa.uint16(),
            "prediction": pa.uint8(),
            "label": pa.uint8(),
            "correct": pa.bool_(),
            "log_probs": pa.list_(pa.float16()),
        }
    )


def _constant(value: str, num_rows: int) -> "pa.DictionaryArray":
    """A column that holds one value."""
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(np.zeros(num_rows, np.int8), [value])


def _read(path: Path) -> dict[str, Any]:
    """The fields of the result in a file; anything that is wrong raises."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        num_rows, schema = file.metadata.num_rows, _schema()
        if num_rows > MAX_FILE_ROWS:
            raise ValueError(f"{num_rows} rows, more than {MAX_FILE_ROWS}")
        missing = set(schema.names) - set(file.schema_arrow.names)
        if missing:
            raise ValueError(f"no column {', '.join(sorted(missing))}")
        table = file.read(columns=schema.names).select(schema.names).cast(schema)
        meta = json.loads((file.schema_arrow.metadata or {}).get(b"icl_bench", b"{}"))
    for name, kind in (("fingerprint", str), ("seed", int), ("env_kwargs", dict)):
        if not isinstance(meta, dict) or not isinstance(meta.get(name), kind):
            raise ValueError(f"no {name} in the metadata")
    column = {name: table[name].combine_chunks() for name in schema.names}
    nulls = [name for name in schema.names[:-1] if column[name].null_count]
    if nulls or not len(table):
        raise ValueError(f"missing values in column {nulls[0]}" if nulls else "no rows")

    step = column["step"].to_numpy()
    length = int(step.max()) + 1
    if len(step) % length or (step.reshape(-1, length) != np.arange(length)).any():
        raise ValueError("steps of the episodes are incomplete or out of order")
    fields: dict[str, Any] = {name: meta[name] for name in ("fingerprint", "seed", "env_kwargs")}
    for name in ("env", "split"):
        values = column[name].unique().to_pylist()
        if len(values) != 1:
            raise ValueError(f"column {name} holds several values: {values[:3]}")
        fields[name] = values[0]
    if fields["split"] not in SPLITS:
        raise ValueError(f"unknown split {fields['split']!r}, not one of {', '.join(SPLITS)}")
    for name in ("episode", "task"):
        ids = column[name].to_numpy().reshape(-1, length).astype(np.int64)
        if (ids != ids[:, :1]).any():
            raise ValueError(f"column {name} changes within an episode")
        fields[name] = ids[:, 0].copy()
    for name in ("label", "prediction"):
        fields[name] = column[name].to_numpy().reshape(-1, length)
    correct = column["correct"].to_numpy(zero_copy_only=False).reshape(-1, length)
    if (correct != (fields["label"] == fields["prediction"])).any():
        raise ValueError("column correct contradicts label and prediction")

    log_probs = column["log_probs"]
    kept = np.isin(step, log_prob_steps(length))
    sizes = np.unique(log_probs.value_lengths().drop_null().to_numpy())
    flat = log_probs.flatten()
    if len(sizes) != 1 or flat.null_count or (log_probs.is_valid().to_numpy(False) != kept).any():
        raise ValueError(
            f"log_probs must hold one number per class at the steps {log_prob_steps(length)} only"
        )
    fields["log_probs"] = flat.to_numpy().reshape(len(step) // length, -1, int(sizes[0]))
    return fields
