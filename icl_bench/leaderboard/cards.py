"""Difficulty cards: how far simple learners and the best entry come on every environment.

The numbers are those of the boards (``SuiteScore``, ``TextSuiteScore``), the facts those of the
catalog and of the frozen labels. So a page is the same wherever the same entries are scored, with
or without images; only pictures need data, and those that are there are linked.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

from icl_bench import catalog
from icl_bench.evaluation.statistics import ROUNDING, Interval, significantly_better
from icl_bench.leaderboard.card_facts import example_prompt, text_facts, vector_facts
from icl_bench.leaderboard.entry import EntryInfo
from icl_bench.leaderboard.formatting import (
    DASH,
    markdown_table,
    markdown_text,
    percent,
    plus_minus,
)
from icl_bench.leaderboard.marks import is_doubtful
from icl_bench.leaderboard.scoring import ColumnScore, SuiteScore, score_suite
from icl_bench.leaderboard.suites import ALL_SUITES
from icl_bench.leaderboard.text_columns import TextColumn
from icl_bench.leaderboard.text_scoring import TextSuiteScore, score_text_suite
from icl_bench.registration import EnvSpec, TextEnvSpec, find_any_spec

# Folder of the page and its pictures, inside of the leaderboards.
FOLDER = "cards"

# An environment whose best entry may be right so often has nothing left to show.
SATURATED = 0.99

AnyScore: TypeAlias = SuiteScore | TextSuiteScore
Verdict = Literal["saturated", "1-NN not beaten", "open", "not handed in"]

# Simple learners of a card: title → pattern of the entry's name.
LEARNERS: Mapping[str, str] = MappingProxyType(
    {"Chance": "chance", "1-NN": "1-nn", "Logistic regression": "logistic-regression", "SGD": "sgd"}
)
TEXT_LEARNERS: Mapping[str, str] = MappingProxyType(
    {
        "Chance": "chance",
        "Majority": "majority",
        "1-NN": "1-nn",
        "Raw LM": r"(channel-)?raw-lm(-.*)?",
    }
)

_LEGEND = f"""\
# Difficulty cards

Made by `icl-bench board`; do not edit. Every environment of the catalog: how far learners come
that need no meta-training, and how far the best entry of the [boards](../README.md) has come. So
it shows before anyone trains whether there is anything to win.

## How to read a card

- **Numbers** are those of the boards, with the same 95 % intervals over tasks: of vectors the
  accuracy in % at the last step of an episode on unseen tasks; of text the mean over tasks and
  draws of macro-F1 (classification) or accuracy (multi-choice) in %, all test tasks. Text entries
  that left out tasks or queries do not count. **{DASH}** means not handed in, or not known.
- **Learners**: chance; 1-NN (of text: of words); of vectors online logistic regression and SGD
  within the episode; of text the majority label of the demonstrations and a raw language model
  without meta-training, of several the best.
- **Best** is the ranked entry of highest mean on any board that has the environment, the classical
  references (chance, majority, 1-NN, logistic regression) left out, and entries that need a replay
  or that a replay speaks against (*needs replay*, *replay differs*, *worse on fresh tasks*).
  *Shared with n others*: so many further entries are not significantly worse (95 % interval of the
  paired difference), and the data do not say which of them is best. The highest of several means
  has some luck in it.
- **Headroom closed** is (best − chance) / (100 % − chance), where chance is 1/C for vectors and
  the number of the entry *Chance* for text.
- **Verdict**, the first rule that holds:
  1. *not handed in*: no board has a ranked entry here that could be the best;
  2. *saturated*: the interval of the best reaches
     {percent(SATURATED, 0)} %, so that a better learner can hardly show it;
  3. *1-NN not beaten*: the best is not significantly better than 1-NN. It is a statement about the
     entries so far: nobody has shown that more than comparing inputs helps here;
  4. *open*: anything else.
- **Class balance** is from the frozen labels, which are permuted within each task: how many pairs
  of an episode's examples have the same label, which of C equally frequent classes is 1 in C, and
  the share of an episode's most frequent label, known with hindsight only.
  **Label balance** of text is the share of each task's most frequent frozen answer: of
  classification a label, of multi-choice a position among the options.
- **Pictures** show the first steps of frozen episode 0: the image, what the learner sees of it, and
  the permuted label. A missing picture means that the images were not at hand.
"""


@dataclasses.dataclass(frozen=True)
class Standing:
    """A ranked entry on an environment.

    Attributes:
        entry: About the method.
        suite: Suite that it was handed in for.
        value: Its number with the interval over tasks, in [0, 1].
        column: The score that this number is of.
    """

    entry: EntryInfo
    suite: str
    value: Interval
    column: ColumnScore | TextColumn

    def beats(self, other: "Standing") -> bool:
        """Whether it is significantly better, paired on the episodes or queries of both."""
        a, b = self.column, other.column
        if isinstance(a, ColumnScore) and isinstance(b, ColumnScore):
            return significantly_better(a.correct, b.correct, a.task)
        assert isinstance(a, TextColumn)
        assert isinstance(b, TextColumn)
        return (a.resampled - b.resampled).summary().mean.low > ROUNDING


@dataclasses.dataclass(frozen=True)
class Card:
    """How hard an environment is, by the entries of all boards that have it.

    Attributes:
        env: Environment id.
        suites: Suites that have it.
        learners: Title of a simple learner → its standing; only what was handed in.
        best: The entry of highest mean that is no reference; None if there is none.
        shared: Number of other such entries that are not significantly worse than the best.
        floor: What guessing gives, in [0, 1]; None if not known.
    """

    env: str
    suites: tuple[str, ...]
    learners: Mapping[str, Standing]
    best: Standing | None
    shared: int
    floor: float | None

    @property
    def headroom(self) -> float | None:
        """Part of the way from guessing to 1 that the best has come."""
        if self.best is None or self.floor is None:
            return None
        return (self.best.value.mean - self.floor) / (1 - self.floor)

    @property
    def verdict(self) -> Verdict:
        """What the rules of the page say."""
        if self.best is None:
            return "not handed in"
        if self.best.value.high >= SATURATED:
            return "saturated"
        neighbour = self.learners.get("1-NN")
        if neighbour is not None and not self.best.beats(neighbour):
            return "1-NN not beaten"
        return "open"


def difficulty_cards(scores: Sequence[AnyScore], envs: Iterable[str] | None = None) -> list[Card]:
    """Cards of environments, in the catalog's order.

    Args:
        scores: Scores of suites; a suite that is not among them counts as empty.
        envs: Environment ids; all of the catalog by default.

    Raises:
        ValueError: For an unknown environment.
    """
    if envs is None:
        rows = (*catalog.ENVIRONMENTS, *catalog.TEXT_ENVIRONMENTS)
        envs = [f"{row.base}-{row.view}-v{row.version}" for row in rows]
    return [_card(env, scores) for env in envs]


def _card(env: str, scores: Sequence[AnyScore]) -> Card:
    spec = find_any_spec(env)
    if isinstance(spec, TextEnvSpec):
        found, titles = _text_standings(spec, scores), TEXT_LEARNERS
    else:
        found, titles = _standings(env, scores), LEARNERS
    learners = {}
    for title, pattern in titles.items():
        named = [s for s in found if re.fullmatch(pattern, s.entry.name)]
        if named:
            learners[title] = max(named, key=_mean)  # the first of equal ones
    methods = [s for s in found if s.entry.kind != "reference"]
    best = max(methods, key=_mean, default=None)
    floor = None
    if isinstance(spec, EnvSpec):
        floor = 1 / spec.num_classes
    elif "Chance" in learners:
        floor = learners["Chance"].value.mean
    return Card(
        env=env,
        suites=tuple(suite.name for suite in ALL_SUITES if env in suite.envs),
        learners=learners,
        best=best,
        shared=sum(best is not s and not best.beats(s) for s in methods) if best else 0,
        floor=floor,
    )


def _mean(standing: Standing) -> float:
    return standing.value.mean


def _standings(env: str, scores: Sequence[AnyScore]) -> list[Standing]:
    return [
        Standing(e.entry, score.suite.name, e.columns[env].accuracy, e.columns[env])
        for score in scores
        if isinstance(score, SuiteScore)
        for e in score.entries
        if env in e.columns and not is_doubtful(e)
    ]


def _text_standings(spec: TextEnvSpec, scores: Sequence[AnyScore]) -> list[Standing]:
    """Entries of one view; references of either, which answer the same queries."""
    return [
        Standing(e.entry, score.suite.name, column.mean, column)
        for score in scores
        if isinstance(score, TextSuiteScore)
        for e in score.entries.values()
        if not is_doubtful(e)
        for setting, column in e.full("all").items()
        if setting == spec.setting and (e.view == spec.prompt_view or e.entry.kind == "reference")
    ]


def cards_markdown(scores: Sequence[AnyScore], folder: str | os.PathLike[str]) -> str:
    """The page ``leaderboards/cards/README.md``; equal scores and pictures give equal bytes.

    Args:
        scores: Scores of all suites.
        folder: Where pictures lie, as ``<environment>.png``.
    """
    cards = difficulty_cards(scores)
    parts = [_LEGEND, "## All environments"]
    for is_text, titles in ((False, LEARNERS), (True, TEXT_LEARNERS)):
        chosen = [c for c in cards if isinstance(find_any_spec(c.env), TextEnvSpec) == is_text]
        columns = ["Text environment" if is_text else "Environment", "Verdict", "Best"]
        columns += ["Headroom closed (%)", *titles]
        parts.append(markdown_table(columns, [_row(card, titles) for card in chosen], 3))
    pictures = {path.stem for path in Path(folder).glob("*.png")}
    parts += [_section(card, card.env in pictures) for card in cards]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _row(card: Card, titles: Iterable[str]) -> list[str]:
    """A line of the contents."""
    return [
        f"[{card.env}](#{card.env.lower()})",
        card.verdict,
        f"{plus_minus(card.best.value)} {_link(card.best)}{_shared(card)}" if card.best else DASH,
        _headroom(card),
        *(plus_minus(s.value) if (s := card.learners.get(t)) else DASH for t in titles),
    ]


def _headroom(card: Card) -> str:
    """In percent; below zero where the best is worse than guessing."""
    return DASH if card.headroom is None else percent(card.headroom, 0).replace("-", "−")


def _link(standing: Standing) -> str:
    title, entry = markdown_text(standing.entry.title), standing.entry
    return f"[{title}](../{standing.suite}/{entry.name}/entry.toml)"


def _shared(card: Card) -> str:
    """How many others the data do not tell from the best."""
    if not card.shared:
        return ""
    return f", *shared with {card.shared} other{'s' if card.shared > 1 else ''}*"


def _section(card: Card, has_picture: bool) -> str:
    """The part of the page about one environment."""
    spec = find_any_spec(card.env)
    parts = [f"## {card.env}"]
    if has_picture:
        parts.append(f"![First steps of an episode of {card.env}]({card.env}.png)")
    boards = ", ".join(f"[{suite}](../README.md#{suite})" for suite in card.suites)
    lines = [f"**Verdict**: {card.verdict}", f"**Boards**: {boards or 'on none'}"]
    if isinstance(spec, EnvSpec):
        facts, table = vector_facts(spec), ""
    else:
        facts, table = text_facts(spec)
    lines += [f"**{name}**: {told}" for name, told in facts.items()]
    if card.best:
        lines.append(f"**Headroom closed**: {_headroom(card)} % by {_link(card.best)}")
    parts.append("\n".join(f"- {line}" for line in lines))
    titles = TEXT_LEARNERS if isinstance(spec, TextEnvSpec) else LEARNERS
    rows = [
        [title, _link(s), plus_minus(s.value)]
        if (s := card.learners.get(title))
        else [title, "not handed in", DASH]
        for title in titles
    ]
    rows.append(
        [f"Best{_shared(card)}", _link(card.best), plus_minus(card.best.value)]
        if card.best
        else ["Best", "not handed in", DASH]
    )
    parts.append(markdown_table(["Learner", "Entry", "%"], rows, 2))
    if table:
        parts.append(table)
    if isinstance(spec, TextEnvSpec) and (prompt := example_prompt(spec)):
        told = "An example, with fewer demonstrations than the protocol's:"
        parts.append(f"{told}\n\n```text\n{prompt}\n```")
    return "\n\n".join(parts)


def show_cards(envs: Sequence[str], root: str | os.PathLike[str]) -> str:
    """Cards as text, of the entries under a folder of leaderboards.

    Args:
        envs: Environment ids.
        root: Folder with ``<suite>/<entry>/``.

    Raises:
        ValueError: For an unknown environment, or an entry that is not valid.
    """
    for env in envs:
        find_any_spec(env)
    scores: list[AnyScore] = []
    for suite in ALL_SUITES:
        if any(env in suite.envs for env in envs):
            is_text = isinstance(suite, catalog.TextSuite)
            folder = Path(root) / suite.name
            scores.append(score_text_suite(folder) if is_text else score_suite(folder))
    cards = difficulty_cards(scores, envs)
    return "\n\n".join(_section(card, has_picture=False) for card in cards)


def draw_cards(
    envs: Sequence[str],
    out: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
) -> list[Path]:
    """Draw the pictures of environments.

    Args:
        envs: Environment ids, of vectors.
        out: A file .png for one environment, else a folder for ``<environment>.png``.
        data_dir: Data folder that is looked in first.

    Raises:
        FileNotFoundError: If data are not at hand.
        ValueError: For an unknown environment or one of text, or several of them and one file.
    """
    from icl_bench.evaluation.plots import plot_episode

    out = Path(out)
    if out.suffix.lower() != ".png":
        return [plot_episode(env, out / f"{env}.png", data_dir=data_dir) for env in envs]
    if len(envs) > 1:
        raise ValueError(f"{out} is one file for {len(envs)} environments: give a folder")
    return [plot_episode(envs[0], out, data_dir=data_dir)]
