"""What surrounds the generative process of `models.notmad`: dims of sites, sizes from data, saving."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import xarray as xr
from torch import Tensor

from .parts.acyclicity_factor import acyclicity_from_settings
from .parts.archetypes import Archetypes
from .parts.encoders import ENCODERS, Encoder
from .parts.errors import DataError
from .parts.kinds import described
from .parts.priors import Prior
from .parts.sem_likelihoods import SEMLikelihood
from .schema import Input, Schema

if TYPE_CHECKING:
    from .notmad import NOTMAD

    Model = TypeVar("Model", bound=NOTMAD)

PRIORS = ("edge_prior", "intercept_prior", "noise_prior")


def schema_of(model: NOTMAD) -> Schema:
    """Inputs of the model and dims of its sites."""
    return Schema(
        inputs={
            "covariates": Input(("cell", "covariate")),
            "expression": Input(("cell", "gene"), observed=True),
        },
        normalised=model.form != "relaxed",
        site_dims={
            "order": ("rank",),
            "order_scores": ("gene",),
            **model.archetypes.site_dims,
            "archetypes": ("archetype", "regulator", "target"),
            "intercepts": ("archetype", "gene"),
            "sigma": ("gene",) if model.noise == "free" else (),
            "degrees_of_freedom": (),
            "mixture_scale": (),
            "logits": ("archetype",),
            "encoder_weights": ("feature", "archetype"),
            "encoder_bias": ("archetype",),
            "encoder_log_amplitude": (),
            "encoder_hidden_1": ("covariate", "hidden_input", "hidden"),
            "encoder_hidden_2": ("covariate", "hidden_with_offset", "hidden"),
            "expression": ("gene",),
        },
        labels={"regulator": "gene", "target": "gene"},
        coords={"feature": [f"{j} {label}" for j, label in model.encoder.feature_names]},
    )


def for_data(
    cls: type[Model], data: xr.Dataset, num_archetypes: int, encoder: str | Encoder, options: dict[str, Any]
) -> Model:
    """See `NOTMAD.for_data`."""
    if not isinstance(data, xr.Dataset):
        raise DataError(f"data: found {type(data).__name__}; wanted a Dataset, as from_dataframes makes it")
    for name in ("expression", "covariates"):
        if name not in data:
            raise DataError(f"{name}: found variables {sorted(map(str, data.data_vars))}; wanted {name!r} among them")
    if isinstance(encoder, str):
        if encoder not in ENCODERS:
            raise DataError(f"encoder: found {encoder!r}; wanted one of {sorted(ENCODERS)}")
        encoder = ENCODERS[encoder](torch.as_tensor(data["covariates"].values))
    options.setdefault("noise", "free" if data.attrs.get("standardized") == "gene" else "equal")
    model = cls(data.sizes["gene"], encoder, num_archetypes, **options)
    model.made_for = {dim: data[dim].values.tolist() for dim in ("gene", "covariate") if dim in data.coords}
    return model.to(torch.as_tensor(data["expression"].values[:1]).dtype)


def flat_values(model: NOTMAD, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values of global sites with one axis of draws and without singleton axes of plates."""
    dims = model.schema.site_dims
    found = {}
    for name, value in values.items():
        if name not in dims or name == "logits":
            continue
        event = value.shape[value.dim() - len(dims[name]) :]
        found[name] = value.reshape(-1, *event)
    return found


def described_parts(model: NOTMAD) -> dict[str, Any] | None:
    """JSON description of the model, None when a part has no name that a file may carry."""
    priors = {key: getattr(model, key).settings() for key in PRIORS}
    if model.mixture_prior is not None:
        priors["mixture_prior"] = model.mixture_prior.settings()
    parts = {
        "encoder": model.encoder.settings(),
        "likelihood": described(SEMLikelihood.kinds, model.likelihood),
        "archetypes": described(Archetypes.kinds, model.archetypes),
    }
    if None in priors.values() or None in parts.values():
        return None
    if (parts["likelihood"] or {}).get("prior", ()) is None:
        return None
    orders = {"relaxed": None, "projected": "projected", "exact": "uniform"}
    return {
        "num_genes": model.num_genes,
        "num_archetypes": model.num_archetypes,
        "noise": model.noise,
        "mixing": model.mixing,
        "mixture_scale": None if model.mixture_scale is None else float(model.mixture_scale),
        "order": orders[model.form] if model.fixed_order is None else model.fixed_order.tolist(),
        "priors": priors,
        "acyclicity": None if model.acyclicity is None else model.acyclicity.settings(),
        **parts,
    }


def parts_from(cls: type[Model], settings: Mapping[str, Any]) -> Model:
    """Rebuild a model from its description; the buffers are filled by the saved state."""
    priors = {key: Prior.from_settings(prior) for key, prior in settings["priors"].items()}
    model = cls(
        settings["num_genes"],
        Encoder.from_settings(settings["encoder"]),
        settings["num_archetypes"],
        noise=settings["noise"],
        mixing=settings["mixing"],
        mixture_scale=settings["mixture_scale"],
        order=settings["order"],
        likelihood=SEMLikelihood.from_settings(settings["likelihood"]),
        archetypes=Archetypes.from_settings(settings["archetypes"]),
        acyclicity=acyclicity_from_settings(settings["acyclicity"]),
    )
    for key, prior in priors.items():
        setattr(model, key, prior)
    return model
