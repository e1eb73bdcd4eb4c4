"""What takes part in a comparison: fits and baselines, each with its densities of the test cells."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from .baselines.base import Baseline, FittedBaseline
from .baselines.environments import EnvironmentBaseline, FittedEnvironmentBaseline
from .held_out import check_densities, networks_mse
from .inference import Fit
from .inference.diagnostics import posterior_rows
from .inference.query import is_fitted_to, roles_of
from .methods._environment_vae_fit import TEMPLATE_CELLS
from .metrics import cell_log_densities, entry_log_densities, held_out_mse
from .models.med_magma import MEDMAGMA
from .models.parts.errors import DataError, SchemaError
from .validation import listed

BaselineLike = Baseline | FittedBaseline | EnvironmentBaseline | FittedEnvironmentBaseline | xr.DataArray


@dataclass
class Entrant(ABC):
    """A model in a comparison.

    Attributes
    ----------
    name
        What it is called.
    test
        The held-out cells.
    baseline
        Whether it is one.
    """

    name: str
    test: xr.Dataset
    baseline = True

    @abstractmethod
    def log_density(self, num_samples: int | None, seed: int) -> np.ndarray:
        """Log density of every test cell, nats."""

    def mse(self) -> float | None:
        """Mean squared residual, where there are networks."""
        return None

    def entries(self, num_samples: int | None, seed: int, notes: list[str]) -> np.ndarray | None:
        """Mean log density of the entries of every test cell, each given the rest of its cell."""
        return None

    def evidence(self, num_samples: int | None, seed: int, notes: list[str]) -> dict[str, Any]:
        """k-hat and LOO on the training data, mean a cell."""
        return {}


@dataclass
class FitEntrant(Entrant):
    """A fit."""

    fit: Fit
    data: xr.Dataset
    baseline = False

    def log_density(self, num_samples: int | None, seed: int) -> np.ndarray:
        """Log density of every test cell, nats."""
        return np.atleast_1d(self.fit.log_density(self.test, seed=seed, **_draws(num_samples)).values)

    def mse(self) -> float | None:
        """Mean squared residual, where there are networks."""
        return networks_mse(self.fit, self.test)

    def entries(self, num_samples: int | None, seed: int, notes: list[str]) -> np.ndarray | None:
        """Mean log density of the entries of every test cell, where the model defines it."""
        if isinstance(self.fit.model, MEDMAGMA):
            notes.append("entries left out: those of other matrices than the fitted ones are not known")
            return None
        try:
            found = self.fit.entry_log_density(self.test, seed=seed, **_draws(num_samples))
        except SchemaError as error:
            notes.append(f"entries left out: {error}")
            return None
        if "log_density" not in found:
            notes.append("entries left out: there are several observed variables")
            return None
        scores = found["log_density"]
        others = [dim for dim in scores.dims if dim != self.fit.schema.plate]
        if not others:
            notes.append("entries left out: a cell has a single one")
            return None
        return scores.mean(others).values

    def evidence(self, num_samples: int | None, seed: int, notes: list[str]) -> dict[str, Any]:
        """k-hat and LOO on the training data, mean a cell."""
        tree = self.fit.posterior(self.data, num_samples or 1000, predictive=False, prior=False, seed=seed)
        scored = tree["log_likelihood"].to_dataset() if "log_likelihood" in tree.children else xr.Dataset()
        count = next((v.size // (v.sizes["chain"] * v.sizes["draw"]) for v in scored.values()), 0)
        found = posterior_rows(self.fit, tree, with_loo=count > 1)
        if found is None:
            return {"point_estimate": True}
        if "elpd_loo" not in found:
            several = len(scored.data_vars) > 1
            notes.append(f"LOO left out: there {'are several observed variables' if several else 'is one observation'}")
            return found | {"point_estimate": False}
        total = self.data.sizes.get(self.fit.schema.plate, count)
        if count < total:
            notes.append(f"k-hat and LOO are of {count} of the {total} cells")
        return found | {
            "loo": found["elpd_loo"] / count, "loo_se": found["elpd_loo_se"] / count, "point_estimate": False,
        }  # fmt: skip


@dataclass
class NetworkEntrant(Entrant):
    """A baseline that has networks."""

    networks: xr.Dataset

    def log_density(self, num_samples: int | None, seed: int) -> np.ndarray:
        """Gaussian log density of every test cell, nats."""
        return cell_log_densities(self.networks, self.test)

    def mse(self) -> float | None:
        """Mean squared residual."""
        return held_out_mse(self.networks, self.test)

    def entries(self, num_samples: int | None, seed: int, notes: list[str]) -> np.ndarray | None:
        """Mean log density of the entries of every test cell."""
        return entry_log_densities(self.networks, self.test).mean(axis=1)


@dataclass
class DensityEntrant(Entrant):
    """Log densities that are known."""

    densities: np.ndarray

    def log_density(self, num_samples: int | None, seed: int) -> np.ndarray:
        """The given densities."""
        return self.densities


def entrants_of(
    fits: Mapping[str, Fit], baselines: Mapping[str, BaselineLike], data: xr.Dataset, test: xr.Dataset
) -> list[Entrant]:
    """Check everything, and fit the baselines; see `compare`."""
    for what, given in (("fits", fits), ("baselines", baselines)):
        if not isinstance(given, Mapping):
            raise DataError(f"{what}: found {type(given).__name__}; wanted a dict by name")
    for what, cells in (("data", data), ("test", test)):
        if not isinstance(cells, xr.Dataset):
            raise DataError(f"{what}: found {type(cells).__name__}; wanted a Dataset")
    twice = sorted(set(fits) & set(baselines))
    if twice:
        raise DataError(f"baselines: found {twice[0]!r}, which is a fit too; wanted other names")
    if len(fits) + len(baselines) < 2 or not fits:
        raise DataError(
            f"fits: found {len(fits)} beside {len(baselines)} baselines; wanted two models, one of them a fit"
        )
    entrants: list[Entrant] = [_fit(f"fits[{name!r}]", name, fit, data, test) for name, fit in fits.items()]
    _check_kinds(fits, baselines)
    for fit in fits.values():
        _check_apart(fit, data, test)
    return [*entrants, *(_baseline(name, given, data, test) for name, given in baselines.items())]


def _fit(what: str, name: str, fit: Fit, data: xr.Dataset, test: xr.Dataset) -> FitEntrant:
    if not isinstance(fit, Fit):
        raise DataError(f"{what}: found {type(fit).__name__}; wanted a Fit")
    several = isinstance(fit.model, MEDMAGMA) and fit.model.num_replicates is not None and not fit.model.shared_scales
    if not several:
        check_densities(what, fit.model)
    for role, given in (("data", data), ("test", test)):
        try:
            fit.prepared(given)
        except (SchemaError, DataError) as error:
            raise type(error)(f"{what}, {role}: {error}") from error
    dims, sizes, _ = next(spec for key, spec in fit.template.variables.items() if key in fit.schema.observed)
    fitted = dict(zip(dims, sizes, strict=True)).get(fit.schema.plate, 0)
    found = data.sizes.get(fit.schema.plate, fitted)
    if fitted > TEMPLATE_CELLS and fitted != found:  # the templates of some fits keep no more cells than that
        raise DataError(
            f"data: found {found} along {fit.schema.plate!r}; wanted the {fitted} that {what} was fitted to"
        )
    if not is_fitted_to(fit, fit.prepared(data)):
        raise DataError(f"data: found other data than {what} was fitted to; wanted its training data")
    return FitEntrant(name, test, fit, data)


def _check_kinds(fits: Mapping[str, Fit], baselines: Mapping[str, BaselineLike]) -> None:
    discrete = {name: roles_of(fit).discrete for name, fit in fits.items()}
    discrete |= {name: False for name, given in baselines.items() if not isinstance(given, xr.DataArray)}
    if len(set(discrete.values())) > 1:
        counts, real = (next(name for name, kind in discrete.items() if kind == wanted) for wanted in (True, False))
        raise DataError(
            f"{counts!r}, {real!r}: found probabilities of counts and densities of real numbers, which are on "
            "different scales; wanted one of the two"
        )


def _check_apart(fit: Fit, data: xr.Dataset, test: xr.Dataset) -> None:
    """Refuse test cells that were trained on."""
    plate = fit.schema.plate
    if plate not in data.coords or plate not in test.coords:
        return
    place = {label: i for i, label in enumerate(data[plate].values.tolist())}
    pairs = [(place[label], i) for i, label in enumerate(test[plate].values.tolist()) if label in place]
    for name in fit.schema.observed:
        if pairs and name in data and name in test:
            old, new = (given[name].transpose(plate, ...).values for given in (data, test))
            first, second = (np.array(part) for part in zip(*pairs, strict=True))
            same = (old[first] == new[second]).reshape(len(pairs), -1).all(axis=1)
            if same.any():
                labels = test[plate].values[second[same]]
                raise DataError(f"test: found {int(same.sum())} of the training data ({listed(labels)}); wanted others")


def _baseline(name: str, given: BaselineLike, data: xr.Dataset, test: xr.Dataset) -> Entrant:
    if isinstance(given, xr.DataArray):
        if given.ndim != 1 or not np.isfinite(given.values).all():
            raise DataError(
                f"baselines[{name!r}]: found dims {given.dims}, or not finite; wanted one number a test cell"
            )
        return DensityEntrant(name, test, given.values.astype(float))
    fitted = given.fit(data) if isinstance(given, Baseline | EnvironmentBaseline) else given
    if isinstance(fitted, FittedBaseline):
        return NetworkEntrant(name, test, fitted.networks(test))
    if isinstance(fitted, FittedEnvironmentBaseline):
        return DensityEntrant(name, test, fitted.log_density(test).values)
    raise DataError(
        f"baselines[{name!r}]: found {type(given).__name__}; wanted a baseline or densities of the test cells"
    )


def _draws(num_samples: int | None) -> dict[str, int]:
    return {} if num_samples is None else {"num_samples": num_samples}
