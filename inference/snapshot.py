"""The numbers of a module, its parameters and buffers: taken, put back, and compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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
    buffers = dict(module.named_buffers(remove_duplicate=False))
    _replace(module, buffers)
    detached = {id(buffer): buffer.detach() for buffer in buffers.values()}
    return taken | {name: detached[id(buffer)] for name, buffer in buffers.items()}


@torch.no_grad()
def put(module: torch.nn.Module, numbers: Mapping[str, Tensor]) -> None:
    """Give a module copies of saved numbers; buffers are replaced, since they may be views of something else."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name in parameters.keys() & numbers.keys():
        parameters[name].copy_(numbers[name])
    _replace(module, {name: value for name, value in numbers.items() if name not in parameters})


def check_forms(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], owner: str = "guide.") -> None:
    """Refuse numbers that differ in name, shape or precision; messages put `owner` before the name.

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
            raise SchemaError(f"{owner}{name}: found {here}; wanted {there}, as it was before")


def spoiled(found: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> str:
    """Name of a number that is not finite and was before; empty if there is none."""
    for name, tensor in found.items():
        bad = ~torch.isfinite(tensor)
        if bool(bad.any()) and bool((bad & torch.isfinite(before[name])).any()):
            return name
    return ""


class Watched:
    """Buffers of a module and which of them a piece of work changes; by value, since batch norm leaves no other trace.

    Parameters
    ----------
    module
        Their owner; None watches nothing.
    """

    def __init__(self, module: torch.nn.Module | None) -> None:
        self._module = module
        self.start()

    def __len__(self) -> int:
        return len(self._before)

    def start(self) -> None:
        """Look at them as they are now."""
        self._before = [buffer.clone() for buffer in self._buffers()]

    def changed(self) -> list[bool]:
        """Whether each has changed since."""
        differs = [(now != before).any() for now, before in zip(self._buffers(), self._before, strict=True)]
        return torch.stack(differs).tolist() if differs else []

    def chosen(self, marks: Iterable[float]) -> list[Tensor]:
        """Those that are marked."""
        return [buffer for buffer, mark in zip(self._buffers(), marks, strict=True) if mark]

    def _buffers(self) -> list[Tensor]:
        return [] if self._module is None else list(self._module.buffers())


def _replace(module: torch.nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Put copies in the place of buffers; what was one tensor under two names stays one."""
    copies: dict[int, Tensor] = {}
    for name, value in buffers.items():
        path, _, leaf = name.rpartition(".")
        if id(value) not in copies:
            copies[id(value)] = value.detach().clone(memory_format=torch.contiguous_format)
        setattr(module.get_submodule(path), leaf, copies[id(value)])
