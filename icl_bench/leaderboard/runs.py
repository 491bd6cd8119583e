"""Run folders: what one evaluated learner leaves behind, ``meta.json`` and ``results/*.parquet``.

<env or suite>__<method>__<seed>__<utc>/
    meta.json                           about the method, versions, fingerprints
    results/<env>__<split>.parquet      one ``Result`` or ``TextResult`` each
    learner.safetensors, or .json       the learner, see ``learner_files``
"""

import dataclasses
import datetime
import json
import os
import platform
from collections.abc import Collection, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from icl_bench.data.cache import atomic_path
from icl_bench.evaluation.result import Result
from icl_bench.evaluation.text_protocol import text_fingerprint
from icl_bench.evaluation.text_result import TextResult, is_text_result
from icl_bench.leaderboard.entry import EntryInfo, own_entry
from icl_bench.leaderboard.formatting import clean_text
from icl_bench.leaderboard.suites import any_suite

__all__ = [
    "EntryInfo",
    "Method",
    "Run",
    "check_one_method",
    "load_run",
    "methods_of",
    "new_run_folder",
    "read_meta",
    "result_path",
    "results_by_seed",
    "save_run",
    "text_by_seed",
    "write_meta",
]

# Fields of an entry that its seeds share; hardware and GPU-hours may differ.
_SHARED = (
    "title",
    "inductive_bias",
    "authors",
    "code",
    "deterministic",
    "meta_train",
    "meta_train_kwargs",
    "parameters",
    "state_size",
    "external_data",
    "kind",
)

# Where each run of a method was meta-trained on the very environment that it is evaluated on, as
# in text suites, this stands for the environment's id; ``code`` may name it, too.
OWN_ENV = "<env>"

AnyResult = TypeVar("AnyResult", Result, TextResult)

_VERSIONED = ("icl-bench", "torch", "numpy", "gymnasium", "pyarrow")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder that was read.

    Attributes:
        path: The folder.
        entry: About the method and this meta-training.
        suite: Suite that it was evaluated for; None if for none.
        results: What was evaluated on vectors, by environment and split.
        text: What was evaluated on text, by environment.
    """

    path: Path
    entry: EntryInfo
    suite: str | None
    results: tuple[Result, ...]
    text: tuple[TextResult, ...] = ()


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


def save_run(
    results: Sequence[Result | TextResult],
    root: str | os.PathLike[str] = "runs",
    *,
    name: str,
    suite: str | None = None,
    **about: Any,
) -> Path:
    """Make a run folder of results of one's own, for ``icl-bench score``, ``plot`` and ``submit``.

    Args:
        results: What ``evaluate``, ``evaluate_suite``, ``evaluate_text`` or
            ``RecordResult.result`` gave for one learner, one for each environment and split.
        root: Folder in which the run folder is made.
        name: Short name of the method: lower case, digits, single ``-``, ``_`` or ``.`` between.
        suite: Suite that was evaluated; None if none.
        **about: What is known about the method, as for a leaderboard: ``seed`` (of
            meta-training; 0), ``title`` (the name), ``deterministic`` (False), ``inductive_bias``,
            ``authors``, ``code``, ``meta_train``, ``meta_train_kwargs``, ``parameters``,
            ``state_size``, ``hardware``, ``gpu_hours`` and ``external_data`` (not stated).

    Returns:
        The folder ``<root>/<env or suite>__<name>__<seed>__<utc>``.

    Raises:
        ValueError: If there are no results, two of one environment and split, an unknown suite, or
            an unknown or bad field; nothing is written then.
        FileExistsError: If the same run was saved in this very second.

    Example:
        >>> import icl_bench
        >>> import tempfile
        >>> result = icl_bench.evaluate(icl_bench.Chance(), "Digits-Proj8-v0")
        >>> with tempfile.TemporaryDirectory() as root:
        ...     path = icl_bench.save_run([result], root, name="mine", title="My method", seed=3)
        >>> path.name.rpartition("__")[0]
        'Digits-Proj8-v0__mine__3'
    """
    if not results:
        raise ValueError("no results to save: evaluate the learner first")
    kinds = [(result.env, result.split) for result in results]
    if repeated := [kind for kind in kinds if kinds.count(kind) > 1]:
        raise ValueError(f"two results of {repeated[0][0]}, split {repeated[0][1]}: give one")
    if suite is not None:
        any_suite(suite)
    entry = own_entry(name, **about)
    path = new_run_folder(root, suite or results[0].env, name, entry.seed)
    fingerprints = {
        r.env: r.fingerprint if isinstance(r, Result) else text_fingerprint(r.env) for r in results
    }
    write_meta(path, entry, suite, fingerprints)
    for result in results:
        result.save(result_path(path, result.env, result.split))
    return path


def read_meta(run: str | os.PathLike[str]) -> dict[str, Any]:
    """What ``meta.json`` of a run folder holds.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, naming the file.
    """
    path = Path(run) / "meta.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run} is not a run folder: it has no meta.json")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object")
    return document


def load_run(path: str | os.PathLike[str]) -> Run:
    """Read a run folder; it may have no results yet.

    Raises:
        FileNotFoundError: If there is no ``meta.json``.
        ValueError: If a file is not what its name says, naming the file and what is wrong.
    """
    path = Path(path)
    meta = path / "meta.json"
    document = read_meta(path)
    try:
        suite = document["suite"]
        if suite is not None and not isinstance(suite, str):
            raise ValueError(f"suite must be a text or null, not {suite!r}")
        entry = EntryInfo.from_dict(document["entry"])
    except KeyError as error:
        raise ValueError(f"{meta}: {error.args[0]} is missing") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{meta}: {error}") from error
    results: list[Result] = []
    text: list[TextResult] = []
    for file in sorted((path / "results").glob("*.parquet")):
        result: Result | TextResult
        if is_text_result(file):
            text.append(result := TextResult.load(file))
        else:
            results.append(result := Result.load(file))
        if file != result_path(path, result.env, result.split):
            raise ValueError(
                f"{file} holds {result.env}, split {result.split}: it must be named "
                f"{result.env}__{result.split}.parquet"
            )
    return Run(path, entry, suite, tuple(results), tuple(text))


def results_by_seed(runs: list[Run], split: str = "unseen") -> dict[int, dict[str, Result]]:
    """Seed → environment id → result of one method's runs, ascending seeds.

    Runs of one seed may each hold some of the environments.

    Raises:
        ValueError: If two runs hold the same environment for the same seed.
    """
    return _by_seed(runs, [[r for r in run.results if r.split == split] for run in runs])


def text_by_seed(runs: Sequence[Run]) -> dict[int, dict[str, TextResult]]:
    """Seed → environment id → text result of one method's runs, ascending seeds.

    Runs of one seed may each hold some of the environments.

    Raises:
        ValueError: If two runs hold the same environment for the same seed.
    """
    return _by_seed(runs, [run.text for run in runs])


def _by_seed(
    runs: Sequence[Run], results: Sequence[Sequence[AnyResult]]
) -> dict[int, dict[str, AnyResult]]:
    found: dict[int, dict[str, AnyResult]] = {}
    source: dict[tuple[int, str], Path] = {}
    for run, of_run in zip(runs, results, strict=True):
        for result in of_run:
            seed = run.entry.seed
            other = source.setdefault((seed, result.env), run.path)
            if other != run.path:
                raise ValueError(
                    f"{other} and {run.path} both hold {run.entry.name} with seed {seed} on "
                    f"{result.env}: give one of them"
                )
            found.setdefault(seed, {})[result.env] = result
    return dict(sorted(found.items()))


def check_one_method(runs: Sequence[Run], ignored: Collection[str] = ()) -> None:
    """Check that runs are of one method: its seeds share everything that is said about it.

    Args:
        runs: Runs.
        ignored: Fields of ``EntryInfo`` that may differ.

    Raises:
        ValueError: If two runs differ in name or in a setting, naming both.
    """
    if not runs:
        return
    first = _comparable(runs[0])
    for run in runs[1:]:
        other = _comparable(run)
        if other["name"] != first["name"]:
            raise ValueError(
                f"mixed methods: {runs[0].path} is of {first['name']}, {run.path} of "
                f"{other['name']}; a submission holds one"
            )
        differing = [f for f in _SHARED if f not in ignored and other[f] != first[f]]
        if differing:
            told = "; ".join(f"{f}: {first[f]!r} and {other[f]!r}" for f in differing)
            raise ValueError(
                f"{runs[0].path} and {run.path} are not of one method, they differ in {told}"
            )


def own_environment(run: Run) -> bool:
    """Whether a text run was meta-trained on the one environment that it was evaluated on."""
    return {result.env for result in run.text} == {run.entry.meta_train}


def _comparable(run: Run) -> dict[str, Any]:
    """The fields of an entry; None among the arguments as in a submission, which lacks it.

    Text runs of one method are each meta-trained on an environment of their own: its id is
    ``OWN_ENV`` here, in ``code`` as well.
    """
    fields = run.entry.to_dict()
    kwargs = {k: "none" if v is None else v for k, v in fields["meta_train_kwargs"].items()}
    fields["meta_train_kwargs"] = kwargs
    if own_environment(run):
        code = fields["code"].replace(str(fields["meta_train"]), OWN_ENV)
        fields |= {"meta_train": OWN_ENV, "code": code}
    return fields


@dataclasses.dataclass(frozen=True)
class Method:
    """The runs that make one row of a table, or one line of a figure.

    Attributes:
        name: Short name; with the suite where runs of one name differ between suites.
        title: For people; with the name where titles repeat.
        runs: Its runs, one or more per meta-training seed.
    """

    name: str
    title: str
    runs: tuple[Run, ...]


def methods_of(runs: Sequence[Run]) -> list[Method]:
    """Group runs by method, in the order of their first runs.

    Runs of one name but with other settings are kept apart if they were evaluated for different
    suites.

    Raises:
        ValueError: If runs of one name and suite are not of one method, saying where they differ.
    """
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.entry.name, []).append(run)
    groups: list[tuple[str, list[Run]]] = []
    for name, named in by_name.items():
        by_suite: dict[str | None, list[Run]] = {}
        for run in named:
            by_suite.setdefault(run.suite, []).append(run)
        try:
            check_one_method(named)
        except ValueError:
            for part in by_suite.values():
                check_one_method(part)
            groups += [(f"{name}, {suite or 'no suite'}", part) for suite, part in by_suite.items()]
        else:
            groups.append((name, named))
    titles = [clean_text(part[0].entry.title) for _, part in groups]
    return [
        Method(name, f"{title} ({name})" if titles.count(title) > 1 else title, tuple(part))
        for title, (name, part) in zip(titles, groups, strict=True)
    ]
