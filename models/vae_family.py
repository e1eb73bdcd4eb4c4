"""The models of the papers by their names: choices of parts of one `EnvironmentVAE`.

How a cell is encoded (whether the encoder sees the environment, direct or residual) belongs to the guide; the plan
takes it from the name of the model.
"""

from __future__ import annotations

from typing import Any

import xarray as xr

from .environment_vae import EnvironmentVAE
from .environment_vae_parts import check_data, control_row, num_features
from .parts.environment_priors import GatedShifts, MaskedShifts

BASIC, CONDITIONAL, GATED, TRANSLATION, SVAE_PLUS = (
    "basic VAE", "conditional VAE", "gated Environment VAE", "Translation VAE", "sVAE+",
)  # fmt: skip


def basic_vae(data: xr.Dataset, num_latents: int = 10, **options: Any) -> EnvironmentVAE:
    """VAE that knows no environments: Z ~ Normal(0, I). Its latents are known up to a rotation, or worse.

    Parameters
    ----------
    data, num_latents, **options
        As for `EnvironmentVAE.for_data`.
    """
    return EnvironmentVAE.for_data(data, num_latents, environment_prior="standard", name=BASIC, **options)


def conditional_vae(data: xr.Dataset, num_latents: int = 10, **options: Any) -> EnvironmentVAE:
    """VAE whose decoder is given the descriptors: nothing constrains what an unseen descriptor does.

    Parameters
    ----------
    data, num_latents, **options
        As for `EnvironmentVAE.for_data`; the data have ``descriptors``.
    """
    return EnvironmentVAE.for_data(
        data, num_latents, environment_prior="standard", conditional=True, name=CONDITIONAL, **options
    )


def gated_environment_vae(
    data: xr.Dataset, num_latents: int = 10, *, gate: str = "softmax", scales: bool = False, **options: Any
) -> EnvironmentVAE:
    """Environment VAE as published: shifts v softmax(|v| / T), whose temperature falls while it is trained.

    The gate favours sparse shifts and enforces nothing: every vector is reachable at every temperature.

    Parameters
    ----------
    gate
        ``"softmax"`` (published), ``"sparsemax"`` or ``"entmax15"`` (exact zeros).
    scales
        Whether environments also change the spread of their latents.
    data, num_latents, **options
        As for `EnvironmentVAE.for_data`. With ``descriptors`` the shifts are networks of these.
    """
    return _gated(data, num_latents, gate, scales, GATED, options)


def translation_vae(
    data: xr.Dataset, num_latents: int = 10, *, gate: str = "softmax", **options: Any
) -> EnvironmentVAE:
    """Translation VAE: a shift added to the code of a cell.

    The generative model is that of `gated_environment_vae`; the guide is residual: its location is that of the
    encoder plus the shift.

    Parameters
    ----------
    data, num_latents, gate, **options
        As for `gated_environment_vae`.
    """
    return _gated(data, num_latents, gate, False, TRANSLATION, options)


def svae_plus(data: xr.Dataset, num_latents: int = 10, *, sparsity: float = 20.0, **options: Any) -> EnvironmentVAE:
    """sVAE+: learned masks of targets with a Beta(1, `sparsity`) prior (Lopez et al. 2022).

    Parameters
    ----------
    sparsity
        K of the paper. At 1 the masks cost nothing; it needs to be tuned.
    data, num_latents, **options
        As for `EnvironmentVAE.for_data`.
    """
    prior = MaskedShifts(*_sizes(data, num_latents, options), sparsity=sparsity)
    return EnvironmentVAE.for_data(data, num_latents, environment_prior=prior, name=SVAE_PLUS, **options)


def _gated(
    data: xr.Dataset, num_latents: int, gate: str, scales: bool, name: str, options: dict[str, Any]
) -> EnvironmentVAE:
    features = num_features(data) if "descriptors" in data else 0
    prior = GatedShifts(*_sizes(data, num_latents, options), gate=gate, scales=scales, num_features=features)
    return EnvironmentVAE.for_data(data, num_latents, environment_prior=prior, name=name, **options)


def _sizes(data: xr.Dataset, num_latents: int, options: dict[str, Any]) -> tuple[int, int, int | None]:
    """Sizes of a prior: environments, latents, and the row of the control."""
    check_data(data)
    return data.sizes["condition"], num_latents, control_row(data, options.get("control"))
