"""Data replicated by a fit, part by part: what predictive checks compare the observed data with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..models.parts.errors import DataError, SchemaError
from .draws import Pass, Site, join
from .export import build_tree
from .inputs import DataLike, to_inputs
from .options import check_counts
from .query import checked, example_of, global_draws, inputs_for_prediction, inside, roles_for_new_cells, roles_of
from .sampler import Sampler

if TYPE_CHECKING:
    from .fit import Fit

PART_ELEMENTS = 1_000_000
Kind = Literal["posterior", "prior"]
Cells = Literal["auto", "new", "same"]


@dataclass(frozen=True)
class Replicated:
    """Observed variables, and draws of them under a fit.

    Attributes
    ----------
    observed
        What the observed sites of the model are scored on, one variable a site.
    counted
        Of sites under a mask: which entries count.
    cells
        ``"new"``: sites of single cells are drawn afresh from their prior; ``"same"``: from the posterior of the very
        cells; ``"none"``: draws of the prior, of everything.
    num_draws
        How many draws there are.
    """

    observed: xr.Dataset
    counted: xr.Dataset
    cells: str
    num_draws: int
    _source: _Source

    def parts(self) -> Iterator[xr.Dataset]:
        """Draws in parts that fit into memory; the first dim of every variable is ``draw``."""
        return self._source.parts()


def replicated(
    fit: Fit, data: DataLike, num_samples: int, *, kind: Kind = "posterior", cells: Cells = "auto", seed: int = 0
) -> Replicated:
    """Draw the observed variables anew; see `Fit.replicated`."""
    check_counts(num_samples=num_samples, seed=seed)
    for name, value, known in (("kind", kind, Kind), ("cells", cells, Cells)):
        if value not in get_args(known):
            raise DataError(f"{name}: found {value!r}; wanted one of {get_args(known)}")
    dataset = checked(fit, data)
    inputs = to_inputs(fit.schema, dataset, device=fit.device)
    if kind == "prior":
        if not fit.schema.normalised:
            raise SchemaError("kind: found 'prior' of a model with a flat prior or an unnormalised density; "
                              "wanted proper priors to draw from")  # fmt: skip
        source = _Source(fit, dataset, inputs, num_samples, seed)
        cells_of = "none"
    else:
        cells_of = _which(fit) if cells == "auto" else cells
        source = (_SameCells if cells_of == "same" else _NewCells)(fit, dataset, inputs, num_samples, seed)
    observed, counted = source.observed()
    return Replicated(observed, counted, cells_of, source.num_draws, source)


def _which(fit: Fit) -> str:
    """New cells, unless nothing is known of them without the data."""
    return "new" if fit.schema.normalised and not roles_of(fit).summed else "same"


def names_of_inputs(fit: Fit, dataset: xr.Dataset, observed: xr.Dataset) -> dict[str, xr.DataArray]:
    """Dims of observed sites that have no name, and the dims of the input that such a site is scored on."""
    names: dict[str, xr.DataArray] = {}
    for site, values in observed.data_vars.items():
        for name in fit.schema.observed:
            given = dataset[name]
            if given.shape == values.shape and np.array_equal(given.values, values.values):
                pairs = zip(map(str, values.dims), map(str, given.dims), strict=True)
                names |= {own: dataset[told] for own, told in pairs if own.startswith(f"{site}_dim_") and own != told}
    return {own: told for own, told in names.items() if told.dims[0] not in observed.dims}


def named_as_inputs(found: xr.Dataset, names: Mapping[str, xr.DataArray]) -> xr.Dataset:
    """Give dims the names and labels that `names_of_inputs` found."""
    unnamed = {own: told for own, told in names.items() if own in found.dims}
    coords = {told.dims[0]: told.values for told in unnamed.values() if told.coords}
    renamed = {own: str(told.dims[0]) for own, told in unnamed.items()}
    return found.drop_vars(list(unnamed), errors="ignore").rename_dims(renamed).assign_coords(coords)


class _Source:
    """Draws of the prior predictive distribution."""

    def __init__(
        self, fit: Fit, dataset: xr.Dataset, inputs: Mapping[str, Tensor], num_samples: int, seed: int
    ) -> None:
        self.fit, self.dataset, self.inputs, self.seed = fit, dataset, dict(inputs), seed
        self.num_draws, self.names = num_samples, dict[str, xr.DataArray]()
        with inside(fit, inputs, seed):
            self.sampler = self._sampler()

    def parts(self) -> Iterator[xr.Dataset]:
        slices = self.sampler.chunks(self.num_draws)
        seeds = np.random.SeedSequence(self.seed).generate_state(len(slices))
        waiting: list[Pass] = []
        for where, seed in zip(slices, seeds.tolist(), strict=True):
            with inside(self.fit, self.inputs, seed), torch.no_grad():  # nothing of it is open between two parts
                drawn = self._draw(where)
            waiting.append(Pass({}, {}, torch.zeros(where.stop - where.start), None, drawn))
            size = sum(value.numel() for part in waiting for _, value in part.predictive.values())
            if size >= PART_ELEMENTS or where.stop == self.num_draws:  # names cost more than a small draw
                yield named_as_inputs(self._named(join(waiting), "posterior_predictive"), self.names)
                waiting = []

    def observed(self) -> tuple[xr.Dataset, xr.Dataset]:
        """Observed values, and which of them count."""
        with inside(self.fit, self.inputs, self.seed):
            scored, counted = self._full_sampler().observed(self._one_draw())
        empty = torch.zeros(1)
        both = [self._named(Pass({}, {}, empty, None, {}, sites), "observed_data") for sites in (scored, counted)]
        if not both[0].data_vars:
            raise SchemaError("data: found no site of the model that is scored on them; wanted an observed variable")
        self.names = names_of_inputs(self.fit, self.dataset, both[0])
        return named_as_inputs(both[0], self.names), named_as_inputs(both[1], self.names)

    def _sampler(self) -> Sampler:
        return Sampler(self.fit.model, None, self.inputs)

    def _full_sampler(self) -> Sampler:
        return self.sampler

    def _one_draw(self) -> Mapping[str, Tensor]:
        return {}

    def _draw(self, where: slice) -> dict[str, Site]:
        return self.sampler.replicate(where.stop - where.start)

    def _named(self, result: Pass, group: str) -> xr.Dataset:
        tree = build_tree(self.fit.schema, self.dataset, result)
        found = tree[group].to_dataset() if group in tree.children else xr.Dataset()
        return found.isel(chain=0, drop=True) if "chain" in found.dims else found


class _SameCells(_Source):
    """Draws given the posterior of all sites, those of the cells too."""

    def _sampler(self) -> Sampler:
        if self.fit.guide is not None:
            return Sampler(self.fit.model, self.fit.guide, self.inputs)
        self.values = self.fit.stored.thinned(self.num_draws).flat()
        self.num_draws = len(next(iter(self.values.values())))
        return Sampler(self.fit.model, None, self.inputs, example_of(self.fit, self.values))

    def _one_draw(self) -> Mapping[str, Tensor]:
        return self.sampler.completed(self._values(slice(0, 1)), 1)

    def _values(self, where: slice) -> dict[str, Tensor]:
        if self.fit.guide is not None:
            return self.sampler.guide_values(where.stop - where.start)[0]
        return {name: value[where].to(self.fit.device) for name, value in self.values.items()}

    def _draw(self, where: slice) -> dict[str, Site]:
        count = where.stop - where.start
        return self.sampler.replicate(count, self.sampler.completed(self._values(where), count))


class _NewCells(_Source):
    """Draws given the posterior of the sites of all cells; sites of single cells come from their prior."""

    def _sampler(self) -> Sampler:
        self.roles = roles_for_new_cells(self.fit)
        if self.roles.local and not self.fit.schema.normalised:
            raise SchemaError(
                f"cells: found 'new' and {min(self.roles.local)!r} with a flat prior, of which nothing is known "
                "without data; wanted 'same', or proper priors"
            )
        self.values = global_draws(self.fit, self.num_draws, seed=self.seed)
        if self.values:
            self.num_draws = len(next(iter(self.values.values())))
        given = inputs_for_prediction(self.fit, self.dataset)
        return Sampler(self.fit.model, None, given, example_of(self.fit, self.values))

    def _full_sampler(self) -> Sampler:
        return Sampler(self.fit.model, None, self.inputs, example_of(self.fit, self.values))

    def _one_draw(self) -> Mapping[str, Tensor]:
        return {name: value[:1] for name, value in self.values.items()}

    def _draw(self, where: slice) -> dict[str, Site]:
        part = {name: value[where] for name, value in self.values.items()}
        return self.sampler.replicate(where.stop - where.start, part, self.roles.observed)
