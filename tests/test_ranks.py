"""Ranks of many entries: counting replicates finds what the bounds of every pair say."""

import itertools

import numpy as np
import pytest

from icl_bench.evaluation import statistics as st

TASK = np.repeat(np.arange(16), 16)


def by_bounds(columns: list[np.ndarray], task: np.ndarray) -> list[int]:
    """One interval after the other, both directions of a pair by one of them."""
    found = [1] * len(columns)
    for i, j in itertools.combinations(range(len(columns)), 2):
        interval = st.paired_difference(columns[j], columns[i], task)
        found[i] += interval.low > st.ROUNDING
        found[j] += interval.high < -st.ROUNDING
    return found


def entries(
    number: int, seeds: list[int], task: np.ndarray, spread: float, seed: int = 0
) -> list[np.ndarray]:
    """Accuracies over so many seeds, on tasks that are hard for all; skills lie close together."""
    rng = np.random.default_rng(seed)
    effect = rng.normal(0, 0.1, task.max() + 1)[task]
    found = []
    for i in range(number):
        p = np.clip(0.5 + spread * rng.normal() + effect, 0, 1)
        found.append((rng.random((seeds[i % len(seeds)], len(task))) < p).mean(axis=0))
    return found


@pytest.mark.parametrize(
    ("seeds", "num_tasks"),
    [
        ([3], 16),  # whole thirds
        ([1, 3, 5], 16),  # no small common denominator
        ([2], 5),  # few different resamples: bounds lie on ties
        ([1, 2], 64),
        ([3], 4),  # too few tasks for a bootstrap
    ],
)
def test_ranks_are_those_of_all_bounds(seeds, num_tasks):
    task = np.repeat(np.arange(num_tasks), 16)
    columns = entries(24, seeds, task, 0.04) + entries(6, seeds, task, 0.3, 1)
    expected = by_bounds(columns, task)
    assert st.ranks(columns, task) == expected
    assert len(set(expected)) > 8
    assert st.ranks(columns[::-1], task) == expected[::-1]


def test_ranks_of_arbitrary_numbers_are_those_of_all_bounds():
    rng = np.random.default_rng(0)
    columns = [rng.normal(0.02 * i, 1, len(TASK)) for i in range(24)]
    columns.append(columns[3] + 1e-12)  # rounding
    columns.append(columns[3] + 1e-6)  # more than rounding, in every task
    ranks = st.ranks(columns, TASK)
    assert ranks == by_bounds(columns, TASK)
    assert ranks[3] > ranks[25]


@pytest.mark.parametrize(
    ("replicates", "bound", "asked", "rank"),
    [
        ([3.0, -2.0, 1.0, 2.0, -1.0], 0.5, True, 2),
        ([3.0, -2.0, 1.0, 2.0, -1.0], 0.0, True, 1),
        ([3.0, -2.0, -1.0, 2.0, -2.0], 0.5, False, 1),  # both replicates beside it are below zero
        ([3.0, -2.0, 1.0, 2.0, 1.0], 0.0, False, 2),  # both are above
    ],
)
def test_the_bound_decides_where_zero_lies_beside_it(replicates, bound, asked, rank):
    """Of five replicates a tail of 0.3 is 1.2: between the second and the third."""
    calls = []

    def low(a: int, b: int) -> float:
        calls.append((a, b))
        return bound

    table = np.array([np.zeros(5), replicates])
    assert st.ranks_of_replicates(np.array([0.0, 0.6]), table, 0.3, low) == [rank, 1]
    assert calls == [(1, 0)] * asked
