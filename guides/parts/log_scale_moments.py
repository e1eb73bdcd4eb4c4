"""What follows from a Gaussian on the log scales: moments of Z, the evidence bound, and the Gaussians that maximise it.

Under (a, b) ~ Normal(m, Sigma) every entry of Z = diag(e^a) Y diag(e^b) is log-normal, so that second moments, and with
them the bound, have closed forms; nothing is sampled.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...models.parts.errors import NumericalError
from .log_normal import Pair, axis_spreads, gauge, log_normal_pair, log_normal_weights, to_gauge
from .log_scale_family import LogScales, settled
from .log_scale_target import Blocks, Expected, ScaleTarget, gram

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["elbo", "mean_field", "moments", "variational"]


def moments(Y: Float[Tensor, "*shared n p"], scales: LogScales) -> tuple[Float[Tensor, "n n"], Float[Tensor, "p p"]]:
    """E[Z Z^T] and E[Z^T Z], exact under the Gaussian: positive semi-definite and of equal trace.

    Means over matrices where several share the scales.

    With the precision factors that `scales` was fitted to, tr(Psi_row S_row) + tr(Psi_col S_col) = N.

    Parameters
    ----------
    Y
        The matrix of `scales`.
    scales
        Gaussian on its log scales.
    """
    Z1, Z2 = log_normal_pair(Y.sign(), Y.abs().log(), scales.mean, scales.spread)
    row_spread, col_spread = axis_spreads(scales.spread, Y.shape[-2])
    matrices = Y.numel() / (Y.shape[-2] * Y.shape[-1])
    S_row = log_normal_weights(gram(Z1), row_spread) / matrices
    S_col = log_normal_weights(gram(Z2.mT), col_spread) / matrices
    trace = 0.5 * (S_row.diagonal().sum() + S_col.diagonal().sum())
    return S_row * (trace / S_row.diagonal().sum()), S_col * (trace / S_col.diagonal().sum())


def elbo(
    Y: Float[Tensor, "*shared n p"],
    Psi_row: Float[Tensor, "n n"],
    Psi_col: Float[Tensor, "p p"],
    scales: LogScales,
    *,
    counts: Pair | None = None,
    penalty: Pair | None = None,
    log_det: float | None = None,
) -> float:
    """Lower bound on the log likelihood of the precision factors with the log scales integrated out.

    ``log|Omega| / 2 - E[f] - E[penalty] + entropy``, the entropy over the n + p - 1 directions that change Z, constants
    of the Gaussians included. Flat priors have no constant, so values compare for one Y and one penalty only.

    Parameters
    ----------
    Y, Psi_row, Psi_col, counts, penalty
        As in `mode`.
    scales
        Any Gaussian on the log scales.
    log_det
        log|Omega| of one matrix where it is known; else it costs the eigenvalues of both factors.
    """
    target = ScaleTarget.of(Y, Psi_row, Psi_col, counts, penalty)
    n, p = target.shape
    if log_det is None:
        lam, mu = torch.linalg.eigvalsh(Psi_row), torch.linalg.eigvalsh(Psi_col)
        if not float(lam.min() + mu.min()) > 0:
            raise NumericalError(f"elbo: found lam + mu = {float(lam.min() + mu.min()):.3g}; wanted positive sums")
        log_det = float((lam[:, None] + mu).log().sum())
    m = target.num_matrices
    constant = 0.5 * (n + p - 1) * (1 + math.log(2 * math.pi)) - 0.5 * m * n * p * math.log(2 * math.pi)
    expected = target.expect(scales.mean, scales.spread)
    return 0.5 * m * log_det - expected.value + 0.5 * _log_volume(scales.spread, n) + constant


def _log_volume(spread: Tensor, n: int) -> float:
    """log|Sigma| over the directions orthogonal to the gauge.

    Of independent scales it is that of their projection, log|V| + log(d^T V^-1 d) with d the unit gauge direction.
    """
    if spread.dim() == 1:
        return float(spread.log().sum() + spread.reciprocal().mean().log())
    direction = gauge(n, spread.shape[0] - n, like=spread)
    factor, info = torch.linalg.cholesky_ex(spread.addr(direction, direction))
    return 2 * float(factor.diagonal().log().sum()) if int(info) == 0 else -math.inf


def variational(
    Y: Float[Tensor, "*shared n p"],
    Psi_row: Float[Tensor, "n n"],
    Psi_col: Float[Tensor, "p p"],
    start: LogScales,
    *,
    counts: Pair | None = None,
    penalty: Pair | None = None,
) -> LogScales:
    """The Gaussian with full covariance that maximises `elbo`; no step lowers it.

    Natural gradient steps: the precision is set to the expected Hessian and the mean takes a Newton step with it, both
    shortened where the bound would fall. O((n + p)^3) a step, about four of them from `laplace`.

    Parameters
    ----------
    Y, Psi_row, Psi_col, counts, penalty
        As in `mode`.
    start
        Gaussian to start from, with or without covariance.
    """
    target = ScaleTarget.of(Y, Psi_row, Psi_col, counts, penalty)
    covariance = start.spread if start.covariance is not None else _projected(start.spread, target.shape[0])
    return _ascend(target, start.mean, covariance)


def mean_field(
    Y: Float[Tensor, "*shared n p"],
    Psi_row: Float[Tensor, "n n"],
    Psi_col: Float[Tensor, "p p"],
    a: Float[Tensor, " n"],
    b: Float[Tensor, " p"],
    *,
    counts: Pair | None = None,
    penalty: Pair | None = None,
) -> LogScales:
    """The Gaussian with independent log scales that maximises `elbo`, without inverses: for large matrices.

    O(n^2 p + n p^2) time a step and O(n^2 + p^2 + n p) memory. It leaves out the correlation of the scales, which grows
    in importance as the smaller axis shrinks.

    Parameters
    ----------
    Y, Psi_row, Psi_col, counts, penalty
        As in `mode`.
    a, b
        Where to start: the mode, or the means for similar factors.
    """
    target = ScaleTarget.of(Y, Psi_row, Psi_col, counts, penalty)
    return _ascend(target, torch.cat([a, b]), 0.5 / torch.cat(target.counts))


def _projected(variance: Tensor, n: int) -> Tensor:
    direction = gauge(n, variance.numel() - n, like=variance)
    half = variance.sqrt().diag()
    half = half - direction[:, None] * (direction @ half)
    return half @ half.mT


def _ascend(target: ScaleTarget, theta: Tensor, spread: Tensor, max_steps: int = 100) -> LogScales:
    """Natural gradient ascent of the bound; the shape of `spread` says in which family."""
    n = target.shape[0]
    theta, at = target.rescaled(theta, spread, target.expect(theta, spread))
    bound = -at.value + 0.5 * _log_volume(spread, n)
    propose = _propose_full if spread.dim() == 2 else _propose_independent
    for _ in range(max_steps):
        hessian, step = target.hessian(at), 1.0
        rounding = 1e-13 * (abs(bound) + target.size)
        while step > 1e-6:
            new_theta, new_spread = propose(target, at, hessian, theta, spread, step)
            new_at = target.expect(new_theta, new_spread)
            new_bound = -new_at.value + 0.5 * _log_volume(new_spread, n)
            if new_bound >= bound - rounding:
                break
            step *= 0.5
        else:
            raise NumericalError("log scales: no step raises the bound; regularise the precision factors more")
        distance = _distance(theta, new_theta, spread, new_spread)
        theta, spread, at, bound = new_theta, new_spread, new_at, new_bound
        if distance < 1e-8:
            return settled(target, theta, spread, at)
    return settled(target, theta, spread, at)  # a slow case, of nearly singular precision; any step is a valid one


def _distance(theta: Tensor, new_theta: Tensor, spread: Tensor, new_spread: Tensor) -> float:
    """Largest change of a mean in standard deviations, or of a covariance against the largest variance."""
    variance = spread if spread.dim() == 1 else spread.diagonal()
    of_mean = ((new_theta - theta).abs() / variance.sqrt()).max()
    return max(float(of_mean), float((new_spread - spread).abs().max() / variance.max()))


def _propose_full(
    target: ScaleTarget, at: Expected, hessian: Blocks, theta: Tensor, spread: Tensor, step: float
) -> tuple[Tensor, Tensor]:
    """Mix the precision with the expected Hessian and take a Newton step of the mean with the mixture.

    The gradient is that expected after the change of the covariance, to first order: else the two chase each other
    where the counts are small, and part for a count of one.
    """
    direction = gauge(*target.shape, like=theta)
    precision, weight = step * hessian.definite(), step * hessian.gauge_weight
    if step < 1:
        old = torch.linalg.inv(spread.addr(direction, direction))
        precision, weight = precision + (1 - step) * old, weight + (1 - step)
    factor, info = torch.linalg.cholesky_ex(precision)
    if int(info) != 0:
        return theta, torch.full_like(spread, math.nan)
    covariance = torch.cholesky_inverse(factor).addr_(direction, direction, alpha=-1 / weight)
    gradient = at.gradient + 0.5 * target.curvature_gradient(at, covariance - spread)
    return to_gauge(theta - step * covariance @ gradient, target.shape[0]), covariance


def _propose_independent(
    target: ScaleTarget, at: Expected, hessian: Blocks, theta: Tensor, spread: Tensor, step: float
) -> tuple[Tensor, Tensor]:
    """The same with the diagonal of the Hessian; the share is the derivative of the gauge's part of the volume."""
    old = spread.reciprocal()
    wanted = hessian.diagonal / (1 - old / old.sum())
    variance = ((1 - step) * old + step * wanted).reciprocal()
    gradient = at.gradient + 0.5 * target.curvature_gradient(at, variance - spread)
    direction = target.newton_direction(gradient, at, hessian)
    return to_gauge(theta + step * direction, target.shape[0]), variance
