"""One run of an experiment: meta-train or go on, measure, note that it is done.

The same function for every engine, so that a run has the same bits wherever it is computed: its
folder, its settings and the number of threads decide them.
"""

import contextlib
import dataclasses
import os
import socket
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch.nn import functional

import icl_bench
from baselines import common, sgd, train
from baselines.experiments import references
from baselines.experiments.spec import Measure, Run, method_of
from baselines.experiments.store import Store
from baselines.experiments.tables import BY_TASK, last_steps
from baselines.sequence import build_model
from icl_bench.evaluation.learner import REFERENCES, Learner
from icl_bench.leaderboard.runs import load_run

# Episodes that are measured: beyond any frozen episode and frozen task.
MEASURE_FROM = 2**26

# Episodes of one forward pass.
PART = 64


def execute(run: Run, store: Store, threads: int = 1, device: str = "auto") -> None:
    """Compute a run, or what is left of it; nothing if it is finished.

    Args:
        run: The run.
        store: Where its folder is.
        threads: Of PyTorch; on a CPU the last bits depend on it.
        device: Where it is computed.

    Raises:
        BusyError: If another process computes it.
        KeyboardInterrupt: When interrupted; a checkpoint is written.
        Exception: Whatever made it fail; its folder then has ``failed.txt``.
    """
    with store.worker(run.key):
        if store.is_finished(run.key):
            return
        path = store.prepare(run)
        began = time.monotonic()
        where = str(common.resolve_device(device))
        with (
            (path / "log.txt").open("a", encoding="utf-8", buffering=1) as log,
            threads_of(threads),
        ):
            now, host = time.strftime("%Y-%m-%d %H:%M:%S"), socket.gethostname()
            log.write(f"{now}: process {os.getpid()} on {host}, {where}, threads: {threads}\n")
            try:
                with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                    rows = compute(run, path, device)
            except Exception:
                with contextlib.suppress(OSError):  # a full disk: the error itself is told
                    (path / "failed.txt").write_text(traceback.format_exc())
                raise
        store.finish(
            run.key,
            rows,
            seconds=round(time.monotonic() - began, 3),
            threads=threads,
            device=where,
            torch=torch.__version__,
        )


@contextlib.contextmanager
def threads_of(number: int) -> Iterator[None]:
    """PyTorch with this number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compute(run: Run, path: Path, device: str) -> pd.DataFrame:
    """The rows of a run, computed in its folder."""
    config = dataclasses.replace(run.config, device=device, resume=str(path))
    if run.measure.suite:
        return run_program(run.baseline, config, path)
    learner = learner_of(run.baseline, config, path)
    parts = [log_rows(common.JsonlLog(path / "metrics.jsonl"))]
    steps = getattr(config, "steps", 0)
    for on in run.measure.on:
        batch = measured_episodes(on, run.measure, config)
        accuracy, loss, by_task = measure(learner, batch)
        for metric, curve in (("accuracy", accuracy), ("loss", loss)):
            parts.append(rows_of("final", on, steps, np.arange(len(curve)), metric, curve))
        for task, value in by_task.items() if on not in ("seen", "val") else ():
            parts.append(rows_of("final", on, steps, -1, f"{BY_TASK}{task}", [value]))
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def learner_of(baseline: str, config: Any, path: Path) -> Learner:
    """The learner of these settings, meta-trained in the run folder where it is one that is."""
    resolved = common.resolve_device(config.device)
    spec = icl_bench.registry[config.meta_train]
    if baseline in REFERENCES:
        return REFERENCES[baseline](spec.num_classes)
    if baseline == "sgd":
        return sgd.SGD(config, spec.num_features, spec.num_classes)
    method = method_of(baseline)
    assert method is not None
    model = build_model(method, config).to(resolved)
    folder = common.RunFolder(path, config, common.JsonlLog(path / "metrics.jsonl"), resolved)
    train.train(config, model, train.environment(config, resolved), folder)
    common.save_learner(path / "learner.safetensors", model.state_dict(), method.name, config)
    return model.eval()


def measured_episodes(on: str, measure: Measure, config: Any) -> icl_bench.EpisodeBatch:
    """The episodes that a learner is measured on, none of which is trained on or ranked by."""
    source = measured_environment(on, config)
    found: icl_bench.EpisodeBatch = source.episodes(
        np.arange(MEASURE_FROM, MEASURE_FROM + measure.episodes)
    )
    return found


def measured_environment(on: str, config: Any) -> Any:
    """The unwrapped environment that a learner is measured on, see ``Measure``."""
    kwargs: dict[str, Any] = {"split": on if on in ("seen", "unseen", "val") else "unseen"}
    if on == "seen":
        names = ("num_tasks", "bias", "single_task", "seed")
        kwargs |= {name: getattr(config, name) for name in names}
    env = config.meta_train if on in ("seen", "unseen", "val") else on
    length = getattr(config, "episode_length", None)
    made: Any = icl_bench.make(
        env,
        **kwargs,
        **({} if length is None else {"episode_length": length}),
        device=str(common.resolve_device(config.device)),
        data_dir=config.data_dir,
    )
    return made.unwrapped


@torch.no_grad()
def measure(
    learner: Learner, batch: icl_bench.EpisodeBatch
) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"], dict[int, float]]:
    """Accuracy and cross entropy (nats) at each step of the episode, means over episodes.

    Also the accuracy at the end of the episode by task, the unit of chance of learners that have no
    seeds: tasks in the order of their first episodes.
    """
    hits, losses = [], []
    for start in range(0, len(batch), PART):
        x, prev_y, y = (v[start : start + PART] for v in (batch.x, batch.prev_y, batch.y))
        logits = learner(x, prev_y).float()
        hits.append(logits.argmax(dim=-1) == y)
        losses.append(
            functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(
                y.shape
            )
        )
    right = torch.cat(hits).double()
    accuracy, loss = (v.mean(dim=0).cpu().numpy() for v in (right, torch.cat(losses).double()))
    ends = pd.Series(right[:, -last_steps(right.shape[1]) :].mean(dim=1).cpu().numpy())
    tasks = ends.groupby(batch.task_id.cpu().numpy(), sort=False).mean()
    return accuracy, loss, dict(enumerate(tasks))


def run_program(baseline: str, config: Any, path: Path) -> pd.DataFrame:
    """The whole program of a baseline, with its evaluation on frozen episodes."""
    method = method_of(baseline)
    if method is not None:
        train.run(config, method)
    elif baseline == "sgd":
        sgd.run(config)
    else:
        references.run(baseline, config, path)
    parts = [log_rows(common.JsonlLog(path / "metrics.jsonl"))]
    for result in load_run(path).results:
        curve = result.correct.mean(axis=0)
        parts.append(rows_of("final", result.env, 0, np.arange(len(curve)), "accuracy", curve))
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def rows_of(source: str, on: str, outer_step: Any, t: Any, metric: str, value: Any) -> pd.DataFrame:
    """Rows of the table without what is the same for all of a run."""
    value = np.asarray(value, dtype=np.float64)
    columns = {"source": source, "on": on, "outer_step": outer_step, "t": t, "metric": metric}
    frame = pd.DataFrame(columns | {"value": value}, index=range(len(value)))
    return frame.astype({"outer_step": "int64", "t": "int32"})


def log_rows(log: common.JsonlLog) -> pd.DataFrame:
    """The rows of a run's log: losses and norms of the outer loop, and its measurements."""
    about: list[tuple[Any, ...]] = []
    for line in log.read():
        if line["event"] == "train":
            numbers = {k: v for k, v in line.items() if k not in NOT_METRICS}
            for name, value in numbers.items():
                values = value if isinstance(value, dict) else {"": value}
                for part, number in values.items():
                    metric = f"{name}/{part}" if part else name
                    about.append(("train", "train", line["step"], -1, metric, number))
        if line["event"] == "eval":
            for t, value in enumerate(line["curve"]):
                about.append(("eval", line["on"], line["step"], t, "accuracy", value))
    columns = ["source", "on", "outer_step", "t", "metric", "value"]
    kinds = {"outer_step": "int64", "t": "int32", "value": "float64"}
    return pd.DataFrame(about, columns=columns).astype(kinds)


# Of a line of the log: what says which line it is, and what is not the same when run again.
NOT_METRICS = frozenset({"event", "step", "wall_s", "seconds", "tokens_per_s"})
