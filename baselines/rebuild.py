"""Learners from files of strangers: rebuilt from an allow-list, nothing of a file is executed.

A file says ``{"baseline": name, "config": settings}``: in the header of ``.safetensors``, whose
tensors are the weights, or alone in ``.json`` where there are no weights to hand in (references,
SGD, a language model as it was published).
"""

import dataclasses
import importlib
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from baselines import common
from baselines.language_model import (
    SMOLLM2,
    TINY,
    load_language_model,
    load_trained_state,
    trained_state,
)
from baselines.sequence import build_model
from baselines.text_run import text_learner
from icl_bench.data.text import DEMO_SEEDS
from icl_bench.evaluation.learner import REFERENCES, Learner
from icl_bench.evaluation.text_learners import TEXT_REFERENCES
from icl_bench.evaluation.text_protocol import TextLearner
from icl_bench.leaderboard.checks import MAX_CHECKPOINT_BYTES, MAX_JSON_BYTES
from icl_bench.leaderboard.formatting import clean_text
from icl_bench.registration import find_spec

# Name in a file → module. Of these METHOD builds the model, whose weights the file has.
BASELINES = {
    "gpicl": "baselines.gpicl",
    "lstm": "baselines.lstm",
    "outer-lstm": "baselines.outer_lstm",
    "vsml": "baselines.vsml",
    "vsml-nosym": "baselines.vsml_nosym",
    "vsml-clone": "baselines.vsml_clone",
    "mlp": "baselines.mlp",
    "maml": "baselines.maml",
    "protonet": "baselines.protonet",
}
# Settings alone say all of it.
SETTINGS_ALONE = (*REFERENCES, "sgd")
# Of language models: a name that begins with MAML is of the one, any other of the other.
MAML, MAML_MODULE, TEXT_MODULE = "maml-en-llm-", "baselines.maml_en_llm", "baselines.metaicl"
# Never a folder, a file or a name on a hub: a stranger must not choose what is opened.
LANGUAGE_MODELS = (TINY, SMOLLM2)

# What a learner may cost beyond what the shapes of its tensors show.
MAX_SETTINGS = {
    "layers": 256,
    "hidden": 4096,
    "neurons": 4096,
    "micro_ticks": 64,
    "inner_steps": 1000,
    "num_classes": 1000,
    "lora_rank": 64,
    "adapt": 64,
    "batch_tokens": 2**16,
}
MAX_STATE = 2**23  # numbers that one episode carries from step to step


class ReplayError(ValueError):
    """A learner that cannot be rebuilt or run, with the reason."""


@dataclasses.dataclass(frozen=True)
class LearnerFile:
    """What a file says about a learner; the settings are not checked yet.

    Attributes:
        path: The file.
        baseline: Name.
        settings: Settings.
        has_weights: Whether it is ``.safetensors``.
    """

    path: Path
    baseline: str
    settings: Mapping[str, Any]
    has_weights: bool

    def weights(self, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors.

        Raises:
            ValueError: If they differ in name, shape or type from the wanted ones, or are not
                finite.
        """
        found = load_file(self.path)
        kinds = [{(n, t.shape, t.dtype) for n, t in side.items()} for side in (wanted, found)]
        if differing := sorted({name for name, *_ in kinds[0] ^ kinds[1]}):
            raise ValueError(
                f"the tensors are not those of its settings: {len(differing)} differ in name, "
                f"shape or type, the first is {differing[0]!r}"
            )
        for name, tensor in found.items():
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"the weights {name!r} are not finite")
        return found


def read_learner(path: Path) -> LearnerFile:
    """Read what a file says about its learner.

    Raises:
        ReplayError: If it is too large, damaged, or says nothing.
    """
    has_weights = path.suffix == ".safetensors"
    limit = MAX_CHECKPOINT_BYTES if has_weights else MAX_JSON_BYTES
    try:
        if path.stat().st_size > limit:
            raise ValueError(f"more than {limit} bytes")
        if has_weights:
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get("learner", "{}")
        else:
            text = path.read_text(encoding="utf-8")
    except Exception as error:  # safetensors raises a type of its own for every damage
        raise ReplayError(f"{path} cannot be read as {path.suffix}: {_short(error)}") from error
    if len(text) > MAX_JSON_BYTES:
        raise ReplayError(f"{path}: a header of more than {MAX_JSON_BYTES} characters")
    try:
        about = json.loads(text)
        name, settings = about["baseline"], about["config"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ReplayError(f"{path} does not say what it is the learner of") from error
    if not isinstance(name, str) or not isinstance(settings, dict):
        raise ReplayError(f"{path}: baseline must be a name, config an object")
    return LearnerFile(path, name, settings, has_weights)


def load_learner(path: Path, device: str = "cpu") -> Learner:
    """The learner of a file, in evaluation mode.

    Raises:
        ReplayError: If the file is not of a known baseline, or its contents do not fit it.
    """
    return _rebuilt(path, lambda file: _learner(file, device))


def load_text_learner(
    path: Path, env: str, device: str = "cpu", data_dir: str | None = None
) -> TextLearner:
    """The learner of a file as it answers the queries of a text environment.

    Raises:
        ReplayError: If the file is not of a known baseline, its contents do not fit it, or a
            package is missing.
    """
    return _rebuilt(path, lambda file: _text_learner(file, env, device, data_dir))


_Rebuilt = typing.TypeVar("_Rebuilt")


def _rebuilt(path: Path, rebuild: Callable[[LearnerFile], _Rebuilt]) -> _Rebuilt:
    file = read_learner(path)
    try:
        return rebuild(file)
    except Exception as error:  # whatever settings that are not ours lead to
        raise ReplayError(f"{path}: {_short(error)}") from error


def _learner(file: LearnerFile, device: str) -> Learner:
    name = file.baseline
    known = BASELINES if file.has_weights else SETTINGS_ALONE
    if name not in known:
        kind = "with" if file.has_weights else "without"
        raise ValueError(f"baseline {name!r} is none of those {kind} weights: {', '.join(known)}")
    if name in REFERENCES:
        return REFERENCES[name](**_reference_settings(file.settings))
    if not file.has_weights:
        module = importlib.import_module("baselines.sgd")
        config = _config(module.Config, file.settings)
        spec = find_spec(config.meta_train)
        sgd: Any = module.SGD(config, spec.num_features, spec.num_classes)
        _check_state(sgd.state_size)
        return sgd
    module = importlib.import_module(BASELINES[name])
    config = _config(module.Config, file.settings)
    spec = find_spec(config.meta_train)
    with torch.device("meta"):  # shapes alone, whatever the settings claim
        shapes = module.METHOD.build(config, spec.num_features, spec.num_classes)
        _check_state(shapes.state_size(spec.episode_length))
        state = file.weights(shapes.state_dict())
    model = build_model(module.METHOD, config)
    model.load_state_dict(state)
    return model.to(device).eval()


def _check_state(size: int) -> None:
    if size > MAX_STATE:
        raise ValueError(f"a state of {size} numbers, at most {MAX_STATE} are replayed")


def _reference_settings(settings: Mapping[str, Any]) -> dict[str, int]:
    num_classes, most = settings.get("num_classes"), MAX_SETTINGS["num_classes"]
    if set(settings) != {"num_classes"} or type(num_classes) is not int:
        raise ValueError("the settings of a reference are num_classes, a whole number")
    if not 2 <= num_classes <= most:
        raise ValueError(f"num_classes must be from 2 to {most}, not {num_classes}")
    return {"num_classes": num_classes}


def _text_learner(file: LearnerFile, env: str, device: str, data_dir: str | None) -> TextLearner:
    name = file.baseline
    if name in TEXT_REFERENCES and not file.has_weights:
        if file.settings:
            raise ValueError("a reference on text has no settings")
        return TEXT_REFERENCES[name]()
    module = importlib.import_module(MAML_MODULE if name.startswith(MAML) else TEXT_MODULE)
    config = _config(module.Config, file.settings)
    if config.model not in LANGUAGE_MODELS:
        known = " and ".join(LANGUAGE_MODELS)
        raise ValueError(f"model {config.model!r} is not replayed, only {known} are")
    if not file.has_weights and (config.trains_tiny or config.start_from):
        raise ValueError("a model that was trained hands in its weights")
    # What is asked is the protocol's; folders are ours.
    config = dataclasses.replace(
        config, env=env, start_from=None, data_dir=data_dir, labels="true", demo_seeds=DEMO_SEEDS
    )
    method = module.method_of(config)
    if method.name != name:
        raise ValueError(f"the settings are those of {method.name!r}, not of {name!r}")
    if not file.has_weights and method.update is not None and config.steps:
        raise ValueError("a model that was trained hands in its weights")
    lm = load_language_model(
        config.model,
        device=device,
        second_order=method.second_order,
        lora_rank=config.lora_rank,
        seed=config.seed,
    )
    if file.has_weights:
        load_trained_state(lm, file.weights(trained_state(lm)))
    return text_learner(config, method, lm)


def _config(kind: type[common.Config], settings: Mapping[str, Any]) -> common.Config:
    """Settings of a baseline, checked, without what is only true of the sender's machine.

    Raises:
        ValueError: If one is unknown, of another type, out of range or beyond ``MAX_SETTINGS``.
    """
    hints = typing.get_type_hints(kind)
    for name, value in settings.items():
        if name in hints and not _fits(value, hints[name]):
            raise ValueError(f"{name} cannot be {value!r:.40}")
    # A setting that came later has the default that is what was done before.
    whole = json.dumps(dataclasses.asdict(kind()) | dict(settings))
    config = common.portable(common.config_from_json(kind, whole))
    for name, most in MAX_SETTINGS.items():
        if getattr(config, name, 0) > most:
            raise ValueError(f"{name} above {most}")
    config.check()
    return config


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value from JSON is of an annotated type; numbers must be finite."""
    of = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in of)
    if typing.get_origin(kind) is typing.Literal:
        return isinstance(value, str) and value in of
    if typing.get_origin(kind) is tuple:
        long_enough = isinstance(value, list) and (of[-1] is ... or len(value) == len(of))
        return long_enough and all(_fits(item, of[0]) for item in value)
    if kind is float:
        return type(value) in (int, float) and abs(value) < 2**63 and math.isfinite(value)
    if kind is int:
        return type(value) is int and abs(value) < 2**63
    return type(value) is kind


def _short(error: Exception) -> str:
    """What an error says, in one line that a terminal may show."""
    text = clean_text(str(error)) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."
