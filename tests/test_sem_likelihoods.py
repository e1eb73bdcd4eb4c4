"""Likelihoods of structural equations against SciPy, brute force and ancestral sampling."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats
import torch

import embergraph as eg
from embergraph.inference.messengers import isolated
from embergraph.models import BinarySEM, GaussianSEM, LogisticSEM, StudentSEM
from embergraph.models.parts.errors import NumericalError
from embergraph.models.parts.projection import is_acyclic, project
from embergraph.models.parts.sem import MixtureSEM

DOUBLE = {"dtype": torch.double}
N, K, P = 6, 3, 4


def parameters(seed: int = 0, *, order: bool = True) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    mixture = torch.randn(N, K, generator=g, **DOUBLE).softmax(-1)
    archetypes = torch.randn(K, P, P, generator=g, **DOUBLE)
    archetypes = archetypes.triu(1) if order else archetypes * (1 - torch.eye(P, **DOUBLE))
    return mixture, archetypes, torch.randn(K, P, generator=g, **DOUBLE), 0.5 + torch.rand(P, generator=g, **DOUBLE)


@pytest.mark.parametrize(
    ("likelihood", "law"),
    [
        (GaussianSEM(), scipy.stats.norm),
        (StudentSEM(3.0).double(), scipy.stats.t(3.0)),
        (LogisticSEM(), scipy.stats.logistic),
    ],
)
def test_density_is_the_product_over_genes(likelihood, law) -> None:
    mixture, archetypes, intercepts, sigma = parameters()
    x = torch.randn(N, P, generator=torch.Generator().manual_seed(5), **DOUBLE)
    got = MixtureSEM(mixture, archetypes, intercepts, sigma, likelihood).log_prob(x)
    for i in range(N):
        W, b = np.tensordot(mixture[i], archetypes, 1), mixture[i].numpy() @ intercepts.numpy()
        residual = x[i].numpy() - b - x[i].numpy() @ W
        wanted = (law.logpdf(residual / sigma.numpy()) - np.log(sigma.numpy())).sum()
        assert float(got[i]) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(
    ("likelihood", "law"),
    [(StudentSEM(5.0), scipy.stats.t(5.0)), (LogisticSEM(), scipy.stats.logistic), (GaussianSEM(), scipy.stats.norm)],
)
def test_noise_of_simulated_cells_has_the_declared_law(likelihood, law) -> None:
    mixture, archetypes, intercepts, sigma = parameters()
    sem = MixtureSEM(mixture, archetypes, intercepts, sigma, likelihood)
    with isolated(0):
        x = sem.sample((800,))
    standard = ((x - sem.regression(x)) / sigma).numpy().ravel()
    assert scipy.stats.kstest(standard, law.cdf).pvalue > 0.01
    wrong = scipy.stats.norm(scale=1.3) if likelihood.kind == "gaussian" else scipy.stats.norm
    assert scipy.stats.kstest(standard, wrong.cdf).pvalue < 1e-6


def test_probabilities_of_all_binary_cells_sum_to_one_and_are_what_is_drawn() -> None:
    mixture, archetypes, intercepts, _ = parameters()
    mixture = mixture[:1]
    permutation = torch.tensor([2, 0, 3, 1])
    archetypes = archetypes[:, permutation][:, :, permutation]  # DAGs whose order is not that of the genes
    sem = MixtureSEM(mixture, 2 * archetypes, intercepts, torch.ones(1, **DOUBLE), BinarySEM())
    cells = torch.tensor(list(itertools.product([0.0, 1.0], repeat=P)), **DOUBLE)
    probability = torch.stack([sem.log_prob(c[None])[0] for c in cells]).exp()
    assert float(probability.sum()) == pytest.approx(1.0, abs=1e-12)
    with isolated(1):
        x = sem.sample((40_000,))[:, 0]
    code = (x @ torch.tensor([8.0, 4.0, 2.0, 1.0], **DOUBLE)).long()
    seen = torch.bincount(code, minlength=16).numpy()
    assert scipy.stats.chisquare(seen, 40_000 * probability.numpy()).pvalue > 0.01
    independent = torch.sigmoid(mixture[0] @ intercepts)
    alone = torch.stack([torch.where(c > 0, independent, 1 - independent).prod() for c in cells])
    assert scipy.stats.chisquare(seen, 40_000 * alone.numpy() / float(alone.sum())).pvalue < 1e-6, "edges must matter"


def test_binary_cells_of_a_cycle_are_refused() -> None:
    mixture, archetypes, intercepts, _ = parameters(order=False)
    sem = MixtureSEM(mixture, 30 * archetypes, intercepts, torch.ones(1, **DOUBLE), BinarySEM())
    with isolated(0), pytest.raises(NumericalError, match="circles"):
        sem.sample((200,))


def test_projected_equations_are_those_of_the_projected_network_of_each_cell() -> None:
    mixture, archetypes, intercepts, sigma = parameters(order=False)
    sem = MixtureSEM(mixture, archetypes, intercepts, sigma, projected=True)
    x = torch.randn(N, P, generator=torch.Generator().manual_seed(5), **DOUBLE)
    networks = torch.stack([project(torch.einsum("k,kab->ab", z, archetypes)).networks for z in mixture])
    assert bool(is_acyclic(networks).all())
    torch.testing.assert_close(sem.networks(), networks)
    mean = mixture @ intercepts + torch.einsum("na,nab->nb", x, networks)
    wanted = torch.distributions.Normal(mean, sigma).log_prob(x).sum(-1)
    torch.testing.assert_close(sem.log_prob(x), wanted)
    eye = torch.eye(P, **DOUBLE)
    for i in range(N):  # which is a normalised Gaussian
        inverse = torch.linalg.inv(eye - networks[i])
        dense = torch.distributions.MultivariateNormal(
            mixture[i] @ intercepts @ inverse, inverse.T @ torch.diag(sigma**2) @ inverse
        )
        torch.testing.assert_close(sem.log_prob(x)[i], dense.log_prob(x[i]))
    kept = networks != 0
    held = MixtureSEM(mixture, archetypes, intercepts, sigma, projected=True, kept=kept)
    torch.testing.assert_close(held.log_prob(x), sem.log_prob(x))


def test_gradients_of_projected_equations_hold_fixed_what_is_kept() -> None:
    mixture, archetypes, intercepts, sigma = parameters(order=False)
    x = torch.randn(N, P, generator=torch.Generator().manual_seed(5), **DOUBLE)
    leaf = archetypes.clone().requires_grad_()
    MixtureSEM(mixture, leaf, intercepts, sigma, projected=True).log_prob(x).sum().backward()
    step, direction = 1e-6, torch.randn(K, P, P, generator=torch.Generator().manual_seed(1), **DOUBLE)
    ends = [
        MixtureSEM(mixture, archetypes + s * step * direction, intercepts, sigma, projected=True).log_prob(x).sum()
        for s in (1, -1)
    ]
    slope = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close((leaf.grad * direction).sum(), slope, rtol=1e-5, atol=1e-5)


def test_determinant_makes_cyclic_equations_a_density() -> None:
    mixture, archetypes, intercepts, sigma = parameters(order=False)
    archetypes = 0.4 * archetypes
    sem = MixtureSEM(mixture, archetypes, intercepts, sigma, determinant=True)
    x = torch.randn(N, P, generator=torch.Generator().manual_seed(5), **DOUBLE)
    for i in range(N):
        inverse = torch.linalg.inv(torch.eye(P, **DOUBLE) - torch.einsum("k,kab->ab", mixture[i], archetypes))
        law = torch.distributions.MultivariateNormal(
            mixture[i] @ intercepts @ inverse, inverse.T @ torch.diag(sigma**2) @ inverse
        )
        torch.testing.assert_close(sem.log_prob(x)[i], law.log_prob(x[i]))


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, "four"])
def test_degrees_of_freedom_out_of_range(value) -> None:
    with pytest.raises(eg.DataError, match="degrees_of_freedom"):
        StudentSEM(value)


def test_degrees_of_freedom_need_a_positive_prior() -> None:
    with pytest.raises(eg.DataError, match="degrees_of_freedom"):
        StudentSEM(dist.Normal(0.0, 1.0))


@pytest.mark.parametrize("seed", [0, 1])
def test_student_noise_resists_outliers(seed: int) -> None:
    """Noise with wild values: Student-t equations keep the effects, Gaussian ones lose them."""
    rng = np.random.default_rng(seed)
    n, W = 150, np.array([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    C, e = rng.uniform(-1, 1, (n, 1)), rng.standard_t(1.5, (n, 3))
    data = eg.from_arrays(e @ np.linalg.inv(np.eye(3) - W), C)
    data = data.assign(expression=data["expression"] - data["expression"].median("cell"))
    errors, densities = {}, {}
    for likelihood in (StudentSEM(2.0), GaussianSEM()):
        model = eg.models.NOTMAD.for_data(data, 1, order=[0, 1, 2], encoder="linear", likelihood=likelihood)
        fit = eg.fit(
            model, data, num_restarts=1, num_steps=300, num_orders=2, num_warmup=60, num_draws=80, progress=False
        )
        found = fit.networks(data.isel(cell=[0]))["network"].values[0]
        errors[likelihood.kind] = float(np.abs(found - W).max())
        densities[likelihood.kind] = float(fit.log_density(data, num_samples=100).mean())
    assert errors["student"] < 0.15, errors
    assert densities["student"] > densities["gaussian"] + 0.3, densities
