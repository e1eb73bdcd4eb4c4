"""What a reader of a report must know first, as plain sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..inference.judgement import verdict_of
from ..inference.query import is_fitted_to
from .model_lines import SiteLine, fitted_parts
from .parts import names, number, plural

if TYPE_CHECKING:
    from ..inference import Fit


def fit_warnings(fit: Fit, table: xr.Dataset | None, lines: list[SiteLine], fixed: list[str]) -> list[str]:
    """Sentences on the fit itself, worst first."""
    settings, told = fit.settings, []
    if settings.get("interrupted"):
        told.append("The fit was interrupted: this is what had been fitted by then.")
    latent = {line.name for line in lines if line.kind in ("latent", "deterministic")}
    point = bool(table is not None and table.attrs.get("point_estimate")) or (bool(latent) and latent <= set(fixed))
    if point:
        told.append("This is a point estimate: nothing in it says how far it may be off.")
    if settings.get("converged") is False and settings.get("tolerance") is not None:
        told.append("The routine ended at its last step, before its own test of convergence was met.")
    if settings.get("failures"):
        told.append(f"Restarts broke down: {_failures(settings['failures'])}.")
    if table is not None:
        told += [_of_row(str(name), row) for name, row in table.data_vars.items() if verdict_of(row) == "bad"]
    if fixed and not point:
        told.append(f"Held at one value in every draw, so that their uncertainty is missing: {names(fixed, 12)}.")
    own = fitted_parts(fit)
    if own:
        told.append(
            f"Weights of {names([name for name, _ in own])} are point estimates; the posterior is conditional on them."
        )
    if not fit.schema.normalised:
        told.append("The prior is improper: there are no prior draws to compare the posterior with.")
    return told


def data_warnings(fit: Fit, data: xr.Dataset, test: xr.Dataset | None) -> list[str]:
    """Sentences on missing numbers, and on what was not looked at."""
    told = []
    if not is_fitted_to(fit, data):
        told.append("The data given are not those that were fitted: what is said of training data is said of these.")
    for name, values in data.variables.items():
        if values.dtype.kind == "f":
            missing = int(np.isnan(values.values).sum())
            if missing:
                told.append(f"{name}: {missing} of {plural(values.size, 'value')} missing; the model does not see it.")
    if test is None:
        told.append("No held-out data were given: how well new cells are predicted was not measured.")
    return told


def _of_row(name: str, row: xr.DataArray) -> str:
    return f"{row.attrs.get('advice') or row.attrs.get('meaning', '')} ({name} {number(row)})"


def _failures(failures: Any) -> str:
    return names([f"{restart} ({what})" for restart, what in failures.items()], 3)
