"""Pictures of predictive checks: observed against replicated statistics, and all statistics at a glance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ._drawing import GROUPS, POSITIVE, axes_or_new
from .models.parts.errors import DataError
from .validation import listed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INSIDE = GROUPS[0]
MANY = 400
LOG_RATIO = 100.0


def observed_against_replicated(
    check: xr.Dataset, statistic: str, *, num_labels: int = 3, ax: Axes | None = None
) -> Axes:
    """Draw every gene, pair or cell: what was observed against what the model replicates.

    Bars are the intervals of the replicates. On the line the model replicates the data on average; a bar that misses
    the line (red) lies outside. Scales are logarithmic where all numbers are positive and differ by more than a
    hundredfold.

    Parameters
    ----------
    check
        From `predictive_check`.
    statistic
        Name of one of its statistics.
    num_labels
        How many of the entries outside are named, the farthest first.
    ax
        Where to draw; by default a new figure.

    Raises
    ------
    DataError
        If the check has no such statistic.
    """
    if "statistic" not in check.dims or statistic not in check["statistic"].values:
        known = listed(check["statistic"].values) if "statistic" in check.dims else "none"
        raise DataError(f"statistic: found {statistic!r}; wanted one of {known}")
    ax = axes_or_new(ax, (4.2, 4.0))
    observed, mean, lower, upper, p = (
        check[f"{statistic}_{what}"].values.ravel() for what in ("observed", "replicated", "lower", "upper", "p")
    )
    outside = p < 1 - check.attrs["level"]
    width, size = (1.0, 4.0) if len(observed) <= MANY else (0.5, 2.0)
    for which, color, order in ((~outside, INSIDE, 2), (outside, POSITIVE, 3)):
        ax.hlines(observed[which], lower[which], upper[which], color=color, lw=width, alpha=0.5, zorder=order)
        ax.plot(mean[which], observed[which], "o", ms=size, color=color, mec="none", zorder=order + 2)
    everything = np.concatenate([observed, lower, upper])
    everything = everything[np.isfinite(everything)]
    low, high = everything.min(), everything.max()
    ax.axline((low, low), (high, high) if high > low else (low + 1, low + 1), color="#888888", lw=0.8, zorder=1)
    if low > 0 and high / low > LOG_RATIO:
        ax.set_xscale("log")
        ax.set_yscale("log")
    _name(ax, check, statistic, num_labels)
    row = check.sel(statistic=statistic)
    share, expected = (100 * float(row[key]) for key in ("share_outside", "share_expected"))
    told = f"{share:.0f} % outside, {expected:.0f} % expected; p of the largest {float(row['p_overall']):.2g}"
    ax.set_title(f"{statistic}\n{told}", fontsize="medium")
    ax.set_xlabel(f"replicated, {100 * check.attrs['level']:.0f} % interval")
    ax.set_ylabel("observed")
    return ax


def statistics_overview(check: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw the share of entries outside their intervals by statistic, and what the model expects, with p values.

    Parameters
    ----------
    check
        From `predictive_check`.
    ax
        Where to draw; by default a new figure.
    """
    names = [str(name) for name in check["statistic"].values]
    ax = axes_or_new(ax, (6.0, 1.0 + 0.38 * len(names)))
    place = np.arange(len(names))
    share, expected, p = (check[key].values for key in ("share_outside", "share_expected", "p_overall"))
    colors = [POSITIVE if value < 0.05 else INSIDE for value in p]
    ax.hlines(place, 100 * expected, 100 * share, color=colors, lw=1.5)
    ax.scatter(100 * share, place, color=colors, s=30, zorder=3, label="observed")
    ax.scatter(100 * expected, place, marker="|", color="black", s=90, zorder=2, label="expected")
    for y, value in zip(place.tolist(), p, strict=True):
        ax.text(1.02, y, f"p {value:.2g}", transform=ax.get_yaxis_transform(), va="center", fontsize="small")
    ax.set_yticks(place, names)
    ax.invert_yaxis()
    ax.set_xlim(left=min(-2.0, ax.get_xlim()[0]))
    ax.set_xlabel(f"entries outside the {100 * check.attrs['level']:.0f} % interval, %")
    ax.legend(frameon=False, fontsize="small", loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
    return ax


def all_statistics(check: xr.Dataset) -> list[Axes]:
    """Draw `observed_against_replicated` of every statistic in one figure."""
    import matplotlib.pyplot as plt

    names = [str(name) for name in check["statistic"].values]
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    _, grid = plt.subplots(rows, columns, figsize=(3.9 * columns, 3.7 * rows), layout="constrained", squeeze=False)
    axes = list(grid.ravel())
    for ax in axes[len(names) :]:
        ax.remove()
    return [observed_against_replicated(check, name, ax=ax) for name, ax in zip(names, axes, strict=False)]


def _name(ax: Axes, check: xr.Dataset, statistic: str, num_labels: int) -> None:
    """Write the names of the entries that are farthest out, in widths of their interval, where there is room."""
    observed = check[f"{statistic}_observed"]
    if observed.ndim != 1 or num_labels < 1:
        return
    lower, upper, mean, p = (check[f"{statistic}_{what}"].values for what in ("lower", "upper", "replicated", "p"))
    width = np.where(upper > lower, upper - lower, np.inf)
    away = np.where(p < 1 - check.attrs["level"], np.abs(observed.values - mean) / width, 0.0)
    labels = check[str(observed.dims[0])].values
    ax.margins(0.08)
    taken: list[np.ndarray] = []
    for i in np.argsort(-away, kind="stable"):
        point = ax.transAxes.inverted().transform(ax.transData.transform((mean[i], observed.values[i])))
        if away[i] > 0 and all(abs(point[1] - other[1]) > 0.05 or abs(point[0] - other[0]) > 0.4 for other in taken):
            ax.annotate(
                str(labels[i]), (mean[i], observed.values[i]), xytext=(4, 3), textcoords="offset points",
                fontsize="x-small", zorder=9,
            )  # fmt: skip
            taken.append(point)
        if len(taken) == num_labels or away[i] <= 0:
            return
