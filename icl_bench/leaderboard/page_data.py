"""What the page shows of the scores, as data for its scripts."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from icl_bench.evaluation.protocol import evaluation_fingerprint
from icl_bench.evaluation.statistics import Interval
from icl_bench.evaluation.text_protocol import text_fingerprint
from icl_bench.leaderboard.comparison import PaperRow, text_papers, vector_papers
from icl_bench.leaderboard.entry import EntryInfo
from icl_bench.leaderboard.formatting import (
    DASH,
    clean_text,
    number,
    percent,
    plus_minus,
    seeds_text,
    signed,
)
from icl_bench.leaderboard.marks import AnyEntryScore, flags_of, row_marks, taxonomy_text
from icl_bench.leaderboard.predictions import SPLIT
from icl_bench.leaderboard.replays import ReplayRecord
from icl_bench.leaderboard.scoring import ColumnScore, EntryScore, SuiteScore
from icl_bench.leaderboard.submission import scorable_envs
from icl_bench.leaderboard.suites import AnySuite
from icl_bench.leaderboard.summaries import THRESHOLDS, summarise_curve, summary_steps
from icl_bench.leaderboard.tables import headers
from icl_bench.leaderboard.text_columns import DOMAINS, TextColumn, frozen_tasks, missing_tasks
from icl_bench.leaderboard.text_scoring import TextEntryScore, TextSuiteScore
from icl_bench.registration import find_spec, find_text_spec

Data = dict[str, Any]


def suite_data(score: SuiteScore | TextSuiteScore) -> Data:
    """All that the page shows of a suite, as JSON types.

    Numbers are texts as the other boards print them; learning curves, which the page draws, are
    whole tenths of a percent.
    """
    about = {
        "name": score.suite.name,
        "title": score.suite.title,
        "notRanked": [
            {"name": name, "title": clean_text(info.title), "reasons": list(map(clean_text, told))}
            for name, (info, told) in score.not_ranked.items()
        ],
    }
    more = _text_data(score) if isinstance(score, TextSuiteScore) else _vector_data(score)
    titles = Counter(entry["title"] for entry in more["entries"])
    papers = more.pop("papers")
    for entry in more["entries"]:
        entry["papers"] = papers.get(entry["name"], [])
        if titles[entry["title"]] > 1:
            entry["title"] += f" ({entry['name']})"
    return about | more


# --- what both kinds of suites have


def _entry_data(e: AnyEntryScore, suite: AnySuite, meta_train: str) -> Data:
    about = e.entry
    return {
        "name": about.name,
        "title": clean_text(about.title),
        "kind": about.kind,
        "marks": row_marks(e, meta_train),
        "bias": clean_text(about.inductive_bias),
        "authors": clean_text(about.authors),
        "facts": [[label, clean_text(text)] for label, text in _facts(about).items()],
        "url": _https(about.url),
        "seeds": list(e.seeds),
        "seedsText": seeds_text(about, len(e.seeds), suite),
        "parameters": about.parameters,
        "stateSize": about.state_size,
        "gpuHours": about.gpu_hours,
        "taxonomy": taxonomy_text(e),
        "flags": list(map(clean_text, flags_of(e))),
        "replay": _replay_data(e.replay),
    }


def _facts(about: EntryInfo) -> dict[str, str]:
    arguments = (f"{key} = {json.dumps(v)}" for key, v in about.meta_train_kwargs.items())
    return {
        "Entry": about.name,
        "Kind": about.kind,
        "Inductive bias": about.inductive_bias,
        "Authors": about.authors,
        "Code": about.code,
        "Meta-trained on": about.meta_train or DASH,
        "Arguments of meta-training": ", ".join(arguments) or DASH,
        "Deterministic": "yes" if about.deterministic else "no",
        "Parameters": number(about.parameters),
        "State size": number(about.state_size),
        "Hardware": about.hardware,
        "GPU-hours": DASH if about.gpu_hours is None else f"{about.gpu_hours:g}",
        "External data": about.external_data,
    }


def _https(url: str | None) -> str | None:
    """An address that a link may have; None if it is not https."""
    return url if url is not None and url.startswith("https://") else None


def _replay_data(record: ReplayRecord | None) -> Data | None:
    if record is None:
        return None
    rows = [
        [
            str(seed),
            env,
            percent(cell.differing, 2),
            percent(cell.frozen),
            percent(cell.fresh),
            plus_minus(cell.gap, signed(cell.gap.mean)) + (" (tuned)" if cell.tuned else ""),
            DASH if cell.first_step_p is None else f"{cell.first_step_p:.2g}",
        ]
        for seed, by_env in sorted(record.cells.items())
        for env, cell in by_env.items()
    ]
    taxonomy = [[env, clean_text(what)] for env, what in record.taxonomy.items()]
    return {
        "same": record.same,
        "tuned": record.tuned,
        "version": clean_text(record.package_version),
        "digest": record.digest,
        "rows": rows,
        "taxonomy": taxonomy,
    }


def _papers(rows: Sequence[PaperRow]) -> dict[str, list[list[str]]]:
    """Entry → paper, column, the paper's number, ours, and the difference."""
    found: dict[str, list[list[str]]] = {}
    for row in rows:
        told = f" ({DOMAINS[row.domain]})" if row.domain else ""
        for column, n in row.columns.items():
            gain = plus_minus(n.difference, signed(n.difference.mean)) if n.difference else DASH
            cells = [clean_text(row.source), column + told, percent(n.paper), plus_minus(n.ours)]
            found.setdefault(row.entry.name, []).append([*cells, gain])
    return found


def _interval(interval: Interval | None) -> str | None:
    return None if interval is None else plus_minus(interval)


def _per_mille(values: Sequence[float] | Float[np.ndarray, " T"]) -> list[int] | None:
    """Fractions as whole tenths of a percent, rounded as ``percent`` does; None if undefined."""
    array = np.asarray(values)
    if not np.isfinite(array).all():
        return None
    tenths: list[int] = np.rint(1000 * array).astype(int).tolist()
    return tenths


# --- suites of vectors


def _vector_data(score: SuiteScore) -> Data:
    suite = score.suite
    short, _ = headers(suite.envs)
    scorable = scorable_envs(suite)
    columns = [
        {
            "id": env,
            "name": name,
            "chance": round(1000 / find_spec(env).num_classes),
            "fingerprint": evaluation_fingerprint(env),
        }
        for env, name in zip(suite.envs, short, strict=True)
    ]
    missing = [env for env in suite.envs if env not in scorable]
    protocol = (
        f"Meta-train on {suite.meta_train} with {suite.meta_train_seeds} seeds; meta-test on split "
        f"{SPLIT}, {suite.tasks} tasks × {suite.episodes_per_task} episodes of "
        f"{suite.episode_length} steps in every column."
    )
    if missing:
        protocol += (
            f" This version holds no frozen labels of {', '.join(missing)}, so nothing can be "
            "handed in there yet."
        )
    return {
        "text": False,
        "protocol": protocol,
        "length": suite.episode_length,
        "columns": columns,
        "steps": summary_steps(suite.episode_length),
        "thresholds": [percent(threshold, 0) for threshold in THRESHOLDS],
        "entries": [_vector_entry(e, score) for e in score.entries],
        "reported": _reported_vectors(score),
        "papers": _papers(vector_papers(score)),
    }


def _vector_entry(e: EntryScore, score: SuiteScore) -> Data:
    name = e.entry.name
    about = _entry_data(e, score.suite, score.suite.meta_train)
    return about | {
        "meanRank": f"{score.mean_rank[name]:.2f}",
        "cells": {env: _vector_cell(c, score.ranks[env][name]) for env, c in e.columns.items()},
    }


def _vector_cell(c: ColumnScore, rank: int) -> Data:
    summary = summarise_curve(c)
    # A loss is infinite where a right answer was given probability 0.
    losses = [f"{v:.3f}" if math.isfinite(v) else "∞" for v in c.log_loss.values()]
    examples = [DASH if n is None else str(n) for n in summary.examples_to.values()]
    return {
        "text": plus_minus(c.accuracy),
        "rank": rank,
        "seeds": list(map(percent, c.seed_accuracy)),
        "overSeeds": _interval(c.over_seeds),
        "larger": _interval(c.extended),
        "summary": [*map(plus_minus, (*summary.accuracy.values(), summary.area)), *examples],
        "logLoss": losses,
        "curve": _per_mille(c.curve),
        "low": _per_mille(c.curve_low),
        "high": _per_mille(c.curve_high),
    }


def _reported_vectors(score: SuiteScore) -> list[Data]:
    rows: dict[tuple[str, str, str], Data] = {}
    for r in score.reported:
        key = (r.method, r.inductive_bias, r.source)
        rows.setdefault(key, {})[r.env] = {"text": percent(r.accuracy)}
    return [
        {
            "title": clean_text(title),
            "bias": clean_text(bias),
            "source": clean_text(source),
            "cells": cells,
        }
        for (title, bias, source), cells in rows.items()
    ]


# --- suites of text


def _text_data(score: TextSuiteScore) -> Data:
    suite = score.suite
    columns = [
        {
            "id": setting,
            "name": setting,
            "tasks": {domain: len(frozen_tasks(setting, domain)) for domain in DOMAINS},
        }
        for setting in suite.settings
    ]
    seeds = "1 seed" if suite.meta_train_seeds == 1 else f"{suite.meta_train_seeds} seeds"
    lacking = sorted({task for setting in suite.settings for task in missing_tasks(setting)})
    protocol = (
        f"Meta-train on the train tasks of each column with {seeds}; meta-test on its test tasks, "
        f"{suite.num_demos} demonstrations, draws {', '.join(map(str, suite.demo_seeds))}."
    )
    if lacking:
        protocol += (
            f" This version holds no frozen answers of {', '.join(lacking)}: columns that have "
            "them are about fewer test tasks than the papers', so that numbers of papers do not "
            "compare with them."
        )
    return {
        "text": True,
        "protocol": protocol,
        "domains": [[domain, words] for domain, words in DOMAINS.items()],
        "columns": columns,
        "fingerprints": {env: text_fingerprint(env) for env in suite.envs},
        "entries": [_text_entry(e, score) for e in score.entries.values()],
        "order": {domain: [e.entry.name for e in score.rows(domain)] for domain in DOMAINS},
        "reported": _reported_text(score),
        "papers": _papers(text_papers(score)),
    }


def _text_entry(e: TextEntryScore, score: TextSuiteScore) -> Data:
    name, mean_ranks = e.entry.name, {}
    for domain in DOMAINS:
        rank = score.mean_rank(domain, name) if e.full(domain) else None
        mean_ranks[domain] = None if rank is None else f"{rank:.2f}"
    cells = {
        domain: {
            setting: _text_cell(c, score.ranks[domain][setting].get(name))
            for setting, c in e.columns[domain].items()
        }
        for domain in DOMAINS
    }
    envs = [env for env in score.suite.envs if find_text_spec(env).prompt_view == e.view]
    about = _entry_data(e, score.suite, score.suite.name)
    return about | {"view": e.view, "envs": envs, "meanRank": mean_ranks, "cells": cells}


def _text_cell(c: TextColumn, rank: int | None) -> Data:
    by_seed = zip(c.seed_means, c.seed_worsts, strict=True)
    return {
        "text": plus_minus(c.mean),
        "worst": percent(c.worst.mean),
        "worstText": plus_minus(c.worst),
        "rank": rank,
        "partial": None if c.coverage.full else str(c.coverage),
        "seeds": [f"{percent(mean)} / {percent(worst)}" for mean, worst in by_seed],
        "overSeeds": _interval(c.over_seeds),
        "value": _per_mille([c.mean.mean]),
        "bounds": _per_mille([c.mean.low, c.mean.high]),
    }


def _reported_text(score: TextSuiteScore) -> list[Data]:
    rows: dict[tuple[str, ...], Data] = {}
    for r in score.reported:
        key = (r.method, r.view, r.domain, r.training_data, r.source)
        worst = None if r.worst is None else percent(r.worst)
        rows.setdefault(key, {})[r.setting] = {"text": percent(r.mean), "worst": worst}
    found = []
    for (method, view, domain, data, source), cells in rows.items():
        told = "" if data in ("none", "complete") else f", {data} training data"
        about = {"title": clean_text(method + told), "view": view, "domain": domain}
        found.append(about | {"source": clean_text(source), "cells": cells})
    return found
