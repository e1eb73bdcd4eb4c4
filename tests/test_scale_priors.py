"""Priors of log scales: zero sums, conditional laws, learned spreads."""

from __future__ import annotations

import json
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import init_to_mean
from scipy import stats
from torch import Tensor

from embergraph.models.parts.errors import DataError, SchemaError
from embergraph.models.parts.scale_priors import SCALE_PRIORS, FlatScales, NormalScales, ScalePrior, StudentScales

DOUBLE = {"dtype": torch.double}


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def model(prior: ScalePrior, size: int) -> Tensor:
    return pyro.sample("log_u", prior.law("u", size, prior.sample_spread("u")))


def draws(prior: ScalePrior, size: int, num_draws: int) -> dict[str, Tensor]:
    with poutine.trace() as recorder, pyro.plate("draws", num_draws, dim=-1):
        model(prior.double(), size)
    return {n: s["value"] for n, s in recorder.trace.nodes.items() if s["type"] == "sample" and n != "draws"}


def fixed(spread: float) -> NormalScales:
    """A spread that is known to three digits."""
    return NormalScales(dist.LogNormal(math.log(spread), 1e-6))


@pytest.mark.parametrize("prior", [NormalScales(), StudentScales(3.0), fixed(2.0)], ids=["normal", "student", "fixed"])
def test_draws_sum_to_zero(prior: ScalePrior) -> None:
    found = draws(prior, 7, 500)
    assert found["log_u"].shape == (500, 7)
    assert float(found["log_u"].sum(-1).abs().max()) < 1e-12 * (1 + float(found["log_u"].abs().max()))
    assert found["tau_u"].shape == (500,)
    assert float(found["log_u"].std()) > 0.1


@pytest.mark.parametrize("size", [2, 5])
def test_normal_scales_are_conditioned_not_centred_twice(size: int) -> None:
    """Given a zero sum, variances are tau^2 (1 - 1/n) and correlations -1 / (n - 1)."""
    x = draws(fixed(1.7), size, 100_000)["log_u"]
    covariance = torch.cov(x.T)
    wanted = 1.7**2 * (torch.eye(size, **DOUBLE) - 1 / size)
    torch.testing.assert_close(covariance, wanted, atol=0.04, rtol=0.0)
    assert not torch.allclose(covariance, 1.7**2 * torch.eye(size, **DOUBLE), atol=0.2)


def test_normal_density_is_that_of_free_coordinates() -> None:
    """In any orthonormal basis of the plane the density is an isotropic Normal."""
    tau, size = 0.6, 5
    value = torch.randn(size, **DOUBLE)
    value = value - value.mean()
    with poutine.condition(data={"log_u": value, "tau_u": torch.tensor(tau, **DOUBLE)}):
        trace = poutine.trace(model).get_trace(NormalScales().double(), size)
    basis = torch.linalg.svd(torch.eye(size, **DOUBLE) - 1 / size).U[:, : size - 1]
    wanted = dist.Normal(torch.tensor(0.0, **DOUBLE), tau).log_prob(basis.T @ value).sum()
    wanted = wanted + dist.HalfNormal(torch.tensor(1.0, **DOUBLE)).log_prob(torch.tensor(tau, **DOUBLE))
    torch.testing.assert_close(trace.log_prob_sum(), wanted)
    unconditioned = dist.Normal(torch.tensor(0.0, **DOUBLE), tau).log_prob(value).sum()
    assert abs(float(unconditioned - wanted)) > 1e-3


def test_spread_is_learned_from_its_prior() -> None:
    found = draws(NormalScales(), 4, 5000)
    assert stats.kstest(found["tau_u"], stats.halfnorm.cdf).pvalue > 1e-4
    standard = (found["log_u"].square().sum(-1) / found["tau_u"] ** 2).numpy()
    assert stats.kstest(standard, stats.chi2(3).cdf).pvalue > 1e-4
    assert stats.kstest(standard, stats.chi2(4).cdf).pvalue < 1e-4
    other = draws(NormalScales(dist.Gamma(2.0, 4.0)), 4, 5000)["tau_u"]
    assert stats.kstest(other, stats.gamma(2.0, scale=0.25).cdf).pvalue > 1e-4


def test_student_scales_are_a_mixture_of_stretched_normals() -> None:
    df, size, num_draws = 3.0, 40, 2000
    found = draws(StudentScales(df, dist.LogNormal(0.0, 1e-6)), size, num_draws)
    stretch = found["stretch_u"]
    assert stretch.shape == (num_draws, size)
    assert stats.kstest(stretch.numpy().ravel(), stats.invgamma(df / 2, scale=df / 2).cdf).pvalue > 1e-4
    # differences do not see the constraint but for the weighted mean, which is small with 40 entries
    first = found["log_u"][:, 0].numpy()
    assert stats.kstest(first, stats.t(df).cdf).pvalue > 1e-4
    assert stats.kstest(first, stats.norm.cdf).pvalue < 1e-4
    kurtosis = stats.kurtosis(found["log_u"].numpy().ravel())
    assert kurtosis > 5, "heavy tails"


def test_student_density_by_hand() -> None:
    df, tau, size = 4.0, 0.7, 4
    prior = StudentScales(df).double()
    stretch = torch.tensor([0.5, 2.0, 1.0, 4.0], **DOUBLE)
    value = torch.tensor([0.3, -1.0, 0.2, 0.5], **DOUBLE)
    given = {"log_u": value, "tau_u": torch.tensor(tau, **DOUBLE), "stretch_u": stretch}
    with poutine.condition(data=given):
        trace = poutine.trace(model).get_trace(prior, size)
    law = stats.invgamma(df / 2, scale=df / 2)
    wanted = law.logpdf(stretch.numpy()).sum() + stats.halfnorm.logpdf(tau)
    # Normal(0, diag(tau^2 s)) given a zero sum: joint density of the vector and its sum over that of the sum,
    # and the orthonormal coordinate of the sum is the sum over the root of n
    variances = (tau**2 * stretch).numpy()
    wanted += stats.norm.logpdf(value.numpy(), scale=variances**0.5).sum()
    wanted -= stats.norm.logpdf(0.0, scale=(variances.sum() / size) ** 0.5)
    assert float(trace.log_prob_sum()) == pytest.approx(wanted)


def test_flat_scales_score_everything_alike_and_have_no_draws() -> None:
    prior = FlatScales()
    assert prior.sample_spread("u") is None
    law = prior.law("u", 5, None)
    far = torch.tensor([100.0, -100.0, 0.0, 0.0, 0.0], **DOUBLE)
    assert float(law.log_prob(far)) == float(law.log_prob(0 * far)) == 0.0
    with pytest.raises(SchemaError, match="flat prior"):
        law.sample()
    assert not init_to_mean({"name": "log_u", "fn": law, "type": "sample"}).any()


@pytest.mark.parametrize("plates", [(), (3,)])
def test_batches_of_scales_share_one_spread(plates: tuple[int, ...]) -> None:
    for prior in (NormalScales().double(), StudentScales().double()):
        with pyro.plate("draws", 6, dim=-2):
            tau = prior.sample_spread("v")
            with pyro.plate("replicate", 3, dim=-1) if plates else pyro.plate("replicate", 1, dim=-1):
                value = pyro.sample("log_v", prior.law("v", 5, tau))
        assert tau.shape == (6, 1)
        assert value.shape == (6, *(plates or (1,)), 5)


def test_settings_come_back() -> None:
    for prior in (
        FlatScales(),
        NormalScales(),
        NormalScales(dist.Gamma(2.0, 3.0)),
        StudentScales(5.0, dist.HalfCauchy(0.5)),
    ):
        settings = json.loads(json.dumps(prior.settings()))
        again = SCALE_PRIORS[settings["kind"]].from_settings(settings)
        again.load_state_dict(prior.state_dict())
        assert type(again) is type(prior)
        assert again.settings() == prior.settings()
    hierarchy = NormalScales(lambda shape: dist.HalfNormal(pyro.sample("wide", dist.HalfNormal(1.0))))
    assert hierarchy.settings() is None
    assert StudentScales(3.0, lambda shape: dist.HalfNormal(1.0)).settings() is None


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: NormalScales(dist.Normal(0.0, 1.0)), "spread"),
        (lambda: NormalScales(dist.HalfNormal(torch.ones(3))), "spread"),
        (lambda: StudentScales(1.0), "df"),
        (lambda: StudentScales(math.nan), "df"),
        (lambda: FlatScales().law("u", 1, None), "at least 2"),
    ],
)
def test_bad_options_are_refused(build: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        build()
