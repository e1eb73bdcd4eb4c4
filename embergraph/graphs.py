"""Networks as networkx graphs."""

from __future__ import annotations

import networkx as nx
import numpy as np
import xarray as xr

from .models.parts.errors import DataError


def to_networkx(networks: xr.Dataset | xr.DataArray, *, cell: object = None, threshold: float = 0.0) -> nx.DiGraph:
    """Directed graph of one cell's network, or of any single network.

    Parameters
    ----------
    networks
        ``network`` (and, if present, ``lower``, ``upper``, ``edge_probability``) over ``(cell, regulator, target)`` or
        ``(regulator, target)``; or such an array.
    cell
        Label of the cell; not needed if there is one network.
    threshold
        Edges of at most this absolute weight are left out.

    Returns
    -------
    nx.DiGraph
        All genes as nodes; edges with ``weight`` and, where known, interval and probability.

    Raises
    ------
    DataError
        If a dim is missing, or several cells are given and none is named.
    """
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
