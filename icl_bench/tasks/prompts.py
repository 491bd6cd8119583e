"""Token ids and loss masks of text prompts: demonstrations, query, options.

A prompt is a sequence of examples, the demonstrations and then the query. Each example is two
fields, a leading and a following one; the query's following field is scored or trained:

    direct    p(output | input): input, then output
    channel   p(input | output): output, then input

Each field is tokenized by itself together with the separator before it, and the ids are put one
after the other; no other token is added. Separators with newlines:

    before the first example    nothing
    before each later one       three newlines (two in the direct view, where its input is empty)
    between the two fields      one newline; nothing in free-form tasks, which have no options

A raw language model, one that was not meta-trained, gets one space in place of each: before each
later example and between the two fields.

Two limits. An example has at most 256 tokens, 2 of them left free: its input is cut on the right
to what its output leaves (at test: the longest of its options); outputs are never cut. The whole
prompt has at most min(256·k, 1024) tokens for k demonstrations: tokens are cut from the front of
the context, and never from the part that is scored.

The demonstrations' ids stand apart from those of query and options (``Prompt``), so that a scorer
can share them. Source: Min et al. 2022, "MetaICL", and its public code.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from icl_bench.episodes import TextEpisode, TextExample

EXAMPLE_LIMIT = 256  # Min et al. 2022, their code: tokens of an example
RESERVED = 2  # of them left free, once for the tokens that began and ended a text
TOTAL_LIMIT = 1024  # the context of GPT-2
NULL_INPUT = "N/A"  # what stands for no input in calibrated scores

View: TypeAlias = Literal["direct", "channel"]
Ids: TypeAlias = tuple[int, ...]
Tokenizer: TypeAlias = Callable[[str], list[int]]
TrainOn: TypeAlias = Literal["query", "demonstrations", "all"]


@dataclasses.dataclass(frozen=True)
class PromptFormat:
    """How examples become a prompt.

    Attributes:
        view: Which field leads, see the head of this module.
        separators: ``newlines``, or ``spaces`` for a raw language model.
        example_limit: Largest number of tokens of an example, two of them left free.
        total_limit: Largest number of tokens of a prompt.
    """

    view: View = "direct"
    separators: Literal["newlines", "spaces"] = "newlines"
    example_limit: int = EXAMPLE_LIMIT
    total_limit: int = TOTAL_LIMIT

    def limit(self, num_demonstrations: int) -> int:
        """Largest number of tokens of a prompt with k demonstrations; of one example if k = 0."""
        return min(self.example_limit * max(num_demonstrations, 1), self.total_limit)

    def before(self, example: TextExample, *, first: bool) -> str:
        """The separator in front of an example."""
        if first:
            return ""
        if self.separators == "spaces":
            return " "
        return "\n\n" if self.view == "direct" and not example.input else "\n\n\n"

    def between(self, example: TextExample) -> str:
        """The separator in front of an example's second field."""
        if self.separators == "spaces":
            return " "
        return "\n" if any(example.options) else ""


@dataclasses.dataclass(frozen=True)
class Demonstrations:
    """What stands before the query, the same for all queries of a task and a seed.

    Attributes:
        ids: Token ids, before anything is cut from their front.
        count: Number of demonstrations k.
        following: 1 on the ids of their following fields, 0 on all else.
    """

    ids: Ids
    count: int
    following: Ids


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A query with its candidates, after the same demonstrations.

    The sequence of candidate i is ``demonstrations + contexts[i] + scored[i]``, without its first
    ``cut(i)`` tokens. In the direct view all contexts are the same (the input) and the scored
    parts differ, in the channel view the other way round.

    Attributes:
        demonstrations: Ids of the demonstrations.
        contexts: For each candidate the query's ids that are not scored.
        scored: For each candidate the ids that are scored or trained, with their separator.
        limit: Largest number of tokens of a sequence.
    """

    demonstrations: Ids
    contexts: tuple[Ids, ...]
    scored: tuple[Ids, ...]
    limit: int

    def cut(self, candidate: int) -> int:
        """Number of tokens cut from the front of a candidate's context."""
        context, scored = self.contexts[candidate], self.scored[candidate]
        return max(0, len(self.demonstrations) + len(context) + len(scored) - self.limit)

    def context(self, candidate: int) -> Ids:
        """All ids before a candidate's scored part, cut to the limit."""
        return (self.demonstrations + self.contexts[candidate])[self.cut(candidate) :]

    def sequence(self, candidate: int = 0) -> tuple[Ids, Ids]:
        """Ids of a candidate's sequence, and its loss mask: 1 on the scored part, 0 before it."""
        context, scored = self.context(candidate), self.scored[candidate]
        return context + scored, (0,) * len(context) + (1,) * len(scored)


def encode_demonstrations(
    prompt_format: PromptFormat, tokenize: Tokenizer, examples: Sequence[TextExample]
) -> Demonstrations:
    """Token ids of the demonstrations, in their order."""
    ids: list[int] = []
    following: list[int] = []
    for i, example in enumerate(examples):
        given, (answer,) = _fields(
            prompt_format, tokenize, example, (example.output,), first=i == 0
        )
        fields = (given, answer) if prompt_format.view == "direct" else (answer, given)
        ids += fields[0] + fields[1]
        following += [0] * len(fields[0]) + [1] * len(fields[1])
    return Demonstrations(tuple(ids), len(examples), tuple(following))


def option_prompt(
    prompt_format: PromptFormat,
    tokenize: Tokenizer,
    demonstrations: Demonstrations,
    query: TextExample,
) -> Prompt:
    """The prompt of a query with one candidate per option; its output is not looked at.

    Raises:
        ValueError: If the query has no options, or an option leaves nothing to score or no room.
    """
    if not query.options:
        raise ValueError(f"a free-form example has no options to score: {query.input[:80]!r}")
    return _prompt(prompt_format, tokenize, demonstrations, query, query.options)


def training_prompt(
    prompt_format: PromptFormat,
    tokenize: Tokenizer,
    demonstrations: Demonstrations,
    query: TextExample,
) -> Prompt:
    """The prompt of a query whose only candidate is its output, as meta-training sees it.

    The input is cut by the length of the output alone, not of the longest option.

    Raises:
        ValueError: If the output leaves nothing to train on or no room.
    """
    return _prompt(prompt_format, tokenize, demonstrations, query, (query.output,))


def training_sequence(
    prompt_format: PromptFormat,
    tokenize: Tokenizer,
    episode: TextEpisode,
    train_on: TrainOn = "query",
) -> tuple[Ids, Ids]:
    """Ids of an episode with its query's output, and their loss mask.

    Args:
        prompt_format: How examples become a prompt.
        tokenize: Text to ids.
        episode: Demonstrations and a query.
        train_on: The mask is 1 on the query's scored part; on that of every demonstration, too
            (``demonstrations``); or everywhere (``all``). Min et al. 2022 take the first.

    Raises:
        ValueError: As ``training_prompt``.
    """
    demonstrations = encode_demonstrations(prompt_format, tokenize, episode.demonstrations)
    prompt = training_prompt(prompt_format, tokenize, demonstrations, episode.query)
    ids, mask = prompt.sequence()
    if train_on == "all":
        return ids, (1,) * len(ids)
    if train_on == "demonstrations":
        shown = demonstrations.following[prompt.cut(0) :]
        mask = shown + mask[len(shown) :]
    return ids, mask


def null_query(query: TextExample) -> TextExample:
    """The query with ``N/A`` for its input: its options' scores are subtracted to calibrate."""
    return dataclasses.replace(query, input=NULL_INPUT)


@dataclasses.dataclass(frozen=True)
class PromptBatch:
    """Sequences as tensors, padded on the right with id 0.

    Attributes:
        ids: Token ids.
        attention_mask: 1 on tokens, 0 on padding.
        loss_mask: 1 on tokens that are scored or trained, 0 on all else.
    """

    ids: Int[Tensor, "B T"]
    attention_mask: Int[Tensor, "B T"]
    loss_mask: Int[Tensor, "B T"]


def pad(
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]], device: torch.device | str = "cpu"
) -> PromptBatch:
    """Sequences (ids, loss mask), for instance of ``Prompt.sequence``, padded to the longest.

    Raises:
        ValueError: If there is no sequence.
    """
    if not sequences:
        raise ValueError("there is no sequence to pad")
    batch = torch.zeros(3, len(sequences), max(len(ids) for ids, _ in sequences), dtype=torch.int64)
    for row, (ids, mask) in enumerate(sequences):
        batch[:, row, : len(ids)] = torch.tensor([ids, [1] * len(ids), mask])
    return PromptBatch(*batch.to(device).unbind())


def byte_tokenizer(text: str) -> list[int]:
    """The bytes of the text in UTF-8, each an id in [0, 256)."""
    return list(text.encode())


def hugging_face_tokenizer(tokenizer: Any) -> Tokenizer:
    """A tokenizer of Hugging Face as a function, without special tokens.

    Raises:
        ValueError: If it has no tokens for the separators.
    """

    def tokenize(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    for separator in ("\n", "\n\n", "\n\n\n", " "):
        ids = tokenize(separator)
        if not ids or tokenizer.unk_token_id in ids:
            raise ValueError(
                f"{type(tokenizer).__name__} has no token for the separator {separator!r}: "
                "prompts need a tokenizer that keeps white space"
            )
    return tokenize


def _fields(
    prompt_format: PromptFormat,
    tokenize: Tokenizer,
    example: TextExample,
    outputs: Sequence[str],
    *,
    first: bool,
) -> tuple[list[int], list[list[int]]]:
    """Ids of the input, cut to what the longest output leaves, and of the outputs."""
    before = prompt_format.before(example, first=first)
    between = prompt_format.between(example)
    if prompt_format.view == "channel":
        before, between = between, before
    answers = [tokenize(between + output) for output in outputs]
    room = prompt_format.example_limit - RESERVED - max(map(len, answers))
    return tokenize(before + example.input)[: max(room, 0)], answers


def _prompt(
    prompt_format: PromptFormat,
    tokenize: Tokenizer,
    demonstrations: Demonstrations,
    query: TextExample,
    outputs: Sequence[str],
) -> Prompt:
    first = demonstrations.count == 0
    given, answers = _fields(prompt_format, tokenize, query, outputs, first=first)
    same = (tuple(given),) * len(answers)
    different = tuple(map(tuple, answers))
    direct = prompt_format.view == "direct"
    contexts, scored = (same, different) if direct else (different, same)
    limit = prompt_format.limit(demonstrations.count)
    for output, part in zip(outputs, scored, strict=True):
        if not part or len(part) > limit:
            raise ValueError(
                f"the scored part with the answer {output[:80]!r} has {len(part)} tokens, and must "
                f"have at least 1 and at most {limit}: input {query.input[:80]!r}"
            )
    return Prompt(demonstrations.ids, contexts, scored, limit)
