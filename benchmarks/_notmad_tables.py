"""What the NOTMAD benchmarks share: options of the fit, scores against the truth, seconds."""

from __future__ import annotations

import argparse
import time
from typing import Any

import xarray as xr
from _tables import Row

from embergraph import baselines, metrics

QUICK: Row = {
    "num_restarts": 1, "num_steps": 5, "num_guide_steps": 5, "num_orders": 1, "num_bootstrap": 2, "num_warmup": 2,
    "num_draws": 4, "progress": False,
}  # fmt: skip


def plan(options: argparse.Namespace, **usual: Any) -> Row:
    """Options of `eg.fit`: `usual`, with hardly a step where it shall be quick."""
    return {"progress": False, **usual, **(QUICK if options.quick else {})}


def since(start: float) -> Row:
    return {"seconds": round(time.perf_counter() - start)}


def truth(test: xr.Dataset) -> xr.Dataset:
    """The true networks as if they were fitted."""
    oracle = test["true_networks"].rename("network").to_dataset()
    return oracle.assign(intercept=xr.zeros_like(test["expression"]))


def error_range(train: xr.Dataset, test: xr.Dataset) -> tuple[float, float]:
    """Held-out error of the empty graph and of the truth."""
    networks = baselines.ZeroGraph().fit(train).networks(test)
    return metrics.evaluate(networks, test)["mse"], metrics.held_out_mse(truth(test), test)


def gap(mse: float, zero: float, floor: float) -> float:
    """Share of the way from the empty graph to the truth."""
    return (zero - mse) / (zero - floor)
