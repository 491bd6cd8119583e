"""The command line ``icl-bench``: look at environments, evaluate learners, build leaderboards."""

import argparse
import importlib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from icl_bench import __version__
from icl_bench.episodes import SPLITS
from icl_bench.leaderboard.cli import add_parsers

DESCRIPTION = """\
icl_bench: a benchmark suite for in-context learning and meta-learning.

first steps:
  icl-bench list                                   all environments and suites
  icl-bench show MNIST-Proj-v0                     what an environment is
  icl-bench sample Digits-Proj8-v0 --out episode.png
  icl-bench evaluate 1-nn --suite digits-v0        a learner on every environment of a suite
  icl-bench score runs/*                           its accuracies with intervals
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status: 0, 1 (a check failed) or 2 (an error)."""
    args = _parser().parse_args(argv)
    try:
        status: int = args.run(args)
    except (ValueError, OSError, LookupError) as error:
        print(f"icl-bench {args.command}: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return status


def _one_line(error: Exception) -> str:
    """The message; of a system error that names no file, only its sentence."""
    if isinstance(error, OSError) and error.strerror and error.filename is None:
        return " ".join(error.strerror.split())
    return " ".join(str(error).split())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="icl-bench",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"icl-bench {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        name: str, run: Callable[[argparse.Namespace], int], about: str, examples: str
    ) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(
            name,
            help=about,
            description=about,
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        return command

    add(
        "list",
        _list,
        "List environments and suites, and whether their data are at hand.",
        """\
  icl-bench list
  ICL_BENCH_DATA=~/data icl-bench list""",
    ).add_argument("--data-dir", help="data folder")

    show = add(
        "show",
        _show,
        "Show what an environment is.",
        """\
  icl-bench show MNIST-Proj-v0""",
    )
    show.add_argument("id", metavar="ID")

    sample = add(
        "sample",
        _sample,
        "Draw an episode: images as they were and as projected.",
        """\
  icl-bench sample Digits-Proj8-v0 --out episode.png
  icl-bench sample MNIST-Proj-v0 --split unseen --episode 16 --steps 40 --out episode.png""",
    )
    sample.add_argument("id", metavar="ID")
    sample.add_argument("--out", type=Path, required=True, help="picture to write, .png")
    sample.add_argument("--split", default="train", choices=SPLITS, help="(%(default)s)")
    sample.add_argument("--episode", type=int, default=0, help="episode id (%(default)s)")
    sample.add_argument("--steps", type=int, default=40, help="examples to draw (%(default)s)")
    sample.add_argument("--data-dir", help="data folder")

    download = add(
        "download",
        _download,
        "Download data sets: the only command that does.",
        """\
  icl-bench download MNIST FashionMNIST KMNIST CIFAR10 SVHN
  icl-bench download MNIST --data-dir ~/data      (then set ICL_BENCH_DATA=~/data)""",
    )
    download.add_argument("names", nargs="+", metavar="NAME")
    download.add_argument("--data-dir", help="data folder to write (default: the cache)")

    evaluate = add(
        "evaluate",
        _evaluate,
        "Evaluate a learner and write a run folder.",
        """\
  icl-bench evaluate 1-nn --suite digits-v0
  icl-bench evaluate logistic-regression --env MNIST-Proj8-v0
  icl-bench evaluate my_package.my_module:my_learner --suite table2-proj8-v0 --missing skip
A learner is chance, 1-nn, logistic-regression, or module:name of your own callable
(x [B, T, D], prev_y [B, T]) -> logits [B, T, C], which is imported.""",
    )
    evaluate.add_argument("learner", metavar="LEARNER")
    where = evaluate.add_mutually_exclusive_group(required=True)
    where.add_argument("--env", metavar="ID", help="one environment")
    where.add_argument("--suite", metavar="SUITE", help="all environments of a suite")
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
    evaluate.add_argument("--device", default="cpu", help="(%(default)s)")
    evaluate.add_argument(
        "--runs", type=Path, default=Path("runs"), help="root of run folders (%(default)s)"
    )
    evaluate.add_argument("--data-dir", help="data folder")

    verify = add(
        "verify",
        _verify,
        "Verify environments on the data at hand.",
        """\
  icl-bench verify
  icl-bench verify MNIST-Proj-v0""",
    )
    verify.add_argument("ids", nargs="*", metavar="ID", help="default: one per base data set")
    verify.add_argument("--data-dir", help="data folder")

    add_parsers(commands)
    return parser


def _list(args: argparse.Namespace) -> int:
    from tabulate import tabulate

    from icl_bench import registry
    from icl_bench.catalog import SUITES

    rows = [
        (s.id, s.num_features, s.num_classes, s.episode_length, _at_hand(s.base, args.data_dir))
        for s in registry.values()
    ]
    print(tabulate(rows, headers=("environment", "D", "C", "T", "data")))
    print()
    suites = [(s.name, s.title, len(s.envs)) for s in SUITES]
    print(tabulate(suites, headers=("suite", "", "environments")))
    return 0


def _at_hand(base: str, data_dir: str | None) -> str:
    from icl_bench.data.images import data_folders, dataset

    row = dataset(base)
    if row.source != "torchvision":
        return {"embedded": "embedded", "synthetic": "made from keys"}.get(row.source, row.source)
    found = [
        split
        for split in ("train", "test")
        if any((f / "images" / base / f"{split}.npz").is_file() for f in data_folders(data_dir))
    ]
    return " + ".join(found) or f"icl-bench download {base}"


def _show(args: argparse.Namespace) -> int:
    from icl_bench.data.images import dataset
    from icl_bench.evaluation.protocol import evaluation_fingerprint
    from icl_bench.registration import cross, find_spec, view_of

    spec = find_spec(args.id)
    row, view = dataset(spec.base), view_of(spec)
    counts = ", ".join(f"{n:,} {split}" for split, n in row.counts.items()) or "made from keys"
    colour = "colour" if view.channels == 3 else "grey"
    stats = row.stats.get(spec.view)
    normal = (
        f"mean {stats[0]:.6f}, std {stats[1]:.6f} ({row.stats_split} split)"
        if stats
        else f"mean and std of the {row.stats_split} split, unpinned"
    )
    pinned = [split for split, checksum in row.sha256.items() if checksum]
    print(f"""{spec.id}
  Description   {row.title}; {view.height}×{view.width} {colour}, projected, labels permuted
  Token         concat(x_t, one_hot(y_{{t-1}})): D + C = {spec.num_features} + {spec.num_classes}
  Action        the class of x_t: Discrete({spec.num_classes}), or logits
  Reward        1 if right, else 0; for logits the log-probability of the right class
  Episode       T = {spec.episode_length} steps, then terminated
  Splits        train, val: training split of the base data set; seen, unseen: its test split
  Base data     {counts}; pinned: {", ".join(pinned) or "nothing"}
  Normalising   {normal}
  Metric        accuracy at step {spec.episode_length - 1}; chance is {1 / spec.num_classes:.0%}
  Licence       {row.licence or "-"}
  Citation      {row.citation or "-"}
  Cross         {", ".join(cross(spec.id)) or "-"}
  Fingerprint   {evaluation_fingerprint(spec.id)}
  History       {" ".join(spec.history)}""")
    return 0


def _sample(args: argparse.Namespace) -> int:
    from PIL import Image

    from icl_bench import make
    from icl_bench.data.cache import atomic_path

    if args.out.suffix.lower() != ".png":
        raise ValueError(f"--out must end in .png, not {args.out.name!r}")
    env = make(args.id, split=args.split, data_dir=args.data_dir, render_mode="rgb_array")
    env.reset(options={"episode_id": args.episode})
    picture = env.unwrapped.vector.draw(0, steps=args.steps)  # type: ignore[attr-defined]
    with atomic_path(args.out) as path:
        Image.fromarray(picture).save(path)
    print(args.out)
    return 0


def _download(args: argparse.Namespace) -> int:
    from icl_bench.data.download import download

    for name in args.names:
        paths = download(name, args.data_dir)
        for path in paths:
            print(path)
        if not paths:
            print(f"{name}: nothing to download")
    return 0


def _check_device(name: str) -> None:
    import torch

    try:
        torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name!r}: PyTorch knows cpu, cuda, cuda:1 …") from error


def _learner(name: str, num_classes: int, device: str) -> Any:
    """A reference by its name, or the user's own callable as module:name.

    What the user's own code raises comes with its traceback, not as an error of the command line.
    """
    from icl_bench.evaluation.learner import REFERENCES

    if name in REFERENCES:
        return REFERENCES[name](num_classes)
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(
            f"{name!r} is no learner: give {', '.join(REFERENCES)} or module:name of your own"
        )
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does
    try:
        learner = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import {name}: {error}") from error
    if not callable(learner):
        raise ValueError(f"{name} is no learner: it is a {type(learner).__name__}, not a callable")
    if hasattr(learner, "to") and hasattr(learner, "eval"):
        learner = learner.to(device).eval()

    def call(x: Any, prev_y: Any) -> Any:
        try:
            return learner(x, prev_y)
        except Exception as error:
            raise RuntimeError(f"the learner {name} failed") from error

    return call


def _evaluate(args: argparse.Namespace) -> int:
    from icl_bench.data.images import MissingDataError
    from icl_bench.envs.source import EnvArgs, EpisodeSource
    from icl_bench.evaluation.learner import REFERENCES
    from icl_bench.evaluation.protocol import evaluate, suite
    from icl_bench.leaderboard.entry import EntryInfo
    from icl_bench.leaderboard.runs import load_run, new_run_folder, result_path, write_meta
    from icl_bench.leaderboard.tables import board_from_runs
    from icl_bench.registration import find_spec

    _check_device(args.device)
    envs = suite(args.suite).envs if args.suite else (args.env,)
    classes = {find_spec(env).num_classes for env in envs}
    learners = {c: _learner(args.learner, c, args.device) for c in classes}
    reference = args.learner in REFERENCES
    name = "-".join(re.findall("[a-z0-9]+", args.learner.lower()))
    entry = EntryInfo(
        name=name,
        title=TITLES.get(args.learner, args.learner),
        inductive_bias=BIASES.get(args.learner, "not stated"),
        authors="icl_bench" if reference else "not stated",
        code=f"icl-bench evaluate {args.learner}",
        deterministic=reference,
        meta_train=None,
        meta_train_kwargs={},
        seed=args.seed,
        parameters=0 if reference else None,
        state_size=0 if args.learner == "chance" else None,
        hardware="CPU" if args.device == "cpu" else args.device,
        gpu_hours=0.0 if reference else None,
        external_data="none" if reference else "not stated",
        kind="reference" if reference else "method",
    )
    at_hand = []
    for env in envs:  # all of them first, so that nothing is computed in vain
        try:
            EpisodeSource(
                env, EnvArgs(split=args.split), device=args.device, data_dir=args.data_dir
            )
        except MissingDataError as error:
            if args.missing == "error":
                raise
            print(f"skipped {env}: {_one_line(error)}", file=sys.stderr)
        else:
            at_hand.append(env)
    if not at_hand:
        raise MissingDataError("no data set was at hand; `icl-bench download` gets them")
    results = [
        evaluate(
            learners[find_spec(env).num_classes],
            env,
            split=args.split,
            num_episodes=args.episodes,
            progress=True,
            device=args.device,
            data_dir=args.data_dir,
        )
        for env in at_hand
    ]
    run = new_run_folder(args.runs, args.suite or args.env, name, args.seed)
    write_meta(run, entry, args.suite, {result.env: result.fingerprint for result in results})
    for result in results:
        result.save(result_path(run, result.env, result.split))
    if args.split == "unseen":
        print(board_from_runs([load_run(run)], args.suite))
    print(run)
    return 0


TITLES = {"chance": "Chance", "1-nn": "1-NN", "logistic-regression": "Logistic regression"}
BIASES = {
    "chance": "None",
    "1-nn": "Nearest neighbour",
    "logistic-regression": "Linear, online gradient",
}


def _verify(args: argparse.Namespace) -> int:
    from icl_bench import registry
    from icl_bench.data.images import MissingDataError
    from icl_bench.evaluation.verify import verify

    by_base = {spec.base: spec.id for spec in registry.values()}  # the smallest view comes last
    status = 0
    for env in args.ids or by_base.values():
        print(env)
        try:
            checks = verify(env, args.data_dir)
        except MissingDataError as error:
            if args.ids:
                raise
            print(f"  -     {str(error).split(':')[0]}")
            continue
        for check in checks:
            print(f"  {'ok   ' if check.holds else 'WRONG'} {check.name}: {check.detail}")
            status |= not check.holds
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
