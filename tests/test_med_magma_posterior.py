"""What the posterior of MED-MAGMA says: graphs, intervals, names, densities, reports."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from med_magma_fits import FAMILIES, data_of, fitted

import embergraph as eg
from embergraph.methods._med_magma_graphs import EdgeLaw, edge_law
from embergraph.models import (
    MEDMAGMA,
    FixedGraph,
)


@pytest.fixture(scope="module")
def several() -> tuple[Any, xr.Dataset]:
    data = data_of(20, 25, 8).drop_vars(["cell_other", "gene_other"], errors="ignore")
    return fitted(data), data


def test_quantiles_and_probabilities_are_those_of_the_spike_and_slab() -> None:
    pi = np.array([[0.0, 0.3, 0.97, 0.999], [0.02, 0.5, 1.0, 0.9]])
    mean = np.array([[0.2, 0.3, -0.4, 0.1], [0.3, 0.0, 0.2, -0.05]])
    sd, scale = np.full_like(mean, 0.12), np.full_like(mean, -0.5)
    law = EdgeLaw(pi, mean, sd, scale)
    where = (np.repeat([0, 1], 4), np.tile(np.arange(4), 2))
    draws = law.draw(where, 200_000, 0).reshape(-1, 2, 4)
    np.testing.assert_allclose(law.expected(), draws.mean(0), atol=2e-3)
    for level in (0.05, 0.2, 0.5, 0.8, 0.95):
        wanted = np.quantile(draws, level, axis=0)
        np.testing.assert_allclose(law.quantile(level), wanted, atol=4e-3)
    for threshold in (0.02, 0.05, 0.2):
        np.testing.assert_allclose(law.exceeds(threshold), (np.abs(draws) > threshold).mean(0), atol=5e-3)
    wrong = EdgeLaw(pi, mean, 1.2 * sd, scale)
    assert np.abs(wrong.quantile(0.05) - np.quantile(draws, 0.05, axis=0)).max() > 0.01
    assert law.quantile(0.5)[0, 0] == 0.0
    assert law.quantile(0.05)[1, 0] == 0.0


def test_graphs_obey_their_definition(several: Any) -> None:
    fit, _ = several
    found = fit.graphs(threshold=0.1, interval=0.8)
    for axis in ("cell", "gene"):
        pieces = {
            name: found[f"{axis}_{name}"]
            for name in ("partial_correlation", "lower", "upper", "edge_probability", "score", "precision")
        }
        for name, values in pieces.items():
            assert values.dims == (axis, f"{axis}_other")
            np.testing.assert_allclose(values, values.values.T, atol=1e-12, err_msg=name)
            assert np.isfinite(values).all()
            if name != "precision":
                assert not np.diag(values).any()
        assert (pieces["lower"] <= pieces["upper"]).all()
        assert ((pieces["edge_probability"] >= 0) & (pieces["edge_probability"] <= 1)).all()
        assert (abs(pieces["partial_correlation"]) <= 1).all()
        np.testing.assert_array_equal(found[f"{axis}_other"], found[axis])
    assert found.attrs["threshold"] == 0.1
    assert found.attrs["interval"] == 0.8
    law = edge_law(fit, "cell")
    Psi = {axis: np.asarray(found[f"{axis}_precision"]) for axis in ("cell", "gene")}
    d = np.diag(Psi["gene"]).mean()
    np.testing.assert_allclose(law.scale[2, 5], -1 / np.sqrt((Psi["cell"][2, 2] + d) * (Psi["cell"][5, 5] + d)))


def test_edge_probability_falls_with_the_threshold(several: Any) -> None:
    fit, _ = several
    last = None
    for threshold in (0.0, 0.01, 0.05, 0.2, 0.9):
        now = fit.graphs(threshold=threshold)["gene_edge_probability"]
        assert last is None or bool((now <= last + 1e-15).all())
        last = now
    assert float(last.max()) < 0.01
    np.testing.assert_allclose(
        fit.graphs(threshold=0.0)["cell_edge_probability"], fit.guide.edges.state().row.probability, atol=1e-12
    )
    narrow, wide = (fit.graphs(interval=level) for level in (0.5, 0.99))
    assert bool((wide["cell_lower"] <= narrow["cell_lower"]).all())


def test_the_right_edges_are_found(several: Any) -> None:
    fit, data = several
    for score in ("auto", "probability", "z", "scaling", "compromise"):
        found = fit.graphs(score=score)
        for axis in ("cell", "gene"):
            truth = data[f"true_{axis}_precision"].values
            assert eg.undirected_scores.average_precision(found[f"{axis}_score"].values, truth) > 0.6, (axis, score)
    # and their sign and size
    partial = fit.graphs()["cell_partial_correlation"].values
    truth = -0.5 * data["true_cell_precision"].values
    real = (np.triu(truth, 1) != 0) & (fit.graphs()["cell_edge_probability"].values > 0.95)
    assert real.sum() > 5
    assert (np.sign(partial[real]) == np.sign(truth[real])).all()
    assert np.abs(partial[real] - truth[real]).max() < 0.15


def test_strongest_pairs(several: Any) -> None:
    fit, _ = several
    table, found = fit.strongest("cell", 7, threshold=0.1), fit.graphs(threshold=0.1)
    assert table.sizes == {"cell_edge": 7}
    score = found["cell_score"].values[np.triu_indices(20, 1)]
    np.testing.assert_allclose(table["score"], np.sort(score)[::-1][:7])
    for k in range(7):
        one, other = str(table["cell"][k].values), str(table["cell_other"][k].values)
        entry = found.sel(cell=one, cell_other=other)
        assert str(table["cell_edge"][k].values) == f"{one} -- {other}"
        for name in ("partial_correlation", "lower", "upper", "edge_probability", "score"):
            assert float(table[name][k]) == float(entry[f"cell_{name}"])
    with pytest.raises(eg.DataError, match="axis"):
        fit.strongest("sample")
    with pytest.raises(eg.DataError, match="num_edges"):
        fit.strongest("gene", 0)


@pytest.mark.parametrize(
    "options",
    [
        {"interval": 0.0},
        {"interval": 1.0},
        {"threshold": -0.1},
        {"threshold": 1.0},
        {"interval": np.nan},
        {"score": "best"},
    ],
)
def test_bad_questions_are_refused(several: Any, options: dict[str, Any]) -> None:
    with pytest.raises(eg.DataError):
        several[0].graphs(**options)


@pytest.mark.parametrize("interval", [0.0, 1.0, 1.7, np.nan])
def test_bad_intervals_of_scales_are_refused(several: Any, interval: float) -> None:
    with pytest.raises(eg.DataError, match="interval"):
        several[0].scales(interval=interval)


def test_names_survive() -> None:
    values = np.random.default_rng(1).normal(size=(6, 8))
    cells, genes = [f"AAC{i}-1" for i in range(6)], ["CD8A", "ACTB", "3", "β", "a b", "NKG7", "x_y", "Ünc"]
    data = eg.from_arrays(values, gene_names=genes, cell_names=cells)
    fit = fitted(data)
    found, scales = fit.graphs(), fit.scales()
    assert list(found["cell"].values) == list(found["cell_other"].values) == cells
    assert list(found["gene_other"].values) == genes
    assert list(scales["gene"].values) == genes
    tree = fit.posterior(data, 10, num_edges=3)
    assert list(tree["posterior"]["cell"].values) == cells
    assert list(tree["graphs"]["gene_other"].values) == genes
    numbers = data.assign_coords(cell=np.arange(6) * 10)
    assert list(fitted(numbers).graphs()["cell_other"].values) == list(range(0, 60, 10))
    bare = xr.Dataset({"expression": (("cell", "gene"), values)})
    assert "cell" not in fitted(bare).graphs().coords
    assert fitted(bare).strongest("cell", 2)["cell"].dtype.kind == "i"


def test_the_posterior_is_readable_by_arviz(several: Any) -> None:
    import arviz as az

    fit, data = several
    tree = fit.posterior(data, 200, num_edges=5)
    posterior = tree["posterior"]
    assert posterior["log_u"].dims == ("chain", "draw", "replicate", "cell")
    assert posterior["log_omega"].dims == ("chain", "draw", "replicate")
    assert posterior["cell_partial_correlation"].dims == ("chain", "draw", "cell_edge")
    assert {"posterior", "sample_stats", "log_likelihood", "observed_data", "graphs"} <= set(tree.children)
    scales = fit.scales()
    for name in ("log_u", "log_v"):
        sd = posterior[name].std(("chain", "draw"))
        np.testing.assert_allclose(sd, scales[f"{name}_sd"], rtol=0.3)
        np.testing.assert_allclose(posterior[name].mean(("chain", "draw")), scales[name], atol=0.2)
        np.testing.assert_allclose(posterior[name].sum(posterior[name].dims[-1]), 0.0, atol=1e-9)
    summary = az.summary(eg.to_arviz(tree), var_names=["cell_partial_correlation", "log_omega"], kind="stats")
    assert len(summary) == 5 + 8
    assert np.isfinite(summary["mean"]).all()
    first = fit.strongest("cell", 1)
    assert abs(summary["mean"].iloc[0] - float(first["partial_correlation"][0])) < 0.02
    assert "gauge" in posterior.attrs
    assert posterior.attrs["e_step"] == "laplace"
    again = fit.posterior(data, 200, num_edges=5)
    np.testing.assert_array_equal(posterior["log_v"], again["posterior"]["log_v"])


def test_draws_of_cells_and_genes_are_not_the_same_numbers() -> None:
    data = data_of(20, 20)
    tree = fitted(data).posterior(data, 50, num_edges=4)["posterior"]
    one, other = (tree[f"{axis}_partial_correlation"].values[0] != 0 for axis in ("cell", "gene"))
    assert not np.array_equal(one, other)


def test_new_matrices_prefer_the_right_graph() -> None:
    train, new = data_of(20, 25, 10, seed=1), data_of(20, 25, 10, seed=1)
    train, new = train.isel(replicate=slice(0, 6)), new.isel(replicate=slice(6, 10))
    right = fitted(train)
    model = MEDMAGMA.for_data(train)
    order = np.random.default_rng(0).permutation(20)
    shuffled = fitted(train.isel(cell=order))
    shuffled.template = right.template
    independent = fitted(train, cell_graph=FixedGraph(20), gene_graph=FixedGraph(25))
    densities = [fit.log_density(new).values for fit in (right, independent, shuffled)]
    assert densities[0].shape == (4,)
    assert (densities[0] > densities[1]).all()
    assert (densities[0] > densities[2]).all()
    assert model.num_replicates == 6
    single = fitted(data_of()).log_density(data_of())
    assert single.dims == ()
    assert np.isfinite(single)


def test_density_of_a_matrix_is_laplaces_integral() -> None:
    """On one free scale less than a grid can do: 2 x 2 has three, integrated by quadrature."""
    data = xr.Dataset({"expression": (("cell", "gene"), [[1.0, -0.4], [0.3, 0.8]])})
    cell, gene = np.array([[1.0, 0.3], [0.3, 1.0]]), np.array([[1.0, -0.2], [-0.2, 1.0]])
    found = []
    for sign in (1, -1):
        fit = fitted(data, cell_graph=FixedGraph(cell * np.array([[1, sign], [sign, 1]])), gene_graph=FixedGraph(gene))
        Psi = [fit.guide.cell_precision.numpy(), fit.guide.gene_precision.numpy()]
        steps = np.linspace(-7, 5, 121)
        a1, a2, b = np.meshgrid(steps, steps, steps, indexing="ij")
        scale = np.exp(np.stack([np.stack([a1, a1 + b]), np.stack([a2, a2 + b])]))
        Z = data["expression"].values[:, :, None, None, None] * scale
        q = sum(
            Psi[0][i, k] * (Z[i] * Z[k]).sum(0) + Psi[1][i, k] * (Z[:, i] * Z[:, k]).sum(0)
            for i in range(2)
            for k in range(2)
        )
        log_det = np.log(np.add.outer(np.linalg.eigvalsh(Psi[0]), np.linalg.eigvalsh(Psi[1]))).sum()
        exact = 0.5 * log_det + np.log(np.exp(-0.5 * q + 2 * a1 + 2 * a2 + 2 * b).sum())
        found.append((float(fit.log_density(data)), exact))
    assert found[0][0] - found[1][0] == pytest.approx(found[0][1] - found[1][1], abs=0.15)


REPORTED = ["edges", "spectral", "gaussian", "fixed"]


@pytest.mark.parametrize("family", REPORTED)
def test_reports_hold_numbers(family: str) -> None:
    data = data_of(m=2)
    fit = fitted(data, **FAMILIES[family])
    table = fit.report(data, data_of(m=2, seed=0), num_samples=60)
    for name, value in table.data_vars.items():
        assert np.isfinite(value), name
        assert value.attrs["meaning"]
    assert float(table["num_matrices"]) == 2
    assert "median_sd_log_u" in eg.as_text(table)
