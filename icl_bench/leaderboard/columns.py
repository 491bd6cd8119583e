"""Parquet files from strangers: read as columns after every check that needs no reading."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

MAX_FILE_BYTES = 3_000_000

# What 3 MB may unpack to: a full hand-in of six environments needs about 10 MB.
MAX_UNPACKED_BYTES = 64 * 2**20
MAX_VALUES_PER_ROW = 32


def read_columns(
    path: Path, expected: Any, most_rows: int, nullable: Collection[str] = ()
) -> tuple[Any, list[str]]:
    """The columns of a file by name, texts dictionary-encoded, and everything wrong with it.

    Args:
        path: The file.
        expected: The ``pyarrow.Schema`` that it must have.
        most_rows: More rows than any honest file has.
        nullable: Columns that may lack values.

    Returns:
        The columns, or None where something is wrong, and what is.
    """
    import pyarrow as pa

    try:
        return _read(path, expected, most_rows, nullable)
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        return None, [f"cannot be read as Parquet: {_first_line(error)}"]


def _read(
    path: Path, expected: Any, most_rows: int, nullable: Collection[str]
) -> tuple[Any, list[str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [field.name for field in expected if pa.types.is_string(field.type)]
    with pq.ParquetFile(path) as file:
        schema, meta = file.schema_arrow, file.metadata
    if schema.names != expected.names:
        return None, [f"columns are {schema.names}, must be {expected.names}"]
    problems = [
        f"column {name} has type {schema.field(name).type}, must be {expected.field(name).type}"
        for name in expected.names
        if not _same_type(schema.field(name).type, expected.field(name).type)
    ]
    groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    unpacked = sum(chunk.total_uncompressed_size for chunk in chunks)
    values = max((chunk.num_values for chunk in chunks), default=0)
    if not 0 < meta.num_rows <= most_rows:
        problems.append(f"{meta.num_rows} rows, must be 1 to {most_rows}")
    elif unpacked > MAX_UNPACKED_BYTES or values > MAX_VALUES_PER_ROW * meta.num_rows:
        problems.append(
            f"unpacks to {unpacked} bytes and {values} values in {meta.num_rows} rows, "
            "more than predictions need"
        )
    if problems:
        return None, problems
    # Texts stay dictionaries: a long one that is repeated must not fill the memory.
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        table = file.read()
    columns = {name: table[name].combine_chunks() for name in expected.names}
    for name in texts:
        if not pa.types.is_dictionary(columns[name].type):
            columns[name] = columns[name].dictionary_encode()
        columns[name].validate(full=True)  # bytes that are no UTF-8, for instance
    nulls = [name for name in columns if name not in nullable and columns[name].null_count]
    if nulls:
        return None, [f"missing values in column {name}" for name in nulls]
    return columns, []


def _first_line(error: BaseException) -> str:
    text = ascii(str(error).split("\n")[0])[1:-1]
    return text[:200] or type(error).__name__


def _same_type(found: Any, expected: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_list(expected):
        return pa.types.is_list(found) and bool(found.value_type == expected.value_type)
    return bool(found == expected)


def listed(names: Sequence[object]) -> str:
    """The first of some names as ASCII, ending with is or are."""
    shown = ", ".join(ascii(name)[:80] for name in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{shown}{more} {'is' if len(names) == 1 else 'are'}"
