"""MED-MAGMA under routines that know nothing of it, and its guide against exact samplers."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from med_magma_models import (
    DOUBLE,
    N,
    P,
    proper,
)
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_mean
from torch import Tensor

import embergraph as eg
from embergraph.datasets import simulated_matrix
from embergraph.inference.hmc import whitened_hmc
from embergraph.models import (
    MEDMAGMA,
    FixedGraph,
    FlatScales,
    GaussianGraph,
    NormalScales,
)


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_svi_runs_on_the_model() -> None:
    data = simulated_matrix(N, P, seed=1)
    model = MEDMAGMA.for_data(data, **proper(cell_graph=GaussianGraph(0.02), gene_graph=GaussianGraph(0.02)))

    def guide(model: MEDMAGMA) -> AutoNormal:
        return AutoNormal(model, init_loc_fn=init_to_mean, init_scale=0.01)

    fit = eg.svi(model, guide, data, num_steps=150, learning_rate=0.02, progress=False)
    losses = fit.history.values[0]
    assert np.isfinite(losses).all()
    assert losses[-20:].mean() < losses[:20].mean() - 1
    tree = fit.posterior(data, 20, prior=False)
    assert tree["posterior"]["log_u"].dims == ("chain", "draw", "cell")
    np.testing.assert_allclose(tree["posterior"]["log_u"].sum("cell"), 0.0, atol=1e-8)


def moment(log_u: Tensor, log_v: Tensor, log_omega: Tensor, D: Tensor, weights: Tensor | None = None) -> Tensor:
    """E[Z Z^T] over draws."""
    Z = D * (0.5 * log_omega[:, None, None] - log_u[:, :, None] - log_v[:, None, :]).exp()
    products = Z @ Z.mT
    if weights is None:
        return products.mean(0)
    return (weights[:, None, None] * products).sum(0)


def known_graph_problem(seed: int, scales: Any = None) -> tuple[MEDMAGMA, xr.Dataset]:
    data = simulated_matrix(N, P, seed=seed, signs="positive")
    graphs = {axis: FixedGraph(data[f"true_{axis}_precision"].values) for axis in ("cell", "gene")}
    prior = scales or FlatScales
    made = MEDMAGMA.for_data(
        data, cell_graph=graphs["cell"], gene_graph=graphs["gene"], cell_scales=prior(), gene_scales=prior()
    )
    return made, data


def relative(found: Tensor, wanted: Tensor) -> float:
    return float(torch.linalg.norm(found - wanted) / torch.linalg.norm(wanted))


def importance_draws(fit: Any, D: Tensor, num_draws: int) -> tuple[list[Tensor], Tensor]:
    """Draws of a guide a third wider than the fitted one, and their weights under the posterior."""
    guide = copy.deepcopy(fit.guide)
    guide.scales.widen(1.3, 1.3)
    with pyro.validation_enabled(False), torch.no_grad(), pyro.plate("draws", num_draws, dim=-1):
        drawn = poutine.trace(guide).get_trace(D)
        scored = poutine.trace(poutine.replay(fit.model, drawn)).get_trace(D)
    log_weight = torch.zeros(num_draws, **DOUBLE)
    for trace, sign in ((scored, 1), (drawn, -1)):
        trace.compute_log_prob()
        sites = [site for name, site in trace.nodes.items() if site["type"] == "sample" and name != "draws"]
        log_weight = log_weight + sign * sum(site["log_prob"] for site in sites)
    return [drawn.nodes[name]["value"] for name in ("log_u", "log_v", "log_omega")], log_weight.softmax(0)


@pytest.mark.parametrize("seed", [0, 2])
def test_moments_of_the_guide_agree_with_exact_ones(seed: int) -> None:
    """Psi known, flat scales: E[Z Z^T] of the E-step against self-normalised importance sampling, within 1 %."""
    model, data = known_graph_problem(seed)
    fit = eg.fit(model, data, progress=False)
    D = torch.as_tensor(data["expression"].values)
    values, weights = importance_draws(fit, D, 60_000)
    exact = moment(*values, D, weights)
    parts = [slice(k, k + 6000) for k in range(0, 60_000, 6000)]
    repeats = [moment(*(v[k] for v in values), D, weights[k] / weights[k].sum()) for k in parts]
    error = torch.linalg.norm(torch.stack(repeats).std(0)) / 10**0.5 / torch.linalg.norm(exact)
    assert float(error) < 0.005, "the reference is good enough"
    ours = fit.guide.S_cell
    assert relative(ours, exact) < 0.01
    # its overall scale is exact: E[q] = N
    Psi = [torch.as_tensor(data[f"true_{axis}_precision"].values) for axis in ("cell", "gene")]
    q = (Psi[0] * ours).sum() + (Psi[1] * fit.guide.S_gene).sum()
    assert float(q) == pytest.approx(N * P, rel=1e-8)
    # the mode alone is another matrix, whatever its overall scale
    a, b = fit.guide.scales.start(0)
    Z = D * (a[:, None] + b).exp()
    at_mode = Z @ Z.mT
    assert relative(at_mode * (exact.trace() / at_mode.trace()), exact) > 0.02


def test_moments_of_the_guide_agree_with_hmc() -> None:
    """The same against Hamiltonian Monte Carlo on a density written out here, within what its own error allows."""
    model, data = known_graph_problem(0)
    fit = eg.fit(model, data, progress=False)
    D = torch.as_tensor(data["expression"].values)
    Psi = [torch.as_tensor(data[f"true_{axis}_precision"].values) for axis in ("cell", "gene")]
    loc = fit.guide.scales.loc
    spread, directions = torch.linalg.eigh(fit.guide.scales.as_log_scales()[0].spread)
    factor = directions[:, 1:] * spread[1:].sqrt()  # without the gauge

    def log_density(free: Tensor) -> Tensor:
        a, b = (loc + free @ factor.mT).split((N, P), -1)
        Z = D * (a[:, :, None] + b[:, None, :]).exp()
        return P * a.sum(-1) + N * b.sum(-1) - 0.5 * (Z * (Psi[0] @ Z + Z @ Psi[1])).sum((-2, -1))

    size = N + P - 1
    starts, roots = torch.zeros(100, size, **DOUBLE), torch.eye(size, **DOUBLE).expand(100, -1, -1)
    chains = whitened_hmc(log_density, starts, roots, num_warmup=60, num_draws=220, num_leapfrog=5, progress=False)
    a, b = (loc + chains.draws @ factor.mT).split((N, P), -1)
    Z = D * (a[..., :, None] + b[..., None, :]).exp()
    by_chain = (Z @ Z.mT).mean(1)
    found = by_chain.mean(0)
    error = float(torch.linalg.norm(by_chain.std(0)) / 10 / torch.linalg.norm(found))
    assert error < 0.006
    assert relative(fit.guide.S_cell, found) < 0.01
    log_u = a.mean(-1, keepdim=True) - a
    np.testing.assert_allclose(log_u.reshape(-1, N).std(0), fit.scales()["log_u_sd"], rtol=0.1)


def test_nuts_runs_on_the_model() -> None:
    data = simulated_matrix(N, P, seed=1)
    graphs = {axis: FixedGraph(data[f"true_{axis}_precision"].values) for axis in ("cell", "gene")}
    narrow = dist.LogNormal(0.0, 0.1)
    model = MEDMAGMA.for_data(
        data, cell_graph=graphs["cell"], gene_graph=graphs["gene"], cell_scales=NormalScales(narrow),
        gene_scales=NormalScales(narrow), overall_prior=dist.Normal(0.0, 1.5),
    )  # fmt: skip
    fit = eg.mcmc(model, data, num_warmup=40, num_draws=50, max_tree_depth=4, progress=False)
    draws = fit.posterior(data, 60, predictive=False, prior=False)["posterior"]
    truth = np.concatenate([data["true_log_u"], data["true_log_v"]])
    found = np.concatenate([draws[name].mean(("chain", "draw")) for name in ("log_u", "log_v")])
    assert np.corrcoef(found, truth)[0, 1] > 0.8


def test_nuts_starts_from_given_values_under_flat_priors() -> None:
    model, data = known_graph_problem(0)
    sites = {
        "log_u": torch.zeros(N, **DOUBLE),
        "log_v": torch.zeros(P, **DOUBLE),
        "log_omega": torch.tensor(0.0, **DOUBLE),
    }
    fit = eg.mcmc(model, data, num_warmup=5, num_draws=5, start=sites, max_tree_depth=3, progress=False)
    assert np.isfinite(fit.posterior(data, 5)["posterior"]["log_u"]).all()
