"""Scores of the weights of networks, of their intervals, and of mixtures and archetypes."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from scipy.optimize import linear_sum_assignment

from .models.parts.errors import DataError
from .network_scores import EDGE_THRESHOLD, as_matrices, mean_or_nan

if TYPE_CHECKING:
    from jaxtyping import Float

    from .network_scores import Networks

_SIZE_CLASSES = (EDGE_THRESHOLD, 0.2, 0.5, 1.0, np.inf)


def relative_weight_error(estimate: Networks, truth: Networks) -> float:
    """Squared Frobenius error of the weights relative to the true weights, ||W_hat - W||^2 / ||W||^2, over all cells.

    Parameters
    ----------
    estimate, truth
        Weights, shape (..., p, p).

    Returns
    -------
    float
        0 is perfect, 1 is the empty graph; NaN if the truth is empty.
    """
    estimated, actual = np.broadcast_arrays(as_matrices(estimate), as_matrices(truth))
    total = np.sum(actual**2)
    return float(np.sum((estimated - actual) ** 2) / total) if total else float("nan")


def deviation_correlation(estimate: Networks, truth: Networks) -> float:
    """Correlation between estimated and true deviations of each cell's network from the mean network.

    It shows how far the differences between cells are right.

    Parameters
    ----------
    estimate, truth
        Weights, shape (cell, p, p).

    Returns
    -------
    float
        Between -1 and 1; 0 if the estimated (or the true) networks do not differ between cells.
    """
    estimated, actual = np.broadcast_arrays(as_matrices(estimate), as_matrices(truth))
    deviations = [(w - w.mean(axis=0)) * (np.ptp(w, axis=0) > 0) for w in (estimated, actual)]
    norms = [float(np.linalg.norm(d)) for d in deviations]
    if 0.0 in norms:
        return 0.0
    return float(np.sum(deviations[0] * deviations[1]) / (norms[0] * norms[1]))


def interval_coverage(
    lower: Networks, upper: Networks, truth: Networks, *, threshold: float = EDGE_THRESHOLD
) -> xr.Dataset:
    """Share of intervals that contain the truth, on true edges and on absent ones.

    Parameters
    ----------
    lower, upper
        Ends of the intervals, shape (..., p, p).
    truth
        True weights, shape (..., p, p).
    threshold
        True weights above this magnitude are edges.

    Returns
    -------
    xr.Dataset
        Along ``edges`` (``absent``, ``true``, and true edges by magnitude ``0.05-0.2``, ``0.2-0.5``, ``0.5-1``,
        ``above 1``): ``coverage``, where an interval of an absent edge must contain 0; mean ``width``; and ``count``.
        NaN where there is no such edge.

    Raises
    ------
    DataError
        If a lower end lies above its upper end.
    """
    low, high, actual = np.broadcast_arrays(as_matrices(lower), as_matrices(upper), as_matrices(truth))
    off = ~np.eye(actual.shape[-1], dtype=bool)
    low, high, actual = (w[..., off].ravel() for w in (low, high, actual))
    if (low > high).any():
        raise DataError(f"lower is above upper in {int((low > high).sum())} intervals; wanted lower <= upper")
    size = np.abs(actual)
    edge = size > threshold
    wanted = np.where(edge, actual, 0.0)
    inside = (low <= wanted) & (wanted <= high)
    groups = {"absent": ~edge, "true": edge}
    for start, stop in itertools.pairwise(_SIZE_CLASSES):
        name = f"{start:g}-{stop:g}" if np.isfinite(stop) else f"above {start:g}"
        groups[name] = edge & (size > start) & (size <= stop)
    return xr.Dataset(
        {
            "coverage": ("edges", [mean_or_nan(inside[group]) for group in groups.values()]),
            "width": ("edges", [mean_or_nan((high - low)[group]) for group in groups.values()]),
            "count": ("edges", [int(group.sum()) for group in groups.values()]),
        },
        coords={"edges": list(groups)},
    )


def mixture_r2(true: Float[np.ndarray, "cell archetype"], estimated: Float[np.ndarray, "cell component"]) -> float:
    """R^2 of the true mixture weights regressed on the estimated ones, which need no matching of archetypes.

    Parameters
    ----------
    true, estimated
        Mixture weights of the same cells; the numbers of archetypes may differ.

    Returns
    -------
    float
        Explained share of the variance, all true archetypes together; NaN if the truth does not vary.
    """
    centred = [np.asarray(z, dtype=np.float64) - np.mean(np.asarray(z), axis=0) for z in (true, estimated)]
    coefficients = np.linalg.lstsq(centred[1], centred[0], rcond=1e-10)[0]
    total = np.sum(centred[0] ** 2)
    return float(1 - np.sum((centred[0] - centred[1] @ coefficients) ** 2) / total) if total else float("nan")


def matched_archetype_error(true: Networks, estimated: Networks) -> float:
    """Relative squared error of archetypes after the best matching (Hungarian), ||W_hat - W||^2 / ||W||^2.

    True archetypes left without a partner count with their whole norm; surplus estimated ones are ignored.

    Parameters
    ----------
    true, estimated
        Weights, shape (archetype, p, p); the numbers of archetypes may differ.

    Returns
    -------
    float
        0 is perfect.
    """
    actual, found = as_matrices(true), as_matrices(estimated)
    norms = np.sum(actual**2, axis=(1, 2))
    cost = np.sum((actual[:, None] - found[None]) ** 2, axis=(2, 3)) - norms[:, None]
    rows, columns = linear_sum_assignment(cost)
    return float((norms.sum() + cost[rows, columns].sum()) / norms.sum())
