"""Posterior draws as modes of randomly perturbed posteriors, many at once.

Each draw maximises the log joint density after two perturbations: observations get independent Exponential(1) weights
of mean one (the weighted likelihood bootstrap of Newton and Raftery, 1994), and the log prior a random linear term with
the variance of its own curvature, which in a Gaussian prior is the same as moving its centre to a draw from it (as Nie
and Rockova, 2022, do for the spike of a spike and slab). For linear Gaussian models and many observations the draws are
from the posterior; elsewhere they are an approximation that needs neither gradients without jumps nor one connected
mode, which Markov chains do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from .density import LogDensity
from .maximum import Maximum
from .messengers import is_deterministic, is_factor, is_plate

if TYPE_CHECKING:
    from jaxtyping import Float

Optimiser = Callable[[LogDensity, Tensor], Maximum]


@dataclass(frozen=True)
class Perturbation:
    """What is changed for each draw.

    Attributes
    ----------
    weights
        Weights of the observations.
    tilt
        Coefficients of the linear term, in units of the unconstrained vector.
    """

    weights: Float[Tensor, "draw row"]
    tilt: Float[Tensor, "draw dim"]


class PerturbedDensity(LogDensity):
    """`density` with weights on the rows of a plate and a linear term.

    Parameters
    ----------
    density
        The log joint density; it is shared, not copied.
    perturbation
        One for each vector that the result is called with.
    plate
        The plate whose rows have weights; those of the observed sites in it are multiplied.
    """

    def __init__(self, density: LogDensity, perturbation: Perturbation, plate: str) -> None:
        self.__dict__.update(density.__dict__)
        self._density, self._perturbation, self._plate = density, perturbation, plate

    def __call__(self, vector: Float[Tensor, "draw dim"], jacobian: bool = True) -> Float[Tensor, " draw"]:
        """Perturbed log density."""
        with _RowWeights(self._plate, self._perturbation.weights):
            return self._density(vector, jacobian) + (self._perturbation.tilt * vector).sum(-1)


def perturb(
    density: LogDensity, starts: Float[Tensor, "start dim"], plate: str, num_pairs: int
) -> tuple[Float[Tensor, "draw dim"], Perturbation]:
    """Perturbations in antithetic pairs, which makes means over draws more precise.

    Parameters
    ----------
    density
        The log joint density.
    starts
        Modes that draws start from, and where the curvature of the prior is taken.
    plate
        The plate of the observations.
    num_pairs
        Pairs of draws a start.

    Returns
    -------
    tuple
        The start of each draw, those of one start in a row, and the perturbations.
    """
    curvature = prior_curvature(density, starts).repeat_interleave(num_pairs, 0)
    uniform = torch.rand(len(curvature), density.plate_sizes[plate], dtype=starts.dtype, device=starts.device)
    uniform = uniform.clamp(1e-12, 1 - 1e-12)
    normal = torch.randn_like(curvature) * curvature.sqrt()
    weights = -torch.stack([uniform, 1 - uniform], 1).log().flatten(0, 1)
    tilt = torch.stack([normal, -normal], 1).flatten(0, 1)
    weights = weights / weights.mean(-1, keepdim=True)
    return starts.repeat_interleave(2 * num_pairs, 0), Perturbation(weights, tilt)


def prior_curvature(density: LogDensity, points: Float[Tensor, "draw dim"]) -> Float[Tensor, "draw dim"]:
    """Minus the second derivatives of the log prior along each coordinate, zero where it is convex.

    Exact for priors that are independent over coordinates; row sums of the Hessian elsewhere.
    """
    points = points.detach().requires_grad_()
    terms = density.terms(points)
    prior = torch.stack([terms[name] for name in density.shapes]).sum()
    gradient = torch.autograd.grad(prior, points, create_graph=True)[0]
    if not gradient.requires_grad:  # a prior that is linear in all coordinates
        return torch.zeros_like(points)
    second = torch.autograd.grad(gradient.sum(), points, allow_unused=True)[0]
    return torch.zeros_like(points) if second is None else (-second).clamp(min=0.0)


class _RowWeights(Messenger):
    """Multiply the log probabilities of the observed sites in a plate by weights of its rows."""

    def __init__(self, plate: str, weights: Tensor) -> None:
        super().__init__()
        self._plate, self._weights, self._rows = plate, weights, slice(None)

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_plate(msg) and msg["name"] == self._plate:
            self._rows = msg["value"]

    def _pyro_sample(self, msg: Any) -> None:
        inside = any(frame.name == self._plate for frame in msg["cond_indep_stack"])
        if inside and msg["is_observed"] and not is_deterministic(msg) and not is_factor(msg):
            msg["scale"] = msg["scale"] * self._weights[:, self._rows]
