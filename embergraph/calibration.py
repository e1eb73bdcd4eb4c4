"""Simulation-based calibration: whether posteriors are what they say, on data from the model itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ._calibration.table import table
from ._calibration.tally import from_arrays, tally, to_arrays
from ._replicates import Replicates, given, identity_of, identity_of_data, run, seeds_of
from .inference import Fit, guide_khat
from .inference.diagnostics import KHAT_DRAWS
from .inference.inputs import DataLike
from .inference.options import check_counts
from .inference.readings import check_level
from .inference.simulation import simulate as draw_from_prior
from .methods import PLANS, as_plan_wants
from .methods import fit as run_plan
from .models.parts.errors import DataError, NumericalError, SchemaError

Readings = Mapping[str, xr.Dataset]


def calibrate(
    model: Callable[..., Any],
    data: DataLike | None,
    *,
    fit: Callable[..., Any] | None = None,
    simulate: Callable[[int], xr.Dataset] | None = None,
    readings: Sequence[str] | Callable[..., Readings] | None = None,
    num_replicates: int = 100,
    num_samples: int = 199,
    level: float = 0.9,
    seed: int = 0,
    n_jobs: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> xr.Dataset:
    """Simulate from the prior, fit, and compare what users read off the fits with the truth, many times.

    If a posterior is exact, the rank of the truth among its draws is uniform, intervals hold the truth as often as they
    state, and probabilities are frequencies, on average over the prior (Talts et al. 2018; Modrák et al. 2023). This
    says nothing of data from elsewhere than the model.

    Parameters
    ----------
    model
        Model of this suite or any Pyro callable, with proper priors.
    data
        Gives shapes, names and inputs; observed values are replaced. None if `simulate` does without.
    fit
        Maps simulated data to a fit: ``lambda data: eg.svi(model, guide, data, progress=False)``. By default the plan
        of a model of this suite, with `options`; NOTMAD's genes are centred before, which leaves networks as they are.
    simulate
        Maps a seed to data with the truth, ``true_<site>``; by default `embergraph.simulate`.
    readings
        Names of readings to keep, or a function of the fit and the data that returns them in the form of
        `Fit.readings`, which is the default. Those without a truth are left out.
    num_replicates
        Simulated data sets. With 100 a coverage of 90 % of a single number has a standard error of 3 points.
    num_samples
        Draws of a reading. With 99, 199, ... no rank is split between bins.
    level
        Mass of the intervals.
    seed
        Each replicate depends on it and on its own number alone. A parameter named ``seed`` of `fit` or `readings` is
        given a seed of the replicate; draws made with one seed in all replicates would make ranks dependent.
    n_jobs
        Replicates at a time, as in `joblib.Parallel`. None leaves it to ``joblib.parallel_config``, which also chooses
        where they run: processes of this machine, a Dask or a Ray cluster. Threads of one process take turns.
    checkpoint
        Folder that keeps finished replicates. A run that was stopped, or is to have more replicates, goes on from it
        and ends with the same result. Functions are recognised by their names alone: after a change take a new folder.
    progress
        Whether to show a bar.
    **options
        Of the plan.

    Returns
    -------
    xr.Dataset
        By ``reading``: ``verdict`` ("calibrated", "too narrow", "too wide", "shifted", of probabilities "too high",
        "too low", "too sure", "not sure enough", or "undecided" with the number of replicates), ``coverage``,
        ``rank_histogram``, ``ecdf_difference`` with its simultaneous band, ``width_factor``, ``shift``, reliability of
        probabilities; by ``replicate``: ``guide_khat`` and ``failure``. ``attrs["meaning"]`` of each says what it is;
        `calibration_text` prints the main ones. Standard errors take the replicate as the unit, since entries of one
        fit depend on each other. After Ctrl-C: of the finished replicates, with attribute ``interrupted``.

    Raises
    ------
    SchemaError
        If the model has no plan and no `fit` is given, or readings are unknown or none has a truth.
    DataError
        If an option is out of range.
    LoadError
        If the checkpoint is of another run.
    NumericalError
        If every replicate failed; single failures are kept by name in ``failure``.
    """
    check_counts(num_replicates=num_replicates, num_samples=num_samples, seed=seed)
    check_level(level)
    _check(model, fit, simulate, num_samples, options)
    names = [readings] if isinstance(readings, str) else readings
    task = _Task(model, data, fit, simulate, names, num_samples, level, seed, options)
    kept = Replicates(checkpoint, task.identity() if checkpoint is not None else {})
    interrupted = run(task, num_replicates, kept, seed=seed, n_jobs=n_jobs, progress=progress, label="calibration")
    found = [kept.done[index] for index in range(num_replicates) if index in kept.done]
    good = [outcome for outcome in found if not outcome.failure]
    if not good:
        raise NumericalError(f"calibrate: found no replicate that could be fitted, the first: {found[0].failure}")
    result = table(
        [None if outcome.failure else from_arrays(outcome.result) for outcome in found],
        [math.nan if outcome.failure else float(outcome.result["guide_khat"]) for outcome in found],
        [outcome.failure for outcome in found],
        level,
    )
    result = result.assign_coords(replicate=[outcome.index for outcome in found])
    return result.assign_attrs(
        model=task.identity_of_model(), level=level, num_samples=num_samples, seed=seed, num_replicates=len(found),
        num_failures=len(found) - len(good), interrupted=int(interrupted),
    )  # fmt: skip


def calibration_text(result: xr.Dataset) -> str:
    """Lay the main numbers of a calibration out as lines of text; 95 % intervals in brackets."""
    level, num = result.attrs["level"], result.attrs["num_replicates"]
    lines = [f"{num} replicates of {result.attrs['model']}, {result.attrs['num_failures']} failed"]
    width = max(len(str(name)) for name in result["reading"].values)
    for name in result["reading"].values:
        row = result.sel(reading=name)
        lines.append(f"{name:>{width}}  {row['verdict'].item()}{_p_value(row)}")
        for told in (_coverage_line(row, level), _stated_line(row)):
            if told:
                lines.append(f"{'':>{width}}  {told}")
    khat = result["guide_khat"].values
    if not np.isnan(khat).all():
        known = khat[~np.isnan(khat)]
        lines.append(
            f"k-hat of the guide: median {np.median(known):.2f}, above 0.7 in {(known > 0.7).sum()} of {len(known)}"
        )
    failed = result["failure"].values
    lines += [f"replicate {result['replicate'].values[i]} failed: {failed[i]}" for i in np.flatnonzero(failed != "")]
    return "\n".join(lines)


@dataclass(frozen=True)
class _Task:
    """One replicate: simulate, fit, read, compare."""

    model: Any
    data: DataLike | None
    fit: Callable[..., Any] | None
    simulate: Callable[[int], xr.Dataset] | None
    readings: Sequence[str] | Callable[..., Readings] | None
    num_samples: int
    level: float
    seed: int
    options: Mapping[str, Any]

    def __call__(self, index: int) -> dict[str, np.ndarray]:
        drawing, fitting, reading, breaking = seeds_of(self.seed, index, 4)
        data = self._simulated(drawing)
        if self.fit is None:
            data = as_plan_wants(self.model, data)
            fitted = run_plan(self.model, data, seed=fitting, progress=False, **self.options)
        else:
            fitted = given(self.fit, data, seed=fitting)
        if not hasattr(fitted, "readings") and not callable(self.readings):
            raise SchemaError(f"fit: found a function that returns {type(fitted).__name__}; wanted a Fit")
        if getattr(fitted, "settings", {}).get("interrupted"):  # by Ctrl-C, which routines answer with what they have
            raise KeyboardInterrupt
        rng = np.random.default_rng(breaking)
        found = {name: tally(name, table, rng) for name, table in sorted(self._read(fitted, data, reading).items())}
        return {
            "guide_khat": np.array(_khat(fitted, data, max(self.num_samples, KHAT_DRAWS), reading)),
            **to_arrays(found),
        }

    def identity(self) -> dict[str, Any]:
        """What must be the same for finished replicates to be taken over."""
        parts = {"fit": self.fit, "simulate": self.simulate, "readings": self.readings, "options": dict(self.options)}
        numbers = {"num_samples": self.num_samples, "level": self.level, "seed": self.seed}
        named = {name: identity_of(part) for name, part in parts.items()}
        model, data = identity_of(self.model), identity_of_data(self.data)
        return {"kind": "calibration", "model": model, "data": data, **numbers, **named}

    def identity_of_model(self) -> str:
        """Its name."""
        return str(identity_of(self.model)).split(" ", maxsplit=1)[0]

    def _simulated(self, seed: int) -> xr.Dataset:
        if self.simulate is not None:
            return self.simulate(seed)
        if self.data is None:
            raise SchemaError("data: found None; wanted data of the shapes to simulate, or simulate=")
        return draw_from_prior(self.model, self.data, seed=seed)

    def _read(self, fitted: Any, data: xr.Dataset, seed: int) -> dict[str, xr.Dataset]:
        if callable(self.readings):
            found = dict(given(self.readings, fitted, data, seed=seed))
        else:
            found = dict(fitted.readings(data, num_samples=self.num_samples, level=self.level, seed=seed))
            unknown = sorted(set(self.readings or ()) - set(found))
            if unknown:
                raise SchemaError(f"readings: found {unknown[0]!r}; wanted some of {sorted(found)}")
        told = {name: table for name, table in found.items() if "truth" in table}
        if self.readings is not None and not callable(self.readings):
            without = sorted(set(self.readings) - set(told))
            if without:
                raise SchemaError(f"readings: found no truth of {without[0]!r}; wanted one in the simulated data")
            told = {name: told[name] for name in self.readings}
        if not told:
            raise SchemaError(
                f"readings: found no truth in any of {sorted(found)}; wanted true_* in the simulated data"
            )
        return told


def _check(model: Any, fit: Any, simulate: Any, num_samples: int, options: Mapping[str, Any]) -> None:
    if fit is None and not any(isinstance(model, kind) for kind in PLANS):
        raise SchemaError(f"model: found {type(model).__name__}, which has no plan; wanted fit=, such as eg.svi of it")
    if fit is not None and options:
        raise DataError(f"{next(iter(options))}: an option of a plan, found beside fit=; wanted it inside fit")
    for name, function in (("fit", fit), ("simulate", simulate)):
        if function is not None and not callable(function):
            raise SchemaError(f"{name}: found {type(function).__name__}; wanted a function")
    if num_samples < 19:
        raise DataError(f"num_samples: found {num_samples}; wanted at least 19, to tell the ends of the posterior")


def _khat(fitted: Any, data: xr.Dataset, num_samples: int, seed: int) -> float:
    """k-hat of the guide; NaN without one, or if it is a point."""
    if not isinstance(fitted, Fit) or fitted.guide is None:
        return math.nan
    tree = fitted.posterior(data, num_samples, predictive=False, prior=False, seed=seed)
    posterior = tree["posterior"].to_dataset()
    if set(map(str, posterior.data_vars)) <= set(json.loads(posterior.attrs["held_fixed"])):
        return math.nan
    return guide_khat(tree)


def _p_value(row: xr.Dataset) -> str:
    found = row["p_adjusted"].values
    if np.isnan(found).all():
        return ""
    least = np.nanmin(found)
    return " (p < 0.001 after Holm)" if least < 0.001 else f" (p = {least:.2g} after Holm)"


def _coverage_line(row: xr.Dataset, level: float) -> str:
    parts, stated = [], level
    if "coverage" in row and not np.isnan(row["coverage"].values).all():
        for mass in row["mass"].values:
            parts.append(f"{100 * mass:g} % intervals hold {_share(row.sel(mass=mass), 'coverage')}")
        parts.append(f"width should be {float(row['width_factor']):.2f} times, shift {float(row['shift']):+.2f} sd")
    elif "interval_coverage" in row and not math.isnan(float(row["interval_coverage"])):
        stated = float(row["interval_level"])
        parts.append(f"{100 * stated:g} % intervals hold {_share(row, 'interval_coverage')}")
    if row["within"].item():
        parts.append(f"{row['within'].item()} {100 * stated - 5:g}-{min(100 * stated + 5, 100):g} %")
    return "; ".join(parts)


def _share(row: xr.Dataset, name: str) -> str:
    share, low, high = (100 * float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return f"{share:.1f} % ({low:.0f} to {high:.0f})"


def _stated_line(row: xr.Dataset) -> str:
    if "brier" not in row or math.isnan(float(row["brier"])):
        return ""
    brier, base, error, error_se, chance = (
        float(row[name])
        for name in ("brier", "brier_base", "calibration_error", "calibration_error_se", "calibration_error_chance")
    )
    miss = f"calibration error {error:.3f} ± {error_se:.3f} ({chance:.3f} by chance)"
    return f"{miss}; Brier {brier:.4f} (base rate {base:.4f})"
