"""What a fit found, by name: the strongest entries of its readings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from .parts import Block, Column, Paragraph, Table, fixed

if TYPE_CHECKING:
    from jaxtyping import Float, Int

NUM_ROWS, FEW = 10, 3
LIKELY = 0.05
"""Less probable statements are shown only where there are no others."""


def findings(readings: dict[str, xr.Dataset], plate: str) -> list[Block]:
    """A table of the strongest entries of every reading.

    Parameters
    ----------
    readings
        From `Fit.readings`.
    plate
        Dim of single rows of the data: of these, each entry shows the one where it is strongest.
    """
    single = {name: reading for name, reading in readings.items() if not reading["estimate"].dims}
    tables = [single_numbers(single)] if single else []
    tables += [reading_table(name, reading, plate) for name, reading in readings.items() if name not in single]
    return list(tables) or [Paragraph("There is nothing to read: every site is held fixed or belongs to single rows.")]


def single_numbers(readings: dict[str, xr.Dataset]) -> Table:
    """Readings of one number each, in one table."""
    columns = (Column("name"), Column("estimate", "number"), Column("interval", "number"), Column("meaning"))
    rows = []
    for name, reading in readings.items():
        shown = [texts[0] for texts in _shown(reading, np.zeros(1, dtype=int))]
        interval = shown[1] if len(shown) > 1 else "none"
        rows.append((name, shown[0], interval, str(reading.attrs.get("meaning") or "no description")))
    levels = {float(reading.attrs["level"]) for reading in readings.values() if "level" in reading.attrs}
    mass = f", with {100 * levels.pop():g} % intervals" if len(levels) == 1 else ""
    return Table(f"Single numbers{mass}", columns, tuple(rows))


def reading_table(name: str, reading: xr.Dataset, plate: str) -> Table:
    """The strongest entries of one reading."""
    estimate = reading["estimate"]
    dims = [str(dim) for dim in estimate.dims]
    chosen, total = strongest(reading, plate)
    level = reading.attrs.get("level")
    columns = [Column(dim.replace("_", " ")) for dim in dims] or [Column("entry")]
    columns.append(Column("probability" if "probability" in reading else "estimate", "number"))
    if "lower" in reading and "upper" in reading:
        columns.append(Column("interval" if level is None else f"{100 * float(level):g} % interval", "number"))
    labels = [_labels(reading, dim) for dim in dims]
    places = [np.unravel_index(place, estimate.shape) if dims else () for place in chosen]
    named = [[labels[axis][index] for axis, index in enumerate(where)] or [name] for where in places]
    rows = tuple((*label, *texts) for label, *texts in zip(named, *_shown(reading, chosen), strict=True))
    meaning = str(reading.attrs.get("meaning") or "no description")
    more = f" The {len(rows)} strongest of {total}." if total > len(rows) else ""
    each = f" Each with the {plate} where it is strongest." if plate in dims and len(dims) > 1 else ""
    return Table(f"{name}: {meaning}.{more}{each}", tuple(columns), rows)


def _shown(reading: xr.Dataset, chosen: Int[np.ndarray, " row"]) -> list[list[str]]:
    """Columns of texts: estimates, and intervals if there are some."""
    parts = [key for key in ("estimate", "lower", "upper") if key in reading]
    values = [np.asarray(reading[key].values, dtype=float).ravel()[chosen] for key in parts]
    if "probability" in reading:
        return [[f"{value:.2f}" for value in values[0]]]
    flat = fixed(np.concatenate(values).tolist())
    texts = [flat[i * len(chosen) : (i + 1) * len(chosen)] for i in range(len(values))]
    if len(texts) < 3:
        return texts[:1]
    return [texts[0], [f"{low} to {high}" for low, high in zip(texts[1], texts[2], strict=True)]]


def strongest(reading: xr.Dataset, plate: str) -> tuple[Int[np.ndarray, " row"], int]:
    """Flat positions of the strongest entries, best first, and how many entries there are to choose from."""
    estimate = reading["estimate"]
    strength = _strength(reading)
    dims = [str(dim) for dim in estimate.dims]
    for first in dims:
        second = f"{first}_other"
        if second in dims and estimate.sizes[first] == estimate.sizes[second]:  # a pair once, and no node with itself
            axes = dims.index(first), dims.index(second)
            strength = _upper_half(strength, *axes)
    if plate in dims and len(dims) > 1:
        strength = _best_along(strength, dims.index(plate))
    flat = strength.ravel()
    usable = np.flatnonzero(np.isfinite(flat))
    order = usable[np.argsort(-flat[usable], kind="stable")]
    positive = order[flat[order] > 0]
    likely = positive[flat[positive] > LIKELY] if "probability" in reading else positive
    return (likely if len(likely) else order[:FEW])[:NUM_ROWS], len(positive)


def _strength(reading: xr.Dataset) -> Float[np.ndarray, "*entry"]:
    """Probability, or the size of the estimate, first those whose interval leaves out zero; NaN: no entry."""
    estimate = np.asarray(reading["estimate"].values, dtype=float)
    if "probability" in reading:
        return np.asarray(reading["probability"].values, dtype=float)
    size = np.abs(estimate)
    if "regulator" in reading["estimate"].dims and "target" in reading["estimate"].dims:
        size = np.where(estimate == 0, np.nan, size)  # what an order forbids, the diagonal among it
    return size


def _upper_half(strength: np.ndarray, first: int, second: int) -> np.ndarray:
    moved = np.moveaxis(strength, (first, second), (-2, -1))
    keep = np.triu(np.ones(moved.shape[-2:], dtype=bool), 1)
    return np.moveaxis(np.where(keep, moved, np.nan), (-2, -1), (first, second))


def _best_along(strength: np.ndarray, axis: int) -> np.ndarray:
    filled = np.where(np.isfinite(strength), strength, -np.inf)
    best = np.zeros(strength.shape, dtype=bool)
    np.put_along_axis(best, np.expand_dims(filled.argmax(axis), axis), True, axis)
    return np.where(best, strength, np.nan)


def _labels(reading: xr.Dataset, dim: str) -> list[str]:
    if dim in reading.coords:
        return [str(label) for label in reading[dim].values]
    return [str(place) for place in range(reading.sizes[dim])]


def interval_entries(
    reading: xr.Dataset, plate: str
) -> tuple[list[str], Float[np.ndarray, " row"], Float[np.ndarray, " row"], Float[np.ndarray, " row"]]:
    """Names, estimates and interval ends of the strongest entries, for a picture."""
    chosen, _ = strongest(reading, plate)
    estimate = reading["estimate"]
    dims = [str(dim) for dim in estimate.dims]
    labels = [_labels(reading, dim) for dim in dims]

    def name(place: Any) -> str:
        where = np.unravel_index(place, estimate.shape) if dims else ()
        return ", ".join(labels[axis][index] for axis, index in enumerate(where))

    low, mid, high = (np.asarray(reading[key].values, float).ravel()[chosen] for key in ("lower", "estimate", "upper"))
    return [name(place) for place in chosen], mid, low, high
