"""What counts as good, and what as bad, of the numbers that a fit is judged by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import xarray as xr

Verdict = Literal["good", "look", "bad", ""]


@dataclass(frozen=True)
class Limits:
    """Ranges of a number; inside `good` it is good, inside `fair` one should look, outside it is bad.

    Attributes
    ----------
    good, fair
        Lowest and highest value, both included.
    advice
        What to do where it is bad, as a sentence.
    """

    good: tuple[float, float]
    fair: tuple[float, float]
    advice: str

    def attrs(self) -> dict[str, Any]:
        """As attributes of the variable that they are for."""
        return {"good": list(self.good), "fair": list(self.fair), "advice": self.advice}


def at_most(good: float, fair: float, advice: str) -> Limits:
    """Limits of a number that should be small."""
    return Limits((-math.inf, good), (-math.inf, fair), advice)


def at_least(good: float, fair: float, advice: str) -> Limits:
    """Limits of a number that should be large."""
    return Limits((good, math.inf), (fair, math.inf), advice)


LIMITS: Mapping[str, Limits] = {
    "loss_drift": at_most(3.0, 10.0, "The loss was still falling when the fit stopped: take more steps."),
    "bound_falls": at_most(0.0, 2.0, "The bound fell more than once: the guide's update has a mistake."),
    "restarts_agree": at_least(0.5, -math.inf, "Restarts ended at different losses: take more of them."),
    # Yao, Vehtari, Simpson and Gelman (2018), Yes, but did it work?
    "guide_khat": at_most(
        0.5, 0.7, "The guide misses mass of the joint posterior: intervals may be too narrow; check by calibration."
    ),
    # Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling.
    "share_khat_bad": at_most(
        0.01, 0.05, "LOO cannot be used here: compare models by the log density of held-out cells instead."
    ),
    # Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), Rank-normalization, folding, and localization.
    "max_split_rhat": at_most(1.01, 1.05, "Chains have not settled: take more warm-up steps and more draws."),
    "max_rhat": at_most(1.01, 1.05, "Chains found different things: run longer, or the posterior has several modes."),
    "acceptance": Limits((0.6, 0.95), (0.4, 0.99), "The sampler's steps have a wrong size: take more warm-up steps."),
    "divergences": at_most(0.0, 10.0, "The sampler broke down in places: raise target_acceptance, or rewrite a prior."),
}
"""Limits of the rows of `Fit.report`."""


def limits_of(name: str, limits: Mapping[str, Limits] = LIMITS) -> dict[str, Any]:
    """Attributes of a row; none if it has no limits."""
    return limits[name].attrs() if name in limits else {}


def verdict_of(row: xr.DataArray) -> Verdict:
    """Judgement of a row of a report by the limits in its attributes; empty where it has none or is not defined."""
    value = float(row)
    if "good" not in row.attrs or math.isnan(value):
        return ""
    ranges: dict[Verdict, Any] = {"good": row.attrs["good"], "look": row.attrs["fair"]}
    return next((verdict for verdict, (low, high) in ranges.items() if low <= value <= high), "bad")


def limits_text(row: xr.DataArray) -> str:
    """The limits of a row in words; empty where it has none."""
    if "good" not in row.attrs:
        return ""
    good, fair = (tuple(map(float, row.attrs[key])) for key in ("good", "fair"))
    if math.isinf(fair[0]) and math.isinf(fair[1]):
        return f"good {_range(good)}, else look"
    return f"good {_range(good)}" if good == fair else f"good {_range(good)}, bad {_outside(fair)}"


def _range(limits: tuple[float, ...]) -> str:
    low, high = limits
    if low == high:
        return f"at {low:g}"
    if math.isinf(low):
        return f"up to {high:g}"
    return f"from {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"


def _outside(limits: tuple[float, ...]) -> str:
    low, high = limits
    if math.isinf(low):
        return f"above {high:g}"
    return f"below {low:g}" if math.isinf(high) else f"outside {low:g} to {high:g}"
