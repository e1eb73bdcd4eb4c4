"""Data of environments as the Environment VAE takes them."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ..models.environment_vae import EnvironmentVAE
from ..models.environment_vae_parts import are_counts, check_data
from ..models.parts.errors import DataError, SchemaError
from ..validation import listed


def prepared(model: EnvironmentVAE, data: xr.Dataset, *, observed: bool = True, dtype: str = "float32") -> xr.Dataset:
    """Checked data with the library size of every cell.

    Parameters
    ----------
    model
        Whose environments the data are of.
    data
        Dataset with ``environment``, and ``expression`` if `observed`.
    observed
        Whether the expression is going to be used.
    dtype
        Precision of what comes out; networks are trained in single precision, closed forms work in double.

    Raises
    ------
    DataError
        If counts are not counts, cells have none, or the library is missing.
    SchemaError
        If the environments are others than those of the model.
    """
    check_data(data if "expression" in data or observed else data.assign(expression=0.0))
    names = [str(c) for c in data["condition"].values]
    if names != model.conditions:
        raise SchemaError(
            f"condition: found {listed(names)}; wanted {listed(model.conditions)} as in the model "
            "(make the labels of new cells a pandas Categorical with these categories)"
        )
    codes = data["environment"].values
    if codes.dtype.kind not in "iu" or codes.min(initial=0) < 0 or codes.max(initial=0) >= len(names):
        raise DataError(f"environment: found {codes.dtype} values; wanted positions 0 to {len(names) - 1} in condition")
    if observed:
        _check_expression(model, data)
    if model.likelihood.counts and "library" not in data:
        if "expression" not in data:
            raise DataError("library: found neither library nor expression; wanted the total counts of every cell")
        data = data.assign(library=data["expression"].sum("gene"))
    if model.likelihood.counts and bool((data["library"] <= 0).any()):
        empty = data["library"].values <= 0
        cells = data["cell"].values[empty] if "cell" in data.coords else np.flatnonzero(empty)
        raise DataError(f"library: found {empty.sum()} cells without counts ({listed(cells)}); wanted at least one")
    floats = [name for name in ("expression", "library", "descriptors") if name in data]
    return data.assign({name: data[name].astype(dtype, copy=False) for name in floats})


def _check_expression(model: EnvironmentVAE, data: xr.Dataset) -> None:
    expression = data["expression"]
    if expression.sizes.get("gene") != model.num_genes:
        found = expression.sizes.get("gene", "none")
        raise SchemaError(f"expression: found {found} along 'gene'; wanted {model.num_genes}, as the model has")
    parts = np.array_split(expression.values, expression.size // 10**7 + 1)  # no second array of the size of the data
    bad = sum(int((~np.isfinite(part)).sum()) for part in parts)
    if bad:
        raise DataError(f"expression: found {bad} values that are NaN or infinite; wanted finite numbers")
    if model.likelihood.counts and not are_counts(data):
        raise DataError(
            "expression: found values that are no counts; wanted whole numbers from 0 for this likelihood, "
            "or likelihood='gaussian' for logarithms"
        )


def indicator_descriptors(data: xr.Dataset) -> xr.Dataset:
    """Add descriptors that tell environments apart and nothing else: one indicator for each.

    Parameters
    ----------
    data
        Dataset with ``environment`` and the coordinate ``condition``.

    Returns
    -------
    xr.Dataset
        With ``descriptors (condition, feature)``.
    """
    check_data(data)
    names = [str(c) for c in data["condition"].values]
    identity = xr.DataArray(np.eye(len(names)), dims=("condition", "feature"), coords={"feature": names})
    return data.assign(descriptors=identity)
