"""The MED-MAGMA model: its density, shapes, simulation, and inference by routines that know nothing of it."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_mean
from torch import Tensor

import embergraph as eg
from embergraph.datasets import simulated_matrix
from embergraph.inference.density import LogDensity
from embergraph.inference.hmc import whitened_hmc
from embergraph.models import (
    MEDMAGMA,
    FixedGraph,
    FlatScales,
    GaussianGraph,
    LaplaceGraph,
    NormalScales,
    SparseGraph,
    SpectralGraph,
    StudentScales,
)
from embergraph.models.parts.graph_priors import pairs_of

N, P, M = 6, 8, 3
DOUBLE = {"dtype": torch.double}


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def proper(**options: Any) -> dict[str, Any]:
    # few weak edges, so that a draw is seldom outside of the cone
    graph = {"slab_scale": 0.1, "expected_degree": 1.0}
    made = {
        "cell_graph": SparseGraph(**graph), "gene_graph": SparseGraph(**graph),
        "cell_scales": NormalScales(), "gene_scales": NormalScales(), "overall_prior": dist.Normal(0.0, 1.5),
    }  # fmt: skip
    return {**made, **options}


def normal(value: Tensor, scale: Any) -> Tensor:
    return dist.Normal(torch.zeros((), **DOUBLE), torch.as_tensor(scale, **DOUBLE)).log_prob(value).sum()


def zero_sum_normal(value: Tensor, tau: Tensor) -> Tensor:
    basis = torch.linalg.svd(torch.eye(len(value), **DOUBLE) - 1 / len(value)).U[:, : len(value) - 1]
    return normal(basis.T @ value, tau)


def dense_log_prob(D: Tensor, log_u: Tensor, log_v: Tensor, Omega: Tensor) -> Tensor:
    """Density of D from that of vec(X), with the Jacobian entry by entry."""
    X = D * (-log_u[:, None] - log_v).exp()
    law = torch.distributions.MultivariateNormal(torch.zeros(D.numel(), **DOUBLE), precision_matrix=Omega)
    return law.log_prob(X.reshape(-1)) - (log_u[:, None] + log_v).sum()


def kronecker(Psi_1: Tensor, Psi_2: Tensor, structure: str = "sum") -> Tensor:
    n, p = len(Psi_1), len(Psi_2)
    if structure == "product":
        return torch.kron(Psi_1, Psi_2)
    return torch.kron(Psi_1, torch.eye(p, **DOUBLE)) + torch.kron(torch.eye(n, **DOUBLE), Psi_2)


def traced(model: MEDMAGMA, seed: int = 0, **inputs: Any) -> Any:
    """A draw whose Omega is positive definite."""
    for attempt in range(100):
        torch.manual_seed(1000 * seed + attempt)
        try:
            with pyro.validation_enabled(False):
                return poutine.trace(model).get_trace(**inputs)
        except eg.NumericalError:
            continue
    raise AssertionError("no draw")


def values_of(trace: Any) -> dict[str, Tensor]:
    return {n: s["value"] for n, s in trace.nodes.items() if s["type"] == "sample" and n != "replicate"}


# --- density ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", ["sum", "product"])
@pytest.mark.parametrize("shared", [False, True])
def test_log_density_by_hand(structure: Any, shared: bool) -> None:
    options = proper(cell_graph=GaussianGraph(0.1), gene_scales=StudentScales(5.0))
    model = MEDMAGMA(N, P, M, structure=structure, shared_scales=shared, **options).double()
    trace = traced(model)
    v = values_of(trace)
    HalfNormal, zero, one = dist.HalfNormal, torch.zeros((), **DOUBLE), torch.ones((), **DOUBLE)
    total = HalfNormal(0.1 * one).log_prob(v["cell_edge_scale"]) + normal(v["cell_edges"], v["cell_edge_scale"])
    eta, tau = v["gene_log_odds"], v["gene_slab_precision"]
    total = total + dist.Normal(math.log(1.0 / (P - 1)) + zero, 0.15).log_prob(eta)
    total = total + dist.Gamma(10 * one, 0.1 * one).log_prob(tau)
    for weight in v["gene_edges"]:
        slab, spike = normal(weight, tau**-0.5), normal(weight, 0.005)
        total = total + torch.logaddexp(eta.sigmoid().log() + slab, (-eta).sigmoid().log() + spike)
    Psi_1, Psi_2 = torch.eye(N, **DOUBLE), torch.eye(P, **DOUBLE)
    for matrix, edges in ((Psi_1, v["cell_edges"]), (Psi_2, v["gene_edges"])):
        row, col = np.triu_indices(len(matrix), 1)
        matrix[row, col] = matrix[col, row] = edges
    total = total + HalfNormal(one).log_prob(v["tau_u"]) + HalfNormal(one).log_prob(v["tau_v"])
    for k in range(1 if shared else M):
        own = {name: v[name] if shared else v[name][k] for name in ("log_u", "log_v", "log_omega", "stretch_v")}
        total = total + normal(own["log_omega"], 1.5) + zero_sum_normal(own["log_u"], v["tau_u"])
        total = total + dist.InverseGamma(2.5 * one, 2.5 * one).log_prob(own["stretch_v"]).sum()
        scale = v["tau_v"] * own["stretch_v"].sqrt()
        of_sum = normal(own["log_v"].sum() / P**0.5, scale.square().mean().sqrt())
        total = total + normal(own["log_v"], scale) - of_sum
    Omega = kronecker(Psi_1, Psi_2, structure)
    for k in range(M):
        own = {name: v[name] if shared else v[name][k] for name in ("log_u", "log_v", "log_omega")}
        scaled = own["log_omega"].exp() * Omega
        total = total + dense_log_prob(v["expression"][k], own["log_u"], own["log_v"], scaled)
    torch.testing.assert_close(trace.log_prob_sum(), total)


def test_draws_on_a_tensor_axis_equal_the_trace() -> None:
    data = simulated_matrix(N, P, num_replicates=M, seed=1)
    inputs = {"expression": torch.as_tensor(data["expression"].values)}
    for options in (
        proper(),
        proper(cell_graph=LaplaceGraph(0.05), cell_scales=StudentScales()),
        proper(gene_graph=SparseGraph(1.0, 0.1, hubs=3.0)),
    ):
        for num_replicates, shared in ((M, False), (M, True), (None, False)):
            model = MEDMAGMA(N, P, num_replicates, shared_scales=shared, **options).double()
            given = inputs if num_replicates else {"expression": inputs["expression"][0]}
            traces = [traced(model, seed, **given) for seed in range(3)]
            density = LogDensity(model, given)
            values = {name: torch.stack([t.nodes[name]["value"] for t in traces]) for name in density.shapes}
            got = density(density.pack(values), jacobian=False)
            wanted = torch.stack([t.log_prob_sum() for t in traces])
            torch.testing.assert_close(got, wanted)
            assert float(got.std()) > 1


def test_structures_are_what_they_say() -> None:
    D = torch.as_tensor(simulated_matrix(N, P, seed=2)["expression"].values)
    Psi = torch.as_tensor(simulated_matrix(N, P, seed=3)["true_gene_precision"].values)
    cells = torch.as_tensor(simulated_matrix(N, P, seed=3)["true_cell_precision"].values)
    point = {
        "log_u": torch.zeros(N, **DOUBLE),
        "log_v": torch.zeros(P, **DOUBLE),
        "log_omega": torch.tensor(0.4, **DOUBLE),
    }
    eye = torch.eye(N, **DOUBLE), torch.eye(P, **DOUBLE)
    cases: list[tuple[dict[str, Any], Tensor]] = [
        ({"structure": "sum", "cell_graph": FixedGraph(cells), "gene_graph": FixedGraph(Psi)}, kronecker(cells, Psi)),
        (
            {"structure": "product", "cell_graph": FixedGraph(cells), "gene_graph": FixedGraph(Psi)},
            torch.kron(cells, Psi),
        ),
        ({"structure": "independent_cells", "gene_graph": FixedGraph(Psi)}, kronecker(eye[0], Psi)),
        ({"structure": "independent_genes", "cell_graph": FixedGraph(cells)}, kronecker(cells, eye[1])),
    ]
    found = []
    for options, Omega in cases:
        model = MEDMAGMA(N, P, **options).double()
        trace = poutine.trace(poutine.condition(model, point)).get_trace(D)
        wanted = dense_log_prob(D, point["log_u"], point["log_v"], math.exp(0.4) * Omega)
        torch.testing.assert_close(trace.log_prob_sum(), wanted)  # flat priors add nothing
        found.append(float(wanted))
    assert len({round(value, 6) for value in found}) == 4


def test_structural_zeros_have_no_jacobian() -> None:
    D = torch.as_tensor(simulated_matrix(N, P, seed=2, density=0.8)["expression"].values)
    assert 0 < int((D == 0).sum()) < 20
    log_u, log_v = torch.randn(N, **DOUBLE), torch.randn(P, **DOUBLE)
    point = {"log_u": log_u - log_u.mean(), "log_v": log_v - log_v.mean(), "log_omega": torch.tensor(0.0, **DOUBLE)}
    found = {}
    for zeros in ("gaussian", "structural"):
        model = MEDMAGMA(N, P, zeros=zeros, cell_graph=FixedGraph(N), gene_graph=FixedGraph(P)).double()
        found[zeros] = poutine.trace(poutine.condition(model, point)).get_trace(D).log_prob_sum()
    jacobian = (point["log_u"][:, None] + point["log_v"])[D == 0].sum()
    # with centred scales the whole Jacobian vanishes, and that of the zeros is left
    constant = 0.5 * math.log(2 * math.pi) * float((D == 0).sum())
    torch.testing.assert_close(found["structural"] - found["gaussian"], jacobian + constant)
    assert abs(float(jacobian)) > 0.1


def test_changed_priors_change_the_density() -> None:
    D = torch.as_tensor(simulated_matrix(N, P, seed=2)["expression"].values)
    model = MEDMAGMA(N, P, **proper()).double()
    other = MEDMAGMA(
        N, P, **proper(overall_prior=dist.StudentT(3.0, 0.0, 1.0), cell_scales=NormalScales(dist.Gamma(2.0, 4.0)))
    ).double()
    trace = traced(model, expression=D)
    values = {name: value for name, value in values_of(trace).items() if name != "expression"}
    again = poutine.trace(poutine.condition(other, values)).get_trace(D)
    tau, omega, one = values["tau_u"], values["log_omega"], torch.ones((), **DOUBLE)
    change = dist.Gamma(2 * one, 4 * one).log_prob(tau) - dist.HalfNormal(one).log_prob(tau)
    change = change + dist.StudentT(3 * one, 0 * one, one).log_prob(omega) - dist.Normal(0 * one, 1.5).log_prob(omega)
    torch.testing.assert_close(again.log_prob_sum() - trace.log_prob_sum(), change)


def test_a_prior_may_be_a_hierarchy() -> None:
    scales = NormalScales(
        lambda shape: dist.HalfNormal(pyro.sample("width", dist.HalfNormal(torch.tensor(1.0, **DOUBLE))))
    )
    model = MEDMAGMA(N, P, **proper(gene_scales=scales)).double()
    assert "width" in values_of(traced(model))
    assert model.settings() is None


# --- shapes and names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_replicates", [None, 1, M])
@pytest.mark.parametrize("shared", [False, True])
def test_shapes_of_sites(num_replicates: int | None, shared: bool) -> None:
    model = MEDMAGMA(N, P, num_replicates, shared_scales=shared, **proper(cell_scales=StudentScales())).double()
    values = values_of(traced(model))
    outer = () if num_replicates is None else (num_replicates,)
    own = () if shared else outer
    shapes = {
        "log_u": (*own, N), "log_v": (*own, P), "stretch_u": (*own, N), "log_omega": own, "expression": (*outer, N, P),
        "tau_u": (), "tau_v": (), "cell_edges": (N * (N - 1) // 2,), "gene_edges": (P * (P - 1) // 2,),
    }  # fmt: skip
    for name, shape in shapes.items():
        assert tuple(values[name].shape) == shape, name
        assert values[name].dtype == torch.double
    for name in ("log_u", "log_v"):
        assert float(values[name].sum(-1).abs().max()) < 1e-12


def test_every_site_has_dims_of_its_event() -> None:
    every = [
        proper(),
        proper(cell_graph=GaussianGraph(0.1), gene_graph=LaplaceGraph(0.05)),
        proper(cell_graph=SparseGraph(1.0, 0.1, hubs=2.0), gene_scales=StudentScales()),
    ]
    for options in every:
        model = MEDMAGMA(N, P, M, **options).double()
        dims = model.schema.site_dims
        for name, site in traced(model).nodes.items():
            if site["type"] == "sample" and name != "replicate":
                assert len(dims.get(name, ())) == site["fn"].event_dim, name
    assert MEDMAGMA(N, P).schema.inputs["expression"].dims == ("cell", "gene")
    assert MEDMAGMA(N, P, 1).schema.inputs["expression"].dims == ("replicate", "cell", "gene")
    assert MEDMAGMA(N, P).schema.labels == {"cell_other": "cell", "gene_other": "gene"}
    assert not MEDMAGMA(N, P).schema.normalised
    assert MEDMAGMA(N, P, **proper()).schema.normalised


def test_sizes_come_from_the_data() -> None:
    one, many = simulated_matrix(7, 9), simulated_matrix(7, 9, num_replicates=2)
    model = MEDMAGMA.for_data(many, shared_scales=True)
    assert (model.num_cells, model.num_genes, model.num_replicates, model.shared_scales) == (7, 9, 2, True)
    assert MEDMAGMA.for_data(one).num_replicates is None
    small = MEDMAGMA.for_data(eg.from_arrays(np.random.default_rng(0).normal(size=(2, 2))))
    assert small.cell_graph.expected_degree < 1


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: MEDMAGMA(1, 5), "num_cells"),
        (lambda: MEDMAGMA(5, 1), "num_genes"),
        (lambda: MEDMAGMA(5.0, 5), "num_cells"),
        (lambda: MEDMAGMA(5, 5, 0), "num_replicates"),
        (lambda: MEDMAGMA(5, 5, zeros="missing"), "zeros"),
        (lambda: MEDMAGMA(5, 5, structure="kronecker"), "structure"),
        (lambda: MEDMAGMA(5, 5, structure="independent_cells", cell_graph=SparseGraph()), "cell_graph"),
        (lambda: MEDMAGMA(5, 5, structure="independent_genes", gene_graph=SparseGraph()), "gene_graph"),
        (lambda: MEDMAGMA(5, 5, cell_graph="sparse"), "cell_graph"),
        (lambda: MEDMAGMA(5, 5, gene_graph=FixedGraph(6)), "gene graph"),
        (lambda: MEDMAGMA(5, 5, cell_graph=SparseGraph(4.0)), "cell graph"),
        (lambda: MEDMAGMA(5, 5, gene_graph=SparseGraph(log_odds=np.zeros((4, 4)))), "gene graph"),
        (lambda: MEDMAGMA(5, 5, cell_scales=dist.Normal(0.0, 1.0)), "cell_scales"),
        (lambda: MEDMAGMA(5, 5, overall_prior=dist.Normal(torch.zeros(3), 1.0)), "overall_prior"),
        (lambda: MEDMAGMA.for_data({"expression": np.ones((3, 3))}), "data: found dict"),
        (lambda: MEDMAGMA.for_data(xr.Dataset()), "expression"),
        (lambda: MEDMAGMA.for_data(simulated_matrix(5, 6).transpose("gene", "cell", ...)), "expression"),
    ],
)
def test_bad_options_are_refused(build: Any, words: str) -> None:
    with pytest.raises(eg.DataError, match=words):
        build()


def test_settings_rebuild_the_model() -> None:
    known = np.ones((P, P)) - np.eye(P)
    cases = [
        {},
        proper(),
        {"structure": "independent_cells", "zeros": "structural"},
        {"cell_graph": SpectralGraph(0.9), "gene_graph": SpectralGraph(), "shared_scales": True},
        proper(
            gene_graph=SparseGraph(log_odds=known, propensity=np.arange(1.0, P + 1), hubs=3.0),
            cell_scales=StudentScales(3.0),
        ),
        {
            "cell_graph": FixedGraph(np.eye(N) + 0.1),
            "gene_graph": GaussianGraph(),
            "cell_scales": NormalScales(dist.Gamma(2.0, 3.0)),
        },
    ]
    for options in cases:
        model = MEDMAGMA(N, P, M, **options)
        settings = json.loads(json.dumps(model.settings()))
        again = MEDMAGMA.from_settings(settings).double()
        again.load_state_dict(model.double().state_dict())
        assert again.settings() == model.settings()
        if model.proper:
            values = values_of(traced(model))
            for name, value in values_of(traced(again)).items():
                assert torch.equal(values[name], value)
    with pytest.raises(eg.LoadError, match="prior"):
        MEDMAGMA.from_settings({**MEDMAGMA(N, P).settings(), "cell_graph": {"kind": "system"}})


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


# --- routines that know nothing of the model -------------------------------------------------------------------------


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
