"""Pieces that models share: distributions, encoders, acyclicity functions, projection, priors and errors."""

from .distributions import FiniteOrders, SpikeSlab, UniformOrder
from .encoders import ENCODERS, Encoder, GPEncoder, GPJointEncoder, LinearEncoder, NAMEncoder
from .errors import DataError, EmbergraphError, LoadError, NumericalError, SchemaError
from .priors import Prior
from .sem import MixtureSEM

__all__ = [
    "ENCODERS",
    "DataError",
    "EmbergraphError",
    "Encoder",
    "FiniteOrders",
    "GPEncoder",
    "GPJointEncoder",
    "LinearEncoder",
    "LoadError",
    "MixtureSEM",
    "NAMEncoder",
    "NumericalError",
    "Prior",
    "SchemaError",
    "SpikeSlab",
    "UniformOrder",
]
