"""The simulations of the NOTMAD paper: clusters, mixtures of pairs of archetypes, or unrelated networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import networkx as nx
import numpy as np
import torch
import xarray as xr

from ..data import from_arrays
from ..models.parts.errors import DataError
from ..models.parts.projection import is_acyclic, project
from ..validation import listed
from ._structural_noise import NoiseKind, solve

if TYPE_CHECKING:
    from jaxtyping import Float

    Array = Float[np.ndarray, "..."]

NetworkKind = Literal["clusters", "archetypes", "none"]
GraphKind = Literal["erdos_renyi", "scale_free", "bipartite"]

_TRIES = 5_000


def simulated_published(
    seed: int = 0,
    *,
    kind: NetworkKind = "clusters",
    num_cells: int = 1000,
    num_genes: int = 6,
    num_archetypes: int = 8,
    num_edges: int = 6,
    graph: GraphKind = "erdos_renyi",
    noise: NoiseKind = "gauss",
    noise_scale: float = 0.01,
    weight_range: tuple[float, float] = (1.0, 10.0),
    min_distance: float = 100.0,
    acyclic_union: bool = False,
    num_covariates: int | None = None,
    covariate_signal: float = 0.75,
) -> xr.Dataset:
    """Simulate expression as the published simulations of NOTMAD do, one cell from each network.

    Archetypes are random DAGs with weights uniform in +-`weight_range`, each drawn anew until its squared distance to
    all others exceeds `min_distance`. Networks and covariates by `kind`:

    * ``"clusters"``: an archetype k, uniformly, and perturbations u ~ U(-0.2, 0.2)^K; the network is the DAG projection
      of W_k + sum_j u_j W_j. Covariates are the indicators of k, then u (2 K columns).
    * ``"archetypes"``: two archetypes, drawn with replacement, in uniform shares; drawn anew until the mixture is a
      DAG. Covariates are the same mixture of one vector U(0, 1)^m an archetype.
    * ``"none"``: an independent random DAG for every cell. Covariates are the first principal components of the
      flattened networks: they are functions of the truth, for lack of anything else to go by.

    Every covariate gets Normal noise of standard deviation (1 / `covariate_signal` - 1) times its *variance*, as
    published. With weights up to 10 the variances of genes grow steeply along the order, by which the order can be
    read off (`metrics.varsortability`).

    Parameters
    ----------
    seed
        The same seed gives the same data.
    kind
        See above.
    num_cells, num_genes, num_archetypes
        Sizes; at least two cells and two genes.
    num_edges
        Edges of a random graph: exactly so many for ``"erdos_renyi"`` and ``"bipartite"``, at most as there is room
        for; ``"scale_free"`` attaches every gene to round(num_edges / num_genes) others, at least one.
    graph
        Type of the random graphs. ``"scale_free"`` is preferential attachment, the older gene regulating;
        ``"bipartite"`` lets a fifth of the genes, at least one, regulate the others. Genes are then shuffled.
    noise
        ``"gauss"``, ``"exponential"``, ``"gumbel"`` or ``"uniform"`` (on +-scale) noise e in x = x W + e, not centred:
        means scale and 0.577 scale of the second and third; or ``"logistic"``: each gene is Bernoulli with log odds
        x W, or ``"poisson"``: Poisson with log mean x W, cut at 10, for either of which `noise_scale` has no use.
    noise_scale
        Scale of the noise.
    weight_range
        Smallest and largest magnitude of a weight.
    min_distance
        Smallest squared distance between archetypes.
    acyclic_union
        Draw archetypes anew until their union is a DAG, so that one order serves all cells.
    num_covariates
        m, for kinds ``"archetypes"`` and ``"none"``; None gives 2 K.
    covariate_signal
        Between 0 and 1; 1 leaves the covariates without noise.

    Returns
    -------
    xr.Dataset
        ``expression (cell, gene)``, ``covariates (cell, covariate)`` and the truth ``true_networks (cell, regulator,
        target)``; except for ``"none"`` also ``true_archetypes (archetype, regulator, target)`` and ``true_mixture
        (cell, archetype)``: the weights of the archetypes before projection, 1 + u_k and u_j for ``"clusters"``, which
        do not sum to one, and shares for ``"archetypes"``. For ``"clusters"`` ``cluster (cell)`` is k.

    Raises
    ------
    DataError
        If a setting is out of range, or no archetypes are found that are as distant, or as agreed, as wanted.

    Examples
    --------
    >>> from embergraph.datasets import simulated_published
    >>> data = simulated_published(seed=1, num_cells=50)
    >>> data["covariates"].shape
    (50, 16)
    """
    settings: dict[str, Any] = {
        "seed": seed, "kind": kind, "num_cells": num_cells, "num_genes": num_genes, "num_archetypes": num_archetypes,
        "num_edges": num_edges, "graph": graph, "noise": noise, "noise_scale": noise_scale,
        "weight_range": tuple(weight_range), "min_distance": min_distance, "acyclic_union": int(acyclic_union),
        "num_covariates": 2 * num_archetypes if num_covariates is None else num_covariates,
        "covariate_signal": covariate_signal,
    }  # fmt: skip
    _check(settings)
    rng = np.random.default_rng(seed)
    truth: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    if kind == "none":
        networks = np.stack([_random_dag(rng, settings) for _ in range(num_cells)])
        covariates = _principal_components(networks, settings["num_covariates"])
    else:
        archetypes = _archetypes(rng, settings)
        if kind == "clusters":
            cluster, mixture, covariates = _clusters(rng, num_cells, num_archetypes)
            networks = project(torch.as_tensor(_mixed(mixture, archetypes))).networks.numpy()
            truth["cluster"] = (("cell",), cluster)
        else:
            mixture = _pairs(rng, num_cells, archetypes)
            networks = _mixed(mixture, archetypes)
            covariates = mixture @ rng.uniform(size=(num_archetypes, settings["num_covariates"]))
        truth["true_mixture"] = (("cell", "archetype"), mixture)
        truth["true_archetypes"] = (("archetype", "regulator", "target"), archetypes)
    truth["true_networks"] = (("cell", "regulator", "target"), networks)
    spread = (1 / covariate_signal - 1) * covariates.var(axis=0)
    covariates = covariates + spread * rng.normal(size=covariates.shape)
    data = from_arrays(solve(rng, networks, noise, noise_scale), covariates).assign(truth)
    genes = data["gene"].to_numpy()
    if kind != "none":
        data = data.assign_coords(archetype=[f"archetype_{k}" for k in range(num_archetypes)])
    return data.assign_coords(regulator=genes, target=genes).assign_attrs(simulator="simulated_published", **settings)


def _random_dag(rng: np.random.Generator, settings: Mapping[str, Any]) -> Float[np.ndarray, "regulator target"]:
    p, edges = settings["num_genes"], settings["num_edges"]
    # The smaller of two nodes regulates: the older one, or that of the regulating side.
    if settings["graph"] == "bipartite":
        edge, regulators = np.zeros((p, p)), max(1, p // 5)
        chosen = rng.permutation(regulators * (p - regulators))[:edges]
        edge[:regulators, regulators:].flat[chosen] = 1.0
    else:
        chance = int(rng.integers(2**31))
        attached = min(p - 1, max(1, round(edges / p)))
        erdos_renyi = settings["graph"] == "erdos_renyi"
        graph = nx.gnm_random_graph(p, edges, chance) if erdos_renyi else nx.barabasi_albert_graph(p, attached, chance)
        edge = np.triu(nx.to_numpy_array(graph, nodelist=range(p)), 1)
    low, high = settings["weight_range"]
    weights = rng.uniform(low, high, size=(p, p)) * rng.choice([-1.0, 1.0], size=(p, p))
    order = rng.permutation(p)
    dag = np.zeros((p, p))
    dag[np.ix_(order, order)] = edge * weights
    return dag


def _archetypes(
    rng: np.random.Generator, settings: Mapping[str, Any]
) -> Float[np.ndarray, "archetype regulator target"]:
    found = np.zeros((0, settings["num_genes"], settings["num_genes"]))
    for _ in range(_TRIES):
        new = _random_dag(rng, settings)
        far = (((found - new) ** 2).sum((-2, -1)) > settings["min_distance"]).all()
        union = (found != 0).any(axis=0) | (new != 0)
        if far and (not settings["acyclic_union"] or bool(is_acyclic(torch.as_tensor(union)))):
            found = np.concatenate([found, new[None]])
        if len(found) == settings["num_archetypes"]:
            return found
    raise DataError(
        f"found {len(found)} archetypes at squared distances above {settings['min_distance']}"
        f"{' with an acyclic union' if settings['acyclic_union'] else ''} among {_TRIES} random graphs; wanted "
        f"{settings['num_archetypes']}: ask for fewer, or less distance"
    )


def _clusters(rng: np.random.Generator, num_cells: int, num_archetypes: int) -> tuple[Array, Array, Array]:
    """Cluster, weights of the archetypes and covariates of every cell."""
    cluster = rng.integers(num_archetypes, size=num_cells)
    indicator = np.eye(num_archetypes)[cluster]
    u = rng.uniform(-0.2, 0.2, size=(num_cells, num_archetypes))
    return cluster, indicator + u, np.concatenate([indicator, u], axis=1)


def _pairs(
    rng: np.random.Generator, num_cells: int, archetypes: Float[np.ndarray, "archetype regulator target"]
) -> Float[np.ndarray, "cell archetype"]:
    """Shares of two archetypes in every cell, such that all mixtures are DAGs."""
    mixture = np.zeros((num_cells, len(archetypes)))
    wanted = np.arange(num_cells)
    while wanted.size:  # ends: a pair of one archetype with itself is a DAG
        pair = rng.integers(len(archetypes), size=(wanted.size, 2))
        share = rng.uniform(size=(wanted.size, 2))
        mixture[wanted] = 0.0
        np.add.at(mixture, (wanted[:, None], pair), share / share.sum(axis=1, keepdims=True))
        wanted = wanted[~is_acyclic(torch.as_tensor(_mixed(mixture[wanted], archetypes))).numpy()]
    return mixture


def _mixed(mixture: Array, archetypes: Array) -> Array:
    return np.einsum("nk,kab->nab", mixture, archetypes)


def _principal_components(networks: Float[np.ndarray, "cell regulator target"], count: int) -> Array:
    flat = networks.reshape(len(networks), -1)
    left, size, _ = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    return left[:, :count] * size[:count]


def _check(settings: Mapping[str, Any]) -> None:
    least = {"num_cells": 2, "num_genes": 2, "num_archetypes": 1, "num_edges": 1, "num_covariates": 1}
    for name, smallest in least.items():
        if settings[name] < smallest:
            raise DataError(f"{name} is {settings[name]}; wanted at least {smallest}")
    for name, options in (("kind", NetworkKind), ("graph", GraphKind), ("noise", NoiseKind)):
        if settings[name] not in get_args(options):
            raise DataError(f"{name} is {settings[name]!r}; wanted one of {listed(get_args(options))}")
    if settings["kind"] == "clusters" and settings["num_covariates"] != 2 * settings["num_archetypes"]:
        raise DataError(
            f"num_covariates is {settings['num_covariates']}; wanted None for kind 'clusters', which has 2 K"
        )
    most = min(settings["num_cells"], settings["num_genes"] * (settings["num_genes"] - 1))
    if settings["kind"] == "none" and settings["num_covariates"] > most:
        raise DataError(f"num_covariates is {settings['num_covariates']}; wanted at most {most}, the components")
    low, high = settings["weight_range"]
    if not 0 < low <= high < np.inf:
        raise DataError(f"weight_range is {settings['weight_range']}; wanted two positive numbers, the smaller first")
    if not 0 < settings["noise_scale"] < np.inf:
        raise DataError(f"noise_scale is {settings['noise_scale']}; wanted a positive number")
    if not settings["min_distance"] >= 0:
        raise DataError(f"min_distance is {settings['min_distance']}; wanted a number that is not negative")
    if not 0 < settings["covariate_signal"] <= 1:
        raise DataError(f"covariate_signal is {settings['covariate_signal']}; wanted a number above 0, at most 1")
