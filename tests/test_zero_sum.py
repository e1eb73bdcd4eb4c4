"""Vectors that sum to zero: the isometry, the conditioned Normal, and inference over both priors."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.infer.autoguide.initialization import init_to_mean
from torch.distributions import MultivariateNormal, biject_to, transform_to

from embergraph.models.parts.errors import DataError, SchemaError
from embergraph.models.parts.zero_sum import ZeroSumFlat, ZeroSumNormal, ZeroSumTransform, zero_sum

DOUBLE = {"dtype": torch.double}


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pyro.clear_param_store()
        yield
        pyro.clear_param_store()


@pytest.mark.parametrize("n", [2, 3, 10])
def test_transform_is_an_isometry_onto_the_zero_sum_vectors(n):
    transform = biject_to(zero_sum)
    assert transform == transform_to(zero_sum) == ZeroSumTransform()
    y = torch.randn(5, n - 1, **DOUBLE)
    x = transform(y)
    assert x.shape == (5, n)
    torch.testing.assert_close(x.sum(-1), torch.zeros(5, **DOUBLE))
    torch.testing.assert_close(torch.cdist(x, x), torch.cdist(y, y))
    torch.testing.assert_close(ZeroSumTransform().inv(x), y)
    assert not transform.log_abs_det_jacobian(y, x).any()
    assert transform.log_abs_det_jacobian(y, x).shape == (5,)
    assert transform.forward_shape(y.shape) == x.shape
    assert transform.inverse_shape(x.shape) == y.shape


def test_constraint_allows_rounding_only():
    x = transform_to(zero_sum)(1e6 * torch.randn(4, 8))
    assert zero_sum.check(x).all()
    assert not zero_sum.check(x + 1e3).any()
    assert zero_sum.event_dim == 1


def test_density_integrates_to_one_over_the_plane():
    steps = torch.linspace(-12, 12, 1201, **DOUBLE)
    coordinates = torch.cartesian_prod(steps, steps)
    log_prob = ZeroSumNormal(torch.tensor([0.5, 1.0, 2.0], **DOUBLE)).log_prob(ZeroSumTransform()(coordinates))
    torch.testing.assert_close(log_prob.exp().sum() * (steps[1] - steps[0]) ** 2, torch.tensor(1.0, **DOUBLE))


def test_density_and_variance_are_those_of_the_dense_gaussian_in_coordinates():
    scale = torch.rand(5, **DOUBLE) + 0.3
    basis = ZeroSumTransform()(torch.eye(4, **DOUBLE)).T  # (5, 4), orthonormal
    torch.testing.assert_close(basis.T @ basis, torch.eye(4, **DOUBLE))
    exact = MultivariateNormal(torch.zeros(4, **DOUBLE), precision_matrix=basis.T @ torch.diag(scale**-2) @ basis)
    y = torch.randn(6, 4, **DOUBLE)
    normal = ZeroSumNormal(scale)
    torch.testing.assert_close(normal.log_prob(y @ basis.T), exact.log_prob(y))
    covariance = basis @ exact.covariance_matrix @ basis.T
    torch.testing.assert_close(normal.variance, covariance.diagonal())
    x = normal.sample((40_000,))
    standard = ((covariance**2 + covariance.diagonal()[:, None] * covariance.diagonal()) / len(x)).sqrt()
    assert ((x.T @ x / len(x) - covariance) / standard).abs().max() < 4.5
    assert zero_sum.check(x).all()


def test_taking_the_mean_off_is_wrong_when_scales_differ():
    """The naive draw x - mean(x) has another covariance; conditioning takes more off the wider values."""
    scale = torch.tensor([0.1, 1.0, 3.0], **DOUBLE)
    naive = torch.randn(20_000, 3, **DOUBLE) * scale
    naive = naive - naive.mean(-1, keepdim=True)
    assert (naive.var(0) / ZeroSumNormal(scale).variance - 1).abs().max() > 0.5
    assert (ZeroSumNormal(scale).sample((20_000,)).var(0) / ZeroSumNormal(scale).variance - 1).abs().max() < 0.05


def test_batches_and_expansion():
    scale = torch.rand(3, 1, 4, **DOUBLE) + 0.5
    normal, flat = ZeroSumNormal(scale).expand((2, 3, 5)), ZeroSumFlat(4).expand((2, 3, 5))
    assert normal.batch_shape == flat.batch_shape == (2, 3, 5)
    x = normal.sample((6,))
    assert x.shape == (6, 2, 3, 5, 4)
    assert normal.log_prob(x).shape == flat.log_prob(x).shape == (6, 2, 3, 5)
    torch.testing.assert_close(normal.log_prob(x)[1, 0, 2, 3], ZeroSumNormal(scale[2, 0]).log_prob(x[1, 0, 2, 3]))
    assert not flat.log_prob(x).any()
    assert flat.mean.shape == normal.mean.shape == (2, 3, 5, 4)


def test_reparametrised_draws_have_gradients():
    scale = (torch.rand(4, **DOUBLE) + 0.5).requires_grad_()
    ZeroSumNormal(scale).rsample((3,)).square().sum().backward()
    assert scale.grad.isfinite().all()
    assert scale.grad.any()


def test_bad_arguments_are_named():
    with pytest.raises(DataError, match="scale: found shape"):
        ZeroSumNormal(torch.ones(1))
    with pytest.raises(DataError, match="n: found 1"):
        ZeroSumFlat(1)
    with pytest.raises(ValueError, match="scale"):
        ZeroSumNormal(-torch.ones(3), validate_args=True)
    for law in (ZeroSumNormal(torch.ones(3), validate_args=True), ZeroSumFlat(3, validate_args=True)):
        with pytest.raises(ValueError, match="support"):
            law.log_prob(torch.ones(3))
    with pytest.raises(SchemaError, match="flat prior"):
        ZeroSumFlat(3).sample()


TRUTH = torch.tensor([0.6, -0.1, 0.3, -0.8], **DOUBLE)


def model(prior):
    x = pyro.sample("x", prior)
    with pyro.plate("row", 4):
        pyro.sample("y", dist.Normal(x, 0.1), obs=TRUTH + 0.25)


def exact(prior_sd):
    """Posterior mean and sd: Normal(y, 0.1) times the prior, on the subspace; the offset .25 of y drops out."""
    precision = 100 + (0 if prior_sd is None else prior_sd**-2)
    return TRUTH * 100 / precision, math.sqrt(0.75 / precision)


@pytest.mark.parametrize("prior_sd", [0.2, None])
def test_nuts_finds_the_posterior(prior_sd):
    prior = ZeroSumFlat(4) if prior_sd is None else ZeroSumNormal(torch.full((4,), prior_sd, **DOUBLE))
    kernel = NUTS(model, init_strategy=init_to_mean, max_plate_nesting=1)
    mcmc = MCMC(kernel, num_samples=400, warmup_steps=100, disable_progbar=True)
    mcmc.run(prior)
    draws = mcmc.get_samples()["x"]
    mean, sd = exact(prior_sd)
    assert draws.shape == (400, 4)
    torch.testing.assert_close(draws.sum(-1), torch.zeros(400, **DOUBLE))
    assert (draws.mean(0) - mean).abs().max() < 5 * sd / math.sqrt(200)
    assert (draws.std(0) / sd - 1).abs().max() < 0.2


@pytest.mark.parametrize("prior_sd", [0.2, None])
@pytest.mark.parametrize("auto", [AutoNormal, AutoMultivariateNormal])
def test_autoguides_find_the_posterior(prior_sd, auto):
    prior = ZeroSumFlat(4) if prior_sd is None else ZeroSumNormal(torch.full((4,), prior_sd, **DOUBLE))
    guide = auto(model, init_loc_fn=init_to_mean)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.01 ** (1 / 300)}), Trace_ELBO(num_particles=4))
    for _ in range(300):
        svi.step(prior)
    draws = torch.stack([guide(prior)["x"].detach() for _ in range(300)])
    mean, sd = exact(prior_sd)
    assert zero_sum.check(draws).all()
    assert (draws.mean(0) - mean).abs().max() < 0.05
    assert (draws.std(0) / sd - 1).abs().max() < 0.3
