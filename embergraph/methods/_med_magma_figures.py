"""Pictures of a fitted MED-MAGMA: graphs of genes and cells, scales of both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from .._figures import new_figure
from ..graph_rules import strongest
from ..inference.figures import Picture
from ..matrix_plots import plot_scales, plot_undirected

if TYPE_CHECKING:
    from ._med_magma_fit import MEDMAGMAFit

CLEAR = 0.95  # an edge probability above it can be read as such
MAX_EDGES, MAX_SCALES = 25, 400


def graph_figures(fit: MEDMAGMAFit) -> list[Picture]:
    """See `Fit.figures`."""
    graphs = fit.graphs()
    pictures = [_graph(graphs, axis) for axis in ("gene", "cell")]
    scales, which = fit.scales(), ""
    if "replicate" in scales.dims:
        which = f", of the first of {scales.sizes['replicate']} matrices"
        scales = scales.isel(replicate=0)
    pictures += [_scales(scales, name, axis, which) for name, axis in (("log_u", "cell"), ("log_v", "gene"))]
    return [picture for picture in pictures if picture is not None]


def _graph(graphs: xr.Dataset, axis: str) -> Picture | None:
    """The pairs of highest score, coloured by the sign of their partial correlation."""
    score, partial = graphs[f"{axis}_score"], graphs[f"{axis}_partial_correlation"]
    count = min(MAX_EDGES, 2 * score.sizes[axis])
    pairs = strongest(score, count)["score"].values
    if not len(pairs):
        return None
    kept = partial.where((np.abs(score) >= np.abs(pairs).min()) & (score != 0), 0.0).rename("partial correlation")
    if not float(np.abs(kept).max()) > 0:
        return None
    figure = new_figure(9.6, 4.4)
    plot_undirected(kept, ax=figure.add_subplot()).set_title("")
    linked = int((kept.values != 0).any(0).sum())
    likely = np.triu(graphs[f"{axis}_edge_probability"].values > CLEAR, 1).sum()
    alt = f"Graph of {axis}s, springs as edges; red edges are positive, blue ones negative, width is the size."
    sure = f"{likely} of all pairs are edges with a probability above {CLEAR}"
    title = f"Graph of {axis}s: the {len(pairs)} pairs of highest score, among {linked} {axis}s; {sure}"
    return Picture(title, alt, figure)


def _scales(scales: xr.Dataset, name: str, axis: str, which: str) -> Picture:
    shown = scales.isel({axis: slice(0, MAX_SCALES)})
    figure = new_figure(6.0, 3.2)
    plot_scales(shown, name=name, ax=figure.add_subplot()).set_title("")
    low, high = float(shown[name].min()), float(shown[name].max())
    alt = f"Log scales of {axis}s with 90 % intervals, from smallest to largest, {low:.2g} to {high:.2g}."
    first = f", the first {MAX_SCALES}" if scales.sizes[axis] > MAX_SCALES else ""
    return Picture(f"Log scales of {axis}s with 90 % intervals{first}{which}", alt, figure)
