"""Held-out densities of single genes under a fitted Environment VAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
import xarray as xr
from torch import Tensor

from ..guides.linear_environment_vae import LinearEnvironmentVAEGuide
from ..inference.entries import EntryMeans, named_entries
from ..inference.options import check_counts
from ._environment_vae_read import Draws, draw_environments, over_weighted_latents, parts

if TYPE_CHECKING:
    from ._environment_vae_fit import EnvironmentVAEFit


def entry_log_density(fit: EnvironmentVAEFit, data: xr.Dataset, num_samples: int, seed: int) -> xr.Dataset:
    """Densities of genes given the rest of their cell; see `EnvironmentVAEFit.entry_log_density`."""
    check_counts(num_samples=num_samples, seed=seed)
    linear = isinstance(fit.guide, LinearEnvironmentVAEGuide)
    found = _of_linear(fit, data, num_samples, seed) if linear else _by_weights(fit, data, num_samples, seed)
    joined = EntryMeans.joined(found)
    x = torch.as_tensor(data["expression"].values)
    scored = {"expression": (("cell",), x)}
    return named_entries(fit, data, {"expression": (("cell",), joined)}, scored, {}).assign_attrs(held_out=1)


def _by_weights(fit: EnvironmentVAEFit, data: xr.Dataset, num_samples: int, seed: int) -> list[EntryMeans]:
    def means(inputs: Mapping[str, Tensor], draws: Draws) -> EntryMeans:
        of_part = EntryMeans()
        for output, log_weight in draws:
            scores = fit.model.likelihood.entry_log_prob(output, inputs.get("library"), inputs["expression"])
            of_part.add(log_weight.reshape(1, -1, 1), scores.unsqueeze(0))
        return of_part

    return over_weighted_latents(fit, data, num_samples, seed, means)


def _of_linear(fit: EnvironmentVAEFit, data: xr.Dataset, num_samples: int, seed: int) -> list[EntryMeans]:
    linear = cast("LinearEnvironmentVAEGuide", fit.guide).linear()
    mu, _ = draw_environments(fit, None, num_samples, seed)
    means = []
    for inputs, _, _ in parts(fit, data, values_per_cell=num_samples):
        x, of_cells = inputs["expression"].double(), mu.double()[:, inputs["environment"]]
        of_part = EntryMeans()
        of_part.add(linear.log_density(x, of_cells).unsqueeze(-1), linear.entry_log_density(x, of_cells))
        means.append(of_part)
    return means
