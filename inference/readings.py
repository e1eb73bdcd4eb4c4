"""What users read off a fit, in one form for all methods: calibration, stability and reports are made of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..models.parts.errors import DataError
from .inputs import DataLike, as_dataset
from .simulation import TRUTH

if TYPE_CHECKING:
    from .fit import Fit

Readings = dict[str, xr.Dataset]


def readings(fit: Fit, data: DataLike, num_samples: int, *, level: float, seed: int) -> Readings:
    """Every site that is not of single rows and not held fixed; see `Fit.readings`."""
    check_level(level)
    tree = fit.posterior(data, num_samples, predictive=False, prior=False, seed=seed)
    posterior = tree["posterior"].to_dataset()
    fixed = set(json.loads(posterior.attrs.get("held_fixed", "[]")))
    sites = {str(name): values for name, values in posterior.data_vars.items() if values.dtype.kind in "fiub"}
    moving = {name: values for name, values in sites.items() if name not in fixed}
    shared = {name: values for name, values in moving.items() if fit.schema.plate not in values.dims}
    dataset = as_dataset(data, fit.schema)
    told = {name: (truth_of(dataset, name, values), f"site {name!r} of the model") for name, values in sites.items()}
    if not moving:
        return {name: of_point(v.isel(chain=0, draw=0, drop=True), *told[name]) for name, v in sites.items()}
    return {name: of_draws(in_a_row(v), level, *told[name]) for name, v in (shared or moving).items()}


def in_a_row(values: xr.DataArray) -> xr.DataArray:
    """Draws of all chains along one dim, which comes first."""
    rest = [dim for dim in values.dims if dim not in ("chain", "draw")]
    stacked = values.transpose("chain", "draw", *rest)
    array = stacked.values.reshape(-1, *stacked.shape[2:])
    return xr.DataArray(array, dims=("draw", *rest), coords={dim: values[dim].values for dim in rest})


def of_draws(draws: xr.DataArray, level: float, truth: xr.DataArray | None = None, meaning: str = "") -> xr.Dataset:
    """A reading from posterior draws.

    Parameters
    ----------
    draws
        The first dim is ``draw``.
    level
        Mass of the central interval; the k-th of n draws counts as the quantile k / (n + 1).
    truth
        True value, where it is known; NaN for entries that do not count.
    meaning
        One line on what it is.
    """
    values = np.asarray(draws.values, dtype=float)
    lower, upper = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
    dims = draws.dims[1:]
    table = xr.Dataset({"estimate": (dims, values.mean(0)), "lower": (dims, lower), "upper": (dims, upper)})
    return _finished(table.assign(draws=draws), truth, meaning, level)


def of_point(estimate: xr.DataArray, truth: xr.DataArray | None = None, meaning: str = "") -> xr.Dataset:
    """A reading that is an estimate without a posterior; arguments as for `of_draws`."""
    table = xr.Dataset({"estimate": (estimate.dims, np.asarray(estimate.values, dtype=float))}, _labels(estimate))
    return _finished(table, truth, meaning)


def of_intervals(
    estimate: xr.DataArray,
    lower: xr.DataArray,
    upper: xr.DataArray,
    level: float,
    truth: xr.DataArray | None = None,
    meaning: str = "",
) -> xr.Dataset:
    """A reading that comes as intervals; arguments as for `of_draws`."""
    table = {"estimate": estimate, "lower": lower, "upper": upper}
    plain = {name: (estimate.dims, values.transpose(*estimate.dims).values) for name, values in table.items()}
    return _finished(xr.Dataset(plain, _labels(estimate)), truth, meaning, level)


def of_probability(probability: xr.DataArray, truth: xr.DataArray | None = None, meaning: str = "") -> xr.Dataset:
    """A reading that states how probable something is, entry by entry; `truth` says whether it is so."""
    plain = (probability.dims, probability.values)
    table = xr.Dataset({"estimate": plain, "probability": plain}, _labels(probability))
    return _finished(table, truth, meaning)


def truth_of(data: xr.Dataset, name: str, like: xr.DataArray) -> xr.DataArray | None:
    """The truth of a simulation, ``true_<name>``, if the data carry it over the dims of `like`."""
    known = data.get(TRUTH + name)
    wanted = [dim for dim in like.dims if dim not in ("chain", "draw")]
    if known is None or set(known.dims) != set(wanted) or any(known.sizes[d] != like.sizes[d] for d in wanted):
        return None
    return known.transpose(*wanted)


def check_level(level: float) -> None:
    """Refuse a mass of intervals that is none.

    Raises
    ------
    DataError
        If it is not between 0 and 1.
    """
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < 1:
        raise DataError(f"level: found {level!r}; wanted a number between 0 and 1")


def _labels(values: xr.DataArray) -> dict[str, np.ndarray]:
    return {str(dim): values[dim].values for dim in values.dims if dim in values.coords}


def _finished(table: xr.Dataset, truth: xr.DataArray | None, meaning: str, level: float | None = None) -> xr.Dataset:
    if truth is not None:
        dims = table["estimate"].dims
        table = table.assign(truth=(dims, np.asarray(truth.transpose(*dims).values, dtype=float)))
    return table.assign_attrs({"meaning": meaning} | ({} if level is None else {"level": level}))
