"""Posterior of a bounded number of single effects, by exact coordinate updates.

    q = prod_el q(target_el) q(size_el | target_el),   point masses at tau^2 and the null probabilities

For environment e with n cells whose E[z] has mean zbar, and r = zbar minus the expectation of the other effects of e:

    v_k = 1 / n + s_k^2,   kappa_k = tau^2 / (tau^2 + v_k)
    log q(target = k) = log((1 - pi0_l) / d) - log(1 + tau^2 / v_k) / 2 + kappa_k r_k^2 / (2 v_k) + const
    log q(target = 0) = log pi0_l + const
    q(size | target = k) = Normal(kappa_k r_k, kappa_k v_k);   Normal(0, tau^2) given no target

With s = 0 each update is the exact maximum of the bound over one effect given the others, and the exact posterior when
there is one effect.

**The misfit variance s_k^2 is no part of the bound.** It is an empirical Bayes estimate of how far means of
environments lie from what effects on latent k explain, beyond sampling noise: overdispersion of the means, from
curvature of the decoder or an encoder that is not yet there. It enters q(target, size) alone, where it makes an effect
count as a target only if it stands out of the lack of fit of its own latent; with 1 / n, every lack of fit of 0.3
standard deviations in 100 cells is "significant". The prior of the cells has no misfit in it: its mean is E[mean_ek]
and its variance 1, so that what the bounded effects leave unexplained still costs n |r|^2 / 2 and holds the latent axes
in place. With s > 0, updates can therefore lower the bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ...models.parts.environment_law import EnvironmentPrior
from ...models.parts.errors import DataError, SchemaError
from ...models.parts.shift_priors import SingleEffects
from .environment_base import EnvironmentPosterior, ShiftPosterior, belongs, normal_kl, wanted_prior

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Effect", "SingleEffectsPosterior", "single_effect"]

LEARNED = ("shift_variance", "null_probability", "misfit")
SMALL = 8  # entries of the mean matrix below which misfit and null probability cannot be told from effects


class Effect(NamedTuple):
    """Law of one effect in every environment: no target or one of the latents, and the size given each latent."""

    probability: Float[Tensor, "condition 1_plus_latent"]
    size_mean: Float[Tensor, "condition latent"]
    size_variance: Float[Tensor, "condition latent"]


def single_effect(
    residual: Float[Tensor, "condition latent"],
    precision: Float[Tensor, "condition latent"],
    shift_variance: Float[Tensor, ""],
    null_probability: Float[Tensor, ""],
    active: Float[Tensor, "condition 1"],
) -> Effect:
    """Posterior of one effect given what the others leave unexplained (equations of this module, precision = 1 / v).

    Parameters
    ----------
    residual
        r.
    precision
        1 / v; rows of zeros, environments without cells, keep their prior.
    shift_variance, null_probability
        tau^2 and pi0.
    active
        0 in the control, which has no target for sure, else 1.
    """
    scaled = precision * shift_variance
    size_variance = shift_variance / (1 + scaled)
    size_mean = size_variance * precision * residual
    each = torch.log1p(-null_probability) - math.log(residual.shape[-1])
    log_odds = each + (size_mean**2 / size_variance - scaled.log1p()) / 2
    log_odds = torch.where(active > 0, log_odds, torch.full_like(log_odds, -torch.inf))
    null = null_probability.log().expand(*log_odds.shape[:-1], 1)
    return Effect(torch.cat([null, log_odds], -1).softmax(-1), size_mean, size_variance)


class SingleEffectsPosterior(ShiftPosterior):
    """Posterior of `SingleEffects`.

    Every update starts from empty effects, runs a few sweeps over them and then learns the numbers of `learn`: tau^2
    and the null probabilities as conditional maxima under their priors, the misfit variances by

        s_k^2 = f max(0, mean_e[(zbar_ek - E mean_ek)^2 - 1 / n_e]),   at most the cap

    The control has no targets for sure. Environments without cells keep their prior, and nothing is learned from them.

    Parameters
    ----------
    num_environments, num_latents, control, max_targets
        As the prior's.
    null_probability
        Starting value of pi0.
    misfit
        Starting value of s_k^2. At 0 the first update explains misfit by effects and s^2 stays too small.
    misfit_factor, misfit_cap
        f and the cap. Without a cap a latent can run away: a dropped target raises its s^2.
    learn
        Which of ``"shift_variance"``, ``"null_probability"`` and ``"misfit"`` are learned.
    num_sweeps
        Sweeps over the effects in an update.

    Raises
    ------
    DataError
        If an option is not usable.
    """

    probability: Tensor
    size_mean: Tensor
    size_variance: Tensor
    null_probability: Tensor
    misfit: Tensor

    def __init__(
        self,
        num_environments: int,
        num_latents: int,
        control: int | None = None,
        *,
        max_targets: int,
        null_probability: float = 1 / 3,
        misfit: float = 0.25,
        misfit_factor: float = 2.0,
        misfit_cap: float = 0.25,
        learn: Sequence[str] = LEARNED,
        num_sweeps: int = 3,
    ) -> None:
        super().__init__(num_environments, num_latents, control)
        if not set(learn) <= set(LEARNED):
            raise DataError(f"learn: found {list(learn)}; wanted some of {list(LEARNED)}")
        if num_sweeps < 1:
            raise DataError(f"num_sweeps: found {num_sweeps}; wanted at least 1")
        if not 0 < null_probability < 1:
            raise DataError(f"null_probability: found {null_probability!r}; wanted a number between 0 and 1")
        for name, value in (("misfit", misfit), ("misfit_factor", misfit_factor), ("misfit_cap", misfit_cap)):
            if not 0 <= value < math.inf:
                raise DataError(f"{name}: found {value!r}; wanted a number of at least 0")
        self.max_targets, self.learn, self.num_sweeps = max_targets, tuple(learn), num_sweeps
        self.misfit_factor, self.misfit_cap = misfit_factor, misfit_cap
        shape = (num_environments, max_targets, num_latents)
        probability = torch.zeros(num_environments, max_targets, num_latents + 1)
        probability[..., 0] = 1.0
        self.register_buffer("probability", probability)
        self.register_buffer("size_mean", torch.zeros(shape))
        self.register_buffer("size_variance", torch.ones(shape))
        self.register_buffer("null_probability", torch.full((max_targets,), float(null_probability)))
        self.register_buffer("misfit", torch.full((num_latents,), float(misfit)))

    @classmethod
    def for_prior(cls, prior: EnvironmentPrior, **options: Any) -> EnvironmentPosterior:
        """Start with no effects at the mode of tau^2.

        With few environments and latents, (E - 1) d <= 8, misfit and null probability are held at 0 and 1/3 unless
        `options` say otherwise: there are too few means to tell them from effects.

        Raises
        ------
        SchemaError
            If tau^2 has no `InverseGamma` prior, or pi0 no `Beta` with concentrations above 1.
        """
        prior = belongs(prior, SingleEffects)
        wanted_prior("variance_prior", prior.variance_prior, dist.InverseGamma)
        wanted_prior("null_prior", prior.null_prior, dist.Beta)
        if bool(torch.stack(_concentrations(prior)).le(1).any()):
            raise SchemaError("null_prior: found a Beta without a mode between 0 and 1; wanted concentrations above 1")
        if (prior.num_environments - 1) * prior.num_latents <= SMALL:
            options = {"misfit": 0.0, "learn": ("shift_variance",), **options}
        made = super().for_prior(prior, max_targets=prior.max_targets, **options)
        assert isinstance(made, SingleEffectsPosterior)
        made.start_at_mode(prior.variance_prior)
        made.size_variance.copy_(made.shift_variance)
        return made

    def draw(self, prior: EnvironmentPrior, descriptors: Tensor | None) -> None:
        """Point masses, then targets, then sizes given the targets."""
        variance = pyro.sample("shift_variance", dist.Delta(self.shift_variance))
        pyro.sample("null_probability", dist.Delta(self.null_probability, event_dim=1))
        target = pyro.sample("target", dist.Categorical(logits=self.probability.log()).to_event(2))
        index = (target - 1).clamp(min=0).unsqueeze(-1)

        def chosen(values: Tensor) -> Tensor:
            return values.expand(*target.shape, self.num_latents).gather(-1, index).squeeze(-1)

        prior_scale = variance.sqrt()[..., None, None].expand(target.shape)
        loc = torch.where(target > 0, chosen(self.size_mean), torch.zeros_like(prior_scale))
        scale = torch.where(target > 0, chosen(self.size_variance).sqrt(), prior_scale)
        pyro.sample("size", dist.Normal(loc, scale).to_event(2))

    def effects_kl(self, prior: EnvironmentPrior, descriptors: Tensor | None) -> Float[Tensor, ""]:
        """KL of targets and sizes, minus the log density of the null probabilities."""
        prior = belongs(prior, SingleEffects)
        q, tau2 = self.probability.double(), self.shift_variance.double()
        log_prior = prior.target_logits(self.null_probability.double())
        targets = -torch.special.entr(q) - torch.where(q > 0, q * log_prior, torch.zeros_like(q))
        sizes = q[..., 1:] * normal_kl(
            self.size_mean.double(), self.size_variance.double(), torch.zeros_like(tau2), tau2
        )
        density = prior.null_prior.expand((self.max_targets,)).log_prob(self.null_probability)
        return targets.sum() + sizes.sum() - density

    def infer(
        self,
        prior: EnvironmentPrior,
        count: Float[Tensor, " condition"],
        zbar: Float[Tensor, "condition latent"],
        descriptors: Tensor | None,
    ) -> None:
        """Sweeps from empty effects, then the numbers that are learned."""
        effects, mean = self._sweeps(count, zbar)
        self.probability.copy_(torch.stack([e.probability for e in effects], 1))
        self.size_mean.copy_(torch.stack([e.size_mean for e in effects], 1))
        self.size_variance.copy_(torch.stack([e.size_variance for e in effects], 1))
        self.mean.copy_(mean)
        q, second = self.probability[..., 1:], self.size_variance + self.size_mean**2
        self.variance.copy_((q * second - (q * self.size_mean) ** 2).sum(1))
        self._learn(belongs(prior, SingleEffects), count, zbar - mean)

    def _sweeps(self, count: Tensor, zbar: Tensor) -> tuple[list[Effect], Float[Tensor, "condition latent"]]:
        tau2, null = self.shift_variance.double(), self.null_probability.double()
        precision = count[:, None] / (1 + count[:, None] * self.misfit.double())
        effects: list[Effect] = [None] * self.max_targets  # type: ignore[list-item]
        shares = zbar.new_zeros(self.max_targets, *zbar.shape)
        total = torch.zeros_like(zbar)
        for _ in range(self.num_sweeps):
            for k in range(self.max_targets):
                effects[k] = single_effect(zbar - (total - shares[k]), precision, tau2, null[k], self.active)
                share = effects[k].probability[:, 1:] * effects[k].size_mean
                total = total + share - shares[k]
                shares[k] = share
        return effects, total

    def _learn(self, prior: SingleEffects, count: Tensor, residual: Tensor) -> None:
        rows = self.rows_with_cells(count)
        if "shift_variance" in self.learn:
            square = self.size_variance[rows].double() + self.size_mean[rows].double() ** 2
            self.most_probable_variance(prior.variance_prior, self.probability[rows, :, 1:].double(), square)
        if "null_probability" in self.learn:
            null, other = _concentrations(prior)
            empty = self.probability[rows, :, 0].double().sum(0)
            self.null_probability.copy_((null - 1 + empty) / (null + other - 2 + rows.sum()))
        if "misfit" in self.learn and bool(rows.any()):
            excess = (residual[rows] ** 2 - 1 / count[rows, None]).mean(0)
            self.misfit.copy_((self.misfit_factor * excess).clamp(0.0, self.misfit_cap))

    def target_probability(self) -> Float[Tensor, "condition latent"]:
        """Probability that at least one effect is on the latent."""
        return 1 - (1 - self.probability[..., 1:]).prod(1)

    def settings(self) -> dict[str, Any]:
        """JSON description."""
        keys = ("max_targets", "misfit_factor", "misfit_cap", "num_sweeps")
        return {**super().settings(), **{key: getattr(self, key) for key in keys}, "learn": list(self.learn)}


def _concentrations(prior: SingleEffects) -> tuple[Tensor, Tensor]:
    null_prior = prior.null_prior
    return null_prior.get_buffer("concentration1").double(), null_prior.get_buffer("concentration0").double()
