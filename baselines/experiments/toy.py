"""The toy size of the presets ``cpu``: phases and plateaus of meta-training within half a minute.

Digits 0 to 4 at 4×4 pixels (embedded, no download), D = 16, C = 5, T = 20; a Transformer with two
blocks of width 32. Its cross-dataset relative has the digits 5 to 9. The repeated-points curriculum
is kept at one fraction throughout: without it the plateau is longer than a laptop's patience.
"""

from typing import Any

from baselines import common
from baselines.experiments.spec import settings

ENV, OTHER = "DigitsLow-Proj4-v0", "DigitsHigh-Proj4-v0"

# Of the outer loop, for every learner.
SETTINGS: dict[str, Any] = {
    "env": ENV,
    "episode_length": 20,
    "batch_size": 32,
    "steps": 2500,
    "num_tasks": None,
    "bias": 0.0,
    "repeat": 0.5,
    "repeat_end": 0.5,
    "repeat_steps": (0, 0),
    "optimizer": "adam",
    "lr": 3e-3,
    "warmup": 0,
    "decay": "none",
    "clip": 0.0,
    "log_every": 25,
    "eval_every": 250,
    "eval_episodes": 128,
    "checkpoint_every": 500,
    "compile": False,
}
TRANSFORMER: dict[str, Any] = {"width": 32, "layers": 2, "heads": 2}

# A smaller share of repeated points: a plateau of a thousand steps or two, long enough to measure;
# 2^16 tasks as in the paper's Figures 7 to 9.
PLATEAU: dict[str, Any] = {"repeat": 0.25, "repeat_end": 0.25, "steps": 4000, "num_tasks": 2**16}


def toy(baseline: str = "gpicl", **changes: Any) -> common.RunConfig:
    """Settings of a learner at the toy size, with changes."""
    size = TRANSFORMER if baseline == "gpicl" else {}
    return settings(baseline, "cpu", **{**SETTINGS, **size, **changes})
