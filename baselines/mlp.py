"""MLP: a multi-task classifier that sees one example at a time, so it cannot learn in context.

Figure 2a of Kirsch et al. 2022: two hidden layers, ReLU; the logits of step t are a function of x_t
alone. On few training tasks it memorises all of them; with the number of tasks its accuracy falls,
the later the wider it is. On unseen tasks it is at chance. Both are what the Transformer's jump to
generalisation is compared with.

    python -m baselines.mlp --env MNIST-Proj-v0 --num-tasks 1024 --width 512       # one GPU
    python -m baselines.mlp --env MNIST-Proj8-v0 --preset cpu                      # a laptop

Training tasks are what it can do: see the lines on ``seen`` in ``metrics.jsonl``. The results of a
run, on unseen tasks, are chance.

Differs from the paper: it varies the width and the number of tasks; ours are 256 and 2^10 where
nothing is said. Learning rate, steps, initialisation and the share of biased permutations of
Figure 2 are not stated; ours are Adam 1e-3, 50,000 steps, PyTorch's, and none.
"""

import dataclasses
import sys
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from baselines import common, train
from baselines.sequence import Method, SequenceModel
from baselines.train_config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Config(TrainConfig):
    """MLP."""

    preset: Literal["paper", "gpu", "cpu"] = "paper"
    """paper: as in Figure 2a. gpu: wider, with a learning rate that falls. cpu: 8×8 pixels."""
    num_tasks: int | None = 2**10
    """Training tasks; None = every episode a new task."""
    bias: float = 0.0
    """Fraction of training tasks that keep one fixed label permutation."""
    width: int = 256
    """Units of each of the two hidden layers."""

    def check(self) -> None:
        """Check the values; ``cli.main`` does so."""
        super().check()
        common.require(self.width >= 1, "width", self.width, "1 or more")


def paper() -> Config:
    """One point of Figure 2a: batch 128, 2^10 tasks (Kirsch et al. 2022)."""
    return Config()


def gpu() -> Config:
    """Four times as wide, with warm-up and a learning rate that falls to 0."""
    return Config(preset="gpu", width=1024, warmup=500, decay="cosine", clip=1.0)


def cpu() -> Config:
    """16 tasks at 8×8 pixels: memorised within minutes on two cores."""
    return Config(
        preset="cpu",
        env="MNIST-Proj8-v0",
        num_tasks=16,
        batch_size=16,
        steps=4000,
        warmup=100,
        decay="cosine",
        eval_every=500,
        checkpoint_every=500,
    )


PRESETS = {"paper": paper, "gpu": gpu, "cpu": cpu}


class MLP(SequenceModel):
    """The classifier of Figure 2a as a learner.

    Args:
        config: width.
        num_features: D.
        num_classes: C.
    """

    def __init__(self, config: Config, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(num_features, config.width),
            nn.ReLU(),
            nn.Linear(config.width, config.width),
            nn.ReLU(),
            nn.Linear(config.width, num_classes),
        )

    def begin(self, batch_size: int) -> None:
        """Nothing is carried."""

    def steps(
        self, x: Float[Tensor, "B S D"], prev_y: Int[Tensor, "B S"], state: None
    ) -> tuple[Float[Tensor, "B S C"], None]:
        """Logits of the next S steps, each from its own input."""
        return self.layers(x), None

    def state_size(self, episode_length: int) -> int:
        """Nothing is carried."""
        return 0


METHOD = Method("mlp", "MLP", "None: one example at a time", MLP, PRESETS)

if __name__ == "__main__":
    sys.exit(train.main(METHOD, __doc__ or ""))
