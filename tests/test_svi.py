"""SVI of any Pyro callable: closed-form posteriors, restarts, and nothing left behind."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, init_to_sample

from embergraph.inference import Cosine, svi
from embergraph.models.parts.errors import SchemaError

Y = np.random.default_rng(0).normal(1.0, 1.0, 20)
DATA = {"y": ("cell", Y)}
QUICK = {"num_steps": 20, "progress": False}
CAREFUL = {"num_steps": 400, "learning_rate": 0.1, "schedules": {"learning_rate": Cosine()}, "progress": False}


def model(y):
    """Normal mean with a Normal(0, 2^2) prior and unit noise."""
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("cell", len(y)):
        pyro.sample("y_obs", dist.Normal(mean, 1.0), obs=y)


def guide(y):
    loc = pyro.param("loc", torch.zeros(()))
    scale = pyro.param("scale", torch.ones(()), constraint=constraints.positive)
    pyro.sample("mean", dist.Normal(loc, scale))


PRECISION = 1 / 4 + len(Y)
MEAN, SD = Y.sum() / PRECISION, PRECISION**-0.5


class Model(torch.nn.Module):
    """The same model as a module, with a buffer and a parameter that is not used."""

    def __init__(self):
        super().__init__()
        self.register_buffer("width", torch.tensor(2.0))

    def forward(self, y):
        mean = pyro.sample("mean", dist.Normal(torch.zeros_like(self.width), self.width))
        with pyro.plate("cell", len(y)):
            pyro.sample("y_obs", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.parametrize("chosen", [AutoNormal, lambda model: AutoNormal(model), AutoNormal(model), guide])
def test_every_kind_of_guide_finds_the_conjugate_posterior(chosen):
    fit = svi(model, chosen, DATA, **CAREFUL)
    draws = fit.posterior(DATA, 4000, predictive=False, prior=False)["posterior"]["mean"]
    assert abs(float(draws.mean()) - MEAN) < 0.15 * SD  # Monte-Carlo error 0.016 SD, the rest is Adam's
    assert abs(float(draws.std()) / SD - 1) < 0.12


def test_correlated_regression_with_a_joint_guide():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 1)) + 0.5 * rng.normal(size=(40, 2))
    y = x @ [1.0, -0.5] + rng.normal(size=40)

    def regression(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("cell", len(x)):
            pyro.sample("y_obs", dist.Normal((x * w).sum(-1), 1.0), obs=y)

    data = {"x": (("cell", "covariate"), x), "y": ("cell", y)}
    covariance = np.linalg.inv(np.eye(2) + x.T @ x)
    mean = covariance @ x.T @ y
    elbo = Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    fit = svi(regression, AutoMultivariateNormal, data, loss=elbo, dims={"w": ("covariate",)}, **CAREFUL)
    w = fit.posterior(data, 4000, predictive=False, prior=False)["posterior"]["w"]
    assert w.dims == ("chain", "draw", "covariate")
    found = np.cov(w.values[0].T)
    scale = np.sqrt(np.diag(covariance))
    assert (np.abs(w.values[0].mean(0) - mean) < 0.15 * scale).all()
    assert np.abs(found / np.outer(scale, scale) - covariance / np.outer(scale, scale)).max() < 0.15
    correlation = covariance[0, 1] / scale.prod()
    assert abs(correlation) > 0.5  # a mean-field guide would find none and fail the line above


def test_a_module_with_float32_numbers_meets_float64_data():
    fit = svi(Model(), AutoNormal, DATA, **QUICK)
    assert fit.posterior(DATA, 10)["posterior"]["mean"].dtype == np.float64
    single = {"y": ("cell", Y.astype(np.float32))}
    tree = svi(Model(), AutoNormal, single, **QUICK).posterior(single, 10)
    for group in ("posterior", "posterior_predictive", "prior", "log_likelihood"):
        assert {v.dtype for v in tree[group].data_vars.values()} == {np.dtype(np.float32)}


def test_same_seed_same_bits_another_seed_others():
    fits = [svi(model, AutoNormal, DATA, seed=seed, **QUICK) for seed in (3, 3, 4)]
    draws = [f.posterior(DATA, 5, predictive=False, prior=False)["posterior"]["mean"].values for f in fits]
    np.testing.assert_array_equal(fits[0].history, fits[1].history)
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(fits[0].history, fits[2].history)
    assert not np.array_equal(draws[0], draws[2])


def test_nothing_is_left_behind():
    """Store, random state, validation, precision and the user's objects are as before; fits of two sizes take turns."""
    pyro.clear_param_store()
    mine = pyro.param("loc", torch.tensor(7.0))
    init = torch.zeros(())

    def shares_a_tensor(y):
        pyro.sample("mean", dist.Normal(pyro.param("loc", init), 1.0))

    own_model, own_guide = Model(), AutoNormal(model)
    with pyro.get_param_store().scope():
        own_guide(torch.zeros(3))
    held = own_guide.model
    before = {name: value.clone() for name, value in own_guide.state_dict().items()}
    short = {"y": ("cell", Y[:7])}
    torch.manual_seed(5)
    state, validation, precision = torch.get_rng_state(), dist.is_validation_enabled(), torch.get_default_dtype()
    first = svi(own_model, AutoNormal, DATA, **QUICK)
    second = svi(model, own_guide, short, **QUICK)
    third = svi(model, shares_a_tensor, DATA, num_restarts=2, **QUICK)
    for fit, data in ((first, DATA), (second, short), (third, DATA), (first, DATA)):
        fit.posterior(data, 5)
        fit.predict(data, 5)
        fit.log_density(data, 5)
    with pytest.raises(SchemaError):
        svi(model, AutoNormal, {"x": Y}, **QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    assert dist.is_validation_enabled() == validation
    assert torch.get_default_dtype() == precision
    assert dict(pyro.get_param_store().named_parameters()).keys() == {"loc"}
    assert pyro.param("loc").item() == mine.item() == 7.0
    assert init.item() == 0.0
    assert not init.requires_grad
    assert own_model.width.dtype == torch.float32
    assert own_guide.model is held  # Pyro's AutoGuides forget it when they are copied
    for name, value in own_guide.state_dict().items():
        assert torch.equal(value, before[name])
    pyro.clear_param_store()


def test_a_module_outside_model_and_guide_is_refused():
    net = torch.nn.Linear(1, 1)

    def closes_over_a_module(y):
        pyro.module("net", net)
        pyro.sample("mean", dist.Normal(net(torch.ones(1, dtype=torch.float32)).squeeze().to(y), 1.0))

    before = net.weight.clone()
    with pytest.raises(SchemaError, match=r"'net\$\$\$bias'.*outside model and guide"):
        svi(model, closes_over_a_module, DATA, **QUICK)
    assert torch.equal(net.weight, before)


class Amortised(torch.nn.Module):
    """Model and guide as methods of one module that Pyro is not told about."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Linear(1, 1)

    def model(self, y):
        with pyro.plate("cell", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y_obs", dist.Normal(z, 1.0), obs=y)

    def guide(self, y):
        with pyro.plate("cell", len(y)):
            pyro.sample("z", dist.Normal(self.encoder(y.unsqueeze(-1)).squeeze(-1), 0.5**0.5))


def test_parameters_of_modules_are_fitted_and_copied():
    """Given y, z is Normal(y / 2, 1 / 2): the encoder has to find slope 1/2 and offset 0."""
    mine = Amortised()
    before = mine.encoder.weight.clone()
    fit = svi(mine.model, mine.guide, DATA, **CAREFUL)
    encoder = fit.guide.__self__.encoder
    assert torch.equal(mine.encoder.weight, before)
    assert abs(encoder.weight.item() - 0.5) < 0.05
    assert abs(encoder.bias.item()) < 0.1
    assert fit.model.__self__ is fit.guide.__self__


def test_restarts_are_chosen_on_all_of_the_data_and_keep_their_histories():
    """Two modes, one of them poor; the restart in the better one wins, whatever the losses of batches say."""

    def two_modes(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("cell", len(y)):
            rows = pyro.subsample(y + 4, event_dim=0)
            pyro.sample("y_obs", dist.Normal(mean.abs(), torch.where(mean < 0, 2.0, 1.0)), obs=rows)

    fit = svi(
        two_modes, lambda model: AutoNormal(model, init_loc_fn=init_to_sample), DATA,
        num_steps=150, num_restarts=4, batch_size=5, learning_rate=0.2, seed=2, progress=False,
    )  # fmt: skip
    finals = np.array(fit.settings["final_losses"])
    assert fit.history.shape == (4, 150)
    assert np.isfinite(fit.history).all()
    assert fit.settings["chosen_restart"] == finals.argmin()
    assert len({tuple(h) for h in fit.history.values}) == 4
    tree = fit.posterior(DATA, 2000, predictive=False, prior=False)
    gap = float((tree["sample_stats"]["log_q"] - tree["sample_stats"]["log_p"]).mean())
    assert gap == pytest.approx(finals.min(), abs=1.0)  # a number of the full data, not of five rows
    assert finals.max() - finals.min() > 5  # some restarts did end in the other mode
