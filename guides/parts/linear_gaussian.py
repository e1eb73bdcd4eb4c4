"""The linear Gaussian latent model with the latents integrated out, from sums over the cells of each environment.

    z_i ~ Normal(mu_e(i), I),   x_i = z_i W + b + noise of variance s^2
    x_i | mu ~ Normal(b + mu_e W, W'W + s^2 I),   z_i | x_i, mu ~ Normal((x_i - b) G + mu_e V, V)
    V = (I + W W' / s^2)^-1,   F = I - V,   G = W' V / s^2

F is the information that one cell has about mu_e: the log-likelihood of the means of the environments is, exactly,

    sum_e [h_e' mu_e - n_e mu_e' F mu_e / 2] + a constant,   h_e = n_e (xbar_e - b) G.

Tipping and Bishop (1999), Probabilistic principal component analysis. Everything is in double precision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int

LEAST_VARIANCE = 1e-12  # of the mean variance of a gene: keeps s^2 above 0 where latents explain everything


@dataclass(frozen=True)
class CellSums:
    """What the cells of each environment say.

    Attributes
    ----------
    count
        Cells of the environment, n_e.
    mean
        Their mean expression; 0 where there are none.
    scatter
        Sum over cells of (x_i - mean of its environment)'(x_i - mean of its environment).
    """

    count: Float[Tensor, " condition"]
    mean: Float[Tensor, "condition gene"]
    scatter: Float[Tensor, "gene gene_other"]

    @classmethod
    def of(
        cls, expression: Float[Tensor, "cell gene"], environment: Int[Tensor, " cell"], num_environments: int
    ) -> CellSums:
        """Sums of all cells, in one pass."""
        x = expression.double()
        count = torch.bincount(environment, minlength=num_environments).double()
        mean = x.new_zeros(num_environments, x.shape[1]).index_add_(0, environment, x)
        mean = mean / count.clamp_min(1).unsqueeze(-1)
        scatter = x.new_zeros(x.shape[1], x.shape[1])
        for rows in torch.arange(len(x), device=x.device).split(65536):
            centred = x[rows] - mean[environment[rows]]
            scatter += centred.mT @ centred
        return cls(count, mean, scatter)

    @property
    def total(self) -> float:
        """Number of cells."""
        return float(self.count.sum())

    @property
    def center(self) -> Float[Tensor, " gene"]:
        """Mean of all cells."""
        return self.count @ self.mean / self.count.sum()

    @property
    def squares(self) -> Float[Tensor, ""]:
        """Sum of squared deviations from the mean of all cells."""
        return self.scatter.trace() + (self.count @ (self.mean - self.center).square()).sum()


@dataclass(frozen=True)
class Shifts:
    """Moments of the means of the environments under their posterior: all that the other updates need of it.

    Attributes
    ----------
    mean
        E mu_e.
    spread
        Sum over environments of n_e Cov(mu_e).
    """

    mean: Float[Tensor, "condition latent"]
    spread: Float[Tensor, "latent latent_other"]


@dataclass(frozen=True)
class LinearGaussian:
    """Decoder and noise, and what follows from them.

    Attributes
    ----------
    weight
        W, expression by latent unit.
    bias
        b.
    variance
        s^2.
    """

    weight: Float[Tensor, "latent gene"]
    bias: Float[Tensor, " gene"]
    variance: Float[Tensor, ""]

    @property
    def num_latents(self) -> int:
        """Number of latents, d."""
        return len(self.weight)

    @property
    def identity(self) -> Float[Tensor, "latent latent_other"]:
        """I of d rows."""
        return torch.eye(self.num_latents, dtype=self.weight.dtype, device=self.weight.device)

    @property
    def precision(self) -> Float[Tensor, "latent latent_other"]:
        """Precision of the latents of a cell given its expression, I + W W' / s^2."""
        return self.identity + self.weight @ self.weight.mT / self.variance

    def posterior_covariance(self) -> Float[Tensor, "latent latent_other"]:
        """Covariance V of the latents of a cell given its expression."""
        return torch.cholesky_inverse(torch.linalg.cholesky(self.precision))

    def information(self) -> Float[Tensor, "latent latent_other"]:
        """Information F of one cell about the mean of its environment."""
        F = torch.linalg.solve(self.precision, self.precision - self.identity)
        return (F + F.mT) / 2

    def gain(self) -> Float[Tensor, "gene latent"]:
        """G, which takes deviations of expression to latents."""
        return torch.linalg.solve(self.precision, self.weight / self.variance).mT

    def pull(self, cells: CellSums) -> Float[Tensor, "condition latent"]:
        """Linear coefficient h_e of the log-likelihood in the means of the environments."""
        return cells.count.unsqueeze(-1) * ((cells.mean - self.bias) @ self.gain())

    def latents(
        self, expression: Float[Tensor, "*b gene"], mean: Float[Tensor, "*b latent"]
    ) -> tuple[Float[Tensor, "*b latent"], Float[Tensor, "latent latent_other"]]:
        """Mean and covariance of the latents of cells given their expression and the mean of their environment."""
        V = self.posterior_covariance()
        return (expression - self.bias) @ self.gain() + mean @ V, V

    def log_density(
        self, expression: Float[Tensor, "cell gene"], mean: Float[Tensor, "*draw cell latent"]
    ) -> Float[Tensor, "*draw cell"]:
        """Log density of cells, latents integrated out, given the mean of the environment of each."""
        p, away, F = expression.shape[-1], expression - self.bias, self.information()
        log_det = torch.linalg.slogdet(self.precision).logabsdet + p * self.variance.log()
        pull = away @ self.gain()
        explained = ((away @ self.weight.mT) * pull).sum(-1)
        at_zero = -0.5 * (p * math.log(2 * math.pi) + log_det + (away.square().sum(-1) - explained) / self.variance)
        return at_zero + (pull * mean).sum(-1) - 0.5 * ((mean @ F) * mean).sum(-1)

    def entry_log_density(
        self, expression: Float[Tensor, "cell gene"], mean: Float[Tensor, "*draw cell latent"]
    ) -> Float[Tensor, "*draw cell gene"]:
        """Log density of every gene given the other genes of its cell, latents integrated out: Normal.

        The precision of the genes is (I - W' (I + W W' / s^2)^-1 W / s^2) / s^2.
        """
        away = expression - self.bias - mean @ self.weight
        gain = self.gain().mT
        precision = (1 - (self.weight * gain).sum(0)) / self.variance
        deviation = (away - away @ self.weight.mT @ gain) / self.variance
        return 0.5 * (precision.log() - math.log(2 * math.pi) - deviation.square() / precision)

    def log_likelihood(self, cells: CellSums, shifts: Shifts) -> Float[Tensor, ""]:
        """Expected log density of all cells, latents integrated out, over the posterior of the means."""
        p = cells.mean.shape[1]
        log_det = torch.linalg.slogdet(self.precision).logabsdet + p * self.variance.log()
        away = cells.mean - self.bias
        G, F = self.gain(), self.information()
        explained = ((self.weight @ cells.scatter) * G.mT).sum()
        explained = explained + (cells.count.unsqueeze(-1) * (away @ self.weight.mT) * (away @ G)).sum()
        squares = cells.scatter.trace() + (cells.count @ away.square()).sum()
        at_zero = -0.5 * cells.total * (p * math.log(2 * math.pi) + log_det)
        at_zero = at_zero - 0.5 * (squares - explained) / self.variance
        weighted = cells.count.unsqueeze(-1) * shifts.mean
        quadratic = ((weighted @ F) * shifts.mean).sum() + (F * shifts.spread).sum()
        return at_zero + (self.pull(cells) * shifts.mean).sum() - 0.5 * quadratic

    def bounded(self, least: float, largest: float) -> LinearGaussian:
        """The same decoder with s^2 in an interval."""
        return LinearGaussian(self.weight, self.bias, self.variance.clamp(least, largest))

    def maximised(self, cells: CellSums, moments: LatentMoments) -> LinearGaussian:
        """M-step: the decoder and noise of the highest expected log density of expression and latents."""
        total, center = cells.total, cells.center
        mean = moments.sum / total
        S_zz = moments.square - total * mean.outer(mean)
        S_zx = moments.cross - total * mean.outer(center)
        W = torch.linalg.solve(S_zz, S_zx)
        squares = cells.squares
        residual = torch.maximum(squares - (W * S_zx).sum(), LEAST_VARIANCE * squares)
        return LinearGaussian(W, center - mean @ W, residual / (total * len(center)))

    def moments(self, cells: CellSums, shifts: Shifts) -> LatentMoments:
        """E-step: sums over cells of moments of their latents."""
        V, G, n = self.posterior_covariance(), self.gain(), cells.count.unsqueeze(-1)
        mean = (cells.mean - self.bias) @ G + shifts.mean @ V  # (condition, latent)
        pulled = G.mT @ cells.scatter  # (latent, gene)
        square = cells.total * V + V @ shifts.spread @ V + pulled @ G + mean.mT @ (n * mean)
        cross = pulled + mean.mT @ (n * cells.mean)
        return LatentMoments(
            sum=(n * mean).sum(0),
            square=(square + square.mT) / 2,
            cross=cross,
            with_shift=mean.mT @ (n * shifts.mean) + V @ shifts.spread,
            shift_square=shifts.mean.mT @ (n * shifts.mean) + shifts.spread,
        )

    def transformed(self, A: Float[Tensor, "latent latent_new"]) -> LinearGaussian:
        """The same decoder for latents z* with z = z* A'."""
        return LinearGaussian(A.mT @ self.weight, self.bias, self.variance)


@dataclass(frozen=True)
class LatentMoments:
    """Expected sums over cells: of z, z z', z x', z mu' and mu mu'."""

    sum: Float[Tensor, " latent"]
    square: Float[Tensor, "latent latent_other"]
    cross: Float[Tensor, "latent gene"]
    with_shift: Float[Tensor, "latent latent_other"]
    shift_square: Float[Tensor, "latent latent_other"]

    def within(self) -> Float[Tensor, "latent latent_other"]:
        """Sum over cells of E (z - mu)(z - mu)'."""
        return self.square - self.with_shift - self.with_shift.mT + self.shift_square

    def best_scales(self, total: float) -> Float[Tensor, " latent"]:
        """Scales a of the expanded model z = a z*, z* ~ Normal(mu, I), of the highest expected log density."""
        square, shifted = self.square.diagonal(), self.with_shift.diagonal()
        return 2 * square / (shifted + torch.sqrt(shifted.square() + 4 * total * square))


def principal_components(cells: CellSums, num_latents: int) -> LinearGaussian:
    """Probabilistic principal components in closed form, of the covariance within environments.

    Where there are fewer cells than it has directions, of the covariance of all cells.
    """
    spare = cells.total - len(cells.count)
    p = cells.mean.shape[1]
    away = cells.mean - cells.center
    if spare >= p:
        covariance = cells.scatter / spare
    else:
        covariance = (cells.scatter + away.mT @ (cells.count.unsqueeze(-1) * away)) / cells.total
    values, vectors = torch.linalg.eigh(covariance)
    least = LEAST_VARIANCE * values.sum() / p
    s2 = torch.maximum(values[: p - num_latents].mean(), least)
    size = (values[p - num_latents :] - s2).clamp_min(least).sqrt()
    weight = (vectors[:, p - num_latents :] * size).mT.flip(0)
    return LinearGaussian(weight.contiguous(), cells.center, s2)
