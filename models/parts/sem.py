"""The structural equation model whose coefficients are a mixture of archetypes, as a distribution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from .entry_quadrature import identity_minus
from .errors import NumericalError
from .projection import kept_edges
from .sem_likelihoods import GaussianSEM, SEMLikelihood

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

GAUSSIAN = GaussianSEM()


def without_cell_axis(value: Tensor, event_dim: int) -> Tensor:
    """Drop the singleton axis of the cell plate left of the event axes, if there is one.

    Under vectorised draws a global site has shape (draw, 1, *event); leaving the 1 would broadcast archetypes over
    cells, which costs thirty times the matrix product.
    """
    axis = value.dim() - event_dim - 1
    return value.squeeze(axis) if axis >= 0 and value.shape[axis] == 1 else value


class MixtureSEM(TorchDistribution):
    r"""Linear structural equations with cell-specific coefficients.

    .. math:: x_i = b_i + x_i W_i + e_i,\quad W_i = \sum_k Z_{ik} W_k,\quad b_i = \sum_k Z_{ik} b_k

    with e Gaussian or as `likelihood` says. Scored by residuals, without ever building one matrix per cell, and sampled
    by solving. The density is normalised where every W_i is acyclic (then \|I - W_i\| = 1): for archetypes that share
    an order, and for `projected` networks. For cyclic W_i it lacks ``log|det(I - W_i)|``, which `log_abs_det` gives and
    `determinant` adds.

    Parameters
    ----------
    mixture
        Z, weights of the archetypes in each cell, ``(*batch, cell, archetype)``.
    archetypes
        W, ``(*batch, [1,] archetype, regulator, target)`` with zero diagonal; the 1 stands for the cell axis.
    intercepts
        b, ``(*batch, [1,] archetype, gene)``.
    sigma
        Scales of the noise, ``(*batch, [1,] gene)`` or one shared, ``(*batch, [1,] 1)``.
    likelihood
        Law of a gene given its regulators.
    parameters
        The likelihood's own unknowns.
    projected
        Whether W_i is the projection of the mixture to a DAG (`project`). Gradients hold fixed which edges are kept.
    kept
        Which edges are kept, ``(*batch, cell, regulator, target)``, where they are not to be found anew.
    determinant
        Whether the log density includes log|det(I - W_i)|.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(
        self,
        mixture: Float[Tensor, "*batch cell archetype"],
        archetypes: Float[Tensor, "*batch archetype regulator target"],
        intercepts: Float[Tensor, "*batch archetype gene"],
        sigma: Float[Tensor, "*batch gene"],
        likelihood: SEMLikelihood = GAUSSIAN,
        parameters: Mapping[str, Tensor] | None = None,
        *,
        projected: bool = False,
        kept: Bool[Tensor, "*batch cell regulator target"] | None = None,
        determinant: bool = False,
    ) -> None:
        num_genes = archetypes.shape[-1]
        rows = archetypes.flatten(-3, -2)
        drawn = torch.broadcast_shapes(rows.shape[:-2], intercepts.shape[:-2])  # one of them may be held at a value
        stacked = torch.cat([part.expand(*drawn, *part.shape[-2:]) for part in (rows, intercepts)], -2)
        self.mixture, self.archetypes, self.likelihood = mixture, archetypes, likelihood
        self._stacked, self.sigma, self._parameters = without_cell_axis(stacked, 2), sigma, dict(parameters or {})
        self.projected, self.kept, self.determinant = projected, kept, determinant
        batch = torch.broadcast_shapes(mixture.shape[:-1], archetypes.shape[:-3], sigma.shape[:-1])
        super().__init__(batch, torch.Size([num_genes]), validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Real vectors, or of 0 and 1 where genes are on or off."""
        return constraints.real_vector if self.likelihood.has_scale else constraints.independent(constraints.boolean, 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MixtureSEM:
        """Broadcast to `batch_shape`; parameters stay as they are and broadcast when used."""
        new = self._get_checked_instance(MixtureSEM, _instance)
        new.__dict__.update({k: v for k, v in self.__dict__.items() if k not in ("_batch_shape", "_event_shape")})
        super(MixtureSEM, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        return new

    def regression(self, x: Float[Tensor, "*batch cell gene"]) -> Float[Tensor, "*batch cell gene"]:
        """b_i + x_i W_i: what each gene is predicted to be from its regulators."""
        if self.projected:
            mixed = self._mixed()
            # Twice as fast as a product of vector and matrix in each cell.
            return self.intercepts() + (mixed * (self._kept(mixed) * x.unsqueeze(-1))).sum(-2)
        weighted = (self.mixture.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2)
        features = torch.cat([weighted, self.mixture.expand(*weighted.shape[:-1], -1)], -1)
        return features @ self._stacked

    def log_prob(self, x: Float[Tensor, "*batch cell gene"]) -> Float[Tensor, "*batch cell"]:
        """Log density of the cells, summed over genes; shape (*batch, cell)."""
        score = self.likelihood.log_prob(x, self.regression(x), self.sigma, self._parameters)
        return score + self.log_abs_det() if self.determinant else score

    def entry_log_prob(self, x: Float[Tensor, "*batch cell gene"]) -> Float[Tensor, "*batch cell gene"]:
        """Log density of every gene given the other genes of its cell, regulators and targets."""
        return self.likelihood.entry_log_prob(x, self.regression(x), self.sigma, self._parameters, self.networks())

    def networks(self) -> Float[Tensor, "*batch cell regulator target"]:
        """W_i of every cell, built; projected where the model says so."""
        mixed = self._mixed()
        return mixed * self._kept(mixed) if self.projected else mixed

    def _mixed(self) -> Tensor:
        flat = without_cell_axis(self.archetypes, 3).flatten(-2)
        return (self.mixture @ flat).unflatten(-1, self.archetypes.shape[-2:])

    def _kept(self, mixed: Tensor) -> Tensor:
        if self.kept is not None:
            return self.kept
        # A weight that is not finite stays so in the product, for the routine to see.
        return kept_edges(torch.nan_to_num(mixed.detach()))

    def intercepts(self) -> Float[Tensor, "*batch cell gene"]:
        """b_i of every cell."""
        return self.mixture @ self._stacked[..., self.archetypes.shape[-3] * self.archetypes.shape[-2] :, :]

    def log_abs_det(self) -> Float[Tensor, "*batch cell"]:
        """log|det(I - W_i)| of every cell: zero for acyclic networks."""
        return torch.linalg.slogdet(identity_minus(self.networks())).logabsdet

    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "*shape gene"]:
        """Draw noise e_i and solve the equations of each cell for x_i.

        Raises
        ------
        NumericalError
            If some I - W_i is singular, which an acyclic network never is.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            noise = self.likelihood.noise(shape, self.sigma, self._parameters)
            intercepts, networks = self.intercepts(), self.networks()
            first = self.likelihood.respond(intercepts.expand(shape), noise)
            if first is not None:
                return self._from_first_to_last(first, intercepts, networks, noise)
            system = identity_minus(networks)
            solution, info = torch.linalg.solve_ex(system.mT, (intercepts + noise).unsqueeze(-1))
            if bool((info != 0).any()):
                raise NumericalError("expression: I - W is singular for a cell; simulation needs acyclic networks")
            return solution.squeeze(-1)

    def _from_first_to_last(self, x: Tensor, intercepts: Tensor, networks: Tensor, noise: Tensor) -> Tensor:
        """Respond to x with the same noise until x stays.

        Genes without regulators are right at once, then their targets: a DAG takes at most as many rounds as it has
        genes.
        """
        for _ in range(x.shape[-1]):
            new = self.likelihood.respond(intercepts + (x.unsqueeze(-2) @ networks).squeeze(-2), noise)
            if new is None or torch.equal(new, x):
                return x
            x = new
        raise NumericalError("expression: responses of a cell go round in circles; simulation needs acyclic networks")
