"""Conditional posterior of single entries of a precision factor, all other entries fixed, for a batch of pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["Conditional", "conditional"]

NEWTON_STEPS = 4
ABSCISSAE, WEIGHTS = np.polynomial.hermite_e.hermegauss(5)
LOG_WEIGHTS = np.log(WEIGHTS / WEIGHTS.sum()) + 0.5 * ABSCISSAE**2


@dataclass(frozen=True)
class _Profile:
    """Log-likelihood of one entry a pair: m { 1/2 sum_j weight_j log[a_j^2 - (r_j + w)^2] - w S }."""

    square: Float[np.ndarray, "node pair"]
    centre: Float[np.ndarray, "node pair"]
    weights: Float[np.ndarray, " node"]
    S: Float[np.ndarray, " pair"]
    num_matrices: int

    def __call__(self, w: Float[np.ndarray, "*batch pair"]) -> Float[np.ndarray, "*batch pair"]:
        gap = self.square - (self.centre + w[..., None, :]) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            value = self.num_matrices * (0.5 * self.weights @ np.log(gap) - w * self.S)
        return np.where((gap > 0).all(-2), value, -np.inf)

    def at(self, which: Int[np.ndarray, " some"]) -> _Profile:
        """The profile of some of the pairs."""
        return _Profile(self.square[:, which], self.centre[:, which], self.weights, self.S[which], self.num_matrices)

    def derivatives(self, w: Float[np.ndarray, " pair"]) -> tuple[np.ndarray, np.ndarray]:
        shifted = self.centre + w
        gap = self.square - shifted**2
        first = -self.weights @ (shifted / gap) - self.S
        second = -self.weights @ ((self.square + shifted**2) / gap**2)
        return self.num_matrices * first, self.num_matrices * second

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        root = np.sqrt(self.square)
        return (-root - self.centre).max(0), (root - self.centre).min(0)


@dataclass(frozen=True)
class Conditional:
    """What is known of each pair given all other entries.

    Attributes
    ----------
    probability
        That the entry is not zero, by quadrature; the chance to propose a weight.
    mean, variance
        Moments of the weight given that it is not zero, by quadrature.
    mode, sd
        Of the normal proposal of the weight.
    """

    probability: Float[np.ndarray, " pair"]
    mean: Float[np.ndarray, " pair"]
    variance: Float[np.ndarray, " pair"]
    mode: Float[np.ndarray, " pair"]
    sd: Float[np.ndarray, " pair"]
    profile: _Profile
    slab_variance: float
    prior_odds: Float[np.ndarray, " pair"]

    def log_weight(self, w: Float[np.ndarray, " some"], which: Int[np.ndarray, " some"]) -> Float[np.ndarray, " some"]:
        """Log posterior over proposal density of some pairs, up to a constant; both have a point mass at 0."""
        probability, deviation = self.probability[which], w - self.mode[which]
        slab = self.prior_odds[which] - np.log(probability) + _log_normal(w, self.slab_variance)
        slab -= _log_normal(deviation, self.sd[which] ** 2)
        return self.profile.at(which)(w) + np.where(w == 0, -np.log1p(-probability), slab)


def conditional(
    inverse: Float[np.ndarray, "node n n"],
    weights: Float[np.ndarray, " node"],
    i: Int[np.ndarray, " pair"],
    k: Int[np.ndarray, " pair"],
    now: Float[np.ndarray, " pair"],
    S: Float[np.ndarray, " pair"],
    num_matrices: int,
    slab_variance: float,
    prior_odds: Float[np.ndarray, " pair"],
) -> Conditional:
    """Conditional of each entry (i, k), as if it were the only one to change.

    Parameters
    ----------
    inverse
        (Psi + mu_j I)^{-1} at each node.
    weights
        Number of eigenvalues that each node stands for.
    i, k
        The pairs.
    now
        Their present weights; the result does not depend on them.
    S
        Entries of the mean Gram matrix at the present overall scale.
    num_matrices, slab_variance, prior_odds
        m, s2 and the prior log-odds of each pair.
    """
    first, second, cross = inverse[:, i, i], inverse[:, k, k], inverse[:, i, k]
    determinant = first * second - cross**2
    profile = _Profile(first * second / determinant**2, -cross / determinant - now, weights, S, num_matrices)
    mode, sd = _laplace(profile, slab_variance)
    points = mode + sd * ABSCISSAE[:, None]
    logs = LOG_WEIGHTS[:, None] + np.log(sd * np.sqrt(2 * np.pi)) + profile(points) + _log_normal(points, slab_variance)
    top = logs.max(0)
    shares = np.exp(logs - top)
    evidence = top + np.log(shares.sum(0))
    shares /= shares.sum(0)
    mean = (shares * points).sum(0)
    variance = (shares * (points - mean) ** 2).sum(0)
    # below 1, so that zero can always be proposed
    probability = np.clip(expit(prior_odds + evidence - profile(np.zeros_like(now))), 1e-300, 1 - 1e-12)
    return Conditional(probability, mean, variance, mode, sd, profile, slab_variance, prior_odds)


def _laplace(profile: _Profile, slab_variance: float) -> tuple[np.ndarray, np.ndarray]:
    """Mode and sd of the weight by Newton steps from within the allowed interval, at most half way to its ends."""
    low, high = profile.interval()
    w = np.clip(0.0, low + 0.05 * (high - low), high - 0.05 * (high - low))
    for _ in range(NEWTON_STEPS):
        gradient, curvature = profile.derivatives(w)
        step = (gradient - w / slab_variance) / (1 / slab_variance - curvature)
        w = w + np.clip(step, (low - w) / 2, (high - w) / 2)
    _, curvature = profile.derivatives(w)
    return w, 1 / np.sqrt(1 / slab_variance - curvature)


def _log_normal(x: np.ndarray, variance: float | np.ndarray) -> np.ndarray:
    return -0.5 * (np.log(2 * np.pi * variance) + x**2 / variance)
