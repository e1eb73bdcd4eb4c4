"""The structural equation model whose coefficients are a mixture of archetypes, as a distribution."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from .errors import NumericalError

if TYPE_CHECKING:
    from jaxtyping import Float


def without_cell_axis(value: Tensor, event_dim: int) -> Tensor:
    """Drop the singleton axis of the cell plate left of the event axes, if there is one.

    Under vectorised draws a global site has shape (draw, 1, *event); leaving the 1 would broadcast archetypes over
    cells, which costs thirty times the matrix product.
    """
    axis = value.dim() - event_dim - 1
    return value.squeeze(axis) if axis >= 0 and value.shape[axis] == 1 else value


class MixtureSEM(TorchDistribution):
    r"""Linear Gaussian structural equations with cell-specific coefficients.

    .. math:: x_i = b_i + x_i W_i + e_i,\quad W_i = \sum_k Z_{ik} W_k,\quad b_i = \sum_k Z_{ik} b_k,
              \quad e_{ij} \sim N(0, \sigma_j^2)

    Scored by residuals, without ever building one matrix per cell, and sampled by solving. The density is normalised
    where every W_i is acyclic (then \|I - W_i\| = 1); for cyclic W_i it lacks ``log|det(I - W_i)|``, which
    `log_abs_det` gives.

    Parameters
    ----------
    mixture
        Z, weights of the archetypes in each cell, ``(*batch, cell, archetype)``.
    archetypes
        W, ``(*batch, [1,] archetype, regulator, target)`` with zero diagonal; the 1 stands for the cell axis.
    intercepts
        b, ``(*batch, [1,] archetype, gene)``.
    sigma
        Noise standard deviations, ``(*batch, [1,] gene)`` or one shared, ``(*batch, [1,] 1)``.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(
        self,
        mixture: Float[Tensor, "*batch cell archetype"],
        archetypes: Float[Tensor, "*batch archetype regulator target"],
        intercepts: Float[Tensor, "*batch archetype gene"],
        sigma: Float[Tensor, "*batch gene"],
    ) -> None:
        num_genes = archetypes.shape[-1]
        stacked = torch.cat([archetypes.flatten(-3, -2), intercepts], -2)
        self.mixture, self.archetypes = mixture, archetypes
        self._stacked, self.sigma = without_cell_axis(stacked, 2), sigma
        batch = torch.broadcast_shapes(mixture.shape[:-1], archetypes.shape[:-3], sigma.shape[:-1])
        super().__init__(batch, torch.Size([num_genes]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MixtureSEM:
        """Broadcast to `batch_shape`; parameters stay as they are and broadcast when used."""
        new = self._get_checked_instance(MixtureSEM, _instance)
        new.__dict__.update({k: v for k, v in self.__dict__.items() if k not in ("_batch_shape", "_event_shape")})
        super(MixtureSEM, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        return new

    def regression(self, x: Float[Tensor, "*batch cell gene"]) -> Float[Tensor, "*batch cell gene"]:
        """b_i + x_i W_i: what each gene is predicted to be from its regulators."""
        weighted = (self.mixture.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2)
        features = torch.cat([weighted, self.mixture.expand(*weighted.shape[:-1], -1)], -1)
        return features @ self._stacked

    def log_prob(self, x: Float[Tensor, "*batch cell gene"]) -> Float[Tensor, "*batch cell"]:
        """Log density of the residuals, summed over genes; shape (*batch, cell)."""
        standard = (x - self.regression(x)) / self.sigma
        log_scale = self.sigma.log().expand(*self.sigma.shape[:-1], x.shape[-1]).sum(-1)
        return -0.5 * standard.square().sum(-1) - log_scale - 0.5 * x.shape[-1] * math.log(2 * math.pi)

    def networks(self) -> Float[Tensor, "*batch cell regulator target"]:
        """W_i of every cell, built; for sampling and for a few cells only."""
        flat = without_cell_axis(self.archetypes, 3).flatten(-2)
        return (self.mixture @ flat).unflatten(-1, self.archetypes.shape[-2:])

    def log_abs_det(self) -> Float[Tensor, "*batch cell"]:
        """log|det(I - W_i)| of every cell: zero for acyclic networks."""
        return torch.linalg.slogdet(_identity_minus(self.networks())).logabsdet

    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "*shape gene"]:
        """Solve x_i (I - W_i) = b_i + e_i for x_i.

        Raises
        ------
        NumericalError
            If some I - W_i is singular, which an acyclic network never is.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            num_rows = self.archetypes.shape[-3] * self.archetypes.shape[-2]
            noise = torch.randn(shape, dtype=self.mixture.dtype, device=self.mixture.device) * self.sigma
            right = self.mixture @ self._stacked[..., num_rows:, :] + noise
            system = _identity_minus(self.networks())
            solution, info = torch.linalg.solve_ex(system.mT, right.unsqueeze(-1))
            if bool((info != 0).any()):
                raise NumericalError("expression: I - W is singular for a cell; simulation needs acyclic networks")
            return solution.squeeze(-1)


def _identity_minus(networks: Tensor) -> Tensor:
    return torch.eye(networks.shape[-1], dtype=networks.dtype, device=networks.device) - networks
