"""Views: what becomes of a pixel, the statistics of the catalog, the cached files."""

import dataclasses
import errno
import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import forbidden_folder, full_disk, unprivileged
from user_sets import restored_registries

from icl_bench.catalog import PIXEL_VIEWS, View
from icl_bench.data import cache as cache_module
from icl_bench.data import images as images_module
from icl_bench.data import views
from icl_bench.data.cache import sha256_file
from icl_bench.data.images import MissingDataError, dataset, load_images, register_dataset
from icl_bench.data.views import chunks, load_view, resize, view_stats

PROJ, PROJ14, PROJ8 = PIXEL_VIEWS["Proj"], PIXEL_VIEWS["Proj14"], PIXEL_VIEWS["Proj8"]


@pytest.fixture
def users():
    """Forgets the sets that a test registers."""
    with restored_registries():
        yield


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder; returns where views lie in it."""
    monkeypatch.setenv("ICL_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "views"


def random_images(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def register(name: str, *splits: str, shape=(8, 8), count: int = 50) -> None:
    labels = (np.arange(count) % 3).astype(np.uint8)
    pairs = {s: (random_images(count, *shape, seed=len(s)), labels) for s in splits}
    register_dataset(name, arrays=pairs)


# What becomes of a pixel


def triangle(size_in: int, size_out: int, antialias: bool = True) -> np.ndarray:
    """Weights [out, in] of linear interpolation between pixel centres, from its definition.

    Shrinking, the triangle is as much wider as the output pixels are.
    """
    scale = size_in / size_out
    width = max(scale, 1.0) if antialias else 1.0
    centres = (np.arange(size_out) + 0.5) * scale
    distance = np.abs(np.arange(size_in) + 0.5 - centres[:, None]) / width
    weights = np.maximum(0.0, 1.0 - distance)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("size", "view"),
    [
        ((28, 28), PROJ),
        ((28, 28), PROJ14),
        ((28, 28), PROJ8),
        ((8, 8), PROJ),
        ((5, 9), View("Odd", 7, 4, 1)),
        ((3, 3), View("Tiny", 2, 5, 1)),
    ],
)
def test_resizing_is_separable_triangle_interpolation(size, view: View) -> None:
    images = random_images(6, *size)
    rows, columns = triangle(size[0], view.height), triangle(size[1], view.width)
    expected = np.einsum("oh,nhw,pw->nop", rows, images / 255, columns)
    found = resize(images, view)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.reshape(6, -1), atol=1e-6)
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-6
    if min(size) > max(view.height, view.width):  # the test sees missing antialiasing
        rows, columns = (triangle(28, view.height, False), triangle(28, view.width, False))
        aliased = np.einsum("oh,nhw,pw->nop", rows, images / 255, columns)
        assert np.abs(found - aliased.reshape(6, -1)).max() > 0.05


def test_halving_by_hand() -> None:
    # Centres 1 and 3 of 4 pixels of width 1: distances ½, ½, 1½ over 2 → ¾, ¾, ¼ of 7/4.
    found = resize(np.array([[[0, 255, 0, 0]]], dtype=np.uint8), View("Half", 1, 2, 1))
    np.testing.assert_allclose(found, [[3 / 7, 1 / 7]], atol=1e-6)


def test_the_same_size_is_exactly_a_division() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    expected = (every.astype(np.float32) / np.float32(255)).reshape(4, 64)
    np.testing.assert_array_equal(resize(every, PROJ8), expected)
    assert {0.0, 1.0} <= set(expected.ravel().tolist())


def test_colour_is_flattened_as_channel_height_width() -> None:
    images = random_images(2, 32, 32, 3)
    found = resize(images, PROJ)
    assert found.shape == (2, 3072)
    for c, h, w in ((0, 0, 0), (1, 0, 0), (2, 31, 31), (0, 5, 7), (1, 30, 2)):
        expected = images[:, h, w, c].astype(np.float32) / np.float32(255)
        np.testing.assert_array_equal(found[:, c * 1024 + h * 32 + w], expected)


def test_grey_is_rec_601_luma_without_rounding() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (10, 20, 30)]
    images = np.array(colours, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    # 10 · 0.299 + 20 · 0.587 + 30 · 0.114 = 18.15, which no uint8 can hold.
    expected = np.array([0.299, 0.587, 0.114, 1.0, 18.15 / 255])
    np.testing.assert_allclose(resize(images, PROJ8), expected[:, None].repeat(64, 1), atol=1e-6)


def test_colour_becomes_grey_and_small() -> None:
    images = random_images(4, 28, 28, 3)
    luma = images / 255 @ np.array([0.299, 0.587, 0.114])
    weights = triangle(28, 14)
    expected = np.einsum("oh,nhw,pw->nop", weights, luma, weights).reshape(4, -1)
    np.testing.assert_allclose(resize(images, PROJ14), expected, atol=1e-6)


def test_a_view_of_many_images_is_that_of_each() -> None:
    images = random_images(5000, 6, 6)
    parts = list(chunks(images, PROJ8))
    assert len(parts) > 1
    np.testing.assert_array_equal(np.concatenate(parts)[4321], resize(images[4321:4322], PROJ8)[0])
    assert sum(map(len, parts)) == 5000


def test_one_copy_of_a_grey_image_is_stored(users) -> None:
    grey, small = load_view("Digits", "test", PROJ), load_view("Digits", "test", PROJ8)
    assert (grey.pixels.shape, grey.copies) == ((500, 1024), 3)
    assert (small.pixels.shape, small.copies) == ((500, 64), 1)
    register("Colour", "train", shape=(9, 9, 3))
    colour, small = load_view("Colour", "train", PROJ), load_view("Colour", "train", PROJ8)
    assert (colour.pixels.shape, colour.copies) == ((50, 3072), 1)
    assert (small.pixels.shape, small.copies) == ((50, 64), 1)
    # Copying three channels, channel first, is tiling.
    images = load_images("Digits", "test").images[:5]
    three = np.repeat(images[..., None], 3, axis=3)
    np.testing.assert_array_equal(np.tile(grey.pixels[:5], 3), resize(three, PROJ))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_view_is_what_resize_makes_with_labels_and_checksum(split) -> None:
    data, images = load_view("Digits", split, PROJ14), load_images("Digits", split)
    np.testing.assert_array_equal(data.pixels, resize(images.images, PROJ14))
    np.testing.assert_array_equal(data.labels, images.labels)
    assert data.sha256 == images.sha256 == dataset("Digits").sha256[split]


# Statistics


def test_statistics_are_numpys() -> None:
    pixels = np.random.default_rng(0).random((5000, 7), dtype=np.float32)
    found = view_stats(np.array_split(pixels, 9))
    wide = pixels.astype(np.float64)
    np.testing.assert_allclose(found, (wide.mean(), wide.std()), rtol=1e-12)


@pytest.mark.parametrize("view", PIXEL_VIEWS.values(), ids=lambda view: view.name)
@pytest.mark.parametrize(
    "name", ["MNIST", "FashionMNIST", "KMNIST", "Digits", "DigitsLow", "DigitsHigh"]
)
def test_statistics_of_the_catalog_are_those_of_the_data(name: str, view: View, request) -> None:
    row = dataset(name)
    folder = None if name == "Digits" else request.getfixturevalue("real_data")
    found = view_stats(chunks(load_images(name, row.stats_split, folder).images, view))
    np.testing.assert_allclose(found, row.stats[view.name], rtol=2e-8)
    assert row.stats_split == ("test" if name == "KMNIST" else "train")
    # The check sees the other split and another view.
    other = dataset("MNIST" if name != "MNIST" else "KMNIST")
    for stats in (*[row.stats[v] for v in PIXEL_VIEWS if v != view.name], *other.stats.values()):
        assert not np.allclose(found, stats, rtol=2e-8)


def test_statistics_of_random_points_are_those_of_their_law() -> None:
    mean, std = dataset("Random").stats["Proj"]
    points = np.random.default_rng(0).random(1_000_000)
    assert abs(points.mean() - mean) < 5 * std / 1000
    # The deviation of a deviation: √((μ₄ − σ⁴) / n) / 2σ with μ₄ = 1/80.
    assert abs(points.std() - std) < 5 * ((1 / 80 - 1 / 144) / 1e6) ** 0.5 / (2 * std)
    assert set(dataset("Random").stats.values()) == {(mean, std)}


def test_a_pinned_row_decides(monkeypatch) -> None:
    row = dataclasses.replace(dataset("Digits"), stats=dict.fromkeys(PIXEL_VIEWS, (0.25, 2.0)))
    monkeypatch.setattr(images_module, "DATASETS", (row,))
    data = load_view("Digits", "test", PROJ8)
    assert (data.mean, data.std, data.stats_split) == (0.25, 2.0, "train")


def test_unpinned_statistics_are_those_of_the_training_split(users, cache, monkeypatch) -> None:
    register("Mine", "train", "test")
    wide = resize(load_images("Mine", "train").images, PROJ8).astype(np.float64)
    for split in ("test", "train"):
        data = load_view("Mine", split, PROJ8)
        np.testing.assert_allclose((data.mean, data.std), (wide.mean(), wide.std()), rtol=1e-12)
        assert data.stats_split == "train"
    # A new process finds them in the cache.
    views._verified.cache_clear()
    monkeypatch.setattr(views, "_build", None)
    again = load_view("Mine", "test", PROJ8)
    assert (again.mean, again.std) == (data.mean, data.std)


def test_statistics_of_a_set_with_a_test_split_only(users) -> None:
    register("Mine", "test")
    data = load_view("Mine", "test", PROJ8)
    assert data.stats_split == "test"
    assert data.mean == pytest.approx(float(data.pixels.mean(dtype=np.float64)), rel=1e-12)


def test_a_catalog_set_needs_its_training_split_for_statistics(tmp_path, monkeypatch) -> None:
    row = dataclasses.replace(
        dataset("CIFAR10"), image_shape=(8, 8), counts={"train": 20, "test": 20}
    )
    monkeypatch.setattr(images_module, "DATASETS", (row,))
    folder = tmp_path / "images" / "CIFAR10"
    folder.mkdir(parents=True)
    labels = (np.arange(20) % 10).astype(np.uint8)
    np.savez(folder / "test.npz", images=random_images(20, 8, 8), labels=labels)
    with pytest.raises(MissingDataError, match=r"train split of CIFAR10.*icl-bench download"):
        load_view("CIFAR10", "test", PROJ8, tmp_path)
    np.savez(folder / "train.npz", images=random_images(20, 8, 8) // 2, labels=labels)
    assert load_view("CIFAR10", "test", PROJ8, tmp_path).mean == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("value", [0, 7, 255])
def test_equal_pixels_cannot_be_normalised(users, value: int) -> None:
    images = np.full((9, 28, 28), value, dtype=np.uint8)
    register_dataset("Flat", arrays={"train": (images, np.arange(9, dtype=np.uint8))})
    for view in PIXEL_VIEWS.values():
        with pytest.raises(ValueError, match=r"all pixels of Flat \(train\) are equal"):
            load_view("Flat", "train", view)


# Cached files


def cached(cache: Path) -> Path:
    found = sorted(cache.glob("*.npy"))
    assert len(found) == 1
    return found[0]


def test_a_view_is_one_file_with_its_checksum(cache) -> None:
    data = load_view("Digits", "test", PROJ8)
    path = cached(cache)
    assert path.name == f"Digits-test-8x8x1-f{views.FORMAT}-{data.sha256[:16]}.npy"
    note = json.loads(path.with_suffix(".json").read_text())
    assert note["sha256"] == sha256_file(path)
    assert note["shape"] == [500, 64]
    np.testing.assert_array_equal(np.load(path, allow_pickle=False), data.pixels)
    assert sorted(os.listdir(cache)) == sorted([path.name, path.with_suffix(".json").name])


def test_an_array_is_mapped_and_writing_to_it_leaves_the_file_alone(cache) -> None:
    data = load_view("Digits", "test", PROJ8)
    assert isinstance(data.pixels, np.memmap)
    before = sha256_file(cached(cache))
    torch.from_numpy(data.pixels).fill_(7)  # without PyTorch's warning of read-only arrays
    assert (data.pixels == 7).all()
    assert sha256_file(cached(cache)) == before
    assert load_view("Digits", "test", PROJ8).pixels.max() <= 1


def test_a_file_is_verified_once_per_process(cache, monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(views, "sha256_file", lambda path: calls.append(path) or sha256_file(path))
    load_view("Digits", "test", PROJ8)
    assert len(calls) == 1  # when it was built
    for _ in range(3):
        load_view("Digits", "test", PROJ8)
    assert len(calls) == 2


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def other_statistics(path: Path) -> None:
    note = json.loads(path.read_text())
    path.write_text(json.dumps({**note, "mean": note["mean"] + 0.1}))


DAMAGES = {
    "one bit": flip,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "empty": lambda path: path.write_bytes(b""),
    "another array": lambda path: np.save(path, np.zeros((500, 64), np.float32)),
    "no note": lambda path: path.with_suffix(".json").unlink(),
    "half a note": lambda path: path.with_suffix(".json").write_text('{"sha2'),
    "an empty note": lambda path: path.with_suffix(".json").write_text("{}"),
    "no object": lambda path: path.with_suffix(".json").write_text("[]"),
    "other statistics": lambda path: other_statistics(path.with_suffix(".json")),
    "another's note": lambda path: path.with_suffix(".json").write_text(
        json.dumps({"sha256": "0" * 64, "shape": [500, 64], "mean": 0, "std": 1})
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_built_again(cache, damage: str) -> None:
    expected = np.array(load_view("Digits", "test", PROJ8).pixels)
    path = cached(cache)
    before = {file.name: file.read_bytes() for file in cache.iterdir()}
    DAMAGES[damage](path)
    views._verified.cache_clear()  # a new process
    np.testing.assert_array_equal(load_view("Digits", "test", PROJ8).pixels, expected)
    assert {file.name: file.read_bytes() for file in cache.iterdir()} == before


def test_damage_is_seen_in_the_process_that_verified_it(cache) -> None:
    expected = np.array(load_view("Digits", "test", PROJ8).pixels)
    load_view("Digits", "test", PROJ8)
    flip(cached(cache))
    np.testing.assert_array_equal(load_view("Digits", "test", PROJ8).pixels, expected)


def test_damage_by_another_process_is_seen_even_with_the_old_date(cache) -> None:
    expected = np.array(load_view("Digits", "test", PROJ8).pixels)
    load_view("Digits", "test", PROJ8)  # verified and remembered
    path, dates = cached(cache), os.stat(cached(cache))
    np.save(cache / "other.npy", np.zeros_like(expected))
    os.replace(cache / "other.npy", path)
    os.utime(path, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    np.testing.assert_array_equal(load_view("Digits", "test", PROJ8).pixels, expected)


KILLED = """
import os
from icl_bench.catalog import PIXEL_VIEWS
from icl_bench.data import cache, views

left, replace = int(os.environ["LEFT"]), os.replace

def replace_or_die(*paths):
    global left
    if left == 0:
        os._exit(9)
    left -= 1
    replace(*paths)

cache.os.replace = replace_or_die
views.load_view("Digits", "test", PIXEL_VIEWS["Proj8"])
"""


@pytest.mark.parametrize("left", [0, 1])
def test_a_build_that_is_killed_before_any_of_its_renames_is_made_again(cache, left: int) -> None:
    def killed() -> None:
        environment = {**os.environ, "LEFT": str(left)}
        command = [sys.executable, "-c", KILLED]
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert run.returncode == 9, run.stderr

    def abandoned() -> list[Path]:
        return [path for path in cache.iterdir() if path.name.startswith(".")]

    killed()
    assert not list(cache.glob("[!.]*.npy"))  # nobody takes a file for whole
    assert len(list(cache.glob("[!.]*.json"))) == left
    assert len(abandoned()) == 2 - left
    expected = resize(load_images("Digits", "test").images, PROJ8)
    data = load_view("Digits", "test", PROJ8)
    np.testing.assert_array_equal(data.pixels, expected)
    # Beside a damaged file: the note of the new bytes makes nobody trust the old ones.
    (path,) = cache.glob("[!.]*.npy")
    flip(path)
    killed()
    again = load_view("Digits", "test", PROJ8)
    np.testing.assert_array_equal(again.pixels, expected)
    assert (again.mean, again.std) == (data.mean, data.std)
    # What the killed processes left goes with the next build that is a day later.
    old = time.time() - 1.1 * cache_module.ABANDONED
    for file in abandoned():
        os.utime(file, (old, old))
    flip(path)
    load_view("Digits", "test", PROJ8)
    assert sorted(os.listdir(cache)) == sorted([path.name, path.with_suffix(".json").name])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("at", [".json", ".npy"])
def test_a_failing_rename_is_one_error_and_leaves_nothing_half(
    cache, monkeypatch, number: int, at: str
) -> None:
    replace = os.replace

    def fail(source, target) -> None:
        if str(target).endswith(at):
            raise OSError(number, os.strerror(number))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(cache_module.os, "replace", fail)
        with pytest.raises(OSError, match=f"{at} in {cache}") as caught:
            load_view("Digits", "test", PROJ8)
    message = str(caught.value)
    assert caught.value.errno == number
    assert message.count("cannot write") == message.count("ICL_BENCH_CACHE") == 1
    assert [path.suffix for path in cache.iterdir()] == ([] if at == ".json" else [".json"])
    assert load_view("Digits", "test", PROJ8).pixels.shape == (500, 64)


def test_a_cache_below_a_file_is_named(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ICL_BENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match=f"in {tmp_path}/file/cache/views.*ICL_BENCH_CACHE"):
        load_view("Digits", "test", PROJ8)
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_is_named_and_nothing_is_left(cache) -> None:
    load_images("Digits", "test")
    with (
        full_disk(room=50_000),
        pytest.raises(OSError, match=f"cannot write Digits-test.* in {cache}.*ICL_BENCH_CACHE"),
    ):
        load_view("Digits", "test", PROJ8)
    assert os.listdir(cache) == []
    assert load_view("Digits", "test", PROJ8).pixels.shape == (500, 64)


def test_a_forbidden_cache_is_named_but_serves_what_it_holds(monkeypatch) -> None:
    with forbidden_folder() as folder:
        monkeypatch.setenv("ICL_BENCH_CACHE", str(folder))
        expected = np.array(load_view("Digits", "test", PROJ8).pixels)
        views._verified.cache_clear()
        with unprivileged(folder):
            np.testing.assert_array_equal(load_view("Digits", "test", PROJ8).pixels, expected)
            with pytest.raises(PermissionError, match=f"{folder}.*ICL_BENCH_CACHE"):
                load_view("Digits", "test", PROJ14)
        assert len(os.listdir(folder / "views")) == 2


def build_with_another(folder: str, barrier, results) -> None:
    """In a process of its own: make a view while another process makes it too."""
    os.environ["ICL_BENCH_CACHE"] = folder
    waited = []

    def checksum(path) -> str:
        if not waited:  # both have written their whole temporary file and renamed neither
            waited.append(barrier.wait(timeout=120))
        return sha256_file(path)

    views.sha256_file = checksum
    data = load_view("Digits", "train", PROJ)
    results.put((np.array(data.pixels).tobytes(), data.mean, len(waited)))


def test_two_processes_may_build_one_view_at_once(cache) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (str(cache.parent), barrier, results)
    workers = [context.Process(target=build_with_another, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=180) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    assert found[0] == found[1]
    assert found[0][2] == 1  # each did build
    assert found[0][0] == resize(load_images("Digits", "train").images, PROJ).tobytes()
    path = cached(cache)
    assert sorted(os.listdir(cache)) == sorted([path.name, path.with_suffix(".json").name])
    assert json.loads(path.with_suffix(".json").read_text())["sha256"] == sha256_file(path)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_a_terminal_and_for_large_views_only(
    users, cache, monkeypatch
) -> None:
    register("Large", "train", count=2**14 + 1)
    register("Small", "train")
    shown = {}
    for stream in (io.StringIO(), Terminal()):
        for name in ("Large", "Small"):
            with monkeypatch.context() as patch:
                patch.setattr(sys, "stderr", stream)
                load_view(name, "train", PROJ)
            shown[type(stream).__name__, name] = stream.getvalue()
        shutil.rmtree(cache)
    assert shown["StringIO", "Small"] == shown["StringIO", "Large"] == ""
    assert "resizing Large train 32x32x3" in shown["Terminal", "Large"]
    assert "Small" not in shown["Terminal", "Small"]
