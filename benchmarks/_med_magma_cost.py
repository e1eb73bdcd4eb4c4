"""Time of a fit beside the published algorithm and the published package GmGM, in one run."""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from _front import ALONE, Peer
from _med_magma_synthetic import fitted, precisions, published, simulated
from _tables import Row, Tables

from embergraph import baselines, matrices
from embergraph.models.parts.graph_priors import SpectralGraph

SCRIPT = Path(__file__).with_name("_med_magma_peer.py")
PEER = Peer(
    "GmGM", "GmGM", "In an environment of its own: pip install GmGM==0.5.7; then --peer PATH/bin/python."
)  # fmt: skip
LONG = 5.0  # seconds beyond which one repeat is enough

Method = Callable[[xr.Dataset], xr.Dataset]


def cost(options: argparse.Namespace) -> Tables:
    """Best of some repeats after a first call; one matrix, tree, random signs, noise 1, seed 0."""
    tables: Tables = {}
    with_peer = PEER.is_there(options.peer)
    for size in options.sizes:
        data = simulated(size=size, m=1, signs="random", graph="ba1", seed=0, noise=1.0)
        rows = [timed(name, method, data, options.repeats) for name, method in methods().items()]
        if with_peer:
            rows += peer_rows(options, data)
        seconds = {row["method"]: row["seconds"] for row in rows}
        for row in rows:
            row["times ours"] = f"{row['seconds'] / seconds['ours']:.3g}"
            row["times ours, spectral"] = f"{row['seconds'] / seconds['ours, spectral']:.3g}"
        tables[f"Seconds a fit, best of {options.repeats} (of 1 above {LONG:g} s), {size}"] = rows
    return tables


def methods() -> dict[str, Method]:
    return {
        "ours": lambda data: fitted(data).graphs(),
        "ours, spectral": lambda data: spectral(data).graphs(),
        "ours, spectral, shrink .9": lambda data: spectral(data, 0.9).graphs(),
        "scaling": baselines.RowColumnScaling().fit,
        "GmGM on T(D), our baseline": baselines.GmGM(invariant=True).fit,
        "published algorithm": published,
    }


def spectral(data: xr.Dataset, shrink: float | str = "auto", **options: Any) -> Any:
    return fitted(data, cell_graph=SpectralGraph(shrink), gene_graph=SpectralGraph(shrink), **options)


def timed(name: str, method: Method, data: xr.Dataset, repeats: int) -> Row:
    start = time.perf_counter()
    found = method(data)
    seconds = [time.perf_counter() - start]
    if seconds[0] < LONG:
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            method(data)
            seconds.append(time.perf_counter() - start)
    return described(name, seconds, found, data)


def described(name: str, seconds: list[float], found: xr.Dataset, data: xr.Dataset) -> Row:
    cell, gene = precisions(found, data)
    row = {"method": name, "seconds": min(seconds), "slowest": max(seconds), "AP cells": cell, "AP genes": gene}
    print(row, flush=True)
    return row


def peer_rows(options: argparse.Namespace, data: xr.Dataset) -> list[Row]:
    """GmGM in its own environment: it loops and reports its own times, compilation left out."""
    rows = []
    for name, expression in (("D", data["expression"]), ("T(D)", matrices.quotient(data["expression"]))):
        with tempfile.TemporaryDirectory() as folder:
            matrix, out = Path(folder, "matrix.npy"), Path(folder, "out.npz")
            np.save(matrix, expression.values)
            command = [options.peer, "-W", "ignore", SCRIPT, matrix, options.repeats, out]
            said = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, env=ALONE)
            report = json.loads(said.stdout)
            with np.load(out) as stored:
                found = xr.Dataset({f"{a}_score": ((a, f"{a}_other"), stored[a]) for a in ("cell", "gene")})
        versions = ", ".join(f"{key} {value}" for key, value in report["versions"].items())
        rows.append(described(f"GmGM on {name} ({versions})", report["seconds"], found, data))
    return rows
