"""What `fit_notmad` refuses before work starts."""

from __future__ import annotations

from collections.abc import Mapping

import xarray as xr
from torch import Tensor

from ..models.notmad import NOTMAD
from ..models.parts.errors import DataError


def check_options(model: NOTMAD, posterior: str, *, full_encoder: bool) -> None:
    """Refuse options that the model cannot be fitted with.

    Raises
    ------
    DataError
        Naming the option.
    """
    own = "bootstrap" if model.form == "projected" else "mean_field"
    if posterior not in ("auto", "hmc", own):
        raise DataError(f"posterior: found {posterior!r}; wanted 'auto', 'hmc' or {own!r} for the {model.form} form")
    if model.has_logits and (posterior == "hmc" or model.form == "projected"):
        what = "posterior 'hmc'" if posterior == "hmc" else "order 'projected'"
        raise DataError(f"mixture_scale: found one with {what}; wanted posterior 'mean_field' given orders")
    if full_encoder and not model.encoder.hidden:
        raise DataError(
            f"full_encoder: found it with encoder {model.encoder.name!r}; wanted one with hidden layers, 'nam'"
        )


def check_data(model: NOTMAD, data: xr.Dataset, inputs: Mapping[str, Tensor]) -> None:
    """Refuse data of other sizes, genes or covariates than the model was made for, and impossible expression.

    Raises
    ------
    DataError
        Naming the variable.
    """
    for name, wanted in (("expression", model.num_genes), ("covariates", model.encoder.num_covariates)):
        if inputs[name].shape[-1] != wanted:
            raise DataError(
                f"{name}: found {inputs[name].shape[-1]} columns; wanted {wanted}, as the model was made for"
            )
    check_expression(model, inputs["expression"])
    for dim, names in model.made_for.items():
        if dim in getattr(data, "coords", {}) and data[dim].values.tolist() != names:
            raise DataError(f"{dim}: found {data[dim].values.tolist()}; wanted {names}, as the model was made for")


def check_expression(model: NOTMAD, expression: Tensor) -> None:
    """Refuse expression that the likelihood cannot be of, or whose genes are far from centred.

    The priors speak of centred genes on a common or own scale; of on/off genes they speak as they are.

    Raises
    ------
    DataError
        Naming the largest mean, or a value other than 0 and 1.
    """
    if not model.likelihood.has_scale:
        model.likelihood.log_prob(expression, expression, expression.new_ones(1), {})  # refuses what is not on or off
        return
    mean, sd = expression.mean(0).abs(), expression.std(0)
    worst = float((mean / sd).max())
    if worst > 0.5:
        raise DataError(
            f"expression: found a gene whose mean is {worst:.2g} of its standard deviations from zero; "
            "wanted centred genes (data, transform = standardize(data, scale='common'))"
        )
