"""The journal of finished scores, from which an evaluation of text prompts is resumed."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from icl_bench.tasks.prompts import Prompt


class ScoreJournal:
    """Finished scores in a file of JSON lines, on disk as soon as a query is done.

    The first line holds the settings, each other one the scores of one query of one task and
    demonstration seed, with a digest of its prompt. A line that a kill cut short is dropped.

    Args:
        path: The file; begun if there is none.
        settings: All that the scores depend on besides the prompts (model, weights, precision).

    Raises:
        ValueError: If the file is of other settings, or a line is damaged, naming it.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._scores: dict[tuple[str, int, int], tuple[str, list[float]]] = {}
        wanted = json.loads(json.dumps(settings))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = self.path.read_bytes() if self.path.exists() else b""
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            os.truncate(self.path, whole)
        if not whole:
            self._append({"settings": wanted})
        for number, line in enumerate(text[:whole].splitlines(), 1):
            try:
                read = json.loads(line)
                if number == 1:
                    found = dict(read["settings"])
                else:
                    key = (read["task"], read["seed"], read["query"])
                    self._scores[key] = (read["prompt"], read["scores"])
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{self.path}, line {number} is damaged: remove it, or start a new journal"
                ) from error
            differ = sorted(n for n in {*found, *wanted} if found.get(n) != wanted.get(n))
            if differ:
                raise ValueError(
                    f"{self.path} holds scores of other settings ({', '.join(differ)}): choose "
                    "another file"
                )

    def get(self, task: str, seed: int, query: int, prompt: Prompt) -> list[float] | None:
        """A query's scores; None if it is not finished.

        Raises:
            ValueError: If its scores are those of another prompt.
        """
        digest, scores = self._scores.get((task, seed, query), ("", None))
        if scores is not None and digest != _digest(prompt):
            raise ValueError(
                f"{self.path} holds scores of another prompt for query {query} of {task}, seed "
                f"{seed}: data, format or tokenizer differ; choose another file"
            )
        return scores

    def put(
        self, task: str, seed: int, query: int, prompt: Prompt, scores: Sequence[float]
    ) -> None:
        """Append a query's scores."""
        digest, kept = _digest(prompt), list(scores)
        self._append({"task": task, "seed": seed, "query": query, "prompt": digest, "scores": kept})
        self._scores[task, seed, query] = (digest, kept)

    def _append(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _digest(prompt: Prompt) -> str:
    """Names the sequences of a prompt."""
    text = json.dumps([prompt.sequence(i) for i in range(len(prompt.scored))])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
