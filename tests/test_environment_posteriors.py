"""Posteriors of environments: KL and moments against draws, gradients, masks, bookkeeping."""

from __future__ import annotations

import json
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from environment_cases import CLOSED, CONTROL, DOUBLE, MAKE, D, E, case, statistics
from pyro import poutine
from torch import Tensor

from embergraph.guides.parts.environment_posteriors import (
    ENVIRONMENT_POSTERIORS,
    EnvironmentPosterior,
    MaskedPosterior,
    posterior_for,
)
from embergraph.models.parts.environment_priors import (
    EnvironmentPrior,
    MaskedShifts,
    SingleEffects,
    SpikeSlabShifts,
    StandardPrior,
)
from embergraph.models.parts.errors import DataError, SchemaError


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def drawn(prior: EnvironmentPrior, posterior: EnvironmentPosterior, u: Tensor, n: int) -> tuple[Any, Any, Any]:
    """Traces of posterior and prior under an axis of draws, and the law that the draws make."""
    with torch.no_grad(), pyro.plate("_draws", n, dim=-2):
        guide = poutine.trace(posterior).get_trace(prior, u)
        model = poutine.trace(poutine.replay(prior, trace=guide)).get_trace(u)
    return guide, model, model.nodes["_RETURN"]["value"]


@pytest.mark.parametrize("name", sorted(MAKE))
@pytest.mark.parametrize("seed", range(3))
def test_kl_and_moments_agree_with_draws(name: str, seed: int) -> None:
    prior, posterior, u = case(name, seed)
    posterior.update(prior, statistics(seed), u)
    n = 20_000
    guide, model, law = drawn(prior, posterior, u, n)
    assert {s for s in model.nodes if model.nodes[s]["type"] == "sample"} - {"_draws"} == set(prior.site_dims)
    guide.compute_log_prob()
    model.compute_log_prob()
    ratio = torch.zeros(n, 1, **DOUBLE)
    for site in prior.site_dims:
        ratio = ratio + guide.nodes[site]["log_prob"] - model.nodes[site]["log_prob"]
    error = float(ratio.std()) / math.sqrt(n)
    with torch.no_grad():
        assert float(posterior.kl(prior, u)) == pytest.approx(float(ratio.mean()), abs=4.5 * error + 1e-9)
        moments = posterior.moments(prior, u)
    means = law.mean.expand(n, 1, E, D).squeeze(1)
    error = (moments.variance / n).sqrt()
    assert bool(((means.mean(0) - moments.mean).abs() <= 4.5 * error + 1e-9).all())
    square = (means - moments.mean) ** 2
    assert bool(((square.mean(0) - moments.variance).abs() <= 4.5 * square.std(0) / math.sqrt(n) + 1e-9).all())
    probability = posterior.target_probability()
    if law.is_target is None:
        assert probability is None
    else:
        assert probability is not None
        assert not probability[CONTROL].any()
        torch.testing.assert_close(law.is_target.mean((0, 1)), probability.detach(), atol=0.02, rtol=0)
    assert not moments.mean[CONTROL].any()
    assert not moments.variance[CONTROL].any()
    assert not law.mean[..., CONTROL, :].any()


@pytest.mark.parametrize("name", CLOSED)
def test_kl_follows_every_number(name: str) -> None:
    """It is kept between updates, and never beyond a change of the numbers that it is made of."""
    prior, posterior, u = case(name)
    posterior.update(prior, statistics(0), u)
    fresh = posterior_for(prior)
    values = [float(posterior.kl(prior, u).detach()), float(posterior.kl(prior, u).detach())]
    assert values[0] == values[1]
    posterior.shift_variance.mul_(1.5)
    values.append(float(posterior.kl(prior, u).detach()))
    prior.variance_prior.rate.mul_(2.0)
    values.append(float(posterior.kl(prior, u).detach()))
    posterior.update(prior, statistics(1), u, free=True)
    values.append(float(posterior.kl(prior, u).detach()))
    assert len({round(value, 9) for value in values}) == 4
    fresh.load_state_dict(posterior.state_dict())
    assert float(fresh.kl(prior, u).detach()) == values[-1]


@pytest.mark.parametrize("name", sorted(MAKE))
def test_shapes_under_an_axis_of_draws(name: str) -> None:
    prior, posterior, u = case(name)
    posterior.update(prior, statistics(0), u)
    lengths = {"condition": E, "latent": D, "effect": 2}
    guide, _, _ = drawn(prior, posterior, u, 3)
    for site, dims in prior.site_dims.items():
        assert guide.nodes[site]["value"].shape == (3, 1, *(lengths[dim] for dim in dims))
        assert guide.nodes[site]["fn"].batch_shape == (3, 1)
    alone = poutine.trace(posterior).get_trace(prior, u)
    for site, dims in prior.site_dims.items():
        assert alone.nodes[site]["value"].shape == tuple(lengths[dim] for dim in dims)


def test_masks_are_integrated_exactly() -> None:
    """Expected KL of a cell from the moments is that of the sum over all masks."""
    prior, posterior, _ = case("masked")
    assert isinstance(prior, MaskedShifts)
    m, v = torch.randn(D, **DOUBLE), torch.rand(D, **DOUBLE)
    moments, p = posterior.moments(prior), posterior.target_probability()
    assert p is not None
    for e in range(E):
        from_moments = (v + (m - moments.mean[e]) ** 2 + moments.variance[e] - 1 - v.log()).sum() / 2
        total = torch.zeros((), **DOUBLE)
        for code in range(2**D):
            mask = torch.tensor([code >> k & 1 for k in range(D)], **DOUBLE)
            weight = (p[e] ** mask * (1 - p[e]) ** (1 - mask)).prod()
            total = total + weight * (v + (m - mask * prior.size[e]) ** 2 - 1 - v.log()).sum() / 2
        torch.testing.assert_close(from_moments, total)


def test_cost_of_published_masks() -> None:
    prior = MaskedShifts(E, D, CONTROL, sparsity=20.0).double()
    posterior = posterior_for(prior)
    assert isinstance(posterior, MaskedPosterior)
    q = posterior.logits.sigmoid().detach()
    assert float(q.mean()) == pytest.approx(0.9933, abs=1e-4)
    wanted = -dist.Beta(torch.ones_like(q), 20.0).log_prob(q)[[0, 2, 3, 4]].sum()
    assert float(posterior.kl(prior).detach()) == pytest.approx(float(wanted))
    free = MaskedShifts(E, D, sparsity=1.0)
    assert float(posterior_for(free).kl(free).detach()) == 0.0
    with torch.no_grad():
        posterior.logits.fill_(1e4)
    assert bool(posterior.kl(prior).isfinite())


def test_relaxed_masks() -> None:
    _, posterior, _ = case("masked")
    assert isinstance(posterior, MaskedPosterior)
    environment = torch.arange(E).repeat_interleave(20_000)
    state = torch.get_rng_state()
    masks = [posterior.relaxed_mask(environment, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.get_rng_state().equal(state)
    assert masks[0].equal(masks[1])
    assert set(masks[0].unique().tolist()) == {0.0, 1.0}
    probability = posterior.target_probability()
    torch.testing.assert_close(masks[0].detach().unflatten(0, (E, -1)).mean(1), probability, atol=0.015, rtol=0)
    masks[0].unflatten(0, (E, -1)).mean(1).sum().backward()
    # Expected slope of the relaxed mask: s (1 - s) averaged over logistic noise.
    noise = torch.rand(200_000, 1, 1, **DOUBLE).logit()
    soft = (posterior.logits.detach() + noise).sigmoid()
    wanted = (soft * (1 - soft)).mean(0)
    wanted[CONTROL] = 0
    torch.testing.assert_close(posterior.logits.grad, wanted, atol=0.005, rtol=0)


@pytest.mark.parametrize(
    ("name", "grows"),
    [("gated", "values"), ("gated network", "network"), ("masked", "size"), ("dense", "location"), ("sparse", "logit")],
)
def test_gradients_reach_the_parameters(name: str, grows: str) -> None:
    """Through the moments where these depend on parameters, else through the KL."""
    prior, posterior, u = case(name)
    posterior.update(prior, statistics(0), u)

    def loss() -> Tensor:
        moments = posterior.moments(prior, u)
        scales = 0 if moments.log_scale is None else moments.log_scale.sum()
        square = (moments.mean - 1) ** 2 + moments.variance
        return (square + scales).sum() + posterior.kl(prior, u)

    loss().backward()
    checked = 0
    for part, parameters in (("", prior.named_parameters()), ("posterior.", posterior.named_parameters())):
        for path, parameter in parameters:
            assert parameter.grad is not None, part + path
            index = tuple(0 for _ in parameter.shape)
            step = torch.zeros_like(parameter)
            step[index] = 1e-5
            with torch.no_grad():
                parameter += step
                up = float(loss())
                parameter -= 2 * step
                down = float(loss())
                parameter += step
            assert float(parameter.grad[index]) == pytest.approx((up - down) / 2e-5, abs=1e-5)
            checked += path.startswith(grows) or part != ""
    assert checked


@pytest.mark.parametrize("name", sorted(MAKE))
def test_settings_and_state_restore_the_posterior(name: str) -> None:
    prior, posterior, u = case(name, 3)
    posterior.update(prior, statistics(3), u)
    settings = json.loads(json.dumps(posterior.settings()))
    restored = ENVIRONMENT_POSTERIORS[settings["kind"]].from_settings(settings).double()
    restored.load_state_dict(posterior.state_dict())
    assert restored.settings() == posterior.settings()
    assert restored.kl(prior, u).equal(posterior.kl(prior, u))
    for made in (posterior, restored):
        made.update(prior, statistics(4), u)
    assert restored.moments(prior, u).mean.equal(posterior.moments(prior, u).mean)


@pytest.mark.parametrize("name", sorted(MAKE))
def test_single_precision_follows_double(name: str) -> None:
    found = []
    for dtype in (torch.float64, torch.float32):
        prior, posterior, u = case(name, 5)
        prior, posterior, u = prior.to(dtype), posterior.to(dtype), u.to(dtype)
        for _ in range(2):
            posterior.update(prior, statistics(5), u)
        moments, kl = posterior.moments(prior, u), posterior.kl(prior, u)
        assert moments.mean.dtype == moments.variance.dtype == kl.dtype == dtype
        assert posterior_for(prior).active.dtype == dtype
        found.append([value.detach().double() for value in (moments.mean, moments.variance, kl)])
    for double, single in zip(*found, strict=True):
        torch.testing.assert_close(single, double, atol=2e-5, rtol=2e-5)


def test_priors_without_closed_forms_are_refused() -> None:
    for build, text in (
        (
            lambda: SingleEffects(E, D, variance_prior=dist.Gamma(2.0, 1.0)),
            "variance_prior: found Gamma; wanted InverseGamma",
        ),
        (lambda: SingleEffects(E, D, null_prior=dist.Uniform(0.0, 1.0)), "null_prior: found Uniform; wanted Beta"),
        (lambda: posterior_for(SingleEffects(E, D, null_prior=dist.Beta(1.0, 1.0))), "wanted concentrations above 1"),
        (
            lambda: posterior_for(SpikeSlabShifts(E, D, rate_prior=lambda shape: dist.Beta(1.0, 2.0))),
            "rate_prior: found a distribution without a name",
        ),
    ):
        with pytest.raises(DataError, match=text):
            build()
    with pytest.raises(SchemaError, match="prior: found StandardPrior; wanted SingleEffects"):
        posterior_for(SingleEffects(E, D)).kl(StandardPrior(E, D))
    with pytest.raises(DataError, match="learn: found"):
        posterior_for(SingleEffects(E, D), learn=("tau",))
