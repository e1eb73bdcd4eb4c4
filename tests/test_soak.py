"""Many fits in one process leave nothing behind, and fits that run inside one another do not disturb each other."""

from __future__ import annotations

import gc
import os
import random
import threading
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from environment_fits import two_latents
from med_magma_fits import data_of
from pyro.infer.autoguide import AutoNormal

import embergraph as eg
from embergraph.datasets import simulated_linear_contexts
from embergraph.inference import em, mcmc, svi
from embergraph.models import MEDMAGMA, NOTMAD, EnvironmentVAE

WARM = 10
MANY = 50
MEGABYTE = 2**20


def data_of_size(n, p):
    return {"y": (("cell", "gene"), np.random.default_rng(n).normal(1.0, 1.0, (n, p)))}


def model(y):
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    with pyro.plate("gene", y.shape[-1], dim=-1):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("cell", len(y), dim=-1):
        pyro.sample("y_obs", dist.Normal(mean, noise).to_event(1), obs=pyro.subsample(y, event_dim=1))


def hand_guide(y):
    pyro.sample("noise", dist.Delta(pyro.param("noise_at", torch.ones(()))))
    with pyro.plate("gene", y.shape[-1], dim=-1):
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.zeros(y.shape[-1])), 0.1))


class Calls(torch.nn.Module):
    """A guide whose update, between steps or sweeps, does what it is told, such as fitting something else."""

    def __init__(self, does=lambda: None):
        super().__init__()
        self.register_buffer("noise", torch.ones(()))
        self.loc = torch.nn.Parameter(torch.zeros(3))
        self.does = does

    def __deepcopy__(self, memo):
        return Calls(self.does)

    def forward(self, y):
        pyro.sample("noise", dist.Delta(self.noise))
        with pyro.plate("gene", 3, dim=-1):
            pyro.sample("mean", dist.Normal(self.loc, 0.1))

    def update(self, model, inputs, step):
        before = torch.rand(())
        self.does()
        self.noise = 1 + 0.1 * before + 0.1 * torch.rand(())
        return -float(step)


def new(kind, *arguments):
    """A model; a module draws its first weights from the state of its maker."""
    with torch.random.fork_rng():
        return kind.for_data(*arguments)


def fit_one(k, path):
    """The k-th of many: another routine and another size each time."""
    n, p = 10 + 7 * (k % 5), 2 + k % 3
    data = data_of_size(n, p)
    kind = k % 8
    if kind == 0:
        fit = svi(model, AutoNormal, data, num_steps=8, num_restarts=2, progress=False)
    elif kind == 1:
        fit = svi(model, hand_guide, data, num_steps=8, batch_size=5, progress=False, checkpoint=path / "c")
    elif kind == 2:
        fit = mcmc(model, data, num_warmup=4, num_draws=4, max_tree_depth=2, progress=False)
    elif kind == 3:
        data = data_of_size(n, 3)
        fit = em(model, Calls(), data, num_steps=5, tolerance=None, progress=False)
    elif kind == 4:
        data = two_latents(num_cells=20 + n)
        fit = eg.fit(new(EnvironmentVAE, data, 2), data, routine="em", num_steps=3, progress=False)
    elif kind == 5:
        data = two_latents(num_cells=20 + n)
        fit = eg.fit(new(EnvironmentVAE, data, 2), data, routine="svi", num_steps=20, progress=False)
    elif kind == 6:
        data = data_of(8 + k % 4, 9)
        fit = eg.fit(new(MEDMAGMA, data), data, num_steps=3, progress=False)
    else:
        data, _ = eg.standardize(simulated_linear_contexts(0, num_cells=40 + n))
        options = {"num_restarts": 1, "num_steps": 10, "num_orders": 1, "num_warmup": 2, "num_draws": 3}
        fit = eg.fit(new(NOTMAD, data), data, posterior="hmc", **options, progress=False)
    fit.posterior(data, 6, prior=False)
    fit.save(path / "fit")
    eg.load(path / "fit", **({"model": model} if kind < 4 else {}), **({"guide": guide_of(kind)} if kind < 4 else {}))


def guide_of(kind):
    return [AutoNormal, hand_guide, None, Calls()][kind]


def resident():
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def live_tensors():
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # modules that warn when they are looked at
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects() if type(thing) is not type)


def surroundings():
    """Everything of the caller's that a fit could disturb, as something that can be compared."""
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002
        "python": random.getstate(),
        "pyro": sorted(pyro.get_param_store().keys()),
        "dtype": torch.get_default_dtype(),
        "pyro validation": pyro.settings.get("validate_distributions_pyro"),
        "torch validation": torch.distributions.Distribution._validate_args,
        "gradients": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "figures": plt.get_fignums(),
        "settings": dict(plt.rcParams),
        "numpy errors": np.geterr(),
        "folder": os.getcwd(),
    }


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_many_fits_leave_nothing_behind(tmp_path):
    pyro.param("mine", torch.ones(2))
    torch.manual_seed(3)
    before = surroundings()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of data too small for anything
        for k in range(MANY):
            fit_one(k, tmp_path)
            if k == WARM + 5:
                tensors, memory, threads = live_tensors(), resident(), threading.active_count()
    for name, value in before.items():
        assert surroundings()[name] == value, name
    assert torch.equal(pyro.param("mine"), torch.ones(2))
    assert live_tensors() <= tensors + 5
    assert threading.active_count() <= threads
    assert resident() - memory < 60 * MEGABYTE
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fit"]


def same(a, b):
    np.testing.assert_array_equal(a.history, b.history)
    numbers = [{**f.guide.state_dict(), **f.store["params"]} for f in (a, b)]
    assert numbers[0].keys() == numbers[1].keys()
    assert all(torch.equal(value, numbers[1][name]) for name, value in numbers[0].items())


SHIFTED = two_latents(num_cells=20)
with torch.random.fork_rng():
    LINEAR = EnvironmentVAE.for_data(SHIFTED, 2)
INSIDE = {
    "svi": lambda: svi(model, hand_guide, data_of_size(12, 2), num_steps=4, seed=5, progress=False),
    "em": lambda: em(model, Calls(), data_of_size(12, 3), num_steps=4, seed=5, tolerance=None, progress=False),
    "mcmc": lambda: mcmc(model, data_of_size(9, 2), num_warmup=3, num_draws=3, seed=5, progress=False),
    "vae": lambda: eg.fit(LINEAR, SHIFTED, num_steps=2, progress=False),
}


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("outside", ["svi", "em"])
def test_a_fit_inside_a_fit_disturbs_neither(outside, inside):
    data, found = data_of_size(20, 3), []

    def run(does):
        if outside == "em":
            return em(model, Calls(does), data, num_steps=4, tolerance=None, progress=False)
        return svi(model, Calls(does), data, num_steps=8, update_every=3, batch_size=5, progress=False)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same(run(lambda: found.append(INSIDE[inside]())), run(lambda: None))
        alone = INSIDE[inside]()
    assert len(found) >= 2
    for fit in found:
        np.testing.assert_array_equal(fit.history, alone.history)


def test_steps_of_two_fits_in_turns_are_those_of_each_alone():
    data = [data_of_size(20, 3), data_of_size(15, 2)]
    fits = [svi(model, AutoNormal, d, num_steps=3, seed=i, progress=False) for i, d in enumerate(data)]
    alone = [f.resume(d, 6, progress=False) for f, d in zip(fits, data, strict=True)]
    for _ in range(3):
        fits = [f.resume(d, 2, progress=False) for f, d in zip(fits, data, strict=True)]
    for found, wanted in zip(fits, alone, strict=True):
        np.testing.assert_array_equal(found.history, wanted.history)
