"""What the benchmarks measure with: medians of alternating steps, growth of the peak of memory."""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def milliseconds(
    steps: Mapping[str, Callable[[int], object]], repetitions: int, device: str = "cpu"
) -> dict[str, float]:
    """Median time of a step of each way, alternating; two before them compile and allocate."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(repetitions + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step(repetition)
            if device != "cpu":
                torch.cuda.synchronize()
            if repetition > 1:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def peak_growth(step: Callable[[], object]) -> float:
    """Growth of this process's peak of memory by a call, in megabytes (Linux)."""

    def peak() -> int:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line[:6] == "VmHWM:")

    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = peak()
    step()
    return (peak() - before) / 1024
