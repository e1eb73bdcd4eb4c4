"""Axes and origin of a latent space in which environments move few latents each, from the means of the environments.

A control is the origin. Without one, the prior of the cells is, unless the shifts are a good deal sparser around where
most environments leave the latents: what all of them share is no target but an offset, which the decoder can carry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...models.parts.decoders import Decoder
from ...models.parts.errors import SchemaError
from .sparse_rotation import sparse_rotation

if TYPE_CHECKING:
    from jaxtyping import Float

ORIGIN_GAIN = 0.1  # relative fall of the cost that another origin must bring: a free origin always brings some


@dataclass(frozen=True)
class LatentAxes:
    """A change of coordinates z -> z R - c, and how much the environments say for it.

    Attributes
    ----------
    rotation
        R, orthogonal; None if the axes are sparse as they are.
    origin
        c; None if it stays.
    agreement
        Share of restarts of the rotation that agree.
    """

    rotation: Float[Tensor, "latent latent_new"] | None
    origin: Float[Tensor, " latent_new"] | None
    agreement: float


def sparse_axes_of(mean: Float[Tensor, "condition latent"], control: int | None) -> LatentAxes:
    """Find axes, and an origin where no control gives it.

    Parameters
    ----------
    mean
        Means of the environments that have cells.
    control
        Row of the control.
    """
    if control is not None:
        found = sparse_rotation(mean - mean[control])
        return LatentAxes(found.matrix if found.accepted else None, None, found.agreement)
    found = sparse_rotation(mean)
    plain = mean @ found.matrix if found.accepted else mean
    rotation = found.matrix if found.accepted else None
    cost, moved = min(
        (_with_origin(mean, start) for start in (torch.zeros_like(mean[0]), mean.mean(0))), key=lambda pair: pair[0]
    )
    if cost < (1 - ORIGIN_GAIN) * float(plain.abs().sum()):
        return moved
    return LatentAxes(rotation, None, found.agreement)


def _with_origin(mean: Float[Tensor, "condition latent"], start: Float[Tensor, " latent"]) -> tuple[float, LatentAxes]:
    """Axes around a first guess of the origin, then the origin as the median: cost and what was found."""
    found = sparse_rotation(mean - start)
    rotated = mean @ found.matrix if found.accepted else mean
    origin = rotated.median(0).values
    axes = LatentAxes(found.matrix if found.accepted else None, origin, found.agreement)
    return float((rotated - origin).abs().sum()), axes


def turn_decoder(decoder: Decoder, R: Float[Tensor, "latent latent_new"]) -> None:
    """Let a decoder absorb a rotation, and see that it did.

    Raises
    ------
    SchemaError
        If the output at rotated latents is not what it was.
    """
    R = R.to(decoder.offset)
    points = 3 * torch.eye(len(R)).to(R)
    u = R.new_zeros(len(R), decoder.num_features) if decoder.uses_descriptors else None
    before = decoder(points, u)
    decoder.rotate(R)
    after = decoder(points @ R, u)
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max())):
        name = type(decoder).__name__
        raise SchemaError(
            f"decoder: {name}.rotate(R) changes its output; wanted decoder(c @ R) to be what decoder(c) was"
        )
