"""How far inferred latents are from true ones, read off decoders and encoders; drift out of distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from scipy.integrate import trapezoid

from .models.parts.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Float

    Latents = Float[np.ndarray, "cell latent"] | xr.DataArray
    Loadings = Float[np.ndarray, "gene latent"] | xr.DataArray


def column_disentanglement(inferred: Loadings, true: Loadings) -> float:
    """Whether a move of one true latent moves one inferred latent only, for linear decoders.

    With P = pinv(W) M, the mean over true latents j of max_i P_ij^2 / sum_i P_ij^2. For two latents and a rotation by
    theta it is max(cos^2, sin^2).

    Parameters
    ----------
    inferred, true
        Decoder matrices W and M over the same genes.

    Returns
    -------
    float
        At most 1, and at least 1 over the number of inferred latents unless a true latent moves none of them: that one
        counts 0.

    Raises
    ------
    DataError
        If shapes do not match or values are not finite.
    """
    first, second = finite_matrix("inferred", inferred, "gene"), finite_matrix("true", true, "gene")
    if len(first) != len(second):
        raise DataError(f"inferred, true: found {len(first)} and {len(second)} genes; wanted the same")
    return _largest_share(np.linalg.lstsq(first, second, rcond=None)[0] ** 2)


def encoder_disentanglement(
    before: Latents, after: Float[np.ndarray, "true_latent cell latent"] | xr.DataArray
) -> float:
    """Whether a move of one true latent moves one inferred latent only, for any decoder and encoder.

    As `column_disentanglement`, with the mean squared move of an inferred latent over cells in place of P_ij^2. Moves
    cannot cancel over cells. `simulated_environments` gives the cells before and after an offset of 1 with one seed.

    Parameters
    ----------
    before
        Inferred latents of some cells.
    after
        Inferred latents of the same cells after an offset of each true latent in turn.

    Returns
    -------
    float
        As in `column_disentanglement`.

    Raises
    ------
    DataError
        If shapes do not match or values are not finite.
    """
    start, moved = finite_matrix("before", before, "cell"), np.asarray(after, dtype=np.float64)
    if moved.ndim != 3 or moved.shape[1:] != start.shape or len(moved) == 0:
        raise DataError(f"after: found shape {moved.shape}; wanted (true_latent, {start.shape[0]}, {start.shape[1]})")
    if not np.isfinite(moved).all():
        raise DataError("after: found NaN or infinite values; wanted finite numbers")
    return _largest_share(((moved - start) ** 2).mean(1).T)


def angle_test(inferred: Loadings, true: Loadings, *, step: float = 0.01) -> xr.Dataset:
    """Look for the rotation R of two latents such that W is M R up to the scale and sign of each column.

    With signs free, angles repeat after pi, and reflections are rotations.

    Parameters
    ----------
    inferred, true
        Decoder matrices W and M, both (gene, 2).
    step
        Of the grid of angles from 0 to pi, in radians.

    Returns
    -------
    xr.Dataset
        ``residual (angle)``: |W - M R diag(scales)| / |W| with the best scales. Attributes: ``residual`` (the
        smallest), ``angle`` (where), and ``distance`` from that angle to the nearest multiple of pi / 2, at which
        latents are matched and not mixed.

    Raises
    ------
    DataError
        If shapes do not match, values are not finite, W is zero, or `step` is out of range.
    """
    first, second = finite_matrix("inferred", inferred, "gene"), finite_matrix("true", true, "gene")
    if first.shape != second.shape or first.shape[1] != 2:
        raise DataError(f"inferred, true: found shapes {first.shape}, {second.shape}; wanted (gene, 2) of both")
    if not first.any():
        raise DataError("inferred: found zeros only; wanted a decoder matrix")
    if not 0 < step <= 0.5:
        raise DataError(f"step: found {step}; wanted above 0 and at most 0.5")
    angles = np.arange(0.0, np.pi, step)
    cos, sin = np.cos(angles), np.sin(angles)
    turned = second @ np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)  # (angle, gene, 2)
    norm = (turned**2).sum(-2)
    scales = (first * turned).sum(-2) / np.where(norm > 0, norm, 1.0)
    residual = np.sqrt(((first - turned * scales[:, None]) ** 2).sum((-2, -1)) / (first**2).sum())
    place = int(residual.argmin())
    off = float(angles[place]) % (np.pi / 2)
    best = {"residual": float(residual[place]), "angle": float(angles[place]), "distance": min(off, np.pi / 2 - off)}
    return xr.Dataset({"residual": ("angle", residual)}, coords={"angle": angles}, attrs=best)


def drift(offset: Sequence[float] | xr.DataArray, error: Sequence[float] | xr.DataArray) -> xr.Dataset:
    """Summarise how the error of a model grows as an environment moves away from the training data.

    Parameters
    ----------
    offset
        Of one latent, in its units, at least two with different magnitudes above 0.
    error
        Mean squared error per gene at every offset, above 0.

    Returns
    -------
    xr.Dataset
        ``area``: mean of the natural logarithm of the error over the range of offsets, by the trapezoid rule.
        ``slope``: of log error on log |offset|, by least squares over the offsets of at least half the largest
        magnitude; 0 is no growth, 2 is what a decoder gives whose output is wrong in proportion to the offset.

    Raises
    ------
    DataError
        If lengths differ, errors are not positive, or there are too few offsets.
    """
    x, y = np.asarray(offset, dtype=np.float64), np.asarray(error, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or not (np.isfinite(x).all() and np.isfinite(y).all() and (y > 0).all()):
        raise DataError(f"offset, error: found shapes {x.shape}, {y.shape}; wanted finite offsets and positive errors")
    order = np.argsort(x, kind="stable")
    x, logs = x[order], np.log(y[order])
    size = np.abs(x)
    far = (size >= 0.5 * size.max(initial=0.0)) & (size > 0)
    if np.unique(size[far]).size < 2:
        raise DataError(f"offset: found {x.tolist()}; wanted at least two magnitudes beyond half the largest")
    distance = np.log(size[far])
    centred = distance - distance.mean()
    return xr.Dataset(
        {
            "area": float(trapezoid(logs, x) / (x[-1] - x[0])) if x[-1] > x[0] else float(logs.mean()),
            "slope": float(centred @ logs[far] / (centred @ centred)),
        }
    )


def finite_matrix(name: str, values: Any, dim: str) -> Float[np.ndarray, "row column"]:
    """Return a matrix in float64, its dim `dim` first if it has names."""
    if isinstance(values, xr.DataArray) and dim in values.dims:
        values = values.transpose(dim, ...)
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise DataError(f"{name}: found shape {matrix.shape}; wanted a matrix with one row a {dim}")
    if not np.isfinite(matrix).all():
        raise DataError(f"{name}: found NaN or infinite values; wanted finite numbers")
    return matrix


def _largest_share(moves: Float[np.ndarray, "latent true_latent"]) -> float:
    """Mean over columns of the largest entry over the sum of all; 0 for a column of zeros."""
    total = moves.sum(0)
    return float((moves.max(0) / np.where(total > 0, total, 1.0)).mean())
