"""Gymnasium environments of text: one step, a query after demonstrations of its task."""

import os
from collections.abc import Sequence
from typing import Any, Literal

import gymnasium
import numpy as np

from icl_bench.envs.text_source import TextSource, text_args
from icl_bench.episodes import TextEpisode
from icl_bench.tasks.prompts import (
    PromptBatch,
    PromptFormat,
    Tokenizer,
    byte_tokenizer,
    hugging_face_tokenizer,
    pad,
    training_sequence,
)

# Characters of a text, and options of a query: no task of MetaICL comes near.
MAX_CHARACTERS, MAX_OPTIONS = 2**20, 2**8

TextAction = Literal["option", "log-likelihoods"]


class UnicodeText(gymnasium.spaces.Text):
    """Texts of any characters that UTF-8 can encode; samples are printable ASCII."""

    def __init__(self, max_length: int = MAX_CHARACTERS) -> None:
        super().__init__(max_length=max_length, min_length=0, charset=_PRINTABLE)

    def contains(self, x: Any) -> bool:
        """Whether x is a text of at most ``max_length`` characters, none half a surrogate pair."""
        if not isinstance(x, str) or len(x) > self.max_length:
            return False
        try:
            x.encode()
        except UnicodeEncodeError:
            return False
        return True

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """A short text of printable ASCII."""
        length = int(self.np_random.integers(0, min(self.max_length, 20) + 1))
        letters = list(_PRINTABLE)
        return "".join(self.np_random.choice(letters, length))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnicodeText) and self.max_length == other.max_length

    def __repr__(self) -> str:
        return f"UnicodeText({self.max_length})"


_PRINTABLE = "".join(map(chr, range(32, 127)))


class TextEnv(gymnasium.Env[Any, Any]):
    """One query at a time.

    Observation: a dictionary of ``prompt`` (the demonstrations as the environment's view writes
    them, with newlines), ``query`` (the input that is asked) and ``options`` (the candidate
    answers, of which there are none where a training task is free-form).
    Action: the index of an option, or a log-likelihood for each (others are left out).
    Reward: 1 if right, else 0; for log-likelihoods the log-probability of the right option, among
    the options alone. An index beyond the options is wrong; a free-form query has no reward.
    Episode end: ``terminated`` after the one step, whose observation is the same again.
    ``info`` of a reset: ``task``, ``kind``, ``metric`` and ``episode_id``; of the step ``label``
    (index of the right option, -1 if free-form) and ``output`` too.

    Arguments are those of ``icl_bench.make``.
    """

    # Declared by Gymnasium as an instance variable.
    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012

    def __init__(
        self,
        env_id: str,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        action: TextAction = "option",
        render_mode: str | None = None,
        **args: Any,
    ) -> None:
        if action not in ("option", "log-likelihoods"):
            raise ValueError(f'action must be "option" or "log-likelihoods", not {action!r}')
        if render_mode not in (None, "ansi"):
            raise ValueError(f'render_mode must be None or "ansi", not {render_mode!r}')
        self.source = TextSource(env_id, text_args(**args), data_dir=data_dir)
        self.prompt_format = PromptFormat(self.source.view)
        self.action_kind = action
        self.render_mode = render_mode
        spaces = gymnasium.spaces
        self.observation_space = spaces.Dict(
            {
                "prompt": UnicodeText(),
                "query": UnicodeText(),
                "options": spaces.Sequence(UnicodeText()),
            }
        )
        self.action_space = (
            spaces.Discrete(MAX_OPTIONS)
            if action == "option"
            else spaces.Box(-np.inf, np.inf, (MAX_OPTIONS,), np.float32)
        )
        self._episode: TextEpisode | None = None
        self._over = True
        self._chosen: int | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin the next episode, or ``options={"episode_id": k}``.

        Raises:
            ValueError: For unknown options, and for a query that there is not.
        """
        options = dict(options or {})
        ids = [options.pop("episode_id")] if "episode_id" in options else None
        if options:
            raise ValueError(f"unknown options of reset: {', '.join(map(str, options))}")
        super().reset(seed=seed)
        before = self.source.state_dict()
        try:
            if seed is not None:
                self.source.reseed(int(seed))
            (self._episode,) = self.source.episodes(self.source.take(1) if ids is None else ids)
        except (ValueError, OSError):  # a refused call changes nothing
            self.source.load_state_dict(before)
            raise
        self._over, self._chosen = False, None
        return self._observation(), self._info(self._episode)

    def _info(self, episode: TextEpisode) -> dict[str, Any]:
        from icl_bench.data.text import text_task

        row = text_task(episode.task)
        about = {"task": row.name, "kind": row.kind, "metric": row.metric}
        return about | {"episode_id": episode.episode}

    def _observation(self) -> dict[str, Any]:
        assert self._episode is not None
        query = self._episode.query
        prompt = prompt_text(self.prompt_format, self._episode)
        return {"prompt": prompt, "query": query.input, "options": query.options}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Answer the query.

        Raises:
            gymnasium.error.ResetNeeded: Before the first reset and after the step.
            ValueError: If the action is out of range, not a number or has the wrong shape.
        """
        if self._over or self._episode is None:
            raise gymnasium.error.ResetNeeded("step was called without a query: call reset first")
        query = self._episode.query
        label = query.answer if query.options else -1
        reward = self._judge(action, label, len(query.options))
        self._over = True
        info = self._info(self._episode) | {"label": label, "output": query.output}
        return self._observation(), reward, True, False, info

    def _judge(self, action: Any, label: int, count: int) -> float:
        if self.action_kind == "option":
            index = np.asarray(action)
            whole = index.ndim == 0 and index.dtype.kind in "iu"
            if not whole or not 0 <= int(index) < MAX_OPTIONS:
                raise ValueError(f"an option is an index from 0 to {MAX_OPTIONS - 1}: {action!r}")
            self._chosen = int(index)
            return float(self._chosen == label)
        values = np.asarray(action, dtype=np.float64)
        if values.ndim != 1 or len(values) < count:
            raise ValueError(f"{count} log-likelihoods are needed, not shape {values.shape}")
        if count == 0:
            return 0.0
        values = values[:count]
        if np.isnan(values).any() or np.isposinf(values).any() or np.isneginf(values).all():
            raise ValueError(f"log-likelihoods must be numbers below infinity: {values.tolist()}")
        self._chosen = int(values.argmax())
        return float(values[label] - np.logaddexp.reduce(values))

    def render(self) -> str | None:
        """The prompt, the query with its options, and the answers once they are there."""
        if self.render_mode is None:
            gymnasium.logger.warn('render needs render_mode="ansi" in make')
            return None
        if self._episode is None:
            raise gymnasium.error.ResetNeeded("render was called before the first reset")
        return episode_text(self.prompt_format, self._episode, self._chosen)

    # For meta-training

    def episodes(self, ids: Any) -> list[TextEpisode]:
        """The episodes with these ids; the same for every batch size, order and process."""
        return self.source.episodes(ids)

    def sample(self, batch_size: int, tokenizer: Any = None) -> PromptBatch:
        """The next ``batch_size`` episodes as padded tokens, the query's output to be trained.

        Args:
            batch_size: B.
            tokenizer: A tokenizer of Hugging Face, any function from text to ids, or None: bytes.
        """
        episodes = self.source.episodes(self.source.take(batch_size))
        return prompt_batch(self.prompt_format, as_tokenizer(tokenizer), episodes)

    def state_dict(self) -> dict[str, int]:
        """Where the stream of episodes stands."""
        return self.source.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.source.load_state_dict(state)


def as_tokenizer(tokenizer: Any) -> Tokenizer:
    """A function from text to ids: bytes for None; tokenizers of Hugging Face are wrapped."""
    if tokenizer is None:
        return byte_tokenizer
    if hasattr(tokenizer, "encode"):
        return hugging_face_tokenizer(tokenizer)
    if not callable(tokenizer):
        raise ValueError(f"a tokenizer is a function from text to ids, not {tokenizer!r}")
    found: Tokenizer = tokenizer
    return found


def prompt_batch(
    prompt_format: PromptFormat, tokenize: Tokenizer, episodes: Sequence[TextEpisode]
) -> PromptBatch:
    """Padded training prompts of these episodes: ids, attention mask and loss mask."""
    return pad([training_sequence(prompt_format, tokenize, episode) for episode in episodes])


def prompt_text(prompt_format: PromptFormat, episode: TextEpisode) -> str:
    """The demonstrations as text; nothing is cut."""
    parts = []
    for i, example in enumerate(episode.demonstrations):
        before, between = (
            prompt_format.before(example, first=i == 0),
            prompt_format.between(example),
        )
        fields = (example.input, example.output)
        first, second = fields if prompt_format.view == "direct" else reversed(fields)
        parts.append(before + first + between + second)
    return "".join(parts)


def episode_text(
    prompt_format: PromptFormat, episode: TextEpisode, chosen: int | None = None
) -> str:
    """An episode for people: demonstrations, query, options (> chosen, * right once chosen)."""
    query = episode.query
    lines = [prompt_text(prompt_format, episode), "", f"[query] {query.input}"]
    for i, option in enumerate(query.options):
        right = chosen is not None and i == query.answer
        lines.append(f"{'>' if i == chosen else ' '}{'*' if right else ' '} {option}")
    return "\n".join(lines)
