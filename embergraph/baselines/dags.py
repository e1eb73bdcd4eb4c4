"""One DAG for all cells, learnt from a covariance matrix: NOTEARS and DAGMA for linear models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import expm
from scipy.optimize import minimize

from ..models.parts.errors import DataError, NumericalError

if TYPE_CHECKING:
    from jaxtyping import Float

    Matrix = Float[np.ndarray, "p p"]

_ROUNDS = ((1.0, 1.0), (0.1, 0.9), (1e-2, 0.8), (1e-3, 0.7), (1e-4, 0.6))  # (mu, s)
_STEPS, _LAST_STEPS, _CHECK_EVERY, _TOLERANCE = 30_000, 60_000, 1_000, 1e-6
_LEARNING_RATE, _BETAS, _EPSILON = 3e-4, (0.99, 0.999), 1e-8


def dagma(covariance: Matrix, *, l1: float = 0.03) -> Matrix:
    """Learn a DAG by central path with the log-determinant function (DAGMA, Bello et al. 2022, algorithm 1).

    Minimises ``mu (tr((I - W)^T S (I - W)) / 2 + l1 |W|_1) - log det(s I - W * W) + p log s`` over five rounds of
    falling mu by Adam, each from the result of the round before. A step that leaves the domain (some entry of the
    inverse of s I - W * W is negative) is taken back and the learning rate halved.

    Parameters
    ----------
    covariance
        S, covariance of the genes, shape (p, p).
    l1
        Weight of the L1 norm, in squared units of the expression.

    Returns
    -------
    Float[np.ndarray, "p p"]
        Weights, regulators in rows. Small weights are not exactly 0 and may close cycles.

    Raises
    ------
    DataError
        If the covariance is not square, finite and symmetric.
    """
    covariance = _checked(covariance)
    weights = np.zeros_like(covariance)
    for mu, s in _ROUNDS:
        while _inverse(weights, s) is None:
            s += 0.1
        steps = _LAST_STEPS if mu == _ROUNDS[-1][0] else _STEPS
        weights = _descend(covariance, weights, mu, s, l1, steps)
    return weights


def _descend(covariance: Matrix, weights: Matrix, mu: float, s: float, l1: float, steps: int) -> Matrix:
    """One round of DAGMA: Adam from weights inside the domain of s."""
    off = 1.0 - np.eye(len(weights))
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    rate, last = _LEARNING_RATE, np.nan
    inverse = _inverse(weights, s)
    for step in range(1, steps + 1):
        assert inverse is not None  # the loop keeps to the domain
        smooth = covariance @ weights - covariance + l1 * np.sign(weights)
        gradient = off * (mu * smooth + 2.0 * weights * inverse.T)
        first = _BETAS[0] * first + (1 - _BETAS[0]) * gradient
        second = _BETAS[1] * second + (1 - _BETAS[1]) * gradient**2
        direction = first / (1 - _BETAS[0] ** step) / (np.sqrt(second / (1 - _BETAS[1] ** step)) + _EPSILON)
        moved = weights - rate * direction
        while (inverse := _inverse(moved, s)) is None:
            rate /= 2
            moved = weights - rate * direction
        weights = moved
        if step % _CHECK_EVERY == 0:
            log_determinant = -np.linalg.slogdet(inverse)[1]
            value = mu * (_loss(covariance, weights) + l1 * np.abs(weights).sum()) - log_determinant
            value += len(weights) * np.log(s)
            if abs(last - value) <= _TOLERANCE * abs(last):
                break
            last = value
    return weights


def _inverse(weights: Matrix, s: float) -> Matrix | None:
    """Inverse of s I - W * W, or None where that is no M-matrix."""
    try:
        inverse = np.linalg.inv(s * np.eye(len(weights)) - weights * weights)
    except np.linalg.LinAlgError:
        return None
    return inverse if inverse.min() > -1e-12 else None


def notears(covariance: Matrix, *, l1: float = 0.1) -> Matrix:
    """Learn a DAG by the augmented Lagrangian of the matrix exponential (NO TEARS, Zheng et al. 2018, algorithm 1).

    Minimises ``tr((I - W)^T S (I - W)) / 2 + l1 |W|_1`` under ``h = tr exp(W * W) - p = 0``, with W the difference of
    two non-negative matrices and L-BFGS-B inside; stops at h <= 1e-8.

    Parameters
    ----------
    covariance
        S, covariance of the genes, shape (p, p).
    l1
        Weight of the L1 norm, in squared units of the expression.

    Returns
    -------
    Float[np.ndarray, "p p"]
        Weights, regulators in rows. Small weights are not exactly 0 and may close cycles.

    Raises
    ------
    DataError
        If the covariance is not square, finite and symmetric.
    NumericalError
        If the weights become NaN.
    """
    covariance = _checked(covariance)
    p = len(covariance)
    bounds = [(0.0, 0.0) if a == b else (0.0, None) for _ in range(2) for a in range(p) for b in range(p)]

    def objective(parts: np.ndarray, multiplier: float, penalty: float) -> tuple[float, np.ndarray]:
        weights = _difference(parts, p)
        exponential = expm(weights * weights)
        h = np.trace(exponential) - p
        value = _loss(covariance, weights) + l1 * parts.sum() + multiplier * h + 0.5 * penalty * h * h
        gradient = covariance @ weights - covariance + (multiplier + penalty * h) * exponential.T * 2 * weights
        return value, np.concatenate([(gradient + l1).ravel(), (-gradient + l1).ravel()])

    parts, multiplier, penalty, h = np.zeros(2 * p * p), 0.0, 1.0, np.inf
    for _ in range(100):
        last = h
        while True:
            result = minimize(objective, parts, (multiplier, penalty), method="L-BFGS-B", jac=True, bounds=bounds)
            weights = _difference(result.x, p)
            h = float(np.trace(expm(weights * weights)) - p)
            if h <= 0.25 * last or penalty >= 1e16:
                break
            penalty *= 10
        if not np.isfinite(h):
            raise NumericalError(f"notears: the weights left the finite numbers at penalty {penalty:g}")
        parts, multiplier = result.x, multiplier + penalty * h
        if h <= 1e-8 or penalty >= 1e16:
            break
    return _difference(parts, p)


def _difference(parts: np.ndarray, p: int) -> Matrix:
    return (parts[: p * p] - parts[p * p :]).reshape(p, p)


def _loss(covariance: Matrix, weights: Matrix) -> float:
    """Half the mean squared residual of a cell, tr((I - W)^T S (I - W)) / 2."""
    left = np.eye(len(weights)) - weights
    return 0.5 * float(np.sum(left * (covariance @ left)))


def _checked(covariance: Matrix) -> Matrix:
    matrix = np.asarray(covariance, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise DataError(f"covariance has shape {matrix.shape}; wanted (p, p)")
    if not np.isfinite(matrix).all() or not np.allclose(matrix, matrix.T):
        raise DataError("covariance is not finite and symmetric; wanted the covariance of centred expression")
    return matrix
