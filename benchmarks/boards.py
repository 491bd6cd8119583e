"""Time and memory of a board with many entries, scored anew, again, and after one more entry.

    python benchmarks/boards.py [--entries 50 100 200] [--out benchmarks/results/boards-cpu.json]

Entries of table2-proj8-v0 with three meta-training seeds and all six environments, predictions
only. They are drawn around the frozen labels, each entry with a skill of its own and tasks that are
hard for all, so that neither all pairs are separated nor none; labels that this version has not
pinned are made up. Every board is rendered in a process
of its own, with a cache of scores of its own: first with an empty cache, then again, then after one
entry was added. The peak of memory is the process's own; helpers it starts are told beside it.
"""

import argparse
import functools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from icl_bench.data.cache import CACHE_VARIABLE
from icl_bench.evaluation import protocol
from icl_bench.evaluation.result import SCORER_VERSION, Result, log_prob_steps
from icl_bench.leaderboard.entry import own_entry, to_toml
from icl_bench.leaderboard.predictions import SPLIT, episode_counts, write_predictions
from icl_bench.leaderboard.render import render_board
from icl_bench.leaderboard.sandbox import SANDBOX

SUITE = protocol.suite("table2-proj8-v0")
SEEDS = (0, 1, 2)
TEMPERATURE = 20.0  # examples after which most of what is learned is learned


def pin_all() -> None:
    """Make up labels for the data sets that have none in the package, so that all columns count."""
    pinned = protocol._all_frozen_labels

    @functools.cache
    def labels(base: str) -> UInt8[np.ndarray, "E T"]:
        try:
            return pinned(base)
        except LookupError:
            shape = (protocol.EXTENDED_EPISODES, SUITE.episode_length)
            return np.random.default_rng(0).integers(10, size=shape, dtype=np.uint8)

    protocol._all_frozen_labels = labels


def draw(env: str, entry: int, seed: int, skill: float) -> Result:
    """Predictions on the frozen episodes of a learner that ends at about this accuracy."""
    number, length = episode_counts(SUITE)[0], SUITE.episode_length
    label = protocol.frozen_labels(env, number)
    task = protocol.frozen_tasks(number)
    hardness = np.random.default_rng(0).normal(0, 0.08, SUITE.tasks)[task, None]
    rng = np.random.default_rng([entry, seed, SUITE.envs.index(env)])
    learned = 1 - np.exp(-np.arange(length) / TEMPERATURE)
    right = rng.random(label.shape) < 0.1 + (skill - 0.1 + hardness) * learned
    other = (label + rng.integers(1, 10, label.shape)) % 10
    prediction = np.where(right, label, other).astype(np.uint8)
    steps = list(log_prob_steps(length))
    logits = rng.normal(size=(number, len(steps), 10))
    chosen = prediction[:, steps, None].astype(int)
    np.put_along_axis(logits, chosen, logits.max(axis=2, keepdims=True) + 1, axis=2)
    log_probs = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
    return Result(
        env=env,
        split=SPLIT,
        fingerprint=protocol.evaluation_fingerprint(env),
        seed=0,
        env_kwargs={},
        episode=np.arange(number),
        task=task,
        label=label,
        prediction=prediction,
        log_probs=log_probs.astype(np.float16),
    )


def write_entry(folder: Path, entry: int) -> None:
    """A folder as ``icl-bench submit`` would make it."""
    about = own_entry(folder.name, title=f"Learner {entry:03}", meta_train=SUITE.meta_train)
    fields = {key: value for key, value in about.to_dict().items() if value is not None}
    del fields["seed"]
    document = {
        "suite": SUITE.name,
        **fields,
        "seeds": list(SEEDS),
        "scorer_version": SCORER_VERSION,
        "package_version": metadata.version("icl-bench"),
        "fingerprints": {env: protocol.evaluation_fingerprint(env) for env in SUITE.envs},
    }
    skill = float(np.random.default_rng(entry).uniform(0.15, 0.9))
    (folder / "predictions").mkdir(parents=True)
    (folder / "entry.toml").write_text(to_toml(document), encoding="utf-8")
    for seed in SEEDS:
        results = [draw(env, entry, seed, skill) for env in SUITE.envs]
        write_predictions(folder / "predictions" / f"seed-{seed}.parquet", results)


def render(root: str, out: str) -> None:
    """Render a board, and print the peaks of memory of this process and of its helpers in MB."""
    render_board(root, out)
    SANDBOX.close()  # the usage of a helper is known when it has ended
    whose = {"peak_mb": resource.RUSAGE_SELF, "helper_peak_mb": resource.RUSAGE_CHILDREN}
    peaks = {name: resource.getrusage(who).ru_maxrss / 1024 for name, who in whose.items()}
    print(json.dumps(peaks))


def measure(root: Path, cache: Path) -> dict[str, float]:
    """``render`` in a process of its own: seconds with its start, and how many were scored."""
    kept, load, before = len(list(cache.glob("scores/*"))), os.getloadavg()[0], cpu_seconds()
    command = [sys.executable, __file__, "--render", str(root), str(root.parent / "out")]
    environment = os.environ | {CACHE_VARIABLE: str(cache)}
    start = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return {
        "scored": len(list(cache.glob("scores/*"))) - kept,
        "wall_s": time.perf_counter() - start,
        "cpu_s": cpu_seconds() - before,
        **json.loads(done.stdout),
        "load_before": load,
    }


def cpu_seconds() -> float:
    """What the processes that this one has waited for, and theirs, have used of all cores."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure_board(scratch: Path, made: list[Path], number: int) -> dict[str, dict[str, float]]:
    """A board of so many of the entries that were made, anew and again, and with one more."""
    root, cache = scratch / "leaderboards", scratch / f"cache-{number}"

    def enter(upto: int) -> None:
        for entry in made[:upto]:
            if entry.exists():
                entry.rename(root / SUITE.name / entry.name)

    enter(number)
    found = {way: measure(root, cache) for way in ("empty cache", "again")}
    enter(number + 1)
    return {**found, "one more entry": measure(root, cache)}


def main() -> None:
    """Measure, print a table, and write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--entries", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--render", nargs=2, metavar=("ROOT", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    pin_all()
    if args.render:
        render(*args.render)
        return
    results: dict[str, object] = {
        "suite": SUITE.name,
        "seeds": len(SEEDS),
        "device": platform.machine(),
        "cores": os.cpu_count(),
        "numpy": np.__version__,
    }
    with tempfile.TemporaryDirectory() as scratch:
        made = [Path(scratch) / "made" / f"learner-{i:03}" for i in range(max(args.entries) + 1)]
        for i, folder in enumerate(made):
            write_entry(folder, i)
        (Path(scratch) / "leaderboards" / SUITE.name).mkdir(parents=True)
        print("| entries | board | entries scored | wall s | CPU s | peak MB | helper's | load |")
        print("|---:|---|---:|---:|---:|---:|---:|---:|", flush=True)
        for number in sorted(args.entries):
            found = measure_board(Path(scratch), made, number)
            results[str(number)] = found
            for way, took in found.items():
                print(
                    f"| {number} | {way} | {took['scored']} | {took['wall_s']:.1f} | "
                    f"{took['cpu_s']:.1f} | {took['peak_mb']:.0f} | "
                    f"{took['helper_peak_mb']:.0f} | {took['load_before']:.1f} |",
                    flush=True,
                )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
