"""The documentation of experiments has what the preset's runs say now, or nothing."""

import runpy
from pathlib import Path
from typing import Any

import pytest
from experiment_tables import final, joined, train
from synthetic_findings import GUESS, KNOWN

from baselines.experiments import library
from baselines.experiments.spec import ExperimentError, Run
from baselines.experiments.store import Store
from baselines.experiments.sweep import publish

SCRIPT = Path(__file__).parents[1] / "tools" / "publish_experiments.py"


@pytest.fixture
def tool(tmp_path: Path) -> dict[str, Any]:
    found = runpy.run_path(str(SCRIPT))
    for name in ("collect", "page", "main"):
        found[name].__globals__["DOCS"] = tmp_path / "docs"
    return found


def filled(store: Store, runs: list[Run]) -> None:
    for run in runs:
        store.prepare(run)
        ends = final(run, {on: KNOWN if on == "seen" else GUESS for on in run.measure.on})
        store.finish(run.key, joined(train(run, 500), ends), seconds=6.0)


def test_what_the_runs_say_is_published(tool: dict[str, Any], tmp_path: Path) -> None:
    store, experiment = Store(tmp_path / "out"), library.experiment("phases")
    runs = experiment.runs("cpu")
    filled(store, runs)
    publish(experiment, "cpu", runs, runs, store)
    assert tool["collect"](library.NAMES, store.root) == ["phases"]
    page = tool["page"](tmp_path / "docs" / "experiments")
    assert "40 of 40 runs of one thread, 4 minutes in all on a busy machine" in page
    assert "✓ the fewest tasks are memorised" in page
    assert page.count("not run here") == len(library.NAMES) - 1


def test_a_verdict_of_other_runs_is_not_published(tool: dict[str, Any], tmp_path: Path) -> None:
    store, experiment = Store(tmp_path / "out"), library.experiment("phases")
    other = experiment.runs("cpu", None, {"steps": 7})
    filled(store, other)
    publish(experiment, "cpu", other, other, store)
    with pytest.raises(ExperimentError, match=r"40 runs, 0 of them.*experiments phases --preset"):
        tool["collect"](["phases"], store.root)
    filled(store, experiment.runs("cpu"))  # finished, yet the verdict is of the others
    with pytest.raises(ExperimentError, match=r"0 of them among the 40"):
        tool["collect"](["phases"], store.root)
    assert not (tmp_path / "docs").exists()


def test_names_without_a_verdict_are_told(
    tool: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, told in (("phase", "no experiment 'phase'"), ("phases", "no verdict of phases")):
        monkeypatch.setattr("sys.argv", ["publish", name, "--out", str(tmp_path / "out")])
        with pytest.raises(SystemExit):
            tool["main"]()
        assert told in capsys.readouterr().err
