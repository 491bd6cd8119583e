"""The command line of experiments: what it refuses and says; how it stops, and goes on."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tiny_sweeps import (
    LONG,
    experiment,
    holder,
    is_running,
    rows,
    stamps,
    start,
    tiny,
    under_way,
    wait_for,
    write_toml,
)
from user_sets import restored_registries

from baselines.experiments import __main__ as cli
from baselines.experiments import library
from baselines.experiments.engines import InProcess
from baselines.experiments.spec import Experiment, ExperimentError, Run
from baselines.experiments.store import Store
from baselines.experiments.sweep import sweep
from baselines.experiments.toml import read_toml
from baselines.experiments.values import fitted, parse_value

HERE = ("--engine", "in-process")


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Presets must not depend on what is at hand; what they register is forgotten."""
    monkeypatch.delenv("ICL_BENCH_DATA", raising=False)
    with restored_registries():
        yield


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def refused(capsys: pytest.CaptureFixture[str], out: Path, *arguments: str | Path) -> str:
    """What is said of a command that begins nothing."""
    assert cli.main([*map(str, arguments), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not out.exists()
    return said


# Refused before any work


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name an experiment; --list shows them"),
        (["phasis"], "unknown experiment 'phasis'; did you mean 'phases'?"),
        (["TOML", "--set", "stepz=3"], "no setting 'stepz'; did you mean 'steps'?"),
        (["TOML", "--set", "steps"], "--set takes NAME=VALUE, not 'steps'"),
        (["TOML", "--set", "steps=many"], "steps must be a whole number, not 'many'"),
        (["TOML", "--set", "steps=2.5"], "steps must be a whole number, not 2.5"),
        (["TOML", "--set", "steps=0"], "--steps must be 1 or more, not 0"),
        (["TOML", "--set", "lr=nan"], "lr must be a finite number, not nan"),
        (["TOML", "--set", "optimizer=adan"], "optimizer must be one of adam, adamw, sign, muon"),
        (["TOML", "--set", "device=cuda"], "device is no setting of an experiment: choose one"),
        (["TOML", "--set", "env=DigitLow-Proj4-v0"], "did you mean"),
        (["TOML", "--set", "track=wandb"], "track is no setting of an experiment"),
        (["plateau", "--set", "steps=100"], "plateau: a plateau is measured by 10 losses or more"),
        (["TOML", "--seeds", "0"], "--seeds must be 1 or more, not 0"),
        (["TOML", "--preset", "papr"], "tiny has no preset 'papr': there are cpu"),
        (["TOML", "--workers", "0"], "--workers must be 1 or more, not 0"),
        (["TOML", "--engine", "ray", "--gpus", "-1"], "--cpus and --gpus must be 0 or more"),
    ],
)
def test_what_cannot_be_run_is_one_line_that_says_the_way_out(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    out: Path,
    arguments: list[str],
    message: str,
) -> None:
    file = str(write_toml(tmp_path / "tiny.toml"))
    given = [file if word == "TOML" else word for word in arguments]
    if "--workers" in given or "--gpus" in given:  # the folder is locked first
        assert cli.main([*given, "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
        assert not (out / "runs").exists()
    else:
        assert message in refused(capsys, out, *given)


def test_of_several_experiments_one_without_data_is_told_before_any_begins(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ICL_BENCH_CACHE", str(tmp_path / "cache"))
    file = write_toml(tmp_path / "tiny.toml")
    small = ("--set", "steps=10", "--seeds", "1")
    said = refused(capsys, out, file, "embeddings", "phases", *small)
    assert said.startswith("error: embeddings: ")
    assert "is not at hand" in said
    assert said.endswith("; without it: tiny phases\n")


def test_fewer_seeds_and_other_settings_have_folders_of_their_own(
    tmp_path: Path, out: Path
) -> None:
    file = write_toml(tmp_path / "tiny.toml")
    for more in ((), ("--seeds", "1"), ("--set", "lr=0.01", "--seeds", "1")):
        assert cli.main([str(file), "--out", str(out), *HERE, *more]) == 0
    names = {"tiny-cpu": 2, "tiny-cpu-seeds=1": 1, "tiny-cpu-lr=0.01-seeds=1": 1}
    for name, number in names.items():
        assert pd.read_parquet(out / name / "table.parquet")["run"].nunique() == number


def test_a_preset_or_grid_without_runs_is_refused() -> None:
    empty = Experiment(
        name="none",
        figure="Figure 0",
        title="None",
        finding="",
        presets={"cpu": list, "late": lambda: [tiny(seed=5)]},
        summarise=lambda table: table,
        plot=lambda table, summary, path: None,
        judge=lambda table, summary: None,
    )
    with pytest.raises(ExperimentError, match=r"none, preset cpu: the grid has no runs$"):
        empty.runs("cpu")
    with pytest.raises(ExperimentError, match="the grid has no runs with a seed below 5"):
        empty.runs("late", seeds=5)
    assert len(empty.runs("late", seeds=6)) == 1


def test_what_runs_differ_in_is_not_changed_and_equal_runs_are_computed_once(
    tmp_path: Path,
) -> None:
    found = read_toml(write_toml(tmp_path / "tiny.toml", "lr = [0.1, 0.2]\nseed = [0, 1]"))
    assert len(found.runs("cpu")) == 4
    for name, way in (("lr", "a TOML file can"), ("seed", "--seeds takes fewer of them")):
        with pytest.raises(ExperimentError, match=f"{name} is what the runs .* differ in.*{way}"):
            found.runs("cpu", changes={name: 1})
    assert {run.config.steps for run in found.runs("cpu", changes={"steps": 3})} == {3}
    assert len(experiment([tiny(seed=0), tiny(seed=1), tiny(seed=0)]).runs("cpu")) == 2


# Files


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "tiny"', "", "name is missing"),
        ('name = "tiny"', 'name = "../tiny"', "name must be letters, digits, - and _"),
        ('name = "tiny"', 'name = "/tiny"', "name must be letters, digits, - and _"),
        ('name = "tiny"', 'name = ".."', "name must be letters, digits, - and _"),
        ('name = "tiny"', 'name = ""', "name must be letters, digits, - and _"),
        ('name = "tiny"', "name = 3", "name must be a word, not 3"),
        ('name = "tiny"', 'name = "tiny"\nbaselin = 1', "'baselin'; did you mean 'baseline'?"),
        ('baseline = "gpicl"', 'baseline = "gpicle"', "unknown baseline 'gpicle'"),
        ('baseline = "gpicl"', "baseline = []", "the grid has no runs"),
        ("[measure]", "[measure]\nepisode = 16", "'measure.episode'; did you mean 'episodes'?"),
        (
            "\nepisodes = 16",
            "\nepisodes = 17",
            "measure.episodes must be a positive multiple of 16",
        ),
        ("\nepisodes = 16", '\nepisodes = "16"', "measure.episodes must be a whole number"),
        ("[grid]", "[grid]\nheads = 1", "grid.heads must be a list of values, not 1"),
        ("[grid]", "[grid]\nheads = []", "grid.heads must be a list of values"),
        ("[grid]", "[grid]\nlr = [1, 1]", "grid.lr has a value twice"),
        ("[grid]", "[grid]\nheadz = [1]", "no setting 'headz'; did you mean 'heads'?"),
        ("[grid]", "[grid]\nwidth = [8]", "width is in settings and in grid"),
        ("[measure]", '[plot]\nx = "lr"\n[measure]', "plot.x must be an axis of the grid"),
        ("[measure]", '[plot]\nlog = "yes"\n[measure]', "plot.log must be true or false"),
        ("[grid]", "[grid", "cannot be read as TOML"),
        ('name = "tiny"', 'name = "phases"', "the library has an experiment 'phases'"),
    ],
)
def test_a_file_that_is_wrong_says_where(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, out: Path, old: str, new: str, message: str
) -> None:
    file = write_toml(tmp_path / "tiny.toml")
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    assert message in refused(capsys, out, file)


def test_a_file_that_is_missing_or_no_text_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, out: Path
) -> None:
    assert "no.toml cannot be read" in refused(capsys, out, tmp_path / "no.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    assert "bytes.toml cannot be read as TOML" in refused(capsys, out, tmp_path / "bytes.toml")


def test_a_file_is_run_summarised_and_drawn(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, out: Path
) -> None:
    grid = 'num_tasks = [4, "none"]\nseed = [0, 1]'
    file = write_toml(tmp_path / "tiny.toml", grid)
    text = file.read_text().replace("num_tasks = 64\n", "").replace('"seen", "unseen"', '"unseen"')
    file.write_text(text)
    assert cli.main([str(file), "--out", str(out), *HERE]) == 0
    folder = out / "tiny-cpu"
    assert f"4 of 4 runs finished: {folder}" in capsys.readouterr().out
    summary = pd.read_csv(folder / "summary.csv")
    assert list(summary.columns) == ["on", "num_tasks", "accuracy", "low", "high", "runs"]
    assert list(summary["runs"]) == [2, 2]
    table = pd.read_parquet(folder / "table.parquet")
    last = table[(table["source"] == "final") & (table["metric"] == "accuracy")]
    last = last[(last["t"] == 4) & (last["num_tasks"] == 4)]
    assert summary["accuracy"][0] == pytest.approx(last["value"].mean())
    assert (folder / "figure.png").read_bytes()[:4] == b"\x89PNG"
    assert "No finding was looked for." in (folder / "verdict.md").read_text()
    assert cli.main([str(file), "--out", str(out), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "tiny, preset cpu: 4 runs (4 finished)" in said
    assert said.count("num_tasks=None") == 2


def test_changed_settings_have_a_folder_of_their_own(tmp_path: Path, out: Path) -> None:
    file = write_toml(tmp_path / "tiny.toml", "seed = [0]")
    assert cli.main([str(file), "--out", str(out), *HERE, "--set", "steps=5"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "driver.lock",
        "runs",
        "tiny-cpu-steps=5",
    ]
    assert cli.folder_of("cpu", None, ["env=../x"]) == "cpu-env=.._x"


# Values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("true", True),
        ("none", None),
        ("adam", "adam"),
        ("[0, 10]", [0, 10]),
        ("'3'", "3"),
        ("1\nb = 2", "1\nb = 2"),
    ],
)
def test_values_are_read_as_in_toml(text: str, value: Any) -> None:
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("value", "kind", "found"),
    [
        (1, float, 1.0),
        ([1, 2], tuple[int, int], (1, 2)),
        ([], tuple[int, ...], ()),
        (None, int | None, None),
    ],
)
def test_values_fit_a_type_where_nothing_is_lost(value: Any, kind: Any, found: Any) -> None:
    assert fitted(value, kind) == found
    assert type(fitted(value, kind)) is type(found)


@pytest.mark.parametrize(
    ("value", "kind"),
    [(True, int), (1, bool), (1.0, int), (float("inf"), float), ([1], tuple[int, int]), ("1", int)],
)
def test_values_of_another_type_are_refused(value: Any, kind: Any) -> None:
    with pytest.raises(TypeError):
        fitted(value, kind)


# The list


def test_every_experiment_of_the_library_can_be_listed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["--list"]) == 0
    said = capsys.readouterr().out
    for name in library.NAMES:
        assert library.experiment(name).title in said


# Whole processes


@contextlib.contextmanager
def driver(*arguments: str | Path) -> Iterator["subprocess.Popen[str]"]:
    process = start(*arguments)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def at_work(out: Path, **changes: Any) -> tuple[Store, list[Run]]:
    return Store(out), [tiny(seed=seed, **{**LONG, **changes}) for seed in (0, 1)]


@pytest.mark.slow
def test_a_driver_that_is_killed_takes_its_workers_along_and_finished_runs_are_kept(
    tmp_path: Path, out: Path
) -> None:
    quick = write_toml(tmp_path / "quick.toml", "seed = [5, 6]")
    longer = {"steps": 1500}  # than the second driver takes to begin
    file = write_toml(tmp_path / "long.toml", **{**LONG, **longer})
    assert cli.main([str(quick), "--out", str(out), *HERE]) == 0
    store, runs = at_work(out, **longer)
    done = [tiny(seed=seed) for seed in (5, 6)]
    noted = stamps(store, done)
    folders = [store.run_folder(run.key) for run in runs]
    with driver(quick, file, "--out", out) as process:
        wait_for(lambda: all(under_way(folder) for folder in folders))
        with driver(file, "--out", out) as other:  # a second one does no damage
            said = other.communicate(timeout=120)[1]
        assert other.returncode == 2
        assert f"in use by another driver (process {process.pid} on " in said
        workers = [holder(folder) for folder in folders]
        process.kill()
        process.wait()
        wait_for(lambda: not any(map(is_running, workers)), 20)
    assert all(under_way(folder) for folder in folders)
    assert cli.main([str(quick), str(file), "--out", str(out)]) == 0
    assert stamps(store, done) == noted
    whole = Store(tmp_path / "whole")
    sweep(read_toml(file), "cpu", runs, whole, InProcess())
    assert rows(store, runs) == rows(whole, runs)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_all_with_checkpoints_and_says_how_to_go_on(
    tmp_path: Path, out: Path, number: signal.Signals
) -> None:
    file = write_toml(tmp_path / "long.toml", **LONG)
    store, runs = at_work(out)
    folders = [store.run_folder(run.key) for run in runs]
    with driver(file, "--out", out) as process:
        wait_for(lambda: all(under_way(folder) for folder in folders))
        workers = [holder(folder) for folder in folders]
        began = time.monotonic()
        os.killpg(process.pid, number)  # as a terminal does
        said = process.communicate(timeout=60)[1]
        assert time.monotonic() - began < 30
    assert process.returncode == 130
    assert "interrupted: finished runs are kept, and the same command goes on" in said
    assert "Traceback" not in said
    assert not any(map(is_running, workers))
    assert all(under_way(folder) for folder in folders)
