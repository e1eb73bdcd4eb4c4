"""Environment VAE, ready-made: the plan that fits it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
import xarray as xr

from ..guides.environment_vae import EnvironmentVAEGuide
from ..guides.linear_environment_vae import LinearEnvironmentVAEGuide
from ..guides.parts.cell_encoders import CellEncoder
from ..guides.parts.penalties import Penalty
from ..inference import em, register, svi
from ..inference.schedules import Schedule
from ..models.environment_vae import EnvironmentVAE
from ..models.parts.errors import DataError, SchemaError
from ..models.vae_family import TRANSLATION
from ._environment_vae_data import prepared
from ._environment_vae_fit import EnvironmentVAEFit, settle
from ._environment_vae_plan import (
    Choice,
    Sees,
    default_encoder,
    is_linear_gaussian,
    warn_if_undetermined,
    warn_if_unscaled,
    warn_of_empty_environments,
)

Routine = Literal["auto", "em", "svi"]


def fit_environment_vae(
    model: EnvironmentVAE,
    data: xr.Dataset,
    *,
    routine: Routine = "auto",
    num_steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    encoder: CellEncoder | None = None,
    sees: Sees = "auto",
    parameterisation: Literal["auto", "direct", "residual"] = "auto",
    penalties: Sequence[Penalty] = (),
    schedules: Mapping[str, Schedule] | None = None,
    relaxed_masks: bool = False,
    num_restarts: int = 1,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 500,
    distributed: bool = False,
) -> EnvironmentVAEFit:
    """Fit an Environment VAE by the plan that was measured best.

    A linear decoder with one Gaussian noise and sparse shifts is fitted by EM with the latents integrated out. Anything
    else is trained by SVI:

    1. with free means of the environments, the first 30 % of the steps;
    2. then the latents are rotated such that the shifts are sparse (and once or twice again later), and
    3. the shifts get their prior, with closed forms on all cells about once an epoch.

    Models of the papers (`basic_vae` and the others) are trained as published, without rotation.

    Parameters
    ----------
    model
        From `EnvironmentVAE.for_data`; copied, not changed.
    data
        Dataset with ``expression`` (counts for a count likelihood), ``environment``, and ``descriptors`` where the
        model uses them. ``library`` is the sum of counts unless given.
    routine
        ``"em"`` or ``"svi"``; ``"auto"`` takes EM where it is exact.
    num_steps
        Steps of SVI (default: 60 epochs, at least 2000 steps, for counts, 3000 with effects on genes; 3000 for real
        values, 120 epochs and at least 500 steps where shifts are a network of descriptors) or sweeps of EM (400).
    batch_size
        Cells in a step; 256 for counts, else 128, or 64 where shifts are a network of descriptors.
    learning_rate
        Of Adam, before its schedule; 3e-3 for counts, else 5e-3, or 1e-3 where shifts are a network of descriptors.
    encoder
        Encoder of cells; by default a network of two layers of 128 for counts, of one layer of 32 (128 above 100 genes)
        for real values.
    sees
        What the encoder is given: expression (``"x"``), descriptors or an indicator of the environment too (``"x_u"``),
        or these through FiLM (``"film"``). By default expression alone, but for published models that see more.
    parameterisation
        See `EnvironmentVAEGuide`; residual for the Translation VAE.
    penalties
        Terms added to the loss, see `embergraph.guides.parts.penalties`.
    schedules
        Beside those of the plan, or in their place: ``{"guide.penalties.0.weight": Linear(0, 10)}``, see `svi`.
    relaxed_masks
        Masks of sVAE+ by straight-through draws, as published, in place of their exact expectation.
    num_restarts
        Runs of SVI from different weights; the best ELBO is kept.
    seed, device, progress, checkpoint, checkpoint_every, distributed
        As for `svi`; with `distributed` it is always SVI.

    Returns
    -------
    EnvironmentVAEFit
        After Ctrl-C: as trained so far, with ``fit.settings["interrupted"]``.

    Raises
    ------
    DataError
        If the data are no counts for a count likelihood, or an option is unknown.
    SchemaError
        If data and model do not belong together.
    NumericalError
        If the loss of every restart left the finite numbers.

    Warns
    -----
    UserWarning
        If fewer than 20 % of the restarts of the last rotation agree (EM: if the best axes have less than 20 % of the
        weight of all that were found): the environments do not determine the latents.
    """
    if routine not in get_args(Routine):
        raise DataError(f"routine: found {routine!r}; wanted one of {get_args(Routine)}")
    common = {
        "seed": seed, "device": device, "progress": progress, "checkpoint": checkpoint,
        "checkpoint_every": checkpoint_every,
    }  # fmt: skip
    exact = is_linear_gaussian(model)
    if routine == "em" and not exact:
        raise SchemaError(
            "routine: found a model without exact EM; wanted a linear decoder, GaussianLikelihood(scale='shared'), "
            "SingleEffects, no causal map and no gene effects"
        )
    trained = {
        "batch_size": batch_size is not None,
        "learning_rate": learning_rate is not None,
        "encoder": encoder is not None,
        "sees": sees != "auto",
        "parameterisation": parameterisation != "auto",
        "penalties": bool(penalties),
        "schedules": bool(schedules),
        "relaxed_masks": relaxed_masks,
        "num_restarts": num_restarts != 1,
        "distributed": distributed,
    }
    asked = [name for name, given in trained.items() if given]
    if routine == "em" and asked:
        raise DataError(f"{asked[0]}: found it with routine='em', which trains nothing; wanted routine='svi'")
    if routine == "em" or (routine == "auto" and exact and not asked):
        fit = _by_em(model, data, num_steps, **common)
    else:
        dataset = prepared(model, data)
        if not model.likelihood.counts:
            warn_if_unscaled(dataset)
        choice = Choice.of(model, dataset, num_steps, batch_size, learning_rate)
        if encoder is None:
            encoder = default_encoder(model, dataset, sees, seed)
        if parameterisation == "auto":
            parameterisation = "residual" if model.name == TRANSLATION else "direct"
        options = {
            "parameterisation": parameterisation, "penalties": penalties, "relaxed_masks": relaxed_masks,
            "stages": choice.stages,
        }  # fmt: skip
        common["distributed"] = distributed
        choice = replace(choice, schedules={**choice.schedules, **(schedules or {})})
        fit = _by_svi(model, dataset, choice, encoder, options, num_restarts, **common)
    warn_of_empty_environments(model, data)
    warn_if_undetermined(fit)
    return fit


def _by_svi(
    model: EnvironmentVAE,
    data: xr.Dataset,
    choice: Choice,
    encoder: CellEncoder,
    options: Mapping[str, Any],
    num_restarts: int,
    **common: Any,
) -> EnvironmentVAEFit:
    def restarted(model: EnvironmentVAE) -> EnvironmentVAEGuide:
        """Other weights for every restart."""
        guide = EnvironmentVAEGuide.for_model(model, copy.deepcopy(encoder), **copy.deepcopy(dict(options)))
        for module in (*model.modules(), *guide.modules()):
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        return guide.to(device=next(model.parameters()).device)

    guide = restarted if num_restarts > 1 else EnvironmentVAEGuide.for_model(model, encoder, **options)
    fitted = svi(
        model, guide, data, num_steps=choice.num_steps, batch_size=choice.batch_size,
        learning_rate=choice.learning_rate, clip_norm=100.0 * data.sizes["cell"], schedules=choice.schedules,
        update_every=choice.update_every, num_restarts=num_restarts, fit_class=EnvironmentVAEFit, **common,
    )  # fmt: skip
    fit = cast("EnvironmentVAEFit", fitted)
    if choice.update_every is not None:  # the last steps, and Ctrl-C in the first stage, leave it behind the encoder
        settle(fit, data)
    return fit


def _by_em(model: EnvironmentVAE, data: xr.Dataset, num_steps: int | None, **common: Any) -> EnvironmentVAEFit:
    fitted = em(
        model, LinearEnvironmentVAEGuide.for_model(model), prepared(model, data, dtype="float64"),
        num_steps=400 if num_steps is None else num_steps, fit_class=EnvironmentVAEFit, **common,
    )  # fmt: skip
    return cast("EnvironmentVAEFit", fitted)


register(EnvironmentVAE)
register(EnvironmentVAEGuide)
register(LinearEnvironmentVAEGuide)
