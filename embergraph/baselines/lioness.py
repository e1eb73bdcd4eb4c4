"""LIONESS: one network for every cell, from what the population network owes to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
import xarray as xr

from ..models.parts.errors import DataError
from ..models.parts.projection import project, topological_order
from ..validation import listed
from ._leave_one_out import StructureRefits, WeightRefits
from ._neighbors import Neighbors, mean_over
from .base import FittedBaseline, Prediction, covariates_of, expression_of
from .population import DagBaseline, edge_penalty

if TYPE_CHECKING:
    from jaxtyping import Float

    Network = Float[np.ndarray, "regulator target"]
    Networks = Float[np.ndarray, "cell regulator target"]
    Values = Float[np.ndarray, "cell gene"]

HeldOut = Literal["covariates", "expression"]
Refits = Literal["weights", "structure"]
Edges = Literal["population", "order"]

_COUNTS = (5, 10, 20, 40, 80, 160, 320, 640)


@dataclass(frozen=True, kw_only=True)
class LIONESS(DagBaseline):
    """Networks of single cells by leaving each out: W_i = n (W_all - W_without_i) + W_without_i (Kuijjer et al. 2019).

    The population network is that of `Population`. By default only its weights are fitted anew without a cell: edges,
    ridge penalty and the covariate means stay those of all training cells. Given these the refit is exact, from a
    rank-one change of the covariance (mean included). ``refits="structure"`` learns the DAG anew for every cell, as
    LIONESS would have it, n times the work; a threshold then makes edges come and go with one cell, which the factor n
    inflates.

    LIONESS has no rule for a cell outside the training data. Two are offered, and the result says which
    (attributes ``held_out`` and ``uses_expression``):

    * ``held_out="covariates"``: the mean of the LIONESS networks of the training cells nearest in standardised
      covariates. The expression of the new cell is not used.
    * ``held_out="expression"``: a fit to n + 1 cells, W = (n + 1) (W_with - W_all) + W_all. **This reads the very
      expression that the network is then scored on**: such scores are no held-out scores, and `networks` needs the
      expression of new cells.

    Attributes
    ----------
    held_out
        How networks of new cells are made, see above.
    num_neighbors
        Cells averaged for ``held_out="covariates"``. None takes that number among 5, 10, 20, ..., 640 and all
        which best predicts training cells from the networks of others.
    refits
        ``"weights"`` or ``"structure"``, see above.
    edges
        ``"population"``: those of the population network. ``"order"``: all that agree with its order, so that a
        cell can have edges that the population lacks, at more variance. Only for ``refits="weights"``.
    """

    held_out: HeldOut = "covariates"
    num_neighbors: int | None = None
    refits: Refits = "weights"
    edges: Edges = "population"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, options in (("held_out", HeldOut), ("refits", Refits), ("edges", Edges)):
            if getattr(self, name) not in get_args(options):
                raise DataError(f"{name} is {getattr(self, name)!r}; wanted one of {listed(get_args(options))}")
        if self.num_neighbors is not None and self.num_neighbors < 1:
            raise DataError(f"num_neighbors is {self.num_neighbors}; wanted at least 1, or None")
        if self.refits == "structure" and self.edges == "order":
            raise DataError("edges is 'order' with refits 'structure'; wanted edges 'population', learnt at each refit")

    def fit(self, train: xr.Dataset) -> FittedLIONESS:
        """Fit to training cells.

        Parameters
        ----------
        train
            Dataset with ``expression (cell, gene)``, at least three cells, and ``covariates (cell, covariate)`` if
            their means are removed or ``held_out="covariates"``. The networks of all cells are held in memory.

        Returns
        -------
        FittedLIONESS
            Gives the networks of the training cells, and of others.

        Raises
        ------
        DataError
            If the data are invalid or lack what this baseline needs.
        """
        means, centred = self._remove_means(train)
        fitted = self._fit_centred(centred)
        return FittedLIONESS(tuple(train["gene"].to_numpy()), means, fitted, train["cell"].to_numpy())

    def _fit_centred(self, train: xr.Dataset) -> _Lioness:
        values = expression_of(train)
        if len(values) < 3:
            raise DataError(f"expression has {len(values)} cells; wanted at least 3 to leave one out")
        mean = values.mean(axis=0)
        deviations = values - mean
        if self.refits == "structure":
            refits: WeightRefits | StructureRefits = StructureRefits(self._network, values, self._network(deviations))
        else:
            refits = self._weight_refits(deviations)
        own = _projected(refits.without(deviations))
        if self.held_out == "expression":
            return _Lioness(mean, refits, own, _rms(deviations, own), None, len(own))
        names = None if "covariates" not in train else tuple(train["covariate"].to_numpy())
        neighbors = Neighbors.of(covariates_of(train, names), names or ())
        count, sigma = _best_count(neighbors, deviations, own, self.num_neighbors)
        return _Lioness(mean, refits, own, sigma, neighbors, count)

    def _weight_refits(self, deviations: Values) -> WeightRefits:
        covariance = deviations.T @ deviations / len(deviations)
        kept = self._kept(covariance)
        allowed = kept != 0
        if self.edges == "order":
            rank = np.argsort(topological_order(torch.as_tensor(kept)).numpy())
            allowed = rank[:, None] < rank[None, :]
        return WeightRefits.of(covariance, allowed, edge_penalty(kept, covariance), len(deviations))


@dataclass(frozen=True)
class _Lioness:
    """A fit to centred expression; a prediction for cells of centred expression."""

    mean: Float[np.ndarray, " gene"]
    refits: WeightRefits | StructureRefits
    own: Networks
    sigma: Float[np.ndarray, " gene"]
    neighbors: Neighbors | None
    num_neighbors: int

    def __call__(self, data: xr.Dataset) -> Prediction:
        if self.neighbors is None:
            return self.prediction(_projected(self.refits.with_new(expression_of(data) - self.mean)))
        covariates = covariates_of(data, self.neighbors.names)
        return self.prediction(_projected(self.neighbors.mean_of_nearest(self.own, covariates, self.num_neighbors)))

    def prediction(self, network: Networks) -> Prediction:
        intercept = self.mean - np.einsum("a,nab->nb", self.mean, network)
        return Prediction(network, intercept, np.repeat(self.sigma[None], len(network), axis=0))


@dataclass(frozen=True)
class FittedLIONESS(FittedBaseline):
    """A fitted LIONESS; made by ``LIONESS.fit``."""

    predict: _Lioness
    cells: np.ndarray

    def networks(self, data: xr.Dataset) -> xr.Dataset:
        """Predict the networks of new cells.

        Parameters
        ----------
        data
            Dataset with the ``covariates`` of the training cells; for ``held_out="expression"`` also with the
            ``expression`` of the new cells, which is leakage if they are then scored.

        Returns
        -------
        xr.Dataset
            ``network (cell, regulator, target)``, acyclic; ``intercept`` and ``sigma (cell, gene)``. Attributes:
            ``held_out``, ``uses_expression`` (1 if the networks have seen the expression of these cells) and
            ``num_neighbors`` (all training cells for ``"expression"``).

        Raises
        ------
        DataError
            If covariates or the expression are missing or others.
        """
        uses = self.predict.neighbors is None
        if uses:
            if "expression" not in data:
                raise DataError(
                    f"expression is missing; found {listed(data.data_vars)}; wanted the expression of new cells for "
                    "held_out='expression', or held_out='covariates'"
                )
            if tuple(data["gene"].to_numpy()) != self.genes:
                raise DataError(f"genes are {listed(data['gene'].to_numpy())}; wanted {listed(self.genes)}")
        centred = data
        if uses and self.means is not None:
            centred = data.assign(expression=(("cell", "gene"), expression_of(data) - self.means(data)))
        held_out = "expression" if uses else "covariates"
        return self._marked(self._named(data, self.predict(centred)), held_out, uses)

    def training_networks(self, train: xr.Dataset) -> xr.Dataset:
        """Return the LIONESS networks of the training cells, each made with its own expression.

        Parameters
        ----------
        train
            The Dataset that was fitted, for the names and covariate means of its cells.

        Returns
        -------
        xr.Dataset
            As from `networks`, with ``held_out`` ``"none"``.

        Raises
        ------
        DataError
            If these are not the training cells.
        """
        if not np.array_equal(train["cell"].to_numpy(), self.cells):
            raise DataError(f"cells are {listed(train['cell'].to_numpy())}; wanted the {len(self.cells)} of the fit")
        return self._marked(self._named(train, self.predict.prediction(self.predict.own)), "none", True)

    def _marked(self, networks: xr.Dataset, held_out: str, uses_expression: bool) -> xr.Dataset:
        return networks.assign_attrs(
            held_out=held_out, uses_expression=int(uses_expression), num_neighbors=self.predict.num_neighbors
        )


def _best_count(
    neighbors: Neighbors, deviations: Values, own: Networks, wanted: int | None
) -> tuple[int, Float[np.ndarray, " gene"]]:
    """Choose how many neighbours to average, by the squared error on training cells; root mean squares of the errors.

    No training cell is a neighbour of its own.
    """
    total = len(own)
    counts = [count for count in _COUNTS if count < total - 1] if wanted is None else [wanted]
    few = [count for count in counts if count < total - 1]
    found: dict[int, Float[np.ndarray, " gene"]] = {}
    if wanted is None or not few:
        found[total] = _rms(deviations, _projected((own.sum(axis=0) - own) / (total - 1)))
    rows = neighbors.nearest_others(max(few)) if few else None
    for count in few:
        assert rows is not None  # there are counts
        found[count] = _rms(deviations, _projected(mean_over(own, rows[:, :count])))
    best = min(found, key=lambda count: float(np.sum(found[count] ** 2)))
    return best, found[best]


def _projected(networks: Networks) -> Networks:
    return project(torch.as_tensor(networks)).networks.numpy()


def _rms(deviations: Values, networks: Networks) -> Float[np.ndarray, " gene"]:
    return np.sqrt(np.mean((deviations - np.einsum("na,nab->nb", deviations, networks)) ** 2, axis=0))
