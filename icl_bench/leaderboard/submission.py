"""Submissions: made from run folders; ``reading`` has their files and how they are validated."""

import dataclasses
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from icl_bench import catalog
from icl_bench.evaluation import protocol
from icl_bench.evaluation.result import SCORER_VERSION, Result
from icl_bench.evaluation.text_protocol import text_fingerprint
from icl_bench.leaderboard import text_submission
from icl_bench.leaderboard.entry import EntryInfo, to_toml
from icl_bench.leaderboard.learner_files import learner_path
from icl_bench.leaderboard.predictions import SPLIT, episode_counts, write_predictions
from icl_bench.leaderboard.reading import (
    Submission,
    load_runs,
    misplaced,
    read_submission,
    validate,
)
from icl_bench.leaderboard.runs import (
    AnyResult,
    Run,
    check_one_method,
    load_run,
    results_by_seed,
    text_by_seed,
)
from icl_bench.leaderboard.suites import AnySuite, any_suite
from icl_bench.leaderboard.text_predictions import write_text_predictions

__all__ = [
    "Submission",
    "load_runs",
    "make_submission",
    "read_submission",
    "scorable_envs",
    "validate",
]


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
    version, so they are neither needed nor handed in; the same holds of text tasks without frozen
    answers. Runs of a text suite are each meta-trained on the environment that they were evaluated
    on; the entry then names the suite as its environment of meta-training.

    Args:
        runs: Run folders, one or more per meta-training seed.
        out: Folder of the submission, ``leaderboards/<suite>/<entry>``; must not exist. Its last
            part becomes the entry's name.
        suite: Suite.
        allow_missing: Hand in some of the suite's environments only; the others stay a dash.
        checkpoints: Hand in the runs' ``learner.safetensors`` or ``learner.json``, too, so that
            anyone can run the learner again.
        **overrides: Fields of ``EntryInfo`` to say otherwise than the runs do.

    Raises:
        FileExistsError: If ``out`` exists.
        FileNotFoundError: If a run is not there.
        ValueError: If runs do not fit each other, the suite or the frozen episodes, with the
            reason.
    """
    out, row = Path(out), any_suite(suite)
    if out.exists() or out.is_symlink():
        raise FileExistsError(
            f"{out} exists already: give another folder (--out), or remove it first"
        )
    if complaints := misplaced(out, row):
        raise ValueError(f"{out} {complaints[0]}")
    loaded = [load_run(run) for run in runs]
    entry = _common_entry(loaded, row, out.name, overrides)
    seeds = sorted({run.entry.seed for run in loaded})
    files: dict[int, Callable[[Path], None]] = {}
    fingerprints: dict[str, str] = {}
    if isinstance(row, catalog.TextSuite):
        text = text_by_seed(loaded)
        wanted = text_submission.wanted_envs(text, row)
        for seed, found in _complete(seeds, text, wanted, row, allow_missing).items():
            frozen = [text_submission.frozen_part(result, row) for result in found]
            files[seed] = functools.partial(write_text_predictions, results=frozen)
            fingerprints |= {result.env: text_fingerprint(result.env) for result in frozen}
    else:
        vectors = _complete(
            seeds, results_by_seed(loaded, SPLIT), scorable_envs(row), row, allow_missing
        )
        for seed, results in vectors.items():
            for result in results:
                _check_frozen(result, row)
            files[seed] = functools.partial(write_predictions, results=results)
            fingerprints |= {result.env: result.fingerprint for result in results}
    learners = _learner_files(loaded) if checkpoints else {}
    return _write(out, entry, row, fingerprints, files, learners)


def _learner_files(runs: Sequence[Run]) -> dict[int, Path]:
    """Meta-training seed → the file of its learner; several runs of a seed must have the same."""
    found: dict[int, Path] = {}
    for run in runs:
        file = learner_path(run.path)
        if file is None:
            raise FileNotFoundError(
                f"{run.path} has no learner.safetensors or .json: hand in without --checkpoints"
            )
        first = found.setdefault(run.entry.seed, file)
        if first.suffix != file.suffix or first.read_bytes() != file.read_bytes():
            raise ValueError(
                f"{first} and {file} are two learners of seed {run.entry.seed}, an entry holds "
                "one of each seed: hand in without --checkpoints"
            )
    return found


def _complete(
    seeds: Sequence[int],
    by_seed: Mapping[int, Mapping[str, AnyResult]],
    wanted: Sequence[str],
    suite: AnySuite,
    allow_missing: bool,
) -> dict[int, list[AnyResult]]:
    """Seed → its results on the wanted environments, in their order."""
    complete = {}
    for seed in seeds:
        found = by_seed.get(seed, {})
        missing = [env for env in wanted if env not in found]
        complete[seed] = [found[env] for env in wanted if env in found]
        if not complete[seed]:
            held = ", ".join(found) or f"nothing on {SPLIT} tasks"
            raise ValueError(
                f"no run with seed {seed} has results of {suite.name} (there is {held}): evaluate "
                f"it first, with --suite {suite.name}"
            )
        if missing and not allow_missing:
            raise ValueError(
                f"seed {seed} lacks {', '.join(missing)} of {suite.name}: evaluate them, or hand "
                "in without them (--allow-missing)"
            )
    return complete


def _common_entry(
    runs: Sequence[Run], suite: AnySuite, name: str, overrides: Mapping[str, Any]
) -> EntryInfo:
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
    if isinstance(suite, catalog.TextSuite):
        first["code"] = text_submission.common_code(runs[0])
        if "meta_train" not in overrides:
            first["meta_train"] = text_submission.common_meta_train(runs, suite)
    # Several runs of one seed are evaluations of one meta-training, whose hours count once.
    hours: dict[tuple[int, str | None], float | None] = {}
    for run in runs:
        key, told_hours = (run.entry.seed, run.entry.meta_train), run.entry.gpu_hours
        known = hours.get(key)
        hours[key] = told_hours if known is None else max(known, told_hours or 0.0)
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
    suite: AnySuite,
    fingerprints: Mapping[str, str],
    files: Mapping[int, Callable[[Path], None]],
    learners: Mapping[int, Path],
) -> Path:
    """Build the folder beside its place, validate it, and rename it.

    Args:
        out: Folder of the submission.
        entry: About the method.
        suite: Suite.
        fingerprints: Environment id → evaluation fingerprint.
        files: Meta-training seed → what writes its file of predictions.
        learners: Meta-training seed → the file of its learner.
    """
    fields = {key: value for key, value in entry.to_dict().items() if value is not None}
    kwargs = fields.pop("meta_train_kwargs")
    del fields["seed"]
    document = {
        "suite": suite.name,
        **fields,
        "seeds": list(files),
        "scorer_version": SCORER_VERSION,
        "package_version": metadata.version("icl-bench"),
        # TOML has no null.
        "meta_train_kwargs": {k: "none" if v is None else v for k, v in sorted(kwargs.items())},
        "fingerprints": dict(fingerprints),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".icl-bench-", dir=out.parent) as scratch:
        built = Path(scratch) / out.name
        (built / "predictions").mkdir(parents=True)
        (built / "entry.toml").write_text(to_toml(document), encoding="utf-8", newline="\n")
        for seed, write in files.items():
            write(built / "predictions" / f"seed-{seed}.parquet")
        for seed, file in learners.items():
            (built / "checkpoints").mkdir(exist_ok=True)
            shutil.copyfile(file, built / "checkpoints" / f"seed-{seed}{file.suffix}")
        problems = validate(built)
        if problems:
            raise ValueError("the submission would not be valid: " + "; ".join(problems))
        for file in [*built.glob("*/*"), built / "entry.toml"]:
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        built.rename(out)
    return out
