"""Sparse priors of edges as marginal densities: nothing discrete, and no local scale, is left to sample.

| prior | density of the effects |
|---|---|
| `SpikeSlab` (in `distributions`) | pi Normal(0, slab^2) + (1 - pi) Normal(0, spike^2), each effect by itself |
| `SharedSpikeSlab` | pi prod_k Normal(w_k; 0, slab^2) + (1 - pi) prod_k Normal(w_k; 0, spike^2), one gate an edge |
| `Horseshoe` | Normal(0, lambda^2 tau^2) with lambda ~ HalfCauchy(1) integrated out |
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from .distributions import SpikeSlab, log_normal_density
from .kinds import Part

if TYPE_CHECKING:
    from jaxtyping import Float

_NUM_TERMS = 40  # of the series and of the continued fraction: 1e-12 where they meet


class Horseshoe(TorchDistribution):
    """The horseshoe (Carvalho, Polson and Scott, 2010) with its local scale integrated out.

    p(w) = exp(u) E1(u) / (sqrt(2 pi^3) tau) with u = w^2 / (2 tau^2) and E1 the exponential integral: infinite at zero,
    with tails like those of a Cauchy distribution. A learned tau is a hierarchy, a callable that samples it.

    Parameters
    ----------
    scale
        tau, about the size below which effects are taken for zero.
    """

    arg_constraints = {"scale": constraints.positive}  # noqa: RUF012
    support = constraints.real

    def __init__(self, scale: float | Tensor = 0.1, validate_args: bool | None = None) -> None:
        self.scale = torch.as_tensor(scale, dtype=None if isinstance(scale, Tensor) else torch.get_default_dtype())
        super().__init__(self.scale.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Horseshoe:
        """Broadcast to `batch_shape`."""
        new = self._get_checked_instance(Horseshoe, _instance)
        new.scale = self.scale.expand(batch_shape)
        super(Horseshoe, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """Median and centre, zero; the distribution has no mean."""
        return torch.zeros_like(self.scale)

    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "*shape"]:
        """Draw: first the local scale, then the effect."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            local = torch.distributions.HalfCauchy(torch.ones_like(self.scale)).expand(shape).sample()
            return torch.randn(shape, dtype=self.scale.dtype, device=self.scale.device) * local * self.scale

    def log_prob(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Log of the marginal density."""
        if self._validate_args:
            self._validate_sample(value)
        u = 0.5 * (value / self.scale).square()
        return _log_scaled_e1(u) - self.scale.log() - 0.5 * math.log(2 * math.pi**3)


def _log_scaled_e1(u: Tensor) -> Tensor:
    """log(exp(u) E1(u)) for u >= 0: a series below 1, Lentz's continued fraction above."""
    u = u.clamp_min(torch.finfo(u.dtype).tiny)
    small = u < 1.0
    low, high = torch.where(small, u, torch.ones_like(u)), torch.where(small, torch.ones_like(u), u)
    term, series = torch.ones_like(low), torch.zeros_like(low)
    for k in range(1, _NUM_TERMS // 2):
        term = -term * low / k
        series = series - term / k
    below = low + (series - low.log() - 0.5772156649015329).log()
    fraction = torch.zeros_like(high)
    for k in range(_NUM_TERMS, 0, -1):  # e^u E1(u) = 1 / (u + 1 - 1 / (u + 3 - 4 / (u + 5 - ...)))
        fraction = k * k / (high + 2 * k + 1 - fraction)
    above = -(high + 1 - fraction).log()
    return torch.where(small, below, above)


class StructuredPrior(Part):
    """A prior of all edges together, which a settings file may name; ``forward(shape)`` is the distribution."""

    family = "edge prior"


class SharedSpikeSlab(StructuredPrior):
    """A spike and slab whose gate is shared by the archetypes: an edge is real in all of them, or in none.

    Parameters
    ----------
    slab_probability
        Prior probability that an edge is real.
    slab_scale, spike_scale
        Standard deviations of real and of negligible effects.
    """

    kind = "shared_spike_slab"
    slab_probability: Tensor
    slab_scale: Tensor
    spike_scale: Tensor

    def __init__(self, slab_probability: float = 0.3, slab_scale: float = 0.8, spike_scale: float = 0.05) -> None:
        super().__init__()
        SpikeSlab(slab_probability, slab_scale, spike_scale, validate_args=True)  # refuses numbers out of range
        self._numbers = {
            "slab_probability": float(slab_probability),
            "slab_scale": float(slab_scale),
            "spike_scale": float(spike_scale),
        }
        for name, value in self._numbers.items():
            self.register_buffer(name, torch.tensor(value))

    def forward(self, shape: tuple[int, ...]) -> TorchDistribution:
        """The law of effects (archetype, ...)."""
        return _SharedGates(self.slab_probability, self.slab_scale, self.spike_scale, shape)

    def settings(self) -> dict[str, Any]:
        """JSON description."""
        return super().settings() | self._numbers


class _SharedGates(TorchDistribution):
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, probability: Tensor, slab: Tensor, spike: Tensor, shape: tuple[int, ...]) -> None:
        self.probability, self.slab, self.spike = probability, slab, spike
        super().__init__(torch.Size(), torch.Size(shape), validate_args=False)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """Real numbers."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> _SharedGates:
        new = self._get_checked_instance(_SharedGates, _instance)
        new.probability, new.slab, new.spike = self.probability, self.slab, self.spike
        super(_SharedGates, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        return new

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        outer = shape[: len(shape) - len(self.event_shape)]
        with torch.no_grad():
            gates = torch.bernoulli(self.probability.expand(*outer, 1, *self.event_shape[1:])).bool()
            unit = torch.randn(shape, dtype=self.slab.dtype, device=self.slab.device)
            return unit * torch.where(gates, self.slab, self.spike)

    def log_prob(self, value: Tensor) -> Tensor:
        archetype = -len(self.event_shape)
        slab, spike = (log_normal_density(value, scale).sum(archetype) for scale in (self.slab, self.spike))
        edge = torch.logaddexp(self.probability.log() + slab, torch.log1p(-self.probability) + spike)
        return edge.flatten(edge.dim() - len(self.event_shape) + 1).sum(-1)
