"""Files of text results: exact round trips, and what happens to damaged or hostile ones."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from text_tasks import hand_setting

import icl_bench
from icl_bench.evaluation import text_result
from icl_bench.evaluation.text_result import TextResult, is_text_result


@pytest.fixture(scope="module", autouse=True)
def hand() -> Iterator[None]:
    with hand_setting():
        yield


@pytest.fixture(scope="module")
def result(hand: None) -> TextResult:
    return icl_bench.evaluate_text(icl_bench.TextChance(), "Hand-ICL-v0")


def same(a: TextResult, b: TextResult) -> bool:
    plain = [
        [
            (t.task, t.checksum, t.total, *(x.tolist() for x in (t.query, t.answer, t.prediction)))
            for t in result.tasks
        ]
        for result in (a, b)
    ]
    fields = [(r.env, r.labels, r.k, r.demo_seeds) for r in (a, b)]
    return plain[0] == plain[1] and fields[0] == fields[1]


def test_round_trip_is_exact(tmp_path: Path, result: TextResult) -> None:
    path = result.save(tmp_path / "new folder" / "result.parquet")
    assert same(TextResult.load(path), result)
    assert TextResult.load(path).summary() == result.summary()
    assert path.read_bytes() == result.save(tmp_path / "again.parquet").read_bytes()
    assert is_text_result(path)
    assert [p.name for p in path.parent.iterdir()] == ["result.parquet"]
    table = pq.read_table(path)
    assert table.column_names == ["task", "demo_seed", "query", "prediction", "answer"]
    assert table.num_rows == 5 * (3 + 2)


def test_a_file_of_vectors_is_no_text(tmp_path: Path) -> None:
    other = icl_bench.evaluate(icl_bench.Chance(), "Digits-Proj8-v0", num_episodes=2)
    path = other.save(tmp_path / "vectors.parquet")
    assert not is_text_result(path)
    with pytest.raises(ValueError, match=r"vectors\.parquet is not a text result"):
        TextResult.load(path)
    assert not is_text_result(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no result file at"):
        TextResult.load(tmp_path / "nowhere")


def rewritten(table: pa.Table, change: Callable[[dict[str, Any]], Any]) -> pa.Table:
    meta = json.loads(table.schema.metadata[text_result.METADATA])
    meta = change(meta) or meta
    return table.replace_schema_metadata({text_result.METADATA: json.dumps(meta)})


DAMAGES: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "a row less": (lambda t: t.slice(1), "reshape"),
    "a seed less": (lambda t: t.slice(0, 24), "reshape|not every query"),
    "seeds exchanged": (lambda t: t.take([3, 4, 5, 0, 1, 2, *range(6, 25)]), "not every query"),
    "no rows": (lambda t: t.slice(0, 0), "distinct test tasks"),
    "a column less": (lambda t: t.drop_columns(["answer"]), "answer"),
    "a number missing": (
        lambda t: t.set_column(3, "prediction", pa.array([None] + [0] * 24, pa.uint8())),
        "missing values",
    ),
    "another answer": (
        lambda t: t.set_column(4, "answer", pa.array([0] + [1] * 24, pa.uint8())),
        "not every query",
    ),
    "another task": (
        lambda t: t.set_column(0, "task", pa.array(["mini-keys-1"] * 25)),
        "Hand-ICL-v0 has no test tasks mini-keys-1",
    ),
    "no metadata": (lambda t: t.replace_schema_metadata(None), "demo_seeds"),
    "another environment": (
        lambda t: rewritten(t, lambda m: m.update(env="Digits-Proj8-v0")),
        "is no text environment",
    ),
    "other seeds": (lambda t: rewritten(t, lambda m: m.update(demo_seeds=[1, 2, 3, 4, 5])), "seed"),
    "other labels": (lambda t: rewritten(t, lambda m: m.update(labels="none")), "labels"),
    "fewer queries in all": (
        lambda t: rewritten(t, lambda m: m["totals"].update({"hand:colours": 2})),
        r"must be ascending and in \[0, 2\)",
    ),
    "no number": (lambda t: rewritten(t, lambda m: m.update(k=float("inf"))), "infinity"),
    "a list": (lambda t: rewritten(t, lambda m: [m]), "list indices"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(damage: str, tmp_path: Path, result: TextResult) -> None:
    path = result.save(tmp_path / "result.parquet")
    change, message = DAMAGES[damage]
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(ValueError, match=rf"(?s)result\.parquet is not a text result.*({message})"):
        TextResult.load(path)


def test_broken_and_large_files_are_refused(tmp_path: Path, result, monkeypatch) -> None:
    path = result.save(tmp_path / "result.parquet")
    whole = path.read_bytes()
    monkeypatch.setattr(text_result, "MAX_FILE_ROWS", 24)
    with pytest.raises(ValueError, match="25 rows, more than 24"):
        TextResult.load(path)
    for content in (b"", b"no Parquet", whole[:-100], whole[:200] + b"\0" * 20 + whole[220:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"result\.parquet is not a text result"):
            TextResult.load(path)


def test_results_that_cannot_be(result: TextResult) -> None:
    task = result.tasks[0]
    for change, message in (
        ({"query": task.query[::-1]}, "queries must be ascending"),
        ({"total": 2}, r"in \[0, 2\)"),
        ({"prediction": task.prediction - 9}, "must not be negative"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(task, **change)
    for tasks in ((), (task, task)):
        with pytest.raises(ValueError, match="must be distinct test tasks"):
            dataclasses.replace(result, tasks=tasks)
    with pytest.raises(ValueError, match="5 rows of predictions for 1 demonstration seeds"):
        dataclasses.replace(result, demo_seeds=(100,))
