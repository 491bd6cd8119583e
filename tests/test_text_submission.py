import dataclasses
import json
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_runs import DIGITS, frozen_result, method_runs, random_correct
from synthetic_text import (
    MINI,
    MINI_CHANNEL,
    MINI_SUITE,
    NLI,
    PARA,
    SUITE,
    text_entry,
    text_result,
    text_run,
    text_runs,
)

import icl_bench
from icl_bench.data.text import text_setting
from icl_bench.evaluation import text_protocol
from icl_bench.evaluation.text_protocol import (
    text_answers,
    text_fingerprint,
    text_options,
)
from icl_bench.evaluation.text_result import TextResult
from icl_bench.leaderboard.runs import load_run, result_path
from icl_bench.leaderboard.submission import load_runs, make_submission, read_submission, validate

TASKS = text_setting("TextMini").test


# --- run folders


def test_a_run_holds_results_of_both_kinds(tmp_path):
    results = [frozen_result(DIGITS, random_correct(0.5, 0)), text_result()]
    path = icl_bench.save_run(results, tmp_path, name="mine", seed=3, suite=MINI_SUITE)
    run = load_run(path)
    assert ([r.env for r in run.results], [r.env for r in run.text]) == ([DIGITS], [MINI])
    for found, given in zip(run.text[0].tasks, results[1].tasks, strict=True):
        np.testing.assert_array_equal(found.prediction, given.prediction)
    meta = json.loads((path / "meta.json").read_text())
    assert meta["fingerprints"][MINI] == text_fingerprint(MINI)
    assert meta["suite"] == MINI_SUITE


def test_a_text_result_under_a_wrong_name_or_damaged_is_refused(tmp_path):
    (path,) = text_runs(tmp_path, seeds=(0,))
    file = result_path(path, MINI, "unseen")
    shutil.copy(file, result_path(path, MINI_CHANNEL, "unseen"))
    with pytest.raises(ValueError, match="must be named TextMini-ICL-v0__unseen"):
        load_run(path)
    result_path(path, MINI_CHANNEL, "unseen").unlink()
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match="is not a result file"):
        load_run(path)


# --- making a submission


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    return text_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def made(tmp_path_factory, runs) -> Path:
    """A valid submission; copied before it is changed."""
    return make_submission(runs, tmp_path_factory.mktemp("made") / MINI_SUITE / "own", MINI_SUITE)


def test_runs_become_a_valid_submission(runs, made):
    assert validate(made) == []
    document = tomllib.loads((made / "entry.toml").read_text())
    assert (document["suite"], document["seeds"]) == (MINI_SUITE, [0, 1])
    assert document["meta_train"] == MINI_SUITE  # each on its own environment
    assert document["code"] == "python -m baselines.metaicl --env <env>"
    assert document["fingerprints"] == {MINI: text_fingerprint(MINI)}
    read = read_submission(made)
    assert read.seeds == (0, 1)
    assert read.results() == {}
    for i, run in enumerate(map(load_run, runs)):
        given, found = run.text[0], read.text_results()[MINI][i]
        assert [task.task for task in found.tasks] == list(TASKS)
        for a, b in zip(given.tasks, found.tasks, strict=True):
            np.testing.assert_array_equal(a.prediction, b.prediction)
            np.testing.assert_array_equal(a.answer, b.answer)
            assert (a.checksum, a.total) == (b.checksum, b.total)


def test_predictions_have_exactly_the_columns_of_the_format(made):
    schema = pq.read_schema(made / "predictions" / "seed-0.parquet")
    assert schema.names == ["env", "task", "demo_seed", "query", "prediction"]
    assert schema.types == [pa.string(), pa.string(), pa.int32(), pa.int32(), pa.uint8()]


def test_equal_runs_give_equal_bytes(runs, made, tmp_path):
    again = make_submission(runs, tmp_path / "own", MINI_SUITE)
    for file in made.rglob("*.*"):
        assert file.read_bytes() == (again / file.relative_to(made)).read_bytes()


def test_a_whole_suite_is_small_and_needs_no_data(tmp_path):
    envs = [f"{setting}-Channel-v0" for setting in icl_bench.text_suite(SUITE).settings]
    runs = text_runs(tmp_path / "runs", seeds=(4,), envs=envs, suite=SUITE, gpu_hours=0.5)
    path = make_submission(runs, tmp_path / "mine", SUITE)
    assert (path / "predictions" / "seed-4.parquet").stat().st_size < 300_000
    document = tomllib.loads((path / "entry.toml").read_text())
    assert (document["meta_train"], document["gpu_hours"]) == (SUITE, 3.5)  # seven meta-trainings
    assert document["code"] == "python -m baselines.metaicl --env <env>"
    assert list(read_submission(path).text_results()) == envs


def test_missing_settings_need_a_flag(tmp_path):
    runs = text_runs(tmp_path / "runs", seeds=(0,), envs=(PARA, NLI), suite=SUITE)
    with pytest.raises(ValueError, match=r"seed 0 lacks HRtoLR-ICL-v0, .*--allow-missing"):
        make_submission(runs, tmp_path / "out", SUITE)
    path = make_submission(runs, tmp_path / "out", SUITE, allow_missing=True)
    assert list(read_submission(path).text_results()) == [NLI, PARA]


def refuse(tmp_path: Path, message: str, *runs: tuple[TextResult, dict], **said) -> None:
    made = [text_run(tmp_path / "runs", [result], text_entry(**fields)) for result, fields in runs]
    with pytest.raises(ValueError, match=message):
        make_submission(made, tmp_path / "out", MINI_SUITE, **said)
    assert not (tmp_path / "out").exists()


def test_one_entry_has_one_view(tmp_path):
    both = (text_result(), {}), (text_result(MINI_CHANNEL), {"meta_train": MINI_CHANNEL})
    refuse(tmp_path, r"views are mixed .*an entry is direct \(ICL\) or channel", *both)


def test_meta_training_elsewhere_is_refused_with_the_reason(tmp_path):
    message = "was meta-trained on HRtoLR-ICL-v0 and evaluated on TextMini-ICL-v0: in textmini-v0"
    refuse(tmp_path, message, (text_result(), {"meta_train": "HRtoLR-ICL-v0"}))
    some = (text_result(), {}), (text_result(seed=1), {"seed": 1, "meta_train": None})
    refuse(tmp_path / "2", r"they differ in .*meta_train: '<env>' and None", *some)


def test_meta_training_that_there_was_none_of_or_that_is_said(tmp_path):
    run = text_run(tmp_path, [text_result()], text_entry(meta_train=None, code="raw"))
    path = make_submission([run], tmp_path / "raw", MINI_SUITE)
    assert "meta_train" not in tomllib.loads((path / "entry.toml").read_text())
    run = text_run(tmp_path, [text_result()], text_entry(meta_train="HRtoLR-ICL-v0"))
    path = make_submission([run], tmp_path / "said", MINI_SUITE, meta_train="HRtoLR-ICL-v0")
    entry = read_submission(path).entry
    assert entry is not None
    assert entry.meta_train == "HRtoLR-ICL-v0"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": "shuffled"}, "evaluated with labels shuffled, boards ask for true"),
        ({"k": 8}, "with k 8, boards ask for 16"),
        ({"demo_seeds": (13, 100, 21, 42, 87)}, r"with demonstration seeds \(13, 100"),
    ],
)
def test_other_evaluations_are_refused(tmp_path, fields, message):
    refuse(tmp_path, message, (text_result(**fields), {}))


@pytest.mark.parametrize("change", ["checksum", "total", "answer"])
def test_other_data_are_refused(tmp_path, change):
    result = text_result()
    task = result.tasks[3]
    value = {"checksum": "ab" * 32, "total": 101, "answer": 1 - np.minimum(task.answer, 1)}[change]
    other = dataclasses.replace(task, **{change: value})
    tasks = (*result.tasks[:3], other, *result.tasks[4:])
    message = f"answers of {task.task} differ from the frozen ones"
    refuse(tmp_path, message, (dataclasses.replace(result, tasks=tasks), {}))


def test_runs_without_results_on_text_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has no results of textmini-v0: evaluate it first"):
        make_submission(method_runs(tmp_path), tmp_path / "out", MINI_SUITE)
    with pytest.raises(ValueError, match="no run with seed 0 has results of digits-v0"):
        make_submission(text_runs(tmp_path, seeds=(0,)), tmp_path / "out", "digits-v0")
    with pytest.raises(ValueError, match=r"unknown suite 'textmini-v9'; there are .*metaicl-v0"):
        make_submission(text_runs(tmp_path / "t"), tmp_path / "out", "textmini-v9")


def test_a_submission_reads_as_its_runs(made, runs):
    found = load_runs([made])
    assert [run.entry.seed for run in found] == [0, 1]
    for run, other in zip(found, map(load_run, runs), strict=True):
        for a, b in zip(run.text[0].tasks, other.text[0].tasks, strict=True):
            np.testing.assert_array_equal(a.prediction, b.prediction)


# --- a corpus of bad submissions


Change = Callable[[Path], None]
SEED_0, SEED_1 = "predictions/seed-0.parquet", "predictions/seed-1.parquet"
FIRST = TASKS[0]


def toml(old: str, new: str) -> Change:
    def change(path: Path) -> None:
        text = (path / "entry.toml").read_text()
        assert old in text
        (path / "entry.toml").write_text(text.replace(old, new, 1))

    return change


def table(change: Callable[[pa.Table], pa.Table], file: str = SEED_0) -> Change:
    return lambda path: pq.write_table(change(pq.read_table(path / file)), path / file)


def replaced(rows: pa.Table, name: str, values) -> pa.Table:
    return rows.set_column(rows.schema.names.index(name), name, values)


def cell(name: str, row: int, value) -> Change:
    def change(rows: pa.Table) -> pa.Table:
        values = rows[name].to_pylist()
        assert values[row] != value
        values[row] = value
        return replaced(rows, name, pa.array(values, rows.schema.field(name).type))

    return table(change)


def typed(name: str, kind: pa.DataType) -> Change:
    return table(lambda rows: replaced(rows, name, rows[name].cast(kind)))


def everywhere(name: str, value) -> Change:
    return table(lambda t: replaced(t, name, pa.array([value] * len(t), t.schema.field(name).type)))


def without(*rows: int) -> Change:
    return table(lambda t: t.take([i for i in range(len(t)) if i not in rows]))


def write(name: str, content: bytes) -> Change:
    return lambda path: (path / name).write_bytes(content) and None


def copied_seed(path: Path) -> None:
    shutil.copy(path / SEED_0, path / SEED_1)


def no_text(path: Path) -> None:
    """Bytes that are no UTF-8 where the name of a task should be."""
    rows = pq.read_table(path / SEED_0)
    names = [b"\xff\xfe"] + [name.encode() for name in rows["task"].to_pylist()[1:]]
    raw = pa.array(names, pa.binary())
    column = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    pq.write_table(replaced(rows, "task", column), path / SEED_0)


def big_text(path: Path) -> None:
    """A small file that would unpack to gigabytes of text."""
    rows = pq.read_table(path / SEED_0)
    bomb = pa.DictionaryArray.from_arrays(np.zeros(len(rows), np.int32), ["x" * 1_000_000])
    limits = {"dictionary_pagesize_limit": 2**24, "write_statistics": False}
    columns = {name: bomb if name == "task" else rows[name] for name in rows.schema.names}
    pq.write_table(pa.table(columns), path / SEED_0, store_schema=False, **limits)


BAD: dict[str, tuple[Change, str]] = {
    # files and entry.toml, which text shares with vectors
    "program": (write("run.py", b"print()"), r"'run\.py': unexpected file"),
    "too large": (write(SEED_0, bytes(3_000_001)), r"seed-0\.parquet: 3000001 bytes, at most 3000"),
    "unknown suite": (toml(f'"{MINI_SUITE}"', '"textmini-v9"'), "unknown suite 'textmini-v9'"),
    "suite of vectors": (
        toml(f'suite = "{MINI_SUITE}"', 'suite = "digits-v0"'),
        r"columns are .*'demo_seed'.*, must be .*'step'",
    ),
    "scorer version": (toml("scorer_version = 1", "scorer_version = 9"), "scorer version 9, this"),
    "other seeds": (toml("seeds = [0, 1]", "seeds = [0]"), r"seeds are \[0\], but there are files"),
    "deterministic": (
        toml("deterministic = false", "deterministic = true"),
        "a deterministic entry has exactly one file of predictions, not 2",
    ),
    "fingerprint": (
        toml(f'{MINI} = "', f'{MINI} = "{"0" * 64}"\n# "'),
        f"{MINI} was evaluated as 000000000000…, this version's",
    ),
    "other fingerprints": (toml(f'{MINI} = "', f'{PARA} = "'), "fingerprints are of .*Para.*pred"),
    "same predictions": (copied_seed, "seeds 0 and 1 hold the same predictions"),
    "unlike seeds": (
        table(lambda rows: rows.slice(0, 500), SEED_1),
        "seeds 0 and 1 differ in environments or tasks or queries",
    ),
    # the file of predictions
    "garbage": (write(SEED_0, b"PAR1 but not really PAR1"), "cannot be read as Parquet"),
    "no rows": (table(lambda rows: rows.slice(0, 0)), "0 rows, must be 1 to 16500"),
    "too many rows": (table(lambda rows: pa.concat_tables([rows] * 2)), "33000 rows, must be 1 to"),
    "more columns": (
        table(lambda rows: rows.append_column("answer", rows["prediction"])),
        r"columns are \[.*'answer'\], must be",
    ),
    "fewer columns": (table(lambda rows: rows.drop_columns(["query"])), "columns are"),
    "wide query": (typed("query", pa.int64()), "column query has type int64, must be int32"),
    "wide option": (typed("prediction", pa.int32()), "column prediction has type int32"),
    "binary task": (typed("task", pa.binary()), "column task has type binary, must be string"),
    "null": (cell("prediction", 7, None), "missing values in column prediction"),
    "null task": (cell("task", 7, None), "missing values in column task"),
    "no text": (no_text, "cannot be read as Parquet: .*UTF"),
    "text bomb": (big_text, "column task holds a text of 1000000 bytes"),
    # what the rows say
    "other env": (everywhere("env", PARA), "'NonParaToPara-ICL-v0' is not in textmini-v0"),
    "vector env": (cell("env", 0, DIGITS), f"'{DIGITS}' is not in textmini-v0, whose"),
    "both views": (
        table(lambda t: replaced(t, "env", pa.array([MINI] * 16000 + [MINI_CHANNEL] * 500))),
        r"views are mixed .* an entry is direct \(ICL\) or channel",
    ),
    "unknown task": (cell("task", 0, "<script>"), "'<script>' is no test task of TextMini"),
    "train task": (
        cell("task", 0, text_setting("TextMini").train[0]),
        "is no test task of TextMini",
    ),
    "demonstration seed": (
        cell("demo_seed", 0, 7),
        f"{FIRST}: demonstration seed 7 is none of 100",
    ),
    "query -1": (cell("query", 0, -1), f"{FIRST}: query -1 is not frozen: 0 to 99 are"),
    "query 100": (cell("query", 0, 100), f"{FIRST}: query 100 is not frozen: 0 to 99 are"),
    "query twice": (
        cell("query", 0, 1),
        r"1 predictions are given more than once \(first: seed 100, query 1\)",
    ),
    "one draw missing": (
        without(207),
        r"1 predictions are missing: each query needs all .*\(first: seed 21, query 7\)",
    ),
    "four draws": (without(*range(400, 500)), r"100 predictions are missing.* seed 87, query 0"),
    "no such option": (
        cell("prediction", 3, int(text_options(FIRST)[3])),
        f"prediction {text_options(FIRST)[3]} of query 3 is not an option, there are",
    ),
    "option 255": (cell("prediction", 3, 255), "prediction 255 of query 3 is not an option"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_submissions_are_refused(case, made, tmp_path):
    change, message = BAD[case]
    path = tmp_path / MINI_SUITE / "own"
    shutil.copytree(made, path)
    change(path)
    problems = validate(path)
    assert any(re.search(message, problem) for problem in problems), problems
    with pytest.raises(ValueError, match="cannot be scored"):
        read_submission(path).text_results()


def test_all_problems_are_told_at_once(made, tmp_path):
    path = shutil.copytree(made, tmp_path / "own")
    cases = ("program", "fingerprint", "no such option")
    for case in cases:
        BAD[case][0](path)
    told = "\n".join(validate(path))
    assert all(re.search(BAD[case][1], told) for case in cases)


def test_tasks_without_frozen_answers_cannot_be_handed_in(tmp_path, monkeypatch):
    runs = text_runs(tmp_path / "runs", seeds=(0,), envs=(PARA,), suite=SUITE)
    path = make_submission(runs, tmp_path / "whole", SUITE, allow_missing=True)
    frozen = text_protocol._frozen()
    task = text_setting("NonParaToPara").test[1]
    fewer = {name: row for name, row in frozen.items() if name != task}
    monkeypatch.setattr(text_protocol, "_frozen", lambda: fewer)
    told = validate(path)
    assert any(f"the answers of {task} are not pinned" in problem for problem in told)
    # Making one leaves such a task out.
    path = make_submission(runs, tmp_path / "out", SUITE, allow_missing=True)
    assert validate(path) == []
    (result,) = read_submission(path).text_results()[PARA]
    assert task not in [t.task for t in result.tasks]
    assert len(result.tasks) == 3


def test_rows_may_come_in_any_order(made, tmp_path):
    path = shutil.copytree(made, tmp_path / "own")
    order = np.random.default_rng(0).permutation(16500)
    table(lambda rows: rows.take(order))(path)
    assert validate(path) == []
    for task, part in read_submission(made).text[0][MINI].tasks.items():
        found = read_submission(path).text[0][MINI].tasks[task]
        np.testing.assert_array_equal(found.prediction, part.prediction)


def test_some_queries_of_some_tasks_may_be_handed_in(tmp_path):
    asked = {"tasks": TASKS[2:5], "queries": {TASKS[3]: [4, 9, 50]}}
    path = make_submission(text_runs(tmp_path, asked=asked), tmp_path / "out", MINI_SUITE)
    assert validate(path) == []
    for result in read_submission(path).text_results()[MINI]:
        assert [task.task for task in result.tasks] == list(TASKS[2:5])
        assert [len(task.query) for task in result.tasks] == [100, 3, 100]
        np.testing.assert_array_equal(result.tasks[1].query, [4, 9, 50])
        np.testing.assert_array_equal(result.tasks[1].answer, text_answers(TASKS[3])[[4, 9, 50]])
