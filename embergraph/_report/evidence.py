"""Sections of a report on predictive checks, calibration and stability, and what they warn of."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..criticism import predictive_check
from ..inference.inputs import as_dataset
from ..methods import PLANS
from ..models.parts.errors import EmbergraphError, SchemaError
from .figures import calibration_pictures, check_pictures, to_image
from .parts import Block, Column, Paragraph, Section, Table, number

if TYPE_CHECKING:
    from ..inference import Fit
    from ..inference.inputs import DataLike

MAX_ROWS = 2000
P_BAD, P_LOOK = 0.01, 0.05
CHECKS = (
    Column("statistic", "code"), Column("p", "number"), Column("judgement", "verdict"), Column("outside", "number"),
    Column("expected", "number"), Column("what"), Column("largest deviation"),
)  # fmt: skip
READINGS = (
    Column("reading", "code"), Column("judgement", "verdict"), Column("verdict"), Column("coverage"),
    Column("width factor", "number"), Column("shift", "number"), Column("replicates", "number"),
)  # fmt: skip
AGREED = (
    Column("reading", "code"), Column("judgement", "verdict"), Column("correlation", "number"),
    Column("same sign", "number"), Column("same call", "number"), Column("shared calls", "number"),
    Column("spread", "number"),
)  # fmt: skip
SPREADS, SHARED = (0.3, 1.0), (0.8, 0.5)


def checked_data(fit: Fit, data: DataLike, num_samples: int, seed: int) -> xr.Dataset:
    """A posterior predictive check, on some of many rows where the fit allows it."""
    dataset = as_dataset(data, fit.schema)
    plate = fit.schema.plate
    total = dataset.sizes.get(plate, 0)

    def checked(rows: xr.Dataset) -> xr.Dataset:
        return predictive_check(fit, rows, num_samples=num_samples, seed=seed, progress=False)

    if total > MAX_ROWS:
        some = np.unique(np.linspace(0, total - 1, MAX_ROWS).round().astype(int))
        try:
            return checked(dataset.isel({plate: some})).assign_attrs(rows=f"{MAX_ROWS} of {total} {plate}s")
        except EmbergraphError:  # a guide that has numbers of its own for every row
            pass
    return checked(dataset)


def criticism_section(check: xr.Dataset) -> Section:
    """Predictive checks by statistic, those that fail first."""
    order = np.argsort(_p_values(check), kind="stable")
    rows = tuple(_check_row(check, str(check["statistic"].values[place])) for place in order)
    who = {"new": "drawn for new cells", "same": "of the same cells", "none": ""}[str(check.attrs["cells"])]
    some = f", on {check.attrs['rows']}" if "rows" in check.attrs else ""
    text = (
        f"{check.attrs['num_draws']} replicates of the data {who}{some}. p is of two tests together, of the largest "
        "deviation of all entries and of the share of entries outside their intervals; small where the model makes "
        f"no such data (bad below {P_BAD:g}, look below {P_LOOK:g}), and says little by itself where it is not. All "
        f"statistics together: p {_p(check.attrs['p_all'])}."
    )
    images = [to_image(picture) for picture in check_pictures(check)]
    blocks: list[Block] = [Paragraph(text), Table("Posterior predictive checks", CHECKS, rows), *images]
    left_out = json.loads(check.attrs["left_out"])
    if left_out:
        blocks.append(Paragraph(f"Left out: {'; '.join(f'{name} ({why})' for name, why in left_out.items())}."))
    return Section("criticism", "Predictive checks", tuple(blocks))


def criticism_warnings(check: xr.Dataset) -> list[str]:
    """Statistics that the model does not reproduce."""
    failed = [str(n) for n, p in zip(check["statistic"].values, _p_values(check), strict=True) if p < P_BAD]
    if not failed:
        return []
    return [f"The model does not make such data: predictive checks fail for {', '.join(failed)}."]


def calibration_section(calibration: xr.Dataset | None, fit: Fit) -> Section:
    """What was measured on simulated data, or how it would be."""
    if calibration is None:
        text = (
            "Not measured. Whether intervals hold what they state, and probabilities are frequencies, is found by "
            "fitting data with a known truth, and takes many fits"
        )
        if not fit.schema.normalised:
            return Section("calibration", "Calibration", (Paragraph(f"{text}; it wants a model with proper priors."),))
        command = f"eg.calibrate({'fit.model, data' if _has_plan(fit) else 'model, data, fit=...'})"
        return Section("calibration", "Calibration", (Paragraph(f"{text}:", command),))
    _check_table(calibration, "calibration", "verdict")
    attrs = calibration.attrs
    text = (
        f"{attrs.get('num_replicates', calibration.sizes.get('replicate', 0))} simulated data sets of "
        f"{attrs.get('model', 'the model')}, {attrs.get('num_failures', 0)} could not be fitted. Width factor: what "
        "intervals should be multiplied by. Shift: of estimates, in posterior standard deviations."
    )
    rows = tuple(_reading_row(calibration.sel(reading=reading)) for reading in calibration["reading"].values)
    table = Table("Calibration by reading", READINGS, rows)
    images = [to_image(picture) for picture in calibration_pictures(calibration)]
    return Section("calibration", "Calibration", (Paragraph(text), table, *images))


def calibration_warnings(calibration: xr.Dataset | None, name: str) -> list[str]:
    """Readings that are not calibrated, and a calibration of something else."""
    if calibration is None:
        return []
    told = []
    model = calibration.attrs.get("model")
    if model is not None and str(model) != name:
        told.append(f"The calibration is that of {model}, not of {name}.")
    for reading, verdict in zip(calibration["reading"].values, calibration["verdict"].values, strict=True):
        if _calibrated(str(verdict)) == "bad":
            told.append(f"On simulated data, {reading} is not calibrated: {verdict}.")
    return told


def stability_section(stability: xr.Dataset | None, fit: Fit) -> Section:
    """How fits from other starts agree, or how that would be found."""
    if stability is None:
        text = "Not measured. Whether other seeds find the same takes several fits:"
        command = f"eg.stability(eg.refit({'fit.model, data' if _has_plan(fit) else 'model, data, fit=...'}), data)"
        return Section("stability", "Stability", (Paragraph(text, command),))
    _check_table(stability, "stability", "spread_ratio")
    text = (
        f"{stability.sizes.get('fit', 0)} fits of the same data from other seeds, "
        f"{stability.attrs.get('num_failures', 0)} more failed. Means over pairs of fits, beside what they are when "
        "names are exchanged at random. Spread: standard deviation of the estimates over fits, by that which their "
        f"posteriors state (good up to {SPREADS[0]:g}, bad above {SPREADS[1]:g}); where there is none, calls that both "
        f"fits make by those that either makes (good from {SHARED[0]:g}, bad below {SHARED[1]:g})."
    )
    rows = tuple(_agreement_row(stability.sel(reading=reading)) for reading in stability["reading"].values)
    return Section("stability", "Stability", (Paragraph(text), Table("Agreement over seeds by reading", AGREED, rows)))


def stability_warnings(stability: xr.Dataset | None) -> list[str]:
    """Readings on which fits from other seeds differ."""
    if stability is None:
        return []
    names = [str(reading) for reading in stability["reading"].values]
    bad = [name for name in names if _stable(stability.sel(reading=name)) == "bad"]
    told = [f"Other seeds find something else: {', '.join(bad)}."] if bad else []
    if stability.attrs.get("identical"):
        told.append(
            "Fits from other seeds are the same: the routine does not depend on its seed, and this says nothing."
        )
    return told


def _has_plan(fit: Fit) -> bool:
    return any(isinstance(fit.model, kind) for kind in PLANS)


def _check_row(check: xr.Dataset, name: str) -> tuple[str, ...]:
    row = check.sel(statistic=name)
    p = float(_p_values(row))
    verdict = "bad" if p < P_BAD else "look" if p < P_LOOK else "good"
    outside, expected = (f"{100 * float(row[key]):.0f} %" for key in ("share_outside", "share_expected"))
    place, label = int(row["worst_position"]), str(row["worst"].values)
    seen, mean, low, high = (
        number(check[f"{name}_{what}"].values.ravel()[place], 3)
        for what in ("observed", "replicated", "lower", "upper")
    )
    told = f"{seen}, replicates {mean} ({low} to {high})"
    meaning = str(check[f"{name}_observed"].attrs.get("meaning", ""))
    return name, _p(p), verdict, outside, expected, meaning, f"{label}: {told}" if label else told


def _p_values(check: xr.Dataset) -> np.ndarray:
    """Both tests of a statistic together, by Bonferroni."""
    return np.minimum(1.0, 2 * np.fmin(check["p_overall"].values, check["share_p"].values))


def _p(value: Any) -> str:
    return f"{float(value):.3f}"


def _reading_row(row: xr.Dataset) -> tuple[str, ...]:
    verdict = str(row["verdict"].item())
    width, shift = (_known(row, key) for key in ("width_factor", "shift"))
    count = _known(row, "num_replicates")
    return (
        str(row["reading"].item()), _calibrated(verdict), verdict, _coverage(row),
        "not measured" if width is None else f"{width:.2f}", "not measured" if shift is None else f"{shift:+.2f}",
        "not measured" if count is None else f"{count:.0f}",
    )  # fmt: skip


def _coverage(row: xr.Dataset) -> str:
    parts = []
    if "coverage" in row and np.isfinite(row["coverage"].values).all():
        for mass in row["mass"].values:
            own = row.sel(mass=mass)
            share, error = (100 * float(own[key]) for key in ("coverage", "coverage_se"))
            spread = f" ± {error:.1f}" if math.isfinite(error) else ""
            parts.append(f"{100 * float(mass):g} %: {share:.1f}{spread}")
    elif (share_of := _known(row, "interval_coverage")) is not None:
        level = _known(row, "interval_level") or math.nan
        parts.append(f"{number(100 * level)} %: {100 * share_of:.1f}")
    elif (error_of := _known(row, "calibration_error")) is not None:
        parts.append(f"calibration error {error_of:.3f}")
    return ", ".join(parts) or "not measured"


def _known(row: xr.Dataset, name: str) -> float | None:
    value = float(row[name]) if name in row else math.nan
    return value if math.isfinite(value) else None


def _calibrated(verdict: str) -> str:
    parts = [part.removeprefix("probabilities ") for part in verdict.split("; ")]
    if all(part == "calibrated" for part in parts):
        return "good"
    return "look" if all(part.startswith(("calibrated", "undecided", "point estimate")) for part in parts) else "bad"


def _check_table(table: xr.Dataset, name: str, variable: str) -> None:
    if variable not in table or "reading" not in table.coords:
        raise SchemaError(f"{name}: found variables {sorted(map(str, table))[:8]}; wanted {variable!r} by 'reading'")


def _agreement_row(row: xr.Dataset) -> tuple[str, ...]:
    spread = _known(row, "spread_ratio")
    shares = []
    for score in ("correlation", "sign_agreement", "call_agreement", "jaccard"):
        mean, chance = (_known(row, f"{score}_{end}") for end in ("mean", "chance"))
        beside = "" if chance is None else f" ({chance:.2f})"
        shares.append("not defined" if mean is None else f"{mean:.2f}{beside}")
    told = "not defined" if spread is None else f"{spread:.2f}"
    return str(row["reading"].item()), _stable(row), *shares, told


def _stable(row: xr.Dataset) -> str:
    spread, shared = _known(row, "spread_ratio"), _known(row, "jaccard_mean")
    if spread is not None:
        return "good" if spread <= SPREADS[0] else "look" if spread <= SPREADS[1] else "bad"
    if shared is None:
        return ""
    return "good" if shared >= SHARED[0] else "look" if shared >= SHARED[1] else "bad"
