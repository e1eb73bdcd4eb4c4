"""Projection of weighted graphs to DAGs, and exact tests of acyclicity, batched over leading dimensions."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from .errors import DataError, NumericalError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

__all__ = ["Projection", "is_acyclic", "kept_edges", "project", "topological_order"]

_CHUNK_ENTRIES = 2**24  # entries of weights worked on at a time
_PACKED_GENES = 64  # up to here a row of reachability is one integer
_PACKED_GRAPHS = 1024  # graphs at a time whose bit sets stay in the cache


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
    networks = loopless.masked_fill(~kept_edges(loopless), 0.0)
    removed = (loopless - networks).abs().flatten(1)
    total = loopless.abs().sum((-2, -1))
    threshold = removed.amax(-1) if p else total
    share = removed.sum(-1) / torch.where(total > 0, total, torch.ones_like(total))
    return Projection(networks.reshape(weights.shape), threshold.reshape(batch), share.reshape(batch))


@torch.no_grad()
def kept_edges(weights: Float[Tensor, "*batch p p"]) -> Bool[Tensor, "*batch p p"]:
    """Which entries `project` keeps where they are not 0, for weights that need no check.

    Parameters
    ----------
    weights
        Finite weights with a zero diagonal, shape (..., p, p).

    Returns
    -------
    Tensor
        True for entries that may stay; of the diagonal and of entries that are 0 it says nothing.
    """
    p = weights.shape[-1]
    chunks = weights.detach().abs().reshape(-1, p, p).split(max(1, _CHUNK_ENTRIES // max(1, p * p)))
    packed = p <= _PACKED_GENES and weights.device.type == "cpu"
    allowed = _allowed_pairs_packed if packed else _allowed_pairs_of_cyclic
    return torch.cat([allowed(chunk) for chunk in chunks]).reshape(weights.shape)


def _allowed_pairs_of_cyclic(magnitude: Float[Tensor, "graph p p"]) -> Bool[Tensor, "graph p p"]:
    """All pairs of graphs that are acyclic as they are: a pass a gene tells, where the search takes one an edge."""
    cyclic = ~is_acyclic(magnitude)
    allowed = torch.ones_like(magnitude, dtype=torch.bool)
    if bool(cyclic.any()):
        allowed[cyclic] = _allowed_pairs(magnitude[cyclic])
    return allowed


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


def _allowed_pairs_packed(magnitude: Float[Tensor, "graph p p"]) -> Bool[Tensor, "graph p p"]:
    """The same as `_allowed_pairs`, about five times faster, for up to 64 genes on the CPU.

    The genes that a gene reaches are the bits of one integer, entries are sorted once, and one pass a rank serves all
    graphs. NumPy, because these operations are short and torch takes several times longer to start one.
    """
    parts = [_reach_by_rank(part.double().numpy()) for part in magnitude.split(_PACKED_GRAPHS)]
    return torch.from_numpy(np.concatenate(parts))


def _reach_by_rank(magnitude: Float[np.ndarray, "graph p p"]) -> Bool[np.ndarray, "graph p p"]:
    count, p, _ = magnitude.shape
    entry, positive = _by_decreasing_size(magnitude.reshape(count, p * p))
    positive = positive[positive.any(1)]  # a prefix of the ranks
    width: np.dtype[Any] = np.dtype("uint16" if p <= 16 else "uint32" if p <= 32 else "uint64")
    regulator, target = np.divmod(entry[: len(positive)], max(p, 1))
    shift, kept_if_open = regulator.astype(width), positive.astype(width)
    place = target * count + np.arange(count)
    bits = np.arange(p, dtype=width)
    reaches = np.repeat((np.ones((), width) << bits)[:, None], count, 1)  # (gene, graph)
    gained, cycle, upstream = np.empty(count, width), np.empty(count, width), np.empty_like(reaches)
    for rank in range(len(positive)):
        np.take(reaches.ravel(), place[rank], out=gained, mode="clip")
        np.right_shift(gained, shift[rank], out=cycle)
        np.bitwise_and(cycle, 1, out=cycle)
        gained *= kept_if_open[rank] * (1 - cycle)
        np.right_shift(reaches, shift[rank], out=upstream)
        np.bitwise_and(upstream, 1, out=upstream)
        upstream *= gained
        reaches |= upstream
    return ((reaches.T[:, :, None] >> bits) & 1).astype(bool)


def _by_decreasing_size(
    magnitude: Float[np.ndarray, "graph entry"],
) -> tuple[Int[np.ndarray, "entry graph"], Bool[np.ndarray, "entry graph"]]:
    """Entries of each graph by decreasing magnitude, ties by index, and whether each is above zero.

    The bits of a non-negative number sort like the number. The last twelve give way to the index, so that the fast
    sort of integers carries it along; the few graphs in which those bits matter are sorted again.
    """
    index_bits = np.int64(4095)
    key = (magnitude.view(np.int64) | index_bits) - np.arange(magnitude.shape[1])
    key.sort(axis=1)
    entry = index_bits - (key[:, ::-1] & index_bits)
    size = np.take_along_axis(magnitude, entry, 1)
    step = np.diff(size)
    unsorted = ((step > 0) | ((step == 0) & (np.diff(entry) < 0))).any(1)
    entry[unsorted] = np.argsort(-magnitude[unsorted], axis=1, kind="stable")
    return np.ascontiguousarray(entry.T), np.arange(magnitude.shape[1])[:, None] < (magnitude > 0).sum(1)


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
