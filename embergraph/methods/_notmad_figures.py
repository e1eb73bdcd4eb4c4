"""Pictures of a fitted NOTMAD: the mean network, edges that differ between cells, archetypes, cells between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import xarray as xr

from .._figures import new_figure
from ..inference.figures import Picture
from ..notmad_plots import plot_archetype_map
from ..plots import plot_archetypes, plot_edges, plot_graph

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .notmad import NOTMADFit

MAX_CELLS, MAX_GROUPS, MAX_EDGES, MAX_GENES = 150, 6, 24, 30
LEAST = 0.05


def network_figures(fit: NOTMADFit, data: xr.Dataset, num_samples: int, seed: int) -> list[Picture]:
    """See `Fit.figures`."""
    every = np.unique(np.linspace(0, data.sizes["cell"] - 1, MAX_CELLS).round().astype(int))
    cells = data.isel(cell=every)
    networks = fit.networks(cells, num_samples=num_samples, seed=seed)
    mean = networks["network"].mean("cell")
    pictures = [_graph(mean), _edges(networks, _leading_cells(fit, cells, num_samples, seed))]
    if data.sizes["gene"] <= MAX_GENES and fit.model.num_archetypes > 1:
        pictures.append(_archetypes(fit, cells, num_samples, seed))
    if fit.model.num_archetypes > 1:
        pictures.append(_map(fit, cells, num_samples, seed))
    return [picture for picture in pictures if picture is not None]


def _graph(mean: xr.DataArray) -> Picture | None:
    """The largest effects of the mean network."""
    sizes = np.sort(np.abs(mean.values), axis=None)[::-1]
    threshold = max(LEAST, float(sizes[min(MAX_EDGES, len(sizes) - 1)]))
    strong = np.abs(mean.values) > threshold
    keep = np.flatnonzero(strong.any(0) | strong.any(1))
    if not len(keep):
        return None
    shown = mean.isel(regulator=keep, target=keep)
    figure = new_figure(6.0, 2.2 + 0.18 * len(keep))
    ax = plot_graph(shown, threshold=threshold, ax=figure.add_subplot())
    ax.set_title("")
    count = int(strong.sum())
    alt = f"Directed graph of {len(keep)} genes with {count} arrows to targets, red positive, blue negative."
    return Picture(f"Mean network of the cells: {count} effects above {threshold:.2g} in size", alt, figure)


def _edges(networks: xr.Dataset, places: list[int]) -> Picture | None:
    """Edges of one cell for each archetype, that in which it weighs most."""
    few = networks.isel(cell=places)
    if not float(np.abs(few["network"]).max()) > 0:
        return None
    figure = new_figure(5.8, 1.4 + (0.15 + 0.11 * len(places)) * 6)
    ax = plot_edges(few, ax=figure.add_subplot())
    ax.set_title("")
    alt = f"Means and intervals of the strongest edges in {len(places)} cells, a row an edge, a colour a cell."
    mass = f"{100 * float(networks.attrs['interval']):g} % intervals"
    return Picture(f"Strongest edges, with {mass}, in the cells in which each archetype weighs most", alt, figure)


def _leading_cells(fit: NOTMADFit, cells: xr.Dataset, num_samples: int, seed: int) -> list[int]:
    weights = fit.mixture(cells, num_samples=num_samples, seed=seed)["mixture"].transpose("cell", "archetype").values
    return list(dict.fromkeys(weights.argmax(0).tolist()))[:MAX_GROUPS]


def _archetypes(fit: NOTMADFit, cells: xr.Dataset, num_samples: int, seed: int) -> Picture:
    """Posterior means of the archetypal networks."""
    tree = fit.posterior(cells, num_samples, predictive=False, prior=False, seed=seed)
    axes = plot_archetypes(tree, figure=(figure := new_figure(*_archetypes_size(fit))))
    alt = f"Matrices of {len(axes)} archetypal networks, regulators in rows, targets in columns, red positive."
    return Picture("Archetypal networks, posterior means", alt, figure)


def _archetypes_size(fit: NOTMADFit) -> tuple[float, float]:
    K, p = fit.model.num_archetypes, fit.model.num_genes
    columns = K if K <= 4 else int(np.ceil(np.sqrt(K)))
    side = 1.4 + 0.17 * p
    return min(1.6 + columns * side, 13.0), min(max(3.3, 0.6 + -(-K // columns) * side), 12.0)


def _map(fit: NOTMADFit, cells: xr.Dataset, num_samples: int, seed: int) -> Picture:
    """Cells between archetypes."""
    figure = new_figure(6.0, 4.6)
    plot_archetype_map(fit.archetype_map(cells, num_samples=num_samples, seed=seed), ax=figure.add_subplot())
    alt = f"Scatter of {cells.sizes['cell']} cells in the plane through {fit.model.num_archetypes} archetypes."
    return Picture("Cells between archetypes", alt, cast("Figure", figure))
