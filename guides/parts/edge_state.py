"""What is known of the edges of both axes: the user's prior knowledge and the state of the posterior."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from ...models.parts.errors import DataError
from ...models.parts.knowledge import known_nodes, known_pairs

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

__all__ = [
    "AxisEdges",
    "EdgePrior",
    "EdgeState",
    "check_statistics",
    "confident_precision",
    "off_diagonal",
    "upper_pairs",
]


@dataclass(frozen=True)
class EdgePrior:
    """Spike-and-slab prior on the edges of one axis, and what the user knows about them.

    Pair (i, k) is an edge with log-odds eta + log_odds_ik + log r_i + log r_k + theta c_ik, r the propensities over
    their mean and c_ik = 1 if likely edges join both nodes to a third one (else 0, with a ramp in between); the weight
    of an edge is Normal(0, s2). eta, s2 and theta are learned, under tight priors.

    Attributes
    ----------
    expected_degree
        Edges a node is expected to have; eta is centred on log(expected_degree / (n - 1)).
    log_odds_sd
        Prior sd of eta. With one matrix a loose prior (.5) inflates the number of edges several times.
    slab_scale
        Prior guess of the sd of the weights, at unit diagonal of the precision.
    slab_weight
        How many edges the guess of the slab counts for: 1 / s2 ~ Gamma(slab_weight, slab_weight slab_scale^2).
    log_odds
        Prior log-odds of single pairs on top of eta, symmetric, shape (n, n); None is 0. The diagonal is ignored.
    propensity
        Positive propensity r of each node to have edges (a regulator's is large; its known degree will do),
        shape (n,); None is 1.
    kind
        ``"sparse"``: only likely edges explain other entries away. ``"gaussian"``: every entry does, shrunk by a
        normal prior with estimated variance.
    hubs
        Shape kappa of a Gamma prior on node propensities that are learned from the sixth round on; None for none.
        Helps on graphs with hubs (use 3), hurts on others.
    closure_sd
        Prior sd of theta, centred on 0; None holds it at 0. Graphs of cliques and bands close their triangles, trees
        do not; theta tells them apart from what the likely edges show, and stays near 0 where there are few.
    """

    expected_degree: float = 2.0
    log_odds_sd: float = 0.15
    slab_scale: float = 0.25
    slab_weight: float = 10.0
    log_odds: Float[Tensor, "n n"] | None = None
    propensity: Float[Tensor, " n"] | None = None
    kind: Literal["sparse", "gaussian"] = "sparse"
    hubs: float | None = None
    closure_sd: float | None = 0.45

    def __post_init__(self) -> None:
        for name in ("expected_degree", "log_odds_sd", "slab_scale", "slab_weight", "hubs", "closure_sd"):
            value = getattr(self, name)
            if not (value is None and name in ("hubs", "closure_sd")) and not (math.isfinite(value) and value > 0):
                raise DataError(f"{name}: found {value}; wanted a positive number")
        if self.kind not in ("sparse", "gaussian"):
            raise DataError(f'kind: found {self.kind!r}; wanted "sparse" or "gaussian"')

    def centre(self, num_nodes: int) -> float:
        """Prior mean of eta for an axis of that many nodes."""
        return math.log(min(1.0, self.expected_degree / (num_nodes - 1)))

    def offset(self, like: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
        """Prior log-odds of each pair on top of eta, on the device of `like`, with zero diagonal.

        Raises
        ------
        DataError
            If `log_odds` or `propensity` has a wrong shape or unusable values.
        """
        total = torch.zeros_like(like)
        if self.log_odds is not None:
            total = total + self._of_size("log_odds", known_pairs(self.log_odds, "log_odds"), like)
        if self.propensity is not None:
            log = self._of_size("propensity", known_nodes(self.propensity), like).log()
            total = total + log[:, None] + log
        return total.fill_diagonal_(0.0)

    @staticmethod
    def _of_size(name: str, known: Tensor, like: Tensor) -> Tensor:
        wanted = like.shape[: known.dim()]
        if known.shape != wanted:
            raise DataError(f"{name}: found shape {tuple(known.shape)}; wanted {tuple(wanted)}")
        return known.to(like)


@dataclass(frozen=True)
class AxisEdges:
    """Posterior of the edges of one axis; all matrices are symmetric with shape (n, n).

    Attributes
    ----------
    probability
        Probability that the pair is an edge; zero diagonal.
    posterior_log_odds
        Log-odds of the pair before averaging over rounds: ranks pairs where the probability is rounded to 1.
    mean, variance
        Moments of the weight given that the edge is real.
    z
        Debiased entry over its standard error, all other entries at their estimates; zero diagonal.
    precision
        Psi with unit diagonal; exact zeros where the probability is at most 1/2 (kind ``"sparse"``).
    log_odds
        Learned prior log-odds eta, scalar.
    slab_variance
        Learned variance s2 of the weights, scalar.
    triangles
        c: how surely an edge would close a triangle with two likely edges, between 0 and 1; zero diagonal.
    closure
        Learned log-odds theta of closing a triangle, scalar.
    """

    probability: Float[Tensor, "n n"]
    posterior_log_odds: Float[Tensor, "n n"]
    mean: Float[Tensor, "n n"]
    variance: Float[Tensor, "n n"]
    z: Float[Tensor, "n n"]
    precision: Float[Tensor, "n n"]
    log_odds: Float[Tensor, ""]
    slab_variance: Float[Tensor, ""]
    triangles: Float[Tensor, "n n"]
    closure: Float[Tensor, ""]


@dataclass(frozen=True)
class EdgeState:
    """Both axes and how the iteration stands.

    Attributes
    ----------
    row, col
        Edges of the rows (n) and of the columns (p).
    rounds
        Rounds done.
    change
        Largest change of a precision entry in the last round.
    converged
        Whether `change` fell below the tolerance after the least number of rounds.
    """

    row: AxisEdges
    col: AxisEdges
    rounds: int
    change: float
    converged: bool


def off_diagonal(like: Float[Tensor, "n n"]) -> Bool[Tensor, "n n"]:
    """Mask of the off-diagonal entries."""
    return ~torch.eye(len(like), dtype=torch.bool, device=like.device)


def upper_pairs(like: Float[Tensor, "n n"]) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """Indices of the pairs above the diagonal."""
    i, k = torch.triu_indices(len(like), len(like), offset=1, device=like.device)
    return i, k


def confident_precision(axis: AxisEdges, level: float = 0.95) -> Float[Tensor, "n n"]:
    """Psi with only the edges above `level`: what to refit scales with, since noisy entries spoil the fit of scales."""
    keep = (axis.probability > level) | ~off_diagonal(axis.precision)
    return torch.where(keep, axis.precision, torch.zeros_like(axis.precision))


def check_statistics(S_row: Float[Tensor, "n n"], S_col: Float[Tensor, "p p"], num_matrices: int) -> None:
    """Raise a DataError unless the statistics are square, symmetric, finite and belong together."""
    for name, S in (("S_row", S_row), ("S_col", S_col)):
        if S.ndim != 2 or S.shape[0] != S.shape[1]:
            raise DataError(f"{name}: found shape {tuple(S.shape)}; wanted a square matrix")
        if not bool(S.isfinite().all()):
            raise DataError(f"{name}: found NaN or infinite entries; wanted finite ones")
        if not torch.allclose(S, S.T, rtol=1e-8, atol=1e-8 * float(S.abs().max())):
            raise DataError(f"{name}: found an asymmetric matrix; wanted Z Z' or Z' Z")
    traces = float(S_row.trace()), float(S_col.trace())
    if not (min(traces) > 0 and math.isclose(*traces, rel_tol=1e-3)):
        raise DataError(f"S_row, S_col: found traces {traces[0]:.6g} and {traces[1]:.6g}; wanted equal ones above 0")
    if num_matrices < 1:
        raise DataError(f"num_matrices: found {num_matrices}; wanted at least 1")
