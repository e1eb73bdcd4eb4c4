"""The law of one gene of a structural equation model given all others, by quadrature over that gene."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import NumericalError

if TYPE_CHECKING:
    from jaxtyping import Float

TOLERANCE = 1e-6
REACH = 3.8  # of the nodes; sinh(pi/2 sinh 3.8) is 1e15, beyond any tail that counts
FIRST_STEP = 1 / 8
MAX_HALVINGS = 8


def identity_minus(networks: Float[Tensor, "*batch regulator target"]) -> Float[Tensor, "*batch regulator target"]:
    """I - W."""
    return torch.eye(networks.shape[-1], dtype=networks.dtype, device=networks.device) - networks


def conditional_by_quadrature(
    log_kernel: Callable[[Tensor], Tensor],
    residual: Float[Tensor, "*batch gene"],
    sigma: Float[Tensor, "*batch gene"],
    networks: Float[Tensor, "*batch regulator target"],
) -> Float[Tensor, "*batch gene"]:
    """Log density of every gene given the others, for additive noise.

    Moving x_g by t moves the residual of gene j by t (I - W)_gj, so that the density given the others is proportional
    to the product over j of k((e_j + t (I - W)_gj) / sigma_j).

    Parameters
    ----------
    log_kernel
        log k, entry by entry.
    residual
        e = x - b - x W.
    sigma
        Scales of the noise.
    networks
        W.
    """
    left, sigma = identity_minus(networks), sigma.expand(*sigma.shape[:-1], residual.shape[-1])
    at_data = log_kernel(residual / sigma).sum(-1)
    found = []
    for gene in range(residual.shape[-1]):
        slope = left[..., gene, :] / sigma

        def log_density(t: Tensor, slope: Tensor = slope) -> Tensor:
            return log_kernel(residual / sigma + t.unsqueeze(-1) * slope).sum(-1)

        found.append(at_data - _log_integral(log_density, *_where(log_density, residual / sigma, slope)))
    return torch.stack(found, -1)


def _where(log_density: Callable[[Tensor], Tensor], standard: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable of the places that single genes speak for, and the width if all agree."""
    precision = slope.square().sum(-1)
    places = torch.where(slope.abs() > 1e-9 * precision.sqrt().unsqueeze(-1), -standard / slope, 0.0)
    places = torch.cat([places, -(standard * slope).sum(-1, keepdim=True) / precision.unsqueeze(-1)], -1)
    scores = torch.stack([log_density(place) for place in places.unbind(-1)], -1)
    return places.gather(-1, scores.argmax(-1, keepdim=True)).squeeze(-1), precision.rsqrt()


def _log_integral(log_density: Callable[[Tensor], Tensor], center: Tensor, width: Tensor) -> Tensor:
    """Log of the integral over the line: double-exponential rule, its step halved until nothing changes.

    Takahasi and Mori (1974), for integrands with tails that fall like powers: t = c + w sinh(pi/2 sinh v).
    """

    def terms(nodes: Tensor) -> Tensor:
        total = torch.full_like(center, -math.inf)
        for v in nodes.tolist():
            inner = 0.5 * math.pi * math.sinh(v)
            log_slope = math.log(0.5 * math.pi * math.cosh(v)) + abs(inner) + math.log1p(math.exp(-2 * abs(inner)))
            term = log_density(center + width * math.sinh(inner)) + log_slope - math.log(2)
            total = torch.logaddexp(total, torch.nan_to_num(term, nan=-math.inf))
        return total

    step = FIRST_STEP
    total = terms(torch.arange(-REACH, REACH + step / 2, step, dtype=torch.double))
    for _ in range(MAX_HALVINGS):
        before = total + math.log(step)
        total = torch.logaddexp(total, terms(torch.arange(-REACH + step / 2, REACH, step, dtype=torch.double)))
        step /= 2
        if bool(((total + math.log(step) - before).abs() < TOLERANCE).all()):
            return total + math.log(step) + width.log()
    raise NumericalError("expression: the quadrature over an entry does not settle; wanted noise of a smooth density")
