"""Posterior of single effects where cells say of an environment's mean what an exact linear Gaussian likelihood says.

The log-likelihood of the mean mu of an environment with n cells is h'mu - n mu'F mu / 2, with F the information of one
cell. Given the expectation m of the other effects, an effect on latent k has

    r_k = h_k - n (F m)_k,   A_k = n F_kk
    log q(target = k) = log((1 - pi0) / d) - log(1 + A_k tau^2) / 2 + r_k^2 / (A_k + 1 / tau^2) / 2 + const
    q(size | target = k) = Normal(r_k / (A_k + 1 / tau^2), 1 / (A_k + 1 / tau^2))

With F = I it is the posterior in `single_effects`, where latents are as good as observed. Nothing is added for misfit:
every update is the maximum of the bound.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...models.parts.environment_law import EnvironmentPrior
from ...models.parts.shift_priors import SingleEffects
from .environment_base import belongs, normal_kl
from .linear_gaussian import CellSums, LinearGaussian, Shifts
from .shift_intervals import marginal_variances
from .single_effects import SMALL, Effect, SingleEffectsPosterior, single_effect

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

__all__ = ["EffectsProblem", "LinearEffectsPosterior"]

STORED = ("probability", "size_mean", "size_variance")  # buffers that are the fields of an `Effect`, stacked


class LinearEffectsPosterior(SingleEffectsPosterior):
    """Single effects given a linear decoder; see the text of this module.

    Buffers beside those of `SingleEffectsPosterior`: ``count (condition,)``, cells of each environment.
    """

    count: Tensor

    def __init__(self, num_environments: int, num_latents: int, control: int | None = None, **options: Any) -> None:
        super().__init__(num_environments, num_latents, control, **options)
        self.register_buffer("count", torch.zeros(num_environments))

    @classmethod
    def for_prior(cls, prior: EnvironmentPrior, **options: Any) -> LinearEffectsPosterior:
        """Start with no effects at the mode of tau^2; with few environments and latents pi0 is held at 1/3."""
        few = (prior.num_environments - 1) * prior.num_latents <= SMALL
        learn = ("shift_variance",) if few else ("shift_variance", "null_probability")
        made = super().for_prior(prior, **{"misfit": 0.0, "learn": learn, **options})
        assert isinstance(made, LinearEffectsPosterior)
        return made

    def marginal_variances(self, linear: LinearGaussian) -> Float[Tensor, "condition effect latent"]:
        """Variances of sizes, with the uncertainty of axes, scales and origin; see `shift_intervals`."""
        return marginal_variances(self, self.count.double(), linear.information())

    def widened(self, linear: LinearGaussian) -> LinearEffectsPosterior:
        """The same posterior with sizes of their marginal variances; shares all other numbers."""
        other = copy.copy(self)
        variances = self.marginal_variances(linear).to(self.size_variance)
        other._buffers = {**self._buffers, "size_variance": variances}
        return other

    def shifts(self, cells: CellSums) -> Shifts:
        """Moments of the means of the environments."""
        q, size = self.probability[..., 1:].double(), self.size_mean.double()
        count, second = cells.count, (q * (self.size_variance.double() + size.square())).sum(1)
        means = q * size  # (condition, effect, latent)
        weighted = (means * count.sqrt()[:, None, None]).flatten(0, 1)
        spread = torch.diag(count @ second) - weighted.mT @ weighted
        return Shifts(means.sum(1), spread)

    def fit_effects(self, prior: EnvironmentPrior, cells: CellSums, linear: LinearGaussian) -> None:
        """Update targets and sizes, then tau^2 and the null probabilities; never lowers the bound.

        Sweeps start from the effects as they are and from empty ones, and each environment keeps the better.
        """
        self.count.copy_(cells.count)
        problem = EffectsProblem(self, belongs(prior, SingleEffects), cells, linear)
        warm = [
            Effect(*parts) for parts in zip(*(getattr(self, name).double().unbind(1) for name in STORED), strict=True)
        ]
        found = [problem.swept(start, self.num_sweeps) for start in (warm, problem.empty())]
        better = (problem.value(found[1]) > problem.value(found[0]))[:, None, None]
        for name, kept, fresh in zip(STORED, *(zip(*effects, strict=True) for effects in found), strict=True):
            getattr(self, name).copy_(torch.where(better, torch.stack(fresh, 1), torch.stack(kept, 1)))
        q, size = self.probability[..., 1:], self.size_mean
        self.mean.copy_((q * size).sum(1))
        self.variance.copy_((q * (self.size_variance + size**2) - (q * size) ** 2).sum(1))
        self._learn(belongs(prior, SingleEffects), problem.count, torch.zeros_like(problem.pull))


class EffectsProblem:
    """Sweeps over the effects of all environments at once, hyperparameters held."""

    def __init__(
        self, q: SingleEffectsPosterior, prior: SingleEffects, cells: CellSums, linear: LinearGaussian
    ) -> None:
        self.F = linear.information()
        self.active = q.active.double()
        active = self.active[:, 0]
        self.count = cells.count * active
        self.pull = linear.pull(cells) * active.unsqueeze(-1)
        self.tau2, self.null = q.shift_variance.double(), q.null_probability.double()
        self.log_prior = prior.target_logits(self.null)
        self.alive: Bool[Tensor, " latent"] = self.F.diagonal() > 0  # pruned latents are nobody's target
        self.information = self.count.unsqueeze(-1) * self.F.diagonal()
        self.precision = self.information / (1 + self.information * q.misfit.double())

    def empty(self) -> list[Effect]:
        """No targets."""
        zeros = torch.zeros_like(self.pull)
        probability = torch.cat([torch.ones_like(zeros[:, :1]), zeros], -1)
        return [Effect(probability, zeros, zeros + self.tau2) for _ in self.null]

    def swept(self, effects: list[Effect], num_sweeps: int) -> list[Effect]:
        """Effects after sweeps over them, one after the other given the others."""
        effects = list(effects)
        shares = [effect.probability[:, 1:] * effect.size_mean for effect in effects]
        total = torch.stack(shares).sum(0)
        for _ in range(num_sweeps if len(effects) > 1 else 1):
            for k, null in enumerate(self.null):
                effects[k] = self.updated(total - shares[k], null)
                share = effects[k].probability[:, 1:] * effects[k].size_mean
                total = total - shares[k] + share
                shares[k] = share
        return effects

    def updated(self, others: Float[Tensor, "condition latent"], null: Float[Tensor, ""]) -> Effect:
        """The best effect given the sum of the others."""
        unexplained = self.pull - self.count.unsqueeze(-1) * (others @ self.F)
        safe = torch.where(self.information > 0, self.information, torch.ones_like(self.information))
        probability, mean, variance = single_effect(unexplained / safe, self.precision, self.tau2, null, self.active)
        kept = torch.cat([self.alive.new_ones(1), self.alive])
        probability = probability * kept
        return Effect(probability / probability.sum(-1, keepdim=True), mean, variance)

    def value(self, effects: list[Effect]) -> Float[Tensor, " condition"]:
        """The part of the bound that each environment's effects make."""
        q = torch.stack([e.probability for e in effects], 1)
        mean, variance = (torch.stack([getattr(e, f) for e in effects], 1) for f in ("size_mean", "size_variance"))
        share = q[..., 1:] * mean
        total = share.sum(1)
        square = ((total @ self.F) * total).sum(-1) - ((share @ self.F) * share).sum((-1, -2))
        square = square + ((q[..., 1:] * (variance + mean.square())).sum(1) * self.F.diagonal()).sum(-1)
        sizes = q[..., 1:] * normal_kl(mean, variance, torch.zeros_like(self.tau2), self.tau2)
        targets = -torch.special.entr(q) - torch.where(q > 0, q * self.log_prior, torch.zeros_like(q))
        return (self.pull * total).sum(-1) - 0.5 * self.count * square - sizes.sum((1, 2)) - targets.sum((1, 2))
