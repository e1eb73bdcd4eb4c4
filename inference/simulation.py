"""Data drawn from the prior of any model, with the truth beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import xarray as xr
from pyro import poutine
from torch import Tensor

from ..models.parts.errors import SchemaError
from ..models.schema import Schema
from .copies import copy_of, float_dtype, move_to
from .draws import Pass
from .export import build_tree, name_of
from .inputs import DataLike, as_dataset, to_inputs
from .messengers import isolated
from .options import check_counts
from .plain import schema_of, scored_inputs
from .sampler import Sampler

TRUTH = "true_"
"""What the names of variables start with that hold the truth of a simulation."""


def simulate(
    model: Callable[..., Any],
    data: DataLike,
    *,
    seed: int = 0,
    latent: Iterable[str] = (),
    dims: Mapping[str, tuple[str, ...]] | None = None,
) -> xr.Dataset:
    """Draw everything from the prior of a model: its latent sites, and data of the shape of `data`.

    Parameters
    ----------
    model
        Model of this suite or any Pyro callable, with proper priors. Numbers that are no sites (weights of a decoder)
        stay as they are.
    data
        Inputs of the model, and names of their dims. The values of observed variables are not looked at, but their
        shapes are; models of this suite do without them.
    seed
        Seed of the draw; the caller's random state is left alone.
    latent, dims
        As for `svi`.

    Returns
    -------
    xr.Dataset
        `data` with every observed variable drawn anew and, as ``true_<site>``, the value of every latent and
        deterministic site. Models of this suite add what follows from their sites and is what users read: networks,
        precisions, effects.

    Raises
    ------
    SchemaError
        If a prior is improper, the model needs data that are not there, or an observed variable is not scored as it is
        (a model that takes its logarithm first, say), so that none can be drawn.
    NumericalError
        If a draw is not finite.
    """
    check_counts(seed=seed)
    own = getattr(model, "simulate_like", None)
    given = as_dataset(data)
    if own is not None:
        drawn = own(given, seed=seed)
        return drawn.assign_coords({dim: given[dim].values for dim in drawn.sizes if dim in given.coords})
    return prior_draw(model, given, seed=seed, latent=latent, dims=dims)


def prior_draw(
    model: Callable[..., Any],
    data: xr.Dataset,
    *,
    seed: int,
    latent: Iterable[str] = (),
    dims: Mapping[str, tuple[str, ...]] | None = None,
) -> xr.Dataset:
    """One draw of all sites by running the model; see `simulate`."""
    schema = schema_of(model, data, latent=latent, dims=dims)
    if not schema.normalised:
        raise SchemaError("model: found a flat prior or an unnormalised density; wanted proper priors to draw from")
    dataset = _without_truth(as_dataset(data, schema))
    seen = all(name in dataset for name in schema.observed)
    inputs = to_inputs(schema, dataset, observed=seen)
    with isolated(seed, dtype=float_dtype(inputs)), torch.no_grad():
        model = copy_of(model)
        move_to(model, inputs)
        sites = _sites_of_observed(model, schema, inputs) if seen else {name: name for name in schema.observed}
        torch.manual_seed(seed)  # whatever it took to find the sites
        drawn = Sampler(model, None, inputs).generate(1, observed=set(sites.values()))
    values = {name: drawn.predictive[site][1][0] for name, site in sites.items()}
    truth = build_tree(schema, dataset, Pass(drawn.values, {}, drawn.log_p, None, {}))
    named = truth["posterior"].to_dataset() if "posterior" in truth.children else xr.Dataset()
    result = dataset.assign({name: _like(dataset, schema, name, value) for name, value in values.items()})
    kept = {key: data.attrs[key] for key in ("standardized",) if key in data.attrs}
    result.attrs = {"simulator": f"prior of {name_of(model)}", "seed": seed, **kept}
    named = named.isel(chain=0, draw=0, drop=True)
    others = [dim for dim in named.sizes if result.sizes.get(dim, named.sizes[dim]) != named.sizes[dim]]
    named = named.rename_vars({str(name): TRUTH + str(name) for name in named.data_vars})
    return result.drop_dims(others).merge(named, join="override", combine_attrs="override")


def _without_truth(data: xr.Dataset) -> xr.Dataset:
    return data.drop_vars([name for name in data.data_vars if str(name).startswith(TRUTH)])


def _sites_of_observed(model: Callable[..., Any], schema: Schema, inputs: Mapping[str, Tensor]) -> dict[str, str]:
    """Which site scores which observed input."""
    with poutine.block():
        trace = poutine.trace(model).get_trace(**inputs)
    if not schema.observed:
        raise SchemaError("model: found no observed input that a site is scored on as it is; wanted one to draw")
    found = scored_inputs(trace, inputs)
    missing = [name for name in schema.observed if name not in found]
    if missing:
        raise SchemaError(f"{missing[0]}: found no site that is scored on it as it is; wanted one to draw it from")
    return {name: found[name]["name"] for name in schema.observed}


def _like(dataset: xr.Dataset, schema: Schema, name: str, value: Tensor) -> Any:
    if name not in dataset:
        return schema.inputs[name].dims, value.cpu().numpy()
    old = dataset[name]
    return old.dims, value.reshape(old.shape).cpu().numpy().astype(old.dtype)
