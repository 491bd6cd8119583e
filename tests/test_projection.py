"""Projections, permutations and examples have the law that the paper states; mutants do not."""

from collections.abc import Callable

import laws
import numpy as np
import pytest
import torch
from scipy import stats

from icl_bench.tasks import kernels, projection

CPU = torch.device("cpu")
IDS = np.arange(60)
D = 64


def matrices(ids: np.ndarray = IDS, dim: int = D) -> torch.Tensor:
    return projection.normals(11, ids, dim, dim, scale=dim**-0.5)


def test_law_of_projections() -> None:
    laws.projections(matrices())


def diagonal(a: torch.Tensor) -> torch.Tensor:
    return torch.diag_embed(torch.diagonal(a, dim1=1, dim2=2)) * D**0.5


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(lambda a: a / (2 * D**0.5), id="variance (1/N)·1/2, as published"),
        pytest.param(lambda a: a * 2**-0.5, id="variance 1/(2D)"),
        pytest.param(lambda a: a * 1.01, id="one per cent too large"),
        pytest.param(diagonal, id="diagonal"),
        pytest.param(lambda a: a[:1].expand_as(a), id="one A per batch"),
        pytest.param(lambda a: torch.cat([a[:30], a[:30]]).roll(1, 0), id="half of the tasks"),
        pytest.param(lambda a: a.round(decimals=1), id="rounded"),
        pytest.param(lambda a: (a + a.transpose(1, 2)) * 2**-0.5, id="symmetric"),
        pytest.param(lambda a: torch.sign(a) * D**-0.5, id="signs"),
        pytest.param(lambda a: a.repeat_interleave(2, 1)[:, :D], id="rows twice"),
        pytest.param(lambda a: torch.rand_like(a) * (12 / D) ** 0.5, id="uniform"),
    ],
)
def test_mutants_of_the_projection_are_rejected(
    mutant: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    with pytest.raises(AssertionError):
        laws.projections(mutant(matrices()))


def test_tails() -> None:
    """Box–Muller with 32-bit radii reaches beyond 5 sigma, as often as a normal does."""
    values = projection.normals(3, np.arange(8), 1000, 1000).numpy().ravel()
    assert 5 < abs(values).max() < 6.8
    beyond = (abs(values) > 4).sum()
    expected = values.size * 2 * stats.norm.sf(4)
    assert abs(beyond - expected) < 5 * expected**0.5


def test_portable_normals_equal_compiled() -> None:
    compiled = projection.normals(2**63 + 5, IDS, 7, 9, scale=0.5)
    portable = projection.portable_normals(2**63 + 5, IDS, 63, CPU).view(-1, 7, 9) * 0.5
    assert (compiled - portable).abs().max() < 1e-6


def test_portable_path_of_every_function(monkeypatch: pytest.MonkeyPatch) -> None:
    z = projection.normals(1, IDS[:4], 5, 16)
    arguments = ((z, 3, IDS[:4], 3), (z, 4, IDS[:4], 1))
    expected = [projection.project(*a) for a in arguments]
    drawn = projection.examples(5, IDS, 20, 30)
    monkeypatch.setattr(projection, "_kernels", lambda: None)
    for a, e in zip(arguments, expected, strict=True):
        assert torch.allclose(projection.project(*a), e, atol=1e-5)
    assert (projection.examples(5, IDS, 20, 30) == drawn).all()


def test_golden_normals() -> None:
    """Box–Muller of the golden words, in float64 by NumPy."""
    from icl_bench.tasks import counter

    words = counter.words(42, np.array([3]), 8)[0].astype(np.float64)
    radius = np.sqrt(-2 * np.log((words[0::2] + 0.5) / 2**32))
    angle = 2 * np.pi * words[1::2] / 2**32
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()
    got = projection.normals(42, np.array([3]), 2, 4)[0].numpy().ravel()
    assert np.allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("rows", "columns", "copies"), [(64, 64, 1), (5, 7, 3), (301, 100, 3)])
def test_same_floats_for_every_thread_count_and_batch(
    threads: int, rows: int, columns: int, copies: int
) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        together = projection.normals(8, IDS[:3], rows, columns, copies=copies)
    finally:
        torch.set_num_threads(before)
    flat = projection.portable_normals(8, IDS[:3], rows * columns * copies, CPU)
    folded = flat.view(3, rows, copies, columns).sum(2)
    assert torch.allclose(together, folded, atol=3e-6)
    for b in range(3):
        alone = projection.normals(8, IDS[b : b + 1], rows, columns, copies=copies)
        assert torch.equal(alone[0], together[b])


def test_folding_is_the_product_with_copies() -> None:
    z = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    a = projection.normals(3, IDS[:2], 48, 48, scale=48**-0.5)
    expected = torch.bmm(z.tile(1, 1, 3), a.transpose(1, 2))
    assert torch.allclose(projection.project(z, 3, IDS[:2], 3), expected, atol=1e-5)


@pytest.mark.parametrize("dim", [16, 300])
def test_project_in_groups(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared tasks, any order, and groups smaller than the batch give each episode its own A."""
    z = torch.randn(7, 5, dim, generator=torch.Generator().manual_seed(0))
    ids = np.array([4, 4, 9, 4, 2**40, 0, 9])
    a = projection.normals(3, ids, dim, dim, scale=dim**-0.5)
    expected = torch.bmm(z, a.transpose(1, 2))
    for size in (1, 3 * 4 * dim * dim, 2**26):
        monkeypatch.setattr(projection, "GROUP_BYTES", size)
        assert torch.allclose(projection.project(z, 3, ids), expected, atol=1e-5)


def points(rank: int | None = None, dim: int = 32, count: int = 12) -> torch.Tensor:
    x = torch.randn(count, dim, generator=torch.Generator().manual_seed(1)).abs()
    return x if rank is None else x[:, :rank] @ torch.ones(rank, dim).tril()


@pytest.mark.parametrize("kind", ["points", "repeated", "more points than features"])
def test_short_cut_has_the_law_of_explicit_projections(kind: str) -> None:
    """First and second moments, and the distribution of inner products, over 6,000 tasks."""
    x = points(dim=8, count=12) if kind == "more points than features" else points()
    if kind == "repeated":
        x = x[[0, 1, 2, 0, 1, 3, 4, 5, 6, 6, 7, 8]]
    tasks = np.arange(6000)
    z = x.expand(len(tasks), *x.shape)
    outputs = [projection.fresh_projection(z, 5, tasks), projection.project(z, 6, tasks)]
    gram = (x @ x.T).double()
    for out in outputs:
        flat = out.double()
        size = len(tasks) * flat.shape[-1]
        mean = flat.mean(dim=(0, 2))
        std = (gram.diagonal() / x.shape[1]).sqrt()
        assert (mean.abs() < 5 * std / size**0.5).all()
        second = torch.einsum("bud,bvd->uv", flat, flat) / len(tasks)
        # Var of a sum of D products of N(0, g_uu/D) and N(0, g_vv/D): (g_uu g_vv + g_uv²)/D.
        norm = gram.diagonal()[:, None] * gram.diagonal()[None, :] + gram**2
        error = (norm / x.shape[1] / len(tasks)).sqrt()
        assert ((second - gram).abs() < 5 * error).all()
    short, explicit = (o.double() for o in outputs)
    for u, v in ((0, 1), (2, 2), (3, 7)):
        left = (short[:, u] * short[:, v]).sum(-1)
        right = (explicit[:, u] * explicit[:, v]).sum(-1)
        assert stats.ks_2samp(left, right).pvalue > 1e-6
    assert stats.ks_2samp(short[:, 0].ravel(), explicit[:, 0].ravel()).pvalue > 1e-6


def test_short_cut_keeps_copies_of_a_point_together() -> None:
    x = points()[[0, 0, 1, 0]].expand(3, 4, 32)
    out = projection.fresh_projection(x, 5, IDS[:3])
    assert torch.allclose(out[:, 0], out[:, 1], atol=1e-5)
    assert torch.allclose(out[:, 0], out[:, 3], atol=1e-5)
    assert not torch.allclose(out[:, 0], out[:, 2], atol=0.1)


@pytest.mark.parametrize("copies", [1, 3])
def test_short_cut_of_copies_has_the_scale_of_the_whole_input(copies: int) -> None:
    """E of the Gram matrix of A x̄ is that of x̄, made of equal blocks; mutant: that of a block."""
    z = points()
    dim = 32 * copies
    out = projection.fresh_projection(z.expand(4000, 12, 32), 5, np.arange(4000), copies).double()
    found = (out @ out.transpose(1, 2)).mean(dim=0)
    gram = copies * (z.double() @ z.double().T)
    norm = gram.diagonal()[:, None] * gram.diagonal()[None, :] + gram**2
    error = (norm / dim / 4000).sqrt()
    assert ((found - gram).abs() < 5 * error).all()
    if copies > 1:
        assert not ((found - gram / copies).abs() < 5 * error).all()


def test_portable_parts_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few normals are made at once, the matrices are the same."""
    monkeypatch.setattr(projection, "_kernels", lambda: None)
    whole = projection.normals(7, IDS[:5], 30, 20, copies=3, scale=0.5)
    for at_once in (1, 500, 4000):
        monkeypatch.setattr(projection, "PORTABLE_NORMALS", at_once)
        assert torch.equal(projection.normals(7, IDS[:5], 30, 20, copies=3, scale=0.5), whole)


def test_short_cut_with_a_jitter_would_be_rejected() -> None:
    """A mutant: with a jitter on the diagonal copies of a point differ."""
    x = points()[[0, 0]].double()
    gram = x @ x.T / 32 + 1e-3 * torch.eye(2, dtype=torch.float64)
    out = torch.linalg.cholesky(gram).float() @ projection.normals(5, IDS[:1], 2, 32)
    assert not torch.allclose(out[:, 0], out[:, 1], atol=1e-5)


def test_short_cut_is_pure() -> None:
    z = points().expand(9, 12, 32)
    ids = np.arange(9) * 1000
    together = projection.fresh_projection(z, 5, ids)
    for b in range(9):
        alone = projection.fresh_projection(z[b : b + 1], 5, ids[b : b + 1])
        assert torch.allclose(alone[0], together[b], atol=1e-5)


def rho(classes: int = 10) -> np.ndarray:
    return projection.permutations(21, np.arange(20_000), classes)


@pytest.mark.parametrize("classes", [2, 3, 10, 26])
def test_permutations_are_uniform(classes: int) -> None:
    laws.permutations(rho(classes))


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(lambda r: np.broadcast_to(r[0], r.shape), id="one permutation per batch"),
        pytest.param(lambda r: np.repeat(r[:10_000], 2, axis=0), id="one for two tasks"),
        pytest.param(lambda r: (np.arange(10) + r[:, :1]) % 10, id="rotations only"),
        pytest.param(lambda r: np.where(r[:, :1] == 0, r, np.arange(10)), id="bias"),
        pytest.param(lambda r: np.sort(r, axis=1), id="identity"),
    ],
)
def test_mutants_of_permutations_are_rejected(
    mutant: Callable[[np.ndarray], np.ndarray],
) -> None:
    with pytest.raises(AssertionError):
        laws.permutations(mutant(rho()))


def test_examples_are_uniform_without_replacement() -> None:
    laws.examples(projection.examples(4, np.arange(20_000), 10, 37), 37)
    everything = projection.examples(4, np.arange(100), 37, 37)
    assert (np.sort(everything, axis=1) == np.arange(37)).all()


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(lambda e: np.sort(e, axis=1), id="unshuffled"),
        pytest.param(lambda e: np.minimum(e, 35), id="repeats the last"),
        pytest.param(lambda e: np.tile(e[:, :5], 2), id="repeats"),
        pytest.param(lambda e: e // 2, id="first half of the data"),
    ],
)
def test_mutants_of_examples_are_rejected(mutant: Callable[[np.ndarray], np.ndarray]) -> None:
    with pytest.raises(AssertionError):
        laws.examples(mutant(projection.examples(4, np.arange(20_000), 10, 37)), 37)


def test_longer_episodes_begin_like_shorter_ones() -> None:
    longer = projection.examples(4, IDS, 30, 500)
    assert (projection.examples(4, IDS, 10, 500) == longer[:, :10]).all()


def test_kernels_work_in_threads_and_after_a_fork() -> None:
    import multiprocessing
    from concurrent.futures import ThreadPoolExecutor

    expected = matrices()
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: matrices(), range(8)):
            assert torch.equal(got, expected)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_checksum) == _checksum()
    assert kernels._pool.cache_info().currsize >= 1


def _checksum() -> float:
    return float(matrices().double().sum())
