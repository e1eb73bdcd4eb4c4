"""Baselines: the cheapest methods that a model must beat, fitted and scored like the models.

``baseline.fit(train).networks(test)`` gives a Dataset that `embergraph.metrics.evaluate` takes. Baselines for matrices
that depend along both axes (`MatrixBaseline`) give edge scores: ``baseline.fit(data)``. Baselines for cells of
several environments (`EnvironmentBaseline`) predict means and log densities of held-out cells:
``baseline.fit(train).log_density(test)``.
"""

from .base import Baseline as Baseline
from .base import FittedBaseline as FittedBaseline
from .clustered import KMeansClustered as KMeansClustered
from .clustered import LabelClustered as LabelClustered
from .dags import dagma as dagma
from .dags import notears as notears
from .environments import EnvironmentBaseline as EnvironmentBaseline
from .environments import EnvironmentMean as EnvironmentMean
from .environments import FittedEnvironmentBaseline as FittedEnvironmentBaseline
from .environments import MeanActivation as MeanActivation
from .environments import OracleLinearDecoder as OracleLinearDecoder
from .lioness import LIONESS as LIONESS
from .lioness import FittedLIONESS as FittedLIONESS
from .matrix import GmGM as GmGM
from .matrix import IndependentCells as IndependentCells
from .matrix import IndependentGenes as IndependentGenes
from .matrix import MatrixBaseline as MatrixBaseline
from .matrix import RowColumnScaling as RowColumnScaling
from .matrix import SingleAxis as SingleAxis
from .matrix import Skeptic as Skeptic
from .matrix import StrongProduct as StrongProduct
from .population import Oracle as Oracle
from .population import Population as Population
from .population import ZeroGraph as ZeroGraph
from .probabilistic_pca import FittedPCA as FittedPCA
from .probabilistic_pca import ProbabilisticPCA as ProbabilisticPCA
from .target_counts import FittedCounts as FittedCounts
from .target_counts import PooledNegativeBinomial as PooledNegativeBinomial
from .target_counts import TargetNegativeBinomial as TargetNegativeBinomial
from .varying import VaryingCoefficientRidge as VaryingCoefficientRidge
