"""The episode sampler: episode ids in, batches of projected episodes on a device out.

``plan`` draws all integers of the episodes on the host, so they are the same on every device;
``episodes`` gathers, normalises and projects on the device. Both are pure functions of the ids.
"""

import dataclasses

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from icl_bench.catalog import View
from icl_bench.episodes import SPLITS, EpisodeBatch, Split
from icl_bench.tasks import counter, projection

# Distinct points of a Random task (Kirsch et al. 2022, §4) and of a repeated-points episode.
NUM_POINTS = 10

# Validation tasks repeat after this many episodes.
VAL_TASKS = 2**20

# Episodes of one task in the frozen protocol: k = episode id // 16 (Kirsch et al. 2022, Table 2).
EPISODES_PER_TASK = 16


@dataclasses.dataclass(frozen=True)
class TaskDistribution:
    """Everything that the integers of an episode depend on, besides its id.

    Attributes:
        base: Name of the base data set; part of the keys of examples and task draws.
        num_classes: C.
        num_examples: Size N of the split of the base data set; ``None`` for synthetic data.
        split: Split.
        num_tasks: Size of the set of training tasks; ``None`` = every episode a new task.
        bias: Fraction of training tasks with the one fixed permutation, decided by task id.
        single_task: Fraction of training episodes that come from task 0.
        repeat: Fraction of training episodes that draw from only 10 distinct examples.
        episode_length: T.
        seed: Stream: which tasks and examples are drawn.
        task_seed: The set of tasks itself.
    """

    base: str
    num_classes: int
    num_examples: int | None
    split: Split
    num_tasks: int | None
    bias: float
    single_task: float
    repeat: float
    episode_length: int
    seed: int
    task_seed: int

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {self.split!r}")
        for name in ("bias", "single_task", "repeat"):
            _check_fraction(name, getattr(self, name))
        for name in ("episode_length", "num_tasks"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < 2**62:
                raise ValueError(f"{name} must be at least 1 and below 2^62, not {value}")
        for name in ("seed", "task_seed"):
            if not 0 <= getattr(self, name) < 2**63:
                raise ValueError(f"{name} must be in [0, 2^63), not {getattr(self, name)}")
        if self.num_tasks is None and self.split == "seen":
            raise ValueError(
                'split="seen" meets the training tasks again, which num_tasks=None never repeats: '
                'give a finite num_tasks, or use split="unseen"'
            )
        if self.num_tasks is None and self.single_task:
            raise ValueError("single_task needs a finite num_tasks: unbounded tasks have no task 0")
        if self.num_examples is not None and self.episode_length > self.num_examples:
            raise ValueError(
                f"episode_length={self.episode_length} is more than the {self.num_examples} "
                f"examples that split={self.split!r} of {self.base} draws from without "
                f"replacement: use episode_length <= {self.num_examples}"
            )

    @property
    def unbounded(self) -> bool:
        """Whether every episode is a task of its own."""
        return self.num_tasks is None and self.split == "train"

    @property
    def pool(self) -> str:
        """Name of the pool that task ids of this split belong to; pools are disjoint by key."""
        if self.unbounded:  # fresh for every stream: two seeds share no task
            return f"fresh-{self.seed}"
        return {"train": "train", "seen": "train", "val": "val", "unseen": "eval"}[self.split]


@dataclasses.dataclass(frozen=True)
class Plan:
    """All integers of a batch of episodes.

    Attributes:
        episode: Episode ids.
        task: Task ids.
        permutation: ρ of each episode's task: permuted label = row[label].
        drawn: Distinct examples, as indices into the split (Random: 0 … 9, the task's points).
        slot: Which of the drawn examples each step shows: 0 … T − 1 but for repeated points.
        repeated: Which episodes draw from NUM_POINTS distinct examples only.
        y: Permuted labels.
    """

    episode: Int[np.ndarray, " B"]
    task: Int[np.ndarray, " B"]
    permutation: Int[np.ndarray, "B C"]
    drawn: Int[np.ndarray, "B U"]
    slot: Int[np.ndarray, "B T"]
    repeated: Bool[np.ndarray, " B"]
    y: Int[np.ndarray, "B T"]

    @property
    def example(self) -> Int[np.ndarray, "B T"]:
        """Index of each step's example in the split (Random: among the task's points)."""
        return np.take_along_axis(self.drawn, self.slot, axis=1)


class TaskSampler:
    """Draws episodes of one task distribution on one device.

    Args:
        distribution: What the integers depend on.
        view: Image size; fixes D.
        pixels: All images of the split, in [0, 1], N rows of P features, on any device, or
            features of a network; ``None`` for synthetic data (uniform points).
        copies: Equal blocks of features that one row stands for: D = copies · P.
        labels: Labels of the split, in [0, C); ``None`` for synthetic data.
        stats: Mean and standard deviation of all pixels, for z-normalisation.
        device: Where episodes are made.
    """

    def __init__(
        self,
        distribution: TaskDistribution,
        view: View,
        pixels: Float[Tensor, "N P"] | None,
        copies: int,
        labels: UInt8[np.ndarray, " N"] | None,
        stats: tuple[float, float],
        device: torch.device | str,
    ) -> None:
        self.distribution = distribution
        self.view = view
        self.copies = copies
        self.device = torch.device(device)
        self.pixels = None if pixels is None else pixels.to(self.device)
        self.labels = labels
        self.stats = stats
        dim, length = view.num_features, distribution.episode_length
        self._short_cut = (
            distribution.num_tasks is None
            and distribution.split in ("train", "val")
            and dim > projection.EXPLICIT_UP_TO
            and length < dim
        )

    # Integers

    def _key(self, purpose: str, *parts: str | int) -> int:
        d = self.distribution
        return counter.stream_key(purpose, *parts, d.pool, d.task_seed)

    def _stream(self, purpose: str) -> int:
        d = self.distribution
        return counter.stream_key(purpose, d.base, d.split, d.seed)

    def task_ids(self, ids: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        """Task of each episode; see the table of splits in BENCHMARK.md."""
        d = self.distribution
        if d.split == "unseen":
            return ids // EPISODES_PER_TASK
        if d.split == "val":
            return ids % VAL_TASKS
        if d.num_tasks is None:
            return ids
        tasks = _scale(counter.long_words(self._stream("task"), ids, 1)[:, 0], d.num_tasks)
        if d.single_task:
            single = counter.uniforms(self._stream("single task"), ids, 1)[:, 0] < d.single_task
            tasks[single] = 0
        return tasks

    def permutations(self, tasks: Int[np.ndarray, " B"]) -> Int[np.ndarray, "B C"]:
        """ρ of each task: uniform, but for the biased fraction of training tasks."""
        d = self.distribution
        out = projection.permutations(self._key("permutation", d.num_classes), tasks, d.num_classes)
        if d.bias and d.split in ("train", "seen"):
            key = counter.stream_key("fixed permutation", d.num_classes, d.task_seed)
            fixed = projection.permutations(key, np.zeros(1, np.int64), d.num_classes)
            out[counter.uniforms(self._key("bias"), tasks, 1)[:, 0] < d.bias] = fixed[0]
        return out

    def plan(self, ids: Int[np.ndarray, " B"], repeat: float | None = None) -> Plan:
        """Integers of these episodes: tasks, permutations, examples and labels."""
        d = self.distribution
        repeat = self._repeat(repeat)
        tasks = self.task_ids(ids)
        rho = self.permutations(tasks)
        length = d.episode_length
        slot = np.broadcast_to(np.arange(length), (len(ids), length)).copy()
        if d.num_examples is None:  # Random: with replacement from the task's points
            repeated = np.ones(len(ids), dtype=bool)
            slot = self._slots(ids, NUM_POINTS)
            drawn = np.broadcast_to(np.arange(NUM_POINTS), (len(ids), NUM_POINTS))
            key = self._key("point labels", d.num_classes)
            label = counter.bounded(counter.long_words(key, tasks, NUM_POINTS), d.num_classes)
            label = np.take_along_axis(label, slot, axis=1)
        else:
            assert self.labels is not None
            repeated = np.zeros(len(ids), dtype=bool)
            drawn = projection.examples(self._stream("examples"), ids, length, d.num_examples)
            if repeat:
                repeated = counter.uniforms(self._stream("repeat"), ids, 1)[:, 0] < repeat
                slot[repeated] = self._slots(ids[repeated], min(NUM_POINTS, length))
            label = self.labels[np.take_along_axis(drawn, slot, axis=1)].astype(np.int64)
        y = np.take_along_axis(rho, label, axis=1)
        return Plan(ids, tasks, rho, drawn, slot, repeated, y)

    def _slots(self, ids: Int[np.ndarray, " B"], size: int) -> Int[np.ndarray, "B T"]:
        draws = counter.long_words(self._stream("slots"), ids, self.distribution.episode_length)
        return counter.bounded(draws, size)

    def _repeat(self, repeat: float | None) -> float:
        if repeat is None:
            repeat = self.distribution.repeat
        _check_fraction("repeat", repeat)
        return repeat if self.distribution.split == "train" else 0.0

    # Floats

    def inputs(self, plan: Plan) -> Float[Tensor, "B T P"]:
        """Images (or features) of the episodes before normalisation and projection."""
        if self.pixels is None:
            points = self._points(plan.task)
            slot = torch.from_numpy(plan.slot).to(self.device)
            return points[torch.arange(len(slot), device=self.device)[:, None], slot]
        return self.pixels[torch.from_numpy(plan.example).to(self.device)]

    def shown(self, plan: Plan) -> Float[Tensor, "B T P"]:
        """``inputs`` for a picture, in [0, 1]; features from −3 to 3 standard deviations."""
        inputs = self.inputs(plan)
        if self.view.network is None:
            return inputs
        spread = inputs.std().clamp_min(1e-12)
        return ((inputs - inputs.mean()) / (6 * spread) + 0.5).clamp(0, 1)

    def _points(self, tasks: Int[np.ndarray, " B"]) -> Float[Tensor, "B points D"]:
        """The points of Random tasks, U[0, 1) with 24 bits, keyed by D, pool, task seed and k."""
        dim = self.view.num_features
        drawn, inverse = np.unique(tasks, return_inverse=True)
        draws = counter.words(self._key("points", dim), drawn, NUM_POINTS * dim) >> np.uint32(8)
        points = torch.from_numpy(draws.astype(np.float32) * np.float32(2.0**-24))
        points = points.view(len(drawn), NUM_POINTS, dim)
        return points[torch.from_numpy(inverse)].to(self.device)

    def episodes(self, ids: Int[np.ndarray, " B"], repeat: float | None = None) -> EpisodeBatch:
        """These episodes, on the device; equal for every batch size and order of the ids."""
        return self.realise(self.plan(ids, repeat))

    def realise(self, plan: Plan) -> EpisodeBatch:
        """Gather, normalise and project the examples of a plan."""
        shape = (*plan.y.shape, self.view.num_features)
        if plan.repeated.all():
            x = self._project_repeated(plan)
        elif not plan.repeated.any():
            x = self._project(self.inputs(plan), plan)
        else:
            x = torch.empty(shape, dtype=torch.float32, device=self.device)
            for mask, project in (
                (plan.repeated, self._project_repeated),
                (~plan.repeated, lambda part: self._project(self.inputs(part), part)),
            ):
                x[torch.from_numpy(mask).to(self.device)] = project(_select(plan, mask))
        return EpisodeBatch(
            x=x,
            y=torch.from_numpy(plan.y).to(self.device),
            task_id=torch.from_numpy(plan.task).to(self.device),
            num_classes=self.distribution.num_classes,
        )

    def _project(self, images: Float[Tensor, "B U P"], plan: Plan) -> Float[Tensor, "B U D"]:
        mean, std = self.stats
        z = images.sub_(mean).div_(std)  # gathered for this batch alone
        dim = self.view.num_features
        if self._short_cut:
            # Keyed by episode: a validation task met again would otherwise reuse normals for
            # other inputs.
            key = self._key("short cut", dim)
            return projection.fresh_projection(z, key, plan.episode, self.copies)
        return projection.project(z, self._key("projection", dim), plan.task, self.copies)

    def _project_repeated(self, plan: Plan) -> Float[Tensor, "B T D"]:
        """Project each distinct point once, then show it at its steps."""
        if self.pixels is None:
            points = self._points(plan.task)
        else:
            drawn = np.ascontiguousarray(plan.drawn[:, :NUM_POINTS])
            points = self.pixels[torch.from_numpy(drawn).to(self.device)]
        projected = self._project(points, plan)
        slot = torch.from_numpy(plan.slot).to(self.device)
        return projected[torch.arange(len(slot), device=self.device)[:, None], slot]

    def projection(self, task: int) -> Float[Tensor, "D D"]:
        """A of a task, entries i.i.d. N(0, 1/D).

        Raises:
            ValueError: If tasks are unbounded or there is no such task.
        """
        self._check_task(task)
        dim = self.view.num_features
        key = self._key("projection", dim)
        ids = np.array([task], dtype=np.int64)
        return projection.normals(key, ids, dim, dim, scale=dim**-0.5, device=self.device)[0]

    def _check_task(self, task: int) -> None:
        d = self.distribution
        if isinstance(task, bool) or not isinstance(task, int | np.integer):
            raise TypeError(f"a task is named by a whole number, not {task!r}")
        if d.unbounded or self._short_cut:
            raise ValueError(
                "unbounded tasks have no numbered projections: give a finite num_tasks to look "
                "at tasks"
            )
        limit = {"val": VAL_TASKS, "unseen": 2**59}.get(d.split, d.num_tasks)
        assert limit is not None
        if not 0 <= task < limit:
            raise ValueError(f"task {task} is not in [0, {limit}) of split={d.split!r}")


def _select(plan: Plan, mask: Bool[np.ndarray, " B"]) -> Plan:
    return Plan(**{f.name: getattr(plan, f.name)[mask] for f in dataclasses.fields(plan)})


def _scale(words: np.ndarray, size: int) -> Int[np.ndarray, " B"]:
    """Uniform integers below ``size`` < 2^62 from 64-bit words."""
    if size < 2**32:
        return counter.bounded(words, size)
    return np.array([int(w) * size >> 64 for w in words], dtype=np.int64)


def _check_fraction(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be in [0, 1], not {value}")
