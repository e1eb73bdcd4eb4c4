"""Conflicting orders: archetypes whose orders of the genes differ, each mixture projected to a DAG (simulator C).

Cells 750 to fit and 250 to score. Beside the projected model: the plan for one shared order, ridge regression with
varying coefficients, the zero graph and the truth. Coverage is measured on true and absent edges, and apart on

* turning: true edges of pairs whose direction differs between test cells;
* switch: true edges of pairs that both directions compete for in that very cell, sizes in the true mixture within 0.15;
* dropped: absent edges that the true mixture has and its projection removes.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
import xarray as xr

import embergraph as eg
from embergraph import baselines, metrics
from embergraph.inference.density import LogDensity
from embergraph.inference.messengers import isolated
from embergraph.methods import _notmad_plan as plan
from embergraph.methods._notmad_projected import central_values
from embergraph.network_scores import EDGE_THRESHOLD

Row = dict[str, Any]

NEAR = 0.15  # difference of the two directions' sizes in the true mixture, units of the expression
ALL_DRAWS = 100_000


def conflict(options: argparse.Namespace) -> dict[str, list[Row]]:
    """Recovery and coverage where edges turn round between cells."""
    num_archetypes = (options.archetypes or [4])[0]
    recovery, coverage = [], []
    for seed in options.seeds:
        train, test = cells(seed, options.scale, num_archetypes=4, num_covariates=8, orders="conflict")
        row, rows = one_fit(
            seed, train, test, num_archetypes, order="projected", encoder=options.encoder, posterior=options.posterior
        )
        fit = row.pop("fit")
        if not options.no_baselines:
            row |= rivals(seed, train, test, num_archetypes)
        if getattr(options, "fixed_structure", False):
            rows.append({"seed": seed, "structure": "held fixed", **fixed_structure(fit, train, test)})
        recovery.append(row)
        coverage += rows
        print(row, *rows, sep="\n", flush=True)
    recovery += summary(recovery, "median", np.median) + summary(recovery, "min", np.min)
    for kind in dict.fromkeys(row["structure"] for row in coverage):
        found = summary([row for row in coverage if row["structure"] == kind], "mean", np.nanmean)
        coverage += [{"seed": "mean", "structure": kind, **found[0]}]
    title = f"conflicting orders, {options.scale} scale, K {num_archetypes}, {options.encoder}"
    return {f"Recovery, {title}": recovery, f"Coverage, {title}": coverage}


def interactions(options: argparse.Namespace) -> dict[str, list[Row]]:
    """Covariates that interact: the additive encoder against the joint one, one shared order, K 3."""
    recovery, coverage = [], []
    for seed in options.seeds:
        train, test = cells(seed, options.scale, interactions=True)
        for order in ("uniform", "projected"):
            for encoder in ("gp", "gp_joint"):
                row, rows = one_fit(seed, train, test, 3, order=order, encoder=encoder, posterior=options.posterior)
                recovery.append({"order": order, "encoder": encoder, **{k: v for k, v in row.items() if k != "fit"}})
                coverage += [{"order": order, "encoder": encoder, **found} for found in rows]
                print(recovery[-1], *rows, sep="\n", flush=True)
    title = f"interacting covariates, {options.scale} scale, K 3"
    return {f"Recovery, {title}": recovery, f"Coverage, {title}": coverage}


def cells(seed: int, scale: str, **settings: Any) -> tuple[xr.Dataset, xr.Dataset]:
    """Training and test cells, with the true networks and the true mixtures before projection on their scale."""
    raw = eg.datasets.simulated_notmad(seed, **settings)
    data, transform = eg.standardize(raw, scale=scale)
    mixed = np.einsum("nk,kab->nab", raw["true_mixture"], raw["true_archetypes"])
    data["true_networks"] = transform.networks_from_original(raw["true_networks"])
    data["true_mixtures"] = transform.networks_from_original(raw["true_networks"].copy(data=mixed))
    return eg.split(data)


def one_fit(
    seed: int, train: xr.Dataset, test: xr.Dataset, num_archetypes: int, *, order: str, encoder: str, posterior: str
) -> tuple[Row, list[Row]]:
    """Scores of one fit (with the fit), and its coverage."""
    start = time.perf_counter()
    model = eg.models.NOTMAD.for_data(train, num_archetypes, order=order, encoder=encoder)
    fit = eg.fit(model, train, posterior=posterior, seed=seed, progress=False)
    seconds = time.perf_counter() - start
    networks = fit.networks(test, draws=True, num_samples=ALL_DRAWS)
    networks["mixture"] = fit.mixture(test)["mixture"]
    scores = metrics.evaluate(networks, test)
    row = {"seed": seed, "oracle": floor(test), **gap(scores["mse"], train, test)}
    row |= {key: scores[key] for key in ("aupr", "pooled_aupr", "shd", "deviation_correlation")}
    row |= {"weight error": scores["relative_weight_error"], "mixture R2": scores["mixture_r2"]}
    row["aupr, edge probability"] = metrics.aupr(networks["edge_probability"], test["true_networks"])
    row["aupr, mean of draws"] = metrics.aupr(networks["draws"].mean("draw"), test["true_networks"])
    row |= {"acyclic draws": networks.attrs["share_acyclic"], "seconds": round(seconds), "fit": fit}
    draws = networks["draws"].transpose("draw", "cell", ...).to_numpy()
    return row, [{"seed": seed, "structure": "drawn", **covered(draws, test)}]


def floor(test: xr.Dataset) -> float:
    """Error of the true networks."""
    oracle = test["true_networks"].rename("network").to_dataset()
    oracle["intercept"] = xr.zeros_like(test["expression"])
    return metrics.held_out_mse(oracle, test)


def gap(mse: float, train: xr.Dataset, test: xr.Dataset) -> Row:
    """Held-out error, and the share of the way from the zero graph to the truth that it went."""
    zero = metrics.evaluate(baselines.ZeroGraph().fit(train).networks(test), test)["mse"]
    return {"mse": mse, "gap": (zero - mse) / (zero - floor(test))}


def rivals(seed: int, train: xr.Dataset, test: xr.Dataset, num_archetypes: int) -> Row:
    """The plan for one shared order, and ridge regression with varying coefficients."""
    shared = eg.fit(
        eg.models.NOTMAD.for_data(train, num_archetypes), train, posterior="mean_field", seed=seed, progress=False
    )
    found = {
        "shared order": shared.networks(test),
        "ridge": baselines.VaryingCoefficientRidge().fit(train).networks(test),
    }
    row: Row = {}
    for name, networks in found.items():
        scores = metrics.evaluate(networks, test)
        row |= {f"{name} gap": gap(scores["mse"], train, test)["gap"], f"{name} aupr": scores["aupr"]}
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
        low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2], axis=0)
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
            chains = plan.run_hmc(density, points, num_warmup=100, num_draws=150, progress=False)
            model.kept = unseen
            with torch.no_grad():
                draws = model.networks_of(new, density.unpack(chains.draws.flatten(0, 1)))[0]
    finally:
        model.kept = None
    return covered(draws.cpu().numpy(), test)


def summary(rows: list[Row], name: str, how: Any) -> list[Row]:
    numeric = [key for key, value in rows[0].items() if isinstance(value, float)]
    return [{"seed": name, **{key: float(how([row[key] for row in rows])) for key in numeric}}]
