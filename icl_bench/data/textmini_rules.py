"""Rules of the embedded text tasks: their words, and how an example is made of a draw.

``textmini.py`` has the tasks. Changing anything here changes examples: raise its ``VERSION``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from icl_bench.episodes import TextExample

_TRIES = 8  # texts drawn until one fits the label, else the draw is left out

Item = TypeVar("Item")


class Draw:
    """The integers of one example, used up one by one."""

    def __init__(self, integers: Iterable[int]) -> None:
        self._integers = iter(integers)

    def below(self, n: int) -> int:
        """Uniform on [0, n)."""
        return (next(self._integers) * n) >> 64

    def pick(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[self.below(len(items))]

    def sample(self, items: Iterable[Item], k: int | None = None) -> list[Item]:
        """K distinct places of the items in random order; all of them by default."""
        pool = list(items)
        return [pool.pop(self.below(len(pool))) for _ in range(len(pool) if k is None else k)]


Make = Callable[[Draw], TextExample | None]  # None: this draw is left out
Build = Callable[[Draw, int], str | None]  # an input for a label

_WORDS: Mapping[str, list[str]] = {
    name: words.split()
    for name, words in {
        "key": "mib sor tef gax pul rin hod vek",  # invented, as most labels are
        "kind": "old new big small red blue soft hard long short warm cold dark light rich poor",
        "place": "house road table river garden market window bridge corner station school "
        "kitchen tower island forest harbour",
        "name": "tom ann bob eva max lea jim sue ben mia dan ivy sam zoe ray amy",
        "month": "january february march april may june july august september october november "
        "december",
        "ones": "zero one two three four five six seven eight nine ten eleven twelve thirteen "
        "fourteen fifteen sixteen seventeen eighteen nineteen",
        "tens": "twenty thirty forty fifty sixty seventy eighty ninety",
    }.items()
}
_TOPICS: Mapping[str, list[str]] = {
    name: words.split()
    for name, words in {
        "animal": "cat dog horse cow sheep lion tiger mouse",
        "food": "bread cheese apple soup rice onion pasta cake",
        "tool": "hammer saw drill spade axe wrench chisel rake",
        "body": "hand foot knee elbow nose chin thumb neck",
        "clothes": "shirt coat hat shoe sock glove scarf belt",
        "vehicle": "car bus train ship bicycle truck tram ferry",
        "music": "piano violin drum flute guitar trumpet harp cello",
    }.items()
}
_SHAPES: Sequence[list[str]] = [
    words.split()
    for words in (
        "tiny small large huge",
        "red blue green pink grey white",
        "wooden metal glass paper stone clay",
        "cube ball cone ring star disc",
    )
]


def _number(n: int) -> str:
    """English words for n < 100."""
    if n < 20:
        return _WORDS["ones"][n]
    tens = _WORDS["tens"][n // 10 - 2]
    return f"{tens}-{_WORDS['ones'][n % 10]}" if n % 10 else tens


def new_word(draw: Draw) -> str:
    """A pronounceable word of 3 to 9 letters, beginning and ending with a vowel or not."""
    syllables = [draw.pick("bdfgklmnprstv") + draw.pick("aeiou") for _ in range(2 + draw.below(3))]
    word = "".join(syllables) + draw.pick(["", draw.pick("klmnst")])
    return word[draw.below(2) :]


def classes(labels: Sequence[str], build: Build) -> Make:
    """Draws a label uniformly, then an input for it."""
    options = tuple(sorted(labels))

    def make(draw: Draw) -> TextExample | None:
        label = draw.below(len(labels))
        text = build(draw, label)
        return None if text is None else TextExample(text, labels[label], options)

    return make


def _among(groups: Sequence[Sequence[str]]) -> Build:
    """A word of the label's group between two that do not matter."""
    return lambda draw, i: (
        f"{draw.pick(_WORDS['kind'])} {draw.pick(groups[i])} {draw.pick(_WORDS['place'])}"
    )


def where(new: Callable[[Draw], str], rule: Callable[[str], bool]) -> Build:
    """A new text of which the rule holds for label 0, or does not for label 1."""

    def build(draw: Draw, label: int) -> str | None:
        texts = (new(draw) for _ in range(_TRIES))
        return next((text for text in texts if rule(text) == (label == 0)), None)

    return build


def _options(draw: Draw, text: str, right: str, wrong: Sequence[str]) -> TextExample | None:
    """Multiple choice in random order; left out where two options are the same."""
    options = tuple(draw.sample([right, *wrong]))
    return TextExample(text, right, options) if len(set(options)) == len(options) else None


_EDITS: Mapping[str, Callable[[str], str]] = {
    "reverse": lambda word: word[::-1],
    "rotate-left": lambda word: word[1:] + word[0],
    "rotate-right": lambda word: word[-1] + word[:-1],
    "double-last": lambda word: word + word[-1],
    "double-first": lambda word: word[0] + word,
    "swap-ends": lambda word: word[-1] + word[1:-1] + word[0],
}


def edit(right: str, free: bool = False) -> Make:
    """A word edited in one way; the other options are other edits of it."""

    def make(draw: Draw) -> TextExample | None:
        word = new_word(draw)
        if free:
            return TextExample(word, _EDITS[right](word))
        others = draw.sample([name for name in _EDITS if name != right], 3)
        return _options(draw, word, _EDITS[right](word), [_EDITS[name](word) for name in others])

    return make


_OPERATIONS: Mapping[str, Callable[[int, int], int]] = {
    "sum": lambda a, b: a + b,
    "difference": lambda a, b: abs(a - b),
    "sum-and-one": lambda a, b: a + b + 1,
    "difference-and-one": lambda a, b: abs(a - b) + 1,
    "sum-less-one": lambda a, b: a + b - 1,
    "twice-larger": lambda a, b: 2 * max(a, b),
}


def arithmetic(right: str) -> Make:
    """Two number words under a hidden operation; the other options are other operations."""

    def make(draw: Draw) -> TextExample | None:
        a, b = 1 + draw.below(40), 1 + draw.below(40)
        others = draw.sample([name for name in _OPERATIONS if name != right], 3)
        answers = [_number(_OPERATIONS[name](a, b)) for name in (right, *others)]
        return _options(draw, f"{_number(a)} and {_number(b)}", answers[0], answers[1:])

    return make


def sequence(growth: int, sign: int) -> Make:
    """Four numbers, the fifth is asked; its place among four neighbours is uniform."""

    def make(draw: Draw) -> TextExample | None:
        step, terms = 2 + draw.below(8), [(10 if sign > 0 else 50) + draw.below(100)]
        for k in range(4):
            terms.append(terms[-1] + sign * (step + growth * k))
        lowest = terms[-1] - draw.below(4)
        wrong = [str(lowest + i) for i in range(4) if lowest + i != terms[-1]]
        return _options(draw, " ".join(map(str, terms[:-1])), str(terms[-1]), wrong)

    return make


def pattern(period: str) -> Make:
    """Two words in a repeated pattern, cut somewhere after its first period."""

    def make(draw: Draw) -> TextExample | None:
        words = dict(zip("ab", draw.sample(_WORDS["key"] + _TOPICS["animal"], 2), strict=True))
        end = len(period) + 1 + draw.below(4)
        *shown, right = (words[period[i % len(period)]] for i in range(end + 1))
        return _options(draw, " ".join(shown), right, [w for w in words.values() if w != right])

    return make


def has(draw: Draw, label: int) -> str:
    """A possession is repeated (0) or a new one is claimed (1)."""
    name = draw.pick(_WORDS["name"])
    one, two, other = draw.sample(_TOPICS["animal"] + _WORDS["key"], 3)
    asked = other if label else draw.pick([one, two])
    return f"{name} has a {one} and a {two} [SEP] {name} has a {asked}"


def order(draw: Draw, label: int) -> str:
    """A comparison is repeated (0) or turned round (1)."""
    (one, two), how = draw.sample(_WORDS["name"], 2), draw.pick(("older", "taller", "faster"))
    first, second = (two, one) if label else (one, two)
    return f"{one} is {how} than {two} [SEP] {first} is {how} than {second}"


def member(draw: Draw, label: int) -> str:
    """A conclusion from two premises (0), or another word in it (1)."""
    (one, two, other), name = draw.sample(_WORDS["key"], 3), draw.pick(_WORDS["name"])
    return f"every {one} is a {two} . {name} is a {one} [SEP] {name} is a {[two, other][label]}"


def holder(draw: Draw, label: int) -> str:
    """The claim follows (0), is denied (1), or is about somebody else (2)."""
    topics = ("tool", "food", "clothes", "music")
    things = [word for topic in topics for word in _TOPICS[topic]]
    (one, two), (thing, other) = draw.sample(_WORDS["name"], 2), draw.sample(things, 2)
    asked = [(one, thing), (one, other), (two, thing)][label]
    return f"{one} holds only a {thing} [SEP] {asked[0]} holds a {asked[1]}"


def pick(place: int, count: int = 4) -> Make:
    """One of so many words by its place."""

    def make(draw: Draw) -> TextExample | None:
        words = [draw.pick(draw.pick(list(_TOPICS.values()))) for _ in range(count)]
        wrong = [word for i, word in enumerate(words) if i != place % count]
        return _options(draw, " ".join(words), words[place], wrong)

    return make


def odd(draw: Draw) -> TextExample | None:
    """Three words of one topic and one of another."""
    usual, odd = draw.sample(_TOPICS.values(), 2)
    wrong, right = draw.sample(usual, 3), draw.pick(odd)
    return _options(draw, " ".join(draw.sample([right, *wrong])), right, wrong)


def brackets(draw: Draw, label: int) -> str:
    """Brackets of two kinds; those that do not match have one of the other kind."""
    text, opened = "", ""
    for _ in range(2 * (4 + draw.below(2))):
        if opened and (len(text + opened) >= 8 or draw.below(2)):
            text, opened = text + opened[-1], opened[:-1]
        else:
            kind = draw.pick(["()", "[]"])
            text, opened = text + kind[0], opened + kind[1]
    text += opened[::-1]
    place = draw.below(len(text))
    other = {"(": "[", "[": "(", ")": "]", "]": ")"}[text[place]]
    return text[:place] + other + text[place + 1 :] if label else text


def date(draw: Draw, label: int) -> str:
    """A day of the first (0) or second (1) half of the year."""
    day, month, year = 1 + draw.below(28), 6 * label + draw.below(6), 1900 + draw.below(120)
    return f"{day} {_WORDS['month'][month]} {year}"


def route(draw: Draw, label: int) -> str | None:
    """Seven or nine steps, more of them up (0) or down (1)."""
    build = where(
        lambda draw: " ".join(draw.pick(("up", "down")) for _ in range(7 + 2 * draw.below(2))),
        lambda text: text.count("up") > text.count("down"),
    )
    return build(draw, label)


def shapes(decides: int) -> Build:
    """Four attributes, of which one decides by which half of its values it is in."""

    def build(draw: Draw, label: int) -> str:
        words = [draw.pick(values) for values in _SHAPES]
        half = len(_SHAPES[decides]) // 2
        words[decides] = draw.pick(_SHAPES[decides][half * label : half * (label + 1)])
        return " ".join(words)

    return build


def code(draw: Draw) -> TextExample | None:
    """Every letter becomes the next one; the other options go by other distances."""
    word = new_word(draw)
    coded = ["".join(chr(97 + (ord(c) - 97 + by) % 26) for c in word) for by in (1, -1, 2, -2)]
    return _options(draw, word, coded[0], coded[1:])


def letters(rule: Callable[[str], bool]) -> Build:
    """A new word that the rule holds for (0) or not (1)."""
    return where(new_word, rule)


def numbers(rule: Callable[[int], bool]) -> Build:
    """A number of four digits that the rule holds for (0) or not (1)."""
    return where(lambda draw: str(1000 + draw.below(9000)), lambda text: rule(int(text)))


def pairs(rule: Callable[[int, int], bool]) -> Build:
    """Two numbers of two digits that the rule holds for (0) or not (1)."""
    return where(
        lambda draw: f"{10 + draw.below(90)} {10 + draw.below(90)}",
        lambda text: rule(*map(int, text.split())),
    )


def keyed(*groups: str) -> Build:
    """Key words, by their places in the list; a group for each label."""
    return _among([[_WORDS["key"][int(i)] for i in group] for group in groups])


def topics(*names: str) -> Build:
    """A topic for each label."""
    return _among([_TOPICS[name] for name in names])
