"""Likelihoods: the law of a cell's expression given the output of the decoder.

| class | law of gene g | mean | parameters |
|---|---|---|---|
| `GaussianLikelihood` | Normal(o_g, s_g) | o_g | s, one or one a gene |
| `StudentTLikelihood` | StudentT(df, o_g, s_g) | o_g | s, one or one a gene; df is given |
| `NegativeBinomialLikelihood` | variance m_g + m_g^2 / theta_g | m_g = library softmax(o)_g | theta, one a gene |
| `PoissonLikelihood` | Poisson(m_g) | m_g = library softmax(o)_g | none |

Training needs `log_score` only: the log density less the terms that the data fix once and for all, `base_measure`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Gamma, Normal, StudentT
from torch.nn.functional import mse_loss, softplus

from .count_distributions import negative_binomial_score
from .errors import DataError
from .expression import Likelihood

if TYPE_CHECKING:
    from jaxtyping import Float

LOG_DISPERSION_BOUND = 12.0  # log theta; beyond it the negative binomial is a Poisson law to all purposes


class _ScaleLikelihood(Likelihood):
    """Continuous expression around the decoder's output, with a positive scale."""

    counts = False
    raw_scale: Tensor

    def __init__(
        self,
        num_genes: int,
        scale: Literal["shared", "gene"] = "shared",
        initial: float = 1.0,
        learned: bool = True,
        floor: float = 1e-3,
    ) -> None:
        super().__init__(num_genes)
        if scale not in ("shared", "gene"):
            raise DataError(f"scale: found {scale!r}; wanted 'shared' or 'gene'")
        if not 0 <= floor < initial < math.inf:
            raise DataError(f"floor, initial: found {floor}, {initial}; wanted 0 <= floor < initial, both finite")
        self.shared, self.initial, self.learned, self.floor = scale == "shared", initial, learned, floor
        raw = torch.zeros(() if self.shared else (num_genes,))
        if learned:
            self.raw_scale = nn.Parameter(raw)
        else:
            self.register_buffer("raw_scale", raw)
        self.set_scale_(initial)

    @property
    def scale(self) -> Float[Tensor, "..."]:
        """Scale, () if shared and (gene,) otherwise, in units of expression."""
        return softplus(self.raw_scale) + self.floor

    def set_scale_(self, scale: float | Float[Tensor, "..."]) -> None:
        """Set the scale, not below the floor; a number holds for all genes."""
        with torch.no_grad():
            excess = torch.as_tensor(scale, device=self.raw_scale.device).double() - self.floor
            excess = excess.clamp(min=1e-6)
            self.raw_scale.copy_(excess + torch.log(-torch.expm1(-excess)))  # the inverse of softplus

    def mean(
        self, output: Float[Tensor, "*batch gene"], library: Float[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*batch gene"]:
        """The decoder's output itself."""
        return output

    def log_scales(self) -> Float[Tensor, ""]:
        """Sum over genes of the log scale."""
        return self.num_genes * self.scale.log() if self.shared else self.scale.log().sum()

    def settings(self) -> dict[str, Any]:
        """JSON description that `from_settings` rebuilds the shapes from."""
        own = {"initial": self.initial, "learned": self.learned, "floor": self.floor}
        return super().settings() | {"scale": "shared" if self.shared else "gene"} | own


class GaussianLikelihood(_ScaleLikelihood):
    """Normal expression, x_g ~ Normal(o_g, s_g).

    Parameters
    ----------
    num_genes
        Number of genes.
    scale
        ``"shared"`` by all genes, or one a ``"gene"``.
    initial
        Scale at the start, in units of expression.
    learned
        Whether the scale is a parameter; otherwise it stays at `initial`.
    floor
        Smallest scale.

    Raises
    ------
    DataError
        If `scale` is unknown, `floor` negative or `initial` not above `floor`.
    """

    kind = "gaussian"

    def log_score(
        self,
        output: Float[Tensor, "*batch gene"],
        library: Float[Tensor, "*batch"] | None,
        x: Float[Tensor, "*batch gene"],
    ) -> Float[Tensor, "*batch"]:
        """-1/2 sum_g (x - o)^2 / s^2 - sum_g log s."""
        squares, precision = _squares(output, x), self.scale**-2
        total = squares.sum(-1) * precision if self.shared else squares @ precision
        return -0.5 * total - self.log_scales()

    def base_measure(self, x: Float[Tensor, "*batch gene"]) -> Float[Tensor, "*batch"]:
        """-1/2 log 2 pi a gene."""
        return x.new_full(x.shape[:-1], -0.5 * self.num_genes * math.log(2 * math.pi), dtype=self.raw_scale.dtype)

    def entry_log_prob(
        self,
        output: Float[Tensor, "*batch gene"],
        library: Float[Tensor, "*batch"] | None,
        x: Float[Tensor, "*batch gene"],
    ) -> Float[Tensor, "*batch gene"]:
        """Normal log density of every gene."""
        return Normal(output, self.scale, validate_args=False).log_prob(x)

    def draw(self, mean: Float[Tensor, "*batch gene"]) -> Float[Tensor, "*batch gene"]:
        """Draw expression around a mean."""
        return mean + self.scale * torch.randn_like(mean)


class StudentTLikelihood(_ScaleLikelihood):
    """Heavy-tailed expression, x_g ~ StudentT(df, o_g, s_g), for data with outlying values.

    Parameters
    ----------
    num_genes
        Number of genes.
    df
        Degrees of freedom, above 1 and fixed.
    scale, initial, learned, floor
        As for `GaussianLikelihood`; the standard deviation is sqrt(df / (df - 2)) times the scale.

    Raises
    ------
    DataError
        If `df` is not above 1, and as for `GaussianLikelihood`.
    """

    kind = "student_t"
    df: Tensor

    def __init__(
        self,
        num_genes: int,
        df: float = 5.0,
        scale: Literal["shared", "gene"] = "shared",
        initial: float = 1.0,
        learned: bool = True,
        floor: float = 1e-3,
    ) -> None:
        super().__init__(num_genes, scale, initial, learned, floor)
        if not 1 < df < math.inf:
            raise DataError(f"df: found {df}; wanted a finite number above 1")
        self.register_buffer("df", torch.tensor(float(df)))

    def log_score(
        self,
        output: Float[Tensor, "*batch gene"],
        library: Float[Tensor, "*batch"] | None,
        x: Float[Tensor, "*batch gene"],
    ) -> Float[Tensor, "*batch"]:
        """-(df + 1)/2 sum_g log(1 + (x - o)^2 / (df s^2)) - sum_g log s."""
        tails = (_squares(output, x) * (self.scale**-2 / self.df)).log1p().sum(-1)
        return -0.5 * (self.df + 1) * tails - self.log_scales()

    def base_measure(self, x: Float[Tensor, "*batch gene"]) -> Float[Tensor, "*batch"]:
        """Log Gamma((df + 1)/2) - log Gamma(df/2) - 1/2 log(pi df) a gene."""
        df = self.df.double()
        each = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * (math.pi * df).log()
        return (self.num_genes * each).to(self.df.dtype).expand(x.shape[:-1])

    def entry_log_prob(
        self,
        output: Float[Tensor, "*batch gene"],
        library: Float[Tensor, "*batch"] | None,
        x: Float[Tensor, "*batch gene"],
    ) -> Float[Tensor, "*batch gene"]:
        """Student-t log density of every gene."""
        return StudentT(self.df, output, self.scale, validate_args=False).log_prob(x)

    def draw(self, mean: Float[Tensor, "*batch gene"]) -> Float[Tensor, "*batch gene"]:
        """Draw expression around a mean."""
        return mean + self.scale * StudentT(self.df).sample(mean.shape)

    def settings(self) -> dict[str, Any]:
        """JSON description that `from_settings` rebuilds the shapes from."""
        return super().settings() | {"df": float(self.df)}


class _CountLikelihood(Likelihood):
    """Counts whose expected share of the library is the softmax of the decoder's output."""

    counts = True

    def log_mean(
        self, output: Float[Tensor, "*batch gene"], library: Float[Tensor, "*batch"] | None
    ) -> Float[Tensor, "*batch gene"]:
        """Log of the expected counts; a library of zero counts as the smallest positive number.

        Raises
        ------
        DataError
            If there is no library.
        """
        return output.log_softmax(-1) + _library(library, output).log().unsqueeze(-1)

    def mean(
        self, output: Float[Tensor, "*batch gene"], library: Float[Tensor, "*batch"] | None
    ) -> Float[Tensor, "*batch gene"]:
        """Library times softmax of the output."""
        return self.log_mean(output, library).exp()

    def base_measure(self, x: Float[Tensor, "*batch gene"]) -> Float[Tensor, "*batch"]:
        """-sum_g log x_g!, added up in double precision."""
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        return -torch.lgamma(x.double() + 1).sum(-1).to(dtype)


class NegativeBinomialLikelihood(_CountLikelihood):
    """Overdispersed counts with variance m + m^2 / theta_g, theta_g learned.

    Parameters
    ----------
    num_genes
        Number of genes.
    initial
        Inverse dispersion theta of every gene at the start.

    Raises
    ------
    DataError
        If `initial` is not positive and finite.
    """

    kind = "negative_binomial"

    def __init__(self, num_genes: int, initial: float = 10.0) -> None:
        super().__init__(num_genes)
        if not 0 < initial < math.inf:
            raise DataError(f"initial: found {initial}; wanted a positive finite number")
        self.initial = initial
        self.log_inverse_dispersion = nn.Parameter(torch.full((num_genes,), math.log(initial)))

    @property
    def inverse_dispersion(self) -> Float[Tensor, " gene"]:
        """Theta of every gene."""
        return self.log_inverse_dispersion.clamp(-LOG_DISPERSION_BOUND, LOG_DISPERSION_BOUND).exp()

    def log_score(
        self,
        output: Float[Tensor, "*batch gene"],
        library: Float[Tensor, "*batch"] | None,
        x: Float[Tensor, "*batch gene"],
    ) -> Float[Tensor, "*batch"]:
        """Log Gamma(x + theta) / Gamma(theta) + x log m + theta log theta - (x + theta) log(m + theta), over genes."""
        return negative_binomial_score(self.log_mean(output, library), self.inverse_dispersion, x.to(output.dtype))

    def entry_log_prob(
        self,
        output: Float[Tensor, "*batch gene"],
        library: Float[Tensor, "*batch"] | None,
        x: Float[Tensor, "*batch gene"],
    ) -> Float[Tensor, "*batch gene"]:
        """Negative binomial log probability of every gene, in double precision."""
        log_mean, theta = self.log_mean(output, library).double(), self.inverse_dispersion.double()
        rows = (part.unsqueeze(-1) for part in torch.broadcast_tensors(log_mean, theta, x.double()))
        return negative_binomial_score(*rows) - torch.lgamma(x.double() + 1)

    def draw(self, mean: Float[Tensor, "*batch gene"]) -> Float[Tensor, "*batch gene"]:
        """Draw counts around a mean: Poisson counts of a Gamma rate."""
        theta = self.inverse_dispersion
        return torch.poisson(Gamma(theta, torch.ones_like(theta)).sample(mean.shape[:-1]) * (mean / theta))

    def settings(self) -> dict[str, Any]:
        """JSON description that `from_settings` rebuilds the shapes from."""
        return super().settings() | {"initial": self.initial}


class PoissonLikelihood(_CountLikelihood):
    """Poisson counts, x_g ~ Poisson(m_g). The only parameter is `num_genes`."""

    kind = "poisson"

    def log_score(
        self,
        output: Float[Tensor, "*batch gene"],
        library: Float[Tensor, "*batch"] | None,
        x: Float[Tensor, "*batch gene"],
    ) -> Float[Tensor, "*batch"]:
        """sum_g x_g log m_g - library: the means add up to the library."""
        x, total = x.to(output.dtype), _library(library, output)
        return (x * output.log_softmax(-1)).sum(-1) + (x.sum(-1) * total.log() - total)

    def entry_log_prob(
        self,
        output: Float[Tensor, "*batch gene"],
        library: Float[Tensor, "*batch"] | None,
        x: Float[Tensor, "*batch gene"],
    ) -> Float[Tensor, "*batch gene"]:
        """Poisson log probability of every gene, in double precision."""
        log_mean, x = self.log_mean(output, library).double(), x.double()
        return x * log_mean - log_mean.exp() - torch.lgamma(x + 1)

    def draw(self, mean: Float[Tensor, "*batch gene"]) -> Float[Tensor, "*batch gene"]:
        """Draw counts around a mean."""
        return torch.poisson(mean)


def _squares(output: Tensor, x: Tensor) -> Tensor:
    """(x - o)^2 in one pass each way."""
    output, x = torch.broadcast_tensors(output, x.to(output.dtype))
    return mse_loss(output, x, reduction="none")


def _library(library: Tensor | None, output: Tensor) -> Tensor:
    if library is None:
        raise DataError("library: found None; wanted the total counts of each cell, which a law of counts needs")
    library = library.to(output.dtype)
    return library.clamp(min=torch.finfo(library.dtype).tiny)


LIKELIHOODS = Likelihood.kinds
