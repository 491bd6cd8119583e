"""The experiments of GPICL (Kirsch et al. 2022) as one command each.

    python -m baselines.experiments --list
    python -m baselines.experiments phases --preset cpu
    python -m baselines.experiments phases plateau --preset cpu --workers 4
    python -m baselines.experiments phases --preset paper --engine ray --address auto --gpus 0.25
    python -m baselines.experiments mine.toml

Start the same command again after any interruption: finished runs are kept, the others go on from
their checkpoints. Runs that experiments have in common are computed once. Table, summary, figure
and verdict are in <out>/<experiment>-<preset>/.
"""

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baselines.experiments import library
from baselines.experiments.engines import Engine, InProcess, Pool
from baselines.experiments.spec import Experiment, ExperimentError, Run
from baselines.experiments.store import Store, varied_settings
from baselines.experiments.sweep import check_inputs, sweep
from baselines.experiments.values import parse_value
from baselines.process import terminated_as_interrupted


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m baselines.experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = found.add_argument
    add("names", nargs="*", metavar="NAME", help="experiments, 'all', or .toml files; see --list")
    add("--list", action="store_true", help="show the experiments and their number of runs")
    what = found.add_argument_group("what is run")
    add = what.add_argument
    add(
        "--preset",
        help="cpu (default; toy size, at most 90 minutes on 2 cores) or paper; a file has its own",
    )
    add("--seeds", type=int, help="only runs with a seed below this number")
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a setting of all runs, for instance steps=5000; may be repeated",
    )
    add("--dry-run", action="store_true", help="show the runs and which are finished; run nothing")
    who = found.add_argument_group("who computes it")
    add = who.add_argument
    add(
        "--engine",
        choices=("pool", "in-process", "ray"),
        default="pool",
        help="processes on this machine (default), this process, or a Ray cluster",
    )
    add("--workers", type=int, default=2, help="processes of the pool (default 2)")
    add("--threads", type=int, default=1, help="threads of one run (default 1)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add(
        "--together",
        type=int,
        default=1,
        help="runs of one shape that are trained as one, at most (default 1): for models that are "
        "too small for a GPU; on a CPU it helps mlp and outer-lstm",
    )
    add("--retries", type=int, default=2, help="of a run whose worker died (default 2)")
    add("--address", help="ray: address of the cluster, or auto; without it one is started here")
    add("--cpus", type=float, default=1.0, help="ray: CPUs of one run (default 1)")
    add("--gpus", type=float, default=0.0, help="ray: GPUs of one run; 0.25 = four share one")
    add(
        "--out",
        default="runs/experiments",
        help="folder of runs and results (default runs/experiments); of Ray one that all nodes see",
    )
    return found


def engine_of(args: argparse.Namespace) -> Engine:
    """The engine that was asked for."""
    if args.engine == "in-process":
        return InProcess(args.threads, args.device, args.together)
    if args.engine == "ray":
        from baselines.experiments.ray_engine import RayEngine

        return RayEngine(
            args.threads,
            args.device,
            args.together,
            address=args.address,
            cpus=args.cpus,
            gpus=args.gpus,
            retries=args.retries,
        )
    return Pool(
        args.threads, args.device, args.together, workers=args.workers, retries=args.retries
    )


def changes_of(pairs: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` as settings.

    Raises:
        ExperimentError: For one that is no such pair.
    """
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ExperimentError(f"--set takes NAME=VALUE, not {pair!r}")
        found[name.replace("-", "_")] = parse_value(value)
    return found


def show_list() -> None:
    """Print the experiments."""
    width = max(map(len, library.NAMES))
    for name in library.NAMES:
        experiment = library.experiment(name)
        sizes = ", ".join(f"{p} {len(experiment.runs(p))}" for p in experiment.presets)
        print(f"{name:{width}}  {experiment.title} ({experiment.figure})")
        print(f"{'':{width}}  runs: {sizes}")


def show_plan(experiment: Experiment, preset: str, runs: Sequence[Run], store: Store) -> None:
    """Print the runs and how each stands."""
    counts: dict[str, int] = {}
    for run in runs:
        state = store.state(run.key)
        counts[state] = counts.get(state, 0) + 1
        about = {**settings_of(run, runs), **run.labels}
        told = "".join(f"  {name}={value}" for name, value in about.items())
        print(f"{run.key}  {state:8}  {run.baseline}  seed={run.config.seed}{told}")
    stand = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
    print(f"{experiment.name}, preset {preset}: {len(runs)} runs ({stand}) in {store.root}")


def settings_of(run: Run, runs: Sequence[Run]) -> dict[str, Any]:
    """The settings of a run in which the runs differ."""
    missing = object()
    found = {name: getattr(run.config, name, missing) for name in varied_settings(runs)}
    return {name: value for name, value in found.items() if value is not missing}


def preset_of(experiment: Experiment, asked: str | None) -> str:
    """The preset that was asked for; without one ``cpu``, or the only one of a file."""
    return asked or ("cpu" if "cpu" in experiment.presets else next(iter(experiment.presets)))


def folder_of(preset: str, seeds: int | None, pairs: Sequence[str]) -> str:
    """Second part of the folder's name: fewer seeds and changed settings are another table."""
    changes = [*sorted(pairs), *([] if seeds is None else [f"seeds={seeds}"])]
    return "-".join([preset, *(re.sub(r"[^\w.=+]", "_", change) for change in changes)])[:150]


def check_plans(plans: Sequence[tuple[Experiment, str, Sequence[Run]]], store: Store) -> None:
    """Raise before any run begins if one of several experiments lacks data.

    Raises:
        ExperimentError: With all that lack something, and the names of the others.
    """
    if len(plans) < 2:
        return
    lacking: dict[str, str] = {}
    for experiment, _, runs in plans:
        try:
            check_inputs([run for run in runs if not store.is_finished(run.key)])
        except ExperimentError as error:
            lacking[experiment.name] = str(error)
    if lacking:
        others = [experiment.name for experiment, *_ in plans if experiment.name not in lacking]
        told = "; ".join(f"{name}: {error}" for name, error in lacking.items())
        way = f"; without it: {' '.join(others)}" if others else ""
        raise ExperimentError(f"{told}{way}")


def run(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says."""
    args = parser().parse_args(argv)
    if args.list:
        show_list()
        return 0
    if not args.names:
        raise ExperimentError("name an experiment; --list shows them")
    names = list(library.NAMES) if args.names == ["all"] else list(dict.fromkeys(args.names))
    changes = changes_of(args.set)
    store = Store(Path(args.out).resolve())
    plans = []
    for name in names:  # all of them before any begins
        experiment = library.experiment(name)
        preset = preset_of(experiment, args.preset)
        plans.append((experiment, preset, experiment.runs(preset, args.seeds, changes)))
    if args.dry_run:
        for experiment, preset, runs in plans:
            show_plan(experiment, preset, runs, store)
        return 0
    check_plans(plans, store)
    status = 0
    with contextlib.closing(engine_of(args)) as engine:
        for experiment, preset, runs in plans:
            report = sweep(experiment, folder_of(preset, args.seeds, args.set), runs, store, engine)
            print(f"\n{experiment.title} ({experiment.figure}), preset {preset}")
            print(f"{report.finished} of {report.total} runs finished: {report.folder}")
            if report.verdict is not None:
                print(report.verdict.to_markdown())
            if report.failed:
                status = 1
                print(f"{len(report.failed)} runs failed; the same command tries them again")
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; what the user can mend is one line on stderr and status 2."""
    try:
        with terminated_as_interrupted():
            status = run(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough, as in `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a program that SIGPIPE ended
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\ninterrupted: finished runs are kept, and the same command goes on with the others "
            "from their checkpoints",
            file=sys.stderr,
        )
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
