"""Compiled CPU kernels: Philox normals straight into (folded) projection matrices.

Imported lazily, because numba takes a third of a second to import. The loops are split into
passes over small buffers so that the compiler vectorises each of them; without fused multiply-add
every operation is rounded as IEEE 754 says, so the floats are the same on every CPU.

The kernels release the GIL and are run by a pool of ``torch.get_num_threads()`` Python threads:
numba's own parallel back ends are not safe to call from several threads at once.
"""

import functools
import inspect
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba as nb
import numpy as np
import torch
from numba import float32, int32, uint32, uint64

from icl_bench.tasks import constants as k

# Normals per work item: the buffers of one item stay in a core's first cache.
_CHUNK = 2048


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile without the GIL; cached on disk where any cache folder is writable."""
    function = inspect.unwrap(function)  # the tests' type checker wraps every function
    try:
        compiled: Callable[..., Any] = nb.njit(function, nogil=True, cache=True)
    except RuntimeError:
        compiled = nb.njit(function, nogil=True)
    return compiled


@_compile
def _words(buffer, first, count, id_low, id_high, key_low, key_high):  # type: ignore[no-untyped-def]
    """Blocks first … first + count − 1 of one stream; word j of block b at buffer[j, b]."""
    for b in range(count):
        c0, c1, c2, c3 = uint32(first + b), uint32(0), id_low, id_high
        k0, k1 = key_low, key_high
        for _ in range(k.ROUNDS):
            p0 = uint64(c0) * uint64(k.PHILOX_M0)
            p1 = uint64(c2) * uint64(k.PHILOX_M1)
            c0, c1, c2, c3 = (
                uint32(uint32(p1 >> uint64(32)) ^ c1 ^ k0),
                uint32(p1),
                uint32(uint32(p0 >> uint64(32)) ^ c3 ^ k1),
                uint32(p0),
            )
            k0 = uint32(k0 + uint32(k.PHILOX_W0))
            k1 = uint32(k1 + uint32(k.PHILOX_W1))
        buffer[0, b], buffer[1, b], buffer[2, b], buffer[3, b] = c0, c1, c2, c3


@_compile
def _normals(words, normals, count):  # type: ignore[no-untyped-def]
    """Box–Muller of the word pairs (0, 1) and (2, 3); see ``projection.portable_normals``."""
    for half in range(2):
        for b in range(count):
            u = (float32(words[2 * half, b]) + float32(0.5)) * float32(k.WORD)
            bits = np.float32(u).view(np.int32)
            exponent = int32(int32(bits - int32(k.SQRT_HALF)) >> int32(23))
            m = np.int32(bits - int32(exponent << int32(23))).view(np.float32) - float32(1)
            p = float32(k.LOG[0])
            for c in k.LOG[1:]:
                p = p * m + float32(c)
            z = m * m
            log = m + (m * z * p - float32(0.5) * z) + float32(exponent) * float32(k.LN2)
            radius = np.sqrt(float32(-2) * log)

            word = words[2 * half + 1, b]
            quarter = uint32(uint32(word + uint32(1 << 29)) >> uint32(30))
            rest = int32(uint32(word - uint32(quarter << uint32(30))))
            a = float32(rest) * float32(k.ANGLE)
            z = a * a
            s = a + a * z * (float32(k.SIN[0]) + z * (float32(k.SIN[1]) + z * float32(k.SIN[2])))
            c = (float32(1) - float32(0.5) * z) + z * z * (
                float32(k.COS[0]) + z * (float32(k.COS[1]) + z * float32(k.COS[2]))
            )
            swap = (quarter & uint32(1)) != 0
            cosine = s if swap else c
            sine = c if swap else s
            if ((quarter + uint32(1)) & uint32(2)) != 0:
                cosine = -cosine
            if (quarter & uint32(2)) != 0:
                sine = -sine
            normals[2 * half, b] = radius * cosine
            normals[2 * half + 1, b] = radius * sine


@_compile
def _fill(out, begin, end, per_item, copies, scale, ids, key_low, key_high):  # type: ignore[no-untyped-def]
    """Work items begin … end − 1, each ``per_item`` rows of one matrix of out [B, R, P]."""
    rows, columns = out.shape[1], out.shape[2]
    width = columns * copies
    per_matrix = (rows + per_item - 1) // per_item
    most = (width * per_item + 3) // 4 + 1
    words = np.empty((4, most), np.uint32)
    normals = np.empty((4, most), np.float32)
    flat = np.empty(4 * most, np.float32)
    for item in range(begin, end):
        matrix = item // per_matrix
        start = (item - matrix * per_matrix) * per_item
        stop = min(rows, start + per_item)
        first = start * width // 4
        count = (stop * width + 3) // 4 - first
        id_low = uint32(ids[matrix] & uint64(0xFFFFFFFF))
        id_high = uint32(ids[matrix] >> uint64(32))
        _words(words, first, count, id_low, id_high, key_low, key_high)
        _normals(words, normals, count)
        for b in range(count):
            flat[4 * b] = normals[0, b]
            flat[4 * b + 1] = normals[1, b]
            flat[4 * b + 2] = normals[2, b]
            flat[4 * b + 3] = normals[3, b]
        for row in range(start, stop):
            offset = row * width - 4 * first
            target = out[matrix, row]
            for j in range(columns):
                target[j] = flat[offset + j]
            for copy in range(1, copies):
                for j in range(columns):
                    target[j] += flat[offset + copy * columns + j]
            for j in range(columns):
                target[j] *= scale


@_compile
def draw_without_replacement(steps, size, out):  # type: ignore[no-untyped-def]
    """Partial Fisher–Yates: row b of ``out`` holds distinct integers below ``size``.

    ``steps[b, t]`` is uniform on [0, size − t). The table of positions is put back after each
    row, so a row costs its length, not ``size``.
    """
    table = np.arange(size)
    length = steps.shape[1]
    for b in range(steps.shape[0]):
        for t in range(length):
            j = t + steps[b, t]
            out[b, t] = table[j]
            table[j] = table[t]
            table[t] = out[b, t]
        for t in range(length - 1, -1, -1):
            j = t + steps[b, t]
            table[t] = table[j]
            table[j] = out[b, t]


@functools.lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    # Keyed by process: the threads of a pool do not survive a fork.
    return ThreadPoolExecutor(threads, thread_name_prefix="icl_bench")


def fill_normals(
    out: np.ndarray, key: int, ids: np.ndarray, copies: int = 1, scale: float = 1.0
) -> None:
    """Fill out [B, R, P] with the normals of the streams (key, id), as ``projection`` defines."""
    rows, columns = out.shape[1:]
    per_item = max(1, _CHUNK // (columns * copies))
    total = len(out) * -(-rows // per_item)
    ids = np.ascontiguousarray(ids, dtype=np.int64).view(np.uint64)
    key_low, key_high = np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32)

    def run(begin: int, end: int) -> None:
        _fill(out, begin, end, per_item, copies, np.float32(scale), ids, key_low, key_high)

    threads = min(torch.get_num_threads(), total)
    if threads <= 1:
        run(0, total)
        return
    bounds = [total * i // threads for i in range(threads + 1)]
    list(_pool(os.getpid(), threads).map(run, bounds[:-1], bounds[1:]))
