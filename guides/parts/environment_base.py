"""What posteriors of environments share: statistics of the cells, moments, and the first stage with free means.

Everything that cells say of their environment is the number of cells and the mean of E[z] over them, because their
prior Normal(mean_e, I) enters the bound as

    sum_i E_q log Normal(z_i; mean_e, I) = const - sum_e n_e / 2 sum_k [ (zbar_ek - E mean_ek)^2 + Var mean_ek ]
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ...models.parts.environment_law import EnvironmentPrior
from ...models.parts.errors import DataError, NumericalError, SchemaError
from ...models.parts.priors import Prior

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

__all__ = [
    "EnvironmentPosterior",
    "EnvironmentStatistics",
    "Moments",
    "ShiftPosterior",
    "belongs",
    "normal_kl",
    "variance_prior",
    "wanted_prior",
]

Kind = TypeVar("Kind", bound=EnvironmentPrior)


@dataclass(frozen=True)
class EnvironmentStatistics:
    """What the cells say of their environments.

    Attributes
    ----------
    count
        Cells in every environment; weighted cells count by their weight.
    mean
        Mean of E[z] over the cells of the environment; anything finite or not where there are none.
    variance
        Mean posterior variance of z over all cells.
    """

    count: Float[Tensor, " condition"]
    mean: Float[Tensor, "condition latent"]
    variance: Float[Tensor, " latent"]


@dataclass(frozen=True)
class Moments:
    """Mean and variance of the environments' latent means under the posterior, and log scales where they have some."""

    mean: Float[Tensor, "condition latent"]
    variance: Float[Tensor, "condition latent"]
    log_scale: Float[Tensor, "condition latent"] | None = None


class EnvironmentPosterior(nn.Module, ABC):
    """Base of the posteriors: a law of the sites of one prior, independent given the data.

    Parameters
    ----------
    num_environments, num_latents, control
        As the prior's.
    """

    active: Tensor

    def __init__(self, num_environments: int, num_latents: int, control: int | None = None) -> None:
        super().__init__()
        self.num_environments, self.num_latents, self.control = num_environments, num_latents, control
        active = torch.ones(num_environments, 1)
        if control is not None:
            active[control] = 0.0
        self.register_buffer("active", active, persistent=False)

    @classmethod
    def for_prior(cls, prior: EnvironmentPrior, **options: Any) -> EnvironmentPosterior:
        """A posterior of the prior's sizes, at its starting values."""
        return cls(prior.num_environments, prior.num_latents, prior.control, **options).to(prior.active)

    @abstractmethod
    def forward(self, prior: EnvironmentPrior, descriptors: Tensor | None = None) -> None:
        """Draw the sites of the prior."""

    @abstractmethod
    def moments(self, prior: EnvironmentPrior, descriptors: Tensor | None = None) -> Moments:
        """Moments of the environments' latent means; differentiable in parameters of prior and posterior."""

    @abstractmethod
    def kl(self, prior: EnvironmentPrior, descriptors: Tensor | None = None) -> Float[Tensor, ""]:
        """E_q[log q - log p] over all sites in nats; minus the log prior density at point masses."""

    def update(
        self,
        prior: EnvironmentPrior,
        statistics: EnvironmentStatistics,
        descriptors: Tensor | None = None,
        *,
        free: bool = False,
    ) -> None:
        """Closed forms, in place and without gradients; nothing where all is left to the optimiser.

        Parameters
        ----------
        prior
            The prior this posterior was made for.
        statistics
            What the cells say now.
        descriptors
            Descriptors of the environments, where the prior uses them.
        free
            First stage: a Normal law for every mean, no targets.
        """

    def target_probability(self) -> Float[Tensor, "condition latent"] | None:
        """Probability that the environment moves the latent; None when the prior does not speak of targets."""
        return None

    def settings(self) -> dict[str, Any]:
        """JSON description; the numbers are in the saved state."""
        return {
            "kind": type(self).__name__,
            "num_environments": self.num_environments,
            "num_latents": self.num_latents,
            "control": self.control,
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> EnvironmentPosterior:
        """A posterior of the described shapes, whose numbers the saved state then fills."""
        return cls(**{key: value for key, value in settings.items() if key != "kind"})


class ShiftPosterior(EnvironmentPosterior):
    """Base of the closed forms: shifts of common prior variance tau^2, a point mass at its conditional maximum.

    `mean` and `variance` are the moments as of the last update, ready to be read at every step of an optimiser. So is
    the KL, unless networks of the prior learn from it: it is kept until a number of posterior or prior changes.
    """

    kl_has_gradient: ClassVar[bool] = False

    shift_variance: Tensor
    mean: Tensor
    variance: Tensor
    free: Tensor

    def __init__(self, num_environments: int, num_latents: int, control: int | None = None) -> None:
        super().__init__(num_environments, num_latents, control)
        self.register_buffer("shift_variance", torch.tensor(1.0))
        self.register_buffer("mean", torch.zeros(num_environments, num_latents))
        self.register_buffer("variance", torch.zeros(num_environments, num_latents))
        self.register_buffer("free", torch.tensor(False))
        self._kept: tuple[tuple[Tensor, ...], list[int], Tensor] | None = None

    @abstractmethod
    def draw(self, prior: EnvironmentPrior, descriptors: Tensor | None) -> None:
        """Draw the sites."""

    @abstractmethod
    def effects_kl(self, prior: EnvironmentPrior, descriptors: Tensor | None) -> Float[Tensor, ""]:
        """KL of all sites but the shift variance, in double precision."""

    @abstractmethod
    def infer(
        self,
        prior: EnvironmentPrior,
        count: Float[Tensor, " condition"],
        zbar: Float[Tensor, "condition latent"],
        descriptors: Tensor | None,
    ) -> None:
        """Update everything from counts and means in double precision; both are 0 in the control."""

    def location(self, prior: EnvironmentPrior, descriptors: Tensor | None) -> Float[Tensor, "condition latent"]:
        """Prior mean of the shifts in double precision."""
        return self.mean.new_zeros(self.mean.shape, dtype=torch.double)

    def forward(self, prior: EnvironmentPrior, descriptors: Tensor | None = None) -> None:
        """Draw the sites of the prior.

        Raises
        ------
        SchemaError
            In the first stage, whose free means are no law of the prior's sites.
        """
        if self.free:
            raise SchemaError("posterior: found free environment means (first stage); wanted an update with free=False")
        self.draw(prior, descriptors)

    def moments(self, prior: EnvironmentPrior, descriptors: Tensor | None = None) -> Moments:
        """Moments as of the last update."""
        return Moments(self.mean, self.variance)

    def kl(self, prior: EnvironmentPrior, descriptors: Tensor | None = None) -> Float[Tensor, ""]:
        """KL of all sites; in the first stage that of Normal means from their prior Normal(location, tau^2)."""
        if self.kl_has_gradient:
            return self._computed_kl(prior, descriptors)
        numbers = (*self.buffers(), *prior.buffers())
        versions = [value._version for value in numbers]
        kept = self._kept
        same = kept is not None and kept[1] == versions and all(map(operator.is_, kept[0], numbers))
        if kept is None or not same:
            kept = self._kept = numbers, versions, self._computed_kl(prior, descriptors)
        return kept[2].clone()

    def _computed_kl(self, prior: EnvironmentPrior, descriptors: Tensor | None) -> Float[Tensor, ""]:
        loss = self.free_kl(prior, descriptors) if self.free else self.effects_kl(prior, descriptors)
        density = variance_prior(prior).expand(()).log_prob(self.shift_variance)
        return (loss - density).to(self.mean.dtype)

    def free_kl(self, prior: EnvironmentPrior, descriptors: Tensor | None) -> Float[Tensor, ""]:
        """KL of the free means."""
        tau2, active = self.shift_variance.double(), self.active.bool()
        variance = torch.where(active, self.variance.double(), tau2)  # that of the control is 0, which has no log
        terms = normal_kl(self.mean.double(), variance, self.location(prior, descriptors), tau2)
        return torch.where(active, terms, torch.zeros_like(terms)).sum()

    @torch.no_grad()
    def update(
        self,
        prior: EnvironmentPrior,
        statistics: EnvironmentStatistics,
        descriptors: Tensor | None = None,
        *,
        free: bool = False,
    ) -> None:
        """Closed forms from the statistics; hyperparameters are held while the means are free.

        Raises
        ------
        DataError
            If the statistics are of other shapes.
        NumericalError
            If they are not finite.
        """
        count, zbar = self._checked(statistics)
        self.free.fill_(free)
        if not free:
            self.infer(prior, count, zbar, descriptors)
            return
        tau2 = self.shift_variance.double()
        variance = tau2 / (1 + count[:, None] * tau2) * self.active.double()
        mean = variance * (count[:, None] * zbar + self.location(prior, descriptors) / tau2)
        self.mean.copy_(mean)
        self.variance.copy_(variance)

    def _checked(self, statistics: EnvironmentStatistics) -> tuple[Tensor, Tensor]:
        count, mean = statistics.count.to(self.mean.device).double(), statistics.mean.to(self.mean.device).double()
        if count.shape != self.mean.shape[:1] or mean.shape != self.mean.shape:
            raise DataError(
                f"statistics: found count {tuple(count.shape)} and mean {tuple(mean.shape)}; "
                f"wanted {tuple(self.mean.shape[:1])} and {tuple(self.mean.shape)}"
            )
        count = count * self.active[:, 0].double()
        mean = torch.where((count > 0)[:, None], mean, torch.zeros_like(mean))
        if not bool(count.isfinite().all() & (count >= 0).all() & mean.isfinite().all()):
            raise NumericalError("environment statistics: found values that are not finite, or counts below 0")
        return count, mean

    def most_probable_variance(
        self, prior: Prior, weight: Float[Tensor, "*entry"], square: Float[Tensor, "*entry"]
    ) -> None:
        """tau^2 at the maximum of its conditional, given weighted expected squares of centred shifts."""
        a, b = prior.get_buffer("concentration").double(), prior.get_buffer("rate").double()
        self.shift_variance.copy_((b + (weight * square).sum() / 2) / (a + 1 + weight.sum() / 2))

    def start_at_mode(self, prior: Prior) -> None:
        """tau^2 at the mode of its prior."""
        nothing = self.mean.new_zeros(1, dtype=torch.double)
        self.most_probable_variance(prior, nothing, nothing)

    def rows_with_cells(self, count: Float[Tensor, " condition"]) -> Bool[Tensor, " condition"]:
        """Environments that have cells and are no control."""
        return count > 0  # which is 0 in the control


def normal_kl(
    mean: Float[Tensor, "*entry"],
    variance: Float[Tensor, "*entry"],
    prior_mean: Float[Tensor, "*entry"],
    prior_variance: Float[Tensor, "*entry"],
) -> Float[Tensor, "*entry"]:
    """KL of one Normal from another, entry by entry."""
    ratio = variance / prior_variance
    return (ratio + (mean - prior_mean) ** 2 / prior_variance - 1 - ratio.log()) / 2


def belongs(prior: EnvironmentPrior, kind: type[Kind]) -> Kind:
    """The prior, known to be of the kind that a posterior is for.

    Raises
    ------
    SchemaError
        If it is of another kind.
    """
    if not isinstance(prior, kind):
        raise SchemaError(f"prior: found {type(prior).__name__}; wanted {kind.__name__}")
    return prior


def variance_prior(prior: EnvironmentPrior) -> Prior:
    """The prior of tau^2.

    Raises
    ------
    SchemaError
        If it has none.
    """
    found = getattr(prior, "variance_prior", None)
    if not isinstance(found, Prior):
        raise SchemaError(f"prior: found {type(prior).__name__}; wanted one with a variance_prior")
    return found


def wanted_prior(name: str, prior: Prior, wanted: type[dist.TorchDistribution]) -> None:
    """Refuse a prior for which the posterior has no closed form.

    Raises
    ------
    SchemaError
        Naming the prior, what it is and what it has to be.
    """
    found = (prior.settings() or {}).get("distribution", "a distribution without a name")
    if found != wanted.__name__:
        raise SchemaError(f"{name}: found {found}; wanted {wanted.__name__}, which has closed forms")
