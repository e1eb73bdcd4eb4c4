"""Posterior draws as modes of randomly perturbed posteriors, many at once.

Each draw maximises the log joint density after two perturbations: observations get independent Exponential(1) weights
of mean one (the weighted likelihood bootstrap of Newton and Raftery, 1994), and the centre of every prior moves by a
random amount with the variance that the prior has there (as Nie and Rockova, 2022, move the spike of a spike and slab).
For linear Gaussian models and many observations the draws are from the posterior; elsewhere they are an approximation
that needs neither gradients without jumps nor one connected mode, which Markov chains do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor

from .density import LogDensity
from .messengers import is_deterministic, is_factor, is_plate

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Perturbation:
    """What is changed for each draw.

    Attributes
    ----------
    weights
        Weights of the observations.
    shift
        By how much the centres of the priors move, in units of the unconstrained vector.
    """

    weights: Float[Tensor, "draw row"]
    shift: Float[Tensor, "draw dim"]


class PerturbedDensity(LogDensity):
    """`density` with weights on the rows of a plate and moved priors.

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
        moved = self._density.unpack(vector - self._perturbation.shift)
        with _RowWeights(self._plate, self._perturbation.weights), _MovedPriors(moved):
            return self._density(vector, jacobian)


def perturb(
    density: LogDensity, starts: Float[Tensor, "start dim"], plate: str, num_pairs: int
) -> tuple[Float[Tensor, "draw dim"], Perturbation]:
    """Perturbations in antithetic pairs, which makes means over draws more precise.

    Parameters
    ----------
    density
        The log joint density.
    starts
        Modes that draws start from.
    plate
        The plate of the observations.
    num_pairs
        Pairs of draws a start.

    Returns
    -------
    tuple
        The start of each draw, those of one start in a row, and the perturbations.
    """
    draws = starts.repeat_interleave(2 * num_pairs, 0)
    spread = prior_spread(density, torch.zeros_like(starts[:1]))
    uniform = torch.rand(len(draws) // 2, density.plate_sizes[plate], dtype=starts.dtype, device=starts.device)
    uniform = uniform.clamp(1e-12, 1 - 1e-12)
    normal = torch.randn_like(draws[::2]) * spread
    weights = -torch.stack([uniform, 1 - uniform], 1).log().flatten(0, 1)
    shift = torch.stack([normal, -normal], 1).flatten(0, 1)
    return draws, Perturbation(weights / weights.mean(-1, keepdim=True), shift)


def prior_spread(density: LogDensity, points: Float[Tensor, "draw dim"]) -> Float[Tensor, "draw dim"]:
    """Standard deviation that the curvature of the log prior stands for, along each unconstrained coordinate.

    The spike's for a spike and slab at 0. Zero where the log prior is linear or convex (Laplace): its centre stays. For
    priors that are independent over coordinates; row sums of the Hessian elsewhere.
    """
    points = points.detach().requires_grad_()
    terms = density.terms(points)
    prior = torch.stack([terms[name] for name in density.shapes]).sum()
    gradient = torch.autograd.grad(prior, points, create_graph=True)[0]
    second = None
    if gradient.requires_grad:  # else the prior is linear in all coordinates
        second = torch.autograd.grad(gradient.sum(), points, allow_unused=True)[0]
    curvature = torch.zeros_like(points) if second is None else -second
    found = (curvature > 0) & torch.isfinite(curvature)
    return torch.where(found, curvature, torch.ones_like(curvature)).rsqrt() * found


class _MovedPriors(Messenger):
    """Score latent sites at values of their own in place of those that the model goes on with."""

    def __init__(self, moved: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._moved = moved

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self._moved and not is_plate(msg):
            msg["fn"] = _ScoredElsewhere(msg["fn"], self._moved[msg["name"]])


class _ScoredElsewhere(TorchDistribution):
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, base: Any, value: Tensor) -> None:
        self._base, self._value = base, value
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _ScoredElsewhere:
        return _ScoredElsewhere(self._base.expand(batch_shape), self._value)

    def log_prob(self, value: Tensor) -> Tensor:
        return self._base.log_prob(self._value)


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
