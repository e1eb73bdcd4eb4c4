"""Pictures of a fitted NOTMAD: curves of covariates, the map of cells between archetypes, interventions.

Every function draws on given Axes, or makes its own, and returns them; none shows or saves a figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ._drawing import GROUPS, MARKERS, NEGATIVE, POSITIVE, axes_or_new, checked
from ._matrix_drawing import OTHER, groups, legend
from .models.parts.errors import DataError
from .validation import listed

if TYPE_CHECKING:
    from jaxtyping import Shaped
    from matplotlib.axes import Axes

    Labels = Sequence[object] | Shaped[np.ndarray, " cell"] | xr.DataArray

QUANTITIES = {
    "logit": ("archetype", "contribution to the logits\nof the archetypes"),
    "mixture": ("archetype", "weight of the archetype"),
    "effect": ("edge", "effect on the target\nper unit of the regulator"),
}
RADIUS = 1.177  # of the ellipse that holds half of a bivariate Normal


def plot_covariate_effects(
    effects: xr.Dataset, *, show: str | None = None, covariates: Sequence[str] | None = None
) -> Shaped[np.ndarray, " covariate"]:
    """Draw what every covariate does, with intervals: bands along a number, bars at the levels of a factor.

    Parameters
    ----------
    effects
        From ``fit.covariate_effects()``.
    show
        ``"logit"``, ``"mixture"`` or ``"effect"`` (of edges, if they were asked for); left out, the edges if there are
        some, else the mixture.
    covariates
        Which to draw; all if left out.

    Returns
    -------
    np.ndarray of Axes
        One a covariate, on one scale, in a figure of their own.

    Raises
    ------
    DataError
        If `effects` has no such quantity or covariate.
    """
    import matplotlib.pyplot as plt

    show = show or ("effect" if "effect" in effects else "mixture")
    if show not in QUANTITIES or show not in effects:
        known = [name for name in QUANTITIES if name in effects]
        raise DataError(f"show: found {show!r}; wanted one of {listed(known)}")
    dim, label = QUANTITIES[show]
    mean, low, high = (checked(effects[show + end], show, ("point", dim)) for end in ("", "_lower", "_upper"))
    of = effects["of"].values
    known = list(dict.fromkeys(of.tolist()))
    chosen = known if covariates is None else list(covariates)
    if not chosen or set(chosen) - set(known):
        raise DataError(f"covariates: found {listed(chosen)}; wanted some of {listed(known)}")
    names = [str(name) for name in mean[dim].values] if dim in mean.coords else [
        f"archetype {k}" for k in range(mean.sizes[dim])
    ]  # fmt: skip
    columns = min(len(chosen), 4)
    rows = -(-len(chosen) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(1.4 + 2.6 * columns, 0.9 + 2.4 * rows), layout="constrained", squeeze=False, sharey=True
    )
    for i, ax in enumerate(grid.ravel()):
        if i >= len(chosen):
            ax.set_axis_off()
            continue
        here = np.nonzero(of == chosen[i])[0]
        _curves(ax, effects.isel(point=here), [part.values[here] for part in (mean, low, high)], names)
        ax.set_xlabel(chosen[i])
        if i % columns == 0:
            ax.set_ylabel(label)
    mass = effects.attrs.get("interval")
    figure.suptitle(_title(show) + ("" if mass is None else f": mean and {mass:.0%} interval"))
    if len(names) <= len(GROUPS):
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return grid.ravel()[: len(chosen)]


def plot_archetype_map(
    map: xr.Dataset,
    *,
    color: Labels | None = None,
    uncertainty: int = 100,
    ax: Axes | None = None,
) -> Axes:
    """Draw cells between the archetypes.

    Parameters
    ----------
    map
        From ``fit.archetype_map(covariates)``.
    color
        One label a cell, or one number; left out, the archetype with the largest weight.
    uncertainty
        Of how many cells, evenly spread, the region that holds half of the posterior is drawn.
    ax
        Where to draw.

    Returns
    -------
    Axes
        With equal scales; archetypes are numbered.

    Raises
    ------
    DataError
        If a variable is missing or `color` does not match the cells.
    """
    position = checked(_variable(map, "position"), "position", ("cell", "axis")).values
    corners = checked(_variable(map, "archetype_position"), "archetype_position", ("archetype", "axis")).values
    ax = axes_or_new(ax, (6.6, 5.0))
    given = None if color is None else np.asarray(color)
    if given is not None and given.shape != (len(position),):
        raise DataError(f"color: found shape {given.shape}; wanted {len(position)}, one a cell")
    crowd = len(position) > 3000
    style: dict[str, Any] = {"s": 4 if crowd else 14, "alpha": 0.35 if crowd else 0.75, "linewidths": 0, "zorder": 2}
    order = np.random.default_rng(0).permutation(len(position))  # no group hides the others
    ax.plot(*_hull(corners).T, color="#bbbbbb", lw=0.8, zorder=0)
    if given is not None and given.dtype.kind == "f":
        drawn = ax.scatter(position[order, 0], position[order, 1], c=given[order], cmap="viridis", **style)
        ax.figure.colorbar(drawn, ax=ax, shrink=0.7, label=str(getattr(color, "name", None) or ""))
        edge = np.full(len(position), OTHER)
    else:
        labels = [f"mostly archetype {k}" for k in map["leading"].values] if given is None else given
        codes, shown = groups(labels, len(position))
        edge = np.array([color for _, color in shown])[codes]
        ax.scatter(position[order, 0], position[order, 1], c=edge[order], **style)
        for name, shade in shown:
            ax.plot([], [], "o", color=shade, ms=5, label=name)
    if "covariance" in map and uncertainty:
        few = np.unique(np.linspace(0, len(position) - 1, min(uncertainty, len(position))).round().astype(int))
        _ellipses(ax, position[few], map["covariance"].transpose("cell", ...).values[few], edge[few])
    for k, corner in enumerate(corners):
        ax.annotate(
            str(k), corner, ha="center", va="center", fontweight="bold", zorder=4,
            bbox={"boxstyle": "circle,pad=0.3", "facecolor": "white", "edgecolor": "black"},
        )  # fmt: skip
    _label_axes(ax, map)
    legend(ax, [])
    return ax


def plot_intervention(effects: xr.Dataset, *, cell: object = None, num_genes: int = 20, ax: Axes | None = None) -> Axes:
    """Draw how an intervention changes the genes, with intervals.

    Parameters
    ----------
    effects
        From ``fit.do(...)``, averaged or of one cell.
    cell
        Label of the cell; not needed if there is one.
    num_genes
        How many genes at most: those that change most.
    ax
        Where to draw.

    Returns
    -------
    Axes
        Genes from the largest rise to the largest fall, grey where the interval holds 0; the set genes are left out.

    Raises
    ------
    DataError
        If a variable is missing, or several cells are given and none is named.
    """
    names = ("difference", "difference_lower", "difference_upper")
    table = xr.Dataset({name: _variable(effects, name) for name in names}, attrs=effects.attrs)
    if "cell" in table.dims:
        cells = table["cell"].values.tolist()
        if cell not in cells and (cell is not None or len(cells) > 1):
            raise DataError(f"cell: found {cell!r}; wanted one of {listed(cells)}, or do(..., average=True)")
        table = table.isel(cell=0 if cell is None else cells.index(cell))
    mean, low, high = (checked(table[name], name, ("gene",)).values for name in names)
    settings = str(effects.attrs.get("do", ""))
    set_genes = {part.split(" = ")[0] for part in settings.split(", ")}
    free = np.array([str(gene) not in set_genes for gene in table["gene"].values])
    top = np.nonzero(free)[0]
    top = top[np.argsort(-np.abs(mean[top]), kind="stable")[:num_genes]]
    top = top[np.argsort(-mean[top], kind="stable")]
    ax = axes_or_new(ax, (5.4, min(1.6 + 0.24 * len(top), 13.0)))
    ax.axvline(0, color="#888888", lw=0.8)
    for place, gene in enumerate(top):
        clear = low[gene] > 0 or high[gene] < 0
        shade = (POSITIVE if mean[gene] > 0 else NEGATIVE) if clear else "#999999"
        ax.hlines(place, low[gene], high[gene], color=shade, lw=1.6)
        ax.plot(mean[gene], place, "o", color=shade, ms=4.5)
    ax.set_yticks(range(len(top)), [str(name) for name in table["gene"].values[top]])
    ax.set_ylim(len(top) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", color="#eeeeee", lw=0.6)
    ax.set_axisbelow(True)
    mass = effects.attrs.get("interval")
    unit = "original" if effects.attrs.get("scale") == "original" else "standardised"
    ax.set_xlabel(f"change of expression ({unit} units)")
    ax.set_title(f"do({settings})" + ("" if mass is None else f": mean and {mass:.0%} interval"))
    return ax


def _title(show: str) -> str:
    return {"logit": "Contributions of covariates", "mixture": "Mixture by covariate", "effect": "Edges by covariate"}[
        show
    ]


def _curves(ax: Axes, points: xr.Dataset, parts: Sequence[np.ndarray], names: Sequence[str]) -> None:
    mean, low, high = parts
    discrete, levels = bool(points["discrete"].values[0]), points["level"].values
    x = points["value"].values
    if discrete and levels[0]:
        x = np.arange(len(levels), dtype=float)
        ax.set_xticks(x, levels, rotation=90 if max(map(len, levels)) * len(levels) > 24 else 0)
        ax.set_xlim(-0.5, len(levels) - 0.5)
    ax.axhline(0, color="#cccccc", lw=0.8, zorder=0)
    for k, name in enumerate(names):
        shade, marker = GROUPS[k % len(GROUPS)], MARKERS[k % len(MARKERS)]
        if discrete or len(x) == 1:
            width = np.ptp(x) / max(len(x) - 1, 1) if len(x) > 1 else 1.0
            place = x + 0.3 * width * ((k + 0.5) / len(names) - 0.5)
            ax.vlines(place, low[:, k], high[:, k], color=shade, lw=1.4)
            ax.plot(place, mean[:, k], marker, color=shade, ms=4.5, label=name)
        else:
            ax.fill_between(x, low[:, k], high[:, k], color=shade, alpha=0.18, lw=0)
            ax.plot(x, mean[:, k], color=shade, lw=1.6, label=name)
    if discrete and not levels[0]:
        ax.set_xticks(x)


def _hull(corners: np.ndarray) -> np.ndarray:
    """Closed outline around the archetypes."""
    from scipy.spatial import ConvexHull, QhullError

    try:
        outline = corners[ConvexHull(corners).vertices]
    except (QhullError, ValueError):  # fewer than three, or all on a line
        ends = corners[[corners[:, 0].argmin(), corners[:, 0].argmax()]]
        return ends
    return np.concatenate([outline, outline[:1]])


def _ellipses(ax: Axes, centres: np.ndarray, covariances: np.ndarray, shades: np.ndarray) -> None:
    from matplotlib.patches import Ellipse

    for centre, covariance, shade in zip(centres, covariances, shades, strict=True):
        variances, vectors = np.linalg.eigh(covariance)
        width, height = 2 * RADIUS * np.sqrt(np.maximum(variances, 0))
        angle = float(np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0])))
        ax.add_patch(Ellipse(tuple(centre), width, height, angle=angle, color=shade, alpha=0.12, lw=0, zorder=1))


def _label_axes(ax: Axes, map: xr.Dataset) -> None:
    ax.set_aspect("equal", adjustable="datalim")
    ax.margins(0.08)
    if map.attrs.get("layout") == "polygon":
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_title("Cells between archetypes")
    else:
        shown = map["shown"].values
        ax.set_xlabel(f"first direction ({shown[0]:.0%} of squared distances between archetypes)")
        ax.set_ylabel(f"second direction ({shown[1]:.0%})")
        ax.set_title("Networks of cells between archetypal networks")


def _variable(table: xr.Dataset, name: str) -> xr.DataArray:
    if name not in table:
        raise DataError(f"found variables {listed(table.data_vars)}; wanted {name!r} among them")
    return table[name]
