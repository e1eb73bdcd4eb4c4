"""Simulated mixtures of archetypal DAGs: the truth that rides along is the truth."""

import networkx as nx
import numpy as np
import pytest
import torch
import xarray as xr

from embergraph.data import validate
from embergraph.datasets.simulated import simulated_notmad
from embergraph.models.parts.errors import DataError
from embergraph.models.parts.projection import is_acyclic, project


def acyclic_union(networks: np.ndarray) -> bool:
    return nx.is_directed_acyclic_graph(nx.from_numpy_array((networks != 0).any(0), create_using=nx.DiGraph))


def test_expression_solves_the_structural_equations_with_the_stated_noise() -> None:
    data = validate(simulated_notmad(3, num_cells=4000, num_genes=6, noise_scale=2.0))
    x, w = data["expression"].to_numpy(), data["true_networks"].to_numpy()
    noise = x - np.einsum("na,nab->nb", x, w)
    assert np.abs(noise.mean(0)).max() < 4 * 2 / np.sqrt(4000)
    np.testing.assert_allclose(np.cov(noise.T), 4 * np.eye(6), atol=4 * 4 * np.sqrt(2 / 4000))
    # The noise of a cell does not depend on its covariates, whose linear part explains none of it.
    correlation = np.corrcoef(noise.T, data["covariates"].to_numpy().T)[:6, 6:]
    assert np.abs(correlation).max() < 4 / np.sqrt(4000)


def test_shared_order_mixes_archetypes_on_the_simplex() -> None:
    data = simulated_notmad(0, num_cells=300)
    z, archetypes, w = (data[name].to_numpy() for name in ("true_mixture", "true_archetypes", "true_networks"))
    assert (z > 0).all()
    np.testing.assert_allclose(z.sum(1), 1.0)
    np.testing.assert_allclose(w, np.einsum("nk,kab->nab", z, archetypes), atol=1e-14)
    assert acyclic_union(archetypes)
    assert z.std(0).min() > 0.05
    weights = np.abs(archetypes[archetypes != 0])
    assert weights.min() >= 0.5
    assert weights.max() <= 1.5


def test_conflicting_orders_turn_edges_and_every_network_is_the_projected_mixture() -> None:
    data = simulated_notmad(0, num_cells=300, num_archetypes=4, num_covariates=8, orders="conflict")
    archetypes, w = data["true_archetypes"].to_numpy(), data["true_networks"].to_numpy()
    assert is_acyclic(torch.as_tensor(archetypes)).all()
    assert not acyclic_union(archetypes)
    assert not acyclic_union(w)
    assert is_acyclic(torch.as_tensor(w)).all()
    mixture = np.einsum("nk,kab->nab", data["true_mixture"].to_numpy(), archetypes)
    np.testing.assert_array_equal(w, project(torch.as_tensor(mixture)).networks.numpy())
    assert ((w != 0).any(0) & (w != 0).any(0).T).any()


def test_interactions_are_products_of_covariates_and_leave_other_data_as_they_were() -> None:
    data = simulated_notmad(0, num_cells=400, interactions=True)
    C = data["covariates"].to_numpy()
    logits = 0.5 * np.log(data["true_mixture"].to_numpy())
    logits -= logits.mean(1, keepdims=True)
    additive = np.concatenate([np.ones((400, 1)), C, C**2], 1)
    products = np.stack([C[:, a] * C[:, b] for a in range(4) for b in range(a + 1, 4)], 1)
    for features, exact in ((additive, False), (np.concatenate([additive, products], 1), True)):
        left = logits - features @ np.linalg.lstsq(features, logits, rcond=None)[0]
        assert (np.abs(left).max() < 1e-9) == exact
    np.testing.assert_array_equal(C, simulated_notmad(0, num_cells=400)["covariates"])
    with pytest.raises(DataError, match="interactions: found 1 covariate"):
        simulated_notmad(0, num_covariates=1, interactions=True)


@pytest.mark.parametrize("orders", ["shared", "conflict"])
def test_expected_number_of_edges_is_the_number_of_genes(orders: str) -> None:
    edges = [
        int(
            (
                simulated_notmad(seed, num_cells=2, num_genes=12, num_archetypes=10, orders=orders)["true_archetypes"]
                != 0
            ).sum()
        )
        for seed in range(40)
    ]
    per_archetype = np.asarray(edges) / 10
    assert abs(per_archetype.mean() - 12) < 4 * np.sqrt(12 / 400)


def test_low_temperature_puts_cells_near_vertices() -> None:
    sharpness = [
        float(simulated_notmad(1, temperature=t)["true_mixture"].max("archetype").mean()) for t in (0.05, 0.5, 5.0)
    ]
    assert sharpness[0] > 0.9 > sharpness[1] > 0.5 > sharpness[2]


def test_the_seed_decides_everything_and_global_state_is_left_alone() -> None:
    np.random.seed(0)  # noqa: NPY002  # the caller's global state, which must not move
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002  # as above
    first, again, other = simulated_notmad(5), simulated_notmad(5), simulated_notmad(6)
    assert np.array_equal(before[0], np.random.get_state()[1])  # noqa: NPY002  # as above
    assert torch.equal(before[1], torch.get_rng_state())
    xr.testing.assert_identical(first, again)
    assert not np.allclose(first["expression"], other["expression"])
    assert first.attrs["seed"] == 5
    assert first.attrs["orders"] == "shared"


def test_names_and_dims() -> None:
    data = simulated_notmad(0, num_cells=20, num_genes=5, num_archetypes=2, num_covariates=3)
    assert dict(data.sizes) == {"cell": 20, "gene": 5, "covariate": 3, "regulator": 5, "target": 5, "archetype": 2}
    for dim in ("regulator", "target"):
        assert np.array_equal(data[dim], data["gene"])
    assert data["true_networks"].dims == ("cell", "regulator", "target")
    one = data.isel(cell=[3])
    assert one["true_networks"].shape == (1, 5, 5)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_cells", 1),
        ("num_genes", 1),
        ("num_archetypes", 0),
        ("num_covariates", 0),
        ("temperature", 0.0),
        ("noise_scale", np.inf),
        ("orders", "mixed"),
    ],
)
def test_refuses_settings_out_of_range(setting: str, value: float | str) -> None:
    with pytest.raises(DataError, match=setting):
        simulated_notmad(0, **{setting: value})
