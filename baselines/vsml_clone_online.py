"""Online learning on images by the forward-only learners of ``vsml_clone``, and its figures.

Batched as in the paper: at every step each copy of the learner sees an example of its own, and the
states of all copies are averaged.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from baselines import common
from baselines.vsml_clone_grid import Backprop, Cell, Config, State, VSMLClone
from baselines.vsml_clone_train import surface
from icl_bench.catalog import View
from icl_bench.data.cache import atomic_path
from icl_bench.data.images import dataset
from icl_bench.data.views import load_view
from icl_bench.evaluation.plots import COLOURS, DASHES, DPI, FORMATS, INK
from icl_bench.tasks import counter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Outputs of the hidden layer of the deep learner (Kirsch & Schmidhuber 2021, §4.1).
DEEP = 32

# Images whose messages are computed at once where accuracy is measured.
PART = 100


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A data set as vectors with the training pixels' mean 0 and standard deviation 1."""

    x: Float[Tensor, "N D"]
    y: Int[Tensor, " N"]
    test_x: Float[Tensor, "M D"]
    test_y: Int[Tensor, " M"]
    num_classes: int


def load(name: str, config: Config, device: torch.device) -> ImageSet:
    """The grey images of a data set, of ``image_size``; only so many test images as are used."""
    size = config.image_size
    parts = []
    for split in ("train", "test"):
        view = load_view(name, split, View(f"{size}x{size}", size, size, 1), config.data_dir)
        count = config.test_images if split == "test" else len(view.labels)
        pixels = torch.from_numpy(view.pixels[:count].copy()).to(device)
        labels = torch.from_numpy(view.labels[:count].copy()).to(device, torch.int64)
        parts += [(pixels - view.mean) / view.std, labels]
    return ImageSet(*parts, num_classes=dataset(name).num_classes)


def learner(
    kind: type[VSMLClone], config: Config, cell: Cell, images: ImageSet, deep: bool
) -> VSMLClone:
    """A net of these LSTMs for a data set; no part of it takes gradients."""
    settings = dataclasses.replace(
        config, layers=2 if deep else 1, neurons=DEEP, gain=config.online_gain
    )
    with torch.random.fork_rng(devices=[]):  # the same initial weights for every kind
        torch.default_generator.manual_seed(config.seed)
        made = kind(settings, images.x.shape[1], images.num_classes).to(images.x.device)
    made.cell.load_state_dict(cell.state_dict())
    return made.eval().requires_grad_(False)


@torch.no_grad()
def live(
    net: VSMLClone, images: ImageSet, copies: int, steps: int, *name: str | int
) -> Iterator[tuple[Tensor, State]]:
    """Learn online; of every step the loss of its predictions, and the averaged state after it.

    Args:
        net: The learner.
        images: Examples are drawn from its training images.
        copies: Examples per step.
        steps: Steps.
        name: Names the examples that are drawn.
    """
    state = net.begin(1)
    for step in range(steps):
        key = counter.stream_key("vsml clone online", *name, step)
        generator = torch.Generator().manual_seed(key)
        chosen = torch.randint(len(images.y), (copies,), generator=generator).to(images.x.device)
        labels = images.y[chosen]
        memory = [m.expand(-1, copies, -1, -1) for m in state[0]]
        memory, values = net.predict(images.x[chosen], (memory, state[1]))
        loss = functional.cross_entropy(values[-1], labels)
        onehot = functional.one_hot(labels, images.num_classes).to(values[-1].dtype)
        memory, values = net.learn(onehot, (memory, values))
        state = [m.mean(dim=1, keepdim=True) for m in memory], values
        yield loss, state


@torch.no_grad()
def accuracy(net: VSMLClone, images: ImageSet, state: State) -> float:
    """Share of the test images that are classified right; nothing is learned from them."""
    hits = 0
    for x, y in zip(images.test_x.split(PART), images.test_y.split(PART), strict=True):
        memory = [m.expand(-1, len(x), -1, -1) for m in state[0]]
        _, values = net.predict(x, (memory, state[1]))
        hits += int((values[-1].argmax(dim=1) == y).sum())
    return hits / len(images.test_y)


def marks(steps: int) -> list[int]:
    """Steps at which accuracy is measured: 1, 2, 5, 10, …, and the last."""
    found = {steps}
    for power in range(len(str(steps))):
        found |= {factor * 10**power for factor in (1, 2, 5)}
    return sorted(step for step in found if step <= steps)


def measure(
    config: Config, cell: Cell, sets: dict[str, ImageSet], folder: common.RunFolder
) -> None:
    """Learn online on every data set, shallow and deep, cloned and by SGD; draw ``online.png``.

    What the log of a resumed run has already is kept.
    """

    def id_of(line: dict[str, Any]) -> tuple[str, bool, str]:
        return line["on"], line["deep"], line["learner"]

    lines = [line for line in folder.log.read() if line["event"] == "online"]
    done = {id_of(line) for line in lines}
    for name, images in sets.items():
        for deep in (False, True):
            for title, kind in (("cloned", VSMLClone), ("SGD", Backprop)):
                about = {"on": name, "deep": deep, "learner": title}
                if id_of(about) in done:
                    continue
                net = learner(kind, config, cell, images, deep)
                curve, wanted = [], marks(config.online_steps)
                depth = "deep" if deep else "shallow"
                lived = live(net, images, config.copies, config.online_steps, name, config.seed)
                bar = tqdm(lived, f"{name} {depth} {title}", config.online_steps, disable=None)
                for step, (_, state) in enumerate(bar, 1):
                    if step in wanted:
                        curve.append(round(accuracy(net, images, state), 4))
                seen = [step * config.copies for step in wanted]
                folder.log.write("online", **about, seen=seen, accuracy=curve)
                print(f"{name} {depth} {title}: {curve[-1]:.1%} after {seen[-1]} examples")
    lines = [line for line in folder.log.read() if line["event"] == "online"]
    draw_online(lines, folder.path / "online.png")


def draw_online(lines: list[dict[str, Any]], path: Path) -> None:
    """Test accuracy against the examples seen, one panel per data set; dashed lines are SGD."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(line["on"] for line in lines))
    figure = Figure(figsize=(4.2 * len(names), 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for line in lines:
            if line["on"] == name:
                depth = "one hidden layer" if line["deep"] else "no hidden layer"
                sgd = line["learner"] == "SGD"
                axes.plot(
                    line["seen"],
                    [100 * value for value in line["accuracy"]],
                    # Curves that coincide are both seen: a thin dashed one on a broad one.
                    color=INK if sgd else COLOURS[line["deep"]],
                    linewidth=1 if sgd else 3,
                    dashes=DASHES[1 + line["deep"]] if sgd else (),
                    label=f"{line['learner']}, {depth}",
                )
        axes.set(xscale="log", xlabel="examples seen", title=name, ylim=(0, 100))
        axes.set_ylabel("test accuracy, %")
        axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower right")
    save(figure, path)


def draw_forward(cell: Cell, path: Path) -> None:
    """The function tanh(x) · w beside the forward message; then the difference."""
    from matplotlib.figure import Figure

    x, w, found = (values.cpu().numpy() for values in surface(cell))
    target = torch.from_numpy(x).tanh().numpy() * w
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    shown = {"tanh(x) · w": target, "LSTM": found, "LSTM − tanh(x) · w": found - target}
    for place, (title, values) in enumerate(shown.items(), 1):
        axes = figure.add_subplot(1, 3, place, projection="3d")
        top = 1.0 if place < 3 else float(abs(values).max())
        axes.plot_surface(x, w, values, cmap="viridis", vmin=-top, vmax=top)
        axes.set(xlabel="x", ylabel="w", title=title, zlim=(-top, top))
    save(figure, path)


def save(figure: "Figure", path: Path) -> None:
    """Write a figure without the date or the program in it; atomic."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, metadata=dict(FORMATS[".png"]))
