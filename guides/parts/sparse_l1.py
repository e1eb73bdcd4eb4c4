"""Kronecker-sum precision factors with an L1 penalty on their off-diagonals.

The bigraphical lasso (Kalaitzis et al. 2013) in the formulation of TeraLasso (Greenewald et al. 2019): minimise

    tr(Psi_row S_row) + tr(Psi_col S_col) - log det(Psi_row (+) Psi_col) + w_row |Psi_row|_1 + w_col |Psi_col|_1

with |.|_1 over off-diagonal entries. Convex. Proximal gradient steps, as published, can need thousands of iterations
from a single matrix, whose likelihood is badly conditioned; alternating directions, with the likelihood's half solved
exactly by eigenvalues, need 30 to 300. Each costs one eigendecomposition an axis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...models.parts.errors import DataError, NumericalError
from .log_normal import Pair
from .spectral import best_eigenvalues, check_moments

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["l1_weights", "sparse_precision"]

Weights = tuple[float, float]
RELAXATION = 1.6


def l1_weights(
    S_row: Float[Tensor, "n n"],
    S_col: Float[Tensor, "p p"],
    penalty: float | tuple[float, float],
    num_matrices: int = 1,
) -> Weights:
    """w_row and w_col for a penalty in standard errors.

    Off-diagonals of S_row have standard error v sqrt(p / m), and those of S_col v sqrt(n / m), if the entries of m
    matrices are independent with variance v = tr S / (n p).
    """
    n, p = S_row.shape[0], S_col.shape[0]
    row, col = penalty if isinstance(penalty, tuple) else (penalty, penalty)
    variance = float(S_row.diagonal().sum()) / (n * p)
    return row * variance * (p / num_matrices) ** 0.5, col * variance * (n / num_matrices) ** 0.5


def sparse_precision(
    S_row: Float[Tensor, "n n"],
    S_col: Float[Tensor, "p p"],
    *,
    penalty: float | tuple[float, float],
    num_matrices: int = 1,
    start: Pair | None = None,
    tolerance: float = 1e-7,
    max_steps: int = 2000,
) -> tuple[Float[Tensor, "n n"], Float[Tensor, "p p"]]:
    """Minimise the penalised objective; absent edges are exact zeros.

    Parameters
    ----------
    S_row, S_col
        Second moments E[Z Z^T] and E[Z^T Z] of equal trace, with positive diagonals; averages over matrices.
    penalty
        Positive, one or (row, column), in standard errors of an off-diagonal moment (`l1_weights`).
    num_matrices
        Matrices that were averaged.
    start
        (Psi_row, Psi_col) to start from, with lam_i + mu_j > 0.
    tolerance
        On the change of a step, where the mean diagonal is about one half.
    max_steps
        At most so many steps.

    Returns
    -------
    tuple
        Psi_row (n, n), Psi_col (p, p), symmetric, with tr(Psi_row)/n = tr(Psi_col)/p.

    Raises
    ------
    DataError
        For unusable moments, a zero on their diagonals or a penalty that is not positive.
    NumericalError
        If the steps do not settle.
    """
    n, p = check_moments(S_row, S_col)
    weights = l1_weights(S_row, S_col, penalty, num_matrices)
    if not min(weights) > 0:
        raise DataError(f"penalty: found {penalty}; wanted positive numbers")
    if not float(torch.minimum(S_row.diagonal().min(), S_col.diagonal().min())) > 0:
        raise DataError("S_row, S_col: found a zero on the diagonal; wanted positive diagonals")
    scale = float(S_row.diagonal().sum()) / (n * p)
    scaled_start = None if start is None else (start[0] * scale, start[1] * scale)
    scaled_weights = weights[0] / scale, weights[1] / scale
    row, col = _alternate(S_row / scale, S_col / scale, scaled_weights, scaled_start, tolerance, max_steps)
    least = torch.linalg.eigvalsh(row)[0] + torch.linalg.eigvalsh(col)[0]
    if not float(least) > 0:
        raise NumericalError(f"sparse_precision: found lam + mu = {float(least):.3g}; wanted a larger penalty")
    return row / scale, col / scale


def _start(S_row: Tensor, S_col: Tensor, weights: Weights, rho: float, start: Pair | None) -> tuple[Pair, Pair]:
    """Sparse factors, and multipliers (over rho) that solve the conditions there as well as their bounds allow."""
    if start is None:
        row, col = (0.5 * torch.eye(len(S), dtype=S.dtype, device=S.device) for S in (S_row, S_col))
    else:
        row, col = start
    lam, V = torch.linalg.eigh(row)
    mu, U = torch.linalg.eigh(col)
    if not float(lam[0] + mu[0]) > 0:
        raise DataError(f"start: found lam + mu = {float(lam[0] + mu[0]):.3g}; wanted positive sums")
    R = 1 / (lam[:, None] + mu)
    gradients = S_row - (V * R.sum(1)) @ V.mT, S_col - (U * R.sum(0)) @ U.mT
    multipliers = [_without_diagonal(-g).clamp(-w, w) / rho for g, w in zip(gradients, weights, strict=True)]
    return _in_gauge(row, col), (multipliers[0], multipliers[1])


def _in_gauge(row: Tensor, col: Tensor) -> Pair:
    """Symmetric, with equal mean diagonals."""
    shift = 0.5 * (col.diagonal().mean() - row.diagonal().mean())
    row, col = 0.5 * (row + row.mT), 0.5 * (col + col.mT)
    row.diagonal().add_(shift)
    col.diagonal().sub_(shift)
    return row, col


def _without_diagonal(matrix: Tensor) -> Tensor:
    return matrix - matrix.diagonal().diag()


def _soft(matrix: Tensor, threshold: float) -> Tensor:
    """Soft-threshold the off-diagonals."""
    result = matrix.sign() * (matrix.abs() - threshold).clamp_min(0.0)
    result.diagonal().copy_(matrix.diagonal())
    return result


def _alternate(
    S_row: Tensor, S_col: Tensor, weights: Weights, start: Pair | None, tolerance: float, max_steps: int
) -> Pair:
    """Alternating directions (Boyd et al. 2011): smooth factors by eigenvalues, sparse ones by soft thresholds.

    The smooth step minimises the likelihood plus (rho / 2) |Psi - A|^2 with A known: the ridge problem of `spectral`
    with moments S - rho A.
    """
    n, p = S_row.shape[0], S_col.shape[0]
    rho = (n * p) ** 0.5  # between n and p, the curvatures of the likelihood in the entries of the two factors
    sparse, multipliers = _start(S_row, S_col, weights, rho, start)
    values: Pair | None = None
    for step in range(1, max_steps + 1):
        e, V = torch.linalg.eigh(S_row - rho * (sparse[0] - multipliers[0]))
        g, U = torch.linalg.eigh(S_col - rho * (sparse[1] - multipliers[1]))
        values = best_eigenvalues(e, g, 0.5 * rho, values)
        smooth = (V * values[0]) @ V.mT, (U * values[1]) @ U.mT
        target = [
            RELAXATION * a + (1 - RELAXATION) * b + u for a, b, u in zip(smooth, sparse, multipliers, strict=True)
        ]
        new = _in_gauge(_soft(target[0], weights[0] / rho), _soft(target[1], weights[1] / rho))
        multipliers = target[0] - new[0], target[1] - new[1]
        gap, moved = _difference(smooth, new), _difference(sparse, new)
        sparse = new
        if max(gap, moved) < tolerance:
            return sparse
        if step % 10 == 0 and step <= 500:
            # Balance the two residuals, each relative to its own variable (Wohlberg 2017).
            factor = min(max((gap / _size(new) * _size(multipliers) / moved) ** 0.5, 0.1), 10.0)
            rho, multipliers = rho * factor, (multipliers[0] / factor, multipliers[1] / factor)
    raise NumericalError(f"sparse_precision: not settled in {max_steps} steps; wanted a larger penalty")


def _difference(one: Pair, other: Pair) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True)) + 1e-300


def _size(pair: Pair) -> float:
    return max(float(a.abs().max()) for a in pair) + 1e-300
