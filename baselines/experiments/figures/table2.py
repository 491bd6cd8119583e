"""Table 2: learners on tasks that they have never met, of their own data set and of others.

The methods of the paper's table, and the other baselines that are meta-trained on environments.

Runs are the baselines' whole programs on a suite, with its frozen episodes; from them come
submissions and a board, so that one command leads from nothing to a leaderboard:
``<experiment>/leaderboards/README.md``.

Differs from the paper: it does not say for how many steps the Transformer is meta-trained; ours
takes 50,000. Outer-product LSTM, VSML without symmetries, the multi-task MLP and prototypical
networks are not in its table.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from baselines.experiments import drawing, tables
from baselines.experiments.findings import Claim, Verdict, difference, mean_over_seeds
from baselines.experiments.spec import Experiment, Measure, Run, settings
from icl_bench.evaluation.learner import REFERENCES
from icl_bench.leaderboard.render import render_board
from icl_bench.leaderboard.runs import load_run
from icl_bench.leaderboard.submission import make_submission
from icl_bench.registration import find_spec

SUITE, CPU_SUITE = "table2-v0", "digits-v0"
MEASURE = Measure((), suite=True)
SEEDS = 3  # Kirsch et al. 2022, A.4: three meta-training seeds
# The board's intervals are over tasks, too.
SEEDS_ALONE = "over seeds, on the frozen episodes"
TITLES = {
    "gpicl": "GPICL Transformer",
    "vsml": "VSML",
    "sgd": "SGD",
    "maml": "MAML",
    "lstm": "LSTM",
    "outer-lstm": "Outer-product LSTM",
    "vsml-nosym": "VSML without symmetries",
    "protonet": "ProtoNet",
    "mlp": "Multi-task MLP",
    "1-nn": "1-NN",
    "logistic-regression": "Logistic regression",
    "chance": "Chance",
}
METHODS = ("sgd", "maml", "vsml", "lstm", "gpicl")  # of the paper's table
OTHERS = ("outer-lstm", "vsml-nosym", "protonet", "mlp")

# Differences on MNIST that are larger than the paper's standard errors of 1.6 to 3 points.
ORDER = (("vsml", "maml"), ("vsml", "lstm"), ("gpicl", "maml"), ("gpicl", "lstm"), ("sgd", "lstm"))

# Fewer outer steps than the presets have, so that all of it takes an hour or so; training curves
# would be measured on every data set of this size at hand.
CPU: Mapping[str, dict[str, Any]] = {
    "gpicl": {"steps": 2500, "eval_every": 0},
    "vsml": {"steps": 400, "eval_every": 0},
    "lstm": {"steps": 2000, "repeat_steps": (500, 1750), "eval_every": 0},
    "outer-lstm": {"steps": 2000, "repeat_steps": (500, 1750), "eval_every": 0},
    "vsml-nosym": {"steps": 1000, "repeat_steps": (200, 800), "eval_every": 0},
    **{name: {"eval_every": 0} for name in ("maml", "protonet", "mlp")},
}


def runs_of(preset: str, suite: str, changes: Mapping[str, dict[str, Any]]) -> list[Run]:
    """The references, which have no seeds, and three seeds of each method, one after the other."""
    methods = [
        Run(name, settings(name, preset, suite=suite, seed=s, **changes.get(name, {})), MEASURE)
        for s in range(SEEDS)
        for name in (*METHODS, *OTHERS)
    ]
    return [*(Run(r, settings(r, preset, suite=suite), MEASURE) for r in REFERENCES), *methods]


def paper() -> list[Run]:
    """Table 2 (Kirsch et al. 2022, A.4): meta-trained on MNIST, tested on six data sets.

    All of them have to be at hand.
    """
    return runs_of("paper", SUITE, {})


def cpu() -> list[Run]:
    """The embedded digits at 8×8 pixels and random points; the baselines' presets ``cpu``."""
    return runs_of("cpu", CPU_SUITE, CPU)


def last_steps(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy at the last step of the episode: a row per run and environment."""
    about = tables.labels(table, ["baseline"])
    parts = []
    for on in tables.places(table):
        curve = tables.curves(table, on)
        last = curve.ffill(axis=1).iloc[:, -1].rename("accuracy")
        parts.append(about.join(last, how="inner").assign(on=on).reset_index())
    return pd.concat(parts, ignore_index=True)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy at the last step over seeds, as in Table 2: a row per environment and method."""
    return tables.over_seeds(last_steps(table), ["on", "baseline"], ["accuracy"])


def plot(table: pd.DataFrame, summary: pd.DataFrame, path: Path) -> None:
    """A panel per environment: every seed, and the mean with its interval."""
    found = last_steps(table)
    envs = list(dict.fromkeys(found.on))
    names = [name for name in TITLES if name in set(found.baseline)]
    figure, grid_of = drawing.panels(len(envs), "Accuracy at the last step on unseen tasks")
    for axes, env in zip(grid_of, envs, strict=True):
        for place, (name, style) in enumerate(zip(names, drawing.styles(), strict=False)):
            rows = found[(found.on == env) & (found.baseline == name)]
            mean = summary[(summary.on == env) & (summary.baseline == name)]
            color = style["color"]
            axes.plot(rows.accuracy, [place] * len(rows), "o", color=color, mfc="none")
            if len(mean) and np.isfinite(mean[["accuracy_low", "accuracy_high"]]).all(axis=None):
                low, high = float(mean.accuracy_low.iloc[0]), float(mean.accuracy_high.iloc[0])
                axes.plot([max(low, 0), min(high, 1)], [place] * 2, "-", color=color)
                axes.plot(mean.accuracy, [place], "|", color=color, markersize=10)
        axes.axvline(1 / find_spec(env).num_classes, color=drawing.INK, linewidth=0.8, ls=":")
        axes.set_xlim(0, 1.02)
        axes.set_yticks(range(len(names)), [TITLES[name] for name in names], fontsize=7)
        axes.invert_yaxis()
        drawing.name_axes(axes, env, "accuracy", None)
    drawing.save(figure, path)


def judge(table: pd.DataFrame, summary: pd.DataFrame) -> Verdict:
    """Does every method beat guessing on its own data set, and is the paper's order there?"""
    found = last_steps(table)
    env = str(table["env"].iloc[0])
    own = found[found.on == env].groupby("baseline")["accuracy"]
    values = {str(name): group.to_numpy(dtype=np.float64) for name, group in own}
    chance = 1 / find_spec(env).num_classes
    claims = []
    for name in METHODS:
        if name in values:
            mean = mean_over_seeds(values[name])
            text = f"{TITLES[name]} beats guessing on unseen tasks of {env}"
            claims.append(Claim(text, mean.above(chance), mean, SEEDS_ALONE))
    for better, worse in ORDER:
        if better in values and worse in values:
            gap = difference(values[better], values[worse])
            text = f"{TITLES[better]} beats {TITLES[worse]} there"
            claims.append(Claim(text, gap.above(0), gap, SEEDS_ALONE))
    return Verdict(tuple(claims))


def finish(folders: Sequence[Path], folder: Path) -> None:
    """Submissions of all methods, and the boards, in ``<folder>/leaderboards``.

    Args:
        folders: Run folders, several seeds of a method.
        folder: Of the experiment.
    """
    root = folder / "leaderboards"
    shutil.rmtree(root, ignore_errors=True)  # of an earlier sweep; all of it is made again
    by_method: dict[tuple[str, str], list[Path]] = {}
    for path in folders:
        run = load_run(path)
        assert run.suite is not None
        by_method.setdefault((run.suite, run.entry.name), []).append(path)
    for (suite, name), paths in by_method.items():
        make_submission(paths, root / suite / name, suite, checkpoints=True)
    render_board(root)


EXPERIMENT = Experiment(
    name="table2",
    figure="Table 2",
    title="Learners on unseen tasks of their own data set and of others",
    finding="VSML, the GPICL Transformer and SGD learn unseen tasks of MNIST to 70 % and more with "
    "99 examples, MAML to 54 %, and an LSTM to 25 %.",
    presets={"paper": paper, "cpu": cpu},
    summarise=summarise,
    plot=plot,
    judge=judge,
    limits="Digits at 8×8 pixels instead of MNIST at 32×32; the baselines' presets cpu, some of "
    "them with a third to two thirds of their outer steps.",
    finish=finish,
)
