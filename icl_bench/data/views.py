"""Views: images brought to one size, as float32 in [0, 1], cached on disk and memory-mapped.

Resizing is bilinear with antialias in float32; grey is Rec. 601 luma, taken before resizing; colour
from grey is copying. Nothing is rounded in between. A row is flattened as channel, height, width;
of a grey image that is copied to three channels only one copy is stored.
"""

import dataclasses
import functools
import json
import os
from pathlib import Path

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


@dataclasses.dataclass(frozen=True)
class ViewData:
    """One split of a data set in one view.

    Attributes:
        pixels: In [0, 1]; N rows of P stored features.
        copies: How often a stored row stands in an input: D = copies · P.
        labels: In [0, C).
        mean: Mean of all pixels of ``stats_split``.
        std: Their standard deviation.
        stats_split: The split that mean and standard deviation come from.
    """

    pixels: Float[np.ndarray, "N P"]
    copies: int
    labels: UInt8[np.ndarray, " N"]
    mean: float
    std: float
    stats_split: DataSplit


def resize(images: UInt8[np.ndarray, "N *shape"], view: View) -> Float[np.ndarray, "N P"]:
    """Images in a view, float32 in [0, 1], without copies of grey channels."""
    x = torch.from_numpy(np.ascontiguousarray(images)).to(torch.float32) / 255
    x = x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2)
    if x.shape[1] == 3 and view.channels == 1:
        x = torch.einsum("nchw,c->nhw", x, torch.tensor(LUMA))[:, None]
    if x.shape[2:] != (view.height, view.width):
        x = torch.nn.functional.interpolate(
            x, (view.height, view.width), mode="bilinear", antialias=True, align_corners=False
        )
    return x.flatten(1).contiguous().numpy()


def load_view(
    name: str, split: DataSplit, view: View, data_dir: str | os.PathLike[str] | None = None
) -> ViewData:
    """One split in one view, from the cache or made now.

    Raises:
        ValueError, FileNotFoundError: As ``load_images``.
        OSError: If the cache folder cannot be written, naming it and the way out.
    """
    images = load_images(name, split, data_dir)
    stats, stats_split = _stats(name, view, data_dir)
    stored = 3 if images.images.ndim == 4 and view.channels == 3 else 1
    return ViewData(
        pixels=_pixels(name, split, view, images),
        copies=view.channels // stored,
        labels=images.labels,
        mean=stats[0],
        std=stats[1],
        stats_split=stats_split,
    )


def view_stats(pixels: Float[np.ndarray, "N P"]) -> Stats:
    """Mean and standard deviation of all pixels, summed in float64."""
    total, square = 0.0, 0.0
    for start in range(0, len(pixels), _CHUNK):
        part = pixels[start : start + _CHUNK].astype(np.float64)
        total += float(part.sum())
        square += float((part**2).sum())
    mean = total / pixels.size
    return mean, (square / pixels.size - mean**2) ** 0.5


def _stats(
    name: str, view: View, data_dir: str | os.PathLike[str] | None
) -> tuple[Stats, DataSplit]:
    row = dataset(name)
    pinned = row.stats.get(view.name)
    if pinned is not None:
        return pinned, row.stats_split
    images = load_images(name, row.stats_split, data_dir)
    found = _computed_stats(name, row.stats_split, view, images.sha256, data_dir)
    if found[1] == 0:
        raise ValueError(f"all pixels of {name} ({row.stats_split}) are equal: nothing to learn")
    return found, row.stats_split


@functools.lru_cache(maxsize=64)
def _computed_stats(
    name: str,
    split: DataSplit,
    view: View,
    sha256: str,
    data_dir: str | os.PathLike[str] | None,
) -> Stats:
    return view_stats(_pixels(name, split, view, load_images(name, split, data_dir)))


def _pixels(
    name: str, split: DataSplit, view: View, images: Images
) -> Float[np.ndarray, "N P"]:
    size = f"{view.height}x{view.width}x{view.channels}"
    file = f"{name}-{split}-{size}-f{FORMAT}-{images.sha256[:16]}.npy"
    path = cache_dir() / "views" / file
    if not _is_sound(path, path.stat().st_mtime_ns if path.is_file() else -1):
        _build(path, images, view, f"{name} {split} {size}")
    # Copy-on-write: the file is never changed, and tensors made of the array may be.
    pixels: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
    return pixels


@functools.lru_cache(maxsize=256)
def _is_sound(path: Path, mtime: int) -> bool:
    """Whether a cached file is what its checksum says; asked once per process and file."""
    try:
        expected = json.loads(path.with_suffix(".json").read_text())["sha256"]
        return bool(sha256_file(path) == expected)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _build(path: Path, images: Images, view: View, title: str) -> None:
    """Write a view chunk by chunk, then its checksum; processes that race write the same bytes."""
    from tqdm import tqdm

    count = len(images.images)
    width = resize(images.images[:1], view).shape[1]
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
            np.lib.format.write_array_header_1_0(file, header)
            starts = range(0, count, _CHUNK)
            quiet = None if count * width > 2**24 else True  # None: quiet unless on a terminal
            for start in tqdm(starts, desc=f"resizing {title}", leave=False, disable=quiet):
                file.write(resize(images.images[start : start + _CHUNK], view).tobytes())
        checksum = sha256_file(temporary)
        with atomic_path(path.with_suffix(".json")) as note:
            note.write_text(json.dumps({"sha256": checksum, "shape": [count, width]}))
