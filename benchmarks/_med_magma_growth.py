"""Time and peak memory as axes grow; every fit in a process of its own, on matrices simulated in another one.

These processes run this file: ``simulate SIZE FILE`` or ``fit METHOD FILE STEPS``.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from _med_magma_tables import Row, Tables

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
            file = simulated_file(size, folder)
            for method in METHODS:
                if not method.startswith("sparse") or size <= options.sparse_up_to:
                    rows.append(in_process(method, size, file, 60))
    return {"Growth": rows}


def large(options: argparse.Namespace) -> Tables:
    """One large matrix, spectral graphs, mean field, a few sweeps."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        file = simulated_file(options.size, folder)
        print(f"simulated in {time.perf_counter() - start:.0f} s", flush=True)
        return {"Large": [in_process("spectral, mean field", options.size, file, options.steps)]}


def simulated_file(size: int, folder: str) -> Path:
    file = Path(folder, f"{size}.npz")
    subprocess.run([sys.executable, __file__, "simulate", str(size), str(file)], check=True)
    return file


def in_process(method: str, size: int, file: Path, steps: int) -> Row:
    command = [sys.executable, __file__, "fit", method, str(file), str(steps)]
    finished = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    row: Row = {"method": method, "size": f"{size} x {size}"}
    if finished.returncode:
        row["seconds"] = f"failed, exit {finished.returncode}"
    else:
        row |= json.loads(finished.stdout.splitlines()[-1])
    print(row, flush=True)
    return row


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
    before, size = peak(), data.sizes["cell"]
    start, busy = time.perf_counter(), time.process_time()
    fitted = run(method, data, steps)
    seconds, busy, after_fit = time.perf_counter() - start, time.process_time() - busy, peak()
    graphs = fitted.graphs()
    total, after_graphs = time.perf_counter() - start, peak()
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


def peak() -> float:
    """Largest resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "simulate":
        simulate(int(rest[0]), Path(rest[1]))
    else:
        print(json.dumps({**fit(rest[0], Path(rest[1]), int(rest[2])), "threads": torch.get_num_threads()}))
