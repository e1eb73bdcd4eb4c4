"""What all baselines for matrices share: reading matrices, second moments, and graphs with names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import xarray as xr

from ..matrix_checks import check_matrix
from ..models.parts.errors import DataError
from ..validation import check_unique, listed

if TYPE_CHECKING:
    from jaxtyping import Float

    Stack = Float[np.ndarray, "replicate cell gene"]
    Square = Float[np.ndarray, "node node"]


class Graphs(NamedTuple):
    """Graphs of both axes as arrays: edge scores and, where a method has them, precision factors."""

    cell_score: Square
    gene_score: Square
    cell_precision: Square | None = None
    gene_precision: Square | None = None

    @classmethod
    def of_precisions(cls, cell: Square, gene: Square) -> Graphs:
        """Score edges by the absolute off-diagonal entries of precision factors."""
        return cls(off_diagonal(cell), off_diagonal(gene), cell, gene)


@dataclass(frozen=True)
class MatrixBaseline(ABC):
    """A method that reads a graph of cells and a graph of genes off a matrix; instances hold settings only."""

    def fit(self, data: xr.Dataset) -> xr.Dataset:
        """Score all pairs of cells and all pairs of genes.

        Parameters
        ----------
        data
            Dataset with ``expression (cell, gene)``, or ``expression (replicate, cell, gene)`` for several matrices
            that share both graphs. Integers and floating point numbers of any precision.

        Returns
        -------
        xr.Dataset
            ``cell_score (cell, cell_other)`` and ``gene_score (gene, gene_other)``: non-negative, symmetric, with zero
            diagonal, larger for likelier edges, comparable within one graph only. ``cell_precision`` and
            ``gene_precision`` of the same dims where the method estimates them. Attribute ``baseline``: the settings.

        Raises
        ------
        DataError
            If the expression is missing, has other dims, fewer than two cells or genes, NaN or infinite values, empty
            rows or columns, parts that share neither cells nor genes, or magnitudes of rank one.
        NumericalError
            If the method has no solution for these data; the message says why.
        """
        expression = read_expression(data)
        graphs = self._graphs(expression)
        variables = {
            f"{axis}_{what}": ((axis, f"{axis}_other"), getattr(graphs, f"{axis}_{what}"))
            for what in ("score", "precision")
            for axis in ("cell", "gene")
            if getattr(graphs, f"{axis}_{what}") is not None
        }
        names = {axis: expression[axis].to_numpy() for axis in ("cell", "gene")}
        coords = names | {f"{axis}_other": labels for axis, labels in names.items()}
        return xr.Dataset(variables, coords=coords, attrs={"baseline": repr(self)})

    @abstractmethod
    def _graphs(self, expression: xr.DataArray) -> Graphs:
        """Score edges from checked expression ([replicate,] cell, gene)."""


def read_expression(data: xr.Dataset) -> xr.DataArray:
    """Read and check ``expression``.

    Parameters
    ----------
    data
        As for `MatrixBaseline.fit`.

    Returns
    -------
    xr.DataArray
        Dims ``([replicate,] cell, gene)``, as it came otherwise.

    Raises
    ------
    DataError
        As `MatrixBaseline.fit`.
    """
    if not isinstance(data, xr.Dataset):
        raise DataError(f"data: found {type(data).__name__}; wanted an xarray Dataset")
    if "expression" not in data.data_vars:
        raise DataError(f"expression: found variables {listed(data.data_vars)}; wanted 'expression' among them")
    expression = data["expression"]
    if set(expression.dims) - {"replicate"} != {"cell", "gene"}:
        raise DataError(f"expression: found dims {expression.dims}; wanted ([replicate,] cell, gene)")
    expression = expression.transpose(..., "cell", "gene")
    check_matrix("expression", expression)
    for dim in ("cell", "gene"):
        check_unique(dim, expression[dim].to_numpy())
    return expression


def stacked(expression: xr.DataArray | np.ndarray) -> Stack:
    """Give one matrix an axis of replicates; float64."""
    values = np.asarray(expression).astype(np.float64)
    return values.reshape(-1, *values.shape[-2:])


def at_unit_mean_square(values: Stack) -> Stack:
    """Divide all matrices by one number, the root mean square, without overflow."""
    values = values / np.abs(values).max()
    return values / np.sqrt(np.mean(values**2))


def moments(values: Stack) -> tuple[Square, Square]:
    """Average Z Z^T and Z^T Z over the matrices."""
    by_cell, by_gene = (np.tensordot(values, values, axes=(axes, axes)) / len(values) for axes in ([0, 2], [0, 1]))
    return symmetric(by_cell), symmetric(by_gene)


def symmetric(matrix: Square) -> Square:
    """Remove the asymmetry of rounding."""
    return 0.5 * (matrix + matrix.T)


def off_diagonal(matrix: Square) -> Square:
    """Absolute values with zero diagonal."""
    return np.abs(matrix) * (1.0 - np.eye(len(matrix)))


def check_shrink(shrink: float) -> None:
    """Raise unless the weight of shrinkage is in [0, 1)."""
    if not 0.0 <= shrink < 1.0:
        raise DataError(f"shrink: found {shrink}; wanted a number from 0 to below 1")
