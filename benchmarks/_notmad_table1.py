"""The four-way table of the NOTMAD paper (its Table 1) on open data, with and without covariate means removed.

Covariates never hold the expression of the cell itself, unlike in three of the four published comparisons. Of the
published data none is open; Sachs et al. (in the package), the SNARE-seq cell lines and 20 stocks (`--data FOLDER` with
`snareseq_cellmix` and `sp500`) stand in. Training statistics standardise every gene, so that the empty graph scores
about 1 (0.5 in the unit of the paper, ||e||^2 / (2 p)).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from _notmad_tables import plan, since
from _tables import Row, Tables

import embergraph as eg
from embergraph import baselines, metrics
from embergraph.baselines.base import LinearMeans

NUM_BOOTSTRAPS = 500
SOURCES = {
    "snareseq_cellmix": "SNARE-seq of four cell lines (Chen et al. 2019), features of the repository rsinghlab/SCOT.",
    "sp500": "Prices of 20 stocks and their index, 1990-2022, as in the package skfolio.",
}
PLAN = {"num_restarts": 4, "num_orders": 4, "num_bootstrap": 16}  # half of the default plan, or less


class Case(NamedTuple):
    """Standardised cells of one data set; `block` consecutive test cells are resampled together."""

    name: str
    train: xr.Dataset
    test: xr.Dataset
    label: str | None
    num_archetypes: int
    block: int = 1


def table1(options: argparse.Namespace) -> Tables:
    """Baselines and NOTMAD on every data set found, with means of the covariates kept and removed."""
    rows: list[Row] = []
    for case in cases(options.data, options.every):
        for removed in (False, True):
            what = {"table1": case.name, "every": options.every, "removed": removed}
            rows += options.results.get(what, lambda c=case, r=removed: {"rows": all_methods(options, c, r)})["rows"]
    return {"Held-out error on open data": rows}


def all_methods(options: argparse.Namespace, case: Case, removed: bool) -> list[Row]:
    rows: list[Row] = []
    found: dict[str, np.ndarray] = {}
    for row, error in compared(options, case, removed):
        found[row["method"]] = error
        rows.append(row | uncertainty(error, found.get("population", error), case.block))
        print(rows[-1], flush=True)
    return rows


def cases(folder: Path | None, every: int) -> Iterator[Case]:
    yield sachs_cells(every)
    for name, load in (("snareseq_cellmix", cell_lines), ("sp500", stocks)):
        path = None if folder is None else Path(folder) / name
        if path is None or not path.is_dir():
            print(f"left out: no {path or name}; give its parent by --data FOLDER. {SOURCES[name]}", flush=True)
            continue
        yield load(path)


def sachs_cells(every: int) -> Case:
    """7466 cells, 11 proteins; covariates: indicators of nine conditions; every 4th cell of a condition is tested."""
    train, test = eg.split(eg.datasets.sachs().isel(cell=slice(None, None, every)), within="environment")
    return Case("Sachs", *standardized(train, test), "environment", 8)


def cell_lines(folder: Path) -> Case:
    """1047 cells, 10 components of expression; covariates: log of 19 topics of open chromatin; every 4th is tested."""
    topics = np.log1p(np.load(folder / "SNAREseq_atac_feat.npy").astype(float))
    types = np.loadtxt(folder / "SNAREseq_rna_types.txt", dtype=int)
    expression = np.load(folder / "SNAREseq_rna_feat.npy").astype(float)
    data = eg.from_arrays(
        expression,
        (topics - topics.mean(axis=0)) / topics.std(axis=0),
        environment=[f"line {kind}" for kind in types],
        gene_names=[f"PC{j + 1}" for j in range(expression.shape[1])],
    )
    return Case("cell lines", *standardized(*eg.split(data)), "environment", 4)


def stocks(folder: Path) -> Case:
    """8292 days, log returns of 20 stocks; the last quarter of the days is tested, in blocks of 20 days.

    Covariates: time, and of the index the return of the day before, and mean and log standard deviation of the returns
    of the 20 days before. They end the day before, hence are no functions of the returns to explain.
    """
    dates, names, prices = table_of(folder / "sp500_dataset.csv.gz")
    index_dates, _, index = table_of(folder / "sp500_index.csv.gz")
    assert dates == index_dates
    returns, market = np.diff(np.log(prices), axis=0), np.diff(np.log(index[:, 0]))
    past = np.lib.stride_tricks.sliding_window_view(market, 20)[:-1]  # row t: days t to t + 19, for day t + 20
    day = np.arange(20, len(returns))
    columns = {
        "time": day.astype(float),
        "last return": past[:, -1],
        "return of 20 days": past.mean(axis=1),
        "log volatility of 20 days": np.log(past.std(axis=1)),
    }
    table = np.stack(list(columns.values()), axis=1)
    num_train = int(0.75 * len(day))
    center, spread = table[:num_train].mean(axis=0), table[:num_train].std(axis=0)
    data = eg.from_arrays(
        returns[day], (table - center) / spread, gene_names=names, covariate_names=list(columns),
        cell_names=[dates[t + 1] for t in day],
    )  # fmt: skip
    parts = data.isel(cell=slice(None, num_train)), data.isel(cell=slice(num_train, None))
    return Case("stocks", *standardized(*parts), None, 4, block=20)


def table_of(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Dates, names of the columns and numbers of a table."""
    with gzip.open(path, "rt") as lines:
        header, *rows = csv.reader(lines)
    return [row[0] for row in rows], header[1:], np.array([row[1:] for row in rows], dtype=float)


def standardized(train: xr.Dataset, test: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    train, transform = eg.standardize(train, scale="gene")
    test = transform.apply(test)
    return train, test.assign(original=test["expression"])


def compared(options: argparse.Namespace, case: Case, removed: bool) -> Iterator[tuple[Row, np.ndarray]]:
    """Scores and squared errors of the test cells (mean over genes) of every method."""
    about: Row = {"data": case.name, "means": "removed" if removed else "kept"}
    for name, rival in ({} if options.no_baselines else rivals(case, removed)).items():
        start = time.perf_counter()
        networks = rival.fit(case.train).networks(case.test)
        row = {**about, "method": name, **scores(networks, case.test), **since(start)}
        yield row, errors(networks, case.test)
    for order in ("uniform", "projected"):
        for noise in ("equal", "free"):
            row, error = notmad(options, case, removed, order, noise)
            yield {**about, **row}, error


def rivals(case: Case, removed: bool) -> dict[str, baselines.Baseline]:
    options = {"remove_covariate_means": removed}
    found: dict[str, baselines.Baseline] = {
        "zero graph": baselines.ZeroGraph(**options),
        "population": baselines.Population(**options),
        "clustered (k-means)": baselines.KMeansClustered(case.num_archetypes, **options),
    }
    if case.label is not None:
        found["clustered (label)"] = baselines.LabelClustered(case.label, **options)
    return found | {
        "varying-coefficient ridge": baselines.VaryingCoefficientRidge(**options),
        "LIONESS, mean of neighbours": baselines.LIONESS(**options),
        "LIONESS, reads the scored expression": baselines.LIONESS(held_out="expression", **options),
    }


def notmad(options: argparse.Namespace, case: Case, removed: bool, order: str, noise: str) -> tuple[Row, np.ndarray]:
    """NOTMAD with one noise scale for all genes, which is the squared loss of the paper, or one for each."""
    start = time.perf_counter()
    train, test = (without_means(case, cells) if removed else cells for cells in (case.train, case.test))
    model = eg.models.NOTMAD.for_data(train, case.num_archetypes, order=order, noise=noise)
    fit = eg.fit(model, train, **plan(options, **PLAN))
    networks = fit.networks(test, interval=None, edge_threshold=None)
    row = {"method": f"NOTMAD, order {order}, {noise} noise", **scores(networks, test), **since(start)}
    return row | {"predictive log density": float(fit.log_density(test).mean())}, errors(networks, test)


def without_means(case: Case, cells: xr.Dataset) -> xr.Dataset:
    """What least squares on the covariates of the training cells leaves of the expression."""
    means = LinearMeans.fit(case.train)
    return cells.assign(expression=cells["expression"] - xr.DataArray(means(cells), dims=("cell", "gene")))


def scores(networks: xr.Dataset, test: xr.Dataset) -> Row:
    """Mean errors, and the same without the hundredth of the cells that lies farthest out, whatever the method."""
    found, error = metrics.evaluate(networks, test), errors(networks, test)
    far = np.sum(test["original"].values ** 2, axis=1)
    usual = float(error[far <= np.quantile(far, 0.99)].mean())
    keys = {"mse": found["mse"], "paper's unit": found["mse"] / 2, "mse, 99 % of cells": usual}
    return keys | {"log density": found["log_density"]}


def errors(networks: xr.Dataset, test: xr.Dataset) -> np.ndarray:
    return np.mean(metrics.residuals(networks, test) ** 2, axis=1)


def uncertainty(error: np.ndarray, reference: np.ndarray, block: int) -> Row:
    """Standard errors over test cells, resampled in blocks: of the error, and of its difference from the population."""
    rng = np.random.default_rng(0)
    num_blocks = len(error) // block
    sums = np.stack([values[: num_blocks * block].reshape(num_blocks, block).mean(1) for values in (error, reference)])
    draws = sums[:, rng.integers(num_blocks, size=(NUM_BOOTSTRAPS, num_blocks))].mean(-1)
    return {
        "se": float(draws[0].std()),
        "minus population": float(error.mean() - reference.mean()),
        "its se": float((draws[0] - draws[1]).std()),
    }
