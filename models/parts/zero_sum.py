"""Distributions over vectors that sum to zero, such as log scales whose common factor lives elsewhere."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.transforms import Transform

from .errors import DataError, SchemaError

if TYPE_CHECKING:
    from jaxtyping import Float


class _ZeroSum(constraints.Constraint):
    """Vectors that sum to zero, up to rounding."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        tolerance = torch.finfo(value.dtype).eps ** 0.5 * (1 + value.abs().sum(-1))
        return value.sum(-1).abs() <= tolerance


zero_sum = _ZeroSum()


class ZeroSumTransform(Transform):
    """Isometry of R^{n-1} onto the vectors of R^n that sum to zero, in O(n).

    The Householder reflection that takes the last unit vector to (1, ..., 1) / sqrt(n), applied to (y, 0). Lengths and
    volumes are kept, so a density on the subspace and that of its coordinates are equal.
    """

    domain = constraints.real_vector
    codomain = zero_sum
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ZeroSumTransform)

    def __hash__(self) -> int:
        return hash(ZeroSumTransform)

    def _call(self, x: Float[Tensor, "*batch free"]) -> Float[Tensor, "*batch n"]:
        root = math.sqrt(x.shape[-1] + 1)
        total = x.sum(-1, keepdim=True) / root
        return torch.cat([x - total / (root - 1), total], -1)

    def _inverse(self, y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch free"]:
        return y[..., :-1] + y[..., -1:] / (math.sqrt(y.shape[-1]) - 1)

    def log_abs_det_jacobian(
        self, x: Float[Tensor, "*batch free"], y: Float[Tensor, "*batch n"]
    ) -> Float[Tensor, "*batch"]:
        """Zero."""
        return x.new_zeros(x.shape[:-1])

    def forward_shape(self, shape: Any) -> torch.Size:
        """One longer."""
        return torch.Size([*shape[:-1], shape[-1] + 1])

    def inverse_shape(self, shape: Any) -> torch.Size:
        """One shorter."""
        return torch.Size([*shape[:-1], shape[-1] - 1])


@biject_to.register(_ZeroSum)
@transform_to.register(_ZeroSum)
def _to_zero_sum(constraint: constraints.Constraint) -> ZeroSumTransform:
    return ZeroSumTransform()


class ZeroSumNormal(TorchDistribution):
    """Independent zero-mean Normals given that they sum to zero.

    The density is that on the subspace of vectors with zero sum, with respect to its (n-1)-dimensional volume.

    Parameters
    ----------
    scale
        Standard deviations before conditioning, in units of the values, ``(*batch, n)`` with n at least 2.
    validate_args
        Check that scales are positive and values sum to zero.

    Raises
    ------
    DataError
        If there are fewer than two values.
    ValueError
        When validating, if a scale is not positive.
    """

    arg_constraints = {  # noqa: RUF012  (torch declares it as an instance attribute)
        "scale": constraints.independent(constraints.positive, 1)
    }
    support = zero_sum

    def __init__(self, scale: Float[Tensor, "*batch n"], validate_args: bool | None = None) -> None:
        if scale.dim() < 1 or scale.shape[-1] < 2:
            raise DataError(f"scale: found shape {tuple(scale.shape)}; wanted (..., n) with n at least 2")
        self.scale = scale
        super().__init__(scale.shape[:-1], scale.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ZeroSumNormal:
        """Broadcast to `batch_shape`."""
        new = self._get_checked_instance(ZeroSumNormal, _instance)
        new.scale = self.scale.expand(*batch_shape, -1)
        super(ZeroSumNormal, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Float[Tensor, "*batch n"]:
        """Zero."""
        return torch.zeros_like(self.scale)

    @property
    def variance(self) -> Float[Tensor, "*batch n"]:
        """s_i^2 - s_i^4 / sum_k s_k^2."""
        square = self.scale.square()
        return square - square.square() / square.sum(-1, keepdim=True)

    def log_prob(self, value: Float[Tensor, "*shape n"]) -> Float[Tensor, "*shape"]:
        """Log density on the subspace."""
        if self._validate_args:
            self._validate_sample(value)
        n = self.event_shape[0]
        # In coordinates of an orthonormal basis Q, |Q' diag(s^-2) Q| = mean(s^2) / prod(s^2).
        log_scale = self.scale.log().sum(-1) - 0.5 * self.scale.square().mean(-1).log()
        return -0.5 * (value / self.scale).square().sum(-1) - log_scale - 0.5 * (n - 1) * math.log(2 * math.pi)

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "*shape n"]:
        """Draw independent values and take off their sum, each in proportion to its variance."""
        shape = self._extended_shape(torch.Size(sample_shape))
        free = torch.randn(shape, dtype=self.scale.dtype, device=self.scale.device) * self.scale
        square = self.scale.square()
        return free - square / square.sum(-1, keepdim=True) * free.sum(-1, keepdim=True)

    has_rsample = True


class ZeroSumFlat(TorchDistribution):
    """Flat, improper prior on vectors that sum to zero: log density 0, no draws.

    Inference must start from values: `mean` is zero, so Pyro's ``init_to_mean`` works.

    Parameters
    ----------
    n
        Length of the vectors, at least 2.
    dtype, device
        Of `mean` and of the log density.

    Raises
    ------
    DataError
        If n is below 2.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = zero_sum

    def __init__(
        self, n: int, dtype: torch.dtype = torch.float64, device: torch.device | None = None,
        validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        if n < 2:
            raise DataError(f"n: found {n}; wanted at least 2")
        self._zero = torch.zeros((), dtype=dtype, device=device)
        super().__init__(torch.Size(), torch.Size([n]), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ZeroSumFlat:
        """Broadcast to `batch_shape`."""
        new = self._get_checked_instance(ZeroSumFlat, _instance)
        new._zero = self._zero
        super(ZeroSumFlat, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Float[Tensor, "*batch n"]:
        """Zero, the centre of symmetry; there is no expectation."""
        return self._zero.expand(self._extended_shape())

    def log_prob(self, value: Float[Tensor, "*shape n"]) -> Float[Tensor, "*shape"]:
        """Zero."""
        if self._validate_args:
            self._validate_sample(value)
        return self._zero.expand(torch.broadcast_shapes(value.shape[:-1], self.batch_shape))

    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "*shape n"]:
        """Refuse: the prior is improper.

        Raises
        ------
        SchemaError
            Always.
        """
        raise SchemaError(
            "flat prior on log scales: found a request for draws; wanted a proper prior such as ZeroSumNormal, or "
            "values to start from (init_to_mean), since a flat prior has no draws"
        )
