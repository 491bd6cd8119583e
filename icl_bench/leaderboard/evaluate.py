"""The subcommand ``icl-bench evaluate``: a learner on environments, into a run folder."""

import argparse
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from icl_bench.episodes import SPLITS
from icl_bench.leaderboard.cli import Parsers, add_command
from icl_bench.leaderboard.own_code import own_learner

TITLES = {"chance": "Chance", "1-nn": "1-NN", "logistic-regression": "Logistic regression"}
BIASES = {
    "chance": "None",
    "1-nn": "Nearest neighbour",
    "logistic-regression": "Linear, online gradient",
}


def add_evaluate(subparsers: Parsers) -> None:
    """Add the subcommand; it sets ``run`` as those of ``cli.add_parsers`` do."""
    evaluate = add_command(
        subparsers,
        "evaluate",
        _evaluate,
        "Evaluate a learner and write a run folder.",
        """\
  icl-bench evaluate 1-nn --suite digits-v0
  icl-bench evaluate logistic-regression --env MNIST-Proj8-v0
  icl-bench evaluate my_package.my_module:my_learner --suite table2-proj8-v0 --missing skip
  icl-bench evaluate majority --suite textmini-v0
A learner is chance, 1-nn, logistic-regression, or module:name of your own callable
(x [B, T, D], prev_y [B, T]) -> logits [B, T, C], which is imported. On text it is chance, majority,
1-nn (of words), or a callable: list of TextEpisode -> a number for every option of each.""",
    )
    evaluate.add_argument("learner", metavar="LEARNER")
    where = evaluate.add_mutually_exclusive_group(required=True)
    where.add_argument("--env", metavar="ID", help="one environment")
    where.add_argument(
        "--suite",
        metavar="SUITE",
        help="all environments of a suite; of a text suite those of the direct view",
    )
    evaluate.add_argument("--split", default="unseen", choices=SPLITS[1:], help="(%(default)s)")
    evaluate.add_argument(
        "--episodes",
        type=int,
        default=256,
        help="256, or 1024 for the larger hand-in (%(default)s)",
    )
    evaluate.add_argument(
        "--seed",
        type=int,
        default=0,
        help="meta-training seed of the learner, for the record (%(default)s)",
    )
    evaluate.add_argument(
        "--missing",
        choices=("error", "skip"),
        default="error",
        help="where data are not at hand (%(default)s)",
    )
    evaluate.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (%(default)s)")
    evaluate.add_argument(
        "--runs", type=Path, default=Path("runs"), help="root of run folders (%(default)s)"
    )
    evaluate.add_argument("--data-dir", help="data folder")


def _learner(name: str, num_classes: int, device: str) -> Any:
    """A reference by its name, or the user's own callable as module:name."""
    from icl_bench.evaluation.learner import REFERENCES

    if name in REFERENCES:
        return REFERENCES[name](num_classes)
    return own_learner(name, REFERENCES, device)


def _at_hand(args: argparse.Namespace, envs: tuple[str, ...]) -> list[str]:
    """The environments whose data are at hand; looked for before anything is computed."""
    from icl_bench.data.images import MissingDataError
    from icl_bench.envs.source import EnvArgs, EpisodeSource

    found = []
    for env in envs:
        try:
            EpisodeSource(
                env, EnvArgs(split=args.split), device=args.device, data_dir=args.data_dir
            )
        except MissingDataError as error:
            if args.missing == "error":
                raise
            print(f"skipped {env}: {error}", file=sys.stderr)
        else:
            found.append(env)
    if not found:
        raise MissingDataError("no data set was at hand; `icl-bench download` gets them")
    return found


def _evaluate(args: argparse.Namespace) -> int:
    from icl_bench.leaderboard.suites import any_suite
    from icl_bench.leaderboard.text_evaluate import evaluate_text_run, is_text

    if args.suite:
        any_suite(args.suite)  # names them all where there is none
    if is_text(args):
        return evaluate_text_run(args)
    from icl_bench.envs.source import check_device
    from icl_bench.evaluation.learner import REFERENCES, LearnerError
    from icl_bench.evaluation.protocol import evaluate, evaluation_fingerprint, suite
    from icl_bench.leaderboard.entry import NOT_STATED, own_entry
    from icl_bench.leaderboard.learner_files import SETTINGS, write_settings
    from icl_bench.leaderboard.runs import load_run, new_run_folder, result_path, write_meta
    from icl_bench.leaderboard.tables import board_from_runs
    from icl_bench.registration import find_spec

    check_device(args.device)
    if args.episodes < 2:
        raise ValueError(f"--episodes must be at least 2, not {args.episodes}")
    envs = suite(args.suite).envs if args.suite else (args.env,)
    classes = {find_spec(env).num_classes for env in envs}
    learners = {c: _learner(args.learner, c, args.device) for c in classes}
    reference = args.learner in REFERENCES
    entry = own_entry(
        "-".join(re.findall("[a-z0-9]+", args.learner.lower())),
        title=TITLES.get(args.learner, args.learner),
        inductive_bias=BIASES.get(args.learner, NOT_STATED),
        authors="icl_bench" if reference else NOT_STATED,
        code=f"icl-bench evaluate {args.learner}",
        deterministic=reference,
        seed=args.seed,
        parameters=0 if reference else None,
        state_size=0 if args.learner == "chance" else None,
        hardware="CPU" if args.device == "cpu" else args.device,
        gpu_hours=0.0 if reference else None,
        external_data="none" if reference else NOT_STATED,
        kind="reference" if reference else "method",
    )
    at_hand = _at_hand(args, envs)
    run = new_run_folder(args.runs, args.suite or args.env, entry.name, args.seed)
    fingerprints = {
        env: evaluation_fingerprint(env, args.split, data_dir=args.data_dir) for env in at_hand
    }
    write_meta(run, entry, args.suite, fingerprints)
    if reference:
        write_settings(run / SETTINGS, args.learner, {"num_classes": max(classes)})
    done = 0
    try:
        for env in at_hand:
            try:
                result = evaluate(
                    learners[find_spec(env).num_classes],
                    env,
                    split=args.split,
                    num_episodes=args.episodes,
                    progress=True,
                    device=args.device,
                    data_dir=args.data_dir,
                )
            except LearnerError as error:
                raise LearnerError(f"{env}: {error}") from error
            result.save(result_path(run, env, result.split))
            done += 1
    finally:
        if not done:
            shutil.rmtree(run)
        elif done < len(at_hand):
            print(f"{done} of {len(at_hand)} environments are in {run}", file=sys.stderr)
    print(board_from_runs([load_run(run)], args.suite, args.split))
    print(run)
    return 0
