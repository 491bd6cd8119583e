"""Environment ids, their registry, and how an environment is made.

Grammar: ``<Base>-<View>-v<N>``, for instance ``MNIST-Proj-v0``; the exact version is required.
Every environment is also registered with Gymnasium as ``icl_bench/<id>``.
"""

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import gymnasium

from icl_bench import catalog
from icl_bench.data import images

ID_PATTERN = re.compile(
    r"(?P<base>[A-Za-z][A-Za-z0-9]*)-(?P<view>[A-Za-z][A-Za-z0-9]*)-v(?P<version>0|[1-9][0-9]*)"
)


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """What an environment id stands for.

    Attributes:
        id: ``<Base>-<View>-v<N>``.
        base: Base data set.
        view: View; its size fixes D.
        version: N.
        num_features: D.
        num_classes: C.
        episode_length: T of the standard protocol.
        history: What each version changed.
    """

    id: str
    base: str
    view: str
    version: int
    num_features: int
    num_classes: int
    episode_length: int = 100
    history: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The specification as JSON; ``from_json`` reads it back."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "EnvSpec":
        """Read what ``to_json`` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "history": tuple(fields["history"])})


_specs: dict[str, EnvSpec] = {}
registry: Mapping[str, EnvSpec] = MappingProxyType(_specs)

# Arguments of ``make``; ``make_vec`` has ``num_envs`` and ``backend`` too.
ARGUMENTS = (
    "split",
    "num_tasks",
    "bias",
    "single_task",
    "repeat",
    "episode_length",
    "seed",
    "task_seed",
    "normalize",
    "device",
    "data_dir",
    "action",
    "render_mode",
)


def parse_id(env_id: str) -> tuple[str, str, int]:
    """(base, view, version) of an id.

    Raises:
        ValueError: If the id does not follow the grammar, with what was probably meant.
    """
    match = ID_PATTERN.fullmatch(env_id) if isinstance(env_id, str) else None
    if match is None:
        raise ValueError(
            f"{env_id!r} is not an environment id: ids are <Base>-<View>-v<N> with the exact "
            f"version{_did_you_mean(str(env_id))}"
        )
    return match["base"], match["view"], int(match["version"])


def find_spec(env_id: str) -> EnvSpec:
    """The specification of an id.

    Raises:
        ValueError: If there is no such environment, with what was probably meant.
    """
    if env_id in _specs:
        return _specs[env_id]
    base, view, version = parse_id(env_id)
    versions = sorted(s.version for s in _specs.values() if (s.base, s.view) == (base, view))
    if versions:
        known = ", ".join(f"v{v}" for v in versions)
        raise ValueError(f"{env_id}: there is no version v{version} of {base}-{view}, only {known}")
    raise ValueError(f"unknown environment {env_id!r}{_did_you_mean(env_id)}")


def _did_you_mean(env_id: str) -> str:
    lower = {known.lower(): known for known in _specs}
    close = difflib.get_close_matches(env_id.lower(), lower, n=3, cutoff=0.6)
    close = [lower[known] for known in close]
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return (
        "; `icl-bench list` shows them all. Your own data: "
        "icl_bench.register_dataset(name, npz=...)"
    )


def view_of(spec: EnvSpec) -> catalog.View:
    """The view of an environment."""
    return catalog.VIEWS[spec.view]


def register(spec: EnvSpec) -> None:
    """Add an environment to the registry and to Gymnasium.

    Raises:
        ValueError: If the id is taken, breaks the grammar or disagrees with its parts.
    """
    if parse_id(spec.id) != (spec.base, spec.view, spec.version):
        raise ValueError(f"{spec.id} does not agree with {spec.base}, {spec.view}, {spec.version}")
    if spec.id in _specs:
        raise ValueError(f"{spec.id} is registered already")
    if spec.view not in catalog.VIEWS:
        raise ValueError(f"{spec.id}: unknown view {spec.view!r}, only {', '.join(catalog.VIEWS)}")
    row = images.dataset(spec.base)
    dim = catalog.VIEWS[spec.view].num_features
    if (spec.num_features, spec.num_classes) != (dim, row.num_classes):
        raise ValueError(f"{spec.id}: D and C must be {dim} and {row.num_classes} for this base")
    _specs[spec.id] = spec
    gymnasium.register(
        id=f"icl_bench/{spec.id}",
        entry_point="icl_bench.envs.supervised:SupervisedEnv",
        vector_entry_point="icl_bench.envs.supervised:SupervisedVectorEnv",
        kwargs={"env_id": spec.id},  # not id, which is a name of Gymnasium's own
        disable_env_checker=True,
    )


def register_dataset(name: str, **kwargs: Any) -> tuple[str, ...]:
    """Add a data set of the user's own, and one environment per view for it.

    Args:
        name: Letters and digits, for instance ``"MyDigits"``.
        **kwargs: ``npz=`` a folder with ``train.npz`` and ``test.npz`` (arrays ``images`` uint8
            [N, H, W] or [N, H, W, 3] and ``labels`` [N]) or a mapping from split to file; or
            ``arrays=`` a mapping from split to (images, labels); optionally ``num_classes=``,
            ``title=``, ``licence=``, ``citation=``.

    Returns:
        Ids of the new environments.

    Raises:
        ValueError: If the name is taken or the arrays are not as described.
    """
    row = images.register_dataset(name, **kwargs)
    return tuple(_register_row(catalog.EnvRow(row.name, view)) for view in catalog.VIEWS)


def _register_row(row: catalog.EnvRow) -> str:
    spec = EnvSpec(
        id=f"{row.base}-{row.view}-v{row.version}",
        base=row.base,
        view=row.view,
        version=row.version,
        num_features=catalog.VIEWS[row.view].num_features,
        num_classes=images.dataset(row.base).num_classes,
        history=row.history,
    )
    register(spec)
    return spec.id


def make(id: str, **kwargs: Any) -> "gymnasium.Env[Any, Any]":
    """Make an environment whose observations are tokens concat(x_t, one_hot(y_{t-1})).

    Args:
        id: Environment id, for instance ``"MNIST-Proj-v0"``.
        **kwargs: Any of

            - ``split="train"``: ``train``, ``val``, ``seen`` or ``unseen``.
            - ``num_tasks=2**25``: size of the set of training tasks (Kirsch et al. 2022, Table
              2); ``None`` = unbounded, every episode a new task.
            - ``bias=0.0``: fraction of training tasks that keep one fixed label permutation.
            - ``single_task=0.0``: fraction of training episodes that come from task 0.
            - ``repeat=0.0``: fraction of training episodes made of only 10 distinct examples.
            - ``episode_length=100``: T.
            - ``seed=0``: the stream of episodes; ``reset(seed=...)`` sets it too.
            - ``task_seed=0``: the task set itself.
            - ``normalize=True``: z-normalise inputs before the projection.
            - ``device="cpu"``: where episodes are made.
            - ``data_dir=None``: a data folder; see also the variable ``ICL_BENCH_DATA``.
            - ``action="label"``: ``Discrete(C)``, reward 1 if right; or ``"logits"``:
              ``Box(C)``, reward = log-probability of the right class.
            - ``render_mode=None`` or ``"rgb_array"``.

    Raises:
        TypeError: For an unknown argument, naming those that there are.
        ValueError: For an unknown id (with what was probably meant) or a bad argument.
        FileNotFoundError: If the data set is not at hand, naming the command that gets it.
    """
    # What Gymnasium's own make takes is left to it, and those of make_vec to the environment.
    _check_arguments(
        "make", kwargs, "max_episode_steps", "disable_env_checker", "num_envs", "backend"
    )
    return gymnasium.make(f"icl_bench/{find_spec(id).id}", **kwargs)


def make_vec(
    id: str, num_envs: int, *, backend: str = "numpy", **kwargs: Any
) -> "gymnasium.vector.VectorEnv[Any, Any, Any]":
    """Make ``num_envs`` environments that go in lock-step, computed as one batch.

    Args:
        id: Environment id.
        num_envs: Number of episodes played at once.
        backend: ``"numpy"``, or ``"torch"`` for tensors on ``device``.
        **kwargs: As for ``make``.

    Raises:
        TypeError: As for ``make``.
        ValueError: As for ``make``, and for ``num_envs`` below 1.
    """
    _check_arguments("make_vec", kwargs, "vector_kwargs", "wrappers")
    return gymnasium.make_vec(
        f"icl_bench/{find_spec(id).id}",
        num_envs=num_envs,
        vectorization_mode="vector_entry_point",
        backend=backend,
        **kwargs,
    )


def _check_arguments(function: str, given: Mapping[str, Any], *others: str) -> None:
    unknown = [name for name in given if name not in (*ARGUMENTS, *others)]
    if unknown:
        raise TypeError(
            f"{function} has no argument {', '.join(unknown)}; there are {', '.join(ARGUMENTS)}"
        )


def cross(env_id: str) -> tuple[str, ...]:
    """Ids of the cross-dataset relatives: other base data sets with the same D and C."""
    spec = find_spec(env_id)
    shape = (spec.num_features, spec.num_classes, spec.version)
    return tuple(
        other.id
        for other in _specs.values()
        if (other.num_features, other.num_classes, other.version) == shape and other != spec
    )


for _row in catalog.ENVIRONMENTS:
    _register_row(_row)
