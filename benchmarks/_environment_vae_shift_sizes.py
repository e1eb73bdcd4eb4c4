"""Coverage of intervals of shifts under a network decoder, before and after their calibration.

Counts of random sizes, fitted by the default plan: what is estimated of a true shift, and the share of intervals of 50,
80 and 95 % that hold it, among targets with a probability above one half.
"""

from __future__ import annotations

import argparse

import numpy as np
from _tables import Row, Tables

import embergraph as eg
from embergraph.datasets import simulated_perturbations
from embergraph.latent_scores import Alignment, align, coverage
from embergraph.methods._environment_vae_data import prepared
from embergraph.methods._environment_vae_read import draw_environments
from embergraph.methods._environment_vae_shifts import shift_calibration
from embergraph.models import EnvironmentVAE
from embergraph.models.parts.errors import DataError

LEVELS = (0.5, 0.8, 0.95)


def settings(seed: int) -> dict[str, object]:
    """Random sizes of a data set."""
    rng = np.random.default_rng(seed)
    latents = int(rng.integers(6, 19))
    return {
        "num_latents": latents,
        "num_genes": int(rng.integers(60, 250)),
        "library_size": float(np.exp(rng.uniform(np.log(800), np.log(8000)))),
        "num_cells": int(rng.integers(40, 130)),
        "num_perturbations": max(50, int(latents * rng.uniform(4, 8))),
        "decoder": str(rng.choice(["mlp", "mlp", "mlp", "linear"])),
        "control": bool(rng.integers(2)),
    }


def covered(draws: np.ndarray, aligned: Alignment, truth: np.ndarray, counted: np.ndarray) -> str:
    """Coverage at every level."""
    shares = []
    for level in LEVELS:
        tails = [np.quantile(draws, (1 + side * level) / 2, axis=0) for side in (-1, 1)]
        shares.append(coverage(*aligned.interval(*tails), truth, where=counted))
    return " ".join(f"{share:.2f}" for share in shares)


def shift_sizes(options: argparse.Namespace) -> Tables:
    """Intervals of shifts under a network decoder, before and after their calibration, on counts of random sizes."""
    rows = []
    for seed in options.seeds:
        what = {"default": options.default, "seed": seed, "steps": options.steps}
        found = options.results.get(what, lambda s=seed: row(s, options.default, options.steps))
        rows.append({"seed": seed, **found})
    return {"Coverage at 50, 80 and 95 %": rows}


def row(seed: int, default: bool, steps: int | None) -> Row:
    """One data set."""
    sizes = {} if default else settings(seed)
    data = simulated_perturbations(seed, **sizes)
    latents = -(-4 * data.sizes["true_latent"] // 3)
    control = "control" if sizes.get("control") else None
    model = EnvironmentVAE.for_data(data, latents, control=control, seed=seed)
    fit = eg.fit(model, data, seed=seed, num_steps=steps, progress=False)
    aligned = align(fit.latents(data)["mean"], data["true_z"])
    probability = aligned.take(fit.environments()["target_probability"], signed=False)
    counted, truth = probability > 0.5, data["true_shift"].values
    draws = draw_environments(fit, None, 2000, seed)[0].double().numpy()
    found = {"correlation": aligned.correlation.mean(), "before": covered(draws, aligned, truth, counted)}
    try:
        correction = shift_calibration(fit, prepared(fit.model, data))
    except DataError as error:
        return {**found, "after": f"refused: {error}"}
    after, true = correction.draws(draws, seed), counted & (truth != 0)
    ratios = [float((aligned.take(d.mean(0), signed=True)[true] / truth[true]).mean()) for d in (draws, after)]
    return {
        **found, "after": covered(after, aligned, truth, counted), "estimated / true": ratios[0],
        "corrected / true": ratios[1], "spread": correction.spread,
    }  # fmt: skip
