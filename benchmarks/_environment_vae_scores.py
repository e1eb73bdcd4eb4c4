"""What the simulated benchmarks of the Environment VAE share: scores of a fit, labels that mean nothing, tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from _tables import Row

import embergraph as eg
from embergraph.latent_scores import align, column_disentanglement, encoder_disentanglement, r2, target_scores

if TYPE_CHECKING:
    from jaxtyping import Float

MOVED = 2.0  # standard deviations of a latent


def permuted(data: xr.Dataset, seed: int) -> xr.Dataset:
    """Cells whose environments are dealt out at random: no environment does anything."""
    codes = np.random.default_rng(seed).permutation(data["environment"].values)
    return data.assign(environment=("cell", codes))


def timed(run: Callable[[], eg.EnvironmentVAEFit]) -> tuple[eg.EnvironmentVAEFit, Row]:
    """A fit, and how long it took."""
    start, busy = time.perf_counter(), time.process_time()
    fit = run()
    return fit, {"seconds": time.perf_counter() - start, "CPU seconds": time.process_time() - busy}


def latent_row(fit: eg.EnvironmentVAEFit, data: xr.Dataset) -> Row:
    """How well latents are recovered, and which targets are called.

    ``F1`` is that of probabilities above one half, where the model has any; ``F1 of moves`` that of environments whose
    mean latents are further than 2 from those of the control (without control, from the median environment).
    """
    mean, truth = fit.latents(data)["mean"].values, data["true_z"].values
    alignment = align(mean, truth)
    row: Row = {"MCC": float(alignment.correlation.mean()), "R2": r2(mean, truth)}
    probability = fit.environments(data)["target_probability"].values
    if np.isfinite(probability).all():
        found = target_scores(probability, data["true_targets"], alignment)
        names = {"F1": "f1", "Brier": "brier", "calibration error": "calibration_error", "targets": "found_targets"}
        row |= {title: float(found[name]) for title, name in names.items()}
        row["expected targets"] = float(probability.sum() / len(probability))
    moved = np.abs(moves(mean, data)) > MOVED
    found = target_scores(moved.astype(float), data["true_targets"], alignment)
    return {**row, "F1 of moves": float(found["f1"]), "true targets": float(found["true_targets"])}


def moves(mean: Float[np.ndarray, "cell latent"], data: xr.Dataset) -> Float[np.ndarray, "condition latent"]:
    """Mean latents of environments relative to the control, or to the median environment where there is none."""
    codes, names = data["environment"].values, data["condition"].values.tolist()
    centre = np.stack([mean[codes == e].mean(0) for e in range(len(names))])
    reference = centre[names.index("control")] if "control" in names else np.median(centre, axis=0)
    return centre - reference


def null_row(fit: eg.EnvironmentVAEFit) -> Row:
    """Targets found where there are none."""
    probability = fit.environments()["target_probability"].values
    return {
        "expected targets": float(probability.sum() / len(probability)),
        "targets": float((probability > 0.5).sum() / len(probability)),
        "largest probability": float(probability.max()),
    }


def mixing_row(fit: eg.EnvironmentVAEFit, data: xr.Dataset) -> Row:
    """Disentanglement of a linear decoder's columns, and of the encoder: latents that stay empty hardly count there."""
    found, columns = fit.model.decoder.mixing.detach().numpy(), data["true_mixing"].values.T
    before, *after = (
        fit.latents(data.assign(expression=data["expression"] + move))["mean"].values for move in (0.0, *columns)
    )
    return {
        "disentanglement": column_disentanglement(found, data["true_mixing"]),
        "of the encoder": encoder_disentanglement(before, np.stack(after)),
    }


def summary(rows: Sequence[Row], extremes: Mapping[str, Callable[[Any], Any]]) -> Row:
    """Means over seeds, with the worst beside those of `extremes`, which gives what the worst is."""
    table: Row = {}
    for name in dict.fromkeys(key for row in rows for key in row):
        values = [row[name] for row in rows if name in row]
        table[name] = f"{np.mean(values):.3f}" if np.mean(values) < 100 else f"{np.mean(values):.0f}"
        if name in extremes:
            table[name] += f" ({extremes[name](values):.3f})"
    return table
