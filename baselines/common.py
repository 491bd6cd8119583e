"""What every baseline shares: settings, the run folder and its log, the device, evaluation.

A run folder is ``runs/<env or suite>__<name>__<seed>__<utc>/``:

    config.json           the settings; ``--resume RUN`` goes on with exactly these
    meta.json             the method for a leaderboard, versions, commit, device, fingerprints
    metrics.jsonl         one JSON object per line; ``event`` says what kind
    learner.safetensors   the learner's weights; the settings are in the file's header
    learner.json          instead, where there are no weights: the settings alone
    results/*.parquet     one result per environment and split
    learning_curve.png    accuracy against the number of labelled examples
"""

import abc
import contextlib
import dataclasses
import json
import math
import platform
import subprocess
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file

import icl_bench
from baselines.jsonl_log import JsonlLog as JsonlLog
from baselines.process import terminated_as_interrupted, world_size
from icl_bench.data.cache import atomic_path
from icl_bench.data.images import MissingDataError
from icl_bench.envs.source import check_device
from icl_bench.evaluation.learner import Learner, LearnerError
from icl_bench.evaluation.metrics import diverged
from icl_bench.evaluation.protocol import EXTENDED_EPISODES, evaluation_fingerprint
from icl_bench.leaderboard.entry import EntryInfo
from icl_bench.leaderboard.runs import (
    load_run,
    new_run_folder,
    read_meta,
    result_path,
    write_meta,
)
from icl_bench.leaderboard.tables import board_from_runs
from icl_bench.registration import find_spec
from icl_bench.tasks.sampler import EPISODES_PER_TASK


@dataclasses.dataclass(frozen=True)
class BaseConfig(abc.ABC):
    """Settings of every baseline, of vectors and of text."""

    remedy: ClassVar[str] = "A smaller --lr, --clip 1 or --precision fp32"
    """What may help where numbers are not finite."""
    preset: str = "paper"
    """Named defaults; every other flag changes one of them."""
    env: str = "MNIST-Proj-v0"
    """Environment to meta-train on (where the method does); evaluated with its relatives."""
    seed: int = 0
    """Meta-training seed."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:N."""
    data_dir: str | None = None
    """Data folder that is looked in first; see also the variable ICL_BENCH_DATA."""
    runs: str = "runs"
    """Folder in which the run folder is made."""
    resume: str | None = None
    """Run folder to go on with, in its own settings; other settings are refused."""

    def check(self) -> None:
        """Check the values; ``cli.main`` does so.

        Raises:
            ValueError: Naming the flag, its value and what it may be.
        """
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        resolve_device(self.device)

    @abc.abstractmethod
    def fingerprints(self) -> dict[str, str]:
        """Environments to evaluate on, and what decides the numbers of their evaluation."""

    @abc.abstractmethod
    def evaluated_suite(self) -> str | None:
        """The suite that the run is evaluated for; None if for none."""


@dataclasses.dataclass(frozen=True)
class RunConfig(BaseConfig):
    """Settings of every baseline on vectors."""

    suite: str | None = None
    """Take the environments of this suite instead, to meta-train and to evaluate on."""
    episodes: int = 256
    """Frozen episodes per environment: 256 (ranked), or 1024 for the larger hand-in."""

    def check(self) -> None:
        """Check the values; ``cli.main`` does so."""
        super().check()
        find_spec(self.env)
        if self.suite is not None:
            icl_bench.suite(self.suite)
        whole_tasks = self.episodes % EPISODES_PER_TASK == 0
        require(
            whole_tasks and 2 * EPISODES_PER_TASK <= self.episodes <= EXTENDED_EPISODES,
            "episodes",
            self.episodes,
            f"a multiple of {EPISODES_PER_TASK} from {2 * EPISODES_PER_TASK} to "
            f"{EXTENDED_EPISODES}",
        )

    def fingerprints(self) -> dict[str, str]:
        """Environments to evaluate on, and what decides the numbers of their evaluation.

        Without those that lack the features of the user's own network, which decide them.
        """
        found = {}
        for env in self.envs:
            with contextlib.suppress(MissingDataError):
                found[env] = evaluation_fingerprint(env, data_dir=self.data_dir)
        return found

    def evaluated_suite(self) -> str | None:
        """The suite that the run is evaluated for; None if for none."""
        return self.suite

    @property
    def meta_train(self) -> str:
        """The environment to meta-train on: the suite's, or ``env``."""
        return self.env if self.suite is None else icl_bench.suite(self.suite).meta_train

    @property
    def envs(self) -> tuple[str, ...]:
        """Environments to evaluate on: the suite's, or ``env`` and its cross-dataset relatives."""
        if self.suite is not None:
            return icl_bench.suite(self.suite).envs
        return (self.env, *icl_bench.cross(self.env))

    def evaluation_kwargs(self) -> dict[str, Any]:
        """Arguments of ``make`` for the evaluation, where it is not the standard one."""
        return {}


# Settings that say where a run is computed, not what: they may change when it is resumed.
PLACES = frozenset({"resume", "runs", "data_dir", "device"})

Config = typing.TypeVar("Config", bound=BaseConfig)


def portable(config: Config) -> Config:
    """The same settings without what is only true of one machine or folder."""
    default = type(config)()
    return dataclasses.replace(config, **{name: getattr(default, name) for name in PLACES})


def require(holds: bool, name: str, value: object, wanted: str) -> None:
    """Raise a ValueError that names a flag, its value and what it must be, unless it holds."""
    if not holds:
        raise ValueError(f"--{name.replace('_', '-')} must be {wanted}, not {value}")


def positive(value: float | int) -> bool:
    """Whether a number is finite and above 0."""
    return math.isfinite(value) and value > 0


def resolve_device(name: str) -> torch.device:
    """The device that a setting names.

    Raises:
        ValueError: If it is no device, or one that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return check_device(name)


def config_to_json(config: BaseConfig) -> str:
    """Settings as JSON.

    Raises:
        ValueError: If they would not come back the same.
    """
    text = json.dumps(dataclasses.asdict(config), indent=2, allow_nan=False) + "\n"
    if config_from_json(type(config), text) != config:
        raise ValueError("the settings do not survive a round trip through JSON")
    return text


def config_from_json(kind: type[Config], text: str) -> Config:
    """Settings from JSON; lists come back as tuples.

    Raises:
        ValueError: If fields are missing or unknown, naming them.
    """
    values = json.loads(text)
    names = {field.name for field in dataclasses.fields(kind)}
    if set(values) != names:
        raise ValueError(f"settings differ in {', '.join(sorted(set(values) ^ names))}")
    lists: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in values.items()
    }
    return kind(**lists)


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """An open run.

    Attributes:
        path: The folder.
        config: The settings it was begun with.
        log: Its log.
        device: Where it is computed.
    """

    path: Path
    config: BaseConfig
    log: JsonlLog
    device: torch.device


@contextlib.contextmanager
def open_run(config: BaseConfig, entry: EntryInfo, program: str) -> Iterator[RunFolder]:
    """Make the run folder, or open the one to resume; an interrupt says how to go on.

    Writes ``config.json`` and ``meta.json``, and an event ``open`` to the log; of a resumed run,
    says what has changed since.

    Args:
        config: The settings; of a resumed run those that it was begun with.
        entry: About the method.
        program: How it is run, for instance ``python -m baselines.sgd``.

    Raises:
        FileExistsError: If the folder exists already.
        ValueError: If the run to resume is about environments of another version.
    """
    if config.resume is None:
        place = getattr(config, "suite", None) or config.env  # text has no suite to train on
        path = new_run_folder(config.runs, place, entry.name, config.seed)
        with atomic_path(path / "config.json") as temporary:
            temporary.write_text(config_to_json(config))
    else:
        path = Path(config.resume)
    run = RunFolder(path, config, JsonlLog(path / "metrics.jsonl"), resolve_device(config.device))
    try:
        with terminated_as_interrupted():
            _write_meta(run, entry)
            yield run
    except KeyboardInterrupt:
        print(f"\ninterrupted; go on with: {program} --resume {path}", file=sys.stderr)
        raise


def _write_meta(run: RunFolder, entry: EntryInfo) -> None:
    old = read_meta(run.path) if (run.path / "meta.json").exists() else None
    fingerprints = run.config.fingerprints()
    if old is not None and (before := old.get("fingerprints") or {}) != fingerprints:
        envs = before.keys() | fingerprints.keys()
        other = sorted(env for env in envs if before.get(env) != fingerprints.get(env))
        raise ValueError(
            f"{run.path} was begun with environments of another version, or with features of other "
            f"networks at hand ({', '.join(other)}): start a new run"
        )
    more = {
        "commit": _commit(),
        "device": str(run.device),
        "threads": torch.get_num_threads(),
        "processes": world_size(),
    }
    write_meta(run.path, entry, run.config.evaluated_suite(), fingerprints, **more)
    run.log.cut(lambda _: True)
    run.log.write("open", resumed=run.config.resume is not None, **more)
    new = read_meta(run.path)
    for key in ("versions", *more):
        if old is not None and old.get(key) != new[key]:
            print(
                f"warning: {key} changed since {run.path} was begun, so that numbers may differ "
                f"in their last digits: {old.get(key)} → {new[key]}",
                file=sys.stderr,
            )


def envs_at_hand(config: RunConfig) -> tuple[str, ...]:
    """The environments to evaluate on whose data are at hand; names the others on stderr.

    Raises:
        MissingDataError: If there is none.
    """
    found = []
    for env in config.envs:
        try:
            kwargs = config.evaluation_kwargs()
            icl_bench.make(env, split="unseen", data_dir=config.data_dir, **kwargs)
        except MissingDataError as error:
            print(f"skipped {env}: {error}", file=sys.stderr)
        else:
            found.append(env)
    if not found:
        raise MissingDataError("no data set was at hand; `icl-bench download` gets them")
    return tuple(found)


def entry(config: BaseConfig, **fields: Any) -> EntryInfo:
    """What the run folder says about a method, filled up for one that meta-trains nothing."""
    device = resolve_device(config.device)
    gpu = device.type == "cuda"
    common: dict[str, Any] = {
        "authors": "icl_bench",
        "deterministic": False,
        "meta_train": None,
        "meta_train_kwargs": {},
        "seed": config.seed,
        "parameters": 0,
        "hardware": torch.cuda.get_device_name(device) if gpu else f"CPU ({platform.machine()})",
        "gpu_hours": 0.0,
        "external_data": "none",
    }
    return EntryInfo(**common | fields)


def save_learner(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    baseline: str,
    config: BaseConfig,
    **more: Any,
) -> None:
    """Write weights, with the baseline's name, settings and more in the header; atomic."""
    # One key: safetensors writes several in any order.
    settings = json.loads(config_to_json(portable(config)))
    header = {"learner": json.dumps({"baseline": baseline, "config": settings} | more, indent=2)}
    with atomic_path(path) as temporary:
        save_file(dict(tensors), temporary, metadata=header)


def evaluate_run(run: RunFolder, learner: Learner, envs: Sequence[str]) -> list[icl_bench.Result]:
    """Evaluate on unseen tasks of these environments; what is done already is kept.

    Writes each result as soon as it is there, then ``learning_curve.png``, and prints the
    accuracies at the last step with their 95 % intervals (bootstrap clustered on tasks).
    """
    from icl_bench.evaluation.plots import plot_learning_curves

    done = {result.env for result in load_run(run.path).results}
    run.log.cut(lambda line: line["event"] != "result" or line["env"] in done)
    for env in envs:
        if env in done:
            continue
        try:
            result = icl_bench.evaluate(
                learner,
                env,
                num_episodes=run.config.episodes,
                progress=True,
                device=str(run.device),
                data_dir=run.config.data_dir,
                **run.config.evaluation_kwargs(),
            )
        except LearnerError as error:  # one that has diverged, for instance
            raise LearnerError(f"{env}: {error}") from error
        lost = diverged(result)
        if lost > 0:
            print(
                f"warning: on {env} it diverged in {lost:.1%} of the episodes: mean loss more than "
                "twice that of guessing",
                file=sys.stderr,
            )
        # The line first: one without its result is cut when the run is resumed.
        run.log.write("result", env=env, split="unseen", accuracy=result.accuracy(), diverged=lost)
        result.save(result_path(run.path, env, "unseen"))
    whole = load_run(run.path)
    found = {result.env: [result] for result in whole.results if result.split == "unseen"}
    by_env = {env: found[env] for env in run.config.envs if env in found}
    plot_learning_curves({whole.entry.title: by_env}, run.path / "learning_curve.png")
    print(board_from_runs([whole], run.config.suite))
    print(f"\n{run.path}")
    return list(whole.results)


def _commit() -> str | None:
    """Commit of the checkout that runs, with ``-dirty`` where files differ; None outside of one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        made = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return made.stdout.strip()


def add_gpu_hours(run: RunFolder, entry: EntryInfo, hours: float) -> None:
    """Note in ``meta.json`` what meta-training has taken."""
    add_meta(run, entry=dataclasses.replace(entry, gpu_hours=round(hours, 4)).to_dict())


def add_meta(run: RunFolder, **more: Any) -> None:
    """Note something in ``meta.json``."""
    path, document = run.path / "meta.json", read_meta(run.path) | more
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
