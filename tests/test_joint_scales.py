"""The Gaussian of the log scales as Pyro sites: its density, its moments, its storage."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import MultivariateNormal

from embergraph.guides.parts.joint_scales import JointScales
from embergraph.guides.parts.log_normal import gauge, to_gauge
from embergraph.guides.parts.log_scale_family import LogScales
from embergraph.models.parts.zero_sum import ZeroSumTransform

DOUBLE = {"dtype": torch.double}
N, P = 4, 6


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def fitted(covariance: str, seed: int = 0, n: int = N, p: int = P) -> LogScales:
    """A Gaussian without spread along the gauge (full), or with independent coordinates."""
    random = torch.Generator().manual_seed(seed)
    mean = to_gauge(torch.randn(n + p, generator=random, **DOUBLE), n)
    if covariance == "mean_field":
        variance = torch.rand(n + p, generator=random, **DOUBLE) + 0.05
        return LogScales(mean[:n], mean[n:], None, variance[:n], variance[n:], 1.0)
    root = 0.5 * torch.randn(n + p, n + p, generator=random, **DOUBLE)
    direction = gauge(n, p, like=mean)
    root = root - torch.outer(direction, direction @ root)
    sigma = root @ root.mT
    return LogScales(mean[:n], mean[n:], sigma, sigma.diagonal()[:n], sigma.diagonal()[n:], 1.0)


def stored(covariance: Any, num_sets: int | None = None) -> JointScales:
    scales = JointScales(N, P, num_sets, covariance).double()
    scales.store([fitted(covariance, seed) for seed in range(num_sets or 1)])
    return scales


def linear_map(n: int = N, p: int = P) -> Tensor:
    """From (a, b) to isometric coordinates of log u and log v and to log omega."""
    rows = []
    for k in range(n + p):
        unit = torch.zeros(n + p, **DOUBLE)
        unit[k] = 1.0
        a, b = unit[:n], unit[n:]
        log_u, log_v = -(a - a.mean()), -(b - b.mean())
        rows.append(torch.cat([free(log_u), free(log_v), 2 * (a.mean() + b.mean())[None]]))
    return torch.stack(rows, 1)


def free(zero_sum: Tensor) -> Tensor:
    return ZeroSumTransform().inv(zero_sum)


def drawn(scales: JointScales, num_draws: int) -> dict[str, Any]:
    with poutine.trace() as recorder, pyro.plate("draws", num_draws, dim=-1 if scales.num_sets is None else -2):
        if scales.num_sets is None:
            scales()
        else:
            with pyro.plate("replicate", scales.num_sets, dim=-1):
                scales()
    recorder.trace.compute_log_prob()
    return dict(recorder.trace.nodes)


@pytest.mark.parametrize("covariance", ["full", "mean_field"])
@pytest.mark.parametrize("widened", [False, True])
def test_density_is_that_of_the_gaussian_in_free_coordinates(covariance: Any, widened: bool) -> None:
    """The three sites are n + p - 1 free numbers; theirs is an ordinary Gaussian density."""
    scales, about = stored(covariance), fitted(covariance)
    spread = about.spread if about.covariance is not None else about.spread.diag()
    if widened:
        scales.widen(1.5, 2.5)
        root = torch.cat([torch.full((N,), 1.5, **DOUBLE), torch.full((P,), 2.5, **DOUBLE)]).sqrt()
        spread = root[:, None] * spread * root
    T = linear_map()
    law = MultivariateNormal(T @ about.mean, T @ spread @ T.mT)
    nodes = drawn(scales, 7)
    got = sum(nodes[name]["log_prob"] for name in ("scales_unit", "log_omega", "log_u", "log_v"))
    values = [free(nodes["log_u"]["value"]), free(nodes["log_v"]["value"]), nodes["log_omega"]["value"][:, None]]
    torch.testing.assert_close(got, law.log_prob(torch.cat(values, -1)))
    wrong = MultivariateNormal(T @ about.mean, 1.1 * T @ spread @ T.mT)
    assert not torch.allclose(got, wrong.log_prob(torch.cat(values, -1)), rtol=1e-3)


@pytest.mark.parametrize("covariance", ["full", "mean_field"])
def test_density_integrates_to_one(covariance: Any) -> None:
    """Two rows and two columns have three free numbers: a grid will do."""
    scales = JointScales(2, 2, None, covariance).double()
    scales.store([fitted(covariance, 3, 2, 2)])
    nodes = drawn(scales, 200_000)
    log_q = sum(nodes[name]["log_prob"] for name in ("scales_unit", "log_omega", "log_u", "log_v"))
    theta = torch.cat(
        [free(nodes["log_u"]["value"]), free(nodes["log_v"]["value"]), nodes["log_omega"]["value"][:, None]], -1
    )
    # E_q[g / q] = 1 for any normalised g inside of the support
    other = MultivariateNormal(theta.mean(0), 0.5 * torch.cov(theta.T))
    assert float((other.log_prob(theta) - log_q).exp().mean()) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("covariance", ["full", "mean_field"])
def test_moments_of_the_draws(covariance: Any) -> None:
    scales, about = stored(covariance), fitted(covariance)
    nodes = drawn(scales, 100_000)
    log_u, log_v, log_omega = (nodes[name]["value"] for name in ("log_u", "log_v", "log_omega"))
    torch.testing.assert_close(log_u.mean(0), about.log_row_scale, atol=0.02, rtol=0.0)
    torch.testing.assert_close(log_v.mean(0), about.log_col_scale, atol=0.02, rtol=0.0)
    torch.testing.assert_close(log_omega.mean(), about.log_precision, atol=0.02, rtol=0.0)
    for value in (log_u, log_v):
        assert float(value.sum(-1).abs().max()) < 1e-12
    of_rows, of_cols = scales.site_variances()
    torch.testing.assert_close(of_rows.sqrt(), log_u.std(0), rtol=0.02, atol=0.0)
    torch.testing.assert_close(of_cols.sqrt(), log_v.std(0), rtol=0.02, atol=0.0)
    sd_rows, sd_cols, _ = about.standard_deviations()
    torch.testing.assert_close(of_rows.sqrt(), sd_rows)
    torch.testing.assert_close(of_cols.sqrt(), sd_cols)


def test_full_draws_have_the_joint_covariance() -> None:
    scales, about = stored("full"), fitted("full")
    nodes = drawn(scales, 100_000)
    theta = torch.cat([nodes["log_u"]["value"], nodes["log_v"]["value"], nodes["log_omega"]["value"][:, None]], -1)
    wanted = about.scale_covariance()
    torch.testing.assert_close(torch.cov(theta.T), wanted, atol=0.03 * float(wanted.abs().max()), rtol=0.0)


@pytest.mark.parametrize("covariance", ["full", "mean_field"])
@pytest.mark.parametrize("num_sets", [None, 3])
def test_what_is_stored_comes_back(covariance: Any, num_sets: int | None) -> None:
    scales = JointScales(N, P, num_sets, covariance).double()
    assert scales.start(0) is None
    given = [fitted(covariance, seed) for seed in range(num_sets or 1)]
    scales.store(given)
    found = scales.as_log_scales()
    assert len(found) == len(given)
    for k, (got, wanted) in enumerate(zip(found, given, strict=True)):
        torch.testing.assert_close(got.mean, wanted.mean)
        torch.testing.assert_close(got.spread, wanted.spread)
        torch.testing.assert_close(torch.cat(scales.start(k) or ()), wanted.mean)
    again = JointScales(N, P, num_sets, covariance).double()
    again.load_state_dict(scales.state_dict())
    assert torch.equal(again.loc, scales.loc)
    assert torch.equal(again.factor, scales.factor)
    scales.move_to([fitted(covariance, seed + 10) for seed in range(num_sets or 1)])
    torch.testing.assert_close(scales.as_log_scales()[0].mean, fitted(covariance, 10).mean)
    torch.testing.assert_close(scales.as_log_scales()[0].spread, given[0].spread)


def test_a_full_covariance_leaves_out_the_gauge() -> None:
    wide = stored("full", 2)
    wide.widen(3.0, 1.0)
    for scales in (JointScales(N, P, 2, "full").double(), stored("full", 2), wide):
        direction = gauge(N, P, like=scales.loc)
        for about in scales.as_log_scales():
            torch.testing.assert_close(about.spread @ direction, 0 * direction, atol=1e-6, rtol=0.0)
            values = torch.linalg.eigvalsh(about.spread)
            assert float(values[1]) > 1e-3
            assert float(values[0]) > -1e-6


@pytest.mark.parametrize("covariance", ["full", "mean_field"])
def test_the_gauge_is_not_seen(covariance: Any) -> None:
    scales, shifted = stored(covariance), stored(covariance)
    shifted.loc += 2.7 * torch.cat([torch.ones(N), -torch.ones(P)]).to(shifted.loc)
    with torch.random.fork_rng():
        first = drawn(scales, 3)
    second = drawn(shifted, 3)
    for name in ("log_u", "log_v", "log_omega"):
        torch.testing.assert_close(first[name]["value"], second[name]["value"])


@pytest.mark.parametrize("covariance", ["full", "mean_field"])
def test_widening_multiplies_the_variances_of_rows_and_columns(covariance: Any) -> None:
    plain, wide = stored(covariance), stored(covariance)
    wide.widen(4.0, 9.0)
    before, after = plain.site_variances(), wide.site_variances()
    torch.testing.assert_close(after[0], 4 * before[0])
    torch.testing.assert_close(after[1], 9 * before[1])
    torch.testing.assert_close(wide.loc, plain.loc)
    wide.widen(1 / 4.0, 1 / 9.0)
    torch.testing.assert_close(wide.site_variances()[0], before[0])


@pytest.mark.parametrize("covariance", ["full", "mean_field"])
def test_sets_are_drawn_under_plates(covariance: Any) -> None:
    scales = stored(covariance, 3)
    nodes = drawn(scales, 5)
    assert nodes["log_u"]["value"].shape == (5, 3, N)
    assert nodes["log_v"]["value"].shape == (5, 3, P)
    assert nodes["log_omega"]["value"].shape == nodes["log_omega"]["log_prob"].shape == (5, 3)
    for k in range(3):
        alone = JointScales(N, P, None, covariance).double()
        alone.store([fitted(covariance, k)])
        unit = nodes["scales_unit"]["value"][:, k]
        with poutine.trace() as recorder, poutine.condition(data={"scales_unit": unit}), pyro.plate("draws", 5, dim=-1):
            alone()
        recorder.trace.compute_log_prob()
        for name in ("log_u", "log_v", "log_omega"):
            torch.testing.assert_close(recorder.trace.nodes[name]["value"], nodes[name]["value"][:, k])
            torch.testing.assert_close(recorder.trace.nodes[name]["log_prob"], nodes[name]["log_prob"][:, k])


@pytest.mark.parametrize("covariance", ["full", "mean_field"])
def test_narrow_spreads_are_kept(covariance: Any) -> None:
    """Learned spreads of the scales go to 1e-4 for data without noise."""
    scales, about = JointScales(N, P, None, covariance).double(), fitted(covariance)
    tiny = 1e-8 if covariance == "full" else 1e-30
    spread = None if about.covariance is None else tiny * about.covariance
    narrow = LogScales(
        about.mean_row, about.mean_col, spread, tiny * about.variance_row, tiny * about.variance_col, 1.0
    )
    scales.store([narrow])
    wanted = stored(covariance).site_variances()
    for found, plain in zip(scales.site_variances(), wanted, strict=True):
        torch.testing.assert_close(found / tiny, plain, rtol=1e-5, atol=0.0)


def test_double_precision_is_reached_from_a_single_precision_start() -> None:
    """Guides are built in float32 and moved to float64: nothing of the first may stay."""
    scales = JointScales(N, P, None, "full").double()
    nodes = drawn(scales, 2)
    for name in ("log_u", "log_v", "log_omega"):
        assert nodes[name]["value"].dtype == torch.double
        assert nodes[name]["log_prob"].dtype == torch.double
    assert float(nodes["log_u"]["value"].sum(-1).abs().max()) < 1e-14
