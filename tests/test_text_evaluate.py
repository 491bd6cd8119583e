"""evaluate_text, its learners and results, frozen answers, and text on the command line."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import text_folder
from text_tasks import example, hand_setting

import icl_bench
from icl_bench import __main__ as cli
from icl_bench.catalog import METAICL_SETTINGS, TEXT_ENVIRONMENTS, TEXT_SUITES
from icl_bench.data.text import DEMO_SEEDS, text_setting, text_task
from icl_bench.envs.text_source import TextArgs, TextSource
from icl_bench.evaluation import text_protocol
from icl_bench.evaluation.text_learners import TEXT_REFERENCES
from icl_bench.evaluation.text_metrics import summarise
from icl_bench.evaluation.text_protocol import (
    evaluate_text,
    scorable_tasks,
    text_answers,
    text_checksum,
    text_fingerprint,
    text_options,
    text_suite,
)
from icl_bench.evaluation.text_result import TaskResult, TextResult

MINI, HAND = "TextMini-ICL-v0", "Hand-ICL-v0"
MAJORITY = icl_bench.MajorityLabel()


@pytest.fixture(scope="module", autouse=True)
def hand() -> Iterator[None]:
    with hand_setting():
        yield


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """No real tasks but those that a test asks for."""
    monkeypatch.delenv("ICL_BENCH_DATA", raising=False)


@pytest.fixture(scope="module")
def result() -> TextResult:
    return evaluate_text(MAJORITY, MINI, num_queries=20)


def longest(episodes: Sequence[icl_bench.TextEpisode]) -> list[np.ndarray]:
    """The option with most letters."""
    return [np.array([len(o) for o in e.query.options]) for e in episodes]


# Evaluation


def test_by_hand() -> None:
    found = evaluate_text(longest, HAND, demo_seeds=(13, 100))
    assert (found.env, found.labels, found.k, found.demo_seeds) == (HAND, "true", 16, (13, 100))
    colours, choices = found.tasks
    assert (colours.task, colours.metric, colours.total) == ("hand:colours", "macro-f1", 3)
    assert colours.answer.tolist() == [1, 0, 1]
    assert colours.prediction.tolist() == [[0, 0, 0]] * 2  # "blue"
    assert choices.answer.tolist() == [0, 0]
    assert choices.prediction.tolist() == [[0, 2]] * 2
    # F1 of blue: p = 1/3, r = 1, so 1/2; of red, never predicted: p = 1, r = 0, so 0.
    assert colours.predictions.values().tolist() == [0.25] * 2
    assert choices.predictions.values().tolist() == [0.5] * 2
    assert found.summary().mean.mean == found.summary().worst.mean == 0.375
    majority = evaluate_text(MAJORITY, HAND)
    source = TextSource(HAND, TextArgs("unseen"))
    for row, seed in zip(majority.tasks[0].prediction.tolist(), DEMO_SEEDS, strict=True):
        shown = Counter(e.output for e in source.queries("hand:colours", seed)[0].demonstrations)
        assert row == [int(shown["red"] > shown["blue"])] * 3
    assert majority.tasks[0].checksum == source.checksum("hand:colours")


def test_a_learner_sees_a_task_and_seed_at_a_time_and_no_answer() -> None:
    calls: list[Sequence[icl_bench.TextEpisode]] = []

    def learner(episodes: Sequence[icl_bench.TextEpisode]) -> list[np.ndarray]:
        calls.append(episodes)
        return longest(episodes)

    finished: list[TaskResult] = []
    found = evaluate_text(learner, HAND, k=3, finished=finished.append)
    assert tuple(finished) == found.tasks
    assert [(e[0].task, e[0].demo_seed) for e in calls] == [
        (task, seed) for task in text_setting("Hand").test for seed in DEMO_SEEDS
    ]
    source = TextSource(HAND, TextArgs("unseen", k=3))
    for episodes in calls:
        asked = source.queries(episodes[0].task, episodes[0].demo_seed)
        assert {e.query.output for e in episodes} == {""}
        restored = [
            dataclasses.replace(e, query=dataclasses.replace(e.query, output=a.query.output))
            for e, a in zip(episodes, asked, strict=True)
        ]
        assert restored == asked


def test_the_first_of_equal_numbers_is_taken() -> None:
    given = {2: [-np.inf, -np.inf], 3: [-2.0, 1.0, 1.0]}
    found = evaluate_text(lambda e: [np.array(given[len(x.query.options)]) for x in e], HAND)
    assert [task.prediction[0].tolist() for task in found.tasks] == [[0, 0, 0], [0, 1]]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda e: None, "hand:colours: NoneType answers to 3 queries"),
        (lambda e: longest(e)[1:], "hand:colours: 2 answers to 3 queries"),
        (lambda e: [[0.0]] * len(e), r"query 0: 2 options need as many numbers, .* shape \(1,\)"),
        (lambda e: [[0.0, np.nan]] * len(e), r"none of them NaN; .* \[0.0, nan\]"),
        (lambda e: ["ab"] * len(e), r"2 options need as many numbers"),
        (lambda e: [1.0] * len(e), r"2 options need as many numbers"),
        (lambda e: [[True, False]] * len(e), r"2 options need as many numbers"),
    ],
)
def test_learners_that_cannot_be_scored(answer: Callable[..., Any], message: str) -> None:
    def learner(episodes: Any) -> Any:
        return answer(episodes)

    with pytest.raises(icl_bench.LearnerError, match=message):
        text_protocol._ask(
            learner, TextSource(HAND, TextArgs("unseen")).queries("hand:colours"), "hand:colours"
        )


def test_fewer_queries_are_a_part_of_more(result: TextResult) -> None:
    few = evaluate_text(MAJORITY, MINI, num_queries=7)
    for less, more in zip(few.tasks, result.tasks, strict=True):
        assert (len(less.query), len(more.query), less.total) == (7, 20, 100)
        place = np.searchsorted(more.query, less.query)
        assert (more.query[place] == less.query).all()
        assert (more.prediction[:, place] == less.prediction).all()
        assert (text_answers(more.task)[more.query] == more.answer).all()
    assert len({tuple(task.query.tolist()) for task in result.tasks}) == 33
    assert not few.full
    assert few.coverage == "33 of 33 test tasks, 231 of 3,300 queries"


def test_coverage() -> None:
    whole = evaluate_text(longest, HAND, num_queries=99)
    assert (whole.coverage, whole.full) == ("2 of 2 test tasks, all queries", True)
    part = evaluate_text(longest, HAND, tasks=["hand:choices"])
    assert (part.coverage, part.full) == ("1 of 2 test tasks, all queries", False)
    assert part.tasks[0].prediction.tolist() == whole.tasks[1].prediction.tolist()
    with pytest.raises(ValueError, match="2 tasks"):
        part.summary()
    tasks = text_setting("TextMini").unseen_domain
    new = evaluate_text(longest, MINI, domain="new", num_queries=2)
    assert tuple(task.task for task in new.tasks) == tasks
    assert new.of("all") == new.of("new") == new.tasks


def test_domains_of_a_result(result: TextResult) -> None:
    new = text_setting("TextMini").unseen_domain
    assert [task.task for task in result.of("new")] == list(new)
    assert result.summary("new") == summarise([task.predictions for task in result.of("new")])
    assert result.summary() == summarise([task.predictions for task in result.tasks])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"tasks": ["mini-keys-1"]}, "no test tasks mini-keys-1 at hand; there are mini-keys-9, "),
        ({"tasks": []}, "tasks must be distinct test tasks"),
        ({"num_queries": 0}, "num_queries must be at least 1, not 0"),
        ({"demo_seeds": ()}, "demo_seeds must be distinct and at least one"),
        ({"demo_seeds": (13, 13)}, "demo_seeds must be distinct"),
        ({"k": -1}, "k must be 0 or more"),
        ({"labels": "shuffled", "tasks": ["mini-codes-1"]}, "no test tasks mini-codes-1"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_text(MAJORITY, MINI, **kwargs)


@pytest.mark.parametrize("labels", ["shuffled", "random-words"])
def test_who_knows_all_is_right_on_a_twin_with_every_seed(labels: str) -> None:
    """With a renaming of its own for each seed a query would have several right options."""
    source = TextSource(MINI, TextArgs("unseen", labels=labels))
    tasks = ("mini-keys-9", "mini-entailment-4", "mini-shapes-1")

    def knows(episodes: Sequence[icl_bench.TextEpisode]) -> list[np.ndarray]:
        asked = source.queries(episodes[0].task, episodes[0].demo_seed)
        return [np.eye(9)[asked[e.episode].query.answer, : len(e.query.options)] for e in episodes]

    found = evaluate_text(knows, MINI, labels=labels, tasks=tasks)
    assert found.labels == labels
    assert [task.predictions.values().tolist() for task in found.tasks] == [[1.0] * 5] * 3


# Frozen answers


@pytest.mark.parametrize("setting", ["TextMini", *METAICL_SETTINGS])
def test_frozen_answers_are_those_of_the_data(setting: str) -> None:
    folder = text_folder()
    if folder is None and setting != "TextMini":
        pytest.skip("no real text tasks: set ICL_BENCH_DATA to a folder with text/tasks")
    source = TextSource(f"{setting}-ICL-v0", TextArgs("unseen"), data_dir=folder)
    assert source.tasks == scorable_tasks(setting)
    for task in source.tasks[:: 1 if setting == "TextMini" else 6]:  # others: tools/pin_text.py
        queries = [episode.query for episode in source.queries(task)]
        assert text_answers(task).tolist() == [query.answer for query in queries]
        assert text_options(task).tolist() == [len(query.options) for query in queries]
        assert text_checksum(task) == source.checksum(task)


def test_what_is_unpinned_is_told() -> None:
    for look_up in (text_answers, text_options, text_checksum):
        with pytest.raises(LookupError, match="the answers of hand:colours are not pinned"):
            look_up("hand:colours")
    assert scorable_tasks("Hand") == ()


def test_golden_fingerprints(monkeypatch: pytest.MonkeyPatch) -> None:
    """They change only together with the version of an environment."""
    ids = [f"{row.base}-{row.view}-v{row.version}" for row in TEXT_ENVIRONMENTS]
    golden = {env_id: text_fingerprint(env_id) for env_id in ids}
    assert golden[MINI] == "4b99f388ddb69e325bab27db52abbf6a7af0da08e595f86ab81e823b95d039af"
    assert golden["TextMini-Channel-v0"] == (
        "ea0b70cb436cead1fb0761c3bd88e7a660fda9b1e06f11d7da030d946cae19c7"
    )
    assert len(set(golden.values())) == 16
    frozen = {task: row for task, row in text_protocol._frozen().items() if task != "mini-keys-9"}
    for name, value in (
        ("PROTOCOL_VERSION", 1),
        ("NUM_DEMOS", 8),
        ("DEMO_SEEDS", (100,)),
        ("_frozen", lambda: frozen),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(text_protocol, name, value)
            assert text_fingerprint(MINI) != golden[MINI]


def test_suites_name_text_environments() -> None:
    for row in TEXT_SUITES:
        assert text_suite(row.name) is row
        assert {*row.envs} <= {*icl_bench.registry}
        assert (row.demo_seeds, row.num_demos) == (DEMO_SEEDS, 16)
    with pytest.raises(ValueError, match="unknown text suite 'metaicl'; there are metaicl-v0, tex"):
        text_suite("metaicl")


# References


def test_references_by_hand() -> None:
    shown = (
        example("the red fox", "animal", "animal", "food"),
        example("bread and red wine", "food", "animal", "food"),
        example("bread", "food", "animal", "food"),
    )
    query = example("a red fox", "", "animal", "food")
    episode = icl_bench.TextEpisode("any", shown, query, 0, 13)
    assert icl_bench.MajorityLabel()([episode])[0].tolist() == [1, 2]
    found = icl_bench.WordNeighbour()([episode])[0]
    assert found == pytest.approx([2 / 3, 1 / np.sqrt(12)])
    other = dataclasses.replace(episode, query=example("fox", "", "a fox", "food"))
    found = icl_bench.WordNeighbour()([other])[0]
    assert found == pytest.approx([1 / np.sqrt(2) - 2, 0.0])
    empty = dataclasses.replace(episode, demonstrations=())
    assert icl_bench.WordNeighbour()([empty])[0].tolist() == [-2, -2]


def test_chance_is_uniform_and_pure() -> None:
    episodes = TextSource(MINI, TextArgs("unseen")).queries("mini-picks-4")
    chance = TEXT_REFERENCES["chance"]()
    together = chance(episodes)
    assert chance(episodes[5:6])[0].tolist() == together[5].tolist()
    assert chance([dataclasses.replace(episodes[5], demo_seed=13)])[0].tolist() != (
        together[5].tolist()
    )
    many = [dataclasses.replace(episodes[0], episode=k) for k in range(1000)]
    options = len(episodes[0].query.options)
    counts = np.bincount([row.argmax() for row in chance(many)], minlength=options)
    error = np.sqrt(1000 / options * (1 - 1 / options))
    assert (abs(counts - 1000 / options) < 5 * error).all()
    assert set(TEXT_REFERENCES) == {"chance", "majority", "1-nn"}


# Command line


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*args: Any) -> tuple[int, str, str]:
        status = cli.main([str(arg) for arg in args])
        return (status, *capsys.readouterr())

    return call


def test_list_says_which_tasks_are_at_hand(run, tmp_path: Path) -> None:
    status, out, err = run("list", "--data-dir", tmp_path)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    (mini,) = (line for line in lines if line.startswith("TextMini-ICL-v0 TextMini-Channel-v0"))
    assert mini.endswith("33 of 33 test tasks, 119 of 119 train tasks")
    (other,) = (line for line in lines if line.startswith("QAtoQA-ICL-v0 QAtoQA-Channel-v0"))
    assert other.endswith("0 of 22 test tasks, 0 of 37 train tasks")
    assert [line.split()[-1] for line in lines if line.startswith("metaicl-v0")] == ["14"]


@pytest.mark.parametrize("row", TEXT_ENVIRONMENTS, ids=lambda row: f"{row.base}-{row.view}")
def test_show(row: Any, run) -> None:
    env_id, setting = f"{row.base}-{row.view}-v0", text_setting(row.base)
    status, out, err = run("show", env_id)
    assert (status, err) == (0, "")
    assert all(len(line) <= 100 for line in out.splitlines())
    metrics = out.partition("  Metric ")[2].partition(";")[0]
    kinds = {text_task(task).kind for task in setting.test}
    assert {k for k in ("classification", "multi-choice") if f"({k})" in metrics} == kinds
    words = out.replace(",", " ").split()
    assert {*setting.test, *setting.train, *setting.unseen_domain} <= {*words}
    assert f"Fingerprint   {text_fingerprint(env_id)}\n" in out
    assert f"{len(setting.train)} tasks; unseen: {len(setting.test)} test tasks" in out


def test_sample(run, tmp_path: Path) -> None:
    status, out, err = run("sample", MINI, "--split", "unseen", "--episode", "7")
    assert (status, err) == (0, "")
    env = icl_bench.make(MINI, split="unseen")
    observation, info = env.reset(options={"episode_id": 7})
    assert out.startswith(f"{observation['prompt']}\n\n[query] {observation['query']}\n")
    assert all(f"\n   {option}\n" in out for option in observation["options"])
    assert out.endswith(f"{MINI} · unseen · {info['task']} · macro-f1\n")
    assert "*" not in out  # the right option is not shown before an answer
    path = tmp_path / "episode.txt"
    printed = run("sample", MINI, "--split", "unseen", "--episode", "7", "--out", path)
    assert printed == (0, f"{path}\n", "")
    assert path.read_text(encoding="utf-8") == out


def test_evaluate_writes_a_run(run, tmp_path: Path) -> None:
    status, out, _ = run("evaluate", "majority", "--suite", "textmini-v0", "--runs", tmp_path)
    assert status == 0
    (path,) = tmp_path.iterdir()
    assert out.endswith(f"{path}\n")
    found = icl_bench.TextResult.load(next((path / "results").iterdir()))
    expected = icl_bench.evaluate_text(icl_bench.MajorityLabel(), MINI)
    assert found.summary() == expected.summary()
    meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    assert (meta["suite"], meta["entry"]["kind"]) == ("textmini-v0", "reference")
    assert meta["fingerprints"] == {MINI: text_fingerprint(MINI)}


def test_evaluate_takes_the_users_own_learner(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_text.py").write_text(
        "import numpy\n"
        "learner = lambda episodes: [numpy.arange(len(e.query.options)) for e in episodes]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    runs = tmp_path / "runs"
    assert run("evaluate", "own_text:learner", "--env", MINI, "--runs", runs)[0] == 0
    (path,) = runs.iterdir()
    result = icl_bench.TextResult.load(next((path / "results").iterdir()))
    for task in result.tasks:  # the last option
        assert (task.prediction == text_options(task.task) - 1).all()


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("evaluate", "majority", "--suite", "text-v0"), "digits-v0, metaicl-v0, textmini-v0"),
        (("evaluate", "logistic", "--env", MINI), "give chance, majority, 1-nn or module:name"),
        (("evaluate", "1-nn", "--env", MINI, "--split", "seen"), "on --split unseen, not seen"),
        (("evaluate", "1-nn", "--env", "HRtoLR-ICL-v0"), "quarel is not at hand"),
        (("sample", MINI, "--split", "seen"), "split must be train or val or unseen, not 'seen'"),
        (("sample", MINI, "--episode", "-3"), "episode ids must be in"),
        (("sample", MINI, "--split", "unseen", "--episode", "3300"), "there is no query 3300"),
        (("sample", "HRtoLR-ICL-v0"), "piqa is not at hand: set ICL_BENCH_DATA"),
        (("sample", "Digits-Proj8-v0"), "is drawn as a picture: give --out episode.png"),
        (("show", "TextMin-ICL-v0"), "did you mean TextMini-ICL-v0"),
    ],
)
def test_errors_are_one_line(args: tuple[str, ...], reason: str, run) -> None:
    status, out, err = run(*args)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert reason in err


@pytest.mark.parametrize("task", sorted(text_protocol._frozen()))
def test_the_place_of_an_option_tells_nothing_of_the_answer(task: str) -> None:
    """Else a learner that ties, or looks at the order alone, is better than guessing."""
    answers, options = text_answers(task), text_options(task)
    if text_task(task).kind == "classification":
        return  # sorted labels: the class itself
    for place in range(options.max()):
        chance = np.where(options > place, 1 / options, 0.0)
        excess = (answers == place).sum() - chance.sum()
        assert abs(excess) < 5 * np.sqrt((chance * (1 - chance)).sum())
