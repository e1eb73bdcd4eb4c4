"""Likelihoods: densities against scipy, gradients against double precision, and nothing but finite numbers."""

from __future__ import annotations

import json

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats
from torch.autograd import grad

from embergraph.models.parts import count_distributions
from embergraph.models.parts.count_distributions import negative_binomial_score
from embergraph.models.parts.errors import DataError, LoadError
from embergraph.models.parts.likelihoods import (
    LIKELIHOODS,
    GaussianLikelihood,
    Likelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)

P, N = 6, 5


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def every_likelihood(p: int = P) -> list[Likelihood]:
    made: list[Likelihood] = [NegativeBinomialLikelihood(p, 2.0), PoissonLikelihood(p)]
    for scale in ("shared", "gene"):
        made += [GaussianLikelihood(p, scale, 0.7), StudentTLikelihood(p, 4.0, scale, 0.7)]
    for likelihood in made:
        for parameter in likelihood.parameters():
            parameter.data += 0.5 * torch.randn_like(parameter)
    return made


def inputs(likelihood: Likelihood) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    output = torch.randn(3, N, P, dtype=torch.double)
    if not likelihood.counts:
        return output, None, 2 * torch.randn(N, P, dtype=torch.double)
    x = torch.randint(0, 9, (N, P)).double()
    return output, x.sum(-1) + 3, x


def by_scipy(likelihood: Likelihood, output: torch.Tensor, library: torch.Tensor | None, x: torch.Tensor) -> np.ndarray:
    mean = output.numpy()
    if library is not None:
        mean = library.numpy()[:, None] * np.exp(mean) / np.exp(mean).sum(-1, keepdims=True)
    if isinstance(likelihood, PoissonLikelihood):
        return stats.poisson.logpmf(x, mean).sum(-1)
    if isinstance(likelihood, NegativeBinomialLikelihood):
        theta = likelihood.inverse_dispersion.detach().numpy()
        return stats.nbinom.logpmf(x, theta, theta / (theta + mean)).sum(-1)
    scale = likelihood.scale.detach().numpy()
    if isinstance(likelihood, GaussianLikelihood):
        return stats.norm.logpdf(x, mean, scale).sum(-1)
    return stats.t.logpdf(x, float(likelihood.df), mean, scale).sum(-1)


def test_densities_against_scipy_in_both_precisions_and_under_draws():
    for likelihood in every_likelihood():
        output, library, x = inputs(likelihood)
        likelihood.double()
        law, wanted = likelihood(output, library), by_scipy(likelihood, output, library, x)
        assert law.batch_shape == (3, N)
        assert law.event_shape == (P,)
        np.testing.assert_allclose(law.log_prob(x).detach(), wanted, rtol=1e-10)
        likelihood.float()
        single = likelihood(output.float(), library).log_prob(x.float())
        assert single.dtype == torch.float
        np.testing.assert_allclose(single.detach(), wanted, rtol=2e-6, atol=2e-6)


def test_score_and_base_measure_are_the_density_and_only_the_score_moves():
    for likelihood in every_likelihood():
        output, library, x = inputs(likelihood)
        likelihood.double()
        base = likelihood.base_measure(x)
        assert base.shape == (N,)
        score = likelihood.log_score(output, library, x)
        torch.testing.assert_close(score + base, likelihood(output, library).log_prob(x))
        output.requires_grad_()
        leaves = [output, *likelihood.parameters()]
        density = likelihood(output, library).log_prob(x).sum()
        score = likelihood.log_score(output, library, x).sum()
        for ours, theirs in zip(grad(score, leaves), grad(density, leaves), strict=True):
            torch.testing.assert_close(ours, theirs)
        for parameter in likelihood.parameters():
            parameter.data += 0.3
        assert torch.equal(likelihood.base_measure(x), base)


@pytest.mark.parametrize("seed", range(2))
def test_fused_negative_binomial_against_double_precision(seed):
    """Values and both gradients over nine decades of dispersion, counts to 1e5 and means about them."""
    torch.manual_seed(seed)
    theta = torch.logspace(-4.5, 5.2, 200)
    counts = torch.logspace(0, 5, 20).round()[:, None].expand(20, 200)
    x = torch.cat([torch.randint(0, 4, (20, 200)).float(), counts])
    log_mean = x.clamp(min=0.1).log() + 2 * torch.randn(40, 200)

    def derivatives(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        leaves = [log_mean.to(dtype).clone().requires_grad_(), theta.to(dtype).clone().requires_grad_()]
        genes = [
            negative_binomial_score(leaves[0][:, [j]], leaves[1][[j]], x[:, [j]].to(dtype)) for j in range(len(theta))
        ]
        each = torch.stack(genes, -1)
        return each.detach().double(), *(g.double() for g in grad(each.sum(), leaves))

    single, double = derivatives(torch.float), derivatives(torch.double)
    x, theta, log_mean = x.double(), theta.double(), log_mean.double()
    wanted = stats.nbinom.logpmf(x, theta, theta / (theta + log_mean.exp()))
    np.testing.assert_allclose((double[0] - torch.lgamma(x + 1)).numpy(), wanted, rtol=1e-6, atol=1e-6)
    # Sizes of the terms that single precision adds up, each rounded by 6e-8: no more than sixteen roundings.
    size = 1 + x * (1 + log_mean.abs() + (x + theta).log().abs()) + theta * (log_mean.exp() / theta).log1p()
    assert ((single[0] - double[0]).abs() / size).max() < 1e-6
    size = theta * (x + log_mean.exp()) / (theta + log_mean.exp())
    assert ((single[1] - double[1]).abs() / size).max() < 1e-6
    assert (theta * (single[2] - double[2]).abs() / (1 + x.sum(0))).max() < 1e-6


def test_the_fused_score_is_the_one_in_use_and_keeps_what_lgamma_loses():
    theta, x = torch.full((1,), 1e5), torch.tensor([[3.0]])
    log_mean = torch.tensor([[1.0]])
    exact = negative_binomial_score(log_mean.double(), theta.double(), x.double())
    fused = negative_binomial_score(log_mean, theta, x)
    naive = count_distributions._reference(log_mean, theta, x)
    assert (fused - exact).abs() < 1e-6
    assert (naive - exact).abs() > 1e-2


def test_second_derivatives_of_the_fused_score():
    """A penalty on a gradient is differentiable: against double precision, whose derivatives are all torch's own."""
    x = torch.poisson(torch.full((N, P), 3.0))

    def penalty_gradient(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(1)
        leaves = [torch.randn(N, P).to(dtype).requires_grad_(), torch.randn(P).to(dtype).requires_grad_()]
        weight = torch.ones((), dtype=dtype, requires_grad=True)
        score = negative_binomial_score(weight * leaves[0], leaves[1].exp(), x.to(dtype)).mean()
        return grad(grad(score, weight, create_graph=True)[0] ** 2, leaves)

    for single, double in zip(penalty_gradient(torch.float), penalty_gradient(torch.double), strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)
        assert double.abs().max() > 1e-3


def test_gradients_reach_broadcast_inputs():
    output, x = torch.randn(4, 1, P, requires_grad=True), torch.poisson(torch.full((N, P), 3.0))
    likelihood = NegativeBinomialLikelihood(P, 2.0)
    leaves = [output, likelihood.log_inverse_dispersion]
    found = grad(likelihood.log_score(output, x.sum(-1), x).sum(), leaves)
    wide = output.detach().expand(4, N, P).clone().requires_grad_()
    wanted = grad(likelihood.log_score(wide, x.sum(-1), x).sum(), [wide, leaves[1]])
    torch.testing.assert_close(found[0], wanted[0].sum(1, keepdim=True))
    torch.testing.assert_close(found[1], wanted[1])
    likelihood.requires_grad_(False)
    only = grad(likelihood.log_score(output, x.sum(-1), x).sum(), output)[0]
    torch.testing.assert_close(only, found[0])


@pytest.mark.parametrize("dtype", [torch.float, torch.double])
def test_extreme_outputs_and_empty_cells_stay_finite(dtype):
    extreme = torch.tensor([[0.0, 1e4, -1e4, 3.0, 0.0, 0.0], [0.0] * 6, [-1e4] * 6], dtype=dtype)
    zeros, counts = torch.zeros(3, P, dtype=dtype), torch.tensor([0.0, 1.0, 2.0, 0.0, 1e5, 3.0], dtype=dtype)
    for likelihood in every_likelihood():
        likelihood.to(dtype)
        for x, library in (
            (zeros, zeros[:, 0]),
            (counts.expand(3, P), counts.sum().expand(3)),
            (zeros, zeros[:, 0] + 9),
        ):
            output = extreme.clone().requires_grad_()
            score = likelihood.log_score(output, library, x)
            assert torch.isfinite(score).all()
            for gradient in grad(score.sum(), [output, *likelihood.parameters()]):
                assert torch.isfinite(gradient).all()
            assert torch.isfinite(likelihood(output, library).mean).all()
    empty = NegativeBinomialLikelihood(P).to(dtype).log_score(zeros, zeros[:, 0], zeros)
    assert empty.abs().max() < 1e-30  # a cell without counts says nothing


def test_dispersion_is_bounded_and_ends_at_the_poisson_law():
    likelihood, poisson = NegativeBinomialLikelihood(P), PoissonLikelihood(P)
    output, x = torch.randn(N, P), torch.poisson(torch.full((N, P), 2.0))
    with torch.no_grad():
        likelihood.log_inverse_dispersion.fill_(1e6)
    assert torch.isfinite(likelihood.inverse_dispersion).all()
    found, wanted = likelihood(output, x.sum(-1)).log_prob(x), poisson(output, x.sum(-1)).log_prob(x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(2))
def test_draws_have_the_moments_of_the_law(seed):
    torch.manual_seed(seed)
    for likelihood in every_likelihood():
        output, library, _ = inputs(likelihood)
        output, library = output[0].float(), None if library is None else 20 * library.float()
        law = likelihood(output, library)
        before = law.mean.clone()
        draws = law.sample((20_000,))
        assert draws.shape == (20_000, N, P)
        if likelihood.counts:
            assert torch.equal(draws, draws.round())
            assert law.support.check(draws).all()
            torch.testing.assert_close(law.mean.sum(-1), library)
        error = (draws.mean(0) - before) / (draws.std(0) / 20_000**0.5)
        assert error.abs().max() < 4.5
        variance = {"poisson": before}.get(likelihood.kind)
        if isinstance(likelihood, NegativeBinomialLikelihood):
            variance = before + before**2 / likelihood.inverse_dispersion
        elif isinstance(likelihood, GaussianLikelihood):
            variance = likelihood.scale**2 + 0 * before
        if variance is not None:
            torch.testing.assert_close(draws.var(0), variance.detach(), rtol=0.12, atol=1e-4)


def test_the_law_is_a_pyro_distribution():
    for likelihood in every_likelihood():
        likelihood.double()
        output, library, x = inputs(likelihood)
        law = likelihood(output[:, :1], None if library is None else library[:1])
        wide = law.expand((2, 3, N))
        assert wide.log_prob(x).shape == wide.mean.shape[:-1] == wide.sample().shape[:-1] == (2, 3, N)
        torch.testing.assert_close(wide.log_prob(x)[1], law.log_prob(x))
        assert law.expand((3, 4)).log_prob(x[0]).shape == (3, 4)

        def model(likelihood=likelihood, output=output, library=library, x=x):
            with pyro.plate("cells", 50, subsample=torch.arange(N)):
                pyro.sample("x", likelihood(output[0], library), obs=x)

        total = poutine.trace(model).get_trace().log_prob_sum()
        torch.testing.assert_close(total, 10 * likelihood(output[0], library).log_prob(x).sum())


def test_scale_is_set_held_and_floored():
    for cls in (GaussianLikelihood, StudentTLikelihood):
        fixed = cls(P, initial=0.25, learned=False)
        assert not list(fixed.parameters())
        assert fixed.scale.item() == pytest.approx(0.25)
        each = cls(P, scale="gene")
        wanted = torch.logspace(-2, 3, P)
        each.set_scale_(wanted)
        torch.testing.assert_close(each.scale.detach(), wanted, rtol=1e-5, atol=0)
        each.set_scale_(0.0)
        assert (each.scale >= each.floor).all()
        with torch.no_grad():
            each.raw_scale.fill_(-1e4)
        torch.testing.assert_close(each.scale.detach(), torch.full((P,), 1e-3))


def test_settings_and_state_rebuild_a_likelihood():
    assert sorted(LIKELIHOODS) == ["gaussian", "negative_binomial", "poisson", "student_t"]
    for likelihood in [*every_likelihood(), GaussianLikelihood(P, initial=3.0, learned=False, floor=2.0)]:
        settings = json.loads(json.dumps(likelihood.settings()))
        again = Likelihood.from_settings(settings).double()
        again.load_state_dict(likelihood.double().state_dict())
        output, library, x = inputs(likelihood)
        assert type(again) is type(likelihood)
        assert torch.equal(again(output, library).log_prob(x), likelihood(output, library).log_prob(x))
        assert again.settings() == settings
    with pytest.raises(LoadError, match="likelihood: found 'gamma'; wanted one of"):
        Likelihood.from_settings({"kind": "gamma", "num_genes": 3})


def test_what_is_refused():
    for likelihood in (NegativeBinomialLikelihood(P), PoissonLikelihood(P)):
        with pytest.raises(DataError, match="^library: found None; wanted"):
            likelihood.log_score(torch.zeros(N, P), None, torch.zeros(N, P))
    for wrong, message in (
        (lambda: PoissonLikelihood(0), "num_genes: found 0"),
        (lambda: GaussianLikelihood(P, scale="cell"), "scale: found 'cell'"),
        (lambda: GaussianLikelihood(P, initial=1e-4), "floor, initial: found 0.001, 0.0001"),
        (lambda: StudentTLikelihood(P, df=1.0), "df: found 1.0"),
        (lambda: NegativeBinomialLikelihood(P, initial=0.0), "initial: found 0.0"),
    ):
        with pytest.raises(DataError, match=f"^{message}; wanted"):
            wrong()
