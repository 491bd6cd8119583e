"""Downloads, only when asked for: torchvision first, Hugging Face ``datasets`` second."""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from icl_bench.catalog import DataSet, DataSplit
from icl_bench.data.cache import atomic_path, cache_dir, sha256_arrays
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


class DownloadError(OSError):
    """Every source failed, with each one's reason and the way out."""


def download(name: str, data_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """Get both splits of a data set and write them as ``images/<Name>/<split>.npz``.

    Args:
        name: Data set.
        data_dir: Data folder; the cache folder by default.

    Returns:
        The files; an empty list where there is nothing to download.

    Raises:
        ValueError: For an unknown data set, or the user's own.
        DownloadError: If no source works.
    """
    row = dataset(name)
    if row.source in ("embedded", "synthetic"):
        return []
    if row.source == "user":
        raise ValueError(f"{name} is your own data set: there is nowhere to download it from")
    root = Path(data_dir).expanduser() if data_dir else cache_dir()
    return [_download_split(row, split, root) for split in ("train", "test")]


def _download_split(row: DataSet, split: DataSplit, root: Path) -> Path:
    path = root / "images" / row.name / f"{split}.npz"
    if path.is_file():
        load_images(row.name, split, root)  # says so if it is damaged
        return path
    reasons = []
    for source in (_torchvision, _hugging_face):
        try:
            images, labels = source(row, split)
            check_arrays(images, labels, row.num_classes, f"{row.name} {split}")
            found, pinned = sha256_arrays(images, labels), row.sha256.get(split)
            if pinned is not None and found != pinned:
                raise DataError(f"SHA-256 of the arrays is {found}, expected {pinned}")
            if len(images) != row.counts[split]:
                raise DataError(f"{len(images)} images, expected {row.counts[split]}")
        except Exception as error:  # sources raise whatever their network libraries raise
            reasons.append(f"{source.__name__.strip('_')}: {type(error).__name__}: {error}")
            continue
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, images=images, labels=labels)
        return path
    raise DownloadError(
        f"could not download the {split} split of {row.name} ({'; '.join(reasons)}). Try again "
        f"later, or place the arrays images and labels (uint8, original order) at {path}"
    )


def _torchvision(row: DataSet, split: DataSplit) -> tuple[np.ndarray, np.ndarray]:
    """By torchvision, which verifies its archives by checksum before reading them."""
    import_torchvision()
    import torchvision.datasets

    kind = getattr(torchvision.datasets, row.name)
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="download-", dir=cache) as folder:
        which: dict[str, Any] = {"split": split} if row.name == "SVHN" else {
            "train": split == "train"
        }
        data = kind(folder, download=True, **which)
        images = np.asarray(data.data)
        labels = np.asarray(data.labels if row.name == "SVHN" else data.targets)
    if row.name == "SVHN":
        images = images.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels.astype(np.uint8)


def _hugging_face(row: DataSet, split: DataSplit) -> tuple[np.ndarray, np.ndarray]:
    """By Hugging Face ``datasets``."""
    import datasets

    repository, configuration = HUGGING_FACE[row.name]
    data = datasets.load_dataset(repository, configuration, split=split)
    image = "image" if "image" in data.column_names else "img"
    images = np.stack([np.asarray(example, dtype=np.uint8) for example in data[image]])
    return images, np.asarray(data["label"], dtype=np.uint8)
