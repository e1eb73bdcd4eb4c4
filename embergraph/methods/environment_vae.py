"""Environment VAE, ready-made: the plan that fits it."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
import xarray as xr

from ..guides.environment_vae import EnvironmentVAEGuide, Stages
from ..guides.linear_environment_vae import LinearEnvironmentVAEGuide
from ..guides.parts.cell_encoders import CellEncoder
from ..guides.parts.penalties import Penalty
from ..inference import Geometric, Linear, WarmCosine, em, register, svi
from ..inference.inputs import to_inputs
from ..inference.messengers import isolated
from ..inference.options import check_counts
from ..models.environment_vae import EnvironmentVAE
from ..models.parts.decoders import LinearDecoder
from ..models.parts.environment_priors import DescriptorShifts, GatedShifts, SingleEffects, SpikeSlabShifts
from ..models.parts.errors import DataError, SchemaError
from ..models.parts.likelihoods import GaussianLikelihood
from ..models.vae_family import CONDITIONAL, GATED, TRANSLATION
from ._environment_vae_data import prepared
from ._environment_vae_fit import EnvironmentVAEFit

Routine = Literal["auto", "em", "svi"]
Sees = Literal["auto", "x", "x_u", "film"]
FEW_GENES = 100
UNDETERMINED = 0.2
SEES_ENVIRONMENT = (GATED, TRANSLATION, CONDITIONAL)


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
    relaxed_masks: bool = False,
    num_restarts: int = 1,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
    checkpoint: str | Path | None = None,
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
    relaxed_masks
        Masks of sVAE+ by straight-through draws, as published, in place of their exact expectation.
    num_restarts
        Runs of SVI from different weights; the best ELBO is kept.
    seed, device, progress, checkpoint
        As for `svi`.

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
    exact = is_linear_gaussian(model)
    if routine == "em" and not exact:
        raise SchemaError(
            "routine: found a model without exact EM; wanted a linear decoder, GaussianLikelihood(scale='shared'), "
            "SingleEffects, no causal map and no gene effects"
        )
    asked = encoder is not None or penalties or sees != "auto" or parameterisation != "auto" or batch_size is not None
    if routine == "em" or (routine == "auto" and exact and not asked):
        fit = _by_em(model, data, num_steps, seed, device, progress, checkpoint)
    else:
        dataset = prepared(model, data)
        choice = Choice.of(model, dataset, num_steps, batch_size, learning_rate)
        if encoder is None:
            encoder = default_encoder(model, dataset, sees, seed)
        if parameterisation == "auto":
            parameterisation = "residual" if model.name == TRANSLATION else "direct"
        options = {
            "parameterisation": parameterisation, "penalties": penalties, "relaxed_masks": relaxed_masks,
            "stages": choice.stages,
        }  # fmt: skip
        fit = _by_svi(model, dataset, choice, encoder, options, num_restarts, seed, device, progress, checkpoint)
    _warn_if_undetermined(fit)
    return fit


def is_linear_gaussian(model: EnvironmentVAE) -> bool:
    """Whether the latents can be integrated out."""
    plain = model.causal_map is None and model.gene_effects is None and not model.decoder.uses_descriptors
    likelihood = model.likelihood
    shared = isinstance(likelihood, GaussianLikelihood) and likelihood.shared
    linear = isinstance(model.decoder, LinearDecoder) and model.num_latents < model.num_genes
    return plain and shared and linear and isinstance(model.environment_prior, SingleEffects)


@dataclass(frozen=True)
class Choice:
    """How long and how fast SVI trains, and when the closed forms of the guide are due."""

    num_steps: int
    batch_size: int
    learning_rate: float
    schedules: Mapping[str, Any]
    update_every: int | None
    stages: Stages

    @classmethod
    def of(
        cls, model: EnvironmentVAE, data: xr.Dataset, num_steps: int | None, batch_size: int | None, rate: float | None
    ) -> Choice:
        """Defaults for model and data."""
        counts, num_cells = model.likelihood.counts, data.sizes["cell"]
        networks = not counts and _is_dense_by_descriptors(model)
        size, usual = (256, 3e-3) if counts else (64, 1e-3) if networks else (128, 5e-3)
        batch_size = size if batch_size is None else batch_size
        check_counts(batch_size=batch_size)
        batch_size = min(batch_size, num_cells)
        epoch = math.ceil(num_cells / batch_size)
        if num_steps is None and counts:
            num_steps = max(2000 if model.gene_effects is None else 3000, 60 * epoch)
        elif num_steps is None:
            num_steps = max(500, 120 * epoch) if networks else 3000
        check_counts(num_steps=num_steps)
        every = max(20, epoch) if counts else max(50, epoch // 2)
        every = min(every, max(1, num_steps // 20))
        sparse = isinstance(model.environment_prior, SingleEffects | SpikeSlabShifts)
        closed = sparse or model.gene_effects is not None or _is_sparse_by_descriptors(model)
        rotates = sparse and model.causal_map is None
        shares = (0.3, 0.4, 0.5) if counts else (0.3, 0.6)
        stages = Stages(
            start=min(2 * epoch, num_steps // 10) if counts else min(200, num_steps // 10),
            free_until=round(0.3 * num_steps) if rotates else 0,
            rotate_at=tuple(round(share * num_steps) for share in shares) if rotates else (),
            effects_from=round(num_steps * 20 / 150),
        )
        schedules: dict[str, Any] = {
            "learning_rate": WarmCosine(warm=min(0.1, 50 / num_steps), hold=0.5, end=0.05)
            if counts
            else WarmCosine(warm=0.0, hold=0.0 if networks else 0.4, end=0.02)
        }
        if counts:
            schedules["guide.kl_weight"] = Linear(0.0, 1.0, until=1 / 6)
        if isinstance(model.environment_prior, GatedShifts):
            schedules["environment_prior.temperature"] = Geometric(1.0, 0.05)
        return cls(num_steps, batch_size, usual if rate is None else rate, schedules, every if closed else None, stages)


def _is_sparse_by_descriptors(model: EnvironmentVAE) -> bool:
    return isinstance(model.environment_prior, DescriptorShifts) and model.environment_prior.has_targets


def _is_dense_by_descriptors(model: EnvironmentVAE) -> bool:
    return isinstance(model.environment_prior, DescriptorShifts) and not model.environment_prior.has_targets


def default_encoder(model: EnvironmentVAE, data: xr.Dataset, sees: Sees, seed: int) -> CellEncoder:
    """Encoder for the likelihood and the size of the data, standardised on these data."""
    kind = ("x_u" if model.name in SEES_ENVIRONMENT else "x") if sees == "auto" else sees
    if kind == "x":
        features = 0
    elif model.uses_descriptors:
        features = data.sizes["feature"]
    else:
        features = model.num_environments
    counts = model.likelihood.counts
    hidden = (128, 128) if counts else (32,) if model.num_genes <= FEW_GENES else (128,)
    if model.gene_effects is not None:
        hidden = (64,)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = CellEncoder(
            model.num_genes, model.num_latents, hidden, transform="log1p_library" if counts else "identity", sees=kind,
            num_features=features,
        )  # fmt: skip
    library = torch.as_tensor(data["library"].values) if counts else None
    encoder.fit_transform_(torch.as_tensor(data["expression"].values), library)
    return encoder


def _by_svi(
    model: EnvironmentVAE,
    data: xr.Dataset,
    choice: Choice,
    encoder: CellEncoder,
    options: Mapping[str, Any],
    num_restarts: int,
    seed: int,
    device: torch.device | str | None,
    progress: bool,
    checkpoint: str | Path | None,
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
        update_every=choice.update_every, num_restarts=num_restarts, seed=seed, device=device, progress=progress,
        checkpoint=checkpoint, fit_class=EnvironmentVAEFit,
    )  # fmt: skip
    fit = cast("EnvironmentVAEFit", fitted)
    if choice.update_every is not None:  # the last steps, and Ctrl-C in the first stage, leave it behind the encoder
        settle(fit, data, device)
    return fit


def settle(fit: EnvironmentVAEFit, data: xr.Dataset, device: torch.device | str | None) -> None:
    """Give the environments the posterior of their prior, whatever stage training ended in."""
    inputs = to_inputs(fit.model.schema, data, device=device)
    with isolated(0, fit.store), torch.no_grad():
        statistics = cast("EnvironmentVAEGuide", fit.guide).statistics(fit.model, inputs)
        fit.guide.environment.update(fit.model.environment_prior, statistics, inputs.get("descriptors"))


def _by_em(
    model: EnvironmentVAE,
    data: xr.Dataset,
    num_steps: int | None,
    seed: int,
    device: torch.device | str | None,
    progress: bool,
    checkpoint: str | Path | None,
) -> EnvironmentVAEFit:
    fitted = em(
        model, LinearEnvironmentVAEGuide.for_model(model), prepared(model, data, dtype="float64"),
        num_steps=400 if num_steps is None else num_steps, seed=seed, device=device, progress=progress,
        checkpoint=checkpoint, fit_class=EnvironmentVAEFit,
    )  # fmt: skip
    return cast("EnvironmentVAEFit", fitted)


def _warn_if_undetermined(fit: EnvironmentVAEFit) -> None:
    agreement = float(fit.guide.rotation_agreement)
    if agreement < UNDETERMINED:
        warnings.warn(
            f"latent axes not determined by the environments: agreement {agreement:.2f} among the rotations tried; "
            "wanted 0.2 or more. About three environments a latent, with few targets each, are needed.",
            stacklevel=3,
        )


register(EnvironmentVAE)
register(EnvironmentVAEGuide)
register(LinearEnvironmentVAEGuide)
