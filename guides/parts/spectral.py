"""Maximum likelihood of a Kronecker-sum precision matrix from its two second-moment matrices, by eigenvalues.

Given S_row = E[Z Z^T] and S_col = E[Z^T Z] of an n x p matrix Z with precision Psi_row (+) Psi_col, minimise

    J = tr(Psi_row S_row) + tr(Psi_col S_col) - log det(Psi_row (+) Psi_col).

At an optimum each factor shares its eigenvectors with its moment matrix, which leaves a convex problem in the n + p
eigenvalues (GmGM, Andrew et al. 2024): minimise e.lam + g.mu - sum_ij log(lam_i + mu_j). From one matrix the moment
matrices are noisy or singular, so the result is of use only with shrinkage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor

from ...models.parts.errors import DataError, NumericalError

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Spectrum", "automatic_shrink", "best_eigenvalues", "check_moments", "spectral_precision"]


@dataclass(frozen=True)
class Spectrum:
    """Eigenvectors and eigenvalues of the two precision factors, with equal mean eigenvalue on both axes.

    Attributes
    ----------
    row_vectors, row_values
        Columns are eigenvectors of Psi_row, shape (n, n); eigenvalues lam, shape (n,), descending.
    col_vectors, col_values
        The same of Psi_col, shapes (p, p) and (p,). ``lam_i + mu_j > 0`` for all pairs.
    """

    row_vectors: Float[Tensor, "n n"]
    row_values: Float[Tensor, " n"]
    col_vectors: Float[Tensor, "p p"]
    col_values: Float[Tensor, " p"]

    @property
    def row_precision(self) -> Float[Tensor, "n n"]:
        """Psi_row, symmetric."""
        return _compose(self.row_vectors, self.row_values)

    @property
    def col_precision(self) -> Float[Tensor, "p p"]:
        """Psi_col, symmetric."""
        return _compose(self.col_vectors, self.col_values)

    @property
    def log_det(self) -> Float[Tensor, ""]:
        """Log determinant of the np x np precision matrix, sum_ij log(lam_i + mu_j)."""
        return (self.row_values[:, None] + self.col_values).log().sum()


def spectral_precision(
    S_row: Float[Tensor, "n n"],
    S_col: Float[Tensor, "p p"],
    *,
    num_matrices: int = 1,
    shrink: float | tuple[float, float] = 0.0,
    ridge: float = 0.0,
    start: Spectrum | None = None,
) -> Spectrum:
    """Minimise J plus regularisation by one eigendecomposition an axis and Newton steps on the eigenvalues.

    Costs O(n^3 + p^3) for the eigenvectors, then O(np) an iteration; memory O(n^2 + p^2 + np).

    Parameters
    ----------
    S_row, S_col
        Second moments E[Z Z^T] and E[Z^T Z], symmetric, of equal trace; averages over matrices if there are several.
    num_matrices
        Matrices that were averaged; a ridge counts less the more there are.
    shrink
        rho in [0, 1], one or (row, column): S is replaced by (1 - rho) S + rho (tr S / d) I, a prior on the trace
        that keeps eigenvectors and equivariances. At 1 the answer is a multiple of the identity.
    ridge
        kappa >= 0: adds kappa (|lam|^2 + |mu|^2) / num_matrices with lam, mu in the gauge of `Spectrum`.
    start
        A solution for similar moments, to start from.

    Returns
    -------
    Spectrum
        At the minimum ``tr(Psi_row S_row) + tr(Psi_col S_col) = n p`` with the shrunk moments (less
        ``2 kappa (|lam|^2 + |mu|^2) / num_matrices``).

    Raises
    ------
    DataError
        If the moments are not finite square matrices of one trace, or an option is out of range.
    NumericalError
        If there is no minimum: a moment matrix with zero or negative eigenvalues and no regularisation.
    """
    n, p = check_moments(S_row, S_col)
    rho = shrink if isinstance(shrink, tuple) else (shrink, shrink)
    if not all(0.0 <= r <= 1.0 for r in rho):
        raise DataError(f"shrink: found {shrink}; wanted numbers from 0 to 1")
    if ridge < 0 or num_matrices < 1:
        raise DataError(f"ridge, num_matrices: found {ridge}, {num_matrices}; wanted ridge >= 0, num_matrices >= 1")
    trace = 0.5 * float(S_row.diagonal().sum() + S_col.diagonal().sum())
    scale = trace / (n * p)  # with moments divided by it, precisions are of order one
    e, row_vectors = _shrunk_eigen(S_row / scale, rho[0])
    g, col_vectors = _shrunk_eigen(S_col / scale, rho[1])
    kappa = ridge / num_matrices / scale**2
    if kappa == 0:
        _check_existence(e, "S_row")
        _check_existence(g, "S_col")
    first = None if start is None else (start.row_values * scale, start.col_values * scale)
    lam, mu = best_eigenvalues(e, g, kappa, first)
    return Spectrum(row_vectors, lam / scale, col_vectors, mu / scale)


def automatic_shrink(Z: Float[Tensor, "*matrix n p"]) -> tuple[float, float]:
    """Choose `shrink` from the data: 1 - (1 - r)^2 with r the larger Ledoit-Wolf intensity of the two axes.

    The Ledoit-Wolf intensity is the best for one moment matrix as such. Shrinking twice by it allows for the log scales
    and the other axis, which are estimated again with the shrunk factors in every step of EM; with r alone EM drifts to
    ill-conditioned factors from one matrix. The same for both axes, since a weakly shrunk short axis spoils the other.

    Parameters
    ----------
    Z
        One matrix (n, p) or several (m, n, p) with row and column scales taken out, mean zero.

    Returns
    -------
    tuple
        The same intensity for rows and columns, in [0, 1].
    """
    stack = Z.detach().reshape(-1, *Z.shape[-2:]).cpu().numpy()
    n, p = stack.shape[1:]
    by_axis = stack.swapaxes(1, 2).reshape(-1, n), stack.reshape(-1, p)
    intensity = max(float(ledoit_wolf_shrinkage(samples, assume_centered=True)) for samples in by_axis)
    return (1 - (1 - intensity) ** 2,) * 2


def check_moments(S_row: Float[Tensor, "n n"], S_col: Float[Tensor, "p p"]) -> tuple[int, int]:
    """Return (n, p), or raise `DataError` unless both are finite square matrices of one positive trace."""
    for name, S in (("S_row", S_row), ("S_col", S_col)):
        if S.dim() != 2 or S.shape[0] != S.shape[1]:
            raise DataError(f"{name}: found shape {tuple(S.shape)}; wanted a square matrix")
        if not bool(S.isfinite().all()):
            raise DataError(f"{name}: found NaN or infinite entries; wanted finite numbers")
        if not float(S.diagonal().sum()) > 0:
            raise DataError(f"{name}: found trace {float(S.diagonal().sum()):.3g}; wanted a positive trace")
    traces = float(S_row.diagonal().sum()), float(S_col.diagonal().sum())
    if abs(traces[0] - traces[1]) > 1e-6 * max(traces):
        raise DataError(f"S_row, S_col: found traces {traces[0]:.8g} and {traces[1]:.8g}; wanted equal traces")
    return S_row.shape[0], S_col.shape[0]


def _check_existence(values: Tensor, name: str) -> None:
    """Both moment matrices positive definite is necessary and sufficient for a minimum without a ridge."""
    threshold = values.numel() * torch.finfo(values.dtype).eps * float(values.abs().max())
    bad = int((values <= threshold).sum())
    if bad:
        raise NumericalError(
            f"{name}: found {bad} of {values.numel()} eigenvalues zero or negative, so the likelihood has no maximum; "
            "wanted a positive definite matrix, or shrink > 0"
        )


def _shrunk_eigen(S: Tensor, rho: float) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(0.5 * (S + S.mT))
    return (1 - rho) * values + rho * values.mean(), vectors


def _compose(vectors: Tensor, values: Tensor) -> Tensor:
    product = (vectors * values) @ vectors.mT
    return 0.5 * (product + product.mT)


def best_eigenvalues(
    e: Float[Tensor, " n"], g: Float[Tensor, " p"], kappa: float, start: tuple[Tensor, Tensor] | None = None
) -> tuple[Float[Tensor, " n"], Float[Tensor, " p"]]:
    """Minimise F = e.lam + g.mu - sum log(lam_i + mu_j) + kappa (|lam|^2 + |mu|^2) under mean lam = mean mu.

    Newton steps. F is self-concordant, so its decrement d bounds the relative error of every lam_i + mu_j.

    Parameters
    ----------
    e, g
        Eigenvalues of the moments, ascending; positive and of equal sum if kappa is 0.
    kappa
        Ridge, >= 0.
    start
        (lam, mu) for similar e and g.

    Raises
    ------
    NumericalError
        If 200 steps do not reach the minimum.
    """
    lam, mu = _fitted_start(e, g, kappa, *(_own_values(e, g, kappa) if start is None else start))
    value = _objective(e, g, kappa, lam, mu)
    for _ in range(200):
        R = 1.0 / (lam[:, None] + mu)
        gradient = torch.cat([e - R.sum(1) + 2 * kappa * lam, g - R.sum(0) + 2 * kappa * mu])
        direction = _newton_direction(R.square_(), kappa, gradient)
        decrement = max(-float(gradient @ direction), 0.0) ** 0.5
        d_lam, d_mu = direction.split([lam.numel(), mu.numel()])
        if decrement < 1e-8:
            values = _to_gauge(torch.cat([lam + d_lam, mu + d_mu]), lam.numel())
            return values[: lam.numel()], values[lam.numel() :]
        step = _feasible_step(lam, mu, d_lam, d_mu)
        for _ in range(60):
            new_lam, new_mu = lam + step * d_lam, mu + step * d_mu
            new_value = _objective(e, g, kappa, new_lam, new_mu)
            # Close to the minimum differences of F are below rounding, and a full step is safe.
            if new_value <= value - 1e-4 * step * decrement**2 or (decrement < 0.05 and step == 1.0):
                break
            step *= 0.5
        lam, mu, value = new_lam, new_mu, new_value
    raise NumericalError("spectral_precision: eigenvalues did not settle in 200 Newton steps; wanted more shrink")


def _own_values(e: Tensor, g: Tensor, kappa: float) -> tuple[Tensor, Tensor]:
    """Half of what each axis would have alone, p / e_i and n / g_j, bounded where a ridge allows e <= 0."""
    n, p = e.numel(), g.numel()
    floor = 1e-3 if kappa else 0.0
    return 0.5 * p / e.clamp_min(floor * p), 0.5 * n / g.clamp_min(floor * n)


def _fitted_start(e: Tensor, g: Tensor, kappa: float, lam: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
    """Move into the trace gauge, pair large precision with small moment, and choose the best overall scale."""
    values = torch.cat([lam.sort(descending=True).values, mu.sort(descending=True).values])
    lam, mu = _to_gauge(values, e.numel()).split([e.numel(), g.numel()])
    linear, quadratic = float(e @ lam + g @ mu), kappa * float(lam.square().sum() + mu.square().sum())
    # The positive root of 2 quadratic t^2 + linear t = N, which is dF/dt = 0 along t (lam, mu).
    N = e.numel() * g.numel()
    t = 2 * N / (linear + (linear**2 + 8 * quadratic * N) ** 0.5)
    return t * lam, t * mu


def _objective(e: Tensor, g: Tensor, kappa: float, lam: Tensor, mu: Tensor) -> float:
    linear = float(e @ lam + g @ mu) + kappa * float(lam.square().sum() + mu.square().sum())
    return linear - float((lam[:, None] + mu).log_().sum())


def _feasible_step(lam: Tensor, mu: Tensor, d_lam: Tensor, d_mu: Tensor) -> float:
    """The full step, or 0.95 of the way to the boundary min(lam) + min(mu) = 0."""
    step = 1.0
    while float((lam + step * d_lam).min() + (mu + step * d_mu).min()) <= 0.05 * float(lam.min() + mu.min()):
        step *= 0.8
    return step


def _newton_direction(R2: Tensor, kappa: float, gradient: Tensor) -> Tensor:
    """Minimise 1/2 x.Hx + gradient.x subject to mean x_row = mean x_col, by preconditioned conjugate gradients.

    H is singular along the gauge (1, -1) but for the ridge. Taking the ridge in the trace gauge, H becomes P^T H P with
    P the shift to that gauge, and a multiple of w w^T, w the normal of the constraint, makes it definite without any
    effect on the solution. H scaled by its diagonal has few eigenvalues away from one, so few iterations do; stopped
    early, the result is still a direction of descent.
    """
    n, p = R2.shape
    diagonal = torch.cat([R2.sum(1), R2.sum(0)]) + 2 * kappa
    normal = torch.cat([R2.new_full((n,), 1.0 / n), R2.new_full((p,), -1.0 / p)])
    weight = float(diagonal.sum()) / 4

    def product(x: Tensor) -> Tensor:
        y = _to_gauge(x, n)
        y = diagonal * y + torch.cat([R2 @ y[n:], R2.mT @ y[:n]])
        return _from_gauge(y, normal, n) + (weight * (normal @ x)) * normal

    x, residual = torch.zeros_like(gradient), -_from_gauge(gradient, normal, n)
    z = residual / diagonal
    search, size = z.clone(), float(residual @ z)
    target = 1e-22 * size
    for _ in range(1000):
        if not size > target:
            break
        image = product(search)
        alpha = size / float(search @ image)
        x += alpha * search
        residual -= alpha * image
        z = residual / diagonal
        size, old = float(residual @ z), size
        search = z + (size / old) * search
    return _to_gauge(x, n)


def _to_gauge(x: Tensor, n: int) -> Tensor:
    """Shift (lam, mu) along (1, -1) until the means are equal."""
    shift = 0.5 * (x[n:].mean() - x[:n].mean())
    return torch.cat([x[:n] + shift, x[n:] - shift])


def _from_gauge(gradient: Tensor, normal: Tensor, n: int) -> Tensor:
    """The transpose of `_to_gauge`: a gradient without its part along the gauge."""
    return gradient - 0.5 * (gradient[:n].sum() - gradient[n:].sum()) * normal
