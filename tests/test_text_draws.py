"""Episodes of text as draws: mixture of tasks, demonstrations, fractions; contamination twins."""

import dataclasses
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import laws
import numpy as np
import pytest
from scipy import stats
from text_tasks import LABELS, SIZES, number, of_size, registered_settings

import icl_bench
from icl_bench.data.images import MissingDataError
from icl_bench.data.text import DEMO_SEEDS, text_task
from icl_bench.envs import text_source
from icl_bench.envs.text_labels import renaming
from icl_bench.envs.text_source import TextArgs, TextSource

MINI = "TextMini-ICL-v0"


@pytest.fixture(scope="module", autouse=True)
def settings() -> Iterator[None]:
    with registered_settings():
        yield


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """No real tasks but those that a test asks for."""
    monkeypatch.delenv("ICL_BENCH_DATA", raising=False)


def source_of(env_id: str = MINI, **args: Any) -> TextSource:
    return TextSource(env_id, TextArgs(**args))


# Laws of the draws


def mixture(source: TextSource, count: int = 2500) -> None:
    """Tasks come in proportion to their size, within five standard errors."""
    found = Counter(episode.task for episode in source.episodes(range(count)))
    sizes = {task: len(source_of("Sized-ICL-v0")._pool(task).train) for task in SIZES}
    for task, size in sizes.items():
        share = size / sum(sizes.values())
        error = np.sqrt(count * share * (1 - share))
        assert abs(found[task] - count * share) < laws.Z * error, f"{task}: {found[task]}"


class UniformTasks(TextSource):
    """Mutant: as many queries of every task."""

    def _make_pool(self, task: str) -> Any:
        pool = super()._make_pool(task)
        return dataclasses.replace(pool, query=pool.query[:40])


def test_tasks_are_mixed_in_proportion_to_their_size() -> None:
    mixture(source_of("Sized-ICL-v0", k=1))
    with pytest.raises(AssertionError, match="small"):
        mixture(UniformTasks("Sized-ICL-v0", TextArgs(k=1)))


def demonstrations_are_drawn(count: int = 1500) -> None:
    """Uniform without replacement, in random order; queries uniform."""
    source = source_of("Lone-ICL-v0", k=4)
    train = source._pool("small").train
    episodes = source.episodes(range(count))
    drawn = np.array([[number(e) for e in episode.demonstrations] for episode in episodes])
    laws.examples(np.searchsorted(train, drawn), len(train))
    asked = np.searchsorted(train, [number(episode.query) for episode in episodes])
    assert stats.chisquare(np.bincount(asked, minlength=len(train))).pvalue > 1e-6


def with_replacement(places: np.ndarray, integers: Any) -> Iterator[int]:
    yield from (int(places[int(i) % len(places)]) for i in integers)


def in_order(places: np.ndarray, integers: Any) -> Iterator[int]:
    """As good a set, but sorted."""
    yield from places[sorted({int(i) % len(places) for i in itertools.islice(integers, 7)})]
    yield from places.tolist()


def the_first(places: np.ndarray, integers: Any) -> Iterator[int]:
    yield from places.tolist()


def test_demonstrations_are_uniform_without_replacement(monkeypatch) -> None:
    demonstrations_are_drawn()
    for mutant in (with_replacement, in_order, the_first):
        monkeypatch.setattr(text_source, "_draw", mutant)
        with pytest.raises(AssertionError):
            demonstrations_are_drawn(500)


def test_a_fraction_keeps_its_part_of_every_label() -> None:
    rows = of_size(SIZES["large"])
    whole = source_of("Sized-ICL-v0", k=4)._pool("large").train
    kept = {}
    for fraction in (0.01, 0.25, 0.5, 0.9, 1.0):
        source = source_of("Sized-ICL-v0", k=4, fraction=fraction)
        kept[fraction] = source._pool("large").train.tolist()
        counts = Counter(rows[i].output for i in kept[fraction])
        of_all = Counter(rows[i].output for i in whole.tolist())
        assert counts == {label: max(1, round(fraction * n)) for label, n in of_all.items()}
        shown = source.episodes(range(200))
        of_large = [
            e
            for episode in shown
            if episode.task == "large"
            for e in (*episode.demonstrations, episode.query)
        ]
        assert {number(e) for e in of_large} <= set(kept[fraction])
    for less, more in zip(list(kept), list(kept)[1:], strict=False):
        assert set(kept[less]) < set(kept[more])
    few = source_of("Sized-ICL-v0", k=16, fraction=0.01)
    assert [len(few._pool(task).train) for task in SIZES] == [17] * 3  # enough for k and a query


# Contamination twins


def exchanges(true: icl_bench.TextEpisode, twin: icl_bench.TextEpisode) -> dict[str, str]:
    """New name of every label; demonstrations, options and answer must agree on it."""
    names: dict[str, str] = {}
    pairs = zip((*true.demonstrations, true.query), (*twin.demonstrations, twin.query), strict=True)
    for a, b in pairs:
        assert names.setdefault(a.output, b.output) == b.output
        assert a.input == b.input
    labels = text_task(true.task).labels
    for label in {*labels} - {*names}:  # of which this episode has no example
        (names[label],) = {*twin.query.options} - {*names.values()}
    assert len(set(names.values())) == len(labels)
    for example in (*twin.demonstrations, twin.query):
        assert example.options == tuple(sorted(names.values()))
    return names


@pytest.mark.parametrize("split", ["train", "val"])
def test_shuffled_labels_are_exchanged_everywhere(split: str) -> None:
    true, twin = (
        source_of("MiniClasses-ICL-v0", split=split, labels=labels).episodes(range(150))
        for labels in ("true", "shuffled")
    )
    of_three = set()
    for a, b in zip(true, twin, strict=True):
        names = exchanges(a, b)
        assert {*names} == {*names.values()}
        assert all(old != new for old, new in names.items())
        if a.task == "mini-topics-6":
            of_three.add(tuple(sorted(names.items())))
    assert len(of_three) <= 2


def test_exchanges_of_three_labels_are_equally_likely() -> None:
    found = Counter(renaming("any", LABELS, "shuffled", k)["blue"] for k in range(1000))
    assert set(found) == {"green", "red"}
    assert abs(found["red"] - 500) < laws.Z * np.sqrt(250)
    with pytest.raises(ValueError, match="one label, which cannot be exchanged: blue"):
        renaming("any", ("blue",), "shuffled", 0)


def test_random_words_tell_nothing_of_the_label() -> None:
    true, twin = (
        source_of("MiniClasses-ICL-v0", labels=labels).episodes(range(400))
        for labels in ("true", "random-words")
    )
    words, same_place, two = set(), 0, 0
    for a, b in zip(true, twin, strict=True):
        names = exchanges(a, b)
        assert not {*names.values()} & {*text_task(a.task).labels}
        assert all(re.fullmatch("([b-z][aeiou]){2}[b-z]", word) for word in names.values())
        words |= {*names.values()}
        if len(names) == 2:
            two += 1
            same_place += a.query.answer == b.query.answer
    assert len(words) > 700  # every episode has its own
    assert abs(same_place - two / 2) < laws.Z * np.sqrt(two / 4)


@pytest.mark.parametrize("labels", ["shuffled", "random-words"])
def test_a_query_has_one_right_option_for_all_seeds(labels: str) -> None:
    true, twin = source_of(split="unseen"), source_of(split="unseen", labels=labels)
    for task in twin.tasks[::3]:
        names = set()
        for seed in DEMO_SEEDS[:3]:
            pairs = zip(true.queries(task, seed)[:20], twin.queries(task, seed)[:20], strict=True)
            names |= {tuple(sorted(exchanges(a, b).items())) for a, b in pairs}
        assert len(names) == 1


def test_tasks_without_labels_to_rename_are_left_out(tmp_path: Path) -> None:
    for split in ("train", "unseen"):
        twin, true = source_of(split=split, labels="shuffled"), source_of(split=split)
        left_out = {*true.tasks} - {*twin.tasks}
        assert {text_task(task).kind for task in twin.tasks} == {"classification"}
        assert "classification" not in {text_task(task).kind for task in left_out}
    for labels in ("shuffled", "random-words"):
        with pytest.raises(ValueError, match="QAtoQA-ICL-v0 has no tasks with labels to rename"):
            icl_bench.make("QAtoQA-ICL-v0", split="unseen", labels=labels)
    home = tmp_path / "text" / "tasks" / "unifiedqa:boolq"  # its lines have no options to rename
    home.mkdir(parents=True)
    row = {"input": "is it", "output": "yes", "options": []}
    (home / "train.jsonl").write_text(f"{json.dumps(row)}\n" * 40)
    assert TextSource("QAtoQA-ICL-v0", TextArgs(), data_dir=tmp_path).tasks == (home.name,)
    with pytest.raises(MissingDataError, match="meta-train split of biomrc"):
        icl_bench.make("QAtoQA-ICL-v0", labels="shuffled", data_dir=tmp_path)


@pytest.mark.parametrize("labels", ["shuffled", "random-words"])
def test_classical_learners_score_a_twin_alike(labels: str) -> None:
    """They look at no label's meaning: each option has the number of the label it stands for."""
    true, twin = source_of("MiniClasses-ICL-v0"), source_of("MiniClasses-ICL-v0", labels=labels)
    episodes = list(zip(true.episodes(range(60)), twin.episodes(range(60)), strict=True))
    for learner in (icl_bench.MajorityLabel(), icl_bench.WordNeighbour()):
        for a, b in episodes:
            names = exchanges(a, b)
            given = dict(zip(b.query.options, learner([b])[0], strict=True))
            expected = zip(a.query.options, learner([a])[0], strict=True)
            assert [given[names[label]] for label, _ in expected] == learner([a])[0].tolist()
