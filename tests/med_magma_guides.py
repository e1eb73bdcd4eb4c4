"""What tests of MED-MAGMA share (guides)."""

from __future__ import annotations

from typing import Any

import torch
import xarray as xr
from med_magma_fits import data_of as data_of
from torch import Tensor

from embergraph.guides.med_magma import MEDMAGMAGuide
from embergraph.models import (
    MEDMAGMA,
    FixedGraph,
    GaussianGraph,
    LaplaceGraph,
    SparseGraph,
    SpectralGraph,
)
from embergraph.models.parts.graph_priors import GraphPrior

DOUBLE = {"dtype": torch.double}


def expression_of(data: xr.Dataset) -> Tensor:
    return torch.as_tensor(data["expression"].values)


def truth_of(data: xr.Dataset) -> list[Tensor]:
    return [torch.as_tensor(data[f"true_{axis}_precision"].values) for axis in ("cell", "gene")]


def both(graph: type[GraphPrior], *args: Any, **options: Any) -> dict[str, GraphPrior]:
    return {"cell_graph": graph(*args, **options), "gene_graph": graph(*args, **options)}


def known(data: xr.Dataset, **options: Any) -> MEDMAGMA:
    cell, gene = (FixedGraph(Psi) for Psi in truth_of(data))
    return MEDMAGMA.for_data(data, cell_graph=cell, gene_graph=gene, **options)


def pair(data: xr.Dataset, model: MEDMAGMA | None = None, **options: Any) -> tuple[MEDMAGMA, MEDMAGMAGuide]:
    model = (model or MEDMAGMA.for_data(data)).double()
    return model, MEDMAGMAGuide(model, **options).double()


def swept(data: xr.Dataset, model: MEDMAGMA | None = None, num_steps: int = 3, **options: Any) -> Any:
    """Model, guide and bounds after some sweeps."""
    model, guide = pair(data, model, **options)
    inputs = {"expression": expression_of(data)}
    with torch.no_grad():
        bounds = [guide.update(model, inputs, step) for step in range(num_steps)]
    return model, guide, bounds


def expected_quadratic(guide: MEDMAGMAGuide, graphs: tuple[Tensor, Tensor], D: Tensor) -> list[float]:
    """E[q] of every matrix under the guide's scales: log-normal moments, entry by entry."""
    found = []
    for Y, scales in zip(D.reshape(-1, *D.shape[-2:]), guide.scales.as_log_scales(), strict=True):
        n, p = Y.shape
        sigma = scales.covariance if scales.covariance is not None else scales.spread.diag()
        unit, total = torch.eye(n + p, **DOUBLE), 0.0
        pairs = [(float(graphs[0][i, k]), (i, j), (k, j)) for i in range(n) for k in range(n) for j in range(p)]
        pairs += [(float(graphs[1][j, k]), (i, j), (i, k)) for j in range(p) for k in range(p) for i in range(n)]
        for weight, one, other in pairs:
            if weight:
                exponents = unit[one[0]] + unit[n + one[1]] + unit[other[0]] + unit[n + other[1]]
                moment = (exponents @ scales.mean + 0.5 * exponents @ sigma @ exponents).exp()
                total += weight * float(Y[one] * Y[other] * moment)
        found.append(total)
    return found


FAMILIES: dict[str, dict[str, Any]] = {
    "edges": {},
    "gaussian": both(GaussianGraph),
    "mixed": {"cell_graph": SparseGraph(), "gene_graph": GaussianGraph()},
    "hubs": both(SparseGraph, hubs=3.0),
    "spectral": both(SpectralGraph, 0.9),
    "automatic": both(SpectralGraph),
    "laplace": both(LaplaceGraph),
    "independent": {"structure": "independent_cells"},
}
