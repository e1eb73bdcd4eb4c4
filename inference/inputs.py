"""From a Dataset to the tensors that a model takes, and back to names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..models.parts.errors import DataError, SchemaError
from ..models.schema import Input, Schema
from .fingerprints import fingerprint

if TYPE_CHECKING:
    from jaxtyping import Shaped

DataLike = xr.Dataset | Mapping[str, Any]


def as_dataset(data: DataLike, schema: Schema | None = None) -> xr.Dataset:
    """Accept a Dataset, or a mapping of names to ``(dims, values)`` or to plain arrays and tensors.

    Plain arrays get the dims that `schema` declares, else ``<name>_dim_0``, ``<name>_dim_1``, ...; scalars have none.

    Raises
    ------
    DataError
        If `data` is neither, or dims and values do not fit together.
    """
    if isinstance(data, xr.Dataset):
        return data
    if not isinstance(data, Mapping):
        raise DataError(f"data: found {type(data).__name__}; wanted an xarray Dataset or a mapping of names to arrays")
    variables: dict[str, Any] = {}
    for key, value in data.items():
        name = str(key)
        if isinstance(value, tuple | xr.DataArray):
            variables[name] = value
            continue
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
        dims = tuple(auto_dim(name, i) for i in range(array.ndim))
        if schema is not None and name in schema.inputs and len(schema.inputs[name].dims) == array.ndim:
            dims = schema.inputs[name].dims
        variables[name] = (dims, array)
    try:
        return xr.Dataset(variables)
    except (ValueError, TypeError) as error:
        raise DataError(f"data: found variables that do not fit together ({error})") from error


def auto_dim(name: str, axis: int) -> str:
    """Name of an axis that has none."""
    return f"{name}_dim_{axis}"


def kind_of(variable: xr.DataArray) -> Any:
    """What the numbers of a variable are: ``"float"``, ``"int"`` or ``"bool"``.

    Raises
    ------
    SchemaError
        If they are not numbers.
    """
    kinds = {"f": "float", "i": "int", "u": "int", "b": "bool"}
    if variable.dtype.kind not in kinds:
        raise SchemaError(f"{variable.name}: found dtype {variable.dtype}; wanted numbers (code labels as integers)")
    return kinds[variable.dtype.kind]


def to_inputs(
    schema: Schema, data: xr.Dataset, *, device: torch.device | str | None = None, observed: bool = True
) -> dict[str, Tensor]:
    """Tensors of the model's inputs.

    Parameters
    ----------
    schema
        What is wanted.
    data
        Where it is taken from.
    device
        Device of the tensors.
    observed
        False leaves the observed inputs out, so that the model draws them.

    Raises
    ------
    SchemaError
        If a declared input is missing or has other dims or another kind.
    DataError
        If an input is empty or not finite.
    """
    result = {}
    for name, spec in schema.inputs.items():
        if spec.observed and not observed:
            continue
        if name not in data:
            role = "the observed variable" if spec.observed else "an input"
            raise SchemaError(
                f"{name}: {role} of the model, found data variables {sorted(map(str, data.data_vars))}; "
                f"wanted {name!r} among them"
            )
        result[name] = _tensor(name, data[name], spec, device)
    return result


def _tensor(name: str, variable: xr.DataArray, spec: Input, device: torch.device | str | None) -> Tensor:
    if tuple(variable.dims) != spec.dims:
        raise SchemaError(f"{name}: found dims {tuple(variable.dims)}; wanted {spec.dims}")
    kind = kind_of(variable)
    if spec.kind != kind and not (spec.kind == "float" and kind == "int"):
        raise SchemaError(f"{name}: found {kind} values; wanted {spec.kind}")
    if variable.size == 0:
        raise DataError(f"{name}: found an empty variable with sizes {dict(variable.sizes)}; wanted at least one value")
    values: Shaped[np.ndarray, "..."] = np.ascontiguousarray(variable.values)
    if spec.kind == "float":
        values = values if values.dtype in (np.float32, np.float64) else values.astype(np.float64)
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise DataError(f"{name}: found {bad} values that are NaN or infinite; wanted finite numbers")
    elif spec.kind == "int":
        values = values.astype(np.int64)
    return torch.tensor(values, device=device)


def digest_of(schema: Schema, data: xr.Dataset) -> str:
    """A short text that differs when the inputs differ by more than single precision can tell."""
    kept = {}
    for name in sorted(set(schema.inputs) & set(map(str, data.data_vars))):
        values = data[name].values
        with np.errstate(over="ignore"):  # values beyond single precision become infinite, all alike
            kept[name] = values.astype(np.float32 if values.dtype.kind == "f" else np.int64, copy=False)
    return fingerprint(kept)


@dataclass(frozen=True)
class Template:
    """Shape and names of the training data without the data.

    Attributes
    ----------
    variables
        Of each input: dims, sizes and dtype.
    coords
        Labels of the dims, but for the cells' own.
    extras
        Small variables that do not run over cells (a standardisation, a reference graph).
    attrs
        Attributes of the Dataset.
    digest
        A short text that differs when the inputs differ, see `digest_of`; empty in files of older versions.
    """

    variables: dict[str, tuple[tuple[str, ...], tuple[int, ...], str]]
    coords: dict[str, list[Any]] = field(default_factory=dict)
    extras: dict[str, tuple[tuple[str, ...], list[Any]]] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    digest: str = ""

    MAX_EXTRA = 100_000

    @classmethod
    def of(cls, schema: Schema, data: xr.Dataset) -> Template:
        """Take the template of `data`."""
        names = [name for name in schema.inputs if name in data]
        variables = {n: (tuple(map(str, data[n].dims)), tuple(data[n].shape), str(data[n].dtype)) for n in names}
        dims = {dim for n in names for dim in data[n].dims} - {schema.plate}
        extras = {
            str(n): (tuple(map(str, v.dims)), v.values.tolist())
            for n, v in data.data_vars.items()
            if n not in names and schema.plate not in v.dims and v.size <= cls.MAX_EXTRA and v.dtype.kind in "fiubU"
        }
        dims |= {dim for extra_dims, _ in extras.values() for dim in extra_dims}
        coords = {str(dim): data[dim].values.tolist() for dim in dims if dim in data.coords}
        attrs = {str(k): v for k, v in data.attrs.items() if isinstance(v, str | int | float)}
        return cls(variables, coords, extras, attrs, digest_of(schema, data))

    def zeros(self, schema: Schema, device: torch.device | str | None = None) -> dict[str, Tensor]:
        """Inputs of the right shapes filled with zeros, to build a guide without data."""
        variables = {n: (dims, np.zeros(shape, dtype)) for n, (dims, shape, dtype) in self.variables.items()}
        return to_inputs(schema, xr.Dataset(variables), device=device)

    def extra_dataset(self) -> xr.Dataset:
        """The small variables with their labels and the attributes."""
        extras = xr.Dataset({n: (dims, np.asarray(values)) for n, (dims, values) in self.extras.items()})
        coords = {dim: (dim, labels) for dim, labels in self.coords.items() if dim in extras.dims}
        return extras.assign_coords(coords).assign_attrs(self.attrs)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        parts = {"variables": self.variables, "coords": self.coords, "extras": self.extras, "attrs": self.attrs}
        return parts | {"digest": self.digest}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Template:
        """Inverse of `to_dict`."""
        variables = {n: (tuple(d), tuple(s), t) for n, (d, s, t) in saved["variables"].items()}
        extras = {n: (tuple(d), v) for n, (d, v) in saved["extras"].items()}
        digest = str(saved.get("digest", ""))
        return cls(variables, dict(saved["coords"]), extras, dict(saved["attrs"]), digest)
