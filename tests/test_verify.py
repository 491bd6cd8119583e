"""``verify`` passes environments as they are and names what is wrong with broken ones."""

import copy
import dataclasses
import itertools
import json
from importlib import resources

import gymnasium
import numpy as np
import pytest

import icl_bench
from icl_bench import registration
from icl_bench.data import images
from icl_bench.data.images import MissingDataError
from icl_bench.evaluation import verify as module
from icl_bench.evaluation.verify import verify, write_golden
from icl_bench.tasks import projection
from icl_bench.tasks.sampler import TaskSampler

SPLITS = ("train", "val", "seen", "unseen")
LEAKS = {f"{split}: nothing predicts a label" for split in SPLITS}
POOLS, IMAGES = "pools of tasks are disjoint", "no image in both splits"
GOLDEN, FROZEN = "golden integers", "frozen labels"


def wrong(env_id: str, **kwargs) -> set[str]:
    """Names of the checks that do not hold."""
    return {check.name for check in verify(env_id, **kwargs) if not check.holds}


@pytest.fixture
def register():
    """Registers arrays and returns an environment's id; forgets them after the test."""
    before = set(registration._specs)
    names = (f"Mine{n}" for n in itertools.count())

    def add(num_classes: int = 10, count: int = 600, **arrays) -> str:
        rng = np.random.default_rng(num_classes)
        made = {
            split: (
                rng.integers(0, 256, (count, 8, 8), dtype=np.uint8),
                np.sort(np.arange(count) ** 2 // count * num_classes // count).astype(np.uint8),
            )
            for split in ("train", "test")
        }
        ids = icl_bench.register_dataset(next(names), arrays=made | arrays, num_classes=num_classes)
        return ids[-1]

    yield add
    for env_id in set(registration._specs) - before:
        base = registration._specs.pop(env_id).base
        gymnasium.registry.pop(f"icl_bench/{env_id}")
        images._user_rows.pop(base, None)
        for split in ("train", "test"):
            images._user_images.pop((base, split), None)


@pytest.mark.parametrize("env_id", ["Digits-Proj8-v0", "Digits-Proj-v0", "Random-Proj8-v0"])
def test_environments_that_come_with_the_package_hold(env_id: str) -> None:
    checks = verify(env_id)
    assert {check.name: check.detail for check in checks if not check.holds} == {}
    expected = {GOLDEN, FROZEN, POOLS, IMAGES} | LEAKS
    if env_id.startswith("Random"):
        expected -= {IMAGES}
    assert {check.name for check in checks} == expected
    details = {check.name: check.detail for check in checks}
    assert details[GOLDEN] == "equal in seen, train, unseen, val"
    assert details[FROZEN] == "0 of 102,400 differ"


@pytest.mark.parametrize("base", ["MNIST", "FashionMNIST", "KMNIST"])
def test_real_images_hold(base: str, real_data) -> None:
    assert wrong(f"{base}-Proj8-v0", data_dir=real_data) == set()


# Classes of very unequal size, and so many that each has a few examples only.
@pytest.mark.parametrize("num_classes", [2, 3, 10, 200])
def test_an_honest_data_set_of_the_users_own_holds(num_classes: int, register) -> None:
    assert wrong(register(num_classes)) == set()


def test_a_data_set_without_a_training_split(register) -> None:
    env_id = register()
    base = registration.find_spec(env_id).base
    images._user_images.pop((base, "train"))
    images._user_rows[base] = dataclasses.replace(images._user_rows[base], stats_split="test")
    checks = {check.name: check for check in verify(env_id)}
    assert set(checks) == {
        GOLDEN,
        FROZEN,
        POOLS,
        IMAGES,
        "seen: nothing predicts a label",
        "unseen: nothing predicts a label",
    }
    assert all(check.holds for check in checks.values())
    assert checks[IMAGES].detail == "only one split is at hand"


def test_no_data_and_unknown_ids() -> None:
    with pytest.raises(MissingDataError, match="icl-bench download CIFAR10"):
        verify("CIFAR10-Proj8-v0")
    with pytest.raises(ValueError, match="did you mean Digits-Proj8-v0"):
        verify("Digit-Proj8-v0")


def mutate_labels(monkeypatch, mutant) -> None:
    """Every plan's y becomes ``mutant(y)``."""
    plan = TaskSampler.plan

    def mutated(self, ids, repeat=None):
        found = plan(self, ids, repeat)
        return dataclasses.replace(found, y=mutant(found.y))

    monkeypatch.setattr(TaskSampler, "plan", mutated)


LABEL_MUTANTS = {
    "by position": lambda y: np.broadcast_to(np.arange(100) % 10, y.shape).copy(),
    "by position, only the last step": lambda y: np.where(np.arange(100) == 99, 3, y),
    "class order": lambda y: (y[:, :1] + np.arange(100)) % 10,
    "class order, one step in five": lambda y: np.where(
        np.arange(100) % 5 == 4, (np.roll(y, 1, axis=1) + 1) % 10, y
    ),
    "the last but one again, one step in five": lambda y: np.where(
        np.arange(100) % 5 == 4, np.roll(y, 2, axis=1), y
    ),
    "never twice": lambda y: np.where(
        (y == np.roll(y, 1, axis=1)) & (np.arange(100) % 2 == 1), (y + 1) % 10, y
    ),
    "sorted": lambda y: np.sort(y, axis=1),
    "grouped": lambda y: np.take_along_axis(
        y, np.argsort((y + y[:, :1]) % 10, axis=1, kind="stable"), axis=1
    ),
}


@pytest.mark.parametrize("mutant", LABEL_MUTANTS)
def test_labels_that_can_be_predicted_are_reported(mutant: str, monkeypatch, register) -> None:
    env_id = register()
    mutate_labels(monkeypatch, LABEL_MUTANTS[mutant])
    assert wrong(env_id) == LEAKS


def test_a_sampler_that_does_not_shuffle_is_reported(monkeypatch, register) -> None:
    """Distinct examples in the order of the data set, whose labels are sorted."""
    draw = projection.examples
    monkeypatch.setattr(projection, "examples", lambda *args: np.sort(draw(*args), axis=1))
    assert wrong(register()) == LEAKS
    assert wrong("Digits-Proj8-v0") >= {GOLDEN, FROZEN}


def test_a_sampler_that_balances_classes_is_reported(monkeypatch, register) -> None:
    """Round robin through the classes: after a class, it comes again too seldom."""
    rng = np.random.default_rng(0)

    def examples(key, ids, length, size):
        order = rng.permuted(np.tile(np.arange(10), (len(ids) * length // 10, 1)), axis=1)
        start = np.ceil(size * (np.arange(11) / 10) ** 0.5).astype(np.int64)
        pick = rng.integers(start[:-1], start[1:], (len(ids), length, 10))
        return np.take_along_axis(pick, order.reshape(len(ids), length, 1), axis=2)[..., 0]

    monkeypatch.setattr(projection, "examples", examples)
    assert wrong(register()) == LEAKS


def test_one_permutation_for_all_tasks_of_a_pool_is_reported(monkeypatch, register) -> None:
    permutations = TaskSampler.permutations
    monkeypatch.setattr(
        TaskSampler, "permutations", lambda self, tasks: permutations(self, np.zeros_like(tasks))
    )
    assert wrong(register()) >= LEAKS
    assert wrong("Random-Proj8-v0") >= LEAKS | {GOLDEN, FROZEN}


def test_bias_at_meta_test_is_reported(monkeypatch, register) -> None:
    permutations = TaskSampler.permutations

    def biased(self, tasks):
        rho = permutations(self, tasks)
        rho[tasks % 3 == 0] = np.arange(rho.shape[1])
        return rho

    monkeypatch.setattr(TaskSampler, "permutations", biased)
    assert wrong(register()) == LEAKS | {POOLS}


def test_pools_that_share_tasks_are_reported(monkeypatch) -> None:
    key = TaskSampler._key

    def shared(self, purpose, *parts):
        other = copy.copy(self)
        other.distribution = dataclasses.replace(self.distribution, split="train", num_tasks=2**25)
        return key(other, purpose, *parts)

    monkeypatch.setattr(TaskSampler, "_key", shared)
    assert wrong("Digits-Proj8-v0") == {POOLS, GOLDEN, FROZEN}


def test_seen_that_does_not_meet_the_training_tasks_is_reported(monkeypatch, register) -> None:
    permutations = TaskSampler.permutations

    def mutated(self, tasks):
        return permutations(self, tasks + (self.distribution.split == "seen"))

    monkeypatch.setattr(TaskSampler, "permutations", mutated)
    assert wrong(register()) == {POOLS}


def test_a_test_image_among_the_training_images_is_reported(register) -> None:
    env_id = register()
    base = registration.find_spec(env_id).base
    train, test = images._user_images[base, "train"], images._user_images[base, "test"]
    pixels = train.images.copy()
    pixels[[17, 18]] = test.images[[5, 99]]
    other = register(train=(pixels, train.labels), test=(test.images, test.labels))
    assert wrong(other) == {IMAGES}
    (check,) = (check for check in verify(other) if check.name == IMAGES)
    assert check.detail == "2 of 600 test images are training images, too"


@pytest.mark.parametrize("field", ["task", "permutation", "example", "y"])
@pytest.mark.parametrize("split", SPLITS)
def test_another_golden_integer_is_reported(split: str, field: str, monkeypatch) -> None:
    values = module.committed_golden()
    values["Random"][split][field] = (np.array(values["Random"][split][field]) + 1).tolist()
    monkeypatch.setattr(module, "committed_golden", lambda: values)
    # What is golden is tested here, not what leaks.
    check = module._golden("Random", "Random-Proj8-v0", None)
    assert (check.holds, check.detail) == (False, f"other integers in {split}")


def test_one_other_frozen_label_is_reported(monkeypatch) -> None:
    frozen = module.frozen_labels

    def tampered(env_id, num_episodes):
        labels = frozen(env_id, num_episodes).copy()
        labels[1000, 50] = (labels[1000, 50] + 1) % 10
        return labels

    monkeypatch.setattr(module, "frozen_labels", tampered)
    assert wrong("Digits-Proj8-v0") == {FROZEN}
    (check,) = (check for check in verify("Digits-Proj8-v0") if not check.holds)
    assert check.detail == "1 of 102,400 differ"


def test_golden_integers_are_written_as_they_are_committed(tmp_path, monkeypatch) -> None:
    """Those of data sets that are not at hand stay; those that changed are written."""
    committed = resources.files("icl_bench.evaluation") / "frozen" / "golden.json"
    monkeypatch.delenv("ICL_BENCH_DATA", raising=False)
    write_golden(tmp_path / "golden.json", None)
    assert (tmp_path / "golden.json").read_text() == committed.read_text()
    permutations = TaskSampler.permutations
    monkeypatch.setattr(TaskSampler, "permutations", lambda self, k: permutations(self, k + 1))
    write_golden(tmp_path / "other.json", None)
    before, after = (
        json.loads(committed.read_text()),
        json.loads((tmp_path / "other.json").read_text()),
    )
    assert {name for name in before if before[name] != after[name]} == {
        *("Digits", "DigitsLow", "DigitsHigh"),
        "Random",
    }
