"""The one outer loop on text: trains a language model by any ``meta_update.Update``.

A run has phases, each with its own update: ``tiny`` first learns as a plain language model. What a
step needs is a function of its number: prompts (by episode id) and learning rate. So a checkpoint
is the weights, the update's moments and one integer, and a resumed run ends with the bits of an
uninterrupted one.

    torchrun --nproc-per-node=2 -m baselines.metaicl ...   # each rank takes its batches of a step
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from baselines import checkpoint, common, monitor
from baselines.language_model import LanguageModel, load_trained_state, trained_state
from baselines.meta_update import PlainUpdate, Update, average, loss_of
from baselines.process import memory_advice, rank, signals, world_size
from baselines.text_config import TextConfig
from icl_bench.envs.text_source import TextArgs, TextSource
from icl_bench.episodes import TextEpisode
from icl_bench.tasks.counter import stream_key, uniforms
from icl_bench.tasks.prompts import PromptBatch, TrainOn, pad, training_sequence

# Examples of one text of a plain language model: as many as a prompt of 16 demonstrations has.
TEXT_EXAMPLES = 17


@dataclasses.dataclass(frozen=True)
class Phase:
    """Outer steps of one kind.

    Attributes:
        name: In the log.
        steps: Number of outer steps.
        update: Makes them.
        lr: Learning rate at the first one; it goes linearly to 0.
        batch: The batch with a number, counted over all steps and processes.
    """

    name: str
    steps: int
    update: Update
    lr: float
    batch: Callable[[int], PromptBatch]

    def rate(self, step: int) -> float:
        """Learning rate at a 0-based step."""
        return self.lr * (1 - step / self.steps)


def prompts_of(
    config: TextConfig, lm: LanguageModel, episodes: Sequence[TextEpisode], train_on: TrainOn
) -> PromptBatch:
    """Training prompts of episodes on the model's device."""
    sequences = []
    for episode in episodes:
        try:
            sequences.append(
                training_sequence(config.prompt_format, lm.tokenize, episode, train_on)
            )
        except ValueError as error:
            raise ValueError(
                f"{episode.task}, episode {episode.episode}: {error}; a larger --example-limit "
                "leaves room"
            ) from error
    return pad(sequences, next(lm.model.parameters()).device)


def text_source(config: TextConfig, **args: Any) -> TextSource:
    """The environment's episodes for meta-training, or with other arguments."""
    given = {"seed": config.seed, **config.meta_train_kwargs(), **args}
    return TextSource(config.env, TextArgs(**given), data_dir=config.data_dir)


def meta_training(config: TextConfig, lm: LanguageModel, update: Update, name: str) -> Phase:
    """The phase of a method: batches of prompts from the environment's train split."""
    source = text_source(config)
    twin = text_source(config, labels="shuffled") if config.shuffle else source
    key = stream_key("shuffled labels", config.seed)

    def batch(number: int) -> PromptBatch:
        ids = np.arange(number * config.batch_size, (number + 1) * config.batch_size)
        shuffled = uniforms(key, ids, 1)[:, 0] < config.shuffle
        episodes = [
            episode
            for k, other in zip(ids, shuffled, strict=True)
            for episode in (twin if other else source).episodes([k])
        ]
        return prompts_of(config, lm, episodes, config.train_on)

    return Phase(name, config.steps, update, config.lr, batch)


def tiny_training(config: TextConfig, lm: LanguageModel) -> Phase:
    """The phase in which ``tiny`` becomes a language model of the train tasks' texts.

    A text is a row of examples, each of any task, written as in a prompt. So the model meets the
    words and the formats of the tasks, but no row from which a task could be learned.
    """
    source, size = text_source(config, k=0), config.tiny_batch // world_size()

    def batch(number: int) -> PromptBatch:
        texts = []
        for text in range(number * size, (number + 1) * size):
            row = source.episodes(range(text * TEXT_EXAMPLES, (text + 1) * TEXT_EXAMPLES))
            examples = [episode.query for episode in row]
            texts.append(TextEpisode("texts", tuple(examples[:-1]), examples[-1], text))
        return prompts_of(config, lm, texts, "all")

    update = PlainUpdate(lm.model, world_size(), clip=1.0, betas=(0.9, 0.99))
    return Phase("tiny", config.tiny_steps, update, config.tiny_lr, batch)


def train(
    config: TextConfig,
    lm: LanguageModel,
    phases: Sequence[Phase],
    folder: common.RunFolder | None,
) -> float:
    """The outer loop; returns the GPU-hours it has taken in all.

    Args:
        config: Settings.
        lm: Is trained in place.
        phases: One after the other.
        folder: Run folder for the log and checkpoints; None in processes other than the first.

    Raises:
        CheckpointError: If the checkpoint to go on with is of other settings, or damaged.
        FloatingPointError: If numbers are not finite, naming the step and the last checkpoint.
        KeyboardInterrupt: After SIGINT or SIGTERM, when the checkpoint is written.
        MemoryError: If the memory does not do, naming the settings that need less.
    """
    starts = [sum(phase.steps for phase in phases[:i]) for i in range(len(phases) + 1)]
    total = starts[-1]
    origin = _origin(config, lm) if phases else ""
    first, seconds, recent = _restore(config, lm, phases, starts, origin)
    began = logged = time.monotonic()
    val = _val_batch(config, lm) if folder and config.eval_every and total else None
    tokens = 0

    def keep(step: int) -> None:
        if folder is None:
            return
        phase = _phase_at(starts, step)
        state = {
            "settings": common.config_to_json(common.portable(config)),
            "origin": origin,
            "step": step,
            "seconds": seconds + time.monotonic() - began,
            "model": trained_state(lm),
            "update": phases[phase].update.state_dict(),
            "recent": recent,
        }
        checkpoint.save(folder.path, state)

    bar = tqdm(total=total, initial=first, unit="step", disable=None if folder else True)
    advice = (
        f"with --batch-size {config.batch_size}: start again with a smaller one, a smaller "
        "--total-limit, --gradient-checkpointing or --lora-rank 8"
    )
    lm.model.train()
    with signals() as stop, memory_advice(advice), bar:
        for step in range(first, total):
            phase = phases[_phase_at(starts, step)]
            here = step - starts[_phase_at(starts, step)]
            count = phase.update.num_batches // world_size()
            number = here * phase.update.num_batches + rank() * count
            batches = [phase.batch(number + i) for i in range(count)]
            tokens += sum(int(batch.attention_mask.sum()) for batch in batches)
            found = phase.update.step(batches, phase.rate(here))
            monitor.check_finite("the loss or the gradient", found, step + 1, folder)
            recent.append(found)
            done = here + 1 == phase.steps
            if folder and (done or (step + 1) % config.log_every == 0):
                now = time.monotonic()
                means = {key: math.fsum(r[key] for r in recent) / len(recent) for key in found}
                folder.log.write(
                    "train",
                    step=step + 1,
                    phase=phase.name,
                    lr=phase.rate(here),
                    tokens_per_s=tokens * world_size() / (now - logged),
                    seconds=seconds + now - began,
                    **means,
                )
                bar.set_postfix(phase=phase.name, loss=f"{means['loss']:.3f}", refresh=False)
                logged, tokens = now, 0
                recent.clear()
            if not folder and (done or (step + 1) % config.log_every == 0):
                recent.clear()
            bar.update()
            if folder and val is not None and (done or (step + 1) % config.eval_every == 0):
                now = time.monotonic()
                _measure(lm, val, step + 1, folder, bar)
                logged += time.monotonic() - now
            stopping = _anyone(bool(stop), lm)
            if stopping or done or (step + 1) % config.checkpoint_every == 0:
                keep(step + 1)
            if stopping:
                raise KeyboardInterrupt
    lm.model.eval()
    spent = seconds + time.monotonic() - began
    device = next(lm.model.parameters()).device
    return spent / 3600 * world_size() if device.type == "cuda" else 0.0


def _phase_at(starts: Sequence[int], step: int) -> int:
    """Number of the phase that a step belongs to; the last one where all are done."""
    inside = [i for i in range(len(starts) - 1) if starts[i] <= step < starts[i + 1]]
    return inside[0] if inside else max(0, len(starts) - 2)


def _origin(config: TextConfig, lm: LanguageModel) -> str:
    """What the weights come from: the model's own files and the training examples."""
    return json.dumps([dict(lm.identity), text_source(config).train_checksum()], sort_keys=True)


def _restore(
    config: TextConfig,
    lm: LanguageModel,
    phases: Sequence[Phase],
    starts: Sequence[int],
    origin: str,
) -> tuple[int, float, list[dict[str, float]]]:
    """Step to go on with, seconds before it, losses since the last line of the log."""
    if config.resume is None:
        return 0, 0.0, []
    state = checkpoint.load(Path(config.resume))
    done = 0 if state is None else int(state["step"])
    if rank() == 0:
        log = common.JsonlLog(Path(config.resume) / "metrics.jsonl")
        log.cut(lambda line: line.get("step", 0) <= done)
    if state is None:
        return 0, 0.0, []
    if state.get("settings") != common.config_to_json(common.portable(config)):
        raise checkpoint.CheckpointError(
            f"{config.resume}: the checkpoint was made with other settings than config.json has: "
            "put back the run's own files, or start a new run"
        )
    if state.get("origin") != origin:
        raise checkpoint.CheckpointError(
            f"{config.resume}: the run was begun with other weights of {lm.name} or other training "
            "examples than are at hand now: put them back, or start a new run"
        )
    load_trained_state(lm, state["model"])
    if phases:
        at = _phase_at(starts, done)
        if done > starts[at]:  # else the phase before has ended, and this one begins
            phases[at].update.load_state_dict(state["update"])
    return done, float(state["seconds"]), list(state["recent"])


def _anyone(stop: bool, lm: LanguageModel) -> bool:
    """Whether any process was told to stop, so that all do so together."""
    told = torch.tensor([float(stop)], device=next(lm.model.parameters()).device)
    average([told])
    return bool(told > 0)


def _val_batch(config: TextConfig, lm: LanguageModel) -> list[PromptBatch]:
    """Prompts of the split val, one by one."""
    source = text_source(config, split="val", seed=0)
    episodes = source.episodes(range(config.eval_prompts))
    return [prompts_of(config, lm, [episode], "query") for episode in episodes]


@torch.no_grad()
def _measure(
    lm: LanguageModel, val: Sequence[PromptBatch], step: int, folder: common.RunFolder, bar: Any
) -> None:
    """Log the mean loss on val."""
    lm.model.eval()
    losses = [float(loss_of(lm.model, None, batch)) for batch in val]
    lm.model.train()
    loss = math.fsum(losses) / len(losses)
    folder.log.write("eval", step=step, on="val", loss=loss)
    if not bar.disable:
        bar.write(f"step {step}, loss on val: {loss:.3f}")
