"""What can be known of the quality of an Environment VAE fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr

from ..inference.diagnostics import KHAT_DRAWS, drift, posterior_rows
from ..inference.diagnostics import MEANING as COMMON
from ..inference.judgement import LIMITS as COMMON_LIMITS
from ..inference.judgement import Limits, at_least, limits_of
from . import _environment_vae_read as read

if TYPE_CHECKING:
    from ._environment_vae_fit import EnvironmentVAEFit

MEANING = {
    "num_cells": "cells",
    "num_genes": "genes",
    "num_environments": "environments, with the control if there is one",
    "final_loss": "loss in nats a cell: negative ELBO, plus penalties",
    "loss_drift": COMMON["loss_drift"],
    "rotation_agreement": "share of restarts of the rotation that agree (EM: weight of the best axes among those "
    "found); below 0.2 the environments do not determine the latent axes",
    "targets_per_environment": "expected number of latents that an environment shifts",
    "clear_targets": "targets with probability above .95 (masks of sVAE+ are not calibrated)",
    "interrupted": "1: training was interrupted; before the last rotation the axes mean nothing",
    "used_latents": "latents that explain something: posterior sd below .9 in the mean cell",
    "misfit_sd": "largest lack of fit of a latent's environment means, in its standard deviations; effects below it "
    "are not called",
    "within_variance": "variance of the latents within environments, mean over those used; 1 under the model, and "
    "shifts are too small by its root where it is less",
    "guide_khat": f"{COMMON['guide_khat']}; of at most 200 cells and their latents",
    "share_khat_bad": COMMON["share_khat_bad"],
    "log_density": "mean log predictive density of a training cell, nats",
    "test_log_density": "mean log predictive density of a held-out cell, nats",
}

LIMITS = {
    **{name: COMMON_LIMITS[name] for name in ("loss_drift", "guide_khat", "share_khat_bad")},
    "rotation_agreement": at_least(
        0.5, 0.2, "The environments do not determine the latent axes: read effects on genes, not targets or shifts."
    ),
    "within_variance": Limits((0.7, 1.3), (0.4, 2.0), "Sizes of shifts are off: read their signs, not their sizes."),
}


def environment_report(
    fit: EnvironmentVAEFit, data: xr.Dataset, test: xr.Dataset | None, *, num_samples: int
) -> xr.Dataset:
    """Table of the fit; see `EnvironmentVAEFit.report`."""
    num_cells, probability = data.sizes["cell"], read.targets(fit)
    rows: dict[str, float] = {
        "num_cells": num_cells,
        "num_genes": fit.model.num_genes,
        "num_environments": fit.model.num_environments,
        "final_loss": float(fit.settings["final_loss"]) / num_cells,
        "loss_drift": drift(fit.history, int(fit.settings.get("chosen_restart", 0))),
        "rotation_agreement": float(fit.guide.rotation_agreement),
        "targets_per_environment": float(probability.sum() / max(1, fit.model.num_environments)),
        "clear_targets": float((probability > 0.95).sum()) if fit.model.environment_prior.has_targets else np.nan,
        "interrupted": 1.0 if fit.settings.get("interrupted") else np.nan,
        **_latents(fit, data),
    }
    misfit = getattr(fit.guide.environment, "misfit", None)
    if misfit is not None:
        rows["misfit_sd"] = float(misfit.max().sqrt())
    tree = fit.posterior(data, KHAT_DRAWS, predictive=False, prior=False)
    found = posterior_rows(fit, tree) or {}
    rows |= {key: value for key, value in found.items() if key in ("guide_khat", "share_khat_bad")}
    rows["log_density"] = float(fit.log_density(data, num_samples).mean())
    if test is not None:
        rows["test_log_density"] = float(fit.log_density(test, num_samples).mean())
    table = {
        key: ((), value, {"meaning": MEANING[key], **limits_of(key, LIMITS)})
        for key, value in rows.items()
        if not np.isnan(value)
    }
    return xr.Dataset(table).assign_attrs(fit.summary())


def _latents(fit: EnvironmentVAEFit, data: xr.Dataset) -> dict[str, float]:
    found = read.latents(fit, data)
    mean, sd = torch.as_tensor(found["mean"].values).double(), torch.as_tensor(found["sd"].values).double()
    e = torch.as_tensor(found["environment"].values)
    count = torch.bincount(e, minlength=fit.model.num_environments).clamp_min(1).double().unsqueeze(-1)
    centre = torch.zeros(fit.model.num_environments, mean.shape[1], dtype=torch.double).index_add_(0, e, mean) / count
    within = (mean - centre[e]).square().mean(0) + sd.square().mean(0)
    used = sd.square().mean(0) < 0.9**2
    speaks = fit.model.environment_prior.has_targets and bool(
        used.any()
    )  # else variance between cells has other causes
    return {"used_latents": float(used.sum()), "within_variance": float(within[used].mean()) if speaks else np.nan}
