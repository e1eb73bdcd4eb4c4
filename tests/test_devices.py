"""Everything on a GPU gives what it gives on the CPU; skipped where there is none."""

from __future__ import annotations

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from environment_fits import counts, two_latents
from med_magma_fits import data_of
from pyro.infer.autoguide import AutoDelta, AutoNormal

import embergraph as eg
from embergraph.datasets import simulated_linear_contexts
from embergraph.inference import em, mcmc, svi
from embergraph.inference.copies import make_pair
from embergraph.inference.messengers import rng_state, set_rng_state
from embergraph.models import MEDMAGMA, NOTMAD, EnvironmentVAE

GPU = "cuda"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
Y = np.random.default_rng(0).normal([1.0, 2.0, 3.0], 1.0, size=(40, 3))
DATA = {"y": (("cell", "gene"), Y)}


def model(y):
    noise = pyro.sample("noise", dist.LogNormal(y.new_zeros(()), 1.0))
    with pyro.plate("gene", 3, dim=-1):
        mean = pyro.sample("mean", dist.Normal(y.new_zeros(()), 2.0))
    with pyro.plate("cell", len(y), dim=-1):
        pyro.sample("y_obs", dist.Normal(mean, noise).to_event(1), obs=pyro.subsample(y, event_dim=1))


class Sweeps(torch.nn.Module):
    """Means of the genes; what it holds in double precision is so on every device."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("noise", torch.ones(()))

    def forward(self, y):
        pyro.sample("noise", dist.Delta(self.noise))
        with pyro.plate("gene", 3, dim=-1):
            pyro.sample("mean", dist.Delta(self.mean))

    def update(self, model, inputs, step):
        y = inputs["y"].double()
        assert y.device == self.mean.device
        mean = y.sum(0) / (len(y) + self.noise.double() ** 2 / 4)
        self.mean.copy_(mean)
        self.noise.copy_((y - mean).square().mean().sqrt())
        return float(-len(y) * self.noise.log())


def both(run):
    """A fit on either device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fits = [run("cpu"), run(GPU)]
    assert fits[1].device.type == torch.device(GPU).type
    return fits


def answers(fit, data, predictive=True):
    """What users read off a fit, on the CPU."""
    tree = fit.posterior(data, 60, predictive=predictive, prior=False)
    found = {f"{g}/{n}": v.values for g in ("posterior", "log_likelihood") for n, v in tree[g].data_vars.items()}
    found["density"] = fit.log_density(data, 60).values
    if predictive:
        found["predicted"] = next(iter(fit.predict(data, 20).data_vars.values())).values
    return found


def assert_alike(fits, data, rtol, exact=()):
    """Numbers that have no noise are the same; means over draws are of one size."""
    cpu, gpu = (answers(fit, data) for fit in fits)
    assert cpu.keys() == gpu.keys()
    for name, value in cpu.items():
        assert value.shape == gpu[name].shape
        assert np.isfinite(gpu[name]).all()
        if name in exact:
            np.testing.assert_allclose(gpu[name], value, rtol=rtol, atol=rtol, err_msg=name)


@needs_gpu
@pytest.mark.parametrize("batch_size", [None, 10])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_svi(dtype, batch_size):
    data = {"y": (("cell", "gene"), Y.astype(dtype))}
    fits = both(
        lambda on: svi(
            model, AutoDelta, data, num_steps=60, batch_size=batch_size, learning_rate=0.05, device=on, progress=False
        )
    )
    tolerance = 1e-3 if dtype == "float32" else 1e-9
    np.testing.assert_allclose(fits[1].history, fits[0].history, rtol=tolerance)
    assert_alike(fits, data, 10 * tolerance, ["posterior/mean", "posterior/noise"])


@needs_gpu
def test_svi_with_noise_restarts_and_a_checkpoint(tmp_path):
    options = {"num_steps": 300, "num_restarts": 2, "learning_rate": 0.05, "progress": False}
    cpu, gpu = both(
        lambda on: svi(model, AutoNormal, DATA, device=on, checkpoint=tmp_path / on, checkpoint_every=100, **options)
    )
    means = [fit.posterior(DATA, 500)["posterior"]["mean"].mean(("chain", "draw")).values for fit in (cpu, gpu)]
    np.testing.assert_allclose(*means, atol=0.1)
    assert gpu.resume(DATA, 5, progress=False).settings["steps_done"] == 305


@needs_gpu
@pytest.mark.parametrize("guide", [Sweeps(), lambda model: Sweeps()], ids=["object", "factory"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_em(dtype, guide):
    data = {"y": (("cell", "gene"), Y.astype(dtype))}
    fits = both(lambda on: em(model, guide, data, num_steps=10, device=on, progress=False))
    np.testing.assert_allclose(fits[1].history, fits[0].history, rtol=1e-6)
    assert_alike(fits, data, 1e-6, ["posterior/mean", "log_likelihood/y_obs", "density"])


@needs_gpu
@pytest.mark.parametrize("start", [None, {"noise": 1.0, "mean": np.zeros(3)}])
def test_mcmc(start):
    fits = both(
        lambda on: mcmc(model, DATA, num_warmup=60, num_draws=150, start=start, device=on, progress=False, seed=1)
    )
    assert_alike(fits, DATA, 0.0)
    means = [fit.posterior(DATA, 150)["posterior"]["mean"].mean(("chain", "draw")).values for fit in fits]
    np.testing.assert_allclose(*means, atol=0.15)


def _linear():
    data = two_latents(num_cells=60)
    return EnvironmentVAE.for_data(data, 2), data, {"routine": "em", "num_steps": 20}


def _vae():
    data = counts()
    return EnvironmentVAE.for_data(data, 3), data, {"num_steps": 60}


def _med_magma():
    data = data_of()
    return MEDMAGMA.for_data(data), data, {"num_steps": 20}


def _notmad(posterior="hmc", **options):
    data, _ = eg.standardize(simulated_linear_contexts(0, num_cells=150))
    few = {
        "num_restarts": 2,
        "num_orders": 2,
        "num_warmup": 60,
        "num_draws": 60,
        "num_guide_steps": 100,
        "num_steps": 200,
    }
    return NOTMAD.for_data(data, **options), data, {**few, "posterior": posterior}


PLANS = {
    "linear": _linear,
    "vae": _vae,
    "med_magma": _med_magma,
    "notmad hmc": _notmad,
    "notmad mean field": lambda: _notmad("mean_field"),
    "notmad relaxed": lambda: _notmad("auto", order=None),
    "notmad projected": lambda: _notmad("auto", order="projected"),
}


@needs_gpu
@pytest.mark.parametrize("name", PLANS)
def test_plans(name, tmp_path):
    made, data, options = PLANS[name]()
    fits = both(lambda on: eg.fit(made, data, device=on, progress=False, **options))
    assert_alike(fits, data, 0.0)
    if name in ("linear", "med_magma"):  # without random numbers
        np.testing.assert_allclose(fits[1].history, fits[0].history, rtol=1e-6)
    else:
        densities = [float(fit.log_density(data, 60).mean()) for fit in fits]
        np.testing.assert_allclose(*densities, rtol=0.05)
    fits[1].save(tmp_path / "fit")
    loaded = eg.load(tmp_path / "fit")
    assert loaded.device.type == "cpu"
    for key, value in answers(loaded, data).items():
        assert np.isfinite(value).all(), key


def test_a_guide_that_is_made_goes_where_the_data_are():
    inputs = {"y": torch.zeros(3, 2, device="meta")}
    _, guide, _ = make_pair(model, lambda model: torch.nn.Linear(2, 1, dtype=torch.double), inputs)
    assert guide.weight.device.type == "meta"
    assert guide.weight.dtype == torch.double


def test_random_states_of_more_devices_than_there_are():
    before = torch.get_rng_state()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        wanted = torch.get_rng_state()
        torch.manual_seed(2)
        set_rng_state((wanted, *(torch.zeros(16, dtype=torch.uint8) for _ in range(0 if len(rng_state()) > 1 else 3))))
        assert torch.equal(torch.get_rng_state(), wanted)
    assert torch.equal(torch.get_rng_state(), before)
