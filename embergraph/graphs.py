"""Networks as networkx graphs."""

from __future__ import annotations

import networkx as nx
import numpy as np
import xarray as xr

from .graph_rules import node_dim, symmetric_matrix
from .models.parts.errors import DataError


def to_networkx(
    networks: xr.Dataset | xr.DataArray,
    *,
    cell: object = None,
    axis: str | None = None,
    threshold: float = 0.0,
) -> nx.DiGraph | nx.Graph:
    """Turn a network into a networkx graph: directed for regulators and targets, undirected for pairs of one kind.

    Parameters
    ----------
    networks
        Directed: ``network`` (and, if present, ``lower``, ``upper``, ``edge_probability``) over ``(cell, regulator,
        target)`` or ``(regulator, target)``; or such an array. Undirected: variables such as
        ``gene_partial_correlation``, ``gene_lower``, ``gene_upper``, ``gene_edge_probability`` or ``gene_score`` over
        ``(gene, gene_other)``, likewise for cells; or one such array.
    cell
        Label of the cell of a directed network; not needed if there is one network.
    axis
        ``"gene"`` or ``"cell"``, for a Dataset with undirected graphs of both.
    threshold
        Edges of at most this absolute weight are left out.

    Returns
    -------
    nx.DiGraph or nx.Graph
        All genes (or cells) as nodes; edges with ``weight`` (undirected: the partial correlation, else the score) and,
        where known, ``lower``, ``upper`` and ``edge_probability``.

    Raises
    ------
    DataError
        If a dim is missing, several cells or axes are given and none is named, or an undirected graph is not symmetric.
    """
    axes = _undirected_axes(networks)
    if axes:
        return _undirected(networks, axes, axis, threshold)
    dataset = networks.to_dataset(name="network") if isinstance(networks, xr.DataArray) else networks
    if "network" not in dataset:
        raise DataError(f"networks: found variables {sorted(map(str, dataset.data_vars))}; wanted 'network'")
    if "cell" in dataset["network"].dims:
        if cell is None and dataset.sizes["cell"] > 1:
            raise DataError(f"cell: found none named among {dataset.sizes['cell']} cells; wanted a label of 'cell'")
        if cell is not None and cell not in set(dataset["cell"].values.tolist()):
            raise DataError(
                f"cell: found {cell!r}; wanted a label of 'cell', such as {dataset['cell'].values.tolist()[0]!r}"
            )
        dataset = dataset.isel(cell=0) if cell is None else dataset.sel(cell=cell)
    if set(dataset["network"].dims) != {"regulator", "target"}:
        raise DataError(f"network: found dims {dataset['network'].dims}; wanted (regulator, target)")
    weights = dataset["network"].transpose("regulator", "target")
    regulators, targets = weights["regulator"].values.tolist(), weights["target"].values.tolist()
    graph = nx.DiGraph()
    graph.add_nodes_from(targets)
    for a, b in zip(*np.nonzero(np.abs(weights.values) > threshold), strict=True):
        about = {
            key: float(dataset[key].transpose("regulator", "target")[a, b]) for key in EDGE_FACTS if key in dataset
        }
        graph.add_edge(regulators[a], targets[b], weight=float(weights[a, b]), **about)
    return graph


EDGE_FACTS = ("lower", "upper", "edge_probability")

#: What the weight of an undirected edge is read from, the first that is there.
WEIGHTS = ("partial_correlation", "score")


def _undirected_axes(networks: xr.Dataset | xr.DataArray) -> list[str]:
    if isinstance(networks, xr.DataArray):
        return [str(networks.dims[0])] if networks.ndim == 2 and networks.dims[1] == f"{networks.dims[0]}_other" else []
    found = (name for name in networks.data_vars if "network" not in networks)
    return sorted({axis for name in found for axis in ("cell", "gene") if str(name) in _names(axis, WEIGHTS)})


def _names(axis: str, facts: tuple[str, ...]) -> list[str]:
    return [f"{axis}_{fact}" for fact in facts]


def _undirected(networks: xr.Dataset | xr.DataArray, axes: list[str], axis: str | None, threshold: float) -> nx.Graph:
    if axis not in (axes if len(axes) > 1 else [None, *axes]):
        raise DataError(f"axis: found {axis!r}; wanted one of {axes}")
    chosen = axes[0] if axis is None else axis
    if isinstance(networks, xr.DataArray):
        weights, facts = networks, {}
    else:
        weights = next(networks[name] for name in _names(chosen, WEIGHTS) if name in networks)
        present = zip(EDGE_FACTS, _names(chosen, EDGE_FACTS), strict=True)
        facts = {fact: networks[name].transpose(*weights.dims) for fact, name in present if name in networks}
    dim = node_dim(weights)
    matrix, names = symmetric_matrix(str(weights.name or "graph"), weights), weights[dim].values.tolist()
    graph = nx.Graph()
    graph.add_nodes_from(names)
    for a, b in zip(*np.nonzero(np.triu(np.abs(matrix) > threshold, 1)), strict=True):
        about = {fact: float(values[a, b]) for fact, values in facts.items()}
        graph.add_edge(names[a], names[b], weight=float(matrix[a, b]), **about)
    return graph
