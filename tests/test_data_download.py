"""Downloads: torchvision's real classes against a mirror on this machine, then Hugging Face."""

import dataclasses
import errno
import gzip
import hashlib
import http.server
import io
import pickle
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from folders import forbidden_folder, unprivileged

from icl_bench.catalog import DATASETS
from icl_bench.data import download as module
from icl_bench.data import images as images_module
from icl_bench.data.cache import sha256_arrays
from icl_bench.data.download import DownloadError, download
from icl_bench.data.images import DataError, dataset, load_images
from icl_bench.data.torchvision_compat import import_torchvision

COUNTS = {"train": 30, "test": 20}

# With a "call" the mirror sends half of every file, makes the call and hangs up.
HALFWAY: dict[str, Callable[[], None]] = {}


def made(shape: tuple[int, ...], seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return {
        split: (
            rng.integers(0, 256, (count, *shape), dtype=np.uint8),
            rng.permutation(np.arange(count) % 10).astype(np.uint8),
        )
        for split, count in COUNTS.items()
    }


@pytest.fixture
def mirror(tmp_path):
    """A web server for a folder: (folder, address, paths that were asked for)."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, directory=str(folder), **kwargs)

        def log_message(self, *_) -> None:
            """Quiet."""

        def do_GET(self) -> None:
            # torchvision's first question is only where the address leads.
            self.first = self.path not in asked
            asked.append(self.path)
            super().do_GET()

        def copyfile(self, source, outputfile) -> None:
            if self.first or "call" not in HALFWAY:
                super().copyfile(source, outputfile)
                return
            content = source.read()
            outputfile.write(content[: len(content) // 2])
            outputfile.flush()
            HALFWAY["call"]()

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_) -> None:
            """Quiet: torchvision hangs up on its first question."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/", asked
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ICL_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ICL_BENCH_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def small(monkeypatch):
    """Makes a set of the catalog small, pinned to the given arrays or unpinned."""

    def change(name: str, pairs, pinned: bool = True) -> None:
        checksums = {s: sha256_arrays(*pair) if pinned else None for s, pair in pairs.items()}
        row = dataclasses.replace(dataset(name), counts=COUNTS, sha256=checksums)
        rows = tuple(row if other.name == name else other for other in DATASETS)
        monkeypatch.setattr(images_module, "DATASETS", rows)

    return change


def requests_per_file(mirror) -> int:
    """At most 2 where a file is got once: torchvision first asks where its address leads."""
    asked = mirror[2]
    return max(asked.count(path) for path in asked)


def publish_mnist(name: str, pairs, mirror, monkeypatch) -> None:
    """Put idx files on the mirror and point torchvision's class to them."""
    import_torchvision()
    import torchvision.datasets

    folder, address, _ = mirror
    resources = []
    for split, prefix in (("train", "train"), ("test", "t10k")):
        for array, kind in zip(pairs[split], ("images-idx3", "labels-idx1"), strict=True):
            # The format of LeCun's files: two zeros, 8 = uint8, rank, sizes, all big-endian.
            head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            file = folder / f"{prefix}-{kind}-ubyte.gz"
            file.write_bytes(gzip.compress(head + array.tobytes()))
            resources.append((file.name, hashlib.md5(file.read_bytes()).hexdigest()))
    kind = getattr(torchvision.datasets, name)
    monkeypatch.setattr(kind, "mirrors", [address])
    monkeypatch.setattr(kind, "resources", resources)


def no_torchvision(monkeypatch) -> None:
    """Every mirror of torchvision is dead: a port on which nobody listens."""
    import_torchvision()
    import torchvision.datasets as sets

    dead = "http://127.0.0.1:9/"
    for name in ("MNIST", "FashionMNIST", "KMNIST"):
        monkeypatch.setattr(getattr(sets, name), "mirrors", [dead])
    monkeypatch.setattr(sets.CIFAR10, "url", dead)
    split_list = {s: [dead, *rest[1:]] for s, rest in sets.SVHN.split_list.items()}
    monkeypatch.setattr(sets.SVHN, "split_list", split_list)


def hugging_face_of(pairs, monkeypatch, columns=("image", "label")) -> list[tuple]:
    """``datasets.load_dataset`` gives these arrays as PNG images; returns what was asked for."""
    import datasets
    from PIL import Image

    asked = []

    def load_dataset(repository, configuration, *, split):
        asked.append((repository, configuration, split))
        images, labels = pairs[split]
        features = datasets.Features(
            {
                columns[0]: datasets.Image(),
                columns[1]: datasets.ClassLabel(names=[str(n) for n in range(10)]),
            }
        )
        content = {
            columns[0]: [Image.fromarray(image) for image in images],
            columns[1]: labels.tolist(),
        }
        return datasets.Dataset.from_dict(content, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def no_hugging_face(monkeypatch) -> None:
    import datasets

    def load_dataset(*_, **__):
        raise ConnectionError("the hub is away")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def check(name: str, pairs, paths: list[Path], root: Path, source: str) -> None:
    """Files in their places, equal to the arrays, and nothing else left behind."""
    folder = root / "images" / name
    assert paths == [folder / "train.npz", folder / "test.npz"]
    for split, (images, labels) in pairs.items():
        data = load_images(name, split, root)
        np.testing.assert_array_equal(data.images, images)
        np.testing.assert_array_equal(data.labels, labels)
        assert data.origin.startswith(f"{folder / split}.npz, from {source}")
    left = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    assert left == [f"images/{name}/test.npz", f"images/{name}/train.npz"]
    assert [path.name for path in root.iterdir()] == ["images"]


# torchvision


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_torchvisions_idx_files(name, mirror, cache, small, monkeypatch) -> None:
    pairs = made((28, 28), 1)
    small(name, pairs)
    publish_mnist(name, pairs, mirror, monkeypatch)
    check(name, pairs, download(name), cache, "torchvision")
    assert len(set(mirror[2])) == 4
    assert requests_per_file(mirror) <= 2
    # What is there is left alone.
    mirror[2].clear()
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npz")}
    assert {path: path.stat().st_mtime_ns for path in download(name)} == before
    assert mirror[2] == []


def test_into_a_data_folder(mirror, cache, small, tmp_path, monkeypatch) -> None:
    pairs = made((28, 28), 2)
    small("MNIST", pairs)
    publish_mnist("MNIST", pairs, mirror, monkeypatch)
    check("MNIST", pairs, download("MNIST", tmp_path / "data"), tmp_path / "data", "torchvision")
    assert not cache.exists()


def test_torchvisions_cifar10(mirror, cache, small, monkeypatch) -> None:
    import_torchvision()
    from torchvision.datasets import CIFAR10

    folder, address, asked = mirror
    pairs = made((32, 32, 3), 3)
    small("CIFAR10", pairs, pinned=False)

    def member(images, labels) -> bytes:  # rows of channel, height, width
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        return pickle.dumps({"data": rows, "labels": labels.tolist()})

    (images, labels), test = pairs["train"], pairs["test"]
    members = {"data_batch_1": member(images[:13], labels[:13])}
    members |= {"data_batch_2": member(images[13:], labels[13:]), "test_batch": member(*test)}
    members["batches.meta"] = pickle.dumps({"label_names": [str(n) for n in range(10)]})
    archive = folder / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"{CIFAR10.base_folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    sums = {name: hashlib.md5(content).hexdigest() for name, content in members.items()}
    monkeypatch.setattr(CIFAR10, "url", address + archive.name)
    monkeypatch.setattr(CIFAR10, "filename", archive.name)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    train_list = [[n, sums[n]] for n in ("data_batch_1", "data_batch_2")]
    monkeypatch.setattr(CIFAR10, "train_list", train_list)
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {**CIFAR10.meta, "md5": sums["batches.meta"]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    check("CIFAR10", pairs, download("CIFAR10"), cache, "torchvision")
    assert set(asked) == {f"/{archive.name}"}
    assert requests_per_file(mirror) <= 2


def test_torchvisions_svhn(mirror, cache, small, monkeypatch) -> None:
    import_torchvision()
    import scipy.io
    from torchvision.datasets import SVHN

    folder, address, _ = mirror
    pairs = made((32, 32, 3), 4)
    small("SVHN", pairs, pinned=False)
    split_list = {}
    for split, (images, labels) in pairs.items():
        file = folder / f"{split}_32x32.mat"
        numbers = np.where(labels == 0, 10, labels)[:, None]  # the files call the digit 0 ten
        scipy.io.savemat(file, {"X": images.transpose(1, 2, 3, 0), "y": numbers})
        checksum = hashlib.md5(file.read_bytes()).hexdigest()
        split_list[split] = [address + file.name, file.name, checksum]
    monkeypatch.setattr(SVHN, "split_list", split_list)
    check("SVHN", pairs, download("SVHN"), cache, "torchvision")


# Hugging Face


@pytest.mark.parametrize(
    ("name", "shape", "column"),
    [
        ("MNIST", (28, 28), "image"),
        ("FashionMNIST", (28, 28), "image"),
        ("KMNIST", (28, 28), "image"),
        ("CIFAR10", (32, 32, 3), "img"),
        ("SVHN", (32, 32, 3), "image"),
    ],
)
def test_hugging_face_where_torchvisions_mirrors_are_dead(
    name, shape, column, cache, small, monkeypatch
) -> None:
    pairs = made(shape, 5)
    small(name, pairs, pinned=name not in ("CIFAR10", "SVHN"))
    no_torchvision(monkeypatch)
    asked = hugging_face_of(pairs, monkeypatch, (column, "label"))
    check(name, pairs, download(name), cache, "Hugging Face")
    repository, configuration = module.HUGGING_FACE[name]
    assert asked == [(repository, configuration, split) for split in ("train", "test")]


def test_a_damaged_archive_is_not_taken(mirror, cache, small, monkeypatch) -> None:
    pairs = made((28, 28), 6)
    small("MNIST", pairs)
    publish_mnist("MNIST", pairs, mirror, monkeypatch)
    file = mirror[0] / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-100])
    asked = hugging_face_of(pairs, monkeypatch)
    check("MNIST", pairs, download("MNIST"), cache, "Hugging Face")
    assert len(asked) == 2


@pytest.mark.parametrize("wrong", ["pixels", "count", "size"])
def test_another_data_set_is_not_taken(wrong, mirror, cache, small, monkeypatch) -> None:
    pairs, other = made((28, 28), 7), made((28, 28) if wrong != "size" else (14, 14), 8)
    if wrong == "count":
        other = {split: (images[1:], labels[1:]) for split, (images, labels) in other.items()}
    pinned = wrong == "pixels"
    small("KMNIST", pairs, pinned)
    publish_mnist("KMNIST", other, mirror, monkeypatch)
    hugging_face_of(other, monkeypatch)
    with pytest.raises(DownloadError) as caught:
        download("KMNIST")
    if pinned:
        expected = f"{sha256_arrays(*other['train'])}, expected {sha256_arrays(*pairs['train'])}"
    else:
        expected = f"images {other['train'][0].shape}, expected (30, 28, 28)"
    assert str(caught.value).count(expected) == 2  # of both sources
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_both_sources_dead_is_one_error_with_both_reasons(cache, small, monkeypatch) -> None:
    small("MNIST", made((28, 28), 9))
    no_torchvision(monkeypatch)
    no_hugging_face(monkeypatch)
    with pytest.raises(DownloadError) as caught:
        download("MNIST")
    message = str(caught.value)
    for part in (
        "could not download the train split of MNIST",
        "torchvision: RuntimeError: Error downloading train-images-idx3-ubyte.gz",
        "Connection refused",
        "hugging_face: ConnectionError: the hub is away",
        f"place the arrays images and labels (uint8, original order) at {cache}",
        "images/MNIST/train.npz",
    ):
        assert part in message
    assert [path for path in cache.rglob("*") if path.is_file()] == []
    # An error of the same kind as a missing network has, for whoever catches it.
    assert isinstance(caught.value, OSError)


def test_a_split_that_fails_leaves_the_other(mirror, cache, small, monkeypatch) -> None:
    pairs = made((28, 28), 10)
    small("MNIST", pairs)
    no_torchvision(monkeypatch)
    hugging_face_of({"train": pairs["train"]}, monkeypatch)
    with pytest.raises(DownloadError, match="test split of MNIST"):
        download("MNIST")
    assert len(load_images("MNIST", "train").labels) == 30
    # The next attempt gets only what is missing.
    asked = hugging_face_of(pairs, monkeypatch)
    assert len(download("MNIST")) == 2
    assert [split for *_, split in asked] == ["test"]


def test_a_damaged_file_in_the_place_is_named_not_overwritten(cache, small) -> None:
    small("MNIST", made((28, 28), 11))
    path = cache / "images" / "MNIST" / "train.npz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PK")
    with pytest.raises(DataError, match=f"{path}.*remove it and run"):
        download("MNIST")
    assert path.read_bytes() == b"PK"


def test_a_mirror_that_hangs_up_halfway_leaves_nothing(mirror, cache, small, monkeypatch) -> None:
    pairs = made((28, 28), 14)
    small("MNIST", pairs)
    publish_mnist("MNIST", pairs, mirror, monkeypatch)
    no_hugging_face(monkeypatch)
    monkeypatch.setitem(HALFWAY, "call", lambda: None)
    with pytest.raises(DownloadError, match="corrupted"):
        download("MNIST")
    assert list(cache.iterdir()) == []


def test_an_interrupted_download_leaves_nothing(mirror, cache, small, monkeypatch) -> None:
    pairs = made((28, 28), 15)
    small("MNIST", pairs)
    publish_mnist("MNIST", pairs, mirror, monkeypatch)
    asked = hugging_face_of(pairs, monkeypatch)
    begun = []

    def interrupt() -> None:
        until = time.monotonic() + 20
        while not begun and time.monotonic() < until:  # the client makes its file in its own time
            begun.extend(path.name for path in cache.glob(".icl_bench-scratch-*/MNIST/raw/*.gz"))
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    monkeypatch.setitem(HALFWAY, "call", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download("MNIST")
    assert begun == ["train-images-idx3-ubyte.gz"]  # it was at work
    assert list(cache.iterdir()) == []
    assert asked == []  # nor was another source tried
    monkeypatch.delitem(HALFWAY, "call")
    check("MNIST", pairs, download("MNIST"), cache, "torchvision")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "disk is full")])
def test_a_write_that_ends_early_leaves_nothing(cache, small, monkeypatch, error) -> None:
    pairs = made((28, 28), 16)
    small("MNIST", pairs)
    no_torchvision(monkeypatch)
    hugging_face_of(pairs, monkeypatch)

    def half(path, **_) -> None:
        path.write_bytes(b"PK\x03\x04")
        raise error

    monkeypatch.setattr(module.np, "savez_compressed", half)
    with pytest.raises(type(error)) as caught:
        download("MNIST")
    assert list(cache.rglob("*")) == [cache / "images", cache / "images" / "MNIST"]
    if isinstance(error, OSError):
        assert f"cannot write train.npz in {cache / 'images' / 'MNIST'}" in str(caught.value)


def test_a_folder_that_has_all_need_not_be_writable(small, monkeypatch) -> None:
    pairs = made((28, 28), 17)
    small("MNIST", pairs)
    no_torchvision(monkeypatch)
    hugging_face_of(pairs, monkeypatch)
    with forbidden_folder() as folder:
        paths = download("MNIST", folder)
        with unprivileged(folder):
            assert download("MNIST", folder) == paths
            with pytest.raises(PermissionError, match=str(folder)):
                download("KMNIST", folder)


def test_a_folder_in_the_place_of_a_file_is_named_first(cache, small, monkeypatch) -> None:
    small("MNIST", made((28, 28), 18))
    monkeypatch.setattr(module, "_torchvision", None)  # nothing is fetched in vain
    path = cache / "images" / "MNIST" / "test.npz"
    path.mkdir(parents=True)
    with pytest.raises(DataError, match=rf"{path} cannot be read \(Is a directory\)"):
        download("MNIST")


def test_a_folder_that_cannot_be_written_is_named(tmp_path, small) -> None:
    small("MNIST", made((28, 28), 12))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=f"cannot write scratch in {tmp_path}/file") as caught:
        download("MNIST", tmp_path / "file")
    assert not isinstance(caught.value, DownloadError)


def test_what_needs_no_download(cache, monkeypatch) -> None:
    assert download("Digits") == download("Random") == []
    with pytest.raises(ValueError, match="unknown data set 'MINST'; did you mean MNIST"):
        download("MINST")
    row = dataclasses.replace(dataset("MNIST"), name="Mine", source="user")
    monkeypatch.setitem(images_module._user_rows, "Mine", row)
    with pytest.raises(ValueError, match="Mine is your own data set"):
        download("Mine")
    assert not cache.exists()


def test_every_set_has_two_sources() -> None:
    import_torchvision()
    import torchvision.datasets

    names = {row.name for row in DATASETS if row.source == "torchvision"}
    assert names == set(module.HUGGING_FACE)
    assert all(hasattr(torchvision.datasets, name) for name in names)


def test_a_silent_mirror_is_given_up(cache, small, monkeypatch) -> None:
    import socket

    import_torchvision()
    from torchvision.datasets import MNIST

    pairs = made((28, 28), 13)
    small("MNIST", pairs)
    hugging_face_of(pairs, monkeypatch)
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes calls, never answers
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.getsockname()[1]}/"])
        hang_up = threading.Timer(20, lambda: server.shutdown(socket.SHUT_RDWR))
        hang_up.start()
        paths = download("MNIST")
        assert hang_up.is_alive()  # given up long before
        hang_up.cancel()
    check("MNIST", pairs, paths, cache, "Hugging Face")
    assert socket.getdefaulttimeout() is None


# Importing torchvision


def test_torchvision_imports_beside_any_pytorch() -> None:
    version = import_torchvision()
    assert version is sys.modules["torchvision"]
    from torchvision import datasets, models
    from torchvision.transforms import v2

    assert datasets.MNIST
    assert v2.Normalize
    assert len(list(models.resnet18(weights=None).parameters())) == 62


def test_other_import_errors_of_torchvision_are_shown(monkeypatch) -> None:
    from icl_bench.data import torchvision_compat as compat

    def broken(name: str):
        raise RuntimeError(f"{name}: something else")

    monkeypatch.setattr(compat.importlib, "import_module", broken)
    import_torchvision.cache_clear()
    with pytest.raises(RuntimeError, match="something else"):
        import_torchvision()
    monkeypatch.undo()
    assert import_torchvision() is sys.modules["torchvision"]


FRESH = """
import sys, warnings
import torch
try:
    import torchvision
    print("imports by itself")
except RuntimeError as error:
    print(error)
from icl_bench.data.torchvision_compat import import_torchvision
first = import_torchvision()
import_torchvision.cache_clear()
second = import_torchvision()
import torchvision
from torchvision import datasets
assert first is second is torchvision is sys.modules["torchvision"]
assert issubclass(datasets.MNIST, torch.utils.data.Dataset)
"""


def test_torchvision_imports_twice_and_after_a_failure_in_a_fresh_process() -> None:
    run = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() in (
        "imports by itself",
        "operator torchvision::nms does not exist",
    )


def test_importing_the_package_is_light() -> None:
    heavy = ("torchvision", "datasets", "sklearn", "numba", "pandas", "matplotlib", "pyarrow")
    code = (
        "import sys, icl_bench, icl_bench.data.download; "
        f"print([m for m in {(*heavy, 'PIL', 'scipy', 'transformers')} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
