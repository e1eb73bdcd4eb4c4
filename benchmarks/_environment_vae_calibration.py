"""Coverage of stated intervals of shifts, and reliability of stated target probabilities, where the model is right."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyro
import torch
import xarray as xr
from _tables import Row, Tables
from pyro import poutine
from scipy.optimize import linear_sum_assignment
from scipy.stats import norm

import embergraph as eg
from embergraph.guides.linear_environment_vae import LinearEnvironmentVAEGuide
from embergraph.guides.parts.linear_gaussian import LinearGaussian
from embergraph.inference import em
from embergraph.models import EnvironmentVAE

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

LEVELS = (0.5, 0.8, 0.95)
BINS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.95, 0.99, 1.0)
SIZE, NULL = 1.5, 0.25  # standard deviation of shifts; share of environments without one, where one target is the most
LATENTS, GENES = 4, 20
NUM_DRAWS = 2000
INTERVALS = ("latents seen", "axes known", "stated", "draws")


@dataclass(frozen=True)
class Case:
    """One design: environments, cells of each, noise sd, most targets, and what the model is given."""

    environments: int = 20
    cells: int = 60
    noise: float = 1.0
    targets: int = 1
    max_targets: int = 1
    latents: int = LATENTS
    minimum_information: float = 0.2
    known: bool = False


CASES = {
    "60 cells, noise 1, decoder known": Case(known=True),
    "60 cells, noise 1": Case(),
    "60 cells, noise 2": Case(noise=2.0),
    "400 cells, noise 1": Case(cells=400),
    "60 environments": Case(environments=60),
    "1-2 targets of at most 3, decoder known": Case(targets=2, max_targets=3, known=True),
    "1-2 targets of at most 3": Case(targets=2, max_targets=3),
    "1-2 targets of at most 3, 60 environments": Case(environments=60, targets=2, max_targets=3),
    "8 latents for 4, all kept": Case(latents=8, minimum_information=0.0),
    "8 latents for 4": Case(latents=8),
}


def calibration(options: argparse.Namespace) -> Tables:
    """Coverage of intervals of shifts and reliability of target probabilities under a linear Gaussian model."""
    results = options.results
    coverage, targets = [], []
    for name in options.cases:
        case = CASES[name]
        rows = [results.get({"case": name, "seed": s}, lambda s=s, c=case: measured(c, s)) for s in options.seeds]
        coverage.append({"case": name, **coverage_cells(rows)})
        targets.append({"case": name, **target_cells(rows)})
    seeds = f"seeds {options.seeds[0]} to {options.seeds[-1]}"
    return {
        f"Coverage at 50 / 80 / 95 % of intervals of shifts with P(target) above one half, {seeds}": coverage,
        f"Stated and observed share of targets, {seeds}": targets,
    }


def simulated(case: Case, seed: int) -> xr.Dataset:
    """Environments with few shifts, none of them called a control."""
    rng = np.random.default_rng(seed)
    offsets = np.zeros((case.environments, LATENTS))
    for row in offsets:
        num = int(rng.random() > NULL) if case.targets == 1 else int(rng.integers(1, case.targets + 1))
        row[rng.permutation(LATENTS)[:num]] = SIZE * rng.standard_normal(num)
    return eg.datasets.simulated_environments(
        seed, num_latents=LATENTS, num_genes=GENES, offsets=offsets, num_cells=case.cells, noise=case.noise
    )


def measured(case: Case, seed: int) -> Row:
    """Coverage by kind of interval, and sums for reliability."""
    data = simulated(case, seed)
    guide = known_decoder(case, data) if case.known else fitted(case, data)
    truth, disentanglement = aligned(guide, data)
    q, linear = guide.environment, guide.linear()
    probability = q.probability[..., 1:].double().numpy()
    called = probability > 0.5
    target = np.broadcast_to(truth[:, None] != 0, called.shape)
    shift = np.broadcast_to(truth[:, None], called.shape)[called]
    mean = q.size_mean.double().numpy()[called]
    tau2 = float(q.shift_variance)
    seen = np.broadcast_to(1 / (q.count.double().numpy() + 1 / tau2)[:, None, None], called.shape)
    axes_known = q.size_variance.double()
    stated = axes_known if case.known else q.marginal_variances(linear)
    variances = {"latents seen": seen, "axes known": axes_known.numpy(), "stated": stated.numpy()}
    row: Row = {"called": int(called.sum()), "called targets": int(target[called].sum())}
    row["disentanglement"], row["targets"] = disentanglement, int((truth != 0).sum())
    for name, variance in variances.items():
        row[name] = inside(mean, np.sqrt(variance[called]), shift, target[called])
    together = q.target_probability().double().numpy()
    row["draws"] = inside_draws(draws_of_shifts(guide, known=case.known), truth, together > 0.5)
    return {**row, **reliability_sums(together, truth != 0)}


def fitted(case: Case, data: xr.Dataset) -> LinearEnvironmentVAEGuide:
    model = EnvironmentVAE.for_data(data, case.latents, max_targets=case.max_targets)

    def guide(model: EnvironmentVAE) -> LinearEnvironmentVAEGuide:
        return LinearEnvironmentVAEGuide.for_model(model, minimum_information=case.minimum_information)

    return em(model, guide, data[["expression", "environment"]], progress=False).guide


def known_decoder(case: Case, data: xr.Dataset) -> LinearEnvironmentVAEGuide:
    """Effects alone are inferred, with the decoder, offset and noise of the simulation."""
    model = EnvironmentVAE.for_data(data, case.latents, max_targets=case.max_targets).double()
    guide = LinearEnvironmentVAEGuide.for_model(model).double()
    weight = torch.as_tensor(data["true_mixing"].values.T).double()
    linear = LinearGaussian(weight, weight.new_zeros(GENES), weight.new_tensor(case.noise**2))
    x, environment = (torch.as_tensor(data[name].values) for name in ("expression", "environment"))
    with torch.no_grad():
        guide.take(linear)
        for _ in range(50):
            guide.environment.fit_effects(guide.prior, guide.sums(x.double(), environment), linear)
    return guide


def aligned(guide: LinearEnvironmentVAEGuide, data: xr.Dataset) -> tuple[Float[np.ndarray, "condition latent"], float]:
    """True shifts in the order and signs of the fitted latents, and the column disentanglement."""
    P = data["true_mixing"].values.T @ np.linalg.pinv(guide.linear().weight.numpy())  # (true, fitted)
    rows, columns = linear_sum_assignment(-np.abs(P))
    truth = np.zeros((data.sizes["condition"], P.shape[1]))
    truth[:, columns] = data["true_shift"].values[:, rows] * np.sign(P[rows, columns])
    return truth, float(np.mean((P**2).max(1) / (P**2).sum(1)))


def inside(mean: np.ndarray, sd: np.ndarray, shift: np.ndarray, target: np.ndarray) -> list[list[int]]:
    """Shifts inside the intervals by level: of all that were called, and of the targets among them."""
    distance = np.abs(mean - shift) / sd
    hits = [distance < norm.ppf(0.5 + level / 2) for level in LEVELS]
    return [[int(hit.sum()), int(hit[target].sum())] for hit in hits]


def draws_of_shifts(guide: LinearEnvironmentVAEGuide, *, known: bool) -> Float[np.ndarray, "draw condition latent"]:
    """Draws of the shifts as a posterior exports them: targets and sizes together."""
    effects = guide.environment if known else guide.environment.widened(guide.linear())
    with torch.random.fork_rng(), torch.no_grad(), pyro.plate("draw", NUM_DRAWS, dim=-2):
        torch.manual_seed(0)
        drawn = poutine.trace(effects).get_trace(guide.prior)
        with poutine.block():
            mean = poutine.replay(guide.prior, trace=drawn)().mean
    return mean.reshape(NUM_DRAWS, *mean.shape[-2:]).numpy()


def inside_draws(
    draws: Float[np.ndarray, "draw condition latent"],
    truth: Float[np.ndarray, "condition latent"],
    called: Bool[np.ndarray, "condition latent"],
) -> list[list[int]]:
    """As `inside`, for quantiles of draws; they also know of the chance that there is no target."""
    found = []
    for level in LEVELS:
        low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        hit = (low <= truth) & (truth <= high) & called
        found.append([int(hit.sum()), int((hit & (truth != 0)).sum())])
    return found


def reliability_sums(probability: np.ndarray, target: np.ndarray) -> Row:
    """Counts, stated and observed targets by bin, and squared errors."""
    place = np.clip(np.searchsorted(BINS, probability.ravel(), side="right") - 1, 0, len(BINS) - 2)
    sums = [np.bincount(place, weights, len(BINS) - 1) for weights in (None, probability.ravel(), target.ravel())]
    squares = float(np.square(probability - target).sum())
    return {"bins": np.stack(sums, 1).tolist(), "squares": squares, "entries": int(target.size)}


def coverage_cells(rows: Sequence[Row]) -> Row:
    called, real = (sum(row[key] for row in rows) for key in ("called", "called targets"))
    cells: Row = {}
    for name in INTERVALS:
        total = np.sum([row[name] for row in rows], axis=0)
        cells[name] = " / ".join(f"{100 * hit / called:.1f}" for hit in total[:, 0])
        if name in ("stated", "draws"):
            cells[f"{name}, of targets"] = " / ".join(f"{100 * hit / real:.1f}" for hit in total[:, 1])
    found = [row["disentanglement"] for row in rows]
    cells["called (targets, of all)"] = f"{called} ({real}, {sum(row['targets'] for row in rows)})"
    return {**cells, "disentanglement (worst)": f"{np.mean(found):.3f} ({min(found):.3f})"}


def target_cells(rows: Sequence[Row]) -> Row:
    table = np.sum([row["bins"] for row in rows], axis=0)
    entries = sum(row["entries"] for row in rows)
    cells: Row = {}
    for lower, upper, (count, stated, observed) in zip(BINS, BINS[1:], table, strict=False):
        shown = f"{stated / count:.2f} → {observed / count:.2f} ({count:.0f})" if count else ""
        cells[f"{lower:g} to {upper:g}"] = shown
    cells["calibration error"] = float(np.abs(table[:, 1] - table[:, 2]).sum() / entries)
    return {**cells, "Brier": sum(row["squares"] for row in rows) / entries}
