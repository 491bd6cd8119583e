"""Text tasks: their examples, from files, from this package or the user's own.

Examples of MetaICL's tasks are read from ``<folder>/text``, for each folder where data are looked
for (``images.data_folders``), in either of two layouts of JSON lines with the fields input,
output, options and perhaps task:

    tasks/<task>/train.jsonl, test.jsonl, perhaps more.jsonl (further examples for meta-training
        alone) and demos.json (lines of train.jsonl that are the demonstrations of each seed)
    <task>/<task>_<k>_<seed>_<split>.jsonl, as the original's preprocessing writes them

Kept as in the original's files: ``unifiedqa:boolq`` is a classification task whose lines carry no
options; a multi-choice line may list an option twice; ``superglue-multirc`` has 15 demonstrations
at seed 21. Nothing is downloaded here. Source: Min et al. 2022, "MetaICL".
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from icl_bench.data import text_catalog, textmini
from icl_bench.data.images import DATA_VARIABLE, DataError, MissingDataError, data_folders
from icl_bench.data.text_catalog import TextSetting as TextSetting
from icl_bench.data.text_catalog import TextTask as TextTask
from icl_bench.data.text_catalog import register_text_setting as register_text_setting
from icl_bench.data.text_catalog import text_setting as text_setting
from icl_bench.data.text_catalog import text_settings as text_settings
from icl_bench.data.text_catalog import text_task as text_task
from icl_bench.data.text_catalog import text_tasks as text_tasks
from icl_bench.data.text_files import (
    TextKind,
    check_example,
    example_of,
    in_order,
    read_draws,
    read_examples,
)
from icl_bench.data.text_files import from_dataset as from_dataset
from icl_bench.episodes import TextExample as TextExample

TextSplit = Literal["meta-train", "train", "dev", "test"]
PathLike = str | os.PathLike[str]

DEMO_SEEDS = (100, 13, 21, 42, 87)  # MetaICL, §4.1: the five draws of demonstrations
NUM_DEMOS = 16  # MetaICL, §4.1
WHOLE_TRAIN = "16384_100_train"  # their code: at most 16,384 examples for meta-training, seed 100


@dataclasses.dataclass(frozen=True)
class TextCoverage:
    """How much of a setting is at hand.

    Attributes:
        setting: The setting.
        missing_train: Train tasks whose training files are not at hand.
        missing_test: Test tasks whose test files or demonstrations are not at hand.
    """

    setting: TextSetting
    missing_train: tuple[str, ...]
    missing_test: tuple[str, ...]

    @property
    def full(self) -> bool:
        """Whether all test tasks are at hand: results with and without do not compare."""
        return not self.missing_test

    def __str__(self) -> str:
        """For instance ``19 of 20 test tasks, 43 of 43 train tasks``."""
        test, train = len(self.setting.test), len(self.setting.train)
        return (
            f"{test - len(self.missing_test)} of {test} test tasks, "
            f"{train - len(self.missing_train)} of {train} train tasks"
        )


_user_examples: dict[tuple[str, str], tuple[TextExample, ...]] = {}


def load_text(
    task: str,
    split: TextSplit,
    *,
    k: int | None = None,
    seed: int | None = None,
    data_dir: PathLike | None = None,
) -> tuple[TextExample, ...]:
    """Examples of a task: a whole split, or k demonstrations drawn by a seed.

    With ``k`` and ``seed`` the train split gives that seed's demonstrations and ``dev`` the k
    examples after them. Where a folder names the original's own draw, it is used; else all
    train examples are shuffled as the original does (legacy NumPy generator; labels are not
    balanced). A smaller k gives a prefix of a larger one, both at most 16.

    Args:
        task: Name of the task.
        split: ``train`` and ``test`` of the task; ``dev``; or ``meta-train``: all that may be
            meta-trained on where the task is on a setting's train side.
        k: Number of demonstrations, with ``seed``.
        seed: Which draw; the protocol's are ``DEMO_SEEDS``.
        data_dir: Folder to look in first.

    Raises:
        ValueError: For an unknown task or split, or for k without seed.
        MissingDataError: If the files are not at hand, or there are fewer than k examples.
        DataError: If a file is not what it should be, with its line.
    """
    row = text_task(task)
    if split not in get_args(TextSplit):
        raise ValueError(f"the splits of a task are {', '.join(get_args(TextSplit))}: {split!r}")
    if (k is None) != (seed is None) or (k is None and split == "dev"):
        raise ValueError(f"{task}: give k and seed together for demonstrations; dev needs both")
    if k is not None and (split not in ("train", "dev") or k < 1):
        raise ValueError(f"{task}: k ≥ 1 examples are drawn from train or dev: k={k}, {split}")
    if row.source != "metaicl":
        own = _own_examples(row, "test" if split == "test" else "train")
        return own if k is None or seed is None else _part(_shuffled(own, seed), k, split, task)
    folders = data_folders(data_dir)
    for folder in folders:
        home, original = folder / "text" / "tasks" / task, folder / "text" / task
        found = _from_shared(row, split, k, seed, home)
        found = _from_original(row, split, k, seed, original) if found is None else found
        if found is not None:
            return found
    places = ", ".join(str(folder) for folder in folders)
    asked = "" if k is None else f" for k={k}, seed={seed}"
    raise MissingDataError(
        f"the {split} split of {task}{asked} is not at hand: set {DATA_VARIABLE} (or data_dir) to a"
        f" folder with text/tasks/{task}/{{train,test}}.jsonl, or with the files of the original's"
        f" preprocessing, text/{task}/{task}_<k>_<seed>_<split>.jsonl; looked in {places}"
    )


def _own_examples(row: TextTask, split: Literal["train", "test"]) -> tuple[TextExample, ...]:
    if row.source == "user":
        return _user_examples[row.name, split]
    return textmini.examples(row.name, split)


def _from_shared(
    row: TextTask, split: TextSplit, k: int | None, seed: int | None, home: Path
) -> tuple[TextExample, ...] | None:
    """From ``tasks/<task>``; None where its file is not there."""
    if not (home / ("test.jsonl" if split == "test" else "train.jsonl")).is_file():
        return None
    if split == "test":
        return _read(row, home / "test.jsonl")
    train, more = _read(row, home / "train.jsonl"), home / "more.jsonl"
    if split == "meta-train" and more.is_file():
        return train + _read(row, more)
    if k is None or seed is None:
        return train
    if k <= NUM_DEMOS and (home / "demos.json").is_file():
        draws = read_draws(home / "demos.json", len(train))
        if str(seed) in draws["k16"]:
            first = [train[i] for i in draws["k16"][str(seed)]]
            after = [train[i] for i in draws["k16_dev"].get(str(seed), ())]
            return _part(first + after, min(k, len(first)), split, row.name)
    return _part(_shuffled(train, seed), k, split, row.name)


def _from_original(
    row: TextTask, split: TextSplit, k: int | None, seed: int | None, home: Path
) -> tuple[TextExample, ...] | None:
    """From ``<task>/<task>_<k>_<seed>_<split>.jsonl``; None where its file is not there."""
    if split == "test":  # the same for every k and seed
        files = sorted(home.glob(f"{row.name}_*_test.jsonl"))
        return _read(row, files[0]) if files else None
    if k is None or seed is None:
        path = home / f"{row.name}_{WHOLE_TRAIN}.jsonl"
        return _read(row, path) if path.is_file() else None
    pattern = rf"{re.escape(row.name)}_(\d+)_{seed}_train\.jsonl"
    found = [re.fullmatch(pattern, path.name) for path in home.glob("*_train.jsonl")]
    sizes = sorted(int(match[1]) for match in found if match and int(match[1]) >= k)
    if not sizes:
        return None
    files = [home / f"{row.name}_{sizes[0]}_{seed}_{part}.jsonl" for part in ("train", "dev")]
    first = list(_read(row, files[0]))
    after = list(_read(row, files[1])) if split == "dev" and files[1].is_file() else []
    return _part(first + after, min(k, len(first)), split, row.name)


def _read(row: TextTask, path: Path) -> tuple[TextExample, ...]:
    return read_examples(path, row.name, row.kind, row.labels)


def _shuffled(examples: Sequence[TextExample], seed: int) -> list[TextExample]:
    """In the original's order: its generator's stream is frozen by NumPy's policy."""
    order = list(range(len(examples)))
    np.random.RandomState(seed).shuffle(order)
    return [examples[i] for i in order]


def _part(
    order: Sequence[TextExample], k: int, split: TextSplit, task: str
) -> tuple[TextExample, ...]:
    """The first k as demonstrations, the next k as dev."""
    part = tuple(order[:k] if split == "train" else order[k : 2 * k])
    if len(part) < k:
        raise MissingDataError(f"{task}: {len(part)} {split} examples at hand, fewer than k={k}")
    return part


def missing_tasks(
    setting: str, data_dir: PathLike | None = None
) -> dict[Literal["train", "test"], tuple[str, ...]]:
    """Names of a setting's tasks that are not at hand, by side; files are not opened.

    Raises:
        ValueError: For an unknown setting.
    """
    row, roots = text_setting(setting), [folder / "text" for folder in data_folders(data_dir)]

    def at_hand(task: str, side: Literal["train", "test"]) -> bool:
        needed = [f"{NUM_DEMOS}_{seed}_train" for seed in DEMO_SEEDS]
        shared = ["train.jsonl"] + ["test.jsonl"] * (side == "test")
        for root in roots:
            original = [WHOLE_TRAIN] if side == "train" else needed
            test = side == "train" or any((root / task).glob(f"{task}_*_test.jsonl"))
            if all((root / "tasks" / task / name).is_file() for name in shared) or (
                test and all((root / task / f"{task}_{name}.jsonl").is_file() for name in original)
            ):
                return True
        return text_task(task).source != "metaicl"

    return {
        "train": tuple(task for task in row.train if not at_hand(task, "train")),
        "test": tuple(task for task in row.test if not at_hand(task, "test")),
    }


def coverage(setting: str, data_dir: PathLike | None = None) -> TextCoverage:
    """How much of a setting is at hand, for a result to state.

    Raises:
        ValueError: For an unknown setting.
    """
    missing = missing_tasks(setting, data_dir)
    return TextCoverage(text_setting(setting), missing["train"], missing["test"])


def register_text_task(
    name: str,
    *,
    train: PathLike | Iterable[TextExample | Mapping[str, Any]],
    test: PathLike | Iterable[TextExample | Mapping[str, Any]],
    kind: TextKind,
    licence: str | None = None,
) -> TextTask:
    """Add a text task of the user's own; see ``icl_bench.register_text_task``.

    Args:
        name: Letters, digits and ``_ . : -``.
        train: A file of JSON lines, or examples (``from_dataset``, mappings with the fields).
        test: The same.
        kind: Classification needs the same options (its labels) in every example.
        licence: As its source states it.

    Raises:
        ValueError: For a name that is taken or no name, or an unknown kind.
        DataError: If an example is not what it should be, naming it, or there are none.
    """
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_.:-]*", name):
        raise ValueError(f"the name of a text task is letters, digits and _ . : -, not {name!r}")
    if name in text_tasks():
        raise ValueError(f"there is a text task {name} already: choose another name")
    if kind not in get_args(TextKind):
        raise ValueError(f"{name}: a task is {', '.join(get_args(TextKind))}, not {kind!r}")
    labels: tuple[str, ...] = ()
    loaded = {}
    for split, given in (("train", train), ("test", test)):
        examples = _given(name, split, given, kind, labels)
        if kind == "classification":
            labels = tuple(sorted(examples[0].options))
        loaded[name, split] = examples
    _user_examples.update(loaded)
    row = TextTask(name, kind, "user", "user", labels, licence)
    text_catalog._user_tasks[name] = row
    return row


def _given(
    name: str, split: str, given: Any, kind: TextKind, labels: tuple[str, ...]
) -> tuple[TextExample, ...]:
    if isinstance(given, str | os.PathLike):
        return read_examples(Path(given).expanduser(), name, kind, labels)
    examples = []
    for number, item in enumerate(given):
        where = f"{name} {split}, example {number}"
        example = item if isinstance(item, TextExample) else example_of(item, where)
        labels = labels or example.options
        check_example(example, where, name, kind, labels)
        examples.append(in_order(example, kind))
    if not examples:
        raise DataError(f"{name}: the {split} split has no examples")
    return tuple(examples)
