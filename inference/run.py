"""One run of SVI: copies of model and guide, their parameters, an optimiser and a random state of its own."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from fnmatch import fnmatch
from typing import Any, NoReturn, TypeVar

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor

from ..models.parts.errors import DataError, NumericalError, SchemaError
from ..models.schema import Schema
from .batches import cannot_subsample, rows_to_choose_from
from .copies import fitted_parameters, float_dtype, make_pair, owner_of
from .density import max_plate_nesting
from .messengers import Supply, isolated, quiet, rng_state, sample_sites, set_rng_state
from .options import Options
from .schedules import BufferSchedules

NUM_EVALUATIONS = 16
RATE = "learning_rate"
T = TypeVar("T")


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
        with self._isolated() as self.store:
            self.model, self.guide, copied = make_pair(model, guide, self.inputs, store)
            if copied is not None:
                pyro.get_param_store().set_state(copied)
            self._build()
            self._rng = rng_state()
        self._good = [p.detach().clone() for p in self.parameters.values()]

    @property
    def device(self) -> torch.device:
        """Where the data are."""
        return next((tensor.device for tensor in self.inputs.values()), torch.device("cpu"))

    def _isolated(self, store: Any = None) -> Any:
        return isolated(self.seed, store, float_dtype(self.inputs))

    def _traces(self) -> tuple[Any, Any]:
        guide_trace = poutine.trace(self.guide).get_trace(**self.inputs)
        return guide_trace, poutine.trace(poutine.replay(self.model, trace=guide_trace)).get_trace(**self.inputs)

    def _build(self) -> None:
        """Run everything once with validation on: creates the parameters and finds out what the loss needs."""
        guide_trace, trace = self._validated(self._traces)
        enumerated = [n for n, s in sample_sites(trace).items() if s["infer"].get("enumerate") == "parallel"]
        nesting = max(max_plate_nesting(trace), max_plate_nesting(guide_trace))
        kind = TraceEnum_ELBO if enumerated else Trace_ELBO
        self.elbo = self.options.loss or kind(max_plate_nesting=nesting)
        self._validated(self._loss)
        size = self.options.batch_size
        self.num_rows = 0 if size is None else self._num_rows(size, guide_trace, trace)
        self.parameters = fitted_parameters(self._modules())
        self.optimizer = self.options.optimizer(self._groups())
        scheduled = {k: v for k, v in self.options.schedules.items() if k != RATE}
        self._buffers = BufferSchedules(self.model, scheduled)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]

    def _validated(self, run: Callable[[], T]) -> T:
        """Run with Pyro's checks; without, where a number that is not finite trips them (the first step names it)."""
        with torch.no_grad(), quiet():
            try:
                with pyro.validation_enabled(True):
                    return run()
            except ValueError:
                with pyro.validation_enabled(False):
                    if not self._culprit():
                        raise
                    return run()

    def _num_rows(self, size: int, guide_trace: Any, trace: Any) -> int:
        plate = self.schema.plate
        num_rows = rows_to_choose_from(plate, size, self.guide, guide_trace, trace)
        if num_rows:
            try:
                with Supply({plate: torch.arange(size, device=self.device)}):
                    self._validated(self._loss)
            except (ValueError, RuntimeError, IndexError) as error:
                raise cannot_subsample(plate, size, error) from error
        return num_rows

    def _modules(self) -> dict[str, torch.nn.Module]:
        owners = {"model": owner_of(self.model), "guide": owner_of(self.guide)}
        return {role: module for role, module in owners.items() if module is not None}

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

    def advance(self, num_steps: int, total: int, after_step: Callable[[], None]) -> None:
        """Take up to `num_steps` steps of a run of `total`; stops early when converged.

        Raises
        ------
        NumericalError
            If loss or gradient is not finite; the parameters are then those of the last finite loss.
        """
        with self._isolated(self.store), pyro.validation_enabled(False), quiet():
            set_rng_state(self._rng)
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
        try:
            with Supply(self._rows()):
                value = self._loss_and_gradients()
        except (NumericalError, torch.linalg.LinAlgError) as error:
            self._fail(str(error))
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.options.clip_norm or math.inf)
        if not math.isfinite(value):
            self._fail(f"the loss is {value}, at {self._culprit() or 'no single site'}")
        if not bool(torch.isfinite(norm)):
            self._fail(f"the gradient is not finite, at {self._culprit() or self._parameter_at_fault()}")
        with torch.no_grad():
            torch._foreach_copy_(self._good, [p.detach() for p in self.parameters.values()])
        self.optimizer.step()
        self.losses.append(value)

    def _rows(self) -> dict[str, Tensor]:
        if not self.num_rows:
            return {}
        rows = torch.randperm(self.num_rows, device=self.device)
        return {self.schema.plate: rows[: self.options.batch_size]}

    def _loss_and_gradients(self) -> float:
        objective = getattr(self.guide, "objective", None)
        if objective is None:
            return float(self.elbo.loss_and_grads(self.model, self._announced_guide, **self.inputs))
        loss = objective(self.model, self.inputs)
        loss.backward()
        return float(loss.detach())

    def _announced_guide(self, **inputs: Tensor) -> Any:
        """The guide with one parameter named to Pyro, whose ELBOs else take no gradients: plain modules name none."""
        name, parameter = next(iter(self.parameters.items()))
        pyro.param(name, parameter)
        return self.guide(**inputs)

    def _has_converged(self) -> bool:
        window, tolerance = self.options.window, self.options.tolerance
        if tolerance is None or len(self.losses) % window or len(self.losses) < 2 * window:
            return False
        before = sum(self.losses[-2 * window : -window]) / window
        now = sum(self.losses[-window:]) / window
        return before - now < tolerance * max(1.0, abs(now))

    def _fail(self, what: str) -> NoReturn:
        self.restore_good()
        step = len(self.losses) + 1
        self.failure = f"step {step}: {what}; parameters are those of step {step - 1}"
        raise NumericalError(self.failure)

    def _culprit(self) -> str:
        """The first site that is not finite on the full data."""
        with torch.no_grad(), suppress(RuntimeError, ValueError, ArithmeticError):
            for part, role in zip(self._traces(), ("guide", "model"), strict=True):
                for name, site in sample_sites(part).items():
                    log_prob = site["fn"].log_prob(site["value"])
                    if not bool(torch.isfinite(site["value"]).all() & torch.isfinite(log_prob).all()):
                        return f"site {name!r} of the {role}"
        return ""

    def _parameter_at_fault(self) -> str:
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        return next(f"parameter {name!r}" for name, g in gradients.items() if not bool(torch.isfinite(g).all()))

    def restore_good(self) -> None:
        """Put back the parameters of the last finite loss."""
        with torch.no_grad():
            for tensor, good in zip(self.parameters.values(), self._good, strict=True):
                tensor.copy_(good)

    def evaluate(self) -> float:
        """Objective on the full data, averaged over draws; the measure by which restarts are compared.

        If it is not finite, which can happen after the very last step, the run goes back to its last finite loss.
        """
        self.final_loss = self._mean_loss()
        if not math.isfinite(self.final_loss):
            self.restore_good()
            self.final_loss = self._mean_loss()
        return self.final_loss

    def _mean_loss(self) -> float:
        with self._isolated(self.store), torch.no_grad(), pyro.validation_enabled(False), quiet():
            self._buffers.set(1.0)
            try:
                return sum(self._loss() for _ in range(NUM_EVALUATIONS)) / NUM_EVALUATIONS
            except (NumericalError, torch.linalg.LinAlgError):
                return math.nan

    def _loss(self) -> float:
        objective = getattr(self.guide, "objective", None)
        if objective is not None:
            return float(objective(self.model, self.inputs))
        return float(self.elbo.loss(self.model, self.guide, **self.inputs))

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as copies: tensors and plain numbers."""
        good = dict(zip(self.parameters, self._good, strict=True))
        return copy.deepcopy(
            {
                "parameters": {name: tensor.detach().cpu() for name, tensor in self.parameters.items()},
                "good": {name: tensor.cpu() for name, tensor in good.items()},
                "buffers": {name: tensor.cpu() for name, tensor in self._all_buffers().items()},
                "optimizer": self.optimizer.state_dict(),
                "rng": list(self._rng),
                "losses": self.losses,
                "converged": self.converged,
                "failure": self.failure,
            }
        )

    def _all_buffers(self) -> dict[str, Tensor]:
        return {f"{role}.{n}": b for role, module in self._modules().items() for n, b in module.named_buffers()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state.

        Raises
        ------
        SchemaError
            If the state has other parameters.
        """
        state = copy.deepcopy(dict(state))  # the optimiser goes on working on the tensors that it is given
        good = dict(zip(self.parameters, self._good, strict=True))
        groups = {"parameters": self.parameters, "good": good, "buffers": self._all_buffers()}
        for key, group in groups.items():
            shapes = {name: tuple(tensor.shape) for name, tensor in group.items()}
            found = {name: tuple(tensor.shape) for name, tensor in state[key].items()}
            if shapes != found:
                raise SchemaError(f"state: found {key} {found}; wanted {shapes}")
        with torch.no_grad():
            for key, group in groups.items():
                for name, tensor in group.items():
                    tensor.copy_(state[key][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self._rng = tuple(state["rng"])
        self.losses = list(state["losses"])
        self.converged, self.failure = bool(state["converged"]), str(state["failure"])
