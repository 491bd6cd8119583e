"""evaluate, suites, frozen labels, and agents that only speak Gymnasium."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import data_folder

import icl_bench
from icl_bench.catalog import DATASETS, SUITES
from icl_bench.data.images import MissingDataError
from icl_bench.evaluation import protocol
from icl_bench.evaluation.learner import call_learner

DIGITS = "Digits-Proj8-v0"
NEAREST = icl_bench.NearestNeighbour()
SPECS = [s for s in icl_bench.registry.values() if isinstance(s, icl_bench.EnvSpec)]


@pytest.fixture(scope="module")
def result() -> icl_bench.Result:
    return icl_bench.evaluate(NEAREST, DIGITS)


def test_result_is_that_of_the_frozen_episodes(result: icl_bench.Result) -> None:
    batch = icl_bench.make(DIGITS, split="unseen").unwrapped.episodes(range(256))
    logits = call_learner(NEAREST, batch.x, batch.prev_y, 10)
    assert (result.label == batch.y.numpy()).all()
    assert (result.prediction == logits.argmax(-1).numpy()).all()
    assert (result.task == np.arange(256) // 16).all()
    assert result.fingerprint == protocol.evaluation_fingerprint(DIGITS)
    expected = torch.log_softmax(logits[:, [0, 1, 4, 9, 19, 49, 99]].double(), -1)
    assert np.allclose(result.log_probs, expected.numpy(), rtol=1e-3, atol=1e-3)
    assert (result.env, result.split, result.seed) == (DIGITS, "unseen", 0)
    assert result.env_kwargs == {"split": "unseen"}


@pytest.mark.parametrize("batch_size", [5, 17, 255, 256, 1000])
def test_batch_size_never_changes_a_number(result: icl_bench.Result, batch_size: int) -> None:
    other = icl_bench.evaluate(NEAREST, DIGITS, batch_size=batch_size)
    assert (other.prediction == result.prediction).all()
    assert np.allclose(other.log_probs, result.log_probs, atol=2e-3)


def test_environment_instances(result: icl_bench.Result) -> None:
    env = icl_bench.make(DIGITS, split="unseen")
    env.unwrapped.sample(3)
    state = env.unwrapped.state_dict()
    again = icl_bench.evaluate(NEAREST, env)
    assert (again.prediction == result.prediction).all()
    assert again.fingerprint == result.fingerprint
    assert env.unwrapped.state_dict() == state  # the environment stays where it was
    other = icl_bench.evaluate(NEAREST, env, seed=5)
    assert other.fingerprint != result.fingerprint
    assert not (other.label == result.label).all()
    with pytest.raises(ValueError, match="has split 'unseen', not 'val'"):
        icl_bench.evaluate(NEAREST, env, split="val")
    with pytest.raises(ValueError, match="give these to make"):
        icl_bench.evaluate(NEAREST, env, episode_length=10)


def test_evaluation_of_other_splits_and_overrides() -> None:
    seen = icl_bench.evaluate(NEAREST, DIGITS, split="seen", num_tasks=4, num_episodes=64)
    assert set(seen.task) == {0, 1, 2, 3}
    short = icl_bench.evaluate(NEAREST, DIGITS, episode_length=10, num_episodes=32)
    assert short.label.shape == (32, 10)
    assert short.fingerprint != protocol.evaluation_fingerprint(DIGITS)
    assert short.env_kwargs == {"split": "unseen", "episode_length": 10}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_episodes": 1}, "must be at least 2"),
        ({"batch_size": 1}, "must be at least 2"),
        ({"split": "seen", "num_tasks": None}, "give a finite num_tasks"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        icl_bench.evaluate(NEAREST, DIGITS, **kwargs)


@pytest.mark.parametrize("row", [row for row in DATASETS], ids=lambda row: row.name)
def test_frozen_labels(row: Any) -> None:
    """Committed labels are those of the data, for every view; unpinned ones are not there."""
    envs = [spec.id for spec in SPECS if spec.base == row.name]
    if row.name in ("CIFAR10", "SVHN"):
        with pytest.raises(LookupError, match="are not pinned"):
            protocol.frozen_labels(envs[0])
        return
    committed = protocol.frozen_labels(envs[0], 1024)
    assert committed.shape == (1024, 100)
    assert not committed.flags.writeable
    for env_id in envs[1:]:  # the smaller views: the same integers at less cost
        assert (protocol.frozen_labels(env_id, 256) == committed[:256]).all()
        try:
            env = icl_bench.make(env_id, split="unseen", data_dir=data_folder())
        except MissingDataError as error:
            pytest.skip(str(error))
        assert (env.unwrapped.source.plan(range(1024)).y == committed).all()


def test_frozen_labels_errors() -> None:
    with pytest.raises(ValueError, match="there are 1024 frozen episodes, not 2000"):
        protocol.frozen_labels(DIGITS, 2000)
    with pytest.raises(ValueError, match="did you mean"):
        protocol.frozen_labels("Digit-Proj8-v0")


@pytest.mark.parametrize("row", SUITES, ids=lambda row: row.name)
def test_suites_name_environments_of_one_size(row: Any) -> None:
    specs = [icl_bench.registry[env] for env in row.envs]
    assert len({(s.num_features, s.num_classes, s.episode_length) for s in specs}) == 1
    assert row.meta_train in icl_bench.registry
    assert icl_bench.suite(row.name) is row


def test_evaluate_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = icl_bench.evaluate_suite(NEAREST, "digits-v0", num_episodes=32)
    assert [r.env for r in results] == ["Digits-Proj8-v0", "Random-Proj8-v0"]
    monkeypatch.delenv("ICL_BENCH_DATA", raising=False)
    kwargs: dict[str, Any] = {"num_episodes": 16, "data_dir": tmp_path}
    with pytest.raises(FileNotFoundError, match="icl-bench download MNIST"):
        icl_bench.evaluate_suite(NEAREST, "table2-proj8-v0", **kwargs)
    skipped = icl_bench.evaluate_suite(NEAREST, "table2-proj8-v0", missing="skip", **kwargs)
    assert [r.env for r in skipped] == ["Random-Proj8-v0"]
    with pytest.raises(ValueError, match="unknown suite 'table2'; there are table2-v0"):
        icl_bench.evaluate_suite(NEAREST, "table2")


class Agent:
    """1-nearest neighbour over a Gymnasium interface: tokens in, actions out."""

    def begin(self) -> None:
        self.inputs: list[np.ndarray] = []
        self.labels: list[int] = []

    def logits(self, token: np.ndarray) -> np.ndarray:
        x, label = token[:-10], token[-10:]
        if label.any():
            self.labels.append(int(label.argmax()))
        self.inputs.append(x)
        inputs = torch.from_numpy(np.stack(self.inputs))[None]
        prev_y = torch.tensor([[-1, *self.labels]])
        return NEAREST(inputs, prev_y)[0, -1].numpy()


@pytest.mark.parametrize("action", ["label", "logits"])
def test_an_agent_gets_the_same_numbers(action: str, result: icl_bench.Result) -> None:
    env = icl_bench.RecordResult(icl_bench.make(DIGITS, split="unseen", action=action), 20)
    agent = Agent()
    for _ in range(env.num_episodes):
        token, info = env.reset()
        assert "label" not in info
        agent.begin()
        terminated = False
        while not terminated:
            logits = agent.logits(token)
            chosen = int(logits.argmax()) if action == "label" else logits
            token, _, terminated, _, _ = env.step(chosen)
    got = env.result()
    assert (got.prediction == result.prediction[:20]).all()
    assert (got.label == result.label[:20]).all()
    assert (got.task == result.task[:20]).all()
    assert got.fingerprint == result.fingerprint
    if action == "logits":
        assert np.allclose(got.log_probs, result.log_probs[:20], atol=1e-2)
    else:
        right = got.log_probs.argmax(-1)
        assert (right == got.prediction[:, [0, 1, 4, 9, 19, 49, 99]]).all()
    with pytest.raises(ValueError, match="all 20 episodes have been played"):
        env.reset()


def test_recording_does_not_name_the_task() -> None:
    """Frozen episodes go task by task: an agent that knew would remember."""
    env = icl_bench.RecordResult(icl_bench.make(DIGITS, split="unseen"), 16)
    _, info = env.reset()
    assert "task_id" not in info
    assert "task_id" not in env.step(0)[4]


def test_recording_refuses_what_is_not_the_protocol() -> None:
    env = icl_bench.RecordResult(icl_bench.make(DIGITS, split="unseen"), 2)
    with pytest.raises(ValueError, match="frozen episodes in order"):
        env.reset(seed=3)
    env.reset()
    env.step(0)
    with pytest.raises(ValueError, match="episode 0 was left before its end"):
        env.reset()
    with pytest.raises(ValueError, match="0 of 2 episodes have been played"):
        env.result()


def test_example_of_the_reader() -> None:
    """Accuracy on frozen episodes of real images, where they are at hand, in its band."""
    folder = data_folder()
    if folder is None:
        pytest.skip("no real images: set ICL_BENCH_DATA to a data folder")
    result = icl_bench.evaluate(NEAREST, "MNIST-Proj8-v0", data_dir=folder)
    assert 0.6 < result.accuracy() < 0.8
