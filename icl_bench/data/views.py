"""Views of pixels: images at one size, as float32 in [0, 1], cached on disk and memory-mapped.

Resizing is bilinear with antialias in float32; grey is Rec. 601 luma, taken before resizing; colour
from grey is copying. Nothing is rounded in between. A row is flattened as channel, height, width;
of a grey image that is copied to three channels only one copy is stored.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float, UInt8

from icl_bench.catalog import DataSplit, Stats, View
from icl_bench.data.cache import atomic_path, cache_dir, sha256_file
from icl_bench.data.images import Images, dataset, load_images

# ITU-R BT.601-7, §2.5.1.
LUMA = (0.299, 0.587, 0.114)

# Raised when resizing or the layout of a cached file changes.
FORMAT = 1

_CHUNK = 2048

# Below a single grey level in 10^6 pixels: rounding noise of equal pixels.
_SMALLEST_STD = 1e-6


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How an array that is kept in the cache is made.

    Attributes:
        stem: Name of its file without the ending; everything that the content depends on.
        title: Of the progress bar.
        shape: N rows of P features.
        parts: Makes the rows, some at a time.
        num_parts: How many times.
        quiet: Without a progress bar, for what takes a moment.
    """

    stem: str
    title: str
    shape: tuple[int, int]
    parts: Callable[[], Iterable[Float[np.ndarray, "n P"]]]
    num_parts: int
    quiet: bool = False


@dataclasses.dataclass(frozen=True)
class ViewData:
    """One split of a data set in one view.

    Attributes:
        pixels: N rows of P stored features, in [0, 1]; of a network, any numbers.
        copies: How often a stored row stands in an input: D = copies · P.
        labels: In [0, C).
        mean: Mean of all pixels (or features) of ``stats_split``.
        std: Their standard deviation.
        stats_split: The split that mean and standard deviation come from.
        sha256: Checksum of the split's canonical arrays.
    """

    pixels: Float[np.ndarray, "N P"]
    copies: int
    labels: UInt8[np.ndarray, " N"]
    mean: float
    std: float
    stats_split: DataSplit
    sha256: str


def resize(images: UInt8[np.ndarray, "N *shape"], view: View) -> Float[np.ndarray, "N P"]:
    """Images in a view, float32 in [0, 1], without copies of grey channels."""
    x = torch.from_numpy(images.astype(np.float32)) / 255
    x = x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2)
    if x.shape[1] == 3 and view.channels == 1:
        x = LUMA[0] * x[:, :1] + LUMA[1] * x[:, 1:2] + LUMA[2] * x[:, 2:]
    if x.shape[2:] != (view.height, view.width):
        x = torch.nn.functional.interpolate(
            x, (view.height, view.width), mode="bilinear", antialias=True, align_corners=False
        )
    return x.flatten(1).contiguous().numpy()


def chunks(images: UInt8[np.ndarray, "N *shape"], view: View) -> Iterator[Float[np.ndarray, "n P"]]:
    """``resize`` of all images, some at a time: a whole view may not fit into memory."""
    for start in range(0, len(images), _CHUNK):
        yield resize(images[start : start + _CHUNK], view)


def view_stats(parts: Iterable[Float[np.ndarray, "_ P"]]) -> Stats:
    """Mean and standard deviation of all pixels, summed in float64."""
    count, total, square = 0, 0.0, 0.0
    for part in parts:
        values = part.astype(np.float64)
        count += values.size
        total += float(values.sum())
        square += float((values**2).sum())
    mean = total / count
    return mean, max(0.0, square / count - mean**2) ** 0.5


def load_view(
    name: str, split: DataSplit, view: View, data_dir: str | os.PathLike[str] | None = None
) -> ViewData:
    """One split in one view, from the cache or made now.

    Mean and standard deviation are the catalog's where pinned, else those of the data set's
    ``stats_split``.

    Raises:
        ValueError, FileNotFoundError: As ``load_images``; also if all pixels are equal.
        OSError: If the cache folder cannot be written, naming it and the way out.
    """
    if view.network is not None:
        raise ValueError(f"{view.name} shows features of a network: see features.load_features")
    images, row = load_images(name, split, data_dir), dataset(name)
    pixels, stats = stored(_recipe(name, split, view, images))
    pinned = row.stats.get(view.name)
    if pinned is not None:
        stats = pinned
    elif row.stats_split != split:
        reference = load_images(name, row.stats_split, data_dir)
        stats = stored(_recipe(name, row.stats_split, view, reference))[1]
    if stats[1] < _SMALLEST_STD:
        raise ValueError(f"all pixels of {name} ({row.stats_split}) are equal: nothing to learn")
    planes = 3 if images.images.ndim == 4 and view.channels == 3 else 1
    return ViewData(
        pixels=pixels,
        copies=view.channels // planes,
        labels=images.labels,
        mean=stats[0],
        std=stats[1],
        stats_split=row.stats_split,
        sha256=images.sha256,
    )


def _recipe(name: str, split: DataSplit, view: View, images: Images) -> Recipe:
    size = f"{view.height}x{view.width}x{view.channels}"
    count, width = len(images.images), resize(images.images[:1], view).shape[1]
    return Recipe(
        stem=f"{name}-{split}-{size}-f{FORMAT}-{images.sha256[:16]}",
        title=f"resizing {name} {split} {size}",
        shape=(count, width),
        parts=lambda: chunks(images.images, view),
        num_parts=-(-count // _CHUNK),
        quiet=count * width <= 2**24,
    )


def stored(recipe: Recipe) -> tuple[Float[np.ndarray, "N P"], Stats]:
    """The cached array, built if it is missing or damaged, and its mean and standard deviation.

    Raises:
        OSError: If the cache folder cannot be written, naming it and the way out.
    """
    path = cache_dir() / "views" / f"{recipe.stem}.npy"
    stats = None
    if path.is_file():
        status = path.stat()
        stats = _verified(path, status.st_ino, status.st_size, status.st_mtime_ns)
    if stats is None:
        stats = _build(path, recipe)
    # Copy-on-write: the file is never changed, and tensors made of the array may be.
    pixels: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
    return pixels, stats


@functools.lru_cache(maxsize=256)
def _verified(path: Path, inode: int, size: int, mtime: int) -> Stats | None:
    """Statistics of a cached file if it fits its note; asked once per process and file."""
    try:
        note = json.loads(path.with_suffix(".json").read_text())
        stats = float(note["mean"]), float(note["std"])
        whole = note == _note(sha256_file(path), note["shape"], stats)
        return stats if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _note(sha256: str, shape: list[int], stats: Stats) -> dict[str, Any]:
    """What stands beside a cached file: its checksum, its statistics, and their checksum."""
    note = {"sha256": sha256, "shape": shape, "mean": stats[0], "std": stats[1]}
    return note | {"note_sha256": hashlib.sha256(json.dumps(note).encode()).hexdigest()}


def _build(path: Path, recipe: Recipe) -> Stats:
    """Write an array chunk by chunk, with its note; processes that race write the same bytes."""
    from tqdm import tqdm

    quiet = True if recipe.quiet else None  # None: quiet unless on a terminal

    def written(file: BinaryIO) -> Iterator[Float[np.ndarray, "n P"]]:
        bar = tqdm(recipe.parts(), recipe.title, recipe.num_parts, leave=False, disable=quiet)
        for part in bar:
            file.write(part.data)
            yield part

    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": recipe.shape}
            np.lib.format.write_array_header_1_0(file, header)
            stats = view_stats(written(file))
        # Before the array takes its place: whoever sees it finds its note. One that is left alone
        # or beside a damaged array by a crash fits nothing, and both are made again.
        with atomic_path(path.with_suffix(".json")) as note:
            note.write_text(json.dumps(_note(sha256_file(temporary), list(recipe.shape), stats)))
    return stats
