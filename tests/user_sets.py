"""Data sets that tests register are forgotten after them."""

import contextlib
from collections.abc import Iterator
from typing import Any

import gymnasium

from icl_bench import registration
from icl_bench.data import images


@contextlib.contextmanager
def restored_registries() -> Iterator[None]:
    """After the block: the data sets and environments of before, here and in Gymnasium."""
    tables: list[dict[Any, Any]] = [
        images._user_rows,
        images._user_images,
        registration._specs,
        gymnasium.registry,
    ]
    before = [dict(table) for table in tables]
    try:
        yield
    finally:
        for table, content in zip(tables, before, strict=True):
            table.clear()
            table.update(content)
