"""Speed and memory of the sampler against the naive way, and of the vector environment.

    python benchmarks/sampler.py [--device cuda] [--out benchmarks/results/sampler-cpu.json]

The naive way draws every A with ``torch.randn`` (the faster of one by one and all at once) and
multiplies; examples, labels and normalisation are made by the same code. All figures are ratios
within one run, medians over repetitions that alternate between the ways.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure import peak_growth

import icl_bench
from icl_bench.catalog import View
from icl_bench.tasks import projection
from icl_bench.tasks.sampler import TaskDistribution, TaskSampler

T, B = 100, 32

# name → (view, equal blocks of features): grey images are stored once and copied to colour.
SIZES: dict[str, tuple[View, int]] = {
    "D=64": (View("8", 8, 8, 1), 1),
    "D=196": (View("14", 14, 14, 1), 1),
    "D=784": (View("28", 28, 28, 1), 1),
    "D=3072 grey": (View("32", 32, 32, 3), 3),
    "D=3072 colour": (View("32c", 32, 32, 3), 1),
}


class Naive:
    """The sampler with A drawn by ``torch.randn``, one by one or all at once."""

    def __init__(self, sampler: TaskSampler, at_once: bool) -> None:
        self.sampler, self.at_once = sampler, at_once

    def episodes(self, ids: np.ndarray) -> torch.Tensor:
        """Inputs of these episodes, with projections that nobody can draw again."""
        sampler = self.sampler
        plan = sampler.plan(ids)
        z = (sampler.inputs(plan) - sampler.stats[0]) / sampler.stats[1]
        z = z.tile(1, 1, sampler.copies)
        dim = z.shape[-1]
        if self.at_once:
            a = torch.randn(len(z), dim, dim, device=z.device) / dim**0.5
            return torch.bmm(z, a.transpose(1, 2))
        out = torch.empty_like(z)
        for b in range(len(z)):
            a = torch.randn(dim, dim, device=z.device) / dim**0.5
            torch.mm(z[b], a.T, out=out[b])
        return out


def make_sampler(size: str, num_tasks: int | None, device: str) -> TaskSampler:
    """A sampler over 10,000 synthetic images."""
    view, copies = SIZES[size]
    rng = np.random.default_rng(0)
    distribution = TaskDistribution("Speed", 10, 10_000, "train", num_tasks, 0.0, 0.0, 0.0, T, 0, 0)
    pixels = rng.random((10_000, view.num_features // copies), dtype=np.float32)
    labels = rng.integers(10, size=10_000).astype(np.uint8)
    stats = (0.5, 12**-0.5)
    return TaskSampler(distribution, view, torch.from_numpy(pixels), copies, labels, stats, device)


def ways(size: str, device: str) -> dict[str, Callable[[np.ndarray], object]]:
    """The four ways to make a batch."""
    finite, unbounded = (make_sampler(size, n, device) for n in (2**25, None))
    # At D ≤ 256 both draw every A; the short cut is for larger ones.
    return {
        "naive, one by one": Naive(finite, at_once=False).episodes,
        "naive, at once": Naive(finite, at_once=True).episodes,
        "finite": finite.episodes,
        "unbounded": unbounded.episodes,
    }


def milliseconds(
    made: dict[str, Callable[[np.ndarray], object]], repetitions: int, device: str
) -> dict[str, float]:
    """Median time of a batch of each way, alternating."""
    times: dict[str, list[float]] = {name: [] for name in made}
    for repetition in range(repetitions + 1):
        for name, episodes in made.items():
            ids = np.arange(repetition * B, (repetition + 1) * B)
            if device != "cpu":
                torch.cuda.synchronize()
            start = time.perf_counter()
            episodes(ids)
            if device != "cpu":
                torch.cuda.synchronize()
            if repetition:  # the first one compiles
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def peak_memory(size: str, way: str, device: str) -> float:
    """Megabytes that one batch adds to the peak, measured in a process of its own."""
    if device != "cpu":
        made = ways(size, device)[way]
        made(np.arange(B))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        made(np.arange(B, 2 * B))
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    command = [sys.executable, __file__, "--memory-of", size, way]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def memory_of(size: str, way: str) -> float:
    """Growth of this process's peak during one batch, in megabytes."""
    made = ways(size, "cpu")[way]
    projection.normals(1, np.arange(1), 4, 4)  # load the compiled kernels first
    torch.linalg.cholesky_ex(torch.eye(8, dtype=torch.float64))
    return peak_growth(lambda: made(np.arange(B)))


def vector_environment(num_envs: int = 64) -> dict[str, float]:
    """Steps per second of one vector environment and of as many single ones in a loop."""
    vector = icl_bench.make_vec("Digits-Proj8-v0", num_envs)
    singles = [icl_bench.make("Digits-Proj8-v0").unwrapped for _ in range(num_envs)]
    actions = np.zeros(num_envs, dtype=np.int64)

    def run_vector() -> None:
        vector.reset()
        for _ in range(T):
            vector.step(actions)

    def run_singles() -> None:
        for env in singles:
            env.reset()
        for _ in range(T):
            for env in singles:
                env.step(0)

    rates = {}
    for name, run, repetitions in (("vector", run_vector, 30), ("singles", run_singles, 3)):
        run()
        start = time.perf_counter()
        for _ in range(repetitions):
            run()
        rates[name] = repetitions * T * num_envs / (time.perf_counter() - start)
    return rates


def main() -> None:
    """Measure, print a table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(memory_of(*args.memory_of))
        return
    results: dict[str, object] = {
        "T": T,
        "B": B,
        "device": torch.cuda.get_device_name() if args.device != "cpu" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    head = f"{'':14}{'naive':>10}{'finite':>10}{'unbounded':>11}{'naive/finite':>14}"
    print(f"ms per batch of {B} episodes, {T} steps\n{head}{'naive/unbounded':>17}  peak MB")
    for size in SIZES:
        times = milliseconds(ways(size, args.device), args.repetitions, args.device)
        naive = min(times["naive, one by one"], times["naive, at once"])
        memory = {way: peak_memory(size, way, args.device) for way in times}
        results[size] = {"ms": times, "peak_mb": memory}
        print(
            f"{size:14}{naive:10.1f}{times['finite']:10.1f}{times['unbounded']:11.1f}"
            f"{naive / times['finite']:14.2f}{naive / times['unbounded']:17.1f}  "
            + ", ".join(f"{way} {memory[way]:.0f}" for way in memory)
        )
    if args.device == "cpu":
        rates = vector_environment()
        results["vector environment, steps/s"] = rates
        print(
            f"Digits-Proj8-v0, 64 episodes: vector {rates['vector']:,.0f} steps/s, singles "
            f"{rates['singles']:,.0f}, ratio {rates['vector'] / rates['singles']:.1f}"
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
