"""Priors that live in a module, and the distributions that Pyro lacks."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy.stats import kstest, norm
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, Normal

from embergraph.models.parts.distributions import FiniteOrders, SpikeSlab, UniformOrder, permutation
from embergraph.models.parts.edge_priors import Horseshoe
from embergraph.models.parts.errors import DataError, LoadError
from embergraph.models.parts.priors import NAMED, Prior

EXAMPLES = {
    "Normal": dist.Normal(0.5, 2.0), "Laplace": dist.Laplace(0.0, 0.3), "StudentT": dist.StudentT(3.0, 0.1, 0.5),
    "Cauchy": dist.Cauchy(0.0, 1.0), "HalfNormal": dist.HalfNormal(0.7), "HalfCauchy": dist.HalfCauchy(0.3),
    "LogNormal": dist.LogNormal(0.1, 0.5), "Gamma": dist.Gamma(2.0, 3.0), "InverseGamma": dist.InverseGamma(3.0, 2.0),
    "Exponential": dist.Exponential(1.5), "Uniform": dist.Uniform(-1.0, 2.0), "SpikeSlab": SpikeSlab(0.2, 0.9, 0.04),
    "Beta": dist.Beta(2.0, 3.0), "Horseshoe": Horseshoe(0.2),
}  # fmt: skip


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_every_named_distribution_is_tried_here():
    assert set(EXAMPLES) == set(NAMED)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_prior_moves_is_saved_and_comes_back(name):
    """Density over a shape, double precision, state dict, and JSON settings."""
    given = EXAMPLES[name]
    prior = Prior(given)
    value = given.sample((4, 3))
    expanded = prior.expand((4, 3))
    assert expanded.event_shape == (4, 3)
    torch.testing.assert_close(expanded.log_prob(value), given.log_prob(value).sum())
    double = Prior(given).double()
    torch.testing.assert_close(double.expand((4, 3)).log_prob(value.double()).float(), expanded.log_prob(value))
    assert double.expand(()).sample().dtype == torch.float64
    assert set(prior.state_dict()) == set(given.arg_constraints)
    settings = json.loads(json.dumps(prior.settings()))
    again = Prior.from_settings(settings)
    torch.testing.assert_close(again.expand((4, 3)).log_prob(value), expanded.log_prob(value))
    for number in again.buffers():
        number.fill_(1.5)
    again.load_state_dict(prior.state_dict())
    torch.testing.assert_close(again.expand((4, 3)).log_prob(value), expanded.log_prob(value))
    assert name in repr(prior)


def test_the_numbers_are_the_models_own():
    scale = torch.tensor(2.0)
    model = nn.Sequential(Prior(dist.Normal(0.0, scale)))
    scale.fill_(9.0)
    assert float(model[0].expand(()).variance) == 4.0
    model.load_state_dict({"0.loc": torch.tensor(1.0), "0.scale": torch.tensor(3.0)})
    assert float(model[0].expand(()).mean) == 1.0
    assert list(model.parameters()) == []


def test_hierarchies_see_shape_and_axes_of_draws():
    """A scale of its own in every draw; the model's plates and draws stay left of the event."""
    prior = Prior(lambda shape: dist.Normal(0.0, pyro.sample("width", dist.HalfNormal(1.0))[..., None, None]))

    def model():
        return pyro.sample("edges", prior.expand((2, 3)))

    one = poutine.trace(model).get_trace()
    assert one.nodes["edges"]["value"].shape == (2, 3)
    with pyro.plate("draws", 5, dim=-2):
        trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    width, edges = trace.nodes["width"]["value"], trace.nodes["edges"]
    assert width.shape == (5, 1)
    assert edges["value"].shape == (5, 1, 2, 3)
    exact = dist.Normal(0.0, width[..., None, None]).log_prob(edges["value"]).sum((-1, -2))
    torch.testing.assert_close(edges["log_prob"], exact)
    assert len(width.unique()) == 5
    assert prior.settings() is None


def test_what_is_no_prior():
    for wrong in (dist.Normal(torch.zeros(2), 1.0).to_event(1), dist.Dirichlet(torch.ones(3))):
        with pytest.raises(DataError, match=r"prior: found events of shape \(.*\); wanted scalars"):
            Prior(wrong)
    for wrong in (1.0, None, dist.Normal):
        with pytest.raises(DataError, match="wanted a distribution"):
            Prior(wrong)
    transformed = dist.TransformedDistribution(dist.Normal(0.0, 1.0), [dist.transforms.ExpTransform()])
    with pytest.raises(DataError, match="TransformedDistribution declares no parameters; pass a callable"):
        Prior(transformed)
    for name in ("os.system", "Bernoulli", None):
        with pytest.raises(LoadError, match="prior: found"):
            Prior.from_settings({"distribution": name, "parameters": {}})


def test_spike_slab_is_the_mixture():
    weights, scales = torch.tensor([0.2, 0.8]), torch.tensor([0.9, 0.04])
    exact = MixtureSameFamily(Categorical(weights), Normal(torch.zeros(2), scales))
    ours = SpikeSlab(0.2, 0.9, 0.04)
    values = torch.cat([torch.linspace(-3, 3, 61), torch.tensor([1e-4, 30.0])])
    torch.testing.assert_close(ours.log_prob(values), exact.log_prob(values), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.variance, exact.variance)
    assert float(ours.mean) == 0


def test_spike_slab_samples_what_it_scores():
    draws = SpikeSlab(0.3, 0.8, 0.05).expand((2,)).sample((20_000,))
    assert draws.shape == (20_000, 2)

    def cdf(x):
        return 0.3 * norm.cdf(x, scale=0.8) + 0.7 * norm.cdf(x, scale=0.05)

    assert kstest(draws[:, 0].numpy(), cdf).pvalue > 1e-3
    assert abs(float(np.corrcoef(draws.T)[0, 1])) < 0.05
    assert SpikeSlab(torch.tensor(0.3, dtype=torch.double)).sample().dtype == torch.float64


def test_spike_slab_shapes_and_validation():
    several = SpikeSlab(torch.tensor([0.1, 0.5]), 1.0, 0.1)
    assert several.batch_shape == (2,)
    expanded = several.expand((3, 2))
    assert expanded.sample((4,)).shape == (4, 3, 2)
    torch.testing.assert_close(expanded.log_prob(torch.ones(2))[1], several.log_prob(torch.ones(2)))
    for arguments in ((1.2, 1.0, 0.1), (0.5, -1.0, 0.1), (0.5, 1.0, 0.0)):
        with pytest.raises(ValueError, match="constraint"):
            SpikeSlab(*arguments, validate_args=True)


def test_uniform_orders():
    orders = UniformOrder(3)
    draws = orders.sample((6000,))
    assert draws.shape == (6000, 3)
    assert permutation.check(draws).all()
    _, counts = draws.unique(dim=0, return_counts=True)
    assert len(counts) == 6
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 20.5  # chi squared with 5 degrees of freedom, p = 0.001
    everything = torch.tensor(list(itertools.permutations(range(3))))
    assert float(orders.log_prob(everything).exp().sum()) == pytest.approx(1.0)
    assert orders.expand((2,)).sample((4,)).shape == (4, 2, 3)
    assert orders.expand((2, 1)).log_prob(draws[0]).shape == (2, 1)
    assert orders.event_shape == (3,)


def test_permutations_are_checked():
    values = torch.tensor([[0, 1, 2], [2, 0, 1], [0, 0, 2], [1, 2, 3]])
    assert permutation.check(values).tolist() == [True, True, False, False]
    assert permutation.is_discrete


def test_finite_orders():
    orders, weights = torch.tensor([[0, 1, 2], [2, 1, 0], [1, 0, 2]]), torch.tensor([0.2, 0.5, 0.3])
    finite = FiniteOrders(orders, weights)
    draws = finite.sample((8000,))
    share = torch.bincount(finite.index(draws), minlength=3) / 8000
    assert (share - weights).abs().max() < 4 * 0.5 / 8000**0.5
    torch.testing.assert_close(finite.log_prob(orders), weights.log())
    other = torch.tensor([0, 2, 1])
    assert finite.log_prob(other) == -math.inf
    assert finite.index(other) == -1
    assert finite.sample().shape == (3,)
    assert finite.expand((4, 1)).sample((2,)).shape == (2, 4, 1, 3)
    assert finite.expand((4, 1)).log_prob(orders[0]).shape == (4, 1)
    torch.testing.assert_close(finite.expand((4,)).log_prob(orders[[0, 1, 2, 0]]), weights[[0, 1, 2, 0]].log())
