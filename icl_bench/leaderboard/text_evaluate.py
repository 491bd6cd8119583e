"""``icl-bench evaluate`` on text environments: a learner's answers, into a run folder."""

import argparse
import re
import shutil
import sys

from icl_bench import catalog
from icl_bench.data.images import MissingDataError
from icl_bench.envs.text_source import TextArgs, TextSource
from icl_bench.evaluation.text_learners import TEXT_REFERENCES
from icl_bench.evaluation.text_protocol import (
    TextLearner,
    evaluate_text,
    text_fingerprint,
    text_suite,
)
from icl_bench.leaderboard.entry import NOT_STATED, own_entry
from icl_bench.leaderboard.learner_files import SETTINGS, write_settings
from icl_bench.leaderboard.own_code import own_learner
from icl_bench.leaderboard.runs import load_run, new_run_folder, result_path, write_meta
from icl_bench.leaderboard.tables import board_from_runs
from icl_bench.registration import TextEnvSpec, registry

TITLES = {"chance": "Chance", "majority": "Majority label", "1-nn": "1-NN of words"}
BIASES = {"chance": "None", "majority": "Label frequency", "1-nn": "Nearest neighbour"}


def is_text(args: argparse.Namespace) -> bool:
    """Whether the arguments name a text suite or a text environment."""
    named = any(args.suite == row.name for row in catalog.TEXT_SUITES)
    return named or isinstance(registry.get(args.env), TextEnvSpec)


def evaluate_text_run(args: argparse.Namespace) -> int:
    """Evaluate on an environment, or on every setting of a suite in the direct view."""
    if args.split != "unseen":
        raise ValueError(f"text environments are evaluated on --split unseen, not {args.split}")
    if args.episodes != 256 or args.device != "cpu":
        raise ValueError("on text all queries are asked, and a learner has its own device")
    learner, suite = _learner(args.learner), None
    envs: tuple[str, ...] = (args.env,)
    if args.suite:
        suite = text_suite(args.suite)
        envs = tuple(f"{setting}-ICL-v0" for setting in suite.settings)
    at_hand = _at_hand(args, envs)
    reference = args.learner in TEXT_REFERENCES
    entry = own_entry(
        "-".join(re.findall("[a-z0-9]+", args.learner.lower())),
        title=TITLES.get(args.learner, args.learner),
        inductive_bias=BIASES.get(args.learner, NOT_STATED),
        authors="icl_bench" if reference else NOT_STATED,
        code=f"icl-bench evaluate {args.learner}",
        deterministic=reference,
        seed=args.seed,
        parameters=0 if reference else None,
        hardware="CPU" if reference else NOT_STATED,
        gpu_hours=0.0 if reference else None,
        external_data="none" if reference else NOT_STATED,
        kind="reference" if reference else "method",
    )
    run = new_run_folder(args.runs, args.suite or args.env, entry.name, args.seed)
    write_meta(run, entry, args.suite, {env: text_fingerprint(env) for env in at_hand})
    if reference:
        write_settings(run / SETTINGS, args.learner, {})
    done = 0
    try:
        for env in at_hand:
            result = evaluate_text(learner, env, data_dir=args.data_dir, progress=True)
            result.save(result_path(run, env, "unseen"))
            done += 1
    finally:
        if not done:
            shutil.rmtree(run)
        elif done < len(at_hand):
            print(f"{done} of {len(at_hand)} environments are in {run}", file=sys.stderr)
    print(board_from_runs([load_run(run)], args.suite))
    print(run)
    return 0


def _at_hand(args: argparse.Namespace, envs: tuple[str, ...]) -> list[str]:
    """The environments of which test tasks are at hand; looked for before anything is computed."""
    found = []
    for env in envs:
        try:
            source = TextSource(env, TextArgs("unseen"), data_dir=args.data_dir)
        except MissingDataError as error:
            if args.missing == "error":
                raise
            print(f"skipped {env}: {error}", file=sys.stderr)
        else:
            print(f"{env}: {source.coverage}")
            found.append(env)
    if not found:
        raise MissingDataError("no text tasks were at hand: set ICL_BENCH_DATA to a data folder")
    return found


def _learner(name: str) -> TextLearner:
    """A reference by its name, or the user's own callable as module:name."""
    if name in TEXT_REFERENCES:
        return TEXT_REFERENCES[name]()
    return own_learner(name, TEXT_REFERENCES)
