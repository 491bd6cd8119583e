"""Scores kept from one scoring to the next: who adds an entry waits for that one alone.

<cache folder>/scores/<key>.score

A score counts for the very files and the very code that made it: its key is the SHA-256 of all
files of the entry (``entry_digest``), its place, the rows of the suites, the scorer's version, all
sources and frozen labels of this package, and the versions of the libraries that compute. Neither
what is wrong with an entry is kept nor the record of its replay; another record, which may show
that an entry is not valid, makes another key.

Whom to trust: the folder belongs to the user who runs the scorer. Nothing in it comes from an
entry but numbers that the scorer computed, and files of another user are not read; but whoever can
write as this user can write any score, as they can change the scorer itself. A board that others
shall believe is made without (``use_cache=False``), or with a new folder.

Files are arrays and JSON behind their checksum, never pickles. A damaged one is as good as none.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import platform
import stat
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from icl_bench.data.cache import atomic_path, cache_dir, sha256_file
from icl_bench.evaluation.result import SCORER_VERSION
from icl_bench.leaderboard.checks import check_layout
from icl_bench.leaderboard.entry import EntryInfo
from icl_bench.leaderboard.replays import entry_digest, record_path
from icl_bench.leaderboard.suites import ALL_SUITES

MAX_BYTES = 512 * 2**20
MAX_FILE_BYTES = 32 * 2**20

HEADER = "icl_bench score 1"

_LIBRARIES = ("numpy", "scipy", "pyarrow")
# Stands in JSON for an array; no key of anything kept holds a space.
_ARRAY = "array no."

S = TypeVar("S")


@dataclasses.dataclass(frozen=True)
class Outdated:
    """An entry whose numbers cannot be compared with those of this version.

    Attributes:
        entry: About the method.
        reasons: Why.
    """

    entry: EntryInfo
    reasons: tuple[str, ...]


def fingerprint(package: Path) -> str:
    """SHA-256 of what computes scores: a package's sources and labels, and the libraries."""
    machine = f"Python {platform.python_version()} {platform.machine()}"  # sums round otherwise
    total = hashlib.sha256(machine.encode())
    for name in _LIBRARIES:
        total.update(f"{name} {metadata.version(name)}".encode())
    # All of it: a list of the modules that matter would lack one some day.
    for file in sorted(package.rglob("*")):
        if file.suffix in (".py", ".npz", ".json"):
            name = file.relative_to(package).as_posix()
            total.update(f"{name}\0{sha256_file(file)}\n".encode())
    return total.hexdigest()


# Taken when the code is loaded: whoever edits it in the meantime keeps nothing under a new name.
FINGERPRINT = fingerprint(Path(__file__).resolve().parents[1])


def score_key(entry: str | os.PathLike[str], kind: str) -> str | None:
    """Key of an entry's score; None if its files are not even those of a submission.

    Args:
        entry: Folder of the entry.
        kind: What is computed from it, with all that no source tells.
    """
    path = Path(entry)
    # Before anything is read: files may be too large, or links.
    if not path.is_dir() or check_layout(path)[1]:
        return None
    place = path.resolve()
    # A record is no part of the score, but may show that the entry is not valid.
    record = record_path(place.parent.parent, place.parent.name, place.name)
    replayed = sha256_file(record) if record.is_file() else "not replayed"
    parts = [HEADER, kind, place.parent.name, place.name, entry_digest(path), replayed]
    parts += [str(SCORER_VERSION), FINGERPRINT, repr(ALL_SUITES)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def load_score(key: str | None, build: Callable[[Any], S]) -> S | Outdated | None:
    """What was kept under a key; None if nothing was, or the file is not as it was written.

    Args:
        key: Key; nothing is kept under None.
        build: Makes the score from the fields that were kept.
    """
    if key is None:
        return None
    path = _path(key)
    try:
        document = _read(path, key)
        if "reasons" in document:
            return Outdated(EntryInfo.from_dict(document["entry"]), tuple(document["reasons"]))
        score = build(document)
    except Exception:  # whatever else a file may hold, it is as good as none
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # used last are removed last
    return score


def save_score(entry: str | os.PathLike[str], kind: str, key: str | None, score: Any) -> None:
    """Keep the score of an entry, unless its files have changed since the key was taken.

    A folder that is full or cannot be written costs time at the next scoring, and no more.

    Args:
        entry: Folder of the entry.
        kind: As in ``score_key``.
        key: Key from before the entry was read; nothing is kept under None.
        score: A dataclass of JSON types, arrays and further dataclasses.
    """
    if key is None or key != score_key(entry, kind):
        return
    arrays: list[np.ndarray] = []
    document = {"key": key, "score": _without_arrays(dataclasses.asdict(score), arrays)}
    about = np.frombuffer(json.dumps(document).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, *arrays, about=about)
    contents = buffer.getvalue()
    with contextlib.suppress(OSError), atomic_path(_path(key)) as temporary:
        temporary.write_bytes(_first_line(contents) + contents)


def prune() -> None:
    """Remove what was used longest ago, until the rest has at most ``MAX_BYTES``."""
    with contextlib.suppress(OSError):  # another process may be as tidy
        found = [(path.stat(), path) for path in _folder().glob("*.score")]
        total = sum(about.st_size for about, _ in found)
        for about, path in sorted(found, key=lambda item: item[0].st_mtime):
            if total <= MAX_BYTES:
                break
            path.unlink()
            total -= about.st_size


def _folder() -> Path:
    return cache_dir() / "scores"


def _path(key: str) -> Path:
    return _folder() / f"{key}.score"


def _first_line(contents: bytes) -> bytes:
    return f"{HEADER} {hashlib.sha256(contents).hexdigest()}\n".encode()


def _read(path: Path, key: str) -> Any:
    """The fields in a file; anything that is wrong raises."""
    about = path.lstat()
    own = about.st_uid == getattr(os, "geteuid", lambda: 0)()  # Windows gives all files to 0
    if not stat.S_ISREG(about.st_mode) or not own or about.st_size > MAX_FILE_BYTES:
        raise ValueError(f"{path} was not made by this user's scorer")
    first, _, contents = path.read_bytes().partition(b"\n")
    if first + b"\n" != _first_line(contents):
        raise ValueError(f"{path} is damaged")
    with np.load(io.BytesIO(contents), allow_pickle=False) as archive:
        document = json.loads(archive["about"].tobytes())
        if document["key"] != key:
            raise ValueError(f"{path} holds another score")
        return _with_arrays(document["score"], archive)


def _without_arrays(value: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return {_ARRAY: len(arrays) - 1}
    if isinstance(value, Mapping):
        return {str(key): _without_arrays(item, arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_arrays(item, arrays) for item in value]
    return value


def _with_arrays(value: Any, archive: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_ARRAY}:
            return archive[f"arr_{value[_ARRAY]}"]
        return {key: _with_arrays(item, archive) for key, item in value.items()}
    return [_with_arrays(item, archive) for item in value] if isinstance(value, list) else value
