"""Conflicting orders: archetypes whose orders of the genes differ, each mixture projected to a DAG (simulator C).

Cells 750 to fit and 250 to score. Beside the projected model: the plan for one shared order, ridge regression with
varying coefficients, the zero graph and the truth. Coverage is measured on true and absent edges, and apart on

* turning: true edges of pairs whose direction differs between test cells;
* switch: true edges of pairs that both directions compete for in that very cell, sizes in the true mixture within 0.15;
* dropped: absent edges that the true mixture has and its projection removes.
"""

from __future__ import annotations

import argparse
import itertools
import time

import numpy as np
import torch
import xarray as xr
from _notmad_tables import error_range, gap, plan
from _tables import Row, Tables, over_seeds

import embergraph as eg
from embergraph import baselines, metrics
from embergraph.inference.density import LogDensity
from embergraph.inference.messengers import isolated
from embergraph.methods._notmad_plan import run_hmc
from embergraph.methods._notmad_projected import central_values
from embergraph.network_scores import EDGE_THRESHOLD

NEAR = 0.15  # difference of the two directions' sizes in the true mixture, units of the expression
ALL_DRAWS = 100_000


def conflict(options: argparse.Namespace) -> Tables:
    """Recovery and coverage where edges turn round between cells."""
    kinds = ("scale", "archetypes", "cells", "genes", "encoder", "posterior", "no_baselines", "fixed_structure")
    settings = {name: getattr(options, name) for name in kinds}
    recovery, coverage = [], []
    for seed in options.seeds:
        found = options.results.get({"conflict": settings, "seed": seed}, lambda s=seed: one_seed(options, s))
        recovery.append(found["recovery"])
        coverage += found["coverage"]
    recovery += over_seeds(recovery, "median", np.median) + over_seeds(recovery, "min", np.min)
    for kind in dict.fromkeys(row["structure"] for row in coverage):
        mean = over_seeds([row for row in coverage if row["structure"] == kind], "mean", np.nanmean)
        coverage += [{"structure": kind, **mean[0]}]
    title = f"conflicting orders, {options.scale} scale, K {options.archetypes}, {options.encoder}"
    return {f"Recovery, {title}": recovery, f"Coverage, {title}": coverage}


def one_seed(options: argparse.Namespace, seed: int) -> Row:
    """The projected model and its rivals on one data set."""
    train, test = cells(options, seed, num_archetypes=4, num_covariates=8, orders="conflict")
    row, rows, fit = one_fit(options, seed, train, test, options.archetypes, "projected", options.encoder)
    if not options.no_baselines:
        row |= rivals(options, seed, train, test)
    if options.fixed_structure:
        rows.append({"seed": seed, "structure": "held fixed", **fixed_structure(fit, train, test)})
    return {"recovery": row, "coverage": rows}


def interactions(options: argparse.Namespace) -> Tables:
    """Covariates that interact: the additive encoder against the joint one, one shared order, K 3."""
    recovery, coverage = [], []
    settings = {name: getattr(options, name) for name in ("scale", "cells", "genes", "posterior")}
    for seed, order, encoder in itertools.product(options.seeds, ("uniform", "projected"), ("gp", "gp_joint")):
        how = {"order": order, "encoder": encoder}
        what = {"interactions": settings, "seed": seed, **how}
        found = options.results.get(what, lambda s=seed, h=how: interacting(options, s, **h))
        recovery.append({**how, **found["recovery"]})
        coverage += [{**how, **row} for row in found["coverage"]]
    title = f"interacting covariates, {options.scale} scale, K 3"
    return {f"Recovery, {title}": recovery, f"Coverage, {title}": coverage}


def interacting(options: argparse.Namespace, seed: int, order: str, encoder: str) -> Row:
    train, test = cells(options, seed, interactions=True)
    row, rows, _ = one_fit(options, seed, train, test, 3, order, encoder)
    return {"recovery": row, "coverage": rows}


def cells(options: argparse.Namespace, seed: int, **settings: object) -> tuple[xr.Dataset, xr.Dataset]:
    """Training and test cells, with the true networks and the true mixtures before projection on their scale."""
    raw = eg.datasets.simulated_notmad(seed, num_cells=options.cells, num_genes=options.genes, **settings)
    data, transform = eg.standardize(raw, scale=options.scale)
    mixed = np.einsum("nk,kab->nab", raw["true_mixture"], raw["true_archetypes"])
    data["true_networks"] = transform.networks_from_original(raw["true_networks"])
    data["true_mixtures"] = transform.networks_from_original(raw["true_networks"].copy(data=mixed))
    return eg.split(data)


def one_fit(
    options: argparse.Namespace,
    seed: int,
    train: xr.Dataset,
    test: xr.Dataset,
    num_archetypes: int,
    order: str,
    encoder: str,
) -> tuple[Row, list[Row], eg.NOTMADFit]:
    """Scores of one fit, its coverage, and the fit."""
    start = time.perf_counter()
    model = eg.models.NOTMAD.for_data(train, num_archetypes, order=order, encoder=encoder)
    fit = eg.fit(model, train, seed=seed, **plan(options, posterior=options.posterior))
    seconds = time.perf_counter() - start
    networks = fit.networks(test, draws=True, num_samples=ALL_DRAWS)
    networks["mixture"] = fit.mixture(test)["mixture"]
    scores = metrics.evaluate(networks, test)
    zero, floor = error_range(train, test)
    row = {"seed": seed, "oracle": floor, "mse": scores["mse"], "gap": gap(scores["mse"], zero, floor)}
    row |= {key: scores[key] for key in ("aupr", "pooled_aupr", "shd", "deviation_correlation")}
    row |= {"weight error": scores["relative_weight_error"], "mixture R2": scores["mixture_r2"]}
    row["aupr, edge probability"] = metrics.aupr(networks["edge_probability"], test["true_networks"])
    row["aupr, mean of draws"] = metrics.aupr(networks["draws"].mean("draw"), test["true_networks"])
    row |= {"acyclic draws": networks.attrs["share_acyclic"], "seconds": round(seconds)}
    draws = networks["draws"].transpose("draw", "cell", ...).to_numpy()
    return row, [{"seed": seed, "structure": "drawn", **covered(draws, test)}], fit


def rivals(options: argparse.Namespace, seed: int, train: xr.Dataset, test: xr.Dataset) -> Row:
    """The plan for one shared order, and ridge regression with varying coefficients."""
    model = eg.models.NOTMAD.for_data(train, options.archetypes)
    shared = eg.fit(model, train, seed=seed, **plan(options, posterior="mean_field"))
    zero, floor = error_range(train, test)
    found = {
        "shared order": shared.networks(test),
        "ridge": baselines.VaryingCoefficientRidge().fit(train).networks(test),
    }
    row: Row = {}
    for name, networks in found.items():
        scores = metrics.evaluate(networks, test)
        row |= {f"{name} gap": gap(scores["mse"], zero, floor), f"{name} aupr": scores["aupr"]}
    return row


def covered(draws: np.ndarray, test: xr.Dataset) -> Row:
    """Coverage of central 50 % and 90 % intervals, and the mean width of the latter on true edges."""
    truth, mixed = test["true_networks"].to_numpy(), np.abs(test["true_mixtures"].to_numpy())
    off = ~np.eye(truth.shape[-1], dtype=bool)
    edge = np.abs(truth) > EDGE_THRESHOLD
    present, turned = edge.any(0), mixed.transpose(0, 2, 1)
    close = (np.abs(mixed - turned) < NEAR) & (np.minimum(mixed, turned) > EDGE_THRESHOLD)
    groups = {
        "true": edge,
        "absent": ~edge & off,
        "turning": edge & (present & present.T),
        "switch": edge & close,
        "dropped": ~edge & (mixed > EDGE_THRESHOLD) & off,
    }
    wanted = np.where(edge, truth, 0.0)
    row: Row = {}
    for level in (0.5, 0.9):
        tails = [0.5 - level / 2, 0.5 + level / 2]
        low, high = np.quantile(draws, tails, axis=0, method="weibull")  # as `fit.networks` does
        inside = (low <= wanted + 1e-12) & (wanted <= high + 1e-12)
        row |= {f"c{100 * level:.0f} {k}": float(inside[g].mean()) if g.any() else np.nan for k, g in groups.items()}
    return row | {"width": float((high - low)[edge].mean()), "switches": int((edge & close).sum())}


def fixed_structure(fit: eg.NOTMADFit, train: xr.Dataset, test: xr.Dataset) -> Row:
    """Coverage of HMC given the structure: the edges of every cell held as the centre of `fit` has them."""
    model, centre = fit.model, central_values(fit.stored)
    like = model.encoder.location
    inputs = {name: torch.as_tensor(train[name].to_numpy()).to(like) for name in ("covariates", "expression")}
    new = torch.as_tensor(test["covariates"].to_numpy()).to(like)
    with torch.no_grad(), isolated(0, dtype=like.dtype):
        seen, unseen = (model.networks_of(C, centre)[0] != 0 for C in (inputs["covariates"], new))
    try:
        model.kept = seen
        with isolated(0, dtype=like.dtype):
            density = LogDensity(model, inputs)
            values = {name: value.reshape(1, *density.example[name].shape) for name, value in centre.items()}
            points = density.pack(values).repeat(4, 1)
            chains = run_hmc(density, points, num_warmup=100, num_draws=150, progress=False)
            model.kept = unseen
            with torch.no_grad():
                draws = model.networks_of(new, density.unpack(chains.draws.flatten(0, 1)))[0]
    finally:
        model.kept = None
    return covered(draws.cpu().numpy(), test)
