"""Features: computed once and cached, and features of the user's own network."""

import dataclasses
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_networks import (
    DIGITS,
    EMB,
    SMALL,
    Bait,
    D,
    Run,
    add_network,
    choose_fake,
    empty_folder,
    own,
    place,
    pooled,
    views_folder,
)

import icl_bench
from baselines import cli, sgd
from icl_bench.__main__ import main
from icl_bench.data import features, views
from icl_bench.data.cache import sha256_file
from icl_bench.data.features import MissingNetworkError, compression, load_features
from icl_bench.data.images import DataError
from icl_bench.data.networks import NETWORKS
from icl_bench.envs.source import EnvArgs, fingerprint
from icl_bench.registration import find_spec


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return empty_folder(tmp_path, monkeypatch)


@pytest.fixture
def weights(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return choose_fake(root, monkeypatch)


# The cache


class Counting:
    """A network that counts the images that it sees, and fails after some of them."""

    def __init__(self, fail_after: int = 10**9) -> None:
        self.seen, self.fail_after = 0, fail_after

    def __call__(self, state: dict[str, torch.Tensor]) -> Run:
        run = pooled(state)

        def count(x: torch.Tensor) -> torch.Tensor:
            if self.seen >= self.fail_after:
                raise KeyboardInterrupt
            self.seen += len(x)
            return run(x)

        return count


def test_features_are_computed_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting()
    path = add_network(monkeypatch, root, build=counting)
    first = np.array(load_features("Digits", "test", EMB, "fake").pixels)
    assert counting.seen == 1797  # both splits: the training split for its statistics
    path.unlink()  # what is cached needs no network
    views._verified.cache_clear()
    again = load_features("Digits", "test", EMB, "fake")
    load_features("Digits", "train", EMB, "fake")
    np.testing.assert_array_equal(again.pixels, first)
    assert counting.seen == 1797
    names = sorted(file.suffix for file in views_folder(root).iterdir())
    assert names == [".json", ".json", ".npy", ".npy"]  # no parts are left
    assert all(
        f"-fake-{NETWORKS['fake'].sha256}-{SMALL}-f" in f.name for f in views_folder(root).iterdir()
    )


def test_an_interrupted_run_is_taken_up_where_it_stood(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(fail_after=2 * features.CHUNK)
    add_network(monkeypatch, root, build=counting)
    with pytest.raises(KeyboardInterrupt):
        load_features("Digits", "train", EMB, "fake")
    assert not list(views_folder(root).glob("*.npy"))
    (parts,) = views_folder(root).glob("*.parts")
    assert sorted(file.name for file in parts.iterdir()) == ["0.npz", f"{features.CHUNK}.npz"]
    # One of the two kept parts is damaged: it is computed again.
    damaged = bytearray((parts / "0.npz").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (parts / "0.npz").write_bytes(damaged)
    counting.seen, counting.fail_after = 0, 10**9
    found = load_features("Digits", "train", EMB, "fake").pixels
    assert counting.seen == 1297 - features.CHUNK
    assert not parts.exists()
    shutil.rmtree(root / "cache")
    views._verified.cache_clear()
    whole = load_features("Digits", "train", EMB, "fake").pixels
    np.testing.assert_array_equal(found, whole)


def test_a_process_that_is_done_first_does_not_stop_the_other(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_network(monkeypatch, root)
    save, removed = np.savez, []

    def saved_and_removed(file: Path, **arrays: np.ndarray) -> None:
        save(file, **arrays)
        if ".parts" in file.parent.name:
            shutil.rmtree(file.parent)
            removed.append(file)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", saved_and_removed)
        found = np.array(load_features("Digits", "test", EMB, "fake").pixels)
    assert len(removed) == 8
    shutil.rmtree(root / "cache")
    views._verified.cache_clear()
    np.testing.assert_array_equal(load_features("Digits", "test", EMB, "fake").pixels, found)


def test_a_damaged_cache_is_computed_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting()
    add_network(monkeypatch, root, build=counting)
    first = np.array(load_features("Digits", "train", EMB, "fake").pixels)
    (file,) = views_folder(root).glob("*.npy")
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    np.testing.assert_array_equal(load_features("Digits", "train", EMB, "fake").pixels, first)
    assert counting.seen == 2 * 1297


def test_networks_never_share_a_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = add_network(monkeypatch, root)
    first = np.array(load_features("Digits", "train", EMB, "fake").pixels)
    generator = torch.Generator().manual_seed(1)
    other = torch.randn(D, 48, generator=generator)  # other weights under the same name
    torch.save({"weight": other}, path)
    changed = dataclasses.replace(NETWORKS["fake"], sha256=sha256_file(path)[:8])
    monkeypatch.setitem(NETWORKS, "fake", changed)
    assert not np.allclose(load_features("Digits", "train", EMB, "fake").pixels, first)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x: torch.full((len(x), D), torch.nan), "not finite"),
        (lambda x: torch.ones(len(x), D - 1), r"features \(256, 511\) of 256 images"),
    ],
)
def test_a_network_that_gives_nonsense_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch, result: Run, message: str
) -> None:
    add_network(monkeypatch, root, build=lambda state: result)
    with pytest.raises(DataError, match=message):
        load_features("Digits", "train", EMB, "fake")
    assert not list(views_folder(root).rglob("*.np*"))


def test_equal_features_cannot_be_normalised(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_network(monkeypatch, root, build=lambda state: lambda x: torch.ones(len(x), D))
    with pytest.raises(ValueError, match=r"all features that fake gives of Digits \(train\)"):
        load_features("Digits", "test", EMB, "fake")


# Features of the user's own network


@pytest.mark.parametrize("num_features", [D, 20])
def test_features_of_the_users_own_network_are_inputs(root: Path, num_features: int) -> None:
    made = own(root, num_features)
    data = load_features("Digits", "test", EMB, "mine")
    mean = float(made["train"].mean(dtype=np.float64))
    assert data.std == pytest.approx(float(made["train"].std(dtype=np.float64)), rel=1e-6)
    if num_features == D:
        np.testing.assert_array_equal(data.pixels, made["test"])
        assert data.mean == pytest.approx(mean, rel=1e-6)
    else:
        expected = (made["test"] - mean) @ compression(num_features, D).astype(np.float64).T
        np.testing.assert_allclose(data.pixels, expected, atol=1e-4)
    for split in ("train", "val", "seen", "unseen"):
        batch = icl_bench.make(DIGITS, split=split, network="mine").unwrapped.sample(2)
        assert batch.x.shape == (2, 100, D)
        assert batch.x.isfinite().all()


def test_features_of_one_data_set_are_enough_for_programs_and_commands(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own(root)
    monkeypatch.setenv(features.NETWORK_VARIABLE, "mine")
    monkeypatch.delenv("ICL_BENCH_DATA")
    runs, where = root / "runs", ["--data-dir", str(root)]
    program = ["--env", DIGITS, "--episodes", "32", "--runs", str(runs), *where]
    assert cli.main(sgd.run, sgd.PRESETS, sgd.PROGRAM, "About.", program) == 0
    (folder,) = runs.iterdir()
    capsys.readouterr()
    assert cli.main(sgd.run, sgd.PRESETS, sgd.PROGRAM, "", ["--resume", str(folder)]) == 0
    command = ["evaluate", "chance", "--env", DIGITS, "--episodes", "32", "--runs", str(runs)]
    assert main([*command, *where]) == 0
    capsys.readouterr()
    assert main(["score", *map(str, runs.iterdir())]) == 0
    table = capsys.readouterr().out
    assert f"{DIGITS}: features of the network mine" in table
    assert "not known whether this is the standard evaluation" in table
    assert main(["show", DIGITS]) == 0
    assert "Fingerprint   not known without the features of mine" in capsys.readouterr().out
    monkeypatch.setenv("ICL_BENCH_DATA", str(root))
    assert main(["score", *map(str, runs.iterdir())]) == 0
    assert "not known" not in capsys.readouterr().out


def test_the_fingerprint_holds_the_features_themselves(root: Path, tmp_path: Path) -> None:
    own(root)
    args = EnvArgs(split="unseen", network="mine")
    first = fingerprint(find_spec(DIGITS), args)
    result = icl_bench.evaluate(
        icl_bench.Chance(10), DIGITS, num_episodes=32, network="mine", data_dir=root
    )
    assert result.fingerprint == first
    shutil.copytree(root / "features", tmp_path / "elsewhere" / "features")
    assert fingerprint(find_spec(DIGITS), args, tmp_path / "elsewhere") == first
    own(root, seed=1)  # either split: the training split gives the statistics
    second = fingerprint(find_spec(DIGITS), args)
    rng = np.random.default_rng(2)
    place(root, rng.normal(size=(1297, 20)), "train")
    assert len({first, second, fingerprint(find_spec(DIGITS), args)}) == 3


def test_features_of_half_precision_are_taken(root: Path) -> None:
    made = own(root)
    for split, values in made.items():
        place(root, values.astype(np.float16), split)
    data = load_features("Digits", "test", EMB, "mine")
    assert data.pixels.dtype == np.float32


def nan(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values[7, 3] = np.nan
    return values


BAD: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
    "rows": (lambda v: v[:-1], "has 1296 rows for 1297 images"),
    "nan": (nan, r"1 rows hold numbers that are not finite.* the first is row 7"),
    "too large": (lambda v: v.astype(np.float64) * 1e300, "not finite in float32"),
    "integers": (lambda v: v.astype(np.int64), r"floating-point numbers \[N, P\].*not int64"),
    "one axis": (lambda v: v[:, 0], r"not float32 \(1297,\)"),
    "one feature": (lambda v: v[:, :1], r"P of at least 2, not float32 \(1297, 1\)"),
    "objects": (lambda v: np.array([Bait()] * 1297, dtype=object), "no npz file without pickles"),
}


@pytest.mark.parametrize("damage", BAD)
def test_bad_features_are_refused_with_the_reason(root: Path, damage: str) -> None:
    made = own(root)
    change, message = BAD[damage]
    path = place(root, change(made["train"]), "train")
    with pytest.raises(DataError, match=message) as caught:
        icl_bench.make(DIGITS, network="mine")
    assert str(path) in str(caught.value)
    assert not hasattr(sys, "icl_bench_bait")
    assert not views_folder(root).exists()


@pytest.mark.parametrize("damage", ["cut", "text", "pickle", "no array"])
def test_a_corrupt_file_of_features_is_named(root: Path, damage: str) -> None:
    path = place(root, own(root)["train"], "train")
    if damage == "no array":
        np.savez(path, values=np.zeros(3))
    else:
        whole = path.read_bytes()
        contents = {"cut": whole[: len(whole) // 2], "text": b"x", "pickle": pickle.dumps(Bait())}
        path.write_bytes(contents[damage])
    expected = "lacks the array features" if damage == "no array" else "truncated, corrupt or no"
    with pytest.raises(DataError, match=f"{path}.*{expected}"):
        icl_bench.make(DIGITS, network="mine")
    assert not hasattr(sys, "icl_bench_bait")


def test_a_missing_split_is_named(root: Path) -> None:
    own(root)
    (root / "features" / "mine" / "Digits" / "train.npz").unlink()
    with pytest.raises(
        MissingNetworkError, match=r"features/mine/Digits/train.npz of network mine"
    ):
        icl_bench.make(DIGITS, split="unseen", network="mine")


def test_features_under_a_built_in_name_are_not_passed_over(weights: Path, root: Path) -> None:
    place(root, np.zeros((1297, D)), "train", network="fake")
    with pytest.raises(DataError, match=r"features/fake/Digits holds.*rename the folder fake"):
        icl_bench.make(DIGITS)
