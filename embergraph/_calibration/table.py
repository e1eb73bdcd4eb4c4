"""The result of a calibration: one Dataset made of the tallies of all replicates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from scipy.stats import norm

from .coverage import Coverage, coverage
from .meanings import meaning_of
from .rank_tests import (
    ALPHA,
    POINTS,
    flipped_errors,
    holm,
    mean_and_error,
    rank_band,
    stated_p_value,
    stated_terms,
)
from .tally import BINS, NUM_BINS, Tally

if TYPE_CHECKING:
    from jaxtyping import Float

TESTS = ("ranks", "intervals", "probabilities")
NUM_BARS = 20
RESOLUTION = 0.08
"""Half the 95 % interval of a coverage must be below it before a reading is called calibrated."""
LEAST = 20
"""Replicates below which nothing is judged."""


@dataclass(frozen=True)
class Judged:
    """Numbers of one reading by name, its p-values by test, and in words what each test would find."""

    numbers: dict[str, Any]
    p_values: dict[str, float]
    words: dict[str, str]
    resolved: dict[str, bool]


def table(
    tallies: Sequence[Mapping[str, Tally] | None], khat: Sequence[float], failures: Sequence[str], level: float
) -> xr.Dataset:
    """Dataset of a calibration.

    Parameters
    ----------
    tallies
        Of every replicate by reading; None where it failed.
    khat, failures
        Of every replicate.
    level
        Mass of the intervals.
    """
    done = [replicate for replicate in tallies if replicate is not None]
    names = list(dict.fromkeys(name for replicate in done for name in replicate))
    masses = sorted({0.5, level})
    judged = {name: _judge([t[name] for t in done if name in t], masses, level) for name in names}
    p_values = np.array([[judged[name].p_values.get(test, math.nan) for test in TESTS] for name in names])
    adjusted = holm(p_values.ravel()).reshape(p_values.shape)
    verdicts = [
        _verdict(judged[name], dict(zip(TESTS, row, strict=True))) for name, row in zip(names, adjusted, strict=True)
    ]
    variables: dict[str, Any] = {
        "verdict": ("reading", verdicts),
        "within": ("reading", [_within(judged[name].numbers, masses, level) for name in names]),
        "what": ("reading", [next(t[name].meaning for t in done if name in t) for name in names]),
        "p_value": (("reading", "test"), p_values),
        "p_adjusted": (("reading", "test"), adjusted),
        **_columns([judged[name].numbers for name in names], len(masses)),
        "replicate_coverage": (("reading", "replicate"), _by_replicate(tallies, names, level)),
        "guide_khat": ("replicate", np.asarray(khat, dtype=float)),
        "failure": ("replicate", list(failures)),
    }
    coords = {
        "reading": names,
        "replicate": np.arange(len(tallies)),
        "test": list(TESTS),
        "mass": masses,
        "rank_bin": (np.arange(NUM_BARS) + 0.5) / NUM_BARS,
        "point": POINTS,
        "bin_lower": ("bin", np.array(BINS[:-1])),
        "bin_upper": ("bin", np.array(BINS[1:])),
    }
    result = xr.Dataset(variables, coords)
    for name, variable in result.data_vars.items():
        variable.attrs = {"meaning": meaning_of(str(name)), **({} if variable.dtype.kind in "OU" else {"units": "1"})}
    return result


def _judge(tallies: Sequence[Tally], masses: Sequence[float], level: float) -> Judged:
    judged = Judged({"num_replicates": 0.0, "entries": 0.0, "certain": 0.0}, {}, {}, {})
    counts = _stacked([t.ranks for t in tallies if t.ranks.sum() > 0])
    if len(counts):
        _add_ranks(judged, counts, masses, level)
        judged.numbers["certain"] = float(np.mean([t.certain for t in tallies]))
    inside = _stacked([t.inside for t in tallies if t.inside.size and t.inside[1] > 0])
    if len(inside):
        _add_intervals(judged, inside, float(next(t.level for t in tallies if t.inside.size)))
    told = [t for t in tallies if t.stated.sum() > 0]
    if told:
        _add_stated(judged, _stacked([t.stated for t in told]), _stacked([t.moments for t in told]))
    return judged


def _add_ranks(
    judged: Judged, counts: Float[np.ndarray, "replicate rank_bin"], masses: Sequence[float], level: float
) -> None:
    total, band = counts.sum(1), rank_band(counts)
    shares = counts / total[:, None]
    bars = NUM_BARS * shares.reshape(len(shares), NUM_BARS, -1).sum(2)
    covered = [coverage(_central(counts, mass), total, mass) for mass in masses]
    found = covered[list(masses).index(level)]
    judged.numbers.update(
        num_replicates=float(len(counts)),
        entries=float(total.mean()),
        rank_histogram=bars.mean(0),
        rank_histogram_se=bars.std(0, ddof=1) / math.sqrt(len(bars)) if len(bars) > 1 else np.full(NUM_BARS, math.nan),
        ecdf_difference=band.difference,
        ecdf_lower=band.lower,
        ecdf_upper=band.upper,
        **_location_and_width(shares.mean(0)),
        **_ends("coverage", covered),
    )
    judged.p_values["ranks"] = band.p_value if len(counts) >= LEAST else math.nan
    judged.words["ranks"] = _shape(shares)
    judged.resolved["ranks"] = _resolved(found, level)


def _add_intervals(judged: Judged, inside: Float[np.ndarray, "replicate two"], stated: float) -> None:
    found = coverage(inside[:, 0], inside[:, 1], stated)
    judged.numbers.update(interval_level=stated, **{k: v[0] for k, v in _ends("interval_coverage", [found]).items()})
    if "ranks" in judged.p_values:  # the intervals are those of the draws, which have more to tell
        return
    judged.numbers.update(num_replicates=float(len(inside)), entries=float(inside[:, 1].mean()))
    judged.p_values["intervals"] = found.p_value if len(inside) >= LEAST else math.nan
    judged.words["intervals"] = "too narrow" if found.share < stated else "too wide"
    judged.resolved["intervals"] = _resolved(found, stated)


def _resolved(found: Coverage, level: float) -> bool:
    """Whether replicates tell enough to call a reading calibrated: its coverage is near its level, and known well."""
    return found.high - found.low <= 2 * RESOLUTION and abs(found.share - level) <= RESOLUTION


def _add_stated(
    judged: Judged, stated: Float[np.ndarray, "replicate bin three"], moments: Float[np.ndarray, "replicate five"]
) -> None:
    count, expected, true = (stated[:, :, column].sum(0) for column in range(3))
    filled = count > 0
    means = [np.divide(what, count, out=np.full(len(count), math.nan), where=filled) for what in (expected, true)]
    left = stated[:, :, 2] - stated[:, :, 0] * np.nan_to_num(means[1])
    num = len(stated)
    spread = np.sqrt((left**2).sum(0) * num / max(num - 1, 1))
    total, rate = stated[:, :, 0].sum(1), float(true.sum() / count.sum())
    error, error_se, chance = flipped_errors(stated)
    brier, brier_se = mean_and_error(moments[:, 0] / total)
    judged.numbers.update(
        stated=means[0],
        observed=means[1],
        observed_se=np.divide(spread, count, out=np.full(len(count), math.nan), where=filled),
        bin_count=count,
        brier=brier,
        brier_se=brier_se,
        brier_base=rate * (1 - rate),
        calibration_error=error,
        calibration_error_se=error_se,
        calibration_error_chance=chance,
    )
    if not judged.p_values:
        judged.numbers.update(num_replicates=float(num), entries=float(total.mean()))
    judged.p_values["probabilities"] = stated_p_value(stated, moments) if num >= LEAST else math.nan
    judged.words["probabilities"] = _direction(stated, moments)
    judged.resolved["probabilities"] = chance <= 0.05


def _shape(shares: Float[np.ndarray, "replicate rank_bin"]) -> str:
    """What is wrong with ranks, if something is: the larger of their shift and their spread."""
    centre = (np.arange(NUM_BINS) + 0.5) / NUM_BINS - 0.5
    shift, spread = shares @ centre, shares @ centre**2 - float((centre**2).mean())
    size = [abs(part.mean()) / (part.std() + 1e-12) for part in (shift, spread)]
    if size[0] > size[1]:
        return "shifted"
    return "too narrow" if spread.mean() > 0 else "too wide"


def _direction(stated: Float[np.ndarray, "replicate bin three"], moments: Float[np.ndarray, "replicate five"]) -> str:
    terms, scale = stated_terms(stated, moments)
    error, slope = (float(terms[:, i].sum() / scale[i]) if scale[i] > 0 else 0.0 for i in (-2, -1))
    if abs(error) >= abs(slope):
        return "too low" if error > 0 else "too high"
    return "not sure enough" if slope > 0 else "too sure"


def _location_and_width(share: Float[np.ndarray, " rank_bin"]) -> dict[str, float]:
    ends = np.concatenate([[0.0], np.cumsum(share)])
    low, middle, high = norm.ppf(np.interp([0.25, 0.5, 0.75], ends, np.linspace(0, 1, NUM_BINS + 1)))
    return {"width_factor": float((high - low) / (2 * norm.ppf(0.75))), "shift": float(middle)}


def _central(counts: Float[np.ndarray, "... rank_bin"], mass: float) -> Float[np.ndarray, "..."]:
    """Entries in the central `mass` of the ranks; those of a bin that is cut are shared out."""
    ends = np.linspace(0, 1, NUM_BINS + 1)
    inside = np.clip(np.minimum(ends[1:], (1 + mass) / 2) - np.maximum(ends[:-1], (1 - mass) / 2), 0, None)
    return np.round(counts @ (inside * NUM_BINS), 9)


def _verdict(judged: Judged, adjusted: Mapping[str, float]) -> str:
    if not judged.words:
        return "point estimate"
    parts = []
    undecided = f"undecided: {judged.numbers['num_replicates']:.0f} replicates"
    for test, words in judged.words.items():
        if adjusted[test] < ALPHA:
            found = words
        else:  # or NaN: not judged
            found = "calibrated" if adjusted[test] >= ALPHA and judged.resolved[test] else undecided
        parts.append(f"probabilities {found}" if test == "probabilities" and len(judged.words) > 1 else found)
    return "; ".join(parts)


def _within(numbers: Mapping[str, Any], masses: Sequence[float], level: float) -> str:
    """Whether a coverage is within 5 points of its level, and whether that is sure."""
    if "interval_coverage" in numbers:
        level = numbers["interval_level"]
        share, low, high = (numbers[f"interval_coverage{end}"] for end in ("", "_low", "_high"))
    elif "coverage" in numbers:
        place = list(masses).index(level)
        share, low, high = (numbers[f"coverage{end}"][place] for end in ("", "_low", "_high"))
    else:
        return ""
    least, most = round(level - 0.05, 9), round(min(level + 0.05, 1.0), 9)
    if least <= share <= most:
        return "inside" if least <= low and high <= most else "inside, not for sure"
    return "outside" if high < least or low > most else "outside, not for sure"


def _ends(name: str, found: Sequence[Coverage]) -> dict[str, Any]:
    return {
        name: np.array([c.share for c in found]),
        f"{name}_se": np.array([c.error for c in found]),
        f"{name}_low": np.array([c.low for c in found]),
        f"{name}_high": np.array([c.high for c in found]),
    }


def _columns(rows: Sequence[Mapping[str, Any]], num_masses: int) -> dict[str, Any]:
    """Variables over readings; NaN where a reading does not have one."""
    dims = {"coverage": ("mass", num_masses), "rank_histogram": ("rank_bin", NUM_BARS), "ecdf": ("point", len(POINTS))}
    dims |= dict.fromkeys(("stated", "observed", "bin_count"), ("bin", len(BINS) - 1))
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        own = next((dim for start, dim in dims.items() if name.startswith(start)), None)
        empty = math.nan if own is None else np.full(own[1], math.nan)
        values = np.array([row.get(name, empty) for row in rows], dtype=float)
        columns[name] = (("reading",) if own is None else ("reading", own[0]), values)
    return columns


def _by_replicate(tallies: Sequence[Mapping[str, Tally] | None], names: Sequence[str], level: float) -> np.ndarray:
    shares = np.full((len(names), len(tallies)), math.nan)
    for replicate, found in enumerate(tallies):
        for place, name in enumerate(names):
            own = (found or {}).get(name)
            if own is not None and own.inside.size and own.inside[1] > 0:
                shares[place, replicate] = own.inside[0] / own.inside[1]
            elif own is not None and own.ranks.sum() > 0:
                shares[place, replicate] = _central(own.ranks, level) / own.ranks.sum()
    return shares


def _stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(arrays) if arrays else np.zeros((0, 0))
