"""Time and peak memory of one run as cells grow: each in a process of its own, on cells simulated in another one.

These processes run this file: ``simulate CELLS GENES FILE`` or ``fit FILE LATENTS``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from _environment_vae_scores import latent_row
from _tables import Row, Tables, in_process, peak_mib

import embergraph as eg
from embergraph.models import EnvironmentVAE

NUM_PERTURBATIONS = 100


def large(options: argparse.Namespace) -> Tables:
    """Cells by the hundred thousand: one default run, with its time and the memory that it takes beside the data."""
    rows = []
    for cells in options.cells:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "cells.npz")
            what = {"cells": cells, "genes": options.genes}
            made = {**what, "latents": options.latents, "steps": options.steps}
            rows.append({**what, **options.results.get(made, lambda m=made, f=file: measured(m, f))})
    return {"One run of the default in a process of its own": rows}


def measured(made: Row, file: Path) -> Row:
    in_process(__file__, "simulate", made["cells"], made["genes"], file)
    said = in_process(__file__, "fit", file, made["latents"], made["steps"] or 0)
    return json.loads(said.splitlines()[-1])


def simulate(cells: int, genes: int, file: Path) -> None:
    """Counts in single precision, with the truth."""
    data = eg.datasets.simulated_perturbations(
        0, num_perturbations=NUM_PERTURBATIONS, num_cells=cells // NUM_PERTURBATIONS, num_genes=genes
    )
    values = {name: data[name].values for name in ("environment", "true_z", "true_targets", "condition")}
    np.savez(file, expression=data["expression"].values.astype(np.float32), **values)


def fit(file: Path, num_latents: int, num_steps: int) -> Row:
    """One default run; peak memory above what was there with the data loaded."""
    with np.load(file) as stored:
        data = xr.Dataset(
            {
                "expression": (("cell", "gene"), stored["expression"]),
                "environment": ("cell", stored["environment"]),
                "true_z": (("cell", "true_latent"), stored["true_z"]),
                "true_targets": (("condition", "true_latent"), stored["true_targets"]),
            },
            {"condition": stored["condition"].astype(str)},
        )
    small = data.isel(cell=slice(None, None, data.sizes["cell"] // 200))
    run(small, num_latents, num_steps=20)  # loads what the first fit loads
    before = peak_mib()
    start, busy = time.perf_counter(), time.process_time()
    fitted = run(data, num_latents, **({"num_steps": num_steps} if num_steps else {}))
    seconds, busy, after = time.perf_counter() - start, time.process_time() - busy, peak_mib()
    size = data["expression"].values.nbytes / 2**20
    steps = fitted.settings["steps_done"]
    scores = latent_row(fitted, data)
    return {
        "steps": steps,
        "seconds": seconds,
        "CPU seconds": busy,
        "CPU ms a step": 1000 * busy / steps,
        "counts, MiB": size,
        "before, MiB": before,
        "peak of fit, MiB": after,
        "peak above data, MiB": after - before,
        **{name: scores[name] for name in ("MCC", "F1", "calibration error")},
        "threads": torch.get_num_threads(),
    }


def run(data: xr.Dataset, num_latents: int, **options: int) -> eg.EnvironmentVAEFit:
    return eg.fit(EnvironmentVAE.for_data(data, num_latents), data, progress=False, **options)


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "simulate":
        simulate(int(rest[0]), int(rest[1]), Path(rest[2]))
    else:
        print(json.dumps(fit(Path(rest[0]), int(rest[1]), int(rest[2]))))
