"""Posteriors of environments: targets, shifts and their rates, one class for each kind of prior.

| prior | posterior |
|---|---|
| `StandardPrior`, `GatedShifts`, dense `DescriptorShifts` | `PointPosterior`: nothing is drawn |
| `SingleEffects` | `SingleEffectsPosterior`: closed forms |
| `SpikeSlabShifts`, sparse `DescriptorShifts` | `SpikeSlabPosterior`, `DescriptorPosterior`: closed forms |
| `MaskedShifts` | `MaskedPosterior`: parameters |

Targets enter the bound of the cells through the mean and variance of the environments' means alone, so that nothing has
to be sampled: the expected KL of a cell is that of Normal(E mean_e, I) plus half the sum of Var mean_e.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ...models.parts.environment_priors import (
    DescriptorShifts,
    EnvironmentPrior,
    GatedShifts,
    MaskedShifts,
    SingleEffects,
    SpikeSlabShifts,
    StandardPrior,
)
from ...models.parts.errors import SchemaError
from ...models.parts.shift_priors import indicators
from .environment_base import EnvironmentPosterior, EnvironmentStatistics, Moments, ShiftPosterior, belongs
from .single_effects import SingleEffectsPosterior
from .spike_slab import DescriptorPosterior, SpikeSlabPosterior

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = [
    "ENVIRONMENT_POSTERIORS",
    "DescriptorPosterior",
    "EnvironmentPosterior",
    "EnvironmentStatistics",
    "MaskedPosterior",
    "Moments",
    "PointPosterior",
    "ShiftPosterior",
    "SingleEffectsPosterior",
    "SpikeSlabPosterior",
    "posterior_for",
]


class PointPosterior(EnvironmentPosterior):
    """For priors without sites: means are what the prior's parameters say."""

    def forward(self, prior: EnvironmentPrior, descriptors: Tensor | None = None) -> None:
        """Nothing to draw."""

    def moments(self, prior: EnvironmentPrior, descriptors: Tensor | None = None) -> Moments:
        """The prior's own law, with variance 0."""
        law = prior(descriptors)
        return Moments(law.mean, torch.zeros_like(law.mean), law.log_scale)

    def kl(self, prior: EnvironmentPrior, descriptors: Tensor | None = None) -> Float[Tensor, ""]:
        """Zero: there are no sites."""
        return self.active.new_zeros(())


class MaskedPosterior(EnvironmentPosterior):
    """Guide of sVAE+ (Lopez et al., 2023): a probability for every mask, and rates equal to it.

    The published objective sets the prior rate of a mask to the posterior probability q of the mask. Their KL vanishes,
    and minus log Beta(q; 1, K) is left: a maximum a posteriori, not a bound. Masks are integrated exactly by `moments`;
    `relaxed_mask` draws them as the published training does.

    Parameters
    ----------
    num_environments, num_latents, control
        As the prior's.
    logit
        Starting value of all logits; 5 as published.
    """

    def __init__(
        self, num_environments: int, num_latents: int, control: int | None = None, *, logit: float = 5.0
    ) -> None:
        super().__init__(num_environments, num_latents, control)
        self.logits = nn.Parameter(torch.full((num_environments, num_latents), float(logit)))

    def forward(self, prior: EnvironmentPrior, descriptors: Tensor | None = None) -> None:
        """Rates at their point masses, then masks."""
        probability = self.logits.sigmoid()
        pyro.sample("target_rate", dist.Delta(probability, event_dim=2))
        pyro.sample("is_target", indicators(probability, self.active))

    def moments(self, prior: EnvironmentPrior, descriptors: Tensor | None = None) -> Moments:
        """Exact moments of mask times shift."""
        probability, size = self.target_probability(), belongs(prior, MaskedShifts).size
        return Moments(probability * size, probability * (1 - probability) * size**2)

    def kl(self, prior: EnvironmentPrior, descriptors: Tensor | None = None) -> Float[Tensor, ""]:
        """Minus log Beta(q; 1, K) over all environments but the control."""
        K = belongs(prior, MaskedShifts).sparsity
        return -(self.active * (math.log(K) + (K - 1) * logsigmoid(-self.logits))).sum()

    def relaxed_mask(
        self, environment: Int[Tensor, " cell"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "cell latent"]:
        """Masks of cells, 0 or 1, with the gradient of a logistic relaxation of temperature 1 (straight through).

        Parameters
        ----------
        environment
            Environment of every cell; cells draw their masks independently.
        generator
            Source of the noise; torch's global one by default.
        """
        logits = self.logits[environment]
        uniform = torch.rand(logits.shape, dtype=logits.dtype, device=logits.device, generator=generator)
        soft = (logits + uniform.logit(eps=torch.finfo(logits.dtype).eps)).sigmoid()
        return ((soft > 0.5).to(soft) + (soft - soft.detach())) * self.active[environment]

    def target_probability(self) -> Float[Tensor, "condition latent"]:
        """Probability of the mask."""
        return self.logits.sigmoid() * self.active


POSTERIOR_OF: dict[type[EnvironmentPrior], type[EnvironmentPosterior]] = {
    StandardPrior: PointPosterior,
    GatedShifts: PointPosterior,
    SingleEffects: SingleEffectsPosterior,
    SpikeSlabShifts: SpikeSlabPosterior,
    MaskedShifts: MaskedPosterior,
}

ENVIRONMENT_POSTERIORS: dict[str, type[EnvironmentPosterior]] = {
    cls.__name__: cls
    for cls in (PointPosterior, SingleEffectsPosterior, SpikeSlabPosterior, MaskedPosterior, DescriptorPosterior)
}


def posterior_for(prior: EnvironmentPrior, **options: Any) -> EnvironmentPosterior:
    """The posterior that belongs to a prior, at its starting values, on its device and in its dtype.

    Parameters
    ----------
    prior
        Prior of the environments.
    **options
        Passed to the class of the posterior, such as ``misfit=0.0`` for `SingleEffectsPosterior`.

    Raises
    ------
    SchemaError
        If there is no posterior for the prior, or one of its own priors has no closed form.
    """
    if isinstance(prior, DescriptorShifts):
        return (DescriptorPosterior if prior.sparse else PointPosterior).for_prior(prior, **options)
    for kind, posterior in POSTERIOR_OF.items():
        if isinstance(prior, kind):
            return posterior.for_prior(prior, **options)
    raise SchemaError(f"prior: found {type(prior).__name__}; wanted one of {sorted(k.__name__ for k in POSTERIOR_OF)}")
