"""Guides: variational families for the models, and what they need to be built."""

from .environment_vae import EnvironmentVAEGuide
from .linear_environment_vae import LinearEnvironmentVAEGuide
from .med_magma import MEDMAGMAGuide
from .notmad import NOTMADGuide

__all__ = ["EnvironmentVAEGuide", "LinearEnvironmentVAEGuide", "MEDMAGMAGuide", "NOTMADGuide"]
