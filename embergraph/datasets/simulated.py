"""Simulated cells whose networks are mixtures of archetypal DAGs, with the truth alongside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
import xarray as xr

from ..data import from_arrays
from ..models.parts.errors import DataError
from ..models.parts.projection import project

if TYPE_CHECKING:
    from jaxtyping import Float

Orders = Literal["shared", "conflict"]


def simulated_notmad(
    seed: int = 0,
    *,
    num_cells: int = 1000,
    num_genes: int = 10,
    num_archetypes: int = 3,
    num_covariates: int = 4,
    orders: Orders = "shared",
    temperature: float = 0.5,
    noise_scale: float = 1.0,
    interactions: bool = False,
) -> xr.Dataset:
    """Simulate expression from networks that vary with covariates, as the model NOTMAD describes it.

    Covariates C are uniform on (-1, 1). Mixture weights are the softmax of a smooth function of the covariates,
    features [C, C^2 - 1/3, sin 2C] times Normal(0, 1/num_covariates) coefficients, centred over cells and divided by
    the temperature. Archetypes are Erdos-Renyi DAGs with `num_genes` expected edges and weights uniform in
    +-(0.5, 1.5). Expression solves x = x W + e with Normal noise, without intercept, on its raw scale.

    Parameters
    ----------
    seed
        The same seed gives the same data.
    num_cells, num_genes, num_archetypes, num_covariates
        Sizes; at least two cells and two genes.
    orders
        ``"shared"``: one causal order of the genes for all archetypes, hence for all cells. ``"conflict"``: an order
        for each archetype; the mixture of each cell is projected to a DAG, so that edges turn between cells.
    temperature
        Of the softmax, positive; small values put each cell near one archetype.
    noise_scale
        Standard deviation of the noise e of every gene.
    interactions
        Products 2 C_a C_b of all pairs of covariates in place of sin 2C: logits that no sum of functions of single
        covariates represents. Needs two covariates.

    Returns
    -------
    xr.Dataset
        ``expression (cell, gene)``, ``covariates (cell, covariate)`` and the truth: ``true_networks (cell, regulator,
        target)``, ``true_mixture (cell, archetype)``, ``true_archetypes (archetype, regulator, target)``, all
        float64. Attributes hold the settings.

    Raises
    ------
    DataError
        If a setting is out of range.

    Examples
    --------
    >>> from embergraph.datasets.simulated import simulated_notmad
    >>> data = simulated_notmad(seed=1, num_cells=50, num_genes=6)
    >>> data["true_networks"].dims
    ('cell', 'regulator', 'target')
    """
    settings = {
        "seed": seed,
        "num_cells": num_cells,
        "num_genes": num_genes,
        "num_archetypes": num_archetypes,
        "num_covariates": num_covariates,
        "orders": orders,
        "temperature": temperature,
        "noise_scale": noise_scale,
        "interactions": int(interactions),
    }
    _check(settings)
    rng = np.random.default_rng(seed)
    covariates = rng.uniform(-1.0, 1.0, size=(num_cells, num_covariates))
    mixture = _mixture(rng, covariates, num_archetypes, temperature, interactions)
    archetypes = _archetypes(rng, num_archetypes, num_genes, orders)
    networks = np.einsum("nk,kab->nab", mixture, archetypes)
    if orders == "conflict":
        networks = project(torch.as_tensor(networks)).networks.numpy()
    noise = noise_scale * rng.normal(size=(num_cells, 1, num_genes))
    expression = (noise @ np.linalg.inv(np.eye(num_genes) - networks))[:, 0]

    data = from_arrays(expression, covariates)
    genes = data["gene"].to_numpy()
    return data.assign(
        true_networks=(("cell", "regulator", "target"), networks),
        true_mixture=(("cell", "archetype"), mixture),
        true_archetypes=(("archetype", "regulator", "target"), archetypes),
    ).assign_coords(
        regulator=genes, target=genes, archetype=[f"archetype_{k}" for k in range(num_archetypes)]
    ).assign_attrs(simulator="simulated_notmad", **settings)  # fmt: skip


def _mixture(
    rng: np.random.Generator,
    covariates: Float[np.ndarray, "cell covariate"],
    num_archetypes: int,
    temperature: float,
    interactions: bool,
) -> Float[np.ndarray, "cell archetype"]:
    first, second = np.triu_indices(covariates.shape[1], 1)
    bent = 2 * covariates[:, first] * covariates[:, second] if interactions else np.sin(2 * covariates)
    features = np.concatenate([covariates, covariates**2 - 1 / 3, bent], axis=1)
    spread = 1 / np.sqrt(covariates.shape[1])
    logits = features @ rng.normal(scale=spread, size=(features.shape[1], num_archetypes))
    logits = (logits - logits.mean(axis=0)) / temperature
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _archetypes(
    rng: np.random.Generator, count: int, num_genes: int, orders: Orders
) -> Float[np.ndarray, "archetype regulator target"]:
    # num_genes edges expected among num_genes (num_genes - 1) / 2 ordered pairs.
    edge_probability = min(1.0, 2 / (num_genes - 1))
    shared = rng.permutation(num_genes)
    out = np.zeros((count, num_genes, num_genes))
    for archetype in out:
        order = shared if orders == "shared" else rng.permutation(num_genes)
        shape = (num_genes, num_genes)
        weights = rng.uniform(0.5, 1.5, size=shape) * rng.choice([-1.0, 1.0], size=shape)
        archetype[np.ix_(order, order)] = np.triu(weights * (rng.random(shape) < edge_probability), 1)
    return out


def _check(settings: Mapping[str, Any]) -> None:
    least = {"num_cells": 2, "num_genes": 2, "num_archetypes": 1, "num_covariates": 1}
    for name, smallest in least.items():
        if settings[name] < smallest:
            raise DataError(f"{name} is {settings[name]}; wanted at least {smallest}")
    for name in ("temperature", "noise_scale"):
        if not 0 < settings[name] < np.inf:
            raise DataError(f"{name} is {settings[name]}; wanted a positive number")
    if settings["interactions"] and settings["num_covariates"] < 2:
        raise DataError(f"interactions: found {settings['num_covariates']} covariate; wanted at least 2")
    if settings["orders"] not in get_args(Orders):
        raise DataError(f"orders is {settings['orders']!r}; wanted one of {', '.join(get_args(Orders))}")
