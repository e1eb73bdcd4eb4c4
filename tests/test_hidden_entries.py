"""Entries that are hidden before a fit and scored after it: closed forms, and models that read what is hidden."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from notmad_use_cases import data as networks_data
from notmad_use_cases import from_prior
from pyro import poutine
from scipy.stats import norm

import embergraph as eg
from embergraph.hidden_entries import hidden_log_density, hide_entries
from embergraph.inference import Fit, StoredDraws, mcmc, svi
from embergraph.inference.inputs import Template
from embergraph.inference.plain import schema_of

N, P = 30, 4
RNG = np.random.default_rng(5)
CELLS = xr.Dataset(
    {"x": (("cell", "gene"), np.random.default_rng(0).normal(1.0, 1.0, (N, P)))},
    {"gene": list("abcd"), "cell": [f"c{i}" for i in range(N)]},
)


def masking(x, seen):
    with pyro.plate("gene", P, dim=-1):
        mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0).double(), 1.0))
        with pyro.plate("cell", len(x), dim=-2), poutine.mask(mask=seen):
            pyro.sample("x_seen", dist.Normal(mean, 1.0), obs=x)


def imputing(x, seen):
    with pyro.plate("gene", P, dim=-1):
        mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0).double(), 1.0))
        with pyro.plate("cell", len(x), dim=-2):
            pyro.sample("x_seen", dist.Normal(mean, 1.0), obs=x, obs_mask=seen)


def peeking(x, seen):
    """Masks the site, but centres the data by all of them."""
    with pyro.plate("gene", P, dim=-1):
        mean = pyro.sample("mean", dist.Normal(x.mean(), 1.0))
        with pyro.plate("cell", len(x), dim=-2), poutine.mask(mask=seen):
            pyro.sample("x_seen", dist.Normal(mean, 1.0), obs=x)


def posterior(x, seen):
    count = seen.double().sum(0)
    shift = pyro.param("shift", torch.zeros(()).double())
    with pyro.plate("gene", P, dim=-1):
        pyro.sample("mean", dist.Normal((x * seen).sum(0) / (count + 1) + shift, (count + 1) ** -0.5))


def exact(model, hidden: xr.Dataset) -> Fit:
    return svi(model, posterior, hidden, num_steps=1, learning_rate=1e-12, progress=False)


@pytest.fixture(scope="module")
def hidden() -> xr.Dataset:
    return hide_entries(CELLS, share=0.2, variable="x", seed=1)


def test_entries_are_hidden(hidden: xr.Dataset) -> None:
    seen, x = hidden["seen"].values, CELLS["x"].values
    assert seen.sum() == N * P - round(0.2 * N * P)
    np.testing.assert_array_equal(hidden["x"].values[seen], x[seen])
    wanted = np.where(seen, x, 0).sum(0) / seen.sum(0)
    np.testing.assert_allclose(hidden["x"].values, np.where(seen, x, wanted))
    np.testing.assert_array_equal(hidden["hidden_x"].values, np.where(seen, np.nan, x))
    counts = xr.Dataset({"expression": (("cell", "gene"), np.random.default_rng(0).poisson(3.0, (6, 3)))})
    most = hide_entries(counts, share=0.9)
    assert most["seen"].values.any(axis=1).all()
    assert most["seen"].values.any(axis=0).all()
    assert most["expression"].dtype == counts["expression"].dtype
    for options, words in (
        ({"share": 1.0}, "share: found 1.0"),
        ({"variable": "y"}, "y: found"),
        ({"mask": "x"}, "x: found"),
    ):
        with pytest.raises(eg.DataError, match=words):
            hide_entries(CELLS, **{"variable": "x", **options})


def wanted_density(hidden: xr.Dataset) -> np.ndarray:
    seen, x = hidden["seen"].values, CELLS["x"].values
    count = seen.sum(0)
    law = norm(np.where(seen, x, 0).sum(0) / (count + 1), np.sqrt(1 + 1 / (count + 1)))
    return np.where(seen, np.nan, law.logpdf(x))


@pytest.mark.parametrize("model", [masking, imputing])
def test_hidden_entries_have_the_closed_form(model, hidden: xr.Dataset) -> None:
    fit = exact(masking, hidden)
    if model is imputing:  # imputed entries are latent sites, which are not looked at
        count, total = hidden["seen"].values.sum(0), (hidden["x"] * hidden["seen"]).values.sum(0)
        draws = torch.as_tensor(RNG.normal(total / (count + 1), (count + 1) ** -0.5, (2000, 1, P)))
        values = {"mean": draws, "x_seen_unobserved": draws + torch.as_tensor(RNG.normal(size=(2000, N, P)))}
        schema = schema_of(imputing, hidden)
        stored = StoredDraws({name: value[None] for name, value in values.items()})
        fit = Fit(imputing, None, schema, Template.of(schema, hidden), draws=stored)
    found = hidden_log_density(fit, hidden, num_samples=2000)
    assert found.dims == ("cell", "gene")
    assert list(found["gene"].values) == list("abcd")
    np.testing.assert_allclose(found.values, wanted_density(hidden), atol=0.03)


def test_hidden_entries_of_a_sampler(hidden: xr.Dataset) -> None:
    fit = mcmc(masking, hidden, num_draws=80, num_warmup=60, progress=False)
    np.testing.assert_allclose(hidden_log_density(fit, hidden).values, wanted_density(hidden), atol=0.2)


def test_fits_that_read_hidden_entries_are_refused(hidden: xr.Dataset) -> None:
    with pytest.raises(eg.SchemaError, match="x: found that peeking reads entries that were hidden"):
        hidden_log_density(exact(peeking, hidden), hidden)
    fit = from_prior()
    mine = hide_entries(networks_data(60, scale="gene"))
    with pytest.raises(eg.SchemaError, match="NOTMAD: found no input 'seen'"):
        hidden_log_density(fit, mine)
    with pytest.raises(eg.DataError, match="data: found no hidden entries"):
        hidden_log_density(exact(masking, hidden), hidden.drop_vars("hidden_x"))
    with pytest.raises(eg.DataError, match="hidden_x: found values that do not fit"):
        hidden_log_density(exact(masking, hidden), hidden.assign(seen=~hidden["seen"]))
