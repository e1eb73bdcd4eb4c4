"""Posteriors as trees: shapes, names, densities, files and ArviZ."""

from __future__ import annotations

import json
from datetime import datetime

import arviz as az
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from matplotlib import pyplot as plt
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal

from embergraph.inference import svi, to_arviz, to_datatree
from embergraph.inference.export import storable
from embergraph.models.parts.errors import NumericalError, SchemaError

CELLS, GENES = [f"c{i}" for i in range(12)], ["A", "B", "C", "D", "E"]
Y = np.random.default_rng(0).normal(size=(12, 5))
DATA = xr.Dataset(
    {"y": (("cell", "gene"), Y), "size": ("cell", np.ones(12)), "reference": ("gene", np.arange(5))},
    {"cell": CELLS, "gene": pd.Categorical(GENES, categories=GENES[::-1]), "batch": ("cell", ["b"] * 12)},
)
QUICK = {"num_steps": 5, "progress": False}
EVENTS = {"shift": ("factor",), "loading": ("factor",), "score/z.1": ("factor",), "level": ("factor",)}


def model(y, size):
    """Two plates and every place that a site can have in them."""
    cells = pyro.plate("cell", y.shape[0], dim=-2)
    genes = pyro.plate("gene", y.shape[1], dim=-1)
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    shift = pyro.sample("shift", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with genes:
        loading = pyro.sample("loading", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with cells:
        score = pyro.sample("score/z.1", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("depth", dist.Normal(0.0, 1.0))
    pyro.deterministic("level", shift * 2 * scale.unsqueeze(-1), event_dim=1)
    pyro.deterministic("ratio", scale / 2)
    pyro.factor("nothing", 0 * scale)
    with cells, genes:
        noise = pyro.sample("noise", dist.Normal(0.0, 1.0))
        mean = pyro.deterministic("mean", ((score + shift) * loading).sum(-1), event_dim=0)
        pyro.deterministic("twice", 2 * mean)
        pyro.sample("y_obs", dist.Normal(mean + noise, scale * size.unsqueeze(-1)), obs=y)


@pytest.fixture(scope="module")
def fit():
    return svi(model, AutoNormal, DATA, dims=EVENTS, **QUICK)


@pytest.fixture(scope="module")
def tree(fit):
    return fit.posterior(DATA, 30)


PLACES = {
    "scale": (), "ratio": (), "shift": ("factor",), "level": ("factor",), "loading": ("gene", "factor"),
    "score.z.1": ("cell", "factor"), "depth": ("cell",), "noise": ("cell", "gene"), "mean": ("cell", "gene"),
    "twice": ("cell", "gene"),
}  # fmt: skip


def test_every_site_has_its_own_dims_and_only_those(tree):
    """No plates, no auxiliary sites of the guide, no factors; a slash in a name becomes a dot."""
    for group in ("posterior", "prior"):
        found = {str(n): v.dims for n, v in tree[group].data_vars.items()}
        assert found == {name: ("chain", "draw", *dims) for name, dims in PLACES.items()}
    assert tree["posterior"].sizes == {"chain": 1, "draw": 30, "factor": 2, "gene": 5, "cell": 12}
    for group in ("posterior_predictive", "prior_predictive", "log_likelihood"):
        assert {n: v.dims for n, v in tree[group].data_vars.items()} == {"y_obs": ("chain", "draw", "cell", "gene")}


def test_values_belong_together_draw_by_draw(tree):
    p = tree["posterior"].to_dataset()
    xr.testing.assert_allclose(p["ratio"] * 2, p["scale"])
    xr.testing.assert_allclose(p["level"], 2 * p["shift"] * p["scale"], rtol=1e-5)
    mean = ((p["score.z.1"] + p["shift"]) * p["loading"]).sum("factor")
    np.testing.assert_allclose(p["mean"].transpose(*mean.dims), mean, rtol=1e-5)
    np.testing.assert_allclose(p["twice"], 2 * p["mean"], rtol=1e-6)
    standard = (Y - p["mean"] - p["noise"]) / p["scale"]
    exact = -0.5 * standard**2 - np.log(p["scale"]) - 0.5 * np.log(2 * np.pi)
    got = tree["log_likelihood"]["y_obs"]
    np.testing.assert_allclose(got, exact.transpose(*got.dims), rtol=1e-4)


def test_labels_data_groups_and_attributes(tree):
    assert list(tree["posterior"]["gene"].values) == GENES  # a Categorical in the data
    assert list(tree["log_likelihood"]["cell"].values) == CELLS
    assert tree["observed_data"]["y_obs"].dims == ("cell", "gene")
    np.testing.assert_array_equal(tree["observed_data"]["y_obs"], Y)
    assert set(tree["constant_data"].data_vars) == {"size"}
    for node in tree.children.values():
        assert datetime.fromisoformat(node.attrs["created_at"]).tzinfo is not None
        assert node.attrs["inference_library"] == "pyro-ppl"
        assert node.attrs["creation_library"] == "embergraph"
        assert {"inference_library_version", "creation_library_version"} <= set(node.attrs)
        assert node.attrs["sample_dims"] == ["chain", "draw"]
    about = tree["posterior"].attrs
    assert (about["model_name"], about["guide_name"], about["routine"]) == ("model", "AutoNormal", "svi")
    assert about["num_restarts"] == 1
    assert about["steps_done"] == 5
    assert json.loads(about["held_fixed"]) == []
    assert tree["sample_stats"]["loss"].dims == ("restart", "step")


def normal(y):
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.Gamma(3.0, 3.0))
    with pyro.plate("cell", len(y)):
        pyro.sample("y_obs", dist.Normal(mean, scale.unsqueeze(-1)).to_event(1), obs=y)


@pytest.mark.parametrize("guide", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, AutoDelta])
def test_mean_of_log_q_minus_log_p_is_the_loss(guide):
    data = {"y": (("cell", "gene"), Y[:, :2])}
    fit = svi(normal, guide, data, num_steps=50, learning_rate=0.05, progress=False)
    stats = fit.posterior(data, 4000, predictive=False, prior=False)["sample_stats"].to_dataset()
    gap = stats["log_q"] - stats["log_p"]
    elbo = Trace_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=1)
    inputs = {"y": torch.tensor(Y[:, :2])}
    with pyro.get_param_store().scope(fit.store), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        loss = elbo.loss(fit.model, fit.guide, **inputs)
    assert float(gap.mean()) == pytest.approx(loss, abs=5 * float(gap.std()) / 2000**0.5 + 1e-4)


def test_point_estimates_say_so():
    data = {"y": (("cell", "gene"), Y[:, :2])}
    tree = svi(normal, AutoDelta, data, **QUICK).posterior(data, 20)
    assert json.loads(tree["posterior"].attrs["held_fixed"]) == ["mean", "scale"]
    assert (tree["sample_stats"]["log_q"] == 0).all()


def test_trees_go_to_netcdf_and_back(tree, tmp_path):
    path = tmp_path / "tree.nc"
    tree.to_netcdf(path, engine="h5netcdf")
    with xr.open_datatree(path, engine="h5netcdf") as read:
        for name, node in tree.children.items():
            xr.testing.assert_equal(read[name].to_dataset(), node.to_dataset())
            assert read[name].attrs.keys() == node.attrs.keys()
        assert json.loads(read["posterior"].attrs["held_fixed"]) == []
    data = az.from_netcdf(path, engine="h5netcdf")
    assert list(data.posterior["gene"].values) == GENES
    np.testing.assert_array_equal(data.posterior["loading"], tree["posterior"]["loading"])


def test_attributes_that_netcdf_cannot_hold():
    given = {"a": None, "b": True, "c": {"x": [1]}, "d": np.float32(2), "e": ("u",), "f": [], "g": np.bool_(False)}
    found = storable(given)
    assert found == {"b": 1, "c": '{"x": [1]}', "d": 2.0, "e": '["u"]', "f": "[]", "g": 0}
    assert all(type(v) in (int, float, str) for v in found.values())


def test_labels_of_every_kind_become_text_or_numbers(fit, tmp_path):
    times = pd.date_range("2026-01-01", periods=12)
    pairs = pd.MultiIndex.from_product([["a", "b"], range(6)], names=("plate", "well"))
    for labels in (times, pairs, [True] * 6 + [False] * 6, [1, "x", *range(10)]):
        cells = xr.Coordinates.from_pandas_multiindex(pairs, "cell") if labels is pairs else {"cell": labels}
        data = DATA.drop_vars(["cell", "batch"]).assign_coords(cells)
        fit.posterior(data, 2, prior=False).to_netcdf(tmp_path / f"{id(labels)}.nc", engine="h5netcdf")
        with xr.open_datatree(tmp_path / f"{id(labels)}.nc", engine="h5netcdf") as tree:
            assert tree["log_likelihood"]["cell"].shape == (12,)


def test_arviz_works_on_it(tree):
    data = to_arviz(tree)
    table = az.summary(data, kind="stats", var_names=["scale", "loading"])
    assert table["mean"]["scale"] == pytest.approx(float(tree["posterior"]["scale"].mean()), abs=2e-3)
    assert "loading[B, 1]" in table.index
    assert az.extract(data, var_names="score.z.1").dims == ("cell", "factor", "sample")
    assert az.hdi(data, var_names="scale")["scale"].shape == (2,)
    with pytest.warns(UserWarning, match="Estimated shape parameter"):
        result = az.loo(data, pointwise=True)
    assert result.pareto_k.shape == (12, 5)
    az.plot_forest(data, var_names=["shift"])
    az.plot_ppc(data)  # needs observed data and predictions of one name
    plt.close("all")


def test_a_fit_hands_over_to_arviz(fit):
    assert az.summary(fit.to_arviz(DATA, 10, prior=False), kind="stats", var_names="scale").shape[0] == 1


def test_newer_arviz_takes_the_tree_itself(tree, monkeypatch):
    monkeypatch.delattr(az, "from_datatree")
    assert to_arviz(tree) is tree


def test_any_model_and_guide_trained_anywhere():
    """Parameters come from the current store; random state and store stay as they are."""
    with pyro.get_param_store().scope():
        guide = AutoNormal(normal)
        routine = SVI(normal, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        y = torch.tensor(Y[:, :2])
        for _ in range(5):
            routine.step(y)
        names, state = set(pyro.get_param_store().keys()), torch.get_rng_state()
        data = {"y": (("cell", "gene"), Y[:, :2])}
        first, second = (to_datatree(normal, guide, data, num_samples=8, seed=1) for _ in range(2))
        assert set(pyro.get_param_store().keys()) == names
        assert torch.equal(torch.get_rng_state(), state)
    assert set(first.children) == {
        "posterior", "sample_stats", "log_likelihood", "observed_data", "posterior_predictive", "prior",
        "prior_predictive",
    }  # fmt: skip
    xr.testing.assert_equal(first["posterior"].to_dataset(), second["posterior"].to_dataset())
    assert "mean_dim_0" in first["posterior"].dims


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({"loading": ("factor", "more")}, "loading: found 1 event dims; wanted 2"),
        ({"loading": ("gene",)}, "loading: found dim 'gene' twice"),
        (
            {"loading": ("factor",), "shift": ("cell",)},
            "found size 12 of dim 'cell'; wanted 2|found size 2 of dim 'cell'",
        ),
        ({"loading": ("sample",)}, "sample: found it as the name of a dim"),
        ({"loading": ("scale",)}, "scale: found a site and a dim of this name"),
    ],
)
def test_dims_that_do_not_fit(dims, message):
    with pytest.raises(SchemaError, match=message):
        svi(model, AutoNormal, DATA, dims=dims, **QUICK).posterior(DATA, 2)


def test_names_that_collide_without_slashes():
    def collides(y):
        pyro.sample("a/b", dist.Normal(0.0, 1.0))
        pyro.sample("a.b", dist.Normal(0.0, 1.0))

    with pytest.raises(SchemaError, match=r"a.b: found a second site"):
        svi(collides, AutoDiagonalNormal, {"y": Y}, **QUICK).posterior({"y": Y}, 2)


def test_nan_does_not_reach_a_tree():
    def undefined(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.deterministic("root", (-(mean**2)).sqrt())

    with pytest.raises(NumericalError, match="root: the draws contain NaN"):
        svi(undefined, AutoNormal, {"y": Y}, **QUICK).posterior({"y": Y}, 2)
