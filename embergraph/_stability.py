"""Stability: how far fits of the same data from different seeds agree on what users read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ._agreement import SCORES, Table, agreement, aligned, renamed, table_of
from ._replicates import Replicates, given, run, wants_seed
from .inference import Fit
from .inference.inputs import DataLike, as_dataset
from .inference.options import check_counts
from .inference.readings import check_level
from .methods import PLANS
from .methods import fit as run_plan
from .models.parts.errors import DataError, NumericalError, SchemaError

MEANING = {
    "correlation": "correlation of the estimates of two fits over entries",
    "sign_agreement": "share of entries called by both fits that have the same sign",
    "call_agreement": "share of entries that both fits call, or neither",
    "jaccard": "entries called by both fits, as a share of those called by either",
}
"""Scores of a pair of fits."""


def refit(
    model: Callable[..., Any],
    data: DataLike,
    *,
    seeds: Sequence[int] = (0, 1, 2, 3),
    fit: Callable[..., Fit] | None = None,
    n_jobs: int | None = None,
    progress: bool = True,
    **options: Any,
) -> dict[int, Fit]:
    """Fit the same data from several seeds, in parallel where joblib is told to.

    Parameters
    ----------
    model
        Model of this suite or any Pyro callable.
    data
        Its data.
    seeds
        Of the fits, each another one.
    fit
        Maps data and ``seed=`` to a fit, ``lambda data, seed: eg.svi(model, guide, data, seed=seed)``. By default the
        plan of a model of this suite, with `options`.
    n_jobs
        As in `calibrate`.
    progress
        Whether to show a bar.
    **options
        Of the plan.

    Returns
    -------
    dict of int to Fit
        By seed. Seeds whose fit failed are missing; ``settings["refit"]`` of every fit names them. After Ctrl-C: the
        finished ones.

    Raises
    ------
    SchemaError
        If the model has no plan and no `fit` is given.
    DataError
        If seeds are repeated or negative, or options of a plan are given beside `fit`.
    NumericalError
        If every fit failed.
    """
    if not isinstance(seeds, Sequence) or not seeds or len(set(seeds)) < len(seeds):
        raise DataError(f"seeds: found {seeds!r}; wanted a list of different ones, at least one")
    for seed in seeds:
        check_counts(seed=seed)
    if fit is None and not any(isinstance(model, kind) for kind in PLANS):
        raise SchemaError(f"model: found {type(model).__name__}, which has no plan; wanted fit=, such as eg.svi of it")
    if fit is not None and options:
        raise DataError(f"{next(iter(options))}: an option of a plan, found beside fit=; wanted it inside fit")
    if fit is not None and not wants_seed(fit):
        raise SchemaError("fit: found a function without a parameter 'seed', whose fits are all alike; wanted one")
    kept = Replicates(None, {})
    task = _Refit(model, data, list(seeds), fit, options)
    run(task, len(seeds), kept, seed=0, n_jobs=n_jobs, progress=progress, label="refits")
    outcomes = {seeds[index]: kept.done[index] for index in sorted(kept.done)}
    failures = {str(seed): outcome.failure for seed, outcome in outcomes.items() if outcome.failure}
    fits = {seed: outcome.result for seed, outcome in outcomes.items() if not outcome.failure}
    if not fits:
        raise NumericalError(f"refit: found no seed whose fit succeeded ({failures})")
    for found in fits.values():
        found.settings["refit"] = {"seeds": [int(seed) for seed in outcomes], "failures": failures}
    return fits


def stability(
    fits: Mapping[Any, Fit] | Sequence[Fit],
    data: DataLike,
    *,
    threshold: float = 0.5,
    level: float = 0.9,
    num_samples: int = 200,
    signed: Collection[str] = ("latent",),
    num_permutations: int = 20,
    seed: int = 0,
) -> xr.Dataset:
    """How far fits agree on their readings, beside what their posteriors say of their own error.

    Entries of dims without meaning (`Fit.exchangeable`: latents) are matched first, by the Hungarian method. What that
    alone gains is in the scores by chance: those of the same fits with the names of genes, cells and so on of one of
    them exchanged at random, and matched anew.

    Parameters
    ----------
    fits
        At least two fits of the same data, by name or in order; from `refit`, say.
    data
        The data.
    threshold
        A probability above it is a call. Estimates are called where their interval leaves 0 out.
    level
        Mass of that interval.
    num_samples
        Draws behind a reading.
    signed
        Dims without meaning whose entries may also change sign.
    num_permutations
        Random exchanges of names for each pair.
    seed
        Of draws and exchanges.

    Returns
    -------
    xr.Dataset
        By ``reading`` and ``pair``: ``correlation``, ``sign_agreement``, ``call_agreement`` and ``jaccard`` of the
        calls; by ``reading`` their means and values by chance, and ``spread_ratio``: the standard deviation of the
        estimates over fits by that which the posteriors state. Where it is not small, a single fit is surer than it
        should be: widths want a factor of ``sqrt(1 + spread_ratio ** 2)`` for the choice of the start alone.
        ``attrs["meaning"]`` of each says what it is.

    Raises
    ------
    DataError
        If there are fewer than two fits, or an option is out of range.
    SchemaError
        If fits have no reading in common, or one of another size.
    """
    if not isinstance(fits, Mapping | Sequence):
        raise DataError(f"fits: found {type(fits).__name__}; wanted several fits, by name or in a list")
    named = dict(fits) if isinstance(fits, Mapping) else dict(enumerate(fits))
    _check(named, threshold, num_permutations, num_samples, seed)
    check_level(level)
    tables = [_tables(fit, data, threshold, level, num_samples, seed) for fit in named.values()]
    names = [name for name in tables[0] if all(name in other for other in tables)]
    if not names:
        raise SchemaError(f"fits: found no reading that all have; the first has {sorted(tables[0])}")
    tables = [{name: found[name] for name in names} for found in tables]
    for name in names:
        sizes = {tuple(found[name].estimate.sizes.items()) for found in tables}
        if len(sizes) > 1:
            raise SchemaError(f"reading {name!r}: found sizes {sorted(sizes)}; wanted the same in all fits")
    loose = next(iter(named.values())).exchangeable
    pairs = list(itertools.combinations(range(len(tables)), 2))
    rng = np.random.default_rng(seed)
    scores = np.stack([_scores(tables[i], aligned(tables[j], tables[i], loose, signed)) for i, j in pairs], 1)
    by_chance = np.stack(
        [
            _scores(tables[i], aligned(renamed(tables[j], loose, rng), tables[i], loose, signed))
            for i, j in pairs
            for _ in range(num_permutations)
        ],
        1,
    )
    losses = [float(fit.settings.get("final_loss", math.nan)) for fit in named.values()]
    best = int(np.nanargmin(losses)) if np.isfinite(losses).any() else 0
    matched = [found if i == best else aligned(found, tables[best], loose, signed) for i, found in enumerate(tables)]
    variables: dict[str, Any] = {}
    for place, score in enumerate(SCORES):
        about = {"meaning": MEANING[score], "units": "1"}
        variables[score] = (("reading", "pair"), scores[:, :, place], about)
        mean, chance = (_mean(values[:, :, place]) for values in (scores, by_chance))
        variables[f"{score}_mean"] = ("reading", mean, {**about, "meaning": f"mean over pairs: {MEANING[score]}"})
        told = f"as {score}_mean, with names of one fit exchanged at random"
        variables[f"{score}_chance"] = ("reading", chance, {**about, "meaning": told})
    variables |= _spreads(matched, names)
    calls = [[float(np.nansum(t[name].called)) for t in tables] for name in names]
    variables["num_called"] = (("reading", "fit"), np.array(calls), {"meaning": "entries called", "units": "1"})
    variables["final_loss"] = ("fit", losses, {"meaning": "loss on all of the data at the end", "units": "nats"})
    coords = {"reading": names, "fit": [str(name) for name in named], "pair": [_pair(named, i, j) for i, j in pairs]}
    settings: dict[str, Any] = {"threshold": threshold, "level": level, "num_failures": _failed(named)}
    identical = all(bool((variables["spread"][1][place] == 0).all()) for place in range(len(names)))
    return xr.Dataset(variables, coords, {**settings, "identical": int(identical)})


def stability_text(result: xr.Dataset) -> str:
    """Lay the main numbers of `stability` out as lines of text."""
    lines = [f"{result.sizes['fit']} fits, {result.attrs['num_failures']} failed; means over pairs (by chance)"]
    width = max(len(str(name)) for name in result["reading"].values)
    for name in result["reading"].values:
        row = result.sel(reading=name)
        parts = [
            f"{score.replace('_', ' ')} {float(row[f'{score}_mean']):.2f} ({float(row[f'{score}_chance']):.2f})"
            for score in SCORES
            if not math.isnan(float(row[f"{score}_mean"]))
        ]
        if not math.isnan(float(row["spread_ratio"])):
            parts.append(f"spread over fits {float(row['spread_ratio']):.2f} of the stated width")
        lines.append(f"{name:>{width}}  {', '.join(parts)}")
    if result.attrs["identical"]:
        lines.append("All fits are the same: the routine does not depend on its seed, so that this tells nothing.")
    return "\n".join(lines)


@dataclass(frozen=True)
class _Refit:
    model: Any
    data: DataLike
    seeds: Sequence[int]
    fit: Callable[..., Fit] | None
    options: Mapping[str, Any]

    def __call__(self, index: int) -> Fit:
        seed = self.seeds[index]
        if self.fit is None:
            found = run_plan(self.model, as_dataset(self.data), seed=seed, progress=False, **self.options)
        else:
            found = given(self.fit, as_dataset(self.data), seed=seed)
        if not isinstance(found, Fit):
            raise SchemaError(f"fit: found a function that returns {type(found).__name__}; wanted a Fit")
        if found.settings.get("interrupted"):  # by Ctrl-C, which routines answer with what they have
            raise KeyboardInterrupt
        return found


def _tables(fit: Fit, data: DataLike, threshold: float, level: float, num_samples: int, seed: int) -> dict[str, Table]:
    readings = fit.readings(data, num_samples=num_samples, level=level, seed=seed)
    return {name: table_of(reading, threshold, level) for name, reading in readings.items()}


def _scores(one: Mapping[str, Table], other: Mapping[str, Table]) -> np.ndarray:
    return np.array([agreement(one[name], other[name]) for name in one])


def _spreads(tables: Sequence[Mapping[str, Table]], names: Sequence[str]) -> dict[str, Any]:
    spread, width = np.full(len(names), math.nan), np.full(len(names), math.nan)
    for place, name in enumerate(names):
        estimates = np.stack([table[name].estimate.values for table in tables])
        widths = np.stack([table[name].width for table in tables])
        if not np.isnan(widths).all():
            spread[place] = math.sqrt(np.nanmean(estimates.var(0, ddof=1)))
            width[place] = math.sqrt(np.nanmean(widths**2))
    ratio = np.divide(spread, width, out=np.full(len(names), math.nan), where=width > 0)
    told = "standard deviation of the estimates over matched fits, root mean square over entries"
    return {
        "spread": ("reading", spread, {"meaning": told, "units": "of the reading"}),
        "width": ("reading", width, {"meaning": "the posteriors' own standard deviation", "units": "of the reading"}),
        "spread_ratio": (
            "reading",
            ratio,
            {"meaning": "spread / width; small if the start hardly matters", "units": "1"},
        ),
    }


def _mean(values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(1)
    return np.divide(total, known.sum(1), out=np.full(len(values), math.nan), where=known.any(1))


def _pair(named: Mapping[Any, Fit], i: int, j: int) -> str:
    names = [str(name) for name in named]
    return f"{names[i]}, {names[j]}"


def _failed(named: Mapping[Any, Fit]) -> int:
    return max((len(fit.settings.get("refit", {}).get("failures", {})) for fit in named.values()), default=0)


def _check(named: Mapping[Any, Any], threshold: float, num_permutations: int, num_samples: int, seed: int) -> None:
    if len(named) < 2:
        raise DataError(f"fits: found {len(named)}; wanted at least two, of the same data")
    for name, fit in named.items():
        if not isinstance(fit, Fit):
            raise DataError(f"fits[{name!r}]: found {type(fit).__name__}; wanted a Fit")
    if not 0 < threshold < 1:
        raise DataError(f"threshold: found {threshold!r}; wanted a number between 0 and 1")
    check_counts(num_permutations=num_permutations, num_samples=num_samples, seed=seed)
    if len({fit.template.digest for fit in named.values()}) > 1:
        raise DataError("fits: found fits of different data; wanted fits of the same data")
