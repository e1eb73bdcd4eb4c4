"""Pictures of a fitted Environment VAE: targets, shifts, latents of cells, effects on genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from .._figures import new_figure
from ..environment_plots import plot_gene_effects, plot_latents, plot_shifts, plot_targets
from ..inference.figures import Picture

if TYPE_CHECKING:
    from ._environment_vae_fit import EnvironmentVAEFit

MAX_CONDITIONS, MAX_CELLS = 60, 4000


def environment_figures(fit: EnvironmentVAEFit, data: xr.Dataset, num_samples: int, seed: int) -> list[Picture]:
    """See `Fit.figures`."""
    found = fit.environments(data, num_samples=max(num_samples, 500), seed=seed)
    few = found.isel(condition=_strongest(found["shift"], MAX_CONDITIONS))
    pictures = [_targets(few)] if bool(few["target_probability"].notnull().all()) else []
    if float(np.abs(few["shift"]).max()) > 0:
        pictures.append(_shifts(few))
    cells = data.isel(cell=np.unique(np.linspace(0, data.sizes["cell"] - 1, MAX_CELLS).round().astype(int)))
    if fit.model.num_latents > 1:
        pictures.append(_latents(fit.latents(cells)))
    effects = fit.effects(cells, num_samples=num_samples, seed=seed)
    seen = effects["effect"].dropna("condition", how="any")
    if seen.size and float(np.abs(seen).max()) > 0:
        pictures.append(_effects(effects, str(seen["condition"].values[_strongest(seen, 1)[0]])))
    return pictures


def _strongest(values: xr.DataArray, count: int) -> list[int]:
    """Positions of the conditions with the largest entries, in their own order."""
    size = np.abs(values.transpose("condition", ...).values).max(axis=1)
    return sorted(np.argsort(-size, kind="stable")[:count].tolist())


def _targets(found: xr.Dataset) -> Picture:
    rows, columns = found.sizes["condition"], found.sizes["latent"]
    figure = new_figure(min(3.4 + 0.45 * columns, 12.0), min(1.6 + 0.3 * rows, 11.0))
    plot_targets(found, ax=figure.add_subplot()).set_title("")
    count = int((found["target_probability"] > 0.5).sum())
    alt = f"Matrix of {rows} environments by {columns} latents, red or blue where a shift is probable: {count} fields."
    return Picture("Targets: probability that an environment shifts a latent, with the shift", alt, figure)


def _shifts(found: xr.Dataset) -> Picture:
    rows, columns = found.sizes["condition"], found.sizes["latent"]
    figure = new_figure(6.6, min(1.6 + rows * (0.16 + 0.09 * min(columns, 10)), 11.0))
    plot_shifts(found, ax=figure.add_subplot()).set_title("")
    alt = f"Shifts of latents in {rows} environments with intervals, a colour a latent; hollow: no target."
    return Picture("Shifts of latents with 90 % intervals", alt, figure)


def _latents(latents: xr.Dataset) -> Picture:
    figure = new_figure(6.4, 4.8)
    ax = plot_latents(latents, ax=figure.add_subplot())
    ax.set_title("")
    axes = f"{ax.get_xlabel()} and {ax.get_ylabel()}"
    alt = f"Scatter of {latents.sizes['cell']} cells along {axes}, a colour an environment."
    return Picture("Latents of cells, and means of environments", alt, figure)


def _effects(effects: xr.Dataset, condition: str) -> Picture:
    figure = new_figure(6.0, 1.4 + 0.22 * min(effects.sizes["gene"], 20))
    plot_gene_effects(effects, condition, ax=figure.add_subplot()).set_title("")
    alt = f"Effects of {condition} on the genes that it moves most, with intervals."
    return Picture(f"Effects of {condition}, the environment that moves genes most", alt, figure)
