"""What a baseline's model offers to the outer loop, the evaluation and the leaderboard."""

import abc
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import icl_bench
from baselines import cli, common
from icl_bench.registration import find_spec

# Numbers that a pass may keep for its gradient: 1 GiB.
MOST_KEPT = 2**28


class SequenceModel(nn.Module, abc.ABC):
    """A learner that can also be stepped token by token, with a state carried in between."""

    outer_step: int | None = None
    """While training, the number of the outer step, for models that draw random numbers."""
    first_episode: int = 0
    """Then, the place in the outer step's whole batch of the first episode that is passed."""

    @abc.abstractmethod
    def begin(self, batch_size: int) -> Any:
        """The state before the first token."""

    @abc.abstractmethod
    def steps(
        self, x: Float[Tensor, "B S D"], prev_y: Int[Tensor, "B S"], state: Any
    ) -> tuple[Float[Tensor, "B S C"], Any]:
        """Logits of the next S steps, and the state after them."""

    @abc.abstractmethod
    def state_size(self, episode_length: int) -> int:
        """Numbers carried from step to step, of one episode (Kirsch et al. 2022, §4.3: N_S)."""

    def objective(self, losses: Float[Tensor, "B T"]) -> Float[Tensor, ""]:
        """What the outer loop minimises, from the cross entropies of a forward pass just made.

        Their mean (Kirsch et al. 2022, eq. 2), unless a method has another.
        """
        return losses.mean()

    def forward(
        self, x: Float[Tensor, "B T D"], prev_y: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T C"]:
        """Logits of all steps in one pass; see MOST_KEPT for the memory that gradients take."""
        kept = x.shape[1] * self.kept_by_step(len(x))
        if kept > MOST_KEPT and torch.is_grad_enabled():
            return self._in_segments(x, prev_y)
        return self.steps(x, prev_y, self.begin(len(x)))[0]

    def kept_by_step(self, batch_size: int) -> int:
        """Numbers that a pass keeps of every step for its gradient, about.

        0 for models that may always keep all of them.
        """
        return 0

    def step(
        self, x: Float[Tensor, "B D"], prev_y: Int[Tensor, " B"], state: Any
    ) -> tuple[Float[Tensor, "B C"], Any]:
        """Logits of the next step, and the state after it."""
        logits, after = self.steps(x[:, None], prev_y[:, None], state)
        return logits[:, 0], after

    def _in_segments(
        self, x: Float[Tensor, "B T D"], prev_y: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T C"]:
        """Logits of all steps, keeping for the gradient only the state after every √T of them.

        The steps between are computed again, for memory of about 2√T steps instead of T.
        """
        state, parts = self.begin(len(x)), []
        segment = math.ceil(x.shape[1] ** 0.5)
        for part in zip(x.split(segment, dim=1), prev_y.split(segment, dim=1), strict=True):
            logits, state = checkpoint(
                self.steps, *part, state, use_reentrant=False, preserve_rng_state=False
            )
            parts.append(logits)
        return torch.cat(parts, dim=1)


def truncated_normal(
    tensor: Tensor, fan_in: int, generator: torch.Generator | None = None
) -> Tensor:
    """Fill with N(0, 1 / fan_in), cut at two standard deviations: the law of Haiku's layers."""
    std = fan_in**-0.5
    return nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std, generator=generator)


# Settings that do not make it another method.
NO_MATTER = frozenset(
    {"preset", "env", "suite", "seed", "episodes", "track", "log_every", "checkpoint_every"}
    | {"eval_every", "eval_episodes", "deterministic", *common.PLACES}
    | {"online_steps", "test_images"}  # of vsml_clone
)


@dataclasses.dataclass(frozen=True)
class Method:
    """What a baseline tells the loop and the leaderboard.

    Attributes:
        name: For folders.
        title: For people.
        inductive_bias: As in Table 2 of GPICL.
        build: (config, D, C) → the model with its initial weights, from ``torch``'s generator.
        presets: Name → settings.
        titles: Of the settings' variants, for people.
    """

    name: str
    title: str
    inductive_bias: str
    build: Callable[[Any, int, int], SequenceModel]
    presets: Mapping[str, Callable[[], Any]]
    titles: Mapping[str | None, str] = dataclasses.field(default_factory=dict)

    @property
    def program(self) -> str:
        """How it is run."""
        return f"python -m baselines.{self.name.replace('-', '_')}"


def command(method: Method, config: common.RunConfig) -> str:
    """How to make a run like this, see ``cli.command``."""
    preset = method.presets[config.preset]()
    return cli.command(method.program, preset, config, config.meta_train, NO_MATTER)


def build_model(method: Method, config: common.RunConfig) -> SequenceModel:
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
