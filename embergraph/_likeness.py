"""New cells in the columns and codes of the data that a model was fitted to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from .encoding import encode_columns, encode_like
from .models.parts.errors import DataError
from .validation import listed

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped


def encoded(
    table: Any, columns: Any, cells: Shaped[np.ndarray, " cell"], like: xr.Dataset | None
) -> tuple[Float[np.ndarray, "cell covariate"], list[str]]:
    """Covariates and their names, in the columns of `like` if there is one."""
    if like is None:
        return encode_columns(table, columns, cells)
    if "covariates" not in like:
        raise DataError(f"like has no covariates; found {listed(like.data_vars)}")
    names = [str(name) for name in like["covariate"].values]
    return encode_like(table, names, cells), names


def recoded(data: xr.Dataset, like: xr.Dataset | None) -> xr.Dataset:
    """The same data with environments coded as in `like`."""
    if like is None or "environment" not in data or "condition" not in like.coords:
        return data
    known = {str(name): i for i, name in enumerate(like["condition"].values)}
    labels = data["condition"].values[data["environment"].values]
    unknown = sorted({str(label) for label in labels} - set(known))
    if unknown:
        raise DataError(f"environment has levels {listed(unknown)}; wanted some of {listed(known)}")
    codes = np.asarray([known[str(label)] for label in labels], dtype=np.int64)
    return data.drop_dims("condition").assign(environment=("cell", codes)).assign_coords(condition=list(known))
