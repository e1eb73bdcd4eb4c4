"""Guides: variational families for the models, and what they need to be built."""

from .notmad import NOTMADGuide

__all__ = ["NOTMADGuide"]
