"""Ray as the engine: the rows of one process on a cluster whose workers and nodes die."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_sweeps import (
    LONG,
    experiment,
    holder,
    kill_worker,
    rows,
    stamps,
    tiny,
    under_way,
    wait_for,
)

from baselines.experiments import ray_engine
from baselines.experiments.engines import InProcess, Outcome
from baselines.experiments.ray_engine import RayEngine, check_key, check_versions, versions
from baselines.experiments.spec import ExperimentError, Run
from baselines.experiments.store import Store
from baselines.experiments.sweep import sweep
from icl_bench.data.features import NETWORK_VARIABLE

STORE_BYTES = 100 * 2**20


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "out").mkdir()
    return Store(tmp_path / "out")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that computes nothing and two nodes with a CPU each, all on this machine."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install icl-bench[ray]")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    found = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "object_store_memory": STORE_BYTES,
            "include_dashboard": False,
        },
    )
    for _ in range(2):
        found.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    yield found
    found.shutdown()


def test_without_ray_it_is_said_how_to_install_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExperimentError, match=r"pip install icl-bench\[ray\]"):
        RayEngine().check(store)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (RayEngine(cpus=-1.0), "--cpus and --gpus must be 0 or more"),
        (RayEngine(cpus=0.0), "not both 0"),
        (RayEngine(gpus=1.5), "--gpus above 1 must be a whole number, not 1.5"),
        (RayEngine(device="cuda:0"), "--device cuda:0 with Ray needs --gpus above 0"),
        (RayEngine(retries=-1), "--retries must be 0 or more, not -1"),
        (RayEngine(threads=0), "--threads must be 1 or more, not 0"),
    ],
)
def test_numbers_out_of_range_are_refused(store: Store, engine: RayEngine, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        engine.check(store)


def test_a_node_of_another_version_is_named() -> None:
    here = versions()
    assert set(here) == {"icl_bench", "torch", "Python"}
    check_versions(here, here, "node-7")
    for what in here:
        with pytest.raises(ExperimentError, match=f"node node-7 has another version of {what}, 0 "):
            check_versions(here | {what: "0"}, here, "node-7")


def test_a_node_with_another_network_computes_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(NETWORK_VARIABLE, raising=False)
    pixels, features = tiny(), tiny(env="DigitsLow-Emb-v0")
    assert pixels.key != features.key
    monkeypatch.setenv(NETWORK_VARIABLE, "efficientnet-lite0")  # as if set on the node
    check_key(pixels)
    with pytest.raises(ExperimentError, match=f"features of another network.*{features.key}"):
        check_key(features)
    (store.root / "driver.lock").touch()
    (found,) = ray_engine._compute([features], store, 1, "cpu", versions())
    assert "features of another network" in str(found.error)
    assert not store.run_folder(features.key).exists()


@pytest.mark.parametrize(
    ("chosen", "taken"), [("efficientnet-lite0", "efficientnet-lite0"), (None, "")]
)
def test_tasks_have_the_network_of_the_driver_and_not_of_their_node(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, taken: str
) -> None:
    monkeypatch.delenv(NETWORK_VARIABLE, raising=False)
    if chosen is not None:
        monkeypatch.setenv(NETWORK_VARIABLE, chosen)
    asked: dict[str, Any] = {}

    class Spy:
        def remote(self, **options: Any) -> Any:
            asked.update(options)
            return lambda function: function

    monkeypatch.setattr(ray_engine, "_ray", Spy)
    RayEngine()._task(versions)
    assert asked["runtime_env"]["env_vars"][NETWORK_VARIABLE] == taken


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "ray://:1", "x:y"])
def test_a_cluster_that_cannot_be_reached_is_an_error_at_once(store: Store, address: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install icl-bench[ray]")
    began = time.monotonic()
    with pytest.raises(
        ExperimentError, match=f"no Ray cluster can be joined at {address} .*: start"
    ):
        RayEngine(address=address).check(store)
    assert time.monotonic() - began < 30
    assert list(store.root.iterdir()) == []


@pytest.mark.slow
def test_runs_survive_the_death_of_a_worker_and_of_a_node(
    store: Store, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 short runs, of which two are met at work: their worker, later their whole node dies."""
    long = [tiny(seed=s, **LONG) for s in (100, 101)]
    runs = [*long, *(tiny(seed=seed) for seed in range(22))]
    first, second = (store.run_folder(run.key) for run in long)
    finished: dict[str, object] = {}
    kept: dict[Path, list[bytes]] = {}

    def kill() -> None:
        kept[first] = kill_worker(first)
        wait_for(lambda: (under_way(first) and holder(first)) or (first / "done.json").exists())
        wait_for(lambda: under_way(second) or (second / "done.json").exists())
        # The node of whichever long run is at work.
        node = node_of(cluster, second if under_way(second) else first)
        finished.update(stamps(store, [r for r in runs if store.is_finished(r.key)]))
        os.kill(node, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    engine = RayEngine(address=cluster.address, retries=4)
    killer.start()
    try:
        report = sweep(experiment(runs), "cpu", runs, store, engine)
    finally:
        engine.close()
    killer.join(10)
    assert not killer.is_alive()
    assert (report.finished, report.failed) == (24, ())
    assert finished.items() <= stamps(store, runs).items(), "a finished run was computed again"
    # Each is begun once, but for those that died at work: one with its worker, one with its node.
    begun = [(store.run_folder(r.key) / "log.txt").read_text().count(": process ") for r in runs]
    assert sum(begun) <= 24 + 2
    log = (first / "metrics.jsonl").read_bytes().splitlines()
    assert 0 < len(kept[first]) < len(log)
    assert log[: len(kept[first])] == kept[first], "the run did not go on from its checkpoint"
    alone = Store(tmp_path / "alone")
    sweep(experiment(runs), "cpu", runs, alone, InProcess())
    assert rows(store, runs) == rows(alone, runs)


def node_of(cluster: Any, folder: Path) -> int:
    """The raylet whose worker computes a run."""
    parent = int(Path(f"/proc/{holder(folder)}/stat").read_text().rpartition(")")[2].split()[1])
    nodes = [node.all_processes["raylet"][0].process.pid for node in cluster.worker_nodes]
    assert parent in nodes
    return parent


@pytest.mark.slow
def test_a_cluster_of_its_own_ends_with_the_engine(store: Store) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install icl-bench[ray]")
    engine = RayEngine(gpus=1000.0)
    try:
        with pytest.raises(ExperimentError, match=r"no node .* has the 1 CPUs and 1000 GPUs"):
            engine.check(store)
        assert ray.is_initialized()
        stopped = stop_early(RayEngine(), store, [tiny(seed=7, **LONG)])
        assert stopped < 60
    finally:
        engine.close()
    assert not ray.is_initialized()


def stop_early(engine: RayEngine, store: Store, runs: list[Run]) -> float:
    """Close the outcomes when a run has a checkpoint; the seconds that it took."""
    engine.check(store)
    folder = store.run_folder(runs[0].key)
    with store.driver():
        outcomes = engine.outcomes([tiny(seed=1), *runs], store)
        assert next(outcomes) == Outcome(tiny(seed=1))
        wait_for(lambda: under_way(folder))
        began = time.monotonic()
        outcomes.close()
    took = time.monotonic() - began
    assert under_way(folder)
    with store.worker(runs[0].key):  # nobody computes it any more
        pass
    return took
