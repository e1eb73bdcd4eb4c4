"""The plan of MED-MAGMA: invariances, what the posterior says, saving, and calibration of the scales."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

import embergraph as eg
from embergraph.datasets import simulated_matrix
from embergraph.guides.med_magma import MEDMAGMAGuide
from embergraph.guides.parts.published import published_em
from embergraph.methods._med_magma_graphs import EdgeLaw, edge_law
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

N, P, M = 12, 15, 3
FAMILIES: dict[str, dict[str, Any]] = {
    "edges": {},
    "hubs": {"cell_graph": SparseGraph(hubs=3.0), "gene_graph": SparseGraph(hubs=3.0)},
    "gaussian": {"cell_graph": GaussianGraph(), "gene_graph": GaussianGraph()},
    "mixed": {"cell_graph": SparseGraph(), "gene_graph": GaussianGraph()},
    "spectral": {"cell_graph": SpectralGraph(0.9), "gene_graph": SpectralGraph(0.9)},
    "automatic": {"cell_graph": SpectralGraph(), "gene_graph": SpectralGraph()},
    "laplace": {"cell_graph": LaplaceGraph(), "gene_graph": LaplaceGraph()},
    "fixed": {"cell_graph": FixedGraph(N), "gene_graph": FixedGraph(P)},
    "independent": {"structure": "independent_cells"},
}


def data_of(n: int = N, p: int = P, m: int | None = None, seed: int = 0, **options: Any) -> xr.Dataset:
    return simulated_matrix(n, p, num_replicates=m, seed=seed, **options)


def fitted(data: xr.Dataset, *, plan: dict[str, Any] | None = None, **options: Any) -> Any:
    return eg.fit(MEDMAGMA.for_data(data, **options), data, **{"num_steps": 14, "progress": False, **(plan or {})})


def graphs_close(found: xr.Dataset, wanted: xr.Dataset, tolerance: float = 1e-8) -> None:
    assert set(found) == set(wanted)
    for name in wanted:
        np.testing.assert_allclose(found[name].values, wanted[name].values, rtol=0, atol=tolerance, err_msg=str(name))


def changed(data: xr.Dataset, values: Any) -> xr.Dataset:
    return data.assign(expression=(data["expression"].dims, np.asarray(values)))


# --- invariances -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("m", [None, M])
def test_graphs_do_not_depend_on_scales_and_scales_follow(family: str, m: int | None) -> None:
    data = data_of(m=m)
    rng = np.random.default_rng(7)
    outer = () if m is None else (m,)
    log_a, log_b = rng.normal(0, 3, (*outer, N)), rng.normal(0, 3, (*outer, P))
    scaled = data["expression"].values * np.exp(log_a[..., :, None] + log_b[..., None, :])
    one, other = (fitted(d, **FAMILIES[family]) for d in (data, changed(data, scaled)))
    graphs_close(other.graphs(), one.graphs())
    first, second = one.scales(), other.scales()
    for name, moved in (("log_u", log_a), ("log_v", log_b)):
        centred = moved - moved.mean(-1, keepdims=True)
        np.testing.assert_allclose(second[name] - first[name], centred, atol=1e-7)
        np.testing.assert_allclose(second[f"{name}_sd"], first[f"{name}_sd"], atol=1e-8)
    overall = -2 * (log_a.mean(-1) + log_b.mean(-1))
    np.testing.assert_allclose(second["log_omega"] - first["log_omega"], overall, atol=1e-7)
    graphs_close(fitted(changed(data, scaled * 1e90), **FAMILIES[family]).graphs(), one.graphs())


def test_the_invariant_map_gives_the_same_graphs() -> None:
    data = data_of()
    mapped = changed(data, eg.matrices.quotient(data["expression"].values))
    graphs_close(fitted(mapped).graphs(), fitted(data).graphs())


def test_other_data_give_other_graphs() -> None:
    data = data_of()
    touched = data["expression"].values.copy()
    touched[0, 0] *= 1.5  # no longer row scale times column scale
    one, other = fitted(data).graphs(), fitted(changed(data, touched)).graphs()
    assert float(abs(one["cell_score"] - other["cell_score"]).max()) > 1e-3


@pytest.mark.parametrize("family", ["edges", "gaussian", "automatic", "laplace"])
@pytest.mark.parametrize("m", [None, M])
def test_signs_and_order_carry_over(family: str, m: int | None) -> None:
    data = data_of(m=m)
    rng = np.random.default_rng(3)
    e, f = rng.choice([-1.0, 1.0], N), rng.choice([-1.0, 1.0], P)
    rows, cols = rng.permutation(N), rng.permutation(P)
    one = fitted(data, **FAMILIES[family]).graphs()
    flipped = fitted(changed(data, data["expression"].values * e[:, None] * f), **FAMILIES[family]).graphs()
    moved = fitted(data.isel(cell=rows, gene=cols, cell_other=rows, gene_other=cols), **FAMILIES[family]).graphs()
    for axis, signs, order in (("cell", e, rows), ("gene", f, cols)):
        for name in ("precision", "partial_correlation"):
            wanted = one[f"{axis}_{name}"].values
            np.testing.assert_allclose(flipped[f"{axis}_{name}"], wanted * np.outer(signs, signs), atol=1e-8)
        for name in ("precision", "partial_correlation", "lower", "edge_probability", "score"):
            wanted = one[f"{axis}_{name}"].values[np.ix_(order, order)]
            np.testing.assert_allclose(moved[f"{axis}_{name}"], wanted, atol=1e-8, err_msg=name)
        for name in ("edge_probability", "score"):
            np.testing.assert_allclose(flipped[f"{axis}_{name}"], one[f"{axis}_{name}"], atol=1e-8)


@pytest.mark.parametrize("family", ["edges", "gaussian", "automatic", "laplace"])
def test_cells_and_genes_play_the_same_role(family: str) -> None:
    data = data_of()
    turned = xr.Dataset({"expression": (("cell", "gene"), data["expression"].values.T)})
    one, other = fitted(data, **FAMILIES[family]), fitted(turned, **FAMILIES[family])
    swap = {"cell": "gene", "gene": "cell"}
    first, second = one.graphs(), other.graphs()
    for axis in swap:
        for name in ("precision", "partial_correlation", "edge_probability", "score", "upper"):
            found, wanted = second[f"{swap[axis]}_{name}"].values, first[f"{axis}_{name}"].values
            np.testing.assert_allclose(found, wanted, atol=1e-8, err_msg=f"{axis} {name}")
    np.testing.assert_allclose(other.scales()["log_u"].values, one.scales()["log_v"].values, atol=1e-7)


@pytest.mark.parametrize("m", [M, 6])
def test_replicates_may_come_in_any_order(m: int) -> None:
    data = data_of(m=m)
    order = np.random.default_rng(0).permutation(m)
    one, other = fitted(data), fitted(data.isel(replicate=order))
    graphs_close(other.graphs(), one.graphs())
    np.testing.assert_allclose(other.scales()["log_u"].values, one.scales()["log_u"].values[order], atol=1e-8)


def test_one_replicate_is_a_matrix_and_copies_sharpen() -> None:
    data = data_of()
    single = fitted(data).graphs()
    graphs_close(fitted(data.expand_dims("replicate")).graphs(), single)
    three = fitted(xr.concat([data] * 3, "replicate", data_vars=["expression"])).graphs()
    assert float(three["cell_score"].max()) > 1.3 * float(single["cell_score"].max())


# --- what is reported ------------------------------------------------------------------------------------------------


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


# --- running ---------------------------------------------------------------------------------------------------------


LOAD = """
import sys, numpy as np, embergraph as eg, xarray as xr
fit = eg.load(sys.argv[1])
data = xr.load_dataset(sys.argv[2])
tree = fit.posterior(data, 20)
posterior = {k: v.values for k, v in tree["posterior"].data_vars.items()}
np.savez(sys.argv[3], **posterior, **{f"g_{k}": v.values for k, v in fit.graphs().data_vars.items()})
"""


def test_a_saved_fit_is_the_same_in_a_new_process(tmp_path: Path) -> None:
    data = data_of(m=2)
    options = {
        "cell_graph": FixedGraph(data["true_cell_precision"].values),
        "gene_graph": SparseGraph(propensity=np.arange(1.0, P + 1)),
    }
    fit = fitted(data, cell_scales=StudentScales(3.0), gene_scales=NormalScales(), **options)
    fit.save(tmp_path / "fit")
    data.drop_vars([n for n in data if n != "expression"]).to_netcdf(tmp_path / "data.nc")
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, *(str(tmp_path / n) for n in ("fit", "data.nc", "out.npz"))],
        check=True,
    )
    found, tree, graphs = np.load(tmp_path / "out.npz"), fit.posterior(data, 20)["posterior"], fit.graphs()
    for name, value in tree.data_vars.items():
        np.testing.assert_array_equal(found[str(name)], value.values, err_msg=str(name))
    for name, value in graphs.data_vars.items():
        np.testing.assert_array_equal(found[f"g_{name}"], value.values, err_msg=str(name))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_is_saved_and_loaded(family: str, tmp_path: Path) -> None:
    data = data_of()
    fit = fitted(data, plan={"num_steps": 3}, **FAMILIES[family])
    again = eg.load(fit.save(tmp_path))
    assert type(again) is eg.MEDMAGMAFit
    assert type(again.guide) is MEDMAGMAGuide
    xr.testing.assert_identical(again.graphs(), fit.graphs())
    xr.testing.assert_identical(again.scales(), fit.scales())
    assert float(again.log_density(data)) == float(fit.log_density(data))


def test_other_kinds_of_numbers_give_the_same_fit() -> None:
    counts = np.round(100 * np.random.default_rng(0).normal(size=(N, P)))
    wanted = fitted(xr.Dataset({"expression": (("cell", "gene"), counts)}))
    for dtype in (np.int32, np.int64, np.float32):
        data = xr.Dataset({"expression": (("cell", "gene"), counts.astype(dtype))})
        fit = fitted(data)
        graphs_close(fit.graphs(), wanted.graphs(), 1e-10)
        tree = fit.posterior(data, 10)
        np.testing.assert_allclose(
            tree["posterior"]["log_u"], wanted.posterior(data, 10)["posterior"]["log_u"], atol=1e-10
        )
        assert fit.scales()["log_u"].dtype == np.float64


def test_nothing_is_printed_and_no_random_state_is_touched(capfd: pytest.CaptureFixture[str]) -> None:
    data = data_of(m=2)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before, of_numpy = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    fit = fitted(data)
    fit.posterior(data, 10)
    fit.graphs()
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(of_numpy, np.random.get_state()[1])  # noqa: NPY002
    out = capfd.readouterr()
    assert out.out == ""
    assert out.err == ""
    assert not dict(pyro.get_param_store())
    assert torch.get_default_dtype() == torch.float32


def test_fits_are_deterministic_and_models_are_left_alone() -> None:
    data = data_of()
    model = MEDMAGMA.for_data(data)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, other = (eg.fit(model, data, progress=False, num_steps=8, seed=seed) for seed in (0, 1))
    xr.testing.assert_identical(one.graphs(), other.graphs())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def interrupted_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    update = MEDMAGMAGuide.update

    def breaks(self: Any, model: Any, inputs: Any, now: int) -> float:
        if now == step:
            raise KeyboardInterrupt
        return update(self, model, inputs, now)

    monkeypatch.setattr(MEDMAGMAGuide, "update", breaks)


@pytest.mark.parametrize("family", ["edges", "automatic"])
def test_ctrl_c_keeps_the_graphs_and_a_checkpoint_goes_on(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_of(m=5)
    options: dict[str, Any] = {"num_steps": 14, "tolerance": 0.0, "progress": False}
    model = MEDMAGMA.for_data(data, **FAMILIES[family])
    whole = eg.fit(model, data, **options)
    short = eg.fit(model, data, **{**options, "num_steps": 11})
    file = tmp_path / "run.ckpt"
    with monkeypatch.context() as patch:
        interrupted_at(patch, 11)
        stopped = eg.fit(model, data, checkpoint=file, **options)
    assert stopped.settings["interrupted"]
    assert file.exists()
    graphs_close(stopped.graphs(), short.graphs(), 0.0)
    assert float(stopped.scales()["log_u_sd"].min()) > 0
    resumed = eg.fit(model, data, checkpoint=file, **options)
    xr.testing.assert_identical(resumed.graphs(), whole.graphs())
    xr.testing.assert_identical(resumed.scales(), whole.scales())
    assert not file.exists()
    with monkeypatch.context() as patch:
        interrupted_at(patch, 11)
        eg.fit(model, data, checkpoint=file, **options)
    with pytest.raises(eg.LoadError):
        eg.fit(model, data_of(m=5, seed=9), checkpoint=file, **options)


def test_acceleration_where_it_can_be_had() -> None:
    data = data_of()
    plans = [{"accelerate": kind, "num_steps": 60, "tolerance": 1e-12} for kind in (None, "squarem")]
    plain, fast = (fitted(data, plan=plan, **FAMILIES["spectral"]) for plan in plans)
    graphs_close(fast.graphs(), plain.graphs(), 1e-4)
    with pytest.raises(eg.DataError, match="accelerate"):
        fitted(data, plan={"accelerate": "squarem"})


def test_the_published_estimator_can_be_asked_for() -> None:
    data = data_of()
    options: dict[str, Any] = {"cell_graph": SpectralGraph(0.0), "gene_graph": SpectralGraph(0.0)}
    fit = eg.fit(MEDMAGMA.for_data(data, **options), data, e_step="published", num_steps=3, progress=False)
    values = torch.as_tensor(eg.matrices.published_quotient(data["expression"].values))
    found = published_em(values, max_iter=3, stop_tol=1e-6)
    wanted = 2 * found.row_precision / (found.row_precision.diagonal().mean() + found.col_precision.diagonal().mean())
    off = ~np.eye(N, dtype=bool)
    np.testing.assert_allclose(fit.graphs()["cell_precision"].values[off], wanted.numpy()[off], rtol=1e-8, atol=1e-10)
    ours = fitted(data, **FAMILIES["spectral"]).graphs()
    assert float(abs(ours["cell_precision"] - fit.graphs()["cell_precision"]).max()) > 0.01
    with pytest.raises(eg.DataError, match="SpectralGraph"):
        fitted(data, plan={"e_step": "published"})


def test_an_overall_prior_is_honoured_or_refused() -> None:
    data = data_of(6, 8)
    free = float(fitted(data).scales()["log_omega"])
    with suppress(eg.DataError):  # refused
        fit = fitted(data, overall_prior=dist.Normal(free - 3.0, 0.01))
        assert float(fit.scales()["log_omega"]) == pytest.approx(free - 3.0, abs=0.1)


# --- knowledge and strength ------------------------------------------------------------------------------------------


def test_knowledge_of_the_graph_helps() -> None:
    gains = []
    for seed in range(4):
        data = data_of(30, 40, seed=seed)
        truth = data["true_cell_precision"].values
        degrees = (truth != 0).sum(0) - 1.0
        plain = fitted(data).graphs(score="probability")
        told = fitted(data, cell_graph=SparseGraph(propensity=degrees)).graphs(score="probability")
        gains.append([eg.undirected_scores.average_precision(g["cell_score"].values, truth) for g in (plain, told)])
    plain, told = np.array(gains).T
    assert (told - plain).mean() > 0.05
    known = np.where(truth != 0, 6.0, -6.0)
    certain = fitted(data, cell_graph=SparseGraph(log_odds=known)).graphs(score="probability")
    assert eg.undirected_scores.average_precision(certain["cell_score"].values, truth) > 0.95


def test_the_scale_of_a_gaussian_prior_counts() -> None:
    data = data_of(20, 25)
    tight, loose = (
        fitted(data, cell_graph=GaussianGraph(s), gene_graph=GaussianGraph(s)).graphs() for s in (0.001, 1.0)
    )
    assert float(abs(tight["cell_partial_correlation"]).max()) < 0.5 * float(
        abs(loose["cell_partial_correlation"]).max()
    )


def test_the_scale_of_a_laplace_prior_counts() -> None:
    data = data_of(20, 25, 5)
    edges = [
        int(
            (
                abs(fitted(data, cell_graph=LaplaceGraph(s), gene_graph=LaplaceGraph(s)).graphs()["cell_precision"])
                > 1e-9
            ).sum()
        )
        for s in (0.02, 0.08)
    ]
    assert 20 <= edges[0] < edges[1] < 400


# --- calibration -----------------------------------------------------------------------------------------------------


def coverage(fit: Any, data: xr.Dataset) -> tuple[int, int]:
    found = fit.scales(interval=0.9)
    inside = total = 0
    for name in ("log_u", "log_v"):
        truth = data[f"true_{name}"].values
        inside += int(((found[f"{name}_lower"].values <= truth) & (truth <= found[f"{name}_upper"].values)).sum())
        total += truth.size
    return inside, total


def test_intervals_of_scales_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    """90 % intervals at 50 x 51, one matrix, eight seeds; without the widening they are too narrow."""
    problems = [simulated_matrix(50, 51, seed=seed) for seed in range(8)]
    plan = {"plan": {"num_steps": 12, "e_step": "laplace"}}
    counts = np.array([coverage(fitted(data, **plan), data) for data in problems]).sum(0)
    with monkeypatch.context() as patch:
        patch.setattr("embergraph.guides.med_magma.variance_inflation", lambda *args: (1.0, 1.0))
        narrow = np.array([coverage(fitted(data, **plan), data) for data in problems]).sum(0)
    with_widening, without = (inside / total for inside, total in (counts, narrow))
    assert 0.82 < with_widening < 0.96
    assert without < with_widening - 0.01
