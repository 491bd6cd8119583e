"""board.csv, board.json and papers.csv of text suites: all numbers, metrics in [0, 1]."""

from collections.abc import Mapping
from typing import Any

from icl_bench.envs.text_source import Domain
from icl_bench.evaluation.result import SCORER_VERSION
from icl_bench.evaluation.text_protocol import text_fingerprint
from icl_bench.leaderboard.comparison import PairTable, text_papers, total_pairs
from icl_bench.leaderboard.export import (
    about_csv,
    about_json,
    bounds,
    compact_json,
    csv_lines,
    fraction,
    pair_json,
    paper_csv,
    rounded,
)
from icl_bench.leaderboard.formatting import clean_text, csv_text
from icl_bench.leaderboard.marks import replayed_envs
from icl_bench.leaderboard.predictions import SPLIT
from icl_bench.leaderboard.text_columns import DOMAINS, frozen_tasks, missing_tasks
from icl_bench.leaderboard.text_scoring import TextSuiteScore
from icl_bench.registration import find_text_spec

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
    "better",
    "worse",
    "tied",
    "tasks",
    "all_tasks",
    "queries",
    "all_queries",
    "seeds",
    "seed_means",
    "seed_worsts",
    "parameters",
    "state_size",
    "gpu_hours",
    "external_data",
    "replayed",
    "training_data",
    "source",
)

TEXT_PAPER_COLUMNS = (
    "suite",
    "entry",
    "method",
    "view",
    "domain",
    "setting",
    "number",
    "source",
    "paper",
    "ours",
    "ours_low",
    "ours_high",
    "difference",
    "difference_low",
    "difference_high",
)


def text_board_csv(score: TextSuiteScore, pairs: Mapping[Domain, PairTable]) -> str:
    """One line per entry, domain and setting, then those of papers.

    Args:
        score: The suite's scores.
        pairs: Domain → ``comparison.text_pairs`` of them.
    """
    lines = []
    for name, e in score.entries.items():
        about = about_csv(e)
        replayed = {find_text_spec(env).setting for env in replayed_envs(e)}
        for domain in DOMAINS:
            for setting, c in e.columns[domain].items():
                pair = pairs[domain][setting].get(name)
                lines.append(
                    about
                    | {
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
                        "better": str(pair.better) if pair else "",
                        "worse": str(pair.worse) if pair else "",
                        "tied": str(pair.tied) if pair else "",
                        "tasks": str(c.coverage.tasks),
                        "all_tasks": str(c.coverage.all_tasks),
                        "queries": str(c.coverage.queries),
                        "all_queries": str(c.coverage.all_queries),
                        "seeds": " ".join(map(str, e.seeds)),
                        "seed_means": " ".join(map(fraction, c.seed_means)),
                        "seed_worsts": " ".join(map(fraction, c.seed_worsts)),
                        "replayed": "yes" if setting in replayed else "no",
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


def text_papers_csv(score: TextSuiteScore) -> str:
    """One line per entry like a reported method, domain, setting and number (mean or worst)."""
    lines = []
    for row in text_papers(score):
        view = score.entries[row.entry.name].view
        for kind, numbers in (("mean", row.columns), ("worst", row.worst)):
            for setting, number in numbers.items():
                about = {
                    "suite": score.suite.name,
                    "entry": row.entry.name,
                    "method": csv_text(row.entry.title),
                    "view": view,
                    "domain": row.domain or "",
                    "setting": setting,
                    "number": kind,
                    "source": csv_text(row.source),
                }
                lines.append(about | paper_csv(number))
    return csv_lines(lines, TEXT_PAPER_COLUMNS)


def text_board_json(score: TextSuiteScore, pairs: Mapping[Domain, PairTable]) -> str:
    """All that is known about a text suite; intervals are [mean, low, high].

    Args:
        score: The suite's scores.
        pairs: Domain → ``comparison.text_pairs`` of them; in the file [better, worse, tied].
    """
    suite = score.suite
    entries = []
    for name, e in score.entries.items():
        columns: dict[str, dict[str, Any]] = {}
        for domain in DOMAINS:
            columns[domain] = {
                setting: {
                    "mean": bounds(c.mean),
                    "worst": bounds(c.worst),
                    "rank": score.ranks[domain][setting].get(name),
                    "pairs": pair_json(pair)
                    if (pair := pairs[domain][setting].get(name))
                    else None,
                    "coverage": [
                        *(c.coverage.tasks, c.coverage.all_tasks),
                        *(c.coverage.queries, c.coverage.all_queries),
                    ],
                    "seed_means": [rounded(v) for v in c.seed_means],
                    "seed_worsts": [rounded(v) for v in c.seed_worsts],
                    "over_seeds": bounds(c.over_seeds),
                }
                for setting, c in e.columns[domain].items()
            }
        ranks = {domain: score.mean_rank(domain, name) for domain in DOMAINS}
        totals = {domain: total_pairs(pairs[domain], name) for domain in DOMAINS}
        entries.append(
            about_json(e)
            | {
                "view": e.view,
                "mean_rank": {
                    domain: None if rank is None or not e.full(domain) else rounded(rank)
                    for domain, rank in ranks.items()
                },
                "win_rate": {
                    domain: None if total.win_rate is None else rounded(total.win_rate)
                    for domain, total in totals.items()
                },
                "pairs": {domain: pair_json(total) for domain, total in totals.items()},
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
