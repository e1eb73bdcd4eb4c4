"""Hamiltonian Monte Carlo in whitened coordinates, all chains in one computation.

Pyro's HMC runs chains one after another (or in processes) and pays its overhead for each leapfrog step of each; here
eight chains cost little more than one, and a fixed whitening from the curvature at the mode replaces the long
adaptation of a mass matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..models.parts.errors import NumericalError

if TYPE_CHECKING:
    from jaxtyping import Float

Density = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Chains:
    """Draws of `whitened_hmc`.

    Attributes
    ----------
    draws
        Unconstrained vectors.
    log_density
        Log density of each (with Jacobian).
    acceptance
        Mean acceptance probability of each chain after warm-up.
    step_size
        Adapted step size of each chain.
    divergences
        Number of transitions of each chain, after warm-up, whose energy error passed 1000.
    interrupted
        Whether Ctrl-C ended it early; the draws so far are kept.
    """

    draws: Float[Tensor, "chain draw dim"]
    log_density: Float[Tensor, "chain draw"]
    acceptance: Float[Tensor, " chain"]
    step_size: Float[Tensor, " chain"]
    divergences: Float[Tensor, " chain"]
    interrupted: bool


def negative_hessian(log_density: Density, point: Float[Tensor, "chain dim"]) -> Float[Tensor, "chain dim dim"]:
    """Minus the second derivatives of `log_density` at one point a chain."""
    point = point.detach().requires_grad_()
    gradient = torch.autograd.grad(log_density(point).sum(), point, create_graph=True)[0]
    rows = [torch.autograd.grad(gradient[:, i].sum(), point, retain_graph=True)[0] for i in range(point.shape[-1])]
    hessian = -torch.stack(rows, 1)
    return 0.5 * (hessian + hessian.mT)


def whitening(curvature: Float[Tensor, "chain dim dim"], floor: float = 1.0) -> Float[Tensor, "chain dim dim"]:
    """A root of the inverse curvature, eigenvalues below `floor` raised to it: columns are unit steps.

    Raises
    ------
    NumericalError
        If the curvature is not finite.
    """
    if not bool(torch.isfinite(curvature).all()):
        raise NumericalError("HMC: the curvature at the starting point is not finite")
    values, vectors = torch.linalg.eigh(curvature)
    return vectors * values.clamp(min=floor).rsqrt().unsqueeze(-2)


def whitened_hmc(
    log_density: Density,
    starts: Float[Tensor, "chain dim"],
    roots: Float[Tensor, "chain dim dim"],
    *,
    num_warmup: int = 200,
    num_draws: int = 400,
    num_leapfrog: int = 8,
    target_acceptance: float = 0.8,
    progress: bool = True,
    label: str = "HMC",
) -> Chains:
    """Sample with unit mass in the coordinates ``theta = start + root @ z``, one step size a chain.

    The step size is adapted by dual averaging (Hoffman and Gelman, 2014) during warm-up and jittered by 20 % in every
    transition, so that fixed-length trajectories cannot fall into a cycle.

    Parameters
    ----------
    log_density
        Log density of unconstrained vectors, vectorised over chains.
    starts
        Where chains start and the origin of their coordinates.
    roots
        Whitening of each chain, see `whitening`.
    num_warmup, num_draws, num_leapfrog, target_acceptance
        Length of warm-up, draws kept, leapfrog steps of a transition, acceptance aimed at.
    progress, label
        Progress bar and its label.

    Raises
    ------
    NumericalError
        If the density at a start is not finite.
    """
    num_chains, dim = starts.shape

    def at(z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        value = log_density(starts + (roots @ z.unsqueeze(-1)).squeeze(-1))
        return value.detach(), torch.autograd.grad(value.sum(), z)[0]

    z = torch.zeros_like(starts)
    value, gradient = at(z)
    if not bool(torch.isfinite(value).all()):
        raise NumericalError(f"{label}: the log density at a starting point is {value.tolist()}")
    adapt = _DualAveraging(value.new_full((num_chains,), 0.6 / dim**0.25), target_acceptance)
    kept, values, accepted, diverged = [], [], [], []
    interrupted = False
    try:
        for step in tqdm(range(num_warmup + num_draws), desc=label, disable=not progress):
            warm = step < num_warmup
            size = adapt.size if warm else adapt.final
            size = (size * (0.8 + 0.4 * torch.rand_like(size))).unsqueeze(-1)
            momentum = torch.randn_like(z)
            new_z, new_momentum, new_value, new_gradient = _leapfrog(at, z, momentum, gradient, size, num_leapfrog)
            change = new_value - value + 0.5 * (momentum.square() - new_momentum.square()).sum(-1)
            change = torch.where(torch.isfinite(change), change, torch.full_like(change, -torch.inf))
            probability = change.exp().clamp(max=1.0)
            take = torch.rand_like(probability) < probability
            z = torch.where(take.unsqueeze(-1), new_z, z)
            gradient = torch.where(take.unsqueeze(-1), new_gradient, gradient)
            value = torch.where(take, new_value, value)
            if warm:
                adapt.update(probability)
            else:
                kept.append(z)
                values.append(value)
                accepted.append(probability)
                diverged.append(change < -1000)
    except KeyboardInterrupt:
        interrupted = True
        if not kept:
            raise
    draws = starts.unsqueeze(1) + torch.stack(kept, 1) @ roots.mT
    return Chains(
        draws,
        torch.stack(values, 1),
        torch.stack(accepted).mean(0),
        adapt.final,
        torch.stack(diverged).sum(0),
        interrupted,
    )


def _leapfrog(
    at: Callable[[Tensor], tuple[Tensor, Tensor]], z: Tensor, momentum: Tensor, gradient: Tensor, size: Tensor, num: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hamilton's equations for `num` steps: position, momentum, log density and gradient at the end."""
    momentum = momentum + 0.5 * size * gradient
    for i in range(num):
        z = z + size * momentum
        value, gradient = at(z)
        momentum = momentum + (0.5 if i == num - 1 else 1.0) * size * gradient
    return z, momentum, value, gradient


class _DualAveraging:
    def __init__(self, start: Tensor, target: float) -> None:
        self._target, self._centre = target, (10 * start).log()
        self._mean_error, self._log_mean, self._count = torch.zeros_like(start), start.log(), 0
        self.size = start

    @property
    def final(self) -> Tensor:
        return self._log_mean.exp()

    def update(self, acceptance: Tensor) -> None:
        self._count += 1
        t = self._count
        self._mean_error = self._mean_error + (self._target - acceptance - self._mean_error) / (t + 10)
        log_size = self._centre - self._mean_error * t**0.5 / 0.05
        weight = t**-0.75
        self._log_mean = weight * log_size + (1 - weight) * self._log_mean
        self.size = log_size.exp()
