"""Run an entry's checkpoints again: do they give the predictions that were handed in?

    python -m baselines.replay leaderboards/table2-proj8-v0/gpicl
    python -m baselines.replay leaderboards/digits-v0/gpicl --runs runs    # for score and plot

For each seed the learner is rebuilt from ``checkpoints/seed-<n>.safetensors``, whose header names
the baseline (one of an allow-list) and its settings; nothing of the file is executed. It then
predicts the frozen episodes and as many fresh ones, of tasks that nobody has seen: a learner that
was tuned to the frozen episodes is worse there.
"""

import argparse
import dataclasses
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import icl_bench
from baselines import common
from icl_bench.data.images import MissingDataError
from icl_bench.evaluation.learner import Learner, call_learner
from icl_bench.leaderboard.submission import Submission, read_submission
from icl_bench.registration import find_spec

# Name in a checkpoint's header → module; its METHOD builds the model.
BASELINES = {
    "gpicl": "baselines.gpicl",
    "lstm": "baselines.lstm",
    "outer-lstm": "baselines.outer_lstm",
    "vsml": "baselines.vsml",
    "vsml-nosym": "baselines.vsml_nosym",
    "vsml-clone": "baselines.vsml_clone",
    "mlp": "baselines.mlp",
    "maml": "baselines.maml",
    "protonet": "baselines.protonet",
}

# A file beyond these is no learner of ours; settings whose cost the tensors' shapes do not show.
MAX_HEADER, MAX_NUMBERS = 20_000, 200_000_000
MAX_SETTINGS = {"layers": 256, "micro_ticks": 64, "inner_steps": 1000}

# Fresh episodes begin after those of any protocol.
FRESH_FROM = 2**20

# Share of predictions that may differ: other machines round otherwise, and near-ties turn.
ROUNDING = 0.005


class ReplayError(ValueError):
    """A checkpoint that cannot be rebuilt, with the reason."""


def load_learner(path: Path, device: str = "cpu") -> Learner:
    """The learner of a checkpoint, in evaluation mode.

    Raises:
        ReplayError: If the file is not a checkpoint of a known baseline, or does not fit it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("learner", "{}")
            names = file.keys()
            shapes = {name: file.get_slice(name).get_shape() for name in names}
    except Exception as error:  # safetensors raises a type of its own for every damage
        raise ReplayError(f"{path} is not a safetensors file: {error}") from error
    if len(header) > MAX_HEADER:
        raise ReplayError(f"{path}: a header of more than {MAX_HEADER} characters")
    try:
        about = json.loads(header)
        name, settings = about["baseline"], dict(about["config"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ReplayError(f"{path}: the header does not say what it is the learner of") from error
    if not isinstance(name, str) or name not in BASELINES:
        raise ReplayError(f"{path}: baseline {name!r} is none of {', '.join(BASELINES)}")
    if sum(int(np.prod(shape)) for shape in shapes.values()) > MAX_NUMBERS:
        raise ReplayError(f"{path}: more than {MAX_NUMBERS} numbers")
    module = importlib.import_module(BASELINES[name])
    try:
        # A setting that came later has the default that is what was done before.
        settings = dataclasses.asdict(module.Config()) | settings
        config = common.config_from_json(module.Config, json.dumps(settings))
        for setting, most in MAX_SETTINGS.items():
            if getattr(config, setting, 0) > most:
                raise ValueError(f"{setting} above {most}")
        config.check()
        spec = find_spec(config.meta_train)
        with torch.device("meta"):  # shapes alone, whatever the settings claim
            wanted = module.METHOD.build(config, spec.num_features, spec.num_classes).state_dict()
        if {name: list(tensor.shape) for name, tensor in wanted.items()} != shapes:
            raise ValueError("the tensors are not those of its settings")
        model = module.METHOD.build(config, spec.num_features, spec.num_classes)
        model.load_state_dict(load_file(path))
    except (KeyError, TypeError, ValueError, RuntimeError, json.JSONDecodeError) as error:
        raise ReplayError(f"{path}: {' '.join(str(error).split())}") from error
    return model.to(device).eval()


@dataclasses.dataclass(frozen=True)
class Replay:
    """What one seed's checkpoint does on one environment.

    Attributes:
        seed: Meta-training seed.
        env: Environment id.
        differing: Share of the frozen predictions that differ from those handed in.
        frozen: Accuracy at the last step on the frozen episodes.
        fresh: The same on as many fresh episodes.
    """

    seed: int
    env: str
    differing: float
    frozen: float
    fresh: float

    @property
    def same(self) -> bool:
        """Whether the predictions are those handed in, but for rounding."""
        return self.differing <= ROUNDING


def replay(
    submission: Submission, device: str = "cpu", data_dir: str | None = None
) -> list[Replay]:
    """Replay every seed of a submission that has a checkpoint, where data are at hand.

    Raises:
        ReplayError: If there is no checkpoint, or one cannot be rebuilt.
    """
    found = []
    for seed, learner in learners(submission, device).items():
        for env, handed_in in submission.predictions[seed].items():
            made = _make(env, device, data_dir)
            if made is None:
                continue
            count = len(handed_in.prediction)
            frozen, right = _predict(learner, made.unwrapped, 0, count)
            _, fresh = _predict(learner, made.unwrapped, FRESH_FROM, count)
            differing = float((frozen != handed_in.prediction).mean())
            last = float(right[:, -1].mean())
            found.append(Replay(seed, env, differing, last, float(fresh[:, -1].mean())))
    return found


def learners(submission: Submission, device: str = "cpu") -> dict[int, Learner]:
    """Meta-training seed → learner, of every seed that has a checkpoint.

    Raises:
        ReplayError: If there is none, or one cannot be rebuilt.
    """
    found = {}
    for seed in submission.predictions:
        path = submission.path / "checkpoints" / f"seed-{seed}.safetensors"
        if path.exists():
            found[seed] = load_learner(path, device)
    if not found:
        raise ReplayError(f"{submission.path} has no checkpoint to replay (checkpoints/seed-<n>)")
    return found


def save_runs(
    submission: Submission, root: Path, device: str = "cpu", data_dir: str | None = None
) -> list[Path]:
    """Evaluate every checkpoint as any learner, and write a run folder of each seed.

    Raises:
        ReplayError: As ``learners``.
    """
    assert submission.entry is not None
    assert submission.suite is not None
    paths = []
    for seed, learner in learners(submission, device).items():
        envs = [env for env in submission.predictions[seed] if _make(env, device, data_dir)]
        results = [
            icl_bench.evaluate(learner, env, progress=True, device=device, data_dir=data_dir)
            for env in envs
        ]
        entry = dataclasses.replace(submission.entry, seed=seed).to_dict()
        paths.append(icl_bench.save_run(results, root, suite=submission.suite.name, **entry))
    return paths


def _make(env: str, device: str, data_dir: str | None) -> Any:
    """The unseen split of an environment; None, and a line on stderr, without its data."""
    try:
        return icl_bench.make(env, split="unseen", device=device, data_dir=data_dir)
    except MissingDataError as error:
        print(f"skipped {env}: {error}", file=sys.stderr)
        return None


def _predict(learner: Learner, env: Any, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Predictions [E, T] of these episodes, and whether each is right."""
    predictions, right = [], []
    for start in range(first, first + count, 64):
        batch = env.episodes(range(start, min(start + 64, first + count)))
        logits = call_learner(learner, batch.x, batch.prev_y, batch.num_classes)
        predictions.append(logits.argmax(dim=-1).cpu().numpy())
        right.append(predictions[-1] == batch.y.cpu().numpy())
    return np.concatenate(predictions), np.concatenate(right)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; status 1 if a replay differs."""
    parser = argparse.ArgumentParser(
        prog="python -m baselines.replay",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("entry", type=Path, help="folder of an entry, with checkpoints")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    parser.add_argument("--data-dir", help="data folder; see also ICL_BENCH_DATA")
    parser.add_argument("--runs", type=Path, help="evaluate instead, into run folders here")
    args = parser.parse_args(argv)
    try:
        device = str(common.resolve_device(args.device))
        submission = read_submission(args.entry)
        if submission.problems:
            raise ReplayError(f"{args.entry} is not valid: {submission.problems[0]}")
        if args.runs is not None:
            for path in save_runs(submission, args.runs, device, args.data_dir):
                print(path)
            return 0
        rows = replay(submission, device, args.data_dir)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    for row in rows:
        verdict = "same" if row.same else "DIFFERS"
        print(
            f"seed {row.seed}  {row.env:24} {verdict:8} {row.differing:.3%} of predictions differ; "
            f"last step: frozen {row.frozen:.1%}, fresh {row.fresh:.1%}"
        )
    return 0 if all(row.same for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
