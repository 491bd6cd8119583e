"""Gymnasium environments of labelled vectors: the token of step t is concat(x_t, one_hot(y_{t-1})).

One implementation: the single environment is the vector environment with one episode.
"""

import os
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from icl_bench.envs.render import draw_episode
from icl_bench.envs.source import EpisodeSource, SamplesEpisodes, check_ids, env_args
from icl_bench.episodes import one_hot_labels

# Gymnasium asks for finite bounds. Projected inputs have about unit variance; this is never met.
BOUND = 1e6

ActionKind = Literal["label", "logits"]

# A forked worker (Gymnasium's AsyncVectorEnv) has none of the threads of PyTorch's OpenMP, and
# would wait for them for ever; it must not ask for more than its own.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class SupervisedVectorEnv(VectorEnv[Any, Any, Any], SamplesEpisodes):
    """``num_envs`` episodes in lock-step, computed as one batch.

    Observation: the token of step t, float32 [num_envs, D + C]; the label part is zero at step 0.
    Action: predicted labels [num_envs], or logits [num_envs, C].
    Reward: 1 if right, else 0; for logits the log-probability of the right class.
    Episode end: ``terminated`` after T steps, all at once; ``truncated`` never; no auto-reset.
    The observation after the last step has a zero input and the last label.
    ``info`` of a step: ``label``, ``task_id`` and ``t``, one array each; of a reset:
    ``episode_id`` and ``task_id``.

    Arguments are those of ``icl_bench.make`` and ``icl_bench.make_vec``.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - declared so by Gymnasium
        "render_modes": ["rgb_array"],
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.DISABLED,
    }

    def __init__(
        self,
        env_id: str,
        num_envs: int = 1,
        *,
        device: str | torch.device = "cpu",
        data_dir: str | os.PathLike[str] | None = None,
        action: ActionKind = "label",
        backend: Literal["numpy", "torch"] = "numpy",
        render_mode: str | None = None,
        **args: Any,
    ) -> None:
        if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
            raise ValueError(f"num_envs must be an integer of at least 1, not {num_envs!r}")
        if action not in ("label", "logits"):
            raise ValueError(f'action must be "label" or "logits", not {action!r}')
        if backend not in ("numpy", "torch"):
            raise ValueError(f'backend must be "numpy" or "torch", not {backend!r}')
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f'render_mode must be None or "rgb_array", not {render_mode!r}')
        self.source = EpisodeSource(env_id, env_args(**args), device=device, data_dir=data_dir)
        self.num_envs = num_envs
        self.action_kind = action
        self.backend = backend
        self.render_mode = render_mode
        spec = self.source.spec
        self.num_classes, self.num_features = spec.num_classes, spec.num_features
        low = np.zeros(spec.num_features + spec.num_classes, dtype=np.float32)
        high = np.ones_like(low)
        low[: spec.num_features], high[: spec.num_features] = -BOUND, BOUND
        self.single_observation_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        self.single_action_space = (
            gymnasium.spaces.Discrete(spec.num_classes)
            if action == "label"
            else gymnasium.spaces.Box(-np.inf, np.inf, (spec.num_classes,), np.float32)
        )
        batch = gymnasium.vector.utils.batch_space
        self.observation_space = batch(self.single_observation_space, num_envs)
        self.action_space = batch(self.single_action_space, num_envs)
        self.t = -1  # no episode has begun

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Begin the next ``num_envs`` episodes.

        Args:
            seed: Go to episode 0 of this stream first.
            options: ``{"episode_id": k}`` (single) or ``{"episode_ids": [...]}`` picks episodes
                and leaves the stream where it is.

        Raises:
            ValueError: For unknown options and for seeds or ids that are not one per call.
        """
        options = dict(options or {})
        if seed is not None and not isinstance(seed, int | np.integer):
            raise ValueError(f"one seed for the whole stream, not {seed!r}")
        mask = options.pop("reset_mask", None)
        if mask is not None and not np.all(mask):
            raise ValueError("episodes go in lock-step: reset_mask must select all of them")
        ids = options.pop("episode_ids", None)
        if ids is None and "episode_id" in options:
            ids = [options.pop("episode_id")]
        if options:
            raise ValueError(f"unknown options of reset: {', '.join(map(str, options))}")
        if ids is not None:
            ids = check_ids(ids)
            if len(ids) != self.num_envs:
                raise ValueError(f"{len(ids)} episode ids for {self.num_envs} episodes")
        if seed is not None:  # when all else holds: a refused call changes nothing
            self.source.reseed(int(seed))
            VectorEnv.reset(self, seed=int(seed))
        if ids is None:
            ids = self.source.take(self.num_envs)
        self.plan = self.source.plan(ids)
        batch = self.source.sampler.realise(self.plan)
        tokens = batch.tokens()
        last = torch.zeros_like(tokens[:, :1])
        last[:, :, self.num_features :] = one_hot_labels(batch.y[:, -1:], self.num_classes)
        self._tokens = self._output(torch.cat([tokens, last], dim=1))
        self._y, self._task = self._output(batch.y), self._output(batch.task_id)
        self._length = batch.y.shape[1]
        self.predictions: list[Any] = []
        self.t = 0
        info = {"episode_id": self._output(torch.from_numpy(self.plan.episode))}
        return self._observation(), {**info, "task_id": _copy(self._task)}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Predict the labels of step t; the next token reveals them.

        Raises:
            gymnasium.error.ResetNeeded: Before the first reset and after the last step.
            TypeError: If actions have the wrong dtype.
            ValueError: If actions have the wrong shape, are out of range or not a number.
        """
        if self.t < 0 or self.t == self._length:
            why = "before the first reset" if self.t < 0 else f"after all {self._length} steps"
            raise gymnasium.error.ResetNeeded(f"step was called {why}: call reset first")
        y = _copy(self._y[:, self.t])
        prediction, reward = self._judge(actions, y)
        self.predictions.append(_copy(prediction))
        info = {"label": y, "task_id": _copy(self._task), "t": np.full(self.num_envs, self.t)}
        self.t += 1
        # Arrays of the caller's own, who may change them in place.
        never = torch.zeros(self.num_envs, dtype=torch.bool)
        terminated = self._output(never + (self.t == self._length))
        return self._observation(), reward, terminated, self._output(never), info

    def _observation(self) -> Any:
        return _copy(self._tokens[:, self.t])

    def _output(self, tensor: Tensor) -> Any:
        return tensor.to(self.source.device) if self.backend == "torch" else tensor.cpu().numpy()

    def _judge(self, actions: Any, y: Any) -> tuple[Any, Any]:
        """(predictions, rewards) of the actions."""
        tensors = self.backend == "torch"
        actions = torch.as_tensor(actions, device=self.source.device) if tensors else actions
        array: Any = actions if tensors else np.asarray(actions)
        kind = "f" if (array.is_floating_point() if tensors else array.dtype.kind == "f") else "i"
        if (array.dtype == torch.bool) if tensors else (array.dtype.kind not in "iuf"):
            raise TypeError(f"actions must be numbers, not {array.dtype}")
        shape = (self.num_envs,) + (self.num_classes,) * (self.action_kind == "logits")
        if tuple(array.shape) != shape:
            raise ValueError(f"actions must have shape {shape}, not {tuple(array.shape)}")
        if self.action_kind == "label":
            if kind != "i":
                raise TypeError(f"labels must be integers in [0, C), not {array.dtype}")
            if int(array.min()) < 0 or int(array.max()) >= self.num_classes:
                raise ValueError(f"labels must be in [0, {self.num_classes}): {array.tolist()}")
            right = array == y
            return array, right.double() if tensors else right.astype(np.float64)
        if kind != "f":
            raise TypeError(f"logits must be floating-point numbers, not {array.dtype}")
        logits = torch.as_tensor(array).double()
        if bool((torch.isnan(logits) | (logits == torch.inf)).any()):
            raise ValueError(f"logits must not be NaN or +inf (step {self.t})")
        if bool((logits == -torch.inf).all(dim=-1).any()):
            raise ValueError(f"at least one logit must be finite (step {self.t})")
        chosen = torch.log_softmax(logits, dim=-1).gather(-1, torch.as_tensor(y)[:, None])[:, 0]
        prediction = logits.argmax(dim=-1)
        return (prediction, chosen) if tensors else (prediction.numpy(), chosen.numpy())

    def render(self) -> tuple[np.ndarray, ...] | None:
        """A picture of every episode so far, uint8 [height, width, 3] each."""
        if self.render_mode is None:
            gymnasium.logger.warn('render needs render_mode="rgb_array" in make')
            return None
        if self.t < 0:
            raise gymnasium.error.ResetNeeded("render was called before the first reset")
        return tuple(self.draw(b) for b in range(self.num_envs))

    def draw(self, b: int, steps: int | None = None) -> np.ndarray:
        """Picture of episode b so far; or of its first ``steps`` steps with all their labels."""
        shown = min(self.t + 1 if steps is None else steps, self._length)
        if shown < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        images = self.source.sampler.shown(self.plan)[b, :shown].cpu().numpy()
        tokens = torch.as_tensor(self._tokens)[b, :shown, : self.num_features].cpu().numpy()
        view = self.source.sampler.view
        return draw_episode(
            np.tile(images, (1, self.source.sampler.copies)),
            tokens,
            labels=self.plan.y[b, :shown],
            predictions=None if steps else [int(p[b]) for p in self.predictions],
            image_shape=(view.channels, view.height, view.width),
            what="image" if view.network is None else "features",
            title=f"{self.source.spec.id} · {self.source.args.split} · task {self.plan.task[b]} "
            f"· episode {self.plan.episode[b]}",
        )


def _copy(values: Any) -> Any:
    return values.clone() if isinstance(values, Tensor) else values.copy()


class SupervisedEnv(gymnasium.Env[Any, Any], SamplesEpisodes):
    """One episode at a time; see ``SupervisedVectorEnv``, of which this is row 0."""

    # Declared by Gymnasium as an instance variable.
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012

    def __init__(self, env_id: str, **kwargs: Any) -> None:
        if "backend" in kwargs or "num_envs" in kwargs:
            raise TypeError("num_envs and backend are arguments of icl_bench.make_vec")
        self.vector = SupervisedVectorEnv(env_id, 1, **kwargs)
        self.source = self.vector.source
        self.render_mode = self.vector.render_mode
        self.observation_space = self.vector.single_observation_space
        self.action_space = self.vector.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin the next episode, or ``options={"episode_id": k}``; see the vector environment."""
        super().reset(seed=seed)
        observation, info = self.vector.reset(seed=seed, options=options)
        return observation[0], {name: int(value[0]) for name, value in info.items()}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Predict the label of step t; see the vector environment."""
        observation, reward, terminated, _, info = self.vector.step(np.asarray(action)[None])
        values = {name: int(value[0]) for name, value in info.items()}
        return observation[0], float(reward[0]), bool(terminated[0]), False, values

    def render(self) -> np.ndarray | None:
        """A picture of the episode so far, uint8 [height, width, 3]."""
        pictures = self.vector.render()
        return None if pictures is None else pictures[0]
