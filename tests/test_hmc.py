"""Whitened HMC against Gaussians, a wall and a conjugate regression."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from embergraph.inference.density import LogDensity
from embergraph.inference.hmc import negative_hessian, whitened_hmc, whitening
from embergraph.models.parts.errors import NumericalError

DOUBLE = {"dtype": torch.double}
CHAINS = 6


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def gaussians() -> tuple[Tensor, Tensor]:
    """A mean and a strongly correlated covariance for each chain, of scales that differ a thousandfold."""
    generator = torch.Generator().manual_seed(1)
    factor = torch.randn(CHAINS, 3, 3, generator=generator, **DOUBLE) + 2 * torch.ones(3, 3, **DOUBLE)
    scale = torch.logspace(-2, 1, CHAINS, **DOUBLE)[:, None, None]
    return torch.randn(CHAINS, 3, generator=generator, **DOUBLE), scale**2 * (factor @ factor.mT + 0.1 * torch.eye(3))


def effective(draws: Tensor) -> Tensor:
    """Effective sample size of each chain and coordinate."""
    from pyro.ops.stats import effective_sample_size

    return torch.stack([effective_sample_size(chain.unsqueeze(0)) for chain in draws])


@pytest.mark.parametrize("whitened", [True, False])
def test_every_chain_samples_its_own_gaussian(whitened):
    """Started away from the mean; with the exact whitening, and (the last chains, of moderate scale) without."""
    mean, covariance = gaussians()
    chains = slice(None) if whitened else slice(4, None)
    mean, covariance = mean[chains], covariance[chains]
    precision = covariance.inverse()

    def density(x):
        return -0.5 * torch.einsum("ci,cij,cj->c", x - mean, precision, x - mean)

    roots = whitening(precision, floor=0.0) if whitened else torch.eye(3, **DOUBLE).expand(len(mean), 3, 3)
    start = mean + covariance.diagonal(dim1=-1, dim2=-2).sqrt()
    found = whitened_hmc(density, start, roots, num_warmup=100, num_draws=400, progress=False)
    ess = effective(found.draws)
    assert (ess > (40 if whitened else 15)).all()
    sd = covariance.diagonal(dim1=-1, dim2=-2).sqrt()
    assert ((found.draws.mean(1) - mean).abs() < 4.5 * sd / ess.sqrt()).all()
    centred = (found.draws - mean.unsqueeze(1)) / sd.unsqueeze(1)
    correlation = covariance / (sd.unsqueeze(-1) * sd.unsqueeze(-2))
    error = (torch.einsum("cdi,cdj->cij", centred, centred) / 400 - correlation).abs().amax((1, 2))
    assert (error < 6 / ess.amin(1).sqrt()).all()
    torch.testing.assert_close(found.log_density[:, -1], density(found.draws[:, -1]))
    if whitened:
        assert ((found.acceptance > 0.7) & (found.acceptance < 0.97)).all()
    assert (found.divergences == 0).all()


def test_acceptance_follows_the_target():
    found = [
        whitened_hmc(
            lambda x: -0.5 * x.square().sum(-1), torch.zeros(4, 20), torch.eye(20).expand(4, 20, 20),
            target_acceptance=target, num_warmup=150, num_draws=150, progress=False,
        )
        for target in (0.65, 0.95)
    ]  # fmt: skip
    assert ((found[0].acceptance - 0.65).abs() < 0.12).all()
    assert ((found[1].acceptance - 0.95).abs() < 0.05).all()
    assert (found[0].step_size > found[1].step_size).all()


def test_a_wall_is_never_crossed_and_the_distribution_stays():
    """Chains that start in a Normal cut off at -1.5 (beyond: NaN) stay in it from the first transition on."""

    def density(x):
        return torch.where(x > -1.5, -0.5 * x**2, torch.full_like(x, math.nan)).sum(-1)

    start = torch.randn(11_000, 1, **DOUBLE)
    start = start[start[:, 0] > -1.5][:10_000]
    roots = torch.eye(1, **DOUBLE).expand(10_000, 1, 1)
    found = whitened_hmc(density, start, roots, num_warmup=0, num_draws=20, progress=False)
    last, mean = found.draws[:, -1, 0], float(norm.pdf(1.5) / norm.cdf(1.5))
    assert (found.draws > -1.5).all()
    assert float((last != start[:, 0]).double().mean()) > 0.9
    assert abs(float(last.mean()) - mean) < 4 * 0.88 / 100
    assert abs(float(last.square().mean()) - (1 - 1.5 * mean)) < 4 * 1.3 / 100
    assert 0.5 < float(found.acceptance.mean()) < 0.9
    assert float(found.divergences.sum()) > 10_000


def test_conjugate_regression_through_the_model():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 1, generator=generator, **DOUBLE) + 0.5 * torch.randn(40, 2, generator=generator, **DOUBLE)
    y = x @ torch.tensor([1.0, -0.5], **DOUBLE) + torch.randn(40, generator=generator, **DOUBLE)

    def regression():
        w = pyro.sample("w", dist.Normal(torch.zeros(2, **DOUBLE), 1.0).to_event(1))
        with pyro.plate("cell", 40, dim=-1):
            pyro.sample("y_obs", dist.Normal((x * w).sum(-1), 1.0), obs=y)

    covariance = torch.linalg.inv(torch.eye(2, **DOUBLE) + x.T @ x)
    mean = covariance @ x.T @ y
    density = LogDensity(regression, {})
    points = mean.expand(4, 2)
    curvature = negative_hessian(density, points)
    torch.testing.assert_close(curvature, covariance.inverse().expand(4, 2, 2))
    found = whitened_hmc(density, points, whitening(curvature), num_warmup=100, num_draws=200, progress=False)
    ess = float(effective(found.draws).sum(0).min())
    flat, sd = found.draws.flatten(0, 1), covariance.diagonal().sqrt()
    assert ess > 300
    assert ((flat.mean(0) - mean).abs() < 4.5 * sd / ess**0.5).all()
    scale = sd.unsqueeze(-1) * sd
    assert ((flat.T.cov() - covariance).abs() / scale).max() < 5 * (2 / ess) ** 0.5


def test_negative_hessian_is_that_of_autograd():
    """A density that is not quadratic, at another point of each chain."""
    weights = torch.randn(3, 3, **DOUBLE)

    def density(x):
        return (torch.tanh(x @ weights) * x).sum(-1) - 0.1 * (x**4).sum(-1)

    points = torch.randn(4, 3, **DOUBLE)
    found = negative_hessian(density, points)
    for i in range(4):
        exact = torch.autograd.functional.hessian(lambda v: density(v.unsqueeze(0)).squeeze(0), points[i])
        torch.testing.assert_close(found[i], -exact)


def test_whitening_is_a_root_of_the_inverse_with_a_floor():
    _, covariance = gaussians()
    root = whitening(covariance.inverse(), floor=0.0)
    torch.testing.assert_close(root @ root.mT, covariance, rtol=1e-6, atol=0)
    curvature = torch.diag(torch.tensor([100.0, 0.5, -3.0], **DOUBLE)).unsqueeze(0)
    root = whitening(curvature)[0]
    torch.testing.assert_close(root @ root.mT, torch.diag(torch.tensor([0.01, 1.0, 1.0], **DOUBLE)))
    with pytest.raises(NumericalError, match="curvature"):
        whitening(curvature * math.nan)


def test_a_start_outside_the_domain_is_refused():
    with pytest.raises(NumericalError, match=r"mine: the log density at a starting point is \[0.0, nan\]"):
        whitened_hmc(
            lambda x: (x.sum(-1) * 0 + x[:, 0].sqrt()) * 0, torch.tensor([[1.0], [-1.0]]), torch.ones(2, 1, 1),
            progress=False, label="mine",
        )  # fmt: skip


def test_interruption_keeps_the_draws_so_far():
    calls = []

    def density(x):
        calls.append(1)
        if len(calls) > limit:
            raise KeyboardInterrupt
        return -0.5 * x.square().sum(-1)

    options = {"num_warmup": 3, "num_draws": 10, "num_leapfrog": 2, "progress": False}
    start, roots = torch.zeros(2, 1), torch.ones(2, 1, 1)
    limit = 1 + 2 * (3 + 4) + 1  # in the middle of the fifth draw
    found = whitened_hmc(density, start, roots, **options)
    assert found.interrupted
    assert found.draws.shape == (2, 4, 1)
    assert found.log_density.shape == (2, 4)
    calls.clear()
    limit = 4
    with pytest.raises(KeyboardInterrupt):
        whitened_hmc(density, start, roots, **options)


def test_same_seed_same_bits():
    def run(seed):
        torch.manual_seed(seed)
        return whitened_hmc(
            lambda x: -0.5 * x.square().sum(-1), torch.zeros(2, 2), torch.eye(2).expand(2, 2, 2), num_warmup=5,
            num_draws=5, progress=False,
        )  # fmt: skip

    assert torch.equal(run(1).draws, run(1).draws)
    assert not torch.equal(run(1).draws, run(2).draws)
