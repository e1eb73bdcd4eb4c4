"""Coverage of stated intervals of log scales, and reliability of stated edge probabilities."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import numpy as np
import pyro.distributions as dist
import xarray as xr
from _med_magma_synthetic import fitted, simulated
from _med_magma_tables import SIZES, both
from _tables import Row, Tables

import embergraph as eg
from embergraph.models.parts.scale_priors import NormalScales
from embergraph.undirected_scores import brier_score, reliability

BINS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)
LEVELS = (0.5, 0.9)
WEIGHT = 0.05  # what counts as an edge where absent ones are narrow, not zero; half of it as a partial correlation


def calibration(options: argparse.Namespace) -> Tables:
    """Coverage of log scales and reliability of edge probabilities, on known graphs and on draws from the prior."""
    results = options.results
    coverage, edges = [], []
    for size, m, graph in itertools.product(options.sizes, options.matrices, options.graphs):
        what = {"size": size, "m": m, "graph": graph}
        rows = [
            results.get({**what, "seed": seed}, lambda w={**what, "seed": seed}: on_graph(w)) for seed in options.seeds
        ]
        coverage.append({**what, **coverage_cells(rows)})
        edges.append({**what, "edge": "any", **edge_cells([row["edges"] for row in rows])})
    for size, m in itertools.product(options.sizes, options.matrices):
        what = {"size": size, "m": m, "graph": "prior"}
        rows = [
            results.get({**what, "seed": seed}, lambda w={**what, "seed": seed}: on_prior(w))
            for seed in options.prior_seeds
        ]
        coverage.append({**what, **coverage_cells(rows)})
        for key, name in (("edges", "P(edge)"), ("strong", f"P(size > {WEIGHT})")):
            edges.append({**what, "edge": name, **edge_cells([row[key] for row in rows])})
    seeds = ", ".join(
        f"{name} {used[0]} to {used[-1]}" for name, used in (("seeds", options.seeds), ("prior", options.prior_seeds))
    )
    return {
        f"Coverage of intervals of log u / log v, %, {seeds}": coverage,
        f"Observed share of edges (pairs) at stated probabilities, both axes, {seeds}": edges,
    }


def on_graph(what: Row) -> Row:
    """Random signs, noise 1, flat scales."""
    data = simulated(**what, signs="random", noise=1.0)
    fit = fitted(data)
    return {**covered(fit, data), "edges": binned(fit, data, 0.0, lambda weights: weights != 0)}


def on_prior(what: Row) -> Row:
    """Graphs, scales and matrices drawn from the model that is fitted."""
    (n, p), m = SIZES[what["size"]], what["m"]
    model = eg.models.MEDMAGMA(
        n, p, None if m == 1 else m,
        cell_scales=NormalScales(), gene_scales=NormalScales(), overall_prior=dist.Normal(0.0, 1.5),
    )  # fmt: skip
    data = model.simulate(seed=what["seed"])
    fit = eg.fit(model, data[["expression"]], progress=False)

    def strong(weights: np.ndarray) -> np.ndarray:
        return np.abs(weights) > WEIGHT

    statements = {"edges": 0.0, "strong": WEIGHT / 2}
    return {**covered(fit, data), **{key: binned(fit, data, at, strong) for key, at in statements.items()}}


def covered(fit: eg.MEDMAGMAFit, data: xr.Dataset) -> Row:
    """Number of scales in all, and inside the intervals."""
    row: Row = {}
    for level in LEVELS:
        scales = fit.scales(interval=level)
        for name in ("log_u", "log_v"):
            truth = data[f"true_{name}"].values
            inside = (scales[f"{name}_lower"].values <= truth) & (truth <= scales[f"{name}_upper"].values)
            row[f"{name} {100 * level:.0f}"] = [int(inside.sum()), int(inside.size)]
            row[f"{name} error"] = float(np.sqrt(np.mean((scales[name].values - truth) ** 2)))
    return row


def binned(fit: eg.MEDMAGMAFit, data: xr.Dataset, threshold: float, is_edge: Callable[[np.ndarray], np.ndarray]) -> Row:
    """Sums from which reliability and Brier scores of many fits can be pooled."""
    graphs = fit.graphs(threshold=threshold)
    table, squares, pairs, edges = np.zeros((len(BINS) - 1, 3)), 0.0, 0, 0
    for axis in ("cell", "gene"):
        probability = graphs[f"{axis}_edge_probability"].values
        truth = is_edge(data[f"true_{axis}_precision"].values).astype(float)
        found = reliability(probability, truth, bins=BINS)
        place = np.searchsorted(BINS, found["lower"].values)
        count = found["count"].values
        table[place] += np.stack([count, count * found["stated"].values, count * found["observed"].values], 1)
        size = int(count.sum())
        squares += size * brier_score(probability, truth)
        pairs, edges = pairs + size, edges + found.attrs["true_edges"]
    return {"table": table.tolist(), "squares": squares, "pairs": pairs, "edges": edges}


def coverage_cells(rows: list[Row]) -> Row:
    cells: Row = {}
    for level in LEVELS:
        label = f"{100 * level:.0f}"
        parts = [np.sum([row[f"{name} {label}"] for row in rows], axis=0) for name in ("log_u", "log_v")]
        cells[f"{label} %"] = both(*(f"{100 * inside / total:.1f}" for inside, total in parts))
    lowest = [min(100 * np.divide(*row[f"{name} 90"]) for row in rows) for name in ("log_u", "log_v")]
    cells["lowest 90 % of a seed"] = both(*(f"{value:.0f}" for value in lowest))
    cells["root mean square error"] = both(
        *(f"{np.mean([row[f'{name} error'] for row in rows]):.3f}" for name in ("log_u", "log_v"))
    )
    return cells


def edge_cells(rows: list[Row]) -> Row:
    table = np.sum([row["table"] for row in rows], axis=0)
    cells: Row = {}
    for lower, upper, (count, stated, observed) in zip(BINS, BINS[1:], table, strict=False):
        shown = f"{stated / count:.2f} → {observed / count:.2f} ({count:.0f})" if count else ""
        cells[f"{lower:g} to {upper:g}"] = shown
    pairs, edges = (sum(row[key] for row in rows) for key in ("pairs", "edges"))
    rate = edges / pairs
    cells["expected / true edges"] = f"{table[:, 1].sum() / len(rows):.0f} / {edges / len(rows):.0f}"
    cells["Brier / base rate"] = f"{sum(row['squares'] for row in rows) / pairs:.4f} / {rate * (1 - rate):.4f}"
    return cells
