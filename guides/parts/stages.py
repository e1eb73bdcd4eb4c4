"""When the closed forms of a guide change what they do, while an optimiser trains the rest."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stages:
    """What `update` does when, in steps of the optimiser.

    Attributes
    ----------
    start
        First step with an update.
    free_until
        Until then the means of environments are free, without sparsity.
    rotate_at
        Steps from which on the latents are rotated, once each.
    effects_from
        First step with an update of the effects on single genes.
    """

    start: int = 0
    free_until: int = 0
    rotate_at: tuple[int, ...] = ()
    effects_from: int = 0
