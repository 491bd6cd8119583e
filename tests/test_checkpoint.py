"""Checkpoints: whatever a kill or a disk does to a file, a sound one is found or none is used."""

import hashlib
import io
import os
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from baselines import checkpoint
from baselines.checkpoint import NEWEST, PREVIOUS, CheckpointError


def state(step: int) -> dict:
    """Of the shape that the outer loop saves."""
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(3, 4, generator=generator)
    return {
        "settings": '{"lr": 0.001}',
        "step": step,
        "seconds": step / 3,
        "model": {"embed.weight": weight, "embed.bias": weight[:, 0].clone()},
        "optimizer": {
            "state": {0: {"step": torch.tensor(float(step)), "exp_avg": weight.square()}},
            "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0, 1]}],
        },
        "losses": torch.full((2, 5), float(step)),
    }


def same(first: object, second: object) -> bool:
    if isinstance(first, Tensor):
        assert isinstance(second, Tensor)
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        assert isinstance(second, dict)
        return first.keys() == second.keys() and all(same(v, second[k]) for k, v in first.items())
    return first == second


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with the checkpoints of steps 1 and 2."""
    checkpoint.save(tmp_path, state(1))
    checkpoint.save(tmp_path, state(2))
    return tmp_path


def flipped(content: bytes, position: int, bit: int) -> bytes:
    changed = bytearray(content)
    changed[position] ^= 1 << bit
    return bytes(changed)


def test_a_checkpoint_comes_back_as_it_was(tmp_path, capsys):
    assert checkpoint.load(tmp_path) is None
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, state(step))
        found = checkpoint.load(tmp_path)
        assert found is not None
        assert same(found, state(step))
    assert not same(found, state(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS, NEWEST]
    assert capsys.readouterr().err == ""


def test_torch_alone_can_read_it(two):
    assert same(torch.load(two / NEWEST, weights_only=True), state(2))
    assert same(torch.load(two / PREVIOUS, weights_only=True), state(1))


def damage(content: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "one byte": content[:1],
        "half": content[: len(content) // 2],
        "last byte missing": content[:-1],
        "checksum missing": content[:-32],
        "a byte more": content + b"\0",
        "flip in the middle": flipped(content, len(content) // 2, 3),
        "flip in the checksum": flipped(content, len(content) - 1, 0),
        "zeros": bytes(len(content)),
        "text": b"<html>not found</html>" * 9,
    }


@pytest.mark.parametrize("kind", damage(bytes(64)))
def test_a_damaged_newest_is_named_and_the_previous_taken(two, kind, capsys):
    (two / NEWEST).write_bytes(damage((two / NEWEST).read_bytes())[kind])
    found = checkpoint.load(two)
    assert found is not None
    assert same(found, state(1))
    shown = capsys.readouterr().err
    assert shown.startswith(f"warning: {two / NEWEST} is damaged and left out: ")
    assert shown.count("\n") == 1


def test_every_flipped_bit_is_noticed(two, capsys):
    """Zip's own checksums miss some: a file's entry that turns into a folder's reads as noise."""
    content = (two / NEWEST).read_bytes()
    rng = random.Random(0)
    for position in [*range(0, len(content) - 32, 5), *range(len(content) - 32, len(content))]:
        (two / NEWEST).write_bytes(flipped(content, position, rng.randrange(8)))
        with pytest.raises(ValueError, match="checksum"):
            checkpoint._content(two / NEWEST)
    (two / NEWEST).write_bytes(content)
    assert len(checkpoint._content(two / NEWEST)) == len(content) - 32


def test_both_damaged_is_an_error_that_names_both(two, capsys):
    for name in (NEWEST, PREVIOUS):
        (two / name).write_bytes((two / name).read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=rf"{NEWEST} and {PREVIOUS} damaged.*start a new run"):
        checkpoint.load(two)
    assert capsys.readouterr().err.count("warning: ") == 2


def test_an_only_damaged_checkpoint_is_not_a_run_without_one(tmp_path, capsys):
    (tmp_path / PREVIOUS).write_bytes(b"")
    with pytest.raises(CheckpointError, match=PREVIOUS):
        checkpoint.load(tmp_path)


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the library may see it."""


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_around_the_renames_leaves_a_usable_one(two, renames, monkeypatch, capsys):
    """Before the first rename, between the two, and after the second."""
    done = []

    def replace(source, target):
        if len(done) == renames:
            raise Killed
        done.append(target)
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        try:
            checkpoint.save(two, state(3))
        except Killed:
            assert renames < 2
    found = checkpoint.load(two)
    assert found is not None
    assert same(found, state([2, 2, 3][renames]))
    assert capsys.readouterr().err == ""
    checkpoint.save(two, state(4))  # goes on
    found = checkpoint.load(two)
    assert found is not None
    assert same(found, state(4))


def test_a_damaged_newest_never_replaces_the_only_sound_one(two, monkeypatch, capsys):
    """After the previous one was taken: a kill between the renames of the next save."""
    (two / NEWEST).write_bytes(b"damaged")
    checkpoint.save(two, state(3))
    (two / NEWEST).write_bytes(b"damaged")
    found = checkpoint.load(two)
    assert found is not None
    assert same(found, state(1))


def test_a_full_disk_keeps_what_there_is_and_says_so(two, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match=f"cannot write {NEWEST} in .*No space left"):
        checkpoint.save(two, state(3))
    monkeypatch.undo()
    found = checkpoint.load(two)
    assert found is not None
    assert same(found, state(2))
    assert not [path for path in two.iterdir() if path.name not in (PREVIOUS, NEWEST)]


class Code:
    """Whose pickle makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("checksum", [False, True])
def test_pickled_code_is_refused_and_never_run(two, checksum, capsys):
    made = two / "made by the code"
    buffer = io.BytesIO()
    torch.save(state(3) | {"step": Code(made)}, buffer)
    content = buffer.getvalue()
    if checksum:  # as one who knows the format would write it
        content += hashlib.sha256(content).digest()
    (two / NEWEST).write_bytes(content)
    found = checkpoint.load(two)
    assert found is not None
    assert same(found, state(1))
    shown = capsys.readouterr().err
    assert ("not made of tensors and numbers alone" in shown) == checksum
    assert "weights_only" not in shown  # torch advises to turn it off
    (two / PREVIOUS).unlink()
    with pytest.raises(CheckpointError):
        checkpoint.load(two)
    assert not made.exists()
    torch.load(io.BytesIO(content), weights_only=False)
    assert made.exists()  # the code would have worked


def test_another_thing_than_a_checkpoint_is_refused(two, capsys):
    buffer = io.BytesIO()
    torch.save(torch.ones(3), buffer)
    content = buffer.getvalue()
    (two / NEWEST).write_bytes(content + hashlib.sha256(content).digest())
    found = checkpoint.load(two)
    assert found is not None
    assert found["step"] == 1
    assert "it holds Tensor, not a checkpoint" in capsys.readouterr().err
