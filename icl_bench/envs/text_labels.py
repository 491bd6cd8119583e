"""Contamination twins: the same tasks under other labels.

A language model may know a public data set, or what "positive" means. In a twin the labels of a
classification task are renamed, the same way in demonstrations, options and answer, so that only
the demonstrations tell what a label means:

    shuffled      every label is another one of the task, drawn among all such exchanges
    random-words  every label is an invented word

What a method gains from the demonstrations of a twin it has learned in context.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np

from icl_bench.episodes import TextEpisode, TextExample
from icl_bench.tasks.counter import bounded, long_words, stream_key

Labels: TypeAlias = Literal["true", "shuffled", "random-words"]

_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


def relabelled(episode: TextEpisode, labels: Labels, draw: int) -> TextEpisode:
    """The episode under other labels; the same one where labels are true or there are none.

    Args:
        episode: Of a classification task; its query's options are the task's labels.
        labels: Which twin.
        draw: Number of the renaming; queries of one draw have the same.
    """
    if labels == "true" or not episode.query.options:
        return episode
    names = renaming(episode.task, tuple(sorted(set(episode.query.options))), labels, draw)
    return dataclasses.replace(
        episode,
        demonstrations=tuple(_rename(example, names) for example in episode.demonstrations),
        query=_rename(episode.query, names),
    )


def renaming(task: str, labels: Sequence[str], twin: Labels, draw: int) -> Mapping[str, str]:
    """New name of every label; a function of its arguments alone.

    Raises:
        ValueError: If a single label is to be exchanged for another.
    """
    key = stream_key("text labels", task.replace("/", " "), twin)
    if twin == "random-words":
        return dict(zip(labels, _words(key, draw, labels), strict=True))
    if len(labels) < 2:
        raise ValueError(f"{task} has one label, which cannot be exchanged: {labels[0]}")
    attempt = 0
    while True:  # one in three is such an exchange, so that few are passed over
        integers = long_words(key, np.array([draw]), (attempt + 1) * len(labels))[0]
        order = np.argsort(integers[-len(labels) :], kind="stable")
        if (order != np.arange(len(labels))).all():
            return {label: labels[i] for label, i in zip(labels, order, strict=True)}
        attempt += 1


def _words(key: int, draw: int, taken: Sequence[str]) -> list[str]:
    """As many distinct invented words of five letters as there are labels, and none of these."""
    words: dict[str, None] = {}
    known = {label.lower() for label in taken}
    count = 0
    while len(words) < len(taken):
        count += 5 * len(taken)
        integers = long_words(key, np.array([draw]), count)[0].reshape(-1, 5)
        for row in integers:
            letters = [
                (_VOWELS if i % 2 else _CONSONANTS)[int(n)]
                for i, n in enumerate(bounded(row, np.array([14, 5, 14, 5, 14], dtype=np.uint64)))
            ]
            word = "".join(letters)
            if word not in known and len(words) < len(taken):
                words[word] = None
    return list(words)


def _rename(example: TextExample, names: Mapping[str, str]) -> TextExample:
    options = tuple(sorted(names[option] for option in example.options))
    return TextExample(example.input, names[example.output], options)
