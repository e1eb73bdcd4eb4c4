"""Two fits side by side: their entries matched, and how far they agree."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from scipy.optimize import linear_sum_assignment
from scipy.stats import norm

if TYPE_CHECKING:
    from jaxtyping import Float

SCORES = ("correlation", "sign_agreement", "call_agreement", "jaccard")


@dataclass(frozen=True)
class Table:
    """A reading without its draws.

    Attributes
    ----------
    estimate
        With its dims.
    width
        Standard deviation that the posterior states; NaN where it states none.
    called
        1 where something is said to be there, 0 where not; NaN where the reading makes no calls.
    probability
        Whether the estimates are probabilities, which have no signs.
    """

    estimate: xr.DataArray
    width: Float[np.ndarray, "..."]
    called: Float[np.ndarray, "..."]
    probability: bool


def table_of(reading: xr.Dataset, threshold: float, level: float) -> Table:
    """Condense a reading, see `Fit.readings`; a probability above `threshold` is a call."""
    estimate = reading["estimate"].astype(float)
    dims, nothing = estimate.dims, np.full(estimate.shape, math.nan)
    draws = reading["draws"].transpose("draw", *dims).values.astype(float) if "draws" in reading else None
    ends = None
    if "lower" in reading and "upper" in reading:
        ends = [reading[end].transpose(*dims).values.astype(float) for end in ("lower", "upper")]
        stated = float(reading.attrs.get("level", level))
    elif draws is not None:
        ends, stated = list(np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)), level
    width, called = nothing, nothing
    if draws is not None:
        width = draws.std(0, ddof=1)
    elif ends is not None:
        width = (ends[1] - ends[0]) / (2 * norm.ppf((1 + stated) / 2))
    if "probability" in reading:
        probability = reading["probability"].transpose(*dims).values
        called = np.where(np.isnan(probability), math.nan, probability > threshold)
    elif ends is not None:
        called = ((ends[0] > 0) | (ends[1] < 0)).astype(float)
    return Table(estimate, width, called, "probability" in reading)


def aligned(
    tables: Mapping[str, Table], target: Mapping[str, Table], loose: Collection[str], signed: Collection[str]
) -> dict[str, Table]:
    """Bring the entries of dims without meaning into the order, and to the signs, of another fit.

    For each such dim the assignment with the smallest sum of squared differences, over all readings that have it, each
    in units of its root mean square.

    Parameters
    ----------
    tables
        To be matched.
    target
        What to.
    loose
        Dims without meaning.
    signed
        Those whose entries may also change sign.
    """
    found = dict(tables)
    for dim in loose:
        own = [name for name, table in found.items() if dim in table.estimate.dims]
        if own:
            order, sign = _match(found, target, own, dim, dim in signed)
            found |= {name: _moved(found[name], dim, order, sign) for name in own}
    return found


def renamed(tables: Mapping[str, Table], loose: Collection[str], rng: np.random.Generator) -> dict[str, Table]:
    """Exchange the names along all dims with meaning at random, in the same way in all readings.

    Dims with the same names (``regulator`` and ``target``) are exchanged together, so that diagonals stay diagonals.
    """
    orders: dict[object, np.ndarray] = {}
    found = {}
    for name, table in tables.items():
        moved = table
        for dim in table.estimate.dims:
            if dim in loose:
                continue
            labels, size = table.estimate.coords.get(dim), table.estimate.sizes[dim]
            key = str(dim) if labels is None else tuple(labels.values.tolist())
            order = orders.setdefault(key, rng.permutation(size))
            moved = _moved(moved, str(dim), order, np.ones(size))
        found[name] = moved
    return found


def agreement(one: Table, other: Table) -> tuple[float, ...]:
    """The `SCORES` of a pair; NaN where there is nothing to score.

    Entries that neither fit has (0 in both, not called) do not count, but for probabilities, where 0 says something.
    """
    a, b = one.estimate.values, other.estimate.values
    known = np.isfinite(a) & np.isfinite(b)
    if not one.probability:
        known &= (a != 0) | (b != 0) | (one.called == 1) | (other.called == 1)
    a, b, first, second = a[known], b[known], one.called[known], other.called[known]
    moving = a.size > 2 and a.std() > 0 and b.std() > 0
    correlation = float(np.corrcoef(a, b)[0, 1]) if moving else math.nan
    if a.size == 0 or np.isnan(first).any() or np.isnan(second).any():
        return correlation, math.nan, math.nan, math.nan
    both, either = (first == 1) & (second == 1), (first == 1) | (second == 1)
    same_sign = float((np.sign(a) == np.sign(b))[both].mean()) if both.any() and not one.probability else math.nan
    jaccard = float(both.sum() / either.sum()) if either.any() else math.nan
    return correlation, same_sign, float((first == second).mean()), jaccard


def _match(
    tables: Mapping[str, Table], target: Mapping[str, Table], names: Collection[str], dim: str, signed: bool
) -> tuple[np.ndarray, np.ndarray]:
    size = tables[next(iter(names))].estimate.sizes[dim]
    costs = np.zeros((2, size, size))
    for name in names:
        wanted, own = _rows(target[name], dim), _rows(tables[name], dim)
        unit = np.mean(wanted**2) + np.mean(own**2) + 1e-300
        for place, sign in enumerate((1.0, 1.0 if tables[name].probability else -1.0)):
            costs[place] += ((wanted[:, None] - sign * own[None]) ** 2).sum(-1) / unit
    best = costs.min(0) if signed else costs[0]
    order = linear_sum_assignment(best)[1]
    chosen = costs[:, np.arange(size), order]
    return order, np.where(signed & (chosen[1] < chosen[0]), -1.0, 1.0)


def _rows(table: Table, dim: str) -> Float[np.ndarray, "entry feature"]:
    rows = table.estimate.transpose(dim, ...).values
    return np.nan_to_num(rows.reshape(len(rows), -1))


def _moved(table: Table, dim: str, order: np.ndarray, sign: np.ndarray) -> Table:
    axis = table.estimate.dims.index(dim)
    labels = {dim: table.estimate[dim].values} if dim in table.estimate.coords else {}
    estimate = table.estimate.isel({dim: order}).assign_coords(labels)
    if not table.probability:
        estimate = estimate * xr.DataArray(sign, dims=dim)
    width, called = (np.take(values, order, axis) for values in (table.width, table.called))
    return replace(table, estimate=estimate, width=width, called=called)
