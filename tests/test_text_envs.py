"""Text environments: ids, purity and streams, what an episode shows, rewards, bad input."""

import dataclasses
import gc
import json
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from conftest import text_folder
from gymnasium.utils.env_checker import check_env
from text_tasks import LABELS, of_size, register_setting, registered_settings
from user_sets import restored_registries

import icl_bench
from icl_bench.catalog import METAICL_SETTINGS, TEXT_ENVIRONMENTS
from icl_bench.data.images import DataError, MissingDataError
from icl_bench.data.text import DEMO_SEEDS, load_text, text_setting, text_task
from icl_bench.envs.text import UnicodeText
from icl_bench.envs.text_source import TextArgs, TextSource
from icl_bench.registration import find_spec, find_text_spec

MINI = "TextMini-ICL-v0"
TEXT_IDS = [f"{row.base}-{row.view}-v{row.version}" for row in TEXT_ENVIRONMENTS]


@pytest.fixture(scope="module", autouse=True)
def settings() -> Iterator[None]:
    with registered_settings():
        yield


@pytest.fixture(scope="module")
def small_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the smallest real task of either side of every setting, if at hand."""
    real, root = text_folder(), tmp_path_factory.mktemp("data")
    (root / "text" / "tasks").mkdir(parents=True)
    for name in METAICL_SETTINGS if real else ():
        for side in (text_setting(name).train, text_setting(name).test):
            homes = [real / "text" / "tasks" / task for task in side]
            homes = [home for home in homes if (home / "test.jsonl").is_file()]
            least = min(homes, key=lambda home: (home / "train.jsonl").stat().st_size)
            if not (link := root / "text" / "tasks" / least.name).exists():
                link.symlink_to(least)
    return root


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """No real tasks but those that a test asks for."""
    monkeypatch.delenv("ICL_BENCH_DATA", raising=False)


def source_of(env_id: str = MINI, *, data_dir: Path | None = None, **args: Any) -> TextSource:
    try:
        return TextSource(env_id, TextArgs(**args), data_dir=data_dir)
    except MissingDataError as error:
        pytest.skip(str(error))


# Ids


def test_every_setting_has_two_environments() -> None:
    specs = [s for s in icl_bench.registry.values() if isinstance(s, icl_bench.TextEnvSpec)]
    assert [s.id for s in specs][: len(TEXT_IDS)] == TEXT_IDS
    assert len(TEXT_IDS) == 2 * (len(METAICL_SETTINGS) + 1) == 16
    for spec in specs:
        assert spec.id == f"{spec.setting}-{spec.view}-v{spec.version}"
        assert spec.prompt_view == {"ICL": "direct", "Channel": "channel"}[spec.view]
        assert find_text_spec(spec.id) is spec
        assert text_setting(spec.setting).name == spec.setting
        assert spec.history


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("TextMini-ICL", "exact version; did you mean TextMini-ICL-v0"),
        ("HRtoLR-Channel-v2", "there is no version v2 of HRtoLR-Channel, only v0"),
        ("TextMinni-ICL-v0", "did you mean TextMini-ICL-v0"),
        ("qatoqa-icl-v0", "did you mean QAtoQA-ICL-v0"),
        ("icl_bench/TextMini-ICL-v0", "is not an environment id"),
        ("Wholly-Other-v0", r"icl_bench\.register_text_setting"),
    ],
)
def test_unknown_ids(env_id: str, message: str) -> None:
    for find in (icl_bench.make, find_text_spec):
        with pytest.raises(ValueError, match=message):
            find(env_id)


def test_what_takes_one_kind_of_environment_refuses_the_other() -> None:
    nearest = icl_bench.NearestNeighbour()
    for call in (
        find_spec,
        icl_bench.cross,
        lambda name: icl_bench.make_vec(name, 2),
        lambda name: icl_bench.evaluate(nearest, name),
    ):
        with pytest.raises(ValueError, match=r"text environment: .*icl_bench\.evaluate_text"):
            call(MINI)
    for call in (find_text_spec, lambda name: icl_bench.evaluate_text(nearest, name)):
        with pytest.raises(ValueError, match="is no text environment; there are HRtoLR-ICL-v0"):
            call("Digits-Proj8-v0")


@pytest.mark.parametrize("split", ["train", "val", "unseen"])
@pytest.mark.parametrize("env_id", TEXT_IDS)
def test_gymnasium_checks_pass_without_a_warning(env_id, split, small_tasks) -> None:
    """Warnings are errors in these tests."""
    source_of(env_id, split=split, data_dir=small_tasks)
    env = icl_bench.make(env_id, split=split, render_mode="ansi", data_dir=small_tasks)
    check_env(env.unwrapped)


def test_made_by_gymnasium_itself() -> None:
    env = gymnasium.make(f"icl_bench:icl_bench/{MINI}", split="unseen")
    assert env.spec is not None
    assert env.spec.kwargs["env_id"] == MINI
    both = gymnasium.make_vec(f"icl_bench/{MINI}", num_envs=2, vectorization_mode="sync")
    observation, _ = both.reset(seed=[0, 1])
    alone, _ = icl_bench.make(MINI).reset(seed=1)
    assert observation["prompt"][1] == alone["prompt"]


# Purity and streams


@pytest.mark.parametrize("labels", ["true", "random-words"])
@pytest.mark.parametrize("split", ["train", "val", "unseen"])
def test_an_episode_is_a_function_of_its_id(split: str, labels: str) -> None:
    ids = [5, 0, 3, 777] + ([2**40] if split != "unseen" else [])
    args = {"split": split, "labels": labels, "seed": 3}
    together = source_of(**args).episodes(ids)
    assert source_of(**args).episodes(ids[::-1]) == together[::-1]
    other = source_of(**args)
    other.take(9)
    assert [other.episodes([k])[0] for k in ids] == together
    assert [episode.episode for episode in together][:3] == ids[:3]
    again = source_of(**{**args, "seed": 4}).episodes(ids)
    assert (again == together) == (split == "unseen")  # fixed queries have no stream


def test_stream() -> None:
    """reset(seed) begins a stream, reset() goes on, sample shares the counter, ids pick."""
    env = icl_bench.make(MINI)
    first, _ = env.reset(seed=7)
    second, info = env.reset()
    assert info["episode_id"] == 1
    assert set(info) == {"task", "kind", "metric", "episode_id"}  # no label
    assert env.unwrapped.state_dict() == {"seed": 7, "next_episode": 2}
    batch = env.unwrapped.sample(3)
    assert env.unwrapped.state_dict()["next_episode"] == 5
    again = icl_bench.make(MINI, seed=np.int64(7))
    assert [again.reset()[0], again.reset()[0]] == [first, second]
    resumed = icl_bench.make(MINI)
    resumed.unwrapped.load_state_dict({"seed": 7, "next_episode": 2})
    assert (resumed.unwrapped.sample(3).ids == batch.ids).all()
    assert env.reset(options={"episode_id": 1})[0] == second
    assert env.unwrapped.state_dict()["next_episode"] == 5
    assert env.reset(seed=8)[0] != first


def test_a_refused_call_changes_nothing() -> None:
    env = icl_bench.make(MINI).unwrapped
    env.reset(seed=2)
    before = env.state_dict()
    for options in ({"bad": 1}, {"episode_id": -1}, {"episode_id": 1.5}):
        with pytest.raises(ValueError, match=r"unknown options|episode ids"):
            env.reset(seed=5, options=options)
    with pytest.raises(ValueError, match="must not be negative"):
        env.load_state_dict({"seed": 1, "next_episode": -3})
    assert env.state_dict() == before


def test_queries_are_walked_through_and_begin_anew() -> None:
    source = source_of(split="unseen")
    assert source.num_queries == 33 * 100
    source.load_state_dict({"seed": 0, "next_episode": 3298})
    assert source.take(4).tolist() == [3298, 3299, 0, 1]
    order = [episode.task for episode in source.episodes(range(0, 3300, 100))]
    assert order == list(text_setting("TextMini").test)
    with pytest.raises(ValueError, match="there is no query 3300: the test tasks have 3300"):
        source.episodes([3300])
    with pytest.raises(ValueError, match="there is no query 3300"):
        icl_bench.make(MINI, split="unseen").reset(options={"episode_id": 3300})


# What an episode shows


@pytest.mark.parametrize("split", ["train", "val"])
def test_demonstrations_are_other_examples_of_the_task_that_train_may_show(split: str) -> None:
    for episode in source_of(split=split).episodes(range(300)):
        rows = load_text(episode.task, "meta-train")
        assert len(set(episode.demonstrations)) == 16
        assert {*episode.demonstrations, episode.query} <= set(rows)
        assert episode.query.input not in {e.input for e in episode.demonstrations}


def test_an_example_with_the_input_of_the_query_is_passed_over() -> None:
    """Another answer to the same question would be the answer, or contradict it."""
    rows = [icl_bench.TextExample(f"text {i // 2}", LABELS[i % 3], LABELS) for i in range(40)]
    with restored_registries():
        icl_bench.register_text_task("twice", train=rows, test=rows, kind="classification")
        register_setting("Twice", ("twice",), ("mini-keys-9",))
        for episode in source_of("Twice-ICL-v0").episodes(range(100)):
            assert episode.query.input not in {e.input for e in episode.demonstrations}
            assert len(episode.demonstrations) == 16
        size = len(source_of("Twice-ICL-v0", k=0)._pool("twice").train)
        with pytest.raises(DataError, match=f"too few examples unlike the query for k={size - 1}"):
            source_of("Twice-ICL-v0", k=size - 1).episodes(range(50))


def test_val_and_train_share_no_example() -> None:
    """Every twentieth, by a key; and the test side has other tasks."""
    train, val = source_of(), source_of(split="val")
    num_val = 0
    for task in train.tasks:
        shown, asked = set(train._pool(task).train.tolist()), set(val._pool(task).query.tolist())
        assert shown == set(train._pool(task).query.tolist()) == set(val._pool(task).train.tolist())
        assert not shown & asked
        assert shown | asked == set(range(400))
        num_val += len(asked)
    total = 400 * len(train.tasks)
    assert abs(num_val - total / 20) < 5 * np.sqrt(total * 0.05 * 0.95)
    assert not {*train.tasks} & {*source_of(split="unseen").tasks}
    asked_of_val = {(e.task, e.query.input) for e in val.episodes(range(500))}
    for episode in train.episodes(range(500)):
        seen = {(episode.task, e.input) for e in (*episode.demonstrations, episode.query)}
        assert not seen & asked_of_val


@pytest.mark.parametrize("setting", ["TextMini", *METAICL_SETTINGS])
def test_queries_come_after_the_demonstrations_of_their_seed(setting, small_tasks) -> None:
    folder = small_tasks
    source = source_of(f"{setting}-ICL-v0", split="unseen", demo_seed=13, data_dir=folder)
    for task in source.tasks:
        queries = load_text(task, "test", data_dir=folder)
        for seed in DEMO_SEEDS:
            episodes = source.queries(task, seed)
            shown = load_text(task, "train", k=16, seed=seed, data_dir=folder)
            assert {episode.demonstrations for episode in episodes} == {shown}
            for episode, query in zip(episodes, queries, strict=True):
                # The order of options is drawn by a key, the same for all draws.
                assert (episode.query.input, episode.query.output) == (query.input, query.output)
                assert sorted(episode.query.options) == sorted(query.options)
            assert [e.query for e in episodes] == [e.query for e in source.queries(task, 100)]
            assert [e.episode for e in episodes] == list(range(len(queries)))
            assert {e.demo_seed for e in episodes} == {seed}
        assert source.queries(task) == source.queries(task, 13)
        few = source.queries(task, 13, k=3)[0].demonstrations
        assert few == source.queries(task, 13)[0].demonstrations[:3]
        assert source.queries(task, 13, k=0)[0].demonstrations == ()


def test_the_two_domains() -> None:
    setting = text_setting("TextMini")
    assert source_of(split="unseen").tasks == setting.test
    assert source_of(split="unseen", domain="new").tasks == setting.unseen_domain
    assert 0 < len(setting.unseen_domain) < len(setting.test)


@pytest.mark.parametrize(("view", "layout"), [("ICL", "{0}\n{1}"), ("Channel", "{1}\n{0}")])
def test_a_prompt_is_its_demonstrations_alone(view: str, layout: str) -> None:
    """With another answer to the query all that a learner sees is the same."""
    env = icl_bench.make(f"MiniClasses-{view}-v0", split="val").unwrapped
    for k in range(5):
        observation, _ = env.reset(options={"episode_id": k})
        (episode,) = env.episodes([k])
        blocks = [layout.format(e.input, e.output) for e in episode.demonstrations]
        assert observation["prompt"] == "\n\n\n".join(blocks)
        assert observation["query"] == episode.query.input
        assert observation["options"] == episode.query.options
        wrong = next(o for o in episode.query.options if o != episode.query.output)
        query = dataclasses.replace(episode.query, output=wrong)
        env._episode = dataclasses.replace(episode, query=query)
        after, reward, *_, info = env.step(episode.query.answer)
        assert after == observation
        assert (reward, info["output"]) == (0.0, wrong)


# Spaces, actions, rewards


def test_unicode_text() -> None:
    space = UnicodeText(5)
    for text in ("", "plain", "🙂 ß 日", "\x00\n\t"):
        assert space.contains(text)
    for other in ("longer", "\ud83d", b"bytes", None, 3):
        assert not space.contains(other)
    space.seed(0)
    assert all(space.contains(space.sample()) for _ in range(50))
    assert UnicodeText(5) == space != UnicodeText(6)


def test_rewards_by_hand() -> None:
    env = icl_bench.make(MINI, split="unseen")
    reward = {}
    (episode,) = env.unwrapped.episodes([7])
    for option in (0, 1, 2, 255):
        env.reset(options={"episode_id": 7})
        _, reward[option], terminated, truncated, info = env.step(np.int64(option))
        assert (terminated, truncated) == (True, False)
        assert (info["label"], info["output"]) == (episode.query.answer, episode.query.output)
    assert reward == {option: float(option == episode.query.answer) for option in reward}
    env = icl_bench.make(MINI, split="unseen", action="log-likelihoods")
    values = np.full(256, 50.0, np.float32)  # those beyond the options are left out
    values[:2] = np.log([0.1, 0.3])
    env.reset(options={"episode_id": 7})
    expected = np.log([0.25, 0.75][episode.query.answer])
    assert env.step(values)[1] == pytest.approx(expected, rel=1e-6)
    env.reset(options={"episode_id": 7})
    assert env.step(np.where(np.arange(2) == episode.query.answer, -np.inf, 0.0))[1] == -np.inf


@pytest.mark.parametrize("action", ["option", "log-likelihoods"])
def test_a_free_form_query_has_no_reward(action: str) -> None:
    env = icl_bench.make(MINI, action=action)
    ids = (k for k, e in enumerate(env.unwrapped.episodes(range(200))) if not e.query.options)
    observation, info = env.reset(options={"episode_id": next(ids)})
    assert (info["kind"], observation["options"]) == ("free-form", ())
    _, reward, *_, info = env.step(0 if action == "option" else np.zeros(256, np.float32))
    assert (reward, info["label"]) == (0.0, -1)
    assert info["output"]


# Bad input


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"split": "seen"}, "split must be train or val or unseen, not 'seen' .*no test files"),
        ({"split": "test"}, "split must be train or val or unseen, not 'test'"),
        ({"domain": "far"}, "domain must be all or new, not 'far'"),
        ({"labels": "false"}, "labels must be true or shuffled or random-words, not 'false'"),
        ({"k": -1}, r"k must be 0 or more \(-1\)"),
        ({"demo_seed": 2**32}, r"demo_seed in \[0, 2\^32\)"),
        ({"fraction": 0}, r"fraction must be in \(0, 1\], not 0"),
        ({"fraction": float("nan")}, r"fraction must be in \(0, 1\], not nan"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        icl_bench.make(MINI, **kwargs)


def test_arguments_of_a_wrong_type_or_name() -> None:
    for name in ("k", "demo_seed", "seed"):
        for value in (1.5, True, "3"):
            with pytest.raises(TypeError, match=f"{name} must be a whole number"):
                icl_bench.make(MINI, **{name: value})
    with pytest.raises(TypeError, match="fraction must be a number, not '1'"):
        icl_bench.make(MINI, fraction="1")
    with pytest.raises(TypeError, match=f"no argument num_tasks for {MINI}; there are split, dom"):
        icl_bench.make(MINI, num_tasks=5)


def test_too_many_demonstrations() -> None:
    with pytest.raises(DataError, match=r"small has 5\d examples to meta-train on, .* k=99"):
        icl_bench.make("Sized-ICL-v0", k=99).reset()
    with pytest.raises(MissingDataError, match="400 train examples at hand, fewer than k=500"):
        icl_bench.make(MINI, split="unseen", k=500).reset()


@pytest.mark.parametrize(
    ("action", "given", "message"),
    [
        ("option", 256, "an option is an index from 0 to 255: 256"),
        ("option", -1, "an option is an index"),
        ("option", 1.0, "an option is an index"),
        ("option", True, "an option is an index"),
        ("option", [1], "an option is an index"),
        ("log-likelihoods", [0.0], "2 log-likelihoods are needed"),
        ("log-likelihoods", [[0.0, 1.0]], "2 log-likelihoods are needed"),
        ("log-likelihoods", [np.nan, 0.0], "must be numbers below infinity"),
        ("log-likelihoods", [np.inf, 0.0], "must be numbers below infinity"),
        ("log-likelihoods", [-np.inf, -np.inf], "must be numbers below infinity"),
    ],
)
def test_bad_actions(action: str, given: Any, message: str) -> None:
    env = icl_bench.make(MINI, split="unseen", action=action).unwrapped
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.step(given)
    env.step(0 if action == "option" else [0.0, 0.0])  # and nothing was half-done
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset first"):
        env.step(0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"input": "broken', "test.jsonl:2: not a line of JSON"),
        ({"output": "maybe"}, "test.jsonl:2: the output 'maybe' is not among the options"),
        ({"output": ""}, "test.jsonl:2: the output is empty"),
        ({"options": "not"}, "test.jsonl:2: options must be a list of texts"),
    ],
)
def test_a_wrong_line_is_named(line: Any, message: str, tmp_path: Path) -> None:
    labels = text_task("glue-mrpc").labels
    row = {"input": "one [SEP] other", "output": labels[0], "options": labels}
    home = tmp_path / "text" / "tasks" / "glue-mrpc"
    home.mkdir(parents=True)
    good = json.dumps(row)
    (home / "train.jsonl").write_text(f"{good}\n" * 20)
    bad = line if isinstance(line, str) else json.dumps(row | line)
    (home / "test.jsonl").write_text(f"{good}\n{bad}\n")
    env = icl_bench.make("NonParaToPara-ICL-v0", split="unseen", data_dir=tmp_path)
    with pytest.raises(DataError, match=re.escape(f"{home}/{message}")):
        env.reset()


def test_tasks_and_settings_that_cannot_be() -> None:
    with pytest.raises(DataError, match="hollow: the train split has no examples"):
        icl_bench.register_text_task("hollow", train=[], test=of_size(3), kind="classification")
    with pytest.raises(ValueError, match="Both: on both sides of the split: small"):
        icl_bench.TextSetting("Both", "both", "", ("small",), ("small", "mini-keys-9"))
    setting = icl_bench.TextSetting("Two-Parts", "two", "", ("small",), ("mini-keys-9",))
    with pytest.raises(ValueError, match="is not an environment id"):
        icl_bench.register_text_setting(setting)
    with pytest.raises(ValueError, match="there is a text setting TextMini already"):
        icl_bench.register_text_setting(dataclasses.replace(setting, name="TextMini"))
    with pytest.raises(ValueError, match="unknown text task 'smal'; did you mean small"):
        register_setting("New", ("smal",), ("mini-keys-9",))
    assert not [name for name in icl_bench.registry if name.startswith(("Both", "Two", "New"))]


def test_a_val_without_examples_is_told() -> None:
    with restored_registries():
        icl_bench.register_text_task(
            "tiny", train=of_size(4), test=of_size(3), kind="classification"
        )
        register_setting("Tiny", ("tiny",), ("mini-keys-9",))
        assert icl_bench.make("Tiny-ICL-v0", k=2).reset()[0]["prompt"].count("text") == 2
        with pytest.raises(DataError, match="too small for a split val"):
            icl_bench.make("Tiny-ICL-v0", k=2, split="val").reset()


def test_missing_tasks_are_told_with_the_way_out(tmp_path: Path) -> None:
    for split, part in (("train", "meta-train split of piqa"), ("unseen", "test split of quarel")):
        with pytest.raises(FileNotFoundError, match=f"{part} is not at hand: set ICL_BENCH_DATA"):
            icl_bench.make("HRtoLR-ICL-v0", split=split, data_dir=tmp_path)
    source = source_of(data_dir=tmp_path)
    assert str(source.coverage) == "33 of 33 test tasks, 119 of 119 train tasks"


def test_a_source_is_freed_with_its_tasks() -> None:
    source = source_of("Sized-ICL-v0", k=1)
    source.episodes([0])
    gone = weakref.ref(source)
    del source
    gc.collect()
    assert gone() is None
