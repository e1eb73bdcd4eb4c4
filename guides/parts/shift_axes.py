"""Axes and origin of a latent space in which environments move few latents each, by tempered spike and slab.

    M_e = c + b_e R' + noise_e,   b_ek = 0 or Normal(0, tau^2),   noise_ek ~ Normal(0, v_e)

for the free means M_e of environments, with R orthogonal. Expectation maximisation from many starts, with a variance
that falls to 0 added to v_e. Unlike a sum of absolute values it knows how precise each mean is, and it finds the origin
c, which without a control no other stage can find: where most environments move something, the mean of all is none.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .sparse_rotation import polar

if TYPE_CHECKING:
    from jaxtyping import Float

NUM_ITERATIONS = 80
TEMPERED = 0.7  # share of the iterations over which the added variance falls
COLD = 1e-3  # last added variance, relative to the variance of the means


def sparse_axes(
    M: Float[Tensor, "condition latent"],
    variance: Float[Tensor, " condition"],
    starts: Float[Tensor, "restart latent latent_new"],
    heat: Float[Tensor, " restart"],
    *,
    rate: float,
    control: int | None,
) -> tuple[Float[Tensor, "restart latent latent_new"], Float[Tensor, "restart latent"]]:
    """Local optima of axes and origin.

    Parameters
    ----------
    M, variance
        Means of the environments and their sampling variance v.
    starts
        Orthogonal matrices to start from.
    heat
        Standard deviation added at first, relative to the largest mean: warm starts forget where they began and mostly
        end at the same optimum, cold ones explore others.
    rate
        Share of entries that are targets.
    control
        Environment at the origin, None if the origin is unknown.

    Returns
    -------
    R, c
        Rotations and origins; shifts are ``(M - c) @ R``.
    """
    tau2 = M.square().sum() / (rate * M.numel())
    last = COLD * variance.mean()
    first = torch.maximum((heat * M.abs().max()).square(), last)
    R, c = starts, M.new_zeros(len(starts), 1, M.shape[1])
    if control is not None:
        c = c + M[control]
    log_odds = math.log(rate / (1 - rate))
    for step in range(NUM_ITERATIONS):
        added = first * (last / first) ** min(1.0, step / (TEMPERED * NUM_ITERATIONS))
        v = (variance + added[:, None]).unsqueeze(-1)  # (restart, condition, 1)
        shifts = (M - c) @ R
        shrink = tau2 / (tau2 + v)
        target = torch.sigmoid(log_odds + 0.5 * (1 - shrink).log() + 0.5 * shifts.square() * shrink / v)
        expected = target * shrink * shifts
        if control is None:
            c = ((M - expected @ R.mT) / v).sum(-2, keepdim=True) / (1 / v).sum(-2, keepdim=True)
        cross = ((M - c) / v).mT @ expected
        R = polar(cross + 1e-9 * torch.linalg.matrix_norm(cross)[:, None, None] * R)
    return R, c.squeeze(-2)
