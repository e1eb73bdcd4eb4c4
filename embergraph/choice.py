"""Choice between models by how well they predict cells that they were not fitted to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from tqdm import tqdm

from .held_out import COLUMNS, RULE, best_of, check_densities, networks_mse, numbers, ranked, standard_error
from .inference import Fit
from .methods import PLANS, fit
from .models.parts.errors import DataError, NumericalError, SchemaError
from .splitting import random_split


def choose(
    models: Mapping[str, Any],
    data: xr.Dataset,
    *,
    test_fraction: float = 0.25,
    within: str | None = None,
    refit: bool = True,
    num_samples: int | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[Any, xr.Dataset]:
    """Fit several models to a part of the cells, compare them on the rest, and fit the best to all cells.

    The rule: the model with the largest mean held-out log density is the best; a model is tied with it if its mean is
    lower by no more than one standard error of the paired differences of the cells; of the tied ones the first that is
    listed is chosen. So list models from simple to complicated.

    The standard error is that of the test cells, given the two fits; it knows nothing of other splits or starts.

    Parameters
    ----------
    models
        Models of this suite by name, of one method or several, made for the same data: with one order and with
        projected networks, of several numbers of archetypes, with several encoders or priors.
    data
        Their data.
    test_fraction, within
        As for `random_split`.
    refit
        Whether to fit the chosen model again, to all cells; else the fit to the training part is returned.
    num_samples
        Posterior draws behind a density; as many as the method takes by itself if left out.
    seed
        Of the split and of every fit.
    **options
        Options of the plans, the same for all.

    Returns
    -------
    fit
        Of the chosen model; ``fit.settings["choice"]`` holds the comparison, also after saving and loading, and
        ``fit.report`` shows its margin.
    table : xr.Dataset
        By ``model``: ``log_density`` (mean held-out log density of a cell, nats) and ``log_density_se``,
        ``difference`` to the best and ``difference_se`` (paired), ``mse`` (mean squared residual of held-out cells
        after projection, where networks exist), ``tied``. Attributes: ``chosen``, ``best``, ``rule``. A model whose fit
        failed has NaN everywhere.

    Raises
    ------
    DataError
        If there are fewer than two models, or as in `random_split` and the plans.
    SchemaError
        If a model has no plan, an unnormalised density that cannot be compared (relaxed NOTMAD), or cells that cannot
        be held out (MED-MAGMA, whose graphs are of these very cells).
    NumericalError
        If no fit succeeds.
    """
    _check(models)
    train, test = random_split(data, test_fraction=test_fraction, seed=seed, within=within)
    fits: dict[str, Any] = {}
    densities: dict[str, np.ndarray] = {}
    failures: dict[str, str] = {}
    draws = {} if num_samples is None else {"num_samples": num_samples}
    interrupted = False
    for name, model in tqdm(models.items(), desc="models", disable=not options.get("progress", True)):
        try:
            found = fit(model, train, seed=seed, **options)
        except NumericalError as error:
            failures[name] = str(error)
            continue
        fits[name], densities[name] = found, found.log_density(test, seed=seed, **draws).values
        interrupted = bool(found.settings.get("interrupted"))
        if interrupted:  # by the user, who wants to see what there is
            break
    if not fits:
        raise NumericalError(f"choose: found no model that could be fitted ({failures}); wanted at least one")
    rows = ranked(densities)
    chosen = next(name for name, row in rows.items() if row["tied"])
    for name in fits:
        lead = densities[chosen] - densities[name]
        rows[name]["mse"] = networks_mse(fits[name], test)
        rows[name] |= {"lead": float(lead.mean()), "lead_se": standard_error(lead)}
    choice = {
        "chosen": chosen,
        "best": best_of(rows),
        "models": {name: rows.get(name) for name in models},
        "failures": failures,
        "test_fraction": test_fraction,
        "num_test_cells": test.sizes["cell"],
        "seed": seed,
        "interrupted": interrupted,
    }
    result = fit(models[chosen], data, seed=seed, **options) if refit and not interrupted else fits[chosen]
    result.settings["choice"] = choice
    return result, choice_table(result)


def choice_table(fit: Fit) -> xr.Dataset:
    """The comparison that a fit was chosen by, as `choose` returned it.

    Raises
    ------
    DataError
        If the fit is not from `choose`.
    """
    choice = fit.settings.get("choice")
    if choice is None:
        raise DataError("choice: found none in the settings of the fit; wanted a fit from choose")
    names = list(choice["models"])
    columns: dict[str, Any] = {}
    for key in COLUMNS:
        columns[key] = ("model", numbers(choice["models"], key))
    columns["tied"] = ("model", np.array([bool((choice["models"][name] or {}).get("tied")) for name in names]))
    about = {key: choice[key] for key in ("chosen", "best", "num_test_cells", "seed")}
    return xr.Dataset(columns, {"model": names}, {**about, "rule": RULE, "interrupted": int(choice["interrupted"])})


def _check(models: Mapping[str, Any]) -> None:
    if not isinstance(models, Mapping) or len(models) < 2:
        raise DataError(
            f"models: found {len(models)} in a {type(models).__name__}; wanted a dict of at least two, by name"
        )
    for name, model in models.items():
        if not any(isinstance(model, kind) for kind in PLANS):
            raise SchemaError(f"models[{name!r}]: found {type(model).__name__}; wanted a model of this suite")
        check_densities(f"models[{name!r}]", model)
