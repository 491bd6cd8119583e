"""Groups of runs that are computed together: each ends as alone, whatever becomes of the others."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import ROOT
from ensembles import SMALL, built, configs, runs
from safetensors.torch import load_file
from torch import Tensor

from baselines import checkpoint, common, monitor
from baselines.experiments import ensemble, execute
from baselines.experiments import store as store_module
from baselines.experiments.ensemble import execute_together, groups
from baselines.experiments.spec import ExperimentError, Measure, Run
from baselines.experiments.stack import Stack
from baselines.experiments.store import BusyError, Store


def test_runs_of_one_shape_are_grouped_in_their_order() -> None:
    wide = runs(width=32)
    mixed = [r for pair in zip(runs(), wide, strict=True) for r in pair]
    found = groups(mixed, 32)
    assert [[r.key for r in group] for group in found] == [
        [r.key for r in group] for group in (runs(), wide)
    ]
    assert [len(group) for group in groups(mixed, 2)] == [2, 2, 1, 1]
    assert [group[0].key for group in groups(mixed, 1)] == [r.key for r in mixed]


@pytest.mark.parametrize(
    "changes",
    [
        *({name: 2} for name in ("width", "heads", "steps", "batch_size", "log_every")),
        *({name: 4} for name in ("layers", "episode_length", "eval_every", "checkpoint_every")),
        {"accumulate": 2},
        {"optimizer": "sign"},
        {"precision": "bf16"},
        {"compile": True},
        {"env": "Digits-Proj4-v0"},  # ten classes
        {"env": "DigitsLow-Proj8-v0"},
    ],
    ids=str,
)
def test_other_shapes_are_other_groups(changes: dict[str, Any]) -> None:
    run = runs(heads=1)[0]
    other = dataclasses.replace(run, config=dataclasses.replace(run.config, **changes))
    assert len(groups([run, other], 8)) == 2
    assert len(groups([run, dataclasses.replace(run, labels={"a": 1})], 8)) == 1


def test_what_cannot_be_stacked_is_left_alone() -> None:
    apart = [
        *runs("lstm"),
        *runs(optimizer="muon"),
        *(dataclasses.replace(run, measure=Measure(suite=True)) for run in runs()),
        *(Run(name, common.RunConfig(env=SMALL["env"])) for name in ("1-nn", "chance")),
    ]
    assert [len(group) for group in groups(apart, 8)] == [1] * len(apart)


def test_members_fit_the_memory_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configs("outer-lstm")[0]
    kept = built("outer-lstm", config).kept_by_step(config.batch_size) * config.episode_length
    monkeypatch.setattr(ensemble, "MOST_KEPT", 2 * kept + 1)
    assert [len(group) for group in groups(runs("outer-lstm"), 8)] == [2, 1]
    monkeypatch.setattr(ensemble, "MOST_KEPT", kept - 1)
    assert [len(group) for group in groups(runs("outer-lstm"), 8)] == [1, 1, 1]


def test_a_group_of_none_is_refused() -> None:
    with pytest.raises(ExperimentError, match="--together must be 1 or more, not 0"):
        groups(runs(), 0)


# Run folders


def rows(store: Store, run: Run) -> pd.DataFrame:
    return pd.read_parquet(store.run_folder(run.key) / "rows.parquet")


def bits(store: Store, run: Run) -> tuple[dict[str, bytes], list[float]]:
    """Weights and rows."""
    weights = load_file(store.run_folder(run.key) / "learner.safetensors")
    values: list[float] = rows(store, run)["value"].tolist()
    return {k: v.numpy().tobytes() for k, v in weights.items()}, values


def about(store: Store, run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((store.run_folder(run.key) / "done.json").read_text())
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Uninterrupted."""
    store = Store(tmp_path_factory.mktemp("whole"))
    assert execute_together(runs(), store, device="cpu") == {}
    return store


def test_a_member_has_the_rows_of_its_single_run(whole: Store, tmp_path: Path) -> None:
    store = Store(tmp_path)
    for run in runs():
        execute.execute(run, store, device="cpu")
        one, other = rows(store, run), rows(whole, run)
        columns = ["source", "on", "outer_step", "t", "metric"]
        pd.testing.assert_frame_equal(one[columns], other[columns])
        losses = one["metric"] == "loss"
        assert losses.sum() > 8
        assert (one["value"] - other["value"])[losses].abs().max() < 1e-4
        assert about(whole, run)["together"] == 3
        assert about(whole, run)["threads"] == 1
        assert about(whole, run).keys() == about(store, run).keys() | {"together"}
        names = {path.name for path in whole.run_folder(run.key).iterdir()}
        assert names == {path.name for path in store.run_folder(run.key).iterdir()}


def test_finished_members_are_skipped(whole: Store, tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, *others = runs()
    execute.execute(first, store, device="cpu")
    before = (store.run_folder(first.key) / "done.json").read_bytes()
    assert execute_together(runs(), store, device="cpu") == {}
    assert (store.run_folder(first.key) / "done.json").read_bytes() == before
    assert [about(store, run)["together"] for run in others] == [2, 2]
    assert execute_together(runs(), store, device="cpu") == {}


def test_a_member_that_fails_does_so_alone(whole: Store, tmp_path: Path) -> None:
    store = Store(tmp_path)
    good = runs()
    bad = dataclasses.replace(
        good[0], config=dataclasses.replace(good[0].config, lr=1e38, clip=0.0)
    )
    for _ in range(2):  # the second time it is tried again, apart from those that are finished
        failed = execute_together([good[0], bad, *good[1:]], store, device="cpu")
        assert list(failed) == [bad.key]
        assert isinstance(failed[bad.key], FloatingPointError)
        text = (store.run_folder(bad.key) / "failed.txt").read_text()
        assert "is not finite at step" in text
        assert not store.is_finished(bad.key)
    for run in good:
        assert about(store, run)["together"] == 3
        assert bits(store, run)[1] == pytest.approx(bits(whole, run)[1], rel=1e-2, abs=1e-3)


def test_settings_that_cannot_begin_fail_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    config = dataclasses.replace(configs("gpicl")[0], num_tasks=None, single_task=0.5)
    bad = dataclasses.replace(runs()[0], config=config)
    failed = execute_together([bad, runs()[1]], store, device="cpu")
    assert [*failed] == [bad.key]
    assert "single_task" in str(failed[bad.key])
    assert store.is_finished(runs()[1].key)


def test_a_member_that_another_process_computes_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "PATIENCE", 0.2)
    store = Store(tmp_path)
    first, *others = runs()
    with store.worker(first.key):
        failed = execute_together(runs(), store, device="cpu")
    assert isinstance(failed.pop(first.key), BusyError)
    assert failed == {}
    assert all(store.is_finished(run.key) for run in others)
    assert not (store.run_folder(first.key) / "failed.txt").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, "tests")
from ensembles import runs
from baselines import checkpoint
from baselines.experiments.ensemble import execute_together
from baselines.experiments.store import Store

left, save = int(sys.argv[2]), checkpoint.save

def until(folder, state):
    global left
    save(folder, state)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint.save = until
execute_together(runs(), Store(Path(sys.argv[1])), device="cpu")
"""


def steps_of(store: Store) -> list[int | None]:
    states = [checkpoint.load(store.run_folder(run.key)) for run in runs()]
    return [None if state is None else state["step"] for state in states]


@pytest.mark.parametrize(
    ("saved", "steps"),
    [(1, [5, None, None]), (3, [5, 5, 5]), (5, [10, 10, 5]), (8, [12, 12, 10])],
)
def test_a_killed_ensemble_ends_with_the_same_bits(
    saved: int, steps: list[int | None], whole: Store, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(saved)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    store = Store(tmp_path)
    assert steps_of(store) == steps
    assert execute_together(runs(), store, device="cpu") == {}
    assert all(bits(store, run) == bits(whole, run) for run in runs())
    assert [about(store, run)["together"] for run in runs()] == [3, 3, 3]


def interrupted_at(step: int, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the ensemble until an interrupt during this outer step."""
    right = Stack.episodes

    def sending(self: Stack, number: int) -> tuple[Tensor, ...]:
        if number + 1 == step:
            os.kill(os.getpid(), signal.SIGINT)
        return right(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Stack, "episodes", sending)
        with pytest.raises(KeyboardInterrupt):
            execute_together(runs(), store, device="cpu")


def test_an_interrupted_ensemble_ends_with_the_same_bits(
    whole: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    interrupted_at(7, store, monkeypatch)
    assert steps_of(store) == [7, 7, 7]
    assert execute_together(runs(), store, device="cpu") == {}
    assert all(bits(store, run) == bits(whole, run) for run in runs())


def test_members_go_on_alone_and_single_runs_together(
    whole: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    interrupted_at(7, store, monkeypatch)
    first, *others = runs()
    execute.execute(first, store, device="cpu")
    assert "together" not in about(store, first)
    # One has been begun anew, the other goes on: apart.
    for name in (checkpoint.NEWEST, checkpoint.PREVIOUS):
        (store.run_folder(others[1].key) / name).unlink(missing_ok=True)
    assert execute_together(runs(), store, device="cpu") == {}
    for run in runs():
        assert bits(store, run)[1] == pytest.approx(bits(whole, run)[1], rel=1e-2, abs=1e-3)
    assert [about(store, run)["together"] for run in others] == [1, 1]


def test_a_damaged_member_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    interrupted_at(7, store, monkeypatch)
    first, *others = runs()
    for name in (checkpoint.NEWEST, checkpoint.PREVIOUS):
        (store.run_folder(first.key) / name).write_bytes(b"nothing" * 20)
    failed = execute_together(runs(), store, device="cpu")
    assert list(failed) == [first.key]
    assert "no checkpoint can be read" in str(failed[first.key])
    assert all(about(store, run)["together"] == 2 for run in others)


def test_too_little_memory_says_what_needs_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("of CUDA")

    monkeypatch.setattr(Stack, "backward", full)
    store = Store(tmp_path)
    failed = execute_together(runs(), store, device="cpu")
    assert [*failed] == [run.key for run in runs()]
    for run in runs():
        assert "--together 3: start again with a smaller one" in str(failed[run.key])
        assert "MemoryError" in (store.run_folder(run.key) / "failed.txt").read_text()


def test_what_is_printed_is_in_the_log_of_every_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = monitor.measure

    def printing(*arguments: Any) -> None:
        print("measured")
        right(*arguments)

    monkeypatch.setattr(monitor, "measure", printing)
    store = Store(tmp_path)
    execute_together(runs()[:2], store, device="cpu")
    assert capsys.readouterr() == ("", "")
    for run in runs()[:2]:
        assert "measured" in (store.run_folder(run.key) / "log.txt").read_text()
