"""Several fits, and the cheapest baselines, side by side: what they say of cells that none of them has seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from tqdm import tqdm

from ._comparison_entrants import BaselineLike, Entrant, entrants_of
from .held_out import COLUMNS, RULE, best_of, numbers, ranked
from .inference import Fit
from .inference.judgement import LIMITS
from .models.parts.errors import DataError

MAX_BAD_SHARE = LIMITS["share_khat_bad"].fair[1]
MAX_GUIDE_KHAT = LIMITS["guide_khat"].fair[1]
MEANING = {
    **COLUMNS,
    "tied": "whether the difference is at most one standard error",
    "entry_log_density": "mean log density of an entry given the rest of its cell, nats",
    "entry_log_density_se": "its standard error over cells",
    "entry_difference": "to the best by entries, nats an entry",
    "entry_difference_se": "standard error of the paired differences",
    "guide_khat": "Pareto k of the whole guide on the training data; NaN without a guide",
    "loo": "mean PSIS-LOO log density of a training cell, nats; only where it can be believed",
    "loo_se": "its standard error",
    "share_khat_bad": "share of training cells whose Pareto k is above 0.7",
    "point_estimate": "whether nothing but a point is known of the parameters: no k-hat and no LOO",
    "baseline": "whether it is a baseline",
    "note": "what was left out, and why",
}
"""Columns of a comparison."""


def compare(
    fits: Mapping[str, Fit],
    data: xr.Dataset,
    test: xr.Dataset,
    *,
    baselines: Mapping[str, BaselineLike] | None = None,
    entries: bool = True,
    loo: bool = True,
    num_samples: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """Compare fits to the same training cells by the log density of held-out cells, with what else is known beside it.

    The ranking is that of `choose`: the largest mean held-out log density of a cell, ties within one standard error of
    the paired differences. The densities of single entries given the rest of the cell see dependence between genes
    that the ranking may drown in single badly described genes. LOO uses the training cells again and is shown only
    where its own k-hat is above 0.7 in no more than 5 % of the cells and the k-hat of the guide is at most 0.7 (draws
    of a sampler have none); ``note`` tells why it is left out.

    Parameters
    ----------
    fits
        Fits to `data` by name, of one method or several, of this suite or of your own Pyro model.
    data
        The training cells, the same for all.
    test
        Other cells.
    baselines
        By name: baselines of networks or of environments (`embergraph.baselines`), fitted here to `data`; or log
        densities of the test cells from anywhere, a DataArray over cells.
    entries, loo
        Whether to compute densities of entries, and k-hat and LOO.
    num_samples
        Posterior draws behind every number; as many as each method takes by itself if left out.
    seed
        Of the draws.
    progress
        Whether to show a bar. Ctrl-C returns the table of the models that are done, with attribute ``interrupted``.

    Returns
    -------
    xr.Dataset
        By ``model``, the columns of `MEANING`. Attributes: ``best``, ``rule``, ``num_test_cells``. `comparison_text`
        prints it.

    Raises
    ------
    DataError
        If there are fewer than two models, a name is taken twice, a test cell is a training cell, a fit is of other
        cells than `data`, or densities of counts and of real numbers would be compared.
    SchemaError
        If data and a fit do not belong together, a density is not normalised (relaxed NOTMAD), or cells cannot be held
        out (MED-MAGMA of a single matrix; of several, matrices take the place of cells).
    """
    entrants = entrants_of(fits, baselines or {}, data, test)
    rows: dict[str, dict[str, Any]] = {}
    cells: dict[str, np.ndarray] = {}
    genes: dict[str, np.ndarray] = {}
    interrupted = False
    try:
        for entrant in tqdm(entrants, desc="models", disable=not progress):
            row, density, of_entries = _row(entrant, entries, loo, num_samples, seed)
            rows[entrant.name], cells[entrant.name] = row, density
            if of_entries is not None:
                genes[entrant.name] = of_entries
    except KeyboardInterrupt:
        if len(rows) < 2:
            raise
        interrupted = True
    _check_lengths(cells)
    for name, found in ranked(cells).items():
        rows[name] |= found
    for name, found in (ranked(genes) if genes else {}).items():
        rows[name] |= {f"entry_{key}": value for key, value in found.items() if key != "tied"}
    about = {"num_test_cells": len(next(iter(cells.values()))), "rows": next(iter(fits.values())).schema.plate}
    return _table(rows, {**about, "seed": seed, "interrupted": int(interrupted)})


def comparison_text(table: xr.Dataset) -> str:
    """Lay a comparison out as lines: one a model from the best to the worst, then what was left out and why."""
    order = np.argsort(-table["log_density"].values, kind="stable")
    names = table["model"].values[order].tolist()
    shown = {
        "held-out": lambda row: _with_error(row, "log_density", 3),
        "to best": lambda row: "best" if row.attrs["best"] == str(row["model"].values) else _difference(row),
        "entry": lambda row: _with_error(row, "entry_log_density", 4),
        "mse": lambda row: _number(row, "mse"),
        "guide k": lambda row: _number(row, "guide_khat"),
        "LOO": lambda row: _with_error(row, "loo", 3),
        "bad k": lambda row: _number(row, "share_khat_bad", percent=True),
    }
    lines = [["model", *shown]]
    for name in names:
        row = table.sel(model=name)
        marks = " (baseline)" if bool(row["baseline"]) else " (point)" if bool(row["point_estimate"]) else ""
        lines.append([f"{name}{marks}", *(show(row) for show in shown.values())])
    kept = [i for i in range(len(lines[0])) if i < 2 or any(line[i] for line in lines[1:])]
    widths = [max(len(line[i]) for line in lines) for i in kept]
    told = ["  ".join(_aligned(line[i], w, i) for i, w in zip(kept, widths, strict=True)).rstrip() for line in lines]
    notes = [f"{name}: {note}." for name, note in zip(names, table["note"].values[order].tolist(), strict=True) if note]
    about = "Nats, {num_test_cells} held-out rows of dim {rows}, s.e. in brackets; = tied with the best."
    return "\n".join([*told, about.format(**table.attrs), *notes])


def _row(
    entrant: Entrant, entries: bool, loo: bool, num_samples: int | None, seed: int
) -> tuple[dict[str, Any], np.ndarray, np.ndarray | None]:
    notes: list[str] = []
    density = entrant.log_density(num_samples, seed)
    if not np.isfinite(density).all():
        notes.append(f"{int((~np.isfinite(density)).sum())} cells of density zero")
    row: dict[str, Any] = {"baseline": entrant.baseline, "point_estimate": entrant.baseline, "mse": entrant.mse()}
    of_entries = entrant.entries(num_samples, seed, notes) if entries else None
    if loo and not entrant.baseline:
        row |= _believable(entrant.evidence(num_samples, seed, notes), notes)
    return row | {"note": "; ".join(notes)}, density, of_entries


def _believable(found: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Leave LOO out where its k-hat, or that of the guide, does not allow it."""
    khat, bad = found.get("guide_khat", math.nan), found.get("share_khat_bad", math.nan)
    reasons = []
    if khat > MAX_GUIDE_KHAT:
        reasons.append(f"the k-hat of the guide is {khat:.2g}, above {MAX_GUIDE_KHAT:g}")
    if bad > MAX_BAD_SHARE:
        reasons.append(f"k-hat is above 0.7 in {100 * bad:.0f} % of the cells, more than {100 * MAX_BAD_SHARE:g} %")
    if reasons and "loo" in found:
        notes.append(f"LOO left out: {' and '.join(reasons)}")
        found = {key: value for key, value in found.items() if key not in ("loo", "loo_se")}
    return found


def _check_lengths(cells: Mapping[str, np.ndarray]) -> None:
    first, wanted = next((name, len(values)) for name, values in cells.items())
    for name, values in cells.items():
        if len(values) != wanted:
            raise DataError(f"{name}: found densities of {len(values)} rows; wanted {wanted}, as of {first!r}")


def _table(rows: Mapping[str, Mapping[str, Any]], about: dict[str, Any]) -> xr.Dataset:
    columns: dict[str, Any] = {}
    for key, meaning in MEANING.items():
        if key == "note":
            values: Any = np.array([row["note"] for row in rows.values()])
        elif key in ("tied", "point_estimate", "baseline"):
            values = np.array([bool(row[key]) for row in rows.values()])
        else:
            values = numbers(rows, key)
        columns[key] = ("model", values, {"meaning": meaning})
    return xr.Dataset(columns, {"model": list(rows)}, {"best": best_of(rows), "rule": RULE, **about})


def _aligned(text: str, width: int, column: int) -> str:
    return f"{text:<{width}}" if column == 0 else f"{text:>{width}}"


def _number(row: xr.Dataset, key: str, *, percent: bool = False) -> str:
    value = float(row[key])
    if math.isnan(value):
        return ""
    return f"{100 * value:.0f} %" if percent else f"{value:.3g}"


def _with_error(row: xr.Dataset, key: str, digits: int) -> str:
    value, error = float(row[key]), float(row[f"{key}_se"])
    if math.isnan(value):
        return ""
    return f"{value:.{digits}f}" if math.isnan(error) else f"{value:.{digits}f} ({error:.{digits}f})"


def _difference(row: xr.Dataset) -> str:
    return ("= " if bool(row["tied"]) else "") + _with_error(row, "difference", 3)
