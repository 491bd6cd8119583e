"""Settings of every baseline that meta-trains."""

import dataclasses
import math
from typing import Any, Literal

from baselines import common, optim
from baselines.process import world_size
from icl_bench.data.features import chosen_network
from icl_bench.registration import find_spec, view_of


@dataclasses.dataclass(frozen=True)
class TrainConfig(common.RunConfig):
    """Settings of every baseline that meta-trains."""

    steps: int = 50_000
    """Outer steps."""
    batch_size: int = 128
    """Episodes (tasks) per outer step, over all processes."""
    accumulate: int = 1
    """Parts in which a batch is computed, for less memory."""
    episode_length: int = 100
    """T, of the evaluation as well. Other than 100, results are not ranked."""
    num_tasks: int | None = 2**25
    """Training tasks; None = every episode a new task."""
    bias: float = 0.9
    """Fraction of training tasks that keep one fixed label permutation."""
    single_task: float = 0.0
    """Fraction of training episodes that come from task 0."""
    repeat: float = 0.0
    """Repeated-points curriculum: fraction of training episodes made of 10 distinct examples."""
    repeat_end: float = 0.0
    """The fraction that it is annealed to."""
    repeat_steps: tuple[int, int] = (0, 0)
    """Outer steps between which it goes linearly from repeat to repeat_end; 0 0 = never."""
    optimizer: optim.OptimizerName = "adam"
    """adam, adamw (decoupled decay), sign (of the gradient's moving average), or muon (orthogonal
    steps for matrices, AdamW for embeddings, heads and vectors)."""
    lr: float = 1e-3
    """Learning rate after the warm-up."""
    warmup: int = 0
    """Outer steps of linear warm-up."""
    decay: Literal["none", "cosine"] = "none"
    """Learning rate after the warm-up: constant, or half a cosine to 0."""
    eps: float = 1e-8
    """Adam's ε."""
    momentum: float = 0.9
    """β of the sign optimizer."""
    weight_decay: float = 0.0
    """Of matrices."""
    clip: float = 0.0
    """Largest norm of a gradient; 0 = none."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 = autocast of matrix products; auto = bf16 on a GPU. Evaluation is always fp32."""
    compile: bool | None = None
    """torch.compile; None = on a GPU."""
    deterministic: bool = False
    """Deterministic kernels on a GPU, so that a resumed run has the same bits there, too."""
    log_every: int = 50
    """Outer steps between lines of the log."""
    eval_every: int = 1000
    """Outer steps between measurements on val, unseen and cross-dataset episodes; 0 = never."""
    eval_episodes: int = 64
    """Episodes of each of these measurements."""
    checkpoint_every: int = 1000
    """Outer steps between checkpoints."""
    track: Literal["none", "tensorboard", "wandb"] = "none"
    """Mirror the log to TensorBoard (in the run folder) or Weights & Biases."""

    def check(self) -> None:
        """Check the values; ``cli.main`` does so."""
        super().check()
        for name in ("steps", "batch_size", "accumulate", "episode_length", "log_every"):
            common.require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("warmup", "weight_decay", "clip", "eval_every"):
            value = getattr(self, name)
            common.require(math.isfinite(value) and value >= 0, name, value, "0 or more")
        for name in ("lr", "eps", "eval_episodes", "checkpoint_every"):
            value = getattr(self, name)
            common.require(common.positive(value), name, value, "above 0")
        for name in ("bias", "single_task", "repeat", "repeat_end"):
            value = getattr(self, name)
            common.require(0 <= value <= 1, name, value, "in [0, 1]")
        common.require(0 <= self.momentum < 1, "momentum", self.momentum, "in [0, 1)")
        tasks = self.num_tasks
        common.require(tasks is None or tasks >= 1, "num_tasks", tasks, "None, or 1 or more")
        low, high = self.repeat_steps
        common.require(0 <= low <= high, "repeat_steps", self.repeat_steps, "two ascending steps")
        parts = self.accumulate * world_size()
        common.require(
            self.batch_size % parts == 0,
            "batch_size",
            self.batch_size,
            f"a multiple of accumulate × processes = {parts}",
        )

    @property
    def variant(self) -> str | None:
        """Name of the entry where these settings make it another method than its program's."""
        return None

    def repeat_share(self, step: int) -> float:
        """Share of repeated-points episodes at an outer step."""
        low, high = self.repeat_steps
        if high == 0:
            return self.repeat
        done = min(max((step - low) / max(1, high - low), 0.0), 1.0)
        return self.repeat + done * (self.repeat_end - self.repeat)

    def meta_train_kwargs(self) -> dict[str, Any]:
        """Arguments of ``make`` for meta-training; of features, the network that is chosen."""
        network = chosen_network(view_of(find_spec(self.meta_train)))
        return ({} if network is None else {"network": network}) | {
            "num_tasks": self.num_tasks,
            "bias": self.bias,
            "single_task": self.single_task,
            "repeat": self.repeat,
            "episode_length": self.episode_length,
        }

    def evaluation_kwargs(self) -> dict[str, Any]:
        """Episodes of the length of meta-training, which a model may be bound to."""
        standard = find_spec(self.env).episode_length
        return {} if self.episode_length == standard else {"episode_length": self.episode_length}
