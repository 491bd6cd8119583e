"""Scores of a text prompt's options by a causal language model.

The score of an option is the mean negative log-likelihood, in nats, of its prompt's scored tokens,
each given all tokens before it; the smallest wins, ties go to the first. (A sequence's very first
token is given nothing and is never counted.)

What is computed, compared with one forward pass for each option of each query:

    demonstrations  once for all queries and options, as the keys and values of every layer
    a context       that several options share (the input of the direct view): once for them all
    scored tokens   for each option, batched over options and queries of similar length

A prompt over its limit loses tokens at its front, hence its positions and all keys and values
change: it is computed without the shared demonstrations. So is every prompt of a model that keeps
anything but plain keys and values (a sliding window, a recurrent state). The scores are the same up
to rounding, and the batches depend on the prompts alone: a resumed run ends with the same bits.
"""

import copy
import dataclasses
import inspect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from icl_bench.evaluation.journal import ScoreJournal
from icl_bench.tasks.prompts import Ids, Prompt

# Rows x tokens of a batch, shared tokens included: bounds the memory of its keys and values, which
# for GPT-2 Medium in fp32 is 16,384 x 0.2 MB = 3.2 GB.
BATCH_TOKENS = 16_384


def score_options(
    model: nn.Module,
    prompts: Sequence[Prompt],
    *,
    journal: ScoreJournal | None = None,
    task: str = "",
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    bf16: bool = True,
    progress: bool = False,
) -> list[Float[np.ndarray, " _"]]:
    """Scores of the options of every prompt, in nats; one array per prompt.

    Args:
        model: A causal language model of Hugging Face, in eval mode.
        prompts: One per query, mostly of one task and one demonstration seed.
        journal: Where finished queries are kept; those in it are not computed again.
        task: The task's name in the journal and on the progress bar.
        seed: The demonstration seed in the journal.
        batch_tokens: Largest number of rows x tokens of a batch, if it has more than one row.
        bf16: Whether to compute in bfloat16 (autocast) on a GPU; a CPU computes as the model is.
        progress: Show a progress bar with the time left, on a terminal.

    Raises:
        ValueError: If the model is in training mode, a prompt does not fit the model, a score is
            not finite, or the journal holds scores of other prompts.
    """
    from tqdm import tqdm

    if model.training:
        raise ValueError("the model is in training mode, where dropout is random: call eval()")
    kept = {i: journal and journal.get(task, seed, i, p) for i, p in enumerate(prompts)}
    found = {i: scores for i, scores in kept.items() if scores is not None}
    device = next(model.parameters()).device.type
    bar = tqdm(
        total=len(prompts),
        initial=len(found),
        desc=f"{task} seed {seed}",
        unit="query",
        disable=None if progress else True,
    )
    cuda = device == "cuda"
    with bar, torch.inference_mode(), torch.autocast(device, torch.bfloat16, bf16 and cuda):
        engine = _Engine(model, batch_tokens)
        for chunk in _chunks(prompts, batch_tokens):
            missing = [i for i in chunk if i not in found]
            if not missing:
                continue
            # All of the chunk, finished or not: other batches would round otherwise.
            new = dict(zip(chunk, engine.score([prompts[i] for i in chunk]), strict=True))
            for i in missing:
                if not np.isfinite(new[i]).all():
                    raise ValueError(f"query {i} of {task!r} has scores {new[i]}")
                if journal is not None:
                    journal.put(task, seed, i, prompts[i], new[i])
                found[i] = new[i]
            bar.update(len(missing))
    return [np.array(found[i]) for i in range(len(prompts))]


def predictions(scores: Sequence[Float[np.ndarray, " _"]]) -> Int[np.ndarray, " Q"]:
    """Index of the option with the smallest score, the first of several."""
    return np.array([int(row.argmin()) for row in scores], dtype=np.int64)


def calibrated(
    scores: Sequence[Float[np.ndarray, " _"]], null_scores: Sequence[Float[np.ndarray, " _"]]
) -> list[Float[np.ndarray, " _"]]:
    """Scores less those of the same options with the input ``N/A`` (``prompts.null_query``)."""
    return [row - null for row, null in zip(scores, null_scores, strict=True)]


@dataclasses.dataclass(frozen=True)
class _Past:
    """What rows have read: keys and values, which of their columns are tokens, how many those are.

    The cache is None where nothing has been read.
    """

    cache: Any
    mask: Bool[Tensor, "B L"]
    lengths: Int[Tensor, " B"]


class _Engine:
    """A model and the demonstrations that it read last."""

    def __init__(self, model: nn.Module, batch_tokens: int) -> None:
        self.model, self.batch_tokens = model, batch_tokens
        self.device = next(model.parameters()).device
        self.nothing = _Past(
            None,
            torch.zeros(1, 0, dtype=torch.bool, device=self.device),
            torch.zeros(1, dtype=torch.int64, device=self.device),
        )
        self.stem: tuple[Ids, _Past] = ((), self.nothing)
        self.keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        _, probe = self._read(self.nothing, [0], [(0,)])
        layers = getattr(probe.cache, "layers", ())
        self.shares = bool(layers) and {type(layer).__name__ for layer in layers} == {
            "DynamicLayer"
        }

    def score(self, prompts: Sequence[Prompt]) -> list[list[float]]:
        """Scores of the options of all prompts of a chunk."""
        # Equal sequences are one, so that equal options tie exactly.
        jobs: dict[tuple[Ids, Ids, int], float] = {}
        names: list[list[tuple[Ids, Ids, int]]] = []
        for prompt in prompts:
            row = []
            for candidate, scored in enumerate(prompt.scored):
                whole = self.shares and not prompt.cut(candidate)
                # Without the last token, which predicts the next one if there is no context.
                stem = prompt.demonstrations[:-1] if whole else ()
                ids = prompt.context(candidate) + scored
                row.append((stem, ids, min(len(scored), len(ids) - 1)))
            names.append(row)
            jobs |= dict.fromkeys(row, 0.0)
        self._check(jobs)
        for stem in dict.fromkeys(stem for stem, _, _ in jobs):
            group = [(ids[len(stem) :], count) for other, ids, count in jobs if other == stem]
            for (rest, count), score in self._group(stem, group).items():
                jobs[stem, stem + rest, count] = score
        return [[jobs[name] for name in row] for row in names]

    def _check(self, jobs: Mapping[tuple[Ids, Ids, int], float]) -> None:
        config: Any = self.model.config
        longest = max(len(ids) for _, ids, _ in jobs)
        room = getattr(config, "max_position_embeddings", None)
        if room is not None and longest > room:
            raise ValueError(
                f"a prompt has {longest} tokens and the model reads at most {room}: take fewer "
                "demonstrations, or lower the limits of PromptFormat"
            )
        largest, known = max(max(ids) for _, ids, _ in jobs), config.vocab_size
        if largest >= known:
            raise ValueError(
                f"a prompt has the token id {largest} and the model knows {known}: the tokenizer "
                "is not the model's"
            )
        if not all(count for _, _, count in jobs):
            raise ValueError("a sequence of one token has nothing to score: its input is empty")

    def _group(self, stem: Ids, jobs: Sequence[tuple[Ids, int]]) -> dict[tuple[Ids, int], float]:
        """Scores of sequences (ids after the stem, number of scored ones) that share a stem."""
        if stem and stem != self.stem[0]:
            self.stem = ((), self.nothing)  # frees the memory of the last one
            self.stem = (stem, self._read(self.nothing, [0], [stem])[1])
        past = self.stem[1] if stem else self.nothing
        # A body that several sequences begin with is read once for them all; what is left begins
        # with the token that predicts the first scored one.
        bodies = [ids[: len(ids) - count - 1] for ids, count in jobs]
        uses = Counter(body for body in bodies if self.shares and body)
        shared = [body for body in uses if uses[body] > 1]
        alone = [
            (0, ids, count)
            for body, (ids, count) in zip(bodies, jobs, strict=True)
            if uses[body] < 2
        ]
        scores = self._tails(past, alone, ())
        for chosen in self._batches(shared, past):
            read = [shared[i] for i in chosen]
            _, after = self._read(past, [0] * len(read), read)
            parents = {body: row for row, body in enumerate(read)}
            tails = [
                (parents[body], ids, count)
                for body, (ids, count) in zip(bodies, jobs, strict=True)
                if body in parents
            ]
            scores |= self._tails(after, tails, read)
        return scores

    def _tails(
        self, past: _Past, rows: Sequence[tuple[int, Ids, int]], bodies: Sequence[Ids]
    ) -> dict[tuple[Ids, int], float]:
        """Scores of rows (row of the past, ids, number of scored ones); bodies are read."""
        scores = {}
        tails = [ids[len(bodies[parent]) if bodies else 0 :] for parent, ids, _ in rows]
        for chosen in self._batches(tails, past):
            fed = [tails[i][:-1] for i in chosen]  # nothing is asked of the last token
            counts = [rows[i][2] for i in chosen]
            width = max(map(len, fed))
            keep = width - min(len(f) - n for f, n in zip(fed, counts, strict=True))
            logits, _ = self._read(past, [rows[i][0] for i in chosen], fed, keep)
            skipped = width - logits.shape[1]
            losses = []
            for row, i in enumerate(chosen):  # one at a time: a vocabulary takes memory
                end = len(fed[row]) - skipped
                target = torch.tensor(tails[i][-counts[row] :], device=self.device)
                losses.append(
                    functional.cross_entropy(logits[row, end - counts[row] : end].float(), target)
                )
            for i, score in zip(chosen, torch.stack(losses).tolist(), strict=True):
                scores[rows[i][1:]] = score
        return scores

    def _batches(self, rows: Sequence[Ids], past: _Past) -> Iterator[list[int]]:
        lengths = [len(row) for row in rows]
        return _batches(lengths, [1] * len(rows), past.mask.shape[1], self.batch_tokens)

    def _read(
        self, past: _Past, parents: list[int], rows: Sequence[Ids], keep: int | None = None
    ) -> tuple[Float[Tensor, "B K V"], _Past]:
        """Read rows, each after a row of the past; padding stands between them and later ones.

        Logits of the last ``keep`` columns, or of all where the model cannot leave any out. None
        reads for what comes after: the logits are of no use.
        """
        device = self.device
        parent, width = torch.tensor(parents, device=device), max(map(len, rows))
        counts = torch.tensor([len(row) for row in rows], device=device)
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
        steps = torch.arange(width, device=device).minimum(counts[:, None] - 1)
        mask = torch.arange(width, device=device) < counts[:, None]
        mask = torch.cat([past.mask[parent], mask], dim=1)
        cache = None
        if past.cache is not None:  # a copy of the layers, whose tensors are replaced, not changed
            cache = copy.copy(past.cache)
            cache.layers = [copy.copy(layer) for layer in past.cache.layers]
            cache.batch_select_indices(parent)
        output = self.model(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=past.lengths[parent][:, None] + steps,
            past_key_values=cache,
            use_cache=keep is None or cache is not None,
            **({"logits_to_keep": keep or 1} if self.keeps_logits else {}),
        )
        after = _Past(output.past_key_values, mask, past.lengths[parent] + counts)
        return output.logits, after


def _batches(
    lengths: Sequence[int], rows: Sequence[int], before: int, batch_tokens: int
) -> Iterator[list[int]]:
    """Indices of items of similar length, whose rows have at most so many tokens together."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        total = sum(rows[j] for j in batch) + rows[i]
        if batch and total * (before + lengths[i]) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _chunks(prompts: Sequence[Prompt], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of prompts of similar length after the same demonstrations, computed together."""
    groups: dict[Ids, list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(prompt.demonstrations, []).append(i)
    for group in groups.values():
        rows = [len(prompts[i].scored) for i in group]
        lengths = [len(prompts[i].sequence()[0]) for i in group]
        for chosen in _batches(lengths, rows, 0, batch_tokens):
            yield [group[j] for j in chosen]
