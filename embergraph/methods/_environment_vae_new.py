"""What a fitted Environment VAE says of environments that it has not seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
import xarray as xr
from pyro import poutine
from torch import Tensor

from ..inference.messengers import isolated
from ..inference.options import check_counts
from ..models.parts.errors import DataError, SchemaError
from ._environment_vae_read import CHUNK_VALUES, check_interval

if TYPE_CHECKING:
    from jaxtyping import Float

    from ._environment_vae_fit import EnvironmentVAEFit


def new_environments(
    fit: EnvironmentVAEFit, descriptors: xr.DataArray, interval: float, num_samples: int, seed: int
) -> xr.Dataset:
    """Prediction of environments from their descriptors; see `EnvironmentVAEFit.new_environments`."""
    tails = check_interval(interval)
    check_counts(num_samples=num_samples)
    table = _checked(fit, descriptors)
    u = torch.as_tensor(table.values.astype(fit.dtype), device=fit.device)
    size = max(1, CHUNK_VALUES // (num_samples * fit.model.num_genes))
    with isolated(seed, fit.store), torch.no_grad(), pyro.validation_enabled(False), poutine.block():
        found = [_predicted(fit, part, tails, num_samples) for part in u.split(size)]
    coords: dict[str, Any] = {"latent": fit.model.latents}
    if "condition" in table.coords:
        coords["condition"] = table["condition"].values
    if "gene" in fit.template.coords:
        coords["gene"] = fit.template.coords["gene"]
    dims = {"shift": ("condition", "latent")}
    variables = {
        name: (dims.get(name, ("condition", "gene")), np.concatenate([part[name] for part in found]))
        for name in found[0]
    }
    counts = fit.model.likelihood.counts
    attrs = {"interval": interval, "of": "share of the counts of a cell" if counts else "expression of a cell"}
    if fit.model.gene_effects is not None:
        attrs["gene_effects"] = "taken as zero: nothing is known of those of a new environment"
    return xr.Dataset(variables, coords).assign_attrs(attrs)


def _checked(fit: EnvironmentVAEFit, descriptors: xr.DataArray) -> xr.DataArray:
    if not fit.model.environment_prior.uses_descriptors:
        found = type(fit.model.environment_prior).__name__
        raise SchemaError(f"environment_prior: found {found}; wanted one that uses descriptors, such as 'descriptors'")
    if not isinstance(descriptors, xr.DataArray) or set(descriptors.dims) != {"condition", "feature"}:
        dims = getattr(descriptors, "dims", type(descriptors).__name__)
        raise DataError(f"descriptors: found dims {dims}; wanted a DataArray with ('condition', 'feature')")
    names = fit.template.coords.get("feature")
    if names is not None and "feature" in descriptors.coords and descriptors["feature"].values.tolist() != names:
        others = descriptors["feature"].values.tolist()[:5]
        raise SchemaError(f"descriptors: found {others}... along 'feature'; wanted {names[:5]}..., as in the fit")
    if not bool(np.isfinite(descriptors).all()):
        raise DataError("descriptors: found NaN or infinite values; wanted finite numbers")
    return descriptors.transpose("condition", "feature")


def _predicted(
    fit: EnvironmentVAEFit, u: Float[Tensor, "condition feature"], tails: tuple[float, float], num_samples: int
) -> dict[str, np.ndarray]:
    """Moments and quantiles over draws of some environments; tau^2 is what the fit has learned."""
    model, variance = fit.model, getattr(fit.guide.environment, "shift_variance", None)
    learned = {} if variance is None else {"shift_variance": variance}
    e, one, noise = torch.arange(len(u), device=u.device), u.new_ones(len(u)), u.new_zeros(())
    shifts, means, cells = [], [], []
    for draw in range(num_samples):
        with poutine.condition(data=learned):
            law = model.environment_prior.new(u)
        sd = 1.0 if law.log_scale is None else law.log_scale.exp()
        noise = -noise if draw % 2 else torch.randn_like(law.mean)  # in pairs: exact means of linear decoders
        is_target = law.is_target if model.intervention == "hard" else None
        output = model.output(law.mean + sd * noise, e, u, is_target=is_target)
        shifts.append(law.mean)
        means.append(model.likelihood.mean(output, one))
        cells.append(means[-1] if model.likelihood.counts else model.likelihood(output, one).sample())
    lower, upper = np.quantile(torch.stack(cells).double().cpu().numpy(), tails, axis=0)
    mean, shift = (torch.stack(values).double().mean(0).cpu().numpy() for values in (means, shifts))
    return {"mean": mean, "lower": lower, "upper": upper, "shift": shift}
