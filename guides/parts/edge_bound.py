"""Approximate log posterior of a pair of graphs, to watch a fit and to compare fits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .edge_state import upper_pairs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from .edge_state import AxisEdges, EdgePrior, EdgeState

__all__ = ["log_posterior", "log_prior"]


def log_posterior(
    state: EdgeState,
    S_row: Float[Tensor, "n n"],
    S_col: Float[Tensor, "p p"],
    num_matrices: int,
    prior_row: EdgePrior,
    prior_col: EdgePrior,
) -> float:
    """Log probability of the edges that the precisions hold, up to a constant of the data.

    The overall scale of the precision is at its best value, and the priors of eta, s2 and theta count at their present
    values; see `log_prior`. It is no lower
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
    return float(
        fit + log_prior(state.row, prior_row, marginal=False) + log_prior(state.col, prior_col, marginal=False)
    )


def log_prior(axis: AxisEdges, prior: EdgePrior, *, marginal: bool) -> Float[Tensor, ""]:
    """What the prior adds to the likelihood of the graph of likely edges, with their weights integrated out.

    By Newton's formula the integral of a likely edge's weight w around its estimate gives sqrt(variance / s2)
    exp(-w^2 / (2 s2)).

    Parameters
    ----------
    axis
        Fitted edges.
    prior
        Their prior.
    marginal
        Whether each pair left out of the graph is integrated out by itself, log(1 - pi + pi BF) with its Bayes factor
        BF the ratio of posterior and prior odds, or counts as no edge, log(1 - pi).
    """
    pairs = upper_pairs(axis.precision)
    weights, s2 = axis.precision[pairs], axis.slab_variance
    odds = (axis.log_odds + prior.offset(axis.precision) + axis.closure * axis.triangles)[pairs]
    inside = odds + 0.5 * (axis.variance[pairs] / s2).log() - weights**2 / (2 * s2)
    outside = torch.nn.functional.softplus(axis.posterior_log_odds[pairs]) * float(marginal)
    graph = torch.where(weights != 0, inside, outside).sum() - torch.nn.functional.softplus(odds).sum()
    learned = -((axis.log_odds - prior.centre(len(axis.precision))) ** 2) / (2 * prior.log_odds_sd**2)
    learned = learned - prior.slab_weight * (s2.log() + prior.slab_scale**2 / s2)
    if prior.closure_sd is not None:
        learned = learned - axis.closure**2 / (2 * prior.closure_sd**2)
    return graph + learned
