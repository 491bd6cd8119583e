"""Counter-based random bits: Philox-4x32-10 with a written layout of key and counter.

Everything random in the library is a pure function of named integers, never of a generator's
running state: ``words(key, ids, n)`` gives, for every id, the first n 32-bit words of a stream
that belongs to (key, id) alone. So the same integers come out on every machine, for every batch
size and order, and no two workers can repeat each other.

Layout (golden vectors in the tests):
    key      64 bits: the first 8 bytes, little endian, of SHA-256 of the stream's name, which is
             "icl_bench" and the given parts joined by "/" (``stream_key``)
    counter  (block, 0, id mod 2^32, id div 2^32); block b gives words 4b … 4b + 3

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

import hashlib

import numpy as np
from jaxtyping import Float, Int, UInt32, UInt64

from icl_bench.tasks.constants import PHILOX_M0, PHILOX_M1, PHILOX_W0, PHILOX_W1, ROUNDS

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def stream_key(*parts: str | int) -> int:
    """64-bit key of a named stream, for instance ``stream_key("projection", 64, "train", 0)``.

    Raises:
        TypeError: If a part is neither a string nor an integer.
        ValueError: If a string contains the separator "/".
    """
    for part in parts:
        if not isinstance(part, str | int) or isinstance(part, bool):
            raise TypeError(f"stream_key takes strings and integers, not {part!r}")
        if isinstance(part, str) and "/" in part:
            raise ValueError(f'a stream name must not contain "/": {part!r}')
    name = "/".join(["icl_bench", *map(str, parts)])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def philox(
    c0: UInt64[np.ndarray, "*shape"],
    c2: UInt64[np.ndarray, "*shape"],
    c3: UInt64[np.ndarray, "*shape"],
    key: int,
) -> tuple[UInt64[np.ndarray, "*shape"], ...]:
    """Ten Philox rounds of the counters (c0, 0, c2, c3); four arrays of 32-bit words in uint64."""
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    c1 = np.zeros_like(c0)
    m0, m1 = np.uint64(PHILOX_M0), np.uint64(PHILOX_M1)
    for _ in range(ROUNDS):
        p0, p1 = c0 * m0, c2 * m1
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + PHILOX_W0) & 0xFFFFFFFF, (k1 + PHILOX_W1) & 0xFFFFFFFF
    return c0, c1, c2, c3


def words(key: int, ids: Int[np.ndarray, " B"], n: int) -> UInt32[np.ndarray, "B n"]:
    """The first n 32-bit words of the streams (key, id), one row per id; uniform on [0, 2^32)."""
    ids = np.ascontiguousarray(ids, dtype=np.int64).view(np.uint64)[:, None]
    blocks = np.arange((n + 3) // 4, dtype=np.uint64)[None, :]
    c0, c2, c3 = np.broadcast_arrays(blocks, ids & _LOW, ids >> _SHIFT)
    out = np.stack(philox(c0, c2, c3, key), axis=-1).astype(np.uint32)
    return out.reshape(len(ids), 4 * blocks.size)[:, :n]


def long_words(key: int, ids: Int[np.ndarray, " B"], n: int) -> UInt64[np.ndarray, "B n"]:
    """The first n 64-bit words (first word low, second word high), one row per id."""
    pairs = words(key, ids, 2 * n).astype(np.uint64)
    return pairs[:, 0::2] | (pairs[:, 1::2] << _SHIFT)


def bounded(
    w: UInt64[np.ndarray, "*shape"], n: int | UInt64[np.ndarray, "*#shape"]
) -> Int[np.ndarray, "*shape"]:
    """Map 64-bit words to [0, n), n < 2^32: floor(w·n / 2^64); bias below n / 2^64."""
    size = np.asarray(n, dtype=np.uint64)
    high = (w >> _SHIFT) * size + (((w & _LOW) * size) >> _SHIFT)
    return (high >> _SHIFT).astype(np.int64)


def uniforms(key: int, ids: Int[np.ndarray, " B"], n: int) -> Float[np.ndarray, "B n"]:
    """Float64 uniforms in [0, 1) with 32 random bits, one row per id."""
    return words(key, ids, n) * 2.0**-32
