"""Coverage over replicates whose entries depend on each other, with an error that few replicates do not fool."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import optimize, stats
from scipy.special import betaln

if TYPE_CHECKING:
    from jaxtyping import Float

CONCENTRATIONS = np.geomspace(1e-3, 1e6, 73)
EDGE = 1e-4
"""Coverage this near to 0 or 1 is not told apart from it."""


@dataclass(frozen=True)
class Coverage:
    """Share of entries that are inside their intervals.

    Attributes
    ----------
    share
        Mean over replicates of the share of entries.
    error
        Standard error of `share` between replicates.
    low, high
        Ends of its 95 % interval.
    p_value
        Of the hypothesis that it is as stated.
    """

    share: float
    error: float
    low: float
    high: float
    p_value: float


def coverage(hits: Float[np.ndarray, " replicate"], total: Float[np.ndarray, " replicate"], level: float) -> Coverage:
    """Coverage of intervals that state `level`.

    Interval and p-value are the more careful of two. Student's t takes replicates as the unit; near 100 %, and where
    few replicates hold all misses, their spread says little about the error. The profile likelihood of the mean of a
    beta-binomial law, whose second number is how strongly entries of a replicate depend on each other, knows of that,
    but trusts the law.

    Parameters
    ----------
    hits, total
        Entries inside, and all entries, at least one in every replicate.
    level
        What is stated.
    """
    num, shares = len(hits), hits / total
    share = float(shares.mean()) if num else math.nan
    if num < 2:
        return Coverage(share, *[math.nan] * 4)
    error = float(shares.std(ddof=1) / math.sqrt(num))
    width = float(stats.t.ppf(0.975, num - 1))
    low, high, drop = _profile_interval(hits, total, level, width**2 / 2)
    far = abs(share - level) / error if error > 0 else math.inf
    near = min(far, math.sqrt(2 * drop))
    return Coverage(
        share,
        error,
        max(0.0, min(low, share - width * error)),
        min(1.0, max(high, share + width * error)),
        float(2 * stats.t.sf(near, num - 1)),
    )


def _profile_interval(
    hits: Float[np.ndarray, " replicate"], total: Float[np.ndarray, " replicate"], level: float, depth: float
) -> tuple[float, float, float]:
    """Ends of the means whose profile is within `depth` of the best, and how far below it that of `level` is."""
    kinds, count = np.unique(np.stack([hits, total - hits]), axis=1, return_counts=True)

    def profile(mean: float) -> float:
        a, b = mean * CONCENTRATIONS[:, None], (1 - mean) * CONCENTRATIONS[:, None]
        return float(((betaln(a + kinds[0], b + kinds[1]) - betaln(a, b)) @ count).max())

    found = optimize.minimize_scalar(lambda mean: -profile(mean), bounds=(EDGE, 1 - EDGE), method="bounded")
    tries = (float(found.x), EDGE, 1 - EDGE)
    best = max(tries, key=profile)
    top = profile(best)
    ends = []
    for edge, beyond in ((EDGE, 0.0), (1 - EDGE, 1.0)):
        inside = top - profile(edge) <= depth
        ends.append(beyond if inside else float(optimize.brentq(lambda m: top - profile(m) - depth, best, edge)))
    return ends[0], ends[1], max(top - profile(level), 0.0)
