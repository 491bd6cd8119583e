import argparse
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_runs import DIGITS, ENVS, RANDOM, SUITE, method_runs

from icl_bench.leaderboard.cli import add_parsers
from icl_bench.leaderboard.export import CSV_COLUMNS
from icl_bench.leaderboard.formatting import clean_text, csv_text, markdown_text, signed
from icl_bench.leaderboard.render import render_board
from icl_bench.leaderboard.submission import make_submission, read_submission
from icl_bench.leaderboard.suites import ALL_SUITES

HOSTILE = "<img src=x onerror=alert(1)> | [x](http://evil) *b* `c` www.evil.com a@b.c &lt; \\"
FORMULA = '=HYPERLINK("http://evil","x")'


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Leaderboards with entries of every kind."""
    base = tmp_path_factory.mktemp("boards")
    runs, root = base / "runs", base / "leaderboards"

    def enter(name: str, accuracy: float, suite: str = SUITE, **fields) -> Path:
        made = method_runs(runs / suite, name, accuracy, **fields)
        return make_submission(made, root / suite / name, suite, allow_missing=True)

    enter("good", 0.9, title="Good", seeds=(0, 1, 2))
    enter("twin", 0.9, title="Twin", seeds=(3, 4, 5), num_episodes=1024)
    enter("half", 0.5, title="Half", seeds=(7,), envs=(DIGITS,), parameters=None)
    enter("hostile", 0.1, title=HOSTILE, inductive_bias=FORMULA, seeds=(0, 1))
    enter("knn", 0.7, title="1-NN", deterministic=True, kind="reference", seeds=(8,))
    enter("other", 0.6, title="Trained elsewhere", meta_train="MNIST-Proj8-v0", seeds=(9,))
    enter("more", 0.3, title="Pretrained", external_data="ImageNet", seeds=(9,))
    enter("own", 0.3, title="Own", external_data="Not stated ", seeds=(9,))
    old = enter("old", 0.95, title="Old", seeds=(6,))
    toml = old / "entry.toml"
    toml.write_text(toml.read_text().replace("scorer_version = 1", "scorer_version = 7"))
    enter("vsml", 0.8, "table2-v0", title="VSML", envs=("MNIST-Proj-v0", "Random-Proj-v0"))
    return root


@pytest.fixture(scope="module")
def board(root, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    render_board(root, out)
    return out


def tables(text: str) -> list[list[str]]:
    """The Markdown tables of a text, as their lines."""
    found, lines = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            lines.append(line)
        elif lines:
            found.append(lines)
            lines = []
    return found


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def section(board: Path, suite: str) -> str:
    text = (board / "README.md").read_text(encoding="utf-8")
    return text.split(f"\n## {suite}\n")[1].split("\n## ")[0]


def test_every_suite_has_its_files(root, board):
    names = ["README.md", *(f"{s.name}/board.{k}" for s in ALL_SUITES for k in ("csv", "json"))]
    assert sorted(p.relative_to(board).as_posix() for p in board.rglob("*.*")) == sorted(names)
    text = (board / "README.md").read_text(encoding="utf-8")
    for heading in (
        "How to read a board",
        "Boards",
        *(s.name for s in ALL_SUITES),
        "How to submit",
    ):
        assert f"\n## {heading}\n" in text


def test_all_tables_are_whole_and_aligned(board):
    found = tables((board / "README.md").read_text(encoding="utf-8"))
    assert len(found) == 9
    for lines in found:
        assert len({len(line) for line in lines}) == 1
        assert len({len(cells(line)) for line in lines}) == 1


def test_rows_of_the_main_table(board):
    main = [cells(line) for line in tables(section(board, SUITE))[0]]
    assert main[0] == [
        *("Method", "Inductive bias", "Digits", "Random"),
        *("Mean rank", "Seeds", "Parameters", "State size"),
    ]
    rows = {row[0].split("]")[0].removeprefix("["): row for row in main[2:]}
    good, twin = rows["Good"], rows["Twin"]
    assert re.fullmatch(r"\d\d\.\d ± \d\.\d \(1\)", good[2])
    assert [row[4:] for row in (good, twin)] == [["1.00", "3", "1,234", "56"]] * 2
    assert list(rows)[:3] == ["Good", "Twin", "1-NN"]  # tied: alphabetical
    assert rows["Half"][3] == "–"
    assert rows["Half"][5:7] == ["1 of 3", "–"]
    assert rows["1-NN"][0] == "[1-NN](digits-v0/knn/entry.toml) *reference*"
    assert rows["1-NN"][5] == "deterministic"
    assert rows["1-NN"][2].endswith("(3)")
    assert rows["Trained elsewhere"][0].endswith("*other meta-training*")
    assert rows["Pretrained"][0].endswith("*external data*")
    assert rows["Own"][0].endswith(") *external data not stated*")
    assert "Old" not in rows


def test_other_tables(board):
    text = section(board, SUITE)
    _, seeds, larger, unranked = tables(text)
    by_seed = [cells(line)[:2] for line in seeds[2:]]
    assert by_seed[:4] == [["Good", s] for s in ("0", "1", "2", "mean ± over seeds")]
    assert ["Half", "7"] in by_seed
    assert not [row for row in by_seed if row[0] == "1-NN"]
    assert [cells(line)[0] for line in larger[2:]] == ["Twin"]
    assert [cells(line) for line in unranked[2:]] == [
        ["Old", "old", "scorer version 7, this is version 1"]
    ]


def test_paper_rows_are_marked_and_never_ranked(board):
    main, difference, _ = tables(section(board, "table2-v0"))
    rows = [cells(line) for line in main[2:]]
    paper = [row for row in rows if "*reported*" in row[0]]
    assert [row[0].split(" *")[0] for row in paper] == [
        *("SGD", "MAML", "VSML", "LSTM", "GPICL Transformer")
    ]
    assert paper == rows[1:]
    assert paper[0][2:] == ["70.3", "50.8", "37.9", "100.0", "14.8", "10.2", *["–"] * 4]
    assert not any("(" in cell for row in paper for cell in row[2:])
    ours = cells(difference[2])
    assert ours[0] == "VSML"
    assert re.fullmatch(r"[+−]\d+\.\d ± \d+\.\d", ours[1])
    value = float(rows[0][2].split(" ")[0]) - 79.04
    assert float(ours[1].split(" ")[0].replace("−", "-")) == pytest.approx(value, abs=0.11)
    assert "CIFAR10-Proj-v0`, `SVHN-Proj-v0" in section(board, "table2-v0")


def test_legend_explains_whatever_is_printed(board):
    legend = (board / "README.md").read_text(encoding="utf-8").split("## Boards")[0]
    for word in (
        *("±", "(Rank)", "Mean rank", "–", "*reference*", "*reported*", "*external data*"),
        *(
            "*external data not stated*",
            "*other meta-training*",
            "Seeds",
            "Parameters",
            "state size",
            "board.csv",
            "95 %",
        ),
    ):
        assert word in legend, word


def test_hostile_text_stays_text_in_markdown(board):
    text = section(board, SUITE)
    rows = [line for line in text.splitlines() if "onerror" in line]
    assert len(rows) == 3  # its main row and two seeds
    for line in rows:
        for mark in "<*`@&":
            told = line.replace("*external data*", "").replace("*reference*", "")
            assert not re.search(rf"(?<!\\)\{mark}", told), (mark, line)
        assert not re.search(r"(?<!\\)://", line)
        assert "www." not in line


def test_hostile_text_stays_text_in_csv_and_json(board):
    with (board / SUITE / "board.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["entry"] == "hostile"]
    assert [row["inductive_bias"] for row in rows] == ["'" + FORMULA] * 2
    document = json.loads((board / SUITE / "board.json").read_text())
    entry = next(e for e in document["entries"] if e["name"] == "hostile")
    assert entry["title"] == HOSTILE


@pytest.mark.parametrize("start", "=+-@")
def test_formulas_are_neutralised(start):
    assert csv_text(f"{start}1+1") == f"'{start}1+1"
    assert csv_text(f"\u200b {start}1+1") == f"'{start}1+1"
    assert csv_text("a=1") == "a=1"


def test_hidden_characters_are_stripped():
    assert clean_text("a\u202eb\u200bc\x00d\x1b[0m\ne\u2028f \t g") == "abcd[0m e f g"
    assert markdown_text("a|b\n# c") == r"a\|b \# c"


def test_signs():
    assert [signed(v) for v in (0.0123, -0.0123, 0.0, -0.0001)] == ["+1.2", "−1.2", "0.0", "0.0"]


def test_csv_holds_every_number(board):
    text = (board / SUITE / "board.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert tuple(rows[0]) == CSV_COLUMNS
    good = [row for row in rows if row["entry"] == "good"]
    assert [row["env"] for row in good] == list(ENVS)
    for row in good:
        assert float(row["low"]) <= float(row["accuracy"]) <= float(row["high"])
        assert row["rank"] == "1"
        seeds = [float(x) for x in row["seed_accuracies"].split()]
        assert sum(seeds) / 3 == pytest.approx(float(row["accuracy"]), abs=1e-5)
        assert float(row["seeds_low"]) < float(row["accuracy"]) < float(row["seeds_high"])
    half = [row for row in rows if row["entry"] == "half"]
    assert [row["env"] for row in half] == [DIGITS]
    assert (half[0]["seeds_low"], half[0]["extended"], half[0]["parameters"]) == ("", "", "")
    twin = next(row for row in rows if row["entry"] == "twin")
    assert float(twin["extended_low"]) < float(twin["extended"]) < float(twin["extended_high"])
    assert not [row for row in rows if row["entry"] == "old"]
    paper = (board / "table2-v0" / "board.csv").read_text(encoding="utf-8")
    assert "reported" in paper
    assert "0.703100" in paper


def test_json_holds_the_learning_curves(board):
    document = json.loads((board / SUITE / "board.json").read_text())
    assert [e["name"] for e in document["entries"]][:3] == ["good", "twin", "knn"]
    column = document["entries"][0]["columns"][DIGITS]
    assert len(column["curve"]) == len(column["curve_low"]) == len(column["curve_high"]) == 100
    assert column["curve"][-1] == column["accuracy"][0]
    assert column["curve_low"][-1] == column["accuracy"][1]
    assert set(document["envs"]) == set(ENVS)
    assert document["not_ranked"][0]["name"] == "old"
    paper = json.loads((board / "table2-v0" / "board.json").read_text())
    assert len(paper["reported"]) == 30
    assert list(paper["entries"][0]["minus_reported"]) == ["MNIST-Proj-v0", "Random-Proj-v0"]


def test_boards_are_byte_identical_in_another_process(root, board, tmp_path):
    # Another order of folders on the disk, and of everything that is hashed.
    copy = tmp_path / "copy"
    for path in sorted(root.glob("*/*"), reverse=True):
        shutil.copytree(path, copy / path.relative_to(root))
    code = (
        "import sys; from icl_bench.leaderboard.render import render_board; "
        "render_board(sys.argv[1], sys.argv[2])"
    )
    subprocess.run(
        [sys.executable, "-c", code, copy, tmp_path / "out"],
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "3", "TZ": "Asia/Tokyo", "OMP_NUM_THREADS": "1"},
    )
    files = [p.relative_to(board) for p in board.rglob("*.*")]
    assert len(files) == 1 + 2 * len(ALL_SUITES)
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (board / name).read_bytes(), name


def test_folders_that_are_no_suite_are_refused(tmp_path):
    (tmp_path / "table9-v0").mkdir()
    with pytest.raises(ValueError, match=r"table9-v0 is no suite"):
        render_board(tmp_path)
    with pytest.raises(FileNotFoundError, match="no leaderboards at"):
        render_board(tmp_path / "nothing")


# --- the command line


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


def test_validate_prints_one_problem_per_line(root, tmp_path, capsys):
    bad = shutil.copytree(root / SUITE / "good", tmp_path / "bad")
    (bad / "evil.py").write_text("")
    assert command("validate", bad, root / SUITE / "good") == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"{bad}: 'evil.py': unexpected file")
    assert lines[1] == f"{bad}: entry.toml: name must be that of the folder, 'bad'"
    assert lines[2] == f"{root / SUITE / 'good'}: valid"


def test_validate_goes_on_after_a_folder_that_is_not_there(root, tmp_path, capsys):
    good, nowhere = root / SUITE / "good", tmp_path / "nowhere"
    assert command("validate", nowhere, good) == 2
    shown = capsys.readouterr()
    assert shown.out == f"{good}: valid\n"
    assert shown.err == (
        f"icl-bench validate: no submission at {nowhere}: there is no such folder\n"
    )


def test_an_entry_in_the_folder_of_another_suite_is_no_valid_one(root, tmp_path, capsys):
    """What the board refuses, validate finds before."""
    misplaced = tmp_path / "table2-v0" / "good"
    shutil.copytree(root / SUITE / "good", misplaced)
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
    with pytest.raises(FileExistsError, match="exists already"):
        command("submit", *runs, "--suite", SUITE, "--allow-missing")


@pytest.mark.parametrize("name", ["score", "submit", "validate", "board", "plot"])
def test_help_has_examples(name, capsys):
    with pytest.raises(SystemExit) as done:
        command(name, "--help")
    assert done.value.code == 0
    assert f"examples:\n  icl-bench {name}" in capsys.readouterr().out
