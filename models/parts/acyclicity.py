"""Acyclicity functions: smooth measures of how far a weighted graph is from a DAG.

Each takes weights W of shape (..., p, p), W[a, b] the effect of regulator a on target b, and returns h of shape (...):
zero exactly when the graph of non-zero weights is acyclic, positive otherwise, and growing in every |W[a, b]|.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from .errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = [
    "ACYCLICITY",
    "Acyclicity",
    "ExpmAcyclicity",
    "LogdetAcyclicity",
    "PolyAcyclicity",
    "SpectralAcyclicity",
    "union_squared",
]


class Acyclicity(Protocol):
    """What a model asks of an acyclicity function."""

    def __call__(self, weights: Float[Tensor, "*batch p p"]) -> Float[Tensor, "*batch"]:
        """Return h of the weights."""
        ...

    def of_squared(self, squared: Float[Tensor, "*batch p p"]) -> Float[Tensor, "*batch"]:
        """Return h of weights given by their squares, as from `union_squared`."""
        ...


def union_squared(archetypes: Float[Tensor, "*batch archetype p p"]) -> Float[Tensor, "*batch p p"]:
    """Sum the squared weights of archetypes, U = sum_k W_k * W_k.

    For any mixture on the simplex (sum_k z_k W_k)^2 <= U entry by entry, hence ``h(mixture) <= h.of_squared(U)``: one
    evaluation bounds h over all cells, seen and unseen. ``U.sqrt()`` are the weights of the union graph; U itself is
    what to differentiate, since its gradient exists at 0.

    Parameters
    ----------
    archetypes
        Weights of K archetypes, shape (..., K, p, p).

    Returns
    -------
    Tensor
        U, shape (..., p, p), squared units of the weights.
    """
    return archetypes.square().sum(-3)


@dataclass(frozen=True)
class ExpmAcyclicity:
    """The trace of the matrix exponential, h = tr exp(W * W) - p (NO TEARS, Zheng et al. 2018, eq. 9).

    Defined for all W, gradient ``exp(W * W)^T * 2 W``. Beyond ``linear_until`` h continues as
    ``linear_until * (1 + log(h / linear_until))``: still increasing in every weight, once continuously differentiable,
    and finite where the exponential itself overflows (float32: spectral radius of W * W above about 80).

    Attributes
    ----------
    linear_until
        Value of h up to which it is the plain formula.
    """

    linear_until: float = 1e6

    def __call__(self, weights: Float[Tensor, "*batch p p"]) -> Float[Tensor, "*batch"]:
        """Return h of the weights.

        Parameters
        ----------
        weights
            Weights with zero diagonal, shape (..., p, p).

        Returns
        -------
        Tensor
            h, shape (...); exactly 0 for a DAG.
        """
        return self.of_squared(weights.square())

    def of_squared(self, squared: Float[Tensor, "*batch p p"]) -> Float[Tensor, "*batch"]:
        """Return h given A = W * W, shape (..., p, p), entries not negative."""
        trace, log_scale = _trace_expm1(squared)
        return _continued(trace, log_scale, self.linear_until)


def _continued(trace: Tensor, log_scale: Tensor, limit: float) -> Tensor:
    """H = trace exp(log_scale) up to `limit`, and growing with its logarithm beyond."""
    number = torch.finfo(trace.dtype)
    # log(0) and exp(large) would send NaN through the unused branch of `where`.
    log_h = log_scale + trace.clamp_min(number.tiny).log()
    log_limit = math.log(limit)
    beyond = (trace > 0) & (log_h > log_limit)
    scale = torch.where(beyond, 0.0, log_scale).clamp_max(math.log(number.max) / 2).exp()
    continued = limit * (1.0 + log_h - log_limit)
    return torch.where(beyond, continued, trace * scale)


def _trace_expm1(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Trace of exp(A) - I for A >= 0 as (t, log c) with value t c, by scaling and squaring without subtraction.

    With E = exp(A) - I, doubling A turns E into E E + 2 E. All terms are >= 0, so nothing cancels, and the structural
    zeros of a DAG stay exact zeros. E is kept as c F with max F <= 1 and c a constant, which no A can overflow.
    """
    norm = float(matrix.detach().sum(-1).max()) if matrix.numel() else 0.0
    if not math.isfinite(norm):
        nan = matrix.sum((-2, -1)) * math.nan
        return nan, torch.zeros_like(nan)
    degree = 14 if matrix.dtype == torch.float64 else 8
    # Row sums of `scaled` are at most 1/2, which makes the terms beyond `degree` negligible, and the squarings bring in
    # all powers up to p, so that the longest cycle counts.
    doublings = max(0, math.ceil(math.log2(max(norm, 1e-30))) + 1, math.ceil(math.log2(matrix.shape[-1] / degree)) + 2)
    scaled = matrix / 2.0**doublings
    expm1 = scaled / degree
    for k in range(degree - 1, 0, -1):
        expm1 = (scaled @ expm1 + scaled) / k
    log_scale = torch.zeros_like(matrix[..., 0, 0])
    for _ in range(doublings):
        expm1 = expm1 @ expm1 + 2.0 * torch.exp(-log_scale)[..., None, None] * expm1
        size = expm1.detach().amax((-2, -1)).clamp_min(1.0)
        expm1 = expm1 / size[..., None, None]
        log_scale = 2.0 * log_scale + size.log()
    return expm1.diagonal(dim1=-2, dim2=-1).sum(-1), log_scale


@dataclass(frozen=True)
class LogdetAcyclicity:
    """The log-determinant of an M-matrix, h = -log det(s I - W * W) + p log s (DAGMA, Bello et al. 2022, eq. 7).

    Defined only where the spectral radius of W * W is below s, which is checked exactly: s I - A with A >= 0 is a
    non-singular M-matrix if and only if the solution of (s I - A) x = 1 is positive. Elements of the batch outside get
    h = +inf and gradient 0, so that an optimiser can reject or shorten its step; the others are not affected.

    Attributes
    ----------
    s
        Bound on the spectral radius, positive.
    """

    s: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an empty domain."""
        if not self.s > 0:
            raise DataError(f"LogdetAcyclicity: s is {self.s}, wanted a positive number")

    def __call__(self, weights: Float[Tensor, "*batch p p"]) -> Float[Tensor, "*batch"]:
        """Return h of the weights.

        Parameters
        ----------
        weights
            Weights with zero diagonal, shape (..., p, p).

        Returns
        -------
        Tensor
            h, shape (...); 0 up to rounding for a DAG, +inf outside the domain.
        """
        return self.of_squared(weights.square())

    def of_squared(self, squared: Float[Tensor, "*batch p p"]) -> Float[Tensor, "*batch"]:
        """Return h given A = W * W, shape (..., p, p), entries not negative."""
        p = squared.shape[-1]
        identity = torch.eye(p, dtype=squared.dtype, device=squared.device)
        with torch.no_grad():
            ones = torch.ones_like(squared[..., :1])
            solution = torch.linalg.solve_ex(self.s * identity - squared, ones).result[..., 0]
            inside = ((solution > 0) & solution.isfinite()).all(-1)
        # A singular matrix in the unused branch of `where` would make its gradient NaN.
        safe = torch.where(inside[..., None, None], squared, torch.zeros_like(squared))
        h = p * math.log(self.s) - torch.linalg.slogdet(self.s * identity - safe).logabsdet
        return torch.where(inside, h, torch.full_like(h, math.inf))


@dataclass(frozen=True)
class PolyAcyclicity:
    """The trace of a matrix power, h = tr (I + W * W / p)^p - p (Yu et al. 2019, DAG-GNN, eq. 13).

    Defined for all W, with p the number of genes: every cycle up to length p counts. Beyond ``linear_until`` h goes on
    as in `ExpmAcyclicity`.

    Attributes
    ----------
    linear_until
        Value of h up to which it is the plain formula.
    """

    linear_until: float = 1e6

    def __call__(self, weights: Float[Tensor, "*batch p p"]) -> Float[Tensor, "*batch"]:
        """Return h of the weights, shape (..., p, p)."""
        return self.of_squared(weights.square())

    def of_squared(self, squared: Float[Tensor, "*batch p p"]) -> Float[Tensor, "*batch"]:
        """Return h given A = W * W, shape (..., p, p), entries not negative."""
        p = squared.shape[-1]
        # (I + A)^p - I by squaring, from the highest bit of p: E -> E E + 2 E, and E -> E + A + A E for a set bit.
        # All terms are >= 0: nothing cancels, and the structural zeros of a DAG stay zeros.
        step = squared / p
        excess, log_scale = step, torch.zeros_like(squared[..., 0, 0])
        for bit in bin(p)[3:]:
            one = torch.exp(-log_scale)[..., None, None]
            excess = excess @ excess + 2.0 * one * excess
            size = excess.detach().amax((-2, -1)).clamp_min(1.0)
            excess, log_scale = excess / size[..., None, None], 2.0 * log_scale + size.log()
            if bit == "1":
                one = torch.exp(-log_scale)[..., None, None]
                excess = excess + one * step + step @ excess
                size = excess.detach().amax((-2, -1)).clamp_min(1.0)
                excess, log_scale = excess / size[..., None, None], log_scale + size.log()
        return _continued(excess.diagonal(dim1=-2, dim2=-1).sum(-1), log_scale, self.linear_until)


@dataclass(frozen=True)
class SpectralAcyclicity:
    """The spectral radius of W * W by power iteration (Lee et al. 2019, NO BEARS), zero exactly for DAGs.

    h = (1^T A^T 1 / p)^(1/T), which tends to the radius for long T (Gelfand). Taking the growth over all T steps, not
    of the last one, serves cycles too, on which plain power iteration oscillates; T >= p makes h exactly 0 for a DAG.

    Attributes
    ----------
    num_steps
        T, the number of genes if that is more.
    """

    num_steps: int = 32

    def __call__(self, weights: Float[Tensor, "*batch p p"]) -> Float[Tensor, "*batch"]:
        """Return h of the weights, shape (..., p, p)."""
        return self.of_squared(weights.square())

    def of_squared(self, squared: Float[Tensor, "*batch p p"]) -> Float[Tensor, "*batch"]:
        """Return h given A = W * W, shape (..., p, p), entries not negative."""
        p, num_steps = squared.shape[-1], max(self.num_steps, squared.shape[-1])
        v = torch.full_like(squared[..., :1], 1 / max(p, 1))
        log_growth = torch.zeros_like(squared[..., 0, 0])
        alive = torch.ones_like(log_growth, dtype=torch.bool)
        for _ in range(num_steps):
            v = squared @ v
            total = v.sum((-2, -1))
            alive = alive & (total > 0)
            safe = torch.where(alive, total, torch.ones_like(total))
            log_growth = log_growth + safe.log()
            v = v / safe[..., None, None]
        return torch.where(alive, (log_growth / num_steps).exp(), torch.zeros_like(log_growth))


ACYCLICITY: dict[str, Callable[[], Acyclicity]] = {
    "expm": ExpmAcyclicity,
    "logdet": LogdetAcyclicity,
    "poly": PolyAcyclicity,
    "spectral": SpectralAcyclicity,
}
