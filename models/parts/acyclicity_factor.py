"""What pulls the relaxed form of a mixture of networks towards DAGs: an acyclicity factor, or a soft order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .acyclicity import ACYCLICITY, union_squared
from .errors import DataError
from .sem import MixtureSEM, without_cell_axis

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Scope = Literal["union", "samples", "mean"]
SCOPES = ("union", "samples", "mean")


class AcyclicityFactor(torch.nn.Module):
    """The energy weight * n * h that pulls the relaxed form towards acyclic networks.

    Parameters
    ----------
    function
        ``"expm"`` (NOTEARS), ``"logdet"`` (DAGMA), ``"poly"`` (DAG-GNN) or ``"spectral"`` (NO BEARS).
    scope
        ``"union"``: h of the union of the archetypes, which bounds h of every cell, seen or not.
        ``"samples"``: mean h over a random subset of cells, as in the paper.
        ``"mean"``: h of the archetypes' squares weighted by their mean weights in a random subset of cells; archetypes
        that are hardly used count less. No bound for single cells.
    cyclic_likelihood
        Add log|det(I - W_i)|, which the residual likelihood lacks while networks are cyclic (scope ``"samples"``).
    weight
        Of the factor; routines raise it.
    num_rows
        Size of the random subset.
    """

    weight: Tensor

    def __init__(
        self,
        function: str = "expm",
        scope: Scope = "union",
        *,
        cyclic_likelihood: bool = False,
        weight: float = 1.0,
        num_rows: int = 64,
    ) -> None:
        super().__init__()
        if function not in ACYCLICITY:
            raise DataError(f"acyclicity function: found {function!r}; wanted one of {sorted(ACYCLICITY)}")
        if scope not in SCOPES:
            raise DataError(f"acyclicity scope: found {scope!r}; wanted one of {list(SCOPES)}")
        if cyclic_likelihood and scope != "samples":
            raise DataError(
                f"cyclic_likelihood: found scope {scope!r}; wanted 'samples', whose networks it is evaluated on"
            )
        self.function, self.scope, self.cyclic_likelihood, self.num_rows = function, scope, cyclic_likelihood, num_rows
        self.h = ACYCLICITY[function]()
        self.register_buffer("weight", torch.tensor(float(weight)))

    def forward(
        self,
        num_cells: int,
        archetypes: Float[Tensor, "*draw archetype regulator target"],
        equations: Callable[[Int[Tensor, " row"]], MixtureSEM],
    ) -> None:
        """Add the factor (eq. 3 of the paper; fact 4c of its bound for the union)."""
        if self.scope == "union":
            h = self.h.of_squared(union_squared(archetypes))
            pyro.factor("acyclicity", -num_cells * self.weight * h)
            return
        size = min(self.num_rows, num_cells)
        if self.scope == "mean":
            rows = torch.randperm(num_cells, device=archetypes.device)[:size]
            share = equations(rows).mixture.mean(-2)  # (*draw, archetype)
            dense = without_cell_axis(archetypes, 3)
            h = self.h.of_squared((share[..., None, None] * dense.square()).sum(-3))
            h = h if dense is archetypes else h.unsqueeze(-1)
            pyro.factor("acyclicity", -num_cells * self.weight * h)
            return
        with pyro.plate("acyclicity_cell", num_cells, subsample_size=size, dim=-1) as rows:
            sem = equations(rows)
            pyro.factor("acyclicity", -self.weight * self.h(sem.networks()))
            if self.cyclic_likelihood:
                pyro.factor("log_abs_det", sem.log_abs_det())

    def settings(self) -> dict[str, Any]:
        """JSON description."""
        keys = ("function", "scope", "cyclic_likelihood", "num_rows")
        return {key: getattr(self, key) for key in keys}


class OrderMask(torch.nn.Module):
    """A soft order in place of an acyclicity factor: W_k * sigmoid((s_b - s_a) / temperature).

    s ~ Normal(0, 1) are scores of the genes (site ``order_scores``); an edge a -> b passes as far as a comes before b.
    Routines lower the temperature; at zero all networks are acyclic, with the order of the scores.

    Parameters
    ----------
    temperature
        Difference of scores over which an order is undecided.
    """

    temperature: Tensor

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        if not temperature > 0:
            raise DataError(f"temperature: found {temperature!r}; wanted a positive number")
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def scores(self, num_genes: int) -> Float[Tensor, "*draw gene"]:
        """Draw the scores of the genes."""
        one = self.temperature.new_ones(())
        return pyro.sample("order_scores", dist.Normal(0 * one, one).expand((num_genes,)).to_event(1))

    def forward(
        self, archetypes: Float[Tensor, "*draw archetype regulator target"], scores: Float[Tensor, "*draw gene"]
    ) -> Float[Tensor, "*draw archetype regulator target"]:
        """Let pass what runs from early to late genes."""
        ahead = (scores.unsqueeze(-2) - scores.unsqueeze(-1)) / self.temperature
        return archetypes * ahead.sigmoid().unsqueeze(-3)

    def settings(self) -> dict[str, Any]:
        """JSON description."""
        return {"order_mask": True}


def acyclicity_from_settings(settings: dict[str, Any] | None) -> AcyclicityFactor | OrderMask | None:
    """Rebuild what `settings` describes; buffers are filled by the saved state."""
    if settings is None:
        return None
    return OrderMask() if settings.get("order_mask") else AcyclicityFactor(**settings)
