"""Networks that give features, small enough for tests, and features of the user's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from icl_bench.catalog import VIEWS
from icl_bench.data import features
from icl_bench.data.cache import sha256_file
from icl_bench.data.images import load_images
from icl_bench.data.networks import IMAGENET, NETWORKS, Network

EMB, DIGITS = VIEWS["Emb"], "Digits-Emb-v0"
D = 512
SMALL = 32  # side of the inputs of the tests' networks
Run = Callable[[torch.Tensor], torch.Tensor]


def within(found: float, expected: float, error: float) -> None:
    """Five standard errors."""
    assert abs(found - expected) < 5 * error, f"{found:.4g}, expected {expected:.4g} ± {error:.2g}"


def pooled(state: dict[str, torch.Tensor]) -> Run:
    """A network small enough for a test: 4×4 pixels of three channels, mapped, ReLU."""
    weight = state["weight"]
    pool = torch.nn.functional.adaptive_avg_pool2d
    return lambda x: torch.relu(pool(x, 4).flatten(1) @ weight.T)


def add_network(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    name: str = "fake",
    num_features: int = D,
    build: Callable[[dict[str, torch.Tensor]], Run] = pooled,
) -> Path:
    """Register a network through the interface of the built-in ones; returns its weights."""
    path = folder / "networks" / f"{name}.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(num_features)
    torch.save({"weight": torch.randn(num_features, 48, generator=generator)}, path)
    network = Network(
        name=name,
        title="a network of the tests",
        num_features=num_features,
        source="torchvision",
        file=path.name,
        sha256=sha256_file(path)[:8],
        normal=IMAGENET,
        build=build,
    )
    monkeypatch.setitem(NETWORKS, name, network)
    return path


def empty_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder and an empty cache; no network is chosen, and their inputs are small."""
    monkeypatch.setenv("ICL_BENCH_CACHE", str(folder / "cache"))
    monkeypatch.setenv("ICL_BENCH_DATA", str(folder))
    monkeypatch.delenv(features.NETWORK_VARIABLE, raising=False)
    monkeypatch.setattr(features, "SIZE", SMALL)
    return folder


def choose_fake(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The network ``fake``, chosen by the variable; its file of weights."""
    monkeypatch.setenv(features.NETWORK_VARIABLE, "fake")
    return add_network(monkeypatch, root)


def place(root: Path, values: Any, split: str = "test", network: str = "mine", **more: Any) -> Path:
    """Features of the user's own network of Digits."""
    path = root / "features" / network / "Digits" / f"{split}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{"features": values, **more})
    return path


def own(root: Path, num_features: int = 20, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = {
        split: rng.normal(3, 2, (count, num_features)).astype(np.float32)
        for split, count in (("train", 1297), ("test", 500))
    }
    for split, values in made.items():
        place(root, values, split)
    return made


def expected_features(path: Path, split: str) -> np.ndarray:
    """What ``fake`` gives of Digits, computed here: one image at a time, in float64."""
    weight = torch.load(path, weights_only=True)["weight"].double()
    rows = []
    for image in load_images("Digits", split).images[:60]:
        x = torch.from_numpy(image.astype(np.float64) / 255)[None, None]
        x = torch.nn.functional.interpolate(x, (SMALL, SMALL), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(v).double()[:, None, None] for v in IMAGENET)
        x = (x.expand(-1, 3, -1, -1) - mean) / std
        pools = (
            x.unfold(2, SMALL // 4, SMALL // 4).unfold(3, SMALL // 4, SMALL // 4).mean(dim=(4, 5))
        )
        rows.append((pools.flatten(1) @ weight.T).clamp(min=0)[0].numpy())
    return np.stack(rows)


class Bait:
    """A pickle that would run code when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("import sys; sys.icl_bench_bait = True",))


def views_folder(root: Path) -> Path:
    return root / "cache" / "views"
