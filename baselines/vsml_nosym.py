"""VSML without symmetries: a k×k grid of LSTMs with shared weights between two linear maps.

One of the architectures of Figure 6 of GPICL (Kirsch et al. 2022, appendix A.3, A.4). The LSTMs of
the grid still share their parameters, but inputs and logits pass through learned linear maps: the
learner is no longer equivariant to permutations of pixels or classes, and the size of its state,
2 · hidden · k² numbers, can be chosen freely.

    python -m baselines.vsml_nosym --env MNIST-Proj14-v0 --preset paper     # one GPU
    python -m baselines.vsml_nosym --env MNIST-Proj8-v0 --preset cpu        # a laptop

At step t a linear map of the token concat(x_t, one_hot(y_{t-1})) gives the forward messages to the
k inputs of the grid, and another one of the error softmax − one-hot of step t − 1 (zero at step 1)
the backward messages to its k outputs. Micro-ticks repeat the tick while these are held fixed.
A third linear map takes the k averaged forward messages to the logits.

Differs from the paper: it says no more than "a learnable linear projection", "VSML on a grid of
k×k LSTMs" and logits by "another linear projection". Ours: the label is in the token, as for all
other learners; the error enters where VSML has it; the averaged backward message to input a, which
no layer below would receive, returns to the LSTMs(a, ·) at the next step. A message of an LSTM to
itself, linear in h, would add nothing to its recurrence and is left out. The initial cells are
one draw from the seed, the same for all episodes, in training, too: the linear maps tell rows and
columns apart, so that there is no symmetry left to keep. The curriculum of repeated points is ours.
"""

import dataclasses
import sys
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from baselines import common, train
from baselines.sequence import Method, SequenceModel, truncated_normal
from baselines.train_config import TrainConfig
from icl_bench.episodes import one_hot_labels


@dataclasses.dataclass(frozen=True)
class Config(TrainConfig):
    """VSML without symmetries."""

    preset: Literal["paper", "gpu", "cpu"] = "paper"
    """paper: as in Figure 6. gpu: the same with our curriculum. cpu: small, 8×8 pixels."""
    env: str = "MNIST-Proj14-v0"  # Kirsch et al. 2022, A.4
    """Environment to meta-train on; evaluated with its relatives."""
    compile: bool | None = False
    """torch.compile; it would unroll every tick of an episode."""
    grid: int = 16
    """k, inputs and outputs of the grid; the paper's are 1, 2, 4, 8, 16 and 24."""
    hidden: int = 64  # Kirsch et al. 2022, A.4
    """Units of one LSTM."""
    messages: int = 8  # Kirsch et al. 2022, A.4
    """Size of a message."""
    micro_ticks: int = 2  # Kirsch et al. 2022, A.4
    """Ticks of the grid per step."""

    def check(self) -> None:
        """Check the values; ``cli.main`` does so."""
        super().check()
        for name in ("grid", "messages", "micro_ticks"):
            common.require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        common.require(self.hidden >= 2, "hidden", self.hidden, "2 or more")


def paper() -> Config:
    """Figure 6: 14×14 pixels, batch 128, 2^25 tasks, 90 % bias (Kirsch et al. 2022, A.4)."""
    return Config()


def gpu() -> Config:
    """The paper's model with unbounded tasks, uniform permutations and repeated points."""
    return Config(
        preset="gpu",
        num_tasks=None,
        bias=0.0,
        repeat=0.7,
        repeat_end=0.1,
        repeat_steps=(2000, 20_000),
        optimizer="muon",
        lr=2e-3,
        warmup=500,
        decay="cosine",
        clip=1.0,
    )


def cpu() -> Config:
    """A 4×4 grid at 8×8 pixels."""
    return Config(
        preset="cpu",
        env="MNIST-Proj8-v0",
        grid=4,
        num_tasks=None,
        bias=0.0,
        repeat=0.7,
        repeat_end=0.1,
        repeat_steps=(600, 2400),
        batch_size=32,
        steps=3000,
        optimizer="muon",
        lr=3e-3,
        warmup=100,
        decay="cosine",
        clip=1.0,
        eval_every=500,
        checkpoint_every=250,
    )


PRESETS = {"paper": paper, "gpu": gpu, "cpu": cpu}

# h and c of LSTM(a, b) [N, A, B, H]; backward messages to inputs [N, A, M]; logits before [N, C].
State = tuple[Tensor, Tensor, Tensor, Tensor]


class VSMLNoSym(SequenceModel):
    """A grid of LSTMs with shared parameters between learned linear maps as a learner.

    Args:
        config: grid, hidden, messages, micro_ticks.
        num_features: D.
        num_classes: C.
    """

    def __init__(self, config: Config, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        size, units, width = config.messages, config.hidden, config.grid * config.messages
        self.embed = nn.Linear(num_features + num_classes, width)
        self.embed_error = nn.Linear(num_classes, width, bias=False)
        self.to_input = nn.Linear(2 * size, 4 * units)
        self.to_output = nn.Linear(size, 4 * units, bias=False)
        self.recurrent = nn.Linear(units, 4 * units, bias=False)
        self.forward_head = nn.Linear(units, size)
        self.backward_head = nn.Linear(units, size)
        self.head = nn.Linear(width, num_classes)
        received = {"to_input", "to_output", "recurrent"}  # parts of one matrix
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                part = name.split(".")[0] in received
                truncated_normal(parameter, 3 * size + units if part else parameter.shape[1])
        # Gates i, g, f, o: forget gates begin open, input gates closed (VSML's released code).
        offset = torch.tensor([-5.0, 0.0, 5.0, 0.0]).repeat_interleave(units)
        self.register_buffer("offset", offset, persistent=False)
        cells = torch.zeros(config.grid, config.grid, units)
        truncated_normal(cells[..., : units // 2], config.grid)
        self.register_buffer("cells", cells)

    def begin(self, batch_size: int) -> State:
        """Hidden units and messages of zero; initial cells."""
        cells = self.cells.expand(batch_size, -1, -1, -1)
        messages = cells.new_zeros(batch_size, self.config.grid, self.config.messages)
        return (
            torch.zeros_like(cells),
            cells,
            messages,
            cells.new_zeros(batch_size, self.num_classes),
        )

    def kept_by_step(self, batch_size: int) -> int:
        """About 7 numbers of every hidden unit and tick."""
        units = self.config.hidden * self.config.grid**2
        return 7 * units * self.config.micro_ticks * batch_size

    def state_size(self, episode_length: int) -> int:
        """Units and cells of all LSTMs, backward messages, and logits for the next error."""
        k = self.config.grid
        return 2 * self.config.hidden * k * k + self.config.messages * k + self.num_classes

    def steps(
        self, x: Float[Tensor, "N S D"], prev_y: Int[Tensor, "N S"], state: State
    ) -> tuple[Float[Tensor, "N S C"], State]:
        """Logits of the next S steps, and the state after them."""
        h, c, own, logits = state
        shape = (len(x), self.config.grid, self.config.messages)
        labels = one_hot_labels(prev_y, self.num_classes)
        upward = self.embed(torch.cat([x, labels], dim=-1))
        answers = []
        for t in range(x.shape[1]):
            known = labels[:, t].sum(dim=-1, keepdim=True)  # 0 at the first step
            error = (logits.softmax(dim=-1) - labels[:, t]) * known
            received = torch.cat([upward[:, t].view(shape), own], dim=-1)
            of_output = self.to_output(self.embed_error(error).view(shape))
            fixed = (self.to_input(received) + self.offset)[:, :, None] + of_output[:, None]
            for _ in range(self.config.micro_ticks):
                i, g, f, o = (fixed + self.recurrent(h)).chunk(4, dim=-1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
            own = self.backward_head(h.mean(dim=2))
            logits = self.head(self.forward_head(h.mean(dim=1)).flatten(1))
            answers.append(logits)
        return torch.stack(answers, dim=1), (h, c, own, logits)


METHOD = Method("vsml-nosym", "VSML w/o symmetries", "In-context, black-box", VSMLNoSym, PRESETS)

if __name__ == "__main__":
    sys.exit(train.main(METHOD, __doc__ or ""))
