"""Recovery, coverage and baselines on simulator C."""

from __future__ import annotations

import argparse
import time

import numpy as np
import xarray as xr
from _notmad_tables import error_range, gap, plan
from _tables import Row, Tables, over_seeds

import embergraph as eg
from embergraph import baselines, metrics


def simulated(options: argparse.Namespace) -> Tables:
    """Recovery, coverage and baselines on simulator C with a shared order; 750 cells to fit, 250 to score."""
    kinds = ("scale", "archetypes", "covariates", "cells", "genes", "encoder", "posterior", "no_baselines")
    settings = {name: getattr(options, name) for name in kinds}
    found = [
        options.results.get({"simulated": settings, "seed": seed}, lambda s=seed: one_seed(options, s))
        for seed in options.seeds
    ]
    recovery, coverage = ([row[part] for row in found] for part in ("recovery", "coverage"))
    recovery += over_seeds(recovery, "median", np.median) + over_seeds(recovery, "min", np.min)
    coverage += over_seeds(coverage, "mean", np.mean)
    title = f"simulator C, {options.scale} scale, K {options.archetypes}, {options.encoder}, {options.posterior}"
    return {f"Recovery, {title}": recovery, f"Coverage, {title}": coverage}


def one_seed(options: argparse.Namespace, seed: int) -> Row:
    raw = eg.datasets.simulated_notmad(
        seed, num_cells=options.cells, num_genes=options.genes, num_covariates=options.covariates
    )
    data, transform = eg.standardize(raw, scale=options.scale)
    data["true_networks"] = transform.networks_from_original(raw["true_networks"])
    train, test = eg.split(data)
    zero, floor = error_range(train, test)
    start = time.perf_counter()
    model = eg.models.NOTMAD.for_data(train, options.archetypes, encoder=options.encoder)
    fit = eg.fit(model, train, seed=seed, **plan(options, posterior=options.posterior))
    seconds = time.perf_counter() - start
    networks = fit.networks(test)
    scores = metrics.evaluate(networks, test)
    row = {"seed": seed, "zero": zero, "oracle": floor, "gap": gap(scores["mse"], zero, floor)}
    row |= {
        key: scores[key]
        for key in ("mse", "aupr", "pooled_aupr", "deviation_correlation", "relative_weight_error", "shd")
    }
    row |= {"acyclic draws": networks.attrs["share_acyclic"], "seconds": round(seconds)}
    if not options.no_baselines:
        row |= baseline_auprs(train, test, zero, floor, options.archetypes)
    return {"recovery": row, "coverage": {"seed": seed, **coverage_row(fit, test)}}


def baseline_auprs(train: xr.Dataset, test: xr.Dataset, zero: float, floor: float, num_archetypes: int) -> Row:
    rivals = {
        "population": baselines.Population(),
        "k-means": baselines.KMeansClustered(num_archetypes),
        "ridge": baselines.VaryingCoefficientRidge(),
    }
    row: Row = {}
    for name, rival in rivals.items():
        scores = metrics.evaluate(rival.fit(train).networks(test), test)
        row |= {f"{name} gap": gap(scores["mse"], zero, floor), f"{name} aupr": scores["aupr"]}
    return row


def coverage_row(fit: eg.NOTMADFit, test: xr.Dataset) -> Row:
    row: Row = {}
    for level in (0.5, 0.9):
        networks = fit.networks(test, interval=level, num_samples=1600)
        found = metrics.interval_coverage(networks["lower"], networks["upper"], test["true_networks"])
        label = f"{100 * level:.0f}"
        row[f"c{label} true"] = float(found["coverage"].sel(edges="true"))
        row[f"c{label} absent"] = float(found["coverage"].sel(edges="absent"))
        if level == 0.9:
            sizes = [str(e) for e in found["edges"].values if e not in ("true", "absent")]
            row |= {f"c90 {size}": float(found["coverage"].sel(edges=size)) for size in sizes}
            row["width"] = float(found["width"].sel(edges="true"))
    return row
