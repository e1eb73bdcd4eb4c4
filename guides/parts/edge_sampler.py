"""Exact edge posterior for small problems: Metropolis within Gibbs on every weight, spike included.

With all other entries fixed, the likelihood of one symmetric entry w of Psi needs only two numbers a node of the other
axis: let B(j) be the 2 x 2 block of (Psi + mu_j I)^{-1} at the pair, with inverse [[p, r], [r, q]]. Then

    log-likelihood(w) = m { 1/2 sum_j log[ p q - (r - w_now + w)^2 ] - w S_ik },

concave in w. Spike and slab are compared by Gauss-Hermite quadrature, the weight is proposed from the Laplace
approximation, and the exact ratio decides. The overall scale, the density and the slab variance are sampled too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from .edge_conditionals import Conditional, conditional
from .edge_curvature import quadrature
from .edge_state import EdgePrior, check_statistics

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["AxisSamples", "EdgeSamples", "sample_edges"]

CHUNK = 64  # pairs that are decided together until one of them changes
DENSITY_STEPS = 5


@dataclass(frozen=True)
class AxisSamples:
    """Posterior of the edges of one axis under independent edges; matrices are symmetric with shape (n, n).

    Attributes
    ----------
    probability
        Inclusion probability, averaged over sweeps before each draw (Rao-Blackwell); zero diagonal.
    mean, variance
        Moments of the weight given that the edge is real, averaged likewise.
    log_odds, slab_variance
        Draws of eta and of s2, one a sweep.
    degrees
        Draws of the number of edges of each node, shape (sweep, n).
    acceptance
        Share of proposals that were taken.
    """

    probability: Float[Tensor, "n n"]
    mean: Float[Tensor, "n n"]
    variance: Float[Tensor, "n n"]
    log_odds: Float[Tensor, " sweep"]
    slab_variance: Float[Tensor, " sweep"]
    degrees: Float[Tensor, "sweep n"]
    acceptance: float


class EdgeSamples(NamedTuple):
    """Samples of both axes."""

    row: AxisSamples
    col: AxisSamples


def sample_edges(
    S_row: Float[Tensor, "n n"],
    S_col: Float[Tensor, "p p"],
    num_matrices: int,
    prior_row: EdgePrior,
    prior_col: EdgePrior,
    *,
    num_sweeps: int = 60,
    num_burn_in: int = 20,
    seed: int = 0,
) -> EdgeSamples:
    """Sample the graphs of both axes given the scaled matrices.

    Edges are independent a priori: `hubs`, `closure_sd` and `kind` of the priors are not used. With one matrix this
    sampler stays sensible under a loose density (`log_odds_sd` .5), unlike empirical Bayes. The other axis enters
    through at most 12 nodes; up to 12 rows and columns the posterior is exact given the scales.

    Parameters
    ----------
    S_row, S_col
        Means of Z Z' and of Z' Z over the matrices, at neutral row and column scales.
    num_matrices
        Number m of matrices that share both graphs.
    prior_row, prior_col
        Priors of the two axes.
    num_sweeps, num_burn_in
        Sweeps that are kept, and sweeps before them.
    seed
        Of the random numbers.

    Raises
    ------
    DataError
        If the statistics or the priors do not fit together.
    """
    check_statistics(S_row, S_col, num_matrices)
    rng = np.random.default_rng(seed)
    axes = [
        _Axis(S.detach().double().cpu().numpy(), prior, num_sweeps)
        for S, prior in ((S_row, prior_row), (S_col, prior_col))
    ]
    for sweep in range(-num_burn_in, num_sweeps):
        form = sum(float((axis.precision * axis.S).sum()) for axis in axes)
        size = axes[0].size * axes[1].size
        scale = rng.gamma(num_matrices * size / 2) / (num_matrices * form / 2)
        for axis, other in (axes, axes[::-1]):
            axis.sweep(np.linalg.eigvalsh(other.precision), scale, num_matrices, rng)
            axis.hyperparameters(rng)
            if sweep >= 0:
                axis.keep(sweep)
    return EdgeSamples(*(axis.result(num_sweeps, S_row) for axis in axes))


class _Axis:
    """One axis: its current precision and hyperparameters, and the sums over kept sweeps."""

    def __init__(self, S: np.ndarray, prior: EdgePrior, num_sweeps: int) -> None:
        self.S, self.prior, self.size = S, prior, len(S)
        self.precision = np.eye(self.size)
        self.pairs = np.stack(np.triu_indices(self.size, 1))
        self.offset = prior.offset(torch.from_numpy(self.precision)).numpy()[tuple(self.pairs)]
        self.centre = self.log_odds = prior.centre(self.size)
        self.slab_variance = prior.slab_scale**2
        number = self.pairs.shape[1]
        self.latest, self.sums = np.zeros((3, number)), np.zeros((3, number))
        self.draws, self.degrees = np.zeros((num_sweeps, 2)), np.zeros((num_sweeps, self.size))
        self.accepted = self.proposed = 0

    def sweep(self, mu: np.ndarray, scale: float, num_matrices: int, rng: np.random.Generator) -> None:
        """Update every weight once, in a fixed order.

        Pairs are decided a chunk at a time from the present state. What comes before the first pair that changes
        stands; the rest is decided again with the same random numbers.
        """
        nodes = quadrature(torch.from_numpy(mu))
        node_values, weights = nodes.values.numpy(), nodes.weights.numpy()
        inverse = np.linalg.inv(self.precision + node_values[:, None, None] * np.eye(self.size))
        number = self.pairs.shape[1]
        draws = np.stack([rng.random(number), rng.standard_normal(number), rng.random(number)])
        begin = 0
        while begin < number:
            end = min(number, begin + CHUNK)
            i, k = self.pairs[:, begin:end]
            now = self.precision[i, k]
            found = conditional(
                inverse, weights, i, k, now, scale * self.S[i, k], num_matrices, self.slab_variance,
                self.log_odds + self.offset[begin:end],
            )  # fmt: skip
            new, accepted = _decide(found, now, draws[:, begin:end])
            changed = np.flatnonzero(new != now)
            done = changed[0] + 1 if len(changed) else end - begin
            self.latest[:, begin : begin + done] = found.probability[:done], found.mean[:done], found.variance[:done]
            self.accepted, self.proposed = self.accepted + int(accepted[:done].sum()), self.proposed + int(done)
            if len(changed):
                self._set(int(i[done - 1]), int(k[done - 1]), float(new[done - 1]), inverse)
            begin += int(done)

    def _set(self, i: int, k: int, value: float, inverse: np.ndarray) -> None:
        """Change one weight, and all inverses by a change of rank 2."""
        step = value - self.precision[i, k]
        self.precision[i, k] = self.precision[k, i] = value
        columns = inverse[:, :, [i, k]]
        middle = columns[:, [i, k]] + np.array([[0.0, 1.0], [1.0, 0.0]]) / step
        inverse -= columns @ np.linalg.solve(middle, columns.transpose(0, 2, 1))

    def hyperparameters(self, rng: np.random.Generator) -> None:
        """Draw the slab variance from its conditional, the density by a few Metropolis steps."""
        weights = self.precision[tuple(self.pairs)]
        number, prior = np.count_nonzero(weights), self.prior
        rate = prior.slab_weight * prior.slab_scale**2 + (weights**2).sum() / 2
        self.slab_variance = rate / rng.gamma(prior.slab_weight + number / 2)

        def log_density(eta: float) -> float:
            edges = number * eta - np.logaddexp(0, eta + self.offset).sum()
            return float(edges - (eta - self.centre) ** 2 / (2 * prior.log_odds_sd**2))

        sd = 1 / np.sqrt(1 / prior.log_odds_sd**2 + number)
        for _ in range(DENSITY_STEPS):
            proposal = self.log_odds + 2 * sd * rng.standard_normal()
            if np.log(rng.random()) < log_density(proposal) - log_density(self.log_odds):
                self.log_odds = proposal

    def keep(self, sweep: int) -> None:
        """Add this sweep to the sums."""
        probability, mean, variance = self.latest
        self.sums += probability, probability * mean, probability * (variance + mean**2)
        self.draws[sweep] = self.log_odds, self.slab_variance
        self.degrees[sweep] = (self.precision != 0).sum(1) - 1

    def result(self, num_sweeps: int, like: Tensor) -> AxisSamples:
        """Averages over the kept sweeps."""
        total, first, second = self.sums
        mean = first / total
        log_odds, slab_variance = torch.from_numpy(self.draws.T.copy()).to(like.device)
        return AxisSamples(
            self._matrix(total / num_sweeps, like),
            self._matrix(mean, like),
            self._matrix(second / total - mean**2, like),
            log_odds,
            slab_variance,
            torch.from_numpy(self.degrees).to(like.device),
            self.accepted / self.proposed,
        )

    def _matrix(self, values: np.ndarray, like: Tensor) -> Tensor:
        matrix = np.zeros((self.size, self.size))
        matrix[tuple(self.pairs)] = values
        return torch.from_numpy(matrix + matrix.T).to(like.device)


def _decide(found: Conditional, now: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """New weight of every pair, were it the next one to be updated, and whether the proposal was taken."""
    include, normal, accept = draws
    proposal = np.where(include < found.probability, found.mode + found.sd * normal, 0.0)
    which = np.flatnonzero(proposal != now)
    gain = found.log_weight(proposal[which], which) - found.log_weight(now[which], which)
    taken = np.ones(len(now), dtype=bool)
    taken[which] = np.log(accept[which]) < gain
    return np.where(taken, proposal, now), taken
