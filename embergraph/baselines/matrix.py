"""Baselines for matrices whose rows and columns both depend: graphs of cells and of genes from one matrix or several.

The cheapest first. `RowColumnScaling` needs no optimisation of a graph and is hard to beat from one matrix.

| baseline | unchanged by row and column scales | model of the precision |
|---|---|---|
| `RowColumnScaling` | yes | none: Gram matrices of the scaled matrix |
| `SingleAxis` | no | each axis on its own, the other one independent |
| `GmGM` | with ``invariant=True`` | Kronecker sum |
| `Skeptic` | no; unchanged by monotone maps of all entries | Kronecker sum of Gaussian copulas |
| `StrongProduct` | yes | Kronecker product (matrix normal) |
| `IndependentCells`, `IndependentGenes` | yes | one graph only |

``baseline.fit(data)`` gives a Dataset with ``cell_score (cell, cell_other)`` and ``gene_score (gene, gene_other)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import xarray as xr
from scipy.stats import rankdata

from ..guides.parts.spectral import spectral_precision
from ..matrices import quotient, sinkhorn_scale
from ..models.parts.errors import DataError, NumericalError
from ._matrix_base import (
    Graphs,
    MatrixBaseline,
    at_unit_mean_square,
    check_shrink,
    moments,
    off_diagonal,
    stacked,
    symmetric,
)

if TYPE_CHECKING:
    from ._matrix_base import Square, Stack

Zeros = Literal["gaussian", "structural"]

_MAX_ROUNDS, _TOLERANCE = 500, 1e-10


@dataclass(frozen=True)
class RowColumnScaling(MatrixBaseline):
    """Scale rows and columns until squares sum to the same in all rows and in all columns; score by Gram matrices.

    The scales are the most probable ones under independent entries (`embergraph.matrices.sinkhorn_scale`), and the
    off-diagonal of the Gram matrices Z Z^T / p and Z^T Z / n, averaged over the matrices, is the score test of an edge
    at independence.

    Attributes
    ----------
    sign
        ``"any"``: absolute values. ``"positive"``: only edges with positive entries in the precision matrix, which
        show as negative entries of the Gram matrices; for simulations whose edges all have this sign.
    zeros
        ``"gaussian"``: zeros are observations. ``"structural"``: scales are fitted to the other entries.
    """

    sign: Literal["any", "positive"] = "any"
    zeros: Zeros = "gaussian"

    def __post_init__(self) -> None:
        if self.sign not in ("any", "positive"):
            raise DataError(f"sign: found {self.sign!r}; wanted 'any' or 'positive'")

    def _graphs(self, expression: xr.DataArray) -> Graphs:
        n, p = expression.shape[-2:]
        by_cell, by_gene = moments(_scaled(expression, self.zeros))
        if self.sign == "positive":
            by_cell, by_gene = np.minimum(by_cell, 0.0), np.minimum(by_gene, 0.0)
        return Graphs(off_diagonal(by_cell) / p, off_diagonal(by_gene) / n)


@dataclass(frozen=True)
class SingleAxis(MatrixBaseline):
    """Pseudo-inverses of D D^T and of D^T D, each axis as if the other one were independent.

    Precisions are those of the matrix (all matrices, pooled) divided by its root mean square.

    Attributes
    ----------
    rcond
        Eigenvalues below this multiple of the largest one count as zero.
    """

    rcond: float = 1e-4

    def __post_init__(self) -> None:
        if not 0.0 < self.rcond < 1.0:
            raise DataError(f"rcond: found {self.rcond}; wanted a number between 0 and 1")

    def _graphs(self, expression: xr.DataArray) -> Graphs:
        both = moments(at_unit_mean_square(stacked(expression)))
        return Graphs.of_precisions(*(symmetric(np.linalg.pinv(S, rcond=self.rcond, hermitian=True)) for S in both))


@dataclass(frozen=True)
class GmGM(MatrixBaseline):
    """Kronecker-sum precision of the matrix as it is: one eigendecomposition an axis, then a convex problem.

    Minimises tr(Psi_row S_row) + tr(Psi_col S_col) - log|Psi_row (+) Psi_col| with S_row and S_col the averages of
    D D^T and D^T D of the matrices, after division by the root mean square of all entries; see `spectral_precision`.
    Nothing is centred.

    The published program divides each Gram matrix by the number of columns seen and its eigenvalues by their Euclidean
    norm, and stops its gradient descent early, which regularises in a way that depends on the starting point. Here the
    two axes keep their common trace, the minimum is reached, and the regularisation is explicit.

    Attributes
    ----------
    invariant
        First remove row and column scales by `embergraph.matrices.quotient`.
    shrink
        Share of the identity mixed into S_row and S_col, 0 to below 1. With 0 there is a minimum only if both S are
        positive definite, as they never are for one matrix with more rows than columns or the reverse.

    References
    ----------
    Andrew, Westhead and Cutillo, "GmGM: a fast multi-axis Gaussian graphical model" (AISTATS 2024).
    """

    invariant: bool = False
    shrink: float = 0.9

    def __post_init__(self) -> None:
        check_shrink(self.shrink)

    def _graphs(self, expression: xr.DataArray) -> Graphs:
        values = stacked(quotient(expression) if self.invariant else expression)
        return _kronecker_sum(*moments(at_unit_mean_square(values)), self.shrink, len(values))


@dataclass(frozen=True)
class Skeptic(MatrixBaseline):
    """Kronecker-sum precision from rank correlations: the nonparanormal skeptic on both axes.

    Correlations are 2 sin(pi/6 rho) with rho Spearman's rank correlation of two cells over the genes, and of two genes
    over the cells, averaged over the matrices. A matrix of them with negative eigenvalues is replaced by the nearest
    positive semi-definite one and brought back to unit diagonal. A constant row or column is uncorrelated to all.

    Attributes
    ----------
    shrink
        As in `GmGM`.

    References
    ----------
    Liu, Han, Yuan, Lafferty and Wasserman, "High-dimensional semiparametric Gaussian copula graphical models" (2012).
    """

    shrink: float = 0.9

    def __post_init__(self) -> None:
        check_shrink(self.shrink)

    def _graphs(self, expression: xr.DataArray) -> Graphs:
        values = stacked(expression)
        count, n, p = values.shape
        cells = np.mean([_skeptic_correlation(one) for one in values], axis=0)
        genes = np.mean([_skeptic_correlation(one.T) for one in values], axis=0)
        # Correlations times the length of the other axis are second moments of entries of unit variance.
        return _kronecker_sum(p * _nearest_correlation(cells), n * _nearest_correlation(genes), self.shrink, count)


@dataclass(frozen=True)
class StrongProduct(MatrixBaseline):
    """Kronecker-product precision (matrix normal) of the scaled matrix, by alternating closed forms.

    Given one factor, the other is the inverse of ``(1 - shrink) S + shrink tr(S)/d I`` with S the second moments of the
    matrices whitened along the other axis (flip-flop, Dutilleul 1999), until neither changes. Scales are those of
    `RowColumnScaling`. Both factors have mean diagonal 1.

    Attributes
    ----------
    shrink
        Share of the identity, above 0 to below 1.
    zeros
        As in `RowColumnScaling`.
    """

    shrink: float = 0.9
    zeros: Zeros = "gaussian"

    def __post_init__(self) -> None:
        check_shrink(self.shrink)
        if self.shrink == 0:
            raise DataError("shrink: found 0; wanted more, since the likelihood of few matrices has no maximum")

    def _graphs(self, expression: xr.DataArray) -> Graphs:
        values = _scaled(expression, self.zeros)
        cell, gene = (np.eye(size) for size in values.shape[1:])
        for _ in range(_MAX_ROUNDS):
            new_cell = self._factor(values, gene)
            new_gene = self._factor(values.transpose(0, 2, 1), new_cell)
            change = max(np.abs(new_cell - cell).max(), np.abs(new_gene - gene).max())
            cell, gene = new_cell, new_gene
            if change < _TOLERANCE:
                return Graphs.of_precisions(cell, gene)
        raise NumericalError(
            f"StrongProduct: factors still change by {change:.1e} after {_MAX_ROUNDS} rounds; wanted more shrink"
        )

    def _factor(self, values: Stack, other: Square) -> Square:
        """Precision of the first axis given that of the second."""
        return _inverse_of_shrunk(symmetric(np.tensordot(values, values @ other, axes=([0, 2], [0, 2]))), self.shrink)


@dataclass(frozen=True)
class _OneGraph(MatrixBaseline):
    """One precision matrix, of the scaled matrix, with shrinkage; the other graph is empty.

    Attributes
    ----------
    shrink
        Share of the identity in the second moments, 0 to below 1.
    zeros
        As in `RowColumnScaling`.
    """

    shrink: float = 0.9
    zeros: Zeros = "gaussian"

    def __post_init__(self) -> None:
        check_shrink(self.shrink)

    def _moments(self, expression: xr.DataArray) -> tuple[Square, Square]:
        return moments(_scaled(expression, self.zeros))


@dataclass(frozen=True)
class IndependentCells(_OneGraph):
    """A graph of the genes only: cells are independent given their scales, Omega = I (x) Psi_gene."""

    def _graphs(self, expression: xr.DataArray) -> Graphs:
        by_cell, by_gene = self._moments(expression)
        return Graphs.of_precisions(np.eye(len(by_cell)), _inverse_of_shrunk(by_gene, self.shrink))


@dataclass(frozen=True)
class IndependentGenes(_OneGraph):
    """A graph of the cells only: genes are independent given their scales, Omega = Psi_cell (x) I."""

    def _graphs(self, expression: xr.DataArray) -> Graphs:
        by_cell, by_gene = self._moments(expression)
        return Graphs.of_precisions(_inverse_of_shrunk(by_cell, self.shrink), np.eye(len(by_gene)))


def _scaled(expression: xr.DataArray, zeros: Zeros) -> Stack:
    return stacked(sinkhorn_scale(expression, zeros=zeros)[0])


def _kronecker_sum(by_cell: Square, by_gene: Square, shrink: float, num_matrices: int) -> Graphs:
    tensors = (torch.from_numpy(S) for S in (by_cell, by_gene))
    spectrum = spectral_precision(*tensors, num_matrices=num_matrices, shrink=shrink)
    return Graphs.of_precisions(spectrum.row_precision.numpy(), spectrum.col_precision.numpy())


def _inverse_of_shrunk(S: Square, shrink: float) -> Square:
    """Inverse of (1 - shrink) S + shrink tr(S)/d I, at mean diagonal 1."""
    target = np.trace(S) / len(S)
    values, vectors = np.linalg.eigh((1 - shrink) * S / target + shrink * np.eye(len(S)))
    if values[0] <= len(S) * np.finfo(np.float64).eps * values[-1]:
        raise NumericalError("second moments: found a singular matrix without shrinkage; wanted shrink > 0")
    precision = symmetric((vectors / values) @ vectors.T)
    return precision * len(S) / np.trace(precision)


def _skeptic_correlation(values: Square) -> Square:
    """2 sin(pi/6 Spearman rho) of the rows, with unit diagonal."""
    ranks = rankdata(values, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(ranks, axis=1, keepdims=True)
    ranks /= np.where(norms > 0, norms, 1.0)
    correlation = 2 * np.sin(np.pi / 6 * np.clip(ranks @ ranks.T, -1.0, 1.0))
    np.fill_diagonal(correlation, 1.0)
    return symmetric(correlation)


def _nearest_correlation(matrix: Square) -> Square:
    """Set negative eigenvalues to zero and restore the unit diagonal."""
    values, vectors = np.linalg.eigh(matrix)
    if values[0] >= 0:
        return matrix
    clipped = (vectors * np.maximum(values, 0.0)) @ vectors.T
    root = np.sqrt(clipped.diagonal())
    return symmetric(clipped / root / root[:, None])
