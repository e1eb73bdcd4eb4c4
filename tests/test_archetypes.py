"""Archetypes of low rank and among factors against explicit matrices; logits of cells."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro import poutine

import embergraph as eg
from embergraph.guides.parts.cell_logits import CellLogits
from embergraph.inference.messengers import isolated
from embergraph.models import NOTMAD, FactorNetworks, LowRankArchetypes
from embergraph.models.parts.archetypes import place
from embergraph.models.parts.projection import is_acyclic

ORDER = torch.tensor([2, 0, 3, 1])


def cells(num_cells: int = 30) -> xr.Dataset:
    rng = np.random.default_rng(0)
    return eg.from_arrays(rng.normal(size=(num_cells, 4)), rng.uniform(-1, 1, (num_cells, 2)))


def traced(model: NOTMAD, data, seed: int = 0):
    with isolated(seed, dtype=torch.double):
        return poutine.trace(model).get_trace(torch.as_tensor(data["covariates"].values))


def test_low_rank_archetypes_entry_by_entry() -> None:
    data = cells()
    model = NOTMAD.for_data(data, 3, order=ORDER.tolist(), archetypes=LowRankArchetypes(2)).double()
    nodes = traced(model, data).nodes
    L, R, W = (nodes[name]["value"] for name in ("loadings", "readout", "archetypes"))
    rank = ORDER.argsort()
    for k in range(3):
        for a in range(4):
            for b in range(4):
                wanted = L[k, a] @ R[:, b] if rank[a] < rank[b] else torch.zeros((), dtype=torch.double)
                torch.testing.assert_close(W[k, a, b], wanted)
    assert bool(is_acyclic((W != 0).any(0).double()))


def test_factor_networks_entry_by_entry_and_what_is_a_dag() -> None:
    data = cells()
    model = NOTMAD.for_data(data, 2, order=[1, 0], archetypes=FactorNetworks(2)).double()
    nodes = traced(model, data).nodes
    P = nodes["memberships"]["value"].softmax(0)
    torch.testing.assert_close(P.sum(0), torch.ones(4, dtype=torch.double))
    among = torch.zeros(2, 2, 2, dtype=torch.double)
    among[:, 1, 0] = nodes["edges"]["value"][:, 0]
    wanted = torch.stack([P.T @ f @ torch.diag(1 / P.sum(1)) @ P for f in among])
    torch.testing.assert_close(nodes["archetypes"]["value"], wanted)
    assert bool(is_acyclic(among).all())
    assert not bool(is_acyclic(wanted).any()), "among genes it is no DAG, and is not called one"
    sem = nodes["expression"]["fn"]
    x = nodes["expression"]["value"]
    i = 3
    inverse = torch.linalg.inv(torch.eye(4, dtype=torch.double) - sem.networks()[i])
    sigma = nodes["sigma"]["value"]
    dense = torch.distributions.MultivariateNormal(sem.intercepts()[i] @ inverse, sigma**2 * inverse.T @ inverse)
    torch.testing.assert_close(sem.log_prob(x)[i], dense.log_prob(x[i]))


def test_place_without_an_order_lists_edges_by_regulator_and_target() -> None:
    edges = torch.arange(1.0, 7.0)[None]
    wanted = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 4.0], [5.0, 6.0, 0.0]])
    torch.testing.assert_close(place(edges, 3, None)[0], wanted)


def test_low_rank_fits_where_networks_are_of_low_rank() -> None:
    """One regulator program shared by all archetypes: rank 1 needs a quarter of the numbers and is not worse."""
    rng = np.random.default_rng(2)
    n, p = 200, 6
    C = rng.uniform(-1, 1, (n, 1))
    left, right = np.zeros((2, p)), np.zeros(p)
    left[0, 0], left[1, 0], left[0, 1], left[1, 1] = 1.2, -0.4, -0.5, 0.9
    right[2:] = rng.choice([-1.0, 1.0], 4)
    Z = np.column_stack([1 / (1 + np.exp(-4 * C[:, 0])), 1 / (1 + np.exp(4 * C[:, 0]))])
    W = np.einsum("nk,ka,b->nab", Z, left, right)
    X = np.stack([np.linalg.solve((np.eye(p) - w).T, e) for w, e in zip(W, rng.normal(size=(n, p)), strict=True)])
    train, test = eg.split(eg.standardize(eg.from_arrays(X, C))[0])
    scores = {}
    for name, archetypes in (("dense", None), ("rank 1", LowRankArchetypes(1))):
        model = NOTMAD.for_data(train, 2, encoder="linear", archetypes=archetypes)
        fit = eg.fit(
            model, train, posterior="mean_field", num_restarts=2, num_steps=200, num_orders=1, num_guide_steps=150,
            progress=False,
        )  # fmt: skip
        scores[name] = float(fit.log_density(test).mean())
    assert scores["rank 1"] > scores["dense"] - 0.02, scores


def test_logits_of_cells_start_at_what_covariates_say() -> None:
    data = cells()
    model = NOTMAD.for_data(data, 3, mixture_scale=0.5).double()
    theta = {name: site["value"] for name, site in traced(model, data).nodes.items() if name.startswith("encoder_")}
    C, X = (torch.as_tensor(data[name].values) for name in ("covariates", "expression"))
    mean, spread = CellLogits(model.encoder, 4, 3)(C, X, theta)
    torch.testing.assert_close(mean, model.encoder(C, theta))
    torch.testing.assert_close(spread, torch.full_like(spread, 0.3001))


def test_cells_with_logits_of_their_own() -> None:
    """Cells of one covariate whose mixtures differ: tau_z finds the spread, and the two densities are kept apart."""
    rng = np.random.default_rng(1)
    n = 300
    C = rng.uniform(-1, 1, (n, 1))
    eta = np.column_stack([2 * C[:, 0], -2 * C[:, 0]]) + 1.5 * rng.normal(size=(n, 2))
    Z = np.exp(eta) / np.exp(eta).sum(1, keepdims=True)
    W = np.zeros((2, 3, 3))
    W[0, 0, 1], W[1, 0, 1], W[0, 1, 2], W[1, 1, 2] = 2.5, -2.5, -1.5, 1.5
    X = np.stack(
        [
            np.linalg.solve((np.eye(3) - np.tensordot(z, W, 1)).T, e)
            for z, e in zip(Z, rng.normal(size=(n, 3)), strict=True)
        ]
    )
    train, test = eg.split(eg.standardize(eg.from_arrays(X, C))[0])
    options = {
        "posterior": "mean_field", "num_restarts": 2, "num_steps": 200, "num_orders": 1, "num_guide_steps": 500,
        "progress": False,
    }  # fmt: skip
    found = {}
    for name, scale in (("none", None), ("tau", dist.HalfNormal(1.0))):
        model = NOTMAD.for_data(train, 2, encoder="linear", order=[0, 1, 2], mixture_scale=scale)
        found[name] = eg.fit(model, train, **options)
    predictive = {name: float(fit.log_density(test, num_samples=400).mean()) for name, fit in found.items()}
    described = {name: float(fit.conditioned_log_density(test).mean()) for name, fit in found.items()}
    assert predictive["tau"] > predictive["none"] + 0.02, predictive
    assert described["tau"] > predictive["tau"] + 0.05, "a density that has seen the cell is higher"
    assert described["none"] == pytest.approx(predictive["none"], abs=0.02)
    tau = found["tau"].posterior(train, 100)["posterior"]["mixture_scale"]
    assert 0.3 < float(tau.mean()) < 1.5, "mean field finds a spread, and one that is too small"
