"""Small pictures of undirected graphs of cells and genes, their scales, and how far to trust them.

Every function draws on given Axes, or makes its own, and returns them; none shows or saves a figure. Groups of nodes
have one colour each; where there are more groups than colours, the smallest share grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np
import xarray as xr
from scipy.special import ndtri
from scipy.stats import rankdata, spearmanr

from ._drawing import GROUPS, NEGATIVE, POSITIVE, axes_or_new, color_bar
from ._matrix_drawing import SCALES, groups, legend, scale_intervals, spring_layout
from .graph_rules import clusters, node_dim, symmetric_matrix
from .graphs import to_networkx
from .models.parts.errors import DataError
from .validation import listed

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped
    from matplotlib.axes import Axes

    Labels = Sequence[object] | Shaped[np.ndarray, " node"] | xr.DataArray


def plot_scales(
    scales: xr.Dataset | xr.DataTree,
    *,
    name: str = "log_u",
    labels: Labels | None = None,
    interval: float = 0.9,
    ax: Axes | None = None,
) -> Axes:
    """Draw the log scales of cells or genes with their intervals, from smallest to largest in each group.

    Parameters
    ----------
    scales
        ``log_u (cell)`` and, if known, ``log_u_lower`` and ``log_u_upper``, likewise ``log_v (gene)``; or a tree whose
        group posterior has draws of them over (chain, draw). Choose a replicate first where each has its own.
    name
        ``"log_u"`` for cells or ``"log_v"`` for genes.
    labels
        One a cell or gene, shown by colour.
    interval
        Mass of the interval of draws; that of a Dataset is given with it.
    ax
        Where to draw.

    Returns
    -------
    Axes
        Natural logarithms, with mean zero over nodes.

    Raises
    ------
    DataError
        If the variable is missing or has other dims, or `labels` do not match.
    """
    mean, lower, upper = scale_intervals(scales, name, interval)
    codes, names = groups(labels, len(mean))
    order = np.lexsort((mean, codes))
    ax = axes_or_new(ax, (7.0, 3.8))
    place = np.arange(len(mean))
    for group, (label, color) in enumerate(names):
        inside = codes[order] == group
        if lower is not None and upper is not None:
            ax.vlines(place[inside], lower[order][inside], upper[order][inside], color=color, lw=0.8, alpha=0.6)
        ax.plot(place[inside], mean[order][inside], "o", color=color, ms=2.5, label=label)
    ax.axhline(0, color="#888888", lw=0.8)
    nodes = "cells" if name == "log_u" else "genes"
    ax.set_xlabel(f"{nodes}, by scale" if labels is None else f"{nodes}, by group and scale")
    ax.set_ylabel(SCALES[name])
    ax.set_title("Scales" if lower is None else "Scales: mean and interval")
    legend(ax, labels)
    return ax


def plot_graph_matrix(graph: xr.DataArray, *, labels: Labels | None = None, ax: Axes | None = None) -> Axes:
    """Draw the sizes of partial correlations, or of any score, as a matrix ordered by group.

    Parameters
    ----------
    graph
        Symmetric, over (gene, gene_other) or (cell, cell_other).
    labels
        One a node; if left out, nodes are ordered by `graph_rules.clusters`. Lines part all but tiny groups.
    ax
        Where to draw.

    Returns
    -------
    Axes
        The colour bar stands beside them. The scale ends where one in a thousand pairs is beyond it.

    Raises
    ------
    DataError
        If the graph is not square, symmetric and finite, or `labels` do not match.
    """
    dim = node_dim(graph)
    strength = np.abs(symmetric_matrix("graph", graph))
    given = clusters(graph).values if labels is None else np.asarray(labels)
    if given.shape != (len(strength),):
        raise DataError(f"labels: found shape {given.shape}; wanted {len(strength)}, one a {dim}")
    names, codes = np.unique(given, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    written = max(len(str(name)) for name in names)
    ax = axes_or_new(ax, (6.4 + 0.1 * written, 5.4))
    limit = float(np.quantile(strength[np.triu_indices(len(strength), 1)], 0.999)) or float(strength.max()) or 1.0
    ax.imshow(strength[np.ix_(order, order)], cmap="Greys", vmin=0, vmax=limit, interpolation="nearest")
    sizes = np.bincount(codes)
    ends = np.cumsum(sizes) - 0.5
    for end in ends[sizes >= 0.01 * len(strength)]:  # lines around single nodes would hide the rest
        ax.axhline(end, color=NEGATIVE, lw=0.5)
        ax.axvline(end, color=NEGATIVE, lw=0.5)
    wide = sizes >= 0.035 * len(strength)
    ax.set_yticks((ends - sizes / 2)[wide], [str(name) for name in names[wide]], fontsize=8)
    ax.set_xticks([])
    ax.set_xlabel(f"{dim}s")
    ax.set_ylabel("cluster" if labels is None else "")
    ax.set_title(f"Graph of {dim}s")
    color_bar(ax, "size of the score" if graph.name is None else f"size of {graph.name}".replace("_", " "))
    return ax


def plot_undirected(
    graph: xr.DataArray, *, labels: Labels | None = None, seed: int = 0, ax: Axes | None = None
) -> Axes:
    """Draw an undirected graph with springs as edges; red is positive, blue negative, width the size.

    Grey where no edge is negative, since scores have no sign.

    Parameters
    ----------
    graph
        As in `plot_graph_matrix`, with few non-zeros: what `graph_rules.top_k` or `graph_rules.threshold` returns.
    labels
        One a node, shown by colour.
    seed
        Of the layout.
    ax
        Where to draw.

    Returns
    -------
    Axes
        Without frame and ticks; names are written if there are at most 40 nodes with edges. Nodes without edges are
        left out, and counted in the title.

    Raises
    ------
    DataError
        As in `plot_graph_matrix`.
    """
    dim = node_dim(graph)
    network = to_networkx(graph)
    codes, names = groups(labels, network.number_of_nodes())
    colors = {node: names[code][1] for node, code in zip(network, codes, strict=True)}
    alone = list(nx.isolates(network))
    network.remove_nodes_from(alone)
    ax = axes_or_new(ax, (7.0, 6.0))
    places = spring_layout(network, seed)
    largest = max((abs(weight) for *_, weight in network.edges(data="weight")), default=1.0)
    crowd = len(network) > 40
    signed = any(weight < 0 for *_, weight in network.edges(data="weight"))
    for sign, color in ((1, POSITIVE if signed else "0.4"), (-1, NEGATIVE)):
        edges = [(a, b, abs(w)) for a, b, w in network.edges(data="weight") if w * sign > 0]
        widths = [(0.3 if crowd else 0.8) + 2.5 * size / largest * (0.4 if crowd else 1) for *_, size in edges]
        pairs = [edge[:2] for edge in edges]
        nx.draw_networkx_edges(
            network, places, pairs, ax=ax, width=widths, edge_color=color, alpha=0.12 if crowd else 0.5
        )
    fill = [colors[node] for node in network]
    size = max(16.0, 3000 / max(len(network), 20))
    nx.draw_networkx_nodes(network, places, ax=ax, node_size=size, node_color=fill, edgecolors="white", linewidths=0.4)
    if not crowd:
        letters = sum(len(str(node)) for node in network)
        above = {node: (x, y + 0.07) for node, (x, y) in places.items()}
        nx.draw_networkx_labels(network, above, ax=ax, font_size=8 if letters <= 250 else 5)
    if labels is not None:
        shown = set(fill)
        for label, color in names:
            if color in shown:
                ax.plot([], [], "o", color=color, ms=5, label=label)
    legend(ax, labels)
    ax.set_axis_off()
    ax.margins(0.08)
    left_out = f" ({len(alone)} without edges left out)" if alone else ""
    ax.set_title(f"{len(network)} {dim}s, {network.number_of_edges()} edges{left_out}")
    return ax


def plot_reliability(table: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw how often pairs are edges against the probability stated for them.

    Parameters
    ----------
    table
        From `undirected_scores.reliability`.
    ax
        Where to draw.

    Returns
    -------
    Axes
        With 90 % intervals (Wilson) of the observed share and the number of pairs of every bin; on the diagonal,
        probabilities are what they say.

    Raises
    ------
    DataError
        If a variable is missing.
    """
    missing = [name for name in ("stated", "observed", "count") if name not in table]
    if missing:
        raise DataError(f"table: found no {listed(missing)}; wanted the result of reliability")
    stated, observed, count = (table[name].values.astype(float) for name in ("stated", "observed", "count"))
    z = float(ndtri(0.95))
    middle = (observed + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(observed * (1 - observed) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    ax = axes_or_new(ax, (4.6, 4.6))
    ax.plot([0, 1], [0, 1], color="#888888", lw=0.8)
    ax.vlines(stated, middle - half, middle + half, color=GROUPS[0], lw=1.4)
    ax.plot(stated, observed, "o-", color=GROUPS[0], ms=5, lw=0.8)
    for x, y, pairs in zip(stated, observed, table["count"].values.tolist(), strict=True):
        right = x < 0.85
        ax.annotate(
            str(pairs), (x, y), (7 if right else -7, -9), textcoords="offset points", ha="left" if right else "right",
            fontsize=8, color="#555555",
        )  # fmt: skip
    ax.set_xlim(-0.03, 1.03)
    ax.set_ylim(-0.03, 1.03)
    ax.set_aspect("equal")
    ax.set_xlabel("stated probability of an edge (numbers: pairs)")
    ax.set_ylabel("share of true edges")
    ax.set_title("Are the probabilities right?")
    return ax


def plot_tail_dependence(
    first: Float[np.ndarray, " cell"] | xr.DataArray,
    second: Float[np.ndarray, " cell"] | xr.DataArray,
    *,
    seed: int = 0,
    axes: Sequence[Axes] | None = None,
) -> Shaped[np.ndarray, " panel"]:
    """Draw two genes as normal scores beside a Gaussian copula of the same rank correlation.

    A scale that a cell puts on all its genes makes extremes come together, even where the genes are uncorrelated; no
    Gaussian copula does that. The ten per cent of the most extreme values of each gene are outside the lines; titles
    tell how many cells are extreme in both, of which independent genes would share one per cent.

    Parameters
    ----------
    first, second
        Expression of two genes in the same cells, at least 10.
    seed
        Of the Gaussian draws, as many as there are cells.
    axes
        Two Axes to draw on.

    Returns
    -------
    np.ndarray of Axes
        The data and the Gaussian copula.

    Raises
    ------
    DataError
        If lengths differ, are below 10, or a gene is constant or not finite.
    """
    values = [np.asarray(gene, dtype=np.float64) for gene in (first, second)]
    count = values[0].size
    if values[0].ndim != 1 or values[0].shape != values[1].shape or count < 10:
        raise DataError(
            f"first, second: found shapes {values[0].shape}, {values[1].shape}; wanted the same 10 cells or more"
        )
    if not np.isfinite(values).all() or min(np.ptp(gene) for gene in values) == 0:
        raise DataError("first, second: found NaN, infinite values or a constant gene; wanted numbers that vary")
    scores = np.stack([ndtri((rankdata(gene) - 0.5) / count) for gene in values])
    correlation = 2 * np.sin(np.pi / 6 * spearmanr(*values).statistic)
    normal = np.random.default_rng(seed).standard_normal((2, count))
    gaussian = np.stack([normal[0], correlation * normal[0] + np.sqrt(max(0.0, 1 - correlation**2)) * normal[1]])
    if axes is None:
        import matplotlib.pyplot as plt

        axes = plt.subplots(1, 2, figsize=(8.0, 4.2), layout="constrained", sharex=True, sharey=True)[1]
    limit = float(ndtri(0.95))
    names = [str(gene.name or "") if isinstance(gene, xr.DataArray) else "" for gene in (first, second)]
    for ax, points, title in zip(axes, (scores, gaussian), ("these genes", "Gaussian copula"), strict=True):
        both = float((np.abs(points) > limit).all(0).mean())
        ax.plot(*points, "o", ms=3, alpha=0.5, color=GROUPS[0], mew=0)
        for line in (-limit, limit):
            ax.axvline(line, color="#888888", lw=0.6)
            ax.axhline(line, color="#888888", lw=0.6)
        ax.set_aspect("equal")
        ax.set_title(f"{title}: {both:.1%} extreme in both")
        ax.set_xlabel(f"{names[0] or 'first gene'} (normal score)")
    axes[0].set_ylabel(f"{names[1] or 'second gene'} (normal score)")
    return np.asarray(axes)
