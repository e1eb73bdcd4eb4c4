"""A report on a fit as text, as a Dataset and as one HTML file."""

from .page import Report, report

__all__ = ["Report", "report"]
