"""EntryInfo: what is said about a method on a board, and a careful TOML writer."""

import dataclasses
import itertools
import json
import math
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from icl_bench.leaderboard.schema import (
    CHECKS,
    Kind,
    look,
    short,
    unknown_keys,
    value_problems,
)
from icl_bench.leaderboard.schema import HIDDEN as HIDDEN

# What a text says of which nothing is known.
NOT_STATED = "not stated"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EntryInfo:
    """What a board says about one method (or one meta-training run of it).

    Attributes:
        name: Short name for folders: lower case, digits, single ``-``, ``_`` or ``.`` between.
        title: Name for people, for instance ``GPICL Transformer``. An entry with the title of a
            method that a paper reports is compared with the paper's numbers.
        inductive_bias: As in Table 2 of GPICL, for instance ``In-context, black-box``.
        authors: Names, separated by commas.
        code: Where the program is: address or module, and how it was called.
        deterministic: Whether another meta-training seed cannot change a prediction.
        meta_train: Environment id of meta-training; None if there is none.
        meta_train_kwargs: Further arguments of ``make`` for meta-training, JSON scalars or lists
            of them; without ``seed``, which is the next field.
        seed: Meta-training seed.
        parameters: Meta-trained numbers; None if not counted.
        state_size: Numbers that the learner carries from step to step; None if not counted.
        hardware: What it was meta-trained on.
        gpu_hours: Hours of one GPU for meta-training; None if not measured.
        external_data: Data and pretrained weights from outside of the environment, or ``none``.
        kind: ``reference`` for a classical learner that shows what a number means.
        url: Page of the paper or of the code, ``https`` only; None if there is none.

    Raises:
        ValueError: Naming every field with a bad value.
    """

    name: str
    title: str
    inductive_bias: str
    authors: str
    code: str
    deterministic: bool
    meta_train: str | None
    meta_train_kwargs: Mapping[str, Any]
    seed: int
    parameters: int | None
    state_size: int | None
    hardware: str
    gpu_hours: float | None
    external_data: str
    kind: Kind = "method"
    url: str | None = None

    def __post_init__(self) -> None:
        problems = entry_problems(self.to_dict())
        if problems:
            raise ValueError(f"bad entry {self.name!r}: {'; '.join(problems)}")

    def to_dict(self) -> dict[str, Any]:
        """Field names and values, as JSON types."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {"meta_train_kwargs": dict(self.meta_train_kwargs)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "EntryInfo":
        """Build an entry from what ``to_dict`` gave.

        Raises:
            ValueError: Naming every missing, unknown or bad field.
        """
        problems = entry_problems(fields)
        if problems:
            raise ValueError(f"bad entry: {'; '.join(problems)}")
        return cls(**fields)


def own_entry(name: str, **about: Any) -> EntryInfo:
    """An entry about a learner of one's own; whatever is not given is not stated.

    Args:
        name: Short name for folders.
        **about: Other fields of ``EntryInfo``.

    Raises:
        ValueError: Naming every unknown field or bad value.
    """
    unknown: dict[str, Any] = {
        "title": name,
        "inductive_bias": NOT_STATED,
        "authors": NOT_STATED,
        "code": NOT_STATED,
        "deterministic": False,
        "meta_train": None,
        "meta_train_kwargs": {},
        "seed": 0,
        "parameters": None,
        "state_size": None,
        "hardware": NOT_STATED,
        "gpu_hours": None,
        "external_data": NOT_STATED,
        "kind": "method",
        "url": None,
    }
    return EntryInfo.from_dict({"name": name} | unknown | about)


def entry_problems(fields: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with the fields of an entry, one sentence each; empty if nothing."""
    # The address is younger than run folders that are still about.
    problems = [f"{name} is missing" for name in CHECKS if name not in fields and name != "url"]
    return problems + unknown_keys(set(fields) - set(CHECKS)) + value_problems(fields, CHECKS)


def collisions(entries: Mapping[str, EntryInfo]) -> dict[str, str]:
    """Name → what is wrong, for entries of one board that could be taken for one another.

    Titles may be the same letter for letter: boards then add the names, which differ. Titles that
    only look the same would deceive.

    Args:
        entries: Name → entry, of one suite.
    """
    alike: dict[str, list[str]] = {}
    for name, entry in entries.items():
        alike.setdefault(look(entry.title), []).append(name)
    found = {}
    for names in alike.values():
        for name, other in itertools.permutations(names, 2):
            mine, theirs = entries[name].title, entries[other].title
            if mine != theirs:
                found[name] = (
                    f"title {short(mine)} looks like that of {other}, {short(theirs)}: write it "
                    "the same, or tell what sets it apart"
                )
    return found


def to_toml(mapping: Mapping[str, Any]) -> str:
    """Scalars, lists of scalars and tables of them as TOML; scalars first, then the tables.

    Args:
        mapping: Booleans, whole and finite numbers, texts, lists, and mappings of those.

    Raises:
        ValueError: If a value has no place in TOML (None, for instance), or if what was written
            does not read back as the same.
    """
    tables = {key: value for key, value in mapping.items() if isinstance(value, Mapping)}
    lines = [_line(key, value) for key, value in mapping.items() if key not in tables]
    for name, table in tables.items():
        lines += ["", f"[{_key(name)}]"] + [_line(key, value) for key, value in table.items()]
    text = "\n".join(lines) + "\n"
    if tomllib.loads(text) != _plain(mapping):
        raise ValueError("the entry does not survive a round trip through TOML")
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _line(key: str, value: Any) -> str:
    return f"{_key(key)} = {_value(key, value)}"


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _string(key)


def _string(text: str) -> str:
    # JSON's escapes are all TOML's; TOML also wants DEL escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(key, item) for item in value) + "]"
    raise ValueError(f"{key} = {value!r} has no place in TOML")
