"""Suites of vectors and of text under one roof: boards and submissions have both."""

from typing import TypeAlias

from icl_bench import catalog

AnySuite: TypeAlias = catalog.Suite | catalog.TextSuite

ALL_SUITES: tuple[AnySuite, ...] = (*catalog.SUITES, *catalog.TEXT_SUITES)


def any_suite(name: str) -> AnySuite:
    """A suite of either kind by its name.

    Raises:
        ValueError: If there is no such suite, naming those that there are.
    """
    for row in ALL_SUITES:
        if row.name == name:
            return row
    known = ", ".join(row.name for row in ALL_SUITES)
    raise ValueError(f"unknown suite {name!r}; there are {known}")
