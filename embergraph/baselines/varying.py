"""Coefficients that vary with covariates, without regard to cycles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr

from ..models.parts.errors import DataError
from ..models.parts.projection import project as project_networks
from .base import Baseline, FittedBaseline, Prediction, covariates_of, expression_of, with_constant

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True, kw_only=True)
class VaryingCoefficientRidge(Baseline):
    """Ridge regression of each gene on all others times (1, covariates), with an intercept linear in the covariates.

    Each gene is predicted from its own targets too, so the networks are cyclic by nature.

    Attributes
    ----------
    penalty
        Weight of the squared coefficients of x (1, C) next to the mean squared residual, in squared units of the
        expression. Covariates are centred; the intercept is free.
    """

    penalty: float = 0.03

    def __post_init__(self) -> None:
        if not self.penalty > 0:
            raise DataError(f"penalty is {self.penalty}; wanted a positive number")

    def fit(self, train: xr.Dataset) -> FittedVaryingCoefficients:
        """Fit to training cells.

        Parameters
        ----------
        train
            Dataset with ``expression (cell, gene)`` and ``covariates (cell, covariate)``.

        Returns
        -------
        FittedVaryingCoefficients
            Gives networks of any cells, projected or not.

        Raises
        ------
        DataError
            If the data are invalid or have no covariates.
        """
        means, centred = self._remove_means(train)
        return FittedVaryingCoefficients(tuple(train["gene"].to_numpy()), means, self._fit_centred(centred))

    def _fit_centred(self, train: xr.Dataset) -> _VaryingCoefficients:
        names = None if "covariates" not in train else tuple(train["covariate"].to_numpy())
        covariates, values = covariates_of(train, names), expression_of(train)
        center = covariates.mean(axis=0)
        terms = with_constant(covariates - center)
        coefficients = _ridge(values, terms, self.penalty)
        fitted = _VaryingCoefficients(names or (), center, coefficients, {}, {})
        for projected in (False, True):
            error = values - np.einsum("na,nab->nb", values, fitted.network(terms, projected))
            intercept = np.linalg.lstsq(terms, error, rcond=None)[0]
            fitted.intercepts[projected] = intercept
            fitted.sigmas[projected] = np.sqrt(np.mean((error - terms @ intercept) ** 2, axis=0))
        return fitted


@dataclass(frozen=True)
class _VaryingCoefficients:
    """Fitted coefficients; intercepts and noise both for the networks as they are and for projected ones."""

    covariates: tuple[str, ...]
    center: Float[np.ndarray, " covariate"]
    coefficients: Float[np.ndarray, "term regulator target"]
    intercepts: dict[bool, Float[np.ndarray, "term gene"]]
    sigmas: dict[bool, Float[np.ndarray, " gene"]]

    def network(
        self, terms: Float[np.ndarray, "cell term"], projected: bool
    ) -> Float[np.ndarray, "cell regulator target"]:
        network = np.einsum("nt,tab->nab", terms, self.coefficients)
        return project_networks(torch.as_tensor(network)).networks.numpy() if projected else network

    def __call__(self, data: xr.Dataset, projected: bool = True) -> Prediction:
        terms = with_constant(covariates_of(data, self.covariates) - self.center)
        sigma = np.repeat(self.sigmas[projected][None], len(terms), axis=0)
        return Prediction(self.network(terms, projected), terms @ self.intercepts[projected], sigma)


@dataclass(frozen=True)
class FittedVaryingCoefficients(FittedBaseline):
    """Fitted varying coefficients; made by ``VaryingCoefficientRidge.fit``."""

    predict: _VaryingCoefficients

    def networks(self, data: xr.Dataset, project: bool = True) -> xr.Dataset:
        """Predict the networks of cells, without their expression.

        Parameters
        ----------
        data
            Dataset with the ``covariates`` of the training cells.
        project
            Projected to DAGs, with intercepts and noise fitted for these; False gives the cyclic networks.

        Returns
        -------
        xr.Dataset
            ``network (cell, regulator, target)``, ``intercept (cell, gene)`` and ``sigma (cell, gene)``.

        Raises
        ------
        DataError
            If the covariates are missing or others.
        """
        return self._named(data, self.predict(data, project))


def _ridge(
    values: Float[np.ndarray, "cell gene"], terms: Float[np.ndarray, "cell term"], penalty: float
) -> Float[np.ndarray, "term regulator target"]:
    """Coefficients of x_a t_k for every target, the linear intercept left free (regressed out of both sides)."""
    count, p = values.shape
    features = (terms[:, :, None] * values[:, None, :]).reshape(count, -1)
    features = features - terms @ np.linalg.lstsq(terms, features, rcond=None)[0]
    targets = values - terms @ np.linalg.lstsq(terms, values, rcond=None)[0]
    gram = features.T @ features / count + penalty * np.eye(features.shape[1])
    moments = features.T @ targets / count
    regulator = np.tile(np.arange(p), terms.shape[1])
    out = np.zeros((features.shape[1], p))
    for target in range(p):
        others = np.flatnonzero(regulator != target)
        out[others, target] = np.linalg.solve(gram[np.ix_(others, others)], moments[others, target])
    return out.reshape(terms.shape[1], p, p)
