"""Checks of a submission beside its predictions: files, entry.toml, seeds, versions."""

import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from icl_bench.evaluation.result import SCORER_VERSION
from icl_bench.leaderboard.columns import MAX_FILE_BYTES
from icl_bench.leaderboard.entry import EntryInfo, entry_problems
from icl_bench.leaderboard.predictions import Predictions
from icl_bench.leaderboard.suites import ALL_SUITES, AnySuite
from icl_bench.leaderboard.text_predictions import TextPredictions

MAX_TOML_BYTES = 64_000
MAX_CHECKPOINT_BYTES = 50_000_000
MAX_SEEDS = 32

_SEED_FILE = re.compile(r"seed-(0|[1-9][0-9]{0,8})\.(parquet|safetensors|json)")
_OPTIONAL = ("meta_train", "parameters", "state_size", "gpu_hours")


# Predictions on one environment, of vectors or of text.
P = TypeVar("P", Predictions, TextPredictions)


def check_layout(path: Path) -> tuple[dict[int, Path], list[str]]:
    """Files of predictions by seed, and everything wrong with names, kinds and sizes."""
    if path.is_symlink():
        return {}, ["the folder is a symbolic link"]
    seeds: dict[str, dict[int, Path]] = {"predictions": {}, "checkpoints": {}}
    problems = []
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        mode = file.lstat().st_mode
        parent, match = file.parent.name, _SEED_FILE.fullmatch(file.name)
        if stat.S_ISDIR(mode) and name in seeds:
            continue
        if not stat.S_ISREG(mode):
            kind = "symbolic link" if stat.S_ISLNK(mode) else "folder or special file"
            problems.append(f"{name!a}: a {kind} has no place here")
            continue
        if name == "entry.toml":
            limit = MAX_TOML_BYTES
        elif match and name == f"predictions/{file.name}" and match[2] == "parquet":
            limit = MAX_FILE_BYTES
            seeds[parent][int(match[1])] = file
        elif match and name == f"checkpoints/{file.name}" and match[2] != "parquet":
            limit = MAX_CHECKPOINT_BYTES if match[2] == "safetensors" else MAX_TOML_BYTES
            seeds[parent][int(match[1])] = file
        else:
            problems.append(
                f"{name!a}: unexpected file; there may be entry.toml, "
                "predictions/seed-<n>.parquet and checkpoints/seed-<n>.safetensors and .json"
            )
            continue
        size = file.lstat().st_size
        if size > limit:
            problems.append(f"{name}: {size} bytes, at most {limit} are allowed")
            seeds.get(parent, {}).pop(int(match[1]) if match else -1, None)
    if not (path / "entry.toml").is_file():
        problems.append("entry.toml is missing")
    if not any((path / "predictions").glob("seed-*.parquet")):
        problems.append("predictions/seed-<n>.parquet is missing: one file per meta-training seed")
    for seed in sorted(set(seeds["checkpoints"]) - set(seeds["predictions"])):
        problems.append(f"checkpoints of seed {seed} have no predictions/seed-{seed}.parquet")
    if len(seeds["predictions"]) > MAX_SEEDS:
        problems.append(f"{len(seeds['predictions'])} seeds, at most {MAX_SEEDS} are allowed")
        seeds["predictions"] = {}
    return seeds["predictions"], problems


def read_toml(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """entry.toml of a submission, or None and why it cannot be read."""
    file = path / "entry.toml"
    if file.is_symlink() or not file.is_file() or file.stat().st_size > MAX_TOML_BYTES:
        return None, []  # told by the layout
    try:
        return tomllib.loads(file.read_bytes().decode("utf-8")), []
    except (ValueError, RecursionError) as error:
        return None, [f"cannot be read as TOML: {ascii(str(error))[1:-1][:200]}"]


def check_document(
    document: Mapping[str, Any], folder: str
) -> tuple[EntryInfo | None, AnySuite | None, list[str], list[str]]:
    """Entry, suite, why it is outdated, and what is wrong."""
    own = {"suite", "scorer_version", "package_version", "seeds", "fingerprints"}
    fields: dict[str, Any] = dict.fromkeys(_OPTIONAL) | {
        key: value for key, value in document.items() if key not in own
    }
    problems = [f"{key} is missing" for key in sorted(own - set(document))]
    if "seed" in fields:
        problems.append("unknown key 'seed': the key is seeds")
    seeds = document.get("seeds")
    if "seeds" in document and not (
        isinstance(seeds, list)
        and seeds
        and all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds)
        and sorted(set(seeds)) == seeds
    ):
        problems.append("seeds must be a list of distinct whole numbers, ascending")
        seeds = None
    fields["seed"] = min(seeds) if seeds else 0
    complaints = entry_problems(fields)
    entry = None if complaints else EntryInfo(**fields)
    problems += complaints
    if fields.get("name") != folder:
        problems.append(f"name must be that of the folder, {folder!a}")
    version = document.get("package_version", "")
    if not isinstance(version, str) or not re.fullmatch(r"[0-9A-Za-z.+!-]{0,40}", version):
        problems.append("package_version must be a version as a text, for instance '0.1.0'")
    outdated = []
    scorer = document.get("scorer_version", SCORER_VERSION)
    if not isinstance(scorer, int) or isinstance(scorer, bool) or scorer < 1:
        problems.append(f"scorer_version must be a whole number, not {ascii(scorer)[:40]}")
    elif scorer != SCORER_VERSION:
        outdated.append(f"scorer version {scorer}, this is version {SCORER_VERSION}")
    fingerprints = document.get("fingerprints", {})
    suite = None
    if not isinstance(fingerprints, dict) or not all(
        isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
        for value in fingerprints.values()
    ):
        problems.append("fingerprints must be a table of environment ids and SHA-256 checksums")
    elif "suite" in document:
        suite = next((row for row in ALL_SUITES if row.name == document["suite"]), None)
        if suite is None:
            known = ", ".join(row.name for row in ALL_SUITES)
            problems.append(f"unknown suite {ascii(document['suite'])[:60]}; there are {known}")
    return entry, suite, outdated, problems


def check_seeds(
    document: Mapping[str, Any],
    predictions: Mapping[int, Mapping[str, P]],
    seed_files: Mapping[int, Path],
) -> list[str]:
    """What is wrong between the seeds: told and handed in, unlike each other, or copies."""
    problems = []
    if "seeds" in document and document["seeds"] != sorted(seed_files):
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
    if all(predictions.values()) and set(envs) != set(fingerprints):
        problems.append(
            f"entry.toml: fingerprints are of {sorted(map(ascii, fingerprints))}, "
            f"predictions of {sorted(envs)}"
        )
    for env in envs:
        if fingerprints.get(env, current(env)) != current(env):
            outdated.append(
                f"{env} was evaluated as {fingerprints[env][:12]}…, this version's fingerprint is "
                f"{current(env)[:12]}…"
            )
    return problems, outdated
