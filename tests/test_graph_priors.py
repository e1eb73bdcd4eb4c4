"""Priors of undirected graphs: the laws that they claim, what users may know, and how they are saved."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats
from torch import Tensor

from embergraph.models.parts.errors import DataError
from embergraph.models.parts.graph_priors import (
    GRAPH_PRIORS,
    FixedGraph,
    GaussianGraph,
    GraphPrior,
    LaplaceGraph,
    SparseGraph,
    SpectralGraph,
    pairs_of,
    unit_diagonal,
)
from embergraph.models.parts.knowledge import known_nodes, known_pairs

DOUBLE = {"dtype": torch.double}


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def draws(graph: GraphPrior, size: int, num_draws: int) -> dict[str, Tensor]:
    """Sites of many draws, and Psi."""
    with poutine.trace() as recorder, pyro.plate("draws", num_draws, dim=-1):
        precision = graph.double().sample("gene", size)
    values = {n: s["value"] for n, s in recorder.trace.nodes.items() if s["type"] == "sample" and n != "draws"}
    return {**values, "precision": precision}


# --- packing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_pairs_and_matrices_are_inverse(batch: tuple[int, ...], size: int) -> None:
    edges = torch.randn(*batch, size * (size - 1) // 2, **DOUBLE)
    matrix = unit_diagonal(edges, size)
    assert matrix.shape == (*batch, size, size)
    assert torch.equal(matrix, matrix.mT)
    assert torch.equal(matrix.diagonal(dim1=-2, dim2=-1), torch.ones(*batch, size, **DOUBLE))
    assert torch.equal(pairs_of(matrix), edges)


def test_pairs_are_in_row_order() -> None:
    matrix = unit_diagonal(torch.arange(1.0, 7.0), 4)
    assert matrix[0, 1:].tolist() == [1.0, 2.0, 3.0]
    assert matrix[1, 2:].tolist() == [4.0, 5.0]
    assert float(matrix[2, 3]) == 6.0


def test_gradients_pass_through_packing() -> None:
    edges = torch.randn(3, 10, requires_grad=True, **DOUBLE)
    weight = torch.randn(3, 5, 5, **DOUBLE)
    (gradient,) = torch.autograd.grad((weight * unit_diagonal(edges, 5)).sum(), edges)
    torch.testing.assert_close(gradient, pairs_of(weight + weight.mT))


# --- laws ------------------------------------------------------------------------------------------------------------


def accepted(sample: Tensor, law: Any) -> bool:
    """Kolmogorov-Smirnov at level 1e-4."""
    return stats.kstest(sample.numpy().ravel(), law.cdf).pvalue > 1e-4


@pytest.mark.parametrize("seed", [0, 1])
def test_hyperparameters_of_sparse_graphs(seed: int) -> None:
    torch.manual_seed(seed)
    found = draws(SparseGraph(3.0, 0.4), 11, 4000)
    assert accepted(found["gene_log_odds"], stats.norm(math.log(3.0 / 10), 0.15))
    assert not accepted(found["gene_log_odds"], stats.norm(math.log(3.0 / 11), 0.15))
    assert accepted(found["gene_slab_precision"], stats.gamma(10, scale=1 / (10 * 0.4**2)))
    assert not accepted(found["gene_slab_precision"], stats.gamma(10, scale=1 / (10 * 0.42**2)))


def share_of_edges(graph: SparseGraph, size: int, num_draws: int = 4000) -> Tensor:
    """Share of draws in which a pair has a weight beyond any spike (or its narrow slab)."""
    weights = draws(graph, size, num_draws)["precision"]
    return (weights.abs() > 5e-6).double().mean(0).fill_diagonal_(0.0)


WIDE = {"slab_scale": 0.25, "spike_scale": 1e-7}


@pytest.mark.parametrize("degree", [0.5, 2.0, 5.0])
def test_share_of_the_slab_is_the_expected_degree(degree: float) -> None:
    size = 9
    eta = torch.randn(200_000, **DOUBLE) * 0.15 + math.log(degree / (size - 1))
    wanted = float(eta.sigmoid().mean())  # odds of degree / (size - 1), hence a degree below it
    share = pairs_of(share_of_edges(SparseGraph(degree, **WIDE), size))
    assert float(share.mean()) == pytest.approx(wanted, abs=4 * math.sqrt(wanted * (1 - wanted) / (4000 * 36)) + 2e-3)


def test_slab_and_spike_have_their_scales() -> None:
    # weights of one matrix share their slab: one weight a draw
    weights = pairs_of(draws(SparseGraph(4.0, 0.3, spike_scale=0.001), 10, 30_000)["precision"])[:, 0]
    slab = weights[weights.abs() > 0.01]
    spike = weights[weights.abs() < 0.004]
    assert float(spike.std()) == pytest.approx(0.001, rel=0.02)
    # 1 / s^2 ~ Gamma(10, 10 * .3^2): the marginal is a Student-t of 20 degrees of freedom; cut at .01
    law = stats.t(20, scale=0.3)
    mass = 2 * law.sf(0.01)
    assert stats.kstest(slab.abs().numpy(), lambda x: (2 * law.cdf(x) - 1 - (1 - mass)) / mass).pvalue > 1e-4
    wrong = stats.t(20, scale=0.32)
    mass = 2 * wrong.sf(0.01)
    assert stats.kstest(slab.abs().numpy(), lambda x: (2 * wrong.cdf(x) - 1 - (1 - mass)) / mass).pvalue < 1e-4


def odds(share: Tensor) -> Tensor:
    return share / (1 - share)


def test_known_log_odds_shift_the_odds() -> None:
    size = 6
    known = torch.zeros(size, size)
    known[0, 1] = known[1, 0] = 2.0
    known[2, 4] = known[4, 2] = -2.0
    shifted = share_of_edges(SparseGraph(2.0, log_odds=known, **WIDE), size, 40_000)
    base = math.log(2.0 / 5)
    expected = (known.double() + base).sigmoid()
    np.testing.assert_allclose(pairs_of(shifted), pairs_of(expected), atol=0.012)
    assert abs(float(shifted[0, 1]) - 1 / (1 + math.exp(-base))) > 0.2  # what ignoring the knowledge would give


def test_propensities_multiply_the_odds_and_only_their_ratios_count() -> None:
    size, r = 5, np.array([4.0, 1.0, 1.0, 0.5, 0.5])
    share = share_of_edges(SparseGraph(1.0, propensity=r, **WIDE), size, 40_000)
    scaled = r / r.mean()
    wanted = np.outer(scaled, scaled) * 0.25
    expected = torch.as_tensor(wanted / (1 + wanted))
    np.testing.assert_allclose(pairs_of(share), pairs_of(expected), atol=0.012)
    np.testing.assert_array_equal(SparseGraph(propensity=10 * r).propensity, SparseGraph(propensity=r).propensity)


def test_hubs_are_drawn_and_act_on_the_odds() -> None:
    size, kappa = 6, 3.0
    found = draws(SparseGraph(2.0, hubs=kappa, **WIDE), size, 30_000)
    hubs = found["gene_propensity"]
    assert hubs.shape == (30_000, size)
    assert accepted(hubs, stats.gamma(kappa, scale=1 / kappa))
    row, col = torch.triu_indices(size, size, 1)
    logits = found["gene_log_odds"][:, None] + hubs[:, row].log() + hubs[:, col].log()
    is_edge = (pairs_of(found["precision"]).abs() > 5e-6).double()
    # calibrated in every band of probability, which independence of hubs would not be
    probability = logits.sigmoid()
    for low in (0.0, 0.2, 0.4, 0.6):
        band = (probability > low) & (probability < low + 0.2)
        assert float(is_edge[band].mean()) == pytest.approx(float(probability[band].mean()), abs=0.012)


def test_gaussian_and_laplace_graphs() -> None:
    found = draws(GaussianGraph(0.2), 6, 4000)
    assert accepted(found["gene_edge_scale"], stats.halfnorm(scale=0.2))
    unit = pairs_of(found["precision"]) / found["gene_edge_scale"][:, None]
    assert accepted(unit, stats.norm())
    assert not accepted(unit, stats.norm(scale=1.05))
    weights = pairs_of(draws(LaplaceGraph(0.08), 6, 4000)["precision"])
    assert accepted(weights, stats.laplace(scale=0.08))
    assert not accepted(weights, stats.laplace(scale=0.084))


def test_log_density_of_a_sparse_graph_by_hand() -> None:
    size = 4
    known = torch.tensor([[0.0, 1.0, -1.0, 0.5], [1.0, 0, 0, 0], [-1.0, 0, 0, 0], [0.5, 0, 0, 0]])
    r = torch.tensor([2.0, 1.0, 0.5, 0.5], **DOUBLE)
    graph = SparseGraph(1.5, 0.3, log_odds=known, propensity=r, hubs=2.0).double()
    trace = poutine.trace(graph.sample).get_trace("gene", size)
    value = {name: site["value"] for name, site in trace.nodes.items() if site["type"] == "sample"}
    eta, tau, hubs = value["gene_log_odds"], value["gene_slab_precision"], value["gene_propensity"]
    total = dist.Normal(math.log(1.5 / 3), 0.15).log_prob(eta)
    total = total + dist.Gamma(torch.tensor(10.0, **DOUBLE), torch.tensor(10 * 0.09, **DOUBLE)).log_prob(tau)
    total = total + dist.Gamma(torch.tensor(2.0, **DOUBLE), torch.tensor(2.0, **DOUBLE)).log_prob(hubs).sum()
    pair = 0
    for i in range(size):
        for k in range(i + 1, size):
            logit = eta + known[i, k] + (r[i] * r[k] / r.mean() ** 2 * hubs[i] * hubs[k]).log()
            weight = value["gene_edges"][pair]
            slab = dist.Normal(torch.tensor(0.0, **DOUBLE), tau**-0.5).log_prob(weight)
            spike = dist.Normal(torch.tensor(0.0, **DOUBLE), 0.005).log_prob(weight)
            pi = logit.sigmoid()
            total = total + torch.logaddexp(pi.log() + slab, (1 - pi).log() + spike)
            pair += 1
    torch.testing.assert_close(trace.log_prob_sum(), total)


def test_spectral_graphs_are_flat_and_fixed_ones_have_no_sites() -> None:
    spectral = SpectralGraph().double()
    some = {"cell_precision": torch.randn(4, 4, **DOUBLE)}
    trace = poutine.trace(poutine.condition(spectral.sample, some)).get_trace("cell", 4)
    assert torch.equal(trace.nodes["_RETURN"]["value"], some["cell_precision"])
    assert float(trace.log_prob_sum()) == 0.0
    assert not spectral.proper
    assert FixedGraph(3).proper
    fixed = FixedGraph(np.diag([1.0, 2.0, 3.0]))
    trace = poutine.trace(fixed.sample).get_trace("cell", 3)
    assert not [n for n, s in trace.nodes.items() if s["type"] == "sample"]
    assert torch.equal(FixedGraph(3).double().sample("cell", 3), torch.eye(3, **DOUBLE))


# --- names, settings, refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["cell", "gene"])
def test_every_site_with_an_event_has_dims(axis: str) -> None:
    for graph in (SparseGraph(hubs=3.0), GaussianGraph(), LaplaceGraph()):
        trace = poutine.trace(graph.sample).get_trace(axis, 5)
        for name, site in trace.nodes.items():
            if site["type"] == "sample":
                assert name.startswith(axis)
                assert len(graph.site_dims(axis).get(name, ())) == site["fn"].event_dim, name
    assert SpectralGraph().site_dims(axis) == {f"{axis}_precision": (axis, f"{axis}_other")}


def test_settings_come_back() -> None:
    rng = np.random.default_rng(0)
    pairs = rng.normal(size=(5, 5))
    graphs = [
        SparseGraph(1.5, 0.3, spike_scale=0.01),
        SparseGraph(1.0, hubs=3.0, log_odds=pairs + pairs.T, propensity=rng.gamma(2.0, size=5)),
        GaussianGraph(0.3),
        LaplaceGraph(0.05),
        SpectralGraph(0.9, 0.1),
        SpectralGraph(),
        FixedGraph(np.eye(5) + 0.1),
        FixedGraph(4),
    ]
    assert {type(graph) for graph in graphs} == set(GRAPH_PRIORS.values())
    for graph in graphs:
        settings = json.loads(json.dumps(graph.settings()))
        again = GRAPH_PRIORS[settings["kind"]].from_settings(settings).double()
        again.load_state_dict(graph.state_dict())
        assert again.settings() == graph.settings()
        for name, value in graph.double().state_dict().items():
            assert torch.equal(again.state_dict()[name], value)


ASYMMETRIC = np.array([[0.0, 1.0], [2.0, 0.0]])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: SparseGraph(0.0), "expected_degree"),
        (lambda: SparseGraph(math.nan), "expected_degree"),
        (lambda: SparseGraph(slab_scale=-1.0), "slab_scale"),
        (lambda: SparseGraph(spike_scale=math.inf), "spike_scale"),
        (lambda: SparseGraph(hubs=0.0), "hubs"),
        (lambda: SparseGraph(log_odds=ASYMMETRIC), "asymmetric"),
        (lambda: SparseGraph(log_odds=np.zeros((2, 3))), "square"),
        (lambda: SparseGraph(log_odds=np.full((2, 2), np.nan)), "finite"),
        (lambda: SparseGraph(log_odds=np.full((2, 2), -np.inf)), "finite"),
        (lambda: SparseGraph(propensity=[1.0, 0.0]), "positive"),
        (lambda: SparseGraph(propensity=[1.0, math.inf]), "positive"),
        (lambda: SparseGraph(propensity=np.ones((2, 2))), "one a node"),
        (lambda: GaussianGraph(0.0), "scale"),
        (lambda: LaplaceGraph(-0.1), "scale"),
        (lambda: SpectralGraph(1.0), "shrink"),
        (lambda: SpectralGraph("some"), "shrink"),
        (lambda: SpectralGraph(0.5, -1.0), "ridge"),
        (lambda: SpectralGraph(0.5, math.nan), "ridge"),
        (lambda: FixedGraph(ASYMMETRIC), "asymmetric"),
        (lambda: FixedGraph(np.full((2, 2), np.inf)), "finite"),
        (lambda: FixedGraph(np.ones(3)), "square"),
        (lambda: SparseGraph(2.0).check("cell", 3), "expected_degree"),
        (lambda: SparseGraph(log_odds=np.zeros((4, 4))).check("cell", 5), "log_odds of 4 nodes; wanted 5"),
        (lambda: SparseGraph(propensity=np.ones(6)).check("gene", 5), "propensity of 6 nodes; wanted 5"),
        (lambda: FixedGraph(np.eye(4)).check("gene", 5), "gene graph: found a precision of 4 nodes; wanted 5"),
    ],
)
def test_bad_knowledge_is_refused(build: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        build()


def test_knowledge_may_be_lists_arrays_integers_or_tensors() -> None:
    for values in ([[0, 1], [1, 0]], np.array([[0, 1], [1, 0]]), torch.tensor([[0, 1], [1, 0]])):
        assert torch.equal(known_pairs(values), torch.tensor([[0.0, 1.0], [1.0, 0.0]], **DOUBLE))
    for values in ([1, 3], np.array([1, 3], dtype=np.float32), torch.tensor([1, 3])):
        assert torch.equal(known_nodes(values), torch.tensor([0.5, 1.5], **DOUBLE))
    wanted = torch.tensor([[1.0, 0.5], [0.5, 1.0]], requires_grad=True)
    assert not known_pairs(wanted).requires_grad
