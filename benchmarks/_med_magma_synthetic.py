"""Simulated matrices: average precision of every method, paired gains over row and column scaling, invariance."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import xarray as xr
from _med_magma_tables import GRAPHS, SIZES, both, gain, mean_of
from _tables import Results, Row, Tables, standard_error

import embergraph as eg
from embergraph import baselines, matrices
from embergraph.guides.parts.published import published_em
from embergraph.models.parts.graph_priors import SparseGraph
from embergraph.undirected_scores import average_precision

PUBLISHED_STEPS, PUBLISHED_TOLERANCE = 100, 1e-7
NOISY: dict[str, baselines.MatrixBaseline] = {"single axis": baselines.SingleAxis(), "GmGM": baselines.GmGM()}
INVARIANT: dict[str, baselines.MatrixBaseline] = {
    "GmGM on T(D)": baselines.GmGM(invariant=True),
    "strong product": baselines.StrongProduct(),
    "scaling": baselines.RowColumnScaling(),
}
RIVALS = ("GmGM on T(D)", "strong product", "published", "ours", "ours, probability", "ours, degrees known")


def synthetic(options: argparse.Namespace) -> Tables:
    """Average precision over sizes, numbers of matrices, signs of edges, graphs and seeds."""
    results = options.results
    levels, gains, losses, invariance = [], [], [], []
    settings = itertools.product(options.sizes, options.matrices, options.signs, options.graphs)
    for size, m, signs, graph in settings:
        what = {"size": size, "m": m, "signs": signs, "graph": graph}
        scores = [one_seed(results, {**what, "seed": seed}, options) for seed in options.seeds]
        levels.append({**what, **level_cells(scores)})
        gains.append({**what, **gain_cells(scores)})
        losses += [{**what, **row} for row in losses_in(scores)]
        if m in options.invariance and signs == options.signs[-1]:
            checked = {**what, "seed": options.seeds[0], "method": "invariance", "noise": options.noise}
            invariance.append({**what, **results.get(checked, lambda w=checked: differences(w))})
    seeds = f"seeds {options.seeds[0]} to {options.seeds[-1]}"
    tables = {
        f"Average precision, cells / genes, mean over {seeds}": levels,
        f"Gains over scaling on the same matrices ± standard error, {seeds}; noise does not matter": gains,
    }
    if invariance:
        tables[f"Largest difference between noise {options.noise} (one seed)"] = invariance
    return {**tables, "Where ours is below scaling by more than two standard errors": losses or [{"size": "nowhere"}]}


def one_seed(results: Results, what: Row, options: argparse.Namespace) -> dict[str, list[float]]:
    """Average precisions of all methods on one simulated data set."""
    found: dict[str, list[float]] = {}
    for name, baseline in NOISY.items():
        for noise in options.noise:
            found |= measured(results, what, name, noise, {f"{name}, noise {noise:g}": baseline.fit})
    for name, baseline in INVARIANT.items():
        found |= measured(results, what, name, 1.0, {name: baseline.fit})
    if what["m"] == 1 and options.seeds.index(what["seed"]) < options.published:
        found |= measured(results, what, "published", 1.0, {"published": published})
    found |= measured(results, what, "ours", 1.0, our_scores)
    if what["m"] in options.degrees:
        found |= measured(results, what, "ours, degrees known", 1.0, {"ours, degrees known": with_degrees})
    return found


Method = Callable[[xr.Dataset], xr.Dataset]


def measured(
    results: Results,
    what: Row,
    method: str,
    noise: float,
    how: dict[str, Method] | Callable[[xr.Dataset], dict[str, xr.Dataset]],
) -> dict[str, list[float]]:
    """Average precision of cells and genes by the names of `how`."""

    def run() -> Row:
        data = simulated(noise=noise, **what)
        start = time.perf_counter()
        graphs = how(data) if callable(how) else {name: fit(data) for name, fit in how.items()}
        seconds = time.perf_counter() - start
        return {**{name: list(precisions(found, data)) for name, found in graphs.items()}, "seconds": seconds}

    row = results.get({**what, "method": method, "noise": noise}, run)
    return {name: value for name, value in row.items() if name != "seconds"}


@lru_cache(maxsize=1)
def simulated(*, size: str, m: int, signs: Any, graph: str, seed: int, noise: float) -> xr.Dataset:
    n, p = SIZES[size]
    replicates = None if m == 1 else m
    return eg.datasets.simulated_matrix(
        n, p, num_replicates=replicates, signs=signs, noise=noise, seed=seed, **GRAPHS[graph]
    )


def precisions(found: xr.Dataset, data: xr.Dataset) -> Iterable[float]:
    for axis in ("cell", "gene"):
        yield average_precision(found[f"{axis}_score"], data[f"true_{axis}_precision"])


def fitted(data: xr.Dataset, **model: Any) -> eg.MEDMAGMAFit:
    return eg.fit(eg.models.MEDMAGMA.for_data(data, **model), data, progress=False)


def our_scores(data: xr.Dataset) -> dict[str, xr.Dataset]:
    """One fit, two scores."""
    fit = fitted(data)
    return {"ours": fit.graphs(), "ours, probability": fit.graphs(score="probability")}


def with_degrees(data: xr.Dataset) -> xr.Dataset:
    """Ours told how many neighbours every node has; half a neighbour for those without."""
    graphs = {}
    for axis in ("cell", "gene"):
        degrees = (data[f"true_{axis}_precision"].values != 0).sum(1) - 1
        graphs[f"{axis}_graph"] = SparseGraph(propensity=torch.as_tensor(np.maximum(degrees, 0.5)))
    return fitted(data, **graphs).graphs()


def published(data: xr.Dataset) -> xr.Dataset:
    """The published estimator with the settings of its simulations."""
    scaled = torch.as_tensor(matrices.published_quotient(data["expression"]).values)
    found = published_em(scaled, max_iter=PUBLISHED_STEPS, stop_tol=PUBLISHED_TOLERANCE)
    cell, gene = found.row_precision.abs().numpy(), found.col_precision.abs().numpy()
    return xr.Dataset({"cell_score": (("cell", "cell_other"), cell), "gene_score": (("gene", "gene_other"), gene)})


def differences(what: Row) -> Row:
    """How far scores and probabilities differ between levels of noise on the same X."""
    graphs = []
    for noise in what["noise"]:
        data = simulated(**{k: v for k, v in what.items() if k not in ("method", "noise")}, noise=noise)
        graphs.append(fitted(data).graphs())
    first, *rest = graphs
    names = ("cell_score", "gene_score", "cell_edge_probability", "gene_edge_probability")
    largest = {
        name: max((float(np.abs(other[name] - first[name]).max()) for other in rest), default=0.0) for name in names
    }
    return {name: f"{value:.1e}" for name, value in largest.items()}


def level_cells(scores: list[dict[str, list[float]]]) -> Row:
    return {
        name: both(*(mean_of([one[name][axis] for one in scores if name in one]) for axis in (0, 1)))
        for name in dict.fromkeys(name for one in scores for name in one)
    }


def gain_cells(scores: list[dict[str, list[float]]]) -> Row:
    """Paired gains; methods that ran on fewer seeds are compared on those."""
    row = {}
    for name in RIVALS:
        pairs = [one for one in scores if name in one]
        if pairs:
            row[name] = both(*(gain([one[name][axis] - one["scaling"][axis] for one in pairs]) for axis in (0, 1)))
    return row


def losses_in(scores: list[dict[str, list[float]]]) -> list[Row]:
    """Axes on which ours, with the default score, is below scaling beyond noise."""
    found: list[Row] = []
    for axis, name in enumerate(("cell", "gene")):
        differences = [one["ours"][axis] - one["scaling"][axis] for one in scores]
        if len(differences) > 1 and np.mean(differences) < -2 * standard_error(differences):
            found.append({"axis": name, "gain": f"{np.mean(differences):+.5f}±{standard_error(differences):.5f}"})
    return found
