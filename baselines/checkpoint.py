"""Checkpoints that survive a kill at any moment: atomic, checked on reading, two kept.

``resume.pt`` is the newest and ``resume.previous.pt`` the one before. A file is what ``torch.save``
writes, then the SHA-256 of it, which is verified before anything is read. It is loaded with
``weights_only=True``, so that no file can run code.
"""

import hashlib
import io
import os
import sys
from pathlib import Path
from typing import Any

import torch

from icl_bench.data.cache import atomic_path

NEWEST, PREVIOUS = "resume.pt", "resume.previous.pt"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, with the way out."""


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write the newest checkpoint; the one before becomes the previous one, if it is sound.

    Written beside, synced and renamed. A kill between the two renames leaves the previous one.
    """
    # By way of the memory: torch.save to a full disk says nothing of the disk.
    content = io.BytesIO()
    torch.save(state, content)
    with atomic_path(folder / NEWEST) as temporary:
        with temporary.open("wb") as file:
            file.write(content.getbuffer())
            file.write(hashlib.sha256(content.getbuffer()).digest())
        if _is_sound(folder / NEWEST):
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
        except (OSError, ValueError) as error:
            damaged.append(name)
            print(f"warning: {path} is damaged and left out: {error}", file=sys.stderr)
    if damaged:
        raise CheckpointError(
            f"{folder}: no checkpoint can be read ({' and '.join(damaged)} damaged): "
            "start a new run"
        )
    return None


def back_to(folder: Path, step: int) -> bool:
    """Let the previous checkpoint be the newest one, if it is of this outer step.

    For runs that are trained together: a kill while their checkpoints are written leaves some of
    them one ahead. Before the first checkpoint is step 0.

    Returns:
        Whether it was; if not, nothing has changed.
    """
    path = folder / PREVIOUS
    if not path.exists():
        if step == 0:
            (folder / NEWEST).unlink(missing_ok=True)
        return step == 0
    try:
        found = _read(path).get("step") == step
    except (OSError, ValueError):
        return False
    if found:
        os.replace(path, folder / NEWEST)
    return found


def _read(path: Path) -> dict[str, Any]:
    content = io.BytesIO(_content(path))
    try:
        state = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler meets in a file that is not ours
        # Not torch's words: they advise to run the code that the file may hold.
        raise ValueError("it is not made of tensors and numbers alone") from error
    if not isinstance(state, dict):
        raise ValueError(f"it holds {type(state).__name__}, not a checkpoint")
    return state


def _content(path: Path) -> bytes:
    """What ``torch.save`` wrote.

    Raises:
        ValueError: If the checksum does not hold.
    """
    data = path.read_bytes()
    size = hashlib.sha256().digest_size
    if hashlib.sha256(data[:-size]).digest() != data[-size:]:
        raise ValueError("its checksum does not hold")
    return data[:-size]


def _is_sound(path: Path) -> bool:
    try:
        _content(path)
    except (OSError, ValueError):
        return False
    return True
