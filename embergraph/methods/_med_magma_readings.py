"""What users read off a fitted MED-MAGMA: scales of cells and genes, and which pairs are linked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..inference.readings import Readings, of_intervals, of_probability, truth_of
from ._med_magma_graphs import AXES

if TYPE_CHECKING:
    from ._med_magma_fit import MEDMAGMAFit

EDGE = 0.05
"""Partial correlations above it in size count as edges."""


def graph_readings(fit: MEDMAGMAFit, data: xr.Dataset, *, level: float) -> Readings:
    """Log scales and edges; see `Fit.readings`."""
    scales, graphs = fit.scales(interval=level), fit.graphs(threshold=EDGE, interval=level)
    found: Readings = {}
    for name, axis in zip(("log_u", "log_v"), AXES, strict=True):
        known = truth_of(data, name, scales[name])
        found[name] = of_intervals(
            scales[name], scales[f"{name}_lower"], scales[f"{name}_upper"], level,
            None if known is None else known - known.mean(axis), f"log scales of {axis}s, which sum to zero",
        )  # fmt: skip
    for axis in AXES:
        found[f"{axis}_edge"] = of_probability(
            graphs[f"{axis}_edge_probability"],
            true_edges(data, axis),
            f"that the partial correlation of two {axis}s is above {EDGE} in size",
        )
    return found


def true_edges(data: xr.Dataset, axis: str) -> xr.DataArray | None:
    """Pairs of one axis whose partial correlation in a simulation is above `EDGE`; each pair once, the rest NaN."""
    other = {"cell": "gene", "gene": "cell"}[axis]
    if f"true_{axis}_precision" not in data or f"true_{other}_precision" not in data:
        return None
    Psi, rest = (data[f"true_{name}_precision"].values for name in (axis, other))
    diagonal = Psi.diagonal() + rest.diagonal().mean()
    partial = -Psi / np.sqrt(np.outer(diagonal, diagonal))
    once = np.triu(np.ones_like(Psi, dtype=bool), 1)
    return xr.DataArray(np.where(once, np.abs(partial) > EDGE, np.nan), dims=(axis, f"{axis}_other"))
