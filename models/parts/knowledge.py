"""What users know of a graph before the data: checks that it can be used."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Float


def known_pairs(values: Any, name: str = "matrix of pairs") -> Float[Tensor, "node node_other"]:
    """A symmetric matrix of finite numbers, as a tensor.

    Raises
    ------
    DataError
        If it is not.
    """
    matrix = _numbers(name, values)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise DataError(f"{name}: found shape {tuple(matrix.shape)}; wanted a square matrix")
    if not bool(torch.isfinite(matrix).all()):
        raise DataError(f"{name}: found values that are NaN or infinite; wanted finite numbers")
    if not torch.allclose(matrix, matrix.mT, atol=1e-10 * float(matrix.abs().max())):
        raise DataError(f"{name}: found it asymmetric; wanted the same value for (i, k) and (k, i)")
    return matrix


def known_nodes(values: Any, name: str = "propensity") -> Float[Tensor, " node"]:
    """A vector of positive finite numbers over their mean, as a tensor.

    Raises
    ------
    DataError
        If it is not.
    """
    vector = _numbers(name, values)
    if vector.ndim != 1 or not bool((torch.isfinite(vector) & (vector > 0)).all()):
        raise DataError(f"{name}: found entries that are not a vector of positive numbers; wanted one a node")
    return vector / vector.mean()


def _numbers(name: str, values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu().double().clone()
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: found {type(values).__name__} that is not numbers ({error})") from error
    return torch.tensor(array)


def names_in(values: Any) -> list[str] | None:
    """Names of the nodes that a DataFrame, Series or DataArray carries; None for plain arrays and default indices."""
    if hasattr(values, "coords") and hasattr(values, "dims"):
        first = values.dims[0] if values.dims else None
        return None if first not in values.coords else [str(label) for label in values.coords[first].values]
    index = getattr(values, "index", None)
    if index is None or callable(index) or type(index).__name__ == "RangeIndex":
        return None
    return [str(label) for label in index]


def places_of(name: str, found: list[str], wanted: list[str]) -> Tensor:
    """Where each wanted node stands among those found.

    Raises
    ------
    DataError
        If a node is missing or named twice.
    """
    place = {label: i for i, label in enumerate(found)}
    missing = [label for label in wanted if label not in place]
    if missing or len(place) != len(found):
        what = f"no {missing[0]!r}" if missing else "a name twice"
        raise DataError(f"{name}: found {what}; wanted the names of the data, each once")
    return torch.tensor([place[label] for label in wanted])


def positive(name: str, value: float) -> float:
    """A positive finite number.

    Raises
    ------
    DataError
        Naming the option.
    """
    if not (isinstance(value, int | float) and 0 < value < math.inf):
        raise DataError(f"{name}: found {value!r}; wanted a positive number")
    return float(value)
