"""Scores are kept for the very files and code that made them, and for nothing else."""

import dataclasses
import hashlib
import importlib
import os
import pickle
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from synthetic_runs import DIGITS, SUITE, method_runs
from synthetic_text import MINI_SUITE, text_runs

from icl_bench.evaluation import protocol, text_metrics
from icl_bench.leaderboard import replays, score_cache, scoring, text_scoring
from icl_bench.leaderboard.replays import ReplayRecord, record_path, replay_digest, write_record
from icl_bench.leaderboard.scoring import score_entry, score_suite
from icl_bench.leaderboard.submission import make_submission, read_submission
from icl_bench.leaderboard.text_scoring import score_text_suite


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache folder for each test."""
    monkeypatch.setenv("ICL_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(text_metrics, "NUM_REPLICATES", 200)
    return tmp_path / "cache" / "scores"


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Names of the entries whose predictions are read."""
    names: list[str] = []

    def counted(path):
        names.append(Path(path).name)
        return read_submission(path)

    monkeypatch.setattr(scoring, "read_submission", counted)
    return names


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Entries a, b, c, d, and of text t and u."""
    base = tmp_path_factory.mktemp("made")
    for i, name in enumerate("abcd"):
        runs = method_runs(base / "runs", name, 0.3 + 0.15 * i, envs=(DIGITS,))
        make_submission(runs, base / SUITE / name, SUITE, allow_missing=True)
    for i, name in enumerate("tu"):
        runs = text_runs(base / "runs", name, 0.5 + 0.2 * i, seeds=(0, 1))
        make_submission(runs, base / MINI_SUITE / name, MINI_SUITE)
    return base


@pytest.fixture
def suite(made, tmp_path) -> Path:
    """Entries a, b and c."""
    for name in "abc":
        shutil.copytree(made / SUITE / name, tmp_path / SUITE / name)
    return tmp_path / SUITE


def exact(value: object) -> object:
    """A value to the last bit, with its types."""
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if dataclasses.is_dataclass(value):
        return (type(value).__name__, exact(vars(value)))
    if isinstance(value, dict):
        return [(exact(key), exact(item)) for key, item in value.items()]
    if isinstance(value, tuple | list):
        return (type(value).__name__, [exact(item) for item in value])
    return (type(value).__name__, value.hex() if isinstance(value, float) else value)


# --- what is kept


def test_the_second_scoring_reads_no_predictions(suite, reads):
    first = score_suite(suite)
    assert reads == ["a", "b", "c"]
    second = score_suite(suite)
    assert reads == ["a", "b", "c"]
    without = score_suite(suite, use_cache=False)
    assert reads == ["a", "b", "c"] * 2
    assert exact(first) == exact(second) == exact(without)
    assert exact(score_entry(suite / "a")) == exact(without.entries[-1])
    assert len(reads) == 6
    assert exact(score_entry(suite / "a", use_cache=False)) == exact(without.entries[-1])
    assert len(reads) == 7


def test_a_new_entry_alone_is_scored(suite, made, reads):
    score_suite(suite)
    del reads[:]
    shutil.copytree(made / SUITE / "d", suite / "d")
    four = score_suite(suite)
    assert reads == ["d"]
    assert exact(four) == exact(score_suite(suite, use_cache=False))


def test_a_changed_byte_is_scored_anew(suite, made, reads):
    score_suite(suite)
    del reads[:]
    toml = suite / "a" / "entry.toml"
    toml.write_text(toml.read_text().replace('title = "A"', 'title = "Z"'))
    assert score_suite(suite).entries[-1].entry.title == "Z"
    assert reads == ["a"]
    other = made / SUITE / "d" / "predictions" / "seed-1.parquet"
    shutil.copy(other, suite / "b" / "predictions" / "seed-1.parquet")
    score = score_suite(suite)
    assert reads == ["a", "b"]
    assert exact(score) == exact(score_suite(suite, use_cache=False))
    file = suite / "c" / "predictions" / "seed-0.parquet"
    contents = bytearray(file.read_bytes())
    contents[-1] ^= 1
    file.write_bytes(contents)
    with pytest.raises(ValueError, match=r"c cannot be scored: predictions/seed-0\.parquet"):
        score_suite(suite)


def test_a_kept_score_hides_nothing_that_is_wrong_beside_the_files(suite, tmp_path):
    score_suite(suite)
    (suite / "a" / "predictions" / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="a symbolic link has no place here"):
        score_suite(suite)
    (suite / "a" / "predictions" / "link").unlink()
    (suite / "b" / "more").mkdir()
    with pytest.raises(ValueError, match=r"'more': a folder.* has no place here"):
        score_suite(suite)
    (suite / "b" / "more").rmdir()
    (suite / "b").rename(suite / "bb")
    with pytest.raises(ValueError, match="name must be that of the folder, 'bb'"):
        score_suite(suite)
    (suite / "bb").rename(suite / "b")
    shutil.copytree(suite / "b", tmp_path / "table2-v0" / "b")
    with pytest.raises(ValueError, match=f"b belongs to {SUITE}: move it"):
        score_suite(tmp_path / "table2-v0")


@pytest.mark.parametrize("score", [score_suite, score_text_suite])
def test_titles_that_look_alike_are_refused_from_the_cache_as_well(made, tmp_path, score):
    name, suite = ("a", SUITE) if score is score_suite else ("t", MINI_SUITE)
    shutil.copytree(made / suite / name, tmp_path / "x" / suite / name)
    twin = shutil.copytree(made / suite / name, tmp_path / "x" / suite / "twin")
    toml = twin / "entry.toml"
    toml.write_text(toml.read_text().replace(f'name = "{name}"', 'name = "twin"'))
    assert len(score(twin.parent).entries) == 2  # the same title may be: boards add the names
    text = toml.read_text()
    toml.write_text(text.replace(f'title = "{name.upper()}"', f'title = "{name}"'))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"title '\w' looks like that of"):
            score(twin.parent)
    toml.write_text(toml.read_text().replace("scorer_version = 1", "scorer_version = 7"))
    with pytest.raises(ValueError, match=rf"{name} cannot be scored: entry\.toml: title"):
        score(twin.parent)


def test_files_that_change_while_they_are_read_are_not_kept(suite, cache, monkeypatch):
    def slow(path):
        submission = read_submission(path)
        if submission.entry.name == "b":
            toml = suite / "b" / "entry.toml"
            toml.write_text(toml.read_text().replace('title = "B"', 'title = "New"'))
        return submission

    monkeypatch.setattr(scoring, "read_submission", slow)
    assert {e.entry.title for e in score_suite(suite).entries} == {"A", "B", "C"}
    assert len(list(cache.iterdir())) == 2
    assert {e.entry.title for e in score_suite(suite).entries} == {"A", "New", "C"}


def test_outdated_entries_are_kept_and_invalid_ones_are_not(suite, cache, reads):
    toml = suite / "a" / "entry.toml"
    toml.write_text(toml.read_text().replace("scorer_version = 1", "scorer_version = 7"))
    first = score_suite(suite)
    assert first.not_ranked["a"][1] == ("scorer version 7, this is version 1",)
    assert exact(score_suite(suite)) == exact(first)
    assert len(reads) == 3
    with pytest.raises(ValueError, match="a cannot be scored: scorer version 7"):
        score_entry(suite / "a")
    toml.write_text(toml.read_text().replace("parameters = 1234", "parameters = -1"))
    for score in (score_suite, score_suite, lambda folder: score_entry(folder / "a")):
        with pytest.raises(ValueError, match="parameters must be a whole number"):
            score(suite)
    assert len(list(cache.iterdir())) == 3


def test_records_of_replays_are_read_each_time(suite, reads):
    assert score_suite(suite).entries[-1].replay is None
    record = ReplayRecord(replay_digest(suite / "a"), "0.1.0", {}, {})
    write_record(record_path(suite.parent, SUITE, "a"), record)
    assert score_suite(suite).entries[-1].replay == record
    record_path(suite.parent, SUITE, "a").unlink()
    assert score_suite(suite).entries[-1].replay is None
    assert reads == ["a", "b", "c", "a"]  # the record might have shown that it is not valid
    assert replays.FOLDER not in {path.name for path in suite.iterdir()}


# --- what is not believed


def damaged(path: Path, other: Path) -> dict[str, bytes]:
    contents = path.read_bytes()
    flipped = {}
    for at in (3, 90, len(contents) // 2, len(contents) - 1):
        copy = bytearray(contents)
        copy[at] ^= 4
        flipped[f"byte {at}"] = bytes(copy)

    def checked(text: bytes) -> bytes:
        return f"{score_cache.HEADER} {hashlib.sha256(text).hexdigest()}\n".encode() + text

    return flipped | {
        "empty": b"",
        "half": contents[: len(contents) // 2],
        "longer": contents + b"\0",
        "another entry's": other.read_bytes(),
        "a pickle": checked(pickle.dumps({"score": 1})),
        "half of the arrays": checked(contents.partition(b"\n")[2][:-100]),
        "nothing": checked(b""),
    }


def test_damaged_and_foreign_files_are_computed_anew(suite, cache, reads, monkeypatch):
    before = exact(score_suite(suite))
    keys = {name: score_cache.score_key(suite / name, "vectors") for name in "abc"}
    files = {name: cache / f"{key}.score" for name, key in keys.items()}
    assert set(files.values()) == set(cache.iterdir())
    good = files["a"].read_bytes()
    assert score_cache.load_score(keys["a"], dict)["seeds"] == [0, 1]
    for what, contents in damaged(files["a"], files["b"]).items():
        files["a"].write_bytes(contents)
        assert score_cache.load_score(keys["a"], dict) is None, what
    del reads[:]
    assert exact(score_suite(suite)) == before
    assert reads == ["a"]
    assert files["a"].read_bytes() == good
    files["a"].unlink()
    files["a"].symlink_to(shutil.copy(files["b"], cache.parent / "elsewhere"))
    assert exact(score_suite(suite)) == before
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    del reads[:]
    assert exact(score_suite(suite)) == before
    assert reads == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["SCORER_VERSION", "FINGERPRINT", "HEADER"])
def test_scores_of_other_code_are_ignored(suite, reads, monkeypatch, name):
    before = exact(score_suite(suite))
    monkeypatch.setattr(score_cache, name, 99 if name == "SCORER_VERSION" else "other")
    assert exact(score_suite(suite)) == before
    assert len(reads) == 6


def test_any_source_and_any_label_counts(tmp_path):
    found = [score_cache.fingerprint(tmp_path)]
    for name, text in (("a.py", "1"), ("a.py", "2"), ("sub/b.npz", "1"), ("c.py", "2")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        found.append(score_cache.fingerprint(tmp_path))
    assert len(set(found)) == 5
    (tmp_path / "c.py").rename(tmp_path / "d.py")
    assert score_cache.fingerprint(tmp_path) not in found
    (tmp_path / "d.py").rename(tmp_path / "c.py")
    (tmp_path / "d.pyc").write_text("")
    assert score_cache.fingerprint(tmp_path) == found[-1]


def test_fields_that_this_version_does_not_know_are_computed_anew(suite, cache, reads):
    score = score_suite(suite).entries[0]
    path = suite / score.entry.name
    key = score_cache.score_key(path, "vectors")
    more = dataclasses.make_dataclass("More", [*vars(score), "more"])
    for fields in (vars(score) | {"columns": {DIGITS: 3}}, vars(score) | {"entry": {}}):
        score_cache.save_score(path, "vectors", key, more(**fields, more=1))
        del reads[:]
        score_suite(suite)
        assert reads == [score.entry.name]


# --- without it, and its size


def test_without_the_cache_nothing_is_written(suite, cache):
    score_suite(suite, use_cache=False)
    score_entry(suite / "a", use_cache=False)
    assert not cache.exists()


def test_a_folder_that_is_not_there_is_an_error_as_ever(suite):
    for use_cache in (False, True):
        with pytest.raises(FileNotFoundError, match=r"no submission at .*nowhere"):
            score_entry(suite / "nowhere", use_cache=use_cache)


def test_a_folder_that_cannot_be_written_is_no_error(suite, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ICL_BENCH_CACHE", str(tmp_path / "file"))
    assert len(score_suite(suite).entries) == 3


def test_what_was_used_longest_ago_is_removed(suite, cache, monkeypatch):
    score_suite(suite)
    for i, file in enumerate(sorted(cache.iterdir())):
        os.utime(file, (i, i))
    oldest, *others = sorted(cache.iterdir())
    monkeypatch.setattr(score_cache, "MAX_BYTES", sum(f.stat().st_size for f in others))
    score_cache.prune()
    assert sorted(cache.iterdir()) == others
    monkeypatch.undo()
    monkeypatch.setenv("ICL_BENCH_CACHE", str(cache.parent))
    score_suite(suite)
    assert sorted(cache.iterdir()) == [oldest, *others]
    assert min(file.stat().st_mtime for file in others) > 1e9  # they were used
    monkeypatch.setattr(score_cache, "MAX_BYTES", 0)
    score_suite(suite)
    assert not list(cache.iterdir())


def test_predictions_are_forgotten_one_after_the_other(suite, monkeypatch):
    alive: list[weakref.ref] = []

    def watched(path):
        assert not [ref() for ref in alive if ref() is not None]
        submission = read_submission(path)
        alive.append(weakref.ref(submission.predictions[0][DIGITS]))
        return submission

    monkeypatch.setattr(scoring, "read_submission", watched)
    for use_cache in (False, True):
        score_suite(suite, use_cache=use_cache)
    assert len(alive) == 6


# --- text


def test_text_suites_keep_scores_as_well(made, tmp_path, cache, reads, monkeypatch):
    suite = tmp_path / MINI_SUITE
    shutil.copytree(made / MINI_SUITE / "t", suite / "t")
    score_text_suite(suite)
    assert reads == ["t"]
    shutil.copytree(made / MINI_SUITE / "u", suite / "u")
    two = score_text_suite(suite)
    assert reads == ["t", "u"]
    again = score_text_suite(suite)
    assert reads == ["t", "u"]
    without = score_text_suite(suite, use_cache=False)
    assert reads == ["t", "u"] * 2
    assert exact(two) == exact(again) == exact(without)
    for file in cache.iterdir():
        file.write_bytes(file.read_bytes()[:-9])
    assert exact(score_text_suite(suite)) == exact(without)
    monkeypatch.setattr(text_metrics, "NUM_REPLICATES", 300)
    assert exact(score_text_suite(suite)) != exact(without)
    assert len(reads) == 8


def test_text_entries_are_scored_alike_alone_and_together(made, monkeypatch):
    together = score_text_suite(made / MINI_SUITE, use_cache=False)
    monkeypatch.setattr(text_scoring, "TOGETHER", 1)
    alone = score_text_suite(made / MINI_SUITE, use_cache=False)
    assert exact(together) == exact(alone)


# --- what benchmarks/boards.py measures


def test_the_benchmark_draws_entries_that_count(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(protocol, "_all_frozen_labels", protocol._all_frozen_labels)  # put back
    boards = importlib.import_module("boards")
    boards.pin_all()
    folder = tmp_path / boards.SUITE.name
    for i in (0, 2):  # 63 % and 35 %
        boards.write_entry(folder / f"learner-{i}", i)
    score = score_suite(folder)
    for entry in score.entries:
        assert (entry.seeds, tuple(entry.columns)) == ((0, 1, 2), boards.SUITE.envs)
        assert not entry.flags
    assert {name: row["learner-0"] for name, row in score.ranks.items()} == dict.fromkeys(
        boards.SUITE.envs, 1
    )
    assert all(row["learner-2"] == 2 for row in score.ranks.values())
