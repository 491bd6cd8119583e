"""The cache folder, atomic writes and checksums."""

import errno
import hashlib
import os
import stat
import time
from pathlib import Path

import numpy as np
import pytest
from folders import forbidden_folder, full_disk, unprivileged

from icl_bench.data import cache
from icl_bench.data.cache import (
    atomic_path,
    cache_dir,
    scratch_folder,
    sha256_arrays,
    sha256_file,
)


def test_the_cache_folder_is_the_variable_then_the_users(monkeypatch) -> None:
    monkeypatch.setenv("ICL_BENCH_CACHE", "/somewhere/else")
    assert cache_dir() == Path("/somewhere/else")
    monkeypatch.setenv("ICL_BENCH_CACHE", "~/mine")
    assert cache_dir() == Path.home() / "mine"
    monkeypatch.setenv("ICL_BENCH_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir() == Path("/xdg/icl_bench")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "icl_bench"


def test_a_file_appears_whole_with_the_permissions_of_any_new_file(tmp_path) -> None:
    path = tmp_path / "a" / "b" / "file.npz"
    with atomic_path(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (path.parent, ".npz")
        temporary.write_bytes(b"half")
        assert not path.exists()
        with temporary.open("ab") as file:
            file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert os.listdir(path.parent) == ["file.npz"]
    (tmp_path / "plain").touch()
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (path, tmp_path / "plain")]
    assert modes[0] == modes[1]


def test_two_writers_of_one_file_do_not_meet(tmp_path) -> None:
    path = tmp_path / "file"
    with atomic_path(path) as first, atomic_path(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # whose block ended last
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "error", [ValueError("own"), KeyboardInterrupt(), FileNotFoundError("own")]
)
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def block() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("new")
            raise error

    with pytest.raises(type(error)) as caught:
        block()
    assert caught.value is error  # what has nothing to do with writing stays as it is
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("function", ["open", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_or_read_only_folder_is_named_with_the_way_out(
    tmp_path, monkeypatch, function: str, number: int
) -> None:
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "file.npz"
    path.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(cache.os, function, fail)
        with pytest.raises(OSError, match=r"set.*folder") as caught, atomic_path(path):
            pass
    assert caught.value.errno == number
    message = str(caught.value)
    for part in ("file.npz", str(tmp_path), os.strerror(number), "ICL_BENCH_CACHE", cache_dir()):
        assert str(part) in message
    assert os.listdir(tmp_path) == ["file.npz"]
    assert path.read_text() == "old"


def test_a_disk_that_is_full_within_the_block(tmp_path) -> None:
    def block() -> None:
        with atomic_path(tmp_path / "big.npy") as path:
            path.write_bytes(bytes(20_000))

    with (
        full_disk(room=10_000),
        pytest.raises(OSError, match=f"cannot write big.npy in {tmp_path}.*ICL_BENCH_CACHE"),
    ):
        block()
    assert os.listdir(tmp_path) == []


def test_a_folder_that_must_not_be_written() -> None:
    with forbidden_folder() as folder, unprivileged(folder):
        for path in (folder / "file", folder / "new" / "file"):
            with pytest.raises(PermissionError, match="ICL_BENCH_CACHE") as caught:
                atomic_path(path).__enter__()
            assert str(path.parent) in str(caught.value)
        with pytest.raises(PermissionError, match=f"{folder}.*ICL_BENCH_CACHE"):
            scratch_folder(folder).__enter__()
        assert os.listdir(folder) == []


def test_a_file_where_the_folder_should_be(tmp_path) -> None:
    (tmp_path / "folder").write_text("not a folder")
    for path in (tmp_path / "folder" / "file", tmp_path / "folder" / "deeper" / "file"):
        with (
            pytest.raises(OSError, match=r"cannot write file in .*ICL_BENCH_CACHE"),
            atomic_path(path),
        ):
            pass


def test_writes_within_writes_say_once_where(tmp_path, monkeypatch) -> None:
    def fail(*_) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(cache.os, "replace", fail)
    with (
        pytest.raises(OSError, match=r"cannot write inner in .*\(full\)") as caught,
        atomic_path(tmp_path / "outer"),
        atomic_path(tmp_path / "inner"),
    ):
        pass
    assert "outer" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def age(path: Path, days: float) -> None:
    then = time.time() - days * 24 * 3600
    os.utime(path, (then, then))


def test_files_that_killed_processes_left_go_after_a_day(tmp_path) -> None:
    gone = ".view-123-0123abcd.npy"
    kept = [".view-124-0123abcd.npy", ".view-1-0123abcd.json", ".other-1-0123abcd.npy"]
    kept += ["view-1-0123abcd.npy", ".view-mine.npy"]
    for name in (gone, *kept):
        (tmp_path / name).touch()
        age(tmp_path / name, 2)
    age(tmp_path / kept[0], 0.5)  # another process may be at it
    with atomic_path(tmp_path / "view.npy"):
        pass
    assert set(os.listdir(tmp_path)) == {"view.npy", *kept}


def test_folders_that_killed_processes_left_go_after_a_day(tmp_path) -> None:
    folders = [tmp_path / f".icl_bench-scratch-{letter * 8}" for letter in "abc"]
    folders.append(tmp_path / ".icl_bench-scratch-of-mine")
    for folder in folders:
        folder.mkdir()
        (folder / "file").touch()
        age(folder / "file", 0.5 if folder == folders[1] else 2)
        age(folder, 0.5 if folder == folders[2] else 2)
    with scratch_folder(tmp_path) as own:
        assert set(tmp_path.iterdir()) == {own, *folders[1:]}


def test_a_scratch_folder_goes_with_all_it_holds(tmp_path) -> None:
    with scratch_folder(tmp_path / "new") as folder:
        (folder / "file").touch()
        assert folder.parent == tmp_path / "new"
    assert os.listdir(tmp_path / "new") == []

    def block() -> None:
        with scratch_folder(tmp_path) as folder:
            (folder / "file").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert os.listdir(tmp_path) == ["new"]


def test_checksums(tmp_path) -> None:
    # FIPS 180-4's example.
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == known

    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    labels = np.array([1, 0], dtype=np.uint8)
    expected = hashlib.sha256(b"2x3x4\n" + bytes(range(24)) + b"\x01\x00").hexdigest()
    assert sha256_arrays(images, labels) == expected
    # Memory order is no part of it; shape and labels are.
    assert sha256_arrays(np.asfortranarray(images), labels) == expected
    others = [
        (images.reshape(2, 4, 3), labels),
        (images, labels[::-1]),
        (images[::-1], labels),
        (images + 1, labels),
    ]
    assert expected not in [sha256_arrays(*other) for other in others]
