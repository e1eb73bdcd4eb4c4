"""What all baselines share: the protocol of fit and networks, and the removal of covariate means."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import xarray as xr

from ..models.parts.errors import DataError
from ..validation import listed, validate

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped


class Prediction(NamedTuple):
    """Networks of some cells as arrays, x = intercept + x network + e, e ~ Normal(0, sigma^2)."""

    network: Float[np.ndarray, "cell regulator target"]
    intercept: Float[np.ndarray, "cell gene"]
    sigma: Float[np.ndarray, "cell gene"]


@dataclass(frozen=True, kw_only=True)
class Baseline(ABC):
    """A method to compare with; instances hold settings only.

    Attributes
    ----------
    remove_covariate_means
        Fit to what is left of the expression after least squares on the covariates. Networks still come with
        intercepts for the expression as it is. The default since it is the stronger baseline: where covariates shift
        means, as conditions do, much of what a network would explain is gone.
    """

    remove_covariate_means: bool = True

    def fit(self, train: xr.Dataset) -> FittedBaseline:
        """Fit to training cells.

        Parameters
        ----------
        train
            Dataset with ``expression (cell, gene)``, and ``covariates (cell, covariate)`` if their means are removed.

        Returns
        -------
        FittedBaseline
            Gives networks of any cells.

        Raises
        ------
        DataError
            If the data are invalid or lack what this baseline needs.
        """
        means, centred = self._remove_means(train)
        return FittedBaseline(tuple(train["gene"].to_numpy()), means, self._fit_centred(centred))

    def _remove_means(self, train: xr.Dataset) -> tuple[LinearMeans | None, xr.Dataset]:
        validate(train)
        if not self.remove_covariate_means:
            return None, train
        means = LinearMeans.fit(train)
        centred = expression_of(train) - means(train)
        return means, train.assign(expression=(("cell", "gene"), centred))

    @abstractmethod
    def _fit_centred(self, train: xr.Dataset) -> Callable[[xr.Dataset], Prediction]:
        """Fit to expression from which the means are removed, or to the expression as it is."""


@dataclass(frozen=True)
class FittedBaseline:
    """A fitted baseline; made by ``Baseline.fit``."""

    genes: tuple[str, ...]
    means: LinearMeans | None
    predict: Callable[[xr.Dataset], Prediction]

    def networks(self, data: xr.Dataset) -> xr.Dataset:
        """Predict the networks of cells, without their expression.

        Parameters
        ----------
        data
            Dataset with the dim ``cell`` and the covariates or labels that the baseline was fitted with.

        Returns
        -------
        xr.Dataset
            ``network (cell, regulator, target)``, acyclic; ``intercept (cell, gene)`` and ``sigma (cell, gene)`` in
            units of the expression; named as in the data.

        Raises
        ------
        DataError
            If covariates or labels are missing or unknown.
        """
        return self._named(data, self.predict(data))

    def _named(self, data: xr.Dataset, prediction: Prediction) -> xr.Dataset:
        network, intercept, sigma = prediction
        if self.means is not None:
            # (x - mu) = c + (x - mu) W + e  is  x = (c + mu (I - W)) + x W + e.
            mean = self.means(data)
            intercept = intercept + mean - np.einsum("na,nab->nb", mean, network)
        genes = np.asarray(self.genes)
        return xr.Dataset(
            {
                "network": (("cell", "regulator", "target"), network),
                "intercept": (("cell", "gene"), intercept),
                "sigma": (("cell", "gene"), sigma),
            },
            coords={"cell": data["cell"].to_numpy(), "gene": genes, "regulator": genes, "target": genes},
        )


@dataclass(frozen=True)
class LinearMeans:
    """Means of the genes as a linear function of the covariates, by least squares.

    Attributes
    ----------
    covariates
        Names of the covariates.
    coefficients
        Intercepts in the first row, then one row for each covariate.
    """

    covariates: tuple[str, ...]
    coefficients: Float[np.ndarray, "term gene"]

    @classmethod
    def fit(cls, train: xr.Dataset) -> LinearMeans:
        """Regress the expression on the covariates; linearly dependent covariates share their effect.

        Parameters
        ----------
        train
            Dataset with ``expression`` and ``covariates``.

        Returns
        -------
        LinearMeans
            The fitted means.

        Raises
        ------
        DataError
            If the data have no covariates.
        """
        names = None if "covariates" not in train else tuple(train["covariate"].to_numpy())
        design = with_constant(covariates_of(train, names))
        return cls(names or (), np.linalg.lstsq(design, expression_of(train), rcond=None)[0])

    def __call__(self, data: xr.Dataset) -> Float[np.ndarray, "cell gene"]:
        """Return the means of cells.

        Parameters
        ----------
        data
            Dataset with the same ``covariates``.

        Returns
        -------
        Float[np.ndarray, "cell gene"]
            In units of the expression.

        Raises
        ------
        DataError
            If the covariates are missing or others.
        """
        return with_constant(covariates_of(data, self.covariates)) @ self.coefficients


def expression_of(data: xr.Dataset) -> Float[np.ndarray, "cell gene"]:
    """Read the expression as float64."""
    return data["expression"].transpose("cell", "gene").to_numpy().astype(np.float64)


def covariates_of(data: xr.Dataset, names: tuple[str, ...] | None) -> Float[np.ndarray, "cell covariate"]:
    """Read the covariates as float64, and insist on their names."""
    if "covariates" not in data or names is None:
        raise DataError(f"covariates is missing; found {listed(data.data_vars)}; wanted covariates (cell, covariate)")
    found = tuple(data["covariate"].to_numpy())
    if found != names:
        raise DataError(f"covariates are {listed(found)}; wanted those of the training cells, {listed(names)}")
    values = data["covariates"].transpose("cell", "covariate").to_numpy().astype(np.float64)
    if not np.isfinite(values).all():
        raise DataError("covariates hold NaN or infinite values; wanted finite numbers")
    return values


def labels_of(data: xr.Dataset, label: str) -> Shaped[np.ndarray, " cell"]:
    """Read the labels of the cells."""
    if label not in data.variables or data[label].dims != ("cell",):
        raise DataError(f"{label} is missing; found {listed(data.variables)}; wanted {label} (cell)")
    return data[label].to_numpy()


def codes_of(data: xr.Dataset, label: str, levels: Shaped[np.ndarray, " level"]) -> Int[np.ndarray, " cell"]:
    """Positions of the labels of the cells among the sorted levels of training cells."""
    position = {level: i for i, level in enumerate(levels.tolist())}
    labels = labels_of(data, label).tolist()
    unknown = sorted(set(labels) - position.keys())
    if unknown:
        raise DataError(f"{label} has levels without training cells: {listed(unknown)}")
    return np.asarray([position[level] for level in labels], dtype=np.int64)


def with_constant(values: Float[np.ndarray, "cell covariate"]) -> Float[np.ndarray, "cell term"]:
    """Put a column of ones in front."""
    return np.column_stack([np.ones(len(values)), values])


def same_for_all(
    count: int,
    network: Float[np.ndarray, "regulator target"],
    intercept: Float[np.ndarray, " gene"],
    sigma: Float[np.ndarray, " gene"],
) -> Prediction:
    """Give `count` cells one network."""
    parts = (np.repeat(part[None], count, axis=0) for part in (network, intercept, sigma))
    return Prediction(*parts)
