"""Small pictures of networks, archetypes, contrasts, edges and losses; everything generic is ArviZ's.

Every function draws on given Axes, or makes its own, and returns them; none shows or saves a figure. Blue is negative
and red positive, which colour-blind readers tell apart; white is zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np
import xarray as xr

from ._drawing import (
    EDGE,
    EFFECT,
    GROUPS,
    MARKERS,
    NEGATIVE,
    POSITIVE,
    axes_or_new,
    checked,
    color_bar,
    draw_edge,
    draw_matrix,
    draw_names,
    intervals,
    limit_of,
    losses_of,
    matrix_size,
    one_network,
)
from ._layout import layered_layout
from .calibration_plots import plot_rank_ecdf as plot_rank_ecdf
from .calibration_plots import plot_rank_histogram as plot_rank_histogram
from .calibration_plots import plot_stated_probabilities as plot_stated_probabilities
from .environment_plots import plot_gene_effects as plot_gene_effects
from .environment_plots import plot_latents as plot_latents
from .environment_plots import plot_shifts as plot_shifts
from .environment_plots import plot_targets as plot_targets
from .graphs import to_networkx
from .matrix_plots import plot_graph_matrix as plot_graph_matrix
from .matrix_plots import plot_reliability as plot_reliability
from .matrix_plots import plot_scales as plot_scales
from .matrix_plots import plot_tail_dependence as plot_tail_dependence
from .matrix_plots import plot_undirected as plot_undirected
from .models.parts.errors import DataError
from .notmad_plots import plot_archetype_map as plot_archetype_map
from .notmad_plots import plot_covariate_effects as plot_covariate_effects
from .notmad_plots import plot_intervention as plot_intervention
from .validation import listed

if TYPE_CHECKING:
    from jaxtyping import Shaped
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .inference import Fit


def plot_network(networks: xr.Dataset | xr.DataArray, *, cell: object = None, ax: Axes | None = None) -> Axes:
    """Draw a network as a matrix, regulators in rows and targets in columns.

    Parameters
    ----------
    networks
        ``network`` over (cell, regulator, target) or (regulator, target), or such an array, as from
        ``fit.networks(data)`` or ``data["reference_graph"]``.
    cell
        Label of the cell; not needed if there is one network.
    ax
        Where to draw.

    Returns
    -------
    Axes
        The colour bar stands beside them.

    Raises
    ------
    DataError
        If a dim is missing, several cells are given and none is named, or a value is NaN or infinite.
    """
    weights = one_network(networks, cell)
    ax = axes_or_new(ax, matrix_size(weights))
    draw_matrix(ax, weights, limit_of(weights))
    ax.set_title("Network" if cell is None else f"Network of {cell}")
    color_bar(ax, EFFECT)
    return ax


def plot_graph(
    networks: xr.Dataset | xr.DataArray, *, cell: object = None, threshold: float = 0.1, ax: Axes | None = None
) -> Axes:
    """Draw a network as a graph, regulators above their targets.

    Width grows with the size of an effect, colour gives its sign. A cyclic network is drawn on a circle.

    Parameters
    ----------
    networks, cell, ax
        As for `plot_network`.
    threshold
        Edges of at most this absolute weight are left out, in the unit of the weights.

    Returns
    -------
    Axes
        Without frame and ticks.

    Raises
    ------
    DataError
        As in `plot_network`, or if `threshold` is negative.
    """
    from matplotlib.lines import Line2D

    if not threshold >= 0:
        raise DataError(f"threshold: found {threshold}; wanted a number that is not negative")
    weights = one_network(networks, cell)
    graph = to_networkx(weights.drop_vars("cell", errors="ignore"), threshold=threshold)
    positions, routes = layered_layout(graph)
    across, down = (float(np.ptp([point[i] for point in positions.values()])) for i in (0, 1))
    column = max(0.95, 0.45 + 0.1 * max(len(str(gene)) for gene in graph))  # inches, so that names do not overlap
    ax = axes_or_new(ax, (max(4.5, column * across + 1.5), max(3.5, 0.75 * down + 1.5)))
    names = draw_names(ax, positions, set(nx.isolates(graph)))
    largest = limit_of(weights)
    for source, target, weight in sorted(graph.edges(data="weight"), key=lambda edge: abs(edge[2])):
        width, color = 0.6 + 3.4 * abs(weight) / largest, POSITIVE if weight > 0 else NEGATIVE
        draw_edge(ax, names[source], names[target], routes[source, target], width=width, color=color)
    ax.margins(0.12)
    ax.autoscale_view()
    ax.set_axis_off()
    ax.set_title(("Network" if cell is None else f"Network of {cell}") + f": effects above {threshold:g} in size")
    signs = {"positive": POSITIVE, "negative": NEGATIVE}
    lines = [Line2D([], [], color=color, lw=3, label=sign) for sign, color in signs.items()]
    ax.legend(handles=lines, loc="upper left", bbox_to_anchor=(0, 0), ncols=2, frameon=False)
    return ax


def plot_archetypes(tree: xr.DataTree, *, figure: Figure | None = None) -> Shaped[np.ndarray, " archetype"]:
    """Draw the posterior mean of every archetypal network, on one colour scale.

    Parameters
    ----------
    tree
        From ``fit.posterior(data)``, with ``archetypes (chain, draw, archetype, regulator, target)``.
    figure
        Where to draw; left out, a new one.

    Returns
    -------
    np.ndarray of Axes
        One an archetype.

    Raises
    ------
    DataError
        If the tree has no archetypes.
    """
    import matplotlib.pyplot as plt

    group = tree.children.get("posterior") if isinstance(tree, xr.DataTree) else None
    if group is None or "archetypes" not in group.data_vars:
        found = listed(tree.children) if isinstance(tree, xr.DataTree) else type(tree).__name__
        raise DataError(f"tree: found {found}; wanted a tree with archetypes in its group posterior")
    draws = group.data_vars["archetypes"]
    means = checked(draws.mean(("chain", "draw")), "archetypes", ("archetype", *EDGE))
    names = means["archetype"].values
    columns = len(means) if len(means) <= 4 else math.ceil(math.sqrt(len(means)))
    rows = -(-len(means) // columns)
    width, height = matrix_size(means[0])
    if figure is None:
        figure = plt.figure(figsize=(0.62 * width * columns + 1, 0.75 * height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    limit = limit_of(means)
    axes = grid.ravel()
    for k, ax in enumerate(axes):
        if k < len(means):
            draw_matrix(ax, means[k], limit)
            ax.set_title(f"archetype {names[k]}")
        else:
            ax.set_axis_off()
        if k % columns:
            ax.set_ylabel("")
            ax.tick_params(axis="y", labelleft=False)
    figure.colorbar(axes[0].images[0], ax=axes, label=f"posterior mean {EFFECT}".replace(" (", "\n("))
    return axes[: len(means)]


def plot_contrast(contrast: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw how the mean networks of two groups of cells differ; dots mark intervals that exclude zero.

    Parameters
    ----------
    contrast
        From ``fit.contrast(first, second)``: ``difference``, ``lower`` and ``upper`` over (regulator, target).
    ax
        Where to draw.

    Returns
    -------
    Axes
        The colour bar stands beside them.

    Raises
    ------
    DataError
        If a variable is missing or not over (regulator, target).
    """
    difference, lower, upper = intervals(contrast, "difference", EDGE)
    ax = axes_or_new(ax, matrix_size(difference))
    limit = limit_of(difference)
    draw_matrix(ax, difference, limit)
    rows, columns = np.nonzero((lower.values > 0) | (upper.values < 0))
    dark = np.abs(difference.values[rows, columns]) > 0.6 * limit
    ax.scatter(columns, rows, s=14, c=np.where(dark, "white", "black"))
    mass = contrast.attrs.get("interval")
    ax.set_title("Difference of mean networks, first minus second")
    dots = "dots: interval excludes 0" if mass is None else f"dots: {mass:.0%} interval excludes 0"
    ax.set_xlabel(f"target\n({dots})")
    color_bar(ax, f"difference in {EFFECT}".replace(" (", "\n("))
    return ax


def plot_edges(
    networks: xr.Dataset, *, num_edges: int = 6, labels: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw means and intervals of the strongest edges, one row a group of cells.

    Parameters
    ----------
    networks
        ``network``, ``lower`` and ``upper`` over (cell, regulator, target) of a few cells, each standing for a group:
        ``fit.networks`` of one cell of every condition, say.
    num_edges
        How many edges: those whose largest absolute effect in any cell is largest.
    labels
        Names of the groups; those of the cells if left out.
    ax
        Where to draw.

    Returns
    -------
    Axes
        Edges from top to bottom, strongest first.

    Raises
    ------
    DataError
        If a variable is missing, there are more than 10 cells, or `labels` do not match.
    """
    network, lower, upper = intervals(networks, "network", ("cell", *EDGE))
    count = len(network)
    if count > len(GROUPS):
        raise DataError(f"networks: found {count} cells; wanted at most {len(GROUPS)}, each standing for a group")
    if num_edges < 1:
        raise DataError(f"num_edges: found {num_edges}; wanted at least 1")
    names = network["cell"].values.tolist() if labels is None else list(labels)
    if len(names) != count:
        raise DataError(f"labels: found {len(names)}; wanted {count}, one a cell")
    strength = np.abs(network.values).max(0)
    flat = np.argsort(-strength, axis=None, kind="stable")[:num_edges]
    edges = [(a, b) for a, b in zip(*np.unravel_index(flat, strength.shape), strict=True) if strength[a, b] > 0]
    ax = axes_or_new(ax, (7.0, 1.2 + (0.15 + 0.11 * count) * len(edges)))
    for group in range(count):
        place = np.arange(len(edges)) + 0.8 * ((group + 0.5) / count - 0.5)
        mean, low, high = (np.array([v.values[group, a, b] for a, b in edges]) for v in (network, lower, upper))
        ax.hlines(place, low, high, color=GROUPS[group], lw=1.4)
        ax.plot(mean, place, MARKERS[group], color=GROUPS[group], ms=4, ls="none", label=str(names[group]))
    ax.axvline(0, color="#888888", lw=0.8)
    regulators, targets = network["regulator"].values, network["target"].values
    ax.set_yticks(range(len(edges)), [f"{regulators[a]} → {targets[b]}" for a, b in edges])
    ax.set_ylim(len(edges) - 0.5, -0.5)
    ax.hlines(np.arange(len(edges) - 1) + 0.5, 0, 1, color="#dddddd", lw=0.8, transform=ax.get_yaxis_transform())
    mass = networks.attrs.get("interval")
    ax.set_xlabel(EFFECT)
    ax.set_title("Strongest edges: mean and " + ("interval" if mass is None else f"{mass:.0%} interval"))
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return ax


def plot_loss(fit: Fit | xr.DataTree | xr.DataArray, *, ax: Axes | None = None) -> Axes:
    """Draw the loss of every restart, smoothed over 2 % of the steps.

    Parameters
    ----------
    fit
        A fit, the tree that it exported, or losses over (restart, step).
    ax
        Where to draw.

    Returns
    -------
    Axes
        The axis of losses is cut above the level of the first twentieth of the steps, where losses fall steeply.

    Raises
    ------
    DataError
        If there are no finite losses.
    """
    losses = losses_of(fit)
    ax = axes_or_new(ax, (6.0, 3.6))
    window = max(1, losses.sizes["step"] // 50)
    smooth = losses.rolling(step=window, min_periods=1).mean().where(losses.notnull())
    for i, values in enumerate(smooth.values):
        color = GROUPS[i % len(GROUPS)]
        ax.plot(np.arange(1, 1 + len(values)), values, lw=1.2, color=color, label=f"restart {i}")
    early = smooth[:, losses.sizes["step"] // 20 :].values
    early = early[np.isfinite(early)]
    if early.size and np.ptp(early) > 0:
        ax.set_ylim(early.min() - 0.05 * np.ptp(early), early.max() + 0.05 * np.ptp(early))
    ax.set_xlabel("step")
    ax.set_ylabel("loss (nats)")
    ax.set_title("Loss of the fit")
    if 1 < len(losses) <= len(GROUPS):
        ax.legend(frameon=False)
    return ax
