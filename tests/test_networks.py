"""Pretrained networks: where they come from, and that no file of theirs runs code."""

import dataclasses
import hashlib
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import data_folder
from tiny_networks import (
    DIGITS,
    Bait,
    D,
    Run,
    add_network,
    choose_fake,
    empty_folder,
)
from user_sets import restored_registries

import icl_bench
from icl_bench.__main__ import main
from icl_bench.data import features, networks
from icl_bench.data.cache import sha256_file
from icl_bench.data.features import MissingNetworkError
from icl_bench.data.images import DataError, MissingDataError
from icl_bench.data.networks import IMAGENET, NETWORKS, SIZE, Network, download_network
from icl_bench.evaluation.statistics import paired_difference, task_interval


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return empty_folder(tmp_path, monkeypatch)


@pytest.fixture
def weights(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return choose_fake(root, monkeypatch)


# Networks that are not at hand, and weights that are not theirs


def test_a_missing_network_names_the_three_ways(root: Path) -> None:
    with pytest.raises(MissingNetworkError) as caught:
        icl_bench.make(DIGITS)
    message = str(caught.value)
    for part in (
        "the network resnet18 for Digits-Emb is not at hand",
        "icl-bench download resnet18",
        "networks/resnet18-f37072fd.pth",
        'pip install "icl-bench[pretrained]"',
        'network="efficientnet-lite0"',
        "features/<network>/Digits/train.npz",
        "ICL_BENCH_NETWORK=<network>",
        str(root),
    ):
        assert part in message
    assert isinstance(caught.value, MissingDataError)
    with pytest.raises(MissingNetworkError, match=r"download resnet50.*resnet50-0676ba61\.pth"):
        icl_bench.make(DIGITS, network="resnet50")
    with pytest.raises(MissingNetworkError, match=r"features/nowhere/Digits/train.npz of network"):
        icl_bench.make(DIGITS, network="nowhere")
    assert not list(root.rglob("*.np*"))


def test_a_package_that_is_not_installed_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lite = dataclasses.replace(NETWORKS["efficientnet-lite0"], package="there_is_no_such_package")
    monkeypatch.setitem(NETWORKS, "efficientnet-lite0", lite)
    assert lite.find() is None
    with pytest.raises(MissingNetworkError, match=r"efficientnet-lite0 for Digits.*\[pretrained\]"):
        icl_bench.make(DIGITS, network="efficientnet-lite0")
    path = add_network(monkeypatch, root)

    def no_package(state: dict[str, torch.Tensor]) -> Run:
        raise ImportError("No module named 'efficientnet_lite_pytorch'")

    changed = dataclasses.replace(NETWORKS["fake"], build=no_package)
    monkeypatch.setitem(NETWORKS, "fake", changed)
    assert path.is_file()
    with pytest.raises(MissingNetworkError, match=r"cannot be built.*efficientnet_lite_pytorch"):
        icl_bench.make(DIGITS, network="fake")


def test_other_weights_are_refused_before_they_are_read(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = NETWORKS["fake"].sha256
    torch.save({"weight": torch.zeros(D, 48)}, weights)
    monkeypatch.setattr(networks.torch, "load", None)
    with pytest.raises(DataError) as caught:
        icl_bench.make(DIGITS)
    assert f"{weights} does not hold the weights of fake" in str(caught.value)
    assert f"expected {expected}; remove it and run `icl-bench download fake`" in str(caught.value)


@pytest.mark.parametrize("kind", ["pickle", "torch", "text", "empty", "shape"])
def test_weights_of_the_right_checksum_run_no_code(
    weights: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "torch":
        torch.save({"weight": Bait()}, weights)
    elif kind == "shape":
        torch.save([torch.zeros(3)], weights)
    else:
        contents = {"pickle": pickle.dumps(Bait()), "text": b"weights", "empty": b""}
        weights.write_bytes(contents[kind])
    changed = dataclasses.replace(NETWORKS["fake"], sha256=sha256_file(weights)[:8])
    monkeypatch.setitem(NETWORKS, "fake", changed)
    with pytest.raises(DataError, match=f"{weights} cannot be read as the weights of fake"):
        icl_bench.make(DIGITS)
    assert not hasattr(sys, "icl_bench_bait")


# torchvision's networks


@pytest.mark.parametrize(("name", "kind"), [("resnet18", "ResNet18"), ("resnet50", "ResNet50")])
def test_resnets_are_torchvisions_without_the_last_layer(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    networks.import_torchvision()
    import torchvision.models

    network = NETWORKS[name]
    url = torchvision.models.get_weight(f"{kind}_Weights.IMAGENET1K_V1").url
    assert url == f"https://download.pytorch.org/models/{network.file}"
    assert network.file == f"{name}-{network.sha256}.pth"
    model = getattr(torchvision.models, name)(weights=None).eval()
    path = root / network.file
    torch.save(model.state_dict(), path)
    changed = dataclasses.replace(network, sha256=sha256_file(path)[:8])
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    found = changed.load(path)(images)
    assert found.shape == (2, network.num_features)
    mean, std = (torch.tensor(v)[:, None, None] for v in IMAGENET)
    with torch.inference_mode():
        logits = model((images - mean) / std)
        torch.testing.assert_close(found @ model.fc.weight.T + model.fc.bias, logits)
    state = model.state_dict()
    del state["conv1.weight"]
    torch.save(state, path)
    changed = dataclasses.replace(network, sha256=sha256_file(path)[:8])
    with pytest.raises(DataError, match=r"cannot be read as the weights of resnet"):
        changed.load(path)


def test_a_download_is_checked_and_placed(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = add_network(monkeypatch, root)
    content = path.read_bytes()
    asked = []

    def get(url: str, dst: str, hash_prefix: str, progress: bool) -> None:
        asked.append(url)
        if hashlib.sha256(content).hexdigest()[: len(hash_prefix)] != hash_prefix:
            raise RuntimeError(f'invalid hash value (expected "{hash_prefix}")')
        Path(dst).write_bytes(content)

    monkeypatch.setattr(torch.hub, "download_url_to_file", get)
    folder = root / "other"
    assert main(["download", "fake", "--data-dir", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "networks" / "fake.pth")
    assert (folder / "networks" / "fake.pth").read_bytes() == content
    assert download_network("fake", folder) == [folder / "networks" / "fake.pth"]
    assert asked == ["https://download.pytorch.org/models/fake.pth"]  # once
    icl_bench.make(DIGITS, network="fake", data_dir=folder)
    (folder / "networks" / "fake.pth").write_bytes(b"x")
    with pytest.raises(DataError, match="does not hold the weights of fake"):
        download_network("fake", folder)
    content = b"something else"
    with pytest.raises(DataError, match=r"is not fake\.pth: invalid hash value"):
        download_network("fake", root / "third")
    assert not list((root / "third").rglob("*.pth"))
    assert main(["download", "efficientnet-lite0"]) == 0
    assert "nothing to download" in capsys.readouterr().out


def test_a_failed_download_says_where_the_file_goes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    target = root / "networks" / "resnet18-f37072fd.pth"
    with pytest.raises(OSError, match=f"no route to host.*place the file at {target}"):
        download_network("resnet18", root)
    assert not list((root / "networks").iterdir())


# The network of the optional package


@pytest.fixture
def lite(root: Path, monkeypatch: pytest.MonkeyPatch) -> Network:
    monkeypatch.setattr(features, "SIZE", SIZE)
    network = NETWORKS["efficientnet-lite0"]
    if network.find() is None:
        pytest.skip('efficientnet-lite0 is not installed: pip install "icl-bench[pretrained]"')
    return network


def test_the_package_s_network_gives_its_features(lite: Network) -> None:
    path = lite.find()
    assert path is not None
    images = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    run = lite.load(path)
    found = run(images)
    assert found.shape == (3, 1280)
    assert found.min() >= 0  # ReLU6
    torch.testing.assert_close(run(images[:1]), found[:1], atol=1e-4, rtol=1e-4)
    assert found.std() > 0.05


@pytest.mark.slow
def test_photographs_are_told_apart_better_by_features_than_by_pixels(
    lite: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = data_folder()
    if folder is None or not (folder / "images" / "CIFAR10mini").is_dir():
        pytest.skip("no photographs of CIFAR10mini at hand")
    parts = {}
    for split in ("train", "test"):
        with np.load(folder / "images" / "CIFAR10mini" / f"{split}.npz") as archive:
            parts[split] = (archive["images"][:250], archive["labels"][:250])
    with restored_registries():
        icl_bench.register_dataset("Photos", arrays=parts)
        monkeypatch.setenv(features.NETWORK_VARIABLE, "efficientnet-lite0")
        hits = {
            view: icl_bench.evaluate(icl_bench.NearestNeighbour(), f"Photos-{view}-v0").correct
            for view in ("Emb", "Proj")
        }
        tasks = np.arange(256) // 16
        better = paired_difference(
            hits["Emb"][:, 99].astype(float), hits["Proj"][:, 99].astype(float), tasks
        )
        assert better.low > 0.1
        assert task_interval(hits["Emb"][:, 99].astype(float), tasks).mean > 0.35
