import datetime
import json
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_changes import SEED_0, log_probs, table_change, write
from hostile_corpus import LAYOUT, PREDICTIONS, TOML
from safetensors.numpy import save_file
from synthetic_runs import (
    DIGITS,
    ENVS,
    RANDOM,
    SUITE,
    entry_info,
    frozen_result,
    method_runs,
    random_correct,
    run_folder,
)

import icl_bench
from icl_bench.evaluation import protocol
from icl_bench.leaderboard.entry import EntryInfo, to_toml
from icl_bench.leaderboard.runs import (
    load_run,
    new_run_folder,
    result_path,
    results_by_seed,
    write_meta,
)
from icl_bench.leaderboard.submission import make_submission, read_submission, validate

# --- entries and run folders


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "GPICL"}, "name must be at most 64 lower-case"),
        ({"name": "a__b"}, "name must be at most 64 lower-case"),
        ({"name": "../x"}, "name must be at most 64 lower-case"),
        ({"title": " "}, "title must be a text of 1 to 120"),
        ({"title": "two\nlines"}, r"title must be one line without hidden characters \(U\+000A\)"),
        ({"authors": "evil \u202e"}, r"hidden characters \(U\+202E\)"),
        ({"parameters": -1}, "parameters must be a whole number"),
        ({"gpu_hours": float("nan")}, "gpu_hours must be a number of hours"),
        ({"meta_train_kwargs": {"seed": 3}}, "must not hold seed"),
        ({"meta_train_kwargs": {"bias": float("inf")}}, "finite JSON scalars"),
        ({"meta_train_kwargs": {"not an argument": 1}}, "names of arguments"),
    ],
)
def test_bad_entries_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        entry_info(**fields)


def test_entries_from_outside_name_every_problem():
    fields = entry_info().to_dict() | {"kind": "winner", "parameters": True, "rank": 1}
    del fields["code"]
    with pytest.raises(ValueError, match="bad entry") as error:
        EntryInfo.from_dict(fields)
    for part in ("code is missing", "unknown key 'rank'", "kind must be", "parameters must be"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "text",
    ['quote " and \\ backslash', "tab\tand\nline", "del \x7f nul \x00 esc \x1b", "ρ × 😀 é", "'''"],
)
def test_toml_reads_back_as_the_same_text(text):
    document = {"a": text, "list": [text, "b"], "number": 1e16, "table": {text: -0.5, "yes": True}}
    assert tomllib.loads(to_toml(document)) == document


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), b"bytes", object()])
def test_toml_refuses_what_has_no_place(value):
    with pytest.raises(ValueError, match="has no place in TOML"):
        to_toml({"a": value})


def test_run_folders_are_named_and_never_shared(tmp_path, monkeypatch):
    path = new_run_folder(tmp_path, SUITE, "gpicl", 3)
    assert re.fullmatch(r"digits-v0__gpicl__3__\d{8}T\d{6}Z", path.name)
    assert (path / "results").is_dir()

    class StoppedClock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5, tzinfo=tz)

    monkeypatch.setattr(datetime, "datetime", StoppedClock)
    assert new_run_folder(tmp_path, SUITE, "gpicl", 3).name.endswith("__20260102T030405Z")
    with pytest.raises(FileExistsError, match=r"20260102T030405Z exists already.*start it again"):
        new_run_folder(tmp_path, SUITE, "gpicl", 3)


def test_a_run_is_read_as_it_was_written(tmp_path):
    entry = entry_info(seed=7, meta_train=None, gpu_hours=None, parameters=None)
    results = [frozen_result(env, random_correct(0.5, 0)) for env in ENVS]
    path = run_folder(tmp_path, results, entry)
    write_meta(path, entry, SUITE, {}, commit="abc", device="cpu")  # again, with more
    run = load_run(path)
    assert (run.entry, run.suite, run.path) == (entry, SUITE, path)
    assert [result.env for result in run.results] == list(ENVS)
    np.testing.assert_array_equal(run.results[1].prediction, results[1].prediction)
    meta = json.loads((path / "meta.json").read_text())
    assert meta["commit"] == "abc"
    assert {"package_version", "fingerprints", "versions"} <= set(meta)
    assert sorted(p.name for p in path.iterdir()) == ["meta.json", "results"]


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no meta\.json"):
        load_run(tmp_path)
    (tmp_path / "meta.json").write_text('{"suite": null}')
    with pytest.raises(ValueError, match=r"meta\.json: entry is missing"):
        load_run(tmp_path)
    for damaged in ("{", "[]", "3", "[" * 100_000):
        (tmp_path / "meta.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"meta\.json is damaged: "):
            load_run(tmp_path)
    with pytest.raises(ValueError, match=r"meta\.json has versions already"):
        write_meta(tmp_path, entry_info(), None, {}, versions=1)


def test_a_result_under_a_wrong_name_is_refused(tmp_path):
    path = run_folder(tmp_path, [frozen_result(DIGITS, random_correct(0.5, 0))], entry_info())
    result_path(path, DIGITS, "unseen").rename(result_path(path, RANDOM, "unseen"))
    with pytest.raises(ValueError, match="must be named Digits-Proj8-v0__unseen"):
        load_run(path)


def test_a_seed_may_have_several_runs_but_no_environment_twice(tmp_path):
    one, other, again = (
        load_run(run_folder(tmp_path, [frozen_result(env, random_correct(0.5, 0))], entry_info()))
        for env in (DIGITS, RANDOM, DIGITS)
    )
    assert set(results_by_seed([one, other])[0]) == set(ENVS)
    with pytest.raises(ValueError, match=r"both hold gpicl with seed 0 on Digits"):
        results_by_seed([one, other, again])


# --- results of one's own


def test_results_of_ones_own_become_a_run_and_a_submission(tmp_path):
    saved = []
    for seed in (3, 4):
        results = [frozen_result(env, random_correct(0.5, seed)) for env in ENVS]
        saved.append(
            icl_bench.save_run(
                results, tmp_path / "runs", name="mine", suite=SUITE, seed=seed, title="My method"
            )
        )
    assert re.fullmatch(r"digits-v0__mine__3__\d{8}T\d{6}Z", saved[0].name)
    run = load_run(saved[1])
    assert (run.suite, run.entry.title, run.entry.seed) == (SUITE, "My method", 4)
    assert (run.entry.external_data, run.entry.deterministic) == ("not stated", False)
    for found, result in zip(run.results, results, strict=True):
        np.testing.assert_array_equal(found.prediction, result.prediction)
    meta = json.loads((saved[0] / "meta.json").read_text())
    assert meta["fingerprints"] == {e: protocol.evaluation_fingerprint(e) for e in ENVS}
    assert validate(make_submission(saved, tmp_path / "mine", SUITE)) == []


def test_results_that_make_no_run_leave_nothing(tmp_path):
    result = frozen_result(DIGITS, random_correct(0.5, 0))
    root = tmp_path / "runs"
    for results, fields, message in (
        ([], {}, "no results to save"),
        ([result, result], {}, "two results of Digits-Proj8-v0, split unseen"),
        ([result], {"name": "My Name"}, "name must be at most 64 lower-case"),
        ([result], {"suite": "digits-v9"}, "unknown suite 'digits-v9'"),
        ([result], {"weights": 3}, "unknown key 'weights'"),
        ([result], {"seed": -1}, "seed must be a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            icl_bench.save_run(results, root, **{"name": "mine"} | fields)
    assert not root.exists()


# --- making a submission


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    return method_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def made(tmp_path_factory, runs) -> Path:
    """A valid submission; copied before it is changed."""
    return make_submission(runs, tmp_path_factory.mktemp("made") / SUITE / "gpicl", SUITE)


def test_runs_become_a_valid_submission(runs, made):
    assert validate(made) == []
    assert sorted(p.relative_to(made).as_posix() for p in made.rglob("*")) == [
        "entry.toml",
        "predictions",
        "predictions/seed-0.parquet",
        "predictions/seed-1.parquet",
    ]
    assert [p.name for p in made.parent.iterdir()] == ["gpicl"]  # nothing is left beside it
    document = tomllib.loads((made / "entry.toml").read_text())
    assert document["seeds"] == [0, 1]
    assert document["gpu_hours"] == 1.0  # of both seeds
    assert document["meta_train_kwargs"] == {"num_tasks": "none", "bias": 0.9}
    assert document["scorer_version"] == 1
    assert document["fingerprints"] == {e: protocol.evaluation_fingerprint(e) for e in ENVS}
    assert document["package_version"]
    read = read_submission(made)
    for seed, run in enumerate(map(load_run, runs)):
        for result in run.results:
            found = read.predictions[seed][result.env]
            np.testing.assert_array_equal(found.prediction, result.prediction)
            np.testing.assert_array_equal(found.log_probs, result.log_probs)


def test_predictions_have_exactly_the_columns_of_the_format(made):
    schema = pq.read_schema(made / "predictions" / "seed-0.parquet")
    assert schema.names == ["env", "split", "episode", "step", "prediction", "log_probs"]
    types = [pa.string(), pa.string(), pa.int32(), pa.uint8(), pa.uint8(), pa.list_(pa.float16())]
    assert schema.types == types


def test_equal_runs_give_equal_bytes(runs, made, tmp_path):
    again = make_submission(runs, tmp_path / "gpicl", SUITE)
    for file in made.rglob("*.*"):
        assert file.read_bytes() == (again / file.relative_to(made)).read_bytes()


def test_folder_names_the_entry_and_fields_can_be_said_otherwise(runs, tmp_path):
    path = make_submission(
        runs, tmp_path / "large", SUITE, title='Large "one"', authors="C. D.", gpu_hours=3.0
    )
    entry = read_submission(path).entry
    assert entry is not None
    assert (entry.name, entry.title, entry.authors) == ("large", 'Large "one"', "C. D.")
    assert entry.gpu_hours == 3.0
    with pytest.raises(ValueError, match="cannot say seed otherwise"):
        make_submission(runs, tmp_path / "other", SUITE, seed=3)


def test_existing_folder_is_refused(runs, made):
    with pytest.raises(FileExistsError, match="exists already: give another folder"):
        make_submission(runs, made, SUITE)


def test_mixed_methods_are_refused(runs, tmp_path):
    other = method_runs(tmp_path, "lstm", seeds=(5,))
    with pytest.raises(ValueError, match=r"mixed methods: .* is of gpicl, .* of lstm"):
        make_submission([*runs, *other], tmp_path / "out", SUITE)
    unlike = method_runs(tmp_path, "gpicl", seeds=(5,), parameters=99)
    with pytest.raises(ValueError, match="they differ in parameters: 1234 and 99"):
        make_submission([*runs, *unlike], tmp_path / "out", SUITE)
    assert not (tmp_path / "out").exists()


def test_missing_columns_need_a_flag(tmp_path):
    runs = method_runs(tmp_path, envs=(DIGITS,))
    with pytest.raises(ValueError, match=r"seed 0 lacks Random-Proj8-v0.*--allow-missing"):
        make_submission(runs, tmp_path / "out", SUITE)
    path = make_submission(runs, tmp_path / "out", SUITE, allow_missing=True)
    assert list(read_submission(path).results()) == [DIGITS]


def test_runs_without_results_of_the_suite_are_refused(tmp_path):
    run = run_folder(tmp_path, [], entry_info())
    with pytest.raises(ValueError, match="no run with seed 0 has results"):
        make_submission([run], tmp_path / "out", SUITE, allow_missing=True)
    with pytest.raises(ValueError, match="at least one run"):
        make_submission([], tmp_path / "out", SUITE)
    with pytest.raises(ValueError, match="unknown suite 'table9-v0'"):
        make_submission([run], tmp_path / "out", "table9-v0")


def test_deterministic_methods_hand_in_one_seed(tmp_path):
    runs = method_runs(tmp_path, "chance", deterministic=True, kind="reference")
    with pytest.raises(ValueError, match=r"chance is deterministic: give runs of one seed"):
        make_submission(runs, tmp_path / "out", SUITE)
    path = make_submission(runs[:1], tmp_path / "out", SUITE)
    assert validate(path) == []
    assert tomllib.loads((path / "entry.toml").read_text())["deterministic"] is True


def refuse(tmp_path, message: str, **change) -> None:
    """A run with a result that is about other episodes must be refused, leaving nothing."""
    result = frozen_result(DIGITS, random_correct(0.5, 0, change.pop("num_episodes", 256)))
    fields = {name: getattr(result, name) for name in result.__dataclass_fields__} | change
    run = run_folder(tmp_path / "runs", [type(result)(**fields)], entry_info())
    with pytest.raises(ValueError, match=message):
        make_submission([run], tmp_path / "out", SUITE, allow_missing=True)
    assert not (tmp_path / "out").exists()


def test_other_episodes_are_refused(tmp_path):
    refuse(tmp_path, "evaluated on 128 episodes: boards need", num_episodes=128)
    refuse(tmp_path, "boards need episodes 0 to 255", episode=np.arange(256) + 1)


def test_other_evaluations_are_refused(tmp_path):
    refuse(tmp_path, "evaluated otherwise than boards ask for", fingerprint="ab" * 32)


def test_other_labels_are_refused(tmp_path):
    label = protocol.frozen_labels(DIGITS).copy()
    label[3, 4] = (label[3, 4] + 1) % 10
    refuse(tmp_path, "labels differ from the frozen ones", label=label)


def test_extended_hand_in_fits_the_size(tmp_path):
    path = make_submission(
        method_runs(tmp_path, num_episodes=1024, seeds=(0,)), tmp_path / "out", SUITE
    )
    assert validate(path) == []
    assert (path / "predictions/seed-0.parquet").stat().st_size < 3_000_000


def test_what_is_no_toml_is_told_in_the_words_of_the_parser(made, tmp_path):
    path = shutil.copytree(made, tmp_path / "gpicl")
    (path / "entry.toml").write_text("a = \n")
    (problem,) = validate(path)
    assert problem == "entry.toml: cannot be read as TOML: Invalid value (at line 1, column 5)"


# --- reading a submission; tests of hostile submissions have what is refused


def test_prediction_must_be_the_most_probable_class(made, tmp_path):
    path = shutil.copytree(made, tmp_path / "gpicl")
    chosen = pq.read_table(path / SEED_0)["prediction"][99].as_py()
    probs = np.full(10, 0.05)
    probs[(chosen + 1) % 10] = 0.55
    log_probs(list(probs))(path)
    assert any("must be the class of largest log p" in p for p in validate(path))


def test_ties_and_zero_probabilities_are_fine(made, tmp_path):
    path = shutil.copytree(made, tmp_path / "gpicl")
    log_probs([0.1] * 10, row=99)(path)
    chosen = pq.read_table(path / SEED_0)["prediction"][49].as_py()
    log_probs(list(np.eye(10)[chosen]), row=49)(path)
    assert validate(path) == []


def test_rows_may_come_in_any_order(made, tmp_path):
    path = shutil.copytree(made, tmp_path / "gpicl")
    order = np.random.default_rng(0).permutation(51_200)
    table_change(lambda table: table.take(order))(path)
    assert validate(path) == []
    for env, found in read_submission(path).predictions[0].items():
        expected = read_submission(made).predictions[0][env]
        np.testing.assert_array_equal(found.prediction, expected.prediction)
        np.testing.assert_array_equal(found.log_probs, expected.log_probs)


def test_all_problems_are_told_at_once(made, tmp_path):
    path = shutil.copytree(made, tmp_path / "gpicl")
    cases = (
        LAYOUT["program"],
        TOML["unknown key"],
        TOML["fingerprint"],
        PREDICTIONS["class 10"],
    )
    for change, _ in cases:
        change(path)
    told = "\n".join(validate(path))
    for _, message in cases:
        assert re.search(message, told)


def test_submission_that_is_a_link_or_missing(made, tmp_path):
    (tmp_path / "gpicl").symlink_to(made)
    assert "the folder is a symbolic link" in validate(tmp_path / "gpicl")
    with pytest.raises(FileNotFoundError, match="no submission at"):
        validate(tmp_path / "nothing")


def test_environments_without_pinned_labels_cannot_be_handed_in(made, tmp_path, monkeypatch):
    labels = protocol.frozen_labels

    def unpinned(env_id: str, num_episodes: int = 256):
        if env_id == RANDOM:
            raise LookupError("the labels of the frozen episodes of Random are not pinned")
        return labels(env_id, num_episodes)

    monkeypatch.setattr(protocol, "frozen_labels", unpinned)
    assert any("Random are not pinned" in problem for problem in validate(made))
    # Making one leaves such a column out, and does not ask for it.
    monkeypatch.setattr(protocol, "frozen_labels", labels)
    runs = method_runs(tmp_path)
    monkeypatch.setattr(protocol, "frozen_labels", unpinned)
    path = make_submission(runs, tmp_path / "out", SUITE)
    assert validate(path) == []
    assert list(read_submission(path).predictions[0]) == [DIGITS]


def test_checkpoints_may_be_handed_in(made, tmp_path):
    path = shutil.copytree(made, tmp_path / "gpicl")
    (path / "checkpoints").mkdir()
    save_file({"a": np.zeros(3)}, path / "checkpoints" / "seed-0.safetensors")
    write("checkpoints/seed-1.json", b"{}")(path)
    assert validate(path) == []
