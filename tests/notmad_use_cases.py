"""Small data and posteriors of NOTMAD that the tests of its use share; posteriors are draws of the prior, unfitted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from pyro import poutine

import embergraph as eg
from embergraph import models
from embergraph.inference import StoredDraws
from embergraph.inference.inputs import Template
from embergraph.inference.messengers import isolated, latent_sites
from embergraph.models import NOTMAD

QUICK: dict[str, Any] = {
    "num_restarts": 2, "num_steps": 150, "num_orders": 3, "num_warmup": 20, "num_draws": 40, "num_guide_steps": 100,
    "progress": False,
}  # fmt: skip
FORMS: dict[str, dict[str, Any]] = {
    "exact": {},
    "projected": {"order": "projected"},
    "low rank": {"archetypes": models.LowRankArchetypes(2), "mixing": "entmax15"},
    "nam": {"encoder": "nam", "noise": "equal"},
}
GENES = ["Raf", "Mek", "Erk", "Akt"]


def about_cells(num_cells: int, seed: int) -> pd.DataFrame:
    """A number and a factor of three levels, by cell."""
    rng = np.random.default_rng(seed)
    names = [f"cell{i}" for i in range(num_cells)]
    levels = rng.choice(["heat", "none", "salt"], num_cells)
    return pd.DataFrame({"time": rng.uniform(0, 4, num_cells), "stress": levels}, index=names)


def cells(num_cells: int = 300, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Expression and covariates: Raf -> Mek grows with time, Mek -> Erk is there under heat and salt."""
    about, rng = about_cells(num_cells, seed), np.random.default_rng(seed + 1)
    W = np.zeros((num_cells, 4, 4))
    W[:, 0, 1] = about["time"] / 2 - 0.5
    W[:, 1, 2] = np.where(about["stress"] == "none", 0.0, 1.2)
    W[:, 0, 3] = 0.8
    x = (0.5 * rng.normal(size=(num_cells, 1, 4)) @ np.linalg.inv(np.eye(4) - W))[:, 0] + [5.0, 1.0, 0.0, 2.0]
    return pd.DataFrame(x, index=about.index, columns=GENES), about


def data(num_cells: int = 300, seed: int = 0, scale: Any = "common") -> xr.Dataset:
    """The same as a standardised Dataset."""
    return eg.standardize(eg.from_dataframes(*cells(num_cells, seed)), scale=scale)[0]


def from_prior(
    train: xr.Dataset | None = None, num_archetypes: int = 3, num_draws: int = 12, seed: int = 0, **options: Any
) -> eg.NOTMADFit:
    """A fit whose posterior is its prior: everything that is asked of draws can be computed by hand."""
    train = data(60, scale="gene") if train is None else train
    model = NOTMAD.for_data(train, num_archetypes, **options)
    covariates, drawn = torch.as_tensor(train["covariates"].values[:2]), []
    with isolated(seed, dtype=torch.double), torch.no_grad():
        for _ in range(num_draws):
            latent = latent_sites(poutine.trace(model).get_trace(covariates))
            drawn.append({n: s["value"] for n, s in latent.items() if n not in ("expression", "logits")})
    values = {name: torch.stack([draw[name] for draw in drawn])[None, :, None] for name in drawn[0]}
    template = Template.of(model.schema, train)
    draws = StoredDraws(values, {"lp": np.zeros((1, num_draws))})
    return eg.NOTMADFit(model, None, model.schema, template, draws=draws, settings={"routine": "prior"})


def draws_of(fit: eg.NOTMADFit, frame: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Z, W_i and b_i (draw, cell, ...) by the model itself."""
    values, C = fit.global_draws(None), torch.as_tensor(fit.encode(frame)["covariates"].values)
    W, b = fit.model.networks_of(C, values)
    return fit.model.mixture_of(C, values).numpy(), W.numpy(), b.numpy()


def close(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), wanted, atol=1e-9)
