"""The experiments by name: every module of ``figures`` has one."""

import functools
import importlib
from pathlib import Path

from baselines.experiments.spec import Experiment, ExperimentError, did_you_mean
from baselines.experiments.toml import read_toml

# In the order of the paper's figures.
NAMES = (
    "capacity",
    "curves",
    "phases",
    "bimodality",
    "state-size",
    "plateau",
    "batch-size",
    "bias",
    "embeddings",
    "sequence-length",
    "gradients",
    "optimizers",
    "weight-decay",
    "vsml-depth",
    "table2",
)


@functools.cache
def experiment(name: str) -> Experiment:
    """The experiment of this name, or of a TOML file.

    Raises:
        ExperimentError: For an unknown name, with what was probably meant, or a file that cannot
            be understood.
    """
    if name.endswith(".toml"):
        own = read_toml(Path(name))
        if own.name in NAMES:
            raise ExperimentError(f"{name}: the library has an experiment {own.name!r}: rename it")
        return own
    if name not in NAMES:
        raise ExperimentError(f"unknown experiment {name!r}{did_you_mean(name, NAMES)}")
    module = importlib.import_module(f"baselines.experiments.figures.{name.replace('-', '_')}")
    found: Experiment = module.EXPERIMENT
    return found
