"""board.csv and board.json: all numbers of a suite, accuracies in [0, 1]."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from icl_bench.evaluation import protocol
from icl_bench.evaluation.result import SCORER_VERSION
from icl_bench.evaluation.statistics import Interval
from icl_bench.leaderboard.formatting import clean_text, csv_text
from icl_bench.leaderboard.predictions import SPLIT
from icl_bench.leaderboard.scoring import SuiteScore, differences

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
    "source",
)


def fraction(value: float | None) -> str:
    """A number with six digits after the point; empty if there is none."""
    return "" if value is None or math.isnan(value) else f"{value:.6f}"


def csv_lines(lines: Sequence[Mapping[str, str]], columns: Sequence[str]) -> str:
    """Lines as CSV; what a line lacks is empty."""
    import pandas as pd

    frame = pd.DataFrame(lines, columns=list(columns), dtype=object).fillna("")
    return str(frame.to_csv(index=False, lineterminator="\n"))


def board_csv(score: SuiteScore) -> str:
    """One line per entry and environment, then those of papers."""
    lines = []
    for e in score.entries:
        for env, c in e.columns.items():
            over, extended = c.over_seeds, c.extended
            lines.append(
                {
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
                    "seeds": " ".join(map(str, e.seeds)),
                    "seed_accuracies": " ".join(map(fraction, c.seed_accuracy)),
                    "seeds_low": fraction(over.low) if over else "",
                    "seeds_high": fraction(over.high) if over else "",
                    "extended": fraction(extended.mean) if extended else "",
                    "extended_low": fraction(extended.low) if extended else "",
                    "extended_high": fraction(extended.high) if extended else "",
                    "log_loss": fraction(list(c.log_loss.values())[-1]),
                    "parameters": "" if e.entry.parameters is None else str(e.entry.parameters),
                    "state_size": "" if e.entry.state_size is None else str(e.entry.state_size),
                    "source": "",
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


def rounded(value: float) -> float | str:
    """A number with six digits after the point."""
    # JSON knows no infinity: a learner that gave a right answer probability 0 has such a loss.
    return round(float(value), 6) if math.isfinite(value) else "inf"


def _bounds(interval: Interval | None) -> list[float | str] | None:
    if interval is None:
        return None
    return [rounded(v) for v in (interval.mean, interval.low, interval.high)]


def board_json(score: SuiteScore) -> str:
    """All that is known about a suite; intervals are [mean, low, high]."""
    suite = score.suite
    entries = []
    for e in score.entries:
        columns: dict[str, Any] = {}
        for env, c in e.columns.items():
            columns[env] = {
                "accuracy": _bounds(c.accuracy),
                "rank": score.ranks[env][e.entry.name],
                "seed_accuracies": [rounded(v) for v in c.seed_accuracy],
                "over_seeds": _bounds(c.over_seeds),
                "extended": _bounds(c.extended),
                "log_loss": {str(step): rounded(v) for step, v in c.log_loss.items()},
                "curve": [rounded(v) for v in c.curve],
                "curve_low": [rounded(v) for v in c.curve_low],
                "curve_high": [rounded(v) for v in c.curve_high],
            }
        found = differences(e, score.reported)
        about = {
            key: clean_text(value) if isinstance(value, str) else value
            for key, value in e.entry.to_dict().items()
            if key not in ("seed", "meta_train_kwargs")
        }
        entries.append(
            about
            | {
                "seeds": list(e.seeds),
                "mean_rank": rounded(score.mean_rank[e.entry.name]),
                "columns": columns,
                "minus_reported": {env: _bounds(found[env]) for env in found},
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
