"""Environment ids, their registry, and how an environment is made.

Grammar: ``<Base>-<View>-v<N>``, for instance ``MNIST-Proj-v0``; the exact version is required. Of
text environments the base is a setting: ``HRtoLR-ICL-v0``.
Every environment is also registered with Gymnasium as ``icl_bench/<id>``.
"""

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import gymnasium

from icl_bench import catalog
from icl_bench.data import images, text_catalog

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


@dataclasses.dataclass(frozen=True)
class TextEnvSpec:
    """What the id of a text environment stands for.

    Attributes:
        id: ``<Setting>-<View>-v<N>``.
        setting: Name of a text setting: tasks to meta-train and tasks to meta-test on.
        view: ``ICL`` (direct) or ``Channel``.
        version: N.
        history: What each version changed.
    """

    id: str
    setting: str
    view: str
    version: int
    history: tuple[str, ...] = ()

    @property
    def prompt_view(self) -> Literal["direct", "channel"]:
        """Which field of an example leads in a prompt."""
        return catalog.TEXT_VIEWS[self.view]


AnySpec: TypeAlias = EnvSpec | TextEnvSpec

_specs: dict[str, AnySpec] = {}
registry: Mapping[str, AnySpec] = MappingProxyType(_specs)

# Arguments of ``make`` for vectors; ``make_vec`` has ``num_envs`` and ``backend`` too.
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
    "network",
    "device",
    "data_dir",
    "action",
    "render_mode",
)
TEXT_ARGUMENTS = (
    "split",
    "domain",
    "k",
    "demo_seed",
    "labels",
    "fraction",
    "seed",
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
    """The specification of an environment of vectors.

    Raises:
        ValueError: If there is no such environment, with what was probably meant, or its episodes
            are text.
    """
    spec = find_any_spec(env_id)
    if isinstance(spec, TextEnvSpec):
        raise ValueError(
            f"{env_id} is a text environment: evaluate it by icl_bench.evaluate_text, meta-train "
            "on it by baselines.metaicl or baselines.maml_en_llm"
        )
    return spec


def find_text_spec(env_id: str) -> TextEnvSpec:
    """The specification of a text environment.

    Raises:
        ValueError: If there is no such environment, with what was probably meant, or its episodes
            are vectors.
    """
    spec = find_any_spec(env_id)
    if isinstance(spec, EnvSpec):
        known = ", ".join(name for name, s in _specs.items() if isinstance(s, TextEnvSpec))
        raise ValueError(f"{env_id} is no text environment; there are {known}")
    return spec


def find_any_spec(env_id: str) -> AnySpec:
    """The specification of an id, of vectors or of text.

    Raises:
        ValueError: If there is no such environment, with what was probably meant.
    """
    if env_id in _specs:
        return _specs[env_id]
    base, view, version = parse_id(env_id)
    known_parts = [parse_id(known) for known in _specs]
    versions = sorted(v for *parts, v in known_parts if parts == [base, view])
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
        "icl_bench.register_dataset(name, npz=...), icl_bench.register_text_setting(...)"
    )


def view_of(spec: EnvSpec) -> catalog.View:
    """The view of an environment."""
    return catalog.VIEWS[spec.view]


def register(spec: AnySpec) -> None:
    """Add an environment to the registry and to Gymnasium.

    Raises:
        ValueError: If the id is taken, breaks the grammar or disagrees with its parts.
    """
    base = spec.base if isinstance(spec, EnvSpec) else spec.setting
    if parse_id(spec.id) != (base, spec.view, spec.version):
        raise ValueError(f"{spec.id} does not agree with {base}, {spec.view}, {spec.version}")
    if spec.id in _specs:
        raise ValueError(f"{spec.id} is registered already")
    if isinstance(spec, TextEnvSpec):
        if spec.view not in catalog.TEXT_VIEWS:
            known = ", ".join(catalog.TEXT_VIEWS)
            raise ValueError(f"{spec.id}: unknown view {spec.view!r}, only {known}")
        text_catalog.text_setting(spec.setting)
        _specs[spec.id] = spec
        gymnasium.register(
            id=f"icl_bench/{spec.id}",
            entry_point="icl_bench.envs.text:TextEnv",
            kwargs={"env_id": spec.id},
            disable_env_checker=True,
        )
        return
    if spec.view not in catalog.VIEWS:
        raise ValueError(f"{spec.id}: unknown view {spec.view!r}, only {', '.join(catalog.VIEWS)}")
    row = images.dataset(spec.base)
    if row.source == "synthetic" and catalog.VIEWS[spec.view].network is not None:
        raise ValueError(f"{spec.id}: {spec.base} has no images that a network could see")
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


def register_text_setting(setting: text_catalog.TextSetting) -> tuple[str, ...]:
    """Add a text setting of the user's own, and one environment per view for it.

    Args:
        setting: Names of tasks to meta-train and to meta-test on; see ``register_text_task``.

    Returns:
        Ids of the new environments.

    Raises:
        ValueError: For a name that is taken or has other characters than letters and digits, or
            an unknown task.
    """
    for view in catalog.TEXT_VIEWS:
        parse_id(f"{setting.name}-{view}-v0")
    row = text_catalog.register_text_setting(setting)
    return tuple(_register_text_row(catalog.EnvRow(row.name, v)) for v in catalog.TEXT_VIEWS)


def _register_text_row(row: catalog.EnvRow) -> str:
    spec = TextEnvSpec(
        id=f"{row.base}-{row.view}-v{row.version}",
        setting=row.base,
        view=row.view,
        version=row.version,
        history=row.history,
    )
    register(spec)
    return spec.id


def make(id: str, **kwargs: Any) -> "gymnasium.Env[Any, Any]":
    """Make an environment: of vectors, tokens concat(x_t, one_hot(y_{t-1})), or of text prompts.

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
            - ``network=None``: of the view Emb, the pretrained network whose features are the
              inputs: ``"resnet18"`` (the default), ``"resnet50"``, ``"efficientnet-lite0"``, or
              one whose features are in a data folder. ``ICL_BENCH_NETWORK`` sets the default.
            - ``device="cpu"``: where episodes are made.
            - ``data_dir=None``: a data folder; see also the variable ``ICL_BENCH_DATA``.
            - ``action="label"``: ``Discrete(C)``, reward 1 if right; or ``"logits"``:
              ``Box(C)``, reward = log-probability of the right class.
            - ``render_mode=None`` or ``"rgb_array"``.

            Of text environments, any of

            - ``split="train"``: ``train``, ``val`` (examples of train tasks that train never
              shows) or ``unseen`` (all queries of the test tasks, one after the other).
            - ``domain="all"``: test tasks; ``"new"``: those of unseen domains alone.
            - ``k=16``: demonstrations of a prompt.
            - ``demo_seed=100``: the draw of demonstrations in the split unseen; the protocol's
              are 100, 13, 21, 42 and 87.
            - ``labels="true"``; ``"shuffled"`` and ``"random-words"`` rename the labels of
              classification tasks, so that only the demonstrations tell what they mean.
            - ``fraction=1.0``: part of each train task's examples, stratified by label.
            - ``seed=0``: the stream of training episodes.
            - ``data_dir=None``: as above.
            - ``action="option"``: index of an option, reward 1 if right; or
              ``"log-likelihoods"`` of the options, reward = log-probability of the right one.
            - ``render_mode=None`` or ``"ansi"``.

    Raises:
        TypeError: For an unknown argument, naming those that there are.
        ValueError: For an unknown id (with what was probably meant) or a bad argument.
        FileNotFoundError: If the data set is not at hand, naming the command that gets it.
    """
    spec = find_any_spec(id)
    # What Gymnasium's own make takes is left to it, and those of make_vec to the environment.
    _check_arguments(
        "make", spec, kwargs, "max_episode_steps", "disable_env_checker", "num_envs", "backend"
    )
    return gymnasium.make(f"icl_bench/{spec.id}", **kwargs)


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
        ValueError: As for ``make``, for ``num_envs`` below 1 and for text environments.
    """
    spec = find_spec(id)
    _check_arguments("make_vec", spec, kwargs, "vector_kwargs", "wrappers")
    return gymnasium.make_vec(
        f"icl_bench/{spec.id}",
        num_envs=num_envs,
        vectorization_mode="vector_entry_point",
        backend=backend,
        **kwargs,
    )


def _check_arguments(function: str, spec: AnySpec, given: Mapping[str, Any], *others: str) -> None:
    known = ARGUMENTS if isinstance(spec, EnvSpec) else TEXT_ARGUMENTS
    unknown = [name for name in given if name not in (*known, *others)]
    if unknown:
        raise TypeError(
            f"{function} has no argument {', '.join(unknown)} for {spec.id}; there are "
            f"{', '.join(known)}"
        )


def cross(env_id: str) -> tuple[str, ...]:
    """Ids of the cross-dataset relatives: other base data sets with the same D and C."""
    spec = find_spec(env_id)
    shape = (spec.num_features, spec.num_classes, spec.version)
    return tuple(
        other.id
        for other in _specs.values()
        if isinstance(other, EnvSpec)
        and (other.num_features, other.num_classes, other.version) == shape
        and other != spec
    )


for _row in catalog.ENVIRONMENTS:
    _register_row(_row)
for _row in catalog.TEXT_ENVIRONMENTS:
    _register_text_row(_row)
