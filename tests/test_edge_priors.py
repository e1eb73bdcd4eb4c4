"""Sparse priors of edges against numerical integration and explicit mixtures."""

from __future__ import annotations

import itertools

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch

from embergraph.inference.messengers import isolated
from embergraph.models import Horseshoe, SharedSpikeSlab
from embergraph.models.parts.priors import Prior


@pytest.mark.parametrize("tau", [0.05, 1.0])
def test_horseshoe_is_the_integral_over_local_scales(tau: float) -> None:
    for w in (1e-4, 0.01, 0.3, 1.0, 8.0):
        wanted, _ = scipy.integrate.quad(
            lambda log_l, w=w: scipy.stats.norm.pdf(w, 0, tau * np.exp(log_l))
            * scipy.stats.halfcauchy.pdf(np.exp(log_l))
            * np.exp(log_l),
            -25, 25, limit=400, points=[np.log(w / tau)],
        )  # fmt: skip
        got = Horseshoe(torch.tensor(tau, dtype=torch.double)).log_prob(torch.tensor(-w, dtype=torch.double)).exp()
        assert float(got) == pytest.approx(wanted, rel=1e-6)


def test_horseshoe_agrees_with_scipy_over_all_sizes_and_is_smooth() -> None:
    u = torch.logspace(-12, 5, 2000, dtype=torch.double)
    w = (2 * u).sqrt().requires_grad_()
    score = Horseshoe(torch.ones((), dtype=torch.double)).log_prob(w)
    wanted = np.log(scipy.special.exp1(u.clamp(max=600).numpy())) + u.clamp(max=600).numpy()
    inside = (u < 600).numpy()
    np.testing.assert_allclose((score.detach() + 0.5 * np.log(2 * np.pi**3)).numpy()[inside], wanted[inside], atol=1e-9)
    slope = torch.autograd.grad(score.sum(), w)[0]
    scaled = np.exp(wanted[inside])
    exact = (1 - 1 / (u.numpy()[inside] * scaled)) * w.detach().numpy()[inside]  # of log(e^u E1(u)), by u, times du/dw
    np.testing.assert_allclose(slope.numpy()[inside], exact, rtol=1e-6)


def test_horseshoe_at_zero_is_finite_in_floating_point() -> None:
    w = torch.zeros(3, requires_grad=True)
    score = Horseshoe(0.1).log_prob(w)
    assert bool(torch.isfinite(score).all())
    assert bool(torch.isfinite(torch.autograd.grad(score.sum(), w)[0]).all())


def test_draws_of_the_horseshoe_follow_its_density() -> None:
    with isolated(0):
        draws = Horseshoe(torch.tensor(0.3, dtype=torch.double)).expand((20_000,)).sample()
    edges = np.array([0, 0.01, 0.05, 0.2, 0.6, 2.0, 10.0])
    law = Horseshoe(torch.tensor(0.3, dtype=torch.double))
    probability = [
        2 * scipy.integrate.quad(lambda w: float(law.log_prob(torch.tensor(w, dtype=torch.double)).exp()), a, b)[0]
        for a, b in itertools.pairwise(edges)
    ]
    seen, _ = np.histogram(draws.abs().numpy(), edges)
    rest = len(draws) - seen.sum()
    expected = np.append(probability, 1 - sum(probability)) * len(draws)
    assert scipy.stats.chisquare(np.append(seen, rest), expected).pvalue > 0.01


def test_shared_gates_are_a_mixture_over_all_archetypes_of_an_edge() -> None:
    K, E = 3, 5
    prior = SharedSpikeSlab(0.2, 0.9, 0.04).double()
    w = torch.randn(K, E, generator=torch.Generator().manual_seed(0), dtype=torch.double) * 0.3
    slab, spike = (dist.Normal(0.0, s).log_prob(w).sum(0).exp() for s in (0.9, 0.04))
    wanted = (0.2 * slab + 0.8 * spike).log().sum()
    torch.testing.assert_close(prior((K, E)).log_prob(w), wanted)
    torch.testing.assert_close(prior((K, E)).log_prob(w.expand(4, 1, K, E)), wanted.expand(4, 1))


def test_shared_gates_are_drawn_together() -> None:
    with isolated(0):
        w = Prior(SharedSpikeSlab(0.3, 1.0, 0.01)).expand((4, 2000)).sample()
    real = (w.abs() > 0.05).float()
    assert float(real.mean()) == pytest.approx(0.3 * 0.96, abs=0.04)
    assert float(((real.sum(0) > 0) & (real.sum(0) < 3)).float().mean()) < 0.03, "in all archetypes or in none"


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="slab_probability"):
        SharedSpikeSlab(1.5)
