"""Gaussian log scales (a, b) of a matrix: their gauge, and the log-normal moments that they give.

A *spread* is None for known scales, variances (n + p,) for independent ones, or a covariance (n + p, n + p).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Pair", "axis_spreads", "gauge", "log_normal_pair", "log_normal_weights", "to_gauge"]

Pair = tuple[Tensor, Tensor]
"""Something for the rows and the same for the columns."""


def gauge(n: int, p: int, *, like: Tensor) -> Float[Tensor, " n_plus_p"]:
    """The unit vector along (1, -1), which leaves Z as it is."""
    return torch.cat([like.new_full((n,), (n + p) ** -0.5), like.new_full((p,), -((n + p) ** -0.5))])


def to_gauge(theta: Float[Tensor, " n_plus_p"], n: int) -> Float[Tensor, " n_plus_p"]:
    """The same scales with sum a = sum b."""
    direction = gauge(n, theta.numel() - n, like=theta)
    return theta - (direction @ theta) * direction


def axis_spreads(spread: Tensor | None, n: int) -> tuple[Tensor | None, Tensor | None]:
    """Variances or covariances of a alone and of b alone."""
    if spread is None:
        return None, None
    return (spread[:n], spread[n:]) if spread.dim() == 1 else (spread[:n, :n], spread[n:, n:])


def log_normal_weights(matrix: Float[Tensor, "d d"], spread: Tensor | None) -> Float[Tensor, "d d"]:
    """The matrix times exp(covariance), entry by entry; off the diagonal independent scales have none."""
    if spread is None:
        return matrix
    if spread.dim() == 1:
        return matrix + (matrix.diagonal() * spread.expm1()).diag()
    return matrix * spread.exp()


def log_normal_pair(
    sign: Float[Tensor, "*shared n p"],
    log_abs: Float[Tensor, "*shared n p"],
    theta: Float[Tensor, " n_plus_p"],
    spread: Tensor | None,
) -> Pair:
    """Z1 and Z2 with E[Z Z^T] = exp(Sigma_aa) * (Z1 Z1^T) and E[Z^T Z] = exp(Sigma_bb) * (Z2^T Z2).

    Z1 is Z at the mean times exp(var(a_i) / 2 + 2 cov(a_i, b_j) + var(b_j)), Z2 the same with the axes exchanged.
    """
    n = sign.shape[-2]
    log_Z = log_abs + theta[:n, None] + theta[n:]
    if spread is None:
        Z = sign * log_Z.exp_()
        return Z, Z
    if spread.dim() == 2:
        log_Z += 2 * spread[:n, n:]
    variance = spread if spread.dim() == 1 else spread.diagonal()
    row, col = variance[:n, None], variance[n:]
    return sign * (log_Z + 0.5 * row + col).exp_(), sign * (log_Z + row + 0.5 * col).exp_()
