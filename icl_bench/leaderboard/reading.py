"""Submissions, read and validated without trusting or executing anything.

leaderboards/<suite>/<entry>/
    entry.toml                     what is said about the method
    predictions/seed-<n>.parquet   one file per meta-training seed, at most 3 MB
    checkpoints/seed-<n>.safetensors and .json   optional
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from icl_bench import catalog
from icl_bench.evaluation import protocol
from icl_bench.evaluation.result import Result
from icl_bench.evaluation.text_protocol import text_fingerprint
from icl_bench.evaluation.text_result import TextResult
from icl_bench.leaderboard.checks import (
    P,
    check_checkpoint,
    check_document,
    check_fingerprints,
    check_layout,
    check_seeds,
    read_toml,
    seed_files,
)
from icl_bench.leaderboard.entry import EntryInfo
from icl_bench.leaderboard.plausibility import first_step_flags, replay_problems
from icl_bench.leaderboard.predictions import SPLIT, Predictions, read_predictions
from icl_bench.leaderboard.replays import record_of
from icl_bench.leaderboard.runs import Run, load_run
from icl_bench.leaderboard.sandbox import TOO_MUCH
from icl_bench.leaderboard.suites import ALL_SUITES, AnySuite
from icl_bench.leaderboard.text_predictions import TextPredictions, read_text_predictions


@dataclasses.dataclass(frozen=True)
class Submission:
    """A submission that was read.

    Attributes:
        path: Its folder.
        entry: About the method; ``seed`` is the lowest one, ``gpu_hours`` those of all seeds.
            None if entry.toml is wrong.
        suite: None if unknown.
        predictions: Meta-training seed → environment id → predictions; of vector suites.
        text: The same of text suites.
        fingerprints: Environment id → evaluation fingerprint, as handed in.
        problems: Everything wrong with it; empty if nothing.
        outdated: Why its numbers cannot be compared with those of this version; empty if they can.
        flags: Why it needs a replay before anyone believes it; empty if nothing is odd.
    """

    path: Path
    entry: EntryInfo | None
    suite: AnySuite | None
    predictions: Mapping[int, Mapping[str, Predictions]]
    text: Mapping[int, Mapping[str, TextPredictions]]
    fingerprints: Mapping[str, str]
    problems: tuple[str, ...]
    outdated: tuple[str, ...]
    flags: tuple[str, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """Meta-training seeds, ascending."""
        return tuple(self.predictions) + tuple(self.text)

    def scorable(self) -> EntryInfo:
        """The entry of a submission that can be scored.

        Raises:
            ValueError: If the submission has problems or is outdated, naming all.
        """
        if self.problems or self.outdated or self.entry is None:
            reasons = "; ".join(self.problems + self.outdated)
            raise ValueError(f"{self.path} cannot be scored: {reasons}")
        return self.entry

    def results(self) -> dict[str, list[Result]]:
        """Environment id → one result per seed, with the labels of the frozen episodes.

        Empty for a text suite.

        Raises:
            ValueError: As ``scorable``.
        """
        self.scorable()
        if not isinstance(self.suite, catalog.Suite):
            return {}
        found: dict[str, list[Result]] = {}
        for by_env in self.predictions.values():
            for env, predictions in by_env.items():
                num_episodes = len(predictions.prediction)
                result = Result(
                    env=env,
                    split=SPLIT,
                    fingerprint=self.fingerprints[env],
                    seed=0,
                    env_kwargs={},
                    episode=np.arange(num_episodes),
                    task=protocol.frozen_tasks(num_episodes, self.suite.episodes_per_task),
                    label=protocol.frozen_labels(env, num_episodes),
                    prediction=predictions.prediction,
                    log_probs=predictions.log_probs,
                )
                found.setdefault(env, []).append(result)
        return {env: found[env] for env in self.suite.envs if env in found}

    def text_results(self) -> dict[str, list[TextResult]]:
        """Environment id → one result per seed, with the frozen answers.

        Empty for a suite of vectors.

        Raises:
            ValueError: As ``scorable``.
        """
        self.scorable()
        if not isinstance(self.suite, catalog.TextSuite):
            return {}
        found: dict[str, list[TextResult]] = {}
        for by_env in self.text.values():
            for env, predictions in by_env.items():
                found.setdefault(env, []).append(predictions.result(env, self.suite))
        return {env: found[env] for env in self.suite.envs if env in found}


def validate(path: str | os.PathLike[str]) -> list[str]:
    """Everything that is wrong with a submission, one sentence each; empty if it is valid.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    submission = read_submission(path)
    return [*submission.problems, *submission.outdated]


def read_submission(path: str | os.PathLike[str]) -> Submission:
    """Read and check a submission; what is wrong is in ``problems`` and ``outdated``.

    Nothing beside the folder is opened, but for the record of its replay.

    Raises:
        FileNotFoundError: If there is no such folder.
        RuntimeError: On systems without limits of memory and time, or if the process that
            unpacks predictions cannot be started.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no submission at {path}: there is no such folder")
    files, problems = check_layout(path)
    predictions = seed_files(files, "predictions")
    for name, file in files.items():
        if file is not None and name.startswith("checkpoints/"):
            problems += check_checkpoint(name, file)
    about = files.get("entry.toml")
    document, complaints = (None, []) if about is None else read_toml(about)
    entry, suite = None, None
    outdated: list[str] = []
    if document is not None:
        entry, suite, outdated, complaints = check_document(document, path.resolve().name)
    problems += [f"entry.toml: {complaint}" for complaint in complaints]
    vectors: dict[int, Mapping[str, Predictions]] = {}
    text: dict[int, Mapping[str, TextPredictions]] = {}
    fingerprints: Mapping[str, str] = {}
    flags: tuple[str, ...] = ()
    if suite is not None and document is not None:
        fingerprints = document.get("fingerprints", {})
        if isinstance(suite, catalog.TextSuite):
            read_text = functools.partial(read_text_predictions, suite=suite)
            text, complaints, more = _read(document, predictions, read_text, text_fingerprint)
        else:
            read = functools.partial(read_predictions, suite=suite)
            current = protocol.evaluation_fingerprint
            vectors, complaints, more = _read(document, predictions, read, current)
            complaints += _unpinned(vectors)
        problems, outdated = problems + complaints, outdated + more
        problems += misplaced(path, suite)
        if isinstance(suite, catalog.Suite) and not problems and not outdated:
            flags = first_step_flags(
                list(vectors.values()), suite.episodes_per_task, ranked_tasks=suite.tasks
            )
            try:
                problems += replay_problems(flags, record_of(path))
            except ValueError as error:
                problems.append(str(error))
    return Submission(
        path, entry, suite, vectors, text, fingerprints, tuple(problems), tuple(outdated), flags
    )


def _read(
    document: Mapping[str, Any],
    seed_files: Mapping[int, Path | None],
    read: Callable[[Path], tuple[dict[str, P], list[str]]],
    current: Callable[[str], str],
) -> tuple[dict[int, Mapping[str, P]], list[str], list[str]]:
    """Predictions of every seed, everything wrong with them, and why they are outdated."""
    predictions: dict[int, Mapping[str, P]] = {}
    problems: list[str] = []
    for seed, file in sorted(seed_files.items()):
        predictions[seed] = {}
        if file is None or any(TOO_MUCH in problem for problem in problems):
            continue  # told by the layout; or one such file is enough
        found, complaints = read(file)
        predictions[seed] = {} if complaints else found
        problems += [f"predictions/seed-{seed}.parquet: {complaint}" for complaint in complaints]
    problems += check_seeds(document, predictions, seed_files)
    outdated: list[str] = []
    if "fingerprints" in document:
        complaints, outdated = check_fingerprints(document["fingerprints"], predictions, current)
        problems += complaints
    return predictions, problems, outdated


def _unpinned(predictions: Mapping[int, Mapping[str, Predictions]]) -> list[str]:
    """Environments that were handed in although this version cannot score them."""
    counts = {
        env: len(p.prediction) for by_env in predictions.values() for env, p in by_env.items()
    }
    problems = []
    for env, num_episodes in counts.items():
        try:
            protocol.frozen_labels(env, num_episodes)
        except LookupError as error:
            problems.append(f"{env}: {error}")
    return problems


def misplaced(path: Path, suite: AnySuite) -> list[str]:
    """What is wrong with the folder that a submission lies in."""
    folder = path.resolve().parent.name
    if folder != suite.name and any(folder == row.name for row in ALL_SUITES):
        return [f"belongs to {suite.name}: move it from {folder} to that folder"]
    return []


def load_runs(paths: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """Read run folders, and submissions as if each of their seeds were a run.

    Raises:
        FileNotFoundError: If a folder is neither.
        ValueError: If a folder has something wrong with it.
    """
    runs = []
    for path in map(Path, paths):
        if not (path / "entry.toml").is_file():
            runs.append(load_run(path))
            continue
        submission = read_submission(path)
        about, results, text = (
            submission.scorable(),
            submission.results(),
            submission.text_results(),
        )
        assert submission.suite is not None  # or it would have problems
        for i, seed in enumerate(submission.seeds):
            entry = dataclasses.replace(about, seed=seed)
            vectors = tuple(by_seed[i] for by_seed in results.values())
            texts = tuple(by_seed[i] for by_seed in text.values())
            runs.append(Run(path, entry, submission.suite.name, vectors, texts))
    return runs
