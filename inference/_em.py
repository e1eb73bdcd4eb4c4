"""Expectation maximisation of any Pyro model: coordinate ascent by the closed forms of its guide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..models.parts.errors import NumericalError
from .ascent import Ascent, AscentOptions
from .checkpoint import Checkpoint
from .export import name_of
from .fingerprints import fingerprint
from .fit import Fit
from .inputs import DataLike, Template, as_dataset, to_inputs
from .options import check_counts
from .plain import schema_of


def em(
    model: Callable[..., Any],
    guide: torch.nn.Module | Callable[..., Any] | type,
    data: DataLike,
    *,
    num_steps: int = 200,
    tolerance: float | None = 1e-6,
    window: int = 3,
    accelerate: str | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 10,
    latent: Iterable[str] = (),
    dims: Mapping[str, tuple[str, ...]] | None = None,
    fit_class: type[Fit] = Fit,
) -> Fit:
    """Fit a guide to the posterior of a model by coordinate ascent on its bound.

    The guide is a ``torch.nn.Module``, a Pyro guide of the model, with these methods:

    ``update(model, inputs, step) -> float``
        One sweep of updates over blocks of the guide's numbers (M-steps are updates of its point masses); returns the
        bound AFTER the sweep, higher is better. `inputs` is a dict of the model's arguments by name, `step` the number
        of sweeps before.
        It runs without gradients (``torch.enable_grad()`` inside brings them back). Whatever the next sweep depends on
        is a parameter or buffer of the guide, of a shape that stays the same; the model is not changed.
    ``change() -> float``, if wanted
        Largest relative change of the guide's numbers in the last sweep.
    ``free_parameters() -> Tensor`` and ``set_free_parameters(vector)``, for acceleration
        The numbers that the next sweep follows from, as a vector in which every value is allowed; `update` is then a
        deterministic function of them, but for starting values of inner iterations.
    ``monotone = True``, where it is a theorem that a sweep never lowers the bound.

    Numbers whose shapes come from the data may be made at construction or when the guide is first called, which
    happens before the first sweep.

    Parameters
    ----------
    model
        Pyro callable. Modules are copied (to the data's precision), never changed.
    guide
        The guide, or a class or a function of one argument named ``model`` that makes one; copied like the model.
    data
        Dataset with the model's inputs, or a mapping of their names to ``(dims, values)`` or arrays.
    num_steps
        Sweeps, at the most.
    tolerance, window
        Stop when the bound moved by no more than `tolerance` nats a data value in the last `window` sweeps, and the
        guide's ``change``, if it has one, is at most the root of `tolerance` (a bound is flat at its top: it moves by
        the square of what the numbers move). Neither depends on the units or the amount of the data. None: make all
        sweeps.
    accelerate
        ``"squarem"`` extrapolates the free parameters after every two sweeps and sweeps from there. What comes out is
        kept if its bound is not lower than before, and else undone; that sweep then counts without a change.
    seed
        Seed of everything random; the caller's random state is left alone.
    device
        Device to run on.
    progress
        Whether to show a bar.
    checkpoint, checkpoint_every
        File that the run's state is written to, and after how many sweeps. If it exists the run goes on from it and
        ends where an uninterrupted one would have ended. A run that has ended removes it; after Ctrl-C it stays.
    latent, dims
        For plain callables: arguments left to their defaults, and names of event dims of sites.
    fit_class
        Class of the result.

    Returns
    -------
    Fit
        With the loss, the negative bound, after each sweep. ``fit.settings`` has ``converged``, ``bound_falls`` (sweeps
        that lowered the bound by more than rounding; of a guide that is ``monotone`` each is a mistake in its update)
        and ``largest_fall`` in nats. After Ctrl-C: the guide after its last complete sweep, marked ``interrupted``.

    Raises
    ------
    SchemaError
        If data, model and guide do not belong together, or the guide lacks a method.
    DataError
        If an option is out of range.
    LoadError
        If the checkpoint is of another run, or no checkpoint.
    NumericalError
        If the bound or a number of the guide is not finite; names step and number, and carries the guide of the step
        before as ``error.fit``.

    References
    ----------
    Neal and Hinton (1998), A view of the EM algorithm that justifies incremental, sparse, and other variants.
    """
    check_counts(num_steps=num_steps, window=window, checkpoint_every=checkpoint_every, seed=seed)
    options = AscentOptions(tolerance, window, accelerate)
    schema = schema_of(model, as_dataset(data), latent=latent, dims=dims)
    dataset = as_dataset(data, schema)
    inputs = to_inputs(schema, dataset, device=device)
    settings = {"routine": "em", "num_steps": num_steps, "seed": seed, **options.settings()}
    identity = {"model": name_of(model), "guide": name_of(guide), "data": fingerprint(inputs) if checkpoint else ""}
    saved = Checkpoint(checkpoint, settings | identity, checkpoint_every)
    run, interrupted = Ascent(model, guide, schema, inputs, options, seed), False
    _continue(saved, run)

    def fitted() -> Fit:
        known = {**settings, **run.watched(), "interrupted": interrupted}
        return fit_class.from_run(run, [run], Template.of(schema, dataset), known)

    try:
        _drive(run, num_steps, saved, progress)
    except KeyboardInterrupt:
        interrupted = True
        if not run.losses:
            raise
    except NumericalError as error:
        error.fit = fitted()
        raise
    if not interrupted:
        saved.remove()
    return fitted()


def _continue(saved: Checkpoint, run: Ascent) -> None:
    state = saved.read()
    if state is None:
        return
    saved.restored(lambda: run.restore(state["run"], state["numbers"]))


def _drive(run: Ascent, num_steps: int, saved: Checkpoint, progress: bool) -> None:
    if run.converged:
        return
    with tqdm(total=num_steps, initial=len(run.losses), desc="EM", disable=not progress) as bar:

        def after_step() -> None:
            bar.set_postfix_str(f"bound {-run.losses[-1]:.8g}", refresh=False)
            bar.update()
            if saved.due(len(run.losses)):
                saved.write({"run": run.state(), "numbers": run.numbers()})

        run.advance(num_steps - len(run.losses), after_step)
