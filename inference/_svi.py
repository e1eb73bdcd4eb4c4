"""Stochastic variational inference of any Pyro model and guide."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from tqdm.auto import tqdm

from ..models.parts.errors import NumericalError
from .checkpoint import Checkpoint
from .distributed import Processes
from .export import name_of
from .fingerprints import fingerprint
from .fit import Fit
from .inputs import DataLike, Template, as_dataset, to_inputs
from .options import Options, check_counts
from .plain import schema_of
from .run import Run
from .schedules import Schedule


def svi(
    model: Callable[..., Any],
    guide: Callable[..., Any] | type,
    data: DataLike,
    *,
    num_steps: int = 2000,
    batch_size: int | None = None,
    learning_rate: float | Mapping[str, float] = 0.01,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    loss: Any = None,
    clip_norm: float | None = None,
    schedules: Mapping[str, Schedule] | None = None,
    tolerance: float | None = None,
    window: int = 100,
    update_every: int | None = None,
    num_restarts: int = 1,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 500,
    distributed: bool = False,
    latent: Iterable[str] = (),
    dims: Mapping[str, tuple[str, ...]] | None = None,
    fit_class: type[Fit] = Fit,
) -> Fit:
    """Fit a guide to the posterior of a model by maximising the ELBO.

    Parameters
    ----------
    model
        Pyro callable. Modules are copied (to the data's precision), never changed.
    guide
        Pyro callable with the model's arguments, or, so that restarts differ, a class or a function of one argument
        named ``model`` that makes one: ``AutoNormal``, ``lambda model: AutoNormal(model, init_loc_fn=init_to_sample)``.
        A guide with a method ``objective(model, inputs)`` (a differentiable loss) is trained on that; it finds the rows
        of a minibatch by ``pyro.plate``, as a model does. A guide may also have an ``update``, see `update_every`.
    data
        Dataset with the model's inputs, or a mapping of their names to ``(dims, values)`` or arrays.
    num_steps
        Steps of each restart, at the most.
    batch_size
        Rows of the plate in a step; the model's plate scales the likelihood. None: all rows. Every epoch goes through
        the rows in a new order, in batches of one size; the few rows left at its end sit it out. The objective on all
        of the data is then computed in parts of four batches, so that memory does not grow with the number of rows.
    learning_rate
        One rate, or rates by pattern of the parameter's name (``{"*scale*": 0.02, "*": 0.005}``, first match counts).
    optimizer
        Torch optimiser class or a partial of one. Adam and AdamW run as one kernel (``fused=True``) unless the partial
        says otherwise.
    loss
        Pyro ELBO object; by default ``Trace_ELBO``, or ``TraceEnum_ELBO`` if the model enumerates a site.
    clip_norm
        Largest norm of the gradient of all parameters together.
    schedules
        Values over the share of steps done: buffers of the model by dotted name (the acyclicity weight is one), buffers
        of the guide by names that start with ``guide.`` (``"guide.kl_weight"``), or ``"learning_rate"``, a factor of
        every rate. The objective on all of the data is that of the schedules' ends.
    tolerance, window
        Stop when the mean loss of a window of steps improves on that of the window before by less than
        `tolerance` times its size. None: run all steps.
    update_every
        After every so many steps call ``guide.update(model, inputs, step)``, for closed forms and other moves that no
        gradient makes: `inputs` are the model's arguments by name, with all rows, and `step` is the number of steps
        done. It runs without gradients, its result is not looked at. It may change buffers of the guide, and, in place,
        parameters of guide and model, which then start afresh in the optimiser; what it needs to remember is a buffer.
        Shapes stay as they are. It takes place as a whole or, if it breaks down or Ctrl-C is pressed, not at all.
        None: no updates.
    num_restarts
        Runs from different seeds; the one with the best objective on all of the data is kept, with every history.
    seed
        Seed of everything random; the caller's random state is left alone.
    device
        Device to run on.
    progress
        Whether to show a bar.
    checkpoint, checkpoint_every
        File that the run's state is written to, and how often. If it exists the run goes on from it and ends where an
        uninterrupted one would have ended. A run that has ended removes it; after Ctrl-C it stays.
    distributed
        Whether all processes of the default group of ``torch.distributed`` call this together, with the same arguments
        and data. Each takes its share of the rows of a step, loss and gradients are averaged, and all return the same
        fit. `batch_size` is that of all together, a multiple of the number of processes. Random draws follow from seed,
        step and process, updates are made by process 0, which also writes the checkpoint and shows the bar. A
        checkpoint can go on with any number of processes, or with one alone.
    latent, dims
        For plain callables: arguments left to their defaults, and names of event dims of sites.
    fit_class
        Class of the result.

    Returns
    -------
    Fit
        The best restart. After Ctrl-C: what was fitted so far, with ``fit.settings["interrupted"]``.

    Raises
    ------
    SchemaError
        If data and model do not belong together, minibatches are not possible, or updates are wanted of a guide that
        has none.
    DataError
        If an option is out of range.
    LoadError
        If the checkpoint is of another run, or no checkpoint.
    NumericalError
        If loss, gradient or an update of every restart left the finite numbers; names step and site, and carries the
        last good state, at which a loss was finite, as ``error.fit``.
    """
    check_counts(
        num_steps=num_steps, num_restarts=num_restarts, window=window, checkpoint_every=checkpoint_every, seed=seed
    )
    if update_every is not None:
        check_counts(update_every=update_every)
    schema = schema_of(model, as_dataset(data), latent=latent, dims=dims)
    dataset = as_dataset(data, schema)
    inputs = to_inputs(schema, dataset, device=device)
    template = Template.of(schema, dataset)
    rates = dict(learning_rate) if isinstance(learning_rate, Mapping) else learning_rate
    options = Options(
        rates, optimizer, loss, batch_size, clip_norm, dict(schedules or {}), tolerance, window, update_every
    )
    settings = {
        "routine": "svi", "num_steps": num_steps, "num_restarts": num_restarts, "seed": seed, **options.settings(),
    }  # fmt: skip
    hashed = fingerprint(inputs) if checkpoint or distributed else ""
    identity = {"model": name_of(model), "guide": name_of(guide), "data": hashed}
    saved = Checkpoint(checkpoint, settings | identity, checkpoint_every)
    seeds = [int(np.random.SeedSequence([seed, r]).generate_state(1)[0]) for r in range(num_restarts)]

    with Processes.of(distributed, device) as processes:
        processes.check_same(settings=saved.settings)

        def start(restart: int) -> Run:
            run = processes.everywhere(
                lambda: Run(model, guide, schema, inputs, options, seeds[restart], processes=processes)
            )
            if processes.together:
                run.restore(processes.first(run.state))  # objects made with other random numbers start alike
            return run

        runs, interrupted = _continue(saved, start, processes), False
        try:
            for restart in range(num_restarts):
                if restart == len(runs):
                    runs.append(start(restart))
                with suppress(NumericalError):  # the run knows its failure
                    _drive(runs, restart, num_steps, saved, progress, num_restarts, processes)
        except KeyboardInterrupt:
            interrupted = True
        finals = [run.evaluate() for run in runs if run.losses and not run.failure]
        if interrupted and not finals:
            raise KeyboardInterrupt
        usable = [run for run in runs if math.isfinite(run.final_loss)]
        if not usable:
            _give_up(runs, fit_class, template, settings)
        best = min(usable, key=lambda run: run.final_loss)
        settings |= {"interrupted": interrupted, "chosen_restart": runs.index(best)}
        if not interrupted:
            processes.first(saved.remove)
    return fit_class.from_run(best, runs, template, settings)


def _continue(saved: Checkpoint, start: Callable[[int], Run], processes: Processes) -> list[Run]:
    state = processes.first(saved.read)
    runs: list[Run] = []
    if state is not None:
        for run_state in saved.restored(lambda: list(state["runs"])):
            runs.append(start(len(runs)))
            saved.restored(lambda: runs[-1].restore(run_state))  # noqa: B023
    return runs


def _drive(
    runs: list[Run],
    restart: int,
    num_steps: int,
    saved: Checkpoint,
    progress: bool,
    num_restarts: int,
    processes: Processes,
) -> None:
    run = runs[restart]
    if run.failure or run.converged:
        return
    label = "SVI" if num_restarts == 1 else f"SVI {restart + 1}/{num_restarts}"
    shown = progress and processes.rank == 0
    with tqdm(total=num_steps, initial=len(run.losses), desc=label, disable=not shown) as bar:

        def after_step() -> None:
            bar.update()
            if len(run.losses) % 50 == 0:
                bar.set_postfix_str(f"loss {run.losses[-1]:.5g}", refresh=False)
            if saved.due(len(run.losses)):
                processes.first(lambda: saved.write({"runs": [r.state() for r in runs]}))

        run.advance(num_steps - len(run.losses), num_steps, after_step)


def _give_up(runs: list[Run], fit_class: type[Fit], template: Template, settings: Mapping[str, Any]) -> NoReturn:
    run = min(runs, key=lambda run: run.losses[-1] if run.losses else math.inf)
    failure = run.failure or f"step {len(run.losses)}: the loss on all of the data is not finite"
    error = NumericalError(failure)
    error.fit = fit_class.from_run(run, runs, template, {**settings, "chosen_restart": runs.index(run)})
    raise error
