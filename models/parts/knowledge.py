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


def known_pairs(values: Any) -> Float[Tensor, "node node_other"]:
    """A symmetric matrix of finite numbers, as a tensor.

    Raises
    ------
    DataError
        If it is not.
    """
    matrix = torch.as_tensor(np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values))
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise DataError(f"matrix of pairs: found shape {tuple(matrix.shape)}; wanted a square matrix")
    matrix = matrix.double()
    if not bool(torch.isfinite(matrix).all()):
        raise DataError("matrix of pairs: found values that are NaN or infinite; wanted finite numbers")
    if not torch.allclose(matrix, matrix.mT, atol=1e-10 * float(matrix.abs().max())):
        raise DataError("matrix of pairs: found it asymmetric; wanted the same value for (i, k) and (k, i)")
    return matrix


def known_nodes(values: Any) -> Float[Tensor, " node"]:
    """A vector of positive finite numbers over their mean, as a tensor.

    Raises
    ------
    DataError
        If it is not.
    """
    vector = torch.as_tensor(np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)).double()
    if vector.ndim != 1 or not bool((torch.isfinite(vector) & (vector > 0)).all()):
        raise DataError("propensity: found values that are not a vector of positive numbers; wanted one a node")
    return vector / vector.mean()


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
