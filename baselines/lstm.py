"""LSTM: a recurrent network that is meta-trained to learn in context.

The row "LSTM" of Table 2 (Kirsch et al. 2022, appendix A.4). Tokens concat(x_t, one_hot(y_{t-1}))
go through one LSTM layer (Hochreiter & Schmidhuber 1997) whose output at step t, through a linear
map, is the class of x_t. All that it has learned in an episode must fit into 2 · hidden numbers.

    python -m baselines.lstm --env MNIST-Proj-v0 --preset paper       # one GPU
    python -m baselines.lstm --env MNIST-Proj8-v0 --preset cpu        # a laptop, minutes

Differs from the paper: it states neither learning rate nor initialisation nor the number of
layers. Ours: one layer; as in Haiku, the authors' framework, truncated normal weights of standard
deviation 1/√(inputs + hidden), biases 0 but 1 for the forget gate. The curriculum of repeated
points (``--repeat``) is ours; the paper preset leaves it off.
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
    """LSTM."""

    preset: Literal["paper", "gpu", "cpu"] = "paper"
    """paper: as in Table 2. gpu: the same with our curriculum. cpu: small, 8×8 pixels."""
    steps: int = 100_000  # Kirsch et al. 2022, A.4
    """Outer steps."""
    hidden: int = 256  # Kirsch et al. 2022, A.4
    """Size of the hidden state, and of the cell."""

    def check(self) -> None:
        """Check the values; ``cli.main`` does so."""
        super().check()
        common.require(self.hidden >= 1, "hidden", self.hidden, "1 or more")


def paper() -> Config:
    """Table 2: batch 128, 2^25 tasks, 90 % biased permutations (Kirsch et al. 2022, A.4)."""
    return Config()


def gpu() -> Config:
    """The paper's model with unbounded tasks, uniform permutations and repeated points."""
    return Config(
        preset="gpu",
        num_tasks=None,
        bias=0.0,
        repeat=0.7,
        repeat_end=0.1,
        repeat_steps=(5000, 50_000),
        optimizer="muon",
        lr=5e-3,
        warmup=500,
        decay="cosine",
        clip=1.0,
    )


def cpu() -> Config:
    """8×8 pixels: twelve minutes on one thread.

    With Adam (1e-2, hidden size 128) five minutes left chance on Random only, not on MNIST.
    """
    return Config(
        preset="cpu",
        env="MNIST-Proj8-v0",
        num_tasks=None,
        bias=0.0,
        repeat=1.0,
        repeat_end=0.3,
        repeat_steps=(1000, 3500),
        batch_size=48,
        steps=4000,
        optimizer="muon",
        lr=1e-2,
        warmup=100,
        decay="cosine",
        clip=1.0,
        eval_every=500,
        checkpoint_every=250,
    )


PRESETS = {"paper": paper, "gpu": gpu, "cpu": cpu}

State = tuple[Tensor, Tensor]  # h and c [1, B, H]


class LSTM(SequenceModel):
    """The LSTM of appendix A.4 as a learner.

    Args:
        config: hidden.
        num_features: D.
        num_classes: C.
    """

    def __init__(self, config: Config, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        inputs, hidden = num_features + num_classes, config.hidden
        self.lstm = nn.LSTM(inputs, hidden, batch_first=True)
        self.head = nn.Linear(hidden, num_classes)
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("weight"):
                truncated_normal(parameter, inputs + hidden)
            else:
                nn.init.zeros_(parameter)
        # Gates are in the order i, f, g, o.
        nn.init.ones_(self.lstm.bias_ih_l0.data[hidden : 2 * hidden])

    def begin(self, batch_size: int) -> State:
        """Zeros."""
        zeros = self.head.weight.new_zeros(1, batch_size, self.config.hidden)
        return zeros, zeros

    def steps(
        self, x: Float[Tensor, "B S D"], prev_y: Int[Tensor, "B S"], state: State
    ) -> tuple[Float[Tensor, "B S C"], State]:
        """Logits of the next S steps, and the state after them."""
        tokens = torch.cat([x, one_hot_labels(prev_y, self.num_classes)], dim=-1)
        # Autocast would have cuDNN compute it in fp16, whatever it is asked for.
        with torch.autocast(x.device.type, enabled=False):
            outputs, after = self.lstm(tokens, state)
        return self.head(outputs), after

    def state_size(self, episode_length: int) -> int:
        """Hidden state and cell, however long the episode."""
        return 2 * self.config.hidden


METHOD = Method("lstm", "LSTM", "In-context, black-box", LSTM, PRESETS)

if __name__ == "__main__":
    sys.exit(train.main(METHOD, __doc__ or ""))
