"""Verification of environments: golden integers, disjoint splits, episodes that leak nothing."""

import dataclasses
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
    share = float((found == expected).mean())
    return Check("frozen labels", share == 1.0, f"{share:.2%} of {expected.size:,} equal")


def _pools(sources: dict[str, EpisodeSource]) -> Check:
    """Tasks of one number in different pools: permutations agree as often as by chance."""
    tasks = np.arange(2000)
    rho = {split: source.sampler.permutations(tasks) for split, source in sources.items()}
    worst = 0.0
    for a in rho:
        for b in rho:
            if a < b and {a, b} != {"train", "seen"}:
                classes = rho[a].shape[1]
                error = (1 / classes / rho[a].size) ** 0.5
                worst = max(worst, abs((rho[a] == rho[b]).mean() - 1 / classes) / error)
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

    Given the last label y, the next one is y again with a probability that the base data set
    fixes; among the other classes it is uniform, since permutations are.
    """
    args = dataclasses.replace(source.args, num_tasks=None) if split == "train" else source.args
    plan = source.make_sampler(args).plan(np.arange(LEAK_EPISODES) * 16)
    y, classes = plan.y, plan.permutation.shape[1]
    by_position = np.stack([np.bincount(column, minlength=classes) for column in y.T]) / len(y)
    error = ((1 - 1 / classes) / classes / len(y)) ** 0.5
    worst = abs(by_position - 1 / classes).max() / error
    for lag in (1, 2):
        shift = (y[:, lag:] - y[:, :-lag]) % classes
        # One number per episode: steps of an episode share its points and permutation.
        for value in range(1, classes):
            rate = (shift == value).mean(axis=1)
            rest = (shift != 0).mean(axis=1) / (classes - 1)
            difference = rate - rest
            spread = difference.std() / len(y) ** 0.5 or np.inf
            worst = max(worst, abs(difference.mean()) / spread)
    return Check(f"{split}: nothing predicts a label", worst < SIGMAS, f"at most {worst:.1f} sigma")


def write_golden(path: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None) -> None:
    """Write ``golden.json`` for every base data set at hand; for maintainers of a new version."""
    view = min(VIEWS.values(), key=lambda v: v.num_features).name
    values = {row.name: golden(f"{row.name}-{view}-v0", data_dir) for row in DATASETS}
    text = json.dumps({name: value for name, value in values.items() if value}, sort_keys=True)
    Path(path).write_text(text + "\n", encoding="utf-8")
