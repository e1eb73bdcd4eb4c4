"""Schedules: numbers that change over the steps of an optimisation, such as the acyclicity weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..models.parts.errors import DataError

Schedule = Callable[[float], float]


@dataclass(frozen=True)
class Geometric:
    """`start` until the share `hold` of the steps is done, then geometrically to `end`.

    Schedules are called with the share of steps done, 0 to 1.
    """

    start: float
    end: float
    hold: float = 0.0

    def __call__(self, done: float) -> float:
        """Value at the share `done` of the steps."""
        share = max(0.0, done - self.hold) / max(1e-12, 1 - self.hold)
        return self.start * (self.end / self.start) ** share


@dataclass(frozen=True)
class Cosine:
    """From `start` to `end` along half a cosine."""

    start: float = 1.0
    end: float = 0.0

    def __call__(self, done: float) -> float:
        """Value at the share `done` of the steps."""
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class BufferSchedules:
    """Writes scheduled values into named buffers of a module, e.g. ``{"acyclicity.weight": Geometric(0.05, 1e3)}``.

    Raises
    ------
    DataError
        If a name is not a buffer of `module`.
    """

    def __init__(self, module: object, schedules: Mapping[str, Schedule]) -> None:
        buffers = dict(module.named_buffers()) if isinstance(module, torch.nn.Module) else {}
        unknown = sorted(set(schedules) - set(buffers))
        if unknown:
            raise DataError(f"schedules: found {unknown}; wanted buffers of the model, one of {sorted(buffers)}")
        self._pairs = [(buffers[name], schedule) for name, schedule in schedules.items()]

    def set(self, done: float) -> None:
        """Write the values for the share `done` of the steps."""
        for buffer, schedule in self._pairs:
            buffer.fill_(schedule(done))
