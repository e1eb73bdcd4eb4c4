"""Tests of calibration in which the replicate is the unit: entries of one replicate may depend on each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from .tally import NUM_BINS

if TYPE_CHECKING:
    from jaxtyping import Float, Int

ALPHA = 0.05
NUM_DRAWS = 4000
TAIL = 0.05
"""Beyond it the band is as wide as here: too few ranks lie there to weigh them by their own error."""
POINTS = np.arange(1, NUM_BINS) / NUM_BINS
"""Where the distribution function of the ranks is looked at."""


@dataclass(frozen=True)
class Band:
    """The empirical distribution function of the ranks minus the uniform one, with its simultaneous band.

    Attributes
    ----------
    difference, lower, upper
        At `POINTS`; a calibrated reading stays within the band everywhere with probability 95 %.
    p_value
        Of the largest excursion.
    """

    difference: Float[np.ndarray, " point"]
    lower: Float[np.ndarray, " point"]
    upper: Float[np.ndarray, " point"]
    p_value: float


def rank_band(counts: Float[np.ndarray, "replicate rank_bin"]) -> Band:
    """Test that ranks are uniform.

    With one entry a replicate: Säilynoja, Bürkner and Vehtari (2022), pointwise binomial intervals whose level is
    adjusted by simulation until they hold simultaneously. With several: the distribution function is averaged over the
    entries of a replicate, and the law of the largest excursion of its mean over replicates, in units of
    sqrt(z (1 - z)), is that of the multiplier bootstrap: the deviations of whole replicates from their mean with random
    signs, which keeps any dependence between entries.

    Parameters
    ----------
    counts
        Entries by rank, at least one in every replicate.
    """
    total = counts.sum(1, keepdims=True)
    excess = np.cumsum(counts / total, 1)[:, :-1] - POINTS
    if (total == 1).all():
        return _band_of_one(excess.mean(0), len(counts))
    scale = np.sqrt(np.maximum(POINTS * (1 - POINTS), TAIL * (1 - TAIL)))
    mean, num = excess.mean(0), len(counts)
    if num < 2:
        unknown = np.full(len(POINTS), math.nan)
        return Band(mean, unknown, unknown, math.nan)
    noise = (excess - mean) / scale * math.sqrt(num / (num - 1))
    largest = np.abs(_signs(num) @ noise).max(1) / num
    half = float(np.quantile(largest, 1 - ALPHA)) * scale
    return Band(mean, -half, half, _p_value(largest >= (1 - 1e-9) * np.abs(mean / scale).max()))


def mean_and_error(values: Float[np.ndarray, " replicate"]) -> tuple[float, float]:
    """Mean over replicates and its standard error; NaN where there are too few."""
    mean = float(values.mean()) if len(values) else math.nan
    return mean, float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def stated_p_value(
    stated: Float[np.ndarray, "replicate bin three"], moments: Float[np.ndarray, "replicate five"]
) -> float:
    """Test that stated probabilities are the frequencies of what they state.

    The largest of the differences between true and expected numbers, over the bins and over all entries together, as
    they are and weighted by the stated probability; in units of their standard deviations for independent entries. Its
    law is found by flipping the signs of whole replicates.
    """
    terms, scale = stated_terms(stated, moments)
    used = scale > 0
    if not used.any():  # nothing but certainties: any miss is one too many
        return 1.0 if np.allclose(terms, 0) else 0.0
    found = np.abs(terms[:, used].sum(0) / scale[used]).max()
    flipped = np.abs(_signs(len(terms)) @ (terms[:, used] / scale[used])).max(1)
    return _p_value(flipped >= (1 - 1e-9) * found)


def stated_terms(
    stated: Float[np.ndarray, "replicate bin three"], moments: Float[np.ndarray, "replicate five"]
) -> tuple[Float[np.ndarray, "replicate term"], Float[np.ndarray, " term"]]:
    """True minus expected numbers and their standard deviations if entries were independent.

    By bin, and last two of all entries: the sum, and the sum weighted by p less its centre, which is positive if stated
    probabilities are not extreme enough.
    """
    count, expected, true = (stated[:, :, column] for column in range(3))
    error, weighted, variance, variance_p = (moments[:, column] for column in range(1, 5))
    centre = variance_p.sum() / variance.sum() if variance.sum() > 0 else 0.5
    slope = weighted - centre * error
    terms = np.concatenate([true - expected, error[:, None], slope[:, None]], 1)
    mean = np.divide(expected.sum(0), count.sum(0), out=np.zeros(count.shape[1]), where=count.sum(0) > 0)
    spread = (stated[:, :, 1] * (1 - mean)).sum(0)
    total = float(variance.sum())
    inner = _slope_variance(stated, centre, mean)
    return terms, np.sqrt(np.concatenate([spread, [total, inner]]))


def flipped_errors(stated: Float[np.ndarray, "replicate bin three"]) -> tuple[float, float, float]:
    """Calibration error (mean |stated - observed| over entries, by bin), its standard error, and its mean by chance.

    Few entries leave an error where there is none: the mean by chance is that with the signs of replicates flipped. The
    standard error is the jackknife's over replicates.
    """
    miss, num = stated[:, :, 2] - stated[:, :, 1], float(stated[:, :, 0].sum())
    found = float(np.abs(miss.sum(0)).sum() / num)
    chance = float(np.abs(_signs(len(miss)) @ miss).sum(1).mean() / num)
    left = np.abs(miss.sum(0) - miss).sum(1) / np.maximum(num - stated[:, :, 0].sum(1), 1)
    size = len(left)
    return found, float(math.sqrt((size - 1) / size * ((left - left.mean()) ** 2).sum())), chance


def holm(p_values: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """P-values adjusted for the number of tests (Holm 1979); NaN ones do not count."""
    adjusted = np.full(len(p_values), np.nan)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known])]
    scaled = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def _slope_variance(
    stated: Float[np.ndarray, "replicate bin three"], centre: float, mean: Float[np.ndarray, " bin"]
) -> float:
    return float((stated[:, :, 0].sum(0) * mean * (1 - mean) * (mean - centre) ** 2).sum())


@lru_cache(maxsize=8)
def _excursions(num: int) -> tuple[Float[np.ndarray, " draw"], Float[np.ndarray, "count point"]]:
    """Smallest pointwise tail probability of simulated uniform samples, sorted, and tail probabilities by count."""
    below = stats.binom.cdf(np.arange(num + 1)[:, None], num, POINTS)
    above = stats.binom.sf(np.arange(num + 1)[:, None] - 1, num, POINTS)
    tails = 2 * np.minimum(below, above)
    counts = np.random.default_rng(0).multinomial(num, np.full(NUM_BINS, 1 / NUM_BINS), NUM_DRAWS)
    reached: Int[np.ndarray, "draw point"] = np.cumsum(counts, 1)[:, :-1]
    return np.sort(tails[reached, np.arange(NUM_BINS - 1)].min(1)), tails


def _band_of_one(difference: Float[np.ndarray, " point"], num: int) -> Band:
    simulated, tails = _excursions(num)
    gamma = float(np.quantile(simulated, ALPHA))
    lower = stats.binom.ppf(gamma / 2, num, POINTS) / num - POINTS
    upper = stats.binom.ppf(1 - gamma / 2, num, POINTS) / num - POINTS
    reached = np.rint(num * (difference + POINTS)).astype(int)
    found = float(tails[reached, np.arange(NUM_BINS - 1)].min())
    return Band(difference, lower, upper, _p_value(simulated <= (1 + 1e-9) * found))


def _signs(num: int) -> Float[np.ndarray, "draw replicate"]:
    return np.random.default_rng(0).choice([-1.0, 1.0], (NUM_DRAWS, num))


def _p_value(as_extreme: np.ndarray) -> float:
    return float((1 + as_extreme.sum()) / (1 + len(as_extreme)))
