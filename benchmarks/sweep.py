"""What a pool of processes costs beyond the runs themselves, and what a second worker brings.

    python benchmarks/sweep.py [--runs 40] [--out benchmarks/results/sweep-cpu.json]

Overhead: many short runs on a pool; workers × wall time, less the seconds that the runs note
themselves, by run. Scaling: longer runs of one thread each, on one worker and on two, by the wall
time of the same runs. A few runs before them take up the start of the workers (Python, PyTorch,
compiled kernels), which is told apart. Both need cores that do nothing else: the load is told, too.
"""

import argparse
import dataclasses
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import torch

from baselines.experiments.engines import Pool
from baselines.experiments.spec import Measure, Run, settings
from baselines.experiments.store import Store

# Runs before the measured ones, of each worker.
WARM_UP = 3
MOST_OVERHEAD, LEAST_SCALING = 0.5, 1.7
SHORT_STEPS, LONG_STEPS = 10, 300


@dataclasses.dataclass(frozen=True)
class Timing:
    """What a pool has taken.

    Attributes:
        start_s: Until the first run was finished, without the seconds of that run.
        wall_s: Of the measured runs.
        runs_s: Seconds that the measured runs note themselves, in all.
        overhead_s: Of one run: workers × wall time less the runs' own seconds.
        load_before: Load average before.
    """

    start_s: float
    wall_s: float
    runs_s: float
    overhead_s: float
    load_before: float


def run_of(seed: int, steps: int) -> Run:
    """A run of one thread, about 0.1 s (10 steps) or a few seconds."""
    config = settings(
        "gpicl",
        "cpu",
        env="DigitsLow-Proj4-v0",
        seed=seed,
        width=32,
        layers=2,
        heads=2,
        episode_length=20,
        num_tasks=None,
        steps=steps,
        optimizer="adam",
        warmup=0,
        repeat_steps=(0, 0),
        eval_every=0,
        checkpoint_every=1000,
    )
    return Run("gpicl", config, Measure(("unseen",), episodes=64))


def seconds_of(store: Store, run: Run) -> float:
    """What a finished run notes that it has taken."""
    noted = json.loads((store.run_folder(run.key) / "done.json").read_text())
    return float(noted["seconds"])


def measure(workers: int, number: int, steps: int, folder: Path) -> Timing:
    """This many runs on a pool of this many workers."""
    store = Store(folder)
    before = [run_of(10_000 + seed, SHORT_STEPS) for seed in range(WARM_UP * workers)]
    runs = [run_of(seed, steps) for seed in range(number)]
    load, began = os.getloadavg()[0], time.monotonic()
    started = ready = began
    for count, outcome in enumerate(Pool(workers=workers).outcomes([*before, *runs], store), 1):
        if outcome.error is not None:
            raise RuntimeError(outcome.error)
        ended = time.monotonic()
        if count == 1:
            started = ended - seconds_of(store, outcome.run)
        if count == len(before):
            ready = ended
    wall, own = ended - ready, sum(seconds_of(store, run) for run in runs)
    return Timing(started - began, wall, own, (workers * wall - own) / number, load)


def main() -> None:
    """Measure, print a table, and write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=40, help="short runs; a quarter as many longer")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    longer = max(2, args.runs // 4 // 2 * 2)  # even, so that two workers end together
    with tempfile.TemporaryDirectory() as scratch:
        short = measure(2, args.runs, SHORT_STEPS, Path(scratch) / "short")
        long = [measure(n, longer, LONG_STEPS, Path(scratch) / f"long-{n}") for n in (1, 2)]
    scaling = long[0].wall_s / long[1].wall_s
    print("| runs | workers | start s | wall s | runs' own s | overhead s a run | load before |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for what, workers, took in (
        (f"{args.runs} short", 2, short),
        (f"{longer} longer", 1, long[0]),
        (f"{longer} longer", 2, long[1]),
    ):
        print(
            f"| {what} | {workers} | {took.start_s:.1f} | {took.wall_s:.1f} | {took.runs_s:.1f} | "
            f"{took.overhead_s:.3f} | {took.load_before:.1f} |"
        )
    print(f"overhead of a short run {short.overhead_s:.3f} s (wanted: below {MOST_OVERHEAD})")
    print(f"scaling from 1 to 2 workers {scaling:.2f} (wanted: {LEAST_SCALING} or more)")
    if args.out:
        results = {
            "device": platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "short": {"runs": args.runs, "workers": 2, **dataclasses.asdict(short)},
            "longer": {
                "runs": longer,
                "1": dataclasses.asdict(long[0]),
                "2": dataclasses.asdict(long[1]),
            },
            "scaling": scaling,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
