"""The cache folder, atomic writes and checksums."""

import contextlib
import errno
import glob
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

CACHE_VARIABLE = "ICL_BENCH_CACHE"

# What a full, read-only, forbidden or impossible folder answers.
_UNWRITABLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
}

# Seconds until a temporary file that nobody writes to counts as left by a killed process.
ABANDONED = 24 * 3600.0


def cache_dir() -> Path:
    """The cache folder: ``ICL_BENCH_CACHE``, else ``icl_bench`` in the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "icl_bench"


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place when the block ends well.

    Synced before it is renamed, removed after an error, and named apart from those of other
    processes: a reader meets the old file, the new one or none, never half of one.

    Raises:
        OSError: If the folder cannot be written or is full, naming it and the way out.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    try:
        with _says_where(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stem = glob.escape(f".{path.stem}-")
            _remove_abandoned(path.parent, f"{stem}*-{'[0-9a-f]' * 8}{glob.escape(path.suffix)}")
            # Not by tempfile, whose files are private: this one has a new file's permissions.
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # already renamed, or never made
            temporary.unlink()


@contextlib.contextmanager
def scratch_folder(parent: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder in ``parent``, removed with all it holds when the block ends.

    Raises:
        OSError: If the parent cannot be written or is full, naming it and the way out.
    """
    parent = Path(parent)
    with _says_where(parent / "scratch"):
        parent.mkdir(parents=True, exist_ok=True)
        prefix = ".icl_bench-scratch-"
        _remove_abandoned(parent, prefix + "?" * 8)
        scratch = tempfile.TemporaryDirectory(prefix=prefix, dir=parent)
    with scratch as folder:
        yield Path(folder)


def _remove_abandoned(folder: Path, pattern: str) -> None:
    """Remove what a process left behind that was killed: a view can be larger than 600 MB."""
    with contextlib.suppress(OSError):  # another process may be as tidy
        for path in folder.glob(pattern):
            newest = max(p.stat().st_mtime for p in (path, *path.rglob("*")))
            if time.time() - newest > ABANDONED:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def _says_where(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _UNWRITABLE or isinstance(error.__cause__, OSError):
            raise  # not from writing (a missing file, a network), or says so already
        raise OSError(
            error.errno,
            f"cannot write {path.name} in {path.parent} ({error.strerror or error}): free some "
            f"space or choose a writable folder; {CACHE_VARIABLE}, now {cache_dir()}, sets the "
            "cache folder",
        ) from error


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_arrays(images: UInt8[np.ndarray, "N *shape"], labels: UInt8[np.ndarray, " N"]) -> str:
    """SHA-256 of canonical arrays: shape of the images as text, their bytes, the labels' bytes."""
    digest = hashlib.sha256("x".join(map(str, images.shape)).encode() + b"\n")
    digest.update(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()
