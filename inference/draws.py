"""Draws of a posterior or prior with their log densities, and the shape that all of them have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..models.parts.errors import NumericalError, SchemaError
from .density import DRAWS
from .messengers import plates_of

if TYPE_CHECKING:
    from jaxtyping import Float

Site = tuple[tuple[str, ...], Tensor]
"""Plate names from left to right, and values shaped (draw, *plates, *event)."""


@dataclass
class Pass:
    """What one pass of the model over a set of draws gives.

    Attributes
    ----------
    values
        Latent and deterministic sites.
    log_likelihood
        Pointwise log likelihood of observed sites, plates kept, never scaled by a minibatch factor.
    log_p, log_q
        Log joint density and log density of the guide, one a draw. log_q is None without a guide.
    predictive
        Fresh draws of the observed sites, when asked for.
    observed
        What the observed sites were scored on, without the axis of draws.
    """

    values: dict[str, Site]
    log_likelihood: dict[str, Site]
    log_p: Float[Tensor, " draw"]
    log_q: Float[Tensor, " draw"] | None
    predictive: dict[str, Site]
    observed: dict[str, Site] = field(default_factory=dict)


def arrange(value: Tensor, site: Mapping[str, Any], num_draws: int, nesting: int, event_dim: int) -> Site:
    """Bring a value into the shape (draw, own plates, event): Pyro gives it 1s for plates it does not belong to.

    Raises
    ------
    SchemaError
        If the value has other axes left of its event dims.
    """
    plates = {dim: frame for dim, frame in plates_of(site).items() if frame.name != DRAWS}
    split = value.dim() - event_dim
    batch = (num_draws, *(plates[dim].size if dim in plates else 1 for dim in range(-nesting, 0)))
    try:
        value = value.detach().expand(batch + value.shape[split:])
    except RuntimeError as error:
        raise SchemaError(
            f"{site['name']}: found shape {tuple(value.shape)} with {event_dim} event dims; wanted {batch} left of "
            "them: index from the right, and write pyro.deterministic(name, value, event_dim=k) inside its plates"
        ) from error
    for dim in range(-1, -nesting - 1, -1):  # right to left, so that earlier axes keep their place
        if dim not in plates:
            value = value.squeeze(nesting + 1 + dim)
    return tuple(plates[dim].name for dim in range(-nesting, 0) if dim in plates), value


def check_finite(sites: Mapping[str, Site]) -> None:
    """Refuse draws that hold NaN.

    Raises
    ------
    NumericalError
        Naming the site.
    """
    for name, (_, value) in sites.items():
        if value.is_floating_point() and bool(torch.isnan(value).any()):
            raise NumericalError(f"{name}: the draws contain NaN")


def join(passes: list[Pass]) -> Pass:
    """Concatenate the chunks of a set of draws."""

    def cat(parts: list[dict[str, Site]]) -> dict[str, Site]:
        return {n: (parts[0][n][0], torch.cat([part[n][1].cpu() for part in parts])) for n in parts[0]}

    log_q = None if passes[0].log_q is None else torch.cat([p.log_q for p in passes if p.log_q is not None])
    return Pass(
        cat([p.values for p in passes]),
        cat([p.log_likelihood for p in passes]),
        torch.cat([p.log_p for p in passes]),
        log_q,
        cat([p.predictive for p in passes]),
        passes[0].observed,
    )


def log_mean_exp(values: Float[Tensor, "draw *rest"]) -> Float[Tensor, "*rest"]:
    """Log of the mean over draws of exponentials."""
    return values.logsumexp(0) - math.log(len(values))
