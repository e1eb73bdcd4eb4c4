"""A model of one's own, two plates, an enumerated discrete site, a deterministic one, goes everywhere."""

import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal

import embergraph as eg


def responders(dose, y):
    weight = pyro.sample("weight", dist.Beta(4.0, 4.0))
    slope = pyro.sample("slope", dist.Normal(1.0, 0.5))
    pyro.deterministic("top", 3.0 * slope)
    genes = pyro.plate("gene", y.shape[-1], dim=-1)
    with genes:
        base = pyro.sample("base", dist.Normal(0.0, 1.0))
    with pyro.plate("cell", len(y), dim=-2):
        alive = pyro.sample("alive", dist.Bernoulli(weight), infer={"enumerate": "parallel"})
        with genes:
            pyro.sample("obs", dist.Normal(base + alive * slope * dose[:, None], 0.5), obs=y)


def guide(model):
    return AutoMultivariateNormal(poutine.block(model, hide=["alive"]))


NAMES = ["weight", "slope", "top", "base"]
SHAPES = {"dose": ("cell", torch.linspace(0.5, 3.0, 30)), "y": (("cell", "gene"), torch.zeros(30, 2))}


def by_svi(data, seed=0, num_steps=500):
    return eg.svi(responders, guide, data[["dose", "y"]], num_steps=num_steps, seed=seed, progress=False)


@pytest.fixture(scope="module")
def data():
    return eg.simulate(responders, SHAPES, seed=1).assign_coords(gene=["GATA1", "KLF1"])


@pytest.fixture(scope="module")
def variational(data):
    return by_svi(data)


@pytest.fixture(scope="module")
def sampled(data):
    return eg.mcmc(responders, data[["dose", "y"]], num_warmup=150, num_draws=150, progress=False)


@pytest.mark.parametrize("routine", ["variational", "sampled"])
def test_fit_export_criticism_and_report(routine, data, request):
    fit = request.getfixturevalue(routine)
    tree = fit.posterior(data, 100)
    assert tree["posterior"]["alive"].dims == ("chain", "draw", "cell")
    assert tree["posterior"]["gene"].values.tolist() == ["GATA1", "KLF1"]
    found = fit.readings(data)
    assert list(found) == NAMES
    for name in NAMES:
        assert np.isfinite(found[name]["estimate"]).all()
    assert fit.log_density(data).sizes == {"cell": 30}
    checks = eg.predictive_check(fit, data, num_samples=60, progress=False)
    assert float(checks["gene_mean_p"].min()) > 0.01
    told = eg.report(fit, data, progress=False)
    for text in (str(told), told.html):
        assert not re.search(r"\bnan\b", text, flags=re.IGNORECASE)
        for name in [*NAMES, "alive", "Bernoulli", "GATA1"]:
            assert name in text
    assert told.to_dataset().sizes is not None


def test_both_routines_agree(variational, sampled, data):
    one, other = (fit.readings(data, num_samples=150) for fit in (variational, sampled))
    for name in NAMES:
        width = (other[name]["upper"] - other[name]["lower"]).values
        assert (np.abs(one[name]["estimate"] - other[name]["estimate"]).values < 0.4 * width).all()


def test_calibration_without_special_code():
    result = eg.calibrate(responders, SHAPES, fit=by_svi, num_replicates=24, num_samples=99, progress=False)
    assert result["reading"].values.tolist() == sorted(NAMES)
    assert not any(set(str(v).split()) & {"narrow", "wide", "shifted"} for v in result["verdict"].values)
    assert (np.abs(result["coverage"].sel(mass=0.9) - 0.9) < 0.15).all()


def test_a_fit_of_it_saves_and_loads(variational, data, tmp_path):
    loaded = eg.load(variational.save(tmp_path / "fit"), model=responders, guide=guide)
    one, other = (fit.readings(data)["base"] for fit in (variational, loaded))
    np.testing.assert_allclose(one["estimate"], other["estimate"])
