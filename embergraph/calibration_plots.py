"""Pictures of a calibration: ranks, their distribution function with its band, reliability of probabilities.

Every function draws on given Axes, or makes its own, and returns them; none shows or saves a figure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ._drawing import GROUPS, NEGATIVE, axes_or_new
from .models.parts.errors import DataError
from .validation import listed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY = "#bbbbbb"


def plot_rank_histogram(result: xr.Dataset, reading: str | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw how often the truth had which rank among the draws.

    Flat if calibrated; high at both ends if the draws are too narrow, high in the middle if they are too wide, sloping
    if they are shifted. Whiskers are two standard errors between replicates.

    Parameters
    ----------
    result
        From `calibrate`.
    reading
        Which; may be left out if there is one.
    ax
        Axes to draw on.

    Raises
    ------
    DataError
        If the result has no such reading, or it has no draws.
    """
    row = _row(result, reading, "rank_histogram")
    ax = axes_or_new(ax, (4.2, 2.8))
    height, error = row["rank_histogram"].values, row["rank_histogram_se"].values
    ax.bar(row["rank_bin"].values, height, 1 / len(height), color=NEGATIVE, alpha=0.6, edgecolor="white", linewidth=0.5)
    known = np.isfinite(error)
    ax.errorbar(row["rank_bin"].values[known], height[known], 2 * error[known], fmt="none", ecolor="#333333", lw=1)
    ax.axhline(1.0, color="black", lw=1, ls="--")
    ax.set(xlim=(0, 1), ylim=(0, None), xlabel="rank of the truth among the draws", ylabel="frequency (1: uniform)")
    return _titled(ax, row)


def plot_rank_ecdf(result: xr.Dataset, reading: str | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw the distribution function of the ranks minus the uniform one, with its simultaneous 95 % band.

    Inside the band everywhere if calibrated. Too narrow: above it on the left, below on the right; too wide: the other
    way round; shifted: on one side.

    Parameters and errors as for `plot_rank_histogram`.
    """
    row = _row(result, reading, "ecdf_difference")
    ax = axes_or_new(ax, (4.2, 2.8))
    point = row["point"].values
    ax.fill_between(
        point, row["ecdf_lower"], row["ecdf_upper"], step="mid", color=GREY, alpha=0.5, lw=0, label="95 % band"
    )
    ax.plot(point, row["ecdf_difference"], color=NEGATIVE, lw=1.5, label="observed")
    ax.axhline(0.0, color="black", lw=1, ls="--")
    ax.set(xlim=(0, 1), xlabel="rank of the truth among the draws", ylabel="distribution function\nminus uniform")
    ax.legend(frameon=False, fontsize="small")
    return _titled(ax, row)


def plot_stated_probabilities(result: xr.Dataset, reading: str | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw how often statements were true by how probable they were said to be; whiskers are two standard errors.

    On the diagonal if calibrated. Areas grow with the number of statements, which is written beside small bins.

    Parameters and errors as for `plot_rank_histogram`, for readings with probabilities.
    """
    row = _row(result, reading, "stated")
    ax = axes_or_new(ax, (3.6, 3.4))
    filled = row["bin_count"].values > 0
    stated, observed, error, count = (
        row[name].values[filled] for name in ("stated", "observed", "observed_se", "bin_count")
    )
    ax.plot([0, 1], [0, 1], color="black", lw=1, ls="--")
    low, high = np.minimum(2 * error, observed), np.minimum(2 * error, 1 - observed)
    ax.errorbar(stated, observed, [low, high], fmt="none", ecolor=GROUPS[0], lw=1)
    ax.scatter(stated, observed, 12 + 120 * count / count.max(), color=GROUPS[0], alpha=0.7, linewidths=0)
    for x, y, num in zip(stated, observed, count, strict=True):
        if num < 20:
            ax.annotate(f"{num:.0f}", (x, y), (4, 4), textcoords="offset points", fontsize="x-small", color="#555555")
    ax.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), xlabel="stated probability", ylabel="share of true statements")
    ax.set_aspect("equal")
    return _titled(ax, row)


def _row(result: xr.Dataset, reading: str | None, variable: str) -> xr.Dataset:
    if not isinstance(result, xr.Dataset) or "reading" not in result.coords:
        raise DataError(f"result: found a {type(result).__name__}; wanted the Dataset of calibrate")
    names = result["reading"].values.tolist()
    known = [n for n in names if variable in result and np.isfinite(result[variable].sel(reading=n).values).any()]
    chosen = known[0] if reading is None and len(known) == 1 else reading
    if chosen not in known:
        raise DataError(f"reading: found {reading!r}; wanted one that has what is drawn here, of {listed(known)}")
    return result.sel(reading=chosen)


def _titled(ax: Axes, row: xr.Dataset) -> Axes:
    ax.set_title(f"{row['reading'].item()}: {row['verdict'].item()}", fontsize="medium")
    return ax
