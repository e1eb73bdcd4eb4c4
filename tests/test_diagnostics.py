"""Numbers that say whether a fit can be believed."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoNormal
from scipy.stats import norm

from embergraph.inference import Fit, StoredDraws, as_text, guide_khat, pareto_khat, svi
from embergraph.inference.diagnostics import MEANING, chains_rhat, drift, split_rhat
from embergraph.inference.inputs import Template, as_dataset
from embergraph.inference.plain import schema_of
from embergraph.models.parts.errors import DataError

N = 25
Y = np.random.default_rng(0).normal(1.0, 1.0, N)
DATA = {"y": ("cell", Y)}
MEAN, SD = Y.sum() / (N + 1), (N + 1) ** -0.5


def model(y):
    """Normal mean with a Normal(0, 1) prior and unit noise."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("cell", len(y)):
        pyro.sample("y_obs", dist.Normal(mean, 1.0), obs=y)


def guide_of(scale):
    def guide(y):
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(MEAN)), scale * SD))

    return guide


def fit_with(scale, **options):
    return svi(model, guide_of(scale), DATA, num_steps=1, learning_rate=1e-12, progress=False, **options)


def stored(chains):
    values = {"mean": torch.as_tensor(np.asarray(chains), dtype=torch.double).unsqueeze(-1)}
    schema = schema_of(model, as_dataset(DATA))
    shape = values["mean"].shape[:2]
    statistics = {"acceptance": np.full(shape, 0.8), "divergences": np.eye(*shape)}
    return Fit(model, None, schema, Template.of(schema, as_dataset(DATA)), draws=StoredDraws(values, statistics))


def test_k_is_the_shape_of_the_tail():
    """Pareto weights with P(w > x) = x^(-1/k) have shape k; bounded weights have a negative one."""
    rng = np.random.default_rng(1)
    for k in (0.3, 0.7, 1.2):
        found = np.mean([pareto_khat(k * rng.exponential(size=4000)) for _ in range(10)])
        assert found == pytest.approx(k, abs=0.12)
    assert pareto_khat(np.log(rng.uniform(size=4000))) < 0
    assert pareto_khat(np.full(100, 3.0)) == -math.inf
    assert pareto_khat(np.r_[np.full(99, -5000.0), 0.0]) == math.inf
    shifted = rng.normal(size=500)
    assert pareto_khat(shifted) == pytest.approx(pareto_khat(shifted + 1e4), abs=1e-6)


def test_k_wants_enough_numbers():
    for ratios in (np.zeros(24), np.r_[np.zeros(50), np.nan]):
        with pytest.raises(DataError, match="wanted at least 25"):
            pareto_khat(ratios)


def test_the_exact_guide_is_good_and_one_that_is_too_narrow_is_not():
    khat = {
        scale: guide_khat(fit_with(scale).posterior(DATA, 2000, predictive=False, prior=False))
        for scale in (1.0, 1.3, 0.3)
    }
    assert khat[1.0] < 0.3  # all ratios equal, up to rounding
    assert khat[1.3] < 0.5
    assert khat[0.3] > 0.7  # 1 - 0.3^2 in the limit


def test_loo_tells_both_k_and_the_closed_form():
    """Leave-one-out predictive of the conjugate model: Normal with the mean and spread of the other observations."""
    result = fit_with(1.0).loo(DATA, 4000)
    others = (Y.sum() - Y) / N
    exact = norm.logpdf(Y, others, (1 + 1 / N) ** 0.5)
    assert float(result["elpd_loo"]) == pytest.approx(exact.sum(), abs=0.3)
    assert float(result["se"]) == pytest.approx(exact.std() * N**0.5, rel=0.1)
    assert result["khat"].dims == ("cell",)
    assert (result["khat"] < 0.7).all()
    assert float(result["share_khat_bad"]) == 0
    assert float(result["guide_khat"]) < 0.3
    narrow = fit_with(0.3).loo(DATA, 2000)
    assert float(narrow["guide_khat"]) > 0.7


def test_bad_k_of_observations_are_counted_not_hidden():
    outlier = {"y": ("cell", np.r_[Y[:5], 12.0])}
    wide = svi(model, AutoNormal, outlier, num_steps=300, learning_rate=0.05, progress=False)
    result = wide.loo(outlier, 500)
    assert result["khat"].values.argmax() == 5
    assert float(result["share_khat_bad"]) == float((result["khat"] > 0.7).mean())


def test_split_rhat_flags_drift_within_a_chain_and_not_differences_between_chains():
    rng = np.random.default_rng(0)
    still = rng.normal(size=(2, 400))
    apart = still + np.array([[0.0], [10.0]])
    drifting = still + np.array([[0.0], [1.0]]) * np.linspace(0, 3, 400)
    found = {
        name: float(split_rhat(stored(chains).posterior(DATA, prior=False, predictive=False))["mean"])
        for name, chains in {"still": still, "apart": apart, "drifting": drifting}.items()
    }
    together = {
        name: float(chains_rhat(stored(chains).posterior(DATA, prior=False, predictive=False))["mean"])
        for name, chains in {"still": still, "apart": apart}.items()
    }
    assert together["still"] < 1.03
    assert together["apart"] > 1.5  # chains of one posterior are judged together
    assert found["still"] < 1.03
    assert found["apart"] < 1.03
    assert found["drifting"] > 1.2


def test_chains_of_nuts_that_found_different_modes_are_told():
    fit = stored(np.random.default_rng(0).normal(size=(2, 200)) + np.array([[-9.0], [9.0]]))
    fit.settings["routine"] = "mcmc"
    table = fit.report(DATA)
    assert float(table["max_split_rhat"]) < 1.05
    assert float(table["max_rhat"]) > 1.5


def test_report_of_a_sampler():
    rng = np.random.default_rng(0)
    table = stored(rng.normal(MEAN, SD, size=(2, 300))).report(DATA, DATA)
    assert set(table.data_vars) == {
        "num_cells", "max_split_rhat", "acceptance", "divergences", "elpd_loo", "elpd_loo_se", "share_khat_bad",
        "test_log_density", "test_log_density_se",
    }  # fmt: skip
    assert float(table["divergences"]) == 2
    assert float(table["acceptance"]) == pytest.approx(0.8)
    exact = norm.logpdf(Y, MEAN, (1 + SD**2) ** 0.5)
    assert float(table["test_log_density"]) == pytest.approx(exact.mean(), abs=0.02)
    assert float(table["test_log_density_se"]) == pytest.approx(exact.std() / N**0.5, rel=0.05)


def test_report_of_restarts_and_its_text():
    fit = svi(model, AutoNormal, DATA, num_steps=60, num_restarts=3, learning_rate=0.1, progress=False)
    fit.settings["final_losses"] = [100.0, 100.5, 150.0]
    table = fit.report(DATA)
    assert float(table["restarts_agree"]) == pytest.approx(2 / 3)
    assert float(table["final_loss"]) == fit.settings["final_loss"]
    assert float(table["num_cells"]) == N
    assert table.attrs["point_estimate"] == 0
    for name in ("num_cells", "final_loss", "loss_drift", "restarts_agree", "guide_khat", "elpd_loo", "share_khat_bad"):
        assert table[name].attrs["meaning"] == MEANING[name]
    lines = as_text(table).splitlines()
    assert len(lines) == len(table.data_vars)
    assert lines[0].split()[:2] == ["num_cells", "25"]


def test_a_model_of_factors_alone_has_a_report_too():
    def energy():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("pull", -(x**2))

    fit = svi(energy, AutoNormal, {}, num_steps=5, progress=False)
    assert "elpd_loo" not in fit.report({})


def test_drift_is_the_fall_of_the_last_tenths_in_standard_errors():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=1000)
    falling = noise - np.arange(1000) / 100
    history = xr.DataArray(np.stack([noise, falling]), dims=("restart", "step"))
    assert abs(drift(history, 0)) < 3
    assert drift(history, 1) == pytest.approx(1 / (2 / 100) ** 0.5, abs=3)  # a fall of 1 between windows of 100
    assert math.isnan(drift(history[:, :50], 0))
    short = history.where(np.arange(1000) < 500)  # a restart that ended early
    assert drift(short, 1) == drift(short[:, :500], 1)
