"""Generative models, one file a method; shared pieces live in `parts`."""

from .med_magma import MEDMAGMA
from .notmad import NOTMAD, AcyclicityFactor
from .parts.graph_priors import FixedGraph, GaussianGraph, LaplaceGraph, SparseGraph, SpectralGraph
from .parts.kronecker_sum import KroneckerSumNormal, ScaledKroneckerSumNormal
from .parts.scale_priors import FlatScales, NormalScales, StudentScales

__all__ = [
    "MEDMAGMA",
    "NOTMAD",
    "AcyclicityFactor",
    "FixedGraph",
    "FlatScales",
    "GaussianGraph",
    "KroneckerSumNormal",
    "LaplaceGraph",
    "NormalScales",
    "ScaledKroneckerSumNormal",
    "SparseGraph",
    "SpectralGraph",
    "StudentScales",
]
