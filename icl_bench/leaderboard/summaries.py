"""Summaries of learning curves: accuracy after some numbers of examples, area, thresholds."""

import dataclasses
from collections.abc import Mapping

from icl_bench.evaluation.metrics import SUMMARY_STEPS, examples_to_threshold
from icl_bench.evaluation.statistics import Interval
from icl_bench.leaderboard.formatting import (
    DASH,
    entry_titles,
    folded,
    markdown_table,
    percent,
    plus_minus,
)
from icl_bench.leaderboard.scoring import ColumnScore, SuiteScore

THRESHOLDS = (0.5, 0.8)


@dataclasses.dataclass(frozen=True)
class CurveSummary:
    """A learning curve in a few numbers.

    Attributes:
        accuracy: After so many labelled examples, in [0, 1], with the interval over tasks.
        area: Mean accuracy over all steps, in [0, 1], with the interval over tasks.
        examples_to: Threshold → labelled examples until it is reached and held
            (``metrics.examples_to_threshold``); None if it never is.
    """

    accuracy: Mapping[int, Interval]
    area: Interval
    examples_to: Mapping[float, int | None]


def summarise_curve(column: ColumnScore) -> CurveSummary:
    """Summary of one method on one environment."""
    bounds = zip(column.curve, column.curve_low, column.curve_high, strict=True)
    steps = [Interval(float(mean), float(low), float(high)) for mean, low, high in bounds]
    return CurveSummary(
        accuracy={step: steps[step] for step in summary_steps(len(steps))},
        area=column.area,
        examples_to={t: examples_to_threshold(column.curve, t) for t in THRESHOLDS},
    )


def summary_steps(episode_length: int) -> list[int]:
    """The steps of ``metrics.SUMMARY_STEPS`` that an episode has."""
    return [step for step in SUMMARY_STEPS if step < episode_length]


def threshold_names() -> list[str]:
    """``examples_to_50`` and so on, for files."""
    return [f"examples_to_{percent(threshold, 0)}" for threshold in THRESHOLDS]


def curve_parts(score: SuiteScore) -> list[str]:
    """The table of README.md for the environment of meta-training; nothing without entries."""
    env, titles = score.suite.meta_train, entry_titles(e.entry for e in score.entries)
    steps = summary_steps(score.suite.episode_length)
    rows = []
    for e in score.entries:
        column = e.columns.get(env)
        if column is None:
            continue
        summary = summarise_curve(column)
        examples = (DASH if n is None else str(n) for n in summary.examples_to.values())
        rows.append(
            [
                titles[e.entry.name],
                *(plus_minus(summary.accuracy[step]) for step in steps),
                plus_minus(summary.area),
                *examples,
                f"{column.log_loss[steps[-1]]:.2f}" if steps[-1] in column.log_loss else DASH,
            ]
        )
    if not rows:
        return []
    columns = ["Method", *map(str, steps), "Area"]
    columns += [f"To {percent(threshold, 0)} %" for threshold in THRESHOLDS] + ["Log loss"]
    told = (
        f"Accuracy in % on `{env}` after {steps[0]}, {steps[1]}, … {steps[-1]} labelled examples, "
        "and the area under the curve (the mean over all steps); the number of examples until "
        f"the accuracy reaches and holds a threshold ({DASH}: never); the log loss in nats at the "
        f"last step. All environments: [curves.csv]({score.suite.name}/curves.csv)."
    )
    return [folded("Learning curves", [told, markdown_table(columns, rows, 1)])]
