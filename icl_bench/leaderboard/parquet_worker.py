"""The program that unpacks Parquet files from strangers; ``sandbox`` starts it and says how.

It reads requests from standard input. For each it forks a child that has little memory and time,
cannot open anything and can write nothing but its answer: raw columns, of which the asker checks
every length. On Linux (x86-64 and ARM) the child may also make none but a few system calls on what
it has, so that a file that outwits the Parquet library gets a process that can do nothing but tell
wrong numbers. Elsewhere such a process could still send signals, or remove files by their names.

    request   4 bytes: length of a JSON object; the object; an Arrow schema; the file
    answer    1 byte: outcome; 8 bytes: length of the answer; the answer
"""

import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import signal
import struct
import sys
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

READY = b"ready\n"
ANSWERED, TIME, WAITED, MEMORY, DIED = b"a", b"t", b"w", b"m", b"d"

MAX_ROW_GROUPS = 4096
# Columns, row groups, encodings ...: more than this of anything is no file of predictions.
MAX_LISTED = 100_000
# What 3 MB may unpack to: a full hand-in of six environments needs about 10 MB.
MAX_UNPACKED_BYTES = 64 * 2**20
MAX_TEXTS, MAX_TEXT = 1000, 200
_OUT_OF_MEMORY = 3

# Machine → its number as the kernel's audit has it, and the system calls that a child may make:
# read, write, close, exit, exit_group, brk, mmap, mremap, munmap, mprotect, madvise; then
# rt_sigaction, rt_sigprocmask, rt_sigreturn, futex, sched_yield, sched_getaffinity, getpid, gettid,
# getrandom, clock_gettime, gettimeofday.
_CALLS = {
    "x86_64": (0xC000003E, (
        0, 1, 3, 60, 231, 12, 9, 25, 11, 10, 28,
        13, 14, 15, 202, 24, 204, 39, 186, 318, 228, 96,
    )),
    "aarch64": (0xC00000B7, (
        63, 64, 57, 93, 94, 214, 222, 216, 215, 226, 233,
        134, 135, 139, 98, 124, 123, 172, 178, 278, 113, 169,
    )),
}  # fmt: skip


_LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Answer requests until there are no more."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    _warm_up()
    answers.write(READY)
    answers.flush()
    while len(prefix := requests.read(4)) == 4:
        request = json.loads(requests.read(struct.unpack("<I", prefix)[0]))
        schema = pa.ipc.read_schema(pa.py_buffer(requests.read(request["schema_bytes"])))
        outcome, answer = _in_child(request, schema, requests.read(request["file_bytes"]))
        answers.write(outcome + struct.pack("<Q", len(answer)))
        answers.write(answer)
        answers.flush()


def _warm_up() -> None:
    """Import everything that reading needs: a child cannot open files."""
    sink = pa.BufferOutputStream()
    table = pa.table({"text": ["a"], "list": pa.array([[1]], pa.list_(pa.float16()))})
    pq.write_table(table, sink, compression="zstd")
    rules = {"most_rows": 1, "most_values": 1, "nullable": []}
    header, _ = unpack(sink.getvalue().to_pybytes(), table.schema, rules)
    assert "problems" not in header, header


def _in_child(request: dict[str, Any], schema: Any, file: bytes) -> tuple[bytes, bytes]:
    """What became of a child that unpacks a file, and its answer."""
    receive, send = os.pipe()
    if sys.platform == "linux":
        fcntl.fcntl(send, fcntl.F_SETPIPE_SZ, request["pipe_bytes"])
    child = os.fork()
    if child == 0:
        _unpack_and_exit(send, request, schema, file)
    os.close(send)
    answer, deadline = bytearray(), time.monotonic() + request["seconds"]
    outcome = WAITED
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([receive], [], [], left)[0]:
            break
        part = os.read(receive, 2**20)
        answer += part
        if not part or len(answer) > request["most_bytes"]:
            outcome = ANSWERED if not part else DIED
            break
    os.close(receive)
    os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if outcome == ANSWERED and status != 0:
        reasons = {_OUT_OF_MEMORY: MEMORY, -signal.SIGXCPU: TIME, -signal.SIGALRM: WAITED}
        outcome = reasons.get(status, DIED)
    return outcome, bytes(answer) if outcome == ANSWERED else b""


def _unpack_and_exit(send: int, request: dict[str, Any], schema: Any, file: bytes) -> None:
    """The life of a child: it leaves by ``os._exit``, whatever happens."""
    status = 1
    try:
        confine(send, request)
        header, parts = unpack(file, schema, request)
        for part in (json.dumps(header).encode() + b"\n", *parts):
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(send, rest) :]
        status = 0
    except MemoryError:
        status = _OUT_OF_MEMORY
    finally:
        os._exit(status)


def confine(keep: int, limits: dict[str, Any]) -> None:
    """Give up, for good, all but one descriptor, some memory, some seconds and few system calls."""
    os.chdir("/")
    os.closerange(0, keep)
    os.closerange(keep + 1, 256)
    signal.setitimer(signal.ITIMER_REAL, limits["seconds"])
    most = {
        resource.RLIMIT_CPU: limits["cpu_seconds"] + 1,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    if sys.platform != "darwin":  # which knows no limit of memory
        most[resource.RLIMIT_AS] = limits["memory_bytes"]
    for kind, limit in most.items():
        hard = resource.getrlimit(kind)[1]
        lower = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (lower, lower))
    # A second before the hard limit of time, which kills like many things, a signal tells it.
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (min(limits["cpu_seconds"], hard), hard))
    if sys.platform == "linux" and os.uname().machine in _CALLS:
        _filter_calls(*_CALLS[os.uname().machine])


def _filter_calls(machine: int, calls: tuple[int, ...]) -> None:
    """All other system calls fail from now on: nothing can be opened, removed, signalled or run.

    A filter is a program for the kernel's packet filter: (code, jump if equal, if not, value).
    """
    load, equal, end = 0x20, 0x15, 0x06
    kill, fail, allow = 0x80000000, 0x00050000 | errno.EPERM, 0x7FFF0000
    program = [(load, 0, 0, 4), (equal, 1, 0, machine), (end, 0, 0, kill), (load, 0, 0, 0)]
    program += [(equal, len(calls) - i, 0, call) for i, call in enumerate(calls)]
    program += [(end, 0, 0, fail), (end, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    about = struct.pack("HP", len(program), ctypes.addressof(code))
    no_new_privileges, set_filter, by_program = 38, 22, 2
    unused = ctypes.c_ulong(0)
    for option, first, second in (
        (no_new_privileges, ctypes.c_ulong(1), unused),
        (set_filter, ctypes.c_ulong(by_program), ctypes.c_char_p(about)),
    ):
        # A kernel without such filters says EINVAL.
        if (
            _LIBC.prctl(option, first, second, unused, unused)
            and ctypes.get_errno() != errno.EINVAL
        ):
            raise OSError(ctypes.get_errno(), "no filter of system calls")


def unpack(file: bytes, expected: Any, rules: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """The columns of a file: what they are, and their bytes; or ``problems``.

    Args:
        file: The file.
        expected: The schema that it must have.
        rules: ``most_rows``, ``most_values`` (of a row's list) and ``nullable`` columns.
    """
    try:
        problems, columns = _columns(file, expected, rules)
        if not problems:
            parts: list[bytes] = []
            about = {name: _pack(name, column, parts) for name, column in columns.items()}
            return {"rows": len(columns[expected.names[0]]), "columns": about}, parts
    except MemoryError:
        raise
    except Exception as error:  # whatever the library raises, the file is at fault
        line = ascii(str(error).split("\n")[0])[1:-1]
        problems = [f"cannot be read as Parquet: {line[:200] or type(error).__name__}"]
    return {"problems": problems}, []


def _columns(file: bytes, expected: Any, rules: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Everything wrong with a file, and its columns; what needs no unpacking is checked first."""
    limits: dict[str, Any] = {
        "thrift_string_size_limit": len(file) + 1,
        "thrift_container_size_limit": MAX_LISTED,
    }
    with pq.ParquetFile(pa.BufferReader(file), **limits) as opened:
        schema, meta = opened.schema_arrow, opened.metadata
    if schema.names != expected.names:
        found = [name[:40] for name in schema.names[:20]]
        return [f"columns are {found!a}, must be {expected.names}"], {}
    problems = [
        f"column {name} has type {ascii(str(schema.field(name).type))[1:-1][:80]}, "
        f"must be {expected.field(name).type}"
        for name in expected.names
        if not _same_type(schema.field(name).type, expected.field(name).type)
    ]
    if meta.num_row_groups > MAX_ROW_GROUPS:
        return [*problems, f"{meta.num_row_groups} row groups, at most {MAX_ROW_GROUPS}"], {}
    groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    unpacked = sum(chunk.total_uncompressed_size for chunk in chunks)
    values = max((chunk.num_values for chunk in chunks), default=0)
    if not 0 < meta.num_rows <= rules["most_rows"]:
        problems.append(f"{meta.num_rows} rows, must be 1 to {rules['most_rows']}")
    elif unpacked > MAX_UNPACKED_BYTES or values > rules["most_values"] * meta.num_rows:
        problems.append(
            f"unpacks to {unpacked} bytes and {values} values in {meta.num_rows} rows, "
            "more than predictions need"
        )
    if problems:
        return problems, {}
    # Texts stay dictionaries: a long one that is repeated must not fill the memory.
    texts = [field.name for field in expected if pa.types.is_string(field.type)]
    with pq.ParquetFile(pa.BufferReader(file), read_dictionary=texts, **limits) as opened:
        table = opened.read(use_threads=False)
    if table.num_rows != meta.num_rows:
        return [f"has {table.num_rows} rows and claims {meta.num_rows}"], {}
    columns = {name: table[name].combine_chunks() for name in expected.names}
    for name in texts:
        if not pa.types.is_dictionary(columns[name].type):
            columns[name] = columns[name].dictionary_encode()
    for name, column in columns.items():
        column.validate(full=True)  # bytes that are no UTF-8, for instance
        if column.null_count and name not in rules["nullable"]:
            problems.append(f"missing values in column {name}")
        if name in texts and not problems:
            problems += _text_problems(name, column)
        if pa.types.is_list(column.type) and column.flatten().null_count:
            problems.append(f"missing values inside the lists of column {name}")
    return problems, columns


def _same_type(found: Any, expected: Any) -> bool:
    if pa.types.is_list(expected):
        return pa.types.is_list(found) and bool(found.value_type == expected.value_type)
    return bool(found == expected)


def _codes(column: Any) -> Any:
    return column.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _text_problems(name: str, column: Any) -> list[str]:
    used = np.flatnonzero(np.bincount(_codes(column), minlength=len(column.dictionary)))
    if len(used) > MAX_TEXTS:
        return [f"column {name} has {len(used)} different texts, more than predictions need"]
    length = max(len(column.dictionary[i].as_buffer()) for i in used.tolist())
    if length > MAX_TEXT:
        return [f"column {name} holds a text of {length} bytes, more than predictions need"]
    return []


def _pack(name: str, column: Any, parts: list[bytes]) -> dict[str, Any]:
    """What a column is; its bytes are appended to the parts."""
    if pa.types.is_dictionary(column.type):
        texts = column.dictionary
        codes = _codes(column)
        used = np.flatnonzero(np.bincount(codes, minlength=len(texts)))
        names = [texts[i].as_py() for i in used.tolist()]
        distinct = sorted(set(names))  # nothing keeps a dictionary from holding a text twice
        new = np.zeros(len(texts), np.int32)
        new[used] = [distinct.index(text) for text in names]
        parts.append(new[codes].tobytes())
        return {"texts": distinct}
    if pa.types.is_list(column.type):
        values = column.flatten().to_numpy(zero_copy_only=False)
        parts.append(column.is_valid().to_numpy(zero_copy_only=False).tobytes())
        parts.append(column.value_lengths().fill_null(0).to_numpy().astype(np.int32).tobytes())
        parts.append(values.tobytes())
        return {"values": len(values)}
    parts.append(column.to_numpy(zero_copy_only=False).tobytes())
    return {}


if __name__ == "__main__":
    main()
