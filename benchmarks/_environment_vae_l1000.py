"""Compounds that were not seen: the plate of L1000 predicted from fingerprints and doses alone."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from _environment_vae_data import CONTROL, L1000, SOURCE, held_out_compounds, l1000, treated
from _environment_vae_peers import TanimotoDoseProcess
from _front import has_files, is_installed
from _tables import Row, Tables

import embergraph as eg
from embergraph import baselines
from embergraph.inference.schedules import Schedule
from embergraph.models import EnvironmentVAE
from embergraph.models.parts.likelihoods import GaussianLikelihood

NUM_LATENTS = 20
CHECKPOINTS = 20
MODELS: dict[str, dict[str, Any]] = {
    "Environment VAE, linear decoder": {},
    "the same, without fingerprints": {"fingerprints": False},
    "the same, d 5": {"num_latents": 5},
    "the same, MLP decoder": {"decoder": "mlp"},
}
"""Options of `environment_vae` by name."""
REFERENCES = ("mean activation", "per-dose mean")


def compounds(options: argparse.Namespace) -> Tables:
    """Squared error per gene of wells of held-out compounds, and how it changes while the model is trained."""
    if not (is_installed("pandas", "pip install pandas") and has_files(options.data, L1000, SOURCE)):
        return {}
    results, plate = options.results, l1000(options.data)
    splits = [held_out_compounds(plate, seed) for seed in options.splits]
    errors: dict[str, list[Row]] = {}
    models = {name: by_model(options.steps, **made) for name, made in MODELS.items()}
    for name, predict in {**PREDICTORS, **models}.items():
        errors[name] = [
            results.get({"model": name, "split": seed}, partial(error, predict, *split, seed))
            for seed, split in zip(options.splits, splits, strict=True)
        ]
    courses = []
    for name in ("Environment VAE, linear decoder", "the same, MLP decoder"):
        curve = partial(course, steps=options.steps, **MODELS[name])
        found = [
            results.get({"course of": name, "split": seed}, partial(curve, *split, seed))
            for seed, split in zip(options.splits, splits, strict=True)
        ]
        courses.append({"model": name, **course_row(found)})
    which = f"splits {options.splits[0]} to {options.splits[-1]}"
    return {
        f"Squared error per gene of {len(options.splits)} x 10 held-out compounds, mean over {which}": table(errors),
        f"Held-out error while training, last value above the smallest of {CHECKPOINTS}": courses,
    }


Predictor = Callable[[xr.Dataset, xr.Dataset, int], xr.DataArray]
"""Means of test wells (cell, gene) from training wells, test wells without their expression, and a seed."""
PREDICTORS: dict[str, Predictor] = {
    "DMSO mean": lambda train, test, seed: xr.zeros_like(test["expression"]),
    "mean activation": lambda train, test, seed: baselines.MeanActivation().fit(treated(train)).predict_mean(test),
    "per-dose mean": lambda train, test, seed: (
        baselines.EnvironmentMean("log_dose").fit(treated(train)).predict_mean(test)
    ),
    "Gaussian process, Tanimoto x dose": lambda train, test, seed: (
        TanimotoDoseProcess().fit(treated(train)).predict_mean(test)
    ),
}


def by_model(steps: int | None, **made: Any) -> Predictor:
    """Fit by the plan of the library and predict the environments of test wells."""

    def predict(train: xr.Dataset, test: xr.Dataset, seed: int) -> xr.DataArray:
        model, train, test = environment_vae(train, test, seed, **made)
        return predicted(eg.fit(model, train, seed=seed, num_steps=steps, progress=False), test)

    return predict


def environment_vae(
    train: xr.Dataset,
    test: xr.Dataset,
    seed: int,
    *,
    num_latents: int = NUM_LATENTS,
    fingerprints: bool = True,
    decoder: str = "linear",
) -> tuple[EnvironmentVAE, xr.Dataset, xr.Dataset]:
    """A model whose shifts are a network of descriptors, and the data with the descriptors that it sees."""
    if not fingerprints:
        train, test = (data.sel(feature=["log_dose"]) for data in (train, test))
    model = EnvironmentVAE.for_data(
        train,
        num_latents,
        environment_prior="descriptors",
        control=CONTROL,
        decoder=decoder,
        likelihood=GaussianLikelihood(train.sizes["gene"], scale="gene"),
        seed=seed,
    )
    return model, train, test


def predicted(fit: eg.EnvironmentVAEFit, test: xr.Dataset) -> xr.DataArray:
    """Means of test wells from the descriptors of their environments."""
    codes, wells = np.unique(test["environment"].values, return_inverse=True)
    found = fit.new_environments(test["descriptors"].isel(condition=codes))
    return found["mean"].isel(condition=xr.DataArray(wells, dims="cell"))


def error(predict: Predictor, train: xr.Dataset, test: xr.Dataset, seed: int) -> Row:
    """Mean squared error per gene, in units of the training variance of the gene, and CPU seconds."""
    start = time.process_time()
    found = predict(train, test.assign(expression=xr.full_like(test["expression"], np.nan)), seed)
    return {"error": squared_error(found, test), "CPU seconds": time.process_time() - start}


def squared_error(found: xr.DataArray, test: xr.Dataset) -> float:
    values = found.transpose("cell", "gene").values
    return float(np.mean((values - test["expression"].values) ** 2))


@dataclass(frozen=True)
class Beginning:
    """The first `share` of a schedule: what a run of many steps sees in its first part."""

    schedule: Schedule
    share: float

    def __call__(self, done: float) -> float:
        return self.schedule(done * self.share)


def course(train: xr.Dataset, test: xr.Dataset, seed: int, *, steps: int | None, **made: Any) -> Row:
    """Held-out errors at checkpoints of one run; its parts are those of an uninterrupted one, schedules and all."""
    model, train, test = environment_vae(train, test, seed, **made)
    whole = eg.fit(model, train, seed=seed, num_steps=steps, progress=False)
    total, options = int(whole.settings["num_steps"]), whole.training["options"]
    part, errors = eg.fit(model, train, seed=seed, progress=False, num_steps=1), []
    for begin, end in pairwise([1, *np.linspace(0, total, CHECKPOINTS + 1)[1:].round().astype(int).tolist()]):
        schedules = {name: Beginning(schedule, end / total) for name, schedule in options.schedules.items()}
        part = part.resume(train, end - begin, progress=False, options=replace(options, schedules=schedules))
        errors.append(squared_error(predicted(part, test), test))
    apart = np.max(np.abs(np.subtract(part.history[0], whole.history[0])) / np.abs(whole.history[0]))
    return {"steps": total, "errors": errors, "apart": float(apart)}


def course_row(found: Sequence[Row]) -> Row:
    curve = np.mean([row["errors"] for row in found], axis=0)
    excess = [100 * (row["errors"][-1] / min(row["errors"]) - 1) for row in found]
    smallest = [(int(np.argmin(row["errors"])) + 1) / CHECKPOINTS for row in found]
    return {
        "steps": found[0]["steps"],
        "mean of last": float(np.mean([row["errors"][-1] for row in found])),
        "excess %, mean": float(np.mean(excess)),
        "excess %, largest": float(np.max(excess)),
        "excess %, mean curve": float(100 * (curve[-1] / curve.min() - 1)),
        "smallest at share of steps, median": float(np.median(smallest)),
        "losses apart from an uninterrupted run, largest share": f"{max(row['apart'] for row in found):.0e}",
    }


def table(errors: dict[str, list[Row]]) -> list[Row]:
    """Means over splits, and in how many a predictor is better than the references."""
    values = {name: np.array([row["error"] for row in rows]) for name, rows in errors.items()}
    rows = []
    for name, found in values.items():
        row: Row = {"model": name, "error": float(found.mean())}
        row["of mean activation"] = float((found / values["mean activation"]).mean())
        row |= {f"better than {other}": int((found < values[other]).sum()) for other in REFERENCES}
        row["better than Gaussian process"] = int((found < values["Gaussian process, Tanimoto x dose"]).sum())
        row["CPU seconds"] = float(np.mean([one["CPU seconds"] for one in errors[name]]))
        rows.append(row)
    return rows
