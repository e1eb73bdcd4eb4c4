"""Log-normal moments, the bound and its maximisers, against brute force, importance sampling and each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from tree_matrices import normal, problem

from embergraph.guides.parts.log_normal import gauge
from embergraph.guides.parts.log_scale_moments import elbo, mean_field, moments, variational
from embergraph.guides.parts.log_scale_target import ScaleTarget
from embergraph.guides.parts.log_scales import LogScales, laplace, mode
from embergraph.guides.parts.published import published_corrections
from embergraph.guides.parts.spectral import Spectrum, spectral_precision

Pair = tuple[Tensor, Tensor]


def gaussian(n: int, p: int, seed: int, independent: bool) -> LogScales:
    """Any Gaussian on the log scales, in the gauge if it has a covariance."""
    A = 0.2 * normal(n + p, n + p, seed=seed)
    d = gauge(n, p, like=A)
    A = A - d[:, None] * (d @ A)
    sigma = A @ A.mT
    variance = sigma.diagonal()
    mean = 0.2 * normal(n + p, seed=seed + 1)
    return LogScales(mean[:n], mean[n:], None if independent else sigma, variance[:n], variance[n:], 1.0)


def fitted(Y: Tensor, row: Tensor, col: Tensor, mean_shift: bool = True) -> LogScales:
    return laplace(Y, row, col, *mode(Y, row, col), mean_shift=mean_shift)


def expected_quadratic(S: Pair, row: Tensor, col: Tensor) -> float:
    return float((row * S[0]).sum() + (col * S[1]).sum())


def error(S: Tensor, truth: Tensor) -> float:
    return float((S - truth).norm() / truth.norm())


def importance(Y: Tensor, row: Tensor, col: Tensor, num: int = 100_000) -> tuple[Tensor, Tensor, float]:
    """E[Z Z^T], E[Z^T Z] and the log evidence under flat priors, from a Student t around the Laplace fit."""
    n, p = Y.shape
    k, df = n + p - 1, 8
    scales = fitted(Y, row, col)
    values, vectors = torch.linalg.eigh(1.2 * scales.covariance)
    half = vectors[:, 1:] * values[1:].sqrt()  # without the gauge
    z, chi = normal(num, k, seed=1), normal(num, df, seed=2).square().sum(1) / df
    log_q = math.lgamma((df + k) / 2) - math.lgamma(df / 2) - k / 2 * math.log(df * math.pi)
    log_q = log_q - values[1:].log().sum() / 2 - (df + k) / 2 * torch.log1p(z.square().sum(1) / chi / df)
    theta = scales.mean + (z / chi.sqrt()[:, None]) @ half.mT
    Z = theta[:, :n, None].exp() * Y * theta[:, None, n:].exp()
    q = (Z * (row @ Z + Z @ col)).sum((1, 2))
    log_w = p * theta[:, :n].sum(1) + n * theta[:, n:].sum(1) - q / 2 - log_q
    w = (log_w - log_w.max()).exp()
    log_evidence = float(log_w.max() + w.mean().log())
    lam, mu = torch.linalg.eigvalsh(row), torch.linalg.eigvalsh(col)
    log_evidence += 0.5 * float((lam[:, None] + mu).log().sum()) - 0.5 * n * p * math.log(2 * math.pi)
    w = w / w.sum()
    assert 1 / float(w.square().sum()) > 0.2 * num
    weighted = w.sqrt()[:, None, None] * Z
    return (
        torch.einsum("sij,skj->ik", weighted, weighted),
        torch.einsum("sij,sil->jl", weighted, weighted),
        log_evidence,
    )


@pytest.mark.parametrize("independent", [False, True])
def test_moments_are_those_of_the_log_normal(independent: bool) -> None:
    n, p = 4, 5
    Y, scales = normal(n, p, seed=3), gaussian(n, p, 3, independent)
    sigma = scales.spread.diag() if independent else scales.covariance
    S_row, S_col = torch.zeros(n, n, dtype=torch.float64), torch.zeros(p, p, dtype=torch.float64)

    def product(i: int, j: int, k: int, m: int) -> Tensor:
        c = torch.zeros(n + p, dtype=torch.float64)
        for index in (i, k, n + j, n + m):
            c[index] += 1
        return Y[i, j] * Y[k, m] * (c @ scales.mean + 0.5 * c @ sigma @ c).exp()

    for i in range(n):
        for k in range(n):
            S_row[i, k] = sum(product(i, j, k, j) for j in range(p))
    for j in range(p):
        for m in range(p):
            S_col[j, m] = sum(product(i, j, i, m) for i in range(n))
    found = moments(Y, scales)
    torch.testing.assert_close(found[0], S_row, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[1], S_col, rtol=1e-12, atol=1e-12)


def test_moments_against_monte_carlo() -> None:
    n, p = 6, 8
    Y, row, col = problem(n, p, 4)
    scales = fitted(Y, row, col)
    values, vectors = torch.linalg.eigh(scales.covariance)
    half = vectors * values.clamp_min(0).sqrt()
    total, count = torch.zeros(n, n, dtype=torch.float64), 200_000
    theta = scales.mean + normal(count, n + p, seed=5) @ half.mT
    Z = theta[:, :n, None].exp() * Y * theta[:, None, n:].exp()
    samples = torch.einsum("sij,skj->sik", Z, Z)
    total, spread = samples.mean(0), samples.std(0) / math.sqrt(count)
    assert float(((moments(Y, scales)[0] - total).abs() / spread).max()) < 4
    independent = LogScales(scales.mean_row, scales.mean_col, None, scales.variance_row, scales.variance_col, 1.0)
    assert float(((moments(Y, independent)[0] - total).abs() / spread).max()) > 20


@pytest.mark.parametrize(("n", "p"), [(6, 8), (20, 25), (30, 5)])
def test_moments_are_semi_definite_with_the_right_trace(n: int, p: int) -> None:
    Y, row, col = problem(n, p, 5)
    a, b = mode(Y, row, col)
    for scales in (fitted(Y, row, col, False), fitted(Y, row, col), mean_field(Y, row, col, a, b)):
        S = moments(Y, scales)
        assert expected_quadratic(S, row, col) == pytest.approx(n * p, rel=1e-10)
        assert float(S[0].trace()) == pytest.approx(float(S[1].trace()), rel=1e-12)
        assert all(float(torch.linalg.eigvalsh(s)[0]) > -1e-10 * float(s.trace()) for s in S)


@pytest.mark.parametrize("seed", range(3))
def test_table_of_expectations_at_6_by_8(seed: int) -> None:
    """The published expectation is off by its whole size; each cure helps; the last is within a per cent."""
    n, p = 6, 8
    Y, row, col = problem(n, p, seed)
    truth, truth_col, _ = importance(Y, row, col)
    a, b = mode(Y, row, col)
    Z = a.exp()[:, None] * Y * b.exp()
    C = [torch.as_tensor(c) for c in published_corrections(row.numpy(), col.numpy())]
    unit = (a.exp() / a.exp().norm())[:, None] * Y * (b.exp() / b.exp().norm())

    def rescaled_error(matrix: Tensor, sign: float) -> float:
        S = matrix @ matrix.mT + sign * C[0] / 2, matrix.mT @ matrix + sign * C[1] / 2
        return error(S[0] * (n * p / expected_quadratic(S, row, col)), truth)

    errors = {
        "published": rescaled_error(unit, -1),
        "minus": rescaled_error(Z, -1),
        "plus": rescaled_error(Z, 1),
        "mode": rescaled_error(Z, 0),
        "laplace": error(moments(Y, fitted(Y, row, col, False))[0], truth),
        "shifted": error(moments(Y, fitted(Y, row, col))[0], truth),
    }
    assert list(errors) == sorted(errors, key=lambda name: -errors[name])
    assert errors["published"] > 0.8
    assert 0.2 < errors["minus"] < 0.9
    assert 0.02 < errors["mode"] < 0.2
    assert errors["shifted"] < 0.01
    assert error(moments(Y, fitted(Y, row, col))[1], truth_col) < 0.01
    best = variational(Y, row, col, fitted(Y, row, col))
    assert error(moments(Y, best)[0], truth) < 0.01


def test_bound_is_a_tight_lower_bound_of_the_evidence() -> None:
    Y, row, col = problem(6, 8, 6)
    evidence = importance(Y, row, col)[2]
    start = fitted(Y, row, col)
    bounds = [
        elbo(Y, row, col, mean_field(Y, row, col, start.mean_row, start.mean_col)),
        elbo(Y, row, col, fitted(Y, row, col, False)),
        elbo(Y, row, col, start),
        elbo(Y, row, col, variational(Y, row, col, start)),
    ]
    assert bounds == sorted(bounds)
    assert evidence - 0.6 < bounds[-1] < evidence  # 13 skewed directions at about .03 each
    assert evidence - 2 < bounds[0]


@pytest.mark.parametrize("with_penalty", [False, True])
@pytest.mark.parametrize("independent", [False, True])
def test_bound_from_its_parts(independent: bool, with_penalty: bool) -> None:
    n, p = 5, 7
    Y, row, col = problem(n, p, 7)
    scales = gaussian(n, p, 7, independent)
    C_n, C_p = torch.eye(n).double() - 1 / n, torch.eye(p).double() - 1 / p
    P = (3 * C_n, 2 * C_p) if with_penalty else None
    sigma = scales.spread.diag() if independent else scales.covariance
    S = moments(Y, scales)
    value = -0.5 * expected_quadratic(S, row, col) + p * scales.mean_row.sum() + n * scales.mean_col.sum()
    if P is not None:
        for own, mean, block in ((P[0], scales.mean_row, sigma[:n, :n]), (P[1], scales.mean_col, sigma[n:, n:])):
            value -= 0.5 * (mean @ own @ mean + (own * block).sum())
    lam, mu = torch.linalg.eigvalsh(row), torch.linalg.eigvalsh(col)
    value += 0.5 * (lam[:, None] + mu).log().sum() - 0.5 * n * p * math.log(2 * math.pi)
    basis = torch.linalg.qr(torch.cat([gauge(n, p, like=Y)[:, None], normal(n + p, n + p - 1, seed=8)], 1))[0][:, 1:]
    entropy = 0.5 * torch.logdet(2 * math.pi * math.e * basis.mT @ sigma @ basis)
    assert elbo(Y, row, col, scales, penalty=P) == pytest.approx(float(value + entropy), rel=1e-10)
    log_det = float((lam[:, None] + mu).log().sum())
    assert elbo(Y, row, col, scales, penalty=P, log_det=log_det) == pytest.approx(float(value + entropy), rel=1e-10)


@pytest.mark.parametrize("options", ["plain", "penalty", "counts"])
@pytest.mark.parametrize("independent", [False, True])
def test_variational_fits_are_stationary(independent: bool, options: str) -> None:
    n, p = 8, 10
    Y, row, col = problem(n, p, 8)
    C_n, C_p = torch.eye(n).double() - 1 / n, torch.eye(p).double() - 1 / p
    settings = {"penalty": (3 * C_n, 2 * C_p)} if options == "penalty" else {}
    if options == "counts":
        Y = Y * (Y.abs() > 0.15)
        Y[1:, 0] = 0  # a single entry: without coupled steps mean and variance of its scale part
        settings = {"counts": ((Y != 0).sum(1).double(), (Y != 0).sum(0).double())}
    a, b = mode(Y, row, col, **settings)
    if independent:
        best = mean_field(Y, row, col, a, b, **settings)
    else:
        best = variational(Y, row, col, laplace(Y, row, col, a, b, **settings), **settings)
    top = elbo(Y, row, col, best, **settings)
    for seed in range(10):
        for size in (1e-2, 1e-4):
            change = size * normal(n + p, n + p, seed=seed)
            half = torch.linalg.cholesky(best.spread + 1e-14 * torch.eye(n + p)) if not independent else None
            spread = best.spread * change[0].exp() if independent else half @ torch.linalg.matrix_exp(change) @ half.mT
            spread = spread if independent else 0.5 * (spread + spread.mT)
            mean = best.mean + 0.3 * change[1]
            covariance = None if independent else spread
            moved = LogScales(mean[:n], mean[n:], covariance, spread[:n], spread[n:], 1.0)
            assert elbo(Y, row, col, moved, **settings) < top
    target = ScaleTarget.of(Y, row, col, settings.get("counts"), settings.get("penalty"))
    at = target.expect(best.mean, best.spread)
    assert float(at.gradient.abs().max()) < 1e-6
    assert best.ratio == pytest.approx(1, abs=1e-7)


def test_mean_field_of_a_large_matrix_is_close_to_the_full_fit() -> None:
    Y, row, col = problem(60, 80, 9)
    full = fitted(Y, row, col)
    independent = mean_field(Y, row, col, *mode(Y, row, col))
    S, S_independent = moments(Y, full), moments(Y, independent)
    assert error(S_independent[0], S[0]) < 0.003
    assert error(S_independent[1], S[1]) < 0.003
    ratio = torch.cat(independent.standard_deviations()[:2]) / torch.cat(full.standard_deviations()[:2])
    assert float(ratio.min()) > 0.6
    assert float(ratio.max()) < 1  # independence understates the spread
    assert independent.covariance is None


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize(("n", "p", "rho"), [(10, 12, 0.6), (25, 20, 0.9)])
def test_em_with_a_variational_expectation_is_monotone(n: int, p: int, rho: float, independent: bool) -> None:
    """Shrinkage towards a fixed multiple of the identity is a prior, so that every step must raise bound plus prior."""
    Y, _, _ = problem(n, p, 10)
    identity = torch.eye(n).double(), torch.eye(p).double()

    def objective(found: Spectrum, scales: LogScales) -> float:
        prior = found.log_det - p * found.row_precision.trace() - n * found.col_precision.trace()
        return 2 * (1 - rho) * elbo(Y, found.row_precision, found.col_precision, scales) + rho * float(prior)

    found = spectral_precision(p * identity[0], n * identity[1])
    scales = mean_field(Y, found.row_precision, found.col_precision, *mode(Y, *identity))
    if not independent:
        scales = variational(Y, found.row_precision, found.col_precision, scales)
    trace = [objective(found, scales)]
    for _ in range(12):
        S = moments(Y, scales)
        mixed = [(1 - rho) * s + rho * k * e for s, k, e in zip(S, (p, n), identity, strict=True)]
        found = spectral_precision(mixed[0], mixed[1], start=found)
        trace.append(objective(found, scales))
        if independent:
            scales = mean_field(Y, found.row_precision, found.col_precision, scales.mean_row, scales.mean_col)
        else:
            scales = variational(Y, found.row_precision, found.col_precision, scales)
        trace.append(objective(found, scales))
    steps = np.diff(trace)
    assert steps.min() > -1e-8 * abs(trace[0])
    assert trace[-1] - trace[0] > 0.1
