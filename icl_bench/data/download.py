"""Downloads, only when asked for: torchvision first, Hugging Face ``datasets`` second."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from icl_bench.catalog import DataSet, DataSplit
from icl_bench.data.cache import atomic_path, cache_dir, scratch_folder, sha256_arrays
from icl_bench.data.images import DataError, check_arrays, dataset, load_images
from icl_bench.data.torchvision_compat import import_torchvision

# (repository, configuration) of the same sets in the original order.
HUGGING_FACE: dict[str, tuple[str, str | None]] = {
    "MNIST": ("ylecun/mnist", None),
    "FashionMNIST": ("zalando-datasets/fashion_mnist", None),
    "KMNIST": ("tanganke/kmnist", None),
    "CIFAR10": ("uoft-cs/cifar10", None),
    "SVHN": ("ufldl-stanford/svhn", "cropped_digits"),
}

# Seconds without a byte until a mirror counts as dead; torchvision itself would wait for ever.
TIMEOUT = 60.0

Arrays = tuple[np.ndarray, np.ndarray, str]  # images, labels, where they come from


class DownloadError(OSError):
    """Every source failed, with each one's reason and the way out."""


def download(name: str, data_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """Get both splits of a data set and write them as ``images/<Name>/<split>.npz``.

    Arrays are checked like those of any file (checksum where pinned, else number and size of the
    images); the file also notes its source. What is there already and sound is left as it is.

    Args:
        name: Data set.
        data_dir: Data folder; the cache folder by default.

    Returns:
        The files; an empty list where there is nothing to download.

    Raises:
        ValueError: For an unknown data set, the user's own, or a damaged file in the place.
        DownloadError: If no source works.
        OSError: If the folder cannot be written.
    """
    row = dataset(name)
    if row.source in ("embedded", "synthetic"):
        return []
    if row.source == "user":
        raise ValueError(f"{name} is your own data set: there is nowhere to download it from")
    root = Path(data_dir).expanduser() if data_dir else cache_dir()
    splits: tuple[DataSplit, ...] = ("train", "test")
    files = {split: root / "images" / row.name / f"{split}.npz" for split in splits}
    missing = [split for split in splits if not files[split].exists()]
    for split in splits:
        if split not in missing:
            load_images(row.name, split, root)  # says so if it is damaged
    if missing:
        with scratch_folder(root) as scratch:  # one for both splits: most archives hold the two
            for split in missing:
                _download_split(row, split, files[split], scratch)
    return list(files.values())


def _download_split(row: DataSet, split: DataSplit, path: Path, scratch: Path) -> None:
    reasons = []
    for get in (_torchvision, _hugging_face):
        try:
            images, labels, source = get(row, split, scratch)
            _check(row, split, images, labels, source)
        except Exception as error:  # sources raise whatever their network libraries raise
            reasons.append(f"{get.__name__.strip('_')}: {type(error).__name__}: {error}")
            continue
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, images=images, labels=labels, source=np.array(source))
        return
    raise DownloadError(
        f"could not download the {split} split of {row.name} ({'; '.join(reasons)}). Try again "
        f"later, or place the arrays images and labels (uint8, original order) at {path}"
    )


def _check(
    row: DataSet, split: DataSplit, images: np.ndarray, labels: np.ndarray, source: str
) -> None:
    check_arrays(images, labels, row.num_classes, source)
    expected = (row.counts[split], *row.image_shape)
    if images.shape != expected:
        raise DataError(f"{source}: images {images.shape}, expected {expected}")
    found, pinned = sha256_arrays(images, labels), row.sha256.get(split)
    if pinned is not None and found != pinned:
        raise DataError(f"{source}: SHA-256 of the arrays is {found}, expected {pinned}")


def _torchvision(row: DataSet, split: DataSplit, scratch: Path) -> Arrays:
    """By torchvision, which verifies its archives by checksum before reading them."""
    version = import_torchvision().__version__
    import torchvision.datasets

    kind = getattr(torchvision.datasets, row.name)
    which: dict[str, Any] = {"split": split} if row.name == "SVHN" else {"train": split == "train"}
    with dead_after(TIMEOUT):
        data = kind(scratch, download=True, **which)
    images = np.asarray(data.data)
    labels = np.asarray(data.labels if row.name == "SVHN" else data.targets)
    if row.name == "SVHN":  # [N, 3, 32, 32]
        images = images.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels.astype(np.uint8), f"torchvision {version}"


def _hugging_face(row: DataSet, split: DataSplit, _: Path) -> Arrays:
    """By Hugging Face ``datasets``, which keeps its archives in its own cache folder."""
    import datasets

    repository, configuration = HUGGING_FACE[row.name]
    data = datasets.load_dataset(repository, configuration, split=split)
    image = "image" if "image" in data.column_names else "img"
    images = np.stack([np.asarray(example[image], dtype=np.uint8) for example in data])
    return images, np.asarray(data["label"], dtype=np.uint8), f"Hugging Face {repository}"


@contextlib.contextmanager
def dead_after(seconds: float) -> Iterator[None]:
    """A time limit for sockets that have none of their own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(before or seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
