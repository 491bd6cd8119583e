"""The file ``predictions/seed-<n>.parquet`` of a text submission.

One row per environment, test task, demonstration seed and query, in any order:

    env         string; all of one view, ICL or Channel
    task        string, a test task of the environment's setting
    demo_seed   int32
    query       int32, number of the query in its task's test file
    prediction  uint8, index of the predicted option

Some tasks, or some queries of a task, may be handed in; each with all demonstration seeds.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int, UInt8

from icl_bench.catalog import TextSuite
from icl_bench.data.text import text_setting
from icl_bench.evaluation.text_protocol import (
    scorable_tasks,
    text_answers,
    text_checksum,
    text_options,
)
from icl_bench.evaluation.text_result import TaskResult, TextResult
from icl_bench.leaderboard.columns import Texts, listed, read_columns
from icl_bench.registration import find_text_spec


@dataclasses.dataclass(frozen=True)
class TaskPart:
    """Predictions on queries of one task.

    Attributes:
        query: Which queries, ascending.
        prediction: Options, one row per demonstration seed of the suite.
    """

    query: Int[np.ndarray, " Q"]
    prediction: UInt8[np.ndarray, "S Q"]


@dataclasses.dataclass(frozen=True)
class TextPredictions:
    """Predictions on the test tasks of one environment.

    Attributes:
        tasks: Task → predictions, in the setting's order; only what was handed in.
    """

    what: ClassVar[str] = "tasks or queries"

    tasks: Mapping[str, TaskPart]

    def same_cells(self, other: "TextPredictions") -> bool:
        """Whether both are about the same queries."""
        return self.tasks.keys() == other.tasks.keys() and all(
            np.array_equal(part.query, other.tasks[task].query) for task, part in self.tasks.items()
        )

    def same_predictions(self, other: "TextPredictions") -> bool:
        """Whether all predictions are equal; of the same queries."""
        return all(
            np.array_equal(part.prediction, other.tasks[task].prediction)
            for task, part in self.tasks.items()
        )

    def result(self, env: str, suite: TextSuite) -> TextResult:
        """A result with the frozen answers."""
        tasks = []
        for task, part in self.tasks.items():
            answers = text_answers(task)
            prediction = part.prediction.astype(np.int64)
            tasks.append(
                TaskResult(
                    task,
                    text_checksum(task),
                    len(answers),
                    part.query,
                    answers[part.query],
                    prediction,
                )
            )
        return TextResult(env, "true", suite.num_demos, suite.demo_seeds, tuple(tasks))


def text_prediction_schema() -> Any:
    """The ``pyarrow.Schema`` of a file of predictions."""
    import pyarrow as pa

    return pa.schema(
        {
            "env": pa.string(),
            "task": pa.string(),
            "demo_seed": pa.int32(),
            "query": pa.int32(),
            "prediction": pa.uint8(),
        }
    )


def write_text_predictions(path: str | os.PathLike[str], results: Sequence[TextResult]) -> None:
    """Write the predictions of one meta-training seed, a task after the other; not atomic.

    Equal results give equal bytes under one version of pyarrow.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = text_prediction_schema()
    tables = []
    for result in results:
        for task in result.tasks:
            num_seeds, num_queries = task.prediction.shape
            columns = [
                pa.array([result.env] * task.prediction.size, pa.string()),
                pa.array([task.task] * task.prediction.size, pa.string()),
                np.repeat(np.array(result.demo_seeds, np.int32), num_queries),
                np.tile(task.query.astype(np.int32), num_seeds),
                task.prediction.astype(np.uint8).reshape(-1),
            ]
            tables.append(pa.table(columns, schema=schema))
    pq.write_table(pa.concat_tables(tables), path, compression="zstd", compression_level=15)


def most_rows(suite: TextSuite) -> int:
    """Rows of a hand-in of all queries of all settings."""
    queries = [len(text_answers(t)) for s in suite.settings for t in scorable_tasks(s)]
    return sum(queries) * len(suite.demo_seeds)


def read_text_predictions(
    path: str | os.PathLike[str], suite: TextSuite
) -> tuple[dict[str, TextPredictions], list[str]]:
    """Read a file from a stranger: what is right in it by environment, and all that is wrong."""
    columns, problems = read_columns(Path(path), text_prediction_schema(), most_rows(suite))
    if columns is None:
        return {}, problems
    envs: Texts = columns["env"]
    if unknown := sorted(set(envs.names) - set(suite.envs)):
        problems.append(
            f"{listed(unknown)} not in {suite.name}, whose environments are {', '.join(suite.envs)}"
        )
    known = [env for env in suite.envs if env in envs.names]
    views = {find_text_spec(env).view for env in known}
    if len(views) > 1:
        problems.append(
            f"views are mixed ({', '.join(known)}): an entry is direct (ICL) or channel, "
            "hand the two in as two entries"
        )
    found: dict[str, TextPredictions] = {}
    for env in known:
        parts, complaints = _env_parts(columns, env, suite)
        problems += [f"{env}: {complaint}" for complaint in complaints]
        if not complaints:
            found[env] = TextPredictions(parts)
    return found, problems


def _env_parts(
    columns: Mapping[str, Any], env: str, suite: TextSuite
) -> tuple[dict[str, TaskPart], list[str]]:
    """Predictions of one environment by task in the setting's order, and all that is wrong."""
    setting = text_setting(find_text_spec(env).setting)
    names, code = columns["task"].names, columns["task"].code
    of_env = np.flatnonzero(columns["env"].rows(env))
    of_env = of_env[np.argsort(code[of_env], kind="stable")]
    used, starts = np.unique(code[of_env], return_index=True)
    parts: dict[str, TaskPart] = {}
    unknown, problems = [], []
    for number, of_task in zip(used, np.split(of_env, starts[1:]), strict=True):
        task = names[number]
        if task not in setting.test:
            unknown.append(task)
        elif task not in scorable_tasks(setting.name):
            problems.append(f"the answers of {task} are not pinned, so it cannot be handed in")
        else:
            part, complaints = _task_part(columns, of_task, task, suite)
            problems += [f"{task}: {complaint}" for complaint in complaints]
            if part is not None:
                parts[task] = part
    if unknown:
        problems.insert(0, f"{listed(sorted(unknown))} no test task of {setting.name}")
    return {task: parts[task] for task in setting.test if task in parts}, problems


def _task_part(
    columns: Mapping[str, Any], of_task: Int[np.ndarray, " M"], task: str, suite: TextSuite
) -> tuple[TaskPart | None, list[str]]:
    """Predictions of one task in canonical order, and everything wrong with them."""
    seeds, total = np.array(suite.demo_seeds), len(text_answers(task))
    names = ("demo_seed", "query", "prediction")
    seed, query, prediction = (columns[name][of_task].astype(np.int64) for name in names)
    known = np.isin(seed, seeds)
    if not known.all():
        told = ", ".join(map(str, seeds))
        return None, [f"demonstration seed {seed[~known][0]} is none of {told}"]
    if query.min() < 0 or query.max() >= total:
        bad = query.min() if query.min() < 0 else query.max()
        return None, [f"query {bad} is not frozen: 0 to {total - 1} are"]
    row = (seed[:, None] == seeds).argmax(axis=1)
    times = np.bincount(row * total + query, minlength=len(seeds) * total)
    times = times.reshape(len(seeds), total)
    asked = times.any(axis=0)
    problems = []
    for wrong, words in (
        (times > 1, "are given more than once"),
        ((times == 0) & asked, "are missing: each query needs all demonstration seeds"),
    ):
        if wrong.any():
            s, q = np.argwhere(wrong)[0]
            problems.append(
                f"{int(wrong.sum())} predictions {words} (first: seed {seeds[s]}, query {q})"
            )
    beyond = prediction >= text_options(task)[query]
    if beyond.any():
        first = int(np.flatnonzero(beyond)[0])
        problems.append(
            f"prediction {prediction[first]} of query {query[first]} is not an option, there are "
            f"{text_options(task)[query[first]]}"
        )
    if problems:
        return None, problems
    table = np.zeros((len(seeds), total), np.uint8)
    table[row, query] = prediction
    return TaskPart(np.flatnonzero(asked), table[:, asked]), []
