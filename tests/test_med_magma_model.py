"""The model of MED-MAGMA: its density by hand, shapes, names."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from med_magma_models import (
    DOUBLE,
    M,
    N,
    P,
    dense_log_prob,
    kronecker,
    normal,
    proper,
    traced,
    values_of,
    zero_sum_normal,
)
from pyro import poutine
from torch import Tensor

import embergraph as eg
from embergraph.datasets import simulated_matrix
from embergraph.inference.density import LogDensity
from embergraph.models import (
    MEDMAGMA,
    FixedGraph,
    GaussianGraph,
    LaplaceGraph,
    NormalScales,
    SparseGraph,
    SpectralGraph,
    StudentScales,
)


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


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
