"""How good networks are: held-out fit, structure, weights, intervals, mixtures.

Fitted networks come as a Dataset with ``network (cell, regulator, target)``, ``intercept (cell, gene)`` and ``sigma
(cell, gene)`` or ``(gene)``, one network per cell, in the row convention x = b + x W + e. Truth comes as an array of
networks, or as variables of the data. Structure is scored over off-diagonal entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr

from .models.parts.errors import DataError
from .models.parts.projection import is_acyclic
from .models.parts.sem_likelihoods import GaussianSEM
from .network_scores import (
    EDGE_THRESHOLD,
    acyclic_share,
    as_matrices,
    aupr,
    best_f1,
    edge_f1,
    edge_rate,
    pooled_aupr,
    skeleton_aupr,
    structural_hamming_distance,
)
from .validation import listed
from .weight_scores import (
    deviation_correlation,
    interval_coverage,
    matched_archetype_error,
    mixture_r2,
    relative_weight_error,
)

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "acyclic_share",
    "aupr",
    "best_f1",
    "deviation_correlation",
    "edge_f1",
    "edge_rate",
    "entry_log_densities",
    "evaluate",
    "gaussian_log_density",
    "held_out_mse",
    "interval_coverage",
    "matched_archetype_error",
    "mixture_r2",
    "pooled_aupr",
    "relative_weight_error",
    "residuals",
    "skeleton_aupr",
    "structural_hamming_distance",
    "varsortability",
]


def residuals(networks: xr.Dataset, data: xr.Dataset) -> Float[np.ndarray, "cell gene"]:
    """Return what the networks leave unexplained, e = x - b - x W.

    Parameters
    ----------
    networks
        Networks with ``network`` and ``intercept``.
    data
        Dataset with ``expression`` of the same cells and genes in the same order.

    Returns
    -------
    Float[np.ndarray, "cell gene"]
        Residuals in units of the expression.

    Raises
    ------
    DataError
        If a variable is missing, the cells or genes differ, or a value is NaN or infinite.
    """
    missing = [name for name in ("network", "intercept") if name not in networks]
    if missing:
        raise DataError(f"networks lack {listed(missing)}; found {listed(networks.data_vars)}")
    _check_labels(networks, data)
    expression = data["expression"].transpose("cell", "gene").to_numpy().astype(np.float64)
    intercept = networks["intercept"].transpose("cell", "gene").to_numpy()
    weights = networks["network"].transpose("cell", "regulator", "target").to_numpy()
    error = expression - intercept - np.einsum("na,nab->nb", expression, weights)
    if not np.isfinite(error).all():
        cells = listed(data["cell"].to_numpy()[~np.isfinite(error).all(axis=1)])
        raise DataError(f"residuals are not finite in cells {cells}; wanted networks, intercepts and data without NaN")
    return error


def held_out_mse(networks: xr.Dataset, data: xr.Dataset, *, allow_cyclic: bool = False) -> float:
    """Mean squared residual over cells and genes.

    On centred data of unit variance the empty graph scores about 1. The unit of the NOTMAD paper, ||e||^2 / (2 p), is
    half of this. A cyclic network predicts genes from their own targets and can score below the noise floor.

    Parameters
    ----------
    networks
        Networks of the held-out cells, predicted without their expression.
    data
        The held-out cells.
    allow_cyclic
        Score networks with cycles instead of refusing them.

    Returns
    -------
    float
        Squared units of the expression.

    Raises
    ------
    DataError
        If a network has a cycle and `allow_cyclic` is False, or as in `residuals`.
    """
    error = residuals(networks, data)
    if not allow_cyclic:
        _refuse_cycles(networks)
    return float(np.mean(error**2))


def gaussian_log_density(networks: xr.Dataset, data: xr.Dataset, *, allow_cyclic: bool = False) -> float:
    """Mean log density of a cell under x = b + x W + e with e ~ Normal(0, sigma^2).

    Parameters
    ----------
    networks
        Networks of the held-out cells with ``sigma``, predicted without their expression.
    data
        The held-out cells.
    allow_cyclic
        Score networks with cycles instead of refusing them, with the Jacobian log|det(I - W)|, which is 0 for DAGs.

    Returns
    -------
    float
        Nats per cell, all genes together.

    Raises
    ------
    DataError
        If a network has a cycle and `allow_cyclic` is False, sigma is missing or not positive, or as in `residuals`.
    """
    return float(np.mean(cell_log_densities(networks, data, allow_cyclic=allow_cyclic)))


def cell_log_densities(
    networks: xr.Dataset, data: xr.Dataset, *, allow_cyclic: bool = False
) -> Float[np.ndarray, " cell"]:
    """Log density of every cell, whose mean is `gaussian_log_density`."""
    error, sigma = residuals(networks, data), _sigma(networks)
    if not allow_cyclic:
        _refuse_cycles(networks)
    density = -0.5 * (error / sigma) ** 2 - np.log(sigma) - 0.5 * np.log(2 * np.pi)
    weights = as_matrices(networks["network"])
    jacobian = np.linalg.slogdet(np.eye(weights.shape[-1]) - weights)[1] if allow_cyclic else 0.0
    return density.sum(axis=1) + jacobian


def entry_log_densities(networks: xr.Dataset, data: xr.Dataset) -> Float[np.ndarray, "cell gene"]:
    """Log density of every gene given the other genes of its cell, under the law of `gaussian_log_density`."""
    error, sigma = residuals(networks, data), _sigma(networks)
    x = data["expression"].transpose("cell", "gene").to_numpy().astype(np.float64)
    values, mean, scale = (torch.as_tensor(part) for part in (x, x - error, sigma))
    weights = torch.as_tensor(as_matrices(networks["network"]))
    return GaussianSEM().entry_log_prob(values, mean, scale, {}, weights).numpy()


def _sigma(networks: xr.Dataset) -> Float[np.ndarray, "cell gene"]:
    if "sigma" not in networks:
        raise DataError(f"networks lack 'sigma'; found {listed(networks.data_vars)}")
    sigma = networks["sigma"].broadcast_like(networks["intercept"]).transpose("cell", "gene").to_numpy()
    if not (sigma > 0).all():
        raise DataError(f"sigma has the smallest value {sigma.min()}; wanted positive numbers")
    return sigma


def varsortability(data: xr.Dataset) -> float:
    """How far gene variances grow along the true graph (Reisach, Seiler & Weichwald 2021, eq. 1).

    Parameters
    ----------
    data
        Dataset with ``expression`` and ``true_networks`` (the union of all cells' edges is taken) or
        ``reference_graph``.

    Returns
    -------
    float
        Share of directed paths, of any length, that end in the gene of larger variance: 1 means that sorting genes by
        variance gives a causal order, 0.5 that variances tell nothing. NaN without edges.

    Raises
    ------
    DataError
        If the data hold no true graph.
    """
    truth = _truth_of(data)
    if truth is None:
        raise DataError(f"data lack 'true_networks' and 'reference_graph'; found {listed(data.data_vars)}")
    weights = np.abs(as_matrices(truth))
    graph = (weights > EDGE_THRESHOLD).reshape(-1, *weights.shape[-2:]).any(axis=0)
    variance = data["expression"].transpose("cell", "gene").to_numpy().var(axis=0)
    ratio = variance[None, :] / variance[:, None]
    increasing = np.where(np.isclose(ratio, 1.0, rtol=1e-9), 0.5, ratio > 1)
    paths, right, total = graph.astype(np.float64), 0.0, 0.0
    for _ in range(len(graph) - 1):
        found = (paths > 0) & ~np.eye(len(graph), dtype=bool)
        right, total = right + float(increasing[found].sum()), total + float(found.sum())
        paths = (paths @ graph > 0).astype(np.float64)
    return right / total if total else float("nan")


def evaluate(networks: xr.Dataset, data: xr.Dataset) -> dict[str, float]:
    """Score networks on held-out cells by all that the data tell.

    Parameters
    ----------
    networks
        Acyclic networks of the cells of `data`, with ``sigma``; ``mixture (cell, archetype)`` and ``archetypes
        (archetype, regulator, target)`` are scored if present.
    data
        Held-out cells, with ``true_networks`` or else ``reference_graph (regulator, target)`` where known, and
        ``true_mixture`` and ``true_archetypes`` from a simulator.

    Returns
    -------
    dict of str to float
        ``mse`` and ``log_density``; with a true graph ``aupr``, ``pooled_aupr``, ``edge_rate`` (their chance level),
        ``best_f1``, ``shd``, ``skeleton_aupr``; with true weights also ``relative_weight_error`` and
        ``deviation_correlation``; where both sides have them ``mixture_r2`` and ``archetype_error``.

    Raises
    ------
    DataError
        As in `gaussian_log_density`.
    """
    scores = {"mse": held_out_mse(networks, data), "log_density": gaussian_log_density(networks, data)}
    truth, network = _truth_of(data), networks["network"]
    if truth is not None:
        scores["aupr"] = aupr(network, truth)
        scores["pooled_aupr"] = pooled_aupr(network, truth)
        scores["edge_rate"] = edge_rate(truth)
        scores["best_f1"] = best_f1(network, truth)
        scores["shd"] = structural_hamming_distance(network, truth)
        scores["skeleton_aupr"] = skeleton_aupr(network, truth)
    if "true_networks" in data:
        scores["relative_weight_error"] = relative_weight_error(network, data["true_networks"])
        scores["deviation_correlation"] = deviation_correlation(network, data["true_networks"])
    if "true_mixture" in data and "mixture" in networks:
        true, estimated = (z.transpose("cell", ...).to_numpy() for z in (data["true_mixture"], networks["mixture"]))
        scores["mixture_r2"] = mixture_r2(true, estimated)
    if "true_archetypes" in data and "archetypes" in networks:
        scores["archetype_error"] = matched_archetype_error(data["true_archetypes"], networks["archetypes"])
    return scores


def _truth_of(data: xr.Dataset) -> xr.DataArray | None:
    return next((data[name] for name in ("true_networks", "reference_graph") if name in data), None)


def _refuse_cycles(networks: xr.Dataset) -> None:
    cyclic = ~is_acyclic(torch.as_tensor(as_matrices(networks["network"]))).numpy()
    if cyclic.any():
        raise DataError(
            f"network is cyclic in {int(cyclic.sum())} of {cyclic.size} cells, which can score below the noise floor; "
            "wanted DAGs: project them, or pass allow_cyclic=True"
        )


def _check_labels(networks: xr.Dataset, data: xr.Dataset) -> None:
    for dim, other in (("cell", "cell"), ("gene", "gene"), ("regulator", "gene"), ("target", "gene")):
        if dim not in networks.sizes or other not in data.sizes:
            raise DataError(
                f"found networks with dims {listed(networks.sizes)} and data with dims {listed(data.sizes)}"
            )
        if not np.array_equal(networks[dim].to_numpy(), data[other].to_numpy()):
            raise DataError(f"networks have other names along {dim} than the data, or in another order")
