"""Time and peak memory as axes grow; every fit in a process of its own, on matrices simulated in another one.

These processes run this file: ``simulate SIZE FILE`` or ``fit METHOD FILE STEPS``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from _tables import Row, Tables, in_process, peak_mib

import embergraph as eg
from embergraph.models.parts.graph_priors import SpectralGraph
from embergraph.undirected_scores import average_precision

SHRINK = 0.9
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sparse": ({}, {}),
    "spectral, mean field": (
        {"cell_graph": SpectralGraph(SHRINK), "gene_graph": SpectralGraph(SHRINK)},
        {"e_step": "mean_field"},
    ),
}


def growth(options: argparse.Namespace) -> Tables:
    """Time and peak memory of a fit from 50 to 2000 per axis (tree, random signs, noise 1, seed 0)."""
    rows = []
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"{size}.npz")
            for method in METHODS:
                if not method.startswith("sparse") or size <= options.sparse_up_to:
                    rows.append(measured(options, method, size, file, 60))
    return {"Growth": rows}


def large(options: argparse.Namespace) -> Tables:
    """One large matrix, spectral graphs, mean field, a few sweeps."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "large.npz")
        return {"Large": [measured(options, "spectral, mean field", options.size, file, options.steps)]}


def measured(options: argparse.Namespace, method: str, size: int, file: Path, steps: int) -> Row:
    """One fit, or why there is none (memory, say)."""

    def run_it() -> Row:
        if not file.exists():
            in_process(__file__, "simulate", size, file)
        try:
            return json.loads(in_process(__file__, "fit", method, file, steps).splitlines()[-1])
        except subprocess.CalledProcessError as error:
            return {"seconds": f"failed, exit {error.returncode}"}

    what = {"method": method, "size": f"{size} x {size}"}
    return {**what, **options.results.get({**what, "steps": steps}, run_it)}


def simulate(size: int, file: Path) -> None:
    """Write a matrix and the pairs that are edges."""
    data = eg.datasets.simulated_matrix(size, size, graph="tree", seed=0)
    edges = {axis: np.argwhere(np.triu(data[f"true_{axis}_precision"].values, 1)) for axis in ("cell", "gene")}
    np.savez(file, expression=data["expression"].values, **edges)


def fit(method: str, file: Path, steps: int) -> Row:
    """Fit, then read the graphs; peak memory after each, above what is there before."""
    with np.load(file) as stored:
        data = xr.Dataset({"expression": (("cell", "gene"), stored["expression"])})
        edges = {axis: stored[axis] for axis in ("cell", "gene")}
    run(method, eg.datasets.simulated_matrix(12, 10), steps).graphs()  # loads what the first fit loads
    before, size = peak_mib(), data.sizes["cell"]
    start, busy = time.perf_counter(), time.process_time()
    fitted = run(method, data, steps)
    seconds, busy, after_fit = time.perf_counter() - start, time.process_time() - busy, peak_mib()
    graphs = fitted.graphs()
    total, after_graphs = time.perf_counter() - start, peak_mib()
    row: Row = {
        "seconds": seconds,
        "CPU seconds": busy,
        "sweeps": fitted.settings["steps_done"],
        "with graphs, seconds": total,
    }
    matrix = 8 * size**2 / 2**20
    row |= {"before, MiB": before, "peak of fit, MiB": after_fit, "peak with graphs, MiB": after_graphs}
    row |= {"n x p matrices in the fit": (after_fit - before) / matrix, "one np x np, MiB": matrix * size**2}
    for axis, pairs in edges.items():
        truth = np.zeros((size, size))
        truth[tuple(pairs.T)] = truth[tuple(pairs.T[::-1])] = 1.0
        row[f"AP {axis}s"] = average_precision(graphs[f"{axis}_score"].values, truth)
    return row


def run(method: str, data: xr.Dataset, steps: int) -> eg.MEDMAGMAFit:
    model_options, fit_options = METHODS[method]
    model = eg.models.MEDMAGMA.for_data(data, **model_options)
    return eg.fit(model, data, num_steps=steps, progress=False, **fit_options)


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "simulate":
        simulate(int(rest[0]), Path(rest[1]))
    else:
        print(json.dumps({**fit(rest[0], Path(rest[1]), int(rest[2])), "threads": torch.get_num_threads()}))
