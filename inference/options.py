"""How a run of SVI optimises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ..models.parts.errors import DataError
from .schedules import Schedule

HAVE_ONE_KERNEL = (torch.optim.Adam, torch.optim.AdamW)


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
    update_every: int | None = None

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
            "update_every": self.update_every,
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Options | None:
        """Inverse of `settings`; None if that names objects which a file does not hold."""
        if settings.get("optimizer") != _name(cls.optimizer) or settings.get("loss") or settings.get("schedules"):
            return None
        keys = ("learning_rate", "batch_size", "clip_norm", "tolerance", "window", "update_every")
        return cls(**{key: settings[key] for key in keys})

    def settled(self, losses: Sequence[float]) -> bool:
        """Whether a window of losses has just ended whose mean is hardly below that of the window before."""
        if self.tolerance is None or len(losses) % self.window or len(losses) < 2 * self.window:
            return False
        before = sum(losses[-2 * self.window : -self.window]) / self.window
        now = sum(losses[-self.window :]) / self.window
        return before - now < self.tolerance * max(1.0, abs(now))

    def optimizer_of(self, parameters: Mapping[str, Tensor]) -> torch.optim.Optimizer:
        """Make the optimiser; Adam as one kernel, which takes less than half the time.

        Raises
        ------
        DataError
            If a parameter has no rate.
        """
        given = self.optimizer.keywords if isinstance(self.optimizer, partial) else {}
        kind = self.optimizer.func if isinstance(self.optimizer, partial) else self.optimizer
        chosen = given.keys() & {"fused", "foreach", "capturable", "differentiable"}
        usable = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters.values())
        fused = {"fused": True} if kind in HAVE_ONE_KERNEL and usable and not chosen else {}
        return self.optimizer(self._groups(parameters), **fused)

    def _groups(self, parameters: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        rate = self.learning_rate
        if not isinstance(rate, Mapping):
            return [{"params": list(parameters.values()), "lr": rate}]
        groups: dict[str, list[Tensor]] = {}
        for name, tensor in parameters.items():
            pattern = next((p for p in rate if fnmatch(name, p)), None)
            if pattern is None:
                raise DataError(f"learning_rate: found no pattern for parameter {name!r} in {sorted(rate)}")
            groups.setdefault(pattern, []).append(tensor)
        return [{"params": tensors, "lr": rate[pattern]} for pattern, tensors in groups.items()]


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
