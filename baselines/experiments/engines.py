"""Who computes the runs: this process, or a pool of processes on this machine.

An engine takes runs and gives an outcome as soon as one has ended. A run that fails does not stop
the others; a worker that dies is replaced and its run tried again, from its checkpoint. Runs of one
shape can be trained as one (``ensemble``): such a group goes to one worker.
"""

import abc
import collections
import contextlib
import dataclasses
import errno
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from baselines.experiments.ensemble import execute_together, groups
from baselines.experiments.execute import execute
from baselines.experiments.spec import ExperimentError, Run
from baselines.experiments.store import Store

# Seconds that workers have, once told to stop, to end a step and write a checkpoint.
GRACE = 30.0

# Libraries read their number of threads when they are loaded.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run has ended.

    Attributes:
        run: The run.
        error: None if it is finished; else the last line of what went wrong.
        full: Whether it went wrong because the disk is full.
    """

    run: Run
    error: str | None = None
    full: bool = False


@dataclasses.dataclass(frozen=True)
class Engine(abc.ABC):
    """Computes runs.

    Attributes:
        threads: PyTorch's threads of one run.
        device: Where runs are computed.
        together: Runs of one shape that are trained as one, at most.
    """

    threads: int = 1
    device: str = "auto"
    together: int = 1

    def check(self, store: Store) -> None:
        """Raise if the engine cannot work here, before any run begins.

        Raises:
            ExperimentError: With the way out.
        """
        if self.threads < 1:
            raise ExperimentError(f"--threads must be 1 or more, not {self.threads}")
        groups([], self.together)

    def at_once(self) -> int:
        """How many runs are under way at the same time, at most; after ``check``."""
        return self.together

    @abc.abstractmethod
    def outcomes(self, runs: Sequence[Run], store: Store) -> Generator[Outcome, None, None]:
        """Compute these runs, in any order; closing the iterator ends what is under way.

        What is under way then leaves a checkpoint to go on from.
        """

    def close(self) -> None:  # noqa: B027 (most engines hold nothing)
        """Give back what is held between experiments."""


def outcomes_of(group: Sequence[Run], store: Store, threads: int, device: str) -> list[Outcome]:
    """Compute a run, or a group as one, in this process; what a run raises is its outcome."""
    failed: dict[str, Exception] = {}
    if len(group) > 1:
        failed = execute_together(group, store, threads, device)
    else:
        try:
            execute(group[0], store, threads, device)
        except Exception as error:
            failed[group[0].key] = error
    return [outcome_of(run, failed.get(run.key)) for run in group]


def outcome_of(run: Run, error: Exception | None) -> Outcome:
    """The outcome of a run that raised an error, or none."""
    if error is None:
        return Outcome(run)
    return Outcome(run, traceback.format_exception_only(error)[-1].strip(), is_full(error))


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came of, says that the disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if os.strerror(errno.ENOSPC) in str(error):  # of safetensors, for instance
            return True
        error = error.__cause__ or error.__context__
    return False


@dataclasses.dataclass(frozen=True)
class InProcess(Engine):
    """One run after the other in this process."""

    def outcomes(self, runs: Sequence[Run], store: Store) -> Generator[Outcome, None, None]:
        """See ``Engine``."""
        for group in groups(runs, self.together):
            yield from outcomes_of(group, store, self.threads, self.device)


@dataclasses.dataclass(frozen=True)
class Pool(Engine):
    """Processes on this machine that stay for many runs, so that a run costs no start of Python.

    Attributes:
        workers: Their number.
        retries: How often a run is tried again whose worker has died.
    """

    workers: int = 2
    retries: int = 2

    def check(self, store: Store) -> None:
        """See ``Engine``."""
        super().check(store)
        if self.workers < 1:
            raise ExperimentError(f"--workers must be 1 or more, not {self.workers}")
        if self.retries < 0:
            raise ExperimentError(f"--retries must be 0 or more, not {self.retries}")

    def at_once(self) -> int:
        """See ``Engine``."""
        return self.workers * self.together

    def outcomes(self, runs: Sequence[Run], store: Store) -> Generator[Outcome, None, None]:
        """See ``Engine``."""
        waiting = collections.deque((g, self.retries) for g in groups(runs, self.together))
        workers: list[_Worker] = []
        try:
            self._begin(waiting, workers, store)
            while busy := {worker.answers: worker for worker in workers if worker.group}:
                ended = []
                for answer in wait(list(busy)):
                    worker = busy[answer]  # type: ignore[index]
                    group, left, outcomes = worker.group, worker.left, worker.outcomes()
                    if outcomes:
                        ended += outcomes
                        continue
                    workers.remove(worker)
                    if left:
                        waiting.append((group, left - 1))
                    else:
                        died = f"its worker died {1 + self.retries} times"
                        ended += [Outcome(run, died) for run in group]
                self._begin(waiting, workers, store)
                yield from ended
        finally:
            _stop(workers)

    def _begin(
        self,
        waiting: "collections.deque[tuple[list[Run], int]]",
        workers: "list[_Worker]",
        store: Store,
    ) -> None:
        """Give waiting groups to idle workers, and to new ones while there may be more."""
        idle = [worker for worker in workers if not worker.group]
        while waiting and (idle or len(workers) < self.workers):
            if not idle:
                workers.append(_Worker(self, store))
                idle.append(workers[-1])
            idle.pop().begin(*waiting.popleft())


class _Worker:
    """A process that computes one group of runs after the other; most groups are of one run.

    Attributes:
        group: What it computes; empty if it waits.
        left: How often that may be tried again.
        answers: Is ready when the group has ended, or the process.
    """

    def __init__(self, engine: Pool, store: Store) -> None:
        # Not forked: PyTorch's and numba's threads do not survive that.
        context = multiprocessing.get_context("spawn")
        self.answers, theirs = context.Pipe()
        self.group: list[Run] = []
        self.left = 0
        self.process: BaseProcess = context.Process(
            target=_work, args=(theirs, store, engine.threads, engine.device), daemon=True
        )
        # An interrupt of the terminal is for the driver alone, from the worker's first moment on.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            with _threads_in_environment(engine.threads):
                self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # so that the pipe ends with the worker

    def begin(self, group: list[Run], left: int) -> None:
        """Compute a group."""
        self.group, self.left = group, left
        with contextlib.suppress(OSError):  # it has died: found when its answer is read
            self.answers.send(group)

    def outcomes(self) -> list[Outcome]:
        """The outcomes of the group, once there are any; none if the process has died."""
        try:
            found: list[Outcome] = self.answers.recv()
        except (EOFError, OSError):
            self.process.join()
            self.answers.close()
            return []
        self.group = []
        return found


def _stop(workers: Sequence[_Worker]) -> None:
    """End the workers; runs under way leave a checkpoint."""
    for worker in workers:
        worker.answers.close()  # the end of one that waits
        if worker.group:
            worker.process.terminate()
    end = time.monotonic() + GRACE
    try:
        for worker in workers:
            worker.process.join(max(0.0, end - time.monotonic()))
    finally:  # at once if interrupted again
        for worker in workers:
            worker.process.kill()
            worker.process.join()


@contextlib.contextmanager
def _threads_in_environment(threads: int) -> Iterator[None]:
    """The variables that tell a new process's libraries how many threads to use."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(
    groups: "Connection[list[Outcome], list[Run]]", store: Store, threads: int, device: str
) -> None:
    """Of a worker: compute the groups that come, until the driver has no more or has ended."""
    _begin_worker(threads)
    while True:
        try:
            group = groups.recv()
        except (EOFError, OSError):
            return
        try:
            outcomes = outcomes_of(group, store, threads, device)
        except KeyboardInterrupt:  # told to stop, and the checkpoint is written
            return
        try:
            groups.send(outcomes)
        except OSError:
            return


def _begin_worker(threads: int) -> None:
    """Of a worker: what it does not share with its driver; and that it ends with it, however."""
    os.setpgid(0, 0)  # away from the interrupts of a terminal
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
