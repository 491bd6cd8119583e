"""Every experiment: its presets, and its verdict on tables that show the finding or do not."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from experiment_tables import (
    CHANCE_LOSS,
    Rows,
    final,
    joined,
    round_trip,
    table_of,
    train,
)
from synthetic_findings import FINDINGS, GUESS, KNOWN, LEARNED, gradients_shown, places
from user_sets import restored_registries

from baselines import common
from baselines.experiments import drawing, library, tables
from baselines.experiments.engines import InProcess
from baselines.experiments.execute import execute, rows_of
from baselines.experiments.figures import (
    batch_size,
    bias,
    embeddings,
    gradients,
    state_size,
    table2,
)
from baselines.experiments.findings import Verdict
from baselines.experiments.plateaus import plateaus
from baselines.experiments.spec import Experiment, ExperimentError, Measure, Run, change, settings
from baselines.experiments.store import Store
from baselines.experiments.sweep import read_table, sweep
from icl_bench.leaderboard.runs import load_run

# What one seed decides: sizes and tasks are units of chance as well.
DECIDED_BY_ONE_SEED = {"state-size": "seen", "embeddings": "seen"}


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Presets must not depend on what is at hand; what they register is forgotten."""
    monkeypatch.delenv("ICL_BENCH_DATA", raising=False)
    monkeypatch.delenv("ICL_BENCH_NETWORK", raising=False)
    with restored_registries():
        yield


def published(experiment: Experiment, table: pd.DataFrame, path: Path) -> Verdict:
    """The verdict; summary and figure are made on the way."""
    summary = experiment.summarise(table)
    assert len(summary)
    assert not summary.duplicated().any()
    experiment.plot(table, summary, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    verdict = experiment.judge(table, summary)
    assert verdict is not None
    assert Verdict.from_dict(verdict.to_dict()) == verdict
    return verdict


def test_every_experiment_has_rows_that_show_it() -> None:
    assert set(FINDINGS) == set(library.NAMES)


@pytest.mark.parametrize("preset", ["paper", "cpu"])
@pytest.mark.parametrize("name", library.NAMES)
def test_presets_are_runs_that_can_be_run(name: str, preset: str) -> None:
    experiment = library.experiment(name)
    declared = list(experiment.presets[preset]())
    runs = experiment.runs(preset)  # checks settings
    assert len({run.key for run in declared}) == len(declared) == len(runs)
    assert all(round_trip(run.config) == run.config for run in runs)
    assert {run.config.seed for run in experiment.runs(preset, seeds=1)} == {0}
    assert experiment.name == name
    assert experiment.figure.startswith(("Figure", "Table"))


@pytest.mark.parametrize("name", library.NAMES)
def test_the_finding_is_seen_where_it_is_shown(name: str, tmp_path: Path) -> None:
    experiment = library.experiment(name)
    table = table_of(experiment.runs("cpu"), FINDINGS[name][0])
    verdict = published(experiment, table, tmp_path / "figure.png")
    assert verdict.seen == "seen", verdict.to_markdown()


@pytest.mark.parametrize("name", library.NAMES)
def test_the_opposite_is_not_taken_for_the_finding(name: str, tmp_path: Path) -> None:
    experiment = library.experiment(name)
    table = table_of(experiment.runs("cpu"), FINDINGS[name][1])
    verdict = published(experiment, table, tmp_path / "figure.png")
    assert verdict.seen in ("not seen", "undecided", "in part"), verdict.to_markdown()
    assert any(claim.holds is False for claim in verdict.claims), verdict.to_markdown()


@pytest.mark.parametrize("name", library.NAMES)
def test_one_seed_does_not_decide(name: str, tmp_path: Path) -> None:
    experiment = library.experiment(name)
    table = table_of(experiment.runs("cpu", seeds=1), FINDINGS[name][0])
    verdict = published(experiment, table, tmp_path / "figure.png")
    if name in DECIDED_BY_ONE_SEED:
        assert verdict.seen == DECIDED_BY_ONE_SEED[name]
    else:
        assert any(claim.holds is None for claim in verdict.claims), verdict.to_markdown()
        assert not any(claim.holds is False for claim in verdict.claims)


def verdict_of(name: str, rows: Rows) -> dict[str, bool | None]:
    experiment = library.experiment(name)
    table = table_of(experiment.runs("cpu"), rows)
    verdict = experiment.judge(table, experiment.summarise(table))
    assert verdict is not None
    return {claim.text: claim.holds for claim in verdict.claims}


def test_easier_tasks_do_not_lengthen_the_plateaus_of_others() -> None:
    """Biased runs end at a loss that those without bias never come near."""

    def rows(run: Run) -> pd.DataFrame:
        share = max(run.config.bias, run.config.single_task)  # type: ignore[attr-defined]
        losses = train(run, 800 * (1 - share), low=1.4 if share == 0 else 1.1 - share)
        return joined(losses, final(run, {"seen": LEARNED, "unseen": LEARNED}))

    table = table_of(library.experiment("bias").runs("cpu"), rows)
    found = bias.runs_of(table).groupby("fraction")["length"].mean()
    assert found[0.0] == pytest.approx(800, rel=0.1)
    assert found[0.75] < 0.5 * found[0.0]
    plain = plateaus(table)  # by the lowest loss of all, 0.35
    assert np.mean([plain[run].censored for run in table[table.fraction == 0].run.unique()]) == 1


def test_batch_sizes_are_measured_by_what_their_number_of_tasks_leads_to() -> None:
    def rows(run: Run) -> pd.DataFrame:
        few = run.config.num_tasks == 64  # type: ignore[attr-defined]
        ends = final(run, {"seen": KNOWN, "unseen": GUESS if few else LEARNED})
        return joined(train(run, 400, low=0.1 if few else 1.4), ends)

    found = batch_size.runs_of(table_of(library.experiment("batch-size").runs("cpu"), rows))
    assert not found.censored.any()


def test_a_batch_size_with_a_plateau_not_left_is_not_in_the_law() -> None:
    runs = pd.DataFrame({"batch_size": np.repeat([8, 16, 32, 64], 3)})
    runs["length"] = 8000.0 / runs.batch_size
    runs["censored"] = False
    assert batch_size.law(runs).exponent.value == pytest.approx(-1)
    runs.loc[:1, "length"], runs.loc[:1, "censored"] = 500.0, True
    runs.loc[2, "length"] = 400.0  # the lucky one that leaves in time
    found = batch_size.law(runs)
    assert found.exponent.value == pytest.approx(-1)
    assert found.exponent.n == 9


def test_plateaus_that_nobody_leaves_have_no_drop() -> None:
    def rows(run: Run) -> pd.DataFrame:
        ends = final(run, {"seen": GUESS, "unseen": GUESS})
        return joined(train(run, 10**6, chance=CHANCE_LOSS + 0.001), ends)

    assert list(verdict_of("plateau", rows).values()) == [True, False, None]


def test_one_sharp_drop_among_runs_that_stay_does_not_decide() -> None:
    def rows(run: Run) -> pd.DataFrame:
        length = 1000 if run.config.seed == 0 else 10**6
        return joined(train(run, length), final(run, {"seen": GUESS, "unseen": GUESS}))

    assert list(verdict_of("plateau", rows).values()) == [True, None, None]


def test_lower_bounds_have_no_interval_in_a_summary() -> None:
    def rows(run: Run) -> pd.DataFrame:
        length = 10**6 if run.labels["method"] == "Adam, ε = 0.001" else 1000
        return joined(train(run, length), final(run, {"seen": GUESS, "unseen": GUESS}))

    experiment = library.experiment("optimizers")
    table = table_of(experiment.runs("cpu"), rows)
    found = experiment.summarise(table).set_index("method")
    assert found["censored"].to_dict() == {name: 0 for name in found.index} | {"Adam, ε = 0.001": 4}
    assert found["length_low"].isna().sum() == found["length_high"].isna().sum() == 1


def test_one_phase_is_no_order_of_three() -> None:
    found = verdict_of("phases", lambda run: final(run, places(run, KNOWN, GUESS)))
    assert found["the fewest tasks are memorised"] is True
    assert found["more tasks are identified"] is None
    assert found["the phases come in this order"] is None
    swapped = verdict_of("phases", FINDINGS["phases"][1])
    assert swapped["the fewest tasks are memorised"] is False
    assert swapped["the phases come in this order"] is False


def test_a_transition_between_distant_numbers_of_tasks_does_not_decide() -> None:
    experiment = library.experiment("bimodality")
    _, jump = FINDINGS["bimodality"]  # at 362 tasks none generalises, at more of them all do
    runs = experiment.runs("cpu")
    for numbers, expected in (((256, 304, 362, 431, 512), False), ((256, 304, 512), None)):
        some = [run for run in runs if run.config.num_tasks in numbers]  # type: ignore[attr-defined]
        table = table_of(some, jump)
        verdict = experiment.judge(table, experiment.summarise(table))
        assert verdict is not None
        (claim,) = (c for c in verdict.claims if "seeds alone" in c.text)
        assert claim.holds is expected, numbers


def test_the_end_of_short_episodes_is_not_their_middle() -> None:
    """Learning curves that do not depend on T do not reward the longer episodes by themselves."""
    runs = library.experiment("sequence-length").runs("cpu")
    table = table_of(runs, lambda run: final(run, {on: LEARNED for on in run.measure.on}))
    found = library.experiment("sequence-length").summarise(table).groupby("episode_length")["last"]
    assert found.mean().to_numpy() == pytest.approx(0.7, abs=0.03)
    rising = [rows_of("final", "unseen", 0, np.arange(10), "accuracy", np.linspace(0, 0.9, 10))]
    one = table_of(runs[:1], lambda run: joined(*rising))
    assert tables.ends(one, [], ["unseen"], least=1)["last"].to_list() == [0.9]
    assert tables.ends(one, [], ["unseen"])["last"].to_list() == pytest.approx([0.7])


def test_equal_numbers_give_equal_figures(tmp_path: Path) -> None:
    experiment = gradients.EXPERIMENT
    table = table_of(experiment.runs("cpu"), gradients_shown)
    summary = experiment.summarise(table)
    for name in ("one.png", "two.png"):
        experiment.plot(table, summary, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_a_legend_is_said_once(tmp_path: Path) -> None:
    figure, panels = drawing.panels(3, "Three panels")
    for axes, label in zip(panels, ("one", "one", "other"), strict=True):
        drawing.line(axes, [0, 1], [0, 1], label, next(drawing.styles()))
    drawing.save(figure, tmp_path / "figure.png")
    assert [axes.get_legend() is not None for axes in panels] == [True, False, True]


def test_made_up_tables_are_like_those_of_the_store(tmp_path: Path) -> None:
    runs = library.experiment("bias").runs("cpu")[:9]
    store = Store(tmp_path)
    rows = FINDINGS["bias"][0]
    for run in runs:
        store.prepare(run)
        store.finish(run.key, rows(run))
    pd.testing.assert_frame_equal(store.table(runs), table_of(runs, rows))


@pytest.mark.parametrize("preset", ["paper", "cpu"])
def test_gradients_share_their_runs_with_bias(preset: str) -> None:
    keys = {run.key for run in library.experiment("bias").runs(preset)}
    assert {run.key for run in gradients.EXPERIMENT.runs(preset)} <= keys


@pytest.mark.parametrize("changes", [{}, {"episode_length": 40}], ids=["as it is", "changed"])
def test_sizes_are_those_of_the_models(changes: dict[str, int]) -> None:
    for run in state_size.EXPERIMENT.runs("cpu", seeds=1, changes=changes):
        method = state_size.method_of(run.baseline)
        assert method is not None
        model = state_size.build_model(method, run.config)
        assert run.labels["parameters"] == sum(p.numel() for p in model.parameters())
        assert run.labels["state_size"] == model.state_size(changes.get("episode_length", 20))


def test_a_run_that_grokked_late_is_found() -> None:
    experiment = library.experiment("weight-decay")
    shown, opposite = FINDINGS["weight-decay"]
    runs = experiment.runs("cpu")
    chosen = next(r for r in runs if r.config.num_tasks == 16 and r.config.weight_decay == 1.0)  # type: ignore[attr-defined]
    table = table_of(runs, lambda run: (opposite if run.key == chosen.key else shown)(run))
    verdict = experiment.judge(table, experiment.summarise(table))
    assert verdict is not None
    assert [claim.holds for claim in verdict.claims] == [True, True, True, False]


def test_intervals_of_learners_without_seeds_are_over_tasks() -> None:
    table = table_of(embeddings.EXPERIMENT.runs("cpu"), FINDINGS["embeddings"][0])
    found = embeddings.units(table).groupby("baseline")["unit"].agg(["first", "size"])
    assert found.loc["gpicl"].to_list() == ["seed", 2 * embeddings.SEEDS]
    assert found.loc["1-nn"].to_list() == ["task", 2 * 32]


def test_learners_differ_in_the_environment_that_they_are_measured_on(tmp_path: Path) -> None:
    runs = [
        Run("1-nn", common.RunConfig(env=f"Digits-{view}-v0"), Measure(("unseen",), 32))
        for view in ("Proj8", "Proj4")
    ]
    store = Store(tmp_path)
    for run in runs:
        run.check()
        execute(run, store, device="cpu")
    table = store.table(runs)
    assert list(dict.fromkeys(table.env)) == ["Digits-Proj8-v0", "Digits-Proj4-v0"]
    last = tables.ends(table, ["env"], ["unseen"]).set_index("env")["last"]
    assert last["Digits-Proj8-v0"] > last["Digits-Proj4-v0"] > 0.2
    by_task = tables.by_task(table, "unseen")
    assert by_task.shape == (2, 2)  # tasks of 16 episodes
    means = tables.ends(table, [], ["unseen"]).set_index("run")["last"]
    np.testing.assert_allclose(by_task.mean(axis=1), means.loc[by_task.index], rtol=1e-12)


def test_tiny_runs_go_through_the_real_store(tmp_path: Path) -> None:
    tiny = {"width": 8, "steps": 20, "batch_size": 8, "log_every": 2, "eval_every": 10}
    experiment = gradients.EXPERIMENT
    runs = experiment.runs("cpu", 1, tiny | {"eval_episodes": 16})
    runs = [dataclasses.replace(run, measure=Measure(episodes=32)) for run in runs]
    store = Store(tmp_path)
    report = sweep(experiment, "cpu", runs, store, InProcess(1, "cpu"))
    assert (report.finished, report.failed) == (2, ())
    table = read_table(report.folder)
    assert {"run", "baseline", "env", "seed", "bias"} <= set(table.columns)
    groups = set(gradients.norms(table, "gradient_norm").columns)
    assert groups == {"embed", "position", "blocks.0", "blocks.1", "norm", "head"}
    assert {p.name for p in report.folder.iterdir()} == {
        *("table.parquet", "summary.csv", "figure.png", "verdict.json", "verdict.md")
    }
    assert report.verdict is not None
    assert report.verdict.seen == "undecided"


def test_one_command_leads_from_nothing_to_a_board(tmp_path: Path) -> None:
    small = {"width": 8, "heads": 2, "steps": 2, "batch_size": 2, "eval_every": 0}
    runs = [
        *(run for run in table2.EXPERIMENT.runs("cpu") if run.baseline == "chance"),
        *(
            Run(
                "gpicl",
                settings("gpicl", "cpu", suite="digits-v0", seed=s, **small),
                table2.MEASURE,
            )
            for s in (0, 1)
        ),
    ]
    experiment = dataclasses.replace(table2.EXPERIMENT, presets={"cpu": lambda: runs})
    for _ in range(2):  # again from what is there already
        report = sweep(experiment, "cpu", runs, Store(tmp_path), InProcess(1, "cpu"))
        assert report.failed == ()
        root = report.folder / "leaderboards"
        assert "GPICL Transformer" in (root / "README.md").read_text()
        assert sorted(p.name for p in (root / "digits-v0").iterdir() if p.is_dir()) == [
            "chance",
            "gpicl",
        ]
    entry = root / "digits-v0" / "gpicl"
    assert sorted(p.name for p in (entry / "predictions").iterdir()) == [
        "seed-0.parquet",
        "seed-1.parquet",
    ]
    assert load_run(Store(tmp_path).run_folder(runs[0].key)).entry.kind == "reference"
    last = table2.last_steps(read_table(report.folder))
    assert len(last) == 3 * 2
    assert last[last.baseline == "chance"].accuracy.between(0.05, 0.15).all()


def test_a_suite_that_is_not_all_at_hand_is_told_before_any_run_begins(tmp_path: Path) -> None:
    runs = [Run("chance", settings("chance", "cpu", suite="table2-proj8-v0"), table2.MEASURE)]
    experiment = dataclasses.replace(table2.EXPERIMENT, presets={"cpu": lambda: runs})
    with pytest.raises(ExperimentError, match="MNIST is not at hand"):
        sweep(experiment, "cpu", runs, Store(tmp_path), InProcess(1, "cpu"))
    assert not (tmp_path / "runs").exists()


def test_an_environment_without_data_is_told_before_any_run_begins(tmp_path: Path) -> None:
    runs = [run for run in embeddings.EXPERIMENT.runs("cpu") if run.baseline == "1-nn"]
    assert runs[0].config.env == "CIFAR10-Emb-v0"
    with pytest.raises(ValueError, match="icl-bench download CIFAR10"):
        sweep(embeddings.EXPERIMENT, "cpu", runs, Store(tmp_path), InProcess(1, "cpu"))
    assert not (tmp_path / "runs").exists()


def test_a_part_of_cifar_stands_in_for_the_whole_in_any_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pickle

    import icl_bench

    folder = tmp_path / "images" / "CIFAR10mini"
    folder.mkdir(parents=True)
    words = np.random.default_rng(0)
    for split, count in (("train", 120), ("test", 110)):
        images = words.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        np.savez(
            folder / f"{split}.npz", images=images, labels=np.arange(count, dtype=np.uint8) % 10
        )
    monkeypatch.setenv("ICL_BENCH_DATA", str(tmp_path))
    with restored_registries():
        runs = embeddings.EXPERIMENT.runs("cpu")
        run = next(r for r in runs if r.baseline == "1-nn" and r.labels["inputs"] == "pixels")
        assert run.config.env == "CIFAR10mini-Proj-v0"
        sent = pickle.dumps(run)
    assert "CIFAR10mini-Proj-v0" not in icl_bench.registry
    received = pickle.loads(sent)
    assert "CIFAR10mini-Proj-v0" in icl_bench.registry
    assert (received.key, received.labels) == (run.key, run.labels)
    store = Store(tmp_path / "out")
    small = dataclasses.replace(received, measure=Measure(("unseen",), 16))
    assert type(small) is embeddings.MiniRun
    execute(small, store, device="cpu")
    assert store.is_finished(small.key)


def test_a_change_of_settings_is_made_in_all_runs() -> None:
    runs = library.experiment("vsml-depth").runs("cpu", None, {"steps": 700})
    assert {run.config.steps for run in runs} == {700}  # type: ignore[attr-defined]
    assert change(runs[0].config, {"steps": 8}) != runs[0].config


def test_rows_of_one_run_are_put_together() -> None:
    run = library.experiment("plateau").runs("cpu")[0]
    whole = joined(final(run, {"seen": LEARNED}), final(run, {"unseen": LEARNED}))
    assert list(whole.on.unique()) == ["seen", "unseen"]
