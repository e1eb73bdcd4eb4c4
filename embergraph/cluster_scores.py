"""Agreement of clusters with labels of the same nodes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from sklearn.metrics import adjusted_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from .models.parts.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped

    Labels = Sequence[object] | Shaped[np.ndarray, " node"] | xr.DataArray


def ami(labels: Labels, clusters: Labels, *, drop: Collection[Any] = ()) -> float:
    """Adjusted mutual information of two partitions of the same nodes, in either order.

    Parameters
    ----------
    labels, clusters
        One a node.
    drop
        Labels whose nodes are left out.

    Returns
    -------
    float
        At most 1; 0 is chance. 1 if both put all nodes in one group, 0 if only one does, 0 if no nodes are left.

    Raises
    ------
    DataError
        If the lengths differ.
    """
    first, second = _partitions(labels, clusters, drop)
    return float(adjusted_mutual_info_score(first, second)) if first.size else 0.0


def balanced_ami(labels: Labels, clusters: Labels, *, drop: Collection[Any] = ()) -> float:
    """Adjusted mutual information after giving all classes of the first argument the same size.

    The rows of the contingency table are scaled to the mean class size and made whole numbers by largest remainders,
    so that every class keeps exactly that size (the program of Maan et al. cuts off the fractions).

    Parameters
    ----------
    labels, clusters
        One a node. The order matters: classes of `labels` are made equal. The MED-MAGMA paper passes the clusters
        first and so equalises the clusters.
    drop
        Labels whose nodes are left out.

    Returns
    -------
    float
        As in `ami`.

    Raises
    ------
    DataError
        If the lengths differ.

    References
    ----------
    Maan et al., Nature Biotechnology 42 (2024), doi 10.1038/s41587-023-02097-9.
    """
    first, second = _partitions(labels, clusters, drop)
    if first.size == 0:
        return 0.0
    table = contingency_matrix(first, second).astype(np.float64)
    size = max(1, round(float(table.sum(1).mean())))
    whole = np.stack([_whole_numbers(size * row / row.sum()) for row in table])
    classes, groups = (np.repeat(index.ravel(), whole.ravel()) for index in np.indices(whole.shape))
    return float(adjusted_mutual_info_score(classes, groups))


def _partitions(
    labels: Labels, clusters: Labels, drop: Collection[Any]
) -> tuple[Int[np.ndarray, " node"], Int[np.ndarray, " node"]]:
    first, second = np.asarray(labels), np.asarray(clusters)
    if first.ndim != 1 or first.shape != second.shape:
        raise DataError(f"labels, clusters: found shapes {first.shape} and {second.shape}; wanted one each a node")
    kept = ~np.isin(first, list(drop)) if drop else np.ones(len(first), dtype=bool)
    first, second = (np.unique(names[kept].astype(str), return_inverse=True)[1] for names in (first, second))
    return first, second


def _whole_numbers(parts: Float[np.ndarray, " group"]) -> Int[np.ndarray, " group"]:
    """Whole numbers with the (whole) sum of the parts, by largest remainders."""
    whole = np.floor(parts + 1e-9)
    missing = round(float(parts.sum() - whole.sum()))
    whole[np.argsort(-(parts - whole), kind="stable")[:missing]] += 1
    return whole.astype(np.int64)
