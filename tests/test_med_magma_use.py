"""What a first user of MED-MAGMA tripped over: names of knowledge, resuming, interrupts, predictions, truth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import xarray as xr

import embergraph as eg
from embergraph.guides.med_magma import MEDMAGMAGuide
from embergraph.models import MEDMAGMA, FixedGraph, NormalScales, SparseGraph

N, P = 14, 16
GENES = np.array([f"g{i}" for i in range(P)])


@pytest.fixture(scope="module")
def data():
    made = eg.datasets.simulated_matrix(N, P, num_replicates=3, seed=0)
    return made.assign_coords(cell=[f"c{i}" for i in range(N)], gene=GENES)


@pytest.fixture(scope="module")
def truth(data):
    return data["true_gene_precision"].values != 0


def scores(data, **options):
    return eg.fit(MEDMAGMA.for_data(data, **options), data, progress=False).graphs()["gene_score"].values


def shuffled():
    return np.random.default_rng(1).permutation(P)


@pytest.mark.parametrize("kind", ["frame", "array"])
def test_pairs_are_put_in_order_by_their_names(data, truth, kind):
    known, order = np.where(truth, 3.0, -3.0), shuffled()
    names, moved = GENES[order], known[order][:, order]
    if kind == "frame":
        named = pd.DataFrame(moved, index=names, columns=names)
    else:
        named = xr.DataArray(moved, dims=("gene", "gene_other"), coords={"gene": names, "gene_other": names})
    np.testing.assert_array_equal(
        scores(data, gene_graph=SparseGraph(log_odds=named)), scores(data, gene_graph=SparseGraph(log_odds=known))
    )
    by_place = scores(data, gene_graph=SparseGraph(log_odds=moved))
    assert not np.allclose(by_place, scores(data, gene_graph=SparseGraph(log_odds=known)))


def test_nodes_and_known_graphs_are_put_in_order_by_their_names(data, truth):
    degrees, order = truth.sum(0) - 0.5, shuffled()
    told = SparseGraph(propensity=pd.Series(degrees[order], index=GENES[order]))
    model = MEDMAGMA.for_data(data, gene_graph=told)
    np.testing.assert_allclose(model.gene_graph.propensity, degrees / degrees.mean())
    assert told.names  # the user's object stays as it was
    Psi = data["true_gene_precision"].values
    fixed = FixedGraph(pd.DataFrame(Psi[order][:, order], index=GENES[order], columns=GENES[order]))
    np.testing.assert_allclose(MEDMAGMA.for_data(data, gene_graph=fixed).gene_graph.precision, Psi)


def test_names_that_do_not_fit_are_refused(data):
    strangers = SparseGraph(propensity=pd.Series(np.ones(P), index=[f"x{i}" for i in range(P)]))
    with pytest.raises(eg.DataError, match="g0"):
        MEDMAGMA.for_data(data, gene_graph=strangers)
    with pytest.raises(eg.DataError, match="for_data"):
        MEDMAGMA(N, P, gene_graph=SparseGraph(propensity=pd.Series(np.ones(P), index=GENES)))
    with pytest.raises(eg.DataError, match="names"):
        MEDMAGMA.for_data(data.drop_vars("gene"), gene_graph=strangers)
    with pytest.raises(eg.DataError, match="propensity"):
        SparseGraph(propensity="hub")


def test_a_known_graph_ranks_its_own_pairs(data):
    found = eg.fit(
        MEDMAGMA.for_data(data, gene_graph=FixedGraph(data["true_gene_precision"].values)), data, progress=False
    ).graphs()
    truth = data["true_gene_precision"].values
    assert eg.undirected_scores.average_precision(found["gene_score"].values, truth) == 1.0


def test_densities_of_other_matrices_go_by_names(data):
    fit = eg.fit(MEDMAGMA.for_data(data), data, progress=False)
    with pytest.raises(eg.SchemaError, match="order"):
        fit.log_density(data.isel(gene=shuffled()))


def test_a_resumed_fit_ends_with_the_posterior_of_the_scales(data):
    whole = eg.fit(MEDMAGMA.for_data(data), data, num_steps=12, tolerance=0.0, progress=False)
    part = eg.fit(MEDMAGMA.for_data(data), data, num_steps=8, tolerance=0.0, progress=False)
    resumed = part.resume(data, 4, progress=False)
    xr.testing.assert_allclose(resumed.scales(), whole.scales(), atol=1e-10)
    assert "not settled" in repr(resumed)


def test_an_interrupt_of_the_last_phase_keeps_the_fit(data, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(MEDMAGMAGuide, "refine_scales", interrupt)
    fit = eg.fit(MEDMAGMA.for_data(data), data, num_steps=3, progress=False)
    assert fit.settings["interrupted"]
    assert np.isfinite(fit.scales()["log_u_sd"]).all()


def test_predictions_where_they_mean_something(data):
    single = data.isel(replicate=0, drop=True)
    fit = eg.fit(MEDMAGMA.for_data(single), single, progress=False)
    drawn = fit.predict(single, 200)["expression"]
    spread = np.log(np.abs(drawn)).mean(("chain", "draw", "gene"))
    assert np.corrcoef(spread, fit.scales()["log_u"])[0, 1] > 0.9
    with pytest.raises(eg.SchemaError, match="flat"):
        eg.fit(MEDMAGMA.for_data(data), data, progress=False).predict(data, 5)
    with pytest.raises(eg.SchemaError, match="start"):
        eg.mcmc(MEDMAGMA.for_data(single), single, num_warmup=2, num_draws=2, progress=False)


def test_a_simulation_tells_its_edges():
    proper = MEDMAGMA(
        N, P, cell_scales=NormalScales(), gene_scales=NormalScales(), overall_prior=dist.Normal(0.0, 1.0),
        gene_graph=SparseGraph(4.0),
    )  # fmt: skip
    made = proper.simulate(seed=0)
    edges, weights = made["true_gene_edge"].values, np.abs(made["true_gene_precision"].values)
    assert not edges.diagonal().any()
    assert 4 < edges.sum() < 0.6 * edges.size
    others = ~np.eye(P, dtype=bool)
    assert weights[edges].min() > weights[~edges & others].max()


def test_sampled_edges_replace_the_fast_ones(data):
    fit = eg.fit(MEDMAGMA.for_data(data), data, progress=False)
    sampled = fit.with_sampled_edges(20, num_burn_in=5)
    fast, exact = (found.graphs(threshold=0.0)["gene_edge_probability"] for found in (fit, sampled))
    assert 0 < float(abs(fast - exact).max()) < 0.6
    assert np.corrcoef(fast.values.ravel(), exact.values.ravel())[0, 1] > 0.8
    xr.testing.assert_identical(fit.scales(), sampled.scales())
    spectral = eg.models.SpectralGraph()
    other = eg.fit(MEDMAGMA.for_data(data, cell_graph=spectral, gene_graph=spectral), data, progress=False)
    with pytest.raises(eg.SchemaError, match="SparseGraph"):
        other.with_sampled_edges(5)


def test_sampling_wants_spike_and_slab_on_both_axes(data):
    model = MEDMAGMA.for_data(data, gene_graph=eg.models.GaussianGraph())
    with pytest.raises(eg.SchemaError, match="GaussianGraph"):
        eg.fit(model, data, num_steps=3, progress=False).with_sampled_edges(5)


def test_propensities_of_hubs_are_those_that_the_edges_show(data):
    hubs = SparseGraph(hubs=3.0)
    fit = eg.fit(MEDMAGMA.for_data(data, gene_graph=hubs), data, progress=False)
    degree = fit.guide.edges.state().col.probability.sum(1)
    r = fit.guide.point.gene_propensity
    np.testing.assert_allclose(r, (degree + 3) / (degree.mean() + 3))
    assert float(r.max()) > 1 > float(r.min())
