"""Held-out densities of single entries: one gene of a cell given the others of that cell."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..models.parts.errors import SchemaError
from ..models.schema import Schema
from .draws import Pass, Site
from .export import build_tree
from .inputs import DataLike, to_inputs
from .options import check_counts
from .query import checked, example_of, global_draws, inside, roles_for_new_cells
from .replicated import named_as_inputs, names_of_inputs
from .sampler import Sampler

if TYPE_CHECKING:
    from jaxtyping import Float

    from .fit import Fit

CHUNK_ELEMENTS = 8_000_000
"""Numbers of a part: draws x cells x genes x genes, as the networks of cells have them."""


class EntryMeans:
    """Means over draws from which densities of entries follow, one part of the draws after the other.

    With draws s of everything, weights w_s = p(x_i | s) and conditional densities c_s = p(x_ig | rest of the cell, s),
    the density of the entry given the rest of its cell and the training data is

        E[w_s] / E[w_s / c_s],

    since w_s / c_s is the density of the rest: draws under which the rest is likely count for more. Where the cell
    itself was among the training data all w_s are equal, and what remains is the leave-one-out identity 1 / E[1 / c_s].
    """

    def __init__(self) -> None:
        self.top: Tensor | None = None
        self.bottom = self.squares = torch.zeros(())

    def add(self, log_weight: Float[Tensor, "draw *entry"], log_prob: Float[Tensor, "draw *entry"]) -> None:
        """Take some more draws; shapes broadcast."""
        log_prob = log_prob.double()
        top = log_weight.double().logsumexp(0)
        rest = log_weight.double() - log_prob
        bottom, squares = rest.logsumexp(0), (2 * rest).logsumexp(0)
        if self.top is None:
            self.top, self.bottom, self.squares = top, bottom, squares
        else:
            self.top = torch.logaddexp(self.top, top)
            self.bottom, self.squares = torch.logaddexp(self.bottom, bottom), torch.logaddexp(self.squares, squares)

    @classmethod
    def joined(cls, parts: Sequence[EntryMeans]) -> EntryMeans:
        """The means of several parts of the rows as one."""
        result = cls()
        result.top = torch.cat([part.top for part in parts if part.top is not None])
        result.bottom = torch.cat([part.bottom for part in parts])
        result.squares = torch.cat([part.squares for part in parts])
        return result

    def log_density(self) -> Float[Tensor, "*entry"]:
        """Log density of every entry, nats."""
        return (torch.zeros(()) if self.top is None else self.top) - self.bottom

    def effective_draws(self) -> Float[Tensor, "*entry"]:
        """How many equally weighted draws the density of the rest of the cell rests on; few: the number is rough."""
        return (2 * self.bottom - self.squares).exp()


def entry_log_density(fit: Fit, data: DataLike, num_samples: int = 200, *, seed: int = 0) -> xr.Dataset:
    """Densities of the entries of held-out cells; see `Fit.entry_log_density`."""
    check_counts(num_samples=num_samples, seed=seed)
    dataset = checked(fit, data)
    roles_for_new_cells(fit)
    values = global_draws(fit, num_samples, seed=seed)
    found = [_of_rows(fit, part, values, num_samples, seed) for part in _row_blocks(fit, dataset)]
    return (found[0] if len(found) == 1 else xr.concat(found, dim=fit.schema.plate)).assign_attrs(held_out=1)


def leave_one_out_entries(fit: Fit, data: DataLike, num_samples: int, *, seed: int = 0) -> xr.Dataset:
    """Densities of the entries of the training data, each given all others, by importance weights."""
    check_counts(num_samples=num_samples, seed=seed)
    dataset = checked(fit, data)
    inputs = to_inputs(fit.schema, dataset, device=fit.device)
    means: dict[str, tuple[tuple[str, ...], EntryMeans]] = {}
    with inside(fit, inputs, seed):
        sampler = Sampler(fit.model, fit.guide, inputs)
        for count in _counts(num_samples, sampler, inputs, fit.schema):
            values, _ = sampler.guide_values(count)
            for site, (plates, scores) in sampler.entry_log_likelihood(values, count)[1].items():
                means.setdefault(site, (plates, EntryMeans()))[1].add(torch.zeros_like(scores), scores)
        first = {name: value[:1] for name, value in values.items()}
        scored, _ = sampler.observed(first)
    return named_entries(fit, dataset, means, scored, {}).assign_attrs(held_out=0)


def _of_rows(fit: Fit, dataset: xr.Dataset, values: Mapping[str, Tensor], num_samples: int, seed: int) -> xr.Dataset:
    inputs = to_inputs(fit.schema, dataset, device=fit.device)
    total = len(next(iter(values.values()))) if values else num_samples
    means: dict[str, tuple[tuple[str, ...], EntryMeans]] = {}
    with inside(fit, inputs, seed):
        sampler = Sampler(fit.model, None, inputs, example_of(fit, values))
        start = 0
        for count in _counts(total, sampler, inputs, fit.schema):
            part = {name: value[start : start + count] for name, value in values.items()}
            start += count
            rows, entries = sampler.entry_log_likelihood(part, count)
            weight = _row_weights(rows, fit.schema.plate)
            for site, (plates, scores) in entries.items():
                axis = 1 + plates.index(fit.schema.plate)
                shape = [count if i == 0 else -1 if i == axis else 1 for i in range(scores.dim())]
                means.setdefault(site, (plates, EntryMeans()))[1].add(weight.reshape(shape), scores)
        scored, counted = sampler.observed({name: value[:1] for name, value in values.items()})
    return named_entries(fit, dataset, means, scored, counted)


def _row_weights(rows: Mapping[str, Site], plate: str) -> Float[Tensor, "draw row"]:
    total = torch.zeros((), dtype=torch.double)
    for site, (plates, scores) in rows.items():
        if plate not in plates:
            raise SchemaError(
                f"{site}: found plates {plates}; wanted one named {plate!r}, the rest of whose rows is conditioned on"
            )
        axes = [i + 1 for i, name in enumerate(plates) if name != plate]
        total = total + (scores.double().sum(axes) if axes else scores.double())
    return total


def _counts(total: int, sampler: Sampler, inputs: Mapping[str, Tensor], schema: Schema) -> list[int]:
    """Sizes of the parts that draws are taken in."""
    step = min(sampler.chunk, max(1, CHUNK_ELEMENTS // _elements(inputs, schema)))
    return [min(step, total - start) for start in range(0, total, step)]


def _elements(inputs: Mapping[str, Tensor], schema: Schema) -> int:
    sizes = [
        value.numel() * value.shape[-1] for name, value in inputs.items() if name in schema.observed and value.dim()
    ]
    return max([1, *sizes])


def _row_blocks(fit: Fit, dataset: xr.Dataset) -> Iterator[xr.Dataset]:
    """Rows in parts, for models of any number of them."""
    plate, size = fit.schema.plate, dataset.sizes.get(fit.schema.plate, 1)
    own = isinstance(getattr(fit.model, "schema", None), Schema)
    observed = [dataset[name] for name in fit.schema.observed if name in dataset]
    each = max([1, *(v.size // max(1, v.sizes.get(plate, 1)) * v.shape[-1] for v in observed if v.ndim)])
    step = max(1, 4 * CHUNK_ELEMENTS // each) if own else size
    for start in range(0, size, step):
        yield dataset if step >= size else dataset.isel({plate: slice(start, start + step)})


def named_entries(
    fit: Fit,
    dataset: xr.Dataset,
    means: Mapping[str, tuple[tuple[str, ...], EntryMeans]],
    scored: Mapping[str, Site],
    counted: Mapping[str, Site],
) -> xr.Dataset:
    """Densities and effective numbers of draws with the dims and labels of the data."""

    def named(sites: Mapping[str, Site]) -> xr.Dataset:
        tree = build_tree(fit.schema, dataset, Pass({}, {}, torch.zeros(1), None, {}, dict(sites)))
        return tree["observed_data"].to_dataset()

    observed = named(scored)
    names = names_of_inputs(fit, dataset, observed)
    variables: dict[str, xr.DataArray] = {}
    for what in ("log_density", "effective_draws"):
        sites = {}
        for site, (plates, of_site) in means.items():
            values = getattr(of_site, what)().cpu()
            if site in counted:
                values = torch.where(counted[site][1].cpu(), values, math.nan)
            sites[site] = (plates, values)
        for key, scores in named_as_inputs(named(sites), names).data_vars.items():
            variables[what if len(means) == 1 else f"{key}.{what}"] = scores
    result = xr.Dataset(variables)
    result.attrs["fewest_draws"] = float(min(np.nanmin(v) for n, v in result.items() if str(n).endswith("draws")))
    return result
