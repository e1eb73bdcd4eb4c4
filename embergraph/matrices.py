"""Matrices under unknown positive row and column scales, D = (u v') o X: what the scales leave, and equal scales.

Rows are cells and columns are genes; a stack (replicate, cell, gene) is treated matrix by matrix. Everything works on
logarithms, so that scales of any size a float64 can hold do no harm. DataArrays go in and come out with their names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import xarray as xr
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, maximum_flow
from scipy.special import logsumexp

from .gene_choice import choose_genes as choose_genes
from .matrix_checks import check_matrix, dense_matrix, label_of
from .matrix_means import remove_profile as remove_profile
from .models.parts.errors import DataError, NumericalError
from .models.parts.kronecker_sum import Zeros
from .validation import listed

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    Matrix = Float[np.ndarray, "*replicate row column"] | xr.DataArray
    Values = Float[np.ndarray, "row column"]
    Rows = Float[np.ndarray, " row"]
    Columns = Float[np.ndarray, " column"]

#: Largest logarithm of a magnitude that is written out; beyond it float64 overflows or loses digits.
_LARGEST_LOG = 700.0
_TOLERANCE = 1e-12
_VANISHING = -6.0  # log of an entry that may be on its way to zero


def quotient(matrix: Matrix) -> Matrix:
    """Remove row and column scales: the same result for D and for (a b') o D, whatever the positive a and b.

    Without zeros T(D) = sign(D) o exp(C_n log|D| C_p), where C centres rows and columns. Zeros stay zeros, and the two
    log scales are fitted to the non-zero entries by least squares; the remaining logs have mean zero in every row and
    column. What is lost are n + p - 1 numbers, the scales; signs, zeros and everything else are kept.

    Parameters
    ----------
    matrix
        D, shape (n, p) or (m, n, p): array, DataArray or scipy sparse matrix.

    Returns
    -------
    Matrix
        T(D), float64, of the kind and shape given (dense if `matrix` is sparse).

    Raises
    ------
    DataError
        As in `check_matrix`, or if magnitudes remain that no float64 can hold.
    """
    values = check_matrix("matrix", matrix)
    return _rewrap(matrix, _each(_quotient, values))


def published_quotient(matrix: Matrix) -> Matrix:
    """Remove row and column scales as the program published with MED-MAGMA does.

    It equals `quotient` if there are no zeros. With zeros it takes the means of the logs of every row and column in one
    pass, which does not reproduce the same matrix after a rescaling unless rows and columns have zeros evenly.

    Parameters
    ----------
    matrix
        D, shape (n, p) or (m, n, p); rows and columns without non-zeros are left as they are.

    Returns
    -------
    Matrix
        Float64, of the kind and shape given (dense if `matrix` is sparse).

    Raises
    ------
    DataError
        As in `dense_matrix`.
    """
    values = dense_matrix("matrix", matrix)
    return _rewrap(matrix, _each(_published, values))


def sinkhorn_scale(matrix: Matrix, *, zeros: Zeros = "gaussian") -> tuple[Matrix, Matrix, Matrix]:
    """Scale rows and columns so that squares sum to the same in all rows, and in all columns.

    Z = diag(e^a) D diag(e^b) with row sums of squares p and column sums n, hence sum Z^2 = n p. This is the mode of the
    log scales under independent entries: it minimises q(Z)/2 - p sum a - n sum b for the precision Omega = I, where
    q(Z) = sum Z^2 = N = n p exactly. For Omega = c I (c = 2 if both precision factors are identities) divide Z by
    sqrt(c). The result depends on `matrix` only through `quotient`, up to a and b.

    Parameters
    ----------
    matrix
        D, shape (n, p) or (m, n, p): array, DataArray or scipy sparse matrix.
    zeros
        ``"gaussian"``: zeros are observed zeros, the targets are p and n; the pattern of zeros may rule that out.
        ``"structural"``: zeros say nothing about X, the targets are the numbers of non-zeros of the row or column, so
        that sum Z^2 is their total; a solution always exists.

    Returns
    -------
    scaled : Matrix
        Z, float64, of the kind and shape given.
    log_row : Matrix
        a, shape (n,) or (m, n).
    log_column : Matrix
        b, shape (p,) or (m, p), with the same mean as a (only a + b is determined).

    Raises
    ------
    DataError
        As in `quotient`.
    NumericalError
        If no scales exist, because some rows have their non-zeros in too few columns; the message names them.

    References
    ----------
    Sinkhorn and Knopp, Pacific Journal of Mathematics 21 (1967) 343-348.
    """
    if zeros not in get_args(Zeros):
        raise DataError(f"zeros: found {zeros!r}; wanted one of {get_args(Zeros)}")
    values = check_matrix("matrix", matrix)
    results = [_sinkhorn(one, zeros, matrix) for one in values.reshape(-1, *values.shape[-2:])]
    shapes = values.shape, values.shape[:-1], (*values.shape[:-2], values.shape[-1])
    scaled, log_row, log_column = (
        np.stack(parts).reshape(shape) for parts, shape in zip(zip(*results, strict=True), shapes, strict=True)
    )
    if not isinstance(matrix, xr.DataArray):
        return scaled, log_row, log_column
    template = matrix.reset_coords(drop=True)
    by_row, by_column = (template.isel({dim: 0}, drop=True) for dim in matrix.dims[:-3:-1])
    return _rewrap(matrix, scaled), by_row.copy(data=log_row), by_column.copy(data=log_column)


def _quotient(values: Values) -> Values:
    mask = values != 0
    logs = np.log(np.abs(values), where=mask, out=np.zeros_like(values))
    return _written_out(values, _two_way_residual(logs, mask))


def _published(values: Values) -> Values:
    mask = values != 0
    logs = np.log(np.abs(values), where=mask, out=np.zeros_like(values))
    rows, columns = (logs.sum(axis) / np.maximum(mask.sum(axis), 1) for axis in (1, 0))
    overall = logs.sum() / max(int(mask.sum()), 1)
    return _written_out(values, np.where(mask, logs - rows[:, None] - columns + overall, 0.0))


def _written_out(values: Values, logs: Values) -> Values:
    largest = float(np.abs(logs).max())
    if largest > _LARGEST_LOG:
        raise DataError(f"matrix: found entries of e^{largest:.0f} without the scales; wanted e^{_LARGEST_LOG:.0f}")
    return np.sign(values) * np.exp(logs)


def _two_way_residual(logs: Values, mask: Bool[np.ndarray, "row column"]) -> Values:
    """Residuals of the least-squares fit a_i + b_j to the masked logs; others are zero."""
    if mask.all():
        return logs - logs.mean(1, keepdims=True) - logs.mean(0) + logs.mean()
    residual = logs.copy()
    solve = _bipartite_solver(mask.astype(np.float64))
    wanted = _TOLERANCE * max(1.0, float(np.abs(logs).max()))
    for _ in range(10):  # refinement: one solve leaves the rounding of an ill-conditioned pattern
        row, column = solve(residual.sum(1), residual.sum(0))
        residual = np.where(mask, residual - row[:, None] - column, 0.0)
        largest = max(np.abs(residual.sum(axis) / mask.sum(axis)).max() for axis in (0, 1))
        if largest <= wanted:
            return residual
    raise NumericalError(f"quotient: found means of {largest:.1e} after 10 refinements; wanted {wanted:.1e}")


def _bipartite_solver(weights: Values) -> Callable[[Rows, Columns], tuple[Rows, Columns]]:
    """Solver of W_r a + W b = r, W' a + W_c b = c for a connected W >= 0 with row sums W_r and column sums W_c.

    The system is singular along (1, -1). Columns are eliminated where there are more of them, and the projector on
    constants makes the rest positive definite.
    """
    if weights.shape[0] > weights.shape[1]:
        solve_transposed = _bipartite_solver(weights.T)
        return lambda right_row, right_column: solve_transposed(right_column, right_row)[::-1]
    row_sums, column_sums = weights.sum(1), weights.sum(0)
    schur = -(weights / column_sums) @ weights.T
    schur[np.diag_indices_from(schur)] += row_sums
    factor = cho_factor(schur + np.abs(schur).max() / len(schur), overwrite_a=True)

    def solve(right_row: Rows, right_column: Columns) -> tuple[Rows, Columns]:
        row = cho_solve(factor, right_row - weights @ (right_column / column_sums))
        return row, (right_column - weights.T @ row) / column_sums

    return solve


def _sinkhorn(values: Values, zeros: Zeros, given: Any) -> tuple[Values, Rows, Columns]:
    mask = values != 0
    logs = np.full(values.shape, -np.inf)
    np.log(np.abs(values), where=mask, out=logs)
    residual = _two_way_residual(np.where(mask, logs, 0.0), mask)
    start = np.where(mask, residual, -np.inf)
    row_target, column_target = (np.full(k, float(values.shape[a])) for k, a in zip(values.shape, (1, 0), strict=True))
    if zeros == "structural":
        row_target, column_target = mask.sum(1).astype(float), mask.sum(0).astype(float)
    solution = _balance(2 * start, row_target, column_target)
    if solution is None:
        reason = _obstacle(mask, given) if zeros == "gaussian" else None
        raise NumericalError(f"matrix: {reason or 'scales did not converge; wanted magnitudes that differ less'}")
    balanced = np.where(mask, start + 0.5 * (solution[0][:, None] + solution[1]), -np.inf)
    # Where no scales exist, some entries run to zero and the sums come out right all the same.
    if zeros == "gaussian" and not mask.all() and balanced[mask].min() < _VANISHING and (why := _obstacle(mask, given)):
        raise NumericalError(f"matrix: {why}")
    row, column = _row_and_column(np.where(mask, balanced - np.where(mask, logs, 0.0), 0.0), mask)
    return np.sign(values) * np.exp(balanced), row, column


def _row_and_column(sums: Values, mask: Bool[np.ndarray, "row column"]) -> tuple[Rows, Columns]:
    """Read a and b, of equal means, off the masked sums a_i + b_j."""
    if mask.all():
        row, column = sums.mean(1), sums.mean(0) - sums.mean()
    else:
        row, column = _bipartite_solver(mask.astype(np.float64))(sums.sum(1), sums.sum(0))
    shift = (column.mean() - row.mean()) / 2
    return row + shift, column - shift


def _balance(logs: Values, row_target: Rows, column_target: Columns) -> tuple[Rows, Columns] | None:
    """Find (a, b) so that exp(logs + a + b) has the target sums; None if it does not converge.

    Some alternating steps, then Newton's method on the convex sum of exp(logs + a + b) - a.target - b.target.
    """
    row, column = np.zeros(len(row_target)), np.zeros(len(column_target))
    for _ in range(8):
        row = np.log(row_target) - logsumexp(logs + column, axis=1)
        column = np.log(column_target) - logsumexp(logs + row[:, None], axis=0)
        weights = np.exp(logs + row[:, None] + column)
        if _error(weights, row_target, column_target) <= _TOLERANCE:
            return row, column
        if (weights.sum(1) > 0).all():  # else float64 cannot hold the factors, and only logs help
            by_row, by_column = _alternate(weights, row_target, column_target)
            row, column = row + np.log(by_row), column + np.log(by_column)
    for _ in range(100):
        weights = np.exp(logs + row[:, None] + column)
        error = _error(weights, row_target, column_target)
        if error <= 10 * _TOLERANCE:
            return row, column
        slope = row_target - weights.sum(1), column_target - weights.sum(0)
        try:
            step = _bipartite_solver(weights)(*slope)
        except np.linalg.LinAlgError:  # weights that should stay connected vanish: no solution
            return None
        # Damping by the largest change of an exponent, which bounds the error of the quadratic model.
        length = 1 / max(1.0, float(np.abs(step[0][:, None] + step[1]).max()))
        row, column = row + length * step[0], column + length * step[1]
    return None


def _alternate(weights: Values, row_target: Rows, column_target: Columns) -> tuple[Rows, Columns]:
    """A few cheap steps on weights near their target."""
    by_column = np.ones(len(column_target))
    for _ in range(15):
        by_row = row_target / (weights @ by_column)
        by_column = column_target / (by_row @ weights)
    return by_row, by_column


def _error(weights: Values, row_target: Rows, column_target: Columns) -> float:
    errors = (weights.sum(1) / row_target - 1, weights.sum(0) / column_target - 1)
    return float(max(np.abs(error).max() for error in errors))


def _obstacle(mask: Bool[np.ndarray, "row column"], given: Any) -> str | None:
    """Say which rows have their non-zeros in too few columns for squares of equal sums; None if none have.

    With supplies p of n rows and demands n of p columns, a scaling exists if and only if every non-zero can carry
    flow, that is if the residual graph of a maximal flow is strongly connected. Otherwise some closed set of rows fills
    all its columns.
    """
    n, p = mask.shape
    rows, columns = np.nonzero(mask)
    i = np.concatenate([rows, np.full(n, n + p), n + np.arange(p)])
    j = np.concatenate([n + columns, np.arange(n), np.full(p, n + p + 1)])
    capacity = np.concatenate([np.full(rows.size, n * p), np.full(n, p), np.full(p, n)]).astype(np.int32)
    network = csr_array((capacity, (i, j)), shape=(n + p + 2, n + p + 2))
    residual = (network - maximum_flow(network, n + p, n + p + 1).flow)[: n + p, : n + p]
    residual.eliminate_zeros()
    _, part = connected_components(residual, connection="strong")
    for k in np.unique(part[:n]):
        inside = np.flatnonzero(part[:n] == k)
        reached = mask[inside].any(0)
        if inside.size < n and (part[n:][reached] == k).all() and inside.size * p >= reached.sum() * n:
            names = listed(label_of(given, -2, int(row)) for row in inside)
            return (
                f"found no scales that give squares of equal sums, since {inside.size} of {n} rows ({names}) have "
                f"their non-zeros in only {int(reached.sum())} of {p} columns; wanted fewer zeros: drop rows or "
                "columns with few non-zeros, or leave zeros out (zeros='structural')"
            )
    return None


def _each(function: Callable[[Values], Values], values: np.ndarray) -> np.ndarray:
    return np.stack([function(one) for one in values.reshape(-1, *values.shape[-2:])]).reshape(values.shape)


def _rewrap(template: Any, values: np.ndarray) -> Matrix:
    return template.copy(data=values) if isinstance(template, xr.DataArray) else values
