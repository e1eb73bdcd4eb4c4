"""The plan of NOTMAD end to end on small simulations, and the questions that its fit answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

import embergraph as eg
from embergraph import baselines, metrics
from embergraph.models import NOTMAD

QUICK: dict[str, Any] = {
    "num_restarts": 3, "num_steps": 300, "num_orders": 3, "num_warmup": 60, "num_draws": 100, "num_guide_steps": 200,
    "progress": False,
}  # fmt: skip


def simulation(seed: int, scale: str = "common", **sizes: int) -> tuple[xr.Dataset, xr.Dataset]:
    raw = eg.datasets.simulated_notmad(seed, **({"num_cells": 400, "num_genes": 4, "num_covariates": 2} | sizes))
    data, transform = eg.standardize(raw, scale=scale)  # type: ignore[arg-type]
    data["true_networks"] = transform.networks_from_original(raw["true_networks"])
    return eg.split(data)


@pytest.fixture(scope="module", params=[0, 1])
def hmc(request: pytest.FixtureRequest) -> tuple[eg.NOTMADFit, xr.Dataset, xr.Dataset]:
    train, test = simulation(request.param)
    fit = eg.fit(NOTMAD.for_data(train, 3), train, posterior="hmc", **QUICK)
    return fit, train, test


@pytest.fixture(scope="module")
def mean_field() -> tuple[eg.NOTMADFit, xr.Dataset, xr.Dataset]:
    train, test = simulation(0)
    return eg.fit(NOTMAD.for_data(train, 3), train, posterior="mean_field", **QUICK), train, test


def test_recovery_beats_every_baseline(hmc: tuple[eg.NOTMADFit, xr.Dataset, xr.Dataset]) -> None:
    fit, train, test = hmc
    scores = metrics.evaluate(fit.networks(test), test)
    floor = metrics.evaluate(baselines.Oracle().fit(train).networks(test), test)["mse"]
    rivals = [baselines.ZeroGraph(), baselines.Population(), baselines.KMeansClustered(3)]
    rivals.append(baselines.VaryingCoefficientRidge())
    others = [metrics.evaluate(rival.fit(train).networks(test), test) for rival in rivals]
    zero = others[0]["mse"]
    assert (zero - scores["mse"]) / (zero - floor) > 0.9
    assert scores["mse"] < min(other["mse"] for other in others)
    assert scores["aupr"] > max(0.9, *(other["aupr"] for other in others))
    assert scores["deviation_correlation"] > 0.9


def coverage(fit: eg.NOTMADFit, test: xr.Dataset) -> xr.DataArray:
    networks = fit.networks(test, num_samples=300)
    return metrics.interval_coverage(networks["lower"], networks["upper"], test["true_networks"])["coverage"]


def test_intervals_cover(hmc: tuple[eg.NOTMADFit, xr.Dataset, xr.Dataset]) -> None:
    found = coverage(hmc[0], hmc[2])
    assert float(found.sel(edges="true")) > 0.75
    assert float(found.sel(edges="absent")) > 0.9


def test_intervals_of_a_wrong_model_do_not_cover() -> None:
    train, test = simulation(0)
    wrong = NOTMAD.for_data(train, 3, noise_prior=dist.LogNormal(-5.0, 0.01))  # noise a hundred times too small
    fit = eg.fit(wrong, train, posterior="hmc", **QUICK)
    assert float(coverage(fit, test).sel(edges="true")) < 0.5


def test_every_draw_is_acyclic(hmc: Any, mean_field: Any) -> None:
    for fit, _, test in (hmc, mean_field):
        networks = fit.networks(test, draws=True, num_samples=30)
        assert networks.attrs["share_acyclic"] == 1.0
        assert metrics.acyclic_share(networks["draws"].values, thresholds=(0.0,)).item() == 1.0
        assert metrics.acyclic_share(networks["network"].values, thresholds=(0.0,)).item() == 1.0


def test_networks_have_names_and_obey_their_definition(mean_field: Any) -> None:
    fit, _, test = mean_field
    networks = fit.networks(test, draws=True, num_samples=50, project_mean=False)
    assert networks["network"].dims == ("cell", "regulator", "target")
    assert list(networks["target"].values) == list(test["gene"].values)
    assert list(networks["cell"].values) == list(test["cell"].values)
    draws = networks["draws"]
    np.testing.assert_allclose(networks["network"], draws.mean("draw"), atol=1e-12)
    np.testing.assert_allclose(networks["lower"], np.quantile(draws, 0.05, axis=0, method="weibull"), atol=1e-12)
    np.testing.assert_allclose(networks["edge_probability"], (np.abs(draws) > 0.05).mean("draw"))
    assert "removed_mass" not in networks


def test_prediction_never_looks_at_expression(mean_field: Any) -> None:
    fit, _, test = mean_field
    blind = test[["covariates"]]
    seen = fit.networks(test)
    for given in (blind, test["covariates"].values, test["covariates"].to_pandas()):
        other = fit.networks(given)
        np.testing.assert_array_equal(other["network"].values, seen["network"].values)
    predicted = fit.predict(blind, 40)
    assert predicted["expression"].sizes["cell"] == test.sizes["cell"]
    np.testing.assert_array_equal(predicted["expression"], fit.predict(test, 40)["expression"])


def test_density_of_held_out_cells_is_that_of_the_draws(mean_field: Any) -> None:
    fit, _, test = mean_field
    few = test.isel(cell=slice(0, 5))
    density = fit.log_density(few, 40)
    networks = fit.networks(few, draws=True, num_samples=40)
    values = fit.global_draws(40)
    Z = fit.model.encoder(torch.as_tensor(few["covariates"].values), values).softmax(-1)
    b = (Z @ values["intercepts"].squeeze(1)).numpy()
    x = few["expression"].values
    mean = b + np.einsum("na,snab->snb", x, networks["draws"].values)
    sigma = values["sigma"].reshape(-1, 1, 1).numpy()
    logs = (-0.5 * ((x - mean) / sigma) ** 2 - np.log(sigma) - 0.5 * np.log(2 * np.pi)).sum(-1)
    np.testing.assert_allclose(density, np.logaddexp.reduce(logs, 0) - np.log(40))


def test_contrast_of_two_groups(mean_field: Any) -> None:
    fit, _, test = mean_field
    first, second = test.isel(cell=slice(0, 20)), test.isel(cell=slice(20, 50))
    contrast = fit.contrast(first, second, num_samples=60)
    draws = [fit.networks(g, draws=True, num_samples=60)["draws"].mean("cell") for g in (first, second)]
    difference = draws[0] - draws[1]
    np.testing.assert_allclose(contrast["difference"], difference.mean("draw"), atol=1e-10)
    np.testing.assert_allclose(contrast["upper"], np.quantile(difference, 0.95, axis=0, method="weibull"), atol=1e-10)
    same = fit.contrast(first, first)
    assert float(np.abs(same["difference"]).max()) == 0.0
    assert float(same["change_probability"].max()) == 0.0


def test_original_scale_explains_the_original_data() -> None:
    raw = eg.datasets.simulated_notmad(0, num_cells=300, num_genes=4, num_covariates=2)
    raw["expression"] = raw["expression"] * np.array([1.0, 5.0, 0.2, 1.0]) + np.array([3.0, -1.0, 0.0, 10.0])
    data, transform = eg.standardize(raw, scale="gene")
    train, test = eg.split(data)
    fit = eg.fit(NOTMAD.for_data(train, 2), train, posterior="mean_field", **QUICK)
    fitted, original = fit.networks(test), fit.networks(test, scale="original")
    residual = metrics.residuals(fitted, test) * transform.scale
    np.testing.assert_allclose(metrics.residuals(original, transform.invert(test)), residual, atol=1e-8)
    np.testing.assert_allclose(original["sigma"], fitted["sigma"] * transform.scale)


def test_graph_of_one_cell(mean_field: Any) -> None:
    fit, _, test = mean_field
    networks = fit.networks(test)
    cell = test["cell"].values[3]
    graph = eg.to_networkx(networks, cell=cell, threshold=0.1)
    assert nx.is_directed_acyclic_graph(graph)
    assert set(graph) == set(test["gene"].values)
    matrix = networks["network"].sel(cell=cell)
    assert graph.number_of_edges() == int((np.abs(matrix) > 0.1).sum())
    for a, b, about in graph.edges(data=True):
        assert about["weight"] == float(matrix.sel(regulator=a, target=b))
        assert {"lower", "upper", "edge_probability"} <= set(about)
    with pytest.raises(eg.DataError, match="cell"):
        eg.to_networkx(networks)
    with pytest.raises(eg.DataError, match="'nobody'"):
        eg.to_networkx(networks, cell="nobody")


def test_tree_of_the_posterior(hmc: Any) -> None:
    fit, train, _ = hmc
    tree = fit.posterior(train, 60)
    posterior = tree["posterior"]
    assert posterior["archetypes"].dims == ("chain", "draw", "archetype", "regulator", "target")
    assert posterior.sizes["chain"] == 3
    assert list(posterior["regulator"].values) == list(train["gene"].values)
    assert tree["posterior_predictive"]["expression"].dims == ("chain", "draw", "cell", "gene")
    assert tree["log_likelihood"]["expression"].dims == ("chain", "draw", "cell")
    assert posterior.attrs["routine"] == "order sampling + hmc"
    table = fit.report(train)
    assert float(table["share_acyclic"]) == 1.0
    assert {"network_rhat", "orders", "search_restarts_agree", "elpd_loo", "acceptance"} <= set(table.data_vars)
    assert "network_rhat" in eg.as_text(table)


def test_saved_draws_load_in_another_process(hmc: Any, tmp_path: Path) -> None:
    check_loading(hmc[0], hmc[2], tmp_path)


def test_a_saved_guide_loads_in_another_process(mean_field: Any, tmp_path: Path) -> None:
    check_loading(mean_field[0], mean_field[2], tmp_path)


def check_loading(fit: eg.NOTMADFit, test: xr.Dataset, tmp_path: Path) -> None:
    fit.save(tmp_path / "fit")
    test[["covariates"]].to_netcdf(tmp_path / "cells.nc", engine="h5netcdf")
    script = (
        "import sys, xarray as xr, embergraph as eg\n"
        "fit = eg.load(sys.argv[1] + '/fit')\n"
        "cells = xr.open_dataset(sys.argv[1] + '/cells.nc', engine='h5netcdf')\n"
        "fit.networks(cells, num_samples=30).to_netcdf(sys.argv[1] + '/networks.nc', engine='h5netcdf')\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, str(tmp_path)], check=True)
    with xr.open_dataset(tmp_path / "networks.nc", engine="h5netcdf") as loaded:
        np.testing.assert_array_equal(loaded["network"], fit.networks(test, num_samples=30)["network"])
        assert list(loaded["target"].values) == list(test["gene"].values)


def test_point_estimate_of_the_paper() -> None:
    train, test = simulation(0)
    fit = eg.fit(NOTMAD.for_data(train, 3, order=None, edge_prior=dist.Laplace(0.0, 0.3)), train, **QUICK)
    networks = fit.networks(test)
    assert networks.attrs["point_estimate"] == 1
    scores = metrics.evaluate(networks, test)
    assert scores["mse"] < metrics.evaluate(baselines.Population().fit(train).networks(test), test)["mse"]
    tree = fit.posterior(train, 20)
    assert "prior" not in tree.children
    assert tree["posterior"].attrs["normalised"] == 0
    assert int(fit.report(train)["num_cells"]) == train.sizes["cell"]
    assert fit.report(train).attrs["point_estimate"] == 1


@pytest.mark.parametrize(("encoder", "num_steps"), [("gp_joint", 300), ("nam", 800), ("linear", 300)])
def test_other_encoders_fit_and_save(encoder: str, num_steps: int, tmp_path: Path) -> None:
    train, test = simulation(1)
    options = QUICK | {"num_steps": num_steps, "num_restarts": 4}
    fit = eg.fit(NOTMAD.for_data(train, 2, encoder=encoder), train, posterior="mean_field", **options)
    networks = fit.networks(test)
    zero = metrics.evaluate(baselines.ZeroGraph().fit(train).networks(test), test)["mse"]
    assert metrics.evaluate(networks, test)["mse"] < zero
    assert float(networks["network"].std("cell").max()) > 0.05, "networks must differ between cells"
    fit.save(tmp_path)
    np.testing.assert_array_equal(eg.load(tmp_path).networks(test)["network"], networks["network"])


def test_a_changed_prior_changes_the_posterior() -> None:
    def laplace_with_learned_scale(shape: tuple[int, ...]) -> Any:
        tau = pyro.sample("tau", dist.HalfCauchy(0.3))
        return dist.Laplace(0.0, tau[..., None, None])

    train, test = simulation(0, num_cells=200, num_genes=4)
    priors = {"default": None, "tight": dist.Normal(0.0, 0.02), "learned": laplace_with_learned_scale}
    mass = {}
    for name, prior in priors.items():
        fit = eg.fit(NOTMAD.for_data(train, 2, edge_prior=prior), train, posterior="mean_field", **QUICK)
        mass[name] = float(np.abs(fit.networks(test)["network"]).mean())
    assert mass["tight"] < 0.5 * mass["default"]
    assert abs(mass["learned"] - mass["default"]) < 0.5 * mass["default"]


def test_one_network_for_constant_covariates() -> None:
    train, _ = simulation(0, num_cells=200, num_genes=4)
    train["covariates"] = xr.ones_like(train["covariates"])
    fit = eg.fit(NOTMAD.for_data(train, 2), train, posterior="mean_field", **QUICK)
    networks = fit.networks(train)["network"].values
    assert (networks == networks[0]).all()


def test_one_archetype_finds_the_edges_of_dagma() -> None:
    rng = np.random.default_rng(0)
    W = np.zeros((4, 4))
    W[0, 1], W[1, 2], W[0, 3] = 1.2, -0.9, 0.8
    X = rng.normal(size=(800, 4)) @ np.linalg.inv(np.eye(4) - W)
    data = eg.standardize(eg.from_arrays(X, rng.uniform(-1, 1, (800, 1))))[0]
    model = NOTMAD.for_data(data, 1, order=None, acyclicity=eg.models.AcyclicityFactor("logdet"))
    ours = eg.fit(model, data, **QUICK).networks(data.isel(cell=[0]))["network"][0].values
    theirs = baselines.dagma(np.cov(data["expression"].values.T))
    assert ((np.abs(ours) > 0.3) == (np.abs(theirs) > 0.3)).all()
    assert ((np.abs(ours) > 0.3) == (W != 0)).all()


def test_same_seed_same_fit_and_nothing_left_behind() -> None:
    train, test = simulation(0, num_cells=200, num_genes=4)
    other, _ = simulation(1, num_cells=160, num_genes=5)
    torch.manual_seed(5)
    state, store = torch.get_rng_state(), dict(pyro.get_param_store().items())
    model = NOTMAD.for_data(train, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one = eg.fit(model, train, posterior="mean_field", seed=3, **QUICK)
    eg.fit(NOTMAD.for_data(other, 3), other, posterior="mean_field", seed=3, **QUICK)
    two = eg.fit(model, train, posterior="mean_field", seed=3, **QUICK)
    three = eg.fit(model, train, posterior="mean_field", seed=4, **QUICK)
    networks = [fit.networks(test)["network"].values for fit in (one, two, three)]
    np.testing.assert_array_equal(networks[0], networks[1])
    assert (networks[0] != networks[2]).any()
    assert torch.equal(torch.get_rng_state(), state)
    assert dict(pyro.get_param_store().items()) == store
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda d: d.drop_vars("expression"), eg.SchemaError, "expression"),
        (lambda d: d.rename(expression="expresion"), eg.SchemaError, "expression"),
        (lambda d: d.transpose("gene", "covariate", "cell", ...), eg.SchemaError, "dims"),
        (lambda d: d.assign(expression=d["expression"] + 10.0), eg.DataError, "centred"),
        (lambda d: d.assign(expression=d["expression"].where(d["expression"] < 2)), eg.DataError, "NaN"),
    ],
)
def test_bad_data(change: Any, error: type[Exception], words: str) -> None:
    train, _ = simulation(0, num_cells=100, num_genes=4)
    with pytest.raises(error, match=words):
        eg.fit(NOTMAD.for_data(train, 2), change(train), **QUICK)


def test_bad_questions(mean_field: Any) -> None:
    fit, _, test = mean_field
    with pytest.raises(eg.DataError, match="interval"):
        fit.networks(test, interval=90)
    with pytest.raises(eg.DataError, match="no cells"):
        fit.contrast(test.isel(cell=[]), test)
    with pytest.raises(eg.DataError, match="gene: found"):
        fit.networks(test.assign_coords(gene=["a", "b", "c", "d"]))
    with pytest.raises(eg.DataError, match="wanted 2"):
        fit.networks(np.zeros((3, 5)))
    with pytest.raises(eg.DataError, match="NaN"):
        fit.networks(np.full((3, 2), np.nan))
    with pytest.raises(eg.DataError, match="columns"):
        fit.networks(test["covariates"].to_pandas().iloc[:, :1])
    with pytest.raises(eg.DataError, match="posterior"):
        eg.fit(fit.model, test, posterior="exact")
    with pytest.raises(eg.SchemaError, match="wanted one of"):
        eg.fit(lambda x: x, test)


@pytest.mark.parametrize("stage", ["search", "orders", "hmc"])
def test_ctrl_c_returns_what_is_fitted(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    train, test = simulation(0, num_cells=120)
    if stage == "search":
        calls = iter(range(100))
        monkeypatch.setattr(
            "embergraph.methods._notmad_search.climb",
            lambda score, order, **_: stop() if next(calls) > 1 else order,
        )
    else:
        monkeypatch.setattr(f"embergraph.methods._notmad_plan.{'climb' if stage == 'orders' else 'whitened_hmc'}", stop)
    fit = eg.fit(NOTMAD.for_data(train, 2), train, posterior="hmc", **QUICK | {"num_steps": 60})
    monkeypatch.undo()
    assert fit.settings["interrupted"]
    assert fit.settings["routine"] == "map"
    networks = fit.networks(test)
    assert networks.attrs["point_estimate"] == 1
    assert np.isfinite(networks["network"]).all()


@pytest.mark.parametrize("name", ["num_restarts", "num_steps", "num_orders", "num_draws", "num_guide_steps"])
def test_counts_must_be_counts(name: str) -> None:
    train, _ = simulation(0, num_cells=40)
    with pytest.raises(eg.DataError, match=name):
        eg.fit(NOTMAD.for_data(train, 2), train, **QUICK | {name: 0})
