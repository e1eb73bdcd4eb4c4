"""Choices of the plan of the Environment VAE: how long, how fast, with which encoder; and what users are warned of."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import xarray as xr

from ..guides.parts.cell_encoders import CellEncoder
from ..guides.parts.stages import Stages
from ..inference import Geometric, Linear, WarmCosine
from ..inference.options import check_counts
from ..models.environment_vae import EnvironmentVAE
from ..models.parts.decoders import LinearDecoder
from ..models.parts.environment_priors import DescriptorShifts, GatedShifts, SingleEffects, SpikeSlabShifts
from ..models.parts.likelihoods import GaussianLikelihood
from ..models.vae_family import CONDITIONAL, GATED, TRANSLATION
from ..validation import listed

if TYPE_CHECKING:
    from ._environment_vae_fit import EnvironmentVAEFit

Sees = Literal["auto", "x", "x_u", "film"]
FEW_GENES = 100
UNDETERMINED = 0.2
SCALES = (0.05, 20.0)  # of a gene, between which steps of the optimiser are of a sensible size
SEES_ENVIRONMENT = (GATED, TRANSLATION, CONDITIONAL)


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


def warn_of_empty_environments(model: EnvironmentVAE, data: xr.Dataset) -> None:
    if not isinstance(data, xr.Dataset) or "environment" not in data:
        return
    seen = set(data["environment"].values.tolist())
    empty = [name for code, name in enumerate(model.conditions) if code not in seen and code != model.control]
    if empty and not model.environment_prior.uses_descriptors:
        warnings.warn(
            f"environment: found no cells of {listed(empty)}; what they do is drawn from the prior. random_split with "
            "within= keeps cells of every environment",
            stacklevel=4,
        )


def warn_if_unscaled(data: xr.Dataset) -> None:
    spread = float(data["expression"].std("cell").median())
    if not SCALES[0] < spread < SCALES[1]:
        warnings.warn(
            f"expression: found a median standard deviation of {spread:.2g} among genes; wanted about 1 for a network "
            "(data, transform = standardize(data, scale='common'))",
            stacklevel=4,
        )


def warn_if_undetermined(fit: EnvironmentVAEFit) -> None:
    agreement = float(fit.guide.rotation_agreement)
    if agreement < UNDETERMINED:
        warnings.warn(
            f"latent axes not determined by the environments: agreement {agreement:.2f} among the rotations tried; "
            "wanted 0.2 or more. About three environments a latent, with few targets each, are needed.",
            stacklevel=4,
        )
