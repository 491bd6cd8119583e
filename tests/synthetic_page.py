"""Scores of made-up entries of every kind, and a few hands, for tests of the page."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from synthetic_runs import DIGITS, ENVS, SUITE, entry_info, frozen_result, random_correct
from synthetic_text import MINI, MINI_CHANNEL, MINI_SUITE, text_entry, text_result

from icl_bench.evaluation import protocol
from icl_bench.evaluation.statistics import Interval, ranks
from icl_bench.evaluation.text_protocol import text_suite
from icl_bench.leaderboard.replays import ReplayCell, ReplayRecord
from icl_bench.leaderboard.scoring import (
    EntryScore,
    SuiteScore,
    mean_rank_of,
    reported,
    score_column,
)
from icl_bench.leaderboard.text_columns import DOMAINS, domain_tasks, score_methods
from icl_bench.leaderboard.text_scoring import TextEntryScore, TextSuiteScore

AnyScore = SuiteScore | TextSuiteScore
Page = Any  # playwright.sync_api.Page, which there may not be

HOSTILE = "</script><img src=x onerror=alert(1)><b>{{script}}</b> & \\u003c javascript:alert(1)"
PAPER_SUITE = "table2-v0"


def entry_score(
    name: str,
    accuracy: float,
    *,
    suite: str = SUITE,
    seeds: tuple[int, ...] = (0,),
    envs: tuple[str, ...] = ENVS,
    num_episodes: int = 256,
    **fields,
) -> EntryScore:
    """An entry that answers at random, right with a probability."""
    columns = {}
    for i, env in enumerate(envs):
        correct = [random_correct(accuracy, 100 * seed + i, num_episodes) for seed in seeds]
        columns[env] = score_column([frozen_result(env, c) for c in correct], 256)
    return EntryScore(entry_info(name, **fields), suite, seeds, columns)


def suite_score(suite: str, entries: list[EntryScore], **fields) -> SuiteScore:
    """The entries, ranked."""
    row = protocol.suite(suite)
    by_env: dict[str, dict[str, int]] = {}
    for env in row.envs:
        found = {e.entry.name: e.columns[env] for e in entries if env in e.columns}
        task = np.arange(256) // 16
        places = ranks([column.correct for column in found.values()], task)
        by_env[env] = dict(zip(found, places, strict=True))
    mean_rank = {e.entry.name: mean_rank_of(e.entry.name, by_env) for e in entries}
    order = sorted(entries, key=lambda e: (mean_rank[e.entry.name], e.entry.title.casefold()))
    given = {"not_ranked": {}, "reported": reported(suite)} | fields
    return SuiteScore(row, tuple(order), by_env, mean_rank, **given)


def replayed(entry: EntryScore, differing: float = 0.0) -> EntryScore:
    """The entry with a record of a replay of all its seeds and environments."""
    cell = ReplayCell(differing, 0.9, 0.85, Interval(0.05, -0.01, 0.11), 0.4)
    cells = {seed: dict.fromkeys(entry.columns, cell) for seed in entry.seeds}
    record = ReplayRecord("ab" * 32, "0.1.0", cells, {DIGITS: "learns"})
    return dataclasses.replace(entry, replay=record)


def digits_score() -> SuiteScore:
    """Entries of every kind: one is replayed, one is flagged, one is of another version."""
    hostile = entry_score(
        "hostile",
        0.1,
        seeds=(0, 1),
        **dict.fromkeys(("title", "inductive_bias", "authors", "code"), HOSTILE),
    )
    entries = [
        replayed(entry_score("good", 0.9, title="Good", seeds=(0, 1, 2))),
        entry_score("twin", 0.9, title="Twin", seeds=(3, 4), num_episodes=1024),
        entry_score("half", 0.5, title="Half", envs=(DIGITS,), parameters=None),
        dataclasses.replace(hostile, flags=(f"\u202e{HOSTILE}\u2028",)),
        entry_score("knn", 0.7, title="1-NN", deterministic=True, kind="reference"),
        # A name that objects of JavaScript have, too.
        entry_score("constructor", 0.3, title="Half", external_data="ImageNet", parameters=9),
    ]
    old = (entry_info("old", title="Old <i>"), ("scorer version 7, this is version 1",))
    return suite_score(SUITE, entries, not_ranked={"old": old})


def text_score() -> TextSuiteScore:
    """A direct, a channel and a partial entry of the small text suite."""
    given = {
        "strong": (MINI, 0.9, None, (0, 1)),
        "weak": (MINI_CHANNEL, 0.4, None, (0,)),
        "part": (MINI, 0.6, 5, (0,)),
    }
    suite = text_suite(MINI_SUITE)
    (setting,) = suite.settings
    entries = {}
    for name, (env, accuracy, queries, seeds) in given.items():
        results = [text_result(env, accuracy, seed, queries=queries) for seed in seeds]
        columns = {}
        for domain in DOMAINS:
            by_seed = [domain_tasks(result, domain) for result in results]
            columns[domain] = {setting: score_methods({name: by_seed}, setting, domain)[name]}
        entry = text_entry(name, title=name.upper())
        view = "channel" if env == MINI_CHANNEL else "direct"
        entries[name] = TextEntryScore(entry, MINI_SUITE, view, seeds, columns)
    places = {domain: {setting: {"strong": 1, "weak": 2}} for domain in DOMAINS}
    return TextSuiteScore(suite, entries, places, {}, ())


def all_scores() -> list[AnyScore]:
    """A suite of every kind: vectors, vectors with a paper's numbers, and text."""
    envs = ("MNIST-Proj-v0", "Random-Proj-v0")
    vsml = entry_score("vsml", 0.8, suite=PAPER_SUITE, title="VSML", envs=envs)
    return [digits_score(), suite_score(PAPER_SUITE, [vsml]), text_score()]


def crowd(score: SuiteScore, count: int) -> SuiteScore:
    """A suite with many entries: copies of its first one, with other names and ranks."""
    first = score.entries[0]
    order = np.random.default_rng(0).permutation(count)
    entries, mean_rank = [], {}
    places: dict[str, dict[str, int]] = {env: {} for env in score.suite.envs}
    for i in range(count):
        name = f"copy-{i:03d}"
        entry = dataclasses.replace(first.entry, name=name, title=f"Copy {order[i]:03d}")
        entries.append(dataclasses.replace(first, entry=entry))
        mean_rank[name] = 1.0 + i
        for j, env in enumerate(places):
            places[env][name] = 1 + int(order[count - 1 - i]) // 10 * 10 if j == 0 else i + 1
    return dataclasses.replace(score, entries=tuple(entries), ranks=places, mean_rank=mean_rank)


# --- in a browser


def open_at(page: Page, site: Path, address: str = "", name: str = "index.html") -> None:
    page.goto("about:blank")
    page.goto(f"{(site / name).as_uri()}{address}")


def colours(page: Page) -> list[list[int]]:
    """Colours of the pixels of the canvas, alpha left out, that are opaque."""
    return page.evaluate(
        """() => {
          const canvas = document.querySelector("#plot canvas");
          const { width, height } = canvas;
          const copy = new OffscreenCanvas(width, height);
          const context = copy.getContext("2d", { willReadFrequently: true });
          context.drawImage(canvas, 0, 0);
          const { data } = context.getImageData(0, 0, width, height);
          const found = new Set();
          for (let i = 0; i < data.length; i += 4)
            if (data[i + 3] === 255) found.add((data[i] << 16) | (data[i + 1] << 8) | data[i + 2]);
          return [...found].map((c) => [c >> 16, (c >> 8) & 255, c & 255]);
        }"""
    )


def colour(page: Page, slot: int) -> list[int]:
    value = page.evaluate("(slot) => colour(slot)", slot)
    return [int(value[i : i + 2], 16) for i in (1, 3, 5)]
