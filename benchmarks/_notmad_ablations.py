"""Simulated tissues: when a mixture of archetypes helps, when networks of single cells do, when one per group wins.

Groups of few to many cells, told by indicator covariates, beside two continuous covariates. Networks are either
mixtures of three archetypes, with weights by group and, to an extent that is varied, by the continuous covariates; or
every group has a network of its own, drawn independently. One order of the genes serves all.
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from _notmad_tables import plan, truth
from _tables import Row, Tables

import embergraph as eg
from embergraph import baselines, metrics

NUM_TISSUES, NUM_GENES, NUM_TRUE, TEST_CELLS = 20, 10, 3, 40
SWEEP = (1, 2, 3, 4, 6, 8)
PLAN = {"posterior": "mean_field", "num_restarts": 4, "num_steps": 800, "num_orders": 2, "num_guide_steps": 400}
SIMPLE = {"remove_covariate_means": False, "method": "notears", "l1": 0.03}  # covariates shift no means here


@dataclass(frozen=True)
class Tissues:
    """A design: training cells of a group, spread of networks within it, whether groups share archetypes."""

    smallest: int
    largest: int
    within: float
    own: bool = False

    @property
    def name(self) -> str:
        sizes = f"{self.smallest}-{self.largest}" if self.smallest < self.largest else f"{self.smallest}"
        return f"own networks, {sizes} cells" if self.own else f"mixtures, {sizes} cells, within {self.within:g}"

    @property
    def sizes(self) -> np.ndarray:
        return np.round(np.geomspace(self.smallest, self.largest, NUM_TISSUES)).astype(int)

    def simulate(self, seed: int) -> tuple[xr.Dataset, xr.Dataset]:
        """Training and test cells; the first of every group are for training."""
        rng = np.random.default_rng(seed)
        group = np.repeat(np.arange(NUM_TISSUES), self.sizes + TEST_CELLS)
        continuous = rng.uniform(-1, 1, size=(len(group), 2))
        order = rng.permutation(NUM_GENES)
        parts = np.stack([random_dag(rng, order) for _ in range(NUM_TISSUES if self.own else NUM_TRUE)])
        weights = np.eye(NUM_TISSUES)[group] if self.own else self.mixture(rng, group, continuous)
        networks = np.einsum("nk,kab->nab", weights, parts)
        noise = rng.normal(size=(len(group), NUM_GENES))
        expression = np.linalg.solve(np.eye(NUM_GENES) - networks.transpose(0, 2, 1), noise[..., None])[..., 0]
        names = [f"tissue_{t:02d}" for t in range(NUM_TISSUES)]
        data = eg.from_arrays(
            expression,
            np.concatenate([np.eye(NUM_TISSUES)[group], continuous], axis=1),
            environment=np.asarray(names)[group],
            covariate_names=[*names, "age", "stage"],
        )
        data["true_networks"] = (("cell", "regulator", "target"), networks)
        data = data.assign_coords(regulator=data["gene"].values, target=data["gene"].values)
        place = np.arange(len(group)) - np.searchsorted(group, group)
        train, transform = eg.standardize(data.isel(cell=place < self.sizes[group]), scale="common")
        return train, transform.apply(data.isel(cell=place >= self.sizes[group]))

    def mixture(self, rng: np.random.Generator, group: np.ndarray, continuous: np.ndarray) -> np.ndarray:
        features = np.concatenate([continuous, np.sin(2 * continuous)], axis=1)
        logits = 2.0 * rng.normal(size=(NUM_TISSUES, NUM_TRUE))[group]
        logits = logits + self.within * features @ (2.0 * rng.normal(size=(features.shape[1], NUM_TRUE)))
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)


DESIGNS = (
    Tissues(5, 200, within=0.0),
    Tissues(5, 200, within=0.5),
    Tissues(5, 200, within=1.0),
    Tissues(15, 15, within=0.5),
    Tissues(100, 100, within=0.5),
    Tissues(5, 200, within=0.0, own=True),
    Tissues(100, 100, within=0.0, own=True),
)


def random_dag(rng: np.random.Generator, order: np.ndarray) -> np.ndarray:
    shape = (NUM_GENES, NUM_GENES)
    weights = rng.uniform(0.5, 1.5, size=shape) * rng.choice([-1.0, 1.0], size=shape)
    out = np.zeros(shape)
    out[np.ix_(order, order)] = np.triu(weights * (rng.random(shape) < 2 / (NUM_GENES - 1)), 1)
    return out


def ablations(options: argparse.Namespace) -> Tables:
    """Baselines, NOTMAD and its ablations on every design; then a sweep over K."""
    rows, sweep = [], []
    for design, seed in itertools.product([DESIGNS[number] for number in options.designs], options.seeds):
        what = {"design": design.name, "archetypes": options.archetypes, "seed": seed}
        found = options.results.get(what, lambda d=design, s=seed: {"rows": compare(options, d, s)})
        rows += found["rows"]
    for seed, number in itertools.product(options.seeds, SWEEP[:2] if options.quick else SWEEP):
        what = {"sweep": DESIGNS[1].name, "K": number, "seed": seed}
        sweep.append(options.results.get(what, lambda n=number, s=seed: one_number(options, DESIGNS[1], n, s)))
    return {
        f"Simulated tissues, share of the gap from no network to the truth (K {options.archetypes})": averaged(rows),
        f"K sweep, {DESIGNS[1].name} (true K {NUM_TRUE})": averaged(sweep),
    }


def compare(options: argparse.Namespace, design: Tissues, seed: int) -> list[Row]:
    train, test = design.simulate(seed)
    rivals = {
        "population": baselines.Population(**SIMPLE),
        "k-means": baselines.KMeansClustered(options.archetypes, **SIMPLE),
        "one network a group": baselines.LabelClustered(**SIMPLE),
        "LIONESS, neighbours": baselines.LIONESS(**SIMPLE),
        "varying-coefficient ridge": baselines.VaryingCoefficientRidge(remove_covariate_means=False),
    }
    found = {name: rival.fit(train).networks(test) for name, rival in rivals.items()}
    fit = fitted(options, train, options.archetypes, seed)
    for name, (archetypes, level) in eg.ablations.ABLATIONS.items():
        kind = {"archetypes": archetypes, "level": level}
        found[f"NOTMAD, {name}"] = eg.ablations.networks(fit, test, train, **kind)
    scorer = Scorer(train, test, design)
    return [{"design": design.name, "method": name, **scorer(networks)} for name, networks in found.items()]


def one_number(options: argparse.Namespace, design: Tissues, num_archetypes: int, seed: int) -> Row:
    """One fit of the sweep over the number of archetypes."""
    train, test = design.simulate(seed)
    start = time.perf_counter()
    fit = fitted(options, train, num_archetypes, seed)
    seconds = time.perf_counter() - start
    row = {"K": num_archetypes, **Scorer(train, test, design)(fit.networks(test))}
    return {**row, "predictive log density": float(fit.log_density(test).mean()), "seconds": seconds}


def fitted(options: argparse.Namespace, train: xr.Dataset, num_archetypes: int, seed: int) -> eg.NOTMADFit:
    model = eg.models.NOTMAD.for_data(train, num_archetypes)
    return eg.fit(model, train, seed=seed, **plan(options, **PLAN))


class Scorer:
    """Scores of networks, on all groups alike and by the number of training cells of a group."""

    def __init__(self, train: xr.Dataset, test: xr.Dataset, design: Tissues) -> None:
        self.test, self.size = test, design.sizes[test["environment"].values]
        self.zero = self.errors(baselines.ZeroGraph(remove_covariate_means=False).fit(train).networks(test))
        self.floor = self.errors(truth(test))

    def errors(self, networks: xr.Dataset) -> np.ndarray:
        return np.mean(metrics.residuals(networks, self.test) ** 2, axis=1)

    def __call__(self, networks: xr.Dataset) -> Row:
        scores, error = metrics.evaluate(networks, self.test), self.errors(networks)
        row: Row = {"mse": scores["mse"], "gap": self.gap(error, self.size > 0)}
        if self.size.min() < self.size.max():
            row["gap, up to 15 cells"] = self.gap(error, self.size <= 15)
            row["gap, 16-60"] = self.gap(error, (self.size > 15) & (self.size <= 60))
            row["gap, above 60"] = self.gap(error, self.size > 60)
        keys = ("aupr", "deviation_correlation", "log_density")
        return row | {key: scores[key] for key in keys}

    def gap(self, error: np.ndarray, cells: np.ndarray) -> float:
        return float((self.zero - error)[cells].mean() / (self.zero - self.floor)[cells].mean())


def averaged(rows: list[Row]) -> list[Row]:
    """Means over seeds, in the order of first sight, with the standard deviation of the gap."""
    kinds: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        kinds.setdefault((row.get("design"), row.get("method"), row.get("K")), []).append(row)
    out = []
    for group in kinds.values():
        mean = {
            k: float(np.mean([row[k] for row in group])) if isinstance(v, float) else v for k, v in group[0].items()
        }
        out.append(mean | {"sd of gap": float(np.std([row["gap"] for row in group])), "seeds": len(group)})
    return out
