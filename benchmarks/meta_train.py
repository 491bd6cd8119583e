"""Speed and memory of an outer step against the same model trained the straightforward way.

    python benchmarks/meta_train.py [--device cuda] [--out benchmarks/results/meta_train-cpu.json]

The straightforward way draws one projection per task with ``torch.randn`` in a collate function,
writes attention out with a mask and a softmax, and uses Adam unfused; ours uses PyTorch's fused
kernels of both. Both ways train a GPICL Transformer of the ``cpu`` preset's size (with ``--device
cuda`` the paper's) in fp32 on batches of 32 episodes of 100 steps. All figures are ratios within
one run, medians of alternating steps.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure import milliseconds, peak_growth
from sampler import B, T, make_sampler
from torch import Tensor, nn
from torch.nn import functional

from baselines import gpicl, optim
from icl_bench.episodes import one_hot_labels

MEASURED = ("D=196", "D=784", "D=3072 grey", "D=3072 colour")


class PlainBlock(gpicl.Block):
    """The same block with attention written out."""

    def forward(self, h: Tensor, rotation: None, past: None = None) -> tuple[Tensor, None]:
        """All steps at once."""
        batch, length, width = h.shape
        qkv = self.qkv(self.attention_norm(h)).view(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        mask = torch.ones(length, length, dtype=torch.bool, device=h.device).tril()
        read = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ v
        h = h + self.attention_out(read.transpose(1, 2).reshape(batch, length, width))
        return h + self.mlp_out(functional.gelu(self.mlp_in(self.mlp_norm(h)))), None


class Collate:
    """Images and labels of episodes in; each task's projection and permutation drawn here."""

    def __init__(self, size: str, device: str) -> None:
        self.sampler = make_sampler(size, None, device)
        self.rng = np.random.default_rng(0)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """The next batch (x, y)."""
        sampler = self.sampler
        mean, std = sampler.stats
        assert sampler.pixels is not None
        assert sampler.labels is not None
        dim = sampler.view.num_features
        xs, ys = [], []
        for _ in range(B):
            drawn = self.rng.choice(len(sampler.labels), T, replace=False)
            images = sampler.pixels[torch.from_numpy(drawn).to(sampler.device)]
            z = ((images - mean) / std).tile(1, sampler.copies)
            projection = torch.randn(dim, dim, device=sampler.device) / dim**0.5
            xs.append(z @ projection.T)
            permutation = self.rng.permutation(10)
            ys.append(torch.from_numpy(permutation[sampler.labels[drawn]]))
        return torch.stack(xs), torch.stack(ys).to(sampler.device)


def model(dim: int, device: str) -> gpicl.GPICL:
    """The preset's Transformer."""
    config = gpicl.cpu() if device == "cpu" else gpicl.paper()
    return gpicl.GPICL(config, dim, 10).to(device)


def ours(size: str, device: str) -> Callable[[int], None]:
    """Outer step number n: episodes by id, fused attention and Adam."""
    sampler = make_sampler(size, None, device)
    net = model(sampler.view.num_features, device)
    adam = optim.make_optimizer("adam", net, lr=1e-3, eps=1e-8, momentum=0.9, weight_decay=0.0)

    def step(n: int) -> None:
        batch = sampler.episodes(np.arange(n * B, (n + 1) * B))
        logits = net(batch.x, batch.prev_y)
        functional.cross_entropy(logits.flatten(0, 1), batch.y.flatten()).backward()
        adam.step()
        adam.zero_grad()

    return step


def straightforward(size: str, device: str) -> Callable[[int], None]:
    """Outer step of the straightforward way."""
    collate = Collate(size, device)
    net = model(collate.sampler.view.num_features, device)
    plain = nn.ModuleList(PlainBlock(net.config.width, net.config.heads) for _ in net.blocks)
    net.blocks = plain.to(device)
    adam = torch.optim.Adam(net.parameters(), lr=1e-3, foreach=False, fused=False)

    def step(n: int) -> None:
        x, y = collate()
        prev_y = torch.cat([torch.full_like(y[:, :1], -1), y[:, :-1]], dim=1)
        h = net.embed(torch.cat([x, one_hot_labels(prev_y, 10)], dim=-1)) + net.position
        for block in net.blocks:
            h, _ = block(h, None)
        logits = net.head(net.norm(h))
        functional.cross_entropy(logits.flatten(0, 1), y.flatten()).backward()
        adam.step()
        adam.zero_grad()

    return step


WAYS = {"ours": ours, "straightforward": straightforward}


def peak_memory(size: str, way: str, device: str) -> float:
    """Megabytes of the peak of three outer steps, in a process of its own on a CPU."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        step = WAYS[way](size, device)
        for n in range(3):
            step(n)
        return torch.cuda.max_memory_allocated() / 2**20
    command = [sys.executable, __file__, "--memory-of", size, way]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def memory_of(size: str, way: str) -> float:
    """Growth of this process's peak by three outer steps after a first, in megabytes (Linux)."""
    step = WAYS[way](size, "cpu")
    step(0)  # loads kernels, compiles and allocates what stays
    return peak_growth(lambda: [step(n) for n in range(1, 4)])


def main() -> None:
    """Measure, print a table, and write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(memory_of(*args.memory_of))
        return
    shape = gpicl.cpu() if args.device == "cpu" else gpicl.paper()
    sizes = {n: getattr(shape, n) for n in ("width", "layers", "heads")}
    results: dict[str, object] = {
        "T": T,
        "B": B,
        "model": sizes,
        "device": torch.cuda.get_device_name() if args.device != "cpu" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(f"ms per outer step, {B} episodes of {T} steps, {sizes}")
    print(f"{'':16}{'straightforward':>16}{'ours':>10}{'ratio':>8}  peak MB")
    for size in MEASURED:
        steps = {name: way(size, args.device) for name, way in WAYS.items()}
        times = milliseconds(steps, args.repetitions, args.device)
        memory = {way: peak_memory(size, way, args.device) for way in WAYS}
        results[size] = {"ms": times, "peak_mb": memory}
        ratio = times["straightforward"] / times["ours"]
        print(
            f"{size:16}{times['straightforward']:16.1f}{times['ours']:10.1f}{ratio:8.2f}  "
            + ", ".join(f"{way} {memory[way]:.0f}" for way in WAYS)
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
