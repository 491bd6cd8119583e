"""Run folders with made-up predictions on the real frozen answers, for tests of text boards."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from synthetic_runs import entry_info

from icl_bench.data.text import DEMO_SEEDS
from icl_bench.evaluation.text_protocol import (
    scorable_tasks,
    text_answers,
    text_checksum,
    text_fingerprint,
    text_options,
)
from icl_bench.evaluation.text_result import TaskResult, TextResult
from icl_bench.leaderboard.entry import EntryInfo
from icl_bench.leaderboard.runs import result_path, write_meta
from icl_bench.leaderboard.submission import make_submission
from icl_bench.registration import find_text_spec

MINI, MINI_CHANNEL = "TextMini-ICL-v0", "TextMini-Channel-v0"
MINI_SUITE, SUITE = "textmini-v0", "metaicl-v0"
PARA, NLI = "NonParaToPara-ICL-v0", "NonNLItoNLI-ICL-v0"


def task_result(task: str, correct: np.ndarray, query: np.ndarray | None = None) -> TaskResult:
    """Right exactly where told, one row per demonstration seed; wrong = the next option."""
    answers, options = text_answers(task), text_options(task)
    query = np.arange(len(answers)) if query is None else query
    answer = answers[query]
    wrong = (answer + 1) % options[query]
    prediction = np.where(correct, answer, wrong)
    return TaskResult(task, text_checksum(task), len(answers), query, answer, prediction)


def text_result(
    env: str = MINI,
    accuracy: float = 0.6,
    seed: int = 0,
    *,
    tasks: Sequence[str] | None = None,
    queries: Mapping[str, Sequence[int]] | int | None = None,
    **fields,
) -> TextResult:
    """Random answers; ``queries`` are the first so many of every task, or some of each task."""
    rng = np.random.default_rng(seed)
    results = []
    for task in scorable_tasks(find_text_spec(env).setting) if tasks is None else tasks:
        total = len(text_answers(task))
        given = queries.get(task) if isinstance(queries, Mapping) else queries
        asked = np.arange(total) if given is None else np.array(given)
        if isinstance(given, int):
            asked = np.arange(given)
        correct = rng.random((len(DEMO_SEEDS), total)) < accuracy
        results.append(task_result(task, correct[:, asked], asked))
    return TextResult(
        **{"env": env, "labels": "true", "k": 16, "demo_seeds": DEMO_SEEDS}
        | fields
        | {"tasks": tuple(results)}
    )


def text_entry(name: str = "metaicl", **fields) -> EntryInfo:
    return entry_info(
        name,
        **{
            "meta_train": MINI,
            "code": f"python -m baselines.metaicl --env {fields.get('meta_train', MINI)}",
        }
        | fields,
    )


def text_run(
    root: Path, results: Sequence[TextResult], entry: EntryInfo, suite: str | None = MINI_SUITE
) -> Path:
    """A run folder; its name ends with a number instead of the time."""
    path = root / f"{results[0].env}__{entry.name}__{entry.seed}__{len(list(root.glob('*')))}"
    path.mkdir(parents=True)
    write_meta(path, entry, suite, {result.env: text_fingerprint(result.env) for result in results})
    for result in results:
        result.save(result_path(path, result.env, "unseen"))
    return path


def text_runs(
    root: Path,
    name: str = "metaicl",
    accuracy: float = 0.6,
    *,
    seeds: Sequence[int] = (0, 1),
    envs: Sequence[str] = (MINI,),
    suite: str = MINI_SUITE,
    asked: Mapping[str, object] | None = None,
    **fields,
) -> list[Path]:
    """One run folder per seed and environment, each meta-trained on its own environment."""
    return [
        text_run(
            root / name,
            [text_result(env, accuracy, 100 * seed + i, **(asked or {}))],
            text_entry(name, **{"seed": seed, "meta_train": env} | fields),
            suite,
        )
        for seed in seeds
        for i, env in enumerate(envs)
    ]


def hand_in(root: Path, name: str, *results: TextResult, suite: str = SUITE, **fields) -> Path:
    """An entry with one meta-training seed per result."""
    runs = [
        text_run(
            root / "runs" / name,
            [result],
            text_entry(name, **{"seed": seed, "meta_train": result.env} | fields),
            suite,
        )
        for seed, result in enumerate(results)
    ]
    return make_submission(runs, root / suite / name, suite, allow_missing=True)


def exact(env: str, right: dict[str, list[float]]) -> TextResult:
    """Of each task the first so many per cent of the queries right, per demonstration seed."""
    tasks = []
    for task in scorable_tasks(env.split("-")[0]):
        total = len(text_answers(task))
        correct = np.arange(total) < np.array(right[task])[:, None] * total
        tasks.append(task_result(task, correct))
    return TextResult(env, "true", 16, DEMO_SEEDS, tuple(tasks))
