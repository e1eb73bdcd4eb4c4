"""Simulated matrices with graphs of cells and of genes, under multiplicative noise, with the truth alongside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import networkx as nx
import numpy as np
import xarray as xr

from ..models.parts.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Float

GraphKind = Literal["tree", "barabasi_albert", "erdos_renyi", "ring", "blocks"]
Signs = Literal["random", "positive"]
NoiseLaw = Literal["chi2", "lognormal"]


def simulated_matrix(
    num_cells: int = 100,
    num_genes: int = 150,
    *,
    num_replicates: int | None = None,
    graph: GraphKind = "tree",
    strength: float = 1 / 1.1,
    signs: Signs = "random",
    noise: float = 1.0,
    noise_law: NoiseLaw = "chi2",
    shared_scales: bool = False,
    density: float = 1.0,
    attachments: int = 2,
    mean_degree: float = 2.5,
    num_neighbours: int = 2,
    clique_size: int = 5,
    seed: int = 0,
) -> xr.Dataset:
    """Simulate D = (u v') o X with vec(X) ~ Normal(0, inverse of the Kronecker sum of Psi_cell and Psi_gene).

    Both graphs are of one kind. With adjacency A, its degrees Dg and signs E, Psi = I + strength Dg^-1/2 (A o E)
    Dg^-1/2, whose eigenvalues lie within 1 +- strength. log u = noise * log of chi-square draws with one degree of
    freedom (sd 2.22), or noise * standard normal draws, centred to sum zero; v likewise.

    Every part has its own stream of random numbers: the same seed with another `noise`, `noise_law` or `density` gives
    the same graphs and the same X, and with other `signs` the same graphs.

    Parameters
    ----------
    num_cells, num_genes
        Shape of a matrix.
    num_replicates
        Number of matrices that share both graphs; None gives one matrix without the dim ``replicate``.
    graph
        ``"tree"`` (preferential attachment, one edge a node), ``"barabasi_albert"`` (`attachments` edges a node),
        ``"erdos_renyi"`` (`mean_degree`), ``"ring"`` (`num_neighbours` on each side), ``"blocks"`` (cliques of
        `clique_size`, the last one smaller if need be).
    strength
        Above 0 and below 1.
    signs
        Of the edges: ``"random"``, or ``"positive"`` as in the published experiment (negative partial correlations).
    noise
        Exponent of the noise, at least 0; 0 gives u = v = 1.
    noise_law
        ``"chi2"`` as published, or ``"lognormal"``.
    shared_scales
        Whether all replicates have the same u and v.
    density
        Probability that an entry is kept; others are set to zero. Rows and columns may end up empty.
    attachments, mean_degree, num_neighbours, clique_size
        Of the graph, see above.
    seed
        The same seed gives the same data.

    Returns
    -------
    xr.Dataset
        ``expression`` and ``true_expression`` (X, zeros included) over ([replicate,] cell, gene), ``true_log_u
        ([replicate,] cell)``, ``true_log_v ([replicate,] gene)``, ``true_cell_precision (cell, cell_other)``,
        ``true_gene_precision (gene, gene_other)``. Attributes hold the settings.

    Raises
    ------
    DataError
        If a setting is out of range.

    References
    ----------
    The experiment of the MED-MAGMA paper, section 4.1, with the sampling formula made independent of the choice of
    eigenvectors, and with random signs.

    Examples
    --------
    >>> from embergraph.datasets import simulated_matrix
    >>> data = simulated_matrix(20, 30, num_replicates=3, noise=0.5)
    >>> dict(data["expression"].sizes)
    {'replicate': 3, 'cell': 20, 'gene': 30}
    """
    settings = {key: value for key, value in locals().items() if value is not None}
    _check(settings)
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(5)]
    cells, genes = (_precision(rng, size, settings) for rng, size in zip(streams, (num_cells, num_genes), strict=False))
    lead = () if num_replicates is None else ("replicate",)
    count = (1 if num_replicates is None else num_replicates,)
    truth = _sample(streams[2], count[0], cells, genes)
    truth = truth * (streams[4].random(truth.shape) < density)
    own = () if shared_scales else lead
    log_u, log_v = (
        _log_scales(streams[3], (*(count if own else (1,)), size), noise, noise_law) for size in (num_cells, num_genes)
    )
    expression = np.exp(log_u)[:, :, None] * np.exp(log_v)[:, None, :] * truth
    names = {dim: [f"{dim}_{i}" for i in range(size)] for dim, size in (("cell", num_cells), ("gene", num_genes))}
    if lead:
        names["replicate"] = [f"replicate_{i}" for i in range(count[0])]
    variables = {
        "expression": ((*lead, "cell", "gene"), expression if lead else expression[0]),
        "true_expression": ((*lead, "cell", "gene"), truth if lead else truth[0]),
        "true_log_u": ((*own, "cell"), log_u if own else log_u[0]),
        "true_log_v": ((*own, "gene"), log_v if own else log_v[0]),
        "true_cell_precision": (("cell", "cell_other"), cells),
        "true_gene_precision": (("gene", "gene_other"), genes),
    }
    coords = names | {f"{dim}_other": names[dim] for dim in ("cell", "gene")}
    settings["shared_scales"] = int(shared_scales)  # netCDF attributes know no booleans
    return xr.Dataset(variables, coords=coords, attrs={"simulator": "simulated_matrix", **settings})


def _precision(rng: np.random.Generator, size: int, settings: Mapping[str, Any]) -> Float[np.ndarray, "node node"]:
    graph = _graph(int(rng.integers(2**31)), size, settings)
    adjacency = np.triu(nx.to_numpy_array(graph, nodelist=range(size)), 1)
    if settings["signs"] == "random":
        adjacency *= rng.choice([-1.0, 1.0], size=adjacency.shape)
    adjacency += adjacency.T
    root = np.sqrt(np.maximum(np.abs(adjacency).sum(0), 1.0))
    return np.eye(size) + settings["strength"] * adjacency / np.outer(root, root)


def _graph(seed: int, size: int, settings: Mapping[str, Any]) -> nx.Graph:
    kind = settings["graph"]
    if kind in ("tree", "barabasi_albert"):
        return nx.barabasi_albert_graph(size, 1 if kind == "tree" else settings["attachments"], seed=seed)
    if kind == "erdos_renyi":
        return nx.gnp_random_graph(size, min(1.0, settings["mean_degree"] / (size - 1)), seed=seed)
    if kind == "ring":
        return nx.circulant_graph(size, range(1, settings["num_neighbours"] + 1))
    clique = settings["clique_size"]
    return nx.disjoint_union_all(nx.complete_graph(min(clique, size - start)) for start in range(0, size, clique))


def _sample(
    rng: np.random.Generator,
    count: int,
    row_precision: Float[np.ndarray, "cell cell"],
    column_precision: Float[np.ndarray, "gene gene"],
) -> Float[np.ndarray, "replicate cell gene"]:
    """X = V_1 [(V_1' E V_2) / sqrt(lam_i + mu_j)] V_2', which no rotation within an eigenspace changes."""
    row_values, row_vectors = np.linalg.eigh(row_precision)
    column_values, column_vectors = np.linalg.eigh(column_precision)
    normal = rng.standard_normal((count, len(row_values), len(column_values)))
    spectral = row_vectors.T @ normal @ column_vectors / np.sqrt(row_values[:, None] + column_values)
    return row_vectors @ spectral @ column_vectors.T


def _log_scales(
    rng: np.random.Generator, shape: tuple[int, int], noise: float, law: NoiseLaw
) -> Float[np.ndarray, "replicate node"]:
    normal = rng.standard_normal(shape)
    logs = noise * (2 * np.log(np.abs(normal)) if law == "chi2" else normal)
    return logs - logs.mean(-1, keepdims=True)


def _check(settings: Mapping[str, Any]) -> None:
    least = {"num_cells": 2, "num_genes": 2, "num_replicates": 1, "num_neighbours": 1, "clique_size": 1}
    least |= {"attachments": 1, "mean_degree": 0, "noise": 0}
    for name, smallest in least.items():
        if name in settings and not smallest <= settings[name] < np.inf:
            raise DataError(f"{name}: found {settings[name]}; wanted a number of at least {smallest}")
    if settings["graph"] == "barabasi_albert" and settings["attachments"] >= min(
        settings["num_cells"], settings["num_genes"]
    ):
        raise DataError(f"attachments: found {settings['attachments']}; wanted fewer than cells and than genes")
    if not 0 < settings["strength"] < 1:
        raise DataError(f"strength: found {settings['strength']}; wanted a number between 0 and 1")
    if not 0 < settings["density"] <= 1:
        raise DataError(f"density: found {settings['density']}; wanted a number above 0 and at most 1")
    for name, kind in (("graph", GraphKind), ("signs", Signs), ("noise_law", NoiseLaw)):
        if settings[name] not in get_args(kind):
            raise DataError(f"{name}: found {settings[name]!r}; wanted one of {', '.join(get_args(kind))}")
