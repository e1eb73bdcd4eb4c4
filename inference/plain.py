"""The schema of any Pyro callable, read off its arguments and one run of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyro
import torch
import xarray as xr
from pyro import poutine
from torch import Tensor

from ..models.parts.errors import SchemaError
from ..models.schema import Input, Schema
from .copies import copy_of, float_dtype, move_to
from .inputs import auto_dim, kind_of, to_inputs
from .messengers import RESERVED, is_plate, isolated, observed_sites, plates_of


def schema_of(
    model: Callable[..., Any],
    data: xr.Dataset,
    *,
    latent: Iterable[str] = (),
    dims: Mapping[str, tuple[str, ...]] | None = None,
) -> Schema:
    """Schema of a model: its own, or for a plain callable that of its parameters.

    For a plain callable the model is run once. An input is observed if a site is scored on it as it is; its axes along
    plates have the plates' names.

    Parameters
    ----------
    model
        Pyro callable. Ours have a ``schema``; of any other, each parameter must be a variable of `data`.
    data
        The data.
    latent
        Parameters of a plain callable that are left to their defaults.
    dims
        Names of the event dims of sites, ``{"weights": ("covariate",)}``.

    Raises
    ------
    SchemaError
        If a parameter is not in the data, a name cannot be used, or the data's dims differ from the model's plates.
    """
    declared = getattr(model, "schema", None)
    if isinstance(declared, Schema):
        return declared
    names = _arguments(model, latent)
    missing = [name for name in names if name not in data]
    if missing:
        raise SchemaError(
            f"{missing[0]}: the model takes it, found data variables {sorted(map(str, data.variables))}; "
            f"wanted {missing[0]!r} among them, or listed in latent="
        )
    inputs = {name: Input(tuple(map(str, data[name].dims)), kind_of(data[name])) for name in names}
    tensors = to_inputs(Schema(inputs), data)
    trace = _trace_of_copy(model, tensors)
    check_dims(n for n, site in trace.nodes.items() if site["type"] == "sample" and is_plate(site))
    check_dims(dim for names in (dims or {}).values() for dim in names)
    plate = None
    for name, site in scored_inputs(trace, tensors).items():
        own = _dims_with_plates(name, inputs[name].dims, site)
        inputs[name] = Input(own, inputs[name].kind, observed=True)
        plate = plate or next(iter(own), None)
    frames = [frame for site in observed_sites(trace).values() for _, frame in sorted(plates_of(site).items())]
    plate = plate or (frames[0].name if frames else "cell")
    for name, spec in inputs.items():
        if spec.dims and spec.dims[0] == auto_dim(name, 0) and len(tensors[name]) == _plate_sizes(trace).get(plate):
            inputs[name] = Input((plate, *spec.dims[1:]), spec.kind, spec.observed)
        check_dims(inputs[name].dims)
    return Schema(inputs=inputs, site_dims=dict(dims or {}), plate=plate)


def check_dims(names: Iterable[str]) -> None:
    """Refuse names of dims that ArviZ takes for its own.

    Raises
    ------
    SchemaError
        Naming the dim.
    """
    for name in names:
        if name in ("sample", "chain", "draw"):
            raise SchemaError(f"{name}: found it as the name of a dim, which ArviZ takes for itself; rename it")


def _arguments(model: Callable[..., Any], latent: Iterable[str]) -> list[str]:
    signature = inspect.signature(model.forward if isinstance(model, torch.nn.Module) else model)
    names = [n for n, p in signature.parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    reserved = sorted(set(names) & set(RESERVED))
    if reserved:
        raise SchemaError(f"model: found an argument named {reserved[0]!r}, which Pyro's own wrappers take; rename it")
    unknown = sorted(set(latent) - set(names))
    if unknown:
        raise SchemaError(f"latent: found {unknown[0]!r}; wanted arguments of the model, among {names}")
    return [name for name in names if name not in set(latent)]


def _trace_of_copy(model: Callable[..., Any], tensors: Mapping[str, Tensor]) -> Any:
    model = copy_of(model)
    move_to(model, tensors)
    quiet = pyro.validation_enabled(False)  # a draw from the prior may be one that the model cannot score
    with isolated(0, dtype=float_dtype(tensors)), poutine.block(), torch.no_grad(), quiet:
        return poutine.trace(model).get_trace(**tensors)


def scored_inputs(trace: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The observed site of a trace that scores an input as it is, by input.

    A site is scored on the very tensor, or else on an equal one (a model may have made a copy); equal inputs of which
    one is the very tensor are not mistaken for each other.
    """
    sites = observed_sites(trace)
    found = {n: s for n, tensor in tensors.items() for s in sites.values() if s["value"] is tensor}
    taken = {site["name"] for site in found.values()}
    for name, tensor in tensors.items():
        for site in sites.values():
            value = site["value"]
            same = value.shape == tensor.shape and value.dtype == tensor.dtype
            if name not in found and site["name"] not in taken and same and torch.equal(value, tensor):
                found[name] = site
    return {name: found[name] for name in tensors if name in found}


def _plate_sizes(trace: Any) -> dict[str, int]:
    return {n: s["fn"].size for n, s in trace.nodes.items() if s["type"] == "sample" and is_plate(s)}


def _dims_with_plates(name: str, dims: tuple[str, ...], site: Any) -> tuple[str, ...]:
    """Dims of an observed input, where axes along plates that came without a name take the plates'."""
    own, num_batch = list(dims), len(dims) - site["fn"].event_dim
    for dim, frame in plates_of(site).items():
        axis = num_batch + dim
        if axis < 0 or site["value"].shape[axis] != frame.size:
            continue
        if own[axis] != frame.name and own[axis] != auto_dim(name, axis):
            raise SchemaError(
                f"{name}: found dim {own[axis]!r} along the model's plate {frame.name!r}; wanted one name for both"
            )
        own[axis] = frame.name
    return tuple(own)
