"""Parts of an Environment VAE from their names, sized for data, and from saved settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr

from .parts.causal_maps import CAUSAL_MAPS, CausalMap
from .parts.decoders import DECODERS, Decoder
from .parts.environment_priors import (
    ENVIRONMENT_PRIORS,
    DescriptorShifts,
    EnvironmentPrior,
    GatedShifts,
    MaskedShifts,
    SingleEffects,
    SpikeSlabShifts,
    StandardPrior,
)
from .parts.errors import DataError, LoadError
from .parts.gene_effects import GeneEffects
from .parts.likelihoods import LIKELIHOODS, GaussianLikelihood, Likelihood

PRIORS: dict[str, type[EnvironmentPrior]] = {
    "standard": StandardPrior,
    "single_effects": SingleEffects,
    "spike_slab": SpikeSlabShifts,
    "gated": GatedShifts,
    "masked": MaskedShifts,
    "descriptors": DescriptorShifts,
}
"""Priors of environments by the names that `EnvironmentVAE.for_data` takes."""

FAMILIES: dict[str, Mapping[str, Any]] = {
    "environment_prior": ENVIRONMENT_PRIORS,
    "decoder": DECODERS,
    "likelihood": LIKELIHOODS,
    "causal_map": CAUSAL_MAPS,
    "gene_effects": {"GeneEffects": GeneEffects},
}
"""Classes of each part that a file may name."""

BESIDE_GENE_EFFECTS = (64,)
CHUNK = 4096  # cells
RARE = 0.1  # count of a gene that was never seen, against that of the rarest


def parts_for(
    data: xr.Dataset,
    num_latents: int,
    environment_prior: str | EnvironmentPrior,
    max_targets: int | None,
    control: str | None,
    decoder: str | Decoder,
    conditional: bool,
    likelihood: str | Likelihood,
    causal_map: str | CausalMap | None,
    gene_effects: bool | GeneEffects,
    seed: int,
) -> dict[str, Any]:
    """Parts for `data`; see `EnvironmentVAE.for_data`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = _parts(
            data, num_latents, environment_prior, max_targets, control, decoder, conditional, likelihood, causal_map,
            gene_effects,
        )  # fmt: skip
    if isinstance(decoder, str):
        start_at(parts["decoder"], parts["likelihood"], data["expression"].values)
    return parts


def _parts(
    data: xr.Dataset,
    num_latents: int,
    environment_prior: str | EnvironmentPrior,
    max_targets: int | None,
    control: str | None,
    decoder: str | Decoder,
    conditional: bool,
    likelihood: str | Likelihood,
    causal_map: str | CausalMap | None,
    gene_effects: bool | GeneEffects,
) -> dict[str, Any]:
    check_data(data)
    if not isinstance(num_latents, int) or isinstance(num_latents, bool) or num_latents < 1:
        raise DataError(f"num_latents: found {num_latents!r}; wanted a whole number of at least 1")
    num_genes, row = data.sizes["gene"], control_row(data, control)
    if isinstance(likelihood, str):
        name = likelihood if likelihood != "auto" else "negative_binomial" if are_counts(data) else "gaussian"
        likelihood = named("likelihood", LIKELIHOODS, name)(num_genes)
    for role, part, family in (
        ("likelihood", likelihood, Likelihood),
        ("decoder", decoder, Decoder),
        ("environment_prior", environment_prior, EnvironmentPrior),
        ("causal_map", causal_map, CausalMap),
        ("gene_effects", gene_effects, GeneEffects),
    ):
        if not isinstance(part, str | bool | None | family):
            found = part.__name__ if isinstance(part, type) else type(part).__name__
            raise DataError(f"{role}: found {found}; wanted a name, or an instance of {family.__name__}")
    assert isinstance(likelihood, Likelihood)
    if likelihood.counts and not are_counts(data):
        raise DataError(
            "expression: found values that are no counts; wanted whole numbers from 0 for "
            f"{type(likelihood).__name__}, or likelihood='gaussian' for logarithms"
        )
    if isinstance(decoder, str):
        name = decoder if decoder != "auto" else "mlp" if likelihood.counts else "linear"
        features = num_features(data) if conditional else 0
        extra = {"hidden": BESIDE_GENE_EFFECTS} if name == "mlp" and gene_effects else {}
        decoder = named("decoder", DECODERS, name)(num_latents, num_genes, num_features=features, **extra)
    if isinstance(environment_prior, str):
        environment_prior = _prior(data, num_latents, environment_prior, max_targets, row)
    elif max_targets is not None:
        raise DataError("max_targets: found it beside a prior; wanted it with environment_prior='single_effects'")
    if isinstance(causal_map, str):
        causal_map = named("causal_map", CAUSAL_MAPS, causal_map)(num_latents)
    effects: GeneEffects | None = gene_effects if isinstance(gene_effects, GeneEffects) else None
    if gene_effects is True:
        effects = GeneEffects(data.sizes["condition"], num_genes, control=row)
    for role, part in (("environment_prior", environment_prior), ("gene_effects", effects)):
        if part is not None and part.num_environments != data.sizes["condition"]:
            wanted = data.sizes["condition"]
            raise DataError(f"{role}: found {part.num_environments} environments; wanted {wanted}, as in the data")
        if part is not None and control is not None and part.control != row:
            raise DataError(f"{role}: found control={part.control} in it; wanted {row}, the position of {control!r}")
    if effects is not None and effects.num_genes != num_genes:
        raise DataError(f"gene_effects: found {effects.num_genes} genes; wanted {num_genes}, as in the data")
    return {
        "environment_prior": environment_prior, "decoder": decoder, "likelihood": likelihood, "causal_map": causal_map,
        "gene_effects": effects,
    }  # fmt: skip


def start_at(decoder: Decoder, likelihood: Likelihood, expression: np.ndarray) -> None:
    """Start from the mean profile of the data, and a Gaussian scale from their spread about it."""
    mean = expression.mean(0, dtype=float)
    if likelihood.counts:
        share = (mean + mean[mean > 0].min(initial=1.0) * RARE) / mean.sum()
        mean = np.log(share / share.sum())
    elif isinstance(likelihood, GaussianLikelihood) and likelihood.learned:
        spread = expression.std(0, dtype=float)
        scale = np.sqrt(np.mean(spread**2)) if likelihood.shared else spread
        likelihood.set_scale_(torch.as_tensor(scale))
    with torch.no_grad():
        decoder.offset.copy_(torch.as_tensor(mean))


def _prior(data: xr.Dataset, num_latents: int, name: str, max_targets: int | None, row: int | None) -> EnvironmentPrior:
    extra: dict[str, Any] = {}
    if name == "single_effects":
        few = (data.sizes["condition"] - 1) // 2  # environments say little of how many latents one of them moves
        extra["max_targets"] = max(1, min(5, num_latents // 2, few)) if max_targets is None else max_targets
    elif max_targets is not None:
        raise DataError(f"max_targets: found it with {name!r}; wanted it with 'single_effects'")
    if name == "descriptors":
        extra["num_features"] = num_features(data)
    return named("environment_prior", PRIORS, name)(data.sizes["condition"], num_latents, control=row, **extra)


def rebuilt_parts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Parts from the settings of a model."""
    return {
        role: None if settings[role] is None else rebuilt(role, known, settings[role])
        for role, known in FAMILIES.items()
    }


def rebuilt(role: str, known: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    """Make a part from its settings.

    Raises
    ------
    LoadError
        If it is none of the library's.
    """
    if settings.get("kind") not in known:
        raise LoadError(f"{role}: found {settings.get('kind')!r}; wanted one of {sorted(known)}")
    return known[settings["kind"]].from_settings(settings)


def named(role: str, known: Mapping[str, Any], name: str) -> Any:
    """Look a part up by its name.

    Raises
    ------
    DataError
        If there is none of this name.
    """
    if name not in known:
        raise DataError(f"{role}: found {name!r}; wanted one of {sorted(known)}")
    return known[name]


def check_data(data: object) -> None:
    """Refuse data that lack what every model of environments needs.

    Raises
    ------
    DataError
        Naming the variable.
    """
    if not isinstance(data, xr.Dataset):
        raise DataError(f"data: found {type(data).__name__}; wanted a Dataset, as from_dataframes makes it")
    found = sorted(map(str, data.variables))
    for name in ("expression", "environment", "condition"):
        if name not in data.variables:
            hint = "; give environment= to from_arrays, from_dataframes or from_anndata"
            raise DataError(f"{name}: found {found}; wanted it among them{'' if name == 'expression' else hint}")


def num_features(data: xr.Dataset) -> int:
    """Number of descriptors.

    Raises
    ------
    DataError
        If there are none.
    """
    if "descriptors" not in data:
        raise DataError("descriptors: found none; wanted descriptors (condition, feature), or indicator_descriptors()")
    return int(data["descriptors"].sizes["feature"])


def are_counts(data: xr.Dataset) -> bool:
    """Whether the expression is whole numbers that are not negative."""
    values = data["expression"].values
    parts = (values[i : i + CHUNK] for i in range(0, len(values), CHUNK))  # no second array of the size of the data
    return all(bool((part >= 0).all() and (part == np.round(part)).all()) for part in parts)


def control_row(data: xr.Dataset, control: str | None) -> int | None:
    """Position of the control among the environments.

    Raises
    ------
    DataError
        If there is no environment of that name.
    """
    conditions = [str(c) for c in data["condition"].values]
    if control is not None and control not in conditions:
        raise DataError(f"control: found {control!r}; wanted one of {conditions[:8]}")
    return None if control is None else conditions.index(control)
