"""What users read off a fit, in one form for all methods."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal

import embergraph as eg
from embergraph.inference.readings import of_draws, of_probability
from embergraph.models.parts.errors import DataError
from embergraph.models.parts.scale_priors import NormalScales


def straight(x, y):
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.deterministic("total", slope.sum(-1))
    with pyro.plate("cell", len(x)):
        shift = pyro.sample("shift", dist.Normal(0.0, 0.1))
        pyro.sample("obs", dist.Normal((x * slope).sum(-1) + shift, 1.0), obs=y)


@pytest.fixture(scope="module")
def simulated():
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    return eg.simulate(
        straight, {"x": (("cell", "gene"), x), "y": ("cell", torch.zeros(50))}, dims={"slope": ("gene",)}
    )


def test_sites_of_a_model_of_ones_own(simulated):
    fit = eg.svi(straight, AutoNormal, simulated[["x", "y"]], num_steps=200, dims={"slope": ("gene",)}, progress=False)
    found = fit.readings(simulated, num_samples=99)
    assert set(found) == {"slope", "total"}  # not the shifts of cells
    slope = found["slope"]
    assert slope["draws"].dims == ("draw", "gene")
    assert slope["draws"].sizes["draw"] == 99
    np.testing.assert_allclose(slope["truth"], simulated["true_slope"])
    assert "truth" not in fit.readings(simulated[["x", "y"]])["slope"]
    np.testing.assert_allclose(found["total"]["draws"], slope["draws"].sum("gene"), atol=1e-5)
    assert (slope["lower"] < slope["upper"]).all()
    with pytest.raises(DataError, match="level"):
        fit.readings(simulated, level=90)


def test_point_estimates_have_no_intervals(simulated):
    fit = eg.svi(straight, AutoDelta, simulated[["x", "y"]], num_steps=100, progress=False)
    found = fit.readings(simulated)
    assert "estimate" in found["slope"]
    assert not {"draws", "lower", "upper", "probability"} & set(found["slope"])


def test_intervals_of_few_draws_hold_their_mass():
    """The k-th of n draws is the quantile k / (n + 1): the interval holds a new draw of the same law with its mass."""
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((39, 4000))
    import xarray as xr

    reading = of_draws(xr.DataArray(draws, dims=("draw", "entry")), 0.9)
    fresh = rng.standard_normal(4000)
    inside = ((reading["lower"] <= fresh) & (fresh <= reading["upper"])).mean()
    assert abs(float(inside) - 0.9) < 3 * np.sqrt(0.09 / 4000)
    stated = of_probability(xr.DataArray([0.1, 0.9], dims="entry"), xr.DataArray([False, True], dims="entry"))
    assert stated["truth"].dtype == float


def test_networks_of_cells():
    cells = eg.datasets.simulated_notmad(seed=0, num_cells=100, num_genes=4, num_covariates=2)
    model = eg.models.NOTMAD.for_data(cells, 2, intercept_prior=dist.Normal(0.0, 0.2))
    drawn = eg.simulate(model, cells, seed=1)
    short = {"num_restarts": 2, "num_steps": 100, "num_guide_steps": 200, "num_orders": 4, "progress": False}
    found = eg.fit(model, drawn, posterior="mean_field", **short).readings(drawn, num_samples=60)
    network, edge = found["network"], found["edge"]
    off = ~np.eye(4, dtype=bool)
    assert np.isfinite(network["truth"].values[:, off]).all()
    assert np.isnan(network["truth"].values[:, ~off]).all()
    np.testing.assert_array_equal((np.abs(network["truth"]) > 0.05).values[:, off], edge["truth"].values[:, off] == 1)
    assert network["regulator"].values.tolist() == cells["gene"].values.tolist()
    np.testing.assert_allclose((np.abs(network["draws"]) > 0.05).mean("draw"), edge["probability"], atol=1e-6)


def test_scales_and_edges_of_matrices():
    scales = {"cell_scales": NormalScales(), "gene_scales": NormalScales(), "overall_prior": dist.Normal(0.0, 1.0)}
    model = eg.models.MEDMAGMA(10, 12, 4, **scales)
    drawn = eg.simulate(model, model.simulate(seed=0), seed=1)
    found = eg.fit(model, drawn[["expression"]], progress=False).readings(drawn)
    assert set(found) == {"log_u", "log_v", "cell_edge", "gene_edge"}
    np.testing.assert_allclose(found["log_u"]["truth"].sum("cell"), 0.0, atol=1e-5)
    assert np.corrcoef(found["log_u"]["truth"].values.ravel(), found["log_u"]["estimate"].values.ravel())[0, 1] > 0.7
    assert int(found["gene_edge"]["truth"].notnull().sum()) == 12 * 11 // 2


def test_targets_shifts_and_effects_in_the_order_of_the_fitted_latents():
    offsets = np.kron(np.eye(2), np.array([[3.0], [-3], [2], [-2], [1], [4]]))
    data = eg.datasets.simulated_environments(0, num_latents=2, num_genes=10, num_cells=60, offsets=offsets)
    model = eg.models.EnvironmentVAE.for_data(data, 2)
    drawn = eg.simulate(model, data, seed=5)
    fit = eg.fit(model, drawn, progress=False)
    found = fit.readings(drawn)
    assert set(found) == {"target", "shift", "effect"}
    known = found["shift"]["truth"].notnull()
    assert known.sum() == (found["target"]["probability"] > 0.5).sum()
    error = (found["effect"]["estimate"] - found["effect"]["truth"]).values
    assert np.sqrt(np.mean(error**2)) < 0.5 * float(found["effect"]["truth"].std())
