"""Speed and memory of a step of MAML against a loop over tasks.

    python benchmarks/maml.py [--out benchmarks/results/maml-cpu.json]

A step is the gradient of the mean loss of 32 tasks through 50 online updates (plain descent, second
order) of a linear classifier of 196 features. The loop computes each update by
``torch.autograd.grad(create_graph=True)``, one task after the other. Ratios within one run, medians
of alternating steps; peak memory of each way in a process of its own. Of ours at 3072 features,
Adam and 100 updates, time and memory alone.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from measure import milliseconds, peak_growth
from torch import Tensor
from torch.nn import functional

from baselines import maml

TASKS, UPDATES, FEATURES, CLASSES, RATE = 32, 50, 196, 10, 0.1


def episodes(features: int, updates: int) -> tuple[Tensor, Tensor]:
    """Noise with labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TASKS, updates + 1, features, generator=generator)
    return x, torch.randint(CLASSES, (TASKS, updates + 1), generator=generator)


def build(features: int, optimizer: str) -> maml.MAML:
    """Second order, online."""
    config = maml.Config(inner_optimizer=optimizer, inner_lr=RATE if optimizer == "sgd" else 1e-3)
    return maml.build(config, features, CLASSES).train()


def batched(model: maml.MAML, x: Tensor, y: Tensor) -> Tensor:
    """Ours."""
    prev_y = torch.cat([torch.full_like(y[:, :1], -1), y[:, :-1]], dim=1)
    return functional.cross_entropy(model(x, prev_y).flatten(0, 1), y.flatten())


def looped(model: maml.MAML, x: Tensor, y: Tensor) -> Tensor:
    """One task after the other."""
    losses = []
    for inputs, labels in zip(x, y, strict=True):
        weight, bias = model.initial[0][:, :-1], model.initial[0][:, -1]
        for t, (token, label) in enumerate(zip(inputs, labels, strict=True)):
            loss = functional.cross_entropy(weight @ token + bias, label)
            losses.append(loss)
            if t < len(inputs) - 1:
                slopes = torch.autograd.grad(loss, (weight, bias), create_graph=True)
                weight, bias = weight - RATE * slopes[0], bias - RATE * slopes[1]
    return torch.stack(losses).mean()


WAYS = {"ours": batched, "loop over tasks": looped}


def make_step(way: str) -> Callable[[int], list[Tensor]]:
    """A step that returns its gradients."""
    model, (x, y) = build(FEATURES, "sgd"), episodes(FEATURES, UPDATES)

    def step(_: int) -> list[Tensor]:
        model.zero_grad()
        WAYS[way](model, x, y).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    return step


def large() -> Callable[[int], None]:
    """Ours at the size of Table 2: 3072 features, Adam, 100 steps, of 32 tasks."""
    model, (x, y) = build(3072, "adam"), episodes(3072, 99)
    return lambda _: batched(model, x, y).backward()


def peak(way: str) -> float:
    """Megabytes, of the first step in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", way]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure, print a table, and write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        batched(build(4, "adam"), *episodes(4, 2)).backward()  # loads what stays
        step = large() if args.memory_of == "large" else make_step(args.memory_of)
        print(peak_growth(lambda: step(0)))
        return
    steps = {way: make_step(way) for way in WAYS}
    generator = torch.get_rng_state()
    gradients = {}
    for way in WAYS:
        torch.set_rng_state(generator)  # the same initial weights
        gradients[way] = make_step(way)(0)[0]
    gap = float((gradients["ours"] - gradients["loop over tasks"]).abs().max())
    times = milliseconds(steps, args.repetitions)
    memory = {way: peak(way) for way in WAYS}
    ratio = times["loop over tasks"] / times["ours"]
    print(f"ms per step, {TASKS} tasks x {UPDATES} updates, D = {FEATURES}")
    for way in WAYS:
        print(f"  {way:16} {times[way]:8.1f} ms  peak {memory[way]:6.1f} MB")
    print(f"  ratio {ratio:.1f}; gradients differ by at most {gap:.1e}")
    big = milliseconds({"large": large()}, 1)["large"]
    big_memory = peak("large")
    print(f"  D = 3072, Adam, {TASKS} tasks x 99 updates: {big:.0f} ms, peak {big_memory:.0f} MB")
    if args.out:
        results = {
            "tasks": TASKS,
            "updates": UPDATES,
            "features": FEATURES,
            "device": platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "ms": times,
            "peak_mb": memory,
            "largest difference of gradients": gap,
            "3072 features, Adam, 99 updates": {"ms": big, "peak_mb": big_memory},
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
