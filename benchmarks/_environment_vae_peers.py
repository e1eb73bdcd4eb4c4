"""Peers of the Environment VAE on compounds: a Gaussian process over fingerprints and doses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.special import expit

from embergraph.baselines.base import expression_of

if TYPE_CHECKING:
    from jaxtyping import Float

_BOUNDS = [(-2.0, 2.0), (-4.0, 4.0)]  # log of the dose's length scale; logit of the share of noise


@dataclass(frozen=True)
class TanimotoDoseProcess:
    """Gaussian process on descriptors, one kernel for all genes, maximum of the marginal likelihood.

    Covariance of two wells: variance * ((1 - f) Tanimoto(fingerprints) exp(-(log dose difference / length)^2 / 2) + f
    [same well]). Reads ``descriptors``: fingerprints (non-zero where a bit is set), then the log dose.
    """

    def fit(self, train: xr.Dataset) -> FittedProcess:
        """Fit to ``expression``, ``environment`` and ``descriptors``."""
        x, wells = expression_of(train), _wells(train)
        mean = x.mean(axis=0)
        residual = x - mean
        best = minimize(_negative_evidence, np.zeros(2), (residual, wells), method="Nelder-Mead", bounds=_BOUNDS)
        length, noise = _numbers(best.x)
        factor = cho_factor(_covariance(wells, wells, length, noise) + noise * np.eye(len(x)))
        return FittedProcess(wells, mean, cho_solve(factor, residual), length, noise)


@dataclass(frozen=True)
class FittedProcess:
    """A fitted process.

    Attributes
    ----------
    length
        Length scale of the standardised log dose.
    noise
        Share of the variance that is noise.
    """

    wells: Float[np.ndarray, "well feature"]
    mean: Float[np.ndarray, " gene"]
    weights: Float[np.ndarray, "well gene"]
    length: float
    noise: float

    def predict_mean(self, data: xr.Dataset) -> xr.DataArray:
        """Means of wells from their descriptors (cell, gene)."""
        values = self.mean + _covariance(_wells(data), self.wells, self.length, self.noise) @ self.weights
        return xr.DataArray(values, {"cell": data["cell"], "gene": data["gene"]}, ("cell", "gene"), name="mean")


def _wells(data: xr.Dataset) -> Float[np.ndarray, "well feature"]:
    return data["descriptors"].transpose("condition", "feature").to_numpy()[data["environment"].to_numpy()]


def _numbers(raw: Float[np.ndarray, "2"]) -> tuple[float, float]:
    return float(np.exp(raw[0])), float(expit(raw[1]))


def _covariance(
    a: Float[np.ndarray, "well feature"], b: Float[np.ndarray, "other feature"], length: float, noise: float
) -> Float[np.ndarray, "well other"]:
    bits_a, bits_b = (a[:, :-1] != 0).astype(float), (b[:, :-1] != 0).astype(float)
    both = bits_a @ bits_b.T
    tanimoto = both / np.maximum(bits_a.sum(axis=1)[:, None] + bits_b.sum(axis=1) - both, 1)
    dose = np.exp(-0.5 * ((a[:, -1:] - b[:, -1]) / length) ** 2)
    return (1 - noise) * tanimoto * dose


def _negative_evidence(
    raw: Float[np.ndarray, "2"], residual: Float[np.ndarray, "well gene"], wells: Float[np.ndarray, "well feature"]
) -> float:
    """Minus the log marginal likelihood per gene, up to a constant, the variance at its maximum."""
    length, noise = _numbers(raw)
    factor = cho_factor(_covariance(wells, wells, length, noise) + noise * np.eye(len(residual)))
    variance = np.mean(residual * cho_solve(factor, residual))
    return float(np.log(np.diagonal(factor[0])).sum() + 0.5 * len(residual) * np.log(variance))
