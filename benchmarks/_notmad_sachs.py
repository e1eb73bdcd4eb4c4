"""Sachs cells: held-out error of all methods, and what drugs do to the edges of the protein that they act on."""

from __future__ import annotations

import argparse
import time

import numpy as np
import xarray as xr
from _notmad_tables import plan, since
from _tables import Row, Tables

import embergraph as eg
from embergraph import baselines, metrics


def sachs(options: argparse.Namespace) -> Tables:
    """Held-out Sachs cells, every 4th of each condition: all methods with an intercept a condition, unless said."""
    raw = eg.datasets.sachs().isel(cell=slice(None, None, options.every))
    scales, drugs = [], []
    for scale in ("common", "gene"):
        data, _ = eg.standardize(raw, scale=scale)
        train, test = eg.split(data, within="environment")
        rivals = {
            "zero graph": baselines.ZeroGraph(),
            "population, one intercept": baselines.Population(remove_covariate_means=False),
            "population": baselines.Population(),
            "population, NOTEARS": baselines.Population(method="notears"),
            "k-means (9)": baselines.KMeansClustered(9),
            "per condition": baselines.LabelClustered(),
            "varying-coefficient ridge": baselines.VaryingCoefficientRidge(),
        }
        about = {"sachs": options.every, "scale": scale}
        for name, rival in ({} if options.no_baselines else rivals).items():
            what = {**about, "method": name}
            row = options.results.get(what, lambda r=rival, a=train, b=test: rival_row(r, a, b))
            scales.append({"scale": scale, "method": name, **row})
        kinds = [(K, "free") for K in options.archetypes]
        if scale == "common":
            kinds.append((kinds[-1][0], "equal"))
        for K, noise in kinds:
            name = f"NOTMAD, K {K}, {noise} noise"
            found = options.results.get(
                {**about, "method": name, "posterior": options.posterior},
                lambda k=K, n=noise, a=train, b=test, c=data: notmad_row(options, k, n, a, b, c),
            )
            scales.append({"scale": scale, "method": name, **found["scores"]})
            if scale == "common" and noise == "free":
                drugs += [{"K": K, **row} for row in found["drugs"]]
    return {"Sachs, held-out cells": scales, "Sachs, edges of the drugged protein": drugs}


def rival_row(rival: baselines.Baseline, train: xr.Dataset, test: xr.Dataset) -> Row:
    start = time.perf_counter()
    networks = rival.fit(train).networks(test)
    return {**sachs_scores(networks, test), **since(start)}


def notmad_row(
    options: argparse.Namespace, num_archetypes: int, noise: str, train: xr.Dataset, test: xr.Dataset, data: xr.Dataset
) -> Row:
    """Scores of one fit, and what it says of the drugs."""
    start = time.perf_counter()
    model = eg.models.NOTMAD.for_data(train, num_archetypes, noise=noise)
    fit = eg.fit(model, train, **plan(options, posterior=options.posterior))
    scores = sachs_scores(fit.networks(test), test)
    scores["predictive log density"] = float(fit.log_density(test).mean())
    return {"scores": {**scores, **since(start)}, "drugs": drug_rows(fit, data)}


def sachs_scores(networks: xr.Dataset, test: xr.Dataset) -> Row:
    scores = metrics.evaluate(networks, test)
    return {key: scores[key] for key in ("mse", "log_density", "aupr", "skeleton_aupr")}


def drug_rows(fit: eg.NOTMADFit, data: xr.Dataset) -> list[Row]:
    """Change of all edges into, and out of, the protein that a drug acts on, against cd3_cd28 alone."""
    conditions = {"aktinhib": "Akt", "g0076": "PKC", "pma": "PKC", "psitect": "PIP2", "u0126": "Mek", "b2camp": "PKA"}
    names = list(data["condition"].values)
    base = data.isel(cell=np.flatnonzero(data["environment"].values == names.index("cd3_cd28")))
    rows = []
    for drug, protein in conditions.items():
        treated = data.isel(cell=np.flatnonzero(data["environment"].values == names.index(drug)))
        change = fit.contrast(treated, base)
        for side, dim, other in (("incoming", "target", "regulator"), ("outgoing", "regulator", "target")):
            edges = change.sel({dim: protein}).drop_sel({other: protein})
            clear = (edges["lower"] > 0) | (edges["upper"] < 0)
            top = int(np.abs(edges["difference"].values).argmax())
            strongest = edges.isel({other: top})
            rows.append(
                {
                    "drug": drug, "protein": protein, "edges": side,
                    "clear changes": f"{int(clear.sum())} of {clear.size}",
                    "largest": str(strongest[other].values),
                    "before": float(strongest["second"]), "after": float(strongest["first"]),
                    "change": float(strongest["difference"]),
                    "90 %": f"[{float(strongest['lower']):.2f}, {float(strongest['upper']):.2f}]",
                }
            )  # fmt: skip
    return rows
