"""Evaluation on text: what a learner is, frozen answers, suites, and the way to a TextResult."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence, Sized
from importlib import resources
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from icl_bench import catalog
from icl_bench.data.text import DEMO_SEEDS, NUM_DEMOS, text_setting
from icl_bench.envs.text_labels import Labels
from icl_bench.envs.text_source import Domain, TextSource, text_args
from icl_bench.episodes import TextEpisode
from icl_bench.evaluation.learner import LearnerError
from icl_bench.evaluation.text_result import TaskResult, TextResult
from icl_bench.registration import find_text_spec
from icl_bench.tasks.counter import long_words, stream_key

# Raised when any number of an evaluation changes for a reason that is in no other field.
PROTOCOL_VERSION = 0

Finished: TypeAlias = Callable[[TaskResult], None]


@runtime_checkable
class TextLearner(Protocol):
    """What is scored: a number for every option of every query, the larger the likelier.

    All episodes of a call are of one task and have the same demonstrations. The queries' outputs
    are empty and must not be needed.
    """

    def __call__(self, episodes: Sequence[TextEpisode]) -> Sequence[Float[np.ndarray, " _"]]:
        """Numbers of the options, for instance log-likelihoods; ties go to the first."""
        ...


def text_suite(name: str) -> catalog.TextSuite:
    """A text suite by its name.

    Raises:
        ValueError: If there is no such suite, naming those that there are.
    """
    for row in catalog.TEXT_SUITES:
        if row.name == name:
            return row
    known = ", ".join(row.name for row in catalog.TEXT_SUITES)
    raise ValueError(f"unknown text suite {name!r}; there are {known}")


def evaluate_text(
    learner: TextLearner,
    env_id: str,
    *,
    tasks: Sequence[str] | None = None,
    domain: Domain = "all",
    num_queries: int | None = None,
    demo_seeds: Sequence[int] = DEMO_SEEDS,
    k: int = NUM_DEMOS,
    labels: Labels = "true",
    data_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
    finished: Finished | None = None,
) -> TextResult:
    """Ask a learner the queries of a setting's test tasks, once for each draw of demonstrations.

    Args:
        learner: Gives every option of a query a number; see ``TextLearner``.
        env_id: Text environment, for instance ``"TextMini-ICL-v0"``.
        tasks: Some of its test tasks; by default all that are at hand.
        domain: ``new`` for the tasks of unseen domains alone.
        num_queries: Ask so many queries of each task, drawn by a key; all by default.
        demo_seeds: Draws of demonstrations.
        k: Number of demonstrations.
        labels: Which contamination twin, see ``icl_bench.make``.
        data_dir: Data folder that is looked in first.
        progress: Show a progress bar.
        finished: Called with the result of each task as soon as it is there.

    Raises:
        LearnerError: If the learner gives other than one number per option, none of them NaN.
        ValueError: For an unknown environment or task, or bad arguments.
        FileNotFoundError: If the data are not at hand.

    Example:
        >>> import icl_bench
        >>> result = icl_bench.evaluate_text(icl_bench.MajorityLabel(), "TextMini-ICL-v0")
        >>> result.coverage
        '33 of 33 test tasks, all queries'
    """
    from tqdm import tqdm

    seeds = tuple(int(seed) for seed in demo_seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"demo_seeds must be distinct and at least one: {list(demo_seeds)}")
    if num_queries is not None and num_queries < 1:
        raise ValueError(f"num_queries must be at least 1, not {num_queries}")
    args = text_args(split="unseen", domain=domain, k=k, labels=labels)
    source = TextSource(env_id, args, data_dir=data_dir)
    asked = source.tasks if tasks is None else tuple(tasks)
    if others := [task for task in asked if task not in source.tasks]:
        raise ValueError(
            f"{env_id} has no test tasks {', '.join(others)} at hand; there are "
            f"{', '.join(source.tasks)}"
        )
    checksums = {task: source.checksum(task) for task in asked}
    for task in asked:  # what is missing is missed before anything is computed
        for seed in seeds:
            source.queries(task, seed)
    found = []
    with tqdm(
        total=len(asked) * len(seeds), desc=env_id, unit="draw", disable=None if progress else True
    ) as bar:
        for task in source.tasks:
            if task not in asked:
                continue
            rows = []
            for seed in seeds:
                episodes = source.queries(task, seed)
                chosen = _chosen(task, len(episodes), num_queries)
                rows.append(_ask(learner, [episodes[i] for i in chosen], task))
                answers = np.array([episodes[i].query.answer for i in chosen])
                bar.update()
            found.append(
                TaskResult(task, checksums[task], len(episodes), chosen, answers, np.stack(rows))
            )
            if finished is not None:
                finished(found[-1])
    return TextResult(env_id, labels, args.k, seeds, tuple(found))


def _chosen(task: str, total: int, count: int | None) -> Int[np.ndarray, " Q"]:
    """Which queries of a task are asked, ascending; a smaller number is a part of a larger one."""
    if count is None or count >= total:
        return np.arange(total)
    marks = long_words(stream_key("text queries asked", task), np.arange(total), 1)[:, 0]
    chosen: np.ndarray = np.sort(np.argsort(marks, kind="stable")[:count])
    return chosen


def _ask(learner: TextLearner, episodes: Sequence[TextEpisode], task: str) -> Int[np.ndarray, " Q"]:
    """Predicted options: those of the largest number, the first of several."""
    given: Any = learner([_without_answer(episode) for episode in episodes])
    count = len(given) if isinstance(given, Sized) else type(given).__name__
    if count != len(episodes):
        raise LearnerError(f"{task}: {count} answers to {len(episodes)} queries")
    predicted = []
    for values, episode in zip(given, episodes, strict=True):
        row: Any = np.asarray(values)
        options = len(episode.query.options)
        if row.shape != (options,) or row.dtype.kind not in "fiu" or np.isnan(row).any():
            raise LearnerError(
                f"{task}, query {episode.episode}: {options} options need as many numbers, none "
                f"of them NaN; the learner gave shape {row.shape}: {row.tolist()}"
            )
        predicted.append(int(row.argmax()))
    return np.array(predicted)


def _without_answer(episode: TextEpisode) -> TextEpisode:
    query = dataclasses.replace(episode.query, output="")
    return dataclasses.replace(episode, query=query)


# Frozen answers, so that boards need no texts


@functools.cache
def _frozen() -> dict[str, tuple[str, np.ndarray, np.ndarray]]:
    """Task → checksum, answers, numbers of options."""
    file = resources.files("icl_bench.evaluation") / "frozen" / "text.npz"
    with resources.as_file(file) as path, np.load(path, allow_pickle=False) as archive:
        parts = {name: archive[name] for name in archive.files}
    ends = np.cumsum(parts["counts"])[:-1]
    rows = zip(
        parts["tasks"].tolist(),
        parts["checksums"].tolist(),
        np.split(parts["answers"], ends),
        np.split(parts["options"], ends),
        strict=True,
    )
    return {task: (checksum, answers, options) for task, checksum, answers, options in rows}


def _frozen_task(task: str) -> tuple[str, np.ndarray, np.ndarray]:
    if task not in _frozen():
        raise LookupError(
            f"the answers of {task} are not pinned: its test file was not at hand when this "
            "version was made, so its predictions cannot be scored"
        )
    return _frozen()[task]


def text_answers(task: str) -> Int[np.ndarray, " N"]:
    """Index of the right option of every query of a test task, committed with the package.

    Raises:
        LookupError: If they are unpinned.
    """
    return _frozen_task(task)[1].astype(np.int64)


def text_options(task: str) -> Int[np.ndarray, " N"]:
    """Number of options of every query of a test task, committed with the package.

    Raises:
        LookupError: If they are unpinned.
    """
    return _frozen_task(task)[2].astype(np.int64)


def text_checksum(task: str) -> str:
    """SHA-256 of the queries and demonstrations that the frozen answers are of.

    Raises:
        LookupError: If they are unpinned.
    """
    return _frozen_task(task)[0]


def scorable_tasks(setting: str) -> tuple[str, ...]:
    """Test tasks of a setting whose answers are pinned, in its order."""
    return tuple(task for task in text_setting(setting).test if task in _frozen())


def text_fingerprint(env_id: str) -> str:
    """SHA-256 of all that changes a number of the standard evaluation of a text environment.

    Tasks that are not pinned, as the user's own, count by their names alone.
    """
    spec = find_text_spec(env_id)
    frozen = _frozen()
    content = {
        "protocol": PROTOCOL_VERSION,
        "env": spec.id,
        "view": spec.prompt_view,
        "k": NUM_DEMOS,
        "demo_seeds": list(DEMO_SEEDS),
        "tasks": {
            task: frozen[task][0] if task in frozen else None
            for task in text_setting(spec.setting).test
        },
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
