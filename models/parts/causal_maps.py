"""Causal maps: from independent causes Z to the latents C that they drive, c_k = z_k + h_k(c_<k), in a fixed order.

What can be learnt: when environments change the law of Z only (noise interventions), the map is the same in all,
and a decoder with a map gives the same law of expression in every environment as the decoder after the map without
one. The graph among the latents is then not identifiable. Interventions that cut the edges into their target (hard
interventions) break the tie: with a linear decoder, one on each latent determines the graph up to relabelling.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .errors import DataError
from .kinds import Part

if TYPE_CHECKING:
    from jaxtyping import Float


class CausalMap(Part, ABC):
    """Base of the maps. They start as the identity.

    Parameters
    ----------
    num_latents
        Number of latents.

    Raises
    ------
    DataError
        If there are none.
    """

    family = "causal_map"

    def __init__(self, num_latents: int) -> None:
        super().__init__()
        if num_latents < 1:
            raise DataError(f"num_latents: found {num_latents}; wanted at least 1")
        self.num_latents = num_latents

    @abstractmethod
    def mechanism(self, k: int, parents: Float[Tensor, "*batch {k}"]) -> Float[Tensor, "*batch"]:
        """h_k, for k > 0: what the latents before k add to latent k."""

    def forward(
        self, z: Float[Tensor, "*batch latent"], cut: Float[Tensor, "*batch latent"] | None = None
    ) -> Float[Tensor, "*batch latent"]:
        """Latents c of the causes z.

        Parameters
        ----------
        z
            Independent causes.
        cut
            1 where a hard intervention cuts the edges into a latent, so that c_k = z_k; 0 elsewhere. A probability
            in between weakens them.
        """
        if cut is not None:
            z, kept = torch.broadcast_tensors(z, 1 - cut)
        columns = [z[..., 0]]
        for k in range(1, self.num_latents):
            effect = self.mechanism(k, torch.stack(columns, -1))
            columns.append(z[..., k] + (effect if cut is None else kept[..., k] * effect))
        return torch.stack(columns, -1)

    def settings(self) -> dict[str, Any]:
        """JSON description that `from_settings` rebuilds the shapes from."""
        return super().settings() | {"num_latents": self.num_latents}


class LinearMap(CausalMap):
    """h_k(c_<k) = sum_{j<k} B_kj c_j.

    Attributes
    ----------
    weight
        (target, source); only what is below the diagonal counts.
    """

    kind = "linear"

    def __init__(self, num_latents: int) -> None:
        super().__init__(num_latents)
        self.weight = nn.Parameter(torch.zeros(num_latents, num_latents))

    @property
    def effects(self) -> Float[Tensor, "target source"]:
        """B, strictly lower triangular."""
        return self.weight.tril(-1)

    def mechanism(self, k: int, parents: Float[Tensor, "*batch {k}"]) -> Float[Tensor, "*batch"]:
        """Sum over the latents j before k of B_kj c_j."""
        return parents @ self.weight[k, :k]

    def forward(
        self, z: Float[Tensor, "*batch latent"], cut: Float[Tensor, "*batch latent"] | None = None
    ) -> Float[Tensor, "*batch latent"]:
        """Latents c = (I - B)^-1 z, one after the other where edges are cut."""
        if cut is not None:
            return super().forward(z, cut)
        effects = self.effects
        system = torch.eye(self.num_latents, dtype=effects.dtype, device=effects.device) - effects
        rows = z.reshape(-1, self.num_latents)
        solved = torch.linalg.solve_triangular(system.mT, rows, upper=True, left=False, unitriangular=True)
        return solved.reshape(z.shape)


class AutoregressiveMap(CausalMap):
    """h_k(c_<k) = v_k' relu(A_k c_<k + a_k): one small network a latent.

    Parameters
    ----------
    num_latents
        Number of latents.
    hidden
        Units of each network.

    Attributes
    ----------
    input_weight, input_bias, output_weight
        A (latent, unit, latent), of which the latents before k count, a (latent, unit) and v (latent, unit).

    Raises
    ------
    DataError
        If a size is below 1.
    """

    kind = "autoregressive"

    def __init__(self, num_latents: int, hidden: int = 16) -> None:
        super().__init__(num_latents)
        if hidden < 1:
            raise DataError(f"hidden: found {hidden}; wanted at least 1")
        self.hidden = hidden
        bound = torch.arange(num_latents).clamp(min=1).rsqrt()  # as `nn.Linear` starts, with k inputs
        weight = (2 * torch.rand(num_latents, hidden, num_latents) - 1) * bound[:, None, None]
        self.input_weight = nn.Parameter(weight)
        self.input_bias = nn.Parameter((2 * torch.rand(num_latents, hidden) - 1) * bound[:, None])
        self.output_weight = nn.Parameter(torch.zeros(num_latents, hidden))

    def mechanism(self, k: int, parents: Float[Tensor, "*batch {k}"]) -> Float[Tensor, "*batch"]:
        """v_k' relu(A_k c_<k + a_k)."""
        units = nn.functional.linear(parents, self.input_weight[k, :, :k], self.input_bias[k])
        return units.relu() @ self.output_weight[k]

    def settings(self) -> dict[str, Any]:
        """JSON description that `from_settings` rebuilds the shapes from."""
        return super().settings() | {"hidden": self.hidden}


CAUSAL_MAPS = CausalMap.kinds
