"""Text tasks: the catalog, the two layouts of files, the user's own, and what is refused."""

import dataclasses
import inspect
import json
import os
import tomllib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from icl_bench.data import text, text_catalog, text_files
from icl_bench.data.images import DataError, MissingDataError
from icl_bench.data.text import (
    DEMO_SEEDS,
    TextExample,
    TextSetting,
    coverage,
    from_dataset,
    load_text,
    missing_tasks,
    register_text_setting,
    register_text_task,
    text_setting,
    text_settings,
    text_task,
    text_tasks,
)

# METAICL_FACTS §1 (read from the original's configs): train, test and unseen-domain tasks, and
# test tasks by kind.
COUNTS = {
    "HRtoLR": (61, 26, 4, {"classification": 16, "multi-choice": 10}),
    "ClassToClass": (43, 20, 4, {"classification": 20}),
    "NonClassToClass": (37, 20, 4, {"classification": 20}),
    "QAtoQA": (37, 22, 1, {"multi-choice": 22}),
    "NonQAtoQA": (33, 22, 1, {"multi-choice": 22}),
    "NonNLItoNLI": (55, 8, 1, {"classification": 8}),
    "NonParaToPara": (59, 4, 1, {"classification": 4}),
}
LABELS = ("negative", "positive")


def real_text() -> Path | None:
    for folder in (os.environ.get("ICL_BENCH_DATA"), ROOT.parent / "shared" / "data"):
        if folder and (Path(folder) / "text" / "tasks").is_dir():
            return Path(folder)
    return None


@pytest.fixture(scope="module")
def real() -> Path:
    folder = real_text()
    if folder is None:
        pytest.skip("no real text tasks: set ICL_BENCH_DATA to a folder with text/tasks")
    return folder


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No data but those that a test gives, and what it registers is forgotten."""
    monkeypatch.delenv("ICL_BENCH_DATA", raising=False)
    monkeypatch.setattr(text, "_user_examples", {})
    monkeypatch.setattr(text_catalog, "_user_tasks", {})
    monkeypatch.setattr(text_catalog, "_user_settings", {})


def lines(task: str, count: int, first: int = 0) -> str:
    rows = (
        {"task": task, "input": f"text {i}", "output": LABELS[i % 2], "options": [*LABELS]}
        for i in range(first, first + count)
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def shared(root: Path, task: str = "glue-sst2", train: int = 40) -> Path:
    """The first layout, with labels of glue-sst2."""
    home = root / "text" / "tasks" / task
    write(home / "train.jsonl", lines(task, train))
    write(home / "test.jsonl", lines(task, 6, 1000))
    return home


def numbers(examples) -> list[int]:
    return [int(example.input.split()[1]) for example in examples]


# The catalog


def test_there_are_142_tasks_and_seven_settings() -> None:
    rows = [row for row in text_tasks().values() if row.source == "metaicl"]
    kinds = [row.kind for row in rows]
    assert len(rows) == 142
    assert [kinds.count(k) for k in ("classification", "free-form", "multi-choice")] == [76, 39, 27]
    assert sum(row.name.startswith("unifiedqa:") for row in rows) == 20
    assert {name for name in text_settings() if name != "TextMini"} == set(COUNTS)
    used = {t for name in COUNTS for t in text_setting(name).train + text_setting(name).test}
    assert used == {row.name for row in rows}


@pytest.mark.parametrize("name", COUNTS)
def test_a_setting_has_the_tasks_of_the_original(name: str) -> None:
    row, (train, test, unseen, kinds) = text_setting(name), COUNTS[name]
    assert len(row.train) + len(row.dropped) == train
    assert (len(row.test), len(row.unseen_domain)) == (test, unseen)
    found = [text_task(task).kind for task in row.test]
    assert {kind: found.count(kind) for kind in set(found)} == kinds


def test_only_sick_was_on_both_sides_and_is_dropped_from_train() -> None:
    dropped = {name: row.dropped for name, row in text_settings().items() if row.dropped}
    assert dropped == {"NonNLItoNLI": ("sick",)}
    row = text_setting("NonNLItoNLI")
    assert "sick" in row.test
    assert "sick" not in row.train
    assert text_setting("QAtoQA").unseen_domain == ("unifiedqa:mctest",)


def test_the_kind_decides_the_metric_and_has_labels() -> None:
    for row in text_tasks().values():
        assert row.metric == ("macro-f1" if row.kind == "classification" else "accuracy")
        assert bool(row.labels) == (row.kind == "classification")
        assert list(row.labels) == sorted(row.labels)
    assert text_task("glue-sst2").labels == LABELS
    assert text_task("poem_sentiment").licence == "CC BY 4.0"
    assert text_task("gigaword").licence is None


def test_the_catalog_cannot_be_changed_from_outside() -> None:
    with pytest.raises(TypeError):
        text_tasks()["mine"] = text_task("sick")  # type: ignore[index]
    with pytest.raises(TypeError):
        text_settings()["mine"] = text_setting("QAtoQA")  # type: ignore[index]


def test_a_setting_has_the_originals_name_too() -> None:
    assert text_setting("hr_to_lr") is text_setting("HRtoLR")
    assert text_setting("non_paraphrase_to_paraphrase").name == "NonParaToPara"


@pytest.mark.parametrize(
    ("find", "name", "meant"),
    [
        (text_task, "glue-sst", "did you mean glue-sst2?"),
        (text_task, "SICK", "did you mean sick?"),
        (text_task, "%%%", "there are "),
        (text_setting, "hrtolr", "did you mean HRtoLR?"),
        (text_setting, "qa_to_q", "did you mean QAtoQA?"),
    ],
)
def test_an_unknown_name_says_what_was_meant(find, name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=r"unknown text (task|setting)") as caught:
        find(name)
    assert meant in str(caught.value)
    assert len(str(caught.value)) < 250


def test_the_wheel_has_the_catalog() -> None:
    """Hatch packs every file of the package that git does not ignore."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"] == {"packages": ["icl_bench"]}
    ignored = (ROOT / ".gitignore").read_text().split()
    assert not any(pattern in ("*.json", "data/", "icl_bench/data/") for pattern in ignored)
    assert (ROOT / "icl_bench" / "data" / "metaicl.json").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": ("sick", "piqa"), "test": ("sick",)}, "on both sides of the split: sick"),
        ({"train": ()}, "no train tasks"),
        ({"test": ("sick", "sick")}, "twice"),
        ({"unseen_domain": ("anli",)}, "not anli"),
    ],
)
def test_a_setting_that_contradicts_itself_is_refused(change, message: str) -> None:
    fine = TextSetting("Mine", "mine", "", ("piqa",), ("sick",))
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(fine, **change)


# Files


def test_a_split_is_read_in_the_order_of_its_file(tmp_path: Path) -> None:
    home = shared(tmp_path)
    write(home / "more.jsonl", lines("glue-sst2", 3, 2000))
    assert numbers(load_text("glue-sst2", "train", data_dir=tmp_path)) == [*range(40)]
    assert numbers(load_text("glue-sst2", "test", data_dir=tmp_path)) == [*range(1000, 1006)]
    every = numbers(load_text("glue-sst2", "meta-train", data_dir=tmp_path))
    assert every == [*range(40), 2000, 2001, 2002]  # more.jsonl, and never the test file
    first = load_text("glue-sst2", "train", data_dir=tmp_path)[0]
    assert first == TextExample("text 0", "negative", LABELS)


@pytest.mark.parametrize("seed", DEMO_SEEDS)
def test_demonstrations_of_a_whole_file_are_drawn_as_in_the_original(tmp_path, seed: int) -> None:
    shared(tmp_path)
    order = [*range(40)]
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002  the original's own calls, in its order
    np.random.shuffle(order)  # noqa: NPY002
    np.random.set_state(state)  # noqa: NPY002  what it was for other tests
    arguments = {"seed": seed, "data_dir": tmp_path}
    assert numbers(load_text("glue-sst2", "train", k=16, **arguments)) == order[:16]
    assert numbers(load_text("glue-sst2", "dev", k=16, **arguments)) == order[16:32]
    assert numbers(load_text("glue-sst2", "train", k=8, **arguments)) == order[:8]
    assert numbers(load_text("glue-sst2", "dev", k=8, **arguments)) == order[8:16]


def test_the_draws_of_a_folder_are_used(tmp_path: Path) -> None:
    home = shared(tmp_path)
    draws = {"k16": {"13": [*range(20, 36)]}, "k16_dev": {"13": [*range(16)]}}
    write(home / "demos.json", json.dumps(draws))
    arguments = {"seed": 13, "data_dir": tmp_path}
    assert numbers(load_text("glue-sst2", "train", k=16, **arguments)) == [*range(20, 36)]
    assert numbers(load_text("glue-sst2", "train", k=4, **arguments)) == [20, 21, 22, 23]
    assert numbers(load_text("glue-sst2", "dev", k=16, **arguments)) == [*range(16)]
    assert numbers(load_text("glue-sst2", "dev", k=12, **arguments)) == [*range(32, 36), *range(8)]


def test_the_originals_layout(tmp_path: Path) -> None:
    home = tmp_path / "text" / "glue-sst2"
    for name, count, first in (
        ("16_13_train", 16, 0),
        ("16_13_dev", 16, 16),
        ("16_13_test", 6, 1000),
        ("16384_100_train", 50, 100),
    ):
        write(home / f"glue-sst2_{name}.jsonl", lines("glue-sst2", count, first))
    assert numbers(load_text("glue-sst2", "test", data_dir=tmp_path)) == [*range(1000, 1006)]
    whole = numbers(load_text("glue-sst2", "meta-train", data_dir=tmp_path))
    assert whole == [*range(100, 150)]
    arguments = {"seed": 13, "data_dir": tmp_path}
    assert numbers(load_text("glue-sst2", "train", k=16, **arguments)) == [*range(16)]
    assert numbers(load_text("glue-sst2", "train", k=5, **arguments)) == [*range(5)]
    assert numbers(load_text("glue-sst2", "dev", k=16, **arguments)) == [*range(16, 32)]
    with pytest.raises(MissingDataError, match="k=16, seed=21"):
        load_text("glue-sst2", "train", k=16, seed=21, data_dir=tmp_path)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    home = shared(tmp_path)
    assert len(load_text("glue-sst2", "test", data_dir=tmp_path)) == 6
    write(home / "test.jsonl", lines("glue-sst2", 7))
    assert len(load_text("glue-sst2", "test", data_dir=tmp_path)) == 7


def test_what_is_not_at_hand_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError) as caught:
        load_text("glue-sst2", "test", data_dir=tmp_path)
    for part in ("glue-sst2", "ICL_BENCH_DATA", "text/tasks/glue-sst2", str(tmp_path)):
        assert part in str(caught.value)
    shared(tmp_path, train=10)
    with pytest.raises(MissingDataError, match="10 train examples at hand, fewer than k=16"):
        load_text("glue-sst2", "train", k=16, seed=13, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", 16, None), "k and seed together"),
        (("train", None, 13), "k and seed together"),
        (("dev", None, None), "dev needs both"),
        (("test", 16, 13), "drawn from train or dev"),
        (("train", 0, 13), "k ≥ 1"),
        (("valid", None, None), "the splits of a task are"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message: str) -> None:
    split, k, seed = arguments
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(load_text)("mini-keys-1", split, k=k, seed=seed)


GOOD = lines("glue-sst2", 1)


def line(**change: object) -> str:
    return json.dumps({**json.loads(GOOD), **change})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{oops", "not a line of JSON"),
        (b"\xff\xfe", "not a line of JSON"),
        ("[" * 100_000, "not a line of JSON"),
        ("1" * 10_000, "not a line of JSON"),
        ("[1]", "an example is an object"),
        ('{"input": "a"}', "no field output, options"),
        (line(input=3), "input must be text, not 3"),
        (line(output=None), "output must be text"),
        (line(options="ab"), "options must be a list"),
        (line(options=[1, 2]), "options must be a list"),
        (line(output="good"), "'good' is not among the options"),
        (line(output=" "), "the output is empty"),
        (line(options=[]), "is classification and needs options"),
        (line(options=["positive", "negative", "x"]), "are not the labels of glue-sst2"),
        (line(task="anli"), "an example of 'anli', not of glue-sst2"),
        (line(input="\ud800"), "half a surrogate pair"),
    ],
    ids=range(16),
)
def test_a_wrong_line_is_named_with_its_file_and_number(tmp_path, bad, message: str) -> None:
    bad = bad if isinstance(bad, bytes) else bad.encode()
    home = shared(tmp_path)
    path = write(home / "test.jsonl", GOOD.encode() + b"\n" + bad + b"\n" + GOOD.encode())
    with pytest.raises(DataError) as caught:
        load_text("glue-sst2", "test", data_dir=tmp_path)
    assert f"{path}:3: " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_a_free_form_task_has_no_options(tmp_path: Path) -> None:
    rows = [{"task": "xsum", "input": "a", "output": "b", "options": o} for o in ([], ["b"])]
    home = tmp_path / "text" / "tasks" / "xsum"
    write(home / "test.jsonl", "\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"test\.jsonl:2: xsum is free-form"):
        load_text("xsum", "test", data_dir=tmp_path)


def test_a_file_that_is_empty_too_large_or_closed_is_refused(tmp_path, monkeypatch) -> None:
    home = shared(tmp_path)
    path = write(home / "test.jsonl", "\n\n")
    with pytest.raises(DataError, match="glue-sst2 has no examples, the file is empty"):
        load_text("glue-sst2", "test", data_dir=tmp_path)
    write(path, GOOD * 2)
    monkeypatch.setattr(text_files, "MAX_BYTES", 100)
    with pytest.raises(DataError, match=r"test\.jsonl has \d+ bytes, more than"):
        load_text("glue-sst2", "test", data_dir=tmp_path)


@pytest.mark.parametrize(
    "draws",
    [
        "no json",
        "[]",
        '{"k16": {"13": [0]}}',
        '{"k16": {"13": [40]}, "k16_dev": {}}',
        '{"k16": {"13": [-1]}, "k16_dev": {}}',
        '{"k16": {"13": ["a"]}, "k16_dev": {}}',
        '{"k16": {"13": 5}, "k16_dev": {}}',
    ],
)
def test_wrong_draws_of_demonstrations_are_refused(tmp_path: Path, draws: str) -> None:
    home = shared(tmp_path)
    write(home / "demos.json", draws)
    with pytest.raises(DataError, match=r"demos\.json: no draws of demonstrations"):
        load_text("glue-sst2", "train", k=16, seed=13, data_dir=tmp_path)


# Coverage


def test_coverage_names_what_is_missing(tmp_path: Path) -> None:
    row = text_setting("NonParaToPara")
    for task in (*row.train[1:], *row.test[1:]):
        shared(tmp_path, task, 1)
    assert missing_tasks("NonParaToPara", tmp_path) == {
        "train": row.train[:1],
        "test": row.test[:1],
    }
    part = coverage("non_paraphrase_to_paraphrase", tmp_path)
    assert str(part) == "3 of 4 test tasks, 58 of 59 train tasks"
    assert not part.full
    # One test task in the original's layout counts with all five draws, and not without one.
    home = tmp_path / "text" / row.test[0]
    for seed in DEMO_SEEDS:
        assert not coverage("NonParaToPara", tmp_path).full
        write(home / f"{row.test[0]}_16_{seed}_train.jsonl", "")
        write(home / f"{row.test[0]}_16_{seed}_test.jsonl", "")
    assert coverage("NonParaToPara", tmp_path).full


def test_the_embedded_suite_is_always_at_hand() -> None:
    assert str(coverage("TextMini")) == "33 of 33 test tasks, 119 of 119 train tasks"


# The user's own


def test_a_task_of_the_users_own(tmp_path: Path) -> None:
    train = [{"input": str(i), "output": "ab"[i % 2], "options": ["b", "a"]} for i in range(20)]
    test = write(tmp_path / "t.jsonl", json.dumps(train[0]) + "\n" + json.dumps(train[1]))
    row = register_text_task("mine", train=train, test=test, kind="classification")
    assert (row.labels, row.metric, row.source) == (("a", "b"), "macro-f1", "user")
    assert text_task("mine") is row
    assert len(load_text("mine", "meta-train")) == 20
    assert load_text("mine", "test") == (
        TextExample("0", "a", ("a", "b")),  # sorted, so that an index is a class
        TextExample("1", "b", ("a", "b")),
    )
    order = [*range(20)]
    np.random.RandomState(21).shuffle(order)
    found = load_text("mine", "train", k=16, seed=21)
    assert [int(example.input) for example in found] == order[:16]
    setting = TextSetting("Mine", "my_own", "", ("mini-keys-1",), ("mine",))
    assert register_text_setting(setting) is text_setting("my_own")
    assert coverage("Mine").full
    with pytest.raises(ValueError, match="there is a text setting Mine already"):
        register_text_setting(setting)
    with pytest.raises(ValueError, match="unknown text task 'mini-keys-x'"):
        register_text_setting(TextSetting("Other", "o", "", ("mini-keys-x",), ("mine",)))


EXAMPLE = TextExample("x", "a", ("a", "b"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "sick"}, "there is a text task sick already"),
        ({"name": "../x"}, "the name of a text task"),
        ({"kind": "regression"}, "not 'regression'"),
        ({"train": []}, "the train split has no examples"),
        (
            {"test": [EXAMPLE, TextExample("x", "c", ("a", "b"))]},
            "mine test, example 1: the output",
        ),
        ({"test": [TextExample("x", "a", ("a", "c"))]}, "are not the labels of mine"),
        ({"test": "no-such-file.jsonl"}, "no-such-file.jsonl cannot be read"),
        ({"kind": "free-form"}, "is free-form and has no options"),
    ],
)
def test_a_wrong_task_leaves_nothing_behind(change, message: str) -> None:
    given = {"name": "mine", "train": [EXAMPLE], "test": [EXAMPLE], "kind": "classification"}
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(register_text_task)(**{**given, **change})
    assert "mine" not in text_tasks()
    assert not text._user_examples


def test_examples_of_a_data_set_of_hugging_face() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        premise=datasets.Value("string"),
        claim=datasets.Value("string"),
        label=datasets.ClassLabel(names=["yes", "no"]),
        choices=datasets.List(datasets.Value("string")),
        best=datasets.Value("int64"),
    )
    rows = {
        "premise": [" it rains", "sun"],
        "claim": ["wet", "wet"],
        "label": [0, 1],
        "choices": [["p", "q"], ["r", "q"]],
        "best": [1, 0],
    }
    data = datasets.Dataset.from_dict(rows, features=features)
    assert from_dataset(data, input=("premise", "claim"), output="label") == (
        TextExample("premise: it rains [SEP] claim: wet", "yes", ("no", "yes")),
        TextExample("premise: sun [SEP] claim: wet", "no", ("no", "yes")),
    )
    assert from_dataset(data, input="claim", output="best", options="choices") == (
        TextExample("wet", "q", ("p", "q")),
        TextExample("wet", "r", ("r", "q")),
    )
    assert from_dataset(data, input="claim", output="premise")[0] == TextExample("wet", "it rains")
    row = register_text_task(
        "weather",
        train=from_dataset(data, input="premise", output="label"),
        test=from_dataset(data, input="premise", output="label"),
        kind="classification",
    )
    assert row.labels == ("no", "yes")


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ([{"a": "x", "b": -1}], {"labels": ["u", "v"]}, "row 0: b -1 is no index"),
        ([{"a": "x", "b": "u"}, {"a": None, "b": "u"}], {}, "row 1: no value in a; columns: a, b"),
        ([{"a": "x"}], {}, "row 0: no value in b"),
        ([{"a": "x", "b": "w"}], {"labels": ["u", "v"]}, "row 0: the output 'w' is not among"),
        ([{"a": "x", "b": "w"}], {"labels": ["u"], "options": "c"}, "not both"),
        ([], {}, "no rows"),
    ],
)
def test_a_wrong_row_is_named(rows, arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dataset(rows, input="a", output="b", **arguments)


# Real data


def test_real_tasks_are_read_without_a_word(real: Path) -> None:
    """All 130 tasks at hand: every split, 16 demonstrations of every seed, all checks."""
    names = [path.name for path in sorted((real / "text" / "tasks").iterdir())]
    assert len(names) >= 100
    short = []
    for name in names:
        train = load_text(name, "train", data_dir=real)
        assert load_text(name, "test", data_dir=real)
        assert load_text(name, "meta-train", data_dir=real)[: len(train)] == train
        for seed in DEMO_SEEDS:
            shown = load_text(name, "train", k=16, seed=seed, data_dir=real)
            assert load_text(name, "train", k=8, seed=seed, data_dir=real) == shown[:8]
            assert set(shown) <= set(train)
            if len(shown) < 16:
                short.append((name, seed, len(shown)))
    assert short == [("superglue-multirc", 21, 15)]


def test_draws_made_elsewhere_are_those_that_we_make(real: Path) -> None:
    """Tasks without official draws were drawn by who made the folder, by the original's rule."""
    compared = 0
    for home in sorted((real / "text" / "tasks").iterdir()):
        draws = json.loads((home / "demos.json").read_text())
        if not draws["official"]:
            train = load_text(home.name, "train", data_dir=real)
            for seed in DEMO_SEEDS:
                shown = load_text(home.name, "train", k=16, seed=seed, data_dir=real)
                assert tuple(text._shuffled(train, seed)[:16]) == shown
                compared += 1
    assert compared >= 50


def test_real_coverage(real: Path) -> None:
    """As its own README counts it, without sick on the train side of Non-NLI -> NLI."""
    found = {name: str(coverage(name, real)) for name in COUNTS}
    assert found["HRtoLR"] == "26 of 26 test tasks, 57 of 61 train tasks"
    assert found["ClassToClass"] == "19 of 20 test tasks, 43 of 43 train tasks"
    assert found["NonNLItoNLI"] == "8 of 8 test tasks, 53 of 54 train tasks"
    assert found["QAtoQA"] == "19 of 22 test tasks, 30 of 37 train tasks"
    assert missing_tasks("ClassToClass", real)["test"] == ("amazon_polarity",)
    assert not coverage("ClassToClass", real).full
    assert coverage("HRtoLR", real).full


def test_no_real_test_input_is_meta_trained_on(real: Path) -> None:
    """Of each setting, but for one short string that two data sets share."""
    at_hand = {path.name for path in (real / "text" / "tasks").iterdir()}
    inputs = {
        (task, split): {example.input for example in load_text(task, split, data_dir=real)}
        for task in at_hand
        for split in ("meta-train", "test")
    }
    for name in COUNTS:
        row = text_setting(name)
        seen = set().union(*(inputs[t, "meta-train"] for t in row.train if t in at_hand))
        tested = set().union(*(inputs[t, "test"] for t in row.test if t in at_hand))
        assert len(seen & tested) <= 1, (name, seen & tested)
