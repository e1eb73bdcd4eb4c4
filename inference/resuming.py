"""Fits that go on from where they stopped; `Fit.resume` is made of these."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm.auto import tqdm

from ..models.parts.errors import NumericalError, SchemaError
from . import query
from .ascent import Ascent, AscentOptions
from .inputs import DataLike, to_inputs
from .options import Options, check_counts
from .run import Run

if TYPE_CHECKING:
    from .fit import Fit

AnyFit = TypeVar("AnyFit", bound="Fit")


def resume(fit: AnyFit, data: DataLike, num_steps: int, *, progress: bool, options: Options | None) -> AnyFit:
    """Go on with the routine of `fit`; see `Fit.resume`."""
    check_counts(num_steps=num_steps)
    known: dict[str, Any] = dict(fit.settings)
    interrupted, failure = False, None
    run = _ascent(fit, data, options) if fit.settings.get("routine") == "em" else _run(fit, data, options)
    with tqdm(total=num_steps, desc=str(fit.settings.get("routine", "")).upper(), disable=not progress) as bar:
        try:
            if isinstance(run, Ascent):
                run.advance(num_steps, bar.update)
            else:
                run.advance(num_steps, len(run.losses) + num_steps, bar.update)
        except KeyboardInterrupt:
            interrupted = True
        except NumericalError as error:
            failure = error
    if isinstance(run, Ascent):
        known |= run.watched()
    else:
        run.evaluate()
    resumed = type(fit).from_run(run, [run], fit.template, {**known, "interrupted": interrupted})
    place = int(fit.settings.get("chosen_restart", 0))  # the other restarts' histories stay
    resumed._history = [*fit._history[:place], run.losses, *fit._history[place + 1 :]]
    finals = [*fit.settings.get("final_losses", [math.nan])]
    finals[place] = run.final_loss
    resumed.settings["final_losses"] = finals
    if failure is not None:
        failure.fit = resumed
        raise failure
    return resumed


def _run(fit: Fit, data: DataLike, options: Options | None) -> Run:
    if fit.guide is None or "optimizer" not in fit.training:
        raise SchemaError("resume: found a fit without an optimiser's state; wanted one made by svi or em")
    chosen = options or fit.training.get("options") or Options.from_settings(fit.settings)
    if chosen is None:
        raise SchemaError("resume: a file does not hold optimizer, loss and schedules; wanted options=Options(...)")
    inputs = to_inputs(fit.schema, query.checked(fit, data), device=fit.device)
    run = Run(fit.model, fit.guide, fit.schema, inputs, chosen, fit.settings.get("seed", 0), fit.store)
    run.restore(fit.training)
    run.converged = False
    return run


def _ascent(fit: Fit, data: DataLike, options: Options | None) -> Ascent:
    if fit.guide is None or "acceleration" not in fit.training:
        raise SchemaError("resume: found a fit without the state of its routine; wanted one made by svi or em")
    if options is not None:
        raise SchemaError("options: found options of svi for a fit made by em; wanted none, its own are known")
    inputs = to_inputs(fit.schema, query.checked(fit, data), device=fit.device)
    chosen = AscentOptions.from_settings(fit.settings)
    run = Ascent(fit.model, fit.guide, fit.schema, inputs, chosen, fit.settings["seed"], fit.store)
    run.restore(fit.training)
    return run
