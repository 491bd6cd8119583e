"""MetaICL, and what it is compared with: the language model itself, with and without a prompt.

    no-icl     the model scores options without demonstrations (0-shot)
    raw-lm     after 16 demonstrations: in-context learning of a model that nobody trained for it
    metaicl    the model is meta-trained to give the outputs of train tasks after demonstrations;
               with --k 0 without them (multi-task 0-shot)

In the direct view (``…-ICL-v0``) the output is scored given the input, in the channel view
(``…-Channel-v0``) the input given the output. Source: Min et al. 2022, "MetaICL", §3, §4.

    python -m baselines.metaicl --preset cpu                      # tiny, embedded tasks
    python -m baselines.metaicl --method raw-lm --model smollm2 --env NonNLItoNLI-Channel-v0
    torchrun --nproc-per-node=8 -m baselines.metaicl --env HRtoLR-ICL-v0

Differs from the paper: AdamW in 32 bits instead of 8; each episode draws its query and its
demonstrations anew, instead of going once through all queries; one in twenty examples is held out
for the split val; dropout is 0; autocast is bf16, not fp16. Prompts of no-icl and
raw-lm have spaces between fields, as there, but newlines with ``tiny``, whose texts have newlines.
"""

import dataclasses
import sys
from typing import Literal

from baselines import cli
from baselines.language_model import TINY, LanguageModel
from baselines.meta_update import PlainUpdate
from baselines.text_config import TextConfig
from baselines.text_run import TextMethod, run, uses_bf16

PROGRAM = "python -m baselines.metaicl"
TITLES = {"no-icl": "No ICL", "raw-lm": "Raw LM", "metaicl": "MetaICL"}


@dataclasses.dataclass(frozen=True)
class Config(TextConfig):
    """MetaICL, raw LM or No-ICL."""

    preset: Literal["paper", "gpu", "cpu"] = "paper"
    """paper: GPT-2 Medium with Min et al.'s schedule. gpu: SmolLM2-135M. cpu: tiny, embedded."""
    method: Literal["no-icl", "raw-lm", "metaicl"] = "metaicl"
    """What is evaluated; see above."""
    steps: int = 30_000
    """Outer steps; Min et al. 2022, §4.3."""
    batch_size: int = 1
    """Prompts of a batch."""
    batches: int = 8
    """Batches of an outer step, over all processes; Min et al. 2022: 8 GPUs of one prompt each."""
    calibrate: bool = False
    """Subtract the options' scores after the input N/A (PMI; no-icl and raw-lm)."""

    def check(self) -> None:
        """Check the values; ``cli.main`` does so."""
        super().check()
        if self.calibrate and self.method == "metaicl":
            raise ValueError("--calibrate is for --method no-icl and raw-lm")


def paper() -> Config:
    """GPT-2 Medium as in Sinha et al. 2024; steps and rates of Min et al. 2022, for GPT-2 Large.

    Sinha et al. train it for 50,000 steps, in 32 bits (``--steps 50000 --precision fp32``).
    """
    return Config()


def gpu() -> Config:
    """SmolLM2-135M from its package, for one GPU and half an hour."""
    return Config(preset="gpu", model="smollm2", steps=2000, lr=2e-5, eval_every=250)


def cpu() -> Config:
    """A small GPT over bytes on the embedded tasks, meant for a quarter of an hour of two cores."""
    return Config(
        preset="cpu",
        env="TextMini-ICL-v0",
        model=TINY,
        k=8,
        shuffle=0.5,
        train_on="demonstrations",
        steps=4000,
        batch_size=8,
        batches=1,
        lr=3e-3,
        betas=(0.9, 0.99),
        eval_every=500,
        checkpoint_every=250,
    )


PRESETS = {"paper": paper, "gpu": gpu, "cpu": cpu}


def method_of(config: Config) -> TextMethod:
    """What is run and said of it."""
    trains = config.method == "metaicl"
    name, title = config.method, TITLES[config.method]
    if trains and config.k == 0:
        name, title = "multi-task-0-shot", "Multi-task 0-shot"
    if config.calibrate:
        name, title = f"{name}-pmi", f"{title}, PMI"
    if trains:
        name, title = config.variant(name, title)
    plain = not trains and config.model != TINY
    shape = dataclasses.replace(config.prompt_format, separators="spaces" if plain else "newlines")

    def update(lm: LanguageModel) -> PlainUpdate:
        return PlainUpdate(
            lm.model,
            config.batches,
            clip=config.clip,
            bf16=uses_bf16(config, lm),
            betas=config.betas,
            weight_decay=config.weight_decay,
        )

    return TextMethod(
        name=name,
        title=title,
        program=PROGRAM,
        presets=PRESETS,
        inductive_bias="Meta-trained language model" if trains else "Language model",
        update=update if trains else None,
        prompt_format=shape,
        k=0 if config.method == "no-icl" else config.k,
        calibrate=config.calibrate,
    )


def main() -> int:
    """Command line."""
    return cli.main(lambda config: run(config, method_of(config)), PRESETS, PROGRAM, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
