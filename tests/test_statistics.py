"""Intervals, paired comparisons and ranks: by hand, by simulation, and against wrong ways."""

import math

import numpy as np
import pytest
import scipy.stats

from icl_bench.evaluation import statistics as st

K, PER_TASK = 16, 16
TASK = np.repeat(np.arange(K), PER_TASK)
DATA_SETS = 1000


# ---- weights -----------------------------------------------------------------------------------


def test_weights_are_golden_shared_and_read_only():
    counts = np.rint(st.bootstrap_weights(16)[:3] * 16).astype(int)
    assert counts.tolist() == [
        [2, 0, 4, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 1],
        [1, 3, 1, 0, 0, 3, 0, 1, 0, 1, 1, 2, 0, 2, 0, 1],
        [2, 0, 0, 0, 1, 1, 0, 2, 1, 0, 1, 2, 2, 1, 2, 1],
    ]
    weights = st.bootstrap_weights(16)
    assert weights is st.bootstrap_weights(16)
    with pytest.raises(ValueError, match="read-only"):
        weights[0, 0] = 0.0


def test_weights_do_not_depend_on_cache_block_or_number_of_replicates():
    weights = st.bootstrap_weights(600).copy()  # several blocks of random words
    st.bootstrap_weights.cache_clear()
    assert np.array_equal(st.bootstrap_weights(600), weights)
    assert np.array_equal(st.bootstrap_weights(600, 7), weights[:7])


def looks_multinomial(weights: np.ndarray) -> bool:
    """Whole counts that sum to K, with the mean, variance and covariance of fair draws; 5 sigma."""
    num_replicates, num_tasks = weights.shape
    counts = weights * num_tasks
    if np.abs(counts - np.rint(counts)).max() > 1e-9 or np.ptp(counts.sum(axis=1)) > 1e-9:
        return False
    deviations = counts - 1
    variance = 1 - 1 / num_tasks
    mean_ok = np.abs(deviations.mean(axis=0)) < 5 * math.sqrt(variance / num_replicates)
    # The fourth central moment of about-Poisson counts is near 4: the variance of d^2 is near 3.
    spread_ok = np.abs((deviations**2).mean(axis=0) - variance) < 5 * math.sqrt(3 / num_replicates)
    lag = (deviations[1:] * deviations[:-1]).mean(axis=0)  # replicates are independent
    lag_ok = np.abs(lag) < 5 * variance / math.sqrt(num_replicates)
    pair = (deviations[:, 1:] * deviations[:, :-1]).mean(axis=0)
    pair_ok = np.abs(pair + 1 / num_tasks) < 5 / math.sqrt(num_replicates)
    return bool(mean_ok.all() and spread_ok.all() and lag_ok.all() and pair_ok.all())


@pytest.mark.parametrize("num_tasks", [5, 16, 64])
def test_weights_are_multinomial(num_tasks):
    weights = st.bootstrap_weights(num_tasks)
    assert weights.shape == (10_000, num_tasks)
    assert np.allclose(weights.sum(axis=1), 1, atol=1e-12)
    assert looks_multinomial(weights)


@pytest.mark.parametrize(
    "mutant",
    [
        lambda rng: np.full((10_000, K), 1 / K),  # no resampling
        lambda rng: rng.dirichlet(np.ones(K), 10_000),  # Bayesian bootstrap
        lambda rng: rng.poisson(1, (10_000, K)) / K,  # rows that do not sum to 1
        lambda rng: rng.multinomial(K, np.r_[0.08, np.full(K - 1, 0.92 / (K - 1))], 10_000) / K,
        lambda rng: rng.multinomial(K // 2, np.full(K, 1 / K), 10_000) * 2 / K,  # half the draws
        lambda rng: np.repeat(rng.multinomial(K, np.full(K, 1 / K), 5_000), 2, axis=0) / K,
        lambda rng: np.sort(rng.multinomial(K, np.full(K, 1 / K), 10_000), axis=1) / K,
    ],
)
def test_wrong_weights_are_rejected(mutant):
    assert not looks_multinomial(mutant(np.random.default_rng(0)))


def test_weights_need_tasks_and_replicates():
    with pytest.raises(ValueError, match="need tasks and replicates, got 0 and 10"):
        st.bootstrap_weights(0, 10)
    with pytest.raises(ValueError, match="got 4 and 0"):
        st.bootstrap_weights(4, 0)


# ---- by hand -----------------------------------------------------------------------------------


def test_task_means_by_hand():
    values = np.array([1.0, 0.0, 0.5, 0.5, 0.0, 1.0])
    tasks, means = st.task_means(values, np.array([9, 2, 9, 2, 9, 2]))
    assert tasks.tolist() == [2, 9]
    assert means == pytest.approx([0.5, 0.5])
    seeds = np.array([[True, False, True, True], [True, True, False, False]])
    assert st.task_means(seeds, np.array([0, 0, 1, 1]))[1] == pytest.approx([0.75, 0.5])


def test_half_width_is_the_larger_side():
    assert st.Interval(0.5, 0.4, 0.55).half_width == pytest.approx(0.1)
    assert st.Interval(0.5, 0.48, 0.55).half_width == pytest.approx(0.05)


def test_expanded_tail_by_hand():
    # sqrt(16/15) · t_{0.975, 15} = 1.032796 · 2.131450 = 2.201352; Phi(-2.201352) = 0.013856
    assert st.expanded_tail(16) == pytest.approx(0.013856, abs=1e-6)
    assert st.expanded_tail(10_000) == pytest.approx(0.025, abs=2e-5)
    assert st.expanded_tail(16, 0.9) > st.expanded_tail(16, 0.95)


@pytest.mark.parametrize("num_good", [3, 4])
def test_bounds_by_hand(num_good):
    """Of 16 tasks m are right: a resample misses them all with probability (1 - m/16)^16."""
    missed = (1 - num_good / 16) ** 16  # 0.0361 for 3, 0.0100 for 4: the tail is 0.0139
    values = (np.arange(16) < num_good).astype(float)
    interval = st.task_interval(values, np.arange(16))
    assert interval.mean == num_good / 16
    assert (interval.low == 0) == (missed > st.expanded_tail(16))
    # The number of right tasks in a resample is binomial: so are the bounds, but for noise.
    law = scipy.stats.binom(16, num_good / 16)
    assert interval.low == law.ppf(st.expanded_tail(16)) / 16
    assert interval.high == law.ppf(1 - st.expanded_tail(16)) / 16


def test_interval_is_what_a_loop_gives():
    rng = np.random.default_rng(0)
    values = rng.random((3, len(TASK)))
    shuffled = rng.permutation(len(TASK))
    means = [values[:, np.equal(TASK, k)].mean() for k in range(K)]
    replicates = sorted(
        sum(w * m for w, m in zip(row, means, strict=True)) for row in st.bootstrap_weights(K)
    )
    tail = st.expanded_tail(K)
    expected = [np.mean(means), np.quantile(replicates, tail), np.quantile(replicates, 1 - tail)]
    for order in (np.arange(len(TASK)), shuffled):
        interval = st.task_interval(values[:, order], TASK[order])
        assert [interval.mean, interval.low, interval.high] == pytest.approx(expected, abs=1e-12)
    assert interval.mean == pytest.approx(values.mean(), abs=1e-12)


def whole_sums(scale: int, num_tasks: int) -> np.ndarray:
    """Task sums of differences: whole numbers over ``scale``; one column hardly varies."""
    rng = np.random.default_rng(scale)
    sums = rng.integers(-PER_TASK * scale, PER_TASK * scale + 1, (num_tasks, 40))
    sums[:, 0] = 7
    sums[1:, 1] = 7
    return sums / scale


@pytest.mark.parametrize("num_tasks", [5, 16, 64])
@pytest.mark.parametrize("scale", [1, 2, 3, 5, 12])
def test_counted_quantiles_are_the_sorted_ones(scale, num_tasks):
    sums = whole_sums(scale, num_tasks)
    assert st._whole_scale(sums) == scale
    tail, per_total = st.expanded_tail(num_tasks), scale * num_tasks * PER_TASK
    counted = st._whole_quantiles(np.rint(sums * scale), tail)
    replicates = st.bootstrap_weights(num_tasks) @ sums / PER_TASK
    expected = np.quantile(replicates, [tail, 1 - tail], axis=0)
    np.testing.assert_allclose(counted / per_total, expected, rtol=0, atol=1e-12)
    assert counted[0, 0] == counted[1, 0]
    if num_tasks > 5:  # five tasks have 126 different resamples: bounds lie far apart
        one_rank_more = st._whole_quantiles(np.rint(sums * scale), tail + 1e-4)
        assert np.abs(one_rank_more / per_total - expected).max() > 1e-6
        if scale == 12:
            assert np.abs(counted - np.rint(counted)).max() > 1e-3  # between two totals


def test_both_ways_to_quantiles_give_the_same_interval(monkeypatch):
    values = np.random.default_rng(0).random((3, len(TASK), 20)) < 0.7
    counted = st.curve_interval(values, TASK)
    monkeypatch.setattr(st, "_whole_scale", lambda sums: None)
    np.testing.assert_allclose(counted, st.curve_interval(values, TASK), rtol=0, atol=1e-12)


def test_sums_that_are_not_whole_are_sorted():
    rng = np.random.default_rng(0)
    assert st._whole_scale(rng.random((K, 3))) is None
    assert st._whole_scale(np.full((K, 1), 1 / 13)) is None  # no small denominator
    assert st._whole_scale(np.full((K, 1), st.MAX_TOTAL / K)) == 1
    assert st._whole_scale(np.full((K, 1), st.MAX_TOTAL / K + 1)) is None  # too many to count
    mixed = np.concatenate([np.full((K, 1), 1 / 3), np.full((K, 1), 1 / 4)], axis=1)
    assert st._whole_scale(mixed) == 12


def test_unequal_tasks_are_resampled_as_a_ratio():
    rng = np.random.default_rng(1)
    task = rng.integers(0, 20, 120)
    values = rng.random(120)
    with pytest.raises(ValueError, match=r"equally many episodes: task \d+ has \d+, task"):
        st.task_interval(values, task)
    interval = st.task_interval(values, task, balanced=False)
    replicates = []
    for row in st.bootstrap_weights(20):
        weight = row[task]
        replicates.append((weight * values).sum() / weight.sum())
    tail = st.expanded_tail(20)
    assert interval.mean == pytest.approx(values.mean(), abs=1e-12)
    assert interval.low == pytest.approx(np.quantile(replicates, tail), abs=1e-12)
    assert interval.high == pytest.approx(np.quantile(replicates, 1 - tail), abs=1e-12)


def test_few_tasks_get_the_t_interval():
    interval = st.task_interval(np.array([0.0, 0.5, 0.5, 1.0]), np.array([0, 0, 1, 1]))
    # Task means 0.25 and 0.75: standard error 0.25, t_{0.975, 1} = 12.7062.
    assert interval.mean == 0.5
    assert interval.half_width == pytest.approx(12.7062 * 0.25, abs=1e-4)
    values = np.random.default_rng(0).random(4)
    interval = st.task_interval(values, np.arange(4))
    low, high = scipy.stats.t.interval(0.95, 3, values.mean(), scipy.stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx((low, high))


def test_many_tasks_get_the_t_interval_and_nothing_jumps():
    values = np.random.default_rng(0).random(st.MAX_BOOTSTRAP_TASKS + 1)
    many = st.task_interval(values, np.arange(len(values)))
    low, high = scipy.stats.t.interval(
        0.95, len(values) - 1, values.mean(), scipy.stats.sem(values)
    )
    assert (many.low, many.high) == pytest.approx((low, high))
    bootstrap = st.task_interval(values[:-1], np.arange(len(values) - 1))
    assert bootstrap.half_width == pytest.approx(many.half_width, rel=0.05)
    st.bootstrap_weights.cache_clear()


def test_curve_interval_is_task_interval_of_each_step():
    values = np.random.default_rng(0).random((2, len(TASK), 5)) < 0.7
    mean, low, high = st.curve_interval(values, TASK)
    for t in range(5):
        interval = st.task_interval(values[:, :, t], TASK)
        assert [mean[t], low[t], high[t]] == pytest.approx(
            [interval.mean, interval.low, interval.high], abs=1e-12
        )


def test_seed_interval_by_hand():
    interval = st.seed_interval(np.array([0.1, 0.2, 0.3]))
    assert interval is not None
    assert interval.mean == pytest.approx(0.2)
    # t_{0.975, 2} = 4.30265, standard error 0.1 / sqrt(3)
    assert interval.high - interval.mean == pytest.approx(4.30265 * 0.1 / math.sqrt(3), abs=1e-6)
    assert interval.mean - interval.low == pytest.approx(interval.high - interval.mean)
    assert st.seed_interval(np.array([0.1, 0.2])) is None
    with pytest.raises(ValueError, match="finite"):
        st.seed_interval(np.array([0.1, np.nan, 0.3]))


# ---- simulated coverage ------------------------------------------------------------------------


def simulated(rng: np.random.Generator, num_tasks: int = K) -> np.ndarray:
    """Right or wrong, one column per data set; tasks differ: p ~ Beta(6, 4), mean 0.6."""
    p = rng.beta(6, 4, (num_tasks, DATA_SETS))
    return (rng.random((num_tasks, PER_TASK, DATA_SETS)) < p[:, None]).reshape(-1, DATA_SETS)


def coverage(low: np.ndarray, high: np.ndarray, truth: float) -> float:
    return float(((low <= truth) & (truth <= high)).mean())


def test_task_interval_covers_and_wrong_ways_do_not():
    values = simulated(np.random.default_rng(0))
    _, low, high = st.curve_interval(values, TASK)
    right = coverage(low, high, 0.6)
    assert 0.93 <= right <= 0.97

    _, low, high = st.curve_interval(values, np.arange(len(TASK)))  # episodes as clusters
    assert coverage(low, high, 0.6) < 0.87

    means = values.reshape(K, PER_TASK, -1).mean(axis=1)
    plain = np.quantile(st.bootstrap_weights(K) @ means, [0.025, 0.975], axis=0)
    assert coverage(plain[0], plain[1], 0.6) < min(0.94, right - 0.01)


@pytest.mark.parametrize("num_tasks", [2, 3, 4, 5, 8])
def test_few_tasks_still_cover(num_tasks):
    values = simulated(np.random.default_rng(num_tasks), num_tasks)
    _, low, high = st.curve_interval(values, np.repeat(np.arange(num_tasks), PER_TASK))
    # Means of a handful of tasks are not quite normal: 90 % at worst, for two tasks.
    assert 0.89 <= coverage(low, high, 0.6) <= 0.98


def paired_data(rng: np.random.Generator, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Two learners of accuracies 0.6 + shift and 0.6 that find the same tasks hard."""
    p = np.clip(rng.normal(0.6, 0.1, (K, 1, DATA_SETS)), 0.05, 0.9)
    hard = rng.random((K, PER_TASK, DATA_SETS))  # shared: they err on the same examples, often
    own = np.where(rng.random(hard.shape) < 0.5, rng.random(hard.shape), hard)
    return (hard < p + shift).reshape(-1, DATA_SETS), (own < p).reshape(-1, DATA_SETS)


def test_paired_difference_covers_and_pairing_narrows():
    a, b = paired_data(np.random.default_rng(0), 0.05)
    difference = a.astype(float) - b
    _, low, high = st.curve_interval(difference, TASK)
    assert 0.93 <= coverage(low, high, 0.05) <= 0.97
    for i in range(3):  # the columns are what the public function gives
        interval = st.paired_difference(a[:, i], b[:, i], TASK)
        assert (interval.low, interval.high) == pytest.approx((low[i], high[i]), abs=1e-12)

    _, low_a, high_a = st.curve_interval(a, TASK)
    _, low_b, high_b = st.curve_interval(b, TASK)
    unpaired = np.hypot(high_a - low_a, high_b - low_b)
    assert np.mean((high - low) / unpaired) < 0.8
    assert (
        coverage(
            difference.mean(axis=0) - unpaired / 2, difference.mean(axis=0) + unpaired / 2, 0.05
        )
        > 0.98
    )  # the wrong way: too wide


def test_equal_learners_are_rarely_called_better():
    a, b = paired_data(np.random.default_rng(1), 0.0)
    better = [st.significantly_better(a[:, i], b[:, i], TASK) for i in range(DATA_SETS)]
    assert 0.01 <= np.mean(better) <= 0.045  # one side of 95 %: 2.5 %


def test_paired_difference_is_antisymmetric_and_averages_seeds():
    rng = np.random.default_rng(0)
    a, b = rng.random((3, len(TASK))) < 0.7, rng.random((1, len(TASK))) < 0.6
    forth, back = st.paired_difference(a, b, TASK), st.paired_difference(b, a, TASK)
    assert forth.mean == pytest.approx(a.mean() - b.mean(), abs=1e-12)
    assert (forth.mean, forth.low, forth.high) == pytest.approx(
        (-back.mean, -back.high, -back.low), abs=1e-12
    )
    averaged = st.paired_difference(a.mean(axis=0), b[0].astype(float), TASK)
    assert averaged.low == pytest.approx(forth.low, abs=1e-12)


# ---- ranks -------------------------------------------------------------------------------------


def test_identical_learners_share_rank_one():
    values = np.random.default_rng(0).random((3, len(TASK))) < 0.6
    assert not st.significantly_better(values, values, TASK)
    assert st.paired_difference(values, values, TASK) == st.Interval(0.0, 0.0, 0.0)
    assert st.ranks([values.mean(axis=0)] * 4, TASK) == [1, 1, 1, 1]


def test_rounding_is_no_advantage():
    """Thirds do not add up exactly: 0.1 + 0.2 against 0.3 in every task."""
    a = np.tile([0.1 + 0.2], 32)
    b = np.tile([0.3], 32)
    assert a[0] > b[0]
    assert not st.significantly_better(a, b, np.arange(32) // 2)
    assert st.ranks([a, b], np.arange(32) // 2) == [1, 1]


def test_ranks_by_hand_need_not_be_transitive():
    """Of 16 tasks, 3 better ones do not count (see ``test_bounds_by_hand``), 4 do."""
    task = np.arange(16)
    right = {m: (task < m).astype(float) for m in (0, 3, 6, 16)}
    # 6 against 3 and 3 against 0: not separated; 6 against 0: separated.
    assert st.ranks([right[0], right[3], right[6]], task) == [2, 1, 1]
    assert st.ranks([right[16], right[0], right[3], right[6]], task) == [1, 3, 2, 2]
    assert st.ranks([right[3]], task) == [1]
    assert st.ranks([], task) == []


def test_ranks_count_significantly_better_entries():
    rng = np.random.default_rng(0)
    columns = [(rng.random(len(TASK)) < p).astype(float) for p in (0.5, 0.55, 0.6, 0.7, 0.72)]
    expected = [
        1 + sum(st.significantly_better(other, column, TASK) for other in columns)
        for column in columns
    ]
    assert st.ranks(columns, TASK) == expected
    assert len(set(expected)) > 2


# ---- errors ------------------------------------------------------------------------------------


def test_errors_name_what_is_wrong():
    values = np.ones(4)
    with pytest.raises(ValueError, match="at least 2 tasks, got 1"):
        st.task_interval(values, np.zeros(4, dtype=int))
    with pytest.raises(ValueError, match="at least 2 tasks, got 1"):
        st.expanded_tail(1)
    with pytest.raises(ValueError, match="task 1 has 1, task 0 has 3"):
        st.task_interval(values, np.array([0, 0, 0, 1]))
    with pytest.raises(ValueError, match="1 values are not finite"):
        st.task_interval(np.array([1.0, np.nan, 0.0, 0.0]), np.array([0, 0, 1, 1]))
    with pytest.raises(ValueError, match="level must lie inside"):
        st.task_interval(values, np.array([0, 0, 1, 1]), level=95.0)
    with pytest.raises(ValueError, match="do not fit 0 episodes"):
        st.task_interval(np.ones(0), np.zeros(0, dtype=int))
