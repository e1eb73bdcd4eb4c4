"""NOTMAD against its published successor, contextualized-ml, on the same cells in the same run.

The peer runs in a process of its own, by the Python given with `--peer`, through its documented interface: 10 epochs,
batches of 8 cells, once with its defaults and once with strong NOTEARS penalties, which its documentation names. Its
time is fit plus networks of the test cells projected to DAGs; ours is fit, posterior included, plus networks of the
test cells with intervals. Neither includes imports; both run a small fit first, which is not counted. Everything is
scored after projection: the peer's by its own and by ours. Processor seconds are given as well: they say more on a
busy machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from _front import ALONE, Peer
from _notmad_tables import error_range, gap, plan
from _tables import Row, Tables, over_seeds

import embergraph as eg
from embergraph import metrics

SCORES = ("mse", "aupr", "shd", "relative_weight_error", "deviation_correlation")
PENALTIES = ("default", "strong")
PEER = Peer(
    "contextualized-ml",
    "contextualized.easy",
    "In an environment of its own (it is GPL-3): pip install torch lightning pandas scikit-learn igraph, then pip "
    "install --no-deps contextualized-ml==0.2.9; then --peer PATH/bin/python.",
)


def peer(options: argparse.Namespace) -> Tables:
    """Time ratio and recovery on simulator C with a shared order; 750 cells to fit, 250 to predict."""
    with_peer = PEER.is_there(options.peer)
    rows = []
    warm_up()
    for seed in options.seeds:
        raw = eg.datasets.simulated_notmad(
            seed, num_cells=options.cells, num_genes=options.genes, num_archetypes=options.archetypes,
            num_covariates=options.covariates,
        )  # fmt: skip
        train, test = eg.split(eg.standardize(raw)[0])
        ours = our_row(options, seed, train, test)
        rows.append(ours)
        print(ours, flush=True)
        for penalty in PENALTIES if with_peer else ():
            for row in peer_rows(options, seed, train, test, penalty):
                ratios = {"time ratio": row["seconds"] / ours["seconds"], "cpu ratio": row["cpu s"] / ours["cpu s"]}
                rows.append({**row, **ratios})
                print(rows[-1], flush=True)
    medians = []
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = [row for row in rows if row["method"] == method]
        medians += [{**row, "method": method} for row in over_seeds(of_method, "median", np.median)]
    n = options.cells
    title = f"p {options.genes}, n {n - n // 4} + {n // 4}, K {options.archetypes}, m {options.covariates}"
    return {f"Against contextualized-ml, {title}": rows + medians}


def warm_up() -> None:
    """A small fit, so that what torch imports late is in memory."""
    data, _ = eg.standardize(eg.datasets.simulated_notmad(0, num_cells=40, num_genes=3))
    few = {"num_restarts": 1, "num_steps": 5, "num_guide_steps": 5, "num_orders": 1}
    eg.fit(eg.models.NOTMAD.for_data(data, 2), data, posterior="mean_field", progress=False, **few).networks(data)


def our_row(options: argparse.Namespace, seed: int, train: xr.Dataset, test: xr.Dataset) -> Row:
    start, cpu = time.perf_counter(), time.process_time()
    model = eg.models.NOTMAD.for_data(train, options.archetypes)
    fit = eg.fit(model, train, seed=seed, **plan(options, posterior="mean_field"))
    fitted = time.perf_counter()
    networks = fit.networks(test)
    done = time.perf_counter()
    parts = {"seconds": done - start, "fit": fitted - start, "networks": done - fitted}
    parts["cpu s"] = time.process_time() - cpu
    return {"seed": seed, "method": "NOTMAD, mean field", **parts, **scored(networks, train, test)}


def peer_rows(options: argparse.Namespace, seed: int, train: xr.Dataset, test: xr.Dataset, penalty: str) -> list[Row]:
    """One row for each of the two projections."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "given.npz"), Path(folder, "found.npz")
        np.savez(
            given, covariates=train["covariates"], expression=train["expression"], new_covariates=test["covariates"]
        )
        script = Path(__file__).with_name("_notmad_peer_run.py")
        command = [options.peer, script, given, found, options.archetypes, 1 if options.quick else 10, 8, penalty]
        said = subprocess.run(
            list(map(str, command)), check=True, capture_output=True, text=True, env=ALONE, cwd=folder
        )
        arrays = dict(np.load(found))
    about = json.loads(said.stdout.strip().splitlines()[-1])
    peers = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    seconds = {"seconds": about["fit"] + about["networks"], "fit": about["fit"], "networks": about["networks"]}
    seconds["cpu s"] = about["cpu"]
    networks = {"own": arrays["projected"], "our": eg.project(torch.as_tensor(arrays["raw"])).networks.numpy()}
    rows = []
    for name, matrices in networks.items():
        dataset = test["true_networks"].rename("network").copy(data=matrices).to_dataset()
        dataset["intercept"] = xr.zeros_like(test["expression"])
        dataset["sigma"] = xr.ones_like(test["gene"], dtype=float)
        method = f"contextualized-ml, {penalty}, {name} projection"
        rows.append({"seed": seed, "method": method, "versions": peers, **seconds, **scored(dataset, train, test)})
    return rows


def scored(networks: xr.Dataset, train: xr.Dataset, test: xr.Dataset) -> Row:
    scores = metrics.evaluate(networks, test)
    reached = gap(scores["mse"], *error_range(train, test))
    return {**{key: float(scores[key]) for key in SCORES}, "gap": reached}
