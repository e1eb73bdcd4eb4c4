"""Approximate log posterior of a pair of graphs, to watch a fit and to compare fits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .edge_state import upper_pairs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from .edge_state import AxisEdges, EdgePrior, EdgeState

__all__ = ["log_posterior"]


def log_posterior(
    state: EdgeState,
    S_row: Float[Tensor, "n n"],
    S_col: Float[Tensor, "p p"],
    num_matrices: int,
    prior_row: EdgePrior,
    prior_col: EdgePrior,
) -> float:
    """Log probability of the edges that the precisions hold, up to a constant of the data.

    The weights are integrated out by Laplace's method with the curvature of each entry alone, the overall scale of the
    precision is at its best value, and the priors of eta, s2 and theta count at their present values. It is no lower
    bound and rounds need not raise it: use it to compare fits of the same statistics.

    Parameters
    ----------
    state
        Fitted edges.
    S_row, S_col, num_matrices, prior_row, prior_col
        What they were fitted to.
    """
    rows, cols = torch.linalg.eigvalsh(state.row.precision), torch.linalg.eigvalsh(state.col.precision)
    size = len(rows) * len(cols)
    form = (state.row.precision * S_row).sum() + (state.col.precision * S_col).sum()
    fit = 0.5 * num_matrices * ((rows[:, None] + cols).log().sum() - size * (form / size).log() - size)
    return float(fit + _log_prior(state.row, prior_row) + _log_prior(state.col, prior_col))


def _log_prior(axis: AxisEdges, prior: EdgePrior) -> Tensor:
    """Prior of the graph, of its weights with the volume that Laplace's method gives them, and of what was learned."""
    pairs = upper_pairs(axis.precision)
    weights, s2 = axis.precision[pairs], axis.slab_variance
    odds = (axis.log_odds + prior.offset(axis.precision) + axis.closure * axis.triangles)[pairs]
    slab = odds + 0.5 * (axis.variance[pairs] / s2).log() - weights**2 / (2 * s2)
    graph = torch.where(weights != 0, slab, torch.zeros_like(slab)).sum() - torch.nn.functional.softplus(odds).sum()
    learned = -((axis.log_odds - prior.centre(len(axis.precision))) ** 2) / (2 * prior.log_odds_sd**2)
    learned = learned - prior.slab_weight * (s2.log() + prior.slab_scale**2 / s2)
    if prior.closure_sd is not None:
        learned = learned - axis.closure**2 / (2 * prior.closure_sd**2)
    return graph + learned
