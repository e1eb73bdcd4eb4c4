"""Simulated cells from environments that shift or cut single latent causes, with the truth alongside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import networkx as nx
import numpy as np
import xarray as xr

from ..models.parts.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    Offsets = Sequence[Mapping[int, float]] | Float[np.ndarray, "condition latent"]

LatentGraph = Literal["empty", "chain", "growing", "multi_parent"]
Intervention = Literal["noise", "hard"]
DecoderKind = Literal["linear", "mlp"]
LikelihoodKind = Literal["gaussian", "poisson"]

_HIDDEN = 3  # units of the network of a gene, as in the published experiment
_CONDITION_NUMBER = 6.0
_LIBRARY_SPREAD = 0.3


def simulated_environments(
    seed: int = 0,
    *,
    num_latents: int = 2,
    num_genes: int = 10,
    offsets: Offsets = ({}, {0: 3.0}, {1: 3.0}),
    num_cells: int | Sequence[int] = 4000,
    graph: LatentGraph = "empty",
    intervention: Intervention = "noise",
    decoder: DecoderKind = "linear",
    edge_probability: float = 0.5,
    latent_noise: float | Sequence[float] = 1.0,
    likelihood: LikelihoodKind = "gaussian",
    noise: float = 0.5**0.5,
    library_size: float = 4000.0,
    cell_seed: int | None = None,
) -> xr.Dataset:
    """Simulate x = g(c) + noise, c_k = z_k + sum_j B_jk c_j, where environments move the mean of single z_k.

    Latents are in causal order: an edge runs from an earlier to a later latent and has a weight of -1 or 1. Each gene
    has each latent as a parent with `edge_probability`, and at least one. The linear g has weights -1 and 1, and is
    drawn again until it has full rank and a condition number below 6; the other g is a network for each gene of its
    parents, with 3 ReLU units, weights -1 and 1 and no bias.

    The data are a function of the arguments alone. The latent graph, g and the cells of each environment have random
    numbers of their own: the same seed with other offsets gives the same g and the same noise of every cell, so that an
    offset of 0 is no intervention, whatever was simulated before.

    Parameters
    ----------
    seed
        Of the graph, of g and, unless `cell_seed` is given, of the cells.
    num_latents, num_genes
        Sizes; a linear g needs at least as many genes as latents.
    offsets
        For each environment the shifts of the mean of z by latent, in units of z: ``{}`` is a control; or a matrix, in
        which 0 stands for no intervention.
    num_cells
        Of every environment, or one number for each.
    graph
        Of the latents: ``"empty"``; ``"chain"``; ``"growing"`` (each latent has one earlier parent, chosen with
        probability proportional to its degree); ``"multi_parent"`` (0 to 3 earlier parents).
    intervention
        ``"noise"``: the law of z_k moves and all edges stay. ``"hard"``: edges into the shifted latents are cut as
        well, also where the offset of a named latent is 0.
    decoder
        Kind of g.
    edge_probability
        Of a latent and a gene, above 0.
    latent_noise
        Standard deviation of z, one number or one a latent; 0 makes a latent a deterministic function of its parents.
    likelihood
        ``"gaussian"``; or ``"poisson"``, counts with mean library * softmax(g(c)).
    noise
        Standard deviation of the Gaussian noise of every gene.
    library_size
        Median of the expected counts of a cell under ``"poisson"``, at least 100; log-normal with sd 0.3.
    cell_seed
        Another seed for the cells: new cells of the same graph and g, to test on.

    Returns
    -------
    xr.Dataset
        ``expression (cell, gene)``, ``environment (cell)``, ``descriptors (condition, feature)`` (the offsets), under
        ``"poisson"`` ``library (cell)`` (total counts), and the truth: ``true_z`` and ``true_c (cell, true_latent)``,
        ``true_targets`` (bool) and ``true_shift (condition, true_latent)``, ``true_graph (true_parent, true_latent)``
        and ``true_mixing (gene, true_latent)``, or for the network ``true_hidden_weights (gene, true_hidden,
        true_latent)`` and ``true_output_weights (gene, true_hidden)``. The first environment without targets is called
        ``"control"``. Attributes hold the settings.

    Raises
    ------
    DataError
        If a setting is out of range, or no mixing of full rank and small condition number turns up.

    References
    ----------
    Bertin (2020), "Towards Learning Cell Causal-Embeddings", section 6, with observation noise, counts and hard
    interventions added, and with networks that use the output weights of all their units.

    Examples
    --------
    >>> from embergraph.datasets import simulated_environments
    >>> data = simulated_environments(seed=1, num_cells=[50, 20, 20])
    >>> data["true_shift"].sel(condition="environment_1").values.tolist()
    [3.0, 0.0]
    """
    settings: dict[str, Any] = {
        "seed": seed, "num_latents": num_latents, "num_genes": num_genes, "graph": graph, "intervention": intervention,
        "decoder": decoder, "edge_probability": edge_probability, "likelihood": likelihood, "noise": noise,
        "library_size": library_size, "cell_seed": seed if cell_seed is None else cell_seed,
    }  # fmt: skip
    _check(settings)
    shift, targets = _shifts(offsets, num_latents, hard=intervention == "hard")
    counts = _counts(num_cells, len(shift))
    scale = np.broadcast_to(np.asarray(latent_noise, dtype=np.float64), (num_latents,))
    if not (np.isfinite(scale) & (scale >= 0)).all():
        raise DataError(f"latent_noise: found {latent_noise}; wanted standard deviations of at least 0")

    settings["latent_noise"] = scale.tolist()

    edges = _latent_graph(_stream(seed, 0), num_latents, graph)
    weights = _decoder(_stream(seed, 1), num_latents, num_genes, decoder, edge_probability)
    streams = [_stream(settings["cell_seed"], 2, place) for place in range(len(shift))]
    z = np.concatenate(
        [rng.normal(mean, scale, (n, num_latents)) for rng, mean, n in zip(streams, shift, counts, strict=True)]
    )
    environment = np.repeat(np.arange(len(shift)), counts)
    cut = targets[environment] if intervention == "hard" else np.zeros_like(z, dtype=bool)
    c = _causes(z, edges, cut)
    output = np.split(_decoded(c, weights), np.cumsum(counts)[:-1])
    draw = _gaussian if likelihood == "gaussian" else _poisson
    spread = noise if likelihood == "gaussian" else library_size
    expression = np.concatenate([draw(rng, block, spread) for rng, block in zip(streams, output, strict=True)])

    variables: dict[str, Any] = {
        "expression": (("cell", "gene"), expression),
        "environment": ("cell", environment),
        "descriptors": (("condition", "feature"), shift),
        "true_z": (("cell", "true_latent"), z),
        "true_c": (("cell", "true_latent"), c),
        "true_targets": (("condition", "true_latent"), targets),
        "true_shift": (("condition", "true_latent"), shift),
        "true_graph": (("true_parent", "true_latent"), edges),
        **weights,
    }
    if likelihood == "poisson":
        variables["library"] = ("cell", expression.sum(1))
    latents = [f"latent_{k}" for k in range(num_latents)]
    coords = {
        "cell": [f"cell_{i}" for i in range(len(z))],
        "gene": [f"gene_{j}" for j in range(num_genes)],
        "condition": _condition_names(targets),
        "feature": [f"offset_{k}" for k in range(num_latents)],
        "true_latent": latents,
        "true_parent": latents,
    }
    return xr.Dataset(variables, coords=coords, attrs={"simulator": "simulated_environments", **settings})


def _stream(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _shifts(
    offsets: Any, num_latents: int, *, hard: bool
) -> tuple[Float[np.ndarray, "condition latent"], Bool[np.ndarray, "condition latent"]]:
    """Shift of every latent in every environment, and which latents are targets."""
    if len(offsets) == 0:
        raise DataError("offsets: found no environment; wanted at least one")
    if isinstance(offsets[0], Mapping):
        shift, named = np.zeros((2, len(offsets), num_latents))
        for row, mark, given in zip(shift, named, offsets, strict=True):
            if not all(node in range(num_latents) for node in given):
                raise DataError(f"offsets: found latents {sorted(given)}; wanted 0 to {num_latents - 1}")
            row[list(given)], mark[list(given)] = list(given.values()), 1
    else:
        shift = named = np.array(offsets, dtype=np.float64)
    if shift.shape != (len(offsets), num_latents) or not np.isfinite(shift).all():
        raise DataError(
            f"offsets: found shape {shift.shape}, or not finite; wanted one number for {num_latents} latents"
        )
    return shift, (named if hard else shift) != 0


def _counts(num_cells: int | Sequence[int], num_environments: int) -> Int[np.ndarray, " condition"]:
    counts = np.asarray(num_cells)
    if counts.dtype.kind not in "iu" or counts.shape not in ((), (num_environments,)) or counts.min() < 1:
        raise DataError(f"num_cells: found {num_cells}; wanted a whole number above 0, or {num_environments} of them")
    return np.broadcast_to(counts, (num_environments,))


def _latent_graph(
    rng: np.random.Generator, size: int, kind: LatentGraph
) -> Float[np.ndarray, "true_parent true_latent"]:
    edges = np.zeros((size, size))
    if kind == "chain":
        edges = np.eye(size, k=1)
    elif kind == "growing":
        # networkx draws edges from the new node to the old one.
        edges = nx.to_numpy_array(nx.gn_graph(size, seed=int(rng.integers(2**31))), nodelist=range(size)).T
    elif kind == "multi_parent":
        for child in range(1, size):
            parents = rng.permutation(child)[: rng.integers(0, 4)]
            edges[parents, child] = 1.0
    return _signed(rng, edges)


def _signed(rng: np.random.Generator, pattern: Any) -> Float[np.ndarray, "*dims"]:
    """Weights of -1 and 1 where the pattern is not 0."""
    return np.where(pattern, rng.choice([-1.0, 1.0], size=pattern.shape), 0.0)


def _decoder(
    rng: np.random.Generator, num_latents: int, num_genes: int, kind: DecoderKind, edge_probability: float
) -> dict[str, Any]:
    """Weights of g as variables of the Dataset; drawn again until no latent is lost."""
    for _ in range(1000):
        parents = rng.random((num_genes, num_latents)) < edge_probability
        orphans = np.flatnonzero(~parents.any(1))
        parents[orphans, rng.integers(num_latents, size=orphans.size)] = True
        if kind == "linear":
            mixing = _signed(rng, parents)
            if np.linalg.cond(mixing) < _CONDITION_NUMBER:
                return {"true_mixing": (("gene", "true_latent"), mixing)}
        elif parents.any(0).all():
            hidden = _signed(rng, np.repeat(parents[:, None], _HIDDEN, axis=1))
            return {
                "true_hidden_weights": (("gene", "true_hidden", "true_latent"), hidden),
                "true_output_weights": (("gene", "true_hidden"), _signed(rng, np.ones((num_genes, _HIDDEN)))),
            }
    raise DataError(
        f"num_genes, edge_probability: found {num_genes}, {edge_probability}, with no well-conditioned mixing of "
        f"{num_latents} latents in 1000 draws; wanted more genes or an edge_probability nearer 0.5"
    )


def _causes(
    z: Float[np.ndarray, "cell latent"],
    edges: Float[np.ndarray, "true_parent true_latent"],
    cut: Bool[np.ndarray, "cell latent"],
) -> Float[np.ndarray, "cell latent"]:
    c = z.copy()
    for k in range(1, z.shape[1]):
        c[:, k] += np.where(cut[:, k], 0.0, c[:, :k] @ edges[:k, k])
    return c


def _decoded(c: Float[np.ndarray, "cell latent"], weights: Mapping[str, Any]) -> Float[np.ndarray, "cell gene"]:
    if "true_mixing" in weights:
        return c @ weights["true_mixing"][1].T
    hidden, output = weights["true_hidden_weights"][1], weights["true_output_weights"][1]
    units = np.maximum(np.tensordot(c, hidden, axes=(1, 2)), 0.0)  # (cell, gene, hidden)
    return (units * output).sum(-1)


def _gaussian(
    rng: np.random.Generator, output: Float[np.ndarray, "cell gene"], noise: float
) -> Float[np.ndarray, "cell gene"]:
    return output + noise * rng.normal(size=output.shape)


def _poisson(
    rng: np.random.Generator, output: Float[np.ndarray, "cell gene"], library_size: float
) -> Float[np.ndarray, "cell gene"]:
    library = library_size * np.exp(_LIBRARY_SPREAD * rng.normal(size=(len(output), 1)))
    share = np.exp(output - output.max(1, keepdims=True))
    return rng.poisson(library * share / share.sum(1, keepdims=True)).astype(np.float64)


def _condition_names(targets: Bool[np.ndarray, "condition latent"]) -> list[str]:
    names = [f"environment_{place}" for place in range(len(targets))]
    free = np.flatnonzero(~targets.any(1))
    if free.size:
        names[free[0]] = "control"
    return names


def _check(settings: Mapping[str, Any]) -> None:
    least = {"num_latents": 1, "num_genes": 1, "noise": 0, "library_size": 100}
    for name, smallest in least.items():
        if not smallest <= settings[name] < np.inf:
            raise DataError(f"{name}: found {settings[name]}; wanted a number of at least {smallest}")
    if not 0 < settings["edge_probability"] <= 1:
        raise DataError(f"edge_probability: found {settings['edge_probability']}; wanted above 0 and at most 1")
    kinds = (
        ("graph", LatentGraph), ("intervention", Intervention), ("decoder", DecoderKind), ("likelihood", LikelihoodKind)
    )  # fmt: skip
    for name, kind in kinds:
        if settings[name] not in get_args(kind):
            raise DataError(f"{name}: found {settings[name]!r}; wanted one of {', '.join(get_args(kind))}")
    if settings["decoder"] == "linear" and settings["num_genes"] < settings["num_latents"]:
        raise DataError(
            f"num_genes: found {settings['num_genes']}; wanted at least {settings['num_latents']}, one a latent"
        )
