import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from hostile_changes import SEED_0
from hostile_parquet import BOMBS
from synthetic_runs import SUITE, method_runs

from icl_bench.leaderboard import columns, reading, sandbox
from icl_bench.leaderboard.columns import Lists, Texts, read_columns
from icl_bench.leaderboard.predictions import prediction_schema
from icl_bench.leaderboard.sandbox import SANDBOX
from icl_bench.leaderboard.submission import make_submission, validate

SCHEMA = prediction_schema(100)
MOST = 204_800


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A valid submission; copied before it is changed."""
    root = tmp_path_factory.mktemp("made")
    return make_submission(method_runs(root / "runs"), root / SUITE / "gpicl", SUITE)


def read(path: Path) -> tuple[dict | None, list[str]]:
    return read_columns(path, SCHEMA, MOST, ("log_probs",))


def same_as_directly(found: dict, path: Path) -> bool:
    table = pq.read_table(path)
    texts = all(
        [found[name].names[code] for code in found[name].code] == table[name].to_pylist()
        for name in ("env", "split")
    )
    numbers = all(
        np.array_equal(found[name], table[name].to_numpy())
        for name in ("episode", "step", "prediction")
    )
    lists, expected = found["log_probs"], table["log_probs"].combine_chunks()
    return (
        texts
        and numbers
        and np.array_equal(lists.present, expected.is_valid().to_numpy(zero_copy_only=False))
        and np.array_equal(lists.size, expected.value_lengths().fill_null(0).to_numpy())
        and np.array_equal(lists.values, expected.flatten().to_numpy())
    )


def test_columns_are_those_of_the_file(made):
    found, problems = read(made / SEED_0)
    assert problems == []
    assert isinstance(found["env"], Texts)
    assert isinstance(found["log_probs"], Lists)
    assert same_as_directly(found, made / SEED_0)


def test_texts_that_a_dictionary_holds_twice_are_one(made, tmp_path):
    table = pq.read_table(made / SEED_0)
    codes = np.arange(len(table), dtype=np.int32) % 2
    twice = pa.DictionaryArray.from_arrays(codes, ["a", "a"])
    file = tmp_path / "twice.parquet"
    pq.write_table(table.set_column(0, "env", twice), file, store_schema=False)
    found, problems = read(file)
    assert problems == []
    assert found["env"].names == ("a",)


def test_a_file_that_costs_too_much_time_is_refused(tmp_path):
    bomb, reason = BOMBS["slow texts"]
    (tmp_path / "slow.parquet").write_bytes(bomb())
    assert re.search(reason, read(tmp_path / "slow.parquet")[1][0])


def test_one_costly_file_is_enough(made, tmp_path):
    path = shutil.copytree(made, tmp_path / "gpicl")
    for seed in (0, 1):
        (path / f"predictions/seed-{seed}.parquet").write_bytes(BOMBS["huge page"][0]())
    (problem,) = validate(path)
    assert problem.startswith("predictions/seed-0.parquet: takes more than 700 MiB")


# --- the helper


def run(script: str, *args: object) -> str:
    """What a program prints that has the sandbox alone, without the library around it."""
    folder = Path(sandbox.__file__).parent
    prelude = f"""
import importlib.util, os, sys
from pathlib import Path

def module(name):
    spec = importlib.util.spec_from_file_location(name, Path("{folder}") / f"{{name}}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found

sandbox = module("sandbox")
schema = bytes.fromhex("{SCHEMA.serialize().to_pybytes().hex()}")

def read(path):
    return sandbox.SANDBOX.unpack(
        Path(path).read_bytes(), schema, most_rows={MOST}, most_values=32, most_bytes=10**8,
        nullable=["log_probs"],
    )
"""
    command = [sys.executable, "-c", prelude + script, *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_bombs_take_less_than_a_gigabyte_and_few_seconds(tmp_path):
    files = []
    for name in ("huge page", "many texts", "huge dictionary", "empty pages", "slow texts"):
        files.append(tmp_path / f"{name}.parquet")
        files[-1].write_bytes(BOMBS[name][0]())
    script = """
import resource
for path in sys.argv[1:]:
    answer, complaint = read(path)
    assert complaint or b'"problems"' in answer
sandbox.SANDBOX.close()  # so that the helper and its children are counted
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_maxrss * 1024, used.ru_utime + used.ru_stime)
"""
    memory, seconds = map(float, run(script, *files).split())
    # Of the largest of them, as they run one after the other; who asks has the rest of a gigabyte.
    assert 100e6 < memory < 600e6
    assert 1 < seconds < 10  # of computing, of all of them: others may keep this machine busy


def test_a_child_can_touch_nothing_and_has_little_memory(tmp_path):
    (tmp_path / "here").write_text("")
    script = """
import signal, socket
folder = sys.argv[1]
parquet_worker = module("parquet_worker")
receive, send = os.pipe()
if os.fork() == 0:
    def tried(act):
        try:
            act()
        except OSError:
            os.write(send, b"OSError ")
        except MemoryError:
            os.write(send, b"MemoryError ")
        else:
            os.write(send, b"done ")
    limits = {"cpu_seconds": 2, "seconds": 60, "memory_bytes": sandbox.MEMORY_BYTES}
    parquet_worker.confine(send, limits)
    tried(lambda: open("/etc/hostname"))
    tried(lambda: os.open(".", os.O_RDONLY))
    tried(lambda: os.open("/tmp/new", os.O_CREAT | os.O_WRONLY))
    tried(lambda: socket.socket())
    tried(lambda: os.pipe())
    tried(lambda: os.read(0, 1))
    tried(lambda: os.write(1, b"x"))
    for act in (
        lambda: os.unlink(f"{folder}/here"),
        lambda: os.rename(f"{folder}/here", f"{folder}/there"),
        lambda: os.mkdir(f"{folder}/new"),
        lambda: os.kill(os.getppid(), signal.SIGTERM),
        lambda: os.execv("/bin/true", ["true"]),
        lambda: os.fork() or os._exit(0),
    ):
        tried(act)
    tried(lambda: bytearray(2**30))
    os._exit(0)
os.wait()
print(os.read(receive, 1000).decode())
"""
    assert run(script, tmp_path).split() == ["OSError"] * 13 + ["MemoryError"]
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_busy_machine_is_no_fault_of_a_file(made):
    """Its child is kept from computing for longer than it may compute."""
    script = """
import time
parquet_worker = module("parquet_worker")
assert sandbox.SECONDS >= 10 * sandbox.CPU_SECONDS
assert sandbox.PATIENCE_SECONDS > sandbox.SECONDS

def held_up(*args, own=parquet_worker.confine):
    time.sleep(3)
    own(*args)

parquet_worker.confine = held_up
rules = {"most_rows": 51_200, "most_values": 32, "nullable": ["log_probs"], "most_bytes": 10**8}
rules |= {"pipe_bytes": 2**20, "memory_bytes": sandbox.MEMORY_BYTES, "cpu_seconds": 1}
pa = parquet_worker.pa
schema = pa.ipc.read_schema(pa.py_buffer(schema))
for seconds in (60, 1):
    file = Path(sys.argv[1]).read_bytes()
    outcome, answer = parquet_worker._in_child(rules | {"seconds": seconds}, schema, file)
    print(outcome == parquet_worker.ANSWERED, sandbox._REASONS.get(outcome))
"""
    waited = "takes more than 60 seconds of waiting to unpack: try again on a less busy machine"
    assert run(script, made / SEED_0).splitlines() == ["True None", f"False {waited}"]


def test_helpers_that_die_are_replaced(made):
    assert read(made / SEED_0)[1] == []
    for blow in (signal.SIGKILL, signal.SIGTERM):
        process = SANDBOX._process
        process.send_signal(blow)
        process.wait()
        assert read(made / SEED_0)[1] == []
        assert SANDBOX._process.pid != process.pid


def test_helpers_that_hang_are_replaced(made, monkeypatch):
    assert read(made / SEED_0)[1] == []
    monkeypatch.setattr(sandbox, "PATIENCE_SECONDS", 4)
    SANDBOX._process.send_signal(signal.SIGSTOP)
    assert read(made / SEED_0)[1] == []


def test_an_interruption_spoils_no_later_answer(made, monkeypatch):
    def interrupted(*args: object) -> bytes:
        monkeypatch.undo()
        raise KeyboardInterrupt

    assert read(made / SEED_0)[1] == []
    monkeypatch.setattr(sandbox, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read(made / "predictions/seed-1.parquet")
    assert same_as_directly(read(made / SEED_0)[0], made / SEED_0)


def test_threads_take_turns(made):
    files = [made / SEED_0, made / "predictions/seed-1.parquet"]
    found: list[bool] = []

    def work(i: int) -> None:
        for k in range(3):
            file = files[(i + k) % 2]
            found.append(same_as_directly(read(file)[0], file))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 9


def test_forked_processes_have_helpers_of_their_own_and_none_is_left(made):
    script = """
read(sys.argv[1])
helper = sandbox.SANDBOX._process.pid
child = os.fork()
answers = [read(path)[0] for path in sys.argv[1:] * 3]
same = answers[:2] * 3 == answers and b"rows" in answers[0] and answers[0] != answers[1]
other = sandbox.SANDBOX._process.pid
if child == 0:
    sandbox.SANDBOX.close()
    os._exit(0 if same and other != helper else 1)
assert same and other == helper
assert os.waitpid(child, 0)[1] == 0
sandbox.SANDBOX.close()
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no child is left")
"""
    shown = run(script, made / SEED_0, made / "predictions/seed-1.parquet")
    assert shown == "no child is left\n"


def test_a_helper_ends_with_its_process(made):
    script = "read(sys.argv[1]); print(sandbox.SANDBOX._process.pid, flush=True); os._exit(0)"
    pid = int(run(script, made / SEED_0))
    for _ in range(500):
        if (
            not Path(f"/proc/{pid}").exists()
            or "Z (zombie)" in Path(f"/proc/{pid}/status").read_text()
        ):
            return
        threading.Event().wait(0.02)
    pytest.fail("the helper lives on")


def test_a_helper_that_cannot_start_says_how_to_see_why(made, monkeypatch):
    own = sandbox.Sandbox()
    monkeypatch.setattr(columns, "SANDBOX", own)
    monkeypatch.setattr(sandbox, "_WORKER", Path("/nowhere.py"))
    with pytest.raises(RuntimeError, match=r"does not start: run `.* /nowhere\.py` to see why"):
        read(made / SEED_0)


def test_systems_without_limits_are_told(made, monkeypatch):
    monkeypatch.setattr(columns, "os", types.SimpleNamespace(name="nt"))
    with pytest.raises(RuntimeError, match="use Linux or macOS"):
        read(made / SEED_0)


# --- files that are swapped after they were looked at


def to_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("/etc/hostname")


def to_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def to_linked_folder(file: Path) -> None:
    elsewhere = file.parent.rename(file.parents[2] / "elsewhere")
    file.parent.symlink_to(elsewhere)


def to_hard_link(file: Path) -> None:
    os.link(file, file.parents[2] / "outside")


SWAPS = {
    "link": (to_link, "cannot be opened: Too many levels of symbolic links"),
    "pipe": (to_pipe, "not a plain file of at most"),
    "linked folder": (to_linked_folder, "cannot be opened: "),
    "hard link": (to_hard_link, "not a plain file of at most"),
    "larger file": (lambda file: os.truncate(file, 3_000_001), "not a plain file of at most"),
    "nothing": (lambda file: file.unlink(), "cannot be opened: No such file"),
    "folder": (lambda file: (file.unlink(), file.mkdir()), "not a plain file of at most"),
}


@pytest.mark.parametrize("case", SWAPS)
def test_files_that_are_swapped_are_not_read(case, made, tmp_path, monkeypatch):
    path = shutil.copytree(made, tmp_path / "gpicl")
    look = reading.check_layout

    def swapped(folder: Path):
        seen = look(folder)
        SWAPS[case][0](path / SEED_0)
        return seen

    monkeypatch.setattr(reading, "check_layout", swapped)
    problems = validate(path)
    assert re.match(f"predictions/seed-0.parquet: {SWAPS[case][1]}", problems[0])
