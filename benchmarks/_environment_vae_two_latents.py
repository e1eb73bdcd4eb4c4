"""Two latents and three environments: whether the latents that environments shift are found, and only those."""

from __future__ import annotations

import argparse
from typing import Any

import xarray as xr
from _environment_vae_scores import latent_row, mixing_row, null_row, permuted, summary, timed
from _tables import Row, Tables

import embergraph as eg
from embergraph.models import EnvironmentVAE, basic_vae

CONTROL = "control"
VARIANTS: dict[str, tuple[dict[str, Any], int]] = {
    "default": ({}, 2),
    "6 latents for 2": ({}, 6),
    "5000 / 50 / 5000 cells": ({"num_cells": (5000, 50, 5000)}, 2),
    "5000 / 50 / 50 cells": ({"num_cells": (5000, 50, 50)}, 2),
    "50 / 5000 / 5000 cells": ({"num_cells": (50, 5000, 5000)}, 2),
    "shifts 1": ({"offsets": ({}, {0: 1.0}, {1: 1.0})}, 2),
    "shifts 0.5": ({"offsets": ({}, {0: 0.5}, {1: 0.5})}, 2),
}
"""Options of the simulation by name, and the number of latents of the model."""
NULLS = ("permuted environments", "equal environments")
METHODS = ("EM", "SVI", "basic VAE")
WORST = {"disentanglement": min, "of the encoder": min, "MCC": min, "F1": min}


def two_latents(options: argparse.Namespace) -> Tables:
    """Disentanglement by EM and SVI on two latents and three environments, basic VAE beside them; null environments."""
    results = options.results
    found = []
    for variant in options.variants:
        for method in METHODS:
            what = {"variant": variant, "method": method}
            rows = [results.get({**what, "seed": seed}, lambda w=what, s=seed: recovery(**w, seed=s))
                    for seed in options.seeds]  # fmt: skip
            found.append({**what, **summary(rows, WORST)})
    nulls = []
    for case in NULLS:
        for method in METHODS[:2]:
            what = {"variant": case, "method": method}
            rows = [results.get({**what, "seed": seed}, lambda w=what, s=seed: null(**w, seed=s))
                    for seed in options.seeds]  # fmt: skip
            nulls.append({**what, **summary(rows, {"expected targets": max, "largest probability": max})})
    seeds = f"seeds {options.seeds[0]} to {options.seeds[-1]}"
    return {
        f"Two latents, mean (worst) over {seeds}": found,
        f"Environments that do nothing, mean (largest) over {seeds}": nulls,
    }


def recovery(variant: str, method: str, seed: int) -> Row:
    simulation, num_latents = VARIANTS[variant]
    data = eg.datasets.simulated_environments(seed, **simulation)
    fit, cost = timed(lambda: fitted(data, method, num_latents))
    return {**mixing_row(fit, data), **latent_row(fit, data), **cost}


def null(variant: str, method: str, seed: int) -> Row:
    if variant == NULLS[0]:
        data = permuted(eg.datasets.simulated_environments(seed), seed)
    else:
        data = eg.datasets.simulated_environments(seed, offsets=({}, {}, {}))
    return null_row(fitted(data, method, 2))


def fitted(data: xr.Dataset, method: str, num_latents: int) -> eg.EnvironmentVAEFit:
    if method == "basic VAE":
        return eg.fit(basic_vae(data, num_latents), data, progress=False)
    model = EnvironmentVAE.for_data(data, num_latents, control=CONTROL)
    return eg.fit(model, data, routine=method.lower(), progress=False)
