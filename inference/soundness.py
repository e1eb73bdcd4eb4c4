"""What a file must be before its numbers are taken: files come from anywhere, and may have been made to do harm."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models.parts.errors import LoadError

BYTES = 8  # of a number, at the most


def check_regular(path: Path) -> None:
    """Refuse what is no plain file: reading a pipe waits for ever, a device may have no end.

    Raises
    ------
    LoadError
        Naming the file.
    """
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise LoadError(f"{path}: found something else than a file; wanted a plain file")


def check_sizes(variables: Mapping[str, tuple[Sequence[str], Sequence[int], str]]) -> None:
    """Refuse data that are no numbers, or more than fit into the memory of this machine: they are built as zeros.

    Parameters
    ----------
    variables
        Dims, sizes and dtype of each, as in a `Template`.

    Raises
    ------
    LoadError
        Naming the variable or the memory that it would take.
    """
    for name, (_, sizes, dtype) in variables.items():
        if not isinstance(dtype, str) or np.dtype(dtype).kind not in "fiub":
            raise LoadError(f"template: found {name} of dtype {dtype!r}; wanted numbers")
        if not all(isinstance(size, int) and size >= 0 for size in sizes):
            raise LoadError(f"template: found {name} of sizes {sizes}; wanted whole numbers")
    needed = sum(BYTES * math.prod(sizes) for _, sizes, _ in variables.values())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    if needed > memory:
        raise LoadError(f"template: found data of {needed:.2g} bytes; wanted at most {memory:.2g}, the memory there is")


def check_kinds(role: str, here: Mapping[str, Tensor], saved: Mapping[str, Any]) -> None:
    """Refuse other things than tensors, and others than real, whole or truth values where those are.

    Parameters
    ----------
    role
        What the tensors belong to, for messages.
    here, saved
        Those that are to be filled, and those from a file.

    Raises
    ------
    LoadError
        Naming the tensor.
    """
    for name, wanted in here.items():
        found = saved.get(name)
        if found is not None and (not isinstance(found, Tensor) or _kind(found) != _kind(wanted)):
            what = found.dtype if isinstance(found, Tensor) else type(found).__name__
            raise LoadError(f"{role}.{name}: found {what}; wanted a tensor of {wanted.dtype}")


def check_no_nan(role: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse numbers that are none.

    Raises
    ------
    LoadError
        Naming the tensor.
    """
    for name, tensor in tensors.items():
        if bool(torch.isnan(tensor).any()):
            raise LoadError(f"{role}.{name}: found NaN; wanted numbers")


def _kind(tensor: Tensor) -> str:
    if tensor.is_floating_point():
        return "real"
    return "complex" if tensor.is_complex() else "truth" if tensor.dtype == torch.bool else "whole"
