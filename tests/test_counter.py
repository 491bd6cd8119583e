"""Philox: published known answers, golden integers, and the portable version."""

import numpy as np
import pytest
import torch
from scipy import stats

from icl_bench.tasks import counter, projection


@pytest.mark.parametrize(
    ("key", "ctr", "expected"),
    [  # Known answers of the Random123 distribution for philox4x32-10.
        (0, (0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ],
)
def test_known_answer(key: int, ctr: tuple[int, int, int], expected: tuple[int, ...]) -> None:
    c0, c2, c3 = (np.array([c], dtype=np.uint64) for c in ctr)
    assert tuple(int(w[0]) for w in counter.philox(c0, c2, c3, key)) == expected


def test_against_numpy_philox_rounds() -> None:
    """One round, by hand in Python integers, applied ten times."""
    key, block, ident = 0x0123456789ABCDEF, 7, 2**40 + 5
    c = [block, 0, ident & 0xFFFFFFFF, ident >> 32]
    k = [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 % 2**32, (p0 >> 32) ^ c[3] ^ k[1], p0 % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    got = counter.words(key, np.array([ident]), 32)[0, 28:]
    assert got.tolist() == c


def test_portable_words_are_the_same() -> None:
    ids = np.array([0, 1, 2**31, 2**32, 2**62 + 12345])
    for key in (0, 1, 2**63 + 17, 2**64 - 1):
        expected = counter.words(key, ids, 37)
        got = projection.portable_words(key, ids, 37, torch.device("cpu"))
        assert (got.numpy() == expected).all()


@pytest.mark.gpu
def test_portable_words_on_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    ids = np.array([0, 2**32 + 5])
    got = projection.portable_words(77, ids, 37, torch.device("cuda"))
    assert (got.cpu().numpy() == counter.words(77, ids, 37)).all()


def test_rows_depend_on_their_id_alone() -> None:
    ids = np.array([9, 3, 2**33])
    together = counter.words(5, ids, 10)
    for row, ident in zip(together, ids, strict=True):
        assert (counter.words(5, np.array([ident]), 10)[0] == row).all()
    assert (counter.words(5, ids, 7) == together[:, :7]).all()


def test_streams_are_uncorrelated_and_uniform() -> None:
    streams = [
        counter.uniforms(counter.stream_key(name, i), np.arange(50), 2000).ravel()
        for name in ("projection", "bias")
        for i in range(2)
    ]
    for values in streams:
        assert stats.kstest(values, "uniform").pvalue > 1e-6
    correlation = np.corrcoef(streams) - np.eye(4)
    assert abs(correlation).max() < 5 / np.sqrt(streams[0].size)


def test_stream_names() -> None:
    assert counter.stream_key("a", 1) != counter.stream_key("a", 11)
    assert counter.stream_key("a", 1, 1) != counter.stream_key("a", 11)
    assert counter.stream_key("projection", 64, "train", 0) == 0x651DEB26460B4B20
    with pytest.raises(ValueError, match="must not contain"):
        counter.stream_key("a/b")
    with pytest.raises(TypeError, match="strings and integers"):
        counter.stream_key(True)


@pytest.mark.parametrize("size", [1, 2, 10, 60_000, 2**32 - 1])
def test_bounded(size: int) -> None:
    edge = np.array([0, 2**64 - 1], dtype=np.uint64)
    assert counter.bounded(edge, size).tolist() == [0, size - 1]
    words = counter.long_words(3, np.arange(20), 100)
    expected = [[int(w) * size >> 64 for w in row] for row in words.tolist()]
    assert counter.bounded(words, size).tolist() == expected
