"""Bayesian models of gene expression whose structure changes with context, environment and measurement noise.

The front door: data in (`from_arrays`, `from_dataframes`, `from_anndata`, `datasets`), models (`models`), plans
(`fit`), routines for any Pyro model (`svi`, `em`, `mcmc`), posteriors out (`to_datatree`, `to_arviz`), `load`,
`metrics`, `baselines`.
"""

from pathlib import Path

_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file():  # true only inside a source checkout, false in site-packages
    __path__.append(str(_checkout))

from . import (
    ablations,
    baselines,
    datasets,
    decoder_scores,
    graph_rules,
    latent_scores,
    matrices,
    metrics,
    models,
    plots,
    target_scores,
    undirected_scores,
)
from ._report import Report, report
from ._stability import refit, stability, stability_text
from .calibration import calibrate, calibration_text
from .choice import choice_table, choose
from .comparison import compare, comparison_text
from .criticism import criticism_text, predictive_check
from .data import Standardizer, from_anndata, from_arrays, from_dataframes, random_split, split, standardize, validate
from .graphs import to_networkx
from .hidden_entries import hidden_log_density, hide_entries
from .inference import Cosine, Fit, Geometric, Linear, WarmCosine, as_text, em, mcmc, svi, to_arviz, to_datatree
from .inference.simulation import simulate
from .methods import EnvironmentVAEFit, MEDMAGMAFit, NOTMADFit, fit, indicator_descriptors
from .models.parts.errors import DataError, EmbergraphError, LoadError, NotSparseError, NumericalError, SchemaError
from .models.parts.projection import project

load = Fit.load

__all__ = [
    "Cosine",
    "DataError",
    "EmbergraphError",
    "EnvironmentVAEFit",
    "Fit",
    "Geometric",
    "Linear",
    "LoadError",
    "MEDMAGMAFit",
    "NOTMADFit",
    "NotSparseError",
    "NumericalError",
    "Report",
    "SchemaError",
    "Standardizer",
    "WarmCosine",
    "ablations",
    "as_text",
    "baselines",
    "calibrate",
    "calibration_text",
    "choice_table",
    "choose",
    "compare",
    "comparison_text",
    "criticism_text",
    "datasets",
    "decoder_scores",
    "em",
    "fit",
    "from_anndata",
    "from_arrays",
    "from_dataframes",
    "graph_rules",
    "hidden_log_density",
    "hide_entries",
    "indicator_descriptors",
    "latent_scores",
    "load",
    "matrices",
    "mcmc",
    "metrics",
    "models",
    "plots",
    "predictive_check",
    "project",
    "random_split",
    "refit",
    "report",
    "simulate",
    "split",
    "stability",
    "stability_text",
    "standardize",
    "svi",
    "target_scores",
    "to_arviz",
    "to_datatree",
    "to_networkx",
    "undirected_scores",
    "validate",
]
