"""TextResult: what a method answered to the queries of a setting's test tasks, and its file."""

import dataclasses
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Int

from icl_bench.data.text import text_setting, text_task
from icl_bench.envs.text_labels import Labels
from icl_bench.evaluation.result import SCORER_VERSION
from icl_bench.evaluation.text_metrics import Metric, Summary, TaskPredictions, summarise
from icl_bench.registration import find_text_spec

# Key of the metadata in a file's schema, by which it is told from a file of vectors.
METADATA = b"icl_bench_text"
# A file of some kB can claim any number of rows; a setting has some 100,000.
MAX_FILE_ROWS = 2**22

_COLUMNS = ("task", "demo_seed", "query", "prediction", "answer")


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """Answers to the queries of one test task (Q queries, S demonstration seeds).

    Attributes:
        task: Name of the task.
        checksum: Of its queries and demonstrations, ``TextSource.checksum``.
        total: Number of queries that its test file has.
        query: Which of them were asked, ascending.
        answer: Index of the right option of each.
        prediction: Index of the predicted option, one row per demonstration seed.

    Raises:
        ValueError: If the arrays do not fit each other or hold values out of range.
    """

    task: str
    checksum: str
    total: int
    query: Int[np.ndarray, " Q"]
    answer: Int[np.ndarray, " Q"]
    prediction: Int[np.ndarray, "S Q"]

    def __post_init__(self) -> None:
        sizes = {len(self.query), len(self.answer), self.prediction.shape[1]}
        if len(sizes) > 1 or not self.prediction.size:
            raise ValueError(f"{self.task}: query, answer and prediction differ in length: {sizes}")
        ascending = (np.diff(self.query) > 0).all()
        if not ascending or self.query[0] < 0 or self.query[-1] >= self.total:
            raise ValueError(f"{self.task}: queries must be ascending and in [0, {self.total})")
        if min(self.answer.min(), self.prediction.min()) < 0:
            raise ValueError(f"{self.task}: indices of options must not be negative")

    @property
    def metric(self) -> Metric:
        """What the task is scored by."""
        return text_task(self.task).metric

    @property
    def predictions(self) -> TaskPredictions:
        """For the metrics and intervals of ``text_metrics``."""
        return TaskPredictions(self.task, self.metric, self.answer, self.prediction)


@dataclasses.dataclass(frozen=True)
class TextResult:
    """Answers of one method to the test tasks of a setting, in one view of its prompts.

    Attributes:
        env: Environment id.
        labels: ``true``, or which contamination twin.
        k: Number of demonstrations of the environment; a method may look at fewer.
        demo_seeds: Draws of demonstrations, the rows of every prediction.
        tasks: Results of the tasks that were asked, in the setting's order.

    Raises:
        ValueError: If there are no tasks, or one is no test task of the setting or comes twice, or
            labels are of no kind.
    """

    env: str
    labels: Labels
    k: int
    demo_seeds: tuple[int, ...]
    tasks: tuple[TaskResult, ...]

    def __post_init__(self) -> None:
        names = [task.task for task in self.tasks]
        known = text_setting(find_text_spec(self.env).setting).test
        others = sorted(set(names) - set(known))
        if not names or others or len(set(names)) < len(names):
            raise ValueError(f"{self.env}: tasks must be distinct test tasks of it: {others}")
        if self.labels not in get_args(Labels):
            raise ValueError(f"{self.env}: labels are {', '.join(get_args(Labels))}: {self.labels}")
        for task in self.tasks:
            if len(task.prediction) != len(self.demo_seeds):
                raise ValueError(
                    f"{task.task} has {len(task.prediction)} rows of predictions for "
                    f"{len(self.demo_seeds)} demonstration seeds"
                )

    @property
    def split(self) -> Literal["unseen"]:
        """The split, as of any result."""
        return "unseen"

    def of(self, domain: Literal["all", "new"]) -> tuple[TaskResult, ...]:
        """Results of all test tasks, or of those of unseen domains."""
        new = text_setting(find_text_spec(self.env).setting).unseen_domain
        return tuple(task for task in self.tasks if domain == "all" or task.task in new)

    def summary(self, domain: Literal["all", "new"] = "all") -> Summary:
        """Mean and worst over demonstration seeds, averaged over tasks, with 95 % intervals.

        Raises:
            ValueError: If there are fewer than two tasks.
        """
        return summarise([task.predictions for task in self.of(domain)])

    @property
    def full(self) -> bool:
        """Whether all queries of all test tasks were asked."""
        known = text_setting(find_text_spec(self.env).setting).test
        return len(self.tasks) == len(known) and all(
            len(task.query) == task.total for task in self.tasks
        )

    @property
    def coverage(self) -> str:
        """For instance ``19 of 20 test tasks, all queries`` or ``…, 950 of 9,120 queries``."""
        known = text_setting(find_text_spec(self.env).setting).test
        asked = sum(len(task.query) for task in self.tasks)
        total = sum(task.total for task in self.tasks)
        queries = "all queries" if asked == total else f"{asked:,} of {total:,} queries"
        return f"{len(self.tasks)} of {len(known)} test tasks, {queries}"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result as Parquet, one row per task, seed and query; atomic.

        Columns: task (string), demo_seed, query (int32), prediction, answer (uint8). Equal results
        give equal bytes under one version of pyarrow.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        from icl_bench.data.cache import atomic_path

        parts = []
        for task in self.tasks:
            seeds, count = len(self.demo_seeds), len(task.query)
            parts.append(
                pa.table(
                    [
                        pa.array([task.task] * (seeds * count), pa.string()),
                        np.repeat(np.array(self.demo_seeds, np.int64), count),
                        np.tile(task.query.astype(np.int32), seeds),
                        task.prediction.astype(np.uint8).reshape(-1),
                        np.tile(task.answer.astype(np.uint8), seeds),
                    ],
                    schema=_schema(),
                )
            )
        meta = {
            "env": self.env,
            "labels": self.labels,
            "k": self.k,
            "demo_seeds": list(self.demo_seeds),
            "checksums": {task.task: task.checksum for task in self.tasks},
            "totals": {task.task: task.total for task in self.tasks},
            "scorer_version": SCORER_VERSION,
        }
        table = pa.concat_tables(parts)
        table = table.replace_schema_metadata({METADATA: json.dumps(meta, sort_keys=True)})
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "TextResult":
        """Read a file written by ``save``.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged, too large or not such a result, naming the file.
        """
        import pyarrow as pa

        if not Path(path).exists():
            raise FileNotFoundError(f"no result file at {path}")
        try:
            return _read(Path(path))
        except (
            pa.ArrowException,
            OSError,
            KeyError,
            TypeError,
            ValueError,
            OverflowError,
            RecursionError,
        ) as error:
            raise ValueError(
                f"{path} is not a text result that can be read: {error} (an environment of your "
                "own must be registered first: icl-bench --import MODULE …)"
            ) from error


def is_text_result(path: str | os.PathLike[str]) -> bool:
    """Whether a Parquet file says that it holds a ``TextResult``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return METADATA in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):
        return False


@functools.cache
def _schema() -> Any:
    import pyarrow as pa

    types = (pa.string(), pa.int64(), pa.int32(), pa.uint8(), pa.uint8())
    return pa.schema(list(zip(_COLUMNS, types, strict=True)))


def _read(path: Path) -> TextResult:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        if file.metadata.num_rows > MAX_FILE_ROWS:
            raise ValueError(f"{file.metadata.num_rows} rows, more than {MAX_FILE_ROWS}")
        meta = json.loads((file.schema_arrow.metadata or {}).get(METADATA, b"{}"))
        table = file.read(columns=list(_COLUMNS)).select(list(_COLUMNS)).cast(_schema())
    if any(column.null_count for column in table.columns):
        raise ValueError("missing values")
    seeds = tuple(int(seed) for seed in meta["demo_seeds"])
    names = table["task"].to_numpy()
    column = {name: table[name].to_numpy().astype(np.int64) for name in _COLUMNS[1:]}
    order = list(dict.fromkeys(names.tolist()))
    if others := sorted({*order} - {*text_setting(find_text_spec(meta["env"]).setting).test}):
        raise ValueError(f"{meta['env']} has no test tasks {', '.join(others)[:200]}")
    tasks = [_task(name, names == name, column, seeds, meta) for name in order]
    return TextResult(meta["env"], meta["labels"], int(meta["k"]), seeds, tuple(tasks))


def _task(
    name: str,
    rows: np.ndarray,
    column: dict[str, np.ndarray],
    seeds: Sequence[int],
    meta: dict[str, Any],
) -> TaskResult:
    shaped = {key: values[rows].reshape(len(seeds), -1) for key, values in column.items()}
    same = (shaped["query"] == shaped["query"][:1]).all() and (
        shaped["answer"] == shaped["answer"][:1]
    ).all()
    if not same or (shaped["demo_seed"] != np.array(seeds)[:, None]).any():
        raise ValueError(f"{name}: rows are not every query of every demonstration seed in order")
    checksum, total = meta["checksums"][name], int(meta["totals"][name])
    answer, prediction = shaped["answer"][0], shaped["prediction"]
    return TaskResult(name, checksum, total, shaped["query"][0], answer, prediction)
