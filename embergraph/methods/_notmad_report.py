"""What a report on a fitted NOTMAD adds: whether networks, not only their ingredients, can be believed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..inference.diagnostics import split_rhat
from ..inference.judgement import at_least, at_most, limits_of

if TYPE_CHECKING:
    from .notmad import NOTMADFit

NUM_CELLS = 12
MEANING = {
    "search_restarts_agree": "share of starts of the point search within 0.01 nats a cell of the best",
    "orders": "different orders of the genes among the components of the posterior",
    "modes": "points of equal quality that draws of a projected model start from, structure included",
    "share_acyclic": "share of drawn networks that are acyclic before any projection",
    "removed_mass": "share of the L1 mass of the mean networks that their projection to DAGs removes",
    "network_rhat": "largest R-hat of an edge in 12 cells, halves of each order's chain; above 1.2: draw more",
}

LIMITS = {
    "search_restarts_agree": at_least(0.5, -math.inf, "Starts of the search ended apart: take more restarts."),
    "share_acyclic": at_least(1.0, 0.99, "Draws hold cycles: their edges have no causal reading."),
    "removed_mass": at_most(0.05, 0.2, "Orders disagree: read networks draw by draw, or take order='projected'."),
    "network_rhat": at_most(1.1, 1.2, "Networks have not settled: take more warm-up steps and more draws."),
}


def network_report(fit: NOTMADFit, table: xr.Dataset, data: xr.Dataset) -> xr.Dataset:
    """Add rows on networks to the general table; `data` are the cells that they are predicted for."""
    few = data.isel(cell=np.linspace(0, data.sizes["cell"] - 1, NUM_CELLS).round().astype(int))
    networks = fit.networks(few, draws=False)
    rows = {
        "search_restarts_agree": restarts_agree(fit),
        "orders": float(num_orders(fit)),
        "share_acyclic": float(networks.attrs["share_acyclic"]),
        "removed_mass": float(networks["removed_mass"].mean()),
    }
    if "num_modes" in fit.settings:
        rows["modes"] = float(fit.settings["num_modes"])
    if fit.draws is not None and "bootstrap" not in fit.settings.get("routine", ""):  # whose draws are independent
        rows["network_rhat"] = network_rhat(fit, few)
    extra = {
        key: ((), value, {"meaning": MEANING[key], **limits_of(key, LIMITS)})
        for key, value in rows.items()
        if not math.isnan(value)
    }
    return table.assign(extra)


def restarts_agree(fit: NOTMADFit) -> float:
    """Share of starts that ended within 0.01 nats a cell of the best; NaN if they were not kept."""
    losses = np.asarray(fit.settings.get("search_losses", []), dtype=float)
    num_cells = fit.template.variables["expression"][1][0]
    return float((losses <= np.nanmin(losses) + 0.01 * num_cells).mean()) if losses.size else math.nan


def num_orders(fit: NOTMADFit) -> int:
    """Number of different orders in the posterior, 0 for forms without one."""
    if fit.model.form != "exact":
        return 0
    if fit.model.fixed_order is not None:
        return 1
    if fit.draws is None:
        return len(getattr(fit.guide, "orders", ()))
    orders = fit.draws.values["order"]
    return len(np.unique(orders.reshape(-1, orders.shape[-1]).cpu().numpy(), axis=0))


def network_rhat(fit: NOTMADFit, cells: xr.Dataset) -> float:
    """Largest split R-hat of the entries of the networks of `cells`, each chain by itself, from all stored draws."""
    shape = fit.stored.shape
    draws = fit.networks(cells, num_samples=math.prod(shape), draws=True)["draws"].values
    edges = ("chain", "draw", "cell", "regulator", "target")
    tree = xr.DataTree.from_dict(
        {"/posterior": xr.Dataset({"network": (edges, draws.reshape(*shape, *draws.shape[1:]))})}
    )
    return max((float(v) for v in split_rhat(tree).values()), default=math.nan)
