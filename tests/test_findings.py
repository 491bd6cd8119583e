"""Verdicts and their numbers: known answers, simulated coverage, and wrong ways that must fail."""

import dataclasses
import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats

from baselines.experiments import findings
from baselines.experiments.findings import Claim, Estimate, Verdict

Array = np.ndarray
NAN, INF = math.nan, math.inf


def coverage(make: Callable[[np.random.Generator], Estimate], truth: float, runs: int) -> float:
    rng = np.random.default_rng(0)
    made = [make(rng) for _ in range(runs)]
    return float(np.mean([e.low <= truth <= e.high for e in made]))


def is_95(share: float, runs: int) -> bool:
    return abs(share - 0.95) < 5 * math.sqrt(0.95 * 0.05 / runs)


# ---- estimates -----------------------------------------------------------------------------------


def test_questions_are_answered_only_where_the_interval_decides() -> None:
    estimate = Estimate(2.0, 1.0, 3.0, 5)
    assert [estimate.above(limit) for limit in (0.5, 2.0, 3.0)] == [True, None, False]
    assert [estimate.below(limit) for limit in (4.0, 2.0, 1.0)] == [True, None, False]
    assert estimate.within(0, 4) is True
    assert estimate.within(2, 4) is None
    assert estimate.within(4, 5) is False
    unknown = Estimate(2.0, -INF, INF, 1)
    assert unknown.above(0) is unknown.below(0) is unknown.within(-9, 9) is None
    assert Estimate(0.0, 0.0, 0.0, 3).above(0) is False


def test_an_estimate_is_mapped_with_its_bounds() -> None:
    mapped = Estimate(1.0, 0.0, 2.0, 4).map(lambda v: 2**v)
    assert mapped == Estimate(2.0, 1.0, 4.0, 4)


def test_mean_over_seeds_by_hand() -> None:
    found = findings.mean_over_seeds(np.array([1.0, 2.0, 3.0]))
    half = 4.302653 / math.sqrt(3)  # t_{0.975, 2}, standard deviation 1
    assert (found.value, found.low, found.high) == pytest.approx((2, 2 - half, 2 + half), abs=1e-5)
    assert found.n == 3


def test_too_few_seeds_decide_nothing() -> None:
    one, none, two = np.array([3.0]), np.empty(0), np.array([1.0, 2.0])
    assert findings.mean_over_seeds(one) == Estimate(3.0, -INF, INF, 1)
    assert findings.difference(one, two).above(-100) is None
    assert findings.ratio(one, two).above(-100) is None
    assert findings.ratio(two, two - 1.4).above(-100) is None  # a mean of zero is not excluded
    for made in (
        findings.mean_over_seeds(none),
        findings.difference(none, two),
        findings.ratio(none, two),
        findings.rank_correlation(none, none),
    ):
        assert math.isnan(made.value)
        assert made.above(0) is None


@pytest.mark.parametrize("sizes", [(3, 3), (4, 12)])
def test_t_intervals_cover_95_percent(sizes: tuple[int, int]) -> None:
    runs = 1000
    made = {
        "mean": lambda rng: findings.mean_over_seeds(rng.normal(2, 1, sizes[0])),
        "difference": lambda rng: findings.difference(
            rng.normal(3, 0.5, sizes[0]), rng.normal(1, 0.5, sizes[1])
        ),
        "ratio": lambda rng: findings.ratio(
            rng.normal(2, 0.2, sizes[0]), rng.normal(1, 0.1, sizes[1])
        ),
    }
    for name, make in made.items():
        assert is_95(coverage(make, 2.0, runs), runs), name


def test_a_normal_quantile_for_the_t_quantile_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baselines.experiments.findings_estimates._t", lambda freedom: 1.96)
    share = coverage(lambda rng: findings.mean_over_seeds(rng.normal(2, 1, 3)), 2.0, 2000)
    assert share < 0.88
    assert not is_95(share, 2000)


def test_welch_covers_where_pooled_variances_do_not() -> None:
    def groups(rng: np.random.Generator) -> tuple[Array, Array]:
        return rng.normal(0, 3, 4), rng.normal(0, 0.3, 16)

    def pooled(rng: np.random.Generator) -> Estimate:
        low, high = scipy.stats.ttest_ind(*groups(rng)).confidence_interval()
        return Estimate(0.0, low, high, 20)

    assert is_95(coverage(lambda rng: findings.difference(*groups(rng)), 0.0, 2000), 2000)
    assert not is_95(coverage(pooled, 0.0, 500), 500)


def test_pairs_cancel_what_seeds_share() -> None:
    def groups(rng: np.random.Generator) -> tuple[Array, Array]:
        shared = rng.normal(0, 0.5, 6)
        return 4 + 2 * shared + rng.normal(0, 0.1, 6), 2 + shared + rng.normal(0, 0.1, 6)

    runs = 1000
    for function, truth in ((findings.difference, 2.0), (findings.ratio, 2.0)):
        assert is_95(coverage(lambda rng: function(*groups(rng), paired=True), truth, runs), runs)  # noqa: B023
    # Taken as unpaired the interval of the ratio is much too wide.
    assert not is_95(coverage(lambda rng: findings.ratio(*groups(rng)), 2.0, runs), runs)
    rng = np.random.default_rng(0)
    paired, unpaired = (findings.ratio(*groups(rng), paired=p) for p in (True, False))
    assert unpaired.high - unpaired.low > 3 * (paired.high - paired.low)


def test_wrong_values_are_named() -> None:
    two, three = np.ones(2), np.ones(3)
    with pytest.raises(ValueError, match="1 of 2 values are not finite"):
        findings.mean_over_seeds(np.array([1.0, NAN]))
    with pytest.raises(ValueError, match="2 paired values do not fit 3 others"):
        findings.difference(two, three, paired=True)
    with pytest.raises(ValueError, match="mean of b is zero"):
        findings.ratio(two, np.zeros(2))
    with pytest.raises(ValueError, match="y of a power law must be positive"):
        findings.power_law(two, np.zeros(2))
    with pytest.raises(ValueError, match="needs the cluster of each of the 2 points"):
        findings.rank_correlation(two, two, resample="clusters")


# ---- power law -----------------------------------------------------------------------------------


def test_a_power_law_is_found() -> None:
    x = 2.0 ** np.arange(8)
    found = findings.power_law(x, 5 * x**-0.7)
    assert (found.exponent.value, found.factor, found.r_squared) == pytest.approx((-0.7, 5, 1))
    assert found.exponent.high - found.exponent.low < 1e-6
    assert found.left_out == 0


def test_the_exponents_interval_covers_95_percent() -> None:
    x = np.tile(2.0 ** np.arange(4), 2)

    def make(rng: np.random.Generator) -> Estimate:
        return findings.power_law(x, x**-0.5 * np.exp(rng.normal(0, 0.3, 8))).exponent

    assert is_95(coverage(make, -0.5, 1000), 1000)


def test_censored_points_are_left_out_and_counted() -> None:
    x = 2.0 ** np.arange(8)
    y = 5 * x**1.5
    capped, censored = np.minimum(y, 300), y > 300
    found = findings.power_law(x, capped, censored)
    assert found.exponent.value == pytest.approx(1.5)
    assert found.left_out == int(censored.sum()) > 2
    assert found.exponent.n == 8 - found.left_out
    assert findings.power_law(x, capped).exponent.value < 1.2  # ignoring censoring


def test_a_line_through_two_points_has_no_interval() -> None:
    found = findings.power_law(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    assert found.exponent.value == pytest.approx(2)
    assert found.exponent.above(0) is None
    assert findings.power_law(np.ones(5), np.arange(1.0, 6)).exponent.above(-9) is None


# ---- trend ---------------------------------------------------------------------------------------


def test_a_trend_is_found_in_its_direction() -> None:
    x = np.repeat([1, 2, 4, 8], 3)
    rising = findings.trend(x, np.arange(12.0))
    assert rising.rises is True
    assert rising.falls is False
    assert rising.levels == 4
    assert findings.trend(x, -np.arange(12.0)).rises is False
    assert findings.trend(x, np.tile([1.0, 2.0, 3.0], 4)).rises is None


def test_p_values_of_a_trend_are_those_of_all_permutations() -> None:
    """Two levels of 3 and 4 points: Mann and Whitney's test, whose p values are known exactly."""
    rng = np.random.default_rng(0)
    x = np.repeat([0, 1], [3, 4])
    for _ in range(5):
        y = rng.normal(size=7)
        exact = scipy.stats.mannwhitneyu(y[3:], y[:3], alternative="greater", method="exact").pvalue
        error = 5 * math.sqrt(exact * (1 - exact) / 5000)
        assert findings.trend(x, y).p_rises == pytest.approx(exact, abs=error + 2e-4)


def test_trends_of_noise_are_found_in_at_most_5_percent() -> None:
    rng = np.random.default_rng(0)
    x = np.repeat([1, 2, 4, 8], 4)
    found = [findings.trend(x, rng.exponential(size=16)).rises is not None for _ in range(100)]
    assert is_95(1 - float(np.mean(found)), 100)


def test_a_trend_needs_more_than_three_points() -> None:
    assert findings.trend(np.arange(3), np.arange(3.0)).rises is None
    flat = findings.trend(np.ones(9), np.arange(9.0))
    assert math.isnan(flat.tau)
    assert flat.rises is None


def test_tau_of_a_trend_is_kendalls() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 4, 20), rng.integers(0, 5, 20)
    assert findings.trend(x, y).tau == pytest.approx(scipy.stats.kendalltau(x, y).statistic)


def test_a_censored_number_is_no_number_in_a_trend() -> None:
    x = np.repeat([1, 2, 4], 4)
    y = np.r_[np.arange(1.0, 9), np.zeros(4)]  # of the last nothing is known
    cut = np.arange(12) >= 8
    assert findings.trend(x, y).rises is None
    assert findings.trend(x[4:], y[4:]).falls is True
    assert findings.trend(x[4:], y[4:], cut[4:]).falls is None
    assert findings.trend(x, y, cut).rises is True  # the first eight
    y[8:] = 8.0  # not left when training ends
    late = findings.trend(x, y, cut)
    assert late.p_rises < findings.trend(x[:8], y[:8]).p_rises
    assert findings.trend(x, np.full(12, 8.0), np.ones(12, dtype=bool)).rises is None
    with pytest.raises(ValueError, match="3 flags of censoring do not fit 12 points"):
        findings.trend(x, y, cut[:3])


def test_trends_of_censored_noise_are_found_in_at_most_5_percent() -> None:
    rng = np.random.default_rng(1)
    x = np.repeat([1, 2, 4, 8], 4)
    found = []
    for _ in range(100):
        y = rng.exponential(size=16)
        found.append(findings.trend(x, np.minimum(y, 1), y > 1).rises is not None)
    assert is_95(1 - float(np.mean(found)), 100)


# ---- rank correlation ----------------------------------------------------------------------------


def test_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, 20), rng.normal(size=20)
    found = findings.rank_correlation(x, y)
    assert found.value == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert found.low <= found.value <= found.high
    assert findings.rank_correlation(y, np.exp(3 * y)).value == pytest.approx(1)
    assert findings.rank_correlation(np.arange(4), np.arange(4)).above(0) is None  # four points
    assert math.isnan(findings.rank_correlation(np.ones(9), np.arange(9)).value)


def test_intervals_of_rank_correlations_cover() -> None:
    rho, runs = 0.5, 100
    truth = 6 / math.pi * math.asin(rho / 2)  # Spearman's of a Gaussian pair

    def make(rng: np.random.Generator) -> tuple[bool, bool]:
        x, z = rng.normal(size=(2, 20))
        y = rho * x + math.sqrt(1 - rho**2) * rng.normal(size=20)
        found = findings.stronger_predictor(y, x, z)
        pair = found.state_size, found.difference
        return pair[0].low <= truth <= pair[0].high, pair[1].low <= truth <= pair[1].high

    rng = np.random.default_rng(0)
    for share in np.mean([make(rng) for _ in range(runs)], axis=0):
        assert is_95(float(share), runs)


def test_clustered_points_are_not_taken_for_independent_ones() -> None:
    """Settings carry noise that their seeds share: drawing points is much too sure."""
    names = np.repeat(np.arange(8), 6)

    def make(resample: str) -> Callable[[np.random.Generator], Estimate]:
        def one(rng: np.random.Generator) -> Estimate:
            x, y = rng.normal(size=8)[names], rng.normal(size=8)[names]
            y = y + 0.1 * rng.normal(size=48)
            return findings.rank_correlation(x, y, names, resample)  # type: ignore[arg-type]

        return one

    assert coverage(make("clusters"), 0.0, 40) > 0.8
    assert coverage(make("points"), 0.0, 40) < 0.75


def test_four_architectures_are_too_few_to_draw_again_but_their_points_are_not() -> None:
    rng = np.random.default_rng(0)
    names = np.repeat(["gpicl", "lstm", "outer_lstm", "vsml_nosym"], 6)
    state = rng.random(24)
    accuracy, parameters = state + 0.1 * rng.random(24), rng.random(24)
    found = findings.stronger_predictor(accuracy, state, parameters, names, "clusters")
    assert found.difference.above(0) is None
    within = findings.stronger_predictor(accuracy, state, parameters, names, "within")
    assert within.difference.above(0) is True
    assert within.state_size.above(0.5) is True
    assert within.parameters.within(-0.9, 0.9) is True
    swapped = findings.stronger_predictor(accuracy, parameters, state, names, "within")
    assert swapped.difference.above(0) is False


def test_equal_predictors_are_not_told_apart() -> None:
    rng = np.random.default_rng(0)
    x = rng.random(20)
    found = findings.stronger_predictor(x + 0.2 * rng.random(20), x, np.exp(x))
    assert (found.difference.low, found.difference.high) == (0, 0)
    assert found.difference.above(0) is False


# ---- claims and verdicts -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "seen"),
    [
        ([True, True], "seen"),
        ([True, False], "in part"),
        ([True, None], "in part"),
        ([False, None], "undecided"),
        ([None], "undecided"),
        ([False, False], "not seen"),
    ],
)
def test_a_verdict_follows_from_its_claims(answers: list[bool | None], seen: str) -> None:
    verdict = Verdict(tuple(Claim(f"claim {i}", holds) for i, holds in enumerate(answers)))
    assert verdict.seen == seen
    assert verdict.to_markdown().startswith(f"**{seen.capitalize()}**\n\n- ")


VERDICT = Verdict(
    (
        Claim("the plateau is longer", True, Estimate(4.25, 2.0, INF, 8, "at least"), "2 censored"),
        Claim("it is gone with bias", False, Estimate(-1234.5, -2000.0, -1000.0, 6)),
        Claim("it is sharp", None, Estimate(NAN, -INF, INF, 0)),
        Claim("no grokking", True),
    )
)


def test_a_verdict_survives_json() -> None:
    text = json.dumps(VERDICT.to_dict(), allow_nan=False)
    again = Verdict.from_dict(json.loads(text))
    assert again.to_dict() == VERDICT.to_dict()
    assert again.claims[0] == VERDICT.claims[0]
    assert again.claims[2].estimate is not None
    assert math.isnan(again.claims[2].estimate.value)
    assert again.claims[2].estimate.high == INF


def test_an_endless_number_is_not_read_as_an_unknown_one() -> None:
    endless = Estimate(INF, INF, INF, 8)
    again = Estimate.from_dict(json.loads(json.dumps(endless.to_dict(), allow_nan=False)))
    assert again == endless
    assert again.above(1) is True


def test_a_verdict_as_markdown() -> None:
    assert VERDICT.to_markdown() == (
        "**In part**\n\n"
        "- ✓ the plateau is longer: ≥ 4.25 [2, ∞] (n = 8); 2 censored\n"
        "- ✗ it is gone with bias: −1,234 [−2,000, −1,000] (n = 6)\n"
        "- ? it is sharp: no value (n = 0: too few for an interval)\n"
        "- ✓ no grokking\n"
    )


def test_a_false_verdict_is_not_read() -> None:
    good = VERDICT.to_dict()
    with pytest.raises(ValueError, match="seen is 'seen', but its claims say 'in part'"):
        Verdict.from_dict(good | {"seen": "seen"})
    with pytest.raises(ValueError, match="a verdict has the fields"):
        Verdict.from_dict(good | {"more": 1})
    with pytest.raises(ValueError, match="a claim has the fields"):
        Claim.from_dict({"text": "a"})
    estimate = good["claims"][0]["estimate"]
    for name, value in (("low", "2"), ("n", 1.5), ("bound", "about"), ("value", True)):
        with pytest.raises(ValueError, match=name):
            Estimate.from_dict(estimate | {name: value})
    with pytest.raises(ValueError, match="an estimate has the fields"):
        Estimate.from_dict({"value": 1.0})


def test_a_claim_is_one_line_and_a_verdict_has_one() -> None:
    with pytest.raises(ValueError, match="text of a claim must be one line"):
        Claim("two\nlines", True)
    with pytest.raises(ValueError, match="needs a text"):
        Claim("", True)
    with pytest.raises(ValueError, match="detail of a claim must be one line"):
        dataclasses.replace(VERDICT.claims[3], detail="a\nb")
    with pytest.raises(ValueError, match="at least one claim"):
        Verdict(())
