"""How much wider the posterior of scales must be when the graph it was fitted with leaves out weak edges.

Scales are fitted with the edges that are as good as certain, since weak ones, most of them noise, would spoil the fit.
The entries of a row then depend on each other more than the fitted graph says, so the row tells less about its scale.
The estimate stays consistent (an M-estimate), but its variance is H^-1 J H^-1 with J the variance of the score (Godambe
1960; White 1982), not H^-1. At independence J of a row scale is proportional to the sum of squared correlations of the
columns, which the Gram matrix estimates without bias.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .edge_curvature import block_trace

if TYPE_CHECKING:
    from jaxtyping import Float


def variance_inflation(
    S_row: Float[Tensor, "n n"],
    S_col: Float[Tensor, "p p"],
    Psi_row: Float[Tensor, "n n"],
    Psi_col: Float[Tensor, "p p"],
    num_matrices: int,
) -> tuple[float, float]:
    """Factors, at least one, of the posterior variances of row scales and of column scales.

    Parameters
    ----------
    S_row, S_col
        Mean Gram matrices of the scaled matrices.
    Psi_row, Psi_col
        Factors that the scales were fitted with.
    num_matrices
        How many matrices the means are over.
    """
    n, p = len(S_row), len(S_col)
    (lam, V), (mu, W) = torch.linalg.eigh(Psi_row), torch.linalg.eigh(Psi_col)
    of_rows = _inflation(S_col, block_trace(mu, W, lam), num_matrices * n)
    of_cols = _inflation(S_row, block_trace(lam, V, mu), num_matrices * p)
    return of_rows, of_cols


def _inflation(S: Tensor, expected: Tensor, num_samples: int) -> float:
    size = len(S)
    implied = _squared_correlations(expected)
    seen = _squared_correlations(S) - size * (size - 1) / num_samples  # what independent columns would show
    return float(((size + seen) / (size + implied)).clamp(min=1.0))


def _squared_correlations(S: Tensor) -> Tensor:
    """Sum over pairs of different nodes."""
    root = S.diagonal().sqrt()
    return (S / (root[:, None] * root)).square().sum() - len(S)
