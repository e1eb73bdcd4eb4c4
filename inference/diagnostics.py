"""What can be known about the quality of a fit: guide k-hat, LOO, convergence, agreement of restarts and chains."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from pyro.ops.stats import fit_generalized_pareto

from ..models.parts.errors import DataError
from .export import to_arviz
from .inputs import DataLike, as_dataset
from .judgement import at_most, limits_of

if TYPE_CHECKING:
    from jaxtyping import Float

    from .fit import Fit


def pareto_khat(log_ratios: Float[np.ndarray, " draw"]) -> float:
    """Shape of the tail of importance ratios, k-hat (Vehtari et al. 2024; Yao et al. 2018 for guides).

    Below 0.7 importance sampling can correct the guide; above, the guide misses mass of the joint posterior, though
    single marginals may still be good. Common with many latents. Minus infinity if the ratios are all equal (the guide
    is the posterior), infinity if a handful of draws carry all weight.

    Parameters
    ----------
    log_ratios
        log_p - log_q of each draw.

    Raises
    ------
    DataError
        If there are fewer than 25 draws, or one is NaN.
    """
    ratios = np.sort(np.asarray(log_ratios, dtype=float))
    if ratios.size < 25 or np.isnan(ratios).any():
        raise DataError(f"log_ratios: found {ratios.size} draws; wanted at least 25 to fit a tail, and none NaN")
    tail = int(min(0.2 * ratios.size, 3 * math.sqrt(ratios.size)))
    weights = np.exp(ratios[-tail - 1 :] - ratios[-1])
    exceedances = weights[1:] - weights[0]
    if exceedances[-1] < 1e-4:  # rounding, which has tails of its own
        return -math.inf
    exceedances = exceedances[exceedances > 0]
    if exceedances.size < 5:
        return math.inf
    try:
        k, _ = fit_generalized_pareto(torch.as_tensor(exceedances))
    except ZeroDivisionError:  # weights that differ by more than the range of a float
        return math.inf
    return float(k)


def guide_khat(tree: xr.DataTree) -> float:
    """k-hat of the whole guide from ``log_p`` and ``log_q`` of a tree; NaN for stored draws, which have no guide."""
    stats = tree["sample_stats"].to_dataset()
    if "log_q" not in stats or float(stats["log_q"].std()) == 0:  # of a point guide log_q is the same everywhere
        return math.nan
    return pareto_khat((stats["log_p"] - stats["log_q"]).values.ravel())


def loo(tree: xr.DataTree) -> xr.Dataset:
    """PSIS leave-one-out by ArviZ with everything that says whether to believe it.

    Returns
    -------
    xr.Dataset
        ``elpd_loo``, ``se``, ``p_loo``, ``khat`` of every observation, ``share_khat_bad`` (above 0.7), ``guide_khat``.
        With a latent vector a cell, the posterior without that cell differs from the posterior, k is bad, and the
        number is not to be trusted: hold cells out and use `Fit.log_density`.
    """
    import arviz as az

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that some k are above 0.7, which the result says in full
        result: Any = az.loo(to_arviz(tree), pointwise=True)
    khat = np.asarray(result.pareto_k)
    scores = next(iter(tree["log_likelihood"].data_vars.values()))
    dims = [str(dim) for dim in scores.dims if dim not in ("chain", "draw")]
    elpd = result.elpd_loo if hasattr(result, "elpd_loo") else result.elpd
    effective = result.p_loo if hasattr(result, "p_loo") else result.p
    return xr.Dataset(
        {
            "elpd_loo": float(elpd),
            "se": float(result.se),
            "p_loo": float(effective),
            "khat": (dims, khat.reshape([scores.sizes[dim] for dim in dims])),
            "share_khat_bad": float((khat > 0.7).mean()),
            "guide_khat": guide_khat(tree),
        },
        {dim: tree["log_likelihood"][dim].values for dim in dims},
    )


def split_rhat(tree: xr.DataTree) -> xr.Dataset:
    """R-hat of the two halves of each chain, by site the largest over chains and entries.

    Chains are components of the posterior (orders, restarts) and may differ by design, so each is judged by itself;
    `chains_rhat` judges chains that should be the same.
    """
    posterior = tree["posterior"].to_dataset()
    worst: dict[str, float] = {}
    for chain in range(posterior.sizes["chain"]):
        for name, value in _rhat(_halves(posterior.isel(chain=[chain]))).items():
            worst[name] = max(worst.get(name, 1.0), value)
    return xr.Dataset(worst)


def chains_rhat(tree: xr.DataTree) -> xr.Dataset:
    """R-hat of the halves of all chains together, by site the largest over entries: for chains of one posterior."""
    return xr.Dataset(_rhat(_halves(tree["posterior"].to_dataset())))


def _halves(posterior: xr.Dataset) -> xr.Dataset:
    """Both halves of every chain as chains."""
    half = posterior.sizes["draw"] // 2
    parts = [posterior.isel(draw=slice(0, half)), posterior.isel(draw=slice(half, 2 * half))]
    halves = xr.concat([part.assign_coords(draw=np.arange(half)) for part in parts], dim="chain")
    return halves.assign_coords(chain=np.arange(halves.sizes["chain"]))


def _rhat(chains: xr.Dataset) -> dict[str, float]:
    """Largest R-hat of the entries of every site that moves, where it is defined."""
    import arviz as az

    moving = [str(n) for n, v in chains.data_vars.items() if v.dtype.kind == "f" and float(v.std()) > 0]
    with np.errstate(all="ignore"):
        found = az.rhat(chains[moving])
    values = {name: found[name].values for name in moving}
    return {name: max(1.0, float(np.nanmax(v))) for name, v in values.items() if not np.isnan(v).all()}


def drift(history: xr.DataArray, chosen: int = 0, share: float = 0.1) -> float:
    """How much the mean loss still fell between the last two tenths of the steps, in standard errors of that change.

    Above about 3 the fit was still improving; NaN for too few steps.
    """
    losses = history.values[chosen]
    losses = losses[np.isfinite(losses)]
    window = int(len(losses) * share)
    if window < 10:
        return math.nan
    before, last = losses[-2 * window : -window], losses[-window:]
    error = math.sqrt(before.var() / window + last.var() / window)
    return float((before.mean() - last.mean()) / error) if error > 0 else 0.0


MEANING = {
    "num_cells": "rows that the report was computed on",
    "final_loss": "negative ELBO (or log density) on the training data, nats",
    "loss_drift": "fall of the loss over the last tenth of the steps, in standard errors; above 3: not converged",
    "bound_range": "range of the bound over the latest sweeps, nats a data value; above the tolerance: not converged",
    "bound_falls": "sweeps that lowered the bound by more than rounding; of a monotone guide, a mistake in its update",
    "largest_fall": "largest of these falls, nats",
    "restarts_agree": "share of restarts whose final loss is within 1 % of the best",
    "guide_khat": "Pareto k of the whole guide; above 0.7 it misses mass of the joint posterior",
    "elpd_loo": "PSIS-LOO log predictive density of the training data, nats; read with share_khat_bad",
    "elpd_loo_se": "standard error of elpd_loo",
    "share_khat_bad": "share of observations whose Pareto k is above 0.7; above a few per cent LOO is not to be used",
    "test_log_density": "mean log predictive density of a held-out cell, nats; global sites from the posterior, cell "
    "sites averaged over their prior",
    "test_log_density_se": "its standard error over cells",
    "max_split_rhat": "largest R-hat of the halves of a chain, each chain by itself; above 1.05: run longer",
    "max_rhat": "largest R-hat of the halves of all chains together; above 1.05: chains found different things",
    "acceptance": "mean acceptance of the sampler",
    "divergences": "transitions that broke down",
}


KHAT_DRAWS = 1000
"""Draws behind a k-hat: of a few hundred it comes out too low."""


def report(fit: Fit, data: DataLike, test: DataLike | None = None, *, num_samples: int = 500) -> xr.Dataset:
    """Table of what can be known about the quality of a fit; see `Fit.report`."""
    tree = fit.posterior(data, max(num_samples, KHAT_DRAWS), predictive=False, prior=False)
    rows: dict[str, float] = {"num_cells": float(as_dataset(data, fit.schema).sizes.get(fit.schema.plate, 0))}
    if "final_loss" in fit.settings:
        rows["final_loss"] = float(fit.settings["final_loss"])
        if fit.settings.get("routine") == "em":  # a bound without noise has no standard error
            rows |= {key: float(fit.settings[key]) for key in ("bound_range", "bound_falls", "largest_fall")}
        else:
            rows["loss_drift"] = drift(fit.history, int(fit.settings.get("chosen_restart", 0)))
    finals = np.asarray(fit.settings.get("final_losses", []), dtype=float)
    finals = finals[np.isfinite(finals)]
    if len(finals) > 1:
        rows["restarts_agree"] = float((finals <= finals.min() + 0.01 * abs(finals.min())).mean())
    if fit.draws is not None:
        rows["max_split_rhat"] = max((float(v) for v in split_rhat(tree).values()), default=math.nan)
        if fit.settings.get("routine") == "mcmc" and fit.stored.shape[0] > 1:  # else chains are components
            rows["max_rhat"] = max((float(v) for v in chains_rhat(tree).values()), default=math.nan)
        rows |= {k: float(np.mean(v)) for k, v in fit.draws.statistics.items() if k == "acceptance"}
        rows |= {k: float(np.sum(v)) for k, v in fit.draws.statistics.items() if k == "divergences"}
    evidence = posterior_rows(fit, tree)
    point = evidence is None
    rows |= evidence or {}
    if test is not None:
        density = fit.log_density(test, num_samples)
        rows["test_log_density"] = float(density.mean())
        rows["test_log_density_se"] = float(density.std() / math.sqrt(density.size))
    table = xr.Dataset({key: ((), value, {"meaning": MEANING[key], **limits_of(key)}) for key, value in rows.items()})
    if "bound_range" in rows and fit.settings.get("tolerance") is not None:
        table["bound_range"].attrs |= settled(float(fit.settings["tolerance"]))
    if "choice" in fit.settings:
        table = table.assign(choice_rows(fit.settings["choice"]))
    return table.assign_attrs({**tree["posterior"].attrs, "point_estimate": int(point)})


def posterior_rows(fit: Fit, tree: xr.DataTree, *, with_loo: bool = True) -> dict[str, float] | None:
    """k-hat of the guide, and LOO with its own k-hat where one site is observed; None for a point estimate."""
    posterior = tree["posterior"]
    if set(map(str, posterior.data_vars)) <= set(json.loads(posterior.attrs["held_fixed"])):
        return None
    khat = guide_khat(tree) if fit.guide is not None else math.nan
    rows = {} if math.isnan(khat) else {"guide_khat": khat}
    scored = tree["log_likelihood"].data_vars if "log_likelihood" in tree.children else {}
    if with_loo and len(scored) == 1:
        result = loo(tree)
        rows |= {"elpd_loo": float(result["elpd_loo"]), "elpd_loo_se": float(result["se"])}
        rows["share_khat_bad"] = float(result["share_khat_bad"])
    return rows


def settled(tolerance: float) -> dict[str, Any]:
    """Limits of ``bound_range``, which a fit that has converged keeps within its own tolerance."""
    return at_most(tolerance, 10 * tolerance, "The bound was still moving when the sweeps ended: take more.").attrs()


def choice_rows(choice: Mapping[str, Any]) -> dict[str, Any]:
    """Rows on the comparison that a fit was chosen by: its lead over every other model."""
    rows: dict[str, Any] = {}
    for name, found in choice["models"].items():
        if name == choice["chosen"]:
            continue
        told, lead = f"{name!r} could not be fitted", math.nan
        if found is not None:
            lead = found["lead"]
            best = ", the best by no more than that" if name == choice["best"] else ""
            told = f"held-out nats a cell of {choice['chosen']!r} over {name!r}, s.e. {found['lead_se']:.2g}{best}"
        rows[f"choice_lead_{len(rows)}"] = ((), lead, {"meaning": told})
    return rows


def as_text(table: xr.Dataset) -> str:
    """Lay a report out as lines of name, number and meaning."""
    lines = []
    for name, value in table.data_vars.items():
        number = float(value)
        shown = f"{number:.0f}" if number.is_integer() and abs(number) < 1e9 else f"{number:.4g}"
        lines.append(f"{name:>22}  {shown:>12}  {value.attrs.get('meaning', '')}")
    return "\n".join(lines)
