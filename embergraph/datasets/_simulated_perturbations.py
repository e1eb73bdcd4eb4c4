"""Simulated counts of cells whose perturbations shift a few latents each, with the truth alongside."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import xarray as xr

from ..models.parts.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

Normalisation = Literal["genes", "cells"]
DecoderKind = Literal["mlp", "linear"]

_HIDDEN = (40, 40, 40)
_SLOPE = 0.2  # of the leaky ReLU below 0


def simulated_perturbations(
    seed: int = 0,
    *,
    num_perturbations: int = 100,
    num_cells: int = 100,
    num_latents: int = 15,
    num_genes: int = 100,
    min_targets: int = 1,
    max_targets: int = 3,
    normalise: Normalisation = "genes",
    decoder: DecoderKind = "mlp",
    library_size: float = 4000.0,
    control: bool | int = False,
) -> xr.Dataset:
    """Simulate counts from sparse shifts of latents, as the paper on sVAE+ does.

    A perturbation has between `min_targets` and `max_targets` different targets, all numbers equally likely. The shift
    of a target is Normal(5, 0.5) with a random sign, z ~ Normal(shift, 1), and counts are Poisson around the softmax of
    a random function of z: layers of 40 units with orthogonal weights and leaky ReLU of slope 0.2, no bias, the result
    divided by its standard deviation over all cells and genes.

    Parameters
    ----------
    seed
        The same seed gives the same data.
    num_perturbations, num_cells, num_latents, num_genes
        Sizes; `num_cells` is that of each perturbation.
    min_targets, max_targets
        Range of the number of targets of a perturbation, at most `num_latents`.
    normalise
        ``"genes"``: the softmax runs over the genes of a cell. ``"cells"``: over the cells, for each gene, as in the
        published program: every gene has the same total, and the library size of a cell carries signal.
    decoder
        ``"mlp"``, or ``"linear"``: one layer.
    library_size
        Mean of the expected counts of a cell, at least 100. As published with 250 cells for each of 100 perturbations.
    control
        Number of cells without perturbation, in a first condition ``"control"``; True for `num_cells`. The published
        simulation has none.

    Returns
    -------
    xr.Dataset
        ``expression (cell, gene)`` (counts as floats), ``environment (cell)``, ``library (cell)`` (total counts) and
        the truth: ``true_z (cell, true_latent)``, ``true_targets`` (bool) and ``true_shift (condition, true_latent)``,
        for the linear decoder ``true_mixing (gene, true_latent)``. Attributes hold the settings.

    Raises
    ------
    DataError
        If a setting is out of range.

    References
    ----------
    Lopez et al. (2022), "Learning Causal Representations of Single Cells via Sparse Mechanism Shift Modeling", with
    targets drawn without replacement and counts normalised over genes.

    Examples
    --------
    >>> from embergraph.datasets import simulated_perturbations
    >>> data = simulated_perturbations(seed=1, num_perturbations=5, num_cells=20, control=True)
    >>> dict(data.sizes)
    {'cell': 120, 'gene': 100, 'true_latent': 15, 'condition': 6}
    """
    settings: dict[str, Any] = {
        "seed": seed, "num_perturbations": num_perturbations, "num_cells": num_cells, "num_latents": num_latents,
        "num_genes": num_genes, "min_targets": min_targets, "max_targets": max_targets, "normalise": normalise,
        "decoder": decoder, "library_size": library_size, "control": num_cells if control is True else int(control),
    }  # fmt: skip
    _check(settings)
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(4)]
    targets = _targets(streams[0], num_perturbations, num_latents, min_targets, max_targets)
    size = streams[0].normal(5.0, 0.5, targets.shape) * streams[0].choice([-1.0, 1.0], size=targets.shape)
    names = [f"perturbation_{a}" for a in range(num_perturbations)]
    counts = [num_cells] * num_perturbations
    if settings["control"]:
        targets, size = (np.concatenate([np.zeros_like(table[:1]), table]) for table in (targets, size))
        names, counts = ["control", *names], [settings["control"], *counts]
    shift = np.where(targets, size, 0.0)
    environment = np.repeat(np.arange(len(names)), counts)
    z = shift[environment] + streams[1].normal(size=(len(environment), num_latents))
    layers = _layers(streams[2], (num_latents, *(_HIDDEN if decoder == "mlp" else ()), num_genes))
    expression = streams[3].poisson(_means(z, layers, normalise, library_size)).astype(np.float64)

    variables: dict[str, Any] = {
        "expression": (("cell", "gene"), expression),
        "environment": ("cell", environment),
        "library": ("cell", expression.sum(1)),
        "true_z": (("cell", "true_latent"), z),
        "true_targets": (("condition", "true_latent"), targets),
        "true_shift": (("condition", "true_latent"), shift),
    }
    if decoder == "linear":
        variables["true_mixing"] = (("gene", "true_latent"), layers[0].T / (z @ layers[0]).std())
    coords = {
        "cell": [f"cell_{i}" for i in range(len(z))],
        "gene": [f"gene_{j}" for j in range(num_genes)],
        "condition": names,
        "true_latent": [f"latent_{k}" for k in range(num_latents)],
    }
    return xr.Dataset(variables, coords=coords, attrs={"simulator": "simulated_perturbations", **settings})


def _targets(
    rng: np.random.Generator, num_perturbations: int, num_latents: int, fewest: int, most: int
) -> Bool[np.ndarray, "perturbation latent"]:
    number = rng.integers(fewest, most + 1, size=(num_perturbations, 1))
    rank = rng.permuted(np.tile(np.arange(num_latents), (num_perturbations, 1)), axis=1)
    return rank < number


def _layers(rng: np.random.Generator, sizes: tuple[int, ...]) -> list[Float[np.ndarray, "input output"]]:
    """Orthonormal rows or columns; their scale does not matter, since the output is divided by its own."""
    layers = []
    for before, after in pairwise(sizes):
        basis = np.linalg.qr(rng.normal(size=(max(before, after), min(before, after))))[0]
        layers.append(basis if before >= after else basis.T)
    return layers


def _means(
    z: Float[np.ndarray, "cell latent"],
    layers: list[Float[np.ndarray, "input output"]],
    normalise: Normalisation,
    library_size: float,
) -> Float[np.ndarray, "cell gene"]:
    logits = z @ layers[0]
    for layer in layers[1:]:
        logits = np.where(logits > 0, logits, _SLOPE * logits) @ layer
    logits /= logits.std()
    axis = 1 if normalise == "genes" else 0
    share = np.exp(logits - logits.max(axis, keepdims=True))
    share /= share.sum(axis, keepdims=True)
    # Over cells, each gene has the same share of all counts.
    return library_size * share * (1.0 if normalise == "genes" else share.shape[0] / share.shape[1])


def _check(settings: Mapping[str, Any]) -> None:
    least = {"num_perturbations": 1, "num_cells": 1, "num_latents": 1, "num_genes": 2, "min_targets": 0}
    least |= {"library_size": 100, "control": 0}
    for name, smallest in least.items():
        if not smallest <= settings[name] < np.inf:
            raise DataError(f"{name}: found {settings[name]}; wanted a number of at least {smallest}")
    if not settings["min_targets"] <= settings["max_targets"] <= settings["num_latents"]:
        raise DataError(
            f"max_targets: found {settings['max_targets']}; wanted {settings['min_targets']} (min_targets) to "
            f"{settings['num_latents']} (num_latents)"
        )
    for name, kind in (("normalise", Normalisation), ("decoder", DecoderKind)):
        if settings[name] not in get_args(kind):
            raise DataError(f"{name}: found {settings[name]!r}; wanted one of {', '.join(get_args(kind))}")
