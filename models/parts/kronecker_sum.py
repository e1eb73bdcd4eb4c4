"""Matrix distributions whose precision is a Kronecker sum or product of a row and a column factor."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import lazy_property

from .errors import DataError, NumericalError, SchemaError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

Structure = Literal["sum", "product"]
Zeros = Literal["gaussian", "structural"]

_MATRIX = constraints.independent(constraints.real, 2)


class KroneckerSumNormal(TorchDistribution):
    r"""Zero-mean Gaussian matrices whose entries depend along both axes.

    .. math:: \mathrm{vec}(X) \sim N(0, \Omega^{-1}),\quad
              \Omega = \Psi_{row} \oplus \Psi_{col} = \Psi_{row} \otimes I_p + I_n \otimes \Psi_{col}

    or, with ``structure="product"``, the matrix normal with Omega the Kronecker product of the factors. Independent
    rows or columns are sums with the other factor zero: ``row_precision = 0`` gives Omega = I (x) Psi_col.

    The density costs O(n^3 + p^3 + n^2 p + n p^2); nothing of size n p x n p is formed. It is differentiable in the
    value and in both factors at repeated eigenvalues too, since it depends on eigenvalues and matrix products only.
    Draws are not reparametrised.

    Parameters
    ----------
    row_precision
        Psi_row, symmetric, ``(*batch, n, n)``.
    col_precision
        Psi_col, symmetric, ``(*batch, p, p)``. Batch shapes broadcast. A factor of a sum may be indefinite; only the
        sum of the smallest eigenvalues has to be positive. Both factors of a product must be positive definite.
    structure
        ``"sum"`` or ``"product"``.
    validate_args
        Check symmetry and definiteness. Without the check the density outside of the cone is zero (log minus infinity).

    Raises
    ------
    DataError
        If a factor is not square, the structure is unknown, or (when validating) a factor is not symmetric or Omega is
        not positive definite.

    Notes
    -----
    Kalaitzis et al., "The Bigraphical Lasso" (2013).
    """

    arg_constraints = {  # noqa: RUF012  (torch declares it as an instance attribute)
        "row_precision": constraints.symmetric,
        "col_precision": constraints.symmetric,
    }
    support = _MATRIX

    def __init__(
        self,
        row_precision: Float[Tensor, "*row_batch n n"],
        col_precision: Float[Tensor, "*col_batch p p"],
        structure: Structure = "sum",
        validate_args: bool | None = None,
    ) -> None:
        if structure not in ("sum", "product"):
            raise DataError(f"structure: found {structure!r}; wanted 'sum' or 'product'")
        for name, matrix in (("row_precision", row_precision), ("col_precision", col_precision)):
            if matrix.dim() < 2 or matrix.shape[-1] != matrix.shape[-2] or not matrix.shape[-1]:
                raise DataError(f"{name}: found shape {tuple(matrix.shape)}; wanted square matrices")
        self.row_precision, self.col_precision, self.structure = row_precision, col_precision, structure
        if self._validate_args if validate_args is None else validate_args:
            self._check_precisions()
        batch = torch.broadcast_shapes(row_precision.shape[:-2], col_precision.shape[:-2])
        event = torch.Size([row_precision.shape[-1], col_precision.shape[-1]])
        super().__init__(batch, event, validate_args=validate_args)

    def _check_precisions(self) -> None:
        for name in self.arg_constraints:
            if not bool(constraints.symmetric.check(getattr(self, name)).all()):
                raise DataError(
                    f"{name}: found a matrix that is not symmetric or not finite; wanted symmetric matrices"
                )
        if not bool(self._inside.all()):
            rule = "min(row) + min(col) > 0" if self.structure == "sum" else "min(row) > 0 and min(col) > 0"
            row, col = (float(values.detach().amin()) for values in self._eigenvalues)
            raise DataError(
                f"row_precision, col_precision: found smallest eigenvalues {row:.3g} and {col:.3g}; wanted {rule}"
            )

    def expand(self, batch_shape: Any, _instance: Any = None) -> KroneckerSumNormal:
        """Broadcast to `batch_shape`; the factors, and their spectra, stay as they are and broadcast when used."""
        new = self._get_checked_instance(KroneckerSumNormal, _instance)
        new.__dict__.update(self.__dict__)
        super(KroneckerSumNormal, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @lazy_property
    def _eigenvalues(self) -> tuple[Tensor, Tensor]:
        """Of the two factors, ascending; minus infinity for a factor that is not finite."""
        return _eigenvalues(self.row_precision), _eigenvalues(self.col_precision)

    @property
    def _inside(self) -> Bool[Tensor, "*batch"]:
        """Whether Omega is positive definite."""
        row, col = (values[..., 0] for values in self._eigenvalues)
        return row + col > 0 if self.structure == "sum" else (row > 0) & (col > 0)

    def _spectrum(self, row: Tensor, col: Tensor) -> Float[Tensor, "*batch n p"]:
        row, col = row.unsqueeze(-1), col.unsqueeze(-2)
        return row + col if self.structure == "sum" else row * col

    def quadratic(self, value: Float[Tensor, "*shape n p"]) -> Float[Tensor, "*shape"]:
        """vec(X)' Omega vec(X); its mean under this distribution is n p."""
        left = self.row_precision @ value
        if self.structure == "sum":
            return (value * (left + value @ self.col_precision)).sum((-2, -1))
        return (value * (left @ self.col_precision)).sum((-2, -1))

    def log_det(self) -> Float[Tensor, "*batch"]:
        """log|Omega|; minus infinity outside of the cone."""
        inside = self._inside
        spectrum = self._spectrum(*self._eigenvalues)
        value = torch.where(inside[..., None, None], spectrum, torch.ones_like(spectrum)).log().sum((-2, -1))
        return torch.where(inside, value, torch.full_like(value, -math.inf))

    def log_prob(self, value: Float[Tensor, "*shape n p"]) -> Float[Tensor, "*shape"]:
        """Log density of matrices."""
        if self._validate_args:
            self._validate_sample(value)
        log_prob = self._log_density(self.quadratic(value), self.event_shape.numel())
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def entry_log_prob(self, value: Float[Tensor, "*shape n p"]) -> Float[Tensor, "*shape n p"]:
        """Log density of every entry given all others: Normal of the precision on the diagonal of Omega."""
        row, col = (matrix.diagonal(dim1=-2, dim2=-1) for matrix in (self.row_precision, self.col_precision))
        precision, left = self._spectrum(row, col), self.row_precision @ value
        deviation = left + value @ self.col_precision if self.structure == "sum" else left @ self.col_precision
        return 0.5 * (precision.log() - math.log(2 * math.pi) - deviation.square() / precision)

    def _log_density(self, quadratic: Tensor, count: float | Tensor) -> Tensor:
        log_density = 0.5 * (self.log_det() - quadratic - count * math.log(2 * math.pi))
        # The quadratic form may be minus infinity, and the difference NaN, only where the density is zero.
        return torch.where(self._inside, log_density, torch.full_like(log_density, -math.inf))

    def _eigenvectors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvectors of the rows and of the columns, and the spectrum of Omega."""
        if not bool(self._inside.all()):
            raise NumericalError("row_precision, col_precision: Omega is not positive definite; it has no covariance")
        row, row_vectors = torch.linalg.eigh(self.row_precision)
        col, col_vectors = torch.linalg.eigh(self.col_precision)
        return row_vectors, col_vectors, self._spectrum(row, col)

    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "*shape n p"]:
        """Draw X = Omega^{-1/2} E with the symmetric root, which does not depend on the choice of eigenvectors.

        With E standard normal and Psi = V diag V', X = V_row [ (V_row' E V_col) / sqrt(d) ] V_col'. Dropping the inner
        rotation would be right in law, but where eigenvalues repeat, as they do for trees, the same seed would then
        give other draws after a change of Psi by rounding.

        Raises
        ------
        NumericalError
            If Omega is not positive definite.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            row_vectors, col_vectors, spectrum = self._eigenvectors()
            noise = torch.randn(shape, dtype=spectrum.dtype, device=spectrum.device)
            return row_vectors @ (row_vectors.mT @ noise @ col_vectors / spectrum.sqrt()) @ col_vectors.mT

    @property
    def mean(self) -> Float[Tensor, "*batch n p"]:
        """Zero."""
        return self.row_precision.new_zeros(()).expand(self._extended_shape())

    @property
    def variance(self) -> Float[Tensor, "*batch n p"]:
        """Diagonal of the inverse of Omega; not differentiable.

        Raises
        ------
        NumericalError
            If Omega is not positive definite.
        """
        with torch.no_grad():
            row_vectors, col_vectors, spectrum = self._eigenvectors()
            variance = row_vectors.square() @ spectrum.reciprocal() @ col_vectors.square().mT
        return variance.expand(self._extended_shape())


class ScaledKroneckerSumNormal(TorchDistribution):
    r"""Kronecker-sum Gaussian matrices seen through positive row and column scales.

    .. math:: D_{ij} = e^{\log u_i + \log v_j} X_{ij},\qquad
              \log p(D) = \log p_X(X) - p \sum_i \log u_i - n \sum_j \log v_j

    Exact zeros in D, as counts have them, are taken in one of two ways. ``"gaussian"``: as observations that happen to
    be 0, which is the density above. ``"structural"``: as entries that carry no information on the scales; the
    Jacobian and the constant n p log(2 pi) / 2 then run over the non-zero entries only, while log|Omega| and the
    quadratic form stay. That is a pseudo-likelihood: it is not normalised over D, since a zero says nothing on where
    zeros are. `sample` draws dense matrices, without zeros, whatever the setting.

    Parameters
    ----------
    log_row_scale
        log u, natural logarithms, ``(*batch, n)``.
    log_col_scale
        log v, ``(*batch, p)``.
    row_precision, col_precision, structure
        Of X, as in `KroneckerSumNormal`; all batch shapes broadcast, and factors without a batch shape are decomposed
        once.
    zeros
        ``"gaussian"`` or ``"structural"``.
    validate_args
        As in `KroneckerSumNormal`.

    Raises
    ------
    DataError
        As `KroneckerSumNormal`, or if scales and factors have different sizes or `zeros` is unknown.
    """

    arg_constraints = {  # noqa: RUF012
        "log_row_scale": constraints.real_vector,
        "log_col_scale": constraints.real_vector,
    }
    support = _MATRIX

    def __init__(
        self,
        log_row_scale: Float[Tensor, "*row_batch n"],
        log_col_scale: Float[Tensor, "*col_batch p"],
        row_precision: Float[Tensor, "*factor_batch n n"],
        col_precision: Float[Tensor, "*factor_batch p p"],
        structure: Structure = "sum",
        zeros: Zeros = "gaussian",
        validate_args: bool | None = None,
    ) -> None:
        if zeros not in ("gaussian", "structural"):
            raise DataError(f"zeros: found {zeros!r}; wanted 'gaussian' or 'structural'")
        self.unscaled = KroneckerSumNormal(row_precision, col_precision, structure, validate_args)
        scales = {"log_row_scale": log_row_scale, "log_col_scale": log_col_scale}
        for (name, scale), size in zip(scales.items(), self.unscaled.event_shape, strict=True):
            if scale.dim() < 1 or scale.shape[-1] != size:
                raise DataError(f"{name}: found shape {tuple(scale.shape)}; wanted (..., {size}), as the precision has")
        self.log_row_scale, self.log_col_scale, self.zeros = log_row_scale, log_col_scale, zeros
        batch = torch.broadcast_shapes(
            self.unscaled.batch_shape, *(scale.shape[:-1] for scale in (log_row_scale, log_col_scale))
        )
        super().__init__(batch, self.unscaled.event_shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ScaledKroneckerSumNormal:
        """Broadcast to `batch_shape`; scales and factors stay as they are and broadcast when used."""
        new = self._get_checked_instance(ScaledKroneckerSumNormal, _instance)
        new.__dict__.update(self.__dict__)
        super(ScaledKroneckerSumNormal, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def log_scale(self) -> Float[Tensor, "*batch n p"]:
        """Log scale of every entry, log u_i + log v_j."""
        return self.log_row_scale.unsqueeze(-1) + self.log_col_scale.unsqueeze(-2)

    def log_prob(self, value: Float[Tensor, "*shape n p"]) -> Float[Tensor, "*shape"]:
        """Log density of scaled matrices."""
        if self._validate_args:
            self._validate_sample(value)
        log_scale = self.log_scale
        log_jacobian, count = self._jacobian(value, log_scale)
        log_density = self.unscaled._log_density(self.unscaled.quadratic(value * (-log_scale).exp()), count)
        log_prob = log_density - log_jacobian
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def entry_log_prob(self, value: Float[Tensor, "*shape n p"]) -> Float[Tensor, "*shape n p"]:
        """Log density of every entry given all others, and the scales.

        Raises
        ------
        SchemaError
            If zeros are structural: the pseudo-likelihood is no law of entries.
        """
        if self.zeros == "structural":
            raise SchemaError(
                "zeros: found 'structural', a pseudo-likelihood; wanted 'gaussian' for densities of entries"
            )
        log_scale = self.log_scale
        return self.unscaled.entry_log_prob(value * (-log_scale).exp()) - log_scale

    def _jacobian(self, value: Tensor, log_scale: Tensor) -> tuple[Tensor, float | Tensor]:
        """Sum of the log scales over the entries that count, and their number."""
        if self.zeros == "gaussian":
            n, p = self.event_shape
            return p * self.log_row_scale.sum(-1) + n * self.log_col_scale.sum(-1), float(n * p)
        counted = (value != 0).to(log_scale.dtype)
        return (counted * log_scale).sum((-2, -1)), counted.sum((-2, -1))

    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "*shape n p"]:
        """Draw X as `KroneckerSumNormal.sample` does, and scale it.

        Raises
        ------
        NumericalError
            If Omega is not positive definite.
        """
        with torch.no_grad():
            return self.unscaled.expand(self.batch_shape).sample(sample_shape) * self.log_scale.exp()

    @property
    def mean(self) -> Float[Tensor, "*batch n p"]:
        """Zero."""
        return self.unscaled.mean.expand(self._extended_shape())

    @property
    def variance(self) -> Float[Tensor, "*batch n p"]:
        """Variance of every entry."""
        variance = self.unscaled.variance * (2 * self.log_scale).exp()
        return variance.expand(self._extended_shape())


def _eigenvalues(matrix: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch d"]:
    """Eigenvalues; minus infinity where the matrix is not finite, which LAPACK refuses."""
    finite = matrix.isfinite().all(-1).all(-1)
    if bool(finite.all()):
        return torch.linalg.eigvalsh(matrix)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    values = torch.linalg.eigvalsh(torch.where(finite[..., None, None], matrix, identity))
    return torch.where(finite.unsqueeze(-1), values, torch.full_like(values, -math.inf))
