"""Ways to change a good submission into a bad one."""

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from synthetic_runs import DIGITS, RANDOM

from icl_bench.evaluation import protocol

Change = Callable[[Path], None]
SEED_0, SEED_1 = "predictions/seed-0.parquet", "predictions/seed-1.parquet"


def toml(old: str, new: str) -> Change:
    def change(path: Path) -> None:
        file = path / "entry.toml"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))

    return change


def toml_without(key: str) -> Change:
    def change(path: Path) -> None:
        lines = (path / "entry.toml").read_text().splitlines()
        kept = [line for line in lines if not line.startswith(key)]
        assert len(kept) == len(lines) - 1
        (path / "entry.toml").write_text("\n".join(kept) + "\n")

    return change


def url(address: str) -> Change:
    return toml("seeds =", f"url = {json.dumps(address)}\nseeds =")


def argument(value: str) -> Change:
    return toml("bias = 0.9", f"bias = {value}")


def table_change(change: Callable[[pa.Table], pa.Table], file: str = SEED_0) -> Change:
    return lambda path: pq.write_table(change(pq.read_table(path / file)), path / file)


def replaced(table: pa.Table, name: str, values: object) -> pa.Table:
    return table.set_column(table.schema.names.index(name), name, values)


def column(name: str, row: int, value: object) -> Change:
    """Set one number; log-probabilities are given as a list."""

    def change(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        assert values[row] != value
        values[row] = value
        return replaced(table, name, pa.array(values, table.schema.field(name).type))

    return table_change(change)


def typed(name: str, kind: pa.DataType) -> Change:
    return table_change(lambda table: replaced(table, name, table[name].cast(kind)))


def everywhere(name: str, value: str) -> Change:
    return table_change(lambda t: replaced(t, name, pa.array([value] * len(t), pa.string())))


def rows(start: int, stop: int) -> Change:
    """Leave rows out."""
    return table_change(lambda t: pa.concat_tables([t.slice(0, start), t.slice(stop)]))


def log_probs(probs: list[float], row: int = 99) -> Change:
    with np.errstate(divide="ignore"):
        return column("log_probs", row, list(np.log(np.array(probs)).astype(np.float16)))


def write(name: str, content: bytes) -> Change:
    def change(path: Path) -> None:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(content)

    return change


def sparse(name: str, size: int) -> Change:
    """A file of zeros that takes no room on the disk."""

    def change(path: Path) -> None:
        write(name, b"")(path)
        os.truncate(path / name, size)

    return change


def many(*changes: Change) -> Change:
    def change(path: Path) -> None:
        for each in changes:
            each(path)

    return change


def folder(name: str) -> Change:
    return lambda path: (path / name).mkdir(parents=True)


def linked(path: Path) -> None:
    (path / SEED_1).unlink()
    (path / SEED_1).symlink_to(path / SEED_0)


def linked_folder(path: Path) -> None:
    (path / "checkpoints").symlink_to(path.parent)


def linked_toml(path: Path) -> None:
    (path / "entry.toml").rename(path.parent / "elsewhere.toml")
    (path / "entry.toml").symlink_to(path.parent / "elsewhere.toml")


def hard_link(path: Path) -> None:
    outside = path.parent / "outside.parquet"
    (path / SEED_1).rename(outside)
    os.link(outside, path / SEED_1)


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path)  # the address of a socket must be short
        try:
            server.bind("socket")
        finally:
            os.chdir(here)


def copied_seed(path: Path) -> None:
    shutil.copy(path / SEED_0, path / SEED_1)


def no_fingerprints(path: Path) -> None:
    text = (path / "entry.toml").read_text()
    (path / "entry.toml").write_text(text.partition("[fingerprints]")[0])


def big_text(name: str) -> Change:
    """A few hundred kilobytes that would unpack to 51 gigabytes of text."""

    def change(path: Path) -> None:
        table = pq.read_table(path / SEED_0)
        bomb = pa.DictionaryArray.from_arrays(np.zeros(len(table), np.int32), ["x" * 1_000_000])
        columns = {key: bomb if key == name else table[key] for key in table.schema.names}
        limits = {"dictionary_pagesize_limit": 2**24, "write_statistics": False}
        file = path / SEED_0
        pq.write_table(pa.table(columns), file, compression="zstd", store_schema=False, **limits)
        assert file.stat().st_size < 500_000

    return change


def no_utf8(name: str) -> Change:
    """Bytes that are no UTF-8 where a name should be."""

    def change(table: pa.Table) -> pa.Table:
        names = [b"\xff\xfe"] + [text.encode() for text in table[name].to_pylist()[1:]]
        raw = pa.array(names, pa.binary())
        return replaced(table, name, pa.Array.from_buffers(pa.string(), len(raw), raw.buffers()))

    return table_change(change)


def frozen_labels(path: Path) -> None:
    """The labels of the frozen episodes instead of predictions, surely."""
    for file in (SEED_0, SEED_1):
        table = pq.read_table(path / file)
        labels = np.concatenate([protocol.frozen_labels(env) for env in (DIGITS, RANDOM)])
        assert labels.size == len(table)
        if file == SEED_1:
            labels[0, 50] += 1 - 2 * (labels[0, 50] == 9)  # not the same predictions twice
        pq.write_table(with_predictions(table, labels), path / file)


def with_predictions(table: pa.Table, prediction: np.ndarray) -> pa.Table:
    flat = prediction.reshape(-1)
    given = table["log_probs"].is_valid().to_numpy()
    sure = np.where(np.arange(10) == flat[:, None], 0.91, 0.01)
    lists = [list(row) if g else None for row, g in zip(np.log(sure), given, strict=True)]
    table = replaced(table, "log_probs", pa.array(lists, pa.list_(pa.float16())))
    return replaced(table, "prediction", pa.array(flat, pa.uint8()))
