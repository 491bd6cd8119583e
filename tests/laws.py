"""The law of the task sampler as checks that raise AssertionError, for the sampler and its mutants.

All use fixed seeds and tolerances of five standard errors.
"""

import numpy as np
import torch
from scipy import stats

Z = 5.0


def mean_is_zero(values: np.ndarray, std: float) -> None:
    """|mean| within five standard errors of independent values with this standard deviation."""
    error = std / np.sqrt(values.size)
    assert abs(values.mean()) < Z * error, f"mean {values.mean():.2e}, error {error:.2e}"


def projections(a: torch.Tensor) -> None:
    """Entries of A·sqrt(D) are i.i.d. N(0, 1) over entries, rows and tasks. a: [K, D, D]."""
    entries = (a.double() * a.shape[-1] ** 0.5).numpy()
    flat = entries.reshape(-1)
    assert stats.kstest(flat, "norm").pvalue > 1e-6
    assert abs(flat.var() - 1) < Z * np.sqrt(2 / flat.size)
    eye = np.eye(entries.shape[-1], dtype=bool)
    for part in (entries[:, eye], entries[:, ~eye]):  # dense: off the diagonal, too
        assert abs(part.var() - 1) < Z * np.sqrt(2 / part.size)
    tasks = entries.reshape(len(entries), -1)
    correlation = tasks @ tasks.T / tasks.shape[1]
    np.fill_diagonal(correlation, 0)
    assert abs(correlation).max() < 1.2 * Z / np.sqrt(tasks.shape[1])  # all pairs: one more sigma
    dim = entries.shape[-1]
    upper = np.triu_indices(dim, 1)
    for left, right in (
        (entries[:, :, :-1], entries[:, :, 1:]),  # neighbours in a row (Box–Muller pairs)
        (entries[:, :, :-2], entries[:, :, 2:]),
        (entries[:, :-1], entries[:, 1:]),  # rows
        (entries[:, *upper], entries.transpose(0, 2, 1)[:, *upper]),  # not symmetric
    ):
        mean_is_zero(left * right, 1.0)
        mean_is_zero((left**2 - 1) * (right**2 - 1), 2.0)


def permutations(rho: np.ndarray) -> None:
    """Permutations are uniform and independent over tasks. rho: [K, C]."""
    classes = rho.shape[1]
    assert (np.sort(rho, axis=1) == np.arange(classes)).all()
    for position in range(classes):
        counts = np.bincount(rho[:, position], minlength=classes)
        assert stats.chisquare(counts).pvalue > 1e-6
    same = (rho[1:] == rho[:-1]).mean()
    assert abs(same - 1 / classes) < Z * np.sqrt(1 / classes / (rho.size))
    # Pairs of positions: all C (C − 1) pairs equally often.
    pairs = rho[:, 0] * classes + rho[:, 1]
    counts = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    assert (np.diag(counts) == 0).all()
    assert stats.chisquare(counts[~np.eye(classes, dtype=bool)]).pvalue > 1e-6


def examples(index: np.ndarray, size: int, repeats: bool = False) -> None:
    """Examples of an episode: uniform, in random order, distinct unless ``repeats``."""
    if not repeats:
        assert all(len(set(row)) == len(row) for row in index.tolist())
    counts = np.bincount(index.ravel(), minlength=size)
    assert len(counts) == size
    assert stats.chisquare(counts).pvalue > 1e-6
    # Order: position and index are uncorrelated; neighbours are as often up as down.
    centred = index - (size - 1) / 2
    position = np.arange(index.shape[1]) - (index.shape[1] - 1) / 2
    mean_is_zero(centred * position, centred.std() * position.std())
    up = (np.diff(index[:, :2], axis=1) > 0).mean()
    equal = (np.diff(index[:, :2], axis=1) == 0).mean()
    assert abs(up + equal / 2 - 0.5) < Z * 0.5 / np.sqrt(len(index))
