"""The published estimator: its correction terms by brute force, and the defects that are reproduced on purpose."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch

from embergraph.guides.parts.published import _scales, published_corrections, published_em, published_moments
from embergraph.models.parts.errors import DataError


def tree_precision(size: int, seed: int) -> np.ndarray:
    """I + weighted adjacency of a random tree, all weights positive; eigenvalues in (.09, 1.91)."""
    A = nx.to_numpy_array(nx.barabasi_albert_graph(size, 1, seed=seed))
    degree = A.sum(0)
    return np.eye(size) + A / np.sqrt(np.outer(degree, degree)) / 1.1


def sample(n: int, p: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    row, col = tree_precision(n, seed), tree_precision(p, seed + 50)
    (lam, V), (mu, U) = np.linalg.eigh(row), np.linalg.eigh(col)
    E = np.random.default_rng(seed).normal(size=(n, p))
    return V @ ((V.T @ E @ U) / np.sqrt(lam[:, None] + mu)) @ U.T, row, col


def quotient(D: np.ndarray) -> np.ndarray:
    L = np.log(np.abs(D))
    return np.sign(D) * np.exp(L - L.mean(0) - L.mean(1, keepdims=True) + L.mean())


@pytest.mark.parametrize(("n", "p", "dropped"), [(5, 6, 10), (6, 4, 9), (5, 6, 2)])
def test_corrections_are_the_traces_of_the_definition(n: int, p: int, dropped: int) -> None:
    row, col = tree_precision(n, 1), tree_precision(p, 2)
    omega = np.kron(row, np.eye(p)) + np.kron(np.eye(n), col)
    B = np.concatenate([np.kron(np.eye(n), np.ones((p, 1))), np.kron(np.ones((n, 1)), np.eye(p))], 1)
    B = np.delete(B, dropped, 1)
    middle = np.linalg.inv(B.T @ omega @ B)

    def trace(k: int, m: int, axis: int) -> float:
        E = np.zeros((n, n) if axis == 0 else (p, p))
        E[k, m] += 1
        E[m, k] += 1
        H = np.kron(E, np.eye(p)) if axis == 0 else np.kron(np.eye(n), E)
        return np.trace(middle @ B.T @ H @ B)

    for axis, found in enumerate(published_corrections(row, col)):
        size = len(found)
        expected = np.array([[trace(k, m, axis) for m in range(size)] for k in range(size)])
        np.testing.assert_allclose(found, expected, atol=4e-15 * np.abs(expected).max())
        assert np.linalg.eigvalsh(found)[0] > 0
    assert np.trace(published_corrections(row, col)[0]) == pytest.approx(np.trace(published_corrections(row, col)[1]))


def test_moments_are_indefinite() -> None:
    Y, row, col = sample(20, 25, 3)
    s_row, s_col = _scales(Y, row, col, np.ones(20), np.ones(25))
    S_row, S_col = published_moments(s_row[:, None] * Y * s_col, row, col)
    assert np.linalg.eigvalsh(S_row)[0] < -0.1 * np.linalg.eigvalsh(S_row)[-1]
    assert np.linalg.eigvalsh(S_col)[0] < 0


def test_scales_solve_the_matrix_scaling_equation() -> None:
    Y, row, col = sample(8, 10, 4)
    s_row, s_col = _scales(Y, row, col, np.ones(8), np.ones(10))
    Z = s_row[:, None] * Y * s_col
    G = Z * (row @ Z + Z @ col)
    np.testing.assert_allclose(G.sum(1), G.sum() / 8, rtol=1e-2)
    np.testing.assert_allclose(G.sum(0), G.sum() / 10, rtol=1e-2)
    assert np.linalg.norm(s_row) == pytest.approx(1)


def test_signs_change_the_answer() -> None:
    """Flipping rows and columns of the data should flip the edges and nothing else; here it changes their size."""
    Y, _, _ = sample(7, 9, 5)
    rng = np.random.default_rng(5)
    e, f = rng.choice([-1.0, 1.0], 7), rng.choice([-1.0, 1.0], 9)
    plain = published_em(torch.tensor(quotient(Y)), max_iter=2)
    flipped = published_em(torch.tensor(quotient(e[:, None] * Y * f)), max_iter=2)
    off = ~torch.eye(7, dtype=torch.bool)
    first, second = (x.row_precision.abs()[off] for x in (plain, flipped))
    assert float((first - second).norm() / first.norm()) > 0.1


def test_invariance_result_and_settings() -> None:
    X, _, _ = sample(7, 9, 6)
    rng = np.random.default_rng(6)
    D = rng.chisquare(1, (7, 1)) * X * rng.chisquare(1, 9)
    found = published_em(torch.tensor(quotient(D)), max_iter=2)
    other = published_em(torch.tensor(quotient(X)), max_iter=2)
    torch.testing.assert_close(found.row_precision, other.row_precision, rtol=1e-4, atol=1e-4)
    assert len(found.changes) == 2
    assert not found.converged
    assert float(torch.linalg.eigvalsh(found.row_precision)[0]) > 0
    again = published_em(torch.tensor(quotient(D)), max_iter=2)
    assert torch.equal(again.col_precision, found.col_precision)
    loose = published_em(torch.tensor(quotient(D)), max_iter=2, stop_tol=1e9, regularization=0.1)
    assert loose.converged
    assert len(loose.changes) == 1


def test_it_leans_on_positive_edges() -> None:
    """With positive edges the first step finds them far above chance, as published; the design leaks the sign."""

    def precision_at_truth(score: np.ndarray, truth: np.ndarray) -> float:
        lower = np.tril_indices(len(truth), -1)
        wanted = truth[lower] != 0
        best = np.argsort(-np.abs(score[lower]))[: wanted.sum()]
        return float(wanted[best].mean())

    rates = []
    for seed in range(3):
        X, row, _ = sample(30, 40, seed)
        e, f = (np.random.default_rng(seed).choice([-1.0, 1.0], k) for k in (30, 40))
        for Y in (X, e[:, None] * X * f):
            found = published_em(torch.tensor(quotient(Y)), max_iter=1)
            rates.append(precision_at_truth(found.row_precision.numpy(), row))
    assert np.mean(rates[::2]) > 0.35
    assert np.mean(rates[::2]) - np.mean(rates[1::2]) > 0.1


@pytest.mark.parametrize("bad", [torch.full((3, 4), float("nan")), torch.zeros(3, 4), torch.ones(3)])
def test_bad_matrices(bad: torch.Tensor) -> None:
    with pytest.raises(DataError, match="Y: wanted a matrix"):
        published_em(bad)
