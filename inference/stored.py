"""Draws that a sampler left."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class StoredDraws:
    """Draws that a sampler left, chain by chain.

    Attributes
    ----------
    values
        Latent sites, shaped (chain, draw, plates or 1s, event).
    statistics
        Further numbers of each draw for ``sample_stats``.
    """

    values: dict[str, Float[Tensor, "chain draw *site"]]
    statistics: dict[str, Float[np.ndarray, "chain draw"]] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of chains and of draws in each."""
        first = next(iter(self.values.values()))
        return first.shape[0], first.shape[1]

    def thinned(self, num_samples: int | None) -> StoredDraws:
        """At most `num_samples` draws in all, evenly from every chain."""
        chains, draws = self.shape
        each = draws if num_samples is None else min(draws, max(1, num_samples // chains))
        keep = np.linspace(0, draws - 1, each).round().astype(int)
        values = {name: value[:, keep] for name, value in self.values.items()}
        return StoredDraws(values, {name: value[:, keep] for name, value in self.statistics.items()})

    def flat(self) -> dict[str, Tensor]:
        """Values with chains and draws on one axis, chain by chain."""
        return {name: value.flatten(0, 1) for name, value in self.values.items()}
