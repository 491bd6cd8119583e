"""Speed of runs that are trained together against one after the other.

    python benchmarks/ensemble.py [--device cuda] [--out benchmarks/results/ensemble-cpu.json]

8 members of the experiments' toy size: DigitsLow-Proj4-v0 (D = 16), 32 episodes of 20 steps, Adam,
every member with its own seed. An outer step is that of all members: episodes, gradients, update.
One after the other is what ``train.train`` computes; logs and checkpoints are left out of both.
Ratios within one run on one thread, medians of alternating steps; also of the time of the process
alone, which other programs on the machine change less.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import milliseconds

from baselines import optim, train
from baselines.experiments.spec import method_of
from baselines.experiments.stack import Member, Stack
from baselines.experiments.toy import toy
from baselines.sequence import build_model

R = 8
SIZES: dict[str, dict[str, Any]] = {
    "gpicl": {},
    "mlp": {"width": 64},
    "outer-lstm": {"heads": 2, "size": 8},
}
STEPS = 1000  # of the schedules; more than are measured


def begun(baseline: str, device: str, number: int = R) -> list[Member]:
    """Members at outer step 0."""
    method = method_of(baseline)
    assert method is not None
    members = []
    for seed in range(number):
        config = toy(baseline, seed=seed, steps=STEPS, **SIZES[baseline])
        member = Member(config)
        model = build_model(method, config).to(device)
        member.begin(model, train.environment(config, torch.device(device)))
        members.append(member)
    return members


def together(members: list[Member]) -> Callable[[int], None]:
    """Outer step number n of all."""
    stack = Stack(members)

    def step(n: int) -> None:
        gradient, _ = stack.backward(*stack.episodes(n))
        stack.update(gradient, n)

    return step


def one_after_the_other(members: list[Member]) -> Callable[[int], None]:
    """Outer step number n of each."""
    losses_of = [train._loss_function(m.config, m.model) for m in members]

    def step(n: int) -> None:
        for member, loss_of in zip(members, losses_of, strict=True):
            config = member.config
            for group in member.optimizer.param_groups:
                factor = optim.rate_factor(n, config.steps, config.warmup, config.decay)
                group["lr"] = config.lr * factor
            ids = range(n * config.batch_size, (n + 1) * config.batch_size)
            batch = member.source.episodes(ids, repeat=config.repeat_share(n))
            train._backward(config, member.model, loss_of, batch)
            member.optimizer.step()
            member.optimizer.zero_grad()

    return step


def timed(step: Callable[[int], None], times: list[float]) -> Callable[[int], None]:
    """A step that notes the milliseconds of this process that it takes."""

    def run(n: int) -> None:
        start = time.process_time()
        step(n)
        times.append(1e3 * (time.process_time() - start))

    return run


WAYS = {"together": together, "one after the other": one_after_the_other}


def main() -> None:
    """Measure, print a table, and write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repetitions", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, object] = {
        "members": R,
        "device": torch.cuda.get_device_name() if args.device != "cpu" else platform.machine(),
        "threads": 1,
        "torch": torch.__version__,
    }
    print(f"ms per outer step of {R} members\n{'':12}{'together':>10}{'alone':>10}{'ratio':>8}")
    for baseline in SIZES:
        spent: dict[str, list[float]] = {name: [] for name in WAYS}
        steps = {
            name: timed(way(begun(baseline, args.device)), spent[name])
            for name, way in WAYS.items()
        }
        found = {"ms": milliseconds(steps, args.repetitions, args.device)}
        if args.device == "cpu":
            found["process_ms"] = {name: statistics.median(v) for name, v in spent.items()}
        about: dict[str, object] = {**found}
        for kind, times in found.items():
            ratio = times["one after the other"] / times["together"]
            about[kind.replace("ms", "ratio")] = ratio
            alone = times["one after the other"]
            print(f"{baseline:12}{times['together']:10.1f}{alone:10.1f}{ratio:8.2f}  {kind}")
        results[baseline] = about
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
