"""What an experiment is: runs that are named by their content, a summary, a plot and a verdict.

An experiment is plain Python: a function returns its runs, others make of their table what the
paper's figure shows. A run is the settings of a baseline and what is measured when it is trained.
Its key is a hash of both, so that the same run in two experiments is computed once, and a change
of any setting is another run.

The table of an experiment is tidy, one number per row:

    run           key
    baseline      module of the learner, ``gpicl``
    env           environment of meta-training
    seed          meta-training seed
    …             one column per label and per setting in which the runs differ
    source        ``train`` (log of the outer loop), ``eval`` (while training), ``final``
    on            ``train``, ``seen``, ``unseen``, ``val`` or the id of another environment
    outer_step    outer steps done
    t             step of the episode, −1 where the number is not of one step
    metric        ``loss``, ``accuracy``, ``gradient_norm/blocks.0``, …
    value         float64
"""

import dataclasses
import functools
import hashlib
import importlib
import itertools
import json
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from baselines import common
from baselines.experiments.findings import Verdict
from baselines.experiments.values import did_you_mean as did_you_mean
from baselines.experiments.values import fitted
from baselines.rebuild import BASELINES, SETTINGS_ALONE
from baselines.sequence import Method
from icl_bench.evaluation.protocol import evaluation_fingerprint
from icl_bench.registration import find_spec

# Raised when the same settings give other numbers than before.
FORMAT = 0

# Columns of the table that every row of a run has on its own, and the type where it is of numbers.
COLUMNS = {
    "source": None,
    "on": None,
    "outer_step": "int64",
    "t": "int32",
    "metric": None,
    "value": "float64",
}

# Settings that do not change a number.
NAMES_ONLY = frozenset({"preset", "track", *common.PLACES})

# Settings that the driver decides, and how.
NOT_CHANGED = {
    "preset": "choose one by --preset",
    "device": "choose one by --device",
    "runs": "choose a folder by --out",
    "resume": "runs go on by themselves",
    "track": "a baseline's own program can be tracked",
}

Label = str | int | float | None


class ExperimentError(ValueError):
    """An experiment that cannot be run as it was asked for, with the way out."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """What is measured of a learner when its meta-training is done: accuracy and loss at each t.

    Attributes:
        on: ``seen`` (training tasks, images of the test split), ``unseen`` (new tasks), ``val``, or
            the id of another environment (new tasks there).
        episodes: Episodes of each, of 16 per task where tasks are new: a multiple of 16.
        suite: Instead, run the whole program of the baseline: evaluation on its frozen episodes,
            results that can be handed in.
    """

    on: tuple[str, ...] = ("seen", "unseen")
    episodes: int = 512
    suite: bool = False


@dataclasses.dataclass(frozen=True)
class Run:
    """One meta-training and what is measured of it.

    Attributes:
        baseline: Name of the learner: a module of ``baselines`` that has METHOD, ``sgd``, or a
            reference of the library (``1-nn``).
        config: Its settings; places and device do not matter here.
        measure: What is measured.
        labels: Columns of the table besides the settings, for instance a name for the plot; no part
            of the key.
    """

    baseline: str
    config: common.RunConfig
    measure: Measure = Measure()
    labels: Mapping[str, Label] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def key(self) -> str:
        """SHA-256 of all that decides the numbers, 16 hexadecimal digits of it."""
        text = json.dumps(self.content(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def content(self) -> dict[str, Any]:
        """All that decides the numbers, as JSON."""
        settings = json.loads(common.config_to_json(common.portable(self.config)))
        return {
            "format": FORMAT,
            "baseline": self.baseline,
            "settings": {k: v for k, v in settings.items() if k not in NAMES_ONLY},
            "measure": dataclasses.asdict(self.measure) | {"on": list(self.measure.on)},
            "environments": self.fingerprints(),
        }

    def fingerprints(self) -> dict[str, str]:
        """Environments whose numbers enter, and what decides these (``EnvSource.fingerprint``)."""
        names = self.config.envs if self.measure.suite else [self.config.meta_train, *self.others()]
        where = self.config.data_dir  # features of the user's own may be there alone
        return {name: evaluation_fingerprint(name, data_dir=where) for name in names}

    def others(self) -> tuple[str, ...]:
        """Other environments that are measured on."""
        return tuple(n for n in self.measure.on if n not in ("seen", "unseen", "val"))

    def check(self) -> None:
        """Check settings and measure without computing anything.

        Raises:
            ExperimentError: Naming the run's setting, its value and what it may be.
        """
        try:
            self.config.check()
            if taken := COLUMNS.keys() & self.labels.keys():
                raise ValueError(f"a label {taken.pop()!r}, which is a column of the table already")
            for name in self.others():
                here, there = find_spec(self.config.meta_train), find_spec(name)
                size = (here.num_features, here.num_classes)
                common.require(
                    (there.num_features, there.num_classes) == size,
                    "measure.on",
                    name,
                    f"an environment of D, C = {size} as {here.id}",
                )
            episodes = self.measure.episodes
            common.require(
                episodes >= 16 and episodes % 16 == 0,
                "measure.episodes",
                episodes,
                "a positive multiple of 16",
            )
            finite = getattr(self.config, "num_tasks", None) is not None
            if not self.measure.suite and "seen" in self.measure.on and not finite:
                raise ValueError("measure.on has seen, which needs a finite num_tasks")
        except ValueError as error:
            raise ExperimentError(f"{self.baseline}, seed {self.config.seed}: {error}") from error


def method_of(baseline: str) -> Method | None:
    """What a baseline tells the outer loop; None of learners that are not meta-trained.

    Raises:
        ExperimentError: If there is no such baseline, naming those that there are.
    """
    if baseline in SETTINGS_ALONE:
        return None
    if baseline not in BASELINES:
        raise ExperimentError(
            f"unknown baseline {baseline!r}: there are {', '.join((*BASELINES, *SETTINGS_ALONE))}"
        )
    found: Method = importlib.import_module(BASELINES[baseline]).METHOD
    return found


def settings(baseline: str, preset: str, **changes: Any) -> common.RunConfig:
    """Settings of a baseline's preset with changes.

    Raises:
        ExperimentError: For an unknown preset or setting, with what was probably meant.
    """
    method = method_of(baseline)
    if method is None:
        presets: Mapping[str, Callable[[], Any]] = {preset: common.RunConfig}
        if baseline == "sgd":
            presets = importlib.import_module("baselines.sgd").PRESETS
    else:
        presets = method.presets
    if preset not in presets:
        raise ExperimentError(
            f"{baseline} has no preset {preset!r}: there are {', '.join(presets)}"
        )
    return change(presets[preset](), changes)


def change(config: common.RunConfig, changes: Mapping[str, Any]) -> common.RunConfig:
    """Settings with changes; a whole number where a float is meant becomes one.

    Raises:
        ExperimentError: For an unknown setting, with what was probably meant; for a value of
            another type; for a setting that says where a run is computed.
    """
    names = [field.name for field in dataclasses.fields(config)]
    kinds = typing.get_type_hints(type(config))
    fit = {}
    for name, value in changes.items():
        if name in NOT_CHANGED:
            raise ExperimentError(f"{name} is no setting of an experiment: {NOT_CHANGED[name]}")
        if name not in names:
            raise ExperimentError(f"no setting {name!r}{did_you_mean(name, names)}")
        try:
            fit[name] = fitted(value, kinds[name])
        except TypeError as error:
            raise ExperimentError(f"{name} must be {error}") from error
    return dataclasses.replace(config, **fit)


def grid(**axes: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Every combination of values, the last axis fastest."""
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A figure of the paper as data and three functions.

    Attributes:
        name: On the command line.
        figure: Of the paper, ``Figure 4``.
        title: One line for people.
        finding: What the paper reports.
        presets: ``paper`` and ``cpu``: the runs.
        summarise: Table → summary, one row per point of the figure.
        plot: (table, summary, file) → the figure.
        judge: (table, summary) → was the finding seen? None where there is nothing to look for.
        limits: What the preset ``cpu`` cannot show, for the documentation.
        check: Raises ValueError if nothing could be shown of a run with these settings.
        label: Labels that follow from a run's settings, after all changes of them.
        finish: (run folders in order, experiment's folder): what else is made, for instance boards.
    """

    name: str
    figure: str
    title: str
    finding: str
    presets: Mapping[str, Callable[[], Sequence[Run]]]
    summarise: Callable[[pd.DataFrame], pd.DataFrame]
    plot: Callable[[pd.DataFrame, pd.DataFrame, Path], None]
    judge: Callable[[pd.DataFrame, pd.DataFrame], Verdict | None]
    limits: str = ""
    check: Callable[[Run], None] | None = None
    label: Callable[[Run], Mapping[str, Label]] | None = None
    finish: Callable[[Sequence[Path], Path], None] | None = None

    def runs(
        self,
        preset: str,
        seeds: int | None = None,
        changes: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[Run]:
        """The runs of a preset, each once.

        Args:
            preset: Name.
            seeds: Only those with a seed below this number.
            changes: Settings that are changed in all runs that have them.

        Raises:
            ExperimentError: For an unknown preset or setting, settings out of range, or no runs.
        """
        if preset not in self.presets:
            raise ExperimentError(
                f"{self.name} has no preset {preset!r}: there are {', '.join(self.presets)}"
            )
        if seeds is not None and seeds < 1:
            raise ExperimentError(f"--seeds must be 1 or more, not {seeds}")
        found: dict[str, Run] = {}
        whole = self.presets[preset]()
        self._check_changes(whole, changes)
        for run in whole:
            if seeds is not None and run.config.seed >= seeds:
                continue
            has = {name: v for name, v in changes.items() if hasattr(run.config, name)}
            if has:
                run = dataclasses.replace(run, config=change(run.config, has))
            run.check()
            if self.check is not None:
                try:
                    self.check(run)
                except ValueError as error:
                    raise ExperimentError(f"{self.name}: {error}") from error
            if self.label is not None:
                run = dataclasses.replace(run, labels={**run.labels, **self.label(run)})
            found.setdefault(run.key, run)
        if not found:
            raise ExperimentError(
                f"{self.name}, preset {preset}: the grid has no runs"
                + (f" with a seed below {seeds}" if seeds is not None else "")
            )
        return list(found.values())

    def _check_changes(self, runs: Sequence[Run], changes: Mapping[str, Any]) -> None:
        """Raise unless every change is of a setting that runs have and in which they agree."""
        known = {f.name: None for run in runs for f in dataclasses.fields(run.config)}
        for name, value in changes.items():
            having = [run for run in runs if hasattr(run.config, name)]
            if not having:
                change(runs[0].config, {name: value})  # says what is wrong with it
                raise ExperimentError(f"no setting {name!r}{did_you_mean(name, list(known))}")
            if len({repr(getattr(run.config, name)) for run in having}) > 1:
                way = "--seeds takes fewer of them" if name == "seed" else "a TOML file can"
                raise ExperimentError(
                    f"{name} is what the runs of {self.name} differ in, it cannot be changed: {way}"
                )
