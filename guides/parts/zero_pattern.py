"""Whether the zeros of a matrix leave its row and column scales determined."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components, maximum_flow

from ...models.parts.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

__all__ = ["check_scalable"]


def check_scalable(Y: Float[Tensor, "n p"], counts: tuple[Float[Tensor, " n"], Float[Tensor, " p"]]) -> None:
    """Refuse a pattern of zeros under which the posterior of the log scales is improper.

    It is proper if and only if some matrix, positive exactly where Y is not zero, has the counts for row and column
    sums, and the rows and columns are connected through non-zeros (the condition for matrix scaling, Menon and
    Schneider 1969). That is so if a maximal flow from rows to columns through the non-zeros carries all counts and its
    residual graph is strongly connected.

    Parameters
    ----------
    Y
        Matrix with non-zero rows and columns.
    counts
        Whole numbers, of equal sum: what the rows (n,) and the columns (p,) are to sum to.

    Raises
    ------
    DataError
        With the number of groups that are not tied together, or that the counts cannot be met.
    """
    present = Y.cpu().numpy() != 0
    if present.all():
        return
    row_sums, col_sums = (np.rint(c.cpu().numpy()).astype(np.int64) for c in counts)
    groups = connected_components(_residual(present, row_sums, col_sums), connection="strong")[0]
    if groups > 1:
        raise DataError(
            f"Y: found zeros ({1 - present.mean():.0%} of the entries) that split rows and columns into {groups} "
            "groups without common scale, so that the log scales have no posterior; wanted fewer zeros (leave out the "
            "sparsest rows and columns), zeros counted as structural, or a prior on the scales"
        )


def _residual(present: Bool[np.ndarray, "n p"], row_sums: np.ndarray, col_sums: np.ndarray) -> csr_array:
    """Residual graph of a maximal flow on n row and p column nodes; without edges if the flow falls short."""
    n, p = present.shape
    row, col = np.nonzero(present)
    source, sink, total = n + p, n + p + 1, int(row_sums.sum())
    tail = np.concatenate([np.full(n, source), row, n + np.arange(p)])
    head = np.concatenate([np.arange(n), n + col, np.full(p, sink)])
    capacity = np.concatenate([row_sums, np.minimum(row_sums[row], col_sums[col]), col_sums]).astype(np.int32)
    graph = csr_array((capacity, (tail, head)), shape=(n + p + 2, n + p + 2))
    result = maximum_flow(graph, source, sink)
    if result.flow_value < total:
        return csr_array((n + p, n + p))
    # Capacity is left on every non-zero, or ample in principle, so its edge stays; it can be undone where flow is.
    used = result.flow.tocoo()
    inside = (used.row < n) & (used.col >= n) & (used.col < n + p) & (used.data > 0)
    tail = np.concatenate([row, used.col[inside]])
    head = np.concatenate([n + col, used.row[inside]])
    return coo_array((np.ones(len(tail)), (tail, head)), shape=(n + p, n + p)).tocsr()
