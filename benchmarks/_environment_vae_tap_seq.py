"""Knocked-down genes of TAP-seq: density of held-out cells, and effects against those of the held-out half."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from _environment_vae_data import CONTROL, SOURCE, TAP_SEQ, effect_scores, empirical_effects, halves, tap_seq
from _environment_vae_scores import timed
from _front import has_files, is_installed
from _tables import Row, Tables

import embergraph as eg
from embergraph import baselines
from embergraph.baselines import EnvironmentBaseline
from embergraph.guides.parts.cell_encoders import CellEncoder
from embergraph.models import EnvironmentVAE
from embergraph.models.environment_vae_parts import start_at
from embergraph.models.parts.decoders import MLPDecoder

NUM_LATENTS = 10
HYBRID_STEPS, HYBRID_HIDDEN = 3000, (64,)
"""What the library chooses for a model with effects on genes; models without them are also trained like that."""
BASELINES: dict[str, EnvironmentBaseline] = {
    "pooled rates, totals": baselines.PooledNegativeBinomial(rates="totals"),
    "pooled rates": baselines.PooledNegativeBinomial(),
    "rates per target, totals": baselines.TargetNegativeBinomial(shrink=False, rates="totals"),
    "rates per target": baselines.TargetNegativeBinomial(shrink=False),
    "rates per target, shrunk": baselines.TargetNegativeBinomial(),
}
HYBRID, WITHOUT_TARGET, SHRUNK = "hybrid", "VAE without target", "rates per target, shrunk"

Fitter = Callable[[xr.Dataset, int, int | None], eg.EnvironmentVAEFit]
"""A fit from training cells, a seed, and steps where others are wanted than usual."""


def halved_screen(options: argparse.Namespace) -> Tables:
    """Log density of held-out cells and effects of targets, trained on half of the cells of each target."""
    if not (is_installed("pandas", "pip install pandas") and has_files(options.data, (TAP_SEQ,), SOURCE)):
        return {}
    results, screen = options.results, tap_seq(options.data)
    screen = screen.isel(cell=slice(None, None, options.every))
    splits = {seed: halves(screen, seed) for seed in options.splits}
    found: dict[str, list[Row]] = {}
    for name, measure in measures(options.steps).items():
        found[name] = [
            results.get({"model": name, "split": seed}, partial(measure, *both, seed)) for seed, both in splits.items()
        ]
    which = f"splits {options.splits[0]} to {options.splits[-1]}"
    return {
        f"TAP-seq, mean over {which}": [{"model": name, **mean(rows)} for name, rows in found.items()],
        "The hybrid in each split": comparison(found, options.splits),
    }


def measures(steps: int | None) -> dict[str, Callable[[xr.Dataset, xr.Dataset, int], Row]]:
    """Rows by name: each measures one split with a seed."""
    return {
        "empirical effects of the training half": empirical_row,
        **{name: partial(baseline_row, baseline) for name, baseline in BASELINES.items()},
        **{name: partial(model_row, fitter, steps) for name, fitter in MODELS.items()},
    }


def empirical_row(train: xr.Dataset, test: xr.Dataset, seed: int) -> Row:
    return dict(effect_scores(empirical_effects(train), train, test))


def baseline_row(baseline: EnvironmentBaseline, train: xr.Dataset, test: xr.Dataset, seed: int) -> Row:
    fitted, cost = timed(lambda: baseline.fit(train))
    effects = fitted.effects()["log2_fold_change"]
    effects = effects - effects.sel(condition=CONTROL, drop=True)
    return {"log density": float(fitted.log_density(test).mean()), **effect_scores(effects, train, test), **cost}


def model_row(fitter: Fitter, steps: int | None, train: xr.Dataset, test: xr.Dataset, seed: int) -> Row:
    """Scores of a model: effects are those of its training cells, decoded."""
    fit, cost = timed(lambda: fitter(train, seed, steps))
    row: Row = {"log density": float(fit.log_density(test).mean())}
    row["of training cells"] = float(fit.log_density(train).mean())
    row |= effect_scores(fit.effects(train, control=CONTROL)["effect"], train, test)
    probability = fit.environments()["target_probability"].values
    if np.isfinite(probability).all():
        row["latent targets"] = float((probability > 0.5).sum() / (len(probability) - 1))
    if fit.guide.gene_effects is not None:
        called = fit.guide.gene_effects.effect_probability().numpy() > 0.95
        row["genes hit per target"] = float(called.sum() / (len(called) - 1))
    return {**row, **cost}


def model(train: xr.Dataset, seed: int, **made: Any) -> EnvironmentVAE:
    return EnvironmentVAE.for_data(train, NUM_LATENTS, control=CONTROL, seed=seed, **made)


def by_plan(*, sees: str = "auto", num_steps: int | None = None, **made: Any) -> Fitter:
    """A fit with every choice left to the library."""
    return lambda train, seed, steps: eg.fit(
        model(train, seed, **made), train, sees=sees, num_steps=steps or num_steps, seed=seed, progress=False
    )


def like_the_hybrid(**made: Any) -> Fitter:
    """A model without effects on genes, with the network and as many steps as one with them."""

    def fit(train: xr.Dataset, seed: int, steps: int | None) -> eg.EnvironmentVAEFit:
        num_genes = train.sizes["gene"]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            decoder = MLPDecoder(NUM_LATENTS, num_genes, HYBRID_HIDDEN)
            encoder = CellEncoder(num_genes, NUM_LATENTS, HYBRID_HIDDEN, "log1p_library")
        encoder.fit_transform_(*(torch.as_tensor(train[name].values) for name in ("expression", "library")))
        made_model = model(train, seed, decoder=decoder, **made)
        start_at(decoder, made_model.likelihood, train["expression"].values)
        return eg.fit(made_model, train, encoder=encoder, num_steps=steps or HYBRID_STEPS, seed=seed, progress=False)

    return fit


MODELS: dict[str, Fitter] = {
    WITHOUT_TARGET: by_plan(environment_prior="standard"),
    "VAE without target, trained like the hybrid": like_the_hybrid(environment_prior="standard"),
    "bounded shifts": by_plan(),
    "bounded shifts, trained like the hybrid": like_the_hybrid(),
    "gene effects without shifts": by_plan(environment_prior="standard", gene_effects=True),
    HYBRID: by_plan(gene_effects=True),
    "hybrid, encoder sees the target": by_plan(gene_effects=True, sees="x_u"),
    "hybrid, twice the steps": by_plan(gene_effects=True, num_steps=2 * HYBRID_STEPS),
}
"""Fits by name."""


def mean(rows: Sequence[Row]) -> Row:
    """Means over splits of what every split has."""
    names = [name for name in rows[0] if all(name in row for row in rows)]
    values = {name: float(np.mean([row[name] for row in rows])) for name in names}
    return {name: f"{value:.2f}" if abs(value) >= 100 else value for name, value in values.items()}


def comparison(found: dict[str, list[Row]], splits: Sequence[int]) -> list[Row]:
    """Gains of the hybrid in nats a cell, and its effects, beside those of the best rival without latents."""
    rows = []
    for i, split in enumerate(splits):
        hybrid = found[HYBRID][i]
        row: Row = {"split": split, "log density": f"{hybrid['log density']:.2f}"}
        for rival in (SHRUNK, WITHOUT_TARGET, "VAE without target, trained like the hybrid"):
            row[f"minus {rival}"] = hybrid["log density"] - found[rival][i]["log density"]
        for score in ("effect r", "effect rmse"):
            row |= {score: hybrid[score], f"{score}, {SHRUNK}": found[SHRUNK][i][score]}
        rows.append(row)
    return rows
