"""The subcommands about scores: from runs to the boards, and what they refuse."""

import argparse
import json
import shutil
from pathlib import Path

import pytest
from synthetic_runs import DIGITS, RANDOM, SUITE, method_runs

from icl_bench.leaderboard.cli import add_parsers
from icl_bench.leaderboard.legend import SUBMIT
from icl_bench.leaderboard.render import render_board
from icl_bench.leaderboard.schema import entry_schema
from icl_bench.leaderboard.submission import make_submission, read_submission


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid submission."""
    base = tmp_path_factory.mktemp("boards")
    out = base / "leaderboards" / SUITE / "good"
    return make_submission(method_runs(base / "runs", "good", 0.9), out, SUITE)


def command(*args: object) -> int:
    parser = argparse.ArgumentParser()
    add_parsers(parser.add_subparsers(required=True))
    parsed = parser.parse_args([str(arg) for arg in args])
    return parsed.run(parsed)


def test_from_runs_to_the_board(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = method_runs(tmp_path / "runs", seeds=(0, 1, 2))
    assert command("score", *runs) == 0
    from_runs = capsys.readouterr().out
    assert command("submit", *runs, "--suite", SUITE) == 0
    entry = Path("leaderboards") / SUITE / "gpicl"
    assert f"{entry}: made, and valid" in capsys.readouterr().out
    assert command("validate", entry) == 0
    assert capsys.readouterr().out == f"{entry}: valid\n"
    assert command("score", entry) == 0
    assert capsys.readouterr().out == from_runs
    assert command("board", "--check") == 1
    assert "README.md: not up to date, run `icl-bench board`" in capsys.readouterr().out
    assert command("board") == 0
    assert f"leaderboards/{SUITE}/board.csv" in capsys.readouterr().out
    assert command("board", "--check") == 0
    assert command("plot", *runs, "--out", "runs.png") == 0
    assert command("plot", entry, "--out", "entry.png") == 0
    assert Path("runs.png").read_bytes().startswith(b"\x89PNG")
    assert Path("runs.png").read_bytes() == Path("entry.png").read_bytes()
    with pytest.raises(ValueError, match="both hold gpicl with seed 0"):
        command("plot", *runs, entry, "--out", "both.png")
    with pytest.raises(ValueError, match="--reported needs --suite"):
        command("plot", *runs, "--out", "runs.png", "--reported")
    otherwise = method_runs(tmp_path / "otherwise", seeds=(5,), parameters=99)
    with pytest.raises(ValueError, match="they differ in parameters: 1234 and 99"):
        command("plot", *runs, *otherwise, "--out", "runs.png")
    with pytest.raises(ValueError, match="they differ in parameters: 1234 and 99"):
        command("score", *runs, *otherwise)
    odd = method_runs(tmp_path / "odd", "odd", seeds=(0,), title=r"$\frac{1$ _x")
    assert command("plot", *odd, "--out", "odd.svg") == 0  # no mathematics in a title
    assert command("plot", *runs, "--out", "x.svg", "--suite", SUITE, "--reported") == 0


def test_validate_prints_one_problem_per_line(good, tmp_path, capsys):
    bad = shutil.copytree(good, tmp_path / "bad")
    (bad / "evil.py").write_text("")
    assert command("validate", bad, good) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"{bad}: 'evil.py': unexpected file")
    assert lines[1] == f"{bad}: entry.toml: name must be that of the folder, 'bad'"
    assert lines[2] == f"{good}: valid"


def test_validate_knows_what_was_mistaken_for_a_submission(good, capsys):
    (run, *_) = sorted((good.parents[2] / "runs" / "good").iterdir())
    assert command("validate", run, good.parent) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{run}: a run folder: make a submission of it with `icl-bench submit`")
    assert second == f"{good.parent}: a folder of submissions: give each of them, {good.parent}/*/"


def test_validate_goes_on_after_a_folder_that_is_not_there(good, tmp_path, capsys):
    nowhere = tmp_path / "nowhere"
    assert command("validate", nowhere, good) == 2
    shown = capsys.readouterr()
    assert shown.out == f"{good}: valid\n"
    assert shown.err == (
        f"icl-bench validate: no submission at {nowhere}: there is no such folder\n"
    )


def test_validate_steers_no_terminal(good, tmp_path, capsys):
    """Folders are named by strangers, too."""
    odd = shutil.copytree(good, tmp_path / "a\x1b[31m\u202eb")
    (odd / "\x1b]0;x\x07").write_text("")
    assert command("validate", odd, tmp_path / "no\x1b[31m") == 2
    shown = capsys.readouterr()
    assert shown.out
    assert (shown.out + shown.err).replace("\n", "").isprintable()


def test_validate_tells_what_entries_must_hold(capsys):
    assert command("validate", "--schema") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(entry_schema()))
    with pytest.raises(ValueError, match="no folders of submissions were given"):
        command("validate")


def test_cards_are_shown_and_drawn(good, tmp_path, capsys):
    assert command("card", DIGITS, "--root", good.parents[1]) == 0
    assert f"## {DIGITS}" in capsys.readouterr().out
    out = tmp_path / "digits.png"
    assert command("card", DIGITS, "--out", out) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.read_bytes().startswith(b"\x89PNG")


def test_an_entry_in_the_folder_of_another_suite_is_no_valid_one(good, tmp_path, capsys):
    """What the board refuses, validate finds before."""
    misplaced = tmp_path / "table2-v0" / "good"
    shutil.copytree(good, misplaced)
    assert command("validate", misplaced) == 1
    told = f"belongs to {SUITE}: move it from table2-v0 to that folder"
    assert capsys.readouterr().out == f"{misplaced}: {told}\n"
    with pytest.raises(ValueError, match=f"belongs to {SUITE}"):
        render_board(tmp_path, tmp_path / "out")
    anywhere = shutil.copytree(misplaced, tmp_path / "drafts" / "good")
    assert command("validate", anywhere) == 0
    runs = method_runs(tmp_path / "runs")
    with pytest.raises(ValueError, match=told):
        command("submit", *runs, "--suite", SUITE, "--out", tmp_path / "table2-v0" / "new")
    assert [path.name for path in misplaced.parent.iterdir()] == ["good"]


def test_everything_about_ones_own_learner_can_be_said(tmp_path):
    runs = method_runs(
        tmp_path / "runs", seeds=(0,), meta_train=None, parameters=None, state_size=None
    )
    said = ("--meta-train", DIGITS, "--parameters", 12, "--state-size", 3, "--deterministic")
    out = tmp_path / "mine"
    assert command("submit", *runs, "--suite", SUITE, "--out", out, *said) == 0
    entry = read_submission(out).entry
    assert entry is not None
    assert (entry.meta_train, entry.parameters, entry.state_size) == (DIGITS, 12, 3)
    assert entry.deterministic
    assert command("submit", *runs, "--suite", SUITE, "--out", tmp_path / "same") == 0
    same = read_submission(tmp_path / "same").entry
    assert same is not None
    assert not same.deterministic


def test_submit_refuses_to_overwrite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = method_runs(tmp_path / "runs", envs=(RANDOM,))
    with pytest.raises(ValueError, match="--allow-missing"):
        command("submit", *runs, "--suite", SUITE)
    assert not Path("leaderboards").exists()
    assert command("submit", *runs, "--suite", SUITE, "--allow-missing") == 0
    with pytest.raises(FileExistsError, match=r"exists already: give another folder \(--out\)"):
        command("submit", *runs, "--suite", SUITE, "--allow-missing")
    other = rf"no run with seed 0 has results of table2-v0 \(there is {RANDOM}\)"
    with pytest.raises(ValueError, match=other):
        command("submit", *runs, "--suite", "table2-v0")


def test_how_to_submit_is_told_in_one_way():
    """CONTRIBUTING.md and the boards give the same five commands."""
    commands = SUBMIT.split("```")[1]
    assert commands.count("\n") == 7
    told = Path(__file__).parents[1].joinpath("CONTRIBUTING.md").read_text(encoding="utf-8")
    assert f"```{commands}```" in told


@pytest.mark.parametrize("name", ["score", "submit", "validate", "board", "latex", "card", "plot"])
def test_help_has_examples(name, capsys):
    with pytest.raises(SystemExit) as done:
        command(name, "--help")
    assert done.value.code == 0
    assert f"examples:\n  icl-bench {name}" in capsys.readouterr().out
