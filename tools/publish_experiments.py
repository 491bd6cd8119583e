"""Put what experiments have shown into the documentation: docs/experiments.md and its pictures.

    python tools/publish_experiments.py                      # all that runs/experiments has
    python tools/publish_experiments.py phases --out DIR

Copies the figure, the summary and the verdict of each experiment's preset ``cpu`` into
docs/experiments/, and writes docs/experiments.md from all that is there: no number is typed. For
maintainers.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from baselines.experiments import library
from baselines.experiments.findings import Verdict
from baselines.experiments.spec import ExperimentError
from baselines.experiments.store import Store
from icl_bench.data.cache import atomic_path

DOCS = Path(__file__).parents[1] / "docs"
PRESET = "cpu"

HEAD = """# The experiments of GPICL at a toy size

Every figure of Kirsch et al. 2022 is one command. What follows is what the preset `cpu` has shown,
written by `tools/publish_experiments.py` from the verdicts of the runs. A ✓ holds, a ✗ does not, a
? is not decided by these runs; numbers are given with their 95 % intervals. The presets `paper`
have the sizes of the paper and need GPUs; they have not been run.

The toy size is a Transformer with two blocks of width 32, episodes of 20 examples of the digits 0
to 4 at 4×4 pixels (D = 16, C = 5), a quarter to a half of the training episodes made of repeated
points, and 2,500 to 8,000 outer steps: half a minute to two minutes a run on one core. Embeddings,
VSML's depth and Table 2 have sizes of their own. It keeps the shape of a finding where it can; a
finding that is not seen here may well be seen at the paper's size. Intervals are those of the
meta-training seeds, on the same test episodes, unless a claim says otherwise. Minutes lack what a
run took before it was interrupted.

"""


def collect(names: Sequence[str], out: Path) -> list[str]:
    """Copy what the named experiments have come to; returns those that have something.

    Raises:
        ExperimentError: If what is there is not of the preset as it is now, naming the experiment
            and the command that mends it.
    """
    store, found = Store(out), []
    for name in names:
        source = store.experiment_folder(name, PRESET)
        if not (source / "verdict.json").is_file():
            continue
        about = json.loads((source / "verdict.json").read_text())
        check_runs(store, name, about["finished"])
        target = DOCS / "experiments"
        target.mkdir(parents=True, exist_ok=True)
        about["seconds"] = seconds(store, name)
        with atomic_path(target / f"{name}.json") as path:
            path.write_text(json.dumps(about, indent=2) + "\n")
        shutil.copyfile(source / "figure.png", target / f"{name}.png")
        shutil.copyfile(source / "summary.csv", target / f"{name}.csv")
        found.append(name)
    return found


def check_runs(store: Store, name: str, finished: int) -> None:
    """Raise unless a table has the finished runs of the preset and no others."""
    now = {r.key for r in library.experiment(name).runs(PRESET) if store.is_finished(r.key)}
    folder = store.experiment_folder(name, PRESET)
    there = set(pd.read_parquet(folder / "table.parquet", columns=["run"])["run"])
    if not now == there or len(there) != finished:
        raise ExperimentError(
            f"{folder} has {len(there)} runs, {len(there & now)} of them among the {len(now)} that "
            f"are finished of the preset {PRESET} as it is now: python -m baselines.experiments "
            f"{name} --preset {PRESET} --out {store.root}"
        )


def seconds(store: Store, name: str) -> float:
    """What the finished runs of an experiment took in all, shared ones counted."""
    total = 0.0
    for run in library.experiment(name).runs(PRESET):
        if store.is_finished(run.key):
            total += json.loads((store.run_folder(run.key) / "done.json").read_text())["seconds"]
    return round(total, 1)


def page(folder: Path) -> str:
    """The page, from what is in the folder of the documentation alone."""
    rows, parts = [], []
    for name in library.NAMES:
        experiment = library.experiment(name)
        path = folder / f"{name}.json"
        if not path.is_file():
            rows.append(f"| `{name}` | {experiment.figure} | {experiment.title} | not run here |")
            continue
        about = json.loads(path.read_text())
        verdict = Verdict.from_dict(about["verdict"])
        rows.append(
            f"| [`{name}`](#{name}) | {experiment.figure} | {experiment.title} | {verdict.seen} |"
        )
        limits = f"\n{experiment.limits}\n" if experiment.limits else ""
        parts.append(
            f"## {name}\n\n**{experiment.figure}.** {experiment.finding}\n\n"
            f"    python -m baselines.experiments {name} --preset {PRESET}\n\n"
            f"{about['finished']} of {about['runs']} runs of one thread, "
            f"{about['seconds'] / 60:.0f} minutes in all on a busy machine.\n\n"
            f"![{experiment.title}](experiments/{name}.png)\n\n"
            f"{verdict.to_markdown()}{limits}"
        )
    table = (
        "| experiment | of the paper | what it shows | seen at the toy size |\n|---|---|---|---|"
    )
    return HEAD + table + "\n" + "\n".join(rows) + "\n\n" + "\n".join(parts)


def main() -> None:
    """Collect and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", default="runs/experiments")
    args = parser.parse_args()
    if unknown := set(args.names) - set(library.NAMES):
        parser.error(f"no experiment {min(unknown)!r}: there are {', '.join(library.NAMES)}")
    try:
        found = collect(args.names or library.NAMES, Path(args.out))
    except ExperimentError as error:
        parser.error(str(error))
    if missing := set(args.names) - set(found):
        parser.error(f"{args.out} has no verdict of {min(missing)}: run the experiment first")
    with atomic_path(DOCS / "experiments.md") as path:
        path.write_text(page(DOCS / "experiments"))
    print(f"{', '.join(found) or 'nothing'}: {DOCS / 'experiments.md'}")


if __name__ == "__main__":
    main()
