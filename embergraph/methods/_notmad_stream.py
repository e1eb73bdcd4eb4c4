"""Networks of cells in parts: what fits into memory of draws x cells x regulators x targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..inference.messengers import isolated
from ..models.notmad import NOTMAD
from ..models.parts.projection import is_acyclic

if TYPE_CHECKING:
    from jaxtyping import Float, Int

CHUNK_ELEMENTS = 8_000_000
"""Numbers of a part; the peak is a few times as much."""
ARCHETYPE_ELEMENTS = 32_000_000
"""Numbers of the archetypes, all draws of some regulators, that cells are mixtures of."""
ACYCLIC_WORK = 5e8
Values = dict[str, Tensor]


@dataclass(frozen=True)
class Part:
    """Some regulators of the networks of some cells, in every draw.

    Attributes
    ----------
    cells, regulators
        Which, as slices of all.
    networks
        W (draw, cell, regulator, target).
    """

    cells: slice
    regulators: slice
    networks: Float[Tensor, "draw cell regulator target"]


def parts_of(model: NOTMAD, table: Float[np.ndarray, "cell covariate"], values: Values, seed: int) -> Iterator[Part]:
    """Networks of all cells, part by part.

    Mixtures of archetypes are taken for some regulators of some cells at a time. The projected form needs whole
    networks: there a part is at least all draws of one cell.
    """
    if model.form == "projected":
        yield from (Part(cells, slice(0, model.num_genes), W) for cells, W in whole(model, table, values, seed))
        return
    cells: list[slice] = []
    for regulators, archetypes in archetype_rows(model, values):
        flat = archetypes.flatten(-2)
        each = max(mixture_size(model, values), flat.shape[0] * flat.shape[-1])
        cells = cells or list(pieces(len(table), each))  # the same for all regulators, and so the cells' own logits
        for at in cells:
            Z = mixture_of(model, table, values, seed, at)
            yield Part(at, regulators, (Z @ flat).unflatten(-1, archetypes.shape[-2:]))


def whole(
    model: NOTMAD,
    table: Float[np.ndarray, "cell covariate"],
    values: Values,
    seed: int,
    change: Callable[[Tensor], Tensor] = lambda networks: networks,
) -> Iterator[tuple[slice, Float[Tensor, "draw cell regulator target"]]]:
    """Whole networks of some cells at a time, changed by a function of (draw, cell, regulator, target).

    A part holds all draws of at least one cell; where these are more than a part should be, the function gets them
    in batches of draws.
    """
    num_draws, size = num_draws_of(values), model.num_genes**2
    for cells in pieces(len(table), num_draws * size):
        covariates = as_input(model, table[cells])
        batches = []
        for draws in pieces(num_draws, (cells.stop - cells.start) * size):
            with torch.no_grad(), own_logits(model, seed, cells.start, draws.start):
                batches.append(change(model.networks_of(covariates, some(values, draws))[0]))
        yield cells, batches[0] if len(batches) == 1 else torch.cat(batches)


def group_means(
    model: NOTMAD, tables: Sequence[Float[np.ndarray, "cell covariate"]], values: Values, seed: int
) -> Iterator[tuple[slice, list[Float[Tensor, "draw regulator target"]]]]:
    """Mean networks of groups of cells, draw by draw: some regulators at a time, all groups."""
    groups = [distinct(model, table)[::2] for table in tables]
    if model.form == "projected":
        means = []
        for table, counts in groups:
            means.append(_total(_weighted(W, at, counts) for at, W in whole(model, table, values, seed)))
        yield slice(0, model.num_genes), means
        return
    weights = []
    for table, counts in groups:
        cells = pieces(len(table), mixture_size(model, values))
        weights.append(_total(_weighted(mixture_of(model, table, values, seed, at), at, counts) for at in cells))
    for regulators, archetypes in archetype_rows(model, values):
        flat = archetypes.flatten(-2)
        yield regulators, [(w.unsqueeze(1) @ flat).squeeze(1).unflatten(-1, archetypes.shape[-2:]) for w in weights]


def archetype_rows(
    model: NOTMAD, values: Values
) -> Iterator[tuple[slice, Float[Tensor, "draw archetype regulator target"]]]:
    """W_k of all draws, some regulators at a time."""
    num_draws, p, K = num_draws_of(values), model.num_genes, model.num_archetypes
    for regulators in pieces(p, num_draws * K * p, ARCHETYPE_ELEMENTS):
        every = regulators.stop - regulators.start == p
        batches = []
        for draws in pieces(num_draws, K * p * p):
            with torch.no_grad():
                W = model.archetypes_of(some(values, draws))
            batches.append(W if every else W[:, :, regulators].clone())
        yield regulators, batches[0] if len(batches) == 1 else torch.cat(batches)


def mixture_of(
    model: NOTMAD,
    table: Float[np.ndarray, "cell covariate"],
    values: Values,
    seed: int,
    cells: slice = slice(None),
) -> Float[Tensor, "draw cell archetype"]:
    """Z of some cells of a table in every draw; logits that cells have for themselves are drawn."""
    with torch.no_grad(), own_logits(model, seed, cells.start or 0):
        return model.mixture_of(as_input(model, table[cells]), values)


def own_logits(model: NOTMAD, seed: int, *start: int) -> AbstractContextManager[Any]:
    """Random state in which new cells get logits of their own: one for each part of the cells."""
    return isolated(hash((seed, *start)) % 2**31) if model.has_logits else nullcontext()


def distinct(
    model: NOTMAD, table: Float[np.ndarray, "cell covariate"]
) -> tuple[Float[np.ndarray, "row covariate"], Int[np.ndarray, " cell"], Int[np.ndarray, " row"]]:
    """Different rows of a table, the row of every cell, and counts; cells with logits of their own all differ."""
    if model.has_logits:
        return table, np.arange(len(table)), np.ones(len(table), dtype=int)
    rows, inverse, counts = np.unique(table, axis=0, return_inverse=True, return_counts=True)
    return rows, inverse.ravel(), counts


def mixture_size(model: NOTMAD, values: Values) -> int:
    """Numbers that the mixture of one cell takes in all draws; the units of a network differ between draws."""
    units = len(model.encoder.feature_names) if model.encoder.hidden else 0
    return num_draws_of(values) * (model.num_archetypes + units)


def share_acyclic(
    model: NOTMAD, table: Float[np.ndarray, "cell covariate"], values: Values, seed: int, num_cells: int = 12
) -> float:
    """Share of drawn networks without cycles: of 12 cells spread over the table, and fewer draws of large networks."""
    p, rows = model.num_genes, np.unique(np.linspace(0, len(table) - 1, num_cells).round().astype(int))
    num_draws = num_draws_of(values)
    count = min(num_draws, max(1, int(ACYCLIC_WORK / p**3 / len(rows))))
    keep = np.linspace(0, num_draws - 1, count).round().astype(int)
    few = {name: value[keep] for name, value in values.items()}
    found = [float(is_acyclic(W).double().mean(0).sum()) for _, W in whole(model, table[rows], few, seed)]
    return sum(found) / len(rows)


def pieces(total: int, each: int, most: int | None = None) -> Iterator[slice]:
    """Slices of 0..total of as many items of size `each` as a part may hold, at least one."""
    step = max(1, (most or CHUNK_ELEMENTS) // max(1, each))
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


def some(values: Values, draws: slice) -> Values:
    """Values of some draws."""
    return {name: value[draws] for name, value in values.items()}


def num_draws_of(values: Values) -> int:
    """How many draws there are."""
    return len(next(iter(values.values())))


def as_input(model: NOTMAD, table: Float[np.ndarray, "cell covariate"]) -> Float[Tensor, "cell covariate"]:
    """Covariates as a tensor of the model's kind and device."""
    return torch.as_tensor(table).to(model.encoder.location)


def _weighted(part: Tensor, cells: slice, counts: np.ndarray) -> Tensor:
    """Sum over the cells of a part (second axis), each with its share of all cells."""
    share = torch.as_tensor(counts[cells] / counts.sum()).to(part)
    return torch.tensordot(part, share, dims=([1], [0]))


def _total(terms: Iterator[Tensor]) -> Tensor:
    total = next(terms)
    for term in terms:
        total = total + term
    return total
