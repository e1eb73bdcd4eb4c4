"""Baselines with one network for all cells: none, one learnt DAG, and the truth of a simulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
import xarray as xr

from ..models.parts.errors import DataError
from ..models.parts.projection import project
from ..validation import listed
from .base import Baseline, Prediction, expression_of, same_for_all
from .dags import dagma, notears

if TYPE_CHECKING:
    from jaxtyping import Float

Method = Literal["dagma", "notears"]


@dataclass(frozen=True, kw_only=True)
class ZeroGraph(Baseline):
    """No edges: every gene is its mean plus noise, so that the error is the variance."""

    def _fit_centred(self, train: xr.Dataset) -> Callable[[xr.Dataset], Prediction]:
        values = expression_of(train)
        mean, sd = values.mean(axis=0), values.std(axis=0)
        empty = np.zeros((len(mean), len(mean)))
        return lambda data: same_for_all(data.sizes["cell"], empty, mean, sd)


@dataclass(frozen=True, kw_only=True)
class DagBaseline(Baseline):
    """Settings of baselines that learn DAGs.

    Weights are thresholded and projected, and the parents left are regressed anew with a little ridge, since the L1
    norm shrinks them. Thresholds are in units of the expression: bring genes to a common scale first. The published
    threshold is 0.3 without a new regression; the defaults here predict held-out cells better.

    Attributes
    ----------
    method
        ``"dagma"`` or ``"notears"``.
    l1
        Weight of the L1 norm, in squared units of the expression.
    threshold
        Weights up to this magnitude are dropped.
    """

    method: Method = "dagma"
    l1: float = 0.03
    threshold: float = 0.05

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise DataError(f"method is {self.method!r}; wanted one of {listed(get_args(Method))}")
        if not (self.l1 >= 0 and self.threshold >= 0):
            raise DataError(f"l1 is {self.l1} and threshold {self.threshold}; wanted numbers that are not negative")

    def _network(self, centred: Float[np.ndarray, "cell gene"]) -> Float[np.ndarray, "regulator target"]:
        covariance = centred.T @ centred / len(centred)
        return regress_on_parents(self._kept(covariance), covariance, len(centred))

    def _kept(self, covariance: Float[np.ndarray, "gene gene"]) -> Float[np.ndarray, "regulator target"]:
        """Weights after threshold and projection, still shrunk."""
        weights = (dagma if self.method == "dagma" else notears)(covariance, l1=self.l1)
        return project(torch.as_tensor(weights * (np.abs(weights) > self.threshold))).networks.numpy()


@dataclass(frozen=True, kw_only=True)
class Population(DagBaseline):
    """One DAG for all cells, learnt by DAGMA or NOTEARS."""

    def _fit_centred(self, train: xr.Dataset) -> Callable[[xr.Dataset], Prediction]:
        values = expression_of(train)
        mean = values.mean(axis=0)
        network = self._network(values - mean)
        error = (values - mean) - (values - mean) @ network
        sd = np.sqrt(np.mean(error**2, axis=0))
        intercept = mean - mean @ network
        return lambda data: same_for_all(data.sizes["cell"], network, intercept, sd)


@dataclass(frozen=True, kw_only=True)
class Oracle(Baseline):
    """The true networks of simulated cells (variable ``true_networks``): the noise floor."""

    remove_covariate_means: bool = False

    def _fit_centred(self, train: xr.Dataset) -> Callable[[xr.Dataset], Prediction]:
        values = expression_of(train)
        error = values - np.einsum("na,nab->nb", values, _true_networks(train))
        intercept, sd = error.mean(axis=0), error.std(axis=0)

        def predict(data: xr.Dataset) -> Prediction:
            network = _true_networks(data)
            return Prediction(network, *(np.repeat(part[None], len(network), axis=0) for part in (intercept, sd)))

        return predict


def regress_on_parents(
    network: Float[np.ndarray, "regulator target"], covariance: Float[np.ndarray, "gene gene"], num_cells: int
) -> Float[np.ndarray, "regulator target"]:
    """Estimate the weights of a DAG's edges by ridge regression of every gene on its parents.

    The penalty is that of a prior Normal(0, 1/p) on weights, p the number of genes, with the residual variance of the
    given network, mean over genes: of no weight for many cells, and what keeps clusters of few cells in bounds.

    Parameters
    ----------
    network
        Weights whose zeros are kept, shape (p, p).
    covariance
        Covariance of the genes, shape (p, p).
    num_cells
        Number of cells behind the covariance.

    Returns
    -------
    Float[np.ndarray, "regulator target"]
        Weights of the same edges.
    """
    penalty = edge_penalty(network, covariance) / num_cells
    out = np.zeros_like(network)
    for target in range(len(network)):
        parents = np.flatnonzero(network[:, target])
        gram = covariance[np.ix_(parents, parents)] + penalty * np.eye(len(parents))
        out[parents, target] = np.linalg.lstsq(gram, covariance[parents, target], rcond=None)[0]
    return out


def edge_penalty(network: Float[np.ndarray, "regulator target"], covariance: Float[np.ndarray, "gene gene"]) -> float:
    """Penalty on squared weights next to the sum of squared residuals over cells, see `regress_on_parents`.

    Parameters
    ----------
    network
        Weights whose residuals give the noise, shape (p, p).
    covariance
        Covariance of the genes, shape (p, p).

    Returns
    -------
    float
        Residual variance, mean over genes, times p; in squared units of the expression.
    """
    left = np.eye(len(network)) - network
    return float(np.mean(np.sum(left * (covariance @ left), axis=0))) * len(network)


def _true_networks(data: xr.Dataset) -> Float[np.ndarray, "cell regulator target"]:
    if "true_networks" not in data:
        raise DataError(f"true_networks is missing; found {listed(data.data_vars)}; wanted a simulation")
    return data["true_networks"].transpose("cell", "regulator", "target").to_numpy()
