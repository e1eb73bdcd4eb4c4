"""Data sets that come with the package, and simulators: one import line each.

A file named like its function has a leading underscore, since the two would shadow each other.
"""

from ._pbmc import pbmc as pbmc
from ._sachs import sachs as sachs
from ._simulated_environments import simulated_environments as simulated_environments
from ._simulated_linear_contexts import simulated_linear_contexts as simulated_linear_contexts
from ._simulated_matrix import simulated_matrix as simulated_matrix
from ._simulated_perturbations import simulated_perturbations as simulated_perturbations
from ._simulated_published import simulated_published as simulated_published
from .simulated import simulated_notmad as simulated_notmad
