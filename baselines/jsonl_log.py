"""The log of a run, ``metrics.jsonl``."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from icl_bench.data.cache import atomic_path


class JsonlLog:
    """``metrics.jsonl``: one JSON object per line, on disk as soon as it is written.

    Every line has ``event`` and ``wall_s``, the seconds since this process opened the run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start = time.monotonic()

    def write(self, event: str, **values: Any) -> None:
        """Append one line.

        Raises:
            ValueError: If a number is not finite.
        """
        line = {"event": event, "wall_s": round(time.monotonic() - self._start, 3)} | values
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """All lines but one that a kill cut short.

        Raises:
            ValueError: If a line is damaged, naming the file and the line.
        """
        if not self.path.exists():
            return []
        text = self.path.read_bytes()
        lines = []
        for number, line in enumerate(text[: text.rfind(b"\n") + 1].splitlines(), 1):
            try:
                lines.append(json.loads(line))
                lines[-1]["event"]
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{self.path}, line {number} is damaged: remove it, or start a new run"
                ) from error
        return lines

    def cut(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Keep some lines of a run that goes on: not those that it will write again.

        A line that a kill cut short goes too.
        """
        lines = [line for line in self.read() if keep(line)]
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
