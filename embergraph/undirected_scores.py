"""Scores of undirected graphs: ranked pairs against a true graph, labels along edges, clusters, stated probabilities.

Graphs are symmetric matrices (arrays, or DataArrays over (cell, cell_other) or (gene, gene_other), matched by name).
Every unordered pair counts once; the diagonal, that is self loops, never counts. No score is ever NaN: what the
functions return where nothing can be scored is stated with each.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import xarray as xr
from sklearn.metrics import auc, average_precision_score, precision_recall_curve

from .cluster_scores import ami as ami
from .cluster_scores import balanced_ami as balanced_ami
from .graph_rules import symmetric_matrix
from .models.parts.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Shaped

    Graph = Float[np.ndarray, "node node_other"] | xr.DataArray
    Labels = Sequence[object] | Shaped[np.ndarray, " node"] | xr.DataArray

#: Edges of the bins of `reliability`: narrow where probabilities are read as statements.
BINS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)


def average_precision(score: Graph, truth: Graph) -> float:
    """Average precision of the magnitudes of `score` for the edges of `truth`.

    Parameters
    ----------
    score
        Any score of a pair; its sign does not count (pass the positive part of -S to use a known sign).
    truth
        Weights or a graph of 0 and 1; what is not 0 is an edge.

    Returns
    -------
    float
        Between 0 and 1. Chance, and the value for constant scores, is the share of edges among pairs; 0 if `truth` has
        no edges.

    Raises
    ------
    DataError
        If a matrix is not square, symmetric and finite, or the two do not match.
    """
    values, edges = _ranked(score, truth)
    return float(average_precision_score(edges, values)) if edges.any() else 0.0


def trapezoid_area(score: Graph, truth: Graph) -> float:
    """Area under the precision-recall curve by straight lines between its points, as the MED-MAGMA paper reports it.

    A trap: precision does not run straight between two points. Constant scores, an empty graph say, get about one half
    where their average precision is the share of edges. Use `average_precision`.

    Parameters and errors as in `average_precision`.

    Returns
    -------
    float
        Between 0 and 1; 0 if `truth` has no edges.
    """
    values, edges = _ranked(score, truth)
    if not edges.any():
        return 0.0
    precision, recall, _ = precision_recall_curve(edges, values)
    return float(auc(recall, precision))


def precision_at(score: Graph, truth: Graph, num_edges: int) -> float:
    """Share of true edges among the pairs of largest magnitude of `score`.

    Parameters
    ----------
    score, truth
        As in `average_precision`.
    num_edges
        How many pairs, at least 1 and at most all. Pairs tied with the last count with the share of edges among them,
        which is the mean over all ways to break the tie.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    DataError
        As in `average_precision`, or if `num_edges` is out of range.
    """
    values, edges = _ranked(score, truth)
    if not 1 <= num_edges <= values.size:
        raise DataError(f"num_edges: found {num_edges}; wanted between 1 and the number of pairs, {values.size}")
    last = np.sort(values)[-num_edges]
    above, tied = values > last, values == last
    return float((edges[above].sum() + (num_edges - above.sum()) * edges[tied].mean()) / num_edges)


def nominal_assortativity(graph: Graph, labels: Labels, *, drop: Collection[Any] = ()) -> float:
    """Tendency of edges to join nodes of the same label (Newman 2003), without weights and self loops.

    Parameters
    ----------
    graph
        What is not 0 off the diagonal is an edge.
    labels
        One a node; a missing label must be a label too, such as ``"NA"``, and is a category of its own.
    drop
        Labels whose nodes are left out, with their edges.

    Returns
    -------
    float
        At most 1; 0 is chance, and the value if there is no edge or all edges join nodes of one and the same label.

    Raises
    ------
    DataError
        If the graph is not square, symmetric and finite, or the labels do not match it.
    """
    matrix, names = _labelled(graph, labels, drop)
    ends = np.unique(names[matrix.any(0)])
    if ends.size < 2:
        return 0.0
    network = nx.from_numpy_array(matrix)
    nx.set_node_attributes(network, dict(enumerate(names.tolist())), "label")
    return float(nx.attribute_assortativity_coefficient(network, "label"))


def numeric_assortativity(graph: Graph, values: Labels, *, drop: Collection[Any] = ()) -> float:
    """Correlation of a number between the two ends of edges (Newman 2003), without weights and self loops.

    For codes of labels, as in the MED-MAGMA paper, it depends on the order of the labels: use `nominal_assortativity`.

    Parameters
    ----------
    graph
        What is not 0 off the diagonal is an edge.
    values
        One number a node.
    drop
        Values whose nodes are left out.

    Returns
    -------
    float
        Between -1 and 1; 0 if there is no edge or all ends have the same value.

    Raises
    ------
    DataError
        As in `nominal_assortativity`, or if the values are no finite numbers.
    """
    matrix, numbers = _labelled(graph, values, drop)
    if numbers.dtype.kind not in "iufb" or not np.isfinite(numbers).all():
        raise DataError(f"values: found dtype {numbers.dtype}, or not finite; wanted one finite number a node")
    rows, columns = np.nonzero(matrix)  # both directions of every edge
    ends = numbers[rows].astype(np.float64), numbers[columns].astype(np.float64)
    if rows.size == 0 or np.ptp(ends[0]) == 0:
        return 0.0
    return float(np.corrcoef(*ends)[0, 1])


def reliability(probability: Graph, truth: Graph, *, bins: Sequence[float] = BINS) -> xr.Dataset:
    """Compare stated probabilities of edges with how often the pairs are edges.

    Parameters
    ----------
    probability
        Between 0 and 1.
    truth
        What is not 0 is an edge.
    bins
        Increasing edges of bins from 0 to 1; each holds its lower edge, the last both.

    Returns
    -------
    xr.Dataset
        ``stated`` (mean probability), ``observed`` (share of edges) and ``count`` (pairs) along ``bin``, with ``lower``
        and ``upper`` as coordinates. Bins without pairs are left out. Attributes: ``expected_edges`` and
        ``true_edges``.

    Raises
    ------
    DataError
        As in `average_precision`, or if probabilities or bins are out of range.
    """
    values, edges = _stated(probability, truth)
    limits = np.asarray(bins, dtype=np.float64)
    if limits.ndim != 1 or limits.size < 2 or limits[0] != 0 or limits[-1] != 1 or (np.diff(limits) <= 0).any():
        raise DataError(f"bins: found {bins}; wanted increasing numbers from 0 to 1")
    place = np.minimum(np.digitize(values, limits) - 1, limits.size - 2)
    filled, position, count = np.unique(place, return_inverse=True, return_counts=True)
    means = {key: np.bincount(position, what) / count for key, what in (("stated", values), ("observed", edges))}
    return xr.Dataset(
        {**{key: ("bin", mean) for key, mean in means.items()}, "count": ("bin", count)},
        coords={"lower": ("bin", limits[filled]), "upper": ("bin", limits[filled + 1])},
        attrs={"expected_edges": float(values.sum()), "true_edges": int(edges.sum())},
    )


def brier_score(probability: Graph, truth: Graph) -> float:
    """Mean squared difference between the stated probability of an edge and 1 or 0.

    Parameters and errors as in `reliability`.

    Returns
    -------
    float
        Between 0 and 1, smaller is better; stating the share r of edges for every pair gives r (1 - r).
    """
    values, edges = _stated(probability, truth)
    return float(np.mean((values - edges) ** 2))


def _stated(probability: Graph, truth: Graph) -> tuple[Float[np.ndarray, " pair"], Bool[np.ndarray, " pair"]]:
    values, edges = _ranked(probability, truth, signed=True)
    if values.min() < 0 or values.max() > 1:
        raise DataError(f"probability: found {values.min():g} to {values.max():g}; wanted numbers between 0 and 1")
    return values, edges


def _ranked(
    score: Graph, truth: Graph, *, signed: bool = False
) -> tuple[Float[np.ndarray, " pair"], Bool[np.ndarray, " pair"]]:
    """Scores and true edges of all unordered pairs."""
    if isinstance(score, xr.DataArray) and isinstance(truth, xr.DataArray):
        truth = _matched(score, truth)
    values, actual = symmetric_matrix("score", score), symmetric_matrix("truth", truth)
    if values.shape != actual.shape:
        raise DataError(f"score, truth: found shapes {values.shape} and {actual.shape}; wanted the same nodes")
    lower = np.tril_indices(len(values), -1)
    pairs = values[lower]
    return pairs if signed else np.abs(pairs), actual[lower] != 0


def _matched(score: xr.DataArray, truth: xr.DataArray) -> xr.DataArray:
    if set(score.dims) != set(truth.dims):
        raise DataError(f"score, truth: found dims {score.dims} and {truth.dims}; wanted the same")
    truth = truth.transpose(*score.dims)
    for dim in score.dims:
        if dim in score.coords and dim in truth.coords:
            if set(score[dim].values.tolist()) != set(truth[dim].values.tolist()):
                raise DataError(f"score, truth: found different names along {dim}; wanted the same nodes")
            truth = truth.sel({dim: score[dim].values})
    return truth


def _labelled(
    graph: Graph, labels: Labels, drop: Collection[Any]
) -> tuple[Bool[np.ndarray, "node node_other"], Shaped[np.ndarray, " node"]]:
    matrix, names = symmetric_matrix("graph", graph) != 0, np.asarray(labels)
    if names.shape != (len(matrix),):
        raise DataError(f"labels: found shape {names.shape}; wanted {len(matrix)}, one a node")
    kept = ~np.isin(names, list(drop)) if drop else np.ones(len(names), dtype=bool)
    return matrix[np.ix_(kept, kept)], names[kept]
