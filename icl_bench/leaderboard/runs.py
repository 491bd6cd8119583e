"""Run folders: what one evaluated learner leaves behind, ``meta.json`` and ``results/*.parquet``.

<env or suite>__<method>__<seed>__<utc>/
    meta.json                           about the method, versions, fingerprints
    results/<env>__<split>.parquet      one ``Result`` each
"""

import dataclasses
import datetime
import json
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from icl_bench.data.cache import atomic_path
from icl_bench.evaluation.result import Result
from icl_bench.leaderboard.entry import EntryInfo

__all__ = [
    "EntryInfo",
    "Run",
    "load_run",
    "new_run_folder",
    "result_path",
    "results_by_seed",
    "write_meta",
]

_VERSIONED = ("icl-bench", "torch", "numpy", "gymnasium", "pyarrow")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder that was read.

    Attributes:
        path: The folder.
        entry: About the method and this meta-training.
        suite: Suite that it was evaluated for; None if for none.
        results: What was evaluated, by environment and split.
    """

    path: Path
    entry: EntryInfo
    suite: str | None
    results: tuple[Result, ...]


def new_run_folder(root: str | os.PathLike[str], env_or_suite: str, name: str, seed: int) -> Path:
    """Make the folder ``<root>/<env or suite>__<name>__<seed>__<yyyymmddThhmmssZ>``, and results/.

    Raises:
        FileExistsError: If it exists already.
    """
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    path = Path(root) / f"{env_or_suite}__{name}__{seed}__{now}"
    try:
        path.mkdir(parents=True)
    except FileExistsError as error:
        raise FileExistsError(
            f"{path} exists already: the same run was started in this very second; "
            "start it again, or give another root folder"
        ) from error
    (path / "results").mkdir()
    return path


def result_path(run: str | os.PathLike[str], env: str, split: str) -> Path:
    """Where a run keeps the result of an environment and split."""
    return Path(run) / "results" / f"{env}__{split}.parquet"


def write_meta(
    run: str | os.PathLike[str],
    entry: EntryInfo,
    suite: str | None,
    fingerprints: Mapping[str, str],
    **more: Any,
) -> Path:
    """Write ``meta.json``; atomic, and again whenever more is known (GPU-hours, for instance).

    Args:
        run: The run folder; must exist.
        entry: About the method.
        suite: Suite that is evaluated; None if none.
        fingerprints: Environment id → evaluation fingerprint.
        **more: Further JSON values: commit, device, ….

    Raises:
        TypeError: If something is no JSON type.
        ValueError: If something is not finite, or ``more`` repeats a key.
    """
    versions = {name: _version(name) for name in _VERSIONED}
    document = {
        "entry": entry.to_dict(),
        "suite": suite,
        "package_version": versions["icl-bench"],
        "fingerprints": dict(fingerprints),
        "versions": {"python": platform.python_version(), **versions},
    }
    repeated = set(more) & set(document)
    if repeated:
        raise ValueError(f"meta.json has {', '.join(sorted(repeated))} already")
    text = json.dumps(document | more, indent=2, sort_keys=True, allow_nan=False) + "\n"
    path = Path(run) / "meta.json"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed as a distribution"


def load_run(path: str | os.PathLike[str]) -> Run:
    """Read a run folder; it may have no results yet.

    Raises:
        FileNotFoundError: If there is no ``meta.json``.
        ValueError: If a file is not what its name says, naming the file and what is wrong.
    """
    path = Path(path)
    meta = path / "meta.json"
    if not meta.is_file():
        raise FileNotFoundError(f"{path} is not a run folder: it has no meta.json")
    try:
        document = json.loads(meta.read_text(encoding="utf-8"))
        suite = document["suite"]
        if suite is not None and not isinstance(suite, str):
            raise ValueError(f"suite must be a text or null, not {suite!r}")
        entry = EntryInfo.from_dict(document["entry"])
    except KeyError as error:
        raise ValueError(f"{meta}: {error.args[0]} is missing") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{meta}: {error}") from error
    results = []
    for file in sorted((path / "results").glob("*.parquet")):
        result = Result.load(file)
        if file != result_path(path, result.env, result.split):
            raise ValueError(
                f"{file} holds {result.env}, split {result.split}: it must be named "
                f"{result.env}__{result.split}.parquet"
            )
        results.append(result)
    return Run(path, entry, suite, tuple(results))


def results_by_seed(runs: list[Run], split: str = "unseen") -> dict[int, dict[str, Result]]:
    """Seed → environment id → result of one method's runs, ascending seeds.

    Runs of one seed may each hold some of the environments.

    Raises:
        ValueError: If two runs hold the same environment for the same seed.
    """
    found: dict[int, dict[str, Result]] = {}
    source: dict[tuple[int, str], Path] = {}
    for run in runs:
        for result in run.results:
            if result.split != split:
                continue
            seed = run.entry.seed
            other = source.setdefault((seed, result.env), run.path)
            if other != run.path:
                raise ValueError(
                    f"{other} and {run.path} both hold {run.entry.name} with seed {seed} on "
                    f"{result.env}: give one of them"
                )
            found.setdefault(seed, {})[result.env] = result
    return dict(sorted(found.items()))
