"""Data sets and text tasks that tests register are forgotten after them."""

import contextlib
from collections.abc import Iterator
from typing import Any

import gymnasium

from icl_bench import registration
from icl_bench.data import images, text, text_catalog


@contextlib.contextmanager
def restored_registries() -> Iterator[None]:
    """After the block: data sets, text tasks and environments of before, here and in Gymnasium."""
    tables: list[dict[Any, Any]] = [
        images._user_rows,
        images._user_images,
        text._user_examples,
        text_catalog._user_tasks,
        text_catalog._user_settings,
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
