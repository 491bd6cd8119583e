"""Replay: a checkpoint gives the predictions handed in; a file that is not ours is refused."""

import dataclasses
import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import icl_bench
from baselines import cli, gpicl, replay, train
from baselines.common import save_learner
from baselines.replay import ReplayError, load_learner
from baselines.sequence import build_model
from icl_bench.leaderboard.submission import make_submission, read_submission

TINY = (
    *("--preset", "cpu", "--suite", "digits-v0", "--steps", "3", "--batch-size", "4"),
    *("--width", "16", "--layers", "1", "--eval-every", "0", "--device", "cpu"),
)


@pytest.fixture(scope="module")
def handed_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An entry with one seed and its checkpoint."""
    root = tmp_path_factory.mktemp("replay")
    arguments = [*TINY, "--runs", str(root / "runs")]
    method = gpicl.METHOD
    run = cli.main(lambda c: train.run(c, method), gpicl.PRESETS, method.program, "", arguments)
    assert run == 0
    runs = list((root / "runs").iterdir())
    return make_submission(runs, root / "digits-v0" / "gpicl", "digits-v0", checkpoints=True)


@pytest.fixture
def entry(handed_in: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(handed_in, tmp_path / "digits-v0" / "gpicl"))


def checkpoint(entry: Path) -> Path:
    return entry / "checkpoints" / "seed-0.safetensors"


def rewrite(path: Path, about: object) -> None:
    """The same tensors under another header."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata={"learner": json.dumps(about)})


def about(path: Path) -> dict:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["learner"])


def test_a_checkpoint_gives_the_predictions_handed_in(entry, capsys):
    assert replay.main([str(entry), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("same" in line and "0.000%" in line for line in lines)


def test_a_replay_makes_a_run_folder_like_the_one_handed_in(entry, handed_in, tmp_path, capsys):
    assert replay.main([str(entry), "--device", "cpu", "--runs", str(tmp_path / "runs")]) == 0
    path = Path(capsys.readouterr().out.strip())
    again = make_submission([path], tmp_path / "digits-v0" / "again", "digits-v0")
    first = read_submission(handed_in).predictions[0]
    second = read_submission(again).predictions[0]
    assert first.keys() == second.keys()
    for env, predictions in first.items():
        assert (predictions.prediction == second[env].prediction).all()


def test_other_predictions_are_noticed(entry, capsys):
    path = entry / "predictions" / "seed-0.parquet"
    table = pq.read_table(path)
    column = table.schema.get_field_index("prediction")
    values = table["prediction"].to_numpy().copy()
    values[33::100] = (values[33::100] + 1) % 10  # where no log-probabilities are handed in
    replaced = table.set_column(column, table.schema.field(column), [values])
    pq.write_table(replaced, path, compression="zstd")
    assert replay.main([str(entry), "--device", "cpu"]) == 1
    assert "DIFFERS" in capsys.readouterr().out


def test_weights_of_another_training_are_noticed(entry, capsys):
    path = checkpoint(entry)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    generator = torch.Generator().manual_seed(1)
    tensors["head.weight"] = torch.randn(tensors["head.weight"].shape, generator=generator)
    save_file(tensors, path, metadata={"learner": json.dumps(about(path))})
    assert replay.main([str(entry), "--device", "cpu"]) == 1


def test_a_learner_tuned_to_the_frozen_episodes_is_worse_on_fresh_ones(entry, monkeypatch):
    """It knows the frozen labels by their inputs; elsewhere it is at chance."""
    env = icl_bench.make("Digits-Proj8-v0", split="unseen").unwrapped
    frozen = env.episodes(range(256))
    known = {
        x.numpy().tobytes(): int(y)
        for x, y in zip(frozen.x.flatten(0, 1), frozen.y.flatten(), strict=True)
    }

    def memory(x, prev_y):
        labels = [known.get(v.numpy().tobytes(), 0) for v in x.flatten(0, 1)]
        return torch.nn.functional.one_hot(torch.tensor(labels), 10).view(*prev_y.shape, 10).float()

    monkeypatch.setattr(replay, "load_learner", lambda *_: memory)
    digits = replay.replay(read_submission(entry))[0]
    assert digits.env == "Digits-Proj8-v0"
    assert digits.frozen == 1.0
    assert digits.fresh < 0.25


def test_fresh_episodes_are_of_other_tasks_than_the_frozen_ones(monkeypatch):
    env = icl_bench.make("Digits-Proj8-v0", split="unseen").unwrapped
    fresh = env.source.plan(range(replay.FRESH_FROM, replay.FRESH_FROM + 64)).task
    assert np.intersect1d(fresh, np.arange(64)).size == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "os"}, "'os' is none of gpicl"),
        ({"baseline": ["gpicl"]}, "is none of gpicl"),
        ({"config": {"breadth": 3}}, "settings differ in breadth"),
        ({"width": 10**7}, "the tensors are not those of its settings"),
        ({"layers": 10**6}, "layers above 256"),
        ({"width": 32}, "the tensors are not those of its settings"),
        ({"width": -1}, "--width must be"),
        ({"env": "Nothing-v0"}, "Nothing-v0"),
        ({"env": "MNIST-Proj14-v0", "suite": None}, "the tensors are not those of its settings"),
    ],
    ids=str,
)
def test_headers_that_are_refused(entry, changes, message):
    path = checkpoint(entry)
    header = about(path)
    for key, value in changes.items():
        (header if key in header else header["config"])[key] = value
    rewrite(path, header)
    with pytest.raises(ReplayError, match=message):
        load_learner(path)


def test_a_setting_that_came_later_has_its_default(entry):
    path = checkpoint(entry)
    header = about(path)
    assert header["config"].pop("single_task") == 0.0
    rewrite(path, header)
    load_learner(path)


@pytest.mark.parametrize("name", replay.BASELINES)
def test_every_learner_comes_back_from_its_file(name, tmp_path):
    method = importlib.import_module(replay.BASELINES[name]).METHOD
    config = dataclasses.replace(method.presets["cpu"](), env="Digits-Proj8-v0", device="cpu")
    model = build_model(method, config).eval()
    save_learner(tmp_path / "learner.safetensors", model.state_dict(), name, config)
    batch = icl_bench.make("Digits-Proj8-v0").unwrapped.sample(2)
    again = load_learner(tmp_path / "learner.safetensors")
    with torch.no_grad():
        expected = model(batch.x, batch.prev_y)
        assert expected.std() > 0
        torch.testing.assert_close(again(batch.x, batch.prev_y), expected, atol=0, rtol=0)


def test_files_that_are_refused(entry, capsys):
    path = checkpoint(entry)
    rewrite(path, {"no": "learner"})
    with pytest.raises(ReplayError, match="does not say"):
        load_learner(path)
    path.write_bytes(b"\x80\x04K\x01.")  # a pickle
    with pytest.raises(ReplayError, match="not a safetensors file"):
        load_learner(path)
    assert replay.main([str(entry), "--device", "cpu"]) == 2
    path.unlink()
    assert replay.main([str(entry), "--device", "cpu"]) == 2
    assert "no checkpoint to replay" in capsys.readouterr().err
    assert replay.main([str(entry / "nothing")]) == 2


def test_runs_without_weights_cannot_hand_them_in(handed_in, tmp_path):
    (run,) = (handed_in.parents[1] / "runs").iterdir()
    copy = Path(shutil.copytree(run, tmp_path / run.name))
    (copy / "learner.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="without --checkpoints"):
        make_submission([copy], tmp_path / "gpicl", "digits-v0", checkpoints=True)
    assert not (tmp_path / "gpicl").exists()
