"""Environments: Gymnasium's checks on every id, one implementation, protocol of an episode."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from conftest import data_folder
from gymnasium.utils.env_checker import check_env

import icl_bench
from icl_bench.data.images import MissingDataError
from icl_bench.envs.source import EnvArgs, fingerprint
from icl_bench.registration import EnvSpec, find_spec

DIGITS = "Digits-Proj8-v0"
SPECS = {name: spec for name, spec in icl_bench.registry.items() if isinstance(spec, EnvSpec)}


def make_or_skip(env_id: str, **kwargs: Any) -> "gymnasium.Env[Any, Any]":
    try:
        return icl_bench.make(env_id, data_dir=data_folder(), split="unseen", **kwargs)
    except MissingDataError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("env_id", SPECS)
def test_gymnasium_checks_pass_without_a_warning(env_id: str) -> None:
    """Warnings are errors in these tests; both through icl_bench and through Gymnasium."""
    check_env(make_or_skip(env_id).unwrapped)
    name = f"icl_bench:icl_bench/{env_id}"
    env = gymnasium.make(name, split="unseen", data_dir=data_folder())
    check_env(env.unwrapped)
    assert env.spec is not None
    assert env.spec.kwargs["env_id"] == env_id


@pytest.mark.parametrize("env_id", SPECS)
def test_spec_goes_to_json_and_back(env_id: str) -> None:
    spec = SPECS[env_id]
    assert EnvSpec.from_json(spec.to_json()) == spec
    assert spec.id == f"{spec.base}-{spec.view}-v{spec.version}"
    assert spec.history
    for other in icl_bench.cross(env_id):
        relative = SPECS[other]
        assert (relative.num_features, relative.num_classes) == (
            spec.num_features,
            spec.num_classes,
        )
        assert relative.base != spec.base


@pytest.mark.parametrize("env_id", SPECS)
def test_check_env_of_the_library(env_id: str) -> None:
    icl_bench.check_env(make_or_skip(env_id))


def play(env: "gymnasium.Env[Any, Any]", actions: np.ndarray) -> dict[str, list[Any]]:
    token, info = env.reset()
    out: dict[str, list[Any]] = {"token": [token], "reward": [], "info": [info]}
    for t, action in enumerate(actions):
        token, reward, terminated, truncated, info = env.step(action)
        out["token"].append(token)
        out["reward"].append(reward)
        out["info"].append(info)
        assert terminated == (t == len(actions) - 1)
        assert not truncated
    return out


def test_an_episode_as_tokens() -> None:
    env = icl_bench.make(DIGITS, split="unseen", episode_length=20)
    batch = icl_bench.make(DIGITS, split="unseen", episode_length=20).unwrapped.episodes([0])
    actions = np.arange(20) % 10
    seen = play(env, actions)
    tokens = np.stack(seen["token"])
    assert np.array_equal(tokens[:20], batch.tokens()[0].numpy())
    assert (tokens[0, 64:] == 0).all()
    assert (tokens[20, :64] == 0).all()
    assert tokens[20, 64:].argmax() == batch.y[0, -1]
    assert (tokens[1:, 64:].sum(1) == 1).all()
    labels = batch.y[0].numpy()
    assert seen["reward"] == (labels == actions).astype(float).tolist()
    assert seen["info"][0] == {"episode_id": 0, "task_id": 0}  # no label
    for t, info in enumerate(seen["info"][1:]):
        assert info == {"label": labels[t], "task_id": 0, "t": t}


def test_rewards_of_logits() -> None:
    env = icl_bench.make(DIGITS, split="unseen", action="logits", episode_length=5)
    labels = env.unwrapped.episodes([0]).y[0]
    logits = np.random.default_rng(0).normal(size=(5, 10)).astype(np.float32)
    seen = play(env, logits)
    expected = torch.log_softmax(torch.from_numpy(logits).double(), -1)[range(5), labels]
    assert np.allclose(seen["reward"], expected.numpy())
    minus = np.full(10, -np.inf, np.float32)
    env.reset(options={"episode_id": 0})
    minus[int(labels[0])] = 0.0
    assert env.step(minus)[1] == 0.0
    assert env.step(np.where(np.arange(10) == (int(labels[1]) + 1) % 10, 0, -np.inf))[1] == -np.inf


@pytest.mark.parametrize("action", ["label", "logits"])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_row_b_of_the_vector_environment_is_the_single_one(action: str, backend: str) -> None:
    kwargs: dict[str, Any] = {"split": "train", "episode_length": 7, "action": action}
    single = icl_bench.make(DIGITS, **kwargs)
    vector = icl_bench.make_vec(DIGITS, 5, backend=backend, **kwargs)
    rng = np.random.default_rng(0)
    shape = (7, 5) if action == "label" else (7, 5, 10)
    actions: Any = rng.integers(10, size=shape)
    if action == "logits":
        actions = rng.normal(size=shape).astype(np.float32)
    tokens, _ = vector.reset(seed=3)
    rows = [tokens]
    rewards = []
    for t in range(7):
        given = torch.from_numpy(actions[t]) if backend == "torch" else actions[t]
        tokens, reward, terminated, truncated, info = vector.step(given)
        rows.append(tokens)
        rewards.append(reward)
        assert bool(terminated.all()) == (t == 6)
        assert not truncated.any()
        assert {"label", "task_id", "t"} == set(info)
    expected_type = torch.Tensor if backend == "torch" else np.ndarray
    assert isinstance(rewards[0], expected_type)
    single.reset(seed=3)
    for b in range(5):
        token, _ = single.reset(options={"episode_id": b})
        for t in range(7):
            assert np.allclose(token, np.asarray(rows[t][b]), atol=1e-5)
            token, reward, *_ = single.step(actions[t, b])
            assert reward == pytest.approx(float(rewards[t][b]))


def test_vector_spaces() -> None:
    env = icl_bench.make_vec(DIGITS, 4)
    assert env.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.DISABLED
    tokens, _ = env.reset()
    assert env.observation_space.contains(tokens)
    assert env.action_space.contains(env.action_space.sample())
    assert env.num_envs == 4


def test_arrays_belong_to_the_caller() -> None:
    """What a caller changes in place comes back in no later step."""
    env = icl_bench.make_vec("Digits-Proj8-v0", 3, render_mode="rgb_array")
    actions = np.zeros(3, dtype=np.int64)
    env.reset()
    _, _, terminated, truncated, info = env.step(actions)
    task = info["task_id"].copy()
    terminated |= True
    truncated |= True
    info["task_id"][:] = 77
    info["label"][:] = 77
    actions[:] = 3
    _, _, terminated, truncated, info = env.step(actions)
    assert not terminated.any()
    assert not truncated.any()
    assert (info["task_id"] == task).all()
    assert (info["label"] < 10).all()
    assert [p.tolist() for p in env.unwrapped.predictions] == [[0] * 3, [3] * 3]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vectors_of_gymnasium(mode: str) -> None:
    made = gymnasium.make_vec(
        "icl_bench/Digits-Proj8-v0", num_envs=2, vectorization_mode=mode, split="unseen"
    )
    try:
        observation, _ = made.reset(seed=[0, 1])
        assert observation.shape == (2, 74)
    finally:
        made.close()


FORKED = """
import os
import gymnasium, torch, icl_bench
torch.set_num_threads(4)
batch = icl_bench.make("Digits-Proj8-v0").unwrapped.sample(64)
torch.randn(500, 500) @ torch.randn(500, 500)  # its threads are there now
torch.randn(2**20).exp()
pid = os.fork()
if pid == 0:
    again = icl_bench.make("Digits-Proj8-v0").unwrapped.sample(64)
    torch.randn(2**20).exp()
    os._exit(0 if torch.equal(again.x, batch.x) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""


def test_a_forked_worker_does_not_wait_for_threads_it_lacks() -> None:
    command = [sys.executable, "-c", FORKED]
    done = subprocess.run(command, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_refused_call_changes_nothing() -> None:
    env = icl_bench.make("Digits-Proj8-v0").unwrapped
    env.reset(seed=2)
    before = env.state_dict()
    with pytest.raises(ValueError, match="unknown options"):
        env.reset(seed=5, options={"bad": 1})
    with pytest.raises(ValueError, match="seed must be"):
        env.load_state_dict({"seed": -1, "next_episode": 3})
    assert env.state_dict() == before
    assert env.sample(1).y.tolist() == env.episodes([1]).y.tolist()


@pytest.mark.parametrize("name", ["seed", "task_seed", "episode_length", "num_tasks"])
@pytest.mark.parametrize("value", [1.5, 50.0, True, "3"])
def test_whole_numbers_are_asked_for(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a whole number"):
        icl_bench.make("Digits-Proj8-v0", **{name: value})


def test_whole_numbers_of_numpy() -> None:
    ours = icl_bench.make("Digits-Proj8-v0", seed=3, episode_length=7, num_tasks=50).unwrapped
    theirs = icl_bench.make(
        "Digits-Proj8-v0", seed=np.int64(3), episode_length=np.int32(7), num_tasks=np.int16(50)
    ).unwrapped
    assert theirs.fingerprint == ours.fingerprint
    assert torch.equal(theirs.sample(2).x, ours.sample(2).x)


def test_stream() -> None:
    """reset(seed) begins a stream, reset() goes on, sample shares the counter, ids pick."""
    env = icl_bench.make(DIGITS)
    first, _ = env.reset(seed=7)
    second, info = env.reset()
    assert info["episode_id"] == 1
    assert env.unwrapped.state_dict() == {"seed": 7, "next_episode": 2}
    batch = env.unwrapped.sample(3)
    assert env.unwrapped.state_dict()["next_episode"] == 5
    again = icl_bench.make(DIGITS, seed=7)
    assert np.array_equal(again.reset()[0], first)
    assert np.array_equal(again.reset()[0], second)
    resumed = icl_bench.make(DIGITS)
    resumed.unwrapped.load_state_dict({"seed": 7, "next_episode": 2})
    assert torch.equal(resumed.unwrapped.sample(3).x, batch.x)
    picked, info = env.reset(options={"episode_id": 1})
    assert np.array_equal(picked, second)
    assert env.unwrapped.state_dict()["next_episode"] == 5
    assert not np.array_equal(env.reset(seed=8)[0], first)


def test_workers_cannot_repeat_each_other() -> None:
    """Two ranks that take ids of their own are one process with twice the batch."""
    env = icl_bench.make(DIGITS).unwrapped
    whole = env.episodes(range(16))
    parts = [env.episodes(range(rank, 16, 2)) for rank in (0, 1)]
    for rank, part in enumerate(parts):
        assert torch.equal(part.y, whole.y[rank::2])


def test_task_is_what_projects() -> None:
    env = icl_bench.make(DIGITS, split="train", num_tasks=50).unwrapped
    batch = env.sample(4)
    plan = env.source.plan(range(4))
    z = (env.source.sampler.inputs(plan) - env.source.sampler.stats[0]) / (
        env.source.sampler.stats[1]
    )
    for b in range(4):
        a, rho = env.task(int(batch.task_id[b]))
        assert a.shape == (64, 64)
        assert sorted(rho.tolist()) == list(range(10))
        assert torch.allclose(batch.x[b], z[b] @ a.T, atol=1e-5)
    assert abs(float(z.mean())) < 0.1  # normalised by the training split's statistics
    assert abs(float(z.std()) - 1) < 0.1


def test_normalisation_can_be_switched_off() -> None:
    raw = icl_bench.make(DIGITS, normalize=False).unwrapped
    assert raw.source.sampler.stats == (0.0, 1.0)
    assert not torch.allclose(raw.sample(1).x, icl_bench.make(DIGITS).unwrapped.sample(1).x)


def test_seen_tasks_are_the_training_tasks_on_other_data() -> None:
    train = icl_bench.make(DIGITS, num_tasks=5, bias=0.5).unwrapped
    seen = icl_bench.make("Random-Proj8-v0", split="seen", num_tasks=5, bias=0.5).unwrapped
    for k in range(5):
        assert torch.equal(train.task(k)[0], seen.task(k)[0])
        assert torch.equal(train.task(k)[1], seen.task(k)[1])


def test_render() -> None:
    env = icl_bench.make(DIGITS, render_mode="rgb_array")
    env.reset()
    empty = env.render()
    assert empty.dtype == np.uint8
    assert empty.shape[2] == 3
    for _ in range(25):
        env.step(0)
    fuller = env.render()
    assert fuller.shape[0] > empty.shape[0]  # a second row of examples
    vector = icl_bench.make_vec(DIGITS, 2, render_mode="rgb_array")
    vector.reset()
    assert len(vector.render()) == 2
    whole = env.unwrapped.vector.draw(0, steps=100)
    assert whole.shape[0] > fuller.shape[0]


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("MNIST-Proj", "exact version; did you mean MNIST-Proj-v0"),
        ("MNIST-Proj-v7", "there is no version v7 of MNIST-Proj, only v0"),
        ("MNISTT-Proj-v0", "did you mean MNIST-Proj-v0"),
        ("Nothing-Like-v0", "icl-bench list"),
        ("mnist-proj-v0", "did you mean MNIST-Proj-v0"),
        ("MNIST-Proj-v00", "is not an environment id"),
        ("", "is not an environment id"),
        ("icl_bench/MNIST-Proj-v0", "is not an environment id"),
    ],
)
@pytest.mark.parametrize("make", [icl_bench.make, lambda i: icl_bench.make_vec(i, 2)])
def test_unknown_ids(make: Any, env_id: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(env_id)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"split": "seen", "num_tasks": None}, "give a finite num_tasks"),
        ({"episode_length": 501, "split": "unseen"}, "episode_length=501 is more than the 500"),
        ({"episode_length": -1}, "episode_length must be at least 1"),
        ({"num_tasks": 0}, "num_tasks must be at least 1"),
        ({"num_tasks": -5}, "num_tasks must be at least 1"),
        ({"num_tasks": 2**70}, "num_tasks must be at least 1 and below 2"),
        ({"seed": -1}, "seed must be in"),
        ({"bias": 2.0}, r"bias must be in \[0, 1\], not 2.0"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        icl_bench.make(DIGITS, **kwargs)


def test_unknown_argument_is_named() -> None:
    with pytest.raises(TypeError, match="num_task"):
        icl_bench.make(DIGITS, num_task=5)
    with pytest.raises(TypeError, match=r"arguments of icl_bench\.make_vec"):
        icl_bench.make(DIGITS, backend="torch")


@pytest.mark.parametrize("num_envs", [0, -3, 2.5])
def test_bad_numbers_of_environments(num_envs: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="num_envs"):
        icl_bench.make_vec(DIGITS, num_envs)


@pytest.mark.parametrize(
    ("action", "given", "error", "message"),
    [
        ("label", 10, ValueError, r"labels must be in \[0, 10\)"),
        ("label", -1, ValueError, r"labels must be in \[0, 10\)"),
        ("label", 1.0, TypeError, "labels must be integers"),
        ("label", True, TypeError, "actions must be numbers"),
        ("label", "3", TypeError, "actions must be numbers"),
        ("label", [1, 2], ValueError, "actions must have shape"),
        ("logits", np.full(10, np.nan, np.float32), ValueError, "must not be NaN"),
        ("logits", np.full(10, np.inf, np.float32), ValueError, r"must not be NaN or \+inf"),
        ("logits", np.full(10, -np.inf, np.float32), ValueError, "at least one logit"),
        ("logits", np.zeros(9, np.float32), ValueError, "actions must have shape"),
        ("logits", np.zeros(10, np.int64), TypeError, "logits must be floating-point"),
    ],
)
def test_bad_actions(action: str, given: Any, error: type[Exception], message: str) -> None:
    env = icl_bench.make(DIGITS, action=action)
    env.reset()
    with pytest.raises(error, match=message):
        env.step(given)
    good = 0 if action == "label" else np.zeros(10, np.float32)
    env.step(good)  # and nothing was half-done
    assert env.unwrapped.vector.t == 1


def test_steps_outside_of_an_episode() -> None:
    env = icl_bench.make_vec(DIGITS, 2, episode_length=3)
    with pytest.raises(gymnasium.error.ResetNeeded, match="before the first reset"):
        env.step(np.zeros(2, int))
    env.reset()
    for _ in range(3):
        env.step(np.zeros(2, int))
    with pytest.raises(gymnasium.error.ResetNeeded, match="after all 3 steps"):
        env.step(np.zeros(2, int))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episode": 3}, "unknown options of reset: episode"),
        ({"episode_ids": [1, 2, 3]}, "3 episode ids for 2 episodes"),
        ({"episode_ids": [1, -2]}, "episode ids must be in"),
        ({"episode_ids": [1.5, 2.5]}, "sequence of integers"),
        ({"reset_mask": np.array([True, False])}, "lock-step"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    env = icl_bench.make_vec(DIGITS, 2)
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)


def test_bad_seeds_and_batches() -> None:
    env = icl_bench.make_vec(DIGITS, 2)
    with pytest.raises(ValueError, match="one seed for the whole stream"):
        env.reset(seed=[1, 2])
    for size in (0, -1):
        with pytest.raises(ValueError, match="number of episodes must be"):
            env.unwrapped.sample(size)
    with pytest.raises(ValueError, match="non-empty sequence of integers"):
        env.unwrapped.episodes([])


def test_render_modes() -> None:
    with pytest.raises(ValueError, match="render_mode must be None or"):
        icl_bench.make_vec(DIGITS, 2, render_mode="human")


def test_missing_data_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ICL_BENCH_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="icl-bench download SVHN"):
        icl_bench.make("SVHN-Proj8-v0", data_dir=str(tmp_path))


def test_cuda_is_refused_where_there_is_none() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ValueError, match="sees 0 CUDA devices"):
        icl_bench.make(DIGITS, device="cuda")


def test_fingerprints() -> None:
    spec = find_spec(DIGITS)
    base = fingerprint(spec, EnvArgs(split="unseen"))
    same = [EnvArgs(split="unseen", num_tasks=3, bias=0.5, repeat=0.5), EnvArgs("unseen", None)]
    assert {fingerprint(spec, args) for args in same} == {base}
    other = [
        EnvArgs(split="unseen", seed=1),
        EnvArgs(split="unseen", task_seed=1),
        EnvArgs(split="unseen", episode_length=50),
        EnvArgs(split="unseen", normalize=False),
        EnvArgs(split="seen"),
        EnvArgs(split="seen", num_tasks=4),
        EnvArgs(split="seen", bias=0.9),
        EnvArgs(split="val"),
        EnvArgs(split="train"),
    ]
    assert len({fingerprint(spec, args) for args in other} | {base}) == len(other) + 1
    assert len({fingerprint(s, EnvArgs("unseen")) for s in SPECS.values()}) == len(SPECS)
    env = icl_bench.make(DIGITS, split="unseen")
    assert env.unwrapped.fingerprint == base
    json.dumps(env.unwrapped.source.args.overrides())


def test_registry_is_read_only_and_refuses_duplicates() -> None:
    with pytest.raises(TypeError):
        icl_bench.registry["X-Proj-v0"] = icl_bench.registry[DIGITS]  # type: ignore[index]
    with pytest.raises(ValueError, match="is registered already"):
        icl_bench.register(icl_bench.registry[DIGITS])


@pytest.mark.gpu
def test_cuda_gives_the_same_episodes() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for kwargs in ({"num_tasks": 1000}, {"num_tasks": None}):
        cpu = icl_bench.make(DIGITS, **kwargs).unwrapped.sample(8)
        gpu = icl_bench.make(DIGITS, device="cuda", **kwargs).unwrapped.sample(8)
        assert torch.equal(cpu.y, gpu.y.cpu())
        assert torch.allclose(cpu.x, gpu.x.cpu(), atol=1e-4)
