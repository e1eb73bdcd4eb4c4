"""Scores of the structure of networks against true ones, as functions of arrays.

Networks are arrays (..., regulator, target), or DataArrays with these dims; leading dims broadcast, so that one network
can be held against those of all cells. Only off-diagonal entries count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from sklearn.metrics import average_precision_score, precision_recall_curve

from .models.parts.errors import DataError
from .models.parts.projection import is_acyclic

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    Networks = Float[np.ndarray, "*cell regulator target"] | xr.DataArray

#: True weights of at most this magnitude count as no edge.
EDGE_THRESHOLD = 0.05


def aupr(score: Networks, truth: Networks, *, threshold: float = EDGE_THRESHOLD) -> float:
    """Average precision of the magnitudes of `score` against the true edges, by cell and then averaged.

    Parameters
    ----------
    score
        Weights, or any score of an edge, shape (..., p, p).
    truth
        True weights or a graph of 0 and 1, shape (..., p, p); leading dims broadcast against those of `score`.
    threshold
        True weights above this magnitude are edges.

    Returns
    -------
    float
        Between 0 and 1; chance is the share of true edges. Cells without true edges do not count; NaN if all are.
    """
    values, edges = _edges(score, truth, threshold)
    return mean_or_nan(np.array([_average_precision(v, e) for v, e in zip(values, edges, strict=True) if e.any()]))


def pooled_aupr(score: Networks, truth: Networks, *, threshold: float = EDGE_THRESHOLD) -> float:
    """Average precision over the entries of all cells together, so that sizes must compare between cells.

    Parameters and result as in `aupr`.
    """
    return _average_precision(*_pooled(score, truth, threshold))


def edge_rate(truth: Networks, *, threshold: float = EDGE_THRESHOLD) -> float:
    """Share of true edges among all off-diagonal entries, the chance level of `aupr`.

    Parameters
    ----------
    truth
        True weights, shape (..., p, p).
    threshold
        True weights above this magnitude are edges.

    Returns
    -------
    float
        Between 0 and 1.
    """
    return float(np.mean(_pooled(truth, truth, threshold)[1]))


def skeleton_aupr(score: Networks, truth: Networks, *, threshold: float = EDGE_THRESHOLD) -> float:
    """Average precision over pairs of genes, whatever the direction; arguments as in `aupr`.

    Parameters
    ----------
    score
        Weights, shape (..., p, p); a pair scores the larger of its two magnitudes.
    truth
        True weights, shape (..., p, p).
    threshold
        True weights above this magnitude are edges.

    Returns
    -------
    float
        Between 0 and 1, NaN if there are no true edges.
    """
    estimated, actual = (np.abs(as_matrices(w)) for w in (score, truth))
    pairs = [np.triu(np.maximum(w, np.swapaxes(w, -1, -2)), 1) for w in (estimated, actual)]
    estimated, actual = np.broadcast_arrays(*pairs)
    upper = np.triu(np.ones(actual.shape[-2:], dtype=bool), 1)
    return _average_precision(estimated[..., upper].ravel(), actual[..., upper].ravel() > threshold)


def edge_f1(estimate: Networks, truth: Networks, *, at: float, threshold: float = EDGE_THRESHOLD) -> float:
    """F1 score of the edges of magnitude above `at`.

    Parameters
    ----------
    estimate, truth
        Weights, shape (..., p, p).
    at
        Estimated weights above this magnitude are called edges.
    threshold
        True weights above this magnitude are edges.

    Returns
    -------
    float
        Between 0 and 1; 1 if there is no edge on either side.
    """
    score, edge = _pooled(estimate, truth, threshold)
    called = score > at
    total = int(called.sum() + edge.sum())
    return 2 * int((called & edge).sum()) / total if total else 1.0


def best_f1(score: Networks, truth: Networks, *, threshold: float = EDGE_THRESHOLD) -> float:
    """F1 score at the best single threshold for all cells, which only the truth can tell.

    Parameters
    ----------
    score, truth
        Weights, shape (..., p, p).
    threshold
        True weights above this magnitude are edges.

    Returns
    -------
    float
        Between 0 and 1, NaN if there are no true edges.
    """
    values, edge = _pooled(score, truth, threshold)
    if not edge.any():
        return float("nan")
    precision, recall, _ = precision_recall_curve(edge, values)
    total = precision + recall
    return float(np.max(2 * precision * recall / np.where(total > 0, total, 1.0)))


def structural_hamming_distance(
    estimate: Networks, truth: Networks, *, at: float = EDGE_THRESHOLD, threshold: float = EDGE_THRESHOLD
) -> float:
    """Number of gene pairs whose edge is missing, extra or reversed (each counts 1), averaged over cells.

    Parameters
    ----------
    estimate, truth
        Weights, shape (..., p, p).
    at
        Estimated weights above this magnitude are called edges.
    threshold
        True weights above this magnitude are edges.

    Returns
    -------
    float
        Pairs per cell.
    """
    called, edge = np.broadcast_arrays(np.abs(as_matrices(estimate)) > at, np.abs(as_matrices(truth)) > threshold)
    differs = called != edge
    pairs = np.triu(differs | np.swapaxes(differs, -1, -2), 1)
    return float(pairs.sum((-2, -1)).mean())


def acyclic_share(weights: Networks, thresholds: Sequence[float] = (0.0, 0.05, 0.1, 0.2, 0.3)) -> xr.DataArray:
    """Share of networks that are acyclic once weights up to a threshold are dropped.

    Parameters
    ----------
    weights
        Weights before projection, shape (..., p, p).
    thresholds
        Magnitudes in units of the weights.

    Returns
    -------
    xr.DataArray
        Shares along ``threshold``.
    """
    matrices = torch.as_tensor(as_matrices(weights))
    shares = [float(is_acyclic(matrices.abs() > t).double().mean()) for t in thresholds]
    return xr.DataArray(shares, dims="threshold", coords={"threshold": list(thresholds)}, name="acyclic_share")


def as_matrices(weights: Networks) -> Float[np.ndarray, "*cell regulator target"]:
    """Read networks as a float64 array with axes (..., regulator, target).

    Parameters
    ----------
    weights
        Array, or DataArray with these dims in any order.

    Returns
    -------
    Float[np.ndarray, "*cell regulator target"]
        The weights.

    Raises
    ------
    DataError
        If they are no square matrices.
    """
    if isinstance(weights, xr.DataArray):
        weights = weights.transpose(..., "regulator", "target").to_numpy()
    array = np.asarray(weights)
    if array.ndim < 2 or array.shape[-1] != array.shape[-2]:
        raise DataError(f"networks have shape {array.shape}; wanted square matrices (..., regulator, target)")
    return array.astype(np.float64)


def _pooled(
    score: Networks, truth: Networks, threshold: float
) -> tuple[Float[np.ndarray, " entry"], Bool[np.ndarray, " entry"]]:
    """Magnitudes and true edges of all off-diagonal entries of all cells."""
    values, edges = _edges(score, truth, threshold)
    return values.ravel(), edges.ravel()


def _edges(
    score: Networks, truth: Networks, threshold: float
) -> tuple[Float[np.ndarray, "cell entry"], Bool[np.ndarray, "cell entry"]]:
    """Magnitudes and true edges of the off-diagonal entries of every cell."""
    values, actual = np.broadcast_arrays(np.abs(as_matrices(score)), np.abs(as_matrices(truth)))
    off = ~np.eye(actual.shape[-1], dtype=bool)
    shape = (-1, int(off.sum()))
    return values[..., off].reshape(shape), actual[..., off].reshape(shape) > threshold


def _average_precision(score: Float[np.ndarray, " entry"], edge: Bool[np.ndarray, " entry"]) -> float:
    return float(average_precision_score(edge, score)) if edge.any() else float("nan")


def mean_or_nan(values: np.ndarray) -> float:
    """Mean of the values, NaN if there are none."""
    return float(values.mean()) if values.size else float("nan")
