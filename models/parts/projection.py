"""Projection of weighted graphs to DAGs, and exact tests of acyclicity, batched over leading dimensions."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, NamedTuple

import torch

from .errors import DataError, NumericalError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

__all__ = ["Projection", "is_acyclic", "project", "topological_order"]

_CHUNK_ENTRIES = 2**24  # entries of weights worked on at a time


class Projection(NamedTuple):
    """Projected networks and what the projection removed.

    Attributes
    ----------
    networks
        Acyclic weights, shape (..., p, p): each entry is kept as it was or is 0.
    threshold
        Largest removed magnitude, shape (...), 0 if none: all entries above it were kept.
    removed_mass
        Share of the off-diagonal L1 mass that was removed, shape (...), 0 for an empty graph.
    """

    networks: Float[Tensor, "*batch p p"]
    threshold: Float[Tensor, "*batch"]
    removed_mass: Float[Tensor, "*batch"]


@torch.no_grad()
def project(weights: Float[Tensor, "*batch p p"]) -> Projection:
    """Keep the heaviest edges of each graph that close no cycle.

    Entries are visited by decreasing magnitude, ties by (row, column); an edge is kept unless its target already
    reaches its regulator. This equals thresholding at the smallest magnitude that leaves a DAG, followed by adding
    back what fits. The result is maximal: adding any removed edge closes a cycle. Diagonals are set to 0 first.

    Parameters
    ----------
    weights
        Weights, shape (..., p, p); never changed.

    Returns
    -------
    Projection
        Networks (a new tensor without gradient, equal to `weights` up to the diagonal where these are acyclic),
        threshold and removed mass.

    Raises
    ------
    NumericalError
        If a weight is NaN or infinite.
    """
    _require_square(weights)
    bad = ~weights.isfinite()
    if bool(bad.any()):
        where = tuple(bad.nonzero()[0].tolist())
        raise NumericalError(
            f"project: {int(bad.sum())} of {weights.numel()} weights are NaN or infinite, the first at {where}"
        )
    batch, p = weights.shape[:-2], weights.shape[-1]
    diagonal = torch.eye(p, dtype=torch.bool, device=weights.device)
    loopless = weights.detach().masked_fill(diagonal, 0.0).reshape(-1, p, p)
    chunks = loopless.split(max(1, _CHUNK_ENTRIES // max(1, p * p)))
    networks = torch.cat([chunk.masked_fill(~_allowed_pairs(chunk.abs()), 0.0) for chunk in chunks])
    removed = (loopless - networks).abs().flatten(1)
    total = loopless.abs().sum((-2, -1))
    threshold = removed.amax(-1) if p else total
    share = removed.sum(-1) / torch.where(total > 0, total, torch.ones_like(total))
    return Projection(networks.reshape(weights.shape), threshold.reshape(batch), share.reshape(batch))


def _allowed_pairs(magnitude: Float[Tensor, "graph p p"]) -> Bool[Tensor, "graph p p"]:
    """Find the reachability of the greedy projection, which holds exactly the entries to keep.

    An entry whose pair is already decided (one gene reaches the other) cannot change the reachability, so every pass
    takes from each graph the heaviest entry that is still open.
    """
    count, p, _ = magnitude.shape
    graph = torch.arange(count, device=magnitude.device)
    reaches = torch.eye(p, dtype=torch.bool, device=magnitude.device).repeat(count, 1, 1)
    still_open = magnitude.clone()
    while still_open.numel():
        heaviest = still_open.flatten(1).argmax(1)  # the first of equals, so ties go by (row, column)
        regulator, target = heaviest // p, heaviest % p
        found = still_open[graph, regulator, target] > 0
        if not bool(found.any()):
            break
        upstream = reaches[graph, :, regulator] & found[:, None]
        decided = upstream[:, :, None] & reaches[graph, target][:, None, :]
        reaches |= decided
        still_open.masked_fill_(decided | decided.mT, 0.0)
    return reaches


@torch.no_grad()
def is_acyclic(weights: Float[Tensor, "*batch p p"]) -> Bool[Tensor, "*batch"]:
    """Tell which graphs have no directed cycle, exactly.

    Genes without a remaining regulator are peeled off until none is left (acyclic) or none can go (cyclic).

    Parameters
    ----------
    weights
        Weights or an adjacency of any dtype, shape (..., p, p). Every entry other than 0 is an edge, on the diagonal
        too.

    Returns
    -------
    Tensor
        True where acyclic, shape (...).
    """
    _require_square(weights)
    edges = weights != 0
    remaining = torch.ones(weights.shape[:-1], dtype=torch.bool, device=weights.device)
    for _ in range(weights.shape[-1]):
        regulated = (edges & remaining[..., :, None]).any(-2)
        peeled = remaining & regulated
        if torch.equal(peeled, remaining):
            break
        remaining = peeled
    return ~remaining.any(-1)


def topological_order(weights: Float[Tensor, "p p"]) -> Int[Tensor, " p"]:
    """Order the genes of one DAG such that regulators come before their targets.

    Of all such orders the smallest one in lexicographic sense, hence deterministic.

    Parameters
    ----------
    weights
        Weights of one graph, shape (p, p); every entry other than 0 is an edge.

    Returns
    -------
    Tensor
        Gene indices from first to last, shape (p,), dtype int64.

    Raises
    ------
    DataError
        If the graph has a cycle.
    """
    if weights.ndim != 2:
        raise DataError(f"topological_order: weights has shape {tuple(weights.shape)}, wanted one graph (p, p)")
    _require_square(weights)
    edges = (weights != 0).cpu()
    waiting_for = edges.sum(0).tolist()
    ready = [gene for gene, count in enumerate(waiting_for) if count == 0]
    order: list[int] = []
    while ready:
        gene = heapq.heappop(ready)
        order.append(gene)
        for target in edges[gene].nonzero()[:, 0].tolist():
            waiting_for[target] -= 1
            if waiting_for[target] == 0:
                heapq.heappush(ready, target)
    if len(order) < len(waiting_for):
        raise DataError(f"topological_order: weights has a cycle among {len(waiting_for) - len(order)} genes")
    return torch.tensor(order, dtype=torch.long, device=weights.device)


def _require_square(weights: Tensor) -> None:
    if weights.ndim < 2 or weights.shape[-1] != weights.shape[-2]:
        raise DataError(f"weights has shape {tuple(weights.shape)}, wanted square matrices (..., p, p)")
