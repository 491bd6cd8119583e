"""The sampler: splits, pools, streams, bias, repeats; purity; label leaks and shuffling."""

import dataclasses
from typing import Any

import laws
import numpy as np
import pytest
import torch

from icl_bench.catalog import View
from icl_bench.tasks import sampler
from icl_bench.tasks.sampler import TaskDistribution, TaskSampler

SIZE = 200
VIEW = View("Test", 4, 4, 1)
LARGE = View("Large", 18, 18, 1)


def make(
    view: View = VIEW, synthetic: bool = False, size: int = SIZE, **changes: Any
) -> TaskSampler:
    rng = np.random.default_rng(0)
    distribution = TaskDistribution(
        base="Test",
        num_classes=10,
        num_examples=None if synthetic else size,
        split="train",
        num_tasks=1000,
        bias=0.0,
        single_task=0.0,
        repeat=0.0,
        episode_length=20,
        seed=0,
        task_seed=0,
    )
    distribution = dataclasses.replace(distribution, **changes)
    pixels = torch.from_numpy(rng.random((size, view.num_features), dtype=np.float32))
    labels = (np.arange(size) % 10).astype(np.uint8)
    if synthetic:
        return TaskSampler(distribution, view, None, 1, None, (0.5, 12**-0.5), "cpu")
    return TaskSampler(distribution, view, pixels, 1, labels, (0.5, 12**-0.5), "cpu")


VARIANTS = {
    "finite": {},
    "unbounded": {"num_tasks": None},
    "unbounded, short cut": {"num_tasks": None, "view": LARGE},
    "finite, large": {"view": LARGE},
    "val": {"split": "val"},
    "val, short cut": {"split": "val", "num_tasks": None, "view": LARGE},
    "unseen": {"split": "unseen"},
    "seen": {"split": "seen"},
    "repeats": {"repeat": 0.5},
    "repeats, short cut": {"repeat": 0.5, "num_tasks": None, "view": LARGE},
    "biased": {"bias": 0.9, "single_task": 0.1},
    "synthetic": {"synthetic": True},
    "synthetic, short cut": {"synthetic": True, "num_tasks": None, "view": LARGE},
}


@pytest.mark.parametrize("kwargs", VARIANTS.values(), ids=VARIANTS)
def test_episodes_are_pure(kwargs: dict[str, Any]) -> None:
    """The same integers for every batch size and order, and floats to 1e-5."""
    source = make(**kwargs)
    ids = np.arange(64)
    together = source.episodes(ids)
    backwards = source.episodes(ids[::-1].copy())
    assert torch.equal(together.y, backwards.y.flip(0))
    assert torch.equal(together.task_id, backwards.task_id.flip(0))
    assert torch.allclose(together.x, backwards.x.flip(0), atol=1e-5)
    for k in (0, 17, 63):
        alone = source.episodes(ids[k : k + 1])
        assert torch.equal(alone.y[0], together.y[k])
        assert torch.allclose(alone.x[0], together.x[k], atol=1e-5)
    again = make(**kwargs).episodes(ids)
    assert torch.equal(again.x, together.x)


@pytest.mark.parametrize("kwargs", VARIANTS.values(), ids=VARIANTS)
def test_inputs_and_labels_belong_to_the_task(kwargs: dict[str, Any]) -> None:
    """y = ρ(label of the example); the Gram matrix of x is near that of the normalised inputs."""
    source = make(**kwargs)
    plan = source.plan(np.arange(50))
    batch = source.realise(plan)
    z = (source.inputs(plan) - source.stats[0]) / source.stats[1]
    if source.labels is not None:
        label = source.labels[plan.example]
        assert (plan.y == np.take_along_axis(plan.permutation, label, 1)).all()
    if not source._short_cut and not source.distribution.unbounded:
        for b in (0, 49):
            a = source.projection(int(plan.task[b]))
            assert torch.allclose(batch.x[b], z[b] @ a.T, atol=1e-4)
    gram = torch.bmm(batch.x, batch.x.transpose(1, 2)).mean(0)
    expected = torch.bmm(z, z.transpose(1, 2)).mean(0)
    scale = expected.diagonal().mean()
    assert ((gram - expected).abs() < 0.5 * scale).all()
    assert abs(float(gram.diagonal().mean() / scale) - 1) < 0.1


def test_split_pools_are_disjoint() -> None:
    """The same k is another task in another pool, and the training task in split seen."""
    by_split = {split: make(split=split) for split in ("train", "seen", "val", "unseen")}
    matrices = {split: source.projection(3) for split, source in by_split.items()}
    assert torch.equal(matrices["train"], matrices["seen"])
    for a, b in (("train", "val"), ("train", "unseen"), ("val", "unseen")):
        assert abs(np.corrcoef(matrices[a].ravel(), matrices[b].ravel())[0, 1]) < 5 / 16
    many = np.arange(1000)
    rho = {split: source.permutations(many) for split, source in by_split.items()}
    assert (rho["train"] == rho["seen"]).all()
    for a, b in (("train", "val"), ("train", "unseen"), ("val", "unseen")):
        assert abs((rho[a] == rho[b]).mean() - 0.1) < 5 * 0.3 / 100


def test_projection_is_keyed_by_size_pool_task_seed_and_k_alone() -> None:
    first = make()
    for other in (
        make(base="Other"),
        make(seed=5),
        make(bias=0.5),
        make(num_tasks=4),
        make(split="seen"),
    ):
        assert torch.equal(first.projection(3), other.projection(3))
    for other in (make(task_seed=1), make(split="val")):
        assert not torch.equal(first.projection(3), other.projection(3))
    assert not torch.equal(first.projection(3), first.projection(2))


def test_task_ids() -> None:
    ids = np.arange(5000)
    assert (make(split="unseen").task_ids(ids) == ids // 16).all()
    assert (make(split="val").task_ids(ids + 2**20) == ids).all()
    assert (make(num_tasks=None).task_ids(ids) == ids).all()
    drawn = make(num_tasks=50).task_ids(ids)
    laws.examples(drawn.reshape(-1, 10), 50, repeats=True)
    huge = make(num_tasks=2**40).task_ids(ids)
    assert 2**39 < huge.max() < 2**40
    assert abs(huge.mean() / 2**39 - 1) < 5 * 12**-0.5 / 5000**0.5 * 2
    assert not (make(seed=1, num_tasks=50).task_ids(ids) == drawn).all()
    single = make(num_tasks=1000, single_task=0.3).task_ids(ids)
    assert abs((single == 0).mean() - 0.3007) < 5 * (0.3 * 0.7 / 5000) ** 0.5


def test_unbounded_tasks_are_new_for_every_episode_and_stream() -> None:
    a, b = (make(num_tasks=None, seed=s).episodes(np.arange(200)) for s in (0, 1))
    assert not torch.allclose(a.x, b.x)
    rho = [make(num_tasks=None, seed=s).permutations(np.arange(5000)) for s in (0, 1)]
    assert abs((rho[0] == rho[1]).mean() - 0.1) < 0.01
    laws.permutations(rho[0])


def test_bias_is_decided_by_task_and_never_touches_evaluation() -> None:
    many = np.arange(5000)
    biased = make(bias=0.9).permutations(many)
    kept = (biased == biased[np.newaxis, 0]).all(1)
    values, counts = np.unique(biased, axis=0, return_counts=True)
    fixed = values[counts.argmax()]
    kept = (biased == fixed).all(1)
    assert abs(kept.mean() - 0.9) < 5 * (0.09 / 5000) ** 0.5
    # A higher bias keeps the tasks of a lower one.
    half = (make(bias=0.5).permutations(many) == fixed).all(1)
    assert (half <= kept).all()
    assert (make(bias=0.9, split="seen").permutations(many) == biased).all()
    for split in ("val", "unseen"):
        uniform = make(bias=0.9, split=split).permutations(many)
        assert (uniform == make(split=split).permutations(many)).all()
        laws.permutations(uniform)
    with pytest.raises(AssertionError):  # the mutant: bias applied at meta-test
        laws.permutations(biased)
    assert (make(bias=1.0).permutations(many) == fixed).all()


def test_examples_follow_the_stream() -> None:
    ids = np.arange(4000)
    drawn = make().plan(ids).example
    laws.examples(drawn, SIZE)
    for other in (make(seed=1), make(split="val"), make(split="unseen"), make(base="Other")):
        assert not (other.plan(ids[:5]).example == drawn[:5]).all()
    assert (make(num_tasks=None).plan(ids[:5]).example == drawn[:5]).all()


def test_repeated_points() -> None:
    source = make(repeat=0.4)
    ids = np.arange(3000)
    plan = source.plan(ids)
    distinct = np.array([len(set(row)) for row in plan.example.tolist()])
    assert abs(plan.repeated.mean() - 0.4) < 5 * (0.24 / 3000) ** 0.5
    assert (distinct[plan.repeated] <= 10).all()
    assert (distinct[~plan.repeated] == 20).all()
    laws.examples(plan.slot[plan.repeated], 10, repeats=True)
    # Annealing is pure: the same episodes repeat as long as the fraction allows it.
    lower = source.plan(ids, repeat=0.1)
    assert (lower.repeated <= plan.repeated).all()
    assert (lower.example[lower.repeated] == plan.example[lower.repeated]).all()
    assert not make(repeat=0.4, split="unseen").plan(ids).repeated.any()
    # Equal points have equal projections.
    batch = source.realise(source.plan(ids[:50]))
    for b in np.flatnonzero(plan.repeated[:50]):
        for example in set(plan.example[b].tolist()):
            rows = batch.x[b][torch.from_numpy(plan.example[b] == example)]
            assert torch.allclose(rows, rows[:1].expand_as(rows), atol=1e-6)


@pytest.mark.parametrize("split", ["seen", "val", "unseen"])
def test_repeats_never_touch_evaluation(split: str) -> None:
    source = make(split=split, repeat=1.0)
    assert not source.plan(np.arange(50)).repeated.any()
    assert not source.plan(np.arange(50), 1.0).repeated.any()


def test_a_batch_without_any_repeated_episode() -> None:
    """A small share leaves some batches with none of them, and some with nothing else."""
    source = make(episode_length=12)
    shares = [source.plan(np.arange(4 * s, 4 * s + 4), 0.3).repeated.mean() for s in range(100)]
    assert {0.0, 0.25, 0.5} <= set(shares)
    for s in np.flatnonzero(np.array(shares) == 0.0)[:3]:
        assert len(source.episodes(np.arange(4 * s, 4 * s + 4), 0.3)) == 4


def test_the_fixed_permutation_belongs_to_the_task_set() -> None:
    """Two streams of one task set share it; another task set has another."""
    tasks = np.arange(500)
    rho = make(bias=0.9).permutations(tasks)
    assert (make(bias=0.9, seed=5).permutations(tasks) == rho).all()
    assert (make(bias=0.9, task_seed=1).permutations(tasks) == rho).mean() < 0.5


def test_a_task_met_again_by_the_short_cut_has_other_normals() -> None:
    """Validation tasks repeat: with the normals of the first time inputs would be correlated."""
    source = make(split="val", num_tasks=None, view=LARGE)
    plan = source.plan(np.array([3]))
    later = dataclasses.replace(plan, episode=plan.episode + sampler.VAL_TASKS)
    first, second = source.realise(plan).x, source.realise(later).x
    assert abs(float(torch.corrcoef(torch.stack([first.ravel(), second.ravel()]))[0, 1])) < 0.1


def test_random_tasks() -> None:
    """10 points per task, uniform in [0, 1]^D with uniform labels, drawn with replacement."""
    source = make(synthetic=True, split="unseen", episode_length=100)
    plan = source.plan(np.arange(32))
    images = source.inputs(plan)
    assert 0 <= float(images.min()) < 0.01 < 0.99 < float(images.max()) < 1
    distinct = {tuple(row.tolist()) for row in images[:16].reshape(-1, 16)}
    assert len(distinct) == 10  # episodes 0 … 15 share task 0 and its points
    for b in range(32):  # one point, one label
        pairs = {(int(s), int(y)) for s, y in zip(plan.slot[b], plan.y[b], strict=True)}
        assert len(pairs) == len(set(plan.slot[b].tolist()))
    many = make(synthetic=True).plan(np.arange(3000))
    assert abs(np.bincount(many.y.ravel()) / many.y.size - 0.1).max() < 0.01
    other = make(synthetic=True, split="seen", num_tasks=1000)
    assert not np.array_equal(other._points(np.array([0])), source._points(np.array([0])))
    assert np.array_equal(other._points(np.array([0])), make(synthetic=True)._points(np.array([0])))


def test_no_label_leak() -> None:
    """Neither position nor class order predicts labels, though the data are sorted by class."""
    source = make(size=1000)
    source.labels = np.sort(source.labels)
    y = source.plan(np.arange(6000)).y
    by_position = np.stack([np.bincount(row, minlength=10) for row in y.T]) / len(y)
    assert abs(by_position - 0.1).max() < 5 * (0.09 / len(y)) ** 0.5
    follows = (y[:, 1:] == y[:, :-1]).mean()
    assert abs(follows - 99 / 999) < 5 * (0.09 / y[:, 1:].size) ** 0.5
    after = ((y[:, 1:] - y[:, :-1]) % 10 == 1).mean()
    assert abs(after - 0.1) < 5 * (0.09 / y[:, 1:].size) ** 0.5


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    make().episodes(np.arange(3))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": 1.5}, r"bias must be in \[0, 1\], not 1.5"),
        ({"repeat": -0.1}, "repeat must be in"),
        ({"bias": float("nan")}, "bias must be in"),
        ({"episode_length": 0}, "episode_length must be at least 1"),
        ({"num_tasks": -4}, r"num_tasks must be at least 1 and below 2\^62, not -4"),
        ({"num_tasks": 2**62}, "num_tasks must be at least 1"),
        ({"seed": -1}, "seed must be in"),
        ({"split": "seen", "num_tasks": None}, "give a finite num_tasks"),
        ({"single_task": 0.5, "num_tasks": None}, "single_task needs a finite num_tasks"),
        ({"episode_length": 201}, "use episode_length <= 200"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_bad_tasks() -> None:
    with pytest.raises(ValueError, match="unbounded tasks have no numbered"):
        make(num_tasks=None).projection(0)
    with pytest.raises(ValueError, match=r"task 1000 is not in \[0, 1000\)"):
        make().projection(1000)
    with pytest.raises(ValueError, match="task -1"):
        make(split="unseen").projection(-1)


def test_memory_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Projections of a batch are never held at once: at most GROUP_BYTES of them."""
    from icl_bench.tasks import projection

    monkeypatch.setattr(projection, "GROUP_BYTES", 4 * 324 * 324 * 2)
    sizes = []
    original = projection.normals

    def spy(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = original(*args, **kwargs)
        sizes.append(out.numel() * 4)
        return out

    monkeypatch.setattr(projection, "normals", spy)
    make(view=LARGE).episodes(np.arange(32))
    assert max(sizes) <= projection.GROUP_BYTES
    assert sum(sizes) == 32 * 324 * 324 * 4
    assert sampler.NUM_POINTS == 10
