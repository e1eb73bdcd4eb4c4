"""What users read off a fitted Environment VAE: targets and shifts of environments, effects on genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..inference.readings import Readings, of_intervals, of_probability
from ..latent_scores import align

if TYPE_CHECKING:
    from ._environment_vae_fit import EnvironmentVAEFit

DIMS = ("condition", "latent")


def environment_readings(
    fit: EnvironmentVAEFit, data: xr.Dataset, num_samples: int, *, level: float, seed: int
) -> Readings:
    """Targets, shifts that are likelier than not, and effects; see `Fit.readings`."""
    found = fit.environments(data, interval=level, num_samples=max(num_samples, 1000), seed=seed)
    shift = true_shifts(fit, data)
    named = bool(found["target_probability"].notnull().all())
    readings: Readings = {}
    called = found["target_probability"] > 0.5 if named else xr.full_like(found["shift"], True, dtype=bool)
    if named:
        is_target = None if shift is None else (shift != 0).astype(float)
        meaning = "that an environment shifts a latent"
        readings["target"] = of_probability(found["target_probability"], is_target, meaning)
    # Only shifts that are likelier than not count: the others are stated to be zero, and mostly are.
    readings["shift"] = of_intervals(
        found["shift"], found["shift_lower"], found["shift_upper"], level,
        None if shift is None else shift.where(called.values),
        f"shifts of latents, in standard deviations within an environment; {found.attrs['shift_intervals']}",
    )  # fmt: skip
    effects = fit.effects(data, interval=level, num_samples=num_samples, seed=seed)
    truth = data["true_effect"].transpose("condition", "gene") if "true_effect" in data else None
    ends = effects["effect"], effects["effect_lower"], effects["effect_upper"]
    readings["effect"] = of_intervals(*ends, level, truth, f"effects on genes, {effects.attrs['units']}")
    return readings


def true_shifts(fit: EnvironmentVAEFit, data: xr.Dataset) -> xr.DataArray | None:
    """Shifts of a simulation in the order and with the signs of the fitted latents; 0 where one stands for none."""
    if "true_shift" not in data or "true_z" not in data:
        return None
    Z, shift = data["true_z"].values, data["true_shift"].values
    same = align(fit.latents(data)["mean"].values, Z)
    truth = np.zeros((len(shift), fit.model.num_latents))
    known = same.position >= 0
    truth[:, same.position[known]] = (shift * same.sign)[:, known]
    return xr.DataArray(truth, dims=DIMS)
