"""The process that an outer loop runs in: torchrun's ranks, its device, signals, its memory."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch


def world_size() -> int:
    """Processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process among them."""
    return int(os.environ.get("RANK", "0"))


@contextlib.contextmanager
def processes(device: torch.device, deterministic: bool) -> Iterator[torch.device]:
    """The device of this process; joins the processes that torchrun started."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
    if world_size() == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as SIGINT does; nothing outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM are added to, so that a step is finished before stopping."""
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        if received:  # the second one does not wait
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Where there is not enough memory, raise MemoryError with what needs less."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # CUDA's allocator, NumPy's, and the words of the CPU's on Linux and on Windows.
        words = ("can't allocate memory", "not enough memory")
        kinds = (torch.OutOfMemoryError, MemoryError)
        if not isinstance(error, kinds) and not any(word in str(error) for word in words):
            raise
        raise MemoryError(f"out of memory {advice}") from error
