"""Generative models, one file a method; shared pieces live in `parts`."""

from .environment_vae import EnvironmentVAE
from .med_magma import MEDMAGMA
from .notmad import NOTMAD, AcyclicityFactor
from .parts.causal_maps import AutoregressiveMap, CausalMap, LinearMap
from .parts.decoders import Decoder, LinearDecoder, MLPDecoder
from .parts.environment_priors import (
    DescriptorShifts,
    EnvironmentPrior,
    GatedShifts,
    MaskedShifts,
    SingleEffects,
    SpikeSlabShifts,
    StandardPrior,
)
from .parts.expression import Likelihood
from .parts.gene_effects import GeneEffects
from .parts.graph_priors import FixedGraph, GaussianGraph, LaplaceGraph, SparseGraph, SpectralGraph
from .parts.kronecker_sum import KroneckerSumNormal, ScaledKroneckerSumNormal
from .parts.likelihoods import (
    GaussianLikelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)
from .parts.scale_priors import FlatScales, NormalScales, StudentScales
from .vae_family import basic_vae, conditional_vae, gated_environment_vae, svae_plus, translation_vae

__all__ = [
    "MEDMAGMA",
    "NOTMAD",
    "AcyclicityFactor",
    "AutoregressiveMap",
    "CausalMap",
    "Decoder",
    "DescriptorShifts",
    "EnvironmentPrior",
    "EnvironmentVAE",
    "FixedGraph",
    "FlatScales",
    "GatedShifts",
    "GaussianGraph",
    "GaussianLikelihood",
    "GeneEffects",
    "KroneckerSumNormal",
    "LaplaceGraph",
    "Likelihood",
    "LinearDecoder",
    "LinearMap",
    "MLPDecoder",
    "MaskedShifts",
    "NegativeBinomialLikelihood",
    "NormalScales",
    "PoissonLikelihood",
    "ScaledKroneckerSumNormal",
    "SingleEffects",
    "SparseGraph",
    "SpectralGraph",
    "SpikeSlabShifts",
    "StandardPrior",
    "StudentScales",
    "StudentTLikelihood",
    "basic_vae",
    "conditional_vae",
    "gated_environment_vae",
    "svae_plus",
    "translation_vae",
]
