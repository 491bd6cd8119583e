"""board.csv and board.json of text suites: all numbers, metrics in [0, 1]."""

from typing import Any

from icl_bench.evaluation.result import SCORER_VERSION
from icl_bench.evaluation.statistics import Interval
from icl_bench.evaluation.text_protocol import text_fingerprint
from icl_bench.leaderboard.export import compact_json, csv_lines, fraction, rounded
from icl_bench.leaderboard.formatting import clean_text, csv_text
from icl_bench.leaderboard.predictions import SPLIT
from icl_bench.leaderboard.text_scoring import DOMAINS, TextSuiteScore, frozen_tasks, missing_tasks

TEXT_CSV_COLUMNS = (
    "suite",
    "entry",
    "method",
    "kind",
    "view",
    "domain",
    "setting",
    "mean",
    "mean_low",
    "mean_high",
    "worst",
    "worst_low",
    "worst_high",
    "rank",
    "tasks",
    "all_tasks",
    "queries",
    "all_queries",
    "seeds",
    "seed_means",
    "seed_worsts",
    "parameters",
    "training_data",
    "source",
)


def text_board_csv(score: TextSuiteScore) -> str:
    """One line per entry, domain and setting, then those of papers."""
    lines = []
    for name, e in score.entries.items():
        for domain in DOMAINS:
            for setting, c in e.columns[domain].items():
                lines.append(
                    {
                        "suite": score.suite.name,
                        "entry": name,
                        "method": csv_text(e.entry.title),
                        "kind": e.entry.kind,
                        "view": e.view,
                        "domain": domain,
                        "setting": setting,
                        "mean": fraction(c.mean.mean),
                        "mean_low": fraction(c.mean.low),
                        "mean_high": fraction(c.mean.high),
                        "worst": fraction(c.worst.mean),
                        "worst_low": fraction(c.worst.low),
                        "worst_high": fraction(c.worst.high),
                        "rank": str(score.ranks[domain][setting].get(name, "")),
                        "tasks": str(c.coverage.tasks),
                        "all_tasks": str(c.coverage.all_tasks),
                        "queries": str(c.coverage.queries),
                        "all_queries": str(c.coverage.all_queries),
                        "seeds": " ".join(map(str, e.seeds)),
                        "seed_means": " ".join(map(fraction, c.seed_means)),
                        "seed_worsts": " ".join(map(fraction, c.seed_worsts)),
                        "parameters": "" if e.entry.parameters is None else str(e.entry.parameters),
                    }
                )
    for row in score.reported:
        lines.append(
            {
                "suite": score.suite.name,
                "method": csv_text(row.method),
                "kind": "reported",
                "view": row.view,
                "domain": row.domain,
                "setting": row.setting,
                "mean": fraction(row.mean),
                "worst": fraction(row.worst),
                "training_data": csv_text(row.training_data),
                "source": csv_text(row.source),
            }
        )
    return csv_lines(lines, TEXT_CSV_COLUMNS)


def _bounds(interval: Interval | None) -> list[float | str | None] | None:
    """[mean, low, high]; no bounds where there is a single task."""
    if interval is None:
        return None
    values = (interval.mean, interval.low, interval.high)
    return [None if value != value else rounded(value) for value in values]


def text_board_json(score: TextSuiteScore) -> str:
    """All that is known about a text suite; intervals are [mean, low, high]."""
    suite = score.suite
    entries = []
    for name, e in score.entries.items():
        columns: dict[str, dict[str, Any]] = {}
        for domain in DOMAINS:
            columns[domain] = {
                setting: {
                    "mean": _bounds(c.mean),
                    "worst": _bounds(c.worst),
                    "rank": score.ranks[domain][setting].get(name),
                    "coverage": [
                        *(c.coverage.tasks, c.coverage.all_tasks),
                        *(c.coverage.queries, c.coverage.all_queries),
                    ],
                    "seed_means": [rounded(v) for v in c.seed_means],
                    "seed_worsts": [rounded(v) for v in c.seed_worsts],
                    "over_seeds": _bounds(c.over_seeds),
                }
                for setting, c in e.columns[domain].items()
            }
        about = {
            key: clean_text(value) if isinstance(value, str) else value
            for key, value in e.entry.to_dict().items()
            if key not in ("seed", "meta_train_kwargs")
        }
        ranks = {domain: score.mean_rank(domain, name) for domain in DOMAINS}
        entries.append(
            about
            | {
                "view": e.view,
                "seeds": list(e.seeds),
                "mean_rank": {
                    domain: None if rank is None or not e.full(domain) else rounded(rank)
                    for domain, rank in ranks.items()
                },
                "columns": columns,
            }
        )
    document = {
        "suite": suite.name,
        "title": suite.title,
        "scorer_version": SCORER_VERSION,
        "protocol": {
            "split": SPLIT,
            "demo_seeds": list(suite.demo_seeds),
            "num_demos": suite.num_demos,
            "meta_train_seeds": suite.meta_train_seeds,
        },
        "settings": {
            setting: {
                "tasks": {domain: frozen_tasks(setting, domain) for domain in DOMAINS},
                "tasks_without_answers": missing_tasks(setting),
            }
            for setting in suite.settings
        },
        "envs": {env: text_fingerprint(env) for env in suite.envs},
        "entries": entries,
        "not_ranked": [
            {"name": name, "title": clean_text(info.title), "reasons": list(reasons)}
            for name, (info, reasons) in score.not_ranked.items()
        ],
        "reported": [
            {
                "method": r.method,
                "view": r.view,
                "domain": r.domain,
                "training_data": r.training_data,
                "setting": r.setting,
                "mean": r.mean,
                "worst": r.worst,
                "source": r.source,
            }
            for r in score.reported
        ],
    }
    return compact_json(document)
