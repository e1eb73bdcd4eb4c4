"""What a matrix must fulfil before its rows and columns can be scaled, and before graphs are read from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from scipy.sparse import csr_array, issparse
from scipy.sparse.csgraph import connected_components

from .models.parts.errors import DataError
from .validation import listed

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

#: A sparse matrix of more entries than this, 800 MB when dense, is refused.
MAX_ENTRIES = 100_000_000


def dense_matrix(name: str, array: Any) -> Float[np.ndarray, "*replicate row column"]:
    """Read a matrix, or a stack of matrices of one shape, as finite float64 numbers.

    Parameters
    ----------
    name
        What the matrix is called in messages.
    array
        Array, DataArray or scipy sparse matrix of integers or floating point numbers, shape (n, p) or (m, n, p). Dims
        of a DataArray that are called ``cell`` and ``gene`` must be the last two, in this order.

    Returns
    -------
    Float[np.ndarray, "*replicate row column"]
        The numbers; a float64 array is not copied.

    Raises
    ------
    DataError
        If there are other than two or three axes, fewer than two rows or columns, other kinds of numbers, NaN or
        infinite values, or if a sparse matrix is too large to be made dense.
    """
    if issparse(array):
        if array.shape[0] * array.shape[1] > MAX_ENTRIES:
            raise DataError(f"{name}: found a sparse matrix {array.shape}; wanted at most {MAX_ENTRIES} entries")
        values = array.toarray()
    else:
        values = np.asarray(array)
    if isinstance(array, xr.DataArray) and {"cell", "gene"} & set(array.dims) and array.dims[-2:] != ("cell", "gene"):
        raise DataError(f"{name}: found dims {array.dims}; wanted (cell, gene) as the last two; transpose it")
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise DataError(f"{name}: found shape {values.shape}; wanted (rows, columns) or (replicates, rows, columns)")
    if min(values.shape[-2:]) < 2:
        raise DataError(f"{name}: found {values.shape[-2]} rows and {values.shape[-1]} columns; wanted at least 2 each")
    if values.dtype.kind not in "iuf":
        raise DataError(f"{name}: found dtype {values.dtype}; wanted real numbers")
    values = values.astype(np.float64, copy=False)
    bad = ~np.isfinite(values)
    if bad.any():
        nan = int(np.isnan(values).sum())
        raise DataError(
            f"{name}: found {nan} NaN and {int(bad.sum()) - nan} infinite values, the first at "
            f"{_place(array, np.unravel_index(int(np.argmax(bad)), bad.shape))}; wanted finite numbers"
        )
    return values


def check_matrix(name: str, array: Any) -> Float[np.ndarray, "*replicate row column"]:
    """Check that row and column scales can be removed from a matrix, and that something is left afterwards.

    Parameters
    ----------
    name
        What the matrix is called in messages.
    array
        As for `dense_matrix`.

    Returns
    -------
    Float[np.ndarray, "*replicate row column"]
        The numbers, float64.

    Raises
    ------
    DataError
        As in `dense_matrix`; if a row or column has only zeros; if the zeros split a matrix into parts that share
        neither rows nor columns, whose scales cannot be compared; or if a matrix without zeros has magnitudes
        |D| = a b' of rank one (a constant matrix is one), which the scales explain altogether.
    """
    values = dense_matrix(name, array)
    for replicate, matrix in enumerate(values.reshape(-1, *values.shape[-2:])):
        label = name if values.ndim == 2 else f"{name}, replicate {replicate}"
        mask = matrix != 0
        _check_empty(label, mask, array)
        parts = number_of_parts(mask)
        if parts > 1:
            raise DataError(
                f"{label}: found zeros that split it into {parts} connected components, which share neither rows nor "
                "columns; wanted one: fit the components one by one"
            )
        if mask.all() and _rank_one(matrix, np.dtype(getattr(array, "dtype", values.dtype))):
            raise DataError(
                f"{label}: found magnitudes of rank one (row scale times column scale), nothing left after removing "
                "row and column scales; wanted a matrix with more than that"
            )
    return values


def number_of_parts(mask: Bool[np.ndarray, "row column"]) -> int:
    """Count the connected components of the bipartite graph of rows and columns.

    Parameters
    ----------
    mask
        Which row and column are joined: the entries that are not zero.

    Returns
    -------
    int
        One if the scales of all rows and columns can be compared.
    """
    if mask.all():  # the usual large matrix, whose edges would not fit in memory
        return 1
    return int(connected_components(bipartite(mask), directed=False)[0])


def bipartite(mask: Bool[np.ndarray, "row column"]) -> csr_array:
    """Build the adjacency matrix, rows first, of the graph with an edge from row to column where `mask` holds.

    Parameters
    ----------
    mask
        Which row and column are joined.

    Returns
    -------
    csr_array
        Shape (n + p, n + p), with ones.
    """
    rows, columns = np.nonzero(mask)
    size = sum(mask.shape)
    return csr_array((np.ones(rows.size, dtype=np.int32), (rows, columns + mask.shape[0])), shape=(size, size))


def label_of(array: Any, axis: int, position: int) -> str:
    """Name a row (axis -2), column (-1) or replicate (-3) of a matrix in a message.

    Parameters
    ----------
    array
        The matrix as the user gave it.
    axis
        Which axis, counted from the end.
    position
        Where along it.

    Returns
    -------
    str
        For example ``gene CD8A``, or ``column 3`` if there are no names.
    """
    if isinstance(array, xr.DataArray):
        dim = array.dims[axis]
        return f"{dim} {array[dim].to_numpy()[position]}"
    return f"{('replicate', 'row', 'column')[axis]} {position}"


def _place(array: Any, place: tuple[np.intp, ...]) -> str:
    axes = range(-len(place), 0)
    return ", ".join(label_of(array, axis, int(i)) for axis, i in zip(axes, place, strict=True))


def _check_empty(label: str, mask: Bool[np.ndarray, "row column"], array: Any) -> None:
    for axis, what in ((-2, "rows"), (-1, "columns")):
        empty = np.flatnonzero(~mask.any(axis=-3 - axis))
        if empty.size:
            names = listed(label_of(array, axis, int(i)) for i in empty)
            raise DataError(f"{label}: found {empty.size} {what} without non-zeros: {names}; wanted none: drop them")


def _rank_one(matrix: Float[np.ndarray, "row column"], given: np.dtype) -> bool:
    logs = np.log(np.abs(matrix))
    precision = np.finfo(given if given.kind == "f" else np.float64).eps
    rounding = 32 * max(1.0, float(np.abs(logs).max())) * precision
    left = logs - logs.mean(1, keepdims=True) - logs.mean(0, keepdims=True) + logs.mean()
    return bool(np.abs(left).max() <= rounding)
