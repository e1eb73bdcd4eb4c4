"""Densities of single entries given the others: brute-force integrals, closed forms, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from environment_fits import counts, two_latents
from med_magma_fits import data_of
from med_magma_fits import fitted as matrix_fit
from notmad_use_cases import data, from_prior
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

import embergraph as eg
from embergraph.guides.parts.linear_gaussian import LinearGaussian
from embergraph.inference import Fit, svi
from embergraph.methods._environment_vae_read import draw_environments
from embergraph.models import EnvironmentVAE
from embergraph.models.parts.entries import entry_log_prob
from embergraph.models.parts.kronecker_sum import KroneckerSumNormal, ScaledKroneckerSumNormal
from embergraph.models.parts.likelihoods import (
    GaussianLikelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)
from embergraph.models.parts.sem import MixtureSEM
from embergraph.models.parts.sem_likelihoods import BinarySEM, GaussianSEM, LogisticSEM, SEMLikelihood, StudentSEM

P, K, N = 4, 3, 5
LIKELIHOODS = [GaussianLikelihood, StudentTLikelihood, NegativeBinomialLikelihood, PoissonLikelihood]


def equations(likelihood: SEMLikelihood, *, seed: int = 0, cyclic: bool = False, **options: Any) -> MixtureSEM:
    """Dense archetypes that share an order, or have none."""
    random = torch.Generator().manual_seed(seed)
    W = torch.randn(K, P, P, generator=random, dtype=torch.double)
    W = 0.3 * W * (1 - torch.eye(P)) if cyclic else W.triu(1)
    Z = torch.rand(N, K, generator=random, dtype=torch.double).softmax(-1)
    b = torch.randn(K, P, generator=random, dtype=torch.double)
    sigma = torch.rand(P, generator=random, dtype=torch.double) + 0.3
    return MixtureSEM(Z, W, b, sigma, likelihood, options.pop("parameters", None), **options)


def one_integral(law: MixtureSEM, x: torch.Tensor, cell: int, gene: int) -> float:
    """log p(x) - log of the integral over one gene, on a grid that is fine near 0 and reaches to a million."""
    place = torch.linspace(-14.5, 14.5, 30_001, dtype=torch.double)
    moved = x.repeat(len(place), 1, 1)
    moved[:, cell, gene] = x[cell, gene] + place.sinh()
    terms = law.log_prob(moved)[:, cell] + place.cosh().log() + math.log(29 / 30_000)
    return float(law.log_prob(x)[cell] - terms.logsumexp(0))


@pytest.mark.parametrize(
    ("likelihood", "options"),
    [
        (GaussianSEM(), {}),
        (GaussianSEM(), {"cyclic": True, "determinant": True}),
        (GaussianSEM(), {"cyclic": True, "projected": True}),
        (StudentSEM(1.5), {}),
        (StudentSEM(), {"parameters": {"degrees_of_freedom": torch.tensor(3.0).double()}}),
        (LogisticSEM(), {}),
    ],
)
def test_genes_given_the_rest_integrate_the_joint_density(likelihood: SEMLikelihood, options: dict[str, Any]) -> None:
    law = equations(likelihood, **options)
    torch.manual_seed(1)
    x = law.sample()
    x[0] += torch.tensor([40.0, 0.0, -25.0, 0.0])  # outliers that tear regulators and targets apart
    found = law.entry_log_prob(x)
    assert found.shape == (N, P)
    for cell, gene in [(0, 0), (0, 1), (0, 2), (1, 3)]:
        assert float(found[cell, gene]) == pytest.approx(one_integral(law, x, cell, gene), abs=2e-5), (cell, gene)


def test_genes_given_the_rest_are_the_conditional_normal() -> None:
    law = equations(GaussianSEM(), seed=2)
    torch.manual_seed(0)
    x = law.sample()
    for cell in range(N):
        W, b = law.networks()[cell], law.intercepts()[cell]
        left = torch.linalg.inv(torch.eye(P).double() - W)
        mean, cov = b @ left, left.mT @ torch.diag(law.sigma**2) @ left
        found = law.entry_log_prob(x)[cell]
        joint = multivariate_normal(mean, cov).logpdf(x[cell])
        for gene in range(P):
            rest = [g for g in range(P) if g != gene]
            marginal = multivariate_normal(mean[rest], cov[rest][:, rest]).logpdf(x[cell, rest])
            assert float(found[gene]) == pytest.approx(joint - marginal)


def test_binary_genes_given_the_rest_sum_the_joint_probability() -> None:
    law = equations(BinarySEM())
    torch.manual_seed(0)
    x = law.sample()
    found = law.entry_log_prob(x)
    for gene in range(P):
        switched = x.clone()
        switched[:, gene] = 1 - x[:, gene]
        wanted = law.log_prob(x) - torch.logaddexp(law.log_prob(x), law.log_prob(switched))
        torch.testing.assert_close(found[:, gene], wanted)


def test_axes_of_draws_broadcast() -> None:
    law, drawn = equations(StudentSEM(4.0)), torch.tensor([4.0, 9.0]).double()
    x = law.mixture @ law.archetypes[:, 0]
    many = MixtureSEM(
        law.mixture, law.archetypes.expand(2, 1, K, P, P), law._stacked[-K:].expand(2, 1, K, P), law.sigma,
        StudentSEM(), {"degrees_of_freedom": drawn[:, None]},
    )  # fmt: skip
    found = many.entry_log_prob(x)
    assert found.shape == (2, N, P)
    torch.testing.assert_close(found[0], law.entry_log_prob(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "kind", [GaussianLikelihood, StudentTLikelihood, NegativeBinomialLikelihood, PoissonLikelihood]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
def test_likelihoods_of_single_genes_add_up(kind: Any, dtype: torch.dtype) -> None:
    likelihood = kind(P).to(dtype)
    torch.manual_seed(0)
    output, library = torch.randn(2, N, P, dtype=dtype), torch.full((N,), 50.0, dtype=dtype)
    law = likelihood(output, library)
    x = law.sample()[0]
    found = law.entry_log_prob(x)
    assert found.shape == (2, N, P)
    torch.testing.assert_close(found.sum(-1).to(dtype), law.log_prob(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("structure", ["sum", "product"])
def test_entries_of_matrices_are_conditional_normals(structure: Any) -> None:
    random = np.random.default_rng(0)
    row, col = ((lambda a: torch.as_tensor(a @ a.T + np.eye(len(a))))(random.normal(size=(n, n))) for n in (3, 4))
    full = np.kron(row, np.eye(4)) + np.kron(np.eye(3), col) if structure == "sum" else np.kron(row, col)
    u, v = (torch.as_tensor(random.normal(size=n)) for n in (3, 4))
    scale = (u[:, None] + v).exp().numpy().ravel()
    cov = np.linalg.inv(full) * np.outer(scale, scale)
    law = ScaledKroneckerSumNormal(u, v, row, col, structure)
    x = law.sample()
    found, joint = law.entry_log_prob(x).ravel(), multivariate_normal(np.zeros(12), cov).logpdf(x.ravel())
    for i in range(12):
        rest = [k for k in range(12) if k != i]
        marginal = multivariate_normal(np.zeros(11), cov[rest][:, rest]).logpdf(x.ravel()[rest])
        assert float(found[i]) == pytest.approx(joint - marginal)
    zeros = ScaledKroneckerSumNormal(u, v, row, col, structure, zeros="structural")
    with pytest.raises(eg.SchemaError, match="zeros: found 'structural'"):
        zeros.entry_log_prob(x)
    assert KroneckerSumNormal(row, col, structure).entry_log_prob(x.expand(2, 3, 4)).shape == (2, 3, 4)


def test_linear_gaussian_entries_are_conditional_normals() -> None:
    random = torch.Generator().manual_seed(0)
    W, b = (torch.randn(*s, generator=random, dtype=torch.double) for s in ((2, P), (P,)))
    law = LinearGaussian(W, b, torch.tensor(0.3).double())
    x, mu = (torch.randn(N, k, generator=random, dtype=torch.double) for k in (P, 2))
    cov = (W.mT @ W + 0.3 * torch.eye(P)).numpy()
    found = law.entry_log_density(x, mu)
    for cell in range(N):
        mean = (b + mu[cell] @ W).numpy()
        for gene in range(P):
            rest = [g for g in range(P) if g != gene]
            marginal = multivariate_normal(mean[rest], cov[rest][:, rest]).logpdf(x[cell, rest])
            assert float(found[cell, gene]) == pytest.approx(multivariate_normal(mean, cov).logpdf(x[cell]) - marginal)


def test_laws_of_others() -> None:
    x = torch.randn(5, 3).double()
    mean, sd = torch.zeros(3).double(), torch.ones(3).double()
    independent = entry_log_prob(dist.Normal(mean, sd).to_event(1), x, "x")
    torch.testing.assert_close(
        independent, entry_log_prob(dist.MultivariateNormal(mean, torch.eye(3).double()), x, "x")
    )
    torch.testing.assert_close(independent, entry_log_prob(dist.Normal(mean, sd), x, "x"))
    masked = dist.Normal(mean, sd).to_event(1).mask(torch.tensor(True))
    torch.testing.assert_close(independent, entry_log_prob(masked, x, "x"))
    with pytest.raises(eg.SchemaError, match="x: found Dirichlet"):
        entry_log_prob(dist.Dirichlet(sd), x.softmax(-1), "x")


def correlated(x=None):
    """Genes around the level of their cell, of which the other genes tell."""
    mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0).double(), 3.0))
    with pyro.plate("cell", 6 if x is None else len(x)):
        level = pyro.sample("level", dist.Normal(mean, 0.7))
        return pyro.sample("x", dist.Normal(level.unsqueeze(-1), torch.full((3,), 0.5).double()).to_event(1), obs=x)


def exact_mean(x=None):
    pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(1.0).double()), 0.8))
    with pyro.plate("cell", 6 if x is None else len(x)):
        pyro.sample("level", dist.Normal(torch.tensor(0.0).double(), 1.0))


@pytest.fixture(scope="module")
def hierarchical() -> Fit:
    cells = xr.Dataset({"x": (("cell", "gene"), np.zeros((6, 3)))}, {"gene": ["a", "b", "c"]})
    return svi(correlated, exact_mean, cells, num_steps=1, learning_rate=1e-12, progress=False)


def test_draws_are_weighted_by_the_rest_of_the_cell(hierarchical: Fit) -> None:
    """The predictive law of a new cell is Normal: mean N(1, .8^2), level .7, noise .5."""
    x = np.random.default_rng(0).normal(1.0, 1.0, (6, 3))
    new = xr.Dataset({"x": (("cell", "gene"), x)}, {"gene": ["a", "b", "c"], "cell": list("uvwxyz")})
    found = hierarchical.entry_log_density(new, 40_000)
    assert found["log_density"].dims == ("cell", "gene")
    assert list(found["gene"].values) == ["a", "b", "c"]
    assert list(found["cell"].values) == list("uvwxyz")
    cov = np.full((3, 3), 0.64 + 0.49) + 0.25 * np.eye(3)
    joint = multivariate_normal(np.ones(3), cov).logpdf(x)
    for gene in range(3):
        rest = [g for g in range(3) if g != gene]
        wanted = joint - multivariate_normal(np.ones(2), cov[rest][:, rest]).logpdf(x[:, rest])
        np.testing.assert_allclose(found["log_density"].values[:, gene], wanted, atol=0.06)
        blind = norm(1.0, math.sqrt(0.64 + 0.49 + 0.25)).logpdf(x[:, gene])
        assert np.abs(blind - wanted).max() > 0.3, "without the weights it would be another number"
    assert 100 < found.attrs["fewest_draws"] < 40_000
    assert found.attrs["held_out"] == 1


def test_entries_of_a_fitted_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brute force over the draws of a posterior, in parts of draws and of cells too."""
    train = data(60, scale="gene")
    fit, cells = from_prior(train), train.isel(cell=slice(0, 7))
    found = fit.entry_log_density(cells)
    values, C = fit.global_draws(None), torch.as_tensor(cells["covariates"].values)
    W, b = fit.model.networks_of(C, values)
    sigma = values["sigma"].reshape(12, 4)
    x = cells["expression"].values
    wanted = np.zeros((7, 4))
    for cell in range(7):
        left = np.linalg.inv(np.eye(4) - W[:, cell].numpy())
        means = (b[:, cell].numpy()[:, None] @ left)[:, 0]
        covs = left.transpose(0, 2, 1) @ (sigma.numpy()[:, :, None] ** 2 * left)
        for gene in range(4):
            rest = [g for g in range(4) if g != gene]
            joint = [multivariate_normal(m, c).logpdf(x[cell]) for m, c in zip(means, covs, strict=True)]
            others = [
                multivariate_normal(m[rest], c[rest][:, rest]).logpdf(x[cell, rest])
                for m, c in zip(means, covs, strict=True)
            ]
            wanted[cell, gene] = logsumexp(joint) - logsumexp(others)
    np.testing.assert_allclose(found["log_density"].values, wanted)
    monkeypatch.setattr("embergraph.inference.entries.CHUNK_ELEMENTS", 20)
    xr.testing.assert_allclose(fit.entry_log_density(cells), found)


def test_entries_of_cells_with_environments() -> None:
    """Linear: brute force over the draws of the shifts, latents integrated out; counts: what any probability is."""
    cells = two_latents(num_cells=60)
    fit = eg.fit(EnvironmentVAE.for_data(cells, 2), cells, num_steps=60, progress=False)
    new = two_latents(seed=1, num_cells=2)
    found = fit.entry_log_density(new, 30)["log_density"]
    linear, (mu, _) = fit.guide.linear(), draw_environments(fit, None, 30, 0)
    cov = (linear.weight.mT @ linear.weight + linear.variance * torch.eye(10)).numpy()
    means = (linear.bias + mu.double()[:, new["environment"].values] @ linear.weight).numpy()
    for cell, gene in [(0, 0), (3, 9), (5, 4)]:
        rest = [g for g in range(10) if g != gene]
        x = new["expression"].values[cell]
        joint = [multivariate_normal(m, cov).logpdf(x) for m in means[:, cell]]
        others = [multivariate_normal(m[rest], cov[rest][:, rest]).logpdf(x[rest]) for m in means[:, cell]]
        assert float(found[cell, gene]) == pytest.approx(logsumexp(joint) - logsumexp(others))
    screen = counts(num_cells=30)
    fit = eg.fit(EnvironmentVAE.for_data(screen, 3), screen, num_steps=100, progress=False)
    found = fit.entry_log_density(counts(seed=1, num_cells=3), 50)
    assert np.isfinite(found["log_density"]).all()
    assert (found["log_density"] <= 0).all(), "probabilities of counts"
    assert (found["effective_draws"] >= 0.99).all()


def test_entries_of_a_fitted_matrix_are_not_held_out() -> None:
    matrix = data_of(m=2)
    fit = matrix_fit(matrix)
    found = fit.entry_log_density(matrix, 100)
    assert found["log_density"].dims == ("replicate", "cell", "gene")
    assert np.isfinite(found["log_density"]).all()
    assert found.attrs["held_out"] == 0
    given = fit._given_graphs()
    law = ScaledKroneckerSumNormal(
        *(torch.as_tensor(fit.scales()[name].values) for name in ("log_u", "log_v")),
        given.model.cell_graph.precision, given.model.gene_graph.precision,
    )  # fmt: skip
    at_mean = law.entry_log_prob(torch.as_tensor(matrix["expression"].values))
    assert np.corrcoef(at_mean.numpy().ravel(), found["log_density"].values.ravel())[0, 1] > 0.8
