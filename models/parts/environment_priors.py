"""Priors of environments: what a condition, drug or perturbation does to the means of the latent variables.

| prior | means of an environment |
|---|---|
| `StandardPrior` | 0: environments do nothing |
| `GatedShifts` | a gated vector, free or a network of descriptors (Bertin, 2020) |
| `SingleEffects` | at most a few targets |
| `SpikeSlabShifts`, `MaskedShifts` | any number of targets |
| `DescriptorShifts` | a network of descriptors, dense or with targets: predicts new environments |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .environment_law import EnvironmentLaw, EnvironmentPrior, descriptor_network, whole_number
from .errors import DataError
from .gates import GATE_WEIGHTS
from .priors import Prior, PriorLike
from .shift_priors import MaskedShifts, SingleEffects, SpikeSlabShifts, indicators

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "ENVIRONMENT_PRIORS",
    "DescriptorShifts",
    "EnvironmentLaw",
    "EnvironmentPrior",
    "GatedShifts",
    "MaskedShifts",
    "SingleEffects",
    "SpikeSlabShifts",
    "StandardPrior",
]

LOG_SCALES = (-4.0, 2.0)  # bounds of log standard deviations: a network may say anything of descriptors it never saw
START_RATE = -1.0986122886681098  # logit of 1/4, the mean of Beta(1, 3)


class StandardPrior(EnvironmentPrior):
    """Mean 0 and scale 1 in every environment: the prior of a basic or conditional VAE."""

    def forward(self, descriptors: Tensor | None = None) -> EnvironmentLaw:
        """Nothing is drawn."""
        return EnvironmentLaw(self.active.new_zeros(self.num_environments, self.num_latents))


class GatedShifts(EnvironmentPrior):
    """Gated location and log scale of Bertin (2020), without a prior on either.

        mean_e = a_e w_e,   log_scale_e = b_e w_e,   w_e = p(|a_e| / T)

    One weight gates both, so that location and scale of an environment move in the same latent. a and b start at 0, or
    near 0 for networks. The temperature T is a buffer, to be lowered during training and never by evaluation: from 1 to
    0.05, say. Starting low freezes wrong targets. The gate excludes no vector: see `gates`.

    Parameters
    ----------
    num_environments, num_latents, control
        See `EnvironmentPrior`.
    gate
        ``"softmax"`` (published), ``"sparsemax"``, ``"entmax15"`` or ``"none"``.
    scales
        Whether environments change scales too.
    num_features
        Width of the descriptors: a and b are networks of them. 0: free numbers for every environment.
    hidden
        Widths of the hidden layers of the networks.

    Raises
    ------
    DataError
        If the gate is unknown or a size is not usable.
    """

    temperature: Tensor

    def __init__(
        self,
        num_environments: int,
        num_latents: int,
        control: int | None = None,
        *,
        gate: str = "softmax",
        scales: bool = False,
        num_features: int = 0,
        hidden: Sequence[int] = (32,),
    ) -> None:
        super().__init__(num_environments, num_latents, control)
        if gate not in GATE_WEIGHTS:
            raise DataError(f"gate: found {gate!r}; wanted one of {sorted(GATE_WEIGHTS)}")
        self.gate, self.scales, self.hidden = gate, bool(scales), tuple(hidden)
        self.num_features = whole_number("num_features", num_features, 0)
        self.uses_descriptors = num_features > 0
        self.register_buffer("temperature", torch.tensor(1.0))
        width = num_latents * (2 if scales else 1)
        if self.uses_descriptors:
            self.network = descriptor_network(num_features, self.hidden, width)
        else:
            self.values = nn.Parameter(torch.zeros(num_environments, width))

    def forward(self, descriptors: Float[Tensor, "condition feature"] | None = None) -> EnvironmentLaw:
        """Nothing is drawn."""
        if not self.uses_descriptors:
            return self._law(self.values, self.active)
        descriptors = self.check_descriptors(descriptors, self.num_features)
        return self._law(self.network(descriptors), self.active_rows(descriptors))

    def new(self, descriptors: Float[Tensor, "condition feature"]) -> EnvironmentLaw:
        """Law of environments that were not trained on."""
        if not self.uses_descriptors:
            return super().new(descriptors)
        descriptors = self.check_descriptors(descriptors, self.num_features)
        return self._law(self.network(descriptors), self.active.new_ones(len(descriptors), 1))

    def _law(self, values: Tensor, active: Tensor) -> EnvironmentLaw:
        location = values[..., : self.num_latents]
        weight = GATE_WEIGHTS[self.gate](location.abs() / self.temperature) * active
        if not self.scales:
            return EnvironmentLaw(location * weight)
        return EnvironmentLaw(location * weight, (values[..., self.num_latents :] * weight).clamp(*LOG_SCALES))

    def settings(self) -> dict[str, Any]:
        """JSON description."""
        own = {"gate": self.gate, "scales": self.scales, "num_features": self.num_features, "hidden": list(self.hidden)}
        return {**(super().settings() or {}), **own}


class DescriptorShifts(EnvironmentPrior):
    """Means that are a function of the descriptors u of the environment, so that new environments can be predicted.

        dense:   mean_e = D(u_e)
        sparse:  tau^2 ~ variance prior,   is_target_ek ~ Bernoulli(sigmoid R(u_e)_k)
                 size_ek ~ Normal(D(u_e)_k, tau^2),   mean_ek = is_target_ek size_ek

    D and R are tanh networks with a small last layer. For a new environment the prior itself is the prediction.

    Parameters
    ----------
    num_environments, num_latents, control
        See `EnvironmentPrior`. The control belongs to the environments of training: `forward` knows these by their
        number of rows, and `new` treats no row as control.
    num_features
        Width of the descriptors.
    hidden
        Widths of the hidden layers.
    sparse
        Whether shifts have targets.
    variance_prior
        Prior of tau^2 of the sparse form. Default InverseGamma(0.5, 13.5), with mode 9.
    """

    uses_descriptors = True

    def __init__(
        self,
        num_environments: int,
        num_latents: int,
        control: int | None = None,
        *,
        num_features: int,
        hidden: Sequence[int] = (32,),
        sparse: bool = False,
        variance_prior: PriorLike | None = None,
    ) -> None:
        super().__init__(num_environments, num_latents, control)
        self.num_features = whole_number("num_features", num_features)
        self.hidden, self.sparse = tuple(hidden), bool(sparse)
        self.location = descriptor_network(num_features, self.hidden, num_latents)
        if sparse:
            self.logit = descriptor_network(num_features, self.hidden, num_latents, START_RATE)
            self.variance_prior = Prior(variance_prior or dist.InverseGamma(0.5, 13.5))
            self.variance_prior.check("variance_prior", (), positive=True)

    @property
    def has_targets(self) -> bool:  # type: ignore[override]
        """Whether targets are sites."""
        return self.sparse

    @property
    def site_dims(self) -> dict[str, tuple[str, ...]]:
        """None for the dense form."""
        by_entry = ("condition", "latent")
        return {"shift_variance": (), "is_target": by_entry, "size": by_entry} if self.sparse else {}

    def forward(self, descriptors: Float[Tensor, "condition feature"] | None = None) -> EnvironmentLaw:
        """Draw tau^2, targets and sizes in the sparse form; nothing in the dense one."""
        descriptors = self.check_descriptors(descriptors, self.num_features)
        return self._law(descriptors, self.active_rows(descriptors))

    def new(self, descriptors: Float[Tensor, "condition feature"]) -> EnvironmentLaw:
        """Law of environments that were not trained on; draws the sites of `forward` for them."""
        descriptors = self.check_descriptors(descriptors, self.num_features)
        return self._law(descriptors, self.active.new_ones(len(descriptors), 1))

    def _law(self, descriptors: Tensor, active: Tensor) -> EnvironmentLaw:
        location = self.location(descriptors)  # (condition, latent)
        if not self.sparse:
            return EnvironmentLaw(location * active)
        variance = pyro.sample("shift_variance", self.variance_prior.expand(()))  # (*draw,)
        is_target = pyro.sample("is_target", indicators(self.logit(descriptors).sigmoid(), active)) * active
        scale = variance.sqrt()[..., None, None].expand(*variance.shape, *location.shape)
        size = pyro.sample("size", dist.Normal(location.expand(scale.shape), scale).to_event(2))
        return EnvironmentLaw(is_target * size, is_target=is_target)

    def settings(self) -> dict[str, Any] | None:
        """JSON description."""
        own = {"num_features": self.num_features, "hidden": list(self.hidden), "sparse": self.sparse}
        base = {**(super().settings() or {}), **own}
        if not self.sparse:
            return base
        prior = self.variance_prior.settings()
        return prior and {**base, "variance_prior": prior}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> EnvironmentPrior:
        """Inverse of `settings`."""
        made = cls(**{key: value for key, value in settings.items() if key not in ("kind", "variance_prior")})
        if made.sparse:
            made.variance_prior = Prior.from_settings(settings["variance_prior"])
        return made


ENVIRONMENT_PRIORS: dict[str, type[EnvironmentPrior]] = {
    cls.__name__: cls
    for cls in (StandardPrior, GatedShifts, SingleEffects, SpikeSlabShifts, MaskedShifts, DescriptorShifts)
}
