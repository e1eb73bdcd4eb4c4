"""Row and column log scales of a matrix given the two precision factors: mode and Laplace approximation.

Y (n, p) is known up to positive row and column factors; Z = diag(e^a) Y diag(e^b) has precision Psi_row (+) Psi_col.
Under flat priors the posterior of the n + p - 1 free log scales is proportional to exp(-f), with

    f(a, b) = q(Z) / 2 - p sum_i a_i - n sum_j b_j,    q(Z) = tr(Psi_row Z Z^T) + tr(Psi_col Z^T Z).

All work is done on log |Y| and signs, so entries of any finite size will do. `log_scale_moments` has what follows from
the approximations: moments of Z, the bound, and the variational approximations that maximise it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...models.parts.errors import NumericalError
from .log_normal import Pair, gauge, to_gauge
from .log_scale_family import LogScales, settled
from .log_scale_target import Expected, ScaleTarget
from .zero_pattern import check_scalable

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["LogScales", "laplace", "mode"]


def mode(
    Y: Float[Tensor, "*shared n p"],
    Psi_row: Float[Tensor, "n n"],
    Psi_col: Float[Tensor, "p p"],
    *,
    start: Pair | None = None,
    counts: Pair | None = None,
    penalty: Pair | None = None,
) -> Pair:
    """Minimise f + a^T P_row a / 2 + b^T P_col b / 2 over the log scales by Newton steps.

    At the minimum without penalty every row of ``Z * (Psi_row Z + Z Psi_col)`` sums to p and every column to n; with
    both factors multiples of the identity this is Sinkhorn scaling of Y * Y. Newton directions come from conjugate
    gradients, or from a convex model where f is not convex. f is convex in exp(a) for fixed b and the other way round;
    no second minimum was met from random starts. O(n^2 p + n p^2) a step.

    Parameters
    ----------
    Y
        Matrix of non-zero rows and columns, or several (r, n, p) that share their scales.
    Psi_row, Psi_col
        Precision factors, lam_i + mu_j > 0.
    start
        (a, b) to start from, any gauge. Without it: Sinkhorn scaling, after the zeros of Y were checked.
    counts
        Row (n,) and column (p,) numbers of entries with a Jacobian, in place of p and n: the numbers of non-zeros where
        zeros are structural. None takes zeros for observations that happen to be zero.
    penalty
        Quadratic priors on a and b, P_row (n, n) and P_col (p, p), whose rows sum to zero.

    Returns
    -------
    tuple
        a (n,), b (p,) with sum a = sum b.

    Raises
    ------
    DataError
        For unusable Y, counts, penalty or shapes, and when the zeros of Y admit no scaling and there is no penalty.
    NumericalError
        If the precision matrix is not positive definite or the steps do not settle.
    """
    target = ScaleTarget.of(Y, Psi_row, Psi_col, counts, penalty)
    n = target.shape[0]
    if start is None:
        if penalty is None:
            check_scalable(target.sign.abs().reshape(-1, *target.shape).amax(0), target.counts)
        start = _sinkhorn(target)
    theta = _minimise(target, torch.cat(start))
    return theta[:n], theta[n:]


def _sinkhorn(target: ScaleTarget, rounds: int = 10) -> Pair:
    """Centre log |Y| over its finite entries, then scale Y * Y to the right row and column sums, a few rounds each."""
    log_Y, present = target.log_abs, target.sign.abs()
    if log_Y.dim() == 3:  # matrices that share their scales: root sums of squares
        log_Y, present = 0.5 * (2 * log_Y).logsumexp(0), present.amax(0)
    finite = torch.where(present > 0, log_Y, 0.0)
    b = log_Y.new_zeros(log_Y.shape[1])
    for _ in range(rounds):
        a = -(present * (finite + b)).sum(1) / present.sum(1)
        b = -(present * (finite + a[:, None])).sum(0) / present.sum(0)
    log_rows, log_cols = (c.log() for c in target.counts)
    for _ in range(rounds):
        a = 0.5 * (log_rows - (2 * (log_Y + b)).logsumexp(1))
        b = 0.5 * (log_cols - (2 * (log_Y + a[:, None])).logsumexp(0))
    return a, b


def _minimise(target: ScaleTarget, theta: Tensor, max_steps: int = 1000) -> Tensor:
    """Newton with backtracking; stops when the decrement, an error in units of posterior sd, is negligible.

    Under ten steps do, but an entry far off the scale of its row and column takes about two for each power of e.
    """
    n = target.shape[0]
    theta, at = target.rescaled(theta, None, target.expect(theta))
    for _ in range(max_steps):
        direction = target.newton_direction(at.gradient, at, target.hessian(at))
        decrement = max(-float(at.gradient @ direction), 0.0) ** 0.5
        # A small decrement with a long step is a plateau: some scales are hardly determined at all.
        if decrement < 1e-9 and float(direction.abs().max()) < 1e-3:
            return to_gauge(theta + direction, n)
        theta, at = _descend(target, theta, at, direction, decrement)
    raise NumericalError(
        f"log scales: the mode was not reached in {max_steps} Newton steps (decrement {decrement:.2g}); "
        "wanted better conditioned precision factors or fewer outlying entries"
    )


def _descend(
    target: ScaleTarget, theta: Tensor, at: Expected, direction: Tensor, decrement: float
) -> tuple[Tensor, Expected]:
    """One backtracking step; no log scale moves by more than 3, beyond which exponentials have no use for a slope."""
    step = min(1.0, 3.0 / float(direction.abs().max()))
    for _ in range(60):
        new = to_gauge(theta + step * direction, target.shape[0])
        new_at = target.expect(new)
        # Close to the minimum differences of f are below rounding, and a full step is safe.
        if new_at.value <= at.value - 1e-4 * step * decrement**2 or (decrement < 1e-2 and step == 1.0):
            return new, new_at
        step *= 0.5
    raise NumericalError(
        "log scales: no step lowers the negative log posterior, so that some scales are hardly determined; "
        "wanted better conditioned precision factors or fewer zeros and outlying entries"
    )


def laplace(
    Y: Float[Tensor, "*shared n p"],
    Psi_row: Float[Tensor, "n n"],
    Psi_col: Float[Tensor, "p p"],
    a: Float[Tensor, " n"],
    b: Float[Tensor, " p"],
    *,
    counts: Pair | None = None,
    penalty: Pair | None = None,
    mean_shift: bool = True,
) -> LogScales:
    """Gaussian with the inverse Hessian at the mode for covariance, its mean corrected to third order.

    The correction is -Sigma g / 2, g the gradient of tr(H(theta) Sigma), after Tierney and Kadane (1986): with it the
    second moments of Z are right to a per cent or less even for matrices of a few dozen entries. O((n + p)^3) time,
    O((n + p)^2) memory.

    Parameters
    ----------
    Y, Psi_row, Psi_col, counts, penalty
        As in `mode`.
    a, b
        The mode.
    mean_shift
        Whether to correct the mean.

    Raises
    ------
    NumericalError
        If the Hessian is not positive definite, because (a, b) is no minimum.
    """
    target = ScaleTarget.of(Y, Psi_row, Psi_col, counts, penalty)
    n, p = target.shape
    theta = to_gauge(torch.cat([a, b]), n)
    at = target.expect(theta)
    hessian = target.hessian(at)
    factor, info = torch.linalg.cholesky_ex(hessian.definite())
    if int(info) != 0:
        raise NumericalError("laplace: found a Hessian that is not positive definite; wanted (a, b) at the mode")
    direction = gauge(n, p, like=theta)
    covariance = torch.cholesky_inverse(factor).addr_(direction, direction, alpha=-1 / hessian.gauge_weight)
    if mean_shift:
        theta = theta - 0.5 * covariance @ target.curvature_gradient(at, covariance)
    return settled(target, theta, covariance)
