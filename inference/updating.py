"""Updates in closed form between the steps of SVI: they change numbers of guide and model as a whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models.parts.errors import NumericalError, SchemaError
from . import snapshot
from .export import name_of

BREAKDOWNS = (ArithmeticError, torch.linalg.LinAlgError, np.linalg.LinAlgError)


def check_update(guide: Any) -> None:
    """Refuse a guide that has no ``update``.

    Raises
    ------
    SchemaError
        Naming the guide.
    """
    if not isinstance(guide, torch.nn.Module) or not callable(getattr(guide, "update", None)):
        raise SchemaError(
            f"update_every: found the guide {name_of(guide)} without update; "
            "wanted a torch.nn.Module with a method update(model, inputs, step)"
        )


@torch.no_grad()
def changed_by(
    update: Callable[[], Any], owner: torch.nn.Module, parameters: Sequence[Tensor]
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Make an update; if anything goes wrong, or Ctrl-C is pressed, all numbers are as before.

    Parameters
    ----------
    update
        Changes parameters of `owner` in place, and buffers as it likes.
    owner
        Holds everything that may change.
    parameters
        What an optimiser works on, in `owner` or elsewhere.

    Returns
    -------
    dict, list
        The numbers of `owner` before, and those of `parameters` that have other values now.

    Raises
    ------
    NumericalError
        If a number is not finite that was before.
    SchemaError
        If a number has another shape, or a parameter was replaced.
    """
    held, values = _parameters(owner), [p.detach().clone() for p in parameters]
    before = snapshot.take(owner)
    try:
        update()
        after = snapshot.take(owner)
        snapshot.check_forms(after, before, "")
        replaced = [name for name, parameter in _parameters(owner).items() if parameter is not held[name]]
        if replaced:
            raise SchemaError(f"{replaced[0]}: found another parameter in its place; wanted it changed in place")
        fault = snapshot.spoiled(after, before)
        if fault:
            raise NumericalError(f"{fault} is not finite")
    except BaseException:  # Ctrl-C comes at any time
        snapshot.put(owner, before)
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
        raise
    return before, [p for p, value in zip(parameters, values, strict=True) if not torch.equal(p, value)]


def _parameters(owner: torch.nn.Module) -> dict[str, Tensor]:
    return dict(owner.named_parameters(remove_duplicate=False))
