"""Counts of perturbed cells through a network: targets, latents and calibration beside the models of the papers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import xarray as xr
from _environment_vae_scores import latent_row, null_row, permuted, summary, timed
from _tables import Row, Tables

import embergraph as eg
from embergraph.models import EnvironmentVAE, basic_vae, svae_plus

NUM_LATENTS = 20
SPARSITY = 20.0
Fitter = Callable[[xr.Dataset, dict[str, Any]], eg.EnvironmentVAEFit]
MODELS: dict[str, Fitter] = {
    "default": lambda data, options: run(EnvironmentVAE.for_data(data, NUM_LATENTS), data, **options),
    "default with d 30 and L 15": lambda data, options: run(
        EnvironmentVAE.for_data(data, 30, max_targets=15), data, **options
    ),
    "spike and slab": lambda data, options: run(
        EnvironmentVAE.for_data(data, NUM_LATENTS, environment_prior="spike_slab"), data, **options
    ),
    "basic VAE": lambda data, options: run(basic_vae(data, NUM_LATENTS), data, **options),
    "sVAE+ exact masks": lambda data, options: run(svae_plus(data, NUM_LATENTS, sparsity=SPARSITY), data, **options),
    "sVAE+ as published": lambda data, options: run(
        svae_plus(data, NUM_LATENTS, sparsity=SPARSITY), data, relaxed_masks=True, **options
    ),
}
"""Fits by name, all with the same network and training."""
TASKS: dict[str, dict[str, Any]] = {
    "counts": {},
    "one target": {"max_targets": 1},
    "linear simulator": {"decoder": "linear"},
    "25 cells each": {"num_cells": 25},
    "30 perturbations": {"num_perturbations": 30},
    "3-6 targets": {"min_targets": 3, "max_targets": 6},
    "3-6 targets in 300 perturbations": {
        "min_targets": 3, "max_targets": 6, "num_perturbations": 300, "num_cells": 33,
    },
}  # fmt: skip
"""Options of the simulation by name."""
WORST = {"MCC": min, "F1": min, "calibration error": max}


def counts(options: argparse.Namespace) -> Tables:
    """Simulated counts of 100 perturbations: MCC, F1 and calibration of every model; permuted labels; harder tasks."""
    results = options.results
    trained = {} if options.steps is None else {"num_steps": options.steps}
    found = []
    for task in options.tasks:
        for name in options.models:
            what = {"task": task, "model": name, **trained}
            rows = [results.get({**what, "seed": seed}, lambda t=task, n=name, s=seed: recovery(t, n, s, trained))
                    for seed in options.seeds]  # fmt: skip
            found.append({**what, **summary(rows, WORST)})
    seeds = f"seeds {options.seeds[0]} to {options.seeds[-1]}"
    tables = {f"Counts, mean (worst) over {seeds}": found}
    if options.permuted:
        what = {"task": "permuted labels", "model": "default", **trained}
        rows = [results.get({**what, "seed": seed}, lambda s=seed: null(s, trained)) for seed in options.permuted]
        seeds = f"seeds {options.permuted[0]} to {options.permuted[-1]}"
        tables[f"Permuted labels, mean (largest) over {seeds}"] = [
            {**what, **summary(rows, {"expected targets": max, "largest probability": max})}
        ]
    return tables


def recovery(task: str, model: str, seed: int, trained: dict[str, Any]) -> Row:
    data = eg.datasets.simulated_perturbations(seed, **TASKS[task])
    fit, cost = timed(lambda: MODELS[model](data, trained))
    final = float(fit.settings["final_loss"]) / data.sizes["cell"]
    return {**latent_row(fit, data), "agreement": float(fit.guide.rotation_agreement), "loss": final, **cost}


def null(seed: int, trained: dict[str, Any]) -> Row:
    data = permuted(eg.datasets.simulated_perturbations(seed), seed)
    fit = MODELS["default"](data, trained)
    return {**null_row(fit), "MCC": latent_row(fit, data)["MCC"]}


def run(model: EnvironmentVAE, data: xr.Dataset, **options: Any) -> eg.EnvironmentVAEFit:
    return eg.fit(model, data, progress=False, **options)
