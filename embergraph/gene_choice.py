"""Choice of as many genes as there are cells: variable ones that few cells lack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from .data import from_arrays
from .matrix_checks import dense_matrix
from .models.parts.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

_BINS = 20


def choose_genes(counts: Any, *, num_top: int = 2000, target: int | None = None) -> xr.Dataset:
    """Choose highly variable genes so that the matrix is about square, as in the MED-MAGMA paper (appendix F).

    Genes are ranked by `normalized_dispersion`; of the best `num_top`, those that are non-zero in more than q n of n
    cells are kept, for the q in 0, 0.01, ..., 1 that brings their number closest to `target` (the smallest such q). The
    expression itself stays as it is: counts in, counts out.

    Parameters
    ----------
    counts
        Dataset with ``expression (cell, gene)``, or a matrix (array or scipy sparse, cells in rows) that is given names
        ``cell_0``, ``gene_0``. Not negative and not logged; fractions are allowed.
    num_top
        Number of highly variable genes to choose from; genes tied with the last come along.
    target
        Wanted number of genes; the number of cells if left out.

    Returns
    -------
    xr.Dataset
        The chosen genes in their order, all variables kept; attributes ``num_top`` and ``smallest_share`` (q).

    Raises
    ------
    DataError
        If values are negative or not finite, or no gene varies.
    """
    if isinstance(counts, xr.Dataset) and "expression" not in counts:
        raise DataError("counts: found a Dataset without 'expression'; wanted expression (cell, gene)")
    given = counts["expression"] if isinstance(counts, xr.Dataset) else counts
    values = dense_matrix("counts", given)
    if values.ndim != 2 or (values < 0).any():
        raise DataError(
            f"counts: found shape {values.shape}, least value {values.min():g}; wanted one matrix, no negative"
        )
    if num_top < 1 or (target is not None and target < 1):
        raise DataError(f"num_top, target: found {num_top}, {target}; wanted at least 1")
    variable = _top(normalized_dispersion(values), num_top)
    wanted = len(values) if target is None else target
    detected = (values != 0).sum(0)
    thresholds = np.linspace(0.0, 1.0, 101)
    chosen = [variable & (detected > share * len(values)) for share in thresholds]
    best = int(np.argmin([abs(int(genes.sum()) - wanted) for genes in chosen]))
    if not chosen[best].any():
        raise DataError("counts: found no gene that varies; wanted expression that differs between cells")
    positions = np.flatnonzero(chosen[best])
    if isinstance(counts, xr.Dataset):
        data = counts.isel(gene=positions)
    else:
        names = [f"gene_{i}" for i in positions]
        data = from_arrays(values[:, positions], gene_names=names)
    return data.assign_attrs(num_top=num_top, smallest_share=float(thresholds[best]))


def normalized_dispersion(counts: Float[np.ndarray, "cell gene"]) -> Float[np.ndarray, " gene"]:
    """Measure how much a gene varies compared with genes of like mean (Satija et al. 2015, flavour "seurat").

    The log of variance over mean is standardised within 20 bins of equal width of log(1 + mean); a gene that is alone
    in its bin gets 1.

    Parameters
    ----------
    counts
        Not negative, not logged.

    Returns
    -------
    Float[np.ndarray, " gene"]
        Standard deviations above the mean of the bin; -inf for constant genes.

    References
    ----------
    Satija et al., Nature Biotechnology 33 (2015) 495-502.
    """
    mean, variance = counts.mean(0), counts.var(0, ddof=1)
    varies = variance > 0
    dispersion = np.log(np.divide(variance, mean, where=varies, out=np.ones_like(mean)))
    level = np.log1p(mean)
    inner_edges = np.linspace(level.min(), level.max(), _BINS + 1)[1:-1]
    bins = np.digitize(level, inner_edges, right=True)
    result = np.full(len(mean), -np.inf)
    for k in np.unique(bins[varies]):
        members = varies & (bins == k)
        if members.sum() == 1:
            result[members] = 1.0
            continue
        values = dispersion[members]
        spread = values.std(ddof=1)
        result[members] = (values - values.mean()) / spread if spread > 0 else 0.0
    return result


def _top(score: Float[np.ndarray, " gene"], count: int) -> Bool[np.ndarray, " gene"]:
    finite = np.isfinite(score)
    if count >= finite.sum():
        return finite
    return score >= np.sort(score)[-count]
