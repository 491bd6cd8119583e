"""The view Emb: environments of features, their inputs and what records say of networks."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from tiny_networks import (
    DIGITS,
    EMB,
    SMALL,
    D,
    Run,
    add_network,
    choose_fake,
    empty_folder,
    expected_features,
    pooled,
    within,
)
from user_sets import restored_registries

import icl_bench
from baselines import cli, gpicl, train
from icl_bench.__main__ import main
from icl_bench.catalog import ENVIRONMENTS
from icl_bench.data import features
from icl_bench.data.features import compression, load_features
from icl_bench.data.images import load_images
from icl_bench.data.networks import IMAGENET, NETWORKS
from icl_bench.data.views import load_view
from icl_bench.envs.source import EnvArgs, fingerprint
from icl_bench.evaluation.plots import plot_learning_curves
from icl_bench.evaluation.protocol import evaluation_fingerprint
from icl_bench.leaderboard.runs import load_run
from icl_bench.leaderboard.scoring import score_column
from icl_bench.leaderboard.tables import board_from_runs
from icl_bench.registration import EnvSpec, find_spec


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return empty_folder(tmp_path, monkeypatch)


@pytest.fixture
def weights(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return choose_fake(root, monkeypatch)


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
