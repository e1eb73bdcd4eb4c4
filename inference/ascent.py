"""One run of coordinate ascent: copies of model and guide, and the sweeps that the guide has made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from ..models.parts.errors import DataError, NumericalError, SchemaError
from ..models.schema import Schema
from . import snapshot
from .acceleration import Squarem
from .copies import float_dtype, make_pair
from .export import name_of
from .messengers import isolated, latent_sites, quiet, rng_state, set_rng_state
from .updating import BREAKDOWNS


@dataclass(frozen=True)
class AscentOptions:
    """When to stop and how to hasten; see `em`."""

    tolerance: float | None = 1e-6
    window: int = 3
    accelerate: str | None = None

    def __post_init__(self) -> None:
        if self.accelerate not in (None, "squarem"):
            raise DataError(f"accelerate: found {self.accelerate!r}; wanted None or 'squarem'")
        given = self.tolerance
        number = isinstance(given, Real) and not isinstance(given, bool)
        if given is not None and not (number and math.isfinite(given) and given >= 0):
            raise DataError(f"tolerance: found {given!r}; wanted None or a number of at least 0")

    def settings(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> AscentOptions:
        """Inverse of `settings`."""
        return cls(settings["tolerance"], settings["window"], settings["accelerate"])


class Ascent:
    """Sweeps of a guide's own ``update``.

    Parameters
    ----------
    model, guide
        As given to `em`; both are copied.
    schema, inputs
        What the model declares, and its arguments.
    options
        When to stop and how to hasten.
    seed
        Seed of the run.
    store
        Parameter store state that belongs to an already fitted `model` and `guide`.

    Raises
    ------
    SchemaError
        If the guide lacks a method that is needed, or has other sites than the model.
    """

    guide: Any

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | type,
        schema: Schema,
        inputs: Mapping[str, Tensor],
        options: AscentOptions,
        seed: int,
        store: dict[str, Any] | None = None,
    ) -> None:
        self.schema, self.inputs, self.options, self.seed = schema, dict(inputs), options, seed
        self.losses: list[float] = []
        self.converged, self.failure = False, ""
        self.num_values = _count(schema, self.inputs)
        with self._isolated() as self.store:
            self.model, self.guide, copied = make_pair(model, guide, self.inputs, store)
            _check_methods(self.guide, options)
            if copied is not None:
                pyro.get_param_store().set_state(copied)
            self._check_sites()
            self._rng = rng_state()
        self._squarem = Squarem()
        self._midway = False

    @property
    def final_loss(self) -> float:
        """Negative bound of the guide as it is."""
        return self.losses[-1] if self.losses else math.nan

    def _isolated(self, store: Any = None) -> Any:
        return isolated(self.seed, store, float_dtype(self.inputs))

    def _check_sites(self) -> None:
        """Call guide and model once, which also lets a guide make numbers whose shapes it takes from the data."""
        with torch.no_grad(), quiet(), pyro.validation_enabled(False):
            guide_trace = poutine.trace(self.guide).get_trace(**self.inputs)
            trace = poutine.trace(poutine.replay(self.model, trace=guide_trace)).get_trace(**self.inputs)
        drawn = {n for n, s in latent_sites(guide_trace).items() if not s["infer"].get("is_auxiliary")}
        latent = latent_sites(trace)
        wanted = {n for n, s in latent.items() if s["infer"].get("enumerate") != "parallel"}
        if not wanted <= drawn <= set(latent):
            raise SchemaError(f"guide: found sites {sorted(drawn)}; wanted {sorted(wanted)}, the model's latent ones")

    def advance(self, num_steps: int, after_step: Callable[[], Any]) -> None:
        """Make up to `num_steps` sweeps; stops early when the bound has settled.

        However this ends, the guide is as it was after a complete sweep.

        Raises
        ------
        NumericalError
            If the bound or a number of the guide is not finite.
        SchemaError
            If the guide's methods return something else than numbers, or its numbers change their shapes.
        """
        with self._isolated(self.store), pyro.validation_enabled(False), quiet(), torch.no_grad():
            set_rng_state(self._rng)
            self.failure = ""
            try:
                for _ in range(num_steps):
                    kept = self._sweep()
                    self.converged = kept and self._has_settled()
                    after_step()
                    if self.converged:
                        return
            except BaseException:  # Ctrl-C comes at any time
                if self._midway:
                    self._go_back()
                raise

    def _sweep(self) -> bool:
        """One sweep; False if it started from an extrapolated point and was undone."""
        self._remember()
        self._midway = True
        if self.options.accelerate and not self._squarem.points:
            self._note_point()
        proposal = self._squarem.proposal()
        try:
            if proposal is not None:
                self.guide.set_free_parameters(proposal.clone())
            bound = _number("update", self.guide.update(self.model, dict(self.inputs), len(self.losses)))
            fault = self._fault(bound)
        except BREAKDOWNS as error:
            bound, fault = math.nan, str(error) or type(error).__name__
        kept = proposal is None or (not fault and bound >= -self.losses[-1])
        if not kept:
            snapshot.put(self.guide, self._good)
        elif fault:
            self._go_back()
            step = len(self.losses) + 1
            self.failure = f"step {step}: {fault}; the guide is that of step {step - 1}"
            raise NumericalError(self.failure)
        if proposal is not None:
            self._squarem = self._squarem.after_proposal(kept=kept)
        elif self.options.accelerate:
            self._note_point()
        self.losses.append(-bound if kept else self.losses[-1])
        self._rng = rng_state()
        self._midway = False
        return kept

    def _note_point(self) -> None:
        self._squarem = self._squarem.with_point(self.guide.free_parameters().detach().clone())

    def _remember(self) -> None:
        self._good = snapshot.take(self.guide)
        self._then = (len(self.losses), self._squarem, self._rng)

    def _go_back(self) -> None:
        snapshot.put(self.guide, self._good)
        count, self._squarem, self._rng = self._then
        del self.losses[count:]
        self._midway = False

    def _fault(self, bound: float) -> str:
        """What is wrong after a sweep. Numbers that were not finite before it, such as log odds of 0, may stay so."""
        numbers = snapshot.numbers_of(self.guide)
        snapshot.check_forms(numbers, self._good)
        name = snapshot.spoiled(numbers, self._good)
        if name:
            return f"guide.{name} is not finite"
        return "" if math.isfinite(bound) else f"the bound is {bound}"

    def _spread(self) -> float:
        """Range of the bound over the latest window of sweeps, nats a data value; NaN before there is one."""
        latest = self.losses[-self.options.window - 1 :]
        return (max(latest) - min(latest)) / self.num_values if len(latest) > self.options.window else math.nan

    def _has_settled(self) -> bool:
        tolerance = self.options.tolerance
        if tolerance is None or not self._spread() <= tolerance:
            return False
        change = getattr(self.guide, "change", None)
        return change is None or _number("change", change()) <= math.sqrt(tolerance)

    def watched(self) -> dict[str, Any]:
        """What was seen of the bound: falls beyond rounding, whether there should be none, and how much it still moves.

        The rounding allowed for is the root of the precision times (size of the bound + number of data values).
        """
        bounds = -np.array(self.losses)
        rounding = math.sqrt(torch.finfo(float_dtype(self.inputs)).eps) * (np.abs(bounds[:-1]) + self.num_values)
        falls = -np.diff(bounds)
        falls = falls[falls > rounding]
        seen = {
            "monotone": bool(getattr(self.guide, "monotone", False)),
            "bound_falls": len(falls),
            "largest_fall": float(falls.max(initial=0.0)),
            "bound_range": self._spread(),
        }
        if self.options.accelerate:
            seen |= {"extrapolations_kept": self._squarem.kept, "extrapolations_refused": self._squarem.refused}
        return seen

    def numbers(self) -> dict[str, Tensor]:
        """Copies of the guide's numbers."""
        return {name: tensor.cpu().clone() for name, tensor in snapshot.numbers_of(self.guide).items()}

    def state(self) -> dict[str, Any]:
        """What a resumed run needs beside the guide's numbers: tensors and plain numbers."""
        return {
            "losses": list(self.losses),
            "rng": list(self._rng),
            "converged": self.converged,
            "failure": self.failure,
            "acceleration": self._squarem.state(),
        }

    def restore(self, state: Mapping[str, Any], numbers: Mapping[str, Tensor] | None = None) -> None:
        """Go back to a saved state; without `numbers` the guide has them.

        Raises
        ------
        SchemaError
            If the numbers are those of another guide.
        """
        if numbers is not None:
            here = snapshot.numbers_of(self.guide)
            snapshot.check_forms(numbers, here)
            fault = snapshot.spoiled(numbers, {name: tensor.cpu() for name, tensor in here.items()})
            if fault:
                raise SchemaError(f"guide.{fault}: found numbers that are not finite; wanted finite ones")
            snapshot.put(self.guide, {name: tensor.to(here[name].device) for name, tensor in numbers.items()})
        device = next((tensor.device for tensor in self.inputs.values()), torch.device("cpu"))
        self.losses, self._rng = list(map(float, state["losses"])), tuple(state["rng"])
        self.converged, self.failure = bool(state["converged"]), str(state["failure"])
        self._squarem = Squarem.from_state(state["acceleration"], device)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        found = type(value).__name__
        raise SchemaError(f"guide.{name}: found {found}; wanted a method that returns a number") from error


def _count(schema: Schema, inputs: Mapping[str, Tensor]) -> int:
    """Number of observed values, or of all values if the model does not say what it explains."""
    seen = [inputs[name] for name in schema.observed if name in inputs] or list(inputs.values())
    return max(1, sum(tensor.numel() for tensor in seen))


def _check_methods(guide: Any, options: AscentOptions) -> None:
    wanted = ["update", *(["free_parameters", "set_free_parameters"] if options.accelerate else [])]
    missing = [name for name in wanted if not callable(getattr(guide, name, None))]
    if not isinstance(guide, torch.nn.Module) or missing:
        raise SchemaError(
            f"guide: found {name_of(guide)} without {', '.join(missing) or 'numbers'}; "
            f"wanted a torch.nn.Module with methods {', '.join(wanted)}"
        )
