"""Classical learners of text tasks: what a number on a text board means."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from icl_bench.episodes import TextEpisode
from icl_bench.tasks.counter import stream_key, uniforms

if TYPE_CHECKING:
    from icl_bench.evaluation.text_protocol import TextLearner

Scores = list[Float[np.ndarray, " _"]]


class TextChance:
    """A random option, drawn by a key from task, query and demonstration seed."""

    def __call__(self, episodes: Sequence[TextEpisode]) -> Scores:
        """Random numbers."""
        found = []
        for episode in episodes:
            draw = -1 if episode.demo_seed is None else episode.demo_seed
            key = stream_key("text chance", episode.task.replace("/", " "), draw)
            count = max(1, len(episode.query.options))
            row = uniforms(key, np.array([episode.episode]), count)[0]
            found.append(row[: len(episode.query.options)])
        return found


class MajorityLabel:
    """The option that is the output of most demonstrations; the input is not looked at."""

    def __call__(self, episodes: Sequence[TextEpisode]) -> Scores:
        """Numbers of demonstrations."""
        found = []
        for episode in episodes:
            counts = Counter(example.output for example in episode.demonstrations)
            found.append(np.array([float(counts[option]) for option in episode.query.options]))
        return found


class WordNeighbour:
    """The output of the demonstration whose input shares most words with the query's.

    Similarity is the cosine of word counts. An option that is no demonstration's output, as most
    are in multi-choice tasks, has the cosine of its own words with the query's, less 2.
    """

    def __call__(self, episodes: Sequence[TextEpisode]) -> Scores:
        """Largest cosine for each option, in [-2, 1]."""
        found = []
        for episode in episodes:
            query = _words(episode.query.input)
            near: dict[str, float] = {}
            for example in episode.demonstrations:
                cosine = _cosine(query, _words(example.input))
                near[example.output] = max(cosine, near.get(example.output, 0.0))
            row = [
                near[option] if option in near else _cosine(query, _words(option)) - 2
                for option in episode.query.options
            ]
            found.append(np.array(row))
        return found


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.lower()))


def _cosine(a: Counter[str], b: Counter[str]) -> float:
    shared = sum(a[word] * b[word] for word in a.keys() & b.keys())
    norms = sum(v * v for v in a.values()) * sum(v * v for v in b.values())
    return shared / float(np.sqrt(norms)) if norms else 0.0


TEXT_REFERENCES: "Mapping[str, Callable[[], TextLearner]]" = {
    "chance": TextChance,
    "majority": MajorityLabel,
    "1-nn": WordNeighbour,
}
