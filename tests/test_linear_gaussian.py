"""The linear Gaussian model with latents integrated out, its effects and intervals, against dense Gaussian algebra."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor
from torch.distributions import MultivariateNormal

from embergraph.guides.parts.linear_effects import EffectsProblem, LinearEffectsPosterior
from embergraph.guides.parts.linear_gaussian import CellSums, LinearGaussian, Shifts, principal_components
from embergraph.guides.parts.shift_axes import sparse_axes
from embergraph.guides.parts.shift_intervals import marginal_variances
from embergraph.guides.parts.single_effects import SingleEffectsPosterior
from embergraph.guides.parts.sparse_rotation import random_rotations
from embergraph.models.parts.environment_priors import SingleEffects

E, D, P = 4, 3, 6


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def example(n: int = 3) -> tuple[LinearGaussian, Tensor, Tensor]:
    """A model, cells and their environments; as many cells more as the environment's position."""
    environment = torch.cat([torch.full((n + e,), e) for e in range(E)])
    linear = LinearGaussian(drawn(D, P), drawn(P, seed=1), torch.tensor(0.7, dtype=torch.float64))
    x = drawn(len(environment), P, seed=2) * 1.5 + drawn(E, P, seed=3)[environment] + linear.bias
    return linear, x, environment


def covariance(linear: LinearGaussian) -> Tensor:
    return linear.weight.mT @ linear.weight + linear.variance * torch.eye(P, dtype=torch.float64)


def law(linear: LinearGaussian, mean: Tensor) -> MultivariateNormal:
    return MultivariateNormal(linear.bias + mean @ linear.weight, covariance(linear))


def test_log_likelihood_is_that_of_the_dense_normal() -> None:
    linear, x, environment = example()
    cells, mean = CellSums.of(x, environment, E), drawn(E, D, seed=4)
    dense = law(linear, mean[environment]).log_prob(x).sum()
    torch.testing.assert_close(linear.log_likelihood(cells, Shifts(mean, torch.zeros(D, D).double())), dense)
    # An uncertain mean: the expectation over two points at +-a is that over any law with covariance a a'.
    a = 0.3 * drawn(E, D, seed=5)
    both = sum(0.5 * law(linear, (mean + sign * a)[environment]).log_prob(x).sum() for sign in (-1, 1))
    spread = torch.einsum("e,ek,el->kl", cells.count, a, a)
    torch.testing.assert_close(linear.log_likelihood(cells, Shifts(mean, spread)), both)


def test_latents_are_the_conditional_of_the_joint_normal() -> None:
    linear, x, _ = example()
    mean = drawn(len(x), D, seed=6)
    C = covariance(linear)
    wanted = mean + (x - linear.bias - mean @ linear.weight) @ torch.linalg.solve(C, linear.weight.mT)
    found, V = linear.latents(x, mean)
    torch.testing.assert_close(found, wanted)
    eye = torch.eye(D, dtype=torch.float64)
    torch.testing.assert_close(V, eye - linear.weight @ torch.linalg.solve(C, linear.weight.mT))
    torch.testing.assert_close(linear.information(), eye - V)


def posterior(prior: SingleEffects, tau2: float, null: float) -> LinearEffectsPosterior:
    made = LinearEffectsPosterior.for_prior(prior).double()
    made.shift_variance.fill_(tau2)
    made.null_probability.fill_(null)
    return made


def test_one_effect_is_its_exact_conditional_posterior() -> None:
    """Evidence of every target and law of the size, from the dense law of all cells of an environment together."""
    linear, x, environment = example()
    tau2, null = 1.7, 0.4
    prior = SingleEffects(E, D, max_targets=2).double()
    others = drawn(E, D, seed=7)
    problem = EffectsProblem(posterior(prior, tau2, null), prior, CellSums.of(x, environment, E), linear)
    found = problem.updated(others, torch.tensor(null, dtype=torch.float64))
    for e in range(E):
        mine = x[environment == e]
        center = (linear.bias + others[e] @ linear.weight).repeat(len(mine))
        within = torch.kron(torch.eye(len(mine), dtype=torch.float64), covariance(linear))
        scores = [math.log(null) + MultivariateNormal(center, within).log_prob(mine.flatten())]
        for k in range(D):
            column = linear.weight[k].repeat(len(mine))
            total = within + tau2 * column.outer(column)
            evidence = MultivariateNormal(center, total).log_prob(mine.flatten())
            scores.append(math.log((1 - null) / D) + evidence)
            gain = torch.linalg.solve(total, tau2 * column)
            torch.testing.assert_close(found.size_mean[e, k], gain @ (mine.flatten() - center))
            torch.testing.assert_close(found.size_variance[e, k], tau2 - gain @ (tau2 * column))
        torch.testing.assert_close(found.probability[e], torch.stack(scores).softmax(0))


def test_where_latents_are_observed_the_effects_are_those_of_means() -> None:
    """Without noise F is I, and what is left is the posterior given the means of latents."""
    linear, x, environment = example(20)
    linear = LinearGaussian(linear.weight, linear.bias, torch.tensor(1e-10, dtype=torch.float64))
    cells = CellSums.of(x, environment, E)
    prior = SingleEffects(E, D, max_targets=2).double()
    q = posterior(prior, 2.0, 0.3)
    q.fit_effects(prior, cells, linear)
    plain = SingleEffectsPosterior.for_prior(prior, misfit=0.0, learn=()).double()
    plain.shift_variance.fill_(2.0)
    plain.null_probability.fill_(0.3)
    zbar = (cells.mean - linear.bias) @ torch.linalg.pinv(linear.weight)
    plain.infer(prior, cells.count, zbar, None)
    for name in ("probability", "size_mean", "size_variance"):
        torch.testing.assert_close(getattr(q, name), getattr(plain, name), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("d", [1, 3])
def test_principal_components_have_the_closed_form_likelihood(d: int) -> None:
    x = drawn(200, P) @ drawn(P, P, seed=1)
    environment = torch.zeros(200, dtype=torch.long)
    linear = principal_components(CellSums.of(x, environment, 1), d)
    assert float(law(linear, torch.zeros(d).double()).log_prob(x).mean()) == pytest.approx(PCA(d).fit(x).score(x))


def test_few_cells_fall_back_to_the_covariance_of_all() -> None:
    x, environment = drawn(5, P), torch.arange(5)
    linear = principal_components(CellSums.of(x, environment, 5), 2)
    assert float(linear.variance) > 0
    assert bool(torch.isfinite(linear.weight).all())


def sums_at_expectation(linear: LinearGaussian, mean: Tensor, count: Tensor) -> CellSums:
    """Data whose log-likelihood has at the truth the Fisher information as its curvature."""
    return CellSums(count, linear.bias + mean @ linear.weight, count.sum() * covariance(linear))


def test_variances_of_sizes_are_in_the_inverse_of_the_information() -> None:
    """Of the decoder (all of it), the offset and the sizes together, by automatic differentiation."""
    linear, _, _ = example()
    tau2, count = 2.0, torch.tensor([4e5, 1e5, 2e5, 3e5], dtype=torch.float64)
    mean = torch.tensor([[1.5, 0.0, 0.0], [0.0, -2.0, 0.0], [0.0, 1.0, 0.7], [1.0, 0.0, -1.0]], dtype=torch.float64)
    where = mean.nonzero()
    cells = sums_at_expectation(linear, mean, count)

    def log_density(vector: Tensor) -> Tensor:
        W, b, sizes = vector.split([D * P, P, len(where)])
        moved = torch.zeros(E, D, dtype=torch.float64).index_put(tuple(where.mT), sizes)
        here = LinearGaussian(W.reshape(D, P), b, linear.variance)
        return here.log_likelihood(cells, Shifts(moved, torch.zeros(D, D).double())) - 0.5 * sizes.square().sum() / tau2

    at = torch.cat([linear.weight.flatten(), linear.bias, mean[tuple(where.mT)]])
    dense = torch.linalg.inv(-torch.autograd.functional.hessian(log_density, at)).diagonal()[-len(where) :]
    q = posterior(SingleEffects(E, D, max_targets=2).double(), tau2, 0.3)
    q.probability.zero_()
    q.probability[..., 0] = 1.0
    for e, k in where.tolist():
        slot = int(q.probability[e, :, 1:].sum())
        q.probability[e, slot] = 0.0
        q.probability[e, slot, k + 1] = 1.0
        q.size_mean[e, slot, k] = mean[e, k]
    found = marginal_variances(q, count, linear.information())
    mine = (q.probability[..., 1:] * found).sum(1)[tuple(where.mT)]
    torch.testing.assert_close(mine, dense, rtol=1e-3, atol=0)
    given_axes = 1 / (count[where[:, 0]] * linear.information().diagonal()[where[:, 1]] + 1 / tau2)
    assert bool((mine > 1.02 * given_axes).all())  # what would be stated if the axes were known


def test_with_one_latent_the_scale_is_what_is_added() -> None:
    linear = LinearGaussian(drawn(1, P), drawn(P, seed=1), torch.tensor(2.0, dtype=torch.float64))
    F, count = float(linear.information()), torch.tensor([1e6, 100.0], dtype=torch.float64)
    q = posterior(SingleEffects(2, 1, 0, max_targets=1).double(), 9.0, 0.3)
    q.probability[1, 0] = torch.tensor([0.0, 1.0])
    q.size_mean[1, 0, 0] = 30.0
    q.size_variance[1, 0, 0] = 1 / (100 * F + 1 / 9)
    extra = marginal_variances(q, count, linear.information()) - q.size_variance
    assert float(extra[1, 0, 0]) == pytest.approx(30.0**2 / (2 * 1e6 * F**2), rel=0.05)


def test_latents_that_are_not_seen_have_the_variance_given_the_axes() -> None:
    linear, x, environment = example(30)
    blind = LinearGaussian(linear.weight * torch.tensor([[1.0], [1.0], [0.0]]), linear.bias, linear.variance)
    prior = SingleEffects(E, D, max_targets=2).double()
    q = posterior(prior, 2.0, 0.3)
    assert torch.equal(q.marginal_variances(blind), q.size_variance)  # before any sweep
    q.fit_effects(prior, CellSums.of(x, environment, E), blind)
    assert float(q.probability[..., 3].max()) == 0.0
    variances = q.marginal_variances(blind)
    assert bool(torch.isfinite(variances).all())
    assert bool((variances >= q.size_variance - 1e-12).all())


@pytest.mark.parametrize("seed", range(4))
def test_axes_are_found_with_the_origin(seed: int) -> None:
    """Where every environment moves something the mean of all is not the origin, and axes through it are wrong."""
    d, num = 4, 24
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.arange(num) % d
    sizes = 3 * torch.randn(num, generator=generator, dtype=torch.float64) + 1.5
    sparse = sizes.unsqueeze(-1) * torch.eye(d, dtype=torch.float64)[chosen]
    Q = random_rotations(d, 2, generator)[1]
    M = sparse @ Q.mT + 0.1 * drawn(num, d, seed=seed + 10)
    truth, M = -M.mean(0), M - M.mean(0)
    variance = torch.full((num,), 0.01, dtype=torch.float64)
    starts = random_rotations(d, 12, generator)
    heat = torch.full((12,), 0.1, dtype=torch.float64)
    R, c = sparse_axes(M, variance, starts, heat, rate=0.3, control=None)
    found = [float((r.mT @ Q).abs().amax(0).min()) for r in R]
    assert max(found) > 0.995
    assert float((c[found.index(max(found))] - truth).abs().max()) < 0.1
    with_mean = torch.cat([torch.zeros_like(M[:1]), M])  # a control that is none
    spoiled, _ = sparse_axes(with_mean, torch.cat([variance[:1], variance]), starts, heat, rate=0.3, control=0)
    assert max(float((r.mT @ Q).abs().amax(0).min()) for r in spoiled) < max(found)
