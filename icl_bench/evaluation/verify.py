"""Verification of environments: golden integers, disjoint splits, episodes that leak nothing."""

import dataclasses
import itertools
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from icl_bench.catalog import DATASETS, VIEWS
from icl_bench.data.images import MissingDataError, dataset, load_images
from icl_bench.envs.source import EnvArgs, EpisodeSource
from icl_bench.episodes import SPLITS
from icl_bench.evaluation.protocol import EXTENDED_EPISODES, frozen_labels
from icl_bench.registration import find_spec
from icl_bench.tasks.sampler import EPISODES_PER_TASK, NUM_POINTS

# Episodes whose integers are golden, and how many of their steps.
GOLDEN_IDS = (0, 17, 2**33)
GOLDEN_STEPS = 10

# Episodes of the leak tests; tolerance in standard errors.
LEAK_EPISODES = 1000
SIGMAS = 5.0


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was verified: what, whether it holds, and a figure."""

    name: str
    holds: bool
    detail: str


def golden(env_id: str, data_dir: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Integers of a few episodes of every split at hand, as they are kept in ``golden.json``."""
    out: dict[str, Any] = {}
    for split in SPLITS:
        try:
            source = EpisodeSource(env_id, EnvArgs(split=split, bias=0.5), data_dir=data_dir)
        except MissingDataError:
            continue
        plan = source.plan(np.array(GOLDEN_IDS))
        out[split] = {
            "task": plan.task.tolist(),
            "permutation": plan.permutation.tolist(),
            "example": plan.example[:, :GOLDEN_STEPS].tolist(),
            "y": plan.y[:, :GOLDEN_STEPS].tolist(),
        }
    return out


def committed_golden() -> dict[str, Any]:
    """The golden integers of this version, by base data set; equal for every view."""
    file = resources.files("icl_bench.evaluation") / "frozen" / "golden.json"
    values: dict[str, Any] = json.loads(file.read_text())
    return values


def verify(env_id: str, data_dir: str | os.PathLike[str] | None = None) -> list[Check]:
    """Verify an environment on the data at hand.

    Golden integers hold; the frozen labels are those of the data; pools of tasks are disjoint;
    no image stands in both splits; neither position nor class order predicts a label.

    Raises:
        ValueError: For an unknown id.
        FileNotFoundError: If neither split of the data is at hand.
    """
    spec = find_spec(env_id)
    checks = []
    sources: dict[str, EpisodeSource] = {}
    missing = None
    for split in SPLITS:
        try:
            sources[split] = EpisodeSource(env_id, EnvArgs(split=split), data_dir=data_dir)
        except MissingDataError as error:
            missing = error
    if not sources:
        assert missing is not None
        raise missing
    checks.append(_golden(spec.base, env_id, data_dir))
    if "unseen" in sources:
        checks.append(_frozen(env_id, sources["unseen"]))
    checks.append(_pools(sources))
    if dataset(spec.base).source != "synthetic":
        checks.append(_images(spec.base, data_dir))
    checks += [_leaks(split, source) for split, source in sources.items()]
    return checks


def _golden(base: str, env_id: str, data_dir: str | os.PathLike[str] | None) -> Check:
    expected = committed_golden().get(base)
    if expected is None:
        return Check("golden integers", True, "none are pinned for this data set")
    found = golden(env_id, data_dir)
    common = [split for split in expected if split in found]
    wrong = [split for split in common if expected[split] != found[split]]
    if wrong:
        return Check("golden integers", False, f"other integers in {', '.join(wrong)}")
    return Check("golden integers", True, f"equal in {', '.join(common)}")


def _frozen(env_id: str, source: EpisodeSource) -> Check:
    try:
        expected = frozen_labels(env_id, EXTENDED_EPISODES)
    except LookupError:
        return Check("frozen labels", True, "unpinned: the data were not at hand")
    found = source.plan(np.arange(EXTENDED_EPISODES)).y
    differing = int((found != expected).sum())
    return Check("frozen labels", not differing, f"{differing:,} of {expected.size:,} differ")


def _pools(sources: dict[str, EpisodeSource]) -> Check:
    """Tasks of one number in different pools: permutations agree as often as by chance.

    The splits train and seen share a pool: there they agree everywhere.
    """
    tasks = np.arange(2000)
    rho = {split: source.sampler.permutations(tasks) for split, source in sources.items()}
    worst = 0.0
    for a, b in itertools.combinations(sorted(rho), 2):
        if {a, b} == {"train", "seen"}:
            sigmas = 0.0 if np.array_equal(rho[a], rho[b]) else np.inf
        else:
            sigmas = _sigmas((rho[a] == rho[b]).sum(axis=1), 1.0)
        worst = max(worst, sigmas)
    return Check("pools of tasks are disjoint", worst < SIGMAS, f"at most {worst:.1f} sigma")


def _images(base: str, data_dir: str | os.PathLike[str] | None) -> Check:
    """Images of the test split that stand in the training split, with the same label or not."""
    name = "no image in both splits"
    try:
        train, test = (load_images(base, split, data_dir) for split in ("train", "test"))
    except MissingDataError:
        return Check(name, True, "only one split is at hand")
    seen = {image.tobytes() for image in train.images}
    shared = sum(image.tobytes() in seen for image in test.images)
    detail = f"{shared} of {len(test.images):,} test images are training images, too"
    return Check(name, shared == 0, detail)


def _leaks(split: str, source: EpisodeSource) -> Check:
    """Position, the last label and the last but one predict a label no better than chance.

    Permutations are uniform, so is the label of every step over tasks. Given the last label y, the
    next one is y again with a probability that the base data set fixes (``_repeat_rate``); among
    the other classes it is uniform.
    """
    args = dataclasses.replace(source.args, num_tasks=None) if split == "train" else source.args
    sampler = source.make_sampler(args)
    plan = sampler.plan(np.arange(LEAK_EPISODES) * EPISODES_PER_TASK)
    y, classes = plan.y, plan.permutation.shape[1]
    columns = [*y.T, *plan.permutation.T]
    worst = max(_sigmas_uniform(column, classes) for column in columns)
    expected = _repeat_rate(sampler.labels, classes)
    for lag in (1, 2):
        shift = (y[:, lag:] - y[:, :-lag]) % classes
        # One number per episode: steps of an episode share its points and permutation.
        again = (shift == 0).mean(axis=1)
        worst = max(worst, _sigmas(again, expected))
        for value in range(1, classes):
            rate = (shift == value).mean(axis=1)
            worst = max(worst, _sigmas(rate - (1 - again) / (classes - 1), 0.0))
    return Check(f"{split}: nothing predicts a label", worst < SIGMAS, f"at most {worst:.1f} sigma")


def _repeat_rate(labels: np.ndarray | None, classes: int) -> float:
    """Probability that two steps of an episode have the same label."""
    if labels is None:  # Random: the same point, or another one with the same label
        return 1 / NUM_POINTS + (1 - 1 / NUM_POINTS) / classes
    counts = np.bincount(labels, minlength=classes).astype(float)
    return float((counts * (counts - 1)).sum() / (len(labels) * (len(labels) - 1)))


def _sigmas(values: np.ndarray, expected: float) -> float:
    """Distance of the mean of independent values from the expected one, in standard errors."""
    distance = abs(float(values.mean()) - expected)
    if distance < 1e-12:  # rounding, where all values are equal
        return 0.0
    error = float(values.std()) / len(values) ** 0.5
    return distance / error if error else np.inf


def _sigmas_uniform(values: np.ndarray, classes: int) -> float:
    """Distance of independent integers below ``classes`` from the uniform law, by chi-square.

    In standard errors of a normal variable with the same probability, so that it holds for few
    and for many classes.
    """
    from scipy import stats

    counts = np.bincount(values, minlength=classes)
    expected = len(values) / classes
    statistic = ((counts - expected) ** 2).sum() / expected
    return float(stats.norm.isf(stats.chi2.sf(statistic, classes - 1) / 2))


def write_golden(path: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None) -> None:
    """Write ``golden.json``; for maintainers of a new version.

    Splits that are not at hand keep the integers that they have.
    """
    view = min(VIEWS.values(), key=lambda v: v.num_features).name
    values = committed_golden()
    for row in DATASETS:
        values[row.name] = values.get(row.name, {}) | golden(f"{row.name}-{view}-v0", data_dir)
    text = json.dumps({name: value for name, value in values.items() if value}, sort_keys=True)
    Path(path).write_text(text + "\n", encoding="utf-8")
