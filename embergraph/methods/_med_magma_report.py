"""What can be known of the quality of a MED-MAGMA fit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr

from ..inference.diagnostics import MEANING as COMMON
from ..inference.diagnostics import guide_khat, settled
from ..inference.inputs import DataLike, as_dataset
from ..inference.judgement import LIMITS as COMMON_LIMITS
from ..inference.judgement import at_least, at_most, limits_of
from ..models.parts.errors import DataError

ENOUGH = 65.0
LEAST_DRAWS = 25
MEANING = {
    "num_matrices": "matrices that share both graphs",
    "num_cells": "cells",
    "num_genes": "genes",
    "final_loss": "minus the approximate log evidence of the graphs, nats",
    "bound_range": COMMON["bound_range"],
    "converged": "1 if bound and graphs had settled when the sweeps ended",
    "share_zero": "share of entries that are zero and count as measured; if they are drop-out, intervals of scales are "
    "too narrow, and zeros='structural' is the right option",
    "fell_back": "1: no sparse graph holds the data, SpectralGraph was fitted; it ranks pairs and names no edges",
    "guide_khat": "Pareto k of the posterior of the scales given the graphs; above 0.7 it misses mass",
    "cell_expected_edges": "expected number of edges among cells",
    "gene_expected_edges": "expected number of edges among genes",
    "cell_clear_edges": "pairs of cells with edge probability above .95; only these can be read as probabilities",
    "gene_clear_edges": "pairs of genes with edge probability above .95; only these can be read as probabilities",
    "cell_visible_weight": "partial correlation between cells that the data can just show (AP .9 needs edges of this "
    "size); pool matrices if it is above what you expect",
    "gene_visible_weight": "the same between genes",
    "median_sd_log_u": "median posterior standard deviation of a cell's log scale",
    "median_sd_log_v": "median posterior standard deviation of a gene's log scale",
    "test_log_density": "mean log density of a held-out matrix with its scales integrated out, nats",
}

LIMITS = {
    "converged": at_least(1.0, 1.0, "Bound and graphs had not settled when the sweeps ended: take more."),
    "fell_back": at_most(0.0, 0.0, "No sparse graph holds the data: pairs are ranked, and no edges are named."),
    "guide_khat": COMMON_LIMITS["guide_khat"],
}


def graph_report(fit: Any, data: DataLike, test: DataLike | None, *, num_samples: int) -> xr.Dataset:
    """Table of the fit; see `MEDMAGMAFit.report`."""
    if num_samples < LEAST_DRAWS:
        raise DataError(f"num_samples: found {num_samples}; wanted at least {LEAST_DRAWS}")
    n, p, m = fit.model.num_cells, fit.model.num_genes, fit.model.num_replicates or 1
    rows: dict[str, float] = {"num_matrices": m, "num_cells": n, "num_genes": p}
    rows |= {key: float(fit.settings[key]) for key in ("final_loss", "bound_range", "converged") if key in fit.settings}
    share = float((as_dataset(data, fit.schema)["expression"] == 0).mean())
    if share and fit.model.zeros == "gaussian":
        rows["share_zero"] = share
    if "not_sparse" in fit.settings:
        rows["fell_back"] = 1.0
    tree = fit.posterior(as_dataset(data, fit.schema), num_samples)
    rows["guide_khat"] = guide_khat(tree)
    if fit.guide.edges is not None:
        state = fit.guide.edges.state()
        for axis, edges in (("cell", state.row), ("gene", state.col)):
            probability = edges.probability.cpu().numpy()[np.triu_indices(len(edges.probability), 1)]
            rows[f"{axis}_expected_edges"] = float(probability.sum())
            rows[f"{axis}_clear_edges"] = float((probability > 0.95).sum())
    for axis, others in (("cell", p), ("gene", n)):  # an entry of Psi is twice a partial correlation at unit diagonals
        rows[f"{axis}_visible_weight"] = 0.5 * math.sqrt(ENOUGH / (m * others))
    scales = fit.scales()
    rows |= {f"median_sd_{name}": float(scales[f"{name}_sd"].median()) for name in ("log_u", "log_v")}
    if test is not None:
        rows["test_log_density"] = float(fit.log_density(test).mean())
    table = xr.Dataset(
        {key: ((), value, {"meaning": MEANING[key], **limits_of(key, LIMITS)}) for key, value in rows.items()}
    )
    if "bound_range" in table and fit.settings.get("tolerance") is not None:
        table["bound_range"].attrs |= settled(float(fit.settings["tolerance"]))
    return table.assign_attrs(tree["posterior"].attrs)
