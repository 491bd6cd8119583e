"""The grid of LSTMs of ``vsml_clone``: settings, the LSTM that all connections share, the learner.

Nothing here knows of gradients: a learner is unrolled, forward only.
"""

import dataclasses
import itertools
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from baselines import common
from baselines.sequence import SequenceModel, truncated_normal
from icl_bench.data.images import dataset
from icl_bench.episodes import one_hot_labels

# w and b stand in the cells divided by it, and messages are read times it, as hidden units are
# bounded (Kirsch & Schmidhuber 2021, appendix: targets scaled by 20).
SCALE = 20.0

# Connections that are computed at once: on a CPU so that their gates stay in its cache.
AT_ONCE = {"cpu": 1024, "cuda": 2**21}


@dataclasses.dataclass(frozen=True)
class Config(common.RunConfig):
    """Learning-algorithm cloning: an LSTM that implements backpropagation."""

    preset: Literal["paper", "gpu", "cpu"] = "paper"
    """paper: the paper's Table 1. gpu: a larger rate. cpu: the same in minutes, small images."""
    data: Literal["random", "images"] = "random"
    """What the clone's inputs are drawn from: normal (std 2), or pixels of the first data set."""
    steps: int = 1_000_000  # Kirsch & Schmidhuber 2021, Table 1
    """Steps of cloning."""
    curriculum: tuple[float, float] = (0.6, 0.8)
    """Shares of the steps after which nets of two layers are cloned, and with their own errors."""
    batch_size: int = 768  # Kirsch & Schmidhuber 2021, Table 1
    """Connections per step."""
    lr: float = 5e-3  # Kirsch & Schmidhuber 2021, Table 1
    """Learning rate of cloning, Adam's; half a cosine to 0."""
    clip: float = 1.0
    """Largest norm of a gradient."""
    hidden: int = 32  # Kirsch & Schmidhuber 2021, Table 1
    """Units of one LSTM."""
    micro_ticks: int = 2
    """Ticks of a layer per message."""
    rate: float = 1e-3  # Kirsch & Schmidhuber 2021, Table 1
    """Cloned learning rate: Δw = −rate · e · ∂y/∂w."""
    gain: float = 1.0
    """Factor of the errors that the learner of episodes is fed, and so of its learning rate."""
    layers: int = 1
    """Layers of the learner of episodes."""
    neurons: int = 32
    """Outputs of every layer but the last."""
    online: tuple[str, ...] = ("MNIST", "FashionMNIST")
    """Data sets to learn by online examples."""
    image_size: int = 28
    """Pixels of a side there."""
    online_gain: float = 1.0
    """The same of the learners of images."""
    copies: int = 64
    """Copies of the learner, each with its own example; their states are averaged."""
    online_steps: int = 1000
    """Examples of each copy."""
    test_images: int = 1000
    """Test images that online learning is measured on."""
    improve: int = 0
    """Generations of CMA-ES from the cloned weights."""
    improve_std: float = 0.1
    """Its initial standard deviation."""
    improve_steps: int = 100
    """Online examples of each copy in a candidate's life."""
    log_every: int = 500
    """Steps between lines of the log."""
    checkpoint_every: int = 1000
    """Steps of cloning between checkpoints."""

    def check(self) -> None:
        """Check the values; ``cli.main`` does so."""
        super().check()
        for name in ("steps", "batch_size", "micro_ticks", "layers", "neurons", "image_size"):
            common.require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("copies", "online_steps", "test_images", "improve_steps", "log_every"):
            common.require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        common.require(self.hidden >= 2, "hidden", self.hidden, "2 or more: w and b")
        common.require(self.improve >= 0, "improve", self.improve, "0 or more")
        for name in (
            "lr",
            "clip",
            "rate",
            "gain",
            "online_gain",
            "improve_std",
            "checkpoint_every",
        ):
            value = getattr(self, name)
            common.require(common.positive(value), name, value, "above 0")
        low, high = self.curriculum
        wanted = "two ascending shares"
        common.require(0 <= low <= high <= 1, "curriculum", self.curriculum, wanted)
        common.require(len(self.online) >= 1, "online", self.online, "one data set or more")
        for name in self.online:
            synthetic = dataset(name).source == "synthetic"
            common.require(not synthetic, "online", name, "a data set of images")


class Cell(nn.Module):
    """The LSTM of every connection: x and e come in; messages go out, and w and b move.

    Cells 0 and 1 hold w and b. Hidden units and the other cells begin every message at zero, so
    that all that an LSTM carries from message to message are w and b.

    Args:
        hidden: Units.
        ticks: Ticks per message.
    """

    def __init__(self, hidden: int, ticks: int) -> None:
        super().__init__()
        self.ticks = ticks
        self.received = nn.Parameter(truncated_normal(torch.empty(4 * hidden, 2), 2))
        self.recurrent = nn.Parameter(truncated_normal(torch.empty(4 * hidden, hidden), hidden))
        # Gates i, g, f, o. Those of w and b begin as a memory: forget little, take in little.
        bias = torch.zeros(4, hidden)
        bias[0, :2], bias[2, :2] = -5.0, 9.0
        self.bias = nn.Parameter(bias.flatten())
        self.heads = nn.Parameter(truncated_normal(torch.empty(2, hidden), hidden))
        self.head_bias = nn.Parameter(torch.zeros(2))

    def forward(
        self, x: Float[Tensor, " K"], e: Float[Tensor, " K"], memory: Float[Tensor, "2 K"]
    ) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"], Float[Tensor, "2 K"]]:
        """Of K connections: forward and backward message, and w and b (over SCALE) after it."""
        units = self.recurrent.shape[1]
        # tanh(z) = 2 σ(2 z) − 1: one call for all gates, and faster than tanh on a CPU.
        twice = torch.ones(4, units, 1, device=x.device)
        twice[1] = 2.0
        twice = twice.view(-1, 1)
        recurrent = self.recurrent * twice
        fixed = torch.addmm(self.bias[:, None] * twice, self.received * twice, torch.stack([x, e]))
        gates = fixed  # at the first tick h is zero
        c = functional.pad(memory, (0, 0, 0, units - 2))
        for tick in range(self.ticks):
            if tick > 0:
                gates = torch.addmm(fixed, recurrent, h)
            i, g, f, o = torch.sigmoid(gates).chunk(4)
            c = f * c + i * (2 * g - 1)
            h = o * (2 * torch.sigmoid(2 * c) - 1)
        out = SCALE * torch.addmm(self.head_bias[:, None], self.heads, h)
        return out[0], out[1], c[:2]


def send(
    cell: Cell,
    x: Float[Tensor, "N A"],
    e: Float[Tensor, "N B"],
    memory: Float[Tensor, "2 N B A"],
) -> tuple[Float[Tensor, "N B"], Float[Tensor, "N A"], Float[Tensor, "2 N B A"]]:
    """Messages through a layer: summed over inputs forwards and over outputs backwards."""
    episodes, outputs, inputs = memory.shape[1:]
    shape = (episodes, outputs, inputs)
    rows = (
        x[:, None].expand(shape).reshape(-1, inputs),
        e[:, :, None].expand(shape).reshape(-1, inputs),
        memory.reshape(2, -1, inputs),
    )
    size = max(1, AT_ONCE[x.device.type] // inputs)
    parts = [
        [out.unflatten(-1, (-1, inputs)) for out in cell(u.flatten(), v.flatten(), m.flatten(1))]
        for u, v, m in zip(*(r.split(size, -2) for r in rows), strict=True)
    ]
    upward, downward, after = (
        torch.cat(part, dim=-2).unflatten(-2, (episodes, outputs))
        for part in zip(*parts, strict=True)
    )
    return upward.sum(dim=2), downward.sum(dim=1), after


# Of every layer w and b, over SCALE [2, N, B, A]; of the step before the input, the outputs of
# every layer but the last [N, A], and the logits [N, C].
State = tuple[list[Tensor], list[Tensor]]


class VSMLClone(SequenceModel):
    """A net of such LSTMs that learns by online examples, as backpropagation would.

    At every step the last layer receives the error softmax − one-hot of the step before, layer by
    layer the backward messages go down; then the new input goes up. No gradient is taken.

    Args:
        config: hidden, micro_ticks, layers, neurons, gain.
        num_features: D.
        num_classes: C.
    """

    def __init__(self, config: Config, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.sizes = [num_features, *[config.neurons] * (config.layers - 1), num_classes]
        self.cell = Cell(config.hidden, config.micro_ticks)
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(self.sizes[:-1])):
            # As fan-in has it, over SCALE; biases and the last layer begin at zero.
            weights = truncated_normal(torch.empty(outputs, inputs), inputs)
            self.register_buffer(f"weights_{layer}", weights / SCALE)

    def begin(self, batch_size: int) -> State:
        """The initial weights, and no step before."""
        like = self.cell.bias
        memory, values = [], []
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(self.sizes)):
            memory.append(like.new_zeros(2, batch_size, outputs, inputs))
            values.append(like.new_zeros(batch_size, inputs))
            if layer < len(self.sizes) - 2:
                memory[-1][0] = self.get_buffer(f"weights_{layer}")
        return memory, [*values, like.new_zeros(batch_size, self.sizes[-1])]

    def state_size(self, episode_length: int) -> int:
        """W and b of every connection, and what the layers received and answered last."""
        return sum(self.sizes) + 2 * sum(a * b for a, b in itertools.pairwise(self.sizes))

    @torch.no_grad()
    def steps(
        self, x: Float[Tensor, "N S D"], prev_y: Int[Tensor, "N S"], state: State
    ) -> tuple[Float[Tensor, "N S C"], State]:
        """Logits of the next S steps, and the state after them."""
        answers = []
        with torch.autocast(x.device.type, enabled=False):
            labels = one_hot_labels(prev_y, self.sizes[-1])
            for t in range(x.shape[1]):
                state = self.predict(x[:, t], self.learn(labels[:, t], state))
                answers.append(state[1][-1])
        return torch.stack(answers, dim=1), state

    @torch.no_grad()
    def learn(self, labels: Float[Tensor, "N C"], state: State) -> State:
        """The state after the labels of the step before went down; zeros are no label."""
        memory, values = list(state[0]), state[1]
        known = labels.sum(dim=-1, keepdim=True)
        e = self.config.gain * (values[-1].softmax(dim=-1) - labels) * known
        for layer in reversed(range(len(memory))):
            _, e, memory[layer] = self.send(values[layer], e, memory[layer])
        return memory, values

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "N D"], state: State) -> State:
        """The state after an input went up; its last value are the logits."""
        memory, values = list(state[0]), [x]
        for layer, kept in enumerate(memory):
            silence = x.new_zeros(len(x), kept.shape[2])
            upward, _, memory[layer] = self.send(values[-1], silence, kept)
            values.append(upward)
        return memory, values

    def send(
        self, x: Float[Tensor, "N A"], e: Float[Tensor, "N B"], memory: Float[Tensor, "2 N B A"]
    ) -> tuple[Float[Tensor, "N B"], Float[Tensor, "N A"], Float[Tensor, "2 N B A"]]:
        """Messages through a layer; see ``send``."""
        return send(self.cell, x, e, memory)


class Backprop(VSMLClone):
    """What is cloned: the same net, trained by plain SGD with the gradient written out."""

    def send(
        self, x: Float[Tensor, "N A"], e: Float[Tensor, "N B"], memory: Float[Tensor, "2 N B A"]
    ) -> tuple[Float[Tensor, "N B"], Float[Tensor, "N A"], Float[Tensor, "2 N B A"]]:
        """Messages Σ tanh(x) w + b and Σ e w (1 − tanh² x); Δw = −rate e tanh(x), Δb = −rate e."""
        w, b = memory * SCALE
        t, e = x.tanh()[:, None], e[..., None]
        after = memory - (self.config.rate / SCALE) * torch.stack([e * t, e + 0 * t])
        return (t * w + b).sum(dim=2), (e * w * (1 - t * t)).sum(dim=1), after
