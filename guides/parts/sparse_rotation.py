"""The rotation of a latent space in which environments move few latents each.

A latent space with a rotation-invariant law is known up to an orthogonal matrix. Which one is meant is decided by the
means of the environments alone, so it is searched for on that small matrix, without data or networks:

    minimise  sum_ek |(M R)_ek|  over orthogonal R,

by projected gradient steps on sqrt(a^2 + eps^2) with eps falling, from many starting points at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ...models.parts.errors import DataError, NumericalError

if TYPE_CHECKING:
    from jaxtyping import Float

SMOOTHING = (0.5, 0.01)  # of the largest entry of M: first and last eps
STEP = 1.5  # of eps / |M|^2; a step that does not shrink with eps oscillates around the kinks
POLISHING = 20
ZERO = 0.2  # of the largest entry of M: what the polish takes for a zero
GAIN = 0.005  # relative fall of the cost that a rotation must bring
SAME = 0.01  # relative difference of cost within which restarts are at the same optimum


@dataclass(frozen=True)
class Rotation:
    """A rotation of latents and how sure it is.

    Attributes
    ----------
    matrix
        Orthogonal; new means are ``M @ matrix``. The identity where nothing was to be gained.
    agreement
        Share of restarts that ended within 1 % of the lowest cost. Below 0.2 the environments do not determine the
        latent axes.
    accepted
        Whether the cost fell by more than 0.5 %.
    cost_before, cost_after
        Sum of absolute entries of M and of ``M @ matrix``.
    """

    matrix: Float[Tensor, "latent latent_new"]
    agreement: float
    accepted: bool
    cost_before: float
    cost_after: float


@torch.no_grad()
def sparse_rotation(
    M: Float[Tensor, "condition latent"],
    *,
    num_restarts: int = 40,
    num_iterations: int = 250,
    seed: int = 0,
    generator: torch.Generator | None = None,
) -> Rotation:
    """Rotate so that rows have few entries that are not small.

    Works in double precision on the device of `M`. Among the column orders and signs, which the cost leaves open, the
    ones nearest to the identity are taken; calling it again on the rotated matrix gives the identity.

    Parameters
    ----------
    M
        Means of the environments, relative to the control if there is one; units of the latents.
    num_restarts
        Starting points: the identity and random orthogonal matrices.
    num_iterations
        Steps from each of them.
    seed
        Seed of the starting points; the caller's random state is left alone.
    generator
        Generator on the CPU to draw them from, in place of `seed`.

    Returns
    -------
    Rotation
        Of the dtype of `M`. If `M` is 0 the identity, with agreement 0: no axis is determined.

    Raises
    ------
    DataError
        If `M` is not a matrix, or a count is below 1.
    NumericalError
        If `M` is not finite.
    """
    _check(M, num_restarts, num_iterations)
    A = M.detach().double()
    d = A.shape[1]
    before = float(A.abs().sum())
    identity = torch.eye(d, dtype=M.dtype, device=M.device)
    if before == 0:
        return Rotation(identity, 0.0, False, 0.0, 0.0)
    A = A / A.abs().max()
    draws = torch.Generator().manual_seed(seed) if generator is None else generator
    R = _descend(A, random_rotations(d, num_restarts, draws).to(A.device), num_iterations)
    costs = _cost(A, R)
    agreement = float((costs <= (1 + SAME) * costs.min()).double().mean())
    best = _polished(A, R[costs.argmin()])
    after, start = float(_cost(A, best)), float(A.abs().sum())
    if not after < (1 - GAIN) * start:
        return Rotation(identity, agreement, False, before, before)
    return Rotation(_relabelled(best).to(M.dtype), agreement, True, before, before * after / start)


def _check(M: Tensor, num_restarts: int, num_iterations: int) -> None:
    if M.dim() != 2 or 0 in M.shape:
        raise DataError(f"M: found shape {tuple(M.shape)}; wanted (condition, latent), neither of them 0")
    for name, count in (("num_restarts", num_restarts), ("num_iterations", num_iterations)):
        if count < 1:
            raise DataError(f"{name}: found {count}; wanted at least 1")
    if not bool(torch.isfinite(M).all()):
        raise NumericalError("M: found NaN or infinity; wanted finite means of the environments")


def _cost(A: Tensor, R: Tensor) -> Tensor:
    return (A @ R).abs().sum((-1, -2))


def random_rotations(d: int, num: int, generator: torch.Generator) -> Float[Tensor, "restart latent latent_new"]:
    """The identity and draws from the uniform law of orthogonal matrices, in double precision."""
    draws = torch.randn(num, d, d, dtype=torch.double, generator=generator)
    Q, triangle = torch.linalg.qr(draws)
    Q = Q * triangle.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # without it the law is not uniform
    Q[0] = torch.eye(d, dtype=torch.double)
    return Q


def polar(X: Float[Tensor, "*b latent latent_new"]) -> Float[Tensor, "*b latent latent_new"]:
    """Nearest orthogonal matrices."""
    U, _, Vh = torch.linalg.svd(X)
    return U @ Vh


def _descend(A: Tensor, R: Tensor, num_iterations: int) -> Float[Tensor, "restart latent latent_new"]:
    first, last = SMOOTHING
    ratio = (last / first) ** (1 / max(num_iterations - 1, 1))
    curvature = float(torch.linalg.matrix_norm(A, 2)) ** 2
    eps = first
    for _ in range(num_iterations):
        means = A @ R
        slope = means / torch.sqrt(means.square() + eps**2)
        R = polar(R - (STEP * eps / curvature) * (A.mT @ slope))
        eps *= ratio
    return R


def _polished(A: Tensor, R: Tensor) -> Float[Tensor, "latent latent_new"]:
    """Least-squares fit to what is left when small entries are set to 0."""
    rank = int(torch.linalg.matrix_rank(A))
    for _ in range(POLISHING):
        means = A @ R
        kept = means * (means.abs() >= ZERO)
        target = A.mT @ kept
        if int(torch.linalg.matrix_rank(kept)) < rank:
            break
        # Directions in which no environment moves stay as they are.
        R = polar(target + 1e-9 * torch.linalg.matrix_norm(target, 2) * R)
    return R


def _relabelled(R: Tensor) -> Float[Tensor, "latent latent_new"]:
    rows, columns = linear_sum_assignment(-R.abs().cpu().numpy())
    order = torch.as_tensor(columns, device=R.device)[torch.as_tensor(rows, device=R.device).argsort()]
    R = R[:, order]
    signs = torch.where(R.diagonal() < 0, -1.0, 1.0).to(R)
    return R * signs
