"""Difficulty cards: what they say is what boards and catalog hold, by rules that are told."""

import dataclasses
import itertools
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import synthetic_text
from PIL import Image
from synthetic_runs import DIGITS, RANDOM, entry_info, frozen_result, run_folder

from icl_bench import catalog
from icl_bench.__main__ import main
from icl_bench.evaluation import plots, text_metrics
from icl_bench.evaluation.protocol import frozen_labels
from icl_bench.evaluation.statistics import Interval
from icl_bench.leaderboard import card_facts, cards
from icl_bench.leaderboard.cards import cards_markdown, difficulty_cards, draw_cards, show_cards
from icl_bench.leaderboard.formatting import plus_minus
from icl_bench.leaderboard.replays import ReplayCell, ReplayRecord
from icl_bench.leaderboard.scoring import score_suite
from icl_bench.leaderboard.submission import make_submission
from icl_bench.leaderboard.text_scoring import score_text_suite
from icl_bench.registration import registry

MINI, MINI_CHANNEL, MINI_SUITE = "TextMini-ICL-v0", "TextMini-Channel-v0", "textmini-v0"
ENVS = [
    f"{row.base}-{row.view}-v{row.version}"
    for row in (*catalog.ENVIRONMENTS, *catalog.TEXT_ENVIRONMENTS)
]
HOSTILE = "<b>x</b> | [y](http://evil)"


def right(per_task: list[int]) -> np.ndarray:
    """Right answers at the last step: so many of each task's 16 episodes."""
    correct = np.zeros((16, 16, 100), bool)
    for k, count in enumerate(per_task):
        correct[k, :count, -1] = True
    return correct.reshape(-1, 100)


def enter(root: Path, suite: str, name: str, columns: dict[str, list[int]], **fields) -> None:
    """An entry that is right in so many episodes of each task."""
    results = [frozen_result(env, right(per_task)) for env, per_task in columns.items()]
    entry = entry_info(name, deterministic=True, **fields)
    run = run_folder(root / "runs" / suite, results, entry, suite)
    make_submission([run], root / suite / name, suite, allow_missing=True)


@pytest.fixture(scope="module", autouse=True)
def few_replicates():
    """Of text; boards and cards alike."""
    patch = pytest.MonkeyPatch()
    patch.setattr(text_metrics, "NUM_REPLICATES", 300)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Boards on which Digits is open, Random saturated and on MNIST 1-NN not beaten."""
    root = tmp_path_factory.mktemp("boards")
    reference = {"kind": "reference"}
    some, more, most = [8, 7, 9, 8] * 4, [9, 9, 10, 9] * 4, [12, 11, 13, 12] * 4
    perfect, nearly = [16] * 16, [16] * 13 + [15] * 3
    enter(root, "digits-v0", "chance", {DIGITS: [1, 2] * 8, RANDOM: [2] * 16}, **reference)
    enter(root, "digits-v0", "1-nn", {DIGITS: some, RANDOM: perfect}, **reference)
    enter(root, "digits-v0", "sgd", {DIGITS: some[::-1]}, title="SGD")
    enter(root, "digits-v0", "gpicl", {DIGITS: most, RANDOM: nearly}, title=HOSTILE)
    enter(root, "digits-v0", "twin", {DIGITS: most[::-1], RANDOM: [12] * 16}, title="Twin")
    enter(root, "digits-v0", "oracle", {DIGITS: perfect}, title="Oracle", **reference)
    mnist = "MNIST-Proj8-v0"
    enter(root, "table2-proj8-v0", "gpicl", {mnist: more, RANDOM: perfect}, title="GPICL")
    enter(root, "table2-proj8-v0", "1-nn", {mnist: most}, **reference)

    def enter_text(name: str, accuracy: float, env: str = MINI, asked: int | None = None, **fields):
        seed = len(list((root / "runs").rglob("meta.json")))
        result = synthetic_text.text_result(env, accuracy, seed, queries=asked)
        synthetic_text.hand_in(root, name, result, suite=MINI_SUITE, title=name, **fields)

    for name, accuracy in (("chance", 0.3), ("majority", 0.35), ("1-nn", 0.5)):
        enter_text(name, accuracy, **reference)
    enter_text("raw-lm-small", 0.5)
    enter_text("raw-lm-large", 0.6)
    enter_text("metaicl", 0.8)
    enter_text("partial", 1.0, asked=20)
    enter_text("channel-raw-lm-small", 0.4, MINI_CHANNEL)
    enter_text("channel-metaicl", 0.45, MINI_CHANNEL)
    enter_text("channel-twin", 0.45, MINI_CHANNEL)
    return root


@pytest.fixture(scope="module")
def scores(root):
    return [
        score_text_suite(root / s.name)
        if isinstance(s, catalog.TextSuite)
        else score_suite(root / s.name)
        for s in (*catalog.SUITES, *catalog.TEXT_SUITES)
    ]


@pytest.fixture(scope="module")
def by_env(scores) -> dict[str, cards.Card]:
    return {card.env: card for card in difficulty_cards(scores)}


def column(scores, suite: str, name: str, env: str):
    score = next(s for s in scores if s.suite.name == suite)
    return next(e for e in score.entries if e.entry.name == name).columns[env]


# --- what a card says


def test_every_environment_of_the_catalog_has_a_card(by_env):
    assert list(by_env) == ENVS
    assert set(ENVS) <= set(registry)
    assert len(ENVS) == 9 * 5 - 1 + 16  # Random has no features
    assert by_env[DIGITS].suites == ("digits-v0",)
    assert by_env[RANDOM].suites == ("table2-proj8-v0", "digits-v0")
    assert by_env["Digits-Proj14-v0"].suites == ()


def test_numbers_are_those_of_the_boards(by_env, scores):
    card = by_env[DIGITS]
    assert {title: s.entry.name for title, s in card.learners.items()} == {
        "Chance": "chance",
        "1-NN": "1-nn",
        "SGD": "sgd",
    }
    for standing in (*card.learners.values(), card.best):
        found = column(scores, standing.suite, standing.entry.name, DIGITS)
        assert standing.value == found.accuracy


def test_the_best_is_no_reference_and_may_be_of_any_suite(by_env):
    best = by_env[DIGITS].best  # the oracle is a reference
    assert (best.entry.name, best.value.mean) == ("gpicl", 0.75)
    assert by_env[DIGITS].shared == 1  # twin; SGD is worse
    best = by_env[RANDOM].best
    assert (best.suite, best.entry.name, best.value.mean) == ("table2-proj8-v0", "gpicl", 1.0)
    # 253 of 256 right, the others in three tasks: not significantly worse; 12 of 16 is.
    assert by_env[RANDOM].shared == 1
    assert by_env["MNIST-Proj8-v0"].shared == 0


@pytest.mark.parametrize(
    ("differing", "tuned", "best"),
    [(0.0, False, "gpicl"), (0.2, False, "twin"), (0.0, True, "twin")],
)
def test_what_a_replay_speaks_against_is_not_the_best(scores, differing, tuned, best):
    cell = ReplayCell(differing, 0.75, 0.7, Interval(0.05, 0.01, 0.09), 0.5, tuned)
    record = ReplayRecord("ab" * 32, "0.1.0", {0: {DIGITS: cell}}, {})
    score = next(s for s in scores if s.suite.name == "digits-v0")
    entries = tuple(
        dataclasses.replace(e, replay=record) if e.entry.name == "gpicl" else e
        for e in score.entries
    )
    (card,) = difficulty_cards([dataclasses.replace(score, entries=entries)], [DIGITS])
    assert card.best.entry.name == best


def test_headroom_by_hand(by_env):
    assert by_env[DIGITS].headroom == pytest.approx((0.75 - 0.1) / 0.9)
    assert by_env[RANDOM].headroom == 1.0
    mini = by_env[MINI]
    floor = mini.learners["Chance"].value.mean
    assert mini.headroom == pytest.approx((mini.best.value.mean - floor) / (1 - floor))
    assert by_env["KMNIST-Proj8-v0"].headroom is None


def test_verdicts(by_env):
    assert by_env[DIGITS].verdict == "open"
    assert by_env[RANDOM].verdict == "saturated"
    assert by_env["MNIST-Proj8-v0"].verdict == "1-NN not beaten"
    assert by_env[MINI].verdict == "open"
    assert by_env[MINI_CHANNEL].verdict == "1-NN not beaten"
    others = set(ENVS) - {DIGITS, RANDOM, "MNIST-Proj8-v0", MINI, MINI_CHANNEL}
    assert {by_env[env].verdict for env in others} == {"not handed in"}


def test_rules_of_the_verdict(by_env):
    """The bound decides, not the mean; a reference that nobody handed in decides nothing."""
    card = by_env[DIGITS]

    def verdict(low: float, mean: float, high: float, **fields) -> str:
        value = dataclasses.replace(card.best.value, low=low, mean=mean, high=high)
        best = dataclasses.replace(card.best, value=value)
        return dataclasses.replace(card, best=best, **fields).verdict

    assert verdict(0.9, 0.95, 0.99) == "saturated"
    assert verdict(0.9, 0.95, 0.9899) == "open"
    assert dataclasses.replace(card, best=card.learners["SGD"]).verdict == "1-NN not beaten"
    assert dataclasses.replace(card, best=card.learners["SGD"], learners={}).verdict == "open"


def test_text_cards_take_entries_of_their_view_and_references_of_both(by_env, scores):
    direct, channel = by_env[MINI], by_env[MINI_CHANNEL]
    names = {title: s.entry.name for title, s in direct.learners.items()}
    expected = {"Chance": "chance", "Majority": "majority", "1-NN": "1-nn"}
    assert names == expected | {"Raw LM": "raw-lm-large"}  # the better of two
    names = {title: s.entry.name for title, s in channel.learners.items()}
    assert names == expected | {"Raw LM": "channel-raw-lm-small"}
    assert direct.best.entry.name == "metaicl"  # the partial entry is not ranked
    assert channel.best.entry.name in ("channel-metaicl", "channel-twin")
    assert (direct.shared, channel.shared) == (0, 1)
    score = next(s for s in scores if s.suite.name == MINI_SUITE)
    assert direct.best.value == score.entries["metaicl"].columns["all"]["TextMini"].mean


# --- facts


def test_label_balance_by_hand():
    labels = np.array([[0, 0, 1, 1], [2, 2, 2, 0]], np.uint8)
    # Pairs alike: 2 of 6 and 3 of 6; largest classes: 2 of 4 and 3 of 4.
    assert card_facts.label_balance(labels) == pytest.approx((5 / 12, 5 / 8))
    assert card_facts.label_balance(labels[:, ::-1].copy()) == pytest.approx((5 / 12, 5 / 8))
    permuted = np.array([2, 0, 1], np.uint8)[labels]
    assert card_facts.label_balance(permuted) == pytest.approx((5 / 12, 5 / 8))


def test_label_balance_does_not_depend_on_the_length_of_an_episode():
    """Equal classes give 1/C, however few examples; the naive sum of squares does not."""
    rng = np.random.default_rng(0)
    for length in (5, 100):
        labels = rng.integers(0, 10, (4000, length)).astype(np.uint8)
        assert card_facts.label_balance(labels)[0] == pytest.approx(0.1, abs=0.005)


def test_balance_of_the_environments():
    even = card_facts.label_balance(frozen_labels("MNIST-Proj8-v0"))[0]
    points = card_facts.label_balance(frozen_labels(RANDOM))[0]
    assert 0.098 < even < 0.103
    # Two of 100 steps show the same of 10 points, or two points with the same of 10 labels.
    assert points == pytest.approx(0.1 + 0.9 * 0.1, abs=0.02)


# --- the page


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    draw_cards([DIGITS, RANDOM], folder)
    return folder


@pytest.fixture(scope="module")
def page(scores, pictures) -> str:
    return cards_markdown(scores, pictures)


def section(page: str, env: str) -> str:
    return page.split(f"\n## {env}\n")[1].split("\n## ")[0]


def test_the_page_has_contents_and_a_section_for_each_environment(page):
    contents = page.split("\n## All environments\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| \[([^\]]+)\]\(#([^)]+)\)", contents, re.MULTILINE) == [
        (env, env.lower()) for env in ENVS
    ]
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert headings == ["How to read a card", "All environments", *ENVS]


def test_a_section_shows_the_card(page, by_env):
    text = section(page, DIGITS)
    assert "- **Verdict**: open" in text
    assert "[digits-v0](../README.md#digits-v0)" in text
    assert "D = 64, C = 10, T = 100; 1,297 train and 500 test examples" in text
    assert "**Licence**: CC BY 4.0" in text
    # Of 500 images with about 50 of each class, 49 of the other 499 have the label of the first.
    assert "9.8 % of the pairs of an episode's examples have the same label" in text
    assert "**Headroom closed**: 72 %" in text
    for standing in (*by_env[DIGITS].learners.values(), by_env[DIGITS].best):
        assert plus_minus(standing.value) in text
    assert re.search(r"\| Logistic regression +\| not handed in +\| +– \|", text)
    assert "*shared with 1 other*" in text
    assert "examples are made from the task's key" in section(page, RANDOM)


def test_environments_without_entries_say_so(page):
    text = section(page, "CIFAR10-Proj-v0")
    assert "- **Verdict**: not handed in" in text
    assert "holds no frozen labels" in text
    assert text.count("not handed in") == 1 + 5  # the verdict, four learners and the best
    assert "on none" in section(page, "Digits-Proj-v0")
    assert "![" not in text


def test_text_sections_hold_their_tasks_and_an_embedded_prompt(page):
    text = section(page, "HRtoLR-ICL-v0")
    for task in ("`glue-mrpc`", "`financial_phrasebank`"):
        assert task in text
    assert "**Metrics**: accuracy of 10 tasks, macro-f1 of 16 tasks" in text
    assert "```" not in text  # its texts are not everywhere
    assert "`glue-mrpc`" not in section(page, "HRtoLR-Channel-v0")
    assert "[HRtoLR-ICL-v0](#hrtolr-icl-v0)" in section(page, "HRtoLR-Channel-v0")
    for env in (MINI, MINI_CHANNEL):
        (prompt,) = re.findall(r"```text\n(.*?)\n```", section(page, env), re.DOTALL)
        assert "[query]" in prompt
        assert "```" not in prompt
    assert page.count("```") == 4


def test_texts_of_strangers_are_escaped(page):
    assert "<b>" not in page
    assert "](http" not in page
    assert r"\<b\>x\</b\> \| \[y\]" in page


def test_tables_are_whole(page):
    lines = [line for line in page.splitlines() if line.startswith("|")]
    for line, after in itertools.pairwise(lines):
        if after.startswith("|:"):
            assert len(line) == len(after)
    assert len(lines) > 200


def test_equal_entries_give_equal_bytes(root, page, pictures, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    again = [
        score_text_suite(copy / s.name)
        if isinstance(s, catalog.TextSuite)
        else score_suite(copy / s.name)
        for s in (*catalog.SUITES, *catalog.TEXT_SUITES)
    ]
    assert cards_markdown(again, pictures) == page


def test_the_page_needs_no_data(scores, page, pictures, monkeypatch, tmp_path):
    monkeypatch.setenv("ICL_BENCH_DATA", str(tmp_path))
    assert cards_markdown(scores, pictures) == page


def test_pictures_that_exist_are_linked_and_no_others(scores, page, tmp_path):
    assert re.findall(r"!\[[^\]]*\]\(([^)]*)\)", page) == [f"{RANDOM}.png", f"{DIGITS}.png"]
    assert "![" not in cards_markdown(scores, tmp_path / "none")


def test_cards_of_some_environments_need_their_suites_alone(root, page):
    text = show_cards([DIGITS, MINI], root)
    assert text.split("\n## ")[0].replace(f"## {DIGITS}\n", "").strip() in page
    assert "\n## TextMini-ICL-v0\n" in text
    with pytest.raises(ValueError, match="did you mean Digits-Proj8-v0"):
        show_cards(["Digit-Proj8-v0"], root)


def test_the_command_shows_and_draws(root, tmp_path, capsys):
    assert main(["card", DIGITS, "--root", str(root)]) == 0
    assert "- **Verdict**: open" in capsys.readouterr().out
    assert main(["card", DIGITS, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / DIGITS}.png\n"
    assert (tmp_path / f"{DIGITS}.png").is_file()
    assert main(["card", MINI, "--out", str(tmp_path / "a.png")]) == 2
    assert "is a text environment" in capsys.readouterr().err


# --- pictures


def test_a_picture_is_small_and_has_equal_bytes_twice(pictures, tmp_path):
    for env in (DIGITS, RANDOM, "Random-Proj-v0"):
        (path,) = draw_cards([env], tmp_path / "new" / f"{env}.png")
        assert path.stat().st_size < 30_000
        if env != "Random-Proj-v0":
            assert path.read_bytes() == (pictures / f"{env}.png").read_bytes()
        with Image.open(path) as image:
            assert image.size == (84 + 10 * 72, 30 + 2 * 72 + 28)
            assert image.info.keys() <= {"dpi", "transparency"}


def test_a_picture_shows_the_pixels_of_the_episode(pictures):
    """The first image of frozen episode 0, each pixel 8 × 8 and unblended."""
    source = plots.EpisodeSource(DIGITS, plots.EnvArgs(split="unseen"))
    first = source.sampler.inputs(source.plan([0]))[0, 0].numpy().reshape(8, 8) * 255
    with Image.open(pictures / f"{DIGITS}.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(float)
    tile = pixels[30 : 30 + 64, 84 : 84 + 64]
    blocks = tile.reshape(8, 8, 8, 8, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert (tile == tile[..., :1]).all()  # grey
    assert np.abs(blocks[:, 0, :, 0, 0] - first).max() <= 8  # a palette of 64 colours


def test_pictures_are_refused_where_they_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="is a text environment"):
        draw_cards([MINI], tmp_path / "a.png")
    with pytest.raises(ValueError, match="one file for 2 environments"):
        draw_cards([DIGITS, RANDOM], tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"drawn as \.png"):
        plots.plot_episode(DIGITS, tmp_path / "a.svg")
    assert not list(tmp_path.iterdir())
