"""Folders that cannot be written, for tests of what happens then; also when tests run as root."""

import contextlib
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

NOBODY = 65534


@contextlib.contextmanager
def forbidden_folder() -> Iterator[Path]:
    """An empty folder of its own; within ``unprivileged`` it can be read but not written."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@contextlib.contextmanager
def unprivileged(folder: Path) -> Iterator[None]:
    """The process may not write in ``folder``: root becomes nobody for a while."""
    root = os.geteuid() == 0
    modes = {path: path.stat().st_mode for path in (folder, *folder.rglob("*"))}
    for path in modes:
        path.chmod(0o555 if path.is_dir() else 0o444)
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)


@contextlib.contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file can grow beyond ``room`` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextlib.contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """The process may not open the file, or enter the folder: root becomes nobody for a while."""
    root, mode = os.geteuid() == 0, path.stat().st_mode
    path.chmod(0)
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        path.chmod(mode)
