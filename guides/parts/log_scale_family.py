"""The Gaussian approximation of the log scales of one matrix, as the fits return it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .log_scale_target import Expected, ScaleTarget

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["LogScales", "settled"]


@dataclass(frozen=True)
class LogScales:
    """Gaussian approximation of the log scales (a, b) of one matrix, in the gauge sum a = sum b.

    Attributes
    ----------
    mean_row, mean_col
        Means of a (n,) and b (p,), such that E[q] = N.
    covariance
        Covariance of (a, b), shape (n + p, n + p), singular along the gauge (1, -1); None for independent scales.
    variance_row, variance_col
        Variances of a (n,) and b (p,).
    ratio
        E[q] / N before the means were shifted to make it one; its distance from one tells how far to trust the
        approximation.
    """

    mean_row: Float[Tensor, " n"]
    mean_col: Float[Tensor, " p"]
    covariance: Float[Tensor, "n_plus_p n_plus_p"] | None
    variance_row: Float[Tensor, " n"]
    variance_col: Float[Tensor, " p"]
    ratio: float

    @property
    def mean(self) -> Float[Tensor, " n_plus_p"]:
        """Mean of (a, b)."""
        return torch.cat([self.mean_row, self.mean_col])

    @property
    def spread(self) -> Tensor:
        """The covariance (n + p, n + p) if there is one, else the variances (n + p,)."""
        return torch.cat([self.variance_row, self.variance_col]) if self.covariance is None else self.covariance

    @property
    def log_row_scale(self) -> Float[Tensor, " n"]:
        """Mean of log_u = -(a - mean a), sum zero, where Y = diag(u) X diag(v) and Z = sqrt(omega) X."""
        return self.mean_row.mean() - self.mean_row

    @property
    def log_col_scale(self) -> Float[Tensor, " p"]:
        """Mean of log_v = -(b - mean b), sum zero."""
        return self.mean_col.mean() - self.mean_col

    @property
    def log_precision(self) -> Float[Tensor, ""]:
        """Mean of log omega = 2 (mean a + mean b), in the units of Y to the power -2."""
        return 2 * (self.mean_row.mean() + self.mean_col.mean())

    def standard_deviations(self) -> tuple[Float[Tensor, " n"], Float[Tensor, " p"], Float[Tensor, ""]]:
        """Posterior standard deviations of log_u, log_v and log omega."""
        if self.covariance is not None:
            n = self.mean_row.numel()
            sd = self.scale_covariance().diagonal().clamp_min(0.0).sqrt()
            return sd[:n], sd[n:-1], sd[-1]
        centred = [v * (1 - 2 / v.numel()) + v.sum() / v.numel() ** 2 for v in (self.variance_row, self.variance_col)]
        of_mean = sum(v.sum() / v.numel() ** 2 for v in (self.variance_row, self.variance_col))
        return centred[0].sqrt(), centred[1].sqrt(), 2 * torch.as_tensor(of_mean).sqrt()

    def scale_covariance(self) -> Float[Tensor, "n_plus_p_plus_1 n_plus_p_plus_1"]:
        """Covariance of (log_u, log_v, log omega), the linear map T Sigma T^T.

        T has the rows -(e_i - 1/n) on a for log_u_i, -(e_j - 1/p) on b for log_v_j, and 2/n on a, 2/p on b for
        log omega; it sends the gauge to zero. Of independent scales the covariance is that of their diagonal.
        """
        n = self.mean_row.numel()
        sigma = self.spread.diag() if self.covariance is None else self.covariance
        half = torch.cat([_centre(sigma[:n]), _centre(sigma[n:]), _omega_row(sigma, n)[None]])
        full = torch.cat([_centre(half[:, :n].mT), _centre(half[:, n:].mT), _omega_row(half.mT, n)[None]])
        return 0.5 * (full + full.mT)


def _centre(block: Tensor) -> Tensor:
    return block.mean(0) - block


def _omega_row(block: Tensor, n: int) -> Tensor:
    return 2 * (block[:n].mean(0) + block[n:].mean(0))


def settled(target: ScaleTarget, theta: Tensor, spread: Tensor, at: Expected | None = None) -> LogScales:
    """Normal(theta, spread) with its mean shifted to E[q] = N, the exact posterior value, in the gauge.

    `at` is the expectation of the target there, where it is known.
    """
    n = target.shape[0]
    at = target.expect(theta, spread) if at is None else at
    theta, _ = target.rescaled(theta, spread, at)
    variance = spread if spread.dim() == 1 else spread.diagonal()
    covariance = None if spread.dim() == 1 else spread
    return LogScales(theta[:n], theta[n:], covariance, variance[:n], variance[n:], at.quadratic / target.size)
