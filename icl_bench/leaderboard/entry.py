"""EntryInfo: what is said about a method on a board, its checks, and a careful TOML writer."""

import dataclasses
import json
import math
import re
import tomllib
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, Literal

Kind = Literal["method", "reference"]

# No "__", which separates the parts of a run folder's name.
NAME_PATTERN = re.compile(r"[a-z0-9]+(?:[-_.][a-z0-9]+)*")
# What a text says of which nothing is known.
NOT_STATED = "not stated"

MAX_NAME, MAX_LINE, MAX_TEXT = 64, 120, 500

# Categories of characters that have no place in one line of text: controls, bidirectional and
# other format characters, surrogates, private use, line and paragraph separators.
HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


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
    }
    return EntryInfo.from_dict({"name": name} | unknown | about)


def entry_problems(fields: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with the fields of an entry, one sentence each; empty if nothing."""
    problems = [f"{name} is missing" for name in _CHECKS if name not in fields]
    problems += [f"unknown key {name!r}" for name in fields if name not in _CHECKS]
    for name, check in _CHECKS.items():
        if name in fields and (complaint := check(fields[name])):
            problems.append(f"{name} {complaint}, not {_short(fields[name])}")
    return problems


def hidden_characters(text: str) -> str:
    """The characters of a text that do not show, as U+XXXX; empty if there are none."""
    found = sorted({c for c in text if unicodedata.category(c) in HIDDEN})
    return ", ".join(f"U+{ord(c):04X}" for c in found)


def _short(value: object) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _text(limit: int) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not value.strip() or len(value) > limit:
            return f"must be a text of 1 to {limit} characters"
        hidden = hidden_characters(value)
        return f"must be one line without hidden characters ({hidden})" if hidden else ""

    return check


def _name(value: Any) -> str:
    good = isinstance(value, str) and len(value) <= MAX_NAME and NAME_PATTERN.fullmatch(value)
    return (
        ""
        if good
        else (f"must be at most {MAX_NAME} lower-case letters and digits with single - _ . between")
    )


def _flag(value: Any) -> str:
    return "" if isinstance(value, bool) else "must be true or false"


def _whole(value: Any) -> str:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
    return "" if good else "must be a whole number from 0 to 2^63 - 1"


def _optional(check: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda value: "" if value is None else check(value)


def _hours(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return "" if number and 0 <= value < 1e9 else "must be a number of hours, at least 0"


def _scalar(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return len(value) <= MAX_TEXT and not hidden_characters(value)
    if isinstance(value, int):
        return abs(value) < 2**63
    return value is None


def _arguments(value: Any) -> str:
    if not isinstance(value, Mapping) or len(value) > 32:
        return "must be a table of at most 32 arguments"
    if "seed" in value:
        return "must not hold seed, which is a field of its own"
    for key, item in value.items():
        items = item if isinstance(item, list | tuple) else [item]
        if not isinstance(key, str) or not key.isidentifier() or len(key) > MAX_LINE:
            return "must have names of arguments as keys"
        if len(items) > 32 or not all(_scalar(x) for x in items):
            return f"must hold finite JSON scalars or lists of them ({key} does not)"
    return ""


def _kind(value: Any) -> str:
    return "" if value in ("method", "reference") else "must be method or reference"


_CHECKS: Mapping[str, Callable[[Any], str]] = {
    "name": _name,
    "title": _text(MAX_LINE),
    "inductive_bias": _text(MAX_LINE),
    "authors": _text(MAX_TEXT),
    "code": _text(MAX_TEXT),
    "deterministic": _flag,
    "meta_train": _optional(_text(MAX_LINE)),
    "meta_train_kwargs": _arguments,
    "seed": _whole,
    "parameters": _optional(_whole),
    "state_size": _optional(_whole),
    "hardware": _text(MAX_TEXT),
    "gpu_hours": _optional(_hours),
    "external_data": _text(MAX_TEXT),
    "kind": _kind,
}


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
