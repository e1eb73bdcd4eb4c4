"""What every prior of environments says: the law of the latent variables in each environment.

    z_i | e(i) = e  ~  Normal(mean_e, exp(log_scale_e)^2),   mean_e = 0 in the control

mean_e is what the environment does to the latent causes. Priors differ in how mean_e comes about.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .errors import DataError, SchemaError

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["EnvironmentLaw", "EnvironmentPrior", "descriptor_network", "whole_number"]


@dataclass(frozen=True)
class EnvironmentLaw:
    """Law of the latent variables in every environment.

    Attributes
    ----------
    mean
        Latent means. An axis of draws, where there is one, keeps the axis of length one that stands for the cells.
    log_scale
        Log standard deviations; None when all are one.
    is_target
        1 where the environment moves the latent, else 0; None when the prior does not speak of targets.
    """

    mean: Float[Tensor, "*draw condition latent"]
    log_scale: Float[Tensor, "*draw condition latent"] | None = None
    is_target: Float[Tensor, "*draw condition latent"] | None = None


class EnvironmentPrior(nn.Module, ABC):
    """Base of the priors of environments.

    Parameters
    ----------
    num_environments, num_latents
        E and d.
    control
        Index of the environment whose mean is 0 and that has no targets, None when there is none.

    Raises
    ------
    DataError
        If a size or the index is not usable.
    """

    uses_descriptors: bool = False
    has_targets: bool = False

    active: Tensor

    def __init__(self, num_environments: int, num_latents: int, control: int | None = None) -> None:
        super().__init__()
        self.num_environments = whole_number("num_environments", num_environments)
        self.num_latents = whole_number("num_latents", num_latents)
        if control is not None and (not isinstance(control, int) or not 0 <= control < num_environments):
            raise DataError(f"control: found {control!r}; wanted None or an index below {num_environments}")
        self.control = control
        active = torch.ones(num_environments, 1)
        if control is not None:
            active[control] = 0.0
        self.register_buffer("active", active, persistent=False)  # (condition, 1): 0 in the control, else 1

    @property
    def site_dims(self) -> dict[str, tuple[str, ...]]:
        """Dims of every sample site."""
        return {}

    @abstractmethod
    def forward(self, descriptors: Float[Tensor, "condition feature"] | None = None) -> EnvironmentLaw:
        """Draw the sites and say what law they make."""

    def new(self, descriptors: Float[Tensor, "condition feature"]) -> EnvironmentLaw:
        """Law of environments that were not trained on, of which none is a control.

        Raises
        ------
        SchemaError
            If the prior does not use descriptors.
        """
        raise SchemaError(
            f"new environments: found {type(self).__name__} without descriptors; wanted a prior that uses descriptors"
        )

    def active_rows(self, descriptors: Float[Tensor, "condition feature"]) -> Float[Tensor, "condition 1"]:
        """0 in the control and 1 elsewhere; other numbers of rows than in training have no control."""
        return self.active if len(descriptors) == self.num_environments else self.active.new_ones(len(descriptors), 1)

    def check_descriptors(self, descriptors: Tensor | None, num_features: int) -> Float[Tensor, "condition feature"]:
        """Descriptors, known to be there and of the right width.

        Raises
        ------
        SchemaError
            If they are missing or of another width.
        """
        if descriptors is None:
            raise SchemaError(f"descriptors: found none; wanted (condition, {num_features})")
        if descriptors.dim() != 2 or descriptors.shape[1] != num_features:
            raise SchemaError(f"descriptors: found {tuple(descriptors.shape)}; wanted (condition, {num_features})")
        return descriptors

    def settings(self) -> dict[str, Any] | None:
        """JSON description for saving, None when a prior has no name that a file may carry."""
        return {
            "kind": type(self).__name__,
            "num_environments": self.num_environments,
            "num_latents": self.num_latents,
            "control": self.control,
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> EnvironmentPrior:
        """A prior of the described kind and sizes, whose numbers the saved state then fills."""
        return cls(**{key: value for key, value in settings.items() if key != "kind"})


def whole_number(name: str, value: int, least: int = 1) -> int:
    """`value`, known to be a whole number of at least `least`.

    Raises
    ------
    DataError
        If it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise DataError(f"{name}: found {value!r}; wanted a whole number of at least {least}")
    return value


def descriptor_network(
    num_features: int, hidden: tuple[int, ...], num_outputs: int, bias: float = 0.0
) -> nn.Sequential:
    """Tanh layers and a linear one whose weights start at a tenth of their usual size, and its offsets at `bias`."""
    sizes = (num_features, *hidden)
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(sizes):
        layers += [nn.Linear(i, o), nn.Tanh()]
    last = nn.Linear(sizes[-1], num_outputs)
    with torch.no_grad():
        last.weight.mul_(0.1)
        last.bias.fill_(bias)
    return nn.Sequential(*layers, last)
