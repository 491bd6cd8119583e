"""Parquet files from strangers are unpacked in a process that can do next to nothing.

A new interpreter for every file would take half a second, so one helper per process lives on: it
has imported NumPy and pyarrow, and forks a child for each file (``parquet_worker``). The helper
itself never looks into a file; it ends with this process, and a new one is started where it died.
"""

import atexit
import contextlib
import importlib.util
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

# Of a child, the libraries included, which a full hand-in needs 450 MiB of: together with all else,
# less than 1 GB.
MEMORY_BYTES = 700 * 2**20
# Of computing, which a full hand-in needs a tenth of a second of.
CPU_SECONDS = 2
# Of waiting: where many others compute, an honest file may be kept from its tenth for long.
SECONDS = 60
# A helper that does not answer for so long hangs; it needs a second to start where disks are fast.
PATIENCE_SECONDS = 120

_WORKER = Path(__file__).with_name("parquet_worker.py")
_READY = b"ready\n"
# Answers have megabytes: in pipes of the usual 64 kB most of the time would be spent on turns.
_PIPE_BYTES = 2**20
# How the reasons begin that cost memory and time.
TOO_MUCH = "takes more than"
_REASONS = {
    b"t": f"{TOO_MUCH} {CPU_SECONDS} seconds to unpack, more than predictions need",
    b"w": f"{TOO_MUCH} {SECONDS} seconds of waiting to unpack: try again on a less busy machine",
    b"m": f"{TOO_MUCH} {MEMORY_BYTES >> 20} MiB of memory to unpack, more than predictions need",
    b"d": "cannot be read as Parquet: the process that unpacked it died",
}


class Sandbox:
    """A helper process, started when it is first asked; threads take turns."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def unpack(
        self,
        file: bytes,
        schema: bytes,
        *,
        most_rows: int,
        most_values: int,
        most_bytes: int,
        nullable: Collection[str],
    ) -> tuple[bytes, str]:
        """The answer about a file, as ``parquet_worker.unpack`` gives it, or why there is none.

        Args:
            file: Contents of the file.
            schema: The Arrow schema that it must have, serialized.
            most_rows: More rows than any honest file has.
            most_values: The same of values in a row's list.
            most_bytes: The same of bytes in an answer.
            nullable: Columns that may lack values.

        Raises:
            RuntimeError: If the helper cannot be started.
        """
        about = {
            "schema_bytes": len(schema),
            "file_bytes": len(file),
            "most_rows": most_rows,
            "most_values": most_values,
            "most_bytes": most_bytes,
            "pipe_bytes": _PIPE_BYTES,
            "nullable": list(nullable),
            "memory_bytes": MEMORY_BYTES,
            "cpu_seconds": CPU_SECONDS,
            "seconds": SECONDS,
        }
        header = json.dumps(about).encode()
        request = struct.pack("<I", len(header)) + header + schema + file
        with self._lock:
            for _ in range(2):  # the first helper may have been killed long ago
                try:
                    outcome, answer = self._ask(request)
                except (EOFError, BrokenPipeError):
                    self._stop()
                    continue
                except BaseException:  # an interruption: its answer must not be the next one's
                    self._stop()
                    raise
                return answer, _REASONS.get(outcome, "")
            return b"", _REASONS[b"d"]

    def _ask(self, request: bytes) -> tuple[bytes, bytes]:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        with _killed_after(process, PATIENCE_SECONDS):
            _write(process.stdin, request)
            outcome = _read(process.stdout, 1)
            (size,) = struct.unpack("<Q", _read(process.stdout, 8))
            return outcome, _read(process.stdout, size)

    def _start(self) -> "subprocess.Popen[bytes]":
        folders = [_folder_of("numpy"), _folder_of("pyarrow")]
        kept = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME")
        # Pools that reserve gigabytes of addresses would be all that a child may have.
        environment = {name: os.environ[name] for name in kept if name in os.environ} | {
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(folders)),
            "ARROW_DEFAULT_MEMORY_POOL": "system",
            "MALLOC_ARENA_MAX": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-B", str(_WORKER)],
            bufsize=0,
            pipesize=_PIPE_BYTES,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process, which then ends the helper
        )
        self._process = process
        assert process.stdout is not None
        try:
            with _killed_after(process, PATIENCE_SECONDS):
                ready = _read(process.stdout, len(_READY)) == _READY
        except EOFError:
            ready = False
        if not ready:
            self._stop()
            raise RuntimeError(
                f"the process that unpacks Parquet files does not start: run "
                f"`{sys.executable} {_WORKER}` to see why"
            )
        return process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            _close(process)

    def close(self) -> None:
        """End the helper, if there is one."""
        with self._lock:
            self._stop()

    def forget(self) -> None:
        """In a forked process: the helper is the parent's, whose answers are not to be taken."""
        process, self._process = self._process, None
        self._lock = threading.Lock()
        if process is not None:
            process.returncode = 0  # not this process's child: nothing to wait for
            _close(process)


def _folder_of(module: str) -> str:
    """The folder that a package is imported from."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"{module} is not installed")
    return str(Path(spec.origin).parents[1])


@contextlib.contextmanager
def _killed_after(process: "subprocess.Popen[bytes]", seconds: int) -> Iterator[None]:
    """A process is killed if the block takes too long; its pipes then end."""
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _write(pipe: IO[bytes], data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[pipe.write(rest) :]


def _read(pipe: IO[bytes], size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = pipe.read(min(size - len(data), 2**20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def _close(process: "subprocess.Popen[bytes]") -> None:
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


SANDBOX = Sandbox()
atexit.register(SANDBOX.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=SANDBOX.forget)
