"""Checkpoints that survive a kill at any moment: atomic, checked on reading, two kept.

``resume.pt`` is the newest and ``resume.previous.pt`` the one before. A file is a zip archive made
by ``torch.save``, whose checksums are verified before anything is read; it is loaded with
``weights_only=True``, so that no file can run code.
"""

import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from icl_bench.data.cache import atomic_path

NEWEST, PREVIOUS = "resume.pt", "resume.previous.pt"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, with the way out."""


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write the newest checkpoint; the one before becomes the previous one.

    Written beside, synced and renamed. A kill between the two renames leaves the previous one.
    """
    with atomic_path(folder / NEWEST) as temporary:
        torch.save(state, temporary)
        if (folder / NEWEST).exists():
            os.replace(folder / NEWEST, folder / PREVIOUS)


def load(folder: Path) -> dict[str, Any] | None:
    """The newest sound checkpoint on the CPU; None if the run has not made one.

    A damaged file is named on stderr and the previous one taken.

    Raises:
        CheckpointError: If there are files, but none is sound.
    """
    damaged = []
    for name in (NEWEST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            return _read(path)
        except (OSError, RuntimeError, ValueError, zipfile.BadZipFile, EOFError) as error:
            damaged.append(name)
            print(f"warning: {path} is damaged and left out: {error}", file=sys.stderr)
    if damaged:
        raise CheckpointError(
            f"{folder}: no checkpoint can be read ({' and '.join(damaged)} damaged): "
            "start a new run"
        )
    return None


def _read(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    if bad is not None:
        raise ValueError(f"checksum of {bad} does not hold")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError(f"holds {type(state).__name__}, not a checkpoint")
    return state
