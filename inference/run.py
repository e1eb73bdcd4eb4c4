"""One run of SVI: copies of model and guide, their parameters, an optimiser and a random state of its own."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import pyro
import torch
from torch import Tensor

from ..models.parts.errors import NumericalError
from ..models.schema import Schema
from . import snapshot
from .batches import Epochs, cannot_subsample, count_rows, rows_to_choose_from
from .copies import fitted_parameters, float_dtype, make_pair, owner_of
from .descent import RATE, Descent, fill
from .distributed import Processes
from .evaluation import mean_loss
from .messengers import Supply, isolated, quiet, rng_state, set_rng_state
from .objective import Objective
from .options import Options, check_counts
from .schedules import BufferSchedules
from .snapshot import Watched
from .updating import BREAKDOWNS, changed_by, check_update

UPDATE = 1  # beside seed and step, for random numbers of an update


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
    processes
        Those that take a step together, each on its share of the rows.
    """

    guide: Any

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | type,
        schema: Schema,
        inputs: Mapping[str, Tensor],
        options: Options,
        seed: int,
        store: dict[str, Any] | None = None,
        processes: Processes | None = None,
    ) -> None:
        self._processes = processes or Processes()
        self.schema, self.inputs, self.options, self.seed = schema, dict(inputs), options, seed
        self.losses: list[float] = []
        self.converged, self.failure, self.final_loss = False, "", math.nan
        self._updated_after = 0
        with self._isolated() as self.store:
            self.model, self.guide, copied = make_pair(model, guide, self.inputs, store)
            if options.update_every is not None:
                check_update(self.guide)
            if copied is not None:
                pyro.get_param_store().set_state(copied)
            self._build()
            self._rng = rng_state()
        self._before_update: dict[str, Tensor] = {}  # numbers of the modules, until a loss is finite after the update

    @property
    def device(self) -> torch.device:
        """Where the data are."""
        return next((tensor.device for tensor in self.inputs.values()), torch.device("cpu"))

    def _isolated(self, store: Any = None) -> Any:
        return isolated(self.seed, store, float_dtype(self.inputs))

    def _build(self) -> None:
        """Run everything once with validation on: creates the parameters and finds out what the loss needs."""
        self.num_rows = 0
        self.objective = Objective(self.model, self.guide, self.inputs, self.options.loss)
        size = self._processes.share_of(self.options.batch_size)
        if size is None:
            self.objective.choose(*self.objective.traces())
        else:
            check_counts(batch_size=size)
            self._build_on_rows(self.schema.plate, size)
        self._processes.check_rows(self.options.batch_size, self.num_rows)
        self._epochs = self._new_epochs()
        self._descent = Descent(fitted_parameters(self._modules()), self.options)
        scheduled = {k: v for k, v in self.options.schedules.items() if k != RATE}
        self._buffers = BufferSchedules(owner_of(self.model), scheduled, owner_of(self.guide))
        if self.options.update_every is not None:
            snapshot.take(self._numbers_owner())  # buffers lie in memory as they will after an update

    def _build_on_rows(self, plate: str, size: int) -> None:
        """Build on some rows, so that memory does not grow with the data; all of them only tell what went wrong."""
        objective, total = self.objective, count_rows(self.schema, self.inputs)
        if not total:
            total = rows_to_choose_from(plate, size, self.guide, *objective.traces())
        rows = {plate: torch.arange(size, device=self.device)} if size < total else {}
        try:
            with Supply(rows):
                guide_trace, trace = objective.traces()
                self.num_rows = rows_to_choose_from(plate, size, self.guide, guide_trace, trace)
                objective.choose(guide_trace, trace)
        except (ValueError, RuntimeError, IndexError) as error:
            if not rows:
                raise
            traces = objective.traces()
            rows_to_choose_from(plate, size, self.guide, *traces)
            objective.choose(*traces)
            raise cannot_subsample(plate, size, error) from error

    def _new_epochs(self) -> Epochs | None:
        size = self.options.batch_size
        return Epochs(self.num_rows, size, self.seed, self.device) if self.num_rows and size is not None else None

    def _modules(self) -> dict[str, torch.nn.Module]:
        owners = {"model": owner_of(self.model), "guide": owner_of(self.guide)}
        return {role: module for role, module in owners.items() if module is not None}

    def _numbers_owner(self) -> torch.nn.Module:
        return torch.nn.ModuleDict(self._modules())

    def advance(self, num_steps: int, total: int, after_step: Callable[[], None]) -> None:
        """Take up to `num_steps` steps of a run of `total`; stops early when converged.

        Raises
        ------
        NumericalError
            If loss, gradient or an update is not finite; the parameters are then those of the last finite loss.
        """
        with self._isolated(self.store), torch.enable_grad(), pyro.validation_enabled(False), quiet():
            set_rng_state(self._rng)
            self._update_if_due()  # again, where Ctrl-C stopped it
            for _ in range(num_steps):
                self._step(len(self.losses) / total)
                self._remember_rng()
                self._update_if_due()
                after_step()
                if self.options.settled(self.losses):
                    self.converged = True
                    return

    def _step(self, done: float) -> None:
        step = len(self.losses) + 1
        self._processes.reseed(self.seed, step)
        with Supply(self._rows()):
            try:
                value = self._loss_and_gradients(done)
            except BREAKDOWNS as error:
                self._fail(step, str(error) or type(error).__name__)
            finite = self._descent.clip()
            if not math.isfinite(value):
                self._fail(step, f"the loss is {value}, at {self._culprit() or 'no single site'}")
            if not finite:
                self._fail(step, f"the gradient is not finite, at {self._culprit() or self._descent.at_fault()}")
        self._before_update = {}
        self._descent.step()
        self.losses.append(value)

    def _rows(self) -> dict[str, Tensor]:
        if self._epochs is None:
            return {}
        return {self.schema.plate: self._processes.share(self._epochs.rows(len(self.losses)))}

    def _loss_and_gradients(self, done: float) -> float:
        """Means over all processes; buffers that the step changes, such as running means, are averaged too."""
        buffers = Watched(self._numbers_owner() if self._processes.size > 1 else None)

        def own() -> list[float]:
            self._buffers.set(done)
            self._descent.start(done)
            buffers.start()
            return [self.objective.loss_and_gradients(self._descent.parameters), *buffers.changed()]

        value, *changed = self._processes.means_of(own, 1 + len(buffers))
        self._processes.average_gradients(list(self._descent.parameters.values()))
        self._processes.average_values(buffers.chosen(changed))
        return value

    def _culprit(self) -> str:
        """The first site that is not finite, on the rows of the step."""
        return self._processes.some_word(self.objective.culprit())

    def _update_if_due(self) -> None:
        """Let the guide update itself; what it moved starts afresh in the optimiser."""
        every, step = self.options.update_every, len(self.losses)
        if every is None or step % every or step == self._updated_after:
            return
        self._processes.reseed(self.seed, step, UPDATE)
        try:
            before, moved = self._update(step)
        except BREAKDOWNS as error:
            self._fail(step, f"the update: {str(error) or type(error).__name__}")
        self._descent.start_afresh(moved)
        self._before_update = self._before_update or before
        self._updated_after = step
        self._remember_rng()

    def _update(self, step: int) -> tuple[dict[str, Tensor], list[Tensor]]:
        """In process 0; the others take over the numbers that it comes to."""
        owner, parameters = self._numbers_owner(), list(self._descent.parameters.values())
        inputs, changes = dict(self.inputs), []

        def update() -> dict[str, Any]:
            changes.append(changed_by(lambda: self.guide.update(self.model, inputs, step), owner, parameters))
            return self._numbers() if self._processes.together else {}

        numbers = self._processes.first(update)
        return changes[0] if changes else changed_by(lambda: self.take_over(numbers), owner, parameters)

    def _remember_rng(self) -> None:
        """For the next step; with other processes it makes its own from seed, step and rank."""
        if not self._processes.together:
            self._rng = rng_state()

    def _fail(self, step: int, what: str) -> NoReturn:
        self.restore_good()
        self.failure = f"step {step}: {what}; parameters are those of step {len(self.losses)}"
        raise NumericalError(self.failure)

    def restore_good(self) -> None:
        """Put back the parameters of the last finite loss, and the numbers that an update changed since."""
        snapshot.put(self._numbers_owner(), self._before_update)
        self._descent.go_back()

    def evaluate(self) -> float:
        """Objective on the full data, averaged over draws; the measure by which restarts are compared.

        If it is not finite, which can happen after the very last step, the run goes back to its last finite loss.
        """
        if self._processes.together:  # also where processors differ, or Ctrl-C cut a step short
            self.take_over(self._processes.first(self._numbers))
        self.final_loss = self._mean_loss()
        if not math.isfinite(self.final_loss):
            self.restore_good()
            self.final_loss = self._mean_loss()
        return self.final_loss

    def _mean_loss(self) -> float:
        with self._isolated(self.store), torch.no_grad(), pyro.validation_enabled(False), quiet():
            self._buffers.set(1.0)
            try:
                return mean_loss(
                    self.objective.loss, self.schema.plate, self.num_rows, self.options.batch_size, self.device,
                    self._processes, self.seed,
                )  # fmt: skip
            except BREAKDOWNS:
                return math.nan

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as copies: tensors and plain numbers."""
        return copy.deepcopy(
            {
                **self._descent.state(),
                **self._numbers(),
                "before_update": {name: tensor.cpu() for name, tensor in self._before_update.items()},
                "rng": list(self._rng),
                "seed": self.seed,
                "losses": self.losses,
                "updated_after": self._updated_after,
                "converged": self.converged,
                "failure": self.failure,
            }
        )

    def _numbers(self) -> dict[str, Any]:
        """All numbers of model and guide."""
        other = {name: tensor.detach().cpu() for name, tensor in self._other_numbers().items()}
        return {"parameters": self._descent.values(), "numbers": other}

    def take_over(self, numbers: Mapping[str, Any]) -> None:
        """Have the numbers of another process."""
        fill("parameters", self._descent.parameters, numbers)
        fill("numbers", self._other_numbers(), numbers)

    def _other_numbers(self) -> dict[str, Tensor]:
        """Buffers of model and guide, and parameters that are not fitted."""
        fitted = {id(parameter) for parameter in self._descent.parameters.values()}
        owner = self._numbers_owner()
        fixed = {name: p for name, p in owner.named_parameters() if id(p) not in fitted}
        return {**fixed, **dict(owner.named_buffers())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state.

        Raises
        ------
        SchemaError
            If the state has other parameters.
        """
        state = copy.deepcopy(dict(state))  # the optimiser goes on working on the tensors that it is given
        self._descent.restore(state)
        fill("numbers", self._other_numbers(), state)
        self._before_update = {name: tensor.to(self.device) for name, tensor in state["before_update"].items()}
        self._rng, self.seed = tuple(state["rng"]), int(state["seed"])
        self._epochs = self._new_epochs()
        self.losses, self._updated_after = list(map(float, state["losses"])), int(state["updated_after"])
        self.converged, self.failure = bool(state["converged"]), str(state["failure"])
