"""Generative models, one file a method; shared pieces live in `parts`."""

from .environment_vae import EnvironmentVAE
from .med_magma import MEDMAGMA
from .notmad import NOTMAD
from .parts.acyclicity_factor import AcyclicityFactor, OrderMask
from .parts.archetypes import Archetypes, DenseArchetypes, FactorNetworks, LowRankArchetypes
from .parts.causal_maps import AutoregressiveMap, CausalMap, LinearMap
from .parts.decoders import Decoder, LinearDecoder, MLPDecoder
from .parts.distributions import SpikeSlab
from .parts.edge_priors import Horseshoe, SharedSpikeSlab
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
from .parts.sem_likelihoods import BinarySEM, GaussianSEM, LogisticSEM, SEMLikelihood, StudentSEM
from .vae_family import basic_vae, conditional_vae, gated_environment_vae, svae_plus, translation_vae

__all__ = [
    "MEDMAGMA",
    "NOTMAD",
    "AcyclicityFactor",
    "Archetypes",
    "AutoregressiveMap",
    "BinarySEM",
    "CausalMap",
    "Decoder",
    "DenseArchetypes",
    "DescriptorShifts",
    "EnvironmentPrior",
    "EnvironmentVAE",
    "FactorNetworks",
    "FixedGraph",
    "FlatScales",
    "GatedShifts",
    "GaussianGraph",
    "GaussianLikelihood",
    "GaussianSEM",
    "GeneEffects",
    "Horseshoe",
    "KroneckerSumNormal",
    "LaplaceGraph",
    "Likelihood",
    "LinearDecoder",
    "LinearMap",
    "LogisticSEM",
    "LowRankArchetypes",
    "MLPDecoder",
    "MaskedShifts",
    "NegativeBinomialLikelihood",
    "NormalScales",
    "OrderMask",
    "PoissonLikelihood",
    "SEMLikelihood",
    "ScaledKroneckerSumNormal",
    "SharedSpikeSlab",
    "SingleEffects",
    "SparseGraph",
    "SpectralGraph",
    "SpikeSlab",
    "SpikeSlabShifts",
    "StandardPrior",
    "StudentSEM",
    "StudentScales",
    "StudentTLikelihood",
    "basic_vae",
    "conditional_vae",
    "gated_environment_vae",
    "svae_plus",
    "translation_vae",
]
