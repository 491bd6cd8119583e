import base64
import dataclasses
import hashlib
import html.parser
import json
import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from synthetic_page import (
    HOSTILE,
    PAPER_SUITE,
    AnyScore,
    all_scores,
    crowd,
    replayed,
)
from synthetic_runs import DIGITS, ENVS, RANDOM, SUITE
from synthetic_text import MINI, MINI_SUITE

from icl_bench.leaderboard.formatting import plus_minus
from icl_bench.leaderboard.page import page_html
from icl_bench.leaderboard.scoring import SuiteScore

ASSETS = Path(str(resources.files("icl_bench.leaderboard") / "assets"))


class Elements(html.parser.HTMLParser):
    """Start tags with attributes, and the raw text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.raw.append((tag, dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style") and self.cdata_elem:
            tag, attributes, text = self.raw[-1]
            self.raw[-1] = (tag, attributes, text + data)


@pytest.fixture(scope="module")
def scores() -> list[AnyScore]:
    return all_scores()


@pytest.fixture(scope="module")
def page(scores) -> str:
    return page_html(scores)


@pytest.fixture(scope="module")
def elements(page) -> Elements:
    return Elements(page)


def data_of(page: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    return json.loads(text)


def suite_of(page: str, name: str) -> dict:
    return next(suite for suite in data_of(page)["suites"] if suite["name"] == name)


def entry_of(page: str, suite: str, name: str) -> dict:
    return next(entry for entry in suite_of(page, suite)["entries"] if entry["name"] == name)


# --- one file, safe to open


def test_the_page_asks_for_nothing_from_elsewhere(elements):
    loading = {"src", "srcset", "poster", "action", "formaction", "background", "ping", "style"}
    for tag, attributes in elements.tags:
        assert not loading & set(attributes), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert tag not in ("img", "iframe", "object", "embed", "base", "video", "audio")
    links = {attributes["href"] for tag, attributes in elements.tags if "href" in attributes}
    assert links == {"#main", "#/", "README.md", "cards/README.md", "data:,"}
    styles = "".join(text for tag, _, text in elements.raw if tag == "style")
    assert "url(" not in styles
    assert "@import" not in styles


def test_the_policy_allows_just_what_is_inside(elements):
    (policy,) = [
        attributes["content"]
        for tag, attributes in elements.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert rules["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in policy

    def sources(tag: str) -> list[str]:
        found = []
        for kind, attributes, text in elements.raw:
            if kind == tag and attributes.get("type") != "application/json":
                digest = hashlib.sha256(text.encode()).digest()
                found.append(f"'sha256-{base64.b64encode(digest).decode()}'")
        return found

    assert rules["script-src"].split() == sources("script")
    assert rules["style-src"].split() == sources("style")
    assert len(sources("script")) == 3


def test_our_scripts_make_no_code_or_markup_of_texts():
    written = [path for path in ASSETS.glob("*.js") if not path.name.startswith("uPlot")]
    assert len(written) == 6
    for path in written:
        text = path.read_text(encoding="utf-8")
        for word in (
            *("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("),
            *("Function(", "fetch(", "XMLHttpRequest", "import(", "WebSocket", "javascript:"),
            *("DOMParser", "srcdoc", "sendBeacon", "createContextualFragment", "postMessage"),
        ):
            assert word not in text, (path.name, word)


def test_no_part_can_end_its_element():
    for path in ASSETS.iterdir():
        text = path.read_text(encoding="utf-8")
        assert "\r" not in text
        if path.suffix in (".js", ".css"):
            assert not re.search(r"</script|</style|<!--", text, re.IGNORECASE), path.name
        if path.suffix == ".txt":
            assert "--" not in text  # it stands in a comment


def test_the_library_is_the_published_one():
    note = (ASSETS / "THIRD_PARTY.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| `(\S+)` \| `([0-9a-f]{64})` \|", note)
    assert [name for name, _ in rows] == ["uPlot.iife.min.js", "uPlot.min.css", "uPlot.LICENSE.txt"]
    for name, digest in rows:
        assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == digest
    version = re.search(r"uPlot (\S+),", note)
    assert version is not None
    assert f"(v{version[1]})" in (ASSETS / "uPlot.iife.min.js").read_text(encoding="utf-8")


def test_the_page_carries_the_licence_of_the_library(page):
    assert (ASSETS / "uPlot.LICENSE.txt").read_text(encoding="utf-8") in page


def test_what_strangers_wrote_stays_inside_the_data(page, elements):
    raw = re.search(r'id="data">(.*?)</script>', page)
    assert raw is not None
    assert not set("<>&") & set(raw[1])
    assert raw[1].isascii()
    assert page.count("onerror") == raw[1].count("onerror") > 4
    assert page.count('"use strict";\n// The data') == 1  # no place to fill in a title was filled
    entry = entry_of(page, SUITE, "hostile")
    assert entry["title"] == entry["bias"] == HOSTILE
    assert entry["flags"] == [HOSTILE]  # without what turns text around or breaks lines
    assert len([tag for tag, _ in elements.tags if tag == "script"]) == 4


def test_links_are_https_or_none(scores):
    first = scores[0].entries[0]
    for url, shown in (("https://a.org/?b", "https://a.org/?b"), (None, None)):
        changed = dataclasses.replace(first, entry=dataclasses.replace(first.entry, url=url))
        text = page_html([dataclasses.replace(scores[0], entries=(changed,))])
        assert data_of(text)["suites"][0]["entries"][0]["url"] == shown
    # Were the checks of entries to fail, the page would not link it either.
    entry = dataclasses.replace(first.entry)
    object.__setattr__(entry, "url", "javascript:alert(1)")
    changed = dataclasses.replace(first, entry=entry)
    text = page_html([dataclasses.replace(scores[0], entries=(changed,))])
    assert data_of(text)["suites"][0]["entries"][0]["url"] is None


# How colours look to eyes without one kind of cones, in linear sRGB.
# Source: Machado, Oliveira & Fernandes 2009, Table 1, severity 1.
EYES = {
    "all cones": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def lightness_and_hue(colours: list[str], eyes: str) -> np.ndarray:
    """CIELAB coordinates of colours such as ``#0067a8``, as somebody sees them."""
    values = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in colours])
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(EYES[eyes]).T, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = seen @ np.array(to_xyz).T / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = f.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


@pytest.mark.parametrize("eyes", EYES)
def test_lines_of_a_plot_are_told_apart_by_all_eyes(eyes):
    found = re.findall(r"--line-\d: (#[0-9a-f]{6});", (ASSETS / "page.css").read_text())
    assert len(found) == 3 * 8
    assert found[8:16] == found[16:]  # dark by the button, and by the system
    for start in range(0, 16, 4):  # solid ones, then dashed ones
        lab = lightness_and_hue(found[start : start + 4], eyes)
        distances = np.linalg.norm(lab[:, None] - lab[None], axis=2)
        assert distances[np.triu_indices(4, 1)].min() > 20


# --- the numbers of the other boards


def test_scores_and_ranks_are_those_of_the_board(page, scores):
    for score in scores:
        shown = {e["name"]: e for e in suite_of(page, score.suite.name)["entries"]}
        assert len(shown) == len(score.entries) > 0
        if not isinstance(score, SuiteScore):
            continue
        assert list(shown) == [e.entry.name for e in score.entries]
        for e in score.entries:
            cells = shown[e.entry.name]["cells"]
            assert set(cells) == set(e.columns)
            for env, column in e.columns.items():
                assert cells[env]["text"] == plus_minus(column.accuracy)
                assert cells[env]["rank"] == score.ranks[env][e.entry.name]


def test_scores_on_text(page, scores):
    score = scores[2]
    data = suite_of(page, MINI_SUITE)
    assert data["order"]["all"] == [e.entry.name for e in score.rows("all")] == ["strong", "weak"]
    setting = score.suite.settings[0]
    strong = entry_of(page, MINI_SUITE, "strong")
    column = score.entries["strong"].columns["all"][setting]
    cell = strong["cells"]["all"][setting]
    assert cell["text"] == plus_minus(column.mean)
    assert cell["rank"] == 1
    assert cell["partial"] is None
    assert (strong["view"], strong["envs"]) == ("direct", [MINI])
    part = entry_of(page, MINI_SUITE, "part")["cells"]["all"][setting]
    assert part["rank"] is None
    assert "of" in part["partial"]


def test_curves_end_at_the_number_of_the_table(page, scores):
    for e in suite_of(page, SUITE)["entries"]:
        for cell in e["cells"].values():
            assert len(cell["curve"]) == len(cell["low"]) == len(cell["high"]) == 100
            assert f"{cell['curve'][-1] / 10:.1f}" == cell["text"].split(" ")[0]
            lows, curve, highs = (np.array(cell[name]) for name in ("low", "curve", "high"))
            assert (lows <= curve).all()
            assert (curve <= highs).all()
            assert cell["summary"][6] == cell["text"]


def test_halves_are_rounded_as_in_the_table(scores):
    """6.25 % is a tie between 6.2 and 6.3: the curve and the table take the same one."""
    first = scores[0].entries[0]
    column = first.columns[DIGITS]
    for value in (0.0625, 0.1875, 0.3125):
        curve = np.full(100, value)
        accuracy = dataclasses.replace(column.accuracy, mean=value)
        changed = dataclasses.replace(column, curve=curve, accuracy=accuracy)
        entry = dataclasses.replace(first, columns={DIGITS: changed})
        score = dataclasses.replace(scores[0], entries=(entry,))
        cell = data_of(page_html([score]))["suites"][0]["entries"][0]["cells"][DIGITS]
        assert f"{cell['curve'][-1] / 10:.1f}" == cell["text"].split(" ")[0]


def test_a_single_task_has_no_interval(scores):
    first = scores[0].entries[0]
    column, nan = first.columns[DIGITS], np.full(100, np.nan)
    accuracy = dataclasses.replace(column.accuracy, low=float("nan"), high=float("nan"))
    changed = dataclasses.replace(column, curve_low=nan, curve_high=nan, accuracy=accuracy)
    entry = dataclasses.replace(first, columns={DIGITS: changed})
    text = page_html([dataclasses.replace(scores[0], entries=(entry,))])
    cell = data_of(text)["suites"][0]["entries"][0]["cells"][DIGITS]
    assert cell["low"] is cell["high"] is None
    assert "±" not in cell["text"]


def test_an_infinite_loss_is_a_sign(scores):
    first = scores[0].entries[0]
    changed = dataclasses.replace(first.columns[DIGITS], log_loss={0: 2.3, 99: float("inf")})
    entry = dataclasses.replace(first, columns={DIGITS: changed})
    text = page_html([dataclasses.replace(scores[0], entries=(entry,))])
    cell = data_of(text)["suites"][0]["entries"][0]["cells"][DIGITS]
    assert cell["logLoss"] == ["2.300", "∞"]


def test_papers_have_rows_without_ranks(page):
    suite = suite_of(page, PAPER_SUITE)
    assert [row["title"] for row in suite["reported"]] == [
        *("SGD", "MAML", "VSML", "LSTM", "GPICL Transformer")
    ]
    for row in suite["reported"]:
        assert row["source"]
        assert all(set(cell) == {"text"} for cell in row["cells"].values())
    beside = suite["entries"][0]["papers"]
    assert [row[1] for row in beside] == ["MNIST-Proj-v0", "Random-Proj-v0"]
    assert re.fullmatch(r"[+−]\d+\.\d ± \d+\.\d", beside[0][4])


def test_marks(page, scores):
    marks = {e["name"]: e["marks"] for e in suite_of(page, SUITE)["entries"]}
    assert marks["knn"] == ["reference"]
    assert marks["good"] == ["replayed"]
    assert marks["hostile"] == ["needs replay"]
    assert marks["constructor"] == ["external data"]
    assert marks["twin"] == []
    e = replayed(scores[0].entries[0], differing=0.2)
    text = page_html([dataclasses.replace(scores[0], entries=(e,))])
    assert "replayed" not in data_of(text)["suites"][0]["entries"][0]["marks"]


def test_a_replay_is_told(page):
    good = entry_of(page, SUITE, "good")
    assert good["taxonomy"] == "learns"
    assert good["replay"]["same"]
    rows = good["replay"]["rows"]
    assert [row[:2] for row in rows] == [[str(s), env] for s in (0, 1, 2) for env in ENVS]
    assert rows[0][2:] == ["0.00", "90.0", "85.0", "+5.0 ± 6.0", "0.4"]
    assert entry_of(page, SUITE, "twin")["replay"] is None


def test_equal_titles_are_told_apart(page):
    titles = {e["name"]: e["title"] for e in suite_of(page, SUITE)["entries"]}
    assert (titles["half"], titles["constructor"]) == ("Half (half)", "Half (constructor)")
    assert titles["good"] == "Good"


def test_entries_of_other_versions_are_listed(page):
    (row,) = suite_of(page, SUITE)["notRanked"]
    assert (row["name"], row["title"]) == ("old", "Old <i>")
    assert row["reasons"] == ["scorer version 7, this is version 1"]


def test_missing_columns_are_missing(page):
    assert set(entry_of(page, SUITE, "half")["cells"]) == {DIGITS}
    assert suite_of(page, SUITE)["columns"][1]["id"] == RANDOM
    assert "no frozen labels of CIFAR10-Proj-v0" in suite_of(page, PAPER_SUITE)["protocol"]


def test_no_suites_and_no_entries(scores):
    assert data_of(page_html([])) == {"scorer": 1, "suites": []}
    empty = dataclasses.replace(scores[0], entries=(), ranks={env: {} for env in ENVS})
    assert data_of(page_html([empty]))["suites"][0]["entries"] == []


# --- bytes


def test_the_page_is_byte_identical_in_another_process(scores):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from synthetic_page import all_scores; from icl_bench.leaderboard.page import page_html;"
        "sys.stdout.buffer.write(page_html(all_scores()).encode())"
    )
    made = subprocess.run(
        [sys.executable, "-c", code, Path(__file__).parent],
        check=True,
        capture_output=True,
        env=os.environ | {"PYTHONHASHSEED": "3", "TZ": "Asia/Tokyo"},
    )
    assert made.stdout == page_html(scores).encode()


def test_two_hundred_entries_on_six_environments_are_a_few_megabytes(scores):
    digits = crowd(scores[0], 200)
    envs = tuple(f"{name}-Proj8-v0" for name in ("MNIST", "KMNIST", "FashionMNIST", "Random"))
    envs += ("Digits-Proj8-v0", "SVHN-Proj8-v0")
    column = digits.entries[0].columns[DIGITS]
    columns = {env: dataclasses.replace(column, env=env) for env in envs}
    entries = tuple(dataclasses.replace(e, columns=columns) for e in digits.entries)
    ranks = dict.fromkeys(envs, digits.ranks[DIGITS])
    suite = dataclasses.replace(digits.suite, envs=envs)
    wide = dataclasses.replace(digits, suite=suite, entries=entries, ranks=ranks)
    assert 1e6 < len(page_html([wide])) < 3e6
