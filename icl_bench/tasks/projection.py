"""Projections A and permutations ρ of tasks, and their law.

A ∈ R^{D×D} with entries i.i.d. N(0, 1/D), ρ a uniform permutation of the classes (Kirsch et al.
2022, §3.1). Entry (i, j) of A is normal number i·D + j of the task's stream, over sqrt(D). Normals
2n and 2n + 1 come from words 2n and 2n + 1 of the stream by float32 Box–Muller (radius and angle),
cosine first. ``fresh_projection`` is the exact short cut for tasks that are used once.
"""

import functools
import itertools
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_bench.tasks import constants as k
from icl_bench.tasks import counter

# Bytes of projections held at once: tasks are made, used and dropped in groups of this size.
GROUP_BYTES = 64 * 2**20

# The same for the short cut, whose parts are small enough to stay in a CPU's cache.
FRESH_BYTES = 8 * 2**20

# Normals that tensor operations make at once: each takes about 90 bytes on the way.
PORTABLE_NORMALS = 2**19

# Up to this D a matrix costs less than a factorisation, so every task gets an explicit A.
EXPLICIT_UP_TO = 256


@functools.cache
def _kernels() -> ModuleType | None:
    """The compiled kernels, or None where numba cannot be imported."""
    try:
        from icl_bench.tasks import kernels
    except ImportError:
        return None
    return kernels


def portable_words(
    key: int, ids: Int[np.ndarray, " B"], n: int, device: torch.device, start: int = 0
) -> Int[Tensor, "B n"]:
    """``counter.words`` in int64 tensor operations, for any device; the same integers.

    ``start``, a multiple of 4, is the first word wanted.
    """
    low = 0xFFFFFFFF
    task = torch.from_numpy(np.ascontiguousarray(ids, dtype=np.int64)).to(device)[:, None]
    blocks = torch.arange(start // 4, (start + n + 3) // 4, device=device)[None, :]
    c0, c2, c3 = torch.broadcast_tensors(  # type: ignore[no-untyped-call]
        blocks, task & low, (task >> 32) & low
    )
    c1 = torch.zeros_like(c0)
    k0, k1 = key & low, key >> 32
    for _ in range(k.ROUNDS):
        p0, p1 = c0 * k.PHILOX_M0, c2 * k.PHILOX_M1  # wraps like an unsigned product
        c0, c1, c2, c3 = (
            ((p1 >> 32) & low) ^ c1 ^ k0,
            p1 & low,
            ((p0 >> 32) & low) ^ c3 ^ k1,
            p0 & low,
        )
        k0, k1 = (k0 + k.PHILOX_W0) & low, (k1 + k.PHILOX_W1) & low
    return torch.stack([c0, c1, c2, c3], dim=-1).flatten(1)[:, :n]


def portable_normals(
    key: int, ids: Int[np.ndarray, " B"], n: int, device: torch.device, start: int = 0
) -> Float[Tensor, "B n"]:
    """Standard normals start … start + n − 1 of the streams (key, id), for any device.

    In tensor operations; ``start`` is a multiple of 4. Equal to the compiled kernel up to the last
    bit of the square root. |values| < 6.8.
    """
    words = portable_words(key, ids, n + n % 2, device, start)
    u = (words[:, 0::2].to(torch.float32) + 0.5) * k.WORD
    bits = u.view(torch.int32)
    exponent = (bits - k.SQRT_HALF) >> 23
    m = (bits - (exponent << 23)).view(torch.float32) - 1.0
    p = torch.full_like(m, k.LOG[0])
    for coefficient in k.LOG[1:]:
        p = p * m + torch.tensor(coefficient, dtype=torch.float32, device=device)
    z = m * m
    log = m + (m * z * p - 0.5 * z) + exponent.to(torch.float32) * k.LN2
    radius = torch.sqrt(-2.0 * log)

    word = words[:, 1::2]
    quarter = ((word + (1 << 29)) & 0xFFFFFFFF) >> 30
    rest = word - (quarter << 30)
    rest = torch.where(rest >= 2**31, rest - 2**32, rest)  # as a signed 32-bit integer
    a = rest.to(torch.float32) * k.ANGLE
    z = a * a
    sine = a + a * z * (k.SIN[0] + z * (k.SIN[1] + z * k.SIN[2]))
    cosine = (1.0 - 0.5 * z) + z * z * (k.COS[0] + z * (k.COS[1] + z * k.COS[2]))
    swap = (quarter & 1) != 0
    first = torch.where(swap, sine, cosine) * torch.where(((quarter + 1) & 2) != 0, -1.0, 1.0)
    second = torch.where(swap, cosine, sine) * torch.where((quarter & 2) != 0, -1.0, 1.0)
    pairs = torch.stack([radius * first, radius * second], dim=-1)
    return pairs.flatten(1)[:, :n]


def normals(
    key: int,
    ids: Int[np.ndarray, " B"],
    rows: int,
    columns: int,
    *,
    copies: int = 1,
    scale: float = 1.0,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "B rows columns"]:
    """Matrices of normals N(0, scale²·copies), one per id.

    The stream of (key, id) fills a rows × (copies · columns) matrix row by row; the ``copies``
    blocks of columns are then added. So with A of D = copies·columns and x̄ = (z, …, z) made of
    copies of z, the folded matrix times z is A x̄, for a fraction of the work.
    """
    device = torch.device(device)
    kernels = _kernels()
    out = torch.empty(len(ids), rows, columns, dtype=torch.float32, device=device)
    if device.type == "cpu" and kernels is not None:
        kernels.fill_normals(out.numpy(), key, ids, copies, scale)
        return out
    width = copies * columns
    tasks = max(1, PORTABLE_NORMALS // (rows * width))
    height = max(4, PORTABLE_NORMALS // width // 4 * 4)  # each part begins a block of words
    for b, r in itertools.product(range(0, len(ids), tasks), range(0, rows, height)):
        part = out[b : b + tasks, r : r + height]
        count = part.shape[1] * width
        flat = portable_normals(key, ids[b : b + tasks], count, device, r * width)
        blocks = flat.view(*part.shape[:2], copies, columns)
        part.copy_(blocks[:, :, 0])
        for copy in range(1, copies):
            part += blocks[:, :, copy]
        part *= scale
    return out


def project(
    z: Float[Tensor, "B U P"], key: int, ids: Int[np.ndarray, " B"], copies: int = 1
) -> Float[Tensor, "B U D"]:
    """A x̄ with the explicit projection of each episode's task, D = copies · P.

    Args:
        z: Normalised inputs, one of the equal blocks of features.
        key: Stream key of the projections.
        ids: Task id of each episode. Neighbouring episodes of one task share one making of A.
        copies: Number of equal blocks in x̄.
    """
    num_episodes, _, columns = z.shape
    dim = columns * copies
    out = z.new_empty(num_episodes, z.shape[1], dim)
    per_group = max(1, GROUP_BYTES // (4 * dim * columns))
    held = np.empty(0, dtype=np.int64)
    matrices = z.new_empty(0)
    for start in range(0, num_episodes, per_group):
        part = slice(start, start + per_group)
        tasks, inverse = np.unique(ids[part], return_inverse=True)
        if not np.array_equal(tasks, held):
            matrices = normals(
                key, tasks, dim, columns, copies=copies, scale=dim**-0.5, device=z.device
            )
            held = tasks
        if dim <= EXPLICIT_UP_TO:
            each = matrices[torch.from_numpy(inverse).to(z.device)]
            torch.bmm(z[part], each.transpose(1, 2), out=out[part])
        else:  # one product per episode: large matrices are not copied
            for b, task in enumerate(inverse.tolist(), start):
                torch.mm(z[b], matrices[task].T, out=out[b])
    return out


def fresh_projection(
    z: Float[Tensor, "B U P"], key: int, ids: Int[np.ndarray, " B"], copies: int = 1
) -> Float[Tensor, "B U D"]:
    """A x̄ in law, for tasks that are used once, from U·D normals instead of D².

    The columns of X Aᵀ are i.i.d. N(0, X Xᵀ / D), so X Aᵀ = L Z with L Lᵀ = X Xᵀ / D. The Gram
    matrix is formed and factored in float64. Where rows of X depend on each other Cholesky fails
    and the symmetric square root's factor V sqrt(Λ) takes its place, exact for any rank.

    Args:
        z: Normalised inputs of *distinct* points, one of the equal blocks of features.
        key: Stream key of the normals.
        ids: Episode ids.
        copies: Number of equal blocks in x̄.
    """
    num_episodes, num_points, columns = z.shape
    dim = columns * copies
    out = z.new_empty(num_episodes, num_points, dim)
    per_group = max(1, FRESH_BYTES // (8 * num_points * (dim + columns)))
    for start in range(0, num_episodes, per_group):
        part = slice(start, start + per_group)
        exact = z[part].to(torch.float64)
        gram = exact @ exact.transpose(1, 2) * (copies / dim)
        factor, info = torch.linalg.cholesky_ex(gram)
        failed = info != 0
        if bool(failed.any()):
            values, vectors = torch.linalg.eigh(gram[failed])
            factor[failed] = vectors * values.clamp_min(0).sqrt()[:, None, :]
        draws = normals(key, ids[part], num_points, dim, device=z.device)
        torch.bmm(factor.to(torch.float32), draws, out=out[part])
    return out


def permutations(key: int, ids: Int[np.ndarray, " B"], num_classes: int) -> Int[np.ndarray, "B C"]:
    """Uniform permutations: the order of C 64-bit words, so ρ(c) = row[c]; bias below C² / 2^64."""
    return np.argsort(counter.long_words(key, ids, num_classes), axis=1, kind="stable")


def examples(
    key: int, ids: Int[np.ndarray, " B"], length: int, size: int
) -> Int[np.ndarray, "B length"]:
    """Distinct indices below ``size``, uniformly without replacement, in random order.

    The first t indices do not depend on ``length``: a longer episode begins like a shorter one.
    """
    left = np.uint64(size) - np.arange(length, dtype=np.uint64)
    steps = counter.bounded(counter.long_words(key, ids, length), left[None, :])
    out = np.empty_like(steps)
    kernels = _kernels()
    if kernels is not None:
        kernels.draw_without_replacement(steps, size, out)
    else:
        _draw_without_replacement(steps, out)
    return out


def _draw_without_replacement(steps: Int[np.ndarray, "B T"], out: Int[np.ndarray, "B T"]) -> None:
    """Partial Fisher–Yates of ``kernels.draw_without_replacement`` with a sparse table."""
    for b, row in enumerate(steps.tolist()):
        table: dict[int, int] = {}
        for t, step in enumerate(row):
            j = t + step
            out[b, t] = table.get(j, j)
            table[j] = table.get(t, t)
