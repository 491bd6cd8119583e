"""Submissions: made from run folders, and validated without trusting or executing anything.

leaderboards/<suite>/<entry>/
    entry.toml                     what is said about the method
    predictions/seed-<n>.parquet   one file per meta-training seed, at most 3 MB
    checkpoints/seed-<n>.safetensors and .json   optional
"""

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from icl_bench import catalog
from icl_bench.evaluation import protocol
from icl_bench.evaluation.result import SCORER_VERSION, Result
from icl_bench.leaderboard.checks import (
    check_document,
    check_fingerprints,
    check_layout,
    check_seeds,
    read_toml,
)
from icl_bench.leaderboard.entry import EntryInfo, to_toml
from icl_bench.leaderboard.predictions import (
    SPLIT,
    Predictions,
    episode_counts,
    read_predictions,
    write_predictions,
)
from icl_bench.leaderboard.runs import Run, check_one_method, load_run, results_by_seed

# The learner's weights in a run folder.
WEIGHTS = "learner.safetensors"


@dataclasses.dataclass(frozen=True)
class Submission:
    """A submission that was read.

    Attributes:
        path: Its folder.
        entry: About the method; ``seed`` is the lowest one, ``gpu_hours`` those of all seeds.
            None if entry.toml is wrong.
        suite: None if unknown.
        predictions: Meta-training seed → environment id → predictions.
        fingerprints: Environment id → evaluation fingerprint, as handed in.
        problems: Everything wrong with it; empty if nothing.
        outdated: Why its numbers cannot be compared with those of this version; empty if they can.
    """

    path: Path
    entry: EntryInfo | None
    suite: catalog.Suite | None
    predictions: Mapping[int, Mapping[str, Predictions]]
    fingerprints: Mapping[str, str]
    problems: tuple[str, ...]
    outdated: tuple[str, ...]

    def results(self) -> dict[str, list[Result]]:
        """Environment id → one result per seed, with the labels of the frozen episodes.

        Raises:
            ValueError: If the submission has problems or is outdated, naming all.
        """
        if self.problems or self.outdated or self.suite is None:
            reasons = "; ".join(self.problems + self.outdated)
            raise ValueError(f"{self.path} cannot be scored: {reasons}")
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


def validate(path: str | os.PathLike[str]) -> list[str]:
    """Everything that is wrong with a submission, one sentence each; empty if it is valid.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    submission = read_submission(path)
    return [*submission.problems, *submission.outdated]


def read_submission(path: str | os.PathLike[str]) -> Submission:
    """Read and check a submission; what is wrong is in ``problems`` and ``outdated``.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no submission at {path}: there is no such folder")
    seed_files, problems = check_layout(path)
    outdated: list[str] = []
    document, complaints = read_toml(path)
    entry, suite = None, None
    if document is not None:
        entry, suite, outdated, complaints = check_document(document, path.resolve().name)
    problems += [f"entry.toml: {complaint}" for complaint in complaints]
    predictions: dict[int, Mapping[str, Predictions]] = {}
    fingerprints: Mapping[str, str] = {}
    if suite is not None and document is not None:
        for seed, file in sorted(seed_files.items()):
            found, complaints = read_predictions(file, suite)
            predictions[seed] = {} if complaints else found
            problems += [f"predictions/{file.name}: {complaint}" for complaint in complaints]
        problems += check_seeds(document, predictions, seed_files)
        fingerprints = document.get("fingerprints", {})
        complaints, more = check_fingerprints(fingerprints, predictions)
        problems, outdated = problems + complaints, outdated + more
        problems += _misplaced(path, suite)
    return Submission(
        path, entry, suite, predictions, fingerprints, tuple(problems), tuple(outdated)
    )


def _misplaced(path: Path, suite: catalog.Suite) -> list[str]:
    """What is wrong with the folder that a submission lies in."""
    folder = path.resolve().parent.name
    if folder != suite.name and any(folder == row.name for row in catalog.SUITES):
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
        results = submission.results()
        assert submission.entry is not None  # results() raises for whatever has problems
        assert submission.suite is not None
        for i, seed in enumerate(submission.predictions):
            entry = dataclasses.replace(submission.entry, seed=seed)
            found = tuple(by_seed[i] for by_seed in results.values())
            runs.append(Run(path, entry, submission.suite.name, found))
    return runs


def scorable_envs(suite: catalog.Suite) -> list[str]:
    """The environments of a suite whose frozen labels are pinned, so that they can be scored."""
    found = []
    for env in suite.envs:
        try:
            protocol.frozen_labels(env, episode_counts(suite)[0])
        except LookupError:
            continue
        found.append(env)
    return found


def make_submission(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    suite: str,
    *,
    allow_missing: bool = False,
    checkpoints: bool = False,
    **overrides: Any,
) -> Path:
    """Make a submission from the run folders of one method; nothing is written if it is refused.

    Environments whose frozen labels are not pinned (``scorable_envs``) cannot be scored by this
    version, so they are neither needed nor handed in.

    Args:
        runs: Run folders, one or more per meta-training seed.
        out: Folder of the submission, ``leaderboards/<suite>/<entry>``; must not exist. Its last
            part becomes the entry's name.
        suite: Suite.
        allow_missing: Hand in some of the suite's environments only; the others stay a dash.
        checkpoints: Hand in the runs' ``learner.safetensors``, too, so that anyone can run the
            learner again.
        **overrides: Fields of ``EntryInfo`` to say otherwise than the runs do.

    Raises:
        FileExistsError: If ``out`` exists.
        FileNotFoundError: If a run is not there.
        ValueError: If runs do not fit each other, the suite or the frozen episodes, with the
            reason.
    """
    out, row = Path(out), protocol.suite(suite)
    if out.exists() or out.is_symlink():
        raise FileExistsError(f"{out} exists already: give another folder, or remove it first")
    if complaints := _misplaced(out, row):
        raise ValueError(f"{out} {complaints[0]}")
    loaded = [load_run(run) for run in runs]
    entry = _common_entry(loaded, out.name, overrides)
    by_seed = results_by_seed(loaded, SPLIT)
    scorable = scorable_envs(row)
    complete: dict[int, list[Result]] = {}
    for seed in sorted({run.entry.seed for run in loaded}):
        found = by_seed.get(seed, {})
        missing = [env for env in scorable if env not in found]
        complete[seed] = [found[env] for env in scorable if env in found]
        if not complete[seed]:
            raise ValueError(f"no run with seed {seed} has results of {suite}: evaluate it first")
        if missing and not allow_missing:
            raise ValueError(
                f"seed {seed} lacks {', '.join(missing)} of {suite}: evaluate them, or hand in "
                "without them (--allow-missing)"
            )
        for result in complete[seed]:
            _check_frozen(result, row)
    weights = {}
    for run in loaded if checkpoints else ():
        weights[run.entry.seed] = run.path / WEIGHTS
        if not weights[run.entry.seed].is_file():
            raise FileNotFoundError(f"{run.path} has no {WEIGHTS}: hand in without --checkpoints")
    return _write(out, entry, row, complete, weights)


def _common_entry(runs: Sequence[Run], name: str, overrides: Mapping[str, Any]) -> EntryInfo:
    """The entry that all runs agree on."""
    if not runs:
        raise ValueError("give at least one run folder")
    allowed = {field.name for field in dataclasses.fields(EntryInfo)} - {"name", "seed"}
    if unknown := sorted(set(overrides) - allowed):
        raise ValueError(f"cannot say {', '.join(unknown)} otherwise than the runs do")
    check_one_method(runs, overrides)
    first = runs[0].entry.to_dict()
    seeds = sorted({run.entry.seed for run in runs})
    if overrides.get("deterministic", first["deterministic"]) and len(seeds) > 1:
        raise ValueError(f"{first['name']} is deterministic: give runs of one seed, not {seeds}")
    # Several runs of one seed are evaluations of one meta-training, whose hours count once.
    hours: dict[int, float | None] = {}
    for run in runs:
        known, told_hours = hours.get(run.entry.seed), run.entry.gpu_hours
        hours[run.entry.seed] = told_hours if known is None else max(known, told_hours or 0.0)
    total = [hour for hour in hours.values() if hour is not None]
    merged = first | {
        "name": name,
        "seed": seeds[0],
        "hardware": "; ".join(dict.fromkeys(run.entry.hardware for run in runs)),
        "gpu_hours": round(sum(total), 3) if len(total) == len(hours) else None,
    }
    return EntryInfo.from_dict(merged | dict(overrides))


def _check_frozen(result: Result, suite: catalog.Suite) -> None:
    """Raise unless a result is about this version's frozen episodes."""
    counts = episode_counts(suite)
    num_episodes = len(result.episode)
    if num_episodes not in counts or not np.array_equal(result.episode, np.arange(num_episodes)):
        raise ValueError(
            f"{result.env} was evaluated on {num_episodes} episodes: boards need episodes 0 to "
            f"{counts[0] - 1} or 0 to {counts[1] - 1}"
        )
    if result.fingerprint != protocol.evaluation_fingerprint(result.env):
        raise ValueError(
            f"{result.env} was evaluated otherwise than boards ask for (another seed, other "
            f"arguments or another version, fingerprint {result.fingerprint[:12]}…): evaluate it "
            "again with this version and no further arguments"
        )
    if not np.array_equal(result.label, protocol.frozen_labels(result.env, num_episodes)):
        raise ValueError(
            f"{result.env}: the labels differ from the frozen ones; the data are another copy. "
            "Check them with `icl-bench verify`, then evaluate again"
        )


def _write(
    out: Path,
    entry: EntryInfo,
    suite: catalog.Suite,
    results: Mapping[int, list[Result]],
    weights: Mapping[int, Path],
) -> Path:
    """Build the folder beside its place, validate it, and rename it."""
    fields = {key: value for key, value in entry.to_dict().items() if value is not None}
    kwargs = fields.pop("meta_train_kwargs")
    del fields["seed"]
    document = {
        "suite": suite.name,
        **fields,
        "seeds": list(results),
        "scorer_version": SCORER_VERSION,
        "package_version": metadata.version("icl-bench"),
        # TOML has no null.
        "meta_train_kwargs": {k: "none" if v is None else v for k, v in sorted(kwargs.items())},
        "fingerprints": {r.env: r.fingerprint for by_env in results.values() for r in by_env},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".icl-bench-", dir=out.parent) as scratch:
        built = Path(scratch) / out.name
        (built / "predictions").mkdir(parents=True)
        (built / "entry.toml").write_text(to_toml(document), encoding="utf-8", newline="\n")
        for seed, by_env in results.items():
            write_predictions(built / "predictions" / f"seed-{seed}.parquet", by_env)
        for seed, file in weights.items():
            (built / "checkpoints").mkdir(exist_ok=True)
            shutil.copyfile(file, built / "checkpoints" / f"seed-{seed}.safetensors")
        problems = validate(built)
        if problems:
            raise ValueError("the submission would not be valid: " + "; ".join(problems))
        for file in [*built.glob("*/*"), built / "entry.toml"]:
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        built.rename(out)
    return out
