"""TextMini: its rules by independent answers, and that nothing but the rule gives them away."""

import hashlib
import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import pytest

from icl_bench.data import textmini
from icl_bench.data.text import DEMO_SEEDS, load_text, text_setting, text_task
from icl_bench.data.text_files import check_example
from icl_bench.data.textmini import TASKS, examples
from icl_bench.data.textmini_rules import Draw
from icl_bench.episodes import TextExample

# Raise textmini.VERSION when this changes.
GOLDEN = "825e6b037b091b8de1208daf8cc291166039dbcefd0d8566d49220adf9b48aeb"
VOWELS = "aeiou"
FOOD = {"bread", "cheese", "apple", "soup", "rice", "onion", "pasta", "cake"}
TOOLS = {"hammer", "saw", "drill", "spade", "axe", "wrench", "chisel", "rake"}
VEHICLES = {"car", "bus", "train", "ship", "bicycle", "truck", "tram", "ferry"}
ANIMALS = {"cat", "dog", "horse", "cow", "sheep", "lion", "tiger", "mouse"}
CLOTHES = {"shirt", "coat", "hat", "shoe", "sock", "glove", "scarf", "belt"}
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
NUMBERS = [*ONES, *(t + (f"-{o}" if i else "") for t in TENS for i, o in enumerate(ONES[:10]))]


def everything(task: str) -> tuple[TextExample, ...]:
    return examples(task, "train") + examples(task, "test")


def two(text: str) -> tuple[int, int]:
    """The numbers of "four and twenty-one"."""
    first, _, second = text.split()
    return NUMBERS.index(first), NUMBERS.index(second)


def follows(text: str) -> str:
    """Entailment by the words of both halves."""
    premise, claim = text.split(" [SEP] ")
    if premise.startswith("every"):
        _, one, _, _, other, _, name, *_, mine = premise.split()
        assert one == mine
        return "yes" if claim == f"{name} is a {other}" else "no"
    if " has " in premise:
        return "yes" if claim.split()[-1] in premise.split() else "no"
    if "only" in premise:
        (name, *_, thing), (who, *_, what) = premise.split(), claim.split()
        return "perhaps" if name != who else "sure" if thing == what else "never"
    return "true" if premise == claim else "false"


def matches(text: str) -> bool:
    while (shorter := text.replace("()", "").replace("[]", "")) != text:
        text = shorter
    return not text


def fifth(text: str) -> int:
    """The next number of a sequence whose steps grow by one constant."""
    a, b, c, d = map(int, text.split())
    assert (d - c) - (c - b) == (c - b) - (b - a)
    return d + (d - c) + (d - c) - (c - b)


def repeated(text: str, period: int) -> str:
    words = text.split()
    return words[len(words) % period]


def key(meaning: str):
    """An answer from the word in the middle: "a b: x, c d: y"."""
    pairs = [part.split(": ") for part in meaning.split(", ")]
    answer = {word: label for words, label in pairs for word in words.split()}
    return lambda text: answer[text.split()[1]]


def month(text: str) -> bool:
    return text.split()[1] in ("january", "february", "march", "april", "may", "june")


def other(label: str, labels: str):
    """The answer ``label`` where a rule holds, else the other label."""
    first, second = labels.split()
    assert label == first
    return lambda holds: first if holds else second


# What each rule says, written apart from the generators (which keys mean what is read off).
ORACLES = {
    "mini-keys-1": key("mib sor: dax, tef gax: wug"),
    "mini-keys-2": key("mib tef: wug, sor gax: dax"),
    "mini-keys-7": key("mib: dax, gax: fep, rin: zib"),
    "mini-keys-9": key("mib gax: zib, sor tef: dax"),
    "mini-keys-10": key("mib hod: fep, pul vek: dax"),
    "mini-keys-15": key("mib tef: fep, rin vek: zib"),
    "mini-keys-20": key("mib rin: dax, sor vek: zib"),
    "mini-keys-25": key("mib vek: fep, gax rin: dax"),
    "mini-keys-30": key("sor rin: wug, tef gax: lum"),
    "mini-keys-35": key("tef gax: wug, hod vek: fep"),
    "mini-keys-40": key("gax vek: zib, pul hod: lum"),
    "mini-topics-15": lambda t: "zib" if t.split()[1] in VEHICLES else "fep",
    "mini-topics-20": lambda t: "dax" if t.split()[1] in FOOD else "zib",
    "mini-topics-25": lambda t: "dax" if t.split()[1] in CLOTHES else "fep",
    "mini-letters-15": lambda t: "fep" if "m" in t else "zib",
    "mini-letters-20": lambda t: "dax" if "k" in t else "zib",
    "mini-numbers-15": lambda t: "fep" if int(t) >= 4000 else "zib",
    "mini-numbers-20": lambda t: "dax" if int(t.split()[0]) > int(t.split()[1]) else "zib",
    "mini-entailment-15": lambda t: {"true": "fep", "false": "zib"}[follows(t)],
    "mini-topics-1": lambda t: "food" if t.split()[1] in FOOD else "animal",
    "mini-topics-2": lambda t: "wug" if t.split()[1] in FOOD else "dax",
    "mini-topics-3": lambda t: "dax" if t.split()[1] in FOOD else "wug",
    "mini-topics-7": lambda t: "zib" if t.split()[1] in FOOD else "fep",
    "mini-topics-8": lambda t: "wug" if t.split()[1] in VEHICLES else "lum",
    "mini-letters-1": lambda t: "dax" if t[0] in VOWELS else "wug",
    "mini-letters-2": lambda t: "wug" if t[-1] in VOWELS else "zib",
    "mini-letters-3": lambda t: "long" if len(t) > 5 else "short",
    "mini-letters-4": lambda t: "lum" if "a" in t else "dax",
    "mini-letters-5": lambda t: "fep" if "o" in t else "zib",
    "mini-letters-6": lambda t: "wug" if len(t) > 5 else "fep",
    "mini-numbers-1": lambda t: "even" if t[-1] in "02468" else "odd",
    "mini-numbers-2": lambda t: "big" if int(t) >= 5500 else "small",
    "mini-numbers-3": lambda t: "dax" if int(t.split()[0]) > int(t.split()[1]) else "wug",
    "mini-numbers-4": lambda t: "lum" if t[-1] in "01234" else "zib",
    "mini-entailment-1": follows,
    "mini-entailment-2": follows,
    "mini-entailment-3": follows,
    "mini-entailment-4": follows,
    "mini-brackets-1": lambda t: "closed" if matches(t) else "broken",
    "mini-dates-1": lambda t: "early" if month(t) else "late",
    "mini-routes-1": lambda t: "above" if t.count("up") > t.count("down") else "below",
    "mini-shapes-1": lambda t: "dax" if t.split()[1] in ("red", "blue", "green") else "wug",
    "mini-shapes-2": lambda t: "lum" if t.split()[2] in ("wooden", "metal", "glass") else "zib",
    "mini-edits-1": lambda t: "".join(reversed(t)),
    "mini-edits-2": lambda t: t[1:] + t[:1],
    "mini-edits-3": lambda t: t[-1:] + t[:-1],
    "mini-edits-4": lambda t: t + t[-1],
    "mini-edits-5": lambda t: t[-1] + t[1:-1] + t[0],
    "mini-arithmetic-1": lambda t: NUMBERS[sum(two(t))],
    "mini-arithmetic-2": lambda t: NUMBERS[max(two(t)) - min(two(t))],
    "mini-arithmetic-3": lambda t: NUMBERS[sum(two(t)) + 1],
    "mini-arithmetic-4": lambda t: NUMBERS[max(two(t)) - min(two(t)) + 1],
    "mini-sequences-1": lambda t: str(fifth(t)),
    "mini-sequences-2": lambda t: str(fifth(t)),
    "mini-sequences-3": lambda t: str(fifth(t)),
    "mini-patterns-1": lambda t: repeated(t, 2),
    "mini-patterns-2": lambda t: repeated(t, 3),
    "mini-patterns-3": lambda t: repeated(t, 3),
    "mini-picks-1": lambda t: t.split()[0],
    "mini-picks-2": lambda t: t.split()[-1],
    "mini-picks-4": lambda t: t.split()[1],
    "mini-codes-1": lambda t: t.translate({97 + i: 97 + (i + 1) % 26 for i in range(26)}),
}


@pytest.mark.parametrize("task", ORACLES)
def test_every_output_follows_from_the_rule(task: str) -> None:
    for example in everything(task):
        assert example.output == ORACLES[task](example.input), example


def test_every_test_task_has_an_answer_of_its_own() -> None:
    assert set(text_setting("TextMini").test) <= set(ORACLES) <= set(TASKS)


def test_the_oracles_can_fail() -> None:
    """Exchanged answers are not taken: twins differ, and neighbours of a rule too."""
    for task, wrong in (
        ("mini-topics-2", "mini-topics-3"),
        ("mini-arithmetic-1", "mini-arithmetic-3"),
        ("mini-edits-3", "mini-edits-4"),
        ("mini-picks-1", "mini-picks-4"),
    ):
        right = [example.output == ORACLES[wrong](example.input) for example in everything(task)]
        assert sum(right) < len(right) / 2


def test_the_examples_are_the_same_everywhere() -> None:
    rows = [
        [name, split, example.input, example.output, *example.options]
        for name in TASKS
        for split in ("train", "test")
        for example in examples(name, split)
    ]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert examples("mini-keys-1", "train")[0] == TextExample(
        "long sor station", "dax", ("dax", "wug")
    )
    assert digest == GOLDEN


def test_sides_and_families() -> None:
    sides = defaultdict(set)
    for row in TASKS.values():
        sides[row.side].add(row.family)
    assert len(TASKS) >= 24
    assert len(set().union(*sides.values())) >= 6
    assert sides["test"] <= sides["train"]
    assert not sides["unseen-domain"] & sides["train"]
    setting = text_setting("TextMini")
    assert {TASKS[name].side for name in setting.unseen_domain} == {"unseen-domain"}
    assert (len(setting.train), len(setting.test), len(setting.unseen_domain)) == (119, 33, 6)
    assert all(text_task(name).kind != "free-form" for name in setting.test)


@pytest.mark.parametrize("task", TASKS)
def test_examples_are_distinct_disjoint_and_fit_their_task(task: str) -> None:
    row, train, test = TASKS[task], examples(task, "train"), examples(task, "test")
    assert (len(train), len(test)) == (textmini.COUNTS["train"], textmini.COUNTS["test"])
    assert len({example.input for example in train + test}) == len(train + test)
    for example in train + test:
        check_example(example, task, task, row.kind, row.labels)
        assert example.input.isascii()
        assert len(example.input) <= 64
        assert len(set(example.options)) == len(example.options)


@pytest.mark.parametrize("task", TASKS)
def test_finding_an_option_in_the_input_does_not_tell(task: str) -> None:
    for example in everything(task):
        inside = {word in example.input for word in example.options or (example.output,)}
        assert inside == {TASKS[task].answer_in_input}, example


@pytest.mark.parametrize("task", TASKS)
def test_labels_are_roughly_balanced_and_places_uniform(task: str) -> None:
    """Labels within a third of their share; a right option at any place, 5 sigma."""
    row, found = TASKS[task], everything(task)
    if row.kind == "classification":
        counts = Counter(example.output for example in found)
        assert set(counts) == set(row.labels)
        share = len(found) / len(row.labels)
        assert all(2 / 3 < count / share < 4 / 3 for count in counts.values()), counts
    elif row.kind == "multi-choice":
        size = len(found[0].options)
        places = Counter(example.options.index(example.output) for example in found)
        sigma = math.sqrt(len(found) * (size - 1)) / size
        for place in range(size):
            assert abs(places[place] - len(found) / size) < 5 * sigma, places


@pytest.mark.parametrize("task", ["mini-sequences-1", "mini-sequences-2", "mini-sequences-3"])
def test_the_size_of_the_right_number_does_not_tell(task: str) -> None:
    found = everything(task)
    ranks = Counter(sorted(map(int, e.options)).index(int(e.output)) for e in found)
    sigma = math.sqrt(len(found) * 3) / 4
    assert all(abs(ranks[rank] - len(found) / 4) < 5 * sigma for rank in range(4)), ranks


def by_words(demonstrations: Sequence[TextExample], query: TextExample) -> str:
    """The label whose demonstrations share the rarest words with the query (naive Bayes)."""
    totals = Counter(example.output for example in demonstrations)
    counts = {label: Counter[str]() for label in query.options}
    for example in demonstrations:
        counts[example.output].update(example.input.split())

    def score(label: str) -> float:
        chances = ((counts[label][w] + 0.1) / (totals[label] + 0.2) for w in query.input.split())
        return sum(map(math.log, chances))

    return max(query.options, key=score)


@pytest.mark.parametrize(
    ("task", "at_least"),
    [
        ("mini-keys-9", 0.85),
        ("mini-keys-10", 0.85),
        ("mini-topics-7", 0.6),
        ("mini-dates-1", 0.6),
        ("mini-shapes-1", 0.75),
        ("mini-shapes-2", 0.75),
    ],
)
def test_sixteen_demonstrations_show_the_rule(task: str, at_least: float) -> None:
    """A counter of words learns from 16 demonstrations, and not from those of shuffled labels."""
    hits, blind, count = 0, 0, 0
    for seed in DEMO_SEEDS:
        shown = load_text(task, "train", k=16, seed=seed)
        labels = [example.output for example in shown]
        for query, moved in zip(
            examples(task, "test"), itertools.cycle(range(1, 16)), strict=False
        ):
            hits += by_words(shown, query) == query.output
            turned = [TextExample(e.input, labels[(i + moved) % 16]) for i, e in enumerate(shown)]
            blind += by_words(turned, query) == query.output
            count += 1
    assert hits / count > at_least, (hits, blind, count)
    assert blind / count < 0.6, (hits, blind, count)


def test_a_draw_is_uniform_and_without_replacement() -> None:
    assert [Draw([w]).below(10) for w in (0, 2**64 - 1, 2**63)] == [0, 9, 5]
    assert Draw([0, 0, 0]).sample("abc") == ["a", "b", "c"]
    assert Draw([2**64 - 1, 0]).sample("abc", 2) == ["c", "a"]
