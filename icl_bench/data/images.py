"""Base data sets as canonical arrays: uint8 images and labels in their original order.

Looked for in this order: sets registered by the user, embedded sets, ``data_dir``, the folder
named by ``ICL_BENCH_DATA``, the cache. A data folder holds ``images/<Name>/{train,test}.npz`` with
the arrays ``images`` and ``labels``. Nothing is ever downloaded here; see ``download.py``.
"""

import dataclasses
import difflib
import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from icl_bench.catalog import DATASETS, PIXEL_VIEWS, DataSet, DataSplit
from icl_bench.data.cache import cache_dir, sha256_arrays

DATA_VARIABLE = "ICL_BENCH_DATA"

# Size of the test split of Digits: the last images of the set.
DIGITS_TEST = 500


class DataError(ValueError):
    """A file of a data set that is not what it should be, with the file and the way out."""


class MissingDataError(FileNotFoundError):
    """A data set that is not at hand, with the command that gets it."""


@dataclasses.dataclass(frozen=True)
class Images:
    """One split of a base data set; its arrays are shared and read-only.

    Attributes:
        images: Grey or colour pixels.
        labels: Labels in [0, C).
        sha256: Checksum of both (``cache.sha256_arrays``).
        origin: Where they were read from.
    """

    images: UInt8[np.ndarray, "N *shape"]
    labels: UInt8[np.ndarray, " N"]
    sha256: str
    origin: str

    def __post_init__(self) -> None:
        """Protect the arrays: every reader of the process gets the same ones."""
        self.images.setflags(write=False)
        self.labels.setflags(write=False)


_user_rows: dict[str, DataSet] = {}
_user_images: dict[tuple[str, str], Images] = {}


def dataset(name: str) -> DataSet:
    """The row of a data set, of the catalog or registered.

    Raises:
        ValueError: If there is none, with what was probably meant.
    """
    for row in (*DATASETS, *_user_rows.values()):
        if row.name == name:
            return row
    names = {row.name.lower(): row.name for row in (*DATASETS, *_user_rows.values())}
    close = difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean {names[close[0]]}?" if close else f"there are {', '.join(names.values())}"
    raise ValueError(f"unknown data set {name!r}; {hint}")


def data_folders(data_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """Folders in which data sets are looked for, in order.

    Raises:
        FileNotFoundError: If a folder was given that there is not.
    """
    if data_dir and not Path(data_dir).expanduser().is_dir():
        raise FileNotFoundError(f"there is no data folder {data_dir}: give another data_dir")
    folders = [data_dir, os.environ.get(DATA_VARIABLE), cache_dir()]
    return [Path(folder).expanduser() for folder in folders if folder]


def load_images(
    name: str, split: DataSplit, data_dir: str | os.PathLike[str] | None = None
) -> Images:
    """Canonical arrays of one split, checked against the catalog.

    Raises:
        ValueError: For an unknown data set or split.
        MissingDataError: If the split is not at hand, naming the command that gets it.
        DataError: If a file is truncated, corrupt or not this data set, naming the file.
    """
    row = dataset(name)
    if split not in ("train", "test"):
        raise ValueError(f"a data set has the splits train and test, not {split!r}")
    if row.source == "synthetic":
        raise ValueError(f"{name} is made from its tasks' keys and has no images")
    if row.source == "embedded":
        return _digits(name, split)
    if row.source == "user":
        if (name, split) not in _user_images:
            raise MissingDataError(f"{name} was registered without a {split} split")
        return _user_images[name, split]
    folders = data_folders(data_dir)
    for folder in folders:
        path = folder / "images" / name / f"{split}.npz"
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:  # a folder that must not be entered
            raise DataError(
                f"{path} cannot be read ({error.strerror}): make its folder readable, or choose "
                f"another with {DATA_VARIABLE} (or data_dir)"
            ) from error
        return _load_file(name, split, path, status.st_size, status.st_mtime_ns)
    places = ", ".join(str(folder) for folder in folders)
    raise MissingDataError(
        f"the {split} split of {name} is not at hand: run `icl-bench download {name}`, or set "
        f"{DATA_VARIABLE} (or data_dir) to a folder with images/{name}/{split}.npz; looked in "
        f"{places}"
    )


@functools.lru_cache(maxsize=4)
def _load_file(name: str, split: DataSplit, path: Path, size: int, mtime: int) -> Images:
    """Read and check a file; kept in memory as long as the file does not change."""
    row = dataset(name)
    try:
        images, labels, source = read_npz(path)
        check_arrays(images, labels, row.num_classes, str(path))
        found, pinned = sha256_arrays(images, labels), row.sha256.get(split)
        if pinned is not None and found != pinned:
            raise DataError(
                f"{path} is not the {split} split of {row.name}: SHA-256 of its arrays is {found}"
                f"{_known_as(found)}, expected {pinned}"
            )
        expected = (row.counts.get(split, len(images)), *row.image_shape)
        if images.shape != expected:
            raise DataError(
                f"{path} is not the {split} split of {row.name}: images {images.shape}, expected "
                f"{expected}"
            )
    except DataError as error:
        raise DataError(
            f"{error}; put the right file there, or remove it and run "
            f"`icl-bench download {row.name}`"
        ) from error.__cause__
    return Images(images, labels, found, f"{path}{source and f', from {source}'}")


def _known_as(sha256: str) -> str:
    """What arrays with this checksum are, if the catalog knows them."""
    known = [
        f"{row.name} {s}" for row in DATASETS for s, pin in row.sha256.items() if pin == sha256
    ]
    return f" (that of {known[0]})" if known else ""


def read_npz(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray, str]:
    """The arrays ``images`` and ``labels`` of a file, without pickles, and where they come from.

    The source is what ``download`` noted in the file as ``source``; else empty.

    Raises:
        FileNotFoundError: If there is no such file.
        DataError: If it cannot be read or understood, naming the file.
    """
    try:
        # Opened here: np.load itself would not close a file that it cannot understand.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            source = str(archive["source"]) if "source" in archive else ""
            return archive["images"], archive["labels"], source
    except FileNotFoundError:
        raise
    except (PermissionError, IsADirectoryError) as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    except KeyError as error:
        raise DataError(f"{path} lacks the arrays images and labels: {error.args[0]}") from error
    except Exception as error:  # a damaged archive can raise almost anything
        raise DataError(
            f"{path} is truncated, corrupt or no npz file without pickles "
            f"({type(error).__name__}: {error})"
        ) from error


def check_arrays(images: np.ndarray, labels: np.ndarray, num_classes: int, where: str) -> None:
    """Check dtypes, shapes and the range of labels.

    Raises:
        DataError: Naming ``where`` and what is wrong.
    """
    if images.dtype != np.uint8 or labels.dtype != np.uint8:
        raise DataError(f"{where}: images and labels must be uint8: {images.dtype}, {labels.dtype}")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise DataError(f"{where}: images must be [N, H, W] or [N, H, W, 3], not {images.shape}")
    if labels.shape != images.shape[:1] or 0 in images.shape:
        raise DataError(f"{where}: {labels.shape} labels for images {images.shape}")
    if labels.max() >= num_classes:
        raise DataError(f"{where}: label {labels.max()} is not in [0, {num_classes})")


# Digits of an embedded set, in the order of its classes.
EMBEDDED: Mapping[str, range] = {
    "Digits": range(10),
    "DigitsLow": range(5),
    "DigitsHigh": range(5, 10),
}


@functools.cache
def _digits(name: str, split: DataSplit) -> Images:
    """Digits of scikit-learn; v in 0 … 16 becomes round(v · 255 / 16), nearly v / 16 after ÷255."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    part = slice(-DIGITS_TEST, None) if split == "test" else slice(0, -DIGITS_TEST)
    pixels, labels = pixels[part], labels[part].astype(np.uint8)
    classes = EMBEDDED[name]
    kept = (classes.start <= labels) & (labels < classes.stop)
    pixels, labels = pixels[kept], labels[kept] - np.uint8(classes.start)
    found = sha256_arrays(pixels, labels)
    pinned = dataset(name).sha256.get(split)
    if pinned is not None and found != pinned:
        raise DataError(
            f"Digits of the installed scikit-learn are not those of this version ({found}, "
            f"expected {pinned}): install the version of constraints.txt"
        )
    return Images(pixels, labels, found, "scikit-learn")


def register_dataset(
    name: str,
    *,
    npz: str | os.PathLike[str] | Mapping[DataSplit, str | os.PathLike[str]] | None = None,
    arrays: Mapping[DataSplit, tuple[Any, Any]] | None = None,
    num_classes: int | None = None,
    title: str = "",
    licence: str = "",
    citation: str = "",
) -> DataSet:
    """Add a data set of the user's own; see ``icl_bench.register_dataset``."""
    if not re.fullmatch("[A-Za-z][A-Za-z0-9]*", name):
        raise ValueError(f"the name of a data set is letters and digits, not {name!r}")
    if name in _user_rows or any(row.name == name for row in DATASETS):
        raise ValueError(f"there is a data set {name} already: choose another name")
    if (npz is None) == (arrays is None):
        raise ValueError("give either npz= (a folder or files) or arrays=")
    sources: Any = arrays if arrays is not None else _npz_files(npz)
    if not isinstance(sources, Mapping):
        raise ValueError(f"{name}: arrays= maps train, test or both to (images, labels)")
    for split in sources:
        if split not in ("train", "test"):
            raise ValueError(f"{name}: splits are train and test, not {split!r}")
    given: dict[DataSplit, tuple[np.ndarray, np.ndarray, str]] = {}
    splits: tuple[DataSplit, ...] = ("train", "test")
    for split in [split for split in splits if split in sources]:
        pair, where = sources[split], f"{name} {split}"
        if arrays is None:
            pair, where = read_npz(Path(pair).expanduser())[:2], str(pair)
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(f"{where}: give the pair (images, labels)")
        images, labels = (
            _uint8(values, f"{where}: {what}")
            for values, what in zip(pair, ("images", "labels"), strict=True)
        )
        given[split] = (images, labels, where)
    if not given:
        raise ValueError(f"{name}: no split given; give train, test or both")
    classes = num_classes
    if classes is None:
        classes = max(int(labels.max(initial=0)) for _, labels, _ in given.values()) + 1
    if not isinstance(classes, int | np.integer) or not 2 <= classes <= 256:
        raise ValueError(
            f"{name}: the number of classes must be an integer in [2, 256], not {classes!r}"
        )
    loaded: dict[DataSplit, Images] = {}
    for split, (images, labels, where) in given.items():
        check_arrays(images, labels, int(classes), where)
        loaded[split] = Images(images, labels, sha256_arrays(images, labels), where)
    shapes = {part.images.shape[1:] for part in loaded.values()}
    if len(shapes) > 1:
        raise DataError(f"{name}: train and test images differ in size: {shapes}")
    row = DataSet(
        name=name,
        title=title or f"{name} (the user's own)",
        source="user",
        num_classes=int(classes),
        image_shape=shapes.pop(),
        counts={s: len(part.labels) for s, part in loaded.items()},
        sha256={s: part.sha256 for s, part in loaded.items()},
        stats=dict.fromkeys(PIXEL_VIEWS),
        stats_split="train" if "train" in loaded else "test",
        licence=licence,
        citation=citation,
    )
    _user_rows[name] = row
    _user_images.update({(name, split): part for split, part in loaded.items()})
    return row


def _npz_files(npz: Any) -> Mapping[str, str | os.PathLike[str]]:
    """Files by split, of a folder or as given."""
    if isinstance(npz, Mapping):
        return npz
    folder = Path(npz).expanduser()
    found = {s: folder / f"{s}.npz" for s in ("train", "test") if (folder / f"{s}.npz").is_file()}
    if not found:
        raise MissingDataError(f"neither train.npz nor test.npz in {folder}")
    return found


def _uint8(values: Any, what: str) -> np.ndarray:
    """A copy as uint8; integers that fit are taken, anything else is refused."""
    try:
        array = np.array(values.detach().cpu().numpy() if hasattr(values, "detach") else values)
    except (TypeError, ValueError) as error:  # rows of several lengths, types NumPy has not
        raise DataError(f"{what} are no array of integers: {error}") from error
    if array.dtype.kind not in "iu":
        raise DataError(f"{what} must be integers in [0, 255], not {array.dtype}")
    if array.size and (array.min() < 0 or array.max() > 255):
        raise DataError(f"{what} must be in [0, 255]: found {array.min()} … {array.max()}")
    return array.astype(np.uint8, order="C")
