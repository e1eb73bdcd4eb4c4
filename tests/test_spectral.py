"""The spectral maximisation against dense algebra, its equivariances, and the choice of shrinkage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from tree_matrices import tree_precision

from embergraph.guides.parts.spectral import automatic_shrink, best_eigenvalues, spectral_precision
from embergraph.models.parts.errors import DataError, NumericalError


def matrix(n: int, p: int, seed: int, num: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, n, p, generator=generator, dtype=torch.float64)


def grams(Z: Tensor) -> tuple[Tensor, Tensor]:
    return (Z @ Z.mT).mean(0), (Z.mT @ Z).mean(0)


def dense(row: Tensor, col: Tensor) -> Tensor:
    I_n, I_p = (torch.eye(len(m), dtype=m.dtype) for m in (row, col))
    return torch.kron(row, I_p) + torch.kron(I_n, col)


def block_traces(row: Tensor, col: Tensor) -> tuple[Tensor, Tensor]:
    """E[Z Z^T] and E[Z^T Z] under the precision, from the np x np inverse."""
    n, p = len(row), len(col)
    inverse = torch.linalg.inv(dense(row, col)).reshape(n, p, n, p)
    return torch.einsum("ijkj->ik", inverse), torch.einsum("ijil->jl", inverse)


def shrunk(S: Tensor, rho: float) -> Tensor:
    return (1 - rho) * S + rho * S.trace() / len(S) * torch.eye(len(S), dtype=S.dtype)


@pytest.mark.parametrize(("n", "p", "rho"), [(4, 6, 0.2), (7, 3, 0.7), (6, 6, 0.01)])
def test_gradient_vanishes_at_the_answer(n: int, p: int, rho: float) -> None:
    S_row, S_col = grams(matrix(n, p, 1))
    found = spectral_precision(S_row, S_col, shrink=rho)
    M_row, M_col = block_traces(found.row_precision, found.col_precision)
    torch.testing.assert_close(M_row, shrunk(S_row, rho), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(M_col, shrunk(S_col, rho), rtol=1e-9, atol=1e-9)
    log_det = torch.linalg.slogdet(dense(found.row_precision, found.col_precision)).logabsdet
    torch.testing.assert_close(found.log_det, log_det)
    off = spectral_precision(S_row, S_col, shrink=rho + 0.1)  # a wrong shrinkage is noticed
    assert float((block_traces(off.row_precision, off.col_precision)[0] - shrunk(S_row, rho)).abs().max()) > 1e-2


@pytest.mark.parametrize("ridge", [0.1, 10.0])
@pytest.mark.parametrize("num", [1, 3])
def test_ridge_minimises_over_the_trace_gauge(ridge: float, num: int) -> None:
    n, p = 4, 6
    S_row, S_col = grams(matrix(n, p, 2, num))
    found = spectral_precision(S_row, S_col, ridge=ridge, num_matrices=num)

    def objective(row: Tensor, col: Tensor) -> float:
        shift = 0.5 * (col.trace() / p - row.trace() / n)
        row, col = row + shift * torch.eye(n), col - shift * torch.eye(p)
        factor, info = torch.linalg.cholesky_ex(dense(row, col))
        if info:
            return np.inf
        fit = (row * S_row).sum() + (col * S_col).sum() - 2 * factor.diagonal().log().sum()
        return float(num * fit + ridge * (row.square().sum() + col.square().sum()))

    best = objective(found.row_precision, found.col_precision)
    generator = torch.Generator().manual_seed(0)
    for size in (1e-1, 1e-3):
        for _ in range(20):
            E_row, E_col = (size * torch.randn(k, k, generator=generator, dtype=torch.float64) for k in (n, p))
            change = objective(found.row_precision + E_row + E_row.mT, found.col_precision + E_col + E_col.mT) - best
            assert change > 0


@pytest.mark.parametrize(("n", "p"), [(5, 8), (40, 30)])
@pytest.mark.parametrize("options", [{"shrink": (0.3, 0.6)}, {"ridge": 2.0}, {"shrink": 0.05, "ridge": 0.1}])
def test_stationarity_and_gauge(n: int, p: int, options: dict) -> None:
    S_row, S_col = grams(matrix(n, p, 3))
    found = spectral_precision(S_row, S_col, **options)
    rho = options.get("shrink", 0.0)
    rho = rho if isinstance(rho, tuple) else (rho, rho)
    total = (found.row_precision * shrunk(S_row, rho[0])).sum() + (found.col_precision * shrunk(S_col, rho[1])).sum()
    total += 2 * options.get("ridge", 0.0) * (found.row_values.square().sum() + found.col_values.square().sum())
    assert float(total) == pytest.approx(n * p, rel=1e-12)
    assert float(found.row_values.mean()) == pytest.approx(float(found.col_values.mean()), rel=1e-12)
    assert float(found.row_values.min() + found.col_values.min()) > 0


@pytest.mark.parametrize(("n", "p"), [(5, 7), (20, 30)])
def test_exact_moments_give_the_truth_back(n: int, p: int) -> None:
    row, col = tree_precision(n, 1), tree_precision(p, 2)
    found = spectral_precision(*block_traces(row, col))
    torch.testing.assert_close(found.row_precision, row, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.col_precision, col, rtol=0, atol=1e-10)


def test_equivariances() -> None:
    n, p = 12, 9
    generator = torch.Generator().manual_seed(4)
    Z = matrix(n, p, 4)
    options = {"shrink": (0.4, 0.5), "ridge": 0.3}
    S_row, S_col = grams(Z)
    found = spectral_precision(S_row, S_col, **options)
    order = torch.randperm(n, generator=generator)
    signs = torch.randint(0, 2, (p,), generator=generator).double() * 2 - 1
    moved = spectral_precision(S_row[order][:, order], signs[:, None] * S_col * signs, **options)
    torch.testing.assert_close(moved.row_precision, found.row_precision[order][:, order], rtol=0, atol=1e-12)
    torch.testing.assert_close(moved.col_precision, signs[:, None] * found.col_precision * signs, rtol=0, atol=1e-12)
    swapped = spectral_precision(S_col, S_row, shrink=(0.5, 0.4), ridge=0.3)
    torch.testing.assert_close(swapped.row_precision, found.col_precision, rtol=0, atol=1e-12)
    scaled = spectral_precision(S_row * 1e150, S_col * 1e150, shrink=0.4)
    torch.testing.assert_close(1e150 * scaled.row_precision, spectral_precision(S_row, S_col, shrink=0.4).row_precision)


@pytest.mark.parametrize("spread", [0, 3, 6])
def test_eigenvalues_over_many_orders_of_magnitude(spread: int) -> None:
    generator = torch.Generator().manual_seed(5)
    lam, mu = (10 ** (-spread * torch.rand(k, generator=generator, dtype=torch.float64)) for k in (30, 50))
    lam, mu = lam.sort(descending=True).values, mu.sort(descending=True).values
    R = 1 / (lam[:, None] + mu)
    got = best_eigenvalues(R.sum(1), R.sum(0), 0.0)
    torch.testing.assert_close(got[0][:, None] + got[1], lam[:, None] + mu, rtol=1e-7, atol=0)


def test_warm_start_changes_nothing() -> None:
    S_row, S_col = grams(matrix(15, 20, 6))
    cold = spectral_precision(S_row, S_col, shrink=0.3)
    start = spectral_precision(*grams(matrix(15, 20, 7)), shrink=0.9)
    warm = spectral_precision(S_row, S_col, shrink=0.3, start=start)
    torch.testing.assert_close(warm.row_precision, cold.row_precision, rtol=0, atol=1e-12)


def test_where_there_is_no_minimum() -> None:
    S_row, S_col = grams(matrix(6, 9, 8))
    with pytest.raises(NumericalError, match=r"S_col: found 3 of 9 eigenvalues.*shrink"):
        spectral_precision(S_row, S_col)
    indefinite = S_row - 2 * torch.linalg.eigvalsh(S_row)[0] * torch.eye(6)
    scaled = S_col * (indefinite.trace() / S_col.trace())
    with pytest.raises(NumericalError, match="S_row: found 1 of 6"):
        spectral_precision(indefinite, scaled)
    assert bool(spectral_precision(indefinite, scaled, ridge=0.1).row_precision.isfinite().all())
    flat = spectral_precision(S_row, S_col, shrink=1.0)
    expected = 0.5 * 54 / float(S_row.trace()) * torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(flat.row_precision, expected)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda S, T: (S * 1.001, T, {}), "traces"),
        (lambda S, T: (S[:3], T, {}), "S_row: found shape"),
        (lambda S, T: (S, T * float("nan"), {}), "S_col: found NaN"),
        (lambda S, T: (S * 0, T * 0, {}), "trace 0"),
        (lambda S, T: (S, T, {"shrink": 1.5}), "shrink"),
        (lambda S, T: (S, T, {"ridge": -1.0}), "ridge"),
    ],
)
def test_bad_input(change, match: str) -> None:
    S_row, S_col, options = change(*grams(matrix(5, 5, 9)))
    with pytest.raises(DataError, match=match):
        spectral_precision(S_row, S_col, **options)


def test_automatic_shrink_follows_the_information() -> None:
    row, col = tree_precision(30, 1), tree_precision(40, 2)
    lam, V = torch.linalg.eigh(row)
    mu, U = torch.linalg.eigh(col)
    E = matrix(30, 40, 10, 40)
    X = V @ ((V.mT @ E @ U) / (lam[:, None] + mu).sqrt()) @ U.mT
    rho = [automatic_shrink(X[:m])[0] for m in (1, 5, 40)]
    assert 1 > rho[0] > rho[1] > rho[2] > 0.05
    assert rho[0] > 0.9
    assert automatic_shrink(E[:5])[0] > 0.98  # nothing to be found
    assert automatic_shrink(1e3 * X[0])[0] == pytest.approx(rho[0])
    assert automatic_shrink(X[0].mT)[0] == pytest.approx(rho[0])
    assert len(set(automatic_shrink(X))) == 1
