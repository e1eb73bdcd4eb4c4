"""Training cells nearest in standardised covariates, and means over them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.sparse import csr_array
from sklearn.neighbors import NearestNeighbors

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Table = Float[np.ndarray, "cell covariate"]
    Rows = Int[np.ndarray, "cell neighbor"]
    Values = Float[np.ndarray, "training_cell ..."]


class Neighbors(NamedTuple):
    """Training cells, found by Euclidean distance; constant covariates do not count. Ties go either way."""

    names: tuple[str, ...]
    center: Float[np.ndarray, " covariate"]
    scale: Float[np.ndarray, " covariate"]
    points: Table

    @classmethod
    def of(cls, covariates: Table, names: tuple[str, ...]) -> Neighbors:
        """Standardise the covariates of the training cells."""
        center, spread = covariates.mean(axis=0), covariates.std(axis=0)
        scale = np.where(spread > 0, spread, np.inf)
        return cls(names, center, scale, (covariates - center) / scale)

    def mean_of_nearest(self, values: Values, covariates: Table, count: int) -> Values:
        """Mean of `values` over the `count` training cells nearest to each of other cells."""
        if count >= len(self.points):
            return np.repeat(values.mean(axis=0)[None], len(covariates), axis=0)
        search = NearestNeighbors(n_neighbors=count).fit(self.points)
        rows = search.kneighbors((covariates - self.center) / self.scale, return_distance=False)
        return mean_over(values, rows)

    def nearest_others(self, count: int) -> Rows:
        """The `count` training cells nearest to each training cell, itself not among them, nearest first."""
        return NearestNeighbors(n_neighbors=count).fit(self.points).kneighbors(return_distance=False)


def mean_over(values: Values, rows: Rows) -> Values:
    """Mean of `values` over given training cells."""
    cells, count = rows.shape
    shares = csr_array((np.full(rows.size, 1 / count), rows.ravel(), np.arange(0, rows.size + 1, count)),
                       shape=(cells, len(values)))  # fmt: skip
    return (shares @ values.reshape(len(values), -1)).reshape(cells, *values.shape[1:])
