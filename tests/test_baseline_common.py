"""What baselines share: settings, run folders, the log, devices, and errors of one line."""

import dataclasses
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import icl_bench
from baselines import cli, common, sgd
from baselines.common import JsonlLog, RunConfig
from icl_bench.evaluation.learner import LearnerError
from icl_bench.leaderboard import runs as run_folders

ROOT = Path(__file__).resolve().parents[1]
FAST = ("--preset", "cpu", "--suite", "digits-v0", "--episodes", "32", "--device", "cpu")


def run(*arguments: str | Path) -> int:
    return cli.main(sgd.run, sgd.PRESETS, sgd.PROGRAM, "About.", [str(a) for a in arguments])


def parse(*arguments: str) -> sgd.Config:
    return cli.parse(sgd.PRESETS, sgd.PROGRAM, "About.", arguments)


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Path:
    """A run folder whose evaluation was left out, for tests of what surrounds it."""
    monkeypatch.setattr(common, "evaluate_run", lambda *_: [])
    assert run(*FAST, "--lr", "0.02", "--runs", tmp_path / "runs") == 0
    (folder,) = (tmp_path / "runs").iterdir()
    capsys.readouterr()
    return folder


# The log


def test_log_lines_are_objects_on_disk_at_once(tmp_path):
    log = JsonlLog(tmp_path / "metrics.jsonl")
    assert log.read() == []
    log.write("train", step=1, loss=0.5)
    log.write("result", env="Ä-v0")
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["train", "result"]
    assert log.read()[0].keys() == {"event", "wall_s", "step", "loss"}
    assert all(line["wall_s"] >= 0 for line in log.read())
    with pytest.raises(ValueError, match="JSON"):
        log.write("train", loss=float("nan"))
    assert len(log.read()) == 2


def test_log_is_cut_back_to_a_checkpoint(tmp_path):
    log = JsonlLog(tmp_path / "metrics.jsonl")
    for step in range(5):
        log.write("train", step=step)
    with log.path.open("a") as file:
        file.write('{"event": "train", "st')  # killed while it wrote
    assert [line["step"] for line in log.read()] == [0, 1, 2, 3, 4]
    log.cut(lambda line: line["step"] <= 2)
    log.write("train", step=3)
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [0, 1, 2, 3]


@pytest.mark.parametrize("bad", ["{", "[]", "3", '"event"', "{}", "\xff"])
def test_a_damaged_line_is_named(tmp_path, bad):
    log = JsonlLog(tmp_path / "metrics.jsonl")
    log.write("train", step=0)
    with log.path.open("a", encoding="latin-1") as file:
        file.write(bad + "\n")
    log.write("train", step=1)
    before = log.path.read_bytes()
    for call in (log.read, lambda: log.cut(lambda _: True)):
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is damaged"):
            call()
    assert log.path.read_bytes() == before


def test_a_log_that_was_never_begun_can_be_cut(tmp_path):
    log = JsonlLog(tmp_path / "metrics.jsonl")
    log.cut(lambda _: True)
    assert log.read() == []


# Settings


def test_settings_survive_json():
    config = dataclasses.replace(sgd.cpu(), seed=3, suite="table2-v0", sweep_rates=(1e-4, 0.5))
    assert common.config_from_json(sgd.Config, common.config_to_json(config)) == config
    with pytest.raises(ValueError, match=r"differ in .*lr"):
        common.config_from_json(RunConfig, common.config_to_json(config))
    with pytest.raises(ValueError, match="JSON"):
        common.config_to_json(dataclasses.replace(config, lr=float("inf")))


def test_settings_that_json_would_change_are_refused():
    @dataclasses.dataclass(frozen=True)
    class Odd(RunConfig):
        odd: object = ("a", ("b",))

    with pytest.raises(ValueError, match="round trip"):
        common.config_to_json(Odd())


def test_portable_settings_say_nothing_about_the_machine():
    config = sgd.Config(lr=0.5, runs="/tmp/x", data_dir="/data", device="cuda", resume="y")
    assert common.portable(config) == sgd.Config(lr=0.5)


def test_environments_are_those_of_the_suite_or_the_relatives():
    assert RunConfig(suite="digits-v0").envs == icl_bench.suite("digits-v0").envs
    assert RunConfig(env="MNIST-Proj8-v0").envs[0] == "MNIST-Proj8-v0"
    others = RunConfig(env="MNIST-Proj8-v0").envs[1:]
    assert set(others) == set(icl_bench.cross("MNIST-Proj8-v0"))
    assert "Digits-Proj8-v0" in others


def test_flags_change_the_preset():
    assert parse() == sgd.paper()
    assert parse("--preset", "cpu") == sgd.cpu()
    assert parse("--preset=cpu", "--lr", "0.5") == dataclasses.replace(sgd.cpu(), lr=0.5)
    assert parse("--lr", "0.5", "--preset", "cpu") == dataclasses.replace(sgd.cpu(), lr=0.5)


def test_help_documents_every_setting(capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse("--help")
    assert exit_info.value.code == 0
    shown = " ".join(re.sub("[│╭╰─╮╯]", " ", capsys.readouterr().out).split())
    assert "usage: python -m baselines.sgd" in shown
    documents = "".join((ROOT / "baselines" / name).read_text() for name in ("common.py", "sgd.py"))
    for field in dataclasses.fields(sgd.Config):
        assert f"--{field.name.replace('_', '-')}" in shown
        found = re.findall(rf'^    {field.name}: .*\n    """(.*)"""$', documents, re.MULTILINE)
        assert found, f"{field.name} has no docstring"
        assert any(text in shown for text in found), field.name


# Devices


def test_devices():
    assert common.resolve_device("cpu") == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert common.resolve_device("auto").type == expected
    for bad in ("tpu", "cuda:x", "meta", "", "mps"):
        with pytest.raises(ValueError, match="must be cpu, cuda or cuda:N"):
            common.resolve_device(bad)
    with pytest.raises(ValueError, match=r"cuda:99: this PyTorch sees \d+ CUDA devices"):
        common.resolve_device("cuda:99")


# Errors: one line, status 2, nothing made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "0"], "--lr must be above 0, not 0.0"),
        (["--lr", "-1"], "--lr must be above 0, not -1.0"),
        (["--lr", "nan"], "--lr must be above 0, not nan"),
        (["--lr", "inf"], "--lr must be above 0, not inf"),
        (["--weight-decay", "-1"], "--weight-decay must be 0 or more"),
        (["--hidden", "-1"], "--hidden must be 0 or more, not -1"),
        (["--sweep-rates", "0.1", "0"], "--sweep-rates must be above 0"),
        (["--sweep-episodes", "1"], "--sweep-episodes must be 2 or more"),
        (["--seed", "-1"], "--seed must be 0 or more"),
        (["--episodes", "100"], "--episodes must be a multiple of 16 from 32 to 1024, not 100"),
        (["--episodes", "2048"], "--episodes must be a multiple of 16"),
        (["--device", "tpu"], "device must be cpu, cuda or cuda:N, not 'tpu'"),
        (["--env", "MNIST-Proj-v9"], "there is no version v9 of MNIST-Proj, only v0"),
        (["--env", "mnist-proj-v0"], "did you mean MNIST-Proj-v0"),
        (["--suite", "table3-v0"], "unknown suite 'table3-v0'; there are table2-v0"),
        (["--resume", "nowhere"], "--resume nowhere: not a run folder"),
    ],
)
def test_bad_values_are_one_clear_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--preset", "gpu"], ["--optimizer", "rms"], ["--nix", "1"]])
def test_unknown_flags_and_choices_have_status_2(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        run(*arguments)
    assert exit_info.value.code == 2
    assert arguments[0] in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_missing_data_name_the_command_that_gets_them(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("ICL_BENCH_DATA", raising=False)
    monkeypatch.setenv("ICL_BENCH_CACHE", str(tmp_path / "cache"))
    env = ("--env", "CIFAR10-Proj8-v0")
    assert run(*env, "--sweep", "--runs", tmp_path / "runs") == 2
    assert "icl-bench download CIFAR10" in capsys.readouterr().err
    done = []
    monkeypatch.setattr(common, "evaluate_run", lambda run, learner, envs: done.extend(envs))
    assert run(*env, "--runs", tmp_path / "runs") == 0
    shown = capsys.readouterr().err
    assert "skipped CIFAR10-Proj8-v0: " in shown
    assert "icl-bench download MNIST" in shown
    assert sorted(done) == ["Digits-Proj8-v0", "Random-Proj8-v0"]
    monkeypatch.setattr(RunConfig, "envs", ("MNIST-Proj8-v0",))
    assert run(*env, "--runs", tmp_path / "other") == 2
    assert "no data set was at hand" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


# Run folders


def test_a_run_folder_says_what_was_run(finished):
    config = common.config_from_json(sgd.Config, (finished / "config.json").read_text())
    assert (config.lr, config.preset, config.suite) == (0.02, "cpu", "digits-v0")
    meta = json.loads((finished / "meta.json").read_text())
    assert meta["versions"].keys() >= {"python", "icl-bench", "torch", "numpy"}
    assert meta["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert meta["device"] == "cpu"
    assert meta["threads"] == torch.get_num_threads()
    assert meta["fingerprints"].keys() == set(icl_bench.suite("digits-v0").envs)
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in meta["fingerprints"].values())
    assert meta["commit"] is None or re.fullmatch("[0-9a-f]{40}(-dirty)?", meta["commit"])
    assert meta["entry"]["code"].startswith("python -m baselines.sgd --optimizer adam --lr 0.02")


def test_an_existing_run_folder_is_refused(tmp_path, monkeypatch, capsys):
    class Stopped(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime(2030, 1, 2, 3, 4, 5, tzinfo=tz)

    monkeypatch.setattr(common, "evaluate_run", lambda *_: [])
    monkeypatch.setattr(run_folders.datetime, "datetime", Stopped)
    assert run(*FAST, "--runs", tmp_path) == 0
    (folder,) = tmp_path.iterdir()
    assert folder.name == "digits-v0__sgd__0__20300102T030405Z"
    before = (folder / "config.json").read_bytes()
    assert run(*FAST, "--lr", "0.5", "--runs", tmp_path) == 2
    shown = capsys.readouterr().err
    assert f"{folder} exists already" in shown
    assert shown.count("\n") == 1
    assert (folder / "config.json").read_bytes() == before


def test_a_run_goes_on_in_its_own_settings(finished):
    assert parse("--resume", str(finished)).lr == 0.02
    assert parse("--resume", str(finished), "--lr", "0.02", "--preset", "cpu").lr == 0.02
    elsewhere = parse("--resume", str(finished), "--data-dir", "elsewhere")
    assert (elsewhere.data_dir, elsewhere.resume) == ("elsewhere", str(finished))


@pytest.mark.parametrize(
    "arguments",
    [["--lr", "0.5"], ["--lr", "0.001"], ["--suite", "None"], ["--seed", "1"], ["--sweep"]],
)
def test_other_settings_are_refused(arguments, finished, capsys):
    before = {path: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    assert run("--resume", finished, *arguments) == 2  # 0.001 is the default of another preset
    shown = capsys.readouterr().err
    assert f"was begun with {arguments[0][2:]} = " in shown
    assert shown.count("\n") == 1
    assert {path: path.read_bytes() for path in before} == before


def test_the_settings_of_another_program_are_refused(finished, capsys):
    (finished / "config.json").write_text(common.config_to_json(RunConfig()))
    assert run("--resume", finished) == 2
    assert "not settings of this program: settings differ in " in capsys.readouterr().err
    (finished / "config.json").write_text("[1")
    assert run("--resume", finished) == 2
    assert "not settings of this program" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", '{"entry": ', ""])
def test_a_damaged_meta_file_is_one_line_with_its_name(finished, content, capsys):
    (finished / "meta.json").write_text(content)
    assert run("--resume", finished) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: {finished / 'meta.json'} is damaged: ")
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert (finished / "meta.json").read_text() == content


def test_a_damaged_log_is_one_line_with_its_name(finished, capsys):
    log = finished / "metrics.jsonl"
    log.write_text("[]\n" + log.read_text())
    assert run("--resume", finished) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: {log}, line 1 is damaged: ")
    assert (shown.out, shown.err.count("\n")) == ("", 1)


def test_a_learner_that_cannot_be_scored_names_its_environment(tmp_path, monkeypatch, capsys):
    def diverged(x, prev_y):
        return torch.full((*prev_y.shape, 10), torch.nan)

    config = dataclasses.replace(sgd.cpu(), suite="digits-v0", runs=str(tmp_path), device="cpu")
    about = common.entry(
        config, name="bad", title="Bad", inductive_bias="None", code="none", state_size=0
    )
    with (
        common.open_run(config, about, "program") as opened,
        pytest.raises(LearnerError, match=r"^Random-Proj8-v0: logits are NaN"),
    ):
        common.evaluate_run(opened, diverged, ["Random-Proj8-v0"])


def test_episodes_that_diverge_are_reported(tmp_path, capsys):
    def sure_of_the_first(x, prev_y):
        return 100.0 * torch.eye(10)[torch.zeros_like(prev_y)]

    config = sgd.Config(env="Random-Proj8-v0", episodes=32, runs=str(tmp_path), device="cpu")
    about = common.entry(
        config, name="sure", title="Sure", inductive_bias="None", code="none", state_size=0
    )
    with common.open_run(config, about, "program") as opened:
        common.evaluate_run(opened, sure_of_the_first, ["Random-Proj8-v0"])
    found = re.search(r"on Random-Proj8-v0 it diverged in (\S+)% of", capsys.readouterr().err)
    assert float(found[1]) > 90
    (line,) = [line for line in opened.log.read() if line["event"] == "result"]
    assert line["diverged"] == pytest.approx(float(found[1]) / 100, abs=1e-3)


def test_panels_are_in_the_order_of_the_evaluation(tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(
        "icl_bench.evaluation.plots.plot_learning_curves", lambda curves, path: drawn.append(curves)
    )
    config = sgd.Config(env="Random-Proj8-v0", episodes=32, runs=str(tmp_path), device="cpu")
    about = common.entry(
        config, name="nn", title="NN", inductive_bias="None", code="none", state_size=0
    )
    envs = ("Random-Proj8-v0", "Digits-Proj8-v0")
    with common.open_run(config, about, "program") as opened:
        common.evaluate_run(opened, icl_bench.NearestNeighbour(), envs)
    assert [list(by_env) for by_env in drawn[0].values()] == [list(envs)]


def test_a_reader_that_goes_away_is_no_error(finished):
    """``… | head -1``: standard output is closed before the table is printed."""
    program = (
        "import sys; from baselines import cli, common, sgd; "
        "common.evaluate_run = lambda *_: print('x' * 100_000); "
        "sys.exit(cli.main(sgd.run, sgd.PRESETS, sgd.PROGRAM, 'About.', sys.argv[1:]))"
    )
    read, write = os.pipe()
    os.close(read)
    made = subprocess.run(
        [sys.executable, "-c", program, "--resume", str(finished)],
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert (made.returncode, made.stderr) == (141, "")


def test_a_run_of_another_version_is_refused_and_changes_are_told(finished, capsys):
    assert run("--resume", finished) == 0
    assert capsys.readouterr().err == ""
    meta = json.loads((finished / "meta.json").read_text())
    meta["threads"] = 77
    (finished / "meta.json").write_text(json.dumps(meta))
    assert run("--resume", finished) == 0
    assert "warning: threads changed" in capsys.readouterr().err
    meta["fingerprints"]["Digits-Proj8-v0"] = "0" * 64
    (finished / "meta.json").write_text(json.dumps(meta))
    assert run("--resume", finished) == 2
    assert "environments of another version" in capsys.readouterr().err
    opened = [line["resumed"] for line in JsonlLog(finished / "metrics.jsonl").read()]
    assert opened == [False, True, True]


def test_interrupt_says_how_to_go_on(tmp_path):
    """A real process and a real signal, in the middle of a sweep of minutes."""
    arguments = ["--env", "Digits-Proj-v0", "--sweep", "--sweep-hidden", "128"]
    command = [sys.executable, "-m", "baselines.sgd", *arguments, "--sweep-episodes", "16"]
    process = subprocess.Popen(
        [*command, "--device", "cpu", "--runs", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("*/sweep.csv")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    (folder,) = tmp_path.iterdir()
    assert process.returncode == 130
    assert err == f"\ninterrupted; go on with: python -m baselines.sgd --resume {folder}\n"
    assert out == ""
    rows = sgd.read_rows(folder / "sweep.csv")
    assert 1 <= len(rows) < 27
    assert parse("--resume", str(folder)).sweep_hidden == (128,)


def test_tables_are_written_whole_and_read_back(tmp_path):
    path = tmp_path / "table.csv"
    assert sgd.read_rows(path) == []
    rows = [{"name": "a, b", "value": "1e-05"}, {"name": 'ü "q"', "value": ""}]
    sgd.write_rows(path, rows)
    assert sgd.read_rows(path) == rows
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]
