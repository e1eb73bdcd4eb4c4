"""Acceleration of fixed-point maps, such as a sweep of EM, that creep up on their limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


def squarem_step(
    start: Float[Tensor, " number"], once: Float[Tensor, " number"], twice: Float[Tensor, " number"]
) -> Float[Tensor, " number"] | None:
    """Extrapolate from three points x, F(x), F(F(x)) of a fixed-point map F (SQUAREM, step length S3).

    With r = F(x) - x and v = F(F(x)) - F(x) - r the new point is x - 2 a r + a^2 v, a = -|r| / |v|. At a = -1 it is
    F(F(x)), so that shorter steps are not worth a try.

    Parameters
    ----------
    start, once, twice
        The points.

    Returns
    -------
    Tensor or None
        The new point; None if the points call for no step beyond the last one.

    References
    ----------
    Varadhan and Roland (2008), Simple and globally convergent methods for accelerating the convergence of any EM
    algorithm, Scandinavian Journal of Statistics 35, section 5.
    """
    r = once - start
    v = twice - once - r
    length = float(torch.linalg.vector_norm(r)) / max(float(torch.linalg.vector_norm(v)), torch.finfo(v.dtype).tiny)
    proposal = start + 2 * length * r + length**2 * v
    return proposal if length > 1 and bool(torch.isfinite(proposal).all()) else None


@dataclass(frozen=True)
class Squarem:
    """Where the cycles of SQUAREM stand: two plain sweeps, then one from the extrapolated point.

    Attributes
    ----------
    points
        Free parameters before and after the latest plain sweeps, three at the most.
    kept, refused
        Extrapolations that were kept, and those that were undone since the bound was lower.
    """

    points: tuple[Float[Tensor, " number"], ...] = ()
    kept: int = 0
    refused: int = 0

    def proposal(self) -> Float[Tensor, " number"] | None:
        """Where to start the next sweep; None: where the guide is."""
        return squarem_step(*self.points) if len(self.points) == 3 else None

    def with_point(self, point: Float[Tensor, " number"]) -> Squarem:
        """With the start of a cycle, or what a plain sweep led to."""
        return Squarem((*self.points, point)[-3:], self.kept, self.refused)

    def after_proposal(self, *, kept: bool) -> Squarem:
        """After a sweep from `proposal`; a new cycle begins."""
        return Squarem((), self.kept + kept, self.refused + (not kept))

    def state(self) -> dict[str, Any]:
        """Plain numbers and tensors."""
        return {"points": [point.cpu() for point in self.points], "kept": self.kept, "refused": self.refused}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> Squarem:
        """Inverse of `state`."""
        return cls(tuple(point.to(device) for point in state["points"]), int(state["kept"]), int(state["refused"]))
