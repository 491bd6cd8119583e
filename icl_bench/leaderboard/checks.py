"""Checks of a submission beside its predictions: files, entry.toml, seeds, versions."""

import functools
import json
import os
import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from icl_bench.evaluation.result import SCORER_VERSION
from icl_bench.leaderboard.columns import MAX_FILE_BYTES, open_plain, read_file
from icl_bench.leaderboard.entry import EntryInfo, entry_problems
from icl_bench.leaderboard.predictions import Predictions
from icl_bench.leaderboard.schema import (
    DOCUMENT_CHECKS,
    MAX_LINE,
    MAX_SEEDS,
    OPTIONAL,
    short,
    value_problems,
)
from icl_bench.leaderboard.suites import ALL_SUITES, AnySuite
from icl_bench.leaderboard.text_predictions import TextPredictions

MAX_TOML_BYTES, MAX_JSON_BYTES = 32_000, 64_000
MAX_CHECKPOINT_BYTES = 50_000_000
MAX_TOTAL_BYTES = 100_000_000
# Three files for each of ``MAX_SEEDS`` seeds and entry.toml are fewer.
MAX_FILES = 200
# Of the description of tensors that a file of safetensors begins with.
MAX_HEADER_BYTES = 1_000_000
# Keys of thousands of dotted parts take the parser of TOML minutes.
MAX_DOTS = 200
# entry.toml holds a document, tables in it, and lists in those.
MAX_DEPTH = 3

_SEED_FILE = re.compile(r"seed-(0|[1-9][0-9]{0,8})\.(parquet|safetensors|json)")
_LIMITS = {
    ("predictions", "parquet"): MAX_FILE_BYTES,
    ("checkpoints", "safetensors"): MAX_CHECKPOINT_BYTES,
    ("checkpoints", "json"): MAX_JSON_BYTES,
}
_KINDS = (
    (stat.S_ISLNK, "symbolic link"),
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISSOCK, "socket"),
)


# Predictions on one environment, of vectors or of text.
P = TypeVar("P", Predictions, TextPredictions)


def check_layout(path: Path) -> tuple[dict[str, Path | None], list[str]]:
    """Files by name, and everything wrong with names, kinds and sizes.

    A file of a right name that must not be opened is None.
    """
    if path.is_symlink():
        return {}, ["the folder is a symbolic link"]
    try:
        found = _listed(path)
    except OverflowError:
        return {}, [f"more than {MAX_FILES} files, a submission has fewer"]
    except OSError as error:
        return {}, [f"its folders cannot be listed: {error.strerror}"]
    files: dict[str, Path | None] = {}
    problems = []
    for name, (file, about) in sorted(found.items()):
        complaint = _misfit(name, about)
        problems += [complaint] * bool(complaint)
        if _limit(name):
            files[name] = None if complaint else file
    if "entry.toml" not in found:
        problems.append("entry.toml is missing")
    seeds = seed_files(files, "predictions")
    if not seeds:
        problems.append("predictions/seed-<n>.parquet is missing: one file per meta-training seed")
    for seed in sorted(set(seed_files(files, "checkpoints")) - set(seeds)):
        problems.append(f"checkpoints of seed {seed} have no predictions/seed-{seed}.parquet")
    if len(seeds) > MAX_SEEDS:
        problems.append(f"{len(seeds)} seeds, at most {MAX_SEEDS} are allowed")
        return {}, problems
    total = sum(found[name][1].st_size for name, file in files.items() if file is not None)
    if total > MAX_TOTAL_BYTES:
        return {}, [*problems, f"{total} bytes in all, at most {MAX_TOTAL_BYTES} are allowed"]
    return files, problems


def _listed(path: Path) -> dict[str, tuple[Path, os.stat_result]]:
    """What lies in the folder and in the two that it may hold, by name; links are not followed.

    Raises:
        OverflowError: As soon as there are too many.
    """
    found: dict[str, tuple[Path, os.stat_result]] = {}
    for folder in ("", "predictions", "checkpoints"):
        if folder and (folder not in found or not stat.S_ISDIR(found[folder][1].st_mode)):
            continue
        found.pop(folder, None)
        with os.scandir(path / folder) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                found[name] = (path / folder / entry.name, entry.stat(follow_symlinks=False))
                if len(found) > MAX_FILES:
                    raise OverflowError
    return found


def _misfit(name: str, about: os.stat_result) -> str:
    """What is wrong with one file, empty if nothing."""
    if not stat.S_ISREG(about.st_mode):
        kind = next((kind for is_kind, kind in _KINDS if is_kind(about.st_mode)), "device")
        return f"{name!a}: a {kind} has no place here"
    limit = _limit(name)
    if not limit:
        return (
            f"{name!a}: unexpected file; there may be entry.toml, "
            "predictions/seed-<n>.parquet and checkpoints/seed-<n>.safetensors and .json"
        )
    if about.st_nlink > 1:
        return f"{name}: a file with {about.st_nlink} hard links has no place here: copy it"
    if about.st_size > limit:
        return f"{name}: {about.st_size} bytes, at most {limit} are allowed"
    return ""


def _limit(name: str) -> int:
    """Bytes that a file of a submission may have; 0 where there is no such file."""
    if name == "entry.toml":
        return MAX_TOML_BYTES
    folder, _, last = name.rpartition("/")
    match = _SEED_FILE.fullmatch(last)
    return _LIMITS.get((folder, match[2]), 0) if match else 0


def seed_files(files: Mapping[str, Path | None], folder: str) -> dict[int, Path | None]:
    """Files of a folder by meta-training seed; of checkpoints, one of a seed's."""
    found = {}
    for name, file in files.items():
        parent, _, last = name.rpartition("/")
        if parent == folder and (match := _SEED_FILE.fullmatch(last)):
            found[int(match[1])] = file
    return found


def read_toml(file: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """entry.toml of a submission, or None and why it cannot be read."""
    try:
        text = read_file(file, MAX_TOML_BYTES).decode("utf-8")
        if text.count(".") > MAX_DOTS:
            return None, [f"{text.count('.')} dots, at most {MAX_DOTS} are allowed"]
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        return None, [f"cannot be read as TOML: {ascii(str(error))[1:-1][:200]}"]
    problems = _excess(document)
    return (None if problems else document), problems


def _excess(document: Mapping[str, Any]) -> list[str]:
    """What is larger than any entry needs: later checks may then print it, or descend into it."""
    level: list[Any] = [document]
    for depth in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, Mapping | list) and depth == MAX_DEPTH:
                return [f"tables or lists nested more than {MAX_DEPTH} deep"]
            if isinstance(value, Mapping):
                if any(len(key) > MAX_LINE for key in value):
                    return [f"a key of more than {MAX_LINE} characters"]
                inner += value.values()
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, int) and not -(2**63) <= value < 2**63:
                return ["a whole number of more than 64 bits"]
        level = inner
    return []


def check_checkpoint(name: str, file: Path) -> list[str]:
    """What is wrong with a checkpoint as a file; what it says is for those who run it again."""
    what, read = "safetensors", _safetensors_header
    if name.endswith(".json"):
        what, read = "JSON", functools.partial(read_file, most_bytes=MAX_JSON_BYTES)
    try:
        text = read(file)
        good = isinstance(json.loads(text), dict)
    except (ValueError, RecursionError) as error:
        return [f"{name}: cannot be read as {what}: {ascii(str(error))[1:-1][:200]}"]
    return [] if good else [f"{name}: cannot be read as {what}: it holds no object"]


def _safetensors_header(file: Path) -> bytes:
    with open_plain(file, MAX_CHECKPOINT_BYTES) as handle:
        rest = os.fstat(handle.fileno()).st_size - 8
        size = int.from_bytes(handle.read(8), "little")
        if not 2 <= size <= min(rest, MAX_HEADER_BYTES):
            raise ValueError(f"a header of {size} bytes in a file of {max(0, rest + 8)}")
        return handle.read(size)


def check_document(
    document: Mapping[str, Any], folder: str
) -> tuple[EntryInfo | None, AnySuite | None, list[str], list[str]]:
    """Entry, suite, why it is outdated, and what is wrong."""
    fields: dict[str, Any] = dict.fromkeys(OPTIONAL) | {
        key: value for key, value in document.items() if key not in DOCUMENT_CHECKS
    }
    problems = [f"{key} is missing" for key in sorted(set(DOCUMENT_CHECKS) - set(document))]
    if "seed" in fields:
        problems.append("unknown key 'seed': the key is seeds")
    suite = next((row for row in ALL_SUITES if row.name == document.get("suite")), None)
    if "suite" in document and suite is None:
        known = ", ".join(row.name for row in ALL_SUITES)
        problems.append(f"unknown suite {short(document['suite'])}; there are {known}")
    others = {key: check for key, check in DOCUMENT_CHECKS.items() if key != "suite"}
    wrong = {key: value_problems(document, {key: check}) for key, check in others.items()}
    problems += [problem for found in wrong.values() for problem in found]
    fields["seed"] = min(document["seeds"]) if "seeds" in document and not wrong["seeds"] else 0
    complaints = entry_problems(fields)
    if isinstance(fields["gpu_hours"], int) and not complaints:
        fields["gpu_hours"] = float(fields["gpu_hours"])  # TOML has 2 and 2.0
    entry = None if complaints else EntryInfo(**fields)
    problems += complaints
    if fields.get("name") != folder:
        problems.append(f"name must be that of the folder, {folder!a}")
    outdated = []
    scorer = document.get("scorer_version", SCORER_VERSION)
    if scorer != SCORER_VERSION and not wrong["scorer_version"]:
        outdated.append(f"scorer version {scorer}, this is version {SCORER_VERSION}")
    return entry, None if wrong["fingerprints"] else suite, outdated, problems


def check_seeds(
    document: Mapping[str, Any],
    predictions: Mapping[int, Mapping[str, P]],
    seed_files: Mapping[int, Path | None],
) -> list[str]:
    """What is wrong between the seeds: told and handed in, unlike each other, or copies."""
    problems = []
    told = "seeds" in document and not DOCUMENT_CHECKS["seeds"].complaint(document["seeds"])
    if seed_files and told and document["seeds"] != sorted(seed_files):
        problems.append(
            f"entry.toml: seeds are {ascii(document['seeds'])[:60]}, "
            f"but there are files of {sorted(seed_files)}"
        )
    if document.get("deterministic") is True and len(seed_files) > 1:
        problems.append(
            f"a deterministic entry has exactly one file of predictions, not {len(seed_files)}"
        )
    read = [(seed, by_env) for seed, by_env in predictions.items() if by_env]
    for i, (seed, by_env) in enumerate(read):
        first, expected = read[0]
        if by_env.keys() != expected.keys() or not all(
            p.same_cells(expected[env]) for env, p in by_env.items()
        ):
            what = next(iter(by_env.values())).what
            problems.append(f"seeds {first} and {seed} differ in environments or {what}")
            continue
        for other, others in read[:i]:
            if by_env.keys() == others.keys() and all(
                p.same_cells(others[env]) and p.same_predictions(others[env])
                for env, p in by_env.items()
            ):
                problems.append(
                    f"seeds {other} and {seed} hold the same predictions: "
                    "a deterministic method hands in one file and says deterministic = true"
                )
    return problems


def check_fingerprints(
    fingerprints: Mapping[str, str],
    predictions: Mapping[int, Mapping[str, P]],
    current: Callable[[str], str],
) -> tuple[list[str], list[str]]:
    """What is wrong, and what is outdated.

    Args:
        fingerprints: Environment id → fingerprint, as handed in.
        predictions: Meta-training seed → environment id → predictions.
        current: The fingerprint of an environment in this version.
    """
    problems, outdated = [], []
    envs = list(dict.fromkeys(env for by_env in predictions.values() for env in by_env))
    if envs and all(predictions.values()) and set(envs) != set(fingerprints):
        problems.append(
            f"entry.toml: fingerprints are of {short(sorted(fingerprints))}, "
            f"predictions of {sorted(envs)}"
        )
    for env in envs:
        if fingerprints.get(env, current(env)) != current(env):
            outdated.append(
                f"{env} was evaluated as {fingerprints[env][:12]}…, this version's fingerprint is "
                f"{current(env)[:12]}…"
            )
    return problems, outdated
