"""Prototypical network: a meta-trained embedding, in which the nearest class mean is the answer.

Snell et al. 2017, on the episodes of in-context learning: at step t the prototype of a class is the
mean embedding of its examples so far, and logits are the negative squared distances to them. All
that is meta-trained is the embedding; that it learns by averaging is built in.

    python -m baselines.protonet --env MNIST-Proj-v0 --preset paper       # one GPU
    python -m baselines.protonet --env MNIST-Proj8-v0 --preset cpu        # a laptop, minutes

Differs from the paper: its episodes have support and query sets of fixed size; ours grow by one
example a step, and every prediction counts (Kirsch et al. 2022, eq. 2). A class without examples
has a learned prototype, which all such classes share. Its embeddings are convolutional; projected
pixels have no neighbours, so ours has one hidden layer (``--hidden 0``: a matrix).
"""

import dataclasses
import sys
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from baselines import common, train
from baselines.sequence import Method, SequenceModel
from baselines.train_config import TrainConfig
from icl_bench.episodes import one_hot_labels


@dataclasses.dataclass(frozen=True)
class Config(TrainConfig):
    """Prototypical network."""

    preset: Literal["paper", "gpu", "cpu"] = "paper"
    """paper: the tasks of Table 2. gpu: unbounded tasks. cpu: small, 8×8 pixels."""
    hidden: int = 1024
    """Units of the hidden layer with ReLU; 0 = none."""
    embedding: int = 256
    """Size of an embedding."""

    def check(self) -> None:
        """Check the values; ``cli.main`` does so."""
        super().check()
        common.require(self.hidden >= 0, "hidden", self.hidden, "0 or more")
        common.require(self.embedding >= 1, "embedding", self.embedding, "1 or more")


def paper() -> Config:
    """The tasks of Table 2: batch 128, 2^25 tasks, 90 % biased (Kirsch et al. 2022, A.4)."""
    return Config()


def gpu() -> Config:
    """The same on unbounded tasks with uniform permutations, as at meta-test."""
    return Config(
        preset="gpu", num_tasks=None, bias=0.0, steps=20_000, warmup=500, decay="cosine", clip=1.0
    )


def cpu() -> Config:
    """8×8 pixels: minutes on two cores."""
    return Config(
        preset="cpu",
        env="MNIST-Proj8-v0",
        hidden=256,
        embedding=64,
        num_tasks=None,
        bias=0.0,
        batch_size=32,
        steps=3000,
        lr=1e-3,
        warmup=100,
        decay="cosine",
        eval_every=500,
        checkpoint_every=500,
    )


PRESETS = {"paper": paper, "gpu": gpu, "cpu": cpu}

# Embedding of the example before [B, E]; of each class, sum [B, C, E] and number [B, C] so far.
State = tuple[Tensor, Tensor, Tensor]


class ProtoNet(SequenceModel):
    """The prototypical network as a learner.

    Args:
        config: hidden, embedding.
        num_features: D.
        num_classes: C.
    """

    def __init__(self, config: Config, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        size = config.embedding
        self.embed = nn.Sequential(
            *([nn.Linear(num_features, config.hidden), nn.ReLU()] if config.hidden else []),
            nn.Linear(config.hidden or num_features, size),
        )
        self.unseen = nn.Parameter(torch.zeros(size))

    def begin(self, batch_size: int) -> State:
        """No example yet."""
        classes, zeros = self.num_classes, self.unseen.new_zeros
        size = self.config.embedding
        return zeros(batch_size, size), zeros(batch_size, classes, size), zeros(batch_size, classes)

    def steps(
        self, x: Float[Tensor, "B S D"], prev_y: Int[Tensor, "B S"], state: State
    ) -> tuple[Float[Tensor, "B S C"], State]:
        """Logits of the next S steps, and the state after them."""
        before, sums, counts = state
        z = self.embed(x).float()  # distances in 32 bits, also under autocast
        known = torch.cat([before[:, None], z[:, :-1]], dim=1)
        labels = one_hot_labels(prev_y, self.num_classes)
        sums_at = sums[:, None] + (labels[..., None] * known[:, :, None]).cumsum(dim=1)
        counts_at = counts[:, None] + labels.cumsum(dim=1)
        means = sums_at / counts_at.clamp_min(1)[..., None]
        prototypes = torch.where(counts_at[..., None] > 0, means, self.unseen)
        logits = -(z[:, :, None] - prototypes).square().sum(dim=-1)
        return logits, (z[:, -1], sums_at[:, -1], counts_at[:, -1])

    def kept_by_step(self, batch_size: int) -> int:
        """Sums, means, prototypes and differences of all classes."""
        return 4 * self.num_classes * self.config.embedding * batch_size

    def state_size(self, episode_length: int) -> int:
        """Sums and numbers of all classes, and the embedding before."""
        return self.num_classes * (self.config.embedding + 1) + self.config.embedding


METHOD = Method("protonet", "ProtoNet", "Metric: nearest class mean", ProtoNet, PRESETS)

if __name__ == "__main__":
    sys.exit(train.main(METHOD, __doc__ or ""))
