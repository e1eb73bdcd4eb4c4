"""Probabilistic PCA: the exact reference of linear models with Gaussian latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..models.parts.errors import DataError
from ..validation import validate
from .base import expression_of
from .environments import EnvironmentBaseline, FittedEnvironmentBaseline, genes_of

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["FittedPCA", "ProbabilisticPCA"]


@dataclass(frozen=True)
class FittedPCA(FittedEnvironmentBaseline):
    """x = mean + W z + e, z ~ Normal(0, I), e ~ Normal(0, s^2 I).

    Attributes
    ----------
    mean
        Mean of the genes.
    loadings
        W, orthogonal columns by falling length.
    noise_variance
        s^2.
    """

    genes: tuple[str, ...]
    mean: Float[np.ndarray, " gene"]
    loadings: Float[np.ndarray, "gene latent"]
    noise_variance: float

    def latents(self, data: xr.Dataset) -> xr.DataArray:
        """Posterior means of z (cell, latent)."""
        values = np.linalg.solve(self._inner(), self.loadings.T @ (expression_of(data) - self.mean).T).T
        return xr.DataArray(values, {"cell": data["cell"].to_numpy()}, ("cell", "latent"), name="z")

    def reconstruct(self, data: xr.Dataset) -> xr.DataArray:
        """Mean of x at the posterior means of z (cell, gene)."""
        values = self.mean + self.latents(data).to_numpy() @ self.loadings.T
        coords = {"cell": data["cell"].to_numpy(), "gene": np.asarray(self.genes)}
        return xr.DataArray(values, coords, ("cell", "gene"), name="reconstruction")

    def _inner(self) -> Float[np.ndarray, "latent latent"]:
        return self.loadings.T @ self.loadings + self.noise_variance * np.eye(self.loadings.shape[1])

    def _mean(self, data: xr.Dataset) -> Float[np.ndarray, "cell gene"]:
        return np.repeat(self.mean[None], data.sizes["cell"], axis=0)

    def _log_density(self, data: xr.Dataset, x: Float[np.ndarray, "cell gene"]) -> Float[np.ndarray, " cell"]:
        # Woodbury: (x-m)' C^-1 (x-m) = (|x-m|^2 - (x-m)' W M^-1 W' (x-m)) / s^2, |C| = s^2(p-d) |M|.
        (p, d), inner, centred = self.loadings.shape, self._inner(), x - self.mean
        scores = centred @ self.loadings
        explained = np.sum(scores * np.linalg.solve(inner, scores.T).T, axis=1)
        square = (np.sum(centred**2, axis=1) - explained) / self.noise_variance
        log_det = (p - d) * np.log(self.noise_variance) + np.linalg.slogdet(inner)[1]
        return -0.5 * (square + log_det + p * np.log(2 * np.pi))


@dataclass(frozen=True)
class ProbabilisticPCA(EnvironmentBaseline):
    """Exact maximum of the likelihood of a linear model with Gaussian latents and noise, without environments.

    Tipping and Bishop (1999, JRSS B), equations 3.6 to 3.8. No linear VAE of as many latents and one noise variance
    has a larger bound on the training cells.

    Attributes
    ----------
    num_latents
        Number of latents, below the number of genes.
    """

    num_latents: int

    def fit(self, train: xr.Dataset) -> FittedPCA:
        """Take the leading eigenvectors of the covariance; see `EnvironmentBaseline.fit`."""
        x = expression_of(validate(train))
        if not 0 < self.num_latents < x.shape[1]:
            raise DataError(f"num_latents: found {self.num_latents}; wanted a number from 1 to {x.shape[1] - 1}")
        mean = x.mean(axis=0)
        values, vectors = np.linalg.eigh((x - mean).T @ (x - mean) / len(x))
        values, vectors = values[::-1], vectors[:, ::-1]
        noise = float(values[self.num_latents :].mean())
        if not noise > 1e-12 * values[0]:
            raise DataError(f"expression: found no variance beyond {self.num_latents} latents; wanted fewer latents")
        lengths = np.sqrt(np.maximum(values[: self.num_latents] - noise, 0))
        return FittedPCA(genes_of(train), mean, vectors[:, : self.num_latents] * lengths, noise)
