"""Simulations of MED-MAGMA, and the model with known graphs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from med_magma_models import (
    DOUBLE,
    M,
    N,
    P,
    kronecker,
    proper,
    traced,
    values_of,
)
from pyro import poutine

import embergraph as eg
from embergraph.datasets import simulated_matrix
from embergraph.models import (
    MEDMAGMA,
    FlatScales,
    GaussianGraph,
    SpectralGraph,
    StudentScales,
)
from embergraph.models.parts.graph_priors import pairs_of


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


# --- simulation ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("num_replicates", [None, M])
@pytest.mark.parametrize("shared", [False, True])
def test_simulated_data_and_truth(num_replicates: int | None, shared: bool) -> None:
    model = MEDMAGMA(N, P, num_replicates, shared_scales=shared, **proper())
    data = model.simulate(seed=4)
    outer = () if num_replicates is None else ("replicate",)
    own = () if shared else outer
    assert data["expression"].dims == (*outer, "cell", "gene")
    assert data["true_log_u"].dims == (*own, "cell")
    assert data["true_log_v"].dims == (*own, "gene")
    assert data["true_log_omega"].dims == own
    assert data["true_cell_precision"].dims == ("cell", "cell_other")
    for name in ("true_log_u", "true_log_v"):
        np.testing.assert_allclose(data[name].sum(data[name].dims[-1]), 0.0, atol=1e-5)
    smallest = [np.linalg.eigvalsh(data[f"true_{axis}_precision"].values)[0] for axis in ("cell", "gene")]
    assert sum(smallest) > 0
    again = model.simulate(seed=4)
    xr.testing.assert_identical(data, again)
    assert not np.allclose(data["expression"], model.simulate(seed=5)["expression"])
    assert MEDMAGMA.for_data(data).num_replicates == num_replicates


def test_simulated_matrices_have_the_law_of_their_truth() -> None:
    """Whitened by the true scales and the true Omega the entries are standard normal."""
    model = MEDMAGMA(N, P, 400, **proper()).double()
    data = model.simulate(seed=1)
    Omega = kronecker(*(torch.as_tensor(data[f"true_{axis}_precision"].values, **DOUBLE) for axis in ("cell", "gene")))
    scales = data["true_log_u"] + data["true_log_v"] - 0.5 * data["true_log_omega"]
    X = (data["expression"] * np.exp(-scales)).transpose("replicate", "cell", "gene").values.reshape(400, -1)
    white = torch.as_tensor(X, **DOUBLE) @ torch.linalg.cholesky(Omega)
    assert float(white.square().mean()) == pytest.approx(1.0, abs=4 * math.sqrt(2 / white.numel()))
    covariance = torch.cov(white.T)
    assert float((covariance - torch.eye(N * P, **DOUBLE)).abs().max()) < 0.3
    wrong = (data["expression"]).values.reshape(400, -1)
    assert abs(float(np.square(wrong).mean()) - 1) > 0.2


def test_simulation_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    MEDMAGMA(N, P, **proper()).simulate(seed=3)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "missing",
    [
        {"cell_scales": FlatScales()},
        {"overall_prior": None},
        {"gene_graph": SpectralGraph(), "cell_graph": SpectralGraph()},
    ],
)
def test_improper_priors_are_not_simulated(missing: dict[str, Any]) -> None:
    with pytest.raises(eg.SchemaError, match="simulate: found a flat prior"):
        MEDMAGMA(N, P, **proper(**missing)).simulate()


def test_priors_outside_of_the_cone_are_said_to_be() -> None:
    wild = GaussianGraph(50.0)
    with pytest.raises(eg.NumericalError, match="positive definite"):
        MEDMAGMA(N, P, **proper(cell_graph=wild, gene_graph=wild)).simulate()


# --- known graphs ----------------------------------------------------------------------------------------------------
def test_given_graphs_leave_the_rest_as_it_is() -> None:
    truth = simulated_matrix(N, P, num_replicates=M, seed=3)
    Psi = [torch.as_tensor(truth[f"true_{axis}_precision"].values) for axis in ("cell", "gene")]
    model = MEDMAGMA(N, P, M, zeros="structural", shared_scales=True, **proper(cell_scales=StudentScales())).double()
    given = model.given(*Psi).double()
    D = torch.as_tensor(truth["expression"].values)
    values = values_of(traced(given, expression=D))
    assert {"log_u", "log_v", "log_omega", "tau_u", "tau_v", "stretch_u", "expression"} == set(values)
    assert given.zeros == "structural"
    assert given.shared_scales
    assert given.overall_prior is model.overall_prior
    both = {**values, "cell_edges": pairs_of(Psi[0]), "gene_edges": pairs_of(Psi[1])}
    for axis in ("cell", "gene"):
        both |= {
            f"{axis}_log_odds": torch.tensor(-1.0, **DOUBLE),
            f"{axis}_slab_precision": torch.tensor(90.0, **DOUBLE),
        }
    whole = poutine.trace(poutine.condition(model, both)).get_trace(D)
    part = poutine.trace(poutine.condition(given, values)).get_trace(D)
    hyper = [n for n in whole.nodes if n.startswith(("cell_", "gene_"))]
    whole.compute_log_prob()
    graphs = sum(whole.nodes[name]["log_prob"].sum() for name in hyper)
    torch.testing.assert_close(whole.log_prob_sum() - graphs, part.log_prob_sum())
    assert MEDMAGMA(N, P, structure="independent_cells").given(torch.eye(N), Psi[1]).omega_structure == "sum"
