"""EM of any Pyro model: closed forms against other roads, the bound that is watched, and what a fit can do."""

from __future__ import annotations

import json
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from scipy.optimize import minimize

import embergraph as eg
from embergraph.inference import em
from embergraph.inference.registry import REGISTERED
from embergraph.models.parts.errors import DataError, LoadError, SchemaError

NUM_GROUPS, NUM_REPEATS, WIDTH = 12, 5, 100.0
RNG = np.random.default_rng(0)
Y = 3.0 + 1.5 * RNG.normal(size=(NUM_GROUPS, 1)) + 2.0 * RNG.normal(size=(NUM_GROUPS, NUM_REPEATS))
DIMS = ("group", "repeat")
DATA = {"y": (DIMS, Y)}
QUICK = {"num_steps": 12, "tolerance": None, "progress": False}
CAREFUL = {"num_steps": 200, "tolerance": 1e-14, "progress": False}


def model(y):
    """y_ij ~ Normal(z_i, within), z_i ~ Normal(mean, between); variances, flat priors."""
    mean = pyro.sample("mean", dist.Uniform(-WIDTH / 2, WIDTH / 2))
    between = pyro.sample("between", dist.Uniform(0.0, WIDTH))
    within = pyro.sample("within", dist.Uniform(0.0, WIDTH))
    with pyro.plate("group", y.shape[-2], dim=-2):
        z = pyro.sample("z", dist.Normal(mean, between**0.5))
        with pyro.plate("repeat", y.shape[-1], dim=-1):
            pyro.sample("y_obs", dist.Normal(z, within**0.5), obs=y)


class Guide(torch.nn.Module):
    """Normal for every z_i, point masses for mean and variances; starts from moments of the data."""

    monotone = True

    def __init__(self, num_groups=NUM_GROUPS):
        super().__init__()
        for name in ("mean", "between", "within"):
            self.register_buffer(name, torch.tensor(1.0))
        self.register_buffer("loc", torch.zeros(num_groups, 1))
        self.register_buffer("variance", torch.ones(num_groups, 1))

    def forward(self, y):
        for name in ("mean", "between", "within"):
            pyro.sample(name, dist.Delta(getattr(self, name)))
        with pyro.plate("group", len(self.loc), dim=-2):
            pyro.sample("z", dist.Normal(self.loc, self.variance**0.5))

    def update(self, model, inputs, step):
        y = inputs["y"]
        if step == 0:
            self.mean, self.between, self.within = y.mean(), y.var(), 0.1 * y.var()
        precision = y.shape[1] / self.within + 1 / self.between
        self.loc = (y.sum(1, keepdim=True) / self.within + self.mean / self.between) / precision
        self.variance = (1 / precision).expand_as(self.loc)
        self.maximise(y)
        return self.bound(y)

    def maximise(self, y):
        self.mean = self.loc.mean()
        self.between = ((self.loc - self.mean) ** 2 + self.variance).mean()
        self.within = ((y - self.loc) ** 2 + self.variance).mean()

    def bound(self, y):
        normal = -0.5 * (2 * math.pi * self.within).log() - 0.5 * ((y - self.loc) ** 2 + self.variance) / self.within
        latent = -0.5 * self.between.log() - 0.5 * ((self.loc - self.mean) ** 2 + self.variance) / self.between
        return normal.sum() + (latent + 0.5 * self.variance.log() + 0.5).sum() - 3 * math.log(WIDTH)


def assert_same(a, b):
    np.testing.assert_array_equal(a.history, b.history)
    for name, value in a.guide.state_dict().items():
        assert torch.equal(value, b.guide.state_dict()[name]), name


def log_likelihood(y, mean, between, within):
    """With z integrated out."""
    covariance = between * np.ones((y.shape[1],) * 2) + within * np.eye(y.shape[1])
    residuals = y - mean
    log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
    return -0.5 * len(y) * log_det - 0.5 * np.einsum("ij,jk,ik", residuals, np.linalg.inv(covariance), residuals)


def test_maximum_likelihood_by_another_road():
    fit = eg.em(model, Guide(), DATA, **CAREFUL)
    falls = np.diff(fit.history[0])
    assert (falls < 1e-11).all()
    assert falls[0] < -1
    assert fit.settings["converged"] is True
    assert fit.settings["bound_falls"] == 0

    def loss(u):
        return -log_likelihood(Y, u[0], math.exp(u[1]), math.exp(u[2]))

    best = minimize(loss, [1.0, 0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13})
    found = [float(fit.guide.mean), float(fit.guide.between.log()), float(fit.guide.within.log())]
    np.testing.assert_allclose(found, best.x, atol=1e-6)
    assert fit.settings["final_loss"] == pytest.approx(best.fun + 3 * math.log(WIDTH), abs=1e-10)


def test_the_bound_is_pyros_elbo_after_the_sweep():
    """At the end the guide is the posterior, so that one draw gives it; after two sweeps the mean of many does."""
    for steps, tolerance in ((2, 0.03), (200, 1e-6)):
        fit = em(model, Guide(), DATA, **{**CAREFUL, "num_steps": steps})
        with pyro.get_param_store().scope(), torch.random.fork_rng():
            torch.manual_seed(0)
            elbo = Trace_ELBO(num_particles=2000 if steps == 2 else 1, vectorize_particles=True, max_plate_nesting=2)
            loss = elbo.loss(fit.model, fit.guide, y=torch.as_tensor(Y))
        assert loss == pytest.approx(fit.settings["final_loss"], abs=tolerance)
        if steps == 2:
            assert fit.history.values[0, 0] - loss > 4  # not the bound before the sweep
        tree = fit.posterior(DATA, 1000, prior=False, predictive=False)
        losses = (tree["sample_stats"]["log_q"] - tree["sample_stats"]["log_p"]).values
        assert losses.mean() == pytest.approx(fit.settings["final_loss"], abs=tolerance)


def test_posterior_has_names_and_means():
    data = xr.Dataset({"y": (DIMS, Y)}, {"group": [f"g{i}" for i in range(NUM_GROUPS)]})
    fit = em(model, Guide(), data, **CAREFUL)
    tree = fit.posterior(data, 4000)
    z = tree["posterior"]["z"]
    assert z.dims == ("chain", "draw", "group")
    assert z["group"].values[3] == "g3"
    loc, sd = fit.guide.loc.numpy().ravel(), fit.guide.variance.sqrt().numpy().ravel()
    assert (np.abs(z.values[0].mean(0) - loc) < 4.5 * sd / math.sqrt(4000)).all()
    np.testing.assert_allclose(z.values[0].std(0), sd, rtol=0.06)
    assert tree["posterior_predictive"]["y_obs"].dims == ("chain", "draw", "group", "repeat")
    attributes = tree["posterior"].attrs
    assert sorted(json.loads(attributes["held_fixed"])) == ["between", "mean", "within"]
    assert (attributes["routine"], attributes["converged"], attributes["bound_falls"]) == ("em", 1, 0)
    np.testing.assert_array_equal(tree["sample_stats"]["loss"], fit.history)
    assert fit.settings["steps_done"] == fit.history.size
    table = fit.report(data)
    assert table["guide_khat"] < 0.7
    assert table["bound_falls"] == 0
    assert 0 <= table["bound_range"] <= 1e-14
    assert "bound_range" in eg.as_text(table)


def test_a_wrong_update_is_seen_to_fall():
    class Shrinks(Guide):
        def maximise(self, y):
            super().maximise(y)
            self.between = 0.9 * self.between  # another divisor

    fit = em(model, Shrinks(), DATA, **QUICK)
    steps = np.diff(fit.history[0])
    assert fit.settings["monotone"] is True
    assert fit.settings["bound_falls"] == (steps > 1e-5).sum() > 5
    assert fit.settings["largest_fall"] == pytest.approx(steps.max())
    assert fit.report(DATA, num_samples=100)["bound_falls"] > 5
    assert fit.summary()["bound_falls"] > 5


@pytest.mark.parametrize(("size", "falls"), [(1e-7, 0), (1e-5, 6)])
def test_rounding_is_no_fall(size, falls):
    class Rounds(Guide):
        def update(self, model, inputs, step):
            return 100.0 - size * (step % 2)

    assert em(model, Rounds(), DATA, **QUICK).settings["bound_falls"] == falls


def test_stopping_depends_on_neither_units_nor_amount_of_data():
    options = {"num_steps": 200, "tolerance": 1e-8, "progress": False}
    fit = em(model, Guide(), DATA, **options)
    steps, bounds = fit.settings["steps_done"], fit.history.values[0]
    ranges = np.array([np.ptp(bounds[i - 3 : i + 1]) for i in range(3, steps)]) / Y.size
    assert ranges[-1] <= 1e-8 < ranges[:-1].min()
    assert fit.settings["bound_range"] == pytest.approx(ranges[-1])
    for y in (0.01 * Y, 4 * Y, np.tile(Y, (8, 1))):
        other = em(model, Guide(len(y)), {"y": (DIMS, y)}, **options)
        assert abs(other.settings["steps_done"] - steps) <= (len(y) > len(Y))  # y.var() divides by n - 1
    wide = em(model, Guide(), DATA, window=8, **options).settings["steps_done"]
    assert steps + 3 <= wide <= steps + 5


def test_the_guides_own_change_must_be_small_too():
    """The bound moves by the square of what the numbers move."""

    class Slow(Guide):
        def change(self):
            self.calls.append(1)
            return 1e-3 if len(self.calls) >= 20 else 2e-3

    for tolerance, extra in ((0.9e-6, None), (1.1e-6, 19), (3.9e-6, 19), (4.1e-6, 0)):
        Slow.calls = []
        options = {"num_steps": 100, "tolerance": tolerance, "progress": False}
        plain, slow = (em(model, guide, DATA, **options).settings for guide in (Guide(), Slow()))
        assert slow["converged"] is (extra is not None)
        assert slow["steps_done"] == (100 if extra is None else plain["steps_done"] + extra)


def test_same_seed_same_bits():
    class Random(Guide):
        def maximise(self, y):
            super().maximise(y)
            self.mean = self.mean + 0.1 * torch.randn(())

    fits = [em(model, Random(), DATA, seed=seed, **QUICK) for seed in (3, 3, 4)]
    assert_same(fits[0], fits[1])
    assert not np.array_equal(fits[0].history, fits[2].history)
    assert fits[0].settings["bound_falls"] > 0


def test_nothing_is_left_behind():
    pyro.get_param_store().setdefault("mine", torch.tensor(7.0))
    own, state, precision = Guide(), torch.get_rng_state(), torch.get_default_dtype()
    before = {name: value.clone() for name, value in own.state_dict().items()}
    stored = set(pyro.get_param_store().keys())
    fit = em(model, own, DATA, **QUICK)
    fit.posterior(DATA, 10)
    assert set(pyro.get_param_store().keys()) == stored
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() is precision
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    assert {value.dtype for value in own.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_numbers_are_of_the_precision_of_the_data(precision):
    data = {"y": (DIMS, Y.astype(precision))}
    fit = em(model, lambda model: Guide(), data, num_steps=50, progress=False)
    assert {value.numpy().dtype for value in fit.guide.state_dict().values()} == {np.dtype(precision)}
    assert fit.posterior(data, 5)["posterior"]["z"].dtype == precision
    assert fit.settings["bound_falls"] == 0
    assert fit.settings["converged"] is True


def test_save_and_load(tmp_path, monkeypatch):
    fit = em(model, Guide(), DATA, **CAREFUL)
    fit.save(tmp_path / "fit")
    loaded = eg.load(tmp_path / "fit", model, Guide())
    assert_same(loaded, fit)
    assert loaded.settings == fit.settings
    trees = [f.posterior(DATA, 6, seed=2) for f in (fit, loaded)]
    for group in ("posterior", "sample_stats", "prior", "posterior_predictive"):
        assert trees[0][group].to_dataset().equals(trees[1][group].to_dataset())
    assert float(loaded.report(DATA)["final_loss"]) == fit.settings["final_loss"]
    with pytest.raises(LoadError, match="does not fit the saved numbers|cannot be restored"):
        eg.load(tmp_path / "fit", model, Guide(NUM_GROUPS + 1))
    with pytest.raises(LoadError, match="pass guide="):
        eg.load(tmp_path / "fit", model)
    monkeypatch.setitem(REGISTERED, "Guide", Guide)
    monkeypatch.setattr(Guide, "settings", lambda self: {"num_groups": len(self.loc)}, raising=False)
    monkeypatch.setattr(Guide, "from_settings", classmethod(lambda cls, s: cls(**s)), raising=False)
    fit.save(tmp_path / "fit")
    assert_same(eg.load(tmp_path / "fit", model), fit)


class NoUpdate(torch.nn.Module):
    """A guide for gradients only."""

    def forward(self, y):
        raise AssertionError


class NoSite(Guide):
    """Lacks a site of the model."""

    def forward(self, y):
        pyro.sample("mean", dist.Delta(self.mean))


class OtherSite(Guide):
    """Has a site that the model has not."""

    def forward(self, y):
        super().forward(y)
        pyro.sample("means", dist.Delta(self.mean))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"num_steps": 0}, DataError, "num_steps: found 0"),
        ({"window": 0}, DataError, "window: found 0"),
        ({"checkpoint_every": 1.5}, DataError, "checkpoint_every: found 1.5"),
        ({"seed": -1}, DataError, "seed: found -1"),
        ({"tolerance": -1e-3}, DataError, "tolerance: found -0.001; wanted None or a number of at least 0"),
        ({"tolerance": math.nan}, DataError, "tolerance: found nan"),
        ({"tolerance": "small"}, DataError, "tolerance: found 'small'"),
        ({"accelerate": "anderson"}, DataError, "accelerate: found 'anderson'; wanted None or 'squarem'"),
        ({"accelerate": "squarem"}, SchemaError, "found Guide without free_parameters, set_free_parameters; wanted"),
        ({"guide": NoUpdate()}, SchemaError, "guide: found NoUpdate without update; wanted a torch.nn.Module with"),
        ({"guide": AutoNormal}, SchemaError, "guide: found AutoNormal without update"),
        ({"guide": lambda y: None}, SchemaError, "guide: found <lambda> without update"),
        ({"guide": NoSite()}, SchemaError, r"sites \['mean'\]; wanted \['between', 'mean', 'within', 'z'\]"),
        ({"guide": OtherSite()}, SchemaError, "guide: found sites .*'means'"),
        ({"data": {"x": (DIMS, Y)}}, SchemaError, "y: the model takes it"),
        ({"data": {"y": (DIMS, Y * math.nan)}}, DataError, "y: found 60 values that are NaN"),
        ({"latent": ["z"]}, SchemaError, "latent: found 'z'"),
    ],
)
def test_bad_arguments(change, kind, message):
    with pytest.raises(kind, match=message):
        em(model, **{"guide": Guide(), "data": DATA, **QUICK, **change})
