"""How a run of SVI optimises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral
from typing import Any

import torch

from ..models.parts.errors import DataError
from .schedules import Schedule


@dataclass(frozen=True)
class Options:
    """How a run optimises; see `svi`."""

    learning_rate: float | dict[str, float] = 0.01
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    loss: Any = None
    batch_size: int | None = None
    clip_norm: float | None = None
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    tolerance: float | None = None
    window: int = 100

    def settings(self) -> dict[str, Any]:
        """What a file can say of them: numbers as they are, objects by name."""
        rates = dict(self.learning_rate) if isinstance(self.learning_rate, Mapping) else self.learning_rate
        return {
            "learning_rate": rates,
            "optimizer": _name(self.optimizer),
            "loss": None if self.loss is None else _name(self.loss),
            "batch_size": self.batch_size,
            "clip_norm": self.clip_norm,
            "schedules": {key: _name(schedule) for key, schedule in self.schedules.items()},
            "tolerance": self.tolerance,
            "window": self.window,
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Options | None:
        """Inverse of `settings`; None if that names objects which a file does not hold."""
        if settings.get("optimizer") != _name(cls.optimizer) or settings.get("loss") or settings.get("schedules"):
            return None
        keys = ("learning_rate", "batch_size", "clip_norm", "tolerance", "window")
        return cls(**{key: settings[key] for key in keys})


def _name(thing: Any) -> str:
    """A name that is the same in every process."""
    if isinstance(thing, partial):
        return f"{_name(thing.func)}({thing.keywords})"
    if hasattr(thing, "__dataclass_fields__"):
        return repr(thing)
    return getattr(thing, "__name__", type(thing).__name__)


def check_counts(**counts: Any) -> None:
    """Refuse numbers of steps, draws or the like that are not positive whole numbers, and seeds that are negative.

    Raises
    ------
    DataError
        Naming the option.
    """
    for name, value in counts.items():
        least = 0 if name == "seed" else 1
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise DataError(f"{name}: found {value!r}; wanted a whole number of at least {least}")
