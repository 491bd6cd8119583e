import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from hostile_changes import SEED_0
from hostile_corpus import BOMB, FIRST, LAYOUT, PREDICTIONS, TEXT, TOML, Case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_runs import SUITE, method_runs
from synthetic_text import MINI_SUITE, text_runs

from icl_bench import text_suite
from icl_bench.__main__ import main
from icl_bench.leaderboard import checks
from icl_bench.leaderboard.checks import check_document
from icl_bench.leaderboard.replays import ReplayRecord, record_path, write_record
from icl_bench.leaderboard.schema import CHECKS, DOCUMENT_CHECKS
from icl_bench.leaderboard.submission import make_submission, read_submission, validate
from icl_bench.leaderboard.text_predictions import read_text_predictions

VECTORS = LAYOUT | TOML | PREDICTIONS | BOMB


@pytest.fixture(scope="module")
def vectors(tmp_path_factory) -> Path:
    """A valid submission; copied before it is changed."""
    root = tmp_path_factory.mktemp("vectors")
    return make_submission(method_runs(root / "runs"), root / SUITE / "gpicl", SUITE)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("text")
    return make_submission(text_runs(root / "runs"), root / MINI_SUITE / "own", MINI_SUITE)


def changed(good: Path, case: Case, root: Path) -> Path:
    path = shutil.copytree(good, root / good.parent.name / good.name)
    case[0](path)
    return path


def refused(path: Path, case: Case) -> None:
    read = read_submission(path)
    (problem,) = read.problems + read.outdated
    assert re.search(case[1], problem)
    with pytest.raises(ValueError, match="cannot be scored"):
        read.scorable()


@pytest.mark.parametrize("case", VECTORS)
def test_bad_submissions_of_vectors_are_refused_for_one_reason(case, vectors, tmp_path):
    refused(changed(vectors, VECTORS[case], tmp_path), VECTORS[case])


@pytest.mark.parametrize("case", TEXT)
def test_bad_submissions_of_text_are_refused_for_one_reason(case, text, tmp_path):
    refused(changed(text, TEXT[case], tmp_path), TEXT[case])


def test_the_submissions_they_are_made_of_are_good(vectors, text):
    assert validate(vectors) == validate(text) == []


def test_every_reason_is_another_one():
    messages = [message for _, message in [*VECTORS.values(), *TEXT.values()]]
    assert len(messages) >= 60
    assert len(set(messages)) == len(messages)


def test_folders_that_cannot_be_listed_are_refused(vectors, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checks.os, "scandir", forbidden)
    assert "its folders cannot be listed: Permission denied" in validate(vectors)


def test_names_of_folders_steer_no_terminal(tmp_path, capsys):
    (tmp_path / SUITE / "\x1b[31mred\x07").mkdir(parents=True)
    assert main(["board", "--root", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert "red cannot be scored: entry.toml is missing" in shown
    assert shown.strip().isprintable()


# --- nothing beside the folder is touched

WATCH = """
import json, sys
from pathlib import Path
from icl_bench.leaderboard.submission import validate

EVENTS = ("os.", "shutil.", "subprocess.", "socket.", "ctypes.", "tempfile.", "glob.", "pathlib.")
seen, watching = [], False

def hook(event, args):
    if not watching or (event == "open" and isinstance(args[0], int)):  # open already
        return
    if event == "open":
        path, mode, flags = args
        changes = bool(flags & 0o3) or any(c in (mode or "") for c in "wax+")
        seen.append([event, str(path), changes])
    elif event.startswith(EVENTS):
        changes = event not in ("os.listdir", "os.scandir", "glob.glob", "pathlib.Path.glob")
        seen.append([event, str(args[0]) if args else "", changes])

sys.addaudithook(hook)
good, *bad = sys.argv[1:]
assert validate(good) == []  # imports, reads the frozen labels, starts the helper
for path in bad:
    seen.clear()
    watching = True
    validate(path)
    watching = False
    print(json.dumps([path, seen]))
"""


def touched_outside(good: Path, bad: list[Path]) -> list[str]:
    """What validating these submissions reads beside their folders, or writes anywhere."""
    command = [sys.executable, "-c", WATCH, str(good), *map(str, bad)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    found = []
    lines = done.stdout.splitlines()
    assert len(lines) == len(bad)
    for line in lines:
        folder, events = json.loads(line)
        for event, path, changes in events:
            # A name alone is of a file in a folder that was opened before.
            inside = path.startswith(folder) or path in ("entry.toml", *SEED_NAMES)
            inside = inside or path.startswith((str(ROOT / "icl_bench"), sys.base_prefix))
            if changes or not inside:
                found.append(f"{folder}: {event} {path}")
    return found


SEED_NAMES = [f"seed-{i}.{kind}" for i in range(33) for kind in ("parquet", "safetensors", "json")]


def build(good: Path, cases: dict[str, Case], root: Path) -> list[Path]:
    found = []
    for i, case in enumerate(cases.values()):
        found.append(changed(good, case, root / str(i)))
    return found


def test_nothing_outside_of_a_bad_folder_is_touched(vectors, tmp_path):
    assert touched_outside(vectors, build(vectors, LAYOUT, tmp_path)) == []


@pytest.mark.slow
@pytest.mark.parametrize("cases", [TOML, PREDICTIONS | BOMB], ids=["toml", "predictions"])
def test_nothing_outside_of_any_bad_folder_is_touched(cases, vectors, tmp_path):
    assert touched_outside(vectors, build(vectors, cases, tmp_path)) == []


def test_touching_is_seen(vectors, tmp_path):
    """The record of a replay lies beside the folder, and is all that is ever read there."""
    path = shutil.copytree(vectors, tmp_path / SUITE / "gpicl")
    record = record_path(tmp_path, SUITE, "gpicl")
    record.parent.mkdir(parents=True)
    write_record(record, ReplayRecord("of other files", "0.1.0", {}, {}))
    assert touched_outside(vectors, [path]) == [f"{path}: open {record}"]


# --- damage at random


def damaged(data: bytes, pokes: list[tuple[float, int]], kept: float) -> bytes:
    out = bytearray(data)
    for where, value in pokes:
        out[int(where * (len(out) - 1))] = value
    return bytes(out[: int(kept * len(out))])


POKES = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8)
KEPT = st.one_of(st.just(1.0), st.floats(0, 1))
FAST = settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
LONG = settings(FAST, max_examples=500, derandomize=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A submission of a few predictions."""
    root = tmp_path_factory.mktemp("small")
    runs = text_runs(root / "runs", asked={"tasks": [FIRST], "queries": 20})
    return make_submission(runs, root / MINI_SUITE / "own", MINI_SUITE)


def check_damaged_predictions(path: Path, pokes: list[tuple[float, int]], kept: float) -> None:
    file = path.parent / "damaged.parquet"
    file.write_bytes(damaged((path / SEED_0).read_bytes(), pokes, kept))
    found, problems = read_text_predictions(file, text_suite(MINI_SUITE))
    if problems:
        return
    # What is accepted is what another reader reads.
    table = pq.read_table(file).to_pydict()
    rows = zip(*(table[name] for name in ("task", "demo_seed", "query", "prediction")), strict=True)
    given = {(task, seed, query): prediction for task, seed, query, prediction in rows}
    (parts,) = found.values()
    accepted = {
        (task, seed, int(query)): int(part.prediction[i, j])
        for task, part in parts.tasks.items()
        for i, seed in enumerate(text_suite(MINI_SUITE).demo_seeds)
        for j, query in enumerate(part.query)
    }
    assert accepted == given


def check_damaged_toml(path: Path, pokes: list[tuple[float, int]], kept: float) -> None:
    folder = path.parent / "damaged" / path.name
    if not folder.exists():
        shutil.copytree(path, folder)
    data = damaged((path / "entry.toml").read_bytes(), pokes, kept)
    (folder / "entry.toml").write_bytes(data)
    read = read_submission(folder)
    if not read.problems:
        assert read.entry is not None
        assert read.entry.title == tomllib.loads(data.decode())["title"]


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=20),
        st.dates(),
        st.sampled_from([10**30, "x" * 1000, "\u202e", "https://a.org", float("nan")]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)


def check_any_value(path: Path, key: str, value: object) -> None:
    document = tomllib.loads((path / "entry.toml").read_text())
    entry, suite, _, problems = check_document(document | {key: value}, path.name)
    assert problems or (entry is not None and suite is not None)
    assert all(problem.isprintable() and len(problem) < 1000 for problem in problems)


KEYS = st.one_of(st.sampled_from(sorted(CHECKS) + sorted(DOCUMENT_CHECKS)), st.text(max_size=5))


@FAST
@given(POKES, KEPT)
def test_damaged_predictions_are_refused_or_read_as_they_are(small, pokes, kept):
    check_damaged_predictions(small, pokes, kept)


@FAST
@given(POKES, KEPT)
def test_damaged_entries_are_refused_or_read_as_they_are(small, pokes, kept):
    check_damaged_toml(small, pokes, kept)


@settings(FAST, max_examples=300)
@given(KEYS, VALUES)
def test_any_value_of_any_key_is_judged(small, key, value):
    check_any_value(small, key, value)


@pytest.mark.slow
@LONG
@given(POKES, KEPT)
def test_damaged_predictions_for_long(small, pokes, kept):
    check_damaged_predictions(small, pokes, kept)


@pytest.mark.slow
@LONG
@given(POKES, KEPT)
def test_damaged_entries_for_long(small, pokes, kept):
    check_damaged_toml(small, pokes, kept)
