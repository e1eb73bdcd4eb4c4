"""Baselines with one DAG for each group of cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from sklearn.cluster import KMeans

from ..models.parts.errors import DataError
from .base import Prediction, codes_of, covariates_of, expression_of, labels_of
from .population import DagBaseline

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True, kw_only=True)
class _Clustered(DagBaseline):
    """One DAG, intercept and noise for each cluster; clusters with fewer than two cells get no edges."""

    def _fit_clusters(
        self, values: Float[np.ndarray, "cell gene"], clusters: Int[np.ndarray, " cell"]
    ) -> Callable[[Int[np.ndarray, " cell"]], Prediction]:
        count, p = int(clusters.max()) + 1, values.shape[1]
        networks, intercepts, squares = np.zeros((count, p, p)), np.zeros((count, p)), np.zeros((count, p))
        sizes = np.bincount(clusters, minlength=count)
        for cluster in range(count):
            members = values[clusters == cluster]
            mean = members.mean(axis=0)
            if len(members) >= 2:
                networks[cluster] = self._network(members - mean)
            intercepts[cluster] = mean - mean @ networks[cluster]
            squares[cluster] = np.sum(((members - mean) - (members - mean) @ networks[cluster]) ** 2, axis=0)
        # One cell's worth of the pooled variance keeps tiny clusters from claiming to have no noise.
        pooled = squares.sum(axis=0) / len(values)
        sd = np.sqrt((squares + pooled) / (sizes[:, None] + 1))
        return lambda assigned: Prediction(networks[assigned], intercepts[assigned], sd[assigned])


@dataclass(frozen=True)
class KMeansClustered(_Clustered):
    """k-means on the covariates, one DAG for each cluster; new cells go to the nearest centre.

    Attributes
    ----------
    num_clusters
        Number of clusters.
    seed
        Seed of the ten starts of k-means.
    """

    num_clusters: int
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_clusters < 1:
            raise DataError(f"num_clusters is {self.num_clusters}; wanted at least 1")

    def _fit_centred(self, train: xr.Dataset) -> Callable[[xr.Dataset], Prediction]:
        names = None if "covariates" not in train else tuple(train["covariate"].to_numpy())
        covariates = covariates_of(train, names)
        distinct = len(np.unique(covariates, axis=0))
        if distinct < self.num_clusters:
            raise DataError(f"covariates have {distinct} distinct rows; wanted at least {self.num_clusters} (clusters)")
        kmeans = KMeans(self.num_clusters, n_init=10, random_state=self.seed).fit(covariates)
        predict = self._fit_clusters(expression_of(train), kmeans.labels_)
        return lambda data: predict(kmeans.predict(covariates_of(data, names)))


@dataclass(frozen=True)
class LabelClustered(_Clustered):
    """One DAG for each level of a label (condition, cell type, tissue).

    Attributes
    ----------
    label
        Variable ``(cell)`` with the labels.
    """

    label: str = "environment"

    def _fit_centred(self, train: xr.Dataset) -> Callable[[xr.Dataset], Prediction]:
        levels, clusters = np.unique(labels_of(train, self.label), return_inverse=True)
        predict = self._fit_clusters(expression_of(train), clusters)
        return lambda data: predict(codes_of(data, self.label, levels))
