"""Where the exact fit of a linear Environment VAE starts: free means of environments, few directions, sparse axes.

With mu_e ~ Normal(0, T) and T unknown, nothing depends on the rotation of the latents, and the posterior of every mu_e
is Normal in closed form. What remains to be chosen afterwards is the rotation, and without a control the origin, from
which environments move few latents. Candidates come from `shift_axes`; the bound of the model itself decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ...models.parts.shift_priors import SingleEffects
from .linear_effects import EffectsProblem, LinearEffectsPosterior
from .linear_gaussian import CellSums, LinearGaussian, Shifts, principal_components
from .shift_axes import sparse_axes
from .sparse_rotation import random_rotations, sparse_rotation

if TYPE_CHECKING:
    from jaxtyping import Float

NUM_SWEEPS = 200
SETTLED = 1e-4  # change of the decoder in a sweep, relative to its largest weight
NUM_RESTARTS = 40
MARGIN = 1.4  # factor on what noise adds to eigenvalues
WARM, COLD = 0.5, 0.1  # heat of the restarts, see `sparse_axes`
SAME = 0.25  # largest difference of shifts, relative to the largest shift, between restarts at the same optimum


@dataclass(frozen=True)
class Start:
    """A decoder in the axes that environments determine best.

    Attributes
    ----------
    linear
        Decoder and noise; rows of latents that the data say little of are 0.
    agreement
        Weight of these axes among all local optima found, each weighted by the exponential of its bound: 1 where no
        other axes explain the environments, small where many do, 0 where no environment moves anything.
    """

    linear: LinearGaussian
    agreement: float


def starting_values(
    prior: SingleEffects,
    posterior: LinearEffectsPosterior,
    cells: CellSums,
    *,
    minimum_information: float,
    bounds: tuple[float, float],
) -> Start:
    """Fit free means, drop directions of little information, choose the axes.

    Parameters
    ----------
    prior, posterior
        Of the environments; the posterior gives the hyperparameters to start with.
    cells
        Sums over the data.
    minimum_information
        Eigen-directions of F below it, or below `information_of_noise`, are dropped; 0 keeps all.
    bounds
        Smallest and largest s^2.
    """
    linear = principal_components(cells, prior.num_latents).bounded(*bounds)
    linear, means = free_means(linear, cells, posterior.active[:, 0].double(), bounds)
    least = max(minimum_information, information_of_noise(cells)) if minimum_information > 0 else 0.0
    linear, means, num_kept = pruned(linear, means, least)
    moving = (cells.count > 0) & posterior.active[:, 0].bool()
    if num_kept == 0 or not bool(moving.any()):
        return Start(linear, 0.0)
    candidates = [
        Candidate.of(linear, turn, prior, posterior, cells)
        for turn in _turns(linear, means[:, :num_kept], cells, prior)
    ]
    best = max(candidates, key=lambda candidate: candidate.value)
    return Start(best.linear, _weight(best, candidates))


def free_means(
    linear: LinearGaussian, cells: CellSums, active: Float[Tensor, " condition"], bounds: tuple[float, float]
) -> tuple[LinearGaussian, Float[Tensor, "condition latent"]]:
    """Expectation maximisation with unrestricted means, and the means of environments that it ends with.

    The within-environment covariance of the latents is free too, and is brought back to I after every sweep. The origin
    is fitted with the means integrated out: given the means it would follow a small control by small steps only.
    """
    T, number = linear.identity, active.sum().clamp_min(1)
    n = cells.count[:, None, None]
    for _ in range(NUM_SWEEPS):
        F = linear.information()
        P = torch.linalg.solve(linear.identity + n * (T @ F), T.expand(len(n), *T.shape))
        P = active[:, None, None] * (P + P.mT) / 2  # covariance of each mean
        left = linear.identity - n * (F @ P)  # share of the pull that the means do not give way to
        pull = linear.pull(cells)
        c = torch.linalg.solve((left @ (n * F)).sum(0), torch.einsum("ekl,el->k", left, pull))
        linear = LinearGaussian(linear.weight, linear.bias + c @ linear.weight, linear.variance)
        mean = torch.einsum("ekl,el->ek", P, linear.pull(cells))
        moments = linear.moments(cells, Shifts(mean, (n * P).sum(0)))
        new = linear.maximised(cells, moments).bounded(*bounds)
        L = torch.linalg.cholesky(moments.within() / cells.total)
        new, mean = new.transformed(L), torch.linalg.solve_triangular(L, mean.mT, upper=False).mT
        T = torch.linalg.solve_triangular(L, torch.linalg.solve_triangular(L, P.sum(0), upper=False).mT, upper=False)
        T = (mean.mT @ mean + T) / number
        change = float((new.weight - linear.weight).abs().max() / new.weight.abs().max())
        linear = new
        if change < SETTLED:
            break
    return linear, mean


def pruned(
    linear: LinearGaussian, means: Float[Tensor, "condition latent"], minimum_information: float
) -> tuple[LinearGaussian, Float[Tensor, "condition latent"], int]:
    """Turn to the eigenvectors of F, the largest first, and set the decoder to 0 beyond the informative ones."""
    values, vectors = torch.linalg.eigh(linear.information())
    vectors = vectors.flip(1)
    num_kept = int((values >= minimum_information).sum())
    turned = linear.transformed(vectors)
    weight = torch.cat([turned.weight[:num_kept], torch.zeros_like(turned.weight[num_kept:])])
    return LinearGaussian(weight, linear.bias, linear.variance), means @ vectors, num_kept


def information_of_noise(cells: CellSums) -> float:
    """Information that a direction without any latent seems to have, because the covariance is an estimate.

    Eigenvalues of the sample covariance of noise reach (1 + sqrt(p / N))^2 (Marchenko and Pastur, 1967), a little more
    in units of an s^2 that has lost the largest ones to latents.
    """
    excess = MARGIN * ((1 + math.sqrt(cells.mean.shape[1] / cells.total)) ** 2 - 1)
    return excess / (1 + excess)


def _turns(
    linear: LinearGaussian, means: Float[Tensor, "condition kept"], cells: CellSums, prior: SingleEffects
) -> list[tuple[Tensor, Tensor]]:
    """Rotations and origins to choose from."""
    d = means.shape[1]
    rows = (cells.count > 0).nonzero().squeeze(-1)
    control = None if prior.control is None or not cells.count[prior.control] > 0 else prior.control
    M = means[rows]
    first = sparse_rotation(M).matrix
    starts = random_rotations(d, NUM_RESTARTS, torch.Generator().manual_seed(0)).to(M)
    starts = torch.cat([first.unsqueeze(0), starts])
    heat = torch.where(torch.arange(len(starts)) % 4 == 3, WARM, COLD).to(M)
    variance = 1 / (cells.count[rows] * linear.information().diagonal()[:d].mean())
    rate = min(0.5, prior.max_targets * 2 / 3 / d)
    where = None if control is None else int((rows == control).nonzero())
    R, c = sparse_axes(M, variance, starts, heat, rate=rate, control=where)
    return list(zip(R, c, strict=True))


@dataclass(frozen=True)
class Candidate:
    """Axes and origin, with the shifts and the bound that they lead to, and whether there are targets."""

    linear: LinearGaussian
    shifts: Float[Tensor, "condition latent"]
    value: float
    moves: bool

    @classmethod
    def of(
        cls,
        linear: LinearGaussian,
        turn: tuple[Tensor, Tensor],
        prior: SingleEffects,
        posterior: LinearEffectsPosterior,
        cells: CellSums,
    ) -> Candidate:
        """Turn the latents that are kept, and fit effects from none."""
        R, c = turn
        d = len(R)
        bias = linear.bias + c @ linear.weight[:d]
        R = torch.block_diag(R, linear.identity[d:, d:])
        turned = LinearGaussian(R.mT @ linear.weight, bias, linear.variance)
        problem = EffectsProblem(posterior, prior, cells, turned)
        effects = problem.swept(problem.empty(), posterior.num_sweeps)
        shifts = torch.stack([effect.probability[:, 1:] * effect.size_mean for effect in effects]).sum(0)
        moves = any(bool((effect.probability[:, 0] < 0.5).any()) for effect in effects)
        nothing = Shifts(torch.zeros_like(shifts), torch.zeros_like(R))
        value = turned.log_likelihood(cells, nothing) + problem.value(effects).sum()
        return cls(turned, shifts, float(value), moves)

    def same_as(self, other: Candidate) -> bool:
        """Whether shifts agree up to order and signs of the latents."""
        product = self.shifts.mT @ other.shifts
        rows, columns = linear_sum_assignment(-product.abs().cpu().numpy())
        signs = torch.where(product[rows, columns] < 0, -1.0, 1.0).to(product)
        difference = self.shifts[:, rows] - signs * other.shifts[:, columns]
        return bool(difference.abs().max() <= SAME * self.shifts.abs().max())


def _weight(best: Candidate, candidates: list[Candidate]) -> float:
    """Share of the best among distinct candidates, by their bounds."""
    distinct = [best]
    for candidate in sorted(candidates, key=lambda candidate: -candidate.value):
        if not any(candidate.same_as(other) for other in distinct):
            distinct.append(candidate)
    values = torch.tensor([candidate.value for candidate in distinct], dtype=torch.double)
    return float(values.softmax(0)[0]) if best.moves else 0.0
