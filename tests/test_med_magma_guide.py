"""The guide of MED-MAGMA: what one update does in every family of graphs."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from med_magma_guides import FAMILIES, both, data_of, expected_quadratic, expression_of, known, pair, swept, truth_of
from pyro import poutine

import embergraph as eg
from embergraph.guides.med_magma import FULL_UP_TO, MEDMAGMAGuide
from embergraph.guides.parts.edge_state import EdgePrior
from embergraph.guides.parts.scale_updates import ScaleProblem
from embergraph.guides.parts.sparse_edges import one_round, start
from embergraph.guides.parts.spectral import spectral_precision
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


@pytest.mark.parametrize("e_step", ["laplace", "mean_field"])
@pytest.mark.parametrize("family", ["edges", "spectral"])
@pytest.mark.parametrize("m", [None, 2])
def test_the_quadratic_form_has_its_exact_expectation(e_step: Any, family: str, m: int | None) -> None:
    """E[q] = N of every matrix when the scales were fitted, with the graphs that they were given."""
    data = data_of(6, 8, m)
    D = expression_of(data)
    for num_steps in (1, 4):
        model, guide, _ = swept(data, MEDMAGMA.for_data(data, **FAMILIES[family]), num_steps, e_step=e_step)
        graphs = guide.graphs_for_scales()
        with torch.no_grad():
            guide.fit_scales(ScaleProblem(model, D, guide.point), *graphs)
        for q in expected_quadratic(guide, graphs, D):
            assert q == pytest.approx(48, rel=1e-8)
        total = (graphs[0] * guide.S_cell).sum() + (graphs[1] * guide.S_gene).sum()
        assert float(total) == pytest.approx(48, rel=1e-8)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_an_update_touches_neither_the_model_nor_the_data(family: str) -> None:
    data = data_of()
    model = MEDMAGMA.for_data(data, **FAMILIES[family]).double()
    before, D = copy.deepcopy(model.state_dict()), expression_of(data)
    seen = D.clone()
    _, guide, bounds = swept(data, model, 3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(D, seen)
    assert all(math.isfinite(bound) for bound in bounds)
    for name, value in guide.named_buffers():
        if "log_odds" not in name:
            assert bool(torch.isfinite(value).all()), name
    for Psi in (guide.cell_precision, guide.gene_precision):
        assert torch.equal(Psi, Psi.mT) or float((Psi - Psi.mT).abs().max()) < 1e-12
    smallest = [float(torch.linalg.eigvalsh(Psi)[0]) for Psi in (guide.cell_precision, guide.gene_precision)]
    assert sum(smallest) > 0
    means = [float(Psi.diagonal().mean()) for Psi in (guide.cell_precision, guide.gene_precision)]
    np.testing.assert_allclose(means, 1.0, rtol=1e-10)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("m", [None, 3])
def test_the_guide_has_the_sites_of_its_model(family: str, m: int | None) -> None:
    for scales in ({}, {"cell_scales": StudentScales(), "gene_scales": NormalScales()}):
        data = data_of(6, 8, m)
        model, guide = pair(data, MEDMAGMA.for_data(data, **FAMILIES[family], **scales))
        D = expression_of(data)
        with pyro.validation_enabled(False):
            drawn = poutine.trace(guide).get_trace(D)
            scored = poutine.trace(poutine.replay(model, drawn)).get_trace(D)
        here = {n: s for n, s in drawn.nodes.items() if s["type"] == "sample" and not s["infer"].get("is_auxiliary")}
        there = {n: s for n, s in scored.nodes.items() if s["type"] == "sample" and not s["is_observed"]}
        assert set(here) == set(there)
        for name, site in here.items():
            assert site["value"].shape == there[name]["value"].shape, name


def test_first_moments_are_row_and_column_scaling() -> None:
    """At Psi = I the mode is Sinkhorn scaling of the squares: all rows and all columns of Z have the same norm."""
    data = data_of()
    _, guide, _ = swept(data, num_steps=1)
    np.testing.assert_allclose(guide.S_cell.diagonal(), 15 / 2, rtol=1e-7)
    np.testing.assert_allclose(guide.S_gene.diagonal(), 12 / 2, rtol=1e-7)
    values = np.linalg.eigvalsh(guide.S_cell)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(guide.S_gene)[-12:], atol=1e-8)


def test_graph_steps_are_those_of_the_edge_estimator() -> None:
    data = data_of()
    _, guide, _ = swept(data, num_steps=4)
    state = start(12, 15, EdgePrior(2.0), EdgePrior(2.0))
    for _ in range(4):
        state = one_round(state, guide.S_cell, guide.S_gene, 1, EdgePrior(2.0), EdgePrior(2.0))
    torch.testing.assert_close(guide.edges.state().row.probability, state.row.probability)
    torch.testing.assert_close(guide.gene_precision, state.col.precision)
    torch.testing.assert_close(guide.point.cell_log_odds, state.row.log_odds)
    torch.testing.assert_close(guide.point.gene_slab_precision, 1 / state.col.slab_variance)


def test_spectral_steps_are_those_of_the_spectral_estimator() -> None:
    data = data_of()
    _, guide, _ = swept(data, MEDMAGMA.for_data(data, **both(SpectralGraph, 0.8)), 3)
    found = spectral_precision(guide.S_cell, guide.S_gene, shrink=(0.8, 0.8))
    scale = 2 / (found.row_precision.diagonal().mean() + found.col_precision.diagonal().mean())
    torch.testing.assert_close(guide.cell_precision, scale * found.row_precision, rtol=1e-6, atol=1e-8)
    other = spectral_precision(guide.S_cell, guide.S_gene, shrink=(0.7, 0.7))
    assert not torch.allclose(guide.cell_precision, scale * other.row_precision, atol=1e-3)


def test_known_axes_are_held() -> None:
    data = data_of()
    cell, gene = truth_of(data)
    for options in (
        {"cell_graph": FixedGraph(cell)},
        {"gene_graph": FixedGraph(gene)},
        {"structure": "independent_genes"},
    ):
        model, guide, _ = swept(data, MEDMAGMA.for_data(data, **options), 5)
        for axis in ("cell", "gene"):
            graph = getattr(model, f"{axis}_graph")
            precision = getattr(guide, f"{axis}_precision")
            if isinstance(graph, FixedGraph):
                assert torch.equal(precision, graph.precision)
                assert torch.equal(guide.graphs_for_scales()[axis == "gene"], graph.precision)
            else:
                assert float(getattr(guide.edges.state(), "row" if axis == "cell" else "col").z.abs().max()) > 1


def test_a_known_axis_helps_the_other_one() -> None:
    """The other graph is fitted given the known one, not given independence."""
    data = data_of(20, 25)
    free, held = (
        swept(data, MEDMAGMA.for_data(data, **options), 8)[1]
        for options in ({}, {"cell_graph": FixedGraph(truth_of(data)[0])})
    )
    assert float((free.edges.state().col.z - held.edges.state().col.z).abs().max()) > 0.01


def test_both_graphs_known_is_the_scale_problem_alone() -> None:
    data = data_of()
    _, guide, bounds = swept(data, known(data), 4)
    assert bounds[-1] == pytest.approx(bounds[1], rel=1e-10)
    assert guide.change() == 0.0


@pytest.mark.parametrize(
    "options",
    [
        {"cell_graph": SparseGraph(), "gene_graph": SpectralGraph()},
        {"cell_graph": LaplaceGraph(), "gene_graph": GaussianGraph()},
        {"cell_graph": FixedGraph(12), "gene_graph": SpectralGraph()},
        {"structure": "independent_cells", "gene_graph": LaplaceGraph()},
    ],
)
def test_mixtures_of_families_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(eg.DataError, match=r"cell_graph, gene_graph: found .* wanted two SpectralGraph"):
        MEDMAGMAGuide(MEDMAGMA(12, 15, **options))


class Odd(GaussianGraph):
    """A prior without closed-form updates."""


def test_other_requests_without_closed_forms_are_refused() -> None:
    with pytest.raises(eg.DataError, match="structure: found 'product'"):
        MEDMAGMAGuide(MEDMAGMA(12, 15, structure="product"))
    with pytest.raises(eg.DataError, match="Odd"):
        MEDMAGMAGuide(MEDMAGMA(12, 15, cell_graph=Odd(), gene_graph=Odd()))
    with pytest.raises(eg.DataError, match="e_step: found 'exact'"):
        MEDMAGMAGuide(MEDMAGMA(12, 15), "exact")  # type: ignore[arg-type]


def test_the_e_step_is_chosen_by_size() -> None:
    assert MEDMAGMAGuide(MEDMAGMA(12, 15)).e_step == "laplace"
    assert FULL_UP_TO == 1500
    large = MEDMAGMAGuide(MEDMAGMA(2, 1499))
    assert large.e_step == "mean_field"
    assert large.scales.covariance == "mean_field"


def test_the_variational_e_step_has_the_best_bound() -> None:
    data = data_of(6, 8)
    found = {}
    for e_step in ("laplace", "variational", "mean_field"):
        _, _, bounds = swept(data, known(data), 6, e_step=e_step)
        found[e_step] = bounds[-1]
    assert found["variational"] > found["laplace"] > found["mean_field"]
