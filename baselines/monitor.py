"""Watching a meta-training: training curves, their mirrors, and numbers that are not finite.

Training curves are the accuracy on episodes of val, of unseen tasks and of other data sets; where
there is a finite number of training tasks, also on these tasks with other images (``seen``), so
that memorising shows.
"""

import contextlib
import dataclasses
import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import icl_bench
from baselines import checkpoint, common
from baselines.sequence import SequenceModel, split
from baselines.train_config import TrainConfig
from icl_bench.data.images import MissingDataError

# Episodes that training curves are measured on: beyond any frozen episode and frozen task. The
# images of `unseen` are those of the test split all the same: choose settings by `val` alone.
MONITOR_FROM = 2**24


def monitors(config: TrainConfig, device: torch.device) -> dict[str, icl_bench.EpisodeBatch]:
    """Batches that training curves are measured on: val, seen, unseen, other data sets unseen."""
    found = {}
    names = ("num_tasks", "bias", "single_task", "seed")
    tasks = {name: getattr(config, name) for name in names}
    wanted: list[tuple[str, str, dict[str, Any]]] = [
        ("val", config.meta_train, {"split": "val"}),
        ("seen", config.meta_train, {"split": "seen"} | tasks),
        ("unseen", config.meta_train, {"split": "unseen"}),
        *((env, env, {"split": "unseen"}) for env in icl_bench.cross(config.meta_train)),
    ]
    ids = np.arange(MONITOR_FROM, MONITOR_FROM + config.eval_episodes)
    for name, env, kwargs in wanted:
        if name == "seen" and config.num_tasks is None:
            continue
        try:
            made: Any = icl_bench.make(
                env,
                **kwargs,
                episode_length=config.episode_length,
                device=str(device),
                data_dir=config.data_dir,
            )
        except MissingDataError:
            continue
        found[name] = made.unwrapped.episodes(ids)
    return found


@torch.no_grad()
def measure(
    model: SequenceModel,
    monitors: dict[str, icl_bench.EpisodeBatch],
    step: int,
    folder: common.RunFolder | None,
    bar: Any,
) -> None:
    """Log the accuracy at every step of the episode, on each of the monitors' batches."""
    assert folder is not None
    model.eval()
    shown = []
    for name, batch in monitors.items():
        hits = [
            model(part.x, part.prev_y).argmax(dim=-1) == part.y
            for part in split(batch, max(1, len(batch) // 32))
        ]
        curve = torch.cat(hits).float().mean(dim=0)
        last = float(curve[-10:].mean())
        rounded = [round(value, 4) for value in curve.tolist()]
        folder.log.write("eval", step=step, on=name, last_ten=last, curve=rounded)
        shown.append(f"{name} {last:.1%}")
    if not bar.disable:
        bar.write(f"step {step}, last ten steps of an episode: {', '.join(shown)}")


def check_losses(losses: Float[Tensor, "N 5"], step: int, folder: common.RunFolder | None) -> None:
    """Raise unless the losses up to this step are finite; ``losses`` holds those of N steps.

    Raises:
        FloatingPointError: Naming the first step, the last checkpoint and what may help.
    """
    bad = (~torch.isfinite(losses)).any(dim=1).nonzero()
    if len(bad):
        every = len(losses)
        first = (step - 1) // every * every + int(bad[0]) + 1
        check_finite("the loss", {"loss": math.nan}, first, folder)


def check_finite(
    what: str, norms: Mapping[str, float], step: int, folder: common.RunFolder | None
) -> None:
    """Raise unless these norms are finite.

    Raises:
        FloatingPointError: Naming what it is, the step, the last checkpoint and what may help.
    """
    if all(math.isfinite(value) for value in norms.values()):
        return
    newest = folder.path / checkpoint.NEWEST if folder else None
    where = f"; {newest} is from before it" if newest and newest.exists() else ""
    raise FloatingPointError(
        f"{what} is not finite at step {step}{where}. "
        f"{folder.config.remedy if folder else 'Another setting'} may help, in a new run"
    )


class MirroredLog(common.JsonlLog):
    """``metrics.jsonl`` whose numbers go to a tracker as well.

    Args:
        path: The file.
        send: Takes names and numbers of a line, and the outer step.
    """

    def __init__(self, path: Path, send: Callable[[dict[str, float], int], None]) -> None:
        super().__init__(path)
        self._send = send
        self._step = 0

    def write(self, event: str, **values: Any) -> None:
        """Append one line; a line without a step is sent with that of the line before."""
        super().write(event, **values)
        self._step = values.pop("step", self._step)
        # eval/unseen/last_ten, result/MNIST-Proj-v0/accuracy, train/gradient_norm/embed
        about = [event, *(v for k, v in values.items() if k in ("on", "env", "task"))]
        self._send(_numbers("/".join(about), values), self._step)


def _numbers(prefix: str, values: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _numbers(f"{prefix}/{name}", value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}/{name}"] = value
    return found


_TRACKERS = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}


def check_tracker(config: common.BaseConfig) -> None:
    """Raise unless what ``--track`` names is installed.

    Raises:
        ValueError: With the command that installs it.
    """
    if config.track != "none":
        try:
            importlib.import_module(_TRACKERS[config.track])
        except ImportError as error:
            raise ValueError(
                f"--track {config.track} is not installed: pip install icl-bench[tracking]"
            ) from error


@contextlib.contextmanager
def tracked(config: common.BaseConfig, folder: common.RunFolder) -> Iterator[common.RunFolder]:
    """The run folder with a log that is mirrored to what ``--track`` names."""
    if config.track == "none":
        yield folder
        return
    module: Any = importlib.import_module(_TRACKERS[config.track])
    if config.track == "tensorboard":
        writer = module.SummaryWriter(str(folder.path / "tensorboard"))

        def send(numbers: dict[str, float], step: int) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)

        close = writer.close
    else:
        tracker = module.init(
            project="icl-bench",
            name=folder.path.name,
            id=folder.path.name,
            dir=str(folder.path),
            config=dataclasses.asdict(config),
            resume="allow",
        )

        def send(numbers: dict[str, float], step: int) -> None:
            tracker.log(numbers, step=step)

        close = tracker.finish
    try:
        yield dataclasses.replace(folder, log=MirroredLog(folder.log.path, send))
    finally:
        close()
