"""Baselines for cells of several environments: means, and the true latents of a simulation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..models.parts.errors import DataError
from ..validation import listed, validate
from .base import expression_of, with_constant

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped

__all__ = [
    "EnvironmentBaseline",
    "EnvironmentMean",
    "FittedEnvironmentBaseline",
    "MeanActivation",
    "OracleLinearDecoder",
    "genes_of",
]


class EnvironmentBaseline(ABC):
    """A model of cells in environments to compare with; instances hold settings only."""

    @abstractmethod
    def fit(self, train: xr.Dataset) -> FittedEnvironmentBaseline:
        """Fit to training cells.

        Parameters
        ----------
        train
            Dataset with ``expression (cell, gene)`` and what the baseline names.

        Returns
        -------
        FittedEnvironmentBaseline
            Predicts and scores any cells of the same genes.

        Raises
        ------
        DataError
            If the data are invalid or lack what this baseline needs.
        """


class FittedEnvironmentBaseline(ABC):
    """A fitted baseline; made by ``EnvironmentBaseline.fit``."""

    genes: tuple[str, ...]

    def predict_mean(self, data: xr.Dataset) -> xr.DataArray:
        """Predict cells without a look at their expression.

        Parameters
        ----------
        data
            Dataset with the dim ``cell`` and what the baseline was fitted with, the expression apart.

        Returns
        -------
        xr.DataArray
            Means (cell, gene), in units of the expression.

        Raises
        ------
        DataError
            If something is missing or unknown.
        """
        coords = {"cell": data["cell"].to_numpy(), "gene": np.asarray(self.genes)}
        return xr.DataArray(self._mean(data), coords, ("cell", "gene"), name="mean")

    def log_density(self, data: xr.Dataset) -> xr.DataArray:
        """Score cells.

        Parameters
        ----------
        data
            Dataset with ``expression`` and what the baseline was fitted with.

        Returns
        -------
        xr.DataArray
            Log density of all genes of each cell (cell,), nats.

        Raises
        ------
        DataError
            If something is missing or unknown, or the baseline has no density for want of replicates.
        """
        genes = genes_of(validate(data, min_cells=1))
        if genes != self.genes:
            raise DataError(f"genes are {listed(genes)}; wanted those of the training cells, {listed(self.genes)}")
        values = self._log_density(data, expression_of(data))
        return xr.DataArray(values, {"cell": data["cell"].to_numpy()}, ("cell",), name="log_density")

    @abstractmethod
    def _mean(self, data: xr.Dataset) -> Float[np.ndarray, "cell gene"]: ...

    @abstractmethod
    def _log_density(self, data: xr.Dataset, x: Float[np.ndarray, "cell gene"]) -> Float[np.ndarray, " cell"]: ...


@dataclass(frozen=True)
class _IndependentGenes(FittedEnvironmentBaseline):
    """Normal genes around a mean that the subclass gives."""

    genes: tuple[str, ...]
    sd: Float[np.ndarray, " gene"] | None

    def _log_density(self, data: xr.Dataset, x: Float[np.ndarray, "cell gene"]) -> Float[np.ndarray, " cell"]:
        if self.sd is None:
            raise DataError("log_density: found too few cells for a residual variance of every gene in training")
        return np.sum(-0.5 * ((x - self._mean(data)) / self.sd) ** 2 - np.log(np.sqrt(2 * np.pi) * self.sd), axis=1)


@dataclass(frozen=True)
class _FittedMeans(_IndependentGenes):
    label: str | None
    levels: Shaped[np.ndarray, " level"]
    means: Float[np.ndarray, "level gene"]

    def _mean(self, data: xr.Dataset) -> Float[np.ndarray, "cell gene"]:
        return self.means[_positions(data, self.label, self.levels)]


@dataclass(frozen=True)
class MeanActivation(EnvironmentBaseline):
    """One mean for all cells: what a model knows that does not look at the environment.

    Its density is Normal with the variances of the genes.
    """

    def fit(self, train: xr.Dataset) -> FittedEnvironmentBaseline:
        """Average all cells; see `EnvironmentBaseline.fit`."""
        return _fit_means(validate(train), None)


@dataclass(frozen=True)
class EnvironmentMean(EnvironmentBaseline):
    """The mean of the cells of each environment, or of each level of another label.

    Its density is Normal with the variances of the genes within levels, pooled; a level of one cell adds nothing to
    them. Levels without training cells are an error: there is nothing to predict them from.

    Attributes
    ----------
    label
        Variable ``(cell,)`` of the data whose levels are averaged, for example doses.
    """

    label: str = "environment"

    def fit(self, train: xr.Dataset) -> FittedEnvironmentBaseline:
        """Average the cells of each level; see `EnvironmentBaseline.fit`."""
        return _fit_means(validate(train), self.label)


@dataclass(frozen=True)
class _FittedDecoder(_IndependentGenes):
    coefficients: Float[np.ndarray, "term gene"]

    def _mean(self, data: xr.Dataset) -> Float[np.ndarray, "cell gene"]:
        return _true_design(data) @ self.coefficients


@dataclass(frozen=True)
class OracleLinearDecoder(EnvironmentBaseline):
    """Least squares of simulated cells on their true causal variables: the floor where the simulator is linear.

    Reads ``true_c (cell, true_latent)``, else ``true_z``, of training and of predicted cells. The density is that of
    the expression given them.
    """

    def fit(self, train: xr.Dataset) -> FittedEnvironmentBaseline:
        """Regress the genes on the true variables; see `EnvironmentBaseline.fit`."""
        x, design = expression_of(validate(train)), _true_design(train)
        coefficients = np.linalg.lstsq(design, x, rcond=None)[0]
        sd = _residual_sd(x - design @ coefficients, len(x) - design.shape[1])
        return _FittedDecoder(genes_of(train), sd, coefficients)


def _fit_means(train: xr.Dataset, label: str | None) -> _FittedMeans:
    levels = np.unique(_labels(train, label))
    codes, x = _positions(train, label, levels), expression_of(train)
    means = np.zeros((len(levels), x.shape[1]))
    np.add.at(means, codes, x)
    means /= np.bincount(codes)[:, None]
    sd = _residual_sd(x - means[codes], len(x) - len(levels))
    return _FittedMeans(genes_of(train), sd, label, levels, means)


def _residual_sd(residual: Float[np.ndarray, "cell gene"], freedom: int) -> Float[np.ndarray, " gene"] | None:
    squares = np.sum(residual**2, axis=0)
    return np.sqrt(squares / freedom) if freedom > 0 and (squares > 0).all() else None


def _labels(data: xr.Dataset, label: str | None) -> Shaped[np.ndarray, " cell"]:
    if label is None:
        return np.zeros(data.sizes["cell"], dtype=int)
    if label not in data.variables or data[label].dims != ("cell",):
        raise DataError(f"{label}: found variables {listed(data.variables)}; wanted {label} (cell,)")
    return data[label].to_numpy()


def _positions(data: xr.Dataset, label: str | None, levels: Shaped[np.ndarray, " level"]) -> Int[np.ndarray, " cell"]:
    found = _labels(data, label)
    unknown = ~np.isin(found, levels)
    if unknown.any():
        raise DataError(f"{label}: found {listed(np.unique(found[unknown]))}; wanted levels with training cells")
    return np.searchsorted(levels, found)


def _true_design(data: xr.Dataset) -> Float[np.ndarray, "cell term"]:
    name = next((name for name in ("true_c", "true_z") if name in data), None)
    if name is None:
        raise DataError(f"true_c: found variables {listed(data.variables)}; wanted a simulation with true_c or true_z")
    return with_constant(data[name].transpose("cell", "true_latent").to_numpy().astype(np.float64))


def genes_of(data: xr.Dataset) -> tuple[str, ...]:
    """Names of the genes."""
    return tuple(data["gene"].to_numpy())
