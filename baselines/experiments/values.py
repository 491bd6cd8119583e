"""Values of settings that are given by name, from a command line, a file or another module."""

import difflib
import math
import tomllib
import types
import typing
from collections.abc import Iterable
from typing import Any

_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a word",
    dict: "a table",
    type(None): "none",
}


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """What was probably meant, or all that there is."""
    known = list(names)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f": there are {', '.join(known)}"


def parse_value(text: str) -> Any:
    """A value as in TOML; ``none`` is None, and words need no quotes."""
    if text.lower() == "none":
        return None
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return found["value"] if len(found) == 1 else text


def fitted(value: Any, kind: Any) -> Any:
    """A value of an annotated type: a whole number as a float, a list as a tuple, where these fit.

    Raises:
        TypeError: Saying what it may be.
    """
    of, origin = typing.get_args(kind), typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        for one in of:
            try:
                return fitted(value, one)
            except TypeError:
                continue
    elif origin is typing.Literal:
        if type(value) is str and value in of:
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple) and (of[-1] is ... or len(value) == len(of)):
            kinds = [of[0]] * len(value) if of[-1] is ... else of
            return tuple(fitted(item, one) for item, one in zip(value, kinds, strict=True))
    elif kind is float:
        if type(value) in (int, float) and abs(value) < 2**1000 and math.isfinite(value):
            return float(value)
    elif type(value) is kind and (kind is not int or abs(value) < 2**63):
        return value
    raise TypeError(f"{_told(kind)}, not {value!r:.60}")


def _told(kind: Any) -> str:
    """An annotated type in words."""
    of, origin = typing.get_args(kind), typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_told(one) for one in of)
    if origin is typing.Literal:
        return f"one of {', '.join(of)}"
    if origin is tuple:
        number = "" if of[-1] is ... else f"of {len(of)} "
        return f"a list {number}of which each is {_told(of[0])}"
    return _KINDS.get(kind, str(kind))
