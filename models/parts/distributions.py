"""Distributions that Pyro lacks: the spike-and-slab density and distributions over orders of the genes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def log_normal_density(value: Float[Tensor, "*shape"], scale: Tensor) -> Float[Tensor, "*shape"]:
    """Log density of a Normal of mean 0."""
    return -0.5 * (value / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)


class SpikeSlab(TorchDistribution):
    """Mixture of a wide and a narrow zero-mean Normal as one marginal density.

    Parameters
    ----------
    slab_probability
        Prior probability that an effect is real.
    slab_scale, spike_scale
        Standard deviations of real and of negligible effects, in units of the effect.
    """

    arg_constraints = {  # noqa: RUF012  (torch declares it as an instance attribute)
        "slab_probability": constraints.unit_interval,
        "slab_scale": constraints.positive,
        "spike_scale": constraints.positive,
    }
    support = constraints.real

    def __init__(
        self,
        slab_probability: float | Tensor = 0.3,
        slab_scale: float | Tensor = 0.8,
        spike_scale: float | Tensor = 0.05,
        validate_args: bool | None = None,
    ) -> None:
        self.slab_probability, self.slab_scale, self.spike_scale = broadcast_all(
            slab_probability, slab_scale, spike_scale
        )
        super().__init__(self.slab_probability.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> SpikeSlab:
        """Broadcast to `batch_shape`."""
        new = self._get_checked_instance(SpikeSlab, _instance)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        super(SpikeSlab, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """Zero."""
        return torch.zeros_like(self.slab_scale)

    @property
    def variance(self) -> Tensor:
        """Variance of the mixture."""
        return self.slab_probability * self.slab_scale**2 + (1 - self.slab_probability) * self.spike_scale**2

    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "*shape"]:
        """Draw: first the component, then the value."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            slab = torch.bernoulli(self.slab_probability.expand(shape)).bool()
            unit = torch.randn(shape, dtype=self.slab_scale.dtype, device=self.slab_scale.device)
            return unit * torch.where(slab, self.slab_scale, self.spike_scale)

    def log_prob(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Log of the marginal density."""
        if self._validate_args:
            self._validate_sample(value)
        return torch.logaddexp(
            self.slab_probability.log() + log_normal_density(value, self.slab_scale),
            torch.log1p(-self.slab_probability) + log_normal_density(value, self.spike_scale),
        )


class _Permutation(constraints.Constraint):
    """Integer vectors that hold 0..p-1 once each."""

    is_discrete = True
    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        ranks = torch.arange(value.shape[-1], device=value.device)
        return (value.sort(-1).values == ranks).all(-1)


permutation = _Permutation()


class UniformOrder(TorchDistribution):
    """Uniform distribution over the p! orders of the genes.

    A draw lists gene indices from first to last: ``order[a]`` can only act on ``order[b]`` with b > a.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = permutation

    def __init__(self, num_genes: int, device: torch.device | None = None) -> None:
        self.num_genes, self.device = num_genes, device
        super().__init__(torch.Size(), torch.Size([num_genes]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> UniformOrder:
        """Broadcast to `batch_shape`."""
        new = self._get_checked_instance(UniformOrder, _instance)
        new.num_genes, new.device = self.num_genes, self.device
        super(UniformOrder, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        return new

    def sample(self, sample_shape: Any = ()) -> Int[Tensor, "*shape gene"]:
        """Draw orders."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return torch.rand(shape, device=self.device).argsort(-1)

    def log_prob(self, value: Int[Tensor, "*shape gene"]) -> Float[Tensor, "*shape"]:
        """Minus log p! for every order."""
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return torch.full(shape, -math.lgamma(self.num_genes + 1), device=value.device)


class FiniteOrders(TorchDistribution):
    """Distribution over a few distinct orders with given weights.

    Parameters
    ----------
    orders
        Distinct orders of the genes.
    weights
        Their probabilities.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = permutation

    def __init__(self, orders: Int[Tensor, "component gene"], weights: Float[Tensor, " component"]) -> None:
        self.orders, self.weights = orders, weights
        super().__init__(torch.Size(), orders.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> FiniteOrders:
        """Broadcast to `batch_shape`."""
        new = self._get_checked_instance(FiniteOrders, _instance)
        new.orders, new.weights = self.orders, self.weights
        super(FiniteOrders, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        return new

    def sample(self, sample_shape: Any = ()) -> Int[Tensor, "*shape gene"]:
        """Draw orders by their weights."""
        shape = self._extended_shape(torch.Size(sample_shape))[:-1]
        pick = torch.multinomial(self.weights, max(1, shape.numel()), replacement=True)
        return self.orders[pick.reshape(shape)]

    def index(self, value: Int[Tensor, "*shape gene"]) -> Int[Tensor, "*shape"]:
        """Which component an order is; -1 when it is none of them."""
        same = (value.unsqueeze(-2) == self.orders).all(-1)
        found = same.long().argmax(-1)
        return torch.where(same.any(-1), found, torch.full_like(found, -1))

    def log_prob(self, value: Int[Tensor, "*shape gene"]) -> Float[Tensor, "*shape"]:
        """Log weight of the order, minus infinity outside the listed ones."""
        index = self.index(value)
        log_weight = self.weights.log()[index.clamp(min=0)]
        log_weight = torch.where(index >= 0, log_weight, torch.full_like(log_weight, -math.inf))
        return log_weight.expand(torch.broadcast_shapes(log_weight.shape, self.batch_shape))
