"""Likelihoods of structural equations: the law of a gene given its regulators.

| kind | x_j given its regulators, m = b_ij + x_i W_i | scale |
|---|---|---|
| `GaussianSEM` | Normal(m, sigma_j^2) | sigma |
| `StudentSEM` | Student-t(df; m, sigma_j): single outlying measurements weigh less | sigma |
| `LogisticSEM` | Logistic(m, sigma_j): tails between the two | sigma |
| `BinarySEM` | Bernoulli with log odds m, for on/off data of 0 and 1 (logistic SEM of NO TEARS) | none |
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from .entry_quadrature import conditional_by_quadrature, identity_minus
from .errors import DataError, SchemaError
from .kinds import Part
from .priors import Prior

if TYPE_CHECKING:
    from jaxtyping import Float


class SEMLikelihood(Part, ABC):
    """Base of the likelihoods.

    Attributes
    ----------
    has_scale
        Whether there is a noise scale sigma.
    """

    family = "likelihood"
    has_scale: ClassVar[bool] = True

    def parameters_drawn(self) -> dict[str, Tensor]:
        """Draw the likelihood's own unknowns, if it has any."""
        return {}

    @abstractmethod
    def log_prob(
        self, x: Float[Tensor, "*batch gene"], mean: Float[Tensor, "*batch gene"], sigma: Tensor, own: dict[str, Tensor]
    ) -> Float[Tensor, "*batch"]:
        """Log density, summed over genes."""

    def entry_log_prob(
        self,
        x: Float[Tensor, "*batch gene"],
        mean: Float[Tensor, "*batch gene"],
        sigma: Tensor,
        own: dict[str, Tensor],
        networks: Float[Tensor, "*batch regulator target"],
    ) -> Float[Tensor, "*batch gene"]:
        """Log density of every gene given all other genes of the cell, its targets too.

        Here by quadrature over the gene, for additive noise with a `log_kernel`: log p(x) less the log of its integral
        over x_g, in which the determinant and the scales drop out.

        Raises
        ------
        NumericalError
            If the quadrature does not settle.
        """
        return conditional_by_quadrature(lambda z: self.log_kernel(z, own), x - mean, sigma, networks)

    def log_kernel(self, z: Float[Tensor, "*batch gene"], own: dict[str, Tensor]) -> Float[Tensor, "*batch gene"]:
        """Log density of the noise over its scale, gene by gene.

        Raises
        ------
        SchemaError
            If the likelihood has none.
        """
        raise SchemaError(f"likelihood: found {self.kind!r} without log_kernel; wanted it for densities of entries")

    @abstractmethod
    def noise(self, shape: torch.Size, sigma: Tensor, own: dict[str, Tensor]) -> Float[Tensor, "*batch gene"]:
        """Draw noise e, additive or whatever `respond` makes of it."""

    def respond(
        self, mean: Float[Tensor, "*batch gene"], noise: Float[Tensor, "*batch gene"]
    ) -> Float[Tensor, "*batch gene"] | None:
        """Expression given what regulators say and the noise; None where it is their sum."""
        return None


class GaussianSEM(SEMLikelihood):
    """Gaussian noise."""

    kind = "gaussian"

    def log_prob(
        self, x: Float[Tensor, "*batch gene"], mean: Float[Tensor, "*batch gene"], sigma: Tensor, own: dict[str, Tensor]
    ) -> Float[Tensor, "*batch"]:
        """Log density of the residuals."""
        standard = (x - mean) / sigma
        return -0.5 * standard.square().sum(-1) - _log_scale(sigma, x) - 0.5 * x.shape[-1] * math.log(2 * math.pi)

    def entry_log_prob(
        self,
        x: Float[Tensor, "*batch gene"],
        mean: Float[Tensor, "*batch gene"],
        sigma: Tensor,
        own: dict[str, Tensor],
        networks: Float[Tensor, "*batch regulator target"],
    ) -> Float[Tensor, "*batch gene"]:
        """Normal of the precision P = (I - W) diag(1 / sigma^2) (I - W)^T: deviation (x - E x) P, variance 1 / P_gg."""
        left, residual = identity_minus(networks), x - mean
        weight = sigma.pow(-2).expand(*sigma.shape[:-1], x.shape[-1]).unsqueeze(-1)
        deviation = (left @ (weight * residual.unsqueeze(-1))).squeeze(-1)
        precision = (left.square() @ weight).squeeze(-1)
        return 0.5 * (precision.log() - math.log(2 * math.pi) - deviation.square() / precision)

    def noise(self, shape: torch.Size, sigma: Tensor, own: dict[str, Tensor]) -> Float[Tensor, "*batch gene"]:
        """Sigma times standard Normals."""
        return torch.randn(shape, dtype=sigma.dtype, device=sigma.device) * sigma


class StudentSEM(SEMLikelihood):
    """Student-t noise with `degrees_of_freedom`, a number above 0 or a prior (site of that name).

    Parameters
    ----------
    degrees_of_freedom
        Fixed number, or a distribution of positive numbers such as ``dist.Gamma(2.0, 0.1)``.
    """

    kind = "student"
    degrees_of_freedom: Tensor

    def __init__(self, degrees_of_freedom: float | TorchDistributionMixin = 4.0) -> None:
        super().__init__()
        self.prior: Prior | None = None
        if isinstance(degrees_of_freedom, TorchDistributionMixin):
            self.prior = Prior(degrees_of_freedom)
            self.prior.check("degrees_of_freedom", (), positive=True)
        elif not (isinstance(degrees_of_freedom, (int, float)) and 0 < degrees_of_freedom < math.inf):
            raise DataError(f"degrees_of_freedom: found {degrees_of_freedom!r}; wanted a positive number or a prior")
        number = 0.0 if self.prior is not None else float(degrees_of_freedom)
        self.register_buffer("degrees_of_freedom", torch.tensor(number))

    def parameters_drawn(self) -> dict[str, Tensor]:
        """The degrees of freedom, if they are unknown."""
        if self.prior is None:
            return {}
        return {"degrees_of_freedom": pyro.sample("degrees_of_freedom", self.prior.expand(()))}

    def log_prob(
        self, x: Float[Tensor, "*batch gene"], mean: Float[Tensor, "*batch gene"], sigma: Tensor, own: dict[str, Tensor]
    ) -> Float[Tensor, "*batch"]:
        """Log density of the residuals."""
        return self.log_kernel((x - mean) / sigma, own).sum(-1) - _log_scale(sigma, x)

    def log_kernel(self, z: Float[Tensor, "*batch gene"], own: dict[str, Tensor]) -> Float[Tensor, "*batch gene"]:
        """Log density of Student-t variates."""
        df = self._df(own)
        constant = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * (math.pi * df).log()
        return constant - 0.5 * (df + 1) * torch.log1p(z.square() / df)

    def noise(self, shape: torch.Size, sigma: Tensor, own: dict[str, Tensor]) -> Float[Tensor, "*batch gene"]:
        """Sigma times Student-t variates."""
        df = self._df(own).to(sigma)
        chi2 = torch.distributions.Chi2(df.expand(shape)).sample()
        return sigma * torch.randn(shape, dtype=sigma.dtype, device=sigma.device) * (df / chi2).sqrt()

    def _df(self, own: dict[str, Tensor]) -> Tensor:
        found = own.get("degrees_of_freedom")
        return self.degrees_of_freedom if found is None else found.unsqueeze(-1)

    def settings(self) -> dict[str, Any]:
        """JSON description."""
        prior = None if self.prior is None else self.prior.settings()
        own = {"prior": prior} if self.prior is not None else {"degrees_of_freedom": float(self.degrees_of_freedom)}
        return super().settings() | own

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> Self:
        """Rebuild; a prior is rebuilt by its own name."""
        likelihood = cls(arguments.get("degrees_of_freedom", 4.0))
        if "prior" in arguments:
            likelihood.prior = Prior.from_settings(arguments["prior"])
        return likelihood


class LogisticSEM(SEMLikelihood):
    """Logistic noise with scale sigma (its standard deviation is 1.81 sigma)."""

    kind = "logistic"

    def log_prob(
        self, x: Float[Tensor, "*batch gene"], mean: Float[Tensor, "*batch gene"], sigma: Tensor, own: dict[str, Tensor]
    ) -> Float[Tensor, "*batch"]:
        """Log density of the residuals."""
        return self.log_kernel((x - mean) / sigma, own).sum(-1) - _log_scale(sigma, x)

    def log_kernel(self, z: Float[Tensor, "*batch gene"], own: dict[str, Tensor]) -> Float[Tensor, "*batch gene"]:
        """Log density of standard logistic variates."""
        return -z - 2 * softplus(-z)

    def noise(self, shape: torch.Size, sigma: Tensor, own: dict[str, Tensor]) -> Float[Tensor, "*batch gene"]:
        """Sigma times standard logistic variates."""
        uniform = _uniform(shape, sigma)
        return sigma * (uniform.log() - torch.log1p(-uniform))


class BinarySEM(SEMLikelihood):
    """Genes that are on (1) or off (0), with log odds b_ij + x_i W_i: effects are changes of log odds."""

    kind = "binary"
    has_scale = False

    def log_prob(
        self, x: Float[Tensor, "*batch gene"], mean: Float[Tensor, "*batch gene"], sigma: Tensor, own: dict[str, Tensor]
    ) -> Float[Tensor, "*batch"]:
        """Log probability.

        Raises
        ------
        DataError
            If a value is neither 0 nor 1.
        """
        other = x[(x != 0) & (x != 1)]
        if len(other):
            raise DataError(f"expression: found {float(other[0]):.4g}; wanted 0 and 1 only for {self.kind}")
        return (x * logsigmoid(mean) + (1 - x) * logsigmoid(-mean)).sum(-1)

    def entry_log_prob(
        self,
        x: Float[Tensor, "*batch gene"],
        mean: Float[Tensor, "*batch gene"],
        sigma: Tensor,
        own: dict[str, Tensor],
        networks: Float[Tensor, "*batch regulator target"],
    ) -> Float[Tensor, "*batch gene"]:
        """The cell against the one in which the gene is switched, its own log odds and those of its targets changed."""
        switched = mean.unsqueeze(-2) + (1 - 2 * x).unsqueeze(-1) * networks  # (gene, target)
        signs = 2 * x - 1
        targets = logsigmoid(signs * mean).unsqueeze(-2) - logsigmoid(signs.unsqueeze(-2) * switched)
        return logsigmoid(signs * mean + targets.sum(-1))

    def noise(self, shape: torch.Size, sigma: Tensor, own: dict[str, Tensor]) -> Float[Tensor, "*batch gene"]:
        """Uniform numbers: a gene is on where its number is below its probability."""
        return _uniform(shape, sigma)

    def respond(
        self, mean: Float[Tensor, "*batch gene"], noise: Float[Tensor, "*batch gene"]
    ) -> Float[Tensor, "*batch gene"]:
        """0 or 1."""
        return (noise < mean.sigmoid()).to(mean)


def _log_scale(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.log().expand(*sigma.shape[:-1], x.shape[-1]).sum(-1)


def _uniform(shape: torch.Size, like: Tensor) -> Tensor:
    number = torch.finfo(like.dtype)
    return torch.rand(shape, dtype=like.dtype, device=like.device).clamp(number.tiny, 1 - number.eps)
