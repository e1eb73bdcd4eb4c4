"""Priors under which every environment moves few latent variables, with the moved ones as sites.

| prior | targets of an environment |
|---|---|
| `SingleEffects` | at most `max_targets`: a hard bound |
| `SpikeSlabShifts` | any number, each latent with its own rate |
| `MaskedShifts` | any number, each entry with its own rate (sVAE+) |

Only the hard bound holds the latent axes in place. Under a linear decoder a rotation of the latent space leaves the fit
of the data as it is and makes the shifts dense. Where any number of targets is allowed this costs
log((1 - rate) / rate) + log(n tau^2) / 2 nats for each further target, O(log n) for n cells; where the number is
bounded, a part of the shift stays unexplained and costs n |part|^2 / 2, O(n).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from .environment_law import EnvironmentLaw, EnvironmentPrior, whole_number
from .errors import DataError
from .priors import Prior, PriorLike

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["MaskedShifts", "SingleEffects", "SpikeSlabShifts", "indicators"]


def must_be(name: str, prior: Prior, family: str) -> None:
    """Refuse a prior for which the posterior has no closed form.

    Raises
    ------
    DataError
        Naming the prior, and the family that it has to be of.
    """
    found = (prior.settings() or {}).get("distribution", family)  # a function may simulate; the guide refuses it
    if found != family:
        raise DataError(f"{name}: found {found}; wanted {family}, for which the posterior has a closed form")


def indicators(
    probability: Float[Tensor, "*draw condition latent"], active: Float[Tensor, "condition 1"]
) -> dist.TorchDistribution:
    """Independent 0/1 variables as one event; 0 with log probability 0 in rows that are not active."""
    probability = probability * active
    return dist.Bernoulli(probability).mask(active.bool().expand(probability.shape)).to_event(2)


class _Hyperpriors(EnvironmentPrior):
    """Priors of environments with priors of their own numbers."""

    prior_names: ClassVar[tuple[str, ...]]

    def settings(self) -> dict[str, Any] | None:
        """JSON description."""
        priors = {name: getattr(self, name).settings() for name in self.prior_names}
        base = super().settings()
        return None if base is None or None in priors.values() else {**base, "priors": priors}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> EnvironmentPrior:
        """Inverse of `settings`."""
        made = cls(**{key: value for key, value in settings.items() if key not in ("kind", "priors")})
        for name, prior in settings["priors"].items():
            setattr(made, name, Prior.from_settings(prior))
        return made


class SingleEffects(_Hyperpriors):
    """A sum of at most L single effects, each on one latent or on none.

        tau^2 ~ variance prior,   pi0_l ~ null prior
        t_el = 0 with probability pi0_l, else a latent 1..d with equal probabilities;   size_el ~ Normal(0, tau^2)
        mean_ek = sum_l size_el [t_el = k]

    The "target of a noise intervention" of Bertin (2020) as a latent variable; L = 1 is one target or none.

    Parameters
    ----------
    num_environments, num_latents, control
        See `EnvironmentPrior`.
    max_targets
        L. More than needed do little harm.
    variance_prior
        Prior of tau^2 in units of the within-environment variance, an InverseGamma: its posterior has a closed form.
        Default InverseGamma(0.5, 13.5), with mode 9.
    null_prior
        Prior of pi0, one for each effect, a Beta with concentrations above 1. Default Beta(2, 2).
    """

    has_targets = True

    prior_names = ("variance_prior", "null_prior")

    def __init__(
        self,
        num_environments: int,
        num_latents: int,
        control: int | None = None,
        *,
        max_targets: int = 5,
        variance_prior: PriorLike | None = None,
        null_prior: PriorLike | None = None,
    ) -> None:
        super().__init__(num_environments, num_latents, control)
        self.max_targets = whole_number("max_targets", max_targets)
        self.variance_prior = Prior(variance_prior or dist.InverseGamma(0.5, 13.5))
        self.null_prior = Prior(null_prior or dist.Beta(2.0, 2.0))
        must_be("variance_prior", self.variance_prior, "InverseGamma")
        must_be("null_prior", self.null_prior, "Beta")
        self.variance_prior.check("variance_prior", ())
        self.null_prior.check("null_prior", (max_targets,))

    @property
    def site_dims(self) -> dict[str, tuple[str, ...]]:
        """Dims of every sample site."""
        return {
            "shift_variance": (),
            "null_probability": ("effect",),
            "target": ("condition", "effect"),
            "size": ("condition", "effect"),
        }

    def forward(self, descriptors: Tensor | None = None) -> EnvironmentLaw:
        """Draw tau^2, the null probabilities, targets and sizes."""
        variance = pyro.sample("shift_variance", self.variance_prior.expand(()))  # (*draw,)
        null = pyro.sample("null_probability", self.null_prior.expand((self.max_targets,)))  # (*draw, effect)
        target = pyro.sample("target", dist.Categorical(logits=self.target_logits(null)).to_event(2))
        scale = variance.sqrt()[..., None, None].expand(*variance.shape, self.num_environments, self.max_targets)
        size = pyro.sample("size", dist.Normal(torch.zeros_like(scale), scale).to_event(2))
        return self.law(target, size)

    def target_logits(
        self, null: Float[Tensor, "*draw effect"]
    ) -> Float[Tensor, "*draw condition effect 1_plus_latent"]:
        """Log probabilities of no target and of every latent; no target for sure in the control."""
        each = torch.log1p(-null) - math.log(self.num_latents)
        logits = torch.cat([null.log().unsqueeze(-1), each.unsqueeze(-1).expand(*null.shape, self.num_latents)], -1)
        logits = logits.unsqueeze(-3).expand(*null.shape[:-1], self.num_environments, *logits.shape[-2:])
        if self.control is None:
            return logits
        certain = logits.new_full((self.num_latents + 1,), -torch.inf)
        certain[0] = 0.0
        return torch.where(self.active.bool().unsqueeze(-1), logits, certain)

    def law(
        self, target: Float[Tensor, "*draw condition effect"], size: Float[Tensor, "*draw condition effect"]
    ) -> EnvironmentLaw:
        """Means and targets that given effects make."""
        chosen = one_hot(target, self.num_latents + 1)[..., 1:].to(size.dtype)  # (*draw, condition, effect, latent)
        mean = (chosen * size.unsqueeze(-1)).sum(-2) * self.active
        return EnvironmentLaw(mean, is_target=chosen.amax(-2) * self.active)

    def settings(self) -> dict[str, Any] | None:
        """JSON description."""
        base = super().settings()
        return base and {**base, "max_targets": self.max_targets}


class SpikeSlabShifts(_Hyperpriors):
    """Any number of targets, more or less often for every latent.

        tau^2 ~ variance prior,   rho_k ~ rate prior
        is_target_ek ~ Bernoulli(rho_k),   size_ek ~ Normal(0, tau^2),   mean_ek = is_target_ek size_ek

    With rate prior Beta(1, K) this is sVAE+ (Lopez et al., 2023) with a proper prior of shifts and rates shared by the
    environments. Use it where the latent axes are known: see the text above this class on what holds them in place.

    Parameters
    ----------
    num_environments, num_latents, control
        See `EnvironmentPrior`.
    variance_prior
        Prior of tau^2. Default InverseGamma(0.5, 13.5), with mode 9.
    rate_prior
        Prior of rho. Default Beta(1, 3).
    """

    has_targets = True

    prior_names = ("variance_prior", "rate_prior")

    def __init__(
        self,
        num_environments: int,
        num_latents: int,
        control: int | None = None,
        *,
        variance_prior: PriorLike | None = None,
        rate_prior: PriorLike | None = None,
    ) -> None:
        super().__init__(num_environments, num_latents, control)
        self.variance_prior = Prior(variance_prior or dist.InverseGamma(0.5, 13.5))
        self.rate_prior = Prior(rate_prior or dist.Beta(1.0, 3.0))
        must_be("variance_prior", self.variance_prior, "InverseGamma")
        must_be("rate_prior", self.rate_prior, "Beta")
        self.variance_prior.check("variance_prior", ())
        self.rate_prior.check("rate_prior", (num_latents,))

    @property
    def site_dims(self) -> dict[str, tuple[str, ...]]:
        """Dims of every sample site."""
        return {
            "shift_variance": (),
            "target_rate": ("latent",),
            "is_target": ("condition", "latent"),
            "size": ("condition", "latent"),
        }

    def forward(self, descriptors: Tensor | None = None) -> EnvironmentLaw:
        """Draw tau^2, rates, targets and sizes."""
        shape = (self.num_environments, self.num_latents)
        variance = pyro.sample("shift_variance", self.variance_prior.expand(()))  # (*draw,)
        rate = pyro.sample("target_rate", self.rate_prior.expand((self.num_latents,))).unsqueeze(-2)
        is_target = pyro.sample("is_target", indicators(rate.expand(*rate.shape[:-2], *shape), self.active))
        scale = variance.sqrt()[..., None, None].expand(*variance.shape, *shape)
        size = pyro.sample("size", dist.Normal(torch.zeros_like(scale), scale).to_event(2))
        return EnvironmentLaw(is_target * size * self.active, is_target=is_target * self.active)


class MaskedShifts(EnvironmentPrior):
    """Masked shifts of sVAE+ (Lopez et al., 2023): a rate for every entry, and shifts without a prior.

        rate_ek ~ Beta(1, K),   is_target_ek ~ Bernoulli(rate_ek),   mean_ek = is_target_ek size_ek

    with `size` a free parameter, started at draws from Normal(0, 1). K = 1 is no sparsity at all, and K has to be
    chosen by hand. The published guide makes the rates a maximum a posteriori: the probabilities of its masks are not
    calibrated.

    Parameters
    ----------
    num_environments, num_latents, control
        See `EnvironmentPrior`.
    sparsity
        K, at least 1.

    Raises
    ------
    DataError
        If `sparsity` is below 1.
    """

    has_targets = True

    def __init__(
        self, num_environments: int, num_latents: int, control: int | None = None, *, sparsity: float = 20.0
    ) -> None:
        super().__init__(num_environments, num_latents, control)
        if not sparsity >= 1:
            raise DataError(f"sparsity: found {sparsity!r}; wanted at least 1")
        self.sparsity = float(sparsity)
        self.size = nn.Parameter(torch.randn(num_environments, num_latents))

    @property
    def site_dims(self) -> dict[str, tuple[str, ...]]:
        """Dims of every sample site."""
        return {"target_rate": ("condition", "latent"), "is_target": ("condition", "latent")}

    def forward(self, descriptors: Tensor | None = None) -> EnvironmentLaw:
        """Draw rates and masks."""
        one = self.active.new_ones(self.num_environments, self.num_latents)
        rates = dist.Beta(one, self.sparsity * one).mask(self.active.bool().expand(one.shape)).to_event(2)
        is_target = pyro.sample("is_target", indicators(pyro.sample("target_rate", rates), self.active))
        is_target = is_target * self.active
        return EnvironmentLaw(is_target * self.size, is_target=is_target)

    def settings(self) -> dict[str, Any]:
        """JSON description."""
        return {**(super().settings() or {}), "sparsity": self.sparsity}
