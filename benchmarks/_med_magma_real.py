"""Labelled cells: whether graphs of cells join cells of one kind."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from _front import has_files
from _med_magma_synthetic import PUBLISHED_TOLERANCE, fitted
from _tables import Row, Tables

import embergraph as eg
from embergraph import baselines, graph_rules, matrices
from embergraph.guides.parts.published import published_em
from embergraph.undirected_scores import ami, balanced_ami, nominal_assortativity

SETS = ("yan_embryo", "camp_fetal", "mix_celseq2", "mix_celseq2_5cl_p1", "pbmc")
KS = (1, 2, 3, 4, 5, 10, 15, 20, 25, 30, 40)
RESOLUTIONS = tuple(np.linspace(0.02, 2.0, 12).round(3).tolist())
NEIGHBOURS, RESOLUTION = 10, 1.0  # what can be used without labels
LOUVAIN_SEEDS = range(5)
PUBLISHED_STEPS = 20
AGREEMENTS = {"AMI": ami, "balanced AMI": balanced_ami}

SOURCE = "Public counts with known kinds of cells; benchmarks/README.md says which, and what the files hold."

Method = Callable[[xr.Dataset], xr.Dataset]


def real(options: argparse.Namespace) -> Tables:
    """Agreement of clusters of the cell graph with labels, and assortativity of the labels."""
    results = options.results
    tables: Tables = {}
    for name in options.sets:
        data = load(name, options)
        if data is None:
            continue
        if options.every > 1:
            data = data.isel(cell=slice(None, None, options.every))
            data = data.isel(gene=(data["expression"] != 0).any("cell").values)
        n, p = data.sizes["cell"], data.sizes["gene"]
        title = f"{name}, {n} cells x {p} genes, {np.unique(data['label']).size} labels"
        rows = []
        for method, fit in methods().items():
            if method == "published" and n > options.published_up_to:
                rows.append({"method": f"published: left out above {options.published_up_to} cells"})
                continue
            what = {"set": name, "cells": n, "genes": p, "method": method}
            rows.append({"method": method, **results.get(what, lambda f=fit, d=data: scores(f, d))})
        tables[title] = rows
    return tables


def load(name: str, options: argparse.Namespace) -> xr.Dataset | None:
    """Counts of about as many genes as cells, and labels."""
    if name == "pbmc":
        counts = eg.datasets.pbmc()
        return counts if options.all_genes else matrices.choose_genes(counts)
    file: Path = options.data / f"{name}.npz"
    if not has_files(options.data, (file.name,), SOURCE):
        return None
    with np.load(file, allow_pickle=False) as stored:
        data = eg.from_arrays(stored["square"].astype(np.float64), gene_names=stored["square_genes"])
        return data.assign(label=("cell", stored["labels"]))


def methods() -> dict[str, Method]:
    return {
        "scaling": baselines.RowColumnScaling().fit,
        "single axis": baselines.SingleAxis(rcond=1e-7).fit,
        "GmGM on log(1 + D)": lambda data: baselines.GmGM().fit(logged(data)),
        "GmGM on T(D)": baselines.GmGM(invariant=True).fit,
        "skeptic": baselines.Skeptic().fit,
        "published": published,
        "ours": lambda data: fitted(data).graphs(),
    }


def logged(data: xr.Dataset) -> xr.Dataset:
    return data.assign(expression=np.log1p(data["expression"]))


def published(data: xr.Dataset) -> xr.Dataset:
    """The published estimator with the settings of its real data."""
    scaled = torch.as_tensor(matrices.published_quotient(data["expression"]).values.astype(np.float64))
    found = published_em(scaled, max_iter=PUBLISHED_STEPS, stop_tol=PUBLISHED_TOLERANCE)
    score = found.row_precision.abs().fill_diagonal_(0.0).numpy()
    return xr.Dataset({"cell_score": (("cell", "cell_other"), score)}, {"cell": data["cell"].values})


def scores(fit: Method, data: xr.Dataset) -> Row:
    """Scores at a fixed setting, means over seeds of Louvain; and the best of the published grid, chosen by labels."""
    start = time.perf_counter()
    score = fit(data)["cell_score"]
    seconds = time.perf_counter() - start
    labels = data["label"].values
    graph = graph_rules.top_k(score, NEIGHBOURS) != 0
    found = [graph_rules.clusters(graph, resolution=RESOLUTION, seed=seed) for seed in LOUVAIN_SEEDS]
    row: Row = {"seconds": seconds, "assortativity": nominal_assortativity(graph, labels)}
    row |= {name: float(np.mean([rule(labels, one) for one in found])) for name, rule in AGREEMENTS.items()}
    row["clusters"] = float(np.mean([int(one.max()) + 1 for one in found]))
    return {**row, **best_of_grid(score, labels)}


def best_of_grid(score: xr.DataArray, labels: np.ndarray) -> Row:
    """Best agreements over the grid, with the k and the resolution that gave them."""
    best = dict.fromkeys(AGREEMENTS, (-1.0, ""))
    for k in (k for k in KS if k < len(labels)):
        graph = graph_rules.top_k(score, k) != 0
        for resolution in RESOLUTIONS:
            found = graph_rules.clusters(graph, resolution=resolution)
            for name, rule in AGREEMENTS.items():
                best[name] = max(best[name], (rule(labels, found), f"{k}, {resolution:g}"), key=lambda pair: pair[0])
    row: Row = {}
    for name, (value, where) in best.items():
        row |= {f"best {name}": value, f"at k, resolution of best {name}": where}
    return row
