"""TextMini: small procedural text tasks, made by this package on every machine alike.

Every task is a rule that decides the output from the input alone, and 16 demonstrations are meant
to show it. Rules that pairs of tasks hold against each other (one key word with two meanings, the
same topics under exchanged labels) are on purpose: only the demonstrations tell them apart, so
an input of a train task may come again in a test task, under another rule.

Tasks are many, since learning in context needs many (Kirsch et al. 2022, Figure 4): five families
have further ones that differ in what decides or in their labels.

Three sides: ``train``; ``test``, other rules of the same families, or the
same under other labels; ``unseen-domain``, families
that no train task has. Examples are drawn with the integers of ``tasks.counter`` under the key
("textmini", version, task): the same example has the same id everywhere. Inputs of a task are
distinct, so train and test are disjoint. Either no option (or free-form output) occurs in its
input, or all of them do (``answer_in_input``): finding a word in the input never gives it away.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np

from icl_bench.data import textmini_rules as rules
from icl_bench.data.text_files import TextKind
from icl_bench.data.textmini_rules import Build, Draw, Make
from icl_bench.episodes import TextExample
from icl_bench.tasks.counter import long_words, stream_key

VERSION = 0  # raised when any example changes
COUNTS: Mapping[Literal["train", "test"], int] = {"train": 400, "test": 100}
# Integers kept for one example, more than any takes; examples made at once; ids tried at most.
_INTEGERS, _BLOCK, _MAX_IDS = 128, 256, 64 * 256

Side = Literal["train", "test", "unseen-domain"]


@dataclasses.dataclass(frozen=True)
class MiniTask:
    """A task of the embedded suite.

    Attributes:
        name: Begins with its family.
        family: What its tasks have in common.
        kind: As of any text task.
        side: Where the setting has it.
        rule: What decides the output, for people.
        make: Makes an example of a draw.
        labels: Of a classification task, sorted.
        answer_in_input: Whether all options occur in the input; else none does.
    """

    name: str
    family: str
    kind: TextKind
    side: Side
    rule: str
    make: Make
    labels: tuple[str, ...] = ()
    answer_in_input: bool = False


def examples(task: str, split: Literal["train", "test"]) -> tuple[TextExample, ...]:
    """All examples of one split of a task: the first distinct ones for train, the next for test.

    Raises:
        KeyError: For an unknown task or split.
    """
    places = {"train": slice(COUNTS["train"]), "test": slice(COUNTS["train"], None)}
    return _made(task)[places[split]]


@functools.cache
def _made(task: str) -> tuple[TextExample, ...]:
    return tuple(itertools.islice(_distinct(TASKS[task]), sum(COUNTS.values())))


def _distinct(row: MiniTask) -> Iterator[TextExample]:
    seen: set[str] = set()
    key = stream_key("textmini", VERSION, row.name)
    for block in range(0, _MAX_IDS, _BLOCK):
        for integers in long_words(key, np.arange(block, block + _BLOCK), _INTEGERS).tolist():
            example = row.make(Draw(integers))
            if example is None or example.input in seen:
                continue
            inside = [word in example.input for word in example.options or (example.output,)]
            if all(inside) if row.answer_in_input else not any(inside):
                seen.add(example.input)
                yield example


# Name, side, rule, labels, how an input is made for a label.
_CLASSIFICATION: tuple[tuple[str, Side, str, str, Build], ...] = (
    ("keys-1", "train", "one of four words decides", "dax wug", rules.keyed("01", "23")),
    ("keys-2", "train", "one of four words decides", "wug dax", rules.keyed("02", "13")),
    ("keys-3", "train", "one of four words decides", "fep lum", rules.keyed("45", "67")),
    ("keys-4", "train", "one of four words decides", "lum fep", rules.keyed("46", "57")),
    ("keys-5", "train", "one of four words decides", "dax lum", rules.keyed("07", "25")),
    ("keys-6", "train", "one of four words decides", "fep wug", rules.keyed("14", "36")),
    ("keys-7", "train", "one of three words decides", "dax fep zib", rules.keyed("0", "3", "5")),
    ("keys-8", "train", "one of three words decides", "zib wug lum", rules.keyed("1", "4", "7")),
    ("keys-9", "test", "one of four words decides", "zib dax", rules.keyed("03", "12")),
    ("keys-10", "test", "one of four words decides", "fep dax", rules.keyed("06", "47")),
    ("topics-1", "train", "which topic", "animal food", rules.topics("animal", "food")),
    ("topics-2", "train", "which topic", "dax wug", rules.topics("animal", "food")),
    ("topics-3", "train", "which topic", "wug dax", rules.topics("animal", "food")),
    ("topics-4", "train", "which topic", "fep lum", rules.topics("tool", "body")),
    ("topics-5", "train", "which topic", "lum fep", rules.topics("tool", "body")),
    ("topics-6", "train", "which topic", "dax lum zib", rules.topics("animal", "tool", "food")),
    ("topics-7", "test", "which topic", "zib fep", rules.topics("food", "tool")),
    ("topics-8", "test", "which topic", "wug lum", rules.topics("vehicle", "music")),
    ("letters-1", "train", "begins in vowel", "dax wug", rules.letters(lambda w: w[0] in "aeiou")),
    ("letters-2", "train", "ends in vowel", "wug zib", rules.letters(lambda w: w[-1] in "aeiou")),
    ("letters-3", "train", "over 5 letters", "long short", rules.letters(lambda w: len(w) > 5)),
    ("letters-4", "train", "has an a", "lum dax", rules.letters(lambda w: "a" in w)),
    ("letters-5", "test", "has an o", "fep zib", rules.letters(lambda w: "o" in w)),
    ("letters-6", "test", "over 5 letters", "wug fep", rules.letters(lambda w: len(w) > 5)),
    ("numbers-1", "train", "even", "even odd", rules.numbers(lambda n: n % 2 == 0)),
    ("numbers-2", "train", "at least 5500", "big small", rules.numbers(lambda n: n >= 5500)),
    ("numbers-3", "train", "the first is larger", "dax wug", rules.pairs(lambda a, b: a > b)),
    ("numbers-4", "test", "ends with 0 to 4", "lum zib", rules.numbers(lambda n: n % 10 < 5)),
    ("entailment-1", "train", "the second follows from the first", "yes no", rules.has),
    ("entailment-2", "train", "the second follows from the first", "true false", rules.order),
    ("entailment-3", "train", "the second follows from the first", "yes no", rules.member),
    ("entailment-4", "test", "follows, is denied, is open", "sure never perhaps", rules.holder),
    ("brackets-1", "unseen-domain", "brackets match", "closed broken", rules.brackets),
    ("dates-1", "unseen-domain", "before July", "early late", rules.date),
    ("routes-1", "unseen-domain", "more up than down", "above below", rules.route),
    ("shapes-1", "unseen-domain", "the colour decides", "dax wug", rules.shapes(1)),
    ("shapes-2", "unseen-domain", "the material decides", "lum zib", rules.shapes(2)),
)  # fmt: skip
# Name, side, rule, how an example is made.
_OTHERS: tuple[tuple[str, Side, str, Make], ...] = (
    ("edits-1", "train", "reverse", rules.edit("reverse", free=True)),
    ("edits-2", "train", "first letter to the end", rules.edit("rotate-left", free=True)),
    ("edits-3", "train", "last letter to the front", rules.edit("rotate-right")),
    ("edits-4", "train", "last letter twice", rules.edit("double-last")),
    ("edits-6", "train", "first letter twice", rules.edit("double-first")),
    ("edits-5", "test", "first and last letter change places", rules.edit("swap-ends")),
    ("arithmetic-1", "train", "a + b", rules.arithmetic("sum")),
    ("arithmetic-2", "train", "|a - b|", rules.arithmetic("difference")),
    ("arithmetic-3", "train", "a + b + 1", rules.arithmetic("sum-and-one")),
    ("arithmetic-5", "train", "a + b - 1", rules.arithmetic("sum-less-one")),
    ("arithmetic-6", "train", "twice the larger", rules.arithmetic("twice-larger")),
    ("arithmetic-4", "test", "|a - b| + 1", rules.arithmetic("difference-and-one")),
    ("sequences-1", "train", "goes up by the same step", rules.sequence(0, 1)),
    ("sequences-2", "train", "goes up by steps that grow by 1", rules.sequence(1, 1)),
    ("sequences-4", "train", "goes up by steps that grow by 2", rules.sequence(2, 1)),
    ("sequences-5", "train", "goes down by steps that grow by 1", rules.sequence(1, -1)),
    ("sequences-6", "train", "goes down by steps that grow by 2", rules.sequence(2, -1)),
    ("sequences-3", "test", "goes down by the same step", rules.sequence(0, -1)),
    ("patterns-1", "train", "a b repeated", rules.pattern("ab")),
    ("patterns-2", "train", "a a b repeated", rules.pattern("aab")),
    ("patterns-3", "test", "a b b repeated", rules.pattern("abb")),
    ("patterns-4", "train", "a a b b repeated", rules.pattern("aabb")),
    ("patterns-5", "train", "a a a b repeated", rules.pattern("aaab")),
    ("picks-1", "train", "the first word", rules.pick(0)),
    ("picks-2", "train", "the last word", rules.pick(-1)),
    ("picks-3", "train", "the word of another topic", rules.odd),
    ("picks-5", "train", "the third word", rules.pick(2)),
    ("picks-6", "train", "the first of five words", rules.pick(0, 5)),
    ("picks-7", "train", "the third of five words", rules.pick(2, 5)),
    ("picks-8", "train", "the fourth of five words", rules.pick(3, 5)),
    ("picks-9", "train", "the fourth of six words", rules.pick(3, 6)),
    ("picks-10", "train", "the last of six words", rules.pick(5, 6)),
    ("picks-4", "test", "the second word", rules.pick(1)),
    ("codes-1", "unseen-domain", "every letter becomes the next", rules.code),
)


# Of the further tasks: the labels of one after the other, and what their rules are of. Every fifth
# is a test task, so that a difference of some points can be told from chance.
_LABELS = ["dax wug", "lum fep", "zib dax", "wug lum", "fep zib", "dax lum", "zib wug", "lum dax"]
_LABELS += ["wug fep", "dax zib", "fep wug", "lum zib", "wug dax", "zib lum", "fep dax", "fep lum"]
_TOPICS = ("animal", "food", "tool", "body", "clothes", "vehicle", "music")
_TEST_TOPICS = (("food", "tool"), ("vehicle", "music"))
_TEST_KEYS = ({"03", "12"}, {"06", "47"})


def _further() -> Iterator[tuple[str, Side, str, str, Build]]:
    """Rows as of ``_CLASSIFICATION``, each with another rule or other labels than those above."""
    builds: dict[str, list[tuple[str, Build]]] = {
        "keys": [
            ("one of four words decides", rules.keyed(f"{a}{b}", f"{c}{d}"))
            for a, b, c, d in _key_pairs()
        ],
        "topics": [
            ("which topic", rules.topics(*names))
            for names in itertools.combinations(_TOPICS, 2)
            if names not in _TEST_TOPICS
        ],
        "letters": [
            (f"has {letter}", rules.letters(functools.partial(_contains, letter)))
            for letter in "eiulmnstrkbd"
        ],
        "numbers": [
            *(("even", rules.numbers(lambda n: n % 2 == 0)),) * 3,
            *(
                (f"at least {low}", rules.numbers(functools.partial(int.__le__, low)))
                for low in (3000, 4000, 5000, 6000, 7000)
            ),
            *(("the first is larger", rules.pairs(lambda a, b: a > b)),) * 3,
        ],
        "entailment": [
            ("the second follows from the first", rule)
            for rule in (rules.has, rules.order, rules.member)
            for _ in range(3)
        ],
    }
    for family, rows in builds.items():
        for number, (rule, build) in enumerate(rows):
            name = f"{family}-{number + 11}"  # after the numbers of the rows above
            side: Side = "test" if number % 5 == 4 else "train"
            yield name, side, rule, _LABELS[number % len(_LABELS)], build


def _key_pairs() -> Iterator[tuple[int, ...]]:
    """Thirty ways to put two keys against two others."""
    ways = [
        (a, b, c, d)
        for a, b, c, d in itertools.permutations(range(8), 4)
        if a < b and c < d and a < c and {f"{a}{b}", f"{c}{d}"} not in _TEST_KEYS
    ]
    return iter(ways[::7])


def _contains(letter: str, word: str) -> bool:
    return letter in word


def _rows() -> Iterator[MiniTask]:
    for name, side, rule, labels, build in itertools.chain(_CLASSIFICATION, _further()):
        family, words = name.rpartition("-")[0], labels.split()
        make = rules.classes(words, build)
        yield MiniTask(
            f"mini-{name}", family, "classification", side, rule, make, tuple(sorted(words))
        )
    for name, side, rule, make in _OTHERS:
        family = name.rpartition("-")[0]
        kind: TextKind = "free-form" if name in ("edits-1", "edits-2") else "multi-choice"
        inside = family in ("patterns", "picks")
        yield MiniTask(f"mini-{name}", family, kind, side, rule, make, answer_in_input=inside)


TASKS: Mapping[str, MiniTask] = {row.name: row for row in _rows()}
