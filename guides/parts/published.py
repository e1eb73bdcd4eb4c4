"""The MED-MAGMA estimator as its authors published it, for reproduction and comparison of speed.

Use the guide's own estimator for data. Three defects of the published expectation are kept here on purpose:

1. The second-order term of a Laplace expansion of E[Z Z^T] is plus C / 2; it enters with a minus.
2. The tangent directions of the fiber are taken at the matrix of ones in place of Z, and the Jacobian of the
   log scales is left out. The result changes when a row or column of the data changes sign, which it must not.
3. The scales are divided by their Euclidean norm, so that Z Z^T and C are on different scales.

In consequence the moment matrices can be indefinite; the objective of the maximisation then has no minimum, and what is
returned is set by the bounds on the eigenvalues and the number of iterations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import LinearConstraint, minimize
from torch import Tensor

from ...models.parts.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["PublishedResult", "published_corrections", "published_em", "published_moments"]

Array = np.ndarray


@dataclass(frozen=True)
class PublishedResult:
    """What the published algorithm returns.

    Attributes
    ----------
    row_precision, col_precision
        Psi_row (n, n) and Psi_col (p, p), each positive definite by clipping.
    changes
        ``sqrt(|dPsi_row|_F^2 / n^2 + |dPsi_col|_F^2 / p^2)`` of every step.
    converged
        Whether the last change is below the tolerance.
    """

    row_precision: Float[Tensor, "n n"]
    col_precision: Float[Tensor, "p p"]
    changes: list[float]
    converged: bool


def published_em(
    Y: Float[Tensor, "n p"],
    *,
    max_iter: int = 100,
    stop_tol: float = 1e-3,
    regularization: float = 0.0,
    seed: int = 0,
) -> PublishedResult:
    """Alternate the published expectation and maximisation from identity factors.

    Parameters
    ----------
    Y
        The matrix, made invariant to row and column scales by the published quotient.
    max_iter, stop_tol
        At most so many steps, until the change is below `stop_tol`. The paper's runs: 100 and 1e-7 on simulations
        (1e-10 with zeros), 20 and 1e-7 on real data.
    regularization
        Weight of the squared eigenvalues.
    seed
        Of the uniform numbers that start the scales.

    Raises
    ------
    DataError
        If Y is not a finite matrix with non-zero rows and columns.
    """
    matrix = Y.detach().cpu().numpy().astype(float)
    if matrix.ndim != 2 or not np.isfinite(matrix).all() or not (matrix.any(0).all() and matrix.any(1).all()):
        raise DataError("Y: wanted a matrix of finite numbers with a non-zero entry in each row and column")
    n, p = matrix.shape
    rng = np.random.default_rng(seed)
    scales: tuple[Array, Array] = (np.asarray(rng.random(n)), np.asarray(rng.random(p)))
    row, col = np.eye(n), np.eye(p)
    changes: list[float] = []
    for _ in range(max_iter):
        scales = _scales(matrix, row, col, *scales)
        Z = scales[0][:, None] * matrix * scales[1]
        new_row, new_col = _maximise(*published_moments(Z, row, col), regularization)
        changes.append(float(np.hypot(np.linalg.norm(new_row - row) / n, np.linalg.norm(new_col - col) / p)))
        row, col = new_row, new_col
        if changes[-1] < stop_tol:
            break
    converged = bool(changes) and changes[-1] < stop_tol
    return PublishedResult(torch.as_tensor(row).to(Y), torch.as_tensor(col).to(Y), changes, converged)


def published_moments(
    Z: Float[Array, "n p"], row: Float[Array, "n n"], col: Float[Array, "p p"]
) -> tuple[Float[Array, "n n"], Float[Array, "p p"]]:
    """Z Z^T - C_row / 2 and Z^T Z - C_col / 2, which need not be positive semi-definite."""
    C_row, C_col = published_corrections(row, col)
    return Z @ Z.T - 0.5 * C_row, Z.T @ Z - 0.5 * C_col


def published_corrections(
    row: Float[Array, "n n"], col: Float[Array, "p p"]
) -> tuple[Float[Array, "n n"], Float[Array, "p p"]]:
    """C[k, l] = tr((B^T Omega B)^-1 B^T H_kl B) for both axes, H_kl the Hessian of (Z Z^T)_kl in vec Z.

    B has the columns e_i (x) 1 and 1 (x) e_j but the last. B^T Omega B has n x n and p x p blocks, inverted by a Schur
    complement; the entries of the dropped column are zero in the inverse.
    """
    n, p = len(row), len(col)
    A = p * row + col.sum() * np.eye(n)
    cross = (row.sum(1)[:, None] + col.sum(1))[:, :-1]
    kept = n * col[:-1, :-1] + row.sum() * np.eye(p - 1)
    A_inverse = np.linalg.inv(A)
    M = np.zeros((p, p))
    M[:-1, :-1] = np.linalg.inv(kept - cross.T @ A_inverse @ cross)
    A_cross = np.zeros((n, p))
    A_cross[:, :-1] = A_inverse @ cross
    K = -A_cross @ M
    L = A_inverse + A_cross @ M @ A_cross.T
    to_row, to_col = K.sum(1), K.sum(0)
    C_row = 2 * p * L + 2 * (to_row[:, None] + to_row) + 2 * np.trace(M)
    C_col = 2 * n * M + 2 * (to_col[:, None] + to_col) + 2 * np.trace(L)
    return C_row, C_col


def _scales(Y: Array, row: Array, col: Array, s_row: Array, s_col: Array) -> tuple[Array, Array]:
    """Columns then rows by turns, at most 200 rounds, until both scales move by less than 1e-3; then norm one."""
    for _ in range(200):
        new_col = _one_axis((s_row[:, None] * Y).T, col, row)
        new_row = _one_axis(Y * new_col, row, col)
        moved = max(np.abs(new_row - s_row).sum(), np.abs(new_col - s_col).sum())
        s_row, s_col = new_row, new_col
        if moved < 1e-3:
            break
    return s_row / np.linalg.norm(s_row), s_col / np.linalg.norm(s_col)


def _one_axis(M: Array, own: Array, other: Array) -> Array:
    """Minimise s^T Q s over positive s with product one, in log s, from s = 1 every time."""
    Q = own * (M @ M.T) + np.diag(((M @ other) * M).sum(1))
    result = minimize(
        lambda ell: np.exp(ell) @ Q @ np.exp(ell),
        np.zeros(len(Q)),
        jac=lambda ell: 2 * np.exp(ell) * (Q @ np.exp(ell)),
        hess=lambda ell: 2 * (np.exp(ell)[:, None] * Q * np.exp(ell) + np.diag(np.exp(ell) * (Q @ np.exp(ell)))),
        method="trust-constr",
        constraints=LinearConstraint(np.ones((1, len(Q))), 0, 0),
        tol=1e-5,
    )
    return np.exp(result.x)


def _maximise(S_row: Array, S_col: Array, regularization: float) -> tuple[Array, Array]:
    """Projected gradient on the eigenvalues with a step that is halved and never enlarged again."""
    (e, row_vectors), (g, col_vectors) = np.linalg.eigh(S_row), np.linalg.eigh(S_col)
    lam, mu = np.ones(len(e)), np.ones(len(g))
    value, step = _objective(e, g, lam, mu, regularization), 1.0
    for _ in range(1000):
        R = 1 / (lam[:, None] + mu)
        d_lam, d_mu = e - R.sum(1) + 2 * regularization * lam, g - R.sum(0) + 2 * regularization * mu
        centre = 0.5 * (d_lam.mean() + d_mu.mean())
        d_lam, d_mu = d_lam - d_lam.mean() + centre, d_mu - d_mu.mean() + centre
        for _ in range(40):
            new = np.clip(lam - step * d_lam, 1e-6, 1e6), np.clip(mu - step * d_mu, 1e-6, 1e6)
            new_value = _objective(e, g, *new, regularization)
            if new_value <= value:
                break
            step *= 0.5
        moved = max(np.linalg.norm(new[0] - lam), np.linalg.norm(new[1] - mu))
        (lam, mu), value = new, new_value
        if moved < 1e-5:
            break
    return (row_vectors * lam) @ row_vectors.T, (col_vectors * mu) @ col_vectors.T


def _objective(e: Array, g: Array, lam: Array, mu: Array, regularization: float) -> float:
    penalty = regularization * (lam @ lam + mu @ mu)
    return float(e @ lam + g @ mu - np.log(lam[:, None] + mu).sum() + penalty)
