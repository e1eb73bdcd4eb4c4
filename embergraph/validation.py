"""What a Dataset must fulfil before any model sees it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from .models.parts.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Bool, Shaped

#: The standard variables and their dims; all but ``expression`` may be absent.
STANDARD_DIMS: dict[str, tuple[str, ...]] = {
    "expression": ("cell", "gene"),
    "covariates": ("cell", "covariate"),
    "environment": ("cell",),
    "descriptors": ("condition", "feature"),
}

# Pyro's own wrappers take an argument `context`; ArviZ stacks chain and draw into a dim `sample`.
_RESERVED = ("context", "sample")


def validate(data: xr.Dataset, *, min_cells: int = 2) -> xr.Dataset:
    """Check the standard variables of a Dataset; other variables ride along unchecked.

    A constant covariate is allowed, a constant gene is not: it carries no information and has no scale.

    Parameters
    ----------
    data
        Dataset with ``expression (cell, gene)`` and, where present, ``covariates (cell, covariate)``,
        ``environment (cell)`` (integer positions along ``condition``) and ``descriptors (condition, feature)``.
    min_cells
        The smallest number of cells. ``1`` is for new cells that a fitted model is asked about: genes may then be
        constant.

    Returns
    -------
    xr.Dataset
        The same object.

    Raises
    ------
    DataError
        For data that no model can use; the message names the variable, what was found and what is wanted.
    """
    if not isinstance(data, xr.Dataset):
        raise DataError(f"data is a {type(data).__name__}; wanted an xarray Dataset, as from_arrays builds it")
    _check_reserved(data)
    if "expression" not in data.data_vars:
        raise DataError(f"expression is missing; found {listed(data.data_vars)}; wanted expression (cell, gene)")
    present = [name for name in STANDARD_DIMS if name in data.variables]
    for name in present:
        _check_shape(name, data[name])
    for dim in sorted({dim for name in present for dim in STANDARD_DIMS[name]} | ({"condition"} & data.sizes.keys())):
        _check_names(dim, data[dim])
    if data.sizes["cell"] < min_cells:
        raise DataError(f"expression has {data.sizes['cell']} cells; wanted at least {min_cells}")
    for name in present:
        if name != "environment":
            _check_numbers(name, data[name])
    if "environment" in present:
        _check_environment(data)
    if min_cells > 1:
        _check_constant_genes(data["expression"])
    return data


def listed(names: Iterable[object], limit: int = 5) -> str:
    """Quote names for a message, at most `limit` of them.

    Parameters
    ----------
    names
        Anything with a string form.
    limit
        How many are spelt out.

    Returns
    -------
    str
        For example ``'Raf', 'Mek' and 9 more``; ``nothing`` if there are no names.
    """
    quoted = [f"'{name}'" for name in names]
    if len(quoted) > limit:
        return f"{', '.join(quoted[:limit])} and {len(quoted) - limit} more"
    return ", ".join(quoted) or "nothing"


def check_unique(dim: str, names: Shaped[np.ndarray, " name"]) -> None:
    """Raise if a name occurs twice.

    Parameters
    ----------
    dim
        What the names belong to, for the message.
    names
        The names along one dim.

    Raises
    ------
    DataError
        Naming the duplicates.
    """
    values, counts = np.unique(names, return_counts=True)
    if (counts > 1).any():
        raise DataError(f"{dim} names occur more than once: {listed(values[counts > 1])}; wanted one name per {dim}")


def _check_reserved(data: xr.Dataset) -> None:
    for name in _RESERVED:
        if name in data.variables or name in data.sizes:
            kind = "variable" if name in data.variables else "dim"
            raise DataError(f"found a {kind} called '{name}', a name that Pyro or ArviZ keep for themselves; rename it")


def _check_shape(name: str, variable: xr.DataArray) -> None:
    wanted = STANDARD_DIMS[name]
    if variable.dims != wanted:
        found, want = (", ".join(map(str, dims)) for dims in (variable.dims, wanted))
        hint = "; transpose it" if set(variable.dims) == set(wanted) else ""
        raise DataError(f"{name} has dims ({found}); wanted ({want}){hint}")
    if 0 in variable.shape:
        sizes = ", ".join(f"{size} {dim}s" for dim, size in variable.sizes.items())
        raise DataError(f"{name} is empty: found {sizes}; wanted at least one of each")


def _check_names(dim: str, coordinate: xr.DataArray) -> None:
    names = coordinate.to_numpy()
    # Integers are the positions of a dim without coordinate; extension types (pandas Categorical) cannot be saved.
    text = names.dtype.kind in "UTiu" or all(isinstance(name, str) for name in names)
    if not text or not isinstance(coordinate.dtype, np.dtype):
        raise DataError(f"{dim} names have dtype {coordinate.dtype}; wanted text: np.asarray(names, dtype=str)")
    check_unique(dim, names)


def _check_numbers(name: str, variable: xr.DataArray) -> None:
    dtype = variable.dtype
    if not (dtype in (np.float32, np.float64) or (isinstance(dtype, np.dtype) and dtype.kind in "iu")):
        raise DataError(f"{name} has dtype {dtype}; wanted float64, float32 or integer numbers")
    values = variable.to_numpy()
    bad = ~np.isfinite(values)
    if bad.any():
        nan = int(np.isnan(values).sum())
        raise DataError(
            f"{name} has {nan} NaN and {int(bad.sum()) - nan} infinite values, the first at "
            f"{_first_place(bad, variable)}; wanted finite numbers: drop or impute them"
        )


def _check_environment(data: xr.Dataset) -> None:
    codes = data["environment"]
    if not isinstance(codes.dtype, np.dtype) or codes.dtype.kind not in "iu":
        raise DataError(
            f"environment has dtype {codes.dtype}; wanted integer positions along the dim condition "
            "(from_arrays makes them from labels)"
        )
    values = codes.to_numpy()
    bad = values < 0
    if "condition" in data.sizes:
        bad |= values >= data.sizes["condition"]
    if bad.any():
        found = values[np.argmax(bad)]
        wanted = f"0 to {data.sizes['condition'] - 1}" if "condition" in data.sizes else "0, 1, 2, ..."
        raise DataError(
            f"environment has {int(bad.sum())} codes out of range, the first {found} at {_first_place(bad, codes)}; "
            f"wanted {wanted}"
        )


def _check_constant_genes(expression: xr.DataArray) -> None:
    values = expression.to_numpy()
    constant = values.max(axis=0) == values.min(axis=0)
    if constant.any():
        genes = listed(expression["gene"].to_numpy()[constant])
        raise DataError(f"expression is constant in {int(constant.sum())} genes: {genes}; wanted genes that vary")


def _first_place(bad: Bool[np.ndarray, "*dims"], variable: xr.DataArray) -> str:
    place = np.unravel_index(int(np.argmax(bad)), bad.shape)
    return ", ".join(f"{dim} '{variable[dim].to_numpy()[i]}'" for dim, i in zip(variable.dims, place, strict=True))
