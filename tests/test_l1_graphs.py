"""The L1 penalised factors: optimality conditions, exact zeros, limits and equivariances."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor

from embergraph.guides.parts.sparse_l1 import l1_weights, sparse_precision
from embergraph.guides.parts.spectral import spectral_precision
from embergraph.models.parts.errors import DataError, NumericalError


def moments(n: int, p: int, seed: int, num: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Gram matrices of matrices whose rows and columns lie on random trees, and the truth of the rows."""
    rng = np.random.default_rng(seed)
    factors = []
    for size in (n, p):
        A = nx.to_numpy_array(nx.barabasi_albert_graph(size, 1, seed=seed))
        signs = np.triu(rng.choice([-1.0, 1.0], A.shape), 1)
        A = A * (signs + signs.T)
        degree = np.abs(A).sum(0)
        factors.append(np.eye(size) + A / np.sqrt(np.outer(degree, degree)) / 1.1)
    (lam, V), (mu, U) = (np.linalg.eigh(f) for f in factors)
    Z = torch.tensor(V @ ((V.T @ rng.normal(size=(num, n, p)) @ U) / np.sqrt(lam[:, None] + mu)) @ U.T)
    return (Z @ Z.mT).mean(0), (Z.mT @ Z).mean(0), torch.tensor(factors[0])


def gradients(S_row: Tensor, S_col: Tensor, row: Tensor, col: Tensor) -> list[Tensor]:
    """Moments less the block traces of the inverse, taken from the dense np x np matrix."""
    n, p = len(row), len(col)
    omega = torch.kron(row, torch.eye(p).double()) + torch.kron(torch.eye(n).double(), col)
    inverse = torch.linalg.inv(omega).reshape(n, p, n, p)
    return [S_row - torch.einsum("ijkj->ik", inverse), S_col - torch.einsum("ijil->jl", inverse)]


@pytest.mark.parametrize("num", [1, 4])
@pytest.mark.parametrize("penalty", [0.5, (1.0, 2.0), 3.0])
@pytest.mark.parametrize(("n", "p"), [(6, 9), (15, 12)])
def test_optimality_conditions(n: int, p: int, penalty: float | tuple[float, float], num: int) -> None:
    S_row, S_col, _ = moments(n, p, 1, num)
    found = sparse_precision(S_row, S_col, penalty=penalty, num_matrices=num)
    weights = l1_weights(S_row, S_col, penalty, num)
    for psi, gradient, weight in zip(found, gradients(S_row, S_col, *found), weights, strict=True):
        off = ~torch.eye(len(psi), dtype=torch.bool)
        zero, edge = off & (psi == 0), off & (psi != 0)
        assert float(gradient.diagonal().abs().max()) < 1e-4 * weight
        assert float((gradient + weight * psi.sign())[edge].abs().sum()) <= 1e-4 * weight * int(edge.sum())
        assert float(gradient[zero].abs().max()) < weight * (1 + 1e-5)
        assert int(zero.sum()) > 0
        torch.testing.assert_close(psi, psi.mT, rtol=0, atol=0)
    assert float(found[0].trace() / n) == pytest.approx(float(found[1].trace() / p), rel=1e-12)
    least = torch.linalg.eigvalsh(found[0])[0] + torch.linalg.eigvalsh(found[1])[0]
    assert float(least) > 0


def test_limits_of_the_penalty() -> None:
    S_row, S_col, _ = moments(8, 10, 2, 20)
    tiny = sparse_precision(S_row, S_col, penalty=1e-6, num_matrices=20)
    plain = spectral_precision(S_row, S_col)
    torch.testing.assert_close(tiny[0], plain.row_precision, rtol=0, atol=1e-5)
    huge = sparse_precision(S_row, S_col, penalty=100.0)
    assert all(int((psi != 0).sum()) == len(psi) for psi in huge)
    again = sparse_precision(S_row, S_col, penalty=1.0)
    counts = [int((sparse_precision(S_row, S_col, penalty=x)[0] != 0).sum()) for x in (0.5, 1.0, 2.0)]
    assert counts[0] > counts[1] > counts[2] >= 8
    assert int((again[0] != 0).sum()) == counts[1]


def test_equivariance_and_start() -> None:
    S_row, S_col, _ = moments(8, 11, 3)
    found = sparse_precision(S_row, S_col, penalty=1.5)
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(8, generator=generator)
    signs = torch.randint(0, 2, (11,), generator=generator).double() * 2 - 1
    moved = sparse_precision(S_row[order][:, order], signs[:, None] * S_col * signs, penalty=1.5)
    torch.testing.assert_close(moved[0], found[0][order][:, order], rtol=0, atol=1e-8)
    torch.testing.assert_close(moved[1], signs[:, None] * found[1] * signs, rtol=0, atol=1e-8)
    swapped = sparse_precision(S_col, S_row, penalty=1.5)
    torch.testing.assert_close(swapped[1], found[0], rtol=0, atol=1e-8)
    scaled = sparse_precision(1e6 * S_row, 1e6 * S_col, penalty=1.5)
    torch.testing.assert_close(1e6 * scaled[0], found[0], rtol=0, atol=1e-8)
    warm = sparse_precision(S_row, S_col, penalty=1.5, start=sparse_precision(S_row, S_col, penalty=2.0))
    torch.testing.assert_close(warm[0], found[0], rtol=0, atol=1e-5)
    assert torch.equal(warm[0] == 0, found[0] == 0)


@pytest.mark.parametrize("seed", range(3))
def test_edges_are_found_from_many_matrices(seed: int) -> None:
    S_row, S_col, truth = moments(20, 30, seed, 60)
    found, _ = sparse_precision(S_row, S_col, penalty=3.0, num_matrices=60)
    off = ~torch.eye(20, dtype=torch.bool)
    true, chosen = truth[off] != 0, found[off] != 0
    assert float(chosen[true].double().mean()) > 0.95
    assert float(chosen[~true].double().mean()) < 0.05
    assert bool((found[off][true & chosen].sign() == truth[off][true & chosen].sign()).all())


def test_bad_input() -> None:
    S_row, S_col, _ = moments(5, 6, 4)
    with pytest.raises(DataError, match="penalty: found 0"):
        sparse_precision(S_row, S_col, penalty=0.0)
    with pytest.raises(DataError, match="traces"):
        sparse_precision(2 * S_row, S_col, penalty=1.0)
    with pytest.raises(DataError, match="start: found lam"):
        sparse_precision(S_row, S_col, penalty=1.0, start=(-torch.eye(5).double(), torch.eye(6).double()))
    with pytest.raises(NumericalError, match="not settled in 3 steps"):
        sparse_precision(S_row, S_col, penalty=1.0, max_steps=3)
    S_row[0], S_row[:, 0] = 0, 0
    with pytest.raises(DataError, match="zero on the diagonal"):
        sparse_precision(S_row * (S_col.trace() / S_row.trace()), S_col, penalty=1.0)
