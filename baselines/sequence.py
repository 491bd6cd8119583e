"""What a baseline's model offers to the outer loop, the evaluation and the leaderboard."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

import icl_bench
from baselines.train_config import TrainConfig
from icl_bench.registration import find_spec


class SequenceModel(nn.Module):
    """What a baseline's model offers: a learner that can also be stepped token by token."""

    outer_step: int | None = None
    """While training, the number of the outer step, for models that draw random numbers."""

    def forward(
        self, x: Float[Tensor, "B T D"], prev_y: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T C"]:
        """Logits of all steps in one pass."""
        raise NotImplementedError

    def begin(self, batch_size: int) -> Any:
        """The state before the first token."""
        raise NotImplementedError

    def step(
        self, x: Float[Tensor, "B D"], prev_y: Int[Tensor, " B"], state: Any
    ) -> tuple[Float[Tensor, "B C"], Any]:
        """Logits of the next step, and the state after it."""
        raise NotImplementedError

    def state_size(self, episode_length: int) -> int:
        """Numbers carried from step to step, of one episode (METHODS: N_S)."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Method:
    """What a baseline tells the loop and the leaderboard.

    Attributes:
        name: For folders.
        title: For people.
        inductive_bias: As in Table 2 of GPICL.
        build: (config, D, C) → the model with its initial weights, from ``torch``'s generator.
    """

    name: str
    title: str
    inductive_bias: str
    build: Callable[[Any, int, int], SequenceModel]

    @property
    def program(self) -> str:
        """How it is run."""
        return f"python -m baselines.{self.name.replace('-', '_')}"


def build_model(method: Method, config: TrainConfig) -> SequenceModel:
    """The model with the initial weights that ``config.seed`` names; torch's state is kept."""
    spec = find_spec(config.meta_train)
    with torch.random.fork_rng(devices=[]):
        # nn's initialisers know no other generator. torch.manual_seed would seed the GPUs' as well,
        # which nothing here puts back.
        torch.default_generator.manual_seed(config.seed)
        return method.build(config, spec.num_features, spec.num_classes)


def split(batch: icl_bench.EpisodeBatch, parts: int) -> Iterator[icl_bench.EpisodeBatch]:
    """A batch in so many parts."""
    if parts == 1:
        yield batch
        return
    fields = zip(
        batch.x.chunk(parts), batch.y.chunk(parts), batch.task_id.chunk(parts), strict=True
    )
    for x, y, task_id in fields:
        yield icl_bench.EpisodeBatch(x, y, task_id, batch.num_classes)
