"""Features: the view Emb, networks and their weights, the user's own features, what records say."""

import dataclasses
import functools
import hashlib
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import data_folder
from gymnasium.utils.env_checker import check_env
from user_sets import restored_registries

import icl_bench
from baselines import cli, gpicl, sgd, train
from icl_bench.__main__ import main
from icl_bench.catalog import ENVIRONMENTS, VIEWS
from icl_bench.data import features, networks, views
from icl_bench.data.cache import sha256_file
from icl_bench.data.features import MissingNetworkError, compression, load_features
from icl_bench.data.images import DataError, MissingDataError, load_images
from icl_bench.data.networks import IMAGENET, NETWORKS, SIZE, Network, download_network
from icl_bench.data.views import load_view
from icl_bench.envs.source import EnvArgs, fingerprint
from icl_bench.evaluation.plots import plot_learning_curves
from icl_bench.evaluation.protocol import evaluation_fingerprint
from icl_bench.evaluation.statistics import paired_difference, task_interval
from icl_bench.leaderboard.runs import load_run
from icl_bench.leaderboard.scoring import score_column
from icl_bench.leaderboard.tables import board_from_runs
from icl_bench.registration import EnvSpec, find_spec

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


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder and an empty cache; no network is chosen, and their inputs are small."""
    monkeypatch.setenv("ICL_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ICL_BENCH_DATA", str(tmp_path))
    monkeypatch.delenv(features.NETWORK_VARIABLE, raising=False)
    monkeypatch.setattr(features, "SIZE", SMALL)
    return tmp_path


@pytest.fixture
def weights(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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


# The catalog


def test_every_data_set_with_images_has_the_view_and_random_points_have_not() -> None:
    with_view = {row.base for row in ENVIRONMENTS if row.view == "Emb"}
    assert with_view == {row.base for row in ENVIRONMENTS} - {"Random"}
    for base in with_view:
        spec = find_spec(f"{base}-Emb-v0")
        assert spec.num_features == D == EMB.num_features
    with pytest.raises(ValueError, match="Random has no images that a network could see"):
        icl_bench.register(EnvSpec("Random-Emb-v1", "Random", "Emb", 1, D, 10))


def test_relatives_of_an_embedded_environment_are_embedded() -> None:
    relatives = icl_bench.cross("MNIST-Emb-v0")
    assert "CIFAR10-Emb-v0" in relatives
    assert all(env.split("-")[1] == "Emb" for env in relatives)


def test_a_data_set_of_the_users_own_gets_the_view(weights: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        split: (rng.integers(0, 256, (120, 9, 9, 3), dtype=np.uint8), np.arange(120) % 4)
        for split in ("train", "test")
    }
    with restored_registries():
        ids = icl_bench.register_dataset("Mine", arrays=arrays)
        assert "Mine-Emb-v0" in ids
        batch = icl_bench.make("Mine-Emb-v0", split="unseen").unwrapped.sample(2)
        assert batch.x.shape == (2, 100, D)


# Inputs


def test_features_are_what_the_network_gives_of_every_image(weights: Path) -> None:
    data = load_features("Digits", "test", EMB, "fake")
    assert data.pixels.shape == (500, D)
    assert data.copies == 1
    np.testing.assert_allclose(data.pixels[:60], expected_features(weights, "test"), atol=2e-4)
    np.testing.assert_array_equal(data.labels, load_images("Digits", "test").labels)
    train = load_features("Digits", "train", EMB, "fake").pixels.astype(np.float64)
    np.testing.assert_allclose((data.mean, data.std), (train.mean(), train.std()), rtol=1e-9)
    assert (data.stats_split, data.pixels.dtype) == ("train", np.float32)
    assert isinstance(data.pixels, np.memmap)


def test_colour_reaches_the_network_channel_by_channel(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(state: dict[str, torch.Tensor]) -> Run:
        run = pooled(state)
        return lambda x: (seen.append(x), run(x))[1]

    add_network(monkeypatch, root, build=spy)
    images = np.zeros((30, 8, 8, 3), np.uint8)
    images[..., 0], images[..., 1], images[..., 2] = 255, 51, np.arange(30)[:, None, None]
    with restored_registries():
        icl_bench.register_dataset("Mine", arrays={"train": (images, np.arange(30) % 3)})
        load_features("Mine", "train", EMB, "fake")
    values = torch.cat(seen)
    assert values.shape == (30, 3, SMALL, SMALL)
    mean, std = (torch.tensor(v) for v in IMAGENET)
    for i in (0, 7, 29):
        expected = (torch.tensor([1.0, 0.2, i / 255]) - mean) / std
        spread = values[i].amax(dim=(1, 2)) - values[i].amin(dim=(1, 2))
        torch.testing.assert_close(values[i].mean(dim=(1, 2)), expected, atol=1e-4, rtol=0)
        assert spread.max() < 1e-4


def test_an_input_is_a_task_s_projection_of_normalised_features(weights: Path) -> None:
    env = icl_bench.make(DIGITS, split="unseen").unwrapped
    batch, plan = env.episodes([33]), env.source.plan([33])
    projection, permutation = env.task(2)
    assert projection.shape == (D, D)
    data = load_features("Digits", "test", EMB, "fake")
    rows = torch.from_numpy(np.array(data.pixels[plan.example[0]])).double()
    expected = (rows - data.mean) / data.std @ projection.double().T
    torch.testing.assert_close(batch.x[0].double(), expected, atol=1e-4, rtol=0)
    labels = data.labels[plan.example[0]].astype(np.int64)
    assert torch.equal(batch.y[0], permutation[torch.from_numpy(labels)])


@pytest.mark.parametrize("num_features", [40, 700])
def test_another_number_of_features_is_centred_and_brought_to_d(
    root: Path, monkeypatch: pytest.MonkeyPatch, num_features: int
) -> None:
    path = add_network(monkeypatch, root, "other", num_features)
    weight = torch.load(path, weights_only=True)["weight"]
    data = load_features("Digits", "test", EMB, "other")
    assert data.pixels.shape == (500, D)
    train, test = (
        np.load(file)
        for split in ("train", "test")
        for file in (root / "cache" / "views").glob(f"Digits-{split}-other-*")
        if file.suffix == ".npy" and "-to" not in file.name
    )
    assert test.shape == (500, len(weight))
    mean, std = train.mean(dtype=np.float64), train.std(dtype=np.float64)
    expected = (test - mean) @ compression(num_features, D).astype(np.float64).T
    np.testing.assert_allclose(data.pixels, expected, atol=1e-4)
    assert data.mean == 0
    assert data.std == pytest.approx(std, rel=1e-6)
    # So inputs have about unit variance, as those of other views.
    batch = icl_bench.make(DIGITS, split="unseen", network="other").unwrapped.sample(32)
    assert 0.5 < batch.x.std() < 2


def check_compression(matrix: np.ndarray, num_features: int) -> None:
    """Entries N(0, 1/P), rows and columns uncorrelated, inner products kept."""
    dim, n = matrix.shape[0], matrix.size
    scaled = matrix.astype(np.float64) * num_features**0.5
    within(scaled.mean(), 0, n**-0.5)
    within((scaled**2).mean(), 1, (2 / n) ** 0.5)
    within((scaled**4).mean(), 3, (96 / n) ** 0.5)
    for a, b in ((scaled[1:], scaled[:-1]), (scaled[:, 1:], scaled[:, :-1])):
        within((a * b).mean(), 0, a.size**-0.5)
    x = np.random.default_rng(0).normal(size=(2, num_features))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = x @ scaled.T / dim**0.5
    within(y[0] @ y[0], 1, (2 / dim) ** 0.5)
    within(y[0] @ y[1], x[0] @ x[1], (1 / dim) ** 0.5)


@pytest.mark.parametrize("num_features", [1280, 2048, 64])
def test_the_fixed_matrix_is_gaussian_and_keeps_inner_products(num_features: int) -> None:
    matrix = compression(num_features, D)
    assert matrix.shape == (D, num_features)
    check_compression(matrix, num_features)
    uniform = np.random.default_rng(0).uniform(-(3**0.5), 3**0.5, matrix.shape)
    mutants = (
        matrix * (num_features / D) ** 0.5,  # N(0, 1/D)
        uniform / num_features**0.5,
        np.broadcast_to(matrix[:1], matrix.shape),
        matrix + 0.1,
    )
    for mutant in mutants:
        with pytest.raises(AssertionError, match="expected"):
            check_compression(mutant, num_features)


def test_the_fixed_matrix_is_golden() -> None:
    found = compression(1280, D)
    np.testing.assert_allclose(found[0, :3], GOLDEN[0], atol=1e-7)
    np.testing.assert_allclose(found[511, -3:], GOLDEN[1], atol=1e-7)
    assert not np.allclose(compression(2048, D)[0, :3], found[0, :3])


GOLDEN = (
    (-0.0013944788370281458, -0.0017315108561888337, 0.026941431686282158),
    (0.019085830077528954, 0.04999551549553871, 0.008165411651134491),
)


# Environments


@pytest.mark.parametrize("base", ["Digits", "DigitsLow"])
@pytest.mark.parametrize("num_features", [D, 100])
def test_embedded_environments_pass_all_checks(
    root: Path, monkeypatch: pytest.MonkeyPatch, base: str, num_features: int
) -> None:
    add_network(monkeypatch, root, "fake", num_features)
    monkeypatch.setenv(features.NETWORK_VARIABLE, "fake")
    for split in ("train", "unseen"):
        check_env(icl_bench.make(f"{base}-Emb-v0", split=split).unwrapped)
        icl_bench.check_env(f"{base}-Emb-v0", split=split)


def test_integers_are_those_of_the_other_views(weights: Path) -> None:
    emb, proj = (
        icl_bench.make(f"Digits-{view}-v0", split="unseen").unwrapped.source.plan(range(40))
        for view in ("Emb", "Proj8")
    )
    for field in dataclasses.fields(emb):
        assert np.array_equal(getattr(emb, field.name), getattr(proj, field.name))


def test_unbounded_tasks_are_drawn_too(weights: Path) -> None:
    batch = icl_bench.make(DIGITS, num_tasks=None).unwrapped.sample(8)
    assert batch.x.shape == (8, 100, D)
    assert 0.5 < batch.x.std() < 2


def test_a_picture_shows_features(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = icl_bench.make(DIGITS, render_mode="rgb_array", episode_length=4)
    env.reset()
    picture = env.render()
    assert picture.std() > 10
    other = icl_bench.make(DIGITS, render_mode="rgb_array", episode_length=4, seed=1)
    other.reset()
    assert not np.array_equal(picture, other.render())


def test_the_command_line_knows_embedded_environments(
    weights: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["list"]) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if DIGITS in line)
    assert row.endswith("embedded; fake: at hand")
    assert main(["show", DIGITS]) == 0
    shown = capsys.readouterr().out
    assert "512 features of a pretrained network" in shown
    assert "Network       fake: at hand" in shown
    assert evaluation_fingerprint(DIGITS) in shown
    assert main(["sample", DIGITS, "--out", str(tmp_path / "x.png"), "--steps", "3"]) == 0
    assert (tmp_path / "x.png").stat().st_size > 1000
    assert main(["verify", DIGITS]) == 0
    checked = capsys.readouterr().out
    assert "WRONG" not in checked
    assert "golden integers: equal in seen, train, unseen, val" in checked
    command = ["evaluate", "1-nn", "--env", DIGITS, "--runs", str(tmp_path / "runs")]
    assert main([*command, "--episodes", "32"]) == 0
    (file,) = (tmp_path / "runs").rglob("*.parquet")
    assert icl_bench.Result.load(file).env_kwargs["network"] == "fake"
    weights.unlink()
    assert main(["show", DIGITS]) == 0
    assert "Network       fake: missing, icl-bench download fake" in capsys.readouterr().out


def test_a_difficulty_picture_is_drawn(weights: Path, tmp_path: Path) -> None:
    from icl_bench.leaderboard.cards import draw_cards

    (file,) = draw_cards([DIGITS], tmp_path / "card.png")
    assert file.stat().st_size > 1000


# Records


def test_the_network_is_in_the_fingerprint_and_in_records(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_network(monkeypatch, root, "fake")
    add_network(monkeypatch, root, "other", 600)
    learner = icl_bench.NearestNeighbour()
    found = {
        name: icl_bench.evaluate(learner, DIGITS, num_episodes=32, network=name)
        for name in ("fake", "other")
    }
    for name, result in found.items():
        assert result.env_kwargs["network"] == name
    prints = {result.fingerprint for result in found.values()}
    assert len(prints) == 2
    assert evaluation_fingerprint(DIGITS) not in prints  # that of resnet18
    # The variable is the same as the argument, and what counts is written down with the episodes.
    monkeypatch.setenv(features.NETWORK_VARIABLE, "other")
    again = icl_bench.evaluate(learner, DIGITS, num_episodes=32)
    assert again.env_kwargs["network"] == "other"
    assert again.fingerprint == found["other"].fingerprint == evaluation_fingerprint(DIGITS)
    assert np.array_equal(again.prediction, found["other"].prediction)
    assert not np.array_equal(again.prediction, found["fake"].prediction)


def test_an_environment_keeps_its_network_when_the_variable_changes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_network(monkeypatch, root, "fake")
    monkeypatch.setenv(features.NETWORK_VARIABLE, "fake")
    env = icl_bench.make(DIGITS, split="unseen").unwrapped
    before = env.fingerprint
    monkeypatch.setenv(features.NETWORK_VARIABLE, "resnet18")
    assert env.fingerprint == before != evaluation_fingerprint(DIGITS)
    assert env.source.at_seed(1).args.network == "fake"


def test_weights_and_format_are_part_of_the_fingerprint(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, args = find_spec(DIGITS), EnvArgs(split="unseen", network="fake")
    add_network(monkeypatch, root)
    first = fingerprint(spec, args)
    changed = dataclasses.replace(NETWORKS["fake"], sha256="00000000")
    with monkeypatch.context() as patch:
        patch.setitem(NETWORKS, "fake", changed)
        assert fingerprint(spec, args) != first
    for name in ("SIZE", "FORMAT"):
        with monkeypatch.context() as patch:
            patch.setattr(features, name, getattr(features, name) + 1)
            assert fingerprint(spec, args) != first
    assert fingerprint(spec, args) == first


def test_what_was_shown_is_told_and_networks_are_not_mixed(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    add_network(monkeypatch, root, "fake")
    add_network(monkeypatch, root, "other", 600)
    learner = icl_bench.NearestNeighbour()
    fake, other = (
        icl_bench.evaluate(learner, DIGITS, num_episodes=256, network=name)
        for name in ("fake", "other")
    )
    with pytest.raises(ValueError, match="identical episodes: they are features of fake and other"):
        score_column([fake, other], 256)
    with pytest.raises(ValueError, match=f"{DIGITS} are by features of fake and other: draw a"):
        plot_learning_curves({"a": {DIGITS: [fake]}, "b": {DIGITS: [other]}}, tmp_path / "a.png")
    # The variable of whoever looks at a run does not matter.
    folders = [
        icl_bench.save_run([result], tmp_path / "runs", name=name)
        for name, result in (("a", fake), ("b", other))
    ]
    table = board_from_runs([load_run(folder) for folder in folders])
    assert f"a: {DIGITS}: features of the network fake." in table
    assert f"b: {DIGITS}: features of the network other." in table
    assert "not the standard" not in table
    strange = dataclasses.replace(fake, fingerprint="0" * 64)
    folder = icl_bench.save_run([strange], tmp_path / "runs", name="c")
    assert f"{DIGITS} is not the standard evaluation" in board_from_runs([load_run(folder)])


def test_a_meta_training_says_its_network_and_goes_on_with_no_other(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("fake", "other"):
        add_network(monkeypatch, root, name)
    monkeypatch.setenv(features.NETWORK_VARIABLE, "fake")
    small = "--width 8 --layers 1 --heads 1 --batch-size 2 --steps 2 --warmup 0 --episodes 32"
    runs = root / "runs"
    given = ["--env", "DigitsLow-Emb-v0", *small.split(), "--eval-every", "0"]

    def program(*arguments: str) -> int:
        return cli.main(
            functools.partial(train.run, method=gpicl.METHOD),
            gpicl.PRESETS,
            gpicl.METHOD.program,
            "About.",
            list(arguments),
        )

    assert program(*given, "--runs", str(runs)) == 0
    (folder,) = runs.iterdir()
    entry = load_run(folder).entry
    assert entry.meta_train_kwargs["network"] == "fake"
    config = gpicl.Config(env="DigitsLow-Proj4-v0")
    assert "network" not in config.meta_train_kwargs()
    capsys.readouterr()
    monkeypatch.setenv(features.NETWORK_VARIABLE, "other")
    assert program("--resume", str(folder)) == 2
    message = capsys.readouterr().err
    assert "features of other networks" in message
    assert "DigitsLow-Emb-v0" in message


def test_environments_of_pixels_know_nothing_of_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    env_id = "Digits-Proj8-v0"
    before = evaluation_fingerprint(env_id)
    monkeypatch.setenv(features.NETWORK_VARIABLE, "efficientnet-lite0")
    assert evaluation_fingerprint(env_id) == before
    env = icl_bench.make(env_id, split="unseen").unwrapped
    assert env.source.args.overrides() == {"split": "unseen"}
    with pytest.raises(ValueError, match="view Proj8 shows pixels, leave it out"):
        icl_bench.make(env_id, network="resnet18")
    with pytest.raises(ValueError, match=r"see features\.load_features"):
        load_view("Digits", "test", EMB)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b"])
def test_a_name_that_could_be_a_path_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="the name of a network is letters, digits"):
        icl_bench.make(DIGITS, network=name)


def test_a_bad_name_in_the_variable_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(features.NETWORK_VARIABLE, "a/b")
    with pytest.raises(ValueError, match=r"not 'a/b' \(ICL_BENCH_NETWORK\)"):
        icl_bench.make(DIGITS)


def test_a_network_is_given_by_name() -> None:
    with pytest.raises(TypeError, match="network must be the name of one, not 5"):
        icl_bench.make(DIGITS, network=5)


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


def views_folder(root: Path) -> Path:
    return root / "cache" / "views"


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


class Bait:
    """A pickle that would run code when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("import sys; sys.icl_bench_bait = True",))


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
