"""Prior and posterior predictive checks: whether the model makes such data as were seen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr
from tqdm import tqdm

from ._predictive_checks import SUMMARY, Function, checks_of, table_of
from .inference import Fit
from .inference.inputs import DataLike
from .inference.readings import check_level
from .inference.replicated import Cells, Kind
from .models.parts.errors import DataError, SchemaError
from .predictive_statistics import STATISTICS
from .validation import listed

__all__ = ["STATISTICS", "SUMMARY", "criticism_text", "predictive_check"]


def predictive_check(
    fit: Fit,
    data: DataLike,
    *,
    statistics: Sequence[str] | Mapping[str, Function] | None = None,
    kind: Kind = "posterior",
    cells: Cells = "auto",
    num_samples: int = 200,
    level: float = 0.9,
    pair_genes: int | Sequence[Any] = 60,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """Compare data with replicates of them that the fit draws, statistic by statistic.

    Replicates pass through memory in parts and only their statistics are kept. A p near 0 says that the model does not
    make such data; a p that is not small says little by itself. With the training data p values of a right model crowd
    around 0.5, since the data were used twice (Gelman, Electronic Journal of Statistics 2013); with held-out cells and
    ``cells="new"`` they do not, but for what the fit does not know of its point estimates.

    Parameters
    ----------
    fit
        Any fit, of this suite or of your own Pyro model.
    data
        The training data, or held-out cells for ``cells="new"``; some of many are enough, ``data.isel(cell=...)``.
    statistics
        Names from `predictive_statistics.STATISTICS`, or a mapping of names to functions: exactly these are computed,
        so ``{**STATISTICS, "my": function}`` adds one. A function takes the observed variable as an array (float64,
        with the dims that the variable has; NaN where a mask hides an entry) and returns a number or an array.
        None: all of the library that apply; attribute ``left_out`` tells the others with the reason.
    kind
        ``"posterior"``, or ``"prior"``: whether the data are possible at all before anything was learnt.
    cells
        Where sites that belong to cells (latents, logits, scales of a matrix) come from. ``"new"``: from their prior,
        as if other cells of the same kind had been measured, which is what the model says of cells. ``"same"``: from
        the posterior of the very cells, which replicates their own numbers again: it checks the law of the measurement
        alone, and means and correlations are nearly always right. ``"auto"``: new, or the same where priors are flat.
        Without such sites both are one.
    num_samples
        Replicates S; the smallest p is 1 / (S + 1).
    level
        Mass of the intervals.
    pair_genes
        Statistics of pairs look at the so many genes of largest observed variance, or at the genes of these names.
    seed
        Seed of the draws.
    progress
        Whether to show a bar.

    Returns
    -------
    xr.Dataset
        For every statistic ``<name>_observed``, ``_replicated`` (mean), ``_lower``, ``_upper`` and ``_p`` (two-sided,
        ties by half) by gene, pair of genes or cell; over ``statistic`` the columns of `SUMMARY`. Attributes:
        ``p_all`` (one p of all statistics), ``kind``, ``cells``, ``num_draws``, ``level``, ``left_out`` (JSON). With
        several observed sites names are ``<site>.<name>``. `criticism_text` prints it.

    Raises
    ------
    DataError
        If a statistic, a gene or an option is unknown, or a function returns NaN or arrays of changing shape.
    SchemaError
        If data and fit do not belong together, or a flat prior would have to be drawn from.

    Examples
    --------
    >>> import torch, pyro, pyro.distributions as dist
    >>> from pyro.infer.autoguide import AutoNormal
    >>> from embergraph import svi
    >>> def model(y):
    ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    ...     with pyro.plate("cell", len(y)):
    ...         pyro.sample("y_seen", dist.Normal(mean, 1.0), obs=y)
    >>> data = {"y": ("cell", 3.0 * torch.randn(100, generator=torch.Generator().manual_seed(0)))}
    >>> fit = svi(model, AutoNormal(model), data, num_steps=50, progress=False)
    >>> check = predictive_check(fit, data, num_samples=50, progress=False)
    >>> bool(check["gene_variance_p"] < 0.05)  # the noise has a standard deviation of 3, not of 1
    True
    """
    if not isinstance(fit, Fit):
        raise SchemaError(f"fit: found {type(fit).__name__}; wanted a Fit, as svi, em, mcmc, fit or load return it")
    check_level(level)
    functions = _chosen(statistics)
    found = fit.replicated(data, num_samples, kind=kind, cells=cells, seed=seed)
    checks, left_out = checks_of(found, functions, fit.schema.plate, pair_genes)
    if not checks:
        raise DataError(f"statistics: found none that applies ({left_out}); wanted at least one")
    with tqdm(total=found.num_draws, desc="replicates", disable=not progress) as bar:
        for part in found.parts():
            for check in checks:
                check.take(part)
            bar.update(part.sizes["draw"])
    about = {"kind": kind, "cells": found.cells, "num_draws": found.num_draws, "level": level, "seed": seed}
    return table_of(checks, left_out, level).assign_attrs({**about, "model_name": fit.summary()["model_name"]})


def criticism_text(check: xr.Dataset) -> str:
    """Lay a check out as lines: one a statistic, and what it says in words."""
    who = {"new": ", new cells", "same": ", the same cells", "none": ""}[check.attrs["cells"]]
    attrs = check.attrs
    lines = [
        f"{attrs['kind'].capitalize()} predictive check of {attrs['model_name']}: {attrs['num_draws']} replicates{who}",
        f"{'statistic':>26}  {'entries':>7}  {'outside':>7}  {'expected':>8}  {'p':>6}  largest deviation",
    ]
    for name in check["statistic"].values.tolist():
        row = check.sel(statistic=name)
        outside, expected = (f"{100 * float(row[key]):.0f} %" for key in ("share_outside", "share_expected"))
        lines.append(
            f"{name:>26}  {int(row['num_entries']):>7}  {outside:>7}  {expected:>8}  {float(row['p_overall']):>6.3f}  "
            f"{_worst(check, name)}"
        )
    least = round(2 / (1 - attrs["level"])) - 1
    if attrs["num_draws"] < least:
        lines.append(
            f"Intervals are the range of the replicates: {least} are the fewest for {100 * attrs['level']:.0f} %."
        )
    lines.append(f"All statistics together: p {attrs['p_all']:.3f}.")
    lines += [f"Left out: {name}, {reason}." for name, reason in json.loads(attrs["left_out"]).items()]
    return "\n".join(lines)


def _worst(check: xr.Dataset, name: str) -> str:
    label, position = str(check["worst"].sel(statistic=name).values), int(check["worst_position"].sel(statistic=name))
    seen, mean, low, high = (
        float(check[f"{name}_{what}"].values.ravel()[position]) for what in ("observed", "replicated", "lower", "upper")
    )
    interval = f"{seen:.4g}, replicated {mean:.4g} [{low:.4g}, {high:.4g}]"
    return f"{label}: {interval}" if label else interval


def _chosen(statistics: Sequence[str] | Mapping[str, Function] | None) -> dict[str, Function]:
    if statistics is None:
        return dict(STATISTICS)
    if isinstance(statistics, str):
        raise DataError(f"statistics: found the text {statistics!r}; wanted a list of names, or a mapping to functions")
    if not isinstance(statistics, Mapping):
        unknown = [name for name in statistics if name not in STATISTICS]
        if unknown:
            raise DataError(f"statistics: found {unknown[0]!r}; wanted some of {listed(STATISTICS)}, or a mapping")
        return {name: STATISTICS[name] for name in statistics}
    bad = [name for name, function in statistics.items() if not callable(function) or not isinstance(name, str)]
    if bad:
        raise DataError(f"statistics: found {bad[0]!r} without a function; wanted a mapping of names to functions")
    return dict(statistics)
