"""Models with exact posteriors, and fits that hold them, for tests of calibration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import xarray as xr

from embergraph.inference import Fit
from embergraph.inference.inputs import Template
from embergraph.inference.plain import schema_of

PRIOR_SD = 2.0
NUMBERS = {"y": ("cell", np.zeros(8))}
COINS = {"y": ("cell", np.zeros(6))}


def normal_mean(y):
    mean = pyro.sample("mean", dist.Normal(0.0, PRIOR_SD))
    with pyro.plate("cell", len(y)):
        pyro.sample("y_obs", dist.Normal(mean, 1.0), obs=y)


def beta_bernoulli(y):
    share = pyro.sample("share", dist.Beta(2.0, 1.0))
    with pyro.plate("cell", len(y)):
        pyro.sample("y_obs", dist.Bernoulli(share), obs=y)


def two_means(y):
    """Only the sum of the two is seen, so that they are negatively correlated a posteriori."""
    first = pyro.sample("first", dist.Normal(0.0, 1.0))
    second = pyro.sample("second", dist.Normal(0.0, 1.0))
    with pyro.plate("cell", len(y)):
        pyro.sample("y_obs", dist.Normal(first + second, 1.0), obs=y)


class NormalPosterior:
    """Posterior of `normal_mean` for a noise of `noise`; exact for 1."""

    def __init__(self, noise: float = 1.0, shift: float = 0.0) -> None:
        self.noise, self.shift = noise, shift

    def __call__(self, y):
        precision = PRIOR_SD**-2 + len(y) / self.noise**2
        sd = precision**-0.5
        pyro.sample("mean", dist.Normal(y.sum() / self.noise**2 / precision + self.shift * sd, sd))


def beta_posterior(y):
    pyro.sample("share", dist.Beta(2.0 + y.sum(), 1.0 + (1 - y).sum()))


def fit_of(model: Callable[..., Any], guide: Callable[..., Any], data: xr.Dataset) -> Fit:
    """A fit whose guide is given, with nothing to fit."""
    schema = schema_of(model, data)
    return Fit(model, guide, schema, Template.of(schema, data))


def normal_fit(data: xr.Dataset) -> Fit:
    return fit_of(normal_mean, NormalPosterior(), data)


def drawing_fit(data: xr.Dataset) -> Fit:
    """As `normal_fit`, but it disturbs all that is global, and its answers depend on the global random state."""
    pyro.set_rng_seed(torch.randint(10**6, ()).item() + np.random.randint(10))  # noqa: NPY002
    pyro.param("left_behind", torch.zeros(3))
    return fit_of(normal_mean, NormalPosterior(shift=float(0.1 * torch.randn(()))), data)
