"""Cloning: the LSTM of ``vsml_clone`` learns backpropagation from examples of it.

Everything that a step draws is a function of its number, so that a checkpoint is the weights, the
optimizer and one integer, and a resumed run ends with the bits of an uninterrupted one.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from baselines import checkpoint, common, optim, process
from baselines.vsml_clone_grid import SCALE, Cell, Config, send
from icl_bench.tasks import counter

# Inputs, neurons and outputs of the nets of the curriculum's last two stages.
NET = (8, 8, 4)

# Errors are taken relative to their targets' size plus this: small weights and errors count, too.
FLOOR = 0.2

Pixels = Callable[[int, torch.Generator], Tensor]


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers of many magnitudes: N(0, (2 u²)²) with u uniform on [0, 1)."""
    size = 2 * torch.rand(shape, generator=generator).square()
    return size * torch.randn(shape, generator=generator)


def shortfall(found: Tensor, target: Tensor, size: Tensor) -> Tensor:
    """Smooth L1 of the error relative to a size."""
    error = (found - target) / (FLOOR + size)
    return functional.smooth_l1_loss(error, torch.zeros_like(error))


def single_loss(
    cell: Cell,
    x: Float[Tensor, " K"],
    e: Float[Tensor, " K"],
    w: Float[Tensor, " K"],
    b: Float[Tensor, " K"],
    rate: float,
) -> Float[Tensor, "4"]:
    """Of single connections: errors of y, of standing still at e = 0, of Δw and Δb, and of e'."""
    memory = torch.stack([w, b]) / SCALE
    twice = torch.cat([memory, memory], dim=1)
    upward, downward, after = cell(torch.cat([x, x]), torch.cat([torch.zeros_like(e), e]), twice)
    still, moved = ((after - twice) * (SCALE / rate)).chunk(2, dim=1)
    y, back = upward[: len(x)], downward[len(x) :]
    t = x.tanh()
    zero, held = torch.zeros_like(still), torch.stack([w, b]).abs()
    wanted = torch.stack([-e * t, -e])
    return torch.stack(
        [
            shortfall(y, t * w + b, held.mean(dim=0)),
            2 * shortfall(still, zero, held),
            2 * shortfall(moved, wanted, e.abs()),
            shortfall(back, e * w * (1 - t * t), (e * w).abs()),
        ]
    )


def net_loss(
    cell: Cell,
    x: Float[Tensor, "N A"],
    e: Float[Tensor, "N C"],
    weights: list[Float[Tensor, "2 N _ _"]],
    rate: float,
    own_errors: bool,
) -> Float[Tensor, "4"]:
    """The same of nets of two layers, whose messages are sums over connections.

    Args:
        cell: Is unrolled with gradients.
        x: Inputs.
        e: Errors of the outputs.
        weights: w and b of each layer.
        rate: Cloned learning rate.
        own_errors: Whether the lower layer receives the upper one's backward message, or the
            error of backpropagation.
    """
    true = [x]
    for w, b in weights:
        true.append((w * true[-1].tanh()[:, None] + b).sum(dim=2))
    errors = [e]
    for (w, _), z in zip(reversed(weights), reversed(true[:-1]), strict=True):
        errors.insert(0, (w * errors[0][..., None]).sum(dim=1) * (1 - z.tanh().square()))
    losses, values, memory = [], [x], []
    for layer, both in enumerate(weights):
        given = both / SCALE
        upward, _, after = send(cell, values[-1], torch.zeros_like(errors[layer + 1]), given)
        size = both.abs().mean(dim=(0, 3)) * both.shape[3] ** 0.5
        losses.append(shortfall(upward, true[layer + 1], size))
        still = (after - given) * (SCALE / rate)
        losses.append(2 * shortfall(still, torch.zeros_like(still), both.abs()))
        values.append(upward)
        memory.append(after)
    own = e
    for layer in reversed(range(len(weights))):
        fed = own if own_errors else errors[layer + 1]
        _, own, after = send(cell, values[layer], fed, memory[layer])
        moved = (after - memory[layer]) * (SCALE / rate)
        wanted = -errors[layer + 1][..., None] * torch.ones_like(weights[layer][0])
        wanted = torch.stack([wanted * true[layer].tanh()[:, None], wanted])
        losses.append(2 * shortfall(moved, wanted, errors[layer + 1].abs()[..., None]))
        products = (weights[layer][0] * errors[layer + 1][..., None]).abs()
        size = products.mean(dim=1) * products.shape[1] ** 0.5
        losses.append(shortfall(own, errors[layer], size))
    up, down = torch.stack(losses[:4]).view(2, 2).mean(dim=0), torch.stack(losses[4:])
    return torch.cat([up, down.view(2, 2).mean(dim=0)])


def loss_at(
    config: Config, cell: Cell, step: int, pixels: Pixels, device: torch.device
) -> Float[Tensor, "4"]:
    """Losses of one step, each of which is drawn from its number."""
    key = counter.stream_key("vsml clone", config.seed, step)
    generator = torch.Generator().manual_seed(key)
    count = config.batch_size
    drawn = [pixels(count, generator), *(normal((count,), generator) for _ in range(3))]
    x, e, w, b = (values.to(device) for values in drawn)
    losses = single_loss(cell, x, e, w, b, config.rate)
    deep, own = (share * config.steps for share in config.curriculum)
    if step < deep:
        return losses
    inputs, neurons, outputs = NET
    nets = max(1, count // (inputs * neurons + neurons * outputs))
    x = pixels(nets * inputs, generator).view(nets, inputs).to(device)
    e = normal((nets, outputs), generator).to(device)
    weights = [
        (normal((2, nets, b, a), generator) * a**-0.5).to(device)
        for a, b in ((inputs, neurons), (neurons, outputs))
    ]
    return losses + net_loss(cell, x, e, weights, config.rate, own_errors=step >= own)


def clone(config: Config, cell: Cell, pixels: Pixels, folder: common.RunFolder) -> float:
    """Train the cell in place; returns the seconds that it has taken in all.

    Raises:
        CheckpointError: If the checkpoint to go on with is of other settings, or damaged.
        FloatingPointError: If the loss is not finite, naming the step and the last checkpoint.
        KeyboardInterrupt: After SIGINT or SIGTERM, when the checkpoint is written.
    """
    optimizer = torch.optim.Adam(cell.parameters(), lr=config.lr)
    losses = torch.zeros(config.log_every, 4, device=folder.device)
    first, seconds = 0, 0.0
    state = restore(config)
    if state is not None and state["stage"] == "improve":
        cell.load_state_dict(state["model"])
        return float(state["seconds"])
    if state is not None:
        cell.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        losses.copy_(state["losses"])
        first, seconds = int(state["step"]), float(state["seconds"])
    folder.log.cut(lambda line: line["event"] != "clone" or line["step"] <= first)
    began = time.monotonic()

    def finite(step: int) -> None:
        bad = (~torch.isfinite(losses)).any(dim=1).nonzero()
        broken = not all(bool(torch.isfinite(p).all()) for p in cell.parameters())
        if len(bad) or broken:
            what = "the loss" if len(bad) else "a weight"
            if len(bad):
                step = (step - 1) // len(losses) * len(losses) + int(bad[0]) + 1
            raise FloatingPointError(
                f"{what} of cloning is not finite at step {step} of {folder.path}: a smaller --lr "
                "may help, in a new run"
            )

    bar = tqdm(total=config.steps, initial=first, desc="cloning", unit="step", disable=None)
    advice = f"with --batch-size {config.batch_size}: start again with a smaller one"
    with process.signals() as stop, process.memory_advice(advice), bar:
        for step in range(first, config.steps):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * optim.rate_factor(step, config.steps, 100, "cosine")
            parts = loss_at(config, cell, step, pixels, folder.device)
            slot = step % config.log_every
            losses[slot] = parts.detach()
            optimizer.zero_grad()
            parts.sum().backward()
            nn.utils.clip_grad_norm_(cell.parameters(), config.clip)
            optimizer.step()
            bar.update()
            last = step + 1 == config.steps
            if last or (step + 1) % config.log_every == 0:
                finite(step + 1)
                y, still, moved, back = losses[: slot + 1].mean(dim=0).tolist()
                about = {"forward": y, "still": still, "update": moved, "backward": back}
                folder.log.write(
                    "clone", step=step + 1, lr=optimizer.param_groups[0]["lr"], **about
                )
                bar.set_postfix(update=f"{moved:.2e}", refresh=False)
            if stop or last or (step + 1) % config.checkpoint_every == 0:
                finite(step + 1)
                keep(
                    config,
                    folder,
                    stage="clone",
                    step=step + 1,
                    seconds=seconds + time.monotonic() - began,
                    model=cell.state_dict(),
                    optimizer=optimizer.state_dict(),
                    losses=losses,
                )
            if stop:
                raise KeyboardInterrupt
    return seconds + time.monotonic() - began


def keep(config: Config, folder: common.RunFolder, **state: Any) -> None:
    """Write a checkpoint of these settings."""
    settings = common.config_to_json(common.portable(config))
    checkpoint.save(folder.path, {"settings": settings, **state})


def restore(config: Config) -> dict[str, Any] | None:
    """The newest sound checkpoint of a run that goes on; None if there is none.

    Raises:
        CheckpointError: If it was made with other settings.
    """
    state = None if config.resume is None else checkpoint.load(Path(config.resume))
    if state is not None and state.get("settings") != common.config_to_json(
        common.portable(config)
    ):
        raise checkpoint.CheckpointError(
            f"{config.resume}: the checkpoint was made with other settings than config.json has: "
            "put back the run's own files, or start a new run"
        )
    return state


def note(folder: common.RunFolder, event: str, **values: Any) -> None:
    """Write a line of the log, unless that of a resumed run has it."""
    if not any(line["event"] == event for line in folder.log.read()):
        folder.log.write(event, **values)


@torch.no_grad()
def fidelity(cell: Cell, rate: float) -> dict[str, float]:
    """How faithful a clone is.

    ``forward``: mean absolute error of tanh(x) · w over x, w in [−1, 1]². The others on connections
    like those of a learner (w, b of std 0.2, e of many magnitudes up to 1): ``update`` and
    ``backward`` are the errors of Δw and of e' relative to their norms, ``cosine`` is Δw's, and
    ``drift`` is how far w moves without an error, relative to a typical Δw.
    """
    x, w, found = surface(cell)
    count, device = 2**14, cell.bias.device
    generator = torch.Generator().manual_seed(counter.stream_key("vsml clone fidelity"))
    u, weight, bias = (torch.randn(count, generator=generator).to(device) for _ in range(3))
    e = (normal((count,), generator) / 4).to(device)
    memory = torch.stack([weight, bias]) * (0.2 / SCALE)
    drift = (cell(u, torch.zeros_like(e), memory)[2][0] - memory[0]) * (SCALE / rate)
    _, back, after = cell(u, e, memory)
    moved, wanted = (after[0] - memory[0]) * (SCALE / rate), -e * u.tanh()
    true = e * 0.2 * weight * (1 - u.tanh().square())
    return {
        "forward": float((found - x.tanh() * w).abs().mean()),
        "update": float((moved - wanted).norm() / wanted.norm()),
        "cosine": float(functional.cosine_similarity(moved, wanted, dim=0)),
        "backward": float((back - true).norm() / true.norm()),
        "drift": float(drift.norm() / wanted.norm()),
    }


@torch.no_grad()
def surface(cell: Cell) -> tuple[Float[Tensor, "K K"], Float[Tensor, "K K"], Float[Tensor, "K K"]]:
    """x, w and the forward message, on a grid over [−1, 1]² with b = 0."""
    line = torch.linspace(-1, 1, 41, device=cell.bias.device)
    x, w = torch.meshgrid(line, line, indexing="ij")
    memory = torch.stack([w.flatten() / SCALE, torch.zeros_like(w).flatten()])
    upward, _, _ = cell(x.flatten(), torch.zeros_like(x).flatten(), memory)
    return x, w, upward.view(x.shape)
