"""Replay: a learner gives the predictions handed in; what is tuned, peeks or is not ours shows."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy import stats

import icl_bench
from baselines import cli, gpicl, replay, sgd, train
from baselines.rebuild import ReplayError, load_learner
from baselines.replay_cells import FRESH_FROM, Rerun, rerun_vectors, welch
from icl_bench.data.images import MissingDataError
from icl_bench.leaderboard.learner_files import write_settings
from icl_bench.leaderboard.predictions import Predictions
from icl_bench.leaderboard.replays import FOLDER, read_record, record_of
from icl_bench.leaderboard.submission import make_submission, read_submission

TINY = (
    *("--preset", "cpu", "--suite", "digits-v0", "--steps", "3", "--batch-size", "4"),
    *("--width", "16", "--layers", "1", "--eval-every", "0", "--device", "cpu"),
)
DIGITS = "Digits-Proj8-v0"


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


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def about(path: Path) -> dict:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["learner"])


def rewrite(path: Path, header: object, **tensors: torch.Tensor) -> None:
    """The same file with another header, a text or JSON, or other tensors."""
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(tensors_of(path) | tensors, path, metadata={"learner": text})


def with_other_predictions(entry: Path) -> None:
    path = entry / "predictions" / "seed-0.parquet"
    table = pq.read_table(path)
    column = table.schema.get_field_index("prediction")
    values = table["prediction"].to_numpy().copy()
    values[33::100] = (values[33::100] + 1) % 10  # where no log-probabilities are handed in
    replaced = table.set_column(column, table.schema.field(column), [values])
    pq.write_table(replaced, path, compression="zstd")


# The same learner


def test_a_checkpoint_gives_the_predictions_handed_in(entry, capsys):
    assert replay.main([str(entry), "--device", "cpu"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("same" in line and "0.000%" in line for line in lines)
    assert last == f"{entry}: replayed"
    assert not (entry.parents[1] / FOLDER).exists()


def test_a_replay_makes_a_run_folder_like_the_one_handed_in(entry, handed_in, tmp_path, capsys):
    assert replay.main([str(entry), "--device", "cpu", "--runs", str(tmp_path / "runs")]) == 0
    path = Path(capsys.readouterr().out.strip())
    again = make_submission([path], tmp_path / "digits-v0" / "again", "digits-v0")
    first = read_submission(handed_in).predictions[0]
    second = read_submission(again).predictions[0]
    assert first.keys() == second.keys()
    for env, predictions in first.items():
        assert (predictions.prediction == second[env].prediction).all()


def test_weights_of_another_training_are_noticed(entry, capsys):
    path = checkpoint(entry)
    generator = torch.Generator().manual_seed(1)
    shape = tensors_of(path)["head.weight"].shape
    rewrite(path, about(path), **{"head.weight": torch.randn(shape, generator=generator)})
    assert replay.main([str(entry), "--device", "cpu"]) == 1
    assert f"{entry}: DIFFERS on {DIGITS}, seed 0 and 1 more" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["chance", "1-nn", "logistic-regression"])
def test_references_are_handed_in_by_name(name, tmp_path, capsys):
    learner = icl_bench.evaluation.learner.REFERENCES[name](10)
    results = icl_bench.evaluate_suite(learner, "digits-v0")
    run = icl_bench.save_run(results, tmp_path / "runs", name=name, suite="digits-v0")
    write_settings(run / "learner.json", name, {"num_classes": 10})
    path = make_submission([run], tmp_path / "digits-v0" / name, "digits-v0", checkpoints=True)
    assert [file.name for file in (path / "checkpoints").iterdir()] == ["seed-0.json"]
    assert replay.main([str(path), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count("0.000% of predictions differ") == 2


def test_sgd_is_handed_in_by_its_settings(tmp_path):
    arguments = ["--preset", "cpu", "--suite", "digits-v0", "--seed", "3", "--hidden", "8"]
    arguments += ["--device", "cpu", "--runs", str(tmp_path / "runs")]
    assert cli.main(sgd.run, sgd.PRESETS, sgd.PROGRAM, "", arguments) == 0
    runs = list((tmp_path / "runs").iterdir())
    path = make_submission(runs, tmp_path / "digits-v0" / "sgd", "digits-v0", checkpoints=True)
    assert replay.replay(read_submission(path)).same
    file = path / "checkpoints" / "seed-3.json"
    document = json.loads(file.read_text())
    assert document["config"]["runs"] == "runs"  # says nothing about the machine
    x, prev_y = torch.randn(1, 3, 64, generator=torch.Generator()), torch.tensor([[-1, 2, 5]])
    logits = load_learner(file)(x, prev_y)
    document["config"]["seed"] = 4
    file.write_text(json.dumps(document))
    assert not torch.equal(load_learner(file)(x, prev_y), logits)


def test_one_seed_has_one_learner(handed_in, tmp_path):
    (run,) = (handed_in.parents[1] / "runs").iterdir()
    copy = Path(shutil.copytree(run, tmp_path / run.name))
    out = tmp_path / "gpicl"
    path = make_submission([copy], out, "digits-v0", checkpoints=True)
    write_settings(path / "checkpoints" / "seed-0.json", "chance", {"num_classes": 10})
    with pytest.raises(ReplayError, match="one learner of a seed"):
        replay.replay(read_submission(path))
    shutil.rmtree(out)
    (copy / "learner.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="without --checkpoints"):
        make_submission([copy], out, "digits-v0", checkpoints=True)
    write_settings(copy / "learner.json", "chance", {"num_classes": 10})
    (copy / "results" / "Random-Proj8-v0__unseen.parquet").unlink()
    whole = Path(shutil.copytree(run, tmp_path / "second" / run.name))
    (whole / "results" / f"{DIGITS}__unseen.parquet").unlink()
    with pytest.raises(ValueError, match="two learners of seed 0"):
        make_submission([copy, whole], out, "digits-v0", checkpoints=True)
    assert not out.exists()


# Frozen and fresh


def test_fresh_episodes_are_of_other_tasks_than_the_frozen_ones():
    env = icl_bench.make(DIGITS, split="unseen").unwrapped
    fresh = env.source.plan(range(FRESH_FROM, FRESH_FROM + 1024)).task
    assert fresh.min() >= 64  # those of the larger hand-in are 0 to 63
    assert len(np.unique(fresh)) == 64


def knowing(*ids: range, **kwargs) -> Callable[..., torch.Tensor]:
    """A learner that knows the labels of these episodes by their inputs, and nothing else."""
    env = icl_bench.make(DIGITS, **{"split": "unseen"} | kwargs).unwrapped
    batches = [env.episodes(part) for part in ids]
    known = {
        x.numpy().tobytes(): int(y)
        for batch in batches
        for x, y in zip(batch.x.flatten(0, 1), batch.y.flatten(), strict=True)
    }

    def learner(x: torch.Tensor, prev_y: torch.Tensor) -> torch.Tensor:
        labels = [known.get(v.numpy().tobytes(), 0) for v in x.flatten(0, 1)]
        return torch.nn.functional.one_hot(torch.tensor(labels), 10).view(*prev_y.shape, 10).float()

    return learner


def test_a_learner_tuned_to_the_frozen_episodes_shows_as_a_gap(entry, monkeypatch, capsys):
    memory = knowing(range(256))
    monkeypatch.setattr(replay, "load_learner", lambda *_: memory)
    submission = read_submission(entry)
    record = replay.replay(submission)
    cell = record.cells[0][DIGITS]
    assert cell.frozen == 1.0
    assert cell.fresh < 0.25
    assert cell.gap.low > 0.7
    assert cell.tuned
    assert cell.first_step_p > 1e-3  # on fresh episodes it knows nothing
    same = {0: {env: dataclasses.replace(c, differing=0.0) for env, c in record.cells[0].items()}}
    told = replay.verdict(submission, dataclasses.replace(record, cells=same))
    assert told == (f"GAP on {DIGITS}, seed 0", False)


def test_a_learner_that_knows_fresh_labels_peeks(entry, monkeypatch):
    memory = knowing(range(256), range(FRESH_FROM, FRESH_FROM + 256))
    env = icl_bench.make(DIGITS, split="unseen").unwrapped
    prediction = env.episodes(range(256)).y.numpy().astype(np.uint8)
    handed_in = Predictions(prediction, np.zeros((256, 7, 10), np.float16))
    found = rerun_vectors(memory, env, handed_in)
    assert (found.differing, found.gap().mean) == (0.0, 0.0)
    cell = found.cell(1)
    assert not cell.tuned
    assert cell.first_step_p < 1e-6
    submission = read_submission(entry)
    record = replay.ReplayRecord("", "", {0: {DIGITS: cell}}, {})
    assert replay.verdict(submission, record) == (f"PEEKS on {DIGITS}, seed 0", False)
    cell = dataclasses.replace(cell, first_step_p=0.5)
    told = replay.verdict(submission, replay.ReplayRecord("", "", {0: {DIGITS: cell}}, {}))
    assert told == ("replayed: 1 of 2 cells (seeds x environments)", True)


@pytest.mark.parametrize("name", ["chance", "1-nn", "logistic-regression"])
def test_an_honest_learner_has_no_gap(name):
    learner = icl_bench.evaluation.learner.REFERENCES[name](10)
    env = icl_bench.make(DIGITS, split="unseen").unwrapped
    result = icl_bench.evaluate(learner, DIGITS)
    found = rerun_vectors(learner, env, Predictions(result.prediction, result.log_probs))
    cell = found.cell(1)
    assert cell.same
    assert cell.frozen == result.accuracy()
    assert not cell.tuned
    assert cell.gap.low < 0
    assert cell.first_step_p > 1e-3


def test_the_interval_of_the_gap_is_welchs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.6, 0.1, 16), rng.normal(0.5, 0.02, 12)
    found = welch(a, b, 0.9)
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(a.mean() - b.mean())
    same = welch(np.ones(16), np.full(16, 0.9), 0.95)
    assert (same.low, same.mean, same.high) == pytest.approx((0.1, 0.1, 0.1))


def simulated(rng: np.random.Generator, tuned: float = 0.0) -> Rerun:
    """Tasks of different difficulty, 16 episodes each, as the protocol has them."""
    accuracy = np.clip(rng.normal(0.6, 0.08, (2, 16)), 0, 1)
    accuracy[0] = np.minimum(1, accuracy[0] + tuned)
    frozen, fresh = rng.binomial(16, accuracy) / 16
    return Rerun(0.0, frozen, fresh, 0.5)


def test_an_honest_entry_is_seldom_accused_and_a_tuned_one_mostly_found():
    rng = np.random.default_rng(1)
    covered = [(g := simulated(rng).gap()).low <= 0 <= g.high for _ in range(2000)]
    assert 0.93 <= np.mean(covered) <= 0.97
    entries = [any(simulated(rng).cell(6).tuned for _ in range(6)) for _ in range(400)]
    assert sum(entries) <= 3  # 0.2 are expected
    at_95 = [any(simulated(rng).gap().low > 0 for _ in range(6)) for _ in range(300)]
    assert np.mean(at_95) > 0.08
    assert np.mean([simulated(rng, 0.35).cell(6).tuned for _ in range(200)]) > 0.9


# Taxonomy


def said(entry: Path, old: str, new: str) -> None:
    file = entry / "entry.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_the_taxonomy_is_of_seen_and_unseen_tasks(entry, monkeypatch, capsys):
    assert replay.taxonomies(read_submission(entry)) == {}  # unbounded tasks, none was seen
    said(entry, 'num_tasks = "none"', "num_tasks = 4")
    said(entry, "repeat = 0.7", "repeat = 0.0")
    assert replay.replay(read_submission(entry)).taxonomy == {DIGITS: "at chance"}
    memory = knowing(range(256), split="seen", num_tasks=4)
    monkeypatch.setattr(replay, "load_learner", lambda *_: memory)
    assert replay.taxonomies(read_submission(entry)) == {DIGITS: "memorises"}
    said(entry, "num_tasks = 4", "num_tasks = 4\nnormalize = false")
    assert replay.taxonomies(read_submission(entry)) == {}
    assert "arguments normalize of meta-training" in capsys.readouterr().err


# Records


def test_a_record_counts_until_a_file_changes(entry, capsys):
    root = entry.parents[1]
    arguments = [str(entry), "--device", "cpu", "--record"]
    assert replay.main(arguments) == 0
    path = root / FOLDER / "digits-v0" / "gpicl.json"
    assert str(path) in capsys.readouterr().out
    first = path.read_bytes()
    record = record_of(entry)
    assert record == read_record(path)
    assert record.same
    assert {seed: set(by_env) for seed, by_env in record.cells.items()} == {
        0: {DIGITS, "Random-Proj8-v0"}
    }
    assert replay.main(arguments) == 0
    assert path.read_bytes() == first
    assert replay.main(["--check", "--root", str(root)]) == 0
    said(entry, 'title = "GPICL Transformer"', 'title = "Ours"')  # not what was replayed
    assert replay.main(["--check", "--root", str(root)]) == 0
    with_other_predictions(entry)
    capsys.readouterr()
    assert replay.main(["--check", "--root", str(root)]) == 1
    assert "gpicl.json: predictions or checkpoints changed" in capsys.readouterr().out
    path.unlink()
    assert replay.main(arguments) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert "DIFFERS" in last
    assert last.endswith("not recorded")
    assert not path.exists()


def test_a_replay_of_less_or_an_interrupted_one_leaves_the_record(entry, monkeypatch, capsys):
    arguments = [str(entry), "--device", "cpu", "--record"]
    assert replay.main(arguments) == 0
    path = entry.parents[1] / FOLDER / "digits-v0" / "gpicl.json"
    first, make = path.read_bytes(), icl_bench.make

    def made(env: str, **kwargs) -> object:
        if env == DIGITS:
            return make(env, **kwargs)
        raise failure

    monkeypatch.setattr(icl_bench, "make", made)
    failure: BaseException = MissingDataError("no data")
    assert replay.main(arguments) == 0
    assert "1 of 2 cells" in (last := capsys.readouterr().out.splitlines()[-1])
    assert last.endswith("gpicl.json has more cells and stays")
    failure = KeyboardInterrupt()
    assert replay.main(arguments) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == ["gpicl.json"]


def test_a_record_is_written_beside_its_suite_alone(entry, capsys):
    draft = Path(shutil.copytree(entry, entry.parents[1] / "drafts" / "gpicl"))
    assert replay.main([str(draft), "--device", "cpu", "--record"]) == 2
    assert "--record needs an entry in a folder digits-v0" in capsys.readouterr().err
    assert not (entry.parents[1] / FOLDER).exists()


def test_records_of_nothing_and_damaged_ones_are_named(entry, capsys):
    root = entry.parents[1]
    assert replay.main([str(entry), "--device", "cpu", "--record"]) == 0
    folder = root / FOLDER / "digits-v0"
    shutil.copyfile(folder / "gpicl.json", folder / "gone.json")
    (folder / "damaged.json").write_text("{}")
    text = (folder / "gpicl.json").read_text()
    (folder / "gpicl.json").write_text(text.replace('"differing": 0.0', '"differing": 0.5'))
    assert [
        problem.partition(".json")[0].rpartition("/")[2] for problem in (replay.check_records(root))
    ] == ["damaged", "gone", "gpicl"]


def test_several_entries_end_with_a_line_each(entry, tmp_path, capsys):
    bare = Path(shutil.copytree(entry, tmp_path / "digits-v0" / "bare"))
    shutil.rmtree(bare / "checkpoints")
    said(bare, 'name = "gpicl"', 'name = "bare"')
    nothing = tmp_path / "nothing"
    assert replay.main([str(bare), str(entry), str(nothing), "--device", "cpu"]) == 2
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == f"{entry}: replayed"
    first, second = shown.err.splitlines()
    assert first.startswith(f"{bare}: not replayed (there is no checkpoint to replay")
    assert second.startswith(f"{nothing}: not replayed (no submission")
    with pytest.raises(SystemExit):
        replay.main([])
    with pytest.raises(SystemExit):
        replay.main([str(entry), "--check"])


def test_what_a_stranger_wrote_cannot_steer_a_terminal(entry, capsys):
    header = about(checkpoint(entry))
    header["config"] |= {"suite": "\x1b[2J\u202egpj\n" + "x" * 5000}
    rewrite(checkpoint(entry), header)
    assert replay.main([str(entry), "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "\x1b" not in line
    assert "\u202e" not in line
    assert len(line) < 600


def test_a_learner_that_fails_on_the_episodes_is_not_replayed(entry, capsys):
    header = about(checkpoint(entry))
    header["config"]["episode_length"] = 50
    weight = tensors_of(checkpoint(entry))["position"][:50].clone()
    rewrite(checkpoint(entry), header, position=weight)
    assert replay.main([str(entry), "--device", "cpu"]) == 2
    assert "it cannot predict Digits-Proj8-v0" in capsys.readouterr().err
