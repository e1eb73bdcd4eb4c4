"""Priors of environments with data, and what tests ask of their posteriors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from embergraph.guides.parts.environment_posteriors import (
    EnvironmentPosterior,
    EnvironmentStatistics,
    posterior_for,
)
from embergraph.models.parts.environment_priors import (
    DescriptorShifts,
    EnvironmentPrior,
    GatedShifts,
    MaskedShifts,
    SingleEffects,
    SpikeSlabShifts,
    StandardPrior,
)

E, D, F = 5, 3, 2
CONTROL = 1
DOUBLE = {"dtype": torch.double}

MAKE: dict[str, Any] = {
    "standard": StandardPrior,
    "gated": lambda *a: GatedShifts(*a, scales=True),
    "gated network": lambda *a: GatedShifts(*a, gate="sparsemax", num_features=F),
    "single": lambda *a: SingleEffects(*a, max_targets=2),
    "spike": SpikeSlabShifts,
    "masked": MaskedShifts,
    "dense": lambda *a: DescriptorShifts(*a, num_features=F),
    "sparse": lambda *a: DescriptorShifts(*a, num_features=F, sparse=True),
}
CLOSED = ("single", "spike", "sparse")


def statistics(seed: int, rows: int = E, latents: int = D, scale: float = 1.0) -> EnvironmentStatistics:
    """Few cells, with means that leave targets in doubt; no environment is empty."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.randint(2, 12, (rows,), generator=generator).double()
    mean = scale * torch.randn(rows, latents, generator=generator, **DOUBLE)
    return EnvironmentStatistics(count, mean, torch.full((latents,), 0.3, **DOUBLE))


def case(name: str, seed: int = 0, **options: Any) -> tuple[EnvironmentPrior, EnvironmentPosterior, Tensor]:
    """Prior in double precision away from its start, its posterior, descriptors."""
    torch.manual_seed(seed)
    prior = MAKE[name](E, D, CONTROL).double()
    u = torch.randn(E, F, **DOUBLE)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    posterior = posterior_for(prior, **options)
    with torch.no_grad():
        for parameter in posterior.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return prior, posterior, u


def bound(
    prior: EnvironmentPrior, posterior: EnvironmentPosterior, found: EnvironmentStatistics, u: Tensor | None = None
) -> float:
    """The part of the bound that environments touch: expected log prior of the cells minus KL."""
    with torch.no_grad():
        moments = posterior.moments(prior, u)
        square = (found.mean - moments.mean) ** 2 + moments.variance
        return float(-(found.count[:, None] * square).sum() / 2 - posterior.kl(prior, u))
