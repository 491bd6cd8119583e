import datetime
import json
import shutil
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT
from hostile_corpus import TOML
from jsonschema import Draft202012Validator
from synthetic_runs import SUITE, entry_info, method_runs

from icl_bench.leaderboard.checks import check_document, read_toml
from icl_bench.leaderboard.entry import collisions
from icl_bench.leaderboard.reading import validate
from icl_bench.leaderboard.schema import CHECKS, entry_schema
from icl_bench.leaderboard.scoring import score_suite
from icl_bench.leaderboard.submission import make_submission, read_submission

VALIDATOR = Draft202012Validator(entry_schema())
COMMITTED = sorted((ROOT / "leaderboards").glob("*/*/entry.toml"))

# What JSON has no number for, and what JSON Schema has no words for.
BEYOND = {"no hours", "argument NaN", "no letter", "seeds backwards"}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A valid submission; copied before it is changed."""
    root = tmp_path_factory.mktemp("made")
    return make_submission(method_runs(root / "runs"), root / SUITE / "gpicl", SUITE)


def said(document: dict) -> list[str]:
    """What the validator says of the document alone, wherever it may lie."""
    return check_document(document, str(document.get("name")))[3]


def test_the_schema_is_one_and_is_json():
    Draft202012Validator.check_schema(entry_schema())
    assert json.loads(json.dumps(entry_schema())) == entry_schema()


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.parent.name)
def test_committed_entries_fit_both(file):
    document = tomllib.loads(file.read_text())
    assert said(document) == []
    assert [error.message for error in VALIDATOR.iter_errors(document)] == []


def test_schema_and_validator_agree_on_changed_entries(made, tmp_path):
    agreed = 0
    for name, (change, _) in TOML.items():
        path = shutil.copytree(made, tmp_path / name)
        change(path)
        document, _ = read_toml(path / "entry.toml")
        if document is not None and name not in BEYOND:
            assert VALIDATOR.is_valid(document) == (said(document) == []), name
            agreed += not VALIDATOR.is_valid(document)
    assert agreed > 35


VALUES = [
    *(True, 0, -1, 1, 5.5, 2**63 - 1, 2**63, 10**9, "", " ", "x", "x y", "é", "none", "reference"),
    *("a" * 64, "a" * 65, "a" * 120, "a" * 121, "a" * 500, "a" * 501, "a\n", "a\tb", "a\u200bb"),
    *("a\u3164", "\u115f", "\u2800", "\uffa0"),
    *("\U000e0041", "\xad", "https://a.org", "https://a.org\n", "HTTPS://a.org", "https://a"),
    *("https://a.b/c?d=e&f#g", "https://a.b:8/", "https://-a.b", "https://a.1", "https://a..b"),
    *([], [0], [1, 2], [1, 1], [-1], ["a"], [True], [10**9], list(range(33))),
    *({}, {"a": 1}, {"a": [1, "b"]}, {"a": [[1]]}, {"a": {"b": 1}}, {"seed": 1}, {"a b": 1}),
    *({"a": "0" * 64}, {"a": "x\u202e"}, {"x": 1.5}, {f"x{i}": 1 for i in range(33)}),
    datetime.date(2026, 1, 2),
]


@pytest.mark.parametrize("key", [*entry_schema()["properties"], "accuracy"])
def test_schema_and_validator_agree_on_any_value_of(key, made):
    document = tomllib.loads((made / "entry.toml").read_text())
    for value in VALUES:
        changed = document | {key: value}
        assert VALIDATOR.is_valid(changed) == (said(changed) == []), value


def test_schema_and_validator_agree_on_missing_keys(made):
    document = tomllib.loads((made / "entry.toml").read_text())
    for key in document:
        less = {name: value for name, value in document.items() if name != key}
        assert VALIDATOR.is_valid(less) == (said(less) == []), key


def test_every_field_is_in_the_schema():
    names = set(CHECKS) - {"seed"}
    own = {"suite", "seeds", "scorer_version", "package_version", "fingerprints"}
    assert set(entry_schema()["properties"]) == names | own
    assert set(entry_info().to_dict()) == set(CHECKS)


# --- addresses and titles


@pytest.mark.parametrize(
    "url",
    ["https://arxiv.org/abs/2212.04458", "https://a.b", "https://a-b.org/~me/x_y?z=1&w=%20#top"],
)
def test_addresses_are_kept(url, made, tmp_path):
    assert entry_info(url=url).url == url
    path = make_submission(
        method_runs(tmp_path / "runs", seeds=(0,)), tmp_path / "x", SUITE, url=url
    )
    assert tomllib.loads((path / "entry.toml").read_text())["url"] == url
    assert read_submission(path).entry.url == url


def test_old_runs_have_no_address():
    fields = entry_info().to_dict()
    del fields["url"]
    assert type(entry_info()).from_dict(fields) == entry_info()


def board(**titles: str) -> dict[str, str]:
    return collisions({name: entry_info(name, title=title) for name, title in titles.items()})


@pytest.mark.parametrize(
    "other",
    [
        *(
            "gpicl",
            "GPICL ",
            "G.P.I.C.L.",
            "ＧＰＩＣＬ",
            "ＧPICL",
            "GPI CL",
            "GPÍCL",
        ),
        *("GРICL", "GPIСL", "Gр icl"),  # Cyrillic
        "GΡΙCL",  # Greek
        *("GPlCL", "GP1CL", "GPIC1", "GPӀCL", "ɢᴘɪᴄʟ"),
    ],
)
def test_titles_that_look_alike_are_refused_for_both(other):
    found = board(one="GPICL", two=other, three="VSML")
    assert set(found) == {"one", "two"}
    assert "looks like that of two, " in found["one"]
    assert "title 'GPICL' looks like that of one" not in found["one"]


def test_honest_titles_are_kept():
    honest = ["GPICL", "GPICL 2", "GPICL, large", "VSML", "VSML w/o symmetries", "元学习", "β-VAE"]
    honest += [tomllib.loads(file.read_text())["title"] for file in COMMITTED]
    assert board(**{f"x{i}": title for i, title in enumerate(sorted(set(honest)))}) == {}
    # Boards tell the same title apart by the names of the entries.
    assert board(one="GPICL", two="GPICL") == {}


def test_entries_that_look_alike_are_no_board(made, tmp_path):
    root = tmp_path / SUITE
    for name, title in (("gpicl", "GPICL"), ("other", "gp-icl"), ("third", "VSML")):
        path = shutil.copytree(made, root / name)
        text = (path / "entry.toml").read_text()
        text = text.replace('name = "gpicl"', f'name = "{name}"')
        (path / "entry.toml").write_text(text.replace('"GPICL"', f'"{title}"'))
    told = "gpicl cannot be scored: entry.toml: title 'GPICL' looks like that of other, 'gp-icl'"
    with pytest.raises(ValueError, match=told):
        score_suite(root, use_cache=False)
    shutil.rmtree(root / "other")
    assert len(score_suite(root, use_cache=False).entries) == 2


def test_folders_that_differ_in_case_alone_cannot_both_be_valid(made, tmp_path):
    for name in ("gpicl", "Gpicl"):
        shutil.copytree(made, tmp_path / SUITE / name)
    assert validate(tmp_path / SUITE / "gpicl") == []
    assert validate(tmp_path / SUITE / "Gpicl") == [
        "entry.toml: name must be that of the folder, 'Gpicl'"
    ]
