"""Plateaus, transitions and phases: known answers, coverage, and wrong ways that fail."""

import math

import numpy as np
import pytest

from baselines.experiments import findings, findings_curves
from baselines.experiments.findings import Plateau

Array = np.ndarray
INF = math.inf
CHANCE = math.log(10)
STEPS = np.arange(0, 10_000, 50)


def sigmoid_curve(middle: float, width: float, settle: float = 100.0) -> Array:
    """From 2.9 down to chance in a few ``settle`` steps, then to 0.8 around step ``middle``."""
    drop = (CHANCE - 0.8) / (1 + np.exp(-(STEPS - middle) / width))
    return CHANCE + (2.9 - CHANCE) * np.exp(-STEPS / settle) - drop


def noisy(curve: Array, seed: int, spread: float = 0.1) -> Array:
    rng = np.random.default_rng(seed)
    spikes = np.where(rng.random(len(curve)) < 0.02, -1.5, 0.0)  # batches of lucky tasks
    return curve + rng.normal(0, spread, len(curve)) + spikes


def made(lengths: Array, budget: float = INF) -> list[Plateau]:
    return [Plateau(0.0, float(min(v, budget)), bool(v > budget), 0.8) for v in lengths]


def is_95(share: float, runs: int) -> bool:
    return abs(share - 0.95) < 5 * math.sqrt(0.95 * 0.05 / runs)


# ---- plateau -------------------------------------------------------------------------------------


def test_a_plateau_ends_where_a_fifth_of_the_drop_is_done() -> None:
    found = findings.plateau(STEPS, sigmoid_curve(6000, 200, 1000.0), CHANCE)
    assert found.end == pytest.approx(6000 - 200 * math.log(4), abs=10)
    # 0.597 · exp(−s/1000) = 0.1 · chance
    assert found.start == pytest.approx(1000 * math.log((2.9 - CHANCE) / (0.1 * CHANCE)), abs=10)
    assert found.length == found.end - found.start
    assert not found.censored
    assert found.final == pytest.approx(0.8, abs=1e-3)


def test_noise_and_spikes_hardly_move_a_plateau_and_would_without_smoothing() -> None:
    truth = 6000 - 200 * math.log(4)
    curves = [noisy(sigmoid_curve(6000, 200), seed) for seed in range(10)]
    ends = [findings.plateau(STEPS, curve, CHANCE).end for curve in curves]
    assert np.abs(np.array(ends) - truth).max() < 150
    single = [np.r_[curve[:100], 0.7, curve[101:]] for curve in curves]
    assert [findings.plateau(STEPS, curve, CHANCE).end for curve in single] == pytest.approx(
        ends, abs=150
    )
    # The last point above the limit in a curve that spikes up after the drop, unsmoothed.
    up = [np.r_[curve[:180], 2.3, curve[181:]] for curve in curves]
    assert np.abs([findings.plateau(STEPS, curve, CHANCE).end - truth for curve in up]).max() < 150
    raw = [findings.plateau(STEPS, curve, CHANCE, window=1).end for curve in up]
    assert min(raw) > 8900


def test_a_step_stays_where_it_is() -> None:
    curve = np.where(STEPS < 5000, CHANCE, 0.5)
    found = findings.plateau(STEPS, curve, CHANCE)
    assert 4950 <= found.end <= 5000
    drop = findings.sharpness(STEPS, curve, CHANCE)
    assert drop is not None
    assert drop.steps <= 50


def test_a_curve_that_ends_at_chance_is_censored() -> None:
    for curve in (np.full(200, CHANCE), sigmoid_curve(20_000, 200), np.full(200, 2.2)):
        found = findings.plateau(STEPS, noisy(curve, 0), CHANCE)
        assert found.censored
        assert found.end == STEPS[-1]
    # Back at the plateau is not left for good.
    back = np.where((STEPS > 3000) & (STEPS < 6000), 0.8, CHANCE)
    assert findings.plateau(STEPS, back, CHANCE).censored
    assert findings.sharpness(STEPS, back, CHANCE) is None


def test_a_loss_above_chance_says_nothing() -> None:
    found = findings.plateau(STEPS, np.full(200, 5.0), CHANCE)
    assert (found.length, found.censored) == (0, True)


def test_curves_that_never_rest_have_no_length() -> None:
    found = findings.plateau(STEPS, np.full(200, 0.5), CHANCE)
    assert (found.length, found.censored) == (0, False)
    drop = findings.sharpness(STEPS, np.full(200, 0.5), CHANCE)
    assert drop is not None
    assert drop.relative == INF


def test_a_common_final_loss_makes_an_unfinished_drop_comparable() -> None:
    whole = sigmoid_curve(6000, 400)
    part = STEPS <= 6000  # stopped half-way down
    truth = findings.plateau(STEPS, whole, CHANCE).end
    early = findings.plateau(STEPS[part], whole[part], CHANCE).end
    given = findings.plateau(STEPS[part], whole[part], CHANCE, final=0.8).end
    assert given == pytest.approx(truth, abs=30)
    assert early < truth - 200
    assert findings.plateau(STEPS[STEPS < 5000], whole[STEPS < 5000], CHANCE, final=0.8).censored
    assert findings.sharpness(STEPS[part], whole[part], CHANCE, final=0.8) is None


def test_sharp_drops_are_told_from_lines_and_from_decay() -> None:
    sharp = findings.sharpness(STEPS, noisy(sigmoid_curve(6000, 100), 0), CHANCE)
    line = findings.sharpness(STEPS, CHANCE * (1 - 0.9 * STEPS / STEPS[-1]), CHANCE)
    decay = findings.sharpness(STEPS, CHANCE * np.exp(-STEPS / 1500), CHANCE, final=1e-9)
    assert sharp is not None
    assert line is not None
    assert decay is not None
    assert sharp.relative < 0.1
    assert sharp.steps == pytest.approx(2 * 100 * math.log(4), abs=120)
    assert line.relative == pytest.approx(3, rel=0.1)
    assert decay.relative == pytest.approx(6.2, rel=0.1)


def test_drops_that_are_not_done_are_not_left_out_of_their_median() -> None:
    sharp = [(STEPS, sigmoid_curve(6000, 50 + 10 * seed)) for seed in range(8)]
    found = findings.median_sharpness(sharp, CHANCE, final=0.8)
    assert found.below(1) is True
    assert found.bound == "exact"
    assert found.n == 8
    # Of two that have not left it nothing is known; a drop that lasts longer is known to.
    late = [(STEPS, sigmoid_curve(20_000, 200))] * 2
    half = findings.median_sharpness(sharp[:6] + late, CHANCE, final=0.8)
    assert (half.value, half.below(1), half.high) == (half.value, None, INF)
    slow = [(STEPS, CHANCE - 0.55 * np.minimum(1, STEPS / 2000))] * 8
    assert findings.median_sharpness(slow, CHANCE, final=0.8).above(1) is True
    assert findings.median_sharpness(sharp[:5], CHANCE, final=0.8).below(1) is None


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"steps": STEPS[::-1]}, "steps must rise"),
        ({"loss": np.full(200, np.nan)}, "200 of 200 losses are not finite"),
        ({"loss": np.ones(3), "steps": STEPS[:3]}, "a curve of 3 points is too short"),
        ({"chance": 0.0}, "chance is the loss of guessing"),
        ({"left": 1.0}, "left must lie inside"),
        ({"final": 3.0}, "final must lie below chance"),
        ({"window": 4}, "window must be an odd number"),
    ],
)
def test_wrong_curves_are_named(change: dict[str, object], match: str) -> None:
    arguments = {"steps": STEPS, "loss": np.ones(200), "chance": CHANCE} | change
    with pytest.raises(ValueError, match=match):
        findings.plateau(**arguments)  # type: ignore[arg-type]


# ---- lengths over seeds --------------------------------------------------------------------------


def test_median_length_by_hand() -> None:
    lengths = np.array([3.0, 1.0, 8.0, 4.0, 6.0, 5.0])
    found = findings.median_length(made(lengths))
    assert (found.value, found.low, found.high, found.bound) == (4.5, 1, 8, "exact")
    found = findings.median_length(made(lengths, 5.5))
    assert (found.value, found.low, found.high, found.bound) == (4.5, 1, INF, "exact")
    found = findings.median_length(made(lengths, 3.5))
    assert (found.value, found.low, found.high, found.bound) == (3.5, 1, INF, "at least")
    assert findings.median_length(made(lengths[:5])).high == INF  # five seeds are too few
    assert findings.median_length([]).above(0) is None


def test_length_ratio_by_hand() -> None:
    found = findings.length_ratio(made(np.full(4, 6.0)), made(np.full(4, 2.0)))
    assert (found.value, found.low, found.high, found.n) == (3, 3, 3, 8)
    a, b = np.array([8.0, 9, 10, 11]), np.array([1.0, 2, 4, 5])
    found = findings.length_ratio(made(a), made(b))
    ratios = np.sort((a[:, None] / b).ravel())
    assert found.value == pytest.approx(np.median(ratios))
    assert (found.low, found.high) == (ratios[0], ratios[-1])  # P(U = 0) = 1/70
    assert findings.length_ratio(made(a[:3]), made(b[:3])).above(0) is None  # 1/20
    gone = findings.length_ratio(made(np.zeros(4)), made(b))
    assert gone.below(0.5) is True
    assert findings.length_ratio(made(b), made(np.zeros(4))).above(1) is True
    assert findings.length_ratio(made(np.zeros(4)), made(np.zeros(4))).above(0) is None


@pytest.mark.parametrize(("m", "n"), [(4, 4), (5, 7), (8, 8), (3, 20)])
def test_ranks_that_bound_a_ratio_are_those_of_the_exact_test(m: int, n: int) -> None:
    """The null of Mann and Whitney's U, drawn: ranks of m numbers among m + n."""
    rng = np.random.default_rng(0)
    ranks = rng.random((100_000, m + n)).argsort(axis=1)[:, :m]
    u = ranks.sum(axis=1) - m * (m - 1) // 2
    k = findings_curves._rank_test_count(m, n)
    error = 5 * math.sqrt(0.025 * 0.975 / 100_000)
    assert (u < k).mean() < 0.025 + error
    assert (u < k + 1).mean() > 0.025 - error


def test_ratios_of_censored_curves_are_bounds() -> None:
    a, b = np.array([20.0, 30, 40, 50]), np.array([1.0, 2, 2, 4])
    found = findings.length_ratio(made(a, 10), made(b))
    assert (found.bound, found.value, found.high) == ("at least", 5.0, INF)
    assert found.low == 10 / 4
    assert found.above(2) is True
    found = findings.length_ratio(made(b), made(a, 10))
    assert (found.bound, found.value, found.low) == ("at most", 0.2, 0)
    assert found.below(0.5) is True
    found = findings.length_ratio(made(a, 10), made(a, 10))
    assert (found.bound, found.above(0)) == ("unknown", None)


def test_intervals_of_lengths_cover_and_do_not_if_censoring_is_ignored() -> None:
    rng, runs, budget = np.random.default_rng(0), 1000, 4.0
    ratio, censored, ignored, median = (np.zeros(runs, dtype=bool) for _ in range(4))
    for i in range(runs):
        a, b = 4 * rng.lognormal(0, 0.4, 8), rng.lognormal(0, 0.4, 8)
        cut = np.minimum(a, budget)
        for found, told in (
            (findings.length_ratio(made(a), made(b)), ratio),
            (findings.length_ratio(made(a, budget), made(b)), censored),
            (findings.length_ratio(made(cut), made(b)), ignored),
        ):
            told[i] = found.low <= 4 <= found.high
        found = findings.median_length(made(a, budget))
        median[i] = found.low <= 4 <= found.high
    assert is_95(ratio.mean(), runs)
    tolerance = 5 * math.sqrt(0.95 * 0.05 / runs)
    assert min(censored.mean(), median.mean()) > 0.95 - tolerance
    assert ignored.mean() < 0.9 - tolerance


# ---- transition ----------------------------------------------------------------------------------

TASKS = np.repeat(2 ** np.arange(8, 17), 6)


def test_a_transition_is_found_with_its_interval() -> None:
    rng, runs, middle = np.random.default_rng(0), 60, 12.6
    hits, values = [], []
    for _ in range(runs):
        chance = 1 / (1 + np.exp(-2 * (np.log2(TASKS) - middle)))
        found = findings.transition(TASKS, rng.random(len(TASKS)) < chance)
        values.append(math.log2(found.tasks.value))
        hits.append(found.tasks.low <= 2**middle <= found.tasks.high)
    assert is_95(float(np.mean(hits)), runs)
    assert np.mean(values) == pytest.approx(middle, abs=5 * np.std(values) / math.sqrt(runs))


def test_a_transition_without_overlap_lies_in_the_gap_and_has_a_width() -> None:
    found = findings.transition(TASKS, TASKS >= 2**13)
    assert 2**12 < found.tasks.value < 2**13
    assert found.tasks.low <= 2**12 * 1.1
    assert found.tasks.high >= 2**13 / 1.1
    assert found.tasks.high / found.tasks.low < 4
    assert found.slope == INF
    assert (found.shares[2**12], found.shares[2**13]) == (0, 1)


def test_no_transition_is_a_bound_or_undecided() -> None:
    none = findings.transition(TASKS, np.zeros(len(TASKS), dtype=bool))
    assert (none.tasks.bound, none.tasks.value, none.tasks.high) == ("at least", 2**16, INF)
    assert none.tasks.above(2**14) is True
    every = findings.transition(TASKS, np.ones(len(TASKS), dtype=bool))
    assert (every.tasks.bound, every.tasks.value, every.tasks.low) == ("at most", 2**8, 0)
    # Falling, or the same everywhere: no midpoint is excluded.
    falling = findings.transition(TASKS, TASKS < 2**12)
    assert (falling.tasks.low, falling.tasks.high) == (0, INF)
    assert findings.transition(np.empty(0), np.empty(0, dtype=bool)).tasks.above(0) is None
    with pytest.raises(ValueError, match="must be positive"):
        findings.transition(np.zeros(2), np.ones(2, dtype=bool))


# ---- phases --------------------------------------------------------------------------------------


def gains(low: float, *levels: float, seeds: int = 5) -> Array:
    """Rises at nine numbers of tasks: ``low``, then the levels of the last of them."""
    means = np.r_[np.full(9 - len(levels), low), levels]
    rng = np.random.default_rng(0)
    return np.repeat(means, seeds) + rng.normal(0, 0.01, 9 * seeds)


NUM_TASKS = np.repeat(2 ** np.arange(8, 17), 5)


def test_three_phases_and_their_boundaries() -> None:
    found = findings.phases(
        NUM_TASKS, gains(0, 0.3, 0.5, 0.6, 0.6, 0.6), gains(0, 0.4, 0.6), gains(0, 0.3)
    )
    assert list(found.labels.values()) == [
        *["memorises"] * 4,
        *["identifies"] * 3,
        *["learns"] * 2,
    ]
    assert found.identification == findings.Boundary(2**11, 2**12)
    assert found.learning == findings.Boundary(2**14, 2**15)
    assert found.monotone is True
    assert found.cross[2**16].above(0.2) is True


def test_seeds_that_disagree_leave_a_number_of_tasks_undecided() -> None:
    unseen = gains(0, 0.3, 0.6)
    unseen[NUM_TASKS == 2**15] = [0, 0, 0.6, 0.6, 0]
    found = findings.phases(NUM_TASKS, gains(0.6), unseen, unseen)
    assert found.labels[2**15] == "undecided"
    assert found.learning == findings.Boundary(2**14, 2**16)
    single = findings.phases(NUM_TASKS[::5], gains(0)[::5], gains(0)[::5], gains(0)[::5])
    assert set(single.labels.values()) == {"undecided"}
    assert single.monotone is None
    assert single.learning == findings.Boundary(None, None)


def test_phases_out_of_order_are_said() -> None:
    found = findings.phases(NUM_TASKS, gains(0.6), gains(0, 0.6, 0.6, 0), gains(0))
    assert found.monotone is False
    assert found.learning is None
    assert found.identification == findings.Boundary(None, 2**8)


def test_a_learner_at_chance_does_not_memorise() -> None:
    flat = gains(0)
    last = np.where(NUM_TASKS <= 2**12, 0.9, 0.1) + flat
    found = findings.phases(NUM_TASKS, flat, flat, flat, seen_last=last, chance=0.1)
    assert found.labels[2**12] == "memorises"
    assert found.labels[2**13] == "at chance"
    with pytest.raises(ValueError, match="belong together"):
        findings.phases(NUM_TASKS, flat, flat, flat, chance=0.1)
