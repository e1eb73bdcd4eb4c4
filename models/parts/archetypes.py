"""Archetypal networks from their weights: dense, of low rank, or among factors.

| kind | weights | W_k | acyclic given an order |
|---|---|---|---|
| `DenseArchetypes` | ``edges`` (archetype, edge) | edges put into place | yes |
| `LowRankArchetypes` | ``loadings`` (archetype, gene, component), ``readout`` (component, gene) | L_k R * mask | yes |
| `FactorNetworks` | ``edges`` (archetype, edge), ``memberships`` (factor, gene) | P^T F_k P~ | among factors |

The mask holds what an order of the genes allows, or everything off the diagonal where there is no order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .errors import DataError
from .kinds import Part
from .priors import Prior

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

Weights = dict[str, Tensor]


class Archetypes(Part, ABC):
    """Base: which weights archetypes are made of, and how.

    Attributes
    ----------
    acyclic
        Whether networks among genes are DAGs given an order. Where they are not, the likelihood needs log|det(I - W)|.
    site_dims
        Event dims of the weights.
    """

    family = "archetypes"
    acyclic: ClassVar[bool] = True
    site_dims: ClassVar[Mapping[str, tuple[str, ...]]]

    def num_nodes(self, num_genes: int) -> int:
        """How many nodes an order sorts: the genes, or the factors."""
        return num_genes

    def check(self, num_genes: int) -> None:
        """Refuse a size that does not go with the number of genes.

        Raises
        ------
        DataError
            If there are more components or factors than genes.
        """

    @abstractmethod
    def edge_shape(self, num_archetypes: int, num_genes: int, *, ordered: bool) -> tuple[int, ...]:
        """Shape of the weights that the edge prior is for."""

    @abstractmethod
    def weights(self, num_archetypes: int, num_genes: int, prior: Prior, *, ordered: bool) -> Weights:
        """Draw all weights: the archetypes' part of the generative process."""

    @abstractmethod
    def build(
        self, weights: Mapping[str, Tensor], num_genes: int, order: Int[Tensor, "*draw rank"] | None
    ) -> Float[Tensor, "*draw archetype regulator target"]:
        """W_k from the weights."""

    def sorted_part(
        self, weights: Mapping[str, Tensor], archetypes: Float[Tensor, "*draw archetype regulator target"]
    ) -> Float[Tensor, "*draw archetype node node"]:
        """The networks that an order sorts, without one: among genes, or among factors."""
        return archetypes

    def given_orders(
        self,
        weights: Mapping[str, Tensor],
        archetypes: Float[Tensor, "archetype regulator target"],
        orders: Int[Tensor, "component rank"],
    ) -> dict[str, Float[Tensor, "component *shape"]]:
        """Weights under each of some orders, close to those of a point estimate without or with another order."""
        return {name: value.expand(len(orders), *value.shape) for name, value in weights.items()}


class DenseArchetypes(Archetypes):
    """One weight for every allowed edge of every archetype."""

    kind = "dense"
    site_dims: ClassVar[Mapping[str, tuple[str, ...]]] = {"edges": ("archetype", "edge")}

    def edge_shape(self, num_archetypes: int, num_genes: int, *, ordered: bool) -> tuple[int, ...]:
        """(K, edge): p(p-1)/2 edges given an order, p(p-1) without."""
        return (num_archetypes, num_edges(num_genes, ordered=ordered))

    def weights(self, num_archetypes: int, num_genes: int, prior: Prior, *, ordered: bool) -> Weights:
        """Effects on the allowed edges."""
        shape = self.edge_shape(num_archetypes, num_genes, ordered=ordered)
        return {"edges": pyro.sample("edges", prior.expand(shape))}

    def build(
        self, weights: Mapping[str, Tensor], num_genes: int, order: Int[Tensor, "*draw rank"] | None
    ) -> Float[Tensor, "*draw archetype regulator target"]:
        """Edges put into place; everything else is exactly zero."""
        return place(weights["edges"], num_genes, order)

    def given_orders(
        self,
        weights: Mapping[str, Tensor],
        archetypes: Float[Tensor, "archetype regulator target"],
        orders: Int[Tensor, "component rank"],
    ) -> dict[str, Float[Tensor, "component *shape"]]:
        """The entries of the archetypes that each order allows, in its own sequence."""
        a, b = torch.triu_indices(orders.shape[-1], orders.shape[-1], 1, device=orders.device)
        return {"edges": torch.stack([archetypes[:, order[a], order[b]] for order in orders])}


class LowRankArchetypes(Archetypes):
    """W_k = (L_k R) * mask: archetypes share the readout R, which keeps K p r + r p numbers instead of K p^2.

    The low-rank form of the original code, here masked by the order, so that networks are DAGs (their rank is that of
    L_k R before the mask). The edge prior is the prior of the loadings L; R ~ Normal(0, 1).

    Parameters
    ----------
    rank
        r, number of components.
    """

    kind = "low_rank"
    site_dims: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "loadings": ("archetype", "regulator", "component"),
        "readout": ("component", "target"),
    }

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = _at_least_one("rank", rank)

    def check(self, num_genes: int) -> None:
        """Refuse a rank that a matrix of the genes cannot have."""
        if self.rank >= num_genes:
            raise DataError(f"rank: found {self.rank} for {num_genes} genes; wanted fewer, or DenseArchetypes")

    def edge_shape(self, num_archetypes: int, num_genes: int, *, ordered: bool) -> tuple[int, ...]:
        """(K, p, r)."""
        return (num_archetypes, num_genes, self.rank)

    def weights(self, num_archetypes: int, num_genes: int, prior: Prior, *, ordered: bool) -> Weights:
        """Loadings and readout."""
        loadings = pyro.sample("loadings", prior.expand(self.edge_shape(num_archetypes, num_genes, ordered=ordered)))
        one = loadings.new_ones(())
        readout = pyro.sample("readout", dist.Normal(0 * one, one).expand((self.rank, num_genes)).to_event(2))
        return {"loadings": loadings, "readout": readout}

    def build(
        self, weights: Mapping[str, Tensor], num_genes: int, order: Int[Tensor, "*draw rank"] | None
    ) -> Float[Tensor, "*draw archetype regulator target"]:
        """(L_k R) * mask."""
        product = weights["loadings"] @ weights["readout"].unsqueeze(-3)
        mask = allowed(num_genes, order, product.device)
        return product * (mask if order is None else mask.unsqueeze(-3))

    def settings(self) -> dict[str, Any]:
        """JSON description."""
        return super().settings() | {"rank": self.rank}


class FactorNetworks(Archetypes):
    """Networks among r factors, on which genes load: W_k = P^T F_k P~ (the successor's factor form).

    P (factor, gene) is a softmax over factors: each gene is spread over factors and sums to one; P~ are the rows of P
    divided by their sums. F_k are DAGs among **factors**. W_k is a summary among genes: its diagonal is not zero and
    genes of one factor form cycles, so it is **not a DAG**, and neither is any mixture. X = b + X W + e still has one
    density, with log|det(I - W)|, and one solution wherever I - W is regular. An intervention on a gene is not defined.

    Parameters
    ----------
    num_factors
        r.
    """

    kind = "factors"
    acyclic: ClassVar[bool] = False
    site_dims: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "edges": ("archetype", "edge"),
        "memberships": ("factor", "gene"),
    }

    def __init__(self, num_factors: int) -> None:
        super().__init__()
        self.num_factors = _at_least_one("num_factors", num_factors, 2)

    def check(self, num_genes: int) -> None:
        """Refuse more factors than genes."""
        if self.num_factors > num_genes:
            raise DataError(f"num_factors: found {self.num_factors} for {num_genes} genes; wanted at most as many")

    def num_nodes(self, num_genes: int) -> int:
        """The number of factors."""
        return self.num_factors

    def edge_shape(self, num_archetypes: int, num_genes: int, *, ordered: bool) -> tuple[int, ...]:
        """(K, edge) among factors."""
        return (num_archetypes, num_edges(self.num_factors, ordered=ordered))

    def weights(self, num_archetypes: int, num_genes: int, prior: Prior, *, ordered: bool) -> Weights:
        """Effects among factors, and logits of the memberships of genes."""
        edges = pyro.sample("edges", prior.expand(self.edge_shape(num_archetypes, num_genes, ordered=ordered)))
        one = edges.new_ones(())
        law = dist.Normal(0 * one, 2 * one).expand((self.num_factors, num_genes)).to_event(2)
        return {"edges": edges, "memberships": pyro.sample("memberships", law)}

    def build(
        self, weights: Mapping[str, Tensor], num_genes: int, order: Int[Tensor, "*draw rank"] | None
    ) -> Float[Tensor, "*draw archetype regulator target"]:
        """P^T F_k P~."""
        P = weights["memberships"].softmax(-2).unsqueeze(-3)  # (*draw, 1, factor, gene)
        among_factors = place(weights["edges"], self.num_factors, order)
        return P.mT @ among_factors @ (P / P.sum(-1, keepdim=True))

    def sorted_part(
        self, weights: Mapping[str, Tensor], archetypes: Float[Tensor, "*draw archetype regulator target"]
    ) -> Float[Tensor, "*draw archetype node node"]:
        """Networks among factors."""
        return place(weights["edges"], self.num_factors, None)

    def given_orders(
        self,
        weights: Mapping[str, Tensor],
        archetypes: Float[Tensor, "archetype regulator target"],
        orders: Int[Tensor, "component rank"],
    ) -> dict[str, Float[Tensor, "component *shape"]]:
        """Memberships as they are; effects among factors that each order allows."""
        if weights["edges"].shape[-1] == num_edges(self.num_factors, ordered=True):
            return super().given_orders(weights, archetypes, orders)  # of the one order that they were fitted under
        among_factors = self.sorted_part(weights, archetypes)
        return {
            **DenseArchetypes().given_orders({}, among_factors, orders),
            "memberships": weights["memberships"].expand(len(orders), *weights["memberships"].shape),
        }

    def settings(self) -> dict[str, Any]:
        """JSON description."""
        return super().settings() | {"num_factors": self.num_factors}


def num_edges(num_nodes: int, *, ordered: bool) -> int:
    """Allowed edges among `num_nodes` nodes, with and without an order."""
    pairs = num_nodes * (num_nodes - 1)
    return pairs // 2 if ordered else pairs


def place(
    edges: Float[Tensor, "*draw archetype edge"], num_nodes: int, order: Int[Tensor, "*draw rank"] | None
) -> Float[Tensor, "*draw archetype regulator target"]:
    """Put the effects of allowed edges into square matrices; everything else is exactly zero.

    Without an order edges are listed by (regulator, target); given one, by the places of regulator and target in it.
    """
    p = num_nodes
    if order is None:
        regulator, target = (~torch.eye(p, dtype=torch.bool, device=edges.device)).nonzero().unbind(-1)
    else:
        regulator, target = torch.triu_indices(p, p, 1, device=edges.device)
    matrix = edges.new_zeros(*edges.shape[:-1], p * p).index_copy(-1, regulator * p + target, edges)
    matrix = matrix.unflatten(-1, (p, p))
    if order is None:
        return matrix
    rank = order.argsort(-1)  # rank[j]: place of gene j
    flat = (rank.unsqueeze(-1) * p + rank.unsqueeze(-2)).flatten(-2).unsqueeze(-2)
    shape = (*torch.broadcast_shapes(flat.shape[:-1], matrix.shape[:-2]), p * p)
    return matrix.flatten(-2).expand(shape).gather(-1, flat.expand(shape)).unflatten(-1, (p, p))


def allowed(
    num_nodes: int, order: Int[Tensor, "*draw rank"] | None, device: torch.device
) -> Bool[Tensor, "*draw regulator target"]:
    """Which entries an order allows; all off the diagonal without one."""
    if order is None:
        return ~torch.eye(num_nodes, dtype=torch.bool, device=device)
    rank = order.argsort(-1)
    return rank.unsqueeze(-1) < rank.unsqueeze(-2)


def _at_least_one(name: str, value: int, least: int = 1) -> int:
    if not isinstance(value, int) or value < least:
        raise DataError(f"{name}: found {value!r}; wanted a whole number of at least {least}")
    return value
