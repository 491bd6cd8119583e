"""Result files: exact round trips, sizes, and what happens to damaged or hostile ones."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_results import result_of

from icl_bench.evaluation.result import Result, log_prob_steps


def random_result(num_episodes: int = 16, length: int = 10, num_classes: int = 10) -> Result:
    """Answers and log-probabilities without any structure that would compress."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(num_episodes, len(log_prob_steps(length)), num_classes))
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    log_probs[0, 0, 0] = -np.inf
    labels = rng.integers(0, num_classes, (2, num_episodes, length)).astype(np.uint8)
    return Result(
        env="FashionMNIST-Proj-v0",
        split="unseen",
        fingerprint="0f" * 32,
        seed=2**40,
        env_kwargs={"episode_length": length, "ratio": 0.1, "nothing": None, "sizes": [1, 2]},
        episode=np.arange(num_episodes) * 3 + 256,
        task=rng.integers(0, 2**40, num_episodes),
        label=labels[0],
        prediction=np.where(rng.random(labels[0].shape) < 0.7, labels[0], labels[1]),
        log_probs=log_probs.astype(np.float16),
    )


def assert_same(a: Result, b: Result) -> None:
    for field in dataclasses.fields(Result):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype, field.name
            assert np.array_equal(left, right), field.name
        else:
            assert left == right, field.name
            assert type(left) is type(right), field.name


@pytest.mark.parametrize(
    ("num_episodes", "length", "num_classes"),
    [(256, 100, 10), (1024, 100, 10), (16, 10, 10), (1, 1, 2), (8, 300, 256)],
)
def test_round_trip_is_exact(tmp_path, num_episodes, length, num_classes):
    result = random_result(num_episodes, length, num_classes)
    path = result.save(tmp_path / "new folder" / "result.parquet")
    loaded = Result.load(path)
    assert_same(result, loaded)
    assert loaded.correct.mean() == result.correct.mean()
    assert [p.name for p in path.parent.iterdir()] == ["result.parquet"]


def test_equal_results_make_equal_bytes_within_the_size_limit(tmp_path):
    result = random_result(256, 100)
    first, second = result.save(tmp_path / "a.parquet"), result.save(tmp_path / "b.parquet")
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size < 500_000 / 4  # a suite of six in one hand-in: below 3 MB by far


def test_file_has_the_documented_columns(tmp_path):
    result = random_result(2, 10)
    table = pq.read_table(result.save(tmp_path / "r.parquet"))
    assert table.num_rows == 20
    assert table["step"].to_pylist() == [*range(10)] * 2
    assert table["episode"].type == pa.int32()
    assert table["correct"].to_pylist() == result.correct.ravel().tolist()
    kept = [value is not None for value in table["log_probs"].to_pylist()]
    assert kept == [step in (0, 1, 4, 9) for step in range(10)] * 2
    assert set(json.loads(table.schema.metadata[b"icl_bench"])) == {
        "fingerprint",
        "seed",
        "env_kwargs",
        "scorer_version",
    }


def test_accuracies_by_hand():
    correct = np.array([[0, 1, 1], [0, 0, 1], [1, 0, 1], [0, 0, 1]], dtype=bool)
    result = result_of(correct, np.array([0, 0, 1, 1]), num_classes=3)
    assert np.array_equal(result.correct, correct)
    assert result.episode_length == 3
    assert result.learning_curve.tolist() == [0.25, 0.25, 1.0]
    assert (result.accuracy(), result.accuracy(1)) == (1.0, 0.25)


def test_steps_that_there_are_not_are_told():
    result = result_of(np.ones((2, 100), dtype=bool), np.arange(2))
    assert result.accuracy(99) == result.accuracy(-100) == 1.0
    for step in (100, -101):
        with pytest.raises(
            IndexError, match=rf"no step {step}: steps are 0 … 99; after 99 examples is step 99"
        ):
            result.accuracy(step)


def test_the_first_episodes_are_a_result_of_their_own():
    result = random_result(16)
    head = result.head(5)
    assert head.episode.tolist() == result.episode[:5].tolist()
    for name in ("task", "label", "prediction", "log_probs"):
        assert np.array_equal(getattr(head, name), getattr(result, name)[:5])
    assert head.env_kwargs == result.env_kwargs
    assert_same(result.head(99), result)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("split", "test", "unknown split 'test'"),
        ("episode", np.array([1, 0]), "strictly ascending"),
        ("episode", np.array([0, 0]), "strictly ascending"),
        ("episode", np.array([-1, 0]), "strictly ascending"),
        ("episode", np.array([0, 2**31]), r"in \[0, 2\^31\)"),
        ("prediction", np.full((2, 3), 3, np.uint8), "below the 3 classes"),
        ("label", np.full((2, 3), 255, np.uint8), "below the 3 classes"),
        ("log_probs", np.zeros((2, 3, 3), np.float16), r"expected \(2, 2, 3\)"),
        ("log_probs", np.full((2, 2, 3), 0.5, np.float16), "at most 0 and not NaN"),
        ("log_probs", np.full((2, 2, 3), np.nan, np.float16), "at most 0 and not NaN"),
    ],
)
def test_wrong_fields_are_refused(field, value, message):
    result = result_of(np.ones((2, 3), dtype=bool), np.arange(2), num_classes=3)
    with pytest.raises((ValueError, TypeError), match=message if field != "split" else None):
        dataclasses.replace(result, **{field: value})


# ---- damaged and hostile files -----------------------------------------------------------------


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no result file at .*absent\.parquet"):
        Result.load(tmp_path / "absent.parquet")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1PAR1", b"{}" * 1000, b"\x80\x04pickle"])
def test_files_of_another_kind(tmp_path, content):
    path = tmp_path / "other.parquet"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.parquet is not a result file"):
        Result.load(path)
    with pytest.raises(ValueError, match="is not a result file"):
        Result.load(tmp_path)  # a folder


def test_every_truncation_is_refused(tmp_path):
    content = random_result().save(tmp_path / "whole.parquet").read_bytes()
    path = tmp_path / "cut.parquet"
    for size in range(0, len(content), 37):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"cut\.parquet is not a result file"):
            Result.load(path)


def test_flipped_bits_never_change_an_answer(tmp_path):
    """Every page has a checksum: a damaged file is refused, or the damage does not matter."""
    result = random_result()
    content = result.save(tmp_path / "whole.parquet").read_bytes()
    path = tmp_path / "flipped.parquet"
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            loaded = Result.load(path)
        except ValueError:
            refused += 1
            continue
        for name in ("episode", "task", "label", "prediction", "log_probs"):
            assert np.array_equal(getattr(loaded, name), getattr(result, name)), name
    assert refused > 150


def rewritten(path: Path, change) -> Path:
    """The file again, after a change of its columns (a dict) or of its metadata."""
    table = pq.read_table(path)
    meta = json.loads(table.schema.metadata[b"icl_bench"])
    columns = {name: table[name].to_pylist() for name in table.column_names}
    change(columns, meta)
    schema = pa.schema([f for f in table.schema if f.name in columns])
    schema = schema.with_metadata({"icl_bench": json.dumps(meta)})
    kinds = {f.name: f.type if f.name not in ("env", "split") else pa.string() for f in schema}
    arrays = {
        n: pa.array(v, pa.int64() if n == "prediction" else kinds[n]) for n, v in columns.items()
    }
    pq.write_table(pa.table(arrays).replace_schema_metadata(schema.metadata), path)
    return path


def put(name, row, value):
    def change(columns, meta):
        columns[name][row] = value

    return change


def swap_steps(columns, meta):
    columns["step"][3], columns["step"][4] = 4, 3


def drop_row(columns, meta):
    for values in columns.values():
        del values[-1]


def drop_all(columns, meta):
    for values in columns.values():
        values.clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, m: c.pop("prediction"), "no column prediction"),
        (lambda c, m: m.pop("fingerprint"), "no fingerprint in the metadata"),
        (lambda c, m: m.update(seed="0"), "no seed in the metadata"),
        (put("env", 5, "MNIST-Proj-v0"), "env holds several values"),
        (put("split", 5, "seen"), "split holds several values"),
        (
            lambda c, m: c.update(split=["test"] * 160),
            "unknown split 'test', not one of train, val",
        ),
        (put("episode", 5, 7), "episode changes within an episode"),
        (put("task", 5, 7), "task changes within an episode"),
        (swap_steps, "steps of the episodes are incomplete or out of order"),
        (drop_row, "steps of the episodes are incomplete or out of order"),
        (drop_all, "no rows"),
        (put("label", 5, None), "missing values in column label"),
        (put("prediction", 5, 256), "256 not in range"),
        (put("prediction", 5, -1), "-1 not in range"),
        (put("prediction", 5, 10), "correct contradicts|below the 10 classes"),
        (lambda c, m: c.update(correct=[True] * 160), "correct contradicts label and prediction"),
        (put("log_probs", 0, None), "log_probs must hold one number per class"),
        (put("log_probs", 2, [0.0] * 10), "log_probs must hold one number per class"),
        (put("log_probs", 0, [0.0] * 9), "log_probs must hold one number per class"),
        (put("log_probs", 0, [None] * 10), "log_probs must hold one number per class"),
        (put("log_probs", 0, [1.0] * 10), "at most 0"),
        (lambda c, m: c.update(log_probs=[None] * 160), "log_probs must hold one number"),
    ],
)
def test_hostile_files_are_refused(tmp_path, change, message):
    path = rewritten(random_result().save(tmp_path / "hostile.parquet"), change)
    with pytest.raises(ValueError, match=rf"hostile\.parquet.*({message})"):
        Result.load(path)


def test_rewriting_alone_is_no_offence(tmp_path):
    """Wider integers, plain strings, no checksums: what another Parquet writer makes of it."""
    result = random_result()
    path = rewritten(result.save(tmp_path / "again.parquet"), lambda columns, meta: None)
    assert_same(result, Result.load(path))


def test_a_small_file_cannot_claim_endless_rows(tmp_path, monkeypatch):
    path = random_result().save(tmp_path / "bomb.parquet")
    monkeypatch.setattr("icl_bench.evaluation.result.MAX_FILE_ROWS", 159)
    with pytest.raises(ValueError, match="160 rows, more than 159"):
        Result.load(path)
