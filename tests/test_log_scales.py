"""The log scales' target, mode and Laplace approximation against automatic differentiation, and their invariances."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from tree_matrices import normal, problem

from embergraph.guides.parts.log_scale_target import ScaleTarget
from embergraph.guides.parts.log_scales import LogScales, laplace, mode
from embergraph.guides.parts.zero_pattern import check_scalable
from embergraph.models.parts.errors import DataError

Pair = tuple[Tensor, Tensor]


def holes(Y: Tensor, density: float, seed: int) -> tuple[Tensor, Pair]:
    """Y with zeros, and its numbers of non-zeros."""
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(Y.shape, generator=generator, dtype=torch.float64) < density
    keep |= torch.eye(*Y.shape, dtype=torch.bool)
    keep[0], keep[:, 0] = True, True
    return Y * keep, (keep.sum(1).double(), keep.sum(0).double())


def penalty(n: int, p: int, seed: int) -> Pair:
    """Priors of independent scales, different for each, on the deviations from their mean."""
    generator = torch.Generator().manual_seed(seed)
    centres = [torch.eye(k, dtype=torch.float64) - 1 / k for k in (n, p)]
    first, second = (C @ (5 * torch.rand(len(C), generator=generator).double()).diag() @ C for C in centres)
    return first, second


def scaled(Y: Tensor, theta: Tensor) -> Tensor:
    n = Y.shape[0]
    return theta[:n].exp()[:, None] * Y * theta[n:].exp()


def negative_log_posterior(Y: Tensor, row: Tensor, col: Tensor, counts: Pair, P: Pair | None, theta: Tensor) -> Tensor:
    """The target as its definition has it."""
    a, b = theta[: len(row)], theta[len(row) :]
    Z = scaled(Y, theta)
    value = 0.5 * (torch.trace(Z.mT @ row @ Z) + torch.trace(Z @ col @ Z.mT)) - counts[0] @ a - counts[1] @ b
    return value if P is None else value + 0.5 * (a @ P[0] @ a + b @ P[1] @ b)


@pytest.mark.parametrize("with_penalty", [False, True])
@pytest.mark.parametrize("structural", [False, True])
def test_value_gradient_and_hessian(structural: bool, with_penalty: bool) -> None:
    n, p = 5, 7
    Y, row, col = problem(n, p, 1)
    Y, counts = holes(Y, 0.7, 1)
    P = penalty(n, p, 1) if with_penalty else None
    if not structural:
        counts = torch.full((n,), float(p)).double(), torch.full((p,), float(n)).double()
    target = ScaleTarget.of(Y, row, col, counts if structural else None, P)
    theta = 0.3 * torch.randn(n + p, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        return negative_log_posterior(Y, row, col, counts, P, x)

    at = target.expect(theta)
    H = target.hessian(at)
    dense = torch.cat([torch.cat([H.row, H.cross], 1), torch.cat([H.cross.mT, H.col], 1)])
    assert at.value == pytest.approx(float(f(theta)), rel=1e-12)
    torch.testing.assert_close(at.gradient, torch.autograd.functional.jacobian(f, theta), rtol=0, atol=1e-10)
    torch.testing.assert_close(dense, torch.autograd.functional.hessian(f, theta), rtol=0, atol=1e-10)


def test_sinkhorn_at_the_identity() -> None:
    Y, _, _ = problem(9, 14, 3)
    for c in (0.5, 40.0):
        a, b = mode(Y, c * torch.eye(9).double(), c * torch.eye(14).double())
        squares = 2 * c * scaled(Y, torch.cat([a, b])).square()
        torch.testing.assert_close(squares.sum(1), torch.full((9,), 14.0).double(), rtol=1e-9, atol=0)
        torch.testing.assert_close(squares.sum(0), torch.full((14,), 9.0).double(), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("n", "p"), [(6, 8), (30, 40), (3, 60)])
def test_stationarity_and_the_matrix_scaling_equation(n: int, p: int) -> None:
    Y, row, col = problem(n, p, 4)
    a, b = mode(Y, row, col)
    Z = scaled(Y, torch.cat([a, b]))
    G = Z * (row @ Z + Z @ col)
    torch.testing.assert_close(G.sum(1), torch.full((n,), float(p)).double(), rtol=1e-9, atol=0)
    torch.testing.assert_close(G.sum(0), torch.full((p,), float(n)).double(), rtol=1e-9, atol=0)
    assert float(G.sum()) == pytest.approx(n * p, rel=1e-12)
    assert float(a.sum()) == pytest.approx(float(b.sum()), abs=1e-9)
    M, s = Y * b.exp(), a.exp()
    Q = row * (M @ M.mT) + (M @ col @ M.mT).diagonal().diag()
    torch.testing.assert_close(s * (Q @ s), torch.full((n,), float(p)).double(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_one_mode_from_any_start(seed: int) -> None:
    Y, row, col = problem(12, 15, seed)
    cold = torch.cat(mode(Y, row, col))
    generator = torch.Generator().manual_seed(seed)
    for size in (0.1, 5.0):
        start = cold + size * torch.randn(27, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(
            torch.cat(mode(Y, row, col, start=(start[:12], start[12:]))), cold, rtol=0, atol=1e-9
        )


def fit(Y: Tensor, row: Tensor, col: Tensor) -> tuple[Tensor, Tensor, LogScales]:
    """Z at the mode and at the corrected mean."""
    a, b = mode(Y, row, col)
    scales = laplace(Y, row, col, a, b)
    return scaled(Y, torch.cat([a, b])), scaled(Y, scales.mean), scales


@pytest.mark.parametrize("size", [1.0, 100.0])
def test_invariance_under_row_and_column_factors(size: float) -> None:
    n, p = 14, 11
    Y, row, col = problem(n, p, 5)
    generator = torch.Generator().manual_seed(5)
    u, v = (size * torch.randn(k, generator=generator, dtype=torch.float64) for k in (n, p))
    first, second = fit(Y, row, col), fit(u.exp()[:, None] * Y * v.exp(), row, col)
    torch.testing.assert_close(second[0], first[0], rtol=1e-8, atol=0)
    torch.testing.assert_close(second[1], first[1], rtol=1e-8, atol=0)
    torch.testing.assert_close(second[2].covariance, first[2].covariance, rtol=0, atol=1e-10)
    gained = second[2].log_row_scale - first[2].log_row_scale
    torch.testing.assert_close(gained, u - u.mean(), rtol=0, atol=1e-8)
    torch.testing.assert_close(second[2].log_col_scale - first[2].log_col_scale, v - v.mean(), rtol=0, atol=1e-8)
    change = float(second[2].log_precision - first[2].log_precision)
    assert change == pytest.approx(-2 * float(u.mean() + v.mean()), abs=1e-8)


def test_signs_permutation_and_transposition() -> None:
    n, p = 10, 13
    Y, row, col = problem(n, p, 6)
    generator = torch.Generator().manual_seed(6)
    e = torch.randint(0, 2, (n,), generator=generator).double() * 2 - 1
    order = torch.randperm(p, generator=generator)
    _, Z, scales = fit(Y, row, col)
    moved = fit(e[:, None] * Y[:, order], e[:, None] * row * e, col[order][:, order])
    torch.testing.assert_close(moved[1], e[:, None] * Z[:, order], rtol=0, atol=1e-11)
    unchanged_row = fit(e[:, None] * Y, row, col)  # the precision has to be flipped as well
    assert float((unchanged_row[1].abs() - Z.abs()).abs().max()) > 0.01
    swapped = fit(Y.mT, col, row)[2]
    torch.testing.assert_close(swapped.mean_row, scales.mean_col, rtol=0, atol=1e-11)
    torch.testing.assert_close(swapped.covariance[:p, :p], scales.covariance[n:, n:], rtol=0, atol=1e-12)


def test_entries_of_any_size() -> None:
    Y, row, col = problem(8, 9, 7)
    factors = torch.logspace(-150, 150, 8, dtype=torch.float64)
    Z = fit(Y, row, col)[1]
    torch.testing.assert_close(fit(factors[:, None] * Y, row, col)[1], Z, rtol=1e-8, atol=0)
    Y[2, 3], Y[4, 4] = 1e8, 1e-150
    a, b = mode(Y, row, col)
    Z = scaled(Y, torch.cat([a, b]))
    G = Z * (row @ Z + Z @ col)
    torch.testing.assert_close(G.sum(1), torch.full((8,), 9.0).double(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("density", [0.4, 0.8])
def test_structural_zeros_count_non_zeros(density: float) -> None:
    Y, row, col = problem(15, 20, 8)
    Y, counts = holes(Y, density, 8)
    a, b = mode(Y, row, col, counts=counts)
    Z = scaled(Y, torch.cat([a, b]))
    G = Z * (row @ Z + Z @ col)
    torch.testing.assert_close(G.sum(1), counts[0], rtol=1e-9, atol=0)
    torch.testing.assert_close(G.sum(0), counts[1], rtol=1e-9, atol=0)
    as_data = scaled(Y, torch.cat(mode(Y, row, col)))
    assert float((as_data / as_data.norm() - Z / Z.norm()).norm()) > 0.05


@pytest.mark.parametrize(
    ("pattern", "structural", "proper"),
    [
        ([[1, 1, 1], [1, 1, 0]], False, True),
        ([[1, 1], [0, 1]], False, False),  # only the limit has the right sums
        ([[1, 1, 1], [0, 0, 1]], False, False),  # no limit has
        ([[1, 1], [0, 1]], True, True),
        ([[1, 1, 0], [1, 1, 0], [0, 0, 1]], True, False),  # two components
        ([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 1]], False, False),
        ([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 0, 1, 1]], False, True),
    ],
)
def test_which_zeros_leave_the_scales_determined(pattern: list[list[int]], structural: bool, proper: bool) -> None:
    Y = torch.tensor(pattern, dtype=torch.float64)
    n, p = Y.shape
    counts = Y.sum(1), Y.sum(0)
    identity = torch.eye(n).double(), torch.eye(p).double()
    chosen = counts if structural else None
    if not proper:
        with pytest.raises(DataError, match="without common scale"):
            mode(Y, *identity, counts=chosen)
        mode(Y, *identity, counts=chosen, penalty=penalty(n, p, 0))  # a prior on the scales helps
        return
    check_scalable(Y, counts if structural else (torch.full((n,), float(p)), torch.full((p,), float(n))))
    assert max(float(x.abs().max()) for x in mode(Y, *identity, counts=chosen)) < 10


def test_penalty_pulls_the_scales_together() -> None:
    n, p = 9, 12
    Y, row, col = problem(n, p, 9)
    P = penalty(n, p, 9)
    theta = torch.cat(mode(Y, row, col, penalty=P)).requires_grad_()
    counts = torch.full((n,), float(p)).double(), torch.full((p,), float(n)).double()
    (gradient,) = torch.autograd.grad(negative_log_posterior(Y, row, col, counts, P, theta), theta)
    assert float(gradient.abs().max()) < 1e-7
    strong = mode(Y, row, col, penalty=(1e7 * P[0], 1e7 * P[1]))
    assert max(float(x.std()) for x in strong) < 1e-3 < min(float(x.std()) for x in mode(Y, row, col))


@pytest.mark.parametrize("with_penalty", [False, True])
def test_laplace_is_the_inverse_hessian_with_the_third_order_shift(with_penalty: bool) -> None:
    n, p = 5, 7
    Y, row, col = problem(n, p, 10)
    P = penalty(n, p, 10) if with_penalty else None
    counts = torch.full((n,), float(p)).double(), torch.full((p,), float(n)).double()
    a, b = mode(Y, row, col, penalty=P)
    theta = torch.cat([a, b])

    def hessian(x: Tensor) -> Tensor:
        f = lambda y: negative_log_posterior(Y, row, col, counts, P, y)  # noqa: E731
        return torch.autograd.functional.hessian(f, x, create_graph=True)

    sigma = torch.linalg.pinv(hessian(theta), hermitian=True, rtol=1e-10).detach()
    plain = laplace(Y, row, col, a, b, penalty=P, mean_shift=False)
    torch.testing.assert_close(plain.covariance, sigma, rtol=0, atol=1e-10)
    shift = -0.5 * sigma @ torch.autograd.functional.jacobian(lambda x: (hessian(x) * sigma).sum(), theta)
    shifted = laplace(Y, row, col, a, b, penalty=P)
    expected = (theta + shift).detach()
    difference = shifted.mean - expected  # only the overall scale is fitted on top
    assert float((difference[:n] - difference[0]).abs().max()) < 1e-10
    assert float((difference[n:] - difference[n]).abs().max()) < 1e-10
    assert abs(shifted.ratio - 1) < 0.05 < abs(plain.ratio - 1)


@pytest.mark.parametrize("independent", [False, True])
def test_covariance_of_the_reported_scales(independent: bool) -> None:
    n, p = 4, 6
    Y, row, col = problem(n, p, 11)
    scales = laplace(Y, row, col, *mode(Y, row, col))
    if independent:
        scales = LogScales(
            scales.mean_row, scales.mean_col, None, scales.variance_row, 2 * scales.variance_col, scales.ratio
        )
    sigma = scales.spread.diag() if independent else scales.covariance
    T = torch.zeros(n + p + 1, n + p, dtype=torch.float64)
    T[:n, :n], T[n:-1, n:] = 1 / n - torch.eye(n).double(), 1 / p - torch.eye(p).double()
    T[-1, :n], T[-1, n:] = 2 / n, 2 / p
    torch.testing.assert_close(scales.scale_covariance(), T @ sigma @ T.mT, rtol=0, atol=1e-12)
    sd = (T @ sigma @ T.mT).diagonal().sqrt()
    torch.testing.assert_close(torch.cat([x.reshape(-1) for x in scales.standard_deviations()]), sd, rtol=1e-9, atol=0)
    values = torch.cat([scales.log_row_scale, scales.log_col_scale, scales.log_precision[None]])
    torch.testing.assert_close(values, T @ scales.mean, rtol=0, atol=1e-12)


def test_known_scales_are_recovered_and_covered() -> None:
    inside = []
    for seed in range(12):
        n, p = 40, 60
        X, row, col = problem(n, p, seed)
        log_u, log_v = normal(n, seed=100 + seed), normal(p, seed=200 + seed)
        Y = log_u.exp()[:, None] * X * log_v.exp()
        scales = laplace(Y, row, col, *mode(Y, row, col))
        sd_row, sd_col, _ = scales.standard_deviations()
        error_row = scales.log_row_scale - (log_u - log_u.mean())
        error_col = scales.log_col_scale - (log_v - log_v.mean())
        assert float(torch.corrcoef(torch.stack([scales.log_row_scale, log_u]))[0, 1]) > 0.99
        inside.append(torch.cat([error_row.abs() / sd_row, error_col.abs() / sd_col]) < 1.645)
    assert 0.87 < float(torch.cat(inside).double().mean()) < 0.93


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda Y: Y.fill_(float("nan")), "NaN"),
        (lambda Y: Y[2].zero_(), "1 rows of zeros"),
        (lambda Y: Y[:, :2].zero_(), "2 columns of zeros"),
    ],
)
def test_bad_matrices(change, match: str) -> None:
    Y, row, col = problem(6, 7, 12)
    change(Y)
    with pytest.raises(DataError, match=match):
        mode(Y, row, col)


def test_bad_pieces() -> None:
    Y, row, col = problem(6, 7, 12)
    with pytest.raises(DataError, match="Psi_row: found shape"):
        mode(Y, col, row)
    with pytest.raises(DataError, match="counts: found sums"):
        mode(Y, row, col, counts=(torch.ones(6), torch.ones(7)))
    with pytest.raises(DataError, match="P_row acts on constants"):
        mode(Y, row, col, penalty=(torch.eye(6).double(), torch.eye(7).double()))
