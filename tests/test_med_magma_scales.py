"""The scales in the guide of MED-MAGMA: recovery, spreads, widening, storage."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from med_magma_guides import DOUBLE, FAMILIES, both, data_of, expression_of, known, swept, truth_of
from pyro import poutine
from torch import Tensor

from embergraph.datasets import simulated_matrix
from embergraph.guides.med_magma import MEDMAGMAGuide
from embergraph.guides.parts.dependence import variance_inflation
from embergraph.guides.parts.edge_buffers import EdgeBuffers
from embergraph.guides.parts.spectral import spectral_precision
from embergraph.models import (
    MEDMAGMA,
    GaussianGraph,
    NormalScales,
    SpectralGraph,
    StudentScales,
)


# --- scales ----------------------------------------------------------------------------------------------------------
def correlation(found: Tensor, truth: Any) -> float:
    return float(np.corrcoef(found.numpy().ravel(), np.asarray(truth).ravel())[0, 1])


@pytest.mark.parametrize("e_step", ["laplace", "mean_field"])
@pytest.mark.parametrize("seed", [0, 1])
def test_known_scales_are_recovered(e_step: Any, seed: int) -> None:
    data = data_of(60, 80, seed=seed)
    _, guide, _ = swept(data, num_steps=2, e_step=e_step)
    log_u, log_v, _ = guide.scales.as_sites(guide.scales.loc)
    assert correlation(log_u, data["true_log_u"]) > 0.97
    assert correlation(log_v, data["true_log_v"]) > 0.97
    slope = np.polyfit(np.asarray(data["true_log_u"]), log_u.numpy(), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.05), "on the log scale itself, not a power of it"


def test_scales_of_cells_are_exact_with_many_genes() -> None:
    data = data_of(20, 600, noise=0.3)
    _, guide, _ = swept(data, num_steps=1, e_step="mean_field")
    log_u, log_v, _ = guide.scales.as_sites(guide.scales.loc)
    assert correlation(log_u, data["true_log_u"]) > 0.995
    assert correlation(log_v, data["true_log_v"]) < 0.99, "twenty cells say little of a gene"


def test_each_matrix_has_scales_of_its_own() -> None:
    data = data_of(30, 40, m=4)
    _, guide, _ = swept(data, num_steps=2)
    log_u = guide.scales.as_sites(guide.scales.loc)[0]
    for k in range(4):
        assert correlation(log_u[k], data["true_log_u"][k]) > 0.9
        assert abs(correlation(log_u[k], data["true_log_u"][(k + 1) % 4])) < 0.7


def test_shared_scales_pool_the_matrices() -> None:
    data = data_of(12, 15, m=6, shared_scales=True, noise=0.5)
    errors = {}
    for shared in (False, True):
        _, guide, _ = swept(data, known(data, shared_scales=shared), 2)
        log_u = guide.scales.as_sites(guide.scales.loc)[0]
        errors[shared] = float((log_u - torch.as_tensor(data["true_log_u"].values)).square().mean())
        sd = guide.scales.site_variances()[0].sqrt().mean()
        assert errors[shared] ** 0.5 < 2.5 * float(sd)
    assert errors[True] < 0.4 * errors[False]


def grid_spread(guide: MEDMAGMAGuide, side: str, log_prior: Any) -> float:
    """The best tau of expected log density plus log prior, on a fine grid."""
    sites = guide.scales.as_sites(guide.scales.loc)
    which = 0 if side == "u" else 1
    mean, variance = sites[which], guide.scales.site_variances()[which]
    weights = getattr(guide.point, f"stretch_{side}", torch.ones_like(mean))
    size = mean.shape[-1]
    num_sets = mean.numel() // size
    tau = torch.logspace(-4, 2, 60_001, **DOUBLE)
    quadratic = ((mean.square() + variance) / weights).sum()
    loss = -(size - 1) * num_sets * tau.log() - 0.5 * quadratic / tau**2 + log_prior(tau)
    return float(tau[loss.argmax()])


@pytest.mark.parametrize("m", [None, 3])
def test_spreads_are_at_their_maximum(m: int | None) -> None:
    data = data_of(12, 15, m)
    narrow = dist.Gamma(torch.tensor(20.0, **DOUBLE), torch.tensor(40.0, **DOUBLE))
    half = dist.HalfNormal(torch.tensor(1.0, **DOUBLE))
    model = MEDMAGMA.for_data(data, cell_scales=NormalScales(), gene_scales=NormalScales(narrow))
    _, guide, _ = swept(data, model, 2)
    for side, law, wrong in (("u", half, narrow), ("v", narrow, half)):
        tau = float(getattr(guide.point, f"tau_{side}"))
        assert tau == pytest.approx(grid_spread(guide, side, law.log_prob), rel=1e-3)
        assert tau != pytest.approx(grid_spread(guide, side, wrong.log_prob), rel=1e-2)


def test_stretches_are_at_their_maximum() -> None:
    """For t scales the stretch and tau maximise the expected log joint in turn; at the end both are stationary."""
    data = data_of(12, 15)
    model = known(data, cell_scales=StudentScales(3.0), gene_scales=NormalScales())
    _, guide, _ = swept(data, model, 60)
    log_u = guide.scales.as_sites(guide.scales.loc)[0]
    squares = log_u.square() + guide.scales.site_variances()[0]
    tau, stretch = float(guide.point.tau_u), guide.point.stretch_u
    grid = torch.logspace(-2, 3, 20_001, **DOUBLE)
    one = torch.tensor(1.5, **DOUBLE)
    prior = dist.InverseGamma(one, one).log_prob(grid)
    for i in range(12):
        loss = prior - 0.5 * grid.log() - 0.5 * squares[i] / (tau**2 * grid)
        assert float(stretch[i]) == pytest.approx(float(grid[loss.argmax()]), rel=5e-3)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_learned_spread_finds_the_spread_of_the_scales(seed: int) -> None:
    data = data_of(40, 50, seed=seed, noise=0.4, noise_law="lognormal")
    _, guide, _ = swept(data, known(data, cell_scales=NormalScales(), gene_scales=NormalScales()), 6)
    for side in ("u", "v"):
        truth = float(data[f"true_log_{side}"].std(ddof=1))
        assert float(getattr(guide.point, f"tau_{side}")) == pytest.approx(truth, abs=0.07)


def test_without_noise_the_spread_vanishes_and_the_scales_with_it() -> None:
    """Data without multiplicative noise give the estimator for unscaled data (GmGM) back."""
    data = data_of(25, 30, noise=0.0)
    normal = {"cell_scales": NormalScales(), "gene_scales": NormalScales()}
    _, guide, _ = swept(data, MEDMAGMA.for_data(data, **both(SpectralGraph, 0.9), **normal), 40)
    single = (1 / 30) ** 0.5  # what the data say of one scale
    assert max(float(guide.point.tau_u), float(guide.point.tau_v)) < single / 4
    log_u, log_v, _ = guide.scales.as_sites(guide.scales.loc)
    assert float(torch.cat([log_u, log_v]).abs().max()) < single / 4
    X = expression_of(data)
    unscaled = spectral_precision(X @ X.mT, X.mT @ X, shrink=(0.9, 0.9))
    flat = swept(data, MEDMAGMA.for_data(data, **both(SpectralGraph, 0.9)), 20)[1]

    def off(matrix: Tensor) -> Tensor:
        values = matrix / matrix.diagonal().mean()
        return values - values.diagonal().diag()

    for axis, wanted in (("cell", unscaled.row_precision), ("gene", unscaled.col_precision)):
        total = unscaled.row_precision.diagonal().mean() + unscaled.col_precision.diagonal().mean()
        wanted = 2 * wanted / total
        wanted = wanted - wanted.diagonal().diag()
        learned, free = (getattr(g, f"{axis}_precision") for g in (guide, flat))
        error, of_flat = (
            float(torch.linalg.norm(off(x) - wanted) / torch.linalg.norm(wanted)) for x in (learned, free)
        )
        assert error < 0.03
        assert of_flat > 2 * error, "flat scales take out what is no scale"


# --- dependence ------------------------------------------------------------------------------------------------------
def test_widening_is_one_where_the_graph_says_all() -> None:
    rng = np.random.default_rng(0)
    n, p, m = 40, 50, 40
    Z = torch.as_tensor(rng.normal(size=(m, n, p))) / 2**0.5
    S_row, S_col = (Z @ Z.mT).mean(0), (Z.mT @ Z).mean(0)
    eye = torch.eye(n, **DOUBLE), torch.eye(p, **DOUBLE)
    for value in variance_inflation(S_row, S_col, *eye, m):
        assert 1.0 <= value < 1.03


def test_widening_is_that_of_the_missing_edges() -> None:
    """At independence: variance of a row's sum of squares over that of independent entries, (p + sum rho^2) / p."""
    data = simulated_matrix(40, 50, num_replicates=60, noise=0.0, seed=1, strength=0.98)
    X = expression_of(data)
    cell, gene = truth_of(data)
    covariance = torch.linalg.inv(torch.kron(cell, torch.eye(50, **DOUBLE)) + torch.kron(torch.eye(40, **DOUBLE), gene))
    blocks = covariance.reshape(40, 50, 40, 50)
    root = covariance.diagonal().reshape(40, 50).sqrt()
    scaled = X / root
    within = torch.stack([blocks[i, :, i, :] / (root[i][:, None] * root[i]) for i in range(40)])
    of_rows = float(within.square().sum((1, 2)).mean() / 50)
    S_row, S_col = (scaled @ scaled.mT).mean(0), (scaled.mT @ scaled).mean(0)
    eye = torch.eye(40, **DOUBLE), torch.eye(50, **DOUBLE)
    found = variance_inflation(S_row, S_col, *eye, 60)
    assert of_rows > 1.05
    assert found[0] - 1 == pytest.approx(of_rows - 1, rel=0.2)
    known_too = variance_inflation(S_row, S_col, cell, gene, 60)
    assert known_too[0] < 1 + 0.35 * (found[0] - 1)


def test_refining_leaves_the_graphs_and_widens_the_scales() -> None:
    data = data_of(20, 25)
    model, guide, _ = swept(data, num_steps=10)
    before = copy.deepcopy(guide.state_dict())
    with torch.no_grad():
        guide.refine_scales(model, {"expression": expression_of(data)})
    for name in ("cell_precision", "gene_precision", "S_cell", "S_gene", "edges.row.probability"):
        assert torch.equal(guide.state_dict()[name], before[name])
    model, fixed, _ = swept(data, known(data), 3)
    plain = [v.clone() for v in fixed.scales.site_variances()]
    with torch.no_grad():
        fixed.refine_scales(model, {"expression": expression_of(data)})
    torch.testing.assert_close(fixed.scales.site_variances()[0], plain[0])  # nothing is left out of a known graph


# --- storage ---------------------------------------------------------------------------------------------------------
def test_edges_are_stored_as_they_are() -> None:
    data = data_of()
    _, guide, _ = swept(data)
    state = guide.edges.state()
    fresh = EdgeBuffers(12, 15).double()
    fresh.store(state)
    again = fresh.state()
    for axis in ("row", "col"):
        for name, value in vars(getattr(state, axis)).items():
            assert torch.equal(getattr(getattr(again, axis), name), value), name
    assert again.rounds == state.rounds == 3
    held = state.row.probability.clone()
    guide.edges.row.probability.fill_(0.5)
    assert torch.equal(state.row.probability, held), "a state is a copy"


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_guides_are_rebuilt_from_settings(family: str) -> None:
    data = data_of(6, 8, 2)
    model = MEDMAGMA.for_data(data, **FAMILIES[family], cell_scales=StudentScales(), gene_scales=NormalScales())
    _, guide, _ = swept(data, model, 2)
    again = MEDMAGMAGuide.from_settings(guide.settings()).double()
    again.load_state_dict(guide.state_dict())
    assert again.settings() == guide.settings()
    D = expression_of(data)
    draws = []
    for one in (guide, again):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            draws.append(poutine.trace(one).get_trace(D))
    for name, site in draws[0].nodes.items():
        if site["type"] == "sample" and name != "replicate":
            assert torch.equal(site["value"], draws[1].nodes[name]["value"])


def test_sweeps_follow_from_the_numbers_alone() -> None:
    """What a checkpoint holds is all that the next sweep depends on."""
    for m, options in ((None, {}), (6, {}), (None, both(SpectralGraph)), (6, both(GaussianGraph))):
        data = data_of(8, 10, m)
        model, guide, _ = swept(data, MEDMAGMA.for_data(data, **options), 4)
        again = MEDMAGMAGuide(model).double()
        again.load_state_dict(guide.state_dict())
        inputs = {"expression": expression_of(data)}
        for step in range(4, 8):
            with torch.no_grad():
                assert guide.update(model, inputs, step) == again.update(model, inputs, step)
        for name, value in guide.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), name
