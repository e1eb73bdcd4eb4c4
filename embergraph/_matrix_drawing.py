"""What the pictures in `matrix_plots` share: groups and their colours, intervals of scales, the layout of graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import xarray as xr

from ._drawing import GROUPS
from .models.parts.errors import DataError
from .validation import listed

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped
    from matplotlib.axes import Axes

    Labels = Sequence[object] | Shaped[np.ndarray, " node"] | xr.DataArray

SCALES = {"log_u": "log scale of the cell", "log_v": "log scale of the gene"}
OTHER = "#bbbbbb"


def scale_intervals(
    scales: Any, name: str, interval: float
) -> tuple[Float[np.ndarray, " node"], Float[np.ndarray, " node"] | None, Float[np.ndarray, " node"] | None]:
    """Return log scales and, where known, their intervals, of a Dataset or of the draws in a tree."""
    if name not in SCALES:
        raise DataError(f"name: found {name!r}; wanted one of {listed(SCALES)}")
    group: Any = scales.children.get("posterior", scales) if isinstance(scales, xr.DataTree) else scales
    if name not in group:
        raise DataError(f"scales: found {listed(group.data_vars)}; wanted {name!r} among them")
    draws, chain = group[name], {"chain", "draw"} & set(group[name].dims)
    parts = [draws, group.get(f"{name}_lower"), group.get(f"{name}_upper")]
    if chain:
        tails = draws.quantile([(1 - interval) / 2, (1 + interval) / 2], dim=sorted(chain))
        parts = [draws.mean(sorted(chain)), tails[0], tails[1]]
    found: list[Any] = [None if part is None else part.values for part in parts]
    for values in found:
        if values is not None and (values.ndim != 1 or not np.isfinite(values).all()):
            raise DataError(
                f"{name}: found shape {values.shape}, or not finite; wanted one number a node, .isel(replicate=0)"
            )
    return found[0], found[1], found[2]


def groups(labels: Labels | None, count: int) -> tuple[Int[np.ndarray, " node"], list[tuple[str, str]]]:
    """Group of every node, and label and colour of every group; small groups beyond the colours become one."""
    if labels is None:
        return np.zeros(count, dtype=np.int64), [("", GROUPS[0])]
    given = np.asarray(labels)
    if given.shape != (count,):
        raise DataError(f"labels: found shape {given.shape}; wanted {count}, one a node")
    names, codes, sizes = np.unique(given, return_inverse=True, return_counts=True)
    if len(names) <= len(GROUPS):
        return codes, [(str(name), color) for name, color in zip(names, GROUPS, strict=False)]
    shown = np.sort(np.argsort(-sizes, kind="stable")[: len(GROUPS)])
    position = np.full(len(names), len(GROUPS))
    position[shown] = np.arange(len(GROUPS))
    named = [(str(names[k]), color) for k, color in zip(shown, GROUPS, strict=True)]
    return position[codes], [*named, (f"{len(names) - len(GROUPS)} others", OTHER)]


def legend(ax: Axes, labels: Labels | None) -> None:
    """Put the legend of the groups beside the picture, if there are groups."""
    if labels is not None and ax.get_legend_handles_labels()[0]:
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, markerscale=1.5)


def spring_layout(network: nx.Graph, seed: int) -> dict[Any, Float[np.ndarray, " 2"]]:
    """Springs of equal strength, with more room between nodes than the default."""
    room = 2.5 / np.sqrt(max(len(network), 1))
    return nx.spring_layout(network, k=room, iterations=100, seed=seed, weight=None)
