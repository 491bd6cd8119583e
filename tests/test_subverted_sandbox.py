"""A process that unpacks a file and was subverted can only tell wrong numbers."""

import json
import types
from pathlib import Path

import numpy as np
import pytest

from icl_bench.leaderboard import columns
from icl_bench.leaderboard.columns import read_columns
from icl_bench.leaderboard.predictions import prediction_schema

SCHEMA = prediction_schema(100)


@pytest.fixture
def file(tmp_path) -> Path:
    """A file, of which the answer says whatever it likes."""
    (tmp_path / "seed-0.parquet").write_bytes(b"PAR1")
    return tmp_path / "seed-0.parquet"


def answer(header: object, body: bytes = b"") -> bytes:
    return json.dumps(header).encode() + b"\n" + body


def honest_answer() -> tuple[dict, bytes]:
    """Two rows, the first with a list of ten."""
    about: dict = {name: {} for name in SCHEMA.names}
    about |= {"env": {"texts": ["a", "b"]}, "split": {"texts": ["unseen"]}}
    about["log_probs"] = {"values": 10}
    body = np.array([0, 1, 0, 0, 5, 6], np.int32).tobytes() + bytes([1, 2, 3, 4, 1, 0])
    body += np.array([10, 0], np.int32).tobytes() + np.zeros(10, np.float16).tobytes()
    return {"rows": 2, "columns": about}, body


def changed(**change: object) -> bytes:
    header, body = honest_answer()
    for name, value in change.items():
        if name == "rows":
            header["rows"] = value
        else:
            header["columns"][name] = value
    return answer(header, body)


def poked(start: int, *values: int) -> bytes:
    header, body = honest_answer()
    raw = np.array(values, np.int32).tobytes()
    return answer(header, body[:start] + raw + body[start + len(raw) :])


SUBVERTED = {
    "nothing": b"",
    "no line": b"x" * 100,
    "no JSON": b"{\n",
    "deep JSON": b"[" * 100_000 + b"\n",
    "a list": b"[]\n",
    "too short": answer(*honest_answer())[:-1],
    "too long": answer(*honest_answer()) + b"\0",
    "no rows": changed(rows=0),
    "rows as a text": changed(rows="2"),
    "too many rows": changed(rows=2**40),
    "a column less": answer({"rows": 2, "columns": {}}),
    "names that are no texts": changed(env={"texts": [1, 2]}),
    "a name twice": changed(env={"texts": ["a", "a"]}),
    "a name unused": changed(env={"texts": ["a", "b", "c"]}),
    "no names": changed(env={"texts": []}),
    "values as a text": changed(log_probs={"values": "10"}),
    "negative values": changed(log_probs={"values": -10}),
    "vast values": changed(log_probs={"values": 2**70}),
    "code beyond the names": poked(0, 2),
    "negative code": poked(0, -1),
    "negative list": poked(30, 11, -1),
    "list where there is none": poked(30, 5, 5),
    "lists of other lengths": poked(30, 9, 0),
}


def told(
    monkeypatch: pytest.MonkeyPatch, path: Path, given: bytes
) -> tuple[dict | None, list[str]]:
    fake = types.SimpleNamespace(unpack=lambda *args, **kwargs: (given, ""))
    monkeypatch.setattr(columns, "SANDBOX", fake)
    return read_columns(path, SCHEMA, 204_800, ("log_probs",))


@pytest.mark.parametrize("case", SUBVERTED)
def test_nonsense_of_a_child_is_refused(case, file, monkeypatch):
    found, problems = told(monkeypatch, file, SUBVERTED[case])
    assert found is None
    assert problems == ["cannot be read as Parquet: what unpacked it was subverted"]


def test_what_a_child_complains_of_is_cut_and_plain(file, monkeypatch):
    assert told(monkeypatch, file, answer(*honest_answer()))[1] == []
    given = answer({"problems": ["\x1b[31m" + "x" * 2000] * 1000})
    _, problems = told(monkeypatch, file, given)
    assert len(problems) == 20
    assert all(p.startswith(r"\x1b[31mxx") and len(p) == 1000 for p in problems)
