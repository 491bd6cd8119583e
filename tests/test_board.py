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
import synthetic_runs
from synthetic_runs import DIGITS, ENVS, SUITE, method_runs

from icl_bench.catalog import SUITES
from icl_bench.leaderboard.export import CSV_COLUMNS
from icl_bench.leaderboard.formatting import signed
from icl_bench.leaderboard.render import render_board
from icl_bench.leaderboard.submission import make_submission
from icl_bench.leaderboard.suites import ALL_SUITES


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
    enter("poor", 0.1, title="Poor", seeds=(0, 1))
    enter("knn", 0.7, title="1-NN", deterministic=True, kind="reference", seeds=(8,))
    enter("other", 0.6, title="Trained elsewhere", meta_train="MNIST-Proj8-v0", seeds=(9,))
    enter("more", 0.3, title="Pretrained", external_data="ImageNet", seeds=(9,))
    enter("own", 0.3, title="Own", external_data="Not stated ", seeds=(9,))
    old = enter("old", 0.95, title="Old", seeds=(6,))
    toml = old / "entry.toml"
    toml.write_text(toml.read_text().replace("scorer_version = 1", "scorer_version = 7"))
    enter("vsml", 0.8, "table2-v0", title="VSML", envs=("MNIST-Proj-v0", "Random-Proj-v0"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic_runs, "random_correct", synthetic_runs.peeking_correct)
        enter("odd", 0.9, "table2-v0", title="Odd", envs=("MNIST-Proj-v0",), meta_train=None)
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
    names = ["README.md", "cards/README.md", "index.html"]
    names += [f"{suite.name}/board.{kind}" for suite in ALL_SUITES for kind in ("csv", "json")]
    names += [f"{suite.name}/curves.csv" for suite in SUITES]
    names += ["table2-v0/papers.csv", "metaicl-v0/papers.csv"]
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
    assert len(found) == 14
    for lines in found:
        assert len({len(line) for line in lines}) == 1
        assert len({len(cells(line)) for line in lines}) == 1


def test_rows_of_the_main_table(board):
    main = [cells(line) for line in tables(section(board, SUITE))[0]]
    assert main[0] == [
        *("Method", "Inductive bias", "Digits", "Random"),
        *("Mean rank", "Pairs", "Seeds"),
    ]
    rows = {row[0].split("]")[0].removeprefix("["): row for row in main[2:]}
    good, twin = rows["Good"], rows["Twin"]
    assert re.fullmatch(r"\d\d\.\d ± \d\.\d \(1\)", good[2])
    assert [row[4:] for row in (good, twin)] == [["1.00", "+11 −0 =2", "3"]] * 2
    assert list(rows)[:3] == ["Good", "Twin", "1-NN"]  # tied: alphabetical
    assert rows["Half"][3] == "–"
    assert rows["Half"][6] == "1 of 3"
    assert rows["1-NN"][0] == "[1-NN](digits-v0/knn/entry.toml) *reference*"
    assert rows["1-NN"][6] == "deterministic"
    assert rows["1-NN"][2].endswith("(3)")
    assert rows["Trained elsewhere"][0].endswith("*other meta-training*")
    assert rows["Pretrained"][0].endswith("*external data*")
    assert rows["Own"][0].endswith(") *external data not stated*")
    assert "Old" not in rows


def test_other_tables(board):
    text = section(board, SUITE)
    _, about, curves, seeds, larger, unranked = tables(text)
    rows = {row[0]: row[1:] for row in map(cells, about[2:])}
    taken = ["learns", DIGITS, "none", "a CPU"]  # accuracy rises on unseen tasks
    assert rows["Good"] == [*taken, "1.5", "1,234", "56"]
    assert rows["Half"] == [*taken, "0.5", "–", "56"]
    assert rows["Poor"][0] == "–"
    assert rows["Trained elsewhere"][0] == "–"  # on what was not handed in
    assert rows["Pretrained"][2] == "ImageNet"
    assert rows["Trained elsewhere"][1] == "MNIST-Proj8-v0"
    assert cells(curves[0]) == [
        *("Method", "0", "1", "4", "9", "19", "49", "99"),
        *("Area", "To 50 %", "To 80 %", "Log loss"),
    ]
    by_seed = [cells(line)[:2] for line in seeds[2:]]
    assert by_seed[:4] == [["Good", s] for s in ("0", "1", "2", "mean ± over seeds")]
    assert ["Half", "7"] in by_seed
    assert not [row for row in by_seed if row[0] == "1-NN"]
    assert [cells(line)[0] for line in larger[2:]] == ["Twin"]
    assert [cells(line) for line in unranked[2:]] == [
        ["Old", "old", "scorer version 7, this is version 1"]
    ]


def test_paper_rows_are_marked_and_never_ranked(board):
    main, odd, difference, *_ = tables(section(board, "table2-v0"))
    rows = [cells(line) for line in main[2:]]
    assert rows.pop(0)[0] == "[Odd](table2-v0/odd/entry.toml) *needs replay*"
    assert cells(odd[2])[0] == "Odd"
    assert "step 0" in cells(odd[2])[1]
    paper = [row for row in rows if "*reported*" in row[0]]
    assert [row[0].split(" *")[0] for row in paper] == [
        *("SGD", "MAML", "VSML", "LSTM", "GPICL Transformer")
    ]
    assert paper == rows[1:]
    assert paper[0][2:] == ["70.3", "50.8", "37.9", "100.0", "14.8", "10.2", *["–"] * 3]
    assert not any("(" in cell for row in paper for cell in row[2:])
    paper, ours, less = [cells(line) for line in difference[2:]]
    assert [row[:2] for row in (paper, ours, less)] == [
        ["VSML", "Kirsch et al. 2022, Table 2"],
        ["VSML", "ours"],
        ["VSML", "ours − paper"],
    ]
    assert paper[2:] == ["79.0", "–", "–", "100.0", "–", "–"]
    assert ours[2] == rows[0][2].removesuffix(" (2)")
    assert re.fullmatch(r"[+−]\d+\.\d ± \d+\.\d", less[2])
    value = float(rows[0][2].split(" ")[0]) - 79.04
    assert float(less[2].split(" ")[0].replace("−", "-")) == pytest.approx(value, abs=0.11)
    assert "CIFAR10-Proj-v0`, `SVHN-Proj-v0" in section(board, "table2-v0")


def test_legend_explains_whatever_is_printed(board):
    text = (board / "README.md").read_text(encoding="utf-8")
    legend = text.split("## How to read a board")[1].split("## How to read a text board")[0]
    for word in (
        *("±", "(Rank)", "Mean rank", "–", "*reference*", "*reported*", "*external data*"),
        *(
            "*external data not stated*",
            "*other meta-training*",
            "Seeds",
            "Pairs",
            "taxonomy",
            "parameters",
            "state size",
            "GPU-hours",
            "*replayed*",
            "*replayed in part*",
            "*replay differs*",
            "*needs replay*",
            "*worse on fresh tasks*",
            "board.csv",
            "curves.csv",
            "papers.csv",
            "95 %",
        ),
    ):
        assert word in legend, word


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
    odd, vsml = paper["entries"]
    assert "step 0" in odd["needs_replay"][0]
    assert list(vsml["minus_reported"]) == ["MNIST-Proj-v0", "Random-Proj-v0"]


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
    assert len(files) == 3 + 2 * len(ALL_SUITES) + len(SUITES) + 2
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (board / name).read_bytes(), name


def test_folders_that_are_no_suite_are_refused(tmp_path):
    for known in ("replays", "cards"):
        (tmp_path / "root" / known).mkdir(parents=True)
    render_board(tmp_path / "root", tmp_path / "out")
    (tmp_path / "root" / "table9-v0").mkdir()
    with pytest.raises(ValueError, match=r"table9-v0 is no suite"):
        render_board(tmp_path / "root")
    with pytest.raises(FileNotFoundError, match="no leaderboards at"):
        render_board(tmp_path / "nothing")
