"""The file of a learner: what a run leaves so that it can be rebuilt, and an entry may hand in.

learner.safetensors   weights; name and settings are in the header
learner.json          name and settings alone, where there are no weights

Both say ``{"baseline": name, "config": settings}``; ``baselines.replay`` rebuilds the learner.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from icl_bench.data.cache import atomic_path

WEIGHTS, SETTINGS = "learner.safetensors", "learner.json"


def learner_path(run: str | os.PathLike[str]) -> Path | None:
    """The file of a run's learner; None if it left none."""
    found = [Path(run) / name for name in (WEIGHTS, SETTINGS)]
    return next((path for path in found if path.is_file()), None)


def write_settings(path: str | os.PathLike[str], baseline: str, config: Mapping[str, Any]) -> None:
    """Write a learner that has no weights; atomic, and equal settings give equal bytes.

    Args:
        path: For instance ``learner.json`` in a run folder.
        baseline: Its name, one that ``baselines.replay`` knows.
        config: Its settings, JSON types.

    Raises:
        TypeError: If something is no JSON type.
        ValueError: If a number is not finite.
    """
    document = {"baseline": baseline, "config": dict(config)}
    text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8", newline="\n")
