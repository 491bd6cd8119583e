"""The dip test: exact, right about skewed numbers, and strong enough for clear modes."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
from scipy.optimize import linprog

from baselines.experiments import findings, findings_modes

Array = np.ndarray
INF = math.inf


def dip_by_programming(values: Array) -> float:
    """The distance to the nearest law with one mode, as linear programs: one for each mode."""
    x, counts = np.unique(values, return_counts=True)
    at, size, best = counts.cumsum() / len(values), len(x), INF
    before = at - counts / len(values)
    for mode in range(size):
        # The law before the mode, then from it on (it may jump there), then the distance.
        num = size + 2
        rows, limits = [], []

        def add(*terms: tuple[int, float], limit: float = 0.0) -> None:
            row = np.zeros(num)  # noqa: B023
            for place, factor in terms:
                row[place] += factor
            rows.append(row)  # noqa: B023
            limits.append(limit)  # noqa: B023

        for side, points in ((0, range(mode + 1)), (1, range(mode, size))):
            for i in points:
                if side == 0 or i > mode:
                    add((i + side, 1), (num - 1, -1), limit=before[i])
                if side == 1 or i < mode:
                    add((i + side, -1), (num - 1, -1), limit=-at[i])
                if i > points[0]:
                    add((i - 1 + side, 1), (i + side, -1))
                if points[0] < i < points[-1]:  # convex before, concave after
                    sign, left, right = 1 - 2 * side, 1 / (x[i] - x[i - 1]), 1 / (x[i + 1] - x[i])
                    middle = (i + side, sign * (left + right))
                    add(middle, (i - 1 + side, -sign * left), (i + 1 + side, -sign * right))
        add((mode, 1), (mode + 1, -1))
        solved = linprog(np.eye(num)[-1], np.array(rows), limits, bounds=[(0, 1)] * num)
        assert solved.status == 0
        best = min(best, solved.fun)
    return float(best)


@pytest.mark.parametrize("seed", range(9))
def test_the_dip_is_the_distance_to_one_mode(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 12))
    values = [rng.random(n), rng.random(n).round(1), np.r_[rng.random(n), 5 + rng.random(n)]]
    assert findings_modes.dip(values[seed % 3]) == pytest.approx(
        dip_by_programming(values[seed % 3]), abs=1e-7
    )


LAWS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "uniform": lambda rng, n: rng.random(n),
    "normal": lambda rng, n: rng.normal(size=n),
    "skewed": lambda rng, n: rng.exponential(size=n),
    "heavy-tailed": lambda rng, n: rng.lognormal(0, 1.5, n),
    "clipped": lambda rng, n: np.maximum(rng.normal(size=n), 0),
}


def two_modes(rng: np.random.Generator, low: int, high: int, apart: float = 10.0) -> Array:
    return rng.permutation(np.r_[rng.normal(0, 1, low), rng.normal(apart, 1, high)])


@pytest.mark.parametrize("law", LAWS)
def test_one_mode_is_called_two_in_at_most_5_percent(law: str) -> None:
    rng, runs = np.random.default_rng(0), 400
    for n in (10, 32):
        found = np.mean([findings.bimodality(LAWS[law](rng, n)).p <= 0.05 for _ in range(runs)])
        assert found < 0.05 + 5 * math.sqrt(0.05 * 0.95 / runs)


def test_two_gaussians_against_one_are_no_test_of_two_modes() -> None:
    """Their likelihood ratio (chi squared, 3) calls most skewed samples bimodal; the dip does not.

    The split that the classification likelihood finds stands for the fit.
    """
    rng, runs = np.random.default_rng(0), 100
    wrong = 0
    for _ in range(runs):
        x = np.sort(rng.lognormal(0, 1.5, 16))
        one = -8 * math.log(x.var())
        two = max(
            sum(
                len(s) * (math.log(len(s) / 16) - math.log(max(s.var(), 0.01 * x.var())) / 2)
                for s in (x[:k], x[k:])
            )
            for k in range(2, 15)
        )
        wrong += 2 * (two - one) > scipy.stats.chi2.ppf(0.95, 3)
    assert wrong / runs > 0.5


def test_clear_modes_are_found_with_16_seeds() -> None:
    rng = np.random.default_rng(0)
    found = [findings.bimodality(two_modes(rng, 8, 8)) for _ in range(100)]
    assert np.mean([f.bimodal is True for f in found]) >= 0.98
    for f in found:
        assert f.shares == (0.5, 0.5)
        assert f.modes == pytest.approx((0, 10), abs=2)
        assert 1 < f.boundary < 9
    uneven = findings.bimodality(two_modes(rng, 6, 10))
    assert uneven.shares == (6 / 16, 10 / 16)


def test_few_seeds_are_undecided_not_unimodal() -> None:
    rng = np.random.default_rng(0)
    assert findings.bimodality(rng.normal(size=16)).bimodal is None
    assert findings.bimodality(rng.normal(size=32)).bimodal is False
    assert findings.bimodality(np.array([1.0, 2.0])).bimodal is None
    assert findings.bimodality(np.empty(0)).bimodal is None
    assert findings.bimodality(np.ones(32)).bimodal is False


def test_many_tests_for_modes_are_counted() -> None:
    rng = np.random.default_rng(0)
    groups = {2**k: rng.normal(size=16) for k in range(8, 14)} | {4096: two_modes(rng, 8, 8)}
    alone = {k: findings.bimodality(v).p for k, v in groups.items()}
    found = findings.bimodalities(groups)
    assert list(found) == sorted(groups)
    assert found[4096].p == pytest.approx(6 * alone[4096])
    assert found[4096].bimodal is True
    assert all(found[k].p >= alone[k] for k in groups)
    ranked = sorted(groups, key=lambda k: alone[k])
    assert [found[k].p for k in ranked] == sorted(found[k].p for k in ranked)
