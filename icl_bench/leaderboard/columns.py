"""Files from strangers: opened without following anything, Parquet unpacked in the sandbox."""

import dataclasses
import json
import os
import stat
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from jaxtyping import Bool, Float16, Int32, Shaped

from icl_bench.leaderboard.sandbox import SANDBOX

MAX_FILE_BYTES = 3_000_000
MAX_VALUES_PER_ROW = 32

# Of an answer of the sandbox: what it says of the columns, and its complaints.
_MOST_HEADER_BYTES, _MOST_PROBLEMS, _MOST_CHARACTERS = 4_000_000, 20, 1000


@dataclasses.dataclass(frozen=True)
class Texts:
    """A column of texts.

    Attributes:
        names: The different texts.
        code: Index of each row's text.
    """

    names: tuple[str, ...]
    code: Int32[np.ndarray, " N"]

    def rows(self, name: str) -> Bool[np.ndarray, " N"]:
        """Which rows have a text."""
        return np.asarray(self.code == self.names.index(name))


@dataclasses.dataclass(frozen=True)
class Lists:
    """A column of lists of numbers.

    Attributes:
        present: Which rows have a list.
        size: Length of each row's list; 0 where there is none.
        values: All lists, one after the other.
    """

    present: Bool[np.ndarray, " N"]
    size: Int32[np.ndarray, " N"]
    values: Float16[np.ndarray, " V"]


Column: TypeAlias = Texts | Lists | Shaped[np.ndarray, " N"]


def open_plain(path: Path, most_bytes: int) -> BinaryIO:
    """Open a regular file; neither it nor its folder may be a link.

    What was opened is what is judged: whoever puts another file in its place comes too late.

    Raises:
        ValueError: If it is no such file, or larger, with the reason.
        RuntimeError: On systems that are not POSIX.
    """
    if os.name != "posix":
        raise RuntimeError(
            "files of others are read behind limits that this system does not have: "
            "use Linux or macOS (on Windows: WSL)"
        )
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        folder = os.open(path.parent, flags | os.O_DIRECTORY)
        try:
            file = os.open(path.name, flags, dir_fd=folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ValueError(f"cannot be opened: {error.strerror}") from error
    info = os.fstat(file)
    if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1 or info.st_size > most_bytes:
        os.close(file)
        raise ValueError(f"not a plain file of at most {most_bytes} bytes any more")
    return os.fdopen(file, "rb")


def read_file(path: Path, most_bytes: int) -> bytes:
    """Contents of a regular file.

    Raises:
        ValueError: As ``open_plain``, or if the file grows meanwhile.
    """
    with open_plain(path, most_bytes) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"not a plain file of at most {most_bytes} bytes any more")
    return data


def read_columns(
    path: Path, expected: Any, most_rows: int, nullable: Collection[str] = ()
) -> tuple[dict[str, Any] | None, list[str]]:
    """The columns of a Parquet file by name, and everything wrong with it.

    Args:
        path: The file.
        expected: The ``pyarrow.Schema`` that it must have: texts, numbers, lists of float16.
        most_rows: More rows than any honest file has.
        nullable: Columns that may lack values.

    Returns:
        The columns, ``Texts``, ``Lists`` or an array of numbers, or None where something is
        wrong; and what is.
    """
    try:
        answer, complaint = SANDBOX.unpack(
            read_file(path, MAX_FILE_BYTES),
            expected.serialize().to_pybytes(),
            most_rows=most_rows,
            most_values=MAX_VALUES_PER_ROW,
            most_bytes=_MOST_HEADER_BYTES + most_rows * _row_bytes(expected),
            nullable=nullable,
        )
        return (None, [complaint]) if complaint else _parsed(answer, expected, most_rows)
    except ValueError as error:
        return None, [str(error)]


def _row_bytes(expected: Any) -> int:
    import pyarrow as pa

    return sum(
        4 if pa.types.is_string(field.type)
        # Whether there is a list, its length, and its values.
        else 1 + 4 + 2 * MAX_VALUES_PER_ROW if pa.types.is_list(field.type)
        else field.type.bit_width // 8
        for field in expected
    )  # fmt: skip


def _parsed(
    answer: bytes, expected: Any, most_rows: int
) -> tuple[dict[str, Any] | None, list[str]]:
    """Columns or problems from an answer of the sandbox, which may have been subverted.

    Raises:
        ValueError: If the answer is none that an unharmed sandbox gives.
    """
    try:
        end = answer.index(b"\n", 0, _MOST_HEADER_BYTES)
        header = json.loads(answer[:end])
        if problems := header.get("problems"):
            told = [ascii(text)[1:-1][:_MOST_CHARACTERS] for text in problems[:_MOST_PROBLEMS]]
            return None, told
        rest = _Buffers(answer, end + 1)
        num_rows = header["rows"]
        if type(num_rows) is not int or not 0 < num_rows <= most_rows:
            raise ValueError
        about = header["columns"]
        columns = {f.name: rest.column(f.type, num_rows, about[f.name]) for f in expected}
        rest.finish()
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise ValueError("cannot be read as Parquet: what unpacked it was subverted") from error
    return columns, []


@dataclasses.dataclass
class _Buffers:
    """Arrays in bytes, one after the other; ValueError where they are not what was asked for."""

    data: bytes
    start: int

    def take(self, dtype: Any, count: int) -> Shaped[np.ndarray, " {count}"]:
        """The next numbers."""
        array = np.frombuffer(self.data, dtype, count, self.start)
        self.start += array.nbytes
        return array

    def column(self, kind: Any, num_rows: int, about: Mapping[str, Any]) -> Column:
        """The next column."""
        import pyarrow as pa

        if pa.types.is_string(kind):
            names, code = tuple(about["texts"]), self.take(np.int32, num_rows)
            if not all(isinstance(name, str) for name in names) or not _within(
                code, 0, len(names) - 1
            ):
                raise ValueError
            if len(set(names)) < len(names) or len(np.bincount(code).nonzero()[0]) != len(names):
                raise ValueError
            return Texts(names, code)
        if pa.types.is_list(kind):
            present = self.take(np.uint8, num_rows)
            size = self.take(np.int32, num_rows)
            if not _within(present, 0, 1) or not _within(size, 0, 2**16):
                raise ValueError
            if (size[present == 0] != 0).any() or size.sum(dtype=np.int64) != about["values"]:
                raise ValueError
            return Lists(present.astype(bool), size, self.take(np.float16, about["values"]))
        return self.take(kind.to_pandas_dtype(), num_rows)

    def finish(self) -> None:
        """Raise if anything is left."""
        if self.start != len(self.data):
            raise ValueError


def _within(values: Shaped[np.ndarray, " N"], low: int, high: int) -> bool:
    return bool((values >= low).all() and (values <= high).all())


def listed(names: Sequence[object]) -> str:
    """The first of some names as ASCII, ending with is or are."""
    shown = ", ".join(ascii(name)[:80] for name in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{shown}{more} {'is' if len(names) == 1 else 'are'}"
