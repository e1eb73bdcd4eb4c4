"""NUTS through the same Fit and export as everything else."""

from __future__ import annotations

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from embergraph.inference import _mcmc, mcmc, to_arviz
from embergraph.models.parts.errors import DataError, NumericalError, SchemaError

RNG = np.random.default_rng(1)
X = RNG.normal(size=(40, 1)) + 0.5 * RNG.normal(size=(40, 2))
Y = X @ [1.0, -0.5] + RNG.normal(size=40)
DATA = {"x": (("cell", "covariate"), X), "y": ("cell", Y)}
COVARIANCE = np.linalg.inv(np.eye(2) + X.T @ X)
MEAN = COVARIANCE @ X.T @ Y
QUICK = {"num_warmup": 5, "num_draws": 5, "max_tree_depth": 2, "progress": False}


def regression(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("cell", len(x), dim=-1):
        pyro.sample("y_obs", dist.Normal(x @ w, 1.0), obs=y)


def test_conjugate_regression_two_chains():
    options = {"num_warmup": 100, "num_draws": 200, "num_chains": 2, "dims": {"w": ("covariate",)}}
    fit = mcmc(regression, DATA, progress=False, **options)
    tree = fit.posterior(DATA, 500, predictive=False, prior=False)
    w = tree["posterior"]["w"]
    assert w.shape == (2, 200, 2)
    scale = np.sqrt(np.diag(COVARIANCE))
    ess = az.ess(to_arviz(tree), var_names="w")["w"].values
    assert (ess > 100).all()
    flat = w.values.reshape(-1, 2)
    assert (np.abs(flat.mean(0) - MEAN) < 4.5 * scale / ess**0.5).all()
    normalised = np.cov(flat.T) / np.outer(scale, scale)
    assert np.abs(normalised - COVARIANCE / np.outer(scale, scale)).max() < 5 * (2 / ess.min()) ** 0.5
    assert not np.array_equal(w[0], w[1])
    stats = tree["sample_stats"].to_dataset()
    assert 0.6 < float(stats["acceptance"].mean()) <= 1
    assert set(stats["divergences"].values.ravel()) <= {0.0, 1.0}
    exact = -0.5 * (flat**2).sum(1) - 0.5 * ((Y - flat @ X.T) ** 2).sum(1) - 21 * np.log(2 * np.pi)
    np.testing.assert_allclose(stats["log_p"].values.ravel(), exact, rtol=1e-6)


def test_constrained_and_local_sites_come_back_in_their_own_space():
    def model(y):
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("gene", y.shape[1], dim=-1):
            weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
            with pyro.plate("cell", y.shape[0], dim=-2):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("y_obs", dist.Normal(z + weights[..., 0], scale), obs=y)

    data = {"y": (("cell", "gene"), RNG.normal(size=(6, 4)))}
    fit = mcmc(model, data, num_chains=2, **QUICK)
    tree = fit.posterior(data, 1000)
    p = tree["posterior"].to_dataset()
    assert p["scale"].dims == ("chain", "draw")
    assert p["weights"].dims == ("chain", "draw", "gene", "weights_dim_0")
    assert p["z"].dims == ("chain", "draw", "cell", "gene")
    assert (p["scale"] > 0).all()
    np.testing.assert_allclose(p["weights"].sum("weights_dim_0"), 1)
    mean = (p["z"] + p["weights"][..., 0]).transpose("chain", "draw", "cell", "gene")
    exact = -0.5 * ((data["y"][1] - mean) / p["scale"]) ** 2 - np.log(p["scale"]) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(tree["log_likelihood"]["y_obs"], exact.transpose(*mean.dims), rtol=1e-6)
    assert set(fit.global_draws(4)) == {"scale", "weights"}
    assert fit.log_density(data, 10).shape == (6,)


def test_enumerated_sites_are_summed_out_and_then_drawn():
    """Two components: the posterior of the share is compared with a grid, that of the classes with their exact one."""
    y = np.r_[np.full(8, -2.0), np.full(4, 2.0)]

    def mixture(y):
        share = pyro.sample("share", dist.Beta(1.0, 1.0))
        with pyro.plate("cell", len(y), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(share), infer={"enumerate": "parallel"})
            pyro.sample("y_obs", dist.Normal(4 * z - 2, 1.0), obs=y)

    fit = mcmc(mixture, {"y": ("cell", y)}, num_warmup=60, num_draws=200, max_tree_depth=3, progress=False)
    tree = fit.posterior({"y": ("cell", y)}, 200, predictive=False, prior=False)
    grid = (np.arange(2000) + 0.5) / 2000
    density = (grid[:, None] * norm(y - 2) + (1 - grid[:, None]) * norm(y + 2)).prod(1)
    mean = (grid * density).sum() / density.sum()
    sd = ((grid - mean) ** 2 @ density / density.sum()) ** 0.5
    share = tree["posterior"]["share"].values.ravel()
    assert abs(share.mean() - mean) < 5 * sd / 40**0.5  # a fifth of the draws at least count
    assert share.std() == pytest.approx(sd, rel=0.3)
    assert tree["posterior"]["z"].dims == ("chain", "draw", "cell")
    np.testing.assert_allclose(tree["posterior"]["z"].mean(("chain", "draw")), y > 0, atol=0.03)
    at = share[0]
    exact = np.log(at * norm(y - 2) + (1 - at) * norm(y + 2)).sum()
    assert float(tree["sample_stats"]["log_p"][0, 0]) == pytest.approx(exact, rel=1e-6)


def norm(x):
    return np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)


def test_start_is_where_chains_start():
    """Without warm-up to speak of and with steps that go nowhere, the first draw is the start."""
    start = {"w": [5.0, -7.0]}
    options = {"num_warmup": 1, "num_draws": 1, "max_tree_depth": 1, "progress": False}
    far = [mcmc(regression, DATA, start=start, seed=s, **options).draws.values["w"][0, 0] for s in (0, 1)]
    near = mcmc(regression, DATA, seed=0, **options).draws.values["w"][0, 0]
    assert all((w.flatten() - torch.tensor(start["w"])).norm() < 3 for w in far)
    assert (near.flatten() - torch.tensor(start["w"])).norm() > 4


def test_parameters_of_modules_stay_where_they_are():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, x, y):
            pyro.module("scaled", self)
            w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("cell", len(x), dim=-1):
                pyro.sample("y_obs", dist.Normal(self.factor * (x * w).sum(-1), 1.0), obs=y)

    model = Scaled()
    fit = mcmc(model, DATA, **QUICK)
    assert fit.model.factor.item() == model.factor.item() == 2.0
    assert fit.posterior(DATA)["posterior"].sizes["draw"] == 5


def test_same_seed_same_bits_and_nothing_left_behind():
    state, store = torch.get_rng_state(), set(pyro.get_param_store().keys())
    draws = [mcmc(regression, DATA, seed=seed, **QUICK).draws.values["w"] for seed in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), state)
    assert set(pyro.get_param_store().keys()) == store


@pytest.mark.parametrize(("after", "shape"), [(8, (1, 3)), (13, (1, 5)), (17, (1, 5))])
def test_interruption_keeps_complete_chains_or_the_draws_of_the_first(monkeypatch, after, shape):
    original, calls = _mcmc._Recorder.__call__, []

    def stops(self, *args):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        original(self, *args)

    monkeypatch.setattr(_mcmc._Recorder, "__call__", stops)
    fit = mcmc(regression, DATA, num_chains=2, **QUICK)
    assert fit.draws.shape == shape
    assert fit.settings["interrupted"] is True
    assert fit.settings["num_draws"] == shape[1]
    assert np.isfinite(fit.posterior(DATA)["posterior"]["w"]).all()


def test_interruption_before_any_draw_goes_through(monkeypatch):
    def stops(self, *args):
        raise KeyboardInterrupt

    monkeypatch.setattr(_mcmc._Recorder, "__call__", stops)
    with pytest.raises(KeyboardInterrupt):
        mcmc(regression, DATA, **QUICK)


def test_what_is_refused():
    for change in ({"num_draws": 0}, {"num_chains": 2.0}, {"num_warmup": True}):
        with pytest.raises(DataError, match="wanted a whole number of at least 1"):
            mcmc(regression, DATA, **{**QUICK, **change})
    for start in ({}, {"w": [1.0, 2.0], "v": 1.0}):
        with pytest.raises(DataError, match=r"start: found values of .*wanted values of \['w'\]"):
            mcmc(regression, DATA, start=start, **QUICK)
    with pytest.raises(DataError, match=r"start: found w of shape \(3,\)"):
        mcmc(regression, DATA, start={"w": [1.0, 2.0, 3.0]}, **QUICK)
    with pytest.raises(SchemaError, match="y: the model takes it"):
        mcmc(regression, {"x": DATA["x"]}, **QUICK)


def test_nothing_to_start_from_is_a_numerical_error():
    def impossible(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.factor("never", torch.full_like(mean, -torch.inf))

    with pytest.raises(NumericalError, match="NUTS: found no start with a finite log density"):
        mcmc(impossible, {"y": Y}, **QUICK)
