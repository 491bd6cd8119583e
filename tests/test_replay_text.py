"""Replay on text: weights of tiny and named models answer again, folders of strangers never."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy import stats
from synthetic_text import MINI, MINI_SUITE, text_entry, text_result, text_run

import icl_bench
from baselines import language_model, maml_en_llm, metaicl, rebuild, replay
from baselines import text_run as running
from baselines.common import save_learner
from baselines.language_model import load_language_model, trained_state
from baselines.rebuild import ReplayError, load_text_learner
from baselines.replay_cells import FRESH_DEMO_SEEDS, Rerun, rerun_text
from icl_bench.data.text import DEMO_SEEDS, text_setting
from icl_bench.episodes import TextEpisode
from icl_bench.evaluation.text_learners import TEXT_REFERENCES
from icl_bench.evaluation.text_protocol import TextLearner
from icl_bench.leaderboard.learner_files import write_settings
from icl_bench.leaderboard.replays import record_of
from icl_bench.leaderboard.submission import make_submission, read_submission
from icl_bench.leaderboard.text_predictions import TaskPart, TextPredictions

pytest.importorskip("transformers", reason="needs icl-bench[text]")

SUITE = icl_bench.text_suite(MINI_SUITE)
TASKS = text_setting("TextMini").test[:12]
SHORT = {
    "device": "cpu",
    "tiny_steps": 2,
    "tiny_batch": 1,
    "steps": 2,
    "batch_size": 1,
    "k": 2,
    "eval_every": 0,
    "tasks": ("mini-keys-9", "mini-picks-4"),
    "queries": 5,
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of no size at all."""
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    for key, value in shape.items():
        monkeypatch.setitem(language_model.TINY_SHAPE, key, value)


def new_run(root: Path, program=metaicl, **settings) -> Path:
    config = dataclasses.replace(program.cpu(), **SHORT | settings, runs=str(root))
    before = set(root.glob("*"))
    running.run(config, program.method_of(config))
    (path,) = set(root.glob("*")) - before
    return path


def entry_of(run: Path, root: Path) -> Path:
    return make_submission([run], root / MINI_SUITE / "mine", MINI_SUITE, checkpoints=True)


def rewrite(path: Path, name: str | None = None, **changes) -> None:
    """The same weights under another name or with other settings."""
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["learner"])
    header = {"baseline": name or about["baseline"], "config": about["config"] | changes}
    save_file(load_file(path), path, metadata={"learner": json.dumps(header)})


CASES = {
    "metaicl": (metaicl, {}),
    "channel": (metaicl, {"env": "TextMini-Channel-v0"}),
    "raw-lm": (metaicl, {"method": "raw-lm", "calibrate": True}),
    "maml": (maml_en_llm, {"order": "first", "n": 2}),
    "adapted": (maml_en_llm, {"order": "first", "adapt": 1, "adapt_lr": 0.1}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_weights_of_tiny_give_the_answers_handed_in(case, tmp_path, capsys):
    program, settings = CASES[case]
    entry = entry_of(new_run(tmp_path / "runs", program, **settings), tmp_path)
    assert [file.name for file in (entry / "checkpoints").iterdir()] == ["seed-0.safetensors"]
    assert replay.main([str(entry), "--device", "cpu", "--record"]) == 0
    assert "same    0.000% of predictions differ" in capsys.readouterr().out
    record = record_of(entry)
    (cell,) = record.cells[0].values()
    assert (cell.differing, cell.first_step_p, record.taxonomy) == (0.0, None, {})
    results = read_submission(entry).text_results()
    ((result,),) = results.values()
    values = [task.predictions.values().mean() for task in result.tasks]
    assert cell.frozen == pytest.approx(np.mean(values), rel=1e-5)


@pytest.mark.slow
def test_other_weights_and_other_answers_are_noticed(tmp_path, capsys):
    entry = entry_of(new_run(tmp_path / "runs", seed=3), tmp_path)
    path = entry / "checkpoints" / "seed-3.safetensors"
    kept = path.read_bytes()
    state = load_file(path)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        state[name] = tensor + torch.randn(tensor.shape, generator=generator)
    save_file(state, path, metadata=header)
    assert replay.main([str(entry), "--device", "cpu", "--record"]) == 1
    assert "DIFFERS on TextMini-ICL-v0, seed 3" in capsys.readouterr().out
    assert record_of(entry) is None
    path.write_bytes(kept)
    assert replay.replay(read_submission(entry)).same


def test_a_model_that_nobody_trained_is_handed_in_by_its_name(tmp_path):
    run = new_run(tmp_path / "runs", method="no-icl", tiny_steps=0)
    document = json.loads((run / "learner.json").read_text())
    assert document["baseline"] == "no-icl"
    assert document["config"]["model"] == "tiny"
    assert not {"env", "tasks", "runs", "data_dir"} & set(document["config"])
    entry = entry_of(run, tmp_path)
    record = replay.replay(read_submission(entry))
    assert record.same
    assert record.cells[0][MINI].gap.mean == 0.0  # no demonstrations, no draws


@pytest.mark.parametrize("name", TEXT_REFERENCES)
def test_references_on_text_are_handed_in_by_name(name, tmp_path):
    result = icl_bench.evaluate_text(TEXT_REFERENCES[name](), MINI, tasks=TASKS[:3], num_queries=9)
    entry = text_entry(name, meta_train=None, deterministic=True, kind="reference")
    run = text_run(tmp_path / "runs", [result], entry)
    write_settings(run / "learner.json", name, {})
    path = make_submission([run], tmp_path / name, MINI_SUITE, checkpoints=True)
    cell = replay.replay(read_submission(path)).cells[0][MINI]
    assert cell.differing == 0.0
    assert not cell.tuned
    write_settings(path / "checkpoints" / "seed-0.json", name, {"num_classes": 10})
    with pytest.raises(ReplayError, match="a reference on text has no settings"):
        replay.replay(read_submission(path))


# Frozen and fresh demonstrations


def handed_in(learner, queries: int = 20) -> TextPredictions:
    result = icl_bench.evaluate_text(learner, MINI, tasks=TASKS, num_queries=queries)
    return TextPredictions(
        {t.task: TaskPart(t.query, t.prediction.astype(np.uint8)) for t in result.tasks}
    )


def answers_of_frozen_draws(episodes: Sequence[TextEpisode]) -> list[np.ndarray]:
    """It knows the answers after the frozen demonstrations alone."""
    frozen = episodes[0].demo_seed in DEMO_SEEDS
    found = []
    for e in episodes:
        right = icl_bench.evaluation.text_protocol.text_answers(e.task)[e.episode]
        found.append(np.eye(len(e.query.options))[right if frozen else 0])
    return found


def test_a_learner_tuned_to_the_frozen_demonstrations_shows_as_a_gap():
    found = rerun_text(answers_of_frozen_draws, MINI, handed_in(answers_of_frozen_draws), SUITE)
    cell = found.cell(12)
    assert (cell.same, cell.frozen) == (True, 1.0)
    assert cell.gap.low > 0.3
    assert cell.tuned


def test_an_honest_learner_has_no_gap_on_text():
    learner = TEXT_REFERENCES["1-nn"]()
    cell = rerun_text(learner, MINI, handed_in(learner), SUITE).cell(1)
    assert cell.same
    assert cell.gap.low < 0 < cell.gap.high
    assert not cell.tuned
    assert not {*FRESH_DEMO_SEEDS} & {*DEMO_SEEDS}


def test_the_interval_of_the_gap_on_text_is_of_a_paired_t():
    a, b = np.array([0.5, 0.61, 0.4, 0.72]), np.array([0.52, 0.5, 0.39, 0.6])
    found = Rerun(0.0, a, b, None).gap(0.9)
    expected = stats.ttest_rel(a, b).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    single = Rerun(0.0, a[:1], b[:1], None)
    assert math.isnan(single.gap().low)
    assert not single.cell(1).tuned


@pytest.mark.parametrize(("tasks", "step"), [(2, 0.05), (4, 0.02), (12, 0.004), (22, 0.004)])
def test_an_honest_entry_on_text_is_seldom_accused(tasks, step):
    """Metrics are whole steps; a bootstrap would accuse 1 in 50 entries of twelve tasks."""
    rng = np.random.default_rng(tasks)
    base = rng.normal(0.5, 0.1, (14_000, tasks, 1)) + rng.normal(0, 0.03, (14_000, tasks, 2))
    cells = np.round(base / step) * step
    tuned = [Rerun(0.0, a, b, None).cell(7).tuned for a, b in cells.transpose(0, 2, 1)]
    assert sum(tuned) <= 5  # 1 is expected in 2,000 entries of seven


def test_queries_that_no_evaluation_asks_are_not_replayed():
    learner = TEXT_REFERENCES["majority"]()
    part = handed_in(learner, 5).tasks[TASKS[0]]
    other = TaskPart(part.query + 1, part.prediction)
    with pytest.raises(ReplayError, match=f"{TASKS[0]}: other queries were handed in"):
        rerun_text(learner, MINI, TextPredictions({TASKS[0]: other}), SUITE)


def test_tasks_that_are_not_at_hand_are_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ICL_BENCH_DATA", str(tmp_path))
    env = "HRtoLR-ICL-v0"
    run = text_run(
        tmp_path, [text_result(env, queries=2)], text_entry(meta_train=env), "metaicl-v0"
    )
    write_settings(run / "learner.json", "chance", {})
    out = tmp_path / "metaicl-v0" / "mine"
    path = make_submission([run], out, "metaicl-v0", checkpoints=True, allow_missing=True)
    assert replay.main([str(path), "--device", "cpu", "--record"]) == 2
    shown = capsys.readouterr().err
    assert "skipped HRtoLR-ICL-v0" in shown
    assert "no data of any of its environments are at hand" in shown


# Files of strangers


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a MetaICL."""
    state = trained_state(load_language_model("tiny"))
    file, config = tmp_path / "learner.safetensors", metaicl.cpu()
    save_learner(file, {k: v.contiguous() for k, v in state.items()}, "metaicl-shuffled", config)
    return file


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (None, {"model": "/etc"}, "model '/etc' is not replayed, only tiny and smollm2 are"),
        (None, {"model": "openai-community/gpt2"}, "model 'openai-community/gpt2' is not replayed"),
        (None, {"model": "./tiny"}, "model './tiny' is not replayed"),
        (None, {"model": None}, "model cannot be None"),
        (None, {"width": 3}, "settings differ in width"),
        (None, {"inner": "adamw"}, "settings differ in inner"),
        ("maml-en-llm-2-1", {}, "settings differ in"),
        ("metaicl", {}, "the settings are those of 'metaicl-shuffled', not of 'metaicl'"),
        ("os", {}, "not of 'os'"),
        (None, {"lora_rank": 10**6}, "lora_rank above 64"),
        (None, {"k": 10**6}, "--k must be at most 16"),
        (None, {"batch_tokens": 2**40}, "batch_tokens above 65536"),
        (None, {"total_limit": 10**9}, "--total-limit must be at most 1024"),
        (None, {"demo_seeds": "100"}, "demo_seeds cannot be '100'"),
        (None, {"env": "Digits-Proj8-v0"}, "Digits-Proj8-v0"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_headers_that_are_refused(path, name, changes, message):
    load_text_learner(path, MINI)
    rewrite(path, name, **changes)
    with pytest.raises(ReplayError, match=message):
        load_text_learner(path, MINI)


def test_weights_that_are_refused(path):
    state, (first, *_) = load_file(path), sorted(load_file(path))
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    for wrong, message in (
        (torch.full_like(state[first], float("nan")), f"'{first}' are not finite"),
        (state[first].double(), f"the first is '{first}'"),
        (state[first][:1].clone(), f"the first is '{first}'"),
    ):
        save_file(state | {first: wrong}, path, metadata=header)
        with pytest.raises(ReplayError, match=message):
            load_text_learner(path, MINI)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("metaicl", {"model": "tiny"}, "a model that was trained hands in its weights"),
        ("metaicl", {"model": "smollm2"}, "a model that was trained hands in its weights"),
        ("raw-lm", {"model": "tiny", "method": "raw-lm"}, "hands in its weights"),
        ("raw-lm", {"model": "smollm2", "method": "raw-lm", "start_from": "x"}, "its weights"),
        ("raw-lm", {"model": "gpt2", "method": "raw-lm"}, "model 'gpt2' is not replayed"),
        ("majority", {"k": 3}, "a reference on text has no settings"),
        ("logistic-regression", {}, "not replayed, only tiny and smollm2"),
    ],
    ids=str,
)
def test_settings_that_are_refused(name, config, message, tmp_path):
    write_settings(tmp_path / "seed-0.json", name, config)
    with pytest.raises(ReplayError, match=message):
        load_text_learner(tmp_path / "seed-0.json", MINI)


def test_a_model_of_a_package_is_loaded_by_its_name_alone(tmp_path, monkeypatch):
    asked = []

    def load(name: str, **_: object) -> language_model.LanguageModel:
        asked.append(name)
        return load_language_model("tiny")

    monkeypatch.setattr(rebuild, "load_language_model", load)
    write_settings(tmp_path / "x.json", "raw-lm", {"model": "smollm2", "method": "raw-lm"})
    scorer = load_text_learner(tmp_path / "x.json", MINI)
    assert asked == ["smollm2"]
    assert (scorer.k, scorer.prompt_format.separators) == (16, "spaces")


def test_folders_of_a_stranger_are_never_opened(path, monkeypatch):
    rewrite(path, data_dir="/etc", start_from="/etc", runs="/etc", demo_seeds=[7])
    seen = []

    def text_learner(config: metaicl.Config, *_: object) -> TextLearner:
        seen.append(config)
        return TEXT_REFERENCES["majority"]()

    monkeypatch.setattr(rebuild, "text_learner", text_learner)
    load_text_learner(path, "TextMini-Channel-v0", data_dir="mine")
    (config,) = seen
    assert (config.data_dir, config.start_from, config.runs) == ("mine", None, "runs")
    assert (config.env, config.demo_seeds) == ("TextMini-Channel-v0", DEMO_SEEDS)


def test_weights_of_several_settings_are_not_one_learner(tmp_path):
    runs = [
        text_run(tmp_path, [text_result(env, queries=2)], text_entry(meta_train=env), "metaicl-v0")
        for env in ("HRtoLR-ICL-v0", "NonParaToPara-ICL-v0")
    ]
    for i, run in enumerate(runs):
        save_file({"w": torch.full((2,), float(i))}, run / "learner.safetensors")
    out = tmp_path / "mine"
    with pytest.raises(ValueError, match="two learners of seed 0"):
        make_submission(runs, out, "metaicl-v0", checkpoints=True, allow_missing=True)
    assert not out.exists()
