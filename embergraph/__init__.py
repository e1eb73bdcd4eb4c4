"""Bayesian models of gene expression whose structure changes with context, environment and measurement noise.

The front door: data in (`from_arrays`, `from_dataframes`, `from_anndata`, `datasets`), models (`models`), plans
(`fit`), routines for any Pyro model (`svi`, `em`, `mcmc`), posteriors out (`to_datatree`, `to_arviz`), `load`,
`metrics`, `baselines`.
"""

from pathlib import Path

_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file():  # true only inside a source checkout, false in site-packages
    __path__.append(str(_checkout))

from . import baselines, datasets, graph_rules, matrices, metrics, models, plots, undirected_scores
from .data import Standardizer, from_anndata, from_arrays, from_dataframes, random_split, split, standardize, validate
from .graphs import to_networkx
from .inference import Cosine, Fit, Geometric, as_text, em, mcmc, svi, to_arviz, to_datatree
from .methods import MEDMAGMAFit, NOTMADFit, fit
from .models.parts.errors import DataError, EmbergraphError, LoadError, NotSparseError, NumericalError, SchemaError
from .models.parts.projection import project

load = Fit.load

__all__ = [
    "Cosine",
    "DataError",
    "EmbergraphError",
    "Fit",
    "Geometric",
    "LoadError",
    "MEDMAGMAFit",
    "NOTMADFit",
    "NotSparseError",
    "NumericalError",
    "SchemaError",
    "Standardizer",
    "as_text",
    "baselines",
    "datasets",
    "em",
    "fit",
    "from_anndata",
    "from_arrays",
    "from_dataframes",
    "graph_rules",
    "load",
    "matrices",
    "mcmc",
    "metrics",
    "models",
    "plots",
    "project",
    "random_split",
    "split",
    "standardize",
    "svi",
    "to_arviz",
    "to_datatree",
    "to_networkx",
    "undirected_scores",
    "validate",
]
