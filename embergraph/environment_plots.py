"""Small pictures of what environments do: their targets, shifts, latents of cells, effects on genes.

Every function draws on given Axes, or makes its own, and returns them; none shows or saves a figure. Blue is negative
and red positive.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ._drawing import GROUPS, NEGATIVE, POSITIVE, axes_or_new, checked, color_bar
from ._matrix_drawing import OTHER, groups, legend
from .models.parts.errors import DataError
from .validation import listed

if TYPE_CHECKING:
    from jaxtyping import Int, Shaped
    from matplotlib.axes import Axes

    Labels = Sequence[object] | Shaped[np.ndarray, " cell"] | xr.DataArray

TABLE = ("condition", "latent")
SHIFT = "shift (sd of the latent within an environment)"


def plot_targets(environments: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw the probability of every latent to be a target of every environment, red or blue by the sign of the shift.

    Parameters
    ----------
    environments
        ``target_probability`` and ``shift`` over (condition, latent), as from ``fit.environments()``.
    ax
        Where to draw.

    Returns
    -------
    Axes
        Environments in rows. Where the probability is above one half the shift is written into its field, if there are
        at most 30 environments and 20 latents. The colour bar stands beside them.

    Raises
    ------
    DataError
        If a variable is missing, has other dims, or is not finite.
    """
    if bool(_variable(environments, "target_probability").isnull().all()):
        raise DataError("target_probability: found none; wanted a model whose prior names targets (or plot_shifts)")
    probability, shift = (_table(environments, name, TABLE) for name in ("target_probability", "shift"))
    rows, columns = probability.shape
    ax = axes_or_new(ax, (min(3.4 + 0.5 * columns, 13.0), min(1.8 + 0.32 * rows, 12.0)))
    signed = probability.values * np.where(shift.values < 0, -1.0, 1.0)
    ax.imshow(signed, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest", aspect="auto")
    for axis, dim in ((ax.yaxis, "condition"), (ax.xaxis, "latent")):
        names = [str(name) for name in probability[dim].values]
        step = -(-len(names) // 60)  # more names than that cannot be read
        axis.set_ticks(range(0, len(names), step), names[::step])
        axis.set_ticks(np.arange(len(names) + 1) - 0.5, minor=True)
    ax.tick_params(axis="x", rotation=90)
    ax.tick_params(which="minor", length=0)
    if max(rows, columns) <= 60:
        ax.grid(which="minor", color="#e6e6e6", lw=0.5)
    if rows <= 30 and columns <= 20:
        for row, column in zip(*np.nonzero(probability.values > 0.5), strict=True):
            color = "white" if abs(signed[row, column]) > 0.7 else "black"
            number = f"{shift.values[row, column]:+.1f}".replace("-", "\N{MINUS SIGN}")
            ax.text(column, row, number, ha="center", va="center", fontsize=7, color=color)
    ax.set_title("Targets of environments")
    color_bar(ax, "probability of a target")
    ax.child_axes[-1].set_yticks([-1, 0, 1], ["1, shift down", "0", "1, shift up"])
    return ax


def plot_shifts(environments: xr.Dataset, *, latents: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Draw the shift of every latent in every environment with its interval.

    Parameters
    ----------
    environments
        ``shift``, ``shift_lower`` and ``shift_upper`` over (condition, latent), as from ``fit.environments()``; with
        ``target_probability``, latents that are no targets have small hollow marks.
    latents
        Names of at most 10 latents; left out, those whose largest shift is largest.
    ax
        Where to draw.

    Returns
    -------
    Axes
        Environments from top to bottom, one colour a latent. What the intervals are conditional on is written below the
        title if the table says so.

    Raises
    ------
    DataError
        If a variable is missing, has other dims, or is not finite, or there is no such latent.
    """
    mean, lower, upper = (_table(environments, name, TABLE) for name in ("shift", "shift_lower", "shift_upper"))
    chosen = _chosen(mean, latents)
    sure = (
        _table(environments, "target_probability", TABLE) > 0.5
        if "target_probability" in environments and bool(environments["target_probability"].notnull().all())
        else mean == mean
    )
    rows = mean.sizes["condition"]
    ax = axes_or_new(ax, (6.6, min(1.7 + rows * (0.16 + 0.11 * len(chosen)), 13.0)))
    middle = np.arange(rows)
    for row in middle[::2]:
        ax.axhspan(row - 0.5, row + 0.5, color="#f3f3f3", lw=0, zorder=0)
    ax.axvline(0, color="#888888", lw=0.8, zorder=1)
    places = (np.arange(len(chosen)) - (len(chosen) - 1) / 2) * 0.75 / max(len(chosen), 2)
    for column, place, color in zip(chosen, places, GROUPS, strict=False):
        x, low, high, is_target = (part.isel(latent=column).values for part in (mean, lower, upper, sure))
        y = middle + place
        ax.hlines(y, low, high, color=color, lw=1.3, alpha=0.8)
        ax.plot(x[is_target], y[is_target], "o", color=color, ms=4.5, label=str(mean["latent"].values[column]))
        ax.plot(x[~is_target], y[~is_target], "o", color=color, ms=2.5, mfc="white", mew=0.8)
    ax.set_yticks(middle, [str(name) for name in mean["condition"].values])
    ax.set_ylim(rows - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    left_out = mean.sizes["latent"] - len(chosen)
    small = f" ({left_out} smaller latents left out)" if left_out and latents is None else ""
    ax.set_title(f"Shifts of latents: mean and {_interval(environments)}{small}")
    note = str(environments.attrs.get("shift_intervals", "")).split(";")[0]
    ax.set_xlabel("\n".join([SHIFT, *wrap(note, 72)]))
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return ax


def plot_latents(
    latents: xr.Dataset,
    *,
    names: tuple[str, str] | None = None,
    labels: Labels | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw two latents of cells, coloured by environment, with the mean of each environment.

    Parameters
    ----------
    latents
        ``mean (cell, latent)`` and, unless `labels` are given, ``environment (cell)``: labels, or positions along the
        coordinate ``condition``. As from ``fit.latents(data)``.
    names
        Of the latents along x and y; left out, the two whose means differ most between environments.
    labels
        One a cell, in place of environments.
    ax
        Where to draw.

    Returns
    -------
    Axes
        With equal scales, so that angles are true. Cells are drawn in random order: no environment hides the others.

    Raises
    ------
    DataError
        If a variable is missing, has other dims, or is not finite, or there is no such latent.
    """
    mean = _table(latents, "mean", ("cell", "latent"))
    codes, shown = _environments(latents) if labels is None else groups(labels, mean.sizes["cell"])
    values = mean.values.astype(np.float64)
    count = np.bincount(codes, minlength=len(shown))
    centres = np.stack([np.bincount(codes, column, len(shown)) for column in values.T]) / np.maximum(count, 1)
    known = [str(name) for name in mean["latent"].values]
    if len(known) < 2:
        raise DataError(f"latents: found {len(known)}; wanted at least two")
    if names is None:
        first, second = sorted(np.argsort(-centres[:, count > 0].var(1), kind="stable")[:2].tolist())
    else:
        first, second = _positions(known, names)
    ax = axes_or_new(ax, (6.4, 5.0))
    order = np.random.default_rng(0).permutation(len(values))
    colors = np.array([color for _, color in shown])
    crowd = len(values) > 3000
    ax.scatter(
        values[order, first], values[order, second], s=3 if crowd else 12, c=colors[codes[order]],
        alpha=0.25 if crowd else 0.5, linewidths=0, rasterized=crowd,
    )  # fmt: skip
    for group, (label, color) in enumerate(shown):
        if color == OTHER:  # many environments, whose common mean says nothing
            ax.plot([], [], "o", color=color, ms=5, label=label)
        elif count[group]:
            ax.plot(*centres[:, group][[first, second]], "D", color=color, ms=7, mec="white", mew=1.2, label=label)
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_xlabel(known[first])
    ax.set_ylabel(known[second])
    ax.set_title("Latents of cells, and means of environments")
    legend(ax, [])
    return ax


def plot_gene_effects(effects: xr.Dataset, condition: str, *, num_genes: int = 20, ax: Axes | None = None) -> Axes:
    """Draw the largest effects of an environment on genes, with intervals.

    Parameters
    ----------
    effects
        ``effect``, ``effect_lower`` and ``effect_upper`` over (condition, gene), as from ``fit.effects(data)``.
    condition
        Name of the environment.
    num_genes
        How many genes at most. Those whose interval leaves out 0 come first, by the size of their effect.
    ax
        Where to draw.

    Returns
    -------
    Axes
        Genes from the largest to the smallest effect, grey where the interval holds 0; below, how many genes there
        are.

    Raises
    ------
    DataError
        If a variable is missing, has other dims, or is not finite there, or there is no such environment.
    """
    if num_genes < 1:
        raise DataError(f"num_genes: found {num_genes}; wanted at least 1")
    dims = ("condition", "gene")
    known = _variable(effects, "effect")["condition"].values.tolist()
    if condition not in known:
        raise DataError(f"condition: found {condition!r}; wanted one of {listed(known)}")
    row = effects.isel(condition=[known.index(condition)])
    mean, lower, upper = (_table(row, name, dims).values[0] for name in ("effect", "effect_lower", "effect_upper"))
    clear = (lower > 0) | (upper < 0)
    top = np.lexsort((-np.abs(mean), ~clear))[:num_genes]
    top = top[np.argsort(-mean[top], kind="stable")]
    ax = axes_or_new(ax, (5.4, min(1.6 + 0.21 * len(top), 13.0)))
    ax.axvline(0, color="#888888", lw=0.8)
    for place, gene in enumerate(top):
        color = (POSITIVE if mean[gene] > 0 else NEGATIVE) if clear[gene] else "#999999"
        ax.hlines(place, lower[gene], upper[gene], color=color, lw=1.6)
        ax.plot(mean[gene], place, "o", color=color, ms=4.5)
    ax.set_yticks(range(len(top)), [str(name) for name in effects["gene"].values[top]])
    ax.set_ylim(len(top) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", color="#eeeeee", lw=0.6)
    ax.set_axisbelow(True)
    units, control = effects.attrs.get("units", "effect"), effects.attrs.get("control")
    what = f"{units}, against {control}" if control else units
    ax.set_xlabel(f"{what}\n{int(clear.sum())} of {len(mean)} intervals leave out 0")
    ax.set_title(f"{condition}: effects on genes, mean and {_interval(effects)}")
    return ax


def _variable(table: xr.Dataset, name: str) -> xr.DataArray:
    if name not in table:
        raise DataError(f"found variables {listed(table.data_vars)}; wanted {name!r} among them")
    return table[name]


def _table(table: xr.Dataset, name: str, dims: tuple[str, str]) -> xr.DataArray:
    return checked(_variable(table, name), name, dims)


def _chosen(mean: xr.DataArray, latents: Sequence[str] | None) -> list[int]:
    """Positions of the latents to draw, at most one a colour."""
    if latents is None:
        largest = np.argsort(-np.abs(mean.values).max(0), kind="stable")[: len(GROUPS)]
        return sorted(largest.tolist())
    if not 1 <= len(latents) <= len(GROUPS):
        raise DataError(f"latents: found {len(latents)}; wanted 1 to {len(GROUPS)}")
    return _positions([str(name) for name in mean["latent"].values], latents)


def _positions(known: list[str], names: Sequence[str]) -> list[int]:
    missing = [name for name in names if name not in known]
    if missing:
        raise DataError(f"latents: found {listed(missing)}; wanted names among {listed(known)}")
    return [known.index(name) for name in names]


def _environments(latents: xr.Dataset) -> tuple[Int[np.ndarray, " cell"], list[tuple[str, str]]]:
    """Environment of every cell, and name and colour of every environment, in the order of the conditions."""
    codes = _variable(latents, "environment").values
    places, shown = groups(codes, latents.sizes["cell"])
    if "condition" in latents.coords and codes.dtype.kind in "iu":
        names = {str(place): str(name) for place, name in enumerate(latents["condition"].values)}
        shown = [(names.get(name, name), color) for name, color in shown]
    return places, shown


def _interval(table: xr.Dataset) -> str:
    return f"{100 * table.attrs['interval']:g} % interval" if "interval" in table.attrs else "interval"
