"""The published simulations: networks, noise and covariates are what they say they are."""

import networkx as nx
import numpy as np
import pytest
import torch
import xarray as xr

from embergraph.data import validate
from embergraph.datasets import simulated_linear_contexts, simulated_published
from embergraph.datasets._structural_noise import solve
from embergraph.models.parts.errors import DataError
from embergraph.models.parts.projection import is_acyclic, project

KINDS = ["clusters", "archetypes", "none"]


def noise_of(data: xr.Dataset) -> np.ndarray:
    x, w = data["expression"].to_numpy(), data["true_networks"].to_numpy()
    return x - np.einsum("na,nab->nb", x, w)


def archetypes_of(data: xr.Dataset) -> np.ndarray:
    return data["true_archetypes"].to_numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_every_network_is_acyclic_and_the_same_seed_gives_the_same_data(kind: str) -> None:
    data = validate(simulated_published(4, kind=kind, num_cells=200))
    assert is_acyclic(torch.as_tensor(data["true_networks"].to_numpy())).all()
    xr.testing.assert_identical(data, simulated_published(4, kind=kind, num_cells=200))
    other = simulated_published(5, kind=kind, num_cells=200)
    assert not np.array_equal(data["true_networks"], other["true_networks"])
    assert data["covariates"].shape == (200, 16)
    assert data.attrs["kind"] == kind


def test_published_archetypes_have_six_edges_of_the_stated_size_and_stand_apart() -> None:
    for seed in range(4):
        archetypes = archetypes_of(simulated_published(seed, num_cells=2))
        assert archetypes.shape == (8, 6, 6)
        assert ((archetypes != 0).sum((1, 2)) == 6).all()
        weights = archetypes[archetypes != 0]
        assert np.abs(weights).min() >= 1
        assert np.abs(weights).max() <= 10
        assert abs(np.mean(weights > 0) - 0.5) < 0.35
        distance = ((archetypes[:, None] - archetypes[None]) ** 2).sum((-2, -1))
        assert distance[~np.eye(8, dtype=bool)].min() > 100


def test_clusters_are_projected_perturbed_archetypes_and_the_covariates_name_them() -> None:
    data = simulated_published(0, num_cells=400, covariate_signal=1.0)
    cluster, c = data["cluster"].to_numpy(), data["covariates"].to_numpy()
    np.testing.assert_array_equal(c[:, :8], np.eye(8)[cluster])
    u = c[:, 8:]
    assert np.abs(u).max() <= 0.2
    assert abs(u.std() - 0.2 / np.sqrt(3)) < 0.005
    np.testing.assert_allclose(data["true_mixture"], np.eye(8)[cluster] + u)
    mixture = np.einsum("nk,kab->nab", np.eye(8)[cluster] + u, archetypes_of(data))
    np.testing.assert_array_equal(data["true_networks"], project(torch.as_tensor(mixture)).networks.numpy())
    assert np.bincount(cluster, minlength=8).min() > 20


def test_pairs_of_archetypes_share_networks_and_covariates() -> None:
    data = simulated_published(1, kind="archetypes", num_cells=500, covariate_signal=1.0, num_covariates=10)
    z = data["true_mixture"].to_numpy()
    np.testing.assert_allclose(z.sum(1), 1.0)
    used = (z > 0).sum(1)
    assert set(used) == {1, 2}
    np.testing.assert_allclose(data["true_networks"], np.einsum("nk,kab->nab", z, archetypes_of(data)), atol=1e-12)
    # Covariates are the same mixture of one vector in the unit cube an archetype.
    vectors, _, rank, _ = np.linalg.lstsq(z, data["covariates"].to_numpy(), rcond=None)
    assert rank == 8
    np.testing.assert_allclose(z @ vectors, data["covariates"], atol=1e-12)
    assert vectors.min() >= 0
    assert vectors.max() <= 1


def test_an_acyclic_union_gives_one_order_for_all_mixtures() -> None:
    data = simulated_published(0, kind="archetypes", num_cells=300, acyclic_union=True)
    union = (archetypes_of(data) != 0).any(0)
    assert nx.is_directed_acyclic_graph(nx.from_numpy_array(union, create_using=nx.DiGraph))
    plain = archetypes_of(simulated_published(0, kind="archetypes", num_cells=300))
    assert not nx.is_directed_acyclic_graph(nx.from_numpy_array((plain != 0).any(0), create_using=nx.DiGraph))
    # Nothing is drawn anew, so pairs are as drawn: one in eight is an archetype with itself.
    assert np.mean((data["true_mixture"] > 0).sum("archetype") == 1) == pytest.approx(1 / 8, abs=0.06)


def test_without_archetypes_networks_are_unrelated_and_covariates_are_their_principal_components() -> None:
    data = simulated_published(2, kind="none", num_cells=400, covariate_signal=1.0, num_covariates=30)
    flat = data["true_networks"].to_numpy().reshape(400, -1)
    assert "true_mixture" not in data
    assert "true_archetypes" not in data
    assert len(np.unique(flat != 0, axis=0)) > 350
    c = data["covariates"].to_numpy()
    # 30 entries can be other than 0: all components hold everything, so distances between networks are kept.
    np.testing.assert_allclose(c @ c.T, (flat - flat.mean(0)) @ (flat - flat.mean(0)).T, atol=1e-8)
    assert (np.diff(c.var(0)) <= 1e-9).all()


def test_noise_of_covariates_has_the_published_spread() -> None:
    clean = simulated_published(3, kind="none", num_cells=4000, covariate_signal=1.0, num_covariates=4)
    noisy = simulated_published(3, kind="none", num_cells=4000, covariate_signal=0.75, num_covariates=4)
    added = (noisy["covariates"] - clean["covariates"]).to_numpy()
    variance = clean["covariates"].to_numpy().var(0)
    np.testing.assert_allclose(added.std(0), variance / 3, rtol=0.06)
    assert np.abs(added.mean(0) / added.std(0)).max() < 4 / np.sqrt(4000)


# mean, standard deviation and skewness of the noise at scale 1
MOMENTS = {
    "gauss": (0.0, 1.0, 0.0),
    "exponential": (1.0, 1.0, 2.0),
    "gumbel": (0.5772, np.pi / np.sqrt(6), 1.14),
    "uniform": (0.0, 1 / np.sqrt(3), 0.0),
}


@pytest.mark.parametrize("noise", MOMENTS)
def test_additive_noise_has_its_moments(noise: str) -> None:
    data = simulated_published(6, noise=noise, num_cells=4000, noise_scale=0.5)
    e = noise_of(data) / 0.5
    mean, sd, skewness = MOMENTS[noise]
    found = (e - e.mean()) / e.std()
    assert e.mean() == pytest.approx(mean, abs=4 * sd / np.sqrt(24000))
    assert e.std() == pytest.approx(sd, rel=0.04)
    assert np.mean(found**3) == pytest.approx(skewness, abs=0.15)
    assert np.abs(np.corrcoef(e.T) - np.eye(6)).max() < 4 / np.sqrt(4000)
    wrong = {name for name, (m, s, k) in MOMENTS.items() if abs(m - mean) + abs(s - sd) + abs(k - skewness) > 0.3}
    assert wrong == set(MOMENTS) - {noise}


@pytest.mark.parametrize(("noise", "mean"), [("logistic", lambda s: 1 / (1 + np.exp(-s))), ("poisson", np.exp)])
def test_binary_and_count_genes_have_their_conditional_means(noise: str, mean) -> None:
    network = np.zeros((3, 3))
    network[2, 0], network[2, 1], network[0, 1] = 0.8, -0.5, 0.4
    x = solve(np.random.default_rng(0), np.repeat(network[None], 8000, 0), noise, 1.0)
    assert np.array_equal(np.unique(x), [0, 1]) if noise == "logistic" else np.array_equal(x, np.floor(x))
    score = x @ network
    for gene in range(3):
        for value in np.unique(score[:, gene]):
            chosen = x[score[:, gene] == value, gene]
            if len(chosen) > 100:
                assert abs(chosen.mean() - mean(min(value, 10))) < 4.5 * chosen.std() / np.sqrt(len(chosen)) + 1e-3
    largest = solve(np.random.default_rng(1), np.repeat(50.0 * np.triu(np.ones((1, 6, 6)), 1), 50, 0), noise, 1.0)
    assert np.isfinite(largest).all()


def test_graph_types_have_their_shapes() -> None:
    options = {"num_cells": 2, "num_genes": 10, "num_archetypes": 6, "min_distance": 1.0}
    scale_free = archetypes_of(simulated_published(0, graph="scale_free", num_edges=20, **options)) != 0
    assert (scale_free.sum((1, 2)) == 2 * 8).all()  # two for every gene after the first two
    assert scale_free.sum(-1).max(-1).mean() > 4  # hubs regulate
    assert (scale_free.sum(-2) <= 2).all()
    bipartite = archetypes_of(simulated_published(0, graph="bipartite", num_edges=12, **options)) != 0
    assert (bipartite.sum((1, 2)) == 12).all()
    assert (bipartite.any(-1).sum(-1) <= 2).all()  # a fifth of the genes regulate,
    assert not (bipartite.any(-1) & bipartite.any(-2)).any()  # and nobody regulates them
    full = archetypes_of(simulated_published(0, graph="bipartite", num_edges=99, **options)) != 0
    assert (full.sum((1, 2)) == 2 * 8).all()


def test_four_genes_follow_the_covariate() -> None:
    data = validate(simulated_linear_contexts(3))
    c, w = data["covariates"].to_numpy()[:, 0], data["true_networks"].to_numpy()
    np.testing.assert_allclose(c, np.linspace(1, 2, 500))
    expected = np.zeros((500, 4, 4))
    expected[:, 0, 1], expected[:, 2, 1], expected[:, 3, 1], expected[:, 3, 2] = c - 2, 2 * c, c * c, c
    np.testing.assert_array_equal(w, expected)
    e = noise_of(data)
    assert np.abs(e).max() <= 0.1 + 1e-9
    np.testing.assert_allclose(e.std(0), 0.1 / np.sqrt(3), rtol=0.1)
    split = data["split"].to_numpy()
    assert set(c[split == "test"] // 0.1) <= {18.0}
    assert c[split == "validation"].min() >= 1.7
    assert c[split == "validation"].max() < 1.8
    assert ((split == "train") == ((c < 1.7) | (c >= 1.9))).all()
    xr.testing.assert_identical(data, simulated_linear_contexts(3))
    assert not np.array_equal(data["expression"], simulated_linear_contexts(4)["expression"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "x"}, "kind is 'x'"),
        ({"graph": "x"}, "graph is 'x'"),
        ({"noise": "x"}, "noise is 'x'"),
        ({"num_genes": 1}, "num_genes is 1"),
        ({"num_edges": 0}, "num_edges is 0"),
        ({"weight_range": (2.0, 1.0)}, "weight_range"),
        ({"noise_scale": 0.0}, "noise_scale is 0"),
        ({"min_distance": -1.0}, "min_distance is -1"),
        ({"covariate_signal": 0.0}, "covariate_signal is 0"),
        ({"num_covariates": 3}, "wanted None for kind 'clusters'"),
        ({"kind": "none", "num_covariates": 31}, "at most 30"),
        ({"weight_range": (0.1, 0.2), "num_cells": 2}, "found 1 archetypes at squared distances above 100"),
    ],
)
def test_refuses_settings_that_do_not_serve(options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        simulated_published(**options)


def test_refuses_too_few_cells_and_no_noise() -> None:
    with pytest.raises(DataError, match="num_cells is 19"):
        simulated_linear_contexts(num_cells=19)
    with pytest.raises(DataError, match="noise_scale is 0"):
        simulated_linear_contexts(noise_scale=0.0)
