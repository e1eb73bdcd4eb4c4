"""What simulations of an Environment VAE need beside the model: the inputs of given data, and true effects on genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import xarray as xr
from pyro import poutine

from .parts.errors import SchemaError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from .environment_vae import EnvironmentVAE

MANY_CELLS = 2000
"""Cells of an environment that its mean profile is taken over."""


def simulated_like(model: EnvironmentVAE, data: xr.Dataset, seed: int) -> xr.Dataset:
    """Simulate for the cells of `data`; see `EnvironmentVAE.simulate_like`."""
    wanted = [name for name, spec in model.schema.inputs.items() if not spec.observed]
    if "library" in wanted and "library" not in data and "expression" in data:
        data = data.assign(library=data["expression"].sum("gene"))
    for name in wanted:
        if name not in data:
            raise SchemaError(f"{name}: the model takes it, found variables {sorted(map(str, data.data_vars))}")
    device = next(model.parameters(), torch.zeros(())).device
    floats: dict[str, Any] = {
        name: torch.as_tensor(data[name].values, dtype=torch.get_default_dtype(), device=device)
        for name in wanted
        if name != "environment"
    }
    codes = torch.as_tensor(data["environment"].values, dtype=torch.long, device=device)
    drawn = model.simulate(codes, seed=seed, **floats)
    return drawn.assign_attrs({key: data.attrs[key] for key in ("standardized",) if key in data.attrs})


def population_effects(
    model: EnvironmentVAE, trace: Any, descriptors: Float[Tensor, "condition feature"] | None
) -> Float[Tensor, "condition gene"]:
    """Effects of environments on genes in many cells, given the shifts (and gene effects) of a trace.

    Against the control, or the mean of the environments; log2 ratios for counts, else differences, as
    `EnvironmentVAEFit.effects` states them.
    """
    of_cells = {"z", "expression"}
    shared = {
        name: site["value"]
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and name not in of_cells and name != "cell"
    }
    E = model.num_environments
    device = trace.nodes["z"]["value"].device
    codes = torch.arange(E, device=device).repeat_interleave(MANY_CELLS)
    library = torch.ones(len(codes), device=device) if model.likelihood.counts else None
    many = poutine.trace(poutine.condition(model, data=shared)).get_trace(codes, None, descriptors, library)
    profile = many.nodes["expression"]["fn"].mean
    means = profile.double().reshape(E, MANY_CELLS, -1).mean(1)
    base = means.mean(0) if model.control is None else means[model.control]
    return means.log2() - base.log2() if model.likelihood.counts else means - base
