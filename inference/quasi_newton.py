"""Maxima of smooth log densities by L-BFGS, all starts in one computation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..models.parts.errors import NumericalError
from .density import LogDensity
from .maximum import Maximum

if TYPE_CHECKING:
    from jaxtyping import Float

MEMORY = 20
HALVINGS = 12


def ascend(
    density: LogDensity,
    starts: Float[Tensor, "restart dim"],
    *,
    num_steps: int = 200,
    tolerance: float = 1e-7,
    held: Iterable[str] = (),
    progress: bool = True,
    label: str = "MAP",
) -> Maximum:
    """Climb the log density (without Jacobian) on all of the data.

    For smooth densities of up to some thousand rows: it needs a tenth of the steps of `maximize`. Every restart has its
    own memory and its own step, halved until the density rises (Armijo), and rests once two steps in a row have gained
    less than `tolerance` of its size.

    Parameters
    ----------
    density
        What to maximise.
    starts
        Unconstrained starting vectors.
    num_steps
        Steps at the most.
    tolerance
        Relative gain below which a restart has converged.
    held
        Sites that stay where they start.
    progress, label
        Progress bar and its label.

    Returns
    -------
    Maximum
        All restarts.

    Raises
    ------
    NumericalError
        If no restart starts at a finite log density and gradient.
    """
    climb = _Climb(density, starts, held)
    if not bool(torch.isfinite(climb.value).any()):
        raise NumericalError(f"{label}: no restart starts at a finite log density")
    history, interrupted, idle = [climb.value], False, torch.zeros_like(climb.value)
    try:
        for _ in tqdm(range(num_steps), desc=label, disable=not progress, leave=False):
            before = climb.value
            climb.step(idle < 2)
            idle = torch.where(climb.value - before > tolerance * (1 + before.abs()), torch.zeros_like(idle), idle + 1)
            history.append(climb.value)
            if bool((idle >= 2).all()):
                break
    except KeyboardInterrupt:
        interrupted = True
    return Maximum(climb.points, climb.value, torch.stack(history), interrupted)


class _Climb:
    """L-BFGS with a memory for each restart (Nocedal and Wright 2006, algorithm 7.4)."""

    def __init__(self, density: LogDensity, starts: Tensor, held: Iterable[str]) -> None:
        self.density, self.points = density, starts.detach().clone()
        self.free = starts.new_ones(starts.shape[1])
        slices = density.slices()
        for name in held:
            if name in slices:
                self.free[slices[name]] = 0.0
        self.value, self.gradient = self._at(self.points)
        self.memory: list[tuple[Tensor, Tensor, Tensor]] = []
        self.scale = 0.1 / (self.gradient.norm(dim=-1, keepdim=True) + 1e-12)  # of the inverse curvature

    def _at(self, points: Tensor) -> tuple[Tensor, Tensor]:
        points = points.detach().requires_grad_()
        value = self.density(points, jacobian=False)
        gradient = torch.autograd.grad(value.sum(), points)[0] * self.free
        bad = ~(torch.isfinite(value) & torch.isfinite(gradient).all(-1))
        return value.detach().masked_fill(bad, -torch.inf), gradient.masked_fill(bad.unsqueeze(-1), 0.0)

    def step(self, active: Tensor) -> None:
        direction = self._direction()
        slope = (direction * self.gradient).sum(-1)
        uphill = slope > 0
        direction = torch.where(uphill.unsqueeze(-1), direction, self.scale * self.gradient)
        slope = torch.where(uphill, slope, (direction * self.gradient).sum(-1))
        size = torch.ones_like(slope)
        points, value, gradient = self.points, self.value, self.gradient
        waiting = active & (slope > 0)
        for _ in range(HALVINGS):
            if not bool(waiting.any()):
                break
            tried = torch.where(waiting.unsqueeze(-1), self.points + size.unsqueeze(-1) * direction, points)
            new_value, new_gradient = self._at(tried)
            good = waiting & (new_value >= self.value + 1e-4 * size * slope)
            points = torch.where(good.unsqueeze(-1), tried, points)
            value, gradient = (
                torch.where(good, new_value, value),
                torch.where(good.unsqueeze(-1), new_gradient, gradient),
            )
            waiting = waiting & ~good
            size = torch.where(waiting, size / 2, size)
        self._remember(points - self.points, self.gradient - gradient)
        self.points, self.value, self.gradient = points, value, gradient

    def _direction(self) -> Tensor:
        q, weights = self.gradient, []
        for s, y, rho in reversed(self.memory):
            weight = rho * (s * q).sum(-1, keepdim=True)
            q = q - weight * y
            weights.append(weight)
        q = q * self.scale
        for (s, y, rho), weight in zip(self.memory, reversed(weights), strict=True):
            q = q + s * (weight - rho * (y * q).sum(-1, keepdim=True))
        return q

    def _remember(self, step: Tensor, change: Tensor) -> None:
        """Keep a pair; a restart where the density is not concave along the step keeps none (its rho is 0)."""
        product = (step * change).sum(-1, keepdim=True)
        usable = product > 1e-10 * change.square().sum(-1, keepdim=True)
        rho = torch.where(usable, 1 / torch.where(usable, product, torch.ones_like(product)), torch.zeros_like(product))
        size = change.square().sum(-1, keepdim=True)
        self.scale = torch.where(usable, product / torch.where(usable, size, torch.ones_like(size)), self.scale)
        self.memory = [*self.memory[1 - MEMORY :], (step, change, rho)]
