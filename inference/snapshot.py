"""The numbers of a module, its parameters and buffers: taken, put back, and compared."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..models.parts.errors import SchemaError


def numbers_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module by name."""
    every = (module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    return {name: tensor.detach() for group in every for name, tensor in group}


def take(module: torch.nn.Module) -> dict[str, Tensor]:
    """The numbers of a module; what is done to the module in place afterwards does not reach them.

    The module's buffers become contiguous tensors of their own: what is computed from them then depends, to the bit,
    neither on what they were views of nor on whether they were read from a file.
    """
    taken = {name: parameter.detach().clone() for name, parameter in module.named_parameters(remove_duplicate=False)}
    for name, buffer in list(module.named_buffers(remove_duplicate=False)):
        taken[name] = buffer.detach()
        _replace(module, name, buffer)
    return taken


@torch.no_grad()
def put(module: torch.nn.Module, numbers: Mapping[str, Tensor]) -> None:
    """Give a module copies of saved numbers; buffers are replaced, since they may be views of something else."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name, value in numbers.items():
        if name in parameters:
            parameters[name].copy_(value)
        else:
            _replace(module, name, value)


def check_forms(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse numbers that differ in name, shape or precision.

    Raises
    ------
    SchemaError
        Naming the number.
    """
    for name in sorted({*found, *wanted}):
        here, there = (
            f"{group[name].dtype} of shape {tuple(group[name].shape)}" if name in group else "nothing"
            for group in (found, wanted)
        )
        if here != there:
            raise SchemaError(f"guide.{name}: found {here}; wanted {there}, as it was before")


def spoiled(found: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> str:
    """Name of a number that is not finite and was before; empty if there is none."""
    for name, tensor in found.items():
        bad = ~torch.isfinite(tensor)
        if bool(bad.any()) and bool((bad & torch.isfinite(before[name])).any()):
            return name
    return ""


def _replace(module: torch.nn.Module, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(path), leaf, value.detach().clone(memory_format=torch.contiguous_format))
