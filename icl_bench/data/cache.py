"""The cache folder, atomic writes and checksums."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

CACHE_VARIABLE = "ICL_BENCH_CACHE"


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
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp's files are private
        temporary.replace(path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write {path.name} in {path.parent} ({error.strerror or error}): free some "
            f"space, or choose a writable folder ({CACHE_VARIABLE} sets the cache folder)",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_arrays(
    images: UInt8[np.ndarray, "N *shape"], labels: UInt8[np.ndarray, " N"]
) -> str:
    """SHA-256 of canonical arrays: shape of the images as text, their bytes, the labels' bytes."""
    digest = hashlib.sha256("x".join(map(str, images.shape)).encode() + b"\n")
    digest.update(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()
