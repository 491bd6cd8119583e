"""Files of replay records: what is damaged or of other kinds of values is refused by name."""

import json

import pytest

from icl_bench.leaderboard.replays import read_record

DIGITS = "Digits-Proj8-v0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"differing": "x"}, "differing cannot be 'x'"),
        ({"differing": float("nan")}, "differing cannot be nan"),
        ({"frozen": -1}, "frozen cannot be -1"),
        ({"fresh": None}, "fresh cannot be None"),
        ({"first_step_p": "0"}, "first_step_p cannot be '0'"),
        ({"tuned": "no"}, "tuned must be true or false, not 'no'"),
        ({"gap": {"mean": True, "low": None, "high": None}}, "the gap cannot be True"),
        ({"gap": {"mean": 0, "low": "x", "high": None}}, "the gap's low cannot be 'x'"),
        ({"gap": {"mean": 0, "low": None}}, "no high"),
        ({"more": 1}, "unexpected keyword argument 'more'"),
    ],
    ids=str,
)
def test_a_record_of_other_kinds_of_values_is_none(change, message, tmp_path):
    cell = {"differing": 0.0, "frozen": 0.5, "fresh": 0.5, "first_step_p": None, "tuned": False}
    cell |= {"gap": {"mean": 0.0, "low": None, "high": None}}
    document = {"digest": "", "package_version": "", "taxonomy": {}}
    path = tmp_path / "x.json"
    path.write_text(json.dumps(document | {"cells": {"0": {DIGITS: cell}}}))
    assert read_record(path).same
    path.write_text(json.dumps(document | {"cells": {"0": {DIGITS: cell | change}}}))
    with pytest.raises(ValueError, match=f"x.json is no record of a replay: .*{message}"):
        read_record(path)
