"""Guides: variational families for the models, and what they need to be built."""

from .med_magma import MEDMAGMAGuide
from .notmad import NOTMADGuide

__all__ = ["MEDMAGMAGuide", "NOTMADGuide"]
