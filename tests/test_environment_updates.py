"""Closed-form updates of the posteriors of environments: enumeration, monotone bounds, stages, what carries nothing."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from environment_cases import CLOSED, CONTROL, DOUBLE, D, E, bound, case, statistics
from torch import Tensor

from embergraph.guides.parts.environment_posteriors import (
    EnvironmentStatistics,
    SingleEffectsPosterior,
    SpikeSlabPosterior,
    posterior_for,
)
from embergraph.models.parts.environment_priors import (
    SingleEffects,
    SpikeSlabShifts,
)
from embergraph.models.parts.errors import DataError, NumericalError, SchemaError


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def exact_single(zbar: Tensor, count: float, tau2: float, null: float) -> tuple[Tensor, Tensor, Tensor]:
    """One environment, one effect: target probabilities and moments of the mean from the joint Normal of all cells."""
    d = len(zbar)
    noise = torch.full((d,), count**-0.5, **DOUBLE)
    log_joint = [math.log(null) + float(dist.Normal(0.0, noise).log_prob(zbar).sum())]
    means, squares = [torch.zeros(d, **DOUBLE)], [torch.zeros(d, **DOUBLE)]
    for k in range(d):
        scale = noise.clone()
        scale[k] = math.sqrt(1 / count + tau2)
        log_joint.append(math.log((1 - null) / d) + float(dist.Normal(0.0, scale).log_prob(zbar).sum()))
        grid = torch.linspace(-12, 12, 200_001, **DOUBLE)  # the size by brute force
        density = (-(grid**2) / (2 * tau2) - count * (zbar[k] - grid) ** 2 / 2).softmax(0)
        mean, square = torch.zeros(d, **DOUBLE), torch.zeros(d, **DOUBLE)
        mean[k], square[k] = (density * grid).sum(), (density * grid**2).sum()
        means.append(mean)
        squares.append(square)
    q = torch.tensor(log_joint, **DOUBLE).softmax(0)
    mean = (q[:, None] * torch.stack(means)).sum(0)
    return q, mean, (q[:, None] * torch.stack(squares)).sum(0) - mean**2


@pytest.mark.parametrize("seed", range(4))
def test_one_effect_is_the_exact_posterior(seed: int) -> None:
    prior = SingleEffects(E, D, CONTROL, max_targets=1).double()
    posterior = posterior_for(prior, learn=(), misfit=0.0)
    assert isinstance(posterior, SingleEffectsPosterior)
    posterior.shift_variance.fill_(2.0)
    posterior.null_probability.fill_(0.4)
    found = statistics(seed)
    posterior.update(prior, found)
    for e in range(E):
        if e != CONTROL:
            q, mean, variance = exact_single(found.mean[e], float(found.count[e]), 2.0, 0.4)
            torch.testing.assert_close(posterior.probability[e, 0], q, atol=1e-9, rtol=0)
            torch.testing.assert_close(posterior.mean[e], mean, atol=1e-8, rtol=0)
            torch.testing.assert_close(posterior.variance[e], variance, atol=1e-8, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_one_effect_gives_the_evidence(seed: int) -> None:
    """With one effect nothing is approximated: the bound is the log of the sum over targets."""
    prior = SingleEffects(E, D, CONTROL, max_targets=1).double()
    posterior = posterior_for(prior, learn=(), misfit=0.0)
    assert isinstance(posterior, SingleEffectsPosterior)
    tau2, null, total = 9.0, 1 / 3, 0.0
    posterior.null_probability.fill_(null)
    found = statistics(seed)
    posterior.update(prior, found)
    for e in range(E):
        n, S = float(found.count[e]), found.count[e] * found.mean[e]
        total += float(-(S**2).sum() / (2 * n))
        if e != CONTROL:
            collapsed = math.log((1 - null) / D) - math.log(1 + n * tau2) / 2 + S**2 / (n + 1 / tau2) / 2
            total += float(torch.cat([collapsed, torch.tensor([math.log(null)], **DOUBLE)]).logsumexp(0))
    a, b = torch.tensor([0.5, 13.5], **DOUBLE)
    total += float(dist.InverseGamma(a, b).log_prob(torch.tensor(tau2, **DOUBLE))) + math.log(6 * null * (1 - null))
    assert bound(prior, posterior, found) == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_sweeps_never_lower_the_bound(seed: int) -> None:
    """Three effects and no misfit term: each further sweep is an exact maximisation."""
    found, bounds = statistics(seed, scale=1.5), []
    for num_sweeps in range(1, 7):
        prior = SingleEffects(E, D, CONTROL, max_targets=3).double()
        posterior = posterior_for(prior, learn=(), misfit=0.0, num_sweeps=num_sweeps)
        empty = bound(prior, posterior, found)
        posterior.update(prior, found)
        bounds.append(bound(prior, posterior, found))
    assert bounds[0] > empty
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(bounds))
    assert bounds[-1] - bounds[0] > 1e-6  # so that the test can tell


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["spike", "sparse"])
def test_rounds_never_lower_the_bound(name: str, seed: int) -> None:
    """Targets, rates and tau^2 of one round maximise the same bound, which includes the priors of the last two."""
    prior, posterior, u = case(name, seed, num_sweeps=1)
    found, bounds = statistics(seed, scale=2.0), []
    for _ in range(8):
        posterior.update(prior, found, u)
        bounds.append(bound(prior, posterior, found, u))
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(bounds))
    assert bounds[-1] - bounds[0] > 1e-4


@pytest.mark.parametrize("seed", range(4))
def test_learned_numbers_maximise_the_bound(seed: int) -> None:
    """tau^2 and the null probabilities after an update are the best ones for the effects that it found."""
    prior, posterior, _ = case("single", seed, learn=("shift_variance", "null_probability"), misfit=0.0)
    assert isinstance(posterior, SingleEffectsPosterior)
    found = statistics(seed, scale=2.0)
    posterior.update(prior, found)
    best = bound(prior, posterior, found)
    for values in (posterior.shift_variance, posterior.null_probability):
        for factor in (0.97, 1.03):
            kept = values.clone()
            values.mul_(factor)
            assert bound(prior, posterior, found) < best
            values.copy_(kept)


@pytest.mark.parametrize("K", [1.0, 20.0])
@pytest.mark.parametrize("seed", range(3))
def test_spike_and_slab_against_enumeration(seed: int, K: float) -> None:
    """Entry by entry, with the size integrated over a grid and the rate held at its expected log odds."""
    prior = SpikeSlabShifts(E, D, rate_prior=dist.Beta(1.0, K)).double()
    posterior = posterior_for(prior, num_sweeps=1)
    assert isinstance(posterior, SpikeSlabPosterior)
    found = statistics(seed)
    posterior.update(prior, found)
    rates = dist.Beta(torch.tensor(1.0, **DOUBLE), K).sample((400_000,))
    log_odds = float((rates.log() - torch.log1p(-rates)).mean())
    grid = torch.linspace(-25, 25, 40_001, **DOUBLE)
    slab = dist.Normal(0.0, 3.0).log_prob(grid) + math.log(float(grid[1] - grid[0]))  # tau^2 started at 9
    for e in range(E):
        for k in range(D):
            n, zbar = found.count[e], found.mean[e, k]
            likelihood = -n * (zbar - grid) ** 2 / 2
            evidence = float((slab + likelihood).logsumexp(0) + n * zbar**2 / 2)
            wanted = 1 / (1 + math.exp(-log_odds - evidence))
            assert float(posterior.probability[e, k]) == pytest.approx(wanted, abs=0.004)
            density = (slab + likelihood).softmax(0)
            assert float(posterior.size_mean[e, k]) == pytest.approx(float((density * grid).sum()), abs=1e-8)
    torch.testing.assert_close(posterior.rate_targets, 1 + posterior.probability.sum(0))
    torch.testing.assert_close(posterior.rate_others, K + (1 - posterior.probability).sum(0))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["single", "spike"])
def test_labels_that_carry_nothing_give_no_targets(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    make = {"single": lambda: SingleEffects(60, 8, 0), "spike": lambda: SpikeSlabShifts(60, 8, 0)}
    prior = make[name]().double()
    posterior = posterior_for(prior)
    found = EnvironmentStatistics(torch.full((60,), 100.0), torch.randn(60, 8, **DOUBLE) / 10, torch.ones(8))
    for _ in range(5):
        posterior.update(prior, found)
    probability = posterior.target_probability()
    assert probability is not None
    assert float(probability.sum(1).mean()) < 0.05
    assert float(posterior.moments(prior).mean.abs().max()) < 0.3


@pytest.mark.parametrize("seed", range(4))
def test_bounded_effects_find_planted_targets_through_misfit(seed: int) -> None:
    """A lack of fit of 0.3 that every environment has is not taken for targets; with 1 / n alone it is."""
    torch.manual_seed(seed)
    truth = torch.zeros(80, 12, **DOUBLE)
    for e in range(1, 80):
        targets = torch.randperm(12)[: 1 + e % 3]
        truth[e, targets] = torch.randn(len(targets), **DOUBLE).sign() * 4
    zbar = truth + 0.3 * torch.randn(80, 12, **DOUBLE)
    zbar[0] = 0.0
    found = EnvironmentStatistics(torch.full((80,), 100.0), zbar, torch.ones(12))
    wrong = {}
    for misfit, learn in ((0.25, ("shift_variance", "null_probability", "misfit")), (0.0, ("shift_variance",))):
        prior = SingleEffects(80, 12, 0).double()
        posterior = posterior_for(prior, misfit=misfit, learn=learn)
        for _ in range(5):
            posterior.update(prior, found)
        probability = posterior.target_probability()
        assert probability is not None
        wrong[misfit] = int(((probability > 0.5) != (truth != 0)).sum())
        if misfit:
            assert isinstance(posterior, SingleEffectsPosterior)
            planted = 2 * ((zbar - truth)[1:] ** 2 - 0.01).mean()  # of which doubtful effects take up a part
            assert float(planted) / 2 < float(posterior.misfit.mean()) < float(planted)
    assert wrong[0.25] <= 2
    assert wrong[0.0] > 50


@pytest.mark.parametrize("name", CLOSED)
def test_first_stage_has_shrunk_means(name: str) -> None:
    prior, posterior, u = case(name, 2)
    found = statistics(2)
    before = posterior.shift_variance.clone()
    posterior.update(prior, found, u, free=True)
    moments = posterior.moments(prior, u)
    centre = prior.location(u).detach() if name == "sparse" else torch.zeros(E, D, **DOUBLE)
    n = found.count[:, None]
    wanted = (n * found.mean + centre / before) / (n + 1 / before)
    wanted[CONTROL] = 0
    torch.testing.assert_close(moments.mean, wanted)
    assert posterior.shift_variance.equal(before)
    # The bound at these moments is the evidence of a Normal prior, which no other Normal law exceeds.
    best = bound(prior, posterior, found, u)
    density = prior.variance_prior.expand(()).log_prob(before)
    scale = (before + 1 / n).sqrt()
    rows = [e for e in range(E) if e != CONTROL]
    evidence = dist.Normal(centre, scale).log_prob(found.mean) + torch.log(2 * math.pi / n) / 2
    wanted_bound = evidence[rows].sum() - (n * found.mean**2)[CONTROL].sum() / 2 + density
    assert best == pytest.approx(float(wanted_bound), abs=1e-9)
    with pytest.raises(SchemaError, match="first stage"):
        posterior(prior, u)
    posterior.update(prior, found, u)
    posterior(prior, u)


@pytest.mark.parametrize("name", CLOSED)
def test_environments_without_cells(name: str) -> None:
    """They keep the prior of their targets, and nothing is not finite, even with means 0 / 0."""
    prior, posterior, u = case(name, 1)
    found = statistics(1)
    found.count[3], found.mean[3] = 0.0, math.nan
    for free in (True, *(50 * [False])):  # until what is learned has settled
        posterior.update(prior, found, u, free=free)
        assert bool(posterior.kl(prior, u).isfinite())
        assert all(bool(value.isfinite().all()) for value in posterior.state_dict().values())
    probability = posterior.target_probability()
    assert probability is not None
    if name == "single":
        shares = (1 - posterior.null_probability) / D
        wanted = (1 - (1 - shares).prod()).expand(D)
    elif name == "sparse":
        wanted = prior.logit(u).sigmoid()[3].detach()
    else:
        target, none = posterior.log_rates(prior, u)
        wanted = (target - none).sigmoid().expand(D)
    torch.testing.assert_close(probability[3], wanted, rtol=1e-3, atol=1e-4)
    posterior.update(prior, EnvironmentStatistics(0 * found.count, found.mean, found.variance), u)
    assert all(bool(value.isfinite().all()) for value in posterior.state_dict().values())


@pytest.mark.parametrize("name", CLOSED)
def test_statistics_are_checked(name: str) -> None:
    prior, posterior, u = case(name)
    with pytest.raises(DataError, match="statistics: found"):
        posterior.update(prior, statistics(0, rows=E + 1), u)
    broken = statistics(0)
    broken.mean[0, 0] = math.inf
    before = {key: value.clone() for key, value in posterior.state_dict().items()}
    with pytest.raises(NumericalError, match="not finite"):
        posterior.update(prior, broken, u)
    assert all(value.equal(before[key]) for key, value in posterior.state_dict().items())


def test_small_tasks_hold_misfit_and_null_probability() -> None:
    small = posterior_for(SingleEffects(5, 2, 0))
    large = posterior_for(SingleEffects(5, 3, 0))
    told = posterior_for(SingleEffects(5, 2, 0), learn=("misfit",), misfit=0.1)
    for made, misfit, learn in ((small, 0.0, 1), (large, 0.25, 3), (told, 0.1, 1)):
        assert isinstance(made, SingleEffectsPosterior)
        assert made.misfit.tolist() == pytest.approx([misfit] * made.num_latents)
        assert len(made.learn) == learn
        assert float(made.shift_variance) == pytest.approx(9.0)
        assert made.null_probability.tolist() == pytest.approx([1 / 3] * 5)
