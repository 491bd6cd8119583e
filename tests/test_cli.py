"""The command line: every subcommand on small things, and its errors, one line each."""

import contextlib
import dataclasses
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import icl_bench
from icl_bench import __main__ as cli
from icl_bench import registry
from icl_bench.catalog import DATASETS, SUITES
from icl_bench.envs.source import EnvArgs
from icl_bench.envs.supervised import SupervisedVectorEnv
from icl_bench.envs.text import TextEnv
from icl_bench.envs.text_source import TextArgs
from icl_bench.evaluation import verify as verification
from icl_bench.evaluation.protocol import evaluation_fingerprint
from icl_bench.evaluation.result import Result
from icl_bench.leaderboard.runs import load_run
from icl_bench.registration import ARGUMENTS, TEXT_ARGUMENTS, EnvSpec

COMMANDS = (
    "list",
    "show",
    "sample",
    "download",
    "evaluate",
    "verify",
    "score",
    "submit",
    "validate",
    "board",
    "latex",
    "card",
    "plot",
)
REFERENCES = ("chance", "1-nn", "logistic-regression")
DIGITS, RANDOM = "Digits-Proj8-v0", "Random-Proj8-v0"
SPECS = {name: spec for name, spec in registry.items() if isinstance(spec, EnvSpec)}


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch):
    """Whatever folder of images the user has: here only Digits and Random are at hand."""
    monkeypatch.delenv("ICL_BENCH_DATA", raising=False)


@pytest.fixture
def run(capsys):
    """Runs one command; its status and what it printed."""

    def call(*args) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([str(arg) for arg in args])
        return (status, *capsys.readouterr())

    return call


@pytest.fixture
def fails(run):
    """Runs one command that must end with status 2 and one line on stderr; the line."""

    def call(*args) -> str:
        status, out, err = run(*args)
        assert (status, out) == (2, "")
        assert err.startswith(f"icl-bench {args[0]}: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1
        return err

    return call


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A run folder of every reference for the suite digits-v0, made by the command line."""
    root = tmp_path_factory.mktemp("runs")
    found = {}
    for name in REFERENCES:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert cli.main(["evaluate", name, "--suite", "digits-v0", "--runs", str(root)]) == 0
        found[name] = Path(out.getvalue().splitlines()[-1])
    return found


@pytest.fixture
def learners(tmp_path, monkeypatch) -> Path:
    """A module of the user's learners, in the folder that commands are called from."""
    module = tmp_path / "users_learners.py"
    module.write_text(
        """\
import icl_bench
import torch

my_learner = icl_bench.NearestNeighbour()
number = 7

def peeks(x, prev_y):
    return my_learner(x, prev_y.roll(-1, dims=1).clamp_min(0))

def breaks(x, prev_y):
    raise ValueError("of the user's own")

def only_digits(x, prev_y):
    logits = my_learner(x, prev_y)
    return logits if len(x[0].unique(dim=0)) > 20 else logits * torch.nan  # Random has 10 points

def one_class_short(x, prev_y):
    return my_learner(x, prev_y)[..., :9]

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x, prev_y):
        return self.drop(my_learner(x, prev_y))

__Model__ = Model()
"""
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    yield module
    sys.modules.pop("users_learners", None)


# Help


def test_help_lists_every_command(capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert re.findall(r"^    (\w+) ", out, re.MULTILINE) == list(COMMANDS)
    for line in re.findall(r"^  icl-bench (.*?)(?:   .*)?$", out, re.MULTILINE):
        cli._parser().parse_args(shlex.split(line))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_examples_that_parse(command: str, capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    out = capsys.readouterr().out
    examples = out.split("examples:\n")[1].replace("\\\n", " ")
    lines = re.findall(r"^  (?:\w+=\S+ )?icl-bench (.*?)(?:   .*)?$", examples, re.MULTILINE)
    assert lines
    for line in lines:
        assert cli._parser().parse_args(shlex.split(line)).command == command


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["nonsense"],
        ["show"],
        ["evaluate", "chance"],
        ["evaluate", "chance", "--env", DIGITS, "--suite", "digits-v0"],
        ["evaluate", "chance", "--env", DIGITS, "--missing", "perhaps"],
        ["sample"],
        ["sample", DIGITS, "--out", "a.png", "--episode", "first"],
        ["sample", DIGITS, "--out", "a.png", "--split", "dev"],
        ["evaluate", "chance", "--env", DIGITS, "--split", "train"],
    ],
)
def test_bad_arguments_end_with_usage_and_status_2(args: list[str], capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(args)
    assert "usage: icl-bench" in capsys.readouterr().err


# Environments


def test_list_says_whose_data_are_at_hand(run, tmp_path) -> None:
    (tmp_path / "images" / "KMNIST").mkdir(parents=True)
    (tmp_path / "images" / "KMNIST" / "test.npz").touch()
    status, out, err = run("list", "--data-dir", tmp_path)
    assert (status, err) == (0, "")
    data = {
        line.split()[0]: line.split(maxsplit=4)[4] for line in out.splitlines()[2 : 2 + len(SPECS)]
    }
    assert set(data) == set(SPECS)
    assert data[DIGITS] == "embedded"
    assert data[RANDOM] == "made from keys"
    assert data["KMNIST-Proj-v0"] == "test"
    assert data["MNIST-Proj14-v0"] == "icl-bench download MNIST"
    for suite in SUITES:
        assert re.search(rf"^{suite.name} .* {len(suite.envs)}$", out, re.MULTILINE)


@pytest.mark.parametrize("env_id", SPECS)
def test_show_every_environment(env_id: str, run) -> None:
    status, out, err = run("show", env_id)
    assert (status, err) == (0, "")
    fields = dict(line.strip().split("  ", 1) for line in out.splitlines()[1:])
    spec = SPECS[env_id]
    assert fields["Token"].endswith(f"D + C = {spec.num_features} + {spec.num_classes}")
    assert fields["Fingerprint"].strip() == evaluation_fingerprint(env_id)
    (row,) = (row for row in DATASETS if row.name == spec.base)
    pinned = [split for split, checksum in row.sha256.items() if checksum]
    if row.counts:
        assert fields["Base data"].strip() == (
            f"{row.counts['train']:,} train, {row.counts['test']:,} test; "
            f"pinned: {', '.join(pinned) or 'nothing'}"
        )


def test_show_says_what_was_probably_meant(fails) -> None:
    assert "did you mean MNIST-Proj-v0" in fails("show", "MNIST-Projj-v0")
    assert "only v0" in fails("show", "MNIST-Proj-v7")


def test_sample_draws_a_picture(run, tmp_path) -> None:
    sizes = {}
    for steps in (20, 40, 100):
        out = tmp_path / "new" / f"{steps}.png"
        status, printed, err = run("sample", DIGITS, "--out", out, "--steps", steps)
        assert (status, printed, err) == (0, f"{out}\n", "")
        with Image.open(out) as picture:
            assert (picture.format, picture.mode) == ("PNG", "RGB")
            assert np.asarray(picture).std() > 10
            sizes[steps] = picture.size
    assert sizes[20][0] == sizes[40][0] == sizes[100][0] > 1000
    row = sizes[40][1] - sizes[20][1]
    assert row > 100
    assert sizes[100][1] == sizes[20][1] + 4 * row
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "100.png",
        "20.png",
        "40.png",
    ]


def test_sample_draws_the_episode_and_the_split_asked_for(run, tmp_path) -> None:
    pictures = set()
    for i, (episode, split) in enumerate([(0, "train"), (0, "train"), (1, "train"), (0, "unseen")]):
        out = tmp_path / f"{i}.png"
        run("sample", DIGITS, "--out", out, "--split", split, "--episode", episode, "--steps", 5)
        pictures.add(out.read_bytes())
    assert len(pictures) == 3


def test_sample_refuses_before_it_writes(fails, tmp_path) -> None:
    assert "'episode.gif'" in fails("sample", DIGITS, "--out", tmp_path / "episode.gif")
    out = ("--out", tmp_path / "episode.png")
    assert "-3" in fails("sample", DIGITS, "--episode", "-3", *out)
    for steps in ("0", "101"):
        assert f"--steps must be 1 to 100, the steps of an episode: {steps}" in fails(
            "sample", DIGITS, "--steps", steps, *out
        )
    assert f"--episode must be in [0, 2^63), not {10**20 - 1}" in fails(
        "sample", DIGITS, "--episode", 10**20 - 1, *out
    )
    assert "icl-bench download SVHN" in fails("sample", "SVHN-Proj8-v0", *out)
    assert list(tmp_path.iterdir()) == []


def test_a_data_folder_that_is_not_there_is_told(fails, tmp_path) -> None:
    nowhere = tmp_path / "nowhere"
    told = f"there is no data folder {nowhere}"
    assert told in fails("list", "--data-dir", nowhere)
    assert told in fails(
        "sample", "MNIST-Proj8-v0", "--data-dir", nowhere, "--out", tmp_path / "a.png"
    )
    suite = ("--suite", "table2-proj8-v0", "--missing", "skip", "--runs", tmp_path / "runs")
    assert told in fails("evaluate", "chance", *suite, "--data-dir", nowhere)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_id_ends_with_whole_sentences(fails) -> None:
    line = fails("show", "Foo")
    assert "`icl-bench list` shows them all. Your own data: icl_bench.register_dataset(" in line


@pytest.mark.parametrize("make", [icl_bench.make, lambda *a, **k: icl_bench.make_vec(*a, 2, **k)])
def test_an_unknown_argument_is_named_with_those_that_there_are(make) -> None:
    with pytest.raises(
        TypeError, match=r"no argument foo for Digits-Proj8-v0; there are split, num_t"
    ) as e:
        make(DIGITS, foo=1, bias=0.5)
    assert "EnvArgs" not in str(e.value)


def test_the_arguments_of_make_are_those_of_the_environments() -> None:
    own = {field.name for field in dataclasses.fields(EnvArgs)}
    shared = set(inspect.signature(SupervisedVectorEnv.__init__).parameters)
    expected = own | shared - {"self", "env_id", "num_envs", "backend", "args"}
    assert set(ARGUMENTS) == expected
    documented = re.findall(r"- ``(\w+)=", inspect.getdoc(icl_bench.make))
    assert documented == [*ARGUMENTS, *TEXT_ARGUMENTS]
    own = {field.name for field in dataclasses.fields(TextArgs)}
    shared = set(inspect.signature(TextEnv.__init__).parameters) - {"self", "env_id", "args"}
    assert set(TEXT_ARGUMENTS) == own | shared
    env = icl_bench.make(DIGITS, disable_env_checker=True, bias=0.5)
    assert env.unwrapped.source.args.bias == 0.5
    with pytest.raises(TypeError, match=r"arguments of icl_bench\.make_vec"):
        icl_bench.make(DIGITS, backend="torch")


# Downloads


def test_nothing_to_download(run, fails) -> None:
    status, out, err = run("download", "Digits", "Random")
    assert (status, err) == (0, "")
    assert out == "Digits: nothing to download\nRandom: nothing to download\n"
    assert "did you mean FashionMNIST" in fails("download", "FashonMNIST")


def test_no_network_is_one_line(monkeypatch, fails, tmp_path) -> None:
    def torchvision(*args):
        raise OSError("<urlopen error [Errno -3] Temporary failure\nin name resolution>")

    def hugging_face(*args):
        raise ConnectionError("Couldn't reach 'ylecun/mnist' on the Hub")

    monkeypatch.setattr("icl_bench.data.download._torchvision", torchvision)
    monkeypatch.setattr("icl_bench.data.download._hugging_face", hugging_face)
    start = time.monotonic()
    line = fails("download", "MNIST", "--data-dir", tmp_path / "data")
    assert time.monotonic() - start < 5
    for part in ("Temporary failure in name resolution", "Couldn't reach", "MNIST", str(tmp_path)):
        assert part in line
    assert not list(tmp_path.rglob("*.npz"))


# Evaluation


def test_evaluate_writes_a_run_folder(runs) -> None:
    accuracy = {}
    for name, path in runs.items():
        assert re.fullmatch(rf"digits-v0__{name}__0__\d{{8}}T\d{{6}}Z", path.name)
        found = load_run(path)
        assert (found.suite, found.entry.name, found.entry.kind) == ("digits-v0", name, "reference")
        assert found.entry.deterministic
        assert [(r.env, r.split, r.label.shape) for r in found.results] == [
            (env, "unseen", (256, 100)) for env in (DIGITS, RANDOM)
        ]
        accuracy[name] = [result.accuracy() for result in found.results]
    assert max(accuracy["chance"]) < 0.2 < 0.6 < min(accuracy["1-nn"])
    assert 0.4 < accuracy["logistic-regression"][0] < 1
    assert accuracy["1-nn"][1] == 1.0  # after 99 steps every one of ten points has been seen


def test_evaluate_a_users_own_learner(run, learners) -> None:
    status, out, err = run("evaluate", "users_learners:my_learner", "--env", DIGITS, "--seed", 3)
    assert (status, err) == (0, "")
    path = Path(out.splitlines()[-1])
    assert path.parts[:1] == ("runs",)
    assert path.name.startswith(f"{DIGITS}__users-learners-my-learner__3__")
    (result,) = load_run(path).results
    entry = load_run(path).entry
    assert (entry.kind, entry.deterministic, entry.seed) == ("method", False, 3)
    reference = Result.load(path / "results" / f"{DIGITS}__unseen.parquet")
    assert result.accuracy() == reference.accuracy() > 0.5
    assert f"{result.accuracy():.1%}"[:-1] in out


def test_evaluate_a_module_in_training_mode(run, learners) -> None:
    """A torch model is put into eval mode, or its dropout would be refused."""
    status, out, _ = run("evaluate", "users_learners:__Model__", "--env", DIGITS, "--episodes", 32)
    assert status == 0
    assert "__users-learners-model__" in out


def test_evaluate_other_splits_and_sizes(run, tmp_path) -> None:
    args = ("--env", DIGITS, "--runs", tmp_path, "--episodes", 48, "--split", "seen")
    status, out, _ = run("evaluate", "chance", *args)
    assert status == 0
    assert "boards take" not in out  # they show the split unseen only
    folder = out.splitlines()[-1]
    (result,) = load_run(folder).results
    assert (result.split, len(result.label)) == ("seen", 48)
    assert "at the last step, seen tasks" in out
    assert re.search(rf"^Chance +{100 * result.accuracy():.1f} ± ", out, re.MULTILINE)
    assert run("score", folder, "--split", "seen")[1] == out.rpartition(folder)[0]
    status, _, err = run("score", folder)
    assert status == 2
    assert "no results on unseen tasks" in err


def test_a_number_of_episodes_that_no_board_takes_is_told(run, tmp_path) -> None:
    args = ("evaluate", "chance", "--env", DIGITS, "--runs", tmp_path, "--episodes")
    assert f"chance: {DIGITS} has 48 episodes, boards take 256 or 1024." in run(*args, 48)[1]
    assert "boards take" not in run(*args, 256)[1]


def test_what_was_evaluated_before_an_error_is_kept(run, learners, tmp_path) -> None:
    """Random, the second environment of the suite, is one too much for this learner."""
    args = ("--suite", "digits-v0", "--episodes", 32)
    status, out, err = run("evaluate", "users_learners:only_digits", *args)
    assert (status, out) == (2, "")
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"1 of 2 environments are in {Path('runs') / folder.name}\n" in err
    assert f"icl-bench evaluate: {RANDOM}: logits are NaN or infinite" in err
    found = load_run(folder)
    assert [result.env for result in found.results] == [DIGITS]
    assert found.suite == "digits-v0"


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_computed(
    fails, tmp_path, monkeypatch
) -> None:
    called = []
    monkeypatch.setattr("icl_bench.evaluation.protocol.evaluate", lambda *a, **k: called.append(a))
    (tmp_path / "runs").touch()
    fails("evaluate", "chance", "--env", DIGITS, "--runs", tmp_path / "runs")
    assert called == []


REFUSED = {
    "users_learners:peeks": "it must predict: changing it changed the logits of step t",
    "users_learners:one_class_short": "must have shape",
    "users_learners:Model": (
        "no learner but a class: write learner = Model(…) in users_learners and give "
        "users_learners:learner"
    ),
    ".users_learners:my_learner": "'.users_learners:my_learner' is no learner: give chance, 1-nn",
    ":my_learner": "':my_learner' is no learner: give chance, 1-nn",
    "users_learners:number": "it is a int, not a callable",
    "users_learners:nothing": "cannot import users_learners:nothing: module 'users_learners' has",
    "no_such_module:learner": "No module named 'no_such_module'",
    "2-nn": "give chance, 1-nn, logistic-regression or module:name",
}


@pytest.mark.parametrize("learner", REFUSED)
def test_refused_learners_leave_nothing(learner: str, fails, learners, tmp_path) -> None:
    assert REFUSED[learner] in fails("evaluate", learner, "--suite", "digits-v0")
    assert list(tmp_path.glob("runs/*")) == []


def test_the_users_own_errors_keep_their_traceback(learners, tmp_path) -> None:
    with pytest.raises(RuntimeError, match="users_learners:breaks failed") as caught:
        cli.main(["evaluate", "users_learners:breaks", "--env", DIGITS])
    assert str(caught.value.__cause__) == "of the user's own"
    assert list(tmp_path.glob("runs/*")) == []


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (
            ["--env", DIGITS, "--device", "abacus"],
            "device must be cpu, cuda or cuda:N, not 'abacus'",
        ),
        (["--env", DIGITS, "--device", "mps"], "device must be cpu, cuda or cuda:N, not 'mps'"),
        (["--env", DIGITS, "--device", "cuda:99"], "device cuda:99: this PyTorch sees"),
        (["--env", DIGITS, "--episodes", "1"], "at least 2"),
        (["--env", DIGITS, "--seed", "-1"], "seed must be"),
        (["--env", "Digits-Proj9-v0"], "did you mean Digits-Proj"),
        (["--suite", "digits-v9"], "unknown suite 'digits-v9'"),
    ],
)
def test_bad_evaluations(args: list[str], reason: str, fails, tmp_path) -> None:
    assert reason in fails("evaluate", "chance", *args, "--runs", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_missing_data(run, fails, tmp_path) -> None:
    runs = tmp_path / "runs"
    suite = ("--suite", "table2-proj8-v0", "--runs", runs)
    assert "icl-bench download MNIST" in fails("evaluate", "chance", *suite)
    assert not runs.exists()
    status, out, err = run("evaluate", "chance", *suite, "--missing", "skip")
    assert status == 0
    skipped = re.findall(r"^skipped (\S+): .*icl-bench download", err, re.MULTILINE)
    assert skipped == [
        f"{base}-Proj8-v0" for base in ("MNIST", "FashionMNIST", "KMNIST", "CIFAR10", "SVHN")
    ]
    found = load_run(out.splitlines()[-1])
    assert [result.env for result in found.results] == [RANDOM]
    env = ("--env", "SVHN-Proj8-v0", "--missing", "skip", "--runs", tmp_path / "other")
    status, out, err = run("evaluate", "chance", *env)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith("icl-bench evaluate: no data set was at hand")
    assert not (tmp_path / "other").exists()


def test_data_are_looked_for_before_anything_is_computed(
    fails, tmp_path, monkeypatch, real_data
) -> None:
    """KMNIST comes third: a suite that cannot be finished is not begun."""
    images = tmp_path / "images"
    images.mkdir()
    for base in ("MNIST", "FashionMNIST"):
        (images / base).symlink_to(real_data / "images" / base)
    called = []
    monkeypatch.setattr("icl_bench.evaluation.protocol.evaluate", lambda *a, **k: called.append(a))
    args = ("--suite", "table2-proj8-v0", "--data-dir", tmp_path, "--runs", tmp_path / "runs")
    assert "icl-bench download KMNIST" in fails("evaluate", "chance", *args)
    assert called == []


# Scores


def test_score(run, runs) -> None:
    status, out, err = run("score", *runs.values())
    assert (status, err) == (0, "")
    for name, title in (("chance", "Chance"), ("1-nn", "1-NN")):
        rows = [line for line in out.splitlines() if line.startswith(f"{title} ")]
        assert len(rows) == 2  # with intervals, and seed by seed
        for result in load_run(runs[name]).results:
            assert all(f"{100 * result.accuracy():.1f}" in row for row in rows)


def test_from_runs_to_a_board(run, runs, tmp_path) -> None:
    root = tmp_path / "leaderboards"
    entries = [root / "digits-v0" / name for name in runs]
    for entry, path in zip(entries, runs.values(), strict=True):
        status, out, err = run("submit", path, "--suite", "digits-v0", "--out", entry)
        assert (status, err) == (0, "")
        assert f"{entry}: made, and valid" in out
    status, out, err = run("validate", *entries)
    assert (status, err) == (0, "")
    assert out == "".join(f"{entry}: valid\n" for entry in entries)
    assert run("board", "--root", root, "--check")[0] == 1
    status, out, err = run("board", "--root", root)
    assert (status, err) == (0, "")
    assert root / "README.md" in [Path(line) for line in out.splitlines()]
    text = (root / "README.md").read_text()
    assert all(title in text for title in ("Chance", "1-NN", "Logistic regression"))
    assert run("board", "--root", root, "--check") == (0, "", "")
    file = entries[0] / "predictions" / "seed-0.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    status, out, err = run("validate", *entries)
    assert status == 1
    assert f"{entries[0]}: predictions/seed-0.parquet" in out
    assert f"{entries[1]}: valid\n" in out


def test_scores_of_what_is_not_there(fails, runs, tmp_path) -> None:
    assert "no meta.json" in fails("score", tmp_path)
    assert "no such folder" in fails("validate", tmp_path / "nothing")
    path = runs["chance"]
    taken = ("--suite", "digits-v0", "--out", tmp_path)
    assert f"{tmp_path} exists already" in fails("submit", path, *taken)
    other = ("--suite", "table2-v0", "--out", tmp_path / "new")
    assert "no run with seed 0 has results of table2-v0" in fails("submit", path, *other)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_plot(suffix: str, magic: bytes, run, runs, tmp_path) -> None:
    out = tmp_path / f"curves{suffix}"
    status, printed, err = run("plot", *runs.values(), "--out", out, "--title", "First look")
    assert (status, printed, err) == (0, f"{out}\n", "")
    assert out.read_bytes().startswith(magic)


def test_plot_refuses(fails, runs, tmp_path) -> None:
    assert ".bmp" in fails("plot", runs["chance"], "--out", tmp_path / "curves.bmp")
    png = ("--out", tmp_path / "curves.png")
    assert "--reported needs --suite" in fails("plot", runs["chance"], "--reported", *png)
    assert list(tmp_path.iterdir()) == []


# Verification


def test_verify_all_environments_at_hand(run) -> None:
    status, out, err = run("verify")
    assert (status, err) == (0, "")
    assert "WRONG" not in out
    headings = [line for line in out.splitlines() if not line.startswith(" ")]
    assert headings == [f"{row.name}-Proj4-v0" for row in DATASETS]
    assert out.count("  ok    golden integers") == 4
    assert out.count("is not at hand") == 5


def test_verify_what_cannot_be(run, fails) -> None:
    status, _, err = run("verify", "CIFAR10-Proj8-v0")
    assert status == 2
    assert "icl-bench download CIFAR10" in err
    status, _, err = run("verify", "Digits-Proj9-v0")
    assert status == 2
    assert "did you mean Digits-Proj" in err


def test_verify_reports_another_golden_integer(run, monkeypatch) -> None:
    values = verification.committed_golden()
    values["Digits"]["val"]["y"][0][0] += 1
    monkeypatch.setattr(verification, "committed_golden", lambda: values)
    status, out, _ = run("verify", DIGITS)
    assert status == 1
    assert re.findall("WRONG (.*)", out) == ["golden integers: other integers in val"]


def test_verify_reports_another_frozen_label(run, monkeypatch) -> None:
    def tampered(env_id, num_episodes):
        labels = frozen(env_id, num_episodes).copy()
        labels[3, 7] ^= 1
        return labels

    frozen = verification.frozen_labels
    monkeypatch.setattr(verification, "frozen_labels", tampered)
    status, out, _ = run("verify", DIGITS, RANDOM)
    assert status == 1
    assert len(re.findall("WRONG frozen labels", out)) == 2
    assert len(re.findall("WRONG", out)) == 2


# As programs


def test_a_reader_that_goes_away_is_no_error() -> None:
    """``icl-bench list | head -1``: standard output is closed while it is written."""
    read, write = os.pipe()
    os.close(read)
    made = subprocess.run(
        [sys.executable, "-m", "icl_bench", "list"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert (made.returncode, made.stderr) == (141, "")


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).parent / "icl-bench"
    made = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"icl-bench \d+\.\d+\.\d+\n", made.stdout)


def test_python_m_has_the_same_errors() -> None:
    command = [sys.executable, "-m", "icl_bench", "show", "Digits"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (made.returncode, made.stdout, made.stderr.count("\n")) == (2, "", 1)
    assert made.stderr.startswith("icl-bench show: 'Digits' is not an environment id")
