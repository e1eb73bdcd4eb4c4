"""What users read off a fitted NOTMAD: networks of cells, and which edges they have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr

from ..inference.readings import Readings, of_draws, of_point, of_probability
from ..inference.simulation import TRUTH
from ..models.notmad import NOTMAD
from ..models.parts.mixing import MIXING

if TYPE_CHECKING:
    from .notmad import NOTMADFit

NUM_CELLS = 25
EDGE = 0.05
"""Effects above it in size count as edges."""


def network_readings(fit: NOTMADFit, data: xr.Dataset, num_samples: int, *, level: float, seed: int) -> Readings:
    """Networks of some cells; see `Fit.readings`."""
    few = data.isel(cell=np.unique(np.linspace(0, data.sizes["cell"] - 1, NUM_CELLS).round().astype(int)))
    found = fit.networks(
        few, num_samples=num_samples, interval=None, edge_threshold=EDGE, draws=True, project_mean=False, seed=seed
    )
    truth = true_networks(fit.model, few)
    meaning = f"effects in {few.sizes['cell']} cells, units of the target per unit of the regulator"
    if found.attrs["point_estimate"]:
        return {"network": of_point(found["network"], truth, meaning)}
    exists = None if truth is None else xr.where(truth.isnull(), np.nan, np.abs(truth) > EDGE)
    network = of_draws(found["draws"], level, truth, meaning)
    network["estimate"] = found["network"]
    edge = of_probability(found["edge_probability"], exists, f"that an effect in these cells is above {EDGE} in size")
    return {"network": network, "edge": edge}


def true_networks(model: NOTMAD, data: xr.Dataset) -> xr.DataArray | None:
    """Networks of a simulation, NaN on the diagonal: as the data carry them, or as they follow from the true sites."""
    dims = ("cell", "regulator", "target")
    if "true_networks" in data:
        networks = data["true_networks"].transpose(*dims).values.astype(float)
    elif "true_intercepts" in data:
        networks = _from_sites(model, data)
    else:
        return None
    p = networks.shape[-1]
    return xr.DataArray(np.where(np.eye(p, dtype=bool), np.nan, networks), dims=dims)


def _from_sites(model: NOTMAD, data: xr.Dataset) -> np.ndarray:
    like = model.encoder.location
    known = {
        str(name).removeprefix(TRUTH): torch.as_tensor(values.values, device=like.device).unsqueeze(0)
        for name, values in data.data_vars.items()
        if str(name).startswith(TRUTH)
    }
    values = {n: v.to(like.dtype) if v.is_floating_point() else v for n, v in known.items()}
    covariates = torch.as_tensor(data["covariates"].values, dtype=like.dtype, device=like.device)
    with torch.no_grad():
        if "logits" in values:
            Z = MIXING[model.mixing](values["logits"])
        else:
            Z = model.mixture_of(covariates, values)
        W, b = model.archetypes_of(values).unsqueeze(1), values["intercepts"].unsqueeze(1)
        return model.equations(Z, W, b, b.new_ones(1), {}).networks()[0].cpu().double().numpy()
