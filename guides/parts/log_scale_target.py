"""The negative log posterior of log scales given the precision factors, and its expectation under a Gaussian.

With Z = diag(e^a) Y diag(e^b) and q(Z) = tr(Psi_row Z Z^T) + tr(Psi_col Z^T Z), the target is

    f(a, b) = q(Z) / 2 - c_row.a - c_col.b + a^T P_row a / 2 + b^T P_col b / 2.

q is a sum of monomials Psi_ik Y_ij Y_kj exp(a_i + a_k + 2 b_j) and Psi_jl Y_ij Y_il exp(2 a_i + b_j + b_l), so under
(a, b) ~ Normal(m, Sigma) the expectations of f, of its gradient and of its Hessian have closed forms with the same
structure as f itself. f and q do not change along (1, -1), the gauge; theta = (a, b) is kept at sum a = sum b.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...models.parts.errors import DataError, NumericalError
from .log_normal import Pair, axis_spreads, gauge, log_normal_pair, log_normal_weights, to_gauge

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Blocks", "Expected", "ScaleTarget", "gram"]


@dataclass(frozen=True)
class Expected:
    """Expectation of the target under a Gaussian.

    Attributes
    ----------
    value
        E[f].
    quadratic
        E[q].
    gradient
        E of the gradient of f in theta, which is the gradient of E[f] in the mean, shape (n + p,).
    row_scaled, col_scaled, row_weights, col_weights
        Z1, Z2 (n, p) and K1, K2 with E[Z Z^T] * Psi_row = K1 * (Z1 Z1^T), E[Z^T Z] * Psi_col = K2 * (Z2^T Z2).
    row_terms, col_terms
        The monomials of the two halves of q summed to shape (n, p): Z1 * (K1 Z1) and Z2 * (Z2 K2).
    """

    value: float
    quadratic: float
    gradient: Float[Tensor, " n_plus_p"]
    row_scaled: Float[Tensor, "n p"]
    col_scaled: Float[Tensor, "n p"]
    row_weights: Float[Tensor, "n n"]
    col_weights: Float[Tensor, "p p"]
    row_terms: Float[Tensor, "n p"]
    col_terms: Float[Tensor, "n p"]


@dataclass(frozen=True)
class Blocks:
    """A symmetric matrix of size n + p by its blocks, singular along the gauge.

    Attributes
    ----------
    row, col, cross
        Blocks (n, n), (p, p) and (n, p).
    """

    row: Float[Tensor, "n n"]
    col: Float[Tensor, "p p"]
    cross: Float[Tensor, "n p"]

    @property
    def diagonal(self) -> Float[Tensor, " n_plus_p"]:
        """The diagonal, without the gauge term of `definite`."""
        return torch.cat([self.row.diagonal(), self.col.diagonal()])

    @property
    def gauge_weight(self) -> float:
        """A curvature for the gauge direction of the size of the others: the mean of the diagonal."""
        return float(self.diagonal.mean().abs())

    def definite(self) -> Float[Tensor, "n_plus_p n_plus_p"]:
        """The matrix, dense, plus ``gauge_weight`` times the projector on the gauge."""
        dense = torch.cat([torch.cat([self.row, self.cross], 1), torch.cat([self.cross.mT, self.col], 1)])
        direction = gauge(*self.cross.shape, like=dense)
        return dense.addr_(direction, direction, alpha=self.gauge_weight)

    def solve(self, right: Float[Tensor, " n_plus_p"]) -> Float[Tensor, " n_plus_p"] | None:
        """Solve against `right` by preconditioned conjugate gradients; None if a negative curvature is met."""
        n, p = self.cross.shape
        direction, weight = gauge(n, p, like=right), self.gauge_weight
        preconditioner = self.diagonal.abs().clamp_min(1e-6 * weight)
        x, residual = torch.zeros_like(right), right.clone()
        z = residual / preconditioner
        search, size = z.clone(), float(residual @ z)
        target = 1e-22 * size
        for _ in range(1000):
            if not size > target:
                break
            a, b = search[:n], search[n:]
            image = torch.cat([self.row @ a + self.cross @ b, self.cross.mT @ a + self.col @ b])
            image += (weight * (direction @ search)) * direction
            curvature = float(search @ image)
            if not curvature > 0:
                return None
            x += (size / curvature) * search
            residual -= (size / curvature) * image
            z = residual / preconditioner
            size, old = float(residual @ z), size
            search = z + (size / old) * search
        return x


@dataclass(frozen=True)
class ScaleTarget:
    """The target f for one matrix, or for several that share their scales: q is then a sum over them.

    Attributes
    ----------
    sign, log_abs
        Signs and log absolute values of Y, shape (n, p) or (r, n, p); log 0 is -inf.
    precisions
        Psi_row (n, n), Psi_col (p, p).
    counts
        c_row (n,), c_col (p,): entries of each row and column that carry a Jacobian.
    penalty
        P_row (n, n), P_col (p, p), or None.
    """

    sign: Float[Tensor, "*shared n p"]
    log_abs: Float[Tensor, "*shared n p"]
    precisions: Pair
    counts: Pair
    penalty: Pair | None

    @classmethod
    def of(
        cls,
        Y: Float[Tensor, "*shared n p"],
        Psi_row: Float[Tensor, "n n"],
        Psi_col: Float[Tensor, "p p"],
        counts: Pair | None,
        penalty: Pair | None,
    ) -> ScaleTarget:
        """Check the pieces and put them together; `counts` None means every entry.

        Raises
        ------
        DataError
            If Y has NaN, infinities or an empty row or column, shapes do not match, the row and column counts differ
            in sum, or a penalty does not ignore constants.
        """
        n, p = Y.shape[-2:]
        _check(Y, Psi_row, Psi_col)
        if counts is None:
            matrices = Y.numel() / (n * p)
            counts = (Y.new_full((n,), matrices * p), Y.new_full((p,), matrices * n))
        counts = (counts[0].to(Y), counts[1].to(Y))
        if abs(float(counts[0].sum() - counts[1].sum())) > 1e-9 * float(counts[0].sum()):
            raise DataError(f"counts: found sums {counts[0].sum()} and {counts[1].sum()}; wanted equal sums")
        for name, P in zip(("P_row", "P_col"), penalty or (), strict=False):
            if float(P.sum(1).abs().max()) > 1e-8 * float(P.abs().max()):
                raise DataError(f"penalty: {name} acts on constants; wanted rows that sum to zero")
        return cls(Y.sign(), Y.abs().log(), (Psi_row, Psi_col), counts, penalty)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, p)."""
        return self.sign.shape[-2], self.sign.shape[-1]

    @property
    def num_matrices(self) -> int:
        """How many matrices share the scales."""
        return self.sign.shape[0] if self.sign.dim() == 3 else 1

    @property
    def size(self) -> float:
        """N, the number of entries that carry a Jacobian; E[q] = N at the optimum."""
        return float(self.counts[0].sum())

    def expect(self, theta: Float[Tensor, " n_plus_p"], spread: Tensor | None = None) -> Expected:
        """Expectation of f and its gradient under Normal(theta, spread).

        Parameters
        ----------
        theta
            Mean (a, b).
        spread
            None for a point mass, variances (n + p,), or a covariance (n + p, n + p).
        """
        n = self.shape[0]
        Z1, Z2 = log_normal_pair(self.sign, self.log_abs, theta, spread)
        row_spread, col_spread = axis_spreads(spread, n)
        K1, K2 = log_normal_weights(self.precisions[0], row_spread), log_normal_weights(self.precisions[1], col_spread)
        return self._summed(theta, spread, (Z1, Z2), (K1, K2), (_total(Z1 * (K1 @ Z1)), _total(Z2 * (Z2 @ K2))))

    def rescaled(
        self, theta: Float[Tensor, " n_plus_p"], spread: Tensor | None, at: Expected
    ) -> tuple[Float[Tensor, " n_plus_p"], Expected]:
        """Theta shifted to E[q] = N, the best overall scale for any spread, and what `expect` gives there.

        Raises
        ------
        NumericalError
            If E[q], which `at` holds for `theta`, is not positive.
        """
        n, p = self.shape
        if not at.quadratic > 0:
            raise NumericalError(f"log scales: found E[q] = {at.quadratic:.3g}; wanted a positive definite precision")
        factor = self.size / at.quadratic
        shift = 0.5 * math.log(factor) / (n + p)
        theta = to_gauge(torch.cat([theta[:n] + p * shift, theta[n:] + n * shift]), n)
        scaled = at.row_scaled * factor**0.5, at.col_scaled * factor**0.5
        terms = at.row_terms * factor, at.col_terms * factor
        return theta, self._summed(theta, spread, scaled, (at.row_weights, at.col_weights), terms)

    def _summed(self, theta: Tensor, spread: Tensor | None, scaled: Pair, weights: Pair, terms: Pair) -> Expected:
        n = self.shape[0]
        both, c = terms[0] + terms[1], torch.cat(self.counts)
        gradient = torch.cat([both.sum(1), both.sum(0)]) - c
        quadratic = float(both.sum())
        value = 0.5 * quadratic - float(c @ theta)
        if self.penalty is not None:
            pull = torch.cat([self.penalty[0] @ theta[:n], self.penalty[1] @ theta[n:]])
            gradient += pull
            value += 0.5 * float(theta @ pull) + 0.5 * self._penalty_of_spread(spread)
        return Expected(value, quadratic, gradient, *scaled, *weights, *terms)

    def hessian(self, at: Expected) -> Blocks:
        """E of the Hessian of f, from what `expect` returned."""
        G1, G2 = at.row_terms, at.col_terms
        row = at.row_weights * gram(at.row_scaled)
        col = at.col_weights * gram(at.col_scaled.mT)
        row.diagonal().add_(G1.sum(1) + 2 * G2.sum(1))
        col.diagonal().add_(G2.sum(0) + 2 * G1.sum(0))
        if self.penalty is not None:
            row, col = row + self.penalty[0], col + self.penalty[1]
        return Blocks(row, col, 2 * (G1 + G2))

    def newton_direction(
        self, gradient: Float[Tensor, " n_plus_p"], at: Expected, hessian: Blocks
    ) -> Float[Tensor, " n_plus_p"]:
        """A direction of descent for the mean: Newton's, or that of a convex model where E[f] is not convex.

        The Hessian of q / 2 is J^T Omega J, J the derivative of vec Z, plus the second derivatives of Z weighted by
        Omega vec Z. The convex model keeps the first and puts the counts, the value at a stationary point, for the
        diagonal of the second.
        """
        direction = hessian.solve(-gradient)
        if direction is not None:
            return direction
        both = at.row_terms + at.col_terms
        row = hessian.row + (self.counts[0] - both.sum(1)).diag()
        col = hessian.col + (self.counts[1] - both.sum(0)).diag()
        direction = Blocks(row, col, both).solve(-gradient)
        if direction is None:
            raise NumericalError("log scales: the precision matrix is not positive definite; wanted lam_i + mu_j > 0")
        return direction

    def curvature_gradient(self, at: Expected, covariance: Tensor) -> Float[Tensor, " n_plus_p"]:
        """Gradient in the mean of tr(H C), H the expected Hessian and C a covariance or variances.

        H is half the sum over monomials of q of the monomial times c c^T, c its exponents; so tr(H C) has the weights
        c^T C c, sums over the indices of a monomial, and its gradient costs as much as that of q.
        """
        n = self.shape[0]
        Z1, Z2, K1, K2 = at.row_scaled, at.col_scaled, at.row_weights, at.col_weights
        variance = covariance if covariance.dim() == 1 else covariance.diagonal()
        alpha, beta = variance[:n, None], variance[n:]
        if covariance.dim() == 1:
            cross = torch.zeros_like(alpha)
            within = alpha * K1.diagonal()[:, None] * Z1, beta * K2.diagonal() * Z2
        else:
            cross = 4 * covariance[:n, n:]
            within = (K1 * covariance[:n, :n]) @ Z1, Z2 @ (K2 * covariance[n:, n:])
        row = (alpha + 4 * beta + cross) * at.row_terms + _total(Z1 * (K1 @ (Z1 * (alpha + cross)) + 2 * within[0]))
        col = (4 * alpha + beta + cross) * at.col_terms + _total(Z2 * ((Z2 * (beta + cross)) @ K2 + 2 * within[1]))
        return torch.cat([(row + col).sum(1), (row + col).sum(0)])

    def _penalty_of_spread(self, spread: Tensor | None) -> float:
        if spread is None or self.penalty is None:
            return 0.0
        (P_row, P_col), n = self.penalty, self.shape[0]
        if spread.dim() == 1:
            return float(P_row.diagonal() @ spread[:n] + P_col.diagonal() @ spread[n:])
        return float((P_row * spread[:n, :n]).sum() + (P_col * spread[n:, n:]).sum())


def gram(Z: Float[Tensor, "*shared n p"]) -> Float[Tensor, "n n"]:
    """Z Z^T, summed over matrices."""
    return _total(Z @ Z.mT)


def _total(x: Float[Tensor, "*shared n p"]) -> Float[Tensor, "n p"]:
    return x.sum(0) if x.dim() == 3 else x


def _check(Y: Tensor, Psi_row: Tensor, Psi_col: Tensor) -> None:
    n, p = Y.shape[-2:]
    if not bool(Y.isfinite().all()):
        raise DataError("Y: found NaN or infinite entries; wanted finite numbers")
    zero = (Y == 0).reshape(-1, n, p).all(0)
    for name, axis in (("rows", 1), ("columns", 0)):
        empty = int(zero.all(axis).sum())
        if empty:
            raise DataError(f"Y: found {empty} {name} of zeros only; wanted a non-zero entry in each")
    for name, Psi, size in (("Psi_row", Psi_row, n), ("Psi_col", Psi_col, p)):
        if Psi.shape != (size, size):
            raise DataError(f"{name}: found shape {tuple(Psi.shape)}; wanted {(size, size)}")
        if not bool(Psi.isfinite().all()):
            raise DataError(f"{name}: found NaN or infinite entries; wanted finite numbers")
