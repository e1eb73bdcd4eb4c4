"""The mixture of structural equation models against dense Gaussians, cell by cell."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from torch.distributions import MultivariateNormal

from embergraph.models.parts.errors import NumericalError
from embergraph.models.parts.sem import MixtureSEM, without_cell_axis

DOUBLE = {"dtype": torch.double}
N, K, P = 7, 3, 5


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def parameters(*batch, acyclic=True, num_cells=N):
    mixture = torch.randn(*batch, num_cells, K, **DOUBLE).softmax(-1)
    archetypes = torch.randn(*batch, K, P, P, **DOUBLE)
    archetypes = archetypes.triu(1) if acyclic else 0.3 * (archetypes - archetypes * torch.eye(P))
    return mixture, archetypes, torch.randn(*batch, K, P, **DOUBLE), torch.rand(*batch, P, **DOUBLE) + 0.5


def gaussian(mixture, archetypes, intercepts, sigma):
    """Of one cell: x (I - W) = b + e, so x ~ N(b (I - W)^-1, (I - W)^-T diag(sigma^2) (I - W)^-1)."""
    solve = torch.linalg.inv(torch.eye(P, **DOUBLE) - torch.einsum("k,kab->ab", mixture, archetypes))
    return MultivariateNormal(mixture @ intercepts @ solve, solve.T @ torch.diag(sigma.expand(P) ** 2) @ solve)


@pytest.mark.parametrize("shared", [False, True])
def test_density_is_that_of_the_implied_gaussian(shared):
    mixture, archetypes, intercepts, sigma = parameters()
    sigma = sigma[:1] if shared else sigma
    x = torch.randn(N, P, **DOUBLE)
    sem = MixtureSEM(mixture, archetypes, intercepts, sigma)
    exact = torch.stack([gaussian(mixture[i], archetypes, intercepts, sigma).log_prob(x[i]) for i in range(N)])
    torch.testing.assert_close(sem.log_prob(x), exact)
    assert sem.batch_shape == (N,)
    assert sem.event_shape == (P,)


def test_cyclic_networks_lack_exactly_the_determinant():
    mixture, archetypes, intercepts, sigma = parameters(acyclic=False)
    x = torch.randn(N, P, **DOUBLE)
    sem = MixtureSEM(mixture, archetypes, intercepts, sigma)
    exact = torch.stack([gaussian(mixture[i], archetypes, intercepts, sigma).log_prob(x[i]) for i in range(N)])
    assert (sem.log_abs_det().abs() > 1e-3).all()
    torch.testing.assert_close(sem.log_prob(x) + sem.log_abs_det(), exact)
    dags = MixtureSEM(*parameters())
    torch.testing.assert_close(dags.log_abs_det(), torch.zeros(N, **DOUBLE))


def test_vectorised_draws_are_a_loop_over_draws():
    """Global sites with the singleton axis that Pyro gives them under an outer plate, and without it."""
    mixture, archetypes, intercepts, sigma = parameters(4)
    x = torch.randn(N, P, **DOUBLE)
    loop = torch.stack([MixtureSEM(*p).log_prob(x) for p in zip(mixture, archetypes, intercepts, sigma, strict=True)])
    padded = MixtureSEM(mixture, archetypes.unsqueeze(1), intercepts.unsqueeze(1), sigma.unsqueeze(1))
    assert padded.batch_shape == (4, N)
    torch.testing.assert_close(padded.log_prob(x), loop)
    torch.testing.assert_close(padded.networks(), torch.einsum("snk,skab->snab", mixture, archetypes))
    assert padded.sample((2,)).shape == (2, 4, N, P)
    shared = MixtureSEM(mixture, archetypes.unsqueeze(1), intercepts.unsqueeze(1), sigma[:, :1].unsqueeze(1))
    each = zip(mixture, archetypes, intercepts, sigma[:, :1], strict=True)
    one = torch.stack([MixtureSEM(*p).log_prob(x) for p in each])
    torch.testing.assert_close(shared.log_prob(x), one)


def test_samples_have_the_implied_mean_and_covariance():
    mixture, archetypes, intercepts, sigma = parameters(num_cells=2)
    sem = MixtureSEM(mixture, 0.5 * archetypes, intercepts, sigma)
    draws = sem.sample((20_000,))
    assert draws.shape == (20_000, 2, P)
    for cell in range(2):
        exact = gaussian(mixture[cell], 0.5 * archetypes, intercepts, sigma)
        sd = exact.variance.sqrt()
        assert ((draws[:, cell].mean(0) - exact.mean) / sd).abs().max() < 4.5 / 20_000**0.5
        error = (draws[:, cell].T.cov() - exact.covariance_matrix) / (sd[:, None] * sd)
        assert error.abs().max() < 5 * (2 / 20_000) ** 0.5
    other = gaussian(mixture[0], 0.5 * archetypes.mT, intercepts, sigma)  # the wrong direction would be seen
    assert ((draws[:, 0].T.cov() - other.covariance_matrix).abs()).max() > 0.3


def test_regression_is_what_regulators_predict():
    mixture, archetypes, intercepts, sigma = parameters()
    x = torch.randn(N, P, **DOUBLE)
    weights = torch.einsum("nk,kab->nab", mixture, archetypes)
    exact = torch.einsum("na,nab->nb", x, weights) + mixture @ intercepts
    torch.testing.assert_close(MixtureSEM(mixture, archetypes, intercepts, sigma).regression(x), exact)


def test_gradients_are_those_of_finite_differences():
    arguments = [p.requires_grad_() for p in parameters()]
    x = torch.randn(N, P, **DOUBLE)
    assert torch.autograd.gradcheck(lambda *p: MixtureSEM(*p).log_prob(x), arguments)


def test_under_a_plate_it_is_expanded_and_scored_once_a_cell():
    sem = MixtureSEM(*parameters())
    x = torch.randn(N, P, **DOUBLE)
    with pyro.poutine.trace() as recorder, pyro.plate("cell", N, dim=-1):
        pyro.sample("expression", sem, obs=x)
    recorder.trace.compute_log_prob()
    torch.testing.assert_close(recorder.trace.nodes["expression"]["log_prob"], sem.log_prob(x))
    assert sem.expand((3, N)).sample().shape == (3, N, P)
    assert sem.expand((3, N)).batch_shape == (3, N)


def test_singular_systems_are_named():
    mixture, archetypes, intercepts, sigma = parameters(acyclic=False)
    archetypes = torch.zeros_like(archetypes)
    archetypes[:, 0, 1] = archetypes[:, 1, 0] = 1.0
    with pytest.raises(NumericalError, match="expression: I - W is singular"):
        MixtureSEM(mixture, archetypes, intercepts, sigma).sample()


def test_precision_is_kept():
    sem = MixtureSEM(*(p.float() for p in parameters()))
    assert sem.sample().dtype == torch.float32
    assert sem.log_prob(torch.zeros(N, P)).dtype == torch.float32
    assert float(sem.log_prob(torch.zeros(N, P)).sum()) < -0.5 * N * P * math.log(2 * math.pi) + 50


def test_only_a_singleton_cell_axis_is_dropped():
    assert without_cell_axis(torch.zeros(4, 1, 2, 3), 2).shape == (4, 2, 3)
    assert without_cell_axis(torch.zeros(4, 5, 2, 3), 2).shape == (4, 5, 2, 3)
    assert without_cell_axis(torch.zeros(2, 3), 2).shape == (2, 3)
    assert without_cell_axis(torch.zeros(1, 3), 2).shape == (1, 3)
