"""GPICL: a Transformer that is meta-trained to learn in context.

The row "GPICL Transformer" of Table 2 (Kirsch et al. 2022, §3, appendix A.4). Tokens
concat(x_t, one_hot(y_{t-1})) go through a causal Transformer whose output at step t is the class of
x_t; nothing else tells it how to learn.

    python -m baselines.gpicl --env MNIST-Proj-v0 --preset paper       # one GPU
    python -m baselines.gpicl --env MNIST-Proj8-v0 --preset cpu        # a laptop, 10 minutes
    python -m baselines.gpicl --resume runs/MNIST-Proj8-v0__gpicl__0__20260101T000000Z

Differs from the paper: it states neither learning rate, warm-up nor initialisation, and not where
the layer norms are. Ours: pre-norm blocks with a norm before the head, GELU, normal weights of
standard deviation 0.02 (residual branches divided by sqrt(2 · layers)). The curriculum of repeated
points (``--repeat``) is ours; the paper preset leaves it off.
"""

import dataclasses
import sys
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from baselines import common, train
from baselines.sequence import Method, SequenceModel
from baselines.train_config import TrainConfig
from icl_bench.episodes import one_hot_labels


@dataclasses.dataclass(frozen=True)
class Config(TrainConfig):
    """GPICL Transformer."""

    preset: Literal["paper", "gpu", "cpu"] = "paper"
    """paper: as in Table 2. gpu: the same with our curriculum. cpu: small, 8×8 pixels."""
    width: int = 256
    """N_M, size of the residual stream."""
    layers: int = 4
    """Blocks."""
    heads: int = 8
    """Attention heads; their size is width / heads."""
    positions: Literal["learned", "rotary"] = "learned"
    """learned: as in the paper. rotary: of queries and keys (not in the paper)."""

    def check(self) -> None:
        """Check the values; ``cli.main`` does so."""
        super().check()
        for name in ("width", "layers", "heads"):
            value = getattr(self, name)
            common.require(value >= 1, name, value, "1 or more")
        multiple = self.heads * (2 if self.positions == "rotary" else 1)
        common.require(self.width % multiple == 0, "width", self.width, f"a multiple of {multiple}")


def paper() -> Config:
    """Table 2: batch 128, 2^25 tasks, 90 % biased permutations (Kirsch et al. 2022, A.4)."""
    return Config()


def gpu() -> Config:
    """The paper's model with the recipe of ``cpu``: unbounded tasks, repeated points, Muon."""
    return Config(
        preset="gpu",
        num_tasks=None,
        bias=0.0,
        repeat=0.7,
        repeat_end=0.1,
        repeat_steps=(2000, 10_000),
        optimizer="muon",
        lr=2e-3,
        warmup=500,
        decay="cosine",
        clip=1.0,
    )


def cpu() -> Config:
    """Two layers of width 128 at 8×8 pixels: learning to learn within minutes on two cores.

    Why Muon: after 1,000 steps one run had 51 % on unseen tasks, and one with Adam (1.5e-3, the
    curriculum annealed later) 21 %.
    """
    return Config(
        preset="cpu",
        env="MNIST-Proj8-v0",
        width=128,
        layers=2,
        heads=2,
        num_tasks=None,
        bias=0.0,
        repeat=0.7,
        repeat_end=0.1,
        repeat_steps=(300, 1500),
        batch_size=32,
        steps=5000,
        optimizer="muon",
        lr=3e-3,
        warmup=100,
        decay="cosine",
        eval_every=500,
        checkpoint_every=250,
    )


PRESETS = {"paper": paper, "gpu": gpu, "cpu": cpu}

Cache = tuple[int, list[tuple[Tensor, Tensor]]]  # next step; keys and values of each block


class Block(nn.Module):
    """Causal self-attention and an MLP, each on a normalised copy of the residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(
        self,
        h: Float[Tensor, "B S N"],
        rotation: Float[Tensor, "S K"] | None,
        past: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Float[Tensor, "B S N"], tuple[Tensor, Tensor]]:
        """S new steps after those of ``past``; also the keys and values of all [B, H, T, K]."""
        batch, length, width = h.shape
        qkv = self.qkv(self.attention_norm(h)).view(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, S, K)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        first = 0 if past is None else past[0].shape[2]
        mask = None
        if past is not None and first:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
            if length > 1:
                mask = torch.ones(length, k.shape[2], dtype=torch.bool, device=h.device).tril(first)
        read = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=first == 0
        )
        h = h + self.attention_out(read.transpose(1, 2).reshape(batch, length, width))
        return h + self.mlp_out(functional.gelu(self.mlp_in(self.mlp_norm(h)))), (k, v)


class GPICL(SequenceModel):
    """The Transformer of appendix A.4 as a learner.

    Args:
        config: width, layers, heads, positions; episode_length bounds learned positions.
        num_features: D.
        num_classes: C.
    """

    def __init__(self, config: Config, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.embed = nn.Linear(num_features + num_classes, config.width)
        self.position: nn.Parameter | None = None
        if config.positions == "learned":
            self.position = nn.Parameter(torch.empty(config.episode_length, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, num_classes)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                residual = name.endswith(("attention_out.weight", "mlp_out.weight"))
                nn.init.normal_(
                    parameter, std=0.02 / ((2 * config.layers) ** 0.5 if residual else 1.0)
                )
        # Tokens have unit variance per feature: keep it in the stream.
        nn.init.normal_(self.embed.weight, std=(num_features + num_classes) ** -0.5)

    def begin(self, batch_size: int) -> Cache:
        """No steps yet."""
        parameter = self.head.weight
        shape = (batch_size, self.config.heads, 0, self.config.width // self.config.heads)
        empty = torch.empty(shape, device=parameter.device, dtype=parameter.dtype)
        return 0, [(empty, empty) for _ in self.blocks]

    def steps(
        self,
        x: Float[Tensor, "B S D"],
        prev_y: Int[Tensor, "B S"],
        state: Cache,
    ) -> tuple[Float[Tensor, "B S C"], Cache]:
        """Logits of the next S steps; keys and values of those before come from the state.

        Raises:
            ValueError: If an episode is longer than the learned positions.
        """
        first, past = state
        end = first + x.shape[1]
        if self.position is not None and end > len(self.position):
            raise ValueError(
                f"this Transformer has learned positions for {len(self.position)} steps, not "
                f"{end}: meta-train with --episode-length {end}, or with --positions rotary"
            )
        h = self.embed(torch.cat([x, one_hot_labels(prev_y, self.num_classes)], dim=-1))
        rotation = None
        if self.position is not None:
            h = h + self.position[first:end]
        else:
            rotation = rotation_angles(first, end, self.config.width // self.config.heads, x.device)
        after = []
        for block, kept in zip(self.blocks, past, strict=True):
            h, kept = block(h, rotation, kept)
            after.append(kept)
        return self.head(self.norm(h)), (end, after)

    def state_size(self, episode_length: int) -> int:
        """Keys and values of every step and block (Kirsch et al. 2022, §4.3)."""
        return 2 * self.config.width * self.config.layers * episode_length


def rotation_angles(first: int, end: int, size: int, device: torch.device) -> Float[Tensor, "S K"]:
    """Angles of rotary positions: step · 10000^(−2i/K) for the pair (i, i + K/2)."""
    rate = 10_000.0 ** (-torch.arange(size // 2, device=device) / (size // 2))
    return (torch.arange(first, end, device=device)[:, None] * rate).repeat(1, 2)


def rotate(
    vectors: Float[Tensor, "B H S K"], angles: Float[Tensor, "S K"]
) -> Float[Tensor, "B H S K"]:
    """Rotate each pair (i, i + K/2) by its angle (Su et al. 2021, eq. 34)."""
    left, right = vectors.chunk(2, dim=-1)
    turned = torch.cat([-right, left], dim=-1)
    return (vectors * angles.cos() + turned * angles.sin()).to(vectors.dtype)


METHOD = Method("gpicl", "GPICL Transformer", "In-context, black-box", GPICL, PRESETS)

if __name__ == "__main__":
    sys.exit(train.main(METHOD, __doc__ or ""))
