"""Coverage of intervals of shifts under a network decoder, before and after their calibration.

Simulates counts of random sizes, fits the default plan, and prints a line a data set: what is estimated of a true
shift, and the share of intervals of 50, 80 and 95 % that hold it, among targets with a probability above one half.

    python benchmarks/environment_vae_shift_sizes.py --seeds 500 501 502
"""

from __future__ import annotations

import argparse

import numpy as np

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
        ends = np.sort([aligned.take(tail, signed=True) for tail in tails], axis=0)
        shares.append(coverage(*ends, truth, where=counted))
    return " ".join(f"{share:.2f}" for share in shares)


def main() -> None:
    """Parse options, simulate, fit and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[500, 501, 502])
    parser.add_argument("--default", action="store_true", help="the default sizes, and the seeds vary the rest")
    options = parser.parse_args()
    for seed in options.seeds:
        sizes: dict = {} if options.default else settings(seed)
        data = simulated_perturbations(seed, **sizes)
        latents = -(-4 * data.sizes["true_latent"] // 3)
        control = "control" if sizes.get("control") else None
        model = EnvironmentVAE.for_data(data, latents, control=control, seed=seed)
        fit = eg.fit(model, data, seed=seed, progress=False)
        aligned = align(fit.latents(data)["mean"], data["true_z"])
        probability = aligned.take(fit.guide.environment.target_probability().numpy(), signed=False)
        counted, truth = probability > 0.5, data["true_shift"].values
        draws = draw_environments(fit, None, 2000, seed)[0].double().numpy()
        before = covered(draws, aligned, truth, counted)
        line = f"seed {seed}: correlation {aligned.correlation.mean():.3f}, before {before}"
        try:
            found = shift_calibration(fit, prepared(fit.model, data))
        except DataError as error:
            print(f"{line}, refused: {error}  {sizes}", flush=True)
            continue
        after = found.draws(draws, seed)
        true = counted & (truth != 0)
        ratios = [(aligned.take(d.mean(0), signed=True)[true] / truth[true]).mean() for d in (draws, after)]
        line += f", after {covered(after, aligned, truth, counted)}"
        line += f"; estimated / true {ratios[0]:.3f} -> {ratios[1]:.3f}, spread {found.spread:.3f}"
        print(f"{line}  {sizes}", flush=True)


if __name__ == "__main__":
    main()
