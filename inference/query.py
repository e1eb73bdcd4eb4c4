"""Questions to a fit: its posterior, and predictions and densities of any cells. `Fit` has them as methods."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
import xarray as xr
from pyro import poutine
from torch import Tensor

from ..models.parts.errors import SchemaError
from ..models.schema import Schema
from .copies import float_dtype
from .draws import Pass, join, log_mean_exp
from .export import build_tree, guide_pass, prior_pass
from .inputs import DataLike, as_dataset, digest_of, to_inputs
from .messengers import isolated, latent_sites, observed_sites, plates_of
from .options import check_counts
from .sampler import Sampler

if TYPE_CHECKING:
    from .fit import Fit

MAX_PRIOR_DRAWS = 500


def checked(fit: Fit, data: DataLike, *, observed: bool = True) -> xr.Dataset:
    """Data as a Dataset in the precision of the fit, if they are of the same genes and on the same scale.

    Parameters
    ----------
    fit
        The fit.
    data
        Data on any cells.
    observed
        Whether the observed variables are going to be used.

    Raises
    ------
    SchemaError
        If dims, labels or standardisation differ from the training data.
    """
    dataset = as_dataset(data, fit.schema)
    precision = {}
    for name, (dims, shape, dtype) in fit.template.variables.items():
        if name not in dataset or (fit.schema.inputs[name].observed and not observed):
            continue
        for dim, size in zip(dims, shape, strict=True):
            if dim != fit.schema.plate and dim in dataset[name].dims:
                _check_labels(fit, name, dim, size, dataset)
        if dataset[name].dtype.kind == "f":
            precision[name] = dataset[name].variable.astype(dtype)
    mark, found = fit.template.attrs.get("standardized"), dataset.attrs.get("standardized")
    if mark != found:
        raise SchemaError(f"data: found standardized={found!r}; wanted {mark!r} as in the fit")
    for name in ("expression_center", "expression_scale"):
        if name in fit.template.extras and name in dataset:
            wanted = np.asarray(fit.template.extras[name][1])
            if dataset[name].shape != wanted.shape or not np.allclose(dataset[name].values, wanted):
                raise SchemaError(f"{name}: found another standardisation; wanted that of the training data")
    names = {dim: labels for dim, labels in fit.template.coords.items() if dim not in dataset.coords}
    return dataset.assign(precision).assign_coords(names)


def is_fitted_to(fit: Fit, data: xr.Dataset) -> bool:
    """Whether `data`, as `Fit.prepared` returns them, are those that were fitted, as far as the fit remembers."""
    return not fit.template.digest or fit.template.digest == digest_of(fit.schema, data)


def _check_labels(fit: Fit, name: str, dim: str, size: int, dataset: xr.Dataset) -> None:
    if dataset.sizes[dim] != size:
        raise SchemaError(f"{name}: found {dataset.sizes[dim]} along {dim!r}; wanted {size} as in the fit")
    labels = fit.template.coords.get(dim)
    if labels is None or dim not in dataset.coords:
        return
    found = dataset[dim].values.tolist()
    if found != labels:
        what = "another order" if sorted(map(str, found)) == sorted(map(str, labels)) else "others"
        raise SchemaError(f"{name}: found {what} along {dim!r}, {found[:5]}...; wanted {labels[:5]}... as in the fit")


def posterior(
    fit: Fit, data: DataLike, num_samples: int, *, predictive: bool = True, prior: bool = True, seed: int = 0
) -> xr.DataTree:
    """Export draws of the posterior; see `Fit.posterior`."""
    check_counts(num_samples=num_samples)
    dataset = checked(fit, data)
    inputs = to_inputs(fit.schema, dataset, device=fit.device)
    num_chains, extra = 1, {}
    with inside(fit, inputs, seed):
        if fit.guide is not None:
            result = guide_pass(fit.model, fit.guide, inputs, num_samples, predictive=predictive)
        else:
            kept = fit.stored.thinned(num_samples)
            num_chains, extra = kept.shape[0], kept.statistics
            result = _stored_pass(fit, kept.flat(), inputs, predictive=predictive)
        wanted = prior and fit.schema.normalised
        prior_result = prior_pass(fit.model, inputs, min(num_samples, MAX_PRIOR_DRAWS)) if wanted else None
    statistics: dict[str, Any] = {name: (("chain", "draw"), value) for name, value in extra.items()}
    if fit.history.size:
        statistics["loss"] = (("restart", "step"), fit.history.values)
    attributes = {**fit.summary(), "held_fixed": held_fixed(result), "draw_seed": seed}
    return build_tree(
        fit.schema, dataset, result, prior_result, num_chains=num_chains, statistics=statistics, attributes=attributes
    )


def predict(fit: Fit, data: DataLike, num_samples: int, *, seed: int = 0) -> xr.Dataset:
    """Draw the observed variables for any cells from their inputs alone; see `Fit.predict`."""
    dataset = checked(fit, data, observed=False)
    inputs = inputs_for_prediction(fit, dataset)
    roles = roles_for_new_cells(fit)
    passes = []
    values = global_draws(fit, num_samples, seed=seed)
    with inside(fit, inputs, seed):
        sampler = Sampler(fit.model, None, inputs, example_of(fit, values))
        for part, count in _chunks(sampler, values, num_samples):
            passes.append(sampler.generate(count, part, roles.observed))
    drawn = join(passes)
    only = Pass({}, {}, drawn.log_p, None, drawn.predictive)
    return build_tree(fit.schema, dataset, only)["posterior_predictive"].to_dataset()


def log_density(fit: Fit, data: DataLike, num_samples: int, *, seed: int = 0) -> xr.DataArray:
    """Held-out log predictive density of each cell; see `Fit.log_density`."""
    dataset = checked(fit, data)
    inputs = to_inputs(fit.schema, dataset, device=fit.device)
    plate, terms = fit.schema.plate, []
    roles_for_new_cells(fit)
    values = global_draws(fit, num_samples, seed=seed)
    with inside(fit, inputs, seed):
        sampler = Sampler(fit.model, None, inputs)
        for part, count in _chunks(sampler, values, num_samples):
            total = torch.zeros((), dtype=torch.double)
            for site, (plates, scores) in sampler.log_likelihood(part, count).items():
                if plate not in plates:
                    raise SchemaError(
                        f"{site}: found plates {plates}; wanted one named {plate!r}, over whose rows densities run"
                    )
                axes = [i + 1 for i, name in enumerate(plates) if name != plate]
                total = total + (scores.double().sum(axes) if axes else scores.double()).cpu()
            terms.append(total)
    density = log_mean_exp(torch.cat(terms)).numpy()
    coords = {plate: dataset[plate].values} if plate in dataset.coords else {}
    return xr.DataArray(density, dims=(plate,), coords=coords, name="log_density")


def global_draws(fit: Fit, num_samples: int | None, *, seed: int = 0) -> dict[str, Tensor]:
    """Posterior draws of the sites that do not belong to cells, shaped (draw, plates or 1s, event)."""
    if num_samples is not None:
        check_counts(num_samples=num_samples)
    local = roles_of(fit).local
    if fit.draws is not None:
        flat = fit.draws.thinned(num_samples).flat()
        return {name: value.to(fit.device) for name, value in flat.items() if name not in local}
    inputs = fit.template.zeros(fit.schema, fit.device)
    parts = []
    with inside(fit, inputs, seed), pyro.validation_enabled(False):  # zeros need not be possible data
        sampler = Sampler(fit.model, fit.guide, inputs)
        for where in sampler.chunks(num_samples or 1000):
            drawn, _ = sampler.guide_values(where.stop - where.start)
            parts.append({name: value for name, value in drawn.items() if name not in local})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def held_fixed(result: Pass) -> list[str]:
    """Sites that are the same in every draw: point estimates, not posteriors."""
    same = {n: len(values) > 1 and bool((values == values[:1]).all()) for n, (_, values) in result.values.items()}
    return [name for name, fixed in same.items() if fixed]


@dataclass(frozen=True)
class Roles:
    """What the sites of a model are.

    Attributes
    ----------
    local
        Latent sites that belong to cells.
    observed
        Sites that are scored on data.
    summed
        Latent sites of all cells together that are summed out.
    discrete
        Whether observations are counts or the like, whose densities are probabilities.
    """

    local: set[str]
    observed: set[str]
    summed: set[str]
    discrete: bool


def roles_of(fit: Fit) -> Roles:
    """Find out what the sites of the model are."""
    inputs = fit.template.zeros(fit.schema, fit.device)
    with inside(fit, inputs, 0), torch.no_grad(), pyro.validation_enabled(False), poutine.block():
        guided = fit.guide is not None and not fit.schema.normalised  # a flat prior has no draws
        known = poutine.trace(fit.guide).get_trace(**inputs) if guided else None
        trace = poutine.trace(poutine.replay(fit.model, trace=known) if guided else fit.model).get_trace(**inputs)
    plate, latent, observed = fit.schema.plate, latent_sites(trace), observed_sites(trace)
    for name, site in observed.items():
        plates = sorted(frame.name for frame in plates_of(site).values())
        if plates and plate not in plates:
            raise SchemaError(f"{name}: found plates {plates} in the model; wanted one named {plate!r} as in the data")
    local = {n for n, s in latent.items() if any(frame.name == plate for frame in plates_of(s).values())}
    summed = {n for n, s in latent.items() if s["infer"].get("enumerate") == "parallel"} - local
    discrete = any(site["fn"].support.is_discrete for site in observed.values())
    return Roles(local, set(observed), summed, discrete)


def roles_for_new_cells(fit: Fit) -> Roles:
    """`roles_of` a fit that is asked about other cells than its own.

    Raises
    ------
    SchemaError
        If a site of all cells is summed out.
    """
    roles = roles_of(fit)
    if roles.summed:
        raise SchemaError(
            f"{min(roles.summed)}: found a site of all cells together that is summed out; wanted it sampled or held, "
            "since without the training data nothing is known of its posterior"
        )
    return roles


def inside(fit: Fit, inputs: Mapping[str, Tensor], seed: int) -> AbstractContextManager[Any]:
    """The parameters of the fit, and a seed and a precision of its own."""
    return isolated(seed, fit.store, float_dtype(inputs))


def _stored_pass(fit: Fit, flat: dict[str, Tensor], inputs: Mapping[str, Tensor], *, predictive: bool) -> Pass:
    sampler = Sampler(fit.model, None, inputs, example_of(fit, flat))
    passes = []
    for part, count in _chunks(sampler, flat, 0):
        moved = {name: value.to(fit.device) for name, value in part.items()}
        passes.append(sampler.model_pass(moved, count, predictive=predictive))
    return join(passes)


def example_of(fit: Fit, values: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """One draw of the sites, where a flat prior has none."""
    return None if fit.schema.normalised else {name: value[0].to(fit.device) for name, value in values.items()}


def _chunks(sampler: Sampler, values: Mapping[str, Tensor], num_samples: int) -> list[tuple[dict[str, Tensor], int]]:
    """Draws in parts that fit into memory; `num_samples` counts when no site is given."""
    total = len(next(iter(values.values()))) if values else num_samples
    slices = sampler.chunks(total)
    return [({name: value[where] for name, value in values.items()}, where.stop - where.start) for where in slices]


def inputs_for_prediction(fit: Fit, dataset: xr.Dataset) -> dict[str, Tensor]:
    """Inputs without the observed ones, but those that a plain function insists on."""
    inputs = to_inputs(fit.schema, dataset, device=fit.device, observed=False)
    if isinstance(getattr(fit.model, "schema", None), Schema):
        return inputs
    signature = inspect.signature(fit.model.forward if isinstance(fit.model, torch.nn.Module) else fit.model)
    needed = {n: spec for n, spec in fit.schema.inputs.items() if spec.observed}
    given = {n: spec for n, spec in needed.items() if n in dataset or signature.parameters[n].default is inspect._empty}
    return {**inputs, **to_inputs(Schema(given), dataset, device=fit.device)}
