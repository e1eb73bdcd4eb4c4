"""Priors of log scales: how much rows and columns of a matrix may be stretched."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .errors import DataError
from .priors import Prior, PriorLike
from .zero_sum import ZeroSumFlat, ZeroSumNormal

if TYPE_CHECKING:
    from jaxtyping import Float


class ScalePrior(torch.nn.Module, ABC):
    """Law of a vector of log scales that sum to zero; its spread is shared by all matrices."""

    def sample_spread(self, name: str) -> Float[Tensor, "*draw"] | None:
        """Draw what all matrices share; `name` is ``"u"`` (cells) or ``"v"`` (genes)."""
        return None

    @abstractmethod
    def law(self, name: str, size: int, spread: Float[Tensor, "*draw"] | None) -> Any:
        """Distribution of one vector of log scales."""

    def settings(self) -> dict[str, Any] | None:
        """JSON description, None when a prior has no name that a file may carry."""
        return {"kind": type(self).__name__}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> ScalePrior:
        """Inverse of `settings`."""
        return cls()


class FlatScales(ScalePrior):
    """Flat on the log scales: nothing is known of them, and the graphs do not depend on them at all.

    The limit of `NormalScales` with infinite spread, hence improper: there are no draws from this prior.
    """

    def law(self, name: str, size: int, spread: Tensor | None) -> ZeroSumFlat:
        """Improper and flat on vectors that sum to zero."""
        return ZeroSumFlat(size)


class NormalScales(ScalePrior):
    """log u ~ Normal(0, tau^2) given that they sum to zero, tau learned from the data.

    Data without multiplicative noise drive tau to zero and give the estimator for unscaled data back.

    Parameters
    ----------
    spread
        Prior of tau, on positive numbers.
    """

    def __init__(self, spread: PriorLike | None = None) -> None:
        super().__init__()
        self.spread = Prior(spread or dist.HalfNormal(1.0))
        self.spread.check("spread", (), positive=True)

    def sample_spread(self, name: str) -> Float[Tensor, "*draw"]:
        """Draw tau."""
        return pyro.sample(f"tau_{name}", self.spread.expand(()))

    def law(self, name: str, size: int, spread: Tensor | None) -> ZeroSumNormal:
        """Normal on vectors that sum to zero."""
        assert spread is not None
        return ZeroSumNormal(spread.unsqueeze(-1).expand(*spread.shape, size))

    def settings(self) -> dict[str, Any] | None:
        """JSON description."""
        spread = self.spread.settings()
        return None if spread is None else {"kind": type(self).__name__, "spread": spread}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> NormalScales:
        """Inverse of `settings`."""
        made = cls()
        made.spread = Prior.from_settings(settings["spread"])
        return made


class StudentScales(NormalScales):
    """Student-t log scales: a few cells or genes may be stretched far more than the rest.

    Written as a mixture: log u_i ~ Normal(0, tau^2 s_i), s_i ~ InverseGamma(df/2, df/2), given that they sum to zero.

    Parameters
    ----------
    df
        Degrees of freedom, above 1.
    spread
        Prior of tau.
    """

    df: Tensor

    def __init__(self, df: float = 4.0, spread: PriorLike | None = None) -> None:
        super().__init__(spread)
        if not df > 1:
            raise DataError(f"df: found {df}; wanted degrees of freedom above 1")
        self.register_buffer("df", torch.tensor(float(df)))

    def law(self, name: str, size: int, spread: Tensor | None) -> ZeroSumNormal:
        """Normal on vectors that sum to zero, given a stretch of each entry."""
        assert spread is not None
        half = self.df / 2
        stretch = pyro.sample(f"stretch_{name}", dist.InverseGamma(half, half).expand((size,)).to_event(1))
        return ZeroSumNormal(spread.unsqueeze(-1) * stretch.sqrt())

    def settings(self) -> dict[str, Any] | None:
        """JSON description."""
        about = super().settings()
        return None if about is None else {**about, "df": float(self.df)}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> StudentScales:
        """Inverse of `settings`."""
        made = cls(settings["df"])
        made.spread = Prior.from_settings(settings["spread"])
        return made


SCALE_PRIORS: dict[str, type[ScalePrior]] = {cls.__name__: cls for cls in (FlatScales, NormalScales, StudentScales)}
"""What a file may name."""
