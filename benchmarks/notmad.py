"""NOTMAD against baselines: recovery and coverage on simulator C, and the Sachs cells.

    python benchmarks/notmad.py simulated --seeds 0-9                    # raw scale, K 3, the default plan
    python benchmarks/notmad.py simulated --seeds 0-9 --scale gene       # standardised
    python benchmarks/notmad.py simulated --seeds 0-9 --archetypes 5     # over-specified K
    python benchmarks/notmad.py sachs --archetypes 2-9
    python benchmarks/notmad.py growth

Each command prints Markdown tables with versions and machine; `--json FILE` keeps the numbers as well.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import embergraph as eg
from embergraph import baselines, metrics

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["simulated", "sachs", "growth"])
    parser.add_argument("--seeds", type=number_range, default=number_range("0-9"))
    parser.add_argument("--scale", choices=["common", "gene"], default="common")
    parser.add_argument("--archetypes", type=number_range, default=None)
    parser.add_argument("--covariates", type=int, default=4)
    parser.add_argument("--encoder", default="gp")
    parser.add_argument("--posterior", default="auto")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--no-baselines", action="store_true")
    options = parser.parse_args()
    runs = {"simulated": simulated, "sachs": sachs, "growth": growth}
    tables = runs[options.what](options)
    print(f"\n{machine()}\n")
    for title, rows in tables.items():
        print(f"\n### {title}\n\n{markdown(rows)}")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "tables": tables}, indent=1))


def number_range(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def machine() -> str:
    names = ("embergraph", "torch", "pyro-ppl", "numpy", "xarray", "arviz")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return f"Python {platform.python_version()}, {versions}; {platform.machine()}, {torch.get_num_threads()} threads"


def markdown(rows: list[Row]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [row.get(column, "") for column in columns]
        lines.append("| " + " | ".join(f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells) + " |")
    return "\n".join(lines)


def simulated(options: argparse.Namespace) -> dict[str, list[Row]]:
    """Recovery, coverage and baselines on simulator C with a shared order; 750 cells to fit, 250 to score."""
    num_archetypes = (options.archetypes or [3])[0]
    recovery, coverage = [], []
    for seed in options.seeds:
        raw = eg.datasets.simulated_notmad(seed, num_covariates=options.covariates)
        data, transform = eg.standardize(raw, scale=options.scale)
        data["true_networks"] = transform.networks_from_original(raw["true_networks"])
        train, test = eg.split(data)
        oracle = test["true_networks"].rename("network").to_dataset()
        oracle["intercept"] = xr.zeros_like(test["expression"])
        floor, zero = metrics.held_out_mse(oracle, test), metrics.evaluate(zero_graph(train, test), test)["mse"]
        start = time.perf_counter()
        model = eg.models.NOTMAD.for_data(train, num_archetypes, encoder=options.encoder)
        fit = eg.fit(model, train, posterior=options.posterior, seed=seed)
        seconds = time.perf_counter() - start
        networks = fit.networks(test)
        scores = metrics.evaluate(networks, test)
        row = {"seed": seed, "zero": zero, "oracle": floor, "gap": (zero - scores["mse"]) / (zero - floor)}
        row |= {
            key: scores[key]
            for key in ("mse", "aupr", "pooled_aupr", "deviation_correlation", "relative_weight_error", "shd")
        }
        row |= {"acyclic draws": networks.attrs["share_acyclic"], "seconds": round(seconds)}
        if not options.no_baselines:
            row |= baseline_auprs(train, test, zero, floor, num_archetypes)
        recovery.append(row)
        coverage.append({"seed": seed, **coverage_row(fit, test)})
        print(row, coverage[-1], flush=True)
    recovery += summary(recovery, "median", np.median) + summary(recovery, "min", np.min)
    coverage += summary(coverage, "mean", np.mean)
    title = f"simulator C, {options.scale} scale, K {num_archetypes}, {options.encoder}, {options.posterior}"
    return {f"Recovery, {title}": recovery, f"Coverage, {title}": coverage}


def zero_graph(train: xr.Dataset, test: xr.Dataset) -> xr.Dataset:
    return baselines.ZeroGraph().fit(train).networks(test)


def baseline_auprs(train: xr.Dataset, test: xr.Dataset, zero: float, floor: float, num_archetypes: int) -> Row:
    rivals = {
        "population": baselines.Population(),
        "k-means": baselines.KMeansClustered(num_archetypes),
        "ridge": baselines.VaryingCoefficientRidge(),
    }
    row: Row = {}
    for name, rival in rivals.items():
        scores = metrics.evaluate(rival.fit(train).networks(test), test)
        row |= {f"{name} gap": (zero - scores["mse"]) / (zero - floor), f"{name} aupr": scores["aupr"]}
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


def summary(rows: list[Row], name: str, how: Any) -> list[Row]:
    numeric = [k for k, v in rows[0].items() if isinstance(v, float)]
    own = [row for row in rows if not isinstance(row["seed"], str)]
    return [{"seed": name, **{key: float(how([row[key] for row in own])) for key in numeric}}]


def sachs(options: argparse.Namespace) -> dict[str, list[Row]]:
    """Held-out Sachs cells, every 4th of each condition: all methods with an intercept a condition, unless said."""
    raw = eg.datasets.sachs()
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
        for name, rival in rivals.items():
            start = time.perf_counter()
            networks = rival.fit(train).networks(test)
            scales.append({"scale": scale, "method": name, **sachs_scores(networks, test), **since(start)})
            print(scales[-1], flush=True)
        kinds = [(K, "free") for K in options.archetypes or range(2, 10)]
        if scale == "common":
            kinds.append((kinds[-1][0], "equal"))
        for K, noise in kinds:
            start = time.perf_counter()
            model = eg.models.NOTMAD.for_data(train, K, noise=noise)
            fit = eg.fit(model, train, posterior=options.posterior)
            networks = fit.networks(test)
            row = {"scale": scale, "method": f"NOTMAD, K {K}, {noise} noise", **sachs_scores(networks, test)}
            row["predictive log density"] = float(fit.log_density(test).mean())
            scales.append({**row, **since(start)})
            print(scales[-1], flush=True)
            if scale == "common" and noise == "free":
                drugs += [{"K": K, **row} for row in drug_rows(fit, data)]
    return {"Sachs, held-out cells": scales, "Sachs, edges of the drugged protein": drugs}


def sachs_scores(networks: xr.Dataset, test: xr.Dataset) -> Row:
    scores = metrics.evaluate(networks, test)
    return {key: scores[key] for key in ("mse", "log_density", "aupr", "skeleton_aupr")}


def since(start: float) -> Row:
    return {"seconds": round(time.perf_counter() - start)}


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


def growth(options: argparse.Namespace) -> dict[str, list[Row]]:
    """Time of the plan's parts relative to p 10, n 750 in the same run (mean field; ratios, not seconds)."""
    rows, unit = [], None
    for num_genes, num_cells in ((10, 1000), (10, 4000), (20, 1000), (30, 1000)):
        raw = eg.datasets.simulated_notmad(0, num_cells=num_cells, num_genes=num_genes)
        train, test = eg.split(eg.standardize(raw)[0])
        start = time.perf_counter()
        fit = eg.fit(eg.models.NOTMAD.for_data(train, 3), train, posterior="mean_field", progress=False)
        seconds = time.perf_counter() - start
        unit = unit or seconds
        scores = metrics.evaluate(fit.networks(test), test)
        rows.append({"genes": num_genes, "cells": num_cells, "time ratio": seconds / unit, "aupr": scores["aupr"]})
        print(rows[-1], flush=True)
    return {"Growth": rows}


if __name__ == "__main__":
    main()
