"""Generative models, one file a method; shared pieces live in `parts`."""

from .notmad import NOTMAD, AcyclicityFactor

__all__ = ["NOTMAD", "AcyclicityFactor"]
