"""Baselines: the cheapest methods that a model must beat, fitted and scored like the models.

``baseline.fit(train).networks(test)`` gives a Dataset that `embergraph.metrics.evaluate` takes.
"""

from .base import Baseline as Baseline
from .base import FittedBaseline as FittedBaseline
from .clustered import KMeansClustered as KMeansClustered
from .clustered import LabelClustered as LabelClustered
from .dags import dagma as dagma
from .dags import notears as notears
from .population import Oracle as Oracle
from .population import Population as Population
from .population import ZeroGraph as ZeroGraph
from .varying import VaryingCoefficientRidge as VaryingCoefficientRidge
