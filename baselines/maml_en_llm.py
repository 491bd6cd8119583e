"""MAML-en-LLM: a language model meta-trained so that a step on one task helps on another.

MAML-2k-n: an outer step has n tasks, each of k support and k query batches of prompts. From the
weights θ each task takes k inner steps on its support; the query losses where they end are
averaged, and the outer step follows their gradient. 2-1 and 2-4 are k = 1 with n = 1 and 4. Support
and query are drawn independently of each other and need not be of one data set. At test it is used
as MetaICL: prompts of 16 demonstrations, no further steps. See ``meta_update`` for the moments that
inner and outer steps share.
Source: Sinha et al. 2024, "MAML-en-LLM: Model Agnostic Meta-Training of LLMs for Improved
In-Context Learning", §3.

    python -m baselines.maml_en_llm --preset cpu                  # tiny, embedded tasks
    python -m baselines.maml_en_llm --n 4 --env HRtoLR-ICL-v0     # MAML-2-4
    python -m baselines.maml_en_llm --inner sgd --outer adamw --moments separate    # their Table 5
    python -m baselines.maml_en_llm --start-from RUN --steps 0 --adapt 16   # very-few-shot, Table 4

Differs from the paper: ``meta_update`` decides what its Algorithm 1 leaves open; dropout is 0; one
in twenty examples is held out for the split val. In very-few-shot adaptation the prompts of the 16
examples begin with the 16 demonstrations of the test, so that 32 labelled examples are used.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from typing import Literal

import numpy as np

from baselines import cli, common
from baselines.language_model import TINY, LanguageModel, PromptScorer
from baselines.meta_update import MamlUpdate, OptimizerName, adapted
from baselines.text_config import TextConfig
from baselines.text_run import Prepared, TextMethod, run, uses_bf16
from baselines.text_train import prompts_of
from icl_bench.data.images import MissingDataError
from icl_bench.data.text import NUM_DEMOS, load_text
from icl_bench.envs.text_labels import relabelled
from icl_bench.episodes import TextEpisode
from icl_bench.tasks.counter import long_words, stream_key

PROGRAM = "python -m baselines.maml_en_llm"


@dataclasses.dataclass(frozen=True)
class Config(TextConfig):
    """MAML-en-LLM."""

    preset: Literal["paper", "gpu", "cpu"] = "paper"
    """paper: GPT-2 Medium, MAML-2-1. gpu: SmolLM2-135M, MAML-2-4. cpu: tiny, embedded."""
    inner_steps: int = 1
    """k: support batches, hence inner steps, and query batches of a task."""
    n: int = 1
    """Tasks of an outer step, over all processes."""
    order: Literal["second", "first"] = "second"
    """second: through the inner steps; first: inner gradients are constants."""
    inner: OptimizerName = "adamw"
    """Optimizer of inner steps: adamw or sgd."""
    outer: OptimizerName = "adamw"
    """Optimizer of outer steps: adamw or sgd."""
    moments: Literal["shared", "separate"] = "shared"
    """Moments of AdamW: one pair for inner and outer steps, or the inner ones anew each time."""
    inner_rate: float = 1.0
    """Inner learning rate, as a multiple of the outer one."""
    adapt: int = 0
    """Very-few-shot: before a test task take so many AdamW steps, one on each of its examples."""
    adapt_lr: float = 1e-7
    """Learning rate of these steps; Sinha et al. 2024, Table 4."""

    def check(self) -> None:
        """Check the values; ``cli.main`` does so."""
        super().check()
        for name in ("inner_steps", "n"):
            common.require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        common.require(self.adapt >= 0, "adapt", self.adapt, "0 or more")
        for name in ("inner_rate", "adapt_lr"):
            value = getattr(self, name)
            common.require(common.positive(value), name, value, "above 0")
        if self.moments == "shared" and (self.inner, self.outer) != ("adamw", "adamw"):
            raise ValueError(
                f"--inner {self.inner} --outer {self.outer} have no moments to share: add "
                "--moments separate"
            )
        if self.order == "second" and self.gradient_checkpointing:
            raise ValueError("--gradient-checkpointing has no second order: add --order first")


def paper() -> Config:
    """GPT-2 Medium, MAML-2-1, all in 32 bits: Sinha et al. 2024, §4."""
    return Config(precision="fp32", betas=(0.9, 0.999))


def gpu() -> Config:
    """SmolLM2-135M from its package, MAML-2-4, for one GPU; as many prompts as MetaICL's."""
    return Config(preset="gpu", model="smollm2", n=4, steps=2000, lr=2e-5, eval_every=250)


def cpu() -> Config:
    """A small GPT over bytes on the embedded tasks, meant for a quarter of an hour of two cores.

    First order: second order takes several times as long on a CPU.
    """
    return Config(
        preset="cpu",
        env="TextMini-ICL-v0",
        model=TINY,
        k=8,
        train_on="demonstrations",
        steps=1750,
        batch_size=8,
        lr=3e-3,
        betas=(0.9, 0.99),
        inner_rate=0.1,
        order="first",
        eval_every=250,
        checkpoint_every=125,
    )


PRESETS = {"paper": paper, "gpu": gpu, "cpu": cpu}


def method_of(config: Config) -> TextMethod:
    """What is run and said of it."""
    name = f"maml-en-llm-{2 * config.inner_steps}-{config.n}"
    title = f"MAML-en-LLM-{2 * config.inner_steps}-{config.n}"
    if config.order == "first":
        name, title = f"{name}-first-order", f"{title}, first order"
    optimizers = f"{config.inner}+{config.outer}"
    if config.moments == "separate":
        name = f"{name}-{config.inner}-{config.outer}-separate"
        title = f"{title}, {optimizers}, separate"
    name, title = config.variant(name, title)
    if config.adapt:
        name, title = f"{name}-adapted", f"{title}, {config.adapt} steps on each test task"

    def update(lm: LanguageModel) -> MamlUpdate:
        return MamlUpdate(
            lm.model,
            config.inner_steps,
            config.n,
            second_order=config.order == "second",
            inner=config.inner,
            outer=config.outer,
            moments=config.moments,
            inner_rate=config.inner_rate,
            clip=config.clip,
            bf16=uses_bf16(config, lm),
            betas=config.betas,
            weight_decay=config.weight_decay,
        )

    def adapt(lm: LanguageModel, scorer: PromptScorer) -> Prepared:
        @contextlib.contextmanager
        def prepared(task: str, seed: int) -> Iterator[None]:
            batches = [
                prompts_of(config, lm, [episode], "query")
                for episode in adaptation_episodes(config, task, seed)
            ]
            with adapted(lm.model, batches, config.adapt_lr, bf16=uses_bf16(config, lm)):
                yield

        return Prepared(scorer, prepared)

    def check(task: str) -> None:
        for seed in config.demo_seeds:
            adaptation_episodes(config, task, seed)

    return TextMethod(
        name=name,
        title=title,
        program=PROGRAM,
        presets=PRESETS,
        inductive_bias="Meta-trained language model",
        update=update,
        second_order=config.order == "second",
        prompt_format=config.prompt_format,
        k=config.k,
        adapt=adapt if config.adapt else None,
        check=check if config.adapt else None,
    )


def adaptation_episodes(config: Config, task: str, seed: int) -> list[TextEpisode]:
    """Training prompts of a test task: other examples after a draw's demonstrations.

    The examples are drawn by a key from the task's training examples without those demonstrations;
    where only the draws of the original's files are at hand, they are those of its split dev.

    Raises:
        ValueError: If there are too few examples.
    """
    shown = (
        load_text(task, "train", k=config.k, seed=seed, data_dir=config.data_dir)
        if (config.k)
        else ()
    )
    try:
        free = [e for e in load_text(task, "train", data_dir=config.data_dir) if e not in shown]
    except MissingDataError:
        free = list(load_text(task, "dev", k=NUM_DEMOS, seed=seed, data_dir=config.data_dir))
    if len(free) < config.adapt:
        raise ValueError(
            f"--adapt {config.adapt}: {task} has {len(free)} training examples beside the "
            f"demonstrations of seed {seed}"
        )
    marks = long_words(stream_key("text adaptation", task, seed), np.arange(len(free)), 1)[:, 0]
    chosen = np.argsort(marks, kind="stable")[: config.adapt]
    return [
        relabelled(TextEpisode(task, shown, free[i], int(i), seed), config.labels, 0)
        for i in chosen
    ]


def main() -> int:
    """Command line."""
    return cli.main(lambda config: run(config, method_of(config)), PRESETS, PROGRAM, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
