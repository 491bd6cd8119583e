"""Runs of one shape as one: R small models keep a device busy that one leaves waiting.

Runs that differ in numbers only (``FREE``: seed, learning rate, tasks, …) are trained by one
program, see ``stack``. A member is what it would be alone up to float rounding: the same initial
weights and episodes, learning rates, clipping by its own norm, log, checkpoints. A member's
checkpoint is that of a single run, so that it can go on alone, and single runs together.

Members at the same outer step go on together. A kill while checkpoints are written leaves some one
ahead, which go back by one, or to the beginning if that was their first; members further apart,
because one is tried again after it has failed, are trained apart. With the same members the bits
are the same.

Left alone are runs of other models than ``STACKED``: ``nn.LSTM`` has no rule for vmap, VSML draws
random cells, MAML has another objective. So are runs with Muon, whose steps round to bf16, and
those that are evaluated for a board.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from baselines import checkpoint, common, train
from baselines.experiments.execute import compute, threads_of
from baselines.experiments.spec import NAMES_ONLY, ExperimentError, Run, method_of
from baselines.experiments.stack import KEPT, Member, train_together
from baselines.experiments.store import BusyError, Store
from baselines.sequence import MOST_KEPT, build_model
from baselines.train_config import TrainConfig
from icl_bench.registration import find_spec

# Baselines all of whose operations have a rule for vmap.
STACKED = ("gpicl", "mlp", "outer-lstm")

# Settings in which members may differ: they change neither shapes nor what is computed when.
FREE = NAMES_ONLY | {
    *("seed", "env", "suite", "num_tasks", "bias", "single_task"),
    *("repeat", "repeat_end", "repeat_steps"),
    *("lr", "warmup", "decay", "eps", "momentum", "weight_decay", "clip"),
}


def groups(runs: Sequence[Run], most: int) -> list[list[Run]]:
    """Runs of one shape together, at most so many, all in their order; the others alone.

    Args:
        runs: Any runs.
        most: Members of a group.

    Raises:
        ExperimentError: If ``most`` is below 1.
    """
    if most < 1:
        raise ExperimentError(f"--together must be 1 or more, not {most}")
    found: list[list[Run]] = []
    begun: dict[str, list[Run]] = {}
    room: dict[str, int] = {}
    for run in runs:
        shape = shape_of(run)
        if shape is not None and shape not in room:
            room[shape] = min(most, most_in_memory(run))
        group = None if shape is None else begun.get(shape)
        if group is None or shape is None or len(group) == room[shape]:
            group = []
            found.append(group)
            if shape is not None:
                begun[shape] = group
        group.append(run)
    return found


def shape_of(run: Run) -> str | None:
    """Name of what members of a group have in common; None if the run is to be left alone."""
    config = run.config
    if run.baseline not in STACKED or run.measure.suite or not isinstance(config, TrainConfig):
        return None
    if config.optimizer not in KEPT:
        return None
    spec = find_spec(config.meta_train)
    fixed = {k: v for k, v in dataclasses.asdict(config).items() if k not in FREE}
    return json.dumps([run.baseline, spec.num_features, spec.num_classes, fixed], sort_keys=True)


def most_in_memory(run: Run) -> int:
    """Members whose passes keep no more numbers than ``MOST_KEPT``, where one's are bounded."""
    method, config = method_of(run.baseline), run.config
    assert method is not None
    assert isinstance(config, TrainConfig)
    with torch.device("meta"):
        model = build_model(method, config)
    kept = model.kept_by_step(config.batch_size // config.accumulate) * config.episode_length
    return max(1, MOST_KEPT // kept) if kept else 2**30


def execute_together(
    runs: Sequence[Run], store: Store, threads: int = 1, device: str = "auto"
) -> dict[str, Exception]:
    """Compute a group, or what is left of it, as ``execute.execute`` computes one run.

    Args:
        runs: One of ``groups``.
        store: Where their folders are.
        threads: Of PyTorch.
        device: Where they are computed.

    Returns:
        Key of each run that failed → why; its folder has failed.txt, unless another process was
        computing it. All others are finished.

    Raises:
        KeyboardInterrupt: When interrupted; checkpoints are written.
    """
    began = time.monotonic()
    resolved = common.resolve_device(device)
    failed: dict[str, Exception] = {}
    members: list[tuple[Run, Member]] = []
    with contextlib.ExitStack() as held, threads_of(threads):
        for run in runs:
            try:
                store.run_folder(run.key).mkdir(parents=True, exist_ok=True)
                held.enter_context(store.worker(run.key))
                if store.is_finished(run.key):
                    continue
                path = store.prepare(run)
            except (BusyError, OSError) as error:
                failed[run.key] = error
            else:
                config = dataclasses.replace(run.config, device=device, resume=str(path))
                assert isinstance(config, TrainConfig)
                log = common.JsonlLog(path / "metrics.jsonl")
                folder = common.RunFolder(path, config, log, resolved)
                members.append((run, Member(config, folder)))
        bring_in_step([member for _, member in members])
        sources: dict[str, Any] = {}
        for run, member in members:
            with member.alone(), printing([member]):
                method, config = method_of(run.baseline), member.config
                assert method is not None
                model = build_model(method, config).to(resolved)
                stream = repr((config.meta_train, config.seed, config.meta_train_kwargs()))
                if stream not in sources:
                    sources[stream] = train.environment(config, resolved)
                member.begin(model, sources[stream])
        going = sorted((m for _, m in members if m.error is None), key=lambda m: m.step)
        for _, level in itertools.groupby(going, key=lambda m: m.step):
            same = list(level)
            try:
                with printing(same):
                    now, host = time.strftime("%Y-%m-%d %H:%M:%S"), socket.gethostname()
                    print(
                        f"{now}: process {os.getpid()} on {host}, {resolved}, threads: {threads}, "
                        f"together: {len(same)}"
                    )
                    train_together(same)
            except Exception as error:  # of all that are left
                for member in same:
                    if member.error is None:
                        member.fail(error)
        for run, member in members:
            if member.error is None:
                with member.alone(), printing([member]):
                    _finish(run, member, store, began, threads)
    return failed | {run.key: m.error for run, m in members if m.error is not None}


def bring_in_step(members: Sequence[Member]) -> None:
    """Let members whose checkpoints a kill left one ahead of the others' go back by one."""
    steps: dict[Path, int] = {}
    for member in members:
        with member.alone(), printing([member]):
            assert member.folder is not None
            state = checkpoint.load(member.folder.path)
            steps[member.folder.path] = 0 if state is None else state["step"]
    for path, step in steps.items():
        if step > min(steps.values()):
            checkpoint.back_to(path, min(steps.values()))


@contextlib.contextmanager
def printing(members: Sequence[Member]) -> Iterator[None]:
    """What is printed goes to the ``log.txt`` of each of these members."""
    with contextlib.ExitStack() as files:
        logs = _Logs(
            [
                files.enter_context((m.folder.path / "log.txt").open("a", encoding="utf-8"))
                for m in members
                if m.folder is not None
            ]
        )
        with contextlib.redirect_stdout(logs), contextlib.redirect_stderr(logs):
            yield


class _Logs(io.TextIOBase):
    def __init__(self, files: Sequence[TextIO]) -> None:
        self._files = files

    def write(self, text: str) -> int:
        for file in self._files:
            file.write(text)
            file.flush()
        return len(text)


def _finish(run: Run, member: Member, store: Store, began: float, threads: int) -> None:
    """Save and measure as ``execute`` does for a run whose outer steps are all done."""
    path = store.run_folder(run.key)
    state = checkpoint.load(path)
    assert state is not None
    rows = compute(run, path, str(member.config.device))
    store.finish(
        run.key,
        rows,
        seconds=round(time.monotonic() - began, 3),
        threads=threads,
        device=str(common.resolve_device(member.config.device)),
        torch=torch.__version__,
        together=state.get("together", 1),
    )
