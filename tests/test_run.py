"""What a run of SVI does when numbers go wrong, when it is interrupted, and when options cannot be."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from embergraph.inference import Cosine, Fit, svi
from embergraph.models.parts.errors import DataError, NumericalError

DATA = {"y": ("cell", np.random.default_rng(0).normal(1.0, 1.0, 20))}
QUICK = {"num_steps": 20, "progress": False}


def model(y):
    """Normal mean with a Normal(0, 2^2) prior and unit noise."""
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("cell", len(y)):
        pyro.sample("y_obs", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.parametrize("where", ["likelihood", "gradient"])
def test_nan_names_step_and_site_and_leaves_a_usable_fit(where):
    calls = {"left": 30}

    def breaks(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        calls["left"] -= mean.requires_grad
        broken = calls["left"] < 0
        if broken and where == "gradient":
            zero = (mean - mean.detach()).abs()
            mean = mean + (zero * 0).sqrt()  # value 0, derivative NaN
        elif broken:
            mean = mean * float("nan")
        with pyro.plate("cell", len(y)):
            pyro.sample("y_obs", dist.Normal(mean, 1.0), obs=y)

    with pytest.raises(NumericalError, match=r"step 31: the (loss|gradient) is") as caught:
        svi(breaks, AutoNormal, DATA, num_steps=60, learning_rate=0.05, progress=False)
    named = {"likelihood": "site 'y_obs' of the model", "gradient": "parameter 'AutoNormal.locs.mean'"}
    assert named[where] in str(caught.value)
    fit = caught.value.fit
    calls["left"] = 1000
    good = svi(breaks, AutoNormal, DATA, num_steps=30, learning_rate=0.05, progress=False)
    assert isinstance(fit, Fit)
    assert fit.history.shape == (1, 30)
    np.testing.assert_array_equal(fit.history, good.history)
    assert all(torch.isfinite(p).all() for p in fit.store["params"].values())
    assert "step 31" in fit.settings["failures"]["0"]
    assert np.isfinite(fit.posterior(DATA, 50)["posterior"]["mean"]).all()


def test_one_failed_restart_of_two_is_not_chosen():
    def breaks(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        bad = torch.where(mean > 0, mean, torch.full_like(mean, float("nan")))
        with pyro.plate("cell", len(y)):
            pyro.sample("y_obs", dist.Normal(bad, 0.1), obs=y)

    def somewhere(model):
        start = next(starts)
        return AutoNormal(model, init_loc_fn=lambda site: torch.tensor(start, dtype=torch.double), init_scale=0.01)

    starts = iter([-1.0, 1.0])
    fit = svi(breaks, somewhere, DATA, num_restarts=2, **QUICK)
    assert fit.settings["chosen_restart"] == 1
    assert "step 1: the loss is nan, at site 'y_obs' of the model" in fit.settings["failures"]["0"]
    starts = iter([-1.0, -1.0])
    with pytest.raises(NumericalError, match="step 1"):
        svi(breaks, somewhere, DATA, num_restarts=2, **QUICK)


def test_errors_raised_by_the_model_in_mid_run_are_failures_too():
    def solves(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        calls.append(mean.requires_grad)
        if sum(calls) > 10:
            torch.linalg.cholesky(-torch.eye(2))
        pyro.factor("nothing", 0 * mean)

    calls: list[bool] = []
    with pytest.raises(NumericalError, match=r"step 11: linalg.cholesky"):
        svi(solves, AutoNormal, DATA, **QUICK)


def test_a_last_step_out_of_the_domain_goes_back():
    """The loss is finite at every step taken, and the parameters after the last one are not."""

    def point(y):
        pyro.sample("mean", dist.Delta(pyro.param("loc", torch.zeros(()))))

    def edge(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        pyro.factor("edge", torch.where(mean < 0.35, 10 * mean, torch.full_like(mean, float("nan"))))

    fit = svi(edge, point, DATA, num_steps=4, learning_rate=0.1, progress=False)
    assert np.isfinite(fit.settings["final_loss"])
    assert float(fit.posterior(DATA, 2, prior=False)["posterior"]["mean"][0, 0]) == pytest.approx(0.3, abs=0.01)


class Stop:
    """A schedule of the learning rate that presses Ctrl-C when called for the `after`-th time."""

    def __init__(self, after):
        self.left = after

    def __call__(self, done):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return 1.0


def test_interruption_returns_what_was_fitted():
    full = svi(model, AutoNormal, DATA, num_steps=8, progress=False)
    fit = svi(model, AutoNormal, DATA, num_steps=20, schedules={"learning_rate": Stop(8)}, progress=False)
    assert fit.settings["interrupted"] is True
    assert fit.settings["steps_done"] == 8
    np.testing.assert_array_equal(fit.history, full.history)
    second = svi(model, AutoNormal, DATA, num_restarts=3, schedules={"learning_rate": Stop(25)}, **QUICK)
    assert second.history.shape == (2, 20)
    assert np.isfinite(second.history[1]).sum() == 5
    assert second.posterior(DATA, 5)["posterior"].attrs["interrupted"] == 1
    with pytest.raises(KeyboardInterrupt):
        svi(model, AutoNormal, DATA, schedules={"learning_rate": Stop(0)}, **QUICK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 0}, "num_steps: found 0"),
        ({"num_restarts": 1.5}, "num_restarts: found 1.5"),
        ({"batch_size": 0}, "batch_size: found 0"),
        ({"learning_rate": {"*scales*": 0.1}}, "no pattern for parameter 'AutoNormal.locs.mean'"),
        ({"schedules": {"wieght": Cosine()}}, "schedules: found .'wieght'"),
        ({"latent": ["z"]}, "latent: found 'z'"),
    ],
)
def test_options_out_of_range(change, message):
    with pytest.raises(DataError, match=message):
        svi(model, AutoNormal, DATA, **{**QUICK, **change})
