"""Whether the targets of environments are found, how sure to be of them, and how sparse their shifts are.

Tables are arrays or DataArrays over (condition, latent).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from .decoder_scores import finite_matrix
from .models.parts.errors import DataError
from .validation import listed

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from .latent_scores import Alignment

    Table = Float[np.ndarray, "condition latent"] | xr.DataArray
    Truth = Bool[np.ndarray, "condition true_latent"] | xr.DataArray


def target_scores(
    probability: Table, truth: Truth, alignment: Alignment | None = None, *, threshold: float = 0.5
) -> xr.Dataset:
    """Score stated probabilities of targets against the true targets.

    Parameters
    ----------
    probability
        Of each latent to be a target in each environment, between 0 and 1. A decision of 0 and 1, such as a threshold
        on the size of shifts, can be scored too.
    truth
        What is not 0 is a target; environments in the same order.
    alignment
        From `latent_scores.align` of the latents of cells. Inferred latents that stand for no true latent count as
        latents that are never targets; true latents without partner as never found. Left out, columns belong together
        as they are.
    threshold
        A probability above it is a decision for a target.

    Returns
    -------
    xr.Dataset
        ``precision``, ``recall``, ``f1`` (of decisions), ``auprc`` (average precision, without threshold), ``brier``
        (mean squared difference), ``calibration_error``, ``found_targets`` and ``true_targets`` (decisions and true
        targets for each environment). Precision, recall, F1 and average precision are 0 where they are not defined:
        without decisions, or without true targets.

    Raises
    ------
    DataError
        If shapes do not match or probabilities are out of range.
    """
    tables = [t for t in (probability, truth) if isinstance(t, xr.DataArray) and "condition" in t.coords]
    names = [t["condition"].values.tolist() for t in tables]
    if len(names) == 2 and names[0] != names[1]:
        raise DataError(f"condition: found {listed(names[0])} and {listed(names[1])}; wanted the same in both tables")
    stated, actual = finite_matrix("probability", probability, "condition"), _targets(truth)
    _check_range(stated)
    if alignment is not None:
        if len(alignment.position) != actual.shape[1] or alignment.position.max(initial=-1) >= stated.shape[1]:
            raise DataError(
                f"alignment: found {len(alignment.position)} true latents and position {alignment.position.max()}; "
                f"wanted that of {actual.shape[1]} true and {stated.shape[1]} inferred latents"
            )
        rest = alignment.rest(stated)
        stated = np.concatenate([alignment.take(stated, signed=False), rest], axis=1)
        actual = np.concatenate([actual, np.zeros((len(actual), rest.shape[1]), dtype=bool)], axis=1)
    if stated.shape != actual.shape:
        raise DataError(f"probability, truth: found shapes {stated.shape}, {actual.shape}; wanted the same")
    flat, edges = stated.ravel(), actual.ravel()
    decided = flat > threshold
    precision, recall, f1, _ = precision_recall_fscore_support(edges, decided, average="binary", zero_division=0.0)
    values = {
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "auprc": average_precision_score(edges, flat) if edges.any() else 0.0,
        "brier": np.mean((flat - edges) ** 2),
        "calibration_error": calibration_error(stated, actual),
        "found_targets": decided.sum() / len(stated),
        "true_targets": edges.sum() / len(stated),
    }
    return xr.Dataset({name: float(value) for name, value in values.items()})


def calibration_error(probability: Any, truth: Any, *, num_bins: int = 10) -> float:
    """Expected calibration error: how far stated probabilities are from how often they come true.

    Entries are put into bins of equal width by their probability. The error is the mean over entries of the absolute
    difference between the mean probability and the share of true entries of their bin (Naeini et al. 2015). Many
    entries near 0, as sparse tables have, make it small: compare only tables of one kind.

    Parameters
    ----------
    probability
        Between 0 and 1, of any shape.
    truth
        The same shape; what is not 0 is true.
    num_bins
        At least 1. A bin holds its upper edge, the first one 0 too.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    DataError
        If shapes differ, or probabilities or `num_bins` are out of range.
    """
    stated, actual = np.asarray(probability, dtype=np.float64), np.asarray(truth) != 0
    if stated.shape != actual.shape or stated.size == 0:
        raise DataError(f"probability, truth: found shapes {stated.shape}, {actual.shape}; wanted the same, not empty")
    _check_range(stated)
    if num_bins < 1:
        raise DataError(f"num_bins: found {num_bins}; wanted at least 1")
    place = np.searchsorted(np.linspace(0, 1, num_bins + 1)[1:-1], stated.ravel())
    gap = np.bincount(place, stated.ravel() - actual.ravel(), minlength=num_bins)
    return float(np.abs(gap).sum() / stated.size)


def coverage(lower: Any, upper: Any, truth: Any, *, where: Any = True) -> float:
    """Share of intervals that hold the truth.

    Parameters
    ----------
    lower, upper
        Ends of the intervals.
    truth
        True values, aligned and with signs.
    where
        Which entries count, such as those whose probability to be a target is above one half; all if left out.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    DataError
        If shapes do not match, an interval is upside down, values are not finite, or no entry counts.
    """
    try:
        low, high, actual, chosen = np.broadcast_arrays(
            *(np.asarray(values) for values in (lower, upper, truth, where))
        )
    except ValueError:
        shapes = [np.shape(values) for values in (lower, upper, truth, where)]
        raise DataError(f"lower, upper, truth, where: found shapes {shapes}; wanted the same") from None
    low, high, actual = (values[chosen.astype(bool)] for values in (low, high, actual))
    if actual.size == 0:
        raise DataError("where: found no entries; wanted at least one interval")
    if not np.isfinite([low, high, actual]).all() or (low > high).any():
        raise DataError("lower, upper: found infinite or NaN values, or lower above upper; wanted intervals")
    return float(np.mean((low <= actual) & (actual <= high)))


def moved_latents(mean: Table, *, scale: Any = 1.0, control: object | None = None, threshold: float = 0.5) -> float:
    """Count the latents that an environment moves, on average over environments.

    Parameters
    ----------
    mean
        Mean of the latents of the cells of each environment.
    scale
        Posterior standard deviation of latents, one number or one a latent.
    control
        Label of the environment that others are compared with (position where `mean` has no labels); it is not counted
        itself. Left out, means are compared with 0.
    threshold
        A latent has moved by more than this many standard deviations.

    Returns
    -------
    float
        Between 0 and the number of latents.

    Raises
    ------
    DataError
        If values are not finite, `scale` is not positive, or there is no such control or nothing but the control.
    """
    means, spread = finite_matrix("mean", mean, "condition"), np.asarray(scale, dtype=np.float64)
    if not (np.isfinite(spread) & (spread > 0)).all() or spread.shape not in ((), (means.shape[1],)):
        raise DataError(f"scale: found {scale}; wanted a positive number, or one a latent")
    if control is not None:
        labels = list(range(len(means)))
        if isinstance(mean, xr.DataArray) and "condition" in mean.coords:
            labels = mean["condition"].values.tolist()
        if control not in labels or len(labels) < 2:
            raise DataError(f"control: found {control!r} for {len(labels)} environments; wanted one of at least two")
        place = labels.index(control)
        means = np.delete(means - means[place], place, axis=0)
    return float((np.abs(means) > threshold * spread).sum(1).mean())


def hoyer(mean: Table) -> float:
    """Sparsity of shifts by Hoyer (2004): (sqrt(d) - |m|_1 / |m|_2) / (sqrt(d) - 1), on average over environments.

    Parameters
    ----------
    mean
        Shifts of d latents in each environment. Environments whose shifts are all 0, as that of a control, are left
        out.

    Returns
    -------
    float
        1 if every environment moves one latent, 0 if it moves all by as much; 1 if nothing moves or d is 1.

    Raises
    ------
    DataError
        If values are not finite.
    """
    means = finite_matrix("mean", mean, "condition")
    means = means[means.any(1)]
    root = np.sqrt(means.shape[1])
    if len(means) == 0 or root == 1:
        return 1.0
    means = means / np.abs(means).max(1, keepdims=True)
    return float(((root - np.abs(means).sum(1) / np.sqrt((means**2).sum(1))) / (root - 1)).mean())


def _targets(truth: Any) -> Bool[np.ndarray, "condition true_latent"]:
    return finite_matrix("truth", truth, "condition") != 0


def _check_range(stated: Float[np.ndarray, "*dims"]) -> None:
    if not (stated.min() >= 0 and stated.max() <= 1):
        raise DataError(f"probability: found {stated.min():g} to {stated.max():g}; wanted numbers between 0 and 1")
