"""What tests of MED-MAGMA share (fits)."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

import embergraph as eg
from embergraph.datasets import simulated_matrix
from embergraph.models import (
    MEDMAGMA,
    FixedGraph,
    GaussianGraph,
    LaplaceGraph,
    SparseGraph,
    SpectralGraph,
)

N, P, M = 12, 15, 3


FAMILIES: dict[str, dict[str, Any]] = {
    "edges": {},
    "hubs": {"cell_graph": SparseGraph(hubs=3.0), "gene_graph": SparseGraph(hubs=3.0)},
    "gaussian": {"cell_graph": GaussianGraph(), "gene_graph": GaussianGraph()},
    "mixed": {"cell_graph": SparseGraph(), "gene_graph": GaussianGraph()},
    "spectral": {"cell_graph": SpectralGraph(0.9), "gene_graph": SpectralGraph(0.9)},
    "automatic": {"cell_graph": SpectralGraph(), "gene_graph": SpectralGraph()},
    "laplace": {"cell_graph": LaplaceGraph(), "gene_graph": LaplaceGraph()},
    "fixed": {"cell_graph": FixedGraph(N), "gene_graph": FixedGraph(P)},
    "independent": {"structure": "independent_cells"},
}


def data_of(n: int = N, p: int = P, m: int | None = None, seed: int = 0, **options: Any) -> xr.Dataset:
    return simulated_matrix(n, p, num_replicates=m, seed=seed, **options)


def fitted(data: xr.Dataset, *, plan: dict[str, Any] | None = None, **options: Any) -> Any:
    return eg.fit(MEDMAGMA.for_data(data, **options), data, **{"num_steps": 14, "progress": False, **(plan or {})})


def graphs_close(found: xr.Dataset, wanted: xr.Dataset, tolerance: float = 1e-8) -> None:
    assert set(found) == set(wanted)
    for name in wanted:
        np.testing.assert_allclose(found[name].values, wanted[name].values, rtol=0, atol=tolerance, err_msg=str(name))


def changed(data: xr.Dataset, values: Any) -> xr.Dataset:
    return data.assign(expression=(data["expression"].dims, np.asarray(values)))
