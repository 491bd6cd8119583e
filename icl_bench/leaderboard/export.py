"""Files of numbers of a suite: board.csv, board.json, curves.csv and papers.csv.

Accuracies are in [0, 1]; a number that there is not is empty in CSV and null in JSON.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from icl_bench.evaluation import protocol
from icl_bench.evaluation.result import SCORER_VERSION
from icl_bench.evaluation.statistics import Interval
from icl_bench.leaderboard.comparison import (
    Pairs,
    PairTable,
    PaperNumber,
    total_pairs,
    vector_papers,
)
from icl_bench.leaderboard.formatting import clean_text, csv_text
from icl_bench.leaderboard.marks import AnyEntryScore, flags_of, replayed_envs, taxonomy_of
from icl_bench.leaderboard.predictions import SPLIT
from icl_bench.leaderboard.scoring import SuiteScore
from icl_bench.leaderboard.summaries import summarise_curve, summary_steps, threshold_names

CSV_COLUMNS = (
    "suite",
    "entry",
    "method",
    "kind",
    "inductive_bias",
    "env",
    "accuracy",
    "low",
    "high",
    "rank",
    "better",
    "worse",
    "tied",
    "seeds",
    "seed_accuracies",
    "seeds_low",
    "seeds_high",
    "extended",
    "extended_low",
    "extended_high",
    "log_loss",
    "parameters",
    "state_size",
    "gpu_hours",
    "external_data",
    "replayed",
    "source",
)

PAPER_COLUMNS = (
    "suite",
    "entry",
    "method",
    "env",
    "source",
    "paper",
    "ours",
    "ours_low",
    "ours_high",
    "difference",
    "difference_low",
    "difference_high",
)


def fraction(value: float | None) -> str:
    """A number with six digits after the point; empty if there is none."""
    return "" if value is None or math.isnan(value) else f"{value:.6f}"


def csv_lines(lines: Sequence[Mapping[str, str]], columns: Sequence[str]) -> str:
    """Lines as CSV; what a line lacks is empty."""
    import pandas as pd

    frame = pd.DataFrame(lines, columns=list(columns), dtype=object).fillna("")
    return str(frame.to_csv(index=False, lineterminator="\n"))


def about_csv(score: AnyEntryScore) -> dict[str, str]:
    """What an entry says about itself, for a line of CSV."""
    entry = score.entry
    return {
        "parameters": "" if entry.parameters is None else str(entry.parameters),
        "state_size": "" if entry.state_size is None else str(entry.state_size),
        "gpu_hours": "" if entry.gpu_hours is None else str(entry.gpu_hours),
        "external_data": csv_text(entry.external_data),
    }


def board_csv(score: SuiteScore, pairs: PairTable) -> str:
    """One line per entry and environment, then those of papers.

    Args:
        score: The suite's scores.
        pairs: ``comparison.vector_pairs`` of them.
    """
    lines = []
    for e in score.entries:
        about, replayed = about_csv(e), replayed_envs(e)
        for env, c in e.columns.items():
            over, extended, pair = c.over_seeds, c.extended, pairs[env][e.entry.name]
            lines.append(
                about
                | {
                    "suite": score.suite.name,
                    "entry": e.entry.name,
                    "method": csv_text(e.entry.title),
                    "kind": e.entry.kind,
                    "inductive_bias": csv_text(e.entry.inductive_bias),
                    "env": env,
                    "accuracy": fraction(c.accuracy.mean),
                    "low": fraction(c.accuracy.low),
                    "high": fraction(c.accuracy.high),
                    "rank": str(score.ranks[env][e.entry.name]),
                    "better": str(pair.better),
                    "worse": str(pair.worse),
                    "tied": str(pair.tied),
                    "seeds": " ".join(map(str, e.seeds)),
                    "seed_accuracies": " ".join(map(fraction, c.seed_accuracy)),
                    "seeds_low": fraction(over.low) if over else "",
                    "seeds_high": fraction(over.high) if over else "",
                    "extended": fraction(extended.mean) if extended else "",
                    "extended_low": fraction(extended.low) if extended else "",
                    "extended_high": fraction(extended.high) if extended else "",
                    "log_loss": fraction(list(c.log_loss.values())[-1]),
                    "replayed": "yes" if env in replayed else "no",
                }
            )
    for row in score.reported:
        lines.append(
            {
                "suite": score.suite.name,
                "method": csv_text(row.method),
                "kind": "reported",
                "inductive_bias": csv_text(row.inductive_bias),
                "env": row.env,
                "accuracy": fraction(row.accuracy),
                "source": csv_text(row.source),
            }
        )
    return csv_lines(lines, CSV_COLUMNS)


def curves_csv(score: SuiteScore) -> str:
    """One line per entry and environment: everything that summarises its learning curve."""
    steps = summary_steps(score.suite.episode_length)
    columns = ["suite", "entry", "method", "env", "area", "area_low", "area_high"]
    columns += threshold_names()
    for step in steps:
        columns += [f"{name}_{step}" for name in ("accuracy", "low", "high", "log_loss")]
    lines = []
    for e in score.entries:
        for env, column in e.columns.items():
            summary = summarise_curve(column)
            line = {
                "suite": score.suite.name,
                "entry": e.entry.name,
                "method": csv_text(e.entry.title),
                "env": env,
                "area": fraction(summary.area.mean),
                "area_low": fraction(summary.area.low),
                "area_high": fraction(summary.area.high),
            }
            for name, found in zip(threshold_names(), summary.examples_to.values(), strict=True):
                line[name] = "" if found is None else str(found)
            for step, interval in summary.accuracy.items():
                line[f"accuracy_{step}"] = fraction(interval.mean)
                line[f"low_{step}"] = fraction(interval.low)
                line[f"high_{step}"] = fraction(interval.high)
                line[f"log_loss_{step}"] = fraction(column.log_loss.get(step))
            lines.append(line)
    return csv_lines(lines, columns)


def papers_csv(score: SuiteScore) -> str:
    """One line per entry with the title of a reported method, and environment."""
    lines = []
    for row in vector_papers(score):
        for env, number in row.columns.items():
            about = {"suite": score.suite.name, "entry": row.entry.name, "env": env}
            about |= {"method": csv_text(row.entry.title), "source": csv_text(row.source)}
            lines.append(about | paper_csv(number))
    return csv_lines(lines, PAPER_COLUMNS)


def paper_csv(number: PaperNumber) -> dict[str, str]:
    """A paper's number, ours and the difference, for a line of CSV."""
    ours, difference = number.ours, number.difference
    return {
        "paper": fraction(number.paper),
        "ours": fraction(ours.mean),
        "ours_low": fraction(ours.low),
        "ours_high": fraction(ours.high),
        "difference": fraction(difference.mean) if difference else "",
        "difference_low": fraction(difference.low) if difference else "",
        "difference_high": fraction(difference.high) if difference else "",
    }


def rounded(value: float) -> float | str:
    """A number with six digits after the point."""
    # JSON knows no infinity: a learner that gave a right answer probability 0 has such a loss.
    return round(float(value), 6) if math.isfinite(value) else "inf"


def bounds(interval: Interval | None) -> list[float | str | None] | None:
    """[mean, low, high]; no bounds where there is a single task."""
    if interval is None:
        return None
    values = (interval.mean, interval.low, interval.high)
    return [None if math.isnan(value) else rounded(value) for value in values]


def about_json(score: AnyEntryScore) -> dict[str, Any]:
    """What is known of an entry beside its scores."""
    about: dict[str, Any] = {
        key: clean_text(value) if isinstance(value, str) else value
        for key, value in score.entry.to_dict().items()
        if key not in ("seed", "meta_train_kwargs")
    }
    return about | {
        "seeds": list(score.seeds),
        "replayed": replayed_envs(score),
        "replay_differs": bool(score.replay and not score.replay.same),
        "worse_on_fresh_tasks": bool(score.replay and score.replay.tuned),
        "needs_replay": [clean_text(flag) for flag in flags_of(score)],
        "taxonomy": taxonomy_of(score),
    }


def pair_json(pairs: Pairs | None) -> list[int] | None:
    """[better, worse, tied]; None without ranks."""
    return None if pairs is None else [pairs.better, pairs.worse, pairs.tied]


def board_json(score: SuiteScore, pairs: PairTable) -> str:
    """All that is known about a suite; intervals are [mean, low, high].

    Args:
        score: The suite's scores.
        pairs: ``comparison.vector_pairs`` of them; in the file [better, worse, tied].
    """
    suite = score.suite
    papers = {row.entry.name: row for row in vector_papers(score)}
    entries = []
    for e in score.entries:
        name = e.entry.name
        columns: dict[str, Any] = {}
        for env, c in e.columns.items():
            summary = summarise_curve(c)
            examples = zip(threshold_names(), summary.examples_to.values(), strict=True)
            columns[env] = {
                "accuracy": bounds(c.accuracy),
                "rank": score.ranks[env][name],
                "pairs": pair_json(pairs[env][name]),
                "seed_accuracies": [rounded(v) for v in c.seed_accuracy],
                "over_seeds": bounds(c.over_seeds),
                "extended": bounds(c.extended),
                "area": bounds(summary.area),
                **dict(examples),
                "log_loss": {str(step): rounded(v) for step, v in c.log_loss.items()},
                "curve": [rounded(v) for v in c.curve],
                "curve_low": [rounded(v) for v in c.curve_low],
                "curve_high": [rounded(v) for v in c.curve_high],
            }
        beside = papers[name].columns if name in papers else {}
        entries.append(
            about_json(e)
            | {
                "mean_rank": rounded(score.mean_rank[name]),
                "pairs": pair_json(total_pairs(pairs, name)),
                "columns": columns,
                "minus_reported": {env: bounds(beside[env].difference) for env in beside},
            }
        )
    document = {
        "suite": suite.name,
        "title": suite.title,
        "scorer_version": SCORER_VERSION,
        "meta_train": suite.meta_train,
        "protocol": {
            "split": SPLIT,
            "tasks": suite.tasks,
            "episodes_per_task": suite.episodes_per_task,
            "episode_length": suite.episode_length,
            "meta_train_seeds": suite.meta_train_seeds,
        },
        "envs": {env: protocol.evaluation_fingerprint(env) for env in suite.envs},
        "entries": entries,
        "not_ranked": [
            {"name": name, "title": clean_text(info.title), "reasons": list(reasons)}
            for name, (info, reasons) in score.not_ranked.items()
        ],
        "reported": [
            {"method": r.method, "env": r.env, "accuracy": r.accuracy, "source": r.source}
            for r in score.reported
        ],
    }
    return compact_json(document)


def compact_json(document: Mapping[str, Any]) -> str:
    """JSON with one line per key."""
    text = json.dumps(document, indent=1, allow_nan=False)
    # Lists of numbers on one line; no string holds a line break as such.
    return (
        re.sub(
            r"\[\n[^\[\]{}\"]*\]",
            lambda m: " ".join(m[0].split()).replace("[ ", "[").replace(" ]", "]"),
            text,
        )
        + "\n"
    )
