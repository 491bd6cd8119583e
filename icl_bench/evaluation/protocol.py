"""Evaluation: frozen episodes, suites, and the way from a learner (or an agent) to a Result."""

import dataclasses
import functools
import os
from importlib import resources
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from jaxtyping import Float, Float16, Int, UInt8
from torch import Tensor

from icl_bench import catalog
from icl_bench.data.images import MissingDataError
from icl_bench.envs.source import EnvArgs, EpisodeSource, SamplesEpisodes, env_args, fingerprint
from icl_bench.envs.supervised import SupervisedEnv
from icl_bench.episodes import Split
from icl_bench.evaluation.learner import Learner, call_learner, check_causality
from icl_bench.evaluation.result import Result, log_prob_steps
from icl_bench.registration import find_spec, make, parse_id
from icl_bench.tasks.counter import bounded, long_words, stream_key
from icl_bench.tasks.sampler import EPISODES_PER_TASK

# 16 tasks × 16 episodes (Kirsch et al. 2022, Table 2), and the larger hand-in.
FROZEN_EPISODES = 16 * EPISODES_PER_TASK
EXTENDED_EPISODES = 64 * EPISODES_PER_TASK

# Fresh episodes on which a learner is checked; their tasks are far beyond the frozen ones.
CHECK_EPISODES = 8
_FIRST_CHECK_EPISODE = 2**40


def suite(name: str) -> catalog.Suite:
    """A suite by its name.

    Raises:
        ValueError: If there is no such suite, naming those that there are.
    """
    for row in catalog.SUITES:
        if row.name == name:
            return row
    known = ", ".join(row.name for row in catalog.SUITES)
    raise ValueError(f"unknown suite {name!r}; there are {known}")


def frozen_tasks(
    num_episodes: int, episodes_per_task: int = EPISODES_PER_TASK
) -> Int[np.ndarray, " E"]:
    """Task of every frozen episode of the split unseen."""
    return np.arange(num_episodes, dtype=np.int64) // episodes_per_task


@functools.lru_cache(maxsize=64)
def _all_frozen_labels(base: str) -> UInt8[np.ndarray, "E T"]:
    file = resources.files("icl_bench.evaluation") / "frozen" / f"{base}.npz"
    if not file.is_file():
        raise LookupError(
            f"the labels of the frozen episodes of {base} are not pinned: the data were not at "
            "hand when this version was made, so its predictions cannot be scored yet"
        )
    with resources.as_file(file) as path, np.load(path, allow_pickle=False) as archive:
        labels: np.ndarray = archive["labels"]
    labels.flags.writeable = False
    return labels


def frozen_labels(env_id: str, num_episodes: int = FROZEN_EPISODES) -> UInt8[np.ndarray, "E T"]:
    """Labels of the frozen episodes (split unseen, seed 0, T = 100), committed with the package.

    They are the same for every view of a base data set: neither examples nor permutations depend
    on the size of an image.

    Raises:
        LookupError: If they are unpinned.
        ValueError: If more than ``EXTENDED_EPISODES`` are asked for, or the id is unknown.
    """
    spec = find_spec(env_id)
    if not 1 <= num_episodes <= EXTENDED_EPISODES:
        raise ValueError(f"there are {EXTENDED_EPISODES} frozen episodes, not {num_episodes}")
    return _all_frozen_labels(spec.base)[:num_episodes]


def evaluation_fingerprint(
    env_id: str,
    split: Split = "unseen",
    seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    network: str | None = None,
) -> str:
    """Fingerprint of the standard evaluation of an environment.

    ``data_dir`` is needed only for features of the user's own network that are nowhere else.

    Raises:
        MissingDataError: If the features of the user's own network are not at hand.
        ValueError: For an unknown id, or a network that is none.
    """
    args = EnvArgs(split=split, seed=seed, network=network)
    return fingerprint(find_spec(env_id), args, data_dir)


def check_env(env: "gymnasium.Env[Any, Any] | str", **kwargs: Any) -> None:
    """Check an environment: Gymnasium's own checks, and purity of its episodes.

    Args:
        env: An environment made by ``make``, or an id.
        **kwargs: For ``make``, where ``env`` is an id.

    Raises:
        AssertionError: If a check of Gymnasium fails.
        ValueError: If episodes differ with batch size or order.
    """
    from gymnasium.utils.env_checker import check_env as gymnasium_check_env

    env = make(env, **kwargs) if isinstance(env, str) else env
    if not isinstance(env.unwrapped, SamplesEpisodes):
        raise ValueError(f"{env} is not an environment of icl_bench")
    gymnasium_check_env(env.unwrapped)
    ids = np.array([5, 0, 3, 2**33 + 1])
    together = env.unwrapped.episodes(ids)
    for b, k in enumerate(ids):
        alone = env.unwrapped.episodes([k])
        if not torch.equal(alone.y[0], together.y[b]):
            raise ValueError(f"episode {k} has other labels alone than in a batch")
        if not torch.allclose(alone.x[0], together.x[b], rtol=1e-5, atol=1e-5):
            raise ValueError(f"episode {k} has other inputs alone than in a batch")


def check_learner(learner: Learner, env: "gymnasium.Env[Any, Any] | str", **kwargs: Any) -> None:
    """Check on fresh episodes that a learner has the right interface and does not peek.

    Args:
        learner: The learner.
        env: An environment, or an id.
        **kwargs: For ``make``, where ``env`` is an id.

    Raises:
        LearnerError: With the reason; see ``check_causality``.
    """
    source = _source(env, **kwargs)
    _check_fresh(learner, source)


def _source(env: "gymnasium.Env[Any, Any] | str", **kwargs: Any) -> EpisodeSource:
    if isinstance(env, str):
        parse_id(env)
        device, data_dir = kwargs.pop("device", "cpu"), kwargs.pop("data_dir", None)
        return EpisodeSource(env, env_args(**kwargs), device=device, data_dir=data_dir)
    if not isinstance(env.unwrapped, SamplesEpisodes):
        raise ValueError(f"{env} is not an environment of icl_bench")
    return env.unwrapped.source


def _check_fresh(learner: Learner, source: EpisodeSource) -> None:
    # Neighbouring ids share a task in the split unseen, as the episodes that are scored do.
    ids = np.arange(_FIRST_CHECK_EPISODE, _FIRST_CHECK_EPISODE + CHECK_EPISODES)
    batch = source.sampler.episodes(ids)
    check_causality(learner, batch.x, batch.prev_y, batch.num_classes, key=source.args.seed)


def evaluate(
    learner: Learner,
    env: "gymnasium.Env[Any, Any] | str",
    *,
    split: Split | None = None,
    seed: int | None = None,
    num_episodes: int = FROZEN_EPISODES,
    batch_size: int = 64,
    progress: bool = False,
    **kwargs: Any,
) -> Result:
    """Evaluate a learner on the frozen episodes 0 … num_episodes − 1, after checking it.

    Args:
        learner: A causal function (x [B, T, D], prev_y [B, T]) → logits [B, T, C].
        env: Environment id, or an environment made by ``make``.
        split: Split; ``unseen`` for an id, that of a given environment otherwise.
        seed: Stream of episodes; 0 for an id, that of a given environment otherwise.
        num_episodes: 256 for the ranked protocol, 1024 for the larger hand-in.
        batch_size: Episodes shown to the learner at once; never changes a number.
        progress: Show a progress bar.
        **kwargs: Further arguments of ``make``, where ``env`` is an id.

    Raises:
        LearnerError: If the learner peeks at what it must predict, at later steps or at other
            episodes, keeps state between calls, or returns no finite logits [B, T, C].
        ValueError: For an unknown environment or bad arguments.
        FileNotFoundError: If the data are not at hand.

    Example:
        >>> import icl_bench
        >>> result = icl_bench.evaluate(icl_bench.NearestNeighbour(), "Digits-Proj8-v0")
        >>> round(result.accuracy(), 2) > 0.5
        True
    """
    if num_episodes < 2 or batch_size < 2:
        raise ValueError("num_episodes and batch_size must be at least 2")
    if isinstance(env, str):
        kwargs |= {"split": split or "unseen", "seed": seed or 0}
    elif kwargs:
        raise ValueError(f"{', '.join(kwargs)}: give these to make, beside the environment")
    source = _source(env, **kwargs)
    if not isinstance(env, str):
        wanted = dataclasses.replace(
            source.args,
            split=split or source.args.split,
            seed=source.args.seed if seed is None else seed,
        )
        if wanted.split != source.args.split:
            raise ValueError(
                f"the environment has split {source.args.split!r}, not {split!r}: make another"
            )
        source = source.at_seed(wanted.seed)
    _check_fresh(learner, source)
    starts = list(range(0, num_episodes, batch_size))
    if num_episodes - starts[-1] == 1:  # a check needs company
        starts = starts[:-1]
    ends = [*starts[1:], num_episodes]
    key = stream_key("checked batch", source.args.seed)
    chosen = int(bounded(long_words(key, np.array([num_episodes]), 1)[0], len(starts))[0])
    parts = []
    bar = _progress(num_episodes, source.spec.id, progress)
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        ids = np.arange(start, end, dtype=np.int64)
        batch = source.sampler.episodes(ids)
        logits = call_learner(learner, batch.x, batch.prev_y, batch.num_classes)
        if i == chosen:
            check_causality(
                learner, batch.x, batch.prev_y, batch.num_classes, scored=logits, key=i + 1
            )
        parts.append((batch.y.cpu(), batch.task_id.cpu(), logits.cpu()))  # not the inputs
        bar.update(end - start)
    bar.close()
    return _result(source, parts)


def _progress(total: int, title: str, show: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=title, unit="episode", disable=None if show else True)


def _result(source: EpisodeSource, parts: list[tuple[Tensor, Tensor, Tensor]]) -> Result:
    y, task, logits = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return _make_result(
        source,
        label=y.numpy().astype(np.uint8),
        task=task.numpy(),
        prediction=logits.argmax(dim=-1).numpy().astype(np.uint8),
        log_probs=_log_probs(logits),
    )


def _log_probs(logits: Float[Tensor, "E T C"]) -> Float16[np.ndarray, "E S C"]:
    steps = list(log_prob_steps(logits.shape[1]))
    values = torch.log_softmax(logits[:, steps].double(), dim=-1)
    return values.clamp_min(-6e4).numpy().astype(np.float16)


def _make_result(source: EpisodeSource, **arrays: np.ndarray) -> Result:
    return Result(
        env=source.spec.id,
        split=source.args.split,
        fingerprint=source.fingerprint,
        seed=source.args.seed,
        env_kwargs=source.args.overrides(),
        episode=np.arange(len(arrays["label"]), dtype=np.int64),
        **arrays,
    )


def evaluate_suite(
    learner: Learner,
    name: str,
    *,
    seed: int = 0,
    missing: Literal["error", "skip"] = "error",
    **kwargs: Any,
) -> list[Result]:
    """Evaluate a learner on every environment of a suite.

    Args:
        learner: The learner.
        name: Suite, for instance ``"table2-v0"``.
        seed: Stream of episodes; boards rank seed 0.
        missing: What to do where a data set is not at hand: raise, or leave the column out.
        **kwargs: Further arguments of ``evaluate``.

    Raises:
        FileNotFoundError: If data are missing and ``missing="error"``.
        LearnerError: As ``evaluate``.
    """
    if missing not in ("error", "skip"):
        raise ValueError(f'missing must be "error" or "skip", not {missing!r}')
    results = []
    for env_id in suite(name).envs:
        try:
            results.append(evaluate(learner, env_id, seed=seed, **kwargs))
        except MissingDataError:
            if missing == "error":
                raise
    if not results:
        raise MissingDataError(f"no data set of {name} is at hand; `icl-bench download` gets them")
    return results


class RecordResult(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Scores an agent that only speaks Gymnasium: play every episode, then ask for ``result``.

    Each ``reset()`` begins the next frozen episode, from 0 on; predictions are recorded as they
    are made. The numbers are those that ``evaluate`` gives for the same predictions. What
    ``evaluate`` proves nobody can prove here: that the agent begins every episode anew and
    remembers nothing of those before. ``info`` does not name the task.

    Args:
        env: An environment made by ``make``, for instance with ``split="unseen"``.
        num_episodes: 256 for the ranked protocol.

    Example:
        >>> import icl_bench
        >>> env = icl_bench.RecordResult(icl_bench.make("Digits-Proj8-v0", split="unseen"))
        >>> for _ in range(env.num_episodes):
        ...     token, info = env.reset()
        ...     done = False
        ...     while not done:
        ...         token, reward, done, _, info = env.step(env.action_space.sample())
        >>> env.result().accuracy() < 0.3
        True
    """

    def __init__(self, env: "gymnasium.Env[Any, Any]", num_episodes: int = FROZEN_EPISODES) -> None:
        super().__init__(env)
        if not isinstance(env.unwrapped, SupervisedEnv):
            raise ValueError(f"{env} is not an environment of icl_bench")
        if num_episodes < 1:
            raise ValueError(f"num_episodes must be at least 1, not {num_episodes}")
        self.num_episodes = num_episodes
        self._inner = env.unwrapped
        self._labels: list[list[int]] = []
        self._tasks: list[int] = []
        self._predictions: list[list[int]] = []
        self._log_probs: list[np.ndarray] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin the next episode.

        Raises:
            ValueError: If an episode was left before its end, a seed or an episode was chosen, or
                all episodes have been played.
        """
        if seed is not None or options:
            raise ValueError("RecordResult plays the frozen episodes in order: reset()")
        if self._predictions and len(self._predictions[-1]) < self._inner.source.episode_length:
            raise ValueError(f"episode {len(self._predictions) - 1} was left before its end")
        k = len(self._predictions)
        if k == self.num_episodes:
            raise ValueError(f"all {k} episodes have been played: ask for result()")
        self._predictions.append([])
        self._labels.append([])
        token, info = self.env.reset(options={"episode_id": k})
        self._tasks.append(info.pop("task_id"))
        return token, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Predict; recorded."""
        token, reward, terminated, truncated, info = self.env.step(action)
        del info["task_id"]
        t, length = info["t"], self._inner.source.episode_length
        self._labels[-1].append(info["label"])
        self._predictions[-1].append(int(self._inner.vector.predictions[-1][0]))
        if t in log_prob_steps(length):
            self._log_probs.append(self._row(action))
        return token, float(reward), terminated, truncated, info

    def _row(self, action: Any) -> np.ndarray:
        if self._inner.vector.action_kind == "logits":
            logits = torch.as_tensor(action).float()[None, None]
            return np.asarray(_log_probs(logits)[0, 0])
        row = np.full(self._inner.vector.num_classes, -np.inf, np.float16)
        row[int(action)] = 0.0  # a bare label claims certainty
        return row

    def result(self) -> Result:
        """The result of all episodes.

        Raises:
            ValueError: If episodes are left to play.
        """
        length = self._inner.source.episode_length
        done = sum(len(row) == length for row in self._predictions)
        if done < self.num_episodes:
            raise ValueError(f"{done} of {self.num_episodes} episodes have been played to the end")
        steps = len(log_prob_steps(length))
        return _make_result(
            self._inner.source,
            label=np.array(self._labels, dtype=np.uint8),
            task=np.array(self._tasks, dtype=np.int64),
            prediction=np.array(self._predictions, dtype=np.uint8),
            log_probs=np.stack(self._log_probs).reshape(self.num_episodes, steps, -1),
        )
