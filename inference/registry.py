"""Classes that a saved fit may name; everything else is passed in by the caller of `load`."""

from __future__ import annotations

from typing import Any

from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal

REGISTERED: dict[str, type] = {}
"""Fit classes, models and guides of this suite; models and guides have ``settings()`` and ``from_settings()``."""

AUTOGUIDES: dict[str, Any] = {
    cls.__name__: cls for cls in (AutoDelta, AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal)
}
"""Pyro's guides that are rebuilt from the model alone."""


def register(cls: type) -> type:
    """Make a class known to `load` by its name."""
    REGISTERED[cls.__name__] = cls
    return cls
