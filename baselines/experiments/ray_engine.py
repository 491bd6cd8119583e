"""A Ray cluster as the engine: one task per run; Ray places them and tries lost ones again.

    python -m baselines.experiments phases --engine ray                          # a cluster here
    python -m baselines.experiments phases --engine ray --address auto --gpus 0.25

The folder of runs and this checkout must be at the same path on every node. Both are looked at on
each node before any run begins, and again by every task.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import platform
import secrets
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from baselines.experiments.engines import GRACE, Engine, Outcome, outcomes_of
from baselines.experiments.ensemble import groups
from baselines.experiments.spec import ExperimentError, Run
from baselines.experiments.store import Store
from icl_bench.data.features import NETWORK_VARIABLE
from icl_bench.data.images import MissingDataError

ROOT = Path(__file__).resolve().parents[2]

# Seconds until somebody listens at an address, until a cluster answers there, and until a node has
# started a worker that loads PyTorch.
LISTEN, REACH, PROBE = 10.0, 90.0, 180.0

# Of ray://host without a port.
CLIENT_PORT = 10001

# Bytes of the object store of a cluster that is started here: a run's settings and its outcome.
OBJECT_STORE = 100 * 2**20

# What workers take over of this process's environment, besides its module path.
TAKEN_OVER = ("ICL_BENCH_DATA", "ICL_BENCH_CACHE", "HF_HUB_OFFLINE")

_REACH = (
    "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='error')"
)


@dataclasses.dataclass(frozen=True)
class RayEngine(Engine):
    """Tasks on a Ray cluster.

    Attributes:
        address: ``auto``, ``host:port`` or ``ray://host:port``; None starts a cluster on this
            machine that ends with the engine. A session that this process is in already is used
            as it is.
        cpus: CPUs of one run.
        gpus: GPUs of one run; with 0.25, four runs share one.
        retries: How often a run is tried again whose worker or node has died.
    """

    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    retries: int = 2
    _ours: list[bool] = dataclasses.field(default_factory=list, init=False, repr=False)

    def check(self, store: Store) -> None:
        """Join the cluster, and look at the folder and the versions on each of its nodes.

        Raises:
            ExperimentError: If Ray is not installed, the cluster cannot be reached, no node has
                the CPUs and GPUs of a run, or a node lacks the folder, the code or its versions.
        """
        super().check(store)
        self._check_numbers()
        _ray()
        self._join()
        nodes = self._nodes()
        with _token(store.root) as token:
            probe = self._task(_probe, num_cpus=0, num_gpus=0, max_retries=0)
            _check_nodes(probe, nodes, token)

    def _check_numbers(self) -> None:
        if self.cpus < 0 or self.gpus < 0 or self.cpus + self.gpus == 0:
            raise ExperimentError(
                f"--cpus and --gpus must be 0 or more, and not both 0: not {self.cpus:g} and "
                f"{self.gpus:g}"
            )
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ExperimentError(f"--gpus above 1 must be a whole number, not {self.gpus:g}")
        if self.device.startswith("cuda") and not self.gpus:
            raise ExperimentError(f"--device {self.device} with Ray needs --gpus above 0")
        if self.retries < 0:
            raise ExperimentError(f"--retries must be 0 or more, not {self.retries}")

    def _join(self) -> None:
        """Start or join the cluster, unless this process is in one."""
        ray = _ray()
        if ray.is_initialized():
            return
        about: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if self.address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            about |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
            # Not one that happens to run here.
            about["address"] = "local"
        else:
            _reach(self.address)
            about["address"] = self.address
        try:
            ray.init(**about)
        except (OSError, RuntimeError, ValueError) as error:
            raise ExperimentError(f"no Ray cluster could be started or joined: {error}") from error
        self._ours.append(True)

    def _nodes(self) -> list[dict[str, Any]]:
        """The nodes that a run fits on.

        Raises:
            ExperimentError: If there is none.
        """
        alive = [node for node in _ray().nodes() if node["Alive"]]
        asked = {"CPU": self.cpus, "GPU": self.gpus}
        found = [
            node
            for node in alive
            if all(node["Resources"].get(name, 0) >= number for name, number in asked.items())
        ]
        if not found:
            has = "; ".join(
                f"{_name(node)}: {node['Resources'].get('CPU', 0):g} CPUs, "
                f"{node['Resources'].get('GPU', 0):g} GPUs"
                for node in alive
            )
            raise ExperimentError(
                f"no node of the Ray cluster has the {self.cpus:g} CPUs and {self.gpus:g} GPUs of "
                f"a run ({has}): ask for less by --cpus and --gpus, or add a node"
            )
        return found

    def at_once(self) -> int:
        """See ``Engine``."""
        asked = {"CPU": self.cpus, "GPU": self.gpus}
        fit = [
            min(int(node["Resources"].get(name, 0) / n) for name, n in asked.items() if n)
            for node in self._nodes()
        ]
        return sum(fit) * self.together

    def _task(self, function: Any, **options: Any) -> Any:
        """A function as a task in the environment of this process."""
        taken = {name: os.environ[name] for name in TAKEN_OVER if name in os.environ}
        # Set even where it is not here: a node's own would show learners another network.
        network = {NETWORK_VARIABLE: os.environ.get(NETWORK_VARIABLE, "")}
        variables = taken | network | {"PYTHONPATH": str(ROOT)}
        kept: dict[str, Any] = {"runtime_env": {"env_vars": variables}, "retry_exceptions": False}
        return _ray().remote(**kept, **options)(function)

    def outcomes(self, runs: Sequence[Run], store: Store) -> Generator[Outcome, None, None]:
        """See ``Engine``; after ``check``."""
        ray = _ray()
        task = self._task(
            _compute, num_cpus=self.cpus, num_gpus=self.gpus, max_retries=self.retries
        )
        # A task without GPUs must not take one that its node has.
        device = "cpu" if self.device == "auto" and not self.gpus else self.device
        here = versions()
        waiting = {
            task.remote(group, store, self.threads, device, here): group
            for group in groups(runs, self.together)
        }
        try:
            while waiting:
                (ended,), _ = ray.wait(list(waiting), num_returns=1)
                yield from _outcomes(ended, waiting.pop(ended))
        finally:
            _cancel(list(waiting))

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._ours:
            self._ours.clear()
            _ray().shutdown()


def _ray() -> Any:
    """Ray.

    Raises:
        ExperimentError: If it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ExperimentError(
            f"--engine ray needs Ray ({error}): pip install icl-bench[ray]"
        ) from error
    return ray


def _reach(address: str) -> None:
    """Raise unless a cluster can be joined; tried in a process, for Ray may hang or crash.

    Raises:
        ExperimentError: With what Ray says.
    """
    try:
        if address != "auto":
            place = urllib.parse.urlsplit(address if "://" in address else f"ray://{address}")
            if place.hostname is None:
                raise ValueError("it is not auto, host:port or ray://host:port")
            socket.create_connection((place.hostname, place.port or CLIENT_PORT), LISTEN).close()
        subprocess.run(
            [sys.executable, "-c", _REACH, address],
            check=True,
            capture_output=True,
            text=True,
            timeout=REACH,
        )
        return
    except (OSError, ValueError) as error:
        reason = str(error)
    except subprocess.TimeoutExpired:
        reason = f"no answer within {REACH:g} s"
    except subprocess.CalledProcessError as error:
        reason = next(iter(reversed(error.stderr.strip().splitlines())), str(error))
        if "AuthenticationError" in error.stderr:
            reason = "it asks for a token: set RAY_AUTH_MODE=token here, as Ray's manual says"
    raise ExperimentError(
        f"no Ray cluster can be joined at {address} ({reason}): start one by `ray start --head`, "
        "or leave --address away to start one on this machine"
    )


@contextlib.contextmanager
def _token(root: Path) -> Iterator[tuple[Path, str]]:
    """A file in the folder that only those can read who see the same folder, and its text."""
    text = secrets.token_hex(16)
    path = root / f".node-check-{text[:8]}.txt"
    path.write_text(text)
    try:
        yield path, text
    finally:
        path.unlink(missing_ok=True)


def _check_nodes(probe: Any, nodes: Sequence[dict[str, Any]], token: tuple[Path, str]) -> None:
    """Raise unless every node sees the folder and has the code and versions of this process.

    Raises:
        ExperimentError: Naming the node and what it lacks.
    """
    ray = _ray()
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    path, text = token
    answers = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        answers[_name(node)] = probe.options(scheduling_strategy=there).remote(path)
    end = time.monotonic() + PROBE
    for name, answer in answers.items():
        try:
            seen, found = ray.get(answer, timeout=max(1.0, end - time.monotonic()))
        except ray.exceptions.GetTimeoutError as error:
            _cancel(list(answers.values()))
            raise ExperimentError(
                f"the node {name} has not answered within {PROBE:g} s: look at its Ray logs"
            ) from error
        except (ray.exceptions.RayError, ImportError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ExperimentError(
                f"the node {name} cannot run the code of {ROOT} ({reason}): the checkout must be "
                "at this path on every node"
            ) from error
        if seen != text:
            raise ExperimentError(
                f"the node {name} does not see {path.parent}: choose an --out on a file system "
                "that all nodes share, at the same path"
            )
        check_versions(found, versions(), name)


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


@functools.cache
def versions() -> dict[str, str]:
    """What must be the same wherever runs are computed."""
    digest = hashlib.sha256()
    for path in sorted(p for name in ("icl_bench", "baselines") for p in (ROOT / name).rglob("*")):
        if path.suffix in (".py", ".json", ".npz") and path.is_file():
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return {
        "icl_bench": digest.hexdigest()[:16],
        "torch": ".".join(torch.__version__.split(".")[:2]),
        "Python": ".".join(platform.python_version_tuple()[:2]),
    }


def check_versions(there: dict[str, str], here: dict[str, str], name: str) -> None:
    """Raise unless a node has the versions of the driver.

    Raises:
        ExperimentError: Naming the node and what differs.
    """
    for what, version in here.items():
        if there.get(what) != version:
            raise ExperimentError(
                f"the node {name} has another version of {what}, {there.get(what)} instead of "
                f"{version}: results would depend on where a run is computed"
            )


def _probe(path: Path) -> tuple[str | None, dict[str, str]]:
    """On a node: the text of the token, None if it is not seen there; and versions."""
    try:
        return path.read_text(), versions()
    except OSError:
        return None, versions()


def check_key(run: Run) -> None:
    """Raise unless a run is the same here as where it was named: fingerprints, features.

    Raises:
        ExperimentError: If data or the network of features are others.
        MissingDataError: If features of the user's own network are not at hand.
    """
    if (here := dataclasses.replace(run).key) != run.key:
        raise ExperimentError(
            f"the node {platform.node()} has other data or features of another network: the run "
            f"{run.key} would be {here} there"
        )


def _compute(
    group: list[Run], store: Store, threads: int, device: str, driver: dict[str, str]
) -> list[Outcome]:
    """On a node: compute a group, unless the node is one that came later and differs."""
    try:
        check_versions(versions(), driver, platform.node())
        if not (store.root / "driver.lock").exists():
            raise ExperimentError(f"the node {platform.node()} does not see {store.root}")
        for run in group:
            check_key(run)
    except (ExperimentError, MissingDataError) as error:
        return [Outcome(run, str(error)) for run in group]
    return outcomes_of(group, store, threads, device)


def _outcomes(ended: Any, group: list[Run]) -> list[Outcome]:
    """The outcomes of a task, or why it has none."""
    ray = _ray()
    try:
        found: list[Outcome] = ray.get(ended)
    except ray.exceptions.RayError as error:
        words = str(error).strip().splitlines() or [""]
        return [Outcome(run, f"{type(error).__name__}: {words[-1]}") for run in group]
    return found


def _cancel(tasks: list[Any]) -> None:
    """End tasks; those under way write a checkpoint, for which they have GRACE."""
    ray = _ray()
    if not tasks or not ray.is_initialized():
        return
    for task in tasks:
        ray.cancel(task, force=False)
    left = tasks
    try:
        _, left = ray.wait(tasks, num_returns=len(tasks), timeout=GRACE)
    finally:  # at once if interrupted again
        for task in left:
            ray.cancel(task, force=True)
