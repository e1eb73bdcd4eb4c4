"""The law of a cell's expression given the output of a decoder, as a distribution, and what a likelihood must offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from .errors import DataError, SchemaError
from .kinds import Part

if TYPE_CHECKING:
    from jaxtyping import Float


class Expression(TorchDistribution):
    """The law of expression that a likelihood gives to a decoder's output: batch (*b), event (gene,).

    Parameters
    ----------
    likelihood
        The module that scores and draws.
    output
        Output of the decoder.
    library
        Total counts; None for likelihoods of continuous data.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (torch declares it as an instance attribute)
    independent_entries = True

    def __init__(
        self,
        likelihood: Likelihood,
        output: Float[Tensor, "*batch gene"],
        library: Float[Tensor, "*batch"] | None = None,
    ) -> None:
        self.likelihood, self.output, self.library = likelihood, output, library
        batch = output.shape[:-1]
        if library is not None:
            batch = torch.broadcast_shapes(batch, library.shape)
        super().__init__(batch, output.shape[-1:], validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Vectors of counts, or of real numbers."""
        kind = constraints.nonnegative_integer if self.likelihood.counts else constraints.real
        return constraints.independent(kind, 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Expression:
        """Broadcast to `batch_shape`; parameters stay as they are and broadcast when used."""
        new = self._get_checked_instance(Expression, _instance)
        new.likelihood, new.output, new.library = self.likelihood, self.output, self.library
        super(Expression, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        return new

    @property
    def mean(self) -> Float[Tensor, "*batch gene"]:
        """Expected expression."""
        return self.likelihood.mean(self.output, self.library).expand(self.batch_shape + self.event_shape)

    def log_prob(self, value: Float[Tensor, "*batch gene"]) -> Float[Tensor, "*batch"]:
        """Log density of all genes together."""
        score = self.likelihood.log_score(self.output, self.library, value) + self.likelihood.base_measure(value)
        return score.expand(torch.broadcast_shapes(score.shape, self.batch_shape))

    def entry_log_prob(self, value: Float[Tensor, "*batch gene"]) -> Float[Tensor, "*batch gene"]:
        """Log density of every gene; genes are independent given the decoder's output."""
        return self.likelihood.entry_log_prob(self.output, self.library, value)

    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "*shape gene"]:
        """Draw expression."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            return self.likelihood.draw(self.likelihood.mean(self.output, self.library).expand(shape))


class Likelihood(Part, ABC):
    """Base of the likelihoods.

    Attributes
    ----------
    counts
        Whether it is a law of counts, which needs the library size of each cell.
    """

    family = "likelihood"
    counts: ClassVar[bool]

    def __init__(self, num_genes: int) -> None:
        super().__init__()
        if num_genes < 1:
            raise DataError(f"num_genes: found {num_genes}; wanted at least 1")
        self.num_genes = num_genes

    def forward(
        self, output: Float[Tensor, "*batch gene"], library: Float[Tensor, "*batch"] | None = None
    ) -> Expression:
        """The law of expression for a decoder's output."""
        return Expression(self, output, library if self.counts else None)

    @abstractmethod
    def log_score(
        self,
        output: Float[Tensor, "*batch gene"],
        library: Float[Tensor, "*batch"] | None,
        x: Float[Tensor, "*batch gene"],
    ) -> Float[Tensor, "*batch"]:
        """Log density of expression less `base_measure`: all that the parameters can change."""

    @abstractmethod
    def base_measure(self, x: Float[Tensor, "*batch gene"]) -> Float[Tensor, "*batch"]:
        """Terms of the log density that depend on the data alone."""

    def entry_log_prob(
        self,
        output: Float[Tensor, "*batch gene"],
        library: Float[Tensor, "*batch"] | None,
        x: Float[Tensor, "*batch gene"],
    ) -> Float[Tensor, "*batch gene"]:
        """Log density of every gene by itself; over genes they add up to score and base measure.

        Raises
        ------
        SchemaError
            If the likelihood does not say.
        """
        raise SchemaError(f"likelihood: found {self.kind!r} without entry_log_prob; wanted it for densities of entries")

    @abstractmethod
    def mean(
        self, output: Float[Tensor, "*batch gene"], library: Float[Tensor, "*batch"] | None
    ) -> Float[Tensor, "*batch gene"]:
        """Expected expression."""

    @abstractmethod
    def draw(self, mean: Float[Tensor, "*batch gene"]) -> Float[Tensor, "*batch gene"]:
        """Draw expression around a mean."""

    def settings(self) -> dict[str, Any]:
        """JSON description that `from_settings` rebuilds the shapes from."""
        return super().settings() | {"num_genes": self.num_genes}
