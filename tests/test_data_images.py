"""Base data sets: where they are looked for, what is refused, the user's own."""

import dataclasses
import inspect
import shutil
import zipfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from folders import forbidden_folder, unreadable
from user_sets import restored_registries

import icl_bench
from icl_bench import catalog
from icl_bench.data import images as module
from icl_bench.data.cache import sha256_arrays
from icl_bench.data.images import (
    DataError,
    Images,
    MissingDataError,
    dataset,
    load_images,
    register_dataset,
)
from icl_bench.data.views import load_view

PINNED = [
    (row.name, split, checksum)
    for row in catalog.DATASETS
    if row.source == "torchvision"
    for split, checksum in row.sha256.items()
    if checksum is not None
]
# All that is not pinned, and why: a checksum that was lost shows here.
UNPINNED = {"KMNIST train", "CIFAR10 train", "CIFAR10 test", "SVHN train", "SVHN test"}


def arrays(count: int, seed: int, shape: tuple[int, ...] = (4, 4), classes: int = 3):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, (np.arange(count) % classes).astype(np.uint8)


TRAIN, TEST = arrays(20, 1), arrays(10, 2)


@pytest.fixture
def tiny(monkeypatch) -> catalog.DataSet:
    """A catalog row of its own with 20 + 10 pinned images of 4×4 pixels."""
    row = dataclasses.replace(
        dataset("MNIST"),
        name="Tiny",
        num_classes=3,
        image_shape=(4, 4),
        counts={"train": 20, "test": 10},
        sha256={"train": sha256_arrays(*TRAIN), "test": sha256_arrays(*TEST)},
        stats=dict.fromkeys(catalog.PIXEL_VIEWS),
    )
    monkeypatch.setattr(module, "DATASETS", (*catalog.DATASETS, row))
    return row


@pytest.fixture
def users():
    """Forgets the sets that a test registers."""
    with restored_registries():
        yield


def unchecked(function):
    """Without the tests' check of annotations: what a user meets."""
    return inspect.unwrap(function)


def place(root: Path, split: str, images, labels, name: str = "Tiny", **more) -> Path:
    path = root / "images" / name / f"{split}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, images=images, labels=labels, **more)
    return path


# The catalog


def test_exactly_what_was_not_at_hand_is_unpinned() -> None:
    found = {
        f"{row.name} {split}"
        for row in catalog.DATASETS
        for split in row.counts
        if row.sha256.get(split) is None
    }
    assert found == UNPINNED
    unpinned_stats = {row.name for row in catalog.DATASETS if None in row.stats.values()}
    assert unpinned_stats == {"CIFAR10", "SVHN"}
    for row in catalog.DATASETS:
        assert set(row.stats) == set(catalog.PIXEL_VIEWS)
        assert set(row.sha256) == set(row.counts)
        assert row.sha256.get(row.stats_split) or row.name in ("CIFAR10", "SVHN", "Random")


@pytest.mark.parametrize(("name", "split", "checksum"), PINNED)
def test_real_images_are_those_of_the_catalog(real_data, name, split, checksum) -> None:
    data = load_images(name, split, real_data)
    row = dataset(name)
    assert data.sha256 == checksum
    assert data.images.shape == (row.counts[split], *row.image_shape)
    assert sorted(set(data.labels.tolist())) == list(range(row.num_classes))
    # Independent of the loader: straight from the file.
    with np.load(real_data / "images" / name / f"{split}.npz") as archive:
        assert sha256_arrays(archive["images"], archive["labels"]) == checksum
        np.testing.assert_array_equal(archive["images"], data.images)
        np.testing.assert_array_equal(archive["labels"], data.labels)


@pytest.mark.parametrize("split", ["train", "test"])
def test_halves_of_the_digits_are_its_images_with_classes_from_0(split: str) -> None:
    whole = load_images("Digits", split)
    for name, first in (("DigitsLow", 0), ("DigitsHigh", 5)):
        half = load_images(name, split)
        kept = [i for i, label in enumerate(whole.labels.tolist()) if first <= label < first + 5]
        np.testing.assert_array_equal(half.images, whole.images[kept])
        assert half.labels.tolist() == [int(whole.labels[i]) - first for i in kept]
        assert half.labels.dtype == np.uint8
        assert dataset(name).counts[split] == len(kept)
        assert set(half.labels.tolist()) == set(range(5)) == set(range(dataset(name).num_classes))


# Mean and standard deviation that everybody normalises with, at the original size.
@pytest.mark.parametrize(
    ("name", "split", "mean", "std"),
    [
        ("MNIST", "train", 0.1307, 0.3081),
        ("FashionMNIST", "train", 0.2860, 0.3530),
        ("KMNIST", "test", 0.1846, 0.3416),
    ],
)
def test_real_images_have_their_published_statistics(real_data, name, split, mean, std) -> None:
    data = load_images(name, split, real_data)
    assert data.images.mean() / 255 == pytest.approx(mean, abs=1e-4)
    assert data.images.std() / 255 == pytest.approx(std, abs=1e-4)
    # Labels too: all of these sets are balanced but MNIST, whose rarest digit is 5.
    counts = np.bincount(data.labels)
    assert counts.argmin() == 5 if name == "MNIST" else len(set(counts)) == 1


def test_digits_come_with_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    raw = load_digits()
    train, test = load_images("Digits", "train"), load_images("Digits", "test")
    assert (len(train.labels), len(test.labels)) == (1297, 500)
    assert (train.sha256, test.sha256) == tuple(dataset("Digits").sha256.values())
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), raw.target)
    found = np.concatenate([train.images, test.images])
    assert found.dtype == np.uint8
    # Nearest to value / 16 of all multiples of 1/255.
    np.testing.assert_array_less(np.abs(found / 255 - raw.images / 16), 0.5 / 255 + 1e-12)
    assert [int(found[raw.images == v][0]) for v in (0, 1, 8, 16)] == [0, 16, 128, 255]


def test_digits_of_another_scikit_learn_are_refused(monkeypatch) -> None:
    row = dataset("Digits")
    other = dataclasses.replace(row, sha256={"train": "0" * 64, "test": "0" * 64})
    monkeypatch.setattr(module, "DATASETS", (other,))
    module._digits.cache_clear()
    try:
        with pytest.raises(DataError, match=f"{row.sha256['test']}.*expected 0000.*constraints"):
            load_images("Digits", "test")
    finally:
        module._digits.cache_clear()


def test_synthetic_and_unknown_sets_have_no_images() -> None:
    with pytest.raises(ValueError, match="Random is made from its tasks' keys"):
        load_images("Random", "test")
    with pytest.raises(ValueError, match="unknown data set 'MINST'; did you mean MNIST"):
        load_images("MINST", "test")
    with pytest.raises(ValueError, match="unknown data set 'fashionmnist'; did you mean Fashion"):
        dataset("fashionmnist")
    with pytest.raises(ValueError, match=r"unknown data set 'zzz'; there are MNIST, .*Digits"):
        dataset("zzz")


def test_splits_of_an_environment_are_not_splits_of_a_data_set() -> None:
    with pytest.raises(ValueError, match="splits train and test, not 'unseen'"):
        unchecked(load_images)("Digits", "unseen")


# Where files are looked for


def test_data_dir_comes_first_then_the_variable_then_the_cache(tiny, tmp_path, monkeypatch) -> None:
    folders = [tmp_path / name for name in ("given", "variable", "cache")]
    paths = [place(folder, "test", *TEST) for folder in folders]
    monkeypatch.setenv("ICL_BENCH_DATA", str(folders[1]))
    monkeypatch.setenv("ICL_BENCH_CACHE", str(folders[2]))
    for folder, path in zip(folders, paths, strict=True):
        assert load_images("Tiny", "test", folders[0]).origin == str(path)
        shutil.rmtree(folder / "images")
    with pytest.raises(MissingDataError) as caught:
        load_images("Tiny", "test", folders[0])
    message = str(caught.value)
    for part in ("the test split of Tiny", "icl-bench download Tiny", "ICL_BENCH_DATA", *folders):
        assert str(part) in message


def test_a_file_is_read_once_and_again_after_it_changed(tiny, tmp_path, monkeypatch) -> None:
    path = place(tmp_path, "test", *TEST, source="a mirror")
    first = load_images("Tiny", "test", tmp_path)
    assert load_images("Tiny", "test", tmp_path) is first
    assert first.origin == f"{path}, from a mirror"
    place(tmp_path, "test", TEST[0] ^ 1, TEST[1])
    with pytest.raises(DataError):
        load_images("Tiny", "test", tmp_path)
    place(tmp_path, "test", *TEST)
    assert load_images("Tiny", "test", tmp_path).sha256 == first.sha256


def test_shared_arrays_are_read_only(tiny, tmp_path) -> None:
    place(tmp_path, "test", *TEST)
    data = load_images("Tiny", "test", tmp_path)
    for array in (data.images, data.labels, load_images("Digits", "test").images):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


# What is refused


def refused(root: Path, split: str = "test") -> str:
    """The message, after a check that it names the file and the way out, and repeats."""
    messages = []
    for _ in range(2):  # the second time too: nothing of it was kept
        with pytest.raises(DataError) as caught:
            load_images("Tiny", split, root)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert str(root / "images" / "Tiny" / f"{split}.npz") in messages[0]
    assert "remove it and run `icl-bench download Tiny`" in messages[0]
    return messages[0]


def test_every_truncation_is_refused(tiny, tmp_path) -> None:
    path = place(tmp_path, "test", *TEST)
    whole = path.read_bytes()
    for size in (0, 1, 30, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "truncated, corrupt or no npz" in refused(tmp_path)
    path.write_bytes(whole)
    assert len(load_images("Tiny", "test", tmp_path).labels) == 10


def test_no_flipped_byte_changes_what_is_read(tiny, tmp_path) -> None:
    path = place(tmp_path, "test", *TEST)
    whole = path.read_bytes()
    refusals = 0
    for position in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            data = load_images("Tiny", "test", tmp_path)
        except DataError:
            refusals += 1
        else:  # a byte that means nothing, such as a date
            np.testing.assert_array_equal(data.images, TEST[0])
            np.testing.assert_array_equal(data.labels, TEST[1])
    assert refusals > len(whole) / 3 / 2


def test_a_folder_in_the_place_of_a_file_is_refused(tiny, tmp_path, monkeypatch) -> None:
    path = place(tmp_path / "first", "test", *TEST)
    place(tmp_path / "cache", "test", *TEST)
    monkeypatch.setenv("ICL_BENCH_CACHE", str(tmp_path / "cache"))
    path.unlink()
    path.mkdir()
    # Not passed over in silence for the sound file of a folder that comes later.
    assert f"{path} cannot be read (Is a directory)" in refused(tmp_path / "first")


def test_what_must_not_be_read_is_refused(tiny) -> None:
    with forbidden_folder() as folder:
        path = place(folder, "test", *TEST)
        with unreadable(path):
            assert f"{path} cannot be read (Permission denied)" in refused(folder)
        with unreadable(path.parent), pytest.raises(DataError) as caught:
            load_images("Tiny", "test", folder)
        message = f"{path} cannot be read (Permission denied): make its folder readable"
        assert message in str(caught.value)
        assert "ICL_BENCH_DATA" in str(caught.value)
        assert len(load_images("Tiny", "test", folder).labels) == 10


@pytest.mark.parametrize("damage", ["cut", "swapped", "object", "label", "float", "missing"])
def test_nothing_of_a_refused_file_gets_into_the_cache(tiny, tmp_path, monkeypatch, damage) -> None:
    monkeypatch.setenv("ICL_BENCH_CACHE", str(tmp_path / "cache"))
    content = {"images": TEST[0], "labels": TEST[1]}
    content |= {
        "swapped": {"images": TRAIN[0], "labels": TRAIN[1]},
        "object": {"labels": np.array([{}] * 10, dtype=object)},
        "label": {"labels": TEST[1] + 200},
        "float": {"images": TEST[0] / 255},
    }.get(damage, {})
    path = place(tmp_path, "test", **content)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "missing":
        path.unlink()
    for view in catalog.PIXEL_VIEWS.values():
        with pytest.raises((DataError, MissingDataError)):
            load_view("Tiny", "test", view, tmp_path)
    assert not (tmp_path / "cache").exists()


def test_a_real_file_under_another_name_is_refused(real_data, tmp_path) -> None:
    path = tmp_path / "images" / "MNIST" / "test.npz"
    path.parent.mkdir(parents=True)
    for other in ("KMNIST", "FashionMNIST"):  # the same number, size and labels
        shutil.copy(real_data / "images" / other / "test.npz", path)
        with pytest.raises(DataError, match=rf"{path} is not .* MNIST.*\(that of {other} test\)"):
            load_images("MNIST", "test", tmp_path)


def test_files_that_are_something_else_are_refused(tiny, tmp_path) -> None:
    path = place(tmp_path, "test", *TEST)
    path.write_text("<html>404 not found</html>")
    assert "no npz file" in refused(tmp_path)
    with path.open("wb") as file:
        np.save(file, TEST[0])
    assert "no npz file" in refused(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "lacks the arrays images and labels: images is" in refused(tmp_path)
    np.savez(path, images=TEST[0], label=TEST[1])
    assert "lacks the arrays images and labels: labels is" in refused(tmp_path)
    np.savez(path, images=TEST[0], labels=np.array([{"a": 1}] * 10, dtype=object))
    assert "Object arrays cannot be loaded" in refused(tmp_path)


def test_arrays_of_the_wrong_kind_are_refused(tiny, tmp_path) -> None:
    images, labels = TEST
    wrong = {
        "must be uint8: float32, uint8": (images.astype(np.float32), labels),
        "must be uint8: uint8, int64": (images, labels.astype(np.int64)),
        "(9,) labels for images (10, 4, 4)": (images, labels[:9]),
        "(10, 1) labels": (images, labels[:, None]),
        "must be [N, H, W] or [N, H, W, 3], not (10, 16)": (images.reshape(10, 16), labels),
        "not (10, 4, 4, 1)": (images[..., None], labels),
        "(0,) labels for images (0, 4, 4)": (images[:0], labels[:0]),
        "label 3 is not in [0, 3)": (images, labels + 1),
    }
    for message, pair in wrong.items():
        place(tmp_path, "test", *pair)
        assert message in refused(tmp_path)


def test_a_mislabelled_file_is_refused_with_both_checksums(tiny, tmp_path) -> None:
    train, test = (sha256_arrays(*pair) for pair in (TRAIN, TEST))
    place(tmp_path, "test", *TRAIN)
    place(tmp_path, "train", *TEST)
    message = refused(tmp_path)
    assert f"is not the test split of Tiny: SHA-256 of its arrays is {train}" in message
    assert f"(that of Tiny train), expected {test}" in message
    assert f"is {test} (that of Tiny test), expected {train}" in refused(tmp_path, "train")
    # One pixel, one label, another order.
    changed = TEST[0].copy()
    changed[3, 2, 1] ^= 1
    for pair in ((changed, TEST[1]), (TEST[0], TEST[1][::-1]), (TEST[0][::-1], TEST[1])):
        place(tmp_path, "test", *pair)
        assert test in refused(tmp_path)


def test_an_unpinned_file_is_held_to_number_and_size(tiny, tmp_path, monkeypatch) -> None:
    row = dataclasses.replace(tiny, sha256={"train": None, "test": None})
    monkeypatch.setattr(module, "DATASETS", (row,))
    other = arrays(10, 5)
    place(tmp_path, "test", *other)
    np.testing.assert_array_equal(load_images("Tiny", "test", tmp_path).images, other[0])
    for wrong in (arrays(9, 1), arrays(10, 1, (4, 5)), arrays(10, 1, (4, 4, 3))):
        place(tmp_path, "test", *wrong)
        message = refused(tmp_path)
        assert f"images {wrong[0].shape}, expected (10, 4, 4)" in message


# The user's own


@pytest.mark.parametrize("kind", ["numpy", "torch", "int64", "folder", "files"])
def test_a_set_of_the_users_own(users, tmp_path, kind: str) -> None:
    pairs = {"train": arrays(20, 1, (5, 6, 3)), "test": arrays(10, 2, (5, 6, 3))}
    if kind in ("folder", "files"):
        for split, (images, labels) in pairs.items():
            # Labels of any integer type are common in files of one's own.
            np.savez(tmp_path / f"{split}.npz", images=images, labels=labels.astype(np.int64))
        files = {split: tmp_path / f"{split}.npz" for split in pairs}
        row = register_dataset("Mine", npz=tmp_path if kind == "folder" else files)
    else:
        convert = {"numpy": np.array, "torch": torch.tensor, "int64": np.int64}[kind]
        given = {s: (convert(images), convert(labels)) for s, (images, labels) in pairs.items()}
        row = register_dataset("Mine", arrays=given, title="t", licence="l", citation="c")
        for images, labels in given.values():
            images[...], labels[...] = 0, 0  # a copy was taken
        assert (row.title, row.licence, row.citation) == ("t", "l", "c")
    assert dataset("Mine") == row
    assert (row.source, row.num_classes, row.image_shape) == ("user", 3, (5, 6, 3))
    assert dict(row.counts) == {"train": 20, "test": 10}
    assert row.stats_split == "train"
    assert set(row.stats.values()) == {None}
    for split, pair in pairs.items():
        data = load_images("Mine", split)
        np.testing.assert_array_equal(data.images, pair[0])
        np.testing.assert_array_equal(data.labels, pair[1])
        assert data.images.dtype == data.labels.dtype == np.uint8
        assert data.sha256 == row.sha256[split] == sha256_arrays(*pair)


def test_one_split_is_enough(users) -> None:
    row = register_dataset("Mine", arrays={"test": TEST}, num_classes=7)
    assert (row.stats_split, row.num_classes) == ("test", 7)
    with pytest.raises(MissingDataError, match="Mine was registered without a train split"):
        load_images("Mine", "train")


def test_names_are_letters_and_digits_and_taken_once(users) -> None:
    for name in ("", "1st", "My-Set", "My_Set", "../x", "Ünïcode"):
        with pytest.raises(ValueError, match="letters and digits"):
            register_dataset(name, arrays={"test": TEST})
    register_dataset("Mine", arrays={"test": TEST})
    for name in ("Mine", "MNIST", "Random"):
        with pytest.raises(ValueError, match=f"there is a data set {name} already"):
            register_dataset(name, arrays={"test": TEST})
    with pytest.raises(ValueError, match="did you mean Mine"):
        dataset("Mime")


IMAGES, LABELS = TEST
BAD = {
    "either npz": {},
    "or arrays": {"npz": "folder", "arrays": {"test": TEST}},
    "no split given": {"arrays": {}},
    "Bad test: give the pair (images, labels)": {"arrays": {"test": IMAGES}},
    "splits are train and test, not 'validation'": {"arrays": {"validation": TEST}},
    "arrays= maps train, test or both": {"arrays": TEST},
    "Bad test: images are no array of integers": {"arrays": {"test": ([[1], [2, 3]], LABELS)}},
    "Bad test: labels are no array of integers": {
        "arrays": {"test": (IMAGES, torch.zeros(10, dtype=torch.bfloat16))}
    },
    "Bad test: images must be integers in [0, 255], not bool": {
        "arrays": {"test": (IMAGES > 9, LABELS)}
    },
    "Bad test: images must be integers in [0, 255], not float64": {
        "arrays": {"test": (IMAGES / 255, LABELS)}
    },
    "Bad test: labels must be integers in [0, 255], not float64": {
        "arrays": {"test": (IMAGES, LABELS.astype(float))}
    },
    "Bad test: images must be in [0, 255]: found 256": {
        "arrays": {"test": (IMAGES.astype(int) * 0 + 256, LABELS)}
    },
    "Bad test: labels must be in [0, 255]: found -1": {
        "arrays": {"test": (IMAGES, LABELS.astype(int) - 1)}
    },
    "label 2 is not in [0, 2)": {"arrays": {"test": TEST}, "num_classes": 2},
    "in [2, 256], not 1": {"arrays": {"test": (IMAGES, LABELS * 0)}},
    "an integer in [2, 256], not 3.5": {"arrays": {"test": TEST}, "num_classes": 3.5},
    "in [2, 256], not True": {"arrays": {"test": TEST}, "num_classes": True},
    "in [2, 256], not 257": {"arrays": {"test": TEST}, "num_classes": 257},
    "(9,) labels for images (10, 4, 4)": {"arrays": {"test": (IMAGES, LABELS[:9])}},
    "not (10, 4, 4, 4)": {"arrays": {"test": arrays(10, 1, (4, 4, 4))}},
    "train and test images differ in size": {
        "arrays": {"train": arrays(10, 1, (4, 5)), "test": TEST}
    },
}


@pytest.mark.parametrize("message", BAD)
def test_bad_sets_are_refused_and_nothing_is_registered(users, monkeypatch, message) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is checked below)
        unchecked(register_dataset)("Bad", **BAD[message])
    assert message in str(caught.value)
    with pytest.raises(ValueError, match="unknown data set"):
        dataset("Bad")
    # The public function makes no environments of it either.
    ids = set(icl_bench.registry), set(gymnasium.registry)
    monkeypatch.setattr(module, "register_dataset", unchecked(register_dataset))
    with pytest.raises(ValueError) as again:  # noqa: PT011
        icl_bench.register_dataset("Bad", **BAD[message])
    assert str(again.value) == str(caught.value)
    assert (set(icl_bench.registry), set(gymnasium.registry)) == ids


def test_missing_and_damaged_files_of_a_users_set_are_named(users, tmp_path) -> None:
    with pytest.raises(MissingDataError, match=f"neither train.npz nor test.npz in {tmp_path}"):
        register_dataset("Bad", npz=tmp_path)
    path = tmp_path / "test.npz"
    with pytest.raises(FileNotFoundError, match=str(path)):
        register_dataset("Bad", npz={"test": path})
    path.write_bytes(b"PK")
    with pytest.raises(DataError, match=str(path)):
        register_dataset("Bad", npz=tmp_path)
    np.savez(path, images=IMAGES, labels=np.array([{}] * 10, dtype=object))
    with pytest.raises(DataError, match="Object arrays"):
        register_dataset("Bad", npz=tmp_path)
    with pytest.raises(ValueError, match="unknown data set"):
        dataset("Bad")


def test_images_protect_their_arrays() -> None:
    data = Images(IMAGES.copy(), LABELS.copy(), "", "")
    assert not data.images.flags.writeable
    assert not data.labels.flags.writeable


def test_environments_of_a_users_set_appear_and_play(users) -> None:
    pairs = {"train": arrays(150, 1, (9, 9), 7), "test": arrays(120, 2, (9, 9), 7)}
    ids = icl_bench.register_dataset("Mine", arrays=pairs)
    assert ids == tuple(f"Mine-{view}-v0" for view in catalog.VIEWS)
    for env_id, view in zip(ids, catalog.VIEWS.values(), strict=True):
        spec = icl_bench.registry[env_id]
        assert (spec.num_features, spec.num_classes) == (view.num_features, 7)
        assert f"icl_bench/{env_id}" in gymnasium.registry
        if view.network is not None:  # see test_features.py
            continue
        env = icl_bench.make(env_id, split="unseen")
        token, _ = env.reset(seed=0)
        assert token.shape == (view.num_features + 7,)
        batch = env.unwrapped.episodes([0, 1])
        assert batch.x.shape == (2, 100, view.num_features)
        assert batch.num_classes == 7
        assert set(batch.y.unique().tolist()) == set(range(7))
    with pytest.raises(ValueError, match="there is a data set Mine already"):
        icl_bench.register_dataset("Mine", arrays=pairs)


def test_registries_are_as_before_after_a_users_set() -> None:
    before = dict(icl_bench.registry), dict(gymnasium.registry)
    with restored_registries():
        icl_bench.register_dataset("Mine", arrays={"test": TEST})
        assert "Mine-Proj-v0" in icl_bench.registry
    assert (dict(icl_bench.registry), dict(gymnasium.registry)) == before
    with pytest.raises(ValueError, match="unknown data set"):
        dataset("Mine")


def test_real_colour_photographs_as_a_users_set(users, real_data) -> None:
    folder = real_data / "images" / "CIFAR10mini"
    if not folder.is_dir():
        pytest.skip(f"no photographs in {folder}")
    ids = icl_bench.register_dataset("CIFAR10mini", npz=folder, licence="research use")
    row = dataset("CIFAR10mini")
    assert (row.image_shape, dict(row.counts)) == ((32, 32, 3), {"train": 9000, "test": 1000})
    with np.load(folder / "test.npz") as archive:
        images, labels = archive["images"], archive["labels"]
    colour = load_view("CIFAR10mini", "test", catalog.VIEWS["Proj"])
    assert (colour.pixels.shape, colour.copies) == ((1000, 3072), 1)
    planes = images.transpose(0, 3, 1, 2).reshape(1000, -1)
    np.testing.assert_array_equal(colour.pixels, planes.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(colour.labels, labels)
    # The well-known means of CIFAR-10's channels are 0.4914, 0.4822, 0.4465.
    assert colour.mean == pytest.approx((0.4914 + 0.4822 + 0.4465) / 3, abs=0.005)
    for view, num_features in (("Proj", 3072), ("Proj14", 196), ("Proj8", 64), ("Proj4", 16)):
        assert f"CIFAR10mini-{view}-v0" in ids
        batch = icl_bench.make(f"CIFAR10mini-{view}-v0", split="unseen").unwrapped.episodes([0, 16])
        assert batch.x.shape == (2, 100, num_features)
        assert batch.x.isfinite().all()
        assert 0.3 < batch.x.std() < 3
    # An example of an episode is a row of the view, normalised and projected by its task.
    env = icl_bench.make(ids[0], split="unseen").unwrapped
    batch, plan = env.episodes([0]), env.source.plan([0])
    projection, _ = env.task(int(batch.task_id[0]))
    pixels = torch.from_numpy(colour.pixels[plan.drawn[0, plan.slot[0, :3]]]).double()
    expected = (pixels - colour.mean) / colour.std @ projection.double().T
    torch.testing.assert_close(batch.x[0, :3].double(), expected, rtol=0, atol=1e-4)
