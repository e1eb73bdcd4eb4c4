"""Posteriors of shifts with any number of targets: every entry a spike at 0 or a Normal slab.

    q = prod_ek q(is_target_ek) q(size_ek | is_target_ek),   point mass at tau^2

With n cells of mean E[z] zbar, and prior mean m of the size,

    q(size | target) = Normal(v (n zbar + m / tau^2), v),   v = 1 / (n + 1 / tau^2)
    logit q(is_target) = E[log rho - log(1 - rho)] - log(1 + n tau^2) / 2 + (E[size | target]^2 / v - m^2 / tau^2) / 2
    q(rho_k) = Beta(a + sum_e q(is_target_ek), b + sum_e 1 - q(is_target_ek))

The term -log(1 + n tau^2) / 2 is the price of a free shift, which point estimates of shifts do not pay.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ...models.parts.environment_law import EnvironmentPrior
from ...models.parts.environment_priors import DescriptorShifts
from ...models.parts.errors import DataError
from ...models.parts.shift_priors import SpikeSlabShifts, indicators
from .environment_base import EnvironmentPosterior, ShiftPosterior, belongs, normal_kl, variance_prior, wanted_prior

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["DescriptorPosterior", "SpikeSlabPosterior"]


class _EntryPosterior(ShiftPosterior):
    """What the two posteriors share; they differ in the prior odds of a target.

    Parameters
    ----------
    num_environments, num_latents, control
        As the prior's.
    num_sweeps
        Rounds over targets, rates and tau^2 in an update.
    """

    probability: Tensor
    size_mean: Tensor
    size_variance: Tensor

    def __init__(
        self, num_environments: int, num_latents: int, control: int | None = None, *, num_sweeps: int = 3
    ) -> None:
        super().__init__(num_environments, num_latents, control)
        if num_sweeps < 1:
            raise DataError(f"num_sweeps: found {num_sweeps}; wanted at least 1")
        self.num_sweeps = num_sweeps
        for name, start in (("probability", 0.0), ("size_mean", 0.0), ("size_variance", 1.0)):
            self.register_buffer(name, torch.full((num_environments, num_latents), start))

    @abstractmethod
    def log_rates(self, prior: EnvironmentPrior, descriptors: Tensor | None) -> tuple[Tensor, Tensor]:
        """Expected log prior probability of a target and of none, in double precision."""

    def learn_rates(self, prior: EnvironmentPrior, count: Float[Tensor, " condition"]) -> None:
        """Update the rates of targets, where they are sites."""

    def draw_rates(self) -> None:
        """Draw the rates of targets, where they are sites."""

    def draw(self, prior: EnvironmentPrior, descriptors: Tensor | None) -> None:
        """Point mass, rates, then targets, then sizes given the targets."""
        variance = pyro.sample("shift_variance", dist.Delta(self.shift_variance))
        self.draw_rates()
        is_target = pyro.sample("is_target", indicators(self.probability, self.active))
        prior_scale = variance.sqrt()[..., None, None].expand(is_target.shape)
        prior_loc = self.location(prior, descriptors).to(prior_scale).expand(is_target.shape)
        loc = torch.where(is_target > 0, self.size_mean, prior_loc)
        scale = torch.where(is_target > 0, self.size_variance.sqrt(), prior_scale)
        pyro.sample("size", dist.Normal(loc, scale).to_event(2))

    def effects_kl(self, prior: EnvironmentPrior, descriptors: Tensor | None) -> Float[Tensor, ""]:
        """KL of targets and sizes."""
        p, tau2 = self.probability.double(), self.shift_variance.double()
        target, none = self.log_rates(prior, descriptors)
        sizes = normal_kl(self.size_mean.double(), self.size_variance.double(), self.location(prior, descriptors), tau2)
        entropy = torch.special.entr(p) + torch.special.entr(1 - p)
        return (self.active.double() * (p * (sizes - target) - (1 - p) * none - entropy)).sum()

    def infer(
        self,
        prior: EnvironmentPrior,
        count: Float[Tensor, " condition"],
        zbar: Float[Tensor, "condition latent"],
        descriptors: Tensor | None,
    ) -> None:
        """Rounds of exact coordinate updates, each from where the last one ended."""
        location = self.location(prior, descriptors)
        rows = self.active.bool()
        for _ in range(self.num_sweeps):
            target, none = self.log_rates(prior, descriptors)
            tau2 = self.shift_variance.double()
            scaled = count[:, None] * tau2
            v = tau2 / (1 + scaled)
            m = v * (count[:, None] * zbar + location / tau2)
            log_odds = target - none + (m**2 / v - location**2 / tau2 - scaled.log1p()) / 2
            p = torch.where(rows, log_odds.sigmoid(), torch.zeros_like(log_odds))
            for name, value in (("probability", p), ("size_mean", m), ("size_variance", v.expand_as(m))):
                getattr(self, name).copy_(value)
            self.learn_rates(prior, count)
            self.most_probable_variance(variance_prior(prior), p, v + (m - location) ** 2)
        self.mean.copy_(p * m)
        self.variance.copy_(p * (v + m**2) - (p * m) ** 2)

    def target_probability(self) -> Float[Tensor, "condition latent"]:
        """Probability that the environment moves the latent."""
        return self.probability

    def settings(self) -> dict[str, Any]:
        """JSON description."""
        return {**super().settings(), "num_sweeps": self.num_sweeps}


class SpikeSlabPosterior(_EntryPosterior):
    """Posterior of `SpikeSlabShifts`; the control has no targets, environments without cells keep their prior."""

    rate_targets: Tensor
    rate_others: Tensor

    def __init__(
        self, num_environments: int, num_latents: int, control: int | None = None, *, num_sweeps: int = 3
    ) -> None:
        super().__init__(num_environments, num_latents, control, num_sweeps=num_sweeps)
        self.register_buffer("rate_targets", torch.ones(num_latents))  # a' of q(rho)
        self.register_buffer("rate_others", torch.ones(num_latents))  # b'

    @classmethod
    def for_prior(cls, prior: EnvironmentPrior, **options: Any) -> EnvironmentPosterior:
        """Start without targets, at the prior of the rates and the mode of tau^2.

        Raises
        ------
        SchemaError
            If tau^2 has no `InverseGamma` prior or the rates have no `Beta` prior.
        """
        prior = belongs(prior, SpikeSlabShifts)
        wanted_prior("variance_prior", prior.variance_prior, dist.InverseGamma)
        wanted_prior("rate_prior", prior.rate_prior, dist.Beta)
        made = super().for_prior(prior, **options)
        assert isinstance(made, SpikeSlabPosterior)
        made.start_at_mode(prior.variance_prior)
        made.size_variance.copy_(made.shift_variance)
        made.rate_targets.copy_(prior.rate_prior.get_buffer("concentration1"))
        made.rate_others.copy_(prior.rate_prior.get_buffer("concentration0"))
        return made

    def log_rates(self, prior: EnvironmentPrior, descriptors: Tensor | None) -> tuple[Tensor, Tensor]:
        """E log rho and E log(1 - rho)."""
        a, b = self.rate_targets.double(), self.rate_others.double()
        both = (a + b).digamma()
        return a.digamma() - both, b.digamma() - both

    def learn_rates(self, prior: EnvironmentPrior, count: Float[Tensor, " condition"]) -> None:
        """q(rho) given the targets of environments that have cells."""
        rate_prior = belongs(prior, SpikeSlabShifts).rate_prior
        p = self.probability[self.rows_with_cells(count)].double()
        self.rate_targets.copy_(rate_prior.get_buffer("concentration1") + p.sum(0))
        self.rate_others.copy_(rate_prior.get_buffer("concentration0") + (1 - p).sum(0))

    def draw_rates(self) -> None:
        """Draw rho."""
        pyro.sample("target_rate", dist.Beta(self.rate_targets, self.rate_others).to_event(1))

    def effects_kl(self, prior: EnvironmentPrior, descriptors: Tensor | None) -> Float[Tensor, ""]:
        """KL of targets, sizes and rates."""
        rates = belongs(prior, SpikeSlabShifts).rate_prior.expand((self.num_latents,)).base_dist
        own = dist.Beta(self.rate_targets, self.rate_others)
        return super().effects_kl(prior, descriptors) + torch.distributions.kl_divergence(own, rates).sum()


class DescriptorPosterior(_EntryPosterior):
    """Posterior of sparse `DescriptorShifts`: odds and mean of every entry come from its networks.

    The networks learn from the gradient of `kl`. Environments without cells keep their prior.
    """

    kl_has_gradient = True

    @classmethod
    def for_prior(cls, prior: EnvironmentPrior, **options: Any) -> EnvironmentPosterior:
        """Start without targets, at the mode of tau^2.

        Raises
        ------
        SchemaError
            If tau^2 has no `InverseGamma` prior.
        """
        prior = belongs(prior, DescriptorShifts)
        wanted_prior("variance_prior", prior.variance_prior, dist.InverseGamma)
        made = super().for_prior(prior, **options)
        assert isinstance(made, DescriptorPosterior)
        made.start_at_mode(prior.variance_prior)
        made.size_variance.copy_(made.shift_variance)
        return made

    def log_rates(self, prior: EnvironmentPrior, descriptors: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logs of sigmoid(R) and of 1 - sigmoid(R)."""
        prior = belongs(prior, DescriptorShifts)
        logit = prior.logit(prior.check_descriptors(descriptors, prior.num_features)).double()
        return logsigmoid(logit), logsigmoid(-logit)

    def location(self, prior: EnvironmentPrior, descriptors: Tensor | None) -> Float[Tensor, "condition latent"]:
        """D."""
        prior = belongs(prior, DescriptorShifts)
        return prior.location(prior.check_descriptors(descriptors, prior.num_features)).double()
