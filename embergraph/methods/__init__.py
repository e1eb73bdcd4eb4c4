"""Ready-made plans: one a method, chosen by the class of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import xarray as xr

from ..inference import Fit
from ..models.environment_vae import EnvironmentVAE
from ..models.med_magma import MEDMAGMA
from ..models.notmad import NOTMAD
from ..models.parts.errors import SchemaError
from ._environment_vae_data import indicator_descriptors
from ._environment_vae_fit import EnvironmentVAEFit
from .environment_vae import fit_environment_vae
from .med_magma import MEDMAGMAFit, fit_med_magma
from .notmad import NOTMADFit, fit_notmad

PLANS: dict[type, Callable[..., Fit]] = {
    NOTMAD: fit_notmad,
    MEDMAGMA: fit_med_magma,
    EnvironmentVAE: fit_environment_vae,
}
"""Where methods are registered: one line each."""

__all__ = [
    "PLANS",
    "EnvironmentVAEFit",
    "MEDMAGMAFit",
    "NOTMADFit",
    "as_plan_wants",
    "fit",
    "fit_environment_vae",
    "fit_med_magma",
    "fit_notmad",
    "indicator_descriptors",
]


def as_plan_wants(model: Any, data: xr.Dataset) -> xr.Dataset:
    """Simulated data as users would give them to the plan: of NOTMAD with centred genes, if they are real numbers."""
    if isinstance(model, NOTMAD) and model.likelihood.has_scale:
        return data.assign(expression=data["expression"] - data["expression"].mean("cell"))
    return data


def fit(model: Any, data: xr.Dataset, **options: Any) -> Any:
    """Fit a model of this suite by its method's plan.

    Parameters
    ----------
    model
        A model of the suite, such as ``NOTMAD.for_data(data)``.
    data
        Its data.
    **options
        Options of the plan, see `embergraph.methods.fit_notmad`, `embergraph.methods.fit_med_magma` and
        `embergraph.methods.fit_environment_vae`.

    Raises
    ------
    SchemaError
        If the model has no plan; use `svi` or `mcmc` for models of your own.
    """
    for kind, run in PLANS.items():
        if isinstance(model, kind):
            return run(model, data, **options)
    known = sorted(kind.__name__ for kind in PLANS)
    raise SchemaError(f"model: found {type(model).__name__}; wanted one of {known} (use svi or mcmc for your own)")
