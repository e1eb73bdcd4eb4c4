"""One order for all cells or orders of their own: what held-out density says where each is true."""

from __future__ import annotations

import argparse
import itertools

from _notmad_tables import plan
from _tables import Row, Tables

import embergraph as eg

SIMULATIONS: dict[str, Row] = {
    "shared": {"num_archetypes": 3, "num_covariates": 4},
    "conflict": {"num_archetypes": 4, "num_covariates": 8},
}
"""Settings of the simulator by the orders of its archetypes; the models have as many archetypes."""


def choice(options: argparse.Namespace) -> Tables:
    """`eg.choose` between one network, one order and orders of their own, where orders are shared and where not."""
    rows: list[Row] = []
    for orders, seed in itertools.product(SIMULATIONS, options.seeds):
        what = {"choice": orders, "seed": seed, "cells": options.cells, "genes": options.genes}
        rows += options.results.get(what, lambda o=orders, s=seed: {"rows": chosen(options, o, s)})["rows"]
    return {"Held-out log density a cell, nats, and what is chosen": rows}


def chosen(options: argparse.Namespace, orders: str, seed: int) -> list[Row]:
    settings = SIMULATIONS[orders]
    raw = eg.datasets.simulated_notmad(
        seed, num_cells=options.cells, num_genes=options.genes, orders=orders, **settings
    )
    data, _ = eg.standardize(raw)
    number = settings["num_archetypes"]
    models = {
        "one network": eg.models.NOTMAD.for_data(data, 1),
        "one order": eg.models.NOTMAD.for_data(data, number),
        "orders of their own": eg.models.NOTMAD.for_data(data, number, order="projected"),
    }
    _, table = eg.choose(models, data, refit=False, seed=seed, **plan(options))
    columns = ("log_density", "difference", "difference_se", "mse")
    return [
        {
            "simulated orders": orders, "seed": seed, "model": name,
            **{column: float(table[column].sel(model=name)) for column in columns},
            "chosen": "yes" if name == table.attrs["chosen"] else "",
        }
        for name in models
    ]  # fmt: skip
