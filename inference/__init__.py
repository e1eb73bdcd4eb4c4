"""Routines (SVI, EM, MCMC) and what is common to all methods: the Fit, export to xarray, diagnostics, saving."""

from ._em import em
from ._mcmc import mcmc
from ._svi import svi
from .diagnostics import as_text, guide_khat, pareto_khat
from .export import to_arviz, to_datatree
from .fit import Fit
from .options import Options
from .registry import register
from .schedules import Cosine, Geometric, Linear, WarmCosine
from .stored import StoredDraws

__all__ = [
    "Cosine",
    "Fit",
    "Geometric",
    "Linear",
    "Options",
    "StoredDraws",
    "WarmCosine",
    "as_text",
    "em",
    "guide_khat",
    "mcmc",
    "pareto_khat",
    "register",
    "svi",
    "to_arviz",
    "to_datatree",
]
