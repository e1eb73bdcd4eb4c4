"""What the pictures in `plots` share: checked arrays, and the drawing of matrices and edges."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from .models.parts.errors import DataError
from .validation import listed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

    from ._layout import Point

NEGATIVE, POSITIVE = "#2166ac", "#b2182b"
GROUPS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9", "#7f7f7f", "#8c510a", "#5e3c99")
"""Colours of groups: Okabe & Ito (2008), yellow left out, three added."""
MARKERS = "osD^vP<>Xp"
EDGE = ("regulator", "target")
EFFECT = "effect (units of the target per unit of the regulator)"


def one_network(networks: xr.Dataset | xr.DataArray, cell: object) -> xr.DataArray:
    """Return the weights over (regulator, target) of one cell, or of the only network there is."""
    if isinstance(networks, xr.Dataset):
        networks = _variable(networks, "network")
    if not isinstance(networks, xr.DataArray):
        raise DataError(f"networks: found a {type(networks).__name__}; wanted an xarray Dataset or DataArray")
    if cell is not None and "cell" not in networks.coords:
        raise DataError(f"cell: found {cell!r}, but the networks name no cells; wanted None")
    if "cell" in networks.dims:
        cells = networks["cell"].values.tolist()
        if cell is None and len(cells) > 1:
            raise DataError(f"cell: found none named among {len(cells)} cells; wanted a label of 'cell'")
        if cell is not None and cell not in cells:
            raise DataError(f"cell: found {cell!r}; wanted a label of 'cell', such as {cells[0]!r}")
        networks = networks.isel(cell=0 if cell is None else cells.index(cell))
    return checked(networks, "network", EDGE)


def intervals(dataset: xr.Dataset, center: str, dims: Sequence[str]) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """Return `center`, ``lower`` and ``upper`` of a Dataset over the given dims."""
    if not isinstance(dataset, xr.Dataset):
        raise DataError(f"found a {type(dataset).__name__}; wanted a Dataset with {center!r}, 'lower' and 'upper'")
    mean, lower, upper = (checked(_variable(dataset, name), name, dims) for name in (center, "lower", "upper"))
    return mean, lower, upper


def losses_of(fit: Any) -> xr.DataArray:
    """Return losses over (restart, step) of a fit, of its tree, or as they are."""
    losses = fit
    if isinstance(fit, xr.DataTree):
        stats = fit["sample_stats"] if "sample_stats" in fit.children else fit
        if "loss" not in stats.data_vars:
            raise DataError(f"tree: found groups {listed(fit.children)}; wanted a loss in sample_stats")
        losses = stats["loss"]
    elif hasattr(fit, "history"):
        losses = fit.history
    if not isinstance(losses, xr.DataArray) or set(losses.dims) != {"restart", "step"}:
        found = getattr(losses, "dims", type(losses).__name__)
        raise DataError(f"losses: found {found}; wanted a fit, a tree, or an array over (restart, step)")
    if not np.isfinite(losses).any():
        raise DataError(f"losses: found no finite numbers in {losses.size} values; wanted a fit with a history")
    return losses.transpose("restart", "step")


def checked(weights: xr.DataArray, name: str, dims: Sequence[str]) -> xr.DataArray:
    """Return `weights` with their dims in the wanted order; values must be finite."""
    if set(weights.dims) != set(dims):
        raise DataError(f"{name}: found dims {listed(weights.dims)}; wanted {listed(dims)}")
    if weights.size == 0:
        raise DataError(f"{name}: found sizes {dict(weights.sizes)}; wanted at least one of each")
    if not np.isfinite(weights.values).all():
        raise DataError(f"{name}: found NaN or infinite values; wanted finite numbers")
    return weights.transpose(*dims)


def axes_or_new(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Return the given Axes or those of a new figure of some inches."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def matrix_size(weights: xr.DataArray) -> tuple[float, float]:
    """Inches in which the names of a matrix are readable."""
    side = 1.6 + 0.28 * max(weights.shape[-2:])
    return min(side + 1.2, 13.0), min(side, 12.0)


def limit_of(weights: xr.DataArray) -> float:
    """Largest absolute weight, 1 if all are zero: the end of a colour scale centred at zero."""
    return float(np.abs(weights.values).max()) or 1.0


def draw_matrix(ax: Axes, weights: xr.DataArray, limit: float) -> None:
    """Draw weights with the names of their genes; few genes get a faint grid."""
    ax.imshow(weights.values, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    for axis, dim in ((ax.yaxis, "regulator"), (ax.xaxis, "target")):
        names = [str(name) for name in weights[dim].values]
        step = -(-len(names) // 60)  # more names than that cannot be read
        axis.set_ticks(range(0, len(names), step), names[::step])
        axis.set_ticks(np.arange(len(names) + 1) - 0.5, minor=True)
    ax.tick_params(axis="x", rotation=90)
    ax.tick_params(which="minor", length=0)
    if max(weights.shape) <= 40:
        ax.grid(which="minor", color="#e6e6e6", lw=0.5)
    ax.set_xlabel("target")
    ax.set_ylabel("regulator")


def color_bar(ax: Axes, label: str) -> None:
    """Put the colour bar of a matrix beside it, as tall as the matrix."""
    bar = ax.inset_axes((1.04, 0.0, 0.045, 1.0))
    ax.figure.colorbar(ax.images[0], cax=bar, label=label)


def draw_names(ax: Axes, positions: Mapping[Any, Point], faint: Collection[Any]) -> dict[Any, Text]:
    """Write names in boxes; those of `faint` nodes in grey."""
    texts = {}
    for node, (x, y) in positions.items():
        edge, color = ("#bbbbbb", "#888888") if node in faint else ("#333333", "black")
        box = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": edge}
        texts[node] = ax.text(x, y, str(node), ha="center", va="center", color=color, bbox=box, zorder=1)
    ax.update_datalim(list(positions.values()))
    return texts


def draw_edge(ax: Axes, start: Text, end: Text, bends: Sequence[Point], *, width: float, color: str) -> None:
    """Draw an arrow from box to box that passes smoothly by some points."""
    from matplotlib.patches import ConnectionStyle, FancyArrowPatch
    from matplotlib.path import Path

    class Route(ConnectionStyle._Base):
        def connect(self, posA: Any, posB: Any) -> Path:
            """Cubic curves through the bends, as Catmull and Rom join them."""
            points = np.array([posA, *(ax.transData.transform(bends) if bends else ()), posB])
            slopes = np.gradient(points, axis=0) / 3
            inner = np.stack([points[:-1] + slopes[:-1], points[1:] - slopes[1:], points[1:]], axis=1)
            vertices = np.concatenate([points[:1], inner.reshape(-1, 2)])
            return Path(vertices, [Path.MOVETO] + [Path.CURVE4] * (len(vertices) - 1))

    # Drawn after the boxes (zorder), whose place is known only once they are drawn.
    arrow = FancyArrowPatch(
        start.get_position(),
        end.get_position(),
        connectionstyle=Route(),  # type: ignore[call-arg]  # the stubs give _Base the arguments of its outer class
        patchA=start.get_bbox_patch(),
        patchB=end.get_bbox_patch(),
        shrinkA=0,
        shrinkB=1,
        arrowstyle="-|>,head_length=0.5,head_width=0.22",
        mutation_scale=10 + 2 * width,
        lw=width,
        color=color,
        alpha=0.85,
        zorder=2,
    )
    ax.add_patch(arrow)
    if bends:
        ax.update_datalim(bends)


def _variable(dataset: xr.Dataset, name: str) -> xr.DataArray:
    if name not in dataset:
        raise DataError(f"found variables {listed(dataset.data_vars)}; wanted {name!r} among them")
    return dataset[name]
