"""Bayesian models of gene expression whose structure changes with context, environment and measurement noise."""

from pathlib import Path

_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file():  # true only inside a source checkout, false in site-packages
    __path__.append(str(_checkout))
