"""What tests of penalties share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from embergraph.guides.parts.encoded_cells import EncodedCells

E, D, P = 3, 4, 6


def cells_of(
    environment: Tensor, z: Tensor, output: Tensor, x: Tensor, *, weight: float = 1.0, **options: Any
) -> EncodedCells:
    values = {"library": None, "descriptors": None, **options}
    return EncodedCells(
        x, environment, loc=z, log_variance=torch.zeros_like(z), z=z, output=output, weight=weight, **values
    )


def some_cells(num: int = 30, *, seed: int = 0, **options: Any) -> EncodedCells:
    random = torch.Generator().manual_seed(seed)
    environment = torch.arange(num) % E
    draws = [torch.randn(num, k, generator=random) for k in (D, P, P)]
    return cells_of(environment, *draws, **options)


def sized(num_environments: int = E, num_latents: int = D, control: int | None = None) -> Any:
    return SimpleNamespace(num_environments=num_environments, num_latents=num_latents, control=control)


def seeded(seed: int, function: Any, *arguments: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return function(*arguments)


def value_of(penalty: torch.nn.Module, model: Any, cells: EncodedCells, seed: int = 5) -> Tensor:
    return seeded(seed, penalty, model, cells)


def number(value: Tensor) -> float:
    return float(value.detach())


def slope_of(value: Any, tensor: Tensor, direction: Tensor, step: float = 1e-5) -> float:
    """Central difference of `value()` as `tensor` moves."""
    with torch.no_grad():
        start = tensor.clone()
        ends = []
        for sign in (1, -1):
            tensor.copy_(start + sign * step * direction)
            ends.append(number(value()))
        tensor.copy_(start)
    return (ends[0] - ends[1]) / (2 * step)
