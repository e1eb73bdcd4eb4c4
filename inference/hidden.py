"""Densities of entries that were hidden from a fit, for models that mask them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..models.parts.errors import DataError, SchemaError
from .export import name_of
from .inputs import DataLike, as_dataset, to_inputs
from .options import check_counts
from .query import example_of, inside
from .sampler import Sampler

if TYPE_CHECKING:
    from .fit import Fit

HIDDEN = "hidden_"
"""What the name of a variable starts with that holds the true values of hidden entries, NaN elsewhere."""
PROBES = 3


def hidden_log_density(fit: Fit, data: DataLike, num_samples: int = 200, *, seed: int = 0) -> xr.DataArray:
    """Densities of hidden entries; see `embergraph.hidden_entries.hidden_log_density`."""
    check_counts(num_samples=num_samples, seed=seed)
    variable, mask = _names(fit, as_dataset(data, fit.schema))
    dataset = fit.prepared(data)
    truth, seen = dataset[HIDDEN + variable], dataset[mask].values
    if not np.array_equal(np.isnan(truth.values), seen):
        raise DataError(f"{HIDDEN}{variable}: found values that do not fit to {mask!r}; wanted both from hide_entries")
    filled = dataset[variable].values
    kind = filled.dtype
    told = dataset.assign({variable: (truth.dims, np.where(seen, filled, truth.values).astype(kind))})
    moved = dataset.assign({variable: (truth.dims, np.where(seen, filled, filled + 1).astype(kind))})
    inputs, of_truth, of_moved = (to_inputs(fit.schema, part, device=fit.device) for part in (dataset, told, moved))
    total: Tensor | None = None
    with inside(fit, inputs, seed):
        source = _Draws(fit, inputs, num_samples)
        _check_mask(fit, source, of_moved, variable)
        scorer = Sampler(fit.model, None, of_truth, source.example)
        for values, count in source.parts():
            scores = _of_variable(scorer, values, count, truth.shape, variable).double().logsumexp(0)
            total = scores if total is None else torch.logaddexp(total, scores)
    density = np.where(seen, np.nan, (total - np.log(source.num_draws)).cpu().numpy())
    coords = {dim: dataset[dim].values for dim in truth.dims if dim in dataset.coords}
    return xr.DataArray(density, coords, truth.dims, name="hidden_log_density")


def _names(fit: Fit, dataset: xr.Dataset) -> tuple[str, str]:
    """Which variable has hidden entries, and which input of the model says so."""
    variable, mask = (str(dataset.attrs.get(key, "")) for key in ("hidden_in", "hidden_by"))
    if HIDDEN + variable not in dataset or mask not in dataset:
        raise DataError(
            f"data: found no hidden entries in {sorted(map(str, dataset))}; wanted what hide_entries returns"
        )
    if mask not in fit.schema.inputs or variable not in fit.schema.inputs:
        raise SchemaError(
            f"{name_of(fit.model)}: found no input {mask!r}, so that it was fitted to fillings in place of the hidden "
            f"entries; wanted a model that takes {mask!r} and masks its observed site (poutine.mask or obs_mask)"
        )
    return variable, mask


class _Draws:
    """Posterior draws of all sites given what was seen."""

    def __init__(self, fit: Fit, inputs: Mapping[str, Tensor], num_samples: int) -> None:
        self.values = None if fit.draws is None else fit.draws.thinned(num_samples).flat()
        self.example = None if self.values is None else example_of(fit, self.values)
        self.num_draws = num_samples if self.values is None else len(next(iter(self.values.values())))
        self.sampler = Sampler(fit.model, fit.guide, inputs, self.example)

    def parts(self) -> list[tuple[Mapping[str, Tensor], int]]:
        """All draws, in parts."""
        return [self.part(where) for where in self.sampler.chunks(self.num_draws)]

    def part(self, where: slice) -> tuple[Mapping[str, Tensor], int]:
        """Some draws, and their number."""
        count = where.stop - where.start
        if self.values is None:
            values: Mapping[str, Tensor] = self.sampler.guide_values(count)[0]
        else:
            values = {name: value[where] for name, value in self.values.items()}
        return self.sampler.completed(values, count), count


def _check_mask(fit: Fit, source: _Draws, moved: Mapping[str, Tensor], variable: str) -> None:
    """Refuse a model whose joint density depends on what stands in the place of hidden entries."""
    values, count = source.part(slice(0, min(PROBES, source.num_draws, source.sampler.chunk)))
    filled = source.sampler.model_pass(values, count).log_p
    other = Sampler(fit.model, None, moved, source.example).model_pass(values, count).log_p
    if not torch.allclose(filled, other, rtol=1e-6, atol=1e-6):
        raise SchemaError(
            f"{variable}: found that {name_of(fit.model)} reads entries that were hidden from it; wanted them masked "
            "(poutine.mask or obs_mask) wherever they enter"
        )


def _of_variable(
    scorer: Sampler, values: Mapping[str, Tensor], count: int, shape: tuple[int, ...], variable: str
) -> Tensor:
    _, entries = scorer.entry_log_likelihood(values, count, independent=True)
    fitting = [scores for _, scores in entries.values() if tuple(scores.shape[1:]) == tuple(shape)]
    if len(fitting) != 1:
        raise SchemaError(f"{variable}: found {len(fitting)} observed sites of shape {tuple(shape)}; wanted one")
    return fitting[0]
