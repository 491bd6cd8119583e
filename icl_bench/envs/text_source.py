"""TextSource: the episodes of a text environment, pure by id and as a stream.

Splits:

    train    all that may be meta-trained on of the setting's train tasks, but for val; every
             example is as likely as any other, so tasks are met in proportion to their size
    val      every twentieth example of the train tasks, by a key; demonstrations are those of train
    unseen   the queries of the test tasks, one after the other, after fixed demonstrations

*Differs from the original*: there each training example has one fixed draw of demonstrations and
there is no val; here both are drawn by the episode's key.
Source: Min et al. 2022, "MetaICL: Learning to Learn In Context".
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Int

from icl_bench.data import text
from icl_bench.data.images import DataError, MissingDataError
from icl_bench.data.text_files import WITHOUT_OPTIONS
from icl_bench.envs.source import check_ids
from icl_bench.envs.text_labels import Labels, relabelled
from icl_bench.episodes import TextEpisode, TextExample
from icl_bench.registration import find_text_spec
from icl_bench.tasks.counter import bounded, long_words, stream_key

TextEnvSplit: TypeAlias = Literal["train", "val", "unseen"]
Domain: TypeAlias = Literal["all", "new"]

VAL_EVERY = 20
# Integers of an episode beyond those of query and demonstrations: for examples that are passed
# over because their input is the query's.
_SPARE = 64
_WHOLE = ("k", "demo_seed", "seed")


@dataclasses.dataclass(frozen=True)
class TextArgs:
    """Arguments of ``icl_bench.make`` that change numbers; see its documentation.

    Raises:
        TypeError: If one has the wrong type.
        ValueError: If one is out of range, naming what there is.
    """

    split: TextEnvSplit = "train"
    domain: Domain = "all"
    k: int = text.NUM_DEMOS
    demo_seed: int = text.DEMO_SEEDS[0]
    labels: Labels = "true"
    fraction: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check(vars(self))


def _check(values: Mapping[str, Any]) -> None:
    choices: dict[str, tuple[str, ...]] = {
        "split": get_args(TextEnvSplit),
        "domain": get_args(Domain),
        "labels": get_args(Labels),
    }
    for name, known in choices.items():
        if values[name] not in known:
            more = " (seen tasks have no test files of their own)" * (values[name] == "seen")
            raise ValueError(f"{name} must be {' or '.join(known)}, not {values[name]!r}{more}")
    for name in _WHOLE:
        value = values[name]
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"{name} must be a whole number, not {value!r}")
    k, demo_seed, seed, fraction = (values[n] for n in (*_WHOLE, "fraction"))
    if k < 0 or not 0 <= demo_seed < 2**32 or not -(2**63) <= seed < 2**63:
        raise ValueError(
            f"k must be 0 or more ({k}), demo_seed in [0, 2^32) ({demo_seed}) and seed in 64 bits "
            f"({seed})"
        )
    if isinstance(fraction, bool) or not isinstance(fraction, int | float):
        raise TypeError(f"fraction must be a number, not {fraction!r}")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], not {fraction}")


@dataclasses.dataclass(frozen=True)
class _Pool:
    """Examples of a train task.

    Attributes:
        examples: All of them.
        train: Places of those that train shows.
        query: Places of those that are asked: the same, or in the split val the others.
    """

    examples: Sequence[TextExample]
    train: Int[np.ndarray, " N"]
    query: Int[np.ndarray, " Q"]


class TextSource:
    """The episodes of one text environment and split.

    Args:
        env_id: Environment id.
        args: Arguments of ``make`` that change numbers.
        data_dir: Data folder that is looked in first.

    Attributes:
        tasks: Names of the split's tasks that are at hand, in the setting's order.
        coverage: What is at hand of the setting.

    Raises:
        ValueError: For an unknown id, or labels to rename where no task has any.
        FileNotFoundError: If none of the tasks is at hand, with the way out.
        DataError: If a file is damaged, naming the line, or a task has too few examples.
    """

    def __init__(
        self,
        env_id: str,
        args: TextArgs,
        *,
        data_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.spec = find_text_spec(env_id)
        self.args = args
        self.setting = text.text_setting(self.spec.setting)
        self.view = self.spec.prompt_view
        self.coverage = text.coverage(self.setting.name, data_dir)
        self.next_episode = 0
        self._data_dir = data_dir
        # As long as the source lives: caches of the class would keep every source.
        self._pool = functools.cache(self._make_pool)
        self._unseen = functools.lru_cache(maxsize=8)(self._make_unseen)
        side = self._side()
        missing = self.coverage.missing_test
        missing = missing if args.split == "unseen" else self.coverage.missing_train
        self.tasks = tuple(task for task in side if task not in missing)
        if side and not self.tasks:
            self._load(side[0], "test" if args.split == "unseen" else "meta-train")  # says how
            for seed in text.DEMO_SEEDS:  # its queries are there
                self._load(side[0], "train", k=text.NUM_DEMOS, seed=seed)
        if not self.tasks:
            raise ValueError(
                f"{env_id} has no tasks with labels to rename: labels must be 'true'"
                if args.labels != "true"
                else f"{env_id} has no test tasks of unseen domains: domain must be 'all'"
            )

    def _side(self) -> tuple[str, ...]:
        """The split's tasks by the catalog, at hand or not."""
        setting = self.setting
        if self.args.split != "unseen":
            side = setting.train
        else:
            side = setting.test if self.args.domain == "all" else setting.unseen_domain
        if self.args.labels == "true":
            return side
        return tuple(
            task
            for task in side
            if text.text_task(task).kind == "classification" and task not in WITHOUT_OPTIONS
        )

    def _load(self, task: str, split: text.TextSplit, **draw: int) -> tuple[TextExample, ...]:
        return text.load_text(task, split, data_dir=self._data_dir, **draw)

    # Episodes by id

    def episodes(self, ids: Any) -> list[TextEpisode]:
        """The episodes with these ids; the same for every batch size, order and process.

        Raises:
            ValueError: If ids are no whole numbers from 0 on; of the split unseen, if there is no
                such query.
        """
        return [self._episode(int(k)) for k in check_ids(ids)]

    def _episode(self, k: int) -> TextEpisode:
        if self.args.split == "unseen":
            ends = self._ends
            if k >= ends[-1]:
                raise ValueError(f"there is no query {k}: the test tasks have {ends[-1]}")
            place = int(np.searchsorted(ends, k, side="right"))
            index = k - (int(ends[place - 1]) if place else 0)
            return self._unseen(self.tasks[place], self.args.demo_seed, self.args.k)[index]
        ends, demos = self._ends, self.args.k
        key = stream_key("text episode", self.args.split, self.args.seed)
        integers = iter(long_words(key, np.array([k]), 1 + demos + _SPARE)[0])
        index = _below(int(ends[-1]), next(integers))
        place = int(np.searchsorted(ends, index, side="right"))
        task = self.tasks[place]
        pool = self._pool(task)
        index = int(pool.query[index - (int(ends[place - 1]) if place else 0)])
        query = pool.examples[index]
        others = (
            pool.examples[i]
            for i in _draw(pool.train, integers)
            if i != index and pool.examples[i].input != query.input
        )
        shown = tuple(itertools.islice(others, demos))
        if len(shown) < demos:
            raise DataError(
                f"{task} has too few examples unlike the query for k={demos}: take a smaller k"
            )
        return relabelled(TextEpisode(task, shown, query, k), self.args.labels, k)

    def take(self, count: int) -> Int[np.ndarray, " B"]:
        """Ids of the next ``count`` episodes; the split unseen begins anew after its last query."""
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
            raise ValueError(f"the number of episodes must be an integer above 0, not {count!r}")
        ids = np.arange(self.next_episode, self.next_episode + int(count))
        self.next_episode += int(count)
        return ids % self.num_queries if self.args.split == "unseen" else ids

    def reseed(self, seed: int) -> None:
        """Go to episode 0 of another stream; the split unseen has one."""
        self.args = dataclasses.replace(self.args, seed=seed)
        self.next_episode = 0

    def state_dict(self) -> dict[str, int]:
        """Where the stream stands: resuming is one integer."""
        return {"seed": self.args.seed, "next_episode": self.next_episode}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where ``state_dict`` was taken."""
        seed, next_episode = int(state["seed"]), int(state["next_episode"])
        if next_episode < 0:
            raise ValueError(f"next_episode must not be negative: {next_episode}")
        self.reseed(seed)
        self.next_episode = next_episode

    # The test side, task by task

    @property
    def num_queries(self) -> int:
        """Number of examples that are asked: queries of the test tasks, or training examples."""
        return int(self._ends[-1])

    def queries(
        self, task: str, demo_seed: int | None = None, k: int | None = None
    ) -> list[TextEpisode]:
        """Every query of a test task after the demonstrations of a seed.

        Args:
            task: One of ``tasks``.
            demo_seed: Draw of demonstrations; that of the environment by default.
            k: Number of demonstrations; that of the environment by default.

        Raises:
            ValueError: If the split is not unseen or there is no such task.
        """
        if self.args.split != "unseen" or task not in self.tasks:
            raise ValueError(
                f"{self.spec.id}, split {self.args.split}, has no queries of {task!r}; test tasks "
                f"at hand: {', '.join(self.tasks) if self.args.split == 'unseen' else 'none'}"
            )
        seed = self.args.demo_seed if demo_seed is None else demo_seed
        return list(self._unseen(task, seed, self.args.k if k is None else k))

    def checksum(self, task: str) -> str:
        """SHA-256 of a test task's queries and of its draws of demonstrations, as canonical JSON.

        Two evaluations of a task compare if it is the same.
        """
        if text.text_task(task).source == "user":  # perhaps too few examples for these draws
            draws = [self._load(task, "train")]
        else:
            size = text.NUM_DEMOS
            draws = [self._load(task, "train", k=size, seed=seed) for seed in text.DEMO_SEEDS]
        parts = [self._load(task, "test"), *draws]
        content = [[[e.input, e.output, list(e.options)] for e in part] for part in parts]
        canonical = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def train_checksum(self) -> str:
        """SHA-256 of all examples that the training episodes come from, task by task."""
        digest = hashlib.sha256()
        for task in self.tasks:
            pool = self._pool(task)
            shown = [pool.examples[i] for i in pool.train.tolist()]
            rows = [task, *([e.input, e.output, list(e.options)] for e in shown)]
            digest.update(json.dumps(rows, ensure_ascii=True).encode())
        return digest.hexdigest()

    def _make_unseen(self, task: str, seed: int, k: int) -> tuple[TextEpisode, ...]:
        shown = self._load(task, "train", k=k, seed=seed) if k else ()
        # One renaming for all seeds, so that a query's right option is the same for all.
        return tuple(
            relabelled(TextEpisode(task, shown, query, i, seed), self.args.labels, 0)
            for i, query in enumerate(self._queries(task))
        )

    def _queries(self, task: str) -> list[TextExample]:
        """A test task's examples.

        The options of multi-choice tasks from files are put in an order drawn by a key: in some
        files the right one comes first (quail), and a tie goes to the first.
        """
        examples, row = list(self._load(task, "test")), text.text_task(task)
        if row.source != "metaicl" or row.kind != "multi-choice":
            return examples
        most = max(len(example.options) for example in examples)
        marks = long_words(stream_key("text options", task), np.arange(len(examples)), most)
        for i, (example, keys) in enumerate(zip(examples, marks, strict=True)):
            order = np.argsort(keys[: len(example.options)], kind="stable")
            options = tuple(example.options[j] for j in order)
            examples[i] = dataclasses.replace(example, options=options)
        return examples

    # Train tasks

    @functools.cached_property
    def _ends(self) -> Int[np.ndarray, " K"]:
        """Running sums of the tasks' numbers of queries."""
        if self.args.split == "unseen":
            return np.cumsum([len(self._load(task, "test")) for task in self.tasks])
        ends = np.cumsum([len(self._pool(task).query) for task in self.tasks])
        if ends[-1] == 0:
            raise DataError(f"{self.spec.id}: its train tasks are too small for a split val")
        return ends

    def _make_pool(self, task: str) -> _Pool:
        examples = self._load(task, "meta-train")
        n = len(examples)
        places = np.arange(n)
        marks = long_words(stream_key("text val", task), places, 1)[:, 0]
        is_val = bounded(marks, VAL_EVERY) == 0
        train = self._part(task, examples, places[~is_val])
        if len(train) <= self.args.k:
            raise DataError(
                f"{task} has {len(train)} examples to meta-train on, too few for k={self.args.k} "
                "demonstrations and a query: take a smaller k, or leave the task out"
            )
        return _Pool(examples, train, places[is_val] if self.args.split == "val" else train)

    def _part(
        self, task: str, examples: Sequence[TextExample], places: Int[np.ndarray, " N"]
    ) -> Int[np.ndarray, " M"]:
        """``fraction`` of the examples with each label; k + 1 at the least, so that one can ask."""
        if self.args.fraction == 1:
            return places
        marks = long_words(stream_key("text fraction", task), places, 1)[:, 0]
        order = places[np.argsort(marks, kind="stable")]
        strata: dict[str, list[int]] = {}
        classes = text.text_task(task).kind == "classification"
        for place in order.tolist():
            strata.setdefault(examples[place].output if classes else "", []).append(place)
        kept = [
            place
            for stratum in strata.values()
            for place in stratum[: max(1, round(self.args.fraction * len(stratum)))]
        ]
        chosen = set(kept)
        more = [place for place in order.tolist() if place not in chosen]
        return np.sort(np.array(kept + more[: max(0, self.args.k + 1 - len(kept))]))


def _draw(places: Int[np.ndarray, " N"], integers: Iterator[Any]) -> Iterator[int]:
    """Places in random order, one for each integer: the first steps of a Fisher–Yates shuffle."""
    moved: dict[int, int] = {}
    for i, integer in zip(range(len(places)), integers, strict=False):
        j = i + _below(len(places) - i, integer)
        yield int(places[moved.get(j, j)])
        moved[j] = moved.get(i, i)


def _below(n: int, word: Any) -> int:
    """``counter.bounded`` of one word; an array for each would take most of an episode's time."""
    return int(word) * n >> 64


def text_args(**given: Any) -> TextArgs:
    """Arguments of ``make`` as the user gave them, checked; NumPy's whole numbers become Python's.

    Raises:
        TypeError: For an unknown argument or one of the wrong type.
        ValueError: For one that is out of range.
    """
    defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(TextArgs)}
    if unknown := sorted(set(given) - set(defaults)):
        raise TypeError(f"unknown argument {', '.join(unknown)}: there are {', '.join(defaults)}")
    values = defaults | given
    _check(values)
    return TextArgs(**values | {name: int(values[name]) for name in _WHOLE})


__all__ = ["MissingDataError", "TextArgs", "TextSource", "text_args"]
