"""The command line ``icl-bench``: look at environments, evaluate learners, build leaderboards."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from icl_bench import __version__
from icl_bench.episodes import SPLITS
from icl_bench.leaderboard.cli import add_command, add_parsers
from icl_bench.leaderboard.evaluate import add_evaluate
from icl_bench.leaderboard.own_code import import_module
from icl_bench.registration import EnvSpec, TextEnvSpec

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
        for module in args.imports:
            import_module(module)
        status: int = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough, as in `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a program that SIGPIPE ended
    except (ValueError, OSError, LookupError) as error:
        print(f"icl-bench {args.command}: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return status


def _one_line(error: Exception) -> str:
    """The message; of a system error that names no file, only its sentence.

    Strangers name folders and files: nothing in it steers the terminal.
    """
    from icl_bench.leaderboard.formatting import clean_text

    if isinstance(error, OSError) and error.strerror and error.filename is None:
        return clean_text(error.strerror)
    return clean_text(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="icl-bench",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="import your module first, which registers data sets, text tasks or settings",
    )
    parser.add_argument("--version", action="version", version=f"icl-bench {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    add_command(
        commands,
        "list",
        _list,
        "List environments and suites, and whether their data are at hand.",
        """\
  icl-bench list
  ICL_BENCH_DATA=~/data icl-bench list""",
    ).add_argument("--data-dir", help="data folder")

    show = add_command(
        commands,
        "show",
        _show,
        "Show what an environment is.",
        """\
  icl-bench show MNIST-Proj-v0""",
    )
    show.add_argument("id", metavar="ID")

    sample = add_command(
        commands,
        "sample",
        _sample,
        "Draw an episode: images as they were and as projected, or a text prompt.",
        """\
  icl-bench sample Digits-Proj8-v0 --out episode.png
  icl-bench sample TextMini-ICL-v0
  icl-bench sample MNIST-Proj-v0 --split unseen --episode 16 --steps 40 --out episode.png""",
    )
    sample.add_argument("id", metavar="ID")
    sample.add_argument(
        "--out", type=Path, help="picture to write, .png; a text is printed without it"
    )
    sample.add_argument("--split", default="train", choices=SPLITS, help="(%(default)s)")
    sample.add_argument("--episode", type=int, default=0, help="episode id (%(default)s)")
    sample.add_argument("--steps", type=int, default=40, help="examples to draw (%(default)s)")
    sample.add_argument("--data-dir", help="data folder")

    download = add_command(
        commands,
        "download",
        _download,
        "Download data sets, and networks for the view Emb: the only command that does.",
        """\
  icl-bench download MNIST FashionMNIST KMNIST CIFAR10 SVHN
  icl-bench download MNIST --data-dir ~/data      (then set ICL_BENCH_DATA=~/data)
  icl-bench download resnet18                     (torchvision's, for MNIST-Emb-v0)""",
    )
    download.add_argument("names", nargs="+", metavar="NAME")
    download.add_argument("--data-dir", help="data folder to write (default: the cache)")

    add_evaluate(commands)

    verify = add_command(
        commands,
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

    from icl_bench.catalog import SUITES, TEXT_SUITES
    from icl_bench.data.text import coverage, text_setting
    from icl_bench.registration import registry

    specs = list(registry.values())
    rows = [
        (s.id, s.num_features, s.num_classes, s.episode_length, _at_hand(s, args.data_dir))
        for s in specs
        if isinstance(s, EnvSpec)
    ]
    print(tabulate(rows, headers=("environment", "D", "C", "T", "data")))
    print()
    by_setting: dict[str, list[str]] = {}
    for s in specs:
        if not isinstance(s, EnvSpec):
            by_setting.setdefault(s.setting, []).append(s.id)
    texts = [
        (" ".join(ids), text_setting(setting).title, str(coverage(setting, args.data_dir)))
        for setting, ids in by_setting.items()
    ]
    print(tabulate(texts, headers=("text environments", "", "data")))
    print()
    suites = [(s.name, s.title, len(s.envs)) for s in SUITES]
    suites += [(s.name, s.title, len(s.envs)) for s in TEXT_SUITES]
    print(tabulate(suites, headers=("suite", "", "environments")))
    return 0


def _at_hand(spec: EnvSpec, data_dir: str | None) -> str:
    from icl_bench.data.features import chosen_network, network_at_hand
    from icl_bench.registration import view_of

    network = chosen_network(view_of(spec))
    images = _images_at_hand(spec.base, data_dir)
    if network is None:
        return images
    return f"{images}; {network}: {network_at_hand(network, spec.base, data_dir)}"


def _images_at_hand(base: str, data_dir: str | None) -> str:
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
    from icl_bench.catalog import SUITES, TEXT_SUITES
    from icl_bench.data.features import chosen_network, network_at_hand
    from icl_bench.data.images import MissingDataError, dataset
    from icl_bench.evaluation.protocol import evaluation_fingerprint
    from icl_bench.registration import cross, find_any_spec, view_of

    suites = {s.name: s.envs for s in SUITES} | {s.name: s.envs for s in TEXT_SUITES}
    if args.id in suites:
        raise ValueError(f"{args.id} is a suite, its environments are {', '.join(suites[args.id])}")
    spec = find_any_spec(args.id)
    if not isinstance(spec, EnvSpec):
        return _show_text(spec)
    row, view = dataset(spec.base), view_of(spec)
    counts = ", ".join(f"{n:,} {split}" for split, n in row.counts.items()) or "made from keys"
    stats = row.stats.get(spec.view)
    normal = (
        f"mean {stats[0]:.6f}, std {stats[1]:.6f} ({row.stats_split} split)"
        if stats
        else f"mean and std of the {row.stats_split} split, unpinned"
    )
    pinned = [split for split, checksum in row.sha256.items() if checksum]
    name = chosen_network(view)
    try:
        fingerprint = evaluation_fingerprint(spec.id)
    except MissingDataError:  # it holds the features of the user's own network
        fingerprint = f"not known without the features of {name}"
    network = f"\n  Network       {name}: {network_at_hand(name, spec.base)}" if name else ""
    print(f"""{spec.id}
  Description   {row.title}; {view.title}, projected, labels permuted
  Token         concat(x_t, one_hot(y_{{t-1}})): D + C = {spec.num_features} + {spec.num_classes}
  Action        the class of x_t: Discrete({spec.num_classes}), or logits
  Reward        1 if right, else 0; for logits the log-probability of the right class
  Episode       T = {spec.episode_length} steps, then terminated
  Splits        train, val: training split of the base data set; seen, unseen: its test split
  Base data     {counts}; pinned: {", ".join(pinned) or "nothing"}{network}
  Normalising   {normal}
  Metric        accuracy at step {spec.episode_length - 1}; chance is {1 / spec.num_classes:.0%}
  Licence       {row.licence or "-"}
  Citation      {row.citation or "-"}
  Cross         {", ".join(cross(spec.id)) or "-"}
  Fingerprint   {fingerprint}
  History       {" ".join(spec.history)}""")
    return 0


def _show_text(spec: TextEnvSpec) -> int:
    from textwrap import fill

    from icl_bench.data.text import DEMO_SEEDS, NUM_DEMOS, coverage, text_setting, text_task
    from icl_bench.evaluation.text_protocol import text_fingerprint

    setting = text_setting(spec.setting)
    order = {
        "direct": "input, then output; the output is scored",
        "channel": "output, then input; the input is scored",
    }[spec.prompt_view]

    def listed(tasks: Sequence[str]) -> str:
        margin = " " * 16
        text = fill(
            ", ".join(tasks),
            98,
            initial_indent=margin,
            subsequent_indent=margin,
            break_on_hyphens=False,
        )
        return text[len(margin) :]

    metrics = {"macro-f1": "macro-F1 (classification)", "accuracy": "accuracy (multi-choice)"}
    used = {text_task(task).metric for task in setting.test}
    metric = ", ".join(title for name, title in metrics.items() if name in used)
    dropped = f"{', '.join(setting.dropped)} (on both sides in the original)"
    print(f"""{spec.id}
  Description   {setting.title}
  View          {spec.prompt_view}: {order}
  Observation   prompt ({NUM_DEMOS} demonstrations), query, options
  Action        index of an option, or the options' log-likelihoods
  Reward        1 if right, else 0; for log-likelihoods the log-probability of the right option
  Splits        train, val: {len(setting.train)} tasks; unseen: {len(setting.test)} test tasks
  Test tasks    {listed(setting.test)}
  New domains   {listed(setting.unseen_domain) or "-"}
  Train tasks   {listed(setting.train)}
  Dropped       {dropped if setting.dropped else "-"}
  Metric        {metric};
                mean and worst over the demonstrations of seeds {", ".join(map(str, DEMO_SEEDS))}
  At hand       {coverage(setting.name)}
  Fingerprint   {text_fingerprint(spec.id)}
  History       {" ".join(spec.history)}""")
    return 0


def _sample(args: argparse.Namespace) -> int:
    from PIL import Image

    from icl_bench import make
    from icl_bench.data.cache import atomic_path
    from icl_bench.registration import find_any_spec

    if not isinstance(find_any_spec(args.id), EnvSpec):
        return _sample_text(args)
    if args.out is None:
        raise ValueError(f"{args.id} is drawn as a picture: give --out episode.png")
    if args.out.suffix.lower() != ".png":
        raise ValueError(f"--out must end in .png, not {args.out.name!r}")
    if not 0 <= args.episode < 2**63:
        raise ValueError(f"--episode must be in [0, 2^63), not {args.episode}")
    env = make(args.id, split=args.split, data_dir=args.data_dir, render_mode="rgb_array")
    length = env.unwrapped.source.episode_length  # type: ignore[attr-defined]
    if not 1 <= args.steps <= length:
        raise ValueError(f"--steps must be 1 to {length}, the steps of an episode: {args.steps}")
    env.reset(options={"episode_id": args.episode})
    picture = env.unwrapped.vector.draw(0, steps=args.steps)  # type: ignore[attr-defined]
    with atomic_path(args.out) as path:
        Image.fromarray(picture).save(path)
    print(args.out)
    return 0


def _sample_text(args: argparse.Namespace) -> int:
    from icl_bench import make
    from icl_bench.data.cache import atomic_path

    env = make(args.id, split=args.split, data_dir=args.data_dir, render_mode="ansi")
    _, info = env.reset(options={"episode_id": args.episode})
    shown = f"{env.render()}\n\n{args.id} · {args.split} · {info['task']} · {info['metric']}"
    if args.out is None:
        print(shown)
        return 0
    with atomic_path(args.out) as path:
        path.write_text(shown + "\n", encoding="utf-8")
    print(args.out)
    return 0


def _download(args: argparse.Namespace) -> int:
    from icl_bench.data.download import download
    from icl_bench.data.networks import NETWORKS, download_network

    for name in args.names:
        paths = (download_network if name in NETWORKS else download)(name, args.data_dir)
        for path in paths:
            print(path)
        if not paths:
            print(f"{name}: nothing to download")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from icl_bench.data.images import MissingDataError
    from icl_bench.evaluation.verify import verify
    from icl_bench.registration import registry

    specs = [spec for spec in registry.values() if isinstance(spec, EnvSpec)]
    by_base = {spec.base: spec.id for spec in specs}  # the smallest view comes last
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
