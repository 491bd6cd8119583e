"""Small ensembles that differ in all that their members may differ in."""

import dataclasses
from typing import Any

import torch

from baselines import sequence
from baselines.experiments.spec import Measure, Run, method_of, settings
from baselines.sequence import build_model

CPU = torch.device("cpu")
SIZES: dict[str, dict[str, Any]] = {
    "gpicl": {"width": 16, "layers": 2, "heads": 2},
    "mlp": {"width": 16},
    "outer-lstm": {"heads": 2, "size": 4},
    "lstm": {"hidden": 8},
}
SMALL: dict[str, Any] = {
    **{"env": "DigitsLow-Proj4-v0", "episode_length": 8, "batch_size": 6},
    **{"steps": 12, "log_every": 4, "eval_every": 6, "eval_episodes": 16, "checkpoint_every": 5},
    **{"optimizer": "adam", "num_tasks": 32, "bias": 0.0, "repeat_steps": (0, 0), "decay": "none"},
}
# Three members that differ in all that they may.
MEMBERS: tuple[dict[str, Any], ...] = (
    {"seed": 0, "lr": 3e-3, "eps": 1e-4, "momentum": 0.9, "weight_decay": 0.3, "clip": 0.05},
    {"seed": 1, "lr": 1e-3, "eps": 1e-2, "momentum": 0.5, "clip": 0.0, "num_tasks": None}
    | {"repeat": 0.8, "repeat_end": 0.2, "repeat_steps": (2, 10), "warmup": 5},
    {"seed": 1, "lr": 2e-3, "eps": 1e-3, "momentum": 0.8, "weight_decay": 0.1, "clip": 0.5}
    | {"env": "DigitsHigh-Proj4-v0", "decay": "cosine", "bias": 0.5, "single_task": 0.3},
)


def configs(baseline: str, **changes: Any) -> list[Any]:
    both = SMALL | SIZES[baseline]
    found = [settings(baseline, "cpu", **both | member | changes) for member in MEMBERS]
    return [dataclasses.replace(config, device="cpu") for config in found]


def runs(baseline: str = "gpicl", **changes: Any) -> list[Run]:
    measure = Measure(on=("unseen",), episodes=32)
    return [Run(baseline, config, measure) for config in configs(baseline, **changes)]


def built(baseline: str, config: Any) -> sequence.SequenceModel:
    method = method_of(baseline)
    assert method is not None
    return build_model(method, config)
