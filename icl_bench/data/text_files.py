"""Examples of text tasks from outside: lines of JSON files, mappings, ``datasets`` objects.

Everything that comes in passes ``check_example``; an error names the file and the line, or the
number of the row. Files are read as text and parsed as JSON: nothing in them is executed.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from icl_bench.data.images import DataError
from icl_bench.episodes import TextExample

TextKind: TypeAlias = Literal["classification", "multi-choice", "free-form"]

# A larger file is no text task: 16,384 examples of 256 tokens have about 20 MB.
MAX_BYTES = 2**28
# Indices of options are kept as bytes; discovery has 174.
MAX_OPTIONS = 255
# Classification by the original's config, but without options in its files.
WITHOUT_OPTIONS = ("unifiedqa:boolq",)


def check_example(
    example: TextExample, where: str, task: str, kind: TextKind, labels: Sequence[str]
) -> None:
    """Check that an example fits its task.

    Args:
        example: The example.
        where: Begins the error, for instance a file and a line.
        task: Name of its task.
        kind: Kind of its task.
        labels: Labels of a classification task; empty if they are not known.

    Raises:
        DataError: Naming ``where`` and what is wrong.
    """
    for text in (example.input, example.output, *example.options):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: half a surrogate pair, not text ({error})") from error
    if not example.output.strip():
        raise DataError(f"{where}: the output is empty, so there is nothing to score")
    if example.options and example.output not in example.options:
        raise DataError(
            f"{where}: the output {_short(example.output)} is not among the options "
            f"{_short(example.options)}"
        )
    if kind == "free-form" and example.options:
        raise DataError(f"{where}: {task} is free-form and has no options")
    if kind != "free-form" and not example.options and task not in WITHOUT_OPTIONS:
        raise DataError(f"{where}: {task} is {kind} and needs options")
    if len(example.options) > MAX_OPTIONS:
        raise DataError(f"{where}: {len(example.options)} options, at most {MAX_OPTIONS} can be")
    if kind == "classification" and example.options and set(example.options) != set(labels):
        raise DataError(
            f"{where}: the options {_short(example.options)} are not the labels of {task}, "
            f"{_short(tuple(labels))}"
        )


def in_order(example: TextExample, kind: TextKind) -> TextExample:
    """The example, of a classification task with each label once and sorted.

    An index of an option then names the same class in all examples, which macro-F1 needs.
    """
    if kind != "classification":
        return example
    return dataclasses.replace(example, options=tuple(sorted(set(example.options))))


def example_of(fields: Any, where: str) -> TextExample:
    """An example from a mapping with input, output and options.

    Raises:
        DataError: If a field is missing or of another type, naming ``where``.
    """
    if not isinstance(fields, Mapping):
        raise DataError(f"{where}: an example is an object with fields, not {_short(fields)}")
    if missing := [name for name in ("input", "output", "options") if name not in fields]:
        raise DataError(f"{where}: no field {', '.join(missing)}")
    options = fields["options"]
    for name in ("input", "output"):
        if not isinstance(fields[name], str):
            raise DataError(f"{where}: {name} must be text, not {_short(fields[name])}")
    if not isinstance(options, list | tuple) or not all(isinstance(o, str) for o in options):
        raise DataError(f"{where}: options must be a list of texts, not {_short(options)}")
    return TextExample(fields["input"], fields["output"], tuple(options))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def read_examples(
    path: Path, task: str, kind: TextKind, labels: tuple[str, ...]
) -> tuple[TextExample, ...]:
    """All examples of a file of JSON lines; kept in memory as long as the file does not change.

    Args:
        path: The file.
        task: Name of the task; a line that names another is refused.
        kind: Kind of the task.
        labels: Labels of a classification task; empty for those of the first line.

    Raises:
        DataError: If the file cannot be read, is too large or empty, or a line is wrong, naming
            the file and the line.
    """
    try:
        status = path.stat()
        return _read(path, task, kind, labels, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error


@functools.lru_cache(maxsize=64)
def _read(
    path: Path, task: str, kind: TextKind, labels: tuple[str, ...], size: int, mtime: int
) -> tuple[TextExample, ...]:
    if size > MAX_BYTES:
        raise DataError(f"{path} has {size} bytes, more than the {MAX_BYTES} of any text task")
    examples: list[TextExample] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            fields = json.loads(line.decode())
        except (ValueError, RecursionError) as error:  # also not UTF-8, or nested without end
            raise DataError(f"{where}: not a line of JSON ({error})") from error
        example = example_of(fields, where)
        if fields.get("task", task) != task:
            raise DataError(f"{where}: an example of {_short(fields['task'])}, not of {task}")
        labels = labels or example.options
        check_example(example, where, task, kind, labels)
        examples.append(in_order(example, kind))
    if not examples:
        raise DataError(f"{path}: {task} has no examples, the file is empty")
    return tuple(examples)


def read_draws(path: Path, count: int) -> Mapping[str, Mapping[str, Sequence[int]]]:
    """The draws ``k16`` and ``k16_dev`` of demonstrations by seed: lines among ``count``, from 0.

    Raises:
        DataError: If the file is not that, naming it.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("too large")
        draws = json.loads(path.read_text(encoding="utf-8"))
        draws = {part: dict(draws[part]) for part in ("k16", "k16_dev")}
        for seed, lines in (item for part in draws.values() for item in part.items()):
            # A line may come twice: some of the original's data sets repeat examples.
            if not all(type(i) is int and 0 <= i < count for i in lines):
                raise ValueError(f"seed {seed}: not lines in [0, {count})")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: no draws of demonstrations ({error})") from error
    return draws


def from_dataset(
    rows: Iterable[Mapping[str, Any]],
    *,
    input: str | Sequence[str],
    output: str,
    options: str | None = None,
    labels: Sequence[str] | None = None,
) -> tuple[TextExample, ...]:
    """Examples from a ``datasets.Dataset`` of Hugging Face, or any mappings with columns.

    Args:
        rows: The data set.
        input: Column of the input; several are joined as in MetaICL, ``name: text [SEP] …``.
        output: Column of the answer: text, or an index into the options (or ``labels``).
        options: Column of each example's own options (multi-choice).
        labels: Names of the classes, by index (classification); the names of the data set's
            own ``ClassLabel`` by default. With neither, the task is free-form.

    Raises:
        DataError: For a missing column, a missing value or an answer that is not among the
            options, naming the row (from 0).
        ValueError: For both ``options`` and ``labels``.
    """
    if options is not None and labels is not None:
        raise ValueError("give options (a column) or labels (for all), not both")
    if options is None and labels is None:
        labels = getattr((getattr(rows, "features", None) or {}).get(output), "names", None)
    columns = (input,) if isinstance(input, str) else tuple(input)
    examples = []
    for number, row in enumerate(rows):
        where = f"row {number}"
        needed = [*columns, output] + ([options] if options else [])
        if absent := [name for name in needed if row.get(name) is None]:
            raise DataError(f"{where}: no value in {', '.join(absent)}; columns: {', '.join(row)}")
        texts = [str(row[name]).strip() for name in columns]
        if len(columns) > 1:
            pairs = zip(columns, texts, strict=True)
            texts = [" [SEP] ".join(f"{name}: {text}" for name, text in pairs)]
        choices = [str(choice) for choice in (row[options] if options else labels or ())]
        answer = row[output]
        if isinstance(answer, int | np.integer) and choices:
            if not 0 <= answer < len(choices):
                raise DataError(f"{where}: {output} {answer} is no index of {_short(choices)}")
            answer = choices[int(answer)]
        shown = tuple(choices if options else sorted(choices))
        example = TextExample(texts[0], str(answer).strip(), shown)
        kind: TextKind = "multi-choice" if shown else "free-form"
        check_example(example, where, "the data set", kind, ())
        examples.append(example)
    if not examples:
        raise DataError("the data set has no rows")
    return tuple(examples)
