"""Models whose posteriors are checked on data from their own priors, and how they are fitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import xarray as xr
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

import embergraph as eg
from embergraph.models.parts.scale_priors import NormalScales

NUM_GENES, NUM_CELLS = 5, 300


@dataclass(frozen=True)
class Case:
    """One line of the table: a model, how data are drawn from it, and how it is fitted.

    Attributes
    ----------
    title
        Method and routine, as in the table.
    model
        Makes the model and the data whose shapes are wanted.
    simulate
        Draws data from model, template and seed, where `eg.simulate` is not enough.
    fit
        Fits simulated data, where it is not the plan with `options`.
    options
        Of the plan.
    replicates
        Simulated data sets, by default.
    """

    title: str
    model: Callable[[], tuple[Any, xr.Dataset]]
    simulate: Callable[[Any, xr.Dataset, int], xr.Dataset] | None = None
    fit: Callable[..., Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    replicates: int = 100


def two_slopes(x: torch.Tensor, y: torch.Tensor) -> None:
    """Two correlated covariates: the posterior of their slopes is normal and correlated."""
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("cell", len(x)):
        pyro.sample("y_obs", dist.Normal((x * slope).sum(-1), 1.0), obs=y)


def regression() -> tuple[Any, xr.Dataset]:
    shared, own = np.random.default_rng(0).standard_normal((2, 40, 2))
    x = (shared[:, :1] + 0.3 * own).astype(np.float32)
    return two_slopes, xr.Dataset({"x": (("cell", "covariate"), x), "y": ("cell", np.zeros(40, np.float32))})


def fit_regression(guide: Any, data: xr.Dataset, seed: int) -> Any:
    return eg.svi(two_slopes, guide, data[["x", "y"]], num_steps=1500, learning_rate=0.02, seed=seed, progress=False)


def notmad(order: str, **options: Any) -> tuple[Any, xr.Dataset]:
    rng = np.random.default_rng(0)
    covariates = rng.uniform(-1, 1, (NUM_CELLS, 2))
    cells = eg.from_arrays(rng.standard_normal((NUM_CELLS, NUM_GENES)), covariates)
    small = {"intercept_prior": dist.Normal(0.0, 0.1)}  # the plan wants centred genes
    return eg.models.NOTMAD.for_data(cells, 2, order=order, noise="equal", **small, **options), cells


def med_magma(num_replicates: int | None) -> tuple[Any, xr.Dataset]:
    scales = {"cell_scales": NormalScales(), "gene_scales": NormalScales(), "overall_prior": dist.Normal(0.0, 1.5)}
    model = eg.models.MEDMAGMA(20, 25, num_replicates, **scales)
    return model, model.simulate(seed=0)[["expression"]]


def linear_environments() -> tuple[Any, xr.Dataset]:
    offsets = 3.0 * np.eye(4)[np.arange(20) % 4]
    data = eg.datasets.simulated_environments(0, num_latents=4, num_genes=20, offsets=offsets, num_cells=60)
    return eg.models.EnvironmentVAE.for_data(data, 4, max_targets=1), data[["expression", "environment"]]


def counted_environments() -> tuple[Any, xr.Dataset]:
    data = eg.datasets.simulated_perturbations(
        0, num_perturbations=24, num_cells=60, num_latents=4, num_genes=40, max_targets=1, control=True
    )
    prior = eg.models.SingleEffects(
        25, 4, max_targets=1, control=data["condition"].values.tolist().index("control"),
        variance_prior=dist.InverseGamma(5.0, 20.0),
    )  # fmt: skip
    model = eg.models.EnvironmentVAE.for_data(data, 4, control="control", environment_prior=prior)
    return model, data[["expression", "environment", "library"]]


def with_new_decoder(model: Any, data: xr.Dataset, seed: int) -> xr.Dataset:
    """Weights of the decoder are no sites: they are drawn here, anew in every replicate."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.decoder.named_parameters():
            if weight.dim() == 2:
                size = 1.0 if name == "weight" else (2.0 / weight.shape[1]) ** 0.5
                weight.copy_(size * torch.randn(weight.shape, generator=generator))
    return eg.simulate(model, data, seed=seed)


CASES = {
    "exact": Case(
        "control: full-rank normal guide of a normal posterior",
        regression,
        fit=partial(fit_regression, AutoMultivariateNormal),
    ),
    "mean_field": Case(
        "control: mean field on a correlated posterior", regression, fit=partial(fit_regression, AutoNormal)
    ),
    "notmad_hmc": Case(
        "NOTMAD, one order, HMC", partial(notmad, "uniform"), options={"posterior": "hmc"}, replicates=24
    ),
    "notmad_mean_field": Case(
        "NOTMAD, one order, mean field", partial(notmad, "uniform"), options={"posterior": "mean_field"}, replicates=40
    ),
    "notmad_projected": Case("NOTMAD, projected, bootstrap", partial(notmad, "projected"), replicates=24),
    "med_magma_5": Case("MED-MAGMA, five matrices, EM", partial(med_magma, 5)),
    "med_magma_1": Case("MED-MAGMA, one matrix, EM", partial(med_magma, None)),
    "environment_em": Case("Environment VAE, linear, EM", linear_environments, with_new_decoder),
    "environment_svi": Case(
        "Environment VAE, counts, network, SVI", counted_environments, with_new_decoder, replicates=40
    ),
}
