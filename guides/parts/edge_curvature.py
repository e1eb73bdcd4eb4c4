"""Curvature of the Kronecker-sum likelihood in single entries of one factor, with the other axis on a few nodes.

Given the eigenvalues mu_j of the other factor, the log-likelihood of Psi is that of p independent terms of precision
Psi + mu_j I. With R(j) = (Psi + mu_j I)^{-1}, one symmetric entry Psi_ik has gradient (sum_j R(j) - S)_ik and negative
second derivative H_ik = sum_j [R_ii(j) R_kk(j) + R_ik(j)^2] for one matrix (source: derived from the determinant of a
rank-2 change; confirmed by finite differences in the tests).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["Nodes", "block_trace", "curvature", "quadrature"]

NUM_NODES = 12
MANY_ROWS = 300


class Nodes(NamedTuple):
    """A few values that stand for all eigenvalues of the other axis.

    Attributes
    ----------
    values
        Values of mu, ascending, shape (node,).
    weights
        How many eigenvalues each stands for, shape (node,); they sum to the size of the other axis.
    """

    values: Float[Tensor, " node"]
    weights: Float[Tensor, " node"]


def quadrature(eigenvalues: Float[Tensor, " p"], num_nodes: int = NUM_NODES) -> Nodes:
    """Group the eigenvalues of the other axis: the two smallest stand alone, the rest in groups of equal count.

    The smallest eigenvalues come nearest to the edge of the cone, where R changes fastest.

    Parameters
    ----------
    eigenvalues
        Eigenvalues of the other factor, in any order.
    num_nodes
        Most nodes to use, at least 3; fewer eigenvalues than that are all kept.
    """
    ordered = eigenvalues.sort().values
    if len(ordered) <= num_nodes:
        return Nodes(ordered, torch.ones_like(ordered))
    groups = [ordered[:1], ordered[1:2], *torch.tensor_split(ordered[2:], num_nodes - 2)]
    values = torch.stack([group.mean() for group in groups])
    return Nodes(values, values.new_tensor([len(group) for group in groups]))


def block_trace(
    values: Float[Tensor, " n"], vectors: Float[Tensor, "n n"], other: Float[Tensor, " p"]
) -> Float[Tensor, "n n"]:
    """Sum of (Psi + mu_j I)^{-1} over the other axis: the expected Gram matrix of one matrix under the model.

    Parameters
    ----------
    values, vectors
        Eigenvalues and eigenvectors of Psi.
    other
        Eigenvalues mu_j of the other factor, with min(values) + min(other) > 0.
    """
    return _symmetric((vectors * (1 / (values[:, None] + other)).sum(1)) @ vectors.T)


def curvature(values: Float[Tensor, " n"], vectors: Float[Tensor, "n n"], nodes: Nodes) -> Float[Tensor, "n n"]:
    """Negative second derivative H of the log-likelihood of one matrix in each symmetric off-diagonal entry.

    Above 300 rows, sum_j R_ik(j)^2 is taken on 4 nodes: it is a small part of H and nearly all of its cost.

    Parameters
    ----------
    values, vectors
        Eigenvalues and eigenvectors of Psi.
    nodes
        Nodes of the other axis, with min(values) + min(nodes.values) > 0.
    """
    inverse = 1 / (values + nodes.values[:, None])
    diagonals = inverse @ (vectors**2).T
    total = (diagonals * nodes.weights[:, None]).T @ diagonals
    few = _coarser(nodes) if len(values) > MANY_ROWS and len(nodes.values) > 4 else nodes
    for value, weight in zip(few.values, few.weights, strict=True):
        resolvent = (vectors / (values + value)) @ vectors.T  # one at a time: memory stays n^2
        total.addcmul_(weight * resolvent, resolvent)
    return _symmetric(total)


def _symmetric(matrix: Tensor) -> Tensor:
    """Symmetric to the last bit, which products of matrices are not on every machine."""
    return (matrix + matrix.mT) / 2


def _coarser(nodes: Nodes) -> Nodes:
    """Two groups in place of all but the two smallest nodes."""
    middle = 2 + (len(nodes.values) - 2) // 2
    sizes = [1, 1, middle - 2, len(nodes.values) - middle]
    weights = torch.stack([part.sum() for part in nodes.weights.split(sizes)])
    sums = torch.stack([part.sum() for part in (nodes.weights * nodes.values).split(sizes)])
    return Nodes(sums / weights, weights)
