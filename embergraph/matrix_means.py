"""Counts are positive: taking the common profile out of a matrix under row and column scales."""

from __future__ import annotations

from typing import cast

import numpy as np
import xarray as xr

from .matrix_checks import check_matrix
from .models.parts.errors import DataError


def remove_profile(data: xr.Dataset) -> xr.Dataset:
    """Scale rows and columns to equal squares, then subtract row and column means.

    A matrix of counts has a common profile, every cell resembles every other, while a model with mean zero can only
    explain it by edges between all pairs. What is left here is what cells and genes do beyond the profile. The result
    does not depend on scales of rows and columns of the data either; its own scales are those of the rest.

    Parameters
    ----------
    data
        Dataset with ``expression (cell, gene)`` or ``(replicate, cell, gene)``.

    Returns
    -------
    xr.Dataset
        The same with `expression` replaced; the scales that were taken out are ``log_row_scale`` and
        ``log_column_scale``.

    Raises
    ------
    DataError
        If ``expression`` is missing, or rows and columns cannot be scaled, see `sinkhorn_scale`.
    """
    from .matrices import sinkhorn_scale

    if not isinstance(data, xr.Dataset) or "expression" not in data:
        raise DataError("data: found no variable 'expression'; wanted a Dataset with one")
    check_matrix("expression", data["expression"])
    scaled, log_row, log_column = cast("tuple[xr.DataArray, ...]", sinkhorn_scale(data["expression"]))
    rest = scaled - scaled.mean("cell") - scaled.mean("gene") + scaled.mean(("cell", "gene"))
    if not bool((np.abs(rest) > 1e-12).any()):
        raise DataError("expression: found nothing beyond its row and column means; wanted a matrix that varies")
    rest = rest.transpose(*data["expression"].dims)
    return data.assign(expression=rest, log_row_scale=-log_row, log_column_scale=-log_column)
