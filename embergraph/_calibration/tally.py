"""What one replicate of a calibration tells of one reading, in a few numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..models.parts.errors import NumericalError, SchemaError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

NUM_BINS = 100
"""Bins of the ranks; 99 draws fill them one by one."""

BINS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
"""Ends of the bins of stated probabilities; each holds its lower end, the last both."""


@dataclass(frozen=True)
class Tally:
    """Sums over the entries of a reading in one replicate.

    Attributes
    ----------
    meaning
        What the reading is, in a line.
    level
        Mass of the intervals; NaN without.
    ranks
        Entries by randomised rank of the truth among the draws, in `NUM_BINS` equal bins; empty without draws.
    certain
        Entries whose draws and truth are all the same, which tell nothing and are not in `ranks`.
    inside
        Entries inside their interval, and all of them; empty without intervals.
    stated
        By bin of the stated probability: entries, sum of the probabilities, true ones; empty without probabilities.
    moments
        Sums of the squared error, of y - p, of (y - p) p, of p (1 - p) and of p^2 (1 - p), with p stated and y true.
    """

    meaning: str
    level: float
    ranks: Float[np.ndarray, " rank_bin"]
    certain: float
    inside: Float[np.ndarray, " two"]
    stated: Float[np.ndarray, "bin three"]
    moments: Float[np.ndarray, " five"]


def tally(name: str, reading: xr.Dataset, rng: np.random.Generator) -> Tally:
    """Compare a reading with the truth that it carries.

    Parameters
    ----------
    name
        Of the reading, for messages.
    reading
        As in `Fit.readings`, with ``truth``.
    rng
        Breaks ties between truth and draws.

    Raises
    ------
    NumericalError
        If a draw, an end of an interval or a probability beside a known truth is not finite.
    """
    truth = reading["truth"]
    dims = tuple(map(str, truth.dims))
    values = np.asarray(truth.values, dtype=float)
    known = ~np.isnan(values)
    ranks, certain = np.zeros(0), 0.0
    if "draws" in reading and truth.dtype.kind != "b":
        ranks, certain = _ranks(_values(name, reading, "draws", ("draw", *dims), known), values[known], rng)
    inside = np.zeros(0)
    if "lower" in reading and "upper" in reading:
        lower, upper = (_values(name, reading, end, dims, known) for end in ("lower", "upper"))
        inside = np.array([((lower <= values[known]) & (values[known] <= upper)).sum(), known.sum()], dtype=float)
    stated, moments = np.zeros((0, 3)), np.zeros(0)
    if "probability" in reading:
        stated, moments = _stated(_values(name, reading, "probability", dims, known), values[known] != 0)
    level = float(reading.attrs.get("level", np.nan)) if len(inside) else np.nan
    return Tally(str(reading.attrs.get("meaning", "")), level, ranks, certain, inside, stated, moments)


def randomised_ranks(
    draws: Float[np.ndarray, "draw entry"], truth: Float[np.ndarray, " entry"], rng: np.random.Generator
) -> Float[np.ndarray, " entry"]:
    """Rank of the truth among the draws as a number between 0 and 1, ties broken at random.

    Exactly uniform if truth and draws are of one law, whatever it is: the integer rank is uniform over 0, ..., number
    of draws (Talts et al. 2018), and a uniform number spreads it over its part of the unit interval.
    """
    below, equal = (draws < truth).sum(0), (draws == truth).sum(0)
    return (below + rng.integers(0, equal + 1) + rng.random(truth.shape)) / (len(draws) + 1)


def to_arrays(tallies: Mapping[str, Tally]) -> dict[str, np.ndarray]:
    """The tallies of a replicate as plain arrays."""
    return {f"{name}:{f.name}": np.asarray(getattr(t, f.name)) for name, t in tallies.items() for f in fields(Tally)}


def from_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, Tally]:
    """Inverse of `to_arrays`."""
    names = dict.fromkeys(key.rpartition(":")[0] for key in arrays if ":" in key)
    found = {}
    for name in names:
        values: dict[str, Any] = {f.name: arrays[f"{name}:{f.name}"] for f in fields(Tally)}
        plain = {
            "meaning": str(values["meaning"]),
            "level": float(values["level"]),
            "certain": float(values["certain"]),
        }
        found[name] = Tally(**(values | plain))
    return found


def _values(
    name: str, reading: xr.Dataset, variable: str, dims: tuple[str, ...], known: Bool[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    found = reading[variable]
    if set(found.dims) != set(dims):
        raise SchemaError(f"reading {name!r}: {variable}: found dims {found.dims}; wanted {dims} as of its truth")
    values = np.asarray(found.transpose(*dims).values, dtype=float)[..., known]
    if not np.isfinite(values).all():
        raise NumericalError(f"reading {name!r}: {variable}: found {(~np.isfinite(values)).sum()} values not finite")
    return values


def _ranks(
    draws: Float[np.ndarray, "draw entry"], truth: Float[np.ndarray, " entry"], rng: np.random.Generator
) -> tuple[Float[np.ndarray, " rank_bin"], float]:
    """Counts of ranks of the entries that tell something.

    An entry whose truth and draws are all the same (an absent edge) would only dilute the ranks. Truth and draws are
    treated alike by this rule, so that ranks of the rest stay uniform where the posterior is right.
    """
    certain = (draws == truth).all(0)
    ranks = randomised_ranks(draws[:, ~certain], truth[~certain], rng)
    place = np.minimum(NUM_BINS * ranks, NUM_BINS - 1).astype(int)  # rounding may lift the last rank to 1
    return np.bincount(place, minlength=NUM_BINS).astype(float), float(certain.sum())


def _stated(
    probability: Float[np.ndarray, " entry"], true: Bool[np.ndarray, " entry"]
) -> tuple[Float[np.ndarray, "bin three"], Float[np.ndarray, " five"]]:
    place = np.clip(np.searchsorted(BINS, probability, side="right") - 1, 0, len(BINS) - 2)
    weights = (np.ones_like(probability), probability, true.astype(float))
    table = np.stack([np.bincount(place, weight, len(BINS) - 1) for weight in weights], 1)
    error, variance = true - probability, probability * (1 - probability)
    terms = (error**2, error, error * probability, variance, variance * probability)
    return table, np.array([term.sum() for term in terms])
