"""Time and peak memory as genes and cells grow; every fit in a process of its own, on cells simulated in another one.

These processes run this file: ``simulate SETTINGS.json FILE.npz`` or ``fit SETTINGS.json FILE.npz``. Truth is simulator
C with a shared order, of which only archetypes and weights are kept: networks of all cells would take 48 GB at the
largest size. Peak memory is that of the process, some 0.4 GB of it for Python and its packages.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from _notmad_tables import gap, plan, truth
from _tables import Row, Tables, in_process, peak_mib

import embergraph as eg
from embergraph import metrics
from embergraph.datasets.simulated import _archetypes, _mixture

SCORED_CELLS = 100
CELLS_AT_A_TIME = 10
SCORES = ("aupr", "shd", "relative_weight_error", "deviation_correlation")
LARGE: Row = {"archetypes": 8, "covariates": 12}
"""Of the largest data set of the paper, which has 9715 cells of 784 genes."""


def growth(options: argparse.Namespace) -> Tables:
    """Cells 1e3 and 1e4 for 10, 50 and 200 genes, K 3; time and memory relative to the smallest."""
    rows: list[Row] = []
    how = plan(options, posterior="mean_field")
    for seed, cells, genes in itertools.product(options.seeds, options.cells, options.genes):
        size = {"genes": genes, "cells": cells, "archetypes": 3, "covariates": options.covariates}
        what = {**size, "seed": seed}
        row = {"seed": seed, **options.results.get(what, lambda w=size, s=seed: measured(w, s, how, 100))}
        first = rows[0] if rows else row
        row["time ratio"] = (row["fit s"] + row["networks s"]) / (first["fit s"] + first["networks s"])
        row["memory ratio"] = row["peak GB"] / first["peak GB"]
        rows.append(row)
    return {"Growth, mean field": rows}


def large(options: argparse.Namespace) -> Tables:
    """The paper's largest size, float32, one order, networks from 32 draws."""
    how = plan(options, posterior="mean_field", num_restarts=1, num_orders=1, num_steps=200, num_guide_steps=100)
    size = {"genes": options.genes, "cells": options.cells, **LARGE}
    rows: list[Row] = []
    for seed in options.seeds:
        what = {"large": size, "seed": seed}
        row = options.results.get(what, lambda s=seed: measured(size, s, how, 32, single=True))
        rows.append({"seed": seed, **row})
    return {"Large": rows}


def measured(size: Row, seed: int, how: dict[str, Any], num_samples: int, single: bool = False) -> Row:
    """Simulate and fit one size, each in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        settings, cells = Path(folder, "settings.json"), Path(folder, "cells.npz")
        about = {"size": size, "seed": seed, "plan": how, "num_samples": num_samples, "single": single}
        settings.write_text(json.dumps(about))
        in_process(__file__, "simulate", settings, cells)
        said = in_process(__file__, "fit", settings, cells)
    return {**size, **json.loads(said.splitlines()[-1])}


def simulate(about: Row, file: Path) -> None:
    """Gene after gene in their order, so that no network of a cell is ever built."""
    size, rng = about["size"], np.random.default_rng(about["seed"])
    covariates = rng.uniform(-1.0, 1.0, size=(size["cells"], size["covariates"]))
    mixture = _mixture(rng, covariates, size["archetypes"], 0.5, False)
    archetypes = _archetypes(rng, size["archetypes"], size["genes"], "shared")
    expression = rng.normal(size=(size["cells"], size["genes"]))
    for gene in first_to_last(archetypes):
        regulators = np.flatnonzero(archetypes[:, :, gene].any(0))
        effects = mixture @ archetypes[:, regulators, gene]  # (cell, regulator)
        expression[:, gene] += (expression[:, regulators] * effects).sum(1)
    np.savez(file, covariates=covariates, mixture=mixture, archetypes=archetypes, expression=expression)


def first_to_last(archetypes: np.ndarray) -> list[int]:
    waiting = (archetypes != 0).any(0).astype(int)
    order: list[int] = []
    left = set(range(len(waiting)))
    while left:
        ready = sorted(gene for gene in left if not waiting[list(left), gene].any())
        order += ready
        left -= set(ready)
    return order


def fit(about: Row, file: Path) -> Row:
    """Time of fit and networks, peak memory, and scores on some test cells."""
    arrays = dict(np.load(file))
    dtype = np.float32 if about["single"] else np.float64
    data, _ = eg.standardize(eg.from_arrays(arrays["expression"].astype(dtype), arrays["covariates"]))
    data = data.astype(dtype).assign(mixture=(("cell", "archetype"), arrays["mixture"]))
    train, test = eg.split(data)
    start = time.perf_counter()
    model = eg.models.NOTMAD.for_data(train.drop_vars("mixture"), about["size"]["archetypes"])
    found = eg.fit(model, train.drop_vars("mixture"), seed=about["seed"], **about["plan"])
    fitted = time.perf_counter() - start
    scored = min(SCORED_CELLS, test.sizes["cell"])
    few = test.isel(cell=np.linspace(0, test.sizes["cell"] - 1, scored).astype(int))
    scores, seconds = [], 0.0
    for first in range(0, scored, CELLS_AT_A_TIME):
        part = few.isel(cell=slice(first, first + CELLS_AT_A_TIME))
        start = time.perf_counter()
        networks = found.networks(part, num_samples=about["num_samples"])
        seconds += time.perf_counter() - start
        scores.append(scores_of(networks, part, arrays["archetypes"]))
    mean = {key: float(np.mean([score[key] for score in scores])) for key in scores[0]}
    zero, floor = mean.pop("zero"), mean.pop("floor")
    row = {"fit s": fitted, "networks s": seconds, "peak GB": peak_mib() * 1.024e-3}
    row["gap"] = gap(mean["mse"], zero, floor)
    return {**row, **mean, "search": found.settings.get("search", "")}


def scores_of(networks: xr.Dataset, cells: xr.Dataset, archetypes: np.ndarray) -> Row:
    true = np.einsum("nk,kab->nab", cells["mixture"].values, archetypes)
    data = cells.drop_vars("mixture").assign(true_networks=(("cell", "regulator", "target"), true))
    data = data.assign_coords(regulator=networks["regulator"].values, target=networks["target"].values)
    found = metrics.evaluate(networks, data)
    oracle = truth(data)
    empty = oracle.assign(network=xr.zeros_like(oracle["network"]))
    errors = {
        "mse": found["mse"],
        "zero": metrics.held_out_mse(empty, data),
        "floor": metrics.held_out_mse(oracle, data),
    }
    return {**errors, **{key: float(found[key]) for key in SCORES}}


if __name__ == "__main__":
    arguments = json.loads(Path(sys.argv[2]).read_text())
    if sys.argv[1] == "simulate":
        simulate(arguments, Path(sys.argv[3]))
    else:
        print(json.dumps(fit(arguments, Path(sys.argv[3]))))
