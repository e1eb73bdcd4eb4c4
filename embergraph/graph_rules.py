"""From scores of pairs to graphs: which edges to keep, and clusters of nodes.

Scores are symmetric DataArrays over (gene, gene_other) or (cell, cell_other); their size, not their sign, counts, and
the diagonal never does. Names stay with the results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import xarray as xr

from .cluster_scores import ami
from .models.parts.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped


def top_k(scores: xr.DataArray, k: int) -> xr.DataArray:
    """Keep the k strongest partners of every node, and the pairs in which either chose the other.

    Parameters
    ----------
    scores
        Symmetric, over (gene, gene_other) or (cell, cell_other).
    k
        At least 1. Scores of 0 are never chosen; ties go to the earlier node.

    Returns
    -------
    xr.DataArray
        The scores of the chosen pairs, 0 elsewhere and on the diagonal; symmetric.

    Raises
    ------
    DataError
        If `k` is below 1, or `scores` have other dims, or are not symmetric and finite.
    """
    if k < 1:
        raise DataError(f"k: found {k}; wanted at least 1")
    node_dim(scores)
    matrix = symmetric_matrix("scores", scores)
    strength = np.abs(matrix)
    order = np.argsort(-strength, axis=1, kind="stable")[:, :k]
    chosen = np.zeros(matrix.shape, dtype=bool)
    np.put_along_axis(chosen, order, True, axis=1)
    return _kept(scores, matrix, chosen | chosen.T)


def threshold(scores: xr.DataArray, at: float) -> xr.DataArray:
    """Keep pairs whose score is above a threshold in size.

    Parameters
    ----------
    scores
        As in `top_k`.
    at
        At least 0, in the unit of the scores.

    Returns
    -------
    xr.DataArray
        As in `top_k`.

    Raises
    ------
    DataError
        If `at` is negative, or as in `top_k`.
    """
    if not at >= 0:
        raise DataError(f"at: found {at}; wanted a number that is not negative")
    node_dim(scores)
    matrix = symmetric_matrix("scores", scores)
    return _kept(scores, matrix, np.abs(matrix) > at)


def strongest(scores: xr.DataArray, num_edges: int) -> xr.Dataset:
    """List the pairs of largest score in size, strongest first.

    Parameters
    ----------
    scores
        As in `top_k`.
    num_edges
        At most so many, at least 1; scores of 0 are not listed, and ties go to the earlier pair.

    Returns
    -------
    xr.Dataset
        Along ``edge``: the names of both nodes under the names of the dims of `scores`, and ``score``.

    Raises
    ------
    DataError
        If `num_edges` is below 1, or as in `top_k`.
    """
    if num_edges < 1:
        raise DataError(f"num_edges: found {num_edges}; wanted at least 1")
    dim = node_dim(scores)
    matrix = symmetric_matrix("scores", scores)
    rows, columns = np.triu_indices(len(matrix), 1)
    values = matrix[rows, columns]
    order = np.argsort(-np.abs(values), kind="stable")[:num_edges]
    order = order[values[order] != 0]
    names = scores[dim].to_numpy()
    parts = {dim: names[rows[order]], f"{dim}_other": names[columns[order]], "score": values[order]}
    return xr.Dataset({name: ("edge", part) for name, part in parts.items()})


def clusters(graph: xr.DataArray, *, resolution: float = 1.0, seed: int = 0) -> xr.DataArray:
    """Cluster the nodes of a graph by modularity (Louvain), with the sizes of the scores as weights.

    Parameters
    ----------
    graph
        As in `top_k`: 0 is no edge. For an unweighted graph pass ``graph != 0``.
    resolution
        Positive; larger values give more and smaller clusters.
    seed
        The method visits nodes in random order; the same seed gives the same clusters.

    Returns
    -------
    xr.DataArray
        Whole numbers along the nodes, 0 for the largest cluster. A node without edges is a cluster of its own.

    Raises
    ------
    DataError
        If `resolution` is not positive, or as in `top_k`.

    References
    ----------
    Blondel et al., Journal of Statistical Mechanics (2008) P10008, as networkx implements it.
    """
    if not 0 < resolution < np.inf:
        raise DataError(f"resolution: found {resolution}; wanted a positive number")
    dim = node_dim(graph)
    network = nx.from_numpy_array(np.abs(symmetric_matrix("graph", graph)))
    return _louvain(network, graph[dim], resolution, seed)


def best_clusters(
    scores: xr.DataArray,
    labels: Sequence[object] | Shaped[np.ndarray, " node"] | xr.DataArray,
    *,
    ks: Sequence[int] = (1, 3, 5, 10, 20, 40),
    resolutions: Sequence[float] = (0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0),
    weighted: bool = False,
    agreement: Callable[[Any, Any], float] = ami,
    seed: int = 0,
) -> xr.Dataset:
    """Cluster top-k graphs over a grid of k and resolution, and keep what agrees best with the labels.

    The best of a grid is an optimistic number, since the labels choose it: compare methods by it only on one grid.

    Parameters
    ----------
    scores
        As in `top_k`.
    labels
        One a node.
    ks, resolutions
        The grid; values of k of at least the number of nodes are left out.
    weighted
        Whether the sizes of the scores weight the edges.
    agreement
        Function of labels and clusters: `ami`, `balanced_ami` or one of yours.
    seed
        As in `clusters`.

    Returns
    -------
    xr.Dataset
        ``agreement (k, resolution)``, ``clusters`` of the best pair (the first one on ties) along the nodes; attributes
        ``best_k``, ``best_resolution`` and ``best_agreement``.

    Raises
    ------
    DataError
        If the grid is empty, or as in `top_k`, `clusters` and `agreement`.
    """
    dim = node_dim(scores)
    usable = [k for k in ks if k < scores.sizes[dim]]
    if not usable or not len(resolutions):
        raise DataError(f"ks, resolutions: found {ks}, {resolutions}; wanted a k below {scores.sizes[dim]} nodes")
    table = np.empty((len(usable), len(resolutions)))
    best: tuple[float, xr.DataArray, dict[str, float]] | None = None
    for i, k in enumerate(usable):
        graph = top_k(scores, k)
        graph = graph if weighted else graph != 0
        for j, resolution in enumerate(resolutions):
            found = clusters(graph, resolution=resolution, seed=seed)
            table[i, j] = agreement(labels, found)
            if best is None or table[i, j] > best[0]:
                best = float(table[i, j]), found, {"best_k": k, "best_resolution": float(resolution)}
    assert best is not None  # the grid is not empty
    return xr.Dataset(
        {"agreement": (("k", "resolution"), table), "clusters": best[1]},
        coords={"k": usable, "resolution": list(resolutions)},
        attrs={**best[2], "best_agreement": best[0]},
    )


def node_dim(graph: Any) -> str:
    """Return the dim of the nodes of an undirected graph.

    Parameters
    ----------
    graph
        DataArray over (x, x_other), in this order.

    Returns
    -------
    str
        x, such as ``gene``.

    Raises
    ------
    DataError
        If `graph` is no such array, or names its nodes differently on both sides.
    """
    if not isinstance(graph, xr.DataArray):
        raise DataError(f"graph: found a {type(graph).__name__}; wanted a DataArray over (gene, gene_other)")
    if graph.ndim != 2 or graph.dims[1] != f"{graph.dims[0]}_other":
        raise DataError(f"graph: found dims {graph.dims}; wanted (gene, gene_other) or (cell, cell_other)")
    dim, other = (str(name) for name in graph.dims)
    if {dim, other} <= graph.coords.keys() and not np.array_equal(graph[dim], graph[other]):
        raise DataError(f"graph: found other names along {other} than along {dim}; wanted the same in the same order")
    return dim


def symmetric_matrix(name: str, graph: Any) -> Float[np.ndarray, "node node_other"]:
    """Read a symmetric matrix as float64, with zeros on the diagonal, whatever stood there.

    Parameters
    ----------
    name
        What it is called in messages.
    graph
        Array or DataArray.

    Returns
    -------
    Float[np.ndarray, "node node_other"]
        The mean of the matrix and its mirror; these may differ by rounding only.

    Raises
    ------
    DataError
        If it is not square with at least 2 nodes, not finite off the diagonal, or not symmetric.
    """
    matrix = np.array(graph, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise DataError(f"{name}: found shape {matrix.shape}; wanted a square matrix of at least 2 nodes")
    np.fill_diagonal(matrix, 0.0)
    if not np.isfinite(matrix).all():
        raise DataError(f"{name}: found NaN or infinite values; wanted finite numbers")
    gap, largest = float(np.abs(matrix - matrix.T).max()), float(np.abs(matrix).max())
    if gap > 1e-6 * largest:
        raise DataError(f"{name}: found entries that differ from their mirror by {gap:.1e}; wanted a symmetric matrix")
    return (matrix + matrix.T) / 2


def _kept(scores: xr.DataArray, matrix: Float[np.ndarray, "node node_other"], chosen: np.ndarray) -> xr.DataArray:
    return scores.copy(data=np.where(chosen, matrix, 0.0))


def _louvain(network: nx.Graph, nodes: xr.DataArray, resolution: float, seed: int) -> xr.DataArray:
    found = nx.community.louvain_communities(network, resolution=resolution, seed=seed)
    code = np.empty(nodes.size, dtype=np.int64)
    for position, members in enumerate(sorted(found, key=lambda group: (-len(group), min(group)))):
        code[list(members)] = position
    return xr.DataArray(code, dims=nodes.dims, coords={nodes.dims[0]: nodes.to_numpy()}, name="clusters")
