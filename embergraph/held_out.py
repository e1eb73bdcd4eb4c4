"""The rule by which models are compared on cells that they were not fitted to; `choose` and `compare` share it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from .inference import Fit
from .metrics import held_out_mse
from .models.med_magma import MEDMAGMA
from .models.parts.errors import SchemaError

RULE = "largest mean held-out log density; of those within one standard error of it, the first listed"
COLUMNS = {
    "log_density": "mean held-out log density of a cell, nats",
    "log_density_se": "its standard error over the test cells",
    "difference": "to the best, nats a cell",
    "difference_se": "standard error of the paired differences",
    "mse": "mean squared residual of held-out cells after projection, where there are networks",
}
"""Columns of numbers that both tables have."""


def ranked(densities: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Rank models by held-out log densities of the same cells.

    The model with the largest mean is the best; a model is tied with it if its mean is lower by no more than one
    standard error of the paired differences of the cells.

    Parameters
    ----------
    densities
        Of every model: one number a cell.

    Returns
    -------
    dict
        Of every model: ``log_density``, ``log_density_se``, ``difference``, ``difference_se`` and ``tied``.
    """
    means = {name: float(np.mean(values)) for name, values in densities.items()}
    best = max(means, key=lambda name: means[name] if math.isfinite(means[name]) else -math.inf)
    rows = {}
    for name, values in densities.items():
        gap = np.asarray(densities[best]) - np.asarray(values)
        error = standard_error(gap)
        rows[name] = {
            "log_density": means[name],
            "log_density_se": standard_error(np.asarray(values)),
            "difference": 0.0 if name == best else -float(gap.mean()),
            "difference_se": error,
            "tied": name == best or bool(gap.mean() <= error),
        }
    return rows


def best_of(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The model with the largest mean."""
    return next(name for name, row in rows.items() if row["difference"] == 0.0)


def numbers(rows: Mapping[str, Mapping[str, Any] | None], column: str) -> np.ndarray:
    """A column of numbers; NaN where a row or the number is missing."""
    found = [(row or {}).get(column) for row in rows.values()]
    return np.array([math.nan if value is None else value for value in found], dtype=float)


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean; NaN for a single number."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def networks_mse(fitted: Any, test: xr.Dataset) -> float | None:
    """Mean squared residual, where the method has networks that are DAGs of additive effects."""
    if not hasattr(fitted, "networks") or not fitted.model.likelihood.has_scale:
        return None
    networks = fitted.networks(test, interval=None, edge_threshold=None)
    return held_out_mse(networks, test) if networks.attrs["acyclic"] else None


def check_densities(name: str, model: Any) -> None:
    """Refuse a model whose held-out density cannot be compared.

    Raises
    ------
    SchemaError
        If its cells cannot be held out, or its density is not normalised.
    """
    if isinstance(model, MEDMAGMA):
        raise SchemaError(f"{name}: found MEDMAGMA, a model of these very cells; wanted one of any cells")
    schema = model.schema if isinstance(model, Fit) or hasattr(model, "schema") else None
    if schema is not None and not schema.normalised:
        raise SchemaError(
            f"{name}: found an unnormalised density, which cannot be compared with others; wanted order='uniform' or "
            "'projected' instead of None"
        )
