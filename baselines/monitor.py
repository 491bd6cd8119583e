"""Training curves: accuracy on episodes of val, of unseen tasks and of other data sets."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

import icl_bench
from baselines import common
from baselines.sequence import SequenceModel, split
from baselines.train_config import TrainConfig
from icl_bench.data.images import MissingDataError

# Episodes that training curves are measured on: beyond any frozen episode, so that nothing is
# chosen by looking at what is scored.
MONITOR_FROM = 2**24


def monitors(config: TrainConfig, device: torch.device) -> dict[str, icl_bench.EpisodeBatch]:
    """Batches that training curves are measured on: val, unseen, and other data sets unseen."""
    found = {}
    wanted: Sequence[tuple[str, str, Literal["val", "unseen"]]] = [
        ("val", config.meta_train, "val"),
        ("unseen", config.meta_train, "unseen"),
        *((env, env, "unseen") for env in icl_bench.cross(config.meta_train)),
    ]
    ids = np.arange(MONITOR_FROM, MONITOR_FROM + config.eval_episodes)
    for name, env, part in wanted:
        try:
            made: Any = icl_bench.make(
                env,
                split=part,
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
