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
class Linear:
    """From `start` along a line to `end`, which it reaches at the share `until` of the steps and keeps."""

    start: float
    end: float
    until: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.until <= 1:
            raise DataError(f"until: found {self.until!r}; wanted a share of the steps above 0, at most 1")

    def __call__(self, done: float) -> float:
        """Value at the share `done` of the steps."""
        return self.start + (self.end - self.start) * min(1.0, done / self.until)


@dataclass(frozen=True)
class Cosine:
    """From `start` to `end` along half a cosine."""

    start: float = 1.0
    end: float = 0.0

    def __call__(self, done: float) -> float:
        """Value at the share `done` of the steps."""
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


@dataclass(frozen=True)
class WarmCosine:
    """From 0 along a line to 1 over the share `warm` of the steps, 1 until `hold`, then half a cosine to `end`.

    A factor of learning rates.
    """

    warm: float = 0.02
    hold: float = 0.5
    end: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.warm <= self.hold < 1:
            raise DataError(f"warm, hold: found {self.warm!r} and {self.hold!r}; wanted 0 <= warm <= hold < 1")

    def __call__(self, done: float) -> float:
        """Value at the share `done` of the steps."""
        if done < self.warm:
            return done / self.warm
        return Cosine(1.0, self.end)(max(0.0, done - self.hold) / (1 - self.hold))


class BufferSchedules:
    """Writes scheduled values into named buffers, e.g. ``{"acyclicity.weight": Geometric(0.05, 1e3)}``.

    Parameters
    ----------
    model
        The module whose buffers go by their own names.
    schedules
        Values by name of the buffer.
    guide
        A module whose buffers go by names that start with ``guide.``.

    Raises
    ------
    DataError
        If a name is not that of a buffer.
    """

    def __init__(self, model: object, schedules: Mapping[str, Schedule], guide: object = None) -> None:
        own, of_guide = _buffers(model), {f"guide.{name}": place for name, place in _buffers(guide).items()}
        places = {**own, **of_guide}
        unknown = sorted(set(schedules) - set(places))
        if unknown:
            wanted = f"buffers of the model, one of {sorted(own)}"
            wanted += f", or of the guide, one of {sorted(of_guide)}" if of_guide else ""
            raise DataError(f"schedules: found {unknown}; wanted {wanted}")
        self._places = [(*places[name], schedule) for name, schedule in schedules.items()]

    def set(self, done: float) -> None:
        """Write the values for the share `done` of the steps."""
        for module, leaf, schedule in self._places:
            module.get_buffer(leaf).fill_(schedule(done))


def _buffers(module: object) -> dict[str, tuple[torch.nn.Module, str]]:
    """Module and name in it of every buffer: the tensor itself may be replaced by another one."""
    if not isinstance(module, torch.nn.Module):
        return {}
    names = dict(module.named_buffers(remove_duplicate=False))
    return {name: (module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names}
