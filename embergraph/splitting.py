"""Training and test cells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from .models.parts.errors import DataError
from .validation import listed

if TYPE_CHECKING:
    from jaxtyping import Bool, Int


def split(
    data: xr.Dataset, *, every: int = 4, offset: int = 0, within: str | None = None
) -> tuple[xr.Dataset, xr.Dataset]:
    """Set every `every`-th cell aside, without chance.

    Parameters
    ----------
    data
        Any Dataset with the dim ``cell``.
    every
        Distance between test cells, at least 2.
    offset
        Position of the first test cell, below `every`.
    within
        A variable over cells (for example ``environment``); positions are then counted within each of its levels.

    Returns
    -------
    train, test : xr.Dataset
        The cells whose position modulo `every` is not, and is, `offset`; in their old order.

    Raises
    ------
    DataError
        If an argument is out of range, `within` is no variable over cells, or a side is empty.
    """
    if every < 2 or not 0 <= offset < every:
        raise DataError(f"split got every={every}, offset={offset}; wanted every >= 2 and 0 <= offset < every")
    test = np.zeros(_num_cells(data), dtype=bool)
    for cells in _groups(data, within):
        test[cells[offset::every]] = True
    return _sides(data, test)


def random_split(
    data: xr.Dataset, *, test_fraction: float = 0.25, seed: int = 0, within: str | None = None
) -> tuple[xr.Dataset, xr.Dataset]:
    """Set a random share of the cells aside.

    Parameters
    ----------
    data
        Any Dataset with the dim ``cell``.
    test_fraction
        Share of test cells, between 0 and 1; rounded to whole cells, within each level if `within` is given.
    seed
        Seed of the draw; the same seed gives the same cells.
    within
        A variable over cells; its levels are then split one by one.

    Returns
    -------
    train, test : xr.Dataset
        Cells in their old order.

    Raises
    ------
    DataError
        If an argument is out of range, `within` is no variable over cells, or a side is empty.
    """
    if not 0 < test_fraction < 1:
        raise DataError(f"random_split got test_fraction={test_fraction}; wanted a number between 0 and 1")
    generator = np.random.default_rng(seed)
    test = np.zeros(_num_cells(data), dtype=bool)
    for cells in _groups(data, within):
        test[generator.permutation(cells)[: int(test_fraction * len(cells) + 0.5)]] = True
    return _sides(data, test)


def _num_cells(data: xr.Dataset) -> int:
    if "cell" not in data.sizes:
        raise DataError(f"data has dims {listed(data.sizes)}; wanted the dim 'cell'")
    return data.sizes["cell"]


def _groups(data: xr.Dataset, within: str | None) -> Iterator[Int[np.ndarray, " member"]]:
    """Positions of the cells of each level of `within`, in their order."""
    if within is None:
        yield np.arange(data.sizes["cell"])
        return
    if within not in data.variables or data[within].dims != ("cell",):
        found = [name for name, variable in data.variables.items() if variable.dims == ("cell",)]
        raise DataError(f"within='{within}' is no variable over cells; found {listed(found)}")
    levels, codes = np.unique(data[within].to_numpy(), return_inverse=True)
    order = np.argsort(codes, kind="stable")
    yield from np.split(order, np.cumsum(np.bincount(codes, minlength=len(levels)))[:-1])


def _sides(data: xr.Dataset, test: Bool[np.ndarray, " cell"]) -> tuple[xr.Dataset, xr.Dataset]:
    if test.all() or not test.any():
        raise DataError(
            f"the split leaves {int((~test).sum())} training and {int(test.sum())} test cells; wanted some on each side"
        )
    return data.isel(cell=~test), data.isel(cell=test)
