"""What the MED-MAGMA benchmarks share: designs, cells of tables for both axes, means with errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from _tables import standard_error

SIZES = {"50x51": (50, 51), "100x150": (100, 150)}
GRAPHS: dict[str, dict[str, Any]] = {
    "ba1": {"graph": "tree"},
    "ba2": {"graph": "barabasi_albert"},
    "er": {"graph": "erdos_renyi"},
    "band": {"graph": "ring"},
    "block": {"graph": "blocks"},
}


def both(cell: Any, gene: Any) -> str:
    """Numbers of cells / genes."""
    return f"{cell} / {gene}"


def mean_of(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f}".replace("0.", ".", 1) if len(values) else ""


def gain(differences: Sequence[float]) -> str:
    """Mean of paired differences with its standard error."""
    if len(differences) < 2:
        return f"{np.mean(differences):+.3f}"
    return f"{np.mean(differences):+.3f}±{standard_error(differences):.3f}"
