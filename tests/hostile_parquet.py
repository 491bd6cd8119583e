"""Parquet files made by hand, byte by byte: lies that no library would write.

Thrift's compact protocol, as far as Parquet needs it: a structure is a mapping of field number to
``(type, value)``; a list is ``(type of its items, items)``.
"""

import struct
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

INT32, INT64, BINARY, LIST, STRUCT = 5, 6, 8, 9, 12
PLAIN, RLE, RLE_DICTIONARY = 0, 3, 8
UNCOMPRESSED, ZSTD = 0, 6

Fields = Mapping[int, tuple[int, Any]]

# Physical type, annotation, length of the columns of a file of predictions; log_probs is special.
FLAT = {
    "env": (6, 0, None),
    "split": (6, 0, None),
    "episode": (1, None, None),
    "step": (1, 11, None),
    "prediction": (1, 11, None),
}
LEAVES = (*FLAT, "log_probs")


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def encoded(kind: int, value: Any) -> bytes:
    if kind in (INT32, INT64):
        return varint(value * 2 if value >= 0 else -value * 2 - 1)
    if kind == BINARY:
        return varint(len(value)) + value
    if kind == LIST:
        item, items = value
        size = len(items)
        head = bytes([size << 4 | item]) if size < 15 else bytes([0xF0 | item]) + varint(size)
        return head + b"".join(encoded(item, each) for each in items)
    return structure(value)


def structure(fields: Fields) -> bytes:
    out, last = b"", 0
    for number, (kind, value) in sorted(fields.items()):
        out += bytes([number - last << 4 | kind]) + encoded(kind, value)
        last = number
    return out + b"\0"


def page(
    data: bytes,
    *,
    values: int,
    uncompressed: int | None = None,
    encoding: int = PLAIN,
    dictionary: bool = False,
) -> bytes:
    """A page and its header, which may lie; ``data`` as they stand in the file."""
    about: Fields = {1: (INT32, values), 2: (INT32, encoding)}
    if not dictionary:
        about = {**about, 3: (INT32, RLE), 4: (INT32, RLE)}
    header: Fields = {
        1: (INT32, 2 if dictionary else 0),
        2: (INT32, len(data) if uncompressed is None else uncompressed),
        3: (INT32, len(data)),
        7 if dictionary else 5: (STRUCT, about),
    }
    return structure(header) + data


def text(value: bytes) -> bytes:
    """A text as PLAIN has it."""
    return struct.pack("<I", len(value)) + value


def element(name: str, **about: Any) -> Fields:
    numbers = {"type": 1, "length": 2, "repetition": 3, "children": 5, "converted": 6}
    fields: dict[int, tuple[int, Any]] = {4: (BINARY, name.encode())}
    fields |= {numbers[k]: (INT32, v) for k, v in about.items() if v is not None and k != "float16"}
    if about.get("float16"):
        fields[10] = (STRUCT, {15: (STRUCT, {})})
    return fields


def schema() -> list[Fields]:
    """The schema of a file of predictions."""
    found = [element("schema", children=len(LEAVES))]
    for name, (kind, converted, _) in FLAT.items():
        found.append(element(name, type=kind, repetition=0, converted=converted))
    found.append(element("log_probs", repetition=1, children=1, converted=3))
    found.append(element("list", repetition=2, children=1))
    found.append(element("element", type=7, length=2, repetition=1, float16=True))
    return found


def parquet(
    pages: bytes,
    *,
    rows: int = 51_200,
    column: str = "env",
    codec: int = UNCOMPRESSED,
    values: int | None = None,
    dictionary: bool = False,
    elements: list[Fields] | None = None,
    groups: int = 1,
) -> bytes:
    """A file whose columns all point to the same pages, which suit ``column``.

    Columns are read in order, so that the first decides.
    """
    chunks = []
    for name in LEAVES:
        path = ["log_probs", "list", "element"] if name == "log_probs" else [name]
        kind = 7 if name == "log_probs" else FLAT[name][0]
        about: dict[int, tuple[int, Any]] = {
            1: (INT32, kind),
            2: (LIST, (INT32, [PLAIN, RLE, RLE_DICTIONARY])),
            3: (LIST, (BINARY, [part.encode() for part in path])),
            4: (INT32, codec),
            5: (INT64, rows if values is None else values),
            6: (INT64, 1000),
            7: (INT64, len(pages)),
            9: (INT64, 4),
        }
        if dictionary:
            about[11] = (INT64, 4)
        chunks.append({2: (INT64, 4), 3: (STRUCT, about)})
    group: Fields = {
        1: (LIST, (STRUCT, chunks)),
        2: (INT64, 1000),
        3: (INT64, rows // groups),
    }
    footer = structure(
        {
            1: (INT32, 2),
            2: (LIST, (STRUCT, schema() if elements is None else elements)),
            3: (INT64, rows),
            4: (LIST, (STRUCT, [group] * groups)),
        }
    )
    return framed(pages, footer)


def framed(pages: bytes, footer: bytes) -> bytes:
    return b"PAR1" + pages + footer + struct.pack("<I", len(footer)) + b"PAR1"


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


def huge_page() -> bytes:
    """A page that claims two gigabytes."""
    data = zstd(bytes(2**20))
    return parquet(page(data, values=51_200, uncompressed=2**31 - 1), codec=ZSTD)


def many_texts() -> bytes:
    """Texts of 64 MB, all different: gigabytes."""
    texts = [zstd(text(bytes([i]) + bytes(2**26 - 1))) for i in range(12)]
    return parquet(b"".join(page(t, values=1, uncompressed=2**26 + 4) for t in texts), codec=ZSTD)


def slow_texts() -> bytes:
    """The same text of 64 MB again and again: little memory, but much time."""
    data = zstd(text(bytes(2**26)))
    return parquet(page(data, values=1, uncompressed=2**26 + 4) * 1200, codec=ZSTD)


def empty_pages() -> bytes:
    """Pages that unpack to 64 MB and hold no value."""
    data = zstd(bytes(2**26))
    return parquet(page(data, values=0, uncompressed=2**26) * 400, codec=ZSTD)


def huge_dictionary() -> bytes:
    """A dictionary that claims two thousand million texts."""
    first = page(text(b"x"), values=2**31 - 1, dictionary=True)
    return parquet(first + page(b"\1\2\0", values=51_200), dictionary=True)


def huge_run() -> bytes:
    """A page that claims two thousand million values, all the same."""
    run = varint(2**31 - 1 << 1) + b"\0"
    pages = page(text(b"x"), values=1, dictionary=True)
    pages += page(b"\1" + run, values=2**31 - 1, encoding=RLE_DICTIONARY)
    return parquet(pages, dictionary=True)


def many_row_groups() -> bytes:
    """Thousands of row groups."""
    return parquet(page(text(b"x"), values=1), rows=6000, groups=6000)


def deep_schema() -> bytes:
    """Groups in groups in groups ..."""
    nested = [element("a", repetition=0, children=1)] * 100_000
    leaf = element("x", type=1, repetition=0)
    return parquet(b"", elements=[element("schema", children=1), *nested, leaf])


def claimed_list() -> bytes:
    """A footer whose list of columns claims two thousand million items."""
    return framed(b"", b"\x15\x04\x19\xfc" + varint(2**31 - 1) + b"\0" * 64)


def long_name() -> bytes:
    """A footer with a name that claims to be longer than the file."""
    return framed(b"", b"\x15\x04\x19\x1c\x48" + varint(2**31 - 1) + b"x" * 64)


def many_columns() -> bytes:
    """Ninety thousand columns."""
    leaf = element("x", type=1, repetition=0)
    return parquet(b"", elements=[element("schema", children=90_000), *[leaf] * 90_000])


# What a file of 51,200 rows in two environments might be, and why it is refused.
BOMBS = {
    "huge page": (huge_page, "more than 700 MiB of memory"),
    "many texts": (many_texts, "more than 700 MiB of memory to unpack"),
    "slow texts": (slow_texts, "takes more than 2 seconds to unpack"),
    "empty pages": (empty_pages, "has 0 rows and claims 51200"),
    "huge dictionary": (huge_dictionary, "takes more than 700 MiB of memory to unpack, more"),
    "huge run": (huge_run, "cannot be read as Parquet: Received invalid number of bytes"),
    "many row groups": (many_row_groups, "6000 row groups, at most 4096"),
    "deep schema": (deep_schema, "cannot be read as Parquet: Couldn't deserialize thrift: TPro"),
    "claimed list": (claimed_list, "cannot be read as Parquet: Couldn't deserialize thrift"),
    "long name": (long_name, "cannot be read as Parquet: Couldn't deserialize"),
    "many columns": (many_columns, r"columns are \['x', 'x'"),
}
