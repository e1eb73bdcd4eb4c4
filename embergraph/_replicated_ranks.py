"""Where the observed value of a statistic lies among its replicates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata

if TYPE_CHECKING:
    from jaxtyping import Float

BLOCK = 2_000_000


@dataclass(frozen=True)
class Ranks:
    """Observed and replicated values of one statistic, compared.

    Under the model the observed values and each of the S replicates are exchangeable, so every number that is computed
    of all S + 1 in the same way has a known rank law; p is the place of the observed one. Ties count half.

    Attributes
    ----------
    mean, lower, upper
        Of the replicates; the k-th of S counts as the quantile k / (S + 1).
    p
        Two-sided p of every entry.
    share, share_expected, share_p
        Share of the entries whose p is below 1 - level, its mean over replicates, and its two-sided p.
    extremes
        Largest standardised distance from the median over entries: of the observed values first, then of replicates.
    worst
        Entry with the largest standardised distance.
    """

    mean: Float[np.ndarray, " entry"]
    lower: Float[np.ndarray, " entry"]
    upper: Float[np.ndarray, " entry"]
    p: Float[np.ndarray, " entry"]
    share: float
    share_expected: float
    share_p: float
    extremes: Float[np.ndarray, " row"]
    worst: int

    @property
    def varies(self) -> bool:
        """Whether anything differs between the observed values and the replicates."""
        return bool((self.extremes > 0).any())

    @property
    def p_overall(self) -> float:
        """Of all entries together: how often the largest deviation of a replicate is as large as the observed one."""
        return float(upper_p(self.extremes)[0])


def compared(observed: Float[np.ndarray, " entry"], replicates: Float[np.ndarray, "draw entry"], level: float) -> Ranks:
    """Compare; entries that are NaN anywhere take no part."""
    together = np.concatenate([observed[None], replicates])
    num_rows, num_entries = together.shape
    moments, p = np.full((3, num_entries), np.nan), np.full(num_entries, np.nan)
    outside, extremes = np.zeros(num_rows), np.zeros(num_rows)
    deviation = np.full(num_entries, -1.0)
    usable = np.flatnonzero(~np.isnan(together).any(axis=0))
    for where in np.array_split(usable, max(1, usable.size * num_rows // BLOCK)):
        values = together[:, where]
        moments[0, where] = values[1:].mean(axis=0)
        tails = [(1 - level) / 2, (1 + level) / 2]
        moments[1:, where] = np.quantile(values[1:], tails, axis=0, method="weibull")
        both = 2 * np.minimum(upper_p(values), upper_p(-values))
        p[where] = np.minimum(both[0], 1.0)
        outside += (both < 1 - level).sum(axis=1)
        sizes = np.maximum(*_sides(values))
        deviation[where] = sizes[0]
        extremes = np.maximum(extremes, sizes.max(axis=1, initial=0.0))
    share = outside / max(1, usable.size)
    share_p = min(1.0, 2 * min(float(upper_p(share)[0]), float(upper_p(-share)[0])))
    expected = float(share[1:].mean())
    worst = int(deviation.argmax()) if num_entries else 0
    mean, lower, upper = moments
    return Ranks(mean, lower, upper, p, float(share[0]), expected, share_p, extremes, worst)


def upper_p(values: Float[np.ndarray, "row ..."]) -> Float[np.ndarray, "row ..."]:
    """Of every row: share of the rows that are as large or larger, itself among them, ties and itself by half."""
    return (len(values) + 0.5 - rankdata(values, axis=0)) / len(values)


def p_of_all(extremes: list[Float[np.ndarray, " row"]]) -> float:
    """One p of several statistics, from the largest of their standardised extremes."""
    above, below = _sides(np.stack(extremes, axis=1))
    return float(upper_p((above - below).max(axis=1))[0])  # an extreme that is small speaks against nothing


def _sides(values: Float[np.ndarray, "row entry"]) -> tuple[Float[np.ndarray, "row entry"], ...]:
    """Distances above and below the median of all rows, in root mean squares of the distances on that side.

    Two sides, since variances and maxima have a long one: what is far out on the short side should count.
    """
    away = values - np.median(values, axis=0)
    tiny = 1e-12 * np.abs(values).max(axis=0)
    scaled = []
    for side in (np.maximum(away, 0.0), np.maximum(-away, 0.0)):
        size = np.sqrt((side**2).sum(axis=0) / np.maximum((side > 0).sum(axis=0), 1))
        scaled.append(np.where(size > tiny, side / np.where(size > tiny, size, 1.0), 0.0))
    return tuple(scaled)
