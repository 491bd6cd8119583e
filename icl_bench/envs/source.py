"""EpisodeSource: an environment's episodes as a stream, whatever interface shows them."""

import copy
import dataclasses
import hashlib
import json
import os
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_bench.catalog import DataSet, DataSplit
from icl_bench.data.features import chosen_network, load_features, network_identity
from icl_bench.data.images import dataset
from icl_bench.data.views import load_view
from icl_bench.episodes import EpisodeBatch, Split
from icl_bench.registration import EnvSpec, find_spec, view_of
from icl_bench.tasks.sampler import Plan, TaskDistribution, TaskSampler

# Raised when any number of an evaluation changes for a reason that is in no other field.
PROTOCOL_VERSION = 0


def data_split(split: Split) -> DataSplit:
    """The split of the base data set that a split's examples come from."""
    return "train" if split in ("train", "val") else "test"


@dataclasses.dataclass(frozen=True)
class EnvArgs:
    """Arguments of ``icl_bench.make`` that change numbers; see its documentation."""

    split: Split = "train"
    num_tasks: int | None = 2**25
    bias: float = 0.0
    single_task: float = 0.0
    repeat: float = 0.0
    episode_length: int | None = None
    seed: int = 0
    task_seed: int = 0
    normalize: bool = True
    network: str | None = None

    def overrides(self) -> dict[str, Any]:
        """The arguments that differ from their defaults, for records."""
        default = EnvArgs()
        fields = (f.name for f in dataclasses.fields(self))
        return {n: getattr(self, n) for n in fields if getattr(self, n) != getattr(default, n)}


def env_args(**given: Any) -> EnvArgs:
    """Arguments of ``make`` as the user gave them, checked; NumPy's whole numbers become Python's.

    Raises:
        TypeError: For an argument that must be a whole number and is not, or an unknown one.
    """
    names = [field.name for field in dataclasses.fields(EnvArgs)]
    if unknown := sorted(set(given) - set(names)):
        raise TypeError(f"unknown argument {', '.join(unknown)}: there are {', '.join(names)}")
    for name, value in given.items():
        optional = name in ("num_tasks", "episode_length") and value is None
        if name in ("num_tasks", "episode_length", "seed", "task_seed") and not optional:
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise TypeError(f"{name} must be a whole number, not {value!r}")
            given[name] = int(value)
        if name == "network" and not isinstance(value, str | None):
            raise TypeError(f"network must be the name of one, not {value!r}")
        if name == "normalize" and not isinstance(value, bool):
            raise TypeError(f"normalize must be True or False, not {value!r}")
    return EnvArgs(**given)


def fingerprint(
    spec: EnvSpec, args: EnvArgs, data_dir: str | os.PathLike[str] | None = None
) -> str:
    """SHA-256 of all that changes a number of an evaluation, as canonical JSON.

    What shapes meta-training only (``num_tasks``, ``bias``, ``repeat``, ``single_task``) counts
    where the split meets training tasks; device, folder and batch size never do. Unpinned
    checksums and statistics are left out (``null``). Of features the network counts, and where it
    is the user's own, the features: ``data_dir`` is where they are looked for.
    """
    row = dataset(spec.base)
    network = chosen_network(view_of(spec), args.network)
    needed: tuple[DataSplit, ...] = (data_split(args.split),)
    if row.source == "user" or network is not None:  # statistics come from the training split
        needed = ("train", "test")
    content: dict[str, Any] = {
        "protocol": PROTOCOL_VERSION,
        "env": spec.id,
        "num_features": spec.num_features,
        "num_classes": spec.num_classes,
        "episode_length": args.episode_length or spec.episode_length,
        "normalize": args.normalize,
        "stats": row.stats.get(spec.view) if args.normalize else None,
        "sha256": {split: row.sha256.get(split) for split in needed},
        "split": args.split,
        "seed": args.seed,
        "task_seed": args.task_seed,
    }
    if network is not None:
        content["network"] = network_identity(network, spec.base, data_split(args.split), data_dir)
    if args.split in ("train", "seen"):
        names = ("num_tasks", "bias", "single_task", "repeat")
        content |= {name: getattr(args, name) for name in names}
    if args.split == "val":
        content["num_tasks"] = "unbounded" if args.num_tasks is None else "finite"
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class EpisodeSource:
    """The episodes of one environment and split: pure by id, and as a stream with one counter.

    Args:
        env_id: Environment id.
        args: Arguments of ``make`` that change numbers.
        device: Where episodes are made.
        data_dir: Data folder that is looked in first.

    Raises:
        ValueError: For unknown ids and arguments out of range.
        FileNotFoundError: If the data set is not at hand, naming the command that gets it.
    """

    def __init__(
        self,
        env_id: str,
        args: EnvArgs,
        *,
        device: torch.device | str = "cpu",
        data_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.spec = find_spec(env_id)
        self.device = check_device(device)
        self.row: DataSet = dataset(self.spec.base)
        self.next_episode = 0
        self._data_dir = data_dir
        # The variable decides now, once: records say which network it was.
        network = chosen_network(view_of(self.spec), args.network)
        self.args = dataclasses.replace(args, network=network)
        self.sampler = self.make_sampler(self.args)

    def make_sampler(self, args: EnvArgs) -> TaskSampler:
        """A sampler of this environment's data with other arguments."""
        view = view_of(self.spec)
        length = self.spec.episode_length if args.episode_length is None else args.episode_length
        pixels, labels, copies = None, None, 1
        if self.row.source == "synthetic":
            stats = self.row.stats[view.name]
            assert stats is not None
        else:
            split, network = data_split(args.split), chosen_network(view, args.network)
            data = (
                load_view(self.spec.base, split, view, self._data_dir)
                if network is None
                else load_features(self.spec.base, split, view, network, self._data_dir)
            )
            pixels, labels, copies = torch.from_numpy(data.pixels), data.labels, data.copies
            stats = (data.mean, data.std)
        distribution = TaskDistribution(
            base=self.spec.base,
            num_classes=self.spec.num_classes,
            num_examples=None if labels is None else len(labels),
            split=args.split,
            num_tasks=args.num_tasks,
            bias=args.bias,
            single_task=args.single_task,
            repeat=args.repeat,
            episode_length=length,
            seed=args.seed,
            task_seed=args.task_seed,
        )
        if not args.normalize:
            stats = (0.0, 1.0)
        return TaskSampler(distribution, view, pixels, copies, labels, stats, self.device)

    @property
    def episode_length(self) -> int:
        """T."""
        return self.sampler.distribution.episode_length

    @property
    def fingerprint(self) -> str:
        """See ``fingerprint``."""
        return fingerprint(self.spec, self.args, self._data_dir)

    def reseed(self, seed: int) -> None:
        """Go to the first episode of another stream."""
        distribution = dataclasses.replace(self.sampler.distribution, seed=seed)
        self.args = dataclasses.replace(self.args, seed=seed)
        self.sampler.distribution = distribution
        self.next_episode = 0

    def at_seed(self, seed: int) -> "EpisodeSource":
        """The same source at the beginning of a stream, leaving this one where it stands."""
        other = copy.copy(self)
        other.sampler = copy.copy(self.sampler)
        other.reseed(seed)
        return other

    def take(self, count: int) -> Int[np.ndarray, " B"]:
        """The next ``count`` episode ids; advances the counter."""
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
            raise ValueError(f"the number of episodes must be an integer of at least 1: {count!r}")
        ids = np.arange(self.next_episode, self.next_episode + int(count), dtype=np.int64)
        self.next_episode += int(count)
        return ids

    def plan(self, ids: Any, repeat: float | None = None) -> Plan:
        """All integers of these episodes."""
        return self.sampler.plan(check_ids(ids), repeat)

    def state_dict(self) -> dict[str, int]:
        """Where the stream stands: resuming is one integer."""
        return {"seed": self.args.seed, "next_episode": self.next_episode}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state_dict`` was taken."""
        seed, next_episode = int(state["seed"]), int(state["next_episode"])
        if next_episode < 0:
            raise ValueError(f"next_episode must not be negative: {next_episode}")
        self.reseed(seed)
        self.next_episode = next_episode


class SamplesEpisodes:
    """Batches of episodes as tensors: what ``env.unwrapped`` offers for meta-training."""

    source: EpisodeSource

    def sample(self, batch_size: int, *, repeat: float | None = None) -> EpisodeBatch:
        """The next ``batch_size`` episodes of the stream, on the environment's device.

        Args:
            batch_size: B.
            repeat: Overrides the environment's fraction of repeated-points episodes.

        Raises:
            ValueError: If ``batch_size`` is below 1 or ``repeat`` outside [0, 1].
        """
        return self.episodes(self.source.take(batch_size), repeat=repeat)

    def episodes(self, ids: Any, *, repeat: float | None = None) -> EpisodeBatch:
        """The episodes with these ids; the same for every batch size, order and process."""
        return self.source.sampler.realise(self.source.plan(ids, repeat))

    def task(self, k: int) -> tuple[Float[Tensor, "D D"], Int[Tensor, " C"]]:
        """(A, ρ) of task k: the projection, and the permutation as ρ(c) = permutation[c].

        Raises:
            ValueError: If tasks are unbounded or there is no task k in this split.
        """
        projection = self.source.sampler.projection(k)
        rho = self.source.sampler.permutations(np.array([k], dtype=np.int64))[0]
        return projection, torch.from_numpy(rho).to(projection.device)

    def state_dict(self) -> dict[str, int]:
        """Where the stream of episodes stands."""
        return self.source.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.source.load_state_dict(state)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that changes a number of an evaluation of this environment."""
        return self.source.fingerprint


def check_device(device: torch.device | str) -> torch.device:
    """The device.

    Raises:
        ValueError: If it is neither a CPU nor a CUDA device, or one that this machine lacks.
    """
    try:
        found = torch.device(device)
    except RuntimeError:
        found = torch.device("meta")
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda or cuda:N, not {str(device)!r}")
    count = torch.cuda.device_count()
    if found.type == "cuda" and (found.index or 0) >= count:
        raise ValueError(f"device {found}: this PyTorch sees {count} CUDA devices; try cpu")
    return found


def check_ids(ids: Any) -> Int[np.ndarray, " B"]:
    """Episode ids as int64, at least one, none negative."""
    array = np.asarray(ids.cpu() if isinstance(ids, Tensor) else ids)
    if array.dtype == object and any(isinstance(k, int) and abs(k) >= 2**63 for k in array.flat):
        raise ValueError(f"episode ids must be in [0, 2^63): {ids!r}")
    if array.ndim != 1 or len(array) == 0 or array.dtype.kind not in "iu":
        raise ValueError(f"episode ids must be a non-empty sequence of integers, not {ids!r}")
    if array.min() < 0 or array.max() >= 2**63:
        raise ValueError(f"episode ids must be in [0, 2^63): {int(array.min())}")
    return array.astype(np.int64)
