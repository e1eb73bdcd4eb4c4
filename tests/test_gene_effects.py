"""Effects on single genes: the mixture of an atom and Normals, its weights, and sums over cells."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from scipy.integrate import quad
from scipy.stats import nbinom, norm
from torch import Tensor

from embergraph.guides.parts.gene_effects import (
    EffectStatistics,
    GeneEffectsPosterior,
    mixture_evidence,
    mixture_posterior,
    mixture_weights,
)
from embergraph.models.parts.errors import DataError, NumericalError
from embergraph.models.parts.gene_effects import AtomNormalMixture, GeneEffects

SCALES = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
WEIGHTS = torch.tensor([0.6, 0.1, 0.2, 0.1], dtype=torch.float64)


def slab(beta: float) -> float:
    return sum(w * norm.pdf(beta, 0, s) for w, s in zip(WEIGHTS[1:].tolist(), SCALES.tolist(), strict=True))


@pytest.mark.parametrize(("b", "information"), [(0.0, 4.0), (0.3, 25.0), (-1.7, 2.0), (2.5, 400.0)])
def test_mixture_posterior_is_that_of_numerical_integration(b: float, information: float) -> None:
    se = information**-0.5

    def moment(power: int) -> float:
        integral = quad(lambda v: v**power * slab(v) * norm.pdf(b, v, se), b - 12 * se, b + 12 * se, epsabs=1e-13)[0]
        return integral + (0.6 * norm.pdf(b, 0, se) if power == 0 else 0.0)

    q = mixture_posterior(torch.tensor(b).double(), torch.tensor(information).double(), WEIGHTS, SCALES)
    evidence, first, second = (moment(power) for power in range(3))
    assert q.weights[0].item() == pytest.approx(0.6 * norm.pdf(b, 0, se) / evidence, rel=1e-7)
    assert q.mean.item() == pytest.approx(first / evidence, rel=1e-7, abs=1e-12)
    assert q.variance.item() == pytest.approx(second / evidence - (first / evidence) ** 2, rel=1e-6)
    found = mixture_evidence(torch.tensor(b).double(), torch.tensor(information).double(), WEIGHTS, SCALES)
    assert found.item() == pytest.approx(math.log(evidence) - norm.logpdf(b, 0, se), abs=1e-7)


def test_without_information_the_posterior_is_the_prior() -> None:
    q = mixture_posterior(torch.tensor([3.0]).double(), torch.zeros(1).double(), WEIGHTS, SCALES)
    torch.testing.assert_close(q.weights[0], WEIGHTS)
    torch.testing.assert_close(q.scale[0], SCALES)
    assert (q.loc == 0).all()


def test_density_of_the_mixture_is_normalised_and_its_draws_have_its_moments() -> None:
    loc, scale = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 1.0]).double()
    law = AtomNormalMixture(torch.tensor([0.3, 0.5, 0.2]).double(), loc, scale)
    total = quad(lambda v: law.log_prob(torch.tensor(v).double()).exp().item(), -9, 9, points=[1.0], epsabs=1e-10)[0]
    at_zero = law.log_prob(torch.zeros(()).double()).exp().item()
    assert at_zero == pytest.approx(0.3)
    assert total + at_zero == pytest.approx(1, abs=1e-6)
    torch.manual_seed(0)
    draws = law.sample((200000,))
    assert (draws == 0).double().mean().item() == pytest.approx(0.3, abs=0.004)
    assert draws.mean().item() == pytest.approx(law.mean.item(), abs=0.012)
    assert draws.var().item() == pytest.approx(law.variance.item(), rel=0.015)


def test_mixture_expands_and_never_draws_a_component_without_weight() -> None:
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    law = AtomNormalMixture(weights, torch.tensor([5.0, -5.0]), torch.tensor([0.1, 0.1])).expand((3, 2))
    torch.manual_seed(0)
    draws = law.sample((2000,))
    assert draws.shape == (2000, 3, 2)
    assert (draws[..., 0] == 0).all()
    assert (draws[..., 1] > 0).all()
    assert law.log_prob(draws).isfinite().all()
    assert law.log_prob(torch.ones(())).shape == law.mean.shape == (3, 2)


def objective(weights: Tensor, b: Tensor, information: Tensor, concentration: Tensor) -> float:
    evidence = mixture_evidence(b, information, weights, SCALES).sum()
    return (evidence + torch.xlogy(concentration - 1, weights).sum()).item()


def test_em_of_the_weights_rises_to_the_mode() -> None:
    generator = torch.Generator().manual_seed(1)
    b = torch.randn(60, 10, generator=generator).double() * torch.rand(60, 10, generator=generator).double()
    information = 50 * torch.rand(60, 10, generator=generator).double()
    concentration = torch.tensor([11.0, 1, 1, 1]).double()
    path = [
        mixture_weights(b, information, SCALES, concentration, max_iterations=steps, tolerance=0.0)
        for steps in (0, 1, 2, 5, 20, 100, 3000)
    ]
    values = [objective(weights, b, information, concentration) for weights in path]
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(values))
    torch.manual_seed(0)
    for other in torch.distributions.Dirichlet(torch.ones(4).double()).sample((200,)):
        mixed = 0.9 * path[-1] + 0.1 * other
        assert objective(mixed, b, information, concentration) <= values[-1] + 1e-6
    assert path[-1].sum().item() == pytest.approx(1)


def test_pseudo_counts_hold_the_weights_when_nothing_is_known() -> None:
    zeros, concentration = torch.zeros(40).double(), torch.tensor([11.0, 1, 1, 1]).double()
    found = mixture_weights(zeros, zeros, SCALES, concentration, max_iterations=5000, tolerance=0.0)
    assert found[0].item() == pytest.approx(1, abs=1e-6)  # the mode of Dirichlet(11, 1, 1, 1)


def counts(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = np.random.default_rng(seed)
    mean, theta = random.gamma(2.0, 1.0, (30, 4)), np.array([0.5, 1.0, 3.0, 100.0])
    x = random.negative_binomial(theta, theta / (theta + mean)).astype(float)
    environment = torch.from_numpy(random.integers(0, 3, 30))
    return torch.from_numpy(x), torch.from_numpy(mean), torch.from_numpy(theta), environment


def test_score_of_counts_is_the_gradient_whatever_the_chunks() -> None:
    x, mean, theta, environment = counts()
    beta = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    shifted = mean * beta[environment].exp()
    law = torch.distributions.NegativeBinomial(theta, logits=(shifted / theta).log())
    (gradient,) = torch.autograd.grad(law.log_prob(x).sum(), beta)
    sums = EffectStatistics.empty(3, 4)
    for rows in torch.arange(30).split(7):
        sums.add_counts(x[rows], mean[rows], environment[rows], theta)
    torch.testing.assert_close(sums.score, gradient)


def test_information_of_counts_is_the_variance_of_the_score() -> None:
    mean, theta = 2.3, 1.7
    values = np.arange(400)
    score = (values - mean) / (1 + mean / theta)
    expected = np.sum(nbinom.pmf(values, theta, theta / (theta + mean)) * score**2)
    sums = EffectStatistics.empty(1, 1)
    sums.add_counts(torch.ones(1, 1), torch.full((1, 1), mean).double(), torch.zeros(1, dtype=torch.long), theta)
    assert sums.information.item() == pytest.approx(expected, rel=1e-8)
    poisson = EffectStatistics.empty(1, 1)
    poisson.add_counts(torch.ones(1, 1), torch.full((1, 1), mean).double(), torch.zeros(1, dtype=torch.long))
    assert poisson.information.item() == pytest.approx(mean)
    assert poisson.score.item() == pytest.approx(1 - mean)


def test_gaussian_estimate_is_the_mean_of_the_residuals() -> None:
    x, mean, _, environment = counts(1)
    sums = EffectStatistics.empty(4, 4)  # the last environment has no cells
    scale = torch.tensor([0.5, 1.0, 2.0, 4.0])
    sums.add_gaussian(x, mean, environment, scale)
    b = sums.estimate(torch.zeros(4, 4), max_step=100.0)
    for code in range(3):
        rows = environment == code
        torch.testing.assert_close(b[code], (x - mean)[rows].mean(0))
        torch.testing.assert_close(sums.information[code], rows.sum() / scale.double() ** 2)
    current = torch.full((4, 4), 0.7)
    step = sums.estimate(current) - 0.7
    assert step.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(step[3], torch.zeros(4).double(), atol=1e-7, rtol=0)


def test_prior_keeps_the_control_at_zero_with_and_without_draws() -> None:
    prior = GeneEffects(3, 5, control=1)
    assert prior.site_dims["gene_effects"] == ("condition", "gene")
    pyro.set_rng_seed(0)
    assert prior().shape == (3, 5)
    with pyro.plate("draws", 50, dim=-2):
        effects = prior()
    assert effects.shape == (50, 3, 5)
    assert (effects[:, 1] == 0).all()
    assert (effects[:, [0, 2]] != 0).any()
    law = prior.law(torch.full((9,), 1 / 9))
    assert law.batch_shape == ()
    assert law.event_shape == (3, 5)
    assert law.log_prob(torch.ones(3, 5)).item() == -math.inf


def test_prior_is_rebuilt_from_settings() -> None:
    prior = GeneEffects(3, 5, control=2, scales=(0.1, 1.0), null_pseudo_counts=4.0)
    again = GeneEffects.from_settings(prior.settings())
    assert again.settings() == prior.settings()
    for name, value in prior.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)


def updated(control: int | None = 0) -> tuple[GeneEffects, GeneEffectsPosterior]:
    generator = torch.Generator().manual_seed(3)
    prior = GeneEffects(4, 6, control).double()
    posterior = GeneEffectsPosterior(prior)
    information = 60 * torch.rand(4, 6, generator=generator).double()
    information[2, 3] = 0
    posterior.update(prior, torch.randn(4, 6, generator=generator).double(), information)
    return prior, posterior


@pytest.mark.parametrize("control", [None, 0])
def test_kl_is_that_of_monte_carlo(control: int | None) -> None:
    prior, posterior = updated(control)
    pyro.set_rng_seed(0)
    elbo = Trace_ELBO(num_particles=40000, vectorize_particles=True, max_plate_nesting=1)
    assert posterior.kl(prior).item() == pytest.approx(elbo.loss(prior.forward, lambda: posterior(prior)), abs=0.08)


def test_kl_is_zero_where_nothing_is_known() -> None:
    prior = GeneEffects(4, 6).double()
    posterior = GeneEffectsPosterior(prior)
    minus_log_prior = -torch.distributions.Dirichlet(prior.concentration).log_prob(posterior.weights)
    assert posterior.kl(prior).item() == pytest.approx(minus_log_prior.item())


def test_draws_have_the_moments_and_the_control_none() -> None:
    prior, posterior = updated()
    pyro.set_rng_seed(0)
    with pyro.plate("draws", 20000, dim=-2):
        trace = pyro.poutine.trace(posterior).get_trace(prior)
    draws = trace.nodes["gene_effects"]["value"]
    assert draws.shape == (20000, 1, 4, 6)
    known = posterior.information > 0
    torch.testing.assert_close(draws.mean((0, 1))[known], posterior.mean()[known], atol=0.02, rtol=0.02)
    torch.testing.assert_close(draws.var((0, 1))[known], posterior.variance()[known], atol=0.02, rtol=0.05)
    assert (draws[..., 0, :] == 0).all()
    assert (posterior.mean()[0] == 0).all()
    assert (posterior.effect_probability()[0] == 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_planted_effects_are_found_and_the_others_shrunk_away(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.zeros(21, 100).double()
    rows = torch.arange(1, 21)
    truth[rows, rows] = 2.0
    information = torch.full((21, 100), 25.0).double()
    noisy = truth + 0.2 * torch.randn(21, 100, generator=generator).double()
    prior = GeneEffects(21, 100, control=0)
    posterior = GeneEffectsPosterior(prior)
    posterior.update(prior, noisy, information)
    found = posterior.effect_probability() > 0.5
    assert found[truth != 0].all()
    assert found[truth == 0].double().mean() < 0.002
    error = (posterior.mean().double() - truth)[1:].square().mean().sqrt()
    assert error < 0.25 * (noisy - truth)[1:].square().mean().sqrt()
    assert posterior.mean().dtype == posterior.kl(prior).dtype == torch.float32


def test_posterior_survives_its_state_dict() -> None:
    prior, posterior = updated()
    again = GeneEffectsPosterior(prior)
    again.load_state_dict(posterior.state_dict())
    torch.testing.assert_close(again.mean(), posterior.mean())
    torch.testing.assert_close(again.kl(prior), posterior.kl(prior))


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(DataError, match="control: found 3"):
        GeneEffects(3, 5, control=3)
    with pytest.raises(DataError, match="scales: found"):
        GeneEffects(3, 5, scales=(0.1, 0.0))
    with pytest.raises(DataError, match="null_pseudo_counts"):
        GeneEffects(3, 5, null_pseudo_counts=-1)
    with pytest.raises(DataError, match="at least one"):
        GeneEffects(0, 5)
    prior = GeneEffects(3, 5)
    posterior = GeneEffectsPosterior(prior)
    with pytest.raises(DataError, match="estimate: found shape"):
        posterior.update(prior, torch.zeros(2, 5), torch.ones(3, 5))
    with pytest.raises(DataError, match="information: found negative"):
        posterior.update(prior, torch.zeros(3, 5), -torch.ones(3, 5))
    with pytest.raises(NumericalError, match="gene_effects: found NaN"):
        posterior.update(prior, torch.full((3, 5), math.nan), torch.ones(3, 5))
