"""What the edges teach about their prior: density, slab variance, closure of triangles, propensities of hubs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from .edge_state import AxisEdges, EdgePrior, upper_pairs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["hub_offset", "learn_coefficient", "learn_slab", "learn_triangles", "node_propensity"]

LIKELY = (0.2, 0.6)  # an edge counts for triangles gradually between these probabilities


def learn_coefficient(
    start: Float[Tensor, ""],
    feature: Float[Tensor, "n n"],
    offset: Float[Tensor, "n n"],
    probability: Float[Tensor, "n n"],
    centre: float,
    sd: float,
) -> Float[Tensor, ""]:
    """Mode of a coefficient of the prior log-odds given the expected edges, by Newton steps on a concave function."""
    pairs = upper_pairs(probability)
    feature, offset, expected = feature[pairs], offset[pairs], probability[pairs]
    value = start
    for _ in range(50):
        rate = (offset + value * feature).sigmoid()
        gradient = (feature * (expected - rate)).sum() - (value - centre) / sd**2
        step = (gradient / ((feature**2 * rate * (1 - rate)).sum() + 1 / sd**2)).clamp(-1.0, 1.0)
        value = value + step
        if bool(step.abs() < 1e-12):
            break
    return value


def learn_slab(probability: Tensor, mean: Tensor, variance: Tensor, prior: EdgePrior) -> Tensor:
    """Variance of the weights given the expected edges: the mode under its Gamma prior on 1 / s2."""
    number, squares = probability.sum() / 2, (probability * (mean**2 + variance)).sum() / 2  # each pair counts twice
    return (prior.slab_weight * prior.slab_scale**2 + squares / 2) / (prior.slab_weight + number / 2)


def node_propensity(probability: Tensor, kappa: float) -> Tensor:
    """Propensities learned from the pairs of each node, under a Gamma prior of shape kappa."""
    degree = probability.sum(1)
    return (degree + kappa) / (degree.mean() + kappa)


def hub_offset(probability: Tensor, kappa: float) -> Tensor:
    """Log of the propensities learned from the other pairs of each node, under a Gamma prior of shape kappa."""
    degree = probability.sum(1)
    log = ((degree[:, None] - probability + kappa) / (degree.mean() + kappa)).log()
    return (log + log.T).fill_diagonal_(0.0)


def learn_triangles(axis: AxisEdges, offset: Tensor, sd: float, step: float) -> AxisEdges:
    """Count triangles that an edge would close, and learn how much closing one raises its log-odds.

    An edge counts by its evidence without the bonus for triangles, so that triangles do not confirm each other.
    """
    bonus = axis.closure * axis.triangles
    alone = (axis.posterior_log_odds - bonus).sigmoid().fill_diagonal_(0.0)
    likely = ((alone - LIKELY[0]) / (LIKELY[1] - LIKELY[0])).clamp(0.0, 1.0)
    triangles = torch.lerp(axis.triangles, (likely @ likely).clamp(max=1.0).fill_diagonal_(0.0), step)
    closure = learn_coefficient(axis.closure, triangles, axis.log_odds + offset - bonus, axis.probability, 0.0, sd)
    return replace(axis, triangles=triangles, closure=torch.lerp(axis.closure, closure, step))
