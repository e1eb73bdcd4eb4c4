"""What a fitted Environment VAE knows, as named tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import pyro
import torch
import xarray as xr
from pyro import poutine
from torch import Tensor

from ..guides.linear_environment_vae import LinearEnvironmentVAEGuide
from ..inference.draws import log_mean_exp
from ..inference.inputs import to_inputs
from ..inference.messengers import isolated
from ..inference.options import check_counts
from ..models.environment_vae import of_cells
from ..models.parts.environment_priors import EnvironmentLaw
from ..models.parts.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Float

    from ._environment_vae_fit import EnvironmentVAEFit
    from ._environment_vae_shifts import ShiftCalibration

T = TypeVar("T")
Draws = Iterator[tuple[Tensor, Tensor]]
CHUNK_VALUES = 4_000_000
WIDER = 1.1
LINEAR_NOTE = "intervals include what is not known of targets and shifts, given decoder and noise"
NETWORK_NOTE = (
    "intervals are conditional on the decoder: it bends the axes of the latents, and sizes of shifts are not "
    "calibrated; probabilities of targets and signs are"
)


def conventions(fit: EnvironmentVAEFit) -> dict[str, Any]:
    """What must be known to read shifts."""
    linear = type(fit.model.decoder).__name__ == "LinearDecoder" and fit.model.causal_map is None
    return {
        "shift_units": "standard deviations of a latent within an environment",
        "shift_intervals": LINEAR_NOTE if linear else NETWORK_NOTE,
        "rotation_agreement": float(fit.guide.rotation_agreement),
        "point_estimates": "decoder, likelihood" + ("" if fit.model.causal_map is None else ", causal map"),
    }


def check_interval(interval: float) -> tuple[float, float]:
    """Both tail probabilities of an interval.

    Raises
    ------
    DataError
        If it is not between 0 and 1.
    """
    if not isinstance(interval, int | float) or not 0 < interval < 1:
        raise DataError(f"interval: found {interval!r}; wanted a number between 0 and 1")
    return (1 - interval) / 2, (1 + interval) / 2


def descriptors_of(fit: EnvironmentVAEFit, data: xr.Dataset | None, *, everywhere: bool = False) -> Tensor | None:
    """Descriptors of the environments where the prior uses them, or the model anywhere.

    Raises
    ------
    DataError
        If they are needed and not given.
    """
    if not (fit.model.uses_descriptors if everywhere else fit.model.environment_prior.uses_descriptors):
        return None
    if data is None or "descriptors" not in data:
        raise DataError("data: found no descriptors; wanted the data of the fit, since its shifts depend on these")
    values = data["descriptors"].transpose("condition", "feature").values
    return torch.as_tensor(values.astype(fit.dtype), device=fit.device)


def draw_environments(
    fit: EnvironmentVAEFit, descriptors: Tensor | None, num_samples: int, seed: int
) -> tuple[Float[Tensor, "draw condition latent"], EnvironmentLaw]:
    """Posterior draws of the shifts, with the law that they make."""
    model, guide = fit.model, fit.guide
    plate = pyro.plate("_draws", num_samples, dim=-2)
    with isolated(seed, fit.store), torch.no_grad(), pyro.validation_enabled(False), poutine.block():
        with plate:
            drawn = poutine.trace(guide.draw_environments).get_trace(descriptors)
        with plate, poutine.replay(trace=drawn):
            law = model.environment_prior(descriptors)
    shape = (num_samples, *law.mean.shape[-2:])
    return law.mean.reshape(-1, *shape[1:]).expand(shape), law


def environments(
    fit: EnvironmentVAEFit,
    data: xr.Dataset | None,
    interval: float,
    num_samples: int,
    seed: int,
    correction: ShiftCalibration | None = None,
) -> xr.Dataset:
    """Targets and shifts by environment and latent; see `EnvironmentVAEFit.environments`."""
    tails = check_interval(interval)
    check_counts(num_samples=num_samples)
    shifts, _ = draw_environments(fit, descriptors_of(fit, data), num_samples, seed)
    values = shifts.double().cpu().numpy()
    if correction is not None:
        values = correction.draws(values, seed)
    lower, upper = np.quantile(values, tails, axis=0)
    moved = values != 0
    positive = np.where(moved.any(0), (values > 0).sum(0) / moved.sum(0).clip(1), np.nan)
    probability = targets(fit)
    dims = ("condition", "latent")
    table = {
        "target_probability": probability,
        "positive_probability": positive,
        "shift": values.mean(0),
        "shift_sd": values.std(0),
        "shift_lower": lower,
        "shift_upper": upper,
    }
    coords = {"condition": fit.model.conditions, "latent": fit.model.latents}
    found = xr.Dataset({name: (dims, value) for name, value in table.items()}, coords)
    found["target_probability"].attrs["meaning"] = "NaN if the prior of the model names no targets"
    found["positive_probability"].attrs["meaning"] = "that a shift is positive, given that there is one"
    corrected = {} if correction is None else correction.attributes()
    return found.assign_attrs({**conventions(fit), **corrected, "interval": interval})


def targets(fit: EnvironmentVAEFit) -> Float[np.ndarray, "condition latent"]:
    """Probabilities of targets; NaN where the prior does not speak of them."""
    found = fit.guide.environment.target_probability()
    if found is None:
        return np.full((fit.model.num_environments, fit.model.num_latents), np.nan)
    return found.detach().double().cpu().numpy()


def parts(
    fit: EnvironmentVAEFit, data: xr.Dataset, *, values_per_cell: int = 1
) -> Iterator[tuple[Mapping[str, Tensor], Tensor, Tensor]]:
    """Cells part by part: inputs, and location and log variance of their latents."""
    inputs = to_inputs(fit.model.schema, data, device=fit.device)
    size = max(1, CHUNK_VALUES // max(1, values_per_cell * fit.model.num_genes))
    for rows, loc, log_variance in fit.guide.chunks(fit.model, inputs, size):
        of_part = {name: value[rows] for name, value in inputs.items() if name != "descriptors"}
        yield {**inputs, **of_part}, loc, log_variance


def latents(fit: EnvironmentVAEFit, data: xr.Dataset) -> xr.Dataset:
    """Moments of the latents of cells; see `EnvironmentVAEFit.latents`."""
    with torch.no_grad():
        moments = [(loc.cpu(), (0.5 * lv).exp().cpu()) for _, loc, lv in parts(fit, data)]
    dims = ("cell", "latent")
    coords: dict[str, Any] = {"latent": fit.model.latents}
    if "cell" in data.coords:
        coords["cell"] = data["cell"].values
    values = [torch.cat(part).numpy() for part in zip(*moments, strict=True)]
    codes = data["environment"].values
    found = xr.Dataset({"mean": (dims, values[0]), "sd": (dims, values[1]), "environment": (("cell",), codes)}, coords)
    return found.assign_coords(condition=fit.model.conditions)


def effects(
    fit: EnvironmentVAEFit, data: xr.Dataset, control: str | None, interval: float, num_samples: int, seed: int
) -> xr.Dataset:
    """Effects on genes; see `EnvironmentVAEFit.effects`."""
    tails = check_interval(interval)
    check_counts(num_samples=num_samples)
    names = fit.model.conditions
    reference = control if control is not None else None if fit.model.control is None else names[fit.model.control]
    if reference is not None and reference not in names:
        raise DataError(f"control: found {reference!r}; wanted one of {names[:8]}")
    present = np.bincount(data["environment"].values, minlength=len(names)) > 0
    if reference is not None and not present[names.index(reference)]:
        raise DataError(f"control: found no cells of {reference!r}; wanted some")
    profiles = _profiles(fit, data, num_samples, seed)
    base = profiles[:, present].mean(1) if reference is None else profiles[:, names.index(reference)]
    counts = fit.model.likelihood.counts
    change = (profiles.log2() - base.log2()[:, None] if counts else profiles - base[:, None]).cpu().numpy()
    change[:, ~present] = np.nan
    lower, upper = (np.quantile(change, tail, axis=0) for tail in tails)
    dims = ("condition", "gene")
    table = {
        "effect": change.mean(0),
        "effect_lower": lower,
        "effect_upper": upper,
        "positive_probability": np.where(present[:, None], (change > 0).mean(0), np.nan),
    }
    coords: dict[str, Any] = {"condition": names}
    if "gene" in data.coords:
        coords["gene"] = data["gene"].values
    attrs = {
        "units": "log2 ratio of mean profiles" if counts else "difference of means, units of the expression",
        "control": reference or "mean of all environments",
        "interval": interval,
        "effect_intervals": "of the mean of the cells' population (Bayesian bootstrap), given the decoder",
    }
    return xr.Dataset({name: (dims, value) for name, value in table.items()}, coords).assign_attrs(attrs)


def _profiles(
    fit: EnvironmentVAEFit, data: xr.Dataset, num_samples: int, seed: int
) -> Float[Tensor, "draw condition gene"]:
    """Mean profile of each environment, one a draw of latents, gene effects and weights of the cells."""
    model, guide = fit.model, fit.guide
    shape = (num_samples, model.num_environments)
    total = torch.zeros(*shape, model.num_genes, dtype=torch.float64, device=fit.device)
    mass = torch.zeros(shape, dtype=torch.float64, device=fit.device)
    with isolated(seed, fit.store), torch.no_grad(), pyro.validation_enabled(False):
        beta = None if guide.gene_effects is None else guide.gene_effects.law().sample((num_samples,)).to(total)
        targets = guide.expected_targets(model)
        for inputs, loc, log_variance in parts(fit, data):
            e_i = inputs["environment"]
            for s in range(num_samples):
                z = loc + (0.5 * log_variance).exp() * torch.randn_like(loc)
                effect = None if beta is None else beta[s].to(z)
                output = model.output(z, e_i, inputs.get("descriptors"), is_target=targets, gene_effects=effect)
                profile = model.likelihood.mean(output, torch.ones_like(output[:, 0]))
                weight = torch.empty(len(e_i), dtype=torch.float64, device=fit.device).exponential_()
                total[s].index_add_(0, e_i, weight.unsqueeze(-1) * profile.double())
                mass[s].index_add_(0, e_i, weight)
    return total / mass.clamp_min(1e-300).unsqueeze(-1)


def log_density(fit: EnvironmentVAEFit, data: xr.Dataset, num_samples: int, seed: int) -> xr.DataArray:
    """Log predictive density of cells by importance sampling; see `EnvironmentVAEFit.log_density`."""
    check_counts(num_samples=num_samples)
    if isinstance(fit.guide, LinearEnvironmentVAEGuide):
        return _marginal_density(fit, data, num_samples, seed)

    def mean(inputs: Mapping[str, Tensor], draws: Draws) -> Tensor:
        return log_mean_exp(torch.stack([log_weight.double() for _, log_weight in draws])).cpu()

    return _of_cells(torch.cat(over_weighted_latents(fit, data, num_samples, seed, mean)), data)


def over_weighted_latents(
    fit: EnvironmentVAEFit,
    data: xr.Dataset,
    num_samples: int,
    seed: int,
    reduce: Callable[[Mapping[str, Tensor], Draws], T],
) -> list[T]:
    """Reduce draws of the latents from a wider q(z | x), part by part of the cells.

    `reduce` is given the inputs of a part and its draws: the decoder's output, and the log weight log p(x | z) p(z) /
    q(z | x) of every cell, whose mean of exponentials is p(x).
    """
    model, guide = fit.model, fit.guide
    descriptors = descriptors_of(fit, data, everywhere=True)
    mu, law = draw_environments(fit, descriptors, num_samples, seed)
    log_scale = None if law.log_scale is None else law.log_scale.reshape(-1, *mu.shape[1:])[0]
    with isolated(seed + 1, fit.store), torch.no_grad(), pyro.validation_enabled(False):
        beta = None if guide.gene_effects is None else guide.gene_effects.law().sample((num_samples,)).to(mu)
        targets = guide.expected_targets(model)

        def draws(inputs: Mapping[str, Tensor], loc: Tensor, log_variance: Tensor) -> Draws:
            x_i, e_i, l_i = inputs["expression"], inputs["environment"], inputs.get("library")
            constant = model.likelihood.base_measure(x_i)
            sd = WIDER * (0.5 * log_variance).exp()
            scale = torch.ones_like(sd) if log_scale is None else of_cells(log_scale, e_i).exp()
            for s in range(num_samples):
                noise = torch.randn_like(loc)
                z = loc + sd * noise
                effect = None if beta is None else beta[s]
                output = model.output(z, e_i, descriptors, is_target=targets, gene_effects=effect)
                ratio = 0.5 * (noise.square() - ((z - of_cells(mu[s], e_i)) / scale).square()) + (sd / scale).log()
                yield output, model.likelihood.log_score(output, l_i, x_i) + constant + ratio.sum(-1)

        return [reduce(inputs, draws(inputs, loc, variance)) for inputs, loc, variance in parts(fit, data)]


def _of_cells(density: Float[Tensor, " cell"], data: xr.Dataset) -> xr.DataArray:
    coords = {"cell": data["cell"].values} if "cell" in data.coords else {}
    return xr.DataArray(density.cpu().numpy(), dims=("cell",), coords=coords, name="log_density")


def _marginal_density(fit: EnvironmentVAEFit, data: xr.Dataset, num_samples: int, seed: int) -> xr.DataArray:
    """Log density with the latents integrated out, averaged over draws of the shifts."""
    linear = cast("LinearEnvironmentVAEGuide", fit.guide).linear()
    mu, _ = draw_environments(fit, None, num_samples, seed)
    terms = []
    for inputs, _, _ in parts(fit, data, values_per_cell=num_samples):
        means = mu.double()[:, inputs["environment"]]
        terms.append(log_mean_exp(linear.log_density(inputs["expression"].double(), means)))
    return _of_cells(torch.cat(terms), data)
