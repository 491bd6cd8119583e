"""The subcommands of ``icl-bench`` about scores and boards."""

import argparse
import filecmp
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icl_bench.episodes import SPLITS

if TYPE_CHECKING:
    from icl_bench.evaluation.result import Result

Parsers = Any  # argparse's subparsers have no public type


def add_parsers(subparsers: Parsers) -> None:
    """Add the subcommands; each sets ``run``, a function of the arguments that returns a status.

    ``run`` raises ValueError, FileNotFoundError or FileExistsError for what the user can mend.
    """
    score = add_command(
        subparsers,
        "score",
        _score,
        "Print accuracies with intervals, straight from run folders or submissions.",
        """\
  icl-bench score runs/table2-v0__gpicl__*
  icl-bench score runs/* --suite table2-proj8-v0
  icl-bench score runs/* --split seen
  icl-bench score runs/*__metaicl__* --suite metaicl-v0
  icl-bench score runs/*__metaicl__* --against leaderboards/textmini-v0/1-nn
  icl-bench score leaderboards/table2-v0/gpicl""",
    )
    score.add_argument("paths", nargs="+", metavar="RUN", help="run folders or submissions")
    score.add_argument("--suite", help="show the environments of this suite only")
    score.add_argument("--split", default="unseen", choices=SPLITS[1:], help="(%(default)s)")
    score.add_argument("--by-task", action="store_true", help="text: a row for every test task")
    score.add_argument(
        "--against", type=Path, metavar="RUN", help="text: gains over this run, paired"
    )

    submit = add_command(
        subparsers,
        "submit",
        _submit,
        "Make a submission from the run folders of one method, one or more per seed.",
        """\
  icl-bench submit runs/*__gpicl__* --suite table2-v0
  icl-bench submit runs/*__gpicl__* --suite table2-v0 --out leaderboards/table2-v0/gpicl-large \\
      --title "GPICL Transformer, large" --authors "A. Author, B. Author"
  icl-bench submit runs/*__lstm__* --suite table2-v0 --allow-missing
  icl-bench submit runs/*__metaicl__* --suite metaicl-v0""",
    )
    submit.add_argument("runs", nargs="+", metavar="RUN", help="run folders of one method")
    submit.add_argument("--suite", required=True, help="suite to hand in for")
    submit.add_argument(
        "--out", type=Path, help="new folder (default: leaderboards/<suite>/<method>)"
    )
    submit.add_argument(
        "--allow-missing",
        action="store_true",
        help="hand in although environments of the suite were not evaluated; they stay a dash",
    )
    submit.add_argument(
        "--checkpoints",
        action="store_true",
        help="hand in the learners, so that anyone can run them again (baselines.replay)",
    )
    about = submit.add_argument_group("to say otherwise than the runs do")
    for field in _TEXTS:
        about.add_argument(f"--{field.replace('_', '-')}", metavar="TEXT")
    about.add_argument("--url", metavar="HTTPS", help="page of the paper or the code")
    about.add_argument("--meta-train", metavar="ID", help="environment of meta-training")
    about.add_argument("--parameters", type=int, metavar="N", help="meta-trained numbers")
    about.add_argument(
        "--state-size", type=int, metavar="N", help="numbers carried from step to step"
    )
    about.add_argument(
        "--deterministic",
        action="store_true",
        default=None,
        help="another meta-training seed cannot change a prediction",
    )
    about.add_argument("--gpu-hours", type=float, metavar="HOURS", help="of all seeds together")

    validate = add_command(
        subparsers,
        "validate",
        _validate,
        "Check submissions: one problem per line, status 1 if there is any. Executes nothing.",
        """\
  icl-bench validate leaderboards/table2-v0/gpicl
  icl-bench validate leaderboards/*-v*/*/
  icl-bench validate --schema      (what entry.toml must hold, as JSON Schema)""",
    )
    validate.add_argument("entries", nargs="*", metavar="ENTRY", help="folders of submissions")
    validate.add_argument(
        "--schema", action="store_true", help="print the JSON Schema of entry.toml, check nothing"
    )

    board = add_command(
        subparsers,
        "board",
        _board,
        "Score all submissions and write the boards: README.md, index.html, CSV and JSON.",
        """\
  icl-bench board
  icl-bench board --root leaderboards --out site
  icl-bench board --check      (status 1 if the files are not up to date)""",
    )
    board.add_argument("--root", type=Path, default=Path("leaderboards"), help="(%(default)s)")
    board.add_argument("--out", type=Path, help="where to write (default: the root)")
    board.add_argument(
        "--check", action="store_true", help="write nothing, list files that would change"
    )
    board.add_argument(
        "--no-cache",
        action="store_true",
        help="score every entry anew, also those that have not changed",
    )

    latex = add_command(
        subparsers,
        "latex",
        _latex,
        "Print a suite's board as a table for a paper, in LaTeX with booktabs.",
        """\
  icl-bench latex table2-v0
  icl-bench latex table2-v0 --entries gpicl vsml sgd --out table2.tex""",
    )
    latex.add_argument("suite", metavar="SUITE")
    latex.add_argument("--entries", nargs="+", metavar="NAME", help="these only (default: all)")
    latex.add_argument("--root", type=Path, default=Path("leaderboards"), help="(%(default)s)")
    latex.add_argument("--out", type=Path, help="file to write (default: print it)")

    card = add_command(
        subparsers,
        "card",
        _card,
        "Show how hard environments are, from the boards, or draw an episode of each.",
        """\
  icl-bench card MNIST-Proj-v0
  icl-bench card MNIST-Proj-v0 --out mnist.png
  icl-bench card MNIST-Proj-v0 KMNIST-Proj-v0 --out leaderboards/cards""",
    )
    card.add_argument("envs", nargs="+", metavar="ID", help="environments")
    card.add_argument("--root", type=Path, default=Path("leaderboards"), help="(%(default)s)")
    card.add_argument("--out", type=Path, help="draw: a file .png, or a folder")
    card.add_argument("--data-dir", help="data folder, to draw")

    plot = add_command(
        subparsers,
        "plot",
        _plot,
        "Draw learning curves with bands over tasks, one panel per environment.",
        """\
  icl-bench plot runs/*__gpicl__* runs/*__lstm__* --out curves.png
  icl-bench plot leaderboards/table2-v0/*/ --out curves.svg --title "Table 2\"""",
    )
    plot.add_argument("paths", nargs="+", metavar="RUN", help="run folders or submissions")
    plot.add_argument("--out", type=Path, required=True, help=".png, .svg or .pdf")
    plot.add_argument("--title", help="a line above the panels")
    plot.add_argument("--suite", help="draw the environments of this suite only")
    plot.add_argument(
        "--reported", action="store_true", help="mark what papers report for the suite"
    )
    plot.add_argument("--split", default="unseen", choices=SPLITS[1:], help="(%(default)s)")


_TEXTS = ("title", "inductive_bias", "authors", "code", "hardware", "external_data")
_SAID = (*_TEXTS, "url", "meta_train", "parameters", "state_size", "deterministic", "gpu_hours")


def add_command(
    subparsers: Parsers,
    name: str,
    run: Callable[[argparse.Namespace], int],
    description: str,
    examples: str,
) -> argparse.ArgumentParser:
    """Add a subcommand that calls ``run``."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=description,
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _score(args: argparse.Namespace) -> int:
    from icl_bench.leaderboard.submission import load_runs
    from icl_bench.leaderboard.tables import board_from_runs
    from icl_bench.leaderboard.text_tables import gains_from_text_runs, tasks_from_text_runs

    runs = load_runs(args.paths)
    if args.by_task:
        print(tasks_from_text_runs(runs, args.suite))
    if args.against:
        others = load_runs([args.against])
        print(gains_from_text_runs(runs, others, args.suite))
    if not args.by_task and not args.against:
        print(board_from_runs(runs, args.suite, args.split))
    return 0


def _submit(args: argparse.Namespace) -> int:
    from icl_bench.catalog import TextSuite
    from icl_bench.leaderboard.runs import load_run
    from icl_bench.leaderboard.submission import make_submission, scorable_envs
    from icl_bench.leaderboard.suites import any_suite
    from icl_bench.leaderboard.text_scoring import partial_columns

    suite = any_suite(args.suite)
    out = args.out or Path("leaderboards") / suite.name / load_run(args.runs[0]).entry.name
    said = {name: getattr(args, name) for name in _SAID}
    overrides = {name: value for name, value in said.items() if value is not None}
    flags = {"allow_missing": args.allow_missing, "checkpoints": args.checkpoints}
    make_submission(args.runs, out, suite.name, **flags, **overrides)
    print(f"{out}: made, and valid")
    if isinstance(suite, TextSuite):
        for partial in partial_columns(out):
            print(f"{partial}: shown, but not ranked")
    elif left_out := [env for env in suite.envs if env not in scorable_envs(suite)]:
        print(f"left out, for this version cannot score them: {', '.join(left_out)}")
    print("look at entry.toml, then build the boards with `icl-bench board`")
    return 0


def _validate(args: argparse.Namespace) -> int:
    from icl_bench.leaderboard.formatting import clean_text
    from icl_bench.leaderboard.submission import validate

    if args.schema:
        from icl_bench.leaderboard.schema import entry_schema

        print(json.dumps(entry_schema(), indent=2))
        return 0
    if not args.entries:
        raise ValueError("no folders of submissions were given")
    status = 0
    for path in args.entries:
        shown = clean_text(path)  # strangers name their folders, too
        try:
            problems = _not_a_submission(Path(path)) or validate(path)
        except FileNotFoundError as error:  # the others are checked all the same
            print(f"icl-bench validate: {clean_text(str(error))}", file=sys.stderr)
            status = 2
            continue
        for problem in problems:
            print(f"{shown}: {clean_text(problem)}")
        if problems:
            status = max(status, 1)
        else:
            print(f"{shown}: valid")
    return status


def _not_a_submission(path: Path) -> list[str]:
    """What a folder is that was taken for a submission; empty if it may be one."""
    if (path / "entry.toml").is_symlink() or (path / "entry.toml").exists():
        return []
    if (path / "meta.json").is_file():
        return ["a run folder: make a submission of it with `icl-bench submit`, then validate that"]
    if next(path.glob("*/entry.toml"), None):
        return [f"a folder of submissions: give each of them, {path}/*/"]
    return []


def _board(args: argparse.Namespace) -> int:
    from icl_bench.leaderboard.render import render_board

    if not args.check:
        for path in render_board(args.root, args.out, use_cache=not args.no_cache):
            print(path)
        return 0
    out = args.out or args.root
    status = 0
    with tempfile.TemporaryDirectory() as scratch:
        for path in render_board(args.root, scratch, use_cache=not args.no_cache):
            committed = out / path.relative_to(scratch)
            if not committed.is_file() or not filecmp.cmp(path, committed, shallow=False):
                print(f"{committed}: not up to date, run `icl-bench board`")
                status = 1
    return status


def _latex(args: argparse.Namespace) -> int:
    from icl_bench.data.cache import atomic_path
    from icl_bench.leaderboard.latex import latex_table
    from icl_bench.leaderboard.render import score_any_suite
    from icl_bench.leaderboard.suites import any_suite

    suite = any_suite(args.suite)
    if not args.root.is_dir():
        raise FileNotFoundError(f"no leaderboards at {args.root}: there is no such folder")
    text = latex_table(score_any_suite(args.root, suite), args.entries)
    if args.out is None:
        print(text, end="")
        return 0
    with atomic_path(args.out) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    print(args.out)
    return 0


def _card(args: argparse.Namespace) -> int:
    from icl_bench.leaderboard.cards import draw_cards, show_cards

    if args.out is None:
        print(show_cards(args.envs, args.root))
        return 0
    for path in draw_cards(args.envs, args.out, args.data_dir):
        print(path)
    return 0


def _plot(args: argparse.Namespace) -> int:
    from icl_bench.evaluation.plots import plot_learning_curves
    from icl_bench.leaderboard.runs import methods_of, results_by_seed
    from icl_bench.leaderboard.scoring import reported
    from icl_bench.leaderboard.submission import load_runs
    from icl_bench.leaderboard.tables import columns_of

    runs = load_runs(args.paths)
    for run in runs:
        if run.text:
            raise ValueError(
                f"{run.path} holds results on text: a query has no learning curve; "
                "`icl-bench score` prints the numbers"
            )
    _, envs = columns_of(runs, args.suite, args.split)
    curves: dict[str, dict[str, list[Result]]] = {}
    for method in methods_of(runs):
        by_seed = results_by_seed(list(method.runs), args.split).values()
        curves[method.title] = {
            env: [by_env[env] for by_env in by_seed if env in by_env] for env in envs
        }
    papers: dict[str, dict[str, float]] = {}
    if args.reported:
        if args.suite is None:
            raise ValueError("--reported needs --suite: papers report for a suite")
        for row in reported(args.suite):
            papers.setdefault(row.method, {})[row.env] = row.accuracy
    print(plot_learning_curves(curves, args.out, reported=papers, title=args.title))
    return 0
