"""Gaussian posterior of the log scales of rows and columns, drawn as the sites ``log_u``, ``log_v``, ``log_omega``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .log_scale_family import LogScales

if TYPE_CHECKING:
    from jaxtyping import Float

Covariance = Literal["full", "mean_field"]


class JointScales(torch.nn.Module):
    """(a, b) ~ Normal(loc, Sigma) for each set of scales.

        log u = -(a - mean a),   log v = -(b - mean b),   log omega = 2 (mean a + mean b)

    The three sites do not see the gauge: a + c, b - c give the same values. Their density is that of the Gaussian on
    the other n + p - 1 directions.

    Parameters
    ----------
    num_rows, num_cols
        n and p.
    num_sets
        Sets of scales, one a matrix; None: one set without an axis of its own.
    covariance
        ``"full"``: `factor` is the Cholesky factor of Sigma + g g^T, g the unit vector along the gauge, which nothing
        sees; ``"mean_field"``: it holds standard deviations.
    """

    loc: Tensor
    factor: Tensor
    fitted: Tensor

    def __init__(self, num_rows: int, num_cols: int, num_sets: int | None, covariance: Covariance) -> None:
        super().__init__()
        self.num_rows, self.num_cols, self.num_sets, self.covariance = num_rows, num_cols, num_sets, covariance
        self.register_buffer("fitted", torch.tensor(False))
        outer = () if num_sets is None else (num_sets,)
        size = num_rows + num_cols
        self.register_buffer("loc", torch.zeros(*outer, size))
        shape = (size, size) if covariance == "full" else (size,)
        unit = torch.eye(size) if covariance == "full" else torch.ones(size)
        self.register_buffer("factor", unit.expand(*outer, *shape).clone())

    def _gauge(self) -> Float[Tensor, " scale"]:
        signs = torch.cat([torch.ones(self.num_rows), -torch.ones(self.num_cols)])
        return signs.to(getattr(self, "loc", signs)) / math.sqrt(len(signs))

    def forward(self) -> None:
        """Draw the three sites."""
        law = dist.Normal(self.loc.new_zeros(self.factor.shape[-1]), self.loc.new_ones(())).to_event(1)
        unit = pyro.sample("scales_unit", law, infer={"is_auxiliary": True})  # (free,)
        full = self.covariance == "full"
        deviation = (self.factor @ unit.unsqueeze(-1)).squeeze(-1) if full else self.factor * unit
        log_u, log_v, log_omega = self.as_sites(self.loc + deviation)
        pyro.sample("log_omega", dist.Delta(log_omega, self._log_jacobian(unit, deviation)))
        pyro.sample("log_u", dist.Delta(log_u).to_event(1))
        pyro.sample("log_v", dist.Delta(log_v).to_event(1))

    def as_sites(self, scales: Float[Tensor, "*draw scale"]) -> tuple[Tensor, Tensor, Tensor]:
        """Split into log u, log v and log omega of stacked (a, b)."""
        a, b = scales.split((self.num_rows, self.num_cols), -1)
        mean_a, mean_b = a.mean(-1, keepdim=True), b.mean(-1, keepdim=True)
        return mean_a - a, mean_b - b, 2 * (mean_a + mean_b).squeeze(-1)

    def _log_jacobian(
        self, unit: Float[Tensor, "*draw free"], deviation: Float[Tensor, "*draw scale"]
    ) -> Float[Tensor, "*draw"]:
        """What turns the density of `unit`, which Pyro adds, into that of the three sites.

        The draw has one coordinate too many: its law along the gauge, given the rest, is divided out.
        """
        n, p = self.num_rows, self.num_cols
        jacobian = math.log(2.0) + 0.5 * math.log((n + p) / (n * p))
        gauge = self._gauge()
        if self.covariance == "full":
            volume = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            along = (deviation * gauge).sum(-1)  # standard normal and independent of the rest
        else:
            volume = self.factor.log().sum(-1) + 0.5 * self.factor.square().reciprocal().mean(-1).log()
            weights = gauge / self.factor
            along = (unit * weights).sum(-1) / weights.norm(dim=-1)
        return 0.5 * along.square() + 0.5 * math.log(2 * math.pi) - volume - jacobian

    def store(self, fitted: Sequence[LogScales]) -> None:
        """Take over the Gaussians of all sets; a full covariance is kept by its square root."""
        for k, scales in enumerate(fitted):
            loc, factor = (self.loc, self.factor) if self.num_sets is None else (self.loc[k], self.factor[k])
            loc.copy_(scales.mean)
            if self.covariance == "full":
                factor.copy_(self._cholesky(scales.spread))
            else:
                factor.copy_(scales.spread.sqrt())
        self.fitted.fill_(True)

    def shift_overall(self, shifts: Sequence[float]) -> None:
        """Move log omega of each set, and nothing else."""
        for k, shift in enumerate(shifts):
            (self.loc if self.num_sets is None else self.loc[k]).add_(shift / 4)

    def move_to(self, fitted: Sequence[LogScales]) -> None:
        """Take over the means alone."""
        means = torch.stack([scales.mean for scales in fitted])
        self.loc.copy_(means[0] if self.num_sets is None else means)

    def widen(self, of_rows: float, of_cols: float) -> None:
        """Multiply variances of row scales and of column scales."""
        root = torch.cat([self.loc.new_full((self.num_rows,), of_rows), self.loc.new_full((self.num_cols,), of_cols)])
        root = root.sqrt()
        if self.covariance == "mean_field":
            self.factor.mul_(root)
            return
        for k, scales in enumerate(self.as_log_scales()):
            wide = root[:, None] * scales.spread * root
            (self.factor if self.num_sets is None else self.factor[k]).copy_(self._cholesky(self._off_gauge(wide)))

    def _off_gauge(self, matrix: Float[Tensor, "scale scale"]) -> Float[Tensor, "scale scale"]:
        """Project the gauge out of a covariance."""
        gauge = self._gauge()
        half = matrix - gauge[:, None] * (gauge @ matrix)
        return half - (half @ gauge)[:, None] * gauge

    def _cholesky(self, covariance: Float[Tensor, "scale scale"]) -> Float[Tensor, "scale scale"]:
        gauge = self._gauge()
        return torch.linalg.cholesky(covariance.addr(gauge, gauge))

    def start(self, k: int) -> tuple[Float[Tensor, " row"], Float[Tensor, " col"]] | None:
        """Means of the k-th set; None before anything was stored."""
        if not bool(self.fitted):
            return None
        a, b = (self.loc if self.num_sets is None else self.loc[k]).split((self.num_rows, self.num_cols))
        return a, b

    def as_log_scales(self) -> list[LogScales]:
        """The Gaussian of each set."""
        found = []
        for k in range(self.num_sets or 1):
            loc, factor = (self.loc, self.factor) if self.num_sets is None else (self.loc[k], self.factor[k])
            full = self.covariance == "full"
            covariance = (factor @ factor.mT).addr(self._gauge(), self._gauge(), alpha=-1) if full else None
            variances = covariance.diagonal() if covariance is not None else factor.square()
            (a, b), (row, col) = (x.split((self.num_rows, self.num_cols)) for x in (loc, variances))
            found.append(LogScales(a, b, covariance, row, col, 1.0))
        return found

    def site_variances(self) -> tuple[Float[Tensor, "*set row"], Float[Tensor, "*set col"]]:
        """Variances of log u and log v."""
        full = self.covariance == "full"
        blocks = self.factor.split((self.num_rows, self.num_cols), -2 if full else -1)
        if full:
            rows, cols = ((block - block.mean(-2, keepdim=True)).square().sum(-1) for block in blocks)
            return rows, cols
        rows, cols = (_centred_variances(block.square()) for block in blocks)
        return rows, cols


def _centred_variances(variances: Float[Tensor, "*set node"]) -> Float[Tensor, "*set node"]:
    """Variances of x_i - mean x for independent x_i."""
    size = variances.shape[-1]
    return variances * (1 - 2 / size) + variances.sum(-1, keepdim=True) / size**2
