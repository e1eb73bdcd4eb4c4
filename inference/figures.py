"""Pictures that a fit has of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A figure with words for those who do not see it.

    Attributes
    ----------
    title
        What it is, a few words; stands below the picture.
    alt
        What is to be seen in it, a sentence or two.
    figure
        A matplotlib Figure that pyplot does not know of.
    """

    title: str
    alt: str
    figure: Figure
