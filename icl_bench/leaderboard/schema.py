"""What entry.toml may say: every field's check, and the same as JSON Schema.

A check and its part of the schema stand side by side, so that neither is changed without the other.
What no schema can say (that names are those of folders, that seeds have files) is in ``checks``.
"""

import dataclasses
import functools
import math
import re
import sys
import unicodedata
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, get_args

from icl_bench.leaderboard.suites import ALL_SUITES

Kind = Literal["method", "reference"]

# No "__", which separates the parts of a run folder's name.
NAME_PATTERN = re.compile(r"[a-z0-9]+(?:[-_.][a-z0-9]+)*")
ARGUMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
VERSION = re.compile(r"[0-9A-Za-z.+!-]{0,40}")
CHECKSUM = re.compile(r"[0-9a-f]{64}")
# A host of letters, digits and hyphens between dots, in no other script's disguise and no number;
# then nothing that HTML, Markdown or a terminal could take for its own.
URL_PATTERN = re.compile(
    r"https://(?![^/?#]*[Xx][Nn]--)(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+"
    r"[A-Za-z](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:[/?#][A-Za-z0-9._~:/?#@&=+,;%-]*)?"
)

MAX_NAME, MAX_LINE, MAX_TEXT, MAX_URL = 64, 120, 500, 300
MAX_ITEMS, MAX_HOURS, MAX_SEEDS = 32, 10**9, 32

# Categories of characters that have no place in one line of text: controls, bidirectional and
# other format characters, surrogates, private use, line and paragraph separators.
HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
# Blanks that Unicode takes for letters (Hangul fillers) or for a symbol (Braille without a dot).
_BLANKS = frozenset("\u115f\u1160\u3164\uffa0\u2800")

# Greek and Cyrillic letters that look Latin.
_LATIN = str.maketrans(
    "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧονАВЕЅІЈКМНОРСТУХаеѕіјорсухԁһӀӏ",
    "ABEZHIKMNOPTYXovABESIJKMHOPCTYXaesijopcyxdhII",
)
# In many typefaces a capital I is a small l or nearly a 1.
_STROKES = str.maketrans("1l0", "iio")
_SMALL_CAPITAL = "LATIN LETTER SMALL CAPITAL "


def hidden_characters(text: str) -> str:
    """The characters of a text that do not show, as U+XXXX; empty if there are none."""
    return ", ".join(f"U+{ord(c):04X}" for c in sorted(set(text)) if _is_hidden(c))


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in HIDDEN or character in _BLANKS


def look(title: str) -> str:
    """What is left of a title to the eye: equal for titles that look alike.

    Case, spaces, punctuation, accents and the form of characters do not count, nor whether a
    letter is Latin, Greek or Cyrillic if it looks Latin; nor whether it is I, l or 1, or O or 0.
    Letters of rarer scripts that look Latin are not recognised.
    """
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", title).translate(_LATIN))
    names = ((c, unicodedata.name(c, "").removeprefix(_SMALL_CAPITAL)) for c in plain)
    letters = "".join(name if len(name) == 1 else c for c, name in names)
    return "".join(c for c in letters.casefold().translate(_STROKES) if c.isalnum())


def unknown_keys(names: Collection[str]) -> list[str]:
    """A sentence for each unknown key, or for all of them where there are many."""
    if len(names) > 10:
        return [f"{len(names)} unknown keys, {short(min(names))} among them"]
    return [f"unknown key {short(name)}" for name in sorted(names)]


def value_problems(fields: Mapping[str, Any], checks: Mapping[str, "Check"]) -> list[str]:
    """What is wrong with the values that there are."""
    problems = []
    for name, check in checks.items():
        if name in fields and (complaint := check.complaint(fields[name])):
            problems.append(f"{name} {complaint}, not {short(fields[name])}")
    return problems


def short(value: object) -> str:
    """The beginning of a value as ASCII."""
    shown = ascii(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


# Patterns of one line with something to see, and of text without hidden characters. Which those
# are takes a look at all of Unicode, so they are written out only where a schema is asked for.
LINE, VISIBLE = object(), object()


@dataclasses.dataclass(frozen=True)
class Check:
    """What a value must be, for programs here and elsewhere.

    Attributes:
        complaint: What is wrong with a value, as the rest of a sentence; empty if nothing.
        schema: The same as JSON Schema, as far as it goes.
    """

    complaint: Callable[[Any], str]
    schema: Mapping[str, Any]


def _text(limit: int, *, title: bool = False) -> Check:
    def complaint(value: Any) -> str:
        if not isinstance(value, str) or not value.strip() or len(value) > limit:
            return f"must be a text of 1 to {limit} characters"
        if hidden := hidden_characters(value):
            return f"must be one line without hidden characters ({hidden})"
        return "must have a letter or a digit" if title and not look(value) else ""

    return Check(complaint, {"type": "string", "maxLength": limit, "pattern": LINE})


def _name(value: Any) -> str:
    good = isinstance(value, str) and len(value) <= MAX_NAME and NAME_PATTERN.fullmatch(value)
    return (
        ""
        if good
        else (f"must be at most {MAX_NAME} lower-case letters and digits with single - _ . between")
    )


def _flag(value: Any) -> str:
    return "" if isinstance(value, bool) else "must be true or false"


def is_whole(value: Any, low: int = 0) -> bool:
    """Whether a value is a whole number of 63 bits, at least ``low``."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < 2**63


def _whole(value: Any) -> str:
    return "" if is_whole(value) else "must be a whole number from 0 to 2^63 - 1"


def _optional(check: Check) -> Check:
    """None, which is no key at all in TOML, or what a check wants."""
    return Check(lambda value: "" if value is None else check.complaint(value), check.schema)


def _hours(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return "" if number and 0 <= value < MAX_HOURS else "must be a number of hours, at least 0"


def _scalar(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return len(value) <= MAX_TEXT and not hidden_characters(value)
    if isinstance(value, int):
        return abs(value) < 2**63
    return value is None


def _arguments(value: Any) -> str:
    if not isinstance(value, Mapping) or len(value) > MAX_ITEMS:
        return f"must be a table of at most {MAX_ITEMS} arguments"
    if "seed" in value:
        return "must not hold seed, which is a field of its own"
    for key, item in value.items():
        items = item if isinstance(item, list | tuple) else [item]
        if not isinstance(key, str) or not ARGUMENT.fullmatch(key) or len(key) > MAX_LINE:
            return "must have names of arguments as keys"
        if len(items) > MAX_ITEMS or not all(_scalar(x) for x in items):
            return f"must hold finite JSON scalars or lists of them ({key} does not)"
    return ""


def _kind(value: Any) -> str:
    return "" if value in get_args(Kind) else "must be method or reference"


def _url(value: Any) -> str:
    good = isinstance(value, str) and len(value) <= MAX_URL and URL_PATTERN.fullmatch(value)
    return (
        ""
        if good
        else f"must be an https address of at most {MAX_URL} ASCII characters without user or port"
    )


_SCALAR_SCHEMA: Mapping[str, Any] = {
    "anyOf": [
        {"type": ["boolean", "number"]},
        {"type": "string", "maxLength": MAX_TEXT, "pattern": VISIBLE},
    ]
}
_WHOLE = Check(_whole, {"type": "integer", "minimum": 0, "maximum": 2**63 - 1})

CHECKS: Mapping[str, Check] = {
    "name": Check(_name, {"type": "string", "maxLength": MAX_NAME, "pattern": NAME_PATTERN}),
    "title": _text(MAX_LINE, title=True),
    "inductive_bias": _text(MAX_LINE),
    "authors": _text(MAX_TEXT),
    "code": _text(MAX_TEXT),
    "deterministic": Check(_flag, {"type": "boolean"}),
    "meta_train": _optional(_text(MAX_LINE)),
    "meta_train_kwargs": Check(
        _arguments,
        {
            "type": "object",
            "maxProperties": MAX_ITEMS,
            "propertyNames": {"pattern": ARGUMENT, "maxLength": MAX_LINE, "not": {"const": "seed"}},
            "additionalProperties": {
                "anyOf": [
                    *_SCALAR_SCHEMA["anyOf"],
                    {"type": "array", "maxItems": MAX_ITEMS, "items": _SCALAR_SCHEMA},
                ]
            },
        },
    ),
    "seed": _WHOLE,
    "parameters": _optional(_WHOLE),
    "state_size": _optional(_WHOLE),
    "hardware": _text(MAX_TEXT),
    "gpu_hours": _optional(
        Check(_hours, {"type": "number", "minimum": 0, "exclusiveMaximum": MAX_HOURS})
    ),
    "external_data": _text(MAX_TEXT),
    "kind": Check(_kind, {"enum": list(get_args(Kind))}),
    "url": _optional(Check(_url, {"type": "string", "maxLength": MAX_URL, "pattern": URL_PATTERN})),
}


def _seeds(value: Any) -> str:
    whole = isinstance(value, list) and all(is_whole(seed) and seed < 10**9 for seed in value)
    good = whole and 0 < len(value) <= MAX_SEEDS and sorted(set(value)) == value
    if good:
        return ""
    return f"must be a list of distinct whole numbers, ascending, at most {MAX_SEEDS}"


def _scorer_version(value: Any) -> str:
    return "" if is_whole(value, 1) else "must be a whole number, at least 1"


def _package_version(value: Any) -> str:
    good = isinstance(value, str) and VERSION.fullmatch(value)
    return "" if good else "must be a version as a text, for instance '0.1.0'"


def _fingerprints(value: Any) -> str:
    good = isinstance(value, Mapping) and all(
        isinstance(checksum, str) and CHECKSUM.fullmatch(checksum) for checksum in value.values()
    )
    return "" if good else "must be a table of environment ids and SHA-256 checksums"


def _suite(value: Any) -> str:
    return "" if value in _SUITES else f"must be one of {', '.join(_SUITES)}"


_SUITES = tuple(suite.name for suite in ALL_SUITES)

# What entry.toml says beside the fields of ``EntryInfo``; seeds stand for ``seed``.
DOCUMENT_CHECKS: Mapping[str, Check] = {
    "suite": Check(_suite, {"enum": list(_SUITES)}),
    "seeds": Check(
        _seeds,
        {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "exclusiveMaximum": 10**9},
            "minItems": 1,
            "maxItems": MAX_SEEDS,
            "uniqueItems": True,
        },
    ),
    "scorer_version": Check(
        _scorer_version, {"type": "integer", "minimum": 1, "maximum": 2**63 - 1}
    ),
    "package_version": Check(_package_version, {"type": "string", "pattern": VERSION}),
    "fingerprints": Check(
        _fingerprints,
        {"type": "object", "additionalProperties": {"type": "string", "pattern": CHECKSUM}},
    ),
}

# TOML has no null: what is not known is left out.
OPTIONAL = ("meta_train", "parameters", "state_size", "gpu_hours", "url")


def entry_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of entry.toml, as a mapping of JSON types."""
    fields = {name: check for name, check in CHECKS.items() if name != "seed"}
    checks = {**fields, **DOCUMENT_CHECKS}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "entry.toml of a submission",
        "type": "object",
        "properties": {name: _json(check.schema) for name, check in checks.items()},
        "required": [name for name in checks if name not in OPTIONAL],
        "additionalProperties": False,
    }


def _json(part: Any) -> Any:
    """A part of the schema, with patterns as texts that mean the same in Python and ECMAScript."""
    if isinstance(part, Mapping):
        return {key: _json(value) for key, value in part.items()}
    if isinstance(part, list):
        return [_json(value) for value in part]
    if isinstance(part, re.Pattern):
        return _whole_text(part.pattern)
    if part is LINE:
        return _whole_text(rf"(?=.*\S)[^{_hidden_ranges()}]*")
    return _whole_text(f"[^{_hidden_ranges()}]*") if part is VISIBLE else part


def _whole_text(pattern: str) -> str:
    # Python's $ is also before a last line feed.
    return rf"^(?:{pattern})(?!\n)$"


@functools.cache
def _hidden_ranges() -> str:
    """All hidden characters, as ranges of a character class."""
    found: list[list[int]] = []
    for code in range(sys.maxunicode + 1):
        if _is_hidden(chr(code)):
            if found and found[-1][1] == code - 1:
                found[-1][1] = code
            else:
                found.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in found)
