"""The statistics of one predictive check: on what they are computed, and the table that comes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from ._replicated_ranks import Ranks, compared, p_of_all
from .inference.replicated import Replicated
from .models.parts.errors import DataError
from .predictive_statistics import Statistic
from .validation import listed

Function = Callable[[np.ndarray], Any]

SUMMARY = {
    "num_entries": "numbers that were compared: genes, pairs of genes or cells",
    "share_outside": "share of them outside their interval",
    "share_expected": "the same share of a replicate, which is what the model expects",
    "share_p": "two-sided p of the share: small if too many lie outside, or too few",
    "p_overall": "p of the largest standardised deviation of all entries: one test however many entries there are",
    "worst": "entry with the largest deviation",
    "worst_position": "its position",
}
"""Columns of a check over ``statistic``."""


@dataclass
class Variable:
    """An observed site as a table of rows and columns."""

    site: str
    observed: xr.DataArray
    counted: xr.DataArray | None
    column: str | None
    pair_columns: np.ndarray
    prefix: str = ""

    @property
    def rows(self) -> tuple[str, ...]:
        return tuple(str(dim) for dim in self.observed.dims if dim != self.column)

    def values(self, array: np.ndarray) -> np.ndarray:
        """One draw as float64, NaN where it does not count."""
        values = np.array(array, dtype=np.float64)
        if self.counted is not None:
            values[~self.counted.values] = np.nan
        return values

    def table(self, values: np.ndarray) -> np.ndarray:
        """Rows and columns of one draw."""
        if self.column is None:
            return values.reshape(-1, 1)
        axis = self.observed.dims.index(self.column)
        return np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])

    def labels(self, dim: str) -> np.ndarray:
        return self.observed[dim].values if dim in self.observed.coords else np.arange(self.observed.sizes[dim])


@dataclass
class Check:
    """One statistic of one observed site, and what was collected of it."""

    name: str
    function: Function
    of: Variable
    observed: np.ndarray = field(init=False)
    draws: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.observed = self._compute(self.of.values(self.of.observed.values), "the data")

    def take(self, part: xr.Dataset) -> None:
        """Compute the statistic of every draw of a part."""
        drawn = part[self.of.site].transpose("draw", *self.of.observed.dims).values
        for i, array in enumerate(drawn, len(self.draws)):
            self.draws.append(self._compute(self.of.values(array), f"replicate {i}"))

    def _compute(self, values: np.ndarray, where: str) -> np.ndarray:
        if isinstance(self.function, Statistic):
            table = self.of.table(values)
            return self.function(table[:, self.of.pair_columns] if self.function.by == "pair" else table)
        result = np.asarray(self.function(values), dtype=float)
        if not np.isfinite(result).all():
            raise DataError(f"{self.name}: found NaN or infinite numbers of {where}; wanted finite ones")
        if where != "the data" and result.shape != self.observed.shape:
            raise DataError(f"{self.name}: found shape {result.shape} of {where}; wanted {self.observed.shape}")
        return result

    def ranks(self, level: float) -> Ranks:
        """The comparison."""
        return compared(self.observed.ravel(), np.stack([draw.ravel() for draw in self.draws]), level)

    def entries(self) -> tuple[tuple[str, ...], tuple[int, ...], dict[str, Any]]:
        """Dims, sizes and labels of the numbers."""
        by = self.function.by if isinstance(self.function, Statistic) else self._by()
        of = self.of
        if by == "pair":
            names = of.labels(str(of.column))[of.pair_columns]
            first, second = np.triu_indices(len(names), 1)
            pairs = [f"{a} -- {b}" for a, b in zip(names[first], names[second], strict=True)]
            dim = f"{of.prefix}{of.column}_pair"
            return (dim,), (len(pairs),), {dim: pairs}
        if by == "other":
            return tuple(f"{self.name}_dim_{i}" for i in range(self.observed.ndim)), self.observed.shape, {}
        dims = {"row": of.rows, "column": () if of.column is None else (of.column,), "none": ()}[by]
        return dims, tuple(of.observed.sizes[dim] for dim in dims), {dim: of.labels(dim) for dim in dims}

    def _by(self) -> str:
        """What the numbers of a user's function belong to, as far as their shape tells."""
        shape, sizes = self.observed.shape, self.of.observed.sizes
        if not shape:
            return "none"
        if self.of.column is not None and shape == (sizes[self.of.column],):
            return "column"
        return "row" if shape == tuple(sizes[dim] for dim in self.of.rows) else "other"


def checks_of(
    found: Replicated, functions: Mapping[str, Function], plate: str, pair_genes: int | Sequence[Any]
) -> tuple[list[Check], dict[str, str]]:
    """Statistics that apply to the observed sites, with their observed values, and why others are left out."""
    checks, left_out = [], {}
    several = len(found.observed.data_vars) > 1
    for site, observed in found.observed.data_vars.items():
        variable = _variable(str(site), observed, found.counted.get(site), plate, pair_genes, several)
        for name, function in functions.items():
            full = f"{site}.{name}" if several else name
            reason = _reason(function, variable)
            if reason:
                left_out[full] = reason
            else:
                checks.append(Check(full, function, variable))
    return checks, left_out


def _variable(
    site: str, observed: xr.DataArray, counted: xr.DataArray | None, plate: str, pair_genes: Any, several: bool
) -> Variable:
    column = None
    if observed.ndim > 1:
        others = [str(dim) for dim in observed.dims if dim != plate]
        column = "gene" if "gene" in others else others[-1]
    variable = Variable(site, observed, counted, column, np.arange(0), f"{site}_" if several else "")
    if column is not None:
        variable.pair_columns = _columns_of_pairs(variable, pair_genes)
    return variable


def _columns_of_pairs(variable: Variable, pair_genes: int | Sequence[Any]) -> np.ndarray:
    if isinstance(pair_genes, int):
        if pair_genes < 2:
            raise DataError(f"pair_genes: found {pair_genes}; wanted at least 2, or names")
        table = variable.table(variable.values(variable.observed.values))
        seen = ~np.isnan(table)
        count = seen.sum(axis=0).clip(1)
        mean = np.where(seen, table, 0.0).sum(axis=0) / count
        variance = np.where(seen, (table - mean) ** 2, 0.0).sum(axis=0) / count
        return np.sort(np.argsort(-variance, kind="stable")[:pair_genes])
    labels = variable.labels(str(variable.column)).tolist()
    unknown = [gene for gene in pair_genes if gene not in labels]
    if unknown or len(pair_genes) < 2:
        found = repr(unknown[0]) if unknown else f"{len(pair_genes)} names"
        raise DataError(f"pair_genes: found {found}; wanted at least 2 of {listed(labels)}")
    return np.array(sorted({labels.index(gene) for gene in pair_genes}))


def _reason(function: Function, of: Variable) -> str:
    """Why a statistic does not apply; empty if it does."""
    if not isinstance(function, Statistic):
        return ""
    if of.observed.ndim == 0:
        return "there is a single number"
    num_columns = 1 if of.column is None else of.observed.sizes[of.column]
    num_rows = of.observed.size // num_columns
    if num_columns < function.least_columns:
        return f"found {num_columns} of dim {of.column or 'gene'}, wanted {function.least_columns}"
    if num_rows < function.least_rows:
        return f"found {num_rows} rows, wanted {function.least_rows}"
    return ""


def table_of(checks: Sequence[Check], left_out: Mapping[str, str], level: float) -> xr.Dataset:
    """All comparisons as one Dataset."""
    variables: dict[str, Any] = {}
    coords: dict[str, Any] = {}
    rows: dict[str, dict[str, Any]] = {}
    skipped, extremes = dict(left_out), []
    for check in checks:
        ranks = check.ranks(level)
        if not ranks.varies:
            skipped[check.name] = "it is the same in the data and in all replicates"
            continue
        dims, sizes, labels = check.entries()
        told = {"meaning": getattr(check.function, "meaning", "your own function")}
        found = {"observed": check.observed, "replicated": ranks.mean, "lower": ranks.lower, "upper": ranks.upper}
        for what, values in (found | {"p": ranks.p}).items():
            variables[f"{check.name}_{what}"] = (dims, np.asarray(values).reshape(sizes), told)
        coords |= labels
        extremes.append(ranks.extremes)
        rows[check.name] = _row(ranks, dims, sizes, labels)
    if not rows:
        raise DataError(f"statistics: found none that says anything ({skipped}); wanted at least one")
    summary = {key: ("statistic", [row[key] for row in rows.values()], {"meaning": SUMMARY[key]}) for key in SUMMARY}
    attrs = {"p_all": p_of_all(extremes), "left_out": json.dumps(skipped)}
    return xr.Dataset(variables | summary, {**coords, "statistic": list(rows)}, attrs)


def _row(ranks: Ranks, dims: tuple[str, ...], sizes: tuple[int, ...], labels: Mapping[str, Any]) -> dict[str, Any]:
    place = np.unravel_index(ranks.worst, sizes) if sizes else ()
    names = [str(labels[dim][i]) if dim in labels else str(i) for dim, i in zip(dims, place, strict=True)]
    return {
        "num_entries": int((~np.isnan(ranks.p)).sum()),
        "share_outside": ranks.share,
        "share_expected": ranks.share_expected,
        "share_p": ranks.share_p,
        "p_overall": ranks.p_overall,
        "worst": ", ".join(names),
        "worst_position": ranks.worst,
    }
