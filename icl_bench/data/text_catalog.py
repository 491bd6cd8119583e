"""The catalog of text tasks and settings: MetaICL's, the embedded suite TextMini, the user's own.

MetaICL's 142 tasks and seven settings are in ``metaicl.json`` beside this file: names, kinds,
label sets and lists, as facts read from the configs of the original's public code (and the split
files of CrossFit), and the licences that the data sets' sources state; nothing else of either.

*Differs from the original*: ``sick`` is on both sides of Non-NLI -> NLI there; it is dropped from
the train side here, and ``TextSetting.dropped`` says so. Kept: QA -> QA has one unseen-domain task
(MAML-en-LLM's Table 1 prints 4); pairs of tasks with a common source stay on two sides, such as
``unifiedqa:winogrande_xl`` and ``wino_grande``.
Source: Min et al. 2022, "MetaICL: Learning to Learn In Context".
"""

import dataclasses
import difflib
import functools
import json
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import Literal

from icl_bench.data import textmini
from icl_bench.data.text_files import TextKind


@dataclasses.dataclass(frozen=True)
class TextTask:
    """A row of the catalog: a text task without its examples.

    Attributes:
        name: As in MetaICL, for instance ``unifiedqa:mctest``.
        kind: Classification has one list of labels, multi-choice each example's own options.
        source: Where its examples come from: files, this package or the user.
        family: For instance ``classification/nli``.
        labels: The labels of a classification task, sorted; else empty.
        licence: As the data set's source states it; ``None`` where it was not found.
    """

    name: str
    kind: TextKind
    source: Literal["metaicl", "embedded", "user"]
    family: str
    labels: tuple[str, ...] = ()
    licence: str | None = None

    @property
    def metric(self) -> Literal["macro-f1", "accuracy"]:
        """What the task is scored by: decided by its kind alone, as in the original."""
        return "macro-f1" if self.kind == "classification" else "accuracy"


@dataclasses.dataclass(frozen=True)
class TextSetting:
    """Tasks to meta-train on and tasks to meta-test on.

    Attributes:
        name: The first part of an environment id.
        alias: The original's name, for instance ``hr_to_lr``.
        title: One line for people.
        train: Tasks to meta-train on.
        test: Tasks to meta-test on.
        unseen_domain: Those of ``test`` whose domain no train task has.
        dropped: Train tasks of the original that are left out here, being test tasks too.

    Raises:
        ValueError: For an empty side, a repeated task, a task on both sides, or one of
            ``unseen_domain`` that is not in ``test``.
    """

    name: str
    alias: str
    title: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    unseen_domain: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the lists against one another."""
        for side, tasks in (("train", self.train), ("test", self.test)):
            if not tasks or len(set(tasks)) < len(tasks):
                raise ValueError(f"{self.name}: no {side} tasks, or one of them twice: {tasks}")
        if both := sorted({*self.train} & {*self.test}):
            raise ValueError(f"{self.name}: on both sides of the split: {', '.join(both)}")
        if other := sorted({*self.unseen_domain} - {*self.test}):
            raise ValueError(f"{self.name}: unseen_domain is part of test, not {', '.join(other)}")


_user_tasks: dict[str, TextTask] = {}
_user_settings: dict[str, TextSetting] = {}


@functools.cache
def _catalog() -> tuple[dict[str, TextTask], dict[str, TextSetting]]:
    """The tasks and settings of MetaICL and TextMini."""
    file = resources.files("icl_bench.data") / "metaicl.json"
    facts = json.loads(file.read_text(encoding="utf-8"))
    tasks = {
        name: TextTask(
            name, row["kind"], "metaicl", row["family"], tuple(row["labels"]), row["licence"]
        )
        for name, row in facts["tasks"].items()
    }
    settings = {}
    for name, row in facts["settings"].items():
        both = tuple(task for task in row["train"] if task in row["test"])
        train = tuple(task for task in row["train"] if task not in both)
        test, unseen = tuple(row["test"]), tuple(row["unseen_domain"])
        settings[name] = TextSetting(name, row["alias"], row["title"], train, test, unseen, both)
    for mini in textmini.TASKS.values():
        tasks[mini.name] = TextTask(
            mini.name, mini.kind, "embedded", mini.family, mini.labels, "MIT"
        )
    sides = {
        side: tuple(mini.name for mini in textmini.TASKS.values() if mini.side == side)
        for side in ("train", "test", "unseen-domain")
    }
    settings["TextMini"] = TextSetting(
        "TextMini",
        "textmini",
        "Small procedural tasks, made by this package",
        sides["train"],
        sides["test"] + sides["unseen-domain"],
        sides["unseen-domain"],
    )
    return tasks, settings


def text_tasks() -> Mapping[str, TextTask]:
    """All text tasks by name: of MetaICL (142), embedded, registered."""
    return MappingProxyType({**_catalog()[0], **_user_tasks})


def text_settings() -> Mapping[str, TextSetting]:
    """All settings by name: the seven of MetaICL, ``TextMini``, registered ones."""
    return MappingProxyType({**_catalog()[1], **_user_settings})


def text_task(name: str) -> TextTask:
    """The row of a task.

    Raises:
        ValueError: If there is none, with what was probably meant.
    """
    return text_tasks()[_find("text task", name, {known: known for known in text_tasks()})]


def text_setting(name: str) -> TextSetting:
    """A setting by its name or the original's, for instance ``HRtoLR`` or ``hr_to_lr``.

    Raises:
        ValueError: If there is none, with what was probably meant.
    """
    rows = text_settings()
    names = {row.alias: row.name for row in rows.values()} | {known: known for known in rows}
    return rows[_find("text setting", name, names)]


def _find(what: str, name: str, names: Mapping[str, str]) -> str:
    if name in names:
        return names[name]
    lower = {known.lower(): target for known, target in names.items()}
    close = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.5)
    some = ", ".join(sorted(set(names.values()))[:8])
    hint = f"did you mean {lower[close[0]]}?" if close else f"there are {some}, …"
    raise ValueError(f"unknown {what} {name!r}; {hint}")


def register_text_setting(setting: TextSetting) -> TextSetting:
    """Add a setting of the user's own, of tasks that there are.

    Raises:
        ValueError: For a name or alias that is taken, or an unknown task.
    """
    known = [name for row in text_settings().values() for name in (row.name, row.alias)]
    if taken := [name for name in (setting.name, setting.alias) if name in known]:
        raise ValueError(f"there is a text setting {taken[0]} already: choose another name")
    for task in (*setting.train, *setting.test):
        text_task(task)
    _user_settings[setting.name] = setting
    return setting
