"""One run of SVI: copies of model and guide, their parameters, an optimiser and a random state of its own."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoContinuous
from torch import Tensor

from ..models.parts.errors import DataError, NumericalError, SchemaError
from ..models.schema import Schema
from .density import max_plate_nesting
from .inputs import float_dtype
from .messengers import Supply, is_plate, isolated, latent_sites, sample_sites
from .schedules import BufferSchedules, Schedule

NUM_EVALUATIONS = 16
RATE = "learning_rate"


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


class Run:
    """One restart.

    Parameters
    ----------
    model, guide
        As given to `svi`; both are copied.
    schema, inputs
        What the model declares, and its arguments on the full data.
    options
        How to optimise.
    seed
        Of this run alone.
    store
        Parameter store state that belongs to an already fitted `model` and `guide`.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | type,
        schema: Schema,
        inputs: Mapping[str, Tensor],
        options: Options,
        seed: int,
        store: dict[str, Any] | None = None,
    ) -> None:
        self.schema, self.inputs, self.options, self.seed = schema, dict(inputs), options, seed
        self.losses: list[float] = []
        self.converged, self.failure, self.final_loss = False, "", math.nan
        with isolated(seed, copy_of(store)) as self.store:
            self.model, self.guide, copied = make_pair(model, guide, self.inputs, self.store if store else None)
            if store:
                pyro.get_param_store().set_state(copied)
            self._build()
            self._rng = rng_state()
        self._good = [p.detach().clone() for p in self.parameters.values()]

    def _build(self) -> None:
        """Run everything once with validation on: creates the parameters and finds out what the loss needs."""
        with torch.no_grad(), pyro.validation_enabled(True):
            guide_trace = poutine.trace(self.guide).get_trace(**self.inputs)
            trace = poutine.trace(poutine.replay(self.model, trace=guide_trace)).get_trace(**self.inputs)
        enumerated = [n for n, s in sample_sites(trace).items() if s["infer"].get("enumerate") == "parallel"]
        nesting = max(max_plate_nesting(trace), max_plate_nesting(guide_trace))
        kind = TraceEnum_ELBO if enumerated else Trace_ELBO
        self.elbo = self.options.loss or kind(max_plate_nesting=nesting)
        self.num_rows = self._check_batches(trace, guide_trace)
        self.parameters = dict(pyro.get_param_store().named_parameters())
        if not self.parameters:
            raise SchemaError("guide: found no parameters; wanted a guide with something to fit")
        self.optimizer = self.options.optimizer(self._groups())
        scheduled = {k: v for k, v in self.options.schedules.items() if k != RATE}
        self._buffers = BufferSchedules(self.model, scheduled)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]

    def _check_batches(self, trace: Any, guide_trace: Any) -> int:
        if self.options.batch_size is None:
            return 0
        plate, size = self.schema.plate, self.options.batch_size
        plates = {n: s["fn"].size for n, s in trace.nodes.items() if s["type"] == "sample" and is_plate(s)}
        if plate not in plates:
            raise SchemaError(f"batch_size: found plates {sorted(plates)} in the model; wanted one named {plate!r}")
        if size < 1:
            raise DataError(f"batch_size: found {size}; wanted at least 1")
        local = [n for n, s in latent_sites(trace).items() if any(f.name == plate for f in s["cond_indep_stack"])]
        local = [n for n in local if n in guide_trace.nodes]
        if local and isinstance(self.guide, AutoContinuous):
            raise SchemaError(
                f"batch_size: {type(self.guide).__name__} is a joint guide and cannot subsample {local[0]!r}, which "
                "has one value a row; use AutoNormal with create_plates, an amortised guide, or no minibatches"
            )
        if local and plate not in guide_trace.nodes:
            raise SchemaError(
                f"batch_size: the guide draws {local[0]!r} outside a plate named {plate!r}; give it that plate "
                "(AutoNormal(model, create_plates=...)) so that it can be subsampled"
            )
        return int(plates[plate]) if size < plates[plate] else 0

    def _groups(self) -> list[dict[str, Any]]:
        rate = self.options.learning_rate
        if not isinstance(rate, Mapping):
            return [{"params": list(self.parameters.values()), "lr": rate}]
        groups: dict[str, list[Tensor]] = {}
        for name, tensor in self.parameters.items():
            pattern = next((p for p in rate if fnmatch(name, p)), None)
            if pattern is None:
                raise DataError(f"learning_rate: found no pattern for parameter {name!r} in {sorted(rate)}")
            groups.setdefault(pattern, []).append(tensor)
        return [{"params": tensors, "lr": rate[pattern]} for pattern, tensors in groups.items()]

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Enter the run's own parameter store and random state."""
        with isolated(self.seed, self.store):
            set_rng_state(self._rng)
            try:
                yield
            finally:
                self._rng = rng_state()

    def advance(self, num_steps: int, total: int, after_step: Callable[[], None]) -> None:
        """Take up to `num_steps` steps of a run of `total`; stops early when converged.

        Raises
        ------
        NumericalError
            If loss or gradient is not finite; the parameters are then those of the last finite loss.
        """
        with self.inside(), warnings.catch_warnings(), pyro.validation_enabled(False):
            warnings.filterwarnings("ignore", message="Encountered")  # Pyro's own word on NaN; ours names the site
            for _ in range(num_steps):
                self._step(len(self.losses) / total)
                self._rng = rng_state()
                after_step()
                if self._has_converged():
                    self.converged = True
                    return

    def _step(self, done: float) -> None:
        self._buffers.set(done)
        if RATE in self.options.schedules:
            for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * self.options.schedules[RATE](done)
        self.optimizer.zero_grad()
        with Supply(self._rows()):
            value = self._loss_and_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.options.clip_norm or math.inf)
        if not math.isfinite(value) or not bool(torch.isfinite(norm)):
            self._fail(value)
        self.losses.append(value)
        with torch.no_grad():
            torch._foreach_copy_(self._good, [p.detach() for p in self.parameters.values()])
        self.optimizer.step()

    def _rows(self) -> dict[str, Tensor]:
        if not self.num_rows:
            return {}
        device = next(iter(self.inputs.values())).device
        return {self.schema.plate: torch.randperm(self.num_rows, device=device)[: self.options.batch_size]}

    def _loss_and_gradients(self) -> float:
        objective = getattr(self.guide, "objective", None)
        if objective is None:
            return float(self.elbo.loss_and_grads(self.model, self.guide, **self.inputs))
        loss = objective(self.model, self.inputs)
        loss.backward()
        return float(loss.detach())

    def _has_converged(self) -> bool:
        window, tolerance = self.options.window, self.options.tolerance
        if tolerance is None or len(self.losses) % window or len(self.losses) < 2 * window:
            return False
        before = sum(self.losses[-2 * window : -window]) / window
        now = sum(self.losses[-window:]) / window
        return before - now < tolerance * max(1.0, abs(now))

    def _fail(self, value: float) -> None:
        where = self._culprit()
        self.restore_good()
        step = len(self.losses) + 1
        what = "gradient" if math.isfinite(value) else f"loss ({value})"
        self.failure = f"step {step}: the {what} is not finite, at {where}; parameters are those of step {step - 1}"
        raise NumericalError(self.failure)

    def _culprit(self) -> str:
        for name, tensor in self.parameters.items():
            if tensor.grad is not None and not bool(torch.isfinite(tensor.grad).all()):
                parameter = name
                break
        else:
            parameter = ""
        with torch.no_grad():
            guide_trace = poutine.trace(self.guide).get_trace(**self.inputs)
            trace = poutine.trace(poutine.replay(self.model, trace=guide_trace)).get_trace(**self.inputs)
            for part, which in ((guide_trace, "guide"), (trace, "model")):
                for name, site in sample_sites(part).items():
                    log_prob = site["fn"].log_prob(site["value"])
                    if not bool(torch.isfinite(site["value"]).all() & torch.isfinite(log_prob).all()):
                        return f"site {name!r} of the {which}"
        return f"parameter {parameter!r}" if parameter else "no single site"

    def restore_good(self) -> None:
        """Put back the parameters of the last finite loss."""
        with torch.no_grad():
            for tensor, good in zip(self.parameters.values(), self._good, strict=True):
                tensor.copy_(good)

    def evaluate(self) -> float:
        """Objective on the full data, averaged over draws; the measure by which restarts are compared."""
        with isolated(self.seed, self.store), torch.no_grad(), pyro.validation_enabled(False):
            self._buffers.set(1.0)
            objective = getattr(self.guide, "objective", None)
            if objective is not None:
                losses = [float(objective(self.model, self.inputs)) for _ in range(NUM_EVALUATIONS)]
            else:
                losses = [float(self.elbo.loss(self.model, self.guide, **self.inputs)) for _ in range(NUM_EVALUATIONS)]
        self.final_loss = sum(losses) / NUM_EVALUATIONS
        return self.final_loss

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as tensors and plain numbers."""
        return {
            "parameters": {name: tensor.detach().cpu().clone() for name, tensor in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "rng": list(self._rng),
            "losses": list(self.losses),
            "converged": self.converged,
            "failure": self.failure,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state.

        Raises
        ------
        SchemaError
            If the state has other parameters.
        """
        saved = state["parameters"]
        shapes = {name: tuple(tensor.shape) for name, tensor in self.parameters.items()}
        if shapes != {name: tuple(tensor.shape) for name, tensor in saved.items()}:
            raise SchemaError(f"state: found parameters {sorted(saved)}; wanted {shapes}")
        with torch.no_grad():
            for name, tensor in self.parameters.items():
                tensor.copy_(saved[name])
        self._good = [p.detach().clone() for p in self.parameters.values()]
        self.optimizer.load_state_dict(state["optimizer"])
        self._rng = tuple(state["rng"])
        self.losses = list(state["losses"])
        self.converged, self.failure = bool(state["converged"]), str(state["failure"])


def copy_of(thing: Any) -> Any:
    """Deep copy with a readable error for modules that hold graphs.

    Raises
    ------
    SchemaError
        If Python cannot copy it.
    """
    try:
        return copy.deepcopy(thing)
    except (RuntimeError, TypeError) as error:
        raise SchemaError(
            f"{type(thing).__name__}: cannot be copied ({error}); pass a guide class or a function of `model` instead"
        ) from error


def is_factory(guide: Callable[..., Any] | type) -> bool:
    """Whether `guide` makes guides: a class, or a function of one argument named ``model``."""
    if isinstance(guide, type):
        return True
    if isinstance(guide, torch.nn.Module) or not callable(guide):
        return False
    return list(inspect.signature(guide).parameters) == ["model"]


def make_pair(
    model: Callable[..., Any], guide: Any, inputs: Mapping[str, Tensor], store: Any = None
) -> tuple[Callable[..., Any], Callable[..., Any], Any]:
    """Copy model, guide and store together (they may share parts) and bring them to the data's precision and device."""
    made = is_factory(guide)
    model, copied, store = copy_of((model, None if made else guide, store))
    like = next((t for t in inputs.values() if t.is_floating_point()), None)
    for module in (model, copied):
        if isinstance(module, torch.nn.Module) and like is not None:
            module.to(device=like.device, dtype=float_dtype(inputs))
    return model, guide(model) if made else copied, store


def rng_state() -> tuple[Tensor, ...]:
    """State of torch's generators."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states += torch.cuda.get_rng_state_all()
    return tuple(states)


def set_rng_state(states: tuple[Tensor, ...]) -> None:
    """Inverse of `rng_state`."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(list(states[1:]))
